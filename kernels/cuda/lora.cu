/* lora.cu: the two halves of the adapters' product as kernels of their own. lora.cuh has the order
 * of the sums; linear.cu computes both halves inside its own kernel where rows are few, and calls
 * lora_shrink where they are many.
 *
 * Few rows are latency, many adapters are bytes; both want everything that doesn't depend on an
 * earlier kernel to be under way before pdl_wait returns: the segments, the entries, and A or B
 * itself. A shrink and an expand fit on a multiprocessor together, so that while one finishes the
 * other's matrices are already coming in.
 *
 * shrink. A cluster of four thread blocks takes items (segment, tile of rows, up to GROUP tiles of
 * 16 ranks, counted over the parts). K goes by in rounds of 4,096; in a round each block has one
 * slice of 1,024 and each of its warps one chain of 256, whose piece of x it keeps in registers.
 *
 *   the last warp         A, [16, 1024] a stage: a bulk copy a rank, into a ring; rows lie
 *                         2,112 bytes apart, so that a warp's 16-byte reads meet no bank twice
 *   warps (chain, rows)   16 ranks by 8 NT rows of chain sums, to shared memory
 *   the block             adds four chains to a slice and sends it to block j % 4 of the cluster,
 *   block j % 4           which adds the slices of rank tile j and writes t'
 *
 * A block that has no slice in a round (K below 4,096) sends a word all the same, and every block
 * waits for every answer, the last ones before it leaves: a barrier tells two phases apart, not
 * three, and a block that is gone can't be told anything. (A cluster barrier at the end does not
 * wait for answers that are under way.)
 *
 * Two shapes: rows <= 256: 8 rows and one rank tile an item, two blocks on a multiprocessor; more
 * rows: 64 rows and up to 16 rank tiles an item, so that x is read once for all parts.
 *
 * expand. A warp has a tile of rows for good and takes 32 outputs of it after another; no thread
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
 * Two numbers (64 rows, 64 adapters, 4096 -> 16 -> 4096): 8.4 MB of A, 8.4 MB of B, 5.4 us at
 * 3.1 TB/s; the products are 34 MFLOP. */
#include "kernels/cuda/async.cuh"
#include "kernels/cuda/lora.cuh"

enum {
    CLUSTER = 4, /* slices of a round */
    ROUND = CLUSTER * LORA_SLICE,
    CHUNKS = LORA_CHAIN / 32,
    TABLE_CELLS = 256,                 /* in a table at a time: segments times parts */
    STAGE_PITCH = LORA_SLICE * 2 + 64, /* bytes of a rank of A */
    STAGE_BYTES = 16 * STAGE_PITCH,
    SUM_PITCH = 20, /* floats of a row's 16 ranks */
    EXPAND_WARPS = 8,
    EXPAND_OUTS = 32,
    EXPAND_SEGS = 32, /* of a tile of rows; more take the slow way */
};

struct lora_view lora_view_of(struct backend *be, const struct lora_args *lora)
{
    struct lora_view v = {};
    if (lora == nullptr)
        return v;
    BUG_IF(lora->n_parts > LORA_PARTS_MAX || lora->step->n_segs > LORA_SEGS_MAX);
    v.segs = dev<const struct lora_seg>(lora->step->d_segs);
    v.d_n_segs = dev<const int32_t>(lora->step->d_n_segs);
    v.n_segs = lora->step->n_segs;
    v.n_parts = lora->n_parts;
    for (int i = 0; i < lora->n_parts; i++) {
        v.part[i].entries = dev<const struct lora_entry>(lora->parts[i].d_entries);
        v.part[i].out_begin = lora->parts[i].out_begin;
        v.part[i].d_out = lora->parts[i].d_out;
    }
    v.t = be->linear->t;
    v.t_stride = be->linear->t_stride;
    return v;
}

