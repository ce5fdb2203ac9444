/* publisher: brings the outbox to the chain, whatever happens on the way.
 *
 *     outbox row   WAITING --sign, store bytes and nonce, then broadcast--> SIGNED --in a block-->
 * MINED ^                                                       ^                      |
 *                     '-- its nonce went to another, or it reverted ----------'---- reorg
 * -----------' deep enough --> CONFIRMED
 *
 * What is true is asked of the contracts, not of transactions and never of error texts. Two
 * questions, each at the newest block and at the newest confirmed one, settle every row:
 *
 *     redeem   Escrow.channelState(payer, operator, epoch).valueAggregate >= the voucher's value?
 *     submit   AttributionLedger.headOf(operator): is the head our batch of seq next - 1? Every
 * batch names the one before in what is signed, so then all of ours up to there are in.
 *
 * So it doesn't matter which of our transactions did it, or whether a crash forgot one: a row that
 * the contract has is mined, one that it has deep enough is confirmed, and one that it has no
 * longer was reorganised away and goes back. Transactions matter only for nonces and fees:
 *
 *   - one row at a time is in flight; the next is signed when the one before is mined
 *   - signed bytes and nonce are committed to the database before the first broadcast, so after a
 *     crash the same bytes are sent again; sending them twice is harmless
 *   - a transaction that isn't mined for replace_after_ms is replaced at its nonce with at
 * least 12.5 % more of both fees (geth's rule is 10 %), up to the cap and to what the account has
 *   - one that waits for a lower nonce which nobody uses (what had it was dropped) is given up
 * after the same time, and the row is signed anew; should the old one be mined after all, it
 * reverts
 *   - when the account's confirmed nonce has passed a row's and the contract still says no, its
 *     transactions are lost (reverted, or the nonce was used by hand): the row waits again
 *
 * Deeper than that is the same again: rows whose effect is gone from the head are opened once more.
 *
 * A submit waits, and says so in outbox.note, until its redeem has arrived (committed <= redeemed),
 * the stake covers it and the operator is live. A redeem waits for the payer's balance and steps
 * aside for a newer voucher of its channel; it holds up nobody else. One of a payer's own is among
 * the rows only while Escrow can pay it (held.c): when it can't be sent it is put aside.
 *
 * The publisher writes through the ledger thread (ledger_run). Fault points: publish.signed
 * (nothing stored), publish.stored (not sent), publish.sent. */
#include "attribution/publisher.h"

#include "attribution/held.h"
#include "attribution/ledger.h"
#include "attribution/outbox.h"
#include "attribution/settlement.h"
#include "chain/tx.h"
#include "node/base/buf.h"
#include "node/base/fault.h"
#include "node/base/log.h"
#include "wallet/wallet.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    DAY_MS = 24 * 3600 * 1000,
    CLAIM_BLOCKS_MAX = 5000, /* scanned for claims in one round */
    GAS_MARGIN_PERCENT = 25,
    SEND_AGAIN_MS = 15 * 1000, /* the same bytes, in case a node dropped them */
};

struct publisher {
    struct ledger *ledger;
    struct settlement at;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t woken;
    bool wake, stop;
    bool guard_passed;   /* the chain was compared with the database */
    uint64_t held_place; /* held_look's */
    _Atomic uint64_t answered_us, round_since_us;
    char complaint[256]; /* what needs the operator; "" when all is well */
};

struct round { /* what one look at the chain has found */
    struct publisher *p;
    struct db *db;
    struct rpc_block head;
    bool has_confirmed;
    struct rpc_at confirmed;
    uint64_t confirmed_number;
    struct settlement_head head_latest, head_confirmed;
    bool foreign_head; /* the chain's newest batch is not ours */
    struct settlement_stake stake;
    struct amount redeemed, final_committed;
    uint64_t final_count;
    struct outbox_row *rows;
    size_t n_rows;
};

