/* variant: both. rope_kv_write, attention and kv_copy_blocks: cpu against ref over head shapes,
 * cache dtypes, windows and caps; and bit-equality of a row under any chunking of its prompt and
 * any neighbours.
 */
#include "tests/ops/harness.h"

enum { SEQS_MAX = 6, POOL_BLOCKS = 80, MAX_BLOCKS = 16, CONTEXT = MAX_BLOCKS * BLOCK_TOKENS };

struct attention_case {
    const char *what;
    struct attention_shape shape;
    int rotary_dim; /* 0: no rope */
    bool norms;
    enum dtype kv;
    int n_seqs, len[SEQS_MAX]; /* tokens of each sequence in all */
    int last[SEQS_MAX];        /* of these, rows of the step that is compared */
};

#define SHAPE(heads, kv_heads, dim, cap, win)                                         \
    {                                                                                 \
        .n_heads = heads, .n_kv_heads = kv_heads, .head_dim = dim, .scale = 1.0f / 6, \
        .softcap = cap, .window = win                                                 \
    }

static const struct attention_case cases[] = {
    {"one token", SHAPE(1, 1, 8, 0, 0), 8, false, DTYPE_F32, 1, {1}, {1}},
    {"stories260K", SHAPE(8, 4, 8, 0, 0), 8, false, DTYPE_F32, 3, {5, 130, 17}, {5, 1, 3}},
    {"110M, f32 cache",
     SHAPE(12, 12, 64, 0, 0),
     64,
     false,
     DTYPE_F32,
     4,
     {64, 65, 200, 1},
     {1, 65, 8, 1}},
    {"110M, f16 cache",
     SHAPE(12, 12, 64, 0, 0),
     64,
     false,
     DTYPE_F16,
     3,
     {63, 129, 16},
     {1, 50, 16}},
    {"grouped heads, bf16 cache",
     SHAPE(8, 2, 128, 0, 0),
     128,
     true,
     DTYPE_BF16,
     3,
     {100, 256, 3},
     {33, 1, 3}},
    {"one KV head, odd head_dim",
     SHAPE(5, 1, 20, 0, 0),
     20,
     false,
     DTYPE_F32,
     2,
     {70, 90},
     {70, 2}},
    {"head_dim below a vector, f16",
     SHAPE(3, 3, 6, 0, 0),
     4,
     false,
     DTYPE_F16,
     2,
     {40, 81},
     {7, 9}},
    {"head_dim 80, partial rotation",
     SHAPE(4, 4, 80, 0, 0),
     32,
     false,
     DTYPE_BF16,
     2,
     {66, 150},
     {66, 1}},
    {"sliding window", SHAPE(4, 2, 32, 0, 40), 32, true, DTYPE_F32, 3, {30, 41, 240}, {30, 41, 70}},
    {"window across a piece, one query a time",
     SHAPE(2, 2, 16, 0, 5),
     16,
     false,
     DTYPE_F32,
     2,
     {68, 131},
     {10, 1}},
    {"window of one key", SHAPE(2, 1, 16, 0, 1), 16, false, DTYPE_F32, 1, {70}, {12}},
    {"soft cap", SHAPE(4, 2, 64, 30, 0), 64, false, DTYPE_F32, 2, {90, 150}, {90, 3}},
    {"soft cap and window, no rope",
     SHAPE(4, 4, 48, 2, 33),
     0,
     false,
     DTYPE_F32,
     2,
     {90, 150},
     {5, 20}},
};

struct fixture {
    const struct attention_case *c;
    struct dev dev;
    struct kv_layer kv;
    struct devptr cos_sin, norm_q, norm_k;
    float *qkv[SEQS_MAX]; /* [len, stride], before rope */
    size_t stride;
    int32_t blocks[SEQS_MAX][MAX_BLOCKS];
};

/* Blocks of the pool in an order that looks like a pool in use. */
static int32_t block_of(int seq, int i)
{
    return (int32_t)(((seq * MAX_BLOCKS + i) * 37 + 5) % POOL_BLOCKS);
}