struct lora_view lora_next_of(struct backend *be, const struct lora_args *lora)
{
    if (lora == nullptr || lora->next == nullptr)
        return {};
    struct lora_args next = {lora->step, lora->next, lora->n_next, nullptr, 0, 0};
    return lora_view_of(be, &next);
}

/* ---- shrink
 * --------------------------------------------------------------------------------------- */

template <int NT_, int ROW_GROUPS_, int GROUP_, int STAGES_, int BLOCKS_, int REGISTERS_>
struct shrink_shape {
    static constexpr int NT = NT_;                         /* n8 tiles of rows of a warp */
    static constexpr int ROW_GROUPS = ROW_GROUPS_;         /* of warps */
    static constexpr int GROUP = GROUP_, STAGES = STAGES_; /* rank tiles of an item; of the ring */
    static constexpr int BLOCKS = BLOCKS_;                 /* a multiprocessor */
    static constexpr int REGISTERS = REGISTERS_;
    static constexpr int ROWS = 8 * NT * ROW_GROUPS;
    static constexpr int THREADS = 128 * ROW_GROUPS;
    static constexpr int ADDERS = ROWS * 4; /* threads that add: four ranks of a row each */
    static_assert(ADDERS <= THREADS && ADDERS % 32 == 0, "whole warps add");

    /* A store to another block counts on its barrier, one after another: many go as one copy. */
    static constexpr bool AT_ONCE = ADDERS > 32;
    static constexpr int TURNS = AT_ONCE ? 1 : 2; /* of the chains' sums */

    struct memory {
        char ring[STAGES][STAGE_BYTES];
        float4 leaving[AT_ONCE ? CLUSTER : 1][2][ADDERS]; /* on its way to slices at block q */
        float sums[TURNS][4][ROWS * SUM_PITCH];           /* of chains */
        float4 slices[2][CLUSTER][ADDERS];                /* sent here, to be added */
        float4 total[(GROUP + 3) / CLUSTER][ADDERS];      /* of rank tiles added here, so far */
        struct lora_cell cells[TABLE_CELLS];
        struct lora_span spans[TABLE_CELLS];
        int item_end[TABLE_CELLS];
        uint64_t full[STAGES];
        uint64_t slices_full[2], slices_free[CLUSTER][2]; /* free: at block q of the cluster */
    };
};
typedef shrink_shape<1, 1, 1, 2, 2, 96> shrink_few;
typedef shrink_shape<4, 2, 16, 3, 1, 255> shrink_many;

__device__ static inline void cluster_arrive()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ static inline void cluster_wait()
{
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
}

