/* workload: see workload.h. Everything but the gamma and the normal variates goes through a
 * quantile function of one uniform number, so that a request costs a fixed number of draws of each
 * generator but the arrivals' one. */
#include "tests/bench/workload.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PUNICA_TOTAL = 2048, ADAPTERS_MAX = 1 << 24 };

/* A published length distribution; shape is the k of workload.h. */
struct curve {
    double low, p50, p90, high, mean;
};

/* Splitwise's table of the traces, as issue 4 quotes it. high is assumed: the contexts and answers
 * that models then took, and for code's answers so far out that the mean is twice the median. */
static const struct curve CONV_PROMPT = {1, 1020, 2735, 14000, 1155};
static const struct curve CONV_ANSWER = {1, 129, 424, 1000, 211};
static const struct curve CODE_PROMPT = {1, 1469, 5194, 7500, 2048};
static const struct curve CODE_ANSWER = {1, 13, 55, 1900, 28};

enum stream { ARRIVALS, ADAPTERS, PROMPTS, ANSWERS, PAYERS, STREAMS };

struct workload {
    struct workload_options o;
    uint64_t random[STREAMS];
    uint64_t n;
    double at_s;
    double *cumulative; /* [n_adapters] of the weights, the last 1; NULL: not needed */
};

/* ---- random numbers ---------------------------------------------------------------------- */

uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

double random_unit(uint64_t *state)
{
    return ((double)(random_next(state) >> 11) + 0.5) * 0x1p-53;
}

/* Box and Muller, one of the pair. */
static double random_normal(uint64_t *state)
{
    double radius = sqrt(-2 * log(random_unit(state)));
    return radius * cos(2 * 3.14159265358979323846 * random_unit(state));
}

/* Marsaglia and Tsang, ACM TOMS 26 (2000): by rejection for shapes from 1 on; below, a variate of
 * shape + 1 times U^(1 / shape). */
double random_gamma(uint64_t *state, double mean, double cv)
{
    double shape = 1 / (cv * cv), boost = 1;
    if (shape < 1)
        boost = pow(random_unit(state), 1 / shape);
    double d = (shape < 1 ? shape + 1 : shape) - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = random_normal(state), v = 1 + c * x;
        if (v <= 0)
            continue;
        v = v * v * v;
        if (log(random_unit(state)) < x * x / 2 + d * (1 - v + log(v)))
            return d * v * boost * mean / shape;
    }
}

/* ---- lengths ----------------------------------------------------------------------------- */

static double curve_quantile(const struct curve *c, double u)
{
    double starts = 0.5 * c->low + 0.4 * c->p50 + 0.1 * c->p90;
    double spans = 0.5 * (c->p50 - c->low) + 0.4 * (c->p90 - c->p50) + 0.1 * (c->high - c->p90);
    double k = spans / (c->mean - starts) - 1;
    if (u < 0.5)
        return c->low + (c->p50 - c->low) * pow(u / 0.5, k);
    if (u < 0.9)
        return c->p50 + (c->p90 - c->p50) * pow((u - 0.5) / 0.4, k);
    return c->p90 + (c->high - c->p90) * pow((u - 0.9) / 0.1, k);
}

static int between(int a, int b, double u) /* a to b inclusive */
{
    return a + (int)(u * (b - a + 1));
}

