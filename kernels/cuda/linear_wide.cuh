/* linear_wide.cuh: linear for more rows than linear_narrow.cuh takes. Part of linear.cu, whose head
 * has the design. */
#ifndef TRIBUTARY_KERNELS_CUDA_LINEAR_WIDE_CUH
#define TRIBUTARY_KERNELS_CUDA_LINEAR_WIDE_CUH

#include "kernels/cuda/linear_tile.cuh"

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
    named_sync(2 + wg, 128);                    /* the last tile has left the staging */
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
    named_sync(2 + wg, 128);
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

__device__ static inline void wide_add_bias(float (&c)[wide::N / 2], const struct linear_args &a,
                                            const int (&out)[2])
{
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

/* Adds the deltas of the table's segments to a warp's 16 outputs by N rows: B's fragment is loaded
 * once a segment, part and 16 ranks, and serves all rows. The order of a row's sum is lora_delta's.
 */
__device__ static inline void wide_add(float (&c)[wide::N / 2], const struct linear_args &a,
                                       const struct lora_table &table, const int (&out)[2],
                                       int row0, int lane)
{
    const struct lora_view &v = a.lora;
    int g = lane >> 2, t = lane & 3;
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
                    copy_box_to_all(to + 2 * TILE_BYTES + rank * SHARE * TILE * 2, &x_map,
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
                    named_sync(1, 256);
                    first_seg = lora_first_seg(a.lora, n_segs, row0);
                    lora_table_fill(table, a.lora, first_seg,
                                    n_segs - first_seg < wide::SEGS ? n_segs - first_seg
                                                                    : (int)wide::SEGS,
                                    (int)threadIdx.x, 256);
                    named_sync(1, 256);
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
                    total[i] = (range == 0 ? 0.0f : total[i]) + acc[i];
            }

            int out[2];
            outputs_of(out, a, m_tile * TILE + warp * 16 + g);
            if (m_tile >= a.n_m_tiles)
                out[0] = out[1] = -1;
            if (a.bias != nullptr)
                wide_add_bias(total, a, out);
            float delta[wide::N / 2] = {};
            /* Usually one table holds all segments over these rows; else the rest, table by table.
             */
            for (int s = first_seg; s < n_segs; s += wide::SEGS) {
                if (s > first_seg) {
                    if (lora_seg_at(a.lora, s).row_begin >= row0 + wide::N)
                        break; /* both warpgroups agree */
                    named_sync(1, 256);
                    lora_table_fill(table, a.lora, s,
                                    n_segs - s < wide::SEGS ? n_segs - s : (int)wide::SEGS,
                                    (int)threadIdx.x, 256);
                    named_sync(1, 256);
                    table_of = -1;
                }
                wide_add(delta, a, table, out, row0, lane);
            }
#pragma unroll
            for (int i = 0; i < wide::N / 2; i++)
                total[i] += delta[i];
            if (a.store == STORE_F32 || (a.store == STORE_BF16 && a.pair_width > 0))
                wide_store_straight(total, a, out, row0, lane);
            else if (m_tile < a.n_m_tiles)
                wide_store(total, a, my_staging, m_tile, row0, wg);
        }
    }
}

#endif
