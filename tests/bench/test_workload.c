/* workload and latency: the distributions are those that were published, and the figures are what
 * they say. */
#include "node/base/err.h"
#include "tests/bench/latency.h"
#include "tests/bench/workload.h"
#include "tests/support.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

enum { MANY = 400000 };

static struct workload *create(struct workload_options o, const char *popularity,
                               const char *lengths)
{
    struct err err = {0};
    struct workload *w = NULL;
    assert_ok(workload_parse_popularity(&o, popularity, &err), err);
    assert_ok(workload_parse_lengths(&o, lengths, &err), err);
    assert_ok(workload_create(&w, &o, &err), err);
    return w;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void expect_near(const char *what, double got, double wanted, double percent)
{
    if (!(fabs(got - wanted) <= wanted * percent / 100))
        fail_msg("%s is %g, should be %g to within %g %%", what, got, wanted, percent);
}

struct published {
    double mean, p50, p90;
};

static void expect_lengths(const char *what, double *x, int n, struct published wanted)
{
    char text[128];
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i];
    qsort(x, (size_t)n, sizeof *x, ascending);
    struct published got = {sum / n, x[n / 2], x[n * 9 / 10]};
    print_message("note: %s: mean %.1f (%.0f), p50 %.0f (%.0f), p90 %.0f (%.0f)\n", what, got.mean,
                  wanted.mean, got.p50, wanted.p50, got.p90, wanted.p90);
    snprintf(text, sizeof text, "%s: mean", what);
    expect_near(text, got.mean, wanted.mean, 2);
    snprintf(text, sizeof text, "%s: p50", what);
    expect_near(text, got.p50, wanted.p50, 2);
    snprintf(text, sizeof text, "%s: p90", what);
    expect_near(text, got.p90, wanted.p90, 2);
}

static void the_azure_lengths_have_the_published_mean_median_and_90th_percentile(void **state)
{
    (void)state;
    static const struct {
        const char *lengths;
        struct published prompt, answer;
    } services[] = {{"azure-conv", {1155, 1020, 2735}, {211, 129, 424}},
                    {"azure-code", {2048, 1469, 5194}, {28, 13, 55}}};
    double *prompts = xcalloc(MANY, sizeof *prompts), *answers = xcalloc(MANY, sizeof *answers);
    for (size_t s = 0; s < 2; s++) {
        struct workload *w = create((struct workload_options){.seed = 1}, "identical",
                                    services[s].lengths);
        for (int i = 0; i < MANY; i++) {
            struct workload_request r;
            workload_next(w, &r);
            prompts[i] = r.n_prompt;
            answers[i] = r.n_generate;
        }
        char text[64];
        snprintf(text, sizeof text, "%s prompts", services[s].lengths);
        expect_lengths(text, prompts, MANY, services[s].prompt);
        snprintf(text, sizeof text, "%s answers", services[s].lengths);
        expect_lengths(text, answers, MANY, services[s].answer);
        workload_free(w);
    }
    free(prompts);
    free(answers);
}

static void arrivals_have_the_rate_and_the_variation_asked_for(void **state)
{
    (void)state;
    static const struct {
        double cv, percent;
        int n;
    } rows[] = {{0, 0.01, 1000},  {0.5, 2, 200000}, {1, 2, 200000},
                {1.1, 2, 200000}, {8, 5, 1000000},  {13, 7, 3000000}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        struct workload *w = create(
            (struct workload_options){.seed = 7, .rate = 20, .cv = rows[i].cv}, "uniform",
            "fixed:1:1");
        double sum = 0, squares = 0, last = 0;
        for (int k = 0; k < rows[i].n; k++) {
            struct workload_request r;
            workload_next(w, &r);
            double gap = r.at_s - last;
            assert_true(gap >= 0);
            sum += gap;
            squares += gap * gap;
            last = r.at_s;
        }
        double mean = sum / rows[i].n, cv = sqrt(fmax(0, squares / rows[i].n - mean * mean)) / mean;
        print_message("note: arrivals of cv %g: rate %.2f of 20, cv %.3f\n", rows[i].cv, 1 / mean,
                      cv);
        expect_near("the rate", 1 / mean, 20, rows[i].percent);
        if (rows[i].cv > 0)
            expect_near("the coefficient of variation", cv, rows[i].cv, rows[i].percent);
        else
            assert_true(cv < 1e-3);
        workload_free(w);
    }
}

/* Share of requests that want one of the first `first` of n adapters. */
static double share_of_first(const char *popularity, int n, int first)
{
    struct workload *w = create((struct workload_options){.seed = 3, .n_adapters = n}, popularity,
                                "fixed:1:1");
    int n_first = 0;
    for (int i = 0; i < MANY; i++) {
        struct workload_request r;
        workload_next(w, &r);
        assert_in_range(r.adapter, 0, n - 1);
        n_first += r.adapter < first;
    }
    workload_free(w);
    return (double)n_first / MANY;
}

