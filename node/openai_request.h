/* openai_request: the body of /v1/completions and /v1/chat/completions, checked.
 *
 * Every field has the type and range that OpenAI documents; a violation names the field. Fields
 * that nobody knows are ignored, as OpenAI does (not in an item of `adapters`, which is ours);
 * known ones that would change the answer and that this node can't honour are refused by name, so
 * that nobody gets an answer to another question. null means "not given". A NUL character in any
 * string is refused by the name of its field: chat templates, stop strings and names end with one.
 *
 * Further fields, as vLLM has them: top_k, min_p, repetition_penalty, ignore_eos, stop_token_ids,
 * skip_special_tokens, add_special_tokens (completions), return_token_ids, chat_template_kwargs.
 *
 * And cache_salt, which vLLM has, too: K and V of a prompt are shared only with requests of the
 * same salt, so that times tell nothing to others.
 *
 * And Tributary's own:
 *
 * adapters: [{"model": name, "weight": number}], 1 to 8 of them: an ensemble, all applied at once.
 * A name is what `model` may be (name, name@version, contentDigest, adapterId); weight is 1 when
 * left out, may be negative, lies in -1e6 to 1e6, and not all are 0. `model` then names the base
 * model or is left out.
 *
 * priority: -100 to 100, higher goes first; never above the API key's own, which is the default.
 *
 * timeout: seconds from the request's arrival to the last token, waiting and fetching included. */
#ifndef TRIBUTARY_NODE_OPENAI_REQUEST_H
#define TRIBUTARY_NODE_OPENAI_REQUEST_H

#include "node/base/arena.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct api_error;

enum openai_kind { OPENAI_COMPLETION, OPENAI_CHAT };

enum {
    OPENAI_N_MAX = 8,
    OPENAI_PROMPTS_MAX = 64,
    OPENAI_STOPS_MAX = 4,
    OPENAI_STOP_BYTES_MAX = 1024,
    OPENAI_STOP_IDS_MAX = 64,
    OPENAI_BIAS_MAX = 1024,
    OPENAI_MESSAGES_MAX = 4096,
    OPENAI_TOP_LOGPROBS_MAX = 20,
    OPENAI_CACHE_SALT_BYTES_MAX = 256,
    OPENAI_ADAPTERS_MAX = 8,
    OPENAI_NAME_BYTES_MAX = 256,
    OPENAI_PRIORITY_MAX = 100, /* and -100 */
};

struct openai_prompt { /* text, or token ids when text is NULL */
    const char *text;
    size_t n_bytes;
    const int32_t *ids; /* [n_ids] */
    size_t n_ids;
};

struct openai_adapter {
    const char *model; /* borrowed from root */
    float weight;      /* finite */
};

struct openai_request { /* zeroed before openai_request_parse; all memory is its own */
    enum openai_kind kind;
    struct arena arena;
    json_t *root;

    const char *model; /* NULL: left out beside adapters */
    struct openai_adapter adapters[OPENAI_ADAPTERS_MAX];
    size_t n_adapters;      /* 0: `model` says it all */
    const char *cache_salt; /* NULL: none */
    bool priority_given;
    int32_t priority;
    double timeout_s;              /* 0: not given */
    json_t *messages;              /* chat: [{role, content: string, name?}]; borrowed from root */
    json_t *template_kwargs;       /* chat: object or NULL; borrowed */
    struct openai_prompt *prompts; /* completion: [n_prompts] */
    size_t n_prompts;              /* chat: 1 */
    int n;                         /* choices of each prompt */
    int64_t max_tokens;            /* -1: the node's default */
    const char *max_tokens_param;  /* the field that gave it; NULL: none */
    bool stream, include_usage, echo, ignore_eos, return_token_ids;
    bool skip_special_tokens; /* default true */
    bool add_special_tokens;  /* completion; default true */
    int n_logprobs;           /* -1: none wanted; 0 to 20: so many alternatives */

    float temperature, top_p, min_p; /* default 1, 1, 0 */
    int32_t top_k;                   /* 0: off */
    float presence_penalty, frequency_penalty, repetition_penalty;
    bool seed_given;
    uint64_t seed;
    const char *stops[OPENAI_STOPS_MAX];
    size_t n_stops;
    int32_t *stop_ids; /* [n_stop_ids] */
    int32_t n_stop_ids;
    int32_t *bias_ids; /* [n_bias] */
    float *bias_values;
    int32_t n_bias;
};

/* body [n]: as it came from the socket. *out may be released after a failure, too. */
int openai_request_parse(struct openai_request *out, enum openai_kind kind, const void *body,
                         size_t n, struct api_error *error);
void openai_request_release(struct openai_request *r);

#endif