static void complain(struct publisher *p, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
static void complain(struct publisher *p, const char *fmt, ...)
{
    va_list args;
    if (p->complaint[0])
        return; /* the first is the cause */
    va_start(args, fmt);
    vsnprintf(p->complaint, sizeof(p->complaint), fmt, args);
    va_end(args);
}

/* ---- asking the chain ----------------------------------------------------------------------- */

/* Whether a head is a batch of ours; r->foreign_head when it isn't. *next: how many of ours are in.
 */
static int own_head(struct round *r, const struct settlement_head *head, uint64_t *next,
                    struct err *err)
{
    struct signed_batch b;
    *next = 0;
    if (head->next == 0)
        return 0;
    int found = batch_find(r->db, &b, r->p->ledger->domain, head->next - 1, err);
    if (found < 0)
        return -1;
    if (found == 1 && memcmp(b.hash.bytes, head->hash, 32) == 0)
        *next = head->next;
    else
        r->foreign_head = true;
    return 0;
}

static int look_at_chain(struct round *r, struct err *err)
{
    struct publisher *p = r->p;
    const struct ledger_publish_policy *policy = &p->ledger->opt.publish;
    struct rpc *rpc = p->at.rpc;
    struct rpc_block safe;
    if (rpc_block(rpc, &r->head, RPC_AT_LATEST, err) != 0)
        return -1;
    atomic_store(&p->answered_us, clock_monotonic_us().us);
    if (policy->use_safe_tag) {
        struct err local = {0};
        r->has_confirmed = rpc_block(rpc, &safe, RPC_AT_SAFE, &local) == 0;
        if (!r->has_confirmed && local.code != ERR_NOT_FOUND)
            return err_set(err, local.code, "the safe block: %s", local.message);
        r->confirmed_number = r->has_confirmed ? safe.number : 0;
    } else {
        r->has_confirmed = r->head.number + 1 >= policy->confirmations;
        r->confirmed_number = r->has_confirmed ? r->head.number + 1 - policy->confirmations : 0;
    }
    r->confirmed = RPC_AT_BLOCK(r->confirmed_number);
    /* Everything about "now" is asked at one block, so that the answers fit together. */
    struct rpc_at now = RPC_AT_BLOCK(r->head.number);
    if (settlement_head(&p->at, &r->head_latest, now, err) != 0 ||
        settlement_stake(&p->at, &r->stake, now, err) != 0 ||
        settlement_redeemed(&p->at, &r->redeemed, now, err) != 0 ||
        settlement_final(&p->at, &r->final_count, &r->final_committed, now, err) != 0)
        return -1;
    if (r->has_confirmed && settlement_head(&p->at, &r->head_confirmed, r->confirmed, err) != 0)
        return -1;
    return 0;
}

/* What a channel has redeemed at both blocks; rows of one channel follow each other, so the last
 * answer is kept. */
struct redeemed_cache {
    uint64_t channel_row;
    struct amount latest, confirmed;
};

static int ask_channel(struct round *r, const struct outbox_row *o, struct redeemed_cache *cache,
                       struct err *err)
{
    const struct stored_voucher *v = &o->voucher;
    uint8_t last[32];
    if (cache->channel_row == o->channel_row)
        return 0;
    cache->confirmed = AMOUNT_ZERO;
    if (settlement_channel(&r->p->at, &cache->latest, last, v->voucher.payer, v->epoch,
                           RPC_AT_BLOCK(r->head.number), err) != 0)
        return -1;
    if (r->has_confirmed && settlement_channel(&r->p->at, &cache->confirmed, last, v->voucher.payer,
                                               v->epoch, r->confirmed, err) != 0)
        return -1;
    cache->channel_row = o->channel_row;
    return 0;
}

static int judge_rows(struct round *r, struct err *err)
{
    struct redeemed_cache cache = {.channel_row = 0};
    uint64_t latest, confirmed;
    if (own_head(r, &r->head_latest, &latest, err) != 0 ||
        own_head(r, &r->head_confirmed, &confirmed, err) != 0)
        return -1;
    for (size_t i = 0; i < r->n_rows; i++) {
        struct outbox_row *o = &r->rows[i];
        if (o->kind == OUTBOX_SUBMIT) {
            o->done_latest = o->batch.batch.seq < latest;
            o->done_confirmed = o->done_latest && o->batch.batch.seq < confirmed;
            continue;
        }
        if (ask_channel(r, o, &cache, err) != 0)
            return -1;
        struct amount value = o->voucher.voucher.value_aggregate;
        o->done_latest = amount_cmp(cache.latest, value) >= 0;
        o->done_confirmed = o->done_latest && amount_cmp(cache.confirmed, value) >= 0;
    }
    return 0;
}

/* ---- a row's transactions ------------------------------------------------------------------- */

static struct amount amount_or_max(struct u256 value)
{
    struct amount a;
    return u256_to_amount(&a, value) == 0 ? a : AMOUNT_MAX;
}

static struct amount lesser(struct amount a, struct amount b)
{
    return amount_cmp(a, b) < 0 ? a : b;
}

/* a * 9 / 8, rounded up: 12.5 % more. */
static struct amount bumped(struct amount a)
{
    struct amount eighth = amount_div(a, 8), out;
    if (amount_add(&out, a, eighth) != 0 || amount_add(&out, out, amount_of(1)) != 0)
        return AMOUNT_MAX;
    return out;
}

/* What was signed in the last 24 hours, at worst; of replacements of one nonce only the dearest. */
static int spent_today(struct round *r, uint64_t but_nonce, struct amount *out, struct err *err)
{
    struct db_stmt *s = db_stmt(
        r->db, "SELECT amount_sum(worst) FROM (SELECT max(t.worst_cost) AS worst FROM tx t "
               "JOIN outbox o ON o.id = t.outbox WHERE o.domain = ? AND t.signed_ms > ? AND "
               "t.nonce <> ? GROUP BY t.nonce)");
    uint64_t now = clock_unix_ms().ms;
    db_put_u64(s, r->p->ledger->domain);
    db_put_u64(s, now > DAY_MS ? now - DAY_MS : 0);
    db_put_u64(s, but_nonce);
    int row = db_step(s, err);
    if (row == 1)
        *out = db_get_amount(s);
    return db_end_checked(s, err) != 0 || row != 1 ? -1 : 0;
}

/* Half of what a day may cost is the most for payers' redeems: what others sign keeps no batch from
 * being paid for. */
static int payers_may_spend(struct round *r, bool *may, struct err *err)
{
    struct ledger *l = r->p->ledger;
    struct db_stmt *s = db_stmt(
        r->db, "SELECT amount_sum(worst) FROM (SELECT max(t.worst_cost) AS worst FROM tx t "
               "JOIN outbox o ON o.id = t.outbox JOIN voucher v ON v.id = o.voucher "
               "JOIN channel c ON c.id = v.channel WHERE o.domain = ? AND t.signed_ms > ? AND "
               "c.payer <> ? GROUP BY t.nonce)");
    uint64_t now = clock_unix_ms().ms;
    db_put_u64(s, l->domain);
    db_put_u64(s, now > DAY_MS ? now - DAY_MS : 0);
    db_put_blob(s, l->house.bytes, 20);
    int row = db_step(s, err);
    *may = row == 1 &&
           amount_cmp(db_get_amount(s), amount_div(l->opt.publish.max_spend_per_day, 2)) < 0;
    return db_end_checked(s, err) != 0 || row != 1 ? -1 : 0;
}

/* Above all that is out there. A row that others have brought into a block leaves its own
 * transaction behind, which needn't be anywhere: the node's word counts for its nonce. */
static int next_nonce(struct round *r, uint64_t *out, struct err *err)
{
    uint64_t pending;
    if (rpc_nonce(r->p->at.rpc, &pending, r->p->at.signer, RPC_AT_PENDING, err) != 0)
        return -1;
    struct db *db = ledger_reader(r->p->ledger, err); /* this round has written, r->db is older */
    if (!db)
        return -1;
    struct db_stmt *s = db_stmt(
        db, "SELECT coalesce(max(t.nonce) + 1, 0) FROM tx t JOIN outbox o ON o.id = t.outbox "
            "WHERE o.domain = ? AND ((o.state = 1 AND t.state < 3) OR "
            "(o.state = 2 AND t.state = 2))");
    db_put_u64(s, r->p->ledger->domain); /* another chain has nonces of its own */
    int row = db_step(s, err);
    uint64_t ours = row == 1 ? db_get_u64(s) : 0;
    int rc = db_end_checked(s, err) != 0 || row != 1 ? -1 : 0;
    ledger_reader_done(r->p->ledger, db);
    if (rc != 0)
        return -1;
    *out = ours > pending ? ours : pending;
    return 0;
}

static const char no_funds[] = "the signer key has too little native currency for fees";

static int send_tx(struct publisher *p, const struct outbox_row *o, uint64_t tx_id,
                   const struct buf *raw, enum rpc_sent *sent, struct err *err)
{
    struct err why = {0};
    if (rpc_send(p->at.rpc, sent, raw->data, raw->len, p->at.signer, &why, err) != 0)
        return -1;
    FAULT_POINT("publish.sent");
    if (*sent == RPC_SENT || *sent == RPC_MINED)
        return outbox_mark_broadcast(p->ledger, tx_id, err);
    if (*sent == RPC_NONCE_USED)
        return 0; /* the next round asks the contract what came of it */
    if (*sent == RPC_NO_FUNDS)
        complain(p, "%s", no_funds);
    return outbox_note(p->ledger, o, why.message[0] ? why.message : rpc_sent_name(*sent), err);
}

static bool is_payers(const struct round *r, const struct outbox_row *o)
{
    return o->kind == OUTBOX_REDEEM && !address_eq(o->voucher.voucher.payer, r->p->ledger->house);
}

/* The row can't go now, and others may: a payer's is held again. */
static int put_aside(struct round *r, struct outbox_row *o, const char *note, struct err *err)
{
    if (!is_payers(r, o))
        return outbox_note(r->p->ledger, o, note, err);
    o->state = OUTBOX_HELD;
    return outbox_apply(r->p->ledger,
                        &(struct outbox_change){.row = o->id, .state = OUTBOX_HELD, .note = note},
                        err);
}

/* Signs the row's action and stores it, then sends it. replaced: the transaction whose nonce and
 * fees it takes over, or NULL. A wait is not an error: the note says why. */
static int sign_and_send(struct round *r, struct outbox_row *o, const struct outbox_tx *replaced,
                         struct err *err)
{
    struct publisher *p = r->p;
    struct ledger *l = p->ledger;
    const struct ledger_publish_policy *policy = &l->opt.publish;
    struct buf data = BUF_INIT, raw = BUF_INIT;
    struct rpc_fees fees;
    struct err local = {0};
    uint64_t gas, nonce = 0;
    int rc = 0;
    struct address to = l->opt.chain.escrow;
    if (o->kind == OUTBOX_REDEEM) {
        settlement_redeem_data(&data, &o->voucher);
    } else {
        settlement_submit_data(&data, &o->batch);
        to = l->opt.chain.attribution_ledger;
    }
    struct rpc_call call = {.from = p->at.signer, .to = to, .data = data.data, .n_data = data.len};
    bool estimated = rpc_estimate_gas(p->at.rpc, &gas, &call, NULL, &local) == 0;
    if (estimated) {
        gas += gas * GAS_MARGIN_PERCENT / 100;
    } else if (replaced) {
        gas = replaced->gas; /* for it was possible once */
    } else {
        rc = local.code == ERR_CONFLICT || local.code == ERR_INVALID
                 ? put_aside(r, o, local.message, err) /* it would revert: not yet */
                 : err_set(err, local.code, "%s", local.message);
        goto out;
    }
    if (replaced)
        nonce = replaced->nonce;
    else if ((rc = next_nonce(r, &nonce, err)) != 0)
        goto out;
    if ((rc = rpc_fees(p->at.rpc, &fees, err)) != 0)
        goto out;
    struct amount max_fee = amount_or_max(fees.legacy ? fees.gas_price : fees.max_fee);
    struct amount tip = fees.legacy ? max_fee : amount_or_max(fees.max_priority_fee);
    if (replaced) {
        if (amount_cmp(max_fee, bumped(replaced->max_fee)) < 0)
            max_fee = bumped(replaced->max_fee);
        if (amount_cmp(tip, bumped(replaced->max_priority_fee)) < 0)
            tip = bumped(replaced->max_priority_fee);
        if (amount_cmp(max_fee, policy->max_fee_per_gas) > 0) {
            complain(p, "a transaction is stuck and its fee is at the cap");
            goto out; /* the one that is out there stays */
        }
    }
    max_fee = lesser(max_fee, policy->max_fee_per_gas);
    tip = lesser(tip, max_fee);
    if (!replaced &&
        amount_cmp(max_fee, amount_or_max(fees.legacy ? fees.gas_price : fees.base_fee)) < 0) {
        complain(p, "gas costs more than the fee cap");
        rc = outbox_note(p->ledger, o, "gas costs more than the fee cap", err);
        goto out;
    }
    struct tx tx = {
        .kind = fees.legacy ? TX_LEGACY : TX_FEE_MARKET,
        .chain_id = l->opt.chain.chain_id,
        .nonce = nonce,
        .gas_price = u256_of_amount(max_fee),
        .max_priority_fee = u256_of_amount(tip),
        .max_fee = u256_of_amount(max_fee),
        .gas_limit = gas,
        .to = to,
        .data = data.data,
        .n_data = data.len,
    };
    struct signature signature;
    struct tx_digest digest = tx_signing_digest(&tx);
    if ((rc = wallet_sign_transaction(l->opt.wallet, l->signer_key, &signature, &digest, err)) != 0)
        goto out;
    tx_write_signed(&raw, &tx, &signature);
    struct u256 cost, l1_fee;
    struct amount spent = AMOUNT_ZERO;
    if ((rc = rpc_l1_fee(p->at.rpc, &l1_fee, raw.data, raw.len, err)) != 0 ||
        (rc = spent_today(r, nonce, &spent, err)) != 0)
        goto out;
    if (tx_cost_limit(&cost, &tx) != 0 || u256_add(&cost, cost, l1_fee) != 0)
        cost = u256_of_amount(AMOUNT_MAX);
    struct u256 funds;
    if ((rc = rpc_balance(p->at.rpc, &funds, p->at.signer, RPC_AT_LATEST, err)) != 0)
        goto out;
    if (u256_cmp(funds, cost) < 0) { /* no node would take it; what it would replace stays */
        complain(p, "%s", no_funds);
        rc = outbox_note(p->ledger, o, no_funds, err);
        goto out;
    }
    struct outbox_new_tx store = {
        .row = o->id,
        .nonce = nonce,
        .gas = gas,
        .raw = &raw,
        .hash = tx_hash_of(raw.data, raw.len),
        .max_fee = max_fee,
        .max_priority_fee = tip,
        .worst_cost = amount_or_max(cost),
    };
    if (amount_add(&spent, spent, store.worst_cost) != 0 ||
        amount_cmp(spent, policy->max_spend_per_day) > 0) {
        complain(p, "the spending cap of 24 hours is reached");
        rc = outbox_note(p->ledger, o, "the spending cap of 24 hours is reached", err);
        goto out;
    }
    FAULT_POINT("publish.signed");
    if ((rc = outbox_store_tx(l, &store, err)) != 0)
        goto out;
    FAULT_POINT("publish.stored");
    enum rpc_sent sent;
    rc = send_tx(p, o, store.id, &raw, &sent, err);
out:
    buf_release(&data);
    buf_release(&raw);
    return rc;
}

/* Whether the transaction waits for a nonce below its own that nobody will use: what should have
 * used it was dropped. One of ours that is out there will, and so will what the node holds. */
static int waits_for_nobody(struct round *r, uint64_t nonce, bool *out, struct err *err)
{
    uint64_t pending;
    if (rpc_nonce(r->p->at.rpc, &pending, r->p->at.signer, RPC_AT_PENDING, err) != 0)
        return -1;
    struct db *db = ledger_reader(r->p->ledger, err); /* as next_nonce */
    if (!db)
        return -1;
    struct db_stmt *s = db_stmt(
        db, "SELECT count(*) FROM tx t JOIN outbox o ON o.id = t.outbox WHERE o.domain = ? AND "
            "o.state = 1 AND t.nonce >= ? AND t.nonce < ? AND t.id = (SELECT max(n.id) FROM tx n "
            "WHERE n.outbox = o.id AND n.state < 3)"); /* only the newest of a row is sent */
    db_put_u64(s, r->p->ledger->domain);
    db_put_u64(s, pending);
    db_put_u64(s, nonce);
    int row = db_step(s, err);
    *out = row == 1 && pending < nonce && db_get_u64(s) == 0;
    int rc = db_end_checked(s, err) != 0 || row != 1 ? -1 : 0;
    ledger_reader_done(r->p->ledger, db);
    return rc;
}

static int start_over(struct publisher *p, const struct outbox_row *o, const char *why,
                      struct err *err)
{
    struct outbox_change c = {.row = o->id, .state = OUTBOX_WAITING, .note = why, .lose_txs = true};
    log_warn("publisher", "outbox %llu: %s; trying again", (unsigned long long)o->id, why);
    return outbox_apply(p->ledger, &c, err);
}

/* A row whose transaction is out (or only stored) and whose effect the contract doesn't have. */
static int push_on(struct round *r, struct outbox_row *o, struct err *err)
{
    struct publisher *p = r->p;
    struct outbox_tx t;
    uint64_t nonce_confirmed = 0;
    struct unix_ms now = clock_unix_ms();
    int have = outbox_load_tx(r->db, o, &t, err);
    if (have < 0)
        return -1;
    int rc = 0;
    if (r->has_confirmed)
        rc = rpc_nonce(p->at.rpc, &nonce_confirmed, p->at.signer, r->confirmed, err);
    if (rc == 0 && (have == 0 || nonce_confirmed > t.nonce)) {
        /* The nonce is used for good, and not by something that did the work. */
        rc = start_over(p, o, "its transaction reverted, or its nonce was used by another", err);
    } else if (rc == 0) {
        enum rpc_sent sent = RPC_SENT;
        bool too_cheap = false;
        if (t.state == TX_SIGNED ||
            clock_apart_ms(now, (struct unix_ms){t.broadcast_ms}) >= SEND_AGAIN_MS) {
            rc = send_tx(p, o, t.id, &t.raw, &sent, err);
            too_cheap = sent == RPC_FEE_TOO_LOW || sent == RPC_UNDERPRICED;
        }
        /* In no pool: a dearer one would be in none either, and cost more when there are funds. */
        if (rc == 0 && sent == RPC_NO_FUNDS) {
            rc = start_over(p, o, no_funds, err);
            o->state = OUTBOX_WAITING;
            buf_release(&t.raw);
            return rc;
        }
        bool stuck = too_cheap || clock_apart_ms(now, (struct unix_ms){t.signed_ms}) >=
                                      p->ledger->opt.publish.replace_after_ms;
        uint64_t nonce_latest = 0;
        bool for_nobody = false;
        if (rc == 0 && stuck)
            rc = rpc_nonce(p->at.rpc, &nonce_latest, p->at.signer, RPC_AT_LATEST, err);
        if (rc == 0 && stuck && nonce_latest < t.nonce)
            rc = waits_for_nobody(r, t.nonce, &for_nobody, err);
        if (rc == 0 && for_nobody)
            rc = start_over(p, o, "a nonce below its own was never used", err);
        else if (rc == 0 && stuck && nonce_latest <= t.nonce) /* else it waits to be sure of it */
            rc = sign_and_send(r, o, &t, err);
    }
    buf_release(&t.raw);
    return rc;
}

/* Which of the row's transactions lies in which block, for the record. */
static int find_mined(struct round *r, const struct outbox_row *o, struct outbox_change *c,
                      struct err *err)
{
    struct {
        uint64_t id;
        struct tx_hash hash;
    } txs[16];
    size_t n = 0;
    struct db_stmt *s = db_stmt(
        r->db, "SELECT id, hash FROM tx WHERE outbox = ? ORDER BY id DESC LIMIT 16");
    db_put_u64(s, o->id);
    int row;
    while ((row = db_step(s, err)) == 1 && n < 16) {
        txs[n].id = db_get_u64(s);
        db_get_blob(s, txs[n].hash.bytes, 32);
        n++;
    }
    if (db_end_checked(s, err) != 0 || row < 0)
        return -1;
    for (size_t i = 0; i < n; i++) {
        struct rpc_receipt receipt;
        if (rpc_tx_receipt(r->p->at.rpc, &receipt, txs[i].hash, NULL, NULL, err) != 0)
            return -1;
        if (receipt.mined && receipt.succeeded) {
            c->mine_tx = true;
            c->mined_tx = txs[i].id;
            c->block = receipt.block_number;
            memcpy(c->block_hash, receipt.block.bytes, 32);
            break;
        }
    }
    return 0;
}

/* Brings the database to what the contracts say of a row. */
static int settle_row(struct round *r, struct outbox_row *o, struct err *err)
{
    struct ledger *l = r->p->ledger;
    enum outbox_state want = o->done_confirmed ? OUTBOX_CONFIRMED
                             : o->done_latest  ? OUTBOX_MINED
                                               : OUTBOX_SIGNED;
    struct outbox_change c = {.row = o->id, .state = want};
    if (!o->done_latest) {
        if (o->state != OUTBOX_MINED)
            return 0;
        /* It was there and is no longer: a reorg. The same bytes go out again. */
        log_warn("publisher", "outbox %llu was taken back by a reorg", (unsigned long long)o->id);
        c.batch_row = o->kind == OUTBOX_SUBMIT ? o->batch.row : 0;
        c.batch_state = BATCH_SEALED;
        if (outbox_back_to_pool(l, o->id, err) != 0 || outbox_apply(l, &c, err) != 0)
            return -1;
        o->state = OUTBOX_SIGNED;
        return 0;
    }
    if (o->state == want)
        return 0;
    if (o->kind == OUTBOX_SUBMIT) {
        c.batch_row = o->batch.row;
        c.batch_state = o->done_confirmed ? BATCH_CONFIRMED : BATCH_SUBMITTED;
    } else if (o->done_confirmed) {
        c.channel_row = o->channel_row;
        c.redeemed = o->voucher.voucher.value_aggregate;
    }
    if (find_mined(r, o, &c, err) != 0)
        return -1;
    if (want == OUTBOX_CONFIRMED && !c.mine_tx && o->kind == OUTBOX_REDEEM)
        c.state = OUTBOX_MOOT; /* a newer voucher did it */
    if (outbox_apply(l, &c, err) != 0)
        return -1;
    log_info("publisher", "%s %s",
             o->kind == OUTBOX_REDEEM ? "a voucher is redeemed," : "a batch is",
             want == OUTBOX_MINED ? "in a block" : "confirmed");
    o->state = c.state;
    return 0;
}

/* Whether a waiting row could go now; otherwise *note says what it waits for (NULL: keep the old).
 */
static int may_start(struct round *r, const struct outbox_row *o, bool *may, const char **note,
                     char *text, size_t n_text, struct err *err)
{
    char need[AMOUNT_TEXT_BYTES], have[AMOUNT_TEXT_BYTES];
    *may = false;
    if (o->kind == OUTBOX_SUBMIT) {
        const struct batch *b = &o->batch.batch;
        struct amount open;
        if (r->foreign_head) {
            *note = "the chain has a batch of this operator that this database doesn't know";
        } else if (r->head_latest.next != b->seq) {
            *note = "waits for the batch before it";
        } else if (amount_cmp(b->committed, r->redeemed) > 0) {
            *note = "waits for its redeem";
        } else if (!r->stake.live || !address_eq(r->stake.operator_address, b->operator_address)) {
            *note = "the operator is not live: stake, and register the signer key";
            complain(r->p, "%s", *note);
        } else if (amount_sub(&open, b->committed, r->final_committed) == 0 &&
                   amount_cmp(open, r->stake.active) > 0) {
            snprintf(text, n_text, "open value %s would exceed the active stake %s",
                     amount_format(need, open), amount_format(have, r->stake.active));
            *note = text;
            complain(r->p, "batch %llu: %s", (unsigned long long)b->seq, text);
        } else {
            *may = true;
        }
        return 0;
    }
    const struct voucher *v = &o->voucher.voucher;
    struct amount balance, value, missing;
    uint8_t last[32];
    struct rpc_at now = RPC_AT_BLOCK(r->head.number);
    if (settlement_balance(&r->p->at, &balance, v->payer, now, err) != 0 ||
        settlement_channel(&r->p->at, &value, last, v->payer, o->voucher.epoch, now, err) != 0)
        return -1;
    if (amount_sub(&missing, v->value_aggregate, value) != 0)
        missing = AMOUNT_ZERO;
    if (amount_cmp(missing, balance) > 0) {
        snprintf(text, n_text, "the payer's escrow balance is %s, the voucher needs %s",
                 amount_format(have, balance), amount_format(need, missing));
        *note = text;
        if (!is_payers(r, o))
            complain(r->p, "%s", text);
    } else {
        *may = true;
    }
    return 0;
}

/* Signs the first waiting row that can go. Redeems step aside for a newer, affordable voucher. */
static int start_next(struct round *r, struct err *err)
{
    static const char spent[] = "payers' redeems have used up their half of the spending cap of 24 "
                                "hours";
    bool payers_may;
    for (size_t i = 0; i < r->n_rows; i++) {
        if (r->rows[i].state == OUTBOX_SIGNED)
            return 0; /* one in flight */
    }
    if (payers_may_spend(r, &payers_may, err) != 0)
        return -1;
    for (size_t i = 0; i < r->n_rows; i++) {
        struct outbox_row *o = &r->rows[i];
        if (o->state != OUTBOX_WAITING)
            continue;
        if (is_payers(r, o) && !payers_may) {
            complain(r->p, "%s", spent);
            if (outbox_note(r->p->ledger, o, spent, err) != 0)
                return -1;
            continue;
        }
        if (o->superseded) {
            size_t newer = r->n_rows; /* the newest voucher of the channel among the rows */
            for (size_t j = i + 1; j < r->n_rows; j++) {
                if (r->rows[j].kind == OUTBOX_REDEEM && r->rows[j].channel_row == o->channel_row)
                    newer = j;
            }
            bool affordable = false;
            const char *ignored = NULL;
            char scratch[200], kept[sizeof(r->p->complaint)];
            memcpy(kept, r->p->complaint, sizeof(kept));
            if (newer < r->n_rows && may_start(r, &r->rows[newer], &affordable, &ignored, scratch,
                                               sizeof(scratch), err) != 0)
                return -1;
            memcpy(r->p->complaint, kept, sizeof(kept));
            if (affordable)
                continue;
        }
        bool may;
        const char *note = NULL;
        char text[200];
        if (may_start(r, o, &may, &note, text, sizeof(text), err) != 0)
            return -1;
        if (may) {
            if (sign_and_send(r, o, NULL, err) != 0)
                return -1;
            if (o->state != OUTBOX_HELD)
                return 0;
        } else if (put_aside(r, o, note, err) != 0) {
            return -1;
        }
    }
    return 0;
}

/* ---- reorgs below the confirmed block -------------------------------------------------------- */

/* Vouchers that were redeemed, are the newest of their channel, and that Escrow no longer knows. */
static int find_lost_vouchers(struct round *r, struct outbox_lost *out, struct err *err)
{
    struct db_stmt *s = db_stmt(
        r->db, "SELECT v.id, c.payer, c.epoch, v.value FROM voucher v JOIN channel c ON "
               "c.id = v.channel JOIN outbox o ON o.voucher = v.id WHERE c.domain = ? AND "
               "o.state IN (3, 4) AND v.id = (SELECT max(w.id) FROM voucher w JOIN outbox n ON "
               "n.voucher = w.id WHERE w.channel = c.id AND n.state IN (3, 4)) "
               "ORDER BY v.id DESC LIMIT 64");
    int row, rc = 0;
    db_put_u64(s, r->p->ledger->domain);
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        struct address payer = {{0}};
        struct amount value, ours;
        uint8_t last[32];
        if (row < 0) {
            rc = -1;
            break;
        }
        uint64_t id = db_get_u64(s);
        db_get_blob(s, payer.bytes, 20);
        uint64_t epoch = db_get_u64(s);
        ours = db_get_amount(s);
        rc = settlement_channel(&r->p->at, &value, last, payer, epoch, RPC_AT_BLOCK(r->head.number),
                                err);
        if (rc == 0 && amount_cmp(value, ours) < 0)
            out->vouchers[out->n_vouchers++] = id;
    }
    return db_end_checked(s, err) != 0 ? -1 : rc;
}

