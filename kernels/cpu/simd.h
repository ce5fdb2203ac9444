/* simd: the few vector operations that the kernels need, at 8 (AVX2) or 16 (AVX-512) f32 lanes.
 *
 * Included only by isa_*.c. Loads and stores need no alignment. The _n forms touch the first n <
 * LANES elements only and read zero for the rest.
 *
 * The order of a sum over lanes is part of the determinism contract: vec_reduce4 and vec_reduce add
 * the lanes of each vector in the same tree, so a dot product has the same bits whether it was
 * computed alone or with three others. */
#ifndef TRIBUTARY_KERNELS_CPU_SIMD_H
#define TRIBUTARY_KERNELS_CPU_SIMD_H

#include "kernels/numeric.h"
#include "kernels/ops.h"

#include <immintrin.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
/* The loops so marked have constant bounds after inlining and hold registers in small arrays. */
#define UNROLL _Pragma("GCC unroll 16")

/* ((l0 + l1) + (l2 + l3)) + ((l4 + l5) + (l6 + l7)) of each of four vectors. */
INLINE __m128 reduce4_256(__m256 a, __m256 b, __m256 c, __m256 d)
{
    __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

#if defined(__AVX512F__)

enum { LANES = 16 };
typedef __m512 vec;

INLINE vec vec_zero(void)
{
    return _mm512_setzero_ps();
}
INLINE vec vec_set1(float x)
{
    return _mm512_set1_ps(x);
}
INLINE vec vec_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
INLINE vec vec_load_n(const float *p, int n)
{
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
}
INLINE void vec_store(float *p, vec x)
{
    _mm512_storeu_ps(p, x);
}
INLINE void vec_store_n(float *p, vec x, int n)
{
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), x);
}
INLINE vec vec_add(vec a, vec b)
{
    return _mm512_add_ps(a, b);
}
INLINE vec vec_sub(vec a, vec b)
{
    return _mm512_sub_ps(a, b);
}
INLINE vec vec_mul(vec a, vec b)
{
    return _mm512_mul_ps(a, b);
}
INLINE vec vec_div(vec a, vec b)
{
    return _mm512_div_ps(a, b);
}
INLINE vec vec_max(vec a, vec b) /* b when either is NaN */
{
    return _mm512_max_ps(a, b);
}
INLINE vec vec_min(vec a, vec b) /* b when either is NaN */
{
    return _mm512_min_ps(a, b);
}
INLINE vec vec_fma(vec a, vec b, vec c) /* a * b + c */
{
    return _mm512_fmadd_ps(a, b, c);
}
INLINE vec vec_broadcast(const float *p)
{
    return _mm512_set1_ps(*p);
}
INLINE void vec_fma_into(vec *c, vec a, vec b) /* c += a * b */
{
    *c = _mm512_fmadd_ps(a, b, *c);
}
INLINE vec vec_fnma(vec a, vec b, vec c) /* c - a * b */
{
    return _mm512_fnmadd_ps(a, b, c);
}
INLINE vec vec_round(vec x) /* to nearest integer, ties to even */
{
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vec vec_scale_pow2(vec x, vec n) /* x * 2^n, n an integer in [-126, 127], x normal */
{
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(x), _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23)));
}
INLINE vec vec_where_less(vec a, vec b, vec yes, vec no) /* a < b ? yes : no */
{
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
INLINE unsigned vec_mask_at_least(vec a, vec b)
{
    return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
}
INLINE vec vec_widen_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p)), 16));
}
INLINE vec vec_widen_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
INLINE vec vec_widen_int8(const void *p)
{
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p)));
}
INLINE void vec_narrow_f16(uint16_t *p, vec x)
{
    _mm256_storeu_si256((__m256i *)(void *)p,
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* Lanes of 32 bits that hold two bf16: the low and the high one. */
INLINE vec vec_pair_low(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
INLINE vec vec_pair_high(const void *p)
{
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32((int)0xffff0000u)));
}
/* The same of a pair of either 16-bit type in a register. */
INLINE void vec_unpair(const enum dtype t, vec *low, vec *high, __m512i pair)
{
    if (t == DTYPE_F16) {
        *low = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pair));
        *high = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pair, 16)));
    } else {
        *low = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
        *high = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32((int)0xffff0000u)));
    }
}
INLINE __m256 fold_512(vec x) /* lane i + lane i + 8 */
{
    return _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
}
INLINE __m128 vec_reduce4(vec a, vec b, vec c, vec d)
{
    return reduce4_256(fold_512(a), fold_512(b), fold_512(c), fold_512(d));
}
INLINE void vec_sum_f64(double sum[LANES], vec x) /* sum[i] += lane i */
{
    _mm512_storeu_pd(
        sum, _mm512_add_pd(_mm512_loadu_pd(sum), _mm512_cvtps_pd(_mm512_castps512_ps256(x))));
    _mm512_storeu_pd(sum + 8, _mm512_add_pd(_mm512_loadu_pd(sum + 8),
                                            _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))));
}

