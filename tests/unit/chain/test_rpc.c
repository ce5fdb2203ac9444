/* The JSON-RPC client against nodes that answer what a test tells them to: errors, lies, silence.
 */
#include "tests/http_server.h"

#include "chain/abi.h"
#include "chain/rpc.h"
#include "chain/rpc_json.h"
#include "chain/tx.h"
#include "node/base/arena.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* ---- a node ---------------------------------------------------------------------------------- */

enum mood {
    HEALTHY,
    HTTP_500,
    HTTP_429,
    HTTP_500_EXPLAINED,
    NOT_JSON,
    ANOTHER_ID,
    NEITHER,
    NOT_AN_OBJECT,
    TOO_LARGE,
    SILENT,
    CUT_OFF,
};

enum { ROWS_MAX = 16 };

struct node {
    struct server *server;
    _Atomic int mood;
    _Atomic size_t n_calls; /* without eth_chainId */
    pthread_mutex_t lock;
    struct {
        const char *method;
        char *result, *error; /* JSON texts, one of them */
    } rows[ROWS_MAX];
    size_t n_rows;
    char last_params[4096];
    /* eth_getLogs, when set: the answer's "result" or "error" member for a range. */
    char *(*logs)(struct node *node, uint64_t from, uint64_t to);
    uint64_t logs_limit;       /* blocks */
    const char *pending_nonce; /* when set: eth_getTransactionCount's result for "pending" */
};

static void node_says(struct node *n, const char *method, const char *result, const char *error)
{
    pthread_mutex_lock(&n->lock);
    size_t i = 0;
    while (i < n->n_rows && strcmp(n->rows[i].method, method) != 0)
        i++;
    assert_true(i < ROWS_MAX);
    if (i == n->n_rows)
        n->n_rows++;
    free(n->rows[i].result);
    free(n->rows[i].error);
    n->rows[i].method = method;
    n->rows[i].result = result == NULL ? NULL : xstrdup(result);
    n->rows[i].error = error == NULL ? NULL : xstrdup(error);
    pthread_mutex_unlock(&n->lock);
}

static char *node_member(struct node *n, const char *method, const json_t *params)
{
    if (n->logs != NULL && strcmp(method, "eth_getLogs") == 0) {
        const json_t *filter = json_array_get(params, 0);
        uint64_t from, to;
        if (rpc_json_u64(&from, json_object_get(filter, "fromBlock"), "", NULL) != 0 ||
            rpc_json_u64(&to, json_object_get(filter, "toBlock"), "", NULL) != 0)
            abort();
        return n->logs(n, from, to);
    }
    const char *when = json_string_value(json_array_get(params, 1));
    if (n->pending_nonce != NULL && strcmp(method, "eth_getTransactionCount") == 0 &&
        when != NULL && strcmp(when, "pending") == 0)
        return xasprintf("\"result\":\"%s\"", n->pending_nonce);
    for (size_t i = 0; i < n->n_rows; i++) {
        if (strcmp(n->rows[i].method, method) == 0)
            return n->rows[i].result != NULL ? xasprintf("\"result\":%s", n->rows[i].result)
                                             : xasprintf("\"error\":%s", n->rows[i].error);
    }
    return xasprintf("\"error\":{\"code\":-32601,\"message\":\"method %s not found\"}", method);
}

