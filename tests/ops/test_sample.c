/* variant: both. sample and score: cpu against ref on tables of parameters, the rules that ops.h
 * states on hand-made logits, and the distribution of the draws. */
#include "tests/ops/harness.h"

static const struct sample_params neutral = {
    .temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 1};

/* temperature, top_k, top_p, min_p; repetition, frequency, presence penalty; n_top */
#define PARAMS(t, k, p, m, r, f, pr, top)                                              \
    {                                                                                  \
        .temperature = t, .top_k = k, .top_p = p, .min_p = m, .repetition_penalty = r, \
        .frequency_penalty = f, .presence_penalty = pr, .n_top = top                   \
    }

static const struct sample_params table[] = {
    PARAMS(0, 0, 1, 0, 1, 0, 0, 0),       PARAMS(1, 0, 1, 0, 1, 0, 0, 20),
    PARAMS(0.7f, 0, 1, 0, 1, 0, 0, 1),    PARAMS(2.5f, 0, 1, 0, 1, 0, 0, 5),
    PARAMS(1e-3f, 0, 1, 0, 1, 0, 0, 0),   PARAMS(1e-40f, 0, 1, 0, 1, 0, 0, 0),
    PARAMS(100, 0, 1, 0, 1, 0, 0, 0),     PARAMS(1, 1, 1, 0, 1, 0, 0, 0),
    PARAMS(1, 50, 1, 0, 1, 0, 0, 0),      PARAMS(1, 1000000, 1, 0, 1, 0, 0, 0),
    PARAMS(1, 0, 0.9f, 0, 1, 0, 0, 0),    PARAMS(1, 0, 0.0f, 0, 1, 0, 0, 0),
    PARAMS(3, 0, 0.999f, 0, 1, 0, 0, 0),  PARAMS(1, 0, 1, 0.05f, 1, 0, 0, 0),
    PARAMS(1, 0, 1, 1, 1, 0, 0, 0),       PARAMS(0.8f, 40, 0.95f, 0.02f, 1, 0, 0, 3),
    PARAMS(1, 0, 1, 0, 1.3f, 0, 0, 0),    PARAMS(1, 0, 1, 0, 1, 0.7f, -0.4f, 0),
    PARAMS(1, 0, 0.8f, 0, 0.8f, 1, 1, 0),
};

enum kind { NORMAL, FLAT, PEAKED, TIES, BROKEN, FORBIDDEN, KINDS };
static const char *const kind_names[] = {"normal", "flat", "peaked", "ties", "broken", "forbidden"};

static void fill(float *x, int vocab, enum kind kind, uint64_t seed)
{
    for (int i = 0; i < vocab; i++) {
        float r = random_normal(&seed, 1);
        x[i] = kind == NORMAL   ? 3 * r
               : kind == FLAT   ? 0.01f * r
               : kind == PEAKED ? (i == vocab / 3 ? 40 : r)
               : kind == TIES   ? roundf(r * 2)
               : kind == BROKEN ? (i % 5 == 0   ? NAN
                                   : i % 7 == 0 ? -INFINITY
                                   : i == 11    ? INFINITY
                                                : r)
                                : (i % 3 ? NAN : -INFINITY);
    }
}

static bool close_to(float a, float b)
{
    return a == b || fabsf(a - b) <= 2e-5f + 1e-6f * fabsf(b);
}

static void compare(const struct sample_result *y, const struct sample_result *r, const char *what)
{
    if (y->token != r->token || !close_to(y->logprob, r->logprob) || y->n_top != r->n_top)
        fail_msg("%s: cpu gives token %d (%g, %d top), ref %d (%g, %d top)", what, y->token,
                 (double)y->logprob, y->n_top, r->token, (double)r->logprob, r->n_top);
    for (int i = 0; i < r->n_top; i++)
        if (y->top_ids[i] != r->top_ids[i] || !close_to(y->top_logprobs[i], r->top_logprobs[i]))
            fail_msg("%s: top %d is %d (%g) on cpu, %d (%g) on ref", what, i, y->top_ids[i],
                     (double)y->top_logprobs[i], r->top_ids[i], (double)r->top_logprobs[i]);
}

