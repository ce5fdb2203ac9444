/* linear_adapters.cuh: the adapters' warps of linear_narrow.cuh and linear_middle.cuh. Part of
 * linear.cu, whose head has the design. First the matrix steps, then t = A x by the whole grid,
 * then the deltas of a block's tiles. S is the shape of the kernel: struct narrow, or middle. */
#ifndef TRIBUTARY_KERNELS_CUDA_LINEAR_ADAPTERS_CUH
#define TRIBUTARY_KERNELS_CUDA_LINEAR_ADAPTERS_CUH

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

/* ---- deltas, straight from memory
 * ----------------------------------------------------------------------------------- */

/* Four ranks r .. r + 3 of row `out` of a bf16 B whose rank is a multiple of 4, as two pairs. */
__device__ static inline void lora_load_b(uint32_t &lo, uint32_t &hi, uintptr_t b, int rank,
                                          int out, int r, bool live)
{
    uint2 v = make_uint2(0, 0);
    if (live && r < rank)
        v = __ldg(reinterpret_cast<const uint2 *>(
            b + ((uint32_t)out * (uint32_t)rank + (uint32_t)r) * 2ull));
    lo = v.x;
    hi = v.y;
}

/* The same as numbers, of any dtype and rank: of the outputs o0 and o1. */
__device__ static inline void lora_load_b_floats(float (&w)[8], const struct lora_cell &e, int o0,
                                                 int o1, bool live0, bool live1, int r)
{
    const void *b = reinterpret_cast<const void *>(e.b);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        bool inside = r + j < e.rank;
        w[j] = inside && live0 ? load_as_float(b, (int64_t)o0 * e.rank + r + j, e.dtype) : 0;
        w[4 + j] = inside && live1 ? load_as_float(b, (int64_t)o1 * e.rank + r + j, e.dtype) : 0;
    }
}

/* The segments among base .. base + 31 whose part p has rows in the tiles: a bit each. */
template <class Found>
__device__ static inline unsigned lora_touching(const Found &found, int n_parts, int p, int base,
                                                const int (&row)[2], int lane)
{
    bool touches = false;
    if (base + lane < found.head.n_segs) {
        struct lora_span span = found.spans[base + lane];
#pragma unroll
        for (int u = 0; u < 2; u++)
            touches |= span.row_begin < row[u] + 8 && span.row_end > row[u] && row[u] >= 0;
        touches = touches && span.row_begin < span.row_end &&
                  found.cells[(base + lane) * n_parts + p].rank > 0;
    }
    return __ballot_sync(0xffffffffu, touches);
}

/* Four ranks of the t' of row `row`, if that is one of the segment's. */
template <typename Load>
__device__ static inline uint2 lora_load_t(const struct lora_span &span,
                                           const struct lora_cell &cell, int row, int r, Load &load)
{
    if (row < span.row_begin || row >= span.row_end || r >= cell.rank)
        return make_uint2(0, 0);
    return load(cell, row, r);
}

/* Which of a segment's outputs a lane's rows g and g + 8 are. */
struct lora_lane {
    int o0, o1;
    bool live0, live1;
};

struct lora_sums { /* by value through calls: what is pointed to can't stay in registers */
    float c[2][4];
};

/* The next BATCH steps of the segments in left (a bit each), from rank next_rank of the first on; a
 * step is 16 ranks of a segment. No branches: a step too many multiplies zeros. */
template <int BATCH, class Found, typename Load>
__device__ static inline void lora_steps(float (&c)[2][4], const int (&row)[2], const Found &found,
                                         const struct lora_view &v, int p, int base, unsigned &left,
                                         int &next_rank, const struct lora_lane &o, int lane,
                                         Load &load)
{
    int g = lane >> 2, t = lane & 3;
    uint32_t a[BATCH][4];
    uint2 f[BATCH][2];
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        int s = base + (left != 0 ? __ffs((int)left) - 1 : 0), r = next_rank + 4 * t;
        const struct lora_cell cell = found.cells[s * v.n_parts + p];
        const struct lora_span span = found.spans[s];
        bool is_step = left != 0;
        lora_load_b(a[i][0], a[i][2], cell.b, cell.rank, o.o0, r, is_step && o.live0);
        lora_load_b(a[i][1], a[i][3], cell.b, cell.rank, o.o1, r, is_step && o.live1);
#pragma unroll
        for (int u = 0; u < 2; u++) {
            f[i][u] = make_uint2(0, 0);
            if (is_step && row[u] >= 0)
                f[i][u] = lora_load_t(span, cell, row[u] + g, r, load);
        }
        next_rank += 16;
        bool is_last = next_rank >= cell.rank;
        next_rank = is_last ? 0 : next_rank;
        left = is_last ? left & (left - 1) : left;
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++)
#pragma unroll
        for (int u = 0; u < 2; u++)
            mma_bf16(c[u], a[i][0], a[i][1], a[i][2], a[i][3], f[i][u].x, f[i][u].y);
}

