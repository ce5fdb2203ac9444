/* scheduler: see scheduler.h.
 *
 * Continuous batching (Yu et al., Orca, OSDI '22) with chunked prefill (Agrawal et al., Sarathi,
 * arXiv:2308.16369): each step, decoding sequences get one row each, and what is left of max_rows
 * is given to prompts, oldest first, so that a long prompt neither stops the decodes nor waits for
 * them.
 *
 * Blocks. A sequence is admitted with all the blocks its known tokens need, and takes one more each
 * BLOCK_TOKENS tokens. Admission leaves one free block for each that may still grow, so that a step
 * later nobody need leave. When a decode finds no free block, the youngest running sequence is
 * preempted by recompute: its blocks are dropped and it waits, at its old place in the order, to
 * prefill all its tokens again. The one that asks may itself be the youngest. Since preemption
 * takes the youngest and grants go to the oldest first, the oldest always advances; alone, it fits,
 * because no request is accepted that could outgrow the cache.
 *
 * Adapters. A waiting sequence needs the bytes of those of its adapters that nobody pins (resident
 * and unpinned ones count: they hold bytes that an eviction could free). If they don't fit, it is
 * passed by; sequences of the base model or of pinned adapters behind it may begin. A sequence
 * passed by too often becomes a barrier: nothing that needs an adapter begins behind it, so pins
 * only go away, and when they are gone it fits. The plan counts bytes; if the pool then fails to
 * place an adapter, for fragmentation, the engine leaves that sequence waiting as if passed by. */
#include "engine/scheduler.h"

#include "kernels/ops.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

void sched_plan_init(struct sched_plan *p, int max_running, int max_waiting, int max_adapters)
{
    *p = (struct sched_plan){
        .max_running = max_running, .max_waiting = max_waiting, .max_adapters = max_adapters};
    p->preempt = xcalloc((size_t)max_running, sizeof *p->preempt);
    p->run = xcalloc((size_t)max_running, sizeof *p->run);
    p->admit = xcalloc((size_t)max_running, sizeof *p->admit);
    p->bypassed = xcalloc((size_t)max_waiting, sizeof *p->bypassed);
    p->pins = xcalloc((size_t)max_adapters, sizeof *p->pins);
}

void sched_plan_release(struct sched_plan *p)
{
    free(p->preempt);
    free(p->run);
    free(p->admit);
    free(p->bypassed);
    free(p->pins);
    *p = (struct sched_plan){0};
}

