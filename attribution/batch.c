/* batch: from covered receipts to a signed batch, in one transaction.
 *
 *     channels        r0 r1 r2 r3 | r4 r5 r6          |: sealed_index, where the last batch stopped
 *                                   ~~~~~ taken: a prefix of what is left, as far as the payer's
 * money receipts tree   leaf i = (i, receiptHash), channel after channel, each in index order
 *     payouts         payout.sealed += what the taken receipts pay; all rows together are the
 * leaves vouchers        one per house channel, naming the last receipt taken: then Escrow's
 * redeemed value is that receipt's channelTotal, and committed <= redeemed holds outbox redeem rows
 * first, the submit row after them
 *
 * One database transaction holds all of it. A crash before its commit leaves the receipts
 * unsealed, after it the batch waits in the outbox; there is nothing between.
 *
 * Who blocks whom. `committed` counts only sealed receipts, and receipts are sealed only as far as
 * their payer's money is known to go, so a payer without money keeps back its own channel and
 * nobody else's. While the chain has not told what the house account holds, its receipts are sealed
 * on trust: it is the operator's own account, and a deposit mends it.
 *
 * Fault points: seal.begin, seal.middle; then those of the commit (attribution.c). */
#include "attribution/batch.h"

#include "attribution/merkle.h"
#include "attribution/receipt.h"
#include "attribution/voucher.h"
#include "chain/eip712.h"
#include "node/base/buf.h"
#include "node/base/fault.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/sha256.h"
#include "wallet/wallet.h"

#include <stdlib.h>
#include <string.h>

/* ---- sets of payouts ------------------------------------------------------------------------ */

void payout_set_add(struct payout_set *set, const struct payout *p)
{
    if (set->n == set->cap) {
        set->cap = set->cap ? 2 * set->cap : 64;
        set->items = xrealloc_array(set->items, set->cap, sizeof(*set->items));
    }
    set->items[set->n++] = *p;
}

static int by_leaf(const void *a, const void *b)
{
    return payout_compare(a, b);
}

int payout_set_merge(struct payout_set *set, struct err *err)
{
    size_t kept = 0;
    if (set->n > 1)
        qsort(set->items, set->n, sizeof(*set->items), by_leaf);
    for (size_t i = 1; i < set->n; i++) {
        if (payout_compare(&set->items[kept], &set->items[i]) != 0)
            set->items[++kept] = set->items[i];
        else if (amount_add(&set->items[kept].amount, set->items[kept].amount,
                            set->items[i].amount) != 0)
            return err_set(err, ERR_INVALID, "a payout exceeds 128 bits");
    }
    if (set->n > 0)
        set->n = kept + 1;
    return 0;
}

void payout_set_release(struct payout_set *set)
{
    free(set->items);
    memset(set, 0, sizeof(*set));
}

static struct payout operator_leaf(struct address operator_address, struct amount amount)
{
    struct payout p = {.kind = PAYOUT_OPERATOR, .amount = amount};
    memcpy(p.id + 12, operator_address.bytes, 20);
    return p;
}

int payout_set_add_receipt(struct payout_set *set, struct ledger *l, const struct signed_receipt *r,
                           struct err *err)
{
    struct amount parts[2 * MANIFEST_SHARES_MAX];
    struct payout leaf = operator_leaf(r->receipt.operator_address, r->receipt.compute_fee);
    payout_set_add(set, &leaf);
    for (size_t i = 0; i < r->receipt.n_adapters; i++) {
        const struct adapter_share *share = &r->adapters[i];
        if (amount_is_zero(share->royalty))
            continue;
        struct adapter_entry *e = adapter_table_by_id(l->adapters, share->adapter_id);
        if (!e)
            return err_set(err, ERR_CORRUPT, "a receipt pays an adapter that the ledger lost");
        payout_split(parts, share->royalty, e->share_bps, e->n_shares);
        for (size_t j = 0; j < e->n_shares; j++) {
            bool datanet = j >= e->facts.n_splits;
            if (amount_is_zero(parts[j]))
                continue;
            leaf = (struct payout){
                .kind = datanet ? PAYOUT_DATANET : PAYOUT_ADAPTER,
                .position = datanet ? 0 : (uint16_t)j,
                .amount = parts[j],
            };
            memcpy(leaf.id,
                   datanet ? e->facts.datanets[j - e->facts.n_splits].id.bytes : e->id.bytes, 32);
            payout_set_add(set, &leaf);
        }
    }
    return 0;
}

