/* health: is the node alive, and does it make progress?
 *
 * Ready means: a request that comes now is answered and receipted. A part that has work and hasn't
 * moved for STALLED_MS is not ready; one that has no work may sleep as long as it likes. */
#include "node/node.h"

#include "attribution/attribution.h"
#include "engine/engine.h"
#include "node/adapter_store.h"
#include "node/admission.h"
#include "node/base/hex.h"
#include "node/config.h"
#include "node/http.h"
#include "node/json_util.h"
#include "node/metrics.h"
#include "node/service.h"

#include <stdio.h>

enum { STALLED_MS = 30000, MODELS_MAX = 100 };

bool health_ready(struct node *n, char reason[256])
{
    reason[0] = '\0';
    if (atomic_load(&n->draining)) {
        snprintf(reason, 256, "shutting down");
        return false;
    }
    if (!atomic_load(&n->opened)) {
        snprintf(reason, 256, "the model is being loaded");
        return false;
    }
    struct engine_stats e;
    engine_stats(n->engine, &e);
    uint64_t idle_ms = clock_elapsed_us(e.progress, clock_monotonic_us()) / 1000;
    if (e.n_running + e.n_waiting > 0 && idle_ms >= STALLED_MS) {
        snprintf(reason, 256, "the engine has %d sequences and has not moved for %llu s",
                 e.n_running + e.n_waiting, (unsigned long long)(idle_ms / 1000));
        return false;
    }
    struct service_stats s;
    service_stats(n->service, &s);
    if (s.stalled_ms >= STALLED_MS) {
        snprintf(reason, 256, "the service thread has not moved for %llu s",
                 (unsigned long long)(s.stalled_ms / 1000));
        return false;
    }
    struct ledger_health l;
    ledger_health(n->ledger, &l);
    snprintf(reason, 256, "%s", l.reason);
    return l.ready;
}

static json_t *engine_status(const struct node *n)
{
    static const char *const distinct[ENGINE_ENTROPY_BUCKETS] = {"0",   "1",    "2",     "3",  "4",
                                                                 "5-8", "9-16", "17-64", "65+"};
    struct engine_stats e;
    engine_stats(n->engine, &e);
    json_t *steps = json_object();
    for (int i = 0; i < ENGINE_ENTROPY_BUCKETS; i++)
        json_object_set_new(steps, distinct[i], json_integer((json_int_t)e.steps_by_distinct[i]));
    return json_pack(
        "{s:s, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:i, s:i, s:i, s:I, s:I, s:i, s:i, s:I, s:I, "
        "s:I, s:I, s:I, s:o}",
        "backend", engine_model(n->engine)->backend, "steps", (json_int_t)e.n_steps, "decodeSteps",
        (json_int_t)e.n_decode_steps, "prefillRows", (json_int_t)e.n_rows_prefill, "decodeRows",
        (json_int_t)e.n_rows_decode, "preemptions", (json_int_t)e.n_preemptions, "running",
        e.n_running, "waiting", e.n_waiting, "kvBlocks", e.n_blocks, "kvBlocksFree",
        e.n_blocks_free, "kvBlocksCached", e.n_blocks_cached, "prefixHitTokens",
        (json_int_t)e.n_prefix_hit_tokens, "prefixMissTokens", (json_int_t)e.n_prefix_miss_tokens,
        "adaptersResident", e.n_adapters_resident, "adaptersLoaded", e.n_adapters_loaded,
        "adapterBytesUsed", (json_int_t)e.adapter_bytes_used, "adapterBytesTotal",
        (json_int_t)e.adapter_bytes_total, "kvBytesTotal", (json_int_t)e.kv_bytes_total,
        "bytesMovedToKv", (json_int_t)(e.n_bricks_to_kv * e.brick_bytes), "bytesMovedToAdapters",
        (json_int_t)(e.n_bricks_to_adapters * e.brick_bytes), "stepsByDistinctAdapters", steps);
}

/* Where the adapters are, and how well that goes: the numbers of /metrics, in short. */
static json_t *adapters_status(const struct node *n)
{
    struct adapter_store_stats s;
    adapter_store_stats(n->adapters, &s);
    json_t *o = json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "local",
                          (json_int_t)s.n_local, "pinned", (json_int_t)s.n_pinned, "inUse",
                          (json_int_t)s.n_in_use, "waiting", (json_int_t)s.n_waiting, "loads",
                          (json_int_t)s.n_loads, "fetches", (json_int_t)s.n_fetches, "failed",
                          (json_int_t)s.n_failed, "hostBytesTotal", (json_int_t)s.host_bytes_total);
    for (int t = 0; t < N_TIERS; t++) {
        uint64_t count, sum_us;
        metrics_read(n->metrics, METRICS_ADAPTER_SECONDS + (unsigned)t, &count, &sum_us);
        json_t *tier = json_pack("{s:I, s:I, s:I, s:I}", "adapters", (json_int_t)s.n_adapters[t],
                                 "bytes", (json_int_t)s.bytes[t], "requests", (json_int_t)s.hits[t],
                                 "evictions", (json_int_t)s.evictions[t]);
        json_object_set_new(tier, "meanReadyMs",
                            count > 0 ? json_real((double)sum_us / (double)count / 1e3)
                                      : json_null());
        json_object_set_new(o, adapter_tier_name((enum adapter_tier)t), tier);
    }
    return o;
}

