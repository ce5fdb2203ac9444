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
 * A name is changed every few requests, or --changes times a second, by the clock: then changes go
 * on while requests are slow, too, and it is an error when the pace asked for was not reached.
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
 * Prefix hits. Of each request the engine says how many tokens of its prompt it found. Some other
 * request, under the same adapters with the same weights, must have begun with these tokens, or
 * they are another content's; and what it found must have been right, or the bits behind it differ
 * from those of the prompt computed whole. (The count alone could miss some: where both the own and
 * another content's were there to be found.) Counted as well: requests that began like some under
 * another content with more than they found, so that none across contents says something.
 *
 * Memory. What adapters and KV cache have, before the first name and after the last, must be the
 * same; likewise what a device with memory of its own says is free.
 *
 * --shared gives adapters and the KV cache no sizes of their own, so that memory goes to and fro
 * between them under the same load.
 *
 * --sabotage exchanges two entries of the adapter table in the middle of the churn: a wrong
 * adapter, without any other sign of it. --sabotage-prefixes makes the engine look for prefixes
 * whatever their adapters. --sabotage-memory leaves an adapter where it is at the end. The check
 * must then fail.
 *
 * Exit status: 0 all the same; 1 something differs, memory isn't back, or changes came too slowly;
 * 2 it could not be run. */
#include "engine/bench.h"
#include "engine/internal.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
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
    RENAME = 8,      /* requests between two changes of the table, without --changes */
    ROUGH = 512,     /* requests of fair weather, then as many with penalties among them */
    AFTER_SWAP = 32, /* requests under the two that were exchanged */
    ALIKE = 48,      /* earlier requests whose prompts another may begin with */
    TOLD_MAX = 20,   /* differences told one by one */
    PROGRESS_US = 10000000,
    PACE_PERCENT = 95, /* of the changes asked for */
    /* What may be less free on a device than before: code that the driver brings in with the first
     * use of a kernel. */
    DRIVER_BYTES = 64 << 20,
};

struct options {
    const char *backend, *shape;
    uint64_t n_tokens, seed, seconds;
    int n_streams, n_names, n_contents, n_pool, n_rows, kv_tokens, regenerate, n_threads;
    int n_changes; /* a second; 0: by requests */
    bool teach, preempt, shared;
    bool sabotage, sabotage_prefixes, sabotage_memory;
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
    int n_cached; /* tokens of the prompt that it found */
    int n_begun;  /* others with an index below may have computed them */
    bool is_odd;  /* an event came that should not have */
};

enum change {
    CHANGE_LOAD,    /* of a name that had none */
    CHANGE_DROP,    /* it has none for a while */
    CHANGE_RELOAD,  /* the same content again */
    CHANGE_REPOINT, /* another one */
    CHANGES
};

/* Changes of the table while there is traffic. */
struct pace {
    struct monotonic_us begin, last;
    double seconds;
    uint64_t n_changes, by_kind[CHANGES];
    uint64_t us, us_max; /* that they took */
    uint64_t longest_pause_us;
};

struct prefixes {
    int n_found;             /* requests that found some of their prompt */
    uint64_t n_found_tokens; /* of it */
    int n_offered;           /* that began like others under other adapters, with more than that */
    int n_foreign;           /* that found what nobody had computed under theirs */
    uint64_t n_foreign_tokens;
    int n_checked, n_wrong; /* of those that found some: whose bits were compared; that differ */
};

struct memory {
    size_t adapter_bytes_used, adapter_bytes, kv_bytes, host_bytes, brick_bytes;
    int n_blocks, n_blocks_free, n_loaded, n_resident;
    bool tells_free; /* of a device of its own */
    size_t free_bytes;
};

struct counts {
    uint64_t n_loads, n_drops, n_refused;
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
    struct pace pace;
    struct prefixes prefixes;
    bool memory_is_back;
    struct engine *engine;
    struct monotonic_us told;

