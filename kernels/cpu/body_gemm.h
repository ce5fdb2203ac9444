/* body_gemm: W x for 1 to any number of rows. Compiled once per instruction set (isa_*.c).
 *
 * Each output y[i, c] has one lane of one accumulator register, and adds w[c, k] * x[i, k] by FMA
 * for k = 0, 1, 2 ... That is the whole determinism argument: neither the number of rows that share
 * a register block, nor the number of panels, nor a cut of K (the accumulator rests in y between
 * two pieces of K, exactly) changes any lane's sequence of operations.
 *
 * The register block is `rows x panels` accumulators, sized so that the FMA units stay busy
 * (latency 4, 2 a cycle: at least 8 in flight) and nothing spills:
 *
 *     AVX2, 16 registers     6x1 5x1 4x1 3x2 2x2 1x4    (a panel is two registers wide)
 *     AVX-512, 32 registers  1..6 x 4                   (a panel is one register wide)
 *
 * Weights are padded to whole tiles of TILE_PANELS, so there is no narrower variant; a tile that
 * hangs over the last column of y is computed in a buffer.
 *
 * Widening bf16 inside the loop costs one shift or AND per 8 weights, against 2 FMAs per 8 weights
 * and row: with 4 rows or more it hides behind them, so there is no second, widened copy of a panel
 * to keep in cache. With one row the loop is bound by memory anyway. *
 * The two bounds, for the 110 M shape of `make bench` (12 layers, 768, FFN 2048, vocabulary 32000,
 * tied):
 *
 *     bytes   109.5 M weights x 2 = 219 MB a step, however many rows
 *     FMAs    109.5 M a row; AVX2 does 16 a cycle and core, two AVX-512 units 32
 *
 * so two AVX2 cores at 3.4 GHz and 30 GB/s need at least 7.3 ms a step for its bytes and 1.0 ms a
 * row for its FMAs: memory rules below 7 rows, arithmetic above.
 *
 * Ladder (bench_ops 2 110m, two cores of an otherwise idle Emerald Rapids VM; 768 x 2048 and the
 * 32000 x 768 head; GB/s of weights at 1 row, GFMA/s at 16 rows):
 *
 *     AVX2      down 29.7 GB/s, 68.0 GFMA/s     lm_head 28.7 GB/s, 63.4 GFMA/s
 *     AVX-512   down 24.4 GB/s, 124.4 GFMA/s    lm_head 29.8 GB/s, 126.5 GFMA/s
 *
 * Tried and left out: prefetching the step's adapters between the register blocks of the base
 * product (no gain in two side-by-side runs). What bounds expand at one row an adapter has not been
 * established: shrink and expand were not timed apart. */
#ifndef TRIBUTARY_KERNELS_CPU_BODY_GEMM_H
#define TRIBUTARY_KERNELS_CPU_BODY_GEMM_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

enum {
    PANEL_VECS = PANEL / LANES,
    BLOCK_ROWS_MAX = 6,
    TILE_COLS = TILE_PANELS * PANEL,
    X_CACHE_BYTES = 256 * 1024, /* of x that shall stay in the second-level cache */
    K_PIECE = 1024,
};

struct gemm_place { /* of a register block */
    const char *w;  /* its first panel */
    const float *x; /* its first row */
    float *y;       /* its first element */
    size_t ldy;
    int k_begin, k_end; /* k_begin even */
};

INLINE void block_step(vec acc[BLOCK_ROWS_MAX][TILE_PANELS * PANEL_VECS], const int rows,
                       const int vecs, const vec *w, const float *const *x, int k)
{
    UNROLL for (int r = 0; r < rows; r++)
    {
        vec xk = vec_set1(x[r][k]);
        UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = vec_fma(xk, w[v], acc[r][v]);
    }
}

INLINE void block_run(const struct weight *weight, const struct gemm_place *at, const enum dtype t,
                      const int rows, const int panels)
{
    const int vecs = panels * PANEL_VECS;
    const size_t k_bytes = PANEL * (t == DTYPE_F32 ? 4 : 2), ldy = at->ldy;
    const int k_end = at->k_end;
    vec acc[BLOCK_ROWS_MAX][TILE_PANELS * PANEL_VECS], wk[TILE_PANELS * PANEL_VECS];
    const char *w[TILE_PANELS];
    const float *x[BLOCK_ROWS_MAX];
    float *y = at->y;

    UNROLL for (int p = 0; p < panels; p++) w[p] = at->w + (size_t)p * weight->panel_bytes;
    UNROLL for (int r = 0; r < rows; r++) x[r] = at->x + (size_t)r * (size_t)weight->d_in;
    if (at->k_begin == 0) {
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vecs; v++)
            acc[r][v] = vec_zero();
    } else {
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vecs; v++)
            acc[r][v] = vec_load(y + (size_t)r * ldy + v * LANES);
    }
    int k = at->k_begin;
    if (t == DTYPE_BF16) {
        for (; k + 1 < k_end; k += 2) {
            UNROLL for (int v = 0; v < vecs; v++) wk[v] = vec_pair_low(
                w[v / PANEL_VECS] + (size_t)k * k_bytes + (v % PANEL_VECS) * LANES * 4);
            block_step(acc, rows, vecs, wk, x, k);
            /* Read the pairs again instead of holding them in registers, of which none is left. */
            __asm__ volatile("" ::: "memory");
            UNROLL for (int v = 0; v < vecs; v++) wk[v] = vec_pair_high(
                w[v / PANEL_VECS] + (size_t)k * k_bytes + (v % PANEL_VECS) * LANES * 4);
            block_step(acc, rows, vecs, wk, x, k + 1);
        }
        if (k < k_end) { /* odd d_in */
            UNROLL for (int v = 0; v < vecs; v++) wk[v] = vec_pair_low(
                w[v / PANEL_VECS] + (size_t)k * k_bytes + (v % PANEL_VECS) * LANES * 4);
            block_step(acc, rows, vecs, wk, x, k);
        }
    } else {
        for (; k < k_end; k++) {
            UNROLL for (int v = 0; v < vecs; v++) wk[v] = vec_load_as(
                t, w[v / PANEL_VECS] + (size_t)k * k_bytes, (size_t)((v % PANEL_VECS) * LANES));
            block_step(acc, rows, vecs, wk, x, k);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vecs; v++)
        vec_store(y + (size_t)r * ldy + v * LANES, acc[r][v]);
}

