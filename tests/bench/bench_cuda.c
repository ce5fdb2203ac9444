/* bench_cuda: the operators of kernels/ops.h at the 8B shape, against the card and against peers.
 *
 *     bench_cuda [--backend NAME] [--only GROUP,GROUP] [--csv FILE] [--peers DIR] [--commit ID]
 *                [--read GB/S] [--math TFLOP/S] [--shrink N] [--rows N,N] [--heavy 0|1]
 *
 * Groups:
 *   sgmv       shrink and expand, the pair alone, over rows x adapters x rank x out; K = 4096
 *   linear     base products at 1 to 8,192 rows
 *   lora       a product with one adapter, and with all different, against the product alone
 *   layer      the four products of a layer, alone and with adapters
 *   attention  paged decode and prefill
 *   small      norms, rope, SwiGLU, embedding, draws
 *
 * How. Calls are recorded (on cuda: one graph of many calls) and the recording is replayed; a
 * sample is as many replays as take 5 ms, between two syncs, so that the host's part vanishes; the
 * median of 9 samples is told. Weights, adapters and KV caches rotate over at least 160 MB, more
 * than three times the L2, within the recording; except that rank-16 rows of one adapter use one
 * set, which therefore stays in the L2, as the peers' did. Inputs and outputs are warm. A backend
 * without recordings is called directly ("direct" in the last column).
 *
 * bound is the larger of bytes / read bandwidth and FLOP / matrix rate. Bytes are what must come
 * from memory: weights, adapters, caches; activations stay in the L2. The peers' figures are
 * peers-h100.csv and peers-h100-layer.csv beside this file, with their provenance in them; ratio is
 * peer / ours, so more than 1 is faster than the best of them.
 *
 * --rows takes only these numbers of rows of groups sgmv to layer. --heavy says which of the two
 * ways to adapters' products (lora_is_heavy) all steps go, instead of that one. --shrink divides
 * every width and size, so that the program itself can be tried on a small CPU. */
#include "engine/noise.h"
#include "kernels/ops.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    K = 4096,
    FFN = 14336,
    VOCAB = 128256,
    HEADS = 32,
    KV_HEADS = 8,
    HEAD_DIM = 128,
    MAX_ROWS = 8192,
    MAX_SEQS = 256,
    MAX_CONTEXT = 8192,
    SAMPLES = 9,
    CALLS_MIN = 40,  /* of a recording */
    CALLS_MAX = 512, /* likewise; what rotates may be more, then not all of it is visited */
    ALIGN = 256,
};
static const double ROTATE_BYTES = 160e6, SAMPLE_S = 0.005, RECORDING_S = 0.02;

struct bench {
    const struct ops *ops;
    struct backend *be;
    struct backend_caps caps;
    size_t word;              /* bytes of an activation */
    FILE *csv;                /* or NULL */
    const char *peers, *rows; /* rows: NULL, all */
    double read, math;        /* bytes and FLOP a second */
    int shrink;
    int heavy;       /* -1: by lora_is_heavy */
    uint16_t *noise; /* host, bf16 [n_noise] */
    size_t n_noise;
};

/* One line of the table; zero: not said. */
struct line {
    const char *group, *op;
    int rows, adapters, rank, d_in, d_out;
    double us, added_us; /* added_us: what the adapters add to the product alone */
    double bytes, flop;
    double peer_us;
    const char *peer;
    bool direct;
};

/* ---- small things ------------------------------------------------------------------------ */

_Noreturn static void die(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "bench_cuda: ");
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\n");
    va_end(args);
    exit(1);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static int max_of(int a, int b)
{
    return a > b ? a : b;
}

static size_t aligned(size_t n)
{
    return (n + ALIGN - 1) / ALIGN * ALIGN;
}

static void sync_or_die(const struct bench *b)
{
    struct err err = {0};
    if (b->ops->sync(b->be, &err) != 0)
        die("%s", err.message);
}

static struct devptr alloc_mem(const struct bench *b, size_t n_bytes)
{
    struct devptr p;
    struct err err = {0};
    if (b->ops->mem_alloc(b->be, &p, n_bytes, &err) != 0)
        die("%s", err.message);
    return p;
}

/* Device memory full of bf16 noise within +-0.03; as f32 these are small numbers too. */
static struct devptr noise_mem(const struct bench *b, size_t n_bytes)
{
    struct devptr p = alloc_mem(b, n_bytes);
    size_t n_host = b->n_noise * sizeof *b->noise;
    for (size_t at = 0; at < n_bytes; at += n_host)
        b->ops->upload(b->be, devptr_at(p, at), b->noise,
                       n_bytes - at < n_host ? n_bytes - at : n_host);
    sync_or_die(b);
    return p;
}

static struct devptr activations(const struct bench *b, size_t n, float spread)
{
    void *host = xmalloc(n * b->word);
    noise_fill(host, b->caps.activation, n, n, 0, spread, 0);
    struct devptr p = alloc_mem(b, n * b->word);
    b->ops->upload(b->be, p, host, n * b->word);
    sync_or_die(b);
    free(host);
    return p;
}

static struct devptr put(const struct bench *b, const void *host, size_t n_bytes)
{
    struct devptr p = alloc_mem(b, n_bytes);
    b->ops->upload(b->be, p, host, n_bytes);
    sync_or_die(b);
    return p;
}

static void free_mem(const struct bench *b, struct devptr *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        b->ops->mem_free(b->be, p[i]);
}

/* ---- measuring --------------------------------------------------------------------------- */

typedef void call_fn(void *context, int i); /* enqueues call i of a recording */

struct timing {
    double us;
    bool direct;
};

static void run_calls(const struct bench *b, struct recording *r, call_fn *fn, void *context,
                      int n_calls)
{
    if (r != NULL)
        b->ops->replay(b->be, r);
    for (int i = 0; r == NULL && i < n_calls; i++)
        fn(context, i);
}

static double runs_s(const struct bench *b, struct recording *r, call_fn *fn, void *context,
                     int n_calls, int n_runs)
{
    double begin = now_s();
    for (int i = 0; i < n_runs; i++)
        run_calls(b, r, fn, context, n_calls);
    sync_or_die(b);
    return now_s() - begin;
}

/* Median time of a call; n_rotate is how many calls visit everything that rotates. */
static struct timing measure(const struct bench *b, call_fn *fn, void *context, int n_rotate)
{
    int n_calls = (CALLS_MIN + n_rotate - 1) / n_rotate * n_rotate;
    n_calls = b->shrink > 1 ? 2 : n_calls > CALLS_MAX ? CALLS_MAX : n_calls;
    struct recording *recording = NULL;
    struct err err = {0};
    runs_s(b, NULL, fn, context, 1, 1); /* whatever happens only once */
    double call_s = runs_s(b, NULL, fn, context, 1, 1);
    if (call_s * n_calls > RECORDING_S) /* long calls need no company */
        n_calls = max_of(2, (int)(RECORDING_S / call_s));
    if (b->ops->record_begin(b->be)) {
        for (int i = 0; i < n_calls; i++)
            fn(context, i);
        if (b->ops->record_end(b->be, &recording, &err) != 0)
            fprintf(stderr, "bench_cuda: not recorded: %s\n", err.message);
    }
    runs_s(b, recording, fn, context, n_calls, 2);
    double once = runs_s(b, recording, fn, context, n_calls, 1);
    int n_runs = once > SAMPLE_S ? 1 : (int)(SAMPLE_S / once) + 1;
    double samples[SAMPLES];
    for (int i = 0; i < SAMPLES; i++)
        samples[i] = runs_s(b, recording, fn, context, n_calls, n_runs);
    qsort(samples, SAMPLES, sizeof *samples, ascending);
    struct timing t = {samples[SAMPLES / 2] / n_runs / n_calls * 1e6, recording == NULL};
    b->ops->recording_free(b->be, recording);
    return t;
}