static void cpu_draws_what_ref_draws(void **state)
{
    (void)state;
    static const int vocabs[] = {1, 7, 512, 32003};
    size_t n_compared = 0;
    for (size_t v = 0; v < COUNT(vocabs); v++)
        for (int variant = 0; variant < isa_variants_count(false); variant++) {
            const int vocab = vocabs[v], n = (int)COUNT(table);
            struct dev ref, cpu;
            float *x = xcalloc((size_t)(n * vocab), sizeof *x);
            int32_t *history = xcalloc(60, sizeof *history);
            dev_open(&ref, "ref", 1, NULL);
            dev_open(&cpu, "cpu", 2, isa_variants[variant]);
            for (enum kind kind = NORMAL; kind < KINDS; kind++) {
                struct sample_params params[COUNT(table)];
                struct sample_history histories[COUNT(table)];
                struct sample_result r[COUNT(table)], y[COUNT(table)], one;
                int32_t bias_ids[3] = {0, vocab / 2, vocab - 1};
                float bias_values[3] = {2, -INFINITY, -1};
                uint64_t random = 99;
                for (int i = 0; i < 60; i++)
                    history[i] = (int32_t)(random_u64(&random) % (uint64_t)vocab) / (1 + i % 4);
                for (int i = 0; i < n; i++) {
                    fill(x + i * vocab, vocab, kind, (uint64_t)(1000 * i) + v);
                    params[i] = table[i];
                    params[i].seed = 42 + (uint64_t)i;
                    params[i].position = 7 * (uint64_t)i;
                    histories[i] = (struct sample_history){.tokens = i % 4 == 3 ? NULL : history,
                                                           .n_prompt = 20,
                                                           .n_tokens = 60,
                                                           .bias_ids = bias_ids,
                                                           .bias_values = bias_values,
                                                           .n_bias = i % 3 == 2 ? 3 : 0};
                }
                size_t bytes = (size_t)(n * vocab) * sizeof *x;
                struct devptr xr = dev_put(&ref, x, bytes), xc = dev_put(&cpu, x, bytes);
                ref.ops->sample(ref.be, r, (struct devptr){0}, xr, n, vocab, params, histories);
                cpu.ops->sample(cpu.be, y, (struct devptr){0}, xc, n, vocab, params, histories);
                for (int i = 0; i < n; i++) {
                    char what[120];
                    snprintf(what, sizeof what, "vocab %d, %s logits, parameters %d", vocab,
                             kind_names[kind], i);
                    compare(&y[i], &r[i], what);
                    cpu.ops->sample(cpu.be, &one, (struct devptr){0},
                                    devptr_at(xc, (size_t)(i * vocab) * sizeof *x), 1, vocab,
                                    &params[i], &histories[i]);
                    if (one.token != y[i].token || f32_bits(one.logprob) != f32_bits(y[i].logprob))
                        fail_msg("%s: another result when alone", what);
                    n_compared++;
                }
                int32_t tokens[COUNT(table)], n_top[COUNT(table)];
                for (int i = 0; i < n; i++) {
                    tokens[i] = (i * 31) % vocab;
                    n_top[i] = i;
                }
                ref.ops->score(ref.be, r, xr, n, vocab, tokens, n_top);
                cpu.ops->score(cpu.be, y, xc, n, vocab, tokens, n_top);
                for (int i = 0; i < n; i++)
                    compare(&y[i], &r[i], "score");
                float *after = xmalloc(bytes);
                dev_get(&cpu, after, xc, bytes);
                assert_memory_equal(after, x, bytes); /* logits stay as they were */
                free(after);
                dev_free_held(&ref);
                dev_free_held(&cpu);
            }
            free(x);
            free(history);
            dev_close(&ref);
            dev_close(&cpu);
        }
    printf("note: sample: %zu draws equal to ref's\n", n_compared);
}

/* Every backend, one row of hand-made logits. */
static int32_t draw_one(const char *backend, const float *x, int vocab, struct sample_params p,
                        const struct sample_history *h)
{
    struct dev dev;
    struct sample_result r;
    dev_open(&dev, backend, 1, "");
    dev.ops->sample(dev.be, &r, (struct devptr){0}, dev_put(&dev, x, (size_t)vocab * sizeof *x), 1,
                    vocab, &p, h);
    dev_close(&dev);
    return r.token;
}

static const char *const both[] = {"ref", "cpu"};

static void ties_go_to_the_lowest_id(void **state)
{
    (void)state;
    float x[100];
    for (int i = 0; i < 100; i++)
        x[i] = i == 23 || i == 24 || i == 99 ? 5 : 1;
    struct sample_params greedy = neutral, one = neutral;
    greedy.temperature = 0;
    one.top_k = 1;
    for (int b = 0; b < 2; b++) {
        assert_int_equal(draw_one(both[b], x, 100, greedy, NULL), 23);
        for (one.position = 0; one.position < 20; one.position++)
            assert_int_equal(draw_one(both[b], x, 100, one, NULL), 23);
    }
}

