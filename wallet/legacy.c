/* legacy: see legacy.h.
 *
 * Problem. Keystore v3, BIP-39 and BIP-32 were fixed by others: PBKDF2 with HMAC-SHA256 and
 * -SHA512, scrypt with any parameters, AES-128-CTR, RIPEMD-160. libsodium has only the scrypt of
 * these; OpenSSL has them all, but refuses scrypt with N >= 2^(16 r), RFC 7914's bound, which one
 * of Ethereum's own vectors (N = 2^18, r = 1), older than the RFC, exceeds.
 *
 * Idea. scrypt from libsodium's parameter-level function, the rest from libcrypto, each behind one
 * function that states its bounds. Parameters come from files that others made: they are bounded
 * in memory and time before anything is allocated, so that a hostile keystore cannot stop a node.
 *
 * Sources: RFC 8018 (PBKDF2), RFC 7914 (scrypt), NIST SP 800-38A (counter mode), ISO/IEC 10118-3
 * (RIPEMD-160). */
#include "wallet/legacy.h"

#include "wallet/secmem.h"

#include "node/base/err.h"

#include <errno.h>
#include <limits.h>
#include <openssl/evp.h>
#include <sodium.h>

int legacy_pbkdf2(uint8_t *out, size_t n_out, enum legacy_hash hash, const uint8_t *password,
                  size_t n_password, const uint8_t *salt, size_t n_salt, uint32_t iterations,
                  struct err *err)
{
    if (iterations < 1 || iterations > INT_MAX || n_out < 1 || n_out > INT_MAX ||
        n_password > INT_MAX || n_salt > INT_MAX)
        return err_set(err, ERR_INVALID, "PBKDF2: %u iterations for %zu bytes is out of range",
                       iterations, n_out);
    const EVP_MD *md = NULL;
    switch (hash) {
    case LEGACY_SHA256:
        md = EVP_sha256();
        break;
    case LEGACY_SHA512:
        md = EVP_sha512();
        break;
    }
    /* A NULL password means "" to OpenSSL only together with length 0; "" says it for both. */
    if (PKCS5_PBKDF2_HMAC(n_password == 0 ? "" : (const char *)password, (int)n_password,
                          n_salt == 0 ? (const uint8_t *)"" : salt, (int)n_salt, (int)iterations,
                          md, (int)n_out, out) != 1)
        return err_set(err, ERR_INTERNAL, "PBKDF2: libcrypto refused");
    return 0;
}

int legacy_scrypt(uint8_t *out, size_t n_out, const uint8_t *password, size_t n_password,
                  const uint8_t *salt, size_t n_salt, uint64_t cost, uint32_t r, uint32_t p,
                  struct err *err)
{
    if (cost < 2 || (cost & (cost - 1)) != 0)
        return err_set(err, ERR_INVALID, "scrypt: N = %llu is not a power of two above 1",
                       (unsigned long long)cost);
    if (r < 1 || p < 1 || (uint64_t)r * p >= (uint64_t)1 << 30)
        return err_set(err, ERR_INVALID, "scrypt: r = %u, p = %u is out of range", r, p);
    /* cost is checked first, so that the product below stays within 64 bits. */
    if (cost > LEGACY_SCRYPT_MAX_WORK || cost * r * p > LEGACY_SCRYPT_MAX_WORK ||
        (cost + p) * 128 * r > LEGACY_SCRYPT_MAX_BYTES)
        return err_set(err, ERR_TOO_LARGE,
                       "scrypt: N = %llu, r = %u, p = %u asks for more memory or time than the "
                       "limit (%llu MiB, N * r * p <= %llu)",
                       (unsigned long long)cost, r, p,
                       (unsigned long long)(LEGACY_SCRYPT_MAX_BYTES >> 20),
                       (unsigned long long)LEGACY_SCRYPT_MAX_WORK);
    secmem_init();
    if (crypto_pwhash_scryptsalsa208sha256_ll(password, n_password, salt, n_salt, cost, r, p, out,
                                              n_out) != 0)
        return err_set_errno(err, errno, "scrypt: N = %llu, r = %u, p = %u",
                             (unsigned long long)cost, r, p);
    return 0;
}

int legacy_aes128_ctr(uint8_t *out, const uint8_t *in, size_t n, const uint8_t key[16],
                      const uint8_t iv[16], struct err *err)
{
    if (n > INT_MAX)
        return err_set(err, ERR_TOO_LARGE, "AES-128-CTR: %zu bytes", n);
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    int wrote = 0, tail = 0;
    /* Counter mode has no padding: Final adds nothing and is called for its verdict. */
    int ok = ctx != NULL && EVP_EncryptInit_ex(ctx, EVP_aes_128_ctr(), NULL, key, iv) == 1 &&
             EVP_EncryptUpdate(ctx, out, &wrote, in, (int)n) == 1 &&
             EVP_EncryptFinal_ex(ctx, out + wrote, &tail) == 1 && (size_t)(wrote + tail) == n;
    EVP_CIPHER_CTX_free(ctx); /* wipes the key schedule */
    if (!ok)
        return err_set(err, ERR_INTERNAL, "AES-128-CTR: libcrypto refused");
    return 0;
}

int legacy_ripemd160(uint8_t out[20], const uint8_t *bytes, size_t n, struct err *err)
{
    unsigned wrote = 0;
    if (EVP_Digest(bytes, n, out, &wrote, EVP_ripemd160(), NULL) != 1 || wrote != 20)
        return err_set(err, ERR_UNSUPPORTED, "this libcrypto has no RIPEMD-160");
    return 0;
}
