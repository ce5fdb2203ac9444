/* variant: both. linear with its adapters, and the row-wise operators: cpu against ref over odd
 * shapes, mixed ranks and empty segments, and bit-equality of a row whatever is around it. */
#include "tests/ops/harness.h"

enum { PARTS_MAX = 3, SEGS_MAX = 8, SLOTS = 4 };

struct linear_case {
    const char *what;
    int d_in, n_parts, d_out[PARTS_MAX];
    enum dtype weight, adapter;
    int n_rows;
    bool bias;
    int rank[SLOTS][PARTS_MAX]; /* of each adapter slot at each part; 0: not a target */
    int n_segs;
    struct lora_seg segs[SEGS_MAX];
    bool int8; /* weights are made int8 */
};

static const struct linear_case cases[] = {
    {"one row, one column", 1, 1, {1}, DTYPE_F32, DTYPE_F32, 1, false, {{0}}, 0, {{0}}, false},
    {"stories260K q", 64, 1, {64}, DTYPE_F32, DTYPE_F32, 5, false, {{0}}, 0, {{0}}, false},
    {"stories260K down", 172, 1, {64}, DTYPE_F32, DTYPE_F32, 7, true, {{0}}, 0, {{0}}, false},
    {"odd d_in and d_out", 37, 1, {53}, DTYPE_BF16, DTYPE_BF16, 9, true, {{0}}, 0, {{0}}, false},
    {"odd, f16", 45, 2, {19, 30}, DTYPE_F16, DTYPE_F16, 13, true, {{0}}, 0, {{0}}, false},
    {"fused qkv, grouped heads",
     96,
     3,
     {96, 32, 32},
     DTYPE_BF16,
     DTYPE_BF16,
     33,
     false,
     {{0}},
     0,
     {{0}},
     false},
    {"more rows than a row block",
     40,
     1,
     {70},
     DTYPE_BF16,
     DTYPE_BF16,
     131,
     true,
     {{0}},
     0,
     {{0}},
     false},
    {"K in pieces", 2100, 1, {40}, DTYPE_BF16, DTYPE_BF16, 62, true, {{0}}, 0, {{0}}, false},
    {"K in pieces, f32", 2053, 1, {24}, DTYPE_F32, DTYPE_F32, 60, false, {{0}}, 0, {{0}}, false},
    {"one adapter over all rows, f32",
     64,
     1,
     {64},
     DTYPE_F32,
     DTYPE_F32,
     6,
     false,
     {{4}},
     1,
     {{0, 6, 0, 1}},
     false},
    {"mixed ranks, base rows between, an empty segment",
     96,
     3,
     {96, 32, 32},
     DTYPE_BF16,
     DTYPE_BF16,
     24,
     true,
     {{8, 0, 8}, {16, 4, 1}, {3, 64, 5}, {0, 0, 0}},
     5,
     {{1, 3, 0, 1}, {4, 0, 2, 1}, {5, 1, 1, 1}, {6, 11, 2, 1}, {20, 2, 3, 1}},
     false},
    {"f16 adapters on odd shapes",
     61,
     2,
     {67, 29},
     DTYPE_F16,
     DTYPE_F16,
     18,
     false,
     {{9, 0}, {1, 17}, {24, 2}, {0, 7}},
     4,
     {{0, 1, 0, 1}, {1, 9, 1, 1}, {10, 4, 2, 1}, {15, 3, 3, 1}},
     false},
    {"f32 adapters on bf16 weights",
     130,
     1,
     {150},
     DTYPE_BF16,
     DTYPE_F32,
     16,
     false,
     {{16}, {8}, {33}, {2}},
     4,
     {{0, 4, 0, 1}, {4, 4, 1, 1}, {8, 4, 2, 1}, {12, 4, 3, 1}},
     false},
    {"bf16 adapters on f32 weights, d_in below a vector",
     5,
     1,
     {90},
     DTYPE_F32,
     DTYPE_BF16,
     4,
     false,
     {{2}, {12}},
     2,
     {{0, 1, 1, 1}, {2, 2, 0, 1}},
     false},
    {"an ensemble: two weighted adapters on the same rows",
     80,
     2,
     {48, 48},
     DTYPE_BF16,
     DTYPE_BF16,
     10,
     true,
     {{4, 4}, {8, 0}, {0, 6}},
     4,
     {{0, 2, 0, 1}, {3, 5, 0, 0.25f}, {3, 5, 1, 0.75f}, {3, 5, 2, -0.5f}},
     false},
    {"large adapters",
     512,
     2,
     {300, 300},
     DTYPE_BF16,
     DTYPE_F32,
     11,
     true,
     {{64, 64}, {40, 0}, {8, 8}, {0, 3}},
     4,
     {{0, 1, 0, 1}, {1, 4, 1, 1}, {6, 3, 2, 1}, {9, 2, 3, 1}},
     false},
    {"a long segment across row blocks",
     64,
     1,
     {100},
     DTYPE_BF16,
     DTYPE_BF16,
     150,
     false,
     {{16}, {8}},
     2,
     {{2, 100, 0, 1}, {102, 40, 1, 1}},
     false},
    {.what = "few rows, many columns, adapters of single rows and over borders, an ensemble",
     .d_in = 48,
     .n_parts = 3,
     .d_out = {700, 333, 500},
     .weight = DTYPE_BF16,
     .adapter = DTYPE_BF16,
     .n_rows = 21,
     .bias = true,
     .rank = {{16, 16, 16}, {17, 0, 33}, {3, 32, 8}, {40, 1, 15}},
     .n_segs = 8,
     .segs = {{0, 1, 0, 1},
              {1, 1, 1, 1},
              {2, 1, 2, 1},
              {5, 6, 3, 1},
              {12, 1, 1, 0.5f},
              {12, 1, 0, 0.5f},
              {15, 1, 3, 1},
              {16, 5, 2, 1}}},
    {.what = "single rows, many columns, f16",
     .d_in = 33,
     .n_parts = 1,
     .d_out = {1101},
     .weight = DTYPE_F16,
     .adapter = DTYPE_F16,
     .n_rows = 32,
     .rank = {{16}, {18}, {7}, {64}},
     .n_segs = 6,
     .segs =
         {{0, 1, 0, 1}, {8, 1, 1, 1}, {9, 1, 2, 1}, {17, 1, 3, 1}, {30, 1, 0, 1}, {31, 1, 1, 1}}},
    {.what = "int8, one row, one column",
     .d_in = 1,
     .n_parts = 1,
     .d_out = {1},
     .weight = DTYPE_F32,
     .n_rows = 1,
     .int8 = true},
    {.what = "int8 of bf16, odd d_in and d_out, bias",
     .d_in = 37,
     .n_parts = 1,
     .d_out = {53},
     .weight = DTYPE_BF16,
     .n_rows = 19,
     .bias = true,
     .int8 = true},
    {.what = "int8 of f16, two parts, whole tiles",
     .d_in = 128,
     .n_parts = 2,
     .d_out = {64, 128},
     .weight = DTYPE_F16,
     .n_rows = 70,
     .int8 = true},
    {.what = "int8 of f32, K in pieces, odd",
     .d_in = 2101,
     .n_parts = 1,
     .d_out = {40},
     .weight = DTYPE_F32,
     .n_rows = 62,
     .bias = true,
     .int8 = true},
    {.what = "int8, a block and one k, a tile and one column",
     .d_in = 65,
     .n_parts = 1,
     .d_out = {65},
     .weight = DTYPE_F32,
     .n_rows = 61,
     .bias = true,
     .int8 = true},
    {.what = "int8, whole blocks and tiles, a long row",
     .d_in = 4096,
     .n_parts = 1,
     .d_out = {128},
     .weight = DTYPE_BF16,
     .n_rows = 13,
     .int8 = true},
    {.what = "int8 with adapters",
     .d_in = 96,
     .n_parts = 3,
     .d_out = {96, 32, 32},
     .weight = DTYPE_BF16,
     .adapter = DTYPE_BF16,
     .n_rows = 24,
     .bias = true,
     .rank = {{8, 0, 8}, {16, 4, 1}, {3, 64, 5}, {0, 0, 0}},
     .n_segs = 5,
     .segs = {{1, 3, 0, 1}, {4, 0, 2, 1}, {5, 1, 1, 1}, {6, 11, 2, 1}, {20, 2, 3, 1}},
     .int8 = true},
};

