/* check: the books, done again from the receipts alone.
 *
 * Everything else in the database is derived, so a second derivation must give the same. In one
 * snapshot:
 *
 *     each channel     indices without gaps, hashes chained, digest and signature right, totals
 *                      running, royalties as the manifests' rates say, head and total as stored,
 *                      sealed receipts a prefix
 *     each voucher     its value is the total of the receipt it names; the payer signed it
 *     each batch       seq and prevBatchHash chained, its receipts complete, both roots, committed,
 *                      dataHash and file, digest, signature
 *     each manifest    hashes to what was put
 *     payouts          earned and sealed as summed here; sealed >= submitted >= final >= claimed
 *     with an RPC      AttributionLedger's head is our batch, committed <= redeemed, every
 * channel's redeemed value is a voucher of ours, claims within what is final
 *
 * It goes on after a difference and lists what it finds, because a second one often explains the
 * first. */
#include "attribution/attribution.h"

#include "attribution/batch.h"
#include "attribution/json_out.h"
#include "attribution/ledger.h"
#include "attribution/merkle.h"
#include "attribution/meter.h"
#include "attribution/receipt.h"
#include "attribution/settlement.h"
#include "attribution/voucher.h"
#include "node/base/buf.h"
#include "node/base/sha256.h"
#include "wallet/wallet.h"

#include <stdlib.h>
#include <string.h>

enum { DIFFERENCES_MAX = 100 };

struct books {
    struct ledger *l;
    struct db *db;
    uint64_t domain;
    struct ledger_chain chain;
    struct address operator_address;
    struct payout_set earned, sealed;
    uint64_t n_receipts, n_channels, n_vouchers, n_batches, n_differences;
    json_t *differences;
    char first[ERR_MESSAGE_BYTES];
};

