/* query: what the ledger tells, as JSON.
 *
 * Every query takes one read connection and one snapshot (ledger_reader), so that the rows of an
 * answer fit together whatever the ledger thread does meanwhile. Lists are paged by the key they
 * are ordered by: the cursor is the last row's key as hexadecimal or decimal text, and the next
 * page asks for keys above it, so a page costs the same wherever it lies and survives new rows.
 *
 * SQL selects and orders; amounts are summed by amount_sum (db.c) and formatted here. */
#include "attribution/attribution.h"

#include "attribution/batch.h"
#include "attribution/json_out.h"
#include "attribution/ledger.h"
#include "attribution/outbox.h"
#include "attribution/query.h"
#include "attribution/receipt.h"
#include "node/base/buf.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE_DEFAULT = 100 };

/* ---- pages ---------------------------------------------------------------------------------- */

struct page { /* a list that is being filled */
    json_t *items;
    char next[2 * 35 + 1]; /* cursor; "" at the end */
    uint32_t limit;
};

static int page_begin(struct page *p, const struct ledger_filter *f, struct err *err)
{
    p->limit = f && f->limit ? f->limit : PAGE_DEFAULT;
    p->next[0] = '\0';
    p->items = NULL;
    if (p->limit > LEDGER_PAGE_MAX)
        return err_set(err, ERR_INVALID, "limit is %u, at most %d are given at once", p->limit,
                       (int)LEDGER_PAGE_MAX);
    p->items = json_array();
    return 0;
}

/* Whether the page has room; otherwise the cursor stays at the last row taken. */
static bool page_has_room(const struct page *p)
{
    return json_array_size(p->items) < p->limit;
}

static json_t *page_end(struct page *p, int rc, bool more)
{
    if (rc != 0) {
        json_decref(p->items);
        return NULL;
    }
    return json_pack("{s:o, s:o}", "items", p->items, "next",
                     more ? json_string(p->next) : json_null());
}

static int cursor_u64(const struct ledger_filter *f, uint64_t *out, struct err *err)
{
    *out = 0;
    if (!f || !f->cursor)
        return 0;
    char *end;
    errno = 0;
    unsigned long long value = strtoull(f->cursor, &end, 10);
    if (f->cursor[0] < '0' || f->cursor[0] > '9' || *end || errno || value > INT64_MAX)
        return err_set(err, ERR_INVALID, "\"%.40s\" is not a cursor of this list", f->cursor);
    *out = value;
    return 0;
}

static int cursor_bytes(const struct ledger_filter *f, uint8_t *out, size_t n, bool *given,
                        struct err *err)
{
    memset(out, 0, n);
    *given = f && f->cursor;
    if (*given && (strlen(f->cursor) != 2 * n || hex_decode(out, n, f->cursor) != 0))
        return err_set(err, ERR_INVALID, "\"%.40s\" is not a cursor of this list", f->cursor);
    return 0;
}

/* ---- usage ---------------------------------------------------------------------------------- */

struct usage_row {
    uint64_t requests, tokens_prompt, tokens_completion;
    struct amount royalty, compute_fee;
};

static void read_usage_row(struct db_stmt *s, struct usage_row *r)
{
    r->requests = db_get_u64(s);
    r->tokens_prompt = db_get_u64(s);
    r->tokens_completion = db_get_u64(s);
    r->royalty = db_get_amount(s);
    r->compute_fee = db_get_amount(s);
}

static json_t *usage_json(const struct usage_row *r)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "requests", out_u64(r->requests), "promptTokens",
                     out_u64(r->tokens_prompt), "completionTokens", out_u64(r->tokens_completion),
                     "royalty", out_amount(r->royalty), "computeFee", out_amount(r->compute_fee));
}

/* The filter as SQL over r (receipt) and c (channel); the same six parameters everywhere. */
#define USAGE_WHERE                                                                        \
    " c.domain = ? AND r.timestamp_ms >= ? AND r.timestamp_ms < ? AND (? OR c.payer = ?) " \
    "AND (? OR r.key_tag = ?) "

