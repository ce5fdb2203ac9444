/* linear.cu: y = W x + bias + adapters, for 1 to max_rows rows with the same bits.
 *
 * Idea. The weight lies on the wide side of the matrix instruction (wgmma m64nNk16: 64 outputs by N
 * rows), the rows on the narrow one. A row is a column of the product: it never sees its
 * neighbours, and the instruction adds up a column the same way whatever N is. So two kernels serve
 * all row counts with one order of summation:
 *
 *   K is cut into S = 2 * cluster ranges, S fixed by the weight's shape (weight.cu). A range is one
 *   chain of wgmma steps in ascending k, begun from zero. Ranges are added in order, then the bias,
 *   then the adapters' deltas (lora.cuh).
 *
 * narrow (up to 128 rows: decode). Bound by bytes: 15.0 GB of weights for an 8B step, 4.84 ms at
 * 3.1 TB/s. A cluster of thread blocks takes a tile of 64 outputs; each of its 2 * cluster
 * warpgroups sums one range. Two producer warps keep a ring of weight and x tiles full; they ask
 * for the first weights before the kernel before this one has ended (pdl). At a tile's end the
 * ranges meet in shared memory: every warpgroup finishes its share of the rows.
 *
 *     warpgroup 0   k k k k k ┐                     ┌ rows 0-7, 16-23, ...: add ranges, bias,
 * deltas warpgroup 1   k k k k k ┴─ partials (dsmem) ──┴ rows 8-15, 24-31, ...
 *
 * Adapters in narrow: before its first tile each warpgroup computes its share of t = A x (units of
 * 16 ranks, 8 rows and a slice of 1,024 of K) while the ring fills; who brings a unit's last slice
 * adds them up, writes t' and counts. After the last range of a tile all wait for the count, which
 * by then has long been reached, and add B t' to the accumulator. Loads that wait behind the ring's
 * take as long as the ring is deep, so A is fetched into L2 by the linear before, B a tile ahead.
 * So an adapter shared by all rows costs no launch and hardly any time, and a step without adapters
 * reads one integer. All blocks of the grid are resident together (the grid is no larger), so the
 * wait ends.
 *
 * wide (more rows: prefill). Bound by arithmetic, and by what L2 can deliver: 128 outputs by 160
 * rows a thread block, each of two warpgroups 64 outputs, a ring of four stages; two thread blocks
 * with the same rows and neighbouring outputs form a cluster, each fetches half of x for both.
 * Ranges are summed one after the other into a second set of registers. t comes from lora_shrink;
 * its expansion is a few more matrix steps.
 *
 * Nothing here is chosen by a library or by a clock. */
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/wgmma.cuh"

#include <cuda.h> /* the tensor map's types; the function is looked up in the driver */

enum { NARROW_ROWS_MAX = 128 };
enum store { STORE_BF16, STORE_F32, STORE_SWIGLU };

struct linear_args {
    void *y;
    const bf16 *x;
    const char *w;
    const float *bias;
    int n_rows, d_out, d_in, pair_width;
    int n_m_tiles, n_k; /* n_k: k tiles times planes */
    int n_planes, n_ranges;
    enum store store;
    struct lora_view lora, next; /* next: of the linear after this one, a hint */
    int next_d_in;
    int n_slices; /* of d_in */
    float *slices;
    unsigned *slice_done;
    int *n_done; /* [0]: units of t' done, [1]: blocks that need the count no more */
};

/* ---- barriers and copies
 * -------------------------------------------------------------------------- */

__device__ static inline uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ static inline void barrier_init(uint64_t *b, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count)
                 : "memory");
}

__device__ static inline void barrier_expect(uint64_t *b, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)),
                 "r"(bytes)
                 : "memory");
}

__device__ static inline void barrier_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}

/* On the barrier at the same place in block `rank` of the cluster. It says that something has been
 * read; nothing is made visible by it (release.cluster would be a fence of the whole device). */
__device__ static inline void barrier_arrive_remote(uint64_t *b, int rank)
{
    asm volatile("{.reg .b32 r; mapa.shared::cluster.u32 r, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [r];}" ::"r"(shared_address(b)),
                 "r"(rank)
                 : "memory");
}

__device__ static inline void barrier_wait(uint64_t *b, uint32_t parity)
{
    asm volatile("{.reg .pred done;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;}" ::"r"(shared_address(b)),
                 "r"(parity)
                 : "memory");
}

/* A tile of packed weight. */
__device__ static inline void copy_weight(void *to, const char *from, uint32_t bytes,
                                          uint64_t *barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
                 : "memory");
}

__device__ static inline void copy_x(void *to, const CUtensorMap *map, int k, int row,
                                     uint64_t *barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
                 "l"(map), "r"(k), "r"(row), "r"(shared_address(barrier))
                 : "memory");
}

/* The same place in all blocks of the mask, each told by its own barrier. */
__device__ static inline void copy_x_to_all(void *to, const CUtensorMap *map, int k, int row,
                                            uint64_t *barrier, uint16_t mask)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(to)),
                 "l"(map), "r"(k), "r"(row), "r"(shared_address(barrier)), "h"(mask)
                 : "memory");
}

