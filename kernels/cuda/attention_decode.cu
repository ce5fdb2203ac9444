/* attention_decode.cu: attention of sequences with one row in the step, or few; split over the
 * keys.
 *
 * An item is (sequence, 16 packed query rows, piece of 256 keys, KV head). The list of items lies
 * in the batch on the device: every thread block computes the prefix sums of the items of each
 * sequence (n_seqs numbers). Its first item is the one of its own number; after that it claims the
 * next from a counter. (Multiprocessors don't get equal shares of a busy memory: when the items
 * were dealt out, the average one was at work for 80 % of a launch.) The launch's shape depends on
 * the batch's shape alone, so that a recorded launch serves every length. KV heads come fastest:
 * thread blocks at work together read the same rows of the cache.
 *
 * A warp of its own copies: it claims items ahead of the others, tells them what they are, and
 * fills a ring of slots, a slot a tile of K or of V, in the order K0 K1 K2 K3 V0 V1 V2 V3 of each
 * piece. The TMA unit reads the 16 tokens of a cache block as one box for every 64 columns (32, 16
 * when head_dim is no multiple), so that nothing but the block numbers passes through registers,
 * and neither the ends of items nor the merges stop the stream. Blocks whose keys are all of
 * earlier steps it reads before pdl_wait: the whole ring when the lengths are short.
 * kv_copy_blocks, which alone writes such blocks, lets nothing start before it is done.
 *
 * Four warps compute, a piece at once, so that barriers and latencies come twice a piece:
 *      warp w   of each tile S[16, 16 w .. 16 w + 15] = Q K^T   | barrier: maxima of the warps
 *      all      of each tile in order m, alpha, p, sums         | barrier: P as bf16 fragments
 *      warp w   of each tile in order acc[16, its head_dim / 4] = acc alpha + P V
 *
 * A sequence of one piece goes straight to y. Otherwise each piece leaves (acc, m, l) in scratch,
 * and the last of the unit to arrive merges them in ascending order, which is what prefill does in
 * its registers. When the items are more than the scratch has slots, an item is a whole unit, and
 * its pieces are merged one by one.
 *
 * Bound: K and V once, 4 * n_kv_heads * head_dim bytes a key; batch 32, context 4,096, 8 KV heads
 * of 128: 537 MB, 173 us at 3.1 TB/s. The partial results add 1.6 % for a group of 4. */
#include "kernels/cuda/attention.cuh"

enum { WARPS = 4, CONSUMERS = WARPS * 32, THREADS = CONSUMERS + 32, Q_ROWS = 16, SLOTS_MAX = 12 };

template <int D> struct plan : tile_boxes<D> {
    static constexpr int slot = tile_boxes<D>::slot;
    static constexpr int blocks_per_sm = D > 128 ? 1 : 2;
    static constexpr int ring = (D > 128 ? 192 : 96) * 1024;
    static constexpr int slots = ring / slot < SLOTS_MAX ? ring / slot : (int)SLOTS_MAX;
    static constexpr uint32_t block_bytes = BLOCK_TOKENS * D * 2;
};

/* ---- items
 * -----------------------------------------------------------------------------------------------
 */

struct span { /* a sequence of the step */
    int row0, n_packed, pos0, kv_len;
    int tile, tile_end; /* that some row of it sees */
    int first_piece, n_pieces, n_row_tiles;
};

