/* admission: who may ask, how often, how much at once.
 *
 * A customer is an API key, or an address when the node has no keys. Each has a token bucket of
 * requests, a number of requests under way, and a bucket of model tokens that is charged after the
 * fact: a request is let in while the bucket is above zero, so a long answer is paid for by a
 * longer wait. On top, the node as a whole answers at most max_requests at once. Any thread. */
#ifndef TRIBUTARY_NODE_ADMISSION_H
#define TRIBUTARY_NODE_ADMISSION_H

#include <stddef.h>
#include <stdint.h>

struct admission;
struct admission_ticket;
struct api_error;

struct admission_options { /* 0: no limit */
    double requests_per_second;
    uint32_t burst; /* requests at once before the rate counts; at least 1 */
    uint32_t concurrent;
    uint64_t tokens_per_minute; /* also the bucket's size */
    uint32_t max_requests;
};

struct admission *admission_create(const struct admission_options *options);
void admission_free(struct admission *a); /* all tickets must be back; quiet on NULL */

/* customer: an opaque number, the same for the same customer; now_us: the monotonic clock. On
 * refusal (-1) *e is ERR_RATE_LIMITED or ERR_BUSY with Retry-After. */
int admission_enter(struct admission *a, struct admission_ticket **out, uint64_t customer,
                    uint64_t now_us, struct api_error *e);
/* Gives the ticket back; n_tokens were used. */
void admission_leave(struct admission_ticket *t, uint64_t n_tokens, uint64_t now_us);

struct admission_stats {
    uint64_t n_inside, n_customers;
    uint64_t refused_rate, refused_concurrent, refused_tokens, refused_full;
};
void admission_stats(struct admission *a, struct admission_stats *out);

#endif