/* The inputs of a case on one backend. */
struct fixture {
    const struct linear_case *c;
    struct dev dev;
    struct weight *w;
    void *parts[PARTS_MAX];
    float *x, *bias;
    struct lora_entry entries[PARTS_MAX][SLOTS];
    struct lora_part lora_parts[PARTS_MAX];
    int d_out;
    struct devptr d_bias;
};

static void fixture_open(struct fixture *f, const struct linear_case *c, const char *backend,
                         int n_threads, const char *isa)
{
    struct err err = {0};
    *f = (struct fixture){.c = c};
    dev_open_weights(&f->dev, backend, n_threads, isa, c->int8);
    for (int p = 0; p < c->n_parts; p++) {
        f->parts[p] = random_as(c->weight, (size_t)c->d_in * (size_t)c->d_out[p], 100 + (uint64_t)p,
                                1 / sqrtf((float)c->d_in));
        f->lora_parts[p] = (struct lora_part){
            .entries = f->entries[p], .out_begin = f->d_out, .d_out = c->d_out[p]};
        for (int s = 0; s < SLOTS; s++) {
            size_t rank = (size_t)c->rank[s][p], bytes = dtype_bytes(c->adapter);
            struct lora_entry *e = &f->entries[p][s];
            *e = (struct lora_entry){.rank = c->rank[s][p],
                                     .scaling = 2 / (1 + (float)rank),
                                     .dtype = (int32_t)c->adapter};
            if (rank == 0)
                continue;
            void *a = random_as(c->adapter, rank * (size_t)c->d_in, 7 + (uint64_t)(s * 10 + p),
                                0.2f);
            void *b = random_as(c->adapter, rank * (size_t)c->d_out[p], 9 + (uint64_t)(s * 10 + p),
                                0.2f);
            e->a = dev_put(&f->dev, a, rank * (size_t)c->d_in * bytes);
            e->b = dev_put(&f->dev, b, rank * (size_t)c->d_out[p] * bytes);
            free(a);
            free(b);
        }
        f->lora_parts[p].d_entries = dev_put(&f->dev, f->entries[p], sizeof f->entries[p]);
        f->d_out += c->d_out[p];
    }
    assert_ok(f->dev.ops->weight_create(f->dev.be, &f->w, (const void *const *)f->parts, c->d_out,
                                        c->n_parts, c->d_in, c->weight, &err),
              err);
    f->x = random_f32((size_t)c->n_rows * (size_t)c->d_in, 1, 1);
    f->bias = random_f32((size_t)f->d_out, 2, 1);
    if (c->bias)
        f->d_bias = dev_put(&f->dev, f->bias, (size_t)f->d_out * sizeof(float));
}

