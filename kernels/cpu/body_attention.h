/* body_attention: causal attention over the paged cache, and what feeds it. Compiled once per
 * instruction set (isa_*.c).
 *
 * Online softmax (FlashAttention): the keys are walked in pieces of PIECE_KEYS at absolute
 * positions [0, 64), [64, 128) ...; each query keeps its running maximum m, its running sum l and
 * its accumulator, and rescales both when a piece raises m. What a query does in a piece is a
 * function of the piece and the query's own visible range alone:
 *
 *     score   one vector accumulator over ascending head_dim, the lane tree of vec_reduce4, scale,
 *             cap
 *     m, l    over the vectors of the piece in order; invisible keys weigh exp(-inf) = 0
 *     acc     lane by lane, p[j] * v[j] for ascending visible j
 *
 * So prefill in any chunking and decode give equal bits.
 *
 * What comes from memory sets the pace: of 16 sequences that decode, each reads its own keys, once.
 * The cache holds all heads of a token side by side, so a tile takes several heads and walks
 * KEYS_TURN tokens at a time through all of them: memory sees whole tokens in order instead of a
 * few lines out of every third page. While the scores of some tokens are computed their values are
 * asked for, and with the values the keys of the next piece.
 *
 * Queries of one head that see the same keys (rows of one sequence, heads of one KV head) are taken
 * together, up to QUERY_BLOCK at a time, so that K and V are loaded and widened once for all; where
 * their visible ranges differ, each walks the rest of its range alone, in the same order. */
#ifndef TRIBUTARY_KERNELS_CPU_BODY_ATTENTION_H
#define TRIBUTARY_KERNELS_CPU_BODY_ATTENTION_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/simd.h"

#include <math.h>
#include <stdbool.h>

enum {
    QUERY_BLOCK = 3,
    KEYS_TURN = 8,    /* of the scores; PIECE_KEYS is a multiple */
    VALUES_TURN = 16, /* of the weighted sum, which pays a load and a store of acc a turn */
};

struct piece {
    int base;                  /* absolute position of its first key */
    size_t key_at[PIECE_KEYS]; /* element of each key of the tile's first head in the pool */
    int begin, end;            /* keys that any query of the tile sees, relative to the piece */
};

struct visible { /* keys of the piece that one query sees */
    int begin, end;
};

/* What one tile attends: all queries of some KV heads, n_queries of each. */
struct attend_tile {
    const struct attend *a;
    int row_begin, group, n_queries, head_begin, n_heads;
    int ld;              /* head_dim rounded up to LANES */
    float *q, *acc;      /* [n_heads, n_queries, ld] */
    float *m, *l;        /* [n_heads, n_queries] */
    float *s;            /* [n_heads, n_queries, PIECE_KEYS] */
    struct visible *see; /* [n_queries], of the piece at hand */
};

