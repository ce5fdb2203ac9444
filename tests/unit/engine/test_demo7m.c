/* variant: both. demo-7m, base and four adapters: what they say agrees with the golden file,
 * whoever runs beside them, and to the bit with what they say alone. Under a sanitizer a part of
 * the golden file is run; all of it in a build without. */
#include "tests/unit/engine/demo7m.h"

static const double LOGPROB_TOLERANCE = 1e-3;
static const double MARGIN = 0.02; /* below it, two implementations may disagree about the best */

struct worst {
    double distance;
    int n_compared;
};

/* The golden's five best at one place against the 20 of an event. */
static void check_top(const struct golden *g, int i, const struct run_event *e, struct worst *worst)
{
    for (int j = 0; j < DEMO_TOP; j++) {
        int k = 0;
        while (k < e->n_top && e->top_ids[k] != g->top[i][j].id)
            k++;
        if (k == e->n_top)
            fail_msg("%s: output token %d: golden's number %d, id %d, is not among the best %d",
                     DEMO_NAMES[g->adapter], i, j, g->top[i][j].id, e->n_top);
        double distance = fabs((double)e->top_logprobs[k] - g->top[i][j].logprob);
        if (!(distance < LOGPROB_TOLERANCE))
            fail_msg("%s: output token %d: log-probability of id %d is %.6f, golden %.6f",
                     DEMO_NAMES[g->adapter], i, g->top[i][j].id, (double)e->top_logprobs[k],
                     g->top[i][j].logprob);
        worst->distance = distance > worst->distance ? distance : worst->distance;
        worst->n_compared++;
    }
}

/* Greedy ids: equal up to the first place where the golden's margin is too small to insist. */
static int check_greedy(const struct golden *g, const struct answer *a)
{
    for (int i = 0; i < g->n_output; i++) {
        double margin = g->top[i][0].logprob - g->top[i][1].logprob;
        if (i >= a->n_tokens)
            fail_msg("%s: ended after %d of %d tokens", DEMO_NAMES[g->adapter], i, g->n_output);
        if (a->tokens[i].token == g->ids[g->n_prompt + i])
            continue;
        if (margin > MARGIN)
            fail_msg("%s: greedy id %d is %d, golden %d, by a margin of %.3f",
                     DEMO_NAMES[g->adapter], i, a->tokens[i].token, g->ids[g->n_prompt + i],
                     margin);
        return i;
    }
    assert_int_equal(a->n_tokens, g->n_output);
    return g->n_output;
}

/* All chosen goldens at once: one request generates, another scores prompt and golden output. */
static void check_goldens(const char *backend, int stride, int n_output_max)
{
    struct goldens all = goldens_read();
    struct demo d;
    struct engine_options options = run_options(MODELS "demo-7m");
    options.backend = backend;
    demo_open(&d, options, 2 * all.n);
    struct answer **greedy = xcalloc((size_t)all.n, sizeof(struct answer *));
    struct answer **scored = xcalloc((size_t)all.n, sizeof(struct answer *));
    for (int i = 0; i < all.n; i += stride) {
        struct golden *g = &all.list[i];
        if (g->n_output > n_output_max)
            g->n_output = n_output_max; /* ends before its end: no stop token then */
        struct engine_request request = run_greedy(g->ids, g->n_prompt, g->n_output, 20);
        greedy[i] = run_submit(&d.run, demo_under(&d, request, g->adapter));
        request = run_greedy(g->ids, g->n_prompt + g->n_output, 0, 20);
        request.prompt_logprobs = true;
        scored[i] = run_submit(&d.run, demo_under(&d, request, g->adapter));
    }
    run_wait(&d.run);
    struct worst worst = {0};
    int n_ids = 0, n_requests = 0;
    for (int i = 0; i < all.n; i += stride) {
        const struct golden *g = &all.list[i];
        n_ids += check_greedy(g, greedy[i]);
        assert_int_equal(scored[i]->finish, ENGINE_FINISH_LENGTH);
        assert_int_equal(scored[i]->n_tokens, 0);
        assert_int_equal(scored[i]->n_prompt, g->n_prompt + g->n_output - 1);
        for (int j = 0; j < g->n_output; j++) {
            const struct run_event *e = &scored[i]->prompt[g->n_prompt - 1 + j];
            assert_int_equal(e->position, g->n_prompt + j);
            assert_int_equal(e->token, g->ids[e->position]);
            check_top(g, j, e, &worst);
        }
        n_requests++;
    }
    print_message("note: demo-7m on %s: %d requests, %d greedy ids, %d log-probabilities, largest "
                  "distance %.1e\n",
                  backend, n_requests, n_ids, worst.n_compared, worst.distance);
    free(greedy);
    free(scored);
    run_close(&d.run);
    goldens_release(&all);
}

