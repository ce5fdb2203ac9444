/* payer: what a payer owes. */
#ifndef TRIBUTARY_ATTRIBUTION_PAYER_H
#define TRIBUTARY_ATTRIBUTION_PAYER_H

#include "attribution/ledger.h"

/* What a payer's receipts sum to that no redeemed voucher covers, over all its channels of this
 * chain and operator. */
int payer_debt(const struct ledger *l, struct db *db, struct amount *out, struct address payer,
               struct err *err);

#endif
