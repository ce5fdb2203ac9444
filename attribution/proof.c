/* proof: the ways from a receipt and from a payout to a root that a contract holds.
 *
 * Trees aren't stored: a receipts tree is built again from the batch's receipt hashes, a payout
 * tree from the leaves in the batch's file. Both take a few milliseconds for a thousand leaves, and
 * what is proven is what was sealed, not a copy that could differ from it. */
#include "attribution/attribution.h"
#include "attribution/json_out.h"
#include "attribution/ledger.h"
#include "attribution/merkle.h"
#include "attribution/query.h"
#include "node/base/buf.h"

#include <stdlib.h>
#include <string.h>

static int batch_by_row(struct db *db, struct signed_batch *out, uint64_t batch_row,
                        struct err *err)
{
    struct db_stmt *s = db_stmt(db, "SELECT " BATCH_COLUMNS BATCH_FROM "WHERE b.id = ?");
    db_put_u64(s, batch_row);
    int row = db_step(s, err);
    if (row == 1)
        batch_read(s, out);
    return db_end_checked(s, err) != 0 || row != 1 ? -1 : 0;
}

/* The leaves of a batch's receipts tree, in order. */
static int receipt_leaves(struct db *db, const struct signed_batch *b, struct merkle_node *out,
                          struct err *err)
{
    struct db_stmt *s = db_stmt(
        db, "SELECT hash, position FROM receipt WHERE batch = ? ORDER BY position");
    db_put_u64(s, b->row);
    uint32_t n = 0;
    int row;
    while ((row = db_step(s, err)) == 1 && n < b->batch.leaf_count) {
        uint8_t hash[32];
        db_get_blob(s, hash, 32);
        if (db_get_u64(s) != n)
            break;
        out[n] = merkle_receipt_leaf(n, hash);
        n++;
    }
    if (db_end_checked(s, err) != 0 || row < 0)
        return -1;
    if (row == 1 || n != b->batch.leaf_count)
        return err_set(err, ERR_CORRUPT, "batch %llu has not the receipts it was sealed with",
                       (unsigned long long)b->batch.seq);
    return 0;
}

static int add_receipt_proof(struct db *db, const struct signed_receipt *r, json_t *out,
                             struct err *err)
{
    struct signed_batch b;
    struct merkle tree;
    struct merkle_node proof[MERKLE_PROOF_MAX];
    if (batch_by_row(db, &b, r->batch_row, err) != 0)
        return -1;
    struct merkle_node *leaves = xcalloc(b.batch.leaf_count, sizeof(*leaves));
    int rc = receipt_leaves(db, &b, leaves, err);
    if (rc == 0) {
        merkle_init(&tree, leaves, b.batch.leaf_count, false);
        size_t n = merkle_proof(&tree, r->position, proof);
        json_t *siblings = json_array();
        for (size_t i = 0; i < n; i++)
            json_array_append_new(siblings, out_hex(proof[i].bytes, 32));
        json_object_set_new(out, "batch", query_batch_json(db, &b));
        json_object_set_new(out, "position", out_u64(r->position));
        json_object_set_new(out, "leaf", out_hex(leaves[r->position].bytes, 32));
        json_object_set_new(out, "proof", siblings);
        merkle_release(&tree);
    }
    free(leaves);
    return rc;
}

json_t *ledger_query_receipt_proof(struct ledger *l, const uint8_t id[32], struct err *err)
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
    if (found == 1 && query_chain_of_receipt(db, &r, &chain, err) == 0) {
        out = json_pack("{s:o, s:n, s:n, s:n, s:n}", "receipt", receipt_to_json(&r, &chain),
                        "batch", "position", "leaf", "proof");
        if (r.batch_row && add_receipt_proof(db, &r, out, err) != 0) {
            json_decref(out);
            out = NULL;
        }
    }
    ledger_reader_done(l, db);
    return out;
}

static json_t *splits_json(struct ledger *l, const uint8_t id[32])
{
    struct adapter_id adapter;
    memcpy(adapter.bytes, id, 32);
    struct adapter_entry *e = adapter_table_by_id(l->adapters, adapter);
    if (!e)
        return json_null();
    json_t *payees = json_array(), *bps = json_array(), *nets = json_array(),
           *net_bps = json_array();
    for (uint32_t i = 0; i < e->facts.n_splits; i++) {
        json_array_append_new(payees, out_hex(e->facts.splits[i].payee.bytes, 20));
        json_array_append_new(bps, out_u64(e->facts.splits[i].bps));
    }
    for (uint32_t i = 0; i < e->facts.n_datanets; i++) {
        json_array_append_new(nets, out_hex(e->facts.datanets[i].id.bytes, 32));
        json_array_append_new(net_bps, out_u64(e->facts.datanets[i].bps));
    }
    return json_pack("{s:o, s:o, s:o, s:o}", "payees", payees, "bps", bps, "datanets", nets,
                     "datanetBps", net_bps);
}

json_t *ledger_query_payout_proof(struct ledger *l, enum payout_kind kind, const uint8_t id[32],
                                  uint16_t position, int64_t seq, struct err *err)
{
    struct signed_batch b;
    struct payout *leaves = NULL, wanted = {.kind = kind, .position = position};
    struct payout_node siblings[PAYOUT_PROOF_MAX];
    size_t n = 0, at = 0;
    json_t *out = NULL;
    memcpy(wanted.id, id, 32);
    struct db *db = ledger_reader(l, err);
    if (!db)
        return NULL;
    struct db_stmt *s = db_stmt(db, "SELECT " BATCH_COLUMNS BATCH_FROM
                                    "WHERE b.domain = ? AND CASE WHEN ? THEN b.state = 3 "
                                    "ELSE b.seq = ? END ORDER BY b.seq DESC LIMIT 1");
    db_put_u64(s, l->domain);
    db_put_u64(s, seq < 0);
    db_put_u64(s, seq < 0 ? 0 : (uint64_t)seq);
    int row = db_step(s, err);
    if (row == 1)
        batch_read(s, &b);
    if (db_end_checked(s, err) != 0)
        row = -1;
    if (row == 0)
        err_set(err, seq < 0 ? ERR_BUSY : ERR_NOT_FOUND,
                seq < 0 ? "no batch is final yet" : "there is no batch %lld", (long long)seq);
    if (row == 1 && batch_file_payouts(db, b.row, &leaves, &n, err) == 0) {
        while (at < n && payout_compare(&leaves[at], &wanted) != 0)
            at++;
        if (at == n) {
            err_set(err, ERR_NOT_FOUND, "batch %llu pays nothing to %s at position %u",
                    (unsigned long long)b.batch.seq, payout_kind_name(kind), position);
        } else {
            size_t depth = payout_proof(siblings, leaves, n, at);
            json_t *list = json_array();
            for (size_t i = 0; i < depth; i++)
                json_array_append_new(list,
                                      json_pack("{s:o, s:o}", "hash", out_hex(siblings[i].hash, 32),
                                                "sum", out_amount(siblings[i].sum)));
            out = json_pack("{s:o, s:{s:o, s:o, s:i, s:i}, s:{s:o, s:o, s:o}, s:o}", "batch",
                            query_batch_json(db, &b), "payout", "amount",
                            out_amount(leaves[at].amount), "id", out_hex(id, 32), "kind", (int)kind,
                            "position", (int)position, "proof", "index", out_u64(at), "leafCount",
                            out_u64(n), "siblings", list, "splits",
                            kind == PAYOUT_ADAPTER ? splits_json(l, id) : json_null());
        }
    }
    free(leaves);
    ledger_reader_done(l, db);
    return out;
}