static void differ(struct books *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void differ(struct books *b, const char *fmt, ...)
{
    char text[ERR_MESSAGE_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (b->n_differences == 0)
        memcpy(b->first, text, sizeof(b->first));
    if (b->n_differences++ < DIFFERENCES_MAX)
        json_array_append_new(b->differences, json_string(text));
}

/* ---- receipts ------------------------------------------------------------------------------- */

struct channel_row {
    uint64_t row, epoch, next_index, sealed_index;
    uint8_t hash[32], head[32];
    struct address payer;
    struct amount total;
};

static void check_royalties(struct books *b, const struct signed_receipt *r)
{
    struct meter_adapter parts[USAGE_ADAPTERS_MAX] = {{.weight_bps = 0}};
    struct ledger_rates no_fee = {AMOUNT_ZERO, AMOUNT_ZERO};
    struct ledger_price price;
    struct sha256 h;
    unsigned long long id = r->row;
    sha256_init(&h);
    for (uint32_t i = 0; i < r->receipt.n_adapters; i++) {
        struct adapter_entry *e = adapter_table_by_id(b->l->adapters, r->adapters[i].adapter_id);
        parts[i].weight_bps = r->adapters[i].bps;
        if (bytes32_is_zero(r->adapters[i].adapter_id.bytes))
            continue;
        if (!e) {
            differ(b, "receipt row %llu pays an adapter that the ledger doesn't have", id);
            return;
        }
        parts[i].prompt_per_1k = e->facts.royalty_prompt_per_1k;
        parts[i].completion_per_1k = e->facts.royalty_completion_per_1k;
        sha256_update(&h, e->attribution, e->n_attribution);
    }
    struct sha256_digest attribution = sha256_final(&h);
    if (!DIGEST_EQ(attribution, r->receipt.attribution_hash))
        differ(b, "receipt row %llu has another attributionHash", id);
    if (meter_price(&price, &no_fee, parts, (uint32_t)r->receipt.n_adapters,
                    r->receipt.prompt_tokens, r->receipt.completion_tokens, NULL) != 0) {
        differ(b, "receipt row %llu can't be priced", id);
        return;
    }
    bool same = amount_cmp(price.royalty, r->receipt.royalty) == 0;
    for (uint32_t i = 0; i < r->receipt.n_adapters; i++)
        same = same && amount_cmp(price.adapter_royalty[i], r->adapters[i].royalty) == 0;
    if (!same)
        differ(b, "receipt row %llu has royalties that its manifests' rates don't give", id);
}

static void check_receipt(struct books *b, const struct channel_row *c,
                          const struct signed_receipt *r, uint64_t index, const uint8_t prev[32],
                          struct amount *total)
{
    unsigned long long id = r->row;
    struct receipt fields = r->receipt;
    struct address signer;
    struct amount value;
    fields.adapters = r->adapters;
    if (r->receipt.index != index)
        differ(b, "channel row %llu has a gap before index %llu", (unsigned long long)c->row,
               (unsigned long long)r->receipt.index);
    if (memcmp(r->receipt.prev_receipt_hash, prev, 32) != 0)
        differ(b, "receipt row %llu doesn't follow the one before it", id);
    struct receipt_digest hash = receipt_hash(&fields, &b->chain);
    if (!DIGEST_EQ(hash, r->hash))
        differ(b, "receipt row %llu has another hash than its fields give", id);
    if (wallet_recover_receipt(&signer, &r->signature, &hash, NULL) != 0 ||
        !address_eq(signer, r->signer))
        differ(b, "receipt row %llu isn't signed by its signer", id);
    if (amount_add(&value, r->receipt.compute_fee, r->receipt.royalty) != 0 ||
        amount_add(total, *total, value) != 0 || amount_cmp(*total, r->receipt.channel_total) != 0)
        differ(b, "receipt row %llu has a channelTotal that the fees don't give", id);
    if ((r->batch_row != 0) != (index < c->sealed_index))
        differ(b, "receipt row %llu is %ssealed, but the channel is sealed up to index %llu", id,
               r->batch_row ? "" : "not ", (unsigned long long)c->sealed_index);
    check_royalties(b, r);
}

static int check_channel(struct books *b, const struct channel_row *c, struct err *err)
{
    struct db_stmt *s = db_stmt(b->db, "SELECT " RECEIPT_COLUMNS RECEIPT_FROM
                                       "WHERE r.channel = ? ORDER BY r.idx");
    struct amount total = AMOUNT_ZERO;
    uint8_t prev[32] = {0};
    uint64_t index = 0;
    int row, rc = 0;
    db_put_u64(s, c->row);
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        struct signed_receipt r;
        if (row < 0 || receipt_read(b->db, s, &r, err) != 0) {
            rc = -1;
            break;
        }
        check_receipt(b, c, &r, index, prev, &total);
        memcpy(prev, r.hash.bytes, 32);
        index = r.receipt.index + 1;
        rc = payout_set_add_receipt(&b->earned, b->l, &r, err);
        if (rc == 0 && b->earned.n > 65536)
            rc = payout_set_merge(&b->earned, err);
        b->n_receipts++;
    }
    if (db_end_checked(s, err) != 0)
        rc = -1;
    if (rc == 0 && (index != c->next_index || memcmp(prev, c->head, 32) != 0 ||
                    amount_cmp(total, c->total) != 0))
        differ(b, "channel row %llu has another head, length or total than its receipts",
               (unsigned long long)c->row);
    struct channel_id name = channel_id_of(c->payer, b->operator_address, c->epoch);
    if (memcmp(name.bytes, c->hash, 32) != 0)
        differ(b, "channel row %llu has another name than payer, operator and epoch give",
               (unsigned long long)c->row);
    return rc;
}

static int check_channels(struct books *b, struct err *err)
{
    struct db_stmt *s = db_stmt(
        b->db, "SELECT id, epoch, next_index, sealed_index, hash, head, payer, total "
               "FROM channel WHERE domain = ? ORDER BY id");
    int row, rc = 0;
    db_put_u64(s, b->domain);
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        struct channel_row c = {.row = 0};
        if (row < 0) {
            rc = -1;
            break;
        }
        c.row = db_get_u64(s);
        c.epoch = db_get_u64(s);
        c.next_index = db_get_u64(s);
        c.sealed_index = db_get_u64(s);
        db_get_blob(s, c.hash, 32);
        db_get_blob(s, c.head, 32);
        db_get_blob(s, c.payer.bytes, 20);
        c.total = db_get_amount(s);
        rc = check_channel(b, &c, err);
        b->n_channels++;
    }
    return db_end_checked(s, err) != 0 ? -1 : rc;
}

