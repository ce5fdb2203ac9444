/* variant: release. Sampling on the GPU against ref: the same ids, the log-probabilities within
 * ops.h's bound; and against itself: alone, in batches, replayed. A machine without a Hopper GPU
 * skips all of it and says so. */
#include "tests/ops/cuda_pair.h"

static const struct devptr nowhere = {0};

/* temperature, top_k, top_p, min_p; repetition, frequency, presence penalty; n_top */
#define PARAMS(t, k, p, m, r, f, pr, top)                                              \
    {                                                                                  \
        .temperature = t, .top_k = k, .top_p = p, .min_p = m, .repetition_penalty = r, \
        .frequency_penalty = f, .presence_penalty = pr, .n_top = top                   \
    }

static const struct sample_params table[] = {
    PARAMS(0, 0, 1, 0, 1, 0, 0, 0),           PARAMS(0, 0, 1, 0, 1, 0, 0, 20),
    PARAMS(1, 0, 1, 0, 1, 0, 0, 20),          PARAMS(0.7f, 0, 1, 0, 1, 0, 0, 1),
    PARAMS(0.8f, 0, 0.95f, 0, 1, 0, 0, 0),    PARAMS(2.5f, 0, 1, 0, 1, 0, 0, 5),
    PARAMS(1e-3f, 0, 1, 0, 1, 0, 0, 0),       PARAMS(1e-40f, 0, 1, 0, 1, 0, 0, 0),
    PARAMS(100, 0, 1, 0, 1, 0, 0, 0),         PARAMS(100, 0, 0.5f, 0, 1, 0, 0, 0),
    PARAMS(1, 1, 1, 0, 1, 0, 0, 0),           PARAMS(1, 50, 1, 0, 1, 0, 0, 0),
    PARAMS(30, 3000, 1, 0, 1, 0, 0, 0),       PARAMS(1, 1000000, 1, 0, 1, 0, 0, 0),
    PARAMS(1, 0, 0.9f, 0, 1, 0, 0, 0),        PARAMS(1, 0, 0.0f, 0, 1, 0, 0, 0),
    PARAMS(3, 0, 0.999f, 0, 1, 0, 0, 0),      PARAMS(1, 0, 1, 0.05f, 1, 0, 0, 0),
    PARAMS(1, 0, 1, 1, 1, 0, 0, 0),           PARAMS(0.8f, 40, 0.95f, 0.02f, 1, 0, 0, 3),
    PARAMS(50, 2000, 0.7f, 0.5f, 1, 0, 0, 0), PARAMS(1, 0, 1, 0, 1.3f, 0, 0, 0),
    PARAMS(1, 0, 1, 0, 1, 0.7f, -0.4f, 2),    PARAMS(1, 0, 0.8f, 0, 0.8f, 1, 1, 20),
    PARAMS(0, 0, 1, 0, 1.3f, 0.2f, 0.5f, 1),
};

enum { TABLE = (int)COUNT(table) };

enum kind { NORMAL, FLAT, EQUAL, PEAKED, TIES, BROKEN, FORBIDDEN, SORTED, KINDS };
static const char *const kind_names[] = {"normal", "flat",   "equal",     "peaked",
                                         "tied",   "broken", "forbidden", "sorted"};

static void fill(float *x, int vocab, enum kind kind, uint64_t seed)
{
    for (int i = 0; i < vocab; i++) {
        float r = random_normal(&seed, 1);
        switch (kind) {
        case NORMAL:
            x[i] = 3 * r;
            break;
        case FLAT:
            x[i] = 0.01f * r;
            break;
        case EQUAL:
            x[i] = -2.5f;
            break;
        case PEAKED:
            x[i] = i == vocab / 3 ? 40 : r;
            break;
        case TIES: /* zeros of both signs among them */
            x[i] = roundf(r * 2);
            break;
        case BROKEN:
            x[i] = i % 5 == 0 ? NAN : i % 7 == 0 ? -INFINITY : i == 11 ? INFINITY : r;
            break;
        case SORTED: /* the best ones side by side */
            x[i] = -20.0f * (float)i / (float)vocab;
            break;
        case FORBIDDEN:
        case KINDS:
            x[i] = i % 3 ? NAN : -INFINITY;
            break;
        }
    }
}

