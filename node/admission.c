/* admission: see admission.h.
 *
 * A bucket holds up to `size` and fills at `rate`; it is brought up to date when it is looked at.
 * The table of customers is a hash table with chains, bounded at CUSTOMERS_MAX: when it is full,
 * those with nothing under way and full buckets are forgotten, since a new entry would equal them.
 */
#include "node/admission.h"

#include "node/api_error.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

enum { N_CHAINS = 4096, CUSTOMERS_MAX = 65536 };

struct bucket {
    double level;
    uint64_t at_us;
};

struct customer {
    struct customer *next;
    uint64_t id;
    uint32_t inside;
    struct bucket requests, tokens;
};

struct admission_ticket {
    struct admission *admission;
    struct customer *customer;
};

struct admission {
    struct admission_options opt;
    pthread_mutex_t lock;
    struct customer *chains[N_CHAINS];
    struct admission_stats stats;
};

struct admission *admission_create(const struct admission_options *options)
{
    struct admission *a = xcalloc(1, sizeof *a);
    a->opt = *options;
    if (a->opt.burst == 0)
        a->opt.burst = 1;
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
            struct customer *next = a->chains[i]->next;
            free(a->chains[i]);
            a->chains[i] = next;
        }
    }
    pthread_mutex_destroy(&a->lock);
    free(a);
}

static void fill(struct bucket *b, double rate_per_s, double size, uint64_t now_us)
{
    if (now_us > b->at_us) {
        b->level += rate_per_s * (double)(now_us - b->at_us) / 1e6;
        if (b->level > size)
            b->level = size;
        b->at_us = now_us;
    }
}

static void refresh(const struct admission *a, struct customer *c, uint64_t now_us)
{
    fill(&c->requests, a->opt.requests_per_second, a->opt.burst, now_us);
    fill(&c->tokens, (double)a->opt.tokens_per_minute / 60, (double)a->opt.tokens_per_minute,
         now_us);
}

static void forget_idle(struct admission *a, uint64_t now_us)
{
    for (int i = 0; i < N_CHAINS; i++) {
        for (struct customer **at = &a->chains[i]; *at != NULL;) {
            struct customer *c = *at;
            refresh(a, c, now_us);
            if (c->inside == 0 && c->requests.level >= a->opt.burst &&
                c->tokens.level >= (double)a->opt.tokens_per_minute) {
                *at = c->next;
                free(c);
                a->stats.n_customers--;
            } else {
                at = &c->next;
            }
        }
    }
}

/* NULL: the table is full of customers that are busy. */
static struct customer *find(struct admission *a, uint64_t id, uint64_t now_us)
{
    /* Ids are hashes already. */
    struct customer **chain = &a->chains[id % N_CHAINS];
    for (struct customer *c = *chain; c != NULL; c = c->next) {
        if (c->id == id)
            return c;
    }
    if (a->stats.n_customers >= CUSTOMERS_MAX)
        forget_idle(a, now_us);
    if (a->stats.n_customers >= CUSTOMERS_MAX)
        return NULL;
    struct customer *c = xcalloc(1, sizeof *c);
    c->id = id;
    c->requests = (struct bucket){a->opt.burst, now_us};
    c->tokens = (struct bucket){(double)a->opt.tokens_per_minute, now_us};
    c->next = *chain;
    *chain = c;
    a->stats.n_customers++;
    return c;
}

static unsigned seconds_until(double missing, double rate_per_s)
{
    double s = ceil(missing / rate_per_s);
    return s < 1 ? 1 : s > 3600 ? 3600 : (unsigned)s;
}

static int refuse(struct api_error *e, uint64_t *counter, enum err_code code, unsigned retry_s,
                  const char *why)
{
    (*counter)++;
    api_error_set(e, code, NULL, "%s", why);
    e->code = code == ERR_RATE_LIMITED ? "rate_limit_exceeded" : NULL;
    e->retry_after_s = retry_s;
    return -1;
}

static int enter(struct admission *a, struct customer *c, struct api_error *e)
{
    const struct admission_options *o = &a->opt;
    if (o->concurrent > 0 && c->inside >= o->concurrent)
        return refuse(e, &a->stats.refused_concurrent, ERR_RATE_LIMITED, 1,
                      "too many requests at the same time for this key");
    if (o->tokens_per_minute > 0 && c->tokens.level <= 0)
        return refuse(e, &a->stats.refused_tokens, ERR_RATE_LIMITED,
                      seconds_until(1 - c->tokens.level, (double)o->tokens_per_minute / 60),
                      "this key has used its tokens of the last minute");
    if (o->requests_per_second > 0) {
        if (c->requests.level < 1)
            return refuse(e, &a->stats.refused_rate, ERR_RATE_LIMITED,
                          seconds_until(1 - c->requests.level, o->requests_per_second),
                          "too many requests a second for this key");
        c->requests.level -= 1;
    }
    return 0;
}

int admission_enter(struct admission *a, struct admission_ticket **out, uint64_t customer,
                    uint64_t now_us, struct api_error *e)
{
    int rc;
    pthread_mutex_lock(&a->lock);
    struct customer *c = NULL;
    if (a->opt.max_requests > 0 && a->stats.n_inside >= a->opt.max_requests)
        rc = refuse(e, &a->stats.refused_full, ERR_BUSY, 1,
                    "the node is answering as many "
                    "requests as it can");
    else if ((c = find(a, customer, now_us)) == NULL)
        rc = refuse(e, &a->stats.refused_full, ERR_BUSY, 5, "the node has too many customers");
    else {
        refresh(a, c, now_us);
        rc = enter(a, c, e);
    }
    if (rc == 0) {
        c->inside++;
        a->stats.n_inside++;
        *out = xmalloc(sizeof **out);
        **out = (struct admission_ticket){a, c};
    }
    pthread_mutex_unlock(&a->lock);
    return rc;
}

void admission_leave(struct admission_ticket *t, uint64_t n_tokens, uint64_t now_us)
{
    struct admission *a = t->admission;
    pthread_mutex_lock(&a->lock);
    refresh(a, t->customer, now_us);
    t->customer->inside--;
    a->stats.n_inside--;
    if (a->opt.tokens_per_minute > 0)
        t->customer->tokens.level -= (double)n_tokens;
    pthread_mutex_unlock(&a->lock);
    free(t);
}

void admission_stats(struct admission *a, struct admission_stats *out)
{
    pthread_mutex_lock(&a->lock);
    *out = a->stats;
    pthread_mutex_unlock(&a->lock);
}
