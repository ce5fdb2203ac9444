/* pace: see pace.h. */
#include "node/pace.h"

#include "node/base/err.h"

enum { ENDS_MAX = 64, RETRY_MAX_S = 60 };

void pace_begin(struct pace *p, uint64_t now_us)
{
    if (p->n_inside++ == 0)
        p->last_us = now_us;
}

void pace_end(struct pace *p, uint64_t now_us)
{
    BUG_IF(p->n_inside == 0);
    p->n_inside--;
    p->busy_us += now_us - p->last_us;
    p->last_us = now_us;
    if (++p->n_ends >= ENDS_MAX) {
        p->busy_us /= 2;
        p->n_ends /= 2;
    }
}

uint64_t pace_us_per_end(const struct pace *p)
{
    return p->n_ends == 0 ? 0 : p->busy_us / p->n_ends;
}

unsigned pace_retry_after_s(uint64_t us_per_end, size_t n_waiting)
{
    double seconds = (double)us_per_end * (double)n_waiting / 1e6;
    if (seconds >= RETRY_MAX_S)
        return RETRY_MAX_S;
    unsigned whole = (unsigned)seconds;
    whole += (double)whole < seconds;
    return whole < 1 ? 1 : whole;
}
