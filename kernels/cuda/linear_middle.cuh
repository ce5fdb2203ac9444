/* linear_middle.cuh: linear for 33 to 128 rows and weights of many outputs (gate and up, the head).
 * Part of linear.cu, whose head has the design and the order of summation.
 *
 * With so many rows narrow is bound by L2: x passes once for every 64 outputs, as many bytes as the
 * weights at 64 rows and twice as many at 128, and L2 delivers 6 to 7 TB/s. Here a thread block
 * takes 128 outputs, each of its two warpgroups 64; at 128 rows two blocks with neighbouring
 * outputs form a cluster, and each fetches half of x for both. Of gate and up of an 8B model (235
 * MB of weights, 56 us at 4.2 TB/s), us at 6.3 TB/s of L2:
 *
 *               64 rows        128 rows
 *     narrow    470 MB, 75     705 MB, 112
 *     here      352 MB, 56     352 MB, 56
 *
 * Measured on an H200: 75 and 107 us by narrow, 57 and 70 here.
 *
 * Work is cut into units, a range of K of a cluster's outputs. The units stand in a row, range
 * after range and outputs after outputs, and each cluster takes a run of them, all runs equally
 * long but for one unit, and none shorter than the ranges of an output:
 *
 *     outputs     0 - 127      128 - 255     256 - 383
 *     ranges    0  1  2  3    0  1  2  3    0  1  2  3
 *     cluster   0  0  0  0    0  0  0 |1    1  1  1  1 | ...
 *
 * A cluster goes through its run's outputs from the last to the first, and through their ranges
 * from the first to the last. So the outputs that it shares with the next cluster come first: it
 * adds their first ranges up and hands the sums on; and that cluster, for which these outputs come
 * last, finds the sums there and goes on adding. Nobody waits, but for what he asks for a range
 * ahead.
 *
 * Handing on. Sums go through L2, 16 bytes a thread, into a place of the block that holds nothing
 * but EMPTY between launches: who wants them reads until no word is EMPTY, and puts EMPTY back. No
 * sum is EMPTY, a NaN that arithmetic doesn't make (put_sums sees to it); each word is written once
 * and read once in a launch, and a launch begins with it when the one before has ended; so there
 * are no tags, no counters and no fences.
 *
 * Adapters as in narrow, in turns of 32 rows. */
#ifndef TRIBUTARY_KERNELS_CUDA_LINEAR_MIDDLE_CUH
#define TRIBUTARY_KERNELS_CUDA_LINEAR_MIDDLE_CUH

#include "kernels/cuda/linear_narrow.cuh"

enum { MIDDLE_RANKS_MAX = 512 }; /* of all adapters of a step */

/* A cluster's run of units. */
struct middle_run {
    int begin, end; /* units */
    int bits;       /* log2 of the ranges */

    __device__ int first_group() const
    {
        return (end - 1) >> bits;
    }
    __device__ int last_group() const
    {
        return begin >> bits;
    }
    /* The ranges of a group that are in it. */
    __device__ int first_range(int group) const
    {
        return group == last_group() ? begin - (group << bits) : 0;
    }
    __device__ int end_range(int group) const
    {
        return group == first_group() ? end - (group << bits) : 1 << bits;
    }
    __device__ bool hands_on(int group) const
    {
        return end_range(group) < 1 << bits;
    }
};

/* N: rows, 64 or 128. BITS: log2 of the ranges of K, 1 or 2. A launch's blocks are all resident
 * together, and middle::fills holds for them. */
