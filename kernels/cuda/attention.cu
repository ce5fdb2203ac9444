/* attention.cu: rope, the paged KV cache, and the choice of an attention kernel.
 *
 * rope_kv_write is one kernel: a lane holds two 16-byte chunks of a head that rotate into each
 * other, so that nothing is exchanged but the norm's sum of squares. What it reads of tables and
 * norms it reads before the kernel ahead of it has finished.
 *
 * attention. A bf16 cache and a head_dim of 64, 80, 96, 128 or 256 go to the tensor cores:
 * attention.cuh has the argument why decode and prefill give the same bits. When every sequence has
 * one row all are decode's, and nothing is read of the batch's host arrays, so that a recording
 * serves every length. Otherwise, also while recording, seq_indptr (host) says which sequences have
 * few rows in the step, decode's, and which many, prefill's; a mixed batch launches both and each
 * passes over the other's sequences. A recording of such a batch is good for the same row counts.
 * Everything else (f16 and f32 caches, odd head_dims) takes the plain kernel of this file, which is
 * right and slow. */
#include "kernels/cuda/attention.cuh"

enum {
    HEAD_DIM_MAX = 256,
    DECODE_PACKED_MAX = 64, /* query rows; above, prefill */
    SLOTS_MAX = 65536,
    /* 64 MiB: 31,000 pieces of a group of 4 heads of 128; beyond, decode merges in registers. */
    PARTIAL_FLOATS = 16 << 20,
};

/* ---- rope and cache write
 * ------------------------------------------------------------------------------------ */

struct rope_args {
    bf16 *qkv;   /* [n_rows, n_heads + 2 n_kv_heads, head_dim] */
    void *k, *v; /* [n_slots, n_kv_heads, head_dim] */
    const int32_t *position, *slot;
    const float *cos_sin; /* [max_context, rotary_dim], or null: no rotation */
    const float *q_norm, *k_norm;
    float eps;
    int n_rows, n_heads, n_kv_heads, head_dim, rotary_dim, kv_dtype;
};

__device__ static inline void unpack_8(float x[8], uint4 raw)
{
    const uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[2 * i] = __uint_as_float(word[i] << 16);
        x[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    }
}

__device__ static inline uint4 pack_8(const float x[8])
{
    return {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]),
            pack_bf16(x[6], x[7])};
}

__device__ static inline void load_8(float x[8], const float *p)
{
    float4 a = __ldg(reinterpret_cast<const float4 *>(p));
    float4 b = __ldg(reinterpret_cast<const float4 *>(p) + 1);
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w;
    x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

/* head_dim and rotary_dim are multiples of 16, the cache is bf16. A head has head_dim / 16 lanes
 * out of `lanes`, the next power of two. Lane j < rotary_dim / 16 has the chunks j and j +
 * rotary_dim / 16, which rotate; the lanes after have the rest, two neighbours each. */
__global__ static void __launch_bounds__(128)
    rope_kernel(const __grid_constant__ struct rope_args a, int lanes)
{
    pdl_trigger();
    int thread = blockIdx.x * 128 + threadIdx.x;
    int unit = thread / lanes, j = thread % lanes, heads = a.n_heads + 2 * a.n_kv_heads;
    int row = unit / heads, head = unit - row * heads, pairs = a.rotary_dim / 16;
    bool is_q = head < a.n_heads, is_v = head >= a.n_heads + a.n_kv_heads;
    const float *norm = is_v ? nullptr : is_q ? a.q_norm : a.k_norm;
    bool rotates = !is_v && a.cos_sin != nullptr, changes = norm != nullptr || rotates;
    bool active = row < a.n_rows && j < a.head_dim / 16 && (changes || !is_q);
    int c0 = j < pairs ? j : 2 * pairs + 2 * (j - pairs), c1 = j < pairs ? j + pairs : c0 + 1;
    rotates = rotates && j < pairs;

    float cosine[8], sine[8], weight[2][8];
    int64_t slot = 0;
    if (active && rotates) {
        const float *cs = a.cos_sin + (int64_t)a.position[row] * a.rotary_dim + j * 8;
        load_8(cosine, cs);
        load_8(sine, cs + a.rotary_dim / 2);
    }
    if (active && norm != nullptr) {
        load_8(weight[0], norm + c0 * 8);
        load_8(weight[1], norm + c1 * 8);
    }
    if (active && !is_q)
        slot = a.slot[row];
    pdl_wait();

    bf16 *x = a.qkv + (int64_t)unit * a.head_dim;
    float v[2][8] = {};
    if (active) {
        unpack_8(v[0], *reinterpret_cast<const uint4 *>(x + c0 * 8));
        unpack_8(v[1], *reinterpret_cast<const uint4 *>(x + c1 * 8));
    }
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
        squares += v[0][i] * v[0][i] + v[1][i] * v[1][i];
    for (int o = lanes / 2; o > 0; o >>= 1)
        squares += __shfl_xor_sync(0xffffffffu, squares, o);
    if (!active)
        return;
    if (norm != nullptr) {
        float scale = rsqrtf(squares / (float)a.head_dim + a.eps);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[0][i] = v[0][i] * scale * weight[0][i];
            v[1][i] = v[1][i] * scale * weight[1][i];
        }
    }
    if (rotates) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            float x0 = v[0][i], x1 = v[1][i];
            v[0][i] = x0 * cosine[i] - x1 * sine[i];
            v[1][i] = x1 * cosine[i] + x0 * sine[i];
        }
    }
    uint4 out0 = pack_8(v[0]), out1 = pack_8(v[1]);
    if (changes) {
        *reinterpret_cast<uint4 *>(x + c0 * 8) = out0;
        *reinterpret_cast<uint4 *>(x + c1 * 8) = out1;
    }
    if (!is_q) {
        int kv_head = head - a.n_heads - (is_v ? a.n_kv_heads : 0);
        bf16 *cache = static_cast<bf16 *>(is_v ? a.v : a.k) +
                      (slot * a.n_kv_heads + kv_head) * a.head_dim;
        *reinterpret_cast<uint4 *>(cache + c0 * 8) = out0;
        *reinterpret_cast<uint4 *>(cache + c1 * 8) = out1;
    }
}

