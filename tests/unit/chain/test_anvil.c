/* The room against a real EVM: the contracts are deployed, staked at, paid, settled, claimed and
 * disputed by the calls of contracts.h, asked by its views, and heard by events.h. Signatures are
 * anvil's (eth_signTypedData_v4 over contracts-abi/types.json), so a contract that accepts one has
 * agreed with an independent implementation; what the contracts compute is compared with what C
 * computes. */
#include "tests/anvil.h"

#include "chain/contracts.h"
#include "chain/eip712.h"
#include "chain/embedded.h"
#include "chain/events.h"
#include "chain/keccak.h"
#include "chain/rpc.h"
#include "chain/tx.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a)  (sizeof(a) / sizeof *(a))
#define TOKENS(n) ((struct amount){(uint128)(n)*1000000000000000000u})

enum { CHAIN_ID = 1612, UNBONDING_S = 600, WINDOW_S = 60, THAW_S = 300, PAYEE_DELAY_S = 120 };
enum role { OPERATOR, SIGNER, PAYER, CREATOR, DATA_OWNER, TREASURY, DISPUTES, HEIR, N_ROLES };

static struct anvil anvil;
static struct rpc *rpc;
static struct address who[N_ROLES];
static struct address contracts[N_CONTRACTS];
static size_t events_seen[N_EVENT_KINDS];

/* ---- asking and telling ---------------------------------------------------------------------- */

static json_t *hex_value(const void *bytes, size_t n)
{
    char *text = xmalloc(2 * n + 3);
    json_t *value = json_string(hex_encode_0x(text, bytes, n));
    free(text);
    return value;
}

static json_t *ask(const char *method, json_t *params)
{
    struct err err;
    json_t *value = NULL;
    assert_ok(rpc_request(rpc, method, params, &value, &err), err);
    return value;
}

static void tell(const char *method, json_t *params)
{
    json_decref(ask(method, params));
}

static struct tx_hash hash_of(const json_t *value)
{
    struct tx_hash hash;
    assert_true(json_is_string(value));
    assert_int_equal(hex_decode(hash.bytes, 32, json_string_value(value)), 0);
    return hash;
}

/* Sends data from a dev account and returns the receipt; logs in the arena, if asked for. */
static struct rpc_receipt send_to(enum role from, const struct address *to, struct buf *data,
                                  struct rpc_logs *logs, struct arena *arena)
{
    struct rpc_receipt receipt;
    struct err err;
    json_t *call = json_pack("{s:o, s:o, s:s}", "from", hex_value(who[from].bytes, 20), "data",
                             hex_value(data->data, data->len), "gas", "0x1000000");
    if (to != NULL)
        json_object_set_new(call, "to", hex_value(to->bytes, 20));
    json_t *sent = ask("eth_sendTransaction", json_pack("[o]", call));
    struct tx_hash hash = hash_of(sent);
    json_decref(sent);
    /* anvil answers before the block is there. */
    for (int tries = 0; tries < 2000; tries++) {
        assert_ok(rpc_tx_receipt(rpc, &receipt, hash, logs, arena, &err), err);
        if (receipt.mined)
            break;
        usleep(5000);
    }
    assert_true(receipt.mined);
    buf_reset(data);
    return receipt;
}

static void note_events(enum contract c, const struct rpc_logs *logs, struct arena *arena,
                        struct event *last)
{
    for (size_t i = 0; i < logs->n; i++) {
        struct event event;
        struct err err;
        enum contract of = c;
        for (int k = 0; k < N_CONTRACTS; k++) {
            if (address_eq(logs->items[i].address, contracts[k]))
                of = (enum contract)k;
        }
        assert_ok(event_decode(&event, of, &logs->items[i], arena, &err), err);
        events_seen[event.kind]++;
        if (of == c && last != NULL && event.kind != EVENT_OTHER)
            *last = event;
    }
}

/* Sends data to a contract; it must succeed and log an event of this kind, which is returned. */
static struct event expect_event(enum role from, enum contract c, struct buf *data,
                                 enum event_kind kind, struct arena *arena)
{
    struct rpc_logs logs;
    struct event last = {.kind = EVENT_OTHER};
    struct rpc_receipt receipt = send_to(from, &contracts[c], data, &logs, arena);
    if (!receipt.succeeded)
        fail_msg("%s: the transaction that should log %s reverts", contract_name(c),
                 event_name(kind));
    note_events(c, &logs, arena, &last);
    if (last.kind != kind)
        fail_msg("%s logs %s, expected %s", contract_name(c), event_name(last.kind),
                 event_name(kind));
    return last;
}

/* The same call would revert, with this text. */
static void expect_revert(enum role from, enum contract c, struct buf *data, const char *says)
{
    struct err err = {.code = ERR_OK};
    uint64_t gas;
    struct rpc_call call = {
        .from = who[from], .to = contracts[c], .data = data->data, .n_data = data->len};
    assert_int_equal(rpc_estimate_gas(rpc, &gas, &call, NULL, &err), -1);
    if (err.code != ERR_CONFLICT || strstr(err.message, says) == NULL)
        fail_msg("%s, expected a revert with %s", err.message, says);
    buf_reset(data);
}

static void wait_s(unsigned seconds)
{
    tell("evm_increaseTime", json_pack("[i]", seconds));
    tell("evm_mine", NULL);
}

static struct contract_at at(enum contract c)
{
    return (struct contract_at){.rpc = rpc, .address = contracts[c]};
}

/* ---- messages as JSON, for anvil to sign ------------------------------------------------------
 */

static json_t *word(const uint8_t bytes[32])
{
    return hex_value(bytes, 32);
}

static json_t *account(struct address a)
{
    return hex_value(a.bytes, 20);
}

static json_t *money(struct amount a)
{
    char text[AMOUNT_TEXT_BYTES];
    return json_string(amount_format(text, a));
}

static json_t *number(uint64_t v)
{
    return money(amount_of(v));
}

static json_t *manifest_json(const struct manifest *m)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "manifestHash", word(m->manifest_hash.bytes),
                     "contentDigest", word(m->content_digest.bytes), "modelId",
                     word(m->model_id.bytes), "creator", account(m->creator), "version",
                     number(m->version), "parent", word(m->parent.bytes));
}

static json_t *voucher_json(const struct voucher *v)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "payer", account(v->payer), "operator",
                     account(v->operator_address), "channel", word(v->channel), "timestampMs",
                     number(v->timestamp_ms), "valueAggregate", money(v->value_aggregate),
                     "lastReceiptHash", word(v->last_receipt_hash));
}

static json_t *request_json(const struct request_auth *q)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "payer", account(q->payer), "operator",
                     account(q->operator_address), "channel", word(q->channel), "nonce",
                     number(q->nonce), "requestHash", word(q->request_hash.bytes), "maxFee",
                     money(q->max_fee), "deadlineMs", number(q->deadline_ms));
}

static json_t *batch_json(const struct batch *b)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "operator",
                     account(b->operator_address), "seq", number(b->seq), "leafCount",
                     number(b->leaf_count), "receiptsRoot", word(b->receipts_root), "payoutRoot",
                     word(b->payout_root), "committed", money(b->committed), "periodStart",
                     number(b->period_start), "periodEnd", number(b->period_end), "dataHash",
                     word(b->data_hash.bytes), "prevBatchHash", word(b->prev_batch_hash));
}

