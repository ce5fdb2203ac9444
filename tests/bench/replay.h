/* replay: a workload driven through the engine in this process, and what it measured. Shared by
 * replay_rig.c (model, adapters, engine), replay_run.c (one measurement), replay_rows.c (the rows
 * of issue 4) and replay.c (the program). */
#ifndef TRIBUTARY_TESTS_BENCH_REPLAY_H
#define TRIBUTARY_TESTS_BENCH_REPLAY_H

#include "engine/internal.h"
#include "tests/bench/latency.h"
#include "tests/bench/workload.h"

#include <pthread.h>
#include <stdio.h>

enum { CLASSES_MAX = 8, GROUPS_MAX = 12, DISTINCT_MAX = 4096 };

/* ---- the rig ----------------------------------------------------------------------------- */

struct adapter_class {
    int n, rank;
    unsigned targets; /* bits 1 << site_kind */
};

/* What an engine is opened with; two equal ones share an engine. */
struct rig_spec {
    char shape[16];
    struct adapter_class classes[CLASSES_MAX]; /* [n_classes] that are registered */
    int n_classes;
    size_t pool_bytes; /* of the device, for adapters; 0: all of them fit, and a little more */
    int pool_adapters; /* > 0: instead, as many of their mean size */
    size_t kv_bytes;   /* 0: the engine's own choice */
    int max_seqs;      /* 0: likewise */
    int max_rows;      /* likewise */
    int max_context;   /* tokens */
};

struct run;

struct rig {
    struct rig_spec spec;
    const char *backend;
    int n_threads;
    uint64_t seed;
    struct model_config config;
    struct engine *engine; /* NULL: none is open */
    int n_adapters;
    struct content_digest *digests; /* [n_adapters], class after class */
    size_t *bytes;                  /* [n_adapters] of A and B */
    double *ranks; /* [n_adapters] its bytes in units of one rank on all modules, so that adapters
                      on different modules can be added up */
    size_t adapter_bytes; /* of all, as they lie in memory */
    double open_s, make_s;

    pthread_mutex_t lock; /* of what follows but n_off, and of the run's figures */
    pthread_cond_t changed;
    uint64_t n_runs;
    int n_off;       /* sabotage: requests ask under the adapter so many behind their own */
    struct run *run; /* NULL: none */
    uint64_t *stamp; /* [n_adapters] the step that held it last */
    uint64_t n_stamp;
    uint64_t held[ENGINE_ENTROPY_BUCKETS]; /* decode steps by distinct adapters, our own count */
    uint64_t n_differ;   /* steps whose count is not the engine's, or that hold another adapter */
    size_t device_bytes; /* in use on a device with memory of its own; else 0 */
};

void rig_init(struct rig *rig, const char *backend, int n_threads, uint64_t seed);
/* Makes rig->engine one of that spec, closing another one. Says on stderr what it does. */
int rig_open(struct rig *rig, const struct rig_spec *spec, struct err *err);
void rig_release(struct rig *rig);

/* "9000:r8:qv,900:r16:qkvo,100:r128:all": modules q k v o g(ate) u(p) d(own), or all. */
int rig_parse_classes(struct rig_spec *spec, const char *text, struct err *err);
/* Each class divided by `by`, at least one adapter of each. */
void rig_divide(struct rig_spec *spec, double by);
int rig_count(const struct rig_spec *spec);    /* adapters */
size_t rig_bytes(const struct rig_spec *spec); /* of their A and B, as they lie in memory */

/* The registered adapter that stands for adapter `index` of a larger set of the same classes: of
 * the same class, so that a step's mix of ranks stays. */
int rig_fold(const struct rig *rig, const struct rig_spec *larger, int index);

size_t process_bytes(void); /* resident memory of this process */

/* replay_run.c: what the rig's engine calls, with the rig. */
void run_on_events(void *context, const struct engine_event *events, size_t n);
void run_on_step(void *context, const struct step_batch *batch, int n_decode, int n_distinct,
                 uint64_t step_us);

/* ---- one measurement --------------------------------------------------------------------- */