static void node_answer(struct exchange *x)
{
    static const char sick[] = "{\"id\":null,\"error\":{\"code\":1,\"message\":\"sick\"}}";
    struct node *n = x->server->context;
    json_t *request = json_loadb((const char *)x->body.data, x->body.len, 0, NULL);
    const char *method = json_string_value(json_object_get(request, "method"));
    json_int_t id = json_integer_value(json_object_get(request, "id"));
    const json_t *params = json_object_get(request, "params");
    int mood = atomic_load(&n->mood);
    if (method == NULL)
        abort();
    if (strcmp(method, "eth_chainId") != 0)
        atomic_fetch_add(&n->n_calls, 1);
    pthread_mutex_lock(&n->lock);
    char *text = json_dumps(params, JSON_COMPACT);
    snprintf(n->last_params, sizeof n->last_params, "%s", text);
    free(text);
    char *member = node_member(n, method, params);
    pthread_mutex_unlock(&n->lock);
    char *body = xasprintf("{\"jsonrpc\":\"2.0\",\"id\":%lld,%s}",
                           (long long)(mood == ANOTHER_ID ? id + 1 : id), member);
    switch (mood) {
    case HTTP_500:
        exchange_answer(x, 500, "", "oops", 4);
        break;
    case HTTP_429:
        exchange_answer(x, 429, "Retry-After: 1\r\n", "", 0);
        break;
    case HTTP_500_EXPLAINED:
        exchange_answer(x, 500, "", sick, sizeof sick - 1);
        break;
    case NOT_JSON:
        exchange_answer(x, 200, "", "<html>", 6);
        break;
    case NEITHER:
        exchange_answer(x, 200, "", "{\"jsonrpc\":\"2.0\",\"id\":1}", 24);
        break;
    case NOT_AN_OBJECT:
        exchange_answer(x, 200, "", "[1]", 3);
        break;
    case TOO_LARGE:
        exchange_text(x, "HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n{");
        x->close = true;
        break;
    case SILENT:
        exchange_sleep(x, 60000);
        x->close = true;
        break;
    case CUT_OFF:
        exchange_text(x, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{");
        x->close = true;
        break;
    default:
        exchange_answer(x, 200, "Content-Type: application/json\r\n", body, strlen(body));
    }
    free(body);
    free(member);
    json_decref(request);
}

static struct node *node_start(const char *chain_id)
{
    struct node *n = xcalloc(1, sizeof *n);
    pthread_mutex_init(&n->lock, NULL);
    node_says(n, "eth_chainId", chain_id, NULL);
    n->server = server_start(node_answer, n);
    return n;
}

static void node_stop(struct node *n)
{
    server_stop(n->server);
    for (size_t i = 0; i < n->n_rows; i++) {
        free(n->rows[i].result);
        free(n->rows[i].error);
    }
    pthread_mutex_destroy(&n->lock);
    free(n);
}

static struct node *a, *b;
static uint64_t timeout_ms = 10000;

/* A client of n nodes; the path stands for the API key that many providers put there. */
static struct rpc *open_rpc(size_t n, uint64_t chain_id)
{
    char *urls[] = {xasprintf("http://127.0.0.1:%u/v3/SECRET", a->server->port),
                    xasprintf("http://user:SECRET@127.0.0.1:%u/?key=SECRET", b->server->port)};
    struct rpc_options opt = {.urls = (const char *const *)urls,
                              .n_urls = n,
                              .chain_id = chain_id,
                              .timeout_ms = timeout_ms,
                              .endpoint_rest_ms = 200,
                              .max_response_bytes = 1 << 20};
    struct err err;
    struct rpc *rpc = rpc_open(&opt, &err);
    if (rpc == NULL)
        fail_msg("%s", err.message);
    free(urls[0]);
    free(urls[1]);
    return rpc;
}

static int start_nodes(void **state)
{
    (void)state;
    log_set_level(LOG_ERROR);
    a = node_start("\"0x64c\""); /* 1612 */
    b = node_start("\"0x64c\"");
    return 0;
}

static int stop_nodes(void **state)
{
    (void)state;
    node_stop(a);
    node_stop(b);
    return 0;
}

static const char zero_hash[] =
    "0x0000000000000000000000000000000000000000000000000000000000000000";
static const char some_hash[] =
    "0x1111111111111111111111111111111111111111111111111111111111111111";

static char *block_json(const char *number, const char *base_fee)
{
    return xasprintf(
        "{\"number\":%s,\"timestamp\":\"0x6\",\"hash\":\"%s\",\"parentHash\":\"%s\"%s%s%s}", number,
        some_hash, zero_hash, base_fee ? ",\"baseFeePerGas\":\"" : "", base_fee ? base_fee : "",
        base_fee ? "\"" : "");
}

/* ---- endpoints ------------------------------------------------------------------------------- */

static void options_are_checked(void **state)
{
    (void)state;
    static const char *const bad[] = {"file:///etc/passwd"}, *const good[] = {"http://127.0.0.1:1"};
    struct err err;
    assert_null(rpc_open(&(struct rpc_options){.urls = good, .n_urls = 0}, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_null(rpc_open(&(struct rpc_options){.urls = good, .n_urls = 99}, &err));
    assert_null(rpc_open(&(struct rpc_options){.urls = bad, .n_urls = 1}, &err));
    assert_int_equal(err.code, ERR_INVALID);
    rpc_close(NULL);
}

static void a_sick_endpoint_is_passed_over_and_named_without_its_key(void **state)
{
    (void)state;
    static const struct {
        enum mood mood;
        enum err_code code;
        const char *says;
    } cases[] = {
        {HTTP_500, ERR_UPSTREAM, "HTTP status 500"},
        {HTTP_429, ERR_UPSTREAM, "HTTP status 429"},
        {HTTP_500_EXPLAINED, ERR_UPSTREAM, "HTTP status 500: sick"},
        {NOT_JSON, ERR_UPSTREAM, "not JSON"},
        {ANOTHER_ID, ERR_UPSTREAM, "to another request"},
        {NEITHER, ERR_UPSTREAM, ""},
        {NOT_AN_OBJECT, ERR_UPSTREAM, "not a JSON object"},
        {SILENT, ERR_TIMEOUT, "no complete answer within 300 ms"},
        {CUT_OFF, ERR_UPSTREAM, "ends early"},
        {TOO_LARGE, ERR_TOO_LARGE, "announces 10737418240 bytes"},
    };
    node_says(a, "eth_blockNumber", "\"0xa\"", NULL);
    node_says(b, "eth_blockNumber", "\"0xb\"", NULL);
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct err err = {.code = ERR_OK};
        json_t *value = NULL;
        struct rpc_health health;

        /* Alone: the failure is the answer. */
        timeout_ms = cases[i].mood == SILENT ? 300 : 10000;
        struct rpc *rpc = open_rpc(1, 1612);
        atomic_store(&a->mood, (int)cases[i].mood);
        assert_int_equal(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), -1);
        if (err.code != cases[i].code || strstr(err.message, cases[i].says) == NULL ||
            strstr(err.message, "http://127.0.0.1:") != err.message ||
            strstr(err.message, "SECRET") != NULL)
            fail_msg("mood %d: %s: %s", (int)cases[i].mood, err_code_name(err.code), err.message);
        rpc_close(rpc);

        /* With a healthy one beside it: that one answers. Too large an answer is no sickness. */
        rpc = open_rpc(2, 1612);
        if (cases[i].mood != TOO_LARGE) {
            assert_ok(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), err);
            assert_string_equal(json_string_value(value), "0xb");
            json_decref(value);
            rpc_health(rpc, &health);
            assert_true(health.answers);
            assert_int_equal(health.failures, 1);
            assert_int_equal(health.failovers, 1);
            assert_null(strstr(health.endpoint, "SECRET"));
        }
        rpc_close(rpc);
        atomic_store(&a->mood, HEALTHY);
    }
    timeout_ms = 10000;
}

static void an_endpoint_is_preferred_while_it_answers(void **state)
{
    (void)state;
    struct rpc *rpc = open_rpc(2, 1612);
    struct err err;
    json_t *value = NULL;
    node_says(a, "eth_blockNumber", "\"0xa\"", NULL);
    node_says(b, "eth_blockNumber", "\"0xb\"", NULL);
    atomic_store(&a->mood, HTTP_500);
    assert_ok(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), err);
    json_decref(value);
    /* It is well again, but nobody asks: b answers, and is asked first. */
    atomic_store(&a->mood, HEALTHY);
    size_t before = atomic_load(&a->server->n_requests);
    for (int i = 0; i < 5; i++) {
        assert_ok(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), err);
        assert_string_equal(json_string_value(value), "0xb");
        json_decref(value);
    }
    assert_int_equal(atomic_load(&a->server->n_requests), before);
    /* When b fails, a is asked, although it may still be resting. */
    atomic_store(&b->mood, HTTP_500);
    assert_ok(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), err);
    assert_string_equal(json_string_value(value), "0xa");
    json_decref(value);
    atomic_store(&b->mood, HEALTHY);
    rpc_close(rpc);
}

static void all_endpoints_down_is_an_error_that_ends(void **state)
{
    (void)state;
    struct rpc *rpc = open_rpc(2, 1612);
    struct err err;
    json_t *value = NULL;
    struct rpc_health health;
    atomic_store(&a->mood, HTTP_500);
    atomic_store(&b->mood, HTTP_500);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), -1);
        assert_int_equal(err.code, ERR_UPSTREAM);
    }
    rpc_health(rpc, &health);
    assert_false(health.answers);
    assert_int_equal(health.failures, 6);
    atomic_store(&a->mood, HEALTHY);
    atomic_store(&b->mood, HEALTHY);
    assert_ok(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), err);
    json_decref(value);
    rpc_health(rpc, &health);
    assert_true(health.answers);
    rpc_close(rpc);
}