static int check_vouchers(struct books *b, struct err *err)
{
    uint64_t *rows = NULL;
    size_t n = 0;
    struct db_stmt *s = db_stmt(b->db, "SELECT v.id FROM voucher v JOIN channel c ON "
                                       "c.id = v.channel WHERE c.domain = ? ORDER BY v.id");
    int row, rc = 0;
    db_put_u64(s, b->domain);
    while ((row = db_step(s, err)) == 1) {
        if (n % 256 == 0)
            rows = xrealloc_array(rows, n + 256, sizeof(*rows));
        rows[n++] = db_get_u64(s);
    }
    if (db_end_checked(s, err) != 0 || row < 0)
        rc = -1;
    for (size_t i = 0; i < n && rc == 0; i++) {
        struct stored_voucher v;
        struct address signer;
        struct amount total = AMOUNT_ZERO;
        struct eip712_domain domain = voucher_domain(&b->chain);
        unsigned long long id = rows[i];
        uint8_t hash[32] = {0};
        if (voucher_load(b->db, &v, rows[i], err) != 1) {
            rc = -1;
            break;
        }
        struct voucher_digest digest = eip712_voucher(&v.voucher, &domain);
        if (wallet_recover_voucher(&signer, &v.signature, &digest, NULL) != 0 ||
            !address_eq(signer, v.voucher.payer))
            differ(b, "voucher row %llu isn't signed by its payer", id);
        s = db_stmt(b->db, "SELECT r.hash, r.channel_total FROM receipt r JOIN channel c ON "
                           "c.id = r.channel WHERE c.domain = ? AND c.hash = ? AND r.idx = ?");
        db_put_u64(s, b->domain);
        db_put_blob(s, v.voucher.channel, 32);
        db_put_u64(s, v.index);
        row = db_step(s, err);
        if (row == 1) {
            db_get_blob(s, hash, 32);
            total = db_get_amount(s);
        }
        if (db_end_checked(s, err) != 0 || row < 0)
            rc = -1;
        if (memcmp(hash, v.voucher.last_receipt_hash, 32) != 0 ||
            amount_cmp(total, v.voucher.value_aggregate) != 0)
            differ(b, "voucher row %llu isn't for the total of the receipt it names", id);
        b->n_vouchers++;
    }
    free(rows);
    return rc;
}

/* ---- batches -------------------------------------------------------------------------------- */

/* The receipts of a batch: its leaves (free them, also after failure), its value, its period; and
 * what they pay, into b->sealed. leafCount is one more thing to check and sizes nothing. */
