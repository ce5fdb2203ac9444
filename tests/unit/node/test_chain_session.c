/* What the commands send: never dearer than allowed, and never lost sight of. */
#include "tests/http_server.h"
#include "tests/support.h"

#include "chain/tx.h"
#include "node/base/arena.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/cli/chain_session.h"
#include "node/config.h"
#include "wallet/wallet.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define GWEI "0x3b9aca00"

struct endpoint {
    struct server *server;
    struct rpc *rpc;
    struct config *config;
    struct chain_session session;
    const char *base_fee, *tip;
    bool loses_answers;  /* to eth_sendRawTransaction: takes it and says nothing */
    bool then_dies;      /* asked for the receipt */
    size_t of_two_minds; /* takes the n-th, calls its nonce used like those before it, and
                            knows it only when asked again; 0: takes all */
    size_t n_asked;      /* for a receipt */
    struct buf sent;     /* the newest transaction */
    size_t n_sent;
};

static json_t *result_of(struct endpoint *e, const char *method, const json_t *params)
{
    char text[67];
    if (strcmp(method, "eth_chainId") == 0)
        return json_string("0x7a69");
    if (strcmp(method, "eth_estimateGas") == 0)
        return json_string("0x5208");
    if (strcmp(method, "eth_getTransactionCount") == 0)
        return json_sprintf("0x%zx", e->of_two_minds ? e->n_sent : 0);
    if (strcmp(method, "eth_getTransactionByHash") == 0 ||
        (strcmp(method, "eth_getTransactionReceipt") == 0 &&
         (e->n_sent < e->of_two_minds || (e->of_two_minds && e->n_asked++ == 0))))
        return json_null();
    if (strcmp(method, "eth_feeHistory") == 0)
        return json_pack("{s:[s, s], s:[[s]], s:[f]}", "baseFeePerGas", e->base_fee, e->base_fee,
                         "reward", e->tip, "gasUsedRatio", 0.5);
    if (strcmp(method, "eth_sendRawTransaction") == 0) {
        const char *hex = json_string_value(json_array_get(params, 0));
        size_t n = strlen(hex) / 2 - 1;
        buf_reset(&e->sent);
        buf_reserve(&e->sent, n);
        if (hex_decode(e->sent.data, n, hex) != 0)
            abort();
        e->sent.len = n;
        e->n_sent++;
        struct tx_hash hash = tx_hash_of(e->sent.data, n);
        return e->loses_answers ? NULL : json_string(hex_encode_0x(text, hash.bytes, 32));
    }
    if (strcmp(method, "eth_getTransactionReceipt") == 0 && !e->then_dies) {
        struct tx_hash hash = tx_hash_of(e->sent.data, e->sent.len);
        hex_encode_0x(text, hash.bytes, 32);
        return json_pack("{s:s, s:s, s:s, s:s, s:s}", "transactionHash", text, "blockHash", text,
                         "blockNumber", "0x1", "status", "0x1", "gasUsed", "0x5208");
    }
    return NULL;
}

static void answer(struct exchange *x)
{
    json_t *request = json_loadb(buf_cstr(&x->body), x->body.len, 0, NULL);
    const char *method = json_string_value(json_object_get(request, "method"));
    bool is_send = strcmp(method, "eth_sendRawTransaction") == 0;
    json_t *result = result_of(x->server->context, method, json_object_get(request, "params"));
    const struct endpoint *e = x->server->context;
    if (result == NULL) {
        exchange_answer(x, 502, "", "", 0);
    } else if (is_send && e->n_sent <= e->of_two_minds) {
        static const char refusal[] =
            "{\"id\":null,\"error\":{\"code\":-32000,\"message\":\"nonce too low\"}}";
        exchange_answer(x, 200, "", refusal, sizeof refusal - 1);
        json_decref(result);
    } else {
        exchange_answer_rpc(x, request, result);
    }
    json_decref(request);
}