static void draw_lengths(struct workload *w, struct workload_request *r)
{
    const struct workload_options *o = &w->o;
    double u_prompt = random_unit(&w->random[PROMPTS]), u = random_unit(&w->random[ANSWERS]);
    switch (o->lengths) {
    case LENGTHS_FIXED:
        r->n_prompt = o->length_a;
        r->n_generate = o->length_b;
        break;
    case LENGTHS_UNIFORM:
        r->n_prompt = between(o->length_a, o->length_b, u_prompt);
        r->n_generate = between(o->length_a, o->length_b, u);
        break;
    case LENGTHS_PUNICA: {
        double prompt = 18 * exp(0.8 * random_normal(&w->random[PROMPTS])) - 1;
        prompt = prompt < 1 ? 1 : prompt > PUNICA_TOTAL - 2 ? PUNICA_TOTAL - 2 : prompt;
        r->n_prompt = (int)prompt;
        int total = between(0, PUNICA_TOTAL - 1, u);
        r->n_generate = total < r->n_prompt + 2 ? 2 : total - r->n_prompt;
        break;
    }
    case LENGTHS_AZURE_CONV:
        r->n_prompt = (int)lround(curve_quantile(&CONV_PROMPT, u_prompt));
        r->n_generate = (int)lround(curve_quantile(&CONV_ANSWER, u));
        break;
    case LENGTHS_AZURE_CODE:
        r->n_prompt = (int)lround(curve_quantile(&CODE_PROMPT, u_prompt));
        r->n_generate = (int)lround(curve_quantile(&CODE_ANSWER, u));
        break;
    }
    if (o->max_context > 0 && r->n_prompt > o->max_context - 1)
        r->n_prompt = o->max_context - 1;
    if (o->max_context > 0 && r->n_generate > o->max_context - r->n_prompt)
        r->n_generate = o->max_context - r->n_prompt;
}

/* ---- adapters ---------------------------------------------------------------------------- */