static int sum_receipts(struct books *b, const struct signed_batch *batch,
                        struct merkle_node **leaves, uint32_t *n_leaves, struct amount *value,
                        struct err *err)
{
    struct db_stmt *s = db_stmt(b->db, "SELECT " RECEIPT_COLUMNS RECEIPT_FROM
                                       "WHERE r.batch = ? ORDER BY r.position");
    unsigned long long seq = batch->batch.seq;
    uint64_t first = UINT64_MAX, last = 0;
    uint32_t n = 0;
    int row, rc = 0;
    *value = AMOUNT_ZERO;
    db_put_u64(s, batch->row);
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        struct signed_receipt r;
        if (row < 0 || receipt_read(b->db, s, &r, err) != 0) {
            rc = -1;
            break;
        }
        if (n % 1024 == 0)
            *leaves = xrealloc_array(*leaves, n + 1024, sizeof(**leaves));
        (*leaves)[n] = merkle_receipt_leaf(n, r.hash.bytes);
        if (r.position != n++)
            differ(b, "batch %llu has a gap before position %u", seq, r.position);
        if (amount_add(value, *value, r.receipt.compute_fee) != 0 ||
            amount_add(value, *value, r.receipt.royalty) != 0)
            differ(b, "batch %llu is worth more than 128 bits", seq);
        if (r.receipt.timestamp_ms < first)
            first = r.receipt.timestamp_ms;
        if (r.receipt.timestamp_ms > last)
            last = r.receipt.timestamp_ms;
        rc = payout_set_add_receipt(&b->sealed, b->l, &r, err);
        if (rc == 0 && b->sealed.n > 65536)
            rc = payout_set_merge(&b->sealed, err);
    }
    if (db_end_checked(s, err) != 0)
        rc = -1;
    if (rc == 0 && n != batch->batch.leaf_count)
        differ(b, "batch %llu has %u receipts, not %u", seq, n, batch->batch.leaf_count);
    *n_leaves = n;
    if (rc == 0 && (first != batch->batch.period_start || last != batch->batch.period_end))
        differ(b, "batch %llu has another period than its receipts", seq);
    return rc;
}

static int check_batch(struct books *b, const struct signed_batch *batch, uint64_t seq,
                       const uint8_t prev[32], struct amount *committed, struct err *err)
{
    struct merkle_node *leaves = NULL;
    uint32_t n_leaves = 0;
    const struct batch *f = &batch->batch;
    unsigned long long name = f->seq;
    struct amount value, sum;
    struct address signer;
    struct merkle tree;
    uint8_t root[32];
    int rc = sum_receipts(b, batch, &leaves, &n_leaves, &value, err);
    if (rc == 0)
        rc = payout_set_merge(&b->sealed, err);
    if (rc != 0) {
        free(leaves);
        return -1;
    }
    if (f->seq != seq || memcmp(f->prev_batch_hash, prev, 32) != 0)
        differ(b, "batch %llu doesn't follow the one before it", name);
    if (amount_add(committed, *committed, value) != 0 ||
        amount_cmp(*committed, f->committed) != 0 || amount_cmp(value, batch->value) != 0)
        differ(b, "batch %llu commits to another value than its receipts have", name);
    if (n_leaves > 0) {
        merkle_init(&tree, leaves, n_leaves, false);
        if (memcmp(merkle_root(&tree).bytes, f->receipts_root, 32) != 0)
            differ(b, "batch %llu has another receiptsRoot than its receipts give", name);
        merkle_release(&tree);
    }
    free(leaves);
    /* Leaves worth nothing aren't leaves, but the operator's is always there. */
    struct payout_set kept = {NULL, 0, 0};
    for (size_t i = 0; i < b->sealed.n; i++) {
        const struct payout *p = &b->sealed.items[i];
        if (p->kind == PAYOUT_OPERATOR || !amount_is_zero(p->amount))
            payout_set_add(&kept, p);
    }
    if (kept.n == 0 || payout_root(root, &sum, kept.items, kept.n, NULL) != 0 ||
        memcmp(root, f->payout_root, 32) != 0 || amount_cmp(sum, f->committed) != 0)
        differ(b, "batch %llu has another payoutRoot than its receipts give", name);
    struct payout *stored = NULL;
    size_t n_stored = 0;
    if (batch_file_payouts(b->db, batch->row, &stored, &n_stored, NULL) != 0 || n_stored != kept.n)
        differ(b, "the file of batch %llu has other payouts", name);
    for (size_t i = 0; stored && n_stored == kept.n && i < n_stored; i++) {
        if (payout_compare(&stored[i], &kept.items[i]) != 0 ||
            amount_cmp(stored[i].amount, kept.items[i].amount) != 0)
            differ(b, "the file of batch %llu has another payout at leaf %zu", name, i);
    }
    free(stored);
    payout_set_release(&kept);
    struct buf file = BUF_INIT;
    struct db_stmt *s = db_stmt(b->db, "SELECT file FROM batch WHERE id = ?");
    db_put_u64(s, batch->row);
    if (db_step(s, err) == 1)
        db_get_bytes(s, &file);
    rc = db_end_checked(s, err);
    struct sha256_digest data = sha256(file.data, file.len);
    buf_release(&file);
    if (!DIGEST_EQ(data, f->data_hash))
        differ(b, "batch %llu has another dataHash than its file", name);
    struct batch_digest hash = batch_hash(f, &b->chain);
    if (!DIGEST_EQ(hash, batch->hash))
        differ(b, "batch %llu has another hash than its fields give", name);
    if (wallet_recover_batch(&signer, &batch->signature, &hash, NULL) != 0 ||
        (!b->l->opt.read_only && !address_eq(signer, b->l->signer)))
        differ(b, "batch %llu isn't signed by the signer", name);
    b->n_batches++;
    return rc;
}

