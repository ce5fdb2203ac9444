/* lora_expand.cu: y += B t', the second half of the adapters' product as a kernel of its own; or
 * the deltas B t' alone, for a product that comes behind it. lora.cuh has the order of the sums,
 * lora.cu the first half.
 *
 * A thread block has a tile of rows and a range of outputs, cut evenly over the blocks that have
 * the same rows; no block is in step with another. What the tile's segments need stands in a table.
 * The range goes by in groups of outputs, a group segment after segment; a segment's B for a
 * group's outputs is one piece of memory:
 *
 *   pieces  (group 0, segment 0) (group 0, segment 1) .. (group 1, segment 0) (group 1, segment 1)
 *
 *   the producer's warp   the table; then pieces into a ring in shared memory, a bulk copy each,
 *                         the first before t' is there
 *   eight warps           16 M outputs of each group; t' is brought into shared memory once, y
 *                         some groups ahead
 *
 * The delta is a sum of its own from +0 and is added once: y = bf16(y + delta). Deltas alone are
 * stored as they are, f32, for all rows and parts, 0 where there is no adapter.
 *
 * Ranks may differ. Pieces lie in the ring at their own size, and groups are cut for the mean rank
 * as long as two of the largest fit. Of deltas, a table of what each tile has to fetch says whether
 * all take about as long; if not (one rank of 256 among others of 16), the blocks share the tiles
 * out by that (128 rows, four products of an 8B layer: 430 us instead of 710).
 *
 * A piece costs a warp some 300 cycles whatever its size (small ones are taken two at a time), so
 * groups are as large as the ring lets them be. A tile's adapters come one after another, so its
 * rows are the fewer, the more of them have adapters of their own; rows that share one want large
 * tiles, for which B is fetched once. Host code weighs that up, and cuts the ring by what a block
 * has to fetch: the less shared memory a kernel takes, the earlier the ones after it can start.
 *
 * Which output is which row of the matrix step is free, so it is chosen by the memory: of a warp's
 * 16 M outputs lane (g, t) has 4 M t .. 4 M t + 4 M - 1 of row g, together in y, whose 2 M pairs,
 * each transposed over the warp, are the step's accumulators.
 *
 * Two numbers (64 rows, 64 adapters, H200): rank 16, 4,096 outputs: 8.4 MB of B, 2 us at 4.3 TB/s,
 * all of it in the rings at once; rank 64, 14,336 outputs: 117 MB, 27 us, in which each
 * multiprocessor takes 19 bytes a cycle: a piece of 16 KB in 860 cycles.
 *
 * lora_expand.cuh has what a block does and how B comes to it; here is what is done with it. */
#include "kernels/cuda/lora_expand.cuh"

/* ---- the warps that multiply
 * ------------------------------------------------------------------------------ */

/* Copies the tile's t' to shared memory, by all that multiply. Rows lie an odd number of steps
 * apart there, so that the reads of four of them meet no bank twice. */
template <int NT>
__device__ static inline void load_t(char *to, const struct expand_place &p,
                                     const struct lora_view &v, int warp, int lane)
{
    int n_words = (p.t_end - p.t_begin) / 4; /* of four ranks */
    const bf16 *from = v.t + (int64_t)(p.row0 + warp) * v.t_stride + p.t_begin;
    to += warp * p.t_pitch;
#pragma unroll 1
    for (int at = lane; at < n_words; at += 32) {
        uint2 w[NT];
#pragma unroll
        for (int i = 0; i < NT; i++)
            if (p.rows >> (8 * i + warp) & 1)
                w[i] = __ldcg(
                    reinterpret_cast<const uint2 *>(from + (int64_t)(8 * i) * v.t_stride + 4 * at));
#pragma unroll
        for (int i = 0; i < NT; i++)
            if (p.rows >> (8 * i + warp) & 1)
                *reinterpret_cast<uint2 *>(to + 8 * i * p.t_pitch + 8 * at) = w[i];
    }
    named_sync(1, EXPAND_WARPS * 32);
}
static_assert(EXPAND_WARPS == 8, "a warp has one of eight rows");

