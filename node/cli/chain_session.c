/* chain_session: see chain_session.h. */
#include "node/cli/chain_session.h"

#include "chain/tx.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/cli/cli.h"
#include "node/cli/cmd_wallet.h"
#include "node/config.h"
#include "wallet/wallet.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WAIT_MS = 120000, POLL_MS = 100, DECIMALS = 18 };

static int open_rpc(struct chain_session *s, struct err *err)
{
    size_t n = config_list_len(s->config, CONFIG_CHAIN_RPC);
    if (n == 0)
        return err_set(err, ERR_INVALID, "no endpoint of the chain is configured (--rpc URL)");
    if (n > RPC_ENDPOINTS_MAX)
        return err_set(err, ERR_INVALID, "%zu endpoints, at most %d are used", n,
                       RPC_ENDPOINTS_MAX);
    const char *urls[RPC_ENDPOINTS_MAX];
    for (size_t i = 0; i < n; i++)
        urls[i] = config_list_item(s->config, CONFIG_CHAIN_RPC, i);
    struct rpc_options options = {.urls = urls, .n_urls = n, .chain_id = s->contracts.chain_id};
    s->rpc = rpc_open(&options, err);
    return s->rpc == NULL ? -1 : rpc_chain_id(s->rpc, &s->contracts.chain_id, err);
}

int chain_session_open(struct chain_session *s, const struct cli_args *a, unsigned needs,
                       struct err *err)
{
    *s = (struct chain_session){.args = a, .config = cli_config(a)};
    if (deployment_load(&s->contracts, s->config, err) != 0 || open_rpc(s, err) != 0)
        return -1;
    if ((needs & CHAIN_CONTRACTS) != 0) {
        const struct {
            const struct address *address;
            const char *flag;
        } rows[] = {
            {&s->contracts.stake_manager, "stake-manager"},
            {&s->contracts.adapter_registry, "adapter-registry"},
            {&s->contracts.escrow, "escrow"},
            {&s->contracts.attribution_ledger, "attribution-ledger"},
            {&s->contracts.token, "token"},
        };
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            if (address_is_zero(*rows[i].address))
                return err_set(err, ERR_INVALID,
                               "the address of a contract is missing (--%s ADDRESS, or "
                               "--deployment FILE)",
                               rows[i].flag);
        }
    }
    if ((needs & CHAIN_WALLET) != 0) {
        s->wallet = cmd_wallet_open(s->config, NULL, err);
        if (s->wallet == NULL)
            return -1;
    }
    return 0;
}

void chain_session_close(struct chain_session *s)
{
    wallet_close(s->wallet);
    rpc_close(s->rpc);
    s->wallet = NULL;
    s->rpc = NULL;
}

struct contract_at chain_at(const struct chain_session *s, enum contract c)
{
    struct contract_at at = {.rpc = s->rpc};
    switch (c) {
    case CONTRACT_STAKE_MANAGER:
        at.address = s->contracts.stake_manager;
        break;
    case CONTRACT_ADAPTER_REGISTRY:
        at.address = s->contracts.adapter_registry;
        break;
    case CONTRACT_ESCROW:
        at.address = s->contracts.escrow;
        break;
    case CONTRACT_ATTRIBUTION_LEDGER:
        at.address = s->contracts.attribution_ledger;
        break;
    case CONTRACT_TEST_TOKEN:
        at.address = s->contracts.token;
        break;
    }
    return at;
}

/* ---- sending
 * --------------------------------------------------------------------------------------- */

/* No more than chain.max_fee_per_gas, whatever the endpoint thinks is usual. */
static int bound_fees(const struct chain_session *s, struct rpc_fees *fees, struct err *err)
{
    struct amount most = config_amount(s->config, CONFIG_CHAIN_MAX_FEE_PER_GAS);
    struct u256 cap = u256_of_amount(most),
                needed = fees->legacy ? fees->gas_price : fees->base_fee;
    if (u256_cmp(needed, cap) > 0) {
        char gas[U256_TEXT_BYTES], allowed[AMOUNT_TEXT_BYTES];
        return err_set(err, ERR_PAYMENT,
                       "a unit of gas costs %s wei, at most %s are allowed (chain.max_fee_per_gas)",
                       u256_format(gas, needed), amount_format(allowed, most));
    }
    if (u256_cmp(fees->max_fee, cap) > 0)
        fees->max_fee = cap;
    if (u256_cmp(fees->max_priority_fee, fees->max_fee) > 0)
        fees->max_priority_fee = fees->max_fee;
    return 0;
}

/* Fees and gas. A tenth more gas than estimated: state may move between the estimate and the block.
 */
