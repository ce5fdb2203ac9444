/* engine_run: the engine thread. One turn of its loop is one step:
 *
 *   1. take what was submitted; end what was cancelled or is too late
 *   2. plan (scheduler.h: a pure function of what is waiting and running)
 *   3. carry out: preempt, take blocks, pin adapters
 *   4. build the batch, enqueue the model, the draws and the scores, sync
 *   5. append tokens, end what is complete
 *   6. hand out the step's events, free what has ended
 *
 * Everything in it was allocated when the engine opened or when a request was submitted; a turn
 * allocates nothing. A failure of the device at sync ends all sequences with ENGINE_FINISH_ERROR
 * and refuses new ones; it does not end the program. */
#include "engine/internal.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/log.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    LOGIT_ROWS_MAX = 64,        /* logits made at once: 33 MB for a vocabulary of 128k */
    SLOTS = 2048,               /* adapters resident at once, if the pool's bytes suffice */
    IDLE_WAIT_MS = 500,         /* the loop turns at least so often: stats.progress */
    IDLE_PLANS_MAX = 16,        /* plans in a row that compute nothing although something could */
    DEBUG_PREEMPT_STEPS = 3,    /* options.debug_preempt */
    WAITING_EVENTS_EXTRA = 256, /* room for the ends of waiting sequences in one delivery */
};

/* ---- open and close, in the thread that uses the device ---------------------------------- */

static int max_of(int a, int b)
{
    return a > b ? a : b;
}

static int open_backend(struct engine *e, struct err *err)
{
    const struct model_config *c = &e->model->config;
    const struct engine_options *o = &e->options;
    e->ops = ops_find(o->backend, err);
    if (e->ops == NULL)
        return -1;
    int heads = c->n_heads * c->head_dim, kv_heads = c->n_kv_heads * c->head_dim;
    struct backend_options options = {
        .n_threads = o->n_threads,
        .max_rows = o->max_rows,
        .max_d = max_of(max_of(c->hidden, 2 * c->ffn), heads + 2 * kv_heads),
        .max_rank = LORA_RANK_SUM_MAX,
        .max_seqs = o->max_seqs,
        .max_context = e->max_context,
    };
    return e->ops->open(&e->be, &options, err);
}

