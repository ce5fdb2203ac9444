/* metrics: see metrics.h. Histograms have fixed buckets from 1 ms to 60 s; a request is counted
 * once, with atomics. Routes and models are small tables: a route is a constant of the router, a
 * model one of at most MODELS_MAX names, later ones go to METRICS_OTHERS. */
#include "node/metrics.h"

#include "attribution/attribution.h"
#include "engine/engine.h"
#include "node/adapter_store.h"
#include "node/admission.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/http.h"
#include "node/json_util.h"
#include "node/service.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUTES_MAX = 64, MODELS_MAX = 64, N_BUCKETS = 14 };

static const double bucket_seconds[N_BUCKETS] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                 0.25,  0.5,    1,     2.5,  5,     15,   60};

struct histogram {
    _Atomic uint64_t buckets[N_BUCKETS + 1];
    _Atomic uint64_t sum_us;
};

struct route {
    const char *pattern;
    uint64_t by_class[6]; /* 0: no answer; 1xx to 5xx */
};

struct model {
    char name[SERVICE_NAME_BYTES];
    uint64_t requests, prompt, completion;
};

struct metrics {
    struct histogram histograms[METRICS_N_HISTOGRAMS];
    pthread_mutex_t lock; /* the tables */
    struct route routes[ROUTES_MAX];
    size_t n_routes;
    struct model models[MODELS_MAX + 1]; /* the last one is METRICS_OTHERS */
    size_t n_models;
};

struct metrics *metrics_create(void)
{
    struct metrics *m = xcalloc(1, sizeof *m);
    pthread_mutex_init(&m->lock, NULL);
    return m;
}

void metrics_free(struct metrics *m)
{
    if (m == NULL)
        return;
    pthread_mutex_destroy(&m->lock);
    free(m);
}

