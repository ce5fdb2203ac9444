/* Steps on their way through the device: filled up, enqueued ahead, recorded and replayed, they
 * give the bits of plain ones. On stories260K, with everything in the mix that ends or changes a
 * step: stops, lengths, cancels, preemption, adapters that come and go, prompts in chunks, scores,
 * penalties. The deferring backend stands for the GPU. */
#include "tests/unit/engine/deferring.h"
#include "tests/unit/engine/run.h"

enum { MIX = 40, ROUND = 10, PROMPT_MAX = 60, CONTEXT = 128 };

static const char *const SOME[] = {
    ADAPTERS "stories260K-test/r4-qv", ADAPTERS "stories260K-test/r8-all-linear",
    ADAPTERS "stories260K-test/r16-rslora", /* 390 kB */
    ADAPTERS "stories260K-test/r3-odd-rank", ADAPTERS "stories260K-law"};
enum { N_SOME = sizeof SOME / sizeof SOME[0] };

struct mix { /* MIX requests, the same each time but for what ends them */
    int32_t prompts[MIX][PROMPT_MAX];
    struct content_digest content[N_SOME];
    int32_t stop[MIX]; /* token id that ends request i; -1: none */
};

static struct engine_options options_of(void)
{
    struct engine_options o = run_options(MODELS "stories260K");
    o.max_context = CONTEXT;
    o.max_seqs = 12; /* some wait */
    o.max_rows = 24; /* prompts in chunks */
    return o;
}

static struct engine_request request_of(const struct mix *m, int i)
{
    struct engine_request r = run_greedy(m->prompts[i], 1 + i * 7 % PROMPT_MAX, 5 + i * 11 % 50,
                                         i % 3 - 1);
    r.ignore_eos = true;
    r.prompt_logprobs = i % 9 == 4;
    r.sampling.temperature = i % 2 ? 0.9f : 0;
    r.sampling.top_p = i % 4 == 1 ? 0.8f : 0;
    r.sampling.seed = (uint64_t)i;
    r.sampling.frequency_penalty = i % 13 == 6 ? 0.5f : 0;
    r.n_stop_ids = m->stop[i] >= 0;
    r.stop_ids = &m->stop[i];
    r.n_adapters = i % 4 == 0 ? 0 : i % 10 == 7 ? 2 : 1;
    for (int a = 0; a < r.n_adapters; a++) {
        r.adapters[a].content = m->content[(i + a) % N_SOME];
        r.adapters[a].weight = r.n_adapters > 1 ? 0.5f : 1;
    }
    return r;
}

static void open_mix(struct run *run, struct mix *m, struct engine_options o)
{
    run_open(run, o, 2 * MIX);
    for (int i = 0; i < N_SOME; i++)
        m->content[i] = run_load(run, SOME[i]);
}

/* Plain answers, every token of them computed, and from them tokens that will stop some in the
 * middle. */
static void prepare(struct run *plain, struct mix *m, struct engine_options o)
{
    for (int i = 0; i < MIX; i++) {
        m->stop[i] = -1;
        m->prompts[i][0] = 1;
        for (int k = 1; k < PROMPT_MAX; k++)
            m->prompts[i][k] = 3 + (i * 131 + k * k * 17) % 500;
    }
    o.no_prefix_cache = true;
    open_mix(plain, m, o);
    for (int i = 0; i < MIX; i++)
        run_submit(plain, request_of(m, i));
    run_wait(plain);
    for (int i = 0; i < MIX; i += 3)
        m->stop[i] = plain->answers[i].tokens[plain->answers[i].n_tokens / 2].token;
    for (int i = 0; i < MIX; i++)
        run_submit(plain, request_of(m, i));
    run_wait(plain);
}

/* late: on the deferring backend, which records unless debug_pad is to do without. */
static const struct {
    const char *name;
    bool pad, overlap, preempt, late;
    size_t kv_blocks, adapter_bytes; /* 0: plenty */
    size_t own_bytes;                /* of a device with memory of its own */
} WAYS[] = {
    {"padded", .pad = true},
    {"ahead", .overlap = true},
    {"padded, ahead", .pad = true, .overlap = true},
    {"ahead, preempted", .overlap = true, .preempt = true},
    {"padded, ahead, few blocks", .pad = true, .overlap = true, .kv_blocks = 14},
    {"padded, ahead, few adapters", .pad = true, .overlap = true, .adapter_bytes = 620000},
    {"late, padded", .late = true, .pad = true},
    {"late, padded, ahead", .late = true, .pad = true, .overlap = true},
    {"late, recorded", .late = true},
    {"late, recorded, little of everything", .late = true, .preempt = true, .kv_blocks = 14,
     .adapter_bytes = 620000},
    {"late, own memory, few adapters", .late = true, .adapter_bytes = 620000,
     .own_bytes = 256 << 20},
    {"late, own memory, adapters brought in early", .late = true, .own_bytes = 256 << 20},
};

