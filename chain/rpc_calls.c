/* rpc_calls: the methods that Tributary uses, as C functions. See rpc.h.
 *
 * Broadcasting is the one that needs thought. Nodes refuse a transaction with words and codes of
 * their own ("nonce too low" is -32000 with geth, -32003 with anvil; "already known" is an error
 * with some and a success with others), so rpc_send asks the chain what is the matter, from the
 * strongest fact to the weakest:
 *
 *   1. its receipt exists                            RPC_MINED
 *   2. the node knows the hash                       RPC_SENT
 *   3. the sender's nonce has passed its nonce       RPC_NONCE_USED
 *   4. the balance is below what it may cost         RPC_NO_FUNDS
 *   5. the base fee is above its maximum             RPC_FEE_TOO_LOW
 *   6. the pending nonce has passed its nonce        RPC_UNDERPRICED (another one waits in its
 * place)
 *   7. the node's words speak of fees                RPC_FEE_TOO_LOW
 *   8. none of these                                 RPC_REFUSED
 *
 * 3 comes after 1 and 2, because a transaction of ours that was mined has used its own nonce. */
#include "chain/contracts.h"
#include "chain/rpc_internal.h"
#include "chain/tx.h"

#include "chain/abi.h"
#include "node/base/arena.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

enum { FEE_HISTORY_BLOCKS = 20, REVERT_TEXT_BYTES = 300 };

/* GasPriceOracle, a predeploy of every OP Stack chain (specs.optimism.io, "Predeploys"). */
static const struct address gas_price_oracle = {
    {0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0f}};

/* ---- blocks and accounts ------------------------------------------------------------------ */

int rpc_block(struct rpc *rpc, struct rpc_block *out, struct rpc_at at, struct err *err)
{
    json_t *value = NULL;
    struct rpc_node_error node_error;
    int rc = rpc_ask(rpc, RPC_ASK_ONE, "eth_getBlockByNumber",
                     json_pack("[o, b]", rpc_value_at(at), 0), &value, &node_error, err);
    if (rc == 1) {
        /* Old nodes don't know the tags, and new ones have no such block at a chain's beginning. */
        rc = at.tag == RPC_SAFE || at.tag == RPC_FINALIZED
                 ? err_set(err, ERR_NOT_FOUND, "the chain has no %s block: %s",
                           at.tag == RPC_SAFE ? "safe" : "finalized", node_error.message)
                 : rpc_fail_with(&node_error, "eth_getBlockByNumber", err);
        rpc_node_error_release(&node_error);
        return rc;
    }
    if (rc != 0)
        return rc;
    if (json_is_null(value)) {
        rc = at.tag == RPC_NUMBER ? err_set(err, ERR_NOT_FOUND, "the chain has no block %llu",
                                            (unsigned long long)at.number)
                                  : err_set(err, ERR_NOT_FOUND, "the chain has no such block");
    } else {
        struct rpc_block block;
        rc = rpc_json_block(&block, value, err);
        if (rc == 0 && at.tag == RPC_NUMBER && block.number != at.number)
            rc = err_set(err, ERR_UPSTREAM, "asked for block %llu, got %llu",
                         (unsigned long long)at.number, (unsigned long long)block.number);
        if (rc == 0)
            *out = block;
    }
    json_decref(value);
    return rc;
}

/* "method(account, at)" to a quantity. */
static int ask_quantity(struct rpc *rpc, struct u256 *out, const char *method, json_t *params,
                        struct err *err)
{
    json_t *value = NULL;
    if (rpc_ask_result(rpc, method, params, &value, err) != 0)
        return -1;
    int rc = rpc_json_u256(out, value, method, err);
    json_decref(value);
    return rc;
}

static json_t *account_params(struct address account, struct rpc_at at)
{
    return json_pack("[o, o]", rpc_value_hex(account.bytes, sizeof account.bytes),
                     rpc_value_at(at));
}

int rpc_nonce(struct rpc *rpc, uint64_t *out, struct address account, struct rpc_at at,
              struct err *err)
{
    struct u256 v;
    if (ask_quantity(rpc, &v, "eth_getTransactionCount", account_params(account, at), err) != 0)
        return -1;
    if (u256_to_u64(out, v) != 0)
        return err_set(err, ERR_UPSTREAM, "a nonce above 64 bits");
    return 0;
}

int rpc_balance(struct rpc *rpc, struct u256 *wei, struct address account, struct rpc_at at,
                struct err *err)
{
    return ask_quantity(rpc, wei, "eth_getBalance", account_params(account, at), err);
}

