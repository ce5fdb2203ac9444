/* replay_run: one measurement. Three parties:
 *
 *   the caller's thread   asks when a request is due or a stream's last one has ended, and frees
 *                         what has ended
 *   the engine's thread   in run_on_step: looks at each step before its results are taken: who is
 *                         in it, under which adapter; in run_on_events: times the tokens
 *
 * They meet under the rig's lock. Time runs
 *
 *     begin |---- warm ----|------ window ------|-- drain --| cancel what is left, wait for silence
 *
 * and a request counts when it arrives in the window, a token when it comes in the window. In an
 * open loop a request's clock starts when it was due, not when this thread got round to submitting
 * it, so that a stall is not left out of the figures. New ones stop with the window; the drain
 * waits for first tokens only, so that no time to first token is lost for being long.
 *
 * Each step is checked: the adapters of its sequences are, by digest, those that the requests asked
 * for, and as many different ones as the engine counted. */
#include "tests/bench/replay.h"

#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SILENCE_MS = 5000, FILL_TURNS = 2, TOUCH_SEED = 77 };

struct flight {                     /* a request on its way */
    struct flight *previous, *next; /* of all that are; or of those that ended */
    int group, adapter;
    int n_prompt, n_generate, n_tokens;
    struct monotonic_us due, last;
    bool counts, missed;
    uint64_t id; /* the caller's thread alone */
};

struct run {
    struct rig *rig;
    const struct run_options *o;
    struct run_result *out;
    struct workload *workloads[GROUPS_MAX];
    struct workload_request pending[GROUPS_MAX]; /* open loops: the next one */
    struct monotonic_us begin, window, end;      /* end: of the window */
    uint64_t random;
    int32_t *prompt; /* [max_context] */
    uint64_t n_submitted;
    double rank_sum, distinct_sum, full_rank_sum;
    /* Under the rig's lock. */
    struct flight *live, *ended;
    int n_waiting_first; /* counted ones without a token */
    bool cancelling;
};

static double seconds_between(struct monotonic_us a, struct monotonic_us b)
{
    return (double)clock_elapsed_us(a, b) * 1e-6;
}

static bool in_window(const struct run *run, struct monotonic_us t)
{
    return t.us >= run->window.us && t.us < run->end.us;
}

static struct monotonic_us later(struct monotonic_us t, double seconds)
{
    return (struct monotonic_us){t.us + (uint64_t)(seconds * 1e6)};
}

/* ---- the engine's thread: tokens --------------------------------------------------------- */

static void note_token(struct run *run, struct flight *f, struct monotonic_us now)
{
    struct group_result *g = &run->out->groups[f->group];
    bool counts = in_window(run, now);
    g->n_tokens += counts;
    if (f->n_tokens++ == 0) {
        double ms = seconds_between(f->due, now) * 1e3;
        g->n_prompt += counts ? (uint64_t)f->n_prompt : 0;
        if (f->counts) {
            latency_note(&g->ttft, ms);
            latency_note(f->missed ? &g->ttft_miss : &g->ttft_resident, ms);
            run->n_waiting_first--;
        }
    } else if (counts) {
        latency_note(&g->itl, seconds_between(f->last, now) * 1e3);
    }
    f->last = now;
}

static void note_end(struct run *run, struct flight *f, enum engine_finish finish,
                     struct monotonic_us now)
{
    struct group_result *g = &run->out->groups[f->group];
    bool whole = finish == ENGINE_FINISH_LENGTH && f->n_tokens == f->n_generate;
    if (whole)
        g->n_finished += in_window(run, now);
    else if (!run->cancelling || finish != ENGINE_FINISH_CANCELLED)
        g->n_failed++;
    if (f->counts && f->n_tokens == 0) {
        g->n_unfinished++;
        run->n_waiting_first--;
    }
    if (f->previous != NULL)
        f->previous->next = f->next;
    else
        run->live = f->next;
    if (f->next != NULL)
        f->next->previous = f->previous;
    f->previous = NULL;
    f->next = run->ended;
    run->ended = f;
}