__device__ static inline struct span span_of(const struct attention_args &a, int s)
{
    struct span p;
    p.row0 = __ldg(a.seq_indptr + s);
    int n_rows = __ldg(a.seq_indptr + s + 1) - p.row0;
    p.kv_len = __ldg(a.kv_len + s);
    p.pos0 = p.kv_len - n_rows;
    p.n_packed = n_rows * a.group;
    int first = a.window > 0 && p.pos0 - a.window + 1 > 0 ? p.pos0 - a.window + 1 : 0;
    p.tile = first / ATT_TILE;
    p.tile_end = (p.kv_len + ATT_TILE - 1) / ATT_TILE;
    p.first_piece = p.tile / ATT_TILES_PER_PIECE;
    p.n_pieces = (p.tile_end + ATT_TILES_PER_PIECE - 1) / ATT_TILES_PER_PIECE - p.first_piece;
    bool ours = n_rows > 0 && p.pos0 >= 0 && p.n_packed <= a.few;
    p.n_row_tiles = ours ? (p.n_packed + Q_ROWS - 1) / Q_ROWS : 0;
    return p;
}

struct item {
    int seq, row0, n_packed, pos0, kv_len;
    int kv_head, row_begin; /* its first packed row */
    int tile, tile_end;
    int unit, n_pieces; /* the unit's first item; its pieces, 0: there are no more items */
    int number;         /* of this item */
};

__device__ static inline struct item item_at(const struct attention_args &a, const int *table,
                                             int number, bool split)
{
    int s = prefix_find(table, a.n_seqs, number);
    struct span p = span_of(a, s);
    struct item w;
    w.seq = s;
    w.row0 = p.row0;
    w.n_packed = p.n_packed;
    w.pos0 = p.pos0;
    w.kv_len = p.kv_len;
    w.number = number;
    w.n_pieces = split ? p.n_pieces : 1;
    int local = number - table[s], of_unit = w.n_pieces;
    w.kv_head = local % a.n_kv_heads;
    local /= a.n_kv_heads;
    int row_tile = local / of_unit, piece = local - row_tile * of_unit;
    w.row_begin = row_tile * Q_ROWS;
    w.unit = table[s] + row_tile * of_unit * a.n_kv_heads + w.kv_head;
    w.tile = p.tile;
    w.tile_end = p.tile_end;
    if (split) {
        int begin = (p.first_piece + piece) * ATT_TILES_PER_PIECE;
        w.tile = w.tile > begin ? w.tile : begin;
        if (begin + ATT_TILES_PER_PIECE < w.tile_end)
            w.tile_end = begin + ATT_TILES_PER_PIECE;
    }
    return w;
}

/* ---- the last of a unit
 * ---------------------------------------------------------------------------------- */

/* A slot of scratch: acc [slot_rows, D], then (m, l) [slot_rows], 2 floats a row unused. */
template <int D> __host__ __device__ constexpr size_t slot_floats(int slot_rows)
{
    return (size_t)slot_rows * (D + 4);
}

/* Counts the item's piece, whose result the caller has seen written: is it the unit's last? What
 * all threads wrote that the caller has waited for is seen by those that wait for the last. */
__device__ static inline bool unit_arrive(const struct attention_args &a, const struct item &w)
{
    unsigned before, last = w.n_pieces - 1; /* the last wraps it to 0 */
    asm volatile("atom.release.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(a.arrived + w.unit), "r"(last)
                 : "memory");
    if (before == last)
        __threadfence();
    return before == last;
}

