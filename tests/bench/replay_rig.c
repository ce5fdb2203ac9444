/* replay_rig: the model, the adapters and the engine of a measurement.
 *
 * Model and adapters are seeded random numbers (engine/noise.h). An adapter's content follows from
 * its class, its number in the class and the seed alone; all differ, and their digests with them.
 * Each thread makes whole adapters and hashes them, some 300 MB a second. */
#include "tests/bench/replay.h"

#include "engine/bench.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { THREADS_MAX = 64 };

static const char LETTERS[] = "qkvogud"; /* in the order of enum site_kind */

/* ---- classes ----------------------------------------------------------------------------- */

static int parse_class(struct adapter_class *c, const char *text, struct err *err)
{
    char targets[16] = "";
    int n_read = -1;
    *c = (struct adapter_class){0};
    if (sscanf(text, "%d:r%d:%15[a-z]%n", &c->n, &c->rank, targets, &n_read) != 3 ||
        text[n_read] != '\0' || c->n < 1 || c->n > 1 << 20 || c->rank < 1 || c->rank > 1024)
        return err_set(err, ERR_INVALID,
                       "adapters %s; must be like 100:r16:qkvo (number, rank, modules)", text);
    if (strcmp(targets, "all") == 0) {
        c->targets = (1u << SITE_KINDS) - 1;
        return 0;
    }
    for (const char *t = targets; *t != '\0'; t++) {
        const char *at = strchr(LETTERS, *t);
        if (at == NULL)
            return err_set(err, ERR_INVALID, "adapters %s: no module %c; there are %s, or all",
                           text, *t, LETTERS);
        c->targets |= 1u << (at - LETTERS);
    }
    return 0;
}

int rig_parse_classes(struct rig_spec *spec, const char *text, struct err *err)
{
    char *copy = xstrdup(text), *rest = NULL;
    int rc = 0;
    spec->n_classes = 0;
    for (char *word = strtok_r(copy, ",", &rest); rc == 0 && word != NULL;
         word = strtok_r(NULL, ",", &rest)) {
        if (spec->n_classes == CLASSES_MAX)
            rc = err_set(err, ERR_INVALID, "adapters %s: more than %d classes", text, CLASSES_MAX);
        else
            rc = parse_class(&spec->classes[spec->n_classes++], word, err);
    }
    free(copy);
    return rc;
}

void rig_divide(struct rig_spec *spec, double by)
{
    for (int c = 0; c < spec->n_classes; c++) {
        int n = (int)(spec->classes[c].n / by + 0.5);
        spec->classes[c].n = n > 0 ? n : 1;
    }
}

int rig_count(const struct rig_spec *spec)
{
    int n = 0;
    for (int c = 0; c < spec->n_classes; c++)
        n += spec->classes[c].n;
    return n;
}

static size_t align(size_t n)
{
    return (n + LORA_ALIGN_BYTES - 1) / LORA_ALIGN_BYTES * LORA_ALIGN_BYTES;
}

/* As lora.c lays one out. */
static size_t class_bytes(const struct model_config *m, const struct adapter_class *c)
{
    size_t n = 0, word = dtype_bytes(DTYPE_BF16);
    for (int kind = 0; kind < SITE_KINDS; kind++)
        if ((c->targets >> kind & 1u) != 0)
            n += align((size_t)model_site_d_in(m, (enum site_kind)kind) * (size_t)c->rank * word) +
                 align((size_t)model_site_d_out(m, (enum site_kind)kind) * (size_t)c->rank * word);
    return n * (size_t)m->n_layers;
}

static size_t class_true_bytes(const struct model_config *m, const struct adapter_class *c)
{
    size_t n = 0;
    for (int kind = 0; kind < SITE_KINDS; kind++)
        if ((c->targets >> kind & 1u) != 0)
            n += (size_t)(model_site_d_in(m, (enum site_kind)kind) +
                          model_site_d_out(m, (enum site_kind)kind));
    return n * (size_t)c->rank * dtype_bytes(DTYPE_BF16) * (size_t)m->n_layers;
}

size_t rig_bytes(const struct rig_spec *spec)
{
    size_t n = 0;
    for (int c = 0; c < spec->n_classes; c++)
        n += class_bytes(bench_shape(spec->shape), &spec->classes[c]) * (size_t)spec->classes[c].n;
    return n;
}

