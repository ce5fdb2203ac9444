/* keystore_v3: see keystore_v3.h.
 *
 * Problem. Keys come from and go to other wallets: geth, MetaMask, ethers. Their common format is
 * a JSON file whose key derivation and cost the file itself names.
 *
 * Format, as read and written here:
 *
 *     { "version": 3, "id": <uuid>, "address": <40 hex digits, may be absent>,
 *       "crypto" (some write "Crypto"): {
 *         "cipher": "aes-128-ctr", "cipherparams": { "iv": <32 hex digits> },
 *         "ciphertext": <64 hex digits>,
 *         "kdf": "scrypt", "kdfparams": { "dklen": 32, "salt": <hex>, "n": , "r": , "p":  }
 *          or    "pbkdf2", "kdfparams": { "dklen": 32, "salt": <hex>, "c": , "prf": "hmac-sha256"
 * }, "mac": <64 hex digits> } }
 *
 *     derived    = kdf(passphrase)                               [dklen]
 *     private    = AES-128-CTR(key = derived[0..16), iv, ciphertext)
 *     mac        = keccak256(derived[16..32) || ciphertext)      compared before decrypting
 *
 * The file is from strangers: every field's type, length and cost is checked before use. Nothing
 * in it is secret before it is decrypted, so the JSON itself may pass through ordinary memory.
 *
 * Source: ethereum/wiki, Web3 Secret Storage Definition; vectors of ethereum/tests and ethers. */
#include "wallet/keystore_v3.h"

#include "wallet/ecdsa.h"
#include "wallet/legacy.h"
#include "wallet/secmem.h"

#include "chain/keccak.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <jansson.h>
#include <sodium.h>
#include <string.h>

enum {
    DERIVED_BYTES = 32, /* the first 32 of dklen bytes are used */
    DERIVED_MAX_BYTES = 128,
    IV_BYTES = 16,
    MAC_BYTES = 32,
    SALT_MAX_BYTES = 256,
    PBKDF2_ITERATIONS_MAX = 10 * 1000 * 1000, /* several seconds */
};

struct v3 { /* a file's fields, checked; nothing secret */
    bool has_address;
    uint8_t address[ECDSA_ADDRESS_BYTES];
    uint8_t iv[IV_BYTES], ciphertext[ECDSA_PRIVATE_BYTES], mac[MAC_BYTES];
    uint8_t salt[SALT_MAX_BYTES];
    size_t n_salt, n_derived;
    enum { V3_SCRYPT, V3_PBKDF2 } kdf;
    uint64_t n, r, p; /* scrypt */
    uint64_t c;       /* pbkdf2 */
};

/* ---- reading fields -------------------------------------------------------------------------- */

/* Borrowed from in; NULL when there is no such string. */
static const char *get_string(const json_t *in, const char *key, struct err *err)
{
    const json_t *v = json_object_get(in, key);
    if (!json_is_string(v))
        err_set(err, ERR_INVALID, "keystore v3: \"%s\" is missing or not a string", key);
    return json_string_value(v);
}

static int get_number(uint64_t *out, const json_t *in, const char *key, uint64_t max,
                      struct err *err)
{
    const json_t *v = json_object_get(in, key);
    json_int_t i = json_integer_value(v);
    if (!json_is_integer(v) || i < 1)
        return err_set(err, ERR_INVALID, "keystore v3: \"%s\" is missing or not a positive number",
                       key);
    if ((uint64_t)i > max)
        return err_set(err, ERR_TOO_LARGE, "keystore v3: \"%s\" is %llu, the limit is %llu", key,
                       (unsigned long long)i, (unsigned long long)max);
    *out = (uint64_t)i;
    return 0;
}

static int get_hex(uint8_t *out, size_t n, const json_t *in, const char *key, struct err *err)
{
    const char *text = get_string(in, key, err);
    if (text == NULL)
        return -1;
    if (hex_decode(out, n, text) != 0)
        return err_set(err, ERR_INVALID, "keystore v3: \"%s\" is not %zu hexadecimal digits", key,
                       2 * n);
    return 0;
}

static int get_salt(struct v3 *v, const json_t *params, struct err *err)
{
    const char *text = get_string(params, "salt", err);
    if (text == NULL)
        return -1;
    size_t n = strlen(text);
    n = (n >= 2 && text[0] == '0' && (text[1] == 'x' || text[1] == 'X') ? n - 2 : n) / 2;
    if (n > SALT_MAX_BYTES || hex_decode(v->salt, n, text) != 0)
        return err_set(err, ERR_INVALID,
                       "keystore v3: \"salt\" is not hexadecimal of at most %d bytes",
                       SALT_MAX_BYTES);
    v->n_salt = n;
    return 0;
}

