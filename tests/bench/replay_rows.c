/* replay_rows: the rows of issue 4's "Must show" that the engine can show alone, one function each.
 * A row opens its engines, runs its measurements and says in a last line how they compare with what
 * was asked for. Sizes are for one GPU with 80 GB and the shape named; --shrink divides adapters,
 * streams and with them pools, and lengths are halved until they fit the context of the shape at
 * hand, so that every row runs on the tiny shape too (its conclusions mean nothing there).
 *
 * "All resident" is the same binary, trace and mix of ranks with a pool in which everything fits.
 */
#include "tests/bench/replay.h"

#include "engine/bench.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const size_t GIB = (size_t)1 << 30;

struct rows {
    struct rig *rig;
    const struct row_options *o;
    struct report *report;
    struct run_result *a, *b; /* of the measurements at hand */
};

/* ---- what the rows share ----------------------------------------------------------------- */

static int at_least(int n, int least)
{
    return n > least ? n : least;
}

static int shrunk(const struct rows *r, int n, int least)
{
    return at_least((int)(n / r->o->shrink + 0.5), least);
}

/* The row's spec on the shape asked for. */
static int make_spec(const struct rows *r, struct rig_spec *out, const char *shape,
                     const char *adapters, int max_seqs, int max_context, struct err *err)
{
    *out = (struct rig_spec){.max_seqs = max_seqs, .max_context = max_context};
    snprintf(out->shape, sizeof out->shape, "%s", r->o->shape != NULL ? r->o->shape : shape);
    const struct model_config *config = bench_shape(out->shape);
    if (config == NULL)
        return err_set(err, ERR_INVALID, "no shape %s", out->shape);
    if (out->max_context > config->max_context)
        out->max_context = config->max_context;
    if (rig_parse_classes(out, adapters, err) != 0)
        return -1;
    rig_divide(out, r->o->shrink);
    return 0;
}

static size_t largest_adapter(const struct rig_spec *spec)
{
    size_t most = 0;
    for (int c = 0; c < spec->n_classes; c++) {
        struct rig_spec one = *spec;
        one.n_classes = 1;
        one.classes[0] = spec->classes[c];
        one.classes[0].n = 1;
        size_t n = rig_bytes(&one);
        most = n > most ? n : most;
    }
    return most;
}

/* A pool's bytes as asked for, or that share of the adapters'. */
static size_t pool_of(const struct rows *r, const struct rig_spec *spec, double share)
{
    size_t n = r->o->pool_bytes > 0 ? r->o->pool_bytes : (size_t)(share * (double)rig_bytes(spec));
    size_t least = 2 * largest_adapter(spec);
    return n > least ? n : least;
}

/* A part of the row's time, and how it is divided: a quarter to get going, the rest counts. */
static double seconds_of(const struct rows *r, double own, double share)
{
    return (r->o->seconds > 0 ? r->o->seconds : own) * share;
}

static struct run_options new_run(const char *row, const char *name, double seconds, int n_groups)
{
    return (struct run_options){.row = row,
                                .name = name,
                                .warm_s = 0.25 * seconds,
                                .seconds = 0.75 * seconds,
                                .n_groups = n_groups};
}

/* prompt and answer, halved until they fit. */
static void fixed_lengths(const struct rows *r, struct workload_options *w, int prompt, int answer)
{
    int context = r->rig->engine->max_context;
    while (prompt + answer > context) {
        prompt = at_least(prompt / 2, 1);
        answer = at_least(answer / 2, 1);
    }
    w->lengths = LENGTHS_FIXED;
    w->length_a = prompt;
    w->length_b = answer;
}

static void uniform_lengths(const struct rows *r, struct workload_options *w, int from, int to)
{
    int context = r->rig->engine->max_context;
    while (2 * to > context) {
        from = at_least(from / 2, 1);
        to = at_least(to / 2, 1);
    }
    w->lengths = LENGTHS_UNIFORM;
    w->length_a = from;
    w->length_b = to;
}

static int measure(struct rows *r, const struct run_options *o, struct run_result *out,
                   struct err *err)
{
    if (run_measure(r->rig, o, out, err) != 0)
        return -1;
    report_run(r->report, r->rig, o, out);
    return 0;
}

