/* linear_wide.cuh: linear for more rows than linear_narrow.cuh takes. Part of linear.cu, whose head
 * has the design and the order of summation.
 *
 * Two numbers bound it. The matrix units do 4,096 operations a cycle and multiprocessor: 989
 * TFLOP/s on paper, less at the clock that 700 W allow. And L2 delivers about 6 TB/s to all
 * multiprocessors: a tile of 128 outputs by N rows takes 256 bytes of W and 2 N of x for 256 N
 * operations, so that 700 TFLOP/s want
 *
 *     128 x 128: 10.9 TB/s     128 x 192: 9.1     128 x 192, x shared by two blocks: 6.4
 *
 * N is no larger because the accumulator lies in registers twice: the sum of the ranges so far
 * (total), and the range under way (acc): 192 registers of 216.
 *
 * A cluster of two thread blocks takes tiles of the same rows and neighbouring outputs. x comes to
 * both at once: each fetches half a tile's rows (of half a tile, one of them does).
 *
 *     warp 8         copies: fills a ring of stages, each W [2 x 64, 64] and x [N, 64]
 *     warpgroup 0    outputs 0 - 63 of the tile:    acc = range; total += acc; next range ...
 *     warpgroup 1    outputs 64 - 127                ... then bias, delta, y
 *     warps 9 - 11   helpers: bring what the deltas need, while the product is summed
 *
 * The delta is a product like the other one, of few steps: for each segment over the tile, each
 * part, each 16 ranks (and each bf16 plane of B), B [2 x 64, 16] and t' [N, 16], zero where a row
 * is not the segment's. The helpers lay these steps down in shared memory, in a ring of their own;
 * when the ranges are summed acc is free, the steps are added up there, and total += acc. So
 * nothing of the adapters is fetched, looked up or decided while the matrix units wait, and the
 * tensor-core warps know nothing about ranks, slots and dtypes. Deltas of the first rows may lie in
 * memory (APART; linear.cu): the warpgroups add them to the bias, and their segments have no steps.
 *
 * Outputs leave as one box of y per warpgroup, from shared memory, while the next tile is summed.
 * The same memory holds the steps of the deltas before: "area_free" says that a box has left it,
 * wide_await_room that the steps have been read.
 *
 * The ladder (four products of an 8B layer, 2,048 rows, TFLOP/s, one H100, no adapters; each row is
 * the kernel before it and one change):
 *
 *     128 x 160, 376 bytes of spills, outputs stored by the warpgroups     382 to 463
 *     128 x 192, no spills, outputs as boxes                               624 to 632
 *     the tile by the rounds that it makes: 160, 176 or 192 rows           638 (the four alone)
 *
 *     on an H200, in a step (qkv, o, gate and up, down; us):           159  120  804  392
 *     the helpers hardly spill, silu without a division                156  117  754  380
 *     the copies of a stage are asked for in half the instructions,
 *     what is left for the last round is done by halves                156  113  745  361
 *
 * (The thread that asks is what 128 rows wait for: a stage is 512 cycles.)
 *
 * Tried and dropped, of t' by these blocks instead of by a kernel before (one adapter of rank 16,
 * 2,048 rows; that kernel takes 13, 9, 13 and 25 us before qkv, o, gate and up, down):
 *
 *   - by the helpers while the first tile is summed: 4 % slower: 100 MB more through L2, behind the
 *     ring's 160 KB a multiprocessor; a task takes twice a tile's time;
 *   - by all blocks before their first tile, x and A through the ring: 19, 10, 30 and 31 us;
 *   - of the x that is in the ring for the first groups of outputs: by the helpers (a stage takes
 *     them 1.0 us instead of 0.3: a warp alone on its quarter does an instruction in five cycles),
 *     or by the warpgroups between their matrix steps (0.7 us: mma.sync waits behind wgmma, and the
 *     next wgmma for it). All others wait for t' at the end of their first tile: o 146 us where
 *     product and kernel take 125, down 453 for 390.
 *
 * And of the deltas: a table of a tile's segments from what the step's look-up found, instead of
 * chains of loads; tiles chosen by their deltas' steps as well. Neither changes anything (32
 * adapters of 64 rows each: four products 1,790 to 1,810 us with and 1,770 to 1,860 without).
 *
 * Tried and slower: clusters of four (370 to 410: they wait for each other), one warpgroup held a
 * stage behind the other so that their ends don't coincide (526). Both say that the ring's depth is
 * what is short: 160 rows with five stages take 4 % less a row than 176 or 192 with four. */
