/* payers: what each payer has had of the device, and how many of its sequences wait.
 *
 * Virtual token counters of Sheng et al. (Fairness in Serving Large Language Models, OSDI '24,
 * arXiv:2401.00588): a payer's counter grows by the cost of each token computed for it
 * (SCHED_COST_*), divided by its weight. The scheduler serves the least counter first; so payers
 * with work to do get equal shares by weight, and who asks for less than its share gets all it
 * asks. The scheduler itself is a pure function: here is the memory it lacks.
 *
 * Coming back. A counter that stood still while others' grew would be a claim on all their time. So
 * when a payer gets something to wait for (of what can be computed now) that had nothing, its
 * counter is lifted to the level less a credit: the level is the least counter of those who had
 * something waiting before; it never falls. If nobody had, what was computed was nobody else's: the
 * level is the least counter of those who had something running, and a counter is lifted to the
 * greatest of theirs, less the credit, so that nobody pays later for what nobody wanted.
 * The credit, a few steps' worth of tokens, lets a payer who asks seldom be ahead of those who ask
 * all the time, for about that much; it is unused time of its own, never more than the credit. A
 * counter is never lowered: who has had too much waits, also when it comes back.
 *
 * Bound. The table has room for max_live payers, as many as can have a sequence at once, and
 * PAYERS_IDLE_MAX that are remembered without one. Beyond, of those without a sequence the ones
 * whose counter is not above the mean are forgotten; such a payer begins again like one that
 * comes back, which costs or gives it little, for its counter was low.
 *
 * Threads. The functions named "door" are called under one lock by whoever submits and by the
 * engine thread; the others by the engine thread alone, only for payers that are held. */
#ifndef TRIBUTARY_ENGINE_PAYERS_H
#define TRIBUTARY_ENGINE_PAYERS_H

#include "engine/scheduler.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    PAYERS_IDLE_MAX = 4096,
    /* Of the places to wait, one payer among several may fill so many for each that is free. */
    PAYERS_QUEUE_PART = 8,
};

struct payers;

struct payers *payers_create(int max_live, double credit);
void payers_free(struct payers *t); /* quiet on NULL */

/* Door. One more sequence of a payer, known or not; at most max_live in all are held at once.
 * Returns the payer's place in the table, which is its own until as many payers_drop calls. */
int payers_hold(struct payers *t, uint64_t id);
void payers_drop(struct payers *t, int payer);

/* Door. One more, or one less, of its sequences waits. */
void payers_wait(struct payers *t, int payer);
void payers_go(struct payers *t, int payer);

/* Door. May one more wait, with n_free places free? One payer can't fill the queue against the
 * others: with all but n_free filled, it may have fewer than PAYERS_QUEUE_PART * n_free waiting. A
 * payer that was never seen beside another may fill it. */
bool payers_may_wait(const struct payers *t, int payer, int n_free);
/* How many a payer may have waiting of n_places, beside others who have none. */
int payers_share(int n_places);

/* Door. How many are known, with a sequence or without. */
int payers_n_known(const struct payers *t);

/* The weight of its newest request; > 0. */
void payers_set_weight(struct payers *t, int payer, double weight);

/* n_cost: tokens, times their cost. */
void payers_charge(struct payers *t, int payer, int n_cost);

double payers_counter(const struct payers *t, int payer);

/* What a plan is shown: begin; add one for each sequence that runs or waits (waits: it waits and
 * isn't loading), which returns the payer's index in the plan; end lifts those who come back, and
 * returns [*n] payers, valid until the next begin. */
void payers_view_begin(struct payers *t);
int payers_view_add(struct payers *t, int payer, bool waits);
const struct sched_payer *payers_view_end(struct payers *t, int *n);
double payers_level(const struct payers *t);

#endif
