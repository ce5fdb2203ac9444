/* body_lora: the two thin products of an adapter. Compiled once per instruction set (isa_*.c).
 *
 * Adapters stay in the layout and dtype of their file, so that loading one is a copy.
 *
 * shrink, t = A x: A's rows are contiguous, so each (row, rank) pair is a dot product: one vector
 * accumulator over ascending k, then the lane tree of vec_reduce4. Blocks of 4 rows x 2 ranks, or 1
 * x 8, share loads; a pair's own operations are the same in every block.
 *
 * expand, y += factor * B t: B's rows are only `rank` long, too short to be summed across lanes.
 * A tile of up to 64 columns is transposed (and widened) once into scratch [rank][64], which stays
 * in the first-level cache and serves all rows of the segment; then each y[i, c] is a lane that
 * adds t[i, k] * B[c, k] for k = 0, 1, 2 ..., and is added to y by one FMA. With AVX-512 a single
 * row takes the transposed squares out of registers, in the same order.
 *
 * Sixteen rows with an adapter each (cpu_linear.c cuts them as few rows by many columns, so that B
 * is read in long runs) read 16 x 5.6 MB a step of the 110 M shape, 2.6 ms at 35 GB/s. What they
 * take more than sixteen rows under one adapter, ms a step (two threads of a shared Zen 5 VM,
 * medians of 4):
 *
 *     64 columns after each tile of the product         7.8   (2 KB of B at a place)
 *     512 columns, all products before                  5.1
 *     squares of 16 x 16, two k a lane                  3.5
 *     one row out of registers                          3.1 */
#ifndef TRIBUTARY_KERNELS_CPU_BODY_LORA_H
#define TRIBUTARY_KERNELS_CPU_BODY_LORA_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

/* rows * ranks is 1 or a multiple of 4. */
INLINE void shrink_block(float *t, int ldt, const float *x, int d_in, const void *a,
                         const enum dtype type, const int rows, const int ranks)
{
    vec acc[8];
    int k = 0;
    UNROLL for (int i = 0; i < rows * ranks; i++) acc[i] = vec_zero();
    for (; k + LANES <= d_in; k += LANES) {
        vec xk[4];
        UNROLL for (int r = 0; r < rows; r++)
            xk[r] = vec_load(x + (size_t)r * (size_t)d_in + (size_t)k);
        UNROLL for (int j = 0; j < ranks; j++)
        {
            vec ak = vec_load_as(type, a, (size_t)j * (size_t)d_in + (size_t)k);
            UNROLL for (int r = 0; r < rows; r++)
                acc[j * rows + r] = vec_fma(xk[r], ak, acc[j * rows + r]);
        }
    }
    if (k < d_in) {
        UNROLL for (int j = 0; j < ranks; j++)
        {
            vec ak = vec_load_as_n(type, a, (size_t)j * (size_t)d_in + (size_t)k, d_in - k);
            UNROLL for (int r = 0; r < rows; r++) acc[j * rows + r] = vec_fma(
                vec_load_n(x + (size_t)r * (size_t)d_in + (size_t)k, d_in - k), ak,
                acc[j * rows + r]);
        }
    }
    float sum[8];
    if (rows * ranks == 1)
        sum[0] = vec_reduce(acc[0]);
    UNROLL for (int i = 0; i + 4 <= rows * ranks; i += 4)
        _mm_storeu_ps(sum + i, vec_reduce4(acc[i], acc[i + 1], acc[i + 2], acc[i + 3]));
    for (int j = 0; j < ranks; j++)
        for (int r = 0; r < rows; r++)
            t[(size_t)r * (size_t)ldt + (size_t)j] = sum[j * rows + r];
}