#ifndef TRIBUTARY_KERNELS_CUDA_LINEAR_WIDE_CUH
#define TRIBUTARY_KERNELS_CUDA_LINEAR_WIDE_CUH

#include "kernels/cuda/linear_tile.cuh"

enum {
    WIDE_THREADS = 384,
    WIDE_HELPERS = 96,
};

/* N: rows of a tile. CLUSTER: thread blocks with the same rows and neighbouring outputs. */
template <int N_, int STAGES_, bool APART_ = false> struct wide {
    static constexpr bool APART = APART_;
    static constexpr int N = N_, CLUSTER = 2, STAGES = STAGES_;
    static constexpr int UNITS = N / 8;
    static constexpr int BAND = 2112 / N; /* row tiles whose x stays in L2 while all weights pass */
    static constexpr int STAGE = 2 * TILE_BYTES + N * TILE * 2;
    static constexpr int BARRIERS = 512;
    /* A thread's: 168 at the launch, shared out as spills are fewest. */
    static constexpr int SUM_REGISTERS = N > 176 ? 216 : 208;
    static constexpr int HELPER_REGISTERS = 3 * 168 - 2 * SUM_REGISTERS;
    static constexpr size_t SHARED = 227 << 10;
    static constexpr int AREA = (int)SHARED - STAGES * STAGE - BARRIERS;
    /* A step of the deltas: 16 ranks of B for the block's outputs, and of t' for its rows. */
    static constexpr int STEP_B = 2 * TILE * 32, STEP = STEP_B + N * 32;
    static constexpr int STEPS_FIT = AREA / STEP, STEPS = STEPS_FIT < 8 ? STEPS_FIT : 8;
    static constexpr int AHEAD = STEPS > 5 ? 3 : STEPS - 2; /* steps whose loads are under way */
    /* A warpgroup's outputs on their way to y, in the same place. */
    static constexpr int STAGING = AREA / 2 / 1024 * 1024;
    static_assert(N % 16 == 0 && STEP % 256 == 0, "swizzles");
    static_assert(AHEAD > 0 && N * TILE * 2 <= STAGING, "fits");
};

/* What a cluster does at a time: a tile of rows by its outputs; or half the tile's rows, where what
 * is left over for the last round is tiles for half of the clusters at most. */
struct wide_work {
    int m_tile; /* of the block: the first of its two tiles of outputs */
    int row0, n_rows;
    int half; /* 0, 1: a half; -1: all */
};

/* Work w of n_items + a.n_halves. Items stand in bands of BAND row tiles, whose x stays in L2 while
 * all weights pass; the last a.n_halves of them are done by halves. */
template <class S>
__device__ static inline struct wide_work wide_work_at(const struct linear_args &a, int w,
                                                       int n_groups, int n_row_tiles, int rank)
{
    int whole = n_groups * n_row_tiles - a.n_halves, i = w < whole ? w : whole + (w - whole) / 2;
    int band = i / (S::BAND * n_groups), rest = i % (S::BAND * n_groups);
    int width = n_row_tiles - band * S::BAND;
    width = width < S::BAND ? width : S::BAND;
    struct wide_work work;
    work.half = w < whole ? -1 : (w - whole) % 2;
    work.m_tile = (rest / width * S::CLUSTER + rank) * 2;
    work.n_rows = work.half < 0 ? S::N : S::N / 2;
    work.row0 = (band * S::BAND + rest % width) * S::N + (work.half > 0 ? S::N / 2 : 0);
    return work;
}

/* ---- helpers: the deltas' operands
 * -------------------------------------------------------------------------------------------- */