void run_on_events(void *context, const struct engine_event *events, size_t n)
{
    struct rig *rig = context;
    struct monotonic_us now = clock_monotonic_us();
    pthread_mutex_lock(&rig->lock);
    struct run *run = rig->run;
    bool any_end = false;
    for (size_t i = 0; i < n; i++) {
        BUG_IF(run == NULL);
        if (events[i].kind == ENGINE_EVENT_TOKEN) {
            note_token(run, events[i].user, now);
        } else if (events[i].kind == ENGINE_EVENT_FINISHED) {
            note_end(run, events[i].user, events[i].finish, now);
            any_end = true;
        }
    }
    if (any_end || (run != NULL && run->n_waiting_first == 0))
        pthread_cond_signal(&rig->changed);
    pthread_mutex_unlock(&rig->lock);
}

/* ---- the engine's thread: steps ---------------------------------------------------------- */

static int bucket_of(int n_distinct) /* as engine.h has them */
{
    static const int upper[] = {0, 1, 2, 3, 4, 8, 16, 64};
    int i = 0;
    while (i < ENGINE_ENTROPY_BUCKETS - 1 && n_distinct > upper[i])
        i++;
    return i;
}

static void note_step(struct run *run, int n_decode, int n_prefill, int n_distinct, double ranks,
                      double ms)
{
    struct run_result *r = run->out;
    r->n_decode_steps++;
    r->distinct[n_distinct < DISTINCT_MAX ? n_distinct : DISTINCT_MAX]++;
    r->distinct_max = n_distinct > r->distinct_max ? n_distinct : r->distinct_max;
    run->distinct_sum += n_distinct;
    run->rank_sum += ranks;
    if (n_prefill > 0)
        return;
    latency_note(&r->step, ms);
    if (n_decode > r->decode_max) { /* the fullest steps so far: those before were not */
        memset(&r->full, 0, sizeof r->full);
        run->full_rank_sum = 0;
        r->decode_max = n_decode;
    }
    if (n_decode == r->decode_max) {
        latency_note(&r->full, ms);
        run->full_rank_sum += ranks;
    }
}

static void note_first_step(struct rig *rig)
{
    struct backend_caps caps;
    rig->engine->ops->caps(rig->engine->be, &caps);
    if (caps.own_memory)
        rig->device_bytes = caps.memory_total_bytes - caps.memory_free_bytes;
}

void run_on_step(void *context, const struct step_batch *batch, int n_decode, int n_distinct,
                 uint64_t step_us)
{
    struct rig *rig = context;
    struct monotonic_us now = clock_monotonic_us();
    int n_rows = 0, n_own = 0;
    double ranks = 0;
    bool differs = false;
    pthread_mutex_lock(&rig->lock);
    if (rig->n_stamp++ == 0)
        note_first_step(rig);
    for (int i = 0; i < batch->n_seqs; i++) {
        const struct sequence *s = batch->seqs[i].sequence;
        if (s == NULL || s->finished)
            continue;
        const struct flight *f = s->user;
        n_rows += batch->seqs[i].n_rows;
        differs |= s->n_adapters != (f->adapter >= 0);
        if (f->adapter < 0 || s->n_adapters < 1)
            continue;
        differs |= !DIGEST_EQ(s->adapters[0]->lora->content, rig->digests[f->adapter]);
        if (rig->stamp[f->adapter] == rig->n_stamp)
            continue;
        rig->stamp[f->adapter] = rig->n_stamp;
        n_own++;
        ranks += rig->ranks[f->adapter];
    }
    rig->n_differ += differs || n_own != n_distinct;
    if (n_decode > 0)
        rig->held[bucket_of(n_own)]++;
    if (rig->run != NULL && in_window(rig->run, now)) {
        rig->run->out->n_steps++;
        if (n_decode > 0)
            note_step(rig->run, n_decode, n_rows - n_decode, n_own, ranks, (double)step_us * 1e-3);
    }
    pthread_mutex_unlock(&rig->lock);
}

