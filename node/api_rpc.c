/* api_rpc: see api_rpc.h.
 *
 * A method is a row: name, help, parameters, function. Parameters are a row each: name, kind, help;
 * they are checked and decoded before the function runs, by name or by position, and the OpenRPC
 * document is printed from the same rows.
 *
 * Errors (JSON-RPC 2.0, section 5.1): -32700 no JSON, -32600 no request, -32601 no such method,
 * -32602 wrong parameters, -32603 our fault; -32000 what the ledger answered, with data.code naming
 * it. */
#include "node/api_rpc.h"

#include "attribution/attribution.h"
#include "node/api_error.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/http.h"
#include "node/json_util.h"
#include "node/node.h"

#include <stdlib.h>
#include <string.h>

enum param_kind { PARAM_HASH, PARAM_ADDRESS, PARAM_INTEGER, PARAM_TEXT };

struct param {
    const char *name;
    enum param_kind kind;
    const char *help;
};

enum { PARAMS_MAX = 8 };

struct call { /* decoded parameters, by their place in the method's table */
    struct node *node;
    bool local;
    bool given[PARAMS_MAX];
    uint8_t bytes[PARAMS_MAX][32];
    int64_t integers[PARAMS_MAX];
    const char *texts[PARAMS_MAX];
};

struct method {
    const char *name, *summary;
    struct param params[PARAMS_MAX + 1];
    const char *result;
    json_t *(*run)(struct call *c, struct err *err);
};

/* ---- methods -----------------------------------------------------------------------------------
 */

/* The filter of a list; its parameters come in this order in the tables below. */
enum { F_ADAPTER, F_CREATOR, F_PAYER, F_FROM, F_TO, F_CURSOR, F_LIMIT };

struct filter_memory {
    struct adapter_id adapter;
    struct address creator, payer;
};

static struct ledger_filter filter_of(const struct call *c, struct filter_memory *m)
{
    struct ledger_filter f = {0};
    if (c->given[F_ADAPTER]) {
        memcpy(m->adapter.bytes, c->bytes[F_ADAPTER], 32);
        f.adapter = &m->adapter;
    }
    if (c->given[F_CREATOR]) {
        memcpy(m->creator.bytes, c->bytes[F_CREATOR], 20);
        f.creator = &m->creator;
    }
    if (c->given[F_PAYER]) {
        memcpy(m->payer.bytes, c->bytes[F_PAYER], 20);
        f.payer = &m->payer;
    }
    if (c->given[F_FROM])
        f.from_ms = (uint64_t)c->integers[F_FROM];
    if (c->given[F_TO])
        f.to_ms = (uint64_t)c->integers[F_TO];
    if (c->given[F_CURSOR])
        f.cursor = c->texts[F_CURSOR];
    if (c->given[F_LIMIT])
        f.limit = c->integers[F_LIMIT] > LEDGER_PAGE_MAX ? LEDGER_PAGE_MAX
                                                         : (uint32_t)c->integers[F_LIMIT];
    return f;
}

#define LIST_METHOD(name, query)                         \
    static json_t *name(struct call *c, struct err *err) \
    {                                                    \
        struct filter_memory m;                          \
        struct ledger_filter f = filter_of(c, &m);       \
        return query(c->node->ledger, &f, err);          \
    }
LIST_METHOD(run_usage, ledger_query_usage)
LIST_METHOD(run_rewards, ledger_query_rewards)
LIST_METHOD(run_channels, ledger_query_channels)
LIST_METHOD(run_outbox, ledger_query_outbox)
LIST_METHOD(run_batches, ledger_query_batches)
LIST_METHOD(run_adapters, ledger_query_adapters)
LIST_METHOD(run_datanets, ledger_query_datanets)

static json_t *run_receipt(struct call *c, struct err *err)
{
    for (int i = 0; i < 3; i++) {
        if (c->given[i])
            return ledger_query_receipt(c->node->ledger, c->bytes[i], err);
    }
    err_set(err, ERR_INVALID, "one of id, requestId, receiptHash is needed");
    return NULL;
}

enum { P_ID, P_REQUEST, P_RECEIPT, P_KIND, P_POSITION, P_SEQ };