template <int N_, int BITS_, bool APART_ = false> struct middle {
    static constexpr bool APART = APART_;
    static constexpr int N = N_, CLUSTER = N == 64 ? 1 : 2;
    static constexpr int BITS = BITS_, RANGES = 1 << BITS;      /* of K */
    static constexpr int STAGE = 2 * TILE_BYTES + N * TILE * 2; /* bytes */
    static constexpr int DEPTH = 4;
    static constexpr int UNITS = N / 8;    /* m64n8 pieces of the accumulator */
    static constexpr int PIECE = 128 * 16; /* bytes of one in shared memory: a float4 a thread */
    static constexpr int CHUNK = 4; /* units of eight rows whose deltas are computed together */
    static constexpr int ROWS = N, SEGS = N;
    typedef narrow_found<ROWS, SEGS> found;
    typedef struct middle_run run;
    /* As narrow's: a kernel has both. */
    typedef narrow<N, false, true> many;
    static constexpr int BOUND = many::BOUND;
    static constexpr int MULTIPLY_REGISTERS = many::MULTIPLY_REGISTERS;
    static constexpr int FILL_REGISTERS = many::FILL_REGISTERS;
    static constexpr int ADAPT_REGISTERS = many::ADAPT_REGISTERS;
    static constexpr int DELTA_BYTES = 2 * CHUNK * PIECE, BUFFERS = 2;
    /* A warpgroup's outputs on their way to y: boxes of eight rows. */
    static constexpr int BOXES = 8, BOX_BYTES = 1024, OUT_BYTES = 2 * BOXES * BOX_BYTES;
    static constexpr int B_BYTES = N <= 64 ? 32768 : 16384, B_SLOTS = 16;
    static constexpr int GROUP = N <= 64 ? 4 : 2; /* segments that B comes of together, at most */
    static constexpr int NOTE_BYTES = B_SLOTS * GROUP * LORA_PARTS_MAX * 16;
    static constexpr int T_BYTES = N <= 64 ? 17 << 10
                                           : 16 << 10;   /* 64 rows: two parts of rank 64 */
    static constexpr int SLOT_BYTES = 2 * UNITS * PIECE; /* what a block hands on */
    static constexpr size_t SHARED = (size_t)DEPTH * STAGE + OUT_BYTES + BUFFERS * DELTA_BYTES +
                                     B_BYTES + T_BYTES + sizeof(found) + NOTE_BYTES +
                                     (2 * DEPTH + 2 * BUFFERS + 1 + 2 * B_SLOTS) * 8;

    static __host__ __device__ int n_groups(int n_m_tiles)
    {
        return (n_m_tiles + 2 * CLUSTER - 1) / (2 * CLUSTER);
    }
    /* Has each cluster all ranges of some outputs? */
    static __host__ bool fills(int n_m_tiles, int n_blocks)
    {
        return n_blocks >= CLUSTER && n_groups(n_m_tiles) >= n_blocks / CLUSTER;
    }
    static __device__ struct middle_run run_of(const struct linear_args &a)
    {
        unsigned n_units = (unsigned)n_groups(a.n_m_tiles) << BITS, n = gridDim.x / CLUSTER;
        unsigned cluster = blockIdx.x / CLUSTER;
        return {(int)(cluster * n_units / n), (int)((cluster + 1) * n_units / n), BITS};
    }

    /* Of the deltas (linear_adapters.cuh). A turn is a chunk. */
    static __device__ int n_buffers(int)
    {
        return BUFFERS;
    }
    static __device__ int delta_bytes(int)
    {
        return DELTA_BYTES;
    }
    static __device__ int turn_units(int)
    {
        return CHUNK;
    }
    /* t' is kept of all rows, or of a turn's. */
    static constexpr bool ROWS_OF_WG = false;
    static __device__ int some_t_units(int) /* of eight rows */
    {
        return CHUNK;
    }
    static __device__ int all_t_units(int)
    {
        return UNITS;
    }
    static __device__ int t_first(const struct delta_turn &turn, int, int, bool all)
    {
        return all ? turn.first0 : 0;
    }
    static __device__ int t_unit(const struct delta_turn &turn, int, int i, int, bool all)
    {
        return all ? i : turn.first0 + i;
    }
    static __device__ bool one_unit_each(int)
    {
        return false;
    }
    static __device__ int t_row(int, int)
    {
        return -1;
    }
    static __device__ int first_tile()
    {
        return -1;
    }
    static __device__ bool one_tile(const struct linear_args &)
    {
        return false;
    }
    template <typename Function>
    static __device__ void for_each_turn(const struct linear_args &a, const struct middle_run *run,
                                         Function &&f)
    {
        int n_row_units = (a.n_rows + 7) / 8, rank = CLUSTER > 1 ? cluster_rank() : 0, no = 0;
#pragma unroll 1
        for (int group = run->first_group(); group >= run->last_group(); group--) {
            int tile = (group * CLUSTER + rank) * 2;
#pragma unroll 1
            for (int u = 0; u < n_row_units && !run->hands_on(group); u += CHUNK)
                f(no++, delta_turn{tile, tile + 1, u, u, 1, n_row_units});
        }
    }
};