static void put_usage_filter(struct db_stmt *s, const struct ledger *l,
                             const struct ledger_filter *f)
{
    uint8_t tag[8];
    for (int i = 0; i < 8; i++)
        tag[i] = (uint8_t)(f ? f->key_tag >> (56 - 8 * i) : 0);
    db_put_u64(s, l->domain);
    db_put_u64(s, f ? f->from_ms : 0);
    db_put_u64(s, f && f->to_ms ? f->to_ms : INT64_MAX);
    db_put_u64(s, !(f && f->payer));
    db_put_blob(s, f && f->payer ? f->payer->bytes : NULL, f && f->payer ? 20 : 0);
    db_put_u64(s, !(f && f->key_tag));
    db_put_blob(s, tag, 8);
}

static int usage_of_base(struct ledger *l, struct db *db, const struct ledger_filter *f,
                         struct page *p, struct err *err)
{
    struct usage_row row;
    struct db_stmt *s = db_stmt(
        db, "SELECT count(*), coalesce(sum(r.tokens_prompt), 0), "
            "coalesce(sum(r.tokens_completion), 0), amount_sum(r.royalty), "
            "amount_sum(r.compute_fee) FROM receipt r JOIN channel c ON c.id = r.channel "
            "WHERE" USAGE_WHERE
            "AND NOT EXISTS (SELECT 1 FROM receipt_adapter a WHERE a.receipt = r.id)");
    put_usage_filter(s, l, f);
    if (db_step(s, err) != 1) {
        db_end(s);
        return -1;
    }
    read_usage_row(s, &row);
    if (db_end_checked(s, err) != 0)
        return -1;
    if (row.requests > 0) {
        json_t *item = usage_json(&row);
        json_object_set_new(item, "adapterId", json_null());
        json_array_append_new(p->items, item);
    }
    return 0;
}

static int usage_totals(struct ledger *l, struct db *db, const struct ledger_filter *f,
                        json_t **out, struct err *err)
{
    struct usage_row row;
    struct db_stmt *s = db_stmt(db, "SELECT count(*), coalesce(sum(r.tokens_prompt), 0), "
                                    "coalesce(sum(r.tokens_completion), 0), amount_sum(r.royalty), "
                                    "amount_sum(r.compute_fee) FROM receipt r JOIN channel c ON "
                                    "c.id = r.channel WHERE" USAGE_WHERE
                                    "AND (? OR EXISTS (SELECT 1 FROM receipt_adapter a WHERE "
                                    "a.receipt = r.id AND a.adapter = ?))");
    bool any = !(f && f->adapter);
    put_usage_filter(s, l, f);
    db_put_u64(s, any);
    db_put_blob(s, any ? NULL : f->adapter->bytes, any ? 0 : 32);
    if (db_step(s, err) != 1) {
        db_end(s);
        return -1;
    }
    read_usage_row(s, &row);
    if (db_end_checked(s, err) != 0)
        return -1;
    *out = usage_json(&row);
    return 0;
}

static void name_adapter(struct ledger *l, json_t *item, const uint8_t id[32])
{
    struct adapter_id adapter;
    memcpy(adapter.bytes, id, 32);
    struct adapter_entry *e = adapter_table_by_id(l->adapters, adapter);
    json_object_set_new(item, "adapterId", out_hex(id, 32));
    if (!e)
        return;
    json_object_set_new(item, "name", json_string(e->facts.name));
    json_object_set_new(item, "version", out_u64(e->facts.version));
    json_object_set_new(item, "creator", out_hex(e->facts.creator.bytes, 20));
}

static bool creator_matches(struct ledger *l, const struct ledger_filter *f, const uint8_t id[32])
{
    struct adapter_id adapter;
    if (!f || !f->creator)
        return true;
    memcpy(adapter.bytes, id, 32);
    struct adapter_entry *e = adapter_table_by_id(l->adapters, adapter);
    return e && DIGEST_EQ(e->facts.creator, *f->creator);
}

#define FIRST_OF_ID                                                                              \
    "NOT EXISTS (SELECT 1 FROM receipt_adapter b WHERE b.receipt = a.receipt AND b.ord < a.ord " \
    "AND b.adapter = a.adapter)"

