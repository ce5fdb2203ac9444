/* sim: the engine on paper. The real scheduler and the real table of payers plan step after step;
 * what the device would do is a cost model, and time is a number. So a million requests take
 * seconds, and every plan is checked.
 *
 * What a step takes is read off a line through measured points. A token is there when its step
 * ends. As in the engine (engine_run.c), a step in which every sequence draws has another one
 * enqueued behind it before its results are known, if that is to compute the same sequences: who
 * comes then waits for both, and a sequence that ends has a row in it that nobody wants. What a
 * preempted sequence computed is found again if its blocks weren't taken since (the prefix cache,
 * which here is asked for nothing else).
 *
 * Requests arrive by traces that are drawn from a seed: each class has its own stream of random
 * numbers, so a class alone gets the same requests as beside others. */
#ifndef TRIBUTARY_TESTS_SIM_H
#define TRIBUTARY_TESTS_SIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SIM_CLASSES_MAX = 16, SIM_COSTS_MAX = 8 };

/* Tokens: fixed when p90 is 0, from p50 to p90 uniform when `uniform`, else log-normal with these
 * percentiles, at most max. */
struct sim_length {
    int p50, p90, max;
    bool uniform;
};

struct sim_class {
    const char *name;
    double rate; /* requests/s of the whole class; 0: the class is absent */
    double cv;   /* of the gaps between arrivals; 1: Poisson */
    struct sim_length prompt, answer;
    int n_payers; /* each request is one of them, uniformly; 0: each request a new payer */
    double weight;
    int priority;
    int n_adapters; /* Zipf (1) over so many; 0: base model */
    int first_adapter;
    size_t adapter_bytes;
    double p_loading, loading_ms; /* so often its adapter has to come first, and takes so long */
};

/* A step of so many rows takes so long; straight lines between, and on behind the last. */
struct sim_cost {
    int n_rows;
    double ms;
};

struct sim_options {
    struct sim_class classes[SIM_CLASSES_MAX];
    int n_classes;
    uint64_t seed;
    int n_requests; /* to finish; then the run is over */
    bool by_age;    /* all requests as one payer's and of one priority: first come, first served */
    double warmup_part;                   /* of n_requests, what no figure counts */
    struct sim_cost costs[SIM_COSTS_MAX]; /* ascending; up to the first with 0 rows; two or more */
    int max_seqs, max_rows, max_waiting, n_blocks;
    size_t adapter_bytes;
};

struct sim_class_result {
    int n_finished, n_refused;
    double tokens;                       /* prompt and generated, of the measured part */
    double p50_ms, p99_ms, longest_ms;   /* from arrival to first token */
    double least_share, most_share;      /* of its payers: cost of tokens by weight */
    double sum_share, sum_share_squared; /* likewise; for Jain's index */
};

struct sim_result {
    struct sim_class_result classes[SIM_CLASSES_MAX];
    double n_finished; /* in the whole run */
    double seconds;    /* virtual, of the measured part */
    double tokens;     /* likewise: prompt and generated, first computed or not refused */
    uint64_t n_steps, n_plans, n_preempted, n_bypassed;
    uint64_t n_ahead; /* of the steps, those enqueued while another one flew */
    double rows_per_step, running_per_step;
    uint64_t most_overtaken; /* admissions that somebody waited for */
    char broken[256];        /* the first promise that wasn't kept; "": all were */
};

void sim_run(struct sim_result *out, const struct sim_options *options);

#endif
