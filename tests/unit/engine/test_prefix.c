/* Prompts that begin like others: what a sequence finds in the prefix cache changes times and no
 * bit, and only what the very same adapters computed is found. On stories260K. */
#include "tests/unit/engine/deferring.h"
#include "tests/unit/engine/run.h"

#include <stdio.h>
#include <sys/stat.h>

enum { CONTEXT = 256, LONG = 100, B = BLOCK_TOKENS, TOP = 5 };

#define TEST_ADAPTERS ADAPTERS "stories260K-test/"

static const char *const SOME[] = {TEST_ADAPTERS "r4-qv", TEST_ADAPTERS "r8-all-linear",
                                   TEST_ADAPTERS "r3-odd-rank", ADAPTERS "stories260K-law"};
enum { N_SOME = sizeof SOME / sizeof SOME[0] };

static struct engine_options options_of(void)
{
    struct engine_options o = run_options(MODELS "stories260K");
    o.max_context = CONTEXT;
    return o;
}

static struct engine_options without_cache(void)
{
    struct engine_options o = options_of();
    o.no_prefix_cache = true;
    return o;
}

/* Texts that differ from their first token on. */
static const int32_t *text_of(int which)
{
    static int32_t text[CONTEXT];
    for (int i = 0; i < CONTEXT; i++)
        text[i] = 3 + (which * 37 + i * i * 17 + i * (which + 5)) % 500;
    return text;
}

static struct engine_request request_of(int which, int n_prompt, int max_tokens)
{
    struct engine_request r = run_greedy(text_of(which), n_prompt, max_tokens, TOP);
    r.ignore_eos = true;
    return r;
}

static struct engine_request under(struct engine_request r, struct content_digest content,
                                   float weight)
{
    r.adapters[r.n_adapters].content = content;
    r.adapters[r.n_adapters++].weight = weight;
    return r;
}

static struct answer *ask(struct run *run, struct engine_request r)
{
    struct answer *a = run_submit(run, r);
    run_wait(run);
    return a;
}

static struct engine_stats stats_of(struct run *run)
{
    struct engine_stats s;
    engine_stats(run->engine, &s);
    return s;
}

/* The step in which the last request ended has been counted when the next one is done. */
static struct engine_stats stats_at_rest(struct run *run)
{
    struct engine_stats s;
    do
        s = stats_of(run);
    while (s.n_running + s.n_waiting > 0 || s.n_blocks_free != s.n_blocks);
    return s;
}

/* ---- what is found ----------------------------------------------------------------------- */

static void whole_blocks_before_the_last_token_are_found(void **state)
{
    (void)state;
    static const struct {
        int n_first, n_second, n_found;
    } cases[] = {
        {LONG, LONG, 6 * B}, {6 * B, 6 * B, 5 * B}, {6 * B + 1, 6 * B + 1, 6 * B},
        {LONG, 200, 6 * B},  {200, 40, 2 * B},      {B - 1, LONG, 0},
        {B, LONG, B},        {LONG, 1, 0},          {LONG, B, 0},
        {LONG, B + 1, B},
    };
    enum { N = sizeof cases / sizeof cases[0] };
    struct run run, plain;
    uint64_t n_hit = 0, n_miss = 0;
    run_open(&run, options_of(), 2 * N);
    run_open(&plain, without_cache(), N);
    for (int i = 0; i < N; i++) {
        struct answer *first = ask(&run, request_of(i, cases[i].n_first, 1));
        uint64_t n_rows = stats_at_rest(&run).n_rows_prefill;
        struct answer *second = ask(&run, request_of(i, cases[i].n_second, 6));
        struct answer *expected = ask(&plain, request_of(i, cases[i].n_second, 6));
        n_rows = stats_at_rest(&run).n_rows_prefill - n_rows;
        assert_int_equal(first->n_prompt_cached + expected->n_prompt_cached, 0);
        if (second->n_prompt_cached != cases[i].n_found ||
            (int)n_rows != cases[i].n_second - cases[i].n_found)
            fail_msg("%d tokens after %d: %d found and %d computed, expected %d", cases[i].n_second,
                     cases[i].n_first, second->n_prompt_cached, (int)n_rows, cases[i].n_found);
        if (!run_same(second, expected))
            fail_msg("%d tokens after %d: another answer", cases[i].n_second, cases[i].n_first);
        n_hit += (uint64_t)cases[i].n_found;
        n_miss += (uint64_t)(cases[i].n_first + cases[i].n_second - cases[i].n_found);
    }
    struct engine_stats s = stats_at_rest(&run);
    assert_int_equal(s.n_prefix_hit_tokens, n_hit);
    assert_int_equal(s.n_prefix_miss_tokens, n_miss);
    s = stats_at_rest(&plain);
    assert_int_equal(s.n_prefix_hit_tokens + s.n_prefix_miss_tokens, 0);
    assert_int_equal(s.n_blocks_cached, 0);
    run_close(&run);
    run_close(&plain);
}