__device__ static inline uint64_t evict_first()
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ static inline uint64_t evict_normal()
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ static inline int cluster_rank()
{
    int r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}

__device__ static inline int cluster_size()
{
    int n;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
    return n;
}

/* All threads of the cluster have come here; says nothing about memory. */
__device__ static inline void cluster_meet()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::
                     : "memory");
}

/* Stores 16 bytes at the same place in block `rank` and counts them on that block's barrier: who
 * waits there sees them. */
__device__ static inline void store_remote(uint32_t address, int rank, uint64_t *barrier, float x,
                                           float y, float z, float w)
{
    asm volatile("{.reg .b32 r, b; mapa.shared::cluster.u32 r, %0, %1;\n"
                 "mapa.shared::cluster.u32 b, %2, %1;\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 "
                 "[r], {%3, %4, %5, %6}, [b];}" ::"r"(address),
                 "r"(rank), "r"(shared_address(barrier)), "f"(x), "f"(y), "f"(z), "f"(w)
                 : "memory");
}

__device__ static inline void named_barrier(int id, int n_threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(n_threads) : "memory");
}

/* ---- what both kernels do with a finished accumulator tile
 * ------------------------------------------- */

/* The outputs of packed rows r and r + 8 of one group of 16 (r = its row g); -1: none. */
__device__ static inline void outputs_of(int (&out)[2], const struct linear_args &a, int r)
{
    if (a.pair_width > 0) {
        int i = r / 16 * 8 + r % 8;
        out[0] = i < a.pair_width ? i : -1;
        out[1] = i < a.pair_width ? a.pair_width + i : -1;
    } else {
        out[0] = r < a.d_out ? r : -1;
        out[1] = r + 8 < a.d_out ? r + 8 : -1;
    }
}

/* c: the lane's float4 in shared memory, here and below. */
__device__ static inline void add_bias(char *c, const struct linear_args &a, const int (&out)[2])
{
    float b0 = out[0] >= 0 ? __ldg(a.bias + out[0]) : 0;
    float b1 = out[1] >= 0 ? __ldg(a.bias + out[1]) : 0;
    float4 v = *reinterpret_cast<float4 *>(c);
    *reinterpret_cast<float4 *>(c) = make_float4(v.x + b0, v.y + b0, v.z + b1, v.w + b1);
}

__device__ static inline float swiglu(float gate, float up)
{
    return gate / (1.0f + __expf(-gate)) * up;
}

/* Straight to y: c0, c1 are (out[0], row, row + 1), c2, c3 the same of out[1]. */
__device__ static inline void store_tile(const float (&c)[4], const struct linear_args &a,
                                         const int (&out)[2], int row)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (row + i >= a.n_rows)
            break;
        if (a.store == STORE_SWIGLU) {
            if (out[0] >= 0)
                static_cast<bf16 *>(a.y)[(int64_t)(row + i) * a.pair_width + out[0]] =
                    __float2bfloat16_rn(swiglu(c[i], c[2 + i]));
            continue;
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (out[h] < 0)
                continue;
            int64_t at = (int64_t)(row + i) * a.d_out + out[h];
            if (a.store == STORE_F32)
                static_cast<float *>(a.y)[at] = c[2 * h + i];
            else
                static_cast<bf16 *>(a.y)[at] = __float2bfloat16_rn(c[2 * h + i]);
        }
    }
}

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
        named_barrier(2 + wg, 128);
        *reinterpret_cast<float2 *>(mine + g * 8 + 2 * t) = make_float2(c[0][0], c[0][1]);
        *reinterpret_cast<float2 *>(mine + (g + 8) * 8 + 2 * t) = make_float2(c[0][2], c[0][3]);
        named_barrier(2 + wg, 128);
        const float *p = sums + thread % 16 * 8 + thread / 16;
        float sum = ((p[0] + p[LORA_UNIT]) + p[2 * LORA_UNIT]) + p[3 * LORA_UNIT];
        if (a.n_slices > 1) {
            float *slices = a.slices + (int64_t)w.unit * a.n_slices * LORA_UNIT + thread;
            __stcg(slices + w.slice * LORA_UNIT, sum);
            named_barrier(2 + wg, 128);
            if (thread == 0)
                asm volatile("atom.release.gpu.global.inc.u32 %0, [%1], %2;"
                             : "=r"(*before)
                             : "l"(a.slice_done + w.unit), "r"(a.n_slices - 1)
                             : "memory");
            named_barrier(2 + wg, 128);
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
        named_barrier(2 + wg, 128);
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
                copy_x(slots + slot * shape::STAGE + TILE_BYTES, &x_map, k / a.n_planes * TILE, 0,
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
            named_barrier(1, NARROW_CONSUMERS);
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
            named_barrier(1, NARROW_CONSUMERS);
            if (threadIdx.x == 0 && atomicAdd(a.n_done + 1, 1) == (int)gridDim.x - 1) {
                a.n_done[0] = 0;
                a.n_done[1] = 0;
                __threadfence();
            }
        }
    }
}

/* ---- wide
 * ------------------------------------------------------------------------------------------- */