static json_t *run_proof(struct call *c, struct err *err)
{
    if (!c->given[P_KIND]) {
        for (int i = P_ID; i <= P_RECEIPT; i++) {
            if (c->given[i])
                return ledger_query_receipt_proof(c->node->ledger, c->bytes[i], err);
        }
        err_set(err, ERR_INVALID,
                "requestId or receiptHash, or kind and id of a payout, is needed");
        return NULL;
    }
    static const char *const kinds[] = {"operator", "adapter", "datanet"};
    int kind = 0;
    while (kind < 3 && strcmp(kinds[kind], c->texts[P_KIND]) != 0)
        kind++;
    if (kind == 3 || !c->given[P_ID]) {
        err_set(err, ERR_INVALID, "%s",
                kind == 3 ? "kind is one of operator, adapter, datanet" : "id is needed");
        return NULL;
    }
    int64_t position = c->given[P_POSITION] ? c->integers[P_POSITION] : 0;
    if (position > UINT16_MAX) {
        err_set(err, ERR_INVALID, "position is at most %d", UINT16_MAX);
        return NULL;
    }
    return ledger_query_payout_proof(c->node->ledger, (enum payout_kind)kind, c->bytes[P_ID],
                                     (uint16_t)position, c->given[P_SEQ] ? c->integers[P_SEQ] : -1,
                                     err);
}

static json_t *run_batch(struct call *c, struct err *err)
{
    if (!c->given[0]) {
        err_set(err, ERR_INVALID, "seq is needed");
        return NULL;
    }
    return ledger_query_batch(c->node->ledger, (uint64_t)c->integers[0], err);
}

static json_t *run_status(struct call *c, struct err *err)
{
    (void)err;
    return health_status(c->node);
}

static json_t *run_seal(struct call *c, struct err *err)
{
    if (!c->local) {
        err_set(err, ERR_FORBIDDEN, "only the operator, on this machine, may seal");
        return NULL;
    }
    uint32_t total = 0, sealed;
    do {
        if (ledger_seal_now(c->node->ledger, &sealed, err) != 0)
            return NULL;
        total += sealed;
    } while (sealed > 0);
    ledger_publisher_wake(c->node->ledger);
    return json_pack("{s:I}", "receipts", (json_int_t)total);
}

#define FILTER                                                                 \
    {                                                                          \
        {"adapter", PARAM_HASH, "Only this adapterId."},                       \
            {"creator", PARAM_ADDRESS, "Only adapters of this creator."},      \
            {"payer", PARAM_ADDRESS, "Only receipts that this account pays."}, \
            {"from", PARAM_INTEGER, "Milliseconds since 1970, inclusive."},    \
            {"to", PARAM_INTEGER, "Milliseconds since 1970, exclusive."},      \
            {"cursor", PARAM_TEXT, "`next` of the page before."},              \
            {"limit", PARAM_INTEGER, "Items a page, at most 500."},            \
        {                                                                      \
            NULL, PARAM_TEXT, NULL                                             \
        }                                                                      \
    }

static const struct method methods[] = {
    {"attribution_usage", "Requests, tokens and fees, by adapter.", FILTER, "{items, next, totals}",
     run_usage},
    {"attribution_rewards", "Who is owed what: one item a payout leaf.", FILTER, "{items, next}",
     run_rewards},
    {"attribution_receipt",
     "One signed receipt.",
     {{"id", PARAM_HASH, "requestId or receiptHash."},
      {"requestId", PARAM_HASH, "The request (x-request-id)."},
      {"receiptHash", PARAM_HASH, "The receipt's EIP-712 digest."}},
     "the receipt, as in the field `tributary` of an answer",
     run_receipt},
    {"attribution_proof",
     "The Merkle proof of a receipt in its batch, or of a payout leaf.",
     {{"id", PARAM_HASH, "requestId or receiptHash; with kind: the payout's id."},
      {"requestId", PARAM_HASH, "The request."},
      {"receiptHash", PARAM_HASH, "The receipt."},
      {"kind", PARAM_TEXT, "operator, adapter or datanet: asks for a payout leaf."},
      {"position", PARAM_INTEGER, "The payout's position in the manifest's splits; default 0."},
      {"seq", PARAM_INTEGER, "The batch; default: the newest final one."}},
     "{receipt, batch, position, proof, leaf} or {batch, payout, proof, splits}",
     run_proof},
    {"attribution_channels", "Receipt channels and what they add up to.", FILTER, "{items, next}",
     run_channels},
    {"attribution_batches", "Batches, oldest first.", FILTER, "{items, next}", run_batches},
    {"attribution_batch",
     "One batch.",
     {{"seq", PARAM_INTEGER, "Its sequence number."}},
     "the batch",
     run_batch},
    {"attribution_outbox", "Transactions on their way.", FILTER, "{items, next}", run_outbox},
    {"registry_adapters", "Adapters that the node knows.", FILTER, "{items, next}", run_adapters},
    {"registry_datanets", "Datanets that the node knows.", FILTER, "{items, next}", run_datanets},
    {"node_status",
     "Health, counters, adapters by tier, the first 100 models.",
     {{NULL, PARAM_TEXT, NULL}},
     "an object",
     run_status},
    {"node_seal",
     "Seals what can be sealed now, and wakes the publisher. Only from this machine.",
     {{NULL, PARAM_TEXT, NULL}},
     "{receipts}",
     run_seal},
};

