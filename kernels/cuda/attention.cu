/* attention.cu: rope, the paged KV cache, and attention over it.
 *
 * Attention. One thread block a (row, KV head), four warps. Keys are cut into pieces of 32 at fixed
 * absolute positions; warp w takes pieces w, w + 4, ... in order. In a piece each lane owns one
 * key: it reads that key's K row in 16-byte steps and dots it with the group's query heads (GQA: K
 * is read once for all of them); the warp then takes the maximum and the exponentials, and sums p V
 * with the lanes along head_dim. Online softmax a warp (FlashAttention, arXiv:2205.14135); the four
 * partial results are merged in warp order. The order depends on the row's own position alone, so
 * the bits do too: prefill, decode, any chunking and any batch agree.
 *
 * Two numbers (decode, batch 32, context 4,096, 8 KV heads, head_dim 128): 537 MB of K and V a
 * layer. */
#include "kernels/cuda/cuda.cuh"

enum { WARPS = 4, PIECE = 32, GROUP_MAX = 8, HEAD_DIM_MAX = 256 };

struct kv_view {
    void *k, *v;
    int dtype;
};

static struct kv_view view_of(const struct kv_layer *kv)
{
    return {dev<void>(kv->k), dev<void>(kv->v), kv->dtype};
}

/* ---- rope and cache write
 * ------------------------------------------------------------------------- */

/* One warp a (row, head) of q, k and v. */
__global__ static void rope_kernel(bf16 *qkv, struct kv_view kv, const int32_t *position,
                                   const int32_t *slot, int n_rows, int n_heads, int n_kv_heads,
                                   int head_dim, const float *cos_sin, int rotary_dim,
                                   const float *q_norm, const float *k_norm, float eps)
{
    int heads = n_heads + 2 * n_kv_heads;
    int unit = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
    if (unit >= n_rows * heads)
        return;
    int row = unit / heads, head = unit % heads;
    bf16 *x = qkv + (int64_t)unit * head_dim;
    bool is_q = head < n_heads, is_v = head >= n_heads + n_kv_heads;
    float value[HEAD_DIM_MAX / 32];
    float squares = 0;
#pragma unroll
    for (int i = 0; i < HEAD_DIM_MAX / 32; i++) {
        int d = lane + 32 * i;
        value[i] = d < head_dim ? __bfloat162float(x[d]) : 0.0f;
        squares += value[i] * value[i];
    }
    const float *norm = is_v ? nullptr : is_q ? q_norm : k_norm;
    if (norm != nullptr) {
        float scale = rsqrtf(warp_sum(squares) / (float)head_dim + eps);
#pragma unroll
        for (int i = 0; i < HEAD_DIM_MAX / 32; i++) {
            int d = lane + 32 * i;
            if (d < head_dim)
                value[i] = value[i] * scale * norm[d];
        }
    }
    __shared__ float exchange[8][HEAD_DIM_MAX];
    float *mine = exchange[threadIdx.x / 32];
#pragma unroll
    for (int i = 0; i < HEAD_DIM_MAX / 32; i++) {
        if (lane + 32 * i < head_dim)
            mine[lane + 32 * i] = value[i];
    }
    __syncwarp();
    int half = rotary_dim / 2;
    const float *cs = cos_sin == nullptr ? nullptr : cos_sin + (int64_t)position[row] * rotary_dim;
    int64_t cache = ((int64_t)slot[row] * n_kv_heads +
                     (is_v ? head - n_heads - n_kv_heads : head - n_heads)) *
                    head_dim;
#pragma unroll
    for (int i = 0; i < HEAD_DIM_MAX / 32; i++) {
        int d = lane + 32 * i;
        if (d >= head_dim)
            break;
        float v = value[i];
        if (!is_v && cs != nullptr && d < rotary_dim) {
            int j = d < half ? d : d - half;
            float c = cs[j], s = cs[half + j];
            v = d < half ? v * c - mine[d + half] * s : v * c + mine[d - half] * s;
        }
        if (is_q || norm != nullptr || cs != nullptr)
            x[d] = __float2bfloat16_rn(v);
        if (!is_q)
            store_from_float(is_v ? kv.v : kv.k, cache + d, kv.dtype, v);
    }
}

