/* chain_guard: guard 3 of attribution.h. Has this operator had a life that the database doesn't
 * remember?
 *
 * Two things on chain can only have been made by us: the newest batch, and the receipt that the
 * newest redeemed voucher of each of the house account's channels names. If the database lacks one
 * of them, it is older than the chain, and its channels must not be extended. */
#include "attribution/batch.h"
#include "attribution/ledger.h"
#include "attribution/publisher.h"
#include "attribution/settlement.h"

#include <string.h>

/* Whether the newest redeemed receipt of a channel, or the newest batch, is one that we don't have.
 */
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