static double output_s(const struct run_result *r)
{
    return (double)r->all.n_tokens / r->seconds;
}

/* Answers a second, by their tokens: those that end in a short window are not those that began in
 * it, and where all streams began together, none may end for a while. */
static double answers_s(const struct run_result *r, const struct workload_options *w)
{
    double length = w->lengths == LENGTHS_UNIFORM ? (w->length_a + w->length_b) / 2.0 : w->length_b;
    return output_s(r) / length;
}

static double percent(double now, double before)
{
    return before > 0 ? 100 * (now / before - 1) : 0;
}

static const char *met(bool yes)
{
    return yes ? "met" : "NOT met";
}

/* ---- row 2: a thousand adapters on a CPU ------------------------------------------------- */

enum { CPU_ROUNDS = 3, CPU_STREAMS = 16, CPU_POOL = 50 };

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Runs take turns, so that a slow minute of the machine hits both. */
static int row_cpu(struct rows *r, struct err *err)
{
    struct rig_spec spec, small;
    double seconds = seconds_of(r, 60, 0.5 / CPU_ROUNDS), output[2][CPU_ROUNDS];
    uint64_t n_uploads = 0;
    if (make_spec(r, &spec, "demo-7m", "1000:r8:all", CPU_STREAMS, 256, err) != 0)
        return -1;
    spec.classes[0].n = at_least(spec.classes[0].n, 8);
    small = spec;
    small.pool_adapters = shrunk(r, CPU_POOL, CPU_STREAMS + 2);
    for (int i = 0; i < 2 * CPU_ROUNDS; i++) {
        bool is_small = i % 2 == 1;
        struct run_options o = new_run("2", is_small ? "pool" : "resident", seconds, 1);
        if (rig_open(r->rig, is_small ? &small : &spec, err) != 0)
            return -1;
        o.groups[0] = (struct group){.name = "uniform",
                                     .n_streams = CPU_STREAMS,
                                     .workload = {.seed = 2, .n_adapters = r->rig->n_adapters}};
        fixed_lengths(r, &o.groups[0].workload, 128, 64);
        if (measure(r, &o, r->a, err) != 0)
            return -1;
        output[is_small][i / 2] = output_s(r->a);
        n_uploads += is_small ? r->a->n_uploads : 0;
    }
    qsort(output[0], CPU_ROUNDS, sizeof output[0][0], ascending);
    qsort(output[1], CPU_ROUNDS, sizeof output[1][0], ascending);
    double share = percent(output[1][CPU_ROUNDS / 2], output[0][CPU_ROUNDS / 2]) + 100;
    report_note(
        r->report,
        "row 2: %d adapters with a pool for %d: %.1f %% of the throughput with all resident "
        "(asked: 90: %s); %.1f uploads a second",
        rig_count(&spec), small.pool_adapters, share, met(share >= 90),
        (double)n_uploads / (CPU_ROUNDS * seconds));
    return 0;
}

/* ---- row 4: a miss in host memory -------------------------------------------------------- */

enum { MISS_BACKGROUND = 32, MISS_ADAPTERS = 160, MISS_SPARE = 24, MISS_CONTEXT = 6144 };
static const double MISS_RATE = 20;

static struct run_options miss_run(const struct rows *r, const char *name, int n_background,
                                   int n_probes, double seconds)
{
    struct run_options o = new_run("4", name, seconds, 2);
    o.drain_s = 2;
    o.groups[0] = (struct group){
        .name = "others",
        .n_streams = n_background,
        .workload = {.seed = 1, .n_adapters = n_background, .popularity = POPULARITY_DISTINCT}};
    o.groups[1] = (struct group){.name = "probes",
                                 .first_adapter = n_background,
                                 .payer = 1,
                                 .workload = {.seed = 2,
                                              .rate = MISS_RATE,
                                              .cv = 1,
                                              .n_adapters = n_probes,
                                              .popularity = POPULARITY_DISTINCT}};
    /* The others don't end in the run: no prefill but the probes' lies in their way. */
    fixed_lengths(r, &o.groups[0].workload, 128, MISS_CONTEXT - 128);
    fixed_lengths(r, &o.groups[1].workload, 128, 16);
    return o;
}