static void fixture_close(struct fixture *f)
{
    f->dev.ops->weight_free(f->dev.be, f->w);
    dev_close(&f->dev);
    for (int p = 0; p < f->c->n_parts; p++)
        free(f->parts[p]);
    free(f->x);
    free(f->bias);
}

enum how { FUSED, IN_HALVES };

/* Rows [begin, end) of the case as a batch of their own, each with its own segments. */
static float *run(struct fixture *f, int begin, int end, enum how how)
{
    const struct linear_case *c = f->c;
    const struct ops *ops = f->dev.ops;
    struct lora_seg segs[SEGS_MAX];
    int n_segs = 0, keep = f->dev.n_held;
    size_t n_rows = (size_t)(end - begin), n_t = 0;
    for (int s = 0; s < c->n_segs; s++) {
        int from = c->segs[s].row_begin > begin ? c->segs[s].row_begin : begin;
        int to = c->segs[s].row_begin + c->segs[s].n_rows;
        to = to < end ? to : end;
        if (from > to || (from == to && c->segs[s].n_rows > 0))
            continue;
        segs[n_segs] = c->segs[s];
        segs[n_segs].row_begin = from - begin;
        segs[n_segs++].n_rows = to - from;
        for (int p = 0; p < c->n_parts; p++)
            n_t += (size_t)((to - from) * c->rank[c->segs[s].slot][p]);
    }
    struct devptr x = dev_put(&f->dev, f->x + (size_t)begin * (size_t)c->d_in,
                              n_rows * (size_t)c->d_in * sizeof(float));
    size_t y_bytes = n_rows * (size_t)f->d_out * sizeof(float);
    float *y = xcalloc(n_rows * (size_t)f->d_out, sizeof *y);
    memset(y, 0xff, y_bytes); /* NaN: what isn't written shows */
    struct devptr d_y = dev_put(&f->dev, y, y_bytes);
    struct lora_step step = {
        .n_segs = n_segs, .segs = segs, .d_segs = dev_put(&f->dev, segs, sizeof segs)};
    struct lora_args lora = {.step = &step, .parts = f->lora_parts, .n_parts = c->n_parts};
    bool whole = how == FUSED && n_segs > 0;
    ops->linear(f->dev.be, d_y, x, f->w, f->d_bias, (int)n_rows, true, whole ? &lora : NULL);
    if (how == IN_HALVES) {
        struct devptr t = dev_alloc(&f->dev, n_t * sizeof(float) + 4);
        ops->sgmv_shrink(f->dev.be, t, x, (int)n_rows, c->d_in, &lora);
        ops->sgmv_expand(f->dev.be, d_y, t, (int)n_rows, f->d_out, &lora);
    }
    dev_get(&f->dev, y, d_y, y_bytes);
    while (f->dev.n_held > keep)
        ops->mem_free(f->dev.be, f->dev.held[--f->dev.n_held]);
    return y;
}