void cuda_rope_kv_write(struct backend *be, struct devptr qkv, const struct kv_layer *kv,
                        const struct batch *batch, const struct attention_shape *shape,
                        const struct rope_shape *rope)
{
    if (batch->n_rows == 0)
        return;
    BUG_IF(shape->head_dim > HEAD_DIM_MAX);
    int units = batch->n_rows * (shape->n_heads + 2 * shape->n_kv_heads);
    rope_kernel<<<ceil_div(units, 8), 256, 0, be->stream>>>(
        dev<bf16>(qkv), view_of(kv), dev<int32_t>(batch->d_position), dev<int32_t>(batch->d_slot),
        batch->n_rows, shape->n_heads, shape->n_kv_heads, shape->head_dim,
        rope ? dev<float>(rope->cos_sin) : nullptr, rope ? rope->rotary_dim : 0,
        rope ? dev<float>(rope->q_norm) : nullptr, rope ? dev<float>(rope->k_norm) : nullptr,
        rope ? rope->norm_eps : 0.0f);
    CUDA_LAUNCHED(be, "rope_kv_write");
}

/* ---- attention
 * ------------------------------------------------------------------------------------ */

/* Dot of the lane's key with one query head; q is f32 in shared memory. */
__device__ static float dot_key(const void *k, int64_t at, int dtype, const float *q, int head_dim)
{
    float sum = 0;
    if (dtype == DTYPE_BF16 && head_dim % 8 == 0) {
        const uint4 *p = reinterpret_cast<const uint4 *>(static_cast<const bf16 *>(k) + at);
        for (int d = 0; d < head_dim; d += 8) {
            uint4 raw = p[d / 8];
            const uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sum = fmaf(__uint_as_float(word[i] << 16), q[d + 2 * i], sum);
                sum = fmaf(__uint_as_float(word[i] & 0xffff0000u), q[d + 2 * i + 1], sum);
            }
        }
        return sum;
    }
    for (int d = 0; d < head_dim; d++)
        sum = fmaf(load_as_float(k, at + d, dtype), q[d], sum);
    return sum;
}

template <int DIMS> /* ceil(head_dim / 32): output elements a lane */
__global__ static void __launch_bounds__(WARPS * 32)
    attention_kernel(bf16 *y, const bf16 *qkv, struct kv_view kv, const int32_t *position,
                     const int32_t *row_seq, const int32_t *block_table, int max_blocks,
                     struct attention_shape shape)
{
    int row = blockIdx.x, kv_head = blockIdx.y;
    int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    int group = shape.n_heads / shape.n_kv_heads, head_dim = shape.head_dim;
    int pos = position[row];
    int first = shape.window > 0 && pos - shape.window + 1 > 0 ? pos - shape.window + 1 : 0;
    const int32_t *blocks = block_table + (int64_t)row_seq[row] * max_blocks;
    int64_t width = (int64_t)(shape.n_heads + 2 * shape.n_kv_heads) * head_dim;

    extern __shared__ float shared[];
    float *q = shared;                            /* [group, head_dim] */
    float *out = q + group * head_dim;            /* [WARPS, group, head_dim] */
    float *best = out + WARPS * group * head_dim; /* [WARPS, group] */
    float *total = best + WARPS * group;          /* [WARPS, group] */
    for (int i = threadIdx.x; i < group * head_dim; i += blockDim.x)
        q[i] = __bfloat162float(qkv[row * width + (int64_t)kv_head * group * head_dim + i]);
    __syncthreads();

