/* routes: which path does what. One table; everything in it is what the node offers over HTTP.
 *
 * A pattern ends in a slash when the rest of the path is an argument.
 *
 * Paths that need a key ask for it when the operator has configured keys. Those that cost something
 * take a payer's signed Request in its place (signed_request.h). What anyone needs to check a bill
 * is open by intent, keys or not: receipts, batch files and /rpc, where creators, data owners and
 * payers without an account here look up usage, rewards and proofs; what a payer owes, and vouchers
 * for it, which their signature authorises; /metrics and the health pages, which hold sums only. An
 * operator who wants fewer readers puts a proxy before those paths.
 *
 * /admin/v1 changes what the node serves and reads directories that it is told of. It asks for an
 * admin key (server.admin_keys). Without any, whoever is on this machine may ask, and only while
 * the node listens on loopback and the request comes straight from there: one that a proxy has
 * passed on (Forwarded, X-Forwarded-For, Via) or that a web page sends (Origin) is refused.
 *
 * While the model is loaded the node has no parts to answer with: /healthz and /readyz answer, all
 * other paths are 503, and 401, 404 and 405 as ever.
 *
 * A POST must say application/json, in no coding (else 415). Any page in the browser of somebody on
 * this machine may send a form or plain text here without asking first, and answers cost the house
 * account; for JSON the browser asks (Fetch standard, CORS preflight), and hears no unless CORS is
 * configured.
 */
#include "node/admission.h"
#include "node/api_error.h"
#include "node/api_keys.h"
#include "node/base/buf.h"
#include "node/base/log.h"
#include "node/http.h"
#include "node/metrics.h"
#include "node/node.h"
#include "node/signed_request.h"
#include "node/signed_voucher.h"
#include "node/workers.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { LOADING_RETRY_S = 5 };

static void healthz(struct node *n, struct http_exchange *x)
{
    (void)n;
    http_reply_text(x, 200, "text/plain; charset=utf-8", "ok\n");
}

static void readyz(struct node *n, struct http_exchange *x)
{
    char reason[256];
    bool ready = health_ready(n, reason);
    struct buf b = BUF_INIT;
    buf_appendf(&b, "%s%s%s\n", ready ? "ready" : "not ready", reason[0] != '\0' ? ": " : "",
                reason);
    http_reply(x, ready ? 200 : 503, "text/plain; charset=utf-8", &b);
}

static void metrics_page(struct node *n, struct http_exchange *x)
{
    struct buf b = BUF_INIT;
    metrics_render(n->metrics, &b,
                   &(struct metrics_sources){n->engine, n->ledger, n->service, n->http,
                                             n->admission, n->adapters});
    http_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", &b);
}

static const struct route {
    const char *method, *pattern;
    enum { OPEN, KEY, PAY, ADMIN } needs; /* PAY: a key, or a payer's Request */
    bool slow;
    void (*run)(struct node *n, struct http_exchange *x);
    void (*run_with)(struct node *n, struct http_exchange *x, const char *rest);
} routes[] = {
    {"POST", "/v1/chat/completions", PAY, false, api_openai_chat, NULL},
    {"POST", "/v1/completions", PAY, false, api_openai_completions, NULL},
    {"GET", "/v1/models", KEY, false, api_openai_models, NULL},
    {"GET", "/v1/models/", KEY, false, NULL, api_openai_model},
    {"GET", "/v1/receipts", OPEN, true, api_receipts, NULL},
    {"GET", "/v1/receipts/", OPEN, true, NULL, api_receipt},
    {"GET", "/v1/batches/", OPEN, true, NULL, api_batch_file},
    {"GET", "/v1/payers/", OPEN, true, NULL, api_payer},
    {"POST", "/v1/vouchers", OPEN, true, api_voucher, NULL},
    {"POST", "/rpc", OPEN, true, api_rpc, NULL},
    {"GET", "/rpc/openrpc.json", OPEN, false, api_rpc_openrpc, NULL},
    {"GET", "/metrics", OPEN, false, metrics_page, NULL},
    {"GET", "/healthz", OPEN, false, healthz, NULL},
    {"GET", "/readyz", OPEN, false, readyz, NULL},
    {"GET", "/", OPEN, false, status_page, NULL},
    {"GET", "/admin/v1/adapters", ADMIN, false, api_admin_adapters, NULL},
    {"POST", "/admin/v1/adapters", ADMIN, true, api_admin_add, NULL},
    {"GET", "/admin/v1/adapters/", ADMIN, false, NULL, api_admin_adapter},
    {"DELETE", "/admin/v1/adapters/", ADMIN, false, NULL, api_admin_remove},
    {"POST", "/admin/v1/adapters/", ADMIN, true, NULL, api_admin_order},
};