static void fixture_open(struct fixture *f, const struct attention_case *c, const char *backend,
                         int n_threads, const char *isa)
{
    *f = (struct fixture){.c = c};
    dev_open(&f->dev, backend, n_threads, isa);
    const struct attention_shape *s = &c->shape;
    f->stride = (size_t)((s->n_heads + 2 * s->n_kv_heads) * s->head_dim);
    size_t pool = (size_t)(POOL_BLOCKS * BLOCK_TOKENS * s->n_kv_heads * s->head_dim) *
                  dtype_bytes(c->kv);
    void *nan = xmalloc(pool);
    memset(nan, 0xff, pool); /* slots that nobody wrote must not be used */
    f->kv = (struct kv_layer){dev_put(&f->dev, nan, pool), dev_put(&f->dev, nan, pool), c->kv};
    free(nan);
    if (c->rotary_dim > 0) {
        float *table = xcalloc((size_t)(CONTEXT * c->rotary_dim), sizeof *table);
        int half = c->rotary_dim / 2;
        for (int p = 0; p < CONTEXT; p++)
            for (int i = 0; i < half; i++) {
                double angle = p * pow(10000, -2.0 * i / c->rotary_dim);
                table[p * c->rotary_dim + i] = (float)cos(angle);
                table[p * c->rotary_dim + half + i] = (float)sin(angle);
            }
        f->cos_sin = dev_put(&f->dev, table, (size_t)(CONTEXT * c->rotary_dim) * sizeof *table);
        free(table);
    }
    if (c->norms) {
        float *w = random_f32((size_t)s->head_dim, 77, 1);
        f->norm_q = dev_put(&f->dev, w, (size_t)s->head_dim * sizeof *w);
        f->norm_k = dev_put(&f->dev, w, (size_t)s->head_dim * sizeof *w);
        free(w);
    }
    for (int q = 0; q < c->n_seqs; q++) {
        f->qkv[q] = random_f32((size_t)c->len[q] * f->stride, 1000 + (uint64_t)q, 1.5f);
        for (int i = 0; i < MAX_BLOCKS; i++)
            f->blocks[q][i] = i * BLOCK_TOKENS < c->len[q] ? block_of(q, i) : -1;
    }
}

static void fixture_close(struct fixture *f)
{
    for (int q = 0; q < f->c->n_seqs; q++)
        free(f->qkv[q]);
    dev_close(&f->dev);
}

/* One step over tokens [from[q], to[q]) of each sequence (none when equal): writes K and V,
 * attends. y (may be NULL) gets the rows of all sequences in order. */
