/* rpc: the endpoints. See rpc.h; the typed calls are in rpc_calls.c and rpc_logs.c.
 *
 * Problem. Public endpoints rate-limit, lag, go away, and once in a while belong to another chain.
 * The publisher must neither stop because of one of them nor believe a wrong one.
 *
 * Idea. Each request walks the endpoints in an order made for it: the preferred one first, the
 * others after it, those that failed lately last (but not never: when all have failed, all are
 * tried).
 *
 *   for each endpoint in order
 *       not checked since it failed last?    eth_chainId first; another chain: a failure
 *       POST                                 transport error, HTTP error, no JSON-RPC: a failure
 *       the node's error is about itself     remember it, try the next
 *       result, or an error about the call   the end; this endpoint is preferred from now on
 *
 * A failed endpoint rests for endpoint_rest_ms and must show its chain id again. Failures of the
 * last endpoint are what the caller hears, unless an endpoint did answer with an error of its own.
 *
 * The lock covers the few words of state above, never a request, so any number of threads may ask
 * at once. URLs hold API keys, in their path as often as in their query: errors and logs name the
 * host alone. */
#include "chain/rpc_internal.h"

#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/http_client.h"
#include "node/base/log.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    DEFAULT_TIMEOUT_MS = 15000,
    DEFAULT_CONNECT_MS = 5000,
    DEFAULT_REST_MS = 10000,
    DEFAULT_LOGS_PAGE = 500,
    REST_MAX_MS = 600000, /* of a Retry-After */
    /* Codes that say more about the endpoint than about the call. */
    CODE_METHOD_NOT_FOUND = -32601, /* JSON-RPC 2.0 */
    CODE_LIMIT_EXCEEDED = -32005,   /* EIP-1474 */
    CODE_METHOD_NOT_SUPPORTED = -32004,
    CODE_RESOURCE_UNAVAILABLE = -32002,
    CODE_TOO_MANY_REQUESTS = 429, /* some providers repeat the HTTP status */
};
#define DEFAULT_RESPONSE_BYTES ((size_t)4 << 20)

struct endpoint {
    char *url;
    char name[256]; /* for people: without what may hold a key */
    bool checked;   /* it has shown the expected chain id since it failed last */
    bool resting;   /* it failed; until: */
    struct monotonic_us rests_since;
    uint64_t rest_ms;
};

struct rpc {
    struct rpc_options opt; /* constant, defaults filled in; urls not used */
    size_t n;               /* constant */
    struct http_client *http;

    pthread_mutex_t lock; /* everything below */
    struct endpoint endpoints[RPC_ENDPOINTS_MAX];
    size_t preferred;
    uint64_t chain_id; /* 0: not known yet */
    uint64_t next_id;
    struct rpc_health health;
    struct monotonic_us last_answer;
};

static uint64_t or_default(uint64_t value, uint64_t fallback)
{
    return value != 0 ? value : fallback;
}

struct rpc *rpc_open(const struct rpc_options *opt, struct err *err)
{
    if (opt->n_urls == 0 || opt->n_urls > RPC_ENDPOINTS_MAX) {
        err_set(err, ERR_INVALID, "%zu RPC endpoints, from 1 to %d are possible", opt->n_urls,
                RPC_ENDPOINTS_MAX);
        return NULL;
    }
    for (size_t i = 0; i < opt->n_urls; i++) {
        const char *url = opt->urls[i];
        if (strncmp(url, "http://", 7) != 0 && strncmp(url, "https://", 8) != 0) {
            char shown[128];
            err_set(err, ERR_INVALID, "RPC endpoint %s: neither an http nor an https URL",
                    http_url_redact(shown, sizeof shown, url, true));
            return NULL;
        }
    }
    struct rpc *rpc = xcalloc(1, sizeof *rpc);
    rpc->opt = *opt;
    rpc->opt.urls = NULL;
    rpc->opt.timeout_ms = or_default(opt->timeout_ms, DEFAULT_TIMEOUT_MS);
    rpc->opt.connect_timeout_ms = or_default(opt->connect_timeout_ms, DEFAULT_CONNECT_MS);
    rpc->opt.endpoint_rest_ms = or_default(opt->endpoint_rest_ms, DEFAULT_REST_MS);
    rpc->opt.max_response_bytes = or_default(opt->max_response_bytes, DEFAULT_RESPONSE_BYTES);
    rpc->opt.logs_page_blocks = or_default(opt->logs_page_blocks, DEFAULT_LOGS_PAGE);
    rpc->n = opt->n_urls;
    rpc->chain_id = opt->chain_id;
    rpc->http = http_client_create();
    rpc->last_answer = clock_monotonic_us();
    pthread_mutex_init(&rpc->lock, NULL);
    for (size_t i = 0; i < rpc->n; i++) {
        struct endpoint *e = &rpc->endpoints[i];
        e->url = xstrdup(opt->urls[i]);
        http_url_redact(e->name, sizeof e->name, e->url, true);
    }
    return rpc;
}