static int check_batches(struct books *b, struct err *err)
{
    struct db_stmt *s = db_stmt(b->db, "SELECT count(*) FROM batch WHERE domain = ?");
    db_put_u64(s, b->domain);
    int row = db_step(s, err);
    uint64_t n = row == 1 ? db_get_u64(s) : 0;
    if (db_end_checked(s, err) != 0 || row < 0)
        return -1;
    uint8_t prev[32] = {0};
    struct amount committed = AMOUNT_ZERO;
    for (uint64_t seq = 0; seq < n; seq++) {
        struct signed_batch batch;
        int found = batch_find(b->db, &batch, b->domain, seq, err);
        if (found < 0)
            return -1;
        if (found == 0) {
            differ(b, "there is no batch %llu of %llu", (unsigned long long)seq,
                   (unsigned long long)n);
            return 0;
        }
        if (check_batch(b, &batch, seq, prev, &committed, err) != 0)
            return -1;
        memcpy(prev, batch.hash.bytes, 32);
    }
    return 0;
}

/* ---- payouts -------------------------------------------------------------------------------- */

static struct amount amount_of_leaf(const struct payout_set *set, const struct payout *leaf)
{
    size_t low = 0, high = set->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = payout_compare(&set->items[middle], leaf);
        if (order == 0)
            return set->items[middle].amount;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return AMOUNT_ZERO;
}

static int check_payouts(struct books *b, struct err *err)
{
    struct db_stmt *s = db_stmt(b->db, "SELECT kind, id, position, earned, sealed, submitted, "
                                       "final, claimed FROM payout WHERE domain = ?");
    if (payout_set_merge(&b->earned, err) != 0 || payout_set_merge(&b->sealed, err) != 0)
        return -1;
    size_t n = 0;
    int row;
    db_put_u64(s, b->domain);
    while ((row = db_step(s, err)) == 1) {
        struct payout leaf = {.position = 0};
        leaf.kind = (enum payout_kind)db_get_most(s, PAYOUT_DATANET);
        db_get_blob(s, leaf.id, 32);
        leaf.position = (uint16_t)db_get_most(s, UINT16_MAX);
        struct amount earned = db_get_amount(s), sealed = db_get_amount(s),
                      submitted = db_get_amount(s), final = db_get_amount(s),
                      claimed = db_get_amount(s);
        char id[67];
        hex_encode_0x(id, leaf.id, 32);
        if (amount_cmp(earned, amount_of_leaf(&b->earned, &leaf)) != 0)
            differ(b, "payout %d %s %u: earned isn't what the receipts sum to", (int)leaf.kind, id,
                   leaf.position);
        if (amount_cmp(sealed, amount_of_leaf(&b->sealed, &leaf)) != 0)
            differ(b, "payout %d %s %u: sealed isn't what the batches sum to", (int)leaf.kind, id,
                   leaf.position);
        if (amount_cmp(sealed, submitted) < 0 || amount_cmp(submitted, final) < 0 ||
            amount_cmp(final, claimed) < 0)
            differ(b, "payout %d %s %u: sealed, submitted, final and claimed don't descend",
                   (int)leaf.kind, id, leaf.position);
        n++;
    }
    int rc = db_end_checked(s, err) != 0 || row < 0 ? -1 : 0;
    if (rc == 0 && n != b->earned.n)
        differ(b, "there are %zu payout rows, the receipts give %zu", n, b->earned.n);
    return rc;
}

