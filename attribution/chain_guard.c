/* chain_guard: guard 3 of attribution.h. Has this operator had a life that the database doesn't
 * remember?
 *
 * Three things on chain can only have been made by us: the newest batch, the receipt that the
 * newest redeemed voucher of each of the house account's channels names, and a sum: what was
 * redeemed for the operator in all is at most what our newest voucher of each channel, payers' ones
 * included, comes to, since each was stored before it was sent. If the database lacks one of them,
 * it is older than the chain, and its channels must not be extended. (The sum finds what payers'
 * channels have lost, without a question about each of them; not where vouchers that wait come to
 * more than what is missing.) */
#include "attribution/batch.h"
#include "attribution/ledger.h"
#include "attribution/publisher.h"
#include "attribution/settlement.h"

#include <string.h>

/* Whether more was redeemed for us than all our vouchers are over. */
static int redeemed_beyond(const struct ledger *l, const struct settlement *at, struct db *db,
                           bool *beyond, struct err *err)
{
    struct amount redeemed;
    struct db_stmt *s = db_stmt(db, "SELECT amount_sum(newest) FROM (SELECT max(v.value) AS newest "
                                    "FROM voucher v JOIN channel c ON c.id = v.channel WHERE "
                                    "c.domain = ? GROUP BY v.channel)");
    db_put_u64(s, l->domain);
    int row = db_step(s, err);
    struct amount ours = row == 1 ? db_get_amount(s) : AMOUNT_ZERO;
    if (db_end_checked(s, err) != 0 || row != 1 ||
        settlement_redeemed(at, &redeemed, RPC_AT_LATEST, err) != 0)
        return -1;
    *beyond = amount_cmp(redeemed, ours) > 0;
    return 0;
}

/* Whether the newest redeemed receipt of a channel, or the newest batch, is one that we don't have,
 * or a voucher. */
int publisher_chain_remembers(struct ledger *l, bool *remembers, struct err *err)
{
    struct settlement at = {l->opt.rpc, l->opt.chain, l->operator_address, l->signer};
    struct settlement_head head;
    struct amount value;
    uint8_t last[32];
    bool reading = l->thread_runs;
    struct db *db = reading ? ledger_reader(l, err) : l->db;
    if (!db)
        return -1;
    *remembers = false;
    int rc = settlement_head(&at, &head, RPC_AT_LATEST, err);
    if (rc == 0 && head.next > 0) {
        struct signed_batch b;
        int found = batch_find(db, &b, l->domain, head.next - 1, err);
        rc = found < 0 ? -1 : 0;
        *remembers = found != 1 || memcmp(b.hash.bytes, head.hash, 32) != 0;
    }
    if (rc == 0 && !*remembers)
        rc = redeemed_beyond(l, &at, db, remembers, err);
    /* The payer's first channel, and all that we have. */
    uint64_t epochs[64] = {0};
    size_t n = 1;
    struct db_stmt *s = db_stmt(db, "SELECT epoch FROM channel WHERE domain = ? AND payer = ? AND "
                                    "epoch > 0 ORDER BY epoch DESC LIMIT 63");
    db_put_u64(s, l->domain);
    db_put_blob(s, l->house.bytes, 20);
    int row;
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        if (row < 0)
            rc = -1;
        else
            epochs[n++] = db_get_u64(s);
        if (n == 64)
            break;
    }
    db_end(s);
    for (size_t i = 0; i < n && rc == 0 && !*remembers; i++) {
        rc = settlement_channel(&at, &value, last, l->house, epochs[i], RPC_AT_LATEST, err);
        if (rc != 0 || bytes32_is_zero(last))
            continue;
        s = db_stmt(db, "SELECT 1 FROM receipt WHERE hash = ?");
        db_put_blob(s, last, 32);
        row = db_step(s, err);
        db_end(s);
        if (row < 0)
            rc = -1;
        *remembers = row == 0;
    }
    if (reading)
        ledger_reader_done(l, db);
    return rc;
}
