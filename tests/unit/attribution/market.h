/* market: what the ledger's tests share: keys, an adapter, usages, and a chain that isn't one.
 *
 * The chain replaces chain/rpc.c at link time: this header defines every rpc_ function that the
 * ledger half calls. It is a small model of Escrow, StakeManager and AttributionLedger over a list
 * of blocks, each with the whole state after it, so that asking at a block and reorganising are
 * trivial. It lies in shared memory: a test may kill the process that talks to it and go on with
 * the same chain. Signatures, digests and calldata are real: what a contract would check is
 * checked. */
#ifndef TRIBUTARY_TESTS_MARKET_H
#define TRIBUTARY_TESTS_MARKET_H

#include "attribution/batch.h"
#include "attribution/ledger.h"
#include "attribution/publisher.h"
#include "attribution/receipt.h"
#include "attribution/settlement.h"
#include "chain/abi.h"
#include "chain/eip712.h"
#include "chain/tx.h"
#include "node/base/arena.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/sha256.h"
#include "tests/support.h"
#include "wallet/wallet.h"

#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* The calendar is ours to set: seconds added to it, negative for a clock that was set back. */
static _Atomic int64_t calendar_shift_s;
int clock_gettime(clockid_t id, struct timespec *out)
{
    int rc = (int)syscall(SYS_clock_gettime, id, out);
    if (id == CLOCK_REALTIME)
        out->tv_sec += calendar_shift_s;
    return rc;
}

/* ---- the chain ------------------------------------------------------------------------------ */

enum {
    BLOCKS_MAX = 400,
    TXS_MAX = 64,
    TX_BYTES_MAX = 2048,
    CHANNELS_MAX = 64,
    PAYERS_MAX = 48,
    SEQS_MAX = 64,
};

struct fake_channel {
    struct address payer;
    uint64_t epoch;
    struct amount value;
    uint8_t last[32];
};

struct fake_state {                  /* after a block */
    struct amount balance, redeemed; /* of (house, operator); of the operator */
    struct fake_payer {              /* of others than the house */
        struct address payer;
        struct amount balance;
    } payers[PAYERS_MAX];
    struct fake_channel channels[CHANNELS_MAX];
    int n_channels, n_payers;
    uint64_t nonce; /* of the signer key */
    uint64_t n_batches;
    uint8_t batch_hash[SEQS_MAX][32];
    struct amount committed[SEQS_MAX];
    uint64_t final_block[SEQS_MAX];
    struct amount stake;
};

struct fake_tx {
    bool used, pending, mined, succeeded;
    struct tx_hash hash;
    uint64_t nonce, block;
    struct amount max_fee;
    size_t n;
    uint8_t raw[TX_BYTES_MAX];
};

struct fake_chain {
    struct fake_state states[BLOCKS_MAX];
    uint64_t head; /* number of the newest block */
    struct fake_tx txs[TXS_MAX];
    bool down;             /* no endpoint answers */
    bool cancelled;        /* nor is one waited for */
    bool drops_broadcasts; /* takes transactions and forgets them */
    bool no_funds;         /* of the signer, for fees: says who is sent something */
    bool shows_no_funds;   /* says whoever is asked for the balance */
    uint64_t challenge_blocks, forks;
    struct amount base_fee;
    uint64_t gas; /* what estimates say, 0: 100,000; below what a transaction needs it is refused */
    uint64_t n_sends, n_reverts;
    struct amount claimed; /* by the operator, in one event in claim_block */
    uint64_t claim_block;
    struct address house, operator_address, signer;
    struct ledger_chain where;
};

static struct fake_chain *fake;

