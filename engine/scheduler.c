/* scheduler: see scheduler.h.
 *
 * Continuous batching (Yu et al., Orca, OSDI '22) with chunked prefill (Agrawal et al., Sarathi,
 * arXiv:2308.16369): each step, decoding sequences get one row each, and what is left of max_rows
 * goes to prompts, so that a long prompt neither stops the decodes nor waits for them.
 *
 * Shares. Rows for prompts and places for waiting sequences are given out in one order, that of
 * virtual token counters (Sheng et al., Fairness in Serving Large Language Models, OSDI '24,
 * arXiv:2401.00588): who has had least for its weight goes first. Rows that are granted count at
 * once, in this plan; so ten waiting sequences of one payer don't begin together while another
 * payer waits, and a prompt of 30,000 tokens takes one step, then its payer is behind and the
 * others' prompts pass. Sequences of one payer and one priority form a queue (those in prefill
 * first, then those waiting, each by age); the queues lie in a heap by the order. Counters only
 * grow during a plan, so a queue whose place has become wrong is found out when it comes up, and
 * goes back.
 *
 * Even steps. While somebody favoured is about, a step's prompts get no more rows than it takes to
 * keep up with what comes (prompt_cap.h); so there is hardly a long step that somebody could come
 * into.
 *
 * Blocks. A sequence is admitted with all the blocks its known tokens need, and takes one more each
 * BLOCK_TOKENS tokens. Admission leaves one free block for each that may still grow, so that a step
 * later nobody need leave. When a decode finds no free block, the last in the order among those
 * running is preempted by recompute: its blocks are dropped and it waits, at its old age, to
 * prefill all its tokens again. The one that asks may itself be the last.
 *
 * Why something always finishes. Call the oldest running sequence the anchor. It is never preempted
 * for want of blocks, its own wants are met first, and it has a row in every step: so as long as it
 * is the anchor, it advances; alone, it fits, because no request is accepted that could outgrow the
 * cache. It stops being the anchor only by ending, or because an older sequence is admitted. Ages
 * never change and no new sequence is older than those there, so the second can happen only as
 * often as there are older ones, which is finitely often between two ends. Hence an end comes. The
 * order by counters could not carry this argument: it turns as counters grow, and two sequences
 * could throw each other out for ever.
 *
 * Why everybody finishes. Again and again it is the turn of the oldest that waits and is ready,
 * whatever its priority and its payer's counter: SCHED_TURN_* bound how much is computed for others
 * until then. Admissions go on, because ends do. If
 * the oldest can't begin because its adapters' bytes are pinned or its blocks taken, and others
 * behind it do, it counts as bypassed; after SCHED_BYPASS_MAX such plans it goes first in every
 * plan and is a barrier: while it lacks bytes nobody who needs an adapter begins, so pins only go
 * away; while it lacks blocks or a place nobody begins at all, nor while it needs more bytes than
 * the pool has now, which only blocks that get free can give back (engine_budget.c). So it begins,
 * and once it is the oldest that runs it is not preempted again.
 *
 * Blocks that several use (prefix cache). Preempting one of the users gives back its own blocks
 * only; the last user would give back the shared ones, too, but who that is the plan doesn't know.
 * What is certain is that all are free but those that the remaining ones list, shared or not: the
 * larger of the two counts is used, and when the anchor alone is left it is exact. A waiting one
 * takes what it finds and is granted the rest; of what it finds, blocks that nobody uses leave the
 * free ones with it. Two that find the same idle blocks in one plan count them twice, which is on
 * the safe side and over with the next plan.
 *
 * Adapters. A waiting sequence needs the bytes of those of its adapters that nobody pins (resident
 * and unpinned ones count: they hold bytes that an eviction could free). The plan counts bytes; if
 * the pool then fails to place an adapter, for fragmentation, the engine leaves that sequence
 * waiting as if passed by. */
#include "engine/scheduler.h"

#include "kernels/ops.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

enum {
    NONE = -1,
    ANCHOR_PART = 256, /* of max_rows, one part is the anchor's at least */
    PAUSE_PART = 16,   /* of max_rows, what a step costs beside its rows is taken for one part */
    SPARE_STEPS = 4,   /* so many times max_rows can be spare */
};

