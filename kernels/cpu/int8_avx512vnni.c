/* int8_avx512vnni: products of int8 weights in integers, for AVX-512 VNNI (Cascade Lake servers,
 * Ice Lake laptops, Zen 4 and newer). The Makefile gives this file its flags by its name;
 * cpu_backend.c calls it only where they hold.
 *
 * VPDPWSSD multiplies 16 x 2 pairs of 16 bits and adds both products to an int32 lane: twice the
 * multiplications of an FMA on f32, and no conversion of the weights to f32. So x is rounded to 16
 * bits, in blocks of INT8_BLOCK consecutive k with one f32 scale a block (isa.h), and
 *
 *     y[i, c] = scale[c] * sum over blocks b, ascending, of
 *               xs[i, b] * (float)(sum over k in b of w[c, k] * xq[i, k])          + bias[c]
 *
 * The inner sum is exact in int32 (64 * 127 * 32767 < 2^29), so its order is nobody's business; the
 * outer one is an FMA a block in one lane. Rows, row groups, tiles and threads can't change a bit.
 *
 * What the rounding costs. In a block no element moves by more than half a step, which is max /
 * 65534; so, whatever the row, |x - rounded x|^2 <= 64 / 65534^2 * |x|^2 = 1.5e-8 |x|^2, a third of
 * it when the errors are spread evenly, and about 5e-10 for values near a normal distribution,
 * whose largest of 64 is 2.4 deviations. The weights' own rounding to 255 steps is 5e-5: ten
 * thousand times more. ops.h gives this product the bound 1e-8.
 *
 * Registers: rows x 4 accumulators, 4 vectors of weights, one of x. Sums of blocks rest in the
 * first-level cache. A turn is 4 k: one cache line of each of the four panels, side by side
 * (isa.tile_turns). A single group of rows asks for lines that memory must bring in time; several
 * groups, which walk the same tile one after the other, ask for lines that the second-level cache
 * holds, and, spread over all their turns, for the next tile's (body_gemm.h says why).
 *
 * Ladder (one core of a shared Zen 4 VM, weights in cache, 768 k, GMAC/s; nothing but FMAs reach 57
 * there, nothing but VPDPWSSD 114):
 *
 *                                                             1 row   4 rows   6 rows
 *     int8 widened to f32, FMA (body_gemm.h)                     27                57
 *     x in three planes of 8 bits, VPDPBUSD                      73  (2 rows: 34, gcc spills)
 *     x in 16 bits, VPDPWSSD                                     79      108       61, gcc spills
 *
 * The products and broadcasts are therefore written out. Out of memory (bench_ops, 2304 x 768,
 * medians of 3, alternating): 16 at 1 row, 58 at 4, 94 at 60; with the panels' turns side by side
 * 23, 88 and 93, where 12 rows and more need the lines of the second-level cache asked for (else
 * 84).
 *
 * Three planes would keep f32's own 24 bits and the bound of 1e-10, but nothing but VPDPBUSD, 230,
 * makes 76 of three, 1.3 times the FMAs', and their accumulators leave room for two rows only. */
#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

enum {
    TURN = 4,        /* k: of each panel one line, side by side (isa.tile_turns) */
    PAIR_BYTES = 32, /* of a panel */
    LINE = 2 * PAIR_BYTES,
    TURN_BYTES = TILE_PANELS * LINE,
    ROWS_MAX = 6,
    NEAR_BYTES = 4096,
    CACHED_BYTES = 1024, /* from the second-level cache */
};

static void round_row(int16_t *q, float *scale, const float *x, int d_in)
{
    const __m512i magnitude = _mm512_set1_epi32(INT32_MAX);
    const uint32_t infinity = 0x7f800000;
    for (int b = 0; b * INT8_BLOCK < d_in; b++, x += INT8_BLOCK, q += INT8_BLOCK) {
        enum { VECS = INT8_BLOCK / LANES };
        const int n = d_in - b * INT8_BLOCK < INT8_BLOCK ? d_in - b * INT8_BLOCK : INT8_BLOCK;
        __m512i max = _mm512_setzero_si512(); /* of the magnitudes' bits: NaN is largest */
        vec v[VECS];
        UNROLL for (int i = 0; i < VECS; i++)
        {
            int left = n - i * LANES;
            v[i] = left >= LANES ? vec_load(x + i * LANES)
                   : left > 0    ? vec_load_n(x + i * LANES, left)
                                 : vec_zero();
            max = _mm512_max_epu32(max, _mm512_and_si512(_mm512_castps_si512(v[i]), magnitude));
        }
        const uint32_t max_bits = _mm512_reduce_max_epu32(max);
        const float max_f32 = f32_from_bits(max_bits);
        float inverse = 0;
        scale[b] = 0;
        if (max_bits >= infinity) {
            scale[b] = NAN;
        } else if (max_f32 >= INT8_X_MIN) {
            scale[b] = max_f32 / 32767;
            inverse = 32767 / max_f32;
        }
        UNROLL for (int i = 0; i < VECS; i++)
        {
            __m512i rounded = _mm512_cvtps_epi32(vec_mul(v[i], vec_set1(inverse)));
            _mm256_storeu_si256((__m256i *)(void *)(q + i * LANES), _mm512_cvtepi32_epi16(rounded));
        }
    }
}

struct place { /* of a register block: a few rows by the panels of a tile */
    const struct gemm *g;
    const char *w;   /* the tile */
    int row, column; /* of y, its first */
    const char *ahead;
    size_t ahead_step; /* a turn, or 0: ask near by */
};

INLINE void products(__m512i *sum, __m512i w, __m512i x)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(*sum) : "v"(w), "v"(x));
}

