/* api_openai: the OpenAI-compatible endpoints. HTTP in, a checked and admitted request out to the
 * service, which answers. */
#include "attribution/attribution.h"
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
#include "node/signed_request.h"

#include <stdio.h>
#include <stdlib.h>
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

/* ---- who asks -----------------------------------------------------------------------------------
 */

struct visitor { /* what an answer holds of admission and ledger until it ends */
    struct ledger *ledger;
    struct admission_ticket *ticket;
    bool is_payer;
    struct request_digest id;
};

static void leave(void *context, uint64_t n_tokens)
{
    struct visitor *v = context;
    if (v->is_payer)
        ledger_request_leave(v->ledger, v->id);
    admission_leave(v->ticket, n_tokens, clock_monotonic_us().us);
    free(v);
}

static int admit(void *context, const struct resolved *models, size_t n, struct api_error *e)
{
    const struct visitor *v = context;
    struct admission_adapter adapters[ADMISSION_ADAPTERS_MAX];
    BUG_IF(n > ADMISSION_ADAPTERS_MAX);
    for (size_t i = 0; i < n; i++)
        adapters[i] = (struct admission_adapter){models[i].content, models[i].name};
    return admission_enter_adapters(v->ticket, adapters, n, clock_monotonic_us().us, e);
}

/* A request may step back, but not push in: that is for the operator to give (api_keys.h). */
static int check_priority(const struct openai_request *r, int32_t most, struct api_error *e)
{
    if (!r->priority_given || r->priority <= most)
        return 0;
    return api_error_set(e, ERR_INVALID, "priority", "'priority' is %d; yours may be at most %d",
                         r->priority, most);
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

struct caller {
    uint64_t id;               /* of the customer, for limits and shares */
    const struct api_key *key; /* NULL: none */
    bool is_payer;             /* then: */
    struct signed_request payers;
    struct request_digest request_id;
};

/* The Request of the header (it must be there), checked; body NULL: it has not come yet. */
static int read_payer(struct node *n, struct http_exchange *x, const struct sha256_digest *body,
                      struct caller *out, struct api_error *e)
{
    struct signed_request *q = &out->payers;
    out->is_payer = true;
    if (signed_request_parse(q, http_header(x, SIGNED_REQUEST_HEADER), &e->err) != 0 ||
        ledger_request_check(n->ledger, &out->request_id, q, body, &e->err) != 0) {
        snprintf(e->param, sizeof e->param, SIGNED_REQUEST_HEADER);
        return -1;
    }
    memcpy(&out->id, q->request.payer.bytes, sizeof out->id);
    return 0;
}

int api_openai_check_payer(struct node *n, struct http_exchange *x, struct api_error *e)
{
    struct caller nobody = {0};
    return read_payer(n, x, NULL, &nobody, e);
}

/* A payer by its Request, else a key's owner, else, where there are no keys, an address. */
static int read_caller(struct node *n, struct http_exchange *x, struct caller *out,
                       struct api_error *e)
{
    *out = (struct caller){0};
    if (http_header(x, SIGNED_REQUEST_HEADER) != NULL) {
        size_t n_body;
        const void *body = http_body(x, &n_body);
        struct sha256_digest hash = sha256(body, n_body);
        return read_payer(n, x, &hash, out, e);
    }
    if (n->keys != NULL)
        out->key = api_keys_find(n->keys, http_header(x, "Authorization"));
    out->id = out->key != NULL ? out->key->tag : customer_at(http_peer(x));
    return 0;
}

/* A place on the node, and for a payer its Request's one use. NULL: refused. */
static struct visitor *enter(struct node *n, const struct caller *who, struct api_error *e)
{
    const struct api_key *key = who->key;
    struct admission_customer customer = {
        .id = who->id,
        .own = key != NULL ? &key->limits : NULL,
        .weight = key != NULL ? (double)key->weight : 0,
    };
    struct visitor v = {.ledger = n->ledger, .id = who->request_id};
    if (admission_enter(n->admission, &v.ticket, &customer, clock_monotonic_us().us, e) != 0) {
        if (e->err.code == ERR_BUSY) {
            unsigned s = service_retry_after_s(n->service);
            e->retry_after_s = s > e->retry_after_s ? s : e->retry_after_s;
        }
        return NULL;
    }
    if (who->is_payer &&
        ledger_request_enter(n->ledger, who->request_id, &who->payers.request, &e->err) != 0) {
        api_error_hide(&e->err, "openai");
        snprintf(e->param, sizeof e->param, SIGNED_REQUEST_HEADER);
        admission_leave(v.ticket, 0, clock_monotonic_us().us);
        return NULL;
    }
    v.is_payer = who->is_payer;
    struct visitor *out = xmalloc(sizeof *out);
    *out = v;
    return out;
}

/* ---- what is asked ------------------------------------------------------------------------------
 */

static void generate(struct node *n, struct http_exchange *x, enum openai_kind kind)
{
    struct api_error e = {0};
    struct openai_request request = {0};
    struct caller who;
    struct visitor *visitor = read_caller(n, x, &who, &e) == 0 ? enter(n, &who, &e) : NULL;
    if (visitor == NULL) {
        api_error_reply(x, &e);
        return;
    }
    size_t n_body;
    const void *body = http_body(x, &n_body);
    int32_t priority = who.key != NULL ? who.key->priority : 0;
    if (openai_request_parse(&request, kind, body, n_body, &e) != 0 ||
        check_priority(&request, priority, &e) != 0) {
        openai_request_release(&request);
        leave(visitor, 0);
        api_error_reply(x, &e);
        return;
    }
    struct service_customer customer = {
        .key_tag = who.key != NULL ? who.key->tag : 0,
        .payer = who.id,
        .payer_weight = who.key != NULL ? who.key->weight : 0,
        .priority = request.priority_given ? request.priority : priority,
        .admit = admit,
        .done = leave,
        .context = visitor,
    };
    if (who.is_payer) {
        customer.has_max_fee = true;
        customer.max_fee = who.payers.request.max_fee;
        request.return_token_ids = true; /* so that the payer can compute responseHash */
        http_set_request_id(x, who.request_id.bytes);
    }
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