static int get_kdf(struct v3 *v, const json_t *crypto, struct err *err)
{
    const char *kdf = get_string(crypto, "kdf", err);
    const json_t *params = json_object_get(crypto, "kdfparams");
    uint64_t dklen = 0;
    if (kdf == NULL || get_salt(v, params, err) != 0 ||
        get_number(&dklen, params, "dklen", DERIVED_MAX_BYTES, err) != 0)
        return -1;
    if (dklen < DERIVED_BYTES)
        return err_set(err, ERR_INVALID, "keystore v3: \"dklen\" is %llu, below %d",
                       (unsigned long long)dklen, DERIVED_BYTES);
    v->n_derived = (size_t)dklen;
    if (strcmp(kdf, "scrypt") == 0) {
        v->kdf = V3_SCRYPT;
        /* legacy_scrypt bounds their product */
        if (get_number(&v->n, params, "n", UINT32_MAX, err) != 0 ||
            get_number(&v->r, params, "r", UINT32_MAX, err) != 0 ||
            get_number(&v->p, params, "p", UINT32_MAX, err) != 0)
            return -1;
        return 0;
    }
    if (strcmp(kdf, "pbkdf2") == 0) {
        v->kdf = V3_PBKDF2;
        const char *prf = get_string(params, "prf", err);
        if (prf == NULL || get_number(&v->c, params, "c", PBKDF2_ITERATIONS_MAX, err) != 0)
            return -1;
        if (strcmp(prf, "hmac-sha256") != 0)
            return err_set(err, ERR_UNSUPPORTED, "keystore v3: \"prf\" %.40s; hmac-sha256 works",
                           prf);
        return 0;
    }
    return err_set(err, ERR_UNSUPPORTED, "keystore v3: \"kdf\" %.40s; scrypt and pbkdf2 work", kdf);
}

static int get_fields(struct v3 *v, const json_t *file, struct err *err)
{
    if (!json_is_object(file))
        return err_set(err, ERR_INVALID, "keystore v3: not a JSON object");
    if (json_object_get(file, "encseed") != NULL)
        return err_set(err, ERR_UNSUPPORTED,
                       "this is a presale (crowdsale) wallet of 2014, not a keystore of version 3; "
                       "open it with ethers and save it as one");
    const json_t *version = json_object_get(file, "version");
    if (!json_is_integer(version) || json_integer_value(version) != 3)
        return err_set(err, ERR_UNSUPPORTED, "keystore: \"version\" is not 3");
    const json_t *crypto = json_object_get(file, "crypto");
    if (crypto == NULL)
        crypto = json_object_get(file, "Crypto");
    if (!json_is_object(crypto))
        return err_set(err, ERR_INVALID, "keystore v3: \"crypto\" is missing");
    const char *cipher = get_string(crypto, "cipher", err);
    if (cipher == NULL)
        return -1;
    if (strcmp(cipher, "aes-128-ctr") != 0)
        return err_set(err, ERR_UNSUPPORTED, "keystore v3: \"cipher\" %.40s; aes-128-ctr works",
                       cipher);
    v->has_address = json_object_get(file, "address") != NULL;
    if (v->has_address && get_hex(v->address, sizeof v->address, file, "address", err) != 0)
        return -1;
    if (get_hex(v->iv, sizeof v->iv, json_object_get(crypto, "cipherparams"), "iv", err) != 0 ||
        get_hex(v->ciphertext, sizeof v->ciphertext, crypto, "ciphertext", err) != 0 ||
        get_hex(v->mac, sizeof v->mac, crypto, "mac", err) != 0)
        return -1;
    return get_kdf(v, crypto, err);
}

/* ---- keys ------------------------------------------------------------------------------------ */

/* derived [v->n_derived]. */
static int derive(uint8_t *derived, const struct v3 *v, const struct secret *passphrase,
                  struct err *err)
{
    const uint8_t *password = secret_reveal(passphrase);
    size_t n_password = secret_len(passphrase);
    int rc = -1;
    switch (v->kdf) {
    case V3_SCRYPT:
        rc = legacy_scrypt(derived, v->n_derived, password, n_password, v->salt, v->n_salt, v->n,
                           (uint32_t)v->r, (uint32_t)v->p, err);
        break;
    case V3_PBKDF2:
        rc = legacy_pbkdf2(derived, v->n_derived, LEGACY_SHA256, password, n_password, v->salt,
                           v->n_salt, (uint32_t)v->c, err);
        break;
    }
    secret_conceal(passphrase);
    return rc;
}

static void compute_mac(uint8_t out[MAC_BYTES], const uint8_t *derived,
                        const uint8_t ciphertext[ECDSA_PRIVATE_BYTES])
{
    uint8_t *image;
    struct secret *scratch = secret_create(16 + ECDSA_PRIVATE_BYTES, &image);
    memcpy(image, derived + 16, 16);
    memcpy(image + 16, ciphertext, ECDSA_PRIVATE_BYTES);
    struct keccak_digest mac = keccak256(image, 16 + ECDSA_PRIVATE_BYTES);
    memcpy(out, mac.bytes, MAC_BYTES);
    secret_free(scratch);
}

static int address_check(const struct v3 *v, const uint8_t key[ECDSA_PRIVATE_BYTES],
                         struct err *err)
{
    uint8_t public_key[ECDSA_PUBLIC_BYTES], address[ECDSA_ADDRESS_BYTES];
    if (ecdsa_public_key(public_key, key, err) != 0)
        return err_wrap(err, "keystore v3");
    ecdsa_address(address, public_key);
    if (v->has_address && memcmp(address, v->address, sizeof address) != 0)
        return err_set(err, ERR_CORRUPT,
                       "keystore v3: the key inside is not the key of \"address\"");
    return 0;
}

