/* receipt_check: what must hold of a receipt, whoever shows it.
 *
 * For those who don't believe the node: each returns 0, or -1 with ERR_CORRUPT and a sentence that
 * says what doesn't hold. */
#ifndef TRIBUTARY_NODE_CLI_RECEIPT_CHECK_H
#define TRIBUTARY_NODE_CLI_RECEIPT_CHECK_H

#include "node/cli/ledger_json.h"

#include <stdbool.h>

struct chain_session;
struct signed_request;

/* Its fields hash to its receiptHash, and the signer that it names has signed that. */
int receipt_check_signature(const struct parsed_receipt *r, struct err *err);

/* On chain: it is for these contracts, and its signer serves, or served (*revoked), its operator.
 * Fails with what the chain answers, too. */
int receipt_check_signer(const struct parsed_receipt *r, const struct chain_session *chain,
                         bool *revoked, struct err *err);

/* Royalty is its adapters', their shares are whole. */
int receipt_check_sums(const struct receipt *r, struct err *err);

/* Index, channel and total go on after the one before. */
int receipt_check_order(const struct receipt *r, const struct receipt *previous, struct err *err);

/* It goes on after the one before, and that has the hash that it names. previous NULL: it must be
 * its channel's first. Says nothing of previous' own signature. */
int receipt_check_link(const struct parsed_receipt *r, const struct receipt *previous,
                       struct err *err);

/* It answers this Request of its payer's, for the Escrow given, and bills no more than that allows.
 */
int receipt_check_request(const struct parsed_receipt *r, const struct signed_request *q,
                          struct address escrow, struct err *err);

/* A Request from a file: what `tributary request` printed, or the header's value alone. */
int request_from_file(struct signed_request *out, const char *path, struct err *err);

#endif