static bool close_to(float a, float b)
{
    return a == b || fabsf(a - b) <= 2e-5f + 1e-6f * fabsf(b);
}

static void compare_results(const struct sample_result *y, const struct sample_result *r,
                            const char *what)
{
    if (y->token != r->token || !close_to(y->logprob, r->logprob) || y->n_top != r->n_top)
        fail_msg("%s: cuda gives token %d (%.7g, %d top), ref %d (%.7g, %d top)", what, y->token,
                 (double)y->logprob, y->n_top, r->token, (double)r->logprob, r->n_top);
    for (int i = 0; i < r->n_top; i++)
        if (y->top_ids[i] != r->top_ids[i] || !close_to(y->top_logprobs[i], r->top_logprobs[i]))
            fail_msg("%s: top %d is %d (%.7g) on cuda, %d (%.7g) on ref", what, i, y->top_ids[i],
                     (double)y->top_logprobs[i], r->top_ids[i], (double)r->top_logprobs[i]);
}

static void gpu_sync(void)
{
    struct err err = {0};
    assert_ok(gpu.ops->sync(gpu.be, &err), err);
}

/* ---- against ref ----------------------------------------------------------------------------- */

enum { HISTORY = 60, BIASES = 4 };

static void the_gpu_draws_what_ref_draws(void **state)
{
    (void)state;
    NEEDS_GPU();
    static const struct {
        int vocab, every; /* of ref's sorting we can't afford more */
    } shapes[] = {{1, 1}, {7, 1}, {512, 1}, {4096, 1}, {32001, 2}, {128256, 5}};
    int n_compared = 0;
    for (size_t v = 0; v < COUNT(shapes); v++)
        for (int kind = 0; kind < KINDS; kind++) {
            int vocab = shapes[v].vocab, n = 0;
            struct sample_params params[TABLE];
            struct sample_history histories[TABLE];
            struct sample_result y[TABLE], r[TABLE];
            int index[TABLE];
            int32_t history[HISTORY];
            int32_t bias_ids[BIASES] = {0, vocab / 2, vocab - 1, vocab / 2};
            float bias_values[BIASES] = {2, -INFINITY, -1, 3};
            uint64_t random = 99;
            for (int i = 0; i < HISTORY; i++)
                history[i] = (int32_t)(random_u64(&random) % (uint64_t)vocab) / (1 + i % 4);
            float *x = xcalloc((size_t)TABLE * (size_t)vocab, sizeof *x);
            for (int i = 0; i < TABLE; i++) {
                if ((i + 2 * kind) % shapes[v].every != 0)
                    continue;
                fill(x + (size_t)n * (size_t)vocab, vocab, (enum kind)kind,
                     (uint64_t)(1000 * i) + v);
                params[n] = table[i];
                params[n].seed = 42 + (uint64_t)i + ((uint64_t)kind << 40);
                params[n].position = 7 * (uint64_t)i;
                histories[n] = (struct sample_history){.tokens = i % 4 == 3 ? NULL : history,
                                                       .n_prompt = 20,
                                                       .n_tokens = HISTORY,
                                                       .bias_ids = bias_ids,
                                                       .bias_values = bias_values,
                                                       .n_bias = i % 3 == 2 ? BIASES : 0};
                index[n++] = i;
            }
            size_t bytes = (size_t)n * (size_t)vocab * sizeof *x;
            struct devptr xg = dev_put(&gpu, x, bytes), xr = dev_put(&ref, x, bytes);
            gpu.ops->sample(gpu.be, y, nowhere, xg, n, vocab, params, histories);
            gpu_sync();
            ref.ops->sample(ref.be, r, nowhere, xr, n, vocab, params, histories);
            for (int i = 0; i < n; i++, n_compared++) {
                char what[120];
                snprintf(what, sizeof what, "vocab %d, %s logits, parameters %d", vocab,
                         kind_names[kind], index[i]);
                compare_results(&y[i], &r[i], what);
            }
            float *after = xmalloc(bytes);
            dev_get(&gpu, after, xg, bytes);
            assert_memory_equal(after, x, bytes); /* logits stay as they were */
            free(after);
            free(x);
            dev_free_held(&gpu);
            dev_free_held(&ref);
        }
    printf("note: sample: %d draws equal to ref's\n", n_compared);
}