/* Four ranks of row r of the tile, which begin at `at` in its t'. */
__device__ static inline uint2 t_at(const char *t, const struct expand_place &p,
                                    const struct lora_view &v, int r, int at)
{
    if (p.t_pitch > 0)
        return *reinterpret_cast<const uint2 *>(t + r * p.t_pitch + 2 * (at - p.t_begin));
    return __ldcg(reinterpret_cast<const uint2 *>(v.t + (int64_t)(p.row0 + r) * v.t_stride + at));
}

/* Adds a cell's part of a warp's deltas of a group, whose B is at b. Ranks that aren't there count
 * as 0, whatever lies in their place; outputs that aren't there are not stored. */
template <int NT, int M>
__device__ static inline void piece_add(float (&c)[NT][M][4], const char *b, const char *t_copy,
                                        const struct expand_cell &e, const struct expand_place &p,
                                        const struct lora_view &v, int lane)
{
    int g = lane >> 2, t = lane & 3, rank = e.rank;
    int pitch = 4 * rank; /* bytes from half to half */
    b += output_at<M>(0, g) * 2 * rank + 8 * t;
    /* Outputs may lie 128 bytes apart, all in the same banks. So half of the lanes read two steps
     * the other way round. */
    bool swapped = g >> 1 & 1;
    int first = swapped ? EXPAND_STEP : 0, second = EXPAND_STEP - first;
    int r = 0;
#pragma unroll 1
    for (; r + 16 < rank; r += 32, b += 2 * EXPAND_STEP) {
        bool live = r + 16 + 4 * t < rank;
        uint2 one[2 * M], two[2 * M];
#pragma unroll
        for (int q = 0; q < 2 * M; q++) {
            uint2 x = make_uint2(0, 0), y = x;
            if (live || !swapped)
                x = *reinterpret_cast<const uint2 *>(b + q * pitch + first);
            if (live || swapped)
                y = *reinterpret_cast<const uint2 *>(b + q * pitch + second);
            one[q] = swapped ? y : x;
            two[q] = swapped ? x : y;
        }
        uint2 f[NT], h[NT];
#pragma unroll
        for (int i = 0; i < NT; i++) {
            int row = 8 * i + g;
            bool in = row >= e.begin && row < e.end;
            f[i] = h[i] = make_uint2(0, 0);
            if (in)
                f[i] = t_at(t_copy, p, v, row, e.t_at + r + 4 * t);
            if (in && live)
                h[i] = t_at(t_copy, p, v, row, e.t_at + r + 16 + 4 * t);
        }
#pragma unroll
        for (int i = 0; i < NT; i++) {
#pragma unroll
            for (int m = 0; m < M; m++)
                mma_bf16(c[i][m], one[2 * m].x, one[2 * m + 1].x, one[2 * m].y, one[2 * m + 1].y,
                         f[i].x, f[i].y);
#pragma unroll
            for (int m = 0; m < M; m++)
                mma_bf16(c[i][m], two[2 * m].x, two[2 * m + 1].x, two[2 * m].y, two[2 * m + 1].y,
                         h[i].x, h[i].y);
        }
    }
    if (r >= rank)
        return;
    bool live = r + 4 * t < rank;
    uint2 one[2 * M];
#pragma unroll
    for (int q = 0; q < 2 * M; q++) {
        one[q] = make_uint2(0, 0);
        if (live)
            one[q] = *reinterpret_cast<const uint2 *>(b + q * pitch);
    }
    uint2 f[NT];
#pragma unroll
    for (int i = 0; i < NT; i++) {
        int row = 8 * i + g;
        f[i] = make_uint2(0, 0);
        if (row >= e.begin && row < e.end && live)
            f[i] = t_at(t_copy, p, v, row, e.t_at + r + 4 * t);
    }
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int m = 0; m < M; m++)
            mma_bf16(c[i][m], one[2 * m].x, one[2 * m + 1].x, one[2 * m].y, one[2 * m + 1].y,
                     f[i].x, f[i].y);
}