static int blocks_for(int n_tokens)
{
    return (n_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
}

struct planning {
    struct sched_plan *plan;
    const struct sched_state *state;
    int n_blocks_free;
    size_t adapter_bytes_free;
    int n_rows_left;
    int n_kept;    /* running and not preempted */
    int n_growing; /* of these, those that may need another block */
};

static void check(const struct sched_plan *plan, const struct sched_state *state)
{
    BUG_IF(state->n_running > plan->max_running || state->n_waiting > plan->max_waiting ||
           state->n_adapters > plan->max_adapters);
    BUG_IF(state->max_seqs > state->max_rows || state->n_running > state->max_seqs);
    for (int i = 1; i < state->n_running; i++)
        BUG_IF(state->running[i - 1].order >= state->running[i].order);
    for (int i = 1; i < state->n_waiting; i++)
        BUG_IF(state->waiting[i - 1].order >= state->waiting[i].order);
}

static bool is_preempted(const struct planning *p, int index)
{
    for (int i = 0; i < p->plan->n_preempt; i++)
        if (p->plan->preempt[i] == index)
            return true;
    return false;
}

static void preempt(struct planning *p, int index)
{
    const struct sched_seq *s = &p->state->running[index];
    p->plan->preempt[p->plan->n_preempt++] = index;
    p->n_blocks_free += s->n_blocks;
    p->n_kept--;
    for (int i = 0; i < s->n_adapters; i++) {
        int a = s->adapters[i];
        BUG_IF(p->plan->pins[a] < 1);
        if (--p->plan->pins[a] == 0)
            p->adapter_bytes_free += p->state->adapters[a].n_bytes;
    }
}

/* Blocks for everyone who needs one now, oldest first, preempting from the youngest end. */
static void grant_blocks(struct planning *p)
{
    int youngest = p->state->n_running - 1;
    for (int i = 0; i <= youngest; i++) {
        const struct sched_seq *s = &p->state->running[i];
        if (is_preempted(p, i))
            continue;
        int need = blocks_for(s->n_tokens) - s->n_blocks;
        while (need > p->n_blocks_free) {
            while (is_preempted(p, youngest))
                youngest--;
            BUG_IF(youngest == 0 && i == 0); /* alone, and still not enough: was never acceptable */
            preempt(p, youngest);
            if (youngest == i)
                break;
        }
        if (is_preempted(p, i))
            continue;
        if (need > 0)
            p->n_blocks_free -= need;
        p->n_growing += s->n_blocks + (need > 0 ? need : 0) < s->n_blocks_max;
        p->plan->run[p->plan->n_run++] = (struct sched_grant){.index = i,
                                                              .n_blocks = need > 0 ? need : 0};
    }
}

/* One row for each decode, then chunks of prompts. Those that get none leave the list. */
static void grant_rows(struct planning *p)
{
    struct sched_plan *plan = p->plan;
    for (int i = 0; i < plan->n_run; i++) {
        const struct sched_seq *s = &p->state->running[plan->run[i].index];
        if (s->n_tokens - s->n_cached == 1) {
            plan->run[i].n_rows = 1;
            p->n_rows_left--;
        }
    }
    BUG_IF(p->n_rows_left < 0);
    int n = 0;
    for (int i = 0; i < plan->n_run; i++) {
        const struct sched_seq *s = &p->state->running[plan->run[i].index];
        int todo = s->n_tokens - s->n_cached;
        BUG_IF(todo < 1);
        if (plan->run[i].n_rows == 0) {
            plan->run[i].n_rows = todo < p->n_rows_left ? todo : p->n_rows_left;
            p->n_rows_left -= plan->run[i].n_rows;
        }
        if (plan->run[i].n_rows > 0) {
            plan->run[n++] = plan->run[i];
        } else {
            BUG_IF(plan->run[i].n_blocks != 0); /* prompts have their blocks since admission */
        }
    }
    plan->n_run = n;
}

/* Bytes its adapters need that nobody pins yet. */
static size_t bytes_to_pin(const struct planning *p, const struct sched_seq *s)
{
    size_t n_bytes = 0;
    for (int i = 0; i < s->n_adapters; i++)
        if (p->plan->pins[s->adapters[i]] == 0)
            n_bytes += p->state->adapters[s->adapters[i]].n_bytes;
    return n_bytes;
}

static void admit(struct planning *p)
{
    const struct sched_state *state = p->state;
    struct sched_plan *plan = p->plan;
    bool barrier = false;
    int n_passed = 0, last_admitted = -1;
    for (int i = 0; i < state->n_waiting; i++) {
        if (p->n_kept == state->max_seqs || p->n_rows_left == 0)
            break;
        const struct sched_seq *s = &state->waiting[i];
        size_t n_bytes = bytes_to_pin(p, s);
        if ((barrier && s->n_adapters > 0) || n_bytes > p->adapter_bytes_free) {
            plan->bypassed[n_passed++] = i;
            barrier |= s->n_bypassed >= SCHED_BYPASS_MAX;
            continue;
        }
        int need = blocks_for(s->n_tokens);
        if (need + p->n_growing > p->n_blocks_free)
            break; /* blocks are the same for everyone: first come, first served */
        p->n_blocks_free -= need;
        p->adapter_bytes_free -= n_bytes;
        for (int a = 0; a < s->n_adapters; a++)
            plan->pins[s->adapters[a]]++;
        int n_rows = s->n_tokens < p->n_rows_left ? s->n_tokens : p->n_rows_left;
        p->n_rows_left -= n_rows;
        p->n_kept++;
        p->n_growing += need < s->n_blocks_max;
        plan->admit[plan->n_admit++] = (struct sched_grant){i, n_rows, need};
        last_admitted = i;
        /* It may yet fail to be placed; then pins must go away for it, too. */
        barrier |= s->n_adapters > 0 && s->n_bypassed >= SCHED_BYPASS_MAX;
    }
    while (n_passed > 0 && plan->bypassed[n_passed - 1] > last_admitted)
        n_passed--;
    plan->n_bypassed = n_passed;
}

void sched_plan_make(struct sched_plan *plan, const struct sched_state *state)
{
    check(plan, state);
    plan->n_preempt = plan->n_run = plan->n_admit = plan->n_bypassed = 0;
    for (int i = 0; i < state->n_adapters; i++)
        plan->pins[i] = state->adapters[i].n_pins;
    struct planning p = {.plan = plan,
                         .state = state,
                         .n_blocks_free = state->n_blocks_free,
                         .adapter_bytes_free = state->adapter_bytes_free,
                         .n_rows_left = state->max_rows,
                         .n_kept = state->n_running};
    if (state->force_preempt >= 0)
        preempt(&p, state->force_preempt);
    grant_blocks(&p);
    grant_rows(&p);
    if (plan->n_preempt == 0)
        admit(&p);
}