struct wide {
    static constexpr int N = 160, MT = 2, UNITS = N / 8, STAGES = 4;
    static constexpr int CLUSTER = 2; /* thread blocks with the same rows */
    static constexpr int BAND = 11;   /* row tiles whose x stays in L2 while all weights pass */
    static constexpr int STAGE = MT * TILE_BYTES + N * TILE * 2;
    static constexpr int PITCH = TILE * 2 + 16; /* bytes of a row of outputs being staged */
    static constexpr int STAGING = N * PITCH;   /* of a warpgroup */
    static constexpr int PASS = 4;              /* units whose t' is fetched at a time */
    static constexpr int SEGS = 96;             /* in the table at a time */
    static constexpr size_t SHARED = 1024 + STAGES * STAGE + 2 * STAGING + 2 * STAGES * 8 +
                                     SEGS * (sizeof(struct lora_span) +
                                             LORA_PARTS_MAX * sizeof(struct lora_cell));
    static_assert(UNITS % PASS == 0, "whole passes");
    static_assert(SHARED <= 227 << 10, "fits");
};

enum { WIDE_THREADS = 384 };

/* Which tile is item i: bands of wide::BAND row tiles, whose x stays in L2 while all weights pass.
 */
__device__ static inline void wide_item(int i, int n_groups, int n_row_tiles, int *group,
                                        int *row_tile)
{
    int band = i / (wide::BAND * n_groups), rest = i % (wide::BAND * n_groups);
    int width = n_row_tiles - band * wide::BAND;
    width = width < wide::BAND ? width : wide::BAND;
    *group = rest / width;
    *row_tile = band * wide::BAND + rest % width;
}

__device__ static inline void store_matrices(uint32_t address, uint32_t m0, uint32_t m1,
                                             uint32_t m2, uint32_t m3)
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
        "r"(m0), "r"(m1), "r"(m2), "r"(m3)
        : "memory");
}

/* A warpgroup's 64 outputs by N rows leave through shared memory, 16 bytes a thread. */
__device__ static void wide_store(const float (&c)[wide::N / 2], const struct linear_args &a,
                                  char *staging, int m_tile, int row0, int wg)
{
    int thread = (int)threadIdx.x & 127, warp = thread >> 5, lane = thread & 31;
    bool fused = a.store == STORE_SWIGLU;
    int width = fused ? a.pair_width : a.d_out; /* of a row of y */
    named_barrier(2 + wg, 128);                 /* the last tile has left the staging */
    if (fused) {
#pragma unroll
        for (int j = 0; j < wide::UNITS; j += 4) {
            uint32_t m[4];
#pragma unroll
            for (int q = 0; q < 4; q++)
                m[q] = pack_bf16(swiglu(c[4 * (j + q)], c[4 * (j + q) + 2]),
                                 swiglu(c[4 * (j + q) + 1], c[4 * (j + q) + 3]));
            store_matrices(
                shared_address(staging + ((j + lane / 8) * 8 + lane % 8) * wide::PITCH + warp * 16),
                m[0], m[1], m[2], m[3]);
        }
    } else {
#pragma unroll
        for (int j = 0; j < wide::UNITS; j += 2)
            store_matrices(shared_address(staging + ((j + lane / 16) * 8 + lane % 8) * wide::PITCH +
                                          warp * 32 + lane / 8 % 2 * 16),
                           pack_bf16(c[4 * j], c[4 * j + 1]), pack_bf16(c[4 * j + 2], c[4 * j + 3]),
                           pack_bf16(c[4 * j + 4], c[4 * j + 5]),
                           pack_bf16(c[4 * j + 6], c[4 * j + 7]));
    }
    named_barrier(2 + wg, 128);
    int pieces = fused ? 4 : 8, first = m_tile * (fused ? TILE / 2 : TILE);
    for (int i = thread; i < wide::N * pieces; i += 128) {
        int row = row0 + i / pieces, out = first + i % pieces * 8;
        if (row >= a.n_rows || out >= width)
            continue;
        const char *from = staging + i / pieces * wide::PITCH + i % pieces * 16;
        bf16 *to = static_cast<bf16 *>(a.y) + (int64_t)row * width + out;
        if (width % 8 == 0) {
            *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(from);
        } else {
            for (int e = 0; e < 8 && out + e < width; e++)
                to[e] = reinterpret_cast<const bf16 *>(from)[e];
        }
    }
}

__device__ static void wide_store_straight(const float (&c)[wide::N / 2],
                                           const struct linear_args &a, const int (&out)[2],
                                           int row0, int lane)
{
#pragma unroll
    for (int j = 0; j < wide::UNITS; j++)
        store_tile({c[4 * j], c[4 * j + 1], c[4 * j + 2], c[4 * j + 3]}, a, out,
                   row0 + 8 * j + 2 * (lane & 3));
}

/* Adds the bias (with the first table) and the deltas of the table's segments to a warp's 16
 * outputs by N rows: B's fragment is loaded once a segment, part and 16 ranks, and serves all rows.
 * The order of a row's sum is lora_expand's. */
