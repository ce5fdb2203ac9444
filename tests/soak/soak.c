/* soak: adapters loaded, evicted, reloaded and names re-pointed under load, and every token
 * checked.
 *
 *     soak [--backend cuda] [--shape 1b] [--tokens 1000000] [--sabotage] ...      (--help: all)
 *
 * Churn. One engine with a random model, an adapter pool for a dozen adapters and a KV cache for
 * less than its sequences want. Names point at contents (random adapters of mixed ranks, on mixed
 * modules); while bursts of requests arrive, names are re-pointed, dropped and loaded again, in any
 * order and whoever is using them:
 *
 *     name      0   1   2   3  ...      a request under a name is one under the content that the
 *               |    \ /    x           name has then; under a name that has none it is refused
 *     content   7     3         ...
 *
 * Prompts are longer than a step has rows for, so they come in chunks, beside the decoding ones;
 * some requests are sampled (each with its seed), some are ensembles, some of the base model, some
 * are cancelled while they wait or run, some stop at some token. The popular names drift through
 * the table, so that the pool's cache is never right for long. Half of the prompts begin like an
 * earlier one, under another name or the same, which may have been re-pointed since: what the
 * prefix cache finds for them must be their own content's.
 *
 * Witness. Then a fresh engine, with all adapters resident and nothing else to do, gets every
 * sequence again, alone, with every token computed (no prefix cache):
 *
 *   taught        its prompt and its tokens as one prompt, scored: each token's log-probability
 * must have the same bits as in the churn (and the best others beside it, where asked for)
 *   regenerated   some of them (--regenerate PERCENT) by decoding: each token and each bit
 *
 * Teaching is one prefill for a sequence, and it is valid because prefill and decode agree bit for
 * bit (kernels/ops.h). --no-teaching regenerates everything instead.
 *
 * --shared gives adapters and the KV cache no sizes of their own, so that memory goes to and fro
 * between them under the same load.
 *
 * --sabotage exchanges two entries of the adapter table in the middle of the churn: a wrong
 * adapter, without any other sign of it. The check must then fail.
 *
 * Exit status: 0 all the same; 1 something differs; 2 it could not be run. */
#include "engine/bench.h"
#include "engine/internal.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PROMPT_MAX = 300,
    GENERATE_MAX = 300,
    CONTEXT = 640,
    ENSEMBLE_MAX = 4,
    STOPS_MAX = 1000,
    TOP = 4,         /* best others, for some */
    BURSTS = 64,     /* requests between two choices of how many are out at once */
    DRIFT = 32,      /* requests until the next name becomes popular */
    RENAME = 8,      /* requests between two changes of the table */
    ROUGH = 512,     /* requests of fair weather, then as many with penalties among them */
    AFTER_SWAP = 32, /* requests under the two that were exchanged */
    ALIKE = 48,      /* earlier requests whose prompts another may begin with */
    TOLD_MAX = 20,   /* differences told one by one */
    PROGRESS_US = 10000000,
};

struct options {
    const char *backend, *shape;
    uint64_t n_tokens, seed, seconds;
    int n_streams, n_names, n_contents, n_pool, n_rows, kv_tokens, regenerate, n_threads;
    bool teach, sabotage, preempt, shared;
};

struct name {
    int content;
    bool loaded;
};

/* A request, and what came of it. */
struct trial {
    int index, n_prompt, n_max, n_tokens;
    int cancel_at; /* tokens after which it is cancelled; -1: never */
    int n_adapters, contents[ENSEMBLE_MAX], names[ENSEMBLE_MAX];
    float weights[ENSEMBLE_MAX];
    struct engine_sampling sampling;
    bool has_stops;
    const struct trial *like; /* an earlier one whose prompt this begins with, or NULL */
    int32_t *tokens;          /* [n_prompt + n_max] */
    uint32_t *logprob;        /* [n_max] bits of it */
    uint32_t *tops;           /* [n_max] hash of the best others */
    uint64_t id;
    enum engine_finish finish;
    int n_finished;
    bool is_odd; /* an event came that should not have */
};

struct counts {
    uint64_t n_loads, n_drops, n_repointed, n_refused;
    int n_base, n_single, n_ensembles, n_sampled, n_cancelled, n_stopped;
};

struct soak {
    struct options options;
    struct model_config config;
    uint64_t random;
    struct lora_adapter **contents; /* [n_contents]; the witness gets them */
    struct content_digest *digests; /* [n_contents] */
    size_t *bytes;                  /* [n_contents] of each */
    int *ranks, *loads;             /* [n_contents] largest rank; names that have it loaded */
    size_t pool_bytes;
    struct name *names; /* [n_names] */
    int swapped[2];     /* names; -1: none */
    int32_t stops[STOPS_MAX];
    int n_stops;
    struct trial **trials; /* [n_trials] */
    int n_trials, max_trials;
    struct counts counts;
    struct engine *engine;
    struct monotonic_us told;

    pthread_mutex_t lock;
    pthread_cond_t finished;
    int n_out;         /* submitted and not finished */
    uint64_t n_tokens; /* generated */