/* What needs no part of the node. */
static bool answers_early(const struct route *r)
{
    return r->run == healthz || r->run == readyz;
}

/* NULL: none. allowed [64] (may be NULL): the methods of those that have this path. */
static const struct route *find(const char *method, const char *path, const char **rest,
                                char *allowed)
{
    if (allowed != NULL)
        allowed[0] = '\0';
    if (strcmp(method, "HEAD") == 0)
        method = "GET"; /* the server leaves the body out */
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++) {
        const struct route *r = &routes[i];
        size_t n = strlen(r->pattern);
        bool match = r->run_with != NULL ? strncmp(path, r->pattern, n) == 0 && path[n] != '\0'
                                         : strcmp(path, r->pattern) == 0;
        if (!match)
            continue;
        *rest = path + n;
        if (strcmp(method, r->method) == 0)
            return r;
        if (allowed != NULL)
            snprintf(allowed + strlen(allowed), 64 - strlen(allowed), "%s%s",
                     allowed[0] != '\0' ? ", " : "", r->method);
    }
    return NULL;
}

static bool is_json(const char *type)
{
    static const char json[] = "application/json";
    if (type == NULL || strncasecmp(type, json, strlen(json)) != 0)
        return false;
    type += strlen(json);
    return type[strspn(type, " \t")] == '\0' || type[strspn(type, " \t")] == ';';
}

/* A refusal that has a status of its own, beside those of the error codes. */
static void refuse(struct http_exchange *x, unsigned status, struct api_error *e, const char *code)
{
    struct buf b = BUF_INIT;
    e->code = code;
    api_error_append(&b, e);
    http_reply(x, status, "application/json", &b);
}

/* A POST says what its body is, and it is what we read. Else answers 415. */
static void check_body(struct http_exchange *x)
{
    struct api_error e = {0};
    const char *type = http_header(x, "Content-Type");
    const char *coding = http_header(x, "Content-Encoding");
    if (!is_json(type)) {
        api_error_set(&e, ERR_INVALID, NULL,
                      "a POST needs Content-Type: application/json, this has %.100s (curl: --json "
                      "instead of -d)",
                      type == NULL ? "none" : type);
        refuse(x, 415, &e, "unsupported_media_type");
    } else if (coding != NULL && strcasecmp(coding, "identity") != 0) {
        http_set_header(x, "Accept-Encoding", "identity"); /* RFC 9110, 15.5.16 */
        api_error_set(&e, ERR_INVALID, NULL,
                      "Content-Encoding: %.100s is not read here; send the body as it is", coding);
        refuse(x, 415, &e, "unsupported_media_type");
    }
}

static bool key_is_good(const struct api_keys *keys, struct http_exchange *x, const char *kind,
                        struct api_error *e)
{
    const char *header = http_header(x, "Authorization");
    if (api_keys_find(keys, header) != NULL)
        return true;
    if (header == NULL)
        api_error_set(e, ERR_UNAUTHORIZED, NULL, "an %s key is needed: Authorization: Bearer KEY",
                      kind);
    else
        api_error_set(e, ERR_UNAUTHORIZED, NULL, "the %s key is not known here", kind);
    e->code = "invalid_api_key";
    return false;
}