/* ---- choosing receipts ---------------------------------------------------------------------- */

bool batch_is_due(const struct ledger *l, struct unix_ms now)
{
    const struct ledger_seal_policy *p = &l->opt.seal;
    if (!l->has_chain || l->unsealed_receipts == 0)
        return false;
    return l->unsealed_receipts >= p->max_receipts ||
           amount_cmp(l->unsealed_value, p->max_value) >= 0 ||
           clock_apart_ms(now, (struct unix_ms){l->unsealed_oldest_ms}) >= p->max_age_ms;
}

struct prefix { /* what is taken of one channel */
    struct channel_state channel;
    uint64_t sealed_index; /* first receipt not sealed before */
    struct amount redeemed;
    bool is_house;
    uint64_t n;
    uint64_t last_index;
    uint8_t last_hash[32];
    struct amount last_total;
};

struct sealing {
    struct signed_receipt *receipts; /* [n] in the batch's order */
    size_t n, cap;
    struct prefix *prefixes;
    size_t n_prefixes;
    struct amount value;       /* of all receipts taken */
    struct amount house_value; /* of those that the house pays */
};

static void sealing_release(struct sealing *s)
{
    free(s->receipts);
    free(s->prefixes);
}

/* Those that have something to be sealed: the house account's, and of others those whose first
 * receipt that isn't sealed is redeemed. Payers who never pay are many, and stay for ever. */
static int find_channels(struct ledger *l, struct sealing *out, struct err *err)
{
    struct db_stmt *s = db_stmt(
        l->db, "SELECT id, hash, payer, epoch, next_index, head, total, sealed_index, redeemed "
               "FROM channel c WHERE domain = ?1 AND next_index > sealed_index AND (payer = ?2 OR "
               "EXISTS (SELECT 1 FROM receipt r WHERE r.channel = c.id AND r.idx = c.sealed_index "
               "AND r.channel_total <= c.redeemed)) ORDER BY id");
    db_put_u64(s, l->domain);
    db_put_blob(s, l->house.bytes, 20);
    int row;
    while ((row = db_step(s, err)) == 1) {
        if (out->n_prefixes % 64 == 0)
            out->prefixes = xrealloc_array(out->prefixes, out->n_prefixes + 64,
                                           sizeof(*out->prefixes));
        struct prefix *p = &out->prefixes[out->n_prefixes++];
        memset(p, 0, sizeof(*p));
        p->channel.row = db_get_u64(s);
        db_get_blob(s, p->channel.hash.bytes, 32);
        db_get_blob(s, p->channel.payer.bytes, 20);
        p->channel.epoch = db_get_u64(s);
        p->channel.next_index = db_get_u64(s);
        db_get_blob(s, p->channel.head, 32);
        p->channel.total = db_get_amount(s);
        p->sealed_index = db_get_u64(s);
        p->redeemed = db_get_amount(s);
        p->is_house = DIGEST_EQ(p->channel.payer, l->house);
    }
    int rc = db_end_checked(s, err);
    return row < 0 ? -1 : rc;
}

/* Whether the batch may take one more receipt of this value. */
static bool fits(const struct ledger *l, const struct sealing *s, const struct prefix *p,
                 const struct signed_receipt *r, struct amount value)
{
    struct amount total, house;
    if (s->n >= l->opt.seal.max_receipts || amount_add(&total, s->value, value) != 0)
        return false;
    if (s->n > 0 && amount_cmp(total, l->opt.seal.max_value) > 0)
        return false; /* a single receipt above the limit goes alone */
    if (l->facts.known && amount_cmp(total, l->facts.active_stake) > 0)
        return false; /* AttributionLedger: open value <= active stake */
    if (!p->is_house)
        return amount_cmp(r->receipt.channel_total, p->redeemed) <= 0;
    if (!l->facts.known)
        return true; /* the chain hasn't told: on trust */
    return amount_add(&house, s->house_value, value) == 0 &&
           amount_add(&house, house, l->facts.house_owed) == 0 &&
           amount_cmp(house, l->facts.house_balance) <= 0;
}

