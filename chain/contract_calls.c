/* contract_calls: the table of calls and what encodes and reads them. See contract_calls.h.
 *
 * The table `calls` says what the files above this one believe the ABI to be; contracts_check
 * compares it with the ABI that is in the binary, row by row, before the first call, so that a
 * changed contract stops the program (and the unit test) instead of encoding something else. */
#include "chain/contract_calls.h"

#include "chain/abi.h"
#include "chain/contract_abi.h"
#include "chain/embedded.h"
#include "chain/events.h"
#include "chain/keccak.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define MANIFEST  "(bytes32,bytes32,bytes32,address,uint64,bytes32)"
#define SPLITS    "(address[],uint16[],bytes32[],uint16[])"
#define VOUCHER   "(address,address,bytes32,uint64,uint128,bytes32)"
#define BATCH     "(address,uint64,uint32,bytes32,bytes32,uint128,uint64,uint64,bytes32,bytes32)"
#define BATCH_REF "(address,uint64,bytes32)"
#define PAYOUT    "(uint8,bytes32,uint16,uint128)"
#define PROOF     "(uint32,uint32,bytes)"

static const struct call {
    enum contract contract;
    const char *name, *inputs, *outputs;
} calls[N_CALLS] = {
#define T CONTRACT_TEST_TOKEN
    [CALL_TOKEN_MINT] = {T, "mint", "(address,uint256)", "()"},
    [CALL_TOKEN_APPROVE] = {T, "approve", "(address,uint256)", "(bool)"},
    [CALL_TOKEN_TRANSFER] = {T, "transfer", "(address,uint256)", "(bool)"},
    [CALL_TOKEN_BALANCE] = {T, "balanceOf", "(address)", "(uint256)"},
    [CALL_TOKEN_ALLOWANCE] = {T, "allowance", "(address,address)", "(uint256)"},
    [CALL_TOKEN_DECIMALS] = {T, "decimals", "()", "(uint8)"},
#undef T
#define S CONTRACT_STAKE_MANAGER
    [CALL_STAKE_ADD] = {S, "stake", "(uint128)", "()"},
    [CALL_STAKE_REQUEST_UNSTAKE] = {S, "requestUnstake", "(uint128)", "()"},
    [CALL_STAKE_WITHDRAW] = {S, "withdraw", "()", "(uint128)"},
    [CALL_STAKE_OFFER_SIGNER] = {S, "offerSigner", "(address)", "()"},
    [CALL_STAKE_ADD_SIGNER] = {S, "addSigner", "(address)", "()"},
    [CALL_STAKE_REMOVE_SIGNER] = {S, "removeSigner", "(address)", "()"},
    [CALL_STAKE_OF] = {S, "stakeOf", "(address)", "(uint128,uint128,uint64)"},
    [CALL_STAKE_SIGNER] = {S, "signerInfo", "(address)", "(address,uint48,uint48)"},
    [CALL_STAKE_BEHIND] = {S, "stakeBehind", "(address)", "(address,uint128,bool)"},
    [CALL_STAKE_TOKEN] = {S, "token", "()", "(address)"},
    [CALL_STAKE_TREASURY] = {S, "treasury", "()", "(address)"},
    [CALL_STAKE_DISPUTES] = {S, "disputes", "()", "(address)"},
    [CALL_STAKE_MIN] = {S, "minStake", "()", "(uint128)"},
    [CALL_STAKE_UNBONDING] = {S, "unbondingPeriod", "()", "(uint64)"},
#undef S
#define R CONTRACT_ADAPTER_REGISTRY
    [CALL_REGISTRY_REGISTER_DATANET] = {R, "registerDatanet", "(bytes32,address)", "(bytes32)"},
    [CALL_REGISTRY_REGISTER_ADAPTER] = {R, "registerAdapter", "(" MANIFEST "," SPLITS ",bytes)",
                                        "(bytes32)"},
    [CALL_REGISTRY_RETIRE] = {R, "retire", "(bytes32)", "()"},
    [CALL_REGISTRY_PROPOSE_PAYEE] = {R, "proposePayee", "(bytes32,uint16,address,bytes)", "()"},
    [CALL_REGISTRY_PROPOSE_DATANET_PAYEE] = {R, "proposeDatanetPayee", "(bytes32,address)", "()"},
    [CALL_REGISTRY_ADAPTER] = {R, "adapterOf", "(bytes32)", "(address,uint64,bool,bytes32)"},
    [CALL_REGISTRY_FIRST_BY_CONTENT] = {R, "firstByContent", "(bytes32)", "(bytes32)"},
    [CALL_REGISTRY_PAYEE] = {R, "payeeOf", "(bytes32,uint16,bytes)", "(address)"},
    [CALL_REGISTRY_WRITTEN_PAYEE] = {R, "writtenPayee", "(bytes32,uint16)", "(address)"},
    [CALL_REGISTRY_DATANET_PAYEE] = {R, "datanetPayee", "(bytes32)", "(address)"},
    [CALL_REGISTRY_PAYEE_DELAY] = {R, "payeeDelay", "()", "(uint64)"},
#undef R
#define E CONTRACT_ESCROW
    [CALL_ESCROW_DEPOSIT] = {E, "deposit", "(address,uint128)", "()"},
    [CALL_ESCROW_DEPOSIT_FOR] = {E, "depositFor", "(address,address,uint128)", "()"},
    [CALL_ESCROW_REQUEST_THAW] = {E, "requestThaw", "(address,uint128)", "()"},
    [CALL_ESCROW_WITHDRAW] = {E, "withdraw", "(address)", "(uint128)"},
    [CALL_ESCROW_ADD_SIGNER] = {E, "addSigner", "(address)", "()"},
    [CALL_ESCROW_REMOVE_SIGNER] = {E, "removeSigner", "(address)", "()"},
    [CALL_ESCROW_REDEEM] = {E, "redeem", "(" VOUCHER ",uint64,bytes)", "(uint128)"},
    [CALL_ESCROW_REDEEM_MANY] = {E, "redeemMany", "(address,(" VOUCHER ",uint64,bytes)[])",
                                 "(uint128)"},
    [CALL_ESCROW_ACCOUNT] = {E, "accountOf", "(address,address)", "(uint128,uint128,uint64)"},
    [CALL_ESCROW_CHANNEL] = {E, "channelState", "(address,address,uint64)", "(uint128,bytes32)"},
    [CALL_ESCROW_REDEEMED] = {E, "redeemed", "(address)", "(uint128)"},
    [CALL_ESCROW_IS_SIGNER] = {E, "isSigner", "(address,address)", "(bool)"},
    [CALL_ESCROW_TOKEN] = {E, "token", "()", "(address)"},
    [CALL_ESCROW_STAKE_MANAGER] = {E, "stakeManager", "()", "(address)"},
    [CALL_ESCROW_LEDGER] = {E, "ledger", "()", "(address)"},
    [CALL_ESCROW_THAW] = {E, "thawPeriod", "()", "(uint64)"},
#undef E
#define L CONTRACT_ATTRIBUTION_LEDGER
    [CALL_LEDGER_SUBMIT] = {L, "submit", "(" BATCH ",bytes)", "()"},
    [CALL_LEDGER_CLAIM] = {L, "claim", "(" BATCH_REF "," PAYOUT "," PROOF ",bytes)", "(uint128)"},
    [CALL_LEDGER_CLAIM_MANY] = {L, "claimMany", "(" BATCH_REF ",(" PAYOUT "," PROOF ",bytes)[])",
                                "(uint128)"},
    [CALL_LEDGER_HEAD] = {L, "headOf", "(address)", "(uint64,bytes32,uint128)"},
    [CALL_LEDGER_FINAL] = {L, "finalOf", "(address)", "(uint64,uint128)"},
    [CALL_LEDGER_BATCH] = {L, "batchOf", "(address,uint64)", "(bytes32,uint128,uint32,uint64)"},
    [CALL_LEDGER_IS_SUBMITTED] = {L, "isSubmitted", "(" BATCH ")", "(bool)"},
    [CALL_LEDGER_IS_VOIDED] = {L, "isVoided", "(bytes32)", "(bool)"},
    [CALL_LEDGER_CLAIMED] = {L, "claimed", "(address,uint8,bytes32,uint16)", "(uint128)"},
    [CALL_LEDGER_PAID] = {L, "paid", "(address)", "(uint128)"},
    [CALL_LEDGER_VERIFY_RECEIPT] = {L, "verifyReceipt", "(" BATCH ",uint32,bytes32,bytes32[])",
                                    "(bool)"},
    [CALL_LEDGER_VERIFY_PAYOUT] = {L, "verifyPayout", "(" BATCH "," PAYOUT "," PROOF ")", "(bool)"},
    [CALL_LEDGER_TOKEN] = {L, "token", "()", "(address)"},
    [CALL_LEDGER_STAKE_MANAGER] = {L, "stakeManager", "()", "(address)"},
    [CALL_LEDGER_REGISTRY] = {L, "registry", "()", "(address)"},
    [CALL_LEDGER_ESCROW] = {L, "escrow", "()", "(address)"},
    [CALL_LEDGER_DISPUTES] = {L, "disputes", "()", "(address)"},
    [CALL_LEDGER_WINDOW] = {L, "challengeWindow", "()", "(uint64)"},
#undef L
};