/* Sequences of one payer and one priority. */
struct queue {
    int payer, priority;
    double counter; /* the payer's when the queue was put into the heap ... */
    double share;   /* ... and how many it ran then, for its weight */
    int running;    /* first and last in prefill, NONE: none; chained in running_note.next */
    int running_last;
    int waiting; /* likewise, in waiting_note.next */
    int waiting_last;
    int sibling; /* the payer's next queue, or NONE */
};

struct running_note {
    int n_rows, n_blocks; /* granted */
    int next;
    bool gone; /* preempted */
};

struct waiting_note {
    int next;
    bool seen; /* admitted, or looked at in vain */
    bool admitted;
};

struct payer_note {
    double counter; /* with what this plan gives */
    int n_running;  /* likewise */
    int queues;     /* its first, or NONE */
};

struct heap_of_ints {
    int *items; /* [n] */
    int n;
};

struct sched_work {
    int max_running, max_waiting, max_adapters, max_payers;
    int *pins; /* [max_adapters] */
    struct running_note *running;
    struct waiting_note *waiting;
    struct payer_note *payers;
    struct queue *queues; /* [n_queues] */
    int n_queues;
    struct heap_of_ints heap;    /* of queues */
    struct heap_of_ints leaving; /* of running ones */
};

void sched_plan_init(struct sched_plan *p, int max_running, int max_waiting, int max_adapters)
{
    struct sched_work *w = xcalloc(1, sizeof *w);
    int max_all = max_running + max_waiting;
    *w = (struct sched_work){.max_running = max_running,
                             .max_waiting = max_waiting,
                             .max_adapters = max_adapters,
                             .max_payers = max_all};
    w->pins = xcalloc((size_t)max_adapters, sizeof *w->pins);
    w->running = xcalloc((size_t)max_running, sizeof *w->running);
    w->waiting = xcalloc((size_t)max_waiting, sizeof *w->waiting);
    w->payers = xcalloc((size_t)max_all, sizeof *w->payers);
    w->queues = xcalloc((size_t)max_all, sizeof *w->queues);
    w->heap.items = xcalloc((size_t)max_all, sizeof *w->heap.items);
    w->leaving.items = xcalloc((size_t)max_running, sizeof *w->leaving.items);
    *p = (struct sched_plan){.work = w};
    p->preempt = xcalloc((size_t)max_running, sizeof *p->preempt);
    p->run = xcalloc((size_t)max_running, sizeof *p->run);
    p->admit = xcalloc((size_t)max_running, sizeof *p->admit);
    p->bypassed = xcalloc((size_t)max_waiting, sizeof *p->bypassed);
}

void sched_plan_release(struct sched_plan *p)
{
    if (p->work != NULL) {
        free(p->work->pins);
        free(p->work->running);
        free(p->work->waiting);
        free(p->work->payers);
        free(p->work->queues);
        free(p->work->heap.items);
        free(p->work->leaving.items);
    }
    free(p->work);
    free(p->preempt);
    free(p->run);
    free(p->admit);
    free(p->bypassed);
    *p = (struct sched_plan){0};
}