static int take_prefix(struct ledger *l, struct sealing *out, struct prefix *p, struct err *err)
{
    struct db_stmt *s = db_stmt(l->db, "SELECT " RECEIPT_COLUMNS RECEIPT_FROM
                                       "WHERE r.channel = ? AND r.idx >= ? ORDER BY r.idx");
    db_put_u64(s, p->channel.row);
    db_put_u64(s, p->sealed_index);
    int row, rc = 0;
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        struct signed_receipt r;
        struct amount value;
        rc = row < 0 ? -1 : receipt_read(l->db, s, &r, err);
        if (rc != 0)
            break;
        if (amount_add(&value, r.receipt.compute_fee, r.receipt.royalty) != 0) {
            rc = err_set(err, ERR_CORRUPT, "a stored receipt's fees exceed 128 bits");
            break;
        }
        if (!fits(l, out, p, &r, value))
            break;
        if (out->n == out->cap) {
            out->cap = out->cap ? 2 * out->cap : 256;
            out->receipts = xrealloc_array(out->receipts, out->cap, sizeof(*out->receipts));
        }
        out->receipts[out->n++] = r;
        amount_add(&out->value, out->value, value); /* fits: has added it already */
        if (p->is_house)
            amount_add(&out->house_value, out->house_value, value);
        p->n++;
        p->last_index = r.receipt.index;
        memcpy(p->last_hash, r.hash.bytes, 32);
        p->last_total = r.receipt.channel_total;
    }
    db_end(s);
    return rc;
}

/* ---- the payout tree's new state ------------------------------------------------------------ */

/* payout.sealed += each of the set. */
static int add_sealed(struct ledger *l, const struct payout_set *set, struct err *err)
{
    for (size_t i = 0; i < set->n; i++) {
        const struct payout *p = &set->items[i];
        struct amount sealed = AMOUNT_ZERO;
        struct db_stmt *s = db_stmt(l->db, "SELECT sealed FROM payout WHERE domain = ? AND "
                                           "kind = ? AND id = ? AND position = ?");
        db_put_u64(s, l->domain);
        db_put_u64(s, (uint64_t)p->kind);
        db_put_blob(s, p->id, 32);
        db_put_u64(s, p->position);
        int row = db_step(s, err);
        if (row == 1)
            sealed = db_get_amount(s);
        if (db_end_checked(s, err) != 0 || row < 0)
            return -1;
        if (row == 0)
            return err_set(err, ERR_CORRUPT, "a payout was never earned");
        if (amount_add(&sealed, sealed, p->amount) != 0)
            return err_set(err, ERR_INVALID, "a payout exceeds 128 bits");
        s = db_stmt(l->db, "UPDATE payout SET sealed = ? WHERE domain = ? AND kind = ? AND "
                           "id = ? AND position = ?");
        db_put_amount(s, sealed);
        db_put_u64(s, l->domain);
        db_put_u64(s, (uint64_t)p->kind);
        db_put_blob(s, p->id, 32);
        db_put_u64(s, p->position);
        if (db_run(s, err) != 0)
            return -1;
    }
    return 0;
}

/* The leaves: every row with something sealed, and the operator's in any case, so that a batch of
 * free answers has a tree too. The key order is the leaves' order. */
static int load_leaves(struct ledger *l, struct payout_set *out, struct err *err)
{
    struct db_stmt *s = db_stmt(l->db, "SELECT kind, id, position, sealed FROM payout "
                                       "WHERE domain = ? ORDER BY kind, id, position");
    db_put_u64(s, l->domain);
    int row;
    while ((row = db_step(s, err)) == 1) {
        struct payout p;
        p.kind = (enum payout_kind)db_get_most(s, PAYOUT_DATANET);
        db_get_blob(s, p.id, 32);
        p.position = (uint16_t)db_get_most(s, UINT16_MAX);
        p.amount = db_get_amount(s);
        if (p.kind == PAYOUT_OPERATOR || !amount_is_zero(p.amount))
            payout_set_add(out, &p);
    }
    int rc = db_end_checked(s, err);
    return row < 0 ? -1 : rc;
}

/* ---- the file ------------------------------------------------------------------------------- */