/* The first i with u < cumulative[i]. */
static int draw_weighted(const struct workload *w, double u)
{
    int low = 0, high = w->o.n_adapters - 1;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (u < w->cumulative[middle])
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static int draw_adapter(struct workload *w)
{
    int n = w->o.n_adapters, i = 0;
    double u = random_unit(&w->random[ADAPTERS]);
    if (n == 0)
        return -1;
    switch (w->o.popularity) {
    case POPULARITY_IDENTICAL:
        return 0;
    case POPULARITY_UNIFORM:
        i = (int)(u * n);
        break;
    case POPULARITY_ZIPF:
    case POPULARITY_PUNICA:
        return draw_weighted(w, u);
    case POPULARITY_POWER:
        i = (int)(pow(u, 1 / w->o.popularity_parameter) * n);
        break;
    case POPULARITY_DISTINCT:
        return (int)(w->n % (uint64_t)n);
    }
    return i < n ? i : n - 1;
}

static void sum_weights(struct workload *w)
{
    const struct workload_options *o = &w->o;
    double sum = 0, weight = 1;
    w->cumulative = xcalloc((size_t)o->n_adapters + 1, sizeof *w->cumulative);
    for (int i = 0; i < o->n_adapters; i++) {
        if (o->popularity == POPULARITY_ZIPF)
            weight = pow(i + 1, -o->popularity_parameter);
        w->cumulative[i] = sum += weight;
        if (o->popularity == POPULARITY_PUNICA)
            weight /= o->popularity_parameter;
    }
    for (int i = 0; i < o->n_adapters; i++)
        w->cumulative[i] /= sum;
}

/* ---- the workload ------------------------------------------------------------------------ */

static int check(const struct workload_options *o, struct err *err)
{
    bool has_parameter = o->popularity == POPULARITY_ZIPF || o->popularity == POPULARITY_POWER ||
                         o->popularity == POPULARITY_PUNICA;
    if (!(o->rate >= 0 && o->rate <= 1e6) || !(o->cv >= 0 && o->cv <= 100))
        return err_set(err, ERR_INVALID, "workload: rate %g or cv %g is out of range", o->rate,
                       o->cv);
    if (o->n_adapters < 0 || o->n_adapters > ADAPTERS_MAX || o->n_payers < 0 ||
        o->max_context < 0 || o->max_context == 1)
        return err_set(err, ERR_INVALID,
                       "workload: %d adapters, %d payers or a context of %d is out of range",
                       o->n_adapters, o->n_payers, o->max_context);
    if (has_parameter && !(o->popularity_parameter > 0 && o->popularity_parameter <= 100))
        return err_set(err, ERR_INVALID, "workload: popularity's parameter %g is out of range",
                       o->popularity_parameter);
    if (o->popularity == POPULARITY_PUNICA && o->popularity_parameter < 1)
        return err_set(err, ERR_INVALID, "workload: punica:%g, must be at least 1",
                       o->popularity_parameter);
    if ((o->lengths == LENGTHS_FIXED || o->lengths == LENGTHS_UNIFORM) &&
        (o->length_a < 1 || o->length_b < 1 ||
         (o->lengths == LENGTHS_UNIFORM && o->length_b < o->length_a)))
        return err_set(err, ERR_INVALID, "workload: lengths %d and %d are out of range",
                       o->length_a, o->length_b);
    return 0;
}

int workload_create(struct workload **out, const struct workload_options *options, struct err *err)
{
    if (check(options, err) != 0)
        return -1;
    struct workload *w = xcalloc(1, sizeof *w);
    w->o = *options;
    w->o.n_payers = options->n_payers > 0 ? options->n_payers : 1;
    uint64_t seed = options->seed;
    for (int i = 0; i < STREAMS; i++)
        w->random[i] = random_next(&seed);
    uint64_t adapter_seed = options->adapter_seed;
    if (adapter_seed != 0)
        w->random[ADAPTERS] = random_next(&adapter_seed);
    if (options->popularity == POPULARITY_ZIPF || options->popularity == POPULARITY_PUNICA)
        sum_weights(w);
    *out = w;
    return 0;
}

void workload_free(struct workload *w)
{
    if (w == NULL)
        return;
    free(w->cumulative);
    free(w);
}

void workload_next(struct workload *w, struct workload_request *out)
{
    const struct workload_options *o = &w->o;
    if (o->rate > 0)
        w->at_s += o->cv > 0 ? random_gamma(&w->random[ARRIVALS], 1 / o->rate, o->cv) : 1 / o->rate;
    *out = (struct workload_request){.number = w->n,
                                     .at_s = w->at_s,
                                     .adapter = draw_adapter(w),
                                     .payer = (int)(random_unit(&w->random[PAYERS]) * o->n_payers)};
    draw_lengths(w, out);
    w->n++;
}

/* ---- words ------------------------------------------------------------------------------- */

int workload_parse_popularity(struct workload_options *o, const char *text, struct err *err)
{
    static const struct {
        const char *name;
        enum workload_popularity kind;
        bool has_parameter;
    } words[] = {
        {"uniform", POPULARITY_UNIFORM, false},   {"identical", POPULARITY_IDENTICAL, false},
        {"distinct", POPULARITY_DISTINCT, false}, {"zipf", POPULARITY_ZIPF, true},
        {"power", POPULARITY_POWER, true},        {"punica", POPULARITY_PUNICA, true},
    };
    const char *colon = strchr(text, ':');
    size_t n_name = colon != NULL ? (size_t)(colon - text) : strlen(text);
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++) {
        char *end = NULL;
        if (strlen(words[i].name) != n_name || memcmp(words[i].name, text, n_name) != 0 ||
            words[i].has_parameter != (colon != NULL))
            continue;
        double parameter = colon != NULL ? strtod(colon + 1, &end) : 0;
        if (colon != NULL && (end == colon + 1 || *end != '\0'))
            break;
        o->popularity = words[i].kind;
        o->popularity_parameter = parameter;
        return 0;
    }
    return err_set(err, ERR_INVALID,
                   "popularity %s; there are uniform, identical, distinct, zipf:S, power:A and "
                   "punica:R",
                   text);
}

int workload_parse_lengths(struct workload_options *o, const char *text, struct err *err)
{
    static const struct {
        const char *name;
        enum workload_lengths kind;
    } words[] = {{"punica", LENGTHS_PUNICA},
                 {"azure-conv", LENGTHS_AZURE_CONV},
                 {"azure-code", LENGTHS_AZURE_CODE}};
    char word[16] = "";
    int a, b, n = -1;
    if (sscanf(text, "%15[a-z]:%d:%d%n", word, &a, &b, &n) == 3 && text[n] == '\0' &&
        (strcmp(word, "fixed") == 0 || strcmp(word, "uniform") == 0)) {
        o->lengths = word[0] == 'f' ? LENGTHS_FIXED : LENGTHS_UNIFORM;
        o->length_a = a;
        o->length_b = b;
        return 0;
    }
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcmp(text, words[i].name) == 0) {
            o->lengths = words[i].kind;
            return 0;
        }
    return err_set(err, ERR_INVALID,
                   "lengths %s; there are fixed:PROMPT:ANSWER, uniform:FROM:TO, punica, azure-conv "
                   "and azure-code",
                   text);
}
