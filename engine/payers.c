/* payers: see payers.h.
 *
 * Places are found by id through chains of places, one chain a bucket; free places form one more
 * chain. Everything is allocated when the table is made.
 *
 *   bucket[hash(id)] -> place -> place -> NONE        (payer.next)
 *   free_places      -> place -> place -> NONE
 *
 * A view is built for each plan in one pass over the sequences. Rounds are numbered, so that "had
 * something waiting in the last view" is a comparison and nothing need be cleared. */
#include "engine/payers.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <math.h>
#include <stdlib.h>

enum { NONE = -1 };

struct payer {
    uint64_t id;
    double counter, weight;
    int n_live;    /* sequences; 0: only remembered */
    int n_waiting; /* of these */
    int next;      /* in its chain */
    /* The view's */
    uint64_t seen, waited;               /* the last round with a sequence; with one that waits */
    uint64_t seen_before, waited_before; /* the rounds before those */
    int index;                           /* in the view of round `seen` */
};

struct payers {
    struct payer *payers; /* [n_places] */
    int n_places, n_used, max_live, n_live;
    int *buckets; /* [n_buckets], a power of two */
    uint32_t n_buckets;
    int free_places;

    double credit, level;
    double back_at; /* who comes back is lifted to this, less the credit */
    uint64_t round;
    int *view_places;         /* [n_view] places of max_live */
    struct sched_payer *view; /* likewise */
    int n_view;
};

struct payers *payers_create(int max_live, double credit)
{
    struct payers *t = xcalloc(1, sizeof *t);
    int n_places = max_live + PAYERS_IDLE_MAX;
    *t = (struct payers){.n_places = n_places,
                         .max_live = max_live,
                         .n_buckets = 1,
                         .free_places = 0,
                         .credit = credit,
                         .round = 1};
    while (t->n_buckets < (uint32_t)n_places)
        t->n_buckets *= 2;
    t->payers = xcalloc((size_t)n_places, sizeof *t->payers);
    t->buckets = xcalloc(t->n_buckets, sizeof *t->buckets);
    t->view_places = xcalloc((size_t)max_live, sizeof *t->view_places);
    t->view = xcalloc((size_t)max_live, sizeof *t->view);
    for (uint32_t i = 0; i < t->n_buckets; i++)
        t->buckets[i] = NONE;
    for (int i = 0; i < n_places; i++)
        t->payers[i].next = i + 1 < n_places ? i + 1 : NONE;
    return t;
}

void payers_free(struct payers *t)
{
    if (t == NULL)
        return;
    free(t->payers);
    free(t->buckets);
    free(t->view_places);
    free(t->view);
    free(t);
}

/* ---- the door ---------------------------------------------------------------------------- */

/* The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA '14): ids may be anything. */
static int *bucket_of(struct payers *t, uint64_t id)
{
    id = (id ^ (id >> 30)) * 0xbf58476d1ce4e5b9u;
    id = (id ^ (id >> 27)) * 0x94d049bb133111ebu;
    return &t->buckets[(id ^ (id >> 31)) & (t->n_buckets - 1)];
}

static void forget(struct payers *t, int payer)
{
    int *link = bucket_of(t, t->payers[payer].id);
    while (*link != payer)
        link = &t->payers[*link].next;
    *link = t->payers[payer].next;
    t->payers[payer].next = t->free_places;
    t->free_places = payer;
    t->n_used--;
}

/* With all places used, at least PAYERS_IDLE_MAX are only remembered. Those not above their mean
 * go, usually half of them, so this is seldom. The least is among them, also where a rounded mean
 * lies below it. */
static void forget_some(struct payers *t)
{
    double sum = 0, n = 0, least = INFINITY;
    for (int i = 0; i < t->n_places; i++) {
        if (t->payers[i].n_live == 0) {
            sum += t->payers[i].counter;
            least = fmin(least, t->payers[i].counter);
            n++;
        }
    }
    double most = fmax(sum / n, least);
    for (int i = 0; i < t->n_places; i++)
        if (t->payers[i].n_live == 0 && t->payers[i].counter <= most)
            forget(t, i);
    BUG_IF(t->free_places == NONE);
}