    /* Of the witness: the trial at hand, and what it got wrong. */
    const struct trial *expected;
    int n_seen, n_wrong, first_wrong; /* first_wrong: position */
    uint32_t got, wanted;             /* there: bits, or tokens */
    int n_differ;                     /* trials */
    uint64_t n_wrong_tokens, n_taught, n_regenerated, n_taught_tokens, n_regenerated_tokens;
};

_Noreturn static void die(const char *what, const struct err *err)
{
    fprintf(stderr, "soak: %s: %s\n", what, err->message);
    exit(2);
}

/* ---- random choices ---------------------------------------------------------------------- */

static uint64_t next_random(struct soak *s)
{
    uint64_t z = s->random += 0x9e3779b97f4a7c15u; /* SplitMix64 */
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static int below(struct soak *s, int n) /* 0 to n - 1 */
{
    return (int)(next_random(s) % (uint64_t)n);
}

static bool one_in(struct soak *s, int n)
{
    return below(s, n) == 0;
}

static float fraction(struct soak *s) /* in [0, 1) */
{
    return (float)(next_random(s) >> 40) * 0x1p-24f;
}

/* ---- adapters ---------------------------------------------------------------------------- */

/* Ranks from 1 to 128, on one kind of module, on some, on all, or on a mixture of its own; all as
 * strong as the base's own products are by some percent, whatever their rank. */
static struct lora_adapter *make_content(struct soak *s, int index)
{
    static const int ranks[] = {1, 2, 3, 5, 8, 8, 16, 16, 16, 24, 32, 64, 128};
    static const unsigned targets[] = {1u << SITE_Q | 1u << SITE_V, 1u << SITE_DOWN,
                                       1u << SITE_O | 1u << SITE_DOWN,
                                       1u << SITE_GATE | 1u << SITE_UP | 1u << SITE_DOWN, 0x7f};
    enum {
        N_RANKS = sizeof ranks / sizeof ranks[0],
        N_TARGETS = sizeof targets / sizeof targets[0]
    };
    int n_sites = model_n_sites(&s->config);
    int *rank = xcalloc((size_t)n_sites, sizeof *rank);
    float *scaling = xcalloc((size_t)n_sites, sizeof *scaling);
    int rank_of_all = ranks[below(s, N_RANKS)], choice = below(s, N_TARGETS + 1);
    for (int site = 0; site < n_sites; site++) {
        bool mixed = choice == N_TARGETS;
        if (mixed ? one_in(s, 3) : (targets[choice] >> site % SITE_KINDS & 1u) != 0)
            rank[site] = mixed ? ranks[below(s, N_RANKS)] : rank_of_all;
        scaling[site] = (0.5f + 3 * fraction(s)) * sqrtf((float)rank[site]);
    }
    if (rank[n_sites - 1] == 0 && choice == N_TARGETS) /* never none at all */
        rank[n_sites - 1] = 1, scaling[n_sites - 1] = 1;
    struct lora_adapter *a = lora_random_mixed(&s->config, rank, scaling, DTYPE_BF16,
                                               s->options.seed * 1000003 + (uint64_t)index);
    free(rank);
    free(scaling);
    return a;
}

static void make_contents(struct soak *s)
{
    size_t n = (size_t)s->options.n_contents, sum = 0, largest = 0;
    s->contents = xcalloc(n, sizeof(struct lora_adapter *));
    s->digests = xcalloc(n, sizeof *s->digests);
    s->bytes = xcalloc(n, sizeof *s->bytes);
    s->ranks = xcalloc(n, sizeof *s->ranks);
    s->loads = xcalloc(n, sizeof *s->loads);
    for (size_t i = 0; i < n; i++) {
        s->contents[i] = make_content(s, (int)i);
        s->digests[i] = s->contents[i]->content;
        s->bytes[i] = s->contents[i]->n_bytes;
        s->ranks[i] = s->contents[i]->rank_max;
        sum += s->bytes[i];
        largest = s->bytes[i] > largest ? s->bytes[i] : largest;
    }
    s->pool_bytes = sum / n * (size_t)s->options.n_pool;
    if (s->pool_bytes < 2 * largest)
        s->pool_bytes = 2 * largest;
}

static struct lora_adapter *copy_content(const struct lora_adapter *a)
{
    struct lora_adapter *copy = xcalloc(1, sizeof *copy);
    *copy = *a;
    copy->sites = xcalloc((size_t)a->n_sites, sizeof *copy->sites);
    memcpy(copy->sites, a->sites, (size_t)a->n_sites * sizeof *copy->sites);
    copy->data = aligned_alloc(LORA_ALIGN_BYTES, a->n_bytes);
    BUG_IF(copy->data == NULL);
    memcpy(copy->data, a->data, a->n_bytes);
    return copy;
}

static void load(struct soak *s, struct name *name, int content)
{
    struct err err = {0};
    if (engine_adapter_add(s->engine, copy_content(s->contents[content]), &err) != 0)
        die("loading an adapter", &err);
    *name = (struct name){content, true};
    s->loads[content]++;
    s->counts.n_loads++;
}

static void drop(struct soak *s, int content)
{
    struct err err = {0};
    if (engine_adapter_drop(s->engine, &s->digests[content], &err) != 0)
        die("dropping an adapter", &err);
    s->loads[content]--;
    s->counts.n_drops++;
}

/* One change of the table of names. */
static void change_a_name(struct soak *s)
{
    int index = below(s, s->options.n_names);
    struct name *name = &s->names[index];
    int old = name->content, new = below(s, s->options.n_contents);
    if (index == s->swapped[0] || index == s->swapped[1])
        return;
    if (!name->loaded) {
        load(s, name, one_in(s, 2) ? old : new); /* reloaded, or come back as another */
        s->counts.n_repointed += name->content != old;
        return;
    }
    switch (below(s, 5)) {
    case 0: /* has none for a while */
        drop(s, old);
        name->loaded = false;
        break;
    case 1: /* the same again */
        drop(s, old);
        load(s, name, old);
        break;
    case 2: /* re-pointed: the old one leaves first */
        drop(s, old);
        load(s, name, new);
        s->counts.n_repointed += new != old;
        break;
    default: /* ... or the new one comes first */
        load(s, name, new);
        drop(s, old);
        s->counts.n_repointed += new != old;
    }
}

/* ---- requests ---------------------------------------------------------------------------- */

static uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static uint32_t hash_tops(const struct engine_event *e)
{
    uint32_t h = 2166136261u; /* FNV-1a, by words */
    for (int i = 0; i < e->n_top; i++) {
        h = (h ^ (uint32_t)e->top_ids[i]) * 16777619u;
        h = (h ^ bits_of(e->top_logprobs[i])) * 16777619u;
    }
    return h;
}

static void churn_event(struct soak *s, const struct engine_event *e)
{
    struct trial *t = e->user;
    switch (e->kind) {
    case ENGINE_EVENT_TOKEN:
        if (t->n_tokens == t->n_max || e->position != t->n_prompt + t->n_tokens || t->n_finished) {
            t->is_odd = true;
            break;
        }
        t->tokens[t->n_prompt + t->n_tokens] = e->token;
        t->logprob[t->n_tokens] = bits_of(e->logprob);
        t->tops[t->n_tokens++] = hash_tops(e);
        s->n_tokens++;
        if (t->n_tokens == t->cancel_at)
            engine_cancel(s->engine, t->id);
        break;
    case ENGINE_EVENT_PROMPT:
        t->is_odd = true;
        break;
    case ENGINE_EVENT_FINISHED:
        t->finish = e->finish;
        t->n_finished++;
        s->n_out--;
        pthread_cond_signal(&s->finished);
        break;
    }
}

static void on_churn(void *context, const struct engine_event *events, size_t n)
{
    struct soak *s = context;
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < n; i++)
        churn_event(s, &events[i]);
    pthread_mutex_unlock(&s->lock);
}