static int read_file(struct v3 *v, const struct secret *text, struct err *err)
{
    json_error_t why;
    json_t *file = json_loadb((const char *)secret_reveal(text), secret_len(text),
                              JSON_REJECT_DUPLICATES, &why);
    secret_conceal(text);
    *v = (struct v3){0};
    int rc = file != NULL ? get_fields(v, file, err)
                          : err_set(err, ERR_INVALID, "keystore v3: not JSON (line %d, column %d)",
                                    why.line, why.column);
    json_decref(file);
    return rc;
}

int keystore_v3_check(const struct secret *text, struct err *err)
{
    struct v3 v;
    return read_file(&v, text, err);
}

struct secret *keystore_v3_decrypt(const struct secret *text, const struct secret *passphrase,
                                   struct err *err)
{
    struct v3 v;
    int rc = read_file(&v, text, err);
    if (rc != 0)
        return NULL;

    uint8_t *derived, *bytes, mac[MAC_BYTES];
    struct secret *scratch = secret_create(v.n_derived, &derived);
    struct secret *key = secret_create(ECDSA_PRIVATE_BYTES, &bytes);
    rc = derive(derived, &v, passphrase, err);
    if (rc == 0) {
        compute_mac(mac, derived, v.ciphertext);
        if (sodium_memcmp(mac, v.mac, sizeof mac) != 0)
            rc = err_set(err, ERR_UNAUTHORIZED,
                         "keystore v3: the passphrase is wrong, or the file is damaged");
    }
    if (rc == 0)
        rc = legacy_aes128_ctr(bytes, v.ciphertext, sizeof v.ciphertext, derived, v.iv, err);
    if (rc == 0)
        rc = address_check(&v, bytes, err);
    secret_free(scratch);
    secret_seal(key);
    if (rc != 0) {
        secret_free(key);
        return NULL;
    }
    return key;
}

/* A random UUID (RFC 4122, 4.4), text [36 + 1]. */
static void random_uuid(char text[37])
{
    uint8_t b[16];
    char hex[33];
    randombytes_buf(b, sizeof b);
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    hex_encode(hex, b, sizeof b);
    static const int group[5] = {8, 4, 4, 4, 12};
    const char *from = hex;
    for (int g = 0; g < 5; g++) {
        if (g > 0)
            *text++ = '-';
        memcpy(text, from, (size_t)group[g]);
        text += group[g];
        from += group[g];
    }
    *text = '\0';
}

int keystore_v3_encrypt(struct buf *json, const struct secret *key, const struct secret *passphrase,
                        uint64_t scrypt_n, struct err *err)
{
    secmem_init();
    struct v3 v = {
        .kdf = V3_SCRYPT, .n = scrypt_n, .r = 8, .p = 1, .n_salt = 32, .n_derived = DERIVED_BYTES};
    randombytes_buf(v.iv, sizeof v.iv);
    randombytes_buf(v.salt, v.n_salt);

    uint8_t *derived, public_key[ECDSA_PUBLIC_BYTES];
    struct secret *scratch = secret_create(v.n_derived, &derived);
    int rc = derive(derived, &v, passphrase, err);
    const uint8_t *bytes = secret_reveal(key);
    if (rc == 0)
        rc = ecdsa_public_key(public_key, bytes, err);
    if (rc == 0)
        rc = legacy_aes128_ctr(v.ciphertext, bytes, sizeof v.ciphertext, derived, v.iv, err);
    secret_conceal(key);
    if (rc == 0) {
        compute_mac(v.mac, derived, v.ciphertext);
        ecdsa_address(v.address, public_key);
    }
    secret_free(scratch);
    if (rc != 0)
        return -1;

    char id[37], address[41], iv[33], ciphertext[65], salt[65], mac[65];
    random_uuid(id);
    hex_encode(address, v.address, sizeof v.address);
    hex_encode(iv, v.iv, sizeof v.iv);
    hex_encode(ciphertext, v.ciphertext, sizeof v.ciphertext);
    hex_encode(salt, v.salt, v.n_salt);
    hex_encode(mac, v.mac, sizeof v.mac);
    buf_appendf(json,
                "{\"version\": 3, \"id\": \"%s\", \"address\": \"%s\", \"crypto\": {\"cipher\": "
                "\"aes-128-ctr\", \"cipherparams\": {\"iv\": \"%s\"}, \"ciphertext\": \"%s\", "
                "\"kdf\": \"scrypt\", \"kdfparams\": {\"dklen\": %zu, \"n\": %llu, \"p\": %llu, "
                "\"r\": %llu, \"salt\": \"%s\"}, \"mac\": \"%s\"}}\n",
                id, address, iv, ciphertext, v.n_derived, (unsigned long long)v.n,
                (unsigned long long)v.p, (unsigned long long)v.r, salt, mac);
    return 0;
}
