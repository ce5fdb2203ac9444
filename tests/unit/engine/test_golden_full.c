/* variant: release. The held-out matrix: the negative log-likelihood a token of four domains under
 * the base model and four adapters, all domains and all five "adapters" in flight at once. An
 * adapter must be good at its own domain and do what the golden says on the others; one that leaks
 * into its neighbours can't.
 *
 * 357,000 tokens: too long under a sanitizer, where a part of the sequences is computed twice
 * instead: all at once, and then adapter after adapter, and must give the same bits. */
#include "tests/unit/engine/demo7m.h"

enum { DOMAINS = 4, SEQUENCE_MAX = 512, SEQUENCE_MIN = 8 };

static const char *const DOMAIN_NAMES[DOMAINS] = {"med", "law", "code", "verse"};

struct text { /* a held-out sequence */
    int32_t *ids;
    int n, domain;
};

static struct text *read_texts(int *n_texts, int stride, int n_max)
{
    json_t *all = fixture_json("tests/vectors/golden/demo-7m_heldout_tokens.json.gz");
    struct text *texts = NULL;
    *n_texts = 0;
    for (int d = 0; d < DOMAINS; d++) {
        const json_t *list = json_object_get(all, DOMAIN_NAMES[d]);
        assert_true(json_array_size(list) > 40);
        for (size_t i = 0; i < json_array_size(list); i += (size_t)stride) {
            struct text t = {.domain = d};
            t.ids = run_ids(json_array_get(list, i), &t.n);
            if (t.n < SEQUENCE_MIN) {
                free(t.ids);
                continue;
            }
            if (t.n > n_max)
                t.n = n_max;
            texts = xrealloc_array(texts, (size_t)*n_texts + 1, sizeof *texts);
            texts[(*n_texts)++] = t;
        }
    }
    json_decref(all);
    return texts;
}

static struct engine_request scoring(const struct demo *d, const struct text *t, int adapter)
{
    struct engine_request r = run_greedy(t->ids, t->n, 0, 0);
    r.prompt_logprobs = true;
    return demo_under(d, r, adapter);
}

static double nll(const struct answer *a)
{
    double sum = 0;
    for (int i = 0; i < a->n_prompt; i++)
        sum -= (double)a->prompt[i].logprob;
    return sum;
}

static void open_for_scoring(struct demo *d, int n_threads, int n)
{
    struct engine_options options = run_options(MODELS "demo-7m");
    options.n_threads = n_threads;
    options.max_waiting = n;
    options.kv_bytes = (size_t)512 << 20;
    demo_open(d, options, n);
}

static void the_held_out_matrix_agrees_with_the_golden_in_every_cell(void **state)
{
    (void)state;
    if (SANITIZED) {
        print_message("the held-out matrix runs from a build without sanitizers\n");
        skip();
    }
    int n_texts;
    struct text *texts = read_texts(&n_texts, 1, SEQUENCE_MAX);
    struct demo d;
    open_for_scoring(&d, 0, n_texts * DEMO_ADAPTERS);
    for (int i = 0; i < n_texts; i++)
        for (int a = 0; a < DEMO_ADAPTERS; a++)
            run_submit(&d.run, scoring(&d, &texts[i], (a + i) % DEMO_ADAPTERS));
    run_wait(&d.run);
    double sum[DEMO_ADAPTERS][DOMAINS] = {{0}};
    int n_tokens[DEMO_ADAPTERS][DOMAINS] = {{0}};
    for (int i = 0; i < n_texts; i++)
        for (int a = 0; a < DEMO_ADAPTERS; a++) {
            const struct answer *answer = &d.run.answers[i * DEMO_ADAPTERS + a];
            assert_int_equal(answer->n_prompt, texts[i].n - 1);
            sum[(a + i) % DEMO_ADAPTERS][texts[i].domain] += nll(answer);
            n_tokens[(a + i) % DEMO_ADAPTERS][texts[i].domain] += answer->n_prompt;
        }
    json_t *golden = fixture_json("tests/vectors/golden/demo-7m_heldout_nll.json");
    const json_t *rows = json_object_get(golden, "nll_per_token");
    double worst = 0;
    for (int a = 0; a < DEMO_ADAPTERS; a++)
        for (int t = 0; t < DOMAINS; t++) {
            double want = json_number_value(
                json_object_get(json_object_get(rows, DEMO_NAMES[a]), DOMAIN_NAMES[t]));
            double got = sum[a][t] / n_tokens[a][t];
            if (!(fabs(got - want) < 0.01))
                fail_msg("%s on %s: %.5f nats a token, golden %.5f", DEMO_NAMES[a], DOMAIN_NAMES[t],
                         got, want);
            worst = fabs(got - want) > worst ? fabs(got - want) : worst;
        }
    print_message("note: held-out matrix: 20 cells, %d sequences, largest distance %.1e\n",
                  n_texts * DEMO_ADAPTERS, worst);
    json_decref(golden);
    run_close(&d.run);
    for (int i = 0; i < n_texts; i++)
        free(texts[i].ids);
    free(texts);
}

static void held_out_texts_score_the_same_beside_others_and_adapter_by_adapter(void **state)
{
    (void)state;
    int n_texts;
    struct text *texts = read_texts(&n_texts, SANITIZED ? 60 : 12, SANITIZED ? 24 : SEQUENCE_MAX);
    struct demo mixed, sorted;
    open_for_scoring(&mixed, 2, n_texts * DEMO_ADAPTERS);
    open_for_scoring(&sorted, 1, n_texts * DEMO_ADAPTERS);
    for (int i = 0; i < n_texts; i++)
        for (int a = 0; a < DEMO_ADAPTERS; a++)
            run_submit(&mixed.run, scoring(&mixed, &texts[i], a));
    for (int a = 0; a < DEMO_ADAPTERS; a++) {
        for (int i = 0; i < n_texts; i++)
            run_submit(&sorted.run, scoring(&sorted, &texts[i], a));
        run_wait(&sorted.run);
    }
    run_wait(&mixed.run);
    for (int i = 0; i < n_texts; i++)
        for (int a = 0; a < DEMO_ADAPTERS; a++)
            if (!run_same(&mixed.run.answers[i * DEMO_ADAPTERS + a],
                          &sorted.run.answers[a * n_texts + i]))
                fail_msg("%s on text %d: other bits beside other adapters", DEMO_NAMES[a], i);
    run_close(&mixed.run);
    run_close(&sorted.run);
    for (int i = 0; i < n_texts; i++)
        free(texts[i].ids);
    free(texts);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_held_out_matrix_agrees_with_the_golden_in_every_cell),
        cmocka_unit_test(held_out_texts_score_the_same_beside_others_and_adapter_by_adapter),
    };
    return cmocka_run_group_tests_name("golden matrix", tests, NULL, NULL);
}