/* Did it go the way it was meant to? */
static void check_way(struct run *run, size_t w)
{
    struct engine_stats s;
    engine_stats(run->engine, &s);
    bool records = WAYS[w].late && !WAYS[w].pad, ahead = WAYS[w].overlap || records;
    if ((s.n_steps_ahead > 0) != ahead || (s.n_steps_replayed > 0) != records)
        fail_msg("%s: %d steps ahead, %d replayed", WAYS[w].name, (int)s.n_steps_ahead,
                 (int)s.n_steps_replayed);
    if (((WAYS[w].preempt || WAYS[w].kv_blocks > 0) && s.n_preemptions == 0) ||
        (WAYS[w].adapter_bytes > 0 && s.n_adapter_evictions == 0))
        fail_msg("%s: %d preemptions, %d evictions", WAYS[w].name, (int)s.n_preemptions,
                 (int)s.n_adapter_evictions);
    bool prefetches = WAYS[w].own_bytes > 0 && WAYS[w].adapter_bytes == 0;
    if (s.n_adapter_uploads == 0 || s.n_adapter_hits == 0 ||
        (prefetches && s.n_adapter_prefetches == 0))
        fail_msg("%s: %d uploads, %d of them before an admission, %d hits", WAYS[w].name,
                 (int)s.n_adapter_uploads, (int)s.n_adapter_prefetches, (int)s.n_adapter_hits);
}

static struct engine_options options_of_way(const struct run *plain, size_t w)
{
    struct engine_options o = options_of();
    o.debug_pad = WAYS[w].pad;
    o.debug_overlap = WAYS[w].overlap;
    o.debug_preempt = WAYS[w].preempt;
    o.adapter_bytes = WAYS[w].adapter_bytes > 0 ? WAYS[w].adapter_bytes : o.adapter_bytes;
    if (WAYS[w].kv_blocks > 0)
        o.kv_bytes = WAYS[w].kv_blocks *
                     forward_block_bytes(&plain->engine->model->config, DTYPE_F32);
    return o;
}

static void every_way_gives_the_same_answers(void **state)
{
    (void)state;
    struct run plain, run;
    static struct mix m;
    prepare(&plain, &m, options_of());
    for (size_t w = 0; w < sizeof WAYS / sizeof WAYS[0]; w++) {
        engine_debug_ops = WAYS[w].late ? deferring_ops(!WAYS[w].pad, WAYS[w].own_bytes) : NULL;
        open_mix(&run, &m, options_of_way(&plain, w));
        engine_debug_ops = NULL;
        for (int i = 0; i < MIX; i++)
            run_submit(&run, request_of(&m, i));
        run_wait(&run);
        check_way(&run, w);
        for (int i = 0; i < MIX; i++)
            if (!run_same(&run.answers[i], &plain.answers[MIX + i]))
                fail_msg("%s: request %d differs", WAYS[w].name, i);
        run_close(&run);
    }
    run_close(&plain);
}

struct gate { /* holds the engine thread in its callback */
    bool shut, met;
};

static void stand_at_gate(struct run *run, const struct engine_event *event)
{
    struct gate *g = run->watch_context;
    (void)event;
    g->met |= g->shut;
    pthread_cond_broadcast(&run->changed);
    while (g->shut)
        pthread_cond_wait(&run->changed, &run->lock);
}

/* Behind a step with a prompt in it, whose sequences all draw, comes one that is filled up to 96
 * rows and takes its tokens from the device: those of its padding must be there, too, and not what
 * an earlier batch had at their place. */
