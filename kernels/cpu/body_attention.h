/* body_attention: causal attention over the paged cache, and what feeds it. Compiled once per
 * instruction set (isa_*.c).
 *
 * Online softmax (FlashAttention): the keys are walked in pieces of PIECE_KEYS at absolute
 * positions [0, 64), [64, 128) ...; each query keeps its running maximum m, its running sum l and
 * its accumulator, and rescales both when a piece raises m. What a query does in a piece is a
 * function of the piece and the query's own visible range alone:
 *
 *     score   one vector accumulator over ascending head_dim, the lane tree of vec_reduce4, scale,
 * cap m, l    over the vectors of the piece in order; invisible keys weigh exp(-inf) = 0 acc lane
 * by lane, p[j] * v[j] for ascending visible j
 *
 * Queries that see the same keys (rows of one sequence, heads of one KV head) are taken together,
 * up to QUERY_BLOCK at a time, so that K and V are loaded and widened once for all; where their
 * visible ranges differ, each walks the rest of its range alone, in the same order. So prefill in
 * any chunking and decode give equal bits. */
#ifndef TRIBUTARY_KERNELS_CPU_BODY_ATTENTION_H
#define TRIBUTARY_KERNELS_CPU_BODY_ATTENTION_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

#include <math.h>
#include <stdbool.h>

enum { QUERY_BLOCK = 3 };

struct piece {
    size_t key_at[PIECE_KEYS]; /* element of each key of this head in the pool */
    int begin, end;            /* keys that any query of the tile sees, relative to the piece */
};

struct visible { /* keys of the piece that one query sees */
    int begin, end;
};

/* s[q][j] = q . k[j] for `keys` keys a turn; begin and end are multiples of 8. */
INLINE void scores(float *s, const float *q, int ldq, const struct attend *a,
                   const struct piece *piece, const enum dtype t, const int queries, const int keys)
{
    const int hd = a->shape->head_dim;
    for (int j = piece->begin & ~7; j < ((piece->end + 7) & ~7); j += keys) {
        const size_t *at = piece->key_at + j;
        for (int c = 0; c < keys; c++)
            prefetch_as(t, a->v, at[c], hd);
        vec acc[QUERY_BLOCK][8];
        int e = 0;
        UNROLL for (int i = 0; i < queries; i++) UNROLL for (int c = 0; c < keys; c++)
            acc[i][c] = vec_zero();
        for (; e + LANES <= hd; e += LANES) {
            vec qe[QUERY_BLOCK];
            UNROLL for (int i = 0; i < queries; i++) qe[i] = vec_load(q + i * ldq + e);
            UNROLL for (int c = 0; c < keys; c++)
            {
                vec k = vec_load_as(t, a->k, at[c] + (size_t)e);
                UNROLL for (int i = 0; i < queries; i++) acc[i][c] = vec_fma(qe[i], k, acc[i][c]);
            }
        }
        if (e < hd)
            UNROLL for (int c = 0; c < keys; c++)
            {
                vec k = vec_load_as_n(t, a->k, at[c] + (size_t)e, hd - e);
                UNROLL for (int i = 0; i < queries; i++)
                    acc[i][c] = vec_fma(vec_load(q + i * ldq + e), k, acc[i][c]); /* q is padded */
            }
        UNROLL for (int i = 0; i < queries; i++) UNROLL for (int c = 0; c < keys; c += 4)
            _mm_storeu_ps(s + i * PIECE_KEYS + j + c,
                          vec_reduce4(acc[i][c], acc[i][c + 1], acc[i][c + 2], acc[i][c + 3]));
    }
}

/* Scores to weights, in place; m and l move on. Returns what the accumulator must be scaled by. */
static float softmax_step(float *s, float *m, float *l, struct visible see,
                          const struct attention_shape *shape)
{
    int from = see.begin / LANES * LANES, to = (see.end + LANES - 1) / LANES * LANES;
    for (int j = from; j < to; j += LANES) {
        vec x = vec_mul(vec_load(s + j), vec_set1(shape->scale));
        if (shape->softcap != 0)
            x = vec_mul(vec_set1(shape->softcap), vec_tanh(vec_div(x, vec_set1(shape->softcap))));
        vec_store(s + j, x);
    }
    for (int j = from; j < see.begin; j++)
        s[j] = -INFINITY;
    for (int j = see.end; j < to; j++)
        s[j] = -INFINITY;
    vec max = vec_set1(-INFINITY), sum = vec_zero();
    for (int j = from; j < to; j += LANES)
        max = vec_max(max, vec_load(s + j));
    float m_new = vec_reduce_max(max);
    m_new = *m > m_new ? *m : m_new;
    for (int j = from; j < to; j += LANES) {
        vec p = vec_exp(vec_sub(vec_load(s + j), vec_set1(m_new)));
        vec_store(s + j, p);
        sum = vec_add(sum, p);
    }
    float rescale[LANES];
    vec_store(rescale, vec_exp(vec_set1(*m - m_new)));
    *l = *l * rescale[0] + vec_reduce(sum);
    *m = m_new;
    return rescale[0];
}

