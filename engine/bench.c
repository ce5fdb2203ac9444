/* bench: see bench.h. One engine serves all measurements; a round of one kind submits its streams
 * at once, waits for the last token and looks at the times of the events. Prompts differ from
 * stream to stream and from round to round, so that nothing could be reused. Before the first
 * measured round every adapter was on the device once, and each kind has had a round that is not
 * counted (pages touched, sizes seen). */
#include "engine/bench.h"

#include "engine/internal.h"
#include "engine/noise.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct shape {
    const char *name, *text;
    struct model_config config;
} SHAPES[] = {
    {"110m",
     "12 layers, 768, 12 heads, FFN 2048, vocabulary 32000, tied, bf16",
     {.family = MODEL_LLAMA,
      .vocab = 32000,
      .hidden = 768,
      .n_layers = 12,
      .n_heads = 12,
      .n_kv_heads = 12,
      .head_dim = 64,
      .ffn = 2048,
      .max_context = 2048,
      .norm_eps = 1e-5f,
      .tied = true,
      .rope = {.theta = 10000},
      .bos = -1}},
    {"1b",
     "16 layers, 2048, 32 heads, 8 KV heads, FFN 8192, vocabulary 128256, tied, bf16",
     {.family = MODEL_LLAMA,
      .vocab = 128256,
      .hidden = 2048,
      .n_layers = 16,
      .n_heads = 32,
      .n_kv_heads = 8,
      .head_dim = 64,
      .ffn = 8192,
      .max_context = 8192,
      .norm_eps = 1e-5f,
      .tied = true,
      .rope = {.theta = 500000},
      .bos = -1}},
    {"demo-7m", /* that of tests/fixtures/models/demo-7m */
     "8 layers, 256, 4 heads, 2 KV heads, FFN 768, vocabulary 4096, tied, bf16",
     {.family = MODEL_LLAMA,
      .vocab = 4096,
      .hidden = 256,
      .n_layers = 8,
      .n_heads = 4,
      .n_kv_heads = 2,
      .head_dim = 64,
      .ffn = 768,
      .max_context = 2048,
      .norm_eps = 1e-5f,
      .tied = true,
      .rope = {.theta = 10000},
      .bos = -1}},
    {"7b", /* Llama 7B, as in the papers that serve adapters on it */
     "32 layers, 4096, 32 heads, 32 KV heads, FFN 11008, vocabulary 32000, bf16",
     {.family = MODEL_LLAMA,
      .vocab = 32000,
      .hidden = 4096,
      .n_layers = 32,
      .n_heads = 32,
      .n_kv_heads = 32,
      .head_dim = 128,
      .ffn = 11008,
      .max_context = 2048,
      .norm_eps = 1e-6f,
      .rope = {.theta = 10000},
      .bos = -1}},
    {"8b",
     "32 layers, 4096, 32 heads, 8 KV heads, FFN 14336, vocabulary 128256, bf16",
     {.family = MODEL_LLAMA,
      .vocab = 128256,
      .hidden = 4096,
      .n_layers = 32,
      .n_heads = 32,
      .n_kv_heads = 8,
      .head_dim = 128,
      .ffn = 14336,
      .max_context = 131072,
      .norm_eps = 1e-5f,
      .rope = {.scaling = ROPE_LLAMA3,
               .theta = 500000,
               .factor = 8,
               .low_freq_factor = 1,
               .high_freq_factor = 4,
               .original_context = 8192},
      .bos = -1}},
    {"tiny",
     "2 layers, 32, 4 heads, 2 KV heads, FFN 48, vocabulary 64, tied, bf16",
     {.family = MODEL_LLAMA,
      .vocab = 64,
      .hidden = 32,
      .n_layers = 2,
      .n_heads = 4,
      .n_kv_heads = 2,
      .head_dim = 8,
      .ffn = 48,
      .max_context = 256,
      .norm_eps = 1e-5f,
      .tied = true,
      .rope = {.theta = 10000},
      .bos = -1}},
};
enum { N_SHAPES = sizeof SHAPES / sizeof SHAPES[0] };

const struct model_config *bench_shape(const char *name)
{
    for (size_t i = 0; i < N_SHAPES; i++)
        if (strcmp(SHAPES[i].name, name) == 0)
            return &SHAPES[i].config;
    return NULL;
}

const char *const bench_kind_names[BENCH_KINDS] = {"base", "shared", "distinct", "uniform",
                                                   "skewed"};