/* Popular names come first, from one that moves on. */
static int choose_name(struct soak *s)
{
    int n = s->options.n_names, hot = s->n_trials / DRIFT;
    float u = fraction(s);
    return (hot + (int)((float)n * u * u * u)) % n;
}

static void choose_adapters(struct soak *s, struct trial *t)
{
    int kind = below(s, 8), n = kind == 0 ? 0 : kind == 1 ? 2 + below(s, ENSEMBLE_MAX - 1) : 1;
    size_t sum = 0;
    if (t->like != NULL && t->like->n_adapters < 2 && one_in(s, 2)) {
        t->n_adapters = t->like->n_adapters;
        *t->names = *t->like->names;
        *t->contents = s->names[*t->names].content; /* today */
        *t->weights = 1;
        return;
    }
    for (int i = 0; i < n; i++) {
        int name = choose_name(s), content = s->names[name].content;
        bool twice = false;
        for (int k = 0; k < t->n_adapters; k++)
            twice |= t->contents[k] == content;
        if (twice || (t->n_adapters > 0 && sum + s->bytes[content] > s->pool_bytes))
            continue;
        t->names[t->n_adapters] = name;
        t->contents[t->n_adapters] = content;
        t->weights[t->n_adapters++] = n == 1 ? 1 : fraction(s) * 2 - 0.5f;
        sum += s->bytes[content];
    }
}

static void choose_sampling(struct soak *s, struct trial *t)
{
    struct engine_sampling *p = &t->sampling;
    p->n_top_logprobs = one_in(s, 4) ? TOP : 0;
    if (one_in(s, 3))
        return;
    p->temperature = 0.3f + fraction(s) * 1.2f;
    p->top_k = one_in(s, 3) ? 20 : 0;
    p->top_p = one_in(s, 3) ? 0.9f : 0;
    p->min_p = one_in(s, 4) ? 0.05f : 0;
    p->seed = next_random(s);
    /* Such steps are neither recorded nor ahead; so they don't come all the time. */
    if (s->n_trials / ROUGH % 2 == 1 && one_in(s, 8)) {
        p->repetition_penalty = 1.2f;
        p->frequency_penalty = 0.1f;
        p->presence_penalty = -0.1f;
    }
}

static int choose_length(struct soak *s)
{
    return one_in(s, 4) ? 1 + below(s, 8)
                        : 1 + below(s, one_in(s, 3) ? GENERATE_MAX / 3 : GENERATE_MAX);
}