/* One row, many draws: the whole distribution is walked. */
static void draws_at_many_positions_agree_with_ref(void **state)
{
    (void)state;
    NEEDS_GPU();
    enum { VOCAB = 700, DRAWS = 600 };
    for (int kind = 0; kind < BROKEN; kind++) {
        float *x = xcalloc((size_t)(DRAWS * VOCAB), sizeof *x);
        struct sample_params *params = xcalloc(DRAWS, sizeof *params);
        struct sample_result *y = xcalloc(DRAWS, sizeof *y), *r = xcalloc(DRAWS, sizeof *r);
        for (int i = 0; i < DRAWS; i++) {
            fill(x + i * VOCAB, VOCAB, (enum kind)kind, 5);
            params[i] = (struct sample_params){.temperature = 1.5f,
                                               .top_k = i % 3 == 0 ? i : 0,
                                               .top_p = i % 2 == 0 ? 0.001f * (float)i : 1,
                                               .min_p = i % 5 == 0 ? 0.01f : 0,
                                               .repetition_penalty = 1,
                                               .seed = 1,
                                               .position = (uint64_t)i};
        }
        size_t bytes = (size_t)(DRAWS * VOCAB) * sizeof *x;
        gpu.ops->sample(gpu.be, y, nowhere, dev_put(&gpu, x, bytes), DRAWS, VOCAB, params, NULL);
        gpu_sync();
        ref.ops->sample(ref.be, r, nowhere, dev_put(&ref, x, bytes), DRAWS, VOCAB, params, NULL);
        for (int i = 0; i < DRAWS; i++) {
            char what[80];
            snprintf(what, sizeof what, "%s logits, draw %d", kind_names[kind], i);
            compare_results(&y[i], &r[i], what);
        }
        dev_free_held(&gpu);
        dev_free_held(&ref);
        free(x);
        free(params);
        free(y);
        free(r);
    }
}

static void ties_for_the_best_go_to_the_lowest_id_wherever_they_are(void **state)
{
    (void)state;
    NEEDS_GPU();
    enum { VOCAB = 128256 };
    static const int32_t tied[][3] = {{0, 1, VOCAB - 1},
                                      {2, 3, 4},
                                      {5000, 16031, 16032},
                                      {16032, 16033, 128000},
                                      {VOCAB - 3, VOCAB - 2, VOCAB - 1},
                                      {2049, 4097, 8193}};
    enum { ROWS = (int)COUNT(tied) };
    float *x = xcalloc((size_t)ROWS * VOCAB, sizeof *x);
    struct sample_params params[ROWS];
    struct sample_result y[ROWS];
    for (int i = 0; i < ROWS; i++) {
        for (int k = 0; k < 3; k++)
            x[i * VOCAB + tied[i][k]] = 4;
        params[i] = table[1];
        params[i].n_top = 4;
    }
    struct devptr d = dev_put(&gpu, x, (size_t)ROWS * VOCAB * sizeof *x);
    gpu.ops->sample(gpu.be, y, nowhere, d, ROWS, VOCAB, params, NULL);
    gpu_sync();
    for (int i = 0; i < ROWS; i++) {
        assert_int_equal(y[i].token, tied[i][0]);
        for (int k = 0; k < 3; k++)
            assert_int_equal(y[i].top_ids[k], tied[i][k]);
        assert_int_equal(y[i].top_ids[3], i == 0 ? 2 : 0);
    }
    dev_free_held(&gpu);
    free(x);
}