    pthread_mutex_t lock;
    pthread_cond_t finished;
    int n_out;         /* submitted and not finished */
    int n_begun;       /* trials whose submission has begun */
    uint64_t n_tokens; /* generated */

    /* Of the witness: the trial at hand, and what it got wrong. */
    const struct trial *expected;
    int n_seen, n_wrong, first_wrong; /* first_wrong: position */
    uint32_t got, wanted;             /* there: bits, or tokens */
    int n_differ;                     /* trials */
    uint64_t n_verified;              /* tokens, each once */
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

/* Where the engine wants it, so that it is copied once, and counted. */
static struct lora_adapter *copy_content(struct host_memory *home, const struct lora_adapter *a)
{
    struct err err = {0};
    void *data;
    struct lora_adapter *copy = xcalloc(1, sizeof *copy);
    if (host_memory_take(home, &data, a->n_bytes, &err) != 0)
        die("copying an adapter", &err);
    *copy = *a;
    copy->sites = xcalloc((size_t)a->n_sites, sizeof *copy->sites);
    memcpy(copy->sites, a->sites, (size_t)a->n_sites * sizeof *copy->sites);
    copy->data = data;
    copy->home = home;
    memcpy(copy->data, a->data, a->n_bytes);
    return copy;
}

static void load(struct soak *s, struct name *name, int content)
{
    struct err err = {0};
    if (engine_adapter_add(s->engine, copy_content(s->engine->host, s->contents[content]), &err) !=
        0)
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

/* Changes a name, one that isn't sabotage's. */
static enum change change_a_name(struct soak *s)
{
    int n = s->options.n_names, index = below(s, n), new = below(s, s->options.n_contents);
    while (index == s->swapped[0] || index == s->swapped[1])
        index = (index + 1) % n; /* there are more than two */
    struct name *name = &s->names[index];
    int old = name->content;
    if (!name->loaded) {
        load(s, name, one_in(s, 2) ? old : new); /* as it was, or come back as another */
        return CHANGE_LOAD;
    }
    switch (below(s, 5)) {
    case 0:
        drop(s, old);
        name->loaded = false;
        return CHANGE_DROP;
    case 1:
        drop(s, old);
        load(s, name, old);
        return CHANGE_RELOAD;
    case 2: /* the old one leaves first */
        drop(s, old);
        load(s, name, new);
        break;
    default: /* ... or the new one comes first */
        load(s, name, new);
        drop(s, old);
    }
    return new == old ? CHANGE_RELOAD : CHANGE_REPOINT;
}

/* ---- the pace of changes ----------------------------------------------------------------- */

static double seconds_since(struct monotonic_us begin)
{
    return (double)clock_elapsed_us(begin, clock_monotonic_us()) * 1e-6;
}

static void change(struct soak *s)
{
    struct pace *p = &s->pace;
    struct monotonic_us begin = clock_monotonic_us();
    uint64_t pause = clock_elapsed_us(p->last, begin);
    p->by_kind[change_a_name(s)]++;
    p->n_changes++;
    uint64_t took = clock_elapsed_us(begin, clock_monotonic_us());
    p->us += took;
    p->us_max = took > p->us_max ? took : p->us_max;
    p->longest_pause_us = pause > p->longest_pause_us ? pause : p->longest_pause_us;
    p->last = begin;
}

/* The next change by the clock: the k-th is k / --changes seconds after the first moment, so that
 * those that come late don't put off the others. */
static struct monotonic_us next_change(const struct soak *s)
{
    uint64_t k = s->pace.n_changes + 1, rate = (uint64_t)s->options.n_changes;
    return (struct monotonic_us){s->pace.begin.us + (k * 1000000 + rate - 1) / rate};
}

static bool change_is_due(const struct soak *s)
{
    return s->options.n_changes > 0 && clock_monotonic_us().us >= next_change(s).us;
}

static void begin_pace(struct soak *s)
{
    s->pace.begin = s->pace.last = clock_monotonic_us();
}

static void end_pace(struct soak *s)
{
    struct pace *p = &s->pace;
    struct monotonic_us end = clock_monotonic_us();
    uint64_t pause = clock_elapsed_us(p->last, end);
    p->seconds = (double)clock_elapsed_us(p->begin, end) * 1e-6;
    p->longest_pause_us = pause > p->longest_pause_us ? pause : p->longest_pause_us;
}

/* But for one, which the last moment may have cut off. */
static bool pace_was_reached(const struct soak *s)
{
    if (s->options.n_changes > 0 && s->pace.n_changes == 0)
        return false;
    double wanted = (double)s->options.n_changes * s->pace.seconds;
    return (double)(s->pace.n_changes + 1) >= wanted * PACE_PERCENT / 100;
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
        t->n_cached = e->n_prompt_cached;
        t->n_begun = s->n_begun;
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
    s->n_begun = t->index + 1;
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

static void tell_progress(struct soak *s, const char *what, uint64_t n, uint64_t of)
{
    if (clock_elapsed_us(s->told, clock_monotonic_us()) < PROGRESS_US)
        return;
    s->told = clock_monotonic_us();
    fprintf(stderr, "soak: %s: %" PRIu64 " of %" PRIu64 "\n", what, n, of);
}

/* One more has finished, or a change is due. Under the lock. */
static void wait_for_an_end(struct soak *s)
{
    if (s->options.n_changes == 0) {
        pthread_cond_wait(&s->finished, &s->lock);
        return;
    }
    uint64_t us = next_change(s).us;
    struct timespec until = {.tv_sec = (time_t)(us / 1000000),
                             .tv_nsec = (long)(us % 1000000 * 1000)};
    int rc = pthread_cond_timedwait(&s->finished, &s->lock, &until);
    BUG_IF(rc != 0 && rc != ETIMEDOUT);
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

/* The same, and the table goes on changing by the clock meanwhile. */
static uint64_t churn_until_out(struct soak *s, int n)
{
    for (;;) {
        pthread_mutex_lock(&s->lock);
        while (s->n_out > n && !change_is_due(s))
            wait_for_an_end(s);
        bool out = s->n_out <= n;
        uint64_t n_tokens = s->n_tokens;
        pthread_mutex_unlock(&s->lock);
        if (out)
            return n_tokens;
        change(s);
    }
}

/* The engine has given back everything that sequences had; false: not within five seconds. */
static bool wait_until_idle(struct soak *s)
{
    struct engine_stats stats;
    wait_until_out(s, 0);
    for (int i = 0; i < 5000; i++) {
        engine_stats(s->engine, &stats);
        if (stats.n_running == 0 && stats.n_waiting == 0 && stats.n_blocks_free == stats.n_blocks) {
            usleep(20000); /* and turned its loop once more */
            return true;
        }
        usleep(1000);
    }
    return false;
}

/* False: there were no two on the device just now. */
static bool swap_two_entries(struct soak *s)
{
    int n = 0;
    BUG_IF(!wait_until_idle(s));
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
    begin_pace(s);
    for (uint64_t n_tokens = 0;
         n_tokens < o->n_tokens || seconds_since(s->pace.begin) < (double)o->seconds;) {
        if (n_submitted++ % BURSTS == 0) {
            high = 1 + (int)(sizes[below(s, 6)] * (float)o->n_streams);
            low = below(s, high);
        }
        if (o->n_changes > 0 ? change_is_due(s) : n_submitted % RENAME == 0)
            change(s);
        if (!swapped && n_tokens >= o->n_tokens / 2)
            swapped = swap_two_entries(s);
        submit(s, -1);
        pthread_mutex_lock(&s->lock);
        bool full = s->n_out >= high;
        n_tokens = s->n_tokens;
        pthread_mutex_unlock(&s->lock);
        if (full)
            n_tokens = churn_until_out(s, low);
        tell_progress(s, "tokens generated", n_tokens, o->n_tokens);
    }
    end_pace(s);
    wait_until_out(s, 0);
}

/* The engine's keys of prefixes come from here (the linker's --wrap). */
struct prefix_key __real_prefix_key_root(const struct prefix_secret *secret,
                                         const struct prefix_adapter *adapters, int n);
struct prefix_key __wrap_prefix_key_root(const struct prefix_secret *secret,
                                         const struct prefix_adapter *adapters, int n);

static bool look_prefixes_up_blindly; /* by --sabotage-prefixes; changed while nothing runs */

struct prefix_key __wrap_prefix_key_root(const struct prefix_secret *secret,
                                         const struct prefix_adapter *adapters, int n)
{
    return __real_prefix_key_root(secret, adapters, look_prefixes_up_blindly ? 0 : n);
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

static void tell_pace(const struct soak *s)
{
    const struct pace *p = &s->pace;
    printf("changes of names under load: %" PRIu64 " in %.1f s, %.2f a second", p->n_changes,
           p->seconds, p->seconds > 0 ? (double)p->n_changes / p->seconds : 0);
    if (s->options.n_changes > 0)
        printf(" (%d asked for%s)", s->options.n_changes,
               pace_was_reached(s) ? "" : ": NOT REACHED");
    printf(": %" PRIu64 " loads, %" PRIu64 " drops, %" PRIu64 " reloads, %" PRIu64
           " re-points; one took %.2f ms, %.1f at most; the longest time without was %.0f ms\n",
           p->by_kind[CHANGE_LOAD], p->by_kind[CHANGE_DROP], p->by_kind[CHANGE_RELOAD],
           p->by_kind[CHANGE_REPOINT],
           p->n_changes > 0 ? (double)p->us * 1e-3 / (double)p->n_changes : 0,
           (double)p->us_max * 1e-3, (double)p->longest_pause_us * 1e-3);
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
    printf("names: %d over %d contents; %" PRIu64 " loads and %" PRIu64
           " drops from the first to the last, %" PRIu64 " requests refused for want of content\n",
           s->options.n_names, s->options.n_contents, c->n_loads, c->n_drops, c->n_refused);
    tell_pace(s);
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
    printf("prefix cache: %" PRIu64 " of %" PRIu64
           " tokens of prompts found, by %d requests; %d began like earlier ones under other "
           "contents, with more than they found\n",
           e->n_prefix_hit_tokens, e->n_prefix_hit_tokens + e->n_prefix_miss_tokens,
           s->prefixes.n_found, s->prefixes.n_offered);
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

/* ---- prefix hits ------------------------------------------------------------------------- */

static bool under_the_same(const struct trial *a, const struct trial *b)
{
    bool same = a->n_adapters == b->n_adapters;
    for (int i = 0; same && i < a->n_adapters; i++)
        same = a->contents[i] == b->contents[i] && bits_of(a->weights[i]) == bits_of(b->weights[i]);
    return same;
}

/* Tokens in whole blocks that `other` may have left for t's prompt, the last of which is always
 * computed. */
static int n_in_common(const struct trial *t, const struct trial *other)
{
    int n = 0, n_other = other->n_prompt + other->n_tokens,
        n_max = t->n_prompt - 1 < n_other ? t->n_prompt - 1 : n_other;
    while (n < n_max && t->tokens[n] == other->tokens[n])
        n++;
    return n / BLOCK_TOKENS * BLOCK_TOKENS;
}

/* Of those [n] whose first block is t's. */
static void explain_prefix(struct soak *s, const struct trial *t, struct trial *const *alike, int n)
{
    struct prefixes *p = &s->prefixes;
    int own = 0, foreign = 0;
    for (int i = 0; i < n; i++) {
        bool same = under_the_same(t, alike[i]);
        int *most = same ? &own : &foreign;
        /* For what may have been found, all that had begun when t ended; for what would have been,
         * those that began before it. */
        if (alike[i] == t || alike[i]->index >= (same ? t->n_begun : t->index))
            continue;
        int in_common = n_in_common(t, alike[i]);
        *most = in_common > *most ? in_common : *most;
    }
    p->n_found += t->n_cached > 0;
    p->n_found_tokens += (uint64_t)t->n_cached;
    p->n_offered += foreign > t->n_cached;
    if (t->n_cached <= own)
        return;
    p->n_foreign_tokens += (uint64_t)(t->n_cached - own);
    if (p->n_foreign++ < TOLD_MAX)
        printf("across contents: sequence %d found %d tokens of its prompt (%d), of which others "
               "under the same adapters had %d\n",
               t->index, t->n_cached, t->n_prompt, own);
}

static int by_first_block(const void *a, const void *b)
{
    const struct trial *x = *(struct trial *const *)a, *y = *(struct trial *const *)b;
    return memcmp(x->tokens, y->tokens, BLOCK_TOKENS * sizeof *x->tokens);
}

static void check_prefixes(struct soak *s, const struct engine_stats *stats)
{
    struct trial **sorted = xcalloc((size_t)s->n_trials + 1, sizeof(struct trial *));
    int n = 0;
    for (int i = 0; i < s->n_trials; i++) { /* others leave no block, and find none */
        struct trial *t = s->trials[i];
        if (t->n_prompt + t->n_tokens >= BLOCK_TOKENS)
            sorted[n++] = t;
        else
            BUG_IF(t->n_cached != 0);
    }
    qsort(sorted, (size_t)n, sizeof *sorted, by_first_block);
    for (int from = 0, to; from < n; from = to) {
        for (to = from + 1; to < n && by_first_block(&sorted[from], &sorted[to]) == 0;)
            to++;
        for (int i = from; i < to; i++)
            explain_prefix(s, sorted[i], sorted + from, to - from);
    }
    free(sorted);
    if (s->prefixes.n_found_tokens != stats->n_prefix_hit_tokens)
        BUG("requests found %" PRIu64 " tokens in the prefix cache, the engine says %" PRIu64,
            s->prefixes.n_found_tokens, stats->n_prefix_hit_tokens);
}

static void tell_prefixes(const struct soak *s)
{
    const struct prefixes *p = &s->prefixes;
    printf("prefix hits across contents: %d requests, %" PRIu64
           " tokens, of %d requests that found some of their prompt; of these %d had all bits "
           "compared with those of the prompt computed whole: %d differ\n",
           p->n_foreign, p->n_foreign_tokens, p->n_found, p->n_checked, p->n_wrong);
    if (p->n_found == 0 || p->n_offered == 0)
        printf("that says little: no request %s\n",
               p->n_found == 0 ? "found anything"
                               : "began like one under other contents for more than it found");
}

/* ---- memory ------------------------------------------------------------------------------ */

/* While nothing runs, which is when the device may be asked from here. */
static struct memory memory_now(struct soak *s)
{
    struct engine_stats e;
    struct backend_caps caps;
    engine_stats(s->engine, &e);
    s->engine->ops->caps(s->engine->be, &caps);
    return (struct memory){.adapter_bytes_used = e.adapter_bytes_used,
                           .adapter_bytes = e.adapter_bytes_total,
                           .kv_bytes = e.kv_bytes_total,
                           .host_bytes = e.adapter_host_bytes_used,
                           .brick_bytes = e.brick_bytes,
                           .n_blocks = e.n_blocks,
                           .n_blocks_free = e.n_blocks_free,
                           .n_loaded = e.n_adapters_loaded,
                           .n_resident = e.n_adapters_resident,
                           .tells_free = caps.own_memory,
                           .free_bytes = caps.memory_free_bytes};
}

static void tell_memory(const char *when, const struct memory *m)
{
    printf("memory %s: %d adapters on the device with %zu of %zu bytes, %d loaded with %zu of the "
           "host's; %d of %d KV blocks free, of %zu bytes; ",
           when, m->n_resident, m->adapter_bytes_used, m->adapter_bytes, m->n_loaded, m->host_bytes,
           m->n_blocks_free, m->n_blocks, m->kv_bytes);
    if (m->tells_free)
        printf("the device has %zu bytes free\n", m->free_bytes);
    else
        printf("the device has no memory of its own\n");
}

/* Where they share, what adapters and KV cache have together: the blocks that are counted are short
 * of it by less than a brick. */
static bool is_back(const struct memory *before, const struct memory *after)
{
    size_t had = before->adapter_bytes + before->kv_bytes,
           have = after->adapter_bytes + after->kv_bytes;
    bool totals = before->brick_bytes > 0
                      ? have < had + before->brick_bytes && had < have + before->brick_bytes
                      : before->adapter_bytes == after->adapter_bytes &&
                            before->n_blocks == after->n_blocks;
    return totals && after->adapter_bytes_used == before->adapter_bytes_used &&
           after->host_bytes == before->host_bytes && after->n_loaded == before->n_loaded &&
           after->n_resident == before->n_resident && after->n_blocks_free == after->n_blocks &&
           (!after->tells_free || after->free_bytes + DRIVER_BYTES >= before->free_bytes);
}

/* A loaded name, better one whose content is on the device. */
static int name_to_keep(const struct soak *s)
{
    int keep = -1;
    for (int i = 0; i < s->options.n_names; i++)
        if (s->names[i].loaded &&
            (keep < 0 || lora_pool_is_resident(s->engine->lora, &s->digests[s->names[i].content])))
            keep = i;
    return keep;
}

/* What can't be evicted is still on its way; or it stays, and check_memory says so. */
static void evict(struct soak *s, int content)
{
    struct err err = {0};
    for (int i = 0; i < 1000; i++) {
        if (engine_adapter_evict(s->engine, &s->digests[content], &err) == 0)
            return;
        if (err.code != ERR_BUSY)
            die("evicting an adapter", &err);
        usleep(1000);
    }
    printf("content %d stays on the device: %s\n", content, err.message);
}

/* Takes all adapters away, from the host and from the device, but for --sabotage-memory's. */
static void drop_all(struct soak *s)
{
    int keep = s->options.sabotage_memory ? name_to_keep(s) : -1;
    for (int i = 0; i < s->options.n_names; i++)
        if (s->names[i].loaded && i != keep)
            drop(s, s->names[i].content);
    for (int i = 0; i < s->options.n_contents; i++)
        if (keep < 0 || i != s->names[keep].content)
            evict(s, i);
}

static void check_memory(struct soak *s, const struct memory *before)
{
    wait_until_idle(s);
    struct memory after = memory_now(s);
    s->memory_is_back = is_back(before, &after);
    tell_memory("before", before);
    tell_memory("after ", &after);
    printf("memory is %s", s->memory_is_back ? "back where it began" : "NOT BACK where it began");
    if (after.tells_free)
        printf("; of the device's free memory %lld bytes went, %d may, to the driver",
               (long long)before->free_bytes - (long long)after.free_bytes, (int)DRIVER_BYTES);
    printf("\n");
}

/* ---- the churn in all -------------------------------------------------------------------- */

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
    struct memory before = memory_now(s);
    s->names = xcalloc((size_t)o->n_names, sizeof *s->names);
    for (int i = 0; i < o->n_names; i++)
        load(s, &s->names[i], below(s, o->n_contents));
    s->n_stops = s->config.vocab / 128 < 1 ? 1 : s->config.vocab / 128;
    s->n_stops = s->n_stops > STOPS_MAX ? STOPS_MAX : s->n_stops;
    for (int i = 0; i < s->n_stops; i++)
        s->stops[i] = below(s, s->config.vocab);
    look_prefixes_up_blindly = o->sabotage_prefixes;
    make_traffic(s);
    double took = seconds_since(s->pace.begin);
    look_prefixes_up_blindly = false;
    wait_until_idle(s);
    check_ends(s);
    drop_all(s);
    struct engine_stats stats;
    engine_stats(s->engine, &stats);
    check_prefixes(s, &stats);
    tell_churn(s, &stats, took);
    if (o->shared)
        check_moves(&stats);
    check_memory(s, &before);
    if (s->memory_is_back) /* or closing it might end all: it looks, too */
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
    s->n_verified += (uint64_t)t->n_tokens;
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
    s->prefixes.n_checked += t->n_cached > 0;
    s->prefixes.n_wrong += t->n_cached > 0 && !same;
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
    printf("exceptions: %d sequences, %" PRIu64 " tokens, of %" PRIu64 " verified\n", s->n_differ,
           s->n_wrong_tokens, s->n_verified);
    tell_prefixes(s);
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
         "  --changes N         of names, a second, by the clock; 0: one every 8 requests\n"
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
         "  --sabotage-prefixes find prefixes under any adapters: likewise\n"
         "  --sabotage-memory   leave an adapter where it is at the end: likewise\n"
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

static int small_number(const char *text)
{
    uint64_t n = number(text);
    if (n > INT_MAX / 64) {
        fprintf(stderr, "soak: %s is too much\n", text);
        exit(2);
    }
    return (int)n;
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
    } numbers[] = {
        {"--streams", &o.n_streams}, {"--names", &o.n_names},         {"--contents", &o.n_contents},
        {"--pool", &o.n_pool},       {"--rows", &o.n_rows},           {"--kv", &o.kv_tokens},
        {"--threads", &o.n_threads}, {"--regenerate", &o.regenerate}, {"--changes", &o.n_changes}};
    for (char **a = argv + 1; *a != NULL; a++) {
        size_t i = 0, n = sizeof numbers / sizeof numbers[0];
        while (i < n && strcmp(*a, numbers[i].name) != 0)
            i++;
        if (i < n)
            *numbers[i].value = small_number(*++a);
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
        else if (strcmp(*a, "--sabotage-prefixes") == 0)
            o.sabotage_prefixes = true;
        else if (strcmp(*a, "--sabotage-memory") == 0)
            o.sabotage_memory = true;
        else {
            help();
            exit(strcmp(*a, "--help") == 0 ? 0 : 2);
        }
    }
    o.n_rows = o.n_rows > 0 ? o.n_rows : 3 * o.n_streams;
    o.kv_tokens = o.kv_tokens > 0 ? o.kv_tokens : 40 * o.n_streams;
    if (bench_shape(o.shape) == NULL || o.n_streams < 1 || o.n_contents < 2 || o.n_pool < 1 ||
        o.n_names < (o.sabotage ? 3 : 2)) {
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
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC); /* clock_monotonic_us's */
    pthread_cond_init(&s.finished, &clock);
    pthread_condattr_destroy(&clock);
    struct monotonic_us begin = clock_monotonic_us();
    make_contents(&s);
    churn(&s);
    fflush(stdout);
    witness(&s);
    if (s.n_verified == 0) {
        fprintf(stderr, "soak: no token was generated: that shows nothing\n");
        return 2;
    }
    bool good = s.n_differ == 0 && s.prefixes.n_foreign == 0 && s.memory_is_back &&
                pace_was_reached(&s);
    printf("%s%s%s%s: shape %s on %s, seed %" PRIu64 ", %.1f s in all\n",
           s.n_differ == 0 ? "all the same" : "NOT THE SAME",
           s.prefixes.n_foreign == 0 ? "" : ", PREFIX HITS ACROSS CONTENTS",
           s.memory_is_back ? "" : ", MEMORY NOT BACK",
           pace_was_reached(&s) ? "" : ", TOO FEW CHANGES", s.options.shape, s.options.backend,
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
    return good ? 0 : 1;
}
