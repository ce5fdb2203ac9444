/* sim_scheduler: traces replayed on the scheduler in virtual time (sim.h): what they must show, and
 * their figures as Markdown tables.
 *
 *   sim_scheduler [--requests N] [--seed N] [--only PART]
 *
 * PART: shares, row-8, isolation, priorities, adapters, large, preemption or newcomers; all of
 * them. N requests are to finish in each run; `make test` runs a few thousand, by hand it is a
 * million. The cost of a step is what was measured on an H200 with an 8B model (replay --row 8,
 * tributary bench): 4.5 ms with one sequence decoding, 6.8 with 32, 9.5 with a prompt of 128 beside
 * those, and 36,000 rows/s when full; at most 256 sequences and 2,048 rows; 64 tokens an answer
 * unless said. Lengths named "chat" have the percentiles of the Azure LLM trace of conversations
 * (Patel et al., Splitwise, ISCA '24): prompts p50 1,020, p90 2,735, answers p50 129, p90 424. The
 * last line counts what was shown. */
#include "tests/sim/sim.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int n_requests = 4000;
static uint64_t seed = 1;
static int n_passed, n_failed;
static double n_replayed; /* requests finished, in all runs */

static const struct sim_length ANSWER = {.p50 = 64};
static const struct sim_length CHAT = {.p50 = 1020, .p90 = 2735, .max = 8000};
static const struct sim_length CHAT_ANSWER = {.p50 = 129, .p90 = 424, .max = 2000};
static const struct sim_length LONG_ANSWER = {.p50 = 500, .p90 = 1500, .max = 3000};

static struct sim_length fixed(int n)
{
    return (struct sim_length){.p50 = n};
}

static struct sim_options base(void)
{
    return (struct sim_options){.seed = seed,
                                .n_requests = n_requests,
                                .warmup_part = 0.1,
                                .costs = {{1, 4.5}, {32, 6.8}, {160, 9.5}, {2048, 56.9}},
                                .max_seqs = 256,
                                .max_rows = 2048,
                                .max_waiting = 1024,
                                .n_blocks = 20000,
                                .adapter_bytes = (size_t)20 << 30};
}

static void must(bool holds, const char *what, ...) __attribute__((format(printf, 2, 3)));

static void must(bool holds, const char *what, ...)
{
    va_list args;
    n_passed += holds;
    n_failed += !holds;
    if (holds)
        return;
    printf("\nFAILED: ");
    va_start(args, what);
    vprintf(what, args);
    va_end(args);
    printf("\n\n");
}

static struct sim_result run(const char *name, const struct sim_options *o)
{
    struct sim_result r;
    sim_run(&r, o);
    must(r.broken[0] == '\0', "%s: %s", name, r.broken);
    n_replayed += r.n_finished;
    return r;
}

static double tokens_per_s(const struct sim_result *r)
{
    return r->tokens / r->seconds;
}

/* Requests/s that this class can have alone. */
static double capacity(const struct sim_options *options, const struct sim_class *c)
{
    struct sim_options o = *options;
    o.n_requests = 4000;
    o.n_classes = 1;
    o.classes[0] = *c;
    o.classes[0].rate = 2000;
    struct sim_result r = run("capacity", &o);
    return r.classes[0].n_finished / r.seconds;
}

/* ---- shares ------------------------------------------------------------------------------ */

static double jain(const struct sim_result *r, const struct sim_options *o)
{
    double sum = 0, squares = 0, n = 0;
    for (int i = 0; i < o->n_classes; i++) {
        sum += r->classes[i].sum_share;
        squares += r->classes[i].sum_share_squared;
        n += o->classes[i].n_payers;
    }
    return sum * sum / (n * squares);
}