/* ---- the ring
 * -------------------------------------------------------------------------------------------- */

/* Where the one that fills it is in the block's run. */
struct middle_cursor {
    int group, k, k_end;
};

/* By one thread. */
template <class S>
__device__ static void middle_fill(const struct linear_args &a, const CUtensorMap *x_map,
                                   const struct middle_run &run, char *ring, uint64_t *full,
                                   uint64_t *empty, int rank)
{
    constexpr int SHARE = S::N / S::CLUSTER;
    uint64_t policy = evict_first();
    int last = run.last_group();
    /* Onwards to a step that there is. */
    auto settle = [&](struct middle_cursor &at) {
        while (at.k == at.k_end && --at.group >= last) {
            at.k = run.first_range(at.group) * a.n_k >> S::BITS;
            at.k_end = run.end_range(at.group) * a.n_k >> S::BITS;
        }
    };
    auto weights = [&](const struct middle_cursor &at, int stage) {
        int m = (at.group * S::CLUSTER + rank) * 2; /* tiles past the end are dropped */
        int m0 = m < a.n_m_tiles ? m : a.n_m_tiles - 1;
        int m1 = m + 1 < a.n_m_tiles ? m + 1 : a.n_m_tiles - 1;
        char *to = ring + stage * S::STAGE;
        barrier_expect(&full[stage], S::STAGE);
        copy_weight(to, a.w + ((int64_t)m0 * a.n_k + at.k) * TILE_BYTES, TILE_BYTES, &full[stage],
                    policy);
        copy_weight(to + TILE_BYTES, a.w + ((int64_t)m1 * a.n_k + at.k) * TILE_BYTES, TILE_BYTES,
                    &full[stage], policy);
    };
    auto rows = [&](const struct middle_cursor &at, int stage) {
        char *to = ring + stage * S::STAGE + 2 * TILE_BYTES + rank * SHARE * TILE * 2;
        int column = (a.n_planes == 2 ? at.k >> 1 : at.k) * TILE;
        if (S::CLUSTER > 1)
            copy_box_to_all(to, x_map, column, rank * SHARE, &full[stage], (1 << S::CLUSTER) - 1);
        else
            copy_box(to, x_map, column, 0, &full[stage]);
    };
    struct middle_cursor w = {run.first_group() + 1, 0, 0}, x = w;
    int ahead = 0, stage = 0;
    for (settle(w); ahead < S::DEPTH && w.group >= last; ahead++, w.k++, settle(w))
        weights(w, ahead);
    pdl_wait();
    settle(x);
    for (int i = 0; i < ahead; i++, x.k++, settle(x))
        rows(x, i);
    uint32_t phase = 0; /* of empty */
    for (; w.group >= last; w.k++, settle(w)) {
        barrier_wait(&empty[stage], phase);
        weights(w, stage);
        rows(w, stage);
        if (++stage == S::DEPTH) {
            stage = 0;
            phase ^= 1;
        }
    }
    /* The other block still says that it has read; not to one that is gone. */
    for (int i = 0; i < ahead && S::CLUSTER > 1; i++) {
        barrier_wait(&empty[stage], phase);
        if (++stage == S::DEPTH) {
            stage = 0;
            phase ^= 1;
        }
    }
}