static void golden_log_probabilities_and_greedy_ids_on_cpu_all_adapters_in_one_batch(void **state)
{
    (void)state;
    check_goldens("cpu", SANITIZED ? 7 : 1, 64);
}

static void golden_log_probabilities_and_greedy_ids_on_ref_for_some(void **state)
{
    (void)state;
    check_goldens("ref", SANITIZED ? 13 : 4, SANITIZED ? 3 : 16);
}

/* ---- a row never depends on its neighbours ----------------------------------------------- */

enum { MIX = 17, MIX_TOKENS = 24 };

/* Two goldens of each adapter, and requests that sample, penalise, score and mix adapters. */
static struct engine_request mixed_request(const struct demo *d, const struct goldens *all, int i)
{
    const struct golden *g = NULL;
    int adapter = i % DEMO_ADAPTERS, seen = 0;
    for (int j = 0; j < all->n && g == NULL; j++)
        if (all->list[j].adapter == adapter && seen++ == i / DEMO_ADAPTERS)
            g = &all->list[j];
    assert_non_null(g);
    struct engine_request r = demo_under(d, run_greedy(g->ids, g->n_prompt, MIX_TOKENS, i % 3 * 5),
                                         adapter);
    r.ignore_eos = i % 2 == 0;
    r.prompt_logprobs = i % 4 == 1;
    if (i >= 10) {
        r.sampling.temperature = 0.9f;
        r.sampling.top_p = 0.95f;
        r.sampling.top_k = i % 2 == 0 ? 50 : 0;
        r.sampling.repetition_penalty = i % 3 == 0 ? 1.1f : 0;
        r.sampling.frequency_penalty = i % 3 == 1 ? 0.3f : 0;
        r.sampling.seed = (uint64_t)i;
    }
    if (i == 15 || i == 16) { /* ensembles */
        r.n_adapters = 2;
        r.adapters[0].content = d->content[1 + i % 2];
        r.adapters[0].weight = 0.6f;
        r.adapters[1].content = d->content[4];
        r.adapters[1].weight = -0.3f;
    }
    return r;
}

/* Every token computed, by whatever adapter is there. */
static struct engine_options without_cache(void)
{
    struct engine_options o = run_options(MODELS "demo-7m");
    o.no_prefix_cache = true;
    return o;
}

static void all_alone(struct demo *d, const struct goldens *all)
{
    for (int i = 0; i < MIX; i++) {
        run_submit(&d->run, mixed_request(d, all, i));
        run_wait(&d->run);
    }
}

static void all_together(struct demo *d, const struct goldens *all)
{
    for (int i = 0; i < MIX; i++)
        run_submit(&d->run, mixed_request(d, all, i));
    run_wait(&d->run);
}

static int n_different(const struct demo *a, const struct demo *b)
{
    int n = 0;
    for (int i = 0; i < MIX; i++)
        n += !run_same(&a->run.answers[i], &b->run.answers[i]);
    return n;
}