static void cpu_linear_answers_to_ref(void **state)
{
    (void)state;
    double worst[2] = {0}; /* f32 x; x rounded for integer products */
    for (size_t i = 0; i < COUNT(cases); i++)
        for (int v = 0; v < isa_variants_count(cases[i].int8); v++) {
            struct fixture ref, cpu;
            fixture_open(&ref, &cases[i], "ref", 1, NULL);
            fixture_open(&cpu, &cases[i], "cpu", 2, isa_variants[v]);
            for (enum how how = FUSED; how <= IN_HALVES; how++) {
                float *r = run(&ref, 0, cases[i].n_rows, how);
                float *y = run(&cpu, 0, cases[i].n_rows, how);
                double e = nmse(y, r, (size_t)cases[i].n_rows * (size_t)ref.d_out);
                double bound = linear_bound(cases[i].int8, isa_variants[v]);
                if (!(e <= bound))
                    fail_msg("%s%s, %s: nmse %g against ref, bound %g", cases[i].what,
                             how == FUSED ? "" : ", in halves", isa_variants[v], e, bound);
                double *of_bound = &worst[bound > 1e-10];
                *of_bound = e > *of_bound ? e : *of_bound;
                free(r);
                free(y);
            }
            fixture_close(&ref);
            fixture_close(&cpu);
        }
    printf("note: linear: %zu cases, %d code paths, worst nmse %.2g, of integer products %.2g\n",
           COUNT(cases), isa_variants_count(true), worst[0], worst[1]);
}

static void same_rows(const struct fixture *f, const float *all, const float *some, int begin,
                      int end, const char *how)
{
    for (int row = begin; row < end; row++)
        for (int o = 0; o < f->d_out; o++) {
            float a = all[row * f->d_out + o], b = some[(row - begin) * f->d_out + o];
            if (f32_bits(a) != f32_bits(b))
                fail_msg("%s, %s: row %d column %d is %.9g in the whole batch, %.9g in rows "
                         "[%d, %d)",
                         f->c->what, how, row, o, (double)a, (double)b, begin, end);
        }
}