/* The same of two cells of up to 16 ranks, in half the time: each would be a chain of a wait, a
 * read and a matrix step. */
template <int M>
__device__ static inline void pieces_add(float (&c)[M][4], const char *const (&b)[2],
                                         const char *t_copy, const struct expand_cell (&e)[2],
                                         const struct expand_place &p, const struct lora_view &v,
                                         int lane)
{
    int g = lane >> 2, t = lane & 3;
    uint2 w[2][2 * M], f[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int rank = e[i].rank;
        const char *from = b[i] + output_at<M>(0, g) * 2 * rank + 8 * t;
        bool live = 4 * t < rank;
#pragma unroll
        for (int q = 0; q < 2 * M; q++) {
            w[i][q] = make_uint2(0, 0);
            if (live)
                w[i][q] = *reinterpret_cast<const uint2 *>(from + q * 4 * rank);
        }
        f[i] = make_uint2(0, 0);
        if (g >= e[i].begin && g < e[i].end && live)
            f[i] = t_at(t_copy, p, v, g, e[i].t_at + 4 * t);
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int m = 0; m < M; m++)
            mma_bf16(c[m], w[i][2 * m].x, w[i][2 * m + 1].x, w[i][2 * m].y, w[i][2 * m + 1].y,
                     f[i].x, f[i].y);
}

/* Where the lane's 4 M outputs of row i of a group begin in y, and how many of them there are. */
template <int M>
__device__ static inline bf16 *outputs_at(int *n, const struct expand_args &a,
                                          const struct expand_place &p, int i, int out, int lane)
{
    out += 4 * M * (lane & 3);
    *n = p.rows >> i & 1 ? p.out_end - out : 0;
    return a.y + (int64_t)(p.row0 + i) * a.d_out + a.v.part[p.part].out_begin + out;
}

/* Asks for a warp's outputs of a group, as the lanes will take them: [NT, 32 lanes, 4 M outputs].
 */
template <int NT, int M>
__device__ static inline void ask_outputs(char *to, const struct expand_args &a,
                                          const struct expand_place &p, int out, int lane)
{
#pragma unroll
    for (int i = 0; i < NT; i++) {
        int n;
        const bf16 *y = outputs_at<M>(&n, a, p, 8 * i + (lane >> 2), out, lane);
#pragma unroll
        for (int e = 0; e < 4 * M; e += 8) /* M = 1: for the lane behind, too */
            if (e < n && (M > 1 || lane % 2 == 0))
                copy_16(to + (i * 32 + lane) * 8 * M + 2 * e, y + e);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until of what the warp has asked for all but the last N groups are there. */
template <int N> __device__ static inline void wait_outputs()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
    __syncwarp();
}

/* Adds the deltas, which are put back to 0, to outputs of a row of each n8 tile. All tiles' at
 * once: one is a chain of five dependent steps. */
template <int NT, int M>
__device__ static inline void add_deltas(uint32_t (&w)[NT][2 * M], float (&c)[NT][M][4])
{
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int q = 0; q < 2 * M; q++)
            w[i][q] = transposed(w[i][q]);
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int q = 0; q < 2 * M; q++) {
            float *delta = &c[i][q / 2][q % 2 * 2];
            w[i][q] = pack_bf16(__uint_as_float(w[i][q] << 16) + delta[0],
                                __uint_as_float(w[i][q] & 0xffff0000u) + delta[1]);
            delta[0] = delta[1] = 0;
        }
#pragma unroll
    for (int i = 0; i < NT; i++)
#pragma unroll
        for (int q = 0; q < 2 * M; q++)
            w[i][q] = transposed(w[i][q]);
}

