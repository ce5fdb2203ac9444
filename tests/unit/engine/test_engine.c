/* The door: what requests get, what is refused, and how they end. On stories260K. */
#include "tests/unit/engine/run.h"

#include "engine/tokenizer/tokenizer.h"
#include "node/base/hex.h"
#include "node/base/sha256.h"

static const int32_t PROMPT[] = {1, 403, 407, 261, 378}; /* "<s> Once upon a time" */
enum { N_PROMPT = 5, VOCAB = 512 };

static struct engine_options options_of(void)
{
    struct engine_options o = run_options(MODELS "stories260K");
    o.max_context = 128;
    return o;
}

static struct engine_request request_of(int max_tokens)
{
    struct engine_request r = run_greedy(PROMPT, N_PROMPT, max_tokens, 0);
    r.ignore_eos = true;
    return r;
}

static struct engine_request under(struct engine_request r, struct content_digest content)
{
    r.n_adapters = 1;
    r.adapters[0].content = content;
    r.adapters[0].weight = 1;
    return r;
}

static void the_model_tells_what_it_is(void **state)
{
    (void)state;
    struct run run;
    run_open(&run, options_of(), 1);
    const struct engine_model *m = engine_model(run.engine);
    assert_string_equal(m->name, "stories260K");
    assert_int_equal(m->vocab, VOCAB);
    assert_int_equal(m->hidden, 64);
    assert_int_equal(m->n_layers, 5);
    assert_int_equal(m->max_context, 128);
    assert_int_equal(m->bos, 1);
    assert_int_equal(m->n_eos, 2); /* generation_config.json wins */
    assert_false(bytes32_is_zero(m->id.bytes));
    assert_true(m->n_params > 250000 && m->n_params < 270000);
    assert_true(strncmp(m->backend, "cpu", 3) == 0);
    assert_non_null(engine_tokenizer(run.engine));
    assert_int_equal(tokenizer_vocab_size(engine_tokenizer(run.engine)), VOCAB);
    run_close(&run);
}

static void the_model_s_id_is_the_hash_of_its_files_hashes(void **state)
{
    (void)state;
    static const char *const names[] = {"config.json", "model.safetensors"};
    struct err err = {0};
    struct sha256 lines;
    sha256_init(&lines);
    for (int i = 0; i < 2; i++) {
        struct sha256_digest digest;
        uint64_t n_bytes;
        char path[256], hex[65], line[256];
        snprintf(path, sizeof path, MODELS "stories260K/%s", names[i]);
        assert_ok(sha256_file(path, &digest, &n_bytes, &err), err);
        snprintf(line, sizeof line, "%s  %llu  %s\n", hex_encode(hex, digest.bytes, 32),
                 (unsigned long long)n_bytes, names[i]);
        sha256_update(&lines, line, strlen(line));
    }
    struct sha256_digest expected = sha256_final(&lines);
    for (int i = 0; i < 3; i++) { /* it is being computed while the model is used */
        struct model *m;
        assert_ok(model_open(&m, MODELS "stories260K", &err), err);
        if (i < 2) {
            struct model_id id = model_identity(m), again = model_identity(m);
            assert_memory_equal(id.bytes, expected.bytes, 32);
            assert_memory_equal(again.bytes, expected.bytes, 32);
        }
        model_close(m); /* the last time nobody has asked */
    }
}

