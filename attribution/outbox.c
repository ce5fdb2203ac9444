/* outbox: the queue between ledger and publisher, which is a table. See outbox.h.
 *
 * Each write is one task on the ledger thread, one transaction: a row and what hangs on it (its
 * batch's state, its channel's redeemed value, its transactions, the payout columns) change
 * together, so a crash finds either before or after. The publisher decides, this file writes down.
 */
#include "attribution/outbox.h"

#include "node/base/buf.h"

#include <stdlib.h>
#include <string.h>

/* ---- reading --------------------------------------------------------------------- */

int outbox_load(struct db *db, uint64_t domain, struct outbox_row **rows, size_t *n,
                struct err *err)
{
    struct outbox_row *list = *rows = xcalloc(OUTBOX_ROWS_MAX, sizeof(*list));
    uint64_t vouchers[OUTBOX_ROWS_MAX], batches[OUTBOX_ROWS_MAX];
    struct db_stmt *s = db_stmt(
        db, "SELECT o.id, o.kind, o.state, coalesce(o.voucher, 0), "
            "coalesce(o.batch, 0), coalesce(v.channel, 0), "
            "EXISTS(SELECT 1 FROM outbox n JOIN voucher w ON w.id = n.voucher "
            "WHERE n.state < 3 AND n.id > o.id AND w.channel = v.channel), coalesce(o.note, '') "
            "FROM outbox o LEFT JOIN voucher v ON v.id = o.voucher "
            "WHERE o.domain = ? AND o.state < 3 ORDER BY o.id");
    db_put_u64(s, domain);
    int row;
    while ((row = db_step(s, err)) == 1 && *n < OUTBOX_ROWS_MAX) {
        struct outbox_row *o = &list[*n];
        o->id = db_get_u64(s);
        o->kind = (enum outbox_kind)db_get_u64(s);
        o->state = (enum outbox_state)db_get_u64(s);
        vouchers[*n] = db_get_u64(s);
        batches[*n] = db_get_u64(s);
        o->channel_row = db_get_u64(s);
        o->superseded = db_get_u64(s) != 0;
        snprintf(o->note, sizeof(o->note), "%s", db_get_text(s));
        (*n)++;
    }
    if (db_end_checked(s, err) != 0 || row < 0)
        return -1;
    for (size_t i = 0; i < *n; i++) {
        int found;
        if (list[i].kind == OUTBOX_REDEEM) {
            found = voucher_load(db, &list[i].voucher, vouchers[i], err);
        } else {
            s = db_stmt(db, "SELECT " BATCH_COLUMNS BATCH_FROM "WHERE b.id = ?");
            db_put_u64(s, batches[i]);
            found = db_step(s, err);
            if (found == 1)
                batch_read(s, &list[i].batch);
            if (db_end_checked(s, err) != 0)
                found = -1;
        }
        if (found != 1)
            return found < 0 ? -1
                             : err_set(err, ERR_CORRUPT, "outbox row %llu is about nothing",
                                       (unsigned long long)list[i].id);
    }
    return 0;
}

int outbox_load_tx(struct db *db, const struct outbox_row *o, struct outbox_tx *out,
                   struct err *err)
{
    struct db_stmt *s = db_stmt(
        db, "SELECT id, nonce, gas, signed_ms, coalesce(broadcast_ms, 0), state, max_fee, "
            "max_priority_fee, raw FROM tx WHERE outbox = ? AND state < 3 ORDER BY id DESC "
            "LIMIT 1");
    db_put_u64(s, o->id);
    int row = db_step(s, err);
    memset(out, 0, sizeof(*out));
    if (row == 1) {
        out->id = db_get_u64(s);
        out->nonce = db_get_u64(s);
        out->gas = db_get_u64(s);
        out->signed_ms = db_get_u64(s);
        out->broadcast_ms = db_get_u64(s);
        out->state = (enum tx_state)db_get_u64(s);
        out->max_fee = db_get_amount(s);
        out->max_priority_fee = db_get_amount(s);
        db_get_bytes(s, &out->raw);
    }
    if (db_end_checked(s, err) != 0 || row < 0) {
        buf_release(&out->raw);
        return -1;
    }
    return row;
}

