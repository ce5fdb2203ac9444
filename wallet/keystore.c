/* keystore: see keystore.h.
 *
 * Problem. A key at rest must survive a thief of the disk, who can guess passphrases at leisure;
 * an altered file must be noticed; and an honest owner should be told apart what is wrong, a
 * mistyped passphrase or a dying disk.
 *
 * Idea. The passphrase is made slow to guess by Argon2id, the key encrypted by XChaCha20-Poly1305
 * with everything before the ciphertext as associated data, so that no header field can be changed
 * without the passphrase: not the cost, not the name (a file renamed to another role is refused),
 * not the address shown to whoever sends money there. A plain sha256 over the whole comes last.
 * It is no defence, it only tells damage (checksum wrong) from a wrong passphrase or an attack
 * (checksum right, Poly1305 tag wrong), and covers the header when a file is only listed.
 *
 * Layout. 204 bytes, integers big-endian:
 *
 *     offset  size
 *          0     8   "TRIBKEY" and a line feed, which a text-mode copy would spoil
 *          8     4   version: 1
 *         12     4   key derivation: 1 = Argon2id version 1.3, one lane
 *         16     4   passes over the memory        1 to 16
 *         20     4   memory, KiB                   8 to 1,048,576
 *         24    16   salt, random
 *         40    24   nonce, random (192 bits: random is safe)
 *         64    32   name, padded with NUL
 *         96    20   address
 *        116     8   created, Unix seconds
 *        124    32   private key, encrypted   } XChaCha20-Poly1305; key: Argon2id(passphrase, salt)
 *        156    16   tag                      } associated data: bytes 0 to 123
 *        172    32   sha256 of bytes 0 to 171
 *        204
 *
 * Passphrases are bytes; nothing is normalised.
 *
 * Sources: RFC 9106 (Argon2), draft-irtf-cfrg-xchacha-03 and RFC 8439 (XChaCha20-Poly1305). */
#include "wallet/keystore.h"

#include "wallet/ecdsa.h"
#include "wallet/secmem.h"

#include "node/base/err.h"

#include <errno.h>
#include <sodium.h>
#include <string.h>

enum {
    AT_MAGIC = 0,
    AT_VERSION = 8,
    AT_KDF = 12,
    AT_PASSES = 16,
    AT_MEMORY = 20,
    AT_SALT = 24,
    AT_NONCE = AT_SALT + crypto_pwhash_SALTBYTES,
    AT_NAME = AT_NONCE + crypto_aead_xchacha20poly1305_ietf_NPUBBYTES,
    AT_ADDRESS = AT_NAME + WALLET_NAME_BYTES,
    AT_CREATED = AT_ADDRESS + 20,
    AT_KEY = AT_CREATED + 8,
    AT_TAG = AT_KEY + ECDSA_PRIVATE_BYTES,
    AT_CHECKSUM = AT_TAG + crypto_aead_xchacha20poly1305_ietf_ABYTES,

    VERSION = 1,
    KDF_ARGON2ID13 = 1,
};
_Static_assert(AT_NONCE == 40 && AT_NAME == 64 && AT_CREATED == 116 && AT_KEY == 124 &&
                   AT_CHECKSUM == 172 && AT_CHECKSUM + crypto_hash_sha256_BYTES == KEYSTORE_BYTES,
               "the layout is the one drawn above");

static const uint8_t magic[8] = "TRIBKEY\n";

static void store_be(uint8_t *out, size_t n, uint64_t v)
{
    while (n-- > 0) {
        out[n] = (uint8_t)v;
        v >>= 8;
    }
}

static uint64_t load_be(const uint8_t *in, size_t n)
{
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++)
        v = v << 8 | in[i];
    return v;
}

bool keystore_name_ok(const char *name)
{
    size_t n = strnlen(name, WALLET_NAME_BYTES);
    if (n == 0 || n == WALLET_NAME_BYTES)
        return false;
    for (size_t i = 0; i < n; i++) {
        char c = name[i];
        bool alnum = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
        if (!alnum && (i == 0 || (c != '_' && c != '-')))
            return false;
    }
    return true;
}

