/* metrics: counters of the node, as Prometheus reads them.
 *
 * Any thread may count; counting takes no lock but for labels that come from outside, whose number
 * is bounded (the rest is counted as METRICS_OTHERS), so that no client can make this page grow. */
#ifndef TRIBUTARY_NODE_METRICS_H
#define TRIBUTARY_NODE_METRICS_H

#include <stddef.h>
#include <stdint.h>

struct adapter_store;
struct admission;
struct buf;
struct engine;
struct http_server;
struct ledger;
struct metrics;
struct service;

enum metrics_histogram {
    METRICS_HTTP_SECONDS,        /* request's headers to the answer's last byte */
    METRICS_FIRST_TOKEN_SECONDS, /* request to its first token */
    METRICS_COMMIT_SECONDS,      /* usage handed to the ledger to its receipt */
    METRICS_ADAPTER_SECONDS,     /* and the following: request to its adapter in host memory, by the
                                    tier     where it was found (enum adapter_tier) */
    METRICS_N_HISTOGRAMS = METRICS_ADAPTER_SECONDS + 4,
};

/* Labels that stand for more than one model. No adapter's name has a space. */
#define METRICS_OTHERS    "all others"
#define METRICS_ENSEMBLES "all ensembles"

struct metrics *metrics_create(void);
void metrics_free(struct metrics *m);

/* All quiet on a NULL m. route: one of the router's patterns (a constant). */
void metrics_http(struct metrics *m, const char *route, unsigned status, uint64_t us);
void metrics_observe(struct metrics *m, enum metrics_histogram h, uint64_t us);
/* What was observed so far; zeros on a NULL m. */
void metrics_read(struct metrics *m, enum metrics_histogram h, uint64_t *n, uint64_t *sum_us);
void metrics_tokens(struct metrics *m, const char *model, uint32_t prompt, uint32_t completion);

/* Appends the page. Each source may be NULL and is then left out. Whatever the number of adapters
 * is, no label names one but the first that were billed. */
struct metrics_sources {
    struct engine *engine;
    struct ledger *ledger;
    struct service *service;
    struct http_server *http;
    struct admission *admission;
    struct adapter_store *adapters;
};
void metrics_render(struct metrics *m, struct buf *out, const struct metrics_sources *sources);

/* Totals since the start, for the status page. */
struct metrics_totals {
    uint64_t requests, tokens_prompt, tokens_completion;
};
void metrics_totals(struct metrics *m, struct metrics_totals *out);

#endif
