/* pace: how fast places become free in the engine, for Retry-After.
 *
 * The mean time between two ends of sequences, while any run; what is older than the last 64 ends
 * counts less and less. A place in the queue's front is that much away for each that waits before
 * it. Pure; one thread at a time. */
#ifndef TRIBUTARY_NODE_PACE_H
#define TRIBUTARY_NODE_PACE_H

#include <stddef.h>
#include <stdint.h>

struct pace {        /* zeroed: nothing is known */
    size_t n_inside; /* begun, not ended */
    uint64_t n_ends, busy_us;
    uint64_t last_us; /* of the last end, or of the first beginning after an idle time */
};

/* A sequence was submitted, or has ended; now_us: the monotonic clock. */
void pace_begin(struct pace *p, uint64_t now_us);
void pace_end(struct pace *p, uint64_t now_us);

uint64_t pace_us_per_end(const struct pace *p); /* 0: nothing is known */

/* 1 to 60: when n_waiting sequences will have had their turn. */
unsigned pace_retry_after_s(uint64_t us_per_end, size_t n_waiting);

#endif