/* The same, one after the other, with any type and rank of B. */
template <class Found, typename Load>
__device__ static __noinline__ struct lora_sums
lora_steps_planes(struct lora_sums sums, int row0, int row1, const Found &found,
                  const struct lora_view &v, int p, int base, unsigned left, struct lora_lane o,
                  int lane, Load load)
{
    const int row[2] = {row0, row1};
    int g = lane >> 2, t = lane & 3;
    for (; left != 0; left &= left - 1) {
        int s = base + __ffs((int)left) - 1;
        const struct lora_cell cell = found.cells[s * v.n_parts + p];
#pragma unroll 1
        for (int r0 = 0; r0 < cell.rank; r0 += 16) {
            float w[8];
            uint2 f[2];
            int r = r0 + 4 * t;
            lora_load_b_floats(w, cell, o.o0, o.o1, o.live0, o.live1, r);
#pragma unroll
            for (int u = 0; u < 2; u++)
                f[u] = row[u] >= 0 ? lora_load_t(found.spans[s], cell, row[u] + g, r, load)
                                   : make_uint2(0, 0);
#pragma unroll 1
            for (int plane = 0; plane < planes_of(cell.dtype); plane++) {
                uint32_t q0 = take_plane(w[0], w[1]), q2 = take_plane(w[2], w[3]);
                uint32_t q1 = take_plane(w[4], w[5]), q3 = take_plane(w[6], w[7]);
#pragma unroll
                for (int u = 0; u < 2; u++)
                    mma_bf16(sums.c[u], q0, q1, q2, q3, f[u].x, f[u].y);
            }
        }
    }
    return sums;
}

/* c[0], c[1] = the deltas of rows row[0] .. row[0] + 7 and row[1] .. row[1] + 7 (row[1] < 0: none)
 * for 16 outputs, as m16n8 tiles, by a warp. out[0], out[1]: the outputs that the lane's rows g and
 * g + 8 are, or -1. The loads of several steps are in flight together, and each fragment of B
 * serves both tiles. load(cell, row, rank): four ranks of a row of t'. */
template <class Found, typename Load>
__device__ static inline void lora_delta(float (&c)[2][4], const int (&row)[2], const Found &found,
                                         const struct lora_view &v, const int (&out)[2], int lane,
                                         Load load)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        c[0][i] = c[1][i] = 0;
