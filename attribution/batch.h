/* batch: sealing. Receipts that vouchers cover become one row with two roots and a file.
 *
 * The batch file, served at /v1/batches/<dataHash>, is canonical JSON (RFC 8785); dataHash is its
 * sha256:
 *
 *   {"batch":{"chainId":n,"committed":amount,"ledger":address,"operator":address,"periodEnd":n,
 *             "periodStart":n,"prevBatchHash":hex,"seq":n},
 *    "payouts":[{"amount":amount,"id":hex,"kind":n,"position":n}],        leaves of the payout tree
 *    "receipts":[<receipt JSON>],                                         leaf i is receipts[i]
 *    "schema":"tributary.batch/1"}
 *
 * Everything that the signed Batch says follows from it: leafCount, both roots, committed. */
#ifndef TRIBUTARY_ATTRIBUTION_BATCH_H
#define TRIBUTARY_ATTRIBUTION_BATCH_H

#include "attribution/ledger.h"
#include "attribution/payout.h"

struct signed_receipt;

struct signed_batch {
    struct batch batch; /* chain/types.h */
    struct batch_digest hash;
    struct signature signature;
    struct amount value; /* committed, less the committed value before */
    enum batch_state state;
    uint64_t row, sealed_ms;
};

/* Whether the policy wants a batch now. Cheap; ledger thread. */
bool batch_is_due(const struct ledger *l, struct unix_ms now);

/* Seals at most one batch and its vouchers; *sealed receipts, 0 when nothing is covered. In a
 * transaction on the ledger thread. Receipts are taken in whole channel prefixes: of a channel that
 * the house pays, as far as its escrow balance goes (all, while the chain hasn't told); of
 * another payer's, as far as its redeemed voucher goes. A payer who doesn't pay keeps out only
 * its own. Within max_receipts, max_value and the operator's active stake. */
int batch_seal(struct ledger *l, uint32_t *sealed, struct err *err);

#define BATCH_COLUMNS                                                                             \
    "b.id, d.operator, b.seq, b.hash, b.leaf_count, b.receipts_root, b.payout_root, "             \
    "b.committed, b.value, b.period_start, b.period_end, b.data_hash, b.prev_hash, b.signature, " \
    "b.sealed_ms, b.state"
#define BATCH_FROM " FROM batch b JOIN domain d ON d.id = b.domain "
void batch_read(struct db_stmt *s, struct signed_batch *out);

/* By domain and seq: 1 found, 0 not, -1. */
int batch_find(struct db *db, struct signed_batch *out, uint64_t domain, uint64_t seq,
               struct err *err);

/* The digest that the signature is over. */
struct batch_digest batch_hash(const struct batch *b, const struct ledger_chain *chain);

/* The fields of the door's <batch> that come from struct signed_batch; a new reference. */
json_t *batch_to_json(const struct signed_batch *b);

/* The payouts of a stored batch file, in *out [*n] (free() it). */
int batch_file_payouts(struct db *db, uint64_t batch_row, struct payout **out, size_t *n,
                       struct err *err);

/* Adds what one receipt pays to a set of leaves: compute fee to the operator, each royalty over the
 * positions and Datanets of its adapter. */
struct payout_set {
    struct payout *items; /* sorted and merged by payout_set_merge */
    size_t n, cap;
};
int payout_set_add_receipt(struct payout_set *set, struct ledger *l, const struct signed_receipt *r,
                           struct err *err);
void payout_set_add(struct payout_set *set, const struct payout *p);
int payout_set_merge(struct payout_set *set, struct err *err); /* ERR_INVALID: overflow */
void payout_set_release(struct payout_set *set);

#endif