/* acc[q][e ...] += p[q][j] * v[j][e ...] for ascending j; n_last < LANES marks a ragged end. */
INLINE void weigh_columns(float *acc, int ldacc, const float *p, const struct attend *a,
                          const size_t *key_at, struct visible see, int e, int n_last,
                          const enum dtype t, const int queries, const int vecs)
{
    vec sum[QUERY_BLOCK][8];
    UNROLL for (int i = 0; i < queries; i++) UNROLL for (int v = 0; v < vecs; v++)
        sum[i][v] = vec_load(acc + i * ldacc + e + v * LANES);
    for (int j = see.begin; j < see.end; j++) {
        vec pj[QUERY_BLOCK];
        if (e == 0 && vecs > 1)
            prefetch_as(t, a->k, key_at[j] + (size_t)a->shape->head_dim, a->shape->head_dim);
        UNROLL for (int i = 0; i < queries; i++) pj[i] = vec_set1(p[i * PIECE_KEYS + j]);
        UNROLL for (int v = 0; v < vecs; v++)
        {
            size_t at = key_at[j] + (size_t)(e + v * LANES);
            vec value = n_last < LANES ? vec_load_as_n(t, a->v, at, n_last)
                                       : vec_load_as(t, a->v, at);
            UNROLL for (int i = 0; i < queries; i++) sum[i][v] = vec_fma(pj[i], value, sum[i][v]);
        }
    }
    UNROLL for (int i = 0; i < queries; i++) UNROLL for (int v = 0; v < vecs; v++)
        vec_store(acc + i * ldacc + e + v * LANES, sum[i][v]);
}

INLINE void weigh(float *acc, int ldacc, const float *p, const struct attend *a,
                  const size_t *key_at, struct visible see, const enum dtype t, const int queries)
{
    const int hd = a->shape->head_dim, wide = queries == 1 ? WIDE : 4;
    int e = 0;
    if (see.begin >= see.end)
        return;
    for (; e + wide * LANES <= hd; e += wide * LANES)
        weigh_columns(acc, ldacc, p, a, key_at, see, e, LANES, t, queries, wide);
    for (; e + LANES <= hd; e += LANES)
        weigh_columns(acc, ldacc, p, a, key_at, see, e, LANES, t, queries, 1);
    if (e < hd)
        weigh_columns(acc, ldacc, p, a, key_at, see, e, hd - e, t, queries, 1);
}

/* The three functions that touch keys or values, for one query and for QUERY_BLOCK, by dtype:
 * functions of their own, not inlined, so that each is compiled once. */
#define KERNELS_OF(name, t)                                                                   \
    static __attribute__((noinline)) void scores_one_##name(                                  \
        float *s, const float *q, int ldq, const struct attend *a, const struct piece *piece) \
    {                                                                                         \
        scores(s, q, ldq, a, piece, t, 1, 8);                                                 \
    }                                                                                         \
    static __attribute__((noinline)) void scores_block_##name(                                \
        float *s, const float *q, int ldq, const struct attend *a, const struct piece *piece) \
    {                                                                                         \
        scores(s, q, ldq, a, piece, t, QUERY_BLOCK, 4);                                       \
    }                                                                                         \
    static __attribute__((noinline)) void weigh_one_##name(                                   \
        float *acc, int ldacc, const float *p, const struct attend *a, const size_t *key_at,  \
        struct visible see)                                                                   \
    {                                                                                         \
        weigh(acc, ldacc, p, a, key_at, see, t, 1);                                           \
    }                                                                                         \
    static __attribute__((noinline)) void weigh_block_##name(                                 \
        float *acc, int ldacc, const float *p, const struct attend *a, const size_t *key_at,  \
        struct visible see)                                                                   \
    {                                                                                         \
        weigh(acc, ldacc, p, a, key_at, see, t, QUERY_BLOCK);                                 \
    }
KERNELS_OF(f32, DTYPE_F32)
KERNELS_OF(f16, DTYPE_F16)
KERNELS_OF(bf16, DTYPE_BF16)
#undef KERNELS_OF

typedef void scores_fn(float *s, const float *q, int ldq, const struct attend *a,
                       const struct piece *piece);