/* y of a warp's outputs of a group, which have come to `from`. */
template <int NT, int M>
__device__ static inline void finish_outputs(const char *from, float (&c)[NT][M][4],
                                             const struct expand_args &a,
                                             const struct expand_place &p, int out, int lane)
{
    uint32_t w[NT][2 * M];
#pragma unroll
    for (int i = 0; i < NT; i++) {
        const char *at = from + (i * 32 + lane) * 8 * M;
        if (M == 1) {
            uint2 x = *reinterpret_cast<const uint2 *>(at);
            w[i][0] = x.x;
            w[i][1] = x.y;
        }
#pragma unroll
        for (int e = 0; e + 3 < 2 * M; e += 4) {
            uint4 x = *reinterpret_cast<const uint4 *>(at + 4 * e);
            w[i][e] = x.x;
            w[i][e + 1] = x.y;
            w[i][e + 2] = x.z;
            w[i][e + 3] = x.w;
        }
    }
    add_deltas<NT, M>(w, c);
#pragma unroll
    for (int i = 0; i < NT; i++) {
        int n;
        bf16 *y = outputs_at<M>(&n, a, p, 8 * i + (lane >> 2), out, lane);
        if (M == 1 && n > 0)
            *reinterpret_cast<uint2 *>(y) = make_uint2(w[i][0], w[i][1]);
#pragma unroll
        for (int e = 0; e + 3 < 2 * M; e += 4)
            if (2 * e < n)
                *reinterpret_cast<uint4 *>(y + 2 * e) = make_uint4(w[i][e], w[i][e + 1],
                                                                   w[i][e + 2], w[i][e + 3]);
    }
}

/* Where the lane's 4 M outputs of row i begin among the deltas, and how many of them there are: of
 * all rows, also of those that have no adapter. */
template <int M>
__device__ static inline float *deltas_at(int *n, const struct expand_args &a,
                                          const struct expand_place &p, int i, int out, int lane)
{
    out += 4 * M * (lane & 3);
    *n = i < a.tile_rows && p.row0 + i < a.n_rows ? p.out_end - out : 0;
    return a.deltas + (int64_t)(p.row0 + i) * a.d_out + a.v.part[p.part].out_begin + out;
}

/* c[q], two rows of an output, become w: four M outputs of a row; c is put back to 0. */
template <int M> __device__ static inline void take_deltas(float (&w)[4 * M], float (&c)[M][4])
{
    uint32_t low[2 * M], high[2 * M];
#pragma unroll
    for (int q = 0; q < 2 * M; q++) {
        float *delta = &c[q / 2][q % 2 * 2];
        uint32_t one = __float_as_uint(delta[0]), two = __float_as_uint(delta[1]);
        low[q] = transposed(__byte_perm(one, two, 0x5410));
        high[q] = transposed(__byte_perm(one, two, 0x7632));
        delta[0] = delta[1] = 0;
    }
#pragma unroll
    for (int q = 0; q < 2 * M; q++) {
        w[2 * q] = __uint_as_float(__byte_perm(low[q], high[q], 0x5410));
        w[2 * q + 1] = __uint_as_float(__byte_perm(low[q], high[q], 0x7632));
    }
}

/* Stores a warp's deltas of a group. */
template <int NT, int M>
__device__ static inline void store_deltas(float (&c)[NT][M][4], const struct expand_args &a,
                                           const struct expand_place &p, int out, int lane)
{
#pragma unroll
    for (int i = 0; i < NT; i++) {
        float w[4 * M];
        int n;
        float *to = deltas_at<M>(&n, a, p, 8 * i + (lane >> 2), out, lane);
        take_deltas<M>(w, c[i]);
#pragma unroll
        for (int e = 0; e < 4 * M; e += 4)
            if (e < n)
                *reinterpret_cast<float4 *>(to + e) = make_float4(w[e], w[e + 1], w[e + 2],
                                                                  w[e + 3]);
    }
}

/* Of a place without adapters. */
__device__ static inline void clear_deltas(const struct expand_args &a,
                                           const struct expand_place &p, int warp, int lane)
{
#pragma unroll 1
    for (int i = warp; i < p.n_rows && p.row0 + i < a.n_rows; i += EXPAND_WARPS) {
        float *to = a.deltas + (int64_t)(p.row0 + i) * a.d_out + a.v.part[p.part].out_begin;
#pragma unroll 1
        for (int o = p.out + lane; o < p.out_end; o += 32)
            to[o] = 0;
    }
}