INLINE void shrink_as(float *t, int ldt, const float *x, int d_in, const void *a,
                      const enum dtype type, int n_rows, int rank_begin, int rank_end)
{
    int row = 0;
#define SHRINK(rows, ranks)                                                                       \
    for (; rank + (ranks) <= rank_end; rank += (ranks))                                           \
    shrink_block(t + (size_t)row * (size_t)ldt + rank, ldt, x + (size_t)row * (size_t)d_in, d_in, \
                 (const char *)a + (size_t)rank * (size_t)d_in * (type == DTYPE_F32 ? 4 : 2),     \
                 type, rows, ranks)
    const int even = rank_begin + (rank_end - rank_begin) / 2 * 2;
    for (; row + 4 <= n_rows; row += 4) {
        int rank = rank_begin;
        SHRINK(4, 2);
    }
    const int in_fours = row; /* these rows lack only the odd rank */
    for (row = 0; row < n_rows; row++) {
        int rank = row < in_fours ? even : rank_begin;
        SHRINK(1, 8);
        SHRINK(1, 1);
    }
#undef SHRINK
}

static void shrink(float *t, int ldt, const float *x, int d_in, const void *a, enum dtype dtype,
                   int n_rows, int rank_begin, int rank_end)
{
    switch (dtype) {
    case DTYPE_F32:
        shrink_as(t, ldt, x, d_in, a, DTYPE_F32, n_rows, rank_begin, rank_end);
        break;
    case DTYPE_F16:
        shrink_as(t, ldt, x, d_in, a, DTYPE_F16, n_rows, rank_begin, rank_end);
        break;
    case DTYPE_BF16:
        shrink_as(t, ldt, x, d_in, a, DTYPE_BF16, n_rows, rank_begin, rank_end);
        break;
    }
}

#if defined(__AVX512F__)

/* out[k], lane c = B[c][k] of 16 columns and 16 k, of which n_cols and n_k exist; the others are
 * zero. Two k share a 32-bit lane until the end, so 24 shuffles move 256 elements. */
INLINE void transpose_square(vec out[16], const uint16_t *b, size_t ldb, const enum dtype type,
                             const int n_cols, const int n_k)
{
    __m512i a[8], c[8];
    UNROLL for (int i = 0; i < 8; i++)
    {
        const int low = i / 4 * 8 + i % 4, high = low + 4; /* columns, in the halves of a[i] */
        __m256i half[2];
        UNROLL for (int h = 0; h < 2; h++)
        {
            const int column = h == 0 ? low : high;
            __mmask16 there = column < n_cols ? (__mmask16)((1u << n_k) - 1u) : 0;
            half[h] = _mm256_maskz_loadu_epi16(there, b + (size_t)column * ldb);
        }
        a[i] = _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1);
    }
    /* 4 x 4 squares of 32-bit lanes: a[4 g + j] to lane j of each 128 bits ... */
    UNROLL for (int g = 0; g < 8; g += 4)
    {
        __m512i p = _mm512_unpacklo_epi32(a[g], a[g + 1]);
        __m512i q = _mm512_unpackhi_epi32(a[g], a[g + 1]);
        __m512i r = _mm512_unpacklo_epi32(a[g + 2], a[g + 3]);
        __m512i s = _mm512_unpackhi_epi32(a[g + 2], a[g + 3]);
        c[g] = _mm512_unpacklo_epi64(p, r);
        c[g + 1] = _mm512_unpackhi_epi64(p, r);
        c[g + 2] = _mm512_unpacklo_epi64(q, s);
        c[g + 3] = _mm512_unpackhi_epi64(q, s);
    }
    /* ... whose even 128 bits are k = 2 j, 2 j + 1, and whose odd ones are 8 more. */
    UNROLL for (int j = 0; j < 4; j++)
    {
        a[j] = _mm512_shuffle_i64x2(c[j], c[4 + j], 0x88);
        a[4 + j] = _mm512_shuffle_i64x2(c[j], c[4 + j], 0xdd);
    }
    UNROLL for (int i = 0; i < 8; i++) vec_unpair(type, &out[2 * i], &out[2 * i + 1], a[i]);
}