static int blocks_for(int n_tokens)
{
    return (n_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
}

static int min_of(int a, int b)
{
    return a < b ? a : b;
}

struct planning {
    struct sched_plan *plan;
    struct sched_work *work;
    const struct sched_state *state;
    int n_blocks_free;
    int n_blocks_listed; /* by those kept; a shared one counts for each */
    int n_found_in_use;  /* blocks in use that admitted ones found */
    size_t adapter_bytes_free;
    int n_rows_left;
    int n_kept;    /* running and not preempted, and admitted */
    int n_growing; /* of these, those that may need another block */
    /* Admission */
    int oldest; /* nobody older than this waiting one is unseen */
    bool turn_taken;
    int n_passed;
    bool barrier;      /* nobody who needs an adapter is admitted any more */
    bool tight;        /* somebody lacks blocks or a place: only favoured ones are admitted ... */
    bool blocks_short; /* ... if it was blocks, out of ... */
    int n_blocks_kept_left; /* ... these */
    bool closed;            /* nobody at all is */
    /* Being quick for the favoured */
    int64_t spent; /* of the spare rows */
    bool made_way; /* or tried in vain */
    bool ends;     /* the prompt of a favoured one comes to its end in this step */
    bool paused;   /* therefore others' prompts got nothing */
    /* Keeping steps even */
    struct prompt_cap_view cap_view;
    int n_rows_cap;     /* that prompts may have: max_rows, or fewer */
    int n_rows_prompts; /* that they have */
};

static void check(const struct sched_work *work, const struct sched_state *state)
{
    BUG_IF(state->n_running > work->max_running || state->n_waiting > work->max_waiting ||
           state->n_adapters > work->max_adapters || state->n_payers > work->max_payers);
    BUG_IF(state->max_seqs > state->max_rows || state->n_running > state->max_seqs);
    for (int i = 0; i < state->n_running; i++)
        BUG_IF((i > 0 && state->running[i - 1].order >= state->running[i].order) ||
               state->running[i].payer >= state->n_payers);
    for (int i = 0; i < state->n_waiting; i++)
        BUG_IF((i > 0 && state->waiting[i - 1].order >= state->waiting[i].order) ||
               state->waiting[i].payer >= state->n_payers);
}

/* ---- the order --------------------------------------------------------------------------- */

static uint64_t head_order(const struct planning *p, const struct queue *q)
{
    return q->running != NONE ? p->state->running[q->running].order
                              : p->state->waiting[q->waiting].order;
}

/* By what is noted in the queues, which stays as it is while they are in the heap. */
static bool queue_before(const struct planning *p, int a, int b)
{
    const struct queue *x = &p->work->queues[a], *y = &p->work->queues[b];
    if (x->priority != y->priority)
        return x->priority > y->priority;
    if (x->counter < y->counter || x->counter > y->counter)
        return x->counter < y->counter;
    if (x->share < y->share || x->share > y->share)
        return x->share < y->share;
    return head_order(p, x) < head_order(p, y);
}

/* Of the running ones, those first that are last in the order. */
static bool leaves_before(const struct planning *p, int a, int b)
{
    const struct sched_seq *x = &p->state->running[a], *y = &p->state->running[b];
    double counter_x = p->work->payers[x->payer].counter;
    double counter_y = p->work->payers[y->payer].counter;
    if (x->priority != y->priority)
        return x->priority < y->priority;
    if (counter_x < counter_y || counter_x > counter_y)
        return counter_x > counter_y;
    return x->order > y->order;
}

typedef bool before_function(const struct planning *p, int a, int b);

static void heap_push(const struct planning *p, struct heap_of_ints *h, int item,
                      before_function *before)
{
    int *heap = h->items, i = h->n++;
    for (; i > 0 && before(p, item, heap[(i - 1) / 2]); i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = item;
}

static int heap_pop(const struct planning *p, struct heap_of_ints *h, before_function *before)
{
    int *heap = h->items, n = --h->n;
    int top = heap[0], item = heap[n], i = 0;
    for (int child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(p, heap[child + 1], heap[child]))
            child++;
        if (!before(p, heap[child], item))
            break;
        heap[i] = heap[child];
    }
    heap[i] = item;
    return top;
}

/* ---- blocks and preemption --------------------------------------------------------------- */

static void preempt(struct planning *p, int index)
{
    const struct sched_seq *s = &p->state->running[index];
    p->plan->preempt[p->plan->n_preempt++] = index;
    p->work->running[index].gone = true;
    p->work->payers[s->payer].n_running--;
    p->n_blocks_free += s->n_blocks - s->n_blocks_shared;
    p->n_blocks_listed -= s->n_blocks;
    if (p->n_blocks_free < p->state->n_blocks - p->n_blocks_listed)
        p->n_blocks_free = p->state->n_blocks - p->n_blocks_listed;
    p->n_kept--;
    for (int i = 0; i < s->n_adapters; i++) {
        int a = s->adapters[i];
        BUG_IF(p->work->pins[a] < 1);
        if (--p->work->pins[a] == 0)
            p->adapter_bytes_free += p->state->adapters[a].n_bytes;
    }
}

static int blocks_wanted(const struct sched_seq *s)
{
    int n = blocks_for(s->n_tokens) - s->n_blocks;
    return n > 0 ? n : 0;
}

/* The oldest that isn't preempted, or NONE. */
static int anchor(const struct planning *p)
{
    for (int i = 0; i < p->state->n_running; i++)
        if (!p->work->running[i].gone)
            return i;
    return NONE;
}

/* What was granted to it in this plan is free again. */
static void take_back(struct planning *p, int index)
{
    const struct sched_seq *s = &p->state->running[index];
    struct running_note *note = &p->work->running[index];
    p->n_rows_left += note->n_rows;
    p->n_blocks_free += note->n_blocks;
    p->n_blocks_listed -= note->n_blocks;
    p->n_growing -= s->n_blocks + note->n_blocks < s->n_blocks_max;
    note->n_rows = note->n_blocks = 0;
}

/* Preempts from the end of the order until what those that stay want is there. Asking goes from
 * the front, the anchor first; it is the same to look from the end, how much goes and how much is
 * then still wanted. */
static void make_room(struct planning *p, int wanted)
{
    int kept = anchor(p);
    struct heap_of_ints *leaving = &p->work->leaving;
    p->plan->want.n_blocks_running = wanted - p->n_blocks_free;
    leaving->n = 0;
    for (int i = 0; i < p->state->n_running; i++)
        if (!p->work->running[i].gone && i != kept)
            heap_push(p, leaving, i, leaves_before);
    while (wanted > p->n_blocks_free) {
        BUG_IF(leaving->n == 0); /* the anchor alone: was never acceptable */
        int last = heap_pop(p, leaving, leaves_before);
        wanted -= blocks_wanted(&p->state->running[last]);
        preempt(p, last);
    }
}

static void grant_blocks(struct planning *p)
{
    int wanted = 0;
    for (int i = 0; i < p->state->n_running; i++)
        if (!p->work->running[i].gone)
            wanted += blocks_wanted(&p->state->running[i]);
    if (wanted > p->n_blocks_free)
        make_room(p, wanted);
    for (int i = 0; i < p->state->n_running; i++) {
        const struct sched_seq *s = &p->state->running[i];
        struct running_note *note = &p->work->running[i];
        if (note->gone)
            continue;
        note->n_blocks = blocks_wanted(s);
        p->n_blocks_free -= note->n_blocks;
        p->n_blocks_listed += note->n_blocks;
        p->n_growing += s->n_blocks + note->n_blocks < s->n_blocks_max;
    }
}

/* ---- rows -------------------------------------------------------------------------------- */

static bool is_favoured(const struct planning *p, int payer, int priority)
{
    return priority > 0 || p->work->payers[payer].counter < p->state->level;
}

/* Its prompt isn't held back for others' sake. Who is favoured with a negative priority is nobody
 * for whom those of a higher one should wait. */
static bool is_uncapped(const struct planning *p, int payer, int priority)
{
    return priority >= 0 && is_favoured(p, payer, priority);
}

/* What prompts that are held back may have now. */
static int rows_under_cap(const struct planning *p)
{
    int n = p->n_rows_cap - p->n_rows_prompts;
    return min_of(n > 0 ? n : 0, p->n_rows_left);
}

static int pause_rows(const struct planning *p)
{
    return p->state->max_rows / PAUSE_PART + (p->state->max_rows < PAUSE_PART);
}

/* Rows of a prompt are given. */
static void charge(struct planning *p, int payer, int n_rows)
{
    p->work->payers[payer].counter += n_rows * SCHED_COST_PROMPT / p->state->payers[payer].weight;
    p->n_rows_left -= n_rows;
    p->n_rows_prompts += n_rows;
}

static void grant_decodes(struct planning *p)
{
    for (int i = 0; i < p->state->n_running; i++) {
        const struct sched_seq *s = &p->state->running[i];
        if (p->work->running[i].gone)
            continue;
        BUG_IF(s->n_tokens - s->n_cached < 1);
        if (s->n_tokens - s->n_cached == 1) {
            p->work->running[i].n_rows = 1;
            p->n_rows_left--;
        }
    }
    BUG_IF(p->n_rows_left < 0);
}

/* Rows for the rest of a prompt, or for as much of it as n_max. */
static void grant_prompt(struct planning *p, int index, int n_max)
{
    const struct sched_seq *s = &p->state->running[index];
    struct running_note *note = &p->work->running[index];
    int left = s->n_tokens - s->n_cached - note->n_rows;
    int n = min_of(left, min_of(n_max, p->n_rows_left));
    note->n_rows += n;
    p->ends |= n == left && n > 0 && is_favoured(p, s->payer, s->priority);
    charge(p, s->payer, n);
}

/* ---- queues ------------------------------------------------------------------------------ */

static struct queue *queue_of(struct planning *p, const struct sched_seq *s)
{
    struct payer_note *payer = &p->work->payers[s->payer];
    for (int q = payer->queues; q != NONE; q = p->work->queues[q].sibling)
        if (p->work->queues[q].priority == s->priority)
            return &p->work->queues[q];
    struct queue *new = &p->work->queues[p->work->n_queues];
    *new = (struct queue){.payer = s->payer,
                          .priority = s->priority,
                          .running = NONE,
                          .running_last = NONE,
                          .waiting = NONE,
                          .waiting_last = NONE,
                          .sibling = payer->queues};
    payer->queues = p->work->n_queues++;
    return new;
}

static void push_queue(struct planning *p, int q)
{
    struct queue *queue = &p->work->queues[q];
    queue->counter = p->work->payers[queue->payer].counter;
    queue->share = p->work->payers[queue->payer].n_running / p->state->payers[queue->payer].weight;
    heap_push(p, &p->work->heap, q, queue_before);
}

/* Of those in prefill, and, if anybody may be admitted, of those waiting. */
static void make_queues(struct planning *p)
{
    for (int i = 0; i < p->state->n_running; i++) {
        const struct sched_seq *s = &p->state->running[i];
        struct running_note *note = &p->work->running[i];
        if (note->gone || s->n_tokens - s->n_cached == 1)
            continue;
        struct queue *q = queue_of(p, s);
        note->next = NONE;
        *(q->running == NONE ? &q->running : &p->work->running[q->running_last].next) = i;
        q->running_last = i;
    }
    for (int i = 0; i < p->state->n_waiting; i++) {
        const struct sched_seq *s = &p->state->waiting[i];
        struct waiting_note *note = &p->work->waiting[i];
        *note = (struct waiting_note){.next = NONE, .seen = s->loading};
        if (note->seen || p->closed)
            continue;
        struct queue *q = queue_of(p, s);
        *(q->waiting == NONE ? &q->waiting : &p->work->waiting[q->waiting_last].next) = i;
        q->waiting_last = i;
    }
}

/* Takes those out at the front that are done with; false: nobody is left. */
static bool clean_queue(const struct planning *p, struct queue *q)
{
    while (q->waiting != NONE && (p->closed || p->work->waiting[q->waiting].seen))
        q->waiting = p->closed ? NONE : p->work->waiting[q->waiting].next;
    return q->running != NONE || q->waiting != NONE;
}

/* ---- admission --------------------------------------------------------------------------- */

/* Bytes its adapters need that nobody pins yet. */
static size_t bytes_to_pin(const struct planning *p, const struct sched_seq *s)
{
    size_t n_bytes = 0;
    for (int i = 0; i < s->n_adapters; i++)
        if (p->work->pins[s->adapters[i]] == 0)
            n_bytes += p->state->adapters[s->adapters[i]].n_bytes;
    return n_bytes;
}

static bool is_overdue(const struct sched_seq *s)
{
    return s->n_bypassed >= SCHED_BYPASS_MAX;
}

static bool can_spare(const struct planning *p, int64_t n_rows)
{
    return (p->spent + n_rows) * SCHED_SPARE_PART <= p->state->carry.spare;
}

/* Rows to compute again if it is preempted; or, where nobody wants its blocks but its place, those
 * that it doesn't find again in the prefix cache. Then it is the coming and going that costs: taken
 * for a block. */
static int rows_to_repeat(const struct sched_seq *s, bool keeps_blocks)
{
    int n_lost = s->n_cached - s->n_blocks_cached * BLOCK_TOKENS;
    int least = min_of(s->n_cached, BLOCK_TOKENS);
    if (!keeps_blocks)
        return s->n_cached;
    return n_lost > least ? n_lost : least;
}

/* Preempts those that a favoured sequence may displace, the last in the order first, until there
 * are a place and its blocks; or nobody, if that is not to be had for the spare rows. Once in a
 * plan. Blocks in use that it or admitted ones found may be used by those that go only: so all that
 * was found counts as to be taken from the free. */
static bool make_way(struct planning *p, const struct sched_seq *s)
{
    struct heap_of_ints *leaving = &p->work->leaving;
    int kept = anchor(p), n = 0;
    int64_t cost = 0;
    if (p->made_way)
        return false;
    p->made_way = true;
    leaving->n = 0;
    for (int i = 0; i < p->state->n_running; i++) {
        const struct sched_seq *r = &p->state->running[i];
        if (!p->work->running[i].gone && i != kept && r->n_tokens - r->n_cached == 1 &&
            (r->priority < s->priority ||
             (r->priority == s->priority && !is_favoured(p, r->payer, r->priority))))
            heap_push(p, leaving, i, leaves_before);
    }
    /* Popped ones gather behind the heap, in the same memory. */
    int n_all = leaving->n, n_free = p->n_blocks_free - p->n_growing - p->n_found_in_use;
    bool keeps_blocks = n_free >= blocks_for(s->n_tokens);
    while (n == 0 || n_free < blocks_for(s->n_tokens)) {
        if (leaving->n == 0)
            return false;
        int last = heap_pop(p, leaving, leaves_before);
        leaving->items[n_all - ++n] = last;
        n_free += p->state->running[last].n_blocks - p->state->running[last].n_blocks_shared;
        cost += rows_to_repeat(&p->state->running[last], keeps_blocks);
        if (!can_spare(p, cost))
            return false;
    }
    for (int i = 1; i <= n; i++) {
        take_back(p, leaving->items[n_all - i]);
        preempt(p, leaving->items[n_all - i]);
    }
    p->spent += cost;
    return true;
}

static void admit(struct planning *p, int index, int n_rows_max, int n_blocks, size_t n_bytes)
{
    const struct sched_seq *s = &p->state->waiting[index];
    int n_rows = min_of(s->n_tokens - s->n_found * BLOCK_TOKENS, n_rows_max);
    BUG_IF(n_rows < 1);
    p->n_blocks_free -= n_blocks + s->n_found_idle;
    p->n_blocks_listed += n_blocks + s->n_found;
    p->n_found_in_use += s->n_found - s->n_found_idle;
    p->adapter_bytes_free -= n_bytes;
    for (int a = 0; a < s->n_adapters; a++)
        p->work->pins[s->adapters[a]]++;
    p->ends |= n_rows == s->n_tokens - s->n_found * BLOCK_TOKENS &&
               is_favoured(p, s->payer, s->priority);
    charge(p, s->payer, n_rows);
    p->work->payers[s->payer].n_running++;
    p->n_kept++;
    p->n_growing += n_blocks + s->n_found < s->n_blocks_max;
    p->work->waiting[index].admitted = true;
    p->plan->admit[p->plan->n_admit++] = (struct sched_grant){index, n_rows, n_blocks};
    p->plan->n_bypassed = p->n_passed; /* those passed by later had nobody admitted behind them */
}

/* Admits a waiting sequence, with n_rows_max rows at most, or passes it by. */
static void consider(struct planning *p, int index, int n_rows_max)
{
    const struct sched_state *state = p->state;
    const struct sched_seq *s = &state->waiting[index];
    bool overdue = is_overdue(s);
    bool favoured = overdue || p->n_kept == 0 || is_favoured(p, s->payer, s->priority);
    p->work->waiting[index].seen = true;
    if (p->tight && !favoured)
        return;
    size_t n_bytes = bytes_to_pin(p, s);
    if ((p->barrier && s->n_adapters > 0) || n_bytes > p->adapter_bytes_free) {
        p->plan->bypassed[p->n_passed++] = index;
        if (n_bytes > p->adapter_bytes_free && p->plan->want.adapter_bytes == 0)
            p->plan->want.adapter_bytes = n_bytes - p->adapter_bytes_free;
        p->barrier |= overdue;
        p->closed |= overdue && n_bytes > state->adapter_bytes;
        return;
    }
    int n_blocks = blocks_for(s->n_tokens) - s->n_found, need = n_blocks + s->n_found_idle;
    int room = p->n_blocks_free - p->n_growing - (favoured ? 0 : state->n_blocks_kept);
    int n_seqs = state->max_seqs - p->n_kept - (favoured ? 0 : state->n_seqs_kept);
    if (p->blocks_short)
        room = min_of(room, p->n_blocks_kept_left);
    bool fits = need <= room && n_seqs > 0;
    if (need > room && n_seqs > 0 && p->plan->want.n_blocks_waiting == 0)
        p->plan->want.n_blocks_waiting = need - room;
    if (fits || (is_favoured(p, s->payer, s->priority) && make_way(p, s))) {
        p->n_blocks_kept_left -= p->blocks_short && fits ? need : 0;
        p->closed = !fits; /* what others would find may have gone */
        admit(p, index, n_rows_max, n_blocks, n_bytes);
        /* It may yet fail to be placed; then pins must go away for it, too. */
        p->barrier |= s->n_adapters > 0 && overdue;
        return;
    }
    if (!p->tight || (need > room && !p->blocks_short))
        p->plan->bypassed[p->n_passed++] = index;
    if (need > room && !p->blocks_short) {
        p->blocks_short = true;
        p->n_blocks_kept_left = state->n_blocks_kept;
    }
    p->tight = true;
    bool none_left = p->n_kept == state->max_seqs ||
                     (state->n_blocks_kept == 0 && state->n_seqs_kept == 0);
    p->closed = overdue || (none_left && state->carry.spare <= 0);
}

/* The oldest waiting one that wasn't looked at, if it is its turn; or NONE. Once somebody lacks
 * blocks or a place, whoever is admitted is favoured, which is no turn. */
static int oldest_to_admit(struct planning *p)
{
    const struct sched_carry *carry = &p->state->carry;
    if (p->closed || p->tight || p->turn_taken || carry->turn_admissions > p->plan->n_admit ||
        carry->turn_rows > 0)
        return NONE;
    while (p->oldest < p->state->n_waiting && p->work->waiting[p->oldest].seen)
        p->oldest++;
    return p->oldest < p->state->n_waiting ? p->oldest : NONE;
}

/* ---- rows and places, in the order ------------------------------------------------------- */

/* Do others' prompts pause, because one of a favoured sequence comes to its end in this step? */
static bool pauses(struct planning *p)
{
    const struct prompt_cap *cap = &p->state->carry.cap;
    bool capped = p->n_rows_cap < p->state->max_rows;
    if (p->paused || !p->ends || (capped && cap->paused))
        return p->paused;
    if (capped && prompt_cap_may_pause(cap, p->n_rows_left)) {
        p->paused = true;
    } else if (can_spare(p, pause_rows(p))) {
        p->paused = true;
        p->spent += pause_rows(p);
    }
    return p->paused;
}

/* One turn: rows for a prompt, or a waiting sequence considered; false when there is nobody. */
static bool serve_next(struct planning *p)
{
    int index = oldest_to_admit(p);
    if (index != NONE) {
        int n = p->plan->n_admit;
        consider(p, index, p->n_rows_left);
        if (p->plan->n_admit > n) {
            p->turn_taken = true;
            p->plan->carry.turn_admissions = SCHED_TURN_ADMISSIONS;
            p->plan->carry.turn_rows = (int64_t)SCHED_TURN_ROWS * p->state->waiting[index].n_tokens;
        }
        return true;
    }
    if (p->work->heap.n == 0)
        return false;
    int q = heap_pop(p, &p->work->heap, queue_before);
    struct queue *queue = &p->work->queues[q];
    if (queue->counter < p->work->payers[queue->payer].counter && clean_queue(p, queue)) {
        push_queue(p, q);
        return true;
    }
    if (!clean_queue(p, queue))
        return true;
    bool favoured = is_favoured(p, queue->payer, queue->priority);
    int n_rows_max = is_uncapped(p, queue->payer, queue->priority) ? p->n_rows_left
                                                                   : rows_under_cap(p);
    bool may_begin = favoured || !p->tight, runs = queue->running != NONE;
    if (n_rows_max == 0 || (!runs && !may_begin))
        return true; /* nobody of the queue gets anything */
    if (!favoured && (runs || p->n_kept < p->state->max_seqs) && pauses(p))
        return true; /* likewise */
    if (runs) {
        grant_prompt(p, queue->running, n_rows_max);
        queue->running = p->work->running[queue->running].next;
    } else {
        consider(p, queue->waiting, n_rows_max);
    }
    if (clean_queue(p, queue))
        push_queue(p, q);
    return true;
}

static void share_rows(struct planning *p)
{
    int kept = anchor(p), max_rows = p->state->max_rows;
    p->cap_view.decodes = p->n_rows_left < max_rows;
    p->n_rows_cap = prompt_cap_rows(&p->state->carry.cap, max_rows, p->cap_view);
    p->closed = p->plan->n_preempt > 0 || p->n_rows_left == 0 ||
                (p->n_kept == p->state->max_seqs && p->state->carry.spare <= 0);
    make_queues(p);
    if (kept != NONE && p->work->running[kept].n_rows == 0) {
        int part = max_rows / ANCHOR_PART;
        grant_prompt(p, kept, part > 0 ? part : 1);
    }
    for (int i = 0; i < p->state->n_waiting && !p->closed && p->n_rows_left > 0; i++)
        if (!p->work->waiting[i].seen && is_overdue(&p->state->waiting[i]))
            consider(p, i, p->n_rows_left);
    p->work->heap.n = 0;
    for (int q = 0; q < p->work->n_queues; q++)
        if (clean_queue(p, &p->work->queues[q]))
            push_queue(p, q);
    while (p->n_rows_left > 0 && serve_next(p))
        ;
}

static void carry_over(struct planning *p)
{
    const struct sched_carry *before = &p->state->carry;
    struct sched_carry *after = &p->plan->carry;
    int64_t n_rows = p->state->max_rows - p->n_rows_left;
    int64_t most = (int64_t)SPARE_STEPS * p->state->max_rows * SCHED_SPARE_PART;
    if (!p->turn_taken) {
        after->turn_admissions = before->turn_admissions -
                                 min_of(before->turn_admissions, p->plan->n_admit);
        after->turn_rows = before->turn_rows > n_rows ? before->turn_rows - n_rows : 0;
    }
    after->spare = before->spare + n_rows - p->spent * SCHED_SPARE_PART;
    if (after->spare > most)
        after->spare = most;
    after->cap = before->cap;
    if (n_rows > 0)
        after->cap = prompt_cap_next(&before->cap, p->n_rows_prompts, p->cap_view.seen, p->paused);
}

static bool waits_before(const struct planning *p, int a, int b)
{
    const struct sched_seq *x = &p->state->waiting[a], *y = &p->state->waiting[b];
    double counter_x = p->work->payers[x->payer].counter;
    double counter_y = p->work->payers[y->payer].counter;
    if (x->priority != y->priority)
        return x->priority > y->priority;
    return counter_x < counter_y; /* by age they come anyhow */
}

static void list_next(struct planning *p)
{
    int *next = p->plan->next, n = 0;
    for (int i = 0; i < p->state->n_waiting; i++) {
        if (p->work->waiting[i].admitted)
            continue;
        if (n == SCHED_NEXT_MAX && !waits_before(p, i, next[n - 1]))
            continue;
        int at = n < SCHED_NEXT_MAX ? n++ : n - 1;
        for (; at > 1 && waits_before(p, i, next[at - 1]); at--) /* the oldest stays in front */
            next[at] = next[at - 1];
        next[at] = i;
    }
    p->plan->n_next = n;
}

/* Running ones with rows, by age. Those in prefill that got none stay where they are. */
static void list_run(struct planning *p)
{
    for (int i = 0; i < p->state->n_running; i++) {
        const struct running_note *note = &p->work->running[i];
        if (note->n_rows > 0)
            p->plan->run[p->plan->n_run++] = (struct sched_grant){i, note->n_rows, note->n_blocks};
        else
            BUG_IF(note->n_blocks != 0); /* prompts have their blocks since admission */
    }
}

void sched_plan_make(struct sched_plan *plan, const struct sched_state *state)
{
    struct sched_work *work = plan->work;
    check(work, state);
    plan->n_preempt = plan->n_run = plan->n_admit = plan->n_bypassed = 0;
    plan->want = (struct sched_want){0};
    work->n_queues = 0;
    struct planning p = {.plan = plan,
                         .work = work,
                         .state = state,
                         .n_blocks_free = state->n_blocks_free,
                         .adapter_bytes_free = state->adapter_bytes_free,
                         .n_rows_left = state->max_rows,
                         .n_kept = state->n_running};
    for (int i = 0; i < state->n_adapters; i++)
        work->pins[i] = state->adapters[i].n_pins;
    for (int i = 0; i < state->n_payers; i++) {
        work->payers[i] = (struct payer_note){.counter = state->payers[i].counter, .queues = NONE};
    }
    for (int i = 0; i < state->n_running; i++) {
        work->running[i] = (struct running_note){.next = NONE};
        work->payers[state->running[i].payer].n_running++;
        p.n_blocks_listed += state->running[i].n_blocks;
        p.cap_view.seen |= is_uncapped(&p, state->running[i].payer, state->running[i].priority);
    }
    int n_there = state->n_running;
    for (int i = 0; i < state->n_waiting; i++) {
        p.cap_view.seen |= is_uncapped(&p, state->waiting[i].payer, state->waiting[i].priority);
        n_there += !state->waiting[i].loading;
    }
    p.cap_view.queues = n_there > state->max_seqs;
    if (state->force_preempt >= 0)
        preempt(&p, state->force_preempt);
    grant_blocks(&p);
    grant_decodes(&p);
    share_rows(&p);
    carry_over(&p);
    list_next(&p);
    list_run(&p);
}
