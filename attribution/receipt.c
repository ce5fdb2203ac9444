/* receipt: the hash chain of a channel.
 *
 *     receipt 0            receipt 1                 receipt 2
 *     prev = 0        .--> prev = hash(0)      .---> prev = hash(1)
 *     total = f0      |    total = f0 + f1     |     total = f0 + f1 + f2
 *     hash(0) --------'    hash(1) ------------'     hash(2)            <- channel.head,
 * channel.total
 *
 * hash is the EIP-712 digest, which the operator's hot key signs. Everything in a receipt comes
 * from the usage, the price and the channel's head, so receipts of one channel are made one after
 * the other, on the ledger thread, and the head moves in the same transaction that inserts the
 * receipt.
 *
 * What the receipt pays is added to payout.earned at once: what creators are owed is known before
 * anything is settled. */
#include "attribution/receipt.h"

#include "attribution/batch.h"
#include "chain/eip712.h"
#include "node/base/buf.h"
#include "node/base/hex.h"
#include "node/base/sha256.h"
#include "wallet/wallet.h"

#include <string.h>

struct eip712_domain receipt_domain(const struct ledger_chain *chain)
{
    return (struct eip712_domain){chain->chain_id, chain->attribution_ledger};
}

struct receipt_digest receipt_hash(const struct receipt *r, const struct ledger_chain *chain)
{
    struct eip712_domain domain = receipt_domain(chain);
    return eip712_receipt(r, &domain);
}

/* ---- making one ----------------------------------------------------------------------------- */

static struct sha256_digest attribution_hash(struct ledger *l, const struct usage *usage)
{
    struct sha256 h;
    sha256_init(&h);
    for (uint32_t i = 0; i < usage->n_adapters; i++) {
        struct adapter_entry *e = adapter_table_by_id(l->adapters, usage->adapters[i].id);
        if (e)
            sha256_update(&h, e->attribution, e->n_attribution);
    }
    return sha256_final(&h);
}