/* Merges the unit's pieces in ascending order into y. */
template <int D>
__device__ static inline void merge_unit(const struct attention_args &a, const struct item &w)
{
    int rows = w.n_packed - w.row_begin < Q_ROWS ? w.n_packed - w.row_begin : Q_ROWS;
    size_t slot = slot_floats<D>(a.slot_rows), stride = slot * a.n_kv_heads;
    const float *unit = a.partial + slot * w.unit;
    for (int e = threadIdx.x; e < rows * (D / 4); e += CONSUMERS) {
        int r = e / (D / 4), d = e % (D / 4) * 4;
        const float *acc = unit + r * D + d, *ml = unit + a.slot_rows * D + 2 * r;
        float total[4] = {}, top = -INFINITY, sum = 0;
#pragma unroll 8
        for (int p = 0; p < w.n_pieces; p++) {
            float4 v = __ldcg(reinterpret_cast<const float4 *>(acc + p * stride));
            float2 s = __ldcg(reinterpret_cast<const float2 *>(ml + p * stride));
            float before, after;
            merge_weights(&top, &sum, &before, &after, s.x, s.y);
            total[0] = merge_value(total[0], before, v.x, after);
            total[1] = merge_value(total[1], before, v.y, after);
            total[2] = merge_value(total[2], before, v.z, after);
            total[3] = merge_value(total[3], before, v.w, after);
        }
        float inverse = row_inverse(sum);
        uint2 out = {pack_bf16(__fmul_rn(total[0], inverse), __fmul_rn(total[1], inverse)),
                     pack_bf16(__fmul_rn(total[2], inverse), __fmul_rn(total[3], inverse))};
        *reinterpret_cast<uint2 *>(a.y + y_offset(a, D, w.row0, w.kv_head, w.row_begin + r) +
                                   d) = out;
    }
}

/* ---- the copies
 * ------------------------------------------------------------------------------------------ */

/* Claims an item, on the first lane; the number is past the end when there are none left, which
 * every thread block is told once, so that the counter ends where it began. */
__device__ static inline int item_next(const struct attention_args &a, int n_items)
{
    int claimed = 0;
    if ((threadIdx.x & 31) == 0)
        claimed = (int)(gridDim.x + atomicInc(a.claimed, n_items - 1));
    return claimed;
}

/* A place in the ring, and the parity of the round. */
struct cursor {
    int slot;
    uint32_t parity;
};

template <int D> __device__ static inline void advance(struct cursor *c)
{
    if (++c->slot == plan<D>::slots) {
        c->slot = 0;
        c->parity ^= 1;
    }
}

__device__ static inline int piece_end(int tile, int tile_end)
{
    return min((tile / ATT_TILES_PER_PIECE + 1) * ATT_TILES_PER_PIECE, tile_end);
}

/* A thread block's items after its first, in the order of their copies. An item has two slots or
 * more, so that when one is told (before its first copy) all of its seventh predecessor have been
 * used. */
enum { TOLD = SLOTS_MAX / 2 + 2 };

struct told {
    struct item item[TOLD];
    uint64_t full[TOLD];
};

