/* sim: see sim.h. A run keeps what the engine keeps (engine/internal.h), without tensors:
 *
 *   arrivals of all classes, by time ── door (payers_may_wait) ──> waiting <──preempted──┐
 *                                                                     │                  │
 *                                            plan, checked ───────────┴──admit──> running ──> done
 *
 * and takes a step's results at its end: rows become cached tokens, a sequence with all its tokens
 * cached gets one more. One step flies, and at most one is enqueued behind it.
 *
 * Blocks that go back are numbered as they do, and the oldest are taken first; so those of a
 * preempted sequence are lost from its last one on when as many have gone back, less the free ones.
 * (One that is found again leaves a gap, which counts as if an older one had been taken: this errs
 * to the side of losing more.) */
#include "tests/sim/sim.h"

#include "engine/payers.h"
#include "engine/scheduler.h"
#include "kernels/ops.h"
#include "node/base/buf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CREDIT_STEPS = 4, KEPT_PART = 64, AHEAD_MAX = 256 }; /* as the engine has them */

/* ---- random numbers ---------------------------------------------------------------------- */

static uint64_t next_u64(uint64_t *state) /* SplitMix64 */
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double uniform(uint64_t *state) /* in (0, 1) */
{
    return ((double)(next_u64(state) >> 11) + 0.5) / 9007199254740992.0;
}

static double normal(uint64_t *state)
{
    double radius = sqrt(-2 * log(uniform(state)));
    return radius * cos(2 * 3.14159265358979323846 * uniform(state));
}

/* Marsaglia and Tsang, A simple method for generating gamma variables, 2000. Mean 1. */
static double gamma_of(uint64_t *state, double cv)
{
    double shape = 1 / (cv * cv), boost = 1, d, c, x, v;
    double a = shape;
    if (a < 1) {
        boost = pow(uniform(state), 1 / a);
        a += 1;
    }
    d = a - 1.0 / 3;
    c = 1 / sqrt(9 * d);
    do {
        x = normal(state);
        v = 1 + c * x;
        v = v * v * v;
    } while (v <= 0 || log(uniform(state)) > 0.5 * x * x + d - d * v + d * log(v));
    return d * v * boost / shape;
}

static int length_of(uint64_t *state, const struct sim_length *l)
{
    if (l->p90 == 0)
        return l->p50;
    if (l->uniform)
        return l->p50 + (int)(uniform(state) * (l->p90 - l->p50 + 1));
    double sigma = log((double)l->p90 / l->p50) / 1.2815515655;
    int n = (int)(l->p50 * exp(sigma * normal(state)));
    return n < 1 ? 1 : n > l->max ? l->max : n;
}

/* ---- the run ----------------------------------------------------------------------------- */

struct request {
    struct sched_seq seq;
    int class, payer, n_prompt, n_total, n_charged;
    double arrived_ms, ready_ms;
    uint64_t admitted_before; /* admissions when it came */
    uint64_t left_at;         /* preempted: blocks that had gone back before its own, ... */
    int n_left;               /* ... and of its own, full ones */
    bool running, had_first, was_admitted;
};

struct source { /* of a class */
    uint64_t random;
    double next_ms;
    double *zipf; /* [n_adapters] cumulative */
    float *ttft;  /* [n_ttft] ms */
    int n_ttft;
    double *shares; /* [n_payers] */
};

struct sim {
    const struct sim_options *o;
    struct sim_result *r;
    struct source sources[SIM_CLASSES_MAX];
    struct payers *payers;
    struct sched_plan plan;
    struct sched_adapter *adapters;
    int n_adapters;
    struct sched_seq *sched_running, *sched_waiting;
    struct request **running, **waiting;
    int n_running, n_waiting;
    int n_blocks_free;
    uint64_t n_blocks_back;       /* in all, and those that were free at the beginning */
    int flying_seqs, flying_rows; /* of the step that flies; 0: none does */
    size_t bytes_pinned;
    double now_ms, measured_from_ms;
    uint64_t next_order, n_admitted, next_payer;
    struct sched_carry carry;
    int n_finished;
    uint64_t n_rows, n_runs;
    bool measures;
};

#define BROKEN(s, ...)                                                   \
    do {                                                                 \
        if ((s)->r->broken[0] == '\0')                                   \
            snprintf((s)->r->broken, sizeof(s)->r->broken, __VA_ARGS__); \
    } while (0)