void rpc_close(struct rpc *rpc)
{
    if (rpc == NULL)
        return;
    for (size_t i = 0; i < rpc->n; i++)
        free(rpc->endpoints[i].url);
    http_client_free(rpc->http);
    pthread_mutex_destroy(&rpc->lock);
    free(rpc);
}

uint64_t rpc_logs_page(const struct rpc *rpc)
{
    return rpc->opt.logs_page_blocks;
}

/* ---- one endpoint ------------------------------------------------------------------------- */

static json_t *make_request(uint64_t id, const char *method, json_t *params)
{
    json_t *request = json_pack("{s:s, s:I, s:s, s:O}", "jsonrpc", "2.0", "id", (json_int_t)id,
                                "method", method, "params", params);
    BUG_IF(request == NULL);
    return request;
}

/* How long an endpoint wants to be left alone; 0: it didn't say. */
struct refusal {
    uint64_t rest_ms;
};

/* One POST to one endpoint. As rpc_ask. */
static int post(struct rpc *rpc, const struct endpoint *e, const char *method, json_t *params,
                json_t **result, struct rpc_node_error *node_error, struct refusal *refusal,
                struct err *err)
{
    static const char *const headers[] = {"Content-Type: application/json"};
    pthread_mutex_lock(&rpc->lock);
    uint64_t id = ++rpc->next_id;
    pthread_mutex_unlock(&rpc->lock);
    json_t *request = make_request(id, method, params);
    char *text = json_dumps(request, JSON_COMPACT);
    json_decref(request);
    BUG_IF(text == NULL);

    struct buf body = BUF_INIT;
    struct http_reply reply;
    struct http_call call = {
        .method = HTTP_POST,
        .url = e->url,
        .name = e->name,
        .headers = headers,
        .n_headers = 1,
        .body = text,
        .n_body = strlen(text),
        .max_body_bytes = rpc->opt.max_response_bytes,
        .connect_timeout_ms = rpc->opt.connect_timeout_ms,
        .timeout_ms = rpc->opt.timeout_ms,
        .stall_ms = rpc->opt.timeout_ms,
        .cancel = rpc->opt.cancel,
    };
    *refusal = (struct refusal){0};
    int rc = http_client_fetch(rpc->http, &call, &body, &reply, err);
    if (rc == 0) {
        bool ok = reply.status == 200;
        rc = rpc_json_answer(result, node_error, body.data, body.len, id, err);
        if (!ok && rc != 1) {
            /* An HTTP error speaks for itself unless the node explains it in JSON-RPC. */
            if (rc == 0)
                json_decref(*result);
            rc = err_set(err, ERR_UPSTREAM, "%s: %s: HTTP status %d", e->name, method,
                         reply.status);
        } else if (rc < 0) {
            err_wrap(err, "%s: %s", e->name, method);
        }
        refusal->rest_ms = reply.retry_after_s > REST_MAX_MS / 1000 ? REST_MAX_MS
                                                                    : reply.retry_after_s * 1000;
        if (rc == 1 && (reply.status == 429 || reply.status >= 500)) {
            err_set(err, ERR_UPSTREAM, "%s: %s: HTTP status %d: %s", e->name, method, reply.status,
                    node_error->message);
            rpc_node_error_release(node_error);
            rc = -1;
        }
    }
    buf_release(&body);
    free(text);
    return rc;
}

/* Whether the endpoint is on the expected chain; asks it once. The first one to answer decides when
 * none is configured. */