const char *outbox_state_name(enum outbox_state state)
{
    switch (state) {
    case OUTBOX_WAITING:
        return "waiting";
    case OUTBOX_SIGNED:
        return "signed";
    case OUTBOX_MINED:
        return "mined";
    case OUTBOX_CONFIRMED:
        return "confirmed";
    case OUTBOX_MOOT:
        return "moot";
    case OUTBOX_HELD:
        return "held";
    }
    BUG("outbox state %d", (int)state);
}

/* ---- writing ------------------------------------------------------ */

static int set_batch_state(struct ledger *l, uint64_t batch_row, enum batch_state state,
                           struct err *err)
{
    struct db_stmt *s = db_stmt(l->db, "UPDATE batch SET state = ? WHERE id = ? AND state <> ?");
    db_put_u64(s, (uint64_t)state);
    db_put_u64(s, batch_row);
    db_put_u64(s, (uint64_t)state);
    return db_run(s, err);
}

/* payout.submitted or payout.final := what the newest batch at or above this state says. */
static int set_payout_column(struct ledger *l, bool final, struct err *err)
{
    struct db_stmt *s = db_stmt(l->db, "SELECT id FROM batch WHERE domain = ? AND state >= ? "
                                       "ORDER BY seq DESC LIMIT 1");
    db_put_u64(s, l->domain);
    db_put_u64(s, final ? BATCH_FINAL : BATCH_SUBMITTED);
    int row = db_step(s, err);
    uint64_t batch_row = row == 1 ? db_get_u64(s) : 0;
    if (db_end_checked(s, err) != 0 || row < 0)
        return -1;
    s = db_stmt(l->db, final ? "UPDATE payout SET final = ? WHERE domain = ?"
                             : "UPDATE payout SET submitted = ? WHERE domain = ?");
    db_put_amount(s, AMOUNT_ZERO);
    db_put_u64(s, l->domain);
    if (db_run(s, err) != 0)
        return -1;
    struct payout *leaves = NULL;
    size_t n = 0;
    if (batch_row && batch_file_payouts(l->db, batch_row, &leaves, &n, err) != 0)
        return -1;
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        s = db_stmt(l->db, final ? "UPDATE payout SET final = ? WHERE domain = ? AND kind = ? "
                                   "AND id = ? AND position = ?"
                                 : "UPDATE payout SET submitted = ? WHERE domain = ? AND "
                                   "kind = ? AND id = ? AND position = ?");
        db_put_amount(s, leaves[i].amount);
        db_put_u64(s, l->domain);
        db_put_u64(s, (uint64_t)leaves[i].kind);
        db_put_blob(s, leaves[i].id, 32);
        db_put_u64(s, leaves[i].position);
        rc = db_run(s, err);
    }
    free(leaves);
    return rc;
}

static int change_row_task(struct ledger *l, void *context, struct err *err)
{
    const struct outbox_change *c = context;
    struct db_stmt *s = db_stmt(l->db, "UPDATE outbox SET state = ?, note = ? WHERE id = ?");
    db_put_u64(s, (uint64_t)c->state);
    db_put_text(s, c->note);
    db_put_u64(s, c->row);
    if (db_run(s, err) != 0)
        return -1;
    if (c->channel_row) {
        s = db_stmt(l->db, "UPDATE channel SET redeemed = max(redeemed, ?) WHERE id = ?");
        db_put_amount(s, c->redeemed);
        db_put_u64(s, c->channel_row);
        if (db_run(s, err) != 0)
            return -1;
        s = db_stmt(l->db,
                    "UPDATE outbox SET state = 4, note = NULL WHERE domain = ? AND state = 5 "
                    "AND voucher IN (SELECT id FROM voucher WHERE channel = ? AND "
                    "value <= ?)");
        db_put_u64(s, l->domain);
        db_put_u64(s, c->channel_row);
        db_put_amount(s, c->redeemed);
        if (db_run(s, err) != 0)
            return -1;
    }
    if (c->batch_row && (set_batch_state(l, c->batch_row, c->batch_state, err) != 0 ||
                         set_payout_column(l, false, err) != 0))
        return -1;
    if (c->lose_txs) {
        s = db_stmt(l->db, "UPDATE tx SET state = 3 WHERE outbox = ?");
        db_put_u64(s, c->row);
        if (db_run(s, err) != 0)
            return -1;
    }
    if (c->mine_tx) {
        s = db_stmt(l->db, "UPDATE tx SET state = CASE WHEN id = ? THEN 2 ELSE 3 END, "
                           "block = CASE WHEN id = ? THEN ? ELSE NULL END, "
                           "block_hash = CASE WHEN id = ? THEN ? ELSE NULL END WHERE outbox = ?");
        db_put_u64(s, c->mined_tx);
        db_put_u64(s, c->mined_tx);
        db_put_u64(s, c->block);
        db_put_u64(s, c->mined_tx);
        db_put_blob(s, c->block_hash, 32);
        db_put_u64(s, c->row);
        return db_run(s, err);
    }
    return 0;
}