/* Payers who ask for more than they can get, each in its own way. */
static void shares(void)
{
    struct sim_options o = base();
    o.n_classes = 4;
    o.classes[0] = (struct sim_class){.name = "16 in, weight 1",
                                      .rate = 900,
                                      .cv = 1,
                                      .prompt = fixed(16),
                                      .answer = ANSWER,
                                      .n_payers = 3,
                                      .weight = 1};
    o.classes[1] = (struct sim_class){.name = "chat, weight 1",
                                      .rate = 60,
                                      .cv = 1,
                                      .prompt = CHAT,
                                      .answer = CHAT_ANSWER,
                                      .n_payers = 3,
                                      .weight = 1};
    o.classes[2] = (struct sim_class){.name = "512 in, weight 2, cv 8",
                                      .rate = 300,
                                      .cv = 8,
                                      .prompt = fixed(512),
                                      .answer = ANSWER,
                                      .n_payers = 1,
                                      .weight = 2};
    o.classes[3] = (struct sim_class){.name = "4,096 in, weight 0.5",
                                      .rate = 30,
                                      .cv = 1,
                                      .prompt = fixed(4096),
                                      .answer = fixed(16),
                                      .n_payers = 2,
                                      .weight = 0.5};
    struct sim_result fair = run("shares", &o);
    o.by_age = true;
    struct sim_result age = run("shares by age", &o);
    o.by_age = false;
    double j = jain(&fair, &o);
    printf("### Backlogged payers\n\n"
           "Cost of tokens (prompt 1, generated 2) by weight and second, least and most of a "
           "class's payers.\n\n"
           "| payers | offered, requests/s | shares: least | most | by age: least | most |\n"
           "|---|---|---|---|---|---|\n");
    for (int i = 0; i < o.n_classes; i++)
        printf("| %d: %s | %.0f | %.0f | %.0f | %.0f | %.0f |\n", o.classes[i].n_payers,
               o.classes[i].name, o.classes[i].rate, fair.classes[i].least_share / fair.seconds,
               fair.classes[i].most_share / fair.seconds, age.classes[i].least_share / age.seconds,
               age.classes[i].most_share / age.seconds);
    printf("\nJain's index: %.4f (by age %.4f)\n\n", j, jain(&age, &o));
    must(j >= 0.99, "Jain's index over backlogged payers is %.4f", j);
}

/* ---- isolation --------------------------------------------------------------------------- */

struct isolation {
    const char *name;
    struct sim_length prompt, answer;
    double part;      /* of the capacity, what the quiet one asks for */
    double ratio_max; /* over many requests */
};

static void print_isolation_head(const char *title)
{
    printf("### %s\n\n"
           "Time to first token of the quiet one, ms: p50 / p99 / longest.\n\n"
           "| both ask for; the quiet one's part of the capacity | max_rows | quiet, requests/s | "
           "alone | beside the other | p99 ratio | by age | tokens/s | cost |\n"
           "|---|---|---|---|---|---|---|---|---|\n",
           title);
}

/* o: with the quiet one's class and that of the other, who is offered n_per_s; at all, not at all,
 * and as one payer. What "cost" is of, is the throughput of the last. */
static void compare(const char *name, struct sim_options *o, double n_per_s, double ratio_max)
{
    double rate = o->classes[0].rate;
    o->n_classes = 2;
    o->classes[1].rate = n_per_s;
    o->n_requests = n_requests;
    struct sim_result fair = run(name, o);
    /* The same requests of the quiet one's: a few long prompts more or less make its p99. */
    o->classes[1].rate = 0;
    o->n_requests = (int)(fair.classes[0].n_finished / (1 - o->warmup_part)) + 1;
    struct sim_result alone = run(name, o);
    /* By age who offers more gets more: the same mix, so that tokens compare with tokens. */
    o->by_age = true;
    o->n_requests = n_requests;
    for (int i = 0; i < 2; i++)
        o->classes[i].rate = 10 * fair.classes[i].n_finished / fair.seconds;
    struct sim_result age = run(name, o);
    const struct sim_class_result *a = &alone.classes[0], *f = &fair.classes[0];
    double ratio = f->p99_ms / a->p99_ms;
    double cost = 1 - tokens_per_s(&fair) / tokens_per_s(&age);
    printf("| %s | %d | %.1f | %.0f / %.0f | %.0f / %.0f / %.0f | **%.2f** | %.0f / %.0f | %.0f | "
           "%.2f %% |\n",
           name, o->max_rows, rate, a->p50_ms, a->p99_ms, f->p50_ms, f->p99_ms, f->longest_ms,
           ratio, age.classes[0].p50_ms, age.classes[0].p99_ms, tokens_per_s(&fair), 100 * cost);
    fflush(stdout);
    /* Of few, the 99th percentile is the second or third longest. */
    must(ratio <= (n_requests < 10000 ? 1.3 : 1) * ratio_max,
         "%s: p99 is %.2f times that of the quiet one alone", name, ratio);
    must(cost <= 0.02, "%s: shares cost %.2f %% of the throughput", name, 100 * cost);
    must(f->n_refused == 0, "%s: %d of the quiet one's were refused", name, f->n_refused);
}