template <int D>
__device__ static inline void copy_pieces(const struct attention_args &a, const CUtensorMap *k_map,
                                          const CUtensorMap *v_map, const int *table, bool split,
                                          unsigned char *ring, uint64_t *full, uint64_t *empty,
                                          struct told *told)
{
    using p = plan<D>;
    int lane = threadIdx.x & 31, n_items = table[a.n_seqs], number = blockIdx.x;
    struct cursor at = {0, 1};
    bool first = true;
    struct item w = item_at(a, table, number, split);
    for (int nth = 0; w.n_pieces > 0; nth = nth + 1 == TOLD ? 0 : nth + 1) {
        const int32_t *blocks = a.block_table + (int64_t)w.seq * a.max_blocks;
        int blocks_end = (w.kv_len + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
        for (int tile = w.tile; tile < w.tile_end;) {
            int end = piece_end(tile, w.tile_end), n = end - tile;
            int block0 = tile * ATT_BLOCKS_PER_TILE; /* lane i has the number of block0 + i */
            int block = lane < n * ATT_BLOCKS_PER_TILE && block0 + lane < blocks_end
                            ? __ldg(blocks + block0 + lane)
                            : 0;
            /* The blocks [from, to) of slot i of the piece. */
            auto copy = [&](int i, int slot, int from, int to) {
                int at_tile = (i < n ? i : i - n) * ATT_BLOCKS_PER_TILE;
#pragma unroll 1
                for (int b = 0; b < ATT_BLOCKS_PER_TILE; b++) {
                    int which = block0 + at_tile + b;
                    int of_cache = __shfl_sync(0xffffffffu, block, at_tile + b);
                    if (lane != 0 || which < from || which >= to)
                        continue;
                    unsigned char *into = ring + slot * p::slot + b * BLOCK_TOKENS * p::pitch;
#pragma unroll
                    for (int c = 0; c < p::boxes; c++)
                        copy_box(into + c * p::box, i < n ? k_map : v_map,
                                 w.kv_head * D + c * (p::pitch / 2), of_cache * BLOCK_TOKENS,
                                 full + slot);
                }
            };
            auto expect = [&](int i, int slot) {
                int begin = block0 + (i < n ? i : i - n) * ATT_BLOCKS_PER_TILE;
                if (lane == 0)
                    barrier_expect(full + slot,
                                   min(blocks_end - begin, +ATT_BLOCKS_PER_TILE) * p::block_bytes);
            };
            int i = 0;
            if (first) {
                int lead = min(2 * n, p::slots), old = w.pos0 / BLOCK_TOKENS;
                for (; i < lead; i++) {
                    expect(i, i);
                    copy(i, i, 0, min(old, blocks_end));
                    advance<D>(&at);
                }
                pdl_wait();
                for (int j = 0; j < lead; j++)
                    copy(j, j, old, blocks_end);
                first = false;
            }
            /* Late, so that fast thread blocks take more items than slow ones. */
            bool claims = end == w.tile_end && n_items > (int)gridDim.x;
            for (; i < 2 * n; i++) {
                barrier_wait(empty + at.slot, at.parity);
                if (claims && i >= 2 * n - 2) {
                    number = item_next(a, n_items);
                    claims = false;
                }
                expect(i, at.slot);
                copy(i, at.slot, 0, blocks_end);
                advance<D>(&at);
            }
            if (claims)
                number = item_next(a, n_items);
            tile = end;
        }
        if (n_items <= (int)gridDim.x)
            break;
        number = __shfl_sync(0xffffffffu, number, 0);
        w = {};
        if (number < n_items)
            w = item_at(a, table, number, split);
        if (lane == 0) {
            told->item[nth] = w;
            barrier_arrive(told->full + nth);
        }
    }
}

/* ---- the kernel
 * ------------------------------------------------------------------------------------------ */

template <int D>
__global__ static void __launch_bounds__(THREADS, plan<D>::blocks_per_sm)
    decode_kernel(const __grid_constant__ CUtensorMap k_map,
                  const __grid_constant__ CUtensorMap v_map,
                  const __grid_constant__ struct attention_args a)
{
    using plan = plan<D>;
    constexpr int K_STEPS = D / 16, PAIRS = (D / 16 + WARPS - 1) / WARPS;
    constexpr int TILES = ATT_TILES_PER_PIECE;
    extern __shared__ __align__(128) unsigned char shared[];
    __shared__ uint64_t full[SLOTS_MAX], empty[SLOTS_MAX];
    __shared__ struct told told;
    __shared__ float maxima[TILES][WARPS][Q_ROWS];
    __shared__ float alphas[TILES][Q_ROWS];
    __shared__ uint4 p_fragment[TILES][WARPS][32]; /* P of 16 keys as an A fragment */
    __shared__ float2 p_sum[TILES][WARPS][32];
    __shared__ int is_last;
    pdl_trigger();
    unsigned char *ring_at = reinterpret_cast<unsigned char *>(
        (reinterpret_cast<uintptr_t>(shared) + 1023) & ~(uintptr_t)1023);
    int *table = reinterpret_cast<int *>(ring_at + plan::ring);
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32, g = lane / 4, t = lane & 3;

    if (threadIdx.x < SLOTS_MAX) {
        if (threadIdx.x < plan::slots) {
            barrier_init(full + threadIdx.x, 1);
            barrier_init(empty + threadIdx.x, WARPS);
        }
        if (threadIdx.x < TOLD)
            barrier_init(told.full + threadIdx.x, 1);
        barrier_init_done();
    }
    if (threadIdx.x == CONSUMERS) {
        prefetch_map(&k_map);
        prefetch_map(&v_map);
    }
    prefix_sums<THREADS>(table, a.n_seqs, [&](int s) {
        struct span p = span_of(a, s);
        return p.n_row_tiles * p.n_pieces * a.n_kv_heads;
    });
    bool split = table[a.n_seqs] <= a.n_slots;
    if (!split) {
        __syncthreads();
        prefix_sums<THREADS>(table, a.n_seqs,
                             [&](int s) { return span_of(a, s).n_row_tiles * a.n_kv_heads; });
    }
    int n_items = table[a.n_seqs];
    if ((int)blockIdx.x >= n_items) {
        pdl_wait();
        return;
    }
    if (warp == WARPS) {
        copy_pieces<D>(a, &k_map, &v_map, table, split, ring_at, full, empty, &told);
        return;
    }

    uint32_t ring = shared_address(ring_at);
    int lane_swizzle = swizzle<plan::chunks>(lane & 7);
    uint32_t at_k = (warp * 16 + (lane >> 4) * 8 + (lane & 7)) * plan::pitch +
                    (((lane >> 3 & 1) ^ lane_swizzle) * 16);
    uint32_t at_v[PAIRS];
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        int chunk = 2 * (warp + WARPS * i);
        at_v[i] = chunk / plan::chunks * plan::box + (lane & 15) * plan::pitch +
                  (((chunk % plan::chunks + (lane >> 4)) ^ lane_swizzle) * 16);
    }
    int reach = attention_reach(a.window);
    struct cursor at = {0, 0};
    bool more = n_items > (int)gridDim.x; /* than the first */
    int nth = 0;
    uint32_t round = 0;
    auto hear = [&] {
        barrier_wait(told.full + nth, round);
        struct item heard = told.item[nth];
        if (++nth == TOLD) {
            nth = 0;
            round ^= 1;
        }
        return heard;
    };
    /* The lane's two rows are g and g + 8; those past the end are zeros and aren't stored. */
    uint32_t q[K_STEPS][4];
    auto load_q = [&](const struct item &of) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = of.row_begin + g + 8 * h;
            bool is = r < of.n_packed;
            const bf16 *from = a.qkv + q_offset(a, D, of.row0, of.kv_head, is ? r : 0) + 2 * t;
#pragma unroll
            for (int k = 0; k < K_STEPS; k++) {
                q[k][h] = is ? *reinterpret_cast<const uint32_t *>(from + k * 16) : 0;
                q[k][h + 2] = is ? *reinterpret_cast<const uint32_t *>(from + k * 16 + 8) : 0;
            }
        }
    };
    struct item w = item_at(a, table, blockIdx.x, split), next = {};
    pdl_wait();
    load_q(w);
    for (; w.n_pieces > 0; w = next) {
        bool real[2] = {w.row_begin + g < w.n_packed, w.row_begin + g + 8 < w.n_packed};
        int pos[2];
#pragma unroll
        for (int h = 0; h < 2; h++)
            pos[h] = w.pos0 + (real[h] ? w.row_begin + g + 8 * h : w.row_begin) / a.group;
        float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};

        for (int tile = w.tile; tile < w.tile_end;) {
            int end = piece_end(tile, w.tile_end), n = end - tile;
            /* Of tile x, 16 keys in two eights. The large loops over tiles aren't unrolled: code
             * comes from L2, behind the keys. */
            float scores[TILES][2][4] = {};
#pragma unroll 1
            for (int x = 0; x < n; x++) {
                float s[2][4] = {};
                barrier_wait(full + at.slot, at.parity);
                uint32_t slot = ring + at.slot * plan::slot;
#pragma unroll
                for (int k = 0; k < K_STEPS; k++) {
                    uint32_t b[4];
                    load_matrices(b, slot + 2 * k / plan::chunks * plan::box +
                                         (at_k ^ (2 * k % plan::chunks * 16)));
                    mma(s[0], q[k], b[0], b[1]);
                    mma(s[1], q[k], b[2], b[3]);
                }
                __syncwarp();
                if (lane == 0)
                    barrier_arrive(empty + at.slot);
                advance<D>(&at);
#pragma unroll
                for (int i = 0; i < TILES * 8; i++)
                    if (i / 8 == x)
                        scores[i / 8][i / 4 % 2][i % 4] = s[i / 4 % 2][i % 4];
            }
            if (__builtin_expect(a.cap > 0, 0)) {
#pragma unroll
                for (int i = 0; i < TILES * 8; i++)
                    scores[i / 8][i / 4 % 2][i % 4] = soft_cap(scores[i / 8][i / 4 % 2][i % 4],
                                                               a.cap, a.cap_in);
            }
            /* Of tiles from n on, too, which is of no matter: branches would keep these chains from
             * running side by side. */
#pragma unroll
            for (int x = 0; x < TILES; x++) {
                auto &s = scores[x];
                int key0 = (tile + x) * ATT_TILE + warp * 16 + 2 * t;
#pragma unroll
                for (int c = 0; c < 2; c++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int key = key0 + c * 8 + (i & 1);
                        if (key > pos[i / 2] || pos[i / 2] - key >= reach)
                            s[c][i] = -INFINITY;
                    }
                }
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    float best = quad_max(fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]),
                                                fmaxf(s[1][2 * h], s[1][2 * h + 1])));
                    if (t == 0)
                        maxima[x][warp][g + 8 * h] = best;
                }
            }
            named_sync(1, CONSUMERS);
            float m[2] = {-INFINITY, -INFINITY}, l[2] = {};