static void the_next_turn_of_a_chat_finds_the_answer_before_it(void **state)
{
    (void)state;
    struct run run, plain;
    int32_t chat[CONTEXT];
    run_open(&run, options_of(), 2);
    run_open(&plain, without_cache(), 1);
    struct answer *first = ask(&run, request_of(1, 50, 70));
    memcpy(chat, text_of(1), 50 * sizeof *chat);
    for (int i = 0; i < 70; i++)
        chat[50 + i] = first->tokens[i].token;
    memcpy(chat + 120, text_of(2), 20 * sizeof *chat);
    struct engine_request r = run_greedy(chat, 140, 20, TOP);
    struct answer *second = ask(&run, r), *expected = ask(&plain, r);
    assert_int_equal(second->n_prompt_cached, 7 * B); /* 119 computed: the last was only drawn */
    assert_true(run_same(second, expected));
    run_close(&run);
    run_close(&plain);
}

static void a_prompt_to_be_scored_is_computed_whole_and_found_by_others(void **state)
{
    (void)state;
    struct run run, plain;
    run_open(&run, options_of(), 4);
    run_open(&plain, without_cache(), 2);
    struct engine_request r = request_of(1, LONG, 5);
    r.prompt_logprobs = true;
    for (int i = 0; i < 2; i++) {
        struct answer *scored = ask(&run, r), *expected = ask(&plain, r);
        assert_int_equal(scored->n_prompt_cached, 0);
        assert_int_equal(scored->n_prompt, LONG - 1);
        assert_true(run_same(scored, expected));
    }
    assert_int_equal(ask(&run, request_of(1, LONG, 1))->n_prompt_cached, 6 * B);
    run_close(&run);
    run_close(&plain);
}

static void who_wants_no_cache_finds_nothing_and_leaves_nothing(void **state)
{
    (void)state;
    struct run run;
    run_open(&run, options_of(), 5);
    struct engine_request r = request_of(1, LONG, 5);
    r.no_prefix_cache = true;
    struct answer *secret = ask(&run, r);
    assert_int_equal(stats_at_rest(&run).n_blocks_cached, 0);
    struct answer *open = ask(&run, request_of(1, LONG, 5));
    assert_int_equal(open->n_prompt_cached, 0);
    assert_int_equal(ask(&run, r)->n_prompt_cached, 0);
    assert_true(run_same(secret, open));
    run_close(&run);
}

/* ---- under which adapters ---------------------------------------------------------------- */

/* All pairs of adapter sets: what one leaves is found by itself only, and by those that are the
 * same to the last bit. */
static void a_salt_shares_with_itself_alone(void **state)
{
    (void)state;
    static const struct {
        const char *left, *asked;
        bool finds;
    } cases[] = {
        {NULL, NULL, true}, {NULL, "a", false}, {"a", NULL, false},
        {"a", "a", true},   {"a", "b", false},  {"a", "aa", false},
    };
    enum { N = sizeof cases / sizeof cases[0] };
    struct run run;
    run_open(&run, options_of(), 2 * N);
    for (int i = 0; i < N; i++) {
        struct engine_request r = request_of(i, LONG, 3);
        r.prefix_salt = cases[i].left;
        r.n_prefix_salt = cases[i].left != NULL ? strlen(cases[i].left) : 0;
        struct answer *first = ask(&run, r);
        r.prefix_salt = cases[i].asked;
        r.n_prefix_salt = cases[i].asked != NULL ? strlen(cases[i].asked) : 0;
        struct answer *second = ask(&run, r);
        assert_true(run_same(first, second));
        if ((second->n_prompt_cached > 0) != cases[i].finds)
            fail_msg("left under salt %s, asked under %s: %d tokens found",
                     cases[i].left != NULL ? cases[i].left : "(none)",
                     cases[i].asked != NULL ? cases[i].asked : "(none)", second->n_prompt_cached);
    }
    run_close(&run);
}