/* ---- telling ----------------------------------------------------------------------------- */

static void tell_head(const struct bench *b, const char *commit)
{
    FILE *to[] = {stdout, b->csv};
    for (int i = 0; i < 2; i++)
        if (to[i] != NULL)
            fprintf(to[i],
                    "# bench_cuda on %s, commit %s\n# bounds: read %.0f GB/s, matrix %.0f "
                    "TFLOP/s; medians of %d samples of at least %.0f ms\n",
                    b->caps.description, commit, b->read * 1e-9, b->math * 1e-12, SAMPLES,
                    SAMPLE_S * 1e3);
    printf("%-9s %-22s %5s %4s %4s %6s %6s %9s %8s %6s %7s %8s %6s %9s %-5s %6s\n", "group", "op",
           "rows", "lora", "rank", "in", "out", "us", "added", "TB/s", "TFLOP/s", "bound", "share",
           "peer", "", "ratio");
    if (b->csv != NULL)
        fprintf(b->csv, "group,op,rows,adapters,rank,d_in,d_out,us,added_us,tb_s,tflop_s,bound_us,"
                        "share,peer_us,peer,ratio,direct\n");
}

static void tell(const struct bench *b, const struct line *l)
{
    double bound = fmax(l->bytes / b->read, l->flop / b->math) * 1e6;
    double ours = l->added_us > 0 ? l->added_us : l->us;
    double tb = l->bytes / l->us * 1e-6, tflop = l->flop / l->us * 1e-6;
    double ratio = l->peer_us > 0 ? l->peer_us / ours : 0;
    printf("%-9s %-22s %5d %4d %4d %6d %6d %9.2f ", l->group, l->op, l->rows, l->adapters, l->rank,
           l->d_in, l->d_out, l->us);
    if (l->adapters > 0 && strcmp(l->group, "lora") == 0)
        printf("%8.2f ", l->added_us);
    else
        printf("%8s ", "");
    printf("%6.2f %7.1f %8.2f %5.1f%% ", tb, tflop, bound, 100 * bound / l->us);
    if (l->peer_us > 0)
        printf("%9.2f %-5s %6.2f%s", l->peer_us, l->peer, ratio, ratio < 1 ? " slower" : "");
    printf("%s\n", l->direct ? "  direct" : "");
    fflush(stdout);
    if (b->csv == NULL)
        return;
    fprintf(b->csv, "%s,%s,%d,%d,%d,%d,%d,%.3f,%.3f,%.3f,%.2f,%.3f,%.4f,%.2f,%s,%.3f,%d\n",
            l->group, l->op, l->rows, l->adapters, l->rank, l->d_in, l->d_out, l->us, l->added_us,
            tb, tflop, bound, bound / l->us, l->peer_us, l->peer != NULL ? l->peer : "", ratio,
            l->direct);
    fflush(b->csv);
}

/* ---- peers ------------------------------------------------------------------------------- */

enum { PEER_COLUMNS = 10, PEER_ROWS_MAX = 256 };

struct peers {
    double rows[PEER_ROWS_MAX][PEER_COLUMNS];
    int n_rows;
};

static struct peers grid, layers;

static void read_peers(struct peers *out, const char *dir, const char *name)
{
    char *path = xasprintf("%s/%s", dir, name), text[512];
    FILE *f = fopen(path, "r");
    if (f == NULL)
        die("%s: cannot be read (--peers DIR)", path);
    while (fgets(text, sizeof text, f) != NULL && out->n_rows < PEER_ROWS_MAX) {
        if (text[0] < '0' || text[0] > '9')
            continue;
        char *rest = text;
        for (int c = 0; c < PEER_COLUMNS && rest != NULL; c++) {
            char *word = strsep(&rest, ",");
            out->rows[out->n_rows][c] = strtod(word, NULL); /* an empty one: 0 */
        }
        out->n_rows++;
    }
    fclose(f);
    free(path);
}

/* The row that begins with these numbers, or NULL. */
static const double *find_peer(const struct peers *p, const int *key, int n_key)
{
    for (int i = 0; i < p->n_rows; i++) {
        int n = 0;
        while (n < n_key && (int)p->rows[i][n] == key[n])
            n++;
        if (n == n_key)
            return p->rows[i];
    }
    return NULL;
}

/* The best pair of shrink and expand. */
static void peer_pair(struct line *l, int rows, int adapters, int rank, int out)
{
    static const char *const names[] = {"vLLM", "BGMV", "SGMV"}; /* columns 7, 8, 9 */
    const double *r = find_peer(&grid, (int[]){rows, adapters, rank, out}, 4);
    for (int c = 0; r != NULL && c < 3; c++)
        if (r[7 + c] > 0 && (l->peer_us <= 0 || r[7 + c] < l->peer_us)) {
            l->peer_us = r[7 + c];
            l->peer = names[c];
        }
}

/* ---- adapters ---------------------------------------------------------------------------- */

enum { PARTS_MAX = 3 };

/* For a rank: several in turn; or one that is large among small ones. */
enum { MIXED = 0, ONE_LARGE = -1 };
static const int mixed_ranks[] = {8, 16, 32, 64, 128};
enum {
    N_MIXED = sizeof mixed_ranks / sizeof mixed_ranks[0],
    LARGE_RANK = 256,
    SMALL_RANK = 16,
    ONE_LARGE_ROWS = 128,
};

static int rank_of(int rank, size_t adapter)
{
    return rank == MIXED       ? mixed_ranks[adapter % N_MIXED]
           : rank == ONE_LARGE ? (adapter == 0 ? LARGE_RANK : SMALL_RANK)
                               : rank;
}

static int rank_max_of(int rank)
{
    return rank == MIXED ? mixed_ranks[N_MIXED - 1] : rank == ONE_LARGE ? LARGE_RANK : rank;
}

/* n_sets adapter tables over one linear of n_parts, each of n_adapters of one rank or of mixed
 * ones. */
struct adapters {
    struct lora_step step;
    struct lora_seg *segs;
    struct lora_entry *entries; /* [n_sets, n_parts, n_adapters] */
    struct lora_part *parts;    /* [n_sets, n_parts] */
    struct lora_args *args;     /* [n_sets] */
    /* [n_told] the sets again and again, told to lora_look_up together, as a step does it with the
     * linears of a model's layers; or NULL */
    struct lora_linear *linears;
    int n_told;
    struct devptr d_entries, d_segs, d_n_segs;
    int n_sets;
    double set_bytes;  /* of A and B */
    size_t pool_bytes; /* of all sets */
};