static int set_up(void **state)
{
    struct endpoint *e = xcalloc(1, sizeof *e);
    struct wallet_memory_key key = {"default", {0}};
    struct err err = {0};
    log_set_level(LOG_ERROR);
    memset(key.key, 0x11, sizeof key.key);
    e->base_fee = GWEI;
    e->tip = "0x3e8";
    e->sent = (struct buf)BUF_INIT;
    e->server = server_start(answer, e);
    char *url = xasprintf("http://127.0.0.1:%u", e->server->port);
    struct rpc_options options = {.urls = (const char *const *)&url, .n_urls = 1};
    e->rpc = rpc_open(&options, &err);
    assert_non_null(e->rpc);
    free(url);
    e->config = config_create();
    e->session = (struct chain_session){
        .config = e->config,
        .rpc = e->rpc,
        .wallet = wallet_open_memory(&key, 1, &err),
        .contracts = {.chain_id = 31337},
        .must_wait = true,
    };
    assert_non_null(e->session.wallet);
    *state = e;
    return 0;
}

static int tear_down(void **state)
{
    struct endpoint *e = *state;
    chain_session_close(&e->session);
    server_stop(e->server);
    config_free(e->config);
    buf_release(&e->sent);
    free(e);
    return 0;
}

static int send_one(struct endpoint *e, struct chain_sent *sent, struct err *err)
{
    struct address to = {{0xaa}};
    struct buf data = BUF_INIT;
    buf_append_str(&data, "call");
    int rc = chain_send(&e->session, sent, "deposit", "default", &to, &data, err);
    buf_release(&data);
    return rc;
}

static struct tx what_was_sent(const struct endpoint *e)
{
    struct arena arena = ARENA_INIT;
    struct tx tx;
    struct signature signature;
    bool is_signed;
    struct err err = {0};
    assert_ok(tx_parse(&tx, &signature, &is_signed, &arena, e->sent.data, e->sent.len, &err), err);
    assert_true(is_signed);
    arena_release(&arena);
    return tx;
}

static void an_endpoint_cannot_make_a_command_pay_more_than_allowed(void **state)
{
    struct endpoint *e = *state;
    struct chain_sent sent;
    struct err err = {0};
    struct u256 cap = u256_of_amount(config_amount(e->config, CONFIG_CHAIN_MAX_FEE_PER_GAS));
    assert_ok(send_one(e, &sent, &err), err);
    assert_true(sent.mined);
    struct tx tx = what_was_sent(e);
    assert_int_equal(u256_cmp(tx.max_fee, u256_of(2000001000)), 0);
    e->tip = "0xde0b6b3a7640000"; /* one whole coin for each unit of gas */
    assert_ok(send_one(e, &sent, &err), err);
    tx = what_was_sent(e);
    assert_true(u256_cmp(tx.max_fee, cap) <= 0);
    assert_true(u256_cmp(tx.max_priority_fee, cap) <= 0);
    size_t before = e->n_sent;
    e->base_fee = "0xde0b6b3a7640000";
    assert_int_equal(send_one(e, &sent, &err), -1);
    assert_int_equal(err.code, ERR_PAYMENT);
    assert_non_null(strstr(err.message, "chain.max_fee_per_gas"));
    assert_int_equal(e->n_sent, before);
}

/* Who tries again without looking may pay twice. */
static void a_transaction_that_may_be_out_is_named(void **state)
{
    struct endpoint *e = *state;
    for (int row = 0; row < 2; row++) {
        struct chain_sent sent;
        struct err err = {0};
        char hash[67];
        e->loses_answers = row == 0;
        e->then_dies = row == 1;
        assert_int_equal(send_one(e, &sent, &err), -1);
        struct tx_hash its = tx_hash_of(e->sent.data, e->sent.len);
        if (strstr(err.message, hex_encode_0x(hash, its.bytes, 32)) == NULL)
            fail_msg("row %d: \"%s\" names no transaction", row, err.message);
    }
}

static void a_transaction_that_took_its_own_nonce_is_not_paid_twice(void **state)
{
    struct endpoint *e = *state;
    static const size_t taken[] = {1, 6}; /* the first; the last that is tried */
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) {
        struct chain_sent sent;
        struct err err = {0};
        e->of_two_minds = taken[i];
        e->n_sent = e->n_asked = 0;
        assert_ok(send_one(e, &sent, &err), err);
        assert_true(sent.mined);
        assert_int_equal(e->n_sent, taken[i]);
    }
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(an_endpoint_cannot_make_a_command_pay_more_than_allowed),
        T(a_transaction_that_may_be_out_is_named),
        T(a_transaction_that_took_its_own_nonce_is_not_paid_twice),
    };
    return cmocka_run_group_tests_name("chain_session", tests, NULL, NULL);
}