static void a_row_has_the_same_bits_in_every_batch(void **state)
{
    (void)state;
    const char *const backends[] = {"cpu", "ref"};
    size_t n_compared = 0;
    for (size_t i = 0; i < COUNT(cases); i++)
        for (size_t b = 0; b < COUNT(backends); b++) {
            int n = cases[i].n_rows;
            int variants = b == 0 ? isa_variants_count(cases[i].int8) : 1;
            if (b == 1 && n > 32)
                continue; /* ref has no blocks to get wrong */
            for (int v = 0; v < variants; v++) {
                struct fixture wide, narrow;
                fixture_open(&wide, &cases[i], backends[b], 3, isa_variants[v]);
                fixture_open(&narrow, &cases[i], backends[b], 1, isa_variants[v]);
                float *all = run(&wide, 0, n, FUSED);
                for (int size = 1; size <= n; size = size < 20 ? size + 1 : size * 2)
                    for (int begin = 0; begin + size <= n; begin += size == 1 ? 1 : size * 2 + 3) {
                        float *some = run(&narrow, begin, begin + size, FUSED);
                        same_rows(&wide, all, some, begin, begin + size, "one thread");
                        n_compared += (size_t)size;
                        free(some);
                    }
                float *again = run(&wide, 0, n, FUSED);
                same_rows(&wide, all, again, 0, n, "three threads, again");
                free(again);
                free(all);
                fixture_close(&wide);
                fixture_close(&narrow);
            }
        }
    printf("note: linear: %zu rows compared bit by bit\n", n_compared);
}

static void rows_under_no_adapter_equal_the_base_model(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        if (cases[i].n_segs == 0)
            continue;
        struct linear_case base = cases[i];
        base.n_segs = 0;
        struct fixture with, without;
        fixture_open(&with, &cases[i], "cpu", 2, "");
        fixture_open(&without, &base, "cpu", 2, "");
        float *a = run(&with, 0, base.n_rows, FUSED), *b = run(&without, 0, base.n_rows, FUSED);
        for (int row = 0; row < base.n_rows; row++) {
            bool covered = false;
            for (int s = 0; s < cases[i].n_segs; s++)
                covered |= row >= cases[i].segs[s].row_begin &&
                           row < cases[i].segs[s].row_begin + cases[i].segs[s].n_rows;
            if (!covered)
                same_rows(&with, a, b + row * with.d_out, row, row + 1, "beside adapters");
        }
        free(a);
        free(b);
        fixture_close(&with);
        fixture_close(&without);
    }
}

/* What a row may hold, far from a normal distribution. */
static const struct odd_row {
    const char *what;
    float size;  /* deviation of its elements */
    int n_large; /* elements that are `large` instead, evenly spread */
    float large;
    bool finite, zero;
} odd_rows[] = {
    {"ordinary", 1, 0, 0, true, false},
    {"an outlier", 1, 1, 3000, true, false},
    {"an outlier a block", 1e-3f, 8, 50, true, false},
    {"all equal to the largest", 0, 500, 7, true, false},
    {"small", 1e-20f, 0, 0, true, false},
    {"large", 1e30f, 0, 0, true, false},
    {"zeros", 0, 0, 0, true, true},
    {"one number", 0, 1, -1.5f, true, false},
    {"smaller than any block that counts", 1e-32f, 0, 0, true, true},
    {"subnormal", 0, 3, 1e-40f, true, true},
    {"an infinity", 1, 1, INFINITY, false, false},
    {"NaN", 1, 1, NAN, false, false},
};

/* Each row by itself against ref: an odd row neither breaks the bound nor reaches its neighbours.
 */