/* The matrices lie in pool from `begin` on, set after set. n_sets 0: as many as rotate. */
static struct adapters make_adapters(const struct bench *b, struct devptr pool, size_t pool_bytes,
                                     size_t begin, int n_sets, int n_rows, int n_adapters, int rank,
                                     int d_in, const int *d_out, int n_parts)
{
    struct adapters a = {.n_sets = n_sets};
    size_t stride = 0, at[PARTS_MAX + 1];
    size_t rank_max = (size_t)rank_max_of(rank);
    for (int p = 0; p < n_parts; p++) {
        at[p] = stride;
        stride += aligned(rank_max * (size_t)d_in * 2) + aligned(rank_max * (size_t)d_out[p] * 2);
        for (int i = 0; i < n_adapters; i++)
            a.set_bytes += 2.0 * rank_of(rank, (size_t)i) * (d_in + d_out[p]);
    }
    size_t set_bytes = stride * (size_t)n_adapters;
    if (n_sets == 0)
        a.n_sets = b->shrink > 1 ? 2 : max_of(2, (int)ceil(ROTATE_BYTES / (double)set_bytes));
    a.pool_bytes = set_bytes * (size_t)a.n_sets;
    if (begin + a.pool_bytes > pool_bytes)
        die("the pool of %zu bytes is too small for %d sets of %zu", pool_bytes, a.n_sets,
            set_bytes);
    size_t n = (size_t)n_adapters, n_tables = (size_t)(a.n_sets * n_parts);
    a.entries = xcalloc(n_tables * n, sizeof *a.entries);
    a.d_entries = alloc_mem(b, n_tables * n * sizeof *a.entries);
    a.parts = xcalloc(n_tables, sizeof *a.parts);
    a.args = xcalloc((size_t)a.n_sets, sizeof *a.args);
    for (int s = 0; s < a.n_sets; s++) {
        struct lora_part *parts = &a.parts[s * n_parts];
        int out_begin = 0;
        for (int p = 0; p < n_parts; p++) {
            size_t table = (size_t)(s * n_parts + p) * n;
            for (size_t i = 0; i < n; i++) {
                struct devptr m = devptr_at(pool,
                                            begin + set_bytes * (size_t)s + stride * i + at[p]);
                a.entries[table + i] = (struct lora_entry){
                    .a = m,
                    .b = devptr_at(m, aligned(rank_max * (size_t)d_in * 2)),
                    .rank = rank_of(rank, i),
                    .scaling = 1,
                    .dtype = DTYPE_BF16};
            }
            parts[p] = (struct lora_part){&a.entries[table],
                                          devptr_at(a.d_entries, table * sizeof *a.entries),
                                          out_begin, d_out[p]};
            out_begin += d_out[p];
        }
    }
    a.segs = xcalloc(n, sizeof *a.segs);
    for (int i = 0; i < n_adapters; i++) {
        int first = (int)((int64_t)n_rows * i / n_adapters);
        int end = (int)((int64_t)n_rows * (i + 1) / n_adapters);
        /* Slots in another order than rows, as in a pool that has been in use; no number of
         * adapters here is a multiple of 7. */
        a.segs[i] = (struct lora_seg){first, end - first, i * 7 % n_adapters, 1};
    }
    int32_t n_segs = n_adapters;
    a.d_segs = put(b, a.segs, n * sizeof *a.segs);
    a.d_n_segs = put(b, &n_segs, sizeof n_segs);
    b->ops->upload(b->be, a.d_entries, a.entries, n_tables * n * sizeof *a.entries);
    sync_or_die(b);
    int ranks = 0;
    for (size_t i = 0; i < n; i++)
        ranks += rank_of(rank, i);
    bool heavy = lora_is_heavy(n_rows, n_adapters, ranks, rank_max_of(rank));
    a.step = (struct lora_step){.n_segs = n_adapters,
                                .segs = a.segs,
                                .d_segs = a.d_segs,
                                .d_n_segs = a.d_n_segs,
                                .heavy = b->heavy < 0 ? heavy : b->heavy};
    return a;
}

enum { TOLD_MIN = 32 };

/* The args point into a, so a must stand still. */
static void join_args(struct adapters *a, int n_parts, int d_in)
{
    a->n_told = (TOLD_MIN + a->n_sets - 1) / a->n_sets * a->n_sets;
    a->linears = xcalloc((size_t)a->n_told, sizeof *a->linears);
    for (int i = 0; i < a->n_told; i++)
        a->linears[i] = (struct lora_linear){&a->parts[i % a->n_sets * n_parts], n_parts, d_in};
    for (int s = 0; s < a->n_sets; s++)
        a->args[s] = (struct lora_args){
            .step = &a->step, .parts = &a->parts[s * n_parts], .n_parts = n_parts};
}

static void free_adapters(const struct bench *b, struct adapters *a)
{
    free_mem(b, (struct devptr[]){a->d_entries, a->d_segs, a->d_n_segs}, 3);
    free(a->entries);
    free(a->parts);
    free(a->args);
    free(a->linears);
    free(a->segs);
}

/* ---- sgmv: the pair alone ---------------------------------------------------------------- */

struct pair_call {
    const struct bench *b;
    struct devptr y, t, x;
    int n_rows, d_in, d_out;
    const struct adapters *a;
};

static void pair_run(void *context, int i)
{
    const struct pair_call *c = context;
    const struct lora_args *lora = &c->a->args[i % c->a->n_sets];
    c->b->ops->sgmv_shrink(c->b->be, c->t, c->x, c->n_rows, c->d_in, lora);
    c->b->ops->sgmv_expand(c->b->be, c->y, c->t, c->n_rows, c->d_out, lora);
}

static void bench_pair(const struct bench *b, struct devptr pool, size_t pool_bytes,
                       const struct pair_call *buffers, int n_rows, int n_adapters, int rank,
                       int d_out)
{
    struct pair_call c = *buffers;
    bool stays = n_adapters == 1 && rank == 16; /* in the L2 */
    struct adapters a = make_adapters(b, pool, pool_bytes, 0, stays ? 1 : 0, n_rows, n_adapters,
                                      rank, c.d_in, &d_out, 1);
    join_args(&a, 1, c.d_in);
    c.a = &a;
    c.n_rows = n_rows;
    c.d_out = d_out;
    struct timing t = measure(b, pair_run, &c, a.n_sets);
    struct line l = {.group = "sgmv",
                     .op = stays ? "pair (in L2)" : "pair",
                     .rows = n_rows,
                     .adapters = n_adapters,
                     .rank = rank,
                     .d_in = c.d_in,
                     .d_out = d_out,
                     .us = t.us,
                     .direct = t.direct,
                     .bytes = a.set_bytes,
                     .flop = 2.0 * n_rows * rank * (c.d_in + d_out)};
    peer_pair(&l, n_rows, n_adapters, rank, d_out * b->shrink);
    tell(b, &l);
    free_adapters(b, &a);
}

/* "a,b" names group? */
static bool is_in(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (const char *at = list; (at = strstr(at, name)) != NULL; at += n)
        if ((at == list || at[-1] == ',') && (at[n] == ',' || at[n] == '\0'))
            return true;
    return false;
}

