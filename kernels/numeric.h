/* numeric: the 16-bit formats, bit by bit, and small helpers that ref, cpu and the tests share.
 *
 *   bf16  1 sign, 8 exponent, 7 fraction: the upper half of an f32.
 *   f16   1 sign, 5 exponent (bias 15), 10 fraction: IEEE 754-2008 binary16.
 *
 * Widening is exact. Narrowing rounds to nearest, ties to even; NaN stays a (quiet) NaN. */
#ifndef TRIBUTARY_KERNELS_NUMERIC_H
#define TRIBUTARY_KERNELS_NUMERIC_H

#include "kernels/ops.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float f32_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline float bf16_to_f32(uint16_t h)
{
    return f32_from_bits((uint32_t)h << 16);
}

static inline uint16_t f32_to_bf16(float x)
{
    uint32_t u = f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((u >> 16) | 0x40u); /* quiet NaN */
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu, fraction = h & 0x3ffu;
    if (exponent == 0x1fu) /* infinity, or NaN made quiet */
        return f32_from_bits(sign | 0x7f800000u | (fraction ? 0x400000u | fraction << 13 : 0));
    if (exponent == 0) { /* zero or subnormal: fraction * 2^-24, exact in f32 */
        float magnitude = (float)fraction * 0x1p-24f;
        return f32_from_bits(sign | f32_bits(magnitude));
    }
    return f32_from_bits(sign | (exponent + 112u) << 23 | fraction << 13);
}

static inline uint16_t f32_to_f16(float x)
{
    uint32_t u = f32_bits(x);
    uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) /* NaN: quiet, upper payload bits kept, as VCVTPS2PH does */
        return (uint16_t)(sign | 0x7e00u | ((u >> 13) & 0x1ffu));
    if (u >= 0x477ff000u) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (u <
        0x38800000u) { /* below 2^-14: the result is subnormal; adding 0.5 aligns and rounds it */
        float aligned = f32_from_bits(u) + 0.5f;
        return (uint16_t)(sign | (uint16_t)(f32_bits(aligned) - 0x3f000000u));
    }
    u += 0xfffu + ((u >> 13) & 1u);
    return (uint16_t)(sign | (uint16_t)((u - 0x38000000u) >> 13));
}

/* Element i of an array of the given dtype, widened. */
static inline float element_f32(const void *p, enum dtype t, size_t i)
{
    switch (t) {
    case DTYPE_F32:
        return ((const float *)p)[i];
    case DTYPE_F16:
        return f16_to_f32(((const uint16_t *)p)[i]);
    case DTYPE_BF16:
        return bf16_to_f32(((const uint16_t *)p)[i]);
    }
    __builtin_unreachable();
}

/* int8 weights (ops.h): the scale of one column of n elements, from element `begin` of p on. NaN if
 * one is NaN or an infinity: the column's sums must not look like numbers then. */
static inline float int8_scale(const void *p, enum dtype t, size_t begin, int n)
{
    float max = 0;
    for (int k = 0; k < n; k++) {
        float magnitude = fabsf(element_f32(p, t, begin + (size_t)k));
        if (!(magnitude <= FLT_MAX))
            return NAN;
        max = magnitude > max ? magnitude : max;
    }
    return max / 127;
}

static inline int8_t int8_round(float x, float scale)
{
    if (!(scale > 0))
        return 0;
    float q = rintf(x / scale); /* beyond 127 only where the scale itself was rounded, near 0 */
    return (int8_t)(q > 127 ? 127 : q < -127 ? -127 : q);
}

static inline void element_store(void *p, enum dtype t, size_t i, float x)
{
    switch (t) {
    case DTYPE_F32:
        ((float *)p)[i] = x;
        return;
    case DTYPE_F16:
        ((uint16_t *)p)[i] = f32_to_f16(x);
        return;
    case DTYPE_BF16:
        ((uint16_t *)p)[i] = f32_to_bf16(x);
        return;
    }
    __builtin_unreachable();
}

#endif