/* 5 % of the requests under adapters that are not on the device, at half of saturation. */
static int half_of_saturation(struct rows *r, int n_hot, int n_cold, double seconds,
                              struct err *err)
{
    struct run_options o = new_run("4", "saturated", seconds, 1);
    o.groups[0] = (struct group){
        .name = "hot", .n_streams = 4 * n_hot, .workload = {.seed = 3, .n_adapters = n_hot}};
    fixed_lengths(r, &o.groups[0].workload, 128, 64);
    if (measure(r, &o, r->a, err) != 0)
        return -1;
    double rate = fmax(1, answers_s(r->a, &o.groups[0].workload) / 2);
    o.name = "half";
    o.drain_s = 2;
    o.n_groups = 2;
    o.groups[0].n_streams = 0;
    o.groups[0].workload.rate = 0.95 * rate;
    o.groups[0].workload.cv = 1;
    o.groups[1] = o.groups[0];
    o.groups[1].name = "cold";
    o.groups[1].first_adapter = n_hot;
    o.groups[1].workload.seed = 4;
    o.groups[1].workload.rate = 0.05 * rate;
    o.groups[1].workload.n_adapters = n_cold;
    o.groups[1].workload.popularity = POPULARITY_DISTINCT;
    if (measure(r, &o, r->a, err) != 0)
        return -1;
    double p99 = latency_percentile(&r->a->all.ttft, 99);
    report_note(
        r->report,
        "row 4: at half of saturation (%.1f requests/s) with 5 %% cold, ttft p99 is %.1f ms "
        "(asked: under 1000: %s)",
        rate, p99, met(p99 < 1000));
    return 0;
}

static int row_miss(struct rows *r, struct err *err)
{
    struct rig_spec spec, small;
    int n_others = shrunk(r, MISS_BACKGROUND, 2), n_probes = shrunk(r, MISS_ADAPTERS, 4);
    char adapters[64];
    double seconds = seconds_of(r, 48, 0.25);
    if (make_spec(r, &spec, "8b", "1:r16:all", 256, MISS_CONTEXT, err) != 0)
        return -1;
    snprintf(adapters, sizeof adapters, "%d:r16:all", n_others + n_probes);
    if (rig_parse_classes(&spec, adapters, err) != 0)
        return -1;
    small = spec;
    small.pool_adapters = n_others + shrunk(r, MISS_SPARE, 2);
    if (rig_open(r->rig, &spec, err) != 0)
        return -1;
    struct run_options o = miss_run(r, "resident", n_others, n_probes, seconds);
    if (measure(r, &o, r->a, err) != 0 || rig_open(r->rig, &small, err) != 0)
        return -1;
    o = miss_run(r, "missing", n_others, n_probes, seconds);
    if (measure(r, &o, r->b, err) != 0)
        return -1;
    const struct group_result *there = &r->a->groups[1], *missing = &r->b->groups[1];
    double p50 = latency_percentile(&missing->ttft, 50) - latency_percentile(&there->ttft, 50);
    double p99 = latency_percentile(&missing->ttft, 99) - latency_percentile(&there->ttft, 99);
    double itl = percent(latency_mean(&r->b->groups[0].itl), latency_mean(&r->a->groups[0].itl));
    report_note(r->report,
                "row 4: %.0f %% of the probes missed (none of them resident); a miss adds %.2f ms "
                "to the median (asked: 3: %s) and %.2f ms to p99 (10: %s) of the time to first "
                "token, %.2f %% to the others' mean inter-token latency (1: %s)",
                100 * (double)missing->n_misses / fmax(1, (double)missing->n_requests), p50,
                met(p50 <= 3), p99, met(p99 <= 10), itl, met(itl <= 1));
    return half_of_saturation(r, n_others, n_probes, seconds, err);
}

/* ---- row 5: ten thousand adapters -------------------------------------------------------- */

static const char TEN_THOUSAND[] = "9000:r8:qv,900:r16:qkvo,100:r128:qkvo";
/* As many as are resident at once, for the control: a third of each class. */
enum { CONTROL_SHARE = 3, MANY_STREAMS = 128, MANY_CONTEXT = 1040, MANY_SEQS = 256 };
/* Bursts of cv 8 may leave a window of seconds empty; with this seed they come early and often
 * enough that something always waits, at 40 requests a second and a window from 3 to 10 seconds. */
