/* service: where tokens become receipts. Joins the engine and the ledger (DESIGN section 6).
 *
 *   http thread    parsed request, admitted -> service_answer: name resolved, template, tokenizer
 *   store thread   the same for an adapter that isn't in host memory yet: the resolver brings it
 *   service thread everything else: submits, detokenises, matches stop strings, forms chunks,
 *                  bills, commits, and after the commit sends the last chunk with the receipt
 *   engine thread  only copies its events into the service's inbox
 *   ledger thread  only copies the receipt into it
 *
 * What is billed is what was written. A streamed token counts when the socket has taken the event
 * that carries it; the commit waits until everything has left, or the client has. An answer that
 * isn't streamed counts whole, and is committed before it is sent. A client that vanished before
 * anything was written is billed nothing. If the ledger can't write, the request fails: there is no
 * success without a receipt.
 *
 * What counts against a customer's limits of tokens is what was computed for it: also what a client
 * didn't wait for, or had no time for, or it could have the node compute for nothing. A prompt
 * whose first token hasn't come yet doesn't count then; nor does anything where the node failed.
 *
 * A payer's Request says what its answer may cost at most. That bounds its tokens before the first
 * is computed: all choices together get as many as the fee is enough for, exactly, and then end
 * with "length" as by max_tokens. */
#ifndef TRIBUTARY_NODE_SERVICE_H
#define TRIBUTARY_NODE_SERVICE_H

#include "node/base/amount.h"
#include "node/base/clock.h"
#include "node/base/digest.h"
#include "node/openai_request.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct api_error;
struct engine;
struct engine_event;
struct err;
struct http_exchange;
struct ledger;
struct metrics;
struct service;

enum { SERVICE_NAME_BYTES = 160 };

/* What a model's name stands for. */
struct resolved {
    char name[SERVICE_NAME_BYTES]; /* the name that answers carry */
    bool is_base;
    struct content_digest content; /* loaded in the engine until released */
    struct adapter_id id;          /* all zero: nowhere registered */
    void *handle;                  /* the resolver's own */
};

/* The answer to a resolve: out, which is valid during the call and of which the adapter stays
 * loaded until released; or NULL, and *err says why. ERR_NOT_FOUND: nobody has it (404). */
typedef void service_resolved_fn(void *user, const struct resolved *out, const struct err *err);

/* Finds adapters. resolve doesn't block: it calls done once, before it returns or later from
 * another thread, which may be after a download; customer: for whom, so that none takes all that
 * can be fetched at a time; holder: 0, or other adapters are held until done is called, so that
 * what is waited for must not wait for them: by one at a time, each with a greater number than
 * those before it, which hold nothing any more. give_up: who asked with this user waits no more;
 * done is called all the same, and soon, so that the wait takes no place among those that may
 * fetch. release must not block. fits says whether adapters (n > 0, all different, asked for as
 * `models`) can be loaded at the same time, whoever else leaves, ERR_TOO_LARGE if not; and whether
 * they would be in the way of somebody who has been waiting since before `since` (0: no matter),
 * ERR_BUSY if so. One without a handle was released, and its name may mean another by now. list
 * appends model objects to /v1/models; show returns one of them, or NULL; these three and give_up
 * may be NULL. */
struct service_resolver {
    void (*resolve)(void *context, const char *model, uint64_t customer, uint64_t holder,
                    service_resolved_fn *done, void *user);
    void (*give_up)(void *context, void *user);
    void (*release)(void *context, const struct resolved *r);
    int (*fits)(void *context, const char *const *models, const struct resolved *adapters, size_t n,
                struct monotonic_us since, struct err *err);
    void (*list)(void *context, json_t *models, size_t max); /* not beyond max in the array */
    json_t *(*show)(void *context, const char *model);
    void *context;
};

struct service_options {
    const char *base_name;      /* what clients call the base model */
    int64_t max_tokens;         /* a request may not ask for more; 0: no limit but the context */
    int64_t default_max_tokens; /* for chat requests that name none; 0: what the context holds */
    uint64_t max_time_ms;       /* for a whole answer: none may ask for more, and who asks for
                                   nothing gets it; 0: no limit */
    struct service_resolver resolver; /* resolve NULL: only the base model */
    struct metrics *metrics;          /* may be NULL; outlives the service */
};

/* Strings are copied. The service takes no requests before service_start. */
struct service *service_create(const struct service_options *options);
/* For engine_options.on_events, with the service as context. */
void service_on_events(void *service, const struct engine_event *events, size_t n);
/* engine and ledger must live until service_stop has returned. */
int service_start(struct service *s, struct engine *engine, struct ledger *ledger, struct err *err);
/* Refuses new requests, cancels what runs, bills what was written, joins the threads. */
void service_stop(struct service *s);
/* After service_stop and engine_close, and when the resolver has told all it was asked: an answer
 * may be gone (out of time) before its adapter comes. Quiet on NULL. */
void service_free(struct service *s);

/* Who asks, and what to tell when the answer has ended. */
struct service_customer {
    uint64_t key_tag;
    bool has_max_fee; /* a payer's Request, let in by the ledger: the answer may cost max_fee */
    struct amount max_fee;
    uint64_t payer;     /* whose share of the engine this takes; see engine_request */
    float payer_weight; /* 0: 1 */
    int32_t priority;
    /* Once, when it is known which adapters the request asks for (n > 0, all different, loaded):
     * whether they may be had now; -1 and *e refuses. Any thread. NULL: always. */
    int (*admit)(void *context, const struct resolved *adapters, size_t n, struct api_error *e);
    void (*done)(void *context, uint64_t n_tokens); /* once, any thread; n_tokens: see above */
    void *context;
};

/* Answers x. request is moved from (its memory is the service's afterwards, whatever happens).
 * Any thread; does not block. */
void service_answer(struct service *s, struct http_exchange *x, struct openai_request *request,
                    const struct service_customer *customer);

/* {"object":"list","data":[...]} / one model, or NULL (ERR_NOT_FOUND). */
json_t *service_models(struct service *s, size_t max); /* max: in the list; 0: all */
json_t *service_model(struct service *s, const char *name, struct err *err);

/* In how many seconds, 1 to 60, a request that finds the queue full may find a place: what waits
 * now, at the pace at which sequences have ended lately. An estimate; any thread. */
unsigned service_retry_after_s(struct service *s);

/* What computes, for people: version, backend, weights and the beginning of the model's id as
 * receipts have it: "0.1.0-cpu-AVX2-int8-edff317f45a6". Answers carry it as system_fingerprint; two
 * answers with the same were computed in the same way. After service_start. */
const char *service_fingerprint(const struct service *s);

struct service_stats {
    size_t n_answers; /* being answered */
    size_t n_loading; /* of these, waiting for an adapter */
    uint64_t n_receipts, n_failed, n_vanished;
    uint64_t stalled_ms; /* work waits and the service thread doesn't take it; 0: fine */
};
void service_stats(struct service *s, struct service_stats *out);

#endif