#pragma unroll
            for (int x = 0; x < TILES; x++) {
                if (x >= n)
                    break;
                auto &s = scores[x];
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int r = g + 8 * h;
                    float best = fmaxf(fmaxf(maxima[x][0][r], maxima[x][1][r]),
                                       fmaxf(maxima[x][2][r], maxima[x][3][r]));
                    float alpha, base = tile_maximum(&m[h], &alpha, best, a.to_log2);
                    if (warp == 0 && t == 0)
                        alphas[x][r] = alpha;
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        s[c][2 * h] = tile_p(s[c][2 * h], a.to_log2, base);
                        s[c][2 * h + 1] = tile_p(s[c][2 * h + 1], a.to_log2, base);
                    }
                }
                p_fragment[x][warp][lane] = {
                    pack_bf16(s[0][0], s[0][1]), pack_bf16(s[0][2], s[0][3]),
                    pack_bf16(s[1][0], s[1][1]), pack_bf16(s[1][2], s[1][3])};
                p_sum[x][warp][lane] = {sum_of_4(s[0][0], s[0][1], s[1][0], s[1][1]),
                                        sum_of_4(s[0][2], s[0][3], s[1][2], s[1][3])};
            }
            named_sync(1, CONSUMERS);
#pragma unroll
            for (int x = 0; x < TILES; x++) {
                float2 g0 = p_sum[x][0][lane], g1 = p_sum[x][1][lane], g2 = p_sum[x][2][lane],
                       g3 = p_sum[x][3][lane];
                float next[2] = {tile_sum(l[0], alphas[x][g], g0.x, g1.x, g2.x, g3.x),
                                 tile_sum(l[1], alphas[x][g + 8], g0.y, g1.y, g2.y, g3.y)};
                l[0] = x < n ? next[0] : l[0];
                l[1] = x < n ? next[1] : l[1];
            }
            float acc[PAIRS][2][4] = {};
