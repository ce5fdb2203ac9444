/* variant: release. The CUDA backend against ref, and against itself in other company.
 *
 * Inputs are rounded to bf16 first, so that both sides compute with the same numbers; the bound is
 * ops.h's for bf16 activations. A machine without a Hopper GPU skips all of it and says so. */
#include "tests/ops/cuda_pair.h"

/* ---- attention
 * -------------------------------------------------------------------------------------------- */

struct attention_case {
    const char *what;
    struct attention_shape shape;
    enum dtype kv;
    int n_seqs, past[4], fresh[4]; /* tokens in cache before the step, and rows of the step */
    bool norms;
};

static const struct attention_case attention_cases[] = {
    {"decode, half-full blocks",
     {4, 2, 64, 0.125f, 0, 0},
     DTYPE_BF16,
     4,
     {0, 15, 16, 100},
     {1, 1, 1, 1},
     false},
    {"prefill beside decode",
     {8, 8, 128, 0.088f, 0, 0},
     DTYPE_BF16,
     3,
     {0, 33, 7},
     {40, 1, 17},
     false},
    {"GQA of 8, long context",
     {8, 1, 128, 0.088f, 0, 0},
     DTYPE_BF16,
     2,
     {1500, 700},
     {1, 3},
     false},
    {"head_dim 8", {8, 4, 8, 0.35f, 0, 0}, DTYPE_BF16, 2, {20, 0}, {2, 5}, false},
    {"head_dim 80, sliding window",
     {4, 4, 80, 0.11f, 24, 0},
     DTYPE_BF16,
     2,
     {90, 0},
     {2, 50},
     false},
    {"head_dim 256, soft cap", {4, 2, 256, 0.0625f, 0, 20}, DTYPE_BF16, 2, {40, 3}, {1, 2}, false},
    {"head_dim 96, q and k norms, f32 cache",
     {6, 2, 96, 0.1f, 0, 0},
     DTYPE_F32,
     2,
     {40, 3},
     {1, 9},
     true},
    {"f16 cache", {4, 2, 64, 0.125f, 0, 0}, DTYPE_F16, 2, {40, 3}, {1, 9}, false},
};

/* Fills the cache token by token and then runs the step; keep < 0: all sequences, else only that
 * one. */