static void only_the_same_adapters_weights_and_order_find_what_was_left(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int n, adapters[2];
        float weights[2];
        int same_as; /* the first set that means the same */
    } sets[] = {
        {"base", 0, {0}, {0}, 0},
        {"a", 1, {0}, {1}, 1},
        {"b", 1, {1}, {1}, 2},
        {"a at 0.5", 1, {0}, {0.5f}, 3},
        {"a at -1", 1, {0}, {-1}, 4},
        {"a, b", 2, {0, 1}, {1, 1}, 5},
        {"b, a", 2, {1, 0}, {1, 1}, 6},
        {"a, b at 0.25", 2, {0, 1}, {1, 0.25f}, 7},
        {"a at 0: base", 1, {0}, {0}, 0},
        {"a, b at 0: a", 2, {0, 1}, {1, 0}, 1},
    };
    enum { N = sizeof sets / sizeof sets[0] };
    struct run run, plain;
    run_open(&run, options_of(), N * N + N);
    run_open(&plain, without_cache(), N);
    struct content_digest content[2] = {run_load(&run, SOME[0]), run_load(&run, SOME[1])};
    run_load(&plain, SOME[0]);
    run_load(&plain, SOME[1]);
    struct engine_request requests[N];
    struct answer *expected[N];
    static int32_t prompt[LONG];
    memcpy(prompt, text_of(0), sizeof prompt);
    for (int i = 0; i < N; i++) {
        requests[i] = run_greedy(prompt, LONG, 8, TOP);
        for (int a = 0; a < sets[i].n; a++)
            requests[i] = under(requests[i], content[sets[i].adapters[a]], sets[i].weights[a]);
        expected[i] = ask(&plain, requests[i]);
    }
    for (int first = 0; first < N; first++) {
        prompt[0] = 100 + first; /* nobody had this one yet */
        if (sets[first].same_as != first)
            continue;
        ask(&run, requests[first]);
        for (int second = 0; second < N; second++) {
            bool known = sets[second].same_as == first;
            prompt[0] = 100 + first;
            struct engine_request r = requests[second];
            r.max_tokens = 1;
            for (int earlier = 0; earlier < second; earlier++)
                known |= sets[earlier].same_as == sets[second].same_as;
            struct answer *a = ask(&run, r);
            if ((a->n_prompt_cached > 0) != known)
                fail_msg("\"%s\" after \"%s\": %d tokens found", sets[second].name,
                         sets[first].name, a->n_prompt_cached);
        }
    }
    memcpy(prompt, text_of(0), sizeof prompt);
    for (int i = 0; i < N; i++)
        if (!run_same(ask(&run, requests[i]), expected[i]))
            fail_msg("\"%s\": another answer", sets[i].name);
    run_close(&run);
    run_close(&plain);
}

static void copy_file(const char *from, const char *to, const char *name)
{
    struct buf bytes = {0};
    char path[512];
    snprintf(path, sizeof path, "%s/%s", from, name);
    fixture_read(path, &bytes);
    snprintf(path, sizeof path, "%s/%s", to, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes.data, 1, bytes.len, f), bytes.len);
    assert_int_equal(fclose(f), 0);
    buf_release(&bytes);
}