/* Sixteen bytes of shared memory from n_bytes of global memory and zeros. */
__device__ static inline void copy_16(uint32_t to, const void *from, int n_bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(n_bytes)
                 : "memory");
}

__device__ static inline void copies_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int PENDING> __device__ static inline void copies_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ static inline void store_shared(uint32_t to, uint32_t a, uint32_t b, uint32_t c,
                                           uint32_t d)
{
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}

/* Where eight k of a row lie in a matrix of rows of 32 bytes: the 32-byte swizzle. */
__device__ static inline uint32_t step_place(int row, int half)
{
    return (uint32_t)(row * 32 + ((half ^ (row >> 2 & 1)) << 4));
}

/* What a helper brings of every step: 8 of the 16 ranks, every PASS-th row from `row` on. */
struct wide_share {
    int row, half;
    int i, out; /* of the packed row: its place in its half of a pair (or all), its output */
};

enum { PASS = WIDE_HELPERS / 2 };

__device__ static inline struct wide_share wide_share_of(const struct linear_args &a, int m_row,
                                                         int helper)
{
    struct wide_share me;
    me.row = helper >> 1;
    me.half = helper & 1;
    int packed = m_row + me.row;
    me.i = me.out = packed;
    if (a.pair_width > 0) {
        me.i = packed / 16 * 8 + packed % 8;
        me.out = me.i + (packed & 8 ? a.pair_width : 0);
    }
    return me;
}

/* B[out .. , r .. r + 15] of the block's packed rows, or the plane of it. */
__device__ static inline void wide_fill_b(uint32_t to, const struct linear_args &a,
                                          const struct wide_share &me, const struct lora_entry &e,
                                          int out_begin, int d_out, int r, int plane)
{
    bool whole = e.dtype == DTYPE_BF16 && e.rank % 8 == 0 && e.b.addr % 16 == 0;
    int limit = a.pair_width > 0 ? a.pair_width : a.d_out;
    int step = a.pair_width > 0 ? PASS / 2 : PASS;
    const char *b = reinterpret_cast<const char *>(e.b.addr);
    r += me.half * 8;
    uint32_t at = to + step_place(me.row, me.half);
#pragma unroll 1
    for (int n = 0; me.row + n * PASS < 2 * TILE; n++) {
        int o = me.out + n * step - out_begin;
        bool live = me.i + n * step < limit && o >= 0 && o < d_out && r < e.rank;
        if (whole) {
            copy_16(at, live ? b + ((int64_t)o * e.rank + r) * 2 : b, live ? 16 : 0);
        } else {
            uint32_t q[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float f[2];
#pragma unroll
                for (int h = 0; h < 2; h++)
                    f[h] = live && r + 2 * j + h < e.rank
                               ? load_as_float(b, (int64_t)o * e.rank + r + 2 * j + h, e.dtype)
                               : 0;
                for (int p = 0; p <= plane; p++)
                    q[j] = take_plane(f[0], f[1]);
            }
            store_shared(at, q[0], q[1], q[2], q[3]);
        }
        at += PASS * 32; /* the swizzle is the same: PASS is a multiple of eight */
    }
}

/* t'[row0 .. , r .. r + 15] of the tile's rows; zero where they are not the segment's. */
template <class S>
__device__ static inline void wide_fill_t(uint32_t to, const struct lora_view &v,
                                          const struct wide_share &me, const struct lora_seg &seg,
                                          int rank, int t_at, int row0, int r)
{
    r += me.half * 8;
    int left = (lora_padded(rank) - r) * 2, n_bytes = left < 0 ? 0 : left < 16 ? left : 16;
    int row = row0 + me.row - seg.row_begin; /* of the segment */
    const bf16 *from = v.t + (int64_t)(row0 + me.row) * v.t_stride + t_at + r;
    uint32_t at = to + S::STEP_B + step_place(me.row, me.half);
#pragma unroll 1
    for (int n = 0; me.row + n * PASS < S::N; n++) {
        int bytes = row >= 0 && row < seg.n_rows ? n_bytes : 0;
        if (t_at % 8 == 0) {
            copy_16(at, bytes > 0 ? from : v.t, bytes);
        } else {
            uint2 lo = make_uint2(0, 0), hi = lo;
            if (bytes > 0)
                lo = __ldcg(reinterpret_cast<const uint2 *>(from));
            if (bytes > 8)
                hi = __ldcg(reinterpret_cast<const uint2 *>(from) + 1);
            store_shared(at, lo.x, lo.y, hi.x, hi.y);
        }
        row += PASS;
        from += PASS * v.t_stride;
        at += PASS * 32;
    }
}