enum { MANY_SEED = 20 };

static int many_spec(const struct rows *r, struct rig_spec *spec, struct err *err)
{
    if (make_spec(r, spec, "8b", TEN_THOUSAND, MANY_SEQS, MANY_CONTEXT, err) != 0)
        return -1;
    spec->pool_bytes = pool_of(r, spec, 0.1);
    spec->kv_bytes = r->o->shrink > 1 ? 0 : 16 * GIB;
    return 0;
}

/* adapter_seed: a trace of its own. Another run's adapters would be on the device already. */
static int many_run(struct rows *r, const struct rig_spec *larger, double rate, double cv,
                    uint64_t adapter_seed, const char *name, double seconds, double *done_s,
                    struct err *err)
{
    struct run_options o = new_run("5", name, seconds, 1);
    o.groups[0] = (struct group){.name = "uniform",
                                 .n_streams = rate > 0 ? 0 : shrunk(r, MANY_STREAMS, 4),
                                 .larger = larger,
                                 .workload = {.seed = MANY_SEED,
                                              .adapter_seed = adapter_seed,
                                              .rate = rate,
                                              .cv = cv,
                                              .n_adapters = rig_count(larger)}};
    uniform_lengths(r, &o.groups[0].workload, 8, 512);
    if (measure(r, &o, r->a, err) != 0)
        return -1;
    *done_s = answers_s(r->a, &o.groups[0].workload);
    return 0;
}

static int row_many(struct rows *r, struct err *err)
{
    static const struct {
        const char *resident, *name;
        double cv;
    } arrivals[] = {{"closed-in", "closed", 0}, {"poisson-in", "poisson", 1}, {"cv8-in", "cv8", 8}};
    enum { N_ARRIVALS = sizeof arrivals / sizeof arrivals[0] };
    struct rig_spec spec, control;
    double seconds = seconds_of(r, 60, 0.5 / N_ARRIVALS), resident[N_ARRIVALS], done, rate = 0;
    if (many_spec(r, &spec, err) != 0)
        return -1;
    control = spec;
    control.pool_bytes = 0;
    rig_divide(&control, CONTROL_SHARE);
    if (rig_open(r->rig, &control, err) != 0)
        return -1;
    for (int i = 0; i < N_ARRIVALS; i++) {
        if (many_run(r, &spec, rate, arrivals[i].cv, (uint64_t)i + 1, arrivals[i].resident, seconds,
                     &resident[i], err) != 0)
            return -1;
        if (i == 0)
            rate = fmax(1, 1.2 * resident[0]); /* more than it can: throughput is capacity */
    }
    if (rig_open(r->rig, &spec, err) != 0 || run_fill_pool(r->rig, err) != 0)
        return -1;
    for (int i = 0; i < N_ARRIVALS; i++) {
        if (many_run(r, &spec, i == 0 ? 0 : rate, arrivals[i].cv, (uint64_t)i + 1, arrivals[i].name,
                     seconds, &done, err) != 0)
            return -1;
        double share = percent(done, resident[i]) + 100;
        report_note(
            r->report,
            "row 5: %d registered adapters (%.1f GB), %s: %.1f %% of the throughput with %d "
            "of the same mix, all resident (asked: 95: %s)",
            r->rig->n_adapters, (double)r->rig->adapter_bytes * 1e-9, arrivals[i].name, share,
            rig_count(&control), met(share >= 95));
    }
    return 0;
}

/* ---- row 6: S-LoRA's scenario ------------------------------------------------------------ */

/* rate 0: a closed loop that is always full. */
static int slora_run(struct rows *r, double rate, double seconds, double *done_s, struct err *err)
{
    char name[32];
    snprintf(name, sizeof name, rate > 0 ? "rate-%.0f" : "closed", rate);
    struct run_options o = new_run("6", name, seconds, 1);
    o.drain_s = 2;
    o.groups[0] = (struct group){.name = "power:1",
                                 .n_streams = rate > 0 ? 0 : shrunk(r, MANY_SEQS, 4),
                                 .workload = {.seed = 6,
                                              .rate = rate,
                                              .cv = 1,
                                              .n_adapters = r->rig->n_adapters,
                                              .popularity = POPULARITY_POWER,
                                              .popularity_parameter = 1}};
    struct workload_options *w = &o.groups[0].workload;
    uniform_lengths(r, w, 8, 512);
    if (measure(r, &o, r->a, err) != 0)
        return -1;
    *done_s = answers_s(r->a, w);
    return 0;
}