static void insert(struct request **list, int *n, struct request *q)
{
    int i = (*n)++;
    for (; i > 0 && list[i - 1]->seq.order > q->seq.order; i--)
        list[i] = list[i - 1];
    list[i] = q;
}

static int zipf_of(struct source *from, int n)
{
    double u = uniform(&from->random) * from->zipf[n - 1];
    int low = 0, high = n - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (from->zipf[middle] < u)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct request *draw(struct sim *s, int class)
{
    const struct sim_class *c = &s->o->classes[class];
    struct source *from = &s->sources[class];
    struct request *q = xcalloc(1, sizeof *q);
    q->class = class;
    q->arrived_ms = q->ready_ms = from->next_ms;
    q->n_prompt = q->seq.n_tokens = length_of(&from->random, &c->prompt);
    q->n_total = q->n_prompt + length_of(&from->random, &c->answer);
    q->seq.n_blocks_max = (q->n_total + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    q->payer = c->n_payers > 0 ? (int)(uniform(&from->random) * c->n_payers) : 0;
    if (c->n_adapters > 0) {
        q->seq.n_adapters = 1;
        q->seq.adapters[0] = c->first_adapter + zipf_of(from, c->n_adapters);
    }
    if (c->p_loading > 0 && uniform(&from->random) < c->p_loading)
        q->ready_ms += c->loading_ms;
    from->next_ms += 1000 / c->rate * gamma_of(&from->random, c->cv);
    return q;
}

/* Whose share: payers of different classes are different, and those that come once are new. */
static uint64_t payer_id(struct sim *s, const struct request *q)
{
    if (s->o->by_age)
        return 0;
    if (s->o->classes[q->class].n_payers == 0)
        return ((uint64_t)1 << 48) + s->next_payer++;
    return ((uint64_t)(unsigned)(q->class + 1) << 32) + (uint64_t)(unsigned)q->payer;
}

static void arrive(struct sim *s, int class)
{
    const struct sim_class *c = &s->o->classes[class];
    struct request *q = draw(s, class);
    int n_free = s->o->max_waiting - s->n_waiting;
    int place = n_free > 0 ? payers_hold(s->payers, payer_id(s, q)) : -1;
    if (place >= 0 && !payers_may_wait(s->payers, place, n_free)) {
        payers_drop(s->payers, place);
        place = -1;
    }
    if (place < 0) {
        s->r->classes[class].n_refused += s->measures;
        free(q);
        return;
    }
    payers_wait(s->payers, place);
    payers_set_weight(s->payers, place, s->o->by_age ? 1 : c->weight);
    q->seq.payer = place; /* the table's; the view's is shown */
    q->seq.priority = s->o->by_age ? 0 : c->priority;
    q->seq.order = ++s->next_order;
    q->admitted_before = s->n_admitted;
    insert(s->waiting, &s->n_waiting, q);
}

/* Takes all that has arrived; with nothing there to do, time goes on to what comes first. */
static void take_arrivals(struct sim *s)
{
    for (;;) {
        int first = -1;
        for (int i = 0; i < s->o->n_classes; i++)
            if (s->o->classes[i].rate > 0 &&
                (first < 0 || s->sources[i].next_ms < s->sources[first].next_ms))
                first = i;
        if (s->sources[first].next_ms > s->now_ms) {
            if (s->n_running + s->n_waiting + s->flying_rows > 0)
                return;
            s->now_ms = s->sources[first].next_ms;
        }
        arrive(s, first);
    }
}

/* ---- planning and checking --------------------------------------------------------------- */

/* Of the blocks that a preempted one left, those that nobody has taken. */
static int blocks_found(const struct sim *s, const struct request *q)
{
    uint64_t n_taken = s->n_blocks_back - (uint64_t)s->n_blocks_free;
    uint64_t n_lost = n_taken > q->left_at ? n_taken - q->left_at : 0;
    return n_lost < (uint64_t)q->n_left ? q->n_left - (int)n_lost : 0;
}

static struct sched_seq shown(struct sim *s, const struct request *q, bool after)
{
    struct sched_seq seq = q->seq;
    seq.loading = !q->running && q->ready_ms > s->now_ms;
    seq.payer = payers_view_add(s->payers, q->seq.payer, !q->running && !seq.loading);
    seq.n_tokens += after && q->running;
    seq.n_blocks_cached = seq.n_cached / BLOCK_TOKENS;
    seq.n_found = seq.n_found_idle = q->running ? 0 : blocks_found(s, q);
    return seq;
}

/* after: for the state behind the step that flies, in which every sequence draws. */
static void plan(struct sim *s, struct sched_state *state, bool after)
{
    const struct sim_options *o = s->o;
    bool shared = payers_n_known(s->payers) > 1;
    *state = (struct sched_state){.running = s->sched_running,
                                  .n_running = s->n_running,
                                  .waiting = s->sched_waiting,
                                  .n_waiting = s->n_waiting,
                                  .adapters = s->adapters,
                                  .n_adapters = s->n_adapters,
                                  .adapter_bytes = o->adapter_bytes,
                                  .adapter_bytes_free = o->adapter_bytes - s->bytes_pinned,
                                  .n_blocks = o->n_blocks,
                                  .n_blocks_free = s->n_blocks_free,
                                  .max_seqs = o->max_seqs,
                                  .max_rows = o->max_rows,
                                  .n_seqs_kept = shared ? o->max_seqs / KEPT_PART : 0,
                                  .n_blocks_kept = shared ? o->n_blocks / KEPT_PART : 0,
                                  .carry = s->carry,
                                  .force_preempt = -1};
    payers_view_begin(s->payers);
    for (int i = 0; i < s->n_running; i++)
        s->sched_running[i] = shown(s, s->running[i], after);
    for (int i = 0; i < s->n_waiting; i++)
        s->sched_waiting[i] = shown(s, s->waiting[i], after);
    state->payers = payers_view_end(s->payers, &state->n_payers);
    state->level = payers_level(s->payers);
    sched_plan_make(&s->plan, state);
    s->r->n_plans++;
}

/* What can be said of a plan before it is carried out. */
static void check_plan(struct sim *s, const struct sched_state *state)
{
    const struct sched_plan *p = &s->plan;
    int n_rows = 0, n_decoding = 0, n_ready = 0;
    for (int i = 0; i < s->n_running; i++)
        n_decoding += state->running[i].n_tokens - state->running[i].n_cached == 1;
    for (int i = 0; i < s->n_waiting; i++)
        n_ready += !state->waiting[i].loading;
    for (int i = 0; i < p->n_preempt; i++) {
        const struct sched_seq *q = &state->running[p->preempt[i]];
        n_decoding -= q->n_tokens - q->n_cached == 1;
        if (p->preempt[i] == 0)
            BROKEN(s, "the oldest was preempted at %.1f ms", s->now_ms);
    }
    bool anchor_runs = s->n_running == 0;
    for (int i = 0; i < p->n_run; i++) {
        const struct sched_seq *q = &state->running[p->run[i].index];
        n_rows += p->run[i].n_rows;
        n_decoding -= q->n_tokens - q->n_cached == 1;
        anchor_runs |= p->run[i].index == 0;
        if (p->run[i].n_rows < 1 || p->run[i].n_rows > q->n_tokens - q->n_cached)
            BROKEN(s, "%d rows of %d", p->run[i].n_rows, q->n_tokens - q->n_cached);
    }
    for (int i = 0; i < p->n_admit; i++) {
        n_rows += p->admit[i].n_rows;
        if (state->waiting[p->admit[i].index].loading || p->admit[i].n_rows < 1)
            BROKEN(s, "one was admitted that can't be computed");
    }
    if (!anchor_runs)
        BROKEN(s, "the oldest that runs has no row at %.1f ms", s->now_ms);
    if (n_decoding != 0)
        BROKEN(s, "%d decoding ones have no row", n_decoding);
    if (n_rows > s->o->max_rows)
        BROKEN(s, "%d rows in a step", n_rows);
    if (n_rows == 0 && p->n_preempt == 0 && s->n_running + n_ready > 0)
        BROKEN(s, "nothing is computed at %.1f ms", s->now_ms);
    if (p->n_admit > 0 && p->n_preempt > 0 && p->want.n_blocks_running > 0)
        BROKEN(s, "admission beside preemption for want of blocks");
}

/* ---- carrying out ------------------------------------------------------------------------ */

static void pin(struct sim *s, const struct request *q, int by)
{
    for (int i = 0; i < q->seq.n_adapters; i++) {
        struct sched_adapter *a = &s->adapters[q->seq.adapters[i]];
        bool was = a->n_pins > 0;
        a->n_pins += by;
        if (a->n_pins > 0 && !was)
            s->bytes_pinned += a->n_bytes;
        else if (a->n_pins == 0 && was)
            s->bytes_pinned -= a->n_bytes;
    }
}

static void grant(struct sim *s, struct request *q, const struct sched_grant *g)
{
    s->n_blocks_free -= g->n_blocks;
    q->seq.n_blocks += g->n_blocks;
    if (s->n_blocks_free < 0 || q->seq.n_blocks * BLOCK_TOKENS < q->seq.n_cached + g->n_rows)
        BROKEN(s, "blocks that don't exist");
}

/* How many others were admitted while it waited. All that are older may have their turns before it,
 * each turn SCHED_TURN_* apart, and others may pass it so often when it doesn't fit. */
static void check_wait(struct sim *s, const struct request *q)
{
    uint64_t n = s->n_admitted - q->admitted_before;
    uint64_t n_turns = (uint64_t)(s->o->max_waiting + s->o->max_seqs + SCHED_BYPASS_MAX);
    if (n > s->r->most_overtaken)
        s->r->most_overtaken = n;
    if (n > n_turns * SCHED_TURN_ROWS)
        BROKEN(s, "one waited for %llu admissions", (unsigned long long)n);
}

static void admit(struct sim *s, struct request *q)
{
    q->seq.n_blocks = blocks_found(s, q);
    q->seq.n_cached = q->seq.n_blocks * BLOCK_TOKENS;
    s->n_blocks_free -= q->seq.n_blocks;
    q->n_left = 0;
    q->running = true;
    q->seq.n_bypassed = 0;
    payers_go(s->payers, q->seq.payer);
    pin(s, q, 1);
    if (!q->was_admitted)
        check_wait(s, q);
    q->was_admitted = true;
    s->n_admitted++;
}

static void leave(struct sim *s, struct request *q)
{
    q->left_at = s->n_blocks_back;
    q->n_left = q->seq.n_cached / BLOCK_TOKENS;
    s->n_blocks_back += (uint64_t)q->seq.n_blocks;
    s->n_blocks_free += q->seq.n_blocks;
    q->seq.n_blocks = q->seq.n_cached = 0;
    q->running = false;
    pin(s, q, -1);
}

/* What the plan admits takes what it finds before anybody takes a block, as in the engine. */
static void carry_out(struct sim *s)
{
    const struct sched_plan *p = &s->plan;
    int n_running = s->n_running, n_waiting = s->n_waiting;
    s->carry = p->carry;
    for (int i = 0; i < p->n_preempt; i++) {
        leave(s, s->running[p->preempt[i]]);
        payers_wait(s->payers, s->running[p->preempt[i]]->seq.payer);
        s->r->n_preempted++;
    }
    for (int i = 0; i < p->n_admit; i++)
        admit(s, s->waiting[p->admit[i].index]);
    for (int i = 0; i < p->n_run; i++)
        grant(s, s->running[p->run[i].index], &p->run[i]);
    for (int i = 0; i < p->n_admit; i++)
        grant(s, s->waiting[p->admit[i].index], &p->admit[i]);
    if (s->bytes_pinned > s->o->adapter_bytes)
        BROKEN(s, "%zu bytes of adapters are pinned", s->bytes_pinned);
    for (int i = 0; i < p->n_bypassed; i++) {
        s->waiting[p->bypassed[i]]->seq.n_bypassed++;
        s->r->n_bypassed++;
    }
    /* Computed now, taken at the step's end. */
    s->flying_seqs = p->n_run + p->n_admit;
    s->flying_rows = 0;
    for (int i = 0; i < p->n_run; i++) {
        s->running[p->run[i].index]->seq.n_cached += p->run[i].n_rows;
        s->flying_rows += p->run[i].n_rows;
    }
    for (int i = 0; i < p->n_admit; i++) {
        s->waiting[p->admit[i].index]->seq.n_cached += p->admit[i].n_rows;
        s->flying_rows += p->admit[i].n_rows;
    }
    s->n_running = s->n_waiting = 0;
    struct request *preempted[4096];
    int n_preempted = 0;
    for (int i = 0; i < n_running; i++) {
        if (s->running[i]->running)
            s->running[s->n_running++] = s->running[i];
        else
            preempted[n_preempted++] = s->running[i];
    }
    for (int i = 0; i < n_waiting; i++) {
        if (s->waiting[i]->running)
            insert(s->running, &s->n_running, s->waiting[i]);
        else
            s->waiting[s->n_waiting++] = s->waiting[i];
    }
    for (int i = 0; i < n_preempted; i++)
        insert(s->waiting, &s->n_waiting, preempted[i]);
}

/* ---- results ----------------------------------------------------------------------------- */

static void account(struct sim *s, struct request *q, int n_prompt, int n_generated)
{
    int cost = n_prompt * SCHED_COST_PROMPT + n_generated * SCHED_COST_GENERATED;
    payers_charge(s->payers, q->seq.payer, cost);
    if (!s->measures)
        return;
    s->r->classes[q->class].tokens += n_prompt + n_generated;
    s->r->tokens += n_prompt + n_generated;
    if (s->o->classes[q->class].n_payers > 0)
        s->sources[q->class].shares[q->payer] += cost / s->o->classes[q->class].weight;
}

static void first_token(struct sim *s, struct request *q)
{
    struct source *from = &s->sources[q->class];
    q->had_first = true;
    if (s->measures)
        from->ttft[from->n_ttft++] = (float)(s->now_ms - q->arrived_ms);
}

/* True: it has ended. */
static bool advance(struct sim *s, struct request *q)
{
    int done = q->seq.n_cached < q->n_prompt ? q->seq.n_cached : q->n_prompt;
    if (done > q->n_charged) {
        account(s, q, done - q->n_charged, 0);
        q->n_charged = done;
    }
    if (q->seq.n_cached < q->seq.n_tokens)
        return false;
    q->seq.n_tokens++;
    account(s, q, 0, 1);
    if (!q->had_first)
        first_token(s, q);
    return q->seq.n_tokens == q->n_total;
}

static void take_results(struct sim *s)
{
    int kept = 0;
    for (int i = 0; i < s->n_running; i++) {
        struct request *q = s->running[i];
        if (!advance(s, q)) {
            s->running[kept++] = q;
            continue;
        }
        leave(s, q);
        payers_drop(s->payers, q->seq.payer);
        s->n_finished++;
        s->r->classes[q->class].n_finished += s->measures;
        free(q);
    }
    s->n_running = kept;
}

static double cost_ms(const struct sim_options *o, int n_rows)
{
    int i = 1;
    while (i + 1 < SIM_COSTS_MAX && o->costs[i + 1].n_rows > 0 && o->costs[i].n_rows < n_rows)
        i++;
    const struct sim_cost *a = &o->costs[i - 1], *b = &o->costs[i];
    return a->ms + (b->ms - a->ms) * (n_rows - a->n_rows) / (b->n_rows - a->n_rows);
}

/* Enqueues the step behind the one that flies: the same sequences, whoever ends in it. Returns its
 * rows, or 0: it can't be. */
static int follow_step(struct sim *s)
{
    struct sched_state state;
    const struct sched_plan *p = &s->plan;
    int n = s->flying_seqs;
    if (n != s->n_running || n > AHEAD_MAX)
        return 0;
    for (int i = 0; i < n; i++)
        if (s->running[i]->seq.n_cached < s->running[i]->seq.n_tokens)
            return 0;
    plan(s, &state, true);
    check_plan(s, &state);
    if (p->n_preempt > 0 || p->n_admit > 0 || p->n_run != n)
        return 0;
    s->carry = p->carry;
    for (int i = 0; i < n; i++)
        grant(s, s->running[p->run[i].index], &p->run[i]);
    s->r->n_ahead++;
    return n;
}

/* One turn of the engine's loop: begins a step if none flies, enqueues the next one where that can
 * be, and waits for the first. */
static void turn(struct sim *s)
{
    struct sched_state state;
    take_arrivals(s);
    if (s->flying_rows == 0) {
        plan(s, &state, false);
        check_plan(s, &state);
        carry_out(s);
    }
    if (s->flying_rows == 0) { /* only preempted, or all that waits is loading */
        s->now_ms += 1;
        return;
    }
    int n_follow = follow_step(s);
    s->r->n_steps++;
    s->now_ms += cost_ms(s->o, s->flying_rows);
    if (s->measures) {
        s->n_rows += (uint64_t)s->flying_rows;
        s->n_runs += (uint64_t)s->n_running;
    }
    take_results(s);
    for (int i = 0; i < s->n_running && n_follow > 0; i++)
        s->running[i]->seq.n_cached++;
    s->flying_seqs = s->flying_rows = n_follow;
}

/* ---- begin and end ----------------------------------------------------------------------- */

static void open_sources(struct sim *s)
{
    for (int i = 0; i < s->o->n_classes; i++) {
        const struct sim_class *c = &s->o->classes[i];
        struct source *from = &s->sources[i];
        from->random = s->o->seed * 1000003u + (uint64_t)(unsigned)i * 7919u;
        if (c->rate > 0)
            from->next_ms = 1000 / c->rate * gamma_of(&from->random, c->cv);
        from->zipf = xcalloc((size_t)c->n_adapters + 1, sizeof *from->zipf);
        for (int a = 0; a < c->n_adapters; a++) {
            from->zipf[a] = (a > 0 ? from->zipf[a - 1] : 0) + 1.0 / (a + 1);
            s->adapters[c->first_adapter + a].n_bytes = c->adapter_bytes;
        }
        /* Of all that have ended, in the last step a few too many, and of all that are there. */
        int n_first = s->o->n_requests + 2 * s->o->max_seqs + s->o->max_waiting + s->o->max_seqs;
        from->ttft = xcalloc((size_t)n_first, sizeof *from->ttft);
        from->shares = xcalloc((size_t)c->n_payers + 1, sizeof *from->shares);
    }
}

static void open_sim(struct sim *s)
{
    const struct sim_options *o = s->o;
    size_t max_waiting = (size_t)(o->max_waiting + o->max_seqs);
    for (int i = 0; i < o->n_classes; i++)
        if (o->classes[i].first_adapter + o->classes[i].n_adapters > s->n_adapters)
            s->n_adapters = o->classes[i].first_adapter + o->classes[i].n_adapters;
    s->adapters = xcalloc((size_t)s->n_adapters + 1, sizeof *s->adapters);
    s->payers = payers_create((int)max_waiting, CREDIT_STEPS * o->max_rows);
    sched_plan_init(&s->plan, o->max_seqs, (int)max_waiting, s->n_adapters);
    s->sched_running = xcalloc((size_t)o->max_seqs, sizeof *s->sched_running);
    s->sched_waiting = xcalloc(max_waiting, sizeof *s->sched_waiting);
    s->running = xcalloc((size_t)o->max_seqs, sizeof(struct request *));
    s->waiting = xcalloc(max_waiting, sizeof(struct request *));
    s->n_blocks_free = o->n_blocks;
    s->n_blocks_back = (uint64_t)o->n_blocks;
    open_sources(s);
}

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static void close_sim(struct sim *s)
{
    for (int i = 0; i < s->n_running; i++)
        free(s->running[i]);
    for (int i = 0; i < s->n_waiting; i++)
        free(s->waiting[i]);
    for (int i = 0; i < s->o->n_classes; i++) {
        free(s->sources[i].zipf);
        free(s->sources[i].ttft);
        free(s->sources[i].shares);
    }
    free(s->adapters);
    payers_free(s->payers);
    sched_plan_release(&s->plan);
    free(s->sched_running);
    free(s->sched_waiting);
    free(s->running);
    free(s->waiting);
}

static void summarise(struct sim *s)
{
    struct sim_result *r = s->r;
    r->seconds = (s->now_ms - s->measured_from_ms) / 1000;
    r->n_finished = s->n_finished;
    r->rows_per_step = (double)s->n_rows;
    r->running_per_step = (double)s->n_runs;
    for (int i = 0; i < s->o->n_classes; i++) {
        struct sim_class_result *c = &r->classes[i];
        struct source *from = &s->sources[i];
        int n = from->n_ttft;
        if (n > 0) {
            qsort(from->ttft, (size_t)n, sizeof *from->ttft, compare_floats);
            c->p50_ms = (double)from->ttft[n / 2];
            c->p99_ms = (double)from->ttft[(int)(n * 0.99)];
            c->longest_ms = (double)from->ttft[n - 1];
        }
        for (int p = 0; p < s->o->classes[i].n_payers; p++) {
            double share = from->shares[p];
            c->least_share = p == 0 || share < c->least_share ? share : c->least_share;
            c->most_share = share > c->most_share ? share : c->most_share;
            c->sum_share += share;
            c->sum_share_squared += share * share;
        }
    }
}

void sim_run(struct sim_result *out, const struct sim_options *options)
{
    struct sim s = {.o = options, .r = out};
    uint64_t n_steps_before = 0;
    *out = (struct sim_result){0};
    open_sim(&s);
    while (s.n_finished < options->n_requests && out->broken[0] == '\0') {
        if (!s.measures && s.n_finished >= options->warmup_part * options->n_requests) {
            s.measures = true;
            s.measured_from_ms = s.now_ms;
            n_steps_before = out->n_steps;
        }
        turn(&s);
    }
    summarise(&s);
    double n_steps = (double)(out->n_steps - n_steps_before);
    out->rows_per_step /= n_steps > 0 ? n_steps : 1;
    out->running_per_step /= n_steps > 0 ? n_steps : 1;
    close_sim(&s);
}
