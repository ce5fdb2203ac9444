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
 * to keep in cache. With one row the loop is bound by memory anyway.
 *
 * With a few rows a panel is used for a time of the same order as memory takes to bring it (24 KB
 * at 18 GB/s and core: 1.4 us, or 6 rows of FMAs), and the processor's own look ahead ends long
 * before the panel does. So while the rows use one panel the loop asks for the next, spread evenly
 * over all turns; then the time of a step is the larger of the two and not their sum.
 *
 * The two bounds, for the 110 M shape of `make bench` (12 layers, 768, FFN 2048, vocabulary 32000,
 * tied):
 *
 *     bytes   109.5 M weights x 2 = 219 MB a step, however many rows
 *     FMAs    109.5 M a row; AVX2 does 16 a cycle and core, two AVX-512 units 32
 *
 * so two AVX2 cores at 2.9 GHz and 32 GB/s need at least 6.9 ms a step for its bytes and 1.2 ms a
 * row for its FMAs: memory rules below 6 rows, arithmetic above.
 *
 * Ladder (one core of a shared Zen 3 VM, AVX2, best of 8; the peak that a loop of nothing but FMAs
 * reaches there is 46; GFMA/s over 2304 x 768 weights out of memory):
 *
 *     rows                                              1     4     8    16    60   256
 *     gcc's registers: 6 rows spill an accumulator    9.1  20.9  28.0  34.5  29.0  30.5
 *     FMAs written out, one function a block          8.9  20.8  28.1  37.0  42.0  40.5
 *     the next panel is asked for                     9.3  28.5  42.5  45.0  42.0  41.0
 *
 * AVX-512 walks the four panels of a tile at any number of rows. Lying one after the other they are
 * four streams, which the hardware prefetchers follow badly; their turns lie side by side instead
 * (isa.tile_turns), and the loop asks for lines 4 KB ahead in the one stream. Two threads of a
 * shared Zen 4 VM, 110M shape, bf16, medians of 3 alternating runs, against panel after panel: 0.9
 * to 1.6 times at 1 row (lm_head 1.41, gate_up 1.61, down 0.90), 1.0 to 1.4 at 2 to 4, 1.0 from 12
 * on. AVX2 reads single panels from 4 rows on and keeps them whole.
 *
 * Tried and left out: K in pieces of 128 to 384 (slower: sums go to y and back), x packed in row
 * groups (no gain out of the first-level cache), hints that fill the second level only (as fast).
 */
#ifndef TRIBUTARY_KERNELS_CPU_BODY_GEMM_H
#define TRIBUTARY_KERNELS_CPU_BODY_GEMM_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

enum {
    PANEL_VECS = PANEL / LANES,
    BLOCK_ROWS_MAX = 6,
    X_CACHE_BYTES = 256 * 1024, /* of x that shall stay in the second-level cache */
    K_PIECE = 1024,
    TILE_TURNS = LANES == 16, /* isa.h: the blocks are 4 panels wide at any number of rows */
    /* So few rows ask for weights NEAR_BYTES ahead; more, for the next panel. */
    NEAR_ROWS = TILE_TURNS ? BLOCK_ROWS_MAX : 3,
    NEAR_BYTES = TILE_TURNS ? 4096 : 1024,
};

struct gemm_place { /* of a register block */
    const char *w;  /* its first panel */
    size_t panel_step;
    const float *x; /* its first row */
    float *y;       /* its first element */
    size_t ldx, ldy;
    int k_begin, k_end; /* k_begin even */
    const char *ahead;  /* of the next panel, what this block asks for: ahead_step bytes a turn */
    size_t ahead_step;
};

INLINE void block_step(vec acc[BLOCK_ROWS_MAX][TILE_PANELS * PANEL_VECS], const int rows,
                       const int vecs, const vec *w, const float *const *x, int k)
{
    UNROLL for (int r = 0; r < rows; r++)
    {
        vec xk = vec_broadcast(x[r] + k);
        UNROLL for (int v = 0; v < vecs; v++) vec_fma_into(&acc[r][v], xk, w[v]);
    }
}

/* LANES weights of a turn: of its first k (half 0) or its second. `turn` is where the panel's turn
 * begins, v the vector of the panel. */
INLINE vec turn_weights(const enum packed t, const char *turn, int v, const int half)
{
    if (t == PACKED_INT8)
        return vec_widen_int8(turn + half * PANEL + v * LANES);
    if (t == PACKED_BF16)
        return half ? vec_pair_high(turn + v * LANES * 4) : vec_pair_low(turn + v * LANES * 4);
    return vec_load_as((enum dtype)t, turn, (size_t)(v * LANES));
}