static struct trial *new_trial(struct soak *s)
{
    struct trial *t = xcalloc(1, sizeof *t);
    t->index = s->n_trials;
    t->n_prompt = 1 + below(s, PROMPT_MAX);
    t->n_max = choose_length(s);
    t->cancel_at = one_in(s, 16) ? below(s, t->n_max + 1) : -1;
    t->has_stops = one_in(s, 4);
    t->tokens = xcalloc((size_t)(t->n_prompt + t->n_max), sizeof *t->tokens);
    t->logprob = xcalloc((size_t)t->n_max, sizeof *t->logprob);
    t->tops = xcalloc((size_t)t->n_max, sizeof *t->tops);
    for (int i = 0; i < t->n_prompt; i++)
        t->tokens[i] = below(s, s->config.vocab);
    if (s->n_trials > ALIKE && one_in(s, 2)) {
        t->like = s->trials[s->n_trials - 1 - below(s, ALIKE)];
        int n = t->like->n_prompt < t->n_prompt ? t->like->n_prompt : t->n_prompt;
        memcpy(t->tokens, t->like->tokens, (size_t)n * sizeof *t->tokens);
    }
    choose_sampling(s, t);
    return t;
}

static void free_trial(struct trial *t)
{
    free(t->tokens);
    free(t->logprob);
    free(t->tops);
    free(t);
}

static struct engine_request request_of(struct soak *s, struct trial *t)
{
    struct engine_request r = {.prompt = t->tokens,
                               .n_prompt = t->n_prompt,
                               .max_tokens = t->n_max,
                               .ignore_eos = true,
                               .n_adapters = t->n_adapters,
                               .sampling = t->sampling,
                               .payer = (uint64_t)(t->n_prompt % 5), /* order, never bits */
                               .payer_weight = t->n_prompt % 5 == 1 ? 3 : 0,
                               .priority = t->n_max % 7 == 0 ? 1 : 0,
                               .user = t};
    for (int i = 0; i < t->n_adapters; i++) {
        r.adapters[i].content = s->digests[t->contents[i]];
        r.adapters[i].weight = t->weights[i];
    }
    return r;
}

static void keep_trial(struct soak *s, struct trial *t)
{
    if (s->n_trials == s->max_trials) {
        s->max_trials = 2 * s->max_trials + 1024;
        s->trials = xrealloc_array(s->trials, (size_t)s->max_trials, sizeof *s->trials);
    }
    s->trials[s->n_trials++] = t;
    s->counts.n_base += t->n_adapters == 0;
    s->counts.n_single += t->n_adapters == 1;
    s->counts.n_ensembles += t->n_adapters > 1;
    s->counts.n_sampled += t->sampling.temperature > 0;
}

/* Makes a request and submits it; one under a name without content must be refused. */
static void submit(struct soak *s, int forced_name)
{
    struct err err = {0};
    struct trial *t = new_trial(s);
    bool exists = true;
    if (forced_name >= 0)
        *t->names = forced_name, *t->contents = s->names[forced_name].content, *t->weights = 1,
        t->n_adapters = 1;
    else
        choose_adapters(s, t);
    for (int i = 0; i < t->n_adapters; i++)
        exists &= s->loads[t->contents[i]] > 0;
    struct engine_request r = request_of(s, t);
    if (t->has_stops) {
        r.stop_ids = s->stops;
        r.n_stop_ids = s->n_stops;
    }
    pthread_mutex_lock(&s->lock);
    s->n_out++;
    pthread_mutex_unlock(&s->lock);
    if (engine_submit(s->engine, &r, &t->id, &err) == 0) {
        if (!exists)
            BUG("a request under an adapter that is not loaded was accepted");
        if (t->cancel_at == 0)
            engine_cancel(s->engine, t->id);
        keep_trial(s, t);
        return;
    }
    if (exists || err.code != ERR_NOT_FOUND)
        die("submitting", &err);
    pthread_mutex_lock(&s->lock);
    s->n_out--;
    pthread_mutex_unlock(&s->lock);
    s->counts.n_refused++;
    free_trial(t);
}

/* ---- churn ------------------------------------------------------------------------------- */

static double seconds_since(struct monotonic_us begin)
{
    return (double)clock_elapsed_us(begin, clock_monotonic_us()) * 1e-6;
}

static void tell_progress(struct soak *s, const char *what, uint64_t n, uint64_t of)
{
    if (clock_elapsed_us(s->told, clock_monotonic_us()) < PROGRESS_US)
        return;
    s->told = clock_monotonic_us();
    fprintf(stderr, "soak: %s: %" PRIu64 " of %" PRIu64 "\n", what, n, of);
}

/* Until no more than n are out; returns the tokens generated so far. */
static uint64_t wait_until_out(struct soak *s, int n)
{
    pthread_mutex_lock(&s->lock);
    while (s->n_out > n)
        pthread_cond_wait(&s->finished, &s->lock);
    uint64_t n_tokens = s->n_tokens;
    pthread_mutex_unlock(&s->lock);
    return n_tokens;
}

/* The engine has given back everything that sequences had. */
static void wait_until_idle(struct soak *s)
{
    struct engine_stats stats;
    wait_until_out(s, 0);
    for (int i = 0; i < 5000; i++) {
        engine_stats(s->engine, &stats);
        if (stats.n_running == 0 && stats.n_waiting == 0 && stats.n_blocks_free == stats.n_blocks) {
            usleep(20000); /* and turned its loop once more */
            return;
        }
        usleep(1000);
    }
    BUG("%d of %d KV blocks are free when nothing runs", stats.n_blocks_free, stats.n_blocks);
}