/* ---- parameters --------------------------------------------------------------------------------
 */

static int decode(struct call *c, const struct param *p, size_t i, const json_t *v, struct err *err)
{
    if (json_is_null(v))
        return 0;
    const char *text = json_string_value(v);
    c->given[i] = true;
    switch (p->kind) {
    case PARAM_HASH:
        if (text == NULL || hex_decode(c->bytes[i], 32, text) != 0)
            return err_set(err, ERR_INVALID, "%s must be 64 hexadecimal digits", p->name);
        return 0;
    case PARAM_ADDRESS:
        if (text == NULL || hex_decode(c->bytes[i], 20, text) != 0)
            return err_set(err, ERR_INVALID, "%s must be an address (40 hexadecimal digits)",
                           p->name);
        return 0;
    case PARAM_INTEGER:
        if (!json_is_integer(v) || json_integer_value(v) < 0)
            return err_set(err, ERR_INVALID, "%s must be an integer that is not negative", p->name);
        c->integers[i] = json_integer_value(v);
        return 0;
    case PARAM_TEXT:
        if (text == NULL)
            return err_set(err, ERR_INVALID, "%s must be a string", p->name);
        c->texts[i] = text;
        return 0;
    }
    BUG("param kind %d", (int)p->kind);
}

static int decode_params(struct call *c, const struct method *m, json_t *params, struct err *err)
{
    if (params == NULL || json_is_null(params))
        return 0;
    size_t n = 0;
    while (m->params[n].name != NULL)
        n++;
    if (json_is_array(params)) {
        if (json_array_size(params) > n)
            return err_set(err, ERR_INVALID, "%s takes at most %zu parameters", m->name, n);
        for (size_t i = 0; i < json_array_size(params); i++) {
            if (decode(c, &m->params[i], i, json_array_get(params, i), err) != 0)
                return -1;
        }
        return 0;
    }
    const char *key;
    json_t *v;
    json_object_foreach(params, key, v)
    {
        size_t i = 0;
        while (i < n && strcmp(m->params[i].name, key) != 0)
            i++;
        if (i == n)
            return err_set(err, ERR_INVALID, "%s has no parameter \"%.60s\"", m->name, key);
        if (decode(c, &m->params[i], i, v, err) != 0)
            return -1;
    }
    return 0;
}

/* ---- the envelope ------------------------------------------------------------------------------
 */

static json_t *rpc_error(json_t *id, int code, const char *message, const char *name)
{
    json_t *e = json_pack("{s:i, s:o}", "code", code, "message", json_text(message));
    if (name != NULL)
        json_object_set_new(e, "data", json_pack("{s:s}", "code", name));
    return json_pack("{s:s, s:o, s:o}", "jsonrpc", "2.0", "id",
                     id != NULL ? json_incref(id) : json_null(), "error", e);
}

