/* api_openai: the OpenAI-compatible endpoints. HTTP in, a checked and admitted request out to the
 * service, which answers. */
#include "node/admission.h"
#include "node/api_error.h"
#include "node/api_keys.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/sha256.h"
#include "node/http.h"
#include "node/json_util.h"
#include "node/node.h"
#include "node/openai_request.h"
#include "node/service.h"

#include <string.h>

static void reply_json(struct http_exchange *x, json_t *value)
{
    struct buf b = BUF_INIT;
    json_append_value(&b, value);
    json_decref(value);
    http_reply(x, 200, "application/json", &b);
}

void api_openai_models(struct node *n, struct http_exchange *x)
{
    reply_json(x, service_models(n->service));
}

void api_openai_model(struct node *n, struct http_exchange *x, const char *name)
{
    struct api_error e = {0};
    json_t *model = service_model(n->service, name, &e.err);
    if (model != NULL) {
        reply_json(x, model);
        return;
    }
    memcpy(e.param, "model", 6);
    e.code = "model_not_found";
    api_error_reply(x, &e);
}

static void leave(void *context, uint64_t n_tokens)
{
    admission_leave(context, n_tokens, clock_monotonic_us().us);
}

static void generate(struct node *n, struct http_exchange *x, enum openai_kind kind)
{
    struct api_error e = {0};
    struct openai_request request = {0};
    const struct api_key *key = n->keys != NULL
                                    ? api_keys_find(n->keys, http_header(x, "Authorization"))
                                    : NULL;
    uint64_t who = 0;
    if (key != NULL) {
        who = key->tag;
    } else {
        struct sha256_digest h = sha256(http_peer(x), strlen(http_peer(x)));
        memcpy(&who, h.bytes, sizeof who);
    }
    struct admission_ticket *ticket;
    if (admission_enter(n->admission, &ticket, who, clock_monotonic_us().us, &e) != 0) {
        api_error_reply(x, &e);
        return;
    }
    size_t n_body;
    const void *body = http_body(x, &n_body);
    if (openai_request_parse(&request, kind, body, n_body, &e) != 0) {
        openai_request_release(&request);
        admission_leave(ticket, 0, clock_monotonic_us().us);
        api_error_reply(x, &e);
        return;
    }
    struct service_customer customer = {
        .key_tag = key != NULL ? key->tag : 0, .done = leave, .context = ticket};
    service_answer(n->service, x, &request, &customer);
}

void api_openai_completions(struct node *n, struct http_exchange *x)
{
    generate(n, x, OPENAI_COMPLETION);
}

void api_openai_chat(struct node *n, struct http_exchange *x)
{
    generate(n, x, OPENAI_CHAT);
}