#pragma unroll 1
            for (int x = 0; x < n; x++) {
                float alpha[2] = {alphas[x][g], alphas[x][g + 8]};
#pragma unroll
                for (int i = 0; i < PAIRS; i++) {
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        acc[i][0][c] = __fmul_rn(acc[i][0][c], alpha[c / 2]);
                        acc[i][1][c] = __fmul_rn(acc[i][1][c], alpha[c / 2]);
                    }
                }
                barrier_wait(full + at.slot, at.parity);
                int n_keys = w.kv_len - (tile + x) * ATT_TILE;
                bool ends = n_keys < ATT_TILE;
                if (__builtin_expect(ends,
                                     0)) { /* zeros behind the end, each warp in its columns */
#pragma unroll
                    for (int i = 0; i < PAIRS; i++) {
                        int chunk = 2 * (warp + WARPS * i) + (lane & 1);
                        if (chunk >= D / 8)
                            break;
                        for (int r = n_keys + lane / 2; r < ATT_TILE; r += 16)
                            *reinterpret_cast<uint4 *>(
                                ring_at + at.slot * plan::slot + chunk / plan::chunks * plan::box +
                                r * plan::pitch +
                                ((chunk % plan::chunks) ^ swizzle<plan::chunks>(r)) * 16) = {};
                    }
                    __syncwarp();
                }
                uint32_t slot = ring + at.slot * plan::slot;