/* Any head_dim, rotary_dim and cache: a warp a head, lanes along head_dim. */
__global__ static void __launch_bounds__(128)
    rope_plain_kernel(const __grid_constant__ struct rope_args a)
{
    pdl_trigger();
    pdl_wait();
    __shared__ float exchange[4][HEAD_DIM_MAX];
    int heads = a.n_heads + 2 * a.n_kv_heads, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    int unit = blockIdx.x * 4 + warp, row = unit / heads, head = unit % heads;
    if (row >= a.n_rows)
        return;
    bf16 *x = a.qkv + (int64_t)unit * a.head_dim;
    bool is_q = head < a.n_heads, is_v = head >= a.n_heads + a.n_kv_heads;
    const float *norm = is_v ? nullptr : is_q ? a.q_norm : a.k_norm;
    float *value = exchange[warp], squares = 0, scale = 1;
    for (int d = lane; d < a.head_dim; d += 32)
        squares += __bfloat162float(x[d]) * __bfloat162float(x[d]);
    if (norm != nullptr)
        scale = rsqrtf(warp_sum(squares) / (float)a.head_dim + a.eps);
    for (int d = lane; d < a.head_dim; d += 32)
        value[d] = __bfloat162float(x[d]) * (norm == nullptr ? 1.0f : scale * norm[d]);
    __syncwarp();
    int half = a.rotary_dim / 2, kv_head = head - a.n_heads - (is_v ? a.n_kv_heads : 0);
    bool rotates = !is_v && a.cos_sin != nullptr;
    const float *cs = rotates ? a.cos_sin + (int64_t)a.position[row] * a.rotary_dim : nullptr;
    int64_t cache = ((int64_t)a.slot[row] * a.n_kv_heads + kv_head) * a.head_dim;
    for (int d = lane; d < a.head_dim; d += 32) {
        float v = value[d];
        if (rotates && d < half)
            v = v * cs[d] - value[d + half] * cs[half + d];
        else if (rotates && d < a.rotary_dim)
            v = v * cs[d - half] + value[d - half] * cs[d];
        if (rotates || norm != nullptr)
            x[d] = __float2bfloat16_rn(v);
        if (!is_q)
            store_from_float(is_v ? a.v : a.k, cache + d, a.kv_dtype, v);
    }
}

