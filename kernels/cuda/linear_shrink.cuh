/* linear_shrink.cuh: t = A x by the whole grid, in linear_narrow.cuh and linear_middle.cuh, and the
 * words in which blocks hand it on. Part of linear.cu, whose head has the design. */
#ifndef TRIBUTARY_KERNELS_CUDA_LINEAR_SHRINK_CUH
#define TRIBUTARY_KERNELS_CUDA_LINEAR_SHRINK_CUH

#include "kernels/cuda/linear_tile.cuh"

/* What the linear found (lora.cuh), in shared memory: of each list as many as a launch can have. */
template <int N, int SEGS> struct alignas(16) narrow_found {
    struct lora_head head;
    int32_t t_end[N];
    struct lora_run units[(N + 15) / 16 * 2]; /* an even number: they are copied by sixteen bytes */
    struct lora_span spans[SEGS];
    int32_t unit_end[SEGS * LORA_PARTS_MAX];
    struct lora_cell cells[SEGS * LORA_PARTS_MAX];
};

/* Warps 0-7: two warpgroups that multiply. 8, 9: fill the rings; 10: that of B. 12-15: the
 * adapters.
 */
enum {
    NARROW_FILLERS = 8,
    NARROW_ADAPTERS = 12,
    ADAPTER_WARPS = 4,
    NARROW_THREADS = (NARROW_ADAPTERS + ADAPTER_WARPS) * 32,
};

/* ---- chains of t
 * --------------------------------------------------------------------------------------- */

/* One chain, by a warp: c = A[rank0 ..+16][k_begin .. k_end) x[row ..+8]^T. d_in and k_begin are
 * multiples of 8. c0, c1: rank g, rows 2t, 2t + 1; c2, c3: rank g + 8. Of bf16 in two halves, so
 * that A can be asked for early. The way of other types is a function of its own, so that the other
 * code stays small: what doesn't fit the instruction cache comes from L2, behind the weights. */
struct chain_sums { /* see lora_sums */
    float c[4];
};

__device__ static __noinline__ struct chain_sums chain_planes(struct lora_cell cell, int rank0,
                                                              int row, int row_end, const bf16 *x,
                                                              int d_in, int k_begin, int k_end,
                                                              int lane)
{
    struct chain_sums sums = {};
    int g = lane >> 2, t = lane & 3, r0 = rank0 + g, r1 = r0 + 8;
    const void *a = reinterpret_cast<const void *>(cell.a);
#pragma unroll 1
    for (int k0 = k_begin; k0 < k_end; k0 += 32) {
        int k = k0 + 8 * t;
        float f0[8], f1[8];
#pragma unroll
        for (int e = 0; e < 8; e++) {
            bool inside = k + e < k_end;
            f0[e] = inside && r0 < cell.rank
                        ? load_as_float(a, (int64_t)r0 * d_in + k + e, cell.dtype)
                        : 0;
            f1[e] = inside && r1 < cell.rank
                        ? load_as_float(a, (int64_t)r1 * d_in + k + e, cell.dtype)
                        : 0;
        }
        uint4 b = make_uint4(0, 0, 0, 0);
        if (k < k_end && row + g < row_end)
            b = __ldcg(reinterpret_cast<const uint4 *>(x + (int64_t)(row + g) * d_in + k));
#pragma unroll 1
        for (int plane = 0; plane < planes_of(cell.dtype); plane++) {
            uint32_t p0[4], p1[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                p0[e] = take_plane(f0[2 * e], f0[2 * e + 1]);
                p1[e] = take_plane(f1[2 * e], f1[2 * e + 1]);
            }
            mma_bf16(sums.c, p0[0], p1[0], p0[1], p1[1], b.x, b.y);
            mma_bf16(sums.c, p0[2], p1[2], p0[3], p1[3], b.z, b.w);
        }
    }
    return sums;
}