    for (int h0 = 0; h0 < group; h0 += GROUP_MAX) {
        int n_heads = group - h0 < GROUP_MAX ? group - h0 : GROUP_MAX;
        float acc[GROUP_MAX][DIMS] = {}, m[GROUP_MAX], l[GROUP_MAX];
#pragma unroll
        for (int h = 0; h < GROUP_MAX; h++) {
            m[h] = -INFINITY;
            l[h] = 0;
        }
        for (int piece = warp; piece * PIECE <= pos; piece += WARPS) {
            if (piece * PIECE + PIECE <= first)
                continue;
            int key = piece * PIECE + lane;
            bool live = key <= pos && key >= first;
            int64_t token =
                live ? (int64_t)blocks[key / BLOCK_TOKENS] * BLOCK_TOKENS + key % BLOCK_TOKENS : 0;
            int64_t at = (token * shape.n_kv_heads + kv_head) * head_dim;
#pragma unroll
            for (int h = 0; h < GROUP_MAX; h++) {
                if (h >= n_heads)
                    break;
                float s = -INFINITY;
                if (live) {
                    s = dot_key(kv.k, at, kv.dtype, q + (h0 + h) * head_dim, head_dim) *
                        shape.scale;
                    if (shape.softcap > 0)
                        s = shape.softcap * tanhf(s / shape.softcap);
                }
                float m_new = fmaxf(m[h], warp_max(s)); /* some key of the piece is live */
                float p = live ? __expf(s - m_new) : 0.0f;
                float keep = __expf(m[h] - m_new);
                l[h] = l[h] * keep + warp_sum(p);
                m[h] = m_new;
#pragma unroll
                for (int i = 0; i < DIMS; i++)
                    acc[h][i] *= keep;
                /* p of this head for the V pass below: one register a head is enough, since the
                 * lanes exchange it by shuffles. */
                for (int j = 0; j < PIECE; j++) {
                    float pj = __shfl_sync(0xffffffffu, p, j);
                    int64_t vj = __shfl_sync(0xffffffffu, at, j);
                    if (pj == 0.0f)
                        continue; /* the whole warp agrees */
#pragma unroll
                    for (int i = 0; i < DIMS; i++) {
                        int d = lane + 32 * i;
                        if (d < head_dim)
                            acc[h][i] = fmaf(pj, load_as_float(kv.v, vj + d, kv.dtype), acc[h][i]);
                    }
                }
            }
        }
#pragma unroll
        for (int h = 0; h < GROUP_MAX; h++) {
            if (h >= n_heads)
                break;
            if (lane == 0) {
                best[warp * group + h0 + h] = m[h];
                total[warp * group + h0 + h] = l[h];
            }
#pragma unroll
            for (int i = 0; i < DIMS; i++) {
                int d = lane + 32 * i;
                if (d < head_dim)
                    out[(warp * group + h0 + h) * head_dim + d] = acc[h][i];
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < group * head_dim; i += blockDim.x) {
        int h = i / head_dim;
        float top = best[h];
        for (int w = 1; w < WARPS; w++)
            top = fmaxf(top, best[w * group + h]);
        float sum = 0, denominator = 0;
        for (int w = 0; w < WARPS; w++) {
            float b = best[w * group + h];
            float scale = b == -INFINITY ? 0.0f : __expf(b - top);
            sum += out[w * group * head_dim + i] * scale;
            denominator += total[w * group + h] * scale;
        }
        y[((int64_t)row * shape.n_heads + (int64_t)kv_head * group) * head_dim + i] =
            __float2bfloat16_rn(sum / denominator);
    }
}

template <int DIMS>
static void launch_attention(struct backend *be, struct devptr y, struct devptr qkv,
                             const struct kv_layer *kv, const struct batch *batch,
                             const struct attention_shape *shape)
{
    int group = shape->n_heads / shape->n_kv_heads;
    size_t bytes = sizeof(float) *
                   ((size_t)group * shape->head_dim * (1 + WARPS) + 2 * WARPS * group);
    if (bytes > 48 * 1024)
        CUDA_NOTE(be,
                  cudaFuncSetAttribute(attention_kernel<DIMS>,
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    attention_kernel<DIMS>
        <<<dim3(batch->n_rows, shape->n_kv_heads), WARPS * 32, bytes, be->stream>>>(
            dev<bf16>(y), dev<bf16>(qkv), view_of(kv), dev<int32_t>(batch->d_position),
            dev<int32_t>(batch->d_row_seq), dev<int32_t>(batch->d_block_table), batch->max_blocks,
            *shape);
    CUDA_LAUNCHED(be, "attention");
}

void cuda_attention(struct backend *be, struct devptr y, struct devptr qkv,
                    const struct kv_layer *kv, const struct batch *batch,
                    const struct attention_shape *shape)
{
    if (batch->n_rows == 0)
        return;
    int dims = ceil_div(shape->head_dim, 32);
    BUG_IF(dims > 8);
    switch (dims) {
    case 1:
        launch_attention<1>(be, y, qkv, kv, batch, shape);
        break;
    case 2:
        launch_attention<2>(be, y, qkv, kv, batch, shape);
        break;
    case 3:
        launch_attention<3>(be, y, qkv, kv, batch, shape);
        break;
    case 4:
        launch_attention<4>(be, y, qkv, kv, batch, shape);
        break;
    default:
        launch_attention<8>(be, y, qkv, kv, batch, shape);
        break;
    }
}

void cuda_kv_copy_blocks(struct backend *be, const struct kv_layer *kv,
                         const struct attention_shape *shape, const int32_t *src,
                         const int32_t *dst, int n)
{
    size_t bytes = (size_t)BLOCK_TOKENS * shape->n_kv_heads * shape->head_dim *
                   dtype_bytes(kv->dtype);
    for (int i = 0; i < n; i++) {
        struct devptr const sides[2] = {kv->k, kv->v};
        for (int s = 0; s < 2; s++)
            CUDA_NOTE(be, cudaMemcpyAsync(dev<char>(sides[s]) + (size_t)dst[i] * bytes,
                                          dev<char>(sides[s]) + (size_t)src[i] * bytes, bytes,
                                          cudaMemcpyDeviceToDevice, be->stream));
    }
}