/* The place's range, by a warp; it has M units of a group, or none. */
template <int NT, int M, bool DELTAS>
__device__ static inline void expand_range(const struct expand_args &a, expand_memory<NT> &m,
                                           const char *ring, const struct expand_place &p,
                                           struct expand_ring &r, int warp, int lane)
{
    constexpr int AHEAD = EXPAND_Y / M, Y_BYTES = expand_memory<NT>::Y_BYTES / AHEAD;
    int mine = warp * M * EXPAND_UNIT; /* where a group's begin */
    int out = mine < p.group_outs ? p.out + mine : p.out_end;
#pragma unroll
    for (int i = 0; i < AHEAD && !DELTAS; i++)
        ask_outputs<NT, M>(m.y[warp] + i * Y_BYTES, a, p, out + i * p.group_outs, lane);
    if (p.t_pitch > 0)
        load_t<NT>(m.t, p, a.v, warp, lane);
    float c[NT][M][4] = {};
    int turn = 0;
    r.at = 0;
    auto wait = [&](const struct expand_cell &e) {
        int bytes = p.group_outs * e.rank * 2;
        barrier_wait(&m.full[r.slot()], r.phase());
        return ring + r.next(bytes, a.ring_bytes) + mine * e.rank * 2;
    };
#pragma unroll 1
    for (int group = 0; group < p.n_groups; group++, out += p.group_outs) {
#pragma unroll 1
        for (int cell = 0; cell < p.n;) {
            struct expand_cell e[2] = {cell_at(m.cells, cell), {}};
            if (cell + 1 < p.n)
                e[1] = cell_at(m.cells, cell + 1);
            unsigned slot = r.slot();
            const char *const one = wait(e[0]);
            if (NT == 1 && M <= 2 && p.pairs && cell + 1 < p.n && e[0].rank <= 16 &&
                e[1].rank <= 16) {
                unsigned second = r.slot();
                const char *const b[2] = {one, wait(e[1])};
                if (out < p.out_end)
                    pieces_add<M>(c[0], b, m.t, e, p, a.v, lane);
                barrier_arrive(&m.free[second]);
                cell++;
            } else if (out < p.out_end) {
                piece_add<NT, M>(c, one, m.t, e[0], p, a.v, lane);
            }
            barrier_arrive(&m.free[slot]);
            cell++;
        }
        if (out >= p.out_end)
            continue; /* nothing was asked for, and nothing will be */
        if (DELTAS) {
            store_deltas<NT, M>(c, a, p, out, lane);
            continue;
        }
        char *y = m.y[warp] + turn * Y_BYTES;
        wait_outputs<AHEAD - 1>();
        finish_outputs<NT, M>(y, c, a, p, out, lane);
        __syncwarp(); /* all have read y */
        ask_outputs<NT, M>(y, a, p, out + AHEAD * p.group_outs, lane);
        turn = turn + 1 == AHEAD ? 0 : turn + 1;
    }
}

/* A warp's share of the place's range, step by step: many segments, any dtype, any rank, any
 * place of y. */
