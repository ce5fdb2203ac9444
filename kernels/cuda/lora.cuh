/* lora.cuh: the adapters' half of linear, on the device. Used by linear.cu and lora.cu alone.
 *
 * Order of summation.
 *
 * The delta of a row is weight * scaling * B (A x). Its order is fixed by d_in and the rank, and is
 * the same in every kernel here:
 *
 *   t = A x       K is cut into chains of 256, each summed by mma.m16n8k16 in ascending k; four
 *                 chains make a slice of 1,024: ((c0 + c1) + c2) + c3; slices are added ascending.
 *   t' = bf16(weight * scaling * t)
 *   d = B t'      mma.m16n8k16 from zero on, 16 ranks a step, ascending, segment after segment.
 *   y = (W x + bias) + d
 *
 * Rows are the columns of both products (n8), so a neighbour is another column and can't be seen: a
 * column whose row is not of the segment gets t' = 0, and adding zero products to an accumulator
 * leaves it as it is. W x is summed from +0 on and so is never -0: adding the zero of a row without
 * an adapter leaves it as it is.
 *
 * The instruction doesn't mind in which order k runs as long as both operands agree: in the first
 * product lane t (of 4) takes eight consecutive k of a chunk of 32, in the second four consecutive
 * ranks of a chunk of 16, so that global memory is read 16 or 8 bytes a lane without staging.
 *
 * Finding things. segment -> slot -> entry -> matrix is a chain of dependent loads, each a trip to
 * L2. So a kernel first gathers what it needs of its segments into a table in shared memory, all at
 * once, before pdl_wait (nobody writes those while a step runs); then every load of a matrix is one
 * trip, and many are in flight. */
#ifndef TRIBUTARY_KERNELS_CUDA_LORA_CUH
#define TRIBUTARY_KERNELS_CUDA_LORA_CUH

#include "kernels/cuda/cuda.cuh"

enum {
    LORA_PARTS_MAX = 3,
    LORA_CHAIN = 256,            /* k of one warp's chain */
    LORA_SLICE = 4 * LORA_CHAIN, /* k of a slice */
    LORA_SEGS_MAX = 8192,        /* of a step */
    LORA_T_PAD = 4,              /* a part's t begins at a multiple of this */
    LORA_UNIT = 128,             /* sums of a unit of shrink: 16 ranks by 8 rows */
};

static inline int lora_n_chains(int d_in) /* those of the last slice may be empty */
{
    return (d_in + LORA_SLICE - 1) / LORA_SLICE * (LORA_SLICE / LORA_CHAIN);
}

/* What the device needs of lora_args, by value. */
struct lora_view {
    const struct lora_seg *segs;
    const int32_t *d_n_segs; /* or null: n_segs */
    int n_segs, n_parts;
    struct {
        const struct lora_entry *entries;
        int out_begin, d_out;
    } part[LORA_PARTS_MAX];
    bf16 *t; /* t' [row, t_stride]; a row's segments and parts behind one another, each padded */
    int t_stride;
};

__device__ static inline int lora_n_segs(const struct lora_view &v)
{
    return v.d_n_segs != nullptr ? __ldg(v.d_n_segs) : v.n_segs;
}

__device__ static inline struct lora_seg lora_seg_at(const struct lora_view &v, int s)
{
    const int4 raw = __ldg(reinterpret_cast<const int4 *>(v.segs) + s);
    return {raw.x, raw.y, raw.z, __int_as_float(raw.w)};
}

__device__ static inline int lora_rank(const struct lora_view &v, int p, int slot)
{
    return __ldg(&v.part[p].entries[slot].rank);
}

__device__ static inline struct lora_entry lora_entry_at(const struct lora_view &v, int p, int slot)
{
    const longlong2 *q = reinterpret_cast<const longlong2 *>(&v.part[p].entries[slot]);
    static_assert(sizeof(struct lora_entry) == 32, "read as two 16-byte words");
    longlong2 ab = __ldg(q), rest = __ldg(q + 1);
    struct lora_entry e;
    e.a.addr = (uintptr_t)ab.x;
    e.b.addr = (uintptr_t)ab.y;
    e.rank = (int32_t)rest.x;
    e.scaling = __int_as_float((int32_t)(rest.x >> 32));
    e.dtype = (int32_t)rest.y;
    e.reserved = 0;
    return e;
}

/* The first segment with a row at or after `row`, or n_segs. Segments ascend; those of an ensemble
 * cover the same rows. */
