/* settlement: what the publisher asks the contracts and tells them. Over chain/contracts.h.
 *
 * Each query is one eth_call at a given block; amounts and hashes come back checked by the ABI
 * decoder. Asked at a block before the contract existed, a query answers zeros, which is what the
 * contract would have said. */
#ifndef TRIBUTARY_ATTRIBUTION_SETTLEMENT_H
#define TRIBUTARY_ATTRIBUTION_SETTLEMENT_H

#include "attribution/batch.h"
#include "attribution/voucher.h"
#include "chain/rpc.h"

struct settlement { /* where; plain values, not owned */
    struct rpc *rpc;
    struct ledger_chain chain;
    struct address operator_address, signer;
};

struct settlement_head { /* AttributionLedger.headOf */
    uint64_t next;       /* the seq of the operator's next batch */
    uint8_t hash[32];    /* batchHash of the newest; zero when there is none */
    struct amount committed;
};

struct settlement_stake {            /* StakeManager.stakeBehind(signer) */
    struct address operator_address; /* zero: the signer serves nobody */
    struct amount active;
    bool live;
};

int settlement_head(const struct settlement *s, struct settlement_head *out, struct rpc_at at,
                    struct err *err);
int settlement_final(const struct settlement *s, uint64_t *count, struct amount *committed,
                     struct rpc_at at, struct err *err);
int settlement_redeemed(const struct settlement *s, struct amount *out, struct rpc_at at,
                        struct err *err);
int settlement_balance(const struct settlement *s, struct amount *out, struct address payer,
                       struct rpc_at at, struct err *err);
int settlement_channel(const struct settlement *s, struct amount *value, uint8_t last_receipt[32],
                       struct address payer, uint64_t epoch, struct rpc_at at, struct err *err);
int settlement_stake(const struct settlement *s, struct settlement_stake *out, struct rpc_at at,
                     struct err *err);
int settlement_claimed(const struct settlement *s, struct amount *out, const struct payout *leaf,
                       struct rpc_at at, struct err *err);

/* Calldata, appended. */
void settlement_redeem_data(struct buf *out, const struct stored_voucher *v);
void settlement_submit_data(struct buf *out, const struct signed_batch *b);

/* Calls each for the operator's claims in [from, to], in order; amount is the leaf's cumulative. */
typedef int settlement_claim_fn(void *context, const struct payout *leaf, struct err *err);
int settlement_claims(const struct settlement *s, uint64_t from_block, uint64_t to_block,
                      settlement_claim_fn *each, void *context, struct err *err);

#endif