/* A response, or NULL for a notification. */
static json_t *answer_call(struct node *n, json_t *request, bool local)
{
    if (!json_is_object(request))
        return rpc_error(NULL, -32600, "a request is an object", NULL);
    json_t *id = json_object_get(request, "id"), *params = json_object_get(request, "params");
    const char *version = json_string_value(json_object_get(request, "jsonrpc"));
    const char *name = json_string_value(json_object_get(request, "method"));
    if (id != NULL && !json_is_string(id) && !json_is_number(id) && !json_is_null(id))
        return rpc_error(NULL, -32600, "id must be a string, a number or null", NULL);
    if (version == NULL || strcmp(version, "2.0") != 0 || name == NULL)
        return rpc_error(id, -32600, "jsonrpc must be \"2.0\", and method a string", NULL);
    if (params != NULL && !json_is_object(params) && !json_is_array(params) &&
        !json_is_null(params))
        return rpc_error(id, -32600, "params must be an object or an array", NULL);
    const struct method *m = NULL;
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        if (strcmp(methods[i].name, name) == 0)
            m = &methods[i];
    }
    struct err err = {0};
    if (m == NULL) {
        err_set(&err, ERR_NOT_FOUND, "no such method: %.60s", name);
        return id == NULL ? NULL : rpc_error(id, -32601, err.message, NULL);
    }
    struct call *c = xcalloc(1, sizeof *c);
    c->node = n;
    c->local = local;
    json_t *response;
    if (decode_params(c, m, params, &err) != 0) {
        response = rpc_error(id, -32602, err.message, NULL);
    } else {
        json_t *result = m->run(c, &err);
        if (result != NULL) {
            response = json_pack("{s:s, s:o, s:o}", "jsonrpc", "2.0", "id",
                                 id != NULL ? json_incref(id) : json_null(), "result", result);
        } else {
            int code = err.code == ERR_INVALID                          ? -32602
                       : err.code == ERR_INTERNAL || err.code == ERR_IO ? -32603
                                                                        : -32000;
            api_error_hide(&err, "rpc");
            response = rpc_error(id, code, err.message, err_code_name(err.code));
        }
    }
    free(c);
    if (id == NULL) {
        json_decref(response);
        return NULL;
    }
    return response;
}

void rpc_answer(struct node *n, struct buf *out, const void *body, size_t n_bytes, bool local)
{
    struct err err = {0};
    json_t *request = json_parse(body, n_bytes, &err), *response;
    if (request == NULL) {
        response = rpc_error(NULL, -32700, err.message, NULL);
    } else if (!json_is_array(request)) {
        response = answer_call(n, request, local);
    } else if (json_array_size(request) == 0 || json_array_size(request) > RPC_BATCH_MAX) {
        response = rpc_error(NULL, -32600, "a batch has 1 to 100 calls", NULL);
    } else {
        response = json_array();
        for (size_t i = 0; i < json_array_size(request); i++) {
            json_t *one = answer_call(n, json_array_get(request, i), local);
            if (one != NULL)
                json_array_append_new(response, one);
        }
        if (json_array_size(response) == 0) {
            json_decref(response);
            response = NULL;
        }
    }
    json_decref(request);
    if (response != NULL)
        json_append_value(out, response);
    json_decref(response);
}

/* ---- OpenRPC -----------------------------------------------------------------------------------
 */

static json_t *param_schema(enum param_kind kind)
{
    switch (kind) {
    case PARAM_HASH:
        return json_pack("{s:s, s:s}", "type", "string", "pattern", "^(0x)?[0-9a-fA-F]{64}$");
    case PARAM_ADDRESS:
        return json_pack("{s:s, s:s}", "type", "string", "pattern", "^(0x)?[0-9a-fA-F]{40}$");
    case PARAM_INTEGER:
        return json_pack("{s:s, s:i}", "type", "integer", "minimum", 0);
    case PARAM_TEXT:
        return json_pack("{s:s}", "type", "string");
    }
    BUG("param kind %d", (int)kind);
}

void rpc_openrpc(struct buf *out)
{
    json_t *list = json_array();
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++) {
        const struct method *m = &methods[i];
        json_t *params = json_array();
        for (const struct param *p = m->params; p->name != NULL; p++)
            json_array_append_new(params, json_pack("{s:s, s:s, s:b, s:o}", "name", p->name,
                                                    "description", p->help, "required", 0, "schema",
                                                    param_schema(p->kind)));
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:o, s:{s:s, s:s, s:{}}}", "name",
                                              m->name, "summary", m->summary, "paramStructure",
                                              "either", "params", params, "result", "name",
                                              "result", "description", m->result, "schema"));
    }
    json_t *doc = json_pack("{s:s, s:{s:s, s:s, s:s}, s:o}", "openrpc", "1.2.6", "info", "title",
                            "Tributary node", "version", TRIBUTARY_VERSION, "description",
                            "Usage, rewards, receipts, proofs and batches. Amounts are decimal "
                            "strings, hashes and addresses 0x and hexadecimal digits.",
                            "methods", list);
    json_append_value(out, doc);
    json_decref(doc);
}

/* ---- HTTP --------------------------------------------------------------------------------------
 */