static void requests_that_break_a_rule_are_refused_and_no_event_comes(void **state)
{
    (void)state;
    struct run run;
    run_open(&run, options_of(), 1);
    int32_t bad_token[] = {1, VOCAB}, negative[] = {-1}, many[200] = {0};
    int32_t bias_id = VOCAB;
    float bias_value = 1, bias_nan = NAN;
    struct engine_request r[24];
    const char *says[24];
    enum err_code code[24];
    int n = 0;
#define CASE(sentence, error) r[n] = request_of(4), says[n] = sentence, code[n++] = error
    CASE("prompt is empty", ERR_INVALID), r[n - 1].n_prompt = 0;
    CASE("token 512 at position 1", ERR_INVALID), r[n - 1].prompt = bad_token,
                                                        r[n - 1].n_prompt = 2;
    CASE("token -1", ERR_INVALID), r[n - 1].prompt = negative, r[n - 1].n_prompt = 1;
    CASE("context of 128", ERR_INVALID), r[n - 1].prompt = many, r[n - 1].n_prompt = 129;
    CASE("leaves no room", ERR_INVALID), r[n - 1].prompt = many, r[n - 1].n_prompt = 128;
    CASE("max_tokens is -1", ERR_INVALID), r[n - 1].max_tokens = -1;
    CASE("is not loaded", ERR_NOT_FOUND), r[n - 1].n_adapters = 1, r[n - 1].adapters[0].weight = 1;
    CASE("9 adapters", ERR_INVALID), r[n - 1].n_adapters = 9;
    CASE("named twice", ERR_INVALID), r[n - 1].n_adapters = 2;
    CASE("has weight", ERR_INVALID), r[n - 1].n_adapters = 1,
                                           r[n - 1].adapters[0].weight = INFINITY;
    CASE("temperature", ERR_INVALID), r[n - 1].sampling.temperature = -1;
    CASE("temperature", ERR_INVALID), r[n - 1].sampling.temperature = NAN;
    CASE("top_p", ERR_INVALID), r[n - 1].sampling.top_p = 1.5f;
    CASE("top_k", ERR_INVALID), r[n - 1].sampling.top_k = -2;
    CASE("log-probabilities", ERR_INVALID), r[n - 1].sampling.n_top_logprobs = 21;
    CASE("token 512 is not in the vocabulary", ERR_INVALID);
    r[n - 1].sampling.bias_ids = &bias_id;
    r[n - 1].sampling.bias_values = &bias_value;
    r[n - 1].sampling.n_bias = 1;
    CASE("no number to add", ERR_INVALID);
    r[n - 1].sampling.bias_ids = PROMPT;
    r[n - 1].sampling.bias_values = &bias_nan;
    r[n - 1].sampling.n_bias = 1;
    CASE("stop ids", ERR_INVALID), r[n - 1].n_stop_ids = 5000;
    CASE("weight is -1", ERR_INVALID), r[n - 1].payer_weight = -1;
    CASE("weight is nan", ERR_INVALID), r[n - 1].payer_weight = NAN;
    CASE("weight is 2000", ERR_INVALID), r[n - 1].payer_weight = 2000;
    CASE("priority is 101", ERR_INVALID), r[n - 1].priority = 101;
    CASE("priority is -101", ERR_INVALID), r[n - 1].priority = -101;
    for (int i = 0; i < n; i++) {
        struct err err = {0};
        uint64_t id = 0;
        int rc = engine_submit(run.engine, &r[i], &id, &err);
        if (rc != -1 || err.code != code[i] || strstr(err.message, says[i]) == NULL)
            fail_msg("case %d, \"%s\": got %s: %s", i, says[i], err_code_name(err.code),
                     err.message);
    }
    struct answer *a = run_submit(&run, request_of(3)); /* the engine is as well as before */
    run_wait(&run);
    assert_int_equal(a->n_tokens, 3);
    run_close(&run);
}