static void set_address(json_t *o, const char *key, struct address a)
{
    char hex[43];
    json_object_set_new(o, key, json_string(hex_encode_0x(hex, a.bytes, 20)));
}

static json_t *ledger_status(const struct node *n)
{
    struct ledger_health h;
    ledger_health(n->ledger, &h);
    json_t *o = json_pack(
        "{s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "ready", h.ready, "queue",
        (json_int_t)h.queue_len, "receipts", (json_int_t)h.receipts, "commitGroups",
        (json_int_t)h.commit_groups, "commitErrors", (json_int_t)h.commit_errors,
        "unsealedReceipts", (json_int_t)h.unsealed_receipts, "batchesSealed",
        (json_int_t)h.batches_sealed, "batchesSubmitted", (json_int_t)h.batches_submitted,
        "batchesFinal", (json_int_t)h.batches_final, "outboxWaiting", (json_int_t)h.outbox_waiting);
    json_object_set_new(o, "reason", h.reason[0] != '\0' ? json_text(h.reason) : json_null());
    set_address(o, "operator", ledger_operator(n->ledger));
    set_address(o, "signer", ledger_signer(n->ledger));
    set_address(o, "house", ledger_house(n->ledger));
    return o;
}

static json_t *chain_status(const struct node *n)
{
    struct ledger_chain c = ledger_chain_of(n->ledger);
    struct ledger_health h;
    ledger_health(n->ledger, &h);
    json_t *o = json_object();
    json_object_set_new(o, "chainId", json_integer((json_int_t)c.chain_id));
    json_object_set_new(o, "configured", json_boolean(h.chain_configured));
    json_object_set_new(o, "endpointAnswers", json_boolean(h.endpoint_answers));
    if (h.chain_configured) {
        char text[AMOUNT_TEXT_BYTES];
        set_address(o, "stakeManager", c.stake_manager);
        set_address(o, "adapterRegistry", c.adapter_registry);
        set_address(o, "escrow", c.escrow);
        set_address(o, "attributionLedger", c.attribution_ledger);
        json_object_set_new(o, "houseBalance",
                            h.house_known ? json_string(amount_format(text, h.house_balance))
                                          : json_null());
        json_object_set_new(o, "houseShort", json_string(amount_format(text, h.house_short)));
    }
    return o;
}

json_t *health_status(struct node *n)
{
    char reason[256], hex[67], served[67];
    bool ready = health_ready(n, reason);
    const struct engine_model *m = engine_model(n->engine);
    struct service_stats s;
    service_stats(n->service, &s);
    struct metrics_totals t;
    metrics_totals(n->metrics, &t);
    json_t *models = service_models(n->service, MODELS_MAX);
    json_t *o = json_object();
    json_object_set_new(o, "version", json_string(TRIBUTARY_VERSION));
    json_object_set_new(o, "ready", json_boolean(ready));
    json_object_set_new(o, "reason", reason[0] != '\0' ? json_text(reason) : json_null());
    json_object_set_new(
        o, "uptimeMs",
        json_integer((json_int_t)(clock_elapsed_us(n->started, clock_monotonic_us()) / 1000)));
    json_object_set_new(
        o, "model",
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:i, s:i}", "name", m->name, "modelId",
                  hex_encode_0x(hex, m->id.bytes, 32), "weights", m->weights, "adapterDtype",
                  m->adapter_dtype, "receiptModelId", hex_encode_0x(served, m->served_id.bytes, 32),
                  "systemFingerprint", service_fingerprint(n->service), "parameters",
                  (json_int_t)m->n_params, "maxContext", m->max_context, "vocabulary", m->vocab));
    json_object_set_new(o, "requests",
                        json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "inFlight",
                                  (json_int_t)s.n_answers, "loading", (json_int_t)s.n_loading,
                                  "receipts", (json_int_t)s.n_receipts, "failed",
                                  (json_int_t)s.n_failed, "vanished", (json_int_t)s.n_vanished,
                                  "promptTokens", (json_int_t)t.tokens_prompt, "completionTokens",
                                  (json_int_t)t.tokens_completion));
    json_object_set_new(
        o, "connections",
        json_integer(n->http != NULL ? (json_int_t)http_n_connections(n->http) : 0));
    json_object_set_new(o, "models", json_incref(json_object_get(models, "data")));
    json_decref(models);
    json_object_set_new(o, "adapters", adapters_status(n));
    json_object_set_new(o, "engine", engine_status(n));
    json_object_set_new(o, "ledger", ledger_status(n));
    json_object_set_new(o, "chain", chain_status(n));
    return o;
}