static void another_chain_is_refused(void **state)
{
    (void)state;
    struct err err;
    json_t *value = NULL;
    uint64_t id;
    node_says(a, "eth_blockNumber", "\"0xa\"", NULL);
    node_says(b, "eth_blockNumber", "\"0xb\"", NULL);
    node_says(a, "eth_chainId", "\"0x1\"", NULL);

    struct rpc *rpc = open_rpc(1, 1612);
    assert_int_equal(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), -1);
    assert_int_equal(err.code, ERR_UPSTREAM);
    assert_non_null(strstr(err.message, "is on chain 1, not on 1612"));
    rpc_close(rpc);

    rpc = open_rpc(2, 1612);
    assert_ok(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), err);
    assert_string_equal(json_string_value(value), "0xb");
    json_decref(value);
    rpc_close(rpc);

    /* With none configured the first to answer decides, for all. */
    rpc = open_rpc(2, 0);
    assert_ok(rpc_chain_id(rpc, &id, &err), err);
    assert_int_equal(id, 1);
    atomic_store(&a->mood, HTTP_500);
    assert_int_equal(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), -1);
    assert_non_null(strstr(err.message, "is on chain 1612, not on 1"));
    atomic_store(&a->mood, HEALTHY);
    rpc_close(rpc);
    node_says(a, "eth_chainId", "\"0x64c\"", NULL);
}

static void an_endpoint_that_came_back_on_another_chain_is_noticed(void **state)
{
    (void)state;
    struct rpc *rpc = open_rpc(1, 1612);
    struct err err;
    json_t *value = NULL;
    assert_ok(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), err);
    json_decref(value);
    atomic_store(&a->mood, HTTP_500);
    assert_int_equal(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), -1);
    atomic_store(&a->mood, HEALTHY);
    node_says(a, "eth_chainId", "\"0x5\"", NULL);
    assert_int_equal(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), -1);
    assert_non_null(strstr(err.message, "is on chain 5"));
    node_says(a, "eth_chainId", "\"0x64c\"", NULL);
    rpc_close(rpc);
}

static void errors_about_the_call_end_it_and_errors_about_the_endpoint_do_not(void **state)
{
    (void)state;
    static const struct {
        const char *error;
        bool asks_b;
    } cases[] = {
        {"{\"code\":-32000,\"message\":\"bad block\"}", false},
        {"{\"code\":-32602,\"message\":\"bad block\"}", false},
        {"{\"code\":-32601,\"message\":\"bad block\"}", true},
        {"{\"code\":-32005,\"message\":\"bad block\"}", true},
        {"{\"code\":429,\"message\":\"bad block\"}", true},
    };
    node_says(b, "eth_thing", "true", NULL);
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct rpc *rpc = open_rpc(2, 1612);
        struct err err;
        json_t *value = NULL;
        node_says(a, "eth_thing", NULL, cases[i].error);
        size_t before = atomic_load(&b->n_calls);
        int rc = rpc_request(rpc, "eth_thing", NULL, &value, &err);
        assert_int_equal(atomic_load(&b->n_calls) - before, cases[i].asks_b ? 1 : 0);
        assert_int_equal(rc, cases[i].asks_b ? 0 : -1);
        if (rc != 0) {
            assert_int_equal(err.code, ERR_INVALID);
            assert_non_null(strstr(err.message, "eth_thing: bad block (code "));
        }
        json_decref(value);
        rpc_close(rpc);
    }
    /* All have the same error: it is the answer. */
    struct rpc *rpc = open_rpc(2, 1612);
    struct err err;
    json_t *value = NULL;
    assert_int_equal(rpc_request(rpc, "eth_nonsense", NULL, &value, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.message, "method eth_nonsense not found"));
    rpc_close(rpc);
}

static void *raise_flag(void *flag)
{
    usleep(100 * 1000);
    atomic_store((_Atomic bool *)flag, true);
    return NULL;
}

static void a_cancelled_call_tries_no_other_endpoint(void **state)
{
    (void)state;
    _Atomic bool cancel = false;
    char *urls[] = {xasprintf("http://127.0.0.1:%u", a->server->port),
                    xasprintf("http://127.0.0.1:%u", b->server->port)};
    struct rpc_options opt = {.urls = (const char *const *)urls, .n_urls = 2, .cancel = &cancel};
    struct err err;
    struct rpc *rpc = rpc_open(&opt, &err);
    pthread_t thread;
    json_t *value = NULL;
    atomic_store(&a->mood, SILENT);
    size_t before = atomic_load(&b->server->n_requests);
    assert_int_equal(pthread_create(&thread, NULL, raise_flag, &cancel), 0);
    assert_int_equal(rpc_request(rpc, "eth_blockNumber", NULL, &value, &err), -1);
    pthread_join(thread, NULL);
    assert_int_equal(err.code, ERR_CANCELLED);
    assert_int_equal(atomic_load(&b->server->n_requests), before);
    atomic_store(&a->mood, HEALTHY);
    rpc_close(rpc);
    free(urls[0]);
    free(urls[1]);
}

static void *ask_often(void *arg)
{
    struct rpc *rpc = arg;
    for (int i = 0; i < 20; i++) {
        struct err err;
        uint64_t nonce;
        if (rpc_nonce(rpc, &nonce, (struct address){{1}}, RPC_AT_LATEST, &err) != 0 || nonce != 7)
            return "failed";
    }
    return NULL;
}