void api_rpc(struct node *n, struct http_exchange *x)
{
    size_t n_bytes;
    const void *body = http_body(x, &n_bytes);
    /* Behind a proxy on this machine everybody is local: a forwarded request never is. */
    bool local = (strcmp(http_peer(x), "127.0.0.1") == 0 || strcmp(http_peer(x), "::1") == 0) &&
                 http_header(x, "X-Forwarded-For") == NULL && http_header(x, "Forwarded") == NULL &&
                 http_header(x, "Origin") == NULL;
    struct buf out = BUF_INIT;
    rpc_answer(n, &out, body, n_bytes, local);
    if (out.len == 0)
        http_reply_text(x, 204, NULL, "");
    else
        http_reply(x, 200, "application/json", &out);
}

void api_rpc_openrpc(struct node *n, struct http_exchange *x)
{
    (void)n;
    struct buf out = BUF_INIT;
    rpc_openrpc(&out);
    http_reply(x, 200, "application/json", &out);
}

static void reply_query(struct http_exchange *x, json_t *value, struct api_error *e)
{
    if (value == NULL) {
        api_error_hide(&e->err, "http");
        api_error_reply(x, e);
        return;
    }
    struct buf out = BUF_INIT;
    json_append_value(&out, value);
    json_decref(value);
    http_reply(x, 200, "application/json", &out);
}

/* A request's id in any of its spellings: hexadecimal, 0x, or as an answer's id. */
static int parse_id(const char *text, uint8_t id[32])
{
    if (strncmp(text, "chatcmpl-", 9) == 0)
        text += 9;
    else if (strncmp(text, "cmpl-", 5) == 0)
        text += 5;
    return hex_decode(id, 32, text);
}

void api_receipt(struct node *n, struct http_exchange *x, const char *text)
{
    uint8_t id[32];
    struct api_error e = {0};
    json_t *receipt = NULL;
    if (parse_id(text, id) != 0)
        api_error_set(&e, ERR_INVALID, "id", "an id has 64 hexadecimal digits");
    else
        receipt = ledger_query_receipt(n->ledger, id, &e.err);
    reply_query(x, receipt, &e);
}

static int query_integer(const struct http_exchange *x, const char *name, uint64_t otherwise,
                         uint64_t min, uint64_t max, uint64_t *out, struct api_error *e)
{
    const char *text = http_query(x, name);
    *out = otherwise;
    if (text == NULL)
        return 0;
    char *end;
    unsigned long long v = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || v < min || v > max)
        return api_error_set(e, ERR_INVALID, name, "%s must be an integer from %llu to %llu", name,
                             (unsigned long long)min, (unsigned long long)max);
    *out = v;
    return 0;
}

void api_receipts(struct node *n, struct http_exchange *x)
{
    uint8_t channel[32];
    uint64_t from, limit;
    struct api_error e = {0};
    json_t *page = NULL;
    const char *text = http_query(x, "channel");
    if (text == NULL || hex_decode(channel, 32, text) != 0)
        api_error_set(&e, ERR_INVALID, "channel", "channel must be 64 hexadecimal digits");
    else if (query_integer(x, "from", 0, 0, INT64_MAX, &from, &e) == 0 &&
             query_integer(x, "limit", 100, 1, LEDGER_PAGE_MAX, &limit, &e) == 0)
        page = ledger_query_receipts(n->ledger, channel, from, (uint32_t)limit, &e.err);
    json_t *list = NULL;
    if (page != NULL) {
        list = json_pack("{s:s, s:O, s:O}", "object", "list", "data",
                         json_object_get(page, "items"), "next", json_object_get(page, "next"));
        json_decref(page);
    }
    reply_query(x, list, &e);
}

void api_batch_file(struct node *n, struct http_exchange *x, const char *text)
{
    struct sha256_digest hash = {0};
    struct err err = {0};
    struct buf out = BUF_INIT;
    int rc = hex_decode(hash.bytes, 32, text);
    if (rc != 0)
        err_set(&err, ERR_INVALID, "a batch file's hash has 64 hexadecimal digits");
    else
        rc = ledger_batch_file(n->ledger, hash, &out, &err);
    if (rc != 0) {
        struct api_error e = {.err = err};
        api_error_hide(&e.err, "http");
        buf_release(&out);
        api_error_reply(x, &e);
        return;
    }
    http_set_header(x, "Cache-Control", "public, max-age=31536000, immutable");
    http_reply(x, 200, "application/json", &out);
}