/* A chain may take back more than the policy calls confirmed. Then the head is below what is
 * confirmed here, or a submit finds nothing redeemed although no redeem waits; both show without
 * asking about every old row in every round. What is final stays: its window has passed. *reopened:
 * the rows that this round has loaded are out of date. */
static int reopen_lost(struct round *r, bool *reopened, struct err *err)
{
    struct outbox_lost lost = {.next_seq = r->head_latest.next};
    struct db_stmt *s = db_stmt(
        r->db, "SELECT count(*) FROM batch WHERE domain = ? AND seq >= ? AND state = 2");
    db_put_u64(s, r->p->ledger->domain);
    db_put_u64(s, lost.next_seq);
    int row = db_step(s, err);
    uint64_t n_batches = row == 1 ? db_get_u64(s) : 0;
    if (db_end_checked(s, err) != 0 || row != 1)
        return -1;
    bool redeem_open = false, unredeemed = n_batches > 0;
    for (size_t i = 0; i < r->n_rows; i++) {
        const struct outbox_row *o = &r->rows[i];
        redeem_open |= o->kind == OUTBOX_REDEEM;
        unredeemed |= o->kind == OUTBOX_SUBMIT && !o->done_latest &&
                      amount_cmp(o->batch.batch.committed, r->redeemed) > 0;
    }
    *reopened = false;
    if (unredeemed && !redeem_open && find_lost_vouchers(r, &lost, err) != 0)
        return -1;
    if (n_batches == 0 && lost.n_vouchers == 0)
        return 0;
    log_warn("publisher", "a deep reorg took back %llu confirmed batches and %zu redeems",
             (unsigned long long)n_batches, lost.n_vouchers);
    *reopened = true;
    return outbox_reopen(r->p->ledger, &lost, err);
}

