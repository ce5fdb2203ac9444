/* voucher: what is owed for a channel, signed.
 *
 * A voucher says "of channel C, I owe valueAggregate in all, up to and including the receipt
 * lastReceiptHash", and the aggregate is that receipt's channelTotal. So it can be made from the
 * channel's own rows, is superseded by the next one, and redeeming it makes the sealed prefix
 * covered to the unit. The house account's is signed in the same transaction as the batch that
 * needs it.
 *
 * A payer's comes from outside (attribution.h, "payers' vouchers"). What costs least is asked
 * first: the configuration, then three rows of the database, and the signature is recovered only of
 * a voucher that says what we would have it say and that is newer than the one that is held. Then
 * the ledger thread looks once more, since another may have come meanwhile, and puts it in the
 * place of the one that was held. */
#include "attribution/voucher.h"

#include "chain/eip712.h"
#include "node/base/fault.h"
#include "node/base/hex.h"
#include "wallet/wallet.h"

#include <string.h>

struct eip712_domain voucher_domain(const struct ledger_chain *chain)
{
    return (struct eip712_domain){chain->chain_id, chain->escrow};
}

/* Stores a voucher and its outbox row. In a transaction on the ledger thread. */
static int insert(struct ledger *l, uint64_t channel_row, uint64_t index, const struct voucher *v,
                  const struct signature *signature, enum outbox_state state, struct err *err)
{
    uint8_t bytes[SIGNATURE_BYTES];
    signature_to_bytes(bytes, signature);
    struct db_stmt *s = db_stmt(l->db, "INSERT INTO voucher(channel, idx, timestamp_ms, value, "
                                       "last_receipt_hash, signature) VALUES(?, ?, ?, ?, ?, ?)");
    db_put_u64(s, channel_row);
    db_put_u64(s, index);
    db_put_u64(s, v->timestamp_ms);
    db_put_amount(s, v->value_aggregate);
    db_put_blob(s, v->last_receipt_hash, 32);
    db_put_blob(s, bytes, sizeof(bytes));
    if (db_run(s, err) != 0)
        return -1;
    uint64_t voucher_row = db_last_rowid(l->db);
    s = db_stmt(l->db, "INSERT INTO outbox(domain, kind, voucher, state, created_ms) "
                       "VALUES(?, 1, ?, ?, ?)");
    db_put_u64(s, l->domain);
    db_put_u64(s, voucher_row);
    db_put_u64(s, (uint64_t)state);
    db_put_u64(s, clock_unix_ms().ms);
    return db_run(s, err);
}

int voucher_sign(struct ledger *l, const struct channel_state *ch, uint64_t index,
                 const uint8_t receipt_hash[32], struct amount channel_total, struct err *err)
{
    struct db_stmt *s = db_stmt(l->db, "SELECT max(value) FROM voucher WHERE channel = ?");
    db_put_u64(s, ch->row);
    struct amount covered = AMOUNT_ZERO;
    int row = db_step(s, err);
    if (row == 1 && !db_get_null(s))
        covered = db_get_amount(s);
    if (db_end_checked(s, err) != 0 || row < 0)
        return -1;
    if (amount_cmp(channel_total, covered) <= 0)
        return 0; /* free answers only: Escrow would call it stale */

    struct voucher v = {
        .payer = ch->payer,
        .operator_address = l->operator_address,
        .timestamp_ms = clock_unix_ms().ms,
        .value_aggregate = channel_total,
    };
    memcpy(v.channel, ch->hash.bytes, 32);
    memcpy(v.last_receipt_hash, receipt_hash, 32);
    struct eip712_domain domain = voucher_domain(&l->opt.chain);
    struct voucher_digest digest = eip712_voucher(&v, &domain);
    struct signature signature;
    if (wallet_sign_voucher(l->opt.wallet, l->house_key, &signature, &digest, err) != 0)
        return -1;
    return insert(l, ch->row, index, &v, &signature, OUTBOX_WAITING, err);
}