/* Constructors, by contract. */
static const char *const constructors[N_CONTRACTS] = {
    [CONTRACT_STAKE_MANAGER] = "(address,uint128,uint64,address,address)",
    [CONTRACT_ADAPTER_REGISTRY] = "(uint64)",
    [CONTRACT_ESCROW] = "(address,address,address,uint64)",
    [CONTRACT_ATTRIBUTION_LEDGER] = "(address,address,address,uint64)",
    [CONTRACT_TEST_TOKEN] = "()",
};

static void check(void)
{
    for (size_t i = 0; i < N_CALLS; i++) {
        const struct call *c = &calls[i];
        const struct abi_entry *e = abi_find(c->contract, ABI_FUNCTION, c->name);
        if (e == NULL)
            BUG("%s has no function %s", contract_name(c->contract), c->name);
        else if (strcmp(e->inputs, c->inputs) != 0 || strcmp(e->outputs, c->outputs) != 0)
            BUG("%s.%s is %s -> %s, called as %s -> %s", contract_name(c->contract), c->name,
                e->inputs, e->outputs, c->inputs, c->outputs);
    }
    for (int c = 0; c < N_CONTRACTS; c++) {
        const struct abi_entry *e = abi_find((enum contract)c, ABI_CONSTRUCTOR, "");
        if (e == NULL || strcmp(e->inputs, constructors[c]) != 0)
            BUG("%s's constructor takes %s, deployed with %s", contract_name((enum contract)c),
                e == NULL ? "nothing" : e->inputs, constructors[c]);
    }
    event_check();
}

