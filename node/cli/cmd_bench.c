/* cmd_bench: tokens a second on this machine; the work is engine/bench.h's. */
#include "engine/bench.h"
#include "node/cli/commands.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* A whole number from 1 to max, or -1. */
static int whole(const char *text, int max)
{
    char *end;
    long v = strtol(text, &end, 10);
    return end == text || *end != '\0' || v < 1 || v > max ? -1 : (int)v;
}

static const struct {
    const char *option;
    size_t field;
    int max;
} NUMBERS[] = {
    {"threads", offsetof(struct bench_options, n_threads), 1024},
    {"prompt", offsetof(struct bench_options, n_prompt), 1 << 20},
    {"generate", offsetof(struct bench_options, n_generate), 1 << 20},
    {"rank", offsetof(struct bench_options, rank), 1024},
    {"rounds", offsetof(struct bench_options, n_rounds), BENCH_ROUNDS_MAX},
    {"max-rows", offsetof(struct bench_options, max_rows), 1 << 16},
    {"adapters", offsetof(struct bench_options, n_adapters), BENCH_ADAPTERS_MAX},
    {"bandwidth", offsetof(struct bench_options, bandwidth_gbs), 1 << 20},
};

static int read_streams(struct bench_options *o, const char *text)
{
    char *copy = strdup(text), *rest = copy;
    int n = 0, v = 0;
    for (char *word = strsep(&rest, ","); copy != NULL && word != NULL && v >= 0;
         word = strsep(&rest, ",")) {
        v = n < BENCH_STREAM_COUNTS_MAX ? whole(word, BENCH_STREAMS_MAX) : -1;
        if (v > 0)
            o->streams[n++] = v;
    }
    free(copy);
    return v > 0 ? 0 : -1;
}

static int read_kinds(struct bench_options *o, const char *text)
{
    char *copy = strdup(text), *rest = copy;
    bool known = copy != NULL;
    for (char *word = strsep(&rest, ","); known && word != NULL; word = strsep(&rest, ",")) {
        known = false;
        for (int k = 0; k < BENCH_KINDS; k++)
            if (strcmp(word, bench_kind_names[k]) == 0) {
                o->kinds |= 1u << k;
                known = true;
            }
    }
    free(copy);
    return known ? 0 : -1;
}

/* The options as they were given, to be told beside the numbers. */
static void flags_text(const struct cli_args *a, char *out, size_t n_out)
{
    static const char *const values[] = {
        "shape",    "backend", "kinds",    "streams", "adapters",  "rank",    "prompt",
        "generate", "rounds",  "max-rows", "threads", "bandwidth", "weights", "adapter-dtype"};
    size_t at = 0;
    out[0] = '\0';
    for (size_t i = 0; i < sizeof values / sizeof values[0] && at < n_out; i++)
        if (cli_has(a, values[i]))
            at += (size_t)snprintf(out + at, n_out - at, "%s--%s %s", at > 0 ? " " : "", values[i],
                                   cli_value(a, values[i], ""));
    if (at == 0)
        snprintf(out, n_out, "none");
}