enum { CUDA_READ_GBS = 3100, THREADS_MAX = 64 };

struct stream {
    struct monotonic_us submitted, first, last; /* the latter two of its tokens */
    int n_tokens;
    int adapter; /* -1: none */
};

struct bench {
    struct bench_options options;
    const struct shape *shape;
    struct engine *engine;
    struct content_digest *adapters; /* [n_adapters] */
    int n_adapters, n_streams;       /* n_streams: the largest number at once */
    enum dtype adapter_dtype;
    size_t adapter_bytes, weight_bytes, kv_token_bytes;
    double bandwidth;      /* bytes a second */
    double make_s, open_s; /* until the numbers were made, and then the engine open */
    uint64_t random;
    int32_t *prompt;            /* [n_prompt] */
    struct stream *streams;     /* [n_streams]; written by the engine thread under the lock */
    struct monotonic_us *times; /* [n_streams, n_generate] of every token */
    pthread_mutex_t lock;
    pthread_cond_t finished;
    int n_running;
};

/* All rounds of one kind with one number of streams. */
struct row {
    int n_streams, n_rounds;
    double output[BENCH_ROUNDS_MAX], prefill[BENCH_ROUNDS_MAX], decode[BENCH_ROUNDS_MAX];
    double *ttft, *itl; /* [n_ttft], [n_itl] milliseconds */
    size_t n_ttft, n_itl;
    double n_distinct; /* sum over the rounds */
    uint64_t held[ENGINE_ENTROPY_BUCKETS], n_uploads;
};

static const char *const HELD_TEXT[ENGINE_ENTROPY_BUCKETS] = {"0",   "1",    "2",     "3",  "4",
                                                              "5-8", "9-16", "17-64", ">64"};

/* ---- one round --------------------------------------------------------------------------- */

static void on_events(void *context, const struct engine_event *events, size_t n)
{
    struct bench *b = context;
    struct monotonic_us now = clock_monotonic_us();
    pthread_mutex_lock(&b->lock);
    for (size_t i = 0; i < n; i++) {
        struct stream *s = events[i].user;
        if (events[i].kind == ENGINE_EVENT_TOKEN) {
            if (s->n_tokens == 0)
                s->first = now;
            s->last = now;
            b->times[(size_t)(s - b->streams) * (size_t)b->options.n_generate +
                     (size_t)s->n_tokens++] = now;
        } else if (events[i].kind == ENGINE_EVENT_FINISHED && --b->n_running == 0) {
            pthread_cond_signal(&b->finished);
        }
    }
    pthread_mutex_unlock(&b->lock);
}

static uint64_t next_random(struct bench *b)
{
    b->random = b->random * 6364136223846793005u + 1442695040888963407u;
    return b->random >> 33;
}

static int submit(struct bench *b, int stream, int n_prompt, int n_generate, struct err *err)
{
    struct stream *s = &b->streams[stream];
    for (int i = 0; i < n_prompt; i++)
        b->prompt[i] = (int32_t)(next_random(b) % (uint64_t)b->shape->config.vocab);
    struct engine_request r = {.prompt = b->prompt,
                               .n_prompt = n_prompt,
                               .max_tokens = n_generate,
                               .ignore_eos = true,
                               .no_prefix_cache = true, /* prompts differ anyway */
                               .sampling = {.n_top_logprobs = -1},
                               .user = s};
    if (s->adapter >= 0) {
        r.n_adapters = 1;
        r.adapters[0].content = b->adapters[s->adapter];
        r.adapters[0].weight = 1;
    }
    s->submitted = clock_monotonic_us();
    return engine_submit(b->engine, &r, NULL, err);
}

/* Submits streams 0 to n, whose adapters are chosen, and waits for all. */
static int run_streams(struct bench *b, int n, int n_prompt, int n_generate, struct err *err)
{
    pthread_mutex_lock(&b->lock);
    b->n_running = n;
    for (int i = 0; i < n; i++)
        b->streams[i].n_tokens = 0;
    pthread_mutex_unlock(&b->lock);
    int rc = 0, n_submitted = 0;
    while (n_submitted < n && (rc = submit(b, n_submitted, n_prompt, n_generate, err)) == 0)
        n_submitted++;
    pthread_mutex_lock(&b->lock);
    b->n_running -= n - n_submitted;
    while (b->n_running > 0)
        pthread_cond_wait(&b->finished, &b->lock);
    pthread_mutex_unlock(&b->lock);
    for (int i = 0; rc == 0 && i < n; i++)
        if (b->streams[i].n_tokens != n_generate)
            rc = err_set(err, ERR_INTERNAL, "stream %d gave %d of %d tokens", i,
                         b->streams[i].n_tokens, n_generate);
    return rc;
}