void cuda_rope_kv_write(struct backend *be, struct devptr qkv, const struct kv_layer *kv,
                        const struct batch *batch, const struct attention_shape *shape,
                        const struct rope_shape *rope)
{
    if (batch->n_rows == 0)
        return;
    struct rope_args a = {.qkv = dev<bf16>(qkv),
                          .k = dev<void>(kv->k),
                          .v = dev<void>(kv->v),
                          .position = dev<int32_t>(batch->d_position),
                          .slot = dev<int32_t>(batch->d_slot),
                          .cos_sin = rope ? dev<float>(rope->cos_sin) : nullptr,
                          .q_norm = rope ? dev<float>(rope->q_norm) : nullptr,
                          .k_norm = rope ? dev<float>(rope->k_norm) : nullptr,
                          .eps = rope ? rope->norm_eps : 0.0f,
                          .n_rows = batch->n_rows,
                          .n_heads = shape->n_heads,
                          .n_kv_heads = shape->n_kv_heads,
                          .head_dim = shape->head_dim,
                          .rotary_dim = rope ? rope->rotary_dim : 0,
                          .kv_dtype = kv->dtype};
    BUG_IF(a.head_dim > HEAD_DIM_MAX || a.rotary_dim > a.head_dim || a.rotary_dim % 2 != 0);
    int units = a.n_rows * (a.n_heads + 2 * a.n_kv_heads);
    if (a.kv_dtype != DTYPE_BF16 || a.head_dim % 16 != 0 || a.rotary_dim % 16 != 0) {
        launch(be, "rope_kv_write", rope_plain_kernel, dim3((unsigned)ceil_div(units, 4)), 128, 0,
               a);
        return;
    }
    int lanes = 1;
    while (lanes < a.head_dim / 16)
        lanes *= 2;
    launch(be, "rope_kv_write", rope_kernel, dim3((unsigned)ceil_div(units, 128 / lanes)), 128, 0,
           a, lanes);
}

/* ---- open and close
 * ------------------------------------------------------------------------------------------ */

int cuda_attention_open(struct backend *be, struct err *err)
{
    const struct backend_options *o = &be->options;
    struct attention_scratch *s = new attention_scratch();
    be->attention = s;
    s->n_slots = SLOTS_MAX;
    s->n_floats = PARTIAL_FLOATS;
    cudaError_t rc = cudaMalloc(&s->partial, s->n_floats * sizeof(float));
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->arrived, (SLOTS_MAX + 1) * sizeof(unsigned));
    if (rc != cudaSuccess)
        return err_set(err, ERR_NO_MEMORY, "cuda: attention scratch of %zu floats: %s", s->n_floats,
                       cudaGetErrorString(rc));
    rc = fill_async(be, s->arrived, 0, (SLOTS_MAX + 1) * sizeof(unsigned));
    if (rc == cudaSuccess)
        rc = attention_decode_open(o->max_seqs);
    if (rc == cudaSuccess)
        rc = attention_prefill_open(o->max_seqs);
    if (rc != cudaSuccess)
        return err_set(err, ERR_UNSUPPORTED, "cuda: attention for %d sequences: %s", o->max_seqs,
                       cudaGetErrorString(rc));
    return 0;
}

void cuda_attention_close(struct backend *be)
{
    struct attention_scratch *s = be->attention;
    if (s == nullptr)
        return;
    cudaFree(s->partial);
    cudaFree(s->arrived);
    delete s;
    be->attention = nullptr;
}

/* ---- attention
 * -----------------------------------------------------------------------------------------------
 */

struct plain_args {
    bf16 *y;
    const bf16 *qkv;
    const void *k, *v;
    const int32_t *position, *row_seq, *block_table;
    int max_blocks, kv_dtype;
    struct attention_shape shape;
};

/* Any head_dim and cache. One thread block a (row, query head), four warps. Keys are cut into
 * pieces of 32 at fixed absolute positions; warp w takes pieces w, w + 4, ... in order: a lane a
 * key for q . k, then the lanes along head_dim for p V. The four results are merged in warp
 * order. */
