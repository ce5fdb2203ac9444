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
 * Widening bf16 inside the loop costs one shift or AND per 8 weights, against 2 FMAs per 8 weights
 * and row: with 4 rows or more it hides behind them, so there is no second, widened copy of a panel
 * to keep in cache. With one row the loop is bound by memory anyway. */
#ifndef TRIBUTARY_KERNELS_CPU_BODY_GEMM_H
#define TRIBUTARY_KERNELS_CPU_BODY_GEMM_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

enum {
    PANEL_VECS = PANEL / LANES,
    BLOCK_ROWS_MAX = 6,
    BLOCK_PANELS_MAX = 4,
    X_CACHE_BYTES = 256 * 1024, /* of x that shall stay in the second-level cache */
    K_PIECE = 1024,
};

struct gemm_place { /* of a register block */
    int row, panel;
    int k_begin, k_end; /* k_begin even */
};

INLINE void block_step(vec acc[BLOCK_ROWS_MAX][BLOCK_PANELS_MAX * PANEL_VECS], const int rows,
                       const int vecs, const vec *w, const float *const *x, int k)
{
    UNROLL for (int r = 0; r < rows; r++)
    {
        vec xk = vec_set1(x[r][k]);
        UNROLL for (int v = 0; v < vecs; v++) acc[r][v] = vec_fma(xk, w[v], acc[r][v]);
    }
}

INLINE void block_run(const struct gemm *g, struct gemm_place at, const enum dtype t,
                      const int rows, const int panels)
{
    const int vecs = panels * PANEL_VECS;
    const struct weight *weight = g->w;
    const size_t ldx = (size_t)weight->d_in, ldy = (size_t)weight->d_out;
    const size_t element = t == DTYPE_F32 ? 4 : 2;
    vec acc[BLOCK_ROWS_MAX][BLOCK_PANELS_MAX * PANEL_VECS];
    const char *w[BLOCK_PANELS_MAX];
    const float *x[BLOCK_ROWS_MAX];
    int column = at.panel * PANEL, n_valid = weight->d_out - column;
    float *y = g->y + (size_t)at.row * ldy + (size_t)column;

    UNROLL for (int p = 0; p < panels; p++)
        w[p] = (const char *)weight->panels + (size_t)(at.panel + p) * weight->panel_bytes;
    UNROLL for (int r = 0; r < rows; r++)
    {
        x[r] = g->x + (size_t)(at.row + r) * ldx;
        UNROLL for (int v = 0; v < vecs; v++)
        {
            if (at.k_begin == 0 || n_valid <= v * LANES)
                acc[r][v] = vec_zero();
            else if (n_valid >= (v + 1) * LANES)
                acc[r][v] = vec_load(y + (size_t)r * ldy + v * LANES);
            else
                acc[r][v] = vec_load_n(y + (size_t)r * ldy + v * LANES, n_valid - v * LANES);
        }
    }

    vec wk[BLOCK_PANELS_MAX * PANEL_VECS];
    if (t == DTYPE_BF16) {
        int k = at.k_begin;
        for (; k + 1 < at.k_end; k += 2) {
            UNROLL for (int v = 0; v < vecs; v++) wk[v] = vec_pair_low(
                w[v / PANEL_VECS] + (size_t)k * PANEL * 2 + (v % PANEL_VECS) * LANES * 4);
            block_step(acc, rows, vecs, wk, x, k);
            /* Read the pairs again instead of holding them in registers, of which none is left. */
            __asm__ volatile("" ::: "memory");
            UNROLL for (int v = 0; v < vecs; v++) wk[v] = vec_pair_high(
                w[v / PANEL_VECS] + (size_t)k * PANEL * 2 + (v % PANEL_VECS) * LANES * 4);
            block_step(acc, rows, vecs, wk, x, k + 1);
        }
        if (k < at.k_end) { /* odd d_in */
            UNROLL for (int v = 0; v < vecs; v++) wk[v] = vec_pair_low(
                w[v / PANEL_VECS] + (size_t)k * PANEL * 2 + (v % PANEL_VECS) * LANES * 4);
            block_step(acc, rows, vecs, wk, x, k);
        }
    } else {
        for (int k = at.k_begin; k < at.k_end; k++) {
            UNROLL for (int v = 0; v < vecs; v++)
                wk[v] = vec_load_as(t, w[v / PANEL_VECS] + (size_t)k * PANEL * element,
                                    (size_t)((v % PANEL_VECS) * LANES));
            block_step(acc, rows, vecs, wk, x, k);
        }
    }

    const float *bias = at.k_end == weight->d_in && g->bias != NULL ? g->bias + column : NULL;
    UNROLL for (int r = 0; r < rows; r++)
    {
        UNROLL for (int v = 0; v < vecs; v++)
        {
            int n = n_valid - v * LANES;
            float *to = y + (size_t)r * ldy + v * LANES;
            if (n >= LANES)
                vec_store(to, bias ? vec_add(acc[r][v], vec_load(bias + v * LANES)) : acc[r][v]);
            else if (n > 0)
                vec_store_n(
                    to, bias ? vec_add(acc[r][v], vec_load_n(bias + v * LANES, n)) : acc[r][v], n);
        }
    }
}

