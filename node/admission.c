/* admission: see admission.h.
 *
 * A bucket holds up to `size` and fills at `rate`; it is brought up to date when it is looked at.
 *
 * Customers and adapters are entries of one hash table with chains, bounded at ENTRIES_MAX: when it
 * is full, those with nothing under way and full buckets are forgotten, since a new entry would
 * equal them. That looks at every entry, so it is done at most once in FORGET_EVERY_US; whoever is
 * new meanwhile is told to come back. */
#include "node/admission.h"

#include "node/api_error.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/random.h"

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { CHAIN_BITS = 12, N_CHAINS = 1 << CHAIN_BITS };
enum { ENTRIES_MAX = 65536, FORGET_EVERY_US = 100000 };

enum kind { CUSTOMER, ADAPTER };

struct bucket {
    double level;
    uint64_t at_us;
};

struct entry {
    struct entry *next;
    enum kind kind;
    uint64_t id;
    struct admission_limits limits;
    double weight; /* customers */
    uint32_t inside;
    struct bucket requests, tokens;
};

struct admission_ticket {
    struct admission *admission;
    struct entry *customer;
    struct entry *adapters[ADMISSION_ADAPTERS_MAX];
    size_t n_adapters;
};

struct admission {
    struct admission_options opt;
    bool limits_adapters;
    pthread_mutex_t lock;
    struct entry *chains[N_CHAINS];
    uint64_t spread;       /* which chain: see find */
    uint64_t forget_at_us; /* not before */
    struct admission_stats stats;
};

struct admission *admission_create(const struct admission_options *options)
{
    struct admission *a = xcalloc(1, sizeof *a);
    a->opt = *options;
    a->limits_adapters = options->adapter.requests_per_second > 0 ||
                         options->adapter.concurrent > 0 || options->adapter.tokens_per_minute > 0;
    a->spread = random_u64() | 1;
    pthread_mutex_init(&a->lock, NULL);
    return a;
}

void admission_free(struct admission *a)
{
    if (a == NULL)
        return;
    BUG_IF(a->stats.n_inside > 0);
    for (int i = 0; i < N_CHAINS; i++) {
        while (a->chains[i] != NULL) {
            struct entry *next = a->chains[i]->next;
            free(a->chains[i]);
            a->chains[i] = next;
        }
    }
    pthread_mutex_destroy(&a->lock);
    free(a);
}

/* ---- entries -----------------------------------------------------------------------------------
 */

static void fill(struct bucket *b, double rate_per_s, double size, uint64_t now_us)
{
    if (now_us > b->at_us) {
        b->level += rate_per_s * (double)(now_us - b->at_us) / 1e6;
        if (b->level > size)
            b->level = size;
        b->at_us = now_us;
    }
}

static void refresh(struct entry *c, uint64_t now_us)
{
    const struct admission_limits *l = &c->limits;
    fill(&c->requests, l->requests_per_second, l->burst, now_us);
    fill(&c->tokens, (double)l->tokens_per_minute / 60, (double)l->tokens_per_minute, now_us);
}

/* What a new entry would be, too. */
static bool is_idle(const struct entry *c)
{
    return c->inside == 0 &&
           (c->limits.requests_per_second <= 0 || c->requests.level >= c->limits.burst) &&
           c->tokens.level >= (double)c->limits.tokens_per_minute;
}

static void forget_idle(struct admission *a, uint64_t now_us)
{
    if (now_us < a->forget_at_us)
        return;
    for (int i = 0; i < N_CHAINS; i++) {
        for (struct entry **at = &a->chains[i]; *at != NULL;) {
            struct entry *c = *at;
            refresh(c, now_us);
            if (is_idle(c)) {
                *at = c->next;
                free(c);
                a->stats.n_entries--;
            } else {
                at = &c->next;
            }
        }
    }
    a->forget_at_us = now_us + FORGET_EVERY_US;
}

/* Brought up to date. NULL: the table is full of entries that are busy.
 *
 * Numbers are the beginnings of hashes, and of addresses, which whoever likes can try out until
 * they meet in a chain; so it is a secret which numbers do (multiply-shift: Dietzfelbinger et al.,
 * J. Algorithms 25, 1997). */