__global__ static void __launch_bounds__(128)
    plain_kernel(const __grid_constant__ struct plain_args a)
{
    enum { WARPS = 4, DIMS = HEAD_DIM_MAX / 32 };
    pdl_trigger();
    pdl_wait();
    __shared__ float q[HEAD_DIM_MAX], out[WARPS][HEAD_DIM_MAX], best[WARPS], total[WARPS];
    int row = blockIdx.x, head = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    int n_kv_heads = a.shape.n_kv_heads, head_dim = a.shape.head_dim, window = a.shape.window;
    int kv_head = head / (a.shape.n_heads / n_kv_heads), pos = a.position[row];
    int first = window > 0 && pos - window + 1 > 0 ? pos - window + 1 : 0;
    const int32_t *blocks = a.block_table + (int64_t)a.row_seq[row] * a.max_blocks;
    const bf16 *q_row = a.qkv +
                        ((int64_t)row * (a.shape.n_heads + 2 * n_kv_heads) + head) * head_dim;
    for (int d = threadIdx.x; d < head_dim; d += 128)
        q[d] = __bfloat162float(q_row[d]);
    __syncthreads();

    float acc[DIMS] = {}, m = -INFINITY, l = 0;
    for (int begin = first / 32 * 32 + 32 * ((warp + WARPS - first / 32 % WARPS) % WARPS);
         begin <= pos; begin += 32 * WARPS) {
        int key = begin + lane;
        bool live = key <= pos && key >= first;
        int64_t token =
            live ? (int64_t)blocks[key / BLOCK_TOKENS] * BLOCK_TOKENS + key % BLOCK_TOKENS : 0;
        int64_t at = (token * n_kv_heads + kv_head) * head_dim;
        float s = -INFINITY;
        if (live) {
            s = 0;
            for (int d = 0; d < head_dim; d++)
                s = fmaf(load_as_float(a.k, at + d, a.kv_dtype), q[d], s);
            s *= a.shape.scale;
            if (a.shape.softcap > 0)
                s = a.shape.softcap * tanhf(s / a.shape.softcap);
        }
        float m_new = fmaxf(m, warp_max(s)); /* some key of the piece is live */
        float p = live ? __expf(s - m_new) : 0.0f, keep = __expf(m - m_new);
        l = l * keep + warp_sum(p);
        m = m_new;
#pragma unroll
        for (int i = 0; i < DIMS; i++)
            acc[i] *= keep;
        for (int j = 0; j < 32; j++) {
            float pj = __shfl_sync(0xffffffffu, p, j);
            int64_t vj = __shfl_sync(0xffffffffu, at, j);
            if (pj == 0.0f)
                continue; /* the whole warp agrees */
#pragma unroll
            for (int i = 0; i < DIMS; i++) {
                int d = lane + 32 * i;
                if (d < head_dim)
                    acc[i] = fmaf(pj, load_as_float(a.v, vj + d, a.kv_dtype), acc[i]);
            }
        }
    }
    if (lane == 0) {
        best[warp] = m;
        total[warp] = l;
    }
#pragma unroll
    for (int i = 0; i < DIMS; i++)
        out[warp][lane + 32 * i] = acc[i];
    __syncthreads();
    float top = fmaxf(fmaxf(best[0], best[1]), fmaxf(best[2], best[3]));
    for (int d = threadIdx.x; d < head_dim; d += 128) {
        float sum = 0, denominator = 0;
        for (int w = 0; w < WARPS; w++) {
            float scale = best[w] == -INFINITY ? 0.0f : __expf(best[w] - top);
            sum += out[w][d] * scale;
            denominator += total[w] * scale;
        }
        a.y[((int64_t)row * a.shape.n_heads + head) * head_dim + d] = __float2bfloat16_rn(
            sum / denominator);
    }
}

static void attention_plain(struct backend *be, struct devptr y, struct devptr qkv,
                            const struct kv_layer *kv, const struct batch *batch,
                            const struct attention_shape *shape)
{
    struct plain_args a = {.y = dev<bf16>(y),
                           .qkv = dev<bf16>(qkv),
                           .k = dev<void>(kv->k),
                           .v = dev<void>(kv->v),
                           .position = dev<int32_t>(batch->d_position),
                           .row_seq = dev<int32_t>(batch->d_row_seq),
                           .block_table = dev<int32_t>(batch->d_block_table),
                           .max_blocks = batch->max_blocks,
                           .kv_dtype = kv->dtype,
                           .shape = *shape};
    launch(be, "attention, plain", plain_kernel,
           dim3((unsigned)batch->n_rows, (unsigned)shape->n_heads), 128, 0, a);
}

static bool on_tensor_cores(const struct kv_layer *kv, const struct attention_shape *shape)
{
    int d = shape->head_dim;
    return kv->dtype == DTYPE_BF16 && shape->scale > 0 &&
           (d == 64 || d == 80 || d == 96 || d == 128 || d == 256);
}

