/* hdkey: see hdkey.h.
 *
 * Problem. One phrase on paper should stand for any number of keys, the same ones in every wallet.
 *
 * Idea (BIP-32). A node is a private key k and a chain code c. Child i comes from
 *
 *     I = HMAC-SHA512(c, data || i)     data = 00 || k      hardened, i >= 2^31
 *                                       data = point(k)     otherwise
 *     k_i = I[0..32) + k mod n,  c_i = I[32..64)
 *
 * and the master from I = HMAC-SHA512("Bitcoin seed", seed). Public derivation (keys of children
 * without the private parent) has no use here and is left out.
 *
 * Every intermediate (data, I, nodes on the way down a path) lies in guarded memory; HMAC's state
 * is wiped.
 *
 * Sources: BIP-32 with its test vectors 1 to 5; BIP-44; SLIP-44 (coin type 60). */
#include "wallet/hdkey.h"

#include "wallet/ecdsa.h"
#include "wallet/legacy.h"
#include "wallet/secmem.h"

#include "node/base/err.h"
#include "node/base/hex.h"

#include <sodium.h>
#include <string.h>

enum { /* offsets within a node, hdkey.h */
       AT_VERSION = 0,
       AT_DEPTH = 4,
       AT_FINGERPRINT = 5,
       AT_INDEX = 9,
       AT_CHAIN = 13,
       AT_KEY = 45,
       CHAIN_BYTES = 32,
       SEED_MIN_BYTES = 16,
       SEED_MAX_BYTES = 64,
};
_Static_assert(AT_KEY + ECDSA_COMPRESSED_BYTES == HDKEY_BYTES, "the node's layout adds up");

static const uint8_t version_private[4] = {0x04, 0x88, 0xad, 0xe4};
static const uint8_t version_public[4] = {0x04, 0x88, 0xb2, 0x1e};

