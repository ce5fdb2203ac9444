/* attention_prefill.cu: attention of sequences with many rows in the step (FlashAttention-3).
 *
 * A thread block has three warpgroups that compute (two for head_dim 256) and one warp that copies.
 * An item is (sequence, KV head, 192 packed query rows), 64 rows a warpgroup, which keeps acc of
 * the piece, S and P in registers and walks the keys tile by tile:
 *
 *      S[64, 64] = Q K^T    wgmma, Q and K from shared memory
 *      P = softmax of S     a row's 64 keys lie in 4 lanes, as in mma.sync's accumulators
 *      acc += P V           wgmma, P from registers, V as it lies: keys are K, head_dim is N
 *
 * The products of a tile are issued together, S of the next tile first, so that the tensor cores
 * have P V while the warpgroup takes the softmax of the next S; what they still wait for, the other
 * warpgroups give. wgmma adds in the order of mma.sync, to the bit (tried over chains of 16 steps
 * and exponents 12 bits apart), so the rules of attention.cuh hold between this kernel and
 * decode's. The total over the pieces is touched every 4 tiles: it lies in shared memory, where the
 * registers of a third warpgroup are cheaper than its bandwidth.
 *
 * Of head_dim 256 a warpgroup can hold half: two share 64 rows, each takes all of S and half of
 * P V.
 *
 * The copying warp walks the items ahead of the others: a slot of the ring is a tile of K or of V,
 * K0 V0 K1 V1 ..., filled by the TMA unit from 16-token blocks of the cache in boxes of 64 columns;
 * a head_dim that is no multiple takes some of the next head's, unused. V of keys behind the
 * sequence's end it sets to zero.
 *
 * Causal load: item i goes to thread block i, and back from the last to the first, and so on; the
 * longest walks come first, those of all KV heads together, so that the queries at work read the
 * same keys from L2. Tiles that no row of a warpgroup sees are skipped (attention.cuh says why that
 * changes no bit).
 *
 * Bound, head_dim 128, a tile of a warpgroup: 2 * 2 * 64 * 64 * 128 = 2.1 MFLOP, 512 cycles of the
 * tensor cores; 4,096 exponentials, 256 cycles of 16 a cycle; shared memory 600 cycles (Q and K
 * 256, V 128, the copies 85, the total 128). K and V come from L2 at 32 KB per 6.3 MFLOP. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/wgmma.cuh"

enum {
    M = 64, /* query rows of a warpgroup */
    SLOTS_MAX = 12,
    SHARED_MAX = (227 << 10) - 512, /* dynamic; the rest is the barriers' */
};

template <int D> struct plan {
    static constexpr bool split = D > 128; /* the warpgroups share 64 rows */
    static constexpr int warpgroups = split ? 2 : 3;
    static constexpr int consumers = warpgroups * 128, threads = consumers + 128;
    static constexpr int copy_registers = split ? 40 : 32; /* of 64 Ki in all */
    static constexpr int compute_registers = split ? 232 : 160;
    static constexpr int rows = split ? M : warpgroups * M;
    static constexpr int dims = split ? D / warpgroups : D; /* of y, a warpgroup */
    static constexpr int boxes = (D + 63) / 64;             /* of 64 columns */
    static constexpr int box = ATT_TILE * 128;              /* bytes */
    static constexpr int slot = boxes * box;
    static constexpr int block_bytes = BLOCK_TOKENS * 128 * boxes;
    static constexpr int q_bytes = (split ? 1 : warpgroups) * slot;
    static constexpr int total_bytes = M * dims * 4; /* of a warpgroup */
};

int attention_prefill_rows(int head_dim)
{
    return head_dim > 128 ? plan<256>::rows : plan<128>::rows;
}

/* ---- items
 * ------------------------------------------------------------------------------------------ */

struct item {
    int row0, last, pos0, kv_len; /* last: the sequence's last packed row */
    int kv_head, first_row;       /* packed */
    int tile, tile_end;           /* that some row sees */
    const int32_t *blocks;
};