static int cost_check(uint32_t passes, uint32_t memory_kib, enum err_code code, struct err *err)
{
    if (passes < 1 || passes > KEYSTORE_PASSES_MAX || memory_kib < KEYSTORE_MEMORY_KIB_MIN ||
        memory_kib > KEYSTORE_MEMORY_KIB_MAX)
        return err_set(
            err, code, "Argon2id cost of %u passes over %u KiB; 1 to %d over %d to %d KiB", passes,
            memory_kib, KEYSTORE_PASSES_MAX, KEYSTORE_MEMORY_KIB_MIN, KEYSTORE_MEMORY_KIB_MAX);
    return 0;
}

/* The key that encrypts the key. */
static struct secret *stretch(const struct secret *passphrase, const uint8_t *file, struct err *err)
{
    uint8_t *bytes;
    uint64_t passes = load_be(file + AT_PASSES, 4), memory_kib = load_be(file + AT_MEMORY, 4);
    struct secret *s = secret_create(crypto_aead_xchacha20poly1305_ietf_KEYBYTES, &bytes);
    int rc = crypto_pwhash(bytes, crypto_aead_xchacha20poly1305_ietf_KEYBYTES,
                           (const char *)secret_reveal(passphrase), secret_len(passphrase),
                           file + AT_SALT, passes, (size_t)memory_kib * 1024,
                           crypto_pwhash_ALG_ARGON2ID13);
    int e = errno;
    secret_conceal(passphrase);
    secret_seal(s);
    if (rc != 0) {
        err_set_errno(err, e, "Argon2id with %llu KiB of memory", (unsigned long long)memory_kib);
        secret_free(s);
        return NULL;
    }
    return s;
}

int keystore_encrypt(uint8_t file[KEYSTORE_BYTES], struct keystore_header *header,
                     const struct secret *key, const struct secret *passphrase, struct err *err)
{
    if (!keystore_name_ok(header->name))
        return err_set(err, ERR_INVALID,
                       "key name: 1 to %d of a-z, 0-9, _ and -, the first a letter or digit",
                       WALLET_NAME_BYTES - 1);
    if (cost_check(header->kdf_passes, header->kdf_memory_kib, ERR_INVALID, err) != 0)
        return -1;
    uint8_t public_key[ECDSA_PUBLIC_BYTES];
    int rc = ecdsa_public_key(public_key, secret_reveal(key), err);
    secret_conceal(key);
    if (rc != 0)
        return -1;
    ecdsa_address(header->address, public_key);

    memset(file, 0, KEYSTORE_BYTES);
    memcpy(file + AT_MAGIC, magic, sizeof magic);
    store_be(file + AT_VERSION, 4, VERSION);
    store_be(file + AT_KDF, 4, KDF_ARGON2ID13);
    store_be(file + AT_PASSES, 4, header->kdf_passes);
    store_be(file + AT_MEMORY, 4, header->kdf_memory_kib);
    randombytes_buf(file + AT_SALT, AT_NAME - AT_SALT);
    memcpy(file + AT_NAME, header->name, strlen(header->name));
    memcpy(file + AT_ADDRESS, header->address, sizeof header->address);
    store_be(file + AT_CREATED, 8, header->created_unix_s);

    struct secret *kek = stretch(passphrase, file, err);
    if (kek == NULL)
        return -1;
    unsigned long long n = 0;
    crypto_aead_xchacha20poly1305_ietf_encrypt(file + AT_KEY, &n, secret_reveal(key),
                                               ECDSA_PRIVATE_BYTES, file, AT_KEY, NULL,
                                               file + AT_NONCE, secret_reveal(kek));
    secret_conceal(key);
    secret_conceal(kek);
    secret_free(kek);
    BUG_IF(n != AT_CHECKSUM - AT_KEY);
    crypto_hash_sha256(file + AT_CHECKSUM, file, AT_CHECKSUM);
    return 0;
}