/* A of a chain, on its way to registers: a lane has rows g and g + 8 of 16, eight k at a time. */
struct chain_a {
    uint4 a0[LORA_CHAIN / 32], a1[LORA_CHAIN / 32];
};

/* bf16 only. */
__device__ static inline void chain_ask_a(struct chain_a &q, const struct lora_cell &cell,
                                          int rank0, int d_in, int k_begin, int k_end, int lane)
{
    int r0 = rank0 + (lane >> 2), r1 = r0 + 8;
    const bf16 *a = reinterpret_cast<const bf16 *>(cell.a);
    bool live0 = r0 < cell.rank, live1 = r1 < cell.rank;
    const uint4 zero = make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < LORA_CHAIN / 32; i++) {
        int k = k_begin + 32 * i + 8 * (lane & 3);
        q.a0[i] = k < k_end && live0
                      ? __ldg(reinterpret_cast<const uint4 *>(a + (int64_t)r0 * d_in + k))
                      : zero;
        q.a1[i] = k < k_end && live1
                      ? __ldg(reinterpret_cast<const uint4 *>(a + (int64_t)r1 * d_in + k))
                      : zero;
    }
}

__device__ static inline void chain_sum(float (&c)[4], const struct chain_a &q, int row,
                                        int row_end, const bf16 *x, int d_in, int k_begin,
                                        int k_end, int lane)
{
    uint4 b[LORA_CHAIN / 32];
    int mine = row + (lane >> 2);
#pragma unroll
    for (int i = 0; i < LORA_CHAIN / 32; i++) {
        int k = k_begin + 32 * i + 8 * (lane & 3);
        b[i] = k < k_end && mine < row_end
                   ? __ldcg(reinterpret_cast<const uint4 *>(x + (int64_t)mine * d_in + k))
                   : make_uint4(0, 0, 0, 0);
    }
    c[0] = c[1] = c[2] = c[3] = 0;
#pragma unroll
    for (int i = 0; i < LORA_CHAIN / 32; i++) {
        mma_bf16(c, q.a0[i].x, q.a1[i].x, q.a0[i].y, q.a1[i].y, b[i].x, b[i].y);
        mma_bf16(c, q.a0[i].z, q.a1[i].z, q.a0[i].w, q.a1[i].w, b[i].z, b[i].w);
    }
}

/* ---- t = A x, by the whole grid
 * ---------------------------------------------------------------------------------- */

struct shrink_unit { /* 16 ranks by 8 rows of t */
    struct lora_cell cell;
    int part, row, row_end, rank0;
};

template <class Found>
__device__ static inline struct shrink_unit shrink_unit_at(const struct lora_view &v,
                                                           const Found &found, int unit)
{
    struct shrink_unit u;
    int at = lora_find(found.unit_end, found.head.n_segs * v.n_parts, unit);
    int rest = unit - (at > 0 ? found.unit_end[at - 1] : 0);
    /* A division takes 40 instructions. */
    int s = v.n_parts == 1 ? at : v.n_parts == 2 ? at >> 1 : at * 43691 >> 17;
    const struct lora_span span = found.spans[s];
    int n_tiles = (span.row_end - span.row_begin + 7) / 8;
    int step = (int)__fdividef((float)rest + 0.5f, (float)n_tiles); /* of 16 ranks; both small */
    u.cell = found.cells[at];
    u.part = at - s * v.n_parts;
    u.row = span.row_begin + (rest - step * n_tiles) * 8;
    u.row_end = span.row_end;
    u.rank0 = step * 16;
    return u;
}

/* Words with a tag. What blocks hand one another within a launch are 64-bit words of 32 bits of
 * data and the launch's tag: who reads one that doesn't bear the tag reads it again. A word is
 * written and read whole, so there is no fence, no counter and no second trip. */
__device__ static inline void put_word(uint64_t *to, uint32_t data, uint32_t tag)
{
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"((uint64_t)tag << 32 | data)
                 : "memory");
}