/* The widest register block for so many rows. */
INLINE int block_panels(int rows)
{
    if (LANES == 16)
        return 4;
    return rows == 1 ? 4 : rows <= 3 ? 2 : 1;
}

INLINE void rows_run(const struct gemm *g, struct gemm_place at, int panel_end, const enum dtype t,
                     const int rows)
{
    const int wide = block_panels(rows);
    for (; wide > 1 && at.panel + wide <= panel_end; at.panel += wide)
        block_run(g, at, t, rows, wide);
    for (; at.panel < panel_end; at.panel++)
        block_run(g, at, t, rows, 1);
}

INLINE void gemm_as(const struct gemm *g, int row_begin, int row_end, int panel_begin,
                    int panel_end, const enum dtype t)
{
    int n_rows = row_end - row_begin, d_in = g->w->d_in;
    int n_groups = (n_rows + BLOCK_ROWS_MAX - 1) / BLOCK_ROWS_MAX;
    int k_piece = n_rows <= BLOCK_ROWS_MAX || (size_t)n_rows * (size_t)d_in * 4 <= X_CACHE_BYTES
                      ? d_in
                      : K_PIECE;
    int unit = block_panels(n_rows / n_groups); /* panels that all rows use before the next */
    for (int k = 0; k < d_in; k += k_piece)
        for (int panel = panel_begin; panel < panel_end; panel += unit) {
            int unit_end = panel + unit < panel_end ? panel + unit : panel_end;
            int row = row_begin;
            for (int left = n_groups; left > 0; left--) {
                int rows = (row_end - row + left - 1) / left; /* balanced: 16 is 6 + 5 + 5 */
                struct gemm_place at = {row, panel, k, k + k_piece < d_in ? k + k_piece : d_in};
                switch (rows) {
                case 1:
                    rows_run(g, at, unit_end, t, 1);
                    break;
                case 2:
                    rows_run(g, at, unit_end, t, 2);
                    break;
                case 3:
                    rows_run(g, at, unit_end, t, 3);
                    break;
                case 4:
                    rows_run(g, at, unit_end, t, 4);
                    break;
                case 5:
                    rows_run(g, at, unit_end, t, 5);
                    break;
                default:
                    rows_run(g, at, unit_end, t, 6);
                    break;
                }
                row += rows;
            }
        }
}

static void gemm(const struct gemm *g, int row_begin, int row_end, int panel_begin, int panel_end)
{
    switch (g->w->dtype) {
    case DTYPE_F32:
        gemm_as(g, row_begin, row_end, panel_begin, panel_end, DTYPE_F32);
        break;
    case DTYPE_F16:
        gemm_as(g, row_begin, row_end, panel_begin, panel_end, DTYPE_F16);
        break;
    case DTYPE_BF16:
        gemm_as(g, row_begin, row_end, panel_begin, panel_end, DTYPE_BF16);
        break;
    }
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