static int run_bench(const struct cli_args *a)
{
    struct err err = {0};
    char flags[512];
    flags_text(a, flags, sizeof flags);
    struct bench_options o = {.shape = cli_value(a, "shape", NULL),
                              .backend = cli_value(a, "backend", NULL),
                              .weights = cli_value(a, "weights", NULL),
                              .adapter_dtype = cli_value(a, "adapter-dtype", NULL),
                              .show_memory = cli_has(a, "show-memory"),
                              .csv = cli_has(a, "csv"),
                              .commit = cli_value(a, "commit", NULL),
                              .flags = flags};
    for (size_t i = 0; i < sizeof NUMBERS / sizeof NUMBERS[0]; i++) {
        if (!cli_has(a, NUMBERS[i].option))
            continue;
        const char *text = cli_value(a, NUMBERS[i].option, "");
        int v = whole(text, NUMBERS[i].max);
        if (v < 0)
            return cli_usage(a, "--%s %s is not a whole number from 1 to %d", NUMBERS[i].option,
                             text, NUMBERS[i].max);
        memcpy((char *)&o + NUMBERS[i].field, &v, sizeof v);
    }
    if (cli_has(a, "streams") && read_streams(&o, cli_value(a, "streams", "")) != 0)
        return cli_usage(a, "--streams %s is not a list of at most %d numbers from 1 to %d",
                         cli_value(a, "streams", ""), BENCH_STREAM_COUNTS_MAX, BENCH_STREAMS_MAX);
    if (cli_has(a, "kinds") && read_kinds(&o, cli_value(a, "kinds", "")) != 0)
        return cli_usage(a, "--kinds %s is not a list of base, shared, distinct, uniform, skewed",
                         cli_value(a, "kinds", ""));
    if (bench_run(&o, stdout, &err) != 0)
        return cli_fail(a, &err);
    return 0;
}

const struct cli_command cmd_bench = {
    .name = "bench",
    .summary = "measure tokens per second on this machine",
    .synopsis = "[--shape NAME] [--backend NAME] [--kinds LIST] [--streams LIST] [--csv] [...]",
    .description =
        "Makes a random model of a named shape and random adapters, in memory, and measures "
        "prefill and decode of as many streams at once as asked for, by kind of traffic: base (no "
        "adapter), shared (one for all), distinct (each stream its own), uniform (each draws one "
        "of --adapters) and skewed (group sizes growing by 1.5, as in Punica). Rounds take turns "
        "among the kinds; medians are printed, with the machine, the commit and the flags beside "
        "them.\n\n"
        "decode counts the tokens while every stream is generating: prefill is out; the output "
        "matrix, sampling and planning are in. bound is what it would be if a step took as long as "
        "reading its bytes once (weights, KV cache, the distinct adapters), share is decode / "
        "bound. ttft is the time to the first token, itl the time between two, in milliseconds.",
    .examples =
        "    tributary bench\n"
        "    tributary bench --shape 8b --backend cuda --streams 1,8,32,64,128\n"
        "    tributary bench --kinds base,uniform,skewed --adapters 64 --streams 64 --csv\n",
    .options =
        (const struct cli_option[]){
            {"shape", CLI_VALUE, "NAME", "110m (default), 1b, 7b, 8b, demo-7m or tiny."},
            {"backend", CLI_VALUE, "NAME", "cpu (default), ref or cuda."},
            {"weights", CLI_VALUE, "KIND", "file (default) or int8."},
            {"kinds", CLI_VALUE, "LIST",
             "Of base, shared, distinct, uniform and skewed; base,shared,distinct."},
            {"streams", CLI_VALUE, "LIST", "Requests at once, separated by commas; 1,8,16."},
            {"adapters", CLI_VALUE, "N", "How many there are; as many as streams at most."},
            {"rank", CLI_VALUE, "N", "Rank of every adapter; 16."},
            {"adapter-dtype", CLI_VALUE, "DTYPE",
             "What their numbers are held as: bf16 (default), f16 or f32."},
            {"prompt", CLI_VALUE, "N", "Tokens of each prompt; 128."},
            {"generate", CLI_VALUE, "N", "Tokens of each answer; 64."},
            {"rounds", CLI_VALUE, "N", "Rounds of which the median is told; 5."},
            {"max-rows", CLI_VALUE, "N", "Rows of a step at most; 256, on cuda 2048."},
            {"threads", CLI_VALUE, "N", "Worker threads; all cores."},
            {"bandwidth", CLI_VALUE, "GB/S",
             "Read bandwidth for the bound; measured, on cuda 3100."},
            {"commit", CLI_VALUE, "ID", "What to print as the commit that was measured."},
            {"show-memory", CLI_SWITCH, NULL,
             "Print where each adapter lies on the device, and how many bytes it has there."},
            {"csv", CLI_SWITCH, NULL, "Print CSV."},
            {0},
        },
    .run = run_bench,
};
