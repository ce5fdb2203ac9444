/* variant: release. linear of the CUDA backend, its adapters, against ref and against itself in
 * other company. See cuda_pair.h. */
#include "tests/ops/cuda_pair.h"

/* ---- linear
 * ---------------------------------------------------------------------------------------------- */

enum { SLOTS = 4, SEGS_MAX = 250 };

struct linear_case {
    const char *what;
    int d_in, n_parts, d_out[3];
    enum dtype weight, adapter;
    int n_rows;
    bool bias, y_f32;
    int rank[SLOTS][3];
    int n_segs;
    struct lora_seg segs[SEGS_MAX];
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
    {"many outputs, in f32",
     192,
     1,
     {17001},
     DTYPE_BF16,
     DTYPE_BF16,
     100,
     true,
     true,
     {{0}},
     0,
     {{0}}},
    {"many outputs, a step of K",
     64,
     1,
     {16960},
     DTYPE_BF16,
     DTYPE_BF16,
     50,
     true,
     false,
     {{0}},
     0,
     {{0}}},
    {"many outputs, f16, ranges of two steps",
     2056,
     2,
     {9000, 8000},
     DTYPE_F16,
     DTYPE_F16,
     36,
     false,
     false,
     {{9, 3}, {0, 64}, {0}, {0}},
     2,
     {{3, 30, 0, 1}, {33, 3, 1, 1}}},
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
    {"an ensemble off the eights, its parts' border within a tile",
     1024,
     2,
     {104, 56},
     DTYPE_BF16,
     DTYPE_BF16,
     16,
     true,
     false,
     {{16, 8}, {8, 16}, {0}, {0}},
     2,
     {{3, 9, 0, 0.25f}, {3, 9, 1, 0.75f}}},
    {"o of an 8B model, two adapters between base rows",
     4096,
     1,
     {4096},
     DTYPE_BF16,
     DTYPE_BF16,
     64,
     false,
     false,
     {{16}, {12}, {0}, {0}},
     2,
     {{5, 17, 0, 1}, {30, 31, 1, 1}}},
    {"o of an 8B model: a cluster of two",
     4096,
     1,
     {4096},
     DTYPE_BF16,
     DTYPE_BF16,
     130,
     false,
     false,
     {{16}, {8}, {40}, {0}},
     4,
     {{0, 1, 0, 1}, {1, 60, 1, 1}, {61, 30, 2, 1}, {100, 30, 0, 1}}},
    {"down of an 8B model, cut: a cluster of four, 14 slices",
     14336,
     1,
     {320},
     DTYPE_BF16,
     DTYPE_BF16,
     140,
     true,
     true,
     {{16}, {64}, {3}, {0}},
     3,
     {{0, 1, 0, 1}, {3, 70, 1, 1}, {80, 20, 2, 1}}},
    {"one adapter at a time, q, k and v of an 8B model",
     4096,
     3,
     {4096, 1024, 1024},
     DTYPE_BF16,
     DTYPE_BF16,
     130,
     true,
     false,
     {{16, 16, 16}, {12, 0, 4}, {16, 16, 0}, {0}},
     3,
     {{3, 58, 0, 1}, {64, 40, 1, -0.5f}, {104, 26, 2, 1}}},
    {"one adapter but for one row, 14 slices in eight ranges",
     14336,
     1,
     {320},
     DTYPE_BF16,
     DTYPE_BF16,
     64,
     false,
     false,
     {{16}, {12}, {0}, {0}},
     2,
     {{0, 1, 0, 1}, {1, 63, 1, 1}}},
    {"gate and up, interleaved, 260 rows",
     1024,
     2,
     {584, 584},
     DTYPE_BF16,
     DTYPE_BF16,
     260,
     true,
     false,
     {{16, 16}, {8, 0}, {0, 24}, {256, 5}},
     5,
     {{0, 1, 0, 1}, {1, 60, 1, 1}, {61, 30, 2, 1}, {100, 8, 0, 1}, {130, 130, 3, 1}}},
    {"f16 weights on the fast path, f32 adapters",
     192,
     1,
     {200},
     DTYPE_F16,
     DTYPE_F32,
     40,
     true,
     true,
     {{16}, {8}, {33}, {2}},
     4,
     {{0, 4, 0, 1}, {4, 4, 1, 1}, {8, 4, 2, 1}, {12, 4, 3, 1}}},
    {"ensembles across tiles of eight rows",
     256,
     1,
     {256},
     DTYPE_BF16,
     DTYPE_BF16,
     40,
     false,
     false,
     {{16}, {40}, {24}, {4}},
     7,
     {{0, 2, 0, 1},
      {2, 9, 1, 0.5f},
      {2, 9, 2, 0.5f},
      {11, 1, 3, 1},
      {12, 20, 2, 0.25f},
      {12, 20, 0, 0.75f},
      {12, 20, 3, -1}}},
    {"a wide vocabulary: many tiles",
     128,
     1,
     {20000},
     DTYPE_BF16,
     DTYPE_BF16,
     70,
     false,
     true,
     {{0}},
     0,
     {{0}}},
    {"prefill: odd ranks, base rows, ensembles and an empty segment over the edges of its tiles",
     256,
     3,
     {200, 72, 64},
     DTYPE_BF16,
     DTYPE_BF16,
     430,
     true,
     false,
     {{16, 16, 40}, {8, 0, 64}, {128, 3, 1}, {20, 12, 256}},
     8,
     {{0, 100, 0, 1},
      {100, 0, 1, 1},
      {110, 90, 1, 0.5f},
      {110, 90, 2, -0.25f},
      {110, 90, 3, 0.75f},
      {380, 1, 2, 1},
      {381, 10, 3, 1},
      {391, 30, 0, 1}}},
    {"prefill, f16 adapters, rows of y that don't begin on 16 bytes",
     192,
     2,
     {100, 53},
     DTYPE_BF16,
     DTYPE_F16,
     300,
     true,
     false,
     {{16, 4}, {3, 0}, {0, 33}, {8, 8}},
     4,
     {{0, 4, 0, 1}, {4, 160, 1, 1}, {164, 70, 2, 1}, {250, 50, 3, 1}}},
    {"prefill of f16 weights, f32 adapters",
     192,
     1,
     {200},
     DTYPE_F16,
     DTYPE_F32,
     200,
     true,
     true,
     {{16}, {8}, {33}, {2}},
     4,
     {{0, 40, 0, 1}, {40, 40, 1, 1}, {80, 90, 2, 1}, {190, 10, 3, 1}}},
    {"more outputs than a round of tiles, four ranges",
     2048,
     2,
     {8192, 1024},
     DTYPE_BF16,
     DTYPE_BF16,
     70,
     true,
     false,
     {{16, 8}, {8, 64}, {64, 0}, {40, 16}},
     5,
     {{0, 1, 0, 1}, {1, 20, 1, 1}, {21, 9, 2, 0.5f}, {21, 9, 0, -1}, {40, 30, 3, 1}}},
    {"more chains of t than blocks hand one another",
     9216,
     1,
     {72},
     DTYPE_BF16,
     DTYPE_BF16,
     128,
     false,
     false,
     {{256}, {256}, {256}, {256}},
     4,
     {{0, 128, 0, 0.5f}, {0, 128, 1, 0.5f}, {0, 128, 2, -0.5f}, {0, 128, 3, 1}}},
    {"prefill, more outputs than a round of tiles",
     128,
     1,
     {9024},
     DTYPE_BF16,
     DTYPE_BF16,
     500,
     false,
     false,
     {{16}, {32}, {8}, {64}},
     6,
     {{0, 40, 0, 1},
      {40, 40, 1, 1},
      {80, 90, 2, 1},
      {170, 10, 3, 1},
      {200, 90, 1, 1},
      {290, 200, 0, 1}}},
    {"adapters that leave it alone",
     512,
     2,
     {1024, 64},
     DTYPE_BF16,
     DTYPE_BF16,
     40,
     false,
     false,
     {{0}, {0}, {0}, {0}},
     3,
     {{0, 20, 0, 1}, {20, 1, 1, 1}, {21, 19, 3, 0.5f}}},
    {"the same of more rows",
     512,
     2,
     {1024, 64},
     DTYPE_BF16,
     DTYPE_BF16,
     180,
     false,
     false,
     {{0}, {0}, {0}, {0}},
     3,
     {{0, 120, 0, 1}, {120, 1, 1, 1}, {121, 19, 3, 0.5f}}},
    {"prefill, K ends within a chain and a slice, more tasks of t than warps",
     1344,
     1,
     {192},
     DTYPE_BF16,
     DTYPE_BF16,
     400,
     true,
     false,
     {{16}, {72}, {5}, {256}},
     5,
     {{0, 3, 0, 1}, {3, 149, 3, -1}, {152, 8, 2, 1}, {160, 10, 1, 1}, {170, 230, 0, 0.5f}}},
    {"prefill, more pieces of t than blocks",
     2056,
     3,
     {64, 40, 72},
     DTYPE_BF16,
     DTYPE_BF16,
     500,
     false,
     false,
     {{256, 256, 256}, {16, 200, 40}, {3, 0, 16}, {0}},
     4,
     {{0, 230, 0, 1}, {230, 100, 1, 0.5f}, {330, 1, 2, 1}, {340, 160, 0, -1}}},
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

/* n_alone rows of an adapter each, then one of n_rest rows, if any. */
static struct linear_case with_many(const char *what, int d_in, int d_out, int d_second,
                                    int n_alone, int n_rest, bool large)
{
    struct linear_case c = {.what = what,
                            .d_in = d_in,
                            .n_parts = d_second > 0 ? 2 : 1,
                            .d_out = {d_out, d_second},
                            .weight = DTYPE_BF16,
                            .adapter = DTYPE_BF16,
                            .n_rows = n_alone + n_rest,
                            .rank = {{16, 8}, {8, 16}, {40, 0}, {4, 64}},
                            .n_segs = n_alone + (n_rest > 0)};
    static const int larger[SLOTS][3] = {{8, 256}, {16, 0}, {100, 128}, {12, 16}};
    if (large)
        memcpy(c.rank, larger, sizeof larger);
    for (int i = 0; i < n_alone; i++)
        c.segs[i] = (struct lora_seg){i, 1, i * 7 % 4, 1 + (float)(i % 3)};
    if (n_rest > 0)
        c.segs[n_alone] = (struct lora_seg){n_alone, n_rest, 1, 1};
    return c;
}

/* linear_cases, and what is too long to be written down. Good until the next call. */
static const struct linear_case *case_at(size_t i)
{
    static const struct {
        const char *what;
        int d_in, d_out, d_second, n_alone, n_rest;
        bool large; /* ranks, some of them */
    } many[] = {
        {"64 rows, each its own", 512, 256, 0, 64, 0, false},
        {"128 rows, each its own, of gate and up", 1024, 640, 640, 128, 0, false},
        {"200 rows, each its own", 4096, 512, 64, 200, 0, false},
        {"128 rows, each its own, and a prompt", 512, 4096, 256, 128, 180, false},
        {"190 rows, each its own, and a prompt", 512, 1024, 1024, 190, 250, false},
        {"few rows of their own before a prompt", 512, 1024, 0, 20, 250, false},
        {"64 rows, each its own, of many outputs", 256, 16900, 640, 64, 0, false},
        {"80 rows, each its own, of many outputs and four ranges", 2048, 16900, 0, 80, 0, false},
        {"many outputs, adapters and a prompt", 128, 8600, 8500, 128, 70, false},
        {"12 rows, some of large ranks", 256, 320, 512, 12, 0, true},
        {"70 rows, some of large ranks", 1032, 2048, 88, 70, 0, true},
        {"128 rows, some of large ranks, of many outputs", 512, 16904, 128, 128, 0, true},
        {"250 rows, some of large ranks", 512, 1000, 1032, 250, 0, true},
        {"rows of large ranks before a prompt", 512, 1000, 1032, 140, 300, true}};
    static struct linear_case c;
    if (i < COUNT(linear_cases))
        return &linear_cases[i];
    i -= COUNT(linear_cases);
    if (i >= COUNT(many))
        return NULL;
    c = with_many(many[i].what, many[i].d_in, many[i].d_out, many[i].d_second, many[i].n_alone,
                  many[i].n_rest, many[i].large);
    return &c;
}

/* The weights of the last case, which every run of it needs. */
static struct {
    const char *what;
    void *parts[3];
} made;

static void make_weights(const struct linear_case *c)
{
    if (c != NULL && made.what == c->what)
        return;
    for (int p = 0; p < 3; p++) {
        free(made.parts[p]);
        made.parts[p] = NULL;
    }
    for (int p = 0; c != NULL && p < c->n_parts; p++)
        made.parts[p] = random_as(c->weight, (size_t)c->d_out[p] * (size_t)c->d_in, 3 + (uint64_t)p,
                                  1.0f / sqrtf((float)c->d_in));
    made.what = c != NULL ? c->what : NULL;
}

/* One run of a case on rows [first, first + n) of its input, with the segments that touch them;
 * told: to lora_look_up before; heavy: as lora_step has it; recorded: replayed once. */
static float *run_linear(struct dev *d, const struct linear_case *c, int first, int n, bool told,
                         bool heavy, bool recorded)
{
    int total = 0;
    for (int p = 0; p < c->n_parts; p++)
        total += c->d_out[p];
    float *x = activations((size_t)c->n_rows * (size_t)c->d_in, 1);
    float *bias = random_f32((size_t)total, 2, 1.0f);
    make_weights(c);
    const void *const_parts[3];
    for (int p = 0; p < c->n_parts; p++)
        const_parts[p] = made.parts[p];
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
    struct lora_seg segs[SEGS_MAX];
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
    struct lora_step step = {
        .n_segs = n_segs, .segs = segs, .d_segs = dev_put(d, segs, sizeof segs), .heavy = heavy};
    struct lora_args lora = {.step = &step, .parts = lora_parts, .n_parts = c->n_parts};
    if (n_segs > 0 && told) { /* the second of two; the first is of another width */
        const struct lora_linear linears[] = {{lora_parts, 1, c->d_in},
                                              {lora_parts, c->n_parts, c->d_in}};
        d->ops->lora_look_up(d->be, &step, linears, 2);
        lora.place = 2;
    }
    struct devptr d_x = put_activations(d, x + (size_t)first * (size_t)c->d_in,
                                        (size_t)n * (size_t)c->d_in);
    struct devptr d_y = empty_activations(d, (size_t)n * (size_t)total);
    struct devptr d_bias = c->bias ? dev_put(d, bias, (size_t)total * 4) : (struct devptr){0};
    struct recording *recording = NULL;
    if (recorded)
        assert_true(d->ops->record_begin(d->be));
    d->ops->linear(d->be, d_y, d_x, w, d_bias, n, c->y_f32, n_segs > 0 ? &lora : NULL);
    if (recorded) {
        assert_ok(d->ops->record_end(d->be, &recording, &err), err);
        d->ops->replay(d->be, recording);
    }
    float *y;
    if (c->y_f32) {
        y = xcalloc((size_t)n * (size_t)total, 4);
        dev_get(d, y, d_y, (size_t)n * (size_t)total * 4);
    } else {
        y = get_activations(d, d_y, (size_t)n * (size_t)total);
    }
    d->ops->recording_free(d->be, recording);
    d->ops->weight_free(d->be, w);
    dev_free_held(d);
    free(bias);
    free(x);
    return y;
}

static void linear_with_adapters_agrees_with_ref(void **state)
{
    (void)state;
    NEEDS_GPU();
    const struct linear_case *c;
    for (size_t i = 0; (c = case_at(i)) != NULL; i++) {
        int total = c->d_out[0] + c->d_out[1] + c->d_out[2];
        size_t n = (size_t)c->n_rows * (size_t)total;
        /* A recording doesn't know its segments, but how many they are at most (ops.h). */
        bool recorded = c->n_rows <= 256 && c->n_segs > 0 && c->n_segs <= c->n_rows;
        float *y = run_linear(&gpu, c, 0, c->n_rows, true, false, false);
        float *z = run_linear(&gpu, c, 0, c->n_rows, !recorded, true, recorded);
        float *r = run_linear(&ref, c, 0, c->n_rows, true, false, false);
        compare(c->what, y, r, n, BOUND);
        if (memcmp(y, z, n * sizeof *y) != 0)
            fail_msg("%s: differs when the adapters' product comes before the base's", c->what);
        free(y);
        free(z);
        free(r);
    }
    make_weights(NULL);
}

static void a_row_of_linear_has_the_same_bits_alone_and_in_any_batch(void **state)
{
    (void)state;
    NEEDS_GPU();
    const struct linear_case *c;
    for (size_t i = 0; (c = case_at(i)) != NULL; i++) {
        size_t total = (size_t)(c->d_out[0] + c->d_out[1] + c->d_out[2]);
        float *whole = run_linear(&gpu, c, 0, c->n_rows, false, false, false);
        static const int sizes[] = {1, 2, 5, 9, 17, 33, 65, 128, 130, 200, 310};
        for (size_t k = 0; k < COUNT(sizes); k++) {
            int n = sizes[k] < c->n_rows ? sizes[k] : c->n_rows;
            int first = (c->n_rows - n) * 2 / 3;
            float *some = run_linear(&gpu, c, first, n, k % 2 == 0, k / 2 % 2 == 0, false);
            if (memcmp(some, whole + (size_t)first * total, (size_t)n * total * 4) != 0)
                fail_msg("%s: rows %d to %d differ when they are alone", c->what, first,
                         first + n - 1);
            free(some);
        }
        free(whole);
    }
    make_weights(NULL);
}

/* As linear, but the two halves go through silu(gate) * up. */
static void linear_swiglu_agrees_with_ref_and_with_itself(void **state)
{
    (void)state;
    NEEDS_GPU();
    static const struct {
        int d_in, d, n_rows, rank; /* of the last half's adapter */
    } shapes[] = {{64, 64, 3, 0},        {768, 2048, 17, 16}, {4096, 512, 70, 0},
                  {4096, 640, 60, 16},   {512, 136, 300, 0},  {512, 264, 300, 24},
                  {512, 72, 200, 5},     {172, 64, 9, 0},     {256, 8712, 64, 16},
                  {2048, 8704, 100, 24}, {64, 9000, 33, 0}};
    for (size_t k = 0; k < COUNT(shapes); k++) {
        int d_in = shapes[k].d_in, d = shapes[k].d, n = shapes[k].n_rows;
        size_t n_x = (size_t)(n * d_in), n_y = (size_t)(n * d);
        float *x = activations(n_x, 41), *y[2];
        uint16_t *one = NULL;
        const int widths[] = {d, d};
        int rank = shapes[k].rank;
        float *apart = NULL;
        void *a = random_as(DTYPE_BF16, (size_t)(rank * d_in + 1), 44, 1.0f / sqrtf((float)d_in));
        void *b = random_as(DTYPE_BF16, (size_t)(rank * d + 1), 45, 0.5f);
        for (int side = 0; side < 2; side++) {
            struct dev *dev = side == 0 ? &gpu : &ref;
            struct err err = {0};
            struct weight *w;
            void *parts[2];
            for (int p = 0; p < 2; p++)
                parts[p] = random_as(DTYPE_BF16, (size_t)(d * d_in), 42 + (uint64_t)p,
                                     2.0f / sqrtf((float)d_in));
            assert_ok(dev->ops->weight_create(dev->be, &w, (const void *const *)parts, widths, 2,
                                              d_in, DTYPE_BF16, &err),
                      err);
            struct devptr d_x = put_activations(dev, x, n_x), d_y = empty_activations(dev, n_y),
                          scratch = empty_activations(dev, 2 * n_y);
            struct lora_entry entry = {.a = dev_put(dev, a, (size_t)(rank * d_in + 1) * 2),
                                       .b = dev_put(dev, b, (size_t)(rank * d + 1) * 2),
                                       .rank = rank,
                                       .scaling = 1,
                                       .dtype = DTYPE_BF16};
            struct devptr d_entry = dev_put(dev, &entry, sizeof entry);
            struct lora_part lora_parts[] = {{&entry, d_entry, 0, d}, {&entry, d_entry, d, d}};
            struct lora_seg seg = {n / 2, n - n / 2, 0, 1}, last = {0, 1, 0, 1};
            struct lora_step step = {.n_segs = 1,
                                     .segs = &seg,
                                     .d_segs = dev_put(dev, &seg, sizeof seg)},
                             one_step = {.n_segs = 1,
                                         .segs = &last,
                                         .d_segs = dev_put(dev, &last, sizeof last)};
            struct lora_args lora = {.step = &step, .parts = lora_parts, .n_parts = 2},
                             one_lora = {.step = &one_step, .parts = lora_parts, .n_parts = 2};
            dev->ops->linear_swiglu(dev->be, d_y, scratch, d_x, w, (struct devptr){0}, n,
                                    rank > 0 ? &lora : NULL);
            y[side] = get_activations(dev, d_y, n_y);
            if (side == 0 && rank > 0) {
                step.heavy = true;
                dev->ops->linear_swiglu(dev->be, d_y, scratch, d_x, w, (struct devptr){0}, n,
                                        &lora);
                apart = get_activations(dev, d_y, n_y);
                step.heavy = false;
            }
            if (side == 0) { /* the last row alone */
                struct devptr d_one = empty_activations(dev, (size_t)d);
                one = xcalloc((size_t)d, 2);
                dev->ops->linear_swiglu(dev->be, d_one, scratch,
                                        devptr_at(d_x, (n_x - (size_t)d_in) * 2), w,
                                        (struct devptr){0}, 1, rank > 0 ? &one_lora : NULL);
                dev_get(dev, one, d_one, (size_t)d * 2);
            }
            dev->ops->weight_free(dev->be, w);
            dev_free_held(dev);
            free(parts[0]);
            free(parts[1]);
        }
        compare("linear_swiglu", y[0], y[1], n_y, BOUND);
        if (apart != NULL && memcmp(apart, y[0], n_y * sizeof *apart) != 0)
            fail_msg("linear_swiglu of %d rows: the adapters' product before it differs", n);
        free(apart);
        for (int i = 0; i < d; i++)
            if (bf16_to_f32(one[i]) != y[0][n_y - (size_t)d + (size_t)i])
                fail_msg("linear_swiglu of %d rows: the last differs when it is alone", n);
        free(a);
        free(b);
        free(one);
        free(x);
        free(y[0]);
        free(y[1]);
    }
}

/* The two halves alone, over distinct and shared adapters. */
static void sgmv_halves_agree_with_ref(void **state)
{
    (void)state;
    NEEDS_GPU();
    static const struct {
        int d_in, d_out, n_rows, n_adapters, rank;
    } shapes[] = {{4096, 320, 64, 64, 16},
                  {512, 4096, 64, 1, 64},
                  {1024, 200, 9, 3, 5},
                  {768, 768, 300, 7, 24}};
    for (size_t k = 0; k < COUNT(shapes); k++) {
        int d_in = shapes[k].d_in, d_out = shapes[k].d_out, n = shapes[k].n_rows;
        int m = shapes[k].n_adapters, r = shapes[k].rank;
        size_t n_a = (size_t)(r * d_in), n_b = (size_t)(r * d_out);
        float *x = activations((size_t)(n * d_in), 51), *y0 = activations((size_t)(n * d_out), 52);
        void *a = random_as(DTYPE_BF16, n_a * (size_t)m, 53, 1.0f / sqrtf((float)d_in));
        void *b = random_as(DTYPE_BF16, n_b * (size_t)m, 54, 1.0f);
        float *y[2];
        for (int side = 0; side < 2; side++) {
            struct dev *dev = side == 0 ? &gpu : &ref;
            struct devptr d_a = dev_put(dev, a, n_a * (size_t)m * 2),
                          d_b = dev_put(dev, b, n_b * (size_t)m * 2);
            struct lora_entry *entries = xcalloc((size_t)m, sizeof *entries);
            struct lora_seg *segs = xcalloc((size_t)m, sizeof *segs);
            for (int i = 0; i < m; i++) {
                entries[i] = (struct lora_entry){.a = devptr_at(d_a, n_a * (size_t)i * 2),
                                                 .b = devptr_at(d_b, n_b * (size_t)i * 2),
                                                 .rank = r,
                                                 .scaling = 0.5f,
                                                 .dtype = DTYPE_BF16};
                segs[i] = (struct lora_seg){n * i / m, n * (i + 1) / m - n * i / m, m - 1 - i, 1};
            }
            struct lora_part part = {entries, dev_put(dev, entries, (size_t)m * sizeof *entries), 0,
                                     d_out};
            struct lora_step step = {
                .n_segs = m, .segs = segs, .d_segs = dev_put(dev, segs, (size_t)m * sizeof *segs)};
            struct lora_args lora = {.step = &step, .parts = &part, .n_parts = 1};
            struct devptr d_x = put_activations(dev, x, (size_t)(n * d_in)),
                          d_y = put_activations(dev, y0, (size_t)(n * d_out)),
                          d_t = empty_activations(dev, (size_t)(n * r));
            dev->ops->sgmv_shrink(dev->be, d_t, d_x, n, d_in, &lora);
            dev->ops->sgmv_expand(dev->be, d_y, d_t, n, d_out, &lora);
            y[side] = get_activations(dev, d_y, (size_t)(n * d_out));
            dev_free_held(dev);
            free(entries);
            free(segs);
        }
        compare("sgmv", y[0], y[1], (size_t)(n * d_out), BOUND);
        free(a);
        free(b);
        free(x);
        free(y0);
        free(y[0]);
        free(y[1]);
    }
}

/* ---- the two halves alone, over everything that a segment can be
 * ---------------------------------------- */

enum { PAIR_SLOTS = 8, PAIR_SEGS_MAX = 640 };

struct pair_case {
    const char *what;
    int d_in, n_parts, d_out[3];
    int dtype; /* enum dtype; -1: one after another */
    int rank[PAIR_SLOTS][3];
};

static const struct pair_case pair_cases[] = {
    {"rank 16", 4096, 1, {4096}, DTYPE_BF16, {{16}, {16}, {16}, {16}, {16}, {16}, {16}, {16}}},
    {"any rank", 1032, 1, {333}, DTYPE_BF16, {{16}, {1}, {64}, {0}, {256}, {5}, {40}, {100}}},
    {"q, k, v",
     1288,
     3,
     {256, 64, 40},
     DTYPE_BF16,
     {{16, 16, 16}, {64, 0, 8}, {3, 5, 7}, {0, 0, 24}, {0, 0, 0}, {48, 16, 20}, {8, 8, 8}, {1}}},
    {"all dtypes",
     520,
     2,
     {100, 36},
     -1,
     {{16, 4}, {3, 0}, {0, 33}, {8, 8}, {17, 16}, {32, 1}, {16, 16}, {64, 2}}},
};

/* Ways to cut n_rows into segments; all end before PAIR_SEGS_MAX. */
enum cut { DISTINCT, ONE, RUNS, ENSEMBLES, CUTS };

static const char *const cut_names[] = {"distinct", "one", "runs", "ensembles"};

static int cut_rows(struct lora_seg *segs, enum cut cut, int n_rows)
{
    int n = 0, row = 0;
    for (int i = 0; row < n_rows && n < PAIR_SEGS_MAX - 4; i++) {
        int left = n_rows - row, slot = i * 5 % PAIR_SLOTS;
        switch (cut) {
        case DISTINCT:
            segs[n++] = (struct lora_seg){row++, 1, slot, 1};
            break;
        case ONE:
            segs[n++] = (struct lora_seg){0, n_rows, 0, 1};
            row = n_rows;
            break;
        case RUNS: { /* base rows and empty segments between them */
            int rows = 1 + i * 7 % 23, gap = i % 3;
            rows = rows < left ? rows : left;
            segs[n++] = (struct lora_seg){row, rows, slot, 0.5f};
            row += rows;
            segs[n++] = (struct lora_seg){row, 0, (slot + 1) % PAIR_SLOTS, 1};
            row += gap;
            break;
        }
        case ENSEMBLES: {
            int rows = 1 + i * 3 % 5, members = 1 + i % 4;
            rows = rows < left ? rows : left;
            for (int k = 0; k < members; k++)
                segs[n++] = (struct lora_seg){row, rows, (slot + 3 * k) % PAIR_SLOTS,
                                              1 - 0.25f * (float)k};
            row += rows;
            break;
        }
        case CUTS:
            break;
        }
    }
    return n;
}

/* y + B A x of rows [first, first + n) out of n_rows. */
static float *run_pair(struct dev *d, const struct pair_case *c, enum cut cut, int n_rows,
                       int first, int n)
{
    struct lora_entry entries[3][PAIR_SLOTS];
    struct lora_part parts[3];
    struct err err = {0};
    int total = 0;
    for (int p = 0; p < c->n_parts; p++) {
        for (int s = 0; s < PAIR_SLOTS; s++) {
            enum dtype t = c->dtype >= 0 ? (enum dtype)c->dtype : (enum dtype)((s + p) % 3);
            size_t r = (size_t)c->rank[s][p], n_a = r * (size_t)c->d_in + 1,
                   n_b = r * (size_t)c->d_out[p] + 1;
            void *a = random_as(t, n_a, 300 + (uint64_t)(10 * p + s), 1 / sqrtf((float)c->d_in));
            void *b = random_as(t, n_b, 400 + (uint64_t)(10 * p + s), 1);
            entries[p][s] = (struct lora_entry){.a = dev_put(d, a, n_a * dtype_bytes(t)),
                                                .b = dev_put(d, b, n_b * dtype_bytes(t)),
                                                .rank = c->rank[s][p],
                                                .scaling = 0.5f,
                                                .dtype = (int32_t)t};
            assert_ok(d->ops->sync(d->be, &err), err);
            free(a);
            free(b);
        }
        parts[p] = (struct lora_part){entries[p], dev_put(d, entries[p], sizeof entries[p]), total,
                                      c->d_out[p]};
        total += c->d_out[p];
    }
    struct lora_seg *all = xcalloc(PAIR_SEGS_MAX, sizeof *all);
    struct lora_seg *segs = xcalloc(PAIR_SEGS_MAX, sizeof *segs);
    int n_all = cut_rows(all, cut, n_rows), n_segs = 0;
    size_t n_t = 1;
    for (int i = 0; i < n_all; i++) {
        int from = all[i].row_begin < first ? first : all[i].row_begin;
        int to = all[i].row_begin + all[i].n_rows;
        to = to > first + n ? first + n : to;
        if (from > to)
            continue;
        segs[n_segs] = all[i];
        segs[n_segs].row_begin = from - first;
        segs[n_segs++].n_rows = to - from;
        for (int p = 0; p < c->n_parts; p++)
            n_t += (size_t)((to - from) * c->rank[all[i].slot][p]);
    }
    int32_t count = n_segs;
    struct lora_step step = {.n_segs = n_segs,
                             .segs = segs,
                             .d_segs = dev_put(d, segs, PAIR_SEGS_MAX * sizeof *segs),
                             .d_n_segs = dev_put(d, &count, sizeof count)};
    struct lora_args lora = {.step = &step, .parts = parts, .n_parts = c->n_parts};
    float *x = activations((size_t)n_rows * (size_t)c->d_in, 61);
    float *y = activations((size_t)n_rows * (size_t)total, 62);
    struct devptr d_x = put_activations(d, x + (size_t)first * (size_t)c->d_in,
                                        (size_t)n * (size_t)c->d_in);
    struct devptr d_y = put_activations(d, y + (size_t)first * (size_t)total,
                                        (size_t)n * (size_t)total);
    struct devptr t = empty_activations(d, n_t);
    d->ops->sgmv_shrink(d->be, t, d_x, n, c->d_in, &lora);
    d->ops->sgmv_expand(d->be, d_y, t, n, total, &lora);
    free(y);
    y = get_activations(d, d_y, (size_t)n * (size_t)total);
    dev_free_held(d);
    free(all);
    free(segs);
    free(x);
    return y;
}

static void sgmv_halves_agree_with_ref_for_any_rank_rows_and_segments(void **state)
{
    (void)state;
    NEEDS_GPU();
    static const int rows[] = {1, 7, 9, 64, 65, 256, 300};
    for (size_t i = 0; i < COUNT(pair_cases); i++)
        for (enum cut cut = 0; cut < CUTS; cut++)
            for (size_t k = i == 0 ? 3 : 0; k < COUNT(rows); k += i == 0 ? 3 : 1) {
                const struct pair_case *c = &pair_cases[i];
                int n = rows[k], total = c->d_out[0] + c->d_out[1] + c->d_out[2];
                float *y = run_pair(&gpu, c, cut, n, 0, n), *r = run_pair(&ref, c, cut, n, 0, n);
                char *what = xasprintf("sgmv, %s, %s, %d rows", c->what, cut_names[cut], n);
                compare(what, y, r, (size_t)n * (size_t)total, BOUND);
                free(what);
                free(y);
                free(r);
            }
}

static void a_row_of_sgmv_has_the_same_bits_alone_and_in_any_batch(void **state)
{
    (void)state;
    NEEDS_GPU();
    static const int sizes[] = {1, 3, 8, 17, 64, 129, 256};
    enum { ROWS = 300 };
    for (size_t i = 1; i < COUNT(pair_cases); i++)
        for (enum cut cut = 0; cut < CUTS; cut++) {
            const struct pair_case *c = &pair_cases[i];
            size_t total = (size_t)(c->d_out[0] + c->d_out[1] + c->d_out[2]);
            float *whole = run_pair(&gpu, c, cut, ROWS, 0, ROWS);
            for (size_t k = 0; k < COUNT(sizes); k++) {
                int n = sizes[k], first = (ROWS - n) * 2 / 3;
                float *some = run_pair(&gpu, c, cut, ROWS, first, n);
                if (memcmp(some, whole + (size_t)first * total, (size_t)n * total * 4) != 0)
                    fail_msg("sgmv, %s, %s: rows %d to %d differ when they are alone", c->what,
                             cut_names[cut], first, first + n - 1);
                free(some);
            }
            free(whole);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_with_adapters_agrees_with_ref),
        cmocka_unit_test(a_row_of_linear_has_the_same_bits_alone_and_in_any_batch),
        cmocka_unit_test(linear_swiglu_agrees_with_ref_and_with_itself),
        cmocka_unit_test(sgmv_halves_agree_with_ref),
        cmocka_unit_test(sgmv_halves_agree_with_ref_for_any_rank_rows_and_segments),
        cmocka_unit_test(a_row_of_sgmv_has_the_same_bits_alone_and_in_any_batch),
    };
    return RUN_BESIDE_REF(tests);
}