static int price(struct chain_session *s, struct tx *tx, struct address from, struct err *err)
{
    struct rpc_call call = {
        .from = from, .creates = tx->creates, .to = tx->to, .data = tx->data, .n_data = tx->n_data};
    struct rpc_fees fees;
    if (rpc_estimate_gas(s->rpc, &tx->gas_limit, &call, NULL, err) != 0 ||
        rpc_fees(s->rpc, &fees, err) != 0 || bound_fees(s, &fees, err) != 0 ||
        rpc_nonce(s->rpc, &tx->nonce, from, RPC_AT_PENDING, err) != 0)
        return -1;
    tx->gas_limit += tx->gas_limit / 10;
    tx->kind = fees.legacy ? TX_LEGACY : TX_FEE_MARKET;
    tx->gas_price = fees.gas_price;
    tx->max_fee = fees.max_fee;
    tx->max_priority_fee = fees.max_priority_fee;
    return 0;
}

static int await(struct chain_session *s, struct chain_sent *out, const char *hash, struct err *err)
{
    struct monotonic_us started = clock_monotonic_us();
    for (;;) {
        if (rpc_tx_receipt(s->rpc, &out->receipt, out->hash, NULL, NULL, err) != 0)
            return err_wrap(err, "transaction %s is sent, and what came of it is not known", hash);
        if (out->receipt.mined)
            break;
        if (clock_elapsed_us(started, clock_monotonic_us()) > (uint64_t)WAIT_MS * 1000)
            return err_set(err, ERR_TIMEOUT, "transaction %s is sent but in no block after %d s",
                           hash, WAIT_MS / 1000);
        usleep(POLL_MS * 1000);
    }
    out->mined = true;
    if (!out->receipt.succeeded)
        return err_set(err, ERR_CONFLICT,
                       "transaction %s was mined in block %" PRIu64 " and reverted", hash,
                       out->receipt.block_number);
    return 0;
}

/* The answer may have been lost and not the request: sent again, it could pay twice. */
static int wrap_possibly_sent(struct tx_hash hash, struct err *err)
{
    char text[BYTES32_TEXT_BYTES];
    return err_wrap(err, "transaction %s may be sent all the same; look for it first",
                    hex_encode_0x(text, hash.bytes, sizeof hash.bytes));
}

static int send_once(struct chain_session *s, struct chain_sent *out, const char *key,
                     struct tx *tx, bool *again, struct err *err)
{
    struct address from;
    struct signature signature;
    *again = false;
    if (wallet_key_address(s->wallet, key, &from, err) != 0 || price(s, tx, from, err) != 0)
        return -1;
    struct tx_digest digest = tx_signing_digest(tx);
    if (wallet_sign_transaction(s->wallet, key, &signature, &digest, err) != 0)
        return -1;
    struct buf bytes = BUF_INIT;
    tx_write_signed(&bytes, tx, &signature);
    out->hash = tx_hash_of(bytes.data, bytes.len);
    enum rpc_sent sent;
    struct err why = {0};
    int rc = rpc_send(s->rpc, &sent, bytes.data, bytes.len, from, &why, err);
    buf_release(&bytes);
    if (rc != 0)
        return wrap_possibly_sent(out->hash, err);
    /* Another process sends from the same key: it took the nonce that we were told. */
    *again = sent == RPC_NONCE_USED || sent == RPC_UNDERPRICED;
    if (sent != RPC_SENT && sent != RPC_MINED)
        return err_set(err, ERR_UPSTREAM, "the chain refuses the transaction: %s", why.message);
    return 0;
}

/* Whether the nonce that somebody took was taken by this very transaction: an endpoint of many
 * machines may refuse the second copy before the others know of the first. 1 yes, 0 no. */
static int has_arrived(struct chain_session *s, struct tx_hash hash, struct err *err)
{
    struct rpc_receipt receipt;
    bool known;
    if (rpc_tx_receipt(s->rpc, &receipt, hash, NULL, NULL, err) != 0 ||
        rpc_tx_known(s->rpc, &known, hash, err) != 0)
        return wrap_possibly_sent(hash, err);
    return receipt.mined || known;
}

