/* attention_prefill.cu: attention of sequences with many rows in the step (FlashAttention-2).
 *
 * A thread block takes 128 packed query rows of one sequence and KV head, 16 a warp: the warp keeps
 * Q, the piece's acc and the total in registers, and walks the keys tile by tile. K and V come
 * through the block table by cp.async into a ring of 4 stages with one barrier a tile, so that the
 * warps may drift apart by a tile and one's softmax hides behind another's products. Of head_dim
 * 256 a warp can hold half: two warps share 16 rows, each computes S and half of P V, and Q lies
 * in shared memory.
 *
 * Causal load: the thread blocks with the longest walks start first, and those of all KV heads
 * together, so that the queries at work read the same keys from L2. Tiles that no row of a warp
 * sees are skipped (attention.cuh says why that changes no bit).
 *
 * Bound: 2 S^2 H d flop a causal layer on mma.sync, which reaches about 0.6 of the tensor cores'
 * 989 TFLOP/s; with 16 rows a warp each ldmatrix.x4 (4 cycles of shared memory) feeds 2 products,
 * so shared memory allows 470 TFLOP/s. */
#include "kernels/cuda/attention.cuh"

enum { WARPS = 8, THREADS = WARPS * 32 };

template <int D> struct plan {
    static constexpr int halves = D > 128 ? 2 : 1; /* warps that share 16 rows */
    static constexpr int rows = 16 * WARPS / halves;
    static constexpr int dims = D / halves; /* of y, a warp */
    static constexpr int stages = D > 128 ? 2 : 4;
    static constexpr int q_pitch = tile_layout<D>::pitch;
    static constexpr int q_bytes = (halves - 1) * rows * q_pitch;
};

int attention_prefill_rows(int head_dim)
{
    return head_dim > 128 ? plan<256>::rows : plan<128>::rows;
}

