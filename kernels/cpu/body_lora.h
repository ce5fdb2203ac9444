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
 * adds t[i, k] * B[c, k] for k = 0, 1, 2 ..., and is added to y by one FMA. */
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

/* scratch[k][c] = B[c][k]; columns from n_cols to the next multiple of LANES are zero. */
INLINE void transpose_tile(float *scratch, const void *b, const enum dtype type, int rank,
                           int n_cols)
{
    int column = 0;
    for (; type != DTYPE_F32 && column + 8 <= n_cols; column += 8) {
        int k = 0;
        for (; k + 8 <= rank; k += 8)
            transpose_square(scratch + (size_t)k * LORA_TILE_COLS + column,
                             (const uint16_t *)b + (size_t)column * (size_t)rank + k, (size_t)rank,
                             type);
        for (; k < rank; k++)
            for (int c = column; c < column + 8; c++)
                scratch[(size_t)k * LORA_TILE_COLS + (size_t)c] = element_f32(
                    b, type, (size_t)c * (size_t)rank + (size_t)k);
    }
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