static void step(struct fixture *f, const int *from, const int *to, float *y)
{
    const struct attention_shape *s = &f->c->shape;
    int32_t indptr[SEQS_MAX + 1] = {0}, kv_len[SEQS_MAX], table[SEQS_MAX * MAX_BLOCKS];
    int32_t position[SEQS_MAX * CONTEXT], slot[SEQS_MAX * CONTEXT], row_seq[SEQS_MAX * CONTEXT];
    int n = 0, n_seqs = 0, keep = f->dev.n_held;
    for (int q = 0; q < f->c->n_seqs; q++) {
        if (from[q] >= to[q])
            continue;
        memcpy(table + n_seqs * MAX_BLOCKS, f->blocks[q], sizeof f->blocks[q]);
        for (int p = from[q]; p < to[q]; p++, n++) {
            position[n] = p;
            slot[n] = f->blocks[q][p / BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS;
            row_seq[n] = n_seqs;
        }
        kv_len[n_seqs++] = to[q];
        indptr[n_seqs] = n;
    }
    float *rows = xcalloc((size_t)n * f->stride, sizeof *rows);
    for (int q = 0, row = 0; q < f->c->n_seqs; q++)
        if (from[q] < to[q]) {
            memcpy(rows + (size_t)row * f->stride, f->qkv[q] + (size_t)from[q] * f->stride,
                   (size_t)(to[q] - from[q]) * f->stride * sizeof *rows);
            row += to[q] - from[q];
        }
    struct batch batch = {
        .n_rows = n,
        .n_seqs = n_seqs,
        .max_blocks = MAX_BLOCKS,
        .seq_indptr = indptr,
        .kv_len = kv_len,
        .position = position,
        .d_seq_indptr = dev_put(&f->dev, indptr, sizeof indptr),
        .d_kv_len = dev_put(&f->dev, kv_len, sizeof kv_len),
        .d_position = dev_put(&f->dev, position, sizeof position),
        .d_row_seq = dev_put(&f->dev, row_seq, sizeof row_seq),
        .d_slot = dev_put(&f->dev, slot, sizeof slot),
        .d_block_table = dev_put(&f->dev, table, sizeof table),
    };
    struct rope_shape rope = {f->c->rotary_dim, f->cos_sin, f->norm_q, f->norm_k, 1e-6f};
    size_t y_bytes = (size_t)(n * s->n_heads * s->head_dim) * sizeof *y;
    struct devptr qkv = dev_put(&f->dev, rows, (size_t)n * f->stride * sizeof *rows);
    struct devptr d_y = dev_alloc(&f->dev, y_bytes);
    f->dev.ops->rope_kv_write(f->dev.be, qkv, &f->kv, &batch, s,
                              f->c->rotary_dim > 0 ? &rope : NULL);
    f->dev.ops->attention(f->dev.be, d_y, qkv, &f->kv, &batch, s);
    if (y != NULL)
        dev_get(&f->dev, y, d_y, y_bytes);
    while (f->dev.n_held > keep)
        f->dev.ops->mem_free(f->dev.be, f->dev.held[--f->dev.n_held]);
    free(rows);
}

static size_t row_width(const struct fixture *f)
{
    return (size_t)(f->c->shape.n_heads * f->c->shape.head_dim);
}

static void cpu_attention_answers_to_ref(void **state)
{
    (void)state;
    double worst = 0;
    for (size_t i = 0; i < COUNT(cases); i++)
        for (int v = 0; v < isa_variants_count(false); v++) {
            const struct attention_case *c = &cases[i];
            struct fixture f[2];
            float *y[2];
            size_t n = 0;
            for (int b = 0; b < 2; b++) {
                int zero[SEQS_MAX] = {0}, split[SEQS_MAX];
                fixture_open(&f[b], c, b ? "cpu" : "ref", 2, isa_variants[v]);
                n = 0;
                for (int q = 0; q < c->n_seqs; q++) {
                    split[q] = c->len[q] - c->last[q];
                    n += (size_t)c->last[q] * row_width(&f[b]);
                }
                y[b] = xcalloc(n, sizeof *y[b]);
                step(&f[b], zero, split, NULL);
                step(&f[b], split, c->len, y[b]);
            }
            double e = nmse(y[1], y[0], n);
            if (!(e <= 1e-10))
                fail_msg("%s, %s: nmse %g against ref, bound 1e-10", c->what, isa_variants[v], e);
            worst = e > worst ? e : worst;
            for (int b = 0; b < 2; b++) {
                free(y[b]);
                fixture_close(&f[b]);
            }
        }
    printf("note: attention: %zu cases, worst nmse %.2g\n", COUNT(cases), worst);
}

static void a_row_has_the_same_bits_under_any_chunking_and_beside_any_neighbours(void **state)
{
    (void)state;
    static const int chunks[] = {1, 2, 3, 7, 16, 33, 64, 100};
    const char *const backends[] = {"cpu", "ref"};
    size_t n_compared = 0;
    for (size_t i = 0; i < COUNT(cases); i++)
        for (int b = 0; b < 2; b++)
            for (int v = 0; v < (b == 0 ? isa_variants_count(false) : 1); v++) {
                const struct attention_case *c = &cases[i];
                struct fixture whole, alone;
                int zero[SEQS_MAX] = {0}, row = 0;
                fixture_open(&whole, c, backends[b], 3, isa_variants[v]);
                size_t width = row_width(&whole);
                float *y = xcalloc((size_t)(SEQS_MAX * CONTEXT) * width, sizeof *y);
                float *part = xcalloc((size_t)CONTEXT * width, sizeof *part);
                step(&whole, zero, c->len, y); /* all prompts in one step */
                for (int q = 0; q < c->n_seqs; row += c->len[q++])
                    for (size_t k = b == 0 ? 0 : COUNT(chunks) - 2; k < COUNT(chunks); k++) {
                        int from[SEQS_MAX] = {0}, to[SEQS_MAX] = {0}, size = chunks[k];
                        if (size == 1 && c->len[q] > 140)
                            continue;
                        fixture_open(&alone, c, backends[b], 1, isa_variants[v]);
                        for (; from[q] < c->len[q]; from[q] = to[q]) {
                            to[q] = from[q] + size < c->len[q] ? from[q] + size : c->len[q];
                            step(&alone, from, to, part);
                            n_compared += (size_t)(to[q] - from[q]);
                            if (memcmp(part, y + (size_t)(row + from[q]) * width,
                                       (size_t)(to[q] - from[q]) * width * sizeof *y) != 0)
                                fail_msg("%s, %s %s: sequence %d in chunks of %d, tokens [%d, %d): "
                                         "not the bits of the whole batch",
                                         c->what, backends[b], b == 0 ? isa_variants[v] : "", q,
                                         size, from[q], to[q]);
                        }
                        fixture_close(&alone);
                    }
                free(part);
                free(y);
                fixture_close(&whole);
            }
    printf("note: attention: %zu rows compared bit by bit\n", n_compared);
}

static void a_later_token_that_is_not_a_number_leaves_earlier_rows_alone(void **state)
{
    (void)state;
    static const struct attention_case c = {
        "poisoned", SHAPE(4, 2, 32, 0, 0), 0, false, DTYPE_F32, 1, {70}, {70}};
    struct fixture f;
    int zero[SEQS_MAX] = {0};
    fixture_open(&f, &c, "cpu", 2, "");
    size_t width = row_width(&f);
    float *clean = xcalloc(70 * width, sizeof *clean),
          *poisoned = xcalloc(70 * width, sizeof *clean);
    step(&f, zero, c.len, clean);
    for (size_t i = 0; i < f.stride; i++)
        f.qkv[0][66 * f.stride + i] = NAN;
    step(&f, zero, c.len, poisoned);
    assert_memory_equal(clean, poisoned, 66 * width * sizeof *clean);
    assert_true(isnan(poisoned[66 * width]));
    free(clean);
    free(poisoned);
    fixture_close(&f);
}

static void rope_and_the_cache_answer_to_ref(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        const struct attention_case *c = &cases[i];
        const struct attention_shape *s = &c->shape;
        size_t n = (size_t)(POOL_BLOCKS * BLOCK_TOKENS * s->n_kv_heads * s->head_dim);
        int zero[SEQS_MAX] = {0};
        float *k[2];
        for (int b = 0; b < 2; b++) {
            struct fixture f;
            fixture_open(&f, c, b ? "cpu" : "ref", 2, "");
            step(&f, zero, c->len, NULL);
            void *raw = xmalloc(n * dtype_bytes(c->kv));
            dev_get(&f.dev, raw, f.kv.k, n * dtype_bytes(c->kv));
            k[b] = xcalloc(n, sizeof *k[b]);
            for (size_t e = 0; e < n; e++) {
                k[b][e] = element_f32(raw, c->kv, e);
                k[b][e] = isnan(k[b][e]) ? 12345.0f : k[b][e]; /* never written: equal on both */
            }
            free(raw);
            fixture_close(&f);
        }
        double e = nmse(k[1], k[0], n), bound = c->kv == DTYPE_F32 ? 1e-10 : 5e-5;
        if (!(e <= bound))
            fail_msg("%s: K cache has nmse %g against ref, bound %g", c->what, e, bound);
        free(k[0]);
        free(k[1]);
    }
}

