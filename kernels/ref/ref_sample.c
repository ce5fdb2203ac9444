/* ref_sample: from logits to a token, by sorting everything.
 *
 * What ops.h leaves open is decided here:
 *   - Logits that are no numbers are read as -inf, +inf as the largest finite f32, in sampling and
 *     in log-probabilities alike: a broken adapter gets an answer, never an index out of range.
 *   - Penalties and bias are f32 and applied token by token in the order of ops.h. The candidates
 *     are ordered after them and before the temperature, which therefore can't make ties.
 *   - Probabilities are exp((l - l_max) / temperature) in f64, relative to the best candidate; sums
 *     are f64 in candidate order. Each filter works on what the one before it left, renormalised:
 *     top-p's p is a share of the top-k candidates' mass, the draw's u a share of what remains.
 *     The best candidate always remains. min-p compares with the best candidate's probability.
 *   - Forbidden tokens (-inf) are no candidates; when every token is forbidden, id 0 is drawn.
 *   - Log-probabilities come from the logits as given, before penalties, bias and temperature. That
 *     of a token with logit -inf is -inf, also when there is no other. */
#include "kernels/ref/ref.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct candidate {
    float logit;
    int32_t id;
};

static int candidate_order(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static float tame(float logit)
{
    if (isnan(logit))
        return -INFINITY;
    return logit > FLT_MAX ? FLT_MAX : logit;
}

/* All tokens in candidate order, tamed; the caller frees. */
static struct candidate *candidates_sorted(const float *logits, int vocab)
{
    struct candidate *c = xcalloc((size_t)vocab, sizeof *c);
    for (int i = 0; i < vocab; i++)
        c[i] = (struct candidate){tame(logits[i]), i};
    qsort(c, (size_t)vocab, sizeof *c, candidate_order);
    return c;
}

/* Fills everything of r but the token itself: logprob of `token`, and the n_top best. */
static void logprobs(struct sample_result *r, const float *logits, int vocab, int32_t token,
                     int32_t n_top)
{
    BUG_IF(token < 0 || token >= vocab || n_top < 0 || n_top > SAMPLE_TOP_MAX);
    struct candidate *c = candidates_sorted(logits, vocab);
    double sum = 0;
    for (int i = 0; i < vocab; i++)
        sum += exp((double)c[i].logit - (double)c[0].logit);
    double log_sum = c[0].logit == -INFINITY ? 0 : (double)c[0].logit + log(sum);
    r->token = token;
    r->logprob = (float)((double)tame(logits[token]) - log_sum);
    r->n_top = n_top < vocab ? n_top : vocab;
    for (int i = 0; i < r->n_top; i++) {
        r->top_ids[i] = c[i].id;
        r->top_logprobs[i] = (float)((double)c[i].logit - log_sum);
    }
    free(c);
}

/* Penalties and bias. seen counts a token over prompt and output, output over the output alone. */
static void penalise(float *logits, int vocab, const struct sample_params *p,
                     const struct sample_history *h)
{
    if (h->tokens != NULL) {
        int *seen = xcalloc((size_t)vocab, sizeof *seen);
        int *output = xcalloc((size_t)vocab, sizeof *output);
        for (int i = 0; i < h->n_tokens; i++) {
            BUG_IF(h->tokens[i] < 0 || h->tokens[i] >= vocab);
            seen[h->tokens[i]]++;
            output[h->tokens[i]] += i >= h->n_prompt;
        }
        for (int i = 0; i < vocab; i++) {
            if (seen[i] > 0 && p->repetition_penalty != 1)
                logits[i] = logits[i] > 0 ? logits[i] / p->repetition_penalty
                                          : logits[i] * p->repetition_penalty;
            if (output[i] > 0) {
                logits[i] -= p->frequency_penalty * (float)output[i];
                logits[i] -= p->presence_penalty;
            }
        }
        free(seen);
        free(output);
    }
    for (int i = 0; i < h->n_bias; i++) {
        BUG_IF(h->bias_ids[i] < 0 || h->bias_ids[i] >= vocab);
        logits[h->bias_ids[i]] += h->bias_values[i];
    }
}

static int32_t draw(const struct candidate *c, int vocab, const struct sample_params *p)
{
    if (c[0].logit == -INFINITY)
        return 0;
    if (p->temperature == 0)
        return c[0].id;
    double *mass = xcalloc((size_t)vocab, sizeof *mass); /* mass[0] is 1 */
    int n = p->top_k > 0 && p->top_k < vocab ? p->top_k : vocab;
    double sum = 0, kept = 0;
    for (int i = 0; i < n; i++) {
        mass[i] = exp(((double)c[i].logit - (double)c[0].logit) / (double)p->temperature);
        sum += mass[i];
    }
    if (p->top_p < 1) {
        int m = 0;
        for (; m < n && (m == 0 || kept < (double)p->top_p * sum); m++)
            kept += mass[m];
        n = m;
        sum = kept;
    }
    if (p->min_p > 0) {
        int m = 1;
        for (kept = mass[0]; m < n && mass[m] >= (double)p->min_p * mass[0]; m++)
            kept += mass[m];
        n = m;
        sum = kept;
    }
    double target = (double)ops_uniform(p->seed, p->position) * sum, cumulative = 0;
    int32_t id = c[0].id;
    for (int i = 0; i < n && mass[i] > 0; i++) {
        id = c[i].id;
        cumulative += mass[i];
        if (cumulative > target)
            break;
    }
    free(mass);
    return id;
}

void ref_sample(struct backend *be, struct sample_result *results, struct devptr tokens,
                struct devptr logits, int n, int vocab, const struct sample_params *params,
                const struct sample_history *history)
{
    (void)be;
    float *changed = xcalloc((size_t)vocab, sizeof *changed);
    for (int i = 0; i < n; i++) {
        const float *row = ref_f32(logits) + (size_t)i * (size_t)vocab;
        for (int k = 0; k < vocab; k++)
            changed[k] = tame(row[k]);
        if (history != NULL)
            penalise(changed, vocab, &params[i], &history[i]);
        struct candidate *c = candidates_sorted(changed, vocab);
        int32_t token = draw(c, vocab, &params[i]);
        free(c);
        logprobs(&results[i], row, vocab, token, params[i].n_top);
        if (tokens.addr != 0)
            ((int32_t *)tokens.addr)[i] = token;
    }
    free(changed);
}

void ref_score(struct backend *be, struct sample_result *results, struct devptr logits, int n,
               int vocab, const int32_t *tokens, const int32_t *n_top)
{
    (void)be;
    for (int i = 0; i < n; i++)
        logprobs(&results[i], ref_f32(logits) + (size_t)i * (size_t)vocab, vocab, tokens[i],
                 n_top != NULL ? n_top[i] : 0);
}