json_t *ledger_query_usage(struct ledger *l, const struct ledger_filter *f, struct err *err)
{
    uint8_t after[32];
    bool given, more = false;
    struct page p;
    json_t *totals = NULL;
    if (page_begin(&p, f, err) != 0 || cursor_bytes(f, after, 32, &given, err) != 0) {
        json_decref(p.items);
        return NULL;
    }
    struct db *db = ledger_reader(l, err);
    if (!db) {
        json_decref(p.items);
        return NULL;
    }
    int rc = usage_totals(l, db, f, &totals, err);
    if (rc == 0 && !given && !(f && (f->adapter || f->creator)))
        rc = usage_of_base(l, db, f, &p, err);
    /* An ensemble may hold several adapters that are nowhere registered, all with the id zero: its
     * receipt counts once in their row. */
    struct db_stmt *s = db_stmt(
        db, "SELECT a.adapter, count(*) FILTER (WHERE " FIRST_OF_ID "), "
            "coalesce(sum(r.tokens_prompt) FILTER (WHERE " FIRST_OF_ID "), 0), "
            "coalesce(sum(r.tokens_completion) FILTER (WHERE " FIRST_OF_ID "), 0), "
            "amount_sum(a.royalty), "
            "amount_sum(CASE WHEN a.ord = 0 THEN r.compute_fee ELSE NULL END) "
            "FROM receipt r JOIN channel c ON c.id = r.channel "
            "JOIN receipt_adapter a ON a.receipt = r.id WHERE" USAGE_WHERE
            "AND (? OR a.adapter = ?) AND (? OR a.adapter > ?) "
            "GROUP BY a.adapter ORDER BY a.adapter");
    put_usage_filter(s, l, f);
    bool any = !(f && f->adapter);
    db_put_u64(s, any);
    db_put_blob(s, any ? NULL : f->adapter->bytes, any ? 0 : 32);
    db_put_u64(s, !given);
    db_put_blob(s, after, 32);
    int row;
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        uint8_t id[32];
        struct usage_row u;
        if (row < 0) {
            rc = -1;
            break;
        }
        db_get_blob(s, id, 32);
        read_usage_row(s, &u);
        if (!creator_matches(l, f, id))
            continue;
        if (!page_has_room(&p)) {
            more = true;
            break;
        }
        json_t *item = usage_json(&u);
        name_adapter(l, item, id);
        json_array_append_new(p.items, item);
        hex_encode(p.next, id, 32);
    }
    if (db_end_checked(s, err) != 0)
        rc = -1;
    ledger_reader_done(l, db);
    json_t *out = page_end(&p, rc, more);
    if (out)
        json_object_set_new(out, "totals", totals);
    else
        json_decref(totals);
    return out;
}

/* ---- rewards -------------------------------------------------------------------------------- */

static void describe_payout(struct ledger *l, struct db *db, json_t *item, const struct payout *p)
{
    struct adapter_id id;
    json_object_set_new(item, "payee", json_null());
    if (p->kind == PAYOUT_OPERATOR) {
        json_object_set_new(item, "payee", out_hex(p->id + 12, 20));
        json_object_set_new(item, "name", json_string("operator"));
    } else if (p->kind == PAYOUT_ADAPTER) {
        memcpy(id.bytes, p->id, 32);
        struct adapter_entry *e = adapter_table_by_id(l->adapters, id);
        if (e && p->position < e->facts.n_splits)
            json_object_set_new(item, "payee",
                                out_hex(e->facts.splits[p->position].payee.bytes, 20));
        if (e)
            json_object_set_new(item, "name", json_string(e->facts.name));
    } else {
        struct db_stmt *s = db_stmt(db, "SELECT payee, name FROM datanet WHERE id = ?");
        db_put_blob(s, p->id, 32);
        if (db_step(s, NULL) == 1) {
            uint8_t payee[20];
            db_get_blob(s, payee, 20);
            json_object_set_new(item, "payee", out_hex(payee, 20));
            json_object_set_new(item, "name", json_string(db_get_text(s)));
        }
        db_end(s);
    }
}

