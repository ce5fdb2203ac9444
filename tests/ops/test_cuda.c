/* variant: release. The CUDA backend against ref, and against itself in other company.
 *
 * Inputs are rounded to bf16 first, so that both sides compute with the same numbers; the bound is
 * ops.h's for bf16 activations. A machine without a Hopper GPU skips all of it and says so. */
#include "tests/ops/harness.h"

enum { SLOTS = 4 };

static const struct ops *cuda; /* NULL: not in this build */
static struct dev gpu, ref;
static bool have_gpu;

static int open_both(void **state)
{
    (void)state;
    struct err err = {0};
    struct backend_options options = {
        .max_rows = 512, .max_d = 16384, .max_rank = 1024, .max_seqs = 64, .max_context = 4096};
    cuda = ops_find("cuda", &err);
    gpu.ops = cuda;
    have_gpu = cuda != NULL && cuda->open(&gpu.be, &options, &err) == 0;
    if (!have_gpu)
        printf("note: CUDA tests are skipped: %s\n", err.message);
    ref.ops = ops_find("ref", &err);
    return ref.ops->open(&ref.be, &options, &err);
}

static int close_both(void **state)
{
    (void)state;
    dev_close(&ref);
    if (have_gpu)
        dev_close(&gpu);
    return 0;
}

#define NEEDS_GPU()    \
    do {               \
        if (!have_gpu) \
            skip();    \
    } while (0)

/* ---- activations: f32 for ref, bf16 for cuda
 * ---------------------------------------------------------- */

static float *activations(size_t n, uint64_t seed)
{
    float *x = random_f32(n, seed, 1.0f);
    for (size_t i = 0; i < n; i++)
        x[i] = bf16_to_f32(f32_to_bf16(x[i]));
    return x;
}

static struct devptr put_activations(struct dev *d, const float *x, size_t n)
{
    if (d == &ref)
        return dev_put(d, x, n * 4);
    uint16_t *h = xcalloc(n, 2);
    for (size_t i = 0; i < n; i++)
        h[i] = f32_to_bf16(x[i]);
    struct devptr p = dev_put(d, h, n * 2);
    struct err err = {0};
    assert_ok(d->ops->sync(d->be, &err), err);
    free(h);
    return p;
}

static struct devptr empty_activations(struct dev *d, size_t n)
{
    struct devptr p = dev_alloc(d, n * 4);
    uint8_t *poison = xmalloc(n * 4);
    memset(poison, 0xff, n * 4); /* NaN in every format */
    d->ops->upload(d->be, p, poison, n * 4);
    struct err err = {0};
    assert_ok(d->ops->sync(d->be, &err), err);
    free(poison);
    return p;
}

static float *get_activations(struct dev *d, struct devptr p, size_t n)
{
    float *x = xcalloc(n, 4);
    if (d == &ref) {
        dev_get(d, x, p, n * 4);
        return x;
    }
    uint16_t *h = xcalloc(n, 2);
    dev_get(d, h, p, n * 2);
    for (size_t i = 0; i < n; i++)
        x[i] = bf16_to_f32(h[i]);
    free(h);
    return x;
}

static void compare(const char *what, const float *y, const float *r, size_t n, double bound)
{
    double e = nmse(y, r, n);
    if (!(e <= bound))
        fail_msg("%s: normalised MSE %.3g, at most %.3g is allowed", what, e, bound);
}

enum { BOUND_NANO = 50000 }; /* 5e-5 */
#define BOUND (BOUND_NANO * 1e-9)

/* ---- linear
 * ---------------------------------------------------------------------------------------------- */

struct linear_case {
    const char *what;
    int d_in, n_parts, d_out[3];
    enum dtype weight, adapter;
    int n_rows;
    bool bias, y_f32;
    int rank[SLOTS][3];
    int n_segs;
    struct lora_seg segs[8];
};