/* A directory stands for a name: other files under it are other content. */
static void a_name_that_points_at_new_content_finds_nothing_of_the_old(void **state)
{
    (void)state;
    struct run run, plain;
    struct err err = {0};
    struct answer *expected[2];
    char *dir = temp_dir_create();
    run_open(&run, options_of(), 16);
    run_open(&plain, without_cache(), 2);
    for (int i = 0; i < 2; i++)
        expected[i] = ask(&plain, under(request_of(0, LONG, 20), run_load(&plain, SOME[i]), 1));
    assert_false(run_same(expected[0], expected[1]));
    for (int round = 0; round < 8; round++) {
        int which = round % 2;
        copy_file(SOME[which], dir, "adapter_config.json");
        copy_file(SOME[which], dir, "adapter_model.safetensors");
        struct content_digest content = run_load(&run, dir);
        struct answer *a = ask(&run, under(request_of(0, LONG, 20), content, 1));
        if (a->n_prompt_cached != (round < 2 ? 0 : 6 * B))
            fail_msg("round %d: %d tokens found", round, a->n_prompt_cached);
        if (!run_same(a, expected[which]))
            fail_msg("round %d: the answer isn't that of the content", round);
        assert_ok(engine_adapter_drop(run.engine, &content, &err), err);
    }
    temp_dir_remove(dir);
    run_close(&run);
    run_close(&plain);
}

/* ---- in company -------------------------------------------------------------------------- */

struct until {
    int n_tokens;
    bool reached;
};

static void note_when_it_has_spoken(struct run *run, const struct engine_event *event)
{
    struct until *u = run->watch_context;
    if (event->kind == ENGINE_EVENT_TOKEN && run->answers[0].n_tokens == u->n_tokens)
        u->reached = true;
}

static void wait_until(struct run *run, struct until *u)
{
    pthread_mutex_lock(&run->lock);
    while (!u->reached)
        pthread_cond_wait(&run->changed, &run->lock);
    pthread_mutex_unlock(&run->lock);
}

static void a_running_sequence_shares_what_it_has_and_may_be_cancelled(void **state)
{
    (void)state;
    struct run run, plain;
    struct until until = {.n_tokens = 3};
    run_open(&plain, without_cache(), 1);
    struct answer *expected = ask(&plain, request_of(0, LONG, 150));
    for (int cancels = 0; cancels < 2; cancels++) {
        run_open(&run, options_of(), 3);
        until.reached = false;
        run.watch = note_when_it_has_spoken;
        run.watch_context = &until;
        struct answer *first = run_submit(&run, request_of(0, LONG, 150));
        wait_until(&run, &until);
        struct answer *second = run_submit(&run, request_of(0, LONG, 150));
        if (cancels)
            engine_cancel(run.engine, first->id);
        run_wait(&run);
        assert_true(second->n_prompt_cached >= 6 * B);
        assert_true(run_same(second, expected));
        if (first->finish != ENGINE_FINISH_CANCELLED)
            assert_true(run_same(first, expected));
        assert_int_equal(stats_at_rest(&run).n_blocks_cached, (LONG + 150 - 1) / B);
        run_close(&run);
    }
    run_close(&plain);
}

static void twins_that_start_together_end_with_one_copy(void **state)
{
    (void)state;
    struct run run, plain;
    enum { TWINS = 6 };
    run_open(&plain, without_cache(), 1);
    struct answer *expected = ask(&plain, request_of(0, LONG, 40));
    for (int deferred = 0; deferred < 2; deferred++) {
        struct engine_options o = options_of();
        o.debug_overlap = !deferred;
        o.max_rows = 48;
        engine_debug_ops = deferred ? deferring_ops(true, 0) : NULL;
        run_open(&run, o, TWINS);
        engine_debug_ops = NULL;
        for (int i = 0; i < TWINS; i++)
            run_submit(&run, request_of(0, LONG, 40));
        run_wait(&run);
        for (int i = 0; i < TWINS; i++)
            assert_true(run_same(&run.answers[i], expected));
        struct engine_stats s = stats_at_rest(&run);
        assert_int_equal(s.n_blocks_cached, (LONG + 40 - 1) / B);
        assert_true(s.n_steps_ahead > 0);
        run_close(&run);
    }
    run_close(&plain);
}