static void choose_adapters(struct bench *b, enum bench_kind kind, int n)
{
    double group = 1; /* skewed: streams of the adapter at hand ... */
    int n_left = 1, adapter = 0;
    for (int i = 0; i < n; i++) {
        int *chosen = &b->streams[i].adapter;
        switch (kind) {
        case BENCH_BASE:
            *chosen = -1;
            break;
        case BENCH_SHARED:
            *chosen = 0;
            break;
        case BENCH_DISTINCT:
            *chosen = i % b->n_adapters;
            break;
        case BENCH_UNIFORM:
            *chosen = (int)(next_random(b) % (uint64_t)b->n_adapters);
            break;
        case BENCH_SKEWED:
            if (n_left == 0) {
                group *= 1.5;
                n_left = (int)group;
                adapter++;
            }
            n_left--;
            *chosen = adapter % b->n_adapters;
            break;
        case BENCH_KINDS:
            BUG("kind %d", (int)kind);
        }
    }
    for (int i = n - 1; i > 0; i--) { /* nobody's neighbours are of its own adapter by rule */
        int j = (int)(next_random(b) % (uint64_t)(i + 1)), swap = b->streams[i].adapter;
        b->streams[i].adapter = b->streams[j].adapter;
        b->streams[j].adapter = swap;
    }
}

static int count_distinct(const struct bench *b, int n)
{
    bool *seen = xcalloc((size_t)b->n_adapters + 1, sizeof *seen);
    int n_distinct = 0;
    for (int i = 0; i < n; i++) {
        int adapter = b->streams[i].adapter;
        n_distinct += adapter >= 0 && !seen[adapter];
        seen[adapter >= 0 ? adapter : b->n_adapters] = true;
    }
    free(seen);
    return n_distinct;
}

static double seconds(struct monotonic_us from, struct monotonic_us to)
{
    return (double)clock_elapsed_us(from, to) * 1e-6;
}

static void note_round(const struct bench *b, struct row *row)
{
    int n = row->n_streams, n_generate = b->options.n_generate, n_decode = 0;
    struct monotonic_us begin = b->streams[0].submitted, last_first = begin, end = begin,
                        first_last = b->streams[0].last;
    for (int i = 0; i < n; i++) {
        const struct stream *s = &b->streams[i];
        if (s->first.us > last_first.us)
            last_first = s->first;
        if (s->last.us < first_last.us)
            first_last = s->last;
        if (s->last.us > end.us)
            end = s->last;
        row->ttft[row->n_ttft++] = seconds(s->submitted, s->first) * 1e3;
    }
    for (int i = 0; i < n; i++) {
        const struct monotonic_us *times = &b->times[(size_t)i * (size_t)n_generate];
        for (int t = 0; t < n_generate; t++) {
            n_decode += times[t].us > last_first.us && times[t].us <= first_last.us;
            if (t > 0)
                row->itl[row->n_itl++] = seconds(times[t - 1], times[t]) * 1e3;
        }
    }
    int r = row->n_rounds++;
    row->output[r] = n * n_generate / seconds(begin, end);
    row->prefill[r] = n * (double)b->options.n_prompt / seconds(begin, last_first);
    /* 0: no moment had all streams generating */
    row->decode[r] = n_decode > 0 ? n_decode / seconds(last_first, first_last) : 0;
    row->n_distinct += count_distinct(b, n);
}

/* row NULL: not counted. */
static int run_round(struct bench *b, enum bench_kind kind, int n, struct row *row, struct err *err)
{
    struct engine_stats before, after;
    choose_adapters(b, kind, n);
    engine_stats(b->engine, &before);
    if (run_streams(b, n, b->options.n_prompt, b->options.n_generate, err) != 0)
        return -1;
    if (row == NULL)
        return 0;
    engine_stats(b->engine, &after);
    for (int i = 0; i < ENGINE_ENTROPY_BUCKETS; i++)
        row->held[i] += after.steps_by_distinct[i] - before.steps_by_distinct[i];
    row->n_uploads += after.n_adapter_uploads - before.n_adapter_uploads;
    note_round(b, row);
    return 0;
}