/* Longest walks first: the last rows of the sequences, and of all KV heads together. */
template <int D>
__device__ static inline struct item item_at(const struct attention_args &a, const int *table,
                                             int number)
{
    int from_end = number / a.n_kv_heads, tile = table[a.n_seqs] - 1 - from_end;
    int s = prefix_find(table, a.n_seqs, tile);
    struct item w;
    w.kv_head = number - from_end * a.n_kv_heads;
    w.row0 = __ldg(a.seq_indptr + s);
    int n_rows = __ldg(a.seq_indptr + s + 1) - w.row0;
    w.kv_len = __ldg(a.kv_len + s);
    w.pos0 = w.kv_len - n_rows;
    w.last = n_rows * a.group - 1;
    w.first_row = (tile - table[s]) * plan<D>::rows;
    int pos_first = w.pos0 + w.first_row / a.group;
    int pos_last = w.pos0 + min(w.first_row + plan<D>::rows - 1, w.last) / a.group;
    w.tile = a.window > 0 ? max(pos_first - a.window + 1, 0) / ATT_TILE : 0;
    w.tile_end = pos_last / ATT_TILE + 1;
    w.blocks = a.block_table + (int64_t)s * a.max_blocks;
    return w;
}

/* Thread block b's items: b, then from the other end of the next gridDim.x, and so on. */
__device__ static inline int item_number(int round)
{
    return round * (int)gridDim.x +
           (round % 2 == 0 ? (int)blockIdx.x : (int)(gridDim.x - 1 - blockIdx.x));
}

/* ---- the copies
 * ------------------------------------------------------------------------------------------ */

/* A place in the ring, and the parity of the round. */
struct cursor {
    int slot;
    uint32_t parity;
};

__device__ static inline void advance(struct cursor *c, int n, int n_slots)
{
    c->slot += n;
    if (c->slot >= n_slots) {
        c->slot -= n_slots;
        c->parity ^= 1;
    }
}

