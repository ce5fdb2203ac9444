/* replay: adapters by the thousand on the engine in this process, under a workload; no HTTP.
 *
 *     replay --row 4,7 --backend cuda --csv FILE           the rows of issue 4 (replay_rows.c)
 *     replay --backend cuda --shape 8b --adapters 900:r16:qkvo,100:r128:all --pool-bytes 16g
 *            --rate 40 --cv 8 --popularity zipf:1.1 --lengths azure-conv --seconds 60
 *
 * Rows, each on its own shape and with its own default time:
 *   2   on a CPU: 1,000 adapters on the shape of demo-7m with a pool for 50, against all resident
 *   4   a miss in host memory: 20 a second beside 32 streams, and 5 % cold at half of saturation
 *   5   10,000 adapters of three ranks, 108 GB of host memory, against 3,333 that are all resident
 *   6   S-LoRA's scenario: 7B, 2,000 adapters of rank 8, from 10 requests/s to saturation
 *   7   a working set of twice the pool, 4,096 tokens in and 2,048 out, 1 request/s
 *   8   fairness: eight backlogged payers; one adapter offered at ten times capacity
 *   9   ranks 8 to 128 in one batch against a model from batches of one rank; bytes of the pool
 *   11  what 1, 100, 1,000 and 10,000 adapters cost
 * Row 10, churn with every token verified, is tests/soak.
 *
 * What it prints: for each measurement (run) and each kind of traffic in it (group)
 *   req/s      requests that ended in the window, a second; output/s: tokens that came in it
 *   ttft       time to first token of requests that arrived in the window, apart for those whose
 *              adapter was on the device when they arrived (or the base model) and those whose was
 *              not; from when they were due
 *   itl        time between two tokens of a request
 *   distinct   adapters of a decode step, mean and most: counted step by step from the requests,
 *              compared with the engine's own count
 *   up/evicted adapters brought to the device in the run, and evicted from it
 * The CSV has more: bytes of pool, device and process, the least squares' inputs, and so on.
 *
 * Exit status: 0; 1 a request failed, or a step held other adapters than its requests asked for;
 * 2 it could not be run. */
#include "tests/bench/replay.h"

#include "engine/bench.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/log.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_MAX = 8 };

struct options {
    const char *backend, *adapters, *popularity, *lengths, *csv, *commit;
    struct row_options row;
    int rows[ROWS_MAX], n_rows;
    int n_threads, n_streams, n_payers, max_seqs, max_rows, max_context, pool_adapters, n_missing;
    uint64_t seed;
    size_t kv_bytes;
    double rate, cv, warm_s, miss_rate, fewer;
    bool sabotage;
};

static void help(FILE *out)
{
    fputs("usage: replay --row N[,N...] | --adapters N:rRANK:MODULES[,...]  [OPTION ...]\n"
          "  --backend NAME      cpu (default), ref, cuda\n"
          "  --shape NAME        demo-7m, 110m, 1b, 7b, 8b, tiny; a row has its own\n"
          "  --seconds S         measured: of all of a row together; else 10\n"
          "  --shrink N          rows: adapters, streams and pools divided by N\n"
          "  --pool-bytes N      device memory for adapters (10g, 512m); else all fit\n"
          "  --pool-adapters N   the same, in adapters of mean size\n"
          "  --csv FILE, --commit ID, --seed N, --threads N\n"
          "without --row:\n"
          "  --adapters SPEC     like 9000:r8:qv,100:r128:all; modules q k v o g u d\n"
          "  --fewer N           register 1/N of each class, with the same mix of requests\n"
          "  --streams N         closed loop of so many (8), or\n"
          "  --rate R --cv C     open loop: requests a second, variation of arrivals (1)\n"
          "  --popularity WORD   uniform, identical, distinct, zipf:S, power:A, punica:R\n"
          "  --lengths WORD      fixed:P:G, uniform:A:B, punica, azure-conv, azure-code\n"
          "  --miss-rate R       so many more a second, under adapters that nobody else uses:\n"
          "  --missing N         the last N, in turn (64)\n"
          "  --sabotage          ask under each adapter's neighbour: the steps' check must fail\n"
          "  --payers N, --warm S, --max-seqs N, --max-rows N, --max-context N, --kv-bytes N\n",
          out);
}

_Noreturn static void wrong(const char *what, const char *value)
{
    fprintf(stderr, "replay: %s %s\n", what, value != NULL ? value : "(nothing)");
    help(stderr);
    exit(2);
}

