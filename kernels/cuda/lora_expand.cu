/* lora_expand.cu: y += B t', the second half of the adapters' product as a kernel of its own.
 * lora.cuh has the order of the sums, lora.cu the first half.
 *
 * A warp has a tile of rows for good and takes 32 outputs of it after another; no thread
 * block is in step with another, no warp either. What a tile's segments need stands in a table of
 * the warp. B goes straight to registers, in two batches of steps of 16 ranks that are in flight in
 * turn. The delta is a sum of its own from +0 and is added once: y = bf16(y + delta). Tiles have 8
 * rows; fewer where there would be idle warps, since the adapters of a tile come one after another;
 * 16 where the work is many times the warps, so that B is fetched once for two matrix steps.
 *
 * Which output is which row of the matrix step is free, so it is chosen by the memory: lane (g, t)
 * has outputs 8 t .. 8 t + 7 of row g as one 16-byte word of y, whose four pairs, each transposed
 * over the warp, are the step's accumulators.
 *
 * Two numbers (64 rows, 64 adapters of 16 ranks, 4,096 outputs): 8.4 MB of B, 2.7 us at 3.1 TB/s;
 * 17 MFLOP. */
#include "kernels/cuda/lora.cuh"

enum {
    EXPAND_WARPS = 8,
    EXPAND_OUTS = 32,
    EXPAND_SEGS = 32, /* of a tile of rows; more take the slow way */
};

struct expand_cell {
    uintptr_t b;
    int32_t rank, t_at;
};

struct expand_args {
    bf16 *y;
    int n_rows, d_out;
    int tile_rows; /* at most 8 NT */
    struct lora_view v;
};

/* What a warp is at: some rows, a part, and the segments that touch the rows. */
struct expand_place {
    struct expand_cell *cells; /* shared memory, [EXPAND_SEGS] */
    struct lora_span *spans;
    int n; /* cells; ranks above 0 */
    int row0, n_rows, part;
    int first, end; /* segments */
    unsigned rows;  /* bit i: row0 + i is in a segment */
};

/* Some steps of 16 ranks by 32 outputs, on their way. */
template <int NT> struct expand_batch {
    static constexpr int STEPS = NT == 1 ? 4 : 2;
    uint32_t b[STEPS][8];
    uint2 t[STEPS][NT];
    uint4 y[NT];
    int n, cell, rank0; /* steps; where they begin */
    unsigned touched;   /* bit j * NT + i: step j has rows of tile i of 8 rows */
    int group;          /* of outputs */
    bool last;          /* of its group */
};

struct expand_cursor {
    int group, step, n_groups; /* of the part's outputs */
    int cell, rank0;
};

/* Output (of 32) that row i of step quarter q is; the word of lane (g, t) holds 8 t .. 8 t + 7. */
__device__ static inline int output_at(int q, int i)
{
    return 8 * (i >> 1) + 2 * q + (i & 1);
}

/* Which segments touch the place's rows. */
__device__ static inline void place_find(struct expand_place &p, const struct lora_view &v,
                                         int n_segs, int lane)
{
    p.first = n_segs;
    p.end = 0;
    for (int s0 = n_segs > 512 ? lora_first_seg(v, n_segs, p.row0) : 0; s0 < n_segs; s0 += 128) {
        int begin[4], end[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int s = s0 + 32 * i + lane;
            struct lora_seg seg = {INT32_MAX, 0, 0, 0};
            if (s < n_segs)
                seg = lora_seg_at(v, s);
            begin[i] = seg.row_begin;
            end[i] = seg.n_rows == 0 ? 0 : seg.row_begin + seg.n_rows;
        }
        bool more = true;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned hit = __ballot_sync(0xffffffffu,
                                         begin[i] < p.row0 + p.n_rows && end[i] > p.row0);
            more = more && !__any_sync(0xffffffffu, begin[i] >= p.row0 + p.n_rows);
            if (hit == 0)
                continue;
            if (p.end == 0)
                p.first = s0 + 32 * i + __ffs((int)hit) - 1;
            p.end = s0 + 32 * i + 32 - __clz((int)hit);
        }
        if (!more)
            break;
    }
}