/* ---- asking ------------------------------------------------------------------------------ */

static int adapter_of(const struct run *run, const struct group *g, int chosen)
{
    if (chosen < 0)
        return -1;
    int adapter = g->first_adapter + chosen * (g->stride > 0 ? g->stride : 1);
    if (g->larger != NULL)
        adapter = rig_fold(run->rig, g->larger, adapter);
    BUG_IF(adapter >= run->rig->n_adapters);
    return adapter;
}

static void fill_prompt(struct run *run, int n)
{
    for (int i = 0; i < n; i++)
        run->prompt[i] = (int32_t)(random_next(&run->random) % (uint64_t)run->rig->config.vocab);
}

static bool is_on_device(const struct rig *rig, int adapter)
{
    struct engine_residency place;
    struct err err = {0};
    return engine_adapter_residency(rig->engine, &rig->digests[adapter], &place, &err) == 0 &&
           place.on_device;
}

static void enlist(struct run *run, struct flight *f)
{
    struct rig *rig = run->rig;
    f->missed = f->adapter >= 0 && !is_on_device(rig, f->adapter);
    pthread_mutex_lock(&rig->lock);
    f->next = run->live;
    if (run->live != NULL)
        run->live->previous = f;
    run->live = f;
    struct group_result *g = &run->out->groups[f->group];
    if (f->counts) {
        g->n_requests++;
        g->n_misses += f->missed;
        run->n_waiting_first++;
        double lag = seconds_between(f->due, clock_monotonic_us()) * 1e3;
        g->lag_max_ms = lag > g->lag_max_ms ? lag : g->lag_max_ms;
    }
    pthread_mutex_unlock(&rig->lock);
}

static void delist_refused(struct run *run, struct flight *f)
{
    struct rig *rig = run->rig;
    pthread_mutex_lock(&rig->lock);
    if (f->previous != NULL)
        f->previous->next = f->next;
    else
        run->live = f->next;
    if (f->next != NULL)
        f->next->previous = f->previous;
    run->out->groups[f->group].n_refused += f->counts;
    run->n_waiting_first -= f->counts;
    pthread_mutex_unlock(&rig->lock);
    free(f);
}

static int ask(struct run *run, int group, const struct workload_request *w,
               struct monotonic_us due, struct err *err)
{
    const struct group *g = &run->o->groups[group];
    struct flight *f = xcalloc(1, sizeof *f);
    *f = (struct flight){.group = group,
                         .adapter = adapter_of(run, g, w->adapter),
                         .n_prompt = w->n_prompt,
                         .n_generate = w->n_generate,
                         .due = due,
                         .counts = in_window(run, due)};
    fill_prompt(run, w->n_prompt);
    struct engine_request r = {.prompt = run->prompt,
                               .n_prompt = w->n_prompt,
                               .max_tokens = w->n_generate,
                               .ignore_eos = true,
                               .n_adapters = f->adapter >= 0,
                               .sampling = {.n_top_logprobs = -1},
                               .payer = g->payer + (uint64_t)w->payer,
                               .payer_weight = g->payer_weight,
                               .user = f};
    if (f->adapter >= 0) {
        int asked = (f->adapter + run->rig->n_off) % run->rig->n_adapters;
        r.adapters[0].content = run->rig->digests[asked];
        r.adapters[0].weight = 1;
    }
    run->n_submitted++;
    enlist(run, f);
    if (engine_submit(run->rig->engine, &r, &f->id, err) == 0)
        return 0;
    bool busy = err->code == ERR_BUSY;
    delist_refused(run, f);
    return busy ? 0 : -1;
}

static bool may_ask(const struct run *run, struct monotonic_us now)
{
    if (run->o->n_requests > 0)
        return run->n_submitted < run->o->n_requests;
    return now.us < run->end.us;
}