void metrics_observe(struct metrics *m, enum metrics_histogram which, uint64_t us)
{
    if (m == NULL)
        return;
    struct histogram *h = &m->histograms[which];
    int i = 0;
    while (i < N_BUCKETS && (double)us > bucket_seconds[i] * 1e6)
        i++;
    atomic_fetch_add_explicit(&h->buckets[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_us, us, memory_order_relaxed);
}

void metrics_read(struct metrics *m, enum metrics_histogram which, uint64_t *n, uint64_t *sum_us)
{
    *n = *sum_us = 0;
    if (m == NULL)
        return;
    for (int i = 0; i <= N_BUCKETS; i++)
        *n += atomic_load(&m->histograms[which].buckets[i]);
    *sum_us = atomic_load(&m->histograms[which].sum_us);
}

void metrics_http(struct metrics *m, const char *pattern, unsigned status, uint64_t us)
{
    if (m == NULL)
        return;
    metrics_observe(m, METRICS_HTTP_SECONDS, us);
    pthread_mutex_lock(&m->lock);
    size_t i = 0;
    while (i < m->n_routes && m->routes[i].pattern != pattern)
        i++;
    if (i == m->n_routes && i < ROUTES_MAX)
        m->routes[m->n_routes++].pattern = pattern;
    if (i < ROUTES_MAX)
        m->routes[i].by_class[status / 100 < 6 ? status / 100 : 5]++;
    pthread_mutex_unlock(&m->lock);
}

void metrics_tokens(struct metrics *m, const char *name, uint32_t prompt, uint32_t completion)
{
    if (m == NULL)
        return;
    pthread_mutex_lock(&m->lock);
    size_t i = 0;
    while (i < m->n_models && strcmp(m->models[i].name, name) != 0)
        i++;
    if (i == m->n_models && i < MODELS_MAX)
        snprintf(m->models[m->n_models++].name, sizeof m->models[i].name, "%s", name);
    struct model *one = &m->models[i < MODELS_MAX ? i : MODELS_MAX];
    one->requests++;
    one->prompt += prompt;
    one->completion += completion;
    pthread_mutex_unlock(&m->lock);
}

void metrics_totals(struct metrics *m, struct metrics_totals *out)
{
    *out = (struct metrics_totals){0};
    pthread_mutex_lock(&m->lock);
    for (size_t i = 0; i <= MODELS_MAX; i++) {
        out->requests += m->models[i].requests;
        out->tokens_prompt += m->models[i].prompt;
        out->tokens_completion += m->models[i].completion;
    }
    pthread_mutex_unlock(&m->lock);
}

/* ---- the page: Prometheus text exposition format 0.0.4 ------------------------------------------
 */

static void head(struct buf *b, const char *name, const char *type, const char *help)
{
    buf_appendf(b, "# HELP tributary_%s %s\n# TYPE tributary_%s %s\n", name, help, name, type);
}

static void one(struct buf *b, const char *name, const char *type, const char *help, double value)
{
    head(b, name, type, help);
    buf_appendf(b, "tributary_%s %.17g\n", name, value);
}

/* label: "" or "name=\"value\"". */
static void series(struct buf *b, const struct histogram *h, const char *name,
                   const char *label_text)
{
    const char *comma = label_text[0] != '\0' ? "," : "";
    uint64_t sum = 0;
    for (int i = 0; i < N_BUCKETS; i++) {
        sum += atomic_load(&h->buckets[i]);
        buf_appendf(b, "tributary_%s_bucket{%s%sle=\"%g\"} %llu\n", name, label_text, comma,
                    bucket_seconds[i], (unsigned long long)sum);
    }
    sum += atomic_load(&h->buckets[N_BUCKETS]);
    buf_appendf(b, "tributary_%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, label_text, comma,
                (unsigned long long)sum);
    const char *open = label_text[0] != '\0' ? "{" : "", *close = label_text[0] != '\0' ? "}" : "";
    buf_appendf(b, "tributary_%s_sum%s%s%s %.6f\ntributary_%s_count%s%s%s %llu\n", name, open,
                label_text, close, (double)atomic_load(&h->sum_us) / 1e6, name, open, label_text,
                close, (unsigned long long)sum);
}

static void histogram(struct buf *b, const struct histogram *h, const char *name, const char *help)
{
    head(b, name, "histogram", help);
    series(b, h, name, "");
}

/* A label's value is any UTF-8, with three escapes. What differs must stay different: two samples
 * with the same labels make Prometheus refuse the whole page. */
static void label(struct buf *b, const char *text)
{
    buf_append_byte(b, '"');
    for (size_t n = strlen(text); n > 0;) {
        size_t len = utf8_char_len(text, n);
        if (len == 0)
            buf_appendf(b, "\\\\x%02X", (unsigned)(unsigned char)*text);
        else if (*text == '\n')
            buf_append_str(b, "\\n");
        else if (*text == '"' || *text == '\\')
            buf_appendf(b, "\\%c", *text);
        else
            buf_append(b, text, len);
        len = len == 0 ? 1 : len;
        text += len;
        n -= len;
    }
    buf_append_byte(b, '"');
}

static void tables(struct metrics *m, struct buf *b)
{
    static const char *const classes[] = {"none", "1xx", "2xx", "3xx", "4xx", "5xx"};
    pthread_mutex_lock(&m->lock);
    head(b, "http_requests_total", "counter", "Requests answered, by route and class of status.");
    for (size_t i = 0; i < m->n_routes; i++) {
        for (int c = 0; c < 6; c++) {
            if (m->routes[i].by_class[c] > 0)
                buf_appendf(b, "tributary_http_requests_total{route=\"%s\",status=\"%s\"} %llu\n",
                            m->routes[i].pattern, classes[c],
                            (unsigned long long)m->routes[i].by_class[c]);
        }
    }
    static const char *const names[] = {"receipts_total", "prompt_tokens_total",
                                        "completion_tokens_total"};
    static const char *const helps[] = {"Requests with a receipt, by model.",
                                        "Prompt tokens billed, by model.",
                                        "Completion tokens billed, by model."};
    for (int k = 0; k < 3; k++) {
        head(b, names[k], "counter", helps[k]);
        for (size_t i = 0; i <= MODELS_MAX; i++) {
            const struct model *one_model = &m->models[i];
            if (one_model->requests == 0)
                continue;
            buf_appendf(b, "tributary_%s{model=", names[k]);
            label(b, i < MODELS_MAX ? one_model->name : METRICS_OTHERS);
            buf_appendf(b, "} %llu\n",
                        (unsigned long long)(k == 0   ? one_model->requests
                                             : k == 1 ? one_model->prompt
                                                      : one_model->completion));
        }
    }
    pthread_mutex_unlock(&m->lock);
}

/* Memory that adapters and the KV cache may share. */
static void memory_part(struct buf *b, const struct engine_stats *s)
{
    const struct {
        const char *name;
        size_t n_bytes;
        uint64_t n_bricks; /* that it got from the other */
    } sides[] = {{"kv", s->kv_bytes_total, s->n_bricks_to_kv},
                 {"adapters", s->adapter_bytes_total, s->n_bricks_to_adapters}};
    head(b, "engine_memory_bytes", "gauge", "Device memory for the KV cache and for adapters.");
    for (int i = 0; i < 2; i++)
        buf_appendf(b, "tributary_engine_memory_bytes{side=\"%s\"} %zu\n", sides[i].name,
                    sides[i].n_bytes);
    head(b, "engine_memory_moved_bytes_total", "counter",
         "Of this, what went from one to the other.");
    for (int i = 0; i < 2; i++)
        buf_appendf(b, "tributary_engine_memory_moved_bytes_total{to=\"%s\"} %llu\n", sides[i].name,
                    (unsigned long long)(sides[i].n_bricks * s->brick_bytes));
    one(b, "engine_kv_blocks_moved_total", "counter", "KV blocks in use that made way for that.",
        (double)s->n_blocks_moved);
}

static void engine_part(struct buf *b, const struct engine *e)
{
    static const char *const distinct[ENGINE_ENTROPY_BUCKETS] = {"0",   "1",    "2",     "3",  "4",
                                                                 "5-8", "9-16", "17-64", "65+"};
    struct engine_stats s;
    engine_stats(e, &s);
    one(b, "engine_steps_total", "counter", "Steps of the engine.", (double)s.n_steps);
    one(b, "engine_prefill_rows_total", "counter", "Prompt tokens computed.",
        (double)s.n_rows_prefill);
    one(b, "engine_decode_rows_total", "counter", "Tokens decoded.", (double)s.n_rows_decode);
    one(b, "engine_preemptions_total", "counter", "Sequences preempted.", (double)s.n_preemptions);
    one(b, "engine_adapter_uploads_total", "counter", "Adapters moved to the device.",
        (double)s.n_adapter_uploads);
    one(b, "engine_adapter_evictions_total", "counter", "Adapters evicted.",
        (double)s.n_adapter_evictions);
    one(b, "engine_sequences_running", "gauge", "Sequences running.", s.n_running);
    one(b, "engine_sequences_waiting", "gauge", "Sequences waiting.", s.n_waiting);
    one(b, "engine_kv_blocks", "gauge", "KV blocks in all.", s.n_blocks);
    one(b, "engine_kv_blocks_free", "gauge", "KV blocks that no sequence uses.", s.n_blocks_free);
    one(b, "engine_kv_blocks_cached", "gauge", "KV blocks in the prefix cache, used or not.",
        s.n_blocks_cached);
    one(b, "engine_prefix_hit_tokens_total", "counter",
        "Prompt tokens whose KV was found in the prefix cache.", (double)s.n_prefix_hit_tokens);
    one(b, "engine_prefix_miss_tokens_total", "counter",
        "Prompt tokens that were looked for there and had to be computed.",
        (double)s.n_prefix_miss_tokens);
    one(b, "engine_prefix_evictions_total", "counter", "KV blocks evicted from the prefix cache.",
        (double)s.n_prefix_evictions);
    one(b, "engine_adapters_resident", "gauge", "Adapters on the device.", s.n_adapters_resident);
    one(b, "engine_adapters_loaded", "gauge", "Adapters loaded.", s.n_adapters_loaded);
    one(b, "engine_adapter_bytes", "gauge", "Device memory used by adapters.",
        (double)s.adapter_bytes_used);
    memory_part(b, &s);
    one(b, "engine_last_step_seconds", "gauge", "Duration of the newest step.",
        (double)s.last_step_us / 1e6);
    head(b, "engine_decode_steps_total", "counter",
         "Decode steps, by how many distinct adapters they held.");
    for (int i = 0; i < ENGINE_ENTROPY_BUCKETS; i++)
        buf_appendf(b, "tributary_engine_decode_steps_total{adapters=\"%s\"} %llu\n", distinct[i],
                    (unsigned long long)s.steps_by_distinct[i]);
}

static void by_tier(struct buf *b, const char *name, const char *type, const char *help,
                    const uint64_t values[N_TIERS])
{
    head(b, name, type, help);
    for (int t = 0; t < N_TIERS; t++)
        buf_appendf(b, "tributary_%s{tier=\"%s\"} %llu\n", name,
                    adapter_tier_name((enum adapter_tier)t), (unsigned long long)values[t]);
}

static void adapters_part(struct metrics *m, struct buf *b, struct adapter_store *store)
{
    struct adapter_store_stats s;
    adapter_store_stats(store, &s);
    by_tier(b, "adapter_requests_total", "counter",
            "Requests for adapters, by the tier where the adapter was found.", s.hits);
    head(b, "adapter_ready_seconds", "histogram",
         "From a request to its adapter in host memory, by the tier where it was found.");
    for (int t = 0; t < N_TIERS; t++) {
        char text[32];
        snprintf(text, sizeof text, "tier=\"%s\"", adapter_tier_name((enum adapter_tier)t));
        series(b, &m->histograms[METRICS_ADAPTER_SECONDS + t], "adapter_ready_seconds", text);
    }
    uint64_t n[N_TIERS];
    for (int t = 0; t < N_TIERS; t++)
        n[t] = s.n_adapters[t];
    by_tier(b, "adapters", "gauge",
            "Adapters that are there; registry: names that the registries list.", n);
    by_tier(b, "adapter_tier_bytes", "gauge",
            "Bytes of adapters that are there; registry: unknown.", s.bytes);
    by_tier(b, "adapter_evictions_total", "counter", "Adapters that made room for others.",
            s.evictions);
    one(b, "adapter_host_bytes_limit", "gauge", "Host memory for adapters.",
        (double)s.host_bytes_total);
    one(b, "adapter_loads_total", "counter", "Adapters read into host memory.", (double)s.n_loads);
    one(b, "adapter_fetches_total", "counter", "Adapters fetched from registries.",
        (double)s.n_fetches);
    one(b, "adapter_failures_total", "counter", "Loads and fetches that failed.",
        (double)s.n_failed);
    one(b, "adapters_pinned", "gauge", "Adapters that are pinned.", (double)s.n_pinned);
    one(b, "adapters_in_use", "gauge", "Adapters that requests hold.", (double)s.n_in_use);
}

static void ledger_part(struct buf *b, struct ledger *l)
{
    struct ledger_health h;
    ledger_health(l, &h);
    one(b, "ledger_ready", "gauge", "1 when the ledger can write.", h.ready);
    one(b, "ledger_queue", "gauge", "Commits waiting.", (double)h.queue_len);
    one(b, "ledger_receipts_total", "counter", "Receipts written.", (double)h.receipts);
    one(b, "ledger_commit_groups_total", "counter", "Transactions that wrote receipts.",
        (double)h.commit_groups);
    one(b, "ledger_commit_errors_total", "counter", "Transactions that failed.",
        (double)h.commit_errors);
    one(b, "ledger_unsealed_receipts", "gauge",
        "Receipts on the configured chain that are in no batch, and not owed by their payers.",
        (double)h.unsealed_receipts);
    one(b, "ledger_batches_sealed_total", "counter", "Batches sealed.", (double)h.batches_sealed);
    one(b, "ledger_batches_final", "gauge", "Batches that are final on chain.",
        (double)h.batches_final);
    one(b, "publisher_outbox_waiting", "gauge", "Transactions that are not confirmed.",
        (double)h.outbox_waiting);
    one(b, "publisher_outbox_oldest_seconds", "gauge", "Age of the oldest of them.",
        (double)h.outbox_oldest_ms / 1000);
    one(b, "publisher_vouchers_held", "gauge", "Payers' vouchers that wait for funds in Escrow.",
        (double)h.vouchers_held);
    one(b, "chain_endpoint_up", "gauge", "1 when a chain is configured and answers.",
        h.chain_configured && h.endpoint_answers);
}

void metrics_render(struct metrics *m, struct buf *b, const struct metrics_sources *src)
{
    tables(m, b);
    histogram(b, &m->histograms[METRICS_HTTP_SECONDS], "http_request_seconds",
              "Duration of requests.");
    histogram(b, &m->histograms[METRICS_FIRST_TOKEN_SECONDS], "first_token_seconds",
              "From request to first token.");
    histogram(b, &m->histograms[METRICS_COMMIT_SECONDS], "receipt_commit_seconds",
              "From usage to its receipt on disk.");
    if (src->engine != NULL)
        engine_part(b, src->engine);
    if (src->adapters != NULL)
        adapters_part(m, b, src->adapters);
    if (src->ledger != NULL)
        ledger_part(b, src->ledger);
    if (src->service != NULL) {
        struct service_stats s;
        service_stats(src->service, &s);
        one(b, "requests_in_flight", "gauge", "Requests being answered.", (double)s.n_answers);
        one(b, "requests_loading", "gauge", "Requests waiting for an adapter.",
            (double)s.n_loading);
        one(b, "requests_failed_total", "counter",
            "Answers that failed, or were refused once their request was read.",
            (double)s.n_failed);
        one(b, "requests_vanished_total", "counter", "Requests whose client went away.",
            (double)s.n_vanished);
    }
    if (src->http != NULL)
        one(b, "http_connections", "gauge", "Open connections.",
            (double)http_n_connections(src->http));
    if (src->admission != NULL) {
        struct admission_stats s;
        admission_stats(src->admission, &s);
        head(b, "admission_refused_total", "counter", "Requests not let in, by reason.");
        buf_appendf(b,
                    "tributary_admission_refused_total{reason=\"rate\"} %llu\n"
                    "tributary_admission_refused_total{reason=\"concurrent\"} %llu\n"
                    "tributary_admission_refused_total{reason=\"tokens\"} %llu\n"
                    "tributary_admission_refused_total{reason=\"full\"} %llu\n"
                    "tributary_admission_refused_total{reason=\"share\"} %llu\n"
                    "tributary_admission_refused_total{reason=\"adapter\"} %llu\n",
                    (unsigned long long)s.refused_rate, (unsigned long long)s.refused_concurrent,
                    (unsigned long long)s.refused_tokens, (unsigned long long)s.refused_full,
                    (unsigned long long)s.refused_share, (unsigned long long)s.refused_adapter);
    }
}