/* ---- finality, claims, facts ---------------------------------------------------------------- */

static int note_final(struct round *r, struct err *err)
{
    struct db_stmt *s = db_stmt(
        r->db, "SELECT count(*) FROM batch WHERE domain = ? AND seq < ? AND state = 2");
    db_put_u64(s, r->p->ledger->domain);
    db_put_u64(s, r->final_count);
    int row = db_step(s, err);
    uint64_t n = row == 1 ? db_get_u64(s) : 0;
    if (db_end_checked(s, err) != 0 || row != 1)
        return -1;
    if (n == 0 || r->foreign_head)
        return 0;
    log_info("publisher", "batches below %llu are final", (unsigned long long)r->final_count);
    return outbox_finish(r->p->ledger, r->final_count, err);
}

static int collect_claim(void *context, const struct payout *leaf, struct err *err)
{
    (void)err;
    payout_set_add(context, leaf);
    return 0;
}

/* Claims in confirmed blocks, from the first submitted batch on. */
static int note_claims(struct round *r, struct err *err)
{
    struct outbox_claims list = {.set = {NULL, 0, 0}};
    struct db_stmt *s = db_stmt(
        r->db, "SELECT d.claims_block, coalesce((SELECT min(t.block) FROM tx t "
               "JOIN outbox o ON o.id = t.outbox WHERE o.domain = d.id AND o.kind = 2 "
               "AND t.state = 2), 0) FROM domain d WHERE d.id = ?");
    db_put_u64(s, r->p->ledger->domain);
    int row = db_step(s, err);
    uint64_t from = row == 1 ? db_get_u64(s) : 0, first = row == 1 ? db_get_u64(s) : 0;
    if (db_end_checked(s, err) != 0 || row != 1)
        return -1;
    if (from < first)
        from = first;
    if (first == 0 || !r->has_confirmed || from > r->confirmed_number || r->final_count == 0)
        return 0;
    uint64_t to = r->confirmed_number;
    if (to - from >= CLAIM_BLOCKS_MAX)
        to = from + CLAIM_BLOCKS_MAX - 1;
    list.next_block = to + 1;
    int rc = settlement_claims(&r->p->at, from, to, collect_claim, &list.set, err);
    /* An empty stretch is remembered now and then, not at every block: it costs an fsync. */
    if (rc == 0 && (list.set.n > 0 || to - from >= 100))
        rc = outbox_note_claims(r->p->ledger, &list, err);
    payout_set_release(&list.set);
    return rc;
}