static void scores_agree_with_ref(void **state)
{
    (void)state;
    NEEDS_GPU();
    static const struct {
        int vocab, n;
    } shapes[] = {{7, 30}, {512, 300}, {32001, 20}, {128256, 6}};
    for (size_t v = 0; v < COUNT(shapes); v++) {
        int vocab = shapes[v].vocab, n = shapes[v].n;
        float *x = xcalloc((size_t)n * (size_t)vocab, sizeof *x);
        int32_t tokens[300], n_top[300];
        struct sample_result y[300], r[300];
        for (int i = 0; i < n; i++) {
            fill(x + (size_t)i * (size_t)vocab, vocab, (enum kind)(i % KINDS), (uint64_t)i);
            tokens[i] = (i * 7919) % vocab;
            n_top[i] = i % 21;
        }
        size_t bytes = (size_t)n * (size_t)vocab * sizeof *x;
        struct devptr xg = dev_put(&gpu, x, bytes), xr = dev_put(&ref, x, bytes);
        for (int with_top = 0; with_top < 2; with_top++) {
            gpu.ops->score(gpu.be, y, xg, n, vocab, tokens, with_top ? n_top : NULL);
            gpu_sync();
            ref.ops->score(ref.be, r, xr, n, vocab, tokens, with_top ? n_top : NULL);
            for (int i = 0; i < n; i++) {
                char what[80];
                snprintf(what, sizeof what, "score, vocab %d, row %d", vocab, i);
                compare_results(&y[i], &r[i], what);
            }
        }
        dev_free_held(&gpu);
        dev_free_held(&ref);
        free(x);
    }
}

/* More rows with a history than one launch takes. */
static void three_hundred_rows_with_penalties_agree_with_ref(void **state)
{
    (void)state;
    NEEDS_GPU();
    enum { VOCAB = 512, ROWS = 300 };
    float *x = xcalloc((size_t)(ROWS * VOCAB), sizeof *x);
    struct sample_params *params = xcalloc(ROWS, sizeof *params);
    struct sample_history *histories = xcalloc(ROWS, sizeof *histories);
    struct sample_result *y = xcalloc(ROWS, sizeof *y), *r = xcalloc(ROWS, sizeof *r);
    int32_t history[HISTORY], *tokens = xcalloc(ROWS, sizeof *tokens);
    for (int i = 0; i < HISTORY; i++)
        history[i] = i * i % VOCAB;
    for (int i = 0; i < ROWS; i++) {
        fill(x + i * VOCAB, VOCAB, NORMAL, (uint64_t)i);
        params[i] = table[i % TABLE];
        params[i].seed = (uint64_t)i;
        if (i % 3 != 0)
            params[i].frequency_penalty = 0.5f;
        histories[i] = (struct sample_history){
            .tokens = history, .n_prompt = i % 10, .n_tokens = 10 + i % 50};
    }
    size_t bytes = (size_t)(ROWS * VOCAB) * sizeof *x;
    struct devptr xg = dev_put(&gpu, x, bytes), d_tokens = dev_alloc(&gpu, ROWS * 4);
    for (int repeat = 0; repeat < 2; repeat++) { /* counts must be as before */
        gpu.ops->sample(gpu.be, y, d_tokens, xg, ROWS, VOCAB, params, histories);
        dev_get(&gpu, tokens, d_tokens, ROWS * 4);
        ref.ops->sample(ref.be, r, nowhere, dev_put(&ref, x, bytes), ROWS, VOCAB, params,
                        histories);
        for (int i = 0; i < ROWS; i++) {
            char what[80];
            snprintf(what, sizeof what, "row %d of 300 with penalties", i);
            compare_results(&y[i], &r[i], what);
            assert_int_equal(tokens[i], y[i].token);
        }
    }
    dev_free_held(&gpu);
    dev_free_held(&ref);
    free(x);
    free(params);
    free(histories);
    free(y);
    free(r);
    free(tokens);
}

/* ---- against itself -------------------------------------------------------------------------- */

