/* ref_attention: rotary embedding, the paged KV cache, and softmax(q k^T) v as it is written.
 *
 * Token j of sequence s lies in block block_table[s][j / BLOCK_TOKENS] at offset j % BLOCK_TOKENS.
 * Query head h reads KV head h / (n_heads / n_kv_heads). */
#include "kernels/ref/ref.h"

#include "kernels/numeric.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One head: RMSNorm when norm is given, then the rotation of pairs (i, i + rotary_dim / 2) by the
 * angle whose cosine and sine the table holds for this position. */
static void rotate_head(float *head, int head_dim, const float *norm, float norm_eps,
                        const struct rope_shape *rope, int32_t position)
{
    if (norm != NULL) {
        float sum = 0;
        for (int i = 0; i < head_dim; i++)
            sum += head[i] * head[i];
        float inverse_rms = 1.0f / sqrtf(sum / (float)head_dim + norm_eps);
        for (int i = 0; i < head_dim; i++)
            head[i] = head[i] * inverse_rms * norm[i];
    }
    int half = rope->rotary_dim / 2;
    const float *cosine = ref_f32(rope->cos_sin) + (size_t)position * (size_t)rope->rotary_dim;
    const float *sine = cosine + half;
    for (int i = 0; i < half; i++) {
        float a = head[i], b = head[half + i];
        head[i] = a * cosine[i] - b * sine[i];
        head[half + i] = b * cosine[i] + a * sine[i];
    }
}

void ref_rope_kv_write(struct backend *be, struct devptr qkv, const struct kv_layer *kv,
                       const struct batch *batch, const struct attention_shape *shape,
                       const struct rope_shape *rope)
{
    (void)be;
    int hd = shape->head_dim, n_q = shape->n_heads, n_kv = shape->n_kv_heads;
    BUG_IF(rope != NULL && (rope->rotary_dim > hd || rope->rotary_dim % 2 != 0));
    size_t stride = (size_t)(n_q + 2 * n_kv) * (size_t)hd;
    for (int i = 0; i < batch->n_rows; i++) {
        float *row = ref_f32(qkv) + (size_t)i * stride;
        if (rope != NULL)
            for (int h = 0; h < n_q + n_kv; h++) {
                struct devptr norm = h < n_q ? rope->q_norm : rope->k_norm;
                rotate_head(row + (size_t)h * (size_t)hd, hd, ref_f32(norm), rope->norm_eps, rope,
                            batch->position[i]);
            }
        const float *k = row + (size_t)n_q * (size_t)hd, *v = k + (size_t)n_kv * (size_t)hd;
        size_t n = (size_t)n_kv * (size_t)hd;
        for (size_t e = 0; e < n; e++) {
            size_t at = (size_t)ref_i32(batch->d_slot)[i] * n + e;
            element_store((void *)kv->k.addr, kv->dtype, at, k[e]);
            element_store((void *)kv->v.addr, kv->dtype, at, v[e]);
        }
    }
}

void ref_attention(struct backend *be, struct devptr y, struct devptr qkv,
                   const struct kv_layer *kv, const struct batch *batch,
                   const struct attention_shape *shape)
{
    (void)be;
    int hd = shape->head_dim, n_q = shape->n_heads, n_kv = shape->n_kv_heads;
    BUG_IF(n_kv < 1 || n_q % n_kv != 0);
    size_t stride = (size_t)(n_q + 2 * n_kv) * (size_t)hd;
    float *p = xcalloc((size_t)batch->max_blocks * BLOCK_TOKENS, sizeof *p);
    for (int s = 0; s < batch->n_seqs; s++)
        for (int i = batch->seq_indptr[s]; i < batch->seq_indptr[s + 1]; i++)
            for (int h = 0; h < n_q; h++) {
                const int32_t *blocks = ref_i32(batch->d_block_table) +
                                        (size_t)s * (size_t)batch->max_blocks;
                const float *q = ref_f32(qkv) + (size_t)i * stride + (size_t)h * (size_t)hd;
                float *out = ref_f32(y) + ((size_t)i * (size_t)n_q + (size_t)h) * (size_t)hd;
                int last = batch->position[i], first = 0;
                if (shape->window > 0 && last - shape->window + 1 > 0)
                    first = last - shape->window + 1;
                BUG_IF(last / BLOCK_TOKENS >= batch->max_blocks);
#define KV_AT(j)                                                                           \
    ((((size_t)blocks[(j) / BLOCK_TOKENS] * BLOCK_TOKENS + (size_t)((j) % BLOCK_TOKENS)) * \
          (size_t)n_kv +                                                                   \
      (size_t)(h / (n_q / n_kv))) *                                                        \
     (size_t)hd)
                float max = -INFINITY, sum = 0;
                for (int j = first; j <= last; j++) {
                    float score = 0;
                    for (int e = 0; e < hd; e++)
                        score += q[e] * element_f32((const void *)kv->k.addr, kv->dtype,
                                                    KV_AT(j) + (size_t)e);
                    score *= shape->scale;
                    if (shape->softcap != 0)
                        score = shape->softcap * tanhf(score / shape->softcap);
                    p[j] = score;
                    max = fmaxf(max, score);
                }
                memset(out, 0, (size_t)hd * sizeof *out);
                for (int j = first; j <= last; j++) {
                    p[j] = expf(p[j] - max);
                    sum += p[j];
                    for (int e = 0; e < hd; e++)
                        out[e] += p[j] * element_f32((const void *)kv->v.addr, kv->dtype,
                                                     KV_AT(j) + (size_t)e);
                }
                for (int e = 0; e < hd; e++)
                    out[e] /= sum;
#undef KV_AT
            }
    free(p);
}

void ref_kv_copy_blocks(struct backend *be, const struct kv_layer *kv,
                        const struct attention_shape *shape, const int32_t *src, const int32_t *dst,
                        int n)
{
    (void)be;
    size_t block_bytes = (size_t)BLOCK_TOKENS * (size_t)shape->n_kv_heads *
                         (size_t)shape->head_dim * dtype_bytes(kv->dtype);
    for (int i = 0; i < n; i++) {
        size_t from = (size_t)src[i] * block_bytes, to = (size_t)dst[i] * block_bytes;
        memmove((char *)kv->k.addr + to, (const char *)kv->k.addr + from, block_bytes);
        memmove((char *)kv->v.addr + to, (const char *)kv->v.addr + from, block_bytes);
    }
}
