/* engine_run: the engine thread. One turn of its loop is one step:
 *
 *   1. take what was submitted or ordered; end what was cancelled or is too late; bring adapters of
 *      those that wait to the device, beside the steps
 *   2. plan (scheduler.h: a pure function of what is waiting and running)
 *   3. carry out: preempt, take blocks, pin adapters
 *   4. build the batch, enqueue the model, the draws and the scores (step.h)
 *   5. wait; append tokens, end what is complete
 *   6. hand out the step's events, free what has ended
 *
 * Everything in it was allocated when the engine opened or when a request was submitted; a turn
 * allocates nothing. A failure of the device ends all sequences with ENGINE_FINISH_ERROR and
 * refuses new ones; it does not end the program.
 *
 * Flying. Between 4 and 5 a step flies: it is enqueued, its results aren't taken. Where it pays
 * (e->overlaps), a second one is enqueued before the first one's results are waited for, so that
 * the device goes from step to step while the host plans, looks at tokens and hands out events:
 *
 *   host    enqueue N | enqueue N+1 | wait N, take | enqueue N+2, events of N | wait N+1, take
 *   device            | N                      | N+1                            | N+2
 *
 * There, a step's events go out when the next one is enqueued: the device has work meanwhile, also
 * when nothing could be enqueued ahead. Where the device computes in the call, they go out first.
 *
 * The second one (its follower) is possible when every sequence of N draws a token and the plan
 * made for the state after N, should nobody stop, says: the same sequences, one row each, nobody
 * comes or goes. All of that is known before N's tokens are; the tokens themselves it finds on the
 * device. That a sequence ends in N by its length is known, too, and that one has ended since N was
 * enqueued: while nobody waits for what they leave, the follower has holes in their places
 * (batch.h). Everything else (admission, preemption, prompts in chunks, penalties) is planned and
 * carried out only while nothing flies, on the true state. So with two steps in the air at most:
 *
 *   1. A plan that takes or gives pins, or gives blocks back, is carried out with nothing flying.
 *      A follower only takes blocks, for tokens that are certain to come or be dropped. (Publishing
 *      a block may give a twin of it back while a follower flies: sequence_blocks.c says why that
 *      is safe.)
 *   2. A sequence that ends (stop, cancelled, too late) while a step with it flies has a row in
 *      that step that nobody wants. It is finished for the world at once, with its FINISHED event;
 *      its blocks and pins go back, and its memory is freed, when its last step's results are taken
 *      (n_flying 0) and dropped. Until then the pools count them as taken, so nobody gets a block
 *      that a flying step writes, and no slot that it reads is refilled.
 *   3. A follower has exactly the sequences of the step before it, without those that have ended
 *      or end there; where somebody waits, it has all of them. So behind an end the air is empty
 *      before anybody new begins, and who waits begins as soon as what an end leaves is there.
 *   4. Results are taken in the order of enqueuing: a token's place is where its sequence is then.
 */
#include "engine/internal.h"
#include "engine/sequence_blocks.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    IDLE_WAIT_MS = 500,  /* the loop turns at least so often: stats.progress */
    IDLE_PLANS_MAX = 16, /* plans in a row that compute nothing although something could */
    LOOKS_PAID = 64,     /* disown_forgotten */
    HOLES_PART = 4,      /* of a follower's rows, one part may be holes, which cost as others do */
};

/* ---- events ------------------------------------------------------------------------------ */

static void free_done(struct engine *e)
{
    int kept = 0;
    for (int i = 0; i < e->n_done; i++) {
        if (e->done[i]->n_flying > 0)
            e->done[kept++] = e->done[i];
        else
            sequence_free(e, e->done[i]);
    }
    e->n_done = kept;
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
    sequence_blocks_drop(e->prefixes, s);
    for (int i = 0; i < s->n_adapters; i++) {
        lora_pool_unpin(e->lora, s->pins[i]);
        s->adapters[i]->n_pins--;
    }
    s->running = false;
}

/* Counted as queued, or no longer: it was admitted, or ended before. Under the lock. */
static void set_queued(struct engine *e, struct sequence *s, bool queued)
{
    if (s->queued == queued)
        return;
    s->queued = queued;
    e->n_queued += queued ? 1 : -1;
    if (queued)
        payers_wait(e->payers, s->payer);
    else
        payers_go(e->payers, s->payer);
}

