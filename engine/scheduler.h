/* scheduler: who computes what in the next step. A pure function of the state it is shown: no
 * clock, no device, no allocation, nothing remembered between calls.
 *
 * Words: a running sequence has KV blocks and pins; a waiting one has neither (it is new, or was
 * preempted). Tokens below n_cached have their K and V in the cache; the rest up to n_tokens are to
 * be computed; a running sequence with exactly one to compute is decoding, with more it is in
 * prefill. */
#ifndef TRIBUTARY_ENGINE_SCHEDULER_H
#define TRIBUTARY_ENGINE_SCHEDULER_H

#include "engine/engine.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    /* So often may sequences behind it be admitted while its adapters don't fit; then nobody who
     * needs an adapter is, until it is in. */
    SCHED_BYPASS_MAX = 64,
};

struct sched_seq {
    uint64_t order; /* of arrival; unique; smaller is older */
    int n_tokens;   /* known: prompt and generated */
    int n_cached;   /* running only, else 0 */
    int n_blocks;   /* running only, else 0 */
    int n_bypassed; /* waiting: in how many plans it was skipped so far */
    int n_adapters;
    int adapters[ENGINE_ADAPTERS_MAX]; /* indexes into sched_state.adapters; distinct */
    int n_blocks_max;                  /* blocks it will have at its longest */
};

struct sched_adapter {
    size_t n_bytes;
    int n_pins; /* by running sequences; 0: not pinned, resident or not */
};

struct sched_state {
    const struct sched_seq *running; /* [n_running] ascending by order */
    int n_running;
    const struct sched_seq *waiting; /* [n_waiting] ascending by order */
    int n_waiting;
    const struct sched_adapter *adapters; /* [n_adapters] */
    int n_adapters;
    size_t adapter_bytes_free; /* of the pool, what isn't pinned */
    int n_blocks_free;
    int max_seqs, max_rows; /* max_seqs <= max_rows */
    int force_preempt;      /* a running sequence to preempt whatever happens (tests), or -1 */
};

struct sched_grant {
    int index;    /* in running or in waiting */
    int n_rows;   /* tokens to compute: n_cached to n_cached + n_rows; >= 1 */
    int n_blocks; /* to take from the KV pool before */
};

struct sched_plan {
    /* In the order in which they must be carried out: preempt, run, admit. */
    int *preempt; /* [n_preempt] indexes of running, youngest first */
    int n_preempt;
    struct sched_grant *run; /* [n_run] running ones that compute, ascending by order */
    int n_run;
    struct sched_grant *admit; /* [n_admit] waiting ones that begin, ascending by order */
    int n_admit;
    int *bypassed; /* [n_bypassed] waiting ones skipped while one behind them was admitted */
    int n_bypassed;

    int *pins;       /* working memory: pins of each adapter */
    int max_running; /* what the arrays are sized for */
    int max_waiting, max_adapters;
};

void sched_plan_init(struct sched_plan *p, int max_running, int max_waiting, int max_adapters);
void sched_plan_release(struct sched_plan *p);

/* Fills *plan. Guarantees:
 *   - rows sum to at most max_rows; every decoding sequence that isn't preempted has its row;
 *   - blocks granted sum to at most what is free after the preemptions;
 *   - the oldest running sequence is never preempted for want of blocks, so that something always
 *     finishes;
 *   - waiting ones are admitted oldest first, except past those whose adapters don't fit now, and
 * past such a one at most SCHED_BYPASS_MAX times;
 *   - no admission in a step that preempts, so that blocks don't go round in circles. */
void sched_plan_make(struct sched_plan *plan, const struct sched_state *state);

#endif