/* Gathers the cells of a part. False: they need the slow way. */
__device__ static inline bool place_fill(struct expand_place &p, const struct lora_view &v,
                                         int lane)
{
    p.n = 0;
    p.rows = 0;
    if (p.end - p.first > EXPAND_SEGS)
        return false;
    struct lora_seg seg = {0, 0, 0, 0};
    struct lora_entry e = {};
    int s = p.first + lane, t_at = 0;
    if (s < p.end)
        seg = lora_seg_at(v, s);
    if (seg.n_rows > 0) {
        e = lora_entry_at(v, p.part, seg.slot);
        t_at = lora_t_at(v, s, seg, p.part);
    }
    unsigned live = __ballot_sync(0xffffffffu, e.rank > 0);
    bool plain = e.dtype == DTYPE_BF16 && e.rank % 4 == 0 && e.b.addr % 8 == 0;
    if (__any_sync(0xffffffffu, e.rank > 0 && !plain))
        return false;
    int from = seg.row_begin - p.row0, to = from + seg.n_rows;
    unsigned rows = 0;
    if (e.rank > 0)
        rows = (1u << (to < p.n_rows ? to : p.n_rows)) - (1u << (from > 0 ? from : 0));
    p.rows = __reduce_or_sync(0xffffffffu, rows);
    p.n = __popc(live);
    __syncwarp(); /* the last cells have been read */
    if (e.rank > 0) {
        int at = __popc(live & ((1u << lane) - 1));
        p.cells[at] = {e.b.addr, e.rank, t_at};
        p.spans[at] = {seg.row_begin, seg.row_begin + seg.n_rows};
    }
    __syncwarp();
    return true;
}

/* Eight bytes of B. The rest of their line is wanted soon: memory is read by lines, not by pieces
 * of 32 bytes (rank 64: 7 % less time). */