#pragma unroll 1
    for (int p = 0; p < v.n_parts; p++) {
        struct lora_lane o = {out[0] - v.part[p].out_begin, out[1] - v.part[p].out_begin, false,
                              false};
        o.live0 = out[0] >= 0 && o.o0 >= 0 && o.o0 < v.part[p].d_out;
        o.live1 = out[1] >= 0 && o.o1 >= 0 && o.o1 < v.part[p].d_out;
        if (!__any_sync(0xffffffffu, o.live0 || o.live1))
            continue;
#pragma unroll 1
        for (int base = 0; base < found.head.n_segs; base += 32) {
            unsigned left = lora_touching(found, v.n_parts, p, base, row, lane);
            int next_rank = 0;
            if (!found.head.plain) {
                struct lora_sums sums;
#pragma unroll
                for (int i = 0; i < 8; i++)
                    sums.c[i / 4][i % 4] = c[i / 4][i % 4];
                sums = lora_steps_planes(sums, row[0], row[1], found, v, p, base, left, o, lane,
                                         load);
#pragma unroll
                for (int i = 0; i < 8; i++)
                    c[i / 4][i % 4] = sums.c[i / 4][i % 4];
                continue;
            }
            while (left != 0) {
                if (found.head.rank <= 16 && __popc(left) <= 2)
                    lora_steps<2>(c, row, found, v, p, base, left, next_rank, o, lane, load);
                else
                    lora_steps<8>(c, row, found, v, p, base, left, next_rank, o, lane, load);
            }
        }
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

/* This block's share of t' = the sum of a unit's chains: a thread a sum. */
template <class Found>
__device__ static void narrow_sums(const struct linear_args &a, const Found &found, int thread)
{
    enum { AHEAD = 16 }; /* whole slices */
#pragma unroll 1
    for (int unit = (int)(gridDim.x - 1 - blockIdx.x); unit < found.head.n_units;
         unit += (int)gridDim.x) {
        struct shrink_unit u = shrink_unit_at(a.lora, found, unit);
        const uint64_t *chains = a.tag_chains + (int64_t)unit * a.n_chains * LORA_UNIT + thread;
        float total = 0;
#pragma unroll 1
        for (int i = 0; i < a.n_chains; i += AHEAD) {
            uint64_t w[AHEAD];
            float c[AHEAD];
            await_words(w, found.head.tag, [&](int j) {
                return i + j < a.n_chains ? chains + (i + j) * LORA_UNIT : nullptr;
            });
#pragma unroll
            for (int j = 0; j < AHEAD; j++)
                c[j] = __uint_as_float((uint32_t)w[j]); /* none: 0 */
#pragma unroll
            for (int j = 0; j < AHEAD; j += 4) {
                float slice = ((c[j] + c[j + 1]) + c[j + 2]) + c[j + 3];
                if (i + j < a.n_chains)
                    total = i + j == 0 ? slice : total + slice;
            }
        }
        float next = __shfl_down_sync(0xffffffffu, total, 1);
        if (thread % 2 == 0)
            put_t(a, u, thread % 16, thread / 16, total, next, found.head.tag);
    }
}

/* The adapters' shared memory. */
template <class S> struct adapter_memory {
    const typename S::found *found;
    const typename S::run *run; /* what for_each_turn goes by */
    struct b_note *notes;       /* [B_SLOTS, GROUP, parts] */
    char *b, *t, *deltas;       /* deltas: of a tile or two, as the warpgroups hold their sums */
    uint64_t *b_full, *b_free;  /* [B_SLOTS] */
    uint64_t *deltas_full, *deltas_free; /* [2], or [1] without a lag */
};

/* Rows of t' in shared memory lie in different banks. */
__device__ static inline int t_width(int width)
{
    return width + 4;
}

__device__ static inline int t_bytes(int n_units, int width)
{
    return 8 * n_units * t_width(width) * 2;
}

/* Whether deltas are computed from shared memory: what is needed fits, and can be copied in bulk.
 * The others go straight to memory for all that they need, which takes a trip for every few ranks.
 */
template <class S>
__device__ static inline bool narrow_staged(const struct linear_args &a,
                                            const typename S::found &found)
{
    return a.b_in_bulk && found.head.plain && found.head.rank > 0 &&
           found.head.rank * TILE * 2 <= S::B_BYTES &&
           t_bytes(S::some_t_units(a.n_ranges), found.head.width) <= S::T_BYTES;
}

/* Whether t' of all of a block's rows fits. */
template <class S>
__device__ static inline bool has_all_t(const struct linear_args &a, const typename S::found &found)
{
    return t_bytes(S::all_t_units(a.n_ranges), found.head.width) <= S::T_BYTES;
}

/* B comes in groups: of some segments, all that a tile's outputs need, a slot of the ring each. A
 * group is 64 ranks or fewer, in steps of 16 ranks of a segment; or, of larger ranks, a segment. In
 * a slot, a segment's outputs lie in the order in which y has them; in a tile of an interleaved
 * pair, 32 of the first half and then 32 of the second. Each of the adapters' warps has 16.
 *
 * A warp is alone on its quarter of the multiprocessor, so what deltas cost is instructions, some
 * five cycles each: 500 cycles for a segment, when each warp found out for itself where its pieces
 * lie. The warp that brings B has time for that, and leaves a note for each piece. */
struct b_note { /* of a part of a segment */
    int32_t b;  /* where output 0 of the tile would be in the slot, in bytes */
    int32_t t;  /* where its ranks begin in a row of t', in bytes */
    int32_t rank;
    int32_t rows; /* of two units of eight rows, which are its: a bit each */
};

struct b_ring {
    int group;     /* segments of a group: 1, 2 or 4 */
    int shift;     /* log2 of the steps of a segment */
    int seg_bytes; /* from one to the next in a slot */
    int slot_bytes, n_slots;
    int slot;       /* the next to be filled, or read */
    uint32_t phase; /* of its barrier */
};

template <class S>
__device__ static inline struct b_ring b_ring_of(const typename S::found &found, uint32_t phase)
{
    struct b_ring r;
    r.shift = 0;
    while (16 << r.shift < found.head.rank)
        r.shift++;
    int most = S::GROUP >> r.shift;
    /* Slots that can't be filled would be fewer slots. */
    int wanted = found.head.run <= 1 ? 1 : found.head.run == 2 ? 2 : 4;
    r.group = wanted < most ? wanted : most > 1 ? most : 1;
    r.seg_bytes = found.head.rank * TILE * 2;
    r.slot_bytes = r.group * r.seg_bytes;
    r.n_slots = S::B_BYTES / r.slot_bytes;
    r.n_slots = r.n_slots < S::B_SLOTS ? r.n_slots : (int)S::B_SLOTS;
    r.slot = 0;
    r.phase = phase;
    return r;
}

__device__ static inline void b_ring_next(struct b_ring &r)
{
    if (++r.slot == r.n_slots) {
        r.slot = 0;
        r.phase ^= 1;
    }
}

/* What a tile has of a part: its outputs from .. to - 1, of which the first is output `at` of the
 * tile, in the order above. Nothing: from >= to. */
struct tile_part {
    int from, to, at;
};

__device__ static inline struct tile_part tile_part_of(const struct linear_args &a, int m_tile,
                                                       int p)
{
    int width = a.pair_width > 0 ? TILE / 2 : TILE;
    int begin = a.lora.part[p].out_begin, n = a.lora.part[p].d_out;
    bool second = a.pair_width > 0 && begin >= a.pair_width;
    int first = m_tile * width - begin + (second ? a.pair_width : 0);
    struct tile_part x;
    x.from = first > 0 ? first : 0;
    x.to = first + width < n ? first + width : n;
    x.at = x.from - first + (second ? TILE / 2 : 0);
    return x;
}

/* The segments that have rows in two units of eight, ascending; each once. */
struct two_runs {
    int begin0, n0, begin1, n;
};

template <class Found>
__device__ static inline struct two_runs two_runs_of(const Found &found, const int (&row)[2])
{
    struct lora_run first = found.units[row[0] / 8], second = {0, 0};
    if (row[1] >= 0)
        second = found.units[row[1] / 8];
    struct two_runs r;
    r.begin0 = first.begin;
    r.n0 = first.end - first.begin;
    r.begin1 = second.begin > first.end ? second.begin : first.end;
    r.n = r.n0 + (second.end > r.begin1 ? second.end - r.begin1 : 0);
    return r;
}

__device__ static inline int seg_of(const struct two_runs &r, int i)
{
    return i < r.n0 ? r.begin0 + i : r.begin1 + i - r.n0;
}

/* What deltas a block computes, in turns, each a buffer of them: for warpgroup wg, of its tile of
 * 64 outputs, the units of eight rows first(wg), first(wg) + step, ... below end. S::for_each_turn
 * calls with one after the other. (No arrays: what is indexed lies in memory.) */
struct delta_turn {
    int tile0, tile1, first0, first1, step, end;

    __device__ int tile(int wg) const
    {
        return wg == 0 ? tile0 : tile1;
    }
    __device__ int first(int wg) const
    {
        return wg == 0 ? first0 : first1;
    }
};

/* Calls f(warpgroup, its number of the first unit, rows) for every two units of a turn. Joint: the
 * warpgroups have one unit each, of the same outputs, and these two are one call's. */
template <class S, typename Function>
__device__ static inline void
for_each_delta(const struct linear_args &a, const struct delta_turn &turn, bool joint, Function &&f)
{
#pragma unroll 1
    for (int wg = 0; wg < (joint ? 1 : 2); wg++) {
        int u = turn.first(wg);
#pragma unroll 1
        for (int i = 0; i < S::turn_units(a.n_ranges) && u < turn.end; i += 2) {
            int next = joint ? turn.first1 : u + turn.step;
            bool both = (joint || i + 1 < S::turn_units(a.n_ranges)) && next < turn.end;
            const int row[2] = {8 * u, both ? 8 * next : -1};
            f(wg, i, row);
            u += 2 * turn.step;
        }
    }
}

__device__ static inline int rows_of(const struct lora_span &span, int row)
{
    int begin = span.row_begin - row, end = span.row_end - row;
    begin = begin < 0 ? 0 : begin > 8 ? 8 : begin;
    end = end < 0 ? 0 : end > 8 ? 8 : end;
    return row < 0 || begin >= end ? 0 : (1 << end) - (1 << begin);
}

/* Brings B, by a warp of its own: a lane has a part of a segment. */
template <class S>
__device__ static void narrow_fill_b(const struct linear_args &a, const struct adapter_memory<S> &m,
                                     int lane)
{
    static_assert(S::GROUP * LORA_PARTS_MAX <= 32, "a lane each");
    int n_parts = a.lora.n_parts, j = lane / n_parts, p = lane % n_parts;
    struct b_ring ring = b_ring_of<S>(*m.found, 1); /* the first round waits for nobody */
    int rank_most = m.found->head.rank;
    struct tile_part part = {0, 0, 0};
    int last_tile = -1;
    bool joint = S::one_unit_each(a.n_ranges) && has_all_t<S>(a, *m.found);
    S::for_each_turn(a, m.run, [&](int, const struct delta_turn &turn) {
        for_each_delta<S>(a, turn, joint, [&](int wg, int, const int(&row)[2]) {
            if (turn.tile(wg) != last_tile) {
                last_tile = turn.tile(wg);
                part = tile_part_of(a, last_tile, p);
            }
            struct two_runs run = two_runs_of(*m.found, row);
#pragma unroll 1
            for (int k = 0; k < run.n; k += ring.group) {
                uint32_t bytes = 0;
                const char *from = nullptr;
                struct b_note note = {};
                int to = j * ring.seg_bytes + part.at * rank_most * 2;
                if (j < ring.group && k + j < run.n && part.from < part.to) {
                    int s = seg_of(run, k + j);
                    const struct lora_cell *cell = &m.found->cells[s * n_parts + p];
                    note.rank = cell->rank;
                    note.t = cell->t_at * 2;
                    note.b = to - part.at * note.rank * 2;
                    note.rows = rows_of(m.found->spans[s], row[0]) |
                                rows_of(m.found->spans[s], row[1]) << 8;
                    bytes = (uint32_t)((part.to - part.from) * note.rank * 2);
                    from = reinterpret_cast<const char *>(cell->b) +
                           (uint64_t)part.from * (unsigned)note.rank * 2;
                }
                uint32_t all = __reduce_add_sync(0xffffffffu, bytes);
                barrier_wait(&m.b_free[ring.slot], ring.phase);
                if (j < ring.group)
                    m.notes[(ring.slot * ring.group + j) * n_parts + p] = note;
                if (lane == 0)
                    barrier_expect(&m.b_full[ring.slot], all);
                else
                    barrier_arrive(&m.b_full[ring.slot]);
                __syncwarp();
                if (bytes > 0)
                    copy_bytes(m.b + ring.slot * ring.slot_bytes + to, from, bytes,
                               &m.b_full[ring.slot]);
                b_ring_next(ring);
            }
        });
    });
}

/* The part that a tile's outputs first .. first + 7 are of, or -1. */
__device__ static inline int part_of(const struct linear_args &a, int m_tile, int first)
{
    int found = -1;
#pragma unroll
    for (int p = 0; p < LORA_PARTS_MAX; p++) {
        struct tile_part part = tile_part_of(a, m_tile, p);
        if (p < a.lora.n_parts && part.from < part.to && first >= part.at &&
            first < part.at + part.to - part.from)
            found = p;
    }
    return found;
}

__device__ static inline uint2 load_shared_8(uint32_t at)
{
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
    return v;
}

__device__ static inline struct b_note load_note(uint32_t at)
{
    struct b_note n;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(n.b), "=r"(n.t), "=r"(n.rank), "=r"(n.rows)
                 : "r"(at));
    return n;
}