static void adapters_are_as_popular_as_the_law_says(void **state)
{
    (void)state;
    double h100 = 0; /* harmonic number */
    for (int i = 1; i <= 100; i++)
        h100 += 1.0 / i;
    expect_near("uniform: the first quarter", share_of_first("uniform", 100, 25), 0.25, 2);
    expect_near("identical: the first", share_of_first("identical", 100, 1), 1, 0);
    expect_near("distinct: the first", share_of_first("distinct", 100, 1), 0.01, 0.01);
    expect_near("zipf:1: the first", share_of_first("zipf:1", 100, 1), 1 / h100, 2);
    expect_near("zipf:1: the first ten", share_of_first("zipf:1", 100, 10), 2.9289682 / h100, 2);
    expect_near("power:1: the first quarter", share_of_first("power:1", 100, 25), 0.25, 2);
    /* P(U^(1/A) < x) = x^A */
    expect_near("power:0.3: the first tenth", share_of_first("power:0.3", 100, 10), pow(0.1, 0.3),
                2);
    /* 1/3 of what is left goes to each: 1 - 1/1.5 */
    expect_near("punica:1.5: the first", share_of_first("punica:1.5", 64, 1), 1.0 / 3, 2);
    expect_near("punica:1.5: the first two", share_of_first("punica:1.5", 64, 2), 5.0 / 9, 2);
}

static void synthetic_lengths_have_their_ranges_and_means(void **state)
{
    (void)state;
    struct workload *w = create((struct workload_options){.seed = 5}, "uniform", "uniform:8:512");
    struct workload_request r;
    double prompts = 0, answers = 0;
    int least = 1 << 20, most = 0;
    for (int i = 0; i < MANY; i++) {
        workload_next(w, &r);
        prompts += r.n_prompt;
        answers += r.n_generate;
        least = r.n_prompt < least ? r.n_prompt : least;
        most = r.n_generate > most ? r.n_generate : most;
    }
    workload_free(w);
    assert_int_equal(least, 8);
    assert_int_equal(most, 512);
    expect_near("the mean prompt", prompts / MANY, 260, 1);
    expect_near("the mean answer", answers / MANY, 260, 1);

    w = create((struct workload_options){.seed = 5}, "uniform", "punica");
    prompts = answers = 0;
    for (int i = 0; i < MANY; i++) {
        workload_next(w, &r);
        prompts += r.n_prompt;
        answers += r.n_generate;
        assert_true(r.n_prompt >= 1 && r.n_generate >= 2);
        assert_true(r.n_prompt + r.n_generate <= 2048);
    }
    workload_free(w);
    /* exp(0.8^2 / 2) 18 - 1 = 23.8, less half for cutting to whole tokens; totals around 1023.5 */
    expect_near("punica's mean prompt", prompts / MANY, 23.3, 3);
    expect_near("punica's mean answer", answers / MANY, 1023.5 - 23.3, 2);
}

static void lengths_are_cut_to_the_context(void **state)
{
    (void)state;
    struct workload *w = create((struct workload_options){.seed = 5, .max_context = 300}, "uniform",
                                "uniform:8:512");
    for (int i = 0; i < 10000; i++) {
        struct workload_request r;
        workload_next(w, &r);
        assert_true(r.n_prompt >= 1 && r.n_generate >= 1 && r.n_prompt + r.n_generate <= 300);
    }
    workload_free(w);
}

static void a_seed_gives_the_same_requests_and_the_rate_changes_only_their_times(void **state)
{
    (void)state;
    struct workload_options o = {.seed = 11, .rate = 5, .cv = 1, .n_adapters = 50, .n_payers = 4};
    struct workload *a = create(o, "zipf:1.2", "azure-conv");
    struct workload *b = create(o, "zipf:1.2", "azure-conv");
    o.rate = 10;
    struct workload *fast = create(o, "zipf:1.2", "azure-conv");
    bool payers[4] = {false};
    for (int i = 0; i < 1000; i++) {
        struct workload_request x, y, z;
        workload_next(a, &x);
        workload_next(b, &y);
        workload_next(fast, &z);
        assert_int_equal(x.number, i);
        assert_memory_equal(&x.at_s, &y.at_s, sizeof x.at_s);
        assert_true(x.adapter == y.adapter && x.adapter == z.adapter);
        assert_true(x.n_prompt == y.n_prompt && x.n_prompt == z.n_prompt);
        assert_true(x.n_generate == y.n_generate && x.n_generate == z.n_generate);
        assert_true(x.payer == y.payer && x.payer == z.payer);
        assert_true(fabs(x.at_s - 2 * z.at_s) < 1e-9 * (1 + x.at_s));
        payers[x.payer] = true;
    }
    assert_true(payers[0] && payers[1] && payers[2] && payers[3]);
    workload_free(a);
    workload_free(b);
    workload_free(fast);
}