int payers_hold(struct payers *t, uint64_t id)
{
    int *bucket = bucket_of(t, id);
    int place = *bucket;
    while (place != NONE && t->payers[place].id != id)
        place = t->payers[place].next;
    if (place == NONE) {
        if (t->free_places == NONE)
            forget_some(t);
        place = t->free_places;
        t->free_places = t->payers[place].next;
        t->payers[place] = (struct payer){.id = id, .weight = 1, .next = *bucket};
        *bucket = place;
        t->n_used++;
    }
    t->payers[place].n_live++;
    t->n_live++;
    return place;
}

void payers_drop(struct payers *t, int payer)
{
    BUG_IF(t->payers[payer].n_live < 1);
    t->payers[payer].n_live--;
    t->n_live--;
}

void payers_wait(struct payers *t, int payer)
{
    t->payers[payer].n_waiting++;
}

void payers_go(struct payers *t, int payer)
{
    BUG_IF(t->payers[payer].n_waiting < 1);
    t->payers[payer].n_waiting--;
}

bool payers_may_wait(const struct payers *t, int payer, int n_free)
{
    return n_free > 0 &&
           (t->n_used == 1 || t->payers[payer].n_waiting / PAYERS_QUEUE_PART < n_free);
}

int payers_share(int n_places)
{
    return n_places - n_places / (PAYERS_QUEUE_PART + 1);
}

int payers_n_known(const struct payers *t)
{
    return t->n_used;
}

/* ---- counters ---------------------------------------------------------------------------- */

void payers_set_weight(struct payers *t, int payer, double weight)
{
    BUG_IF(!(weight > 0));
    t->payers[payer].weight = weight;
}

void payers_charge(struct payers *t, int payer, int n_cost)
{
    t->payers[payer].counter += n_cost / t->payers[payer].weight;
}

double payers_counter(const struct payers *t, int payer)
{
    return t->payers[payer].counter;
}

double payers_level(const struct payers *t)
{
    return t->level;
}

void payers_view_begin(struct payers *t)
{
    t->round++;
    t->n_view = 0;
}

int payers_view_add(struct payers *t, int payer, bool waits)
{
    struct payer *p = &t->payers[payer];
    if (p->seen != t->round) {
        BUG_IF(t->n_view == t->max_live);
        p->seen_before = p->seen;
        p->seen = t->round;
        p->index = t->n_view;
        t->view_places[t->n_view++] = payer;
    }
    if (waits && p->waited != t->round) {
        p->waited_before = p->waited;
        p->waited = t->round;
    }
    return p->index;
}

/* The least counter of those who waited (or, if nobody did, were there) in the last round, too.
 * With nobody waiting, what was computed was nobody else's: who comes back then doesn't come before
 * the one who had most of it. */
static void raise_level(struct payers *t)
{
    double least_waiting = 0, least = 0, most = 0;
    bool any_waiting = false, any = false;
    for (int i = 0; i < t->n_view; i++) {
        const struct payer *p = &t->payers[t->view_places[i]];
        if (p->waited == t->round && p->waited_before == t->round - 1) {
            least_waiting = any_waiting && least_waiting < p->counter ? least_waiting : p->counter;
            any_waiting = true;
        }
        if (p->seen_before == t->round - 1) {
            least = any && least < p->counter ? least : p->counter;
            most = most > p->counter ? most : p->counter;
            any = true;
        }
    }
    if (any_waiting)
        least = most = least_waiting;
    if (any && least > t->level)
        t->level = least;
    t->back_at = most > t->level ? most : t->level;
}

const struct sched_payer *payers_view_end(struct payers *t, int *n)
{
    raise_level(t);
    for (int i = 0; i < t->n_view; i++) {
        struct payer *p = &t->payers[t->view_places[i]];
        bool comes_back = p->waited == t->round && p->waited_before != t->round - 1;
        if (comes_back && p->counter < t->back_at - t->credit)
            p->counter = t->back_at - t->credit;
        t->view[i] = (struct sched_payer){.counter = p->counter, .weight = p->weight};
    }
    *n = t->n_view;
    return t->view;
}
