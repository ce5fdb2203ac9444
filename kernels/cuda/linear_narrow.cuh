/* linear_narrow.cuh: linear for up to 128 rows. Part of linear.cu, whose head has the design. */
#ifndef TRIBUTARY_KERNELS_CUDA_LINEAR_NARROW_CUH
#define TRIBUTARY_KERNELS_CUDA_LINEAR_NARROW_CUH

#include "kernels/cuda/linear_tile.cuh"

/* ---- narrow
 * --------------------------------------------------------------------------------------- */

template <int N> struct narrow {
    static constexpr int STAGE = TILE_BYTES + N * TILE * 2; /* bytes */
    static constexpr int DEPTH = N <= 32 ? 6 : N <= 64 ? 4 : 3;
    static constexpr int UNITS = N / 8;    /* m64n8 pieces of the accumulator */
    static constexpr int PIECE = 128 * 16; /* bytes of one in shared memory: a float4 a thread */
    static constexpr int SEGS = N < 32 ? 32 : N; /* of a step; more go the wide way */
    /* The launch bound of 512 stands for 128 registers: with them the next kernels' thread blocks
     * fit beside this one's and wait there. */
    static constexpr int BOUND = N <= 64 ? 512 : 384;

    static __host__ __device__ int units_each(int n_ranges)
    {
        return (UNITS + n_ranges - 1) / n_ranges;
    }
    static __host__ __device__ int partial_bytes(int n_ranges)
    {
        return 2 * (n_ranges - 1) * units_each(n_ranges) * PIECE;
    }
    static size_t shared_bytes(int n_ranges)
    {
        return 1024 + (size_t)2 * DEPTH * STAGE + partial_bytes(n_ranges) + lora_table_bytes(SEGS) +
               SEGS * LORA_PARTS_MAX * sizeof(int) + 2 * (4 * LORA_UNIT + 4) * sizeof(float) +
               (4 * DEPTH + 3) * 8;
    }
};

enum { NARROW_CONSUMERS = 256, NARROW_THREADS = NARROW_CONSUMERS + 96 };

/* Unit i / n_slices, slice i % n_slices: the work of a warpgroup between two barriers. */
struct shrink_work {
    struct lora_cell cell;
    int unit, slice, row, row_end, rank0;
};

__device__ static inline struct shrink_work shrink_work_at(const struct linear_args &a,
                                                           const struct lora_table &table,
                                                           const int *unit_end, int i)
{
    struct shrink_work w;
    w.unit = i / a.n_slices;
    w.slice = i % a.n_slices;
    int at = lora_find(unit_end, table.n * a.lora.n_parts, w.unit);
    int rest = w.unit - (at > 0 ? unit_end[at - 1] : 0);
    const struct lora_span span = table.spans[at / a.lora.n_parts];
    int n_tiles = (span.row_end - span.row_begin + 7) / 8;
    w.cell = table.cells[at];
    w.row = span.row_begin + rest % n_tiles * 8;
    w.row_end = span.row_end;
    w.rank0 = rest / n_tiles * 16;
    return w;
}

/* Asks L2 for its piece of A; by a warp. Nobody writes it, so it may run before pdl_wait. */
__device__ static inline void shrink_prefetch(const struct linear_args &a,
                                              const struct lora_table &table, const int *unit_end,
                                              int i, int lane)
{
    struct shrink_work w = shrink_work_at(a, table, unit_end, i);
    int rank = w.rank0 + lane, k = w.slice * LORA_SLICE;
    int n = a.d_in - k < LORA_SLICE ? a.d_in - k : LORA_SLICE;
    if (lane >= 16 || rank >= w.cell.rank || w.cell.dtype == DTYPE_F32)
        return;
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(
                     w.cell.a + ((uintptr_t)rank * (unsigned)a.d_in + (unsigned)k) * 2),
                 "r"(n * 2)
                 : "memory");
}

/* The last blocks have the fewest tiles of outputs, some none: they begin. */
__device__ static inline int first_work(int wg)
{
    return (int)(gridDim.x - 1 - blockIdx.x) * 2 + wg;
}

enum { SHRINK_AHEAD = 2 }; /* works whose A is on its way to L2 */