static double number(const char *name, const char *text)
{
    char *end = NULL;
    double n = text != NULL ? strtod(text, &end) : 0;
    if (text == NULL || end == text || *end != '\0' || !(n >= 0 && n < 1e15))
        wrong(name, text);
    return n;
}

static size_t bytes(const char *name, const char *text)
{
    char *end = NULL;
    double n = text != NULL ? strtod(text, &end) : 0;
    int shift = end == NULL ? 0 : *end == 'g' ? 30 : *end == 'm' ? 20 : *end == 'k' ? 10 : 0;
    if (text == NULL || end == text || end[shift > 0] != '\0' || !(n >= 0 && n < 1e15))
        wrong(name, text);
    return (size_t)(n * (double)((size_t)1 << shift));
}

static void parse_rows(struct options *o, const char *text)
{
    const char *at = text;
    while (at != NULL && *at != '\0' && o->n_rows < ROWS_MAX) {
        char *end;
        long row = strtol(at, &end, 10);
        if (end == at || (*end != '\0' && *end != ',') || row < 1 || row > 11)
            wrong("--row", text);
        o->rows[o->n_rows++] = (int)row;
        at = *end == ',' ? end + 1 : end;
    }
    if (o->n_rows == 0)
        wrong("--row", text);
}

static bool parse_word(struct options *o, const char *name, const char *value)
{
    const struct {
        const char *name, **value;
    } words[] = {
        {"--backend", &o->backend}, {"--adapters", &o->adapters}, {"--popularity", &o->popularity},
        {"--lengths", &o->lengths}, {"--csv", &o->csv},           {"--commit", &o->commit},
        {"--shape", &o->row.shape}};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcmp(words[i].name, name) == 0) {
            if (value == NULL)
                wrong(name, value);
            *words[i].value = value;
            return true;
        }
    return false;
}

