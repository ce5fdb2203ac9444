/* api_openai: the OpenAI-compatible endpoints. HTTP in, a checked and admitted request out to the
 * service, which answers. */
#include "node/admission.h"
#include "node/api_error.h"
#include "node/api_keys.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/sha256.h"
#include "node/http.h"
#include "node/http_address.h"
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
    reply_json(x, service_models(n->service, 0));
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

static int admit(void *context, const struct resolved *models, size_t n, struct api_error *e)
{
    struct admission_adapter adapters[ADMISSION_ADAPTERS_MAX];
    BUG_IF(n > ADMISSION_ADAPTERS_MAX);
    for (size_t i = 0; i < n; i++)
        adapters[i] = (struct admission_adapter){models[i].content, models[i].name};
    return admission_enter_adapters(context, adapters, n, clock_monotonic_us().us, e);
}

/* A request may step back, but not push in: that is for the operator to give (api_keys.h). */
static int check_priority(const struct openai_request *r, int32_t most, struct api_error *e)
{
    if (!r->priority_given || r->priority <= most)
        return 0;
    return api_error_set(e, ERR_INVALID, "priority",
                         "'priority' is %d; requests of this key may have at most %d", r->priority,
                         most);
}

/* Who asks, where there are no keys: an address, or an IPv6 network, whose 2^64 addresses are one
 * host's if it wants them. */
static uint64_t customer_at(const char *peer)
{
    char network[INET6_ADDRSTRLEN];
    uint64_t who;
    http_address_network(network, peer);
    struct sha256_digest h = sha256(network, strlen(network));
    memcpy(&who, h.bytes, sizeof who);
    return who;
}

static void generate(struct node *n, struct http_exchange *x, enum openai_kind kind)
{
    struct api_error e = {0};
    struct openai_request request = {0};
    const struct api_key *key = n->keys != NULL
                                    ? api_keys_find(n->keys, http_header(x, "Authorization"))
                                    : NULL;
    struct admission_customer who = {
        .id = key != NULL ? key->tag : customer_at(http_peer(x)),
        .own = key != NULL ? &key->limits : NULL,
        .weight = key != NULL ? (double)key->weight : 0,
    };
    struct admission_ticket *ticket;
    if (admission_enter(n->admission, &ticket, &who, clock_monotonic_us().us, &e) != 0) {
        if (e.err.code == ERR_BUSY) {
            unsigned s = service_retry_after_s(n->service);
            e.retry_after_s = s > e.retry_after_s ? s : e.retry_after_s;
        }
        api_error_reply(x, &e);
        return;
    }
    size_t n_body;
    const void *body = http_body(x, &n_body);
    int32_t priority = key != NULL ? key->priority : 0;
    if (openai_request_parse(&request, kind, body, n_body, &e) != 0 ||
        check_priority(&request, priority, &e) != 0) {
        openai_request_release(&request);
        admission_leave(ticket, 0, clock_monotonic_us().us);
        api_error_reply(x, &e);
        return;
    }
    struct service_customer customer = {
        .key_tag = key != NULL ? key->tag : 0,
        .payer = who.id,
        .payer_weight = key != NULL ? key->weight : 0,
        .priority = request.priority_given ? request.priority : priority,
        .admit = admit,
        .done = leave,
        .context = ticket,
    };
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