__device__ static inline int lora_first_seg(const struct lora_view &v, int n_segs, int row)
{
    int low = 0, high = n_segs;
    while (low < high) {
        int mid = (low + high) / 2;
        struct lora_seg s = lora_seg_at(v, mid);
        if (s.row_begin + s.n_rows > row)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

__device__ static inline int lora_padded(int rank)
{
    return (rank + LORA_T_PAD - 1) / LORA_T_PAD * LORA_T_PAD;
}

/* Where the ranks of (segment s, part p) begin in a row of t'. */
__device__ static inline int lora_t_at(const struct lora_view &v, int s, const struct lora_seg &seg,
                                       int p)
{
    int at = 0;
    for (int q = 0; q < p; q++)
        at += lora_padded(lora_rank(v, q, seg.slot));
    for (int u = s - 1; u >= 0; u--) { /* an ensemble's earlier segments, over the same rows */
        struct lora_seg before = lora_seg_at(v, u);
        if (before.n_rows == 0)
            continue;
        if (before.row_begin != seg.row_begin)
            break;
        for (int q = 0; q < v.n_parts; q++)
            at += lora_padded(lora_rank(v, q, before.slot));
    }
    return at;
}

/* ---- the table
 * ------------------------------------------------------------------------------------ */

struct lora_span { /* a segment's rows */
    int32_t row_begin, row_end;
};

struct lora_cell { /* a segment's part */
    uintptr_t a, b;
    int32_t rank, dtype;
    float scale;  /* weight * scaling */
    int32_t t_at; /* where its ranks begin in a row of t' */
};

struct lora_table {          /* in shared memory */
    struct lora_span *spans; /* [n] */
    struct lora_cell *cells; /* [n, n_parts] */
    int n;                   /* segments in it */
    bool plain;              /* lora_table_look: all are bf16, ranks multiples of 4, B aligned */
    int rank;                /* likewise: the largest */
    int width;               /* likewise: of a row of t' */
};

static __host__ __device__ inline size_t lora_table_bytes(int n_segs)
{
    return (size_t)n_segs * (sizeof(struct lora_span) + LORA_PARTS_MAX * sizeof(struct lora_cell));
}

__device__ static inline struct lora_table lora_table_at(void *memory, int capacity)
{
    struct lora_table t;
    t.cells = static_cast<struct lora_cell *>(memory);
    t.spans = reinterpret_cast<struct lora_span *>(t.cells + capacity * LORA_PARTS_MAX);
    t.n = 0;
    t.plain = false;
    t.rank = t.width = 0;
    return t;
}

/* Gathers segments first .. first + n - 1. The caller puts a barrier behind it. */
__device__ static inline void lora_table_fill(struct lora_table &table, const struct lora_view &v,
                                              int first, int n, int thread, int n_threads)
{
    table.n = n;
    for (int i = thread; i < n * v.n_parts; i += n_threads) {
        int s = first + i / v.n_parts, p = i % v.n_parts;
        struct lora_seg seg = lora_seg_at(v, s);
        struct lora_entry e = lora_entry_at(v, p, seg.slot);
        table.cells[i] = {
            e.a.addr, e.b.addr, e.rank, e.dtype, seg.weight * e.scaling, lora_t_at(v, s, seg, p)};
        if (p == 0)
            table.spans[i / v.n_parts] = {seg.row_begin, seg.row_begin + seg.n_rows};
    }
}

/* What lora_delta wants to know of the table; by a warp, after that barrier. */
__device__ static inline void lora_table_look(struct lora_table &table, int n_parts, int lane)
{
    bool plain = true;
    int rank = 0, width = 0;
    for (int i = lane; i < table.n * n_parts; i += 32) {
        const struct lora_cell cell = table.cells[i];
        plain = plain && cell.dtype == DTYPE_BF16 && cell.rank % 4 == 0 && cell.b % 16 == 0;
        rank = cell.rank > rank ? cell.rank : rank;
        width = cell.t_at + cell.rank > width ? cell.t_at + cell.rank : width;
    }
    table.plain = __all_sync(0xffffffffu, plain);
    table.rank = __reduce_max_sync(0xffffffffu, rank);
    table.width = __reduce_max_sync(0xffffffffu, width);
}

/* ---- the matrix step
 * ------------------------------------------------------------------------------ */

__device__ static inline void mma_bf16(float &c0, float &c1, float &c2, float &c3, uint32_t a0,
                                       uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                       uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ static inline void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                       uint32_t a3, uint32_t b0, uint32_t b1)
{
    mma_bf16(c[0], c[1], c[2], c[3], a0, a1, a2, a3, b0, b1);
}

__device__ static inline uint32_t pack_bf16(float lo, float hi)
{
    __nv_bfloat162 p = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<uint32_t *>(&p);
}

/* The next bf16 plane of f (the values nearest to it), taken off f: three planes hold an f32, two
 * an f16, exactly. */
__device__ static inline uint32_t take_plane(float &lo, float &hi)
{
    uint32_t p = pack_bf16(lo, hi);
    lo -= __uint_as_float(p << 16);
    hi -= __uint_as_float(p & 0xffff0000u);
    return p;
}

__device__ static inline int planes_of(int dtype)
{
    return dtype == DTYPE_BF16 ? 1 : dtype == DTYPE_F16 ? 2 : 3;
}

/* ---- shrink
 * --------------------------------------------------------------------------------------- */

/* values [n] in shared memory become their running sums. All n_threads (a multiple of 32) call. */
__device__ static inline void lora_scan(int *values, int n, int thread, int n_threads,
                                        int barrier_id)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier_id), "r"(n_threads) : "memory");
    if (thread < 32) {
        int before = 0;
        for (int s = 0; s < n; s += 32) {
            int mine = s + thread < n ? values[s + thread] : 0;
            for (int o = 1; o < 32; o <<= 1) {
                int up = __shfl_up_sync(0xffffffffu, mine, o);
                if (thread >= o)
                    mine += up;
            }
            if (s + thread < n)
                values[s + thread] = before + mine;
            before += __shfl_sync(0xffffffffu, mine, 31);
        }
    }
    asm volatile("bar.sync %0, %1;" ::"r"(barrier_id), "r"(n_threads) : "memory");
}