static json_t *receipt_json(const struct receipt *r)
{
    json_t *o = json_object(), *adapters = json_array();
    for (size_t i = 0; i < r->n_adapters; i++)
        json_array_append_new(adapters, json_pack("{s:o, s:o, s:o}", "adapterId",
                                                  word(r->adapters[i].adapter_id.bytes), "bps",
                                                  number(r->adapters[i].bps), "royalty",
                                                  money(r->adapters[i].royalty)));
    json_object_set_new(o, "requestId", word(r->request_id));
    json_object_set_new(o, "operator", account(r->operator_address));
    json_object_set_new(o, "payer", account(r->payer));
    json_object_set_new(o, "channel", word(r->channel));
    json_object_set_new(o, "index", number(r->index));
    json_object_set_new(o, "prevReceiptHash", word(r->prev_receipt_hash));
    json_object_set_new(o, "modelId", word(r->model_id.bytes));
    json_object_set_new(o, "adapters", adapters);
    json_object_set_new(o, "promptTokens", number(r->prompt_tokens));
    json_object_set_new(o, "completionTokens", number(r->completion_tokens));
    json_object_set_new(o, "computeFee", money(r->compute_fee));
    json_object_set_new(o, "royalty", money(r->royalty));
    json_object_set_new(o, "channelTotal", money(r->channel_total));
    json_object_set_new(o, "timestampMs", number(r->timestamp_ms));
    json_object_set_new(o, "requestHash", word(r->request_hash.bytes));
    json_object_set_new(o, "responseHash", word(r->response_hash.bytes));
    json_object_set_new(o, "attributionHash", word(r->attribution_hash.bytes));
    return o;
}

/* A message (an object) as the tuple that a contract takes: its values in the order of types.json.
 */
static json_t *tuple_of(const char *type, const json_t *message)
{
    json_t *tuple = json_array(), *member;
    size_t i;
    json_array_foreach(json_object_get(json_object_get(embedded_types(), "types"), type), i, member)
    {
        const char *name = json_string_value(json_object_get(member, "name"));
        json_t *value = json_object_get(message, name), *item;
        if (json_is_array(value)) {
            json_t *list = json_array();
            size_t k;
            json_array_foreach(value, k, item)
                json_array_append_new(list, tuple_of("AdapterShare", item));
            json_array_append_new(tuple, list);
        } else {
            assert_non_null(value);
            json_array_append(tuple, value);
        }
    }
    return tuple;
}

static enum contract contract_of(const char *type)
{
    const char *name = json_string_value(json_object_get(
        json_object_get(json_object_get(embedded_types(), "domains"), type), "verifyingContract"));
    for (int c = 0; c < N_CONTRACTS; c++) {
        if (strcmp(contract_name((enum contract)c), name) == 0)
            return (enum contract)c;
    }
    fail_msg("no contract verifies %s", type);
    return CONTRACT_ESCROW;
}

static struct eip712_domain domain_of(const char *type)
{
    return (struct eip712_domain){CHAIN_ID, contracts[contract_of(type)]};
}

/* anvil's signature over a message (not stolen). */
static struct signature sign(enum role role, const char *type, const json_t *message)
{
    const json_t *domain = json_object_get(json_object_get(embedded_types(), "domains"), type);
    json_t *data = json_pack(
        "{s:O, s:s, s:{s:O, s:O, s:i, s:o}, s:O}", "types",
        json_object_get(embedded_types(), "types"), "primaryType", type, "domain", "name",
        json_object_get(domain, "name"), "version", json_object_get(domain, "version"), "chainId",
        CHAIN_ID, "verifyingContract", account(contracts[contract_of(type)]), "message", message);
    json_t *value = ask("eth_signTypedData_v4", json_pack("[o, o]", account(who[role]), data));
    struct signature sig;
    uint8_t bytes[SIGNATURE_BYTES];
    assert_int_equal(hex_decode(bytes, sizeof bytes, json_string_value(value)), 0);
    assert_int_equal(signature_from_bytes(&sig, bytes), 0);
    json_decref(value);
    return sig;
}

/* What a digest function of a contract says about a message. */
static void expect_digest(const char *type, const char *function, const json_t *message,
                          const uint8_t ours[32])
{
    struct err err;
    struct contract_at where = at(contract_of(type));
    json_t *r = contract_view(&where, contract_of(type), function,
                              json_pack("[o]", tuple_of(type, message)), &err);
    uint8_t theirs[32];
    if (r == NULL)
        fail_msg("%s", err.message);
    assert_int_equal(hex_decode(theirs, 32, json_string_value(json_array_get(r, 0))), 0);
    assert_memory_equal(theirs, ours, 32);
    json_decref(r);
}

/* ---- set-up ---------------------------------------------------------------------------------- */

static void deploy(enum contract c, struct buf *code, uint64_t nonce)
{
    struct rpc_receipt receipt = send_to(OPERATOR, NULL, code, NULL, NULL);
    assert_true(receipt.succeeded && receipt.created);
    struct address predicted = address_create(who[OPERATOR], nonce);
    assert_true(address_eq(predicted, receipt.contract));
    contracts[c] = receipt.contract;
}

static int start(void **state)
{
    (void)state;
    static const char *const options[] = {"--chain-id",          "1612", "--accounts", "8",
                                          "--slots-in-an-epoch", "2",    NULL};
    struct err err;
    log_set_level(LOG_ERROR);
    anvil_start(&anvil, options);
    const char *urls[] = {anvil.url};
    rpc = rpc_open(&(struct rpc_options){.urls = urls, .n_urls = 1, .chain_id = CHAIN_ID}, &err);
    json_t *accounts = ask("eth_accounts", NULL);
    for (size_t i = 0; i < N_ROLES; i++)
        assert_int_equal(
            hex_decode(who[i].bytes, 20, json_string_value(json_array_get(accounts, i))), 0);
    json_decref(accounts);
    return 0;
}

static int stop(void **state)
{
    (void)state;
    rpc_close(rpc);
    anvil_stop(&anvil);
    return 0;
}

/* ---- the market, in the order of its life ------------------------------------------------------
 */

static void the_abi_in_the_binary_is_the_one_the_calls_expect(void **state)
{
    (void)state;
    contracts_check();
    char text[200];
    assert_string_equal(contracts_revert_text(text, sizeof text, "", 0), "without a reason");
    assert_string_equal(contracts_revert_text(text, sizeof text, "\x01\x02", 2), "0x0102");
}

static void contracts_are_deployed_where_predicted(void **state)
{
    (void)state;
    struct buf b = BUF_INIT;
    struct err err;
    struct stake_terms stake;
    struct escrow_terms escrow;
    struct ledger_terms ledger;
    uint64_t delay;
    uint8_t decimals;

    initcode_test_token(&b);
    deploy(CONTRACT_TEST_TOKEN, &b, 0);
    initcode_stake_manager(&b, contracts[CONTRACT_TEST_TOKEN], TOKENS(10), UNBONDING_S,
                           who[TREASURY], who[DISPUTES]);
    deploy(CONTRACT_STAKE_MANAGER, &b, 1);
    initcode_adapter_registry(&b, PAYEE_DELAY_S);
    deploy(CONTRACT_ADAPTER_REGISTRY, &b, 2);
    initcode_escrow(&b, contracts[CONTRACT_TEST_TOKEN], contracts[CONTRACT_STAKE_MANAGER],
                    address_create(who[OPERATOR], 4), THAW_S);
    deploy(CONTRACT_ESCROW, &b, 3);
    initcode_attribution_ledger(&b, contracts[CONTRACT_STAKE_MANAGER],
                                contracts[CONTRACT_ADAPTER_REGISTRY], contracts[CONTRACT_ESCROW],
                                WINDOW_S);
    deploy(CONTRACT_ATTRIBUTION_LEDGER, &b, 4);
    buf_release(&b);

    struct contract_at where = at(CONTRACT_STAKE_MANAGER);
    assert_ok(view_stake_terms(&where, &stake, &err), err);
    assert_true(address_eq(stake.token, contracts[CONTRACT_TEST_TOKEN]) &&
                address_eq(stake.treasury, who[TREASURY]) &&
                address_eq(stake.disputes, who[DISPUTES]) &&
                amount_cmp(stake.min_stake, TOKENS(10)) == 0 && stake.unbonding_s == UNBONDING_S);
    where = at(CONTRACT_ESCROW);
    assert_ok(view_escrow_terms(&where, &escrow, &err), err);
    assert_true(address_eq(escrow.attribution_ledger, contracts[CONTRACT_ATTRIBUTION_LEDGER]) &&
                address_eq(escrow.stake_manager, contracts[CONTRACT_STAKE_MANAGER]) &&
                address_eq(escrow.token, contracts[CONTRACT_TEST_TOKEN]) &&
                escrow.thaw_s == THAW_S);
    where = at(CONTRACT_ATTRIBUTION_LEDGER);
    assert_ok(view_ledger_terms(&where, &ledger, &err), err);
    assert_true(address_eq(ledger.escrow, contracts[CONTRACT_ESCROW]) &&
                address_eq(ledger.adapter_registry, contracts[CONTRACT_ADAPTER_REGISTRY]) &&
                address_eq(ledger.stake_manager, contracts[CONTRACT_STAKE_MANAGER]) &&
                address_eq(ledger.token, contracts[CONTRACT_TEST_TOKEN]) &&
                address_eq(ledger.disputes, who[DISPUTES]) &&
                ledger.challenge_window_s == WINDOW_S);
    where = at(CONTRACT_ADAPTER_REGISTRY);
    assert_ok(view_registry_payee_delay(&where, &delay, &err), err);
    assert_int_equal(delay, PAYEE_DELAY_S);
    where = at(CONTRACT_TEST_TOKEN);
    assert_ok(view_token_decimals(&where, &decimals, &err), err);
    assert_int_equal(decimals, 18);
}