static void a_full_cache_evicts_and_serves_on(void **state)
{
    (void)state;
    enum { TEXTS = 12, ROUNDS = 3 };
    struct run run, plain;
    struct engine_options o = options_of();
    run_open(&plain, without_cache(), TEXTS);
    o.kv_bytes = 40 * forward_block_bytes(&plain.engine->model->config, DTYPE_F32);
    run_open(&run, o, TEXTS * ROUNDS + 2);
    for (int i = 0; i < TEXTS; i++)
        ask(&plain, request_of(i, LONG, 30));
    for (int i = 0; i < TEXTS * ROUNDS; i++) {
        run_submit(&run, request_of(i % TEXTS, LONG, 30));
        if (i % 5 == 0)
            run_wait(&run);
    }
    run_wait(&run);
    for (int i = 0; i < TEXTS * ROUNDS; i++)
        if (!run_same(&run.answers[i], &plain.answers[i % TEXTS]))
            fail_msg("request %d: another answer", i);
    struct engine_stats s = stats_at_rest(&run);
    assert_int_equal(s.n_blocks, 40);
    assert_true(s.n_blocks_cached > 30); /* it is kept full */
    assert_int_equal(ask(&run, request_of(TEXTS - 1, LONG, 1))->n_prompt_cached, 6 * B);
    run_close(&run);
    run_close(&plain);
}

static void what_an_unloaded_adapter_left_goes_first(void **state)
{
    (void)state;
    struct run run;
    struct err err = {0};
    struct engine_options o = options_of();
    run_open(&run, o, 1);
    o.kv_bytes = 36 * forward_block_bytes(&run.engine->model->config, DTYPE_F32);
    run_close(&run);
    for (int drops = 0; drops < 2; drops++) {
        run_open(&run, o, 4);
        struct content_digest a = run_load(&run, SOME[0]);
        ask(&run, request_of(0, 193, 1));              /* leaves twelve blocks of the base model */
        ask(&run, under(request_of(0, 193, 1), a, 1)); /* and of the adapter, later */
        if (drops)
            assert_ok(engine_adapter_drop(run.engine, &a, &err), err);
        stats_at_rest(&run);
        ask(&run, request_of(1, 240, 16)); /* wants sixteen, there are twelve */
        assert_int_equal(stats_at_rest(&run).n_prefix_evictions, 4);
        int n_base = ask(&run, request_of(0, 193, 1))->n_prompt_cached;
        if (n_base != (drops ? 12 : 8) * B)
            fail_msg("the adapter %s: %d tokens of the base model were found",
                     drops ? "was unloaded" : "is loaded", n_base);
        run_close(&run);
    }
}

/* ---- preemption -------------------------------------------------------------------------- */

static void a_preempted_sequence_finds_what_it_had_computed(void **state)
{
    (void)state;
    enum { SEQS = 4 };
    uint64_t n_rows[2];
    struct run runs[2];
    for (int cached = 0; cached < 2; cached++) {
        struct engine_options o = cached ? options_of() : without_cache();
        o.debug_preempt = true;
        o.max_rows = 40;
        run_open(&runs[cached], o, SEQS);
        for (int i = 0; i < SEQS; i++) {
            struct engine_request r = request_of(i, LONG, 30);
            r.prompt_logprobs = i % 3 == 0; /* what was scored before may be found */
            run_submit(&runs[cached], r);
        }
        run_wait(&runs[cached]);
        struct engine_stats s = stats_at_rest(&runs[cached]);
        n_rows[cached] = s.n_rows_prefill;
        assert_true(s.n_preemptions > 5);
        assert_int_equal(s.n_prefix_hit_tokens, 0); /* nobody found what another had left */
    }
    for (int i = 0; i < SEQS; i++)
        if (!run_same(&runs[0].answers[i], &runs[1].answers[i]))
            fail_msg("request %d: another answer", i);
    print_message("rows of prefill: %d without the cache, %d with it\n", (int)n_rows[0],
                  (int)n_rows[1]);
    assert_true(n_rows[1] < n_rows[0] / 2);
    run_close(&runs[0]);
    run_close(&runs[1]);
}

/* ---- everything at once ------------------------------------------------------------------ */

enum { TRAFFIC = 72, PIECE = 23, PIECES = 2 };

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

struct wish {
    int32_t prompt[CONTEXT];
    struct engine_request request;
    bool cancelled;
};