/* False: there were no two on the device just now. */
static bool swap_two_entries(struct soak *s)
{
    int n = 0;
    wait_until_idle(s);
    for (int i = 0; i < s->options.n_names && n < 2; i++) {
        int content = s->names[i].content;
        if (s->names[i].loaded && lora_pool_is_resident(s->engine->lora, &s->digests[content]) &&
            (n == 0 || s->names[s->swapped[0]].content != content))
            s->swapped[n++] = i;
    }
    if (n < 2) {
        s->swapped[0] = -1;
        return false;
    }
    int a = s->names[s->swapped[0]].content, b = s->names[s->swapped[1]].content;
    engine_swap_adapters(s->engine, &s->digests[a], &s->digests[b]);
    printf("sabotage: before sequence %d, the entries of contents %d and %d were exchanged\n",
           s->n_trials, a, b);
    for (int i = 0; i < AFTER_SWAP; i++)
        submit(s, s->swapped[i % 2]);
    return true;
}

/* Bursts: submits until `high` are out, then waits until `low` are. */
static void make_traffic(struct soak *s)
{
    static const float sizes[] = {0.125f, 0.5f, 1, 1, 1.5f, 1.5f};
    const struct options *o = &s->options;
    int high = o->n_streams, low = high / 2, n_submitted = 0;
    bool swapped = !o->sabotage;
    struct monotonic_us begin = clock_monotonic_us();
    for (uint64_t n_tokens = 0;
         n_tokens < o->n_tokens || seconds_since(begin) < (double)o->seconds;) {
        if (n_submitted++ % BURSTS == 0) {
            high = 1 + (int)(sizes[below(s, 6)] * (float)o->n_streams);
            low = below(s, high);
        }
        if (n_submitted % RENAME == 0)
            change_a_name(s);
        if (!swapped && n_tokens >= o->n_tokens / 2)
            swapped = swap_two_entries(s);
        submit(s, -1);
        pthread_mutex_lock(&s->lock);
        bool full = s->n_out >= high;
        n_tokens = s->n_tokens;
        pthread_mutex_unlock(&s->lock);
        if (full)
            n_tokens = wait_until_out(s, low);
        tell_progress(s, "tokens generated", n_tokens, o->n_tokens);
    }
    wait_until_idle(s);
}

static struct engine *open_engine(struct soak *s, struct engine_options options)
{
    struct err err = {0};
    struct model *model;
    struct engine *e;
    options.backend = s->options.backend;
    options.n_threads = s->options.n_threads;
    options.max_context = CONTEXT;
    options.context = s;
    if (model_random(&model, &s->config, s->options.shape, s->options.seed, &err) != 0 ||
        engine_open_model(&e, model, &options, &err) != 0)
        die("opening the engine", &err);
    return e;
}

static size_t kv_bytes_of(const struct soak *s, int n_tokens)
{
    bool cuda = strcmp(s->options.backend, "cuda") == 0;
    return (size_t)(n_tokens / BLOCK_TOKENS + 2) *
           forward_block_bytes(&s->config, cuda ? DTYPE_BF16 : DTYPE_F32);
}

static void tell_churn(const struct soak *s, const struct engine_stats *e, double took)
{
    static const char *const held[ENGINE_ENTROPY_BUCKETS] = {"0",   "1",    "2",     "3",  "4",
                                                             "5-8", "9-16", "17-64", ">64"};
    const struct counts *c = &s->counts;
    printf("churn: %d sequences (%d base, %d under one adapter, %d ensembles; %d sampled, %d "
           "cancelled, %d stopped), %" PRIu64 " tokens in %.1f s, %.0f tokens/s\n",
           s->n_trials, c->n_base, c->n_single, c->n_ensembles, c->n_sampled, c->n_cancelled,
           c->n_stopped, s->n_tokens, took, (double)s->n_tokens / took);
    printf("names: %d over %d contents; %" PRIu64 " loads, %" PRIu64 " drops, %" PRIu64
           " re-pointed, %.1f of these a second; %" PRIu64
           " requests refused for want of content\n",
           s->options.n_names, s->options.n_contents, c->n_loads, c->n_drops, c->n_repointed,
           (double)(c->n_loads + c->n_drops + c->n_repointed) / took, c->n_refused);
    printf("device: %" PRIu64 " uploads, %" PRIu64
           " evictions in a pool of %.2f MB (contents: %.2f MB the mean); %" PRIu64
           " preemptions in %d blocks\n",
           e->n_adapter_uploads, e->n_adapter_evictions, (double)s->pool_bytes * 1e-6,
           (double)s->pool_bytes * 1e-6 / s->options.n_pool, e->n_preemptions, e->n_blocks);
    if (e->brick_bytes > 0)
        printf("shared: bricks of %.2f MB, %" PRIu64 " went to the KV cache and %" PRIu64
               " to adapters, %" PRIu64 " blocks made way; now %.2f and %.2f MB\n",
               (double)e->brick_bytes * 1e-6, e->n_bricks_to_kv, e->n_bricks_to_adapters,
               e->n_blocks_moved, (double)e->kv_bytes_total * 1e-6,
               (double)e->adapter_bytes_total * 1e-6);
    printf("prefix cache: %" PRIu64 " of %" PRIu64 " tokens of prompts found\n",
           e->n_prefix_hit_tokens, e->n_prefix_hit_tokens + e->n_prefix_miss_tokens);
    printf("steps: %" PRIu64 " (%" PRIu64 " with decoding, %" PRIu64 " replayed, %" PRIu64
           " ahead), %" PRIu64 " rows of prefill, %" PRIu64 " of decode\n",
           e->n_steps, e->n_decode_steps, e->n_steps_replayed, e->n_steps_ahead, e->n_rows_prefill,
           e->n_rows_decode);
    printf("decode steps by distinct adapters:");
    for (int i = 0; i < ENGINE_ENTROPY_BUCKETS; i++)
        printf(" %s: %" PRIu64, held[i], e->steps_by_distinct[i]);
    printf("\n");
}

