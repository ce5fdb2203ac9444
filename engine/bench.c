/* bench: see bench.h. One engine serves all measurements; a round of one kind submits its streams
 * at once, waits for the last token and looks at the times of the events. Prompts differ from
 * stream to stream and from round to round, so that nothing could be reused. The first round of
 * each kind is a warm-up (adapters are uploaded, pages touched) and not counted. */
#include "engine/bench.h"

#include "engine/internal.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

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
      .max_context = 8192,
      .norm_eps = 1e-5f,
      .rope = {.theta = 500000},
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

enum kind { KIND_BASE, KIND_ONE, KIND_ALL, KINDS };

static const char *const KIND_NAMES[KINDS] = {"base", "one adapter", "all different"};

struct stream {
    struct monotonic_us first, last; /* of its tokens */
    int n_tokens;
    bool finished;
};

struct bench {
    struct bench_options options;
    const struct shape *shape;
    struct engine *engine;
    struct content_digest *adapters; /* [n_adapters] */
    int n_adapters;
    uint64_t random;
    int32_t *prompt;            /* [n_prompt] */
    struct stream *streams;     /* [n_adapters]; written by the engine thread under the lock */
    struct monotonic_us *times; /* [n_adapters, n_generate] of every token */
    pthread_mutex_t lock;
    pthread_cond_t finished;
    int n_running;
};

struct speeds {
    double output, prefill, decode; /* tokens a second */
};

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
        } else if (events[i].kind == ENGINE_EVENT_FINISHED) {
            s->finished = true;
            if (--b->n_running == 0)
                pthread_cond_signal(&b->finished);
        }
    }
    pthread_mutex_unlock(&b->lock);
}

static int submit(struct bench *b, enum kind kind, int stream, struct err *err)
{
    for (int i = 0; i < b->options.n_prompt; i++) {
        b->random = b->random * 6364136223846793005u + 1442695040888963407u;
        b->prompt[i] = (int32_t)((b->random >> 33) % (uint64_t)b->shape->config.vocab);
    }
    struct engine_request r = {.prompt = b->prompt,
                               .n_prompt = b->options.n_prompt,
                               .max_tokens = b->options.n_generate,
                               .ignore_eos = true,
                               .sampling = {.n_top_logprobs = -1},
                               .user = &b->streams[stream]};
    if (kind != KIND_BASE) {
        r.n_adapters = 1;
        r.adapters[0].content = b->adapters[kind == KIND_ALL ? stream : 0];
        r.adapters[0].weight = 1;
    }
    return engine_submit(b->engine, &r, NULL, err);
}

static double seconds(struct monotonic_us from, struct monotonic_us to)
{
    return (double)clock_elapsed_us(from, to) * 1e-6;
}

static struct speeds speeds_of(const struct bench *b, int n, struct monotonic_us begin)
{
    int n_generate = b->options.n_generate, n_decode = 0;
    struct monotonic_us last_first = begin, first_last = b->streams[0].last, end = begin;
    for (int i = 0; i < n; i++) {
        const struct stream *s = &b->streams[i];
        if (s->first.us > last_first.us)
            last_first = s->first;
        if (s->last.us < first_last.us)
            first_last = s->last;
        if (s->last.us > end.us)
            end = s->last;
    }
    for (int i = 0; i < n; i++)
        for (int t = 0; t < n_generate; t++) {
            uint64_t at = b->times[(size_t)i * (size_t)n_generate + (size_t)t].us;
            n_decode += at > last_first.us && at <= first_last.us;
        }
    struct speeds out = {
        .output = n * n_generate / seconds(begin, end),
        .prefill = n * b->options.n_prompt / seconds(begin, last_first),
    };
    if (n_decode > 0) /* else no moment had all streams generating */
        out.decode = n_decode / seconds(last_first, first_last);
    return out;
}