/* ---- telling ----------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, ascending);
    return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* Of sorted values, by nearest rank; 0 of none. */
static double percentile(const double *sorted, size_t n, double p)
{
    size_t rank = (size_t)ceil(p / 100 * (double)n);
    return n == 0 ? 0 : sorted[rank > 0 ? rank - 1 : 0];
}

/* The bucket of the median decode step. */
static const char *held_text(const struct row *row)
{
    uint64_t n = 0, at = 0;
    for (int i = 0; i < ENGINE_ENTROPY_BUCKETS; i++)
        n += row->held[i];
    for (int i = 0; i < ENGINE_ENTROPY_BUCKETS; i++)
        if ((at += row->held[i]) * 2 > n)
            return HELD_TEXT[i];
    return "-"; /* no decode step */
}

static void tell_head(const struct bench *b, FILE *out)
{
    const struct bench_options *o = &b->options;
    fprintf(out, "# shape %s: %s\n# device %s\n# commit %s\n# flags %s\n", b->shape->name,
            b->shape->text, engine_model(b->engine)->backend, o->commit, o->flags);
    fprintf(out,
            "# prompt %d, generate %d, %d adapters of rank %d (%s) on all linears, each its own, "
            "median of %d rounds, tokens/s and ms\n",
            o->n_prompt, o->n_generate, b->n_adapters, o->rank, o->adapter_dtype, o->n_rounds);
    fprintf(out,
            "# bound: %.3f GB of weights, %zu bytes of KV a token, %.3f MB an adapter, each read "
            "once a step at %.1f GB/s (%s)\n",
            (double)b->weight_bytes * 1e-9, b->kv_token_bytes, (double)b->adapter_bytes * 1e-6,
            b->bandwidth * 1e-9, o->bandwidth_gbs > 0 ? "as told" : "measured");
    fprintf(out, "# numbers made in %.1f s, engine open in %.1f s\n", b->make_s, b->open_s);
}

static void tell_titles(const struct bench *b, FILE *out)
{
    if (b->options.csv)
        fprintf(out, "streams,kind,output,output_min,output_max,prefill,decode,decode_min,"
                     "decode_max,bound,share,ttft_p50_ms,ttft_p99_ms,itl_p50_ms,itl_p99_ms,"
                     "distinct,held,uploads\n");
    else
        fprintf(out, "%7s %-8s %8s %8s %8s %17s %8s %6s %15s %15s %8s %6s\n", "streams", "kind",
                "output", "prefill", "decode", "(min to max)", "bound", "share", "ttft p50, p99",
                "itl p50, p99", "distinct", "held");
}

/* Decode tokens a second if a step took no longer than reading its bytes once. */
static double bound_of(const struct bench *b, int n, double n_distinct)
{
    double context = b->options.n_prompt + b->options.n_generate / 2.0;
    double bytes = (double)b->weight_bytes + n * context * (double)b->kv_token_bytes +
                   n_distinct * (double)b->adapter_bytes;
    return n * b->bandwidth / bytes;
}

/* Returns the decode speed told. */
static double tell_row(const struct bench *b, FILE *out, enum bench_kind kind, struct row *row)
{
    int n = row->n_streams, r = row->n_rounds;
    double output = median(row->output, r), prefill = median(row->prefill, r);
    double decode = median(row->decode, r), distinct = row->n_distinct / r;
    double bound = bound_of(b, n, distinct);
    qsort(row->ttft, row->n_ttft, sizeof *row->ttft, ascending);
    qsort(row->itl, row->n_itl, sizeof *row->itl, ascending);
    double ttft_50 = percentile(row->ttft, row->n_ttft, 50);
    double ttft_99 = percentile(row->ttft, row->n_ttft, 99);
    double itl_50 = percentile(row->itl, row->n_itl, 50);
    double itl_99 = percentile(row->itl, row->n_itl, 99);
    if (b->options.csv)
        fprintf(out,
                "%d,%s,%.1f,%.1f,%.1f,%.1f,%.1f,%.1f,%.1f,%.1f,%.4f,%.3f,%.3f,%.3f,%.3f,%.1f,%s,"
                "%" PRIu64 "\n",
                n, bench_kind_names[kind], output, row->output[0], row->output[r - 1], prefill,
                decode, row->decode[0], row->decode[r - 1], bound, decode / bound, ttft_50, ttft_99,
                itl_50, itl_99, distinct, held_text(row), row->n_uploads);
    else
        fprintf(out,
                "%7d %-8s %8.1f %8.1f %8.1f (%6.0f to %5.0f) %8.1f %5.1f%% %7.1f %7.1f %7.2f "
                "%7.2f %8.1f %6s%s\n",
                n, bench_kind_names[kind], output, prefill, decode, row->decode[0],
                row->decode[r - 1], bound, 100 * decode / bound, ttft_50, ttft_99, itl_50, itl_99,
                distinct, held_text(row), row->n_uploads > 0 ? "  adapters were uploaded" : "");
    return decode;
}