static bool parse_number(struct options *o, const char *name, const char *value)
{
    const struct {
        const char *name;
        double *real;
        int *whole;
    } numbers[] = {{"--seconds", &o->row.seconds, NULL},
                   {"--shrink", &o->row.shrink, NULL},
                   {"--rate", &o->rate, NULL},
                   {"--cv", &o->cv, NULL},
                   {"--warm", &o->warm_s, NULL},
                   {"--miss-rate", &o->miss_rate, NULL},
                   {"--fewer", &o->fewer, NULL},
                   {"--threads", NULL, &o->n_threads},
                   {"--streams", NULL, &o->n_streams},
                   {"--payers", NULL, &o->n_payers},
                   {"--missing", NULL, &o->n_missing},
                   {"--pool-adapters", NULL, &o->pool_adapters},
                   {"--max-seqs", NULL, &o->max_seqs},
                   {"--max-rows", NULL, &o->max_rows},
                   {"--max-context", NULL, &o->max_context}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (strcmp(numbers[i].name, name) == 0) {
            double n = number(name, value);
            if (numbers[i].real != NULL)
                *numbers[i].real = n;
            else if (n > 1e9 || n > floor(n))
                wrong(name, value);
            else
                *numbers[i].whole = (int)n;
            return true;
        }
    return false;
}

static struct options options_of(char **argv)
{
    struct options o = {.backend = "cpu",
                        .popularity = "uniform",
                        .lengths = "fixed:128:64",
                        .commit = "unknown",
                        .row = {.shrink = 1},
                        .n_missing = 64,
                        .fewer = 1,
                        .warm_s = 2,
                        .cv = 1,
                        .seed = 1};
    for (char **a = argv + 1; *a != NULL; a++) {
        const char *name = *a, *value = a[1];
        if (strcmp(name, "--help") == 0) {
            help(stdout);
            exit(0);
        }
        if (strcmp(name, "--sabotage") == 0) {
            o.sabotage = true;
            continue;
        }
        if (strcmp(name, "--row") == 0)
            parse_rows(&o, value);
        else if (strcmp(name, "--seed") == 0)
            o.seed = (uint64_t)number(name, value);
        else if (strcmp(name, "--pool-bytes") == 0)
            o.row.pool_bytes = bytes(name, value);
        else if (strcmp(name, "--kv-bytes") == 0)
            o.kv_bytes = bytes(name, value);
        else if (!parse_word(&o, name, value) && !parse_number(&o, name, value))
            wrong("no such option:", name);
        a++;
    }
    if ((o.n_rows > 0) == (o.adapters != NULL))
        wrong("give --row or --adapters", "");
    if (o.row.shrink < 1 || o.fewer < 1 || o.seed > 255)
        wrong("--shrink and --fewer are at least 1, --seed at most 255", "");
    return o;
}

/* ---- a run of one's own ------------------------------------------------------------------ */

static int run_own(struct rig *rig, const struct options *o, struct report *report, struct err *err)
{
    struct rig_spec larger = {.max_seqs = o->max_seqs,
                              .max_rows = o->max_rows,
                              .max_context = o->max_context > 0 ? o->max_context : 2048,
                              .pool_bytes = o->row.pool_bytes,
                              .pool_adapters = o->pool_adapters,
                              .kv_bytes = o->kv_bytes},
                    spec;
    snprintf(larger.shape, sizeof larger.shape, "%s", o->row.shape != NULL ? o->row.shape : "tiny");
    const struct model_config *config = bench_shape(larger.shape);
    if (config == NULL)
        return err_set(err, ERR_INVALID, "no shape %s", larger.shape);
    if (larger.max_context > config->max_context)
        larger.max_context = config->max_context;
    if (rig_parse_classes(&larger, o->adapters, err) != 0)
        return -1;
    spec = larger;
    rig_divide(&spec, o->fewer);
    int n = rig_count(&larger), n_missing = o->miss_rate > 0 ? o->n_missing : 0;
    if (n_missing >= n || (n_missing > 0 && o->fewer > 1))
        return err_set(err, ERR_INVALID, "%d of %d adapters are to be missing%s", n_missing, n,
                       o->fewer > 1 ? ", and fewer registered" : "");
    struct run_options run = {.row = "-",
                              .name = "own",
                              .seconds = o->row.seconds > 0 ? o->row.seconds : 10,
                              .warm_s = o->warm_s,
                              .drain_s = 5,
                              .n_groups = n_missing > 0 ? 2 : 1};
    run.groups[0] = (struct group){.name = o->popularity,
                                   .n_streams = o->rate > 0        ? 0
                                                : o->n_streams > 0 ? o->n_streams
                                                                   : 8,
                                   .larger = o->fewer > 1 ? &larger : NULL,
                                   .workload = {.seed = o->seed,
                                                .rate = o->rate,
                                                .cv = o->cv,
                                                .n_adapters = n - n_missing,
                                                .n_payers = o->n_payers}};
    if (workload_parse_popularity(&run.groups[0].workload, o->popularity, err) != 0 ||
        workload_parse_lengths(&run.groups[0].workload, o->lengths, err) != 0)
        return -1;
    run.groups[1] = run.groups[0];
    run.groups[1].name = "missing";
    run.groups[1].n_streams = 0;
    run.groups[1].first_adapter = n - n_missing;
    run.groups[1].workload.seed = o->seed + 1;
    run.groups[1].workload.rate = o->miss_rate;
    run.groups[1].workload.cv = 1;
    run.groups[1].workload.n_adapters = n_missing;
    run.groups[1].workload.popularity = POPULARITY_DISTINCT;
    struct run_result *r = xcalloc(1, sizeof *r);
    int rc = rig_open(rig, &spec, err);
    rig->n_off = o->sabotage;
    if (rc == 0)
        rc = run_measure(rig, &run, r, err);
    if (rc == 0)
        report_run(report, rig, &run, r);
    free(r);
    return rc;
}

static char *joined(char **argv)
{
    struct buf text = BUF_INIT;
    for (char **a = argv + 1; *a != NULL; a++)
        buf_appendf(&text, "%s%s", a == argv + 1 ? "" : " ", *a);
    return buf_detach(&text);
}

int main(int argc, char **argv)
{
    (void)argc;
    struct options o = options_of(argv);
    struct err err = {0};
    struct rig rig;
    char *flags = joined(argv);
    struct report report = {.commit = o.commit, .flags = flags};
    int rc = 0;
    if (o.csv != NULL && (report.csv = fopen(o.csv, "w")) == NULL) {
        fprintf(stderr, "replay: cannot write %s\n", o.csv);
        return 2;
    }
    rig_init(&rig, o.backend, o.n_threads, o.seed);
    if (o.n_rows == 0)
        rc = run_own(&rig, &o, &report, &err);
    for (int i = 0; rc == 0 && i < o.n_rows; i++)
        rc = row_run(&rig, o.rows[i], &o.row, &report, &err);
    if (rc != 0)
        fprintf(stderr, "replay: %s\n", err.message);
    rig_release(&rig);
    if (report.csv != NULL && fclose(report.csv) != 0) {
        fprintf(stderr, "replay: cannot write %s\n", o.csv);
        rc = -1;
    }
    free(flags);
    if (report.n_failed > 0)
        printf("# %" PRIu64 " FAILED\n", report.n_failed);
    return rc != 0 ? 2 : report.n_failed > 0 ? 1 : 0;
}