static bool is_wanted(const struct bench *b, int rows)
{
    char n[16];
    snprintf(n, sizeof n, "%d", rows);
    return b->rows == NULL || is_in(b->rows, n);
}

static void bench_sgmv(const struct bench *b)
{
    static const int rows[] = {1, 8, 32, 64, 128, 256, 2048, 8192};
    static const int ranks[] = {16, 64}, outs[] = {4096, 6144, 14336};
    size_t pool_bytes = (size_t)2 * 256 * 64 * (size_t)(K + FFN) * 2 / (size_t)b->shrink +
                        ((size_t)1 << 20);
    if (pool_bytes < ROTATE_BYTES * 1.1 && b->shrink == 1)
        die("the pool doesn't rotate");
    struct devptr pool = noise_mem(b, pool_bytes);
    int d_in = K / b->shrink, max_rows = b->shrink > 1 ? 64 : MAX_ROWS;
    struct pair_call c = {.b = b, .d_in = d_in};
    c.x = activations(b, (size_t)max_rows * (size_t)d_in, 1);
    c.y = activations(b, (size_t)max_rows * (size_t)(FFN / b->shrink), 1);
    c.t = alloc_mem(b, (size_t)max_rows * 64 * sizeof(float));
    for (int r = 0; r < 8 && rows[r] <= max_rows; r++)
        for (int k = 0; k < 2 && is_wanted(b, rows[r]); k++)
            for (int o = 0; o < 3; o++) {
                int adapters[] = {1, 8, 32, rows[r] <= 256 ? rows[r] : 32};
                for (int a = 0; a < 4; a++)
                    if (adapters[a] <= rows[r] && (a < 3 || (rows[r] > 32 && rows[r] <= 256)))
                        bench_pair(b, pool, pool_bytes, &c, rows[r], adapters[a], ranks[k],
                                   outs[o] / b->shrink);
            }
    free_mem(b, (struct devptr[]){pool, c.x, c.y, c.t}, 4);
}

/* ---- base products, alone and with adapters ---------------------------------------------- */

struct linear_call {
    const struct bench *b;
    struct weight *w[16];
    int n_w;
    struct devptr y, x;
    int n_rows;
    bool y_f32;
    const struct adapters *a; /* or NULL */
};

static void linear_run(void *context, int i)
{
    const struct linear_call *c = context;
    const struct adapters *a = c->a;
    struct lora_args lora = {0};
    if (a != NULL) {
        if (i % a->n_told == 0)
            c->b->ops->lora_look_up(c->b->be, &a->step, a->linears, a->n_told);
        lora = a->args[i % a->n_sets];
        lora.place = i % a->n_told + 1;
    }
    c->b->ops->linear(c->b->be, c->y, c->x, c->w[i % c->n_w], (struct devptr){0}, c->n_rows,
                      c->y_f32, a != NULL ? &lora : NULL);
}

static struct weight *make_weight(const struct bench *b, int d_in, const int *d_out, int n_parts)
{
    const void *parts[PARTS_MAX];
    size_t at = 0;
    struct weight *w;
    struct err err = {0};
    for (int p = 0; p < n_parts; p++) {
        parts[p] = b->noise + at;
        at += (size_t)d_in * (size_t)d_out[p];
    }
    if (at > b->n_noise)
        die("a weight of %zu numbers", at);
    if (b->ops->weight_create(b->be, &w, parts, d_out, n_parts, d_in, DTYPE_BF16, &err) != 0)
        die("%s", err.message);
    return w;
}

static void open_linear(const struct bench *b, struct linear_call *c, int d_in, int d_out,
                        int max_rows, bool y_f32)
{
    double bytes = 2.0 * d_in * d_out;
    *c = (struct linear_call){.b = b, .y_f32 = y_f32};
    c->n_w = b->shrink > 1 ? 2 : (int)ceil(ROTATE_BYTES / bytes);
    for (int i = 0; i < c->n_w; i++)
        c->w[i] = make_weight(b, d_in, &d_out, 1);
    c->x = activations(b, (size_t)max_rows * (size_t)d_in, 1);
    c->y = alloc_mem(b, (size_t)max_rows * (size_t)d_out * (y_f32 ? sizeof(float) : b->word));
}

static void close_linear(const struct bench *b, struct linear_call *c)
{
    for (int i = 0; i < c->n_w; i++)
        b->ops->weight_free(b->be, c->w[i]);
    free_mem(b, (struct devptr[]){c->x, c->y}, 2);
}

static const int product_rows[] = {1, 8, 32, 64, 128, 256, 2048, 8192};

static void bench_linear(const struct bench *b)
{
    static const struct {
        const char *name;
        int d_in, d_out;
    } shapes[] = {{"o", K, K},      {"qkv", K, 6144},
                  {"up", K, FFN},   {"gate_up", K, 2 * FFN},
                  {"down", FFN, K}, {"lm_head f32", K, VOCAB}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        int d_in = shapes[s].d_in / b->shrink, d_out = shapes[s].d_out / b->shrink;
        bool lm_head = shapes[s].d_out == VOCAB;
        int max_rows = b->shrink > 1 ? 64 : lm_head ? 256 : MAX_ROWS;
        struct linear_call c;
        open_linear(b, &c, d_in, d_out, max_rows, lm_head);
        for (int r = 0; r < 8 && product_rows[r] <= max_rows; r++) {
            if (!is_wanted(b, product_rows[r]))
                continue;
            c.n_rows = product_rows[r];
            struct timing t = measure(b, linear_run, &c, c.n_w);
            struct line l = {.group = "linear",
                             .op = shapes[s].name,
                             .rows = c.n_rows,
                             .d_in = d_in,
                             .d_out = d_out,
                             .us = t.us,
                             .direct = t.direct,
                             .bytes = 2.0 * d_in * d_out,
                             .flop = 2.0 * c.n_rows * d_in * d_out};
            const double *peer = find_peer(&grid, (int[]){c.n_rows, 1, 16, shapes[s].d_out}, 4);
            if (peer != NULL && shapes[s].d_in == K) {
                l.peer_us = peer[4];
                l.peer = "base";
            }
            tell(b, &l);
        }
        close_linear(b, &c);
    }
}

static void bench_lora_rows(const struct bench *b, struct linear_call *c, struct devptr pool,
                            size_t pool_bytes, int d_in, int d_out, int n_adapters, int rank,
                            double base_us)
{
    bool stays = n_adapters == 1 && rank == 16;
    struct adapters a = make_adapters(b, pool, pool_bytes, 0, stays ? 1 : 0, c->n_rows, n_adapters,
                                      rank, d_in, &d_out, 1);
    join_args(&a, 1, d_in);
    c->a = &a;
    /* weights and adapters turn at different paces; all of both are visited */
    struct timing t = measure(b, linear_run, c, a.n_sets > c->n_w ? a.n_sets : c->n_w);
    c->a = NULL;
    struct line l = {.group = "lora",
                     .op = n_adapters == 1 ? "product + one" : "product + many",
                     .rows = c->n_rows,
                     .adapters = n_adapters,
                     .rank = rank,
                     .d_in = d_in,
                     .d_out = d_out,
                     .us = t.us,
                     .added_us = t.us - base_us,
                     .direct = t.direct,
                     .bytes = 2.0 * d_in * d_out + a.set_bytes,
                     .flop = 2.0 * c->n_rows * ((double)d_in * d_out + rank * (d_in + d_out))};
    peer_pair(&l, c->n_rows, n_adapters, rank, d_out * b->shrink);
    tell(b, &l);
    free_adapters(b, &a);
}