static void int8_products_keep_their_bound_whatever_a_row_holds(void **state)
{
    (void)state;
    enum { D_IN = 500, D_OUT = 70, N = COUNT(odd_rows) };
    const int d_out = D_OUT;
    double worst = 0;
    float *w = random_f32((size_t)D_IN * D_OUT, 3, 0.05f), *x = random_f32((size_t)D_IN * N, 4, 1);
    float *y[1 + COUNT(isa_variants)];
    for (size_t i = 0; i < N; i++)
        for (int k = 0; k < D_IN; k++) {
            const struct odd_row *o = &odd_rows[i];
            bool large = o->n_large > 0 && k % (D_IN / o->n_large) == 0;
            x[i * D_IN + (size_t)k] = large ? o->large : x[i * D_IN + (size_t)k] * o->size;
        }
    for (int b = 0; b < 1 + isa_variants_count(true); b++) {
        struct dev dev;
        struct weight *weight;
        struct err err = {0};
        const void *part = w;
        dev_open_weights(&dev, b ? "cpu" : "ref", 2, b ? isa_variants[b - 1] : NULL, true);
        assert_ok(dev.ops->weight_create(dev.be, &weight, &part, &d_out, 1, D_IN, DTYPE_F32, &err),
                  err);
        struct devptr d_y = dev_alloc(&dev, sizeof(float) * N * D_OUT);
        dev.ops->linear(dev.be, d_y, dev_put(&dev, x, sizeof(float) * N * D_IN), weight,
                        (struct devptr){0}, N, true, NULL);
        y[b] = xcalloc(N * D_OUT, sizeof(float));
        dev_get(&dev, y[b], d_y, sizeof(float) * N * D_OUT);
        dev.ops->weight_free(dev.be, weight);
        dev_close(&dev);
        for (size_t i = 0; i < N; i++) {
            const float *at = y[b] + i * D_OUT, *r = y[0] + i * D_OUT;
            const char *isa = b ? isa_variants[b - 1] : "ref", *what = odd_rows[i].what;
            for (int c = 0; c < D_OUT; c++) {
                if (isfinite(at[c]) != odd_rows[i].finite)
                    fail_msg("%s, %s: column %d is %g", isa, what, c, (double)at[c]);
                if (odd_rows[i].zero && !(fabsf(at[c] - r[c]) <= 1e-28f))
                    fail_msg("%s, %s: column %d is %g, not %g", isa, what, c, (double)at[c],
                             (double)r[c]);
            }
            double e = odd_rows[i].finite && !odd_rows[i].zero ? nmse(at, r, D_OUT) : 0;
            if (!(e <= linear_bound(true, isa)))
                fail_msg("%s, %s: nmse %g against ref, bound %g", isa, what, e,
                         linear_bound(true, isa));
            worst = e > worst ? e : worst;
        }
    }
    printf("note: linear, int8 weights: %d odd rows, worst nmse %.2g\n", (int)N, worst);
    for (int b = 0; b < 1 + isa_variants_count(true); b++)
        free(y[b]);
    free(w);
    free(x);
}

/* The backends share the rounding, so it is checked by what it must do to a weight. */
static void int8_weights_are_the_nearest_of_255_steps_of_their_column(void **state)
{
    (void)state;
    enum { D_IN = 6, D_OUT = 5 };
    static const float w[D_OUT][D_IN] = {
        {127, -126.6f, 0.4f, 0.5f, 1.5f, -64},      /* the scale is 1; ties go to even */
        {0, 0, 0, 0, 0, 0},                         /* no scale */
        {0, 0, 0, -1e-3f, 0, 0},                    /* only a minimum */
        {1, 2, INFINITY, 3, 4, 5},                  /* not a number */
        {3e-43f, 3e-43f, 0, -3e-43f, 0, 1.4e-45f}}; /* the scale itself is subnormal */
    static const float want[3][D_IN] = {
        {127, -127, 0, 0, 2, -64}, {0, 0, 0, 0, 0, 0}, {0, 0, 0, -1e-3f, 0, 0}};
    for (int b = 0; b < 1 + isa_variants_count(true); b++) {
        struct dev dev;
        struct weight *weight;
        struct err err = {0};
        const char *isa = b > 0 ? isa_variants[b - 1] : NULL, *name = b > 0 ? isa : "ref";
        const void *part = w;
        const int d_out = D_OUT;
        float y[D_OUT][D_IN];
        dev_open_weights(&dev, b > 0 ? "cpu" : "ref", 1, isa, true);
        assert_ok(dev.ops->weight_create(dev.be, &weight, &part, &d_out, 1, D_IN, DTYPE_F32, &err),
                  err);
        const int32_t tokens[D_OUT] = {0, 1, 2, 3, 4};
        struct devptr d_y = dev_alloc(&dev, sizeof y);
        dev.ops->embed(dev.be, d_y, dev_put(&dev, tokens, sizeof tokens), weight, D_OUT, 1);
        dev_get(&dev, y, d_y, sizeof y);
        for (int i = 0; i < 3; i++)
            for (int k = 0; k < D_IN; k++)
                if (fabsf(y[i][k] - want[i][k]) > 1e-6f * fabsf(want[i][k]))
                    fail_msg("%s: w[%d][%d] = %g became %g, not %g", name, i, k, (double)w[i][k],
                             (double)y[i][k], (double)want[i][k]);
        for (int k = 0; k < D_IN; k++) {
            assert_true(isnan(y[3][k]));
            assert_true(fabsf(y[4][k]) <= 3e-43f && y[4][k] * w[4][k] >= 0);
        }
        dev.ops->weight_free(dev.be, weight);
        dev_close(&dev);
    }
}