/* How many blocks the KV cache has; shortens max_context to what one sequence could fill. */
static int size_kv(struct engine *e, int *n_blocks, struct err *err)
{
    struct backend_caps caps;
    e->ops->caps(e->be, &caps);
    size_t block_bytes = forward_block_bytes(&e->model->config, caps.activation);
    size_t per_seq = ((size_t)e->max_context + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    size_t useful = per_seq * (size_t)e->options.max_seqs;
    size_t budget = e->options.kv_bytes != 0 ? e->options.kv_bytes : (size_t)1 << 30;
    size_t n = budget / block_bytes;
    if (n > useful)
        n = useful;
    if (n == 0)
        return err_set(err, ERR_INVALID, "kv_bytes of %zu is less than one block of %zu bytes",
                       budget, block_bytes);
    if (n > INT32_MAX / BLOCK_TOKENS)
        n = INT32_MAX / BLOCK_TOKENS;
    if (n * BLOCK_TOKENS < (size_t)e->max_context) {
        log_warn("engine", "the KV cache holds %zu tokens: context shortened from %d",
                 n * BLOCK_TOKENS, e->max_context);
        e->max_context = (int)(n * BLOCK_TOKENS);
    }
    *n_blocks = (int)n;
    return 0;
}

static int device_open(struct engine *e, struct err *err)
{
    const struct engine_options *o = &e->options;
    const struct model_config *c = &e->model->config;
    int n_blocks = 0;
    int n_slots = max_of(SLOTS, o->max_seqs * ENGINE_ADAPTERS_MAX);
    if (open_backend(e, err) != 0 || size_kv(e, &n_blocks, err) != 0)
        return -1;
    int per_seq = (e->max_context + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    int logit_rows = o->max_rows < LOGIT_ROWS_MAX ? o->max_rows : LOGIT_ROWS_MAX;
    if (weights_create(&e->weights, e->model, e->ops, e->be, e->max_context, err) != 0 ||
        forward_create(&e->forward, c, &e->weights, e->ops, e->be, o->max_rows, logit_rows,
                       n_blocks, err) != 0 ||
        step_batch_create(&e->batch, e->ops, e->be, o->max_rows, o->max_seqs, per_seq, err) != 0 ||
        lora_pool_create(&e->lora, c, e->ops, e->be, o->adapter_bytes, n_slots, err) != 0 ||
        e->ops->sync(e->be, err) != 0)
        return -1;
    struct lora_pool_stats pool;
    lora_pool_stats(e->lora, &pool);
    e->adapter_pool_bytes = pool.bytes_total;
    e->kv = kv_pool_create(n_blocks);

    int max_waiting = o->max_waiting + o->max_seqs; /* preempted ones come back */
    int max_adapters = (max_waiting + o->max_seqs) * ENGINE_ADAPTERS_MAX;
    sampler_init(&e->sampler, o->max_seqs, o->max_rows);
    sched_plan_init(&e->plan, o->max_seqs, max_waiting, max_adapters);
    e->running = xcalloc((size_t)o->max_seqs, sizeof(struct sequence *));
    e->waiting = xcalloc((size_t)max_waiting, sizeof(struct sequence *));
    e->done = xcalloc((size_t)(max_waiting + o->max_seqs), sizeof(struct sequence *));
    e->max_events = o->max_rows + 2 * o->max_seqs + WAITING_EVENTS_EXTRA;
    e->events = xcalloc((size_t)e->max_events, sizeof *e->events);
    e->sched_running = xcalloc((size_t)o->max_seqs, sizeof *e->sched_running);
    e->sched_waiting = xcalloc((size_t)max_waiting, sizeof *e->sched_waiting);
    e->sched_adapters = xcalloc((size_t)max_adapters, sizeof *e->sched_adapters);
    e->sched_loaded = xcalloc((size_t)max_adapters, sizeof(struct loaded_adapter *));
    struct backend_caps caps;
    e->ops->caps(e->be, &caps);
    memcpy(e->backend_text, caps.description, sizeof e->backend_text);
    e->backend_text[sizeof e->backend_text - 1] = '\0';
    e->counts.n_blocks = e->counts.n_blocks_free = n_blocks;
    e->counts.adapter_bytes_total = pool.bytes_total;
    e->counts.progress = clock_monotonic_us();
    return 0;
}

static void device_close(struct engine *e)
{
    sampler_release(&e->sampler);
    sched_plan_release(&e->plan);
    free(e->running);
    free(e->waiting);
    free(e->done);
    free(e->events);
    free(e->sched_running);
    free(e->sched_waiting);
    free(e->sched_adapters);
    free(e->sched_loaded);
    kv_pool_free(e->kv);
    if (e->ops == NULL || e->be == NULL)
        return;
    lora_pool_free(e->lora);
    step_batch_release(&e->batch);
    forward_release(&e->forward);
    weights_release(&e->weights, &e->model->config, e->ops, e->be);
    e->ops->close(e->be);
}

/* ---- events ------------------------------------------------------------------------------ */

static void free_done(struct engine *e)
{
    for (int i = 0; i < e->n_done; i++)
        sequence_free(e, e->done[i]);
    e->n_done = 0;
}

static void deliver(struct engine *e)
{
    if (e->n_events > 0)
        e->options.on_events(e->options.context, e->events, (size_t)e->n_events);
    e->n_events = 0;
    free_done(e);
}

static struct engine_event *new_event(struct engine *e, enum engine_event_kind kind,
                                      const struct sequence *s)
{
    if (e->n_events == e->max_events) /* many waiting ones end at once */
        deliver(e);
    struct engine_event *event = &e->events[e->n_events++];
    *event = (struct engine_event){.kind = kind, .user = s->user};
    return event;
}

static void token_event(struct engine *e, enum engine_event_kind kind, const struct sequence *s,
                        int position, const struct sample_result *r, bool is_eos)
{
    struct engine_event *event = new_event(e, kind, s);
    event->token = r->token;
    event->position = position;
    event->logprob = r->logprob;
    event->is_eos = is_eos;
    event->n_top = s->sampling.n_top_logprobs > 0 ? r->n_top : 0;
    memcpy(event->top_ids, r->top_ids, sizeof event->top_ids);
    memcpy(event->top_logprobs, r->top_logprobs, sizeof event->top_logprobs);
}

/* ---- sequences --------------------------------------------------------------------------- */

/* Blocks and pins go back; the sequence may run again later. */
static void sequence_release_device(struct engine *e, struct sequence *s)
{
    for (int i = 0; i < s->n_blocks; i++)
        kv_pool_drop(e->kv, s->blocks[i]);
    s->n_blocks = s->n_cached = 0;
    for (int i = 0; i < s->n_adapters; i++) {
        lora_pool_unpin(e->lora, s->pins[i]);
        s->adapters[i]->n_pins--;
    }
    s->running = false;
}

/* No longer counted as queued: it was admitted, or ended before. */
static void leave_queue(struct engine *e, struct sequence *s)
{
    if (s->was_admitted)
        return;
    s->was_admitted = true;
    pthread_mutex_lock(&e->lock);
    e->n_queued--;
    pthread_mutex_unlock(&e->lock);
}

/* The end. The caller takes it out of running or waiting (compact). */
static void sequence_finish(struct engine *e, struct sequence *s, enum engine_finish finish)
{
    BUG_IF(s->finished);
    s->finished = true;
    s->finish = finish;
    if (s->running)
        sequence_release_device(e, s);
    leave_queue(e, s);
    pthread_mutex_lock(&e->lock);
    if (s->previous != NULL)
        s->previous->next = s->next;
    else
        e->live = s->next;
    if (s->next != NULL)
        s->next->previous = s->previous;
    pthread_mutex_unlock(&e->lock);
}

/* Takes finished ones out of a list and announces them. */
static void compact(struct engine *e, struct sequence **list, int *n)
{
    int kept = 0;
    for (int i = 0; i < *n; i++) {
        struct sequence *s = list[i];
        if (!s->finished) {
            list[kept++] = s;
            continue;
        }
        new_event(e, ENGINE_EVENT_FINISHED, s)->finish = s->finish;
        e->done[e->n_done++] = s;
    }
    *n = kept;
}

/* Keeps the list ascending by id. */
static void insert(struct sequence **list, int *n, struct sequence *s)
{
    int i = (*n)++;
    for (; i > 0 && list[i - 1]->id > s->id; i--)
        list[i] = list[i - 1];
    list[i] = s;
}

static void take_intake(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < e->n_intake; i++)
        insert(e->waiting, &e->n_waiting, e->intake[i]);
    e->n_intake = 0;
    pthread_mutex_unlock(&e->lock);
}

static void end_list(struct engine *e, struct sequence **list, int n, struct monotonic_us now)
{
    for (int i = 0; i < n; i++) {
        struct sequence *s = list[i];
        if (atomic_load(&s->cancelled))
            sequence_finish(e, s, ENGINE_FINISH_CANCELLED);
        else if (s->deadline.us != 0 && now.us >= s->deadline.us)
            sequence_finish(e, s, ENGINE_FINISH_DEADLINE);
        else if (s->n_tokens == s->n_total_max && !s->prompt_logprobs)
            sequence_finish(e, s, ENGINE_FINISH_LENGTH); /* asked for nothing */
    }
}

static void end_all(struct engine *e)
{
    for (int i = 0; i < e->n_running; i++)
        sequence_finish(e, e->running[i], ENGINE_FINISH_ERROR);
    for (int i = 0; i < e->n_waiting; i++)
        sequence_finish(e, e->waiting[i], ENGINE_FINISH_ERROR);
    compact(e, e->running, &e->n_running);
    compact(e, e->waiting, &e->n_waiting);
}

/* ---- planning ---------------------------------------------------------------------------- */

static int show_adapter(struct engine *e, struct sched_state *state, struct loaded_adapter *a)
{
    if (a->sched_step != e->n_plans) {
        a->sched_step = e->n_plans;
        a->sched_index = state->n_adapters++;
        e->sched_adapters[a->sched_index] = (struct sched_adapter){.n_bytes = a->lora->n_bytes,
                                                                   .n_pins = a->n_pins};
    }
    return a->sched_index;
}

static void show_seq(struct engine *e, struct sched_state *state, struct sched_seq *out,
                     const struct sequence *s)
{
    *out = (struct sched_seq){.order = s->id,
                              .n_tokens = s->n_tokens,
                              .n_cached = s->n_cached,
                              .n_blocks = s->n_blocks,
                              .n_bypassed = s->n_bypassed,
                              .n_adapters = s->n_adapters,
                              .n_blocks_max = (s->n_total_max + BLOCK_TOKENS - 1) / BLOCK_TOKENS};
    for (int i = 0; i < s->n_adapters; i++)
        out->adapters[i] = show_adapter(e, state, s->adapters[i]);
}

/* options.debug_preempt: another one each time; only one that has computed something since it was
 * admitted, so that all still get to their end, and one in the middle of its prompt only once. */
static int choose_victim(const struct engine *e)
{
    if (!e->options.debug_preempt || e->n_running == 0 || e->n_plans % DEBUG_PREEMPT_STEPS != 0)
        return -1;
    int start = (int)(e->n_plans / DEBUG_PREEMPT_STEPS % (uint64_t)e->n_running);
    for (int i = 0; i < e->n_running; i++) {
        int index = (start + i) % e->n_running;
        const struct sequence *s = e->running[index];
        if (s->n_decoded > 0 || (s->n_cached > 0 && s->n_preempted == 0))
            return index;
    }
    return -1;
}

static void make_plan(struct engine *e)
{
    struct lora_pool_stats pool;
    lora_pool_stats(e->lora, &pool);
    e->n_plans++;
    struct sched_state state = {
        .running = e->sched_running,
        .n_running = e->n_running,
        .waiting = e->sched_waiting,
        .n_waiting = e->n_waiting,
        .adapters = e->sched_adapters,
        .adapter_bytes_free = pool.bytes_total - pool.bytes_pinned,
        .n_blocks_free = kv_pool_n_free(e->kv),
        .max_seqs = e->options.max_seqs,
        .max_rows = e->options.max_rows,
        .force_preempt = choose_victim(e),
    };
    for (int i = 0; i < e->n_running; i++)
        show_seq(e, &state, &e->sched_running[i], e->running[i]);
    for (int i = 0; i < e->n_waiting; i++)
        show_seq(e, &state, &e->sched_waiting[i], e->waiting[i]);
    sched_plan_make(&e->plan, &state);
}

/* ---- carrying out ------------------------------------------------------------------------ */

static void take_blocks(struct engine *e, struct sequence *s, int n)
{
    for (int i = 0; i < n; i++) {
        int32_t block = kv_pool_take(e->kv);
        BUG_IF(block < 0); /* the plan counted */
        s->blocks[s->n_blocks++] = block;
    }
}

static bool try_pin_adapters(struct engine *e, struct sequence *s)
{
    for (int i = 0; i < s->n_adapters; i++) {
        if (!lora_pool_pin(e->lora, s->adapters[i]->lora, &s->pins[i])) {
            while (i-- > 0)
                lora_pool_unpin(e->lora, s->pins[i]);
            return false;
        }
    }
    return true;
}

/* Pins all adapters of s, or none. Those of an ensemble may be in each other's way: the first is
 * resident in the middle of the region, and the second fits on neither side. With nobody else
 * there, an empty region helps. */
static bool pin_adapters(struct engine *e, struct sequence *s)
{
    struct lora_pool_stats pool;
    if (!try_pin_adapters(e, s)) {
        lora_pool_stats(e->lora, &pool);
        if (pool.bytes_pinned != 0)
            return false;
        lora_pool_clear(e->lora);
        BUG_IF(!try_pin_adapters(e, s)); /* engine_submit summed their bytes */
    }
    for (int i = 0; i < s->n_adapters; i++)
        s->adapters[i]->n_pins++;
    return true;
}

static bool adapters_resident(const struct engine *e, const struct sequence *s)
{
    for (int i = 0; i < s->n_adapters; i++)
        if (!lora_pool_is_resident(e->lora, &s->adapters[i]->lora->content))
            return false;
    return true;
}

static void admit_one(struct engine *e, const struct sched_grant *g, int *n_batch)
{
    struct sequence *s = e->waiting[g->index];
    if (!pin_adapters(e, s)) {
        s->n_bypassed++; /* bytes would do, their places don't: later */
        return;
    }
    leave_queue(e, s);
    s->running = true;
    s->n_decoded = 0;
    s->n_bypassed = 0;
    take_blocks(e, s, g->n_blocks);
    e->batch.seqs[(*n_batch)++] = (struct batch_seq){.sequence = s, .n_rows = g->n_rows};
}

/* Carries out the plan; returns the number of sequences of the step. */
static int apply_plan(struct engine *e)
{
    const struct sched_plan *plan = &e->plan;
    int n_batch = 0;
    for (int i = 0; i < plan->n_preempt; i++) {
        struct sequence *s = e->running[plan->preempt[i]];
        sequence_release_device(e, s);
        s->n_preempted++;
        e->counts.n_preemptions++;
    }
    for (int i = 0; i < plan->n_run; i++) {
        const struct sched_grant *g = &plan->run[i];
        take_blocks(e, e->running[g->index], g->n_blocks);
        e->batch.seqs[n_batch++] = (struct batch_seq){.sequence = e->running[g->index],
                                                      .n_rows = g->n_rows};
    }
    /* What is resident is pinned first, so that the others' evictions don't take it. */
    for (int i = 0; i < plan->n_admit; i++)
        if (adapters_resident(e, e->waiting[plan->admit[i].index]))
            admit_one(e, &plan->admit[i], &n_batch);
    for (int i = 0; i < plan->n_admit; i++)
        if (!e->waiting[plan->admit[i].index]->running)
            admit_one(e, &plan->admit[i], &n_batch);
    for (int i = 0; i < plan->n_bypassed; i++)
        e->waiting[plan->bypassed[i]]->n_bypassed++;

    /* Both lists anew: preempted ones wait, admitted ones run. */
    int n_running = e->n_running, n_waiting = e->n_waiting, kept = 0;
    e->n_waiting = 0;
    for (int i = 0; i < n_waiting;
         i++) /* compacts in place: e->waiting[n_waiting] is read before */
        if (!e->waiting[i]->running)
            e->waiting[e->n_waiting++] = e->waiting[i];
    for (int i = 0; i < n_running; i++) {
        if (e->running[i]->running)
            e->running[kept++] = e->running[i];
        else
            insert(e->waiting, &e->n_waiting, e->running[i]);
    }
    e->n_running = kept;
    for (int i = plan->n_run; i < n_batch; i++)
        insert(e->running, &e->n_running, e->batch.seqs[i].sequence);
    return n_batch;
}

/* ---- results ----------------------------------------------------------------------------- */

static bool is_stop(const struct engine *e, const struct sequence *s, int32_t token)
{
    const struct model_config *c = &e->model->config;
    for (int i = 0; i < c->n_eos && !s->ignore_eos; i++)
        if (c->eos[i] == token)
            return true;
    for (int i = 0; i < s->n_stop_ids; i++)
        if (s->stop_ids[i] == token)
            return true;
    return false;
}

static void apply_results(struct engine *e)
{
    struct step_batch *b = &e->batch;
    for (int i = 0; i < b->n_score; i++) {
        struct sequence *s = b->seqs[b->score_seq[i]].sequence;
        int position = b->position[b->logit_rows[b->n_draw + i]] + 1;
        token_event(e, ENGINE_EVENT_PROMPT, s, position, &e->sampler.scores[i], false);
        s->n_scored = position;
    }
    for (int i = 0; i < b->batch.n_seqs; i++)
        b->seqs[i].sequence->n_cached += b->seqs[i].n_rows;
    for (int i = 0; i < b->n_draw; i++) {
        struct sequence *s = b->seqs[b->draw_seq[i]].sequence;
        const struct sample_result *r = &e->sampler.draws[i];
        bool stop = is_stop(e, s, r->token);
        BUG_IF(r->token < 0 || r->token >= e->model->config.vocab || s->n_tokens == s->n_total_max);
        token_event(e, ENGINE_EVENT_TOKEN, s, s->n_tokens, r, stop);
        s->tokens[s->n_tokens++] = r->token;
        s->n_decoded++;
        if (stop)
            sequence_finish(e, s, ENGINE_FINISH_STOP);
        else if (s->n_tokens == s->n_total_max)
            sequence_finish(e, s, ENGINE_FINISH_LENGTH);
    }
    /* Prompts that were only to be scored. */
    for (int i = 0; i < b->batch.n_seqs; i++) {
        struct sequence *s = b->seqs[i].sequence;
        if (!s->finished && s->n_cached == s->n_tokens)
            sequence_finish(e, s, ENGINE_FINISH_LENGTH);
    }
    compact(e, e->running, &e->n_running);
}

/* ---- counters ---------------------------------------------------------------------------- */

static int bucket_of(int n_distinct)
{
    static const int upper[] = {0, 1, 2, 3, 4, 8, 16, 64};
    int i = 0;
    while (i < ENGINE_ENTROPY_BUCKETS - 1 && n_distinct > upper[i])
        i++;
    return i;
}

/* Before the results are applied: who was in the step. */
static void count_step(struct engine *e)
{
    const struct step_batch *b = &e->batch;
    struct engine_stats *c = &e->counts;
    int n_decode = 0, n_distinct = 0;
    for (int i = 0; i < b->batch.n_seqs; i++) {
        const struct sequence *s = b->seqs[i].sequence;
        n_decode += b->seqs[i].n_rows == 1 && s->n_tokens - s->n_cached == 1 &&
                    s->n_tokens > s->n_prompt;
        for (int a = 0; a < s->n_adapters; a++) {
            n_distinct += s->adapters[a]->counted_step != e->n_plans;
            s->adapters[a]->counted_step = e->n_plans;
        }
    }
    c->n_steps++;
    c->n_rows_decode += (uint64_t)n_decode;
    c->n_rows_prefill += (uint64_t)(b->batch.n_rows - n_decode);
    if (n_decode > 0) {
        c->n_decode_steps++;
        c->steps_by_distinct[bucket_of(n_distinct)]++;
    }
}

static void publish_stats(struct engine *e)
{
    struct engine_stats *c = &e->counts;
    struct lora_pool_stats pool;
    lora_pool_stats(e->lora, &pool);
    c->n_adapter_uploads = pool.n_uploads;
    c->n_adapter_evictions = pool.n_evictions;
    c->adapter_bytes_used = pool.bytes_used;
    c->n_adapters_resident = pool.n_resident;
    c->n_running = e->n_running;
    c->n_waiting = e->n_waiting;
    c->n_blocks_free = kv_pool_n_free(e->kv);
    pthread_mutex_lock(&e->lock);
    e->stats = *c;
    pthread_mutex_unlock(&e->lock);
}

/* ---- the loop ---------------------------------------------------------------------------- */

static int step(struct engine *e, struct err *err)
{
    make_plan(e);
    int n_seqs = apply_plan(e);
    if (n_seqs == 0) {
        /* A forced preemption may leave one plan empty; more in a row would be for ever. */
        BUG_IF(++e->n_idle_plans > IDLE_PLANS_MAX);
        return 0;
    }
    e->n_idle_plans = 0;
    struct monotonic_us begin = clock_monotonic_us();
    step_batch_build(&e->batch, n_seqs, e->lora);
    forward_run(&e->forward, &e->batch, e->lora);
    sampler_run(&e->sampler, &e->forward, &e->batch);
    if (e->ops->sync(e->be, err) != 0)
        return -1;
    e->counts.last_step_us = clock_elapsed_us(begin, clock_monotonic_us());
    count_step(e);
    apply_results(e);
    return 0;
}

static void wait_for_work(struct engine *e)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += IDLE_WAIT_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&e->lock);
    if (e->n_intake == 0 && e->state == ENGINE_OPEN)
        pthread_cond_timedwait(&e->wake, &e->lock, &until);
    pthread_mutex_unlock(&e->lock);
}