/* The end. The caller takes it out of running or waiting (compact). What it has on the device goes
 * back now, or with the last step that flies with it (retire). */
static void sequence_finish(struct engine *e, struct sequence *s, enum engine_finish finish)
{
    BUG_IF(s->finished);
    s->finished = true;
    s->finish = finish;
    if (s->running && s->n_flying == 0)
        sequence_release_device(e, s);
    for (int i = 0; i < s->n_adapters && !s->running; i++) /* it waited, first or again */
        lora_pool_forget(e->lora, &s->adapters[i]->lora->content);
    pthread_mutex_lock(&e->lock);
    set_queued(e, s, false);
    payers_drop(e->payers, s->payer);
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
        struct engine_event *event = new_event(e, ENGINE_EVENT_FINISHED, s);
        event->finish = s->finish;
        event->n_prompt_cached = s->n_prompt_cached;
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

/* Returns the orders that were given. */
static struct engine_order *take_intake(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    for (int i = 0; i < e->n_intake; i++) {
        insert(e->waiting, &e->n_waiting, e->intake[i]);
        payers_set_weight(e->payers, e->intake[i]->payer, e->intake[i]->payer_weight);
    }
    e->n_intake = 0;
    e->n_payers_known = payers_n_known(e->payers);
    struct engine_order *orders = e->orders;
    e->orders = NULL;
    pthread_mutex_unlock(&e->lock);
    return orders;
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

void engine_publish_stats(struct engine *e)
{
    struct engine_stats *c = &e->counts;
    struct lora_pool_stats pool;
    lora_pool_stats(e->lora, &pool);
    c->n_adapter_hits = pool.n_hits;
    c->n_adapter_uploads = pool.n_uploads;
    c->n_adapter_prefetches = pool.n_prefetched;
    c->adapter_bytes_kept = pool.bytes_kept;
    c->n_adapter_evictions = pool.n_evictions;
    c->adapter_bytes_used = pool.bytes_used;
    c->adapter_bytes_total = pool.bytes_total;
    c->n_blocks = engine_n_blocks(e);
    c->kv_bytes_total = (size_t)c->n_blocks *
                        forward_block_bytes(&e->model->config, e->forward.kv[0].dtype);
    c->brick_bytes = e->shares ? e->budget.brick_bytes : 0;
    c->n_adapters_resident = pool.n_resident;
    c->n_steps_replayed = e->stepper.n_replayed;
    c->n_running = e->n_running;
    c->n_waiting = e->n_waiting;
    c->n_blocks_free = kv_pool_n_free(e->kv) + prefix_cache_n_idle(e->prefixes);
    c->n_prefix_evictions = prefix_cache_n_evicted(e->prefixes);
    c->n_blocks_cached = prefix_cache_n_blocks(e->prefixes);
    pthread_mutex_lock(&e->lock);
    e->stats = *c;
    pthread_mutex_unlock(&e->lock);
}

/* ---- carrying out ------------------------------------------------------------------------ */

static bool try_pin_adapters(struct engine *e, struct sequence *s)
{
    for (int i = 0; i < s->n_adapters; i++) {
        struct loaded_adapter *a = s->adapters[i];
        if (!lora_pool_pin(e->lora, a->lora, a, &s->pins[i])) {
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
    for (int i = 0; i < s->n_adapters; i++) {
        struct loaded_adapter *a = s->adapters[i];
        a->n_pins++;
        atomic_fetch_add(&a->n_uses, 1);
        if (a->kept) /* it may have had to go, and is back */
            (void)lora_pool_keep(e->lora, &a->lora->content, true, NULL);
    }
    return true;
}

static bool adapters_resident(const struct engine *e, const struct sequence *s)
{
    for (int i = 0; i < s->n_adapters; i++)
        if (!lora_pool_is_resident(e->lora, &s->adapters[i]->lora->content))
            return false;
    return true;
}

static void join(struct step *st, int *n, struct sequence *s, int n_rows)
{
    st->batch.seqs[(*n)++] = (struct batch_seq){
        .sequence = s, .n_rows = n_rows, .n_cached = s->n_cached, .n_tokens = s->n_tokens};
}

static void count_prefix(struct engine *e, struct sequence *s)
{
    s->n_prompt_cached = s->n_cached;
    if (s->keys == NULL || s->prompt_logprobs)
        return;
    e->counts.n_prefix_hit_tokens += (uint64_t)s->n_cached;
    e->counts.n_prefix_miss_tokens += (uint64_t)(s->n_prompt - s->n_cached);
}

static void admit_one(struct engine *e, struct step *st, const struct sched_grant *g, int *n_batch)
{
    struct sequence *s = e->waiting[g->index];
    if (!pin_adapters(e, s)) {
        sequence_blocks_drop(e->prefixes, s);
        s->n_bypassed++; /* bytes would do, their places don't: later */
        return;
    }
    if (!s->was_admitted)
        count_prefix(e, s);
    pthread_mutex_lock(&e->lock);
    set_queued(e, s, false);
    pthread_mutex_unlock(&e->lock);
    s->was_admitted = true;
    s->running = true;
    s->n_decoded = 0;
    s->n_bypassed = 0;
    sequence_blocks_take(e->kv, e->prefixes, s, g->n_blocks);
    join(st, n_batch, s, g->n_rows);
}

/* What adapters computed that are no longer loaded leaves the prefix cache first. It takes a look
 * at all idle blocks; so it is done after so many evictions only that each pays for a few looks. */
static void disown_forgotten(struct engine *e)
{
    struct content_digest forgotten[LOADED_FORGOTTEN_MAX];
    uint64_t owners[LOADED_FORGOTTEN_MAX];
    uint64_t n_evicted = prefix_cache_n_evicted(e->prefixes);
    if (n_evicted - e->n_evicted_then < (uint64_t)prefix_cache_n_idle(e->prefixes) / LOOKS_PAID)
        return;
    int n = loaded_adapters_take_forgotten(e->adapters, forgotten);
    if (n == 0)
        return;
    for (int i = 0; i < n; i++)
        owners[i] = prefix_owner(&forgotten[i]);
    prefix_cache_disown(e->prefixes, owners, n);
    e->n_evicted_then = n_evicted;
}

/* Carries out the plan, with nothing flying; returns the number of sequences of the step. */
static int apply_plan(struct engine *e, struct step *st)
{
    const struct sched_plan *plan = &e->plan;
    int n_batch = 0;
    e->n_carried++;
    e->carry = plan->carry;
    disown_forgotten(e);
    for (int i = 0; i < plan->n_preempt; i++) {
        struct sequence *s = e->running[plan->preempt[i]];
        sequence_release_device(e, s);
        pthread_mutex_lock(&e->lock);
        set_queued(e, s, true);
        pthread_mutex_unlock(&e->lock);
        s->n_preempted++;
        e->counts.n_preemptions++;
    }
    /* What those that begin were found to need of the prefix cache is in use before anybody takes a
     * block, which may evict. */
    for (int i = 0; i < plan->n_admit; i++)
        sequence_blocks_reuse(e->prefixes, e->waiting[plan->admit[i].index]);
    for (int i = 0; i < plan->n_run; i++) {
        const struct sched_grant *g = &plan->run[i];
        sequence_blocks_take(e->kv, e->prefixes, e->running[g->index], g->n_blocks);
        join(st, &n_batch, e->running[g->index], g->n_rows);
    }
    /* What is resident is pinned first, so that the others' evictions don't take it. */
    for (int i = 0; i < plan->n_admit; i++)
        if (adapters_resident(e, e->waiting[plan->admit[i].index]))
            admit_one(e, st, &plan->admit[i], &n_batch);
    for (int i = 0; i < plan->n_admit; i++)
        if (!e->waiting[plan->admit[i].index]->running)
            admit_one(e, st, &plan->admit[i], &n_batch);
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
        insert(e->running, &e->n_running, st->batch.seqs[i].sequence);
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

static void take_draw(struct engine *e, struct sequence *s, const struct sample_result *r)
{
    bool stop = is_stop(e, s, r->token);
    BUG_IF(r->token < 0 || r->token >= e->model->config.vocab || s->n_tokens == s->n_total_max);
    if (!isfinite(r->logprob)) { /* of the raw logits, so it is finite where one of them is */
        sequence_finish(e, s, ENGINE_FINISH_NOT_FINITE);
        return;
    }
    token_event(e, ENGINE_EVENT_TOKEN, s, s->n_tokens, r, stop);
    payers_charge(e->payers, s->payer, SCHED_COST_GENERATED);
    s->tokens[s->n_tokens++] = r->token;
    s->n_decoded++;
    if (stop)
        sequence_finish(e, s, ENGINE_FINISH_STOP);
    else if (s->n_tokens == s->n_total_max)
        sequence_finish(e, s, ENGINE_FINISH_LENGTH);
}

/* For the tokens from n_cached to n_now, those of the prompt that are computed for the first time:
 * what a cache held costs nothing, and a preemption is not the payer's fault. */
static void charge_prompt(struct engine *e, struct sequence *s, int n_now)
{
    if (s->n_charged < s->n_cached)
        s->n_charged = s->n_cached;
    int n = (n_now < s->n_prompt ? n_now : s->n_prompt) - s->n_charged;
    if (n <= 0)
        return;
    payers_charge(e->payers, s->payer, n * SCHED_COST_PROMPT);
    s->n_charged += n;
}

/* Of sequences that haven't ended since the step was enqueued. */
static void take_results(struct engine *e, const struct step *st)
{
    const struct step_batch *b = &st->batch;
    for (int i = 0; i < b->n_score; i++) {
        struct sequence *s = b->seqs[b->score_seq[i]].sequence;
        if (s->finished)
            continue;
        int position = b->position[b->logit_rows[b->n_draw_rows + i]] + 1;
        token_event(e, ENGINE_EVENT_PROMPT, s, position, &st->sampler.scores[i], false);
        s->n_scored = position;
    }
    for (int i = 0; i < b->n_seqs; i++) {
        struct sequence *s = b->seqs[i].sequence;
        if (s == NULL)
            continue;
        BUG_IF(!s->finished && s->n_cached != b->seqs[i].n_cached);
        if (s->finished)
            continue;
        charge_prompt(e, s, s->n_cached + b->seqs[i].n_rows);
        s->n_cached += b->seqs[i].n_rows;
        sequence_blocks_publish(e->prefixes, s);
    }
    for (int i = 0; i < b->n_draw; i++) {
        struct sequence *s = b->seqs[b->draw_seq[i]].sequence;
        if (s != NULL && !s->finished)
            take_draw(e, s, &st->sampler.draws[i]);
    }
    /* Prompts that were only to be scored. */
    for (int i = 0; i < b->n_seqs; i++) {
        struct sequence *s = b->seqs[i].sequence;
        if (s != NULL && !s->finished && s->n_cached == s->n_tokens)
            sequence_finish(e, s, ENGINE_FINISH_LENGTH);
    }
    compact(e, e->running, &e->n_running);
}

/* The step flies no more. */
static void land(struct engine *e, const struct step *st)
{
    const struct step_batch *b = &st->batch;
    for (int i = 0; i < b->n_seqs; i++) {
        struct sequence *s = b->seqs[i].sequence;
        if (s == NULL)
            continue;
        BUG_IF(s->n_flying < 1);
        if (--s->n_flying == 0 && s->finished)
            sequence_release_device(e, s);
    }
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

/* Before the results are taken: who was in the step. Rows that nobody wants any more don't count.
 */
static void count_step(struct engine *e, const struct step *st)
{
    const struct step_batch *b = &st->batch;
    struct engine_stats *c = &e->counts;
    int n_decode = 0, n_rows = 0, n_distinct = 0;
    c->n_steps++;
    for (int i = 0; i < b->n_seqs; i++) {
        const struct sequence *s = b->seqs[i].sequence;
        if (s == NULL || s->finished)
            continue;
        n_rows += b->seqs[i].n_rows;
        n_decode += b->seqs[i].n_rows == 1 && b->seqs[i].n_tokens - b->seqs[i].n_cached == 1 &&
                    b->seqs[i].n_tokens > s->n_prompt;
        for (int a = 0; a < s->n_adapters; a++) {
            n_distinct += s->adapters[a]->counted_step != c->n_steps;
            s->adapters[a]->counted_step = c->n_steps;
        }
    }
    c->n_rows_decode += (uint64_t)n_decode;
    c->n_rows_prefill += (uint64_t)(n_rows - n_decode);
    if (n_decode > 0) {
        c->n_decode_steps++;
        c->steps_by_distinct[bucket_of(n_distinct)]++;
    }
    struct monotonic_us now = clock_monotonic_us();
    c->last_step_us = clock_elapsed_us(e->retired.us > st->enqueued.us ? e->retired : st->enqueued,
                                       now);
    e->retired = now;
    if (e->step_hook != NULL)
        e->step_hook(e->step_context, b, n_decode, n_distinct, c->last_step_us);
}

/* ---- the loop ---------------------------------------------------------------------------- */

static void fly(struct engine *e, struct step *st, int n_seqs, bool follows)
{
    for (int i = 0; i < n_seqs; i++) {
        const struct batch_seq *q = &st->batch.seqs[i];
        if (q->sequence == NULL)
            continue;
        sequence_blocks_check_writable(e->kv, q->sequence, q->n_cached, q->n_rows);
        q->sequence->n_flying++;
    }
    stepper_enqueue(&e->stepper, st, n_seqs, follows);
}

/* Those that wait and are next by the newest plan; behind those that it would admit, if it isn't
 * carried out. */
static int list_next(const struct engine *e, struct sequence **next, bool carried_out)
{
    int n = 0;
    for (int i = 0; i < e->plan.n_admit && n < SCHED_NEXT_MAX && !carried_out; i++)
        next[n++] = e->waiting[e->plan.admit[i].index];
    for (int i = 0; i < e->plan.n_next && n < SCHED_NEXT_MAX; i++)
        next[n++] = e->waiting[e->plan.next[i]];
    return n;
}

/* Brings their adapters in; after the plan's own are pinned, so that none of them has to go. Who
 * waits for an adapter that isn't here may be loading, and passed by, until it is brought in by
 * this; so it must go by the same order. */
static void prefetch(struct engine *e, struct sequence *const *next, int n_next)
{
    for (int i = 0; i < n_next && e->prefetches; i++) {
        const struct sequence *s = next[i];
        for (int k = 0; k < s->n_adapters; k++)
            if (!lora_pool_prefetch(e->lora, s->adapters[k]->lora, s->adapters[k], true))
                return;
    }
}

/* Plans on the true state and enqueues; *out NULL: the plan computes nothing. Fails when the device
 * does. */
static int begin_step(struct engine *e, struct step **out, struct err *err)
{
    struct step *st = &e->stepper.steps[0];
    struct sequence *next[SCHED_NEXT_MAX];
    bool moved;
    *out = NULL;
    engine_make_plan(e, false);
    if (engine_budget_balance(e, &moved, err) != 0)
        return -1;
    if (moved)
        engine_make_plan(e, false);
    int n_next = list_next(e, next, true), n_seqs = apply_plan(e, st);
    prefetch(e, next, n_next);
    if (n_seqs == 0) {
        /* A forced preemption may leave one plan empty; more in a row would be for ever. */
        BUG_IF(++e->n_idle_plans > IDLE_PLANS_MAX);
        return 0;
    }
    e->n_idle_plans = 0;
    fly(e, st, n_seqs, false);
    *out = st;
    return 0;
}

/* It has ended, or does in a step that flies with it, whatever it draws there. */
static bool ends_in_flight(const struct sequence *s)
{
    return s->finished || s->n_tokens + 1 == s->n_total_max;
}

/* Those of the step behind st, which flies, in their places: all that run, but for those that have
 * ended or end in st; how many places. 0: there is nobody, or it can't be. */
static int list_followers(const struct engine *e, const struct step *st, struct batch_seq *out)
{
    const struct step_batch *b = &st->batch;
    int n = 0, n_running = 0, n_holes = 0;
    bool end = false;
    if (!e->overlaps || e->must_land || st->sampler.hook != NULL || b->n_draw != b->n_seqs)
        return 0;
    for (int i = 0; i < b->n_seqs; i++) {
        struct sequence *s = b->seqs[i].sequence;
        out[i] = (struct batch_seq){.n_rows = 1};
        n_running += s != NULL && !s->finished;
        if (s == NULL || ends_in_flight(s)) {
            end |= s != NULL;
            continue;
        }
        n_holes += i - n;
        n = i + 1;
        out[i] = (struct batch_seq){
            .sequence = s, .n_rows = 1, .n_cached = s->n_tokens, .n_tokens = s->n_tokens + 1};
    }
    if (n_running != e->n_running || (end && e->n_waiting > 0) || n_holes * HOLES_PART > n)
        return 0;
    return n;
}

/* Enqueues the step behind st, which flies, if it is a decode step of those that go on whoever
 * stops in st; else returns NULL. */
static struct step *follow_step(struct engine *e, const struct step *st)
{
    struct step *next = &e->stepper.steps[st == &e->stepper.steps[0] ? 1 : 0];
    const struct sched_plan *plan = &e->plan;
    int n = list_followers(e, st, next->batch.seqs);
    if (n == 0)
        return NULL;
    if (!stepper_is_decode(&e->stepper, next->batch.seqs, n))
        return NULL;
    struct sequence *waiting[SCHED_NEXT_MAX];
    engine_make_plan(e, true);
    bool follows = plan->n_preempt == 0 && plan->n_admit == 0 && plan->n_run == e->n_running;
    prefetch(e, waiting, list_next(e, waiting, follows));
    if (!follows)
        return NULL;
    e->n_carried++;
    e->carry = plan->carry;
    for (int i = 0; i < plan->n_run; i++) {
        struct sequence *s = e->running[plan->run[i].index];
        if (!ends_in_flight(s))
            sequence_blocks_take(e->kv, e->prefixes, s, plan->run[i].n_blocks);
    }
    fly(e, next, n, true);
    e->counts.n_steps_ahead++;
    return next;
}

/* Waits for a step, takes its results, lets it land. */
static int retire(struct engine *e, const struct step *st, struct err *err)
{
    int rc = stepper_wait(&e->stepper, st, err);
    if (rc == 0) {
        count_step(e, st);
        land(e, st);
        take_results(e, st);
    } else {
        land(e, st);
    }
    return rc;
}

/* Retires one step, with the next one behind it in the air if that can be. */
static int turn(struct engine *e, struct err *err)
{
    struct step *st = e->flying;
    if (st == NULL && begin_step(e, &st, err) != 0)
        return -1;
    if (st == NULL)
        return 0;
    e->flying = follow_step(e, st);
    deliver(e); /* what the turn before this one kept */
    return retire(e, st, err);
}

static void wait_for_work(struct engine *e)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += IDLE_WAIT_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&e->lock);
    if (e->n_intake == 0 && e->orders == NULL && e->state == ENGINE_OPEN)
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
    if (engine_device_open(e, &err) != 0) {
        engine_device_close(e);
        become(e, ENGINE_FAILED, &err);
        return NULL;
    }
    become(e, ENGINE_OPEN, NULL);
    while (is_open(e)) {
        bool failed = engine_obey(e, take_intake(e), &err) != 0;
        lora_pool_poll(e->lora);
        e->counts.progress = clock_monotonic_us();
        end_list(e, e->running, e->n_running, e->counts.progress);
        end_list(e, e->waiting, e->n_waiting, e->counts.progress);
        compact(e, e->running, &e->n_running);
        compact(e, e->waiting, &e->n_waiting);
        bool idle = e->n_running + e->n_waiting == 0 && e->flying == NULL;
        failed = failed || (!idle && turn(e, &err) != 0);
        if (failed) {
            log_error("engine", "the device failed: %s", err.message);
            become(e, ENGINE_FAILED, &err);
        }
        engine_publish_stats(e);
        if (!e->overlaps || e->n_running + e->n_waiting == 0)
            deliver(e);
        if (idle)
            wait_for_work(e);
    }
    if (e->flying != NULL)
        (void)retire(e, e->flying, &err); /* failed or not: all are to end */
    engine_refuse(e, take_intake(e));
    end_all(e);
    engine_publish_stats(e);
    deliver(e);
    engine_device_close(e);
    return NULL;
}