/* Ends that the requests explain. */
static void check_ends(struct soak *s)
{
    for (int i = 0; i < s->n_trials; i++) {
        const struct trial *t = s->trials[i];
        bool full = t->n_tokens == t->n_max;
        bool stopped = t->has_stops && t->finish == ENGINE_FINISH_STOP;
        bool cancelled = t->cancel_at >= 0 && t->finish == ENGINE_FINISH_CANCELLED;
        s->counts.n_stopped += stopped;
        s->counts.n_cancelled += cancelled;
        if (t->is_odd || t->n_finished != 1 ||
            !(cancelled || stopped || (full && t->finish == ENGINE_FINISH_LENGTH)))
            BUG("sequence %d: %d of %d tokens, %d ends, the last of kind %d%s", i, t->n_tokens,
                t->n_max, t->n_finished, (int)t->finish, t->is_odd ? ", odd events" : "");
    }
}

/* What the adapters had of device and host is free again. */
static void check_memory_is_back(struct soak *s)
{
    struct engine_stats stats;
    struct err err = {0};
    for (int i = 0; i < s->options.n_contents; i++)
        if (engine_adapter_evict(s->engine, &s->digests[i], &err) != 0)
            die("evicting an adapter", &err);
    wait_until_idle(s);
    engine_stats(s->engine, &stats);
    if (stats.n_adapters_loaded != 0 || stats.n_adapters_resident != 0 ||
        stats.adapter_bytes_used != 0 || stats.adapter_host_bytes_used != 0)
        BUG("all were dropped and evicted: %d adapters are loaded, %d on the device, with %zu "
            "bytes "
            "there and %zu of host memory",
            stats.n_adapters_loaded, stats.n_adapters_resident, stats.adapter_bytes_used,
            stats.adapter_host_bytes_used);
    printf("memory: all adapters dropped and evicted: 0 bytes of the device's pool and of the "
           "host's memory are taken, and all %d blocks are free\n",
           stats.n_blocks);
}

/* With --shared it is only of use if they did. */
static void check_moves(const struct engine_stats *e)
{
    if (e->n_bricks_to_kv + e->n_bricks_to_adapters > 0)
        return;
    fprintf(stderr, "soak: no memory moved between adapters and KV cache: %s\n",
            e->brick_bytes > 0 ? "too few tokens" : "there is too little of it for bricks");
    exit(2);
}

static void churn(struct soak *s)
{
    const struct options *o = &s->options;
    size_t sum = 0;
    for (int i = 0; i < o->n_contents; i++)
        sum += s->bytes[i];
    struct engine_options options = {
        .kv_bytes = kv_bytes_of(s, o->kv_tokens > CONTEXT ? o->kv_tokens : CONTEXT),
        .adapter_bytes = s->pool_bytes,
        .adapter_host_bytes = sum,
        .max_seqs = o->n_streams,
        .max_rows = o->n_rows,
        .max_waiting = 2 * o->n_streams + AFTER_SWAP + 1,
        .debug_preempt = o->preempt,
        .on_events = on_churn};
    if (o->shared) { /* adapters begin with a quarter or a third: their pool, for any ensemble */
        options.shared_bytes = 4 * s->pool_bytes;
        options.kv_bytes = options.adapter_bytes = 0;
    }
    s->engine = open_engine(s, options);
    s->names = xcalloc((size_t)o->n_names, sizeof *s->names);
    for (int i = 0; i < o->n_names; i++)
        load(s, &s->names[i], below(s, o->n_contents));
    s->n_stops = s->config.vocab / 128 < 1 ? 1 : s->config.vocab / 128;
    s->n_stops = s->n_stops > STOPS_MAX ? STOPS_MAX : s->n_stops;
    for (int i = 0; i < s->n_stops; i++)
        s->stops[i] = below(s, s->config.vocab);
    struct monotonic_us begin = clock_monotonic_us();
    make_traffic(s);
    double took = seconds_since(begin);
    check_ends(s);
    for (int i = 0; i < o->n_names; i++)
        if (s->names[i].loaded)
            drop(s, s->names[i].content);
    struct engine_stats stats;
    engine_stats(s->engine, &stats);
    tell_churn(s, &stats, took);
    if (o->shared)
        check_moves(&stats);
    check_memory_is_back(s);
    engine_close(s->engine);
}

