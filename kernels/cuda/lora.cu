/* lora.cu: t' = A x, the first half of the adapters' product as a kernel of its own; the second is
 * in lora_expand.cu. lora.cuh has the order of the sums; linear.cu computes both halves inside its
 * own kernel where rows are few, and calls lora_shrink where they are many.
 *
 * Few rows are latency, many adapters are bytes; both want everything that doesn't depend on an
 * earlier kernel to be under way before pdl_wait returns: the segments, the entries, and A or B
 * itself. A shrink and an expand fit on a multiprocessor together, so that while one finishes the
 * other's matrices are already coming in.
 *
 * A cluster of four thread blocks takes items (segment, tile of rows, up to GROUP tiles of
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
 * Two numbers (64 rows, 64 adapters of 16 ranks, K = 4,096): 8.4 MB of A, 2.7 us at 3.1 TB/s;
 * 17 MFLOP. */
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
};

struct lora_view lora_segs_of(const struct lora_step *step)
{
    struct lora_view v = {};
    BUG_IF(step->n_segs > LORA_SEGS_MAX);
    v.segs = dev<const struct lora_seg>(step->d_segs);
    v.d_n_segs = dev<const int32_t>(step->d_n_segs);
    v.n_segs = step->n_segs;
    return v;
}

struct lora_view lora_view_of(struct backend *be, const struct lora_args *lora)
{
    if (lora == nullptr)
        return {};
    BUG_IF(lora->n_parts > LORA_PARTS_MAX);
    struct lora_view v = lora_segs_of(lora->step);
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
                   reinterpret_cast<const char *>(tile.cell->a) +
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