static float *run_attention(struct dev *d, const struct attention_case *c, int keep, int chunk)
{
    const struct attention_shape *s = &c->shape;
    int max_blocks = 128, width = (s->n_heads + 2 * s->n_kv_heads) * s->head_dim;
    size_t kv_elements = (size_t)c->n_seqs * (size_t)max_blocks * BLOCK_TOKENS *
                         (size_t)(s->n_kv_heads * s->head_dim);
    struct kv_layer kv = {empty_activations(d, kv_elements), empty_activations(d, kv_elements),
                          c->kv};
    float *cos_sin = xcalloc((size_t)(4096 * s->head_dim), 4);
    for (int p = 0; p < 4096; p++) {
        for (int i = 0; i < s->head_dim / 2; i++) {
            double angle = p * pow(10000, -2.0 * i / s->head_dim);
            cos_sin[p * s->head_dim + i] = (float)cos(angle);
            cos_sin[p * s->head_dim + s->head_dim / 2 + i] = (float)sin(angle);
        }
    }
    float *norm = random_f32((size_t)s->head_dim, 9, 1.0f);
    struct rope_shape rope = {.rotary_dim = s->head_dim,
                              .cos_sin = dev_put(d, cos_sin, (size_t)(4096 * s->head_dim) * 4),
                              .norm_eps = 1e-6f};
    if (c->norms)
        rope.q_norm = rope.k_norm = dev_put(d, norm, (size_t)s->head_dim * 4);
    int n_out = 0;
    for (int q = 0; q < c->n_seqs; q++)
        n_out += keep < 0 || keep == q ? c->fresh[q] : 0;
    float *result = xcalloc((size_t)n_out * (size_t)(s->n_heads * s->head_dim), 4), *at = result;
    /* Sequences one after the other for the past, in pieces of `chunk`; the step is the last piece
     * of all. */
    for (int phase = 0; phase < 2; phase++) {
        for (int piece = 0;; piece++) {
            int32_t indptr[5] = {0}, kv_len[4], position[512], slot[512], row_seq[512];
            int32_t *table = xcalloc((size_t)(4 * max_blocks), sizeof *table);
            int n_rows = 0, n_seqs = 0;
            for (int q = 0; q < c->n_seqs; q++) {
                if (keep >= 0 && keep != q)
                    continue;
                int from = phase == 0 ? piece * chunk : c->past[q];
                int to = phase == 0 ? from + chunk : c->past[q] + c->fresh[q];
                to = phase == 0 && to > c->past[q] ? c->past[q] : to;
                if (from >= to)
                    continue;
                for (int b = 0; b < max_blocks; b++) /* blocks of a sequence are scattered */
                    table[n_seqs * max_blocks + b] = b * c->n_seqs + (q + b) % c->n_seqs;
                for (int t = from; t < to; t++, n_rows++) {
                    position[n_rows] = t;
                    row_seq[n_rows] = n_seqs;
                    slot[n_rows] = table[n_seqs * max_blocks + t / BLOCK_TOKENS] * BLOCK_TOKENS +
                                   t % BLOCK_TOKENS;
                }
                kv_len[n_seqs++] = to;
                indptr[n_seqs] = n_rows;
            }
            if (n_rows == 0) {
                free(table);
                break;
            }
            float *qkv = xcalloc((size_t)n_rows * (size_t)width, 4);
            for (int i = 0, k = 0; i < n_rows; i++) {
                /* A token's values depend on its sequence and position alone. */
                int q = keep >= 0 ? keep : -1;
                for (k = 0; q < 0; k++) {
                    int seen = -1;
                    for (int j = 0; j < c->n_seqs; j++) {
                        int from = phase == 0 ? piece * chunk : c->past[j];
                        int to = phase == 0 ? from + chunk : c->past[j] + c->fresh[j];
                        to = phase == 0 && to > c->past[j] ? c->past[j] : to;
                        if (from < to && ++seen == row_seq[i])
                            q = j;
                    }
                }
                float *x = activations((size_t)width, 1000 + (uint64_t)(q * 10000 + position[i]));
                memcpy(qkv + (size_t)i * (size_t)width, x, (size_t)width * 4);
                free(x);
            }
            struct batch batch = {.n_rows = n_rows,
                                  .n_seqs = n_seqs,
                                  .max_blocks = max_blocks,
                                  .seq_indptr = indptr,
                                  .kv_len = kv_len,
                                  .position = position,
                                  .d_seq_indptr = dev_put(d, indptr, sizeof indptr),
                                  .d_kv_len = dev_put(d, kv_len, sizeof kv_len),
                                  .d_position = dev_put(d, position, sizeof position),
                                  .d_row_seq = dev_put(d, row_seq, sizeof row_seq),
                                  .d_slot = dev_put(d, slot, sizeof slot),
                                  .d_block_table = dev_put(d, table, (size_t)(4 * max_blocks) * 4)};
            struct devptr d_qkv = put_activations(d, qkv, (size_t)n_rows * (size_t)width);
            d->ops->rope_kv_write(d->be, d_qkv, &kv, &batch, s, &rope);
            if (phase == 1) {
                size_t n = (size_t)n_rows * (size_t)(s->n_heads * s->head_dim);
                struct devptr d_y = empty_activations(d, n);
                d->ops->attention(d->be, d_y, d_qkv, &kv, &batch, s);
                float *y = get_activations(d, d_y, n);
                memcpy(at, y, n * 4);
                free(y);
            }
            struct err err = {0};
            assert_ok(d->ops->sync(d->be, &err), err);
            free(qkv);
            free(table);
            if (phase == 1)
                break;
        }
    }
    dev_free_held(d);
    free(cos_sin);
    free(norm);
    return result;
}

static void attention_agrees_with_ref(void **state)
{
    (void)state;
    NEEDS_GPU();
    for (size_t i = 0; i < COUNT(attention_cases); i++) {
        const struct attention_case *c = &attention_cases[i];
        size_t rows = 0;
        for (int q = 0; q < c->n_seqs; q++)
            rows += (size_t)c->fresh[q];
        float *y = run_attention(&gpu, c, -1, 128), *r = run_attention(&ref, c, -1, 128);
        compare(c->what, y, r, rows * (size_t)(c->shape.n_heads * c->shape.head_dim), BOUND);
        free(y);
        free(r);
    }
}