static bool reward_matches(struct ledger *l, const struct ledger_filter *f, const struct payout *p)
{
    if (f && f->adapter && (p->kind != PAYOUT_ADAPTER || memcmp(p->id, f->adapter->bytes, 32)))
        return false;
    if (f && f->creator)
        return p->kind == PAYOUT_ADAPTER && creator_matches(l, f, p->id);
    return true;
}

json_t *ledger_query_rewards(struct ledger *l, const struct ledger_filter *f, struct err *err)
{
    uint8_t after[35]; /* kind, id, position */
    bool given, more = false;
    struct page p;
    if (page_begin(&p, f, err) != 0 || cursor_bytes(f, after, sizeof(after), &given, err) != 0) {
        json_decref(p.items);
        return NULL;
    }
    struct db *db = ledger_reader(l, err);
    int rc = db ? 0 : -1;
    struct db_stmt *s = NULL;
    if (rc == 0) {
        s = db_stmt(db, "SELECT kind, id, position, earned, sealed, submitted, final, claimed "
                        "FROM payout WHERE domain = ? AND (? OR (kind, id, position) > (?, ?, ?)) "
                        "ORDER BY kind, id, position");
        db_put_u64(s, l->domain);
        db_put_u64(s, !given);
        db_put_u64(s, after[0]);
        db_put_blob(s, after + 1, 32);
        db_put_u64(s, (uint64_t)(after[33] << 8 | after[34]));
    }
    int row;
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        static const char *const columns[] = {"earned", "sealed", "submitted", "final", "claimed"};
        struct payout leaf = {.position = 0};
        if (row < 0) {
            rc = -1;
            break;
        }
        leaf.kind = (enum payout_kind)db_get_most(s, PAYOUT_DATANET);
        db_get_blob(s, leaf.id, 32);
        leaf.position = (uint16_t)db_get_most(s, UINT16_MAX);
        if (!reward_matches(l, f, &leaf))
            continue;
        if (!page_has_room(&p)) {
            more = true;
            break;
        }
        json_t *item = json_pack("{s:s, s:o, s:o}", "kind", payout_kind_name(leaf.kind), "id",
                                 out_hex(leaf.id, 32), "position", out_u64(leaf.position));
        for (size_t i = 0; i < 5; i++)
            json_object_set_new(item, columns[i], out_amount(db_get_amount(s)));
        describe_payout(l, db, item, &leaf);
        json_array_append_new(p.items, item);
        uint8_t key[35];
        key[0] = (uint8_t)leaf.kind;
        memcpy(key + 1, leaf.id, 32);
        key[33] = (uint8_t)(leaf.position >> 8);
        key[34] = (uint8_t)leaf.position;
        hex_encode(p.next, key, sizeof(key));
    }
    if (s && db_end_checked(s, err) != 0)
        rc = -1;
    ledger_reader_done(l, db);
    return page_end(&p, rc, more);
}

/* ---- receipts and channels ------------------------------------------------------------------ */

json_t *query_not_found(const char *what, const uint8_t id[32], struct err *err)
{
    char text[67];
    err_set(err, ERR_NOT_FOUND, "no %s %s is known", what, hex_encode_0x(text, id, 32));
    return NULL;
}

/* A receipt of an older domain is written with that domain. */
int query_chain_of_receipt(struct db *db, const struct signed_receipt *r, struct ledger_chain *out,
                           struct err *err)
{
    struct db_stmt *s = db_stmt(
        db, "SELECT d.chain_id, d.stake_manager, d.adapter_registry, d.escrow, "
            "d.attribution_ledger FROM receipt r JOIN channel c ON c.id = r.channel "
            "JOIN domain d ON d.id = c.domain WHERE r.id = ?");
    db_put_u64(s, r->row);
    int row = db_step(s, err);
    if (row == 1) {
        out->chain_id = db_get_u64(s);
        db_get_blob(s, out->stake_manager.bytes, 20);
        db_get_blob(s, out->adapter_registry.bytes, 20);
        db_get_blob(s, out->escrow.bytes, 20);
        db_get_blob(s, out->attribution_ledger.bytes, 20);
    }
    return db_end_checked(s, err) != 0 || row != 1 ? -1 : 0;
}

