/* lora_shrink_many.cu: t' = A x for many rows (prefill). lora.cuh has the order of the sums,
 * lora.cu the kernel for few rows.
 *
 * A unit is 32 rows of a segment by up to four tiles of 16 of its ranks, counted over the parts; a
 * piece is a unit's slice of 1,024 k. All pieces stand in a row, a unit's slices ascending, and are
 * cut evenly over the blocks, one on a multiprocessor, as those of few rows are: what is said there
 * of who finishes a unit, of words that are EMPTY and of several tables holds here.
 *
 *   two producers     x [32, 1024] a piece and A [16, 1024] a rank tile, into two rings of two, by
 *                     bulk copies of 2 KB, rows 2,112 bytes apart
 *   eight warps       a chain of 16 rows each: its x to registers once a piece, then a rank tile
 *                     after another
 *   128 threads       four chains to a slice, slices to t': four ranks of a row each
 *
 * The next kernel may start when all blocks know that x is there, so it needn't wait for that.
 *
 * Bulk copies, because x has just been written and is as large as L2: read in pieces of 64 bytes,
 * that of down (2,048 rows, 58 MB) came at 0.8 TB/s, and at 1.1 when asked for by 256.
 *
 * Two numbers (2,048 rows, one adapter of rank 16): qkv 330 KB a multiprocessor, 7 us at 45 GB/s;
 * down 665 KB, 15 us, and its x alone 14 us at 4.2 TB/s. 0.8 and 0.9 GFLOP. In a step they take 13
 * and 27 us.
 *
 * Tried and no faster (o, qkv, down: 11, 15, 32 us): units of 64 rows, so that A comes half as
 * often, x as boxes of [64, 128] k into a ring of six, chains and slices in registers. Stamps of
 * its blocks say why: x, which has just been written, comes at 20 GB/s a multiprocessor, 2.7 TB/s,
 * whatever the copies look like; sums that are handed on take 3 us at the end. (A by loads of 16
 * bytes instead of bulk copies: three warps take a microsecond for a stage of 128 k. Bulk copies of
 * 256 bytes take 70 ns each.) */
#include "kernels/cuda/lora_shrink.cuh"

enum {
    MANY_NT = 2, /* n8 tiles of rows of a warp */
    MANY_ROWS = 2 * 8 * MANY_NT,
    MANY_TILES = 4,
    MANY_STAGES = 2,
    MANY_SUMMING = 256,               /* threads: a warp a chain of 16 rows */
    MANY_ADDING = 128,                /* of them: four sums of a rank tile each */
    MANY_THREADS = MANY_SUMMING + 64, /* and two producers */
    MANY_CELLS = 192,                 /* in a table at a time: segments times parts */
    MANY_ASKED = 4,                   /* slices asked for together */
    MANY_SLOT = 4 * MANY_ADDING * (int)sizeof(float), /* a slice of a rank tile */
};
static_assert(MANY_ROWS * 4 == MANY_ADDING, "a thread has a quarter of a row");

struct many_memory {
    char x[MANY_STAGES][MANY_ROWS * (int)SHRINK_PITCH], a[MANY_STAGES][16 * SHRINK_PITCH];
    float sums[2][4][MANY_ROWS * (int)SHRINK_SUM_PITCH]; /* of chains, in turn */
    struct lora_cell cells[MANY_CELLS];                  /* [segments, parts] */
    struct lora_span spans[MANY_CELLS];
    int unit_end[MANY_CELLS]; /* running sums of the segments' units */
    struct shrink_run run;
    uint64_t x_full[MANY_STAGES], x_free[MANY_STAGES], a_full[MANY_STAGES], a_free[MANY_STAGES];
};

struct many_unit {
    const struct lora_cell *cells; /* of the segment's parts */
    int row, row_end;
    int first, n; /* rank tiles */
};

struct many_tile { /* 16 ranks of one part */
    const struct lora_cell *cell;
    int rank0, n_ranks; /* n_ranks: up to 16 */
    bool copied; /* by the producer; else it is read where it lies: f16, f32, odd addresses */
};