/* Traffic of one kind. Open loop when workload.rate > 0: requests come when they come. Closed loop
 * otherwise: each of n_streams asks, waits for the end, asks again. */
struct group {
    const char *name;
    struct workload_options workload; /* over n_adapters of its own, from 0 */
    int n_streams;
    int first_adapter, stride; /* adapter i of the workload is first + i * stride (stride 0: 1) */
    const struct rig_spec
        *larger;        /* then folded from this set into what is registered; NULL: not */
    uint64_t payer;     /* of workload payer 0; the others follow */
    float payer_weight; /* 0: 1 */
};

struct run_options {
    const char *row, *name;
    double warm_s, seconds;          /* nothing counts before warm_s; then all counts for seconds */
    double drain_s;                  /* how long requests of the window are waited for after it */
    struct group groups[GROUPS_MAX]; /* [n_groups] */
    int n_groups;
    uint64_t n_requests; /* 0: as long as it takes; else ends when so many have ended */
};

/* Of requests that arrived in the window, and of tokens that came in it. */
struct group_result {
    uint64_t n_requests, n_finished; /* arrived; ended in the window */
    uint64_t n_tokens, n_prompt;     /* generated; prompt tokens of what had its first token */
    uint64_t n_misses;               /* its adapter was not on the device when it arrived */
    uint64_t n_refused, n_unfinished, n_failed;
    struct latency ttft, ttft_resident, ttft_miss, itl;
    double lag_max_ms; /* of the generator behind the arrivals */
};

struct run_result {
    double seconds;
    int n_groups;
    struct group_result groups[GROUPS_MAX];
    struct group_result all;
    uint64_t n_prefix_tokens; /* of prompts, found in the prefix cache */
    uint64_t n_hits, n_uploads, n_prefetches, n_evictions, n_preemptions;
    uint64_t n_steps, n_decode_steps;
    uint64_t distinct[DISTINCT_MAX + 1]; /* decode steps by distinct adapters; the last: more */
    double distinct_mean, rank_mean;     /* of decode steps: adapters, and sum of their ranks */
    int distinct_max, decode_max;
    struct latency step,
        full;              /* ms of decode steps without prefill; of those with decode_max rows */
    double full_rank_mean; /* of the latter */
    int n_resident;
    size_t pool_used, pool_true; /* bytes of the device pool in use; of the adapters in it */
    size_t device_bytes;         /* in use, on a device with memory of its own; else 0 */
    size_t host_bytes, adapter_host_bytes; /* of this process; of its adapters' memory */
    uint64_t n_failed; /* everything that must not be: failures, and counts that differ */
};

/* Runs it on the open engine and waits until nothing runs. -1 when it could not be done at all. */
int run_measure(struct rig *rig, const struct run_options *options, struct run_result *out,
                struct err *err);

/* Every adapter comes to the device once, if all fit, so that no measurement waits for that. */
int run_touch_all(struct rig *rig, struct err *err);

/* Brings the pool to where uniform requests over all adapters keep it: full, if they don't all fit.
 * Without it a short run would find room for whatever it misses. */
int run_fill_pool(struct rig *rig, struct err *err);

/* ---- telling ----------------------------------------------------------------------------- */

struct report {
    FILE *csv; /* may be NULL */
    const char *commit, *flags;
    bool has_head;
    uint64_t n_failed;
};

void report_run(struct report *r, const struct rig *rig, const struct run_options *o,
                const struct run_result *result);
/* A line of conclusion, after the rows that it follows from. */
void report_note(struct report *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- the rows ---------------------------------------------------------------------------- */

struct row_options {
    const char *shape; /* NULL: the row's own */
    double seconds;    /* for the row's measurements together; 0: the row's own */
    double shrink;     /* divides adapters, streams and pool */
    size_t pool_bytes; /* 0: the row's own */
};

/* Row 2, 4 to 9, or 11 (10 is tests/soak; 1 and 3 are elsewhere). */
int row_run(struct rig *rig, int row, const struct row_options *o, struct report *report,
            struct err *err);

#endif