static int facts_task(struct ledger *l, void *context, struct err *err)
{
    const struct chain_facts *facts = context;
    (void)err;
    if (facts->batches_seen >= l->batches) /* else a batch was sealed while the chain was asked */
        l->facts = *facts;
    return 0;
}

/* What sealing needs to know. house_owed: vouchers of the house that its balance still has to pay.
 */
static int post_facts(struct round *r, struct err *err)
{
    struct publisher *p = r->p;
    struct ledger *l = p->ledger;
    struct chain_facts facts = {.known = true, .active_stake = r->stake.active};
    struct rpc_at now = RPC_AT_BLOCK(r->head.number);
    if (settlement_balance(&p->at, &facts.house_balance, l->house, now, err) != 0)
        return -1;
    struct db_stmt *s = db_stmt(r->db, "SELECT count(*) FROM batch WHERE domain = ?");
    db_put_u64(s, l->domain);
    int row = db_step(s, err);
    facts.batches_seen = row == 1 ? db_get_u64(s) : 0;
    if (db_end_checked(s, err) != 0 || row != 1)
        return -1;
    s = db_stmt(r->db, "SELECT c.epoch, v.value FROM voucher v JOIN channel c ON c.id = v.channel "
                       "JOIN outbox o ON o.voucher = v.id WHERE c.domain = ? AND c.payer = ? AND "
                       "o.state < 3 AND v.id = (SELECT max(id) FROM voucher w WHERE "
                       "w.channel = c.id)");
    db_put_u64(s, l->domain);
    db_put_blob(s, l->house.bytes, 20);
    int rc = 0;
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        struct amount value, missing, ours;
        uint8_t last[32];
        if (row < 0) {
            rc = -1;
            break;
        }
        uint64_t epoch = db_get_u64(s);
        ours = db_get_amount(s);
        rc = settlement_channel(&p->at, &value, last, l->house, epoch, now, err);
        if (rc == 0 && amount_sub(&missing, ours, value) == 0 &&
            amount_add(&facts.house_owed, facts.house_owed, missing) != 0)
            facts.house_owed = AMOUNT_MAX;
    }
    if (db_end_checked(s, err) != 0 || rc != 0)
        return -1;
    struct amount short_by = AMOUNT_ZERO;
    if (amount_sub(&short_by, facts.house_owed, facts.house_balance) != 0)
        short_by = AMOUNT_ZERO;
    pthread_mutex_lock(&l->health_lock);
    l->health.house_known = true;
    l->health.house_balance = facts.house_balance;
    l->health.house_short = short_by;
    pthread_mutex_unlock(&l->health_lock);
    return ledger_tell(l, facts_task, &facts, err);
}