int rig_fold(const struct rig *rig, const struct rig_spec *larger, int index)
{
    int first = 0, first_here = 0;
    for (int c = 0; c < larger->n_classes; c++) {
        int n = larger->classes[c].n, n_here = rig->spec.classes[c].n;
        if (index < first + n)
            return first_here + (index - first) % n_here;
        first += n;
        first_here += n_here;
    }
    BUG("adapter %d of %d", index, first);
}

/* ---- adapters ---------------------------------------------------------------------------- */

static const struct adapter_class *class_of(const struct rig_spec *spec, int index, int *n_class,
                                            int *n_in_class)
{
    int c = 0;
    while (index >= spec->classes[c].n)
        index -= spec->classes[c++].n;
    *n_class = c;
    *n_in_class = index;
    return &spec->classes[c];
}

static struct lora_adapter *make_adapter(const struct rig *rig, int index)
{
    int n_class, number, n_sites = model_n_sites(&rig->config);
    const struct adapter_class *c = class_of(&rig->spec, index, &n_class, &number);
    int *ranks = xcalloc((size_t)n_sites, sizeof *ranks);
    for (int site = 0; site < n_sites; site++)
        ranks[site] = (c->targets >> site % SITE_KINDS & 1u) != 0 ? c->rank : 0;
    struct lora_adapter *a = lora_random_mixed(&rig->config, ranks, NULL, DTYPE_BF16,
                                               (rig->seed << 24) + ((uint64_t)n_class << 20) +
                                                   (uint64_t)number);
    free(ranks);
    BUG_IF(a->n_bytes != class_bytes(&rig->config, c));
    return a;
}

/* In units of one rank on all seven modules of a layer, so that adapters on different modules can
 * be added up: what a step reads and computes for it. */
static double rank_of(const struct model_config *m, const struct adapter_class *c)
{
    struct adapter_class one = {.n = 1, .rank = 1, .targets = (1u << SITE_KINDS) - 1};
    return (double)class_true_bytes(m, c) / (double)class_true_bytes(m, &one);
}

/* Several threads make adapters and give them to the engine, which moves them to where its device
 * copies from; so nothing lies there twice but what is at hand. The last class comes first: rows
 * list large ones last, and small ones then fill what those leave of the slabs of pinned memory. */
struct making {
    struct rig *rig;
    atomic_int next;
    atomic_bool failed;
    pthread_mutex_t lock;
    struct err err; /* the first failure */
};

static void *make_some(void *context)
{
    struct making *m = context;
    struct rig *rig = m->rig;
    for (int k;
         !atomic_load(&m->failed) && (k = atomic_fetch_add(&m->next, 1)) < rig->n_adapters;) {
        int n_class, number, i = rig->n_adapters - 1 - k;
        const struct adapter_class *c = class_of(&rig->spec, i, &n_class, &number);
        struct lora_adapter *a = make_adapter(rig, i);
        struct err err = {0};
        rig->digests[i] = a->content;
        rig->bytes[i] = class_true_bytes(&rig->config, c);
        rig->ranks[i] = rank_of(&rig->config, c);
        if (engine_adapter_add(rig->engine, a, &err) == 0)
            continue;
        pthread_mutex_lock(&m->lock);
        if (!atomic_exchange(&m->failed, true))
            m->err = err;
        pthread_mutex_unlock(&m->lock);
    }
    return NULL;
}

static int make_adapters(struct rig *rig, struct err *err)
{
    struct making m = {.rig = rig};
    pthread_t threads[THREADS_MAX];
    long n_threads = sysconf(_SC_NPROCESSORS_ONLN);
    int n_started = 0;
    pthread_mutex_init(&m.lock, NULL);
    while (n_started + 1 < n_threads && n_started + 1 < rig->n_adapters &&
           n_started < THREADS_MAX && pthread_create(&threads[n_started], NULL, make_some, &m) == 0)
        n_started++;
    make_some(&m);
    for (int i = 0; i < n_started; i++)
        pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&m.lock);
    if (!atomic_load(&m.failed))
        return 0;
    *err = m.err;
    return -1;
}

/* ---- opening ----------------------------------------------------------------------------- */

void rig_init(struct rig *rig, const char *backend, int n_threads, uint64_t seed)
{
    *rig = (struct rig){.backend = backend, .n_threads = n_threads, .seed = seed};
    pthread_mutex_init(&rig->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&rig->changed, &attr);
    pthread_condattr_destroy(&attr);
}