struct wide_steps { /* in shared memory */
    uint64_t *full, *empty;
    volatile int *last; /* of a step: it is the tile's last */
    uint32_t at;
};

/* The ring of steps, as the helpers see it. */
template <class S> struct wide_filling {
    const struct wide_steps *steps;
    int slot, n_pending;
    uint32_t phases; /* a bit a slot */

    __device__ uint32_t begin(int helper)
    {
        /* Who has to wait first hands over what it holds back: a tile's first steps would come one
         * by one otherwise, each when the next has a slot. */
        uint32_t phase = phases >> slot & 1;
        if (n_pending > 0 && !barrier_test(&steps->empty[slot], phase)) {
            copies_wait<0>();
            while (n_pending > 0)
                publish(false, helper);
        }
        barrier_wait(&steps->empty[slot], phase);
        return steps->at + slot * S::STEP;
    }
    __device__ void end()
    {
        copies_commit();
        n_pending++;
        phases ^= 1u << slot;
        if (++slot == S::STEPS)
            slot = 0;
    }
    /* The oldest of the pending ones has come, whole. */
    __device__ void publish(bool last, int helper)
    {
        int s = slot >= n_pending ? slot - n_pending : slot - n_pending + S::STEPS;
        if (helper == 0)
            steps->last[s] = last;
        fence_before_copies();
        barrier_arrive(&steps->full[s]);
        n_pending--;
    }
};

/* The steps of one tile, from slot 0 on: at least one. */
template <class S>
__device__ static inline void wide_fill(struct wide_filling<S> &ring, const struct linear_args &a,
                                        int n_segs, int m_row, int row0, int n_rows, int helper)
{
    const struct lora_view &v = a.lora;
    const struct wide_share me = wide_share_of(a, m_row, helper);
    ring.slot = 0;
    bool pair = a.pair_width > 0;
    int out = pair ? m_row / 2 : m_row, n_out = pair ? TILE : 2 * TILE;
#pragma unroll 1
    for (int s = lora_first_seg(v, n_segs, row0); s < n_segs; s++) {
        const struct lora_seg seg = lora_seg_at(v, s);
        if (seg.row_begin >= row0 + n_rows)
            break;
        if (seg.n_rows == 0 || seg.row_begin + seg.n_rows <= row0)
            continue;
#pragma unroll 1
        for (int p = 0; p < v.n_parts; p++) {
            int begin = v.part[p].out_begin, end = begin + v.part[p].d_out;
            if (!(begin < out + n_out && end > out) &&
                !(pair && begin < a.pair_width + out + n_out && end > a.pair_width + out))
                continue;
            const struct lora_entry e = lora_entry_at(v, p, seg.slot);
            int t_at = lora_t_at(v, s, seg, p), n_planes = planes_of(e.dtype);
#pragma unroll 1
            for (int i = 0; i < (e.rank + 15) / 16 * n_planes; i++) {
                uint32_t to = ring.begin(helper);
                int r = i / n_planes * 16;
                wide_fill_b(to, a, me, e, begin, end - begin, r, i % n_planes);
                wide_fill_t<S>(to, v, me, seg, e.rank, t_at, row0, r);
                ring.end();
                if (ring.n_pending > S::AHEAD) {
                    copies_wait<S::AHEAD>();
                    ring.publish(false, helper);
                }
            }
        }
    }
    if (ring.n_pending == 0) { /* base model: a step of zeros */
        uint32_t to = ring.begin(helper);
        for (int i = helper; i < S::STEP / 16; i += WIDE_HELPERS)
            store_shared(to + i * 16, 0, 0, 0, 0);
        ring.end();
    }
    copies_wait<0>();
    while (ring.n_pending > 0)
        ring.publish(ring.n_pending == 1, helper);
}