__device__ static inline uint2 load_of_line(const char *from)
{
    uint2 v;
    asm volatile("ld.global.nc.L2::128B.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
    return v;
}

/* The next steps' B; what an earlier kernel wrote comes with batch_load_rest. */
template <int NT>
__device__ static inline void batch_load_b(struct expand_batch<NT> &q, struct expand_cursor &at,
                                           const struct expand_place &p, int d_out, int lane)
{
    int g = lane >> 2, t = lane & 3;
    q.n = 0;
    q.group = at.group;
    q.cell = at.cell;
    q.rank0 = at.rank0;
    q.last = false;
    if (at.group >= at.n_groups)
        return;
    int out = at.group * EXPAND_OUTS + output_at(0, g);
#pragma unroll
    for (int j = 0; j < expand_batch<NT>::STEPS; j++) {
        if (q.last)
            continue; /* the whole warp agrees */
        q.n = j + 1;
        const struct expand_cell cell = p.cells[at.cell];
        const char *b = reinterpret_cast<const char *>(cell.b) +
                        ((uint32_t)out * (uint32_t)cell.rank + (uint32_t)(at.rank0 + 4 * t)) * 2ull;
        bool live = at.rank0 + 4 * t < cell.rank;
#pragma unroll
        for (int h = 0; h < 4; h++) {
            uint2 w = make_uint2(0, 0);
            if (live && out + 2 * h < d_out)
                w = load_of_line(b + (uint32_t)(4 * h * cell.rank));
            q.b[j][2 * h] = w.x;
            q.b[j][2 * h + 1] = w.y;
        }
        at.rank0 += 16;
        if (at.rank0 < cell.rank)
            continue;
        at.rank0 = 0;
        if (++at.cell == p.n) {
            at.cell = 0;
            at.group += at.step;
            q.last = true;
        }
    }
}

/* i: which of the place's rows. */
__device__ static inline const bf16 *t_at(const struct lora_view &v, const struct expand_place &p,
                                          int i, int at, int lane)
{
    return v.t + (int64_t)(p.row0 + i) * v.t_stride + at + 4 * (lane & 3);
}

/* Where the lane's word of row i of y begins, and how many of its outputs there are. */
__device__ static inline bf16 *word_at(int *n, const struct expand_args &a,
                                       const struct expand_place &p, int i, int group, int lane)
{
    int out = group * EXPAND_OUTS + 8 * (lane & 3), left = a.v.part[p.part].d_out - out;
    *n = p.rows >> i & 1 ? left : 0;
    return a.y + (int64_t)(p.row0 + i) * a.d_out + a.v.part[p.part].out_begin + out;
}

/* WORDS: all that begins and ends in y does so at multiples of 16 bytes. */
template <bool WORDS>
__device__ static inline uint4 load_word(const struct expand_args &a, const struct expand_place &p,
                                         int i, int group, int lane)
{
    uint4 w = make_uint4(0, 0, 0, 0);
    int n;
    const bf16 *y = word_at(&n, a, p, i, group, lane);
    if (WORDS)
        return n > 0 ? __ldcg(reinterpret_cast<const uint4 *>(y)) : w;
    const unsigned short *h = reinterpret_cast<const unsigned short *>(y);
    uint32_t part[8];
#pragma unroll
    for (int e = 0; e < 8; e++)
        part[e] = e < n ? __ldcg(h + e) : 0;
    w.x = part[0] | part[1] << 16;
    w.y = part[2] | part[3] << 16;
    w.z = part[4] | part[5] << 16;
    w.w = part[6] | part[7] << 16;
    return w;
}

template <bool WORDS>
__device__ static inline void store_word(const struct expand_args &a, const struct expand_place &p,
                                         int i, int group, int lane, uint4 w)
{
    int n;
    bf16 *y = word_at(&n, a, p, i, group, lane);
    if (WORDS) {
        if (n > 0)
            *reinterpret_cast<uint4 *>(y) = w;
        return;
    }
    unsigned short *h = reinterpret_cast<unsigned short *>(y);
    const uint32_t part[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int e = 0; e < 8; e++)
        if (e < n)
            h[e] = (unsigned short)(part[e / 2] >> e % 2 * 16);
}

template <bool WORDS, int NT>
__device__ static inline void batch_load_rest(struct expand_batch<NT> &q,
                                              const struct expand_args &a,
                                              const struct expand_place &p, int lane)
{
    int cell = q.cell, rank0 = q.rank0;
    q.touched = 0;
#pragma unroll
    for (int j = 0; j < expand_batch<NT>::STEPS; j++) {
        if (j >= q.n)
            continue; /* the whole warp agrees */
        const struct expand_cell c = p.cells[cell];
        int begin = p.spans[cell].row_begin - p.row0, end = p.spans[cell].row_end - p.row0;
        end = end < p.n_rows ? end : p.n_rows;
#pragma unroll
        for (int i = 0; i < NT; i++) {
            int r = 8 * i + (lane >> 2);
            q.t[j][i] = make_uint2(0, 0);
            if (r >= begin && r < end && rank0 + 4 * (lane & 3) < c.rank)
                q.t[j][i] = __ldcg(
                    reinterpret_cast<const uint2 *>(t_at(a.v, p, r, c.t_at + rank0, lane)));
            q.touched |= (unsigned)(begin < 8 * i + 8 && end > 8 * i) << (j * NT + i);
        }
        rank0 += 16;
        if (rank0 >= c.rank) {
            rank0 = 0;
            cell++;
        }
    }
#pragma unroll
    for (int i = 0; i < NT; i++)
        if (q.last)
            q.y[i] = load_word<WORDS>(a, p, 8 * i + (lane >> 2), q.group, lane);
}

/* y's word plus the deltas, which are put back to 0. */
__device__ static inline uint4 add_deltas(uint4 y, float (&c)[2][4])
{
    uint32_t w[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int h = 0; h < 4; h++) {
        float *delta = &c[h / 2][h % 2 * 2];
        uint32_t was = transposed(w[h]);
        w[h] = transposed(pack_bf16(__uint_as_float(was << 16) + delta[0],
                                    __uint_as_float(was & 0xffff0000u) + delta[1]));
        delta[0] = delta[1] = 0;
    }
    return make_uint4(w[0], w[1], w[2], w[3]);
}

template <bool WORDS, int NT>
__device__ static inline void batch_finish(const struct expand_batch<NT> &q, float (&c)[NT][2][4],
                                           const struct expand_args &a,
                                           const struct expand_place &p, int lane)
{
#pragma unroll
    for (int j = 0; j < expand_batch<NT>::STEPS; j++) {
        const uint32_t *b = q.b[j];
#pragma unroll
        for (int i = 0; i < NT; i++) {
            if (!(q.touched >> (j * NT + i) & 1))
                continue; /* the whole warp agrees */
            mma_bf16(c[i][0], b[0], b[2], b[1], b[3], q.t[j][i].x, q.t[j][i].y);
            mma_bf16(c[i][1], b[4], b[6], b[5], b[7], q.t[j][i].x, q.t[j][i].y);
        }
    }
#pragma unroll
    for (int i = 0; i < NT; i++)
        if (q.last)
            store_word<WORDS>(a, p, 8 * i + (lane >> 2), q.group, lane, add_deltas(q.y[i], c[i]));
}

/* A part of the place, step by step: many segments, any dtype, any rank. */
__device__ static void __noinline__ expand_slowly(const struct expand_args &a, int row0, int part,
                                                  int first, int end, int group, int step, int lane)
{
    struct expand_place p = {nullptr, nullptr, 0, row0, a.tile_rows, part, first, end, 0};
    int g = lane >> 2, t = lane & 3, d_out = a.v.part[part].d_out;
    int n_groups = (d_out + EXPAND_OUTS - 1) / EXPAND_OUTS;
    int n_tiles = (a.tile_rows + 7) / 8;
#pragma unroll 1
    for (int u = group * n_tiles; u < n_groups * n_tiles;
         u += u % n_tiles + 1 < n_tiles ? 1 : (step - 1) * n_tiles + 1) {
        int r0 = u % n_tiles * 8 + g, row = row0 + r0;
        group = u / n_tiles;
        float c[2][4] = {};
        bool mine = false;
#pragma unroll 1
        for (int s = p.first; s < p.end; s++) {
            struct lora_seg seg = lora_seg_at(a.v, s);
            if (seg.n_rows == 0)
                continue;
            struct lora_entry e = lora_entry_at(a.v, p.part, seg.slot);
            int at = lora_t_at(a.v, s, seg, p.part);
            bool in = r0 < p.n_rows && row >= seg.row_begin && row < seg.row_begin + seg.n_rows;
            mine = mine || (in && e.rank > 0);
#pragma unroll 1
            for (int r = 0; r < e.rank; r += 16) {
                float w[4][4];
#pragma unroll
                for (int h = 0; h < 4; h++) {
                    int out = group * EXPAND_OUTS + output_at(h, g);
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        w[h][i] = out < d_out && r + 4 * t + i < e.rank
                                      ? load_as_float(reinterpret_cast<const void *>(e.b.addr),
                                                      (int64_t)out * e.rank + r + 4 * t + i,
                                                      e.dtype)
                                      : 0;
                }
                uint2 f = make_uint2(0, 0);
                if (in && r + 4 * t < e.rank)
                    f = __ldcg(reinterpret_cast<const uint2 *>(t_at(a.v, p, r0, at + r, lane)));
                for (int plane = 0; plane < planes_of(e.dtype); plane++) {
                    uint32_t b[8];
#pragma unroll
                    for (int h = 0; h < 4; h++) {
                        b[2 * h] = take_plane(w[h][0], w[h][1]);
                        b[2 * h + 1] = take_plane(w[h][2], w[h][3]);
                    }
                    mma_bf16(c[0], b[0], b[2], b[1], b[3], f.x, f.y);
                    mma_bf16(c[1], b[4], b[6], b[5], b[7], f.x, f.y);
                }
            }
        }
        p.rows = (unsigned)mine << r0; /* this lane's own */
        store_word<false>(a, p, r0, group, lane,
                          add_deltas(load_word<false>(a, p, r0, group, lane), c));
    }
}

template <bool WORDS, int NT>
__global__ static void __maxnreg__(NT == 1 ? 160 : 128)
    expand_kernel(const __grid_constant__ struct expand_args a)
{
    __shared__ struct expand_cell cells[EXPAND_WARPS][EXPAND_SEGS];
    __shared__ struct lora_span spans[EXPAND_WARPS][EXPAND_SEGS];
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x & 31;
    int n_tiles = (a.n_rows + a.tile_rows - 1) / a.tile_rows,
        n_warps = (int)gridDim.x * EXPAND_WARPS;
    /* The warps of a block share B if they can; else they go where there is room. */
    int me = n_tiles >= EXPAND_WARPS ? (int)blockIdx.x * EXPAND_WARPS + warp
                                     : warp * (int)gridDim.x + (int)blockIdx.x;
    int step = n_warps < n_tiles ? 1 : n_warps / n_tiles; /* warps with the same rows */
    bool waited = false;
    pdl_trigger();
    int n_segs = lora_n_segs(a.v);
    struct expand_place p = {};
    p.cells = cells[warp];
    p.spans = spans[warp];
    p.n_rows = a.tile_rows;
    for (int tile = me % n_tiles; tile < n_tiles && me / n_tiles < step && n_segs > 0;
         tile += n_warps) {
        int n_before = 0; /* groups of earlier parts */
        p.row0 = a.tile_rows * tile;
        place_find(p, a.v, n_segs, lane);
        for (p.part = 0; p.part < a.v.n_parts && p.end > 0; p.part++) {
            int d_out = a.v.part[p.part].d_out;
            struct expand_cursor at = {};
            at.step = step;
            at.n_groups = (d_out + EXPAND_OUTS - 1) / EXPAND_OUTS;
            at.group = (me / n_tiles + step - n_before % step) % step;
            n_before += at.n_groups;
            if (at.group >= at.n_groups)
                continue;
            if (!place_fill(p, a.v, lane)) {
                if (!waited)
                    pdl_wait();
                waited = true;
                expand_slowly(a, p.row0, p.part, p.first, p.end, at.group, step, lane);
                continue;
            }
            if (p.n == 0)
                continue;
            struct expand_batch<NT> one, two;
            float c[NT][2][4] = {};
            batch_load_b(one, at, p, d_out, lane);
            batch_load_b(two, at, p, d_out, lane);
            if (!waited)
                pdl_wait();
            waited = true;
            batch_load_rest<WORDS, NT>(one, a, p, lane);
            batch_load_rest<WORDS, NT>(two, a, p, lane);
#pragma unroll 1
            while (one.n > 0) {
                batch_finish<WORDS, NT>(one, c, a, p, lane);
                batch_load_b(one, at, p, d_out, lane);
                batch_load_rest<WORDS, NT>(one, a, p, lane);
                batch_finish<WORDS, NT>(two, c, a, p, lane);
                batch_load_b(two, at, p, d_out, lane);
                batch_load_rest<WORDS, NT>(two, a, p, lane);
            }
        }
    }
    if (!waited)
        pdl_wait();
}

void cuda_sgmv_expand(struct backend *be, struct devptr y, struct devptr t, int n_rows,
                      int d_out_total, const struct lora_args *lora)
{
    (void)t;
    if (n_rows == 0 || lora == nullptr || lora->n_parts == 0)
        return;
    struct expand_args a = {dev<bf16>(y), n_rows, d_out_total, 8, lora_view_of(be, lora)};
    bool words = y.addr % 16 == 0 && d_out_total % 8 == 0;
    int n_groups = 0, n_warps = be->n_multiprocessors * EXPAND_WARPS;
    for (int p = 0; p < a.v.n_parts; p++) {
        words = words && a.v.part[p].out_begin % 8 == 0 && a.v.part[p].d_out % 8 == 0;
        n_groups += ceil_div(a.v.part[p].d_out, EXPAND_OUTS);
    }
    /* Rows of one tile under different adapters are so many more bytes for its warp. */
    while (a.tile_rows > 1 && 2 * n_groups * ceil_div(n_rows, a.tile_rows) <= n_warps)
        a.tile_rows /= 2;
    int64_t n = (int64_t)n_groups * ceil_div(n_rows, a.tile_rows);
    bool many = n >= 4 * n_warps;
    if (many)
        a.tile_rows = 16;
    int most = be->n_multiprocessors * (many ? 2 : 1);
    int n_blocks = n < most ? (int)n : most;
    launch(be, "sgmv_expand",
           many    ? words ? expand_kernel<true, 2> : expand_kernel<false, 2>
              : words ? expand_kernel<true, 1>
                   : expand_kernel<false, 1>,
           dim3((unsigned)n_blocks), EXPAND_WARPS * 32, 0, a);
}