static void bench_lora(const struct bench *b)
{
    static const int outs[] = {4096, 6144, 14336}, ranks[] = {16, 64};
    size_t pool_bytes = (size_t)2 * 256 * 64 * (size_t)(K + FFN) * 2 / (size_t)b->shrink +
                        ((size_t)1 << 20);
    struct devptr pool = noise_mem(b, pool_bytes);
    int max_rows = b->shrink > 1 ? 64 : MAX_ROWS, d_in = K / b->shrink;
    for (int o = 0; o < 3; o++) {
        struct linear_call c;
        int d_out = outs[o] / b->shrink;
        open_linear(b, &c, d_in, d_out, max_rows, false);
        for (int r = 0; r < 8 && product_rows[r] <= max_rows; r++) {
            if (!is_wanted(b, product_rows[r]))
                continue;
            int rows = c.n_rows = product_rows[r];
            double base = measure(b, linear_run, &c, c.n_w).us;
            for (int k = 0; k < 2; k++) {
                bench_lora_rows(b, &c, pool, pool_bytes, d_in, d_out, 1, ranks[k], base);
                if (rows > 32)
                    bench_lora_rows(b, &c, pool, pool_bytes, d_in, d_out, 8, ranks[k], base);
                if (rows > 1)
                    bench_lora_rows(b, &c, pool, pool_bytes, d_in, d_out, rows > 256 ? 32 : rows,
                                    ranks[k], base);
            }
        }
        close_linear(b, &c);
    }
    b->ops->mem_free(b->be, pool);
}

/* ---- layer: four products ---------------------------------------------------------------- */

enum { PRODUCTS = 4 };

struct layer_call {
    const struct bench *b;
    struct weight *w[PRODUCTS];
    struct devptr x[PRODUCTS], y; /* x[down] is as wide as the FFN */
    int n_rows;
    const struct adapters *a; /* [PRODUCTS] or NULL */
};

/* Of a model of TOLD_MIN layers, whose adapters are looked up once. */
static void layer_run(void *context, int i)
{
    const struct layer_call *c = context;
    int layer = i % TOLD_MIN; /* 436 MB of weights lie between two uses of anything */
    if (c->a != NULL && layer == 0) {
        struct lora_linear told[TOLD_MIN * PRODUCTS];
        for (int k = 0; k < TOLD_MIN * PRODUCTS; k++)
            told[k] = c->a[k % PRODUCTS].linears[0];
        c->b->ops->lora_look_up(c->b->be, &c->a->step, told, TOLD_MIN * PRODUCTS);
    }
    for (int p = 0; p < PRODUCTS; p++) {
        struct lora_args lora = {0};
        if (c->a != NULL) {
            lora = c->a[p].args[0];
            lora.step = &c->a->step;
            lora.place = layer * PRODUCTS + p + 1;
        }
        c->b->ops->linear(c->b->be, c->y, c->x[p], c->w[p], (struct devptr){0}, c->n_rows, false,
                          c->a != NULL ? &lora : NULL);
    }
}

static void bench_layer(const struct bench *b)
{
    static const struct {
        int d_in, n_parts, d_out[PARTS_MAX];
    } products[PRODUCTS] = {{K, 3, {HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM}},
                            {K, 1, {K}},
                            {K, 2, {FFN, FFN}},
                            {FFN, 1, {K}}};
    static const int ranks[] = {16, 64, MIXED, ONE_LARGE};
    int max_rows = b->shrink > 1 ? 64 : MAX_ROWS, d_in[PRODUCTS], d_out[PRODUCTS][PARTS_MAX];
    struct layer_call c = {.b = b};
    double bytes = 0;
    size_t adapter_width = 0;
    for (int p = 0; p < PRODUCTS; p++) {
        d_in[p] = products[p].d_in / b->shrink;
        for (int i = 0; i < products[p].n_parts; i++) {
            d_out[p][i] = products[p].d_out[i] / b->shrink;
            bytes += 2.0 * d_in[p] * d_out[p][i];
            adapter_width += (size_t)(d_in[p] + d_out[p][i]);
        }
        c.w[p] = make_weight(b, d_in[p], d_out[p], products[p].n_parts);
        c.x[p] = activations(b, (size_t)max_rows * (size_t)d_in[p], 1);
    }
    c.y = alloc_mem(b, (size_t)max_rows * (size_t)(2 * FFN / b->shrink) * b->word);
    /* Each has room for the largest rank of its row: at most ONE_LARGE_ROWS of LARGE_RANK, and of
     * the mixed ones, half as large, twice as many. */
    size_t pool_bytes = (size_t)(b->shrink > 1 ? 64 : ONE_LARGE_ROWS) * LARGE_RANK * 2 *
                            adapter_width +
                        ((size_t)4 << 20);
    struct devptr pool = noise_mem(b, pool_bytes);
    for (int r = 0; r < 8 && product_rows[r] <= max_rows; r++) {
        if (!is_wanted(b, product_rows[r]))
            continue;
        int rows = c.n_rows = product_rows[r];
        struct timing base = measure(b, layer_run, &c, TOLD_MIN);
        struct line l = {.group = "layer",
                         .op = "four products",
                         .rows = rows,
                         .us = base.us,
                         .direct = base.direct,
                         .bytes = bytes,
                         .flop = bytes * rows,
                         .peer = "base"};
        const double *peer = find_peer(&layers, (int[]){rows, 1, 16}, 3);
        l.peer_us = peer != NULL ? peer[3] : 0;
        tell(b, &l);
        int counts[] = {1, 8, 32, rows <= 256 ? rows : 32};
        for (int k = 0; k < 4; k++)
            for (int n = 0; n < 4; n++) {
                if (counts[n] > rows || (n == 3 && (rows <= 32 || rows > 256)) ||
                    (ranks[k] <= 0 && (counts[n] != rows || rows == 1)) ||
                    (ranks[k] == ONE_LARGE && rows > ONE_LARGE_ROWS))
                    continue;
                struct adapters a[PRODUCTS];
                size_t begin = 0;
                double set_bytes = 0;
                for (int p = 0; p < PRODUCTS; p++) {
                    a[p] = make_adapters(b, pool, pool_bytes, begin, 1, rows, counts[n], ranks[k],
                                         d_in[p], d_out[p], products[p].n_parts);
                    join_args(&a[p], products[p].n_parts, d_in[p]);
                    begin += a[p].pool_bytes;
                    set_bytes += a[p].set_bytes;
                }
                c.a = a;
                struct timing t = measure(b, layer_run, &c, TOLD_MIN);
                c.a = NULL;
                struct line with = {.group = "layer",
                                    .op = ranks[k] == MIXED       ? "four of ranks 8 to 128"
                                          : ranks[k] == ONE_LARGE ? "four of 16 and one 256"
                                                                  : "four with adapters",
                                    .rows = rows,
                                    .adapters = counts[n],
                                    .rank = rank_max_of(ranks[k]),
                                    .us = t.us,
                                    .direct = t.direct,
                                    .bytes = bytes + set_bytes,
                                    .flop = (bytes + set_bytes / counts[n]) * rows,
                                    .peer = "vLLM"};
                peer = find_peer(&layers, (int[]){rows, counts[n], ranks[k]}, 3);
                with.peer_us = peer != NULL ? peer[4] : 0;
                tell(b, &with);
                for (int p = 0; p < PRODUCTS; p++)
                    free_adapters(b, &a[p]);
            }
    }
    for (int p = 0; p < PRODUCTS; p++) {
        b->ops->weight_free(b->be, c.w[p]);
        b->ops->mem_free(b->be, c.x[p]);
    }
    free_mem(b, (struct devptr[]){pool, c.y}, 2);
}

