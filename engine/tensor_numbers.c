/* tensor_numbers: see tensor_numbers.h.
 *
 * Loops over blocks of a fixed size and without branches, so that the compiler makes vectors of
 * them: a core then does each here many times faster than it hashes the same bytes. */
#include "engine/tensor_numbers.h"

#include "node/base/err.h"

#include <string.h>

enum { BLOCK = 1024 };

/* ---- finite ------------------------------------------------------------------------------ */

/* An exponent of ones, and nothing else, carries into the sign's place when its lowest bit is
 * added. */
static bool finite_16(const uint8_t *p, size_t n, uint16_t exponent)
{
    uint16_t one = (uint16_t)(exponent & -exponent), seen = 0, bits;
    for (; n >= BLOCK; n -= BLOCK, p += 2 * BLOCK) {
        for (size_t i = 0; i < BLOCK; i++) {
            memcpy(&bits, p + 2 * i, 2);
            seen = (uint16_t)(seen | ((bits & exponent) + one));
        }
    }
    for (size_t i = 0; i < n; i++) {
        memcpy(&bits, p + 2 * i, 2);
        seen = (uint16_t)(seen | ((bits & exponent) + one));
    }
    return (seen & 0x8000u) == 0;
}

/* Finite as a bf16, too: it is held as one, or on a GPU taken apart into three of them, and an
 * infinite one would make no number of the zeros that stand for other requests' rows beside it.
 * What rounds to it has an exponent of ones when half of the bit that a bf16 ends with is added. */
static bool finite_32(const uint8_t *p, size_t n)
{
    uint32_t rest = 0x7fffffffu, half_and_one = 0x00008000u + 0x00800000u, seen = 0, bits;
    for (; n >= BLOCK; n -= BLOCK, p += 4 * BLOCK) {
        for (size_t i = 0; i < BLOCK; i++) {
            memcpy(&bits, p + 4 * i, 4);
            seen |= (bits & rest) + half_and_one;
        }
    }
    for (size_t i = 0; i < n; i++) {
        memcpy(&bits, p + 4 * i, 4);
        seen |= (bits & rest) + half_and_one;
    }
    return (seen & 0x80000000u) == 0;
}

bool tensor_numbers_finite(const uint8_t *in, enum tensor_dtype dtype, size_t n)
{
    if (dtype == TENSOR_F32)
        return finite_32(in, n);
    BUG_IF(dtype != TENSOR_F16 && dtype != TENSOR_BF16);
    return finite_16(in, n, dtype == TENSOR_F16 ? 0x7c00 : 0x7f80);
}

/* ---- another dtype ----------------------------------------------------------------------- */

/* The bits of an f32, from here on. A bf16 is the upper half of one. */
static inline uint32_t of_bf16(uint16_t h)
{
    return (uint32_t)h << 16;
}

/* An f16's exponent has a bias less by 112. A subnormal one is its fraction times 2^-24: what
 * exceeds 2^-14 in the number of that exponent, 113, with the fraction behind it. */
static inline uint32_t of_f16(uint16_t h)
{
    uint32_t sign = (h & 0x8000u) << 16, rest = (h & 0x7fffu) << 13;
    uint32_t is_small = 0 - ((rest - (1u << 23)) >> 31); /* all ones, or 0 */
    uint32_t bits = rest + (112u << 23) + (is_small & 1u << 23), excess = is_small & 113u << 23;
    float f, less;
    memcpy(&f, &bits, 4);
    memcpy(&less, &excess, 4);
    f -= less;
    memcpy(&bits, &f, 4);
    return sign | bits;
}

static inline uint16_t nearest_bf16(uint32_t bits)
{
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* void NAME(out, in, n): each OUT is VALUE, a function of the IN `x`. */
#define EACH(NAME, OUT, IN, VALUE)                                                               \
    static inline void NAME##_block(uint8_t *restrict out, const uint8_t *restrict in, size_t n) \
    {                                                                                            \
        for (size_t i = 0; i < n; i++) {                                                         \
            IN x;                                                                                \
            memcpy(&x, in + i * sizeof x, sizeof x);                                             \
            OUT y = VALUE;                                                                       \
            memcpy(out + i * sizeof y, &y, sizeof y);                                            \
        }                                                                                        \
    }                                                                                            \
    static void NAME(uint8_t *restrict out, const uint8_t *restrict in, size_t n)                \
    {                                                                                            \
        for (; n >= BLOCK; n -= BLOCK, out += BLOCK * sizeof(OUT), in += BLOCK * sizeof(IN))     \
            NAME##_block(out, in, BLOCK);                                                        \
        NAME##_block(out, in, n);                                                                \
    }

EACH(f32_to_bf16, uint16_t, uint32_t, nearest_bf16(x))
EACH(f16_to_bf16, uint16_t, uint16_t, nearest_bf16(of_f16(x)))
EACH(f16_to_f32, uint32_t, uint16_t, of_f16(x))
EACH(bf16_to_f32, uint32_t, uint16_t, of_bf16(x))

void tensor_numbers_convert(uint8_t *restrict out, enum tensor_dtype to, const uint8_t *restrict in,
                            enum tensor_dtype from, size_t n)
{
    if (from == to)
        memcpy(out, in, n * tensor_dtype_bytes(to));
    else if (from == TENSOR_F32 && to == TENSOR_BF16)
        f32_to_bf16(out, in, n);
    else if (from == TENSOR_F16 && to == TENSOR_BF16)
        f16_to_bf16(out, in, n);
    else if (from == TENSOR_F16 && to == TENSOR_F32)
        f16_to_f32(out, in, n);
    else if (from == TENSOR_BF16 && to == TENSOR_F32)
        bf16_to_f32(out, in, n);
    else
        BUG("no way from %s to %s", tensor_dtype_name(from), tensor_dtype_name(to));
}