static int run_round(struct bench *b, enum kind kind, int n, struct speeds *out, struct err *err)
{
    memset(b->streams, 0, (size_t)n * sizeof *b->streams);
    pthread_mutex_lock(&b->lock);
    b->n_running = n;
    pthread_mutex_unlock(&b->lock);
    struct monotonic_us begin = clock_monotonic_us();
    int rc = 0, n_submitted = 0;
    while (n_submitted < n && (rc = submit(b, kind, n_submitted, err)) == 0)
        n_submitted++;
    pthread_mutex_lock(&b->lock);
    b->n_running -= n - n_submitted;
    while (b->n_running > 0)
        pthread_cond_wait(&b->finished, &b->lock);
    pthread_mutex_unlock(&b->lock);
    if (rc != 0)
        return -1;
    for (int i = 0; i < n; i++)
        if (b->streams[i].n_tokens != b->options.n_generate)
            return err_set(err, ERR_INTERNAL, "stream %d gave %d of %d tokens", i,
                           b->streams[i].n_tokens, b->options.n_generate);
    *out = speeds_of(b, n, begin);
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

static void tell_head(const struct bench *b, FILE *out)
{
    const struct bench_options *o = &b->options;
    fprintf(out, "# shape %s: %s\n# device %s\n# commit %s\n# flags %s\n", b->shape->name,
            b->shape->text, engine_model(b->engine)->backend, o->commit, o->flags);
    fprintf(out,
            "# prompt %d, generate %d, adapters of rank %d on all linears, each its own, "
            "median of %d rounds, tokens/s\n",
            o->n_prompt, o->n_generate, o->rank, o->n_rounds);
    if (o->csv)
        fprintf(out, "streams,adapters,output,output_min,output_max,prefill,decode\n");
    else
        fprintf(out, "%7s  %-13s  %8s  %19s  %8s  %8s\n", "streams", "adapters", "output",
                "(min to max)", "prefill", "decode");
}

static struct speeds tell_row(const struct bench *b, FILE *out, int n, enum kind kind,
                              const struct speeds *rounds)
{
    double values[3][BENCH_ROUNDS_MAX];
    int n_rounds = b->options.n_rounds;
    for (int r = 0; r < n_rounds; r++) {
        values[0][r] = rounds[r].output;
        values[1][r] = rounds[r].prefill;
        values[2][r] = rounds[r].decode;
    }
    struct speeds m = {median(values[0], n_rounds), median(values[1], n_rounds),
                       median(values[2], n_rounds)};
    fprintf(out,
            b->options.csv ? "%d,%s,%.1f,%.1f,%.1f,%.1f,%.1f\n"
                           : "%7d  %-13s  %8.1f  (%7.1f to %7.1f)  %8.1f  %8.1f\n",
            n, KIND_NAMES[kind], m.output, values[0][0], values[0][n_rounds - 1], m.prefill,
            m.decode);
    return m;
}

static int measure(struct bench *b, FILE *out, int n, struct err *err)
{
    int n_rounds = b->options.n_rounds;
    struct speeds *rounds = xcalloc((size_t)KINDS * (size_t)n_rounds, sizeof *rounds);
    struct speeds warm, told[KINDS];
    int rc = 0;
    for (int k = 0; rc == 0 && k < KINDS; k++)
        rc = run_round(b, (enum kind)k, n, &warm, err);
    for (int r = 0; rc == 0 && r < n_rounds; r++)
        for (int i = 0; rc == 0 && i < KINDS; i++) {
            int k = (i + r) % KINDS; /* nobody is always first */
            rc = run_round(b, (enum kind)k, n, &rounds[k * n_rounds + r], err);
        }
    for (int k = 0; rc == 0 && k < KINDS; k++)
        told[k] = tell_row(b, out, n, (enum kind)k, &rounds[k * n_rounds]);
    if (rc == 0 && !b->options.csv)
        fprintf(out,
                "# %d streams: all different against one for all %+.1f %%, against base %+.1f %%"
                " (output)\n",
                n, 100 * (told[KIND_ALL].output / told[KIND_ONE].output - 1),
                100 * (told[KIND_ALL].output / told[KIND_BASE].output - 1));
    fflush(out);
    free(rounds);
    return rc;
}

/* ---- setting up -------------------------------------------------------------------------- */

static int check_options(struct bench *b, struct err *err)
{
    struct bench_options *o = &b->options;
    const char *shape = o->shape != NULL ? o->shape : "110m";
    o->n_prompt = o->n_prompt != 0 ? o->n_prompt : 128;
    o->n_generate = o->n_generate != 0 ? o->n_generate : 64;
    o->rank = o->rank != 0 ? o->rank : 16;
    o->n_rounds = o->n_rounds != 0 ? o->n_rounds : 5;
    o->max_rows = o->max_rows != 0 ? o->max_rows : 256;
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
        return err_set(err, ERR_INVALID, "no shape %s; there are 110m, 1b, 8b and tiny", shape);
    if (o->n_prompt < 1 || o->n_generate < 2 || o->rank < 1 || o->rank > 1024 || o->n_rounds < 1 ||
        o->n_rounds > BENCH_ROUNDS_MAX || o->max_rows < 1 ||
        o->n_prompt > b->shape->config.max_context - o->n_generate)
        return err_set(err, ERR_INVALID,
                       "prompt %d, generate %d, rank %d, rounds %d or rows %d is out "
                       "of range (context %d)",
                       o->n_prompt, o->n_generate, o->rank, o->n_rounds, o->max_rows,
                       b->shape->config.max_context);
    for (int i = 0; i < BENCH_STREAM_COUNTS_MAX && o->streams[i] != 0; i++) {
        if (o->streams[i] < 1 || o->streams[i] > BENCH_STREAMS_MAX || o->streams[i] > o->max_rows)
            return err_set(err, ERR_INVALID, "%d streams; from 1 to %d, and no more than rows",
                           o->streams[i], BENCH_STREAMS_MAX);
        if (o->streams[i] > b->n_adapters)
            b->n_adapters = o->streams[i];
    }
    return 0;
}

static int set_up(struct bench *b, struct err *err)
{
    const struct bench_options *o = &b->options;
    struct model_config config = b->shape->config;
    int context = (o->n_prompt + o->n_generate + BLOCK_TOKENS - 1) / BLOCK_TOKENS * BLOCK_TOKENS;
    struct model *model;
    if (model_random(&model, &config, b->shape->name, 1, err) != 0)
        return -1;
    struct lora_adapter *first = lora_random(&config, o->rank, DTYPE_BF16, 1000);
    size_t n_adapter = first->n_bytes;
    struct engine_options options = {
        .backend = o->backend,
        .n_threads = o->n_threads,
        .kv_bytes = (size_t)b->n_adapters * (size_t)(context / BLOCK_TOKENS + 2) *
                    forward_block_bytes(&config, DTYPE_F32),
        .adapter_bytes = n_adapter * (size_t)b->n_adapters,
        .adapter_host_bytes = n_adapter * (size_t)b->n_adapters,
        .max_seqs = b->n_adapters,
        .max_rows = o->max_rows,
        .max_context = context,
        .on_events = on_events,
        .context = b,
    };
    if (engine_open_model(&b->engine, model, &options, err) != 0) {
        lora_close(first);
        return -1;
    }
    b->adapters = xcalloc((size_t)b->n_adapters, sizeof *b->adapters);
    b->streams = xcalloc((size_t)b->n_adapters, sizeof *b->streams);
    b->times = xcalloc((size_t)b->n_adapters * (size_t)o->n_generate, sizeof *b->times);
    b->prompt = xcalloc((size_t)o->n_prompt, sizeof *b->prompt);
    for (int i = 0; i < b->n_adapters; i++) {
        struct lora_adapter *a = i == 0 ? first
                                        : lora_random(&b->shape->config, o->rank, DTYPE_BF16,
                                                      1000 + (uint64_t)i);
        b->adapters[i] = a->content;
        if (engine_adapter_add(b->engine, a, err) != 0)
            return -1;
    }
    return 0;
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