static void padding_has_tokens_behind_a_step_that_had_none(void **state)
{
    (void)state;
    enum { FEW = 25, MANY = 70 };
    struct run run;
    static struct mix m;
    struct engine_options o = run_options(MODELS "stories260K");
    o.max_context = CONTEXT;
    o.max_seqs = o.max_rows = 96;
    memset(m.stop, 0xff, sizeof m.stop);
    engine_debug_ops = deferring_ops(true, 0);
    run_open(&run, o, FEW + MANY + 2);
    engine_debug_ops = NULL;
    for (int i = 0; i < N_SOME; i++)
        m.content[i] = run_load(&run, SOME[i]);
    static const int32_t prompt[3] = {1, 5, 9};
    struct gate gate = {0};
    run.watch = stand_at_gate;
    run.watch_context = &gate;
    for (int i = 0; i < FEW + MANY; i++) {
        /* 50 rows with segments behind them; then 70 sequences in 78 rows. */
        bool few = i < FEW;
        struct engine_request r = run_greedy(prompt,
                                             few           ? 2
                                             : i < FEW + 4 ? 3
                                                           : 1,
                                             few ? 1 : 8, -1);
        r.ignore_eos = true;
        r.n_adapters = 1;
        r.adapters[0].content = m.content[i % N_SOME];
        r.adapters[0].weight = 1;
        if (i == 0 || i == FEW) { /* all that follow begin in one step */
            run_wait(&run);
            pthread_mutex_lock(&run.lock);
            gate = (struct gate){.shut = true};
            pthread_mutex_unlock(&run.lock);
            run_submit(&run, run_greedy(prompt, 1, 1, -1));
            pthread_mutex_lock(&run.lock);
            while (!gate.met)
                pthread_cond_wait(&run.changed, &run.lock);
            pthread_mutex_unlock(&run.lock);
        }
        run_submit(&run, r);
        if (i == FEW - 1 || i == FEW + MANY - 1) {
            pthread_mutex_lock(&run.lock);
            gate.shut = false;
            pthread_cond_broadcast(&run.changed);
            pthread_mutex_unlock(&run.lock);
        }
    }
    run_wait(&run);
    struct engine_stats s;
    engine_stats(run.engine, &s);
    assert_true(s.n_steps_ahead > 0);
    run_close(&run);
}

/* That its length ends it is known before its last token is: no row is computed for what is behind
 * it, though every other step of it was enqueued ahead. */
static void a_sequence_that_its_length_ends_is_not_computed_beyond_its_last_token(void **state)
{
    enum { N = 9 };
    (void)state;
    struct run run;
    struct engine_stats s;
    static const int32_t prompt[] = {1, 403, 407};
    engine_debug_ops = deferring_ops(true, 0);
    run_open(&run, options_of(), 1);
    engine_debug_ops = NULL;
    struct engine_request r = run_greedy(prompt, 3, N, -1);
    r.ignore_eos = true;
    run_submit(&run, r);
    run_wait(&run);
    engine_stats(run.engine, &s);
    assert_int_equal(run.answers[0].n_tokens, N);
    assert_int_equal(s.n_steps, N); /* the prompt's draws the first token */
    assert_int_equal(s.n_steps_ahead, N - 1);
    run_close(&run);
}

/* While nobody waits, an end leaves a hole: the others' next step is enqueued ahead as if nothing
 * had been, and they say what they say alone. */