void contracts_check(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, check);
}

/* ---- arguments: new JSON values ----------------------------------------------------------- */

json_t *call_bytes_value(const void *bytes, size_t n)
{
    char *text = xmalloc(2 * n + 3);
    json_t *value = json_string(hex_encode_0x(text, bytes, n));
    free(text);
    return value;
}

json_t *call_address_value(struct address a)
{
    return call_bytes_value(a.bytes, sizeof a.bytes);
}

json_t *call_word_value(const uint8_t bytes[32])
{
    return call_bytes_value(bytes, 32);
}

json_t *call_u256_value(struct u256 v)
{
    char text[U256_TEXT_BYTES];
    return json_string(u256_format(text, v));
}

json_t *call_amount_value(struct amount a)
{
    return call_u256_value(u256_of_amount(a));
}

/* JSON integers are signed, so 64 bits travel as text. */
json_t *call_u64_value(uint64_t v)
{
    return call_u256_value(u256_of(v));
}

json_t *call_signature_value(const struct signature *sig)
{
    uint8_t bytes[SIGNATURE_BYTES];
    signature_to_bytes(bytes, sig);
    return call_bytes_value(bytes, sizeof bytes);
}

/* ---- calls and results -------------------------------------------------------------------- */

void call_data(struct buf *out, enum contract_call call, json_t *args)
{
    contracts_check();
    contract_calldata(out, calls[call].contract, calls[call].name, args);
}