static int back_to_pool_task(struct ledger *l, void *context, struct err *err)
{
    /* After a reorg all transactions of the row are candidates again, and are sent at once. */
    struct db_stmt *s = db_stmt(
        l->db, "UPDATE tx SET state = 1, broadcast_ms = NULL, block = NULL, block_hash = NULL "
               "WHERE outbox = ?");
    db_put_u64(s, *(const uint64_t *)context);
    return db_run(s, err);
}

static int store_tx_task(struct ledger *l, void *context, struct err *err)
{
    struct outbox_new_tx *t = context;
    /* Signing is deterministic: a row that starts over at its nonce and fees makes the very bytes
     * of before, which become its newest transaction. */
    struct db_stmt *s = db_stmt(
        l->db,
        "INSERT OR REPLACE INTO tx(outbox, nonce, hash, raw, gas, max_fee, max_priority_fee, "
        "worst_cost, signed_ms) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)");
    db_put_u64(s, t->row);
    db_put_u64(s, t->nonce);
    db_put_blob(s, t->hash.bytes, 32);
    db_put_blob(s, t->raw->data, t->raw->len);
    db_put_u64(s, t->gas);
    db_put_amount(s, t->max_fee);
    db_put_amount(s, t->max_priority_fee);
    db_put_amount(s, t->worst_cost);
    db_put_u64(s, clock_unix_ms().ms);
    if (db_run(s, err) != 0)
        return -1;
    t->id = db_last_rowid(l->db);
    s = db_stmt(l->db, "UPDATE outbox SET state = 1, note = NULL WHERE id = ?");
    db_put_u64(s, t->row);
    return db_run(s, err);
}

static int broadcast_task(struct ledger *l, void *context, struct err *err)
{
    struct db_stmt *s = db_stmt(
        l->db, "UPDATE tx SET state = max(state, 1), broadcast_ms = ? WHERE id = ?");
    db_put_u64(s, clock_unix_ms().ms);
    db_put_u64(s, *(const uint64_t *)context);
    return db_run(s, err);
}