/* All columns to scratch, as transpose_tile; returns how many those are. */
INLINE int transpose_squares(float *scratch, const uint16_t *b, const enum dtype type, int rank,
                             int n_cols)
{
    for (int column = 0; column < n_cols; column += 16)
        for (int k = 0; k < rank; k += 16) {
            const uint16_t *from = b + (size_t)column * (size_t)rank + k;
            float *to = scratch + (size_t)k * LORA_TILE_COLS + column;
            vec out[16];
            if (rank - k >= 16 && n_cols - column >= 16) {
                transpose_square(out, from, (size_t)rank, type, 16, 16);
                UNROLL for (int i = 0; i < 16; i++) vec_store(to + i * LORA_TILE_COLS, out[i]);
                continue;
            }
            transpose_square(out, from, (size_t)rank, type, n_cols - column,
                             rank - k < 16 ? rank - k : 16);
            UNROLL for (int i = 0; i < 16; i++) if (i < rank - k)
                vec_store(to + i * LORA_TILE_COLS, out[i]);
        }
    return n_cols;
}

/* One row without scratch. */
INLINE void expand_alone_as(float *y, int n_cols, const float *t, const uint16_t *b,
                            const enum dtype type, int rank, float factor)
{
    for (int column = 0; column < n_cols; column += 16) {
        vec acc = vec_zero();
        for (int k = 0; k < rank; k += 16) {
            const uint16_t *from = b + (size_t)column * (size_t)rank + k;
            vec out[16];
            if (rank - k >= 16 && n_cols - column >= 16) {
                transpose_square(out, from, (size_t)rank, type, 16, 16);
                UNROLL for (int i = 0; i < 16; i++) acc = vec_fma(vec_set1(t[k + i]), out[i], acc);
                continue;
            }
            transpose_square(out, from, (size_t)rank, type, n_cols - column,
                             rank - k < 16 ? rank - k : 16);
            UNROLL for (int i = 0; i < 16; i++) if (i < rank - k)
                acc = vec_fma(vec_set1(t[k + i]), out[i], acc);
        }
        int n = n_cols - column < 16 ? n_cols - column : 16;
        vec_store_n(y + column, vec_fma(vec_set1(factor), acc, vec_load_n(y + column, n)), n);
    }
}

/* expand for one row; false, and nothing done, for f32. */
static bool expand_alone(float *y, int n_cols, const float *t, const void *b, enum dtype dtype,
                         int rank, float factor)
{
    if (dtype == DTYPE_F16)
        expand_alone_as(y, n_cols, t, b, DTYPE_F16, rank, factor);
    else if (dtype == DTYPE_BF16)
        expand_alone_as(y, n_cols, t, b, DTYPE_BF16, rank, factor);
    return dtype != DTYPE_F32;
}

#else

/* An 8 x 8 square of 16-bit elements, rows ldb apart, to 8 rows of 8 f32, LORA_TILE_COLS apart. */
INLINE void transpose_square(float *out, const uint16_t *b, size_t ldb, const enum dtype type)
{
    __m128i a[8], c[8];
    UNROLL for (size_t i = 0; i < 8; i++)
        a[i] = _mm_loadu_si128((const __m128i *)(const void *)(b + i * ldb));
    UNROLL for (int i = 0; i < 4; i++)
    {
        c[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]); /* a0 a4 a0 a4 ... */
        c[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
    }
    /* Three rounds of this perfect shuffle of 8 registers are a transpose. */
    UNROLL for (int i = 0; i < 4; i++)
    {
        a[2 * i] = _mm_unpacklo_epi16(c[i], c[i + 4]);
        a[2 * i + 1] = _mm_unpackhi_epi16(c[i], c[i + 4]);
    }
    UNROLL for (int i = 0; i < 4; i++)
    {
        c[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
        c[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
    }
    UNROLL for (size_t i = 0; i < 8; i++)
    {
        __m256 wide = type == DTYPE_F16
                          ? _mm256_cvtph_ps(c[i])
                          : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(c[i]), 16));
        _mm256_storeu_ps(out + i * LORA_TILE_COLS, wide);
    }
}

/* Whole squares of columns to scratch, as transpose_tile; returns how many columns those are. */
INLINE int transpose_squares(float *scratch, const uint16_t *b, const enum dtype type, int rank,
                             int n_cols)
{
    int column = 0;
    for (; column + 8 <= n_cols; column += 8) {
        int k = 0;
        for (; k + 8 <= rank; k += 8)
            transpose_square(scratch + (size_t)k * LORA_TILE_COLS + column,
                             b + (size_t)column * (size_t)rank + k, (size_t)rank, type);
        for (; k < rank; k++)
            for (int c = column; c < column + 8; c++)
                scratch[(size_t)k * LORA_TILE_COLS + (size_t)c] = element_f32(
                    b, type, (size_t)c * (size_t)rank + (size_t)k);
    }
    return column;
}

