/* workload: who asks for what, and when. A seeded, endless sequence of requests, for the programs
 * that replay it on an engine (replay.c) or on a node over HTTP (load.c).
 *
 * Each property is drawn from a generator of its own (arrival, adapter, lengths, payer), so that
 * changing one leaves the others as they were: the same seed at twice the rate has the same
 * adapters and the same lengths, in the same order.
 *
 * Arrivals. Times between requests are gamma distributed with mean 1 / rate and coefficient of
 * variation cv (standard deviation / mean): shape 1 / cv^2. cv 1 is Poisson, cv 0 a metronome.
 *
 * Popularity. Over the adapters 0 to n - 1, from the most popular on:
 *   identical   all requests want adapter 0
 *   uniform     each equally likely
 *   zipf:S      adapter i with weight (i + 1)^-S
 *   power:A     i = floor(n U^(1/A)): S-LoRA's power law (Sheng et al., arXiv:2311.03285, and the
 *               trace generator published with it). A 1, which its tables use, is uniform; A < 1
 *               favours the first, A > 1 the last ones.
 *   punica:R    adapter i with weight R^-i: the skewed popularity of Punica (Chen et al.,
 *               arXiv:2310.18547), where each has R times the requests of the next; R 1.5 there
 *   distinct    request k wants adapter k modulo n
 *
 * Lengths, in tokens:
 *   fixed:P:G       prompts of P, answers of G
 *   uniform:A:B     both uniform from A to B inclusive; S-LoRA's synthetic load is uniform:8:512
 *   punica          prompts log-normal (sigma 0.8, shifted by -1, scale 18), prompt and answer
 *                   together uniform below 2048 but at least prompt + 2: the request set of the
 *                   text generation benchmark published with Punica
 *   azure-conv      the conversation and the code service of the Azure LLM inference trace of 2023
 *   azure-code      (Patel et al., Splitwise, ISCA 2024), from its published mean, median and 90th
 *                   percentile: see below
 *
 * The Azure lengths. No family with two parameters passes through three published numbers, so the
 * quantile function is a curve through four points, bent alike in its three segments:
 *
 *     u        0      0.5     0.9       1          q(u) between two points a and b at t in [0, 1]:
 *     length   low    p50     p90      high            a + (b - a) t^k
 *
 * The mean over a segment is a + (b - a) / (k + 1), so that one k gives the published mean exactly:
 * 1 / (k + 1) = (mean - sum of w a) / (sum of w (b - a)), w = 0.5, 0.4, 0.1. low and high are not
 * among the published figures: 1, and assumptions far beyond p90 (workload.c), which move k only.
 */
#ifndef TRIBUTARY_TESTS_BENCH_WORKLOAD_H
#define TRIBUTARY_TESTS_BENCH_WORKLOAD_H

#include <stdint.h>

struct err;
struct workload;

enum workload_popularity {
    POPULARITY_UNIFORM,
    POPULARITY_IDENTICAL,
    POPULARITY_ZIPF,
    POPULARITY_POWER,
    POPULARITY_PUNICA,
    POPULARITY_DISTINCT,
};

enum workload_lengths {
    LENGTHS_FIXED,
    LENGTHS_UNIFORM,
    LENGTHS_PUNICA,
    LENGTHS_AZURE_CONV,
    LENGTHS_AZURE_CODE,
};

struct workload_options {
    uint64_t seed;
    uint64_t adapter_seed; /* of the adapters alone; 0: they follow seed, too */
    double rate;           /* requests a second; 0: all at time 0 (a closed loop paces itself) */
    double cv;             /* of the times between them; 1: Poisson */
    int n_adapters;        /* 0: the base model, adapter -1 */
    enum workload_popularity popularity;
    double popularity_parameter; /* S, A or R above; unused by the others */
    enum workload_lengths lengths;
    int length_a, length_b; /* P and G, or A and B above; unused by the others */
    /* Both are cut to what a model takes: n_prompt + n_generate <= max_context (0: any), taking
     * from the answer what exceeds it, after the prompt was cut to max_context - 1. */
    int max_context;
    int n_payers; /* drawn uniformly; 0 is 1 */
};

struct workload_request {
    uint64_t number;          /* from 0 */
    double at_s;              /* since the beginning; never decreasing */
    int adapter;              /* 0 to n_adapters - 1; -1: base model */
    int n_prompt, n_generate; /* >= 1 each */
    int payer;                /* 0 to n_payers - 1 */
};

/* Fail with ERR_INVALID naming the option. */
int workload_create(struct workload **out, const struct workload_options *options, struct err *err);
void workload_free(struct workload *w); /* quiet on NULL */

void workload_next(struct workload *w, struct workload_request *out);

/* From the words above ("zipf:1.1", "uniform:8:512") into options; ERR_INVALID names the word and
 * lists what there is. */
int workload_parse_popularity(struct workload_options *o, const char *text, struct err *err);
int workload_parse_lengths(struct workload_options *o, const char *text, struct err *err);

/* ---- random numbers, for whoever has a workload ------------------------------------------ */

/* SplitMix64 (Steele et al., OOPSLA 2014): advances *state. */
uint64_t random_next(uint64_t *state);
double random_unit(uint64_t *state); /* uniform in (0, 1) */
/* Mean `mean`, coefficient of variation cv > 0. May be 0 where the exact value is too small for a
 * double. */
double random_gamma(uint64_t *state, double mean, double cv);

#endif
