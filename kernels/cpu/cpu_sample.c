/* cpu_sample: from logits to a token, without sorting the vocabulary.
 *
 * The rules are those of ref_sample.c, word for word; what differs is that the sorted list of
 * candidates exists only as far as somebody looks. `ranking` produces its first n entries on
 * demand: it lowers a threshold below the maximum until at least n logits reach it (a vector
 * compare over the vocabulary each time, a few microseconds), selects the n best of those and sorts
 * them. A draw, a top-p cut or a list of top log-probabilities rarely looks beyond the first 64;
 * each further look takes eight times as many. Keys are (logit, id) in one integer and all
 * different, so the result is the one that a full sort gives.
 *
 * Sums over the whole vocabulary come from the f32 vector exponential, added up in f64; everything
 * that is compared with u, p or min_p afterwards is f64 libm, as in ref.
 *
 * One tile a row; a row's work doesn't depend on the others. */
#include "kernels/cpu/cpu.h"

#include "kernels/numeric.h"
#include "node/base/err.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_LOOK = 64, LOOK_GROWTH = 8 };

struct ranking {
    const struct isa *isa;
    const float *x; /* [vocab], no NaN, nothing above FLT_MAX */
    int vocab;
    float max;
    uint64_t *keys; /* [vocab]; the first n are the best n candidates in order */
    int32_t *ids;   /* [vocab], working space */
    int n;
};

struct row_memory { /* of one thread, for one row */
    float *tamed, *changed;
    int32_t *counts, *ids;
    uint64_t *keys;
};

static size_t row_memory_bytes(int vocab)
{
    return ((size_t)vocab + 16) * (2 * sizeof(float) + 2 * sizeof(int32_t) + sizeof(uint64_t));
}

static struct row_memory row_memory_at(void *memory, int vocab)
{
    size_t n = (size_t)vocab;
    struct row_memory m = {.keys = memory};
    m.tamed = (float *)(m.keys + n);
    m.changed = m.tamed + n;
    m.counts = (int32_t *)(m.changed + n);
    m.ids = m.counts + n;
    return m;
}

/* Greater key: better candidate. The usual map of f32 bits to ordered integers; -0 counts as 0. */
static uint64_t key_of(float logit, int32_t id)
{
    uint32_t u = f32_bits(logit == 0 ? 0.0f : logit);
    u = u & 0x80000000u ? ~u : u | 0x80000000u;
    return (uint64_t)u << 32 | (uint32_t)~id;
}

static int32_t key_id(uint64_t key)
{
    return (int32_t) ~(uint32_t)key;
}

static int key_descending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x > y ? -1 : x < y;
}

/* Moves the n greatest of keys [0, n_keys) to the front, in any order (Hoare's quickselect, pivot
 * the median of three). */
static void keys_select(uint64_t *keys, int n_keys, int n)
{
    int low = 0, high = n_keys - 1;
    while (low < high) {
        uint64_t a = keys[low], b = keys[low + (high - low) / 2], c = keys[high];
        uint64_t pivot = a > b ? (b > c ? b : a > c ? c : a) : (a > c ? a : b > c ? c : b);
        int i = low, j = high;
        while (i <= j) {
            while (keys[i] > pivot)
                i++;
            while (keys[j] < pivot)
                j--;
            if (i <= j) {
                uint64_t swap = keys[i];
                keys[i++] = keys[j];
                keys[j--] = swap;
            }
        }
        if (n - 1 <= j)
            high = j;
        else if (n - 1 >= i)
            low = i;
        else
            return;
    }
}

/* Makes the first n (<= vocab) candidates known. */
static void ranking_extend(struct ranking *r, int n)
{
    if (n <= r->n)
        return;
    float threshold = r->max, below = 0.02f;
    int found = r->isa->indices_at_least(r->ids, r->vocab, r->x, r->vocab, threshold);
    while (found < n) {
        threshold = below < 1e6f ? r->max - below : -INFINITY;
        below *= 2;
        found = r->isa->indices_at_least(r->ids, r->vocab, r->x, r->vocab, threshold);
    }
    for (int i = 0; i < found; i++)
        r->keys[i] = key_of(r->x[r->ids[i]], r->ids[i]);
    keys_select(r->keys, found, n);
    qsort(r->keys, (size_t)n, sizeof *r->keys, key_descending);
    r->n = n;
}