__device__ static inline uint64_t get_word(const uint64_t *from)
{
    uint64_t w;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(w) : "l"(from) : "memory");
    return w;
}

/* Reads N words, from(j) each (null: none), until all bear the tag. Those that don't yet are asked
 * for again together: one after the other each would take a trip of its own, though they are there
 * by then. */
template <int N, typename From>
__device__ static inline void await_words(uint64_t (&w)[N], uint32_t tag, From &&from)
{
    bool all;
#pragma unroll
    for (int j = 0; j < N; j++)
        w[j] = 0;
    do {
        all = true;
#pragma unroll
        for (int j = 0; j < N; j++)
            if (from(j) != nullptr && (uint32_t)(w[j] >> 32) != tag)
                w[j] = get_word(from(j));
#pragma unroll
        for (int j = 0; j < N; j++)
            all = all && (from(j) == nullptr || (uint32_t)(w[j] >> 32) == tag);
    } while (!all);
}

/* t' lies as [row, t_stride / 2] words of two ranks. */
__device__ static inline uint64_t *word_of_t(const struct linear_args &a, int row, int at)
{
    return a.tag_t + (int64_t)row * (a.lora.t_stride / 2) + at / 2;
}

/* Puts two ranks, rank0 + rank (even) and the next, of a row of t'. */
__device__ static inline void put_t(const struct linear_args &a, const struct shrink_unit &u,
                                    int rank, int row, float lo, float hi, uint32_t tag)
{
    rank += u.rank0;
    row += u.row;
    if (rank < lora_padded(u.cell.rank) && row < u.row_end)
        put_word(word_of_t(a, row, u.cell.t_at + rank),
                 pack_bf16(u.cell.scale * lo, u.cell.scale * hi), tag);
}

/* t' of a unit, from its totals: c0, c1 are rank g, rows 2t, 2t + 1; c2, c3 rank g + 8. */
__device__ static inline void put_totals(const struct linear_args &a, const struct shrink_unit &u,
                                         const float (&total)[4], uint32_t tag, int lane)
{
    int g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        float next = __shfl_down_sync(0xffffffffu, total[j], 4); /* the rank after mine */
        if (g % 2 == 0)
            put_t(a, u, g + j / 2 * 8, 2 * t + j % 2, total[j], next, tag);
    }
}

/* This block's share of t = A x. All chains of all units stand in one list, cut evenly over the
 * warps of the grid; chains are handed on as [unit, chain, 8 rows, 16 ranks] words. Where there
 * would be too many of them (whole) the list is cut between units, and no more is to be done. The
 * first chain's A is asked for before the kernel before this one has ended. */