typedef void weigh_fn(float *acc, int ldacc, const float *p, const struct attend *a,
                      const size_t *key_at, struct visible see);

static const struct {
    scores_fn *scores_one, *scores_block;
    weigh_fn *weigh_one, *weigh_block;
} kernels_of[] = {
    [DTYPE_F32] = {scores_one_f32, scores_block_f32, weigh_one_f32, weigh_block_f32},
    [DTYPE_F16] = {scores_one_f16, scores_block_f16, weigh_one_f16, weigh_block_f16},
    [DTYPE_BF16] = {scores_one_bf16, scores_block_bf16, weigh_one_bf16, weigh_block_bf16},
};

/* One piece for `queries` (1 or QUERY_BLOCK) queries; q, acc, m and l are those of the first. */
static void block_attend(const float *q, float *acc, float *m, float *l, int ld,
                         const struct attend *a, const struct piece *piece,
                         const struct visible *see, int queries)
{
    float s[QUERY_BLOCK * PIECE_KEYS];
    struct visible all = {0, PIECE_KEYS};
    weigh_fn *weigh_one = kernels_of[a->dtype].weigh_one;
    (queries == 1 ? kernels_of[a->dtype].scores_one : kernels_of[a->dtype].scores_block)(s, q, ld,
                                                                                         a, piece);
    for (int i = 0; i < queries; i++) {
        if (see[i].begin < see[i].end) {
            float rescale = softmax_step(s + i * PIECE_KEYS, &m[i], &l[i], see[i], a->shape);
            for (int e = 0; e < ld; e += LANES)
                vec_store(acc + i * ld + e, vec_mul(vec_load(acc + i * ld + e), vec_set1(rescale)));
        }
        all.begin = all.begin > see[i].begin ? all.begin : see[i].begin;
        all.end = all.end < see[i].end ? all.end : see[i].end;
    }
    bool shared = queries > 1 && all.begin < all.end;
    for (int i = 0; i < queries; i++)
        weigh_one(acc + i * ld, ld, s + i * PIECE_KEYS, a, piece->key_at,
                  (struct visible){see[i].begin, shared ? all.begin : see[i].end});
    if (!shared)
        return;
    kernels_of[a->dtype].weigh_block(acc, ld, s, a, piece->key_at, all);
    for (int i = 0; i < queries; i++)
        weigh_one(acc + i * ld, ld, s + i * PIECE_KEYS, a, piece->key_at,
                  (struct visible){all.end, see[i].end});
}

/* First key that the query at `position` sees. */
INLINE int window_begin(const struct attention_shape *shape, int position)
{
    int begin = shape->window > 0 ? position - shape->window + 1 : 0;
    return begin > 0 ? begin : 0;
}

static void attend(const struct attend *a, int row_begin, int row_end, int kv_head, float *scratch)
{
    const struct attention_shape *shape = a->shape;
    const int hd = shape->head_dim, group = shape->n_heads / shape->n_kv_heads;
    const int ld = (hd + LANES - 1) / LANES * LANES;
    const int n_queries = (row_end - row_begin) * group;
    const size_t stride = (size_t)(shape->n_heads + 2 * shape->n_kv_heads) * (size_t)hd;
    float *q = scratch, *acc = q + n_queries * ld, *m = acc + n_queries * ld, *l = m + n_queries;

    for (int i = 0; i < n_queries; i++) {
        const float *from = a->qkv + (size_t)(row_begin + i / group) * stride +
                            (size_t)(kv_head * group + i % group) * (size_t)hd;
        memset(q + i * ld, 0, (size_t)ld * sizeof *q);
        memcpy(q + i * ld, from, (size_t)hd * sizeof *q);
        memset(acc + i * ld, 0, (size_t)ld * sizeof *acc);
        m[i] = -INFINITY;
        l[i] = 0;
    }
    /* Rows ascend by position, so the first sees the earliest key and the last the latest. */
    int key_begin = window_begin(shape, a->position[row_begin]);
    int key_end = a->position[row_end - 1] + 1;
    for (int base = key_begin / PIECE_KEYS * PIECE_KEYS; base < key_end; base += PIECE_KEYS) {
        struct piece piece;
        piece.begin = key_begin > base ? key_begin - base : 0;
        piece.end = key_end - base < PIECE_KEYS ? key_end - base : PIECE_KEYS;
        for (int j = 0; j < PIECE_KEYS; j++) { /* outside: any readable key; its score is unused */
            int key = base + (j < piece.begin ? piece.begin : j < piece.end ? j : piece.end - 1);
            size_t slot = (size_t)a->blocks[key / BLOCK_TOKENS] * BLOCK_TOKENS +
                          (size_t)(key % BLOCK_TOKENS);
            piece.key_at[j] = (slot * (size_t)shape->n_kv_heads + (size_t)kv_head) * (size_t)hd;
        }
        for (int i = 0; i < n_queries; i += QUERY_BLOCK) {
            int n = n_queries - i < QUERY_BLOCK ? n_queries - i : QUERY_BLOCK;
            struct visible see[QUERY_BLOCK];
            bool any = false;
            for (int b = 0; b < n; b++) {
                int position = a->position[row_begin + (i + b) / group];
                int begin = window_begin(shape, position) - base, end = position + 1 - base;
                see[b].begin = begin > 0 ? begin : 0;
                see[b].end = end < PIECE_KEYS ? end : PIECE_KEYS;
                any |= see[b].begin < see[b].end;
            }
            if (!any)
                continue;
            if (n == QUERY_BLOCK)
                block_attend(q + i * ld, acc + i * ld, m + i, l + i, ld, a, &piece, see, n);
            else
                for (int b = 0; b < n; b++)
                    block_attend(q + (i + b) * ld, acc + (i + b) * ld, m + i + b, l + i + b, ld, a,
                                 &piece, see + b, 1);
        }
    }
    for (int i = 0; i < n_queries; i++) {
        float *to = a->y + (size_t)(row_begin + i / group) * (size_t)shape->n_heads * (size_t)hd +
                    (size_t)(kv_head * group + i % group) * (size_t)hd;
        for (int e = 0; e < hd; e++)
            to[e] = acc[i * ld + e] / l[i];
    }
}