void call_initcode(struct buf *out, enum contract c, json_t *args)
{
    contracts_check();
    const char *code = json_string_value(
        json_object_get(embedded_contract(contract_name(c)), "bytecode"));
    BUG_IF(code == NULL || strncmp(code, "0x", 2) != 0);
    size_t n = strlen(code) / 2 - 1;
    buf_reserve(out, n);
    BUG_IF(hex_decode(out->data + out->len, n, code) != 0);
    out->len += n;
    BUG_IF(abi_encode(out, constructors[c], args, NULL) != 0);
    json_decref(args);
}

json_t *call_view(const struct contract_at *where, enum contract_call call, json_t *args,
                  struct err *err)
{
    contracts_check();
    return contract_view(where, calls[call].contract, calls[call].name, args, err);
}

/* Results by place. The decoder has checked that they are of the types of the table, so anything
 * else is a bug of this file. */
static const char *result_text(const json_t *results, size_t i)
{
    const char *text = json_string_value(json_array_get(results, i));
    BUG_IF(text == NULL);
    return text;
}

struct u256 result_u256(const json_t *results, size_t i)
{
    struct u256 v;
    BUG_IF(u256_parse(&v, result_text(results, i)) != 0);
    return v;
}

struct amount result_amount(const json_t *results, size_t i)
{
    struct amount a;
    BUG_IF(u256_to_amount(&a, result_u256(results, i)) != 0);
    return a;
}

uint64_t result_u64(const json_t *results, size_t i)
{
    uint64_t v;
    BUG_IF(u256_to_u64(&v, result_u256(results, i)) != 0);
    return v;
}

void result_word(uint8_t out[32], const json_t *results, size_t i)
{
    BUG_IF(hex_decode(out, 32, result_text(results, i)) != 0);
}

struct address result_address(const json_t *results, size_t i)
{
    struct address a = {{0}};
    BUG_IF(hex_decode(a.bytes, sizeof a.bytes, result_text(results, i)) != 0);
    return a;
}

bool result_bool(const json_t *results, size_t i)
{
    BUG_IF(!json_is_boolean(json_array_get(results, i)));
    return json_is_true(json_array_get(results, i));
}

/* Views of one result. */
int call_view_address(const struct contract_at *where, struct address *out, enum contract_call call,
                      json_t *args, struct err *err)
{
    json_t *r = call_view(where, call, args, err);
    if (r == NULL)
        return -1;
    *out = result_address(r, 0);
    json_decref(r);
    return 0;
}

int call_view_u256(const struct contract_at *where, struct u256 *out, enum contract_call call,
                   json_t *args, struct err *err)
{
    json_t *r = call_view(where, call, args, err);
    if (r == NULL)
        return -1;
    *out = result_u256(r, 0);
    json_decref(r);
    return 0;
}

int call_view_amount(const struct contract_at *where, struct amount *out, enum contract_call call,
                     json_t *args, struct err *err)
{
    json_t *r = call_view(where, call, args, err);
    if (r == NULL)
        return -1;
    *out = result_amount(r, 0);
    json_decref(r);
    return 0;
}

int call_view_u64(const struct contract_at *where, uint64_t *out, enum contract_call call,
                  json_t *args, struct err *err)
{
    json_t *r = call_view(where, call, args, err);
    if (r == NULL)
        return -1;
    *out = result_u64(r, 0);
    json_decref(r);
    return 0;
}

int call_view_bool(const struct contract_at *where, bool *out, enum contract_call call,
                   json_t *args, struct err *err)
{
    json_t *r = call_view(where, call, args, err);
    if (r == NULL)
        return -1;
    *out = result_bool(r, 0);
    json_decref(r);
    return 0;
}