static int row_slora(struct rows *r, struct err *err)
{
    static const double rates[] = {10, 20, 25, 30, 40};
    enum { N_RATES = sizeof rates / sizeof rates[0] };
    struct rig_spec spec;
    double seconds = seconds_of(r, 66, 1.0 / (N_RATES + 1)), saturation, done_s, ttft = 0;
    double below = 0;
    if (make_spec(r, &spec, "7b", "2000:r8:qkvo", MANY_SEQS, 1040, err) != 0)
        return -1;
    spec.pool_bytes = pool_of(r, &spec, 0.38);
    spec.kv_bytes = r->o->shrink > 1 ? 0 : 36 * GIB;
    if (rig_open(r->rig, &spec, err) != 0 || slora_run(r, 0, seconds, &saturation, err) != 0)
        return -1;
    for (int i = 0; i < N_RATES; i++) {
        if (slora_run(r, rates[i], seconds, &done_s, err) != 0)
            return -1;
        if (rates[i] < 0.95 * saturation) {
            below = rates[i];
            ttft = fmax(ttft, latency_mean(&r->a->all.ttft));
        }
        saturation = fmax(saturation, done_s);
    }
    report_note(r->report,
                "row 6: saturation at %.1f requests/s, by tokens (asked: 25: %s); up to %.0f/s, "
                "below it, the mean time to first token is at most %.1f ms (asked: 200: %s)",
                saturation, met(saturation >= 25), below, ttft, met(below >= 10 && ttft <= 200));
    return 0;
}

/* ---- row 7: a working set of twice the pool ---------------------------------------------- */

static int row_twice(struct rows *r, struct err *err)
{
    struct rig_spec spec, small;
    double seconds = seconds_of(r, 80, 0.5), p50[2];
    if (make_spec(r, &spec, "8b", "64:r16:all", 128, 6160, err) != 0)
        return -1;
    spec.classes[0].n = at_least(spec.classes[0].n, 4);
    small = spec;
    small.pool_adapters = rig_count(&spec) / 2;
    for (int i = 0; i < 2; i++) {
        struct run_options o = new_run("7", i == 0 ? "resident" : "half", seconds, 1);
        o.drain_s = 3;
        if (rig_open(r->rig, i == 0 ? &spec : &small, err) != 0)
            return -1;
        o.groups[0] = (struct group){.name = "uniform",
                                     .workload = {.seed = 7,
                                                  .rate = r->o->shrink > 1 ? 10 : 1,
                                                  .cv = 1,
                                                  .n_adapters = r->rig->n_adapters}};
        fixed_lengths(r, &o.groups[0].workload, 4096, 2048);
        if (measure(r, &o, r->a, err) != 0)
            return -1;
        p50[i] = latency_percentile(&r->a->all.ttft, 50);
    }
    double ratio = p50[0] > 0 ? p50[1] / p50[0] : 0;
    report_note(r->report,
                "row 7: median time to first token %.1f ms with a pool for half of the adapters, "
                "%.1f ms with all resident: %.2f x (asked: 1.5: %s)",
                p50[1], p50[0], ratio, met(ratio > 0 && ratio <= 1.5));
    return 0;
}

/* ---- row 8: fairness --------------------------------------------------------------------- */

/* Costs as in Sheng et al., Fairness in Serving Large Language Models, OSDI '24: a generated token
 * holds a place for a step, a prompt's tokens share steps. */

enum { FAIR_PAYERS = 8, FAIR_SEQS = 32, HOT_PROMPT = 128, HOT_ANSWER = 64 };
enum { COST_PROMPT = 1, COST_GENERATED = 2 };

enum fair_load {
    FAIR_UNLIKE, /* payers whose requests have other lengths */
    FAIR_ALIKE,  /* all the same ... */
    FAIR_ONE,    /* ... and these as one payer's: nothing to share */
};