__device__ static inline void wide_add(float (&c)[wide::N / 2], const struct linear_args &a,
                                       const struct lora_table &table, bool first_table,
                                       const int (&out)[2], int row0, int lane)
{
    const struct lora_view &v = a.lora;
    int g = lane >> 2, t = lane & 3;
    if (first_table && a.bias != nullptr) {
        float b0 = out[0] >= 0 ? __ldg(a.bias + out[0]) : 0;
        float b1 = out[1] >= 0 ? __ldg(a.bias + out[1]) : 0;
#pragma unroll
        for (int u = 0; u < wide::UNITS; u++) {
            c[4 * u] += b0;
            c[4 * u + 1] += b0;
            c[4 * u + 2] += b1;
            c[4 * u + 3] += b1;
        }
    }
#pragma unroll 1
    for (int s = 0; s < table.n; s++) {
        const struct lora_span span = table.spans[s];
        if (span.row_begin >= row0 + wide::N)
            break;
        if (span.row_end <= row0 || span.row_end == span.row_begin)
            continue;
#pragma unroll 1
        for (int p = 0; p < v.n_parts; p++) {
            int o0 = out[0] - v.part[p].out_begin, o1 = out[1] - v.part[p].out_begin;
            bool live0 = out[0] >= 0 && o0 >= 0 && o0 < v.part[p].d_out;
            bool live1 = out[1] >= 0 && o1 >= 0 && o1 < v.part[p].d_out;
            const struct lora_cell cell = table.cells[s * v.n_parts + p];
            if (!__any_sync(0xffffffffu, live0 || live1))
                continue;
            bool plain = cell.dtype == DTYPE_BF16 && cell.rank % 4 == 0;
            const bf16 *my_t = v.t + cell.t_at + 4 * t;
#pragma unroll 1
            for (int r0 = 0; r0 < cell.rank; r0 += 16) {
                int r = r0 + 4 * t;
                uint32_t b[4];
                float w[8];
                if (plain) {
                    lora_load_b(b[0], b[2], cell.b, cell.rank, o0, r, live0);
                    lora_load_b(b[1], b[3], cell.b, cell.rank, o1, r, live1);
                } else {
                    lora_load_b_floats(w, cell, o0, o1, live0, live1, r);
                }
                int n_planes = plain ? 1 : planes_of(cell.dtype);
#pragma unroll 1
                for (int plane = 0; plane < n_planes; plane++) {
                    if (!plain) {
                        b[0] = take_plane(w[0], w[1]);
                        b[2] = take_plane(w[2], w[3]);
                        b[1] = take_plane(w[4], w[5]);
                        b[3] = take_plane(w[6], w[7]);
                    }
#pragma unroll
                    for (int u0 = 0; u0 < wide::UNITS; u0 += wide::PASS) {
                        uint2 f[wide::PASS];
#pragma unroll
                        for (int u = 0; u < wide::PASS; u++) {
                            int row = row0 + 8 * (u0 + u) + g;
                            f[u] = make_uint2(0, 0);
                            if (row >= span.row_begin && row < span.row_end && r < cell.rank)
                                f[u] = __ldcg(reinterpret_cast<const uint2 *>(
                                    my_t + (int64_t)row * v.t_stride + r0));
                        }
#pragma unroll
                        for (int u = 0; u < wide::PASS; u++) {
                            int row = row0 + 8 * (u0 + u); /* the whole warp agrees */
                            if (row < span.row_end && row + 8 > span.row_begin)
                                mma_bf16(c[4 * (u0 + u)], c[4 * (u0 + u) + 1], c[4 * (u0 + u) + 2],
                                         c[4 * (u0 + u) + 3], b[0], b[1], b[2], b[3], f[u].x,
                                         f[u].y);
                        }
                    }
                }
            }
        }
    }
}