/* This warpgroup's share of t'. sums: shared, [4 warps][16 ranks][8 rows] and a word. */
__device__ static void narrow_shrink(const struct linear_args &a, const struct lora_table &table,
                                     const int *unit_end, int n_units, float *sums, int wg)
{
    int thread = (int)threadIdx.x & 127, warp = thread >> 5, lane = thread & 31;
    int g = lane >> 2, t = lane & 3, n_works = n_units * a.n_slices, step = (int)gridDim.x * 2;
    unsigned *before = reinterpret_cast<unsigned *>(sums + 4 * LORA_UNIT);
    for (int i = first_work(wg); i < n_works; i += step) {
        if (warp == 3 && i + SHRINK_AHEAD * step < n_works)
            shrink_prefetch(a, table, unit_end, i + SHRINK_AHEAD * step, lane);
        struct shrink_work w = shrink_work_at(a, table, unit_end, i);
        int begin = w.slice * LORA_SLICE + warp * LORA_CHAIN;
        int end = begin + LORA_CHAIN < a.d_in ? begin + LORA_CHAIN : a.d_in;
        float c[1][4];
        lora_chain<1>(c, w.cell, w.rank0, w.row, w.row_end, a.x, a.d_in, begin, end, lane);
        float *mine = sums + warp * LORA_UNIT;
        named_sync(2 + wg, 128);
        *reinterpret_cast<float2 *>(mine + g * 8 + 2 * t) = make_float2(c[0][0], c[0][1]);
        *reinterpret_cast<float2 *>(mine + (g + 8) * 8 + 2 * t) = make_float2(c[0][2], c[0][3]);
        named_sync(2 + wg, 128);
        const float *p = sums + thread % 16 * 8 + thread / 16;
        float sum = ((p[0] + p[LORA_UNIT]) + p[2 * LORA_UNIT]) + p[3 * LORA_UNIT];
        if (a.n_slices > 1) {
            float *slices = a.slices + (int64_t)w.unit * a.n_slices * LORA_UNIT + thread;
            __stcg(slices + w.slice * LORA_UNIT, sum);
            named_sync(2 + wg, 128);
            if (thread == 0)
                asm volatile("atom.release.gpu.global.inc.u32 %0, [%1], %2;"
                             : "=r"(*before)
                             : "l"(a.slice_done + w.unit), "r"(a.n_slices - 1)
                             : "memory");
            named_sync(2 + wg, 128);
            if (*before != (unsigned)a.n_slices - 1)
                continue; /* the whole warpgroup agrees */
            sum = __ldcg(slices);
#pragma unroll 8
            for (int s = 1; s < a.n_slices; s++)
                sum += __ldcg(slices + s * LORA_UNIT);
        }
        int rank = w.rank0 + thread % 16, r = w.row + thread / 16;
        if (rank < lora_padded(w.cell.rank) && r < w.row_end)
            a.lora.t[(int64_t)r * a.lora.t_stride + w.cell.t_at + rank] = __float2bfloat16_rn(
                w.cell.scale * sum);
        named_sync(2 + wg, 128);
        if (thread == 0)
            asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(a.n_done) : "memory");
    }
}

/* B of a tile of outputs, on its way to L2; the blocks of a cluster share the asking. */
__device__ static inline void narrow_prefetch_b(const struct linear_args &a,
                                                const struct lora_table &table, int tile, int rank,
                                                int cluster)
{
    int from = tile * TILE, to = from + TILE;
    int thread = (int)threadIdx.x + rank * 256, n_threads = cluster * 256;
    if (tile >= a.n_m_tiles)
        return;
    if (a.pair_width > 0) {
        lora_prefetch_b(table, a.lora, from / 2, to / 2, thread, n_threads);
        lora_prefetch_b(table, a.lora, a.pair_width + from / 2, a.pair_width + to / 2, thread,
                        n_threads);
    } else {
        lora_prefetch_b(table, a.lora, from, to, thread, n_threads);
    }
}

/* What is read afterwards (t') is read from L2, past a first-level cache that might hold what was
 * there before; so the wait needs no acquire, which would empty that cache for everybody. */