static int32_t ranking_id(struct ranking *r, int i)
{
    if (i >= r->n) {
        int64_t n = r->n == 0 ? FIRST_LOOK : (int64_t)r->n * LOOK_GROWTH;
        n = n > i ? n : i + 1;
        ranking_extend(r, n < r->vocab ? (int)n : r->vocab);
    }
    return key_id(r->keys[i]);
}

static float tame(float logit)
{
    if (isnan(logit))
        return -INFINITY;
    return logit > FLT_MAX ? FLT_MAX : logit;
}

/* The logits as ref reads them: the row itself when it is sane (the sum tells), else a tamed copy.
 * Gives the maximum, and the sum of exp(logit - maximum). */
static const float *row_tamed(const struct isa *isa, const float *row, int vocab, float *copy,
                              float *max, double *sum)
{
    *max = isa->max(row, vocab);
    *sum = isa->sum_exp(row, vocab, *max, 1);
    if (!isnan(*sum) && *max <= FLT_MAX)
        return row;
    for (int i = 0; i < vocab; i++)
        copy[i] = tame(row[i]);
    *max = isa->max(copy, vocab);
    *sum = *max == -INFINITY ? 0 : isa->sum_exp(copy, vocab, *max, 1);
    return copy;
}

static void logprobs(struct sample_result *out, struct ranking *r, double sum, int32_t token,
                     int32_t n_top)
{
    BUG_IF(token < 0 || token >= r->vocab || n_top < 0 || n_top > SAMPLE_TOP_MAX);
    double log_sum = r->max == -INFINITY ? 0 : (double)r->max + log(sum);
    out->token = token;
    out->logprob = (float)((double)r->x[token] - log_sum);
    out->n_top = n_top < r->vocab ? n_top : r->vocab;
    ranking_extend(r, out->n_top);
    for (int i = 0; i < out->n_top; i++) {
        out->top_ids[i] = ranking_id(r, i);
        out->top_logprobs[i] = (float)((double)r->x[out->top_ids[i]] - log_sum);
    }
}

static bool history_changes(const struct sample_params *p, const struct sample_history *h)
{
    return h != NULL &&
           (h->n_bias > 0 || (h->tokens != NULL && h->n_tokens > 0 &&
                              (p->repetition_penalty != 1 || p->frequency_penalty != 0 ||
                               p->presence_penalty != 0)));
}

/* logits [vocab] is changed in place. counts [vocab] working space: 1 + occurrences in the output
 * of each token seen anywhere. */
static void penalise(float *logits, int32_t *counts, int vocab, const struct sample_params *p,
                     const struct sample_history *h)
{
    if (h->tokens != NULL) {
        memset(counts, 0, (size_t)vocab * sizeof *counts);
        for (int i = 0; i < h->n_tokens; i++) {
            BUG_IF(h->tokens[i] < 0 || h->tokens[i] >= vocab);
            counts[h->tokens[i]] += i >= h->n_prompt;
        }
        for (int i = 0; i < h->n_tokens; i++) {
            int32_t id = h->tokens[i], n_output = counts[id];
            if (n_output < 0)
                continue; /* done at its first occurrence */
            counts[id] = -1;
            if (p->repetition_penalty != 1)
                logits[id] = logits[id] > 0 ? logits[id] / p->repetition_penalty
                                            : logits[id] * p->repetition_penalty;
            if (n_output > 0) {
                logits[id] -= p->frequency_penalty * (float)n_output;
                logits[id] -= p->presence_penalty;
            }
        }
    }
    for (int i = 0; i < h->n_bias; i++) {
        BUG_IF(h->bias_ids[i] < 0 || h->bias_ids[i] >= vocab);
        logits[h->bias_ids[i]] += h->bias_values[i];
    }
    for (int i = 0; i < vocab; i++)
        logits[i] = tame(logits[i]);
}

/* exp((logit of candidate i - best) / temperature) */
static double mass_of(struct ranking *r, int i, float temperature)
{
    return exp(((double)r->x[ranking_id(r, i)] - (double)r->max) / (double)temperature);
}

static double mass_of_all(const struct ranking *r, float temperature)
{
    float inverse = 1.0f / temperature;
    if (isfinite(inverse))
        return r->isa->sum_exp(r->x, r->vocab, r->max, inverse);
    double sum = 0;
    for (int i = 0; i < r->vocab; i++)
        sum += exp(((double)r->x[i] - (double)r->max) / (double)temperature);
    return sum;
}

