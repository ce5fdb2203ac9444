/* linear_narrow.cuh: linear for up to 128 rows, but for what linear_middle.cuh takes. Part of
 * linear.cu, whose head has the design. */
#ifndef TRIBUTARY_KERNELS_CUDA_LINEAR_NARROW_CUH
#define TRIBUTARY_KERNELS_CUDA_LINEAR_NARROW_CUH

#include "kernels/cuda/linear_adapters.cuh"

/* APART: the adapters' deltas lie in memory. BESIDE: in a kernel with middle (linear_middle.cuh),
 * which divides the registers. */
template <int N_, bool APART_ = false, bool BESIDE = false> struct narrow {
    static constexpr bool APART = APART_;
    static constexpr int N = N_, ROWS = N;
    static constexpr int STAGE = TILE_BYTES + N * TILE * 2;                   /* bytes */
    static constexpr int DEPTH = N <= 16 ? 6 : N == 32 ? 5 : N == 64 ? 3 : 2; /* of a ring */
    /* Stages of each ring on their way at a time, 54 to 96 KiB a block: enough to keep memory busy.
     * More would make all other loads wait behind them; the ring is deeper to ride over the ends of
     * tiles. */
    static constexpr int FLIGHT = N <= 32 ? 3 : 2;
    static constexpr int UNITS = N / 8;    /* m64n8 pieces of the accumulator */
    static constexpr int PIECE = 128 * 16; /* bytes of one in shared memory: a float4 a thread */
    static constexpr int SEGS = N < 32 ? 32 : N; /* of a step; more go the wide way */
    typedef narrow_found<N, SEGS> found;
    /* The launch bound of 640 stands for 96 registers a thread: with them a small kernel that comes
     * next fits beside this one, and waits there. 512 stands for 128. The warpgroups divide them
     * anew. */
    static constexpr int BOUND = N <= 32 ? 640 : 512;
    static constexpr int REGISTERS = (N <= 32 ? 96 : 128) * 16; /* of a lane of all warps */
    static constexpr int MULTIPLY_REGISTERS = N <= 32 ? 96 : N == 64 ? 136 : BESIDE ? 160 : 128;
    static constexpr int FILL_REGISTERS = N == 64 || BESIDE ? 40 : 48;
    static constexpr int ADAPT_REGISTERS =
        (REGISTERS - 8 * MULTIPLY_REGISTERS - 4 * FILL_REGISTERS) / 4;

    /* Thread blocks of a cluster, and where a range is summed. */
    static __host__ __device__ constexpr int cluster(int n_ranges)
    {
        return n_ranges / 2;
    }
    static __device__ int range_of(int rank, int wg)
    {
        return 2 * rank + wg;
    }
    /* Rows 0-7, 8-15, ... are finished by the warpgroup of range 0, 1, ...: so many each. */
    static __host__ __device__ constexpr int units_each(int n_ranges)
    { /* divided by the compiler */
        return n_ranges == 2 ? (UNITS + 1) / 2 : n_ranges == 4 ? (UNITS + 3) / 4 : (UNITS + 7) / 8;
    }
    static __host__ __device__ constexpr int partial_bytes(int n_ranges)
    {
        return 2 * (n_ranges - 1) * units_each(n_ranges) * PIECE;
    }
    /* B on its way to the adapters' warps, and t' of the rows that they compute. */
    static constexpr int B_BYTES = N <= 64 ? 32768 : 16384, B_SLOTS = 16;
    static constexpr int GROUP = N <= 64 ? 4 : 2; /* segments that B comes of together, at most */
    static constexpr int NOTE_BYTES = B_SLOTS * GROUP * LORA_PARTS_MAX * 16; /* b_note */
    static constexpr int T_BYTES = (N <= 32 ? 16 : 28) << 10; /* three parts of rank 64 */
    /* With adapters a tile is finished when the next one has been summed, where there is room to
     * keep it: the first tile's deltas come late. */
    static __host__ __device__ constexpr bool lags(int n_ranges)
    {
        return N <= 64 && n_ranges >= 4;
    }
    static __host__ __device__ constexpr int delta_bytes(int n_ranges)
    {
        return 2 * units_each(n_ranges) * PIECE;
    }
    static constexpr size_t shared_bytes(int n_ranges)
    {
        return 1024 + (size_t)2 * DEPTH * STAGE + partial_bytes(n_ranges) +
               (lags(n_ranges) ? 3 : 1) * delta_bytes(n_ranges) + B_BYTES + T_BYTES +
               sizeof(found) + NOTE_BYTES + (4 * DEPTH + 8 + 2 * B_SLOTS) * 8;
    }

    /* Of the deltas (linear_adapters.cuh). A turn is a tile, always of the same rows. */
    static __device__ int n_buffers(int n_ranges)
    {
        return lags(n_ranges) ? 2 : 1;
    }
    static __device__ int turn_units(int n_ranges)
    {
        return units_each(n_ranges);
    }
    /* t' is kept of all of the block's rows, or of one warpgroup's. */
    static constexpr bool ROWS_OF_WG = true;
    static __device__ int some_t_units(int n_ranges) /* of eight rows */
    {
        return units_each(n_ranges);
    }
    static __device__ int all_t_units(int n_ranges)
    {
        return 2 * units_each(n_ranges);
    }
    static __device__ int t_first(const struct delta_turn &, int wg, int n_ranges, bool all)
    {
        return all ? wg * units_each(n_ranges) : 0;
    }
    static __device__ int t_unit(const struct delta_turn &turn, int wg, int i, int n_ranges,
                                 bool all)
    {
        int each = units_each(n_ranges), second = i >= each;
        return all ? turn.first(second) + (i - second * each) * turn.step
                   : turn.first(wg) + i * turn.step;
    }
    /* Has a warpgroup eight rows to finish, or none? */
    static __device__ bool one_unit_each(int n_ranges)
    {
        return units_each(n_ranges) == 1;
    }
    /* Where t' of a row is, when that of all rows is kept and a warpgroup has one unit; or -1. */
    static __device__ int t_row(int row, int n_ranges)
    {
        int wg = row / 8 - range_of(cluster_rank(), 0);
        return row < 8 * n_ranges && (wg == 0 || wg == 1) ? wg * 8 + row % 8 : -1;
    }
    static __device__ int first_tile()
    {
        return (int)blockIdx.x / cluster_size();
    }
    static __device__ bool one_tile(const struct linear_args &a) /* or none, a block */
    {
        return a.n_m_tiles <= (int)gridDim.x / cluster_size();
    }
    struct run {
    };
    template <typename Function>
    static __device__ void for_each_turn(const struct linear_args &a, const struct run *,
                                         Function &&f)
    {
        int cluster = cluster_size(), rank = cluster_rank(), no = 0;
        int n_clusters = (int)gridDim.x / cluster;
        for (int tile = (int)blockIdx.x / cluster; tile < a.n_m_tiles; tile += n_clusters)
            f(no++, delta_turn{tile, tile, range_of(rank, 0), range_of(rank, 1), a.n_ranges,
                               (a.n_rows + 7) / 8});
    }
};