/* ---- the witness ------------------------------------------------------------------------- */

static void note_wrong(struct soak *s, int position, uint32_t got, uint32_t wanted)
{
    if (s->n_wrong++ > 0)
        return;
    s->first_wrong = position;
    s->got = got;
    s->wanted = wanted;
}

static void on_witness(void *context, const struct engine_event *events, size_t n)
{
    struct soak *s = context;
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < n; i++) {
        const struct engine_event *e = &events[i];
        const struct trial *t = s->expected;
        int at = e->position - t->n_prompt;
        if (e->kind == ENGINE_EVENT_FINISHED) {
            s->n_out--;
            pthread_cond_signal(&s->finished);
        } else if (at >= 0 && at < t->n_tokens) { /* not of the prompt */
            uint32_t logprob = bits_of(e->logprob);
            s->n_seen++;
            if (e->token != t->tokens[e->position])
                note_wrong(s, e->position, (uint32_t)e->token, (uint32_t)t->tokens[e->position]);
            else if (logprob != t->logprob[at])
                note_wrong(s, e->position, t->logprob[at], logprob);
            else if (hash_tops(e) != t->tops[at])
                note_wrong(s, e->position, t->tops[at], hash_tops(e));
        }
    }
    pthread_mutex_unlock(&s->lock);
}

static void tell_difference(const struct soak *s, const struct trial *t, const char *how)
{
    printf("differs: sequence %d, %s: %d of %d tokens, first at position %d (prompt %d): %08x "
           "beside others, %08x alone;",
           t->index, how, s->n_wrong, t->n_tokens, s->first_wrong, t->n_prompt, s->got, s->wanted);
    for (int i = 0; i < t->n_adapters; i++) {
        char hex[65];
        hex_encode(hex, s->digests[t->contents[i]].bytes, 32);
        printf(" %g x name %d, content %d (%.12s, rank %d, %zu bytes)", (double)t->weights[i],
               t->names[i], t->contents[i], hex, s->ranks[t->contents[i]],
               s->bytes[t->contents[i]]);
    }
    printf("%s\n", t->n_adapters == 0 ? " base model" : "");
}

/* Runs t alone, as r says; its tokens are compared as they come. True: all the same. */
static bool run_alone(struct soak *s, const struct trial *t, const struct engine_request *r,
                      const char *how)
{
    struct err err = {0};
    pthread_mutex_lock(&s->lock);
    s->expected = t;
    s->n_seen = s->n_wrong = 0;
    s->n_out++;
    pthread_mutex_unlock(&s->lock);
    if (engine_submit(s->engine, r, NULL, &err) != 0)
        die("submitting it alone", &err);
    wait_until_out(s, 0);
    if (s->n_seen != t->n_tokens)
        BUG("sequence %d, %s: %d tokens came, of %d", t->index, how, s->n_seen, t->n_tokens);
    s->n_wrong_tokens += (uint64_t)s->n_wrong;
    if (s->n_wrong > 0 && s->n_differ < TOLD_MAX)
        tell_difference(s, t, how);
    return s->n_wrong == 0;
}

static void check_trial(struct soak *s, struct trial *t)
{
    bool same = true;
    if (s->options.teach) {
        struct engine_request r = request_of(s, t);
        r.n_prompt = t->n_prompt + t->n_tokens;
        r.max_tokens = 0;
        r.prompt_logprobs = true;
        same = run_alone(s, t, &r, "taught");
        s->n_taught++;
        s->n_taught_tokens += (uint64_t)t->n_tokens;
    }
    if (below(s, 100) < s->options.regenerate || !s->options.teach) {
        struct engine_request r = request_of(s, t);
        r.max_tokens = t->n_tokens;
        same = run_alone(s, t, &r, "regenerated") && same;
        s->n_regenerated++;
        s->n_regenerated_tokens += (uint64_t)t->n_tokens;
    }
    s->n_differ += !same;
}

static void witness(struct soak *s)
{
    const struct options *o = &s->options;
    struct err err = {0};
    size_t sum = 0;
    for (int i = 0; i < o->n_contents; i++)
        sum += s->bytes[i];
    s->engine = open_engine(s, (struct engine_options){.kv_bytes = kv_bytes_of(s, CONTEXT),
                                                       .adapter_bytes = sum,
                                                       .adapter_host_bytes = sum,
                                                       .max_seqs = 1,
                                                       .max_rows = CONTEXT,
                                                       .no_prefix_cache = true,
                                                       .on_events = on_witness});
    for (int i = 0; i < o->n_contents; i++)
        if (engine_adapter_add(s->engine, s->contents[i], &err) != 0)
            die("loading an adapter", &err);
    struct monotonic_us begin = clock_monotonic_us();
    for (int i = 0; i < s->n_trials; i++) {
        if (s->trials[i]->n_tokens > 0)
            check_trial(s, s->trials[i]);
        tell_progress(s, "sequences checked", (uint64_t)i + 1, (uint64_t)s->n_trials);
    }
    printf("alone: %" PRIu64 " sequences taught (%" PRIu64 " tokens), %" PRIu64
           " regenerated (%" PRIu64 " tokens) in %.1f s\n",
           s->n_taught, s->n_taught_tokens, s->n_regenerated, s->n_regenerated_tokens,
           seconds_since(begin));
    printf("exceptions: %d sequences, %" PRIu64 " tokens\n", s->n_differ, s->n_wrong_tokens);
    engine_close(s->engine);
}