/* ---- the end of a tile
 * -------------------------------------------------------------------------------------------- */

/* A unit of eight rows of a warp's 16 packed outputs, into its box of y. */
__device__ static inline void stage_unit(const float (&c)[4], bool fused, uint32_t box)
{
    int warp = (int)threadIdx.x >> 5 & 3, lane = (int)threadIdx.x & 31, row = lane % 8;
    if (fused)
        store_matrix(box + row * 64 + ((warp ^ (row >> 1 & 3)) << 4),
                     pack_bf16(swiglu(c[0], c[2]), swiglu(c[1], c[3])));
    else
        store_matrices(box + row * 128 + (((warp * 2 + lane / 8 % 2) ^ row) << 4),
                       pack_bf16(c[0], c[1]), pack_bf16(c[2], c[3]));
}

template <class S>
__device__ static __forceinline__ void
middle_body(const CUtensorMap &x_map, const CUtensorMap &y_map, const struct linear_args &a)
{
    constexpr int N = S::N;
    extern __shared__ __align__(1024) char ring[];
    char *outputs = ring + S::DEPTH * S::STAGE;
    char *deltas = outputs + S::OUT_BYTES;
    char *stage_b = deltas + S::BUFFERS * S::DELTA_BYTES;
    char *stage_t = stage_b + S::B_BYTES;
    typename S::found *found = reinterpret_cast<typename S::found *>(stage_t + S::T_BYTES);
    char *notes = reinterpret_cast<char *>(found + 1);
    uint64_t *full = reinterpret_cast<uint64_t *>(notes + S::NOTE_BYTES);
    uint64_t *empty = full + S::DEPTH;
    uint64_t *deltas_full = empty + S::DEPTH, *deltas_free = deltas_full + S::BUFFERS;
    uint64_t *found_full = deltas_free + S::BUFFERS;
    uint64_t *b_full = found_full + 1, *b_free = b_full + S::B_SLOTS;
    const struct middle_run run = S::run_of(a);

    int rank = S::CLUSTER > 1 ? cluster_rank() : 0;
    int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31;
    pdl_trigger();
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::DEPTH; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 8 * S::CLUSTER);
        }
        for (int i = 0; i < S::BUFFERS; i++) {
            barrier_init(&deltas_full[i], ADAPTER_WARPS * 32);
            barrier_init(&deltas_free[i], 8 * 32);
        }
        barrier_init(found_full, ADAPTER_WARPS * 32);
        for (int i = 0; i < S::B_SLOTS; i++) {
            barrier_init(&b_full[i], 32);
            barrier_init(&b_free[i], ADAPTER_WARPS * 32);
        }
        barrier_init_done();
    }
    if (S::CLUSTER > 1)
        cluster_arrive();
    else
        __syncthreads();
    if (warp >= NARROW_ADAPTERS && a.lora.n_parts > 0)
        narrow_ask_found<S>(a, found, (int)threadIdx.x - NARROW_ADAPTERS * 32);
    if (S::CLUSTER > 1)
        cluster_wait();

    struct adapter_memory<S> memory;
    memory.found = found;
    memory.run = &run;
    memory.notes = reinterpret_cast<struct b_note *>(notes);
    memory.b = stage_b;
    memory.t = stage_t;
    memory.deltas = deltas;
    memory.b_full = b_full;
    memory.b_free = b_free;
    memory.deltas_full = deltas_full;
    memory.deltas_free = deltas_free;
    if (warp >= NARROW_ADAPTERS) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(S::ADAPT_REGISTERS));
        if (a.lora.n_parts == 0)
            return;
        copies_arrive(found_full);
        barrier_wait(found_full, 0);
        if (found->head.n_segs > S::SEGS)
            __trap(); /* the caller broke ops.h: more segments than found holds */
        if (!has_deltas<S>(*found))
            return;
        if constexpr (S::APART)
            fetch_deltas<S>(a, memory);
        else
            narrow_adapters<S>(a, memory);
        return;
    }
    if (warp >= NARROW_FILLERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(S::FILL_REGISTERS));
        if (warp >= NARROW_FILLERS + 2) {
            if (S::APART || a.lora.n_parts == 0)
                return;
            barrier_wait(found_full, 0);
            if (found->head.n_segs > 0 && narrow_staged<S>(a, *found))
                narrow_fill_b<S>(a, memory, (unsigned)(warp - NARROW_FILLERS - 2), lane);
        } else if (warp == NARROW_FILLERS && lane == 0) {
            middle_fill<S>(a, &x_map, run, ring, full, empty, rank);
        }
        return;
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(S::MULTIPLY_REGISTERS));
    int wg = warp >> 2, thread = (int)threadIdx.x & 127, g = lane >> 2, t = lane & 3;
    int n_row_units = (a.n_rows + 7) / 8;
    pdl_wait(); /* a launch before this one may still hand on in the same places */
    const char *my_deltas = deltas + wg * S::CHUNK * S::PIECE + thread * 16;
    char *my_slot = a.slots + (size_t)blockIdx.x * S::SLOT_BYTES + wg * S::UNITS * S::PIECE +
                    thread * 16;
    uint32_t boxes = shared_address(outputs) + wg * S::BOXES * S::BOX_BYTES;
    bool fused = a.store == STORE_SWIGLU;
    bool asked = a.lora.n_parts == 0, adapters = false; /* known when something has been summed */
    int stage = 0, chunk_no = 0;
    uint32_t phase = 0;