static struct entry *find(struct admission *a, enum kind kind, uint64_t id,
                          const struct admission_limits *limits, uint64_t now_us)
{
    struct entry **chain = &a->chains[((id ^ (uint64_t)kind) * a->spread) >> (64 - CHAIN_BITS)];
    for (struct entry *c = *chain; c != NULL; c = c->next) {
        if (c->id == id && c->kind == kind) {
            refresh(c, now_us);
            return c;
        }
    }
    if (a->stats.n_entries >= ENTRIES_MAX)
        forget_idle(a, now_us);
    if (a->stats.n_entries >= ENTRIES_MAX)
        return NULL;
    struct entry *c = xcalloc(1, sizeof *c);
    c->kind = kind;
    c->id = id;
    c->limits = *limits;
    if (c->limits.burst == 0)
        c->limits.burst = 1;
    c->requests = (struct bucket){c->limits.burst, now_us};
    c->tokens = (struct bucket){(double)c->limits.tokens_per_minute, now_us};
    c->next = *chain;
    *chain = c;
    a->stats.n_entries++;
    return c;
}

/* ---- refusals ----------------------------------------------------------------------------------
 */

static unsigned seconds_until(double missing, double rate_per_s)
{
    double s = ceil(missing / rate_per_s);
    return s < 1 ? 1 : s > 3600 ? 3600 : (unsigned)s;
}

enum limit { WITHIN, TOO_MANY_AT_ONCE, OUT_OF_TOKENS, TOO_OFTEN };

/* Which limit the next request of c would break, and for how long at least: where it would break
 * several, until the last that time mends. */
static enum limit broken_limit(const struct entry *c, unsigned *retry_s)
{
    const struct admission_limits *l = &c->limits;
    enum limit broken = WITHIN;
    *retry_s = 1;
    if (l->requests_per_second > 0 && c->requests.level < 1) {
        *retry_s = seconds_until(1 - c->requests.level, l->requests_per_second);
        broken = TOO_OFTEN;
    }
    if (l->tokens_per_minute > 0 && c->tokens.level <= 0) {
        unsigned s = seconds_until(1 - c->tokens.level, (double)l->tokens_per_minute / 60);
        *retry_s = s > *retry_s ? s : *retry_s;
        broken = OUT_OF_TOKENS;
    }
    if (l->concurrent > 0 && c->inside >= l->concurrent)
        broken = TOO_MANY_AT_ONCE;
    return broken;
}

static int rate_limited(struct api_error *e, unsigned retry_s)
{
    e->code = "rate_limit_exceeded";
    e->retry_after_s = retry_s;
    return -1;
}

static int full(struct admission *a, struct api_error *e, unsigned retry_s, const char *why)
{
    a->stats.refused_full++;
    api_error_set(e, ERR_BUSY, NULL, "%s", why);
    e->retry_after_s = retry_s;
    return -1;
}

static int check_customer(struct admission *a, const struct entry *c, struct api_error *e)
{
    unsigned retry_s;
    switch (broken_limit(c, &retry_s)) {
    case WITHIN:
        return 0;
    case TOO_MANY_AT_ONCE:
        a->stats.refused_concurrent++;
        api_error_set(e, ERR_RATE_LIMITED, NULL, "you have too many requests at the same time");
        break;
    case OUT_OF_TOKENS:
        a->stats.refused_tokens++;
        api_error_set(e, ERR_RATE_LIMITED, NULL, "you have used your tokens of the last minute");
        break;
    case TOO_OFTEN:
        a->stats.refused_rate++;
        api_error_set(e, ERR_RATE_LIMITED, NULL, "you have too many requests a second");
        break;
    }
    return rate_limited(e, retry_s);
}

static int check_adapter(struct admission *a, const struct entry *c, const char *name,
                         struct api_error *e)
{
    static const char *const what[] = {
        [TOO_MANY_AT_ONCE] = "requests at the same time",
        [OUT_OF_TOKENS] = "tokens a minute",
        [TOO_OFTEN] = "requests a second",
    };
    unsigned retry_s;
    enum limit limit = broken_limit(c, &retry_s);
    if (limit == WITHIN)
        return 0;
    a->stats.refused_adapter++;
    api_error_set(e, ERR_RATE_LIMITED, NULL, "too many %s for the adapter %s", what[limit], name);
    return rate_limited(e, retry_s);
}