/* to = (x, y, z, w), if it is so. Written in C++, the compiler makes an index into memory of it. */
__device__ static inline void take_if(float4 &to, bool is, float x, float y, float z, float w)
{
    asm("{.reg .pred is; setp.ne.s32 is, %4, 0;\n"
        "@is mov.f32 %0, %5; @is mov.f32 %1, %6; @is mov.f32 %2, %7; @is mov.f32 %3, %8;}"
        : "+f"(to.x), "+f"(to.y), "+f"(to.z), "+f"(to.w)
        : "r"((int)is), "f"(x), "f"(y), "f"(z), "f"(w));
}

/* Fills warpgroup `wg`'s ring. One thread. */
template <int N>
__device__ static void narrow_fill(const struct linear_args &a, const CUtensorMap *x_map,
                                   char *slots, uint64_t *full, uint64_t *empty, int wg)
{
    using shape = narrow<N>;
    int cluster = cluster_size(), n_clusters = (int)gridDim.x / cluster;
    int first_tile = (int)blockIdx.x / cluster;
    int range = shape::range_of(cluster_rank(), wg);
    int begin = range * a.n_k / a.n_ranges, n = (range + 1) * a.n_k / a.n_ranges - begin;
    if (n == 0 || first_tile >= a.n_m_tiles)
        return;
    uint64_t policy = evict_first();
    int total = (a.n_m_tiles - first_tile + n_clusters - 1) / n_clusters * n;
    auto weights = [&](int i) {
        int slot = i % shape::DEPTH, tile = first_tile + i / n * n_clusters, k = begin + i % n;
        barrier_expect(&full[slot], shape::STAGE);
        copy_weight(slots + slot * shape::STAGE, a.w + ((int64_t)tile * a.n_k + k) * TILE_BYTES,
                    TILE_BYTES, &full[slot], policy);
    };
    auto rows = [&](int i) {
        int slot = i % shape::DEPTH, k = begin + i % n;
        copy_box(slots + slot * shape::STAGE + TILE_BYTES, x_map, k / a.n_planes * TILE, 0,
                 &full[slot]);
    };
    int ahead = total < shape::FLIGHT ? total : shape::FLIGHT;
    for (int i = 0; i < ahead; i++)
        weights(i);
    pdl_wait();
    for (int i = 0; i < ahead; i++)
        rows(i);
    for (int i = ahead; i < total; i++) {
        barrier_wait(&empty[i % shape::DEPTH], (i / shape::DEPTH - 1) & 1);
        int landed = i - shape::FLIGHT;
        barrier_wait(&full[landed % shape::DEPTH], landed / shape::DEPTH & 1);
        weights(i);
        rows(i);
    }
}