/* Adds a group of segments to the deltas of two units of rows: of the outputs o and o + 8 (the
 * lane's rows g and g + 8), where they are live. In shared memory: slot, notes (of the part,
 * n_parts apart), and t' of the lane's row g in the first unit and, t_unit bytes on, in the second.
 */
__device__ static inline void narrow_group(float (&c)[2][4], uint32_t slot, uint32_t notes,
                                           int n_parts, int n_steps, int shift, int o, bool live0,
                                           bool live1, uint32_t t, uint32_t t_unit, int lane)
{
    enum { STEPS = 2 };
    int g = lane >> 2, t4 = lane % 4 * 4;
#pragma unroll 1
    for (int h = 0; h < n_steps; h += STEPS) {
        uint2 x[STEPS], y[STEPS], f[STEPS][2];
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            int j = (h + i) >> shift, r = t4 + (h + i - (j << shift)) * 16;
            x[i] = y[i] = f[i][0] = f[i][1] = make_uint2(0, 0);
            struct b_note note = {0, 0, 0, 0};
            if (i == 0 || h + i < n_steps)
                note = load_note(notes + (uint32_t)(j * n_parts) * sizeof note);
            bool inside = r < note.rank;
            uint32_t b = slot + (uint32_t)(note.b + (o * note.rank + r) * 2);
            uint32_t at = t + (uint32_t)(note.t + r * 2);
            if (inside && live0)
                x[i] = load_shared_8(b);
            if (inside && live1)
                y[i] = load_shared_8(b + (uint32_t)note.rank * 16);
            if (inside && (note.rows >> g & 1))
                f[i][0] = load_shared_8(at);
            if (inside && (note.rows >> g & 256))
                f[i][1] = load_shared_8(at + t_unit);
        }
#pragma unroll
        for (int i = 0; i < STEPS; i++)
#pragma unroll
            for (int u = 0; u < 2; u++)
                mma_bf16(c[u], x[i].x, y[i].x, x[i].y, y[i].y, f[i][u].x, f[i][u].y);
    }
}