/* The first of the running sums end [n] that is above i. */
__device__ static inline int lora_find(const int *end, int n, int i)
{
    int low = 0, high = n - 1;
    while (low < high) {
        int mid = (low + high) / 2;
        if (end[mid] > i)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

/* One chain, by a warp: c[n] = A[rank0 ..+16][k_begin .. k_end) x[row + 8 n ..+8]^T. d_in and
 * k_begin are multiples of 8. c0, c1: rank g, rows 2t, 2t + 1; c2, c3: rank g + 8. lora_chain is
 * for bf16; the way of other types is a function of its own, so that the other code stays small:
 * what doesn't fit the instruction cache comes from L2, behind the weights. */
template <int NT> struct lora_chain_sums { /* see lora_sums */
    float c[NT][4];
};

template <int NT>
__device__ static __noinline__ struct lora_chain_sums<NT>
lora_chain_planes(struct lora_cell cell, int rank0, int row, int row_end, const bf16 *x, int d_in,
                  int k_begin, int k_end, int lane) {
    struct lora_chain_sums<NT> sums;
    float (&c)[NT][4] = sums.c;
    int g = lane >> 2, t = lane & 3, r0 = rank0 + g, r1 = r0 + 8;
    const void *a = reinterpret_cast<const void *>(cell.a);
#pragma unroll
    for (int n = 0; n < NT; n++)
        c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
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
#pragma unroll 1
        for (int plane = 0; plane < planes_of(cell.dtype); plane++) {
            uint32_t p0[4], p1[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                p0[e] = take_plane(f0[2 * e], f0[2 * e + 1]);
                p1[e] = take_plane(f1[2 * e], f1[2 * e + 1]);
            }
#pragma unroll
            for (int n = 0; n < NT; n++) {
                uint4 b = make_uint4(0, 0, 0, 0);
                if (k < k_end && row + 8 * n + g < row_end)
                    b = __ldcg(
                        reinterpret_cast<const uint4 *>(x + (int64_t)(row + 8 * n + g) * d_in + k));
                mma_bf16(c[n], p0[0], p1[0], p0[1], p1[1], b.x, b.y);
                mma_bf16(c[n], p0[2], p1[2], p0[3], p1[3], b.z, b.w);
            }
        }
    }
    return sums;
}

template <int NT>
__device__ static inline void lora_chain(float (&c)[NT][4], const struct lora_cell &cell, int rank0,
                                         int row, int row_end, const bf16 *x, int d_in, int k_begin,
                                         int k_end, int lane)
{
    constexpr int AHEAD = NT == 1 ? 8 : 2; /* chunks of 32 k in flight */
    if (cell.dtype != DTYPE_BF16) {
        struct lora_chain_sums<NT> sums = lora_chain_planes<NT>(cell, rank0, row, row_end, x, d_in,
                                                                k_begin, k_end, lane);
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                c[n][i] = sums.c[n][i];
        return;
    }
    int g = lane >> 2, t = lane & 3, r0 = rank0 + g, r1 = r0 + 8;
    const bf16 *a = reinterpret_cast<const bf16 *>(cell.a);
    bool live0 = r0 < cell.rank, live1 = r1 < cell.rank;
#pragma unroll
    for (int n = 0; n < NT; n++)
        c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0;
    const uint4 zero = make_uint4(0, 0, 0, 0);
#pragma unroll 1
    for (int k0 = k_begin; k0 < k_end; k0 += 32 * AHEAD) {
        uint4 a0[AHEAD], a1[AHEAD], b[AHEAD][NT];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            int k = k0 + 32 * i + 8 * t;
            bool inside = k < k_end;
            a0[i] = inside && live0
                        ? __ldg(reinterpret_cast<const uint4 *>(a + (int64_t)r0 * d_in + k))
                        : zero;
            a1[i] = inside && live1
                        ? __ldg(reinterpret_cast<const uint4 *>(a + (int64_t)r1 * d_in + k))
                        : zero;
#pragma unroll
            for (int n = 0; n < NT; n++)
                b[i][n] = inside && row + 8 * n + g < row_end
                              ? __ldcg(reinterpret_cast<const uint4 *>(
                                    x + (int64_t)(row + 8 * n + g) * d_in + k))
                              : zero;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
                mma_bf16(c[n], a0[i].x, a1[i].x, a0[i].y, a1[i].y, b[i][n].x, b[i][n].y);
                mma_bf16(c[n], a0[i].z, a1[i].z, a0[i].w, a1[i].w, b[i][n].z, b[i][n].w);
            }
        }
    }
}