struct many_ring {
    int stage;
    uint32_t phase;

    __device__ void next()
    {
        if (++stage == MANY_STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
};

__device__ static inline int many_tiles(const struct lora_cell *cells, int n_parts)
{
    int n = 0;
#pragma unroll 1
    for (int p = 0; p < n_parts; p++)
        n += (cells[p].rank + 15) >> 4;
    return n;
}

__device__ static inline struct many_tile many_tile_at(const struct many_unit &unit, int j)
{
    const struct lora_cell *cell = unit.cells;
    j += unit.first;
#pragma unroll 1
    while (j >= (cell->rank + 15) >> 4)
        j -= (cell++->rank + 15) >> 4;
    int left = cell->rank - 16 * j;
    return {cell, 16 * j, left < 16 ? left : 16, cell->dtype == DTYPE_BF16 && (cell->a & 15) == 0};
}

/* Rows of a segment follow one another; then come its next rank tiles. */
__device__ static inline struct many_unit many_unit_at(const struct many_memory &m, int n_segs,
                                                       int n_parts, int i)
{
    int s = lora_find(m.unit_end, n_segs, i);
    int rest = i - (s > 0 ? m.unit_end[s - 1] : 0);
    struct lora_span span = m.spans[s];
    int n_row_tiles = (span.row_end - span.row_begin + MANY_ROWS - 1) / MANY_ROWS;
    struct many_unit unit;
    unit.cells = m.cells + s * n_parts;
    unit.row = span.row_begin + rest % n_row_tiles * MANY_ROWS;
    unit.row_end = unit.row + MANY_ROWS < span.row_end ? unit.row + MANY_ROWS : span.row_end;
    unit.first = rest / n_row_tiles * MANY_TILES;
    unit.n = many_tiles(unit.cells, n_parts) - unit.first;
    unit.n = unit.n < MANY_TILES ? unit.n : MANY_TILES;
    return unit;
}

/* How much of the slice there is, in bytes of a row. */
__device__ static inline uint32_t slice_bytes(int slice, int d_in)
{
    int left = d_in - slice * LORA_SLICE;
    return (uint32_t)(left < LORA_SLICE ? left : LORA_SLICE) * 2;
}

/* ---- the producers: a warp each */

__device__ static inline void many_copy_a(struct many_memory &m, struct shrink_at at,
                                          struct many_ring &ring, int n_segs, int n_parts,
                                          int n_slices, int d_in, int lane)
{
#pragma unroll 1
    for (; at.n_left > 0; at.next(m.run.begin, n_slices)) {
        struct many_unit unit = many_unit_at(m, n_segs, n_parts, at.unit);
        uint32_t bytes = slice_bytes(at.slice, d_in);
#pragma unroll 1
        for (int j = 0; j < unit.n; j++, ring.next()) {
            struct many_tile tile = many_tile_at(unit, j);
            int live = tile.copied ? tile.n_ranks : 0;
            uint64_t *full = &m.a_full[ring.stage];
            barrier_wait(&m.a_free[ring.stage], ring.phase ^ 1);
            if (lane == 0)
                barrier_expect(full, (uint32_t)live * bytes);
            __syncwarp();
            if (lane < live)
                copy_bytes(m.a[ring.stage] + lane * SHRINK_PITCH,
                           reinterpret_cast<const bf16 *>(tile.cell->a) +
                               (int64_t)(tile.rank0 + lane) * d_in + at.slice * LORA_SLICE,
                           bytes, full);
        }
    }
}

__device__ static inline void many_copy_x(struct many_memory &m, struct shrink_at at,
                                          struct many_ring &ring, int n_segs, int n_parts,
                                          int n_slices, const bf16 *x, int d_in, int lane)
{
#pragma unroll 1
    for (; at.n_left > 0; at.next(m.run.begin, n_slices), ring.next()) {
        struct many_unit unit = many_unit_at(m, n_segs, n_parts, at.unit);
        uint32_t bytes = slice_bytes(at.slice, d_in);
        int live = unit.row_end - unit.row;
        uint64_t *full = &m.x_full[ring.stage];
        barrier_wait(&m.x_free[ring.stage], ring.phase ^ 1);
        if (lane == 0)
            barrier_expect(full, (uint32_t)live * bytes);
        __syncwarp();
        if (lane < live)
            copy_bytes(m.x[ring.stage] + lane * SHRINK_PITCH,
                       x + (int64_t)(unit.row + lane) * d_in + at.slice * LORA_SLICE, bytes, full);
    }
}

/* ---- the sums */

/* n: k of the chain. What lies behind them may be no number. */
__device__ static inline void many_chain(float (&c)[MANY_NT][4], const char *a,
                                         const uint4 (&b)[SHRINK_CHUNKS][MANY_NT], int n, int lane)
{
    int t = lane & 3;
    a += (lane >> 2) * SHRINK_PITCH + 16 * t;
#pragma unroll
    for (int u = 0; u < SHRINK_CHUNKS; u++) {
        uint4 p = make_uint4(0, 0, 0, 0), q = p;
        if (32 * u + 8 * t < n) {
            p = *reinterpret_cast<const uint4 *>(a + 64 * u);
            q = *reinterpret_cast<const uint4 *>(a + 64 * u + 8 * SHRINK_PITCH);
        }
#pragma unroll
        for (int i = 0; i < MANY_NT; i++)
            mma_bf16(c[i], p.x, q.x, p.y, q.y, b[u][i].x, b[u][i].y);
#pragma unroll
        for (int i = 0; i < MANY_NT; i++)
            mma_bf16(c[i], p.z, q.z, p.w, q.w, b[u][i].z, b[u][i].w);
    }
}

__device__ static inline float4 plus(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/* An array in registers has no index that isn't known. */
__device__ static inline float4 total_of(const float4 (&total)[MANY_TILES], int j)
{
    float4 sum = total[0];
#pragma unroll
    for (int i = 1; i < MANY_TILES; i++)
        sum = i == j ? total[i] : sum;
    return sum;
}

/* The sum of all slices but the last of a rank tile, as a thread has it, which were handed on to
 * here; their places are EMPTY again. */
__device__ static inline float4 many_take(char *from, int n_slices)
{
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int first = 0; first < n_slices - 1; first += MANY_ASKED) {
        float h[4 * MANY_ASKED];
        int n = n_slices - 1 - first;
#pragma unroll
        for (int i = 0; i < 4 * MANY_ASKED; i++)
            h[i] = __uint_as_float(EMPTY);
        take_sums<MANY_ASKED, MANY_TILES * MANY_SLOT>(
            h, from + (int64_t)first * MANY_TILES * MANY_SLOT, n);
#pragma unroll
        for (int i = 0; i < MANY_ASKED; i++) {
            float4 slice = make_float4(h[4 * i], h[4 * i + 1], h[4 * i + 2], h[4 * i + 3]);
            if (i < n)
                total = first + i == 0 ? slice : plus(total, slice);
        }
    }
    return total;
}

__device__ static inline void many_sum(struct many_memory &m, struct shrink_at at,
                                       struct many_ring &x_ring, struct many_ring &a_ring,
                                       int n_segs, int n_slices, const bf16 *x, int d_in,
                                       char *slots, const struct lora_view &v, int thread)
{
    int lane = thread & 31, chain = thread >> 5 & 3, g = lane >> 2, t = lane & 3, turn = 0;
    int my_row = (thread >> 7) * 8 * MANY_NT; /* of the unit */
    float4 total[MANY_TILES];
#pragma unroll
    for (int j = 0; j < MANY_TILES; j++)
        total[j] = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (; at.n_left > 0; at.next(m.run.begin, n_slices)) {
        struct many_unit unit = many_unit_at(m, n_segs, v.n_parts, at.unit);
        bool ends = (at.unit + 1) * n_slices <= m.run.end, last = at.slice == n_slices - 1;
        bool whole = ends && at.unit * n_slices >= m.run.begin;
        int owner = ends ? (int)blockIdx.x : m.run.owner;
        char *slot = slots + (int64_t)owner * n_slices * MANY_TILES * MANY_SLOT + thread * 16;
        int k = at.slice * LORA_SLICE + chain * LORA_CHAIN;
        int k_end = k + LORA_CHAIN < d_in ? k + LORA_CHAIN : d_in;
        uint4 b[SHRINK_CHUNKS][MANY_NT];
        barrier_wait(&m.x_full[x_ring.stage], x_ring.phase);
        const char *from = m.x[x_ring.stage] + (my_row + g) * SHRINK_PITCH +
                           chain * LORA_CHAIN * 2 + 16 * t;
#pragma unroll
        for (int u = 0; u < SHRINK_CHUNKS; u++)
#pragma unroll
            for (int i = 0; i < MANY_NT; i++) {
                b[u][i] = make_uint4(0, 0, 0, 0);
                if (k + 32 * u + 8 * t < k_end)
                    b[u][i] = *reinterpret_cast<const uint4 *>(from + 8 * i * SHRINK_PITCH +
                                                               64 * u);
            }
        barrier_arrive(&m.x_free[x_ring.stage]);
        x_ring.next();
#pragma unroll 1
        for (int j = 0; j < unit.n; j++) {
            struct many_tile tile = many_tile_at(unit, j);
            float c[MANY_NT][4] = {};
            barrier_wait(&m.a_full[a_ring.stage], a_ring.phase);
            if (tile.copied)
                many_chain(c, m.a[a_ring.stage] + chain * LORA_CHAIN * 2, b, k_end - k, lane);
            else
                shrink_in_place<MANY_NT>(c, reinterpret_cast<const void *>(tile.cell->a),
                                         tile.cell->dtype, tile.cell->rank, tile.rank0,
                                         unit.row + my_row, unit.row_end, x, d_in, k, k_end, lane);
            barrier_arrive(&m.a_free[a_ring.stage]);
            a_ring.next();
            float *to = m.sums[turn][chain] + (my_row + 2 * t) * SHRINK_SUM_PITCH + g;
#pragma unroll
            for (int i = 0; i < MANY_NT; i++, to += 8 * SHRINK_SUM_PITCH) {
                to[0] = c[i][0];
                to[SHRINK_SUM_PITCH] = c[i][1];
                to[8] = c[i][2];
                to[SHRINK_SUM_PITCH + 8] = c[i][3];
            }
            named_sync(1, MANY_SUMMING);
            const float(&sums)[4][MANY_ROWS * (int)SHRINK_SUM_PITCH] = m.sums[turn];
            turn ^= 1; /* who writes a half again has met everybody since */
            if (thread >= MANY_ADDING)
                continue;
            int mine = thread / 4 * SHRINK_SUM_PITCH + thread % 4 * 4;
            float4 slice = *reinterpret_cast<const float4 *>(&sums[0][mine]);
#pragma unroll
            for (int i = 1; i < 4; i++)
                slice = plus(slice, *reinterpret_cast<const float4 *>(&sums[i][mine]));
            float4 sum = slice;
            if (!whole && !last) /* to be kept for the last slice, if this block has it */
                put_sums(slot + (at.slice * MANY_TILES + j) * MANY_SLOT, slice.x, slice.y, slice.z,
                         slice.w);
            if (whole && at.slice > 0)
                sum = plus(total_of(total, j), slice);
            if (!whole && last)
                sum = plus(many_take(slot + j * MANY_SLOT, n_slices), slice);
#pragma unroll
            for (int i = 0; i < MANY_TILES; i++)
                total[i] = i == j ? sum : total[i];
            int row = unit.row + thread / 4, rank = thread % 4 * 4, live = tile.n_ranks - rank;
            if (last && row < unit.row_end && live > 0) {
                float scale = tile.cell->scale; /* the padding of the last ranks is 0 */
                uint2 w = {pack_bf16(scale * sum.x, live > 1 ? scale * sum.y : 0),
                           pack_bf16(live > 2 ? scale * sum.z : 0, live > 3 ? scale * sum.w : 0)};
                *reinterpret_cast<uint2 *>(v.t + (int64_t)row * v.t_stride + tile.cell->t_at +
                                           tile.rank0 + rank) = w;
            }
        }
    }
}

__global__ static void __launch_bounds__(MANY_THREADS, 1)
    shrink_many_kernel(const bf16 *x, int d_in, char *slots,
                       const __grid_constant__ struct lora_view v)
{
    extern __shared__ float4 shared[];
    struct many_memory &m = *reinterpret_cast<struct many_memory *>(shared);
    int thread = (int)threadIdx.x, lane = thread & 31;
    int n_segs = lora_n_segs(v), n_slices = lora_slices(d_in);
    int segs_max = MANY_CELLS / v.n_parts;
    if (thread == 0) {
        for (int i = 0; i < MANY_STAGES; i++) {
            barrier_init(&m.x_full[i], 1);
            barrier_init(&m.a_full[i], 1);
            barrier_init(&m.x_free[i], MANY_SUMMING);
            barrier_init(&m.a_free[i], MANY_SUMMING);
        }
        barrier_init_done();
    }
    struct many_ring x_ring = {}, a_ring = {};
    bool waited = false;
#pragma unroll 1
    for (int first = 0; first < n_segs; first += segs_max) {
        struct lora_table table = {m.spans, m.cells};
        int n = n_segs - first < segs_max ? n_segs - first : segs_max;
        if (first > 0)
            __syncthreads(); /* the last table has been read */
        lora_table_fill(table, v, first, n, thread, MANY_THREADS);
        __syncthreads();
        for (int i = thread; i < n; i += MANY_THREADS)
            m.unit_end[i] =
                (m.spans[i].row_end - m.spans[i].row_begin + MANY_ROWS - 1) / MANY_ROWS *
                ((many_tiles(m.cells + i * v.n_parts, v.n_parts) + MANY_TILES - 1) / MANY_TILES);
        lora_scan(m.unit_end, n, thread, MANY_THREADS, 0);
        __syncthreads(); /* for racecheck, which doesn't follow the barrier that lora_scan ends with
                          */
        struct shrink_run run = {};
        struct shrink_at at = shrink_run_of(run, (unsigned)m.unit_end[n - 1], (unsigned)n_slices,
                                            n_segs > segs_max);
        if (thread == 0)
            m.run = run;
        __syncthreads();
        if (thread >= MANY_SUMMING + 32) {
            many_copy_a(m, at, a_ring, n, v.n_parts, n_slices, d_in, lane);
        } else {
            if (!waited)
                pdl_wait();
            if (!waited && thread == 0)
                pdl_trigger();
            waited = true;
            if (thread >= MANY_SUMMING)
                many_copy_x(m, at, x_ring, n, v.n_parts, n_slices, x, d_in, lane);
            else
                many_sum(m, at, x_ring, a_ring, n, n_slices, x, d_in, slots, v, thread);
        }
    }
    if (!waited)
        pdl_wait();
}

size_t lora_shrink_many_slots(int d_max)
{
    return (size_t)lora_slices(d_max) * MANY_TILES * MANY_SLOT;
}

void lora_shrink_many(struct backend *be, const struct lora_view &v, const bf16 *x, int d_in)
{
    launch(be, "sgmv_shrink", shrink_many_kernel, dim3((unsigned)be->n_multiprocessors),
           MANY_THREADS, sizeof(struct many_memory), x, d_in, be->linear->many_slots, v);
}

cudaError_t lora_shrink_many_open()
{
    return cudaFuncSetAttribute(shrink_many_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)sizeof(struct many_memory));
}
