/* events: what the contracts logged, decoded.
 *
 * A log of a contract whose address the caller knows becomes a struct; the layout is the ABI's,
 * bound by name as in contracts.h. Pure functions, any thread. */
#ifndef TRIBUTARY_CHAIN_EVENTS_H
#define TRIBUTARY_CHAIN_EVENTS_H

#include "chain/contracts.h"

struct arena;

enum event_kind {
    EVENT_OTHER, /* of this contract, but not one of these (Approval, EIP712DomainChanged) */
    EVENT_TRANSFER,
    EVENT_STAKED,
    EVENT_UNSTAKE_REQUESTED,
    EVENT_STAKE_WITHDRAWN,
    EVENT_STAKE_SIGNER_OFFERED,
    EVENT_STAKE_SIGNER_ADDED,
    EVENT_STAKE_SIGNER_REMOVED,
    EVENT_SLASHED,
    EVENT_DATANET_REGISTERED,
    EVENT_ADAPTER_REGISTERED,
    EVENT_ADAPTER_RETIRED,
    EVENT_PAYEE_PROPOSED,
    EVENT_DATANET_PAYEE_PROPOSED,
    EVENT_DEPOSITED,
    EVENT_THAW_REQUESTED,
    EVENT_ESCROW_WITHDRAWN,
    EVENT_PAYER_SIGNER_ADDED,
    EVENT_PAYER_SIGNER_REMOVED,
    EVENT_REDEEMED,
    EVENT_VOUCHER_REFUSED,
    EVENT_BATCH_SUBMITTED,
    EVENT_BATCH_VOIDED,
    EVENT_CLAIMED,
};
enum { N_EVENT_KINDS = EVENT_CLAIMED + 1 };

struct event {
    enum event_kind kind;
    union {
        struct {
            struct address from, to;
            struct u256 value;
        } transfer;
        struct {
            struct address operator_address;
            struct amount amount, total;
        } staked, stake_withdrawn;
        struct {
            struct address operator_address;
            struct amount unbonding;
            uint64_t withdrawable_at_s;
        } unstake_requested;
        struct {
            struct address operator_address, signer;
        } stake_signer; /* offered, added, removed */
        struct {
            struct address operator_address, reporter;
            struct amount amount, to_reporter, to_treasury;
        } slashed;
        struct {
            uint8_t datanet[32];
            struct address owner, payee;
            struct sha256_digest metadata;
        } datanet_registered;
        struct {
            struct adapter_id id;
            struct manifest manifest;
            struct splits splits; /* in the arena */
        } adapter_registered;
        struct {
            struct adapter_id id;
            struct address creator;
        } adapter_retired;
        struct {
            uint8_t id[32];    /* adapter or Datanet */
            uint16_t position; /* 0 of a Datanet */
            struct address from, to;
            uint64_t effective_at_s;
        } payee_proposed; /* both kinds */
        struct {
            struct address payer, operator_address, from;
            struct amount amount;
        } deposited;
        struct {
            struct address payer, operator_address;
            struct amount thawing;
            uint64_t withdrawable_at_s;
        } thaw_requested;
        struct {
            struct address payer, operator_address;
            struct amount amount;
        } escrow_withdrawn;
        struct {
            struct address payer, signer;
            uint64_t valid_until_s; /* removed only */
        } payer_signer;
        struct {
            struct address operator_address, payer;
            uint8_t channel[32];
            struct amount value_aggregate, amount;
            struct receipt_digest last_receipt;
        } redeemed;
        struct {
            struct address operator_address, payer;
            uint8_t channel[32];
            struct amount value_aggregate;
            uint8_t why; /* Escrow.Refusal; escrow_refusal_name */
        } voucher_refused;
        struct {
            struct batch batch;
            struct batch_digest digest;
        } batch_submitted;
        struct {
            struct address operator_address;
            uint64_t seq;
            struct batch_digest digest;
            struct amount committed; /* what is left */
        } batch_voided;
        struct {
            struct address operator_address, payee;
            uint8_t id[32];
            uint8_t kind;
            uint16_t position;
            struct amount amount, cumulative;
        } claimed;
    };
};

/* Decodes a log of contract c. ERR_UPSTREAM when it has the signature of one of its events and
 * isn't one; EVENT_OTHER when it has none. */
int event_decode(struct event *out, enum contract c, const struct rpc_log *log, struct arena *arena,
                 struct err *err);

/* Every event against the ABI; a bug where one differs. Called by contracts_check. */
void event_check(void);

/* What topics[0] of such logs is: for rpc_log_filter. EVENT_OTHER is a bug. */
struct bytes32 event_topic(enum event_kind kind);
const char *event_name(enum event_kind kind); /* as in the ABI: "Transfer" */

/* An address as a topic: left-padded. */
struct bytes32 topic_of_address(struct address a);

const char *escrow_refusal_name(uint8_t why); /* "unfunded", ...; "unknown" */

#endif