template <class Found>
__device__ static void narrow_chains(const struct linear_args &a, const Found &found, bool whole,
                                     int warp, int lane)
{
    int g = lane >> 2, t = lane & 3;
    /* The last blocks have the fewest tiles of outputs, some none: they begin. */
    unsigned me = (unsigned)warp * gridDim.x + gridDim.x - 1 - blockIdx.x;
    unsigned n_warps = ADAPTER_WARPS * gridDim.x, n_chains = (unsigned)a.n_chains;
    /* These products are below 2^32: whole keeps the chains below n_tag_chains / LORA_UNIT, and of
     * units there are 10^5 at most. */
    unsigned n_pieces = (unsigned)found.head.n_units * (whole ? 1 : n_chains);
    unsigned at = me * n_pieces / n_warps, n_left = (me + 1) * n_pieces / n_warps - at;
    unsigned unit = whole ? at : at / n_chains, i = whole ? 0 : at - unit * n_chains;
    n_left *= whole ? n_chains : 1;
    float total[4] = {}, slice[4] = {};
    struct shrink_unit u;
    bool waited = false, fresh = true;
#pragma unroll 1
    for (; n_left > 0; n_left--) {
        float c[4];
        struct chain_a q;
        int k_begin = (int)i * LORA_CHAIN;
        int k_end = k_begin + LORA_CHAIN < a.d_in ? k_begin + LORA_CHAIN : a.d_in;
        if (fresh)
            u = shrink_unit_at(a.lora, found, (int)unit);
        bool bf16_a = u.cell.dtype == DTYPE_BF16;
        if (bf16_a)
            chain_ask_a(q, u.cell, u.rank0, a.d_in, k_begin, k_end, lane);
        if (!waited)
            pdl_wait();
        waited = true;
        if (bf16_a) {
            chain_sum(c, q, u.row, u.row_end, a.x, a.d_in, k_begin, k_end, lane);
        } else {
            struct chain_sums sums = chain_planes(u.cell, u.rank0, u.row, u.row_end, a.x, a.d_in,
                                                  k_begin, k_end, lane);
#pragma unroll
            for (int j = 0; j < 4; j++)
                c[j] = sums.c[j];
        }
        if (!whole) {
            uint64_t *to = a.tag_chains + (int64_t)(unit * n_chains + i) * LORA_UNIT + 2 * t * 16 +
                           g;
#pragma unroll
            for (int j = 0; j < 4; j++)
                put_word(to + j % 2 * 16 + j / 2 * 8, __float_as_uint(c[j]), found.head.tag);
        } else {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                slice[j] = i % 4 == 0 ? c[j] : slice[j] + c[j];
                if (i % 4 == 3)
                    total[j] = i == 3 ? slice[j] : total[j] + slice[j];
            }
            if (i + 1 == n_chains)
                put_totals(a, shrink_unit_at(a.lora, found, (int)unit), total, found.head.tag,
                           lane);
        }
        fresh = ++i == n_chains;
        if (fresh) {
            i = 0;
            unit++;
        }
    }
    if (!waited)
        pdl_wait();
}

enum { CHAINS_AHEAD = 16 }; /* of a sum, asked for together: whole slices */

/* total, the sum of the chains before `first`, and those from there on, as words hold them. */
__device__ static inline float add_chains(float total, const uint64_t (&w)[CHAINS_AHEAD], int first,
                                          int n_chains)
{
    float c[CHAINS_AHEAD];
#pragma unroll
    for (int j = 0; j < CHAINS_AHEAD; j++)
        c[j] = __uint_as_float((uint32_t)w[j]); /* none: 0 */
#pragma unroll
    for (int j = 0; j < CHAINS_AHEAD; j += 4) {
        float slice = ((c[j] + c[j + 1]) + c[j + 2]) + c[j + 3];
        if (first + j < n_chains)
            total = first + j == 0 ? slice : total + slice;
    }
    return total;
}

/* This block's share of t' = the sum of a unit's chains: a thread a sum. */
template <class Found>
__device__ static void narrow_sums(const struct linear_args &a, const Found &found, int thread)
{
#pragma unroll 1
    for (int unit = (int)(gridDim.x - 1 - blockIdx.x); unit < found.head.n_units;
         unit += (int)gridDim.x) {
        struct shrink_unit u = shrink_unit_at(a.lora, found, unit);
        const uint64_t *chains = a.tag_chains + (int64_t)unit * a.n_chains * LORA_UNIT + thread;
        float total = 0;
#pragma unroll 1
        for (int i = 0; i < a.n_chains; i += CHAINS_AHEAD) {
            uint64_t w[CHAINS_AHEAD];
            await_words(w, found.head.tag, [&](int j) {
                return i + j < a.n_chains ? chains + (i + j) * LORA_UNIT : nullptr;
            });
            total = add_chains(total, w, i, a.n_chains);
        }
        float next = __shfl_down_sync(0xffffffffu, total, 1);
        if (thread % 2 == 0)
            put_t(a, u, thread % 16, thread / 16, total, next, found.head.tag);
    }
}

#endif