static bool may_administer(const struct node *n, struct http_exchange *x, bool opened,
                           struct api_error *e)
{
    if (n->admin_keys != NULL)
        return key_is_good(n->admin_keys, x, "admin", e);
    static const char *const passed_on[] = {"Forwarded", "X-Forwarded-For", "Via", "Origin"};
    bool direct = !opened || http_is_loopback(atomic_load(&n->http));
    for (size_t i = 0; i < sizeof passed_on / sizeof *passed_on; i++)
        direct = direct && http_header(x, passed_on[i]) == NULL;
    if (!direct)
        api_error_set(e, ERR_FORBIDDEN, NULL,
                      "this needs an admin key, and the node has none (server.admin_keys)");
    return direct;
}

/* What needs a part of the node is not looked at before all are there: it gets a 503 anyway. */
static bool may_ask(struct node *n, const struct route *r, struct http_exchange *x, bool opened,
                    struct api_error *e)
{
    switch (r->needs) {
    case OPEN:
        return true;
    case PAY:
        if (http_header(x, SIGNED_REQUEST_HEADER) != NULL)
            return !opened || api_openai_check_payer(n, x, e) == 0;
        return n->keys == NULL || key_is_good(n->keys, x, "API", e);
    case KEY:
        return n->keys == NULL || key_is_good(n->keys, x, "API", e);
    case ADMIN:
        return may_administer(n, x, opened, e);
    }
    BUG("unknown access");
}

void routes_on_head(void *context, struct http_exchange *x)
{
    struct node *n = context;
    const char *rest;
    char allowed[64];
    bool opened = atomic_load(&n->opened); /* once: it may turn true at any moment */
    const struct route *r = find(http_method(x), http_path(x), &rest, allowed);
    http_set_user(x, (void *)(uintptr_t)r);
    struct api_error e = {0};
    if (r == NULL && allowed[0] != '\0') {
        http_set_header(x, "Allow", allowed);
        api_error_set(&e, ERR_INVALID, NULL, "%s %.100s: only %s is allowed", http_method(x),
                      http_path(x), allowed);
        refuse(x, 405, &e, "method_not_allowed");
    } else if (r == NULL) {
        api_error_set(&e, ERR_NOT_FOUND, NULL, "no such path: %s %.100s", http_method(x),
                      http_path(x));
        e.code = "unknown_url";
        api_error_reply(x, &e);
    } else if (!may_ask(n, r, x, opened, &e)) {
        api_error_reply(x, &e);
    } else if (!opened && !answers_early(r)) {
        api_error_set(&e, ERR_BUSY, NULL, "the node is starting: its model is being loaded");
        e.retry_after_s = LOADING_RETRY_S;
        api_error_reply(x, &e);
    } else if (strcmp(r->method, "POST") == 0) {
        if (r->run == api_voucher)
            http_body_limit(x, SIGNED_VOUCHER_BYTES_MAX);
        check_body(x);
    }
}

static void run(void *context, void *argument)
{
    struct node *n = context;
    struct http_exchange *x = argument;
    const char *rest;
    const struct route *r = find(http_method(x), http_path(x), &rest, NULL);
    if (r->run_with != NULL)
        r->run_with(n, x, rest);
    else
        r->run(n, x);
}

static void run_and_drop(void *context, void *argument)
{
    run(context, argument);
    http_drop(argument);
}

void routes_on_request(void *context, struct http_exchange *x)
{
    struct node *n = context;
    const struct route *r = http_user(x);
    if (!r->slow) {
        run(n, x);
        return;
    }
    http_retain(x);
    if (!workers_submit(n->workers, run_and_drop, n, x)) {
        struct api_error e = {0};
        api_error_set(&e, ERR_BUSY, NULL, "too many queries at the same time");
        e.retry_after_s = 1;
        api_error_reply(x, &e);
        http_drop(x);
    }
}

void routes_on_done(void *context, struct http_exchange *x, unsigned status, uint64_t us)
{
    const struct node *n = context;
    const struct route *r = http_user(x);
    metrics_http(n->metrics, r != NULL ? r->pattern : "unknown", status, us);
    log_debug("http", "%s %s %.100s %u %llu us", http_peer(x), http_method(x), http_path(x), status,
              (unsigned long long)us);
}
