/* philox: Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As
 * Easy as 1, 2, 3", SC'11, section 5.3. Ten rounds of two 32x32 -> 64 multiplications; the key is
 * bumped by the Weyl constants between rounds. A pure function of (counter, key): no state, so a
 * draw doesn't depend on who drew before it. */
#ifndef TRIBUTARY_KERNELS_PHILOX_H
#define TRIBUTARY_KERNELS_PHILOX_H

#include <stdint.h>

static inline void philox4x32_10(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c0 = n0;
        c1 = (uint32_t)p1;
        c2 = n2;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u; /* golden ratio */
        k1 += 0xBB67AE85u; /* sqrt(3) - 1 */
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

#endif
