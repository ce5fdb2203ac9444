/* bench_ops: the cpu backend's operators against what the machine can do.
 *
 *     bench_ops [threads] [110m | 8b] [repeats] [bf16 | int8]
 *
 * First the machine's own bound, measured in this process with as many threads: GB/s of a streaming
 * read. Then one line a shape, the median of the repeats. For linear the cost of a step's rows is
 * the larger of bytes / bandwidth and FMAs / peak; peak is 16 FMAs a cycle and core with AVX2 on
 * Zen 3, 32 with two AVX-512 units. With one thread the clock is the thread's own CPU time, so that
 * a shared machine can be measured at all. TRIBUTARY_ISA (ops.h) holds the machine to an older
 * path.
 */
#include "kernels/numeric.h"
#include "kernels/ops.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct bench {
    const struct ops *ops;
    struct backend *be;
    int repeats;
    bool int8; /* weights */
    double read_gbs;
};

struct shape {
    const char *name;
    int hidden, qkv, ffn, vocab, layers, heads, kv_heads, head_dim, rank;
};

static const struct shape shapes[] = {
    {"110m", 768, 2304, 2048, 32000, 12, 12, 12, 64, 16},
    {"8b", 4096, 6144, 14336, 128256, 32, 32, 8, 128, 16},
};

static bool cpu_time; /* measure the calling thread's CPU time */