/* ---- expand
 * --------------------------------------------------------------------------------------- */

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
__device__ static inline unsigned lora_touching(const struct lora_table &table, int n_parts, int p,
                                                int base, const int (&row)[2], int lane)
{
    bool touches = false;
    if (base + lane < table.n) {
        struct lora_span span = table.spans[base + lane];
#pragma unroll
        for (int u = 0; u < 2; u++)
            touches |= span.row_begin < row[u] + 8 && span.row_end > row[u] && row[u] >= 0;
        touches = touches && span.row_begin < span.row_end &&
                  table.cells[(base + lane) * n_parts + p].rank > 0;
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

/* The next BATCH steps of the segments in todo, from rank next_rank of the first on; a step is 16
 * ranks of a segment. No branches: a step too many multiplies zeros. */
template <int BATCH, typename Load>
__device__ static inline void lora_steps(float (&c)[2][4], const int (&row)[2],
                                         const struct lora_table &table, const struct lora_view &v,
                                         int p, int base, unsigned &todo, int &next_rank,
                                         const struct lora_lane &o, int lane, Load &load)
{
    int g = lane >> 2, t = lane & 3;
    uint32_t a[BATCH][4];
    uint2 f[BATCH][2];
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        int s = base + (todo != 0 ? __ffs((int)todo) - 1 : 0), r = next_rank + 4 * t;
        const struct lora_cell cell = table.cells[s * v.n_parts + p];
        const struct lora_span span = table.spans[s];
        bool is_step = todo != 0;
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
        todo = is_last ? todo & (todo - 1) : todo;
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++)
#pragma unroll
        for (int u = 0; u < 2; u++)
            mma_bf16(c[u], a[i][0], a[i][1], a[i][2], a[i][3], f[i][u].x, f[i][u].y);
}

/* The same, one after the other, with any type and rank of B. */
template <typename Load>
__device__ static __noinline__ struct lora_sums
lora_steps_planes(struct lora_sums sums, int row0, int row1, struct lora_table table,
                  const struct lora_view &v, int p, int base, unsigned todo, struct lora_lane o,
                  int lane, Load load)
{
    const int row[2] = {row0, row1};
    int g = lane >> 2, t = lane & 3;
    for (; todo != 0; todo &= todo - 1) {
        int s = base + __ffs((int)todo) - 1;
        const struct lora_cell cell = table.cells[s * v.n_parts + p];
#pragma unroll 1
        for (int r0 = 0; r0 < cell.rank; r0 += 16) {
            float w[8];
            uint2 f[2];
            int r = r0 + 4 * t;
            lora_load_b_floats(w, cell, o.o0, o.o1, o.live0, o.live1, r);
#pragma unroll
            for (int u = 0; u < 2; u++)
                f[u] = row[u] >= 0 ? lora_load_t(table.spans[s], cell, row[u] + g, r, load)
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
template <typename Load>
__device__ static inline void lora_delta(float (&c)[2][4], const int (&row)[2],
                                         const struct lora_table &table, const struct lora_view &v,
                                         const int (&out)[2], int lane, Load load)
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
        for (int base = 0; base < table.n; base += 32) {
            unsigned todo = lora_touching(table, v.n_parts, p, base, row, lane);
            int next_rank = 0;
            if (!table.plain) {
                struct lora_sums sums;
#pragma unroll
                for (int i = 0; i < 8; i++)
                    sums.c[i / 4][i % 4] = c[i / 4][i % 4];
                sums = lora_steps_planes(sums, row[0], row[1], table, v, p, base, todo, o, lane,
                                         load);
#pragma unroll
                for (int i = 0; i < 8; i++)
                    c[i / 4][i % 4] = sums.c[i / 4][i % 4];
                continue;
            }
            while (todo != 0) {
                if (table.rank <= 16 && __popc(todo) <= 2)
                    lora_steps<2>(c, row, table, v, p, base, todo, next_rank, o, lane, load);
                else
                    lora_steps<8>(c, row, table, v, p, base, todo, next_rank, o, lane, load);
            }
        }
    }
}

/* Asks L2 for the rows of B that outputs [begin, end) of y need, of the table's segments: nobody
 * writes them, so it may run before pdl_wait, and the loads of lora_expand find them there. */
__device__ static inline void lora_prefetch_b(const struct lora_table &table,
                                              const struct lora_view &v, int begin, int end,
                                              int thread, int n_threads)
{
    for (int i = thread; i < table.n * v.n_parts; i += n_threads) {
        int p = i % v.n_parts;
        const struct lora_cell cell = table.cells[i];
        int from = begin - v.part[p].out_begin, to = end - v.part[p].out_begin;
        from = from > 0 ? from : 0;
        to = to < v.part[p].d_out ? to : v.part[p].d_out;
        int row_bytes = cell.rank * (cell.dtype == DTYPE_F32 ? 4 : 2);
        uint32_t bytes = from < to ? (uint32_t)((to - from) * row_bytes) & ~15u : 0;
        uintptr_t at = (cell.b + (uintptr_t)from * (unsigned)row_bytes) & ~(uintptr_t)15;
        if (bytes > 0)
            asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(bytes)
                         : "memory");
    }
}

/* Asks L2 for all of A (and of B, when they are few) of the segments in the linear that comes next:
 * by a warp of each block of a grid, in pieces dealt out to the blocks. */
__device__ static inline void lora_prefetch_next(const struct lora_view &v, int n_segs, int d_in,
                                                 int lane)
{
    const uint32_t PIECE = 16384;
    if (n_segs * v.n_parts > 256)
        return;
    for (int i = lane; i < n_segs * v.n_parts; i += 32) {
        int p = i % v.n_parts;
        struct lora_seg seg = lora_seg_at(v, i / v.n_parts);
        struct lora_entry e = lora_entry_at(v, p, seg.slot);
        if (e.dtype == DTYPE_F32 || e.rank * n_segs > 2048 || seg.n_rows == 0)
            continue; /* more than L2 could keep */
        for (int half = 0; half < 2; half++) {
            uintptr_t at = half == 0 ? e.a.addr : e.b.addr;
            uint32_t n = (uint32_t)e.rank * (uint32_t)(half == 0 ? d_in : v.part[p].d_out) * 2;
            if (half == 1 && n_segs > 4)
                break;
            n &= ~15u;
            uint32_t first = (blockIdx.x + gridDim.x - (unsigned)(i * 8 + half * 4) % gridDim.x) %
                             gridDim.x;
            for (uint32_t piece = first; piece * PIECE < n; piece += gridDim.x) {
                uint32_t bytes = n - piece * PIECE < PIECE ? n - piece * PIECE : PIECE;
                asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at + piece * PIECE),
                             "r"(bytes)
                             : "memory");
            }
        }
    }
}

/* lora.cu */
int lora_open(struct err *err);
/* lora NULL: a view of nothing. */
struct lora_view lora_view_of(struct backend *be, const struct lora_args *lora);
/* Of the linear that comes next, if that is known. */
struct lora_view lora_next_of(struct backend *be, const struct lora_args *lora);
/* t' of all segments. */
void lora_shrink(struct backend *be, const struct lora_view &v, const bf16 *x, int n_rows,
                 int d_in);

#endif