static void fake_chain_reset(void)
{
    if (!fake)
        fake = mmap(NULL, sizeof(*fake), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(fake != MAP_FAILED);
    memset(fake, 0, sizeof(*fake));
    fake->head = 20; /* some life before */
    fake->challenge_blocks = 3;
    fake->base_fee = amount_of(1000000000);
}

static struct fake_state *fake_now(void)
{
    return &fake->states[fake->head];
}

static struct amount *fake_balance_of(struct fake_state *s, struct address payer)
{
    if (address_eq(payer, fake->house))
        return &s->balance;
    for (int i = 0; i < s->n_payers; i++) {
        if (address_eq(s->payers[i].payer, payer))
            return &s->payers[i].balance;
    }
    assert_true(s->n_payers < PAYERS_MAX);
    s->payers[s->n_payers] = (struct fake_payer){payer, AMOUNT_ZERO};
    return &s->payers[s->n_payers++].balance;
}

static struct fake_channel *fake_channel_of(struct fake_state *s, struct address payer,
                                            uint64_t epoch, bool make)
{
    for (int i = 0; i < s->n_channels; i++) {
        if (s->channels[i].epoch == epoch && address_eq(s->channels[i].payer, payer))
            return &s->channels[i];
    }
    if (!make)
        return NULL;
    assert_true(s->n_channels < CHANNELS_MAX);
    s->channels[s->n_channels].epoch = epoch;
    s->channels[s->n_channels].payer = payer;
    return &s->channels[s->n_channels++];
}

static const char *text_at(const json_t *array, size_t i)
{
    return json_string_value(json_array_get(array, i));
}

static uint64_t number_at(const json_t *array, size_t i)
{
    struct amount a;
    assert_int_equal(amount_parse(&a, text_at(array, i)), 0);
    return (uint64_t)a.units;
}

static struct amount amount_at(const json_t *array, size_t i)
{
    struct amount a;
    assert_int_equal(amount_parse(&a, text_at(array, i)), 0);
    return a;
}

static void bytes_at(const json_t *array, size_t i, uint8_t *out, size_t n)
{
    assert_int_equal(hex_decode(out, n, text_at(array, i)), 0);
}

/* Escrow.redeem. */
static bool fake_redeem(struct fake_state *s, const uint8_t *data, size_t n)
{
    struct err err = {0};
    json_t *args = abi_decode("((address,address,bytes32,uint64,uint128,bytes32),uint64,bytes)",
                              data, n, &err);
    if (!args)
        fail_msg("redeem's calldata doesn't decode: %s", err.message);
    const json_t *f = json_array_get(args, 0);
    struct voucher v;
    uint8_t bytes[65];
    struct signature sig;
    struct address payer;
    struct eip712_domain domain = {fake->where.chain_id, fake->where.escrow};
    bytes_at(f, 0, v.payer.bytes, 20);
    bytes_at(f, 1, v.operator_address.bytes, 20);
    bytes_at(f, 2, v.channel, 32);
    v.timestamp_ms = number_at(f, 3);
    v.value_aggregate = amount_at(f, 4);
    bytes_at(f, 5, v.last_receipt_hash, 32);
    uint64_t epoch = number_at(args, 1);
    bytes_at(args, 2, bytes, 65);
    json_decref(args);
    struct voucher_digest digest = eip712_voucher(&v, &domain);
    struct channel_id channel = channel_id_of(v.payer, v.operator_address, epoch);
    if (signature_from_bytes(&sig, bytes) != 0 ||
        wallet_recover_voucher(&payer, &sig, &digest, NULL) != 0 || !address_eq(payer, v.payer) ||
        memcmp(channel.bytes, v.channel, 32) != 0)
        return false;
    struct fake_channel *c = fake_channel_of(s, payer, epoch, true);
    struct amount moved, *balance = fake_balance_of(s, payer);
    if (amount_sub(&moved, v.value_aggregate, c->value) != 0 || amount_is_zero(moved) ||
        amount_sub(balance, *balance, moved) != 0)
        return false;
    c->value = v.value_aggregate;
    memcpy(c->last, v.last_receipt_hash, 32);
    assert_int_equal(amount_add(&s->redeemed, s->redeemed, moved), 0);
    return true;
}

/* AttributionLedger.submit. */
static bool fake_submit(struct fake_state *s, uint64_t block, const uint8_t *data, size_t n)
{
    struct err err = {0};
    json_t *args = abi_decode("((address,uint64,uint32,bytes32,bytes32,uint128,uint64,uint64,"
                              "bytes32,bytes32),bytes)",
                              data, n, &err);
    if (!args)
        fail_msg("submit's calldata doesn't decode: %s", err.message);
    const json_t *f = json_array_get(args, 0);
    struct batch b;
    uint8_t bytes[65], zero[32] = {0};
    struct signature sig;
    struct address signer;
    struct eip712_domain domain = {fake->where.chain_id, fake->where.attribution_ledger};
    bytes_at(f, 0, b.operator_address.bytes, 20);
    b.seq = number_at(f, 1);
    b.leaf_count = (uint32_t)number_at(f, 2);
    bytes_at(f, 3, b.receipts_root, 32);
    bytes_at(f, 4, b.payout_root, 32);
    b.committed = amount_at(f, 5);
    b.period_start = number_at(f, 6);
    b.period_end = number_at(f, 7);
    bytes_at(f, 8, b.data_hash.bytes, 32);
    bytes_at(f, 9, b.prev_batch_hash, 32);
    bytes_at(args, 1, bytes, 65);
    json_decref(args);
    struct batch_digest digest = eip712_batch(&b, &domain);
    const uint8_t *prev = s->n_batches ? s->batch_hash[s->n_batches - 1] : zero;
    struct amount final = AMOUNT_ZERO, open;
    for (uint64_t i = 0; i < s->n_batches; i++) {
        if (s->final_block[i] <= block)
            final = s->committed[i];
    }
    if (signature_from_bytes(&sig, bytes) != 0 ||
        wallet_recover_batch(&signer, &sig, &digest, NULL) != 0 ||
        !address_eq(signer, fake->signer) || b.seq != s->n_batches ||
        memcmp(prev, b.prev_batch_hash, 32) != 0 || amount_cmp(b.committed, s->redeemed) > 0 ||
        b.leaf_count == 0 || amount_sub(&open, b.committed, final) != 0 ||
        amount_cmp(open, s->stake) > 0)
        return false;
    assert_true(s->n_batches < SEQS_MAX);
    memcpy(s->batch_hash[s->n_batches], digest.bytes, 32);
    s->committed[s->n_batches] = b.committed;
    s->final_block[s->n_batches] = block + fake->challenge_blocks;
    s->n_batches++;
    return true;
}

/* Runs one call on a state; false is a revert. */
static bool fake_execute(struct fake_state *s, uint64_t block, struct address to,
                         const uint8_t *data, size_t n)
{
    assert_true(n > 4);
    if (address_eq(to, fake->where.escrow))
        return fake_redeem(s, data + 4, n - 4);
    if (address_eq(to, fake->where.attribution_ledger))
        return fake_submit(s, block, data + 4, n - 4);
    return false;
}

/* A block with every pending transaction that fits, in nonce order. */
static void fake_mine(void)
{
    assert_true(fake->head + 1 < BLOCKS_MAX);
    fake->states[fake->head + 1] = *fake_now();
    fake->head++;
    struct fake_state *s = fake_now();
    for (bool again = true; again;) {
        again = false;
        for (int i = 0; i < TXS_MAX; i++) {
            struct fake_tx *t = &fake->txs[i];
            if (!t->used || !t->pending || t->nonce != s->nonce ||
                amount_cmp(t->max_fee, fake->base_fee) < 0)
                continue;
            struct tx tx;
            struct signature sig;
            bool is_signed;
            struct arena arena = ARENA_INIT;
            struct err err = {0};
            assert_ok(tx_parse(&tx, &sig, &is_signed, &arena, t->raw, t->n, &err), err);
            struct fake_state before = *s;
            t->succeeded = fake_execute(s, fake->head, tx.to, tx.data, tx.n_data);
            if (!t->succeeded) {
                *s = before;
                fake->n_reverts++;
            }
            s->nonce = t->nonce + 1;
            t->pending = false;
            t->mined = true;
            t->block = fake->head;
            arena_release(&arena);
            again = true;
        }
    }
}

/* Takes the newest blocks back; their transactions are pending again, or gone when forget. */
static void fake_reorg(uint64_t depth, bool forget)
{
    fake->head -= depth;
    fake->forks++;
    for (int i = 0; i < TXS_MAX; i++) {
        struct fake_tx *t = &fake->txs[i];
        if (t->used && t->mined && t->block > fake->head) {
            t->mined = false;
            t->pending = true;
            t->used = !forget;
        }
    }
}

static size_t fake_pending(void)
{
    size_t n = 0;
    for (int i = 0; i < TXS_MAX; i++)
        n += fake->txs[i].used && fake->txs[i].pending;
    return n;
}

/* ---- rpc.h over it -------------------------------------------------------------------------- */

static int fake_answers(struct err *err)
{
    if (fake->cancelled)
        return err_set(err, ERR_CANCELLED, "cancelled");
    return fake->down ? err_set(err, ERR_UPSTREAM, "no endpoint answers") : 0;
}

static uint64_t fake_block_at(struct rpc_at at)
{
    return at.tag == RPC_NUMBER && at.number < fake->head ? at.number : fake->head;
}

int rpc_block(struct rpc *rpc, struct rpc_block *out, struct rpc_at at, struct err *err)
{
    (void)rpc;
    if (fake_answers(err) != 0)
        return -1;
    memset(out, 0, sizeof(*out));
    out->number = at.tag == RPC_SAFE ? fake->head - 4 : fake_block_at(at);
    out->has_base_fee = true;
    out->base_fee = u256_of_amount(fake->base_fee);
    return 0;
}

int rpc_nonce(struct rpc *rpc, uint64_t *out, struct address account, struct rpc_at at,
              struct err *err)
{
    (void)rpc;
    if (fake_answers(err) != 0)
        return -1;
    assert_true(address_eq(account, fake->signer));
    *out = fake->states[fake_block_at(at)].nonce;
    for (bool again = at.tag == RPC_PENDING; again;) {
        again = false;
        for (int i = 0; i < TXS_MAX; i++) {
            if (fake->txs[i].used && fake->txs[i].pending && fake->txs[i].nonce == *out) {
                (*out)++;
                again = true;
            }
        }
    }
    return 0;
}

static json_t *fake_view(const struct rpc_call *call, uint64_t block, const char **types)
{
    static const struct {
        const char *signature, *arguments, *results;
    } views[] = {
        {"headOf(address)", "(address)", "(uint64,bytes32,uint128)"},
        {"finalOf(address)", "(address)", "(uint64,uint128)"},
        {"redeemed(address)", "(address)", "(uint128)"},
        {"accountOf(address,address)", "(address,address)", "(uint128,uint128,uint64)"},
        {"channelState(address,address,uint64)", "(address,address,uint64)", "(uint128,bytes32)"},
        {"stakeBehind(address)", "(address)", "(address,uint128,bool)"},
        {"claimed(address,uint8,bytes32,uint16)", "(address,uint8,bytes32,uint16)", "(uint128)"},
    };
    struct fake_state *s = &fake->states[block];
    char amount[AMOUNT_TEXT_BYTES], other[AMOUNT_TEXT_BYTES], hex[67];
    static const uint8_t zero[32];
    struct address payer;
    struct err err;
    size_t v = 0;
    uint8_t selector[4];
    for (; v < sizeof(views) / sizeof(*views); v++) {
        abi_selector(selector, views[v].signature);
        if (memcmp(selector, call->data, 4) == 0)
            break;
    }
    assert_true(v < sizeof(views) / sizeof(*views));
    json_t *args = abi_decode(views[v].arguments, call->data + 4, call->n_data - 4, &err), *out;
    assert_non_null(args);
    *types = views[v].results;
    uint64_t n_final = 0;
    while (n_final < s->n_batches && s->final_block[n_final] <= block)
        n_final++;
    switch (v) {
    case 0:
        out = json_pack(
            "[I, s, s]", (json_int_t)s->n_batches,
            hex_encode_0x(hex, s->n_batches ? s->batch_hash[s->n_batches - 1] : zero, 32),
            amount_format(amount, s->n_batches ? s->committed[s->n_batches - 1] : AMOUNT_ZERO));
        break;
    case 1:
        out = json_pack("[I, s]", (json_int_t)n_final,
                        amount_format(amount, n_final ? s->committed[n_final - 1] : AMOUNT_ZERO));
        break;
    case 2:
        out = json_pack("[s]", amount_format(amount, s->redeemed));
        break;
    case 3:
        bytes_at(args, 0, payer.bytes, 20);
        out = json_pack("[s, s, i]", amount_format(amount, *fake_balance_of(s, payer)),
                        amount_format(other, AMOUNT_ZERO), 0);
        break;
    case 4: {
        bytes_at(args, 0, payer.bytes, 20);
        struct fake_channel *c = fake_channel_of(s, payer, number_at(args, 2), false);
        out = json_pack("[s, s]", amount_format(amount, c ? c->value : AMOUNT_ZERO),
                        hex_encode_0x(hex, c ? c->last : zero, 32));
        break;
    }
    case 5:
        out = json_pack("[s, s, b]", hex_encode_0x(hex, fake->operator_address.bytes, 20),
                        amount_format(amount, s->stake), !amount_is_zero(s->stake));
        break;
    default:
        out = json_pack("[s]", "0");
        break;
    }
    json_decref(args);
    assert_non_null(out);
    return out;
}

int rpc_call(struct rpc *rpc, struct buf *out, const struct rpc_call *call, struct rpc_at at,
             struct buf *revert, struct err *err)
{
    (void)rpc, (void)revert;
    const char *types;
    if (fake_answers(err) != 0)
        return -1;
    json_t *values = fake_view(call, fake_block_at(at), &types);
    int rc = abi_encode(out, types, values, err);
    json_decref(values);
    return rc;
}

int rpc_estimate_gas(struct rpc *rpc, uint64_t *gas, const struct rpc_call *call,
                     struct buf *revert, struct err *err)
{
    (void)rpc, (void)revert;
    if (fake_answers(err) != 0)
        return -1;
    struct fake_state scratch = *fake_now();
    if (!fake_execute(&scratch, fake->head + 1, call->to, call->data, call->n_data))
        return err_set(err, ERR_CONFLICT, "execution reverted");
    *gas = fake->gas ? fake->gas : 100000;
    return 0;
}

int rpc_balance(struct rpc *rpc, struct u256 *wei, struct address account, struct rpc_at at,
                struct err *err)
{
    (void)rpc, (void)account, (void)at;
    *wei = fake->shows_no_funds ? U256_ZERO : u256_of(UINT64_MAX);
    return fake_answers(err);
}

int rpc_fees(struct rpc *rpc, struct rpc_fees *out, struct err *err)
{
    (void)rpc;
    struct amount twice;
    if (fake_answers(err) != 0)
        return -1;
    assert_int_equal(amount_mul(&twice, fake->base_fee, 2), 0);
    memset(out, 0, sizeof(*out));
    out->base_fee = out->gas_price = u256_of_amount(fake->base_fee);
    out->max_fee = u256_of_amount(twice);
    out->max_priority_fee = u256_of(1000);
    return 0;
}

int rpc_l1_fee(struct rpc *rpc, struct u256 *wei, const void *tx_bytes, size_t n, struct err *err)
{
    (void)rpc, (void)tx_bytes, (void)n;
    *wei = u256_of(0);
    return fake_answers(err);
}

const char *rpc_sent_name(enum rpc_sent sent)
{
    return sent == RPC_SENT ? "sent" : "not sent";
}

int rpc_send(struct rpc *rpc, enum rpc_sent *out, const void *tx_bytes, size_t n,
             struct address sender, struct err *why, struct err *err)
{
    (void)rpc, (void)why;
    struct tx tx;
    struct signature sig;
    bool is_signed;
    struct arena arena = ARENA_INIT;
    struct address signer;
    if (fake_answers(err) != 0)
        return -1;
    assert_ok(tx_parse(&tx, &sig, &is_signed, &arena, tx_bytes, n, err), *err);
    assert_true(is_signed && n <= TX_BYTES_MAX);
    struct tx_digest digest = tx_signing_digest(&tx);
    assert_ok(wallet_recover_transaction(&signer, &sig, &digest, err), *err);
    assert_true(address_eq(signer, sender) && address_eq(signer, fake->signer));
    struct tx_hash hash = tx_hash_of(tx_bytes, n);
    struct amount max_fee, floor_fee;
    assert_int_equal(u256_to_amount(&max_fee, tx.max_fee), 0);
    uint64_t nonce = tx.nonce;
    arena_release(&arena);
    fake->n_sends++;
    struct fake_tx *slot = NULL;
    for (int i = TXS_MAX - 1; i >= 0; i--) {
        struct fake_tx *t = &fake->txs[i];
        if (!t->used) {
            slot = t;
        } else if (memcmp(t->hash.bytes, hash.bytes, 32) == 0) {
            *out = t->mined ? RPC_MINED : RPC_SENT;
            return 0;
        }
    }
    if (nonce < fake_now()->nonce) {
        *out = RPC_NONCE_USED;
        return 0;
    }
    if (fake->no_funds) {
        *out = RPC_NO_FUNDS;
        return 0;
    }
    *out = RPC_SENT;
    if (fake->drops_broadcasts)
        return 0;
    if (tx.gas_limit < 21000) { /* intrinsic gas: no node takes it */
        *out = RPC_REFUSED;
        return 0;
    }
    for (int i = 0; i < TXS_MAX; i++) {
        struct fake_tx *t = &fake->txs[i];
        if (!t->used || !t->pending || t->nonce != nonce)
            continue;
        assert_int_equal(amount_mul(&floor_fee, t->max_fee, 9), 0);
        floor_fee = amount_div(floor_fee, 8);
        if (amount_cmp(max_fee, floor_fee) < 0) {
            *out = RPC_UNDERPRICED;
            return 0;
        }
        t->used = false; /* replaced */
        slot = t;
    }
    assert_non_null(slot);
    *slot = (struct fake_tx){
        .used = true, .pending = true, .hash = hash, .nonce = nonce, .max_fee = max_fee, .n = n};
    memcpy(slot->raw, tx_bytes, n);
    return 0;
}

int rpc_tx_receipt(struct rpc *rpc, struct rpc_receipt *out, struct tx_hash hash,
                   struct rpc_logs *logs, struct arena *arena, struct err *err)
{
    (void)rpc, (void)logs, (void)arena;
    if (fake_answers(err) != 0)
        return -1;
    memset(out, 0, sizeof(*out));
    for (int i = 0; i < TXS_MAX; i++) {
        const struct fake_tx *t = &fake->txs[i];
        if (t->used && t->mined && memcmp(t->hash.bytes, hash.bytes, 32) == 0) {
            out->mined = true;
            out->succeeded = t->succeeded;
            out->block_number = t->block;
        }
    }
    return 0;
}

int rpc_logs(struct rpc *rpc, const struct rpc_log_filter *filter, rpc_log_fn *each, void *context,
             struct err *err)
{
    (void)rpc;
    if (fake_answers(err) != 0)
        return -1;
    if (fake->claim_block < filter->from_block || fake->claim_block > filter->to_block)
        return 0;
    char amount[AMOUNT_TEXT_BYTES];
    struct buf data = BUF_INIT;
    amount_format(amount, fake->claimed);
    json_t *values = json_pack("[i, i, s, s]", 0, 0, amount, amount);
    assert_ok(abi_encode(&data, "(uint8,uint16,uint128,uint128)", values, err), *err);
    json_decref(values);
    struct rpc_log log = {.n_topics = 4,
                          .topics = {*filter->topics[0], *filter->topics[1], *filter->topics[1]},
                          .data = data.data,
                          .n_data = data.len,
                          .block_number = fake->claim_block};
    int rc = each(context, &log, err);
    buf_release(&data);
    return rc;
}

/* ---- people and things ---------------------------------------------------------------------- */

static struct wallet *market_wallet(void)
{
    struct wallet_memory_key keys[] = {{"signer", {0}}, {"house", {0}}, {"creator", {0}}};
    struct err err = {0};
    for (int i = 0; i < 3; i++)
        memset(keys[i].key, 0x11 * (i + 1), 32);
    struct wallet *w = wallet_open_memory(keys, 3, &err);
    if (!w)
        fail_msg("the wallet doesn't open: %s", err.message);
    return w;
}

static struct ledger_chain market_chain(void)
{
    struct ledger_chain c = {.chain_id = 31337};
    memset(c.stake_manager.bytes, 0xa1, 20);
    memset(c.adapter_registry.bytes, 0xa2, 20);
    memset(c.escrow.bytes, 0xa3, 20);
    memset(c.attribution_ledger.bytes, 0xa4, 20);
    return c;
}

/* Options of a ledger in dir; with_chain: settles on the fake chain (no publisher thread: tests
 * call publisher_round). */
static struct ledger_options market_options(const char *dir, struct wallet *w, bool with_chain)
{
    struct ledger_options o = {
        .data_dir = dir,
        .wallet = w,
        .rates = {.prompt_per_1k = amount_of(1000000), .completion_per_1k = amount_of(3000001)},
        .seal = {.max_receipts = 1000, .max_age_ms = 3600 * 1000},
        .publish = {.confirmations = 2, .replace_after_ms = 3600 * 1000},
    };
    if (with_chain)
        o.chain = market_chain();
    return o;
}

static struct ledger *market_open(const struct ledger_options *o)
{
    struct err err = {0};
    struct ledger *l = ledger_open(o, &err);
    if (!l)
        fail_msg("the ledger doesn't open: %s", err.message);
    if (fake) {
        fake->house = ledger_house(l);
        fake->signer = ledger_signer(l);
        fake->operator_address = ledger_operator(l);
        fake->where = market_chain();
    }
    return l;
}

static struct datanet_id market_datanet(int i)
{
    struct datanet_id id;
    memset(id.bytes, 0xd0 + i, 32);
    return id;
}

/* An adapter manifest number i: three payees and two Datanets with awkward shares. */
static struct adapter_id market_adapter_text(int i, struct buf *text)
{
    static const char *const modules[] = {"q_proj", "v_proj"};
    struct manifest_split splits[3] = {{.bps = 3333}, {.bps = 3333}, {.bps = 1}};
    struct manifest_datanet_share nets[2] = {{.bps = 3332}, {.bps = 1}};
    struct manifest_file file = {.path = "adapter_model.safetensors", .size_bytes = 12345};
    char name[32];
    struct err err = {0};
    memset(file.sha256.bytes, 0x40 + i, 32);
    for (int k = 0; k < 3; k++)
        memset(splits[k].payee.bytes, 0x51 + k, 20);
    for (int k = 0; k < 2; k++)
        nets[k].id = market_datanet(k);
    snprintf(name, sizeof(name), "voice-%d", i);
    struct manifest_adapter m = {
        .name = name,
        .version = 1,
        .base_model_name = "demo",
        .creator = {{0xc0, 0xff, 0xee}},
        .created_unix_s = 1700000000,
        .licence = "Apache-2.0",
        .rank = 16,
        .n_target_modules = 2,
        .target_modules = (const char **)modules,
        .n_files = 1,
        .files = &file,
        .royalty_prompt_per_1k = amount_of(777777),
        .royalty_completion_per_1k = amount_of(1234567),
        .n_splits = 3,
        .splits = splits,
        .n_datanets = 2,
        .datanets = nets,
    };
    memset(m.base_model.bytes, 0xbb, 32);
    m.content = manifest_content_digest(&file, 1);
    buf_reset(text);
    assert_ok(manifest_adapter_write(&m, text, &err), err);
    struct ledger_chain c = market_chain();
    return manifest_adapter_id(c.chain_id, c.adapter_registry, m.creator, m.base_model,
                               sha256(text->data, text->len));
}

static struct adapter_id market_put_adapter(struct ledger *l, int i)
{
    struct buf text = BUF_INIT;
    struct err err = {0};
    struct adapter_id id = market_adapter_text(i, &text);
    assert_ok(ledger_adapter_put(l, id, text.data, text.len, &err), err);
    buf_release(&text);
    return id;
}

/* Usage number n; adapter NULL: the base model. */
static struct usage market_usage(uint64_t n, const struct adapter_id *adapter)
{
    struct usage u = {
        .finished = {1700000000000 + n},
        .tokens_prompt = (uint32_t)(10 + n % 7),
        .tokens_completion = (uint32_t)(20 + n % 13),
        .key_tag = 0xfedcba9876543210u,
    };
    char text[32];
    snprintf(text, sizeof(text), "request %llu", (unsigned long long)n);
    memcpy(u.request_id, sha256(text, strlen(text)).bytes, 32);
    u.request_hash = sha256(u.request_id, 32);
    u.response_hash = sha256(u.request_hash.bytes, 32);
    memset(u.model.bytes, 0xbb, 32);
    if (adapter) {
        u.n_adapters = 1;
        u.adapters[0].id = *adapter;
        u.adapters[0].weight_bps = BPS_WHOLE;
    }
    return u;
}

struct commit_result {
    sem_t done;
    struct err err;
    bool failed;
    struct signed_receipt receipt; /* without adapters */
    char *json;
};

static void commit_done(void *context, const struct ledger_receipt *r, const struct err *err)
{
    struct commit_result *c = context;
    c->failed = !r;
    if (r) {
        c->receipt.receipt = *r->receipt;
        c->receipt.receipt.adapters = NULL;
        c->receipt.hash = r->hash;
        c->receipt.signature = r->signature;
        c->json = xstrndup(r->json, r->json_bytes);
    } else {
        c->err = *err;
    }
    sem_post(&c->done);
}

/* Commits and waits. 0, or -1 with *err. out may be NULL; its json must be freed. */
static int market_commit(struct ledger *l, const struct usage *u, struct commit_result *out,
                         struct err *err)
{
    struct commit_result own = {.failed = false}, *c = out ? out : &own;
    memset(c, 0, sizeof(*c));
    sem_init(&c->done, 0, 0);
    int rc = ledger_commit(l, u, commit_done, c, err);
    if (rc == 0) {
        while (sem_wait(&c->done) != 0)
            continue;
        if (c->failed) {
            *err = c->err;
            rc = -1;
        }
    }
    sem_destroy(&c->done);
    if (!out)
        free(c->json);
    return rc;
}

static void market_commit_many(struct ledger *l, uint64_t from, uint64_t n,
                               const struct adapter_id *adapter)
{
    for (uint64_t i = from; i < from + n; i++) {
        struct err err = {0};
        struct usage u = market_usage(i, i % 3 ? adapter : NULL);
        assert_ok(market_commit(l, &u, NULL, &err), err);
    }
}

static uint32_t market_seal(struct ledger *l)
{
    uint32_t sealed;
    struct err err = {0};
    assert_ok(ledger_seal_now(l, &sealed, &err), err);
    return sealed;
}

/* The books must be right; with_chain: also against the fake chain. */
static void market_check(struct ledger *l, bool with_chain)
{
    struct err err = {0};
    json_t *report = NULL;
    int rc = ledger_check(l, with_chain ? (struct rpc *)fake : NULL, &report, &err);
    if (rc != 0) {
        char *text = json_dumps(report, JSON_INDENT(1));
        fail_msg("the books are wrong: %s\n%s", err.message, text);
    }
    json_decref(report);
}

/* Silences what a test doesn't use of this header. */
static inline void market_uses(void)
{
    (void)fake_mine, (void)fake_reorg, (void)fake_pending, (void)fake_chain_reset;
    (void)market_wallet, (void)market_options, (void)market_open, (void)market_put_adapter;
    (void)market_commit_many, (void)market_seal, (void)market_check;
}

#endif