/* All of them always have something waiting, some eight times as much as others. */
static int backlogged(struct rows *r, enum fair_load load, double seconds, struct run_result *out,
                      struct err *err)
{
    static const char *const runs[] = {"unlike", "alike", "one-payer"};
    static const char *const names[FAIR_PAYERS] = {"p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8"};
    struct run_options o = new_run("8", runs[load], seconds, FAIR_PAYERS);
    for (int i = 0; i < FAIR_PAYERS; i++) {
        int streams = 16 * (i + 1), least = 2 * FAIR_SEQS / FAIR_PAYERS + i;
        o.groups[i] = (struct group){
            .name = names[i],
            .n_streams = shrunk(r, streams, least),
            .payer = load == FAIR_ONE ? 1 : (uint64_t)i + 1,
            .workload = {.seed = 80 + (uint64_t)i, .n_adapters = r->rig->n_adapters}};
        uniform_lengths(r, &o.groups[i].workload, 8, load == FAIR_UNLIKE && i % 2 == 0 ? 64 : 256);
    }
    return measure(r, &o, out, err);
}

static double cost_of(const struct group_result *g)
{
    return COST_PROMPT * (double)g->n_prompt + COST_GENERATED * (double)g->n_tokens;
}

/* A quiet payer beside a hot one at hot_rate (0: nobody). */
static int quiet(struct rows *r, double hot_rate, double seconds, struct run_result *out,
                 struct err *err)
{
    struct run_options o = new_run("8", hot_rate > 0 ? "hot" : "solo", seconds,
                                   hot_rate > 0 ? 2 : 1);
    o.drain_s = 2;
    o.groups[0] = (struct group){.name = "quiet",
                                 .payer = 1,
                                 .workload = {.seed = 90, .rate = 10, .cv = 1, .n_adapters = 1}};
    fixed_lengths(r, &o.groups[0].workload, 128, 32);
    o.groups[1] = (struct group){
        .name = "hot",
        .payer = 2,
        .first_adapter = 1,
        .workload = {.seed = 91, .rate = hot_rate, .cv = 1, .n_adapters = 1}};
    fixed_lengths(r, &o.groups[1].workload, HOT_PROMPT, HOT_ANSWER);
    return measure(r, &o, out, err);
}

static int row_fairness(struct rows *r, struct err *err)
{
    struct rig_spec spec;
    double seconds = seconds_of(r, 60, 0.2), cost[FAIR_PAYERS], tokens[FAIR_PAYERS];
    if (make_spec(r, &spec, "8b", "32:r16:all", FAIR_SEQS, 1040, err) != 0)
        return -1;
    spec.classes[0].n = at_least(spec.classes[0].n, 2);
    if (rig_open(r->rig, &spec, err) != 0 || backlogged(r, FAIR_UNLIKE, seconds, r->a, err) != 0)
        return -1;
    for (int i = 0; i < FAIR_PAYERS; i++) {
        cost[i] = cost_of(&r->a->groups[i]);
        tokens[i] = (double)r->a->groups[i].n_tokens;
    }
    double jain = jain_index(cost, FAIR_PAYERS);
    report_note(r->report,
                "row 8: Jain's index over %d backlogged payers is %.4f by the cost that counters "
                "count, %d a prompt token and %d a generated one (asked: 0.99: %s); %.4f by "
                "generated tokens alone",
                FAIR_PAYERS, jain, COST_PROMPT, COST_GENERATED, met(jain >= 0.99),
                jain_index(tokens, FAIR_PAYERS));
    /* Many, one, one, many: a drift of the machine hits both. */
    double many = 0, one = 0, took = 0;
    for (int i = 0; i < 4; i++) {
        bool is_one = i == 1 || i == 2;
        if (backlogged(r, is_one ? FAIR_ONE : FAIR_ALIKE, seconds / 2, r->a, err) != 0)
            return -1;
        *(is_one ? &one : &many) += cost_of(&r->a->all);
        took += r->a->seconds;
    }
    double slower = -percent(many, one);
    report_note(r->report,
                "row 8: eight payers of like requests get %.2f %% less in all than one who has all "
                "of them (asked: 2: %s)",
                slower, met(slower <= 2));
    /* Of the hot one's requests: HOT_PROMPT in, HOT_ANSWER out. */
    double capacity = (many + one) / took /
                      (COST_PROMPT * HOT_PROMPT + COST_GENERATED * HOT_ANSWER);
    if (quiet(r, 0, seconds, r->a, err) != 0 ||
        quiet(r, fmax(10, 10 * capacity), seconds, r->b, err) != 0)
        return -1;
    double solo = latency_percentile(&r->a->groups[0].ttft, 99);
    const struct group_result *quiet_one = &r->b->groups[0];
    double beside = latency_percentile(&quiet_one->ttft, 99);
    report_note(r->report,
                "row 8: with one adapter offered at 10 x capacity (%.0f requests/s), a quiet one's "
                "p99 time to first token is %.1f ms, solo %.1f ms: %.2f x (asked: 1.5: %s)",
                10 * capacity, beside, solo, solo > 0 ? beside / solo : 0,
                met(beside > 0 && beside <= 1.5 * solo && quiet_one->n_unfinished == 0 &&
                    quiet_one->n_refused == 0));
    return 0;
}

