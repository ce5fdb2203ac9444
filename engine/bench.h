/* bench: tokens a second of this engine on this machine, with adapters and without.
 *
 * The model and the adapters are random numbers of a named shape, made in memory: speed depends on
 * shapes, not on what is learnt. Every adapter has its own A and B, none of them zero. */
#ifndef TRIBUTARY_ENGINE_BENCH_H
#define TRIBUTARY_ENGINE_BENCH_H

#include <stdbool.h>
#include <stdio.h>

struct err;

enum { BENCH_STREAM_COUNTS_MAX = 8, BENCH_STREAMS_MAX = 256, BENCH_ROUNDS_MAX = 101 };

struct bench_options {                    /* zero or NULL: the default */
    const char *shape;                    /* "110m" (default), "1b", "8b", "tiny" (for tests) */
    const char *backend;                  /* "cpu" */
    int n_threads;                        /* all cores */
    int n_prompt;                         /* tokens; 128 */
    int n_generate;                       /* tokens; 64 */
    int rank;                             /* of every adapter, on all linear modules; 16 */
    int n_rounds;                         /* of which the median is told; 5 */
    int max_rows;                         /* of a step; 256 */
    int streams[BENCH_STREAM_COUNTS_MAX]; /* requests at once, up to the first 0; 1, 8, 16 */
    bool csv;
    const char *commit; /* told beside the numbers; "unknown" */
    const char *flags;  /* likewise */
};

/* What is measured for each number of streams: all of the base model, all under one adapter, each
 * under another. Rounds take turns among the three, so that a slow minute of the machine hits all.
 *   output   tokens generated / time from the first submit to the last token (prefill included)
 *   prefill  tokens of all prompts / time to the last first token
 *   decode   tokens a second while every stream is generating
 * Prints a table, or CSV, to out. Fails when the shape is unknown or doesn't fit. */
int bench_run(const struct bench_options *options, FILE *out, struct err *err);

#endif