static void let_in(struct entry *c)
{
    c->inside++;
    if (c->limits.requests_per_second > 0)
        c->requests.level -= 1;
}

static void let_out(struct entry *c, uint64_t n_tokens, uint64_t now_us)
{
    refresh(c, now_us);
    c->inside--;
    if (c->limits.tokens_per_minute > 0)
        c->tokens.level -= (double)n_tokens;
}

/* Another request of c, while there are places: see admission.h. */
static int check_share(struct admission *a, const struct entry *c, struct api_error *e)
{
    if (a->opt.max_requests == 0)
        return 0;
    double n_free = (double)(a->opt.max_requests - a->stats.n_inside);
    if (c->inside < ADMISSION_CUSTOMER_PART * c->weight * n_free)
        return 0;
    a->stats.refused_share++;
    api_error_set(e, ERR_BUSY, NULL,
                  "the node is nearly full, and %u of the %u requests that it takes are yours",
                  c->inside, a->opt.max_requests);
    e->retry_after_s = 1;
    return -1;
}

/* ---- the door ----------------------------------------------------------------------------------
 */

int admission_enter(struct admission *a, struct admission_ticket **out,
                    const struct admission_customer *customer, uint64_t now_us, struct api_error *e)
{
    const struct admission_limits *own = customer->own;
    int rc;
    pthread_mutex_lock(&a->lock);
    struct entry *c = NULL;
    if (a->opt.max_requests > 0 && a->stats.n_inside >= a->opt.max_requests)
        rc = full(a, e, 1, "the node is answering as many requests as it can");
    else if ((c = find(a, CUSTOMER, customer->id, own != NULL ? own : &a->opt.customer, now_us)) ==
             NULL)
        rc = full(a, e, 5, "the node has too many customers");
    else if ((rc = check_customer(a, c, e)) == 0) {
        c->weight = customer->weight > 0 ? customer->weight : 1;
        rc = check_share(a, c, e);
    }
    if (rc == 0) {
        let_in(c);
        a->stats.n_inside++;
        *out = xcalloc(1, sizeof **out);
        **out = (struct admission_ticket){.admission = a, .customer = c};
    }
    pthread_mutex_unlock(&a->lock);
    return rc;
}

int admission_enter_adapters(struct admission_ticket *t, const struct admission_adapter *adapters,
                             size_t n, uint64_t now_us, struct api_error *e)
{
    struct admission *a = t->admission;
    int rc = 0;
    BUG_IF(n > ADMISSION_ADAPTERS_MAX || t->n_adapters > 0);
    if (!a->limits_adapters)
        return 0;
    pthread_mutex_lock(&a->lock);
    for (size_t i = 0; i < n && rc == 0; i++) {
        uint64_t id;
        memcpy(&id, adapters[i].content.bytes, sizeof id);
        struct entry *c = find(a, ADAPTER, id, &a->opt.adapter, now_us);
        if (c == NULL)
            rc = full(a, e, 5, "the node has too many adapters in use");
        else
            rc = check_adapter(a, c, adapters[i].name, e);
        if (rc == 0) { /* at once: the next find may forget what is idle */
            let_in(c);
            t->adapters[t->n_adapters++] = c;
        }
    }
    if (rc != 0) {
        while (t->n_adapters > 0) {
            struct entry *c = t->adapters[--t->n_adapters];
            c->inside--;
            if (c->limits.requests_per_second > 0)
                c->requests.level += 1;
        }
    }
    pthread_mutex_unlock(&a->lock);
    return rc;
}

void admission_leave(struct admission_ticket *t, uint64_t n_tokens, uint64_t now_us)
{
    struct admission *a = t->admission;
    pthread_mutex_lock(&a->lock);
    let_out(t->customer, n_tokens, now_us);
    for (size_t i = 0; i < t->n_adapters; i++)
        let_out(t->adapters[i], n_tokens, now_us);
    a->stats.n_inside--;
    pthread_mutex_unlock(&a->lock);
    free(t);
}

void admission_stats(struct admission *a, struct admission_stats *out)
{
    pthread_mutex_lock(&a->lock);
    *out = a->stats;
    pthread_mutex_unlock(&a->lock);
}
