/* admission: who may ask, how often, how much at once.
 *
 * A customer is an API key, or an address when the node has no keys. Each has a token bucket of
 * requests, a number of requests under way, and a bucket of model tokens that is charged after the
 * fact: a request is let in while the bucket is above zero, so a long answer is paid for by a
 * longer wait. The same goes for adapters, whoever asks for them; an ensemble counts for each of
 * its own. On top, the node as a whole answers at most max_requests at once. Any thread.
 *
 * Of these no customer may take all, or a client that asks without end would be all that the node
 * has time for: with f places free, a customer may have up to ADMISSION_CUSTOMER_PART * weight * f
 * inside. So while few ask nobody notices; as the node fills, who holds most is stopped first; and
 * what stays free is for those who hold little. k customers of weight 1 who want everything get 8 /
 * (8 k + 1) of the places each, a lone one 8 / 9. It is the dynamic threshold of Choudhury and
 * Hahne (Dynamic Queue Length Thresholds for Shared-Memory Packet Switches, IEEE/ACM ToN 6(2),
 * 1998), and the same rule as for the engine's queue (engine/payers.h), which sees sequences
 * instead of requests. */
#ifndef TRIBUTARY_NODE_ADMISSION_H
#define TRIBUTARY_NODE_ADMISSION_H

#include "node/base/digest.h"

#include <stddef.h>
#include <stdint.h>

struct admission;
struct admission_ticket;
struct api_error;

enum {
    ADMISSION_ADAPTERS_MAX = 8, /* of a request */
    ADMISSION_CUSTOMER_PART = 8,
};

struct admission_limits { /* 0: no limit */
    double requests_per_second;
    uint32_t burst; /* requests at once before the rate counts; at least 1 */
    uint32_t concurrent;
    uint64_t tokens_per_minute; /* also the bucket's size */
};

struct admission_customer {
    uint64_t id;                        /* opaque; the same for the same customer */
    const struct admission_limits *own; /* NULL: the options' */
    double weight;                      /* of its part of max_requests; 0: 1 */
};

struct admission_options {
    struct admission_limits customer; /* of those that have none of their own */
    struct admission_limits adapter;  /* of each; all 0: adapters are not looked at */
    uint32_t max_requests;            /* 0: no limit */
};

struct admission *admission_create(const struct admission_options *options);
void admission_free(struct admission *a); /* all tickets must be back; quiet on NULL */

/* now_us: the monotonic clock. On refusal (-1) *e is ERR_RATE_LIMITED, or ERR_BUSY where a place is
 * missing, with Retry-After. */
int admission_enter(struct admission *a, struct admission_ticket **out,
                    const struct admission_customer *customer, uint64_t now_us,
                    struct api_error *e);

/* What the ticket's request asks for, once that is known: n adapters, no two of them the same. All
 * are let in, or none (-1, *e as above, naming the adapter); the ticket stays the caller's. Once a
 * ticket. */
struct admission_adapter {
    struct content_digest content;
    const char *name; /* for the refusal */
};
int admission_enter_adapters(struct admission_ticket *t, const struct admission_adapter *adapters,
                             size_t n, uint64_t now_us, struct api_error *e);

/* Gives the ticket back; n_tokens were used. */
void admission_leave(struct admission_ticket *t, uint64_t n_tokens, uint64_t now_us);

struct admission_stats {
    uint64_t n_inside;  /* requests */
    uint64_t n_entries; /* customers and adapters that are remembered */
    uint64_t refused_rate, refused_concurrent, refused_tokens, refused_full;
    uint64_t refused_share;   /* there were places, but not for this customer */
    uint64_t refused_adapter; /* for the sake of an adapter, whatever the limit */
};
void admission_stats(struct admission *a, struct admission_stats *out);

#endif