static void a_row_of_attention_has_the_same_bits_alone_and_however_its_past_was_cut(void **state)
{
    (void)state;
    NEEDS_GPU();
    for (size_t i = 0; i < COUNT(attention_cases); i++) {
        const struct attention_case *c = &attention_cases[i];
        size_t width = (size_t)(c->shape.n_heads * c->shape.head_dim), at = 0;
        float *whole = run_attention(&gpu, c, -1, 128);
        for (int q = 0; q < c->n_seqs; q++) {
            float *alone = run_attention(&gpu, c, q, 50);
            if (memcmp(alone, whole + at * width, (size_t)c->fresh[q] * width * 4) != 0)
                fail_msg("%s: sequence %d differs when it is alone", c->what, q);
            at += (size_t)c->fresh[q];
            free(alone);
        }
        free(whole);
    }
}

/* A cache of whole sequences, and steps over any of their rows: a step sees the keys up to its own
 * last row, while the cache holds what comes later too. */
enum { SCENE_SEQS = 64 };

struct scene {
    const struct attention_shape *shape;
    struct kv_layer kv;
    int n_seqs, len[SCENE_SEQS];
    float *x[SCENE_SEQS]; /* [len, width]: q, k, v */
    int max_blocks;
    int32_t *table; /* [n_seqs, max_blocks], scattered */
};

struct scene_rows { /* rows [from, to) of a sequence */
    int seq, from, to;
};

static int scene_width(const struct scene *c)
{
    return (c->shape->n_heads + 2 * c->shape->n_kv_heads) * c->shape->head_dim;
}

/* One step; attention's result for all of its rows, or NULL when it only writes the cache. */
static float *scene_step(struct dev *d, const struct scene *c, const struct scene_rows *rows, int n,
                         bool write)
{
    size_t width = (size_t)scene_width(c);
    int held = d->n_held, n_rows = 0;
    int32_t indptr[SCENE_SEQS + 1] = {0}, kv_len[SCENE_SEQS], position[512], slot[512],
                                row_seq[512];
    int32_t *table = xcalloc((size_t)(n * c->max_blocks), sizeof *table);
    float *qkv = xcalloc(512 * width, 4);
    for (int i = 0; i < n; i++) {
        const int32_t *blocks = c->table + rows[i].seq * c->max_blocks;
        memcpy(table + i * c->max_blocks, blocks, (size_t)c->max_blocks * 4);
        for (int t = rows[i].from; t < rows[i].to; t++, n_rows++) {
            position[n_rows] = t;
            row_seq[n_rows] = i;
            slot[n_rows] = blocks[t / BLOCK_TOKENS] * BLOCK_TOKENS + t % BLOCK_TOKENS;
            memcpy(qkv + (size_t)n_rows * width, c->x[rows[i].seq] + (size_t)t * width, width * 4);
        }
        kv_len[i] = rows[i].to;
        indptr[i + 1] = n_rows;
    }
    struct batch batch = {
        .n_rows = n_rows,
        .n_seqs = n,
        .max_blocks = c->max_blocks,
        .seq_indptr = indptr,
        .kv_len = kv_len,
        .position = position,
        .d_seq_indptr = dev_put(d, indptr, (size_t)(n + 1) * 4),
        .d_kv_len = dev_put(d, kv_len, (size_t)n * 4),
        .d_position = dev_put(d, position, (size_t)n_rows * 4),
        .d_row_seq = dev_put(d, row_seq, (size_t)n_rows * 4),
        .d_slot = dev_put(d, slot, (size_t)n_rows * 4),
        .d_block_table = dev_put(d, table, (size_t)(n * c->max_blocks) * 4),
    };
    struct devptr d_qkv = put_activations(d, qkv, (size_t)n_rows * width);
    float *y = NULL;
    if (write) {
        d->ops->rope_kv_write(d->be, d_qkv, &c->kv, &batch, c->shape, NULL);
    } else {
        size_t n_y = (size_t)n_rows * (size_t)(c->shape->n_heads * c->shape->head_dim);
        struct devptr d_y = empty_activations(d, n_y);
        d->ops->attention(d->be, d_y, d_qkv, &c->kv, &batch, c->shape);
        y = get_activations(d, d_y, n_y);
    }
    struct err err = {0};
    assert_ok(d->ops->sync(d->be, &err), err);
    while (d->n_held > held)
        d->ops->mem_free(d->be, d->held[--d->n_held]);
    free(table);
    free(qkv);
    return y;
}

