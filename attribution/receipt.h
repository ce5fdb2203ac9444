/* receipt: one signed link of a channel's hash chain: made, stored, loaded, written as JSON. */
#ifndef TRIBUTARY_ATTRIBUTION_RECEIPT_H
#define TRIBUTARY_ATTRIBUTION_RECEIPT_H

#include "attribution/ledger.h"
#include "chain/eip712.h"

struct buf;

struct signed_receipt {
    struct receipt receipt; /* receipt.adapters points at adapters */
    struct adapter_share adapters[USAGE_ADAPTERS_MAX];
    struct content_digest contents[USAGE_ADAPTERS_MAX]; /* not signed: what ran */
    struct receipt_digest hash;
    struct signature signature;
    struct address signer;
    uint64_t row, batch_row; /* batch_row 0: not sealed */
    uint32_t position;       /* in the batch */
};

/* The EIP-712 domain that receipts and batches of this ledger are signed for (all zero: local). */
struct eip712_domain receipt_domain(const struct ledger_chain *chain);

/* Extends the channel by one receipt: builds, signs, inserts, and moves *ch on. In a transaction,
 * on the ledger thread. When the request_id is known with the same usage, *out is that receipt,
 * *again is true and nothing changes; with another, ERR_CONFLICT. out->receipt.adapters points into
 * *out. */
int receipt_append(struct ledger *l, struct channel_state *ch, const struct usage *usage,
                   const struct ledger_price *price, struct signed_receipt *out, bool *again,
                   struct err *err);

/* What a receipt SELECT must ask for; receipt_read reads its columns, and then its adapters. */
#define RECEIPT_COLUMNS                                                                          \
    "r.id, r.request_id, d.operator, c.payer, c.hash, r.idx, r.prev_hash, r.model, "             \
    "r.tokens_prompt, r.tokens_completion, r.compute_fee, r.royalty, r.channel_total, "          \
    "r.timestamp_ms, r.request_hash, r.response_hash, r.attribution_hash, r.hash, r.signature, " \
    "r.signer, coalesce(r.batch, 0), coalesce(r.position, 0)"
#define RECEIPT_FROM \
    " FROM receipt r JOIN channel c ON c.id = r.channel JOIN domain d ON d.id = c.domain "
int receipt_read(struct db *db, struct db_stmt *s, struct signed_receipt *out, struct err *err);

/* By receiptHash or requestId: 1 found, 0 not, -1 failure. */
int receipt_find(struct db *db, struct signed_receipt *out, const uint8_t id[32], struct err *err);

/* The JSON form of attribution.h; a new reference. */
json_t *receipt_to_json(const struct signed_receipt *r, const struct ledger_chain *chain);
/* The same as canonical text, appended. */
void receipt_write(const struct signed_receipt *r, const struct ledger_chain *chain,
                   struct buf *out);

/* The digest that the signature is over, from the fields. */
struct receipt_digest receipt_hash(const struct receipt *r, const struct ledger_chain *chain);

#endif