static void store_be32(uint8_t out[4], uint32_t v)
{
    for (int i = 0; i < 4; i++)
        out[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void hmac_sha512(uint8_t out[64], const uint8_t *key, size_t n_key, const uint8_t *data,
                        size_t n)
{
    crypto_auth_hmacsha512_state h;
    crypto_auth_hmacsha512_init(&h, key, n_key);
    crypto_auth_hmacsha512_update(&h, data, n);
    crypto_auth_hmacsha512_final(&h, out);
    sodium_memzero(&h, sizeof h);
}

struct secret *hdkey_master(const struct secret *seed, struct err *err)
{
    size_t n = secret_len(seed);
    if (n < SEED_MIN_BYTES || n > SEED_MAX_BYTES) {
        err_set(err, ERR_INVALID, "BIP-32: a seed of %zu bytes; 16 to 64 work", n);
        return NULL;
    }
    static const char salt[] = "Bitcoin seed";
    uint8_t *node, *image;
    struct secret *s = secret_create(HDKEY_BYTES, &node);
    struct secret *scratch = secret_create(64, &image);
    hmac_sha512(image, (const uint8_t *)salt, sizeof salt - 1, secret_reveal(seed), n);
    secret_conceal(seed);
    memcpy(node + AT_VERSION, version_private, sizeof version_private);
    memcpy(node + AT_CHAIN, image + 32, CHAIN_BYTES);
    memcpy(node + AT_KEY + 1, image, ECDSA_PRIVATE_BYTES);
    secret_free(scratch);
    if (!ecdsa_private_key_ok(node + AT_KEY + 1)) {
        err_set(err, ERR_INVALID, "BIP-32: this seed has no master key (one in 2^127)");
        secret_free(s);
        return NULL;
    }
    secret_seal(s);
    return s;
}

/* The first 4 bytes of ripemd160(sha256(compressed public key)). */
static int fingerprint(uint8_t out[4], const uint8_t public_key[ECDSA_COMPRESSED_BYTES],
                       struct err *err)
{
    uint8_t sha[crypto_hash_sha256_BYTES], ripemd[20];
    crypto_hash_sha256(sha, public_key, ECDSA_COMPRESSED_BYTES);
    if (legacy_ripemd160(ripemd, sha, sizeof sha, err) != 0)
        return -1;
    memcpy(out, ripemd, 4);
    return 0;
}

/* Fills child from parent, both [HDKEY_BYTES]; scratch [128] is guarded memory, too. */
static int child_into(uint8_t *child, uint8_t *scratch, const uint8_t *parent, uint32_t index,
                      struct err *err)
{
    if (parent[AT_DEPTH] == 255)
        return err_set(err, ERR_INVALID, "BIP-32: no key below depth 255");
    uint8_t *image = scratch, *data = scratch + 64; /* data [33 + 4] */
    uint8_t public_key[ECDSA_COMPRESSED_BYTES];
    if (ecdsa_public_key_compressed(public_key, parent + AT_KEY + 1, err) != 0)
        return -1;
    if (index >= HDKEY_HARDENED)
        memcpy(data, parent + AT_KEY, ECDSA_COMPRESSED_BYTES);
    else
        memcpy(data, public_key, ECDSA_COMPRESSED_BYTES);
    store_be32(data + ECDSA_COMPRESSED_BYTES, index);
    hmac_sha512(image, parent + AT_CHAIN, CHAIN_BYTES, data, ECDSA_COMPRESSED_BYTES + 4);

    memcpy(child + AT_VERSION, version_private, sizeof version_private);
    child[AT_DEPTH] = (uint8_t)(parent[AT_DEPTH] + 1);
    if (fingerprint(child + AT_FINGERPRINT, public_key, err) != 0)
        return -1;
    store_be32(child + AT_INDEX, index);
    memcpy(child + AT_CHAIN, image + 32, CHAIN_BYTES);
    memcpy(child + AT_KEY + 1, parent + AT_KEY + 1, ECDSA_PRIVATE_BYTES);
    if (ecdsa_private_key_add(child + AT_KEY + 1, image, err) != 0)
        return err_wrap(err, "BIP-32: child %u", index);
    return 0;
}

struct secret *hdkey_child(const struct secret *node, uint32_t index, struct err *err)
{
    BUG_IF(secret_len(node) != HDKEY_BYTES);
    uint8_t *child, *scratch;
    struct secret *s = secret_create(HDKEY_BYTES, &child);
    struct secret *wide = secret_create(128, &scratch);
    int rc = child_into(child, scratch, secret_reveal(node), index, err);
    secret_conceal(node);
    secret_free(wide);
    secret_seal(s);
    if (rc != 0) {
        secret_free(s);
        return NULL;
    }
    return s;
}

/* Reads "m(/<index>['hH])*" into indices; returns their number, or -1. */
static int path_parse(uint32_t indices[HDKEY_PATH_DEPTH_MAX], const char *path, struct err *err)
{
    int n = 0;
    const char *p = path;
    if (*p++ != 'm')
        goto bad;
    while (*p == '/') {
        p++;
        uint64_t index = 0;
        const char *first = p;
        for (; *p >= '0' && *p <= '9' && index < HDKEY_HARDENED; p++)
            index = index * 10 + (uint64_t)(*p - '0');
        if (p == first || index >= HDKEY_HARDENED || n == HDKEY_PATH_DEPTH_MAX)
            goto bad;
        if (*p == '\'' || *p == 'h' || *p == 'H') {
            index |= HDKEY_HARDENED;
            p++;
        }
        indices[n++] = (uint32_t)index;
    }
    if (*p == '\0')
        return n;
bad:
    return err_set(err, ERR_INVALID,
                   "derivation path %s: expected m, then up to %d times / and a number below 2^31, "
                   "each with or without '",
                   path, HDKEY_PATH_DEPTH_MAX);
}

struct secret *hdkey_derive(const struct secret *master, const char *path, struct err *err)
{
    uint32_t indices[HDKEY_PATH_DEPTH_MAX];
    int n = path_parse(indices, path, err);
    if (n < 0)
        return NULL;
    struct secret *node = secret_from_bytes(secret_reveal(master), secret_len(master));
    secret_conceal(master);
    for (int i = 0; i < n && node != NULL; i++) {
        struct secret *child = hdkey_child(node, indices[i], err);
        secret_free(node);
        node = child;
    }
    return node;
}

unsigned hdkey_depth(const struct secret *node)
{
    unsigned depth = secret_reveal(node)[AT_DEPTH];
    secret_conceal(node);
    return depth;
}

struct secret *hdkey_private_key(const struct secret *node)
{
    BUG_IF(secret_len(node) != HDKEY_BYTES);
    struct secret *key = secret_from_bytes(secret_reveal(node) + AT_KEY + 1, ECDSA_PRIVATE_BYTES);
    secret_conceal(node);
    return key;
}

/* ---- as text --------------------------------------------------------------------------------- */

struct secret *hdkey_xprv(const struct secret *node)
{
    uint8_t *text;
    struct secret *s = secret_create(BASE58_TEXT_MAX_BYTES, &text);
    size_t n = base58check_encode((char *)text, secret_reveal(node), HDKEY_BYTES);
    secret_conceal(node);
    secret_seal_at(s, n);
    return s;
}

int hdkey_xpub(char text[BASE58_TEXT_MAX_BYTES], const struct secret *node, struct err *err)
{
    const uint8_t *bytes = secret_reveal(node);
    uint8_t public_node[HDKEY_BYTES];
    memcpy(public_node, bytes, AT_KEY);
    memcpy(public_node + AT_VERSION, version_public, sizeof version_public);
    int rc = ecdsa_public_key_compressed(public_node + AT_KEY, bytes + AT_KEY + 1, err);
    secret_conceal(node);
    if (rc == 0)
        base58check_encode(text, public_node, HDKEY_BYTES);
    return rc;
}

/* BIP-32, test vector 5, what both kinds have in common. */
static int node_check(const uint8_t *node, const uint8_t version[4], struct err *err)
{
    static const uint8_t zero[8] = {0};
    if (memcmp(node + AT_VERSION, version, 4) != 0)
        return err_set(err, ERR_INVALID, "BIP-32: version %02x%02x%02x%02x is not this kind of key",
                       node[0], node[1], node[2], node[3]);
    if (node[AT_DEPTH] == 0 && memcmp(node + AT_FINGERPRINT, zero, 8) != 0)
        return err_set(err, ERR_INVALID,
                       "BIP-32: a master key (depth 0) that names a parent or an index");
    return 0;
}

struct secret *hdkey_from_xprv(const struct secret *text, struct err *err)
{
    uint8_t *node;
    struct secret *s = secret_create(HDKEY_BYTES, &node);
    int rc = base58check_decode(node, HDKEY_BYTES, (const char *)secret_reveal(text),
                                secret_len(text), err);
    secret_conceal(text);
    if (rc == 0)
        rc = node_check(node, version_private, err);
    if (rc == 0 && (node[AT_KEY] != 0 || !ecdsa_private_key_ok(node + AT_KEY + 1)))
        rc = err_set(err, ERR_INVALID, "BIP-32: the private key is not 00 and 1 to n - 1");
    secret_seal(s);
    if (rc != 0) {
        secret_free(s);
        return NULL;
    }
    return s;
}

int hdkey_from_xpub(uint8_t out[HDKEY_BYTES], const char *text, struct err *err)
{
    if (base58check_decode(out, HDKEY_BYTES, text, strlen(text), err) != 0 ||
        node_check(out, version_public, err) != 0)
        return -1;
    if (!ecdsa_public_key_ok(out + AT_KEY, ECDSA_COMPRESSED_BYTES))
        return err_set(err, ERR_INVALID, "BIP-32: the public key is not a point on the curve");
    return 0;
}