#else

enum { LANES = 8 };
typedef __m256 vec;

INLINE vec vec_zero(void)
{
    return _mm256_setzero_ps();
}
INLINE vec vec_set1(float x)
{
    return _mm256_set1_ps(x);
}
INLINE vec vec_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
INLINE __m256i lanes_below(int n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vec vec_load_n(const float *p, int n)
{
    return _mm256_maskload_ps(p, lanes_below(n));
}
INLINE void vec_store(float *p, vec x)
{
    _mm256_storeu_ps(p, x);
}
INLINE void vec_store_n(float *p, vec x, int n)
{
    _mm256_maskstore_ps(p, lanes_below(n), x);
}
INLINE vec vec_add(vec a, vec b)
{
    return _mm256_add_ps(a, b);
}
INLINE vec vec_sub(vec a, vec b)
{
    return _mm256_sub_ps(a, b);
}
INLINE vec vec_mul(vec a, vec b)
{
    return _mm256_mul_ps(a, b);
}
INLINE vec vec_div(vec a, vec b)
{
    return _mm256_div_ps(a, b);
}
INLINE vec vec_max(vec a, vec b) /* b when either is NaN */
{
    return _mm256_max_ps(a, b);
}
INLINE vec vec_min(vec a, vec b) /* b when either is NaN */
{
    return _mm256_min_ps(a, b);
}
INLINE vec vec_fma(vec a, vec b, vec c) /* a * b + c */
{
    return _mm256_fmadd_ps(a, b, c);
}
/* vec_set1 and vec_fma for loops that need all 16 registers: written out, because gcc otherwise
 * gathers the broadcasts ahead of the sums, runs out of registers and spills accumulators. */
INLINE vec vec_broadcast(const float *p)
{
    vec x;
    __asm__("vbroadcastss %1, %0" : "=x"(x) : "m"(*p));
    return x;
}
INLINE void vec_fma_into(vec *c, vec a, vec b) /* c += a * b */
{
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(*c) : "x"(a), "x"(b));
}
INLINE vec vec_fnma(vec a, vec b, vec c) /* c - a * b */
{
    return _mm256_fnmadd_ps(a, b, c);
}
INLINE vec vec_round(vec x) /* to nearest integer, ties to even */
{
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
INLINE vec vec_scale_pow2(vec x, vec n) /* x * 2^n, n an integer in [-126, 127], x normal */
{
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}
INLINE vec vec_where_less(vec a, vec b, vec yes, vec no) /* a < b ? yes : no */
{
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE unsigned vec_mask_at_least(vec a, vec b)
{
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ));
}
INLINE vec vec_widen_bf16(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(
        _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p)), 16));
}
INLINE vec vec_widen_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
INLINE vec vec_widen_int8(const void *p)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p)));
}
INLINE void vec_narrow_f16(uint16_t *p, vec x)
{
    _mm_storeu_si128((__m128i *)(void *)p,
                     _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* Lanes of 32 bits that hold two bf16: the low and the high one. */
INLINE vec vec_pair_low(const void *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256(p), 16));
}
INLINE vec vec_pair_high(const void *p)
{
    return _mm256_castsi256_ps(
        _mm256_and_si256(_mm256_loadu_si256(p), _mm256_set1_epi32((int)0xffff0000u)));
}
INLINE __m128 vec_reduce4(vec a, vec b, vec c, vec d)
{
    return reduce4_256(a, b, c, d);
}
INLINE void vec_sum_f64(double sum[LANES], vec x) /* sum[i] += lane i */
{
    _mm256_storeu_pd(
        sum, _mm256_add_pd(_mm256_loadu_pd(sum), _mm256_cvtps_pd(_mm256_castps256_ps128(x))));
    _mm256_storeu_pd(sum + 4, _mm256_add_pd(_mm256_loadu_pd(sum + 4),
                                            _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))));
}