static int insert_receipt(struct ledger *l, const struct channel_state *ch,
                          const struct usage *usage, struct signed_receipt *r, struct err *err)
{
    const struct receipt *f = &r->receipt;
    uint8_t signature[65], tag[8];
    signature_to_bytes(signature, &r->signature);
    for (int i = 0; i < 8; i++)
        tag[i] = (uint8_t)(usage->key_tag >> (56 - 8 * i));
    struct db_stmt *s = db_stmt(
        l->db,
        "INSERT INTO receipt(channel, idx, hash, request_id, prev_hash, model, "
        "tokens_prompt, tokens_completion, compute_fee, royalty, channel_total, "
        "timestamp_ms, request_hash, response_hash, attribution_hash, signature, signer, "
        "key_tag, stored_ms) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
    db_put_u64(s, ch->row);
    db_put_u64(s, f->index);
    db_put_blob(s, r->hash.bytes, 32);
    db_put_blob(s, f->request_id, 32);
    db_put_blob(s, f->prev_receipt_hash, 32);
    db_put_blob(s, f->model_id.bytes, 32);
    db_put_u64(s, f->prompt_tokens);
    db_put_u64(s, f->completion_tokens);
    db_put_amount(s, f->compute_fee);
    db_put_amount(s, f->royalty);
    db_put_amount(s, f->channel_total);
    db_put_u64(s, f->timestamp_ms);
    db_put_blob(s, f->request_hash.bytes, 32);
    db_put_blob(s, f->response_hash.bytes, 32);
    db_put_blob(s, f->attribution_hash.bytes, 32);
    db_put_blob(s, signature, 65);
    db_put_blob(s, r->signer.bytes, 20);
    db_put_blob(s, tag, 8);
    db_put_u64(s, clock_unix_ms().ms);
    if (db_run(s, err) != 0)
        return -1;
    r->row = db_last_rowid(l->db);
    for (size_t i = 0; i < f->n_adapters; i++) {
        s = db_stmt(l->db, "INSERT INTO receipt_adapter(receipt, ord, adapter, content, bps, "
                           "royalty) VALUES(?, ?, ?, ?, ?, ?)");
        db_put_u64(s, r->row);
        db_put_u64(s, i);
        db_put_blob(s, r->adapters[i].adapter_id.bytes, 32);
        db_put_blob(s, r->contents[i].bytes, 32);
        db_put_u64(s, r->adapters[i].bps);
        db_put_amount(s, r->adapters[i].royalty);
        if (db_run(s, err) != 0)
            return -1;
    }
    return 0;
}

static int add_earned(struct ledger *l, const struct signed_receipt *r, struct err *err)
{
    struct payout_set set = {NULL, 0, 0};
    int rc = payout_set_add_receipt(&set, l, r, err);
    if (rc == 0)
        rc = payout_set_merge(&set, err);
    for (size_t i = 0; i < set.n && rc == 0; i++) {
        const struct payout *p = &set.items[i];
        struct amount earned = AMOUNT_ZERO;
        struct db_stmt *s = db_stmt(l->db, "SELECT earned FROM payout WHERE domain = ? AND "
                                           "kind = ? AND id = ? AND position = ?");
        db_put_u64(s, l->domain);
        db_put_u64(s, (uint64_t)p->kind);
        db_put_blob(s, p->id, 32);
        db_put_u64(s, p->position);
        int row = db_step(s, err);
        if (row == 1)
            earned = db_get_amount(s);
        rc = db_end_checked(s, err) != 0 || row < 0 ? -1 : 0;
        if (rc == 0 && amount_add(&earned, earned, p->amount) != 0)
            rc = err_set(err, ERR_INVALID, "what one payee earned exceeds 128 bits");
        if (rc != 0)
            break;
        if (row == 1) {
            s = db_stmt(l->db, "UPDATE payout SET earned = ? WHERE domain = ? AND kind = ? AND "
                               "id = ? AND position = ?");
            db_put_amount(s, earned);
        } else {
            s = db_stmt(l->db, "INSERT INTO payout(earned, sealed, submitted, final, claimed, "
                               "domain, kind, id, position) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)");
            db_put_amount(s, earned);
            for (int zero = 0; zero < 4; zero++)
                db_put_amount(s, AMOUNT_ZERO);
        }
        db_put_u64(s, l->domain);
        db_put_u64(s, (uint64_t)p->kind);
        db_put_blob(s, p->id, 32);
        db_put_u64(s, p->position);
        rc = db_run(s, err);
    }
    payout_set_release(&set);
    return rc;
}

/* Whether a stored receipt bills this very usage. */
static bool same_usage(const struct signed_receipt *r, const struct usage *u)
{
    const struct receipt *f = &r->receipt;
    bool same = memcmp(f->request_hash.bytes, u->request_hash.bytes, 32) == 0 &&
                memcmp(f->response_hash.bytes, u->response_hash.bytes, 32) == 0 &&
                memcmp(f->model_id.bytes, u->model.bytes, 32) == 0 &&
                f->prompt_tokens == u->tokens_prompt &&
                f->completion_tokens == u->tokens_completion && f->n_adapters == u->n_adapters;
    for (uint32_t i = 0; same && i < u->n_adapters; i++)
        same = DIGEST_EQ(r->adapters[i].adapter_id, u->adapters[i].id) &&
               r->adapters[i].bps == u->adapters[i].weight_bps;
    return same;
}

int receipt_append(struct ledger *l, struct channel_state *ch, const struct usage *usage,
                   const struct ledger_price *price, struct signed_receipt *out, bool *again,
                   struct err *err)
{
    *again = false;
    int known = receipt_find(l->db, out, usage->request_id, err);
    if (known < 0)
        return -1;
    if (known == 1) {
        char id[67];
        *again = true;
        if (same_usage(out, usage))
            return 0;
        return err_set(err, ERR_CONFLICT, "request %s was billed already, with another usage",
                       hex_encode_0x(id, usage->request_id, 32));
    }
    memset(out, 0, sizeof(*out));
    struct receipt *f = &out->receipt;
    memcpy(f->request_id, usage->request_id, 32);
    f->operator_address = l->operator_address;
    f->payer = ch->payer;
    memcpy(f->channel, ch->hash.bytes, 32);
    f->index = ch->next_index;
    memcpy(f->prev_receipt_hash, ch->head, 32);
    f->model_id = usage->model;
    f->adapters = out->adapters;
    f->n_adapters = usage->n_adapters;
    for (uint32_t i = 0; i < usage->n_adapters; i++) {
        out->adapters[i].adapter_id = usage->adapters[i].id;
        out->adapters[i].bps = usage->adapters[i].weight_bps;
        out->adapters[i].royalty = price->adapter_royalty[i];
        out->contents[i] = usage->adapters[i].content;
    }
    f->prompt_tokens = usage->tokens_prompt;
    f->completion_tokens = usage->tokens_completion;
    f->compute_fee = price->compute_fee;
    f->royalty = price->royalty;
    if (amount_add(&f->channel_total, ch->total, price->total) != 0)
        return err_set(err, ERR_INVALID, "the channel's total exceeds 128 bits");
    f->timestamp_ms = usage->finished.ms;
    f->request_hash = usage->request_hash;
    f->response_hash = usage->response_hash;
    f->attribution_hash = attribution_hash(l, usage);
    out->hash = receipt_hash(f, &l->opt.chain);
    out->signer = l->signer;
    if (wallet_sign_receipt(l->opt.wallet, l->signer_key, &out->signature, &out->hash, err) != 0 ||
        insert_receipt(l, ch, usage, out, err) != 0 || add_earned(l, out, err) != 0)
        goto failed;
    struct db_stmt *s = db_stmt(
        l->db, "UPDATE channel SET next_index = ?, head = ?, total = ? WHERE id = ?");
    db_put_u64(s, f->index + 1);
    db_put_blob(s, out->hash.bytes, 32);
    db_put_amount(s, f->channel_total);
    db_put_u64(s, ch->row);
    if (db_run(s, err) != 0)
        goto failed;
    ch->next_index++;
    memcpy(ch->head, out->hash.bytes, 32);
    ch->total = f->channel_total;
    return 0;
failed:
    /* Rows may have been written: the group can't go on, whatever the reason was. */
    if (err && (err->code == ERR_CONFLICT || err->code == ERR_INVALID))
        err->code = ERR_IO;
    return -1;
}

/* ---- reading -------------------------------------------------------------------------------- */

int receipt_read(struct db *db, struct db_stmt *s, struct signed_receipt *out, struct err *err)
{
    struct receipt *f = &out->receipt;
    memset(out, 0, sizeof(*out));
    out->row = db_get_u64(s);
    db_get_blob(s, f->request_id, 32);
    db_get_blob(s, f->operator_address.bytes, 20);
    db_get_blob(s, f->payer.bytes, 20);
    db_get_blob(s, f->channel, 32);
    f->index = db_get_u64(s);
    db_get_blob(s, f->prev_receipt_hash, 32);
    db_get_blob(s, f->model_id.bytes, 32);
    f->prompt_tokens = (uint32_t)db_get_most(s, UINT32_MAX);
    f->completion_tokens = (uint32_t)db_get_most(s, UINT32_MAX);
    f->compute_fee = db_get_amount(s);
    f->royalty = db_get_amount(s);
    f->channel_total = db_get_amount(s);
    f->timestamp_ms = db_get_u64(s);
    db_get_blob(s, f->request_hash.bytes, 32);
    db_get_blob(s, f->response_hash.bytes, 32);
    db_get_blob(s, f->attribution_hash.bytes, 32);
    db_get_blob(s, out->hash.bytes, 32);
    ledger_get_signature(s, &out->signature);
    db_get_blob(s, out->signer.bytes, 20);
    out->batch_row = db_get_u64(s);
    out->position = (uint32_t)db_get_most(s, UINT32_MAX);
    f->adapters = out->adapters;

    struct db_stmt *a = db_stmt(db, "SELECT adapter, content, bps, royalty FROM receipt_adapter "
                                    "WHERE receipt = ? ORDER BY ord");
    db_put_u64(a, out->row);
    int row;
    while ((row = db_step(a, err)) == 1 && f->n_adapters < USAGE_ADAPTERS_MAX) {
        struct adapter_share *share = &out->adapters[f->n_adapters];
        db_get_blob(a, share->adapter_id.bytes, 32);
        db_get_blob(a, out->contents[f->n_adapters].bytes, 32);
        share->bps = (uint16_t)db_get_most(a, UINT16_MAX);
        share->royalty = db_get_amount(a);
        f->n_adapters++;
    }
    if (row == 1)
        return err_set(err, ERR_CORRUPT, "a stored receipt has more than %d adapters",
                       (int)USAGE_ADAPTERS_MAX);
    return db_end_checked(a, err) != 0 || row < 0 ? -1 : 0;
}

int receipt_find(struct db *db, struct signed_receipt *out, const uint8_t id[32], struct err *err)
{
    struct db_stmt *s = db_stmt(db, "SELECT " RECEIPT_COLUMNS RECEIPT_FROM
                                    "WHERE r.request_id = ? OR r.hash = ? LIMIT 1");
    db_put_blob(s, id, 32);
    db_put_blob(s, id, 32);
    int row = db_step(s, err);
    if (row == 1 && receipt_read(db, s, out, err) != 0)
        row = -1;
    return db_end_checked(s, err) != 0 ? -1 : row;
}

/* ---- JSON ----------------------------------------------------------------------------------- */

/* The canonical text is written directly, keys in sorted order: it is made once for every answer
 * and once for every leaf of a batch file. A test compares it with canonical_json_write. */
void receipt_write(const struct signed_receipt *r, const struct ledger_chain *chain,
                   struct buf *out)
{
    const struct receipt *f = &r->receipt;
    char hex[133], text[AMOUNT_TEXT_BYTES];
    uint8_t signature[65];
    buf_appendf(out, "{\"domain\":{\"chainId\":%llu,\"verifyingContract\":\"%s\"}",
                (unsigned long long)chain->chain_id,
                hex_encode_0x(hex, chain->attribution_ledger.bytes, 20));
    buf_append_str(out, ",\"receipt\":{\"adapters\":[");
    for (size_t i = 0; i < f->n_adapters; i++)
        buf_appendf(out, "%s{\"adapterId\":\"%s\",\"bps\":%u,\"royalty\":\"%s\"}", i ? "," : "",
                    hex_encode_0x(hex, r->adapters[i].adapter_id.bytes, 32), r->adapters[i].bps,
                    amount_format(text, r->adapters[i].royalty));
    buf_appendf(out, "],\"attributionHash\":\"%s\"",
                hex_encode_0x(hex, f->attribution_hash.bytes, 32));
    buf_appendf(out, ",\"channel\":\"%s\"", hex_encode_0x(hex, f->channel, 32));
    buf_appendf(out, ",\"channelTotal\":\"%s\"", amount_format(text, f->channel_total));
    buf_appendf(out, ",\"completionTokens\":%u", f->completion_tokens);
    buf_appendf(out, ",\"computeFee\":\"%s\"", amount_format(text, f->compute_fee));
    buf_appendf(out, ",\"index\":%llu", (unsigned long long)f->index);
    buf_appendf(out, ",\"modelId\":\"%s\"", hex_encode_0x(hex, f->model_id.bytes, 32));
    buf_appendf(out, ",\"operator\":\"%s\"", hex_encode_0x(hex, f->operator_address.bytes, 20));
    buf_appendf(out, ",\"payer\":\"%s\"", hex_encode_0x(hex, f->payer.bytes, 20));
    buf_appendf(out, ",\"prevReceiptHash\":\"%s\"", hex_encode_0x(hex, f->prev_receipt_hash, 32));
    buf_appendf(out, ",\"promptTokens\":%u", f->prompt_tokens);
    buf_appendf(out, ",\"requestHash\":\"%s\"", hex_encode_0x(hex, f->request_hash.bytes, 32));
    buf_appendf(out, ",\"requestId\":\"%s\"", hex_encode_0x(hex, f->request_id, 32));
    buf_appendf(out, ",\"responseHash\":\"%s\"", hex_encode_0x(hex, f->response_hash.bytes, 32));
    buf_appendf(out, ",\"royalty\":\"%s\"", amount_format(text, f->royalty));
    buf_appendf(out, ",\"timestampMs\":%llu}", (unsigned long long)f->timestamp_ms);
    buf_appendf(out, ",\"receiptHash\":\"%s\"", hex_encode_0x(hex, r->hash.bytes, 32));
    signature_to_bytes(signature, &r->signature);
    buf_appendf(out, ",\"signature\":\"%s\"", hex_encode_0x(hex, signature, 65));
    buf_appendf(out, ",\"signer\":\"%s\"}", hex_encode_0x(hex, r->signer.bytes, 20));
}

json_t *receipt_to_json(const struct signed_receipt *r, const struct ledger_chain *chain)
{
    struct buf text = BUF_INIT;
    receipt_write(r, chain, &text);
    json_t *json = json_loadb(buf_cstr(&text), text.len, 0, NULL);
    BUG_IF(!json);
    buf_release(&text);
    return json;
}
