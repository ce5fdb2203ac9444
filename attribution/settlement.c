/* settlement: the operator's and the ledger's own words for the calls of chain/contracts.h. See
 * settlement.h. */
#include "attribution/settlement.h"

#include "chain/contracts.h"
#include "chain/events.h"

#include <string.h>

static struct contract_at contract(const struct settlement *s, struct address address,
                                   struct rpc_at at)
{
    return (struct contract_at){
        .rpc = s->rpc, .address = address, .at = at, .absent_is_zero = at.tag != RPC_LATEST};
}

int settlement_head(const struct settlement *s, struct settlement_head *out, struct rpc_at at,
                    struct err *err)
{
    struct contract_at where = contract(s, s->chain.attribution_ledger, at);
    struct batch_head head;
    if (view_ledger_head(&where, &head, s->operator_address, err) != 0)
        return -1;
    out->next = head.next_seq;
    memcpy(out->hash, head.newest.bytes, 32);
    out->committed = head.committed;
    return 0;
}

int settlement_final(const struct settlement *s, uint64_t *count, struct amount *committed,
                     struct rpc_at at, struct err *err)
{
    struct contract_at where = contract(s, s->chain.attribution_ledger, at);
    struct batch_final final;
    if (view_ledger_final(&where, &final, s->operator_address, err) != 0)
        return -1;
    *count = final.count;
    *committed = final.committed;
    return 0;
}

int settlement_redeemed(const struct settlement *s, struct amount *out, struct rpc_at at,
                        struct err *err)
{
    struct contract_at where = contract(s, s->chain.escrow, at);
    return view_escrow_redeemed(&where, out, s->operator_address, err);
}

int settlement_balance(const struct settlement *s, struct amount *out, struct address payer,
                       struct rpc_at at, struct err *err)
{
    struct contract_at where = contract(s, s->chain.escrow, at);
    struct escrow_account account;
    if (view_escrow_account(&where, &account, payer, s->operator_address, err) != 0)
        return -1;
    *out = account.balance;
    return 0;
}

int settlement_channel(const struct settlement *s, struct amount *value, uint8_t last_receipt[32],
                       struct address payer, uint64_t epoch, struct rpc_at at, struct err *err)
{
    struct contract_at where = contract(s, s->chain.escrow, at);
    struct escrow_channel channel;
    if (view_escrow_channel(&where, &channel, payer, s->operator_address, epoch, err) != 0)
        return -1;
    *value = channel.value_aggregate;
    memcpy(last_receipt, channel.last_receipt.bytes, 32);
    return 0;
}

int settlement_stake(const struct settlement *s, struct settlement_stake *out, struct rpc_at at,
                     struct err *err)
{
    struct contract_at where = contract(s, s->chain.stake_manager, at);
    struct stake_behind stake;
    if (view_stake_behind(&where, &stake, s->signer, err) != 0)
        return -1;
    *out = (struct settlement_stake){stake.operator_address, stake.active, stake.live};
    return 0;
}

int settlement_claimed(const struct settlement *s, struct amount *out, const struct payout *leaf,
                       struct rpc_at at, struct err *err)
{
    struct contract_at where = contract(s, s->chain.attribution_ledger, at);
    return view_ledger_claimed(&where, out, s->operator_address, (uint8_t)leaf->kind, leaf->id,
                               leaf->position, err);
}

void settlement_redeem_data(struct buf *out, const struct stored_voucher *v)
{
    calldata_escrow_redeem(out, &(struct redeemable_voucher){v->voucher, v->epoch, v->signature});
}

void settlement_submit_data(struct buf *out, const struct signed_batch *b)
{
    calldata_ledger_submit(out, &b->batch, &b->signature);
}

/* ---- claims --------------------------------------------------------------------------------- */

struct claim_walk {
    settlement_claim_fn *each;
    void *context;
};

static int read_claim(void *context, const struct rpc_log *log, struct err *err)
{
    struct claim_walk *walk = context;
    struct event event;
    if (event_decode(&event, CONTRACT_ATTRIBUTION_LEDGER, log, NULL, err) != 0)
        return -1;
    if (event.kind != EVENT_CLAIMED)
        return err_set(err, ERR_UPSTREAM, "asked for Claimed events, got %s",
                       event_name(event.kind));
    struct payout leaf = {
        .kind = (enum payout_kind)event.claimed.kind,
        .position = event.claimed.position,
        .amount = event.claimed.cumulative,
    };
    memcpy(leaf.id, event.claimed.id, 32);
    return walk->each(walk->context, &leaf, err);
}

int settlement_claims(const struct settlement *s, uint64_t from_block, uint64_t to_block,
                      settlement_claim_fn *each, void *context, struct err *err)
{
    struct bytes32 topic = event_topic(EVENT_CLAIMED);
    struct bytes32 operator_topic = topic_of_address(s->operator_address);
    struct rpc_log_filter filter = {
        .addresses = &s->chain.attribution_ledger,
        .n_addresses = 1,
        .topics = {&topic, &operator_topic, NULL, NULL},
        .from_block = from_block,
        .to_block = to_block,
    };
    struct claim_walk walk = {each, context};
    return rpc_logs(s->rpc, &filter, read_claim, &walk, err);
}