/* Puts the deltas of a warp's 16 outputs where the warps that hold the sums have theirs. */
__device__ static inline void put_deltas(char *to, const float (&c)[4], bool pair, int warp,
                                         int lane)
{
    if (!pair) {
        *reinterpret_cast<float4 *>(to + (warp * 32 + lane) * 16) = make_float4(c[0], c[1], c[2],
                                                                                c[3]);
        return;
    }
    /* Those have eight of each half (linear.cuh); this one has 16 of one. */
    char *mine = to + (warp % 2 * 64 + lane) * 16 + warp / 2 * 8;
    *reinterpret_cast<float2 *>(mine) = make_float2(c[0], c[1]);
    *reinterpret_cast<float2 *>(mine + 32 * 16) = make_float2(c[2], c[3]);
}

/* Copies t' of so many units of eight rows, unit_of(i) each, into shared memory, as it comes. */
template <class S, typename Unit>
__device__ static inline void narrow_stage_t(const struct linear_args &a,
                                             const struct adapter_memory<S> &m, int n_units,
                                             int width, int thread, Unit &&unit_of)
{
    enum { AHEAD = 8, THREADS = ADAPTER_WARPS * 32 };
    int n_rows = 8 * n_units, words = m.found->head.width / 2;
#pragma unroll 1
    for (int i0 = thread; i0 < n_rows * words; i0 += AHEAD * THREADS) {
        uint64_t w[AHEAD];
        const uint64_t *from[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            int i = i0 + j * THREADS, r = i / words, at = i % words * 2;
            int row = 8 * unit_of(r / 8) + r % 8;
            bool is_there = i < n_rows * words && row < S::ROWS && at < m.found->t_end[row];
            from[j] = is_there ? word_of_t(a, row, at) : nullptr;
        }
        await_words(w, m.found->head.tag, [&](int j) { return from[j]; });
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            int i = i0 + j * THREADS;
            if (from[j] != nullptr)
                *reinterpret_cast<uint32_t *>(m.t + (i / words * width + i % words * 2) *
                                                        2) = (uint32_t)w[j];
        }
    }
}

