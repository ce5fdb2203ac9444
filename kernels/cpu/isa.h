/* isa: the inner loops, once for each instruction set. Private to kernels/cpu/.
 *
 * isa_avx2.c and isa_avx512.c compile the same bodies (body_*.h) with their own flags and vector
 * width (simd.h); nothing outside those two files may use their instructions. cpu_backend.c picks a
 * table at run time. Each entry works on one tile; the drivers (cpu_*.c) cut the tiles.
 *
 * Packed weights. Output columns are grouped into panels of PANEL = 16, and TILE_PANELS = 4 panels
 * are a tile. A kernel takes a turn of a panel at a time, which is one or a few k of its columns:
 *
 *     f32, f16   [16]           one k
 *     bf16       [16][2]        a pair of k
 *     int8       [2][16]        a pair of k
 *     int8 pairs [2][16][2]     two pairs of k
 *
 * A 32-bit lane of the bf16 layout holds w[k] in its low and w[k + 1] in its high half: one shift
 * widens the first, one AND the second, with no shuffle at any vector width. int8 pairs are for
 * int8_products, which the processor multiplies as such. d_in is rounded up to whole turns and the
 * columns to whole tiles, with zeros.
 *
 * A table whose kernels always walk the panels of a tile side by side wants their turns side by
 * side too, so that memory is read front to back; others want panel after panel:
 *
 *     isa.tile_turns     [tiles][turns][4] turns of a panel
 *     else               [tiles][4][turns] turns of a panel
 */
#ifndef TRIBUTARY_KERNELS_CPU_ISA_H
#define TRIBUTARY_KERNELS_CPU_ISA_H

#include "kernels/ops.h"

enum {
    PANEL = 16,
    TILE_PANELS = 4,    /* of one tile; weights are padded to whole tiles */
    GEMM_ROWS_MAX = 60, /* of one tile */
    TILE_COLS = TILE_PANELS * PANEL,
    LORA_TILE_COLS = TILE_COLS,
    PIECE_KEYS = 64, /* of attention */
};

enum packed {
    PACKED_F32 = DTYPE_F32,
    PACKED_F16 = DTYPE_F16,
    PACKED_BF16 = DTYPE_BF16,
    PACKED_INT8,
    PACKED_INT8_PAIRS,
};

static inline size_t packed_bytes(enum packed t) /* of one element */
{
    return t >= PACKED_INT8 ? 1 : dtype_bytes((enum dtype)t);
}

/* k that a kernel's loop takes a turn, and d_in is rounded up to. */
static inline int packed_turn(enum packed t)
{
    return t == PACKED_INT8_PAIRS ? 4 : t == PACKED_BF16 || t == PACKED_INT8 ? 2 : 1;
}

struct weight {
    enum packed packed;
    int d_in, d_out;
    int n_tiles;
    size_t tile_bytes;
    size_t panel_step,
        turn_step; /* bytes from a panel of a tile, or a turn of a panel, to the next */
    void *tiles;   /* 64-byte aligned [n_tiles] of tile_bytes */
    float *scale;  /* int8: [n_tiles * TILE_COLS], 0 for padding; else NULL */
};

static inline size_t packed_turn_bytes(enum packed t) /* of one panel */
{
    return (size_t)packed_turn(t) * PANEL * packed_bytes(t);
}

/* Where w[column, k] lies: bytes from w->tiles. */
static inline size_t weight_at(const struct weight *w, size_t column, size_t k)
{
    const bool pairs = w->packed == PACKED_BF16 || w->packed == PACKED_INT8_PAIRS;
    const size_t turn = (size_t)packed_turn(w->packed), lane = column % PANEL, in_turn = k % turn;
    const size_t element = pairs ? (in_turn / 2 * PANEL + lane) * 2 + in_turn % 2
                                 : in_turn * PANEL + lane;
    return column / TILE_COLS * w->tile_bytes + column % TILE_COLS / PANEL * w->panel_step +
           k / turn * w->turn_step + element * packed_bytes(w->packed);
}

/* y = W x + bias; of int8 weights (sum of q x) * scale + bias */
struct gemm {
    float *y;       /* [n_rows, w->d_out] */
    const float *x; /* [n_rows, w->d_in] */
    const struct weight *w;
    const float *bias; /* [w->d_out] or NULL */
    /* Of PACKED_INT8_PAIRS, instead of x: its rows as int8_products.round_row leaves them. */
    const int16_t *x_int16; /* [n_rows, int8_x_stride(w->d_in)] */
    const float *x_scale;   /* [n_rows, int8_x_blocks(w->d_in)] */
};