/* ---- attention --------------------------------------------------------------------------- */

enum { LAYERS_MAX = 256 };

/* n_seqs sequences of `context` tokens, the last n_new of each in this step, and KV caches of
 * several layers that rotate. */
struct sequences {
    struct batch batch;
    struct kv_layer kv[LAYERS_MAX];
    int n_layers;
    struct attention_shape shape;
    int32_t *indptr, *kv_len, *position, *row_seq, *slot, *table, *token;
    struct devptr k, v;
};

static void open_sequences(const struct bench *b, struct sequences *q, int n_seqs, int context,
                           int n_new)
{
    int max_blocks = (context + BLOCK_TOKENS - 1) / BLOCK_TOKENS, n_rows = n_seqs * n_new;
    int n_blocks = n_seqs * max_blocks;
    *q = (struct sequences){
        .shape = {HEADS, KV_HEADS, HEAD_DIM, 1.0f / sqrtf((float)HEAD_DIM), 0, 0}};
    q->indptr = xcalloc((size_t)n_seqs + 1, sizeof(int32_t));
    q->kv_len = xcalloc((size_t)n_seqs, sizeof(int32_t));
    q->table = xcalloc((size_t)n_blocks, sizeof(int32_t));
    q->position = xcalloc((size_t)n_rows, sizeof(int32_t));
    q->row_seq = xcalloc((size_t)n_rows, sizeof(int32_t));
    q->slot = xcalloc((size_t)n_rows, sizeof(int32_t));
    q->token = xcalloc((size_t)n_rows, sizeof(int32_t));
    for (int i = 0; i < n_blocks; i++)
        q->table[i] = i;
    uint64_t random = 7;
    for (int i = n_blocks - 1; i > 0; i--) { /* blocks lie anywhere */
        random = random * 6364136223846793005u + 1442695040888963407u;
        int j = (int)((random >> 33) % (uint64_t)(i + 1));
        int32_t swap = q->table[i];
        q->table[i] = q->table[j];
        q->table[j] = swap;
    }
    for (int s = 0; s < n_seqs; s++) {
        q->indptr[s + 1] = (s + 1) * n_new;
        q->kv_len[s] = context;
        for (int i = 0; i < n_new; i++) {
            int row = s * n_new + i, position = context - n_new + i;
            q->position[row] = position;
            q->row_seq[row] = s;
            q->slot[row] = q->table[s * max_blocks + position / BLOCK_TOKENS] * BLOCK_TOKENS +
                           position % BLOCK_TOKENS;
            q->token[row] = (int32_t)((row * 7919 + 13) % (VOCAB / b->shrink));
        }
    }
    q->batch = (struct batch){.n_rows = n_rows,
                              .n_seqs = n_seqs,
                              .max_blocks = max_blocks,
                              .seq_indptr = q->indptr,
                              .kv_len = q->kv_len,
                              .position = q->position};
    const struct {
        struct devptr *out;
        const int32_t *from;
        int n;
    } uploads[] = {
        {&q->batch.d_seq_indptr, q->indptr, n_seqs + 1}, {&q->batch.d_kv_len, q->kv_len, n_seqs},
        {&q->batch.d_position, q->position, n_rows},     {&q->batch.d_token, q->token, n_rows},
        {&q->batch.d_row_seq, q->row_seq, n_rows},       {&q->batch.d_slot, q->slot, n_rows},
        {&q->batch.d_block_table, q->table, n_blocks}};
    for (size_t i = 0; i < sizeof uploads / sizeof *uploads; i++)
        *uploads[i].out = put(b, uploads[i].from, (size_t)uploads[i].n * sizeof(int32_t));
    size_t layer = (size_t)n_blocks * BLOCK_TOKENS * KV_HEADS * HEAD_DIM * b->word;
    q->n_layers = b->shrink > 1 ? 1 : (int)ceil(ROTATE_BYTES / (2.0 * (double)layer));
    q->n_layers = q->n_layers > LAYERS_MAX ? LAYERS_MAX : q->n_layers;
    q->k = noise_mem(b, layer * (size_t)q->n_layers);
    q->v = noise_mem(b, layer * (size_t)q->n_layers);
    for (int i = 0; i < q->n_layers; i++)
        q->kv[i] = (struct kv_layer){devptr_at(q->k, layer * (size_t)i),
                                     devptr_at(q->v, layer * (size_t)i), b->caps.activation};
}

static void close_sequences(const struct bench *b, struct sequences *q)
{
    struct batch *t = &q->batch;
    free_mem(b,
             (struct devptr[]){q->k, q->v, t->d_seq_indptr, t->d_kv_len, t->d_position, t->d_token,
                               t->d_row_seq, t->d_slot, t->d_block_table},
             9);
    free(q->indptr);
    free(q->kv_len);
    free(q->position);
    free(q->row_seq);
    free(q->slot);
    free(q->token);
    free(q->table);
}

struct attention_call {
    const struct bench *b;
    const struct sequences *q;
    struct devptr y, qkv;
    const struct rope_shape *rope;
};

static void attention_run(void *context, int i)
{
    const struct attention_call *c = context;
    const struct sequences *q = c->q;
    c->b->ops->attention(c->b->be, c->y, c->qkv, &q->kv[i % q->n_layers], &q->batch, &q->shape);
}

static void rope_run(void *context, int i)
{
    const struct attention_call *c = context;
    const struct sequences *q = c->q;
    c->b->ops->rope_kv_write(c->b->be, c->qkv, &q->kv[i % q->n_layers], &q->batch, &q->shape,
                             c->rope);
}

static struct devptr qkv_mem(const struct bench *b, int n_rows)
{
    return activations(b, (size_t)n_rows * (HEADS + 2 * KV_HEADS) * HEAD_DIM, 1);
}