/* s[q][j] = q . k[j] for KEYS_TURN keys, `keys` at a time; k is that of the head. */
INLINE void scores(float *s, const float *q, int ldq, const void *k, const size_t *key_at, int hd,
                   const enum dtype t, const int queries, const int keys)
{
    for (int j = 0; j < KEYS_TURN; j += keys) {
        const size_t *at = key_at + j;
        vec acc[QUERY_BLOCK][KEYS_TURN];
        int e = 0;
        UNROLL for (int i = 0; i < queries; i++) UNROLL for (int c = 0; c < keys; c++)
            acc[i][c] = vec_zero();
        for (; e + LANES <= hd; e += LANES) {
            vec qe[QUERY_BLOCK];
            UNROLL for (int i = 0; i < queries; i++) qe[i] = vec_load(q + i * ldq + e);
            UNROLL for (int c = 0; c < keys; c++)
            {
                vec ke = vec_load_as(t, k, at[c] + (size_t)e);
                UNROLL for (int i = 0; i < queries; i++) acc[i][c] = vec_fma(qe[i], ke, acc[i][c]);
            }
        }
        if (e < hd)
            UNROLL for (int c = 0; c < keys; c++)
            {
                vec ke = vec_load_as_n(t, k, at[c] + (size_t)e, hd - e);
                UNROLL for (int i = 0; i < queries; i++)
                    acc[i][c] = vec_fma(vec_load(q + i * ldq + e), ke, acc[i][c]); /* q is padded */
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
INLINE void weigh_columns(float *acc, int ldacc, const float *p, const void *v,
                          const size_t *key_at, struct visible see, int e, int n_last,
                          const enum dtype t, const int queries, const int vecs)
{
    vec sum[QUERY_BLOCK][8];
    UNROLL for (int i = 0; i < queries; i++) UNROLL for (int c = 0; c < vecs; c++)
        sum[i][c] = vec_load(acc + i * ldacc + e + c * LANES);
    for (int j = see.begin; j < see.end; j++) {
        vec pj[QUERY_BLOCK];
        UNROLL for (int i = 0; i < queries; i++) pj[i] = vec_set1(p[i * PIECE_KEYS + j]);
        UNROLL for (int c = 0; c < vecs; c++)
        {
            size_t at = key_at[j] + (size_t)(e + c * LANES);
            vec value = n_last < LANES ? vec_load_as_n(t, v, at, n_last) : vec_load_as(t, v, at);
            UNROLL for (int i = 0; i < queries; i++) sum[i][c] = vec_fma(pj[i], value, sum[i][c]);
        }
    }
    UNROLL for (int i = 0; i < queries; i++) UNROLL for (int c = 0; c < vecs; c++)
        vec_store(acc + i * ldacc + e + c * LANES, sum[i][c]);
}

INLINE void weigh(float *acc, int ldacc, const float *p, const void *v, const size_t *key_at,
                  int hd, struct visible see, const enum dtype t, const int queries)
{
    const int wide = queries == 1 ? WIDE : 4;
    int e = 0;
    if (see.begin >= see.end)
        return;
    for (; e + wide * LANES <= hd; e += wide * LANES)
        weigh_columns(acc, ldacc, p, v, key_at, see, e, LANES, t, queries, wide);
    for (; e + LANES <= hd; e += LANES)
        weigh_columns(acc, ldacc, p, v, key_at, see, e, LANES, t, queries, 1);
    if (e < hd)
        weigh_columns(acc, ldacc, p, v, key_at, see, e, hd - e, t, queries, 1);
}

/* The functions that touch keys or values, for one query and for QUERY_BLOCK, by dtype: functions
 * of their own, not inlined, so that each is compiled once. */
typedef void scores_fn(float *s, const float *q, int ldq, const void *k, const size_t *key_at,
                       int hd);
typedef void weigh_fn(float *acc, int ldacc, const float *p, const void *v, const size_t *key_at,
                      int hd, struct visible see);

#define KERNEL_OF(name, t, many, queries, keys)                                             \
    static __attribute__((noinline)) void scores_##many##_##name(                           \
        float *s, const float *q, int ldq, const void *k, const size_t *key_at, int hd)     \
    {                                                                                       \
        scores(s, q, ldq, k, key_at, hd, t, queries, keys);                                 \
    }                                                                                       \
    static __attribute__((noinline)) void weigh_##many##_##name(                            \
        float *acc, int ldacc, const float *p, const void *v, const size_t *key_at, int hd, \
        struct visible see)                                                                 \
    {                                                                                       \
        weigh(acc, ldacc, p, v, key_at, hd, see, t, queries);                               \
    }
#define KERNELS_OF(name, t)               \
    KERNEL_OF(name, t, one, 1, KEYS_TURN) \
    KERNEL_OF(name, t, block, QUERY_BLOCK, 4)
KERNELS_OF(f32, DTYPE_F32)
KERNELS_OF(f16, DTYPE_F16)
KERNELS_OF(bf16, DTYPE_BF16)
#undef KERNELS_OF
#undef KERNEL_OF

static const struct {
    scores_fn *scores_one, *scores_block;
    weigh_fn *weigh_one, *weigh_block;
} kernels_of[] = {
    [DTYPE_F32] = {scores_one_f32, scores_block_f32, weigh_one_f32, weigh_block_f32},
    [DTYPE_F16] = {scores_one_f16, scores_block_f16, weigh_one_f16, weigh_block_f16},
    [DTYPE_BF16] = {scores_one_bf16, scores_block_bf16, weigh_one_bf16, weigh_block_bf16},
};

static struct visible intersect(struct visible a, struct visible b)
{
    return (struct visible){a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}

/* How many queries from i on are taken together: QUERY_BLOCK or 1. */
static int block_queries(const struct attend_tile *t, int i)
{
    return t->n_queries - i >= QUERY_BLOCK ? QUERY_BLOCK : 1;
}

static void keys_ask(enum dtype t, const void *from, const size_t *key_at, int n, int hd)
{
    for (int c = 0; c < n; c++)
        prefetch_as(t, from, key_at[c], hd);
}

/* The scores of KEYS_TURN keys from j on, of one head. */
static void turn_scores(const struct attend_tile *t, const struct piece *piece, int head, int j)
{
    const struct attend *a = t->a;
    const int hd = a->shape->head_dim;
    const void *k = (const char *)a->k + (size_t)(head * hd) * dtype_bytes(a->dtype);
    const struct visible turn = {j, j + KEYS_TURN};
    for (int i = 0, n; i < t->n_queries; i += n) {
        n = block_queries(t, i);
        bool any = false;
        for (int b = 0; b < n; b++) {
            struct visible see = intersect(turn, t->see[i + b]);
            any |= see.begin < see.end;
        }
        if (!any)
            continue;
        const int query = head * t->n_queries + i;
        (n == 1 ? kernels_of[a->dtype].scores_one : kernels_of[a->dtype].scores_block)(
            t->s + (size_t)query * PIECE_KEYS + j, t->q + query * t->ld, t->ld, k,
            piece->key_at + j, hd);
    }
}

/* acc of one head += the weighted values of keys [turn.begin, turn.end). */
static void turn_weigh(const struct attend_tile *t, const struct piece *piece, int head,
                       struct visible turn)
{
    const struct attend *a = t->a;
    const int hd = a->shape->head_dim, ld = t->ld;
    const void *v = (const char *)a->v + (size_t)(head * hd) * dtype_bytes(a->dtype);
    weigh_fn *weigh_one = kernels_of[a->dtype].weigh_one;
    for (int i = 0, n; i < t->n_queries; i += n) {
        n = block_queries(t, i);
        struct visible all = turn;
        for (int b = 0; b < n; b++)
            all = intersect(all, t->see[i + b]);
        const bool shared = n > 1 && all.begin < all.end;
        const int query = head * t->n_queries + i;
        float *acc = t->acc + query * ld;
        const float *p = t->s + (size_t)query * PIECE_KEYS;
        for (int b = 0; b < n; b++) {
            struct visible see = intersect(turn, t->see[i + b]);
            if (shared)
                see.end = all.begin;
            weigh_one(acc + b * ld, ld, p + b * PIECE_KEYS, v, piece->key_at, hd, see);
        }
        if (!shared)
            continue;
        kernels_of[a->dtype].weigh_block(acc, ld, p, v, piece->key_at, hd, all);
        for (int b = 0; b < n; b++) {
            struct visible see = intersect(turn, t->see[i + b]);
            see.begin = all.end;
            weigh_one(acc + b * ld, ld, p + b * PIECE_KEYS, v, piece->key_at, hd, see);
        }
    }
}

/* First key that the query at `position` sees. */
INLINE int window_begin(const struct attention_shape *shape, int position)
{
    int begin = shape->window > 0 ? position - shape->window + 1 : 0;
    return begin > 0 ? begin : 0;
}

/* The piece at `base` of a tile that sees keys [key_begin, key_end). */
static void piece_find(struct piece *piece, const struct attend_tile *t, int base, int key_begin,
                       int key_end)
{
    const struct attend *a = t->a;
    const size_t n_kv = (size_t)a->shape->n_kv_heads, hd = (size_t)a->shape->head_dim;
    piece->base = base;
    piece->begin = key_begin > base ? key_begin - base : 0;
    piece->end = key_end - base < PIECE_KEYS ? key_end - base : PIECE_KEYS;
    for (int j = 0; j < PIECE_KEYS; j++) { /* outside: any readable key; its score is unused */
        int key = base + (j < piece->begin ? piece->begin : j < piece->end ? j : piece->end - 1);
        size_t slot = (size_t)a->blocks[key / BLOCK_TOKENS] * BLOCK_TOKENS +
                      (size_t)(key % BLOCK_TOKENS);
        piece->key_at[j] = (slot * n_kv + (size_t)t->head_begin) * hd;
    }
}

/* `next` is NULL at the last piece. */
static void piece_attend(const struct attend_tile *t, const struct piece *piece,
                         const struct piece *next)
{
    const struct attend *a = t->a;
    const int hd = a->shape->head_dim, ld = t->ld;
    const size_t head_bytes = (size_t)hd * dtype_bytes(a->dtype);
    for (int i = 0; i < t->n_queries; i++) {
        int position = a->position[t->row_begin + i / t->group];
        t->see[i] = intersect((struct visible){0, PIECE_KEYS},
                              (struct visible){window_begin(a->shape, position) - piece->base,
                                               position + 1 - piece->base});
    }
    for (int j = piece->begin / KEYS_TURN * KEYS_TURN; j < piece->end; j += KEYS_TURN)
        for (int head = 0; head < t->n_heads; head++) {
            keys_ask(a->dtype, (const char *)a->v + (size_t)head * head_bytes, piece->key_at + j,
                     KEYS_TURN, hd);
            turn_scores(t, piece, head, j);
        }
    for (int i = 0; i < t->n_heads * t->n_queries; i++) {
        struct visible see = t->see[i % t->n_queries];
        if (see.begin >= see.end)
            continue;
        float rescale = softmax_step(t->s + (size_t)i * PIECE_KEYS, &t->m[i], &t->l[i], see,
                                     a->shape);
        for (int e = 0; rescale != 1 && e < ld; e += LANES)
            vec_store(t->acc + i * ld + e,
                      vec_mul(vec_load(t->acc + i * ld + e), vec_set1(rescale)));
    }
    for (int j = piece->begin / VALUES_TURN * VALUES_TURN; j < piece->end; j += VALUES_TURN)
        for (int head = 0; head < t->n_heads; head++) {
            if (next != NULL)
                keys_ask(a->dtype, (const char *)a->k + (size_t)head * head_bytes, next->key_at + j,
                         VALUES_TURN, hd);
            turn_weigh(t, piece, head, (struct visible){j, j + VALUES_TURN});
        }
}

static void attend(const struct attend *a, int row_begin, int row_end, int head_begin, int head_end,
                   void *scratch)
{
    const struct attention_shape *shape = a->shape;
    const int hd = shape->head_dim, group = shape->n_heads / shape->n_kv_heads;
    const int ld = (hd + LANES - 1) / LANES * LANES;
    const int n_queries = (row_end - row_begin) * group, n_heads = head_end - head_begin;
    const int n = n_heads * n_queries;
    const size_t stride = (size_t)(shape->n_heads + 2 * shape->n_kv_heads) * (size_t)hd;
    struct attend_tile t = {.a = a,
                            .row_begin = row_begin,
                            .group = group,
                            .n_queries = n_queries,
                            .head_begin = head_begin,
                            .n_heads = n_heads,
                            .ld = ld,
                            .q = scratch};
    t.acc = t.q + n * ld;
    t.s = t.acc + n * ld;
    t.m = t.s + n * PIECE_KEYS;
    t.l = t.m + n;
    t.see = (struct visible *)(void *)(t.l + n);

    for (int i = 0; i < n; i++) {
        int head = head_begin + i / n_queries, row = row_begin + i % n_queries / group;
        const float *from = a->qkv + (size_t)row * stride +
                            (size_t)(head * group + i % n_queries % group) * (size_t)hd;
        memset(t.q + i * ld, 0, (size_t)ld * sizeof *t.q);
        memcpy(t.q + i * ld, from, (size_t)hd * sizeof *t.q);
        memset(t.acc + i * ld, 0, (size_t)ld * sizeof *t.acc);
        t.m[i] = -INFINITY;
        t.l[i] = 0;
    }
    /* Rows ascend by position, so the first sees the earliest key and the last the latest. */
    int key_begin = window_begin(shape, a->position[row_begin]);
    int key_end = a->position[row_end - 1] + 1, base = key_begin / PIECE_KEYS * PIECE_KEYS;
    struct piece pieces[2];
    piece_find(&pieces[0], &t, base, key_begin, key_end);
    for (int i = 0; base < key_end; i ^= 1, base += PIECE_KEYS) {
        bool more = base + PIECE_KEYS < key_end;
        if (more)
            piece_find(&pieces[i ^ 1], &t, base + PIECE_KEYS, key_begin, key_end);
        piece_attend(&t, &pieces[i], more ? &pieces[i ^ 1] : NULL);
    }
    for (int i = 0; i < n; i++) {
        int head = head_begin + i / n_queries, row = row_begin + i % n_queries / group;
        float *to = a->y + ((size_t)row * (size_t)shape->n_heads +
                            (size_t)(head * group + i % n_queries % group)) *
                               (size_t)hd;
        for (int e = 0; e < hd; e++)
            to[e] = t.acc[i * ld + e] / t.l[i];
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