int voucher_load(struct db *db, struct stored_voucher *out, uint64_t row_id, struct err *err)
{
    struct db_stmt *s = db_stmt(
        db, "SELECT v.id, v.idx, c.payer, d.operator, c.hash, c.epoch, v.timestamp_ms, v.value, "
            "v.last_receipt_hash, v.signature FROM voucher v JOIN channel c ON c.id = v.channel "
            "JOIN domain d ON d.id = c.domain WHERE v.id = ?");
    db_put_u64(s, row_id);
    int row = db_step(s, err);
    memset(out, 0, sizeof(*out));
    if (row == 1) {
        out->row = db_get_u64(s);
        out->index = db_get_u64(s);
        db_get_blob(s, out->voucher.payer.bytes, 20);
        db_get_blob(s, out->voucher.operator_address.bytes, 20);
        db_get_blob(s, out->voucher.channel, 32);
        out->epoch = db_get_u64(s);
        out->voucher.timestamp_ms = db_get_u64(s);
        out->voucher.value_aggregate = db_get_amount(s);
        db_get_blob(s, out->voucher.last_receipt_hash, 32);
        ledger_get_signature(s, &out->signature);
    }
    return db_end_checked(s, err) != 0 ? -1 : row;
}

/* ---- from payers ------------------------------------------------------------------------------
 */

struct claim { /* what the database says to a payer's voucher */
    uint64_t channel_row, index;
    bool is_newer;
    struct voucher_held held;
};

/* The newest voucher of the channel, and whether v is above it and above what is redeemed. */
static int compare_newest(struct db *db, struct claim *c, const struct voucher *v, struct err *err)
{
    struct amount covered = c->held.redeemed;
    struct db_stmt *s = db_stmt(db, "SELECT value, idx, last_receipt_hash FROM voucher "
                                    "WHERE channel = ? ORDER BY value DESC LIMIT 1");
    db_put_u64(s, c->channel_row);
    int row = db_step(s, err);
    if (row == 1) {
        c->held.value = db_get_amount(s);
        c->held.index = db_get_u64(s);
        db_get_blob(s, c->held.last_receipt, 32);
        if (amount_cmp(covered, c->held.value) < 0)
            covered = c->held.value;
    }
    c->is_newer = amount_cmp(v->value_aggregate, covered) > 0;
    return db_end_checked(s, err) != 0 || row < 0 ? -1 : 0;
}

static int find_channel(const struct ledger *l, struct db *db, struct claim *c,
                        const struct voucher *v, struct err *err)
{
    struct address payer = {{0}};
    char hex[67];
    struct db_stmt *s = db_stmt(db, "SELECT id, payer, redeemed FROM channel "
                                    "WHERE domain = ? AND hash = ?");
    db_put_u64(s, l->domain);
    db_put_blob(s, v->channel, 32);
    int row = db_step(s, err);
    if (row == 1) {
        c->channel_row = db_get_u64(s);
        db_get_blob(s, payer.bytes, 20);
        c->held.redeemed = db_get_amount(s);
    }
    if (db_end_checked(s, err) != 0 || row < 0)
        return -1;
    hex_encode_0x(hex, v->channel, 32);
    if (row == 0)
        return err_set(err, ERR_NOT_FOUND, "no channel %s has receipts here", hex);
    if (!address_eq(payer, v->payer))
        return err_set(err, ERR_UNAUTHORIZED, "channel %s is another payer's", hex);
    if (address_eq(payer, l->house))
        return err_set(err, ERR_FORBIDDEN,
                       "channel %s is the house account's, whose vouchers are made here", hex);
    return 0;
}

static int find_receipt(struct db *db, struct claim *c, const struct voucher *v, struct err *err)
{
    struct amount total = AMOUNT_ZERO;
    char hex[67], ours[AMOUNT_TEXT_BYTES], theirs[AMOUNT_TEXT_BYTES];
    struct db_stmt *s = db_stmt(db, "SELECT idx, channel_total FROM receipt "
                                    "WHERE channel = ? AND hash = ?");
    db_put_u64(s, c->channel_row);
    db_put_blob(s, v->last_receipt_hash, 32);
    int row = db_step(s, err);
    if (row == 1) {
        c->index = db_get_u64(s);
        total = db_get_amount(s);
    }
    if (db_end_checked(s, err) != 0 || row < 0)
        return -1;
    hex_encode_0x(hex, v->last_receipt_hash, 32);
    if (row == 0)
        return err_set(err, ERR_CONFLICT,
                       "the voucher names %s, which is no receipt of its channel", hex);
    if (amount_cmp(total, v->value_aggregate) != 0)
        return err_set(err, ERR_CONFLICT,
                       "the voucher is over %s; the channelTotal of the receipt that it names, %s, "
                       "is %s",
                       amount_format(theirs, v->value_aggregate), hex, amount_format(ours, total));
    return 0;
}