void cuda_attention(struct backend *be, struct devptr y, struct devptr qkv,
                    const struct kv_layer *kv, const struct batch *batch,
                    const struct attention_shape *shape)
{
    if (batch->n_rows == 0)
        return;
    BUG_IF(shape->n_kv_heads < 1 || shape->n_heads % shape->n_kv_heads != 0 ||
           shape->head_dim > HEAD_DIM_MAX);
    if (!on_tensor_cores(kv, shape)) {
        attention_plain(be, y, qkv, kv, batch, shape);
        return;
    }
    BUG_IF(batch->n_seqs > be->options.max_seqs);
    const float log2_e = 1.44269504f;
    float cap = shape->softcap;
    struct attention_args a = {.y = dev<bf16>(y),
                               .qkv = dev<bf16>(qkv),
                               .k = dev<bf16>(kv->k),
                               .v = dev<bf16>(kv->v),
                               .seq_indptr = dev<int32_t>(batch->d_seq_indptr),
                               .kv_len = dev<int32_t>(batch->d_kv_len),
                               .block_table = dev<int32_t>(batch->d_block_table),
                               .n_seqs = batch->n_seqs,
                               .max_blocks = batch->max_blocks,
                               .n_heads = shape->n_heads,
                               .n_kv_heads = shape->n_kv_heads,
                               .group = shape->n_heads / shape->n_kv_heads,
                               .window = shape->window,
                               .to_log2 = cap > 0 ? log2_e : shape->scale * log2_e,
                               .cap = cap,
                               .cap_in = cap > 0 ? 2 * log2_e * shape->scale / cap : 0.0f,
                               .few = INT_MAX,
                               .partial = be->attention->partial,
                               .arrived = be->attention->arrived,
                               .claimed = be->attention->arrived + be->attention->n_slots,
                               .n_slots = be->attention->n_slots,
                               .slot_rows = 0};
    if (batch->n_rows == batch->n_seqs) {
        attention_decode(be, &a, shape->head_dim, batch->n_rows);
        return;
    }
    a.few = DECODE_PACKED_MAX > a.group ? DECODE_PACKED_MAX : a.group;
    int n_decode = 0, n_tiles = 0, rows = attention_prefill_rows(shape->head_dim);
    for (int s = 0; s < batch->n_seqs; s++) {
        int packed = (batch->seq_indptr[s + 1] - batch->seq_indptr[s]) * a.group;
        n_decode += packed <= a.few;
        n_tiles += packed <= a.few ? 0 : ceil_div(packed, rows);
    }
    if (n_tiles > 0)
        attention_prefill(be, &a, shape->head_dim, n_tiles);
    if (n_decode > 0)
        attention_decode(be, &a, shape->head_dim, batch->n_rows);
}

/* ---- copy on write
 * ------------------------------------------------------------------------------------------- */

enum { COPY_PAIRS = 128 };

struct copy_args {
    uint4 *k, *v;
    int chunks; /* of 16 bytes, of a block */
    int32_t src[COPY_PAIRS], dst[COPY_PAIRS];
};

/* Thread blocks: (part of a block, pair, K or V). It lets the next kernel start only when it is
 * done, because attention reads blocks of earlier steps before its pdl_wait. */
__global__ static void __launch_bounds__(256)
    copy_kernel(const __grid_constant__ struct copy_args a)
{
    pdl_wait();
    uint4 *side = blockIdx.z == 0 ? a.k : a.v;
    const uint4 *from = side + (int64_t)a.src[blockIdx.y] * a.chunks;
    uint4 *to = side + (int64_t)a.dst[blockIdx.y] * a.chunks;
    for (int i = blockIdx.x * 256 + threadIdx.x; i < a.chunks; i += gridDim.x * 256)
        to[i] = from[i];
    pdl_trigger_written();
}

void cuda_kv_copy_blocks(struct backend *be, const struct kv_layer *kv,
                         const struct attention_shape *shape, const int32_t *src,
                         const int32_t *dst, int n)
{
    /* A block is 16 tokens, so whole 16-byte chunks whatever the shape. */
    size_t bytes = (size_t)BLOCK_TOKENS * shape->n_kv_heads * shape->head_dim *
                   dtype_bytes(kv->dtype);
    struct copy_args a;
    a.k = dev<uint4>(kv->k);
    a.v = dev<uint4>(kv->v);
    a.chunks = (int)(bytes / 16);
    for (int i = 0; i < n;) {
        /* The pairs of a launch run at once: a pair that touches what an earlier one wrote, or
         * writes what an earlier one reads, waits for the next launch. */
        int m = 0;
        for (bool apart = true; i < n && m < COPY_PAIRS; i++, m++) {
            for (int j = 0; j < m && apart; j++)
                apart = src[i] != a.dst[j] && dst[i] != a.dst[j] && dst[i] != a.src[j];
            if (!apart)
                break;
            a.src[m] = src[i];
            a.dst[m] = dst[i];
        }
        unsigned parts = (unsigned)ceil_div(a.chunks, 1024);
        launch(be, "kv_copy_blocks", copy_kernel, dim3(parts, (unsigned)m, 2), 256, 0, a);
    }
}