static void generation_ends_at_max_tokens_at_the_context_at_stop_ids_and_at_eos(void **state)
{
    (void)state;
    struct run run;
    run_open(&run, options_of(), 8);
    struct answer *plain = run_submit(&run, request_of(20));
    struct answer *context = run_submit(&run, request_of(100000));
    run_wait(&run);
    assert_int_equal(plain->n_tokens, 20);
    assert_int_equal(plain->finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(context->n_tokens, 128 - N_PROMPT);
    assert_int_equal(context->finish, ENGINE_FINISH_LENGTH);
    for (int i = 0; i < context->n_tokens; i++)
        assert_int_equal(context->tokens[i].position, N_PROMPT + i);

    struct engine_request r = request_of(20);
    int32_t stops[] = {7, plain->tokens[9].token};
    int first = 0;
    while (plain->tokens[first].token != stops[1])
        first++;
    r.stop_ids = stops;
    r.n_stop_ids = 2;
    struct answer *stopped = run_submit(&run, r);
    run_wait(&run);
    assert_int_equal(stopped->finish, ENGINE_FINISH_STOP);
    assert_int_equal(stopped->n_tokens, first + 1);
    assert_true(stopped->tokens[first].is_eos);
    assert_false(stopped->tokens[0].is_eos && first > 0);

    /* A bias makes eos certain; ignore_eos goes on. */
    int32_t eos = 2;
    float certain = 1000;
    r = request_of(5);
    r.ignore_eos = false;
    r.sampling.bias_ids = &eos;
    r.sampling.bias_values = &certain;
    r.sampling.n_bias = 1;
    struct answer *ended = run_submit(&run, r);
    r.ignore_eos = true;
    struct answer *ignored = run_submit(&run, r);
    run_wait(&run);
    assert_int_equal(ended->finish, ENGINE_FINISH_STOP);
    assert_int_equal(ended->n_tokens, 1);
    assert_int_equal(ended->tokens[0].token, eos);
    assert_true(ended->tokens[0].is_eos);
    assert_int_equal(ignored->n_tokens, 5);
    assert_false(ignored->tokens[4].is_eos);
    run_close(&run);
}

static void nothing_asked_for_is_answered_at_once(void **state)
{
    (void)state;
    struct run run;
    run_open(&run, options_of(), 4);
    struct answer *a = run_submit(&run, request_of(0));
    struct engine_request one = request_of(0);
    one.n_prompt = 1;
    one.prompt_logprobs = true; /* nothing to score behind a single token */
    struct answer *b = run_submit(&run, one);
    run_wait(&run);
    assert_int_equal(a->finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(a->n_tokens + a->n_prompt, 0);
    assert_int_equal(b->finish, ENGINE_FINISH_LENGTH);
    assert_int_equal(b->n_tokens + b->n_prompt, 0);
    run_close(&run);
}

static void scoring_a_text_gives_the_log_probabilities_of_writing_it(void **state)
{
    (void)state;
    struct run run;
    run_open(&run, options_of(), 4);
    struct engine_request r = request_of(30);
    r.sampling.n_top_logprobs = 4;
    struct answer *written = run_submit(&run, r);
    run_wait(&run);
    int32_t text[N_PROMPT + 30];
    memcpy(text, PROMPT, sizeof PROMPT);
    for (int i = 0; i < 30; i++)
        text[N_PROMPT + i] = written->tokens[i].token;
    r = run_greedy(text, N_PROMPT + 30, 0, 4);
    r.prompt_logprobs = true;
    struct answer *scored = run_submit(&run, r);
    run_wait(&run);
    assert_int_equal(scored->n_prompt, N_PROMPT + 30 - 1);
    if (!run_same_events(written->tokens, 30, scored->prompt + N_PROMPT - 1, 30))
        fail_msg("prefill and decode don't give the same bits");
    for (int i = 0; i < scored->n_prompt; i++) {
        const struct run_event *e = &scored->prompt[i];
        assert_int_equal(e->position, i + 1);
        assert_int_equal(e->token, text[i + 1]);
        assert_int_equal(e->n_top, 4);
        for (int k = 1; k < 4; k++)
            assert_true(e->top_logprobs[k - 1] >= e->top_logprobs[k]);
        assert_true(e->logprob <= e->top_logprobs[0]);
    }
    run_close(&run);
}

static void a_seed_says_what_is_drawn_whoever_else_is_there(void **state)
{
    (void)state;
    struct run run;
    run_open(&run, options_of(), 40);
    struct answer *same[6], *other = NULL;
    for (int i = 0; i < 6; i++) {
        struct engine_request r = request_of(20);
        r.sampling.temperature = 1;
        r.sampling.seed = 99;
        same[i] = run_submit(&run, r);
        r.sampling.seed = (uint64_t)i + 5;
        other = run_submit(&run, r);
        if (i == 0)
            run_wait(&run);
    }
    run_wait(&run);
    for (int i = 1; i < 6; i++)
        assert_true(run_same(same[0], same[i]));
    assert_false(run_same(same[0], other));
    run_close(&run);
}

/* ---- ends from outside ------------------------------------------------------------------- */

struct until {
    int n_tokens;
    uint64_t cancel_id;
};

static void cancel_when_it_has_spoken(struct run *run, const struct engine_event *event)
{
    struct until *u = run->watch_context;
    if (event->kind == ENGINE_EVENT_TOKEN && event->user == &run->answers[0] &&
        run->answers[0].n_tokens == u->n_tokens)
        engine_cancel(run->engine, run->answers[0].id); /* from the engine's own thread: allowed */
}

static void a_cancelled_request_ends_and_the_others_never_notice(void **state)
{
    (void)state;
    struct run run;
    struct until until = {.n_tokens = 5};
    run_open(&run, options_of(), 4);
    run.watch = cancel_when_it_has_spoken;
    run.watch_context = &until;
    struct answer *cancelled = run_submit(&run, request_of(100));
    struct answer *beside = run_submit(&run, request_of(60));
    run_wait(&run);
    if (cancelled->n_tokens < 100) {
        assert_int_equal(cancelled->finish, ENGINE_FINISH_CANCELLED);
        assert_true(cancelled->n_tokens >= 5);
    } else {
        fail_msg("it was not cancelled");
    }
    run.watch = NULL;
    struct answer *alone = run_submit(&run, request_of(60));
    run_wait(&run);
    assert_true(run_same(beside, alone));
    engine_cancel(run.engine, cancelled->id); /* finished */
    engine_cancel(run.engine, 123456789);     /* unknown */
    struct engine_stats stats;
    engine_stats(run.engine, &stats);
    assert_int_equal(stats.n_blocks_free, stats.n_blocks);
    run_close(&run);
}

static void a_deadline_ends_running_and_waiting_requests(void **state)
{
    (void)state;
    struct run run;
    struct engine_options o = options_of();
    o.max_seqs = 1;
    run_open(&run, o, 4);
    struct engine_request late = request_of(10);
    late.deadline = (struct monotonic_us){1}; /* long ago */
    struct engine_request soon = request_of(100);
    soon.deadline = (struct monotonic_us){clock_monotonic_us().us + 3600u * 1000000u};
    struct answer *a = run_submit(&run, late), *b = run_submit(&run, soon);
    run_wait(&run);
    assert_int_equal(a->finish, ENGINE_FINISH_DEADLINE);
    assert_int_equal(a->n_tokens, 0);
    assert_int_equal(b->finish, ENGINE_FINISH_LENGTH);
    run_close(&run);
}

static void a_full_queue_is_busy_and_what_was_accepted_is_served(void **state)
{
    (void)state;
    struct run run;
    struct engine_options o = options_of();
    o.max_seqs = 1;
    o.max_waiting = 3;
    run_open(&run, o, 64);
    int n_busy = 0;
    struct err err = {0};
    for (int i = 0; i < 40; i++) {
        struct engine_request r = request_of(100);
        struct answer *a = &run.answers[run.n];
        a->run = &run;
        r.user = a;
        pthread_mutex_lock(&run.lock);
        run.n++; /* before an event can come */
        pthread_mutex_unlock(&run.lock);
        if (engine_submit(run.engine, &r, &a->id, &err) != 0) {
            assert_int_equal(err.code, ERR_BUSY);
            n_busy++;
            pthread_mutex_lock(&run.lock);
            run.n--;
            pthread_mutex_unlock(&run.lock);
        }
    }
    assert_true(n_busy > 0);
    run_wait(&run);
    for (int i = 0; i < run.n; i++)
        assert_int_equal(run.answers[i].n_tokens, 100);
    run_close(&run);
}

static struct engine_request of_payer(struct engine_request r, uint64_t payer)
{
    r.payer = payer;
    return r;
}

/* In the order of their ends: watch_context is the list's next place. */
static void note_end(struct run *run, const struct engine_event *event)
{
    struct answer ***next = run->watch_context;
    if (event->kind == ENGINE_EVENT_FINISHED)
        *(*next)++ = event->user;
}

static void a_payer_with_many_requests_does_not_make_another_wait_for_all_of_them(void **state)
{
    (void)state;
    enum { MANY = 30 };
    struct run run;
    struct engine_options o = options_of();
    o.max_seqs = 2;
    run_open(&run, o, MANY + 2);
    struct answer *ends[MANY + 2], **next = ends, *alone;
    struct engine_request r = request_of(60);
    alone = run_submit(&run, r);
    run_wait(&run);
    run.watch_context = &next;
    run.watch = note_end;
    for (int i = 0; i < MANY; i++)
        run_submit(&run, of_payer(r, 7));
    struct answer *other = run_submit(&run, of_payer(r, 8));
    run_wait(&run);
    int place = 0;
    while (ends[place] != other)
        place++;
    if (place > 8)
        fail_msg("it was number %d of %d", place + 1, MANY + 1);
    for (int i = 0; i <= MANY; i++)
        assert_true(run_same(ends[i], alone)); /* when, not what */
    run_close(&run);
}

static void a_high_priority_goes_before_all_that_wait(void **state)
{
    (void)state;
    enum { MANY = 12 };
    struct run run;
    struct engine_options o = options_of();
    o.max_seqs = 1;
    run_open(&run, o, MANY + 1);
    struct answer *ends[MANY + 1], **next = ends;
    run.watch_context = &next;
    run.watch = note_end;
    struct engine_request r = request_of(100);
    for (int i = 0; i < MANY; i++)
        run_submit(&run, r);
    r.priority = 100;
    struct answer *urgent = run_submit(&run, r);
    run_wait(&run);
    int place = 0;
    while (ends[place] != urgent)
        place++;
    if (place > 4) /* one or two may have ended before it was there */
        fail_msg("it was number %d of %d", place + 1, MANY + 1);
    run_close(&run);
}

static void closing_ends_everything_with_one_event_each(void **state)
{
    (void)state;
    struct run run;
    struct engine_options o = options_of();
    o.max_seqs = 2;
    run_open(&run, o, 16);
    for (int i = 0; i < 16; i++)
        run_submit(&run, request_of(120));
    run_close(&run); /* checks that each had its FINISHED event */
}

/* ---- adapters ---------------------------------------------------------------------------- */

#define TEST_ADAPTERS ADAPTERS "stories260K-test/"

static void a_dropped_adapter_serves_who_has_it_and_is_not_found_afterwards(void **state)
{
    (void)state;
    struct run run;
    struct err err = {0};
    run_open(&run, options_of(), 8);
    struct content_digest d = run_load(&run, TEST_ADAPTERS "r8-all-linear");
    struct content_digest again = run_load(&run, TEST_ADAPTERS "r8-all-linear");
    assert_true(DIGEST_EQ(d, again));
    struct answer *first = run_submit(&run, under(request_of(60), d));
    assert_ok(engine_adapter_drop(run.engine, &d, &err), err);
    struct answer *second = run_submit(&run, under(request_of(60), d)); /* one load is left */
    assert_ok(engine_adapter_drop(run.engine, &d, &err), err);
    struct engine_request r = under(request_of(5), d);
    assert_int_equal(engine_submit(run.engine, &r, NULL, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_int_equal(engine_adapter_drop(run.engine, &d, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    run_wait(&run);
    assert_int_equal(first->n_tokens, 60);
    assert_true(run_same(first, second));
    run_load(&run, TEST_ADAPTERS "r8-all-linear");
    struct answer *third = run_submit(&run, under(request_of(60), d));
    run_wait(&run);
    assert_true(run_same(first, third));
    struct engine_stats stats;
    engine_stats(run.engine, &stats);
    assert_int_equal(stats.n_adapter_uploads, 1); /* the device still had it */
    assert_int_equal(stats.n_adapters_loaded, 1);
    run_close(&run);
}

static const char *const SOME[] = {TEST_ADAPTERS "r4-qv",      TEST_ADAPTERS "r8-all-linear",
                                   TEST_ADAPTERS "r16-rslora", TEST_ADAPTERS "r3-odd-rank",
                                   TEST_ADAPTERS "patterns",   ADAPTERS "stories260K-law"};
enum { N_SOME = sizeof SOME / sizeof SOME[0] };

/* Every adapter, then all again in another order, in a pool that holds one large one at a time. */
static void a_pool_smaller_than_the_adapters_gives_the_same_bits(void **state)
{
    (void)state;
    struct run large, small;
    struct content_digest content[N_SOME];
    struct engine_options o = options_of();
    run_open(&large, o, 64);
    o.adapter_bytes = 420000; /* r16-rslora: 390 kB */
    run_open(&small, o, 64);
    for (int i = 0; i < N_SOME; i++) {
        content[i] = run_load(&large, SOME[i]);
        run_load(&small, SOME[i]);
        run_submit(&large, under(request_of(20), content[i]));
        run_wait(&large);
    }
    for (int i = 0; i < 4 * N_SOME; i++)
        run_submit(&small, under(request_of(20), content[i * 5 % N_SOME]));
    run_wait(&small);
    for (int i = 0; i < 4 * N_SOME; i++)
        if (!run_same(&small.answers[i], &large.answers[i * 5 % N_SOME]))
            fail_msg("request %d under %s differs in the small pool", i, SOME[i * 5 % N_SOME]);
    struct engine_stats stats;
    engine_stats(small.engine, &stats);
    assert_true(stats.n_adapter_evictions >= 2);
    assert_true(stats.adapter_bytes_used <= stats.adapter_bytes_total);
    run_close(&large);
    run_close(&small);
}

static void a_slot_that_now_holds_another_adapter_serves_the_other(void **state)
{
    (void)state;
    struct run run, fresh;
    struct engine_options o = options_of();
    struct err err = {0};
    run_open(&fresh, o, 8);
    o.adapter_bytes = 420000;
    run_open(&run, o, 8);
    struct content_digest a = run_load(&run, SOME[2]);
    struct answer *under_a = run_submit(&run, under(request_of(20), a));
    run_wait(&run);
    assert_ok(engine_adapter_drop(run.engine, &a, &err), err);
    struct content_digest b = run_load(&run, SOME[5]); /* takes a's slot and memory */
    struct answer *under_b = run_submit(&run, under(request_of(20), b));
    run_wait(&run);
    run_load(&fresh, SOME[5]);
    struct answer *expected = run_submit(&fresh, under(request_of(20), b));
    run_wait(&fresh);
    assert_true(run_same(under_b, expected));
    assert_false(run_same(under_a, under_b));
    run_close(&run);
    run_close(&fresh);
}

static void adapters_are_warmed_kept_and_taken_off_the_device_by_hand(void **state)
{
    (void)state;
    struct run run;
    struct err err = {0};
    struct engine_residency r;
    struct engine_stats stats;
    struct engine_options o = options_of();
    o.adapter_bytes = 820000; /* r16-rslora: 390 kB */
    run_open(&run, o, 8);
    struct content_digest a = run_load(&run, SOME[2]), b = run_load(&run, SOME[1]), c = {{1}};
    assert_int_equal(engine_adapter_residency(run.engine, &c, &r, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_int_equal(engine_adapter_warm(run.engine, &c, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_ok(engine_adapter_residency(run.engine, &a, &r, &err), err);
    assert_true(!r.on_device && !r.kept && r.n_users == 0 && r.n_uses == 0 && r.n_uploads == 0);
    assert_true(r.n_bytes > 300000 && r.rank_max == 16);

    assert_ok(engine_adapter_warm(run.engine, &a, &err), err);
    assert_ok(engine_adapter_residency(run.engine, &a, &r, &err), err);
    assert_true(r.on_device && !r.kept && r.n_uploads == 1);
    struct answer *warm = run_submit(&run, under(request_of(20), a));
    run_wait(&run);
    engine_stats(run.engine, &stats);
    assert_int_equal(stats.n_adapter_uploads, 1);
    assert_int_equal(stats.n_adapter_hits, 1);

    assert_ok(engine_adapter_keep(run.engine, &a, true, &err), err);
    assert_ok(engine_adapter_keep(run.engine, &a, true, &err), err); /* once is enough */
    assert_int_equal(engine_adapter_keep(run.engine, &b, true, &err), -1);
    assert_int_equal(err.code, ERR_TOO_LARGE);                 /* more than half */
    assert_ok(engine_adapter_drop(run.engine, &a, &err), err); /* keeping it is a load, too */
    struct answer *kept = run_submit(&run, under(request_of(20), a));
    run_submit(&run, under(request_of(20), b));
    run_wait(&run);
    assert_true(run_same(warm, kept));
    assert_ok(engine_adapter_residency(run.engine, &a, &r, &err), err);
    assert_true(r.on_device && r.kept && r.n_uses == 2 && r.n_uploads == 1);
    engine_stats(run.engine, &stats);
    assert_int_equal(stats.adapter_bytes_kept, r.n_bytes);

    assert_ok(engine_adapter_keep(run.engine, &a, false, &err), err);
    assert_ok(engine_adapter_evict(run.engine, &a, &err), err);
    assert_ok(engine_adapter_evict(run.engine, &a, &err), err); /* gone already */
    assert_ok(engine_adapter_evict(run.engine, &b, &err), err);
    assert_int_equal(engine_adapter_residency(run.engine, &a, &r, &err), -1); /* no load is left */
    assert_ok(engine_adapter_drop(run.engine, &b, &err), err);
    engine_stats(run.engine, &stats);
    assert_int_equal(stats.adapter_host_bytes_used, 0);
    assert_int_equal(stats.adapter_host_bytes_held, 0);
    run_submit(&run, request_of(1)); /* publishes the device's counters */
    run_wait(&run);
    engine_stats(run.engine, &stats);
    assert_int_equal(stats.adapter_bytes_used, 0);
    run_close(&run);
}

static void adapters_that_cannot_fit_are_refused_by_size(void **state)
{
    (void)state;
    struct run run;
    struct err err = {0};
    struct engine_options o = options_of();
    o.adapter_bytes = 200000;
    o.adapter_host_bytes = 520000;
    run_open(&run, o, 4);
    assert_int_equal(engine_adapter_load(run.engine, SOME[2], NULL, &err), -1); /* 390 kB */
    assert_int_equal(err.code, ERR_TOO_LARGE);
    /* 2 x 193 kB together don't fit the device; the host has no room for a third. */
    struct content_digest a = run_load(&run, SOME[1]);
    run_load(&run, SOME[0]);
    struct engine_request r = under(request_of(4), a);
    r.n_adapters = 2;
    r.adapters[1].content = run_load(&run, SOME[4]);
    r.adapters[1].weight = 1;
    assert_int_equal(engine_submit(run.engine, &r, NULL, &err), -1);
    assert_int_equal(err.code, ERR_TOO_LARGE);
    run_close(&run);
}

/* Of host memory, of the device and in what is told; the digest is the files' either way. */
static void an_f32_adapter_held_as_bf16_takes_half_the_bytes(void **state)
{
    (void)state;
    static const char *const dtypes[] = {"file", "bf16"};
    struct engine_adapter facts[2];
    struct run runs[2];
    struct err err = {0};
    struct engine_options o = options_of();
    for (int i = 0; i < 2; i++) {
        struct run *run = &runs[i];
        struct engine_residency r;
        struct engine_stats stats;
        size_t n_bytes;
        o.adapter_dtype = dtypes[i];
        run_open(run, o, 1);
        assert_string_equal(engine_model(run->engine)->adapter_dtype, dtypes[i]);
        assert_ok(engine_adapter_measure(run->engine, SOME[2], &n_bytes, &err), err);
        assert_ok(engine_adapter_load(run->engine, SOME[2], &facts[i], &err), err);
        run_submit(run, under(request_of(20), facts[i].content));
        run_wait(run);
        assert_ok(engine_adapter_residency(run->engine, &facts[i].content, &r, &err), err);
        engine_stats(run->engine, &stats);
        assert_int_equal(facts[i].n_bytes, n_bytes);
        assert_int_equal(r.n_bytes, n_bytes);
        assert_int_equal(stats.adapter_host_bytes_used, n_bytes);
        assert_int_equal(stats.adapter_bytes_used, n_bytes);
    }
    assert_true(DIGEST_EQ(facts[0].content, facts[1].content));
    assert_true(facts[1].n_bytes < facts[0].n_bytes * 6 / 10); /* small ones are aligned */
    run_close(&runs[0]);
    run_close(&runs[1]);
    o.adapter_dtype = "f16";
    o.on_events = run_on_events;
    struct engine *e;
    assert_int_equal(engine_open(&e, &o, &err), -1);
    assert_string_equal(err.message, "engine options: adapter_dtype = \"f16\" (--adapter-dtype) is "
                                     "none of auto, file and bf16");
}

static void an_ensemble_is_the_sum_of_its_weighted_deltas(void **state)
{
    (void)state;
    struct run run;
    run_open(&run, options_of(), 16);
    struct content_digest a = run_load(&run, SOME[0]), b = run_load(&run, SOME[3]);
    struct engine_request r = under(request_of(20), a);
    struct answer *single = run_submit(&run, r);
    r.n_adapters = 2;
    r.adapters[1].content = b;
    r.adapters[1].weight = 0; /* adds nothing */
    struct answer *with_nothing = run_submit(&run, r);
    r.adapters[1].weight = 0.5f;
    struct answer *both = run_submit(&run, r);
    r.n_adapters = 1;
    r.adapters[0].weight = 0;
    struct answer *none = run_submit(&run, r);
    struct answer *base = run_submit(&run, request_of(20));
    run_wait(&run);
    assert_true(run_same(single, with_nothing));
    assert_false(run_same(single, both));
    assert_true(run_same(none, base));
    run_close(&run);
}

static void bad_directories_are_named(void **state)
{
    static const struct {
        const char *model, *backend, *says;
    } cases[] = {
        {"tests/fixtures/no-such-model", NULL, "no-such-model"},
        {ADAPTERS "demo-7m/med", NULL, "config.json"},
        {MODELS "stories260K", "abacus", "abacus"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct err err = {0};
        struct engine *e = NULL;
        struct engine_options o = run_options(cases[i].model);
        o.backend = cases[i].backend;
        o.on_events = run_on_events;
        assert_int_equal(engine_open(&e, &o, &err), -1);
        if (strstr(err.message, cases[i].says) == NULL)
            fail_msg("expected a sentence about %s, got: %s", cases[i].says, err.message);
    }
    engine_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_model_tells_what_it_is),
        cmocka_unit_test(the_model_s_id_is_the_hash_of_its_files_hashes),
        cmocka_unit_test(requests_that_break_a_rule_are_refused_and_no_event_comes),
        cmocka_unit_test(generation_ends_at_max_tokens_at_the_context_at_stop_ids_and_at_eos),
        cmocka_unit_test(nothing_asked_for_is_answered_at_once),
        cmocka_unit_test(scoring_a_text_gives_the_log_probabilities_of_writing_it),
        cmocka_unit_test(a_seed_says_what_is_drawn_whoever_else_is_there),
        cmocka_unit_test(a_cancelled_request_ends_and_the_others_never_notice),
        cmocka_unit_test(a_deadline_ends_running_and_waiting_requests),
        cmocka_unit_test(a_full_queue_is_busy_and_what_was_accepted_is_served),
        cmocka_unit_test(a_payer_with_many_requests_does_not_make_another_wait_for_all_of_them),
        cmocka_unit_test(a_high_priority_goes_before_all_that_wait),
        cmocka_unit_test(closing_ends_everything_with_one_event_each),
        cmocka_unit_test(a_dropped_adapter_serves_who_has_it_and_is_not_found_afterwards),
        cmocka_unit_test(a_pool_smaller_than_the_adapters_gives_the_same_bits),
        cmocka_unit_test(a_slot_that_now_holds_another_adapter_serves_the_other),
        cmocka_unit_test(adapters_are_warmed_kept_and_taken_off_the_device_by_hand),
        cmocka_unit_test(adapters_that_cannot_fit_are_refused_by_size),
        cmocka_unit_test(an_f32_adapter_held_as_bf16_takes_half_the_bytes),
        cmocka_unit_test(an_ensemble_is_the_sum_of_its_weighted_deltas),
        cmocka_unit_test(bad_directories_are_named),
    };
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
