/* service_internal: what the files of the service room share: service.c, answer_resolve.c,
 * answer_prepare.c, service_billing.c and service_names.c. Nobody else includes it. */
#ifndef TRIBUTARY_NODE_SERVICE_INTERNAL_H
#define TRIBUTARY_NODE_SERVICE_INTERNAL_H

#include "engine/engine.h"
#include "node/answer.h"
#include "node/base/usage.h"
#include "node/http.h"
#include "node/pace.h"
#include "node/service.h"

#include <pthread.h>
#include <stdatomic.h>

enum message_kind { MESSAGE_START, MESSAGE_DRAINED, MESSAGE_GONE, MESSAGE_COMMITTED };

struct message {
    enum message_kind kind;
    struct answer *answer; /* a reference */
    char *receipt;         /* COMMITTED: JSON, or NULL and err */
    struct err *err;
};

struct inbox {
    struct message *messages;
    size_t n_messages, cap_messages;
    struct engine_event *events;
    size_t n_events, cap_events;
};

struct service {
    struct service_options opt;
    char *base_name;
    char fingerprint[128]; /* constant once the engine is known */
    struct engine *engine;
    struct ledger *ledger;
    pthread_t thread;
    bool started;
    struct workers *preparers; /* answer_prepare.c */
    _Atomic size_t n_loading;

    pthread_mutex_t lock; /* the members from here to calls_up */
    pthread_cond_t arrived;
    struct inbox inbox;
    bool stopping;
    struct answer *waiting;            /* for their models */
    uint64_t waiting_since_us;         /* when the oldest message came; 0: empty */
    struct answer *line, *gatherer;    /* see answer_resolve.c */
    uint64_t n_gathered;               /* the gatherer included */
    struct monotonic_us look_again;    /* whether there still can be room for the gatherer */
    struct monotonic_us look_for_gone; /* whether those whose answers wait are still there */
    bool calls_up;                     /* somebody calls up whoever is next in the line */
    _Atomic uint64_t working_since_us; /* 0: idle */

    /* service thread */
    struct answer *answers;
    bool cancelled_all;
    struct pace pace;
    _Atomic uint64_t us_per_end; /* 0: not known yet */
    _Atomic size_t n_answers;    /* being answered, loading included */
    _Atomic uint64_t n_receipts, n_failed, n_vanished;
};

/* ---- service.c ---------------------------------------------------------------------------------
 */

/* Puts a message into the inbox; takes receipt and err, adds a reference to a. Any thread. */
void service_post(struct service *s, enum message_kind kind, struct answer *a, char *receipt,
                  struct err *err);
void service_on_http_event(void *user,
                           enum http_event event); /* for http_listen; user: the answer */
void answer_release_models(struct answer *a);      /* what the resolver gave */
void answer_drop(struct answer *a);                /* a reference */
/* What was used, once; before the last words to the client, so that a customer who may have one
 * request at a time can send the next as soon as this one is answered. */
void answer_tell_customer(struct answer *a);
bool service_is_stopping(struct service *s); /* any thread */
/* Answers with a->failure; for an answer that hasn't been started. Takes the owner's reference. */
void answer_refuse(struct answer *a);
void answer_shutting_down(struct answer *a); /* a->failure says so */

/* Service thread: the end of a started answer; takes the owner's reference. */
void answer_finish(struct answer *a);
/* Service thread: one event of a stream that has begun. */
void answer_send_event(struct answer *a, const struct buf *json, bool urgent);

/* ---- answer_resolve.c --------------------------------------------------------------------------
 */

/* From a new answer to answer_prepare, or a refusal, at once or on a store thread. Takes the
 * owner's reference. Does not block. */
void answer_resolve(struct answer *a);
/* When the first answer that waits for its models is out of time, or those that wait are to be
 * asked whether their clients are there, or the one that gathers is to be looked at again; 0: none
 * of these. Under s->lock. */
uint64_t answers_next_deadline(const struct service *s);
/* Service thread: refuses those that are, those who are gone, and the one for which there is no
 * room any more. */
void answers_expire(struct service *s);

/* ---- answer_prepare.c --------------------------------------------------------------------------
 */

/* From a known model to a START message, or a refusal. Takes the owner's reference. */
void answer_prepare(struct answer *a);

/* ---- answer_offsets.c --------------------------------------------------------------------------
 */

/* Before the token of s is pushed to the detokenizer. */
void offsets_begin(struct choice *c, struct score *s);
/* The detokenizer has given a piece (n 0: none); n_known: tokens that were pushed and have scores,
 * the prompt's included; n_held: bytes that it held before the push or flush that the piece came
 * of. */
void offsets_settle(struct choice *c, size_t n_known, size_t n_held, const char *piece, size_t n);
/* Of the first piece behind an echoed prompt: the bytes [of n] that are the prompt's end, which the
 * detokenizer held. A character that a generated token has completed is not. */
size_t offsets_of_prompt(const struct choice *c, size_t n_held, const char *piece, size_t n);

/* ---- service_names.c ---------------------------------------------------------------------------
 */

/* Once the engine is known. */
void service_fingerprint_make(struct service *s);

/* ---- service_billing.c: on the service thread -------------------------------------------------
 */

/* Who is paid, and in which parts; out [USAGE_ADAPTERS_MAX]. Any thread that has the answer. */
void answer_usage_adapters(const struct answer *a, struct usage_adapter *out);
/* Counts what was written and hands it to the ledger, or ends an answer that nobody has seen. */
void answer_commit(struct answer *a);
/* What the ledger said: receipt (JSON, taken over), or NULL and why. Ends the answer. */
void answer_committed(struct answer *a, char *receipt, const struct err *err);

#endif