int rpc_code(struct rpc *rpc, struct buf *out, struct address account, struct rpc_at at,
             struct err *err)
{
    json_t *value = NULL;
    if (rpc_ask_result(rpc, "eth_getCode", account_params(account, at), &value, err) != 0)
        return -1;
    int rc = rpc_json_bytes(out, value, "code", err);
    json_decref(value);
    return rc;
}

/* ---- calls -------------------------------------------------------------------------------- */

static json_t *call_object(const struct rpc_call *call)
{
    json_t *o = json_object();
    if (!address_is_zero(call->from))
        json_object_set_new(o, "from", rpc_value_hex(call->from.bytes, 20));
    if (!call->creates)
        json_object_set_new(o, "to", rpc_value_hex(call->to.bytes, 20));
    if (!u256_is_zero(call->value))
        json_object_set_new(o, "value", rpc_value_u256(call->value));
    /* "data" is the older name of "input"; every node takes it. */
    json_object_set_new(o, "data", rpc_value_hex(call->data, call->n_data));
    return o;
}

/* eth_call or eth_estimateGas: a node's error that is a revert becomes ERR_CONFLICT in words. */
static int ask_call(struct rpc *rpc, const char *method, json_t *params, json_t **result,
                    struct buf *revert, struct err *err)
{
    struct rpc_node_error e;
    int rc = rpc_ask(rpc, RPC_ASK_ONE, method, params, result, &e, err);
    if (rc != 1)
        return rc;
    if (!rpc_json_is_revert(&e)) {
        rc = rpc_fail_with(&e, method, err);
    } else {
        char text[REVERT_TEXT_BYTES];
        if (e.has_data && e.data.len > 0)
            contracts_revert_text(text, sizeof text, e.data.data, e.data.len);
        rc = err_set(err, ERR_CONFLICT, "the contract reverts: %s",
                     e.has_data && e.data.len > 0 ? text : e.message);
        if (revert != NULL && e.data.len > 0)
            buf_append(revert, e.data.data, e.data.len);
    }
    rpc_node_error_release(&e);
    return rc;
}

int rpc_call(struct rpc *rpc, struct buf *out, const struct rpc_call *call, struct rpc_at at,
             struct buf *revert, struct err *err)
{
    json_t *value = NULL;
    int rc = ask_call(rpc, "eth_call", json_pack("[o, o]", call_object(call), rpc_value_at(at)),
                      &value, revert, err);
    if (rc == 0) {
        rc = rpc_json_bytes(out, value, "eth_call's result", err);
        json_decref(value);
    }
    return rc;
}

int rpc_estimate_gas(struct rpc *rpc, uint64_t *gas, const struct rpc_call *call,
                     struct buf *revert, struct err *err)
{
    json_t *value = NULL;
    int rc = ask_call(rpc, "eth_estimateGas", json_pack("[o]", call_object(call)), &value, revert,
                      err);
    if (rc == 0) {
        rc = rpc_json_u64(gas, value, "gas estimate", err);
        json_decref(value);
    }
    return rc;
}

/* ---- fees --------------------------------------------------------------------------------- */

/* 1 when node and chain have base fees, 0 when not, -1 when nobody answers. */
static int ask_fee_history(struct rpc *rpc, struct rpc_fees *out, struct err *err)
{
    json_t *value = NULL;
    struct rpc_node_error e;
    int rc = rpc_ask(rpc, RPC_ASK_ONE, "eth_feeHistory",
                     json_pack("[o, s, [i]]", rpc_value_quantity(FEE_HISTORY_BLOCKS), "latest", 50),
                     &value, &e, err);
    if (rc == 1)
        rpc_node_error_release(&e);
    if (rc != 0)
        return rc == 1 ? 0 : -1;
    rc = rpc_json_fee_history(&out->base_fee, &out->max_priority_fee, value, NULL);
    json_decref(value);
    return rc == 0 ? 1 : 0;
}