static void isolate(const struct isolation *k, int max_rows)
{
    struct sim_options o = base();
    struct sim_class c = {
        .cv = 1, .prompt = k->prompt, .answer = k->answer, .n_payers = 1, .weight = 1};
    double n_per_s = capacity(&o, &c);
    o.max_rows = max_rows;
    o.classes[0] = o.classes[1] = c;
    o.classes[0].rate = n_per_s * k->part;
    compare(k->name, &o, 10 * n_per_s, k->ratio_max);
}

/* Row 8 of replay_rows.c: 32 places, blocks for each to be 1,040 tokens long. */
static struct sim_options row_8(void)
{
    struct sim_options o = base();
    o.max_seqs = 32;
    o.n_blocks = 32 * 1040 / 16;
    return o;
}

/* Eight payers who ask for the same, more than they can get, against all of it as one payer's. */
static void share_as_row_8(void)
{
    struct sim_options o = row_8();
    o.n_classes = 1;
    o.classes[0] = (struct sim_class){.rate = 500,
                                      .cv = 1,
                                      .prompt = {.p50 = 8, .p90 = 256, .uniform = true},
                                      .answer = {.p50 = 8, .p90 = 256, .uniform = true},
                                      .n_payers = 8,
                                      .weight = 1};
    struct sim_result fair = run("row 8, shares", &o);
    o.by_age = true;
    struct sim_result age = run("row 8, by age", &o);
    double cost = 1 - tokens_per_s(&fair) / tokens_per_s(&age);
    o.by_age = false;
    double j = jain(&fair, &o);
    printf(
        "Eight payers with a queue each, 8 to 256 in and out: %.0f tokens/s, %.2f %% less than as "
        "one payer; Jain's index %.4f.\n\n",
        tokens_per_s(&fair), 100 * cost, j);
    must(j >= 0.99, "row 8: Jain's index is %.4f", j);
    must(cost <= 0.02, "row 8: shares cost %.2f %% of the throughput", 100 * cost);
}

/* Ten requests a second of 128 in and 32 out beside ten times the capacity of 128 in and 64 out. */
static void isolate_as_row_8(void)
{
    struct sim_options o = row_8();
    o.classes[0] = (struct sim_class){
        .rate = 10, .cv = 1, .prompt = fixed(128), .answer = fixed(32), .n_payers = 1, .weight = 1};
    o.classes[1] = o.classes[0];
    o.classes[1].answer = fixed(64);
    print_isolation_head("Row 8 of replay: one at 10 times the capacity of 32 places");
    compare("128 in, 32 out; 128 in, 64 out", &o, 10 * capacity(&o, &o.classes[1]), 1.5);
    printf("\n");
}

static void show_row_8(void)
{
    isolate_as_row_8();
    share_as_row_8();
}

static void isolation(void)
{
    const struct isolation cases[] = {
        {"chat in and out, 5 %", CHAT, CHAT_ANSWER, 0.05, 1.5},
        {"chat in, 5 %", CHAT, ANSWER, 0.05, 1.5},
        {"chat in, 20 %", CHAT, ANSWER, 0.2, 1.5},
        {"2,048 in, 5 %", fixed(2048), ANSWER, 0.05, 1.5},
        {"512 in, 5 %", fixed(512), ANSWER, 0.05, 3},
        {"512 in, 20 %", fixed(512), ANSWER, 0.2, 3},
        {"128 in, 5 %", fixed(128), ANSWER, 0.05, 4},
        {"16 in, 5 %", fixed(16), ANSWER, 0.05, 3},
    };
    print_isolation_head("One at 10 times the capacity, and a quiet one");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        isolate(&cases[i], 2048);
    isolate(&cases[0], 1024);
    isolate(&cases[4], 1024);
    printf("\n");
}

/* ---- other traces ------------------------------------------------------------------------ */

static void print_head(const char *title)
{
    printf("### %s\n\n"
           "| class | offered, requests/s | finished/s | refused/s | first token p50, ms | p99 | "
           "longest |\n|---|---|---|---|---|---|---|\n",
           title);
}

static void print_run(const char *what, const struct sim_options *o, const struct sim_result *r)
{
    for (int i = 0; i < o->n_classes; i++)
        if (o->classes[i].rate > 0)
            printf("| %s%s | %.1f | %.1f | %.1f | %.0f | %.0f | %.0f |\n", o->classes[i].name, what,
                   o->classes[i].rate, r->classes[i].n_finished / r->seconds,
                   r->classes[i].n_refused / r->seconds, r->classes[i].p50_ms, r->classes[i].p99_ms,
                   r->classes[i].longest_ms);
}

