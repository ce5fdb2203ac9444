/* held: who of the payers is let into the outbox.
 *
 * A payer's voucher costs us gas, a place among the rows that a round looks at, and a turn of the
 * one transaction that is in flight. It gets them when Escrow would pay it now. Until then it costs
 * two questions now and then:
 *
 *     held rows   [new, never asked about] [asked before, the note says what is missing]
 *                  ------ first ---------   ---- in turn, from *place on, around -----
 *                          LOOKS_MAX of both together in a round
 *
 * So strangers' promises without money delay each other, and nothing else. While one is asked
 * about, a newer one of its channel may come in its place, row and all: then that is let in, or
 * noted, unasked, and comes back from the outbox if Escrow wouldn't pay it (publisher.c). */
#include "attribution/held.h"

#include "attribution/outbox.h"
#include "node/base/log.h"

#include <string.h>

enum { LOOKS_MAX = 4 };

struct held_row {
    struct outbox_row outbox; /* id, state and note */
    uint64_t voucher_row;
    struct stored_voucher voucher;
};

/* How many more of payers the outbox takes. */
static int count_room(struct ledger *l, struct db *db, uint64_t *room, struct err *err)
{
    struct db_stmt *s = db_stmt(
        db, "SELECT count(*) FROM outbox o JOIN voucher v ON v.id = o.voucher JOIN channel c ON "
            "c.id = v.channel WHERE o.domain = ? AND o.state < 3 AND c.payer <> ?");
    db_put_u64(s, l->domain);
    db_put_blob(s, l->house.bytes, 20);
    int row = db_step(s, err);
    uint64_t n = row == 1 ? db_get_u64(s) : 0;
    *room = n < OUTBOX_PAYERS_MAX ? OUTBOX_PAYERS_MAX - n : 0;
    return db_end_checked(s, err) != 0 || row != 1 ? -1 : 0;
}

/* One a channel: while a voucher is on its way, a newer one waits for it to arrive. */
static int load(struct ledger *l, struct db *db, struct held_row rows[LOOKS_MAX], size_t *n,
                uint64_t place, struct err *err)
{
    struct db_stmt *s = db_stmt(
        db, "SELECT o.id, o.voucher, coalesce(o.note, '') FROM outbox o JOIN voucher v ON "
            "v.id = o.voucher WHERE o.domain = ? AND o.state = 5 AND (o.note IS NULL OR o.id > ?) "
            "AND NOT EXISTS(SELECT 1 FROM voucher w JOIN outbox n ON n.voucher = w.id WHERE "
            "w.channel = v.channel AND (n.state < 3 OR (n.state = 5 AND w.value > v.value))) "
            "ORDER BY o.note IS NOT NULL, o.id LIMIT ?");
    int row, rc = 0;
    db_put_u64(s, l->domain);
    db_put_u64(s, place);
    db_put_u64(s, LOOKS_MAX);
    *n = 0;
    while ((row = db_step(s, err)) == 1 && *n < LOOKS_MAX) {
        struct held_row *h = &rows[(*n)++];
        memset(h, 0, sizeof(*h));
        h->outbox.id = db_get_u64(s);
        h->outbox.state = OUTBOX_HELD;
        h->voucher_row = db_get_u64(s);
        snprintf(h->outbox.note, sizeof(h->outbox.note), "%s", db_get_text(s));
    }
    if (db_end_checked(s, err) != 0 || row < 0)
        return -1;
    for (size_t i = 0; i < *n && rc == 0; i++) {
        int found = voucher_load(db, &rows[i].voucher, rows[i].voucher_row, err);
        if (found != 1)
            rc = found < 0 ? -1 : err_set(err, ERR_CORRUPT, "a held voucher is not there");
    }
    return rc;
}

static int judge(struct ledger *l, const struct settlement *at, struct rpc_at block,
                 const struct held_row *h, struct err *err)
{
    const struct voucher *v = &h->voucher.voucher;
    struct amount balance, redeemed, moves, least = l->opt.publish.redeem_min;
    char need[AMOUNT_TEXT_BYTES], have[AMOUNT_TEXT_BYTES], text[200];
    uint8_t last[32];
    if (settlement_balance(at, &balance, v->payer, block, err) != 0 ||
        settlement_channel(at, &redeemed, last, v->payer, h->voucher.epoch, block, err) != 0)
        return -1;
    bool done = amount_sub(&moves, v->value_aggregate, redeemed) != 0 || amount_is_zero(moves);
    if (!done && amount_cmp(moves, balance) > 0)
        snprintf(text, sizeof(text), "the payer's escrow balance is %s, the voucher needs %s",
                 amount_format(have, balance), amount_format(need, moves));
    else if (!done && amount_cmp(moves, least) < 0)
        snprintf(text, sizeof(text), "the voucher would move %s, vouchers are redeemed from %s on",
                 amount_format(need, moves), amount_format(have, least));
    else /* or somebody has redeemed it by hand: then it is found done */
        return outbox_apply(
            l, &(struct outbox_change){.row = h->outbox.id, .state = OUTBOX_WAITING}, err);
    return outbox_note(l, &h->outbox, text, err);
}

int held_look(struct ledger *l, const struct settlement *at, struct rpc_at block, uint64_t *place,
              struct err *err)
{
    struct held_row rows[LOOKS_MAX];
    uint64_t room = 0;
    size_t n = 0;
    struct db *db = ledger_reader(l, err);
    int rc = db != NULL ? count_room(l, db, &room, err) : -1;
    if (rc == 0 && room > 0)
        rc = load(l, db, rows, &n, *place, err);
    ledger_reader_done(l, db);
    if (rc != 0 || room == 0)
        return rc;
    uint64_t from = *place;
    *place = n < LOOKS_MAX ? 0 : from;
    for (size_t i = 0; i < n && i < room && rc == 0; i++) {
        if (n == LOOKS_MAX && rows[i].outbox.note[0] != '\0')
            *place = rows[i].outbox.id;
        rc = judge(l, at, block, &rows[i], err);
    }
    return rc;
}