static double now_s(void)
{
    struct timespec t;
    clock_gettime(cpu_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int double_order(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

typedef void work_fn(void *context);

/* Median seconds of one call; short calls are measured in groups of at least 2 ms. */
static double measure(const struct bench *b, work_fn *fn, void *context)
{
    double times[64];
    fn(context);
    double begin = now_s();
    fn(context);
    double once = now_s() - begin;
    int group = once > 0.002 ? 1 : (int)(0.002 / (once + 1e-7)) + 1;
    for (int i = 0; i < b->repeats; i++) {
        begin = now_s();
        for (int k = 0; k < group; k++)
            fn(context);
        times[i] = (now_s() - begin) / group;
    }
    qsort(times, (size_t)b->repeats, sizeof *times, double_order);
    return times[b->repeats / 2];
}

/* ---- streaming read
 * ------------------------------------------------------------------------------ */

enum { STREAM_BYTES = 256 * 1024 * 1024 };

struct stream {
    const uint64_t *from;
    size_t n;
    volatile uint64_t sum; /* volatile: or nothing need be read */
};

static void *stream_read(void *arg)
{
    struct stream *s = arg;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i + 16 <= s->n; i += 16) {
        for (size_t k = 0; k < 16; k += 4) {
            a += s->from[i + k];
            b += s->from[i + k + 1];
            c += s->from[i + k + 2];
            d += s->from[i + k + 3];
        }
    }
    s->sum = a + b + c + d;
    return NULL;
}

struct streams {
    uint64_t *memory;
    int n_threads;
};

static void streams_run(void *context)
{
    const struct streams *s = context;
    pthread_t threads[64];
    struct stream part[64];
    size_t n = STREAM_BYTES / sizeof(uint64_t) / (size_t)s->n_threads;
    if (s->n_threads == 1) {
        part[0].from = s->memory;
        part[0].n = n;
        stream_read(&part[0]);
        return;
    }
    for (int i = 0; i < s->n_threads; i++) {
        part[i].from = s->memory + (size_t)i * n;
        part[i].n = n;
        if (pthread_create(&threads[i], NULL, stream_read, &part[i]) != 0)
            abort();
    }
    for (int i = 0; i < s->n_threads; i++)
        pthread_join(threads[i], NULL);
}

/* ---- linear
 * ---------------------------------------------------------------------------------------- */

struct linear_call {
    const struct bench *b;
    struct weight **w; /* copies, used in turn, so that no call finds its weight in cache */
    int n_w, next;
    struct devptr y, x;
    int n_rows;
    const struct lora_args *lora; /* [n_w] */
};

static void linear_run(void *context)
{
    struct linear_call *c = context;
    int i = c->next++ % c->n_w;
    c->b->ops->linear(c->b->be, c->y, c->x, c->w[i], (struct devptr){0}, c->n_rows, false,
                      c->lora != NULL ? &c->lora[i] : NULL);
}

static struct devptr random_mem(const struct bench *b, size_t n, enum dtype t, uint64_t seed)
{
    struct devptr p;
    struct err err = {0};
    if (b->ops->mem_alloc(b->be, &p, n * dtype_bytes(t), &err) != 0) {
        fprintf(stderr, "bench_ops: %s\n", err.message);
        exit(1);
    }
    void *host = xmalloc(n * dtype_bytes(t));
    for (size_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        element_store(host, t, i, ((float)(seed >> 40) * 0x1p-24f - 0.5f) * 0.1f);
    }
    b->ops->upload(b->be, p, host, n * dtype_bytes(t));
    free(host);
    return p;
}

static void bench_linear(const struct bench *b, const char *name, int d_in, int d_out)
{
    static const int rows[] = {1, 2, 3, 4, 6, 8, 12, 16, 32, 60, 128, 256};
    size_t bytes = (size_t)d_in * (size_t)d_out * (b->int8 ? 1 : 2);
    int n_w = (int)(128e6 / (double)bytes) + 1;
    struct weight **w = xcalloc((size_t)n_w, sizeof *w);
    struct devptr host = random_mem(b, (size_t)d_in * (size_t)d_out, DTYPE_BF16, 1);
    struct err err = {0};
    for (int i = 0; i < n_w; i++) {
        const void *part = (const void *)host.addr;
        if (b->ops->weight_create(b->be, &w[i], &part, &d_out, 1, d_in, DTYPE_BF16, &err) != 0) {
            fprintf(stderr, "bench_ops: %s\n", err.message);
            exit(1);
        }
    }
    b->ops->mem_free(b->be, host);
    struct linear_call c = {.b = b, .w = w, .n_w = n_w};
    c.x = random_mem(b, 256 * (size_t)d_in, DTYPE_F32, 2);
    c.y = random_mem(b, 256 * (size_t)d_out, DTYPE_F32, 3);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        c.n_rows = rows[i];
        double s = measure(b, linear_run, &c);
        double gbs = (double)bytes / s * 1e-9, fma = (double)rows[i] * d_in * d_out / s * 1e-9;
        printf(
            "%-8s %6d x %-6d %4d rows  %9.1f us  %6.1f GB/s (%3.0f %% of stream)  %6.1f GFMA/s\n",
            name, d_out, d_in, rows[i], s * 1e6, gbs, 100 * gbs / b->read_gbs, fma);
    }
    for (int i = 0; i < n_w; i++)
        b->ops->weight_free(b->be, w[i]);
    b->ops->mem_free(b->be, c.x);
    b->ops->mem_free(b->be, c.y);
    free(w);
}

/* ---- adapters: one for all rows against one a row
 * --------------------------------------------------- */

static void bench_lora(const struct bench *b, const struct shape *s, int n_rows)
{
    const int d_in = s->hidden, d_out = s->qkv;
    /* as many copies of weight and adapters as keep them out of the caches */
    size_t adapter = (size_t)s->rank * (size_t)(d_in + d_out);
    int n_w = (int)(128e6 / ((double)d_in * d_out * 2)) + 1;
    struct weight **w = xcalloc((size_t)n_w, sizeof *w);
    struct lora_entry *entries = xcalloc((size_t)(n_w * n_rows), sizeof *entries);
    struct lora_part *parts = xcalloc((size_t)n_w, sizeof *parts);
    struct lora_args *args = xcalloc((size_t)n_w, sizeof *args);
    struct lora_seg *segs = xcalloc((size_t)n_rows, sizeof *segs);
    struct lora_step step = {.segs = segs, .d_segs = {(uintptr_t)segs}};
    struct devptr host = random_mem(b, (size_t)d_in * (size_t)d_out, DTYPE_BF16, 1);
    struct devptr pool = random_mem(b, adapter * (size_t)(n_w * n_rows), DTYPE_BF16, 4);
    struct err err = {0};
    for (int i = 0; i < n_w; i++) {
        const void *part = (const void *)host.addr;
        if (b->ops->weight_create(b->be, &w[i], &part, &d_out, 1, d_in, DTYPE_BF16, &err) != 0)
            exit(1);
        parts[i] = (struct lora_part){&entries[i * n_rows], {0}, 0, d_out};
        args[i] = (struct lora_args){.step = &step, .parts = &parts[i], .n_parts = 1};
        for (int r = 0; r < n_rows; r++) {
            struct devptr a = devptr_at(pool, (size_t)(i * n_rows + r) * adapter * 2);
            entries[i * n_rows + r] = (struct lora_entry){
                a, devptr_at(a, (size_t)s->rank * (size_t)d_in * 2), s->rank, 1, DTYPE_BF16, 0};
        }
    }
    struct linear_call c = {.b = b, .w = w, .n_w = n_w, .n_rows = n_rows};
    c.x = random_mem(b, (size_t)n_rows * (size_t)d_in, DTYPE_F32, 2);
    c.y = random_mem(b, (size_t)n_rows * (size_t)d_out, DTYPE_F32, 3);
    double base = measure(b, linear_run, &c);
    c.lora = args;
    step.n_segs = 1;
    segs[0] = (struct lora_seg){0, n_rows, 0, 1};
    double one = measure(b, linear_run, &c);
    step.n_segs = n_rows;
    for (int r = 0; r < n_rows; r++)
        segs[r] = (struct lora_seg){r, 1, r, 1};
    double distinct = measure(b, linear_run, &c);
    printf(
        "lora     %6d x %-6d %4d rows  base %7.1f us  one adapter %7.1f us  all different %7.1f us "
        "(one / different = %.3f)\n",
        d_out, d_in, n_rows, base * 1e6, one * 1e6, distinct * 1e6, one / distinct);
    for (int i = 0; i < n_w; i++)
        b->ops->weight_free(b->be, w[i]);
    b->ops->mem_free(b->be, host);
    b->ops->mem_free(b->be, pool);
    b->ops->mem_free(b->be, c.x);
    b->ops->mem_free(b->be, c.y);
    free(w);
    free(entries);
    free(parts);
    free(args);
    free(segs);
}

/* ---- attention
 * ------------------------------------------------------------------------------------- */

struct attention_call {
    const struct bench *b;
    struct devptr y, qkv;
    struct kv_layer kv[16]; /* layers in turn */
    int n_layers, next;
    struct batch batch;
    struct attention_shape shape;
};

static void attention_run(void *context)
{
    struct attention_call *c = context;
    c->b->ops->attention(c->b->be, c->y, c->qkv, &c->kv[c->next++ % c->n_layers], &c->batch,
                         &c->shape);
}

/* n_seqs sequences of `context` tokens, the last n_new of each in this step. */
static void bench_attention(const struct bench *b, const struct shape *s, enum dtype t, int n_seqs,
                            int context, int n_new)
{
    int max_blocks = (context + BLOCK_TOKENS - 1) / BLOCK_TOKENS, n_rows = n_seqs * n_new;
    int32_t *indptr = xcalloc((size_t)n_seqs + 1, 4), *kv_len = xcalloc((size_t)n_seqs, 4);
    int32_t *position = xcalloc((size_t)n_rows, 4);
    int32_t *table = xcalloc((size_t)(n_seqs * max_blocks), 4);
    for (int q = 0; q < n_seqs; q++) {
        indptr[q + 1] = (q + 1) * n_new;
        kv_len[q] = context;
        for (int i = 0; i < n_new; i++)
            position[q * n_new + i] = context - n_new + i;
        for (int i = 0; i < max_blocks; i++)
            table[q * max_blocks + i] = i * n_seqs + q; /* interleaved, as they grow */
    }
    struct attention_call c = {.b = b, .n_layers = 8};
    c.shape = (struct attention_shape){s->heads, s->kv_heads, s->head_dim, 0.125f, 0, 0};
    c.batch = (struct batch){.n_rows = n_rows,
                             .n_seqs = n_seqs,
                             .max_blocks = max_blocks,
                             .seq_indptr = indptr,
                             .kv_len = kv_len,
                             .position = position,
                             .d_block_table = {(uintptr_t)table}};
    size_t pool = (size_t)(n_seqs * max_blocks * BLOCK_TOKENS) *
                  (size_t)(s->kv_heads * s->head_dim);
    for (int i = 0; i < c.n_layers; i++)
        c.kv[i] = (struct kv_layer){random_mem(b, pool, t, 1), random_mem(b, pool, t, 2), t};
    c.qkv = random_mem(b, (size_t)n_rows * (size_t)((s->heads + 2 * s->kv_heads) * s->head_dim),
                       DTYPE_F32, 3);
    c.y = random_mem(b, (size_t)n_rows * (size_t)(s->heads * s->head_dim), DTYPE_F32, 4);
    double sec = measure(b, attention_run, &c);
    double keys = 0;
    for (int i = 0; i < n_rows; i++)
        keys += position[i] + 1;
    double bytes = 2.0 * (double)pool * (double)dtype_bytes(t);
    printf("attention %s %3d seqs x %5d keys, %4d rows each  %9.1f us  %6.1f GB/s  %6.1f GFMA/s\n",
           t == DTYPE_F32 ? "f32" : "f16", n_seqs, context, n_new, sec * 1e6, bytes / sec * 1e-9,
           2 * keys * s->heads * s->head_dim / sec * 1e-9);
    for (int i = 0; i < c.n_layers; i++) {
        b->ops->mem_free(b->be, c.kv[i].k);
        b->ops->mem_free(b->be, c.kv[i].v);
    }
    b->ops->mem_free(b->be, c.qkv);
    b->ops->mem_free(b->be, c.y);
    free(indptr);
    free(kv_len);
    free(position);
    free(table);
}

struct sample_call {
    const struct bench *b;
    struct devptr logits;
    int n, vocab;
    const struct sample_params *params;
    struct sample_result *results;
};

static void sample_run(void *context)
{
    struct sample_call *c = context;
    c->b->ops->sample(c->b->be, c->results, (struct devptr){0}, c->logits, c->n, c->vocab,
                      c->params, NULL);
}

static void bench_sample(const struct bench *b, int vocab)
{
    struct sample_params params[16];
    struct sample_result results[16];
    struct sample_call c = {
        b, random_mem(b, 16 * (size_t)vocab, DTYPE_F32, 1), 16, vocab, params, results};
    for (int kind = 0; kind < 3; kind++) {
        for (int i = 0; i < 16; i++)
            params[i] = (struct sample_params){.temperature = kind == 0 ? 0 : 1,
                                               .top_k = kind == 2 ? 40 : 0,
                                               .top_p = 1,
                                               .repetition_penalty = 1,
                                               .seed = (uint64_t)i};
        printf("sample   vocab %6d  16 rows  %9.1f us  (%s)\n", vocab,
               measure(b, sample_run, &c) * 1e6,
               kind == 0   ? "greedy"
               : kind == 1 ? "temperature 1, flat logits"
                           : "top-k 40");
    }
    b->ops->mem_free(b->be, c.logits);
}

int main(int argc, char **argv)
{
    struct err err = {0};
    struct bench b = {.ops = ops_find("cpu", &err), .repeats = argc > 3 ? atoi(argv[3]) : 7};
    struct backend_options options = {.n_threads = argc > 1 ? atoi(argv[1]) : 0,
                                      .max_rows = 256,
                                      .max_rank = 64,
                                      .weights_int8 = argc > 4 && strcmp(argv[4], "int8") == 0};
    const struct shape *s = &shapes[argc > 2 && strcmp(argv[2], "8b") == 0];
    struct backend_caps caps;
    if (b.repeats < 1 || b.repeats > 64 || b.ops == NULL ||
        b.ops->open(&b.be, &options, &err) != 0) {
        fprintf(stderr, "usage: bench_ops [threads] [110m | 8b] [repeats 1-64] [bf16 | int8]  %s\n",
                err.message);
        return 1;
    }
    b.ops->caps(b.be, &caps);
    b.int8 = options.weights_int8;
    cpu_time = argc > 1 && atoi(argv[1]) == 1;
    struct devptr memory = random_mem(&b, STREAM_BYTES / 4, DTYPE_F32, 1);
    struct streams streams = {(uint64_t *)memory.addr, argc > 1 ? atoi(argv[1]) : 2};
    streams.n_threads = streams.n_threads < 1 || streams.n_threads > 64 ? 2 : streams.n_threads;
    b.read_gbs = STREAM_BYTES / measure(&b, streams_run, &streams) * 1e-9;
    b.ops->mem_free(b.be, memory);
    printf("%s; streaming read with %d threads %.1f GB/s; shape %s\n", caps.description,
           streams.n_threads, b.read_gbs, s->name);
    bench_linear(&b, "qkv", s->hidden, s->qkv);
    bench_linear(&b, "o", s->heads * s->head_dim, s->hidden);
    bench_linear(&b, "gate_up", s->hidden, 2 * s->ffn);
    bench_linear(&b, "down", s->ffn, s->hidden);
    if (s == &shapes[0])
        bench_linear(&b, "lm_head", s->hidden, s->vocab);
    bench_lora(&b, s, 8);
    bench_lora(&b, s, 16);
    for (enum dtype t = DTYPE_F32; t <= DTYPE_F16; t++) {
        bench_attention(&b, s, t, 1, 192, 1);
        bench_attention(&b, s, t, 16, 192, 1);
        bench_attention(&b, s, t, 1, 128, 128);
        bench_attention(&b, s, t, 1, 2048, 1);
    }
    bench_sample(&b, s->vocab);
    b.ops->close(b.be);
    return 0;
}