static void a_view_of_nobody_says_so(void **state)
{
    (void)state;
    struct contract_at where = {.rpc = rpc, .address = who[HEIR]};
    struct u256 balance;
    struct err err;
    assert_int_equal(view_token_balance(&where, &balance, who[PAYER], &err), -1);
    assert_int_equal(err.code, ERR_UPSTREAM);
    assert_non_null(strstr(err.message, "TestToken.balanceOf: there is no contract at 0x"));
    /* Asked of a block before the contract, an operator's books are empty. */
    struct batch_head head = {.next_seq = 7, .newest.bytes = {7}, .committed = amount_of(7)};
    where.absent_is_zero = true;
    assert_ok(view_ledger_head(&where, &head, who[PAYER], &err), err);
    assert_true(head.next_seq == 0 && amount_is_zero(head.committed));
    for (int k = 0; k < 32; k++)
        assert_int_equal(head.newest.bytes[k], 0);
}

static void operators_stake_and_name_their_signer(void **state)
{
    (void)state;
    struct arena arena = ARENA_INIT;
    struct buf b = BUF_INIT;
    struct err err;
    struct event e;
    struct u256 balance;
    struct stake_state stake;
    struct stake_signer signer;
    struct stake_behind behind;
    struct contract_at token = at(CONTRACT_TEST_TOKEN), manager = at(CONTRACT_STAKE_MANAGER);

    calldata_token_mint(&b, who[OPERATOR], u256_of_amount(TOKENS(1000)));
    e = expect_event(OPERATOR, CONTRACT_TEST_TOKEN, &b, EVENT_TRANSFER, &arena);
    assert_true(address_is_zero(e.transfer.from) && address_eq(e.transfer.to, who[OPERATOR]) &&
                u256_cmp(e.transfer.value, u256_of_amount(TOKENS(1000))) == 0);
    calldata_token_mint(&b, who[PAYER], u256_of_amount(TOKENS(1000)));
    expect_event(OPERATOR, CONTRACT_TEST_TOKEN, &b, EVENT_TRANSFER, &arena);
    calldata_token_transfer(&b, who[HEIR], u256_of(7));
    expect_event(PAYER, CONTRACT_TEST_TOKEN, &b, EVENT_TRANSFER, &arena);
    assert_ok(view_token_balance(&token, &balance, who[HEIR], &err), err);
    assert_int_equal(u256_cmp(balance, u256_of(7)), 0);

    calldata_stake_add(&b, TOKENS(100));
    expect_revert(OPERATOR, CONTRACT_STAKE_MANAGER, &b, "ERC20InsufficientAllowance(spender: 0x");
    struct rpc_logs logs;
    calldata_token_approve(&b, contracts[CONTRACT_STAKE_MANAGER], u256_of_amount(TOKENS(500)));
    send_to(OPERATOR, &contracts[CONTRACT_TEST_TOKEN], &b, &logs, &arena);
    note_events(CONTRACT_TEST_TOKEN, &logs, &arena, NULL); /* Approval: none of ours */
    assert_ok(view_token_allowance(&token, &balance, who[OPERATOR],
                                   contracts[CONTRACT_STAKE_MANAGER], &err),
              err);
    assert_int_equal(u256_cmp(balance, u256_of_amount(TOKENS(500))), 0);
    calldata_stake_add(&b, TOKENS(100));
    e = expect_event(OPERATOR, CONTRACT_STAKE_MANAGER, &b, EVENT_STAKED, &arena);
    assert_true(address_eq(e.staked.operator_address, who[OPERATOR]) &&
                amount_cmp(e.staked.amount, TOKENS(100)) == 0 &&
                amount_cmp(e.staked.total, TOKENS(100)) == 0);

    calldata_stake_add_signer(&b, who[SIGNER]);
    expect_revert(OPERATOR, CONTRACT_STAKE_MANAGER, &b, "SignerNotOffered(signer: 0x");
    calldata_stake_offer_signer(&b, who[OPERATOR]);
    e = expect_event(SIGNER, CONTRACT_STAKE_MANAGER, &b, EVENT_STAKE_SIGNER_OFFERED, &arena);
    assert_true(address_eq(e.stake_signer.signer, who[SIGNER]));
    calldata_stake_add_signer(&b, who[SIGNER]);
    e = expect_event(OPERATOR, CONTRACT_STAKE_MANAGER, &b, EVENT_STAKE_SIGNER_ADDED, &arena);
    assert_true(address_eq(e.stake_signer.operator_address, who[OPERATOR]));
    assert_ok(view_stake_signer(&manager, &signer, who[SIGNER], &err), err);
    assert_true(address_eq(signer.operator_address, who[OPERATOR]) && signer.added_at_s > 0 &&
                signer.revoked_at_s == 0);
    assert_ok(view_stake_behind(&manager, &behind, who[SIGNER], &err), err);
    assert_true(behind.live && amount_cmp(behind.active, TOKENS(100)) == 0 &&
                address_eq(behind.operator_address, who[OPERATOR]));

    calldata_stake_request_unstake(&b, TOKENS(101));
    expect_revert(OPERATOR, CONTRACT_STAKE_MANAGER, &b, "StakeTooSmall(operator: 0x");
    calldata_stake_request_unstake(&b, TOKENS(20));
    e = expect_event(OPERATOR, CONTRACT_STAKE_MANAGER, &b, EVENT_UNSTAKE_REQUESTED, &arena);
    assert_int_equal(amount_cmp(e.unstake_requested.unbonding, TOKENS(20)), 0);
    assert_ok(view_stake(&manager, &stake, who[OPERATOR], &err), err);
    assert_true(amount_cmp(stake.total, TOKENS(100)) == 0 &&
                amount_cmp(stake.unbonding, TOKENS(20)) == 0 &&
                stake.withdrawable_at_s == e.unstake_requested.withdrawable_at_s);
    calldata_stake_withdraw(&b);
    expect_revert(OPERATOR, CONTRACT_STAKE_MANAGER, &b, "StillUnbonding(");
    wait_s(UNBONDING_S);
    calldata_stake_withdraw(&b);
    e = expect_event(OPERATOR, CONTRACT_STAKE_MANAGER, &b, EVENT_STAKE_WITHDRAWN, &arena);
    assert_true(amount_cmp(e.stake_withdrawn.amount, TOKENS(20)) == 0 &&
                amount_cmp(e.stake_withdrawn.total, TOKENS(80)) == 0);

    /* Another key, named and revoked. */
    calldata_stake_offer_signer(&b, who[OPERATOR]);
    expect_event(HEIR, CONTRACT_STAKE_MANAGER, &b, EVENT_STAKE_SIGNER_OFFERED, &arena);
    calldata_stake_add_signer(&b, who[HEIR]);
    expect_event(OPERATOR, CONTRACT_STAKE_MANAGER, &b, EVENT_STAKE_SIGNER_ADDED, &arena);
    calldata_stake_remove_signer(&b, who[HEIR]);
    e = expect_event(OPERATOR, CONTRACT_STAKE_MANAGER, &b, EVENT_STAKE_SIGNER_REMOVED, &arena);
    assert_true(address_eq(e.stake_signer.signer, who[HEIR]));
    arena_release(&arena);
    buf_release(&b);
}