static void a_row_gives_the_same_bits_alone_and_in_any_batch(void **state)
{
    (void)state;
    NEEDS_GPU();
    enum { ROWS = 64 };
    static const int vocabs[] = {7, 32001, 128256}; /* in odd ones rows aren't aligned */
    static const int sizes[] = {1, 3};
    for (size_t v = 0; v < COUNT(vocabs); v++) {
        size_t vocab = (size_t)vocabs[v];
        float *x = xcalloc(ROWS * vocab, sizeof *x);
        struct sample_params params[ROWS];
        struct sample_history histories[ROWS] = {{0}};
        struct sample_result all[ROWS], some[ROWS];
        int32_t history[] = {1, 2, 3, 3, 0}, tokens[ROWS];
        for (int i = 0; i < ROWS; i++) {
            fill(x + (size_t)i * vocab, vocabs[v], i % 9 == 8 ? FLAT : NORMAL, (uint64_t)i);
            params[i] = table[i % TABLE];
            params[i].seed = 3 * (uint64_t)i;
            if (i % 2 == 0)
                histories[i] = (struct sample_history){
                    .tokens = history, .n_prompt = 2, .n_tokens = 5};
        }
        struct devptr d = dev_put(&gpu, x, ROWS * vocab * sizeof *x),
                      d_tokens = dev_alloc(&gpu, sizeof tokens);
        gpu.ops->sample(gpu.be, all, d_tokens, d, ROWS, vocabs[v], params, histories);
        dev_get(&gpu, tokens, d_tokens, sizeof tokens);
        for (int i = 0; i < ROWS; i++)
            assert_int_equal(tokens[i], all[i].token);
        for (size_t k = 0; k < COUNT(sizes); k++)
            for (int i = 0; i + sizes[k] <= ROWS; i += sizes[k]) {
                gpu.ops->sample(gpu.be, some, nowhere, devptr_at(d, (size_t)i * vocab * sizeof *x),
                                sizes[k], vocabs[v], params + i, histories + i);
                gpu_sync();
                if (memcmp(some, all + i, (size_t)sizes[k] * sizeof *some) != 0)
                    fail_msg("vocab %d: rows from %d on differ in a batch of %d", vocabs[v], i,
                             sizes[k]);
            }
        dev_free_held(&gpu);
        free(x);
    }
}

/* The kernel itself reads and writes pinned memory; other memory is copied. */
static void pinned_memory_makes_no_difference(void **state)
{
    (void)state;
    NEEDS_GPU();
    enum { VOCAB = 32001, ROWS = 260 }; /* more than one launch takes */
    struct err err = {0};
    void *p, *q, *t;
    assert_ok(gpu.ops->host_alloc(gpu.be, &p, ROWS * sizeof(struct sample_params), &err), err);
    assert_ok(gpu.ops->host_alloc(gpu.be, &q, ROWS * sizeof(struct sample_result), &err), err);
    assert_ok(gpu.ops->host_alloc(gpu.be, &t, 2 * ROWS * sizeof(int32_t), &err), err);
    struct sample_params params[ROWS];
    struct sample_result *pinned = q, y[ROWS];
    int32_t tokens[2 * ROWS]; /* and n_top */
    size_t bytes = (size_t)ROWS * VOCAB * sizeof(float);
    float *x = xmalloc(bytes);
    for (int i = 0; i < ROWS; i++) {
        fill(x + (size_t)i * VOCAB, VOCAB, (enum kind)(i % KINDS), (uint64_t)i);
        params[i] = table[i % TABLE];
        params[i].seed = (uint64_t)i;
        tokens[i] = i * 7919 % VOCAB;
        tokens[ROWS + i] = i % 21;
    }
    memcpy(p, params, sizeof params);
    memcpy(t, tokens, sizeof tokens);
    struct devptr d = dev_put(&gpu, x, bytes);
    for (int pairs = 0; pairs < 2; pairs++) {
        memset(q, 0x55, sizeof y);
        memset(y, 0xaa, sizeof y);
        if (pairs == 0) {
            gpu.ops->sample(gpu.be, pinned, nowhere, d, ROWS, VOCAB, p, NULL);
            gpu.ops->sample(gpu.be, y, nowhere, d, ROWS, VOCAB, params, NULL);
        } else {
            gpu.ops->score(gpu.be, pinned, d, ROWS, VOCAB, t, (int32_t *)t + ROWS);
            gpu.ops->score(gpu.be, y, d, ROWS, VOCAB, tokens, tokens + ROWS);
        }
        gpu_sync();
        assert_memory_equal(pinned, y, sizeof y);
    }
    gpu.ops->host_free(gpu.be, p);
    gpu.ops->host_free(gpu.be, q);
    gpu.ops->host_free(gpu.be, t);
    dev_free_held(&gpu);
    free(x);
}