static int ask_again(struct run *run, int group, struct err *err)
{
    struct workload_request w;
    struct monotonic_us now = clock_monotonic_us();
    if (!may_ask(run, now))
        return 0;
    workload_next(run->workloads[group], &w);
    return ask(run, group, &w, now, err);
}

/* Frees what has ended; streams of closed loops ask again. */
static int take_ended(struct run *run, struct err *err)
{
    pthread_mutex_lock(&run->rig->lock);
    struct flight *f = run->ended;
    run->ended = NULL;
    bool cancelling = run->cancelling;
    pthread_mutex_unlock(&run->rig->lock);
    int rc = 0;
    while (f != NULL) {
        struct flight *next = f->next;
        bool closed = run->o->groups[f->group].n_streams > 0;
        if (rc == 0 && closed && !cancelling)
            rc = ask_again(run, f->group, err);
        free(f);
        f = next;
    }
    return rc;
}

/* Asks for whatever of the open loops is due; *next becomes when the next one is. */
static int ask_due(struct run *run, struct monotonic_us *next, struct err *err)
{
    struct monotonic_us now = clock_monotonic_us();
    for (int i = 0; i < run->o->n_groups; i++) {
        struct workload_request *w = &run->pending[i];
        if (run->o->groups[i].n_streams > 0)
            continue;
        for (;;) {
            struct monotonic_us due = later(run->begin, w->at_s);
            if (due.us >= run->end.us)
                break;
            if (due.us > now.us) {
                next->us = due.us < next->us ? due.us : next->us;
                break;
            }
            if (ask(run, i, w, due, err) != 0)
                return -1;
            workload_next(run->workloads[i], w);
        }
    }
    return 0;
}

static void wait_until(struct run *run, struct monotonic_us until)
{
    struct timespec t = {.tv_sec = (time_t)(until.us / 1000000),
                         .tv_nsec = (long)(until.us % 1000000) * 1000};
    pthread_mutex_lock(&run->rig->lock);
    if (run->ended == NULL)
        pthread_cond_timedwait(&run->rig->changed, &run->rig->lock, &t);
    pthread_mutex_unlock(&run->rig->lock);
}

/* True: nothing more is to be waited for. */
static bool is_over(struct run *run, struct monotonic_us now)
{
    pthread_mutex_lock(&run->rig->lock);
    bool over = run->o->n_requests > 0
                    ? run->n_submitted >= run->o->n_requests && run->live == NULL
                    : now.us >= run->end.us && (run->n_waiting_first == 0 ||
                                                now.us >= later(run->end, run->o->drain_s).us);
    pthread_mutex_unlock(&run->rig->lock);
    return over;
}

static int make_traffic(struct run *run, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < run->o->n_groups; i++)
        for (int k = 0; rc == 0 && k < run->o->groups[i].n_streams; k++)
            rc = ask_again(run, i, err);
    while (rc == 0) {
        struct monotonic_us now = clock_monotonic_us(), next = later(now, 0.1);
        if (is_over(run, now))
            break;
        if (now.us < run->end.us && run->end.us < next.us)
            next = run->end;
        rc = ask_due(run, &next, err);
        if (rc == 0)
            wait_until(run, next);
        if (rc == 0)
            rc = take_ended(run, err);
    }
    return rc;
}

/* Ends what still runs, and waits until the engine holds nothing. */
static void fall_silent(struct run *run)
{
    struct rig *rig = run->rig;
    struct engine_stats stats;
    struct err err = {0};
    pthread_mutex_lock(&rig->lock);
    run->cancelling = true;
    for (struct flight *f = run->live; f != NULL; f = f->next)
        engine_cancel(rig->engine, f->id);
    while (run->live != NULL)
        pthread_cond_wait(&rig->changed, &rig->lock);
    pthread_mutex_unlock(&rig->lock);
    BUG_IF(take_ended(run, &err) != 0); /* asks nothing any more */
    /* Its counters are published once a turn, behind our own count of the same steps. */
    for (int i = 0; i < SILENCE_MS; i++) {
        uint64_t n = 0, n_own = 0;
        engine_stats(rig->engine, &stats);
        for (int k = 0; k < ENGINE_ENTROPY_BUCKETS; k++) {
            n += stats.steps_by_distinct[k];
            n_own += rig->held[k];
        }
        if (stats.n_running + stats.n_waiting == 0 && n >= n_own)
            break;
        usleep(1000);
    }
}