static int check_signature(const struct ledger *l, const struct signed_voucher *v, struct err *err)
{
    struct eip712_domain domain = voucher_domain(&l->opt.chain);
    struct voucher_digest digest = eip712_voucher(&v->voucher, &domain);
    struct address signer;
    char payer[ADDRESS_TEXT_BYTES], escrow[ADDRESS_TEXT_BYTES];
    if (wallet_recover_voucher(&signer, &v->signature, &digest, NULL) == 0 &&
        address_eq(signer, v->voucher.payer))
        return 0;
    return err_set(err, ERR_UNAUTHORIZED,
                   "the voucher is not signed by its payer %s for chain %llu and Escrow %s",
                   address_format(payer, v->voucher.payer), (unsigned long long)domain.chain_id,
                   address_format(escrow, domain.verifying_contract));
}

/* Takes what the channel holds out of the database, but for vouchers that once were let in: their
 * transactions stay in the account of what was spent. */
static int drop_held(struct ledger *l, uint64_t channel_row, struct err *err)
{
    static const char *const steps[] = {
        ("DELETE FROM outbox WHERE state = 5 AND voucher IN (SELECT id FROM voucher WHERE "
         "channel = ?) AND NOT EXISTS(SELECT 1 FROM tx WHERE tx.outbox = outbox.id)"),
        ("DELETE FROM voucher WHERE channel = ? AND NOT EXISTS(SELECT 1 FROM outbox o WHERE "
         "o.voucher = voucher.id)"),
    };
    for (size_t i = 0; i < sizeof(steps) / sizeof(*steps); i++) {
        struct db_stmt *s = db_stmt(l->db, steps[i]);
        db_put_u64(s, channel_row);
        if (db_run(s, err) != 0)
            return -1;
    }
    return 0;
}

struct acceptance {
    const struct signed_voucher *voucher;
    struct claim claim;
};

static int accept_task(struct ledger *l, void *context, struct err *err)
{
    struct acceptance *a = context;
    const struct voucher *v = &a->voucher->voucher;
    struct claim *c = &a->claim;
    if (compare_newest(l->db, c, v, err) != 0)
        return -1;
    if (!c->is_newer)
        return 0; /* another came first */
    if (drop_held(l, c->channel_row, err) != 0)
        return -1;
    FAULT_POINT("voucher.middle");
    if (insert(l, c->channel_row, c->index, v, &a->voucher->signature, OUTBOX_HELD, err) != 0)
        return -1;
    c->held.accepted = true;
    c->held.value = v->value_aggregate;
    c->held.index = c->index;
    memcpy(c->held.last_receipt, v->last_receipt_hash, 32);
    return 0;
}

int ledger_voucher_accept(struct ledger *l, struct voucher_held *out,
                          const struct signed_voucher *v, struct err *err)
{
    struct acceptance a = {.voucher = v, .claim = {.held = {.value = AMOUNT_ZERO}}};
    char text[ADDRESS_TEXT_BYTES], other[ADDRESS_TEXT_BYTES];
    if (!l->has_chain)
        return err_set(err, ERR_UNSUPPORTED,
                       "this node settles on no chain, so it can redeem no voucher");
    if (!address_eq(v->voucher.operator_address, l->operator_address))
        return err_set(err, ERR_INVALID, "the voucher is for operator %s, this is %s",
                       address_format(text, v->voucher.operator_address),
                       address_format(other, l->operator_address));
    struct db *db = ledger_reader(l, err);
    int rc = db != NULL ? find_channel(l, db, &a.claim, &v->voucher, err) : -1;
    if (rc == 0)
        rc = find_receipt(db, &a.claim, &v->voucher, err);
    if (rc == 0)
        rc = compare_newest(db, &a.claim, &v->voucher, err);
    ledger_reader_done(l, db);
    if (rc == 0 && a.claim.is_newer) {
        rc = check_signature(l, v, err);
        if (rc == 0)
            rc = ledger_run(l, accept_task, &a, err);
        if (rc == 0)
            ledger_publisher_wake(l);
    }
    if (rc == 0)
        *out = a.claim.held;
    return rc;
}