static void print_foot(const struct sim_result *r)
{
    printf("\n%.0f tokens/s, %.0f rows and %.0f sequences a step; %llu preemptions, %llu bypasses; "
           "nobody saw more than %llu others admitted before\n\n",
           tokens_per_s(r), r->rows_per_step, r->running_per_step,
           (unsigned long long)r->n_preempted, (unsigned long long)r->n_bypassed,
           (unsigned long long)r->most_overtaken);
}

static void priorities(void)
{
    struct sim_options o = base();
    struct sim_class c = {
        .cv = 1, .prompt = fixed(512), .answer = ANSWER, .n_payers = 2, .weight = 1};
    o.n_classes = 3;
    o.classes[0] = o.classes[1] = o.classes[2] = c;
    o.classes[0].name = "priority 10";
    o.classes[0].priority = 10;
    o.classes[0].rate = 30;
    o.classes[1].name = "priority 0";
    o.classes[1].rate = 60;
    o.classes[2].name = "priority -10";
    o.classes[2].priority = -10;
    o.classes[2].rate = 30;
    struct sim_result r = run("priorities", &o);
    print_head("Priorities, at twice the capacity");
    print_run("", &o, &r);
    print_foot(&r);
    double low = r.classes[2].n_finished / r.seconds;
    must(r.classes[0].n_refused == 0 && r.classes[0].n_finished / r.seconds > 0.95 * 30,
         "priorities: the highest got %.1f/s", r.classes[0].n_finished / r.seconds);
    must(r.classes[0].p99_ms < 250, "priorities: the highest waits %.0f ms", r.classes[0].p99_ms);
    must(low > 0.5, "priorities: the lowest got %.2f/s", low);
}

/* 1,000 adapters of rank 16, all linear, asked for in bursts. */
static struct sim_class bursts(const char *name, double rate)
{
    return (struct sim_class){.name = name,
                              .rate = rate,
                              .cv = 8,
                              .prompt = fixed(256),
                              .answer = ANSWER,
                              .n_payers = 4,
                              .weight = 1,
                              .n_adapters = 1000,
                              .adapter_bytes = (size_t)84 << 20};
}

static void adapters(void)
{
    struct sim_options o = base();
    struct sim_class hot = bursts("hot: Zipf over 1,000, cv 8", 90);
    struct sim_class cold = hot;
    cold.name = "cold: its own 1,000, rank 128";
    cold.rate = 2;
    cold.cv = 1;
    cold.n_payers = 1;
    cold.first_adapter = 1000;
    cold.adapter_bytes = (size_t)670 << 20;
    struct sim_class fetched = cold;
    fetched.name = "a fetch of 2 s first";
    fetched.first_adapter = 2000;
    fetched.adapter_bytes = (size_t)84 << 20;
    fetched.p_loading = 1;
    fetched.loading_ms = 2000;
    struct sim_class quiet = hot;
    quiet.name = "base model";
    quiet.rate = 3;
    quiet.cv = 1;
    quiet.n_adapters = 0;
    o.adapter_bytes = (size_t)4 << 30;
    o.n_classes = 4;
    o.classes[0] = hot;
    o.classes[1] = cold;
    o.classes[2] = quiet;
    o.classes[3] = fetched;
    struct sim_result with = run("adapters", &o);
    print_head("Adapters: 4 GiB of the device, hot ones want all of it");
    print_run("", &o, &with);
    print_foot(&with);
    o.classes[3].p_loading = 0; /* the same requests, their adapters there */
    struct sim_result without = run("adapters without fetches", &o);
    printf("With nothing to fetch, p99 of the base model is %.0f ms, of the cold ones %.0f ms.\n\n",
           without.classes[2].p99_ms, without.classes[1].p99_ms);
    must(with.classes[1].longest_ms < 20000, "adapters: a cold one waited %.0f ms",
         with.classes[1].longest_ms);
    must(with.classes[3].p50_ms < 2000 + 1000, "adapters: fetched ones wait %.0f ms",
         with.classes[3].p50_ms);
    must(with.classes[2].p99_ms < 1.25 * without.classes[2].p99_ms,
         "adapters: fetches delay the base model: p99 %.0f, else %.0f ms", with.classes[2].p99_ms,
         without.classes[2].p99_ms);
}

/* Who needs nearly all of the adapters' memory, or of the KV cache, and asks for less than its
 * share, against an endless row of those who need little and ask for several times what there is.
 */
