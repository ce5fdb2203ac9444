/* latency: see latency.h. */
#include "tests/bench/latency.h"

#include <math.h>

static const double LEAST_MS = 1e-3, WIDTH = 1.001;

void latency_note(struct latency *l, double ms)
{
    double at = ms > LEAST_MS ? log(ms / LEAST_MS) / log(WIDTH) : 0;
    int bucket = at < LATENCY_BUCKETS - 1 ? (int)at : LATENCY_BUCKETS - 1;
    l->buckets[bucket]++;
    l->n++;
    l->sum_ms += ms;
    l->max_ms = ms > l->max_ms ? ms : l->max_ms;
}

double latency_mean(const struct latency *l)
{
    return l->n > 0 ? l->sum_ms / (double)l->n : 0;
}

double latency_percentile(const struct latency *l, double p)
{
    uint64_t rank = (uint64_t)ceil(p / 100 * (double)l->n), n = 0;
    if (l->n == 0)
        return 0;
    if (rank >= l->n)
        return l->max_ms;
    for (int i = 0; i < LATENCY_BUCKETS; i++)
        if ((n += l->buckets[i]) >= rank && n > 0)
            return LEAST_MS * pow(WIDTH, i + 0.5);
    return l->max_ms;
}

void latency_add(struct latency *to, const struct latency *from)
{
    for (int i = 0; i < LATENCY_BUCKETS; i++)
        to->buckets[i] += from->buckets[i];
    to->n += from->n;
    to->sum_ms += from->sum_ms;
    to->max_ms = from->max_ms > to->max_ms ? from->max_ms : to->max_ms;
}

double jain_index(const double *x, int n)
{
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++) {
        sum += x[i];
        squares += x[i] * x[i];
    }
    return squares > 0 ? sum * sum / (n * squares) : 1;
}
