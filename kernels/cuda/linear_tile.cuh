/* linear_tile.cuh: what linear's two kernels share: their arguments, and what is done with a
 * finished tile of sums. Part of linear.cu, whose head has the design. */
#ifndef TRIBUTARY_KERNELS_CUDA_LINEAR_TILE_CUH
#define TRIBUTARY_KERNELS_CUDA_LINEAR_TILE_CUH

#include "kernels/cuda/async.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/wgmma.cuh"

enum {
    NARROW_ROWS_MAX = LORA_FOUND_ROWS,
    APART_ROWS = 128,
    APART_ROWS_MAX = 2 * APART_ROWS,
};
enum store { STORE_BF16, STORE_F32, STORE_SWIGLU };

struct linear_args {
    void *y;
    const bf16 *x;
    const char *w;
    const float *bias;
    int n_rows, d_out, d_in, pair_width;
    int n_m_tiles, n_k; /* n_k: k tiles times planes */
    int n_planes, n_ranges;
    enum store store;
    int n_halves;                /* wide: tiles that are done by halves */
    bool y_boxes;                /* wide: y leaves in boxes */
    bool x_is_there;             /* wide: only t' may still be on its way when it starts */
    struct lora_view lora, next; /* next: of narrow's next launch, a hint */
    int next_d_in;
    /* Of the adapters: words that blocks hand one another (linear_shrink.cuh). */
    bool b_in_bulk;       /* B's pieces for a tile can be copied in bulk */
    int n_chains;         /* of d_in, whole slices */
    uint64_t *tag_chains; /* [units, n_chains, LORA_UNIT], at most n_tag_chains in all */
    uint64_t *tag_t;      /* [NARROW_ROWS_MAX, t_stride / 2] */
    int64_t n_tag_chains;
    char *slots; /* middle: what a block hands on, [blocks] */
    /* Of the first n_deltas rows (narrow: of all) the deltas, computed by kernels before this one:
     * [n_deltas, d_out], what no part has undefined; or null. */
    const float *deltas;
    const int *any_deltas; /* 0: they are all 0, and not there (narrow knows from what it found) */
    int n_deltas;
};

/* ---- barriers and copies
 * -------------------------------------------------------------------------- */

/* A tile of packed weight. */
__device__ static inline void copy_weight(void *to, const char *from, uint32_t bytes,
                                          uint64_t *barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
                 : "memory");
}

__device__ static inline uint64_t evict_first()
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ static inline uint64_t evict_normal()
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* ---- what both kernels do with a finished accumulator tile
 * ------------------------------------------- */

/* The outputs of packed rows r and r + 8 of one group of 16 (r = its row g); -1: none. */
__device__ static inline void outputs_of(int (&out)[2], const struct linear_args &a, int r)
{
    if (a.pair_width > 0) {
        int i = r / 16 * 8 + r % 8;
        out[0] = i < a.pair_width ? i : -1;
        out[1] = i < a.pair_width ? a.pair_width + i : -1;
    } else {
        out[0] = r < a.d_out ? r : -1;
        out[1] = r + 8 < a.d_out ? r + 8 : -1;
    }
}

/* Is the output one of a part? */
__device__ static inline bool has_part(const struct linear_args &a, int out)
{
    bool is = false;
#pragma unroll
    for (int p = 0; p < LORA_PARTS_MAX; p++)
        is = is || (p < a.lora.n_parts && out >= a.lora.part[p].out_begin &&
                    out < a.lora.part[p].out_begin + a.lora.part[p].d_out);
    return is && out >= 0;
}

/* c: the lane's float4 in shared memory, here and below. */
__device__ static inline void add_bias(char *c, const struct linear_args &a, const int (&out)[2])
{
    float b0 = out[0] >= 0 ? __ldg(a.bias + out[0]) : 0;
    float b1 = out[1] >= 0 ? __ldg(a.bias + out[1]) : 0;
    float4 v = *reinterpret_cast<float4 *>(c);
    *reinterpret_cast<float4 *>(c) = make_float4(v.x + b0, v.y + b0, v.z + b1, v.w + b1);
}

__device__ static inline float swiglu(float gate, float up)
{
    return __fdividef(gate, 1.0f + __expf(-gate)) *
           up; /* as elementwise.cu; 20 instructions less */
}

/* Straight to y: c0, c1 are (out[0], row, row + 1), c2, c3 the same of out[1]. */
__device__ static inline void store_tile(const float (&c)[4], const struct linear_args &a,
                                         const int (&out)[2], int row)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (row + i >= a.n_rows)
            break;
        if (a.store == STORE_SWIGLU) {
            if (out[0] >= 0)
                static_cast<bf16 *>(a.y)[(int64_t)(row + i) * a.pair_width + out[0]] =
                    __float2bfloat16_rn(swiglu(c[i], c[2 + i]));
            continue;
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (out[h] < 0)
                continue;
            int64_t at = (int64_t)(row + i) * a.d_out + out[h];
            if (a.store == STORE_F32)
                static_cast<float *>(a.y)[at] = c[2 * h + i];
            else
                static_cast<bf16 *>(a.y)[at] = __float2bfloat16_rn(c[2 * h + i]);
        }
    }
}

/* ---- outputs in boxes
 * -------------------------------------------------------------------------- */

__device__ static inline void store_matrices(uint32_t address, uint32_t m0, uint32_t m1,
                                             uint32_t m2, uint32_t m3)
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
        "r"(m0), "r"(m1), "r"(m2), "r"(m3)
        : "memory");
}

__device__ static inline void store_matrices(uint32_t address, uint32_t m0, uint32_t m1)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address),
                 "r"(m0), "r"(m1)
                 : "memory");
}

__device__ static inline void store_matrix(uint32_t address, uint32_t m)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(address), "r"(m)
                 : "memory");
}

/* A box of shared memory to its place in a matrix; commit_boxes makes a group of those so far. */
__device__ static inline void store_box(const CUtensorMap *map, uint32_t from, int column, int row)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
        "r"(column), "r"(row), "r"(from)
        : "memory");
}

__device__ static inline void commit_boxes()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

#endif