/* ---- the chain ------------------------------------------------------------------------------ */

static int check_chain_state(struct books *b, struct rpc *rpc, struct err *err)
{
    struct settlement at = {rpc, b->chain, b->operator_address, b->l->signer};
    struct settlement_head head;
    struct amount redeemed, final_committed;
    uint64_t final_count;
    if (settlement_head(&at, &head, RPC_AT_LATEST, err) != 0 ||
        settlement_redeemed(&at, &redeemed, RPC_AT_LATEST, err) != 0 ||
        settlement_final(&at, &final_count, &final_committed, RPC_AT_LATEST, err) != 0)
        return -1;
    if (head.next > 0) {
        struct signed_batch batch;
        int found = batch_find(b->db, &batch, b->domain, head.next - 1, err);
        if (found < 0)
            return -1;
        if (found == 0 || memcmp(batch.hash.bytes, head.hash, 32) != 0)
            differ(b, "the chain's batch %llu is not ours", (unsigned long long)head.next - 1);
        else if (amount_cmp(batch.batch.committed, head.committed) != 0)
            differ(b, "the chain's committed value is not ours");
    }
    if (amount_cmp(head.committed, redeemed) > 0)
        differ(b, "the chain has committed more than was redeemed");
    struct db_stmt *s = db_stmt(b->db, "SELECT count(*) FROM batch WHERE domain = ? AND "
                                       "state >= 2 AND seq >= ?");
    db_put_u64(s, b->domain);
    db_put_u64(s, head.next);
    int row = db_step(s, err);
    if (row == 1 && db_get_u64(s) > 0)
        differ(b, "a batch is confirmed here that the chain doesn't have");
    if (db_end_checked(s, err) != 0 || row < 0)
        return -1;

    int rc = 0;
    s = db_stmt(b->db, "SELECT payer, epoch, redeemed FROM channel WHERE domain = ?");
    db_put_u64(s, b->domain);
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        struct address payer = {{0}};
        struct amount value, ours;
        uint8_t last[32];
        if (row < 0) {
            rc = -1;
            break;
        }
        db_get_blob(s, payer.bytes, 20);
        uint64_t epoch = db_get_u64(s);
        ours = db_get_amount(s);
        rc = settlement_channel(&at, &value, last, payer, epoch, RPC_AT_LATEST, err);
        if (rc != 0)
            break;
        if (amount_cmp(value, ours) < 0)
            differ(b, "epoch %llu: more is noted as redeemed than the chain says",
                   (unsigned long long)epoch);
        struct db_stmt *v = db_stmt(b->db, "SELECT 1 FROM voucher WHERE value = ? AND "
                                           "last_receipt_hash = ?");
        db_put_amount(v, value);
        db_put_blob(v, last, 32);
        if (!amount_is_zero(value) && db_step(v, NULL) != 1)
            differ(b, "epoch %llu: the chain redeemed a voucher that isn't ours",
                   (unsigned long long)epoch);
        db_end(v);
    }
    if (db_end_checked(s, err) != 0)
        rc = -1;
    for (size_t i = 0; i < b->sealed.n && rc == 0; i++) {
        struct amount claimed;
        rc = settlement_claimed(&at, &claimed, &b->sealed.items[i], RPC_AT_LATEST, err);
        if (rc == 0 && amount_cmp(claimed, b->sealed.items[i].amount) > 0)
            differ(b, "leaf %zu was paid more than it was ever sealed for", i);
    }
    return rc;
}