template <bool DELTAS>
__device__ static void __noinline__ expand_slowly(const struct expand_args &a, int row0, int part,
                                                  int first_seg, int end_seg, int out, int out_end,
                                                  int lane)
{
    constexpr int M = 2;
    struct expand_place p = {};
    p.row0 = row0;
    p.part = part;
    p.out_end = out_end;
    int g = lane >> 2, t = lane & 3;
#pragma unroll 1
    for (int r0 = g; out < out_end; r0 += 8) {
        if (r0 - g >= a.tile_rows) { /* the next group, from the first rows on */
            r0 = g - 8;
            out += M * EXPAND_UNIT;
            continue;
        }
        int row = row0 + r0;
        float c[1][M][4] = {};
        bool mine = false;
#pragma unroll 1
        for (int s = first_seg; s < end_seg; s++) {
            struct lora_seg seg = lora_seg_at(a.v, s);
            if (seg.n_rows == 0)
                continue;
            struct lora_entry e = lora_entry_at(a.v, part, seg.slot);
            int at = lora_t_at(a.v, s, seg, part);
            bool in = r0 < a.tile_rows && row >= seg.row_begin && row < seg.row_begin + seg.n_rows;
            mine = mine || (in && e.rank > 0);
#pragma unroll 1
            for (int r = 0; r < e.rank; r += 16) {
                float w[4][4];
#pragma unroll
                for (int h = 0; h < 4; h++) {
                    int o = out + output_at<M>(h, g);
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        w[h][i] = o < out_end && r + 4 * t + i < e.rank
                                      ? load_as_float(reinterpret_cast<const void *>(e.b.addr),
                                                      (int64_t)o * e.rank + r + 4 * t + i, e.dtype)
                                      : 0;
                }
                uint2 f = make_uint2(0, 0);
                if (in && r + 4 * t < e.rank)
                    f = t_at(nullptr, p, a.v, r0, at + r + 4 * t);
                for (int plane = 0; plane < planes_of(e.dtype); plane++) {
                    uint32_t b[8];
#pragma unroll
                    for (int h = 0; h < 4; h++) {
                        b[2 * h] = take_plane(w[h][0], w[h][1]);
                        b[2 * h + 1] = take_plane(w[h][2], w[h][3]);
                    }
                    mma_bf16(c[0][0], b[0], b[2], b[1], b[3], f.x, f.y);
                    mma_bf16(c[0][1], b[4], b[6], b[5], b[7], f.x, f.y);
                }
            }
        }
        p.rows = (unsigned)mine << r0; /* this lane's own */
        int n;
        if (DELTAS) {
            float w[4 * M], *to = deltas_at<M>(&n, a, p, r0, out, lane);
            take_deltas<M>(w, c[0]);
#pragma unroll
            for (int e = 0; e < 4 * M; e++)
                if (e < n)
                    to[e] = w[e];
            continue;
        }
        bf16 *y = outputs_at<M>(&n, a, p, r0, out, lane);
        unsigned short *y_bits = reinterpret_cast<unsigned short *>(y);
        uint32_t sums[1][2 * M] = {};
#pragma unroll
        for (int e = 0; e < 4 * M; e++)
            if (e < n)
                sums[0][e / 2] |= (uint32_t)__ldcg(y_bits + e) << e % 2 * 16;
        add_deltas<1, M>(sums, c);
#pragma unroll
        for (int e = 0; e < 4 * M; e++)
            if (e < n)
                y_bits[e] = (unsigned short)(sums[0][e / 2] >> e % 2 * 16);
    }
}

/* ---- the kernel, and its launches
 * ------------------------------------------------------------------------- */