/* Prompts of up to seven pieces, of which there are two; a few adapters, alone and together. */
static void make_wishes(struct wish *wishes, const struct content_digest *content, uint32_t seed)
{
    for (int i = 0; i < TRAFFIC; i++) {
        struct wish *w = &wishes[i];
        int n_pieces = 1 + (int)(next_random(&seed) % 7), n = 0;
        for (int p = 0; p < n_pieces; p++, n += PIECE)
            memcpy(w->prompt + n, text_of((int)(next_random(&seed) % PIECES)),
                   PIECE * sizeof *w->prompt);
        w->request = run_greedy(w->prompt, n, 1 + (int)(next_random(&seed) % 30), TOP);
        w->request.ignore_eos = next_random(&seed) % 2 == 0;
        w->request.prompt_logprobs = next_random(&seed) % 8 == 0;
        w->request.no_prefix_cache = next_random(&seed) % 16 == 0;
        w->request.sampling.temperature = next_random(&seed) % 2 ? 0.7f : 0;
        w->request.sampling.seed = next_random(&seed) % 3;
        int first = (int)(next_random(&seed) % N_SOME);
        if (next_random(&seed) % 3 != 0)
            w->request = under(w->request, content[first], 1);
        if (next_random(&seed) % 6 == 0)
            w->request = under(w->request, content[(first + 1) % N_SOME], -0.5f);
        w->cancelled = next_random(&seed) % 10 == 0;
    }
}

static void cancel_the_next(struct run *run, const struct engine_event *event)
{
    const struct wish *wishes = run->watch_context;
    struct answer *a = event->user;
    int other = (int)(a - run->answers) + 2;
    if (event->kind == ENGINE_EVENT_TOKEN && a->n_tokens == 4 && other < run->n &&
        wishes[other].cancelled)
        engine_cancel(run->engine, run->answers[other].id);
}

static const struct {
    const char *name;
    bool overlap, late, preempt;
    int max_rows;
    size_t kv_blocks, adapter_bytes;
} WAYS[] = {
    {"plenty", .max_rows = 256},
    {"chunks, ahead", .max_rows = 30, .overlap = true},
    {"few blocks", .max_rows = 64, .kv_blocks = 17},
    {"few blocks, ahead, preempted", .max_rows = 64, .kv_blocks = 17, .overlap = true,
     .preempt = true},
    {"late, recorded", .max_rows = 100, .late = true},
    {"late, recorded, little of everything", .max_rows = 40, .late = true, .preempt = true,
     .kv_blocks = 18, .adapter_bytes = 420000},
};

static void any_traffic_gets_the_bits_of_no_cache_and_every_block_comes_back(void **state)
{
    (void)state;
    static struct wish wishes[TRAFFIC];
    struct run plain, run;
    struct content_digest content[N_SOME];
    run_open(&plain, without_cache(), TRAFFIC);
    for (int i = 0; i < N_SOME; i++)
        content[i] = run_load(&plain, SOME[i]);
    make_wishes(wishes, content, 5);
    for (int i = 0; i < TRAFFIC; i++)
        run_submit(&plain, wishes[i].request);
    run_wait(&plain);
    for (size_t w = 0; w < sizeof WAYS / sizeof WAYS[0]; w++) {
        struct engine_options o = options_of();
        o.debug_overlap = WAYS[w].overlap;
        o.debug_preempt = WAYS[w].preempt;
        o.max_rows = WAYS[w].max_rows;
        o.max_seqs = 10;
        if (WAYS[w].kv_blocks > 0)
            o.kv_bytes = WAYS[w].kv_blocks *
                         forward_block_bytes(&plain.engine->model->config, DTYPE_F32);
        if (WAYS[w].adapter_bytes > 0)
            o.adapter_bytes = WAYS[w].adapter_bytes;
        engine_debug_ops = WAYS[w].late ? deferring_ops(true, 0) : NULL;
        run_open(&run, o, TRAFFIC);
        engine_debug_ops = NULL;
        for (int i = 0; i < N_SOME; i++)
            run_load(&run, SOME[i]);
        run.watch = cancel_the_next;
        run.watch_context = wishes;
        for (int i = 0; i < TRAFFIC; i++) {
            run_submit(&run, wishes[i].request);
            if (i % 25 == 24)
                run_wait(&run);
        }
        run_wait(&run);
        int n_cached = 0, n_cancelled = 0;
        for (int i = 0; i < TRAFFIC; i++) {
            const struct answer *a = &run.answers[i], *b = &plain.answers[i];
            n_cached += a->n_prompt_cached > 0;
            n_cancelled += a->finish == ENGINE_FINISH_CANCELLED;
            if (a->finish == ENGINE_FINISH_CANCELLED
                    ? a->n_tokens > b->n_tokens ||
                          !run_same_events(a->tokens, a->n_tokens, b->tokens, a->n_tokens)
                    : !run_same(a, b))
                fail_msg("%s: request %d differs, %d of its tokens were found", WAYS[w].name, i,
                         a->n_prompt_cached);
        }
        struct engine_stats s = stats_at_rest(&run);
        print_message("%s: %d of %d found something, %d of %d tokens; %d cancelled, %d preempted\n",
                      WAYS[w].name, n_cached, TRAFFIC, (int)s.n_prefix_hit_tokens,
                      (int)(s.n_prefix_hit_tokens + s.n_prefix_miss_tokens), n_cancelled,
                      (int)s.n_preemptions);
        assert_true(n_cached > TRAFFIC / 10 && n_cancelled > 0);
        assert_true(s.n_preemptions > 0 || (WAYS[w].kv_blocks == 0 && !WAYS[w].preempt));
        run_close(&run); /* the pool asserts that every block is back */
    }
    run_close(&plain);
}