/* expand for one row, if that is worth code of its own: false, and nothing done. */
static bool expand_alone(float *y, int n_cols, const float *t, const void *b, enum dtype dtype,
                         int rank, float factor)
{
    (void)y, (void)n_cols, (void)t, (void)b, (void)dtype, (void)rank, (void)factor;
    return false;
}

#endif

/* scratch[k][c] = B[c][k]; columns from n_cols to the next multiple of LANES are zero. */
INLINE void transpose_tile(float *scratch, const void *b, const enum dtype type, int rank,
                           int n_cols)
{
    int column = type == DTYPE_F32 ? 0 : transpose_squares(scratch, b, type, rank, n_cols);
    for (; column < n_cols; column++)
        for (int k = 0; k < rank; k++)
            scratch[(size_t)k * LORA_TILE_COLS + (size_t)column] = element_f32(
                b, type, (size_t)column * (size_t)rank + (size_t)k);
    for (; column % LANES != 0; column++)
        for (int k = 0; k < rank; k++)
            scratch[(size_t)k * LORA_TILE_COLS + (size_t)column] = 0;
}

/* rows x (vecs * LANES) columns; the last n_cols may be fewer. */
INLINE void expand_block(float *y, int ldy, int n_cols, const float *t, int rank,
                         const float *scratch, float factor, const int rows, const int vecs)
{
    vec acc[4][8];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vecs; v++)
        acc[r][v] = vec_zero();
    for (int k = 0; k < rank; k++) {
        vec b[8];
        UNROLL for (int v = 0; v < vecs; v++)
            b[v] = vec_load(scratch + (size_t)k * LORA_TILE_COLS + v * LANES);
        UNROLL for (int r = 0; r < rows; r++)
        {
            vec tk = vec_set1(t[(size_t)r * (size_t)rank + (size_t)k]);
            UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = vec_fma(tk, b[v], acc[r][v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vecs; v++)
    {
        float *to = y + (size_t)r * (size_t)ldy + v * LANES;
        int n = n_cols - v * LANES;
        if (n >= LANES)
            vec_store(to, vec_fma(vec_set1(factor), acc[r][v], vec_load(to)));
        else
            vec_store_n(to, vec_fma(vec_set1(factor), acc[r][v], vec_load_n(to, n)), n);
    }
}

static void expand(float *y, int ldy, int n_cols, const float *t, const void *b, enum dtype dtype,
                   int rank, int n_rows, float factor, float *scratch)
{
    if (n_rows == 1 && expand_alone(y, n_cols, t, b, dtype, rank, factor))
        return;
    switch (dtype) {
    case DTYPE_F32:
        transpose_tile(scratch, b, DTYPE_F32, rank, n_cols);
        break;
    case DTYPE_F16:
        transpose_tile(scratch, b, DTYPE_F16, rank, n_cols);
        break;
    case DTYPE_BF16:
        transpose_tile(scratch, b, DTYPE_BF16, rank, n_cols);
        break;
    }
    enum { NARROW = 4, ROWS = LANES == 16 ? 4 : 3 };
    int row = 0;
#define EXPAND(rows, vecs)                                                     \
    for (; column + ((vecs)-1) * LANES < n_cols; column += (vecs)*LANES)       \
    expand_block(y + (size_t)row * (size_t)ldy + column, ldy, n_cols - column, \
                 t + (size_t)row * (size_t)rank, rank, scratch + column, factor, rows, vecs)
    for (; row + ROWS <= n_rows; row += ROWS) {
        int column = 0;
        EXPAND(ROWS, NARROW);
        EXPAND(ROWS, 1);
    }
    for (; row < n_rows; row++) {
        int column = 0;
        EXPAND(1, WIDE);
        EXPAND(1, 1);
    }
#undef EXPAND
}

#endif