/* Whether each block adds up the chains of its own rows, straight into shared memory: one trip
 * through L2 instead of two, where that is little. */
template <class S>
__device__ static inline bool sums_here(const struct linear_args &a, const typename S::found &found)
{
    enum { UNITS_MAX = 4, CHAINS_MAX = 16 };
    int n_row_units = a.n_rows > 8 ? 2 : 1, n_parts = S::one_tile(a) ? 1 : a.lora.n_parts;
    return S::one_unit_each(a.n_ranges) && a.n_chains <= CHAINS_MAX &&
           found.head.n_segs * n_parts * ((found.head.rank + 15) / 16) * n_row_units <= UNITS_MAX;
}

/* Does so. Of a block's only tile, what its outputs need. */
template <class S>
__device__ static void narrow_sum_t(const struct linear_args &a, const struct adapter_memory<S> &m,
                                    int width, int thread)
{
    enum { CHAINS = 16 };
    const typename S::found &found = *m.found;
    int rank = thread % 16, only = S::one_tile(a) ? S::first_tile() : -1;
#pragma unroll 1
    for (int unit = 0; unit < found.head.n_units; unit++) {
        struct shrink_unit u = shrink_unit_at(a.lora, found, unit);
        int row = u.row + thread / 16, at = S::t_row(row, a.n_ranges);
        bool live = row < u.row_end && at >= 0 && u.rank0 + rank < u.cell.rank;
        if (only >= 0) {
            struct tile_part part = tile_part_of(a, only, u.part);
            live = live && part.from < part.to;
        }
        if (!__any_sync(0xffffffffu, live))
            continue;
        const uint64_t *chains = a.tag_chains + (int64_t)unit * a.n_chains * LORA_UNIT + thread;
        uint64_t w[CHAINS];
        await_words(w, found.head.tag, [&](int j) {
            return live && j < a.n_chains ? chains + j * LORA_UNIT : nullptr;
        });
        float total = 0;
#pragma unroll
        for (int j = 0; j < CHAINS; j += 4) {
            float c[4];
#pragma unroll
            for (int k = 0; k < 4; k++)
                c[k] = __uint_as_float((uint32_t)w[j + k]);
            float slice = ((c[0] + c[1]) + c[2]) + c[3];
            if (j < a.n_chains)
                total = j == 0 ? slice : total + slice;
        }
        float next = __shfl_down_sync(0xffffffffu, total, 1);
        if (live && rank % 2 == 0)
            *reinterpret_cast<uint32_t *>(m.t + (at * width + u.cell.t_at + u.rank0 + rank) * 2) =
                pack_bf16(u.cell.scale * total, u.cell.scale * next);
    }
}