static void behind_an_end_that_nobody_waits_for_steps_are_enqueued_ahead(void **state)
{
    (void)state;
    enum { N = 8, LONGEST = 12 };
    static const int32_t prompt[N] = {1, 403, 407, 5, 9, 31, 77, 260};
    static const int lengths[N] = {LONGEST, LONGEST, LONGEST, 5, LONGEST, 7, 9, 4};
    /* Places, as prompts have them: 0 2 4 6, with the adapter 1 3 5 7. The last ends first, then a
     * hole that becomes one of the last, then another. */
    struct engine_request requests[N];
    struct content_digest content = {0};
    struct engine_options o = options_of();
    struct run alone;
    o.max_rows = 64;
    run_open(&alone, o, N);
    content = run_load(&alone, SOME[1]);
    for (int i = 0; i < N; i++) {
        requests[i] = run_greedy(prompt, i + 1, lengths[i], 2);
        requests[i].ignore_eos = true;
        requests[i].n_adapters = i % 2;
        requests[i].adapters[0].content = content;
        requests[i].adapters[0].weight = 1;
        run_submit(&alone, requests[i]);
        run_wait(&alone);
    }
    for (int way = 0; way < 3; way++) {
        struct run run;
        struct engine_stats s;
        struct gate gate = {.shut = true};
        o.debug_overlap = way > 0;
        o.debug_pad = way > 1;
        engine_debug_ops = deferring_ops(way == 0, 0);
        run_open(&run, o, N + 1);
        engine_debug_ops = NULL;
        run_load(&run, SOME[1]);
        run.watch = stand_at_gate;
        run.watch_context = &gate;
        run_submit(&run, run_greedy(prompt, 1, 1, -1));
        pthread_mutex_lock(&run.lock);
        while (!gate.met)
            pthread_cond_wait(&run.changed, &run.lock);
        pthread_mutex_unlock(&run.lock);
        for (int i = 0; i < N; i++)
            run_submit(&run, requests[i]);
        pthread_mutex_lock(&run.lock);
        gate.shut = false;
        pthread_cond_broadcast(&run.changed);
        pthread_mutex_unlock(&run.lock);
        run_wait(&run);
        engine_stats(run.engine, &s);
        if (s.n_steps != 1 + LONGEST || s.n_steps_ahead != LONGEST - 1)
            fail_msg("way %d: %d steps, %d of them ahead", way, (int)s.n_steps,
                     (int)s.n_steps_ahead);
        for (int i = 0; i < N; i++)
            if (!run_same(&run.answers[1 + i], &alone.answers[i]))
                fail_msg("way %d: request %d differs", way, i);
        run_close(&run);
    }
    run_close(&alone);
}

struct looked {    /* at steps */
    int n_beside;  /* segments of ensembles beside a prompt */
    int n_between; /* holes with somebody behind them */
};

static const struct lora_adapter *adapter_in(const struct step_batch *b, int32_t slot)
{
    for (int i = 0; i < b->n_seqs; i++) {
        const struct sequence *q = b->seqs[i].sequence;
        for (int k = 0; q != NULL && k < q->n_adapters; k++)
            if (q->pins[k].slot == slot)
                return q->adapters[k]->lora;
    }
    fail_msg("a segment of slot %d, which no sequence has pinned", slot);
    return NULL;
}

/* What operators may take for granted of segments (ops.h): those that overlap are one sequence's;
 * and how heavy they are. */
static void look_at_step(void *context, const struct step_batch *b, int n_decode, int n_distinct,
                         uint64_t step_us)
{
    struct looked *l = context;
    (void)n_distinct;
    (void)step_us;
    for (int i = 0; i + 1 < b->n_seqs; i++)
        l->n_between += b->seqs[i].sequence == NULL;
    for (int i = 1; i < b->lora.n_segs; i++) {
        const struct lora_seg *x = &b->segs[i - 1], *y = &b->segs[i];
        bool same = x->row_begin == y->row_begin && x->n_rows == y->n_rows;
        if (!same && x->row_begin + x->n_rows > y->row_begin)
            fail_msg("segments of rows %d + %d and %d + %d", x->row_begin, x->n_rows, y->row_begin,
                     y->n_rows);
        l->n_beside += same && n_decode > 0 && n_decode < b->n_rows;
    }
    int ranks = 0, rank_max = 0;
    for (int i = 0; i < b->lora.n_segs; i++) {
        const struct lora_adapter *a = adapter_in(b, b->segs[i].slot);
        ranks += a->rank_mean;
        rank_max = a->rank_max > rank_max ? a->rank_max : rank_max;
    }
    assert_int_equal(b->ranks, ranks);
    assert_int_equal(b->rank_max, rank_max);
    assert_int_equal(b->lora.heavy,
                     lora_is_heavy(b->batch.n_rows, b->lora.n_segs, ranks, rank_max));
}