static void bench_attention_rows(const struct bench *b, const char *op, int n_seqs, int context,
                                 int n_new)
{
    struct sequences q;
    open_sequences(b, &q, n_seqs, context, n_new);
    struct attention_call c = {.b = b, .q = &q, .qkv = qkv_mem(b, q.batch.n_rows)};
    c.y = alloc_mem(b, (size_t)q.batch.n_rows * HEADS * HEAD_DIM * b->word);
    struct timing t = measure(b, attention_run, &c, q.n_layers);
    double keys = 0; /* seen by all rows: n S - n^2 / 2, about */
    for (int i = 0; i < q.batch.n_rows; i++)
        keys += q.position[i] + 1;
    struct line l = {.group = "attention",
                     .op = op,
                     .rows = q.batch.n_rows,
                     .d_in = context,
                     .us = t.us,
                     .direct = t.direct,
                     .bytes = 2.0 * n_seqs * context * KV_HEADS * HEAD_DIM * (double)b->word,
                     .flop = 4.0 * keys * HEADS * HEAD_DIM};
    tell(b, &l);
    free_mem(b, (struct devptr[]){c.y, c.qkv}, 2);
    close_sequences(b, &q);
}

static void bench_attention(const struct bench *b)
{
    int s = b->shrink;
    bench_attention_rows(b, "decode batch 1", 1, 192, 1);
    bench_attention_rows(b, "decode batch 8", 8, 192, 1);
    bench_attention_rows(b, "decode batch 64", 64, 192, 1);
    bench_attention_rows(b, "decode batch 1", 1, 8192 / s, 1);
    bench_attention_rows(b, "decode batch 8", 8, 4096 / s, 1);
    bench_attention_rows(b, "decode batch 32", 32, 4096 / s, 1);
    bench_attention_rows(b, "prefill 1 x 2048", 1, 2048 / s, 2048 / s);
    bench_attention_rows(b, "prefill 1 x 8192", 1, 8192 / s, 8192 / s);
    bench_attention_rows(b, "prefill last 2048", 1, 8192 / s, 2048 / s);
    bench_attention_rows(b, "prefill 16 x 128", 16, 128, 128);
}

/* ---- small ------------------------------------------------------------------------------- */

struct small_call {
    const struct bench *b;
    struct devptr x, y, residual, f32, rows, scratch, tokens;
    struct weight *w[16];
    int n_w, n_rows, d;
    const struct sample_params *params;
    struct sample_result *results;
};

static void norm_run(void *context, int i)
{
    const struct small_call *c = context;
    (void)i;
    c->b->ops->add_rmsnorm(c->b->be, c->y, c->residual, c->x, c->f32, c->n_rows, c->d, 1e-5f, 0);
}

static void swiglu_run(void *context, int i)
{
    const struct small_call *c = context;
    (void)i;
    c->b->ops->swiglu(c->b->be, c->y, c->x, c->n_rows, c->d);
}

static void linear_swiglu_run(void *context, int i)
{
    const struct small_call *c = context;
    c->b->ops->linear_swiglu(c->b->be, c->y, c->scratch, c->x, c->w[i % c->n_w], (struct devptr){0},
                             c->n_rows, NULL);
}

static void embed_run(void *context, int i)
{
    const struct small_call *c = context;
    (void)i;
    c->b->ops->embed(c->b->be, c->y, c->rows, c->w[0], c->n_rows, 1);
}

static void gather_run(void *context, int i)
{
    const struct small_call *c = context;
    (void)i;
    c->b->ops->gather_rows(c->b->be, c->y, c->x, c->rows, c->n_rows, c->d);
}

static void sample_run(void *context, int i)
{
    const struct small_call *c = context;
    (void)i;
    c->b->ops->sample(c->b->be, c->results, c->tokens, c->f32, c->n_rows, c->d, c->params, NULL);
}

static void tell_small(const struct bench *b, const char *op, const struct small_call *c,
                       call_fn *fn, int n_rotate, double bytes, double flop)
{
    struct timing t = measure(b, fn, (void *)(uintptr_t)c, n_rotate);
    struct line l = {.group = "small",
                     .op = op,
                     .rows = c->n_rows,
                     .d_in = c->d,
                     .us = t.us,
                     .direct = t.direct,
                     .bytes = bytes,
                     .flop = flop};
    tell(b, &l);
}

static void bench_elementwise(const struct bench *b)
{
    static const int rows[] = {1, 8, 64, 256, 2048};
    int d = K / b->shrink, ffn = FFN / b->shrink, vocab = VOCAB / b->shrink;
    int n = b->shrink > 1 ? 3 : 5, max_rows = rows[n - 1];
    int32_t *ids = xcalloc((size_t)max_rows, sizeof *ids);
    float *norm = xcalloc((size_t)d, sizeof *norm);
    for (int i = 0; i < max_rows; i++)
        ids[i] = (i * 37) % max_rows;
    for (int i = 0; i < d; i++)
        norm[i] = 1;
    struct small_call c = {.b = b, .f32 = put(b, norm, (size_t)d * sizeof *norm)};
    c.rows = put(b, ids, (size_t)max_rows * sizeof *ids);
    c.residual = activations(b, (size_t)max_rows * (size_t)d, 1);
    c.x = activations(b, (size_t)max_rows * (size_t)(2 * ffn), 0.01f);
    c.y = alloc_mem(b, (size_t)max_rows * (size_t)ffn * b->word);
    c.scratch = alloc_mem(b, (size_t)max_rows * (size_t)(2 * ffn) * b->word);
    c.w[0] = make_weight(b, d, (int[]){vocab}, 1);
    for (int i = 0; i < n; i++) {
        double word = (double)b->word;
        c.n_rows = rows[i];
        c.d = d;
        tell_small(b, "add_rmsnorm", &c, norm_run, 1, 4 * word * rows[i] * d, 0);
        tell_small(b, "gather_rows", &c, gather_run, 1, 2 * word * rows[i] * d, 0);
        tell_small(b, "embed", &c, embed_run, 1, 2 * word * rows[i] * d, 0);
        c.d = ffn;
        tell_small(b, "swiglu", &c, swiglu_run, 1, 3 * word * rows[i] * ffn, 0);
    }
    b->ops->weight_free(b->be, c.w[0]);
    c.n_w = 1; /* 235 MB */
    c.w[0] = make_weight(b, d, (int[]){ffn, ffn}, 2);
    c.d = d;
    static const int product[] = {1, 8, 32, 64, 128, 256, 2048};
    for (int i = 0; i < 7 && product[i] <= max_rows; i++) {
        c.n_rows = product[i];
        tell_small(b, "linear_swiglu", &c, linear_swiglu_run, 1, 4.0 * d * ffn,
                   4.0 * product[i] * d * ffn);
    }
    b->ops->weight_free(b->be, c.w[0]);
    free_mem(b, (struct devptr[]){c.f32, c.rows, c.residual, c.x, c.y, c.scratch}, 6);
    free(ids);
    free(norm);
}

