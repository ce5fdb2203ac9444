/* answer: one request on its way, inside the service room (service.c, openai_format.c).
 *
 * Made on an http thread, owned by the service thread from its START message on. A
 * request has prompts x n choices; each choice is one sequence of the engine:
 *
 *   engine token -> ids[]  -> detokenizer -> stop matcher -> text -> chunk -> socket
 *                   scores[]                                 |
 *                                                            marks[]: "when this byte of the stream
 *                                                            has been written, so many ids have"
 */
#ifndef TRIBUTARY_NODE_ANSWER_H
#define TRIBUTARY_NODE_ANSWER_H

#include "engine/engine.h"
#include "engine/tokenizer/tokenizer.h"
#include "node/api_error.h"
#include "node/base/clock.h"
#include "node/service.h"
#include "node/stop_match.h"

#include <stdatomic.h>

struct http_exchange;

struct score { /* a token's log-probability; memory of the answer's arena */
    int32_t token;
    float logprob;
    bool known; /* false: the first token of a prompt has none */
    int32_t n_top;
    const int32_t *top_ids;
    const float *top_logprobs;
    uint32_t text_offset; /* in characters, of the choice's whole text: answer_offsets.c */
    uint32_t n_held;      /* bytes that the detokenizer held before it */
};

struct scores {
    struct score *items;
    size_t n, cap;
};

struct choice {
    struct answer *answer;
    uint32_t index;
    int64_t max_tokens;             /* the request's, or what its fee leaves for this choice */
    const struct token_ids *prompt; /* of the answer */
    uint64_t sequence;              /* engine's id */
    bool running;                   /* its FINISHED has not come */
    bool stopped;                   /* by a stop string; later tokens don't count */
    enum engine_finish finish;
    int32_t n_prompt_cached;
    struct token_ids ids;        /* generated, up to the one that completed a stop */
    struct scores scores;        /* one each, when log-probabilities are wanted */
    struct scores prompt_scores; /* with echo */
    struct detokenizer *detokenizer;
    struct stop_match *stop;
    struct buf text;      /* not streamed: all of it; streamed: what the next chunk takes */
    uint32_t n_chars;     /* what the detokenizer has given so far */
    size_t first_open;    /* of the scores, the prompt's first: whose text_offset isn't final */
    size_t n_prompt_held; /* bytes of an echoed prompt that no text has come of yet */
    size_t n_sent;        /* ids (and scores) that chunks have carried */
    bool begun;           /* streamed: the first chunk was sent */
};

struct mark {
    uint64_t end; /* bytes of the stream */
    uint32_t choice;
    uint32_t n_ids; /* of the choice, carried by all up to here */
};

enum answer_state {
    ANSWER_RUNNING,    /* sequences run */
    ANSWER_DRAINING,   /* all text is in the stream's buffer; the socket has not taken it yet */
    ANSWER_COMMITTING, /* the ledger has it */
    ANSWER_DONE,
};

struct answer_slot { /* one name of a request, while its model is looked for */
    struct answer *answer;
    size_t i;
};

struct answer {
    struct service *service;
    struct answer *prev, *next; /* service.waiting, then service.answers */
    _Atomic int refs;           /* owner, each message under way, the slots together */
    struct http_exchange *x;
    struct sha256_digest request_hash;
    size_t n_body;                 /* bytes of the request's body */
    struct openai_request request; /* without its JSON once the prompts are tokenised */
    struct service_customer customer;
    /* What was asked for, in the request's order; see answer_resolve.c for how it gets here. */
    struct answer_slot slots[OPENAI_ADAPTERS_MAX];
    struct resolved models[OPENAI_ADAPTERS_MAX];
    struct err *why_not[OPENAI_ADAPTERS_MAX]; /* NULL: the model was found */
    _Atomic int n_untold;
    bool waits;       /* in the service's list of waiting answers; under its lock */
    bool models_told; /* the models are this answer's to release */
    /* Of an ensemble that isn't there at once: */
    bool lets_go;                /* what is found is given back; under the service's lock */
    uint64_t gathers;            /* it has had its place in the line, as this one; 0: not yet */
    struct answer *next_in_line; /* service.line; under its lock */
    struct monotonic_us in_line; /* since */
    float weights[OPENAI_ADAPTERS_MAX];
    uint16_t shares[OPENAI_ADAPTERS_MAX]; /* basis points, sum BPS_WHOLE */
    size_t n_models, n_adapters;          /* n_adapters: the same, or 0 for the base model */
    bool is_ensemble;                     /* `adapters` was given */
    char *model_name;                     /* what the answer carries; NULL before all are found */
    struct unix_ms created;
    struct monotonic_us began, first_token, commit_began;
    struct monotonic_us deadline; /* 0: none; for the last token */
    char id[80];                  /* "chatcmpl-..." */

    struct token_ids *prompts; /* [n_prompts] */
    size_t n_prompts;
    struct choice *choices; /* [n_choices], prompt by prompt */
    size_t n_choices, n_running;
    uint32_t tokens_prompt;

    enum answer_state state;
    bool streaming; /* the stream has begun */
    bool gone;      /* the client has */
    bool cancelled; /* engine_cancel was called for all */
    bool failed;
    struct api_error failure;
    uint64_t n_queued; /* bytes of the stream */
    struct mark *marks;
    size_t n_marks, cap_marks;

    uint32_t tokens_billed;   /* completion */
    uint64_t tokens_computed; /* count against the customer's limits, billed or not */
    char *receipt;            /* JSON; NULL: not committed */
};

/* ---- openai_format.c: JSON of chunks and bodies; appended without framing -----------------------
 */

/* The first chunk of a chat's choice says who speaks, and no more, as OpenAI's does: its own client
 * counts the log-probabilities of a first chunk twice. */
void format_role_chunk(struct buf *b, const struct answer *a, const struct choice *c);
/* A chunk of a stream. With finish NULL: the choice's pending text, ids and scores (from n_sent
 * on). Else the choice's last chunk: no text, the reason, and the receipt if it isn't NULL. */
void format_chunk(struct buf *b, const struct answer *a, const struct choice *c, const char *finish,
                  const char *receipt);
void format_usage_chunk(struct buf *b, const struct answer *a);
void format_body(struct buf *b, const struct answer *a);
void format_stream_error(struct buf *b, const struct answer *a);
const char *format_finish(const struct choice *c); /* "stop", "length" */
/* The text of one token as JSON string content: "bytes:\xe2" when it is a part of a character. */
void format_token_text(struct buf *b, const struct tokenizer *t, int32_t id);

const struct tokenizer *answer_tokenizer(const struct answer *a);
const char *answer_fingerprint(const struct answer *a); /* needs no escapes in JSON */

#endif