json_t *ledger_query_receipt(struct ledger *l, const uint8_t id[32], struct err *err)
{
    struct signed_receipt r;
    struct ledger_chain chain;
    json_t *out = NULL;
    struct db *db = ledger_reader(l, err);
    if (!db)
        return NULL;
    int found = receipt_find(db, &r, id, err);
    if (found == 0)
        query_not_found("receipt or request", id, err);
    else if (found == 1 && query_chain_of_receipt(db, &r, &chain, err) == 0)
        out = receipt_to_json(&r, &chain);
    ledger_reader_done(l, db);
    return out;
}

json_t *ledger_query_receipts(struct ledger *l, const uint8_t channel[32], uint64_t from_index,
                              uint32_t limit, struct err *err)
{
    struct ledger_filter f = {.limit = limit};
    struct page p;
    bool more = false;
    if (from_index > INT64_MAX) {
        err_set(err, ERR_INVALID, "from is above 2^63 - 1");
        return NULL;
    }
    if (page_begin(&p, &f, err) != 0)
        return NULL;
    struct db *db = ledger_reader(l, err);
    int rc = db ? 0 : -1;
    struct db_stmt *s = NULL;
    if (rc == 0) {
        /* Two domains may have channels of one name; the newest life with receipts is told of. */
        s = db_stmt(db, "SELECT " RECEIPT_COLUMNS RECEIPT_FROM
                        "WHERE c.hash = ? AND r.idx >= ? AND c.domain = (SELECT max(n.domain) "
                        "FROM channel n WHERE n.hash = ? AND n.next_index > 0) ORDER BY r.idx");
        db_put_blob(s, channel, 32);
        db_put_u64(s, from_index);
        db_put_blob(s, channel, 32);
    }
    int row;
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        struct signed_receipt r;
        struct ledger_chain chain;
        if (row < 0 || receipt_read(db, s, &r, err) != 0 ||
            query_chain_of_receipt(db, &r, &chain, err) != 0) {
            rc = -1;
            break;
        }
        if (!page_has_room(&p)) {
            more = true;
            break;
        }
        json_array_append_new(p.items, receipt_to_json(&r, &chain));
        snprintf(p.next, sizeof(p.next), "%llu", (unsigned long long)r.receipt.index + 1);
    }
    if (s && db_end_checked(s, err) != 0)
        rc = -1;
    ledger_reader_done(l, db);
    return page_end(&p, rc, more);
}

json_t *ledger_query_channels(struct ledger *l, const struct ledger_filter *f, struct err *err)
{
    struct page p;
    uint64_t after;
    bool more = false, any = !(f && f->payer);
    if (page_begin(&p, f, err) != 0 || cursor_u64(f, &after, err) != 0) {
        json_decref(p.items);
        return NULL;
    }
    struct db *db = ledger_reader(l, err);
    int rc = db ? 0 : -1;
    struct db_stmt *s = NULL;
    if (rc == 0) {
        s = db_stmt(db, "SELECT id, hash, payer, epoch, next_index, head, total, sealed_index, "
                        "redeemed, epoch = (SELECT max(epoch) FROM channel o WHERE "
                        "o.domain = c.domain AND o.payer = c.payer) FROM channel c "
                        "WHERE domain = ? AND id > ? AND (? OR payer = ?) ORDER BY id");
        db_put_u64(s, l->domain);
        db_put_u64(s, after);
        db_put_u64(s, any);
        db_put_blob(s, any ? NULL : f->payer->bytes, any ? 0 : 20);
    }
    int row;
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        uint8_t hash[32], payer[20], head[32];
        if (row < 0) {
            rc = -1;
            break;
        }
        if (!page_has_room(&p)) {
            more = true;
            break;
        }
        snprintf(p.next, sizeof(p.next), "%llu", (unsigned long long)db_get_u64(s));
        db_get_blob(s, hash, 32);
        db_get_blob(s, payer, 20);
        uint64_t epoch = db_get_u64(s), receipts = db_get_u64(s);
        db_get_blob(s, head, 32);
        struct amount total = db_get_amount(s);
        uint64_t sealed = db_get_u64(s);
        struct amount redeemed = db_get_amount(s);
        bool open = db_get_u64(s) != 0;
        json_array_append_new(
            p.items,
            json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:b}", "channel", out_hex(hash, 32),
                      "payer", out_hex(payer, 20), "epoch", out_u64(epoch), "receipts",
                      out_u64(receipts), "head", out_hex(head, 32), "total", out_amount(total),
                      "sealed", out_u64(sealed), "redeemed", out_amount(redeemed), "open", open));
    }
    if (s && db_end_checked(s, err) != 0)
        rc = -1;
    ledger_reader_done(l, db);
    return page_end(&p, rc, more);
}