static void bench_rope(const struct bench *b)
{
    static const struct {
        int n_seqs, context, n_new;
    } cases[] = {{1, 192, 1}, {8, 192, 1}, {64, 192, 1}, {256, 192, 1}, {16, 128, 128}};
    int context = MAX_CONTEXT / b->shrink;
    size_t n = (size_t)context * HEAD_DIM;
    float *table = xcalloc(n, sizeof *table);
    for (size_t i = 0; i < n; i++)
        table[i] = 0.7071f;
    struct rope_shape rope = {.rotary_dim = HEAD_DIM, .cos_sin = put(b, table, n * sizeof *table)};
    free(table);
    for (size_t i = 0; i < sizeof cases / sizeof *cases - (b->shrink > 1 ? 2 : 0); i++) {
        struct sequences q;
        open_sequences(b, &q, cases[i].n_seqs, cases[i].context, cases[i].n_new);
        struct attention_call c = {
            .b = b, .q = &q, .qkv = qkv_mem(b, q.batch.n_rows), .rope = &rope};
        struct timing t = measure(b, rope_run, &c, q.n_layers);
        struct line l = {.group = "small",
                         .op = "rope_kv_write",
                         .rows = q.batch.n_rows,
                         .d_in = cases[i].context,
                         .us = t.us,
                         .direct = t.direct,
                         .bytes = (double)q.batch.n_rows * (2 * HEADS + 5 * KV_HEADS) * HEAD_DIM *
                                  (double)b->word};
        tell(b, &l);
        b->ops->mem_free(b->be, c.qkv);
        close_sequences(b, &q);
    }
    b->ops->mem_free(b->be, rope.cos_sin);
}

static void bench_sample(const struct bench *b)
{
    static const struct {
        const char *op;
        struct sample_params params;
        int power; /* of the logits: 31 leaves some hundred likely tokens, 1 tens of thousands */
    } cases[] = {
        {"greedy", {.top_p = 1, .repetition_penalty = 1}, 31},
        {"t 0.8 top_p 0.95", {.temperature = 0.8f, .top_p = 0.95f, .repetition_penalty = 1}, 31},
        {"t 0.8 top_p 0.95 flat",
         {.temperature = 0.8f, .top_p = 0.95f, .repetition_penalty = 1},
         1},
        {"t 1 top_k 40", {.temperature = 1, .top_k = 40, .top_p = 1, .repetition_penalty = 1}, 31},
        {"greedy 20 logprobs", {.top_p = 1, .repetition_penalty = 1, .n_top = 20}, 31},
    };
    static const int rows[] = {1, 64, 256};
    int vocab = VOCAB / b->shrink, n_rows = b->shrink > 1 ? 2 : 3, max_rows = rows[n_rows - 1];
    size_t n = (size_t)max_rows * (size_t)vocab;
    float *logits = xcalloc(n, sizeof *logits);
    void *params = NULL, *results = NULL;
    struct err err = {0};
    if (b->ops->host_alloc(b->be, &params, (size_t)max_rows * sizeof(struct sample_params), &err) !=
            0 ||
        b->ops->host_alloc(b->be, &results, (size_t)max_rows * sizeof(struct sample_result),
                           &err) != 0)
        die("%s", err.message);
    struct small_call c = {.b = b, .d = vocab, .params = params, .results = results};
    c.f32 = alloc_mem(b, n * sizeof(float));
    c.tokens = alloc_mem(b, (size_t)max_rows * sizeof(int32_t));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        noise_fill(logits, DTYPE_F32, n, i, 0, 1, 0);
        for (size_t k = 0; k < n; k++)
            logits[k] = cases[i].power == 1 ? 8 * logits[k]
                                            : 30 * powf(logits[k], (float)cases[i].power);
        b->ops->upload(b->be, c.f32, logits, n * sizeof *logits);
        for (int r = 0; r < max_rows; r++) {
            struct sample_params p = cases[i].params;
            p.seed = (uint64_t)r;
            memcpy((char *)params + (size_t)r * sizeof p, &p, sizeof p);
        }
        sync_or_die(b);
        for (int r = 0; r < n_rows; r++) {
            c.n_rows = rows[r];
            tell_small(b, cases[i].op, &c, sample_run, 1, 4.0 * rows[r] * vocab, 0);
        }
    }
    free_mem(b, (struct devptr[]){c.f32, c.tokens}, 2);
    b->ops->host_free(b->be, params);
    b->ops->host_free(b->be, results);
    free(logits);
}

static void bench_small(const struct bench *b)
{
    bench_elementwise(b);
    bench_rope(b);
    bench_sample(b);
}

/* ---- main -------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*run)(const struct bench *b);
} groups[] = {{"sgmv", bench_sgmv},   {"linear", bench_linear},       {"lora", bench_lora},
              {"layer", bench_layer}, {"attention", bench_attention}, {"small", bench_small}};
enum { GROUPS = sizeof groups / sizeof *groups };

static const char *option(int argc, char **argv, const char *name, const char *otherwise)
{
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return argv[i + 1];
    return otherwise;
}

int main(int argc, char **argv)
{
    static const char *const known[] = {"--backend", "--only", "--csv",    "--peers", "--commit",
                                        "--read",    "--math", "--shrink", "--rows",  "--heavy"};
    for (int i = 1; i < argc; i += 2) {
        bool is_known = false;
        for (size_t k = 0; k < sizeof known / sizeof *known; k++)
            is_known |= i + 1 < argc && strcmp(argv[i], known[k]) == 0;
        if (!is_known)
            die("what is %s? See the head of tests/bench/bench_cuda.c", argv[i]);
    }
    struct err err = {0};
    const char *only = option(argc, argv, "--only", NULL), *csv = option(argc, argv, "--csv", NULL);
    struct bench b = {.ops = ops_find(option(argc, argv, "--backend", "cuda"), &err),
                      .peers = option(argc, argv, "--peers", "tests/bench"),
                      .rows = option(argc, argv, "--rows", NULL),
                      .read = atof(option(argc, argv, "--read", "3100")) * 1e9,
                      .math = atof(option(argc, argv, "--math", "800")) * 1e12,
                      .shrink = atoi(option(argc, argv, "--shrink", "1")),
                      .heavy = atoi(option(argc, argv, "--heavy", "-1"))};
    if (b.shrink < 1 || b.shrink > 64 || b.read <= 0 || b.math <= 0)
        die("--read, --math or --shrink is out of range");
    int rows = b.shrink > 1 ? 2048 : MAX_ROWS;
    struct backend_options options = {.max_rows = rows,
                                      .max_d = 2 * FFN / b.shrink,
                                      .max_rank = 512,
                                      .max_seqs = MAX_SEQS,
                                      .max_context = MAX_CONTEXT};
    if (b.ops == NULL || b.ops->open(&b.be, &options, &err) != 0)
        die("%s", err.message);
    b.ops->caps(b.be, &b.caps);
    b.word = dtype_bytes(b.caps.activation);
    if (b.shrink == 1) {
        read_peers(&grid, b.peers, "peers-h100.csv");
        read_peers(&layers, b.peers, "peers-h100-layer.csv");
    }
    b.n_noise = (size_t)VOCAB * K / (size_t)b.shrink / (size_t)b.shrink;
    b.noise = noise_alloc(b.n_noise * sizeof *b.noise);
    if (b.noise == NULL || (csv != NULL && (b.csv = fopen(csv, "w")) == NULL))
        die("no memory, or %s can't be written", csv != NULL ? csv : "");
    noise_fill(b.noise, DTYPE_BF16, b.n_noise, 1, 0, 0.03f, 0);
    tell_head(&b, option(argc, argv, "--commit", "unknown"));
    for (int g = 0; g < GROUPS; g++)
        if (only == NULL || is_in(only, groups[g].name))
            groups[g].run(&b);
    b.ops->close(b.be);
    free(b.noise);
    if (b.csv != NULL)
        fclose(b.csv);
    return 0;
}