static void close_engine(struct rig *rig)
{
    engine_close(rig->engine);
    rig->engine = NULL;
    free(rig->digests);
    free(rig->bytes);
    free(rig->ranks);
    free(rig->stamp);
    rig->digests = NULL;
    rig->bytes = NULL;
    rig->ranks = NULL;
    rig->stamp = NULL;
    memset(rig->held, 0, sizeof rig->held);
    rig->n_stamp = rig->n_differ = 0;
    rig->device_bytes = 0;
}

void rig_release(struct rig *rig)
{
    close_engine(rig);
    pthread_cond_destroy(&rig->changed);
    pthread_mutex_destroy(&rig->lock);
}

static size_t pool_bytes_of(const struct rig_spec *spec, size_t all_bytes)
{
    size_t n = all_bytes + (all_bytes >> 6) + (1 << 20);
    int n_adapters = rig_count(spec);
    if (spec->pool_adapters > 0 && n_adapters > 0)
        n = all_bytes / (size_t)n_adapters * (size_t)spec->pool_adapters;
    else if (spec->pool_bytes > 0 && spec->pool_bytes < n)
        n = spec->pool_bytes;
    return n;
}

static double seconds_since(struct monotonic_us begin)
{
    return (double)clock_elapsed_us(begin, clock_monotonic_us()) * 1e-6;
}

static bool same_spec(const struct rig_spec *a, const struct rig_spec *b)
{
    bool same = strcmp(a->shape, b->shape) == 0 && a->n_classes == b->n_classes &&
                a->pool_bytes == b->pool_bytes && a->pool_adapters == b->pool_adapters &&
                a->kv_bytes == b->kv_bytes && a->max_seqs == b->max_seqs &&
                a->max_rows == b->max_rows && a->max_context == b->max_context;
    for (int c = 0; same && c < a->n_classes; c++)
        same = a->classes[c].n == b->classes[c].n && a->classes[c].rank == b->classes[c].rank &&
               a->classes[c].targets == b->classes[c].targets;
    return same;
}

int rig_open(struct rig *rig, const struct rig_spec *spec, struct err *err)
{
    struct model *model;
    if (rig->engine != NULL && same_spec(&rig->spec, spec))
        return 0;
    close_engine(rig);
    const struct model_config *config = bench_shape(spec->shape);
    if (config == NULL)
        return err_set(err, ERR_INVALID, "no shape %s", spec->shape);
    rig->spec = *spec;
    rig->config = *config;
    rig->n_adapters = rig_count(spec);
    rig->adapter_bytes = rig_bytes(spec);
    size_t n = (size_t)rig->n_adapters + 1, pool = pool_bytes_of(spec, rig->adapter_bytes);
    rig->digests = xcalloc(n, sizeof *rig->digests);
    rig->bytes = xcalloc(n, sizeof *rig->bytes);
    rig->ranks = xcalloc(n, sizeof *rig->ranks);
    rig->stamp = xcalloc(n, sizeof *rig->stamp);
    struct monotonic_us begin = clock_monotonic_us();
    if (model_random(&model, &rig->config, spec->shape, rig->seed, err) != 0)
        return -1;
    struct engine_options options = {
        .backend = rig->backend,
        .n_threads = rig->n_threads,
        .kv_bytes = spec->kv_bytes,
        .adapter_bytes = pool,
        .adapter_host_bytes = rig->adapter_bytes + 1,
        .max_seqs = spec->max_seqs,
        .max_rows = spec->max_rows,
        .max_context = spec->max_context,
        .on_events = run_on_events,
        .context = rig,
    };
    int rc = engine_open_model(&rig->engine, model, &options, err);
    rig->open_s = seconds_since(begin);
    begin = clock_monotonic_us();
    if (rc != 0 || make_adapters(rig, err) != 0)
        return -1;
    rig->make_s = seconds_since(begin);
    engine_set_step_hook(rig->engine, run_on_step, rig);
    fprintf(stderr,
            "replay: %s with %d adapters of %.1f MB in all, a pool of %.1f MB: open in %.1f s, "
            "adapters made in %.1f s\n",
            spec->shape, rig->n_adapters, (double)rig->adapter_bytes * 1e-6, (double)pool * 1e-6,
            rig->open_s, rig->make_s);
    return run_touch_all(rig, err);
}

size_t process_bytes(void)
{
    struct buf text = BUF_INIT;
    struct err err = {0};
    unsigned long kib = 0;
    if (file_read("/proc/self/status", 1 << 16, &text, &err) == 0) {
        const char *at = strstr(buf_cstr(&text), "VmRSS:");
        if (at != NULL)
            kib = strtoul(at + 6, NULL, 10);
    }
    buf_release(&text);
    return (size_t)kib << 10;
}