int rpc_fees(struct rpc *rpc, struct rpc_fees *out, struct err *err)
{
    struct rpc_fees fees = {0};
    int has_history = ask_fee_history(rpc, &fees, err);
    if (has_history < 0)
        return -1;
    if (has_history == 0 || u256_is_zero(fees.base_fee)) {
        /* No history, or a base fee of zero, which chains before EIP-1559 report: ask the block. */
        struct rpc_block block;
        if (rpc_block(rpc, &block, RPC_AT_LATEST, err) != 0)
            return -1;
        if (has_history == 0 || !block.has_base_fee) {
            fees = (struct rpc_fees){.legacy = true};
            if (ask_quantity(rpc, &fees.gas_price, "eth_gasPrice", NULL, err) != 0)
                return -1;
            *out = fees;
            return 0;
        }
    }
    if (u256_is_zero(fees.max_priority_fee)) {
        /* Nobody tipped lately. What the node itself suggests, or the least it may take. */
        json_t *value = NULL;
        struct rpc_node_error e;
        int rc = rpc_ask(rpc, RPC_ASK_ONE, "eth_maxPriorityFeePerGas", NULL, &value, &e, err);
        if (rc < 0)
            return -1;
        if (rc == 1)
            rpc_node_error_release(&e);
        else if (rpc_json_u256(&fees.max_priority_fee, value, "suggested tip", NULL) != 0)
            fees.max_priority_fee = U256_ZERO;
        json_decref(value);
        if (u256_is_zero(fees.max_priority_fee))
            fees.max_priority_fee = u256_of(1);
    }
    /* The base fee grows by at most an eighth a block (EIP-1559): doubling takes six. */
    if (u256_mul(&fees.max_fee, fees.base_fee, 2) != 0 ||
        u256_add(&fees.max_fee, fees.max_fee, fees.max_priority_fee) != 0)
        return err_set(err, ERR_UPSTREAM, "the fee history has an impossible base fee");
    /* Can't overflow: less than max_fee. */
    BUG_IF(u256_add(&fees.gas_price, fees.base_fee, fees.max_priority_fee) != 0);
    *out = fees;
    return 0;
}

int rpc_l1_fee(struct rpc *rpc, struct u256 *wei, const void *tx_bytes, size_t n, struct err *err)
{
    struct buf data = BUF_INIT, answer = BUF_INIT;
    uint8_t selector[4];
    json_t *args = json_pack("[o]", rpc_value_hex(tx_bytes, n));
    abi_selector(selector, "getL1Fee(bytes)");
    buf_append(&data, selector, sizeof selector);
    BUG_IF(abi_encode(&data, "(bytes)", args, NULL) != 0);
    json_decref(args);
    struct rpc_call call = {.to = gas_price_oracle, .data = data.data, .n_data = data.len};
    int rc = rpc_call(rpc, &answer, &call, RPC_AT_LATEST, NULL, err);
    if (rc == 0 && answer.len == 0)
        *wei = U256_ZERO; /* no code there: not an OP Stack chain */
    else if (rc == 0 && answer.len == 32)
        *wei = u256_from_bytes(answer.data);
    else if (rc == 0)
        rc = err_set(err, ERR_UPSTREAM, "GasPriceOracle answers %zu bytes", answer.len);
    buf_release(&data);
    buf_release(&answer);
    return rc;
}

/* ---- transactions ------------------------------------------------------------------------- */

const char *rpc_sent_name(enum rpc_sent sent)
{
    switch (sent) {
    case RPC_SENT:
        return "sent";
    case RPC_MINED:
        return "mined";
    case RPC_NONCE_USED:
        return "nonce used";
    case RPC_UNDERPRICED:
        return "underpriced";
    case RPC_FEE_TOO_LOW:
        return "fee too low";
    case RPC_NO_FUNDS:
        return "no funds";
    case RPC_REFUSED:
        return "refused";
    }
    BUG("no such outcome");
}

static bool speaks_of_fees(const char *message)
{
    return strstr(message, "underpriced") != NULL || strstr(message, "fee too low") != NULL ||
           strstr(message, "tip too low") != NULL || strstr(message, "fee cap") != NULL ||
           strstr(message, "less than block base fee") != NULL;
}