/* ---- the end of a tile
 * -------------------------------------------------------------------------------------------- */

/* A warp's share of its warpgroup's 64 outputs by N rows, into shared memory as a box of y. */
template <class S>
__device__ static inline void wide_stage(const float (&c)[S::N / 2], const struct linear_args &a,
                                         uint32_t staging)
{
    int warp = (int)threadIdx.x >> 5 & 3, lane = (int)threadIdx.x & 31;
    if (a.store == STORE_SWIGLU) {
        auto glu = [&](int j) {
            return pack_bf16(swiglu(c[4 * j], c[4 * j + 2]), swiglu(c[4 * j + 1], c[4 * j + 3]));
        };
#pragma unroll
        for (int j = 0; j < S::UNITS; j += 4) {
            int row = (j + lane / 8) * 8 + lane % 8;
            uint32_t at = staging + row * 64 + ((warp ^ (row >> 1 & 3)) << 4);
            if (j + 4 <= S::UNITS)
                store_matrices(at, glu(j), glu(j + 1), glu(j + 2), glu(j + 3));
            else
                store_matrices(at, glu(j), glu(j + 1));
        }
        return;
    }
#pragma unroll
    for (int j = 0; j < S::UNITS; j += 2) {
        int row = (j + lane / 16) * 8 + lane % 8;
        store_matrices(staging + row * 128 + (((warp * 2 + lane / 8 % 2) ^ (lane % 8)) << 4),
                       pack_bf16(c[4 * j], c[4 * j + 1]), pack_bf16(c[4 * j + 2], c[4 * j + 3]),
                       pack_bf16(c[4 * j + 4], c[4 * j + 5]),
                       pack_bf16(c[4 * j + 6], c[4 * j + 7]));
    }
}

/* The outputs go where steps lay: waits until both warpgroups have read those that lay in this
 * one's part. Few steps are all in the first's part, so the second needn't wait for it and goes on
 * ahead: the end of its tile falls into the other's ranges. phases: those that a step's next use
 * will have. */
template <class S>
__device__ static inline void wide_await_room(const struct wide_steps &steps, int wg, bool fused,
                                              int n_steps, uint32_t phases)
{
    int begin = wg * S::STAGING, n_bytes = fused ? S::N * TILE : S::UNITS * 1024;
    int end = (begin + n_bytes + S::STEP - 1) / S::STEP;
    end = end < n_steps ? end : n_steps;
    end = end < S::STEPS ? end : S::STEPS;
#pragma unroll 1
    for (int s = begin / S::STEP; s < end; s++)
        barrier_wait(&steps.empty[s], (phases >> s & 1) ^ 1);
}

template <class S>
__device__ static inline void wide_store_straight(const float (&c)[S::N / 2],
                                                  const struct linear_args &a, const int (&out)[2],
                                                  const struct wide_work &work, int lane)
{
#pragma unroll
    for (int j = 0; j < S::UNITS; j++)
        if (8 * j < work.n_rows)
            store_tile({c[4 * j], c[4 * j + 1], c[4 * j + 2], c[4 * j + 3]}, a, out,
                       work.row0 + 8 * j + 2 * (lane & 3));
}

/* The four bytes at `from`, if there are any. In this order: the compiler would ask for all that a
 * thread needs before it adds the first. */
__device__ static inline float load_delta(const float *from, bool is)
{
    float d;
    asm volatile("{.reg .pred is; setp.ne.s32 is, %2, 0;\n"
                 "mov.f32 %0, 0f00000000; @is ld.global.cg.f32 %0, [%1];}"
                 : "=f"(d)
                 : "l"(from), "r"((int)is));
    return d;
}