/* As measured: what is heavier than it costs to go apart (gpu-h200.md). */
static void adapters_are_heavy_where_that_was_measured(void **state)
{
    (void)state;
    static const struct {
        int n_rows, n_segs, ranks, rank_max;
        bool heavy;
    } rows[] = {
        {8, 8, 128, 16, false},      {8, 8, 512, 64, false},      {8, 8, 368, 256, false},
        {32, 32, 512, 16, false},    {32, 8, 512, 64, false},     {32, 32, 2048, 64, true},
        {32, 32, 1587, 128, true},   {32, 32, 752, 256, true},    {64, 64, 1024, 16, false},
        {64, 64, 4096, 64, true},    {64, 64, 3174, 128, true},   {64, 1, 64, 64, false},
        {128, 128, 2048, 16, false}, {128, 8, 512, 64, false},    {128, 128, 8192, 64, true},
        {128, 128, 6348, 128, true}, {128, 128, 2288, 256, true}, {256, 32, 512, 16, false},
        {256, 256, 4096, 16, true},  {256, 32, 2048, 64, true},   {200, 1, 1024, 1024, false},
        {200, 33, 1500, 1024, true}, {64, 0, 0, 0, false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (lora_is_heavy(rows[i].n_rows, rows[i].n_segs, rows[i].ranks, rows[i].rank_max) !=
            rows[i].heavy)
            fail_msg("%d rows, %d segments, ranks of %d in all and %d at most: %s", rows[i].n_rows,
                     rows[i].n_segs, rows[i].ranks, rows[i].rank_max,
                     rows[i].heavy ? "not heavy" : "heavy");
}

/* The prompt's rows come right behind the ensemble's one, under the same adapter and weight. */
static void a_prompt_joins_no_segment_of_an_ensemble(void **state)
{
    (void)state;
    static const int32_t prompt[12] = {1, 403, 407, 5, 9, 31, 77, 260, 4, 8, 15, 16};
    struct run run;
    struct looked looked = {0};
    run_open(&run, options_of(), 2);
    struct content_digest one = run_load(&run, SOME[1]), other = run_load(&run, SOME[0]);
    engine_set_step_hook(run.engine, look_at_step, &looked);
    struct engine_request ensemble = run_greedy(prompt, 3, 100, -1), single;
    ensemble.ignore_eos = true;
    ensemble.n_adapters = 2;
    ensemble.adapters[0].content = other;
    ensemble.adapters[0].weight = 0.5f;
    ensemble.adapters[1].content = one;
    ensemble.adapters[1].weight = 1;
    run_submit(&run, ensemble);
    pthread_mutex_lock(&run.lock);
    while (run.answers[0].n_tokens == 0)
        pthread_cond_wait(&run.changed, &run.lock);
    pthread_mutex_unlock(&run.lock);
    single = run_greedy(prompt, 12, 2, -1);
    single.n_adapters = 1;
    single.adapters[0].content = one;
    single.adapters[0].weight = 1;
    run_submit(&run, single);
    run_wait(&run);
    assert_true(looked.n_beside > 0);
    run_close(&run);
}

/* ---- ends from outside while steps fly --------------------------------------------------- */

/* Each request cancels another one when it has spoken five times. */
static void cancel_another(struct run *run, const struct engine_event *event)
{
    struct answer *a = event->user;
    int other = (int)(a - run->answers) + 3;
    if (event->kind == ENGINE_EVENT_TOKEN && a->n_tokens == 5 && other % 4 == 0 && other < run->n)
        engine_cancel(run->engine, run->answers[other].id);
}

static void the_cancelled_end_and_the_others_never_notice(void **state)
{
    (void)state;
    struct run plain, run;
    static struct mix m;
    int n_cancelled = 0;
    prepare(&plain, &m, options_of());
    struct engine_options o = options_of();
    engine_debug_ops = deferring_ops(true, 0);
    open_mix(&run, &m, o);
    engine_debug_ops = NULL;
    run.watch = cancel_another;
    for (int i = 0; i < MIX; i++)
        run_submit(&run, request_of(&m, i));
    run_wait(&run);
    for (int i = 0; i < MIX; i++) {
        const struct answer *a = &run.answers[i], *b = &plain.answers[MIX + i];
        if (a->finish == ENGINE_FINISH_CANCELLED) {
            n_cancelled++;
            if (a->n_tokens > b->n_tokens ||
                !run_same_events(a->tokens, a->n_tokens, b->tokens, a->n_tokens))
                fail_msg("request %d said something else before it was cancelled", i);
        } else if (!run_same(a, b)) {
            fail_msg("request %d differs", i);
        }
    }
    assert_true(n_cancelled > 0);
    run_close(&run); /* every block and pin must be back */
    run_close(&plain);
}

/* Each request cancels another one, of a round of its own, at some word. */
static void cancel_in_round(struct run *run, const struct engine_event *event)
{
    const struct answer *a = event->user;
    int i = (int)(a - run->answers), other = i / ROUND * ROUND + (i * 7 + 3) % ROUND;
    if (event->kind == ENGINE_EVENT_TOKEN && i % 3 == 1 && a->n_tokens == 2 + i * 5 % 13 &&
        other < run->n)
        engine_cancel(run->engine, run->answers[other].id);
}

/* Nobody waits, so that the steps behind an end have holes: of lengths, stops and cancels, in
 * ensembles, too, while blocks are published, given back and taken again. */
static void whatever_ends_while_nobody_waits_the_others_never_notice(void **state)
{
    (void)state;
    struct run plain;
    static struct mix m;
    struct looked looked = {0};
    int n_cancelled = 0;
    prepare(&plain, &m, options_of());
    for (size_t w = 0; w < sizeof WAYS / sizeof WAYS[0]; w++) {
        struct run run;
        struct engine_options o = options_of_way(&plain, w);
        engine_debug_ops = WAYS[w].late ? deferring_ops(!WAYS[w].pad, WAYS[w].own_bytes) : NULL;
        open_mix(&run, &m, o);
        engine_debug_ops = NULL;
        engine_set_step_hook(run.engine, look_at_step, &looked);
        run.watch = cancel_in_round;
        for (int begin = 0; begin < MIX; begin += ROUND) {
            for (int i = begin; i < MIX && i < begin + ROUND; i++)
                run_submit(&run, request_of(&m, i));
            run_wait(&run);
        }
        for (int i = 0; i < MIX; i++) {
            const struct answer *a = &run.answers[i], *b = &plain.answers[MIX + i];
            bool cancelled = a->finish == ENGINE_FINISH_CANCELLED;
            n_cancelled += cancelled;
            if (cancelled ? a->n_tokens > b->n_tokens ||
                                !run_same_events(a->tokens, a->n_tokens, b->tokens, a->n_tokens)
                          : !run_same(a, b))
                fail_msg("%s: request %d differs", WAYS[w].name, i);
        }
        run_close(&run); /* every block and pin must be back */
    }
    printf("note: %d cancelled, %d holes\n", n_cancelled, looked.n_between);
    assert_true(n_cancelled > 0 && looked.n_between > 0);
    run_close(&plain);
}

/* Cancels those that wait again and whose adapter is here, if something is promised to somebody. */
static void cancel_who_waits_again(struct run *run, const struct engine_event *event)
{
    const struct engine *e = run->engine; /* this is its thread */
    struct lora_pool_stats *pool = run->watch_context;
    (void)event;
    lora_pool_stats(e->lora, pool);
    for (int i = 0; i < e->n_waiting && pool->bytes_promised > 0; i++)
        if (e->waiting[i]->was_admitted &&
            lora_pool_is_resident(e->lora, &e->waiting[i]->adapters[0]->lora->content))
            engine_cancel(run->engine, e->waiting[i]->id);
}

/* Also one that was preempted, for whom an adapter that had to go was brought in again, may end
 * before it has it: nothing stays promised to it. */
static void what_was_promised_to_a_sequence_is_free_when_it_ends(void **state)
{
    enum { ADAPTERS_MADE = 12, FIT = 4, ROUNDS = 6 };
    (void)state;
    struct run run;
    struct lora_pool_stats pool;
    struct content_digest content[ADAPTERS_MADE];
    static const int32_t prompt[] = {1, 403, 407};
    int n_cancelled = 0;
    struct engine_options o = options_of();
    o.debug_preempt = true;
    for (int opened = 0; opened < 2; opened++) { /* the first time to learn what fits */
        engine_debug_ops = deferring_ops(true, 256 << 20);
        run_open(&run, o, ROUNDS * ADAPTERS_MADE + 1);
        engine_debug_ops = NULL;
        for (int i = 0; i < ADAPTERS_MADE; i++) {
            struct err err = {0};
            struct lora_adapter *a = lora_random(&run.engine->model->config, 4, DTYPE_BF16,
                                                 100 + (uint64_t)i);
            content[i] = a->content;
            o.adapter_bytes = FIT * a->n_bytes;
            assert_ok(engine_adapter_add(run.engine, a, &err), err);
        }
        if (opened == 0)
            run_close(&run);
    }
    run.watch_context = &pool;
    run.watch = cancel_who_waits_again;
    for (int i = 0; i < ROUNDS * ADAPTERS_MADE; i++) {
        struct engine_request r = run_greedy(prompt, 3, i < FIT ? 100 : 12, -1);
        r.ignore_eos = true;
        r.priority = i >= FIT; /* they come before those that were preempted */
        r.n_adapters = 1;
        r.adapters[0].content = content[i < FIT ? i : FIT + i % (ADAPTERS_MADE - FIT)];
        r.adapters[0].weight = 1;
        run_submit(&run, r);
        pthread_mutex_lock(&run.lock);
        while (i == FIT - 1 && run.answers[i].n_tokens == 0)
            pthread_cond_wait(&run.changed, &run.lock);
        pthread_mutex_unlock(&run.lock);
    }
    run_wait(&run);
    run_submit(&run, run_greedy(prompt, 3, 1, -1)); /* so that somebody looks again */
    run_wait(&run);
    for (int i = 0; i < run.n; i++)
        n_cancelled += run.answers[i].finish == ENGINE_FINISH_CANCELLED;
    assert_true(n_cancelled > 0 && pool.n_prefetched > 0 && pool.n_evictions > 0);
    assert_int_equal(pool.bytes_promised, 0);
    run_close(&run);
}

static void closing_ends_what_flies(void **state)
{
    (void)state;
    struct run run;
    static struct mix m;
    memset(m.stop, 0xff, sizeof m.stop);
    engine_debug_ops = deferring_ops(true, 0);
    open_mix(&run, &m, options_of());
    engine_debug_ops = NULL;
    for (int i = 0; i < MIX; i++)
        run_submit(&run, request_of(&m, i));
    pthread_mutex_lock(&run.lock);
    while (run.answers[2].n_tokens < 3)
        pthread_cond_wait(&run.changed, &run.lock);
    pthread_mutex_unlock(&run.lock);
    run_close(&run); /* checks that each had its FINISHED event */
}

static void a_device_that_fails_ends_everything_and_refuses_more(void **state)
{
    (void)state;
    struct run run;
    static struct mix m;
    memset(m.stop, 0xff, sizeof m.stop);
    for (int n_waits = 0; n_waits < 12; n_waits += 3) {
        struct engine_request r;
        struct err err = {0};
        int n_errors = 0;
        engine_debug_ops = deferring_ops(true, 0);
        open_mix(&run, &m, options_of());
        engine_debug_ops = NULL;
        late.n_waits_left = n_waits; /* the engine is idle */
        for (int i = 0; i < MIX; i++) {
            r = request_of(&m, i);
            struct answer *a = &run.answers[run.n];
            r.user = a;
            pthread_mutex_lock(&run.lock);
            run.n++; /* before an event can come */
            pthread_mutex_unlock(&run.lock);
            if (engine_submit(run.engine, &r, NULL, &err) != 0) {
                assert_int_equal(err.code, ERR_INTERNAL);
                pthread_mutex_lock(&run.lock);
                run.n--;
                pthread_mutex_unlock(&run.lock);
            }
        }
        run_wait(&run);
        for (int i = 0; i < run.n; i++)
            n_errors += run.answers[i].finish == ENGINE_FINISH_ERROR;
        assert_true(n_errors > 0);
        assert_int_equal(engine_submit(run.engine, &r, NULL, &err), -1);
        assert_non_null(strstr(err.message, "on fire"));
        run_close(&run); /* blocks and pins are back */
    }
}

/* ---- logits ------------------------------------------------------------------------------ */

struct seen { /* logits that were shown, by request and position */
    struct run *run;
    uint64_t hash[MIX][CONTEXT];
};

static void see(void *context, void *user, int position, const float *logits, int vocab)
{
    struct seen *s = context;
    s->hash[(struct answer *)user - s->run->answers][position] = run_hash(logits, vocab);
}

static void padding_changes_no_bit_of_the_logits(void **state)
{
    (void)state;
    static struct mix m;
    static struct seen seen[2];
    struct run runs[2];
    prepare(&runs[0], &m, options_of());
    run_close(&runs[0]);
    for (int k = 0; k < 2; k++) {
        struct engine_options o = options_of();
        o.debug_pad = k == 1;
        open_mix(&runs[k], &m, o);
        seen[k].run = &runs[k];
        engine_set_logits_hook(runs[k].engine, see, &seen[k]);
        for (int i = 0; i < MIX; i++)
            run_submit(&runs[k], request_of(&m, i));
        run_wait(&runs[k]);
    }
    int n = 0;
    for (int i = 0; i < MIX; i++)
        for (int p = 0; p < CONTEXT; p++) {
            n += seen[0].hash[i][p] != 0;
            if (seen[0].hash[i][p] != seen[1].hash[i][p])
                fail_msg("request %d: logits of position %d differ", i, p);
        }
    assert_true(n > 10 * MIX);
    run_close(&runs[0]);
    run_close(&runs[1]);
}

/* ---- memory ------------------------------------------------------------------------------ */

static void what_weights_and_workspace_leave_of_the_device_is_divided(void **state)
{
    enum { MIB = 1 << 20 };
    static const struct {
        float fraction;
        size_t kv_bytes, adapter_bytes;
        const char *says; /* NULL: opens */
    } cases[] = {
        {0.5f, 0, 0, NULL},
        {0, 0, 0, NULL},
        {1, 0, 0, NULL},
        {0.5f, 4 * MIB, 0, NULL},
        {0.5f, 0, 3 * MIB, NULL},
        {0.5f, 8 * MIB, 8 * MIB, NULL},
        {0.5f, 30 * MIB, 8 * MIB, "don't fit"},
        {0.5f, 0, 80 * MIB, "don't fit"},
        {1.5f, 0, 0, "gpu_memory"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct engine *e;
        struct engine_stats s;
        struct err err = {0};
        struct engine_options o = run_options(MODELS "stories260K");
        o.max_context = 512;
        o.gpu_memory = cases[i].fraction;
        o.kv_bytes = cases[i].kv_bytes;
        o.adapter_bytes = cases[i].adapter_bytes;
        o.on_events = run_on_events;
        engine_debug_ops = deferring_ops(true, 64 * MIB);
        int rc = engine_open(&e, &o, &err);
        engine_debug_ops = NULL;
        if ((rc == 0) != (cases[i].says == NULL) ||
            (rc != 0 && strstr(err.message, cases[i].says) == NULL))
            fail_msg("case %zu: %s", i, rc == 0 ? "opened" : err.message);
        if (rc != 0)
            continue;
        engine_stats(e, &s);
        size_t kv = (size_t)s.n_blocks * forward_block_bytes(&e->model->config, DTYPE_F32);
        size_t ours = (size_t)(64 * MIB * (cases[i].fraction > 0 ? cases[i].fraction : 0.9f));
        print_message("of %zu KiB: adapters %zu, KV cache %zu, all %zu\n", ours >> 10,
                      s.adapter_bytes_total >> 10, kv >> 10, late.memory_used >> 10);
        assert_true(late.memory_used <= ours);
        if (cases[i].kv_bytes == 0 && cases[i].adapter_bytes == 0)
            assert_true(s.adapter_bytes_total > ours / 10 && kv > 2 * s.adapter_bytes_total);
        if (cases[i].kv_bytes != 0)
            assert_true(kv <= cases[i].kv_bytes && kv > cases[i].kv_bytes * 9 / 10);
        if (cases[i].adapter_bytes != 0)
            assert_int_equal(s.adapter_bytes_total, cases[i].adapter_bytes);
        engine_close(e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_way_gives_the_same_answers),
        cmocka_unit_test(padding_has_tokens_behind_a_step_that_had_none),
        cmocka_unit_test(a_sequence_that_its_length_ends_is_not_computed_beyond_its_last_token),
        cmocka_unit_test(behind_an_end_that_nobody_waits_for_steps_are_enqueued_ahead),
        cmocka_unit_test(a_prompt_joins_no_segment_of_an_ensemble),
        cmocka_unit_test(adapters_are_heavy_where_that_was_measured),
        cmocka_unit_test(the_cancelled_end_and_the_others_never_notice),
        cmocka_unit_test(whatever_ends_while_nobody_waits_the_others_never_notice),
        cmocka_unit_test(what_was_promised_to_a_sequence_is_free_when_it_ends),
        cmocka_unit_test(closing_ends_what_flies),
        cmocka_unit_test(a_device_that_fails_ends_everything_and_refuses_more),
        cmocka_unit_test(padding_changes_no_bit_of_the_logits),
        cmocka_unit_test(what_weights_and_workspace_leave_of_the_device_is_divided),
    };
    return cmocka_run_group_tests_name("step", tests, NULL, NULL);
}