/* One register block: `rows` rows by `panels` panels, from at->k_begin to at->k_end. */
INLINE void block_run(const struct gemm_place *at, const enum packed t, const int rows,
                      const int panels)
{
    const int vecs = panels * PANEL_VECS, turn = packed_turn(t);
    const size_t turn_bytes = packed_turn_bytes(t), ldy = at->ldy;
    const size_t panel_step = TILE_TURNS ? turn_bytes : at->panel_step;
    const size_t turn_step = TILE_TURNS ? turn_bytes * TILE_PANELS : turn_bytes;
    const int k_end = at->k_end / turn * turn;
    vec acc[BLOCK_ROWS_MAX][TILE_PANELS * PANEL_VECS], wk[TILE_PANELS * PANEL_VECS];
    const char *w = at->w + (size_t)(at->k_begin / turn) * turn_step;
    const float *x[BLOCK_ROWS_MAX];
    float *y = at->y;
    const char *ahead = at->ahead;

    UNROLL for (int r = 0; r < rows; r++) x[r] = at->x + (size_t)r * at->ldx;
    if (at->k_begin == 0) {
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vecs; v++)
            acc[r][v] = vec_zero();
    } else {
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vecs; v++)
            acc[r][v] = vec_load(y + (size_t)r * ldy + v * LANES);
    }
    for (int k = at->k_begin; k < k_end; k += turn, w += turn_step) {
        if (rows <= NEAR_ROWS) {
            UNROLL for (size_t line = 0; line < turn_step && TILE_TURNS; line += 64)
                _mm_prefetch(w + line + NEAR_BYTES, _MM_HINT_T0);
            UNROLL for (int p = 0; p < panels && !TILE_TURNS; p++)
                _mm_prefetch(w + (size_t)p * panel_step + NEAR_BYTES, _MM_HINT_T0);
        } else {
            _mm_prefetch(ahead, _MM_HINT_T0);
            ahead += at->ahead_step;
        }
        UNROLL for (int half = 0; half < turn; half++)
        {
            UNROLL for (int v = 0; v < vecs; v++) wk[v] = turn_weights(
                t, w + (size_t)(v / PANEL_VECS) * panel_step, v % PANEL_VECS, half);
            block_step(acc, rows, vecs, wk, x, k + half);
            /* Read pairs again instead of holding them in registers, of which none is left. */
            __asm__ volatile("" ::: "memory");
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int v = 0; v < vecs; v++)
        vec_store(y + (size_t)r * ldy + v * LANES, acc[r][v]);
}

/* The widest register block for so many rows. */
#define BLOCK_PANELS(rows) (LANES == 16 || (rows) == 1 ? 4 : (rows) <= 3 ? 2 : 1)

/* Functions of their own: inlined into others, the compiler runs out of registers. */
#define BLOCK(name, t, rows)                                                                 \
    static __attribute__((noinline)) void block_##name##_##rows(const struct gemm_place *at) \
    {                                                                                        \
        block_run(at, t, rows, BLOCK_PANELS(rows));                                          \
    }
#define BLOCKS_OF(name, t) \
    BLOCK(name, t, 1)      \
    BLOCK(name, t, 2) BLOCK(name, t, 3) BLOCK(name, t, 4) BLOCK(name, t, 5) BLOCK(name, t, 6)
BLOCKS_OF(f32, PACKED_F32)
BLOCKS_OF(f16, PACKED_F16)
BLOCKS_OF(bf16, PACKED_BF16)
BLOCKS_OF(int8, PACKED_INT8)

typedef void block_fn(const struct gemm_place *at);
#define BLOCK_NAMES(name)                                                             \
    {                                                                                 \
        NULL, block_##name##_1, block_##name##_2, block_##name##_3, block_##name##_4, \
            block_##name##_5, block_##name##_6                                        \
    }
static block_fn *const blocks_of[][BLOCK_ROWS_MAX + 1] = {
    [PACKED_F32] = BLOCK_NAMES(f32),
    [PACKED_F16] = BLOCK_NAMES(f16),
    [PACKED_BF16] = BLOCK_NAMES(bf16),
    [PACKED_INT8] = BLOCK_NAMES(int8),
};

/* The last k of an odd d_in, which is half a turn. */
INLINE void odd_run(const struct weight *weight, const enum packed t, const char *w, const float *x,
                    float *y, size_t ldy, int n_rows)
{
    const size_t d_in = (size_t)weight->d_in, k = d_in - 1;
    for (int v = 0; v < TILE_PANELS * PANEL_VECS; v++) {
        vec wk = turn_weights(
            t, w + (size_t)(v / PANEL_VECS) * weight->panel_step + k / 2 * weight->turn_step,
            v % PANEL_VECS, 0);
        for (int r = 0; r < n_rows; r++) {
            float *at = y + (size_t)r * ldy + v * LANES;
            vec_store(at, vec_fma(vec_set1(x[(size_t)r * d_in + k]), wk, vec_load(at)));
        }
    }
}

