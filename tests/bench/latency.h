/* latency: durations counted in buckets that are 0.1 % wide, so that percentiles of millions of
 * samples need no list of them and noting one allocates nothing. Mean, least and largest are exact;
 * a percentile is the geometric middle of its bucket, so within 0.05 %. From 1 microsecond to 3
 * hours; what is shorter or longer counts at that end. One thread at a time. */
#ifndef TRIBUTARY_TESTS_BENCH_LATENCY_H
#define TRIBUTARY_TESTS_BENCH_LATENCY_H

#include <stdint.h>

enum { LATENCY_BUCKETS = 23200 };

struct latency { /* zeroed: empty */
    uint64_t n, buckets[LATENCY_BUCKETS];
    double sum_ms, max_ms;
};

void latency_note(struct latency *l, double ms);
double latency_mean(const struct latency *l);                 /* ms; 0 of none */
double latency_percentile(const struct latency *l, double p); /* by nearest rank; p in [0, 100] */
void latency_add(struct latency *to, const struct latency *from);

/* Jain's index of fairness of x [n] (Jain, Chiu and Hawe, 1984): (sum x)^2 / (n sum x^2), from 1/n
 * (one has all) to 1 (all have the same); 1 of nothing. */
double jain_index(const double *x, int n);

#endif