/* Why a node refuses: see the head of this file. -1 when the chain can't be asked. */
static int classify(struct rpc *rpc, enum rpc_sent *out, const struct tx *tx, struct tx_hash hash,
                    struct address sender, const struct rpc_node_error *e, struct err *why,
                    struct err *err)
{
    struct rpc_receipt receipt;
    struct rpc_block latest;
    struct u256 balance, cost;
    uint64_t nonce, pending;
    bool known;
    if (rpc_tx_receipt(rpc, &receipt, hash, NULL, NULL, err) != 0)
        return -1;
    if (receipt.mined) {
        *out = RPC_MINED;
        return 0;
    }
    if (rpc_tx_known(rpc, &known, hash, err) != 0 ||
        rpc_nonce(rpc, &nonce, sender, RPC_AT_LATEST, err) != 0)
        return -1;
    if (known) {
        *out = RPC_SENT;
        return 0;
    }
    if (nonce > tx->nonce) {
        *out = RPC_NONCE_USED;
        err_set(why, ERR_CONFLICT, "nonce %llu is used, the next is %llu",
                (unsigned long long)tx->nonce, (unsigned long long)nonce);
        return 0;
    }
    if (rpc_balance(rpc, &balance, sender, RPC_AT_LATEST, err) != 0)
        return -1;
    if (tx_cost_limit(&cost, tx) != 0 || u256_cmp(balance, cost) < 0) {
        char have[U256_TEXT_BYTES], need[U256_TEXT_BYTES] = "more than 256 bits";
        if (tx_cost_limit(&cost, tx) == 0)
            u256_format(need, cost);
        *out = RPC_NO_FUNDS;
        err_set(why, ERR_PAYMENT, "it may cost %s wei and the sender has %s", need,
                u256_format(have, balance));
        return 0;
    }
    if (rpc_block(rpc, &latest, RPC_AT_LATEST, err) != 0 ||
        rpc_nonce(rpc, &pending, sender, RPC_AT_PENDING, err) != 0)
        return -1;
    struct u256 fee = tx->kind == TX_FEE_MARKET ? tx->max_fee : tx->gas_price;
    if (latest.has_base_fee && u256_cmp(fee, latest.base_fee) < 0) {
        char base[U256_TEXT_BYTES], offered[U256_TEXT_BYTES];
        *out = RPC_FEE_TOO_LOW;
        err_set(why, ERR_CONFLICT, "it offers %s wei a unit of gas and the base fee is %s",
                u256_format(offered, fee), u256_format(base, latest.base_fee));
        return 0;
    }
    *out = pending > tx->nonce          ? RPC_UNDERPRICED
           : speaks_of_fees(e->message) ? RPC_FEE_TOO_LOW
                                        : RPC_REFUSED;
    err_set(why, *out == RPC_REFUSED ? ERR_INVALID : ERR_CONFLICT, "%s (code %lld)", e->message,
            (long long)e->code);
    return 0;
}

int rpc_send(struct rpc *rpc, enum rpc_sent *out, const void *tx_bytes, size_t n,
             struct address sender, struct err *why, struct err *err)
{
    struct arena arena = ARENA_INIT;
    struct tx tx;
    struct signature sig;
    bool is_signed;
    json_t *value = NULL;
    struct rpc_node_error e;
    struct err ignored = {0};
    /* These bytes come from a store: what was damaged there must not be sent. */
    int rc = tx_parse(&tx, &sig, &is_signed, &arena, tx_bytes, n, &ignored);
    if (rc != 0 || !is_signed) {
        arena_release(&arena);
        return err_set(err, ERR_CORRUPT, "not sent, for it is no signed transaction%s%s",
                       rc != 0 ? ": " : "", rc != 0 ? ignored.message : "");
    }
    if (why == NULL)
        why = &ignored;
    struct tx_hash hash = tx_hash_of(tx_bytes, n);
    rc = rpc_ask(rpc, RPC_ASK_ALL, "eth_sendRawTransaction",
                 json_pack("[o]", rpc_value_hex(tx_bytes, n)), &value, &e, err);
    if (rc == 0) {
        struct tx_hash its;
        *out = RPC_SENT;
        rc = rpc_json_hash(its.bytes, value, "transaction hash", err);
        if (rc == 0 && !DIGEST_EQ(its, hash))
            rc = err_set(err, ERR_UPSTREAM, "the node calls the transaction by another hash");
        json_decref(value);
    } else if (rc == 1) {
        rc = classify(rpc, out, &tx, hash, sender, &e, why, err);
        rpc_node_error_release(&e);
    }
    arena_release(&arena);
    return rc;
}

int rpc_tx_receipt(struct rpc *rpc, struct rpc_receipt *out, struct tx_hash hash,
                   struct rpc_logs *logs, struct arena *arena, struct err *err)
{
    json_t *value = NULL;
    if (rpc_ask_result(rpc, "eth_getTransactionReceipt",
                       json_pack("[o]", rpc_value_hex(hash.bytes, sizeof hash.bytes)), &value,
                       err) != 0)
        return -1;
    int rc = 0;
    /* Some nodes make up a receipt without a block while the transaction is pending. */
    if (json_is_null(value) || json_is_null(json_object_get(value, "blockNumber"))) {
        *out = (struct rpc_receipt){0};
        if (logs != NULL)
            *logs = (struct rpc_logs){0};
    } else {
        rc = rpc_json_receipt(out, value, hash, logs, arena, err);
    }
    json_decref(value);
    return rc;
}

int rpc_tx_known(struct rpc *rpc, bool *out, struct tx_hash hash, struct err *err)
{
    json_t *value = NULL;
    if (rpc_ask_result(rpc, "eth_getTransactionByHash",
                       json_pack("[o]", rpc_value_hex(hash.bytes, sizeof hash.bytes)), &value,
                       err) != 0)
        return -1;
    *out = json_is_object(value);
    json_decref(value);
    return 0;
}