/* Adds deltas that lie in memory. */
template <class S>
__device__ static inline void wide_add_deltas(float (&total)[S::N / 2], const struct linear_args &a,
                                              const int (&out)[2], const struct wide_work &work,
                                              int lane)
{
    constexpr int AHEAD = 2;
    bool live[2] = {has_part(a, out[0]), has_part(a, out[1])};
    int row = work.row0 + 2 * (lane & 3), end = work.row0 + work.n_rows;
    end = end < a.n_deltas ? end : a.n_deltas;
    const float *from = a.deltas + (int64_t)row * a.d_out;
#pragma unroll
    for (int j0 = 0; j0 < S::UNITS; j0 += AHEAD) {
        float d[AHEAD][4];
#pragma unroll
        for (int j = 0; j < AHEAD; j++, row += 8, from += 8 * (int64_t)a.d_out)
#pragma unroll
            for (int i = 0; i < 4; i++)
                d[j][i] = load_delta(from + i % 2 * (int64_t)a.d_out + out[i / 2],
                                     row + i % 2 < end && live[i / 2]);
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                total[4 * (j0 + j) + i] += d[j][i];
    }
}

/* A warpgroup's sums of all ranges, of the first ROWS rows of the tile. */
template <class S, int ROWS>
__device__ static inline void wide_sum(float (&total)[S::N / 2], float (&acc)[S::N / 2],
                                       const struct linear_args &a, uint32_t ring_at,
                                       uint64_t *full, uint64_t *empty, int &stage, uint32_t &phase,
                                       int wg, int lane)
{
#pragma unroll 1
    for (int range = 0; range < a.n_ranges; range++) {
        int begin = range * a.n_k / a.n_ranges, end = (range + 1) * a.n_k / a.n_ranges;
        if (begin == end)
            continue;
        int before = -1; /* the stage whose steps are still under way */
#pragma unroll 1
        for (int k = begin; k < end; k++) {
            barrier_wait(&full[stage], phase);
            uint32_t at = ring_at + stage * S::STAGE;
            uint64_t w = wgmma_descriptor(at + wg * TILE_BYTES);
            uint64_t b = wgmma_descriptor(at + 2 * TILE_BYTES);
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++) {
                if constexpr (ROWS == S::N)
                    wgmma<ROWS>(acc, w + 2 * s, b + 2 * s, k > begin || s > 0);
                else
                    wgmma_first<ROWS>(acc, w + 2 * s, b + 2 * s, k > begin || s > 0);
            }
            wgmma_commit();
            if (before >= 0) {
                wgmma_wait<1>();
                if (lane < S::CLUSTER)
                    barrier_arrive_remote(&empty[before], lane);
            }
            before = stage;
            if (++stage == S::STAGES) {
                stage = 0;
                phase ^= 1;
            }
        }
        wgmma_wait<0>();
        if (lane < S::CLUSTER)
            barrier_arrive_remote(&empty[before], lane);
#pragma unroll
        for (int i = 0; i < ROWS / 2; i++)
            total[i] += acc[i];
    }
}