/* ---- row by row
 * ---------------------------------------------------------------------------------- */

static void embed_is_bit_equal_to_ref(void **state)
{
    (void)state;
    static const int shapes[][2] = {{1, 1}, {33, 7}, {50, 64}, {70, 129}, {512, 64}};
    for (size_t i = 0; i < COUNT(shapes) * 2; i++)
        for (enum dtype t = DTYPE_F32; t <= DTYPE_BF16; t++) {
            const bool int8 = i >= COUNT(shapes);
            const int *shape = shapes[i % COUNT(shapes)];
            int vocab = shape[0], d = shape[1], n = vocab < 40 ? vocab : 40;
            size_t n_y = (size_t)(n * d);
            void *table = random_as(t, (size_t)(vocab * d), 5, 1);
            int32_t tokens[40];
            for (int k = 0; k < n; k++)
                tokens[k] = (k * 37 + 11) % vocab;
            float *y[1 + COUNT(isa_variants)];
            const int n_y_of = 1 + isa_variants_count(int8);
            for (int b = 0; b < n_y_of; b++) {
                struct dev dev;
                struct weight *w;
                struct err err = {0};
                dev_open_weights(&dev, b ? "cpu" : "ref", 2, b ? isa_variants[b - 1] : NULL, int8);
                assert_ok(dev.ops->weight_create(dev.be, &w, (const void *const *)&table, &vocab, 1,
                                                 d, t, &err),
                          err);
                struct devptr d_y = dev_alloc(&dev, n_y * 4);
                dev.ops->embed(dev.be, d_y, dev_put(&dev, tokens, sizeof tokens), w, n, 1.5f);
                y[b] = xcalloc(n_y, 4);
                dev_get(&dev, y[b], d_y, n_y * 4);
                dev.ops->weight_free(dev.be, w);
                dev_close(&dev);
            }
            for (int b = 1; b < n_y_of; b++)
                if (memcmp(y[0], y[b], n_y * 4) != 0)
                    fail_msg("embed, vocab %d, d %d, %s%s: cpu, %s, differs from ref", vocab, d,
                             dtype_name(t), int8 ? " made int8" : "", isa_variants[b - 1]);
            for (int b = 0; b < n_y_of; b++)
                free(y[b]);
            free(table);
        }
}

struct rows_result {
    float *norm, *residual, *swiglu, *gathered;
};