/* ---- batches -------------------------------------------------------------------------------- */

json_t *batch_to_json(const struct signed_batch *b)
{
    static const char *const states[] = {"sealed", "submitted", "confirmed", "final"};
    uint8_t signature[SIGNATURE_BYTES];
    const struct batch *f = &b->batch;
    json_t *o = json_object();
    signature_to_bytes(signature, &b->signature);
    json_object_set_new(o, "seq", out_u64(f->seq));
    json_object_set_new(o, "batchHash", out_hex(b->hash.bytes, 32));
    json_object_set_new(o, "operator", out_hex(f->operator_address.bytes, 20));
    json_object_set_new(o, "leafCount", out_u64(f->leaf_count));
    json_object_set_new(o, "receiptsRoot", out_hex(f->receipts_root, 32));
    json_object_set_new(o, "payoutRoot", out_hex(f->payout_root, 32));
    json_object_set_new(o, "committed", out_amount(f->committed));
    json_object_set_new(o, "periodStart", out_u64(f->period_start));
    json_object_set_new(o, "periodEnd", out_u64(f->period_end));
    json_object_set_new(o, "dataHash", out_hex(f->data_hash.bytes, 32));
    json_object_set_new(o, "prevBatchHash", out_hex(f->prev_batch_hash, 32));
    json_object_set_new(o, "signature",
                        b->state == BATCH_SEALED ? json_null() : out_hex(signature, 65));
    json_object_set_new(o, "value", out_amount(b->value));
    json_object_set_new(o, "state", json_string(states[b->state <= BATCH_FINAL ? b->state : 0]));
    json_object_set_new(o, "sealedMs", out_u64(b->sealed_ms));
    return o;
}

/* batch_to_json, and the transaction that brought it to the chain. */
json_t *query_batch_json(struct db *db, const struct signed_batch *b)
{
    json_t *o = batch_to_json(b);
    struct db_stmt *s = db_stmt(db, "SELECT t.hash FROM tx t JOIN outbox o ON o.id = t.outbox "
                                    "WHERE o.batch = ? AND t.state = 2 LIMIT 1");
    uint8_t hash[32];
    db_put_u64(s, b->row);
    bool mined = db_step(s, NULL) == 1;
    if (mined)
        db_get_blob(s, hash, 32);
    db_end(s);
    json_object_set_new(o, "txHash", mined ? out_hex(hash, 32) : json_null());
    return o;
}

json_t *ledger_query_batches(struct ledger *l, const struct ledger_filter *f, struct err *err)
{
    struct page p;
    uint64_t after;
    bool more = false;
    if (page_begin(&p, f, err) != 0 || cursor_u64(f, &after, err) != 0) {
        json_decref(p.items);
        return NULL;
    }
    struct db *db = ledger_reader(l, err);
    int rc = db ? 0 : -1;
    struct db_stmt *s = NULL;
    if (rc == 0) {
        s = db_stmt(db, "SELECT " BATCH_COLUMNS BATCH_FROM
                        "WHERE b.domain = ? AND b.seq >= ? AND b.period_end >= ? AND "
                        "b.period_start < ? ORDER BY b.seq");
        db_put_u64(s, l->domain);
        db_put_u64(s, after);
        db_put_u64(s, f ? f->from_ms : 0);
        db_put_u64(s, f && f->to_ms ? f->to_ms : INT64_MAX);
    }
    int row;
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        struct signed_batch b;
        if (row < 0) {
            rc = -1;
            break;
        }
        if (!page_has_room(&p)) {
            more = true;
            break;
        }
        batch_read(s, &b);
        json_array_append_new(p.items, query_batch_json(db, &b));
        snprintf(p.next, sizeof(p.next), "%llu", (unsigned long long)b.batch.seq + 1);
    }
    if (s && db_end_checked(s, err) != 0)
        rc = -1;
    ledger_reader_done(l, db);
    return page_end(&p, rc, more);
}