static void write_file(struct ledger *l, const struct sealing *s, const struct batch *b,
                       const struct payout_set *leaves, struct buf *out)
{
    char hex[67], text[AMOUNT_TEXT_BYTES];
    buf_appendf(out, "{\"batch\":{\"chainId\":%llu,\"committed\":\"%s\"",
                (unsigned long long)l->opt.chain.chain_id, amount_format(text, b->committed));
    buf_appendf(out, ",\"ledger\":\"%s\"",
                hex_encode_0x(hex, l->opt.chain.attribution_ledger.bytes, 20));
    buf_appendf(out, ",\"operator\":\"%s\"", hex_encode_0x(hex, b->operator_address.bytes, 20));
    buf_appendf(out, ",\"periodEnd\":%llu,\"periodStart\":%llu,\"prevBatchHash\":\"%s\"",
                (unsigned long long)b->period_end, (unsigned long long)b->period_start,
                hex_encode_0x(hex, b->prev_batch_hash, 32));
    buf_appendf(out, ",\"seq\":%llu},\"payouts\":[", (unsigned long long)b->seq);
    for (size_t i = 0; i < leaves->n; i++) {
        const struct payout *p = &leaves->items[i];
        buf_appendf(out, "%s{\"amount\":\"%s\",\"id\":\"%s\",\"kind\":%d,\"position\":%u}",
                    i ? "," : "", amount_format(text, p->amount), hex_encode_0x(hex, p->id, 32),
                    (int)p->kind, p->position);
    }
    buf_append_str(out, "],\"receipts\":[");
    for (size_t i = 0; i < s->n; i++) {
        if (i > 0)
            buf_append_byte(out, ',');
        receipt_write(&s->receipts[i], &l->opt.chain, out);
    }
    buf_append_str(out, "],\"schema\":\"tributary.batch/1\"}");
}

int batch_file_payouts(struct db *db, uint64_t batch_row, struct payout **out, size_t *n,
                       struct err *err)
{
    struct buf file = BUF_INIT;
    struct db_stmt *s = db_stmt(db, "SELECT file FROM batch WHERE id = ?");
    db_put_u64(s, batch_row);
    int row = db_step(s, err);
    if (row == 1)
        db_get_bytes(s, &file);
    int rc = db_end_checked(s, err);
    *out = NULL;
    *n = 0;
    if (row == 0)
        rc = err_set(err, ERR_NOT_FOUND, "there is no such batch");
    if (row < 0 || rc != 0) {
        buf_release(&file);
        return -1;
    }
    json_t *root = json_loadb(buf_cstr(&file), file.len, JSON_REJECT_DUPLICATES, NULL);
    const json_t *payouts = json_object_get(root, "payouts");
    *n = json_array_size(payouts);
    *out = xcalloc(*n + 1, sizeof(**out));
    bool ok = *n > 0;
    for (size_t i = 0; i < *n && ok; i++) {
        const json_t *item = json_array_get(payouts, i);
        const char *id = json_string_value(json_object_get(item, "id"));
        const char *amount = json_string_value(json_object_get(item, "amount"));
        struct payout *p = &(*out)[i];
        p->kind = (enum payout_kind)json_integer_value(json_object_get(item, "kind"));
        p->position = (uint16_t)json_integer_value(json_object_get(item, "position"));
        ok = id && amount && hex_decode(p->id, 32, id) == 0 &&
             amount_parse(&p->amount, amount) == 0;
    }
    json_decref(root);
    buf_release(&file);
    if (ok)
        return 0;
    free(*out);
    *out = NULL;
    return err_set(err, ERR_CORRUPT, "the file of batch row %llu can't be read",
                   (unsigned long long)batch_row);
}

struct batch_digest batch_hash(const struct batch *b, const struct ledger_chain *chain)
{
    struct eip712_domain domain = receipt_domain(chain);
    return eip712_batch(b, &domain);
}

/* ---- reading batches ------------------------------------------------------------------------ */

void batch_read(struct db_stmt *s, struct signed_batch *out)
{
    struct batch *b = &out->batch;
    memset(out, 0, sizeof(*out));
    out->row = db_get_u64(s);
    db_get_blob(s, b->operator_address.bytes, 20);
    b->seq = db_get_u64(s);
    db_get_blob(s, out->hash.bytes, 32);
    b->leaf_count = (uint32_t)db_get_most(s, UINT32_MAX);
    db_get_blob(s, b->receipts_root, 32);
    db_get_blob(s, b->payout_root, 32);
    b->committed = db_get_amount(s);
    out->value = db_get_amount(s);
    b->period_start = db_get_u64(s);
    b->period_end = db_get_u64(s);
    db_get_blob(s, b->data_hash.bytes, 32);
    db_get_blob(s, b->prev_batch_hash, 32);
    ledger_get_signature(s, &out->signature);
    out->sealed_ms = db_get_u64(s);
    out->state = (enum batch_state)db_get_most(s, BATCH_FINAL);
}