int keystore_parse(struct keystore_header *out, const uint8_t *file, size_t n, struct err *err)
{
    if (n < AT_KDF + crypto_hash_sha256_BYTES || memcmp(file, magic, sizeof magic) != 0)
        return err_set(err, ERR_CORRUPT, "not a key file of Tributary's (%zu bytes)", n);
    /* The checksum stands last in every version, so that a newer file is told from a damaged one.
     */
    uint8_t sum[crypto_hash_sha256_BYTES];
    crypto_hash_sha256(sum, file, n - sizeof sum);
    if (memcmp(sum, file + n - sizeof sum, sizeof sum) != 0)
        return err_set(err, ERR_CORRUPT,
                       "the checksum is wrong: the file (%zu bytes) is damaged or cut", n);
    uint64_t version = load_be(file + AT_VERSION, 4);
    if (version != VERSION)
        return err_set(err, ERR_UNSUPPORTED, "key file version %llu; this program reads %d",
                       (unsigned long long)version, VERSION);
    if (n != KEYSTORE_BYTES)
        return err_set(err, ERR_CORRUPT, "%zu bytes, where a key file has %d", n, KEYSTORE_BYTES);
    uint64_t kdf = load_be(file + AT_KDF, 4);
    if (kdf != KDF_ARGON2ID13)
        return err_set(err, ERR_CORRUPT, "unknown key derivation %llu", (unsigned long long)kdf);

    *out = (struct keystore_header){
        .kdf_passes = (uint32_t)load_be(file + AT_PASSES, 4),
        .kdf_memory_kib = (uint32_t)load_be(file + AT_MEMORY, 4),
        .created_unix_s = load_be(file + AT_CREATED, 8),
    };
    memcpy(out->name, file + AT_NAME, sizeof out->name);
    memcpy(out->address, file + AT_ADDRESS, sizeof out->address);
    bool padded = keystore_name_ok(out->name);
    for (size_t i = strnlen(out->name, sizeof out->name); i < sizeof out->name; i++)
        padded = padded && out->name[i] == '\0';
    if (!padded)
        return err_set(err, ERR_CORRUPT, "the name inside is not a key's name");
    return cost_check(out->kdf_passes, out->kdf_memory_kib, ERR_CORRUPT, err);
}

struct secret *keystore_decrypt(const uint8_t *file, size_t n, const struct secret *passphrase,
                                struct keystore_header *header, struct err *err)
{
    struct keystore_header h;
    secmem_init();
    if (keystore_parse(&h, file, n, err) != 0)
        return NULL;
    struct secret *kek = stretch(passphrase, file, err);
    if (kek == NULL)
        return NULL;
    uint8_t *bytes, public_key[ECDSA_PUBLIC_BYTES], address[ECDSA_ADDRESS_BYTES] = {0};
    struct secret *key = secret_create(ECDSA_PRIVATE_BYTES, &bytes);
    int rc = crypto_aead_xchacha20poly1305_ietf_decrypt(bytes, NULL, NULL, file + AT_KEY,
                                                        AT_CHECKSUM - AT_KEY, file, AT_KEY,
                                                        file + AT_NONCE, secret_reveal(kek));
    secret_conceal(kek);
    secret_free(kek);
    if (rc != 0)
        err_set(err, ERR_UNAUTHORIZED, "the passphrase is wrong, or the file was altered");
    /* Whoever wrote the tag knew the passphrase; this only catches a broken writer. */
    if (rc == 0 && ecdsa_public_key(public_key, bytes, err) == 0)
        ecdsa_address(address, public_key);
    if (rc == 0 && memcmp(address, h.address, sizeof address) != 0)
        rc = err_set(err, ERR_CORRUPT, "the key inside is not the key of the address outside");
    secret_seal(key);
    if (rc != 0) {
        secret_free(key);
        return NULL;
    }
    if (header != NULL)
        *header = h;
    return key;
}