#pragma unroll
                for (int j = 0; j < ATT_TILE / 16; j++) {
                    uint4 p = p_fragment[x][j][lane];
                    uint32_t fragment[4] = {p.x, p.y, p.z, p.w};
#pragma unroll
                    for (int i = 0; i < PAIRS; i++) {
                        if (D / 16 % WARPS != 0 && warp + WARPS * i >= D / 16)
                            break;
                        uint32_t b[4];
                        load_matrices_transposed(b, slot + j * 16 * plan::pitch + at_v[i]);
                        mma(acc[i][0], fragment, b[0], b[1]);
                        mma(acc[i][1], fragment, b[2], b[3]);
                    }
                }
                if (ends)
                    fence_before_copies();
                __syncwarp();
                if (lane == 0)
                    barrier_arrive(empty + at.slot);
                advance<D>(&at);
            }
            bool starts = tile == w.tile;
            tile = end;
            if (tile == w.tile_end && more) {
                next = hear();
                load_q(next); /* zeros when there is none */
            }

            l[0] = quad_sum(l[0]);
            l[1] = quad_sum(l[1]);
            if (w.n_pieces > 1) {
                float *slot = a.partial + slot_floats<D>(a.slot_rows) * w.number;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    int r = g + 8 * h;
                    if (!real[h])
                        continue;
#pragma unroll
                    for (int i = 0; i < PAIRS; i++) {
                        int pair = warp + WARPS * i;
                        if (D / 16 % WARPS != 0 && pair >= D / 16)
                            break;
                        float *to = slot + r * D + pair * 16 + 2 * t;
                        *reinterpret_cast<float2 *>(to) = {acc[i][0][2 * h], acc[i][0][2 * h + 1]};
                        *reinterpret_cast<float2 *>(to + 8) = {acc[i][1][2 * h],
                                                               acc[i][1][2 * h + 1]};
                    }
                    if (warp == 0 && t == 0)
                        *reinterpret_cast<float2 *>(slot + a.slot_rows * D + 2 * r) = {m[h], l[h]};
                }
                named_sync(1, CONSUMERS);
                if (threadIdx.x == 0)
                    is_last = unit_arrive(a, w);
                named_sync(1, CONSUMERS);
                if (is_last) {
                    merge_unit<D>(a, w);
                    load_q(next); /* again: the merge has better use for the registers */
                }
                continue;
            }
            /* The total of pieces lies in scratch, each thread's own. */
            float before[2], after[2];
            merge_weights(&top[0], &sum[0], &before[0], &after[0], m[0], l[0]);
            merge_weights(&top[1], &sum[1], &before[1], &after[1], m[1], l[1]);
            float *total = a.partial + (size_t)blockIdx.x * (PAIRS * 8 * CONSUMERS) + threadIdx.x;
