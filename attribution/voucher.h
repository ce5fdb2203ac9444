/* voucher: what redeems a prefix of a channel: signed here for the house account, and by payers
 * (ledger_voucher_accept). */
#ifndef TRIBUTARY_ATTRIBUTION_VOUCHER_H
#define TRIBUTARY_ATTRIBUTION_VOUCHER_H

#include "attribution/ledger.h"
#include "chain/eip712.h"

struct stored_voucher {
    struct voucher voucher;
    uint64_t epoch;
    struct signature signature;
    uint64_t row, index; /* index of the receipt that it names */
};

/* Signs, for the house account, the prefix of a channel that ends with the receipt `index` whose
 * hash and channelTotal are given, and stores it with its outbox row. In a transaction on the
 * ledger thread. A voucher over a value that an earlier one covers already makes no row: there is
 * nothing to redeem. */
int voucher_sign(struct ledger *l, const struct channel_state *ch, uint64_t index,
                 const uint8_t receipt_hash[32], struct amount channel_total, struct err *err);

/* By row: 1 found, 0 not, -1. */
int voucher_load(struct db *db, struct stored_voucher *out, uint64_t row, struct err *err);

struct eip712_domain voucher_domain(const struct ledger_chain *chain);

#endif