static void penalties_and_bias_follow_their_formulas(void **state)
{
    (void)state;
    /* Token 1 was in the prompt, token 2 twice and token 3 once in the output. */
    static const int32_t tokens[] = {1, 1, 2, 3, 2};
    const float x[5] = {1.0f, 1.5f, 2.0f, 1.8f, -1.0f};
    struct sample_history h = {.tokens = tokens, .n_prompt = 2, .n_tokens = 5};
    static const struct {
        float repetition, frequency, presence;
        int32_t bias_id;
        float bias;
        int32_t greedy; /* by hand */
    } cases_[] = {
        {1, 0, 0, 0, 0, 2},         /* as they are */
        {1, 0.15f, 0, 0, 0, 2},     /* 2: 1.7, 3: 1.65, 1: 1.5 */
        {1, 0.4f, 0, 0, 0, 1},      /* 2: 1.2, 3: 1.4, 1: 1.5 */
        {1, 0, 0.6f, 0, 0, 1},      /* 2: 1.4, 3: 1.2, 1: 1.5 */
        {2, 0, 0, 0, 0, 0},         /* 1: .75, 2: 1, 3: .9; 0: 1 wins the tie by id */
        {1, 0, 0, 4, 4, 4},         /* 4: 3 */
        {1, 0, 0, 2, -INFINITY, 3}, /* 2 forbidden */
    };
    for (int b = 0; b < 2; b++)
        for (size_t i = 0; i < COUNT(cases_); i++) {
            struct sample_params p = neutral;
            p.temperature = 0;
            p.repetition_penalty = cases_[i].repetition;
            p.frequency_penalty = cases_[i].frequency;
            p.presence_penalty = cases_[i].presence;
            h.bias_ids = &cases_[i].bias_id;
            h.bias_values = &cases_[i].bias;
            h.n_bias = cases_[i].bias != 0;
            int32_t got = draw_one(both[b], x, 5, p, &h);
            if (got != cases_[i].greedy)
                fail_msg("%s, case %zu: token %d, by hand %d", both[b], i, got, cases_[i].greedy);
        }
}

/* Pearson's statistic of 20,000 draws against expected probabilities; 99.9 % quantiles of the
 * chi-square distribution: 5 degrees of freedom 20.5, 3: 16.3, 2: 13.8. Seeds are fixed: no flakes.
 */
static void draws_follow_the_distribution(void **state)
{
    (void)state;
    const double p[6] = {0.4, 0.25, 0.15, 0.1, 0.06, 0.04};
    static const struct {
        struct sample_params params;
        int n_kept;
        double bound;
    } cases_[] = {
        {PARAMS(1, 0, 1, 0, 1, 0, 0, 0), 6, 20.5},
        {PARAMS(1, 4, 1, 0, 1, 0, 0, 0), 4, 16.3},
        {PARAMS(1, 0, 0.75f, 0, 1, 0, 0, 0), 3, 13.8},
        {PARAMS(1, 0, 1, 0.2f, 1, 0, 0, 0), 4, 16.3}, /* 0.2 * 0.4 = 0.08 */
    };
    float x[6];
    for (int i = 0; i < 6; i++)
        x[i] = (float)log(p[i]) + 3;
    for (int b = 0; b < 2; b++)
        for (size_t c = 0; c < COUNT(cases_); c++) {
            enum { DRAWS = 20000 };
            int count[6] = {0};
            struct dev dev;
            dev_open(&dev, both[b], 1, "");
            struct devptr d_x = dev_put(&dev, x, sizeof x);
            for (int i = 0; i < DRAWS; i++) {
                struct sample_params params = cases_[c].params;
                struct sample_result r;
                params.seed = c + 1;
                params.position = (uint64_t)i;
                dev.ops->sample(dev.be, &r, (struct devptr){0}, d_x, 1, 6, &params, NULL);
                count[r.token]++;
            }
            dev_close(&dev);
            double mass = 0, chi2 = 0;
            for (int i = 0; i < cases_[c].n_kept; i++)
                mass += p[i];
            for (int i = 0; i < 6; i++) {
                double expected = i < cases_[c].n_kept ? DRAWS * p[i] / mass : 0;
                if (expected == 0)
                    assert_int_equal(count[i], 0);
                else
                    chi2 += (count[i] - expected) * (count[i] - expected) / expected;
            }
            if (chi2 > cases_[c].bound)
                fail_msg("%s, case %zu: chi-square %g, bound %g", both[b], c, chi2,
                         cases_[c].bound);
        }
}

static void logprobs_are_of_the_raw_logits(void **state)
{
    (void)state;
    const float x[4] = {0, logf(2), logf(5), -INFINITY}; /* probabilities 1/8, 2/8, 5/8, 0 */
    for (int b = 0; b < 2; b++) {
        struct dev dev;
        struct sample_result r;
        struct sample_params p = neutral;
        p.temperature = 0;
        p.n_top = 4;
        int32_t banned = 2;
        float ban = -INFINITY;
        struct sample_history h = {.bias_ids = &banned, .bias_values = &ban, .n_bias = 1};
        dev_open(&dev, both[b], 1, "");
        dev.ops->sample(dev.be, &r, (struct devptr){0}, dev_put(&dev, x, sizeof x), 1, 4, &p, &h);
        dev_close(&dev);
        assert_int_equal(r.token, 1);
        assert_true(fabs((double)r.logprob - log(0.25)) < 1e-6);
        assert_int_equal(r.n_top, 4);
        static const int32_t order[] = {2, 1, 0, 3};
        static const double probability[] = {0.625, 0.25, 0.125, 0};
        for (int i = 0; i < 4; i++) {
            assert_int_equal(r.top_ids[i], order[i]);
            assert_true(fabs(exp((double)r.top_logprobs[i]) - probability[i]) < 1e-6);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cpu_draws_what_ref_draws),
        cmocka_unit_test(ties_go_to_the_lowest_id),
        cmocka_unit_test(penalties_and_bias_follow_their_formulas),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(logprobs_are_of_the_raw_logits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