#pragma unroll 1
    for (int group = run.first_group(); group >= run.last_group(); group--) {
        int m_tile = (group * S::CLUSTER + rank) * 2 + wg, first = run.first_range(group);
        bool live = m_tile < a.n_m_tiles;
        char *handed = my_slot - S::CLUSTER * S::SLOT_BYTES; /* by the cluster before */
        float total[N / 2], none = first > 0 && live ? __uint_as_float(EMPTY) : 0;
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            total[i] = i / 4 < n_row_units ? none : 0; /* from +0 on, so that no sum is -0 */
        if (first > 0 && live)
            ask_sums<S::UNITS, S::PIECE>(total, handed, n_row_units);
#pragma unroll 1
        for (int r = first; r < run.end_range(group); r++) {
            int n = ((r + 1) * a.n_k >> S::BITS) - (r * a.n_k >> S::BITS);
            float acc[N / 2];
            if (S::BITS == 1 && n == 0) { /* only where K is one step */
#pragma unroll
                for (int i = 0; i < N / 2; i++)
                    acc[i] = 0;
            }
#pragma unroll 1
            for (int k = 0; k < n; k++) {
                barrier_wait(&full[stage], phase);
                uint32_t at = shared_address(ring + stage * S::STAGE);
                uint64_t w = wgmma_descriptor(at + wg * TILE_BYTES);
                uint64_t b = wgmma_descriptor(at + 2 * TILE_BYTES);
                wgmma_fence();
#pragma unroll
                for (int s = 0; s < 4; s++)
                    wgmma<N>(acc, w + 2 * s, b + 2 * s, k > 0 || s > 0);
                wgmma_commit();
                wgmma_wait<0>();
                if (S::CLUSTER == 1 && lane == 0)
                    barrier_arrive(&empty[stage]);
                if (S::CLUSTER > 1 && lane < S::CLUSTER)
                    barrier_arrive_remote(&empty[stage], lane);
                if (++stage == S::DEPTH) {
                    stage = 0;
                    phase ^= 1;
                }
            }
            if (r == first && first > 0 && live)
                take_sums<S::UNITS, S::PIECE>(total, handed, n_row_units);
#pragma unroll
            for (int i = 0; i < N / 2; i++)
                total[i] += acc[i];
        }
        if (run.hands_on(group)) {
#pragma unroll
            for (int u = 0; u < S::UNITS; u++)
                if (live && u < n_row_units)
                    put_sums(my_slot + u * S::PIECE, total[4 * u], total[4 * u + 1],
                             total[4 * u + 2], total[4 * u + 3]);
            continue;
        }

        if (!asked) {
            barrier_wait(found_full, 0);
            adapters = has_deltas<S>(*found);
            asked = true;
        }
        int out[2];
        outputs_of(out, a, m_tile * TILE + (warp & 3) * 16 + g);
        float bias[2] = {};
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (a.bias != nullptr && out[i] >= 0)
                bias[i] = __ldg(a.bias + out[i]);
#pragma unroll
        for (int u = 0; u < S::UNITS; u++) {
            if (u >= n_row_units)
                break;
            int buffer = chunk_no % S::BUFFERS;
            float c[4] = {total[4 * u] + bias[0], total[4 * u + 1] + bias[0],
                          total[4 * u + 2] + bias[1], total[4 * u + 3] + bias[1]};
            if (adapters) {
                if (u % S::CHUNK == 0)
                    barrier_wait(&deltas_full[buffer], chunk_no / S::BUFFERS & 1);
                float4 d = *reinterpret_cast<const float4 *>(my_deltas + buffer * S::DELTA_BYTES +
                                                             u % S::CHUNK * S::PIECE);
                c[0] += d.x;
                c[1] += d.y;
                c[2] += d.z;
                c[3] += d.w;
            }
            if (a.y_boxes && u % S::BOXES == 0) { /* the last ones have left the memory */
                if (thread == 0)
                    asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
                named_sync(3 + wg, 128);
            }
            if (a.y_boxes)
                stage_unit(c, fused, boxes + u % S::BOXES * S::BOX_BYTES);
            else
                store_tile(c, a, out, 8 * u + 2 * t);
            bool last = u + 1 == n_row_units;
            if (u % S::CHUNK == S::CHUNK - 1 || last) {
                if (adapters)
                    barrier_arrive(&deltas_free[buffer]);
                chunk_no++;
            }
            if (a.y_boxes && (u % S::BOXES == S::BOXES - 1 || last)) {
                fence_before_copies();
                named_sync(5 + wg, 128);
                if (thread == 0 && live) {
                    for (int i = u / S::BOXES * S::BOXES; i <= u; i++)
                        store_box(&y_map, boxes + i % S::BOXES * S::BOX_BYTES,
                                  m_tile * (fused ? TILE / 2 : TILE), 8 * i);
                    commit_boxes();
                }
            }
        }
    }
    if (a.y_boxes && thread == 0)
        asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

/* Few adapters go this way, many narrow's: there the deltas of a block are spread more evenly over
 * its time, and in smaller pieces. The bits are the same, and the step knows (a trip to L2, while
 * the kernel before ends). */
template <class S>
__global__ static void __launch_bounds__(S::BOUND, 1)
    middle_kernel(const __grid_constant__ CUtensorMap x_map,
                  const __grid_constant__ CUtensorMap y_map,
                  const __grid_constant__ CUtensorMap narrow_x_map,
                  const __grid_constant__ struct linear_args a)
{
    bool many = false;
    if (!S::APART && S::BITS == 2 && a.lora.n_parts > 0) {
        int n = __ldcg(&a.lora.found->head.n_segs), rank = __ldcg(&a.lora.found->head.rank);
        many = n * rank > MIDDLE_RANKS_MAX || (S::N > 64 && rank > 32);
    }
    if constexpr (!S::APART)
        if (many) {
            narrow_body<typename S::many>(narrow_x_map, a);
            return;
        }
    middle_body<S>(x_map, y_map, a);
}

#endif