json_t *ledger_query_batch(struct ledger *l, uint64_t seq, struct err *err)
{
    struct signed_batch b;
    json_t *out = NULL;
    struct db *db = ledger_reader(l, err);
    if (!db)
        return NULL;
    int found = batch_find(db, &b, l->domain, seq, err);
    if (found == 1)
        out = query_batch_json(db, &b);
    else if (found == 0)
        err_set(err, ERR_NOT_FOUND, "there is no batch %llu", (unsigned long long)seq);
    ledger_reader_done(l, db);
    return out;
}

int ledger_batch_file(struct ledger *l, struct sha256_digest hash, struct buf *out, struct err *err)
{
    struct db *db = ledger_reader(l, err);
    if (!db)
        return -1;
    struct db_stmt *s = db_stmt(db, "SELECT file FROM batch WHERE data_hash = ?");
    db_put_blob(s, hash.bytes, 32);
    int row = db_step(s, err);
    if (row == 1)
        db_get_bytes(s, out);
    int rc = db_end_checked(s, err);
    if (row == 0)
        query_not_found("batch file", hash.bytes, err);
    ledger_reader_done(l, db);
    return row == 1 && rc == 0 ? 0 : -1;
}

/* ---- outbox --------------------------------------------------------------------------------- */

static json_t *transactions_json(struct db *db, uint64_t outbox)
{
    static const char *const states[] = {"signed", "broadcast", "mined", "lost"};
    json_t *list = json_array();
    struct db_stmt *s = db_stmt(db, "SELECT hash, nonce, state, max_fee, coalesce(block, 0) "
                                    "FROM tx WHERE outbox = ? ORDER BY id");
    db_put_u64(s, outbox);
    while (db_step(s, NULL) == 1) {
        uint8_t hash[32];
        db_get_blob(s, hash, 32);
        uint64_t nonce = db_get_u64(s), state = db_get_u64(s);
        struct amount fee = db_get_amount(s);
        uint64_t block = db_get_u64(s);
        json_array_append_new(
            list, json_pack("{s:o, s:o, s:s, s:o, s:o}", "hash", out_hex(hash, 32), "nonce",
                            out_u64(nonce), "state", states[state <= 3 ? state : 3], "maxFeePerGas",
                            out_amount(fee), "block", block ? out_u64(block) : json_null()));
    }
    db_end(s);
    return list;
}

json_t *ledger_query_outbox(struct ledger *l, const struct ledger_filter *f, struct err *err)
{
    struct page p;
    uint64_t after;
    bool more = false;
    if (page_begin(&p, f, err) != 0 || cursor_u64(f, &after, err) != 0) {
        json_decref(p.items);
        return NULL;
    }
    struct db *db = ledger_reader(l, err);
    int rc = db ? 0 : -1;
    struct db_stmt *s = NULL;
    if (rc == 0) {
        s = db_stmt(db, "SELECT o.id, o.kind, coalesce(b.hash, c.hash), o.state, "
                        "coalesce(o.note, ''), o.created_ms FROM outbox o "
                        "LEFT JOIN batch b ON b.id = o.batch "
                        "LEFT JOIN voucher v ON v.id = o.voucher "
                        "LEFT JOIN channel c ON c.id = v.channel "
                        "WHERE o.domain = ? AND o.id > ? ORDER BY o.id");
        db_put_u64(s, l->domain);
        db_put_u64(s, after);
    }
    int row;
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        uint8_t of[32];
        if (row < 0) {
            rc = -1;
            break;
        }
        if (!page_has_room(&p)) {
            more = true;
            break;
        }
        uint64_t id = db_get_u64(s), kind = db_get_u64(s);
        db_get_blob(s, of, 32);
        enum outbox_state state = (enum outbox_state)db_get_most(s, OUTBOX_HELD);
        const char *note = db_get_text(s);
        json_t *item = json_pack(
            "{s:s, s:o, s:s, s:o}", "kind", kind == OUTBOX_REDEEM ? "redeem" : "submit", "of",
            out_hex(of, 32), "state", outbox_state_name(state), "waiting", out_text_or_null(note));
        json_object_set_new(item, "createdMs", out_u64(db_get_u64(s)));
        json_object_set_new(item, "transactions", transactions_json(db, id));
        json_array_append_new(p.items, item);
        snprintf(p.next, sizeof(p.next), "%llu", (unsigned long long)id);
    }
    if (s && db_end_checked(s, err) != 0)
        rc = -1;
    ledger_reader_done(l, db);
    return page_end(&p, rc, more);
}