static struct rows_result rows_run(const char *backend, int threads, const char *isa, int n, int d,
                                   const float *x, const float *residual, const float *w,
                                   bool with_x)
{
    struct dev dev;
    size_t bytes = (size_t)(n * d) * 4;
    struct rows_result r = {xmalloc(bytes), xmalloc(bytes), xmalloc(bytes), xmalloc(bytes)};
    dev_open(&dev, backend, threads, isa);
    struct devptr d_x = dev_put(&dev, x, bytes * 2), d_r = dev_put(&dev, residual, bytes);
    struct devptr d_y = dev_alloc(&dev, bytes), d_w = dev_put(&dev, w, (size_t)d * 4);
    dev.ops->add_rmsnorm(dev.be, d_y, d_r, with_x ? d_x : (struct devptr){0}, d_w, n, d, 1e-5f, 1);
    dev_get(&dev, r.norm, d_y, bytes);
    dev_get(&dev, r.residual, d_r, bytes);
    dev.ops->swiglu(dev.be, d_y, d_x, n, d);
    dev_get(&dev, r.swiglu, d_y, bytes);
    int32_t *rows = xcalloc((size_t)n, sizeof *rows);
    for (int i = 0; i < n; i++)
        rows[i] = n - 1 - i / 2;
    dev.ops->gather_rows(dev.be, d_y, d_x, dev_put(&dev, rows, (size_t)n * 4), n, d);
    dev_get(&dev, r.gathered, d_y, bytes);
    free(rows);
    dev_close(&dev);
    return r;
}

static void rows_free(struct rows_result *r)
{
    free(r->norm);
    free(r->residual);
    free(r->swiglu);
    free(r->gathered);
}

static void row_operators_answer_to_ref_and_ignore_their_neighbours(void **state)
{
    (void)state;
    static const int shapes[][2] = {{1, 1},  {1, 64},  {3, 5},    {17, 37},
                                    {9, 64}, {2, 768}, {70, 300}, {5, 4099}};
    for (size_t i = 0; i < COUNT(shapes); i++)
        for (int v = 0; v < isa_variants_count(false) * 2; v++) {
            int n = shapes[i][0], d = shapes[i][1];
            size_t size = (size_t)(n * d), bytes = size * 4;
            float *x = random_f32(size * 2, 1, 4), *residual = random_f32(size, 2, 1);
            float *w = random_f32((size_t)d, 3, 1);
            x[0] = -100; /* exp overflows: the product must still be about 0 */
            struct rows_result r = rows_run("ref", 1, NULL, n, d, x, residual, w, v % 2);
            struct rows_result y = rows_run("cpu", 3, isa_variants[v / 2], n, d, x, residual, w,
                                            v % 2);
            const double e[2] = {nmse(y.norm, r.norm, size), nmse(y.swiglu, r.swiglu, size)};
            if (!(e[0] <= 1e-10 && e[1] <= 1e-10))
                fail_msg("%d x %d: nmse of add_rmsnorm %g, swiglu %g, bound 1e-10", n, d, e[0],
                         e[1]);
            assert_memory_equal(y.residual, r.residual, bytes);
            assert_memory_equal(y.gathered, r.gathered, bytes);
            for (int row = 0; row < n; row += 3) {
                size_t at = (size_t)(row * d);
                struct rows_result one = rows_run("cpu", 1, isa_variants[v / 2], 1, d, x + at,
                                                  residual + at, w, v % 2);
                if (memcmp(one.norm, y.norm + at, (size_t)d * 4) != 0)
                    fail_msg("add_rmsnorm: row %d of %d x %d differs when alone", row, n, d);
                rows_free(&one);
                one = rows_run("cpu", 1, isa_variants[v / 2], 1, d, x + 2 * at, residual + at, w,
                               v % 2);
                if (memcmp(one.swiglu, y.swiglu + at, (size_t)d * 4) != 0)
                    fail_msg("swiglu: row %d of %d x %d differs when alone", row, n, d);
                rows_free(&one);
            }
            rows_free(&r);
            rows_free(&y);
            free(x);
            free(residual);
            free(w);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cpu_linear_answers_to_ref),
        cmocka_unit_test(a_row_has_the_same_bits_in_every_batch),
        cmocka_unit_test(rows_under_no_adapter_equal_the_base_model),
        cmocka_unit_test(int8_products_keep_their_bound_whatever_a_row_holds),
        cmocka_unit_test(int8_weights_are_the_nearest_of_255_steps_of_their_column),
        cmocka_unit_test(embed_is_bit_equal_to_ref),
        cmocka_unit_test(row_operators_answer_to_ref_and_ignore_their_neighbours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