static bool is_asked(const struct bench *b, int kind)
{
    return (b->options.kinds >> kind & 1u) != 0;
}

static int measure(struct bench *b, FILE *out, int n, struct err *err)
{
    const struct bench_options *o = &b->options;
    struct row *rows = xcalloc(BENCH_KINDS, sizeof *rows);
    double told[BENCH_KINDS] = {0};
    int rc = 0;
    size_t n_all = (size_t)n * (size_t)o->n_rounds;
    for (int k = 0; rc == 0 && k < BENCH_KINDS; k++) {
        if (!is_asked(b, k))
            continue;
        rows[k].n_streams = n;
        rows[k].ttft = xcalloc(n_all, sizeof *rows[k].ttft);
        rows[k].itl = xcalloc(n_all * (size_t)o->n_generate, sizeof *rows[k].itl);
        rc = run_round(b, (enum bench_kind)k, n, NULL, err);
    }
    for (int r = 0; rc == 0 && r < o->n_rounds; r++)
        for (int i = 0; rc == 0 && i < BENCH_KINDS; i++) {
            int k = (i + r) % BENCH_KINDS; /* nobody is always first */
            if (is_asked(b, k))
                rc = run_round(b, (enum bench_kind)k, n, &rows[k], err);
        }
    for (int k = 0; rc == 0 && k < BENCH_KINDS; k++)
        if (is_asked(b, k))
            told[k] = tell_row(b, out, (enum bench_kind)k, &rows[k]);
    for (int k = 1; rc == 0 && k < BENCH_KINDS && !o->csv; k++)
        if (told[BENCH_BASE] > 0 && told[k] > 0)
            fprintf(out, "# %d streams: %s decodes at %.1f %% of base\n", n, bench_kind_names[k],
                    100 * told[k] / told[BENCH_BASE]);
    fflush(out);
    for (int k = 0; k < BENCH_KINDS; k++) {
        free(rows[k].ttft);
        free(rows[k].itl);
    }
    free(rows);
    return rc;
}

/* ---- what bounds ------------------------------------------------------------------------- */

enum { READ_BYTES = 256 << 20, READ_REPEATS = 5 };

struct reading {
    const uint64_t *from;
    size_t n;
    uint64_t sum; /* so that the reads aren't dropped */
};

static void *read_part(void *context)
{
    struct reading *r = context;
    uint64_t sum[4] = {0};
    for (size_t i = 0; i + 4 <= r->n; i += 4)
        for (size_t k = 0; k < 4; k++)
            sum[k] += r->from[i + k];
    r->sum = sum[0] + sum[1] + sum[2] + sum[3];
    return NULL;
}

/* Bytes a second that this machine's cores read: the best of some passes over a large array. */
static double measure_bandwidth(int n_threads)
{
    uint64_t *memory = noise_alloc(READ_BYTES);
    BUG_IF(memory == NULL);
    memset(memory, 1, READ_BYTES); /* what it says is all one to the memory */
    long n_parts = n_threads > 0 ? n_threads : sysconf(_SC_NPROCESSORS_ONLN);
    n_parts = n_parts < 1 ? 1 : n_parts > THREADS_MAX ? THREADS_MAX : n_parts;
    struct reading parts[THREADS_MAX];
    pthread_t threads[THREADS_MAX];
    size_t n = READ_BYTES / sizeof *memory / (size_t)n_parts;
    double best = 0;
    for (int pass = 0; pass < READ_REPEATS; pass++) {
        struct monotonic_us begin = clock_monotonic_us();
        int n_started = 0;
        for (long i = 0; i < n_parts; i++)
            parts[i] = (struct reading){.from = memory + (size_t)i * n, .n = n};
        while (n_started + 1 < n_parts &&
               pthread_create(&threads[n_started], NULL, read_part, &parts[n_started]) == 0)
            n_started++;
        for (long i = n_started; i < n_parts; i++)
            read_part(&parts[i]);
        for (int i = 0; i < n_started; i++)
            pthread_join(threads[i], NULL);
        double speed = READ_BYTES / seconds(begin, clock_monotonic_us());
        best = speed > best ? speed : best;
    }
    free(memory);
    return best;
}