/* y_map, y_half_map: boxes of a tile's rows, of half of them. */
template <class S>
__global__ static void __launch_bounds__(WIDE_THREADS, 1)
    wide_kernel(const __grid_constant__ CUtensorMap x_map,
                const __grid_constant__ CUtensorMap y_map,
                const __grid_constant__ CUtensorMap y_half_map,
                const __grid_constant__ struct linear_args a)
{
    extern __shared__ __align__(1024) char ring[];
    constexpr int N = S::N;
    char *area = ring + S::STAGES * S::STAGE;
    uint64_t *full = reinterpret_cast<uint64_t *>(area + S::AREA);
    uint64_t *empty = full + S::STAGES;
    struct wide_steps steps;
    steps.full = empty + S::STAGES;
    steps.empty = steps.full + S::STEPS;
    uint64_t *staged = steps.empty + S::STEPS; /* [2]: a warpgroup's outputs lie in the area */
    uint64_t *area_free = staged + 2;          /* they have left it */
    steps.last = reinterpret_cast<volatile int *>(area_free + 1);
    steps.at = shared_address(area);
    int rank = cluster_rank(), cluster = (int)blockIdx.x / S::CLUSTER;
    int n_clusters = (int)gridDim.x / S::CLUSTER;
    int n_groups = (a.n_m_tiles + 2 * S::CLUSTER - 1) / (2 * S::CLUSTER); /* of clusters */
    int n_row_tiles = (a.n_rows + N - 1) / N;
    int n_work = n_groups * n_row_tiles + a.n_halves;
    pdl_trigger();
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 8 * S::CLUSTER);
        }
        for (int i = 0; i < S::STEPS; i++) {
            barrier_init(&steps.full[i], WIDE_HELPERS);
            barrier_init(&steps.empty[i], 8);
        }
        barrier_init(&staged[0], 4);
        barrier_init(&staged[1], 4);
        barrier_init(area_free, 2);
        barrier_init_done();
    }
    cluster_meet();
    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(S::HELPER_REGISTERS));
        if (threadIdx.x == 256) {
            uint64_t policy = evict_normal(); /* other blocks read it too */
            if (!a.x_is_there)
                pdl_wait();
            int stage = 0, two_planes = a.n_planes == 2;
            uint32_t phase = 1; /* of empty: the first round waits for nobody */
            for (int w = cluster; w < n_work; w += n_clusters) {
                const struct wide_work work = wide_work_at<S>(a, w, n_groups, n_row_tiles, rank);
                int m = work.m_tile; /* tiles past the end are dropped */
                int m0 = m < a.n_m_tiles ? m : a.n_m_tiles - 1;
                int m1 = m + 1 < a.n_m_tiles ? m + 1 : a.n_m_tiles - 1;
                const char *w0 = a.w + (int64_t)m0 * a.n_k * TILE_BYTES;
                const char *w1 = a.w + (int64_t)m1 * a.n_k * TILE_BYTES;
                /* A half's rows are one box, which one block of the two fetches for both. */
                bool fetches = work.half < 0 || work.half == rank;
                int box = work.half < 0 ? rank * (N / 2) : 0, row = work.row0 + box;
                uint32_t to_x = 2 * TILE_BYTES + (uint32_t)box * TILE * 2;
                uint32_t bytes = 2 * TILE_BYTES + (uint32_t)work.n_rows * TILE * 2;
                for (int k = 0; k < a.n_k; k++) {
                    char *to = ring + stage * S::STAGE;
                    barrier_wait(&empty[stage], phase);
                    barrier_expect(&full[stage], bytes);
                    copy_weight(to, w0, TILE_BYTES, &full[stage], policy);
                    copy_weight(to + TILE_BYTES, w1, TILE_BYTES, &full[stage], policy);
                    if (fetches)
                        copy_box_to_all(to + to_x, &x_map, (k >> two_planes) * TILE, row,
                                        &full[stage], (1 << S::CLUSTER) - 1);
                    w0 += TILE_BYTES;
                    w1 += TILE_BYTES;
                    if (++stage == S::STAGES) {
                        stage = 0;
                        phase ^= 1;
                    }
                }
            }
            /* The other blocks still say that they have read; not to one that is gone. */
            for (int i = 0; i < S::STAGES && cluster < n_work; i++) {
                barrier_wait(&empty[stage], phase);
                if (++stage == S::STAGES) {
                    stage = 0;
                    phase ^= 1;
                }
            }
        } else if (threadIdx.x >= WIDE_THREADS - WIDE_HELPERS) {
            int helper = (int)threadIdx.x - (WIDE_THREADS - WIDE_HELPERS), wg = helper >> 5;
            struct wide_filling<S> filling = {
                &steps, 0, 0, 0xff
            };
            uint32_t phase = 0;
            pdl_wait();
            int n_segs = lora_n_segs(a.lora);
            for (int w = cluster; w < n_work; w += n_clusters) {
                const struct wide_work work = wide_work_at<S>(a, w, n_groups, n_row_tiles, rank);
                if (n_segs > 0) {
                    barrier_wait(area_free, phase ^ 1);
                    wide_fill<S>(filling, a, n_segs, work.m_tile * TILE, work.row0, work.n_rows,
                                 helper);
                }
                if (wg < 2 && (helper & 31) == 0) {
                    int m_tile = work.m_tile + wg;
                    barrier_wait(&staged[wg], phase);
                    if (a.y_boxes && m_tile < a.n_m_tiles)
                        store_box(work.half < 0 ? &y_map : &y_half_map, steps.at + wg * S::STAGING,
                                  m_tile * (a.store == STORE_SWIGLU ? TILE / 2 : TILE), work.row0);
                    commit_boxes();
                    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
                    barrier_arrive(area_free);
                }
                __syncwarp();
                phase ^= 1;
            }
            asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(S::SUM_REGISTERS));
        int wg = (int)threadIdx.x >> 7, thread = (int)threadIdx.x & 127;
        int lane = thread & 31;
        uint32_t ring_at = shared_address(ring);
        int stage = 0;
        uint32_t phase = 0, slot_phases = 0, area_phase = 1;
        if (!a.x_is_there) /* y is written straight from here, perhaps */
            pdl_wait();
        for (int w = cluster; w < n_work; w += n_clusters) {
            float total[N / 2], acc[N / 2];
#pragma unroll
            for (int i = 0; i < N / 2; i++)
                total[i] = 0;
            if (w < n_work - 2 * a.n_halves)
                wide_sum<S, N>(total, acc, a, ring_at, full, empty, stage, phase, wg, lane);
            else
                wide_sum<S, N / 2>(total, acc, a, ring_at, full, empty, stage, phase, wg, lane);

            const struct wide_work work = wide_work_at<S>(a, w, n_groups, n_row_tiles, rank);
            int m_tile = work.m_tile + wg;
            int out[2];
            outputs_of(out, a, m_tile * TILE + (thread >> 5) * 16 + (lane >> 2));
            if (m_tile >= a.n_m_tiles)
                out[0] = out[1] = -1;
            if (a.bias != nullptr) {
                float b0 = out[0] >= 0 ? __ldg(a.bias + out[0]) : 0;
                float b1 = out[1] >= 0 ? __ldg(a.bias + out[1]) : 0;
#pragma unroll
                for (int u = 0; u < S::UNITS; u++) {
                    total[4 * u] += b0;
                    total[4 * u + 1] += b0;
                    total[4 * u + 2] += b1;
                    total[4 * u + 3] += b1;
                }
            }
            if constexpr (S::APART)
                if (work.row0 < a.n_deltas && __ldcg(a.any_deltas) != 0)
                    wide_add_deltas<S>(total, a, out, work, lane);
            if (lora_n_segs(a.lora) > 0) {
                int before = -1, slot = 0, n_steps = 0;
#pragma unroll 1
                for (bool last = false; !last; n_steps++) {
                    barrier_wait(&steps.full[slot], slot_phases >> slot & 1);
                    slot_phases ^= 1u << slot;
                    if (lane == 0) /* who reads it hands it back */
                        last = steps.last[slot];
                    last = __shfl_sync(0xffffffffu, last, 0);
                    uint32_t at = steps.at + slot * S::STEP;
                    wgmma_fence();
                    wgmma<N>(acc, wgmma_descriptor_32(at + wg * TILE * 32),
                             wgmma_descriptor_32(at + S::STEP_B), before >= 0);
                    wgmma_commit();
                    if (before >= 0) {
                        wgmma_wait<1>();
                        if (lane == 0)
                            barrier_arrive(&steps.empty[before]);
                    }
                    before = slot;
                    if (++slot == S::STEPS)
                        slot = 0;
                }
                wgmma_wait<0>();
                if (lane == 0)
                    barrier_arrive(&steps.empty[before]);
#pragma unroll
                for (int i = 0; i < N / 2; i++)
                    total[i] += acc[i];
                wide_await_room<S>(steps, wg, a.store == STORE_SWIGLU, n_steps, slot_phases);
            }
            barrier_wait(area_free, area_phase);
            area_phase ^= 1;
            if (!a.y_boxes)
                wide_store_straight<S>(total, a, out, work, lane);
            else if (m_tile < a.n_m_tiles)
                wide_stage<S>(total, a, steps.at + wg * S::STAGING);
            fence_before_copies();
            __syncwarp();
            if (lane == 0)
                barrier_arrive(&staged[wg]);
        }
    }
}

#endif
