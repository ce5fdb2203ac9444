/* ecdsa: secp256k1, and the only home of its header. Inside the room: this is where 32 bytes of any
 * kind can be signed, so nobody outside wallet/ may come here. Any thread.
 *
 * Public keys are uncompressed, 04 || x || y [65], or compressed, 02 or 03 || x [33]. Private keys
 * are 32 bytes, big-endian, 1 to n - 1, and come in as revealed guarded memory. */
#ifndef TRIBUTARY_WALLET_ECDSA_H
#define TRIBUTARY_WALLET_ECDSA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct secret;

enum {
    ECDSA_PRIVATE_BYTES = 32,
    ECDSA_PUBLIC_BYTES = 65,
    ECDSA_COMPRESSED_BYTES = 33,
    ECDSA_ADDRESS_BYTES = 20,
};

struct ecdsa_signature {
    uint8_t r[32], s[32]; /* big-endian */
    uint8_t recovery;     /* 0 or 1: y of the nonce point is even or odd */
};

/* Signs digest with the sealed 32-byte key: deterministic (RFC 6979, sha256), s in the lower half.
 * Never fails with a valid key; ERR_INVALID otherwise. */
int ecdsa_sign(struct ecdsa_signature *out, const uint8_t digest[32], const struct secret *key,
               struct err *err);

/* The public key that made sig. ERR_UNAUTHORIZED: r or s zero or beyond the group order, s in the
 * upper half (EIP-2), a recovery bit that is none, or no such point. */
int ecdsa_recover(uint8_t public_key[ECDSA_PUBLIC_BYTES], const struct ecdsa_signature *sig,
                  const uint8_t digest[32], struct err *err);

/* Is sig (its recovery bit aside) public_key's over digest? public_key in either form, n its
 * length. False, too, for keys off the curve and for s in the upper half. */
bool ecdsa_verify(const uint8_t *public_key, size_t n, const struct ecdsa_signature *sig,
                  const uint8_t digest[32]);

/* A strict DER signature, as key management services give them, into r and s (recovery is 0, to
 * be found by trying both). s is left in the half it is in. ERR_INVALID. */
int ecdsa_signature_from_der(struct ecdsa_signature *out, const uint8_t *der, size_t n,
                             struct err *err);

/* A fresh private key from the system's random generator, sealed. */
struct secret *ecdsa_private_key_random(void);

bool ecdsa_private_key_ok(const uint8_t key[ECDSA_PRIVATE_BYTES]); /* 1 to n - 1? */
bool ecdsa_public_key_ok(const uint8_t *public_key, size_t n);     /* a point on the curve? */

/* ERR_INVALID when key is out of range. */
int ecdsa_public_key(uint8_t out[ECDSA_PUBLIC_BYTES], const uint8_t key[ECDSA_PRIVATE_BYTES],
                     struct err *err);
int ecdsa_public_key_compressed(uint8_t out[ECDSA_COMPRESSED_BYTES],
                                const uint8_t key[ECDSA_PRIVATE_BYTES], struct err *err);

/* key = (key + tweak) mod n, for BIP-32. ERR_INVALID when tweak >= n or the sum is 0; key is
 * wiped then. */
int ecdsa_private_key_add(uint8_t key[ECDSA_PRIVATE_BYTES], const uint8_t tweak[32],
                          struct err *err);

/* The account of a public key: the last 20 bytes of keccak256(x || y) (Yellow Paper, F). */
void ecdsa_address(uint8_t out[ECDSA_ADDRESS_BYTES], const uint8_t public_key[ECDSA_PUBLIC_BYTES]);

#endif