/* ---- a run ------------------------------------------------------------------------------- */

static int open_workloads(struct run *run, struct err *err)
{
    for (int i = 0; i < run->o->n_groups; i++) {
        const struct group *g = &run->o->groups[i];
        struct workload_options o = g->workload;
        BUG_IF((g->n_streams > 0) == (o.rate > 0));
        if (o.max_context == 0 || o.max_context > run->rig->engine->max_context)
            o.max_context = run->rig->engine->max_context;
        if (workload_create(&run->workloads[i], &o, err) != 0)
            return -1;
        if (g->n_streams == 0)
            workload_next(run->workloads[i], &run->pending[i]);
    }
    return 0;
}

static void sum_up(const struct run *run, const struct engine_stats *before,
                   const struct engine_stats *after)
{
    struct run_result *r = run->out;
    struct rig *rig = run->rig;
    for (int i = 0; i < r->n_groups; i++) {
        const struct group_result *g = &r->groups[i];
        r->all.n_requests += g->n_requests;
        r->all.n_finished += g->n_finished;
        r->all.n_tokens += g->n_tokens;
        r->all.n_prompt += g->n_prompt;
        r->all.n_misses += g->n_misses;
        r->all.n_refused += g->n_refused;
        r->all.n_unfinished += g->n_unfinished;
        r->all.n_failed += g->n_failed;
        latency_add(&r->all.ttft, &g->ttft);
        latency_add(&r->all.ttft_resident, &g->ttft_resident);
        latency_add(&r->all.ttft_miss, &g->ttft_miss);
        latency_add(&r->all.itl, &g->itl);
        r->all.lag_max_ms = fmax(r->all.lag_max_ms, g->lag_max_ms);
    }
    r->n_prefix_tokens = after->n_prefix_hit_tokens - before->n_prefix_hit_tokens;
    r->n_hits = after->n_adapter_hits - before->n_adapter_hits;
    r->n_prefetches = after->n_adapter_prefetches - before->n_adapter_prefetches;
    r->n_uploads = after->n_adapter_uploads - before->n_adapter_uploads;
    r->n_evictions = after->n_adapter_evictions - before->n_adapter_evictions;
    r->n_preemptions = after->n_preemptions - before->n_preemptions;
    r->distinct_mean = r->n_decode_steps > 0 ? run->distinct_sum / (double)r->n_decode_steps : 0;
    r->rank_mean = r->n_decode_steps > 0 ? run->rank_sum / (double)r->n_decode_steps : 0;
    r->full_rank_mean = r->full.n > 0 ? run->full_rank_sum / (double)r->full.n : 0;
    r->n_resident = after->n_adapters_resident;
    r->pool_used = after->adapter_bytes_used;
    for (int i = 0; i < rig->n_adapters; i++)
        r->pool_true += is_on_device(rig, i) ? rig->bytes[i] : 0;
    r->device_bytes = rig->device_bytes;
    r->host_bytes = process_bytes();
    r->adapter_host_bytes = after->adapter_host_bytes_held;
    r->n_failed = r->all.n_failed + rig->n_differ;
    if (r->all.n_failed > 0 || rig->n_differ > 0)
        fprintf(stderr,
                "replay: row %s, %s: %" PRIu64 " requests failed; since the engine opened, %" PRIu64
                " steps did not hold the adapters asked for\n",
                run->o->row, run->o->name, r->all.n_failed, rig->n_differ);
    /* The engine's counts since it was opened are ours. */
    for (int i = 0; i < ENGINE_ENTROPY_BUCKETS; i++) {
        if (after->steps_by_distinct[i] == rig->held[i])
            continue;
        r->n_failed++;
        fprintf(stderr,
                "replay: row %s, %s: bucket %d of distinct adapters has %" PRIu64
                " steps by the engine's count, %" PRIu64 " by the requests\n",
                run->o->row, run->o->name, i, after->steps_by_distinct[i], rig->held[i]);
    }
}

