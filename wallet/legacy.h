/* legacy: the algorithms that the formats of others demand: PBKDF2 and RIPEMD-160 (BIP-39, BIP-32),
 * scrypt and AES-128-CTR (Ethereum's keystore v3). Ours are Argon2id and XChaCha20-Poly1305, in
 * keystore.c. legacy.c is the only home of OpenSSL's headers in the wallet. Inside the room.
 *
 * All are pure functions of their arguments; any thread. Passwords and outputs may be secrets: the
 * caller keeps them in guarded memory. */
#ifndef TRIBUTARY_WALLET_LEGACY_H
#define TRIBUTARY_WALLET_LEGACY_H

#include <stddef.h>
#include <stdint.h>

struct err;

enum legacy_hash { LEGACY_SHA256, LEGACY_SHA512 };

/* PBKDF2 with HMAC (RFC 8018, section 5.2): out [n_out] from password [n_password] and salt
 * [n_salt], any of the two lengths may be 0; iterations 1 to 2^31 - 1. ERR_INVALID outside. */
int legacy_pbkdf2(uint8_t *out, size_t n_out, enum legacy_hash hash, const uint8_t *password,
                  size_t n_password, const uint8_t *salt, size_t n_salt, uint32_t iterations,
                  struct err *err);

/* scrypt (RFC 7914). cost is N, a power of two from 2 on; r block size and p lanes from 1 on,
 * r * p < 2^30. Uses 128 * r * (N + p) bytes: ERR_TOO_LARGE when that exceeds
 * LEGACY_SCRYPT_MAX_BYTES or its time LEGACY_SCRYPT_MAX_WORK, ERR_NO_MEMORY when there is not as
 * much. */
#define LEGACY_SCRYPT_MAX_BYTES ((uint64_t)1 << 30)
#define LEGACY_SCRYPT_MAX_WORK  ((uint64_t)1 << 26) /* N * r * p, a minute or so; geth's is 2^21 */
int legacy_scrypt(uint8_t *out, size_t n_out, const uint8_t *password, size_t n_password,
                  const uint8_t *salt, size_t n_salt, uint64_t cost, uint32_t r, uint32_t p,
                  struct err *err);

/* AES-128 in counter mode, the whole 16-byte iv counting as one big-endian number (NIST SP
 * 800-38A, 6.5): out [n] = in [n] xor keystream, in may be out. Its own inverse. */
int legacy_aes128_ctr(uint8_t *out, const uint8_t *in, size_t n, const uint8_t key[16],
                      const uint8_t iv[16], struct err *err);

/* RIPEMD-160 of n bytes. ERR_UNSUPPORTED where the system's libcrypto is built without it. */
int legacy_ripemd160(uint8_t out[20], const uint8_t *bytes, size_t n, struct err *err);

#endif