static void count_bytes(struct bench *b)
{
    const struct model_config *c = &b->shape->config;
    size_t n_weights = (size_t)c->vocab * (size_t)c->hidden; /* the output matrix */
    for (int k = 0; k < SITE_KINDS; k++)
        n_weights += (size_t)c->n_layers * (size_t)model_site_d_in(c, (enum site_kind)k) *
                     (size_t)model_site_d_out(c, (enum site_kind)k);
    const char *kind = b->options.weights;
    const bool int8 = kind != NULL && strcmp(kind, "int8") == 0;
    /* model_random makes bf16; the scales of int8 are too few to count */
    b->weight_bytes = n_weights * (int8 ? 1 : 2);
    b->kv_token_bytes = forward_block_bytes(c, b->engine->forward.kv[0].dtype) / BLOCK_TOKENS;
    b->bandwidth = b->options.bandwidth_gbs > 0 ? b->options.bandwidth_gbs * 1e9
                                                : measure_bandwidth(b->options.n_threads);
}

/* ---- setting up -------------------------------------------------------------------------- */

static bool is_cuda(const struct bench_options *o)
{
    return o->backend != NULL && strcmp(o->backend, "cuda") == 0;
}

static int read_dtype(enum dtype *out, const char *name)
{
    static const char *const names[] = {
        [DTYPE_F32] = "f32", [DTYPE_F16] = "f16", [DTYPE_BF16] = "bf16"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(names[i], name) == 0) {
            *out = (enum dtype)i;
            return 0;
        }
    return -1;
}

static int check_options(struct bench *b, struct err *err)
{
    struct bench_options *o = &b->options;
    const char *shape = o->shape != NULL ? o->shape : "110m";
    bool cuda = is_cuda(o);
    o->n_prompt = o->n_prompt != 0 ? o->n_prompt : 128;
    o->n_generate = o->n_generate != 0 ? o->n_generate : 64;
    o->rank = o->rank != 0 ? o->rank : 16;
    o->n_rounds = o->n_rounds != 0 ? o->n_rounds : 5;
    o->max_rows = o->max_rows != 0 ? o->max_rows : cuda ? 2048 : 256;
    o->bandwidth_gbs = o->bandwidth_gbs != 0 ? o->bandwidth_gbs : cuda ? CUDA_READ_GBS : 0;
    o->kinds = o->kinds != 0 ? o->kinds
                             : 1u << BENCH_BASE | 1u << BENCH_SHARED | 1u << BENCH_DISTINCT;
    o->adapter_dtype = o->adapter_dtype != NULL ? o->adapter_dtype : "bf16";
    o->commit = o->commit != NULL ? o->commit : "unknown";
    o->flags = o->flags != NULL ? o->flags : "none";
    if (o->streams[0] == 0) {
        static const int usual[] = {1, 8, 16};
        memcpy(o->streams, usual, sizeof usual);
    }
    for (size_t i = 0; i < N_SHAPES; i++)
        if (strcmp(SHAPES[i].name, shape) == 0)
            b->shape = &SHAPES[i];
    if (b->shape == NULL)
        return err_set(err, ERR_INVALID,
                       "no shape %s; there are 110m, 1b, 7b, 8b, demo-7m and tiny", shape);
    if (read_dtype(&b->adapter_dtype, o->adapter_dtype) != 0)
        return err_set(err, ERR_INVALID, "adapters' dtype %s is none of bf16, f16 and f32",
                       o->adapter_dtype);
    if (o->n_prompt < 1 || o->n_generate < 1 || o->rank < 1 || o->rank > 1024 || o->n_rounds < 1 ||
        o->n_rounds > BENCH_ROUNDS_MAX || o->max_rows < 1 || o->n_adapters < 0 ||
        o->n_adapters > BENCH_ADAPTERS_MAX ||
        o->n_prompt > b->shape->config.max_context - o->n_generate)
        return err_set(err, ERR_INVALID,
                       "prompt %d, generate %d, rank %d, rounds %d, adapters %d or rows %d is out "
                       "of range (context %d)",
                       o->n_prompt, o->n_generate, o->rank, o->n_rounds, o->n_adapters, o->max_rows,
                       b->shape->config.max_context);
    for (int i = 0; i < BENCH_STREAM_COUNTS_MAX && o->streams[i] != 0; i++) {
        if (o->streams[i] < 1 || o->streams[i] > BENCH_STREAMS_MAX || o->streams[i] > o->max_rows)
            return err_set(err, ERR_INVALID, "%d streams; from 1 to %d, and no more than rows",
                           o->streams[i], BENCH_STREAMS_MAX);
        if (o->streams[i] > b->n_streams)
            b->n_streams = o->streams[i];
    }
    bool only_base = o->kinds == 1u << BENCH_BASE;
    bool only_shared = (o->kinds & ~(1u << BENCH_BASE | 1u << BENCH_SHARED)) == 0;
    b->n_adapters = only_base ? 0 : only_shared ? 1 : b->n_streams;
    if (o->n_adapters > 0 && !only_base)
        b->n_adapters = o->n_adapters;
    return 0;
}

