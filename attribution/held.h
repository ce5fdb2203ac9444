/* held: payers' vouchers that wait for money in Escrow. The rules are in attribution.h, "payers'
 * vouchers". */
#ifndef TRIBUTARY_ATTRIBUTION_HELD_H
#define TRIBUTARY_ATTRIBUTION_HELD_H

#include "attribution/settlement.h"

/* A publisher's round: asks Escrow about a few held vouchers at a block and lets in what can be
 * paid. *place: how far earlier rounds came; 0 at first. On the publisher's thread. */
int held_look(struct ledger *l, const struct settlement *at, struct rpc_at block, uint64_t *place,
              struct err *err);

#endif