static void threads_share_a_client(void **state)
{
    (void)state;
    struct rpc *rpc = open_rpc(2, 1612);
    pthread_t threads[8];
    node_says(a, "eth_getTransactionCount", "\"0x7\"", NULL);
    node_says(b, "eth_getTransactionCount", "\"0x7\"", NULL);
    for (size_t i = 0; i < COUNT(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ask_often, rpc), 0);
    atomic_store(&a->mood, HTTP_500);
    for (size_t i = 0; i < COUNT(threads); i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    atomic_store(&a->mood, HEALTHY);
    rpc_close(rpc);
}

/* ---- typed calls ----------------------------------------------------------------------------- */

static void blocks_and_accounts_are_read(void **state)
{
    (void)state;
    struct rpc *rpc = open_rpc(1, 1612);
    struct err err;
    struct rpc_block block;
    struct u256 wei;
    uint64_t nonce;
    struct buf code = BUF_INIT;
    char *json = block_json("\"0x10\"", "0x3b9aca00");
    node_says(a, "eth_getBlockByNumber", json, NULL);
    assert_ok(rpc_block(rpc, &block, RPC_AT_BLOCK(16), &err), err);
    assert_string_equal(a->last_params, "[\"0x10\",false]");
    assert_true(block.number == 16 && block.timestamp_s == 6 && block.has_base_fee);
    assert_int_equal(u256_cmp(block.base_fee, u256_of(1000000000)), 0);
    assert_int_equal(rpc_block(rpc, &block, RPC_AT_BLOCK(17), &err), -1);
    assert_string_equal(err.message, "asked for block 17, got 16");
    assert_ok(rpc_block(rpc, &block, RPC_AT_SAFE, &err), err);
    assert_string_equal(a->last_params, "[\"safe\",false]");
    free(json);
    json = block_json("\"0x10\"", NULL);
    node_says(a, "eth_getBlockByNumber", json, NULL);
    assert_ok(rpc_block(rpc, &block, RPC_AT_LATEST, &err), err);
    assert_false(block.has_base_fee);
    free(json);
    node_says(a, "eth_getBlockByNumber", "null", NULL);
    assert_int_equal(rpc_block(rpc, &block, RPC_AT_BLOCK(99), &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    node_says(a, "eth_getBlockByNumber", NULL, "{\"code\":-39001,\"message\":\"Unknown block\"}");
    assert_int_equal(rpc_block(rpc, &block, RPC_AT_FINALIZED, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);

    node_says(a, "eth_getTransactionCount", "\"0x00ff\"", NULL);
    assert_ok(rpc_nonce(rpc, &nonce, (struct address){{0xab}}, RPC_AT_PENDING, &err), err);
    assert_int_equal(nonce, 255);
    assert_string_equal(a->last_params,
                        "[\"0xab00000000000000000000000000000000000000\",\"pending\"]");
    node_says(a, "eth_getBalance", "\"0xde0b6b3a7640000\"", NULL);
    assert_ok(rpc_balance(rpc, &wei, (struct address){{1}}, RPC_AT_LATEST, &err), err);
    char text[U256_TEXT_BYTES];
    assert_string_equal(u256_format(text, wei), "1000000000000000000");
    node_says(a, "eth_getCode", "\"0x6001\"", NULL);
    assert_ok(rpc_code(rpc, &code, (struct address){{1}}, RPC_AT_LATEST, &err), err);
    assert_true(code.len == 2 && code.data[0] == 0x60);
    buf_release(&code);

    static const char *const no_quantities[] = {
        "\"\"",          "\"0x\"",   "\"12\"",   "12", "null",
        "\"0xg\"",       "\"0x 1\"", "\"-0x1\"", "[]", "\"0x10000000000000000\"",
        "\"0x1\\u0000\""};
    for (size_t i = 0; i < COUNT(no_quantities); i++) {
        node_says(a, "eth_getTransactionCount", no_quantities[i], NULL);
        if (rpc_nonce(rpc, &nonce, (struct address){{1}}, RPC_AT_LATEST, &err) != -1 ||
            err.code != ERR_UPSTREAM)
            fail_msg("%s was taken for a nonce", no_quantities[i]);
    }
    rpc_close(rpc);
}

static void a_revert_is_a_conflict_with_its_reason_in_words(void **state)
{
    (void)state;
    static const struct {
        const char *error, *says;
    } cases[] = {
        /* StakeTooSmall(address,uint128,uint128), as geth and anvil put it */
        {"{\"code\":3,\"message\":\"execution reverted\",\"data\":\"0x"
         "%s"
         "0000000000000000000000001111111111111111111111111111111111111111"
         "0000000000000000000000000000000000000000000000000000000000000005"
         "0000000000000000000000000000000000000000000000000000000000000006\"}",
         "StakeTooSmall(operator: 0x1111111111111111111111111111111111111111, total: 5, wanted: "
         "6)"},
        {"{\"code\":-32000,\"message\":\"x\",\"data\":{\"data\":\"0x4e487b71"
         "0000000000000000000000000000000000000000000000000000000000000011\"}}",
         "panic 17: arithmetic overflow or underflow"},
        {"{\"code\":-32015,\"message\":\"VM execution error.\",\"data\":\"Reverted 0x08c379a0"
         "0000000000000000000000000000000000000000000000000000000000000020"
         "0000000000000000000000000000000000000000000000000000000000000004"
         "6261640a00000000000000000000000000000000000000000000000000000000\"}",
         "reverts: bad?"},
        {"{\"code\":3,\"message\":\"execution reverted\",\"data\":\"0x12345678\"}",
         "reverts: 0x12345678"},
        {"{\"code\":3,\"message\":\"execution reverted\",\"data\":\"0x\"}",
         "reverts: execution reverted"},
        {"{\"code\":-32000,\"message\":\"VM Exception: revert\"}", "VM Exception: revert"},
    };
    struct rpc *rpc = open_rpc(1, 1612);
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct err err = {.code = ERR_OK};
        struct buf out = BUF_INIT, revert = BUF_INIT;
        struct rpc_call call = {.to = {{1}}, .data = (const uint8_t *)"\x01\x02", .n_data = 2};
        uint64_t gas;
        /* keccak256("StakeTooSmall(address,uint128,uint128)") */
        char *error = xstrdup(cases[i].error), *at = strstr(error, "%s");
        if (at != NULL) {
            free(error);
            uint8_t selector[4];
            char hex[9];
            abi_selector(selector, "StakeTooSmall(address,uint128,uint128)");
            hex_encode(hex, selector, 4);
            size_t n = (size_t)(strstr(cases[i].error, "%s") - cases[i].error);
            error = xasprintf("%.*s%s%s", (int)n, cases[i].error, hex, cases[i].error + n + 2);
        }
        node_says(a, "eth_call", NULL, error);
        node_says(a, "eth_estimateGas", NULL, error);
        assert_int_equal(rpc_call(rpc, &out, &call, RPC_AT_LATEST, &revert, &err), -1);
        if (err.code != ERR_CONFLICT || strstr(err.message, cases[i].says) == NULL)
            fail_msg("%s: %s: %s", error, err_code_name(err.code), err.message);
        assert_int_equal(rpc_estimate_gas(rpc, &gas, &call, NULL, &err), -1);
        assert_int_equal(err.code, ERR_CONFLICT);
        free(error);
        buf_release(&out);
        buf_release(&revert);
    }
    struct err err;
    struct buf out = BUF_INIT;
    struct rpc_call call = {.from = {{2}}, .creates = true, .value = u256_of(5)};
    node_says(a, "eth_call", NULL, "{\"code\":-32602,\"message\":\"invalid argument\"}");
    assert_int_equal(rpc_call(rpc, &out, &call, RPC_AT_BLOCK(3), NULL, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    node_says(a, "eth_call", "\"0x0102\"", NULL);
    assert_ok(rpc_call(rpc, &out, &call, RPC_AT_BLOCK(3), NULL, &err), err);
    assert_int_equal(out.len, 2);
    assert_string_equal(a->last_params, "[{\"from\":\"0x0200000000000000000000000000000000000000\","
                                        "\"value\":\"0x5\",\"data\":\"0x\"},\"0x3\"]");
    buf_release(&out);
    rpc_close(rpc);
}

static void fees_follow_the_history_or_the_legacy_price(void **state)
{
    (void)state;
    static const struct {
        const char *history, *tip, *base_fee;
        bool legacy;
        uint64_t max_fee, max_tip, gas_price;
    } cases[] = {
        /* tips 5, 1 and 3 (the block without transactions doesn't count): median 3 */
        {"{\"baseFeePerGas\":[\"0x1\",\"0x2\",\"0x3\",\"0x4\",\"0x64\"],\"gasUsedRatio\":[0.5,0.1,"
         "0,1],"
         "\"reward\":[[\"0x5\"],[\"0x1\"],[\"0x0\"],[\"0x3\"]]}",
         NULL, "0x64", false, 203, 3, 103},
        {"{\"baseFeePerGas\":[\"0x64\",\"0x64\"],\"gasUsedRatio\":[0],\"reward\":[[\"0x0\"]]}",
         "\"0x7\"", "0x64", false, 207, 7, 107},
        {"{\"baseFeePerGas\":[\"0x64\",\"0x64\"],\"gasUsedRatio\":[0]}", NULL, "0x64", false, 201,
         1, 101},
        {"{\"baseFeePerGas\":[\"0x0\",\"0x0\"],\"gasUsedRatio\":[0]}", NULL, "0x0", false, 1, 1, 1},
        {"{\"baseFeePerGas\":[\"0x0\",\"0x0\"],\"gasUsedRatio\":[0]}", NULL, NULL, true, 0, 0, 9},
        {"{\"baseFeePerGas\":[]}", NULL, NULL, true, 0, 0, 9},
        {"{\"baseFeePerGas\":[\"no\"]}", NULL, NULL, true, 0, 0, 9},
        {"[]", NULL, NULL, true, 0, 0, 9},
        {NULL, NULL, NULL, true, 0, 0, 9},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct rpc *rpc = open_rpc(1, 1612);
        struct rpc_fees fees;
        struct err err;
        const char *missing = "{\"code\":-32601,\"message\":\"not found\"}";
        char *block = block_json("\"0x1\"", cases[i].base_fee);
        node_says(a, "eth_feeHistory", cases[i].history, cases[i].history ? NULL : missing);
        node_says(a, "eth_maxPriorityFeePerGas", cases[i].tip, cases[i].tip ? NULL : missing);
        node_says(a, "eth_gasPrice", "\"0x9\"", NULL);
        node_says(a, "eth_getBlockByNumber", block, NULL);
        assert_ok(rpc_fees(rpc, &fees, &err), err);
        if (fees.legacy != cases[i].legacy ||
            u256_cmp(fees.max_fee, u256_of(cases[i].max_fee)) != 0 ||
            u256_cmp(fees.max_priority_fee, u256_of(cases[i].max_tip)) != 0 ||
            u256_cmp(fees.gas_price, u256_of(cases[i].gas_price)) != 0)
            fail_msg("case %zu: legacy %d, max fee %llu, tip %llu, gas price %llu", i, fees.legacy,
                     (unsigned long long)fees.max_fee.limb[0],
                     (unsigned long long)fees.max_priority_fee.limb[0],
                     (unsigned long long)fees.gas_price.limb[0]);
        free(block);
        rpc_close(rpc);
    }
    struct rpc *rpc = open_rpc(1, 1612);
    struct rpc_fees fees;
    struct err err;
    char *huge = xasprintf("{\"baseFeePerGas\":[\"0x%064d\"]}", 0);
    memset(strchr(huge, 'x') + 1, 'f', 64);
    node_says(a, "eth_feeHistory", huge, NULL);
    assert_int_equal(rpc_fees(rpc, &fees, &err), -1);
    assert_non_null(strstr(err.message, "impossible base fee"));
    free(huge);
    rpc_close(rpc);
}

static void the_l1_fee_is_zero_where_there_is_no_oracle(void **state)
{
    (void)state;
    struct rpc *rpc = open_rpc(1, 1612);
    struct u256 wei;
    struct err err;
    node_says(a, "eth_call", "\"0x\"", NULL);
    assert_ok(rpc_l1_fee(rpc, &wei, "abc", 3, &err), err);
    assert_true(u256_is_zero(wei));
    assert_non_null(
        strstr(a->last_params, "\"to\":\"0x420000000000000000000000000000000000000f\""));
    /* getL1Fee(bytes) of 0x616263 */
    assert_non_null(strstr(a->last_params, "\"data\":\"0x49948e0e"));
    node_says(a, "eth_call",
              "\"0x0000000000000000000000000000000000000000000000000000000000000102\"", NULL);
    assert_ok(rpc_l1_fee(rpc, &wei, "abc", 3, &err), err);
    assert_int_equal(u256_cmp(wei, u256_of(258)), 0);
    node_says(a, "eth_call", "\"0x01\"", NULL);
    assert_int_equal(rpc_l1_fee(rpc, &wei, "abc", 3, &err), -1);
    rpc_close(rpc);
}

/* ---- broadcasting ---------------------------------------------------------------------------- */

static void a_refused_broadcast_is_explained_by_the_chain(void **state)
{
    (void)state;
    static const char mined[] = "{\"transactionHash\":\"%s\",\"blockNumber\":\"0x5\",\"blockHash\":"
                                "\"%s\",\"status\":\"0x1\","
                                "\"gasUsed\":\"0x5208\",\"logs\":[]}";
    /* The transaction: nonce 7, 21,000 gas at 100 wei at most, value 1,000: costs up to 2,101,000.
     */
    static const struct {
        const char *what, *error;
        bool receipt, known;
        const char *nonce, *pending, *balance, *base_fee;
        enum rpc_sent expected;
    } cases[] = {
        {"mined", "nonce too low", true, true, "0x8", "0x8", "0x0", "0x1", RPC_MINED},
        {"known", "already known", false, true, "0x7", "0x8", "0x0", "0x1", RPC_SENT},
        {"nonce used", "nonce too low", false, false, "0x8", "0x8", "0x0", "0x1", RPC_NONCE_USED},
        {"no funds", "insufficient funds", false, false, "0x7", "0x7", "0x200f07", "0x1",
         RPC_NO_FUNDS},
        {"base fee", "max fee per gas less than block base fee", false, false, "0x7", "0x7",
         "0x200f08", "0x65", RPC_FEE_TOO_LOW},
        {"another pending", "replacement transaction underpriced", false, false, "0x7", "0x8",
         "0x200f08", "0x64", RPC_UNDERPRICED},
        {"the node's floor", "transaction underpriced", false, false, "0x7", "0x7", "0x200f08",
         "0x64", RPC_FEE_TOO_LOW},
        {"something else", "only replay-protected", false, false, "0x7", "0x7", "0x200f08", "0x64",
         RPC_REFUSED},
    };
    struct tx tx = {.kind = TX_FEE_MARKET,
                    .chain_id = 1612,
                    .nonce = 7,
                    .gas_limit = 21000,
                    .max_fee = u256_of(100),
                    .value = u256_of(1000)};
    struct signature sig = {.r = {1}, .s = {1}};
    struct buf bytes = BUF_INIT;
    tx_write_signed(&bytes, &tx, &sig);
    struct tx_hash hash = tx_hash_of(bytes.data, bytes.len);
    char hash_text[67];
    hex_encode_0x(hash_text, hash.bytes, 32);

    for (size_t i = 0; i < COUNT(cases); i++) {
        struct rpc *rpc = open_rpc(1, 1612);
        struct err err, why = {.code = ERR_OK};
        enum rpc_sent sent;
        char *error = xasprintf("{\"code\":-32000,\"message\":\"%s\"}", cases[i].error);
        char *receipt = xasprintf(mined, hash_text, some_hash);
        char *block = block_json("\"0x5\"", cases[i].base_fee);
        char *balance = xasprintf("\"%s\"", cases[i].balance);
        node_says(a, "eth_sendRawTransaction", NULL, error);
        node_says(a, "eth_getTransactionReceipt", cases[i].receipt ? receipt : "null", NULL);
        node_says(a, "eth_getTransactionByHash", cases[i].known ? "{}" : "null", NULL);
        node_says(a, "eth_getBalance", balance, NULL);
        node_says(a, "eth_getBlockByNumber", block, NULL);
        char *nonce = xasprintf("\"%s\"", cases[i].nonce);
        a->pending_nonce = cases[i].pending;
        node_says(a, "eth_getTransactionCount", nonce, NULL);
        assert_ok(rpc_send(rpc, &sent, bytes.data, bytes.len, (struct address){{1}}, &why, &err),
                  err);
        if (sent != cases[i].expected)
            fail_msg("%s: %s: %s", cases[i].what, rpc_sent_name(sent), why.message);
        if (sent != RPC_SENT && sent != RPC_MINED)
            assert_true(why.code != ERR_OK && why.message[0] != '\0');
        free(error);
        free(receipt);
        free(block);
        free(balance);
        free(nonce);
        rpc_close(rpc);
    }

    a->pending_nonce = NULL;
    struct rpc *rpc = open_rpc(2, 1612);
    struct err err, why;
    enum rpc_sent sent;
    char *result = xasprintf("\"%s\"", hash_text);
    node_says(b, "eth_sendRawTransaction", result, NULL);
    assert_ok(rpc_send(rpc, &sent, bytes.data, bytes.len, (struct address){{1}}, &why, &err), err);
    assert_int_equal(sent, RPC_SENT); /* a refuses, b takes it */
    node_says(a, "eth_sendRawTransaction",
              "\"0x1111111111111111111111111111111111111111111111111111111111111111\"", NULL);
    node_says(b, "eth_sendRawTransaction",
              "\"0x1111111111111111111111111111111111111111111111111111111111111111\"", NULL);
    assert_int_equal(rpc_send(rpc, &sent, bytes.data, bytes.len, (struct address){{1}}, &why, &err),
                     -1);
    assert_non_null(strstr(err.message, "by another hash"));
    size_t before = atomic_load(&a->n_calls);
    assert_int_equal(
        rpc_send(rpc, &sent, bytes.data, bytes.len - 1, (struct address){{1}}, &why, &err), -1);
    assert_int_equal(err.code, ERR_CORRUPT);
    buf_reset(&bytes);
    tx_write_unsigned(&bytes, &tx);
    assert_int_equal(rpc_send(rpc, &sent, bytes.data, bytes.len, (struct address){{1}}, &why, &err),
                     -1);
    assert_int_equal(err.code, ERR_CORRUPT);
    assert_int_equal(atomic_load(&a->n_calls), before);
    free(result);
    buf_release(&bytes);
    rpc_close(rpc);
}

static void receipts_are_read_and_checked(void **state)
{
    (void)state;
    static const char good[] =
        "{\"transactionHash\":"
        "\"0x1111111111111111111111111111111111111111111111111111111111111111\","
        "\"blockNumber\":\"0x5\","
        "\"blockHash\":\"0x2222222222222222222222222222222222222222222222222222222222222222\","
        "\"status\":\"0x1\",\"gasUsed\":\"0x5208\",\"effectiveGasPrice\":\"0x9\",\"l1Fee\":\"0x3\","
        "\"contractAddress\":null,\"logs\":[{"
        "\"address\":\"0x3333333333333333333333333333333333333333\",\"topics\":["
        "\"0x4444444444444444444444444444444444444444444444444444444444444444\"],"
        "\"data\":\"0x0102\",\"blockNumber\":\"0x5\",\"transactionIndex\":\"0x0\","
        "\"logIndex\":\"0x2\","
        "\"transactionHash\":"
        "\"0x1111111111111111111111111111111111111111111111111111111111111111\","
        "\"blockHash\":\"0x2222222222222222222222222222222222222222222222222222222222222222\"}]}";
    /* What in it is replaced by what. */
    static const struct {
        const char *field, *becomes;
    } broken[] = {
        {"\"0x5\"", "null,\"x\":\"0x5\""},
        {"\"status\":\"0x1\"", "\"status\":\"0x2\""},
        {"\"status\":\"0x1\"", "\"no\":1"},
        {"0x5208", "5208"},
        {"0x1111", "0x1112"},
        {"0x2222", "0x222"},
        {"0x3333", "0x33"},
        {"\"data\":\"0x0102\"", "\"data\":\"0x010\""},
        {"\"data\":\"0x0102\"", "\"data\":\"0x01zz\""},
        {"\"data\":\"0x0102\"", "\"data\":7"},
        {"\"topics\":[", "\"topics\":[1,"},
        {"\"topics\":[", "\"t\":["},
        {"\"logs\":[", "\"logs\":[null,"},
        {"\"logs\":[", "\"l\":["},
        {"\"logIndex\":\"0x2\"", "\"removed\":true,\"logIndex\":\"0x2\""},
        {"null,\"logs\"", "\"0x33\",\"logs\""},
    };
    struct rpc *rpc = open_rpc(1, 1612);
    struct arena arena = ARENA_INIT;
    struct rpc_receipt receipt;
    struct rpc_logs logs;
    struct tx_hash hash;
    struct err err;
    memset(hash.bytes, 0x11, 32);
    node_says(a, "eth_getTransactionReceipt", good, NULL);
    assert_ok(rpc_tx_receipt(rpc, &receipt, hash, &logs, &arena, &err), err);
    assert_true(receipt.mined && receipt.succeeded && receipt.block_number == 5 &&
                receipt.gas_used == 21000 && receipt.gas_price.limb[0] == 9 &&
                receipt.l1_fee.limb[0] == 3 && !receipt.created);
    assert_int_equal(logs.n, 1);
    assert_true(logs.items[0].n_topics == 1 && logs.items[0].n_data == 2 &&
                logs.items[0].log_index == 2 && logs.items[0].address.bytes[19] == 0x33);
    size_t unmined = 0;
    for (size_t i = 0; i < COUNT(broken); i++) {
        const char *at = strstr(good, broken[i].field);
        assert_non_null(at);
        char *text = xasprintf("%.*s%s%s", (int)(at - good), good, broken[i].becomes,
                               at + strlen(broken[i].field));
        node_says(a, "eth_getTransactionReceipt", text, NULL);
        int rc = rpc_tx_receipt(rpc, &receipt, hash, &logs, &arena, &err);
        if (rc == 0 && !receipt.mined)
            unmined++; /* a receipt without a block is none */
        else if (rc != -1 || err.code != ERR_UPSTREAM)
            fail_msg("receipt with %s was taken", broken[i].becomes);
        free(text);
    }
    assert_int_equal(unmined, 1);
    node_says(a, "eth_getTransactionReceipt", "null", NULL);
    assert_ok(rpc_tx_receipt(rpc, &receipt, hash, NULL, NULL, &err), err);
    assert_false(receipt.mined);
    arena_release(&arena);
    rpc_close(rpc);
}

/* ---- events ---------------------------------------------------------------------------------- */

static char *log_json(uint64_t block, uint64_t index, int topic)
{
    return xasprintf(
        "{\"address\":\"0x3333333333333333333333333333333333333333\",\"topics\":["
        "\"0x%064d\"],\"data\":\"0x\",\"blockNumber\":\"0x%llx\",\"transactionIndex\":"
        "\"0x0\",\"logIndex\":\"0x%llx\",\"transactionHash\":\"%s\",\"blockHash\":\"%s\"}",
        topic, (unsigned long long)block, (unsigned long long)index, some_hash, some_hash);
}

/* One log in each hundredth block, unless the range is longer than the node likes. */
static char *a_log_each_hundred(struct node *n, uint64_t from, uint64_t to)
{
    if (to - from + 1 > n->logs_limit)
        return xasprintf("\"error\":{\"code\":-32602,\"message\":\"more than %llu blocks\"}",
                         (unsigned long long)n->logs_limit);
    struct buf text = BUF_INIT;
    buf_append_str(&text, "\"result\":[");
    size_t n_logs = 0;
    for (uint64_t block = from + (100 - from % 100) % 100; block >= from && block <= to;
         block += 100) {
        char *one = log_json(block, block, 7);
        buf_appendf(&text, "%s%s", n_logs++ > 0 ? "," : "", one);
        free(one);
    }
    buf_append_byte(&text, ']');
    return buf_detach(&text);
}

struct seen {
    size_t n;
    uint64_t last;
    uint64_t stop_at;
};

static int see_log(void *context, const struct rpc_log *log, struct err *err)
{
    struct seen *s = context;
    assert_int_equal(log->block_number % 100, 0);
    assert_true(s->n == 0 || log->block_number == s->last + 100);
    s->n++;
    s->last = log->block_number;
    if (s->stop_at != 0 && log->block_number >= s->stop_at) {
        err_set(err, ERR_CORRUPT, "enough");
        return 42;
    }
    return 0;
}

static const struct address emitter = {{0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33,
                                        0x33, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33,
                                        0x33, 0x33, 0x33, 0x33, 0x33, 0x33}};

static void logs_are_walked_page_by_page_as_large_as_the_node_allows(void **state)
{
    (void)state;
    static const struct {
        uint64_t from, to, limit;
        size_t n_logs, calls_at_most;
    } cases[] = {
        {0, 9999, 100000, 100, 20},
        {1, 99, 500, 0, 1},
        {100, 100, 500, 1, 1},
        {0, 500, 500, 6, 2},
        {0, 9999, 1000, 100, 20},
        {0, 2999, 100, 30, 60},
        {0, 299, 1, 3, 600},
        {7, 6, 500, 0, 0},
        {UINT64_MAX - 99, UINT64_MAX, 500, 1, 1},
    };
    struct bytes32 topic = {{0}};
    topic.bytes[31] = 7;
    a->logs = a_log_each_hundred;
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct rpc *rpc = open_rpc(1, 1612);
        struct seen seen = {0};
        struct err err;
        struct rpc_log_filter filter = {.addresses = &emitter,
                                        .n_addresses = 1,
                                        .topics = {&topic},
                                        .from_block = cases[i].from,
                                        .to_block = cases[i].to};
        a->logs_limit = cases[i].limit;
        size_t before = atomic_load(&a->n_calls);
        assert_ok(rpc_logs(rpc, &filter, see_log, &seen, &err), err);
        size_t n_calls = atomic_load(&a->n_calls) - before;
        if (seen.n != cases[i].n_logs || n_calls > cases[i].calls_at_most)
            fail_msg("case %zu: %zu logs in %zu calls", i, seen.n, n_calls);
        rpc_close(rpc);
    }
    struct rpc *rpc = open_rpc(1, 1612);
    struct seen seen = {.stop_at = 300};
    struct err err;
    struct rpc_log_filter filter = {.from_block = 0, .to_block = 9999};
    a->logs_limit = 1000;
    assert_int_equal(rpc_logs(rpc, &filter, see_log, &seen, &err), 42);
    assert_string_equal(err.message, "enough");
    assert_int_equal(seen.n, 4);
    a->logs_limit = 0;
    assert_int_equal(rpc_logs(rpc, &filter, see_log, &seen, &err), -1);
    assert_non_null(strstr(err.message, "eth_getLogs: more than 0 blocks"));
    a->logs = NULL;
    rpc_close(rpc);
}

static int count_log(void *context, const struct rpc_log *log, struct err *err)
{
    (void)log;
    (void)err;
    ++*(size_t *)context;
    return 0;
}

static void logs_nobody_asked_for_are_refused(void **state)
{
    (void)state;
    struct bytes32 topic = {{0}};
    struct address other = {{9}};
    topic.bytes[31] = 7;
    static const struct {
        uint64_t block[2], index[2];
        int topic;
        bool other_address;
        const char *says;
    } cases[] = {
        {{10, 11}, {0, 0}, 7, false, NULL},
        {{10, 10}, {0, 1}, 7, false, NULL},
        {{10, 10}, {1, 0}, 7, false, "out of order"},
        {{10, 10}, {0, 0}, 7, false, "out of order"},
        {{11, 10}, {0, 1}, 7, false, "out of order"},
        {{10, 21}, {0, 1}, 7, false, "nobody asked for"},
        {{9, 10}, {0, 1}, 7, false, "nobody asked for"},
        {{10, 11}, {0, 1}, 8, false, "nobody asked for"},
        {{10, 11}, {0, 1}, 7, true, "nobody asked for"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct rpc *rpc = open_rpc(1, 1612);
        struct err err;
        size_t n = 0;
        struct rpc_log_filter filter = {.addresses = cases[i].other_address ? &other : &emitter,
                                        .n_addresses = 1,
                                        .topics = {&topic},
                                        .from_block = 10,
                                        .to_block = 20};
        char *one = log_json(cases[i].block[0], cases[i].index[0], cases[i].topic);
        char *two = log_json(cases[i].block[1], cases[i].index[1], cases[i].topic);
        char *list = xasprintf("[%s,%s]", one, two);
        node_says(a, "eth_getLogs", list, NULL);
        int rc = rpc_logs(rpc, &filter, count_log, &n, &err);
        if (cases[i].says == NULL) {
            assert_ok(rc, err);
            assert_int_equal(n, 2);
        } else if (rc != -1 || strstr(err.message, cases[i].says) == NULL) {
            fail_msg("case %zu: %d, %s", i, rc, rc == 0 ? "accepted" : err.message);
        }
        free(one);
        free(two);
        free(list);
        rpc_close(rpc);
    }
    struct rpc *rpc = open_rpc(1, 1612);
    struct err err;
    size_t n = 0;
    struct rpc_log_filter filter = {.from_block = 10, .to_block = 20};
    node_says(a, "eth_getLogs", "{}", NULL);
    assert_int_equal(rpc_logs(rpc, &filter, count_log, &n, &err), -1);
    assert_int_equal(err.code, ERR_UPSTREAM);
    rpc_close(rpc);
}

static void deeply_nested_and_doubled_json_is_refused(void **state)
{
    (void)state;
    struct rpc_node_error e = {0};
    json_t *value = NULL;
    struct err err;
    char *deep = xmalloc(200001);
    memset(deep, '[', 200000);
    deep[200000] = '\0';
    assert_int_equal(rpc_json_answer(&value, &e, deep, 200000, 1, &err), -1);
    free(deep);
    static const char doubled[] = "{\"id\":1,\"result\":\"0x1\",\"result\":\"0x2\"}";
    assert_int_equal(rpc_json_answer(&value, &e, doubled, sizeof doubled - 1, 1, &err), -1);
    static const char both[] = "{\"id\":1,\"result\":\"0x1\",\"error\":\"no\"}";
    assert_int_equal(rpc_json_answer(&value, &e, both, sizeof both - 1, 1, &err), -1);
    static const char null_error[] = "{\"id\":1,\"result\":null,\"error\":null}";
    assert_int_equal(rpc_json_answer(&value, &e, null_error, sizeof null_error - 1, 1, &err), 0);
    json_decref(value);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(a_sick_endpoint_is_passed_over_and_named_without_its_key),
        cmocka_unit_test(an_endpoint_is_preferred_while_it_answers),
        cmocka_unit_test(all_endpoints_down_is_an_error_that_ends),
        cmocka_unit_test(another_chain_is_refused),
        cmocka_unit_test(an_endpoint_that_came_back_on_another_chain_is_noticed),
        cmocka_unit_test(errors_about_the_call_end_it_and_errors_about_the_endpoint_do_not),
        cmocka_unit_test(a_cancelled_call_tries_no_other_endpoint),
        cmocka_unit_test(threads_share_a_client),
        cmocka_unit_test(blocks_and_accounts_are_read),
        cmocka_unit_test(a_revert_is_a_conflict_with_its_reason_in_words),
        cmocka_unit_test(fees_follow_the_history_or_the_legacy_price),
        cmocka_unit_test(the_l1_fee_is_zero_where_there_is_no_oracle),
        cmocka_unit_test(a_refused_broadcast_is_explained_by_the_chain),
        cmocka_unit_test(receipts_are_read_and_checked),
        cmocka_unit_test(logs_are_walked_page_by_page_as_large_as_the_node_allows),
        cmocka_unit_test(logs_nobody_asked_for_are_refused),
        cmocka_unit_test(deeply_nested_and_doubled_json_is_refused),
    };
    return cmocka_run_group_tests_name("rpc", tests, start_nodes, stop_nodes);
}