int chain_send(struct chain_session *s, struct chain_sent *out, const char *what, const char *key,
               const struct address *to, const struct buf *data, struct err *err)
{
    struct tx tx = {
        .chain_id = s->contracts.chain_id,
        .creates = to == NULL,
        .data = data->data,
        .n_data = data->len,
    };
    if (to != NULL)
        tx.to = *to;
    *out = (struct chain_sent){0};
    bool again;
    int rc;
    for (int attempt = 0;; attempt++) {
        rc = send_once(s, out, key, &tx, &again, err);
        if (rc == 0 || !again)
            break;
        usleep(200000);
        int arrived = has_arrived(s, out->hash, err);
        if (arrived != 0)
            rc = arrived > 0 ? 0 : -1;
        if (arrived != 0 || attempt == 5)
            break;
    }
    char hash[BYTES32_TEXT_BYTES];
    hex_encode_0x(hash, out->hash.bytes, sizeof out->hash.bytes);
    if (rc == 0 && (s->must_wait || !cli_has(s->args, "no-wait")))
        rc = await(s, out, hash, err);
    if (rc != 0)
        return err_wrap(err, "%s", what);
    log_debug("cli", "%s: %s", what, hash);
    return 0;
}

void chain_sent_to_json(const struct chain_sent *sent, json_t *object)
{
    char hash[BYTES32_TEXT_BYTES];
    json_object_set_new(object, "txHash", json_string(hex_encode_0x(hash, sent->hash.bytes, 32)));
    if (sent->mined) {
        json_object_set_new(object, "block", json_integer((json_int_t)sent->receipt.block_number));
        json_object_set_new(object, "gasUsed", json_integer((json_int_t)sent->receipt.gas_used));
    }
}

void chain_print_sent(const struct chain_session *s, const char *what,
                      const struct chain_sent *sent, json_t *object)
{
    char hash[BYTES32_TEXT_BYTES];
    hex_encode_0x(hash, sent->hash.bytes, 32);
    if (cli_has(s->args, "json")) {
        chain_sent_to_json(sent, object);
        cli_print_json(object);
    } else if (sent->mined) {
        printf("%s: transaction %s in block %" PRIu64 ", %" PRIu64 " gas\n", what, hash,
               sent->receipt.block_number, sent->receipt.gas_used);
    } else {
        printf("%s: transaction %s sent\n", what, hash);
    }
    json_decref(object);
}

/* ---- amounts and addresses
 * ------------------------------------------------------------------------- */

int amount_from_text(struct amount *out, const char *text, struct err *err)
{
    size_t n = strlen(text);
    if (n < 4 || strcmp(text + n - 3, "tok") != 0) {
        if (amount_parse(out, text) == 0)
            return 0;
        return err_set(err, ERR_INVALID,
                       "\"%.60s\" is no amount: digits (the smallest unit), or tokens as 12.5tok",
                       text);
    }
    struct amount a = AMOUNT_ZERO;
    int decimals = -1; /* -1: no point yet */
    bool digits = false;
    for (size_t i = 0; i < n - 3; i++) {
        if (text[i] == '.' && decimals < 0 && digits) {
            decimals = 0;
            continue;
        }
        bool fits = text[i] >= '0' && text[i] <= '9' && decimals < DECIMALS &&
                    amount_mul(&a, a, 10) == 0 &&
                    amount_add(&a, a, amount_of((uint64_t)(text[i] - '0'))) == 0;
        if (!fits)
            return err_set(err, ERR_INVALID,
                           "\"%.60s\" is no amount of tokens with at most %d "
                           "decimals",
                           text, DECIMALS);
        digits = true;
        decimals += decimals >= 0;
    }
    for (int i = decimals < 0 ? 0 : decimals; i < DECIMALS; i++) {
        if (amount_mul(&a, a, 10) != 0)
            return err_set(err, ERR_INVALID, "\"%.60s\" exceeds 2^128 - 1 units", text);
    }
    if (!digits || decimals == 0)
        return err_set(err, ERR_INVALID, "\"%.60s\" is no amount", text);
    *out = a;
    return 0;
}

char *amount_to_tokens(char *out, struct amount a)
{
    char units[AMOUNT_TEXT_BYTES], padded[AMOUNT_TEXT_BYTES + DECIMALS];
    amount_format(units, a);
    size_t n = strlen(units), zeros = n <= DECIMALS ? DECIMALS + 1 - n : 0;
    memset(padded, '0', zeros);
    strcpy(padded + zeros, units);
    n += zeros;
    size_t whole = n - DECIMALS, last = n;
    while (last > whole && padded[last - 1] == '0')
        last--;
    snprintf(out, 64, "%.*s%s%.*s tok", (int)whole, padded, last > whole ? "." : "",
             (int)(last - whole), padded + whole);
    return out;
}

int address_option(const struct cli_args *a, const char *option, struct address *out,
                   struct err *err)
{
    const char *text = cli_value(a, option, NULL);
    if (text != NULL && address_parse(out, text) != 0)
        return err_set(err, ERR_INVALID, "--%s: \"%.60s\" is no address", option, text);
    return text != NULL;
}