static void copying_blocks_moves_exactly_these_bytes(void **state)
{
    (void)state;
    const char *const backends[] = {"ref", "cpu"};
    const struct attention_shape shape = SHAPE(4, 2, 6, 0, 0);
    static const int32_t src[] = {0, 3, 0}, dst[] = {5, 1, 2};
    for (size_t b = 0; b < COUNT(backends); b++)
        for (enum dtype t = DTYPE_F32; t <= DTYPE_BF16; t++) {
            struct dev dev;
            size_t block = (size_t)(BLOCK_TOKENS * 2 * 6), n = 6 * block, bytes = dtype_bytes(t);
            dev_open(&dev, backends[b], 1, "");
            char *k = random_as(t, n, 1, 1), *v = random_as(t, n, 2, 1), *got = xmalloc(n * bytes);
            struct kv_layer kv = {dev_put(&dev, k, n * bytes), dev_put(&dev, v, n * bytes), t};
            dev.ops->kv_copy_blocks(dev.be, &kv, &shape, src, dst, 3);
            for (int i = 0; i < 3; i++) {
                memcpy(k + (size_t)dst[i] * block * bytes, k + (size_t)src[i] * block * bytes,
                       block * bytes);
                memcpy(v + (size_t)dst[i] * block * bytes, v + (size_t)src[i] * block * bytes,
                       block * bytes);
            }
            dev_get(&dev, got, kv.k, n * bytes);
            assert_memory_equal(got, k, n * bytes);
            dev_get(&dev, got, kv.v, n * bytes);
            assert_memory_equal(got, v, n * bytes);
            free(k);
            free(v);
            free(got);
            dev_close(&dev);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cpu_attention_answers_to_ref),
        cmocka_unit_test(a_row_has_the_same_bits_under_any_chunking_and_beside_any_neighbours),
        cmocka_unit_test(a_later_token_that_is_not_a_number_leaves_earlier_rows_alone),
        cmocka_unit_test(rope_and_the_cache_answer_to_ref),
        cmocka_unit_test(copying_blocks_moves_exactly_these_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