__global__ static void __launch_bounds__(WIDE_THREADS, 1)
    wide_kernel(const __grid_constant__ CUtensorMap x_map,
                const __grid_constant__ struct linear_args a)
{
    extern __shared__ char raw[];
    char *ring = reinterpret_cast<char *>(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    char *staging = ring + wide::STAGES * wide::STAGE;
    struct lora_table table = lora_table_at(staging + 2 * wide::STAGING, wide::SEGS);
    uint64_t *full = reinterpret_cast<uint64_t *>(table.spans + wide::SEGS);
    uint64_t *empty = full + wide::STAGES;
    int rank = cluster_rank(), cluster = (int)blockIdx.x / wide::CLUSTER;
    int n_clusters = (int)gridDim.x / wide::CLUSTER;
    int n_groups = (a.n_m_tiles + 2 * wide::CLUSTER - 1) / (2 * wide::CLUSTER); /* of clusters */
    int n_row_tiles = (a.n_rows + wide::N - 1) / wide::N;
    int n_items = n_groups * n_row_tiles;
    pdl_trigger();
    if (threadIdx.x == 0) {
        for (int i = 0; i < wide::STAGES; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 8 * wide::CLUSTER);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    cluster_meet();
    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 256) {
            uint64_t policy = evict_normal();              /* other blocks read it too */
            constexpr int SHARE = wide::N / wide::CLUSTER; /* of the rows, fetched for all */
            pdl_wait();
            int stage = 0;
            uint32_t phase = 1; /* of empty: the first round waits for nobody */
            for (int item = cluster; item < n_items; item += n_clusters) {
                int group, row_tile;
                wide_item(item, n_groups, n_row_tiles, &group, &row_tile);
                int m = (group * wide::CLUSTER + rank) * 2; /* tiles past the end are dropped */
                int m0 = m < a.n_m_tiles ? m : a.n_m_tiles - 1;
                int m1 = m + 1 < a.n_m_tiles ? m + 1 : a.n_m_tiles - 1;
                const char *w0 = a.w + (int64_t)m0 * a.n_k * TILE_BYTES;
                const char *w1 = a.w + (int64_t)m1 * a.n_k * TILE_BYTES;
                for (int k = 0; k < a.n_k; k++) {
                    char *to = ring + stage * wide::STAGE;
                    barrier_wait(&empty[stage], phase);
                    barrier_expect(&full[stage], wide::STAGE);
                    copy_weight(to, w0 + (int64_t)k * TILE_BYTES, TILE_BYTES, &full[stage], policy);
                    copy_weight(to + TILE_BYTES, w1 + (int64_t)k * TILE_BYTES, TILE_BYTES,
                                &full[stage], policy);
                    copy_x_to_all(to + 2 * TILE_BYTES + rank * SHARE * TILE * 2, &x_map,
                                  k / a.n_planes * TILE, row_tile * wide::N + rank * SHARE,
                                  &full[stage], (1 << wide::CLUSTER) - 1);
                    if (++stage == wide::STAGES) {
                        stage = 0;
                        phase ^= 1;
                    }
                }
            }
            /* The other block still says that it has read; not to one that is gone. */
            for (int i = 0; i < wide::STAGES && cluster < n_items; i++) {
                barrier_wait(&empty[stage], phase);
                if (++stage == wide::STAGES) {
                    stage = 0;
                    phase ^= 1;
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        int wg = (int)threadIdx.x >> 7, thread = (int)threadIdx.x & 127;
        int warp = thread >> 5, lane = thread & 31, g = lane >> 2;
        char *my_staging = staging + wg * wide::STAGING;
        int stage = 0, table_of = -1; /* the row tile whose segments the table holds */
        uint32_t phase = 0;
        pdl_wait();
        int n_segs = lora_n_segs(a.lora), first_seg = 0;
        for (int item = cluster; item < n_items; item += n_clusters) {
            int group, row_tile;
            wide_item(item, n_groups, n_row_tiles, &group, &row_tile);
            int m_tile = (group * wide::CLUSTER + rank) * 2 + wg, row0 = row_tile * wide::N;
            if (n_segs > 0) {
                if (row_tile != table_of) {
                    named_barrier(1, 256);
                    first_seg = lora_first_seg(a.lora, n_segs, row0);
                    lora_table_fill(table, a.lora, first_seg,
                                    n_segs - first_seg < wide::SEGS ? n_segs - first_seg
                                                                    : (int)wide::SEGS,
                                    (int)threadIdx.x, 256);
                    named_barrier(1, 256);
                    table_of = row_tile;
                }
            }
            float total[wide::N / 2];
            for (int range = 0; range < a.n_ranges; range++) {
                int begin = range * a.n_k / a.n_ranges, end = (range + 1) * a.n_k / a.n_ranges;
                float acc[wide::N / 2];
                if (begin == end) {
#pragma unroll
                    for (int i = 0; i < wide::N / 2; i++)
                        acc[i] = 0;
                }
                int before = -1; /* the stage whose steps are still under way */
                for (int k = begin; k < end; k++) {
                    barrier_wait(&full[stage], phase);
                    uint32_t at = shared_address(ring + stage * wide::STAGE);
                    uint64_t w = wgmma_descriptor(at + wg * TILE_BYTES);
                    uint64_t b = wgmma_descriptor(at + 2 * TILE_BYTES);
                    wgmma_fence();
#pragma unroll
                    for (int s = 0; s < 4; s++)
                        wgmma<wide::N>(acc, w + 2 * s, b + 2 * s, k > begin || s > 0);
                    wgmma_commit();
                    if (before >= 0) {
                        wgmma_wait<1>();
                        if (lane < wide::CLUSTER)
                            barrier_arrive_remote(&empty[before], lane);
                    }
                    before = stage;
                    if (++stage == wide::STAGES) {
                        stage = 0;
                        phase ^= 1;
                    }
                }
                wgmma_wait<0>();
                if (before >= 0 && lane < wide::CLUSTER)
                    barrier_arrive_remote(&empty[before], lane);
#pragma unroll
                for (int i = 0; i < wide::N / 2; i++)
                    total[i] = range == 0 ? acc[i] : total[i] + acc[i];
            }

            int out[2];
            outputs_of(out, a, m_tile * TILE + warp * 16 + g);
            if (m_tile >= a.n_m_tiles)
                out[0] = out[1] = -1;
            /* Usually one table holds all segments over these rows; else the rest, table by table.
             */
            for (int s = first_seg; s == first_seg || s < n_segs; s += wide::SEGS) {
                if (s > first_seg) {
                    if (lora_seg_at(a.lora, s).row_begin >= row0 + wide::N)
                        break; /* both warpgroups agree */
                    named_barrier(1, 256);
                    lora_table_fill(table, a.lora, s,
                                    n_segs - s < wide::SEGS ? n_segs - s : (int)wide::SEGS,
                                    (int)threadIdx.x, 256);
                    named_barrier(1, 256);
                    table_of = -1;
                }
                if (table.n > 0 || a.bias != nullptr)
                    wide_add(total, a, table, s == first_seg, out, row0, lane);
            }
            if (a.store == STORE_F32 || (a.store == STORE_BF16 && a.pair_width > 0))
                wide_store_straight(total, a, out, row0, lane);
            else if (m_tile < a.n_m_tiles)
                wide_store(total, a, my_staging, m_tile, row0, wg);
        }
    }
}

/* ---- the plain path: f32 weights, rows that don't begin on 16 bytes
 * ---------------------------------------- */

/* t' of one row's segments; grid: (rows, parts); warps take ranks in turn. */
__global__ static void plain_shrink_kernel(const bf16 *x, int d_in,
                                           const __grid_constant__ struct lora_view v)
{
    int row = (int)blockIdx.x, p = (int)blockIdx.y;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x & 31;
    __shared__ struct lora_cell cells[LORA_PARTS_MAX];
    __shared__ struct lora_span spans[1];
    struct lora_table table = {spans, cells, 0};
    pdl_trigger();
    pdl_wait();
    int n_segs = lora_n_segs(v);
    for (int s = lora_first_seg(v, n_segs, row); s < n_segs; s++) {
        struct lora_seg seg = lora_seg_at(v, s);
        if (seg.row_begin > row)
            break;
        if (seg.row_begin + seg.n_rows <= row)
            continue;
        __syncthreads();
        lora_table_fill(table, v, s, 1, (int)threadIdx.x, (int)blockDim.x);
        __syncthreads();
        const struct lora_cell e = cells[p];
        for (int r = warp; r < e.rank; r += (int)blockDim.x / 32) {
            float sum = 0;
            for (int k = lane; k < d_in; k += 32)
                sum = fmaf(load_as_float(reinterpret_cast<const void *>(e.a), (int64_t)r * d_in + k,
                                         e.dtype),
                           __bfloat162float(x[(int64_t)row * d_in + k]), sum);
            sum = warp_sum(sum);
            if (lane == 0)
                v.t[(int64_t)row * v.t_stride + e.t_at + r] = __float2bfloat16_rn(e.scale * sum);
        }
    }
}

/* A warp a (row, output). */
__global__ static void plain_kernel(const __grid_constant__ struct linear_args a, int dtype)
{
    int out = (int)blockIdx.x * ((int)blockDim.x / 32) + (int)threadIdx.x / 32;
    int lane = (int)threadIdx.x & 31, row = (int)blockIdx.y;
    pdl_trigger();
    pdl_wait();
    if (out >= a.d_out)
        return;
    float sum = 0;
    for (int k = lane; k < a.d_in; k += 32)
        sum = fmaf(load_as_float(a.w, (int64_t)out * a.d_in + k, dtype),
                   __bfloat162float(a.x[(int64_t)row * a.d_in + k]), sum);
    sum = warp_sum(sum);
    if (lane != 0)
        return;
    if (a.bias != nullptr)
        sum += a.bias[out];
    const struct lora_view &v = a.lora;
    int n_segs = lora_n_segs(v);
    for (int s = lora_first_seg(v, n_segs, row); s < n_segs; s++) {
        struct lora_seg seg = lora_seg_at(v, s);
        if (seg.row_begin > row)
            break;
        for (int p = 0; p < v.n_parts; p++) {
            int o = out - v.part[p].out_begin;
            if (seg.row_begin + seg.n_rows <= row || o < 0 || o >= v.part[p].d_out)
                continue;
            struct lora_entry e = lora_entry_at(v, p, seg.slot);
            const void *b = reinterpret_cast<const void *>(e.b.addr);
            const bf16 *t = v.t + (int64_t)row * v.t_stride + lora_t_at(v, s, seg, p);
            float delta = 0;
            for (int r = 0; r < e.rank; r++)
                delta = fmaf(load_as_float(b, (int64_t)o * e.rank + r, e.dtype),
                             __bfloat162float(t[r]), delta);
            sum += delta;
        }
    }
    int64_t at = (int64_t)row * a.d_out + out;
    if (a.store == STORE_F32)
        static_cast<float *>(a.y)[at] = sum;
    else
        static_cast<bf16 *>(a.y)[at] = __float2bfloat16_rn(sum);
}

/* ---- launches
 * ---------------------------------------------------------------------------------------- */

typedef CUresult encode_tiled(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *,
                              const cuuint64_t *, const cuuint64_t *, const cuuint32_t *,
                              const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                              CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* x [n_rows, d_in] in boxes of [box_rows, 64]; zeros past the end. */
static CUtensorMap map_x(struct backend *be, const bf16 *x, int n_rows, int d_in, int box_rows)
{
    CUtensorMap map;
    cuuint64_t dims[2] = {(cuuint64_t)d_in, (cuuint64_t)n_rows};
    cuuint64_t strides[1] = {(cuuint64_t)d_in * 2};
    cuuint32_t box[2] = {TILE, (cuuint32_t)box_rows}, steps[2] = {1, 1};
    CUresult rc = reinterpret_cast<encode_tiled *>(be->linear->encode_tiled)(
        &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<bf16 *>(x), dims, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    BUG_IF(rc != CUDA_SUCCESS);
    return map;
}

static cudaLaunchConfig_t cluster_config(struct backend *be, int cluster, bool dependent,
                                         cudaLaunchAttribute (&attributes)[2])
{
    cudaLaunchConfig_t config = {};
    config.stream = be->stream;
    config.attrs = attributes;
    cudaLaunchAttribute *a = &attributes[config.numAttrs++];
    *a = {};
    a->id = cudaLaunchAttributeClusterDimension; /* of one too: st.async asks for it */
    a->val.clusterDim.x = (unsigned)cluster;
    a->val.clusterDim.y = a->val.clusterDim.z = 1;
    if (dependent) {
        a = &attributes[config.numAttrs++];
        *a = {};
        a->id = cudaLaunchAttributeProgrammaticStreamSerialization;
        a->val.programmaticStreamSerializationAllowed = 1;
    }
    return config;
}

template <int N>
static cudaLaunchConfig_t narrow_config(struct backend *be, int n_ranges, bool dependent,
                                        cudaLaunchAttribute (&attributes)[2])
{
    cudaLaunchConfig_t config = cluster_config(be, n_ranges / 2, dependent, attributes);
    config.blockDim = dim3(NARROW_THREADS);
    config.dynamicSmemBytes = narrow<N>::shared_bytes(n_ranges);
    return config;
}

/* How many clusters are resident together: the grid is never larger (see the head). */
template <int N> static cudaError_t narrow_open(struct backend *be, int (&limit)[3])
{
    const size_t most = 227 << 10;
    cudaError_t rc = cudaFuncSetAttribute(narrow_kernel<N>,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, (int)most);
    for (int i = 0; i < 3 && rc == cudaSuccess; i++) {
        cudaLaunchAttribute attributes[2];
        cudaLaunchConfig_t config = narrow_config<N>(be, 2 << i, false, attributes);
        config.gridDim = dim3((unsigned)(be->n_multiprocessors >> i << i));
        limit[i] = be->n_multiprocessors;
        if (i > 0)
            rc = cudaOccupancyMaxActiveClusters(&limit[i], narrow_kernel<N>, &config);
        if (limit[i] > be->n_multiprocessors >> i)
            limit[i] = be->n_multiprocessors >> i;
    }
    return rc;
}

template <int N>
static void launch_narrow(struct backend *be, const struct weight *w, struct linear_args &a,
                          const int (&limit)[3])
{
    CUtensorMap map = map_x(be, a.x, a.n_rows, a.d_in, N);
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = narrow_config<N>(be, a.n_ranges, dependent(be), attributes);
    int most = limit[w->cluster == 4 ? 2 : w->cluster - 1];
    BUG_IF(most < 1);
    /* Blocks without a tile of outputs still have a share in the adapters. */
    int n_clusters = a.lora.n_parts > 0 || w->n_m_tiles > most ? most : w->n_m_tiles;
    config.gridDim = dim3((unsigned)(n_clusters * w->cluster));
    cuda_note(be, cudaLaunchKernelEx(&config, narrow_kernel<N>, map, a), "linear");
}

#define FOR_EACH_NARROW(DO) DO(0, 8) DO(1, 16) DO(2, 32) DO(3, 64) DO(4, 128)

static int narrow_choice(int n_rows)
{
    return n_rows <= 8 ? 0 : n_rows <= 16 ? 1 : n_rows <= 32 ? 2 : n_rows <= 64 ? 3 : 4;
}

static void launch_wide(struct backend *be, const struct weight *w, struct linear_args &a)
{
    CUtensorMap map = map_x(be, a.x, a.n_rows, a.d_in, wide::N / wide::CLUSTER);
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = cluster_config(be, wide::CLUSTER, dependent(be), attributes);
    int n_items = ceil_div(w->n_m_tiles, 2 * wide::CLUSTER) * ceil_div(a.n_rows, wide::N);
    int most = be->n_multiprocessors / wide::CLUSTER;
    config.blockDim = dim3(WIDE_THREADS);
    config.dynamicSmemBytes = wide::SHARED;
    config.gridDim = dim3((unsigned)((n_items < most ? n_items : most) * wide::CLUSTER));
    cuda_note(be, cudaLaunchKernelEx(&config, wide_kernel, map, a), "linear");
}

static void run_plain(struct backend *be, const struct weight *w, struct linear_args &a)
{
    if (a.lora.n_parts > 0)
        launch(be, "shrink", plain_shrink_kernel,
               dim3((unsigned)a.n_rows, (unsigned)a.lora.n_parts), 128, 0, a.x, a.d_in, a.lora);
    launch(be, "linear", plain_kernel, dim3((unsigned)ceil_div(a.d_out, 8), (unsigned)a.n_rows),
           256, 0, a, (int)w->dtype);
}

static void run(struct backend *be, struct devptr y, struct devptr x, const struct weight *w,
                struct devptr bias, int n_rows, enum store store, const struct lora_args *lora)
{
    BUG_IF(n_rows > be->options.max_rows);
    struct linear_args a = {};
    a.y = dev<void>(y);
    a.x = dev<bf16>(x);
    a.w = static_cast<const char *>(w->data);
    a.bias = dev<float>(bias);
    a.n_rows = n_rows;
    a.d_out = w->d_out;
    a.d_in = w->d_in;
    a.store = store;
    a.lora = lora_view_of(be, lora);
    a.next = lora_next_of(be, lora);
    a.next_d_in = lora != nullptr ? lora->next_d_in : 0;
    if (!w->packed) {
        run_plain(be, w, a);
        return;
    }
    a.pair_width = w->pair_width;
    a.n_m_tiles = w->n_m_tiles;
    a.n_planes = w->n_planes;
    a.n_k = w->n_k_tiles * w->n_planes;
    a.n_ranges = 2 * w->cluster;
    a.n_done = be->linear->n_done;
    /* A recorded step has at most a segment a row (ops.h), so the table holds them. */
    bool many = a.lora.d_n_segs == nullptr || !be->recording
                    ? a.lora.n_segs > (n_rows < 32 ? 32 : n_rows)
                    : false;
    if (n_rows > NARROW_ROWS_MAX || many) {
        if (a.lora.n_parts > 0)
            lora_shrink(be, a.lora, a.x, n_rows, a.d_in);
        launch_wide(be, w, a);
        return;
    }
    a.n_slices = ceil_div(w->d_in, LORA_SLICE);
    a.slices = be->linear->slices;
    a.slice_done = be->linear->slice_done;
    switch (narrow_choice(n_rows)) {
#define LAUNCH(i, n)                                           \
    case i:                                                    \
        launch_narrow<n>(be, w, a, be->linear->n_clusters[i]); \
        break;
        FOR_EACH_NARROW(LAUNCH)
#undef LAUNCH
    default:
        BUG("no such kernel");
    }
}

void cuda_linear(struct backend *be, struct devptr y, struct devptr x, const struct weight *w,
                 struct devptr bias, int n_rows, bool y_f32, const struct lora_args *lora)
{
    if (n_rows > 0)
        run(be, y, x, w, bias, n_rows, y_f32 ? STORE_F32 : STORE_BF16, lora);
}

void cuda_linear_swiglu(struct backend *be, struct devptr y, struct devptr scratch, struct devptr x,
                        const struct weight *w, struct devptr bias, int n_rows,
                        const struct lora_args *lora)
{
    if (n_rows == 0)
        return;
    if (w->pair_width > 0) {
        run(be, y, x, w, bias, n_rows, STORE_SWIGLU, lora);
        return;
    }
    run(be, scratch, x, w, bias, n_rows, STORE_BF16, lora);
    cuda_swiglu(be, y, scratch, n_rows, w->d_out / 2);
}

int cuda_linear_open(struct backend *be, struct err *err)
{
    struct linear_scratch *s = be->linear = new linear_scratch{};
    const struct backend_options *o = &be->options;
    s->t_stride = ceil_div(o->max_rank + 8 * LORA_PARTS_MAX * LORA_T_PAD, 8) * 8;
    size_t n_slices = (size_t)ceil_div(o->max_d, LORA_SLICE);
    /* Units of a step: each row at most max_rank ranks, each segment's parts rounded up to 16. */
    s->n_units_max = NARROW_ROWS_MAX * (ceil_div(o->max_rank, 16) + LORA_PARTS_MAX);
    cudaDriverEntryPointQueryResult found;
    cudaError_t rc = cudaMalloc(&s->t, (size_t)o->max_rows * (size_t)s->t_stride * sizeof(bf16));
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->slices, (size_t)s->n_units_max * n_slices * LORA_UNIT * sizeof(float));
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->slice_done, (size_t)s->n_units_max * sizeof(unsigned));
    if (rc == cudaSuccess)
        rc = cudaMemset(s->slice_done, 0, (size_t)s->n_units_max * sizeof(unsigned));
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->n_done, 2 * sizeof(int));
    if (rc == cudaSuccess)
        rc = cudaMemset(s->n_done, 0, 2 * sizeof(int));
    if (rc != cudaSuccess)
        return err_set(err, ERR_NO_MEMORY, "cuda: scratch memory of %d rows for adapters: %s",
                       o->max_rows, cudaGetErrorString(rc));
    rc = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &s->encode_tiled, 12000,
                                          cudaEnableDefault, &found);
    if (rc == cudaSuccess && found != cudaDriverEntryPointSuccess)
        rc = cudaErrorNotSupported;
#define OPEN(i, n)         \
    if (rc == cudaSuccess) \
        rc = narrow_open<n>(be, s->n_clusters[i]);
    FOR_EACH_NARROW(OPEN)
#undef OPEN
    if (rc == cudaSuccess)
        rc = cudaFuncSetAttribute(wide_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)wide::SHARED);
    if (rc != cudaSuccess)
        return err_set(err, ERR_UNSUPPORTED, "cuda: kernels of linear: %s", cudaGetErrorString(rc));
    return lora_open(err);
}

void cuda_linear_close(struct backend *be)
{
    struct linear_scratch *s = be->linear;
    if (s == nullptr)
        return;
    cudaFree(s->t);
    cudaFree(s->slices);
    cudaFree(s->slice_done);
    cudaFree(s->n_done);
    delete s;
}