/* The widest register block for so many rows. */
INLINE int block_panels(int rows)
{
    if (LANES == 16)
        return 4;
    return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
}

INLINE void rows_run(const struct weight *w, struct gemm_place at, int n_panels, const enum dtype t,
                     const int rows)
{
    const int wide = block_panels(rows);
    for (int p = 0; p < n_panels; p += wide) {
        block_run(w, &at, t, rows, wide);
        at.w += (size_t)wide * w->panel_bytes;
        at.y += wide * PANEL;
    }
}

/* One tile's panels for rows [0, n_rows) of x and y; y has room for all TILE_COLS columns. */
INLINE void tile_run(const struct weight *weight, const char *w, const float *x, float *y,
                     size_t ldy, int n_rows, const enum dtype t)
{
    const int d_in = weight->d_in, n_groups = (n_rows + BLOCK_ROWS_MAX - 1) / BLOCK_ROWS_MAX;
    const int k_piece = n_rows <= BLOCK_ROWS_MAX ||
                                (size_t)n_rows * (size_t)d_in * 4 <= X_CACHE_BYTES
                            ? d_in
                            : K_PIECE;
    const int unit = block_panels(n_rows / n_groups); /* panels that all rows use before the next */
    for (int k = 0; k < d_in; k += k_piece)
        for (int panel = 0; panel < TILE_PANELS; panel += unit) {
            int row = 0;
            for (int left = n_groups; left > 0; left--) {
                int rows = (n_rows - row + left - 1) / left; /* balanced: 16 is 6 + 5 + 5 */
                struct gemm_place at = {
                    .w = w + (size_t)panel * weight->panel_bytes,
                    .x = x + (size_t)row * (size_t)d_in,
                    .y = y + (size_t)row * ldy + panel * PANEL,
                    .ldy = ldy,
                    .k_begin = k,
                    .k_end = k + k_piece < d_in ? k + k_piece : d_in,
                };
                switch (rows) {
                case 1:
                    rows_run(weight, at, unit, t, 1);
                    break;
                case 2:
                    rows_run(weight, at, unit, t, 2);
                    break;
                case 3:
                    rows_run(weight, at, unit, t, 3);
                    break;
                case 4:
                    rows_run(weight, at, unit, t, 4);
                    break;
                case 5:
                    rows_run(weight, at, unit, t, 5);
                    break;
                default:
                    rows_run(weight, at, unit, t, 6);
                    break;
                }
                row += rows;
            }
        }
}

static void gemm(const struct gemm *g, int row_begin, int row_end, int tile)
{
    const struct weight *weight = g->w;
    const char *w = (const char *)weight->panels + (size_t)tile * TILE_PANELS * weight->panel_bytes;
    const float *x = g->x + (size_t)row_begin * (size_t)weight->d_in;
    const int column = tile * TILE_COLS, n_rows = row_end - row_begin;
    const int n_cols = weight->d_out - column < TILE_COLS ? weight->d_out - column : TILE_COLS;
    float edge[GEMM_ROWS_MAX * TILE_COLS];
    float *to = g->y + (size_t)row_begin * (size_t)weight->d_out + (size_t)column;
    float *y = n_cols == TILE_COLS ? to : edge;
    size_t ldy = n_cols == TILE_COLS ? (size_t)weight->d_out : TILE_COLS;
    switch (weight->dtype) {
    case DTYPE_F32:
        tile_run(weight, w, x, y, ldy, n_rows, DTYPE_F32);
        break;
    case DTYPE_F16:
        tile_run(weight, w, x, y, ldy, n_rows, DTYPE_F16);
        break;
    case DTYPE_BF16:
        tile_run(weight, w, x, y, ldy, n_rows, DTYPE_BF16);
        break;
    }
    if (y == to && g->bias == NULL)
        return;
    for (int r = 0; r < n_rows; r++)
        for (int c = 0; c < n_cols; c++)
            to[(size_t)r * (size_t)weight->d_out + (size_t)c] =
                g->bias != NULL ? y[(size_t)r * ldy + (size_t)c] + g->bias[column + c]
                                : y[(size_t)r * ldy + (size_t)c];
}

static void embed_row(float *y, const struct weight *w, int token, float scale)
{
    const char *panel = (const char *)w->panels + (size_t)(token / PANEL) * w->panel_bytes;
    size_t column = (size_t)(token % PANEL);
    for (int k = 0; k < w->d_in; k++) {
        size_t at = w->dtype == DTYPE_BF16
                        ? (size_t)(k / 2) * PANEL * 2 + column * 2 + (size_t)(k % 2)
                        : (size_t)k * PANEL + column;
        y[k] = element_f32(panel, w->dtype, at) * scale;
    }
}

#endif
