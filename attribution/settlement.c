/* settlement: eth_call in, calldata out. Signatures are those of contracts-abi/src. See
 * settlement.h. */
#include "attribution/settlement.h"

#include "attribution/json_out.h"
#include "chain/abi.h"
#include "chain/keccak.h"
#include "node/base/buf.h"

#include <stdlib.h>
#include <string.h>

static void append_selector(struct buf *out, const char *signature)
{
    uint8_t selector[4];
    abi_selector(selector, signature);
    buf_append(out, selector, sizeof(selector));
}

/* "name(types)" called with args (stolen); the decoded results as an array, NULL on failure, and
 * JSON null when there was no contract at that block. */
static json_t *call(const struct settlement *s, struct address to, const char *signature,
                    json_t *args, const char *results, struct rpc_at at, struct err *err)
{
    struct buf data = BUF_INIT, answer = BUF_INIT;
    json_t *out = NULL;
    append_selector(&data, signature);
    int rc = abi_encode(&data, strchr(signature, '('), args, err);
    json_decref(args);
    if (rc == 0) {
        struct rpc_call c = {.to = to, .data = data.data, .n_data = data.len};
        rc = rpc_call(s->rpc, &answer, &c, at, NULL, err);
    }
    if (rc == 0 && answer.len == 0 && at.tag != RPC_LATEST)
        out = json_null();
    else if (rc == 0)
        out = abi_decode(results, answer.data, answer.len, err);
    if (!out)
        err_wrap(err, "%.40s", signature);
    buf_release(&data);
    buf_release(&answer);
    return out;
}

/* Results by place; the decoder has checked their types. A JSON null gives zeros. */
static struct amount result_amount(const json_t *results, size_t i)
{
    struct amount a = AMOUNT_ZERO;
    const char *text = json_string_value(json_array_get(results, i));
    if (text && amount_parse(&a, text) != 0)
        a = AMOUNT_ZERO;
    return a;
}

static uint64_t result_u64(const json_t *results, size_t i)
{
    return (uint64_t)result_amount(results, i).units;
}

static void result_bytes(const json_t *results, size_t i, uint8_t *out, size_t n)
{
    const char *text = json_string_value(json_array_get(results, i));
    if (!text || hex_decode(out, n, text) != 0)
        memset(out, 0, n);
}

int settlement_head(const struct settlement *s, struct settlement_head *out, struct rpc_at at,
                    struct err *err)
{
    json_t *r = call(s, s->chain.attribution_ledger, "headOf(address)",
                     json_pack("[o]", out_hex(s->operator_address.bytes, 20)),
                     "(uint64,bytes32,uint128)", at, err);
    if (!r)
        return -1;
    out->next = result_u64(r, 0);
    result_bytes(r, 1, out->hash, 32);
    out->committed = result_amount(r, 2);
    json_decref(r);
    return 0;
}

int settlement_final(const struct settlement *s, uint64_t *count, struct amount *committed,
                     struct rpc_at at, struct err *err)
{
    json_t *r = call(s, s->chain.attribution_ledger, "finalOf(address)",
                     json_pack("[o]", out_hex(s->operator_address.bytes, 20)), "(uint64,uint128)",
                     at, err);
    if (!r)
        return -1;
    *count = result_u64(r, 0);
    *committed = result_amount(r, 1);
    json_decref(r);
    return 0;
}

int settlement_redeemed(const struct settlement *s, struct amount *out, struct rpc_at at,
                        struct err *err)
{
    json_t *r = call(s, s->chain.escrow, "redeemed(address)",
                     json_pack("[o]", out_hex(s->operator_address.bytes, 20)), "(uint128)", at,
                     err);
    if (!r)
        return -1;
    *out = result_amount(r, 0);
    json_decref(r);
    return 0;
}

int settlement_balance(const struct settlement *s, struct amount *out, struct address payer,
                       struct rpc_at at, struct err *err)
{
    json_t *r = call(
        s, s->chain.escrow, "accountOf(address,address)",
        json_pack("[o, o]", out_hex(payer.bytes, 20), out_hex(s->operator_address.bytes, 20)),
        "(uint128,uint128,uint64)", at, err);
    if (!r)
        return -1;
    *out = result_amount(r, 0);
    json_decref(r);
    return 0;
}

int settlement_channel(const struct settlement *s, struct amount *value, uint8_t last_receipt[32],
                       struct address payer, uint64_t epoch, struct rpc_at at, struct err *err)
{
    json_t *r = call(s, s->chain.escrow, "channelState(address,address,uint64)",
                     json_pack("[o, o, o]", out_hex(payer.bytes, 20),
                               out_hex(s->operator_address.bytes, 20), out_u64(epoch)),
                     "(uint128,bytes32)", at, err);
    if (!r)
        return -1;
    *value = result_amount(r, 0);
    result_bytes(r, 1, last_receipt, 32);
    json_decref(r);
    return 0;
}