#endif

INLINE float vec_reduce(vec x)
{
    return _mm_cvtss_f32(vec_reduce4(x, x, x, x));
}

INLINE float vec_reduce_max(vec x)
{
    float lane[LANES];
    vec_store(lane, x);
    float max = lane[0];
    for (int i = 1; i < LANES; i++)
        max = lane[i] > max ? lane[i] : max;
    return max;
}

/* Asks for n elements from index i ahead of their use; any address will do, it can't fault. */
INLINE void prefetch_as(const enum dtype t, const void *p, size_t i, int n)
{
    const int bytes = t == DTYPE_F32 ? 4 : 2;
    const char *at = (const char *)((uintptr_t)p + i * (size_t)bytes);
    for (int b = 0; b < n * bytes; b += 64)
        _mm_prefetch(at + b, _MM_HINT_T0);
}

enum { WIDE = 64 / LANES }; /* vectors of 64 columns */

/* LANES elements from index i of an array of the given (constant) dtype, widened. */
INLINE vec vec_load_as(const enum dtype t, const void *p, size_t i)
{
    if (t == DTYPE_F32)
        return vec_load((const float *)p + i);
    if (t == DTYPE_F16)
        return vec_widen_f16((const uint16_t *)p + i);
    return vec_widen_bf16((const uint16_t *)p + i);
}

INLINE vec vec_load_as_n(const enum dtype t, const void *p, size_t i, int n)
{
    if (t == DTYPE_F32)
        return vec_load_n((const float *)p + i, n);
    uint16_t padded[LANES] = {0};
    memcpy(padded, (const uint16_t *)p + i, (size_t)n * sizeof *padded);
    return t == DTYPE_F16 ? vec_widen_f16(padded) : vec_widen_bf16(padded);
}

/* exp(x), at most 1.5 ulp from the true value for -87.33 <= x <= 88.37; 0 below; exp(88.37) above;
 * NaN stays. x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its minimax polynomial (Cephes expf,
 * Moshier 1989); ln 2 in two parts, the first exact in 10 bits, so that n * ln 2 rounds nowhere. */
INLINE vec vec_exp(vec x)
{
    const vec low = vec_set1(-87.33f);
    vec n = vec_round(vec_mul(vec_min(vec_set1(88.37f), vec_max(low, x)), vec_set1(1.44269504f)));
    vec r = vec_min(vec_set1(88.37f), vec_max(low, x));
    r = vec_fnma(n, vec_set1(0.693359375f), r);
    r = vec_fnma(n, vec_set1(-2.12194440e-4f), r);
    vec p = vec_set1(1.9875691500e-4f);
    p = vec_fma(p, r, vec_set1(1.3981999507e-3f));
    p = vec_fma(p, r, vec_set1(8.3334519073e-3f));
    p = vec_fma(p, r, vec_set1(4.1665795894e-2f));
    p = vec_fma(p, r, vec_set1(1.6666665459e-1f));
    p = vec_fma(p, r, vec_set1(5.0000001201e-1f));
    p = vec_add(vec_fma(p, vec_mul(r, r), r), vec_set1(1.0f));
    return vec_where_less(x, low, vec_zero(), vec_scale_pow2(p, n));
}

/* tanh(x), at most 3 ulp: odd polynomial below 0.625 (Cephes tanhf), 1 - 2 / (e^2x + 1) above. */
INLINE vec vec_tanh(vec x)
{
    vec z = vec_mul(x, x);
    vec p = vec_set1(-5.70498872745e-3f);
    p = vec_fma(p, z, vec_set1(2.06390887954e-2f));
    p = vec_fma(p, z, vec_set1(-5.37397155531e-2f));
    p = vec_fma(p, z, vec_set1(1.33314422036e-1f));
    p = vec_fma(p, z, vec_set1(-3.33332819422e-1f));
    p = vec_fma(vec_mul(p, z), x, x);
    vec e = vec_exp(vec_add(x, x));
    vec q = vec_sub(vec_set1(1), vec_div(vec_set1(2), vec_add(e, vec_set1(1))));
    return vec_where_less(z, vec_set1(0.625f * 0.625f), p, q);
}

#endif
