/* load: streaming completions against a node over HTTP, from one process; each answer checked.
 *
 *     load HOST:PORT [--streams 64] [--adapters 32] [--prompt 128] [--generate 64] [--warm 10]
 *          [--seconds 60] [--vocab 128256] [--csv FILE] [--commit ID]             closed loop
 *     load HOST:PORT --rate 40 --cv 8 --popularity zipf:1.1 --lengths azure-conv   open loop
 *
 * Closed loop: each of `streams` connections asks, waits for the last event of the answer, and asks
 * again. Open loop (--rate): requests come when they come, over as many connections as it takes, up
 * to --connections; one that finds none free waits for it, its clock running. Adapters are those
 * that /v1/models lists after the base model (--adapters 0: the base model). Without --popularity,
 * stream i always has adapter i modulo their number (an open loop: uniform); with it the workload
 * draws (workload.h). Prompts are random token ids, all different (without --seed in every run,
 * too, so that a node's prefix cache finds none of the last run's); end-of-sequence tokens are
 * ignored, so every answer has the length that was asked for. --keys FILE: an API key a line;
 * stream i asks with key i modulo their number, in an open loop the workload's payers are the keys.
 *
 * After `warm` seconds everything counts for `seconds`:
 *   output    tokens that arrived, per second
 *   ttft      from the sending (open loop: from when it was due) to the first token, of requests
 *             that began in the window
 *   itl       between two events with tokens, divided by the tokens of the later one
 *   jain      Jain's index over the tokens that the keys were given
 *   held      the node's own count of decode steps by distinct adapters, from /metrics: the bucket
 *             of the median step, and its share; and no step may have held more different adapters
 *             than were out at once (nobody else may ask the node meanwhile)
 *
 * 429 and 503 are counted and not errors when they say Retry-After, which a stream heeds for up to
 * a second. Everything else than a whole answer (answer.h: receipt, counts, hashes) is an error.
 * Requests that are out when the window ends are waited for (--drain 60), and count as unfinished
 * then. Exit status: 1 if there are errors, or no answer at all; 2 it could not be run. */
#include "tests/bench/load.h"

#include "node/base/err.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

/* The least number of adapters of the buckets that /metrics tells. */
static const int BUCKET_LEAST[LOAD_BUCKETS] = {0, 1, 2, 3, 4, 5, 9, 17, 65};
static const char *const BUCKET_TEXT[LOAD_BUCKETS] = {"0",   "1",    "2",     "3",  "4",
                                                      "5-8", "9-16", "17-64", "65+"};

/* ---- what the node says ------------------------------------------------------------------- */