struct making { /* adapters, made by several threads */
    const struct bench *b;
    struct lora_adapter **out; /* [n_adapters] */
    atomic_int next;
};

static void *make_adapters(void *context)
{
    struct making *m = context;
    for (int i; (i = atomic_fetch_add(&m->next, 1)) < m->b->n_adapters;)
        m->out[i] = lora_random(&m->b->shape->config, m->b->options.rank, m->b->adapter_dtype,
                                1000 + (uint64_t)i);
    return NULL;
}

static struct lora_adapter **random_adapters(const struct bench *b)
{
    struct making m = {.b = b, .out = xcalloc((size_t)b->n_adapters + 1, sizeof *m.out)};
    pthread_t threads[THREADS_MAX];
    long n_threads = sysconf(_SC_NPROCESSORS_ONLN);
    int n_started = 0;
    while (n_started + 1 < n_threads && n_started + 1 < b->n_adapters && n_started < THREADS_MAX &&
           pthread_create(&threads[n_started], NULL, make_adapters, &m) == 0)
        n_started++;
    make_adapters(&m);
    for (int i = 0; i < n_started; i++)
        pthread_join(threads[i], NULL);
    return m.out;
}

/* Every adapter comes to the device once, so that no measured round has to wait for that. */
static int touch_adapters(struct bench *b, struct err *err)
{
    int rc = 0;
    for (int done = 0; rc == 0 && done < b->n_adapters; done += b->n_streams) {
        int n = b->n_adapters - done < b->n_streams ? b->n_adapters - done : b->n_streams;
        for (int i = 0; i < n; i++)
            b->streams[i].adapter = done + i;
        rc = run_streams(b, n, 1, 1, err);
    }
    return rc;
}