static int reopen_task(struct ledger *l, void *context, struct err *err)
{
    static const char *const submits[] = {
        ("UPDATE tx SET state = 1, broadcast_ms = NULL, block = NULL, block_hash = NULL WHERE "
         "outbox IN (SELECT o.id "
         "FROM outbox o JOIN batch b ON b.id = o.batch WHERE o.domain = ?1 AND o.state = 3 AND "
         "b.seq >= ?2 AND b.state = 2)"),
        ("UPDATE outbox SET state = 1 WHERE domain = ?1 AND state = 3 AND batch IN "
         "(SELECT id FROM batch WHERE domain = ?1 AND seq >= ?2 AND state = 2)"),
        "UPDATE batch SET state = 0 WHERE domain = ?1 AND seq >= ?2 AND state = 2",
    };
    static const char *const redeems[] = {
        ("UPDATE tx SET state = 1, broadcast_ms = NULL, block = NULL, block_hash = NULL WHERE "
         "outbox IN "
         "(SELECT id FROM outbox WHERE domain = ?1 AND voucher = ?2 AND state IN (3, 4))"),
        "UPDATE outbox SET state = 1 WHERE domain = ?1 AND voucher = ?2 AND state IN (3, 4)",
    };
    const struct outbox_lost *lost = context;
    for (size_t i = 0; i < sizeof(submits) / sizeof(*submits); i++) {
        struct db_stmt *s = db_stmt(l->db, submits[i]);
        db_put_u64(s, l->domain);
        db_put_u64(s, lost->next_seq);
        if (db_run(s, err) != 0)
            return -1;
    }
    for (size_t v = 0; v < lost->n_vouchers; v++) {
        for (size_t i = 0; i < sizeof(redeems) / sizeof(*redeems); i++) {
            struct db_stmt *s = db_stmt(l->db, redeems[i]);
            db_put_u64(s, l->domain);
            db_put_u64(s, lost->vouchers[v]);
            if (db_run(s, err) != 0)
                return -1;
        }
    }
    return set_payout_column(l, false, err);
}

static int final_task(struct ledger *l, void *context, struct err *err)
{
    const uint64_t *count = context;
    struct db_stmt *s = db_stmt(l->db, "UPDATE batch SET state = 3 WHERE domain = ? AND "
                                       "seq < ? AND state = 2");
    db_put_u64(s, l->domain);
    db_put_u64(s, *count);
    if (db_run(s, err) != 0)
        return -1;
    return set_payout_column(l, true, err);
}

static int claims_task(struct ledger *l, void *context, struct err *err)
{
    struct outbox_claims *list = context;
    for (size_t i = 0; i < list->set.n; i++) {
        const struct payout *p = &list->set.items[i];
        struct db_stmt *s = db_stmt(l->db, "UPDATE payout SET claimed = max(claimed, ?) WHERE "
                                           "domain = ? AND kind = ? AND id = ? AND position = ?");
        db_put_amount(s, p->amount);
        db_put_u64(s, l->domain);
        db_put_u64(s, (uint64_t)p->kind);
        db_put_blob(s, p->id, 32);
        db_put_u64(s, p->position);
        if (db_run(s, err) != 0)
            return -1;
    }
    struct db_stmt *s = db_stmt(l->db, "UPDATE domain SET claims_block = ? WHERE id = ?");
    db_put_u64(s, list->next_block);
    db_put_u64(s, l->domain);
    return db_run(s, err);
}

/* ---- the door -------------------------------------------------------------------------------- */

int outbox_apply(struct ledger *l, const struct outbox_change *change, struct err *err)
{
    struct outbox_change c = *change;
    return ledger_run(l, change_row_task, &c, err);
}

int outbox_note(struct ledger *l, const struct outbox_row *row, const char *note, struct err *err)
{
    if (note ? strncmp(note, row->note, sizeof(row->note) - 1) == 0 : row->note[0] == '\0')
        return 0; /* it says so already: no write */
    struct outbox_change c = {.row = row->id, .state = row->state, .note = note};
    return ledger_run(l, change_row_task, &c, err);
}

int outbox_back_to_pool(struct ledger *l, uint64_t row, struct err *err)
{
    return ledger_run(l, back_to_pool_task, &row, err);
}

int outbox_store_tx(struct ledger *l, struct outbox_new_tx *tx, struct err *err)
{
    return ledger_run(l, store_tx_task, tx, err);
}

int outbox_mark_broadcast(struct ledger *l, uint64_t tx, struct err *err)
{
    return ledger_run(l, broadcast_task, &tx, err);
}

int outbox_reopen(struct ledger *l, const struct outbox_lost *lost, struct err *err)
{
    struct outbox_lost copy = *lost;
    return ledger_run(l, reopen_task, &copy, err);
}

int outbox_finish(struct ledger *l, uint64_t count, struct err *err)
{
    return ledger_run(l, final_task, &count, err);
}

int outbox_note_claims(struct ledger *l, struct outbox_claims *claims, struct err *err)
{
    return ledger_run(l, claims_task, claims, err);
}
