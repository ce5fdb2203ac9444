/* payer: what a payer owes, and what it needs to know to sign for it. */
#include "attribution/payer.h"

#include "attribution/json_out.h"
#include "attribution/outbox.h"
#include "attribution/request.h"

enum { CHANNELS_MAX = 100 };

int payer_debt(const struct ledger *l, struct db *db, struct amount *out, struct address payer,
               struct err *err)
{
    struct db_stmt *s = db_stmt(db, "SELECT amount_sum(total), amount_sum(redeemed) FROM channel "
                                    "WHERE domain = ? AND payer = ?");
    db_put_u64(s, l->domain);
    db_put_blob(s, payer.bytes, 20);
    if (db_step(s, err) != 1) {
        db_end(s);
        return -1;
    }
    struct amount receipts = db_get_amount(s), redeemed = db_get_amount(s);
    if (db_end_checked(s, err) != 0)
        return -1;
    if (amount_sub(out, receipts, redeemed) != 0)
        *out = AMOUNT_ZERO;
    return 0;
}

/* The columns of a channel's newest voucher, all NULL when it has none. */
static json_t *voucher_json(struct db_stmt *s)
{
    uint8_t last[32];
    if (db_get_null(s))
        return json_null();
    uint64_t index = db_get_u64(s);
    struct amount value = db_get_amount(s);
    db_get_blob(s, last, 32);
    enum outbox_state state = (enum outbox_state)db_get_most(s, OUTBOX_HELD);
    const char *note = db_get_text(s);
    return json_pack("{s:o, s:o, s:o, s:s, s:o}", "valueAggregate", out_amount(value),
                     "lastReceiptHash", out_hex(last, 32), "index", out_u64(index), "state",
                     outbox_state_name(state), "waiting", out_text_or_null(note));
}

static json_t *channel_json(const struct channel_state *ch, struct amount redeemed, bool open,
                            json_t *voucher)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:b, s:o}", "channel",
                     out_hex(ch->hash.bytes, 32), "epoch", out_u64(ch->epoch), "receipts",
                     out_u64(ch->next_index), "head", out_hex(ch->head, 32), "total",
                     out_amount(ch->total), "redeemed", out_amount(redeemed), "open", open,
                     "voucher", voucher);
}

/* The newest first: it is the open one. Who has none is told of the one that would be. */
static int list_channels(struct ledger *l, struct db *db, json_t *list, struct address payer,
                         struct err *err)
{
    struct db_stmt *s = db_stmt(
        db, "SELECT c.hash, c.epoch, c.next_index, c.head, c.total, c.redeemed, v.idx, v.value, "
            "v.last_receipt_hash, o.state, coalesce(o.note, '') FROM channel c LEFT JOIN voucher v "
            "ON v.id = (SELECT w.id FROM voucher w WHERE w.channel = c.id ORDER BY w.value DESC "
            "LIMIT 1) LEFT JOIN outbox o ON o.voucher = v.id WHERE c.domain = ? AND c.payer = ? "
            "ORDER BY c.epoch DESC LIMIT ?");
    struct channel_state ch;
    int row;
    db_put_u64(s, l->domain);
    db_put_blob(s, payer.bytes, 20);
    db_put_u64(s, CHANNELS_MAX);
    while ((row = db_step(s, err)) == 1) {
        db_get_blob(s, ch.hash.bytes, 32);
        ch.epoch = db_get_u64(s);
        ch.next_index = db_get_u64(s);
        db_get_blob(s, ch.head, 32);
        ch.total = db_get_amount(s);
        struct amount redeemed = db_get_amount(s);
        bool open = json_array_size(list) == 0;
        json_array_append_new(list, channel_json(&ch, redeemed, open, voucher_json(s)));
    }
    if (db_end_checked(s, err) != 0 || row < 0)
        return -1;
    if (json_array_size(list) == 0) {
        ledger_new_channel(l, &ch, payer);
        json_array_append_new(list, channel_json(&ch, AMOUNT_ZERO, true, json_null()));
    }
    return 0;
}

json_t *ledger_query_payer(struct ledger *l, struct address payer, struct err *err)
{
    struct amount owed;
    if (!l->has_chain) {
        err_set(err, ERR_UNSUPPORTED, "this node settles on no chain, so it has no payers");
        return NULL;
    }
    struct amount answering = requests_pending(l, payer); /* before the receipts: request.c */
    struct db *db = ledger_reader(l, err);
    json_t *list = json_array(), *out = NULL;
    if (db != NULL && payer_debt(l, db, &owed, payer, err) == 0 &&
        list_channels(l, db, list, payer, err) == 0)
        out = json_pack(
            "{s:o, s:o, s:{s:o, s:o}, s:o, s:o, s:o, s:O}", "payer", out_hex(payer.bytes, 20),
            "operator", out_hex(l->operator_address.bytes, 20), "domain", "chainId",
            out_u64(l->opt.chain.chain_id), "verifyingContract",
            out_hex(l->opt.chain.escrow.bytes, 20), "credit", out_amount(l->opt.payer_credit),
            "owed", out_amount(owed), "answering", out_amount(answering), "channels", list);
    json_decref(list);
    ledger_reader_done(l, db);
    return out;
}