static int set_up(struct bench *b, struct err *err)
{
    const struct bench_options *o = &b->options;
    struct model_config config = b->shape->config;
    int context = (o->n_prompt + o->n_generate + BLOCK_TOKENS - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
    struct model *model;
    struct monotonic_us begin = clock_monotonic_us();
    if (model_random(&model, &config, b->shape->name, 1, err) != 0)
        return -1;
    struct lora_adapter **made = random_adapters(b);
    struct monotonic_us made_at = clock_monotonic_us();
    b->make_s = seconds(begin, made_at);
    b->adapter_bytes = b->n_adapters > 0 ? made[0]->n_bytes : 0;
    struct engine_options options = {
        .backend = o->backend,
        .n_threads = o->n_threads,
        .weights = o->weights,
        .kv_bytes = (size_t)b->n_streams * (size_t)(context / BLOCK_TOKENS + 2) *
                    forward_block_bytes(&config, is_cuda(o) ? DTYPE_BF16 : DTYPE_F32),
        .adapter_bytes = b->adapter_bytes * (size_t)b->n_adapters,
        .adapter_host_bytes = b->adapter_bytes * (size_t)b->n_adapters,
        .max_seqs = b->n_streams,
        .max_rows = o->max_rows,
        .max_context = context,
        .on_events = on_events,
        .context = b,
    };
    int rc = engine_open_model(&b->engine, model, &options, err);
    b->open_s = seconds(made_at, clock_monotonic_us());
    b->adapters = xcalloc((size_t)b->n_adapters + 1, sizeof *b->adapters);
    b->streams = xcalloc((size_t)b->n_streams, sizeof *b->streams);
    b->times = xcalloc((size_t)b->n_streams * (size_t)o->n_generate, sizeof *b->times);
    b->prompt = xcalloc((size_t)o->n_prompt, sizeof *b->prompt);
    for (int i = 0; i < b->n_adapters; i++) {
        if (rc != 0) {
            lora_close(made[i]);
            continue;
        }
        b->adapters[i] = made[i]->content;
        rc = engine_adapter_add(b->engine, made[i], err);
    }
    free(made);
    if (rc == 0)
        rc = touch_adapters(b, err);
    if (rc == 0)
        count_bytes(b);
    return rc;
}

struct span {
    uintptr_t begin, end;
};

static int span_order(const void *a, const void *b)
{
    const struct span *x = a, *y = b;
    return x->begin < y->begin ? -1 : x->begin > y->begin;
}

/* Where each adapter's matrices lie, and that no two lie in one place. Nothing runs. */
static void show_memory(const struct bench *b, FILE *out)
{
    const struct lora_pool *pool = b->engine->lora;
    const struct model_config *c = &b->shape->config;
    int n_linears;
    const struct lora_linear *linears = lora_pool_linears(pool, &n_linears);
    size_t n_spans = 0, n_overlaps = 0;
    struct span *spans = xcalloc((size_t)b->n_adapters * (size_t)model_n_sites(c) * 2 + 1,
                                 sizeof *spans);
    for (int i = 0; i < b->n_adapters; i++) {
        int32_t slot = lora_pool_slot(pool, &b->adapters[i]);
        char hex[65];
        hex_encode(hex, b->adapters[i].bytes, 32);
        if (slot < 0) {
            fprintf(out, "# adapter %3d %.16s is not on the device\n", i, hex);
            continue;
        }
        uintptr_t low = UINTPTR_MAX, high = 0;
        for (int l = 0; l < n_linears; l++)
            for (int p = 0; p < linears[l].n_parts; p++) {
                const struct lora_entry *e = &linears[l].parts[p].entries[slot];
                size_t row = (size_t)e->rank * dtype_bytes((enum dtype)e->dtype);
                size_t n_a = row * (size_t)linears[l].d_in;
                size_t n_b = row * (size_t)linears[l].parts[p].d_out;
                spans[n_spans++] = (struct span){e->a.addr, e->a.addr + n_a};
                spans[n_spans++] = (struct span){e->b.addr, e->b.addr + n_b};
                low = e->a.addr < low ? e->a.addr : low;
                high = e->b.addr + n_b > high ? e->b.addr + n_b : high;
            }
        fprintf(out,
                "# adapter %3d %.16s slot %4d: %zu bytes within 0x%" PRIxPTR " to 0x%" PRIxPTR "\n",
                i, hex, (int)slot, b->adapter_bytes, low, high);
    }
    qsort(spans, n_spans, sizeof *spans, span_order);
    for (size_t i = 1; i < n_spans; i++)
        n_overlaps += spans[i].begin < spans[i - 1].end;
    fprintf(out, "# %zu matrices on the device, %zu of them overlap another\n", n_spans,
            n_overlaps);
    free(spans);
}

int bench_run(const struct bench_options *options, FILE *out, struct err *err)
{
    struct bench b = {.options = *options, .random = 42};
    if (check_options(&b, err) != 0)
        return -1;
    pthread_mutex_init(&b.lock, NULL);
    pthread_cond_init(&b.finished, NULL);
    int rc = set_up(&b, err);
    if (rc == 0)
        tell_head(&b, out);
    if (rc == 0 && b.options.show_memory)
        show_memory(&b, out);
    if (rc == 0)
        tell_titles(&b, out);
    for (int i = 0; rc == 0 && i < BENCH_STREAM_COUNTS_MAX && b.options.streams[i] != 0; i++)
        rc = measure(&b, out, b.options.streams[i], err);
    engine_close(b.engine);
    free(b.adapters);
    free(b.streams);
    free(b.times);
    free(b.prompt);
    pthread_cond_destroy(&b.finished);
    pthread_mutex_destroy(&b.lock);
    return rc;
}
