/* clock: two clocks that must never meet.
 *
 * unix_ms is calendar time and may jump; it goes into receipts. monotonic_us only moves forward and
 * means nothing outside this process; it measures durations and deadlines. */
#ifndef TRIBUTARY_BASE_CLOCK_H
#define TRIBUTARY_BASE_CLOCK_H

#include <stdint.h>

struct unix_ms {
    uint64_t ms; /* since 1970-01-01T00:00:00Z */
};

struct monotonic_us {
    uint64_t us; /* since an arbitrary moment before the process began */
};

struct unix_ms clock_unix_ms(void);
struct monotonic_us clock_monotonic_us(void);

/* How far apart two calendar moments are, whichever came first. A wait that began at a stored
 * moment and is measured so ends after a clock was set back, too: at twice its length at the
 * latest. */
uint64_t clock_apart_ms(struct unix_ms a, struct unix_ms b);

/* b - a, or 0 when b is before a. */
uint64_t clock_elapsed_us(struct monotonic_us a, struct monotonic_us b);

#endif
