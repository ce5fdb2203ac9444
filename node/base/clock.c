/* clock: see clock.h. */
#include "node/base/clock.h"

#include "node/base/err.h"

#include <time.h>

static struct timespec now(clockid_t id)
{
    struct timespec ts;
    BUG_IF(clock_gettime(id, &ts) != 0);
    return ts;
}

struct unix_ms clock_unix_ms(void)
{
    struct timespec ts = now(CLOCK_REALTIME);
    return (struct unix_ms){(uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000};
}

struct monotonic_us clock_monotonic_us(void)
{
    struct timespec ts = now(CLOCK_MONOTONIC);
    return (struct monotonic_us){(uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000};
}

uint64_t clock_apart_ms(struct unix_ms a, struct unix_ms b)
{
    return a.ms > b.ms ? a.ms - b.ms : b.ms - a.ms;
}

uint64_t clock_elapsed_us(struct monotonic_us a, struct monotonic_us b)
{
    return b.us > a.us ? b.us - a.us : 0;
}