static void large(void)
{
    struct sim_options o = base();
    struct sim_class small = bursts("small", 200);
    struct sim_class wide = small;
    wide.name = "rank 128, all linear, all but one page";
    wide.rate = 0.2;
    wide.cv = 1;
    wide.n_payers = 1;
    wide.n_adapters = 100;
    wide.first_adapter = 1000;
    wide.adapter_bytes = ((size_t)4 << 30) - 4096;
    struct sim_class lengthy = wide;
    lengthy.name = "prompt of 30,000";
    lengthy.rate = 0.05;
    lengthy.prompt = fixed(30000);
    lengthy.n_adapters = 0;
    o.adapter_bytes = (size_t)4 << 30;
    o.n_blocks = 30000 / 16 + 100;
    o.n_classes = 3;
    o.classes[0] = small;
    o.classes[1] = wide;
    o.classes[2] = lengthy;
    struct sim_result r = run("large", &o);
    print_head("Large ones beside small ones without end");
    print_run("", &o, &r);
    print_foot(&r);
    for (int i = 1; i < 3; i++) {
        must(r.classes[i].n_finished > 0, "large: none of '%s' came to its end", o.classes[i].name);
        must(r.classes[i].longest_ms < 10000, "large: one of '%s' waited %.0f ms",
             o.classes[i].name, r.classes[i].longest_ms);
    }
}

/* The cache holds a fraction of what max_seqs would need: sequences throw each other out. */
static void preemption(void)
{
    struct sim_options o = base();
    struct sim_class c = {.cv = 1, .prompt = CHAT, .answer = LONG_ANSWER, .weight = 1};
    o.n_blocks = 2500;
    o.n_requests = n_requests / 4;
    o.n_classes = 3;
    o.classes[0] = o.classes[1] = o.classes[2] = c;
    o.classes[0].name = "backlogged";
    o.classes[0].rate = 20;
    o.classes[0].n_payers = 1;
    o.classes[1].name = "quiet";
    o.classes[1].rate = 0.2;
    o.classes[1].n_payers = 1;
    o.classes[2].name = "priority -10, each a new payer";
    o.classes[2].rate = 1;
    o.classes[2].priority = -10;
    struct sim_result r = run("preemption", &o);
    print_head("Preemption: 2,500 blocks, answers p50 500, p90 1,500");
    print_run("", &o, &r);
    print_foot(&r);
    must(r.n_preempted > 10, "preemption: there were only %llu", (unsigned long long)r.n_preempted);
    must(r.classes[2].n_finished > 0, "preemption: the lowest priority starves");
}

/* Who has had much against an endless row of payers who have had nothing. */
static void newcomers(void)
{
    struct sim_options o = base();
    struct sim_class c = {.cv = 1, .prompt = fixed(512), .answer = ANSWER, .weight = 1};
    o.n_classes = 2;
    o.classes[0] = o.classes[1] = c;
    o.classes[0].name = "one payer";
    o.classes[0].rate = 30;
    o.classes[0].n_payers = 1;
    o.classes[1].name = "each a new payer";
    o.classes[1].rate = 150;
    struct sim_result r = run("newcomers", &o);
    print_head("Newcomers without end");
    print_run("", &o, &r);
    print_foot(&r);
    must(r.classes[0].n_finished / r.seconds > 0.1, "newcomers: the old payer got %.2f/s",
         r.classes[0].n_finished / r.seconds);
}

struct part {
    const char *name;
    void (*show)(void);
};

static const struct part PARTS[] = {
    {"shares", shares},         {"row-8", show_row_8},    {"isolation", isolation},
    {"priorities", priorities}, {"adapters", adapters},   {"large", large},
    {"preemption", preemption}, {"newcomers", newcomers},
};
enum { N_PARTS = sizeof PARTS / sizeof PARTS[0] };

int main(int argc, char **argv)
{
    const char *only = NULL;
    int n_shown = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--requests") == 0)
            n_requests = atoi(argv[i + 1]);
        else if (strcmp(argv[i], "--seed") == 0)
            seed = (uint64_t)atoll(argv[i + 1]);
        else if (strcmp(argv[i], "--only") == 0)
            only = argv[i + 1];
        else
            argc = 0;
    }
    for (int i = 0; i < N_PARTS && argc % 2 == 1 && n_requests >= 100; i++) {
        if (only == NULL || strcmp(only, PARTS[i].name) == 0) {
            PARTS[i].show();
            n_shown++;
        }
    }
    if (n_shown == 0) {
        fprintf(stderr, "usage: %s [--requests N (100 or more)] [--seed N] [--only PART]\n",
                argv[0]);
        return 2;
    }
    printf("note: %.0f requests finished in virtual time\n", n_replayed);
    printf("%d passed, %d failed\n", n_passed, n_failed);
    return n_failed > 0;
}