int batch_find(struct db *db, struct signed_batch *out, uint64_t domain, uint64_t seq,
               struct err *err)
{
    struct db_stmt *s = db_stmt(db, "SELECT " BATCH_COLUMNS BATCH_FROM
                                    "WHERE b.domain = ? AND b.seq = ?");
    db_put_u64(s, domain);
    db_put_u64(s, seq);
    int row = db_step(s, err);
    if (row == 1)
        batch_read(s, out);
    return db_end_checked(s, err) != 0 ? -1 : row;
}

/* ---- sealing -------------------------------------------------------------------------------- */

/* The batch before this one: where seq, committed and prevBatchHash go on. */
static int follow_last(struct ledger *l, struct batch *b, struct amount *committed, struct err *err)
{
    struct db_stmt *s = db_stmt(l->db, "SELECT seq, hash, committed FROM batch WHERE domain = ? "
                                       "ORDER BY seq DESC LIMIT 1");
    db_put_u64(s, l->domain);
    int row = db_step(s, err);
    *committed = AMOUNT_ZERO;
    if (row == 1) {
        b->seq = db_get_u64(s) + 1;
        db_get_blob(s, b->prev_batch_hash, 32);
        *committed = db_get_amount(s);
    }
    return db_end_checked(s, err) != 0 || row < 0 ? -1 : 0;
}