/* ---- options ----------------------------------------------------------------------------- */

static void help(void)
{
    puts("usage: soak [OPTION ...]\n"
         "  --backend NAME      cpu (default), ref, cuda\n"
         "  --shape NAME        tiny (default), 110m, 1b, 7b, 8b\n"
         "  --tokens N          to generate beside others; 20000\n"
         "  --seconds N         and at least so long; 0\n"
         "  --streams N         sequences running at once; 64\n"
         "  --names N           48, over\n"
         "  --contents N        96 adapters, in a pool for\n"
         "  --pool N            12 of their mean size\n"
         "  --rows N            of a step; 3 for each stream\n"
         "  --kv TOKENS         of the KV cache; 40 for each stream\n"
         "  --preempt           a sequence every few steps, whether there is room or not\n"
         "  --shared            adapters and KV cache share what --pool says, four times; no --kv\n"
         "  --regenerate N      percent of the sequences that are also decoded again; 2\n"
         "  --no-teaching       all are decoded again, none is scored\n"
         "  --sabotage          exchange two entries of the adapter table: the check must fail\n"
         "  --seed N, --threads N");
}

/* 0 or more, or exit. */
static uint64_t number(const char *text)
{
    char *end;
    unsigned long long n = text != NULL ? strtoull(text, &end, 10) : 0;
    if (text == NULL || *text < '0' || *text > '9' || *end != '\0') {
        fprintf(stderr, "soak: %s is no number\n", text != NULL ? text : "nothing");
        exit(2);
    }
    return n;
}

static struct options options_of(char **argv)
{
    struct options o = {.backend = "cpu",
                        .shape = "tiny",
                        .n_tokens = 20000,
                        .seed = 1,
                        .n_streams = 64,
                        .n_names = 48,
                        .n_contents = 96,
                        .n_pool = 12,
                        .regenerate = 2,
                        .teach = true};
    const struct {
        const char *name;
        int *value;
    } numbers[] = {{"--streams", &o.n_streams},   {"--names", &o.n_names},
                   {"--contents", &o.n_contents}, {"--pool", &o.n_pool},
                   {"--rows", &o.n_rows},         {"--kv", &o.kv_tokens},
                   {"--threads", &o.n_threads},   {"--regenerate", &o.regenerate}};
    for (char **a = argv + 1; *a != NULL; a++) {
        size_t i = 0, n = sizeof numbers / sizeof numbers[0];
        while (i < n && strcmp(*a, numbers[i].name) != 0)
            i++;
        if (i < n)
            *numbers[i].value = (int)number(*++a);
        else if (strcmp(*a, "--tokens") == 0)
            o.n_tokens = number(*++a);
        else if (strcmp(*a, "--seed") == 0)
            o.seed = number(*++a);
        else if (strcmp(*a, "--seconds") == 0)
            o.seconds = number(*++a);
        else if (strcmp(*a, "--backend") == 0 && a[1] != NULL)
            o.backend = *++a;
        else if (strcmp(*a, "--shape") == 0 && a[1] != NULL)
            o.shape = *++a;
        else if (strcmp(*a, "--no-teaching") == 0)
            o.teach = false;
        else if (strcmp(*a, "--preempt") == 0)
            o.preempt = true;
        else if (strcmp(*a, "--shared") == 0)
            o.shared = true;
        else if (strcmp(*a, "--sabotage") == 0)
            o.sabotage = true;
        else {
            help();
            exit(strcmp(*a, "--help") == 0 ? 0 : 2);
        }
    }
    o.n_rows = o.n_rows > 0 ? o.n_rows : 3 * o.n_streams;
    o.kv_tokens = o.kv_tokens > 0 ? o.kv_tokens : 40 * o.n_streams;
    if (bench_shape(o.shape) == NULL || o.n_streams < 1 || o.n_names < 2 || o.n_contents < 2 ||
        o.n_pool < 1) {
        help();
        exit(2);
    }
    return o;
}

int main(int argc, char **argv)
{
    (void)argc;
    struct soak s = {.options = options_of(argv), .swapped = {-1, -1}};
    s.config = *bench_shape(s.options.shape);
    s.config.max_context = CONTEXT;
    s.random = s.options.seed;
    s.told = clock_monotonic_us();
    pthread_mutex_init(&s.lock, NULL);
    pthread_cond_init(&s.finished, NULL);
    struct monotonic_us begin = clock_monotonic_us();
    make_contents(&s);
    churn(&s);
    fflush(stdout);
    witness(&s);
    printf("%s: shape %s on %s, seed %" PRIu64 ", %.1f s in all\n",
           s.n_differ == 0 ? "all the same" : "NOT THE SAME", s.options.shape, s.options.backend,
           s.options.seed, seconds_since(begin));
    for (int i = 0; i < s.n_trials; i++)
        free_trial(s.trials[i]);
    free(s.trials);
    free(s.contents);
    free(s.digests);
    free(s.bytes);
    free(s.ranks);
    free(s.loads);
    free(s.names);
    return s.n_differ == 0 ? 0 : 1;
}