template <int D>
__device__ static inline void copy_items(const struct attention_args &a, const CUtensorMap *k_map,
                                         const CUtensorMap *v_map, const int *table,
                                         unsigned char *ring, int n_slots, uint64_t *full,
                                         uint64_t *empty, uint64_t *tail)
{
    using p = plan<D>;
    int lane = threadIdx.x & 31, n_items = table[a.n_seqs] * a.n_kv_heads;
    struct cursor at = {0, 1};
    uint32_t tail_parity = 0;
    for (int round = 0, number; (number = item_number(round)) < n_items; round++) {
        struct item w = item_at<D>(a, table, number);
        int block = 0; /* lane i has the number of the i-th block of these 8 tiles */
        for (int tile = w.tile; tile < w.tile_end; tile++) {
            if (tile == w.tile || tile % 8 == 0) {
                int i = tile / 8 * 32 + lane;
                block = i * BLOCK_TOKENS < w.kv_len ? __ldg(w.blocks + i) : 0;
            }
            int row = BLOCK_TOKENS *
                      __shfl_sync(0xffffffffu, block, tile % 8 * ATT_BLOCKS_PER_TILE + (lane & 3));
            int n_keys = min(w.kv_len - tile * ATT_TILE, +ATT_TILE);
            int n_blocks = (n_keys + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
#pragma unroll
            for (int side = 0; side < 2; side++) {
                unsigned char *slot = ring + at.slot * p::slot;
                bool ends = side == 1 && n_keys < ATT_TILE;
                uint64_t *there = ends ? tail : full + at.slot;
                barrier_wait(empty + at.slot, at.parity);
                if (lane == 0)
                    barrier_expect(there, n_blocks * p::block_bytes);
                __syncwarp();
                if (lane < n_blocks) {
#pragma unroll
                    for (int c = 0; c < p::boxes; c++)
                        copy_box(slot + c * p::box + lane * BLOCK_TOKENS * 128,
                                 side == 0 ? k_map : v_map, w.kv_head * D + c * 64, row, there);
                }
                if (ends) { /* zeros behind the end */
                    barrier_wait(tail, tail_parity);
                    tail_parity ^= 1;
                    for (int c = 0; c < p::boxes; c++) {
                        for (int i = n_keys * 128 + lane * 16; i < p::box; i += 32 * 16)
                            *reinterpret_cast<uint4 *>(slot + c * p::box + i) = {};
                    }
                    fence_before_copies();
                    __syncwarp();
                    if (lane == 0)
                        barrier_arrive(full + at.slot);
                }
                advance(&at, 1, n_slots);
            }
        }
    }
}

/* ---- the kernel
 * ------------------------------------------------------------------------------------------ */

template <int D>
__device__ static inline void compute_items(const struct attention_args &a, const int *table,
                                            unsigned char *ring, int n_slots, uint64_t *full,
                                            uint64_t *empty)
{
    using p = plan<D>;
    constexpr int K_STEPS = D / 16, GROUPS = ATT_TILE / 16;
    int wg = __shfl_sync(0xffffffffu, (int)threadIdx.x / 128, 0), thread = threadIdx.x % 128;
    int lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    int n_items = table[a.n_seqs] * a.n_kv_heads, reach = attention_reach(a.window);
    unsigned char *q = ring + n_slots * p::slot + (p::split ? 0 : wg * p::slot);
    float4 *total = reinterpret_cast<float4 *>(ring + n_slots * p::slot + p::q_bytes +
                                               wg * p::total_bytes) +
                    thread; /* [dims / 8, 128]: acc[4 i .. 4 i + 3] of each thread */
    uint32_t q_at = wgmma_address(shared_address(q), 16);
    uint32_t k_first = wgmma_address(shared_address(ring), 16);
    uint32_t v_first = wgmma_address(
        shared_address(ring) + (p::split ? wg * p::dims / 64 * p::box : 0), p::box);
    struct cursor k_at = {0, 0}, v_at = {1, 0};

    auto release = [&](struct cursor *c) {
        if (lane == 0)
            barrier_arrive(empty + c->slot);
        advance(c, 2, n_slots);
    };
    auto skip = [&](int n) {
        for (; n > 0; n--) {
            barrier_wait(full + k_at.slot, k_at.parity);
            release(&k_at);
            barrier_wait(full + v_at.slot, v_at.parity);
            release(&v_at);
        }
    };

    for (int round = 0, number; (number = item_number(round)) < n_items; round++) {
        struct item w = item_at<D>(a, table, number);
        /* The warpgroup's rows; a lane has g and g + 8 of its warp's 16. Rows past the end repeat
         * the last, unstored. */
        int first_row = w.first_row + (p::split ? 0 : wg * M);
        auto row_of = [&](int h) { return min(first_row + warp * 16 + g + 8 * h, w.last); };
        int pos_min = w.pos0 + min(first_row, w.last) / a.group;
        int pos_max = w.pos0 + min(first_row + M - 1, w.last) / a.group;
        int tile = max(pos_min - reach + 1, 0) / ATT_TILE, tile_end = pos_max / ATT_TILE + 1;
        if (first_row > w.last) {
            skip(w.tile_end - w.tile);
            continue;
        }
        skip(tile - w.tile);

        constexpr int q_threads = p::split ? p::consumers : 128;
        int q_barrier = p::split ? 1 : 1 + wg;
        named_sync(q_barrier, q_threads); /* all have done with the last item's */
        for (int i = threadIdx.x % q_threads; i < M * (D / 8); i += q_threads) {
            int r = i / (D / 8), chunk = i % (D / 8);
            *reinterpret_cast<uint4 *>(q + chunk / 8 * p::box + r * 128 +
                                       (chunk % 8 ^ swizzle<8>(r)) * 16) =
                *reinterpret_cast<const uint4 *>(
                    a.qkv + q_offset(a, D, w.row0, w.kv_head, min(first_row + r, w.last)) +
                    chunk * 8);
        }
        fence_before_copies();
        named_sync(q_barrier, q_threads);

        float m[2] = {-INFINITY, -INFINITY}, l[2] = {}, alpha[2];
        float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
        float s[ATT_TILE / 2], acc[p::dims / 2];
        uint32_t fragment[GROUPS][4];
        bool rescale = false, add = false, starts = true;

        auto multiply_q_k = [&] {
            uint32_t k = k_first + k_at.slot * (p::slot >> 4);
#pragma unroll
            for (int i = 0; i < K_STEPS; i++) {
                int at = (i / 4 * p::box + i % 4 * 32) >> 4;
                wgmma<ATT_TILE>(s, wgmma_descriptor_at(q_at + at), wgmma_descriptor_at(k + at),
                                i > 0);
            }
            wgmma_commit();
        };
        auto multiply_p_v = [&] {
            uint32_t v = v_first + v_at.slot * (p::slot >> 4);
#pragma unroll
            for (int j = 0; j < GROUPS; j++)
                wgmma_transposed<p::dims>(
                    acc, fragment[j], wgmma_descriptor_at(v + (j * 16 * 128 >> 4)), add || j > 0);
            wgmma_commit();
        };
        auto softmax = [&](int at) {
            int key0 = at * ATT_TILE;
            if (a.cap > 0) {
#pragma unroll
                for (int i = 0; i < ATT_TILE / 2; i++)
                    s[i] = soft_cap(s[i], a.cap, a.cap_in);
            }
            if (key0 + ATT_TILE - 1 > pos_min || pos_max - key0 >= reach) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int up_to = w.pos0 + row_of(h) / a.group - key0 - 2 * t;
#pragma unroll
                    for (int i = 0; i < ATT_TILE / 4; i++) {
                        int key = i / 2 * 8 + i % 2;
                        if (key > up_to || up_to - key >= reach)
                            s[i / 2 * 4 + 2 * h + i % 2] = -INFINITY;
                    }
                }
            }
            rescale = false;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float best = fmaxf(s[2 * h], s[2 * h + 1]);
#pragma unroll
                for (int n = 1; n < GROUPS * 2; n++)
                    best = fmaxf(best, fmaxf(s[4 * n + 2 * h], s[4 * n + 2 * h + 1]));
                bool fresh = m[h] == -INFINITY; /* acc is 0 then */
                float base = tile_maximum(&m[h], &alpha[h], quad_max(best), a.to_log2);
                rescale |= !fresh && alpha[h] != 1.0f;
                float part[GROUPS];
#pragma unroll
                for (int j = 0; j < GROUPS; j++) {
                    float *x = &s[8 * j + 2 * h], *y = &s[8 * j + 4 + 2 * h];
                    x[0] = tile_p(x[0], a.to_log2, base);
                    x[1] = tile_p(x[1], a.to_log2, base);
                    y[0] = tile_p(y[0], a.to_log2, base);
                    y[1] = tile_p(y[1], a.to_log2, base);
                    part[j] = sum_of_4(x[0], x[1], y[0], y[1]);
                }
                l[h] = tile_sum(l[h], alpha[h], part[0], part[1], part[2], part[3]);
            }
        };
        auto pack = [&] {
#pragma unroll
            for (int i = 0; i < GROUPS * 4; i++)
                fragment[i / 4][i % 4] = pack_bf16(s[2 * i], s[2 * i + 1]);
        };
        float before[2], after[2];
        auto piece_ends = [&] {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                merge_weights(&top[h], &sum[h], &before[h], &after[h], m[h], quad_sum(l[h]));
                m[h] = -INFINITY;
                l[h] = 0;
            }
        };
        /* The total takes in acc; of the last piece it becomes acc. */
        auto merge = [&](bool last) {
#pragma unroll
            for (int i = 0; i < p::dims / 8; i++) {
                float4 so_far = {};
                if (!starts)
                    so_far = total[i * 128];
                float *x = &acc[4 * i];
                x[0] = merge_value(so_far.x, before[0], x[0], after[0]);
                x[1] = merge_value(so_far.y, before[0], x[1], after[0]);
                x[2] = merge_value(so_far.z, before[1], x[2], after[1]);
                x[3] = merge_value(so_far.w, before[1], x[3], after[1]);
                if (!last)
                    total[i * 128] = {x[0], x[1], x[2], x[3]};
            }
            starts = false;
        };

        barrier_wait(full + k_at.slot, k_at.parity);
        wgmma_fence();
        multiply_q_k();
        wgmma_wait<0>();
        wgmma_done(s);
        release(&k_at);
        softmax(tile);
        pack();
        for (tile++; tile < tile_end; tile++) {
            barrier_wait(full + k_at.slot, k_at.parity);
            wgmma_fence();
            multiply_q_k();
            barrier_wait(full + v_at.slot, v_at.parity);
            wgmma_fence();
            multiply_p_v();
            bool fresh = tile % ATT_TILES_PER_PIECE == 0;
            if (fresh)
                piece_ends();
            wgmma_wait<1>();
            wgmma_done(s);
            release(&k_at);
            softmax(tile);
            wgmma_wait<0>();
            wgmma_done(acc);
            release(&v_at);
            if (fresh) {
                merge(false);
            } else if (__any_sync(0xffffffffu, rescale)) { /* x * 1 is x: skipping changes no bit */
#pragma unroll
                for (int i = 0; i < p::dims / 2; i++)
                    acc[i] = __fmul_rn(acc[i], alpha[i / 2 % 2]);
            }
            add = !fresh;
            pack();
        }
        barrier_wait(full + v_at.slot, v_at.parity);
        wgmma_fence();
        multiply_p_v();
        piece_ends();
        wgmma_wait<0>();
        wgmma_done(acc);
        release(&v_at);
        merge(true);