static int32_t draw(struct ranking *r, const struct sample_params *p)
{
    if (r->max == -INFINITY)
        return 0;
    if (p->temperature == 0) {
        int32_t best;
        r->isa->indices_at_least(&best, 1, r->x, r->vocab, r->max);
        return best;
    }
    int n = r->vocab;
    double sum = 0, kept = 0;
    if (p->top_k > 0 && p->top_k < r->vocab) {
        n = p->top_k;
        ranking_extend(r, n);
        for (int i = 0; i < n; i++)
            sum += mass_of(r, i, p->temperature);
    } else {
        sum = mass_of_all(r, p->temperature);
    }
    if (p->top_p < 1) {
        int m = 0;
        for (; m < n && (m == 0 || kept < (double)p->top_p * sum); m++) {
            double mass = mass_of(r, m, p->temperature);
            if (mass == 0) /* the sum was rounded up: nothing can add to it any more */
                break;
            kept += mass;
        }
        n = m;
        sum = kept;
    }
    if (p->min_p > 0) {
        int m = 1;
        double mass;
        for (kept = 1; m < n && (mass = mass_of(r, m, p->temperature)) >= (double)p->min_p; m++)
            kept += mass;
        n = m;
        sum = kept;
    }
    double target = (double)ops_uniform(p->seed, p->position) * sum, cumulative = 0;
    int32_t id = ranking_id(r, 0);
    for (int i = 0; i < n; i++) {
        double mass = mass_of(r, i, p->temperature);
        if (mass == 0)
            break;
        id = ranking_id(r, i);
        cumulative += mass;
        if (cumulative > target)
            break;
    }
    return id;
}

struct sample_job {
    struct backend *be;
    struct sample_result *results;
    const float *logits;
    int vocab;
    const struct sample_params *params;   /* NULL: score */
    const struct sample_history *history; /* or NULL */
    const int32_t *tokens, *n_top;        /* score */
};

static void sample_tile(void *context, int i, int thread)
{
    const struct sample_job *job = context;
    const struct isa *isa = job->be->isa;
    const int vocab = job->vocab;
    struct row_memory memory = row_memory_at(job->be->of_thread[thread].memory, vocab);
    float max;
    double sum;
    const float *row = row_tamed(isa, job->logits + (size_t)i * (size_t)vocab, vocab, memory.tamed,
                                 &max, &sum);
    struct ranking raw = {isa, row, vocab, max, memory.keys, memory.ids, 0};
    if (job->params == NULL) {
        logprobs(&job->results[i], &raw, sum, job->tokens[i],
                 job->n_top != NULL ? job->n_top[i] : 0);
        return;
    }
    const struct sample_params *p = &job->params[i];
    const struct sample_history *h = job->history != NULL ? &job->history[i] : NULL;
    int32_t token;
    if (history_changes(p, h)) {
        memcpy(memory.changed, row, (size_t)vocab * sizeof *row);
        penalise(memory.changed, memory.counts, vocab, p, h);
        struct ranking changed = {
            isa,         memory.changed, vocab, isa->max(memory.changed, vocab),
            memory.keys, memory.ids,     0};
        token = draw(&changed, p);
    } else {
        token = draw(&raw, p);
    }
    if (history_changes(p, h))
        raw.n = 0; /* the other ranking used the same memory */
    logprobs(&job->results[i], &raw, sum, token, p->n_top);
}

static void sample_run(struct sample_job *job, int n)
{
    BUG_IF(job->vocab < 1);
    threads_reserve(job->be, row_memory_bytes(job->vocab));
    tiles_run(job->be, n, (double)n * job->vocab, sample_tile, job);
}

void cpu_sample(struct backend *be, struct sample_result *results, struct devptr tokens,
                struct devptr logits, int n, int vocab, const struct sample_params *params,
                const struct sample_history *history)
{
    struct sample_job job = {.be = be,
                             .results = results,
                             .logits = (const float *)logits.addr,
                             .vocab = vocab,
                             .params = params,
                             .history = history};
    sample_run(&job, n);
    for (int i = 0; tokens.addr != 0 && i < n; i++)
        ((int32_t *)tokens.addr)[i] = results[i].token;
}

void cpu_score(struct backend *be, struct sample_result *results, struct devptr logits, int n,
               int vocab, const int32_t *tokens, const int32_t *n_top)
{
    struct sample_job job = {.be = be,
                             .results = results,
                             .logits = (const float *)logits.addr,
                             .vocab = vocab,
                             .tokens = tokens,
                             .n_top = n_top};
    sample_run(&job, n);
}