enum { INT8_BLOCK = 64 };   /* consecutive k of a row of x that share a scale */
#define INT8_X_MIN 0x1p-96f /* a block of smaller numbers is rounded to zeros */

static inline size_t int8_x_blocks(int d_in)
{
    return ((size_t)d_in + INT8_BLOCK - 1) / INT8_BLOCK;
}

static inline size_t int8_x_stride(int d_in)
{
    return int8_x_blocks(d_in) * INT8_BLOCK;
}

/* Products of int8 weights in integers, for processors that have them. */
struct int8_products {
    const char *name;

    /* One row of x: x[k] ~ q[k] * scale[k / INT8_BLOCK], |q| <= 32767, to nearest; zeros behind
     * d_in. The scale of a block that holds an infinity or NaN is NaN. */
    void (*round_row)(int16_t *q, float *scale, const float *x, int d_in);
    /* As isa.gemm, for PACKED_INT8_PAIRS only. */
    void (*gemm)(const struct gemm *g, int row_begin, int row_end, int tile);
};

/* One layer's attention for the rows of one sequence. */
struct attend {
    float *y;                /* [n_rows, n_heads * head_dim], all rows of the step */
    const float *qkv;        /* [n_rows, stride] */
    const void *k, *v;       /* the pools */
    enum dtype dtype;        /* of the pools */
    const int32_t *blocks;   /* the sequence's block table */
    const int32_t *position; /* [n_rows] */
    const struct attention_shape *shape;
};

/* For n_queries (row, query head) pairs: q and its sum, scores, two numbers and a range. */
static inline size_t attend_scratch_bytes(int head_dim, size_t n_queries)
{
    size_t padded = ((size_t)head_dim + PANEL - 1) / PANEL * PANEL;
    return n_queries * ((2 * padded + PIECE_KEYS + 2) * sizeof(float) + 2 * sizeof(int));
}

struct isa {
    const char *name;
    bool tile_turns; /* how it wants weights packed */

    /* Rows [row_begin, row_end), at most GEMM_ROWS_MAX, by the columns of one tile. */
    void (*gemm)(const struct gemm *g, int row_begin, int row_end, int tile);

    /* t[i, j] = A[j] . x[i] for i < n_rows, rank_begin <= j < rank_end; t has stride ldt. */
    void (*shrink)(float *t, int ldt, const float *x, int d_in, const void *a, enum dtype dtype,
                   int n_rows, int rank_begin, int rank_end);
    /* y[i, c] += factor * B[c] . t[i] for i < n_rows, c < n_cols <= LORA_TILE_COLS; b points at the
     * first of these columns. scratch f32 [rank, LORA_TILE_COLS], 64-byte aligned. */
    void (*expand)(float *y, int ldy, int n_cols, const float *t, const void *b, enum dtype dtype,
                   int rank, int n_rows, float factor, float *scratch);

    /* Rows [row_begin, row_end) of the step, KV heads [head_begin, head_end) and the query heads
     * that read them. scratch: attend_scratch_bytes, 64-byte aligned. */
    void (*attend)(const struct attend *a, int row_begin, int row_end, int head_begin, int head_end,
                   void *scratch);
    /* One row of qkv: norms, rotation, and its K and V into the cache slot. */
    void (*rope_row)(float *qkv, const struct kv_layer *kv, size_t slot, int32_t position,
                     const struct attention_shape *shape, const struct rope_shape *rope);

    void (*embed_row)(float *y, const struct weight *w, int token, float scale);
    void (*add_rmsnorm_row)(float *y, float *residual, const float *x, const float *w, int d,
                            float eps, float w_offset);
    void (*swiglu)(float *y, const float *gate, const float *up, int n);

    float (*max)(const float *x, int n); /* n >= 1; NaN counts as -inf */
    /* sum of exp((x[i] - max) * inverse_temperature), in f64; NaN when there is a NaN in x */
    double (*sum_exp)(const float *x, int n, float max, float inverse_temperature);
    /* Appends the indices i of x[i] >= threshold, ascending, until max_out; returns how many there
     * are in all, also beyond max_out. */
    int (*indices_at_least)(int32_t *out, int max_out, const float *x, int n, float threshold);
};

extern const struct isa isa_avx2, isa_avx512;
extern const struct int8_products int8_avx512vnni;

#endif