#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (first_row + warp * 16 + g + 8 * h > w.last)
                continue;
            float inverse = row_inverse(sum[h]);
            bf16 *y = a.y + y_offset(a, D, w.row0, w.kv_head, row_of(h)) +
                      (p::split ? wg * p::dims : 0) + 2 * t;
#pragma unroll
            for (int n = 0; n < p::dims / 8; n++)
                *reinterpret_cast<uint32_t *>(y + n * 8) = pack_bf16(
                    __fmul_rn(acc[4 * n + 2 * h], inverse),
                    __fmul_rn(acc[4 * n + 2 * h + 1], inverse));
        }
        skip(w.tile_end - tile_end);
    }
}

template <int D>
__global__ static void __launch_bounds__(plan<D>::threads, 1)
    prefill_kernel(const __grid_constant__ CUtensorMap k_map,
                   const __grid_constant__ CUtensorMap v_map,
                   const __grid_constant__ struct attention_args a, int n_slots)
{
    using p = plan<D>;
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ uint64_t full[SLOTS_MAX], empty[SLOTS_MAX], tail;
    pdl_trigger();
    unsigned char *ring = reinterpret_cast<unsigned char *>(
        (reinterpret_cast<uintptr_t>(shared) + 1023) & ~(uintptr_t)1023);
    int *table = reinterpret_cast<int *>(ring + n_slots * p::slot + p::q_bytes +
                                         p::warpgroups * p::total_bytes);
    if (threadIdx.x == 0) {
        for (int i = 0; i < n_slots; i++) {
            barrier_init(full + i, 1);
            barrier_init(empty + i, p::consumers / 32);
        }
        barrier_init(&tail, 1);
        barrier_init_done();
    }
    if (threadIdx.x == p::consumers) {
        prefetch_map(&k_map);
        prefetch_map(&v_map);
    }
    prefix_sums<p::threads>(table, a.n_seqs, [&](int s) {
        int n_packed = (__ldg(a.seq_indptr + s + 1) - __ldg(a.seq_indptr + s)) * a.group;
        return n_packed > a.few ? (n_packed + p::rows - 1) / p::rows : 0;
    });
    pdl_wait();
    if (threadIdx.x >= p::consumers) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(p::copy_registers));
        if (threadIdx.x < p::consumers + 32)
            copy_items<D>(a, &k_map, &v_map, table, ring, n_slots, full, empty, &tail);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(p::compute_registers));
        compute_items<D>(a, table, ring, n_slots, full, empty);
    }
}