static void the_adapters_seed_changes_the_adapters_alone(void **state)
{
    (void)state;
    struct workload_options o = {
        .seed = 9, .adapter_seed = 1, .rate = 10, .cv = 2, .n_adapters = 1000, .n_payers = 5};
    struct workload *one = create(o, "uniform", "uniform:8:512");
    o.adapter_seed = 2;
    struct workload *other = create(o, "uniform", "uniform:8:512");
    o.adapter_seed = 1;
    o.seed = 10;
    struct workload *later = create(o, "uniform", "uniform:8:512");
    int n_same = 0, n_lengths = 0;
    for (int i = 0; i < 1000; i++) {
        struct workload_request a, b, c;
        workload_next(one, &a);
        workload_next(other, &b);
        workload_next(later, &c);
        assert_true(a.at_s == b.at_s && a.n_prompt == b.n_prompt && a.n_generate == b.n_generate &&
                    a.payer == b.payer);
        assert_int_equal(a.adapter, c.adapter);
        n_same += a.adapter == b.adapter;
        n_lengths += a.n_prompt == c.n_prompt;
    }
    assert_true(n_same < 20 && n_lengths < 20); /* one and two in a thousand by chance */
    workload_free(one);
    workload_free(other);
    workload_free(later);
}

static void words_that_mean_nothing_are_refused(void **state)
{
    (void)state;
    static const char *const popularities[] = {"",        "unifor",   "zipf",   "zipf:", "zipf:x",
                                               "zipf:1x", "uniform:", "punica", "power:"};
    static const char *const lengths[] = {"",          "fixed:1", "fixed:1:2:3", "uniform:8",
                                          "gauss:1:2", "azure",   "azure-conv2", "uniform:1:2 3",
                                          "punica:1"};
    struct workload_options o = {.n_adapters = 1};
    struct err err = {0};
    for (size_t i = 0; i < sizeof popularities / sizeof popularities[0]; i++)
        if (workload_parse_popularity(&o, popularities[i], &err) == 0)
            fail_msg("popularity \"%s\" was taken", popularities[i]);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++)
        if (workload_parse_lengths(&o, lengths[i], &err) == 0)
            fail_msg("lengths \"%s\" were taken", lengths[i]);
    struct workload *w = NULL;
    o = (struct workload_options){.lengths = LENGTHS_UNIFORM, .length_a = 9, .length_b = 8};
    assert_int_equal(workload_create(&w, &o, &err), -1);
    o = (struct workload_options){.lengths = LENGTHS_PUNICA, .rate = -1};
    assert_int_equal(workload_create(&w, &o, &err), -1);
    o = (struct workload_options){.lengths = LENGTHS_PUNICA, .popularity = POPULARITY_ZIPF};
    assert_int_equal(workload_create(&w, &o, &err), -1);
    assert_null(w);
}

static void percentiles_are_those_of_the_sorted_list(void **state)
{
    (void)state;
    struct latency *l = xcalloc(1, sizeof *l), *sum = xcalloc(1, sizeof *sum);
    double *x = xcalloc(MANY, sizeof *x), total = 0;
    uint64_t random = 1;
    assert_true(latency_percentile(l, 50) == 0 && latency_mean(l) == 0);
    for (int i = 0; i < MANY; i++) {
        x[i] = random_gamma(&random, 12, 1.5) + 0.01;
        latency_note(l, x[i]);
        total += x[i];
    }
    qsort(x, MANY, sizeof *x, ascending);
    static const double ps[] = {1, 50, 90, 99, 99.9};
    for (size_t i = 0; i < sizeof ps / sizeof ps[0]; i++)
        expect_near("a percentile", latency_percentile(l, ps[i]),
                    x[(int)ceil(ps[i] / 100 * MANY) - 1], 0.06);
    expect_near("the mean", latency_mean(l), total / MANY, 1e-6);
    expect_near("the largest", latency_percentile(l, 100), x[MANY - 1], 0);
    latency_add(sum, l);
    latency_add(sum, l);
    assert_int_equal(sum->n, 2 * MANY);
    expect_near("the median of both", latency_percentile(sum, 50), latency_percentile(l, 50), 0.2);
    free(l);
    free(sum);
    free(x);
}

static void jains_index_is_one_for_equals_and_one_nth_for_one_who_has_all(void **state)
{
    (void)state;
    expect_near("of equals", jain_index((const double[]){3, 3, 3, 3}, 4), 1, 1e-9);
    expect_near("of one who has all", jain_index((const double[]){0, 8, 0, 0}, 4), 0.25, 1e-9);
    expect_near("of 1, 2, 3", jain_index((const double[]){1, 2, 3}, 3), 36.0 / 42, 1e-9);
    expect_near("of nothing", jain_index(NULL, 0), 1, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_azure_lengths_have_the_published_mean_median_and_90th_percentile),
        cmocka_unit_test(arrivals_have_the_rate_and_the_variation_asked_for),
        cmocka_unit_test(adapters_are_as_popular_as_the_law_says),
        cmocka_unit_test(synthetic_lengths_have_their_ranges_and_means),
        cmocka_unit_test(lengths_are_cut_to_the_context),
        cmocka_unit_test(a_seed_gives_the_same_requests_and_the_rate_changes_only_their_times),
        cmocka_unit_test(the_adapters_seed_changes_the_adapters_alone),
        cmocka_unit_test(words_that_mean_nothing_are_refused),
        cmocka_unit_test(percentiles_are_those_of_the_sorted_list),
        cmocka_unit_test(jains_index_is_one_for_equals_and_one_nth_for_one_who_has_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
