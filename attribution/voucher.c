/* voucher: the house account's side of a channel.
 *
 * A voucher says "of channel C, I owe valueAggregate in all, up to and including the receipt
 * lastReceiptHash", and the aggregate is that receipt's channelTotal. So it can be made from the
 * channel's own rows, is superseded by the next one, and redeeming it makes the sealed prefix
 * covered to the unit. It is signed in the same transaction as the batch that needs it. */
#include "attribution/voucher.h"

#include "chain/eip712.h"
#include "wallet/wallet.h"

#include <string.h>

struct eip712_domain voucher_domain(const struct ledger_chain *chain)
{
    return (struct eip712_domain){chain->chain_id, chain->escrow};
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
    uint8_t bytes[65];
    if (wallet_sign_voucher(l->opt.wallet, l->house_key, &signature, &digest, err) != 0)
        return -1;
    signature_to_bytes(bytes, &signature);
    s = db_stmt(l->db, "INSERT INTO voucher(channel, idx, timestamp_ms, value, "
                       "last_receipt_hash, signature) VALUES(?, ?, ?, ?, ?, ?)");
    db_put_u64(s, ch->row);
    db_put_u64(s, index);
    db_put_u64(s, v.timestamp_ms);
    db_put_amount(s, v.value_aggregate);
    db_put_blob(s, v.last_receipt_hash, 32);
    db_put_blob(s, bytes, 65);
    if (db_run(s, err) != 0)
        return -1;
    uint64_t voucher_row = db_last_rowid(l->db);
    s = db_stmt(l->db, "INSERT INTO outbox(domain, kind, voucher, created_ms) VALUES(?, 1, ?, ?)");
    db_put_u64(s, l->domain);
    db_put_u64(s, voucher_row);
    db_put_u64(s, v.timestamp_ms);
    return db_run(s, err);
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