/* One tile's panels for rows [0, n_rows) of x and y; y has room for all TILE_COLS columns. */
static void tile_run(const struct weight *weight, const char *w, const float *x, float *y,
                     size_t ldy, int n_rows)
{
    const int d_in = weight->d_in, n_groups = (n_rows + BLOCK_ROWS_MAX - 1) / BLOCK_ROWS_MAX;
    const int k_piece = n_rows <= BLOCK_ROWS_MAX ||
                                (size_t)n_rows * (size_t)d_in * 4 <= X_CACHE_BYTES
                            ? d_in
                            : K_PIECE;
    const int unit = BLOCK_PANELS(n_rows / n_groups); /* panels that all rows use before the next */
    const size_t turn = (size_t)packed_turn(weight->packed), panel_step = weight->panel_step;
    /* All row groups together ask once for each line of the next `unit` panels, which lie behind
     * these. The last ones of a tile ask for the next tile's, which another thread may get: rather
     * that than waiting. */
    const size_t step = packed_turn_bytes(weight->packed) * (size_t)unit / (size_t)n_groups;
    for (int k = 0; k < d_in; k += k_piece)
        for (int panel = 0; panel < TILE_PANELS; panel += unit) {
            int row = 0;
            for (int left = n_groups; left > 0; left--) {
                int rows = (n_rows - row + left - 1) / left; /* balanced: 16 is 6 + 5 + 5 */
                struct gemm_place at = {
                    .w = w + (size_t)panel * panel_step,
                    .panel_step = panel_step,
                    .x = x + (size_t)row * (size_t)d_in,
                    .ldx = (size_t)d_in,
                    .y = y + (size_t)row * ldy + panel * PANEL,
                    .ldy = ldy,
                    .k_begin = k,
                    .k_end = k + k_piece < d_in ? k + k_piece : d_in,
                    .ahead_step = step,
                };
                size_t done = (size_t)(n_groups - left) * step;
                at.ahead = at.w + (size_t)unit * panel_step + (size_t)k / turn * weight->turn_step +
                           (size_t)(at.k_end - k) / turn * done;
                for (int p = 0; p < unit; p += BLOCK_PANELS(rows)) {
                    blocks_of[weight->packed][rows](&at);
                    at.w += (size_t)BLOCK_PANELS(rows) * panel_step;
                    at.y += BLOCK_PANELS(rows) * PANEL;
                    at.ahead_step = 0;
                }
                row += rows;
            }
        }
    if (d_in % 2 != 0 && weight->packed == PACKED_BF16)
        odd_run(weight, PACKED_BF16, w, x, y, ldy, n_rows);
    else if (d_in % 2 != 0 && weight->packed == PACKED_INT8)
        odd_run(weight, PACKED_INT8, w, x, y, ldy, n_rows);
}

static void gemm(const struct gemm *g, int row_begin, int row_end, int tile)
{
    const struct weight *weight = g->w;
    const char *w = (const char *)weight->tiles + (size_t)tile * weight->tile_bytes;
    const float *x = g->x + (size_t)row_begin * (size_t)weight->d_in;
    const int column = tile * TILE_COLS, n_rows = row_end - row_begin;
    const int n_cols = weight->d_out - column < TILE_COLS ? weight->d_out - column : TILE_COLS;
    float edge[GEMM_ROWS_MAX * TILE_COLS];
    float *to = g->y + (size_t)row_begin * (size_t)weight->d_out + (size_t)column;
    float *y = n_cols == TILE_COLS ? to : edge;
    size_t ldy = n_cols == TILE_COLS ? (size_t)weight->d_out : TILE_COLS;
    tile_run(weight, w, x, y, ldy, n_rows);
    if (y == to && g->bias == NULL && weight->scale == NULL)
        return;
    for (int r = 0; r < n_rows; r++) {
        const float *from = y + (size_t)r * ldy;
        float *out = to + (size_t)r * (size_t)weight->d_out;
        for (int c = 0; c < n_cols; c++) {
            float sum = from[c];
            if (weight->scale != NULL)
                sum *= weight->scale[column + c];
            out[c] = g->bias != NULL ? sum + g->bias[column + c] : sum;
        }
    }
}

static void embed_row(float *y, const struct weight *w, int token, float scale)
{
    for (int k = 0; k < w->d_in; k++) {
        const char *at = (const char *)w->tiles + weight_at(w, (size_t)token, (size_t)k);
        y[k] = (w->scale != NULL ? (float)*(const int8_t *)at * w->scale[token]
                                 : element_f32(at, (enum dtype)w->packed, 0)) *
               scale;
    }
}

#endif