static void a_replayed_sample_reads_its_parameters_anew(void **state)
{
    (void)state;
    NEEDS_GPU();
    enum { VOCAB = 4096, ROWS = 5, REPLAYS = 6 };
    struct err err = {0};
    void *p, *q;
    assert_ok(gpu.ops->host_alloc(gpu.be, &p, ROWS * sizeof(struct sample_params), &err), err);
    assert_ok(gpu.ops->host_alloc(gpu.be, &q, ROWS * sizeof(struct sample_result), &err), err);
    struct sample_params *params = p;
    struct sample_result *y = q, r[ROWS];
    float *x = xcalloc((size_t)(ROWS * VOCAB), sizeof *x);
    size_t bytes = (size_t)(ROWS * VOCAB) * sizeof *x;
    struct devptr xg = dev_alloc(&gpu, bytes), xr = dev_alloc(&ref, bytes);
    struct devptr d_tokens = dev_alloc(&gpu, ROWS * 4);
    for (int i = 0; i < ROWS; i++)
        params[i] = table[0];
    struct recording *recording;
    assert_true(gpu.ops->record_begin(gpu.be));
    gpu.ops->sample(gpu.be, y, d_tokens, xg, ROWS, VOCAB, params, NULL);
    assert_ok(gpu.ops->record_end(gpu.be, &recording, &err), err);
    for (int replay = 0; replay < REPLAYS; replay++) {
        int32_t tokens[ROWS];
        for (int i = 0; i < ROWS; i++) {
            fill(x + i * VOCAB, VOCAB, (enum kind)((replay + i) % KINDS), (uint64_t)replay);
            params[i] = table[(replay * ROWS + i) % TABLE];
            params[i].position = (uint64_t)replay;
        }
        gpu.ops->upload(gpu.be, xg, x, bytes);
        gpu.ops->replay(gpu.be, recording);
        dev_get(&gpu, tokens, d_tokens, sizeof tokens);
        ref.ops->upload(ref.be, xr, x, bytes);
        ref.ops->sample(ref.be, r, nowhere, xr, ROWS, VOCAB, params, NULL);
        for (int i = 0; i < ROWS; i++) {
            char what[80];
            snprintf(what, sizeof what, "replay %d, row %d", replay, i);
            compare_results(&y[i], &r[i], what);
            assert_int_equal(tokens[i], y[i].token);
        }
    }
    gpu.ops->recording_free(gpu.be, recording);
    gpu.ops->host_free(gpu.be, p);
    gpu.ops->host_free(gpu.be, q);
    dev_free_held(&gpu);
    dev_free_held(&ref);
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_gpu_draws_what_ref_draws),
        cmocka_unit_test(draws_at_many_positions_agree_with_ref),
        cmocka_unit_test(ties_for_the_best_go_to_the_lowest_id_wherever_they_are),
        cmocka_unit_test(scores_agree_with_ref),
        cmocka_unit_test(three_hundred_rows_with_penalties_agree_with_ref),
        cmocka_unit_test(a_row_gives_the_same_bits_alone_and_in_any_batch),
        cmocka_unit_test(pinned_memory_makes_no_difference),
        cmocka_unit_test(a_replayed_sample_reads_its_parameters_anew),
    };
    return RUN_BESIDE_REF(tests);
}