/* ---- the guard ------------------------------------------------------------------------------ */

static int pass_guard(struct publisher *p, struct err *err)
{
    bool remembers;
    if (publisher_chain_remembers(p->ledger, &remembers, err) != 0)
        return -1;
    if (remembers && ledger_epoch_advance(p->ledger,
                                          "the chain has a receipt or batch of this operator that "
                                          "this database doesn't know",
                                          err) != 0)
        return -1;
    p->guard_passed = true;
    return 0;
}

/* ---- rounds --------------------------------------------------------------------------------- */

static int run_round(struct publisher *p, struct err *err)
{
    struct round r = {.p = p};
    if (!p->guard_passed && pass_guard(p, err) != 0)
        return -1;
    p->complaint[0] = '\0';
    int rc = look_at_chain(&r, err);
    if (rc == 0)
        rc = held_look(p->ledger, &p->at, RPC_AT_BLOCK(r.head.number), &p->held_place, err);
    if (rc == 0 && (r.db = ledger_reader(p->ledger, err)) == NULL)
        rc = -1;
    if (rc == 0)
        rc = outbox_load(r.db, p->ledger->domain, &r.rows, &r.n_rows, err);
    if (rc == 0)
        rc = judge_rows(&r, err);
    bool reopened = false;
    if (rc == 0)
        rc = post_facts(&r, err);
    if (rc == 0 && !r.foreign_head)
        rc = reopen_lost(&r, &reopened, err);
    if (reopened)
        r.n_rows = 0; /* the next round goes on */
    for (size_t i = 0; i < r.n_rows && rc == 0; i++)
        rc = settle_row(&r, &r.rows[i], err);
    for (size_t i = 0; i < r.n_rows && rc == 0; i++) {
        if (r.rows[i].state == OUTBOX_SIGNED && !r.rows[i].done_latest) {
            /* Its writes are newer than our snapshot; the transaction's row isn't. */
            rc = push_on(&r, &r.rows[i], err);
        }
    }
    if (rc == 0)
        rc = note_final(&r, err);
    if (rc == 0)
        rc = note_claims(&r, err);
    if (rc == 0)
        rc = start_next(&r, err);
    free(r.rows);
    ledger_reader_done(p->ledger, r.db);
    if (r.foreign_head)
        complain(p, "the chain has a batch of this operator that this database doesn't know");
    pthread_mutex_lock(&p->ledger->health_lock);
    p->ledger->health.endpoint_answers = rc == 0;
    snprintf(p->ledger->health.reason, sizeof(p->ledger->health.reason), "%s", p->complaint);
    pthread_mutex_unlock(&p->ledger->health_lock);
    return rc;
}

