/* scheduler: who computes what in the next step. A pure function of the state it is shown: no
 * clock, no device, no allocation, nothing remembered between calls.
 *
 * Words: a running sequence has KV blocks and pins; a waiting one has neither (it is new, or was
 * preempted). Tokens below n_cached have their K and V in the cache; the rest up to n_tokens are to
 * be computed; a running sequence with exactly one to compute is decoding, with more it is in
 * prefill. A payer is whoever's share a sequence comes out of; its counter is what it has had so
 * far (engine/payers.h keeps it), in tokens divided by its weight.
 *
 * The order. Of two sequences that goes first which has the higher priority; then whose payer has
 * the smaller counter; then whose payer has less running for its weight; then which is older. */
#ifndef TRIBUTARY_ENGINE_SCHEDULER_H
#define TRIBUTARY_ENGINE_SCHEDULER_H

#include "engine/engine.h"
#include "engine/prompt_cap.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    /* In so many plans may a sequence be passed by in favour of others behind it, because its
     * adapters or its blocks don't fit; then it goes first, and nobody passes it. (Under the cap
     * admissions are spread over more plans, so fewer pass in each.) */
    SCHED_BYPASS_MAX = 96,
    /* The oldest waiting sequence's turn, whatever the order says: after so many admissions, and so
     * many times the rows that the one before it had to compute. */
    SCHED_TURN_ADMISSIONS = 32,
    SCHED_TURN_ROWS = 64,
    /* Of the rows computed, one in so many may be spent on being quick for those who are favoured
     * (sched_carry.spare). */
    SCHED_SPARE_PART = 64,
    SCHED_NEXT_MAX = 8, /* sched_plan.next */
    /* What a token costs its payer. One that is generated holds a place in as many steps as there
     * are tokens, a prompt's tokens share steps. */
    SCHED_COST_PROMPT = 1,
    SCHED_COST_GENERATED = 2,
};

struct sched_seq {
    uint64_t order; /* of arrival; unique; smaller is older */
    int n_tokens;   /* known: prompt and generated */
    int n_cached;   /* running only, else 0 */
    int n_blocks;   /* running only, else 0 */
    int n_bypassed; /* waiting: in how many plans it was passed by so far */
    int n_adapters;
    int adapters[ENGINE_ADAPTERS_MAX]; /* indexes into sched_state.adapters; distinct */
    int n_blocks_max;                  /* blocks it will have at its longest */
    int payer;                         /* index into sched_state.payers */
    int priority;
    bool loading; /* waiting: its adapters are on their way to the device. It is not considered,
                     and it is no bypass that others are */
    int n_blocks_shared; /* running: of n_blocks, used by others, too */
    int n_blocks_cached; /* running: of n_blocks, its first that are in the prefix cache: preempted,
                            it finds them again unless somebody took them */
    int n_found;      /* waiting: blocks it would find in the prefix cache: full ones, its first */
    int n_found_idle; /* of these, used by nobody: they count as free until it takes them */
};

struct sched_adapter {
    size_t n_bytes;
    int n_pins; /* by running sequences; 0: not pinned, resident or not */
};

struct sched_payer {
    double counter;
    double weight; /* > 0 */
};

/* What a plan that was carried out hands to the next; zeroed at the beginning. */
struct sched_carry {
    int turn_admissions;   /* until the oldest's turn: so many more, ... */
    int64_t turn_rows;     /* ... and so many rows */
    int64_t spare;         /* rows, times SCHED_SPARE_PART, that may be spent */
    struct prompt_cap cap; /* of the rows that prompts get */
};

/* What a plan lacked: it would have preempted nobody, and admitted one more, with ... */
struct sched_want {
    int n_blocks_running; /* so many blocks more, for those that run */
    int n_blocks_waiting; /* for the first that waits and lacks some */
    size_t adapter_bytes; /* unpinned bytes, for the first that waits and lacks some */
};

