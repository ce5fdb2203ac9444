/* linear_narrow.cuh: linear for up to 128 rows. Part of linear.cu, whose head has the design. */
#ifndef TRIBUTARY_KERNELS_CUDA_LINEAR_NARROW_CUH
#define TRIBUTARY_KERNELS_CUDA_LINEAR_NARROW_CUH

#include "kernels/cuda/linear_adapters.cuh"

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

template <int N>
__global__ static void __launch_bounds__(narrow<N>::BOUND, 1)
    narrow_kernel(const __grid_constant__ CUtensorMap x_map,
                  const __grid_constant__ struct linear_args a)
{
    using shape = narrow<N>;
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
        barrier_init(partials_free, 8 * cluster);
        barrier_init(found_full, ADAPTER_WARPS * 32);
        for (int i = 0; i < shape::B_SLOTS; i++) {
            barrier_init(&b_full[i], 32);
            barrier_init(&b_free[i], ADAPTER_WARPS);
        }
        barrier_init_done();
    }
    if (cluster > 1)
        cluster_meet();
    else
        __syncthreads();

    struct adapter_memory<N> memory;
    memory.found = found;
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
        narrow_ask_found<N>(a, found, found_full, (int)threadIdx.x - NARROW_ADAPTERS * 32);
        barrier_wait(found_full, 0);
        if (found->head.n_segs > shape::SEGS)
            __trap(); /* the caller broke ops.h: more segments than found holds */
        if (found->head.n_segs > 0)
            narrow_adapters<N>(a, memory);
        return;
    }
    if (warp >= NARROW_FILLERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(shape::FILL_REGISTERS));
        int i = warp - NARROW_FILLERS;
        if (i == 2) { /* fills B's */
            if (a.lora.n_parts == 0)
                return;
            barrier_wait(found_full, 0);
            if (found->head.n_segs > 0 && narrow_staged<N>(a, *found))
                narrow_fill_b<N>(a, memory, lane);
        } else if (i < 2 && lane == 0)
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
            adapters = found->head.n_segs > 0;
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
        auto place = [&](int u, int owner) { /* in the owner's block */
                                             int from = me < owner ? me : me - 1;
                                             int piece = ((owner & 1) * ranges_mask + from) *
                                                             units_each +
                                                         (u >> range_bits);
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
#pragma unroll
        for (int u = 0; u < shape::UNITS; u++) {
            if (((u + zero) & ranges_mask) != me || u >= n_row_units)
                continue;
            char *at = mine + ((u + zero) >> range_bits) * shape::PIECE;
            float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 1
            for (int r = 0; r < a.n_ranges; r++) {
                float4 v = make_float4(acc[4 * u], acc[4 * u + 1], acc[4 * u + 2], acc[4 * u + 3]);
                if (r != me)
                    v = *reinterpret_cast<float4 *>(at + (r < me ? r : r - 1) * units_each *
                                                             shape::PIECE);
                sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
            }
            *reinterpret_cast<float4 *>((lag ? my_sums : mine) +
                                        ((u + zero) >> range_bits) * shape::PIECE) = sum;
        }
        if (!lag)
            finish(tile, tile_no);
        __syncwarp();
        if (cluster == 1 && lane == 0)
            barrier_arrive(partials_free);
        if (cluster > 1 && lane < cluster &&
            tile + n_clusters < a.n_m_tiles) /* else nobody waits for it, and that block may be
                                                gone */
            barrier_arrive_remote(partials_free, lane);
    }
    if (lag && tile_no > 0)
        finish((int)blockIdx.x / cluster + (tile_no - 1) * n_clusters, tile_no - 1);
}

#endif