static void *publisher_main(void *context)
{
    struct publisher *p = context;
    bool complained = false;
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        struct err err = {0};
        p->wake = false;
        pthread_mutex_unlock(&p->lock);
        atomic_store(&p->round_since_us, clock_monotonic_us().us);
        if (run_round(p, &err) == 0) {
            if (complained)
                log_info("publisher", "the chain answers again");
            complained = false;
        } else if (!complained) {
            log_warn("publisher", "%s; what is sealed waits in the outbox", err.message);
            complained = true;
        }
        atomic_store(&p->round_since_us, 0);
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        uint64_t ns = (uint64_t)until.tv_nsec + p->ledger->opt.publish.poll_ms % 1000 * 1000000;
        until.tv_sec += (time_t)(p->ledger->opt.publish.poll_ms / 1000 + ns / 1000000000);
        until.tv_nsec = (long)(ns % 1000000000);
        pthread_mutex_lock(&p->lock);
        while (!p->stop && !p->wake && pthread_cond_timedwait(&p->woken, &p->lock, &until) == 0)
            continue;
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static struct publisher *publisher_create(struct ledger *l)
{
    struct publisher *p = xcalloc(1, sizeof(*p));
    pthread_condattr_t attr;
    p->ledger = l;
    p->at = (struct settlement){l->opt.rpc, l->opt.chain, l->operator_address, l->signer};
    atomic_store(&p->answered_us, clock_monotonic_us().us);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    BUG_IF(pthread_mutex_init(&p->lock, NULL) != 0 || pthread_cond_init(&p->woken, &attr) != 0);
    pthread_condattr_destroy(&attr);
    return p;
}

void publisher_free(struct publisher *p)
{
    if (!p)
        return;
    pthread_cond_destroy(&p->woken);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

struct publisher *publisher_open(struct ledger *l, struct err *err)
{
    struct publisher *p = publisher_create(l);
    int failed = pthread_create(&p->thread, NULL, publisher_main, p);
    if (!failed)
        return p;
    publisher_free(p);
    err_set_errno(err, failed, "starting the publisher thread");
    return NULL;
}

void publisher_stop(struct publisher *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_signal(&p->woken);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);
}

void publisher_wake(struct publisher *p)
{
    pthread_mutex_lock(&p->lock);
    p->wake = true;
    pthread_cond_signal(&p->woken);
    pthread_mutex_unlock(&p->lock);
}

uint64_t publisher_silent_ms(struct publisher *p)
{
    struct monotonic_us since = {atomic_load(&p->answered_us)};
    return clock_elapsed_us(since, clock_monotonic_us()) / 1000;
}

bool publisher_is_stuck(struct publisher *p, uint64_t ms)
{
    struct monotonic_us since = {atomic_load(&p->round_since_us)};
    return since.us && clock_elapsed_us(since, clock_monotonic_us()) / 1000 >= ms;
}

int publisher_round(struct ledger *l, struct err *err)
{
    struct publisher *p = publisher_create(l);
    int rc = run_round(p, err);
    publisher_free(p);
    return rc;
}