int settlement_stake(const struct settlement *s, struct settlement_stake *out, struct rpc_at at,
                     struct err *err)
{
    json_t *r = call(s, s->chain.stake_manager, "stakeBehind(address)",
                     json_pack("[o]", out_hex(s->signer.bytes, 20)), "(address,uint128,bool)", at,
                     err);
    if (!r)
        return -1;
    result_bytes(r, 0, out->operator_address.bytes, 20);
    out->active = result_amount(r, 1);
    out->live = json_is_true(json_array_get(r, 2));
    json_decref(r);
    return 0;
}

int settlement_claimed(const struct settlement *s, struct amount *out, const struct payout *leaf,
                       struct rpc_at at, struct err *err)
{
    json_t *r = call(s, s->chain.attribution_ledger, "claimed(address,uint8,bytes32,uint16)",
                     json_pack("[o, i, o, i]", out_hex(s->operator_address.bytes, 20),
                               (int)leaf->kind, out_hex(leaf->id, 32), (int)leaf->position),
                     "(uint128)", at, err);
    if (!r)
        return -1;
    *out = result_amount(r, 0);
    json_decref(r);
    return 0;
}

static int append_arguments(struct buf *out, const char *signature, json_t *args, struct err *err)
{
    append_selector(out, signature);
    int rc = abi_encode(out, strchr(signature, '('), args, err);
    json_decref(args);
    return rc;
}

int settlement_redeem_data(struct buf *out, const struct signed_voucher *v, struct err *err)
{
    uint8_t signature[SIGNATURE_BYTES];
    signature_to_bytes(signature, &v->signature);
    return append_arguments(
        out, "redeem((address,address,bytes32,uint64,uint128,bytes32),uint64,bytes)",
        json_pack("[[o, o, o, o, o, o], o, o]", out_hex(v->voucher.payer.bytes, 20),
                  out_hex(v->voucher.operator_address.bytes, 20), out_hex(v->voucher.channel, 32),
                  out_u64(v->voucher.timestamp_ms), out_amount(v->voucher.value_aggregate),
                  out_hex(v->voucher.last_receipt_hash, 32), out_u64(v->epoch),
                  out_hex(signature, sizeof(signature))),
        err);
}

int settlement_submit_data(struct buf *out, const struct signed_batch *b, struct err *err)
{
    const struct batch *f = &b->batch;
    uint8_t signature[SIGNATURE_BYTES];
    signature_to_bytes(signature, &b->signature);
    return append_arguments(
        out,
        "submit((address,uint64,uint32,bytes32,bytes32,uint128,uint64,uint64,bytes32,bytes32),"
        "bytes)",
        json_pack("[[o, o, o, o, o, o, o, o, o, o], o]", out_hex(f->operator_address.bytes, 20),
                  out_u64(f->seq), out_u64(f->leaf_count), out_hex(f->receipts_root, 32),
                  out_hex(f->payout_root, 32), out_amount(f->committed), out_u64(f->period_start),
                  out_u64(f->period_end), out_hex(f->data_hash.bytes, 32),
                  out_hex(f->prev_batch_hash, 32), out_hex(signature, sizeof(signature))),
        err);
}

/* ---- claims --------------------------------------------------------------------------------- */

struct claim_walk {
    settlement_claim_fn *each;
    void *context;
};

/* event Claimed(address indexed operator, bytes32 indexed id, address indexed payee,
 *               uint8 kind, uint16 position, uint128 amount, uint128 cumulative) */
static int read_claim(void *context, const struct rpc_log *log, struct err *err)
{
    struct claim_walk *walk = context;
    if (log->n_topics != 4)
        return err_set(err, ERR_UPSTREAM, "a Claimed event has %u topics", log->n_topics);
    json_t *values = abi_decode("(uint8,uint16,uint128,uint128)", log->data, log->n_data, err);
    if (!values)
        return -1;
    struct payout leaf = {
        .kind = (enum payout_kind)result_u64(values, 0),
        .position = (uint16_t)result_u64(values, 1),
        .amount = result_amount(values, 3),
    };
    memcpy(leaf.id, log->topics[2].bytes, 32);
    json_decref(values);
    return walk->each(walk->context, &leaf, err);
}

int settlement_claims(const struct settlement *s, uint64_t from_block, uint64_t to_block,
                      settlement_claim_fn *each, void *context, struct err *err)
{
    static const char event[] = "Claimed(address,bytes32,address,uint8,uint16,uint128,uint128)";
    struct keccak_digest hash = keccak256(event, sizeof(event) - 1);
    struct bytes32 topic = {{0}}, operator_topic = {{0}};
    memcpy(topic.bytes, hash.bytes, 32);
    memcpy(operator_topic.bytes + 12, s->operator_address.bytes, 20);
    struct rpc_log_filter filter = {
        .addresses = &s->chain.attribution_ledger,
        .n_addresses = 1,
        .topics = {&topic, &operator_topic, NULL, NULL},
        .from_block = from_block,
        .to_block = to_block,
    };
    struct claim_walk walk = {each, context};
    return rpc_logs(s->rpc, &filter, read_claim, &walk, err);
}