/* ---- manifests ------------------------------------------------------------------------------ */

/* What splits and payees are taken from is what was put. */
static int check_manifests(struct books *b, struct err *err)
{
    struct db_stmt *s = db_stmt(b->db,
                                "SELECT 'adapter', seq, manifest_hash, manifest FROM adapter "
                                "UNION ALL SELECT 'datanet', seq, manifest_hash, manifest "
                                "FROM datanet ORDER BY 1, 2");
    struct buf text = BUF_INIT;
    int row;
    while ((row = db_step(s, err)) == 1) {
        struct sha256_digest stored, hash;
        const char *kind = db_get_text(s);
        unsigned long long seq = db_get_u64(s);
        db_get_blob(s, stored.bytes, 32);
        buf_reset(&text);
        db_get_bytes(s, &text);
        hash = sha256(text.data, text.len);
        if (!DIGEST_EQ(hash, stored))
            differ(b, "the manifest of %s row %llu has another hash", kind, seq);
    }
    buf_release(&text);
    return db_end_checked(s, err) != 0 || row < 0 ? -1 : 0;
}

/* ---- all of it ------------------------------------------------------------------------------ */

static int check_domain(struct books *b, struct rpc *rpc, struct err *err)
{
    int rc = check_channels(b, err);
    if (rc == 0)
        rc = check_vouchers(b, err);
    if (rc == 0)
        rc = check_batches(b, err);
    if (rc == 0)
        rc = check_payouts(b, err);
    if (rc == 0 && rpc && b->domain == b->l->domain && b->chain.chain_id != 0)
        rc = check_chain_state(b, rpc, err);
    payout_set_release(&b->earned);
    payout_set_release(&b->sealed);
    return rc;
}

static int check_domains(struct books *b, struct rpc *rpc, struct err *err)
{
    uint64_t after = 0;
    for (;;) {
        struct db_stmt *s = db_stmt(b->db,
                                    "SELECT id, chain_id, stake_manager, adapter_registry, escrow, "
                                    "attribution_ledger, operator FROM domain WHERE id > ? "
                                    "ORDER BY id LIMIT 1");
        db_put_u64(s, after);
        int row = db_step(s, err);
        if (row == 1) {
            after = b->domain = db_get_u64(s);
            b->chain.chain_id = db_get_u64(s);
            db_get_blob(s, b->chain.stake_manager.bytes, 20);
            db_get_blob(s, b->chain.adapter_registry.bytes, 20);
            db_get_blob(s, b->chain.escrow.bytes, 20);
            db_get_blob(s, b->chain.attribution_ledger.bytes, 20);
            db_get_blob(s, b->operator_address.bytes, 20);
        }
        if (db_end_checked(s, err) != 0 || row < 0)
            return -1;
        if (row == 0)
            return 0;
        if (check_domain(b, rpc, err) != 0)
            return -1;
    }
}

int ledger_check(struct ledger *l, struct rpc *rpc, json_t **report, struct err *err)
{
    struct books b = {.l = l, .differences = json_array()};
    if (report)
        *report = NULL;
    b.db = ledger_reader(l, err);
    int rc = b.db ? check_manifests(&b, err) : -1;
    if (rc == 0)
        rc = check_domains(&b, rpc, err);
    ledger_reader_done(l, b.db);
    if (report)
        *report = json_pack("{s:o, s:o, s:o, s:o, s:b, s:O}", "receipts", out_u64(b.n_receipts),
                            "channels", out_u64(b.n_channels), "vouchers", out_u64(b.n_vouchers),
                            "batches", out_u64(b.n_batches), "chainCompared", rc == 0 && rpc,
                            "differences", b.differences);
    json_decref(b.differences);
    if (rc == 0 && b.n_differences > 0)
        rc = err_set(err, ERR_CORRUPT, "%s", b.first);
    return rc;
}