/* Written out, as in simd.h: gcc would gather the broadcasts and spill the sums. */
INLINE __m512i broadcast_pair(const int16_t *x)
{
    __m512i pair;
    __asm__("vpbroadcastd %1, %0" : "=v"(pair) : "m"(*(const int16_t(*)[2])x));
    return pair;
}

/* sums += what one block of K adds, k from `begin` to `end`. */
INLINE void block_of_k(float sums[ROWS_MAX][TILE_PANELS][PANEL], const struct place *at,
                       const char **ahead, const int16_t *const *x, int begin, int end,
                       const float *const *scale, const int rows)
{
    const char *w = at->w + (size_t)(begin / TURN) * TURN_BYTES;
    const size_t near = at->ahead_step == 0 ? NEAR_BYTES : CACHED_BYTES;
    __m512i acc[ROWS_MAX][TILE_PANELS];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int p = 0; p < TILE_PANELS; p++)
        acc[r][p] = _mm512_setzero_si512();
    for (int k = begin; k < end; k += TURN, w += TURN_BYTES) {
        UNROLL for (int p = 0; p < TILE_PANELS; p++) _mm_prefetch(w + p * LINE + near, _MM_HINT_T0);
        if (at->ahead_step != 0) {
            _mm_prefetch(*ahead, _MM_HINT_T1);
            _mm_prefetch(*ahead + LINE, _MM_HINT_T1);
            *ahead += at->ahead_step;
        }
        UNROLL for (int pair = 0; pair < TURN; pair += 2)
        {
            __m512i wk[TILE_PANELS];
            UNROLL for (int p = 0; p < TILE_PANELS; p++)
                wk[p] = _mm512_cvtepi8_epi16(_mm256_loadu_si256(
                    (const __m256i *)(const void *)(w + p * LINE + pair / 2 * PAIR_BYTES)));
            UNROLL for (int r = 0; r < rows; r++)
            {
                __m512i xk = broadcast_pair(x[r] + k + pair);
                UNROLL for (int p = 0; p < TILE_PANELS; p++) products(&acc[r][p], wk[p], xk);
            }
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int p = 0; p < TILE_PANELS; p++) vec_store(
        sums[r][p], vec_fma(_mm512_cvtepi32_ps(acc[r][p]), vec_set1(scale[r][begin / INT8_BLOCK]),
                            vec_load(sums[r][p])));
}

INLINE void block_run(const struct place *at, const int rows)
{
    const struct gemm *g = at->g;
    const struct weight *w = g->w;
    const int d_in = (w->d_in + TURN - 1) / TURN * TURN;
    _Alignas(64) float sums[ROWS_MAX][TILE_PANELS][PANEL];
    const int16_t *x[ROWS_MAX];
    const float *scale[ROWS_MAX];
    const char *ahead = at->ahead;
    UNROLL for (int r = 0; r < rows; r++)
    {
        x[r] = g->x_int16 + (size_t)(at->row + r) * int8_x_stride(w->d_in);
        scale[r] = g->x_scale + (size_t)(at->row + r) * int8_x_blocks(w->d_in);
        UNROLL for (int p = 0; p < TILE_PANELS; p++) vec_store(sums[r][p], vec_zero());
    }
    for (int k = 0; k < d_in; k += INT8_BLOCK)
        block_of_k(sums, at, &ahead, x, k, d_in - k < INT8_BLOCK ? d_in : k + INT8_BLOCK, scale,
                   rows);
    for (int p = 0; p < TILE_PANELS && at->column + p * PANEL < w->d_out; p++) {
        const int column = at->column + p * PANEL;
        const int n = w->d_out - column < PANEL ? w->d_out - column : PANEL;
        const __mmask16 wanted = (__mmask16)((1u << n) - 1u);
        const vec column_scale = vec_load(w->scale + column);
        const vec bias = g->bias != NULL ? _mm512_maskz_loadu_ps(wanted, g->bias + column)
                                         : vec_zero();
        for (int r = 0; r < rows; r++) {
            vec y = vec_mul(vec_load(sums[r][p]), column_scale);
            _mm512_mask_storeu_ps(g->y + (size_t)(at->row + r) * (size_t)w->d_out + column, wanted,
                                  g->bias != NULL ? vec_add(y, bias) : y);
        }
    }
}

/* Functions of their own, as in body_gemm.h. */
#define BLOCK(rows)                                                            \
    static __attribute__((noinline)) void block_##rows(const struct place *at) \
    {                                                                          \
        block_run(at, rows);                                                   \
    }
BLOCK(1);
BLOCK(2);
BLOCK(3);
BLOCK(4);
BLOCK(5);
BLOCK(6);

static void gemm_int8(const struct gemm *g, int row_begin, int row_end, int tile)
{
    static void (*const blocks[ROWS_MAX + 1])(const struct place *) = {
        NULL, block_1, block_2, block_3, block_4, block_5, block_6};
    const struct weight *w = g->w;
    const int n_groups = (row_end - row_begin + ROWS_MAX - 1) / ROWS_MAX;
    const size_t turns = w->tile_bytes / TURN_BYTES;
    struct place at = {.g = g,
                       .w = (const char *)w->tiles + (size_t)tile * w->tile_bytes,
                       .row = row_begin,
                       .column = tile * TILE_PANELS * PANEL};
    at.ahead = at.w + w->tile_bytes;
    at.ahead_step = n_groups == 1 ? 0 : TURN_BYTES / (size_t)n_groups;
    for (int left = n_groups; left > 0; left--) {
        int rows = (row_end - at.row + left - 1) / left; /* balanced: 16 is 6 + 5 + 5 */
        blocks[rows](&at);
        at.row += rows;
        at.ahead += turns * at.ahead_step;
    }
}

const struct int8_products int8_avx512vnni = {
    .name = "VNNI",
    .round_row = round_row,
    .gemm = gemm_int8,
};