/* The lines of a file, at least one of them. */
static char **read_lines(const char *path, int *n)
{
    struct buf text = BUF_INIT;
    struct err err = {0};
    char *rest = NULL, **lines = NULL;
    if (file_read(path, 1 << 24, &text, &err) != 0)
        load_die(path, err.message);
    buf_append_byte(&text, '\0'); /* cut in place */
    *n = 0;
    for (char *line = strtok_r((char *)text.data, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        lines = xrealloc_array(lines, (size_t)*n + 1, sizeof *lines);
        lines[(*n)++] = xstrdup(line);
    }
    buf_release(&text);
    if (*n == 0)
        load_die(path, "no line in it");
    return lines;
}

static void list_models(struct load *l)
{
    struct buf text = BUF_INIT;
    if (l->o.models != NULL) {
        l->models = read_lines(l->o.models, &l->n_models);
        l->o.n_adapters = l->n_models;
        return;
    }
    load_get(l, "/v1/models", &text);
    json_t *root = json_loadb((const char *)text.data, text.len, 0, NULL);
    const json_t *data = json_object_get(root, "data");
    int n = (int)json_array_size(data), first = l->o.n_adapters > 0 ? 1 : 0;
    l->n_models = l->o.n_adapters > 0 ? l->o.n_adapters : 1;
    if (n < first + l->n_models) {
        fprintf(stderr, "load: the node serves %d models, %d adapters are asked for\n", n,
                l->o.n_adapters);
        exit(2);
    }
    l->models = xcalloc((size_t)l->n_models, sizeof *l->models);
    for (int i = 0; i < l->n_models; i++) {
        const json_t *id = json_object_get(json_array_get(data, (size_t)(first + i)), "id");
        if (!json_is_string(id))
            load_die("/v1/models", "a model without an id");
        l->models[i] = xstrdup(json_string_value(id));
    }
    json_decref(root);
    buf_release(&text);
}

static void read_held(const struct load *l, uint64_t held[LOAD_BUCKETS])
{
    struct buf text = BUF_INIT;
    load_get(l, "/metrics", &text);
    for (int i = 0; i < LOAD_BUCKETS; i++) {
        char *name = xasprintf("tributary_engine_decode_steps_total{adapters=\"%s\"} ",
                               BUCKET_TEXT[i]);
        const char *at = strstr(buf_cstr(&text), name);
        if (at == NULL)
            load_die("/metrics", "no count of decode steps by adapters");
        held[i] = strtoull(at + strlen(name), NULL, 10);
        free(name);
    }
    buf_release(&text);
}

/* ---- telling ----------------------------------------------------------------------------- */

/* The bucket of the median decode step, and its share of the steps; checks the most of any. */
static int check_held(struct load *l, double *share)
{
    uint64_t n = 0, at = 0;
    int median = 0, most = 0;
    for (int i = 0; i < LOAD_BUCKETS; i++) {
        l->held[i] -= l->held_before[i];
        n += l->held[i];
        most = l->held[i] > 0 ? i : most;
    }
    while (median < LOAD_BUCKETS - 1 && (at += l->held[median]) * 2 <= n)
        median++;
    *share = n > 0 ? (double)l->held[median] / (double)n : 0;
    if (BUCKET_LEAST[most] > l->distinct_max) {
        printf("error: the node counted decode steps with %s different adapters, %d were out\n",
               BUCKET_TEXT[most], l->distinct_max);
        l->n_errors++;
    }
    return median;
}

static void tell(struct load *l)
{
    double share, s = l->o.seconds, asked = fmax(1, (double)l->n_asked);
    int median = check_held(l, &share), n_keys = l->n_keys > 0 ? l->n_keys : 1;
    struct buf row = BUF_INIT, titles = BUF_INIT;
    const struct {
        const char *name;
        int digits;
        double value;
    } cells[] = {
        {"streams", 0, l->o.rate > 0 ? 0 : l->o.n_streams},
        {"rate", 2, l->o.rate},
        {"cv", 2, l->o.rate > 0 ? l->o.cv : 0},
        {"adapters", 0, l->o.n_adapters},
        {"prompt", 0, (double)l->prompt_asked / asked}, /* means */
        {"generate", 0, (double)l->generate_asked / asked},
        {"seconds", 0, s},
        {"output_tokens_s", 1, (double)l->n_tokens / s},
        {"prompt_tokens_s", 1, (double)l->n_prompt_tokens / s},
        {"asked", 0, (double)l->n_asked},
        {"answers", 0, (double)l->n_answers},
        {"answers_s", 2, (double)l->n_answers / s},
        {"ttft_mean_ms", 1, latency_mean(&l->ttft)},
        {"ttft_p50_ms", 1, latency_percentile(&l->ttft, 50)},
        {"ttft_p90_ms", 1, latency_percentile(&l->ttft, 90)},
        {"ttft_p99_ms", 1, latency_percentile(&l->ttft, 99)},
        {"itl_mean_ms", 2, latency_mean(&l->itl)},
        {"itl_p50_ms", 2, latency_percentile(&l->itl, 50)},
        {"itl_p99_ms", 2, latency_percentile(&l->itl, 99)},
        {"keys", 0, l->n_keys},
        {"jain", 4, jain_index(l->served, n_keys)},
        {"out_distinct_max", 0, l->distinct_max},
        {"held_share", 3, share},
        {"status_429", 0, (double)l->n_429},
        {"status_503", 0, (double)l->n_503},
        {"unfinished", 0, (double)l->n_unfinished},
        {"errors", 0, (double)l->n_errors},
    };
    for (size_t i = 0; i < sizeof cells / sizeof cells[0]; i++) {
        printf("%-16s %.*f\n", cells[i].name, cells[i].digits, cells[i].value);
        buf_appendf(&titles, "%s,", cells[i].name);
        buf_appendf(&row, "%.*f,", cells[i].digits, cells[i].value);
    }
    const char *held = share > 0 ? BUCKET_TEXT[median] : "-"; /* no decode step */
    printf("%-16s %s\n", "held", held);
    buf_append_str(&titles, "held,popularity,lengths,commit");
    buf_appendf(&row, "%s,%s,%s,%s", held, l->o.popularity != NULL ? l->o.popularity : "by stream",
                l->o.lengths != NULL ? l->o.lengths : "fixed", l->o.commit);
    FILE *f = l->o.csv != NULL ? fopen(l->o.csv, "w") : NULL;
    if (f != NULL)
        fprintf(f, "%s\n%s\n", buf_cstr(&titles), buf_cstr(&row));
    if (l->o.csv != NULL && (f == NULL || fclose(f) != 0))
        load_die(l->o.csv, "cannot be written");
    buf_release(&titles);
    buf_release(&row);
}

/* ---- options ----------------------------------------------------------------------------- */

static void help(FILE *out)
{
    fputs("usage: load HOST:PORT [OPTION ...]\n"
          "  --streams N         closed loop of so many; 64\n"
          "  --rate R --cv C     open loop instead: requests a second, variation of arrivals (1)\n"
          "  --connections N     of an open loop at most; 1024\n"
          "  --adapters N        of those that the node lists; 32. 0: the base model\n"
          "  --models FILE       instead: names of adapters, one a line\n"
          "  --popularity WORD   uniform, identical, distinct, zipf:S, power:A, punica:R\n"
          "  --prompt N --generate N   tokens; 128 and 64\n"
          "  --lengths WORD      fixed:P:G, uniform:A:B, punica, azure-conv, azure-code\n"
          "  --vocab N           ids to draw from; 128256\n"
          "  --keys FILE         API keys, one a line\n"
          "  --warm S --seconds S --drain S    10, 60 and 60\n"
          "  --csv FILE, --commit ID, --seed N\n",
          out);
}

_Noreturn static void wrong(const char *name, const char *value)
{
    fprintf(stderr, "load: %s %s\n", name, value != NULL ? value : "(nothing)");
    help(stderr);
    exit(2);
}

static double number(const char *name, const char *text)
{
    char *end = NULL;
    double n = text != NULL ? strtod(text, &end) : 0;
    if (text == NULL || end == text || *end != '\0' || !(n >= 0 && n <= 1e9))
        wrong(name, text);
    return n;
}

static int whole(const char *name, const char *text)
{
    double n = number(name, text);
    if (n > floor(n))
        wrong(name, text);
    return (int)n;
}

static struct load_options options_of(char **argv)
{
    struct load_options o = {.commit = "unknown",
                             .n_streams = 64,
                             .n_adapters = 32,
                             .n_prompt = 128,
                             .n_generate = 64,
                             .vocab = 128256,
                             .n_connections = 1024,
                             .warm_s = 10,
                             .seconds = 60,
                             .drain_s = 60,
                             .cv = 1};
    const struct {
        const char *name, **word;
        int *whole;
        double *real;
    } names[] = {
        {"--csv", &o.csv, NULL, NULL},
        {"--commit", &o.commit, NULL, NULL},
        {"--popularity", &o.popularity, NULL, NULL},
        {"--lengths", &o.lengths, NULL, NULL},
        {"--keys", &o.keys, NULL, NULL},
        {"--models", &o.models, NULL, NULL},
        {"--streams", NULL, &o.n_streams, NULL},
        {"--adapters", NULL, &o.n_adapters, NULL},
        {"--prompt", NULL, &o.n_prompt, NULL},
        {"--generate", NULL, &o.n_generate, NULL},
        {"--vocab", NULL, &o.vocab, NULL},
        {"--connections", NULL, &o.n_connections, NULL},
        {"--warm", NULL, NULL, &o.warm_s},
        {"--seconds", NULL, NULL, &o.seconds},
        {"--drain", NULL, NULL, &o.drain_s},
        {"--rate", NULL, NULL, &o.rate},
        {"--cv", NULL, NULL, &o.cv},
    };
    for (char **a = argv + 1; *a != NULL; a++) {
        size_t i = 0, n = sizeof names / sizeof names[0];
        if (strcmp(*a, "--help") == 0) {
            help(stdout);
            exit(0);
        }
        if (**a != '-' && o.address == NULL) {
            o.address = *a;
            continue;
        }
        while (i < n && strcmp(names[i].name, *a) != 0)
            i++;
        const char *value = a[1];
        if (value == NULL || (i == n && strcmp(*a, "--seed") != 0))
            wrong(*a, value);
        if (i == n)
            o.seed = (uint64_t)number(*a, value);
        else if (names[i].word != NULL)
            *names[i].word = value;
        else if (names[i].whole != NULL)
            *names[i].whole = whole(*a, value);
        else
            *names[i].real = number(*a, value);
        a++;
    }
    if (o.address == NULL || o.n_streams < 1 || o.n_connections < 1 || o.vocab < 1 ||
        o.seconds <= 0)
        wrong("an address, and numbers above 0, are wanted", "");
    return o;
}

static void open_workload(struct load *l)
{
    struct err err = {0};
    struct workload_options w = {.seed = l->o.seed > 0 ? l->o.seed : 1,
                                 .rate = l->o.rate,
                                 .cv = l->o.cv,
                                 .n_adapters = l->o.n_adapters,
                                 .n_payers = l->n_keys,
                                 .lengths = LENGTHS_FIXED,
                                 .length_a = l->o.n_prompt,
                                 .length_b = l->o.n_generate};
    if ((l->o.popularity != NULL && workload_parse_popularity(&w, l->o.popularity, &err) != 0) ||
        (l->o.lengths != NULL && workload_parse_lengths(&w, l->o.lengths, &err) != 0) ||
        workload_create(&l->workload, &w, &err) != 0)
        load_die("the workload", err.message);
}

int main(int argc, char **argv)
{
    (void)argc;
    struct load *l = xcalloc(1, sizeof *l);
    struct rlimit files;
    l->o = options_of(argv);
    l->random = l->o.seed > 0 ? l->o.seed : clock_unix_ms().ms;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) { /* a socket for each connection */
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    l->url = strstr(l->o.address, "://") != NULL ? xstrdup(l->o.address)
                                                 : xasprintf("http://%s", l->o.address);
    if (l->o.keys != NULL)
        l->keys = read_lines(l->o.keys, &l->n_keys);
    list_models(l);
    open_workload(l);
    load_open(l);
    read_held(l, l->held_before);
    load_run(l);
    read_held(l, l->held);
    tell(l);
    int rc = l->n_errors > 0 || l->ttft.n == 0 ? 1 : 0;
    load_close(l);
    for (int i = 0; i < l->n_models; i++)
        free(l->models[i]);
    for (int i = 0; i < l->n_keys; i++)
        free(l->keys[i]);
    workload_free(l->workload);
    free(l->models);
    free(l->keys);
    free(l->url);
    free(l);
    return rc;
}