template <int NT, bool DELTAS>
__global__ static void __maxnreg__(NT == 1 ? 112 : 136)
    expand_kernel(const __grid_constant__ struct expand_args a)
{
    typedef expand_memory<NT> memory;
    extern __shared__ float4 shared[];
    memory &m = *reinterpret_cast<memory *>(shared);
    char *ring = reinterpret_cast<char *>(&m + 1);
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x & 31;
    pdl_trigger();
    int n_segs = lora_n_segs(a.v);
    if (warp == EXPAND_WARPS && lane == 0) {
        for (int i = 0; i < EXPAND_STAGES; i++) {
            barrier_init(&m.full[i], 1);
            barrier_init(&m.free[i], EXPAND_WARPS * 32);
        }
        barrier_init(&m.meet, EXPAND_THREADS);
        barrier_init_done();
    }
    __syncthreads();

    struct expand_ring pieces = {0, 0, 0};
    uint32_t met = 0;
    struct expand_work at, end;
    work_by_units(a, at, end);
    if (DELTAS) {
        loads_count(m, a, n_segs);
        barrier_meet(&m.meet, met);
        if (warp == EXPAND_WARPS)
            loads_sum(m, a, lane);
        barrier_meet(&m.meet, met);
        if (!m.any) {
            end = at;
        } else if (!m.even) {
            at = work_by_load(m, a, (int)blockIdx.x);
            end = work_by_load(m, a, (int)blockIdx.x + 1);
        }
    }
#pragma unroll 1
    while (at.before(end)) {
        /* A place: what lies in one tile and one part. */
        int part = at.entry % a.v.n_parts, n = units_of(a, part) - at.unit;
        if (at.entry == end.entry && n > end.unit - at.unit)
            n = end.unit - at.unit;
        struct expand_work here = at;
        at.entry++;
        at.unit = 0;
        if (n == 0)
            continue;
        if (warp == EXPAND_WARPS) {
            struct expand_place p = {};
            p.n_rows = a.tile_rows;
            p.row0 = here.entry / a.v.n_parts * a.tile_rows;
            p.part = part;
            p.out = here.unit * EXPAND_UNIT;
            p.out_end = (here.unit + n) * EXPAND_UNIT;
            if (p.out_end > a.v.part[part].d_out)
                p.out_end = a.v.part[part].d_out;
            place_find(p, a.v, n_segs, lane);
            place_fill(p, m.cells, a.v, a.words, lane);
            if (p.plain && p.n > 0)
                place_cut<NT>(p, a.ring_bytes);
            if (lane == 0)
                m.place = p;
            __syncwarp();
        }
        barrier_meet(&m.meet, met);
        const struct expand_place q = m.place;
        if (warp == EXPAND_WARPS) {
            if (q.plain && q.n > 0 && lane == 0)
                ring_fill<NT>(m, ring, a.ring_bytes, q, pieces);
            __syncwarp();
        } else {
            if (DELTAS || !q.plain || q.n > 0)
                pdl_wait();
            if (!q.plain) {
                int share = (n + EXPAND_WARPS - 1) / EXPAND_WARPS * EXPAND_UNIT;
                int begin = q.out + warp * share, share_end = begin + share;
                expand_slowly<DELTAS>(a, q.row0, q.part, q.first, q.end, begin,
                                      share_end < q.out_end ? share_end : q.out_end, lane);
            } else if (q.n == 0) {
                if (DELTAS)
                    clear_deltas(a, q, warp, lane);
            } else if (q.m == 1) {
                expand_range<NT, 1, DELTAS>(a, m, ring, q, pieces, warp, lane);
            } else if (q.m == 2 || NT > 1) {
                expand_range<NT, 2, DELTAS>(a, m, ring, q, pieces, warp, lane);
            } else {
                expand_range<NT, memory::M_MAX, DELTAS>(a, m, ring, q, pieces, warp, lane);
            }
        }
        if (at.before(end))
            barrier_meet(&m.meet, met); /* all have done with the place */
    }
    pdl_wait();
    if (DELTAS && blockIdx.x == 0 && threadIdx.x == 0)
        *a.any = m.any;
}

template <int NT, bool DELTAS> static cudaError_t expand_open()
{
    return cudaFuncSetAttribute(expand_kernel<NT, DELTAS>,
                                cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)sizeof(expand_memory<NT>) + EXPAND_RING_MAX);
}

int lora_expand_open(struct err *err)
{
    cudaError_t rc = expand_open<1, false>();
    if (rc == cudaSuccess)
        rc = expand_open<4, false>();
    if (rc == cudaSuccess)
        rc = expand_open<1, true>();
    if (rc == cudaSuccess)
        rc = expand_open<4, true>();
    return rc == cudaSuccess ? 0
                             : err_set(err, ERR_INTERNAL, "cuda: shared memory of sgmv_expand: %s",
                                       cudaGetErrorString(rc));
}

/* How the work is cut over thread blocks. */
struct expand_plan {
    int rows; /* of a tile */
    int n_blocks, tile_blocks;
    int units; /* of a block, at most */
    int cells; /* of a tile */
    int64_t cycles;
};

