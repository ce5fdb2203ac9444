/* bench: tokens a second of this engine on this machine, with adapters and without.
 *
 * The model and the adapters are random numbers of a named shape, made in memory: speed depends on
 * shapes, not on what is learnt. Every adapter has its own memory, its own A and its own B, none of
 * their numbers zero.
 *
 * Kinds of traffic, by which adapter a stream has:
 *   base      none
 *   shared    all streams the same one
 *   distinct  stream i has adapter i (modulo the number of adapters)
 *   uniform   each stream draws one of the adapters, anew in each round
 *   skewed    the popularity of Punica (Chen et al., arXiv:2310.18547): group sizes grow by 1.5
 *             (1, 1, 2, 3, 5, 7, ...) until the streams are used up
 *
 * Columns:
 *   output    tokens generated / time from the first submit to the last token (prefill included)
 *   prefill   tokens of all prompts / time from the first submit to the last first token
 *   decode    tokens / time, from the moment every stream has its first token to the moment the
 *             first stream has its last: generated tokens after the first, with the output matrix,
 *             sampling and planning in and prefill out, while all streams are there
 *   bound     decode's limit: streams / time to read, once, what a step must (weights, the cache of
 *             every stream at its mean length, the adapters of the step) at the bandwidth told
 *   share     decode / bound
 *   ttft      time from a stream's submit to its first token, over all streams and rounds
 *   itl       time between two tokens of a stream, likewise
 *   distinct  adapters of the streams; held: the engine's own count of them in its decode steps
 *             (its bucket of the median step); uploads: adapters brought to the device during the
 *             measured rounds, which should be none */
#ifndef TRIBUTARY_ENGINE_BENCH_H
#define TRIBUTARY_ENGINE_BENCH_H

#include <stdbool.h>
#include <stdio.h>

struct err;
struct model_config;

enum {
    BENCH_STREAM_COUNTS_MAX = 16,
    BENCH_STREAMS_MAX = 512,
    BENCH_ADAPTERS_MAX = 1024,
    BENCH_ROUNDS_MAX = 101
};

enum bench_kind {
    BENCH_BASE,
    BENCH_SHARED,
    BENCH_DISTINCT,
    BENCH_UNIFORM,
    BENCH_SKEWED,
    BENCH_KINDS
};

extern const char *const bench_kind_names[BENCH_KINDS];

struct bench_options {         /* zero or NULL: the default */
    const char *shape;         /* "110m" (default), "1b", "7b", "8b", "demo-7m", "tiny" */
    const char *backend;       /* "cpu" */
    const char *weights;       /* "file", as engine_options has it */
    const char *adapter_dtype; /* "bf16": what the adapters' numbers are; or "f16", "f32" */
    unsigned kinds;            /* bits 1 << bench_kind; base, shared and distinct */
    int n_threads;             /* all cores */
    int n_prompt;              /* tokens; 128 */
    int n_generate;            /* tokens; 64. With 1 there is nothing to decode */
    int n_adapters;            /* as many as streams at most */
    int rank;                  /* of every adapter, on all linear modules; 16 */
    int n_rounds;              /* of which the median is told; 5 */
    int max_rows;              /* of a step; 256, on cuda 2048 */
    int streams[BENCH_STREAM_COUNTS_MAX]; /* requests at once, up to the first 0; 1, 8, 16 */
    int bandwidth_gbs;                    /* GB/s; measured, on cuda 3100 (an H100's read) */
    bool show_memory;                     /* where the adapters lie on the device */
    bool csv;
    const char *commit; /* told beside the numbers; "unknown" */
    const char *flags;  /* likewise */
};

/* The config behind a shape's name, or NULL: for programs beside the bench. */
const struct model_config *bench_shape(const char *name);

/* Measures each kind with each number of streams. Rounds take turns among the kinds, so that a slow
 * minute of the machine hits all. Prints a table, or CSV, to out. Fails when the shape is unknown
 * or doesn't fit. */
int bench_run(const struct bench_options *options, FILE *out, struct err *err);

#endif