/* Asks for what the linear found, by all lanes of the adapters' warps. The lists are copied as far
 * as they could be used; behind n_segs they hold something old. */
template <class S>
__device__ static void narrow_ask_found(const struct linear_args &a, void *to, int thread)
{
    typedef typename S::found found;
    const char *from = reinterpret_cast<const char *>(a.lora.found);
    auto copy = [&](size_t at, size_t from_at, size_t bytes) {
        for (int i = thread * 16; i < (int)bytes; i += ADAPTER_WARPS * 32 * 16)
            copy_16(static_cast<char *>(to) + at + i, from + from_at + i);
    };
    size_t n_cells = (size_t)(S::SEGS * a.lora.n_parts);
    copy(0, 0, sizeof(struct lora_head));
    copy(offsetof(found, t_end), offsetof(struct lora_found, t_end), S::ROWS * sizeof(int32_t));
    copy(offsetof(found, units), offsetof(struct lora_found, units), sizeof found::units);
    copy(offsetof(found, spans), offsetof(struct lora_found, spans),
         S::SEGS * sizeof(struct lora_span));
    copy(offsetof(found, unit_end), offsetof(struct lora_found, unit_end),
         n_cells * sizeof(int32_t));
    copy(offsetof(found, cells), offsetof(struct lora_found, cells),
         n_cells * sizeof(struct lora_cell));
}

/* The deltas of 16 packed outputs, straight from memory. A function of its own, so that the other
 * way keeps its registers. */
template <class Found>
__device__ static __noinline__ struct lora_sums narrow_direct(const struct linear_args &a,
                                                              const Found &found, int packed_row,
                                                              int row0, int row1, int lane)
{
    struct lora_sums sums = {};
    const int row[2] = {row0, row1};
    int out[2];
    outputs_of(out, a, packed_row);
    lora_delta(sums.c, row, found, a.lora, out, lane,
               [&](const struct lora_cell &cell, int my_row, int r) {
                   const uint64_t *from = word_of_t(a, my_row, cell.t_at + r);
                   uint64_t w[2];
                   await_words(w, found.head.tag, [&](int j) { return from + j; });
                   return make_uint2((uint32_t)w[0], (uint32_t)w[1]);
               });
    return sums;
}