static int insert_batch(struct ledger *l, struct signed_batch *b, const struct buf *file,
                        struct err *err)
{
    uint8_t signature[65];
    signature_to_bytes(signature, &b->signature);
    struct db_stmt *s = db_stmt(
        l->db, "INSERT INTO batch(domain, seq, hash, leaf_count, receipts_root, payout_root, "
               "committed, value, period_start, period_end, data_hash, prev_hash, signature, file, "
               "sealed_ms) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
    db_put_u64(s, l->domain);
    db_put_u64(s, b->batch.seq);
    db_put_blob(s, b->hash.bytes, 32);
    db_put_u64(s, b->batch.leaf_count);
    db_put_blob(s, b->batch.receipts_root, 32);
    db_put_blob(s, b->batch.payout_root, 32);
    db_put_amount(s, b->batch.committed);
    db_put_amount(s, b->value);
    db_put_u64(s, b->batch.period_start);
    db_put_u64(s, b->batch.period_end);
    db_put_blob(s, b->batch.data_hash.bytes, 32);
    db_put_blob(s, b->batch.prev_batch_hash, 32);
    db_put_blob(s, signature, 65);
    db_put_blob(s, file->data, file->len);
    db_put_u64(s, b->sealed_ms);
    if (db_run(s, err) != 0)
        return -1;
    b->row = db_last_rowid(l->db);
    return 0;
}

static int mark_sealed(struct ledger *l, const struct sealing *taken, uint64_t batch_row,
                       struct err *err)
{
    for (size_t i = 0; i < taken->n; i++) {
        struct db_stmt *s = db_stmt(l->db,
                                    "UPDATE receipt SET batch = ?, position = ? WHERE id = ?");
        db_put_u64(s, batch_row);
        db_put_u64(s, i);
        db_put_u64(s, taken->receipts[i].row);
        if (db_run(s, err) != 0)
            return -1;
    }
    for (size_t i = 0; i < taken->n_prefixes; i++) {
        const struct prefix *p = &taken->prefixes[i];
        if (p->n == 0)
            continue;
        struct db_stmt *s = db_stmt(l->db, "UPDATE channel SET sealed_index = ? WHERE id = ?");
        db_put_u64(s, p->sealed_index + p->n);
        db_put_u64(s, p->channel.row);
        if (db_run(s, err) != 0)
            return -1;
        if (p->is_house &&
            voucher_sign(l, &p->channel, p->last_index, p->last_hash, p->last_total, err) != 0)
            return -1;
    }
    return 0;
}

static int seal_taken(struct ledger *l, const struct sealing *taken, struct err *err)
{
    struct signed_batch b = {.value = taken->value, .sealed_ms = clock_unix_ms().ms};
    struct payout_set earned = {NULL, 0, 0}, leaves = {NULL, 0, 0};
    struct buf file = BUF_INIT;
    struct merkle tree = {0, NULL, NULL};
    struct merkle_node *nodes = xcalloc(taken->n, sizeof(*nodes));
    struct amount before, sum;
    int rc = -1;

    b.batch.operator_address = l->operator_address;
    b.batch.leaf_count = (uint32_t)taken->n;
    b.batch.period_start = UINT64_MAX;
    if (follow_last(l, &b.batch, &before, err) != 0)
        goto out;
    if (amount_add(&b.batch.committed, before, taken->value) != 0) {
        err_set(err, ERR_INVALID, "the committed value exceeds 128 bits");
        goto out;
    }
    for (size_t i = 0; i < taken->n; i++) {
        const struct signed_receipt *r = &taken->receipts[i];
        nodes[i] = merkle_receipt_leaf((uint32_t)i, r->hash.bytes);
        if (r->receipt.timestamp_ms < b.batch.period_start)
            b.batch.period_start = r->receipt.timestamp_ms;
        if (r->receipt.timestamp_ms > b.batch.period_end)
            b.batch.period_end = r->receipt.timestamp_ms;
        if (payout_set_add_receipt(&earned, l, r, err) != 0)
            goto out;
        if (earned.n > 65536 && payout_set_merge(&earned, err) != 0)
            goto out; /* bounded by the number of leaves, not by that of receipts */
    }
    merkle_init(&tree, nodes, taken->n, false);
    memcpy(b.batch.receipts_root, merkle_root(&tree).bytes, 32);
    if (payout_set_merge(&earned, err) != 0 || add_sealed(l, &earned, err) != 0 ||
        load_leaves(l, &leaves, err) != 0 ||
        payout_root(b.batch.payout_root, &sum, leaves.items, leaves.n, err) != 0)
        goto out;
    if (amount_cmp(sum, b.batch.committed) != 0) {
        err_set(err, ERR_CORRUPT, "the payouts don't sum to what the batches commit to");
        goto out;
    }
    write_file(l, taken, &b.batch, &leaves, &file);
    b.batch.data_hash = sha256(file.data, file.len);
    b.hash = batch_hash(&b.batch, &l->opt.chain);
    if (wallet_sign_batch(l->opt.wallet, l->signer_key, &b.signature, &b.hash, err) != 0 ||
        insert_batch(l, &b, &file, err) != 0)
        goto out;
    FAULT_POINT("seal.middle");
    if (mark_sealed(l, taken, b.row, err) != 0)
        goto out;
    struct db_stmt *s = db_stmt(
        l->db, "INSERT INTO outbox(domain, kind, batch, created_ms) VALUES(?, 2, ?, ?)");
    db_put_u64(s, l->domain);
    db_put_u64(s, b.row);
    db_put_u64(s, b.sealed_ms);
    if (db_run(s, err) != 0)
        goto out;
    char value[AMOUNT_TEXT_BYTES];
    log_info("ledger", "sealed batch %llu: %zu receipts, value %s", (unsigned long long)b.batch.seq,
             taken->n, amount_format(value, taken->value));
    rc = 0;
out:
    merkle_release(&tree);
    free(nodes);
    payout_set_release(&earned);
    payout_set_release(&leaves);
    buf_release(&file);
    return rc;
}

int batch_seal(struct ledger *l, uint32_t *sealed, struct err *err)
{
    struct sealing taken = {.value = AMOUNT_ZERO};
    *sealed = 0;
    FAULT_POINT("seal.begin");
    int rc = find_channels(l, &taken, err);
    for (size_t i = 0; i < taken.n_prefixes && rc == 0; i++)
        rc = take_prefix(l, &taken, &taken.prefixes[i], err);
    if (rc == 0 && taken.n > 0) {
        rc = seal_taken(l, &taken, err);
        if (rc == 0) {
            *sealed = (uint32_t)taken.n;
            /* Until the chain tells again; its answer counts only if it knows this batch. */
            if (amount_add(&l->facts.house_owed, l->facts.house_owed, taken.house_value) != 0)
                l->facts.house_owed = AMOUNT_MAX;
        }
    }
    sealing_release(&taken);
    return rc;
}