struct seen { /* logits that were shown, by request and position */
    struct run *run;
    uint64_t hash[TRAFFIC][CONTEXT];
};

static void see(void *context, void *user, int position, const float *logits, int vocab)
{
    struct seen *s = context;
    s->hash[(struct answer *)user - s->run->answers][position] = run_hash(logits, vocab);
}

static void a_hit_changes_no_bit_of_the_logits(void **state)
{
    (void)state;
    static struct wish wishes[TRAFFIC];
    static struct seen seen[2];
    struct run runs[2];
    struct content_digest content[N_SOME];
    int n_seen = 0, n_cached = 0;
    for (int cached = 0; cached < 2; cached++) {
        struct engine_options o = cached ? options_of() : without_cache();
        o.debug_preempt = cached;
        run_open(&runs[cached], o, TRAFFIC);
        for (int i = 0; i < N_SOME; i++)
            content[i] = run_load(&runs[cached], SOME[i]);
        make_wishes(wishes, content, 77);
        seen[cached].run = &runs[cached];
        engine_set_logits_hook(runs[cached].engine, see, &seen[cached]);
        for (int i = 0; i < TRAFFIC; i++) {
            run_submit(&runs[cached], wishes[i].request);
            if (i % 20 == 19)
                run_wait(&runs[cached]);
        }
        run_wait(&runs[cached]);
    }
    for (int i = 0; i < TRAFFIC; i++) {
        n_cached += runs[1].answers[i].n_prompt_cached > 0;
        for (int p = 0; p < CONTEXT; p++) {
            n_seen += seen[0].hash[i][p] != 0;
            if (seen[0].hash[i][p] != seen[1].hash[i][p])
                fail_msg("request %d: logits of position %d differ", i, p);
        }
    }
    assert_true(n_seen > 10 * TRAFFIC && n_cached > TRAFFIC / 10);
    run_close(&runs[0]);
    run_close(&runs[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_blocks_before_the_last_token_are_found),
        cmocka_unit_test(the_next_turn_of_a_chat_finds_the_answer_before_it),
        cmocka_unit_test(a_prompt_to_be_scored_is_computed_whole_and_found_by_others),
        cmocka_unit_test(who_wants_no_cache_finds_nothing_and_leaves_nothing),
        cmocka_unit_test(a_salt_shares_with_itself_alone),
        cmocka_unit_test(only_the_same_adapters_weights_and_order_find_what_was_left),
        cmocka_unit_test(a_name_that_points_at_new_content_finds_nothing_of_the_old),
        cmocka_unit_test(a_running_sequence_shares_what_it_has_and_may_be_cancelled),
        cmocka_unit_test(twins_that_start_together_end_with_one_copy),
        cmocka_unit_test(a_full_cache_evicts_and_serves_on),
        cmocka_unit_test(what_an_unloaded_adapter_left_goes_first),
        cmocka_unit_test(a_preempted_sequence_finds_what_it_had_computed),
        cmocka_unit_test(any_traffic_gets_the_bits_of_no_cache_and_every_block_comes_back),
        cmocka_unit_test(a_hit_changes_no_bit_of_the_logits),
    };
    return cmocka_run_group_tests_name("prefix", tests, NULL, NULL);
}