/* ---- launch
 * ---------------------------------------------------------------------------------------------- */

/* Shared memory beside the ring. */
template <int D> static int beside_bytes(int n_seqs)
{
    return 1024 + plan<D>::q_bytes + plan<D>::warpgroups * plan<D>::total_bytes +
           (n_seqs + 1) * (int)sizeof(int);
}

template <int D>
static void launch_prefill(struct backend *be, const struct attention_args *a, int n_tiles)
{
    using p = plan<D>;
    int64_t n_items = (int64_t)n_tiles * a->n_kv_heads, fill = be->n_multiprocessors;
    int beside = beside_bytes<D>(a->n_seqs), n_slots = (SHARED_MAX - beside) / p::slot;
    n_slots = n_slots < SLOTS_MAX ? n_slots : (int)SLOTS_MAX;
    launch(be, "attention, prefill", prefill_kernel<D>,
           dim3((unsigned)(n_items < fill ? n_items : fill)), p::threads,
           (size_t)(beside + n_slots * p::slot), map_cache<D, 64>(be, a->k, a->n_kv_heads),
           map_cache<D, 64>(be, a->v, a->n_kv_heads), *a, n_slots);
}

void attention_prefill(struct backend *be, const struct attention_args *a, int head_dim,
                       int n_tiles)
{
    switch (head_dim) {
    case 64:
        launch_prefill<64>(be, a, n_tiles);
        break;
    case 80:
        launch_prefill<80>(be, a, n_tiles);
        break;
    case 96:
        launch_prefill<96>(be, a, n_tiles);
        break;
    case 128:
        launch_prefill<128>(be, a, n_tiles);
        break;
    default:
        launch_prefill<256>(be, a, n_tiles);
        break;
    }
}

template <int D> static cudaError_t raise_limit(int max_seqs)
{
    return beside_bytes<D>(max_seqs) + 2 * plan<D>::slot > SHARED_MAX
               ? cudaErrorInvalidValue
               : cudaFuncSetAttribute(prefill_kernel<D>,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, (int)SHARED_MAX);
}

cudaError_t attention_prefill_open(int max_seqs)
{
    cudaError_t rc = raise_limit<64>(max_seqs);
    rc = rc == cudaSuccess ? raise_limit<80>(max_seqs) : rc;
    rc = rc == cudaSuccess ? raise_limit<96>(max_seqs) : rc;
    rc = rc == cudaSuccess ? raise_limit<128>(max_seqs) : rc;
    return rc == cudaSuccess ? raise_limit<256>(max_seqs) : rc;
}