struct sched_state {
    const struct sched_seq *running; /* [n_running] ascending by order */
    int n_running;
    const struct sched_seq *waiting; /* [n_waiting] ascending by order */
    int n_waiting;
    const struct sched_adapter *adapters; /* [n_adapters] */
    int n_adapters;
    const struct sched_payer *payers; /* [n_payers] those of running and waiting, nobody else */
    int n_payers;
    double level;              /* the least counter of those who have been waiting (payers.h) */
    size_t adapter_bytes;      /* of the pool, in all */
    size_t adapter_bytes_free; /* of these, what isn't pinned */
    int n_blocks;              /* in all */
    int n_blocks_free;         /* used by no running sequence */
    int max_seqs, max_rows;    /* max_seqs <= max_rows */
    /* Of max_seqs and of the free blocks, what is kept for sequences that are favoured (below). */
    int n_seqs_kept, n_blocks_kept;
    struct sched_carry carry;
    int force_preempt; /* a running sequence to preempt whatever happens (tests), or -1 */
};

struct sched_grant {
    int index;    /* in running or in waiting */
    int n_rows;   /* tokens to compute: n_cached to n_cached + n_rows; >= 1. Of an admitted one,
                     behind the blocks that it found */
    int n_blocks; /* to take from the KV pool before, beside those that it found */
};

struct sched_work;

struct sched_plan {
    /* In the order in which they must be carried out: preempt, run, admit. */
    int *preempt; /* [n_preempt] indexes of running, the last in the order first */
    int n_preempt;
    struct sched_grant *run; /* [n_run] running ones that compute, ascending by index */
    int n_run;
    struct sched_grant *admit; /* [n_admit] waiting ones that begin, as they were chosen */
    int n_admit;
    int *bypassed; /* [n_bypassed] waiting ones passed by while one behind them was admitted */
    int n_bypassed;
    /* Waiting ones that don't begin: the oldest, then those first in the order, loading or not; it
     * is good to have what they need soon. */
    int next[SCHED_NEXT_MAX];
    int n_next;
    struct sched_want want;
    struct sched_carry carry; /* for the next, if this one is carried out */

    struct sched_work *work; /* memory; nothing in it outlives a call */
};

void sched_plan_init(struct sched_plan *p, int max_running, int max_waiting, int max_adapters);
void sched_plan_release(struct sched_plan *p); /* quiet on a zeroed one */

/* Fills *plan, in O((running + waiting) log payers). Guarantees:
 *   - rows sum to at most max_rows; every decoding sequence that isn't preempted has its row;
 *   - blocks granted, and idle ones found, sum to at most what is free after the preemptions;
 *   - prompts get rows, and waiting sequences begin, in the order, counting what the plan has given
 *     to each payer already; the oldest running sequence always gets a 256th of the rows, at least
 * one, if it can use them;
 *   - for want of blocks the last in the order is preempted, but never the oldest that runs. So
 *     something always finishes (see scheduler.c);
 *   - a sequence is favoured when its priority is above 0 or its payer's counter below the level:
 *     who comes seldom and asks for less than its share. While anything runs, others leave
 *     n_seqs_kept places and n_blocks_kept blocks free, so that such a one needn't wait for an end;
 *   - out of the spare rows a favoured one that lacks a place or blocks has others preempted, not
 *     favoured themselves, of no higher priority and never the oldest, if computing them again
 *     costs no more rows than that (blocks in the prefix cache aren't computed again where it is
 *     only the place that is lacking); and in the step in which a favoured one's prompt comes to
 *     its end, others' prompts pause, which costs the fixed part of a step, taken for a sixteenth
 *     of max_rows. So being quick for some costs everybody a SCHED_SPARE_PARTth at most;
 *   - while somebody favoured, of no negative priority, is about, prompts get no more rows of a
 *     step than prompt_cap_rows, unless they are such a one's, the oldest running sequence's part,
 *     or those of a turn or of one passed by too often. Then, too, others' prompts pause while a
 *     favoured one's comes to its end; that costs nothing where prompt_cap_may_pause, and is never
 *     done in two steps in a row;
 *   - a sequence whose adapters don't fit is passed by; one whose blocks don't fit is passed by
 *     favoured ones only, within n_blocks_kept; each at most SCHED_BYPASS_MAX times;
 *   - whatever payers and priorities, the oldest that fits has its turn again and again
 *     (SCHED_TURN_*), so nobody waits for ever, and a 64th of the rows goes by age at most, so
 *     turns don't make shares;
 *   - no admission in a step that preempts for want of blocks, so that blocks don't go round in
 *     circles. */
void sched_plan_make(struct sched_plan *plan, const struct sched_state *state);

#endif