static const struct linear_case linear_cases[] = {
    {"one row", 64, 1, {64}, DTYPE_BF16, DTYPE_BF16, 1, false, false, {{0}}, 0, {{0}}},
    {"down of stories260K", 172, 1, {64}, DTYPE_BF16, DTYPE_BF16, 7, true, false, {{0}}, 0, {{0}}},
    {"odd shape", 37, 1, {53}, DTYPE_BF16, DTYPE_BF16, 9, true, false, {{0}}, 0, {{0}}},
    {"odd shape, f16", 45, 2, {19, 30}, DTYPE_F16, DTYPE_F16, 13, true, false, {{0}}, 0, {{0}}},
    {"f32 weights", 130, 1, {77}, DTYPE_F32, DTYPE_F32, 11, true, true, {{0}}, 0, {{0}}},
    {"qkv of an 8B model",
     4096,
     3,
     {4096, 1024, 1024},
     DTYPE_BF16,
     DTYPE_BF16,
     3,
     false,
     false,
     {{16, 16, 16}, {8, 0, 64}, {128, 3, 1}, {0}},
     3,
     {{0, 1, 0, 1}, {1, 1, 1, 1}, {2, 1, 2, 1}}},
    {"64 rows, four adapters, base rows and an empty segment between",
     768,
     3,
     {768, 256, 256},
     DTYPE_BF16,
     DTYPE_BF16,
     64,
     true,
     false,
     {{16, 16, 16}, {8, 0, 64}, {128, 3, 1}, {0}},
     6,
     {{0, 9, 0, 1}, {9, 0, 1, 1}, {12, 20, 1, 1}, {32, 1, 2, 1}, {40, 8, 3, 1}, {48, 16, 0, 1}}},
    {"f16 adapters on f16 weights",
     256,
     2,
     {100, 60},
     DTYPE_F16,
     DTYPE_F16,
     20,
     false,
     false,
     {{16, 4}, {3, 0}, {0, 33}, {8, 8}},
     4,
     {{0, 4, 0, 1}, {4, 6, 1, 1}, {10, 1, 2, 1}, {11, 9, 3, 1}}},
    {"f32 adapters on bf16 weights, odd d_in",
     61,
     1,
     {150},
     DTYPE_BF16,
     DTYPE_F32,
     16,
     false,
     false,
     {{16}, {8}, {33}, {2}},
     4,
     {{0, 4, 0, 1}, {4, 4, 1, 1}, {8, 4, 2, 1}, {12, 4, 3, 1}}},
    {"an ensemble",
     80,
     2,
     {48, 48},
     DTYPE_BF16,
     DTYPE_BF16,
     10,
     true,
     false,
     {{4, 4}, {8, 0}, {0, 6}, {0}},
     4,
     {{0, 2, 0, 1}, {3, 5, 0, 0.25f}, {3, 5, 1, 0.75f}, {3, 5, 2, -0.5f}}},
    {"prefill",
     512,
     1,
     {1024},
     DTYPE_BF16,
     DTYPE_BF16,
     300,
     false,
     false,
     {{16}, {8}, {0}, {0}},
     2,
     {{0, 200, 0, 1}, {200, 100, 1, 1}}},
};