__device__ static inline void wait_for_units(const int *n_done, int n_units)
{
    if ((threadIdx.x & 31) == 0) {
        int n;
        do
            asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(n) : "l"(n_done) : "memory");
        while (n < n_units);
    }
    __syncwarp();
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
    char *tables = partials + shape::partial_bytes(a.n_ranges);
    struct lora_table table = lora_table_at(tables, shape::SEGS);
    int *unit_end = reinterpret_cast<int *>(tables + lora_table_bytes(shape::SEGS));
    float *shrink_sums = reinterpret_cast<float *>(unit_end + shape::SEGS * LORA_PARTS_MAX);
    uint64_t *full = reinterpret_cast<uint64_t *>(shrink_sums + 2 * (4 * LORA_UNIT + 4));
    uint64_t *empty = full + 2 * shape::DEPTH;
    uint64_t *partials_full = empty + 2 * shape::DEPTH; /* [2] */
    uint64_t *partials_free = partials_full + 2;

    int cluster = cluster_size(), rank = cluster_rank();
    int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31;
    int first_tile = (int)blockIdx.x / cluster, n_clusters = (int)gridDim.x / cluster;
    pdl_trigger();
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * shape::DEPTH; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 4);
        }
        barrier_init(&partials_full[0], 1);
        barrier_init(&partials_full[1], 1);
        barrier_init(partials_free, 8 * cluster);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (cluster > 1)
        cluster_meet();
    else
        __syncthreads();

    if (warp == 10) {
        if (a.next.n_parts > 0)
            lora_prefetch_next(a.next, lora_n_segs(a.next), a.next_d_in, lane);
    } else if (warp >= 8) { /* producers: warp 8 fills warpgroup 0's ring, warp 9 warpgroup 1's */
        int wg = warp - 8, range = 2 * rank + wg;
        int begin = range * a.n_k / a.n_ranges, n = (range + 1) * a.n_k / a.n_ranges - begin;
        if (lane == 0 && n > 0) {
            uint64_t policy = evict_first();
            int total = first_tile < a.n_m_tiles
                            ? (a.n_m_tiles - first_tile + n_clusters - 1) / n_clusters * n
                            : 0;
            char *slots = ring + wg * shape::DEPTH * shape::STAGE;
            uint64_t *my_full = full + wg * shape::DEPTH, *my_empty = empty + wg * shape::DEPTH;
            auto weights = [&](int i) {
                int slot = i % shape::DEPTH, tile = first_tile + i / n * n_clusters;
                int k = begin + i % n;
                barrier_expect(&my_full[slot], shape::STAGE);
                copy_weight(slots + slot * shape::STAGE,
                            a.w + ((int64_t)tile * a.n_k + k) * TILE_BYTES, TILE_BYTES,
                            &my_full[slot], policy);
            };
            auto rows = [&](int i) {
                int slot = i % shape::DEPTH, k = begin + i % n;
                copy_box(slots + slot * shape::STAGE + TILE_BYTES, &x_map, k / a.n_planes * TILE, 0,
                         &my_full[slot]);
            };
            int ahead = total < shape::DEPTH ? total : shape::DEPTH;
            for (int i = 0; i < ahead; i++)
                weights(i);
            pdl_wait();
            for (int i = 0; i < ahead; i++)
                rows(i);
            for (int i = ahead; i < total; i++) {
                barrier_wait(&my_empty[i % shape::DEPTH], (i / shape::DEPTH - 1) & 1);
                weights(i);
                rows(i);
            }
        }
        __syncwarp();
    } else {
        int wg = warp >> 2, me = 2 * rank + wg; /* my range, and my share of the rows */
        int thread = (int)threadIdx.x & 127, g = lane >> 2, t = lane & 3;
        int units_each = shape::units_each(a.n_ranges);
        /* Units are rows 0-7, 8-15, ...; mine are me, me + n_ranges, ... */
        int n_row_units = (a.n_rows + 7) / 8;
        int n_mine = n_row_units > me ? (n_row_units - me + a.n_ranges - 1) / a.n_ranges : 0;
        int begin = me * a.n_k / a.n_ranges, n = (me + 1) * a.n_k / a.n_ranges - begin;
        const char *slots = ring + wg * shape::DEPTH * shape::STAGE;
        uint64_t *my_full = full + wg * shape::DEPTH, *my_empty = empty + wg * shape::DEPTH;
        char *mine = partials + wg * (a.n_ranges - 1) * units_each * shape::PIECE + thread * 16;

        int n_segs = lora_n_segs(a.lora), n_units = 0;
        if (n_segs > shape::SEGS)
            __trap(); /* the caller broke ops.h: more segments than the table holds */
        if (n_segs > 0) {
            int n = n_segs * a.lora.n_parts;
            lora_table_fill(table, a.lora, 0, n_segs, (int)threadIdx.x, NARROW_CONSUMERS);
            named_sync(1, NARROW_CONSUMERS);
            for (int i = (int)threadIdx.x; i < n; i += NARROW_CONSUMERS) {
                struct lora_span span = table.spans[i / a.lora.n_parts];
                unit_end[i] = (span.row_end - span.row_begin + 7) / 8 *
                              ((table.cells[i].rank + 15) / 16);
            }
            lora_scan(unit_end, n, (int)threadIdx.x, NARROW_CONSUMERS, 1);
            n_units = unit_end[n - 1];
            /* Mostly there already: the linear before this one has asked for them. */
            for (int j = 0; j < SHRINK_AHEAD && (warp & 3) == 3; j++) {
                int i = first_work(wg) + j * (int)gridDim.x * 2;
                if (i < n_units * a.n_slices)
                    shrink_prefetch(a, table, unit_end, i, lane);
            }
            narrow_prefetch_b(a, table, first_tile, rank, cluster);
        }
        pdl_wait();
        if (n_units > 0)
            narrow_shrink(a, table, unit_end, n_units, shrink_sums + wg * (4 * LORA_UNIT + 4), wg);

        int stage = 0, tile_no = 0;
        uint32_t phase = 0;
        for (int tile = first_tile; tile < a.n_m_tiles; tile += n_clusters, tile_no++) {
            if (n_units > 0)
                narrow_prefetch_b(a, table, tile + n_clusters, rank, cluster);
            float acc[N / 2];
#pragma unroll
            for (int i = 0; i < N / 2; i++)
                acc[i] = 0;
            for (int k = 0; k < n; k++) {
                barrier_wait(&my_full[stage], phase);
                uint32_t at = shared_address(slots + stage * shape::STAGE);
                uint64_t w = wgmma_descriptor(at), b = wgmma_descriptor(at + TILE_BYTES);
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

            /* Hand the others their rows of my range. */
            if (thread == 0)
                barrier_expect(&partials_full[wg],
                               (uint32_t)(n_mine * (a.n_ranges - 1) * shape::PIECE));
            if (tile_no > 0)
                barrier_wait(partials_free, (tile_no - 1) & 1);
#pragma unroll
            for (int u = 0; u < shape::UNITS; u++) {
                int owner = u % a.n_ranges, from = me < owner ? me : me - 1;
                char *to = partials +
                           (((owner & 1) * (a.n_ranges - 1) + from) * units_each + u / a.n_ranges) *
                               shape::PIECE +
                           thread * 16;
                if (owner != me && u < n_row_units)
                    store_remote(shared_address(to), owner >> 1, &partials_full[owner & 1],
                                 acc[4 * u], acc[4 * u + 1], acc[4 * u + 2], acc[4 * u + 3]);
            }
            barrier_wait(&partials_full[wg], tile_no & 1);

            /* Add up mine; the sums stay in my own place of the first partial. */
#pragma unroll
            for (int u = 0; u < shape::UNITS; u++) {
                if (u % a.n_ranges != me || u >= n_row_units)
                    continue;
                char *at = mine + u / a.n_ranges * shape::PIECE;
                float4 sum;
                for (int r = 0; r < a.n_ranges; r++) {
                    float4 v = make_float4(acc[4 * u], acc[4 * u + 1], acc[4 * u + 2],
                                           acc[4 * u + 3]);
                    if (r != me)
                        v = *reinterpret_cast<float4 *>(at + (r < me ? r : r - 1) * units_each *
                                                                 shape::PIECE);
                    sum = r == 0 ? v
                                 : make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
                }
                *reinterpret_cast<float4 *>(at) = sum;
            }
            if (n_units > 0 && tile_no == 0)
                wait_for_units(a.n_done, n_units);
            int out[2];
            outputs_of(out, a, tile * TILE + (warp & 3) * 16 + g);
            for (int i = 0; a.bias != nullptr && i < n_mine; i++)
                add_bias(mine + i * shape::PIECE, a, out);
            if (n_units > 0)
                lora_expand<4>({mine, shape::PIECE, n_mine, 8 * me, 8 * a.n_ranges}, table, a.lora,
                               out, lane);
#pragma unroll 1
            for (int i = 0; i < n_mine; i++) {
                float4 v = *reinterpret_cast<float4 *>(mine + i * shape::PIECE);
                store_tile({v.x, v.y, v.z, v.w}, a, out, 8 * (me + i * a.n_ranges) + 2 * t);
            }
            __syncwarp();
            if (lane < cluster && tile + n_clusters < a.n_m_tiles) /* else nobody waits for it, and
                                                                      that block may be gone */
                barrier_arrive_remote(partials_free, lane);
        }
        if (n_units > 0) { /* the last block to be done with the count puts it back */
            named_sync(1, NARROW_CONSUMERS);
            if (threadIdx.x == 0 && atomicAdd(a.n_done + 1, 1) == (int)gridDim.x - 1) {
                a.n_done[0] = 0;
                a.n_done[1] = 0;
                __threadfence();
            }
        }
    }
}

#endif