/* Everything else that the adapters' warps do. */
template <class S>
__device__ static void narrow_adapters(const struct linear_args &a,
                                       const struct adapter_memory<S> &m)
{
    int thread = (int)threadIdx.x - NARROW_ADAPTERS * 32, warp = thread >> 5, lane = thread & 31;
    int g = lane >> 2;
    const typename S::found &found = *m.found;

    bool staged = narrow_staged<S>(a, found), once = has_all_t<S>(a, found);
    bool whole = (int64_t)found.head.n_units * a.n_chains * LORA_UNIT > a.n_tag_chains;
    bool here = staged && once && !whole && sums_here<S>(a, found);
    narrow_chains(a, found, whole, warp, lane);
    if (!whole && !here)
        narrow_sums(a, found, thread);
    if (warp == ADAPTER_WARPS - 1 && a.next.n_parts > 0)
        lora_prefetch_next(
            a.next, a.next_is_other_half ? __ldcg(&a.next.found->head.n_segs) : found.head.n_segs,
            a.next_d_in, lane);
    int width = t_width(found.head.width);
    bool joint = once && S::one_unit_each(a.n_ranges);
    int n_t = once ? S::all_t_units(a.n_ranges) : S::some_t_units(a.n_ranges);
    bool has_t = false;
    struct b_ring ring = b_ring_of<S>(found, 0);
    bool pair = a.pair_width > 0;
    int n_parts = a.lora.n_parts;
    int n_buffers = S::n_buffers(a.n_ranges);
    int last_tile = -1, p0 = -1, p1 = -1; /* the parts of a warp's outputs */
    S::for_each_turn(a, m.run, [&](int no, const struct delta_turn &turn) {
        int buffer = no % n_buffers, round = no / n_buffers;
        char *deltas = m.deltas + buffer * S::delta_bytes(a.n_ranges);
        if (round > 0)
            barrier_wait(&m.deltas_free[buffer], (round - 1) & 1);
        for_each_delta<S>(a, turn, joint, [&](int wg, int i, const int(&row)[2]) {
            float c[2][4] = {};
            int tile = turn.tile(wg);
            if (tile != last_tile) {
                p0 = part_of(a, tile, warp * 16);
                p1 = part_of(a, tile, warp * 16 + 8);
                last_tile = tile;
            }
            if (staged && i == 0 && (once ? !has_t : S::ROWS_OF_WG || wg == 0 || !has_t)) {
                if (has_t)
                    named_sync(2, ADAPTER_WARPS * 32); /* all have read what was there */
                if (here)
                    narrow_sum_t<S>(a, m, width, thread);
                else
                    narrow_stage_t<S>(a, m, n_t, width, thread, [&](int unit) {
                        return S::t_unit(turn, wg, unit, a.n_ranges, once);
                    });
                named_sync(1, ADAPTER_WARPS * 32);
                has_t = true;
            }
            if (staged) {
                uint32_t t = shared_address(m.t) +
                             (uint32_t)(((S::t_first(turn, wg, a.n_ranges, once) + i) * 8 + g) *
                                        width * 2);
                int n = two_runs_of(found, row).n;
#pragma unroll 1
                for (int k = 0; k < n; k += ring.group) {
                    uint32_t slot = shared_address(m.b) + (uint32_t)(ring.slot * ring.slot_bytes);
                    uint32_t notes = shared_address(m.notes) +
                                     (uint32_t)(ring.slot * ring.group * n_parts) *
                                         sizeof(struct b_note);
                    int n_steps = (n - k < ring.group ? n - k : ring.group) << ring.shift;
                    barrier_wait(&m.b_full[ring.slot], ring.phase);
                    /* Nearly always both eights of outputs are of one part. */
#pragma unroll 1
                    for (int eight = 0; eight < (p0 == p1 ? 1 : 2); eight++) {
                        int p = eight == 0 ? p0 : p1;
                        if (p >= 0)
                            narrow_group(c, slot, notes + (uint32_t)p * sizeof(struct b_note),
                                         n_parts, n_steps, ring.shift, warp * 16 + g, eight == 0,
                                         eight == 1 || p0 == p1, t, (uint32_t)(width * 16), lane);
                    }
                    barrier_arrive(&m.b_free[ring.slot]);
                    b_ring_next(ring);
                }
            } else {
                struct lora_sums sums = narrow_direct(a, found, tile * TILE + warp * 16 + g, row[0],
                                                      row[1], lane);
#pragma unroll
                for (int u = 0; u < 8; u++)
                    c[u / 4][u % 4] = sums.c[u / 4][u % 4];
            }
            char *to = deltas + (wg * S::turn_units(a.n_ranges) + i) * S::PIECE;
#pragma unroll
            for (int u = 0; u < 2; u++)
                if (row[u] >= 0)
                    put_deltas(to + u * S::PIECE, c[u], pair && staged, warp, lane);
        });
        barrier_arrive(&m.deltas_full[buffer]);
    });
}

#endif