int run_measure(struct rig *rig, const struct run_options *options, struct run_result *out,
                struct err *err)
{
    struct run run = {.rig = rig, .o = options, .out = out};
    /* Other prompts in each run, or the engine would find the last run's in its prefix cache. */
    run.random = rig->seed + (rig->n_runs++ << 32);
    struct engine_stats before, after;
    memset(out, 0, sizeof *out);
    out->n_groups = options->n_groups;
    out->seconds = options->seconds;
    run.prompt = xcalloc((size_t)rig->engine->max_context, sizeof *run.prompt);
    engine_stats(rig->engine, &before);
    int rc = open_workloads(&run, err);
    run.begin = clock_monotonic_us();
    run.window = later(run.begin, options->warm_s);
    run.end = later(run.window, options->seconds);
    pthread_mutex_lock(&rig->lock);
    BUG_IF(rig->run != NULL);
    rig->run = &run;
    pthread_mutex_unlock(&rig->lock);
    if (rc == 0)
        rc = make_traffic(&run, err);
    fall_silent(&run);
    pthread_mutex_lock(&rig->lock);
    rig->run = NULL;
    pthread_mutex_unlock(&rig->lock);
    engine_stats(rig->engine, &after);
    if (rc == 0)
        sum_up(&run, &before, &after);
    for (int i = 0; i < options->n_groups; i++)
        workload_free(run.workloads[i]);
    free(run.prompt);
    return rc;
}

/* Requests of one token each, for what they bring to the device. */
static int touch(struct rig *rig, struct run_result *out, uint64_t n_requests,
                 enum workload_popularity popularity, struct err *err)
{
    struct run_options o = {.row = "-",
                            .name = "touch",
                            .n_requests = n_requests,
                            .n_groups = 1,
                            .groups = {{.name = "touch",
                                        .n_streams = n_requests < 64 ? (int)n_requests : 64,
                                        .workload = {.seed = TOUCH_SEED,
                                                     .n_adapters = rig->n_adapters,
                                                     .popularity = popularity,
                                                     .lengths = LENGTHS_FIXED,
                                                     .length_a = 1,
                                                     .length_b = 1}}}};
    return run_measure(rig, &o, out, err);
}

static bool all_fit(const struct rig *rig)
{
    struct engine_stats stats;
    engine_stats(rig->engine, &stats);
    return stats.adapter_bytes_total >= rig->adapter_bytes;
}

int run_touch_all(struct rig *rig, struct err *err)
{
    int n = rig->n_adapters;
    if (n == 0 || !all_fit(rig))
        return 0;
    struct run_result *r = xcalloc(1, sizeof *r);
    int rc = touch(rig, r, (uint64_t)n, POPULARITY_DISTINCT, err);
    if (rc == 0 && r->n_resident != n)
        fprintf(stderr, "replay: %d of %d adapters are on the device although all should fit\n",
                r->n_resident, n);
    free(r);
    return rc;
}

int run_fill_pool(struct rig *rig, struct err *err)
{
    struct engine_stats stats;
    if (rig->n_adapters == 0 || all_fit(rig))
        return 0;
    engine_stats(rig->engine, &stats);
    double share = (double)stats.adapter_bytes_total / (double)rig->adapter_bytes;
    struct run_result *r = xcalloc(1, sizeof *r);
    int rc = touch(rig, r, (uint64_t)(FILL_TURNS * share * rig->n_adapters) + 1, POPULARITY_UNIFORM,
                   err);
    if (rc == 0 && r->n_evictions == 0)
        fprintf(stderr, "replay: %d adapters are on the device, and none had to go\n",
                r->n_resident);
    free(r);
    return rc;
}