static struct scene scene_create(const struct attention_shape *shape, int n_seqs, const int *len)
{
    struct scene c = {.shape = shape, .n_seqs = n_seqs};
    for (int s = 0; s < n_seqs; s++) {
        c.len[s] = len[s];
        c.x[s] = activations((size_t)len[s] * (size_t)scene_width(&c), 77 + (uint64_t)s);
        int blocks = (len[s] + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
        c.max_blocks = blocks > c.max_blocks ? blocks : c.max_blocks;
    }
    int n_blocks = n_seqs * c.max_blocks;
    c.table = xcalloc((size_t)n_blocks, sizeof *c.table);
    for (int i = 0; i < n_blocks; i++)
        c.table[i] = (int32_t)((int64_t)i * 7919 % n_blocks); /* a prime: a permutation */
    return c;
}

static void scene_fill(struct dev *d, struct scene *c)
{
    size_t n = (size_t)(c->n_seqs * c->max_blocks * BLOCK_TOKENS) *
               (size_t)(c->shape->n_kv_heads * c->shape->head_dim);
    enum dtype dtype = d == &ref ? DTYPE_F32 : DTYPE_BF16;
    c->kv = (struct kv_layer){empty_activations(d, n), empty_activations(d, n), dtype};
    for (int s = 0; s < c->n_seqs; s++)
        for (int t = 0; t < c->len[s]; t += 512)
            scene_step(d, c, &(struct scene_rows){s, t, t + 512 < c->len[s] ? t + 512 : c->len[s]},
                       1, true);
}

static void scene_free(struct scene *c)
{
    for (int s = 0; s < c->n_seqs; s++)
        free(c->x[s]);
    free(c->table);
}

static const struct attention_shape scene_shapes[] = {
    {8, 2, 64, 0.125f, 0, 0},    {4, 1, 128, 0.088f, 0, 0}, {8, 1, 128, 0.088f, 0, 100},
    {4, 2, 256, 0.0625f, 20, 0}, {3, 3, 80, 0.11f, 0, 24},  {14, 2, 96, 0.1f, 30, 300},
    {20, 1, 64, 0.5f, 0, 0},     {3, 1, 40, 0.15f, 0, 0},
};

static void a_row_decoded_has_the_same_bits_as_in_a_prefill_chunk_of_any_size(void **state)
{
    (void)state;
    NEEDS_GPU();
    /* 512 rows, the edges of tiles (64) and pieces (256) among them: 63, 64, 65, 255, 256, 257,
     * 511, 512, 519. */
    enum { FROM = 8, TO = 520 };
    static const int chunks[] = {512, 1, 7, 50, 128, 300};
    for (size_t i = 0; i < COUNT(scene_shapes); i++) {
        const struct attention_shape *shape = &scene_shapes[i];
        size_t width = (size_t)(shape->n_heads * shape->head_dim);
        struct scene c = scene_create(shape, 1, (const int[]){TO + 30});
        scene_fill(&ref, &c);
        float *r = scene_step(&ref, &c, &(struct scene_rows){0, FROM, TO}, 1, false);
        scene_fill(&gpu, &c);
        float *whole = NULL;
        for (size_t k = 0; k < COUNT(chunks); k++) {
            float *all = xcalloc((TO - FROM) * width, 4);
            for (int t = FROM; t < TO; t += chunks[k]) {
                int to = t + chunks[k] < TO ? t + chunks[k] : TO;
                float *y = scene_step(&gpu, &c, &(struct scene_rows){0, t, to}, 1, false);
                memcpy(all + (size_t)(t - FROM) * width, y, (size_t)(to - t) * width * 4);
                free(y);
            }
            char what[96];
            snprintf(what, sizeof what, "%d heads on %d of %d, window %d, chunks of %d",
                     shape->n_heads, shape->n_kv_heads, shape->head_dim, shape->window, chunks[k]);
            compare(what, all, r, (TO - FROM) * width, BOUND);
            if (whole == NULL) {
                whole = all;
                continue;
            }
            for (size_t t = 0; t < TO - FROM; t++)
                if (memcmp(all + t * width, whole + t * width, width * 4) != 0)
                    fail_msg("%s: the row at position %zu differs from the one in a chunk of 512",
                             what, FROM + t);
            free(all);
        }
        free(whole);
        free(r);
        dev_free_held(&gpu);
        dev_free_held(&ref);
        scene_free(&c);
    }
}

static void decodes_of_all_lengths_share_a_step_and_each_has_the_bits_it_has_alone(void **state)
{
    (void)state;
    NEEDS_GPU();
    static const struct attention_shape shapes[] = {
        {8, 2, 64, 0.125f, 0, 0}, {4, 1, 128, 0.088f, 0, 0}, {4, 1, 128, 0.088f, 0, 1000}};
    int len[SCENE_SEQS];
    for (int s = 0; s < SCENE_SEQS; s++)
        len[s] = 1 + s * 37 % SCENE_SEQS * 2999 / (SCENE_SEQS - 1); /* 1 to 3000 */
    for (size_t i = 0; i < COUNT(shapes); i++) {
        size_t width = (size_t)(shapes[i].n_heads * shapes[i].head_dim);
        struct scene c = scene_create(&shapes[i], SCENE_SEQS, len);
        struct scene_rows last[SCENE_SEQS], mixed[SCENE_SEQS];
        for (int s = 0; s < SCENE_SEQS; s++) {
            last[s] = (struct scene_rows){s, len[s] - 1, len[s]};
            int more = s % 16 == 3 ? 100 : s % 16 == 7 ? 2 : 1; /* prefill beside decode */
            mixed[s] = (struct scene_rows){s, len[s] > more ? len[s] - more : 0, len[s]};
        }
        scene_fill(&ref, &c);
        float *r = scene_step(&ref, &c, last, SCENE_SEQS, false);
        scene_fill(&gpu, &c);
        float *y = scene_step(&gpu, &c, last, SCENE_SEQS, false);
        compare("64 decodes", y, r, SCENE_SEQS * width, BOUND);
        float *beside = scene_step(&gpu, &c, mixed, SCENE_SEQS, false);
        size_t end = 0;
        for (int s = 0; s < SCENE_SEQS; s++) {
            float *alone = scene_step(&gpu, &c, &last[s], 1, false), *row = y + (size_t)s * width;
            if (memcmp(alone, row, width * 4) != 0)
                fail_msg("shape %zu: the decode at length %d differs when it is alone", i, len[s]);
            end += (size_t)(mixed[s].to - mixed[s].from);
            if (memcmp(beside + (end - 1) * width, row, width * 4) != 0)
                fail_msg("shape %zu: the row at length %d differs in a mixed step", i, len[s]);
            free(alone);
        }
        free(beside);
        free(y);
        free(r);
        dev_free_held(&gpu);
        dev_free_held(&ref);
        scene_free(&c);
    }
}

static void a_step_of_more_pieces_than_scratch_holds_gives_the_same_bits(void **state)
{
    (void)state;
    NEEDS_GPU();
    /* 64 sequences of 4 rows of 16 heads (4 tiles of 16 query rows) and 16 pieces: 4,096 items, and
     * 64 MiB hold 4,033 results of head_dim 256. All of them read one sequence's keys. */
    enum { LEN = 4096, ROWS = 4 };
    const struct attention_shape shape = {16, 1, 256, 0.0625f, 0, 0};
    size_t row = 16 * 256;
    struct scene c = scene_create(&shape, 1, (const int[]){LEN});
    scene_fill(&gpu, &c);
    struct scene_rows rows[SCENE_SEQS];
    for (int s = 0; s < SCENE_SEQS; s++) {
        int to = LEN - s * 37 % 250;
        rows[s] = (struct scene_rows){0, to - ROWS, to};
    }
    float *y = scene_step(&gpu, &c, rows, SCENE_SEQS, false);
    for (int s = 0; s < SCENE_SEQS; s++) {
        float *alone = scene_step(&gpu, &c, &rows[s], 1, false);
        if (memcmp(alone, y + (size_t)s * ROWS * row, ROWS * row * 4) != 0)
            fail_msg("the rows up to position %d differ when they are alone", rows[s].to);
        free(alone);
    }
    free(y);
    dev_free_held(&gpu);
    scene_free(&c);
}

static void copied_blocks_are_equal_and_copies_take_effect_in_order(void **state)
{
    (void)state;
    NEEDS_GPU();
    enum { BLOCKS = 400, PAIRS = 200 };
    const struct attention_shape shape = {2, 2, 40, 1, 0, 0};
    size_t n = (size_t)(BLOCKS * BLOCK_TOKENS * 2 * 40);
    int32_t src[PAIRS + 3], dst[PAIRS + 3];
    for (int i = 0; i < PAIRS; i++) {
        src[i] = i * 7 % PAIRS;
        dst[i] = PAIRS + i;
    }
    /* A chain: each reads what the one before wrote, and the last writes what the first read. */
    const int32_t chain[4] = {0, 1, 2, 0};
    for (int i = 0; i < 3; i++) {
        src[PAIRS + i] = chain[i];
        dst[PAIRS + i] = chain[i + 1];
    }
    float *x = activations(n, 5), *v = activations(n, 6), *got[2][2];
    struct dev *devs[2] = {&ref, &gpu};
    for (int d = 0; d < 2; d++) {
        struct kv_layer kv = {put_activations(devs[d], x, n), put_activations(devs[d], v, n),
                              d == 0 ? DTYPE_F32 : DTYPE_BF16};
        devs[d]->ops->kv_copy_blocks(devs[d]->be, &kv, &shape, src, dst, PAIRS + 3);
        got[d][0] = get_activations(devs[d], kv.k, n);
        got[d][1] = get_activations(devs[d], kv.v, n);
        dev_free_held(devs[d]);
    }
    for (int side = 0; side < 2; side++) {
        assert_memory_equal(got[0][side], got[1][side], n * 4);
        free(got[0][side]);
        free(got[1][side]);
    }
    free(x);
    free(v);
}

/* ---- the rest
 * ---------------------------------------------------------------------------------------------- */

static void norms_swiglu_embed_and_gather_agree_with_ref(void **state)
{
    (void)state;
    NEEDS_GPU();
    static const int widths[] = {1, 5, 64, 172, 768, 4096};
    for (size_t k = 0; k < COUNT(widths); k++) {
        int d = widths[k], n = 7, vocab = 50;
        size_t size = (size_t)(n * d);
        float *x = activations(2 * size, 21), *residual = activations(size, 22);
        float *w = random_f32((size_t)d, 23, 1.0f), *out[2][5];
        void *table = random_as(DTYPE_BF16, (size_t)(vocab * d), 24, 1.0f);
        int32_t ids[] = {3, 49, 0, 3, 17, 31, 8}, rows[] = {6, 0, 0, 5, 1, 2, 3};
        for (int side = 0; side < 2; side++) {
            struct dev *dev = side == 0 ? &gpu : &ref;
            struct err err = {0};
            struct weight *weight;
            const void *part = table;
            assert_ok(
                dev->ops->weight_create(dev->be, &weight, &part, &vocab, 1, d, DTYPE_BF16, &err),
                err);
            struct devptr d_x = put_activations(dev, x, 2 * size),
                          d_r = put_activations(dev, residual, size);
            struct devptr d_w = dev_put(dev, w, (size_t)d * 4), y[5];
            for (int i = 0; i < 5; i++)
                y[i] = empty_activations(dev, size);
            struct devptr d_ids = dev_put(dev, ids, sizeof ids),
                          d_rows = dev_put(dev, rows, sizeof rows);
            dev->ops->add_rmsnorm(dev->be, y[0], d_r, d_x, d_w, n, d, 1e-5f, 0);
            dev->ops->add_rmsnorm(dev->be, y[1], d_r, (struct devptr){0}, d_w, n, d, 1e-5f, 1);
            dev->ops->swiglu(dev->be, y[2], d_x, n, d);
            dev->ops->embed(dev->be, y[3], d_ids, weight, n, 1.0f);
            dev->ops->gather_rows(dev->be, y[4], d_x, d_rows, n, d);
            for (int i = 0; i < 5; i++)
                out[side][i] = get_activations(dev, y[i], size);
            dev->ops->weight_free(dev->be, weight);
            dev_free_held(dev);
        }
        compare("add_rmsnorm", out[0][0], out[1][0], size, BOUND);
        compare("rmsnorm, offset 1", out[0][1], out[1][1], size, BOUND);
        compare("swiglu", out[0][2], out[1][2], size, BOUND);
        assert_memory_equal(out[0][3], out[1][3], size * 4);
        assert_memory_equal(out[0][4], out[1][4], size * 4);
        for (int side = 0; side < 2; side++)
            for (int i = 0; i < 5; i++)
                free(out[side][i]);
        free(x);
        free(residual);
        free(w);
        free(table);
    }
}

static void sampling_agrees_with_ref(void **state)
{
    (void)state;
    NEEDS_GPU();
    static const int vocabs[] = {7, 512, 4096, 32001};
    for (size_t k = 0; k < COUNT(vocabs); k++) {
        int vocab = vocabs[k], n = 6;
        float *logits = random_f32((size_t)(n * vocab), 31 + k, 3.0f);
        for (int i = 0; i < n; i++) /* ties for the best: the lowest id wins */
            logits[i * vocab + vocab - 1] = logits[i * vocab + 2] = 20;
        int32_t history[] = {1, 2, 2, 5};
        struct sample_params p[6] = {
            {.temperature = 0, .top_p = 1, .repetition_penalty = 1, .n_top = 5},
            {.temperature = 0.8f, .top_p = 0.9f, .repetition_penalty = 1, .seed = 5, .position = 9},
            {.temperature = 1.5f,
             .top_k = 40,
             .top_p = 1,
             .repetition_penalty = 1,
             .seed = 6,
             .n_top = 20},
            {.temperature = 1, .min_p = 0.05f, .top_p = 1, .repetition_penalty = 1, .seed = 7},
            {.temperature = 0, .top_p = 1, .repetition_penalty = 1.3f, .n_top = 1},
            {.temperature = 0, .top_p = 1, .repetition_penalty = 1, .presence_penalty = 30},
        };
        struct sample_history h[6] = {{0}};
        for (int i = 4; i < 6; i++)
            h[i] = (struct sample_history){.tokens = history, .n_prompt = 1, .n_tokens = 4};
        struct sample_result got[6], want[6];
        struct devptr g = dev_put(&gpu, logits, (size_t)(n * vocab) * 4);
        struct devptr r = dev_put(&ref, logits, (size_t)(n * vocab) * 4);
        struct err err = {0};
        gpu.ops->sample(gpu.be, got, (struct devptr){0}, g, n, vocab, p, h);
        assert_ok(gpu.ops->sync(gpu.be, &err), err);
        ref.ops->sample(ref.be, want, (struct devptr){0}, r, n, vocab, p, h);
        for (int i = 0; i < n; i++) {
            assert_int_equal(got[i].token, want[i].token);
            assert_true(fabsf(got[i].logprob - want[i].logprob) < 2e-5f);
            assert_int_equal(got[i].n_top, want[i].n_top);
            for (int t = 0; t < got[i].n_top; t++) {
                assert_int_equal(got[i].top_ids[t], want[i].top_ids[t]);
                assert_true(fabsf(got[i].top_logprobs[t] - want[i].top_logprobs[t]) < 2e-5f);
            }
        }
        dev_free_held(&gpu);
        dev_free_held(&ref);
        free(logits);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(attention_agrees_with_ref),
        cmocka_unit_test(a_row_of_attention_has_the_same_bits_alone_and_however_its_past_was_cut),
        cmocka_unit_test(a_row_decoded_has_the_same_bits_as_in_a_prefill_chunk_of_any_size),
        cmocka_unit_test(decodes_of_all_lengths_share_a_step_and_each_has_the_bits_it_has_alone),
        cmocka_unit_test(a_step_of_more_pieces_than_scratch_holds_gives_the_same_bits),
        cmocka_unit_test(copied_blocks_are_equal_and_copies_take_effect_in_order),
        cmocka_unit_test(norms_swiglu_embed_and_gather_agree_with_ref),
        cmocka_unit_test(sampling_agrees_with_ref),
    };
    return RUN_BESIDE_REF(tests);
}