/* One run of a case on rows [first, first + n) of its input, with the segments that touch them. */
static float *run_linear(struct dev *d, const struct linear_case *c, int first, int n)
{
    int total = 0;
    for (int p = 0; p < c->n_parts; p++)
        total += c->d_out[p];
    float *x = activations((size_t)c->n_rows * (size_t)c->d_in, 1);
    float *bias = random_f32((size_t)total, 2, 1.0f);
    void *parts[3];
    const void *const_parts[3];
    for (int p = 0; p < c->n_parts; p++) {
        parts[p] = random_as(c->weight, (size_t)c->d_out[p] * (size_t)c->d_in, 3 + (uint64_t)p,
                             1.0f / sqrtf((float)c->d_in));
        const_parts[p] = parts[p];
    }
    struct weight *w;
    struct err err = {0};
    assert_ok(d->ops->weight_create(d->be, &w, const_parts, c->d_out, c->n_parts, c->d_in,
                                    c->weight, &err),
              err);
    struct lora_entry entries[3][SLOTS];
    struct lora_part lora_parts[3];
    int begin = 0;
    for (int p = 0; p < c->n_parts; p++) {
        for (int s = 0; s < SLOTS; s++) {
            int r = c->rank[s][p];
            void *a = random_as(c->adapter, (size_t)(r * c->d_in + 1), 100 + (uint64_t)(10 * p + s),
                                1.0f / sqrtf((float)c->d_in));
            void *b = random_as(c->adapter, (size_t)(r * c->d_out[p] + 1),
                                200 + (uint64_t)(10 * p + s), 1.0f);
            entries[p][s] = (struct lora_entry){
                .a = dev_put(d, a, (size_t)(r * c->d_in + 1) * dtype_bytes(c->adapter)),
                .b = dev_put(d, b, (size_t)(r * c->d_out[p] + 1) * dtype_bytes(c->adapter)),
                .rank = r,
                .scaling = 0.5f,
                .dtype = (int32_t)c->adapter,
            };
            assert_ok(d->ops->sync(d->be, &err), err);
            free(a);
            free(b);
        }
        lora_parts[p] = (struct lora_part){entries[p], dev_put(d, entries[p], sizeof entries[p]),
                                           begin, c->d_out[p]};
        begin += c->d_out[p];
    }
    struct lora_seg segs[8];
    int n_segs = 0;
    for (int i = 0; i < c->n_segs; i++) {
        int from = c->segs[i].row_begin < first ? first : c->segs[i].row_begin;
        int to = c->segs[i].row_begin + c->segs[i].n_rows;
        to = to > first + n ? first + n : to;
        if (from > to)
            continue;
        segs[n_segs] = c->segs[i];
        segs[n_segs].row_begin = from - first;
        segs[n_segs++].n_rows = to - from;
    }
    struct lora_step step = {n_segs, segs, dev_put(d, segs, sizeof segs)};
    struct lora_args lora = {&step, lora_parts, c->n_parts};
    struct devptr d_x = put_activations(d, x + (size_t)first * (size_t)c->d_in,
                                        (size_t)n * (size_t)c->d_in);
    struct devptr d_y = empty_activations(d, (size_t)n * (size_t)total);
    struct devptr d_bias = c->bias ? dev_put(d, bias, (size_t)total * 4) : (struct devptr){0};
    d->ops->linear(d->be, d_y, d_x, w, d_bias, n, c->y_f32, n_segs > 0 ? &lora : NULL);
    float *y;
    if (c->y_f32) {
        y = xcalloc((size_t)n * (size_t)total, 4);
        dev_get(d, y, d_y, (size_t)n * (size_t)total * 4);
    } else {
        y = get_activations(d, d_y, (size_t)n * (size_t)total);
    }
    d->ops->weight_free(d->be, w);
    dev_free_held(d);
    for (int p = 0; p < c->n_parts; p++)
        free(parts[p]);
    free(bias);
    free(x);
    return y;
}

static void linear_with_adapters_agrees_with_ref(void **state)
{
    (void)state;
    NEEDS_GPU();
    for (size_t i = 0; i < COUNT(linear_cases); i++) {
        const struct linear_case *c = &linear_cases[i];
        int total = c->d_out[0] + c->d_out[1] + c->d_out[2];
        float *y = run_linear(&gpu, c, 0, c->n_rows), *r = run_linear(&ref, c, 0, c->n_rows);
        compare(c->what, y, r, (size_t)c->n_rows * (size_t)total, BOUND);
        free(y);
        free(r);
    }
}

static void a_row_of_linear_has_the_same_bits_alone_and_in_any_batch(void **state)
{
    (void)state;
    NEEDS_GPU();
    for (size_t i = 0; i < COUNT(linear_cases); i++) {
        const struct linear_case *c = &linear_cases[i];
        size_t total = (size_t)(c->d_out[0] + c->d_out[1] + c->d_out[2]);
        float *whole = run_linear(&gpu, c, 0, c->n_rows);
        static const int sizes[] = {1, 2, 5, 9, 17, 33, 65};
        for (size_t k = 0; k < COUNT(sizes); k++) {
            int n = sizes[k] < c->n_rows ? sizes[k] : c->n_rows;
            int first = (c->n_rows - n) * 2 / 3;
            float *some = run_linear(&gpu, c, first, n);
            if (memcmp(some, whole + (size_t)first * total, (size_t)n * total * 4) != 0)
                fail_msg("%s: rows %d to %d differ when they are alone", c->what, first,
                         first + n - 1);
            free(some);
        }
        free(whole);
    }
}

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
        gpu.ops->sample(gpu.be, got, g, n, vocab, p, h);
        assert_ok(gpu.ops->sync(gpu.be, &err), err);
        ref.ops->sample(ref.be, want, r, n, vocab, p, h);
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
        cmocka_unit_test(linear_with_adapters_agrees_with_ref),
        cmocka_unit_test(a_row_of_linear_has_the_same_bits_alone_and_in_any_batch),
        cmocka_unit_test(attention_agrees_with_ref),
        cmocka_unit_test(a_row_of_attention_has_the_same_bits_alone_and_however_its_past_was_cut),
        cmocka_unit_test(norms_swiglu_embed_and_gather_agree_with_ref),
        cmocka_unit_test(sampling_agrees_with_ref),
    };
    return cmocka_run_group_tests(tests, open_both, close_both);
}