static struct expand_plan expand_plan(int rows, int n_rows, int n_segs, int n_units,
                                      int n_multiprocessors)
{
    struct expand_plan p = {};
    int n_tiles = ceil_div(n_rows, rows);
    int64_t n_all = (int64_t)n_tiles * n_units;
    p.rows = rows;
    p.n_blocks = n_all < n_multiprocessors ? (int)n_all : n_multiprocessors;
    p.tile_blocks = p.n_blocks / n_tiles;
    if (p.tile_blocks > n_units)
        p.tile_blocks = n_units;
    if (8 * p.tile_blocks * n_tiles >= 7 * p.n_blocks) {
        p.n_blocks = p.tile_blocks * n_tiles;
        p.units = ceil_div(n_units, p.tile_blocks);
    } else { /* too many would be idle: some get the end of a tile and the beginning of the next */
        p.tile_blocks = 0;
        p.units = (int)((n_all + p.n_blocks - 1) / p.n_blocks);
    }
    p.cells = (int)(((int64_t)n_segs * rows + n_rows - 1) / n_rows);
    p.cells = p.cells > 0 ? p.cells : 1;
    /* About: B from memory; a unit's B and y through L2; a piece's fixed cost and a group's; what
     * the larger kernel keeps others from. */
    int m = rows > 8 ? expand_memory<4>::M_MAX : expand_memory<1>::M_MAX;
    int64_t groups = ceil_div(p.units, EXPAND_WARPS * m);
    p.cycles = 40 * (int64_t)n_segs * n_units / n_multiprocessors +
               (int64_t)p.units * (25 * p.cells + 3 * rows) + groups * (250 * p.cells + 300) +
               (rows > 8 ? 300 : 0);
    return p;
}

template <bool DELTAS>
static void run_expand(struct backend *be, struct expand_args &a, const struct lora_view &v,
                       int n_rows, int d_out)
{
    a.n_rows = n_rows;
    a.d_out = d_out;
    a.v = v;
    a.words = reinterpret_cast<uintptr_t>(a.y) % 16 == 0 && d_out % 8 == 0;
    for (int p = 0; p < a.v.n_parts; p++) {
        a.words = a.words && a.v.part[p].out_begin % 8 == 0 && a.v.part[p].d_out % 8 == 0;
        a.n_units += ceil_div(a.v.part[p].d_out, EXPAND_UNIT);
    }
    struct expand_plan best = expand_plan(8, n_rows, a.v.n_segs, a.n_units, be->n_multiprocessors);
    for (int rows : {4, 2, 1, 16, 32}) { /* if they save a tenth */
        if (DELTAS && ceil_div(n_rows, rows) > EXPAND_TILES)
            continue;
        struct expand_plan p = expand_plan(rows, n_rows, a.v.n_segs, a.n_units,
                                           be->n_multiprocessors);
        if (10 * p.cycles < 9 * best.cycles && (rows <= 8 || n_rows > rows / 2))
            best = p;
    }
    a.tile_rows = best.rows;
    a.tile_blocks = best.tile_blocks;
    bool many = best.rows > 8;
    int64_t bytes = (int64_t)best.units * best.cells * (EXPAND_UNIT * 64 * 2); /* if of 64 ranks */
    a.ring_bytes = bytes < EXPAND_RING_MIN   ? EXPAND_RING_MIN
                   : bytes < EXPAND_RING_MAX ? (int)bytes
                                             : EXPAND_RING_MAX;
    launch(be, "sgmv_expand", many ? expand_kernel<4, DELTAS> : expand_kernel<1, DELTAS>,
           dim3((unsigned)best.n_blocks), EXPAND_THREADS,
           (many ? sizeof(expand_memory<4>) : sizeof(expand_memory<1>)) + (size_t)a.ring_bytes, a);
}

void cuda_sgmv_expand(struct backend *be, struct devptr y, struct devptr t, int n_rows,
                      int d_out_total, const struct lora_args *lora)
{
    (void)t;
    if (n_rows == 0 || lora == nullptr || lora->n_parts == 0)
        return;
    struct expand_args a = {};
    a.y = dev<bf16>(y);
    run_expand<false>(be, a, lora_view_of(be, lora), n_rows, d_out_total);
}

void lora_expand_deltas(struct backend *be, float *deltas, int *any, const struct lora_view &v,
                        int n_rows, int d_out)
{
    struct expand_args a = {};
    a.deltas = deltas;
    a.any = any;
    run_expand<true>(be, a, v, n_rows, d_out);
}