static int check_chain(struct rpc *rpc, const struct endpoint *e, struct refusal *refusal,
                       struct err *err)
{
    json_t *value = NULL, *params = json_array();
    struct rpc_node_error node_error = {0};
    uint64_t id = 0;
    int rc = post(rpc, e, "eth_chainId", params, &value, &node_error, refusal, err);
    json_decref(params);
    if (rc == 1) {
        rc = err_set(err, ERR_UPSTREAM, "%s: eth_chainId: %s", e->name, node_error.message);
        rpc_node_error_release(&node_error);
    } else if (rc == 0) {
        rc = rpc_json_u64(&id, value, "chain id", err);
        json_decref(value);
        if (rc != 0)
            err_wrap(err, "%s", e->name);
    }
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&rpc->lock);
    if (rpc->chain_id == 0)
        rpc->chain_id = id;
    uint64_t expected = rpc->chain_id;
    pthread_mutex_unlock(&rpc->lock);
    if (id == 0 || id != expected)
        return err_set(err, ERR_UPSTREAM, "%s is on chain %llu, not on %llu", e->name,
                       (unsigned long long)id, (unsigned long long)expected);
    return 0;
}

/* ---- all endpoints ------------------------------------------------------------------------ */

/* The order in which to ask: awake ones from the preferred on, then the resting. */
static void make_order(struct rpc *rpc, size_t order[RPC_ENDPOINTS_MAX])
{
    size_t n = 0;
    struct monotonic_us now = clock_monotonic_us();
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < rpc->n; i++) {
            size_t k = (rpc->preferred + i) % rpc->n;
            struct endpoint *e = &rpc->endpoints[k];
            if (e->resting && clock_elapsed_us(e->rests_since, now) / 1000 >= e->rest_ms)
                e->resting = false;
            if (e->resting == (pass == 1))
                order[n++] = k;
        }
    }
}

static void note_failure(struct rpc *rpc, size_t k, struct refusal refusal, const struct err *why)
{
    pthread_mutex_lock(&rpc->lock);
    struct endpoint *e = &rpc->endpoints[k];
    bool news = !e->resting;
    e->checked = false;
    e->resting = true;
    e->rests_since = clock_monotonic_us();
    e->rest_ms = refusal.rest_ms > rpc->opt.endpoint_rest_ms ? refusal.rest_ms
                                                             : rpc->opt.endpoint_rest_ms;
    rpc->health.failures++;
    pthread_mutex_unlock(&rpc->lock);
    if (news)
        log_warn("chain", "endpoint fails: %s", why->message);
}

static void note_answer(struct rpc *rpc, size_t k)
{
    pthread_mutex_lock(&rpc->lock);
    rpc->endpoints[k].checked = true;
    rpc->endpoints[k].resting = false;
    if (rpc->preferred != k)
        rpc->health.failovers++;
    rpc->preferred = k;
    rpc->last_answer = clock_monotonic_us();
    rpc->health.answers = true;
    pthread_mutex_unlock(&rpc->lock);
}

static bool is_about_the_endpoint(const struct rpc_node_error *e)
{
    return e->code == CODE_METHOD_NOT_FOUND || e->code == CODE_LIMIT_EXCEEDED ||
           e->code == CODE_METHOD_NOT_SUPPORTED || e->code == CODE_RESOURCE_UNAVAILABLE ||
           e->code == CODE_TOO_MANY_REQUESTS;
}