/* ---- adapters and Datanets ------------------------------------------------------------------ */

/* seq, id, manifest_hash, manifest, and a flag or time; the manifest itself is the answer. */
static json_t *manifests(struct ledger *l, const struct ledger_filter *f, bool datanets,
                         struct err *err)
{
    struct page p;
    uint64_t after;
    bool more = false;
    bool any_owner = !(f && f->creator), any_id = datanets || !(f && f->adapter);
    if (page_begin(&p, f, err) != 0 || cursor_u64(f, &after, err) != 0) {
        json_decref(p.items);
        return NULL;
    }
    struct db *db = ledger_reader(l, err);
    int rc = db ? 0 : -1;
    struct db_stmt *s = NULL;
    struct buf text = BUF_INIT;
    if (rc == 0) {
        s = db_stmt(db, datanets
                            ? "SELECT seq, id, manifest_hash, manifest, 0 FROM datanet "
                              "WHERE seq > ? AND (? OR owner = ?) AND (? OR id = ?) ORDER BY seq"
                            : "SELECT seq, id, manifest_hash, manifest, retired FROM adapter "
                              "WHERE seq > ? AND (? OR creator = ?) AND (? OR id = ?) "
                              "ORDER BY seq");
        db_put_u64(s, after);
        db_put_u64(s, any_owner);
        db_put_blob(s, any_owner ? NULL : f->creator->bytes, any_owner ? 0 : 20);
        db_put_u64(s, any_id);
        db_put_blob(s, any_id ? NULL : f->adapter->bytes, any_id ? 0 : 32);
    }
    int row;
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        uint8_t id[32], hash[32];
        if (row < 0) {
            rc = -1;
            break;
        }
        if (!page_has_room(&p)) {
            more = true;
            break;
        }
        uint64_t seq = db_get_u64(s);
        db_get_blob(s, id, 32);
        db_get_blob(s, hash, 32);
        buf_reset(&text);
        db_get_bytes(s, &text);
        bool retired = db_get_u64(s) != 0;
        json_t *manifest = json_loadb(buf_cstr(&text), text.len, 0, NULL);
        if (!manifest) {
            rc = err_set(err, ERR_CORRUPT, "a stored manifest is not JSON");
            break;
        }
        json_t *item = json_pack("{s:o, s:o, s:o}", datanets ? "datanetId" : "adapterId",
                                 out_hex(id, 32), "manifestHash", out_hex(hash, 32), "manifest",
                                 manifest);
        if (!datanets)
            json_object_set_new(item, "retired", json_boolean(retired));
        json_array_append_new(p.items, item);
        snprintf(p.next, sizeof(p.next), "%llu", (unsigned long long)seq);
    }
    if (s && db_end_checked(s, err) != 0)
        rc = -1;
    buf_release(&text);
    ledger_reader_done(l, db);
    return page_end(&p, rc, more);
}

json_t *ledger_query_adapters(struct ledger *l, const struct ledger_filter *f, struct err *err)
{
    return manifests(l, f, false, err);
}

json_t *ledger_query_datanets(struct ledger *l, const struct ledger_filter *f, struct err *err)
{
    return manifests(l, f, true, err);
}