#pragma unroll
            for (int i = 0; i < PAIRS * 8; i++) {
                float *value = &acc[i / 8][i / 4 % 2][i % 4];
                float so_far = starts ? 0.0f : total[i * CONSUMERS];
                *value = merge_value(so_far, before[i % 4 / 2], *value, after[i % 4 / 2]);
                if (tile < w.tile_end)
                    total[i * CONSUMERS] = *value;
            }
            if (tile < w.tile_end)
                continue;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (!real[h])
                    continue;
                int r = w.row_begin + g + 8 * h;
                float inverse = row_inverse(sum[h]);
                bf16 *y = a.y + y_offset(a, D, w.row0, w.kv_head, r) + 2 * t;
#pragma unroll
                for (int i = 0; i < PAIRS; i++) {
                    int pair = warp + WARPS * i;
                    if (D / 16 % WARPS != 0 && pair >= D / 16)
                        break;
#pragma unroll
                    for (int c = 0; c < 2; c++)
                        *reinterpret_cast<uint32_t *>(y + pair * 16 + c * 8) = pack_bf16(
                            __fmul_rn(acc[i][c][2 * h], inverse),
                            __fmul_rn(acc[i][c][2 * h + 1], inverse));
                }
            }
        }
    }
}

/* ---- launch
 * ---------------------------------------------------------------------------------------------- */

template <int D> static size_t shared_bytes(int n_seqs)
{
    return 1024 + plan<D>::ring + ((size_t)n_seqs + 1) * sizeof(int);
}

template <int D>
static void launch_decode(struct backend *be, const struct attention_args *args, int n_rows)
{
    struct attention_args a = *args;
    a.slot_rows = n_rows == a.n_seqs && a.group < Q_ROWS ? a.group : Q_ROWS;
    size_t fit = be->attention->n_floats / slot_floats<D>(a.slot_rows);
    if (fit < (size_t)a.n_slots)
        a.n_slots = (int)fit;
    int64_t row_tiles = (int64_t)n_rows * a.group / Q_ROWS + a.n_seqs;
    int64_t items = row_tiles * a.n_kv_heads * ceil_div(a.max_blocks * BLOCK_TOKENS, ATT_PIECE);
    int64_t fill = (int64_t)be->n_multiprocessors * plan<D>::blocks_per_sm;
    launch(be, "attention, decode", decode_kernel<D>, dim3((unsigned)(items < fill ? items : fill)),
           THREADS, shared_bytes<D>(a.n_seqs), map_cache<D>(be, a.k, a.n_kv_heads),
           map_cache<D>(be, a.v, a.n_kv_heads), a);
}

void attention_decode(struct backend *be, const struct attention_args *a, int head_dim, int n_rows)
{
    switch (head_dim) {
    case 64:
        launch_decode<64>(be, a, n_rows);
        break;
    case 80:
        launch_decode<80>(be, a, n_rows);
        break;
    case 96:
        launch_decode<96>(be, a, n_rows);
        break;
    case 128:
        launch_decode<128>(be, a, n_rows);
        break;
    default:
        launch_decode<256>(be, a, n_rows);
        break;
    }
}

template <int D> static cudaError_t raise_limit(int max_seqs)
{
    return cudaFuncSetAttribute(decode_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)shared_bytes<D>(max_seqs));
}

cudaError_t attention_decode_open(int max_seqs)
{
    cudaError_t rc = raise_limit<64>(max_seqs);
    rc = rc == cudaSuccess ? raise_limit<80>(max_seqs) : rc;
    rc = rc == cudaSuccess ? raise_limit<96>(max_seqs) : rc;
    rc = rc == cudaSuccess ? raise_limit<128>(max_seqs) : rc;
    return rc == cudaSuccess ? raise_limit<256>(max_seqs) : rc;
}
