/* service_billing: the end of an answer, on the service thread: what of it was written is counted,
 * becomes a usage, and goes to the ledger; with the receipt the last words go to the client. See
 * service.h for what is billed. */
#include "node/service_internal.h"

#include "attribution/attribution.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/log.h"
#include "node/base/sha256.h"
#include "node/metrics.h"

#include <stdlib.h>
#include <string.h>

/* How many ids of each choice have been written; counts [n_choices]. */
static void count_written(struct answer *a, size_t *counts)
{
    bool whole = !a->gone && !a->failed;
    uint64_t written = a->streaming ? http_stream_written(a->x) : 0;
    for (size_t i = 0; i < a->n_choices; i++)
        counts[i] = whole ? a->choices[i].ids.n : 0;
    for (size_t i = 0; i < a->n_marks && !whole && a->marks[i].end <= written; i++)
        counts[a->marks[i].choice] = a->marks[i].n_ids;
}

static struct sha256_digest response_hash(const struct answer *a, const size_t *counts)
{
    struct sha256 h;
    sha256_init(&h);
    for (size_t i = 0; i < a->n_choices; i++) {
        for (size_t k = 0; k < counts[i]; k++) {
            uint32_t id = (uint32_t)a->choices[i].ids.ids[k];
            uint8_t le[4] = {(uint8_t)id, (uint8_t)(id >> 8), (uint8_t)(id >> 16),
                             (uint8_t)(id >> 24)};
            sha256_update(&h, le, sizeof le);
        }
    }
    return sha256_final(&h);
}

void answer_usage_adapters(const struct answer *a, struct usage_adapter *out)
{
    for (size_t i = 0; i < a->n_adapters; i++)
        out[i] = (struct usage_adapter){a->models[i].id, a->models[i].content, a->shares[i]};
}

/* Why is for the log: it names files. */
static void no_receipt(struct answer *a, const struct err *err)
{
    log_error("service", "request %s: no receipt: %s", a->id, err->message);
    a->failed = true;
    a->tokens_prompt = a->tokens_billed = 0;
    a->tokens_computed = 0;
    api_error_set(&a->failure, err->code == ERR_BUSY ? ERR_BUSY : ERR_INTERNAL, NULL,
                  "the ledger can't give a receipt now, and without one there is no answer");
}

/* The last words to the client: what the commit has decided. */
static void send_result(struct answer *a)
{
    struct buf json = BUF_INIT;
    answer_tell_customer(a);
    if (a->gone) {
        /* nobody listens */
    } else if (!a->streaming) {
        if (a->failed) {
            api_error_reply(a->x, &a->failure);
        } else {
            format_body(&json, a);
            http_reply(a->x, 200, "application/json", &json);
        }
    } else {
        if (a->failed) {
            format_stream_error(&json, a);
            answer_send_event(a, &json, true);
        } else {
            for (size_t i = 0; i < a->n_choices; i++) {
                struct choice *c = &a->choices[i];
                bool last = i + 1 == a->n_choices;
                buf_reset(&json);
                format_chunk(&json, a, c, format_finish(c), last ? a->receipt : NULL);
                answer_send_event(a, &json, false);
            }
            if (a->request.include_usage) {
                buf_reset(&json);
                format_usage_chunk(&json, a);
                answer_send_event(a, &json, false);
            }
            static const struct buf done = {(uint8_t *)(uintptr_t) "[DONE]", 6, 7};
            answer_send_event(a, &done, true);
        }
        http_stream_end(a->x);
    }
    buf_release(&json);
    answer_finish(a);
}

void answer_committed(struct answer *a, char *receipt, const struct err *err)
{
    struct service *s = a->service;
    metrics_observe(s->opt.metrics, METRICS_COMMIT_SECONDS,
                    clock_elapsed_us(a->commit_began, clock_monotonic_us()));
    if (receipt != NULL) {
        a->receipt = receipt;
        atomic_fetch_add(&s->n_receipts, 1);
        /* Any two numbers make another ensemble: one label has to do for them. */
        metrics_tokens(s->opt.metrics, a->is_ensemble ? METRICS_ENSEMBLES : a->model_name,
                       a->tokens_prompt, a->tokens_billed);
    } else {
        no_receipt(a, err);
    }
    send_result(a);
}

static void on_committed(void *context, const struct ledger_receipt *receipt, const struct err *err)
{
    struct answer *a = context;
    struct err *copy = NULL;
    if (receipt == NULL) {
        copy = xmalloc(sizeof *copy);
        *copy = *err;
    }
    service_post(a->service, MESSAGE_COMMITTED, a,
                 receipt != NULL ? xstrndup(receipt->json, receipt->json_bytes) : NULL, copy);
}

void answer_commit(struct answer *a)
{
    struct service *s = a->service;
    a->state = ANSWER_COMMITTING;
    size_t *counts = xcalloc(a->n_choices, sizeof *counts);
    count_written(a, counts);
    uint64_t total = 0;
    for (size_t i = 0; i < a->n_choices; i++)
        total += counts[i];
    a->tokens_billed = (uint32_t)total;
    if (a->gone && (total == 0 || !a->streaming)) {
        free(counts);
        atomic_fetch_add(&s->n_vanished, 1);
        a->tokens_prompt = 0;
        a->tokens_billed = 0;
        answer_finish(a);
        return;
    }
    struct usage u = {
        .model = engine_model(s->engine)->served_id,
        .request_hash = a->request_hash,
        .response_hash = response_hash(a, counts),
        .finished = clock_unix_ms(),
        .tokens_prompt = a->tokens_prompt,
        .tokens_completion = a->tokens_billed,
        .n_adapters = (uint32_t)a->n_adapters,
        .key_tag = a->customer.key_tag,
    };
    free(counts);
    memcpy(u.request_id, http_request_id(a->x), 32);
    answer_usage_adapters(a, u.adapters);
    if (a->gone)
        atomic_fetch_add(&s->n_vanished, 1);
    a->commit_began = clock_monotonic_us();
    struct err err = {0};
    atomic_fetch_add(&a->refs, 1); /* the callback's */
    if (ledger_commit(s->ledger, &u, on_committed, a, &err) != 0) {
        atomic_fetch_sub(&a->refs, 1);
        no_receipt(a, &err);
        send_result(a);
    }
}