/* ---- row 9: mixed ranks ------------------------------------------------------------------ */

static int row_mixed(struct rows *r, struct err *err)
{
    static const char *const names[] = {"rank-8", "rank-16", "rank-32", "rank-64", "rank-128"};
    enum { N_CLASSES = sizeof names / sizeof names[0] };
    struct rig_spec spec;
    double seconds = seconds_of(r, 36, 1.0 / (N_CLASSES + 2)), x[N_CLASSES], y[N_CLASSES];
    if (make_spec(r, &spec, "8b", "32:r8:qkvo,32:r16:qkvo,32:r32:qkvo,32:r64:qkvo,32:r128:qkvo",
                  256, 576, err) != 0)
        return -1;
    for (int c = 0; c < N_CLASSES; c++)
        spec.classes[c].n = at_least(spec.classes[c].n, 4);
    if (rig_open(r->rig, &spec, err) != 0)
        return -1;
    int n = spec.classes[0].n; /* of each class, and streams */
    for (int i = -1; i <= N_CLASSES; i++) {
        struct run_options o = new_run("9",
                                       i < 0           ? "base"
                                       : i < N_CLASSES ? names[i]
                                                       : "mixed",
                                       seconds, 1);
        o.groups[0] = (struct group){.name = "distinct",
                                     .n_streams = n,
                                     .first_adapter = i >= 0 && i < N_CLASSES ? i * n : 0,
                                     .stride = i == N_CLASSES ? N_CLASSES : 1,
                                     .workload = {.seed = 9,
                                                  .n_adapters = i < 0 ? 0 : n,
                                                  .popularity = POPULARITY_DISTINCT}};
        fixed_lengths(r, &o.groups[0].workload, 32, 512);
        if (measure(r, &o, r->a, err) != 0)
            return -1;
        if (i >= 0 && i < N_CLASSES) {
            x[i] = r->a->full_rank_mean;
            y[i] = latency_percentile(&r->a->full, 50);
        }
    }
    /* Least squares: a step's time = fixed + slope * sum of ranks, from batches of one rank. */
    double mean_x = 0, mean_y = 0, xy = 0, xx = 0;
    for (int i = 0; i < N_CLASSES; i++) {
        mean_x += x[i] / N_CLASSES;
        mean_y += y[i] / N_CLASSES;
    }
    for (int i = 0; i < N_CLASSES; i++) {
        xy += (x[i] - mean_x) * (y[i] - mean_y);
        xx += (x[i] - mean_x) * (x[i] - mean_x);
    }
    double slope = xx > 0 ? xy / xx : 0;
    double model = mean_y + slope * (r->a->full_rank_mean - mean_x);
    double took = latency_percentile(&r->a->full, 50), off = percent(took, model);
    if (took <= 0 || model <= 0)
        return err_set(err, ERR_INTERNAL,
                       "row 9: no decode step of all streams ended in the time that it had");
    double share = r->a->pool_used > 0 ? 100 * (double)r->a->pool_true / (double)r->a->pool_used
                                       : 0;
    report_note(
        r->report,
        "row 9: a decode step of %d streams under ranks 8 to 128 takes %.3f ms, the model "
        "from batches of one rank says %.3f: %+.1f %% (asked: within 10: %s); %.2f %% of the "
        "pool's bytes are the adapters' own (98: %s)",
        r->a->decode_max, took, model, off, met(fabs(off) <= 10), share, met(share >= 98));
    return 0;
}