template <int D>
__global__ static void __launch_bounds__(THREADS, 1)
    prefill_kernel(const __grid_constant__ struct attention_args a)
{
    using layout = tile_layout<D>;
    using p = plan<D>;
    constexpr int K_STEPS = D / 16, PAIRS = p::dims / 16, GROUPS = ATT_TILE / 16;
    extern __shared__ __align__(128) unsigned char shared[];
    pdl_trigger();
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32, g = lane / 4, t = lane & 3;
    uint32_t ring = shared_address(shared), q_tile = ring + p::stages * layout::stage;
    int *table = reinterpret_cast<int *>(shared + p::stages * layout::stage + p::q_bytes);

    prefix_sums<THREADS>(table, a.n_seqs, [&](int s) {
        int n_packed = (__ldg(a.seq_indptr + s + 1) - __ldg(a.seq_indptr + s)) * a.group;
        return n_packed > a.few ? (n_packed + p::rows - 1) / p::rows : 0;
    });
    int number = table[a.n_seqs] - 1 - (int)blockIdx.y, kv_head = blockIdx.x;
    if (number < 0) {
        pdl_wait();
        return;
    }
    int seq = prefix_find(table, a.n_seqs, number);
    int row0 = __ldg(a.seq_indptr + seq), n_rows = __ldg(a.seq_indptr + seq + 1) - row0;
    int kv_len = __ldg(a.kv_len + seq), pos0 = kv_len - n_rows, last = n_rows * a.group - 1;
    int first_row = (number - table[seq]) * p::rows;
    int pos_first = pos0 + first_row / a.group;
    int pos_last = pos0 + min(first_row + p::rows - 1, last) / a.group;
    int tile_begin = a.window > 0 ? max(pos_first - a.window + 1, 0) / ATT_TILE : 0;
    int tile_end = pos_last / ATT_TILE + 1;

    /* The warp's rows; a lane has g and g + 8. Rows past the end repeat the last, unstored. */
    int row_begin = first_row + warp % (WARPS / p::halves) * 16;
    int half = warp / (WARPS / p::halves);
    auto row_of = [&](int h) { return min(row_begin + g + 8 * h, last); };
    int pos_min = pos0 + min(row_begin, last) / a.group;
    int pos_max = pos0 + min(row_begin + 15, last) / a.group;
    int reach = attention_reach(a.window);
    bool idle = row_begin > last;

    const int32_t *blocks = a.block_table + (int64_t)seq * a.max_blocks;
    int block[ATT_BLOCKS_PER_TILE], ahead = tile_begin;
    tile_blocks(block, blocks, ahead, kv_len);
    auto copy_next = [&](int stage) {
        if (ahead < tile_end) {
            tile_copy<D, THREADS>(ring + stage * layout::stage, a, block, kv_head, ahead, kv_len);
            ahead++;
            if (ahead < tile_end)
                tile_blocks(block, blocks, ahead, kv_len);
        }
        copy_commit();
    };
    pdl_wait();
    for (int i = 0; i < p::stages - 1; i++)
        copy_next(i);

    uint32_t q[p::halves > 1 ? 1 : K_STEPS][4];
    if constexpr (p::halves > 1) {
        for (int i = threadIdx.x; i < p::rows * layout::chunks; i += THREADS) {
            int r = i / layout::chunks, chunk = i % layout::chunks;
            *reinterpret_cast<uint4 *>(shared + p::stages * layout::stage + r * p::q_pitch +
                                       chunk * 16) =
                *reinterpret_cast<const uint4 *>(
                    a.qkv + q_offset(a, D, row0, kv_head, min(first_row + r, last)) + chunk * 8);
        } /* the first tile's barrier is before its first use */
        q_tile += (row_begin - first_row + (lane & 15)) * p::q_pitch + (lane >> 4) * 16;
    } else {
        const bf16 *q0 = a.qkv + q_offset(a, D, row0, kv_head, row_of(0)) + 2 * t;
        const bf16 *q1 = a.qkv + q_offset(a, D, row0, kv_head, row_of(1)) + 2 * t;
#pragma unroll
        for (int k = 0; k < K_STEPS; k++) {
            q[k][0] = *reinterpret_cast<const uint32_t *>(q0 + k * 16);
            q[k][1] = *reinterpret_cast<const uint32_t *>(q1 + k * 16);
            q[k][2] = *reinterpret_cast<const uint32_t *>(q0 + k * 16 + 8);
            q[k][3] = *reinterpret_cast<const uint32_t *>(q1 + k * 16 + 8);
        }
    }

    float m[2] = {-INFINITY, -INFINITY}, l[2] = {}, acc[PAIRS * 2][4] = {};
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {}, total[PAIRS * 2][4] = {};
    uint32_t at_k = lane_offset_k<D>(lane);
    uint32_t at_v = layout::bytes + half * p::dims * 2 + lane_offset_v<D>(lane);
    int stage = 0;
    for (int tile = tile_begin; tile < tile_end; tile++) {
        copy_wait<p::stages - 2>();
        __syncthreads(); /* this tile is there; the last one is done with */
        copy_next(stage == 0 ? p::stages - 1 : stage - 1);
        uint32_t base_k = ring + stage * layout::stage + at_k;
        uint32_t base_v = ring + stage * layout::stage + at_v;
        stage = stage + 1 == p::stages ? 0 : stage + 1;

        int key0 = tile * ATT_TILE;
        if (!idle && key0 <= pos_max && pos_min - (key0 + ATT_TILE - 1) < reach) {
            float s[GROUPS * 2][4] = {};
#pragma unroll
            for (int k = 0; k < K_STEPS; k++) {
                uint32_t from_shared[4];
                if constexpr (p::halves > 1)
                    load_matrices(from_shared, q_tile + k * 32);
                const uint32_t *qk = p::halves > 1 ? from_shared : q[p::halves > 1 ? 0 : k];
#pragma unroll
                for (int j = 0; j < GROUPS; j++) {
                    uint32_t b[4];
                    load_matrices(b, base_k + j * 16 * layout::pitch + k * 32);
                    mma(s[2 * j], qk, b[0], b[1]);
                    mma(s[2 * j + 1], qk, b[2], b[3]);
                }
            }
            if (a.cap > 0) {
#pragma unroll
                for (int n = 0; n < GROUPS * 2; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        s[n][i] = soft_cap(s[n][i], a.cap, a.cap_in);
                }
            }
            if (key0 + ATT_TILE - 1 > pos_min || pos_max - key0 >= reach) {
                int pos[2] = {pos0 + row_of(0) / a.group, pos0 + row_of(1) / a.group};
#pragma unroll
                for (int n = 0; n < GROUPS * 2; n++) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        int key = key0 + n * 8 + 2 * t + (i & 1);
                        if (key > pos[i / 2] || pos[i / 2] - key >= reach)
                            s[n][i] = -INFINITY;
                    }
                }
            }
            float alpha[2];
            bool rescale = false;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float best = fmaxf(s[0][2 * h], s[0][2 * h + 1]);
#pragma unroll
                for (int n = 1; n < GROUPS * 2; n++)
                    best = fmaxf(best, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
                bool fresh = m[h] == -INFINITY; /* acc is 0 then */
                float base = tile_maximum(&m[h], &alpha[h], quad_max(best), a.to_log2);
                rescale |= !fresh && alpha[h] != 1.0f;
                float part[GROUPS];
#pragma unroll
                for (int j = 0; j < GROUPS; j++) {
                    float *x = &s[2 * j][2 * h], *y = &s[2 * j + 1][2 * h];
                    x[0] = tile_p(x[0], a.to_log2, base);
                    x[1] = tile_p(x[1], a.to_log2, base);
                    y[0] = tile_p(y[0], a.to_log2, base);
                    y[1] = tile_p(y[1], a.to_log2, base);
                    part[j] = sum_of_4(x[0], x[1], y[0], y[1]);
                }
                l[h] = tile_sum(l[h], alpha[h], part[0], part[1], part[2], part[3]);
            }
            if (__any_sync(0xffffffffu, rescale)) { /* x * 1 is x: skipping changes no bit */
#pragma unroll
                for (int n = 0; n < PAIRS * 2; n++) {
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        acc[n][c] = __fmul_rn(acc[n][c], alpha[c / 2]);
                }
            }
#pragma unroll
            for (int j = 0; j < GROUPS; j++) {
                uint32_t fragment[4] = {pack_bf16(s[2 * j][0], s[2 * j][1]),
                                        pack_bf16(s[2 * j][2], s[2 * j][3]),
                                        pack_bf16(s[2 * j + 1][0], s[2 * j + 1][1]),
                                        pack_bf16(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
                for (int i = 0; i < PAIRS; i++) {
                    uint32_t b[4];
                    load_matrices_transposed(b, base_v + j * 16 * layout::pitch + i * 32);
                    mma(acc[2 * i], fragment, b[0], b[1]);
                    mma(acc[2 * i + 1], fragment, b[2], b[3]);
                }
            }
        }

        if (tile + 1 != tile_end && (tile + 1) % ATT_TILES_PER_PIECE != 0)
            continue;
        float before[2], after[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            merge_weights(&top[h], &sum[h], &before[h], &after[h], m[h], quad_sum(l[h]));
            m[h] = -INFINITY;
            l[h] = 0;
        }
#pragma unroll
        for (int n = 0; n < PAIRS * 2; n++) {
#pragma unroll
            for (int c = 0; c < 4; c++) {
                total[n][c] = merge_value(total[n][c], before[c / 2], acc[n][c], after[c / 2]);
                acc[n][c] = 0;
            }
        }
    }

#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (row_begin + g + 8 * h > last)
            continue;
        float inverse = row_inverse(sum[h]);
        bf16 *y = a.y + y_offset(a, D, row0, kv_head, row_of(h)) + half * p::dims + 2 * t;
#pragma unroll
        for (int n = 0; n < PAIRS * 2; n++)
            *reinterpret_cast<uint32_t *>(y + n * 8) = pack_bf16(
                __fmul_rn(total[n][2 * h], inverse), __fmul_rn(total[n][2 * h + 1], inverse));
    }
}

/* ---- launch
 * ---------------------------------------------------------------------------------------------- */

template <int D> static size_t shared_bytes(int n_seqs)
{
    return (size_t)plan<D>::stages * tile_layout<D>::stage + plan<D>::q_bytes +
           ((size_t)n_seqs + 1) * sizeof(int);
}

template <int D>
static void launch_prefill(struct backend *be, const struct attention_args *a, int n_tiles)
{
    launch(be, "attention, prefill", prefill_kernel<D>,
           dim3((unsigned)a->n_kv_heads, (unsigned)n_tiles), THREADS, shared_bytes<D>(a->n_seqs),
           *a);
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
    return kernel_shared_limit(prefill_kernel<D>, shared_bytes<D>(max_seqs));
}

cudaError_t attention_prefill_open(int max_seqs)
{
    cudaError_t rc = raise_limit<64>(max_seqs);
    rc = rc == cudaSuccess ? raise_limit<80>(max_seqs) : rc;
    rc = rc == cudaSuccess ? raise_limit<96>(max_seqs) : rc;
    rc = rc == cudaSuccess ? raise_limit<128>(max_seqs) : rc;
    return rc == cudaSuccess ? raise_limit<256>(max_seqs) : rc;
}