static uint8_t datanet[32];
static struct adapter_id adapter;
static struct payee_share payees[2];
static struct datanet_share datanets[1];
static struct splits splits;

static void creators_register_what_they_signed(void **state)
{
    (void)state;
    struct arena arena = ARENA_INIT;
    struct buf b = BUF_INIT;
    struct err err;
    struct event e;
    struct registry_adapter registered;
    struct adapter_id first;
    struct address payee;
    struct contract_at registry = at(CONTRACT_ADAPTER_REGISTRY);

    calldata_registry_register_datanet(&b, (struct sha256_digest){{1}}, who[DATA_OWNER]);
    e = expect_event(DATA_OWNER, CONTRACT_ADAPTER_REGISTRY, &b, EVENT_DATANET_REGISTERED, &arena);
    assert_true(address_eq(e.datanet_registered.payee, who[DATA_OWNER]) &&
                e.datanet_registered.metadata.bytes[0] == 1);
    memcpy(datanet, e.datanet_registered.datanet, 32);
    assert_ok(view_registry_datanet_payee(&registry, &payee, datanet, &err), err);
    assert_true(address_eq(payee, who[DATA_OWNER]));

    struct manifest m = {.manifest_hash = {{2}},
                         .content_digest = {{3}},
                         .model_id = {{4}},
                         .creator = who[CREATOR],
                         .version = UINT64_MAX};
    payees[0] = (struct payee_share){who[CREATOR], 6000};
    payees[1] = (struct payee_share){who[HEIR], 3000};
    memcpy(datanets[0].datanet, datanet, 32);
    datanets[0].bps = 1000;
    splits = (struct splits){payees, 2, datanets, 1};
    json_t *message = manifest_json(&m);
    struct eip712_domain domain = domain_of("Manifest");
    struct manifest_digest digest = eip712_manifest(&m, &domain);
    expect_digest("Manifest", "manifestDigest", message, digest.bytes);
    struct signature sig = sign(CREATOR, "Manifest", message);
    struct signature wrong = sign(HEIR, "Manifest", message);
    json_decref(message);
    calldata_registry_register_adapter(&b, &m, &splits, &wrong);
    expect_revert(CREATOR, CONTRACT_ADAPTER_REGISTRY, &b, "WrongSignature(creator: 0x");
    datanets[0].bps = 999;
    calldata_registry_register_adapter(&b, &m, &splits, &sig);
    expect_revert(CREATOR, CONTRACT_ADAPTER_REGISTRY, &b, "SplitsSum(sum: 9999)");
    datanets[0].bps = 1000;
    calldata_registry_register_adapter(&b, &m, &splits, &sig);
    e = expect_event(CREATOR, CONTRACT_ADAPTER_REGISTRY, &b, EVENT_ADAPTER_REGISTERED, &arena);
    adapter = e.adapter_registered.id;
    const struct splits *logged = &e.adapter_registered.splits;
    struct manifest_digest logged_digest = eip712_manifest(&e.adapter_registered.manifest, &domain);
    assert_memory_equal(&logged_digest, &digest, sizeof digest); /* so all members are equal */
    assert_true(logged->n_payees == 2 && logged->n_datanets == 1 &&
                address_eq(logged->payees[1].payee, who[HEIR]) && logged->payees[1].bps == 3000 &&
                memcmp(logged->datanets[0].datanet, datanet, 32) == 0 &&
                logged->datanets[0].bps == 1000);

    struct buf encoded = BUF_INIT;
    splits_encode(&encoded, &splits);
    struct keccak_digest splits_hash = keccak256(encoded.data, encoded.len);
    buf_release(&encoded);
    assert_ok(view_registry_adapter(&registry, &registered, adapter, &err), err);
    assert_true(registered.registered && address_eq(registered.creator, who[CREATOR]) &&
                registered.version == UINT64_MAX && !registered.retired);
    assert_memory_equal(registered.splits_hash, splits_hash.bytes, 32);
    assert_ok(view_registry_first_by_content(&registry, &first, m.content_digest, &err), err);
    assert_memory_equal(&first, &adapter, 32);
    assert_ok(view_registry_payee(&registry, &payee, adapter, 1, &splits, &err), err);
    assert_true(address_eq(payee, who[HEIR]));
    assert_ok(view_registry_written_payee(&registry, &payee, adapter, 1, &err), err);
    assert_true(address_is_zero(payee));
    assert_int_equal(view_registry_payee(&registry, &payee, adapter, 1, NULL, &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    assert_non_null(strstr(err.message, "SplitsNeeded(adapterId: 0x"));
    assert_int_equal(view_registry_payee(&registry, &payee, adapter, 2, &splits, &err), -1);
    assert_non_null(strstr(err.message, "UnknownPosition("));
    assert_ok(view_registry_adapter(&registry, &registered, (struct adapter_id){{9}}, &err), err);
    assert_false(registered.registered);

    calldata_registry_propose_payee(&b, adapter, 1, who[DATA_OWNER], &splits);
    e = expect_event(HEIR, CONTRACT_ADAPTER_REGISTRY, &b, EVENT_PAYEE_PROPOSED, &arena);
    assert_true(e.payee_proposed.position == 1 && address_eq(e.payee_proposed.to, who[DATA_OWNER]));
    assert_ok(view_registry_written_payee(&registry, &payee, adapter, 1, &err), err);
    assert_true(address_eq(payee, who[HEIR]));
    calldata_registry_propose_datanet_payee(&b, datanet, who[HEIR]);
    e = expect_event(DATA_OWNER, CONTRACT_ADAPTER_REGISTRY, &b, EVENT_DATANET_PAYEE_PROPOSED,
                     &arena);
    assert_memory_equal(e.payee_proposed.id, datanet, 32);
    calldata_registry_propose_datanet_payee(&b, datanet, who[DATA_OWNER]); /* cancels */
    expect_event(DATA_OWNER, CONTRACT_ADAPTER_REGISTRY, &b, EVENT_DATANET_PAYEE_PROPOSED, &arena);
    calldata_registry_retire(&b, adapter);
    e = expect_event(CREATOR, CONTRACT_ADAPTER_REGISTRY, &b, EVENT_ADAPTER_RETIRED, &arena);
    assert_memory_equal(&e.adapter_retired.id, &adapter, 32);
    assert_ok(view_registry_adapter(&registry, &registered, adapter, &err), err);
    assert_true(registered.retired);
    arena_release(&arena);
    buf_release(&b);
}

static struct receipt a_receipt(const struct adapter_share *share)
{
    struct receipt r = {
        .request_id = {5},
        .operator_address = who[OPERATOR],
        .payer = who[PAYER],
        .index = 0,
        .model_id = {{4}},
        .adapters = share,
        .n_adapters = 1,
        .prompt_tokens = UINT32_MAX,
        .completion_tokens = 7,
        .compute_fee = TOKENS(2),
        .royalty = TOKENS(10),
        .channel_total = TOKENS(12),
        .timestamp_ms = 1764000000000,
        .request_hash = {{6}},
        .response_hash = {{7}},
        .attribution_hash = {{8}},
    };
    struct channel_id channel = channel_id_of(who[PAYER], who[OPERATOR], 3);
    memcpy(r.channel, channel.bytes, 32);
    return r;
}

static struct receipt_digest receipt_digest;

static void payers_deposit_and_operators_redeem(void **state)
{
    (void)state;
    struct arena arena = ARENA_INIT;
    struct buf b = BUF_INIT;
    struct err err;
    struct event e;
    struct escrow_account acct;
    struct escrow_channel ch;
    struct amount redeemed;
    bool yes;
    struct contract_at escrow = at(CONTRACT_ESCROW);

    calldata_token_approve(&b, contracts[CONTRACT_ESCROW], u256_of_amount(TOKENS(500)));
    send_to(PAYER, &contracts[CONTRACT_TEST_TOKEN], &b, NULL, NULL);
    calldata_escrow_deposit(&b, who[OPERATOR], TOKENS(20));
    e = expect_event(PAYER, CONTRACT_ESCROW, &b, EVENT_DEPOSITED, &arena);
    assert_true(address_eq(e.deposited.payer, who[PAYER]) &&
                amount_cmp(e.deposited.amount, TOKENS(20)) == 0);
    calldata_escrow_deposit_for(&b, who[HEIR], who[OPERATOR], TOKENS(1));
    e = expect_event(PAYER, CONTRACT_ESCROW, &b, EVENT_DEPOSITED, &arena);
    assert_true(address_eq(e.deposited.payer, who[HEIR]) &&
                address_eq(e.deposited.from, who[PAYER]));

    calldata_escrow_add_signer(&b, who[TREASURY]);
    e = expect_event(PAYER, CONTRACT_ESCROW, &b, EVENT_PAYER_SIGNER_ADDED, &arena);
    assert_true(address_eq(e.payer_signer.signer, who[TREASURY]));
    assert_ok(view_escrow_is_signer(&escrow, &yes, who[PAYER], who[TREASURY], &err), err);
    assert_true(yes);
    calldata_escrow_remove_signer(&b, who[TREASURY]);
    e = expect_event(PAYER, CONTRACT_ESCROW, &b, EVENT_PAYER_SIGNER_REMOVED, &arena);
    assert_true(e.payer_signer.valid_until_s > 0);

    struct adapter_share share = {adapter, 10000, TOKENS(10)};
    struct receipt r = a_receipt(&share);
    struct eip712_domain domain = domain_of("Receipt");
    receipt_digest = eip712_receipt(&r, &domain);
    json_t *message = receipt_json(&r);
    expect_digest("Receipt", "receiptDigest", message, receipt_digest.bytes);
    struct signature sig = sign(SIGNER, "Receipt", message);
    uint8_t sig_bytes[SIGNATURE_BYTES];
    signature_to_bytes(sig_bytes, &sig);
    struct contract_at ledger = at(CONTRACT_ATTRIBUTION_LEDGER);
    json_t *answer = contract_view(
        &ledger, CONTRACT_ATTRIBUTION_LEDGER, "isSignedReceipt",
        json_pack("[o, o]", tuple_of("Receipt", message), hex_value(sig_bytes, sizeof sig_bytes)),
        &err);
    assert_true(json_is_true(json_array_get(answer, 0)));
    json_decref(answer);
    json_decref(message);

    struct redeemable_voucher v = {.voucher = {.payer = who[PAYER],
                                               .operator_address = who[OPERATOR],
                                               .timestamp_ms = 1764000000001,
                                               .value_aggregate = TOKENS(12)},
                                   .epoch = 3};
    memcpy(v.voucher.channel, r.channel, 32);
    memcpy(v.voucher.last_receipt_hash, receipt_digest.bytes, 32);
    message = voucher_json(&v.voucher);
    domain = domain_of("Voucher");
    struct voucher_digest voucher_digest = eip712_voucher(&v.voucher, &domain);
    expect_digest("Voucher", "voucherDigest", message, voucher_digest.bytes);
    v.signature = sign(HEIR, "Voucher", message);
    calldata_escrow_redeem(&b, &v);
    expect_revert(SIGNER, CONTRACT_ESCROW, &b, "Refused(channel: 0x");
    v.signature = sign(PAYER, "Voucher", message);
    json_decref(message);
    calldata_escrow_redeem(&b, &v);
    expect_revert(PAYER, CONTRACT_ESCROW, &b, "NotOperator(caller: 0x");
    calldata_escrow_redeem(&b, &v);
    e = expect_event(SIGNER, CONTRACT_ESCROW, &b, EVENT_REDEEMED, &arena);
    assert_true(amount_cmp(e.redeemed.amount, TOKENS(12)) == 0 &&
                amount_cmp(e.redeemed.value_aggregate, TOKENS(12)) == 0 &&
                memcmp(e.redeemed.channel, r.channel, 32) == 0 &&
                memcmp(&e.redeemed.last_receipt, &receipt_digest, 32) == 0);
    assert_ok(view_escrow_channel(&escrow, &ch, who[PAYER], who[OPERATOR], 3, &err), err);
    assert_true(amount_cmp(ch.value_aggregate, TOKENS(12)) == 0 &&
                memcmp(&ch.last_receipt, &receipt_digest, 32) == 0);
    assert_ok(view_escrow_redeemed(&escrow, &redeemed, who[OPERATOR], &err), err);
    assert_int_equal(amount_cmp(redeemed, TOKENS(12)), 0);
    assert_ok(view_escrow_account(&escrow, &acct, who[PAYER], who[OPERATOR], &err), err);
    assert_int_equal(amount_cmp(acct.balance, TOKENS(8)), 0);

    /* Redeemed again, with another: the stale one is left out. */
    struct redeemable_voucher both[2] = {v, v};
    both[1].epoch = 0;
    both[1].voucher.value_aggregate = TOKENS(1);
    struct channel_id channel0 = channel_id_of(who[PAYER], who[OPERATOR], 0);
    memcpy(both[1].voucher.channel, channel0.bytes, 32);
    message = voucher_json(&both[1].voucher);
    both[1].signature = sign(PAYER, "Voucher", message);
    json_decref(message);
    calldata_escrow_redeem_many(&b, who[OPERATOR], both, 2);
    expect_event(OPERATOR, CONTRACT_ESCROW, &b, EVENT_REDEEMED, &arena);
    assert_int_equal(events_seen[EVENT_VOUCHER_REFUSED], 1);
    calldata_escrow_redeem_many(&b, who[OPERATOR], both, 1);
    e = expect_event(OPERATOR, CONTRACT_ESCROW, &b, EVENT_VOUCHER_REFUSED, &arena);
    assert_string_equal(escrow_refusal_name(e.voucher_refused.why), "stale");
    assert_string_equal(escrow_refusal_name(200), "unknown");

    struct request_auth q = {.payer = who[PAYER],
                             .operator_address = who[OPERATOR],
                             .nonce = 9,
                             .request_hash = {{6}},
                             .max_fee = AMOUNT_MAX,
                             .deadline_ms = UINT64_MAX};
    memcpy(q.channel, r.channel, 32);
    message = request_json(&q);
    domain = domain_of("Request");
    struct request_digest request_digest = eip712_request(&q, &domain);
    expect_digest("Request", "requestDigest", message, request_digest.bytes);
    sig = sign(PAYER, "Request", message);
    signature_to_bytes(sig_bytes, &sig);
    answer = contract_view(
        &escrow, CONTRACT_ESCROW, "isSignedRequest",
        json_pack("[o, o]", tuple_of("Request", message), hex_value(sig_bytes, sizeof sig_bytes)),
        &err);
    assert_true(json_is_true(json_array_get(answer, 0)));
    json_decref(answer);
    json_decref(message);

    calldata_escrow_request_thaw(&b, who[OPERATOR], TOKENS(5));
    e = expect_event(PAYER, CONTRACT_ESCROW, &b, EVENT_THAW_REQUESTED, &arena);
    assert_int_equal(amount_cmp(e.thaw_requested.thawing, TOKENS(5)), 0);
    assert_ok(view_escrow_account(&escrow, &acct, who[PAYER], who[OPERATOR], &err), err);
    assert_true(amount_cmp(acct.thawing, TOKENS(5)) == 0 &&
                acct.withdrawable_at_s == e.thaw_requested.withdrawable_at_s);
    wait_s(THAW_S);
    calldata_escrow_withdraw(&b, who[OPERATOR]);
    e = expect_event(PAYER, CONTRACT_ESCROW, &b, EVENT_ESCROW_WITHDRAWN, &arena);
    assert_int_equal(amount_cmp(e.escrow_withdrawn.amount, TOKENS(5)), 0);
    arena_release(&arena);
    buf_release(&b);
}

/* PayoutTree.sol, written out for two leaves. */
static void payout_leaf(uint8_t out[32], const struct payout_claim *c)
{
    uint8_t bytes[1 + 1 + 32 + 2 + 16] = {0, c->kind};
    memcpy(bytes + 2, c->id, 32);
    bytes[34] = (uint8_t)(c->position >> 8);
    bytes[35] = (uint8_t)c->position;
    amount_to_bytes(bytes + 36, c->amount);
    struct keccak_digest h = keccak256(bytes, sizeof bytes);
    memcpy(out, h.bytes, 32);
}

static void payout_root_of_two(uint8_t out[32], const uint8_t left[32], struct amount left_sum,
                               const uint8_t right[32], struct amount right_sum)
{
    uint8_t node[1 + 2 * (32 + 16)] = {1}, root[1 + 32 + 16 + 4] = {2};
    struct amount sum;
    memcpy(node + 1, left, 32);
    amount_to_bytes(node + 33, left_sum);
    memcpy(node + 49, right, 32);
    amount_to_bytes(node + 81, right_sum);
    struct keccak_digest h = keccak256(node, sizeof node);
    assert_int_equal(amount_add(&sum, left_sum, right_sum), 0);
    memcpy(root + 1, h.bytes, 32);
    amount_to_bytes(root + 33, sum);
    root[52] = 2;
    h = keccak256(root, sizeof root);
    memcpy(out, h.bytes, 32);
}

static struct signature sign_batch(const struct batch *b, struct batch_digest *digest)
{
    json_t *message = batch_json(b);
    struct eip712_domain domain = domain_of("Batch");
    *digest = eip712_batch(b, &domain);
    expect_digest("Batch", "batchDigest", message, digest->bytes);
    struct signature sig = sign(SIGNER, "Batch", message);
    json_decref(message);
    return sig;
}

static void batches_settle_and_their_leaves_are_claimed(void **state)
{
    (void)state;
    struct arena arena = ARENA_INIT;
    struct buf b = BUF_INIT;
    struct err err;
    struct event e;
    struct batch_head head;
    struct batch_final final;
    struct batch_record record;
    struct batch_digest digest, second_digest;
    struct amount paid;
    bool yes;
    struct contract_at ledger = at(CONTRACT_ATTRIBUTION_LEDGER);

    /* One receipt: its tree is its leaf, keccak256(keccak256(position || receiptHash)). */
    uint8_t leaf[64] = {0};
    memcpy(leaf + 32, receipt_digest.bytes, 32);
    struct keccak_digest inner = keccak256(leaf, sizeof leaf);
    struct keccak_digest receipts_root = keccak256(inner.bytes, sizeof inner.bytes);

    /* Two payouts: the operator's and the adapter's second position. */
    uint8_t left[32], right[32];
    struct payout_sibling sibling_of_operator = {.sum = TOKENS(10)},
                          sibling_of_adapter = {.sum = TOKENS(2)};
    struct payout_claim claims[2] = {
        {.kind = 0, .amount = TOKENS(2), .index = 0, .leaf_count = 2, .n_siblings = 1},
        {.kind = 1,
         .position = 1,
         .amount = TOKENS(10),
         .index = 1,
         .leaf_count = 2,
         .n_siblings = 1},
    };
    memcpy(claims[0].id + 12, who[OPERATOR].bytes, 20);
    memcpy(claims[1].id, adapter.bytes, 32);
    payout_leaf(left, &claims[0]);
    payout_leaf(right, &claims[1]);
    memcpy(sibling_of_operator.hash, right, 32);
    memcpy(sibling_of_adapter.hash, left, 32);
    claims[0].siblings = &sibling_of_operator;
    claims[1].siblings = &sibling_of_adapter;

    struct batch batch = {.operator_address = who[OPERATOR],
                          .seq = 0,
                          .leaf_count = 1,
                          .committed = TOKENS(12),
                          .period_start = 1764000000000,
                          .period_end = 1764000000000,
                          .data_hash = {{9}}};
    memcpy(batch.receipts_root, receipts_root.bytes, 32);
    payout_root_of_two(batch.payout_root, left, TOKENS(2), right, TOKENS(10));
    struct signature sig = sign_batch(&batch, &digest);
    calldata_ledger_submit(&b, &batch, &sig);
    e = expect_event(HEIR, CONTRACT_ATTRIBUTION_LEDGER, &b, EVENT_BATCH_SUBMITTED, &arena);
    assert_memory_equal(&e.batch_submitted.digest, &digest, 32);
    assert_memory_equal(&e.batch_submitted.batch.payout_root, batch.payout_root, 32);
    assert_true(e.batch_submitted.batch.period_end == batch.period_end &&
                e.batch_submitted.batch.leaf_count == 1 &&
                amount_cmp(e.batch_submitted.batch.committed, TOKENS(12)) == 0);
    calldata_ledger_submit(&b, &batch, &sig);
    expect_revert(HEIR, CONTRACT_ATTRIBUTION_LEDGER, &b, "WrongSeq(operator: 0x");

    assert_ok(view_ledger_head(&ledger, &head, who[OPERATOR], &err), err);
    assert_true(head.next_seq == 1 && memcmp(&head.newest, &digest, 32) == 0 &&
                amount_cmp(head.committed, TOKENS(12)) == 0);
    assert_ok(view_ledger_batch(&ledger, &record, who[OPERATOR], 0, &err), err);
    struct bytes32 commitment = batch_commitment(digest, &batch);
    assert_memory_equal(record.commitment, commitment.bytes, 32);
    assert_true(record.leaf_count == 1 && record.final_at_s > 0);
    assert_int_equal(view_ledger_batch(&ledger, &record, who[OPERATOR], 1, &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    assert_non_null(strstr(err.message, "UnknownBatch("));
    assert_ok(view_ledger_final(&ledger, &final, who[OPERATOR], &err), err);
    assert_int_equal(final.count, 0);
    assert_ok(view_ledger_is_submitted(&ledger, &yes, &batch, &err), err);
    assert_true(yes);
    assert_ok(view_ledger_verify_receipt(&ledger, &yes, &batch, 0, receipt_digest, NULL, 0, &err),
              err);
    assert_true(yes);
    assert_ok(view_ledger_verify_receipt(&ledger, &yes, &batch, 0, (struct receipt_digest){{1}},
                                         (const uint8_t(*)[32])left, 1, &err),
              err);
    assert_false(yes);
    assert_ok(view_ledger_verify_payout(&ledger, &yes, &batch, &claims[1], &err), err);
    assert_true(yes);

    /* A second batch, voided by a dispute. */
    struct batch second = batch;
    second.seq = 1;
    memcpy(second.prev_batch_hash, digest.bytes, 32);
    sig = sign_batch(&second, &second_digest);
    calldata_ledger_submit(&b, &second, &sig);
    expect_event(HEIR, CONTRACT_ATTRIBUTION_LEDGER, &b, EVENT_BATCH_SUBMITTED, &arena);
    json_t *message = batch_json(&second);
    contract_calldata(&b, CONTRACT_ATTRIBUTION_LEDGER, "void",
                      json_pack("[o]", tuple_of("Batch", message)));
    json_decref(message);
    e = expect_event(DISPUTES, CONTRACT_ATTRIBUTION_LEDGER, &b, EVENT_BATCH_VOIDED, &arena);
    assert_true(e.batch_voided.seq == 1 && memcmp(&e.batch_voided.digest, &second_digest, 32) == 0);
    assert_ok(view_ledger_is_voided(&ledger, &yes, second_digest, &err), err);
    assert_true(yes);
    contract_calldata(
        &b, CONTRACT_STAKE_MANAGER, "slash",
        json_pack("[o, o, o]", account(who[OPERATOR]), money(TOKENS(4)), account(who[HEIR])));
    e = expect_event(DISPUTES, CONTRACT_STAKE_MANAGER, &b, EVENT_SLASHED, &arena);
    assert_true(amount_cmp(e.slashed.amount, TOKENS(4)) == 0 &&
                amount_cmp(e.slashed.to_reporter, TOKENS(2)) == 0 &&
                amount_cmp(e.slashed.to_treasury, TOKENS(2)) == 0);

    calldata_ledger_claim(&b, who[OPERATOR], 0, digest, &claims[0]);
    expect_revert(HEIR, CONTRACT_ATTRIBUTION_LEDGER, &b, "NotFinal(operator: 0x");
    wait_s(WINDOW_S + PAYEE_DELAY_S);
    assert_ok(view_ledger_final(&ledger, &final, who[OPERATOR], &err), err);
    assert_true(final.count == 1 && amount_cmp(final.committed, TOKENS(12)) == 0);
    claims[0].amount = TOKENS(3);
    calldata_ledger_claim(&b, who[OPERATOR], 0, digest, &claims[0]);
    expect_revert(HEIR, CONTRACT_ATTRIBUTION_LEDGER, &b,
                  "WrongPayoutSum(sum: 13000000000000000000");
    claims[0].amount = TOKENS(2);
    calldata_ledger_claim(&b, who[OPERATOR], 0, digest, &claims[0]);
    e = expect_event(HEIR, CONTRACT_ATTRIBUTION_LEDGER, &b, EVENT_CLAIMED, &arena);
    assert_true(e.claimed.kind == 0 && address_eq(e.claimed.payee, who[OPERATOR]) &&
                amount_cmp(e.claimed.amount, TOKENS(2)) == 0);
    /* Position 1 was handed on by its payee; the registry has written that down. */
    claims[0].splits = NULL;
    claims[1].splits = NULL;
    calldata_ledger_claim_many(&b, who[OPERATOR], 0, digest, claims, 2);
    e = expect_event(HEIR, CONTRACT_ATTRIBUTION_LEDGER, &b, EVENT_CLAIMED, &arena);
    assert_true(e.claimed.kind == 1 && e.claimed.position == 1 &&
                address_eq(e.claimed.payee, who[DATA_OWNER]) &&
                amount_cmp(e.claimed.cumulative, TOKENS(10)) == 0 &&
                memcmp(e.claimed.id, adapter.bytes, 32) == 0);
    assert_ok(view_ledger_claimed(&ledger, &paid, who[OPERATOR], 1, adapter.bytes, 1, &err), err);
    assert_int_equal(amount_cmp(paid, TOKENS(10)), 0);
    assert_ok(view_ledger_paid(&ledger, &paid, who[OPERATOR], &err), err);
    assert_int_equal(amount_cmp(paid, TOKENS(12)), 0);
    calldata_ledger_claim(&b, who[OPERATOR], 0, digest, &claims[1]);
    expect_revert(HEIR, CONTRACT_ATTRIBUTION_LEDGER, &b, "NothingToClaim(");
    arena_release(&arena);
    buf_release(&b);
}

static int add_transfer(void *context, const struct rpc_log *log, struct err *err)
{
    struct event e;
    if (event_decode(&e, CONTRACT_TEST_TOKEN, log, NULL, err) != 0)
        return -1;
    assert_int_equal(e.kind, EVENT_TRANSFER);
    assert_int_equal(u256_add(context, *(struct u256 *)context, e.transfer.value), 0);
    return 0;
}

static void every_event_was_seen_and_can_be_found_again(void **state)
{
    (void)state;
    struct err err;
    struct rpc_block latest;
    struct u256 sum = U256_ZERO;
    size_t n = 0;
    for (int kind = EVENT_OTHER + 1; kind < N_EVENT_KINDS; kind++) {
        if (events_seen[kind] == 0)
            fail_msg("no %s was logged", event_name((enum event_kind)kind));
        n += events_seen[kind];
    }
    printf("note: %zu logs of %d kinds decoded\n", n, N_EVENT_KINDS - 1);
    /* What the token says the ledger has paid out. */
    struct bytes32 topic = event_topic(EVENT_TRANSFER),
                   from = topic_of_address(contracts[CONTRACT_ATTRIBUTION_LEDGER]);
    assert_ok(rpc_block(rpc, &latest, RPC_AT_LATEST, &err), err);
    struct rpc_log_filter filter = {.addresses = &contracts[CONTRACT_TEST_TOKEN],
                                    .n_addresses = 1,
                                    .topics = {&topic, &from},
                                    .from_block = 0,
                                    .to_block = latest.number};
    assert_ok(rpc_logs(rpc, &filter, add_transfer, &sum, &err), err);
    assert_int_equal(u256_cmp(sum, u256_of_amount(TOKENS(12))), 0);
}

static void logs_that_are_not_what_they_claim_are_refused(void **state)
{
    (void)state;
    struct rpc_log log = {.n_topics = 3,
                          .topics = {event_topic(EVENT_TRANSFER), topic_of_address(who[PAYER]),
                                     topic_of_address(who[HEIR])}};
    uint8_t value[33] = {0};
    struct event e;
    struct err err;
    log.data = value;
    log.n_data = 32;
    value[31] = 9;
    assert_ok(event_decode(&e, CONTRACT_TEST_TOKEN, &log, NULL, &err), err);
    assert_int_equal(u256_cmp(e.transfer.value, u256_of(9)), 0);
    /* Of another contract it is another event. */
    assert_ok(event_decode(&e, CONTRACT_ESCROW, &log, NULL, &err), err);
    assert_int_equal(e.kind, EVENT_OTHER);
    for (size_t n_data = 0; n_data <= 33; n_data++) {
        if (n_data == 32)
            continue;
        log.n_data = n_data;
        assert_int_equal(event_decode(&e, CONTRACT_TEST_TOKEN, &log, NULL, &err), -1);
        assert_int_equal(err.code, ERR_UPSTREAM);
    }
    log.n_data = 32;
    for (uint32_t n_topics = 1; n_topics <= 4; n_topics++) {
        log.n_topics = n_topics;
        int rc = event_decode(&e, CONTRACT_TEST_TOKEN, &log, NULL, &err);
        assert_int_equal(rc, n_topics == 3 ? 0 : -1);
    }
    log.n_topics = 3;
    log.topics[1].bytes[0] = 1; /* an address has 12 zero bytes before it */
    assert_int_equal(event_decode(&e, CONTRACT_TEST_TOKEN, &log, NULL, &err), -1);
    log.n_topics = 0;
    assert_ok(event_decode(&e, CONTRACT_TEST_TOKEN, &log, NULL, &err), err);
    assert_int_equal(e.kind, EVENT_OTHER);
}

/* ---- transactions of our own --------------------------------------------------------------------
 */

/* anvil signs the transaction; its bytes must be ours. */
static void sign_tx(struct buf *out, enum role from, const struct tx *tx)
{
    json_t *o = json_pack("{s:o, s:o, s:s}", "from", account(who[from]), "to", account(tx->to),
                          "data", "0x");
    char text[67];
    json_object_set_new(o, "nonce", json_string(u256_format_hex(text, u256_of(tx->nonce))));
    json_object_set_new(o, "gas", json_string(u256_format_hex(text, u256_of(tx->gas_limit))));
    json_object_set_new(o, "value", json_string(u256_format_hex(text, tx->value)));
    json_object_set_new(o, "chainId", json_string(u256_format_hex(text, u256_of(tx->chain_id))));
    if (tx->kind == TX_FEE_MARKET) {
        json_object_set_new(o, "maxFeePerGas", json_string(u256_format_hex(text, tx->max_fee)));
        json_object_set_new(o, "maxPriorityFeePerGas",
                            json_string(u256_format_hex(text, tx->max_priority_fee)));
    } else {
        json_object_set_new(o, "gasPrice", json_string(u256_format_hex(text, tx->gas_price)));
    }
    json_t *value = ask("eth_signTransaction", json_pack("[o]", o));
    const char *hex = json_string_value(value);
    size_t n = strlen(hex) / 2 - 1;
    buf_reset(out);
    buf_reserve(out, n);
    assert_int_equal(hex_decode(out->data, n, hex), 0);
    out->len = n;
    json_decref(value);

    struct arena arena = ARENA_INIT;
    struct buf ours = BUF_INIT;
    struct tx parsed;
    struct signature sig;
    struct err err;
    bool is_signed;
    assert_ok(tx_parse(&parsed, &sig, &is_signed, &arena, out->data, out->len, &err), err);
    assert_true(is_signed);
    tx_write_signed(&ours, tx, &sig);
    assert_int_equal(ours.len, out->len);
    assert_memory_equal(ours.data, out->data, ours.len);
    buf_release(&ours);
    arena_release(&arena);
}

static enum rpc_sent send(enum role from, const struct tx *tx, struct tx_hash *hash)
{
    struct buf raw = BUF_INIT;
    struct err err, why = {.message = ""};
    enum rpc_sent sent;
    sign_tx(&raw, from, tx);
    *hash = tx_hash_of(raw.data, raw.len);
    assert_ok(rpc_send(rpc, &sent, raw.data, raw.len, who[from], &why, &err), err);
    buf_release(&raw);
    return sent;
}

static void what_becomes_of_a_broadcast_is_told(void **state)
{
    (void)state;
    struct err err;
    struct rpc_fees fees;
    struct tx_hash first_hash, hash;
    struct rpc_receipt receipt;
    struct rpc_block before, latest;
    struct u256 l1;
    bool known;
    uint64_t nonce;
    assert_ok(rpc_fees(rpc, &fees, &err), err);
    assert_false(fees.legacy);
    assert_true(u256_cmp(fees.max_fee, fees.base_fee) > 0);
    assert_ok(rpc_l1_fee(rpc, &l1, "x", 1, &err), err);
    assert_true(u256_is_zero(l1));
    assert_ok(rpc_nonce(rpc, &nonce, who[TREASURY], RPC_AT_PENDING, &err), err);

    tell("evm_setAutomine", json_pack("[b]", 0));
    struct tx first = {.kind = TX_FEE_MARKET,
                       .chain_id = CHAIN_ID,
                       .nonce = nonce,
                       .gas_limit = 21000,
                       .max_fee = fees.max_fee,
                       .max_priority_fee = fees.max_priority_fee,
                       .to = who[HEIR],
                       .value = u256_of(1)};
    struct tx other = first, poor = first, cheap = first, legacy = first;
    assert_int_equal(send(TREASURY, &first, &first_hash), RPC_SENT);
    assert_int_equal(send(TREASURY, &first, &hash), RPC_SENT); /* known */
    assert_ok(rpc_tx_known(rpc, &known, first_hash, &err), err);
    assert_true(known);
    assert_ok(rpc_tx_receipt(rpc, &receipt, first_hash, NULL, NULL, &err), err);
    assert_false(receipt.mined);
    other.value = u256_of(2);
    assert_int_equal(send(TREASURY, &other, &hash), RPC_UNDERPRICED);
    cheap.nonce = nonce + 1;
    cheap.max_fee = cheap.max_priority_fee = u256_of(1);
    assert_int_equal(send(TREASURY, &cheap, &hash), RPC_FEE_TOO_LOW);
    poor.nonce = nonce + 1;
    poor.value = (struct u256){{0, 0, 0, 1}};
    assert_int_equal(send(TREASURY, &poor, &hash), RPC_NO_FUNDS);
    /* A better offer replaces: an eighth more. */
    assert_int_equal(u256_mul(&other.max_fee, other.max_fee, 2), 0);
    assert_int_equal(u256_mul(&other.max_priority_fee, other.max_priority_fee, 2), 0);
    struct tx_hash other_hash;
    assert_int_equal(send(TREASURY, &other, &other_hash), RPC_SENT);
    legacy.kind = TX_LEGACY;
    legacy.nonce = nonce + 1;
    legacy.gas_price = fees.max_fee;
    struct tx_hash legacy_hash;
    assert_int_equal(send(TREASURY, &legacy, &legacy_hash), RPC_SENT);
    assert_ok(rpc_block(rpc, &before, RPC_AT_LATEST, &err), err);
    tell("evm_mine", NULL);

    assert_ok(rpc_tx_receipt(rpc, &receipt, other_hash, NULL, NULL, &err), err);
    assert_true(receipt.mined && receipt.succeeded && receipt.gas_used == 21000 &&
                receipt.block_number == before.number + 1 && !receipt.created);
    assert_ok(rpc_tx_receipt(rpc, &receipt, legacy_hash, NULL, NULL, &err), err);
    assert_true(receipt.mined && receipt.succeeded);
    assert_int_equal(send(TREASURY, &other, &hash), RPC_MINED);
    assert_int_equal(send(TREASURY, &first, &hash), RPC_NONCE_USED);
    assert_ok(rpc_nonce(rpc, &nonce, who[TREASURY], RPC_AT_LATEST, &err), err);
    assert_int_equal(nonce, other.nonce + 2);

    /* A reorganisation takes the block away, and with it what was mined. */
    tell("anvil_reorg", json_pack("[i, []]", 1));
    assert_ok(rpc_tx_receipt(rpc, &receipt, other_hash, NULL, NULL, &err), err);
    assert_false(receipt.mined);
    assert_int_equal(send(TREASURY, &other, &hash), RPC_SENT);
    assert_int_equal(send(TREASURY, &legacy, &hash), RPC_SENT);
    tell("evm_setAutomine", json_pack("[b]", 1));
    tell("evm_mine", NULL);
    assert_ok(rpc_tx_receipt(rpc, &receipt, other_hash, NULL, NULL, &err), err);
    assert_true(receipt.mined);

    assert_ok(rpc_block(rpc, &latest, RPC_AT_LATEST, &err), err);
    struct rpc_block safe, final, same;
    assert_ok(rpc_block(rpc, &safe, RPC_AT_SAFE, &err), err);
    assert_ok(rpc_block(rpc, &final, RPC_AT_FINALIZED, &err), err);
    assert_true(final.number <= safe.number && safe.number <= latest.number);
    assert_ok(rpc_block(rpc, &same, RPC_AT_BLOCK(latest.number), &err), err);
    assert_memory_equal(&same.hash, &latest.hash, 32);
    assert_int_equal(rpc_block(rpc, &same, RPC_AT_BLOCK(latest.number + 9), &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_abi_in_the_binary_is_the_one_the_calls_expect),
        cmocka_unit_test(contracts_are_deployed_where_predicted),
        cmocka_unit_test(a_view_of_nobody_says_so),
        cmocka_unit_test(operators_stake_and_name_their_signer),
        cmocka_unit_test(creators_register_what_they_signed),
        cmocka_unit_test(payers_deposit_and_operators_redeem),
        cmocka_unit_test(batches_settle_and_their_leaves_are_claimed),
        cmocka_unit_test(every_event_was_seen_and_can_be_found_again),
        cmocka_unit_test(logs_that_are_not_what_they_claim_are_refused),
        cmocka_unit_test(what_becomes_of_a_broadcast_is_told),
    };
    return cmocka_run_group_tests_name("anvil", tests, start, stop);
}