static bool is_open(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    bool open = e->state == ENGINE_OPEN;
    pthread_mutex_unlock(&e->lock);
    return open;
}

static void become(struct engine *e, enum engine_state state, const struct err *why)
{
    pthread_mutex_lock(&e->lock);
    e->state = state;
    if (why != NULL)
        e->failure = *why;
    e->stats = e->counts;
    pthread_cond_broadcast(&e->opened);
    pthread_mutex_unlock(&e->lock);
}

void *engine_thread(void *engine)
{
    struct engine *e = engine;
    struct err err = {0};
    if (device_open(e, &err) != 0) {
        device_close(e);
        become(e, ENGINE_FAILED, &err);
        return NULL;
    }
    become(e, ENGINE_OPEN, NULL);
    while (is_open(e)) {
        take_intake(e);
        e->counts.progress = clock_monotonic_us();
        end_list(e, e->running, e->n_running, e->counts.progress);
        end_list(e, e->waiting, e->n_waiting, e->counts.progress);
        compact(e, e->running, &e->n_running);
        compact(e, e->waiting, &e->n_waiting);
        bool idle = e->n_running + e->n_waiting == 0;
        if (!idle && step(e, &err) != 0) {
            log_error("engine", "the device failed: %s", err.message);
            become(e, ENGINE_FAILED, &err);
        }
        publish_stats(e);
        deliver(e);
        if (idle)
            wait_for_work(e);
    }
    take_intake(e);
    end_all(e);
    publish_stats(e);
    deliver(e);
    device_close(e);
    return NULL;
}