__device__ static inline void copy_bytes(void *to, uintptr_t from, uint32_t bytes,
                                         uint64_t *barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

/* To the same place or another in block `rank` of the cluster, and counted there. */
__device__ static inline void copy_to_block(uint32_t to, const void *from, uint32_t bytes,
                                            uint64_t *barrier, int rank)
{
    asm volatile("{.reg .b32 r, b; mapa.shared::cluster.u32 r, %0, %4;\n"
                 "mapa.shared::cluster.u32 b, %3, %4;\n"
                 "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes "
                 "[r], [%1], %2, [b];}" ::"r"(to),
                 "r"(shared_address(from)), "r"(bytes), "r"(shared_address(barrier)), "r"(rank)
                 : "memory");
}

/* 16 ranks of one part of a segment. */
struct rank_tile {
    const struct lora_cell *cell;
    int rank0;
    bool copied; /* by the producer; else it is read where it lies: f16, f32, odd addresses */
};

struct shrink_item {
    const struct lora_cell *cells; /* of the segment's parts */
    int row, row_end, first, n;    /* rank tiles of the segment */
};

/* What the ring is given next. */
struct shrink_copies {
    struct shrink_item item;
    int i, k, j, stage; /* item, k of the slice, rank tile of the item */
};

__device__ static inline int rank_tiles(const struct lora_cell *cells, int n_parts)
{
    int n = 0;
    for (int p = 0; p < n_parts; p++)
        n += (cells[p].rank + 15) / 16;
    return n;
}

__device__ static inline struct rank_tile rank_tile_at(const struct lora_cell *cells, int j)
{
    while (j >= (cells->rank + 15) / 16)
        j -= (cells++->rank + 15) / 16;
    return {cells, 16 * j, cells->dtype == DTYPE_BF16 && (cells->a & 15) == 0};
}

template <class S>
__device__ static inline struct shrink_item shrink_item_at(const typename S::memory &m, int n_segs,
                                                           int n_parts, int i)
{
    int s = lora_find(m.item_end, n_segs, i);
    int rest = i - (s > 0 ? m.item_end[s - 1] : 0);
    struct lora_span span = m.spans[s];
    int n_row_tiles = (span.row_end - span.row_begin + S::ROWS - 1) / S::ROWS;
    struct shrink_item item;
    item.cells = m.cells + s * n_parts;
    item.row = span.row_begin + rest % n_row_tiles * S::ROWS;
    item.row_end = span.row_end;
    item.first = rest / n_row_tiles * S::GROUP;
    item.n = rank_tiles(item.cells, n_parts) - item.first;
    item.n = item.n < S::GROUP ? item.n : S::GROUP;
    return item;
}

__device__ static inline float4 plus(float4 a, float4 b)
{
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

/* Asks for the next stage of A, by a warp. */
template <class S>
__device__ static inline void shrink_copy(typename S::memory &m, struct shrink_copies &at,
                                          int n_segs, int n_parts, int n_items, int d_in, int lane)
{
    if (at.i >= n_items)
        return;
    struct rank_tile tile = rank_tile_at(at.item.cells, at.item.first + at.j);
    int live = tile.cell->rank - tile.rank0;
    live = !tile.copied ? 0 : live < 16 ? live : 16;
    uint32_t bytes = (uint32_t)(d_in - at.k < LORA_SLICE ? d_in - at.k : LORA_SLICE) * 2;
    uint64_t *full = &m.full[at.stage];
    if (lane == 0)
        barrier_expect(full, (uint32_t)live * bytes);
    __syncwarp();
    if (lane < live)
        copy_bytes(m.ring[at.stage] + lane * STAGE_PITCH,
                   tile.cell->a +
                       ((uintptr_t)(tile.rank0 + lane) * (unsigned)d_in + (unsigned)at.k) * 2,
                   bytes, full);
    at.stage = at.stage + 1 == S::STAGES ? 0 : at.stage + 1;
    if (++at.j < at.item.n)
        return;
    at.j = 0;
    at.k += ROUND;
    if (at.k < d_in)
        return;
    at.k = cluster_rank() * LORA_SLICE;
    at.i += (int)gridDim.x / CLUSTER;
    if (at.i < n_items)
        at.item = shrink_item_at<S>(m, n_segs, n_parts, at.i);
}

/* A chain of n k, its A in the ring (rank 0, chunk 0 at `a`), its x in b. */
template <int NT>
__device__ static inline void chain_in_ring(float (&c)[NT][4], const char *a,
                                            const uint4 (&b)[CHUNKS][NT], int n, int lane)
{
    int t = lane & 3;
    a += (lane >> 2) * STAGE_PITCH + 16 * t;
#pragma unroll
    for (int u = 0; u < CHUNKS; u++) {
        uint4 p = make_uint4(0, 0, 0, 0), q = p;
        if (32 * u + 8 * t < n) { /* what lies there otherwise may be no number */
            p = *reinterpret_cast<const uint4 *>(a + 64 * u);
            q = *reinterpret_cast<const uint4 *>(a + 64 * u + 8 * STAGE_PITCH);
        }
#pragma unroll
        for (int i = 0; i < NT; i++)
            mma_bf16(c[i], p.x, q.x, p.y, q.y, b[u][i].x, b[u][i].y);
#pragma unroll
        for (int i = 0; i < NT; i++)
            mma_bf16(c[i], p.z, q.z, p.w, q.w, b[u][i].z, b[u][i].w);
    }
}

/* A chain whose A isn't in the ring, as lora_chain has it; any dtype. */
template <int NT>
__device__ static inline void chain_in_place(float (&c)[NT][4], const struct rank_tile &tile,
                                             int row, int row_end, const bf16 *x, int d_in,
                                             int k_begin, int k_end, int lane)
{
    int g = lane >> 2, t = lane & 3, r0 = tile.rank0 + g, r1 = r0 + 8;
    const void *a = reinterpret_cast<const void *>(tile.cell->a);
    int dtype = tile.cell->dtype, rank = tile.cell->rank;
#pragma unroll 1
    for (int k = k_begin + 8 * t; k < k_end + 8 * t; k += 32) {
        bool inside = k < k_end;
        float f0[8], f1[8];
#pragma unroll
        for (int e = 0; e < 8; e++) {
            f0[e] = inside && r0 < rank ? load_as_float(a, (int64_t)r0 * d_in + k + e, dtype) : 0;
            f1[e] = inside && r1 < rank ? load_as_float(a, (int64_t)r1 * d_in + k + e, dtype) : 0;
        }
        for (int plane = 0; plane < planes_of(dtype); plane++) {
            uint32_t p0[4], p1[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                p0[e] = take_plane(f0[2 * e], f0[2 * e + 1]);
                p1[e] = take_plane(f1[2 * e], f1[2 * e + 1]);
            }
#pragma unroll
            for (int n = 0; n < NT; n++) {
                uint4 b = make_uint4(0, 0, 0, 0);
                if (inside && row + 8 * n + g < row_end)
                    b = __ldcg(
                        reinterpret_cast<const uint4 *>(x + (int64_t)(row + 8 * n + g) * d_in + k));
                mma_bf16(c[n], p0[0], p1[0], p0[1], p1[1], b.x, b.y);
                mma_bf16(c[n], p0[2], p1[2], p0[3], p1[3], b.z, b.w);
            }
        }
    }
}

template <class S>
__global__ static void __maxnreg__(S::REGISTERS)
    shrink_kernel(const bf16 *x, int d_in, const __grid_constant__ struct lora_view v)
{
    extern __shared__ float4 shared[];
    typename S::memory &m = *reinterpret_cast<typename S::memory *>(shared);
    int thread = (int)threadIdx.x, warp = thread >> 5, lane = thread & 31;
    int me = cluster_rank(), cluster = (int)blockIdx.x / CLUSTER;
    int n_clusters = (int)gridDim.x / CLUSTER;
    pdl_trigger();
    if (thread == 0) {
        for (int i = 0; i < S::STAGES; i++)
            barrier_init(&m.full[i], 1);
        for (int b = 0; b < 2; b++) {
            barrier_init(&m.slices_full[b], 1);
            for (int q = 0; q < CLUSTER; q++)
                barrier_init(&m.slices_free[q][b], S::ADDERS / 32);
        }
        barrier_init_done();
    }
    cluster_arrive();

    int n_segs = lora_n_segs(v), n_before = 0; /* items of earlier tables */
    int segs_max = TABLE_CELLS / v.n_parts, turn = 0;
    int stage = 0; /* of the ring */
    uint32_t phase = 0;
    uint32_t uses = 0; /* a byte for each block q: of its buffers, modulo 4 */
    /* Bit 2 q + buffer: the parity of slices_free that says that what this block sent there last
     * has been read. Each block sends at each use and waits for each answer, so nobody is two
     * phases of a barrier away from anybody. */
    uint32_t sent = 0xff;
    bool first = true;
    for (int s0 = 0; s0 < n_segs; s0 += segs_max) {
        struct lora_table table = {m.spans, m.cells, 0};
        int n = n_segs - s0 < segs_max ? n_segs - s0 : segs_max;
        if (!first)
            __syncthreads(); /* the last table has been read */
        lora_table_fill(table, v, s0, n, thread, S::THREADS);
        __syncthreads();
        for (int i = thread; i < n; i += S::THREADS)
            m.item_end[i] = (m.spans[i].row_end - m.spans[i].row_begin + S::ROWS - 1) / S::ROWS *
                            ((rank_tiles(m.cells + i * v.n_parts, v.n_parts) + S::GROUP - 1) /
                             S::GROUP);
        lora_scan(m.item_end, n, thread, S::THREADS, 0);
        int n_items = m.item_end[n - 1];
        int i0 = (cluster + n_clusters - n_before % n_clusters) % n_clusters;
        n_before += n_items;

        struct shrink_copies copies = {{}, n_items, me * LORA_SLICE, 0, stage};
        if (warp == S::THREADS / 32 - 1 && i0 < n_items && me * LORA_SLICE < d_in) {
            copies.i = i0;
            copies.item = shrink_item_at<S>(m, n, v.n_parts, i0);
            for (int i = 0; i < S::STAGES; i++)
                shrink_copy<S>(m, copies, n, v.n_parts, n_items, d_in, lane);
        }
        if (first) {
            cluster_wait();
            pdl_wait();
        }
        first = false;
        int chain = warp & 3, g = lane >> 2, t = lane & 3, my_row = (warp >> 2) * 8 * S::NT;
        for (int i = i0; i < n_items; i += n_clusters) {
            struct shrink_item item = shrink_item_at<S>(m, n, v.n_parts, i);
            int row = item.row + my_row;
#pragma unroll 1
            for (int k0 = 0; k0 < d_in; k0 += ROUND) {
                int n_slices = (d_in - k0 + LORA_SLICE - 1) / LORA_SLICE;
                n_slices = n_slices < CLUSTER ? n_slices : CLUSTER;
                int begin = k0 + me * LORA_SLICE + chain * LORA_CHAIN;
                int end = begin + LORA_CHAIN < d_in ? begin + LORA_CHAIN : d_in;
                uint4 b[CHUNKS][S::NT];
#pragma unroll
                for (int u = 0; u < CHUNKS; u++)
#pragma unroll
                    for (int nt = 0; nt < S::NT; nt++) {
                        int k = begin + 32 * u + 8 * t, r = row + 8 * nt + g;
                        b[u][nt] = make_uint4(0, 0, 0, 0);
                        if (k < end && r < item.row_end)
                            b[u][nt] = __ldcg(
                                reinterpret_cast<const uint4 *>(x + (int64_t)r * d_in + k));
                    }
#pragma unroll 1
                for (int j = 0; j < item.n; j++) {
                    struct rank_tile tile = rank_tile_at(item.cells, item.first + j);
                    int q = (item.first + j) % CLUSTER, use = (int)(uses >> 8 * q) & 3;
                    int buffer = use & 1, bit = 2 * q + buffer;
                    uint32_t free = sent >> bit & 1;
                    sent ^= q != me ? 1u << bit : 0;
                    uses = (uses & ~(0xffu << 8 * q)) | (uint32_t)((use + 1) & 3) << 8 * q;
                    if (me < n_slices) {
                        float c[S::NT][4] = {};
                        barrier_wait(&m.full[stage], phase);
                        if (tile.copied)
                            chain_in_ring<S::NT>(c, m.ring[stage] + chain * LORA_CHAIN * 2, b,
                                                 end - begin, lane);
                        else
                            chain_in_place<S::NT>(c, tile, row, item.row_end, x, d_in, begin, end,
                                                  lane);
                        if (++stage == S::STAGES) {
                            stage = 0;
                            phase ^= 1;
                        }
                        /* Who writes a buffer again has met everybody since. */
                        float *sums = m.sums[turn][chain] + my_row * SUM_PITCH;
#pragma unroll
                        for (int nt = 0; nt < S::NT; nt++) {
                            float *to = sums + (8 * nt + 2 * t) * SUM_PITCH + g;
                            to[0] = c[nt][0];
                            to[SUM_PITCH] = c[nt][1];
                            to[8] = c[nt][2];
                            to[SUM_PITCH + 8] = c[nt][3];
                        }
                        __syncthreads();
                        if (warp == S::THREADS / 32 - 1)
                            shrink_copy<S>(m, copies, n, v.n_parts, n_items, d_in, lane);
                        if (thread < S::ADDERS) {
                            int at = thread / 4 * SUM_PITCH + thread % 4 * 4;
                            float4 sum = *reinterpret_cast<float4 *>(&m.sums[turn][0][at]);
#pragma unroll
                            for (int i = 1; i < 4; i++)
                                sum = plus(sum, *reinterpret_cast<float4 *>(&m.sums[turn][i][at]));
                            if (q != me)
                                barrier_wait(&m.slices_free[q][buffer], free);
                            if (q == me)
                                m.slices[buffer][me][thread] = sum;
                            else if (S::AT_ONCE)
                                m.leaving[q][buffer][thread] = sum;
                            else
                                store_remote(shared_address(&m.slices[buffer][me][thread]), q,
                                             &m.slices_full[buffer], sum.x, sum.y, sum.z, sum.w);
                        }
                        if (S::AT_ONCE) {
                            fence_before_copies();
                            __syncthreads();
                            if (thread == 0 && q != me)
                                copy_to_block(shared_address(m.slices[buffer][me]),
                                              m.leaving[q][buffer], sizeof m.slices[0][0],
                                              &m.slices_full[buffer], q);
                        }
                        turn = (turn + 1) % S::TURNS;
                    } else if (q != me && warp == 0) {
                        /* No slice: a word that nobody reads, or q would be uses ahead of me. */
                        barrier_wait(&m.slices_free[q][buffer], free);
                        if (lane == 0)
                            store_remote(shared_address(&m.slices[buffer][me][0]), q,
                                         &m.slices_full[buffer], 0, 0, 0, 0);
                    }
                    if (q != me || thread >= S::ADDERS)
                        continue;
                    if (thread == 0) {
                        int n_sent = n_slices - (me < n_slices);
                        barrier_expect(&m.slices_full[buffer],
                                       (uint32_t)n_sent * sizeof m.slices[0][0] +
                                           (uint32_t)(CLUSTER - 1 - n_sent) * sizeof(float4));
                    }
                    barrier_wait(&m.slices_full[buffer], use >> 1);
                    float4 sum;
                    if (k0 > 0)
                        sum = plus(m.total[j / CLUSTER][thread], m.slices[buffer][0][thread]);
                    else
                        sum = m.slices[buffer][0][thread];
                    for (int s = 1; s < n_slices; s++)
                        sum = plus(sum, m.slices[buffer][s][thread]);
                    __syncwarp();
                    if (lane < CLUSTER && lane != me)
                        barrier_arrive_remote(&m.slices_free[me][buffer], lane);
                    if (k0 + ROUND < d_in) {
                        m.total[j / CLUSTER][thread] = sum;
                        continue;
                    }
                    int r = item.row + thread / 4, rank0 = tile.rank0 + thread % 4 * 4;
                    int live = tile.cell->rank - rank0; /* the rest is padding: 0 */
                    float scale = tile.cell->scale;
                    uint2 store = {
                        pack_bf16(live > 0 ? scale * sum.x : 0, live > 1 ? scale * sum.y : 0),
                        pack_bf16(live > 2 ? scale * sum.z : 0, live > 3 ? scale * sum.w : 0)};
                    if (r < item.row_end && live > 0)
                        *reinterpret_cast<uint2 *>(v.t + (int64_t)r * v.t_stride + tile.cell->t_at +
                                                   rank0) = store;
                }
            }
        }
    }
    if (first) {
        cluster_wait();
        pdl_wait();
    }
    /* The others still say that they have read what was sent; not to one that is gone. */
    if (n_segs > 0 && thread < 2 * CLUSTER)
        barrier_wait(&m.slices_free[thread / 2][thread & 1], sent >> thread & 1);
}

template <class S>
static cudaLaunchConfig_t shrink_config(struct backend *be, int n_clusters, bool dependent,
                                        cudaLaunchAttribute (&attributes)[3])
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute *a = &attributes[config.numAttrs++];
    *a = {};
    a->id = cudaLaunchAttributeClusterDimension;
    a->val.clusterDim.x = CLUSTER;
    a->val.clusterDim.y = a->val.clusterDim.z = 1;
    add_attributes(config, attributes, dependent);
    config.gridDim = dim3((unsigned)(n_clusters * CLUSTER));
    config.blockDim = dim3(S::THREADS);
    config.dynamicSmemBytes = sizeof(typename S::memory);
    config.stream = be->stream;
    return config;
}

/* limit: how many clusters are resident together; asked once. */
template <class S>
static void launch_shrink(struct backend *be, const struct lora_view &v, const bf16 *x, int d_in,
                          int n_clusters, int *limit)
{
    cudaLaunchAttribute attributes[3];
    if (*limit == 0) {
        cudaLaunchConfig_t config = shrink_config<S>(be, be->n_multiprocessors, false, attributes);
        cudaError_t rc = cudaOccupancyMaxActiveClusters(limit, shrink_kernel<S>, &config);
        int most = be->n_multiprocessors * S::BLOCKS / CLUSTER;
        *limit = rc != cudaSuccess || *limit < 1 ? 1 : *limit < most ? *limit : most;
        cuda_note(be, rc, "sgmv_shrink");
    }
    cudaLaunchConfig_t config = shrink_config<S>(be, n_clusters < *limit ? n_clusters : *limit,
                                                 dependent(be), attributes);
    cuda_note(be, cudaLaunchKernelEx(&config, shrink_kernel<S>, x, d_in, v), "sgmv_shrink");
}

void lora_shrink(struct backend *be, const struct lora_view &v, const bf16 *x, int n_rows, int d_in)
{
    BUG_IF(d_in % 8 != 0);
    int *limits = be->linear->n_shrink_clusters;
    if (n_rows <= 256)
        launch_shrink<shrink_few>(be, v, x, d_in, 8 + 4 * n_rows, &limits[0]);
    else
        launch_shrink<shrink_many>(be, v, x, d_in, INT32_MAX, &limits[1]);
}

/* t' stays in the backend's own memory. */
void cuda_sgmv_shrink(struct backend *be, struct devptr t, struct devptr x, int n_rows, int d_in,
                      const struct lora_args *lora)
{
    (void)t;
    if (n_rows > 0 && lora != nullptr && lora->n_parts > 0)
        lora_shrink(be, lora_view_of(be, lora), dev<bf16>(x), n_rows, d_in);
}

/* ---- expand
 * --------------------------------------------------------------------------------------- */

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
                w = __ldg(reinterpret_cast<const uint2 *>(b + (uint32_t)(4 * h * cell.rank)));
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

int lora_open(struct err *err)
{
    cudaError_t rc = cudaFuncSetAttribute(shrink_kernel<shrink_few>,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          (int)sizeof(shrink_few::memory));
    if (rc == cudaSuccess)
        rc = cudaFuncSetAttribute(shrink_kernel<shrink_many>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)sizeof(shrink_many::memory));
    return rc == cudaSuccess ? 0
                             : err_set(err, ERR_INTERNAL, "cuda: shared memory of sgmv_shrink: %s",
                                       cudaGetErrorString(rc));
}