int rpc_ask(struct rpc *rpc, enum rpc_ask_mode mode, const char *method, json_t *params,
            json_t **result, struct rpc_node_error *node_error, struct err *err)
{
    size_t order[RPC_ENDPOINTS_MAX];
    struct err why = {.code = ERR_UPSTREAM, .message = "no RPC endpoint"};
    bool answered = false; /* some endpoint did, with an error that *node_error has */
    int rc = -1;
    if (params == NULL)
        params = json_array();
    *node_error = (struct rpc_node_error){0};
    pthread_mutex_lock(&rpc->lock);
    make_order(rpc, order);
    rpc->health.calls++;
    pthread_mutex_unlock(&rpc->lock);

    for (size_t i = 0; i < rpc->n; i++) {
        /* url and name never change; checked is a hint, read under the lock. */
        const struct endpoint *e = &rpc->endpoints[order[i]];
        struct rpc_node_error its_error = {0};
        struct refusal refusal = {0};
        pthread_mutex_lock(&rpc->lock);
        bool checked = e->checked;
        pthread_mutex_unlock(&rpc->lock);
        rc = checked ? 0 : check_chain(rpc, e, &refusal, &why);
        if (rc == 0)
            rc = post(rpc, e, method, params, result, &its_error, &refusal, &why);
        if (rc < 0 && why.code == ERR_CANCELLED)
            break;
        if (rc < 0) {
            /* An answer that is too large is this request's fault. */
            if (why.code == ERR_TOO_LARGE)
                break;
            note_failure(rpc, order[i], refusal, &why);
            continue;
        }
        if (rc == 1) {
            rpc_node_error_release(node_error);
            *node_error = its_error;
            answered = true;
            bool more = mode == RPC_ASK_ALL || is_about_the_endpoint(&its_error);
            pthread_mutex_lock(&rpc->lock);
            rpc->endpoints[order[i]].checked = true;
            pthread_mutex_unlock(&rpc->lock);
            if (more && i + 1 < rpc->n)
                continue;
        }
        note_answer(rpc, order[i]);
        break;
    }
    json_decref(params);
    if (rc == 0 || (rc < 0 && (why.code == ERR_CANCELLED || why.code == ERR_TOO_LARGE))) {
        rpc_node_error_release(node_error);
    } else if (answered) {
        return 1;
    }
    if (rc != 0) {
        if (why.code != ERR_CANCELLED && why.code != ERR_TOO_LARGE) {
            pthread_mutex_lock(&rpc->lock);
            rpc->health.answers = false;
            pthread_mutex_unlock(&rpc->lock);
        }
        if (err != NULL)
            *err = why;
        return -1;
    }
    return 0;
}

int rpc_fail_with(const struct rpc_node_error *e, const char *method, struct err *err)
{
    return err_set(err, ERR_INVALID, "%s: %s (code %lld)", method, e->message, (long long)e->code);
}

int rpc_ask_result(struct rpc *rpc, const char *method, json_t *params, json_t **result,
                   struct err *err)
{
    struct rpc_node_error node_error;
    int rc = rpc_ask(rpc, RPC_ASK_ONE, method, params, result, &node_error, err);
    if (rc == 1) {
        rc = rpc_fail_with(&node_error, method, err);
        rpc_node_error_release(&node_error);
    }
    return rc;
}

int rpc_request(struct rpc *rpc, const char *method, json_t *params, json_t **result,
                struct err *err)
{
    return rpc_ask_result(rpc, method, params, result, err);
}

int rpc_chain_id(struct rpc *rpc, uint64_t *out, struct err *err)
{
    pthread_mutex_lock(&rpc->lock);
    uint64_t id = rpc->chain_id;
    pthread_mutex_unlock(&rpc->lock);
    if (id == 0) {
        json_t *value = NULL;
        if (rpc_ask_result(rpc, "eth_chainId", NULL, &value, err) != 0)
            return -1;
        json_decref(value);
        pthread_mutex_lock(&rpc->lock);
        id = rpc->chain_id; /* set by the check that came before the answer */
        pthread_mutex_unlock(&rpc->lock);
    }
    *out = id;
    return 0;
}

void rpc_health(struct rpc *rpc, struct rpc_health *out)
{
    pthread_mutex_lock(&rpc->lock);
    *out = rpc->health;
    out->silent_ms = clock_elapsed_us(rpc->last_answer, clock_monotonic_us()) / 1000;
    memcpy(out->endpoint, rpc->endpoints[rpc->preferred].name, sizeof out->endpoint);
    pthread_mutex_unlock(&rpc->lock);
}

/* ---- values ------------------------------------------------------------------------------- */

json_t *rpc_value_u256(struct u256 v)
{
    char text[BYTES32_TEXT_BYTES];
    return json_string(u256_format_hex(text, v));
}

json_t *rpc_value_quantity(uint64_t v)
{
    return rpc_value_u256(u256_of(v));
}

json_t *rpc_value_hex(const void *bytes, size_t n)
{
    char *text = xmalloc(2 * n + 3);
    json_t *value = json_string(hex_encode_0x(text, bytes, n));
    free(text);
    return value;
}

json_t *rpc_value_at(struct rpc_at at)
{
    switch (at.tag) {
    case RPC_LATEST:
        return json_string("latest");
    case RPC_SAFE:
        return json_string("safe");
    case RPC_FINALIZED:
        return json_string("finalized");
    case RPC_PENDING:
        return json_string("pending");
    case RPC_EARLIEST:
        return json_string("earliest");
    case RPC_NUMBER:
        return rpc_value_quantity(at.number);
    }
    BUG("no such block tag");
}