/* Sum of squares of n elements: four vector accumulators, merged in pairs. */
INLINE float sum_squares(const float *x, int n)
{
    vec acc[4] = {vec_zero(), vec_zero(), vec_zero(), vec_zero()};
    int i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        UNROLL for (int v = 0; v < 4; v++)
        {
            vec e = vec_load(x + i + v * LANES);
            acc[v] = vec_fma(e, e, acc[v]);
        }
    for (; i < n; i += LANES) {
        vec e = n - i >= LANES ? vec_load(x + i) : vec_load_n(x + i, n - i);
        acc[0] = vec_fma(e, e, acc[0]);
    }
    return vec_reduce(vec_add(vec_add(acc[0], acc[1]), vec_add(acc[2], acc[3])));
}

static void rope_row(float *qkv, const struct kv_layer *kv, size_t slot, int32_t position,
                     const struct attention_shape *shape, const struct rope_shape *rope)
{
    const int hd = shape->head_dim, n_q = shape->n_heads, n_kv = shape->n_kv_heads;
    if (rope != NULL) {
        const int half = rope->rotary_dim / 2;
        const float *cosine = (const float *)rope->cos_sin.addr +
                              (size_t)position * (size_t)rope->rotary_dim;
        const float *sine = cosine + half;
        for (int h = 0; h < n_q + n_kv; h++) {
            float *restrict head = qkv + (size_t)h * (size_t)hd;
            const float *norm = (const float *)(h < n_q ? rope->q_norm : rope->k_norm).addr;
            if (norm != NULL) {
                float inverse_rms = 1.0f /
                                    sqrtf(sum_squares(head, hd) / (float)hd + rope->norm_eps);
                for (int i = 0; i < hd; i++)
                    head[i] = head[i] * inverse_rms * norm[i];
            }
            for (int i = 0; i < half; i++) {
                float a = head[i], b = head[half + i];
                head[i] = a * cosine[i] - b * sine[i];
                head[half + i] = b * cosine[i] + a * sine[i];
            }
        }
    }
    const size_t n = (size_t)n_kv * (size_t)hd;
    const float *from[2] = {qkv + (size_t)n_q * (size_t)hd,
                            qkv + (size_t)(n_q + n_kv) * (size_t)hd};
    void *const pool[2] = {(void *)kv->k.addr, (void *)kv->v.addr};
    for (int kind = 0; kind < 2; kind++) {
        if (kv->dtype == DTYPE_F32) {
            memcpy((float *)pool[kind] + slot * n, from[kind], n * sizeof(float));
        } else {
            uint16_t *to = (uint16_t *)pool[kind] + slot * n;
            size_t i = 0;
            for (; kv->dtype == DTYPE_F16 && i + LANES <= n; i += LANES)
                vec_narrow_f16(to + i, vec_load(from[kind] + i));
            for (; i < n; i++)
                element_store(to, kv->dtype, i, from[kind][i]);
        }
    }
}

#endif
