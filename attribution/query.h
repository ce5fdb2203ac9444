/* query: what query.c and proof.c share. */
#ifndef TRIBUTARY_ATTRIBUTION_QUERY_H
#define TRIBUTARY_ATTRIBUTION_QUERY_H

#include "attribution/batch.h"
#include "attribution/receipt.h"

/* ERR_NOT_FOUND naming the id; returns NULL. */
json_t *query_not_found(const char *what, const uint8_t id[32], struct err *err);

/* The chain that a stored receipt is signed for: that of its own domain, which may be an older one.
 */
int query_chain_of_receipt(struct db *db, const struct signed_receipt *r, struct ledger_chain *out,
                           struct err *err);

/* The door's <batch>: batch_to_json, and the transaction that brought it to the chain. */
json_t *query_batch_json(struct db *db, const struct signed_batch *b);

#endif
