/* keccak: Keccak-256 with the original padding (0x01), as Ethereum uses it; not SHA3-256.
 *
 * Source: Bertoni et al., "The Keccak reference" 3.0, and FIPS 202 for the permutation. */
#ifndef TRIBUTARY_CHAIN_KECCAK_H
#define TRIBUTARY_CHAIN_KECCAK_H

#include <stddef.h>
#include <stdint.h>

struct keccak_digest {
    uint8_t bytes[32];
};

struct keccak { /* in progress; may be copied */
    uint64_t lanes[25];
    size_t at; /* bytes absorbed into the current block of 136 */
};

void keccak_init(struct keccak *k);
void keccak_update(struct keccak *k, const void *bytes, size_t n);
struct keccak_digest keccak_final(struct keccak *k);

struct keccak_digest keccak256(const void *bytes, size_t n);

#endif
