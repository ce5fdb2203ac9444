/* cmd_bench: tokens a second on this machine; the work is engine/bench.h's. */
#include "engine/bench.h"
#include "node/cli/commands.h"

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
    {"rows", offsetof(struct bench_options, max_rows), 1 << 16},
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

/* The options as they were given, to be told beside the numbers. */
static void flags_text(const struct cli_args *a, char *out, size_t n_out)
{
    static const char *const values[] = {"shape",    "backend", "streams", "threads", "prompt",
                                         "generate", "rank",    "rounds",  "rows"};
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
    if (bench_run(&o, stdout, &err) != 0)
        return cli_fail(a, &err);
    return 0;
}

const struct cli_command cmd_bench = {
    .name = "bench",
    .summary = "measure tokens per second on this machine",
    .synopsis = "[--shape NAME] [--backend NAME] [--streams LIST] [--rounds N] [--csv] [...]",
    .description =
        "Makes a random model of a named shape and a random adapter for each stream, in memory, "
        "and "
        "measures prefill and decode for the base model, for one adapter shared by all streams, "
        "and "
        "for as many different adapters as streams. Rounds take turns among the three; medians are "
        "printed, with the machine, the commit and the flags beside them.",
    .examples = "    tributary bench\n"
                "    tributary bench --shape 8b --streams 1,16 --rounds 3 --csv\n",
    .options =
        (const struct cli_option[]){
            {"shape", CLI_VALUE, "NAME", "110m (default), 1b, 8b or tiny."},
            {"backend", CLI_VALUE, "NAME", "cpu (default), ref or cuda."},
            {"streams", CLI_VALUE, "LIST", "Requests at once, separated by commas; 1,8,16."},
            {"threads", CLI_VALUE, "N", "Worker threads; all cores."},
            {"prompt", CLI_VALUE, "N", "Tokens of each prompt; 128."},
            {"generate", CLI_VALUE, "N", "Tokens of each answer; 64."},
            {"rank", CLI_VALUE, "N", "Rank of every adapter; 16."},
            {"rounds", CLI_VALUE, "N", "Rounds of which the median is told; 5."},
            {"rows", CLI_VALUE, "N", "Rows of a step at most; 256."},
            {"commit", CLI_VALUE, "ID", "What to print as the commit that was measured."},
            {"csv", CLI_SWITCH, NULL, "Print CSV."},
            {0},
        },
    .run = run_bench,
};