template <class shape>
__device__ static __forceinline__ void narrow_body(const CUtensorMap &x_map,
                                                   const struct linear_args &a)
{
    constexpr int N = shape::N;
    extern __shared__ char raw[];
    char *ring = reinterpret_cast<char *>(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    char *partials = ring + 2 * shape::DEPTH * shape::STAGE;
    char *deltas = partials + shape::partial_bytes(a.n_ranges);
    char *sums = deltas + 2 * shape::delta_bytes(a.n_ranges); /* with a lag */
    char *stage_b = deltas + (shape::lags(a.n_ranges) ? 3 : 1) * shape::delta_bytes(a.n_ranges);
    char *stage_t = stage_b + shape::B_BYTES;
    typename shape::found *found = reinterpret_cast<typename shape::found *>(stage_t +
                                                                             shape::T_BYTES);
    char *notes = reinterpret_cast<char *>(found + 1);
    uint64_t *full = reinterpret_cast<uint64_t *>(notes + shape::NOTE_BYTES);
    uint64_t *empty = full + 2 * shape::DEPTH;
    uint64_t *partials_full = empty + 2 * shape::DEPTH; /* [2], of a warpgroup */
    uint64_t *partials_free = partials_full + 2;
    uint64_t *deltas_full = partials_free + 1, *deltas_free = deltas_full + 2;
    uint64_t *found_full = deltas_free + 2;
    uint64_t *b_full = found_full + 1, *b_free = b_full + shape::B_SLOTS;

    int cluster = cluster_size(), rank = cluster_rank();
    int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31;
    pdl_trigger();
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * shape::DEPTH; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 4);
        }
        for (int i = 0; i < 2; i++) {
            /* Of a cluster: the bytes. In a block alone: the other warpgroup's threads. */
            barrier_init(&partials_full[i], cluster > 1 ? 1 : 1 + 128);
            barrier_init(&deltas_full[i], ADAPTER_WARPS * 32);
            barrier_init(&deltas_free[i], 8 * 32);
        }
        barrier_init(partials_free, cluster > 1 ? 8 * cluster : 8 * 32);
        barrier_init(found_full, ADAPTER_WARPS * 32);
        for (int i = 0; i < shape::B_SLOTS; i++) {
            barrier_init(&b_full[i], 32);
            barrier_init(&b_free[i], ADAPTER_WARPS * 32);
        }
        barrier_init_done();
    }
    if (cluster > 1)
        cluster_arrive();
    else
        __syncthreads();
    /* While the blocks meet, but so that nobody waits for it. */
    if (warp >= NARROW_ADAPTERS && a.lora.n_parts > 0)
        narrow_ask_found<shape>(a, found, (int)threadIdx.x - NARROW_ADAPTERS * 32);
    if (cluster > 1)
        cluster_wait();

    struct adapter_memory<shape> memory;
    memory.found = found;
    memory.run = nullptr;
    memory.notes = reinterpret_cast<struct b_note *>(notes);
    memory.b = stage_b;
    memory.t = stage_t;
    memory.deltas = deltas;
    memory.b_full = b_full;
    memory.b_free = b_free;
    memory.deltas_full = deltas_full;
    memory.deltas_free = deltas_free;
    if (warp >= NARROW_ADAPTERS) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(shape::ADAPT_REGISTERS));
        if (a.lora.n_parts == 0)
            return;
        copies_arrive(found_full);
        barrier_wait(found_full, 0);
        if (found->head.n_segs > shape::SEGS)
            __trap(); /* the caller broke ops.h: more segments than found holds */
        if (!has_deltas<shape>(*found))
            return;
        if constexpr (shape::APART)
            fetch_deltas<shape>(a, memory);
        else
            narrow_adapters<shape>(a, memory);
        return;
    }
    if (warp >= NARROW_FILLERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(shape::FILL_REGISTERS));
        int i = warp - NARROW_FILLERS;
        if (i >= 2) { /* fill B's */
            if (shape::APART || a.lora.n_parts == 0)
                return;
            barrier_wait(found_full, 0);
            if (found->head.n_segs > 0 && narrow_staged<shape>(a, *found))
                narrow_fill_b<shape>(a, memory, (unsigned)(i - 2), lane);
        } else if (lane == 0)
            narrow_fill<N>(a, &x_map, ring + i * shape::DEPTH * shape::STAGE,
                           full + i * shape::DEPTH, empty + i * shape::DEPTH, i);
        return;
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(shape::MULTIPLY_REGISTERS));
    int wg = warp >> 2, me = shape::range_of(rank, wg); /* my range, and my share of the rows */
    int thread = (int)threadIdx.x & 127, g = lane >> 2, t = lane & 3;
    int n_clusters = (int)gridDim.x / cluster;
    int units_each = shape::units_each(a.n_ranges);
    /* Units are rows 0-7, 8-15, ...; mine are me, me + n_ranges, ... The code below is large when
     * it divides, and what doesn't fit the instruction cache waits behind the weights. */
    int n_row_units = (a.n_rows + 7) / 8, ranges_mask = a.n_ranges - 1;
    int range_bits = a.n_ranges == 8 ? 3 : a.n_ranges == 4 ? 2 : 1;
    int n_mine = n_row_units > me ? (n_row_units - me + ranges_mask) >> range_bits : 0;
    int begin = me * a.n_k / a.n_ranges, n = (me + 1) * a.n_k / a.n_ranges - begin;
    const char *slots = ring + wg * shape::DEPTH * shape::STAGE;
    uint64_t *my_full = full + wg * shape::DEPTH, *my_empty = empty + wg * shape::DEPTH;
    char *mine = partials + wg * (a.n_ranges - 1) * units_each * shape::PIECE + thread * 16;
    const char *my_deltas = deltas + wg * units_each * shape::PIECE + thread * 16;
    char *my_sums = sums + wg * units_each * shape::PIECE + thread * 16;
    bool adapters = false, lag = false; /* known when the first tile has been summed */

    /* Adds bias and deltas to the sums of a tile, which lie in my place of the first partial or,
     * with a lag, in one of their own. */
    auto finish = [&](int tile, int tile_no) {
        int buffer = lag ? tile_no % 2 : 0, turn = lag ? tile_no / 2 : tile_no, out[2];
        const char *from = lag ? my_sums : mine;
        const char *delta = my_deltas + buffer * shape::delta_bytes(a.n_ranges);
        outputs_of(out, a, tile * TILE + (warp & 3) * 16 + g);
        float bias[2] = {};
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (a.bias != nullptr && out[i] >= 0)
                bias[i] = __ldg(a.bias + out[i]);
        if (adapters)
            barrier_wait(&deltas_full[buffer], turn & 1);
#pragma unroll 1
        for (int i = 0; i < n_mine; i++) {
            float4 v = *reinterpret_cast<const float4 *>(from + i * shape::PIECE);
            v = make_float4(v.x + bias[0], v.y + bias[0], v.z + bias[1], v.w + bias[1]);
            if (adapters) {
                float4 d = *reinterpret_cast<const float4 *>(delta + i * shape::PIECE);
                v = make_float4(v.x + d.x, v.y + d.y, v.z + d.z, v.w + d.w);
            }
            store_tile({v.x, v.y, v.z, v.w}, a, out, 8 * (me + i * a.n_ranges) + 2 * t);
        }
        if (adapters)
            barrier_arrive(&deltas_free[buffer]);
    };

    int stage = 0, tile_no = 0;
    uint32_t phase = 0;
    for (int tile = (int)blockIdx.x / cluster; tile < a.n_m_tiles; tile += n_clusters, tile_no++) {
        float acc[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            acc[i] = 0;
        for (int k = 0; k < n; k++) {
            barrier_wait(&my_full[stage], phase);
            uint32_t at = shared_address(slots + stage * shape::STAGE);
            uint64_t w = wgmma_descriptor(at);
            uint64_t b = wgmma_descriptor(at + TILE_BYTES);
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++)
                wgmma<N>(acc, w + 2 * s, b + 2 * s, k > 0 || s > 0);
            wgmma_commit();
            wgmma_wait<0>();
            if (lane == 0)
                barrier_arrive(&my_empty[stage]);
            if (++stage == shape::DEPTH) {
                stage = 0;
                phase ^= 1;
            }
        }

        if (tile_no == 0 && a.lora.n_parts > 0) {
            barrier_wait(found_full, 0);
            adapters = has_deltas<shape>(*found);
            lag = adapters && shape::lags(a.n_ranges);
        }
        /* Hand the others their rows of my range. */
        if (thread == 0)
            barrier_expect(&partials_full[wg],
                           cluster > 1 ? (uint32_t)(n_mine * (a.n_ranges - 1) * shape::PIECE) : 0);
        if (tile_no > 0)
            barrier_wait(partials_free, (tile_no - 1) & 1);
        /* Opaque, so that what follows isn't computed for all u before the loop, and kept. */
        int zero = 0;
        asm volatile("" : "+r"(zero));
        /* In the owner's block. */
        auto place = [&](int u, int owner) {
            int from = me < owner ? me : me - 1;
            int piece = ((owner & 1) * ranges_mask + from) * units_each + (u >> range_bits);
            return partials + piece * shape::PIECE + thread * 16;
        };
        if (cluster > 1) {
#pragma unroll
            for (int u = 0; u < shape::UNITS; u++) {
                int owner = (u + zero) & ranges_mask;
                if (owner != me && u < n_row_units)
                    store_remote(shared_address(place(u + zero, owner)), owner >> 1,
                                 &partials_full[owner & 1], acc[4 * u], acc[4 * u + 1],
                                 acc[4 * u + 2], acc[4 * u + 3]);
            }
        } else {
#pragma unroll
            for (int u = 0; u < shape::UNITS; u++)
                if (u % 2 != me && u < n_row_units)
                    *reinterpret_cast<float4 *>(place(u, u % 2)) = make_float4(
                        acc[4 * u], acc[4 * u + 1], acc[4 * u + 2], acc[4 * u + 3]);
            barrier_arrive(&partials_full[1 - wg]);
        }
        if (lag && tile_no > 0)
            finish(tile - n_clusters, tile_no - 1);
        barrier_wait(&partials_full[wg], tile_no & 1);

        /* Add up mine, from +0 on so that no sum is -0. */
#pragma unroll 1
        for (int i = 0; i < n_mine; i++) {
            char *at = mine + i * shape::PIECE;
            float4 own = make_float4(0, 0, 0, 0), sum = own;
#pragma unroll
            for (int u = 0; u < shape::UNITS; u++)
                take_if(own, u == me + (i << range_bits), acc[4 * u], acc[4 * u + 1],
                        acc[4 * u + 2], acc[4 * u + 3]);
#pragma unroll 1
            for (int r = 0; r < a.n_ranges; r++) {
                float4 v = own;
                if (r != me)
                    v = *reinterpret_cast<float4 *>(at + (r < me ? r : r - 1) * units_each *
                                                             shape::PIECE);
                sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
            }
            *reinterpret_cast<float4 *>((lag ? my_sums : mine) + i * shape::PIECE) = sum;
        }
        if (!lag)
            finish(tile, tile_no);
        __syncwarp();
        if (cluster == 1)
            barrier_arrive(partials_free);
        if (cluster > 1 && lane < cluster &&
            tile + n_clusters < a.n_m_tiles) /* else nobody waits for it, and that block may be
                                                gone */
            barrier_arrive_remote(partials_free, lane);
    }
    if (lag && tile_no > 0)
        finish((int)blockIdx.x / cluster + (tile_no - 1) * n_clusters, tile_no - 1);
}

template <int N, bool APART>
__global__ static void __launch_bounds__(narrow<N>::BOUND, 1)
    narrow_kernel(const __grid_constant__ CUtensorMap x_map,
                  const __grid_constant__ struct linear_args a)
{
    narrow_body<narrow<N, APART>>(x_map, a);
}

#endif