static void any_batch_any_chunks_any_preemption_give_the_bits_of_each_request_alone(void **state)
{
    static const struct {
        const char *name;
        int max_rows, max_seqs, n_threads, kv_blocks;
        bool debug_preempt;
        size_t adapter_bytes;
        int min_preemptions;
        int min_evictions;
        bool sanitized; /* also under a sanitizer: the last one holds what the others try singly */
    } cases[] = {
        {"all in one batch", 256, 64, 1, 0, false, 16 << 20, 0, 0, true},
        {"two threads", 256, 64, 2, 0, false, 16 << 20, 0, 0, false},
        {"chunks of at most 5 rows", 5, 64, 1, 0, false, 16 << 20, 0, 0, false},
        {"chunks of 19, forced preemption", 19, 64, 1, 0, true, 16 << 20, 10, 0, false},
        {"a KV cache of 26 blocks", 64, 64, 1, 26, false, 16 << 20, 1, 0, false},
        {"room for two adapters, or three small ones", 64, 64, 1, 0, false, 2900 << 10, 0, 2,
         false},
        {"all of it", 11, 64, 2, 28, true, 2900 << 10, 10, 2, true},
    };
    (void)state;
    struct goldens all = goldens_read();
    struct demo alone;
    demo_open(&alone, without_cache(), MIX);
    all_alone(&alone, &all);
    size_t n_run = 0;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        if (SANITIZED && !cases[c].sanitized)
            continue;
        n_run++;
        struct engine_options options = run_options(MODELS "demo-7m");
        options.max_rows = cases[c].max_rows;
        options.max_seqs = cases[c].max_seqs;
        options.n_threads = cases[c].n_threads;
        options.debug_preempt = cases[c].debug_preempt;
        options.adapter_bytes = cases[c].adapter_bytes;
        options.max_context = 256;
        if (cases[c].kv_blocks > 0) /* 8 layers, 2 KV heads of 64, f32 */
            options.kv_bytes = (size_t)cases[c].kv_blocks * 2 * 16 * 2 * 64 * 4 * 8;
        struct demo d;
        demo_open(&d, options, MIX);
        all_together(&d, &all);
        for (int i = 0; i < MIX; i++)
            if (!run_same(&alone.run.answers[i], &d.run.answers[i]))
                fail_msg("%s: request %d differs from the same request alone", cases[c].name, i);
        struct engine_stats stats;
        engine_stats(d.run.engine, &stats);
        if ((int)stats.n_preemptions < cases[c].min_preemptions ||
            (int)stats.n_adapter_evictions < cases[c].min_evictions)
            fail_msg("%s: only %d preemptions and %d evictions: the case tests nothing",
                     cases[c].name, (int)stats.n_preemptions, (int)stats.n_adapter_evictions);
        if (stats.n_blocks_free != stats.n_blocks || stats.n_running + stats.n_waiting != 0)
            fail_msg("%s: blocks or sequences are left over", cases[c].name);
        run_close(&d.run);
    }
    print_message("note: %d requests, bit-equal in %zu ways of batching\n", MIX, n_run);
    run_close(&alone.run);
    goldens_release(&all);
}

static void swapping_two_entries_of_the_adapter_table_is_noticed(void **state)
{
    (void)state;
    struct goldens all = goldens_read();
    struct demo alone, swapped;
    demo_open(&alone, without_cache(), MIX);
    all_alone(&alone, &all);
    demo_open(&swapped, without_cache(), 2 * MIX);
    all_together(&swapped, &all);
    assert_int_equal(n_different(&alone, &swapped), 0);
    engine_swap_adapters(swapped.run.engine, &swapped.content[1], &swapped.content[2]);
    all_together(&swapped, &all);
    int n_wrong = 0;
    for (int i = 0; i < MIX; i++) {
        bool same = run_same(&alone.run.answers[i], &swapped.run.answers[MIX + i]);
        int adapter = i % DEMO_ADAPTERS;
        if (i < 15 && (adapter == 1 || adapter == 2)) {
            if (same)
                fail_msg("request %d ran under the wrong adapter and nothing differs", i);
            n_wrong++;
        } else if (i < 15 && !same) {
            fail_msg("request %d has nothing to do with the swap and differs", i);
        }
    }
    assert_int_equal(n_wrong, 6);
    run_close(&alone.run);
    run_close(&swapped.run);
    goldens_release(&all);
}

static void a_step_of_base_requests_alone_has_no_adapter_rows(void **state)
{
    (void)state;
    struct goldens all = goldens_read();
    struct demo d;
    demo_open(&d, run_options(MODELS "demo-7m"), 8);
    for (int i = 0; i < 4; i++)
        run_submit(&d.run, run_greedy(all.list[i].ids, all.list[i].n_prompt, 4, -1));
    run_wait(&d.run);
    struct engine_stats stats;
    engine_stats(d.run.engine, &stats);
    assert_int_equal(stats.n_adapter_uploads, 0);
    assert_true(stats.n_decode_steps > 0);
    assert_int_equal(stats.steps_by_distinct[0], stats.n_decode_steps);
    run_close(&d.run);
    goldens_release(&all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_log_probabilities_and_greedy_ids_on_cpu_all_adapters_in_one_batch),
        cmocka_unit_test(golden_log_probabilities_and_greedy_ids_on_ref_for_some),
        cmocka_unit_test(any_batch_any_chunks_any_preemption_give_the_bits_of_each_request_alone),
        cmocka_unit_test(swapping_two_entries_of_the_adapter_table_is_noticed),
        cmocka_unit_test(a_step_of_base_requests_alone_has_no_adapter_rows),
    };
    return cmocka_run_group_tests_name("demo-7m", tests, NULL, NULL);
}