/* ---- row 11: what it costs --------------------------------------------------------------- */

static size_t weight_bytes(const struct model_config *c)
{
    size_t n = (size_t)c->vocab * (size_t)c->hidden * (c->tied ? 1 : 2);
    for (int k = 0; k < SITE_KINDS; k++)
        n += (size_t)c->n_layers * (size_t)model_site_d_in(c, (enum site_kind)k) *
             (size_t)model_site_d_out(c, (enum site_kind)k);
    return n * dtype_bytes(DTYPE_BF16);
}

static int row_cost(struct rows *r, struct err *err)
{
    static const struct {
        const char *name;
        double divisor; /* of TEN_THOUSAND */
    } counts[] = {{"10000", 1}, {"1000", 10}, {"100", 100}, {"1", 0}};
    enum { N_COUNTS = sizeof counts / sizeof counts[0] };
    double seconds = seconds_of(r, 40, 1.0 / N_COUNTS);
    for (int i = 0; i < N_COUNTS; i++) {
        struct rig_spec spec;
        if (many_spec(r, &spec, err) != 0)
            return -1;
        if (counts[i].divisor > 0)
            rig_divide(&spec, counts[i].divisor);
        else if (rig_parse_classes(&spec, "1:r16:qkvo", err) != 0)
            return -1;
        if (rig_open(r->rig, &spec, err) != 0 || run_fill_pool(r->rig, err) != 0)
            return -1;
        struct run_options o = new_run("11", counts[i].name, seconds, 1);
        o.groups[0] = (struct group){.name = "uniform",
                                     .n_streams = shrunk(r, MANY_STREAMS, 4),
                                     .workload = {.seed = 11, .n_adapters = r->rig->n_adapters}};
        uniform_lengths(r, &o.groups[0].workload, 8, 512);
        if (measure(r, &o, r->a, err) != 0)
            return -1;
        double weights = (double)weight_bytes(&r->rig->config);
        struct engine_stats stats;
        engine_stats(r->rig->engine, &stats);
        report_note(r->report,
                    "row 11: %d adapters: device memory %.1f GB (weights %.1f, adapter pool %.2f), "
                    "%.0f output tokens/s, %.0f GPU-seconds a million; a full copy each: %.1f GB, "
                    "%.0f GPUs of 80 GB for the weights alone",
                    r->rig->n_adapters, (double)r->a->device_bytes * 1e-9, weights * 1e-9,
                    (double)stats.adapter_bytes_total * 1e-9, output_s(r->a),
                    output_s(r->a) > 0 ? 1e6 / output_s(r->a) : 0,
                    weights * 1e-9 * r->rig->n_adapters,
                    ceil(r->rig->n_adapters / fmax(1, floor(80e9 / weights))));
    }
    return 0;
}

/* ------------------------------------------------------------------------------------------ */

int row_run(struct rig *rig, int row, const struct row_options *o, struct report *report,
            struct err *err)
{
    struct rows r = {.rig = rig,
                     .o = o,
                     .report = report,
                     .a = xcalloc(1, sizeof *r.a),
                     .b = xcalloc(1, sizeof *r.b)};
    int rc;
    switch (row) {
    case 2:
        rc = row_cpu(&r, err);
        break;
    case 4:
        rc = row_miss(&r, err);
        break;
    case 5:
        rc = row_many(&r, err);
        break;
    case 6:
        rc = row_slora(&r, err);
        break;
    case 7:
        rc = row_twice(&r, err);
        break;
    case 8:
        rc = row_fairness(&r, err);
        break;
    case 9:
        rc = row_mixed(&r, err);
        break;
    case 11:
        rc = row_cost(&r, err);
        break;
    default:
        rc = err_set(err, ERR_INVALID, "no row %d: there are 2, 4 to 9 and 11, and soak is row 10",
                     row);
    }
    free(r.a);
    free(r.b);
    return rc;
}
