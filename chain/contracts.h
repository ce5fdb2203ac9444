/* contracts: Tributary's contracts as C calls. What to send them, what they answer, what they cost.
 *
 *   calldata_*   appends the data of a transaction to a contract      (void: can't fail)
 *   initcode_*   appends the data of a transaction that deploys one
 *   view_*       asks a contract through an endpoint
 *
 * Everything is bound to the ABI that is in the binary (contracts-abi/<Contract>.json): function
 * names and types come from there. contracts_check binds all of them and is a bug where one is
 * missing or takes other types; it runs before the first use. Any thread. */
#ifndef TRIBUTARY_CHAIN_CONTRACTS_H
#define TRIBUTARY_CHAIN_CONTRACTS_H

#include "chain/evm.h"
#include "chain/rpc.h"
#include "chain/types.h"
#include "chain/u256.h"

#include <jansson.h>

enum contract {
    CONTRACT_STAKE_MANAGER,
    CONTRACT_ADAPTER_REGISTRY,
    CONTRACT_ESCROW,
    CONTRACT_ATTRIBUTION_LEDGER,
    CONTRACT_TEST_TOKEN, /* and any ERC-20, for what they have in common */
};
enum { N_CONTRACTS = 5 };
const char *contract_name(enum contract c); /* "StakeManager" */

/* Every calldata_, initcode_ and view_ function against the ABI; every event, too (events.h). */
void contracts_check(void);

/* Where and when to ask. */
struct contract_at {
    struct rpc *rpc;
    struct address address;
    struct rpc_at at; /* zero: latest */
    /* Nobody at the address answers zeros instead of ERR_UPSTREAM: what the contract would have
     * said of a block before it existed. Only for functions whose results are all of one word. */
    bool absent_is_zero;
};

/* ---- any function, by name --------------------------------------------------------------------
 *
 * args is a JSON array (chain/abi.h says how values look), taken over; NULL: no arguments. A name
 * that the ABI lacks or arguments that don't fit are a bug in contract_calldata. contract_view
 * returns a new array of what the function returned, or NULL with rpc_call's errors, or
 * ERR_UPSTREAM when the answer doesn't decode or nobody is at the address. */
void contract_calldata(struct buf *out, enum contract c, const char *function, json_t *args);
json_t *contract_view(const struct contract_at *where, enum contract c, const char *function,
                      json_t *args, struct err *err);

/* A revert's data in words: "StakeTooSmall(operator: 0x..., total: 5, wanted: 6)" for the errors of
 * all five contracts, what Error(string) says, what Panic(uint256) means, else the data in hex.
 * Returns out, cut to cap. */
char *contracts_revert_text(char *out, size_t cap, const void *data, size_t n);

/* ---- shared shapes ------------------------------------------------------------------------ */

struct datanet_share {
    uint8_t datanet[32];
    uint16_t bps;
};
struct payee_share {
    struct address payee;
    uint16_t bps;
};
struct splits { /* who shares an adapter's royalty; bps sum to 10,000 */
    const struct payee_share *payees;
    size_t n_payees;
    const struct datanet_share *datanets;
    size_t n_datanets;
};
/* abi.encode(splits), appended: what the registry keeps the hash of. */
void splits_encode(struct buf *out, const struct splits *s);

/* A leaf of a payout tree and its way to the root (PayoutTree.sol; attribution/payout.h builds
 * them). */
struct payout_claim {
    uint8_t kind; /* 0 operator, 1 adapter position, 2 Datanet */
    uint8_t id[32];
    uint16_t position;
    struct amount amount; /* cumulative */
    uint32_t index, leaf_count;
    const struct payout_sibling *siblings; /* the lowest first */
    size_t n_siblings;
    const struct splits *splits; /* kind 1 until the registry has written the payee down; or NULL */
};
struct payout_sibling {
    uint8_t hash[32];
    struct amount sum;
};

struct redeemable_voucher {
    struct voucher voucher;
    uint64_t epoch; /* that voucher.channel was made with */
    struct signature signature;
};

/* ---- ERC-20, TestToken -------------------------------------------------------------------- */

void initcode_test_token(struct buf *out);
void calldata_token_mint(struct buf *out, struct address to, struct u256 amount); /* TestToken */
void calldata_token_approve(struct buf *out, struct address spender, struct u256 amount);
void calldata_token_transfer(struct buf *out, struct address to, struct u256 amount);
int view_token_balance(const struct contract_at *where, struct u256 *out, struct address owner,
                       struct err *err);
int view_token_allowance(const struct contract_at *where, struct u256 *out, struct address owner,
                         struct address spender, struct err *err);
int view_token_decimals(const struct contract_at *where, uint8_t *out, struct err *err);

/* ---- StakeManager ------------------------------------------------------------------------- */

void initcode_stake_manager(struct buf *out, struct address token, struct amount min_stake,
                            uint64_t unbonding_s, struct address treasury, struct address disputes);
void calldata_stake_add(struct buf *out, struct amount amount); /* after approve */
void calldata_stake_request_unstake(struct buf *out, struct amount amount);
void calldata_stake_withdraw(struct buf *out);
void calldata_stake_offer_signer(struct buf *out, struct address operator_address); /* by the key */
void calldata_stake_add_signer(struct buf *out, struct address signer); /* by the operator */
void calldata_stake_remove_signer(struct buf *out, struct address signer);

struct stake_state {
    struct amount total, unbonding; /* unbonding is part of total */
    uint64_t withdrawable_at_s;
};
int view_stake(const struct contract_at *where, struct stake_state *out,
               struct address operator_address, struct err *err);
struct stake_signer {
    struct address operator_address;   /* zero: the key has offered itself to nobody */
    uint64_t added_at_s, revoked_at_s; /* 0: not yet */
};
int view_stake_signer(const struct contract_at *where, struct stake_signer *out,
                      struct address signer, struct err *err);
struct stake_behind {
    struct address operator_address; /* whom the key serves now; zero: nobody */
    struct amount active;
    bool live;
};
int view_stake_behind(const struct contract_at *where, struct stake_behind *out,
                      struct address signer, struct err *err);
struct stake_terms { /* fixed at deployment */
    struct address token, treasury, disputes;
    struct amount min_stake;
    uint64_t unbonding_s;
};
int view_stake_terms(const struct contract_at *where, struct stake_terms *out, struct err *err);

/* ---- AdapterRegistry ---------------------------------------------------------------------- */

void initcode_adapter_registry(struct buf *out, uint64_t payee_delay_s);
void calldata_registry_register_datanet(struct buf *out, struct sha256_digest metadata,
                                        struct address payee);
void calldata_registry_register_adapter(struct buf *out, const struct manifest *m,
                                        const struct splits *s, const struct signature *sig);
void calldata_registry_retire(struct buf *out, struct adapter_id id);
/* splits: as in payout_claim. */
void calldata_registry_propose_payee(struct buf *out, struct adapter_id id, uint16_t position,
                                     struct address to, const struct splits *s);
void calldata_registry_propose_datanet_payee(struct buf *out, const uint8_t datanet[32],
                                             struct address to);

struct registry_adapter {
    bool registered; /* false: the rest is zero */
    struct address creator;
    uint64_t version;
    bool retired;
    uint8_t splits_hash[32];
};
int view_registry_adapter(const struct contract_at *where, struct registry_adapter *out,
                          struct adapter_id id, struct err *err);
/* The earliest registration of a content; zero if there is none. */
int view_registry_first_by_content(const struct contract_at *where, struct adapter_id *out,
                                   struct content_digest content, struct err *err);
/* Who is paid now. splits NULL: only if the registry has written the payee down. */
int view_registry_payee(const struct contract_at *where, struct address *out, struct adapter_id id,
                        uint16_t position, const struct splits *s, struct err *err);
/* Zero: not written down. */
int view_registry_written_payee(const struct contract_at *where, struct address *out,
                                struct adapter_id id, uint16_t position, struct err *err);
/* ERR_CONFLICT (UnknownDatanet) when it isn't registered. */
int view_registry_datanet_payee(const struct contract_at *where, struct address *out,
                                const uint8_t datanet[32], struct err *err);
int view_registry_payee_delay(const struct contract_at *where, uint64_t *seconds, struct err *err);

/* ---- Escrow ------------------------------------------------------------------------------- */

void initcode_escrow(struct buf *out, struct address token, struct address stake_manager,
                     struct address attribution_ledger, uint64_t thaw_s);
void calldata_escrow_deposit(struct buf *out, struct address operator_address,
                             struct amount amount); /* after approve */
void calldata_escrow_deposit_for(struct buf *out, struct address payer,
                                 struct address operator_address, struct amount amount);
void calldata_escrow_request_thaw(struct buf *out, struct address operator_address,
                                  struct amount amount);
void calldata_escrow_withdraw(struct buf *out, struct address operator_address);
void calldata_escrow_add_signer(struct buf *out, struct address signer);
void calldata_escrow_remove_signer(struct buf *out, struct address signer);
void calldata_escrow_redeem(struct buf *out, const struct redeemable_voucher *v);
/* Vouchers of one operator; one that can't be redeemed is left out by the contract. */
void calldata_escrow_redeem_many(struct buf *out, struct address operator_address,
                                 const struct redeemable_voucher *vouchers, size_t n);

struct escrow_account {
    struct amount balance, thawing; /* thawing is part of balance */
    uint64_t withdrawable_at_s;
};
int view_escrow_account(const struct contract_at *where, struct escrow_account *out,
                        struct address payer, struct address operator_address, struct err *err);
struct escrow_channel { /* the newest redeemed voucher; zeros if there is none */
    struct amount value_aggregate;
    struct receipt_digest last_receipt;
};
int view_escrow_channel(const struct contract_at *where, struct escrow_channel *out,
                        struct address payer, struct address operator_address, uint64_t epoch,
                        struct err *err);
/* What the operator's redeemed vouchers sum to, over all payers. */
int view_escrow_redeemed(const struct contract_at *where, struct amount *out,
                         struct address operator_address, struct err *err);
int view_escrow_is_signer(const struct contract_at *where, bool *out, struct address payer,
                          struct address signer, struct err *err);
struct escrow_terms {
    struct address token, stake_manager, attribution_ledger;
    uint64_t thaw_s;
};
int view_escrow_terms(const struct contract_at *where, struct escrow_terms *out, struct err *err);

/* ---- AttributionLedger -------------------------------------------------------------------- */

void initcode_attribution_ledger(struct buf *out, struct address stake_manager,
                                 struct address adapter_registry, struct address escrow,
                                 uint64_t challenge_window_s);
void calldata_ledger_submit(struct buf *out, const struct batch *b, const struct signature *sig);
/* Against a final batch of the operator's: its seq and digest. Anyone may send it. */
void calldata_ledger_claim(struct buf *out, struct address operator_address, uint64_t seq,
                           struct batch_digest batch, const struct payout_claim *claim);
/* Leaves with nothing to pay are skipped by the contract. */
void calldata_ledger_claim_many(struct buf *out, struct address operator_address, uint64_t seq,
                                struct batch_digest batch, const struct payout_claim *claims,
                                size_t n);

struct batch_head { /* the end of an operator's chain of batches */
    uint64_t next_seq;
    struct batch_digest newest; /* zero: none */
    struct amount committed;
};
int view_ledger_head(const struct contract_at *where, struct batch_head *out,
                     struct address operator_address, struct err *err);
struct batch_final {
    uint64_t count; /* so many of the operator's batches are final, the first ones */
    struct amount committed;
};
int view_ledger_final(const struct contract_at *where, struct batch_final *out,
                      struct address operator_address, struct err *err);
struct batch_record {
    uint8_t commitment[32]; /* keccak256(abi.encode(batchHash, payoutRoot, committed)) */
    struct amount committed;
    uint32_t leaf_count;
    uint64_t final_at_s;
};
/* ERR_CONFLICT (UnknownBatch) when the chain isn't that long. */
int view_ledger_batch(const struct contract_at *where, struct batch_record *out,
                      struct address operator_address, uint64_t seq, struct err *err);
/* What batch_record.commitment is for a batch. */
struct bytes32 batch_commitment(struct batch_digest digest, const struct batch *b);
int view_ledger_is_submitted(const struct contract_at *where, bool *out, const struct batch *b,
                             struct err *err);
int view_ledger_is_voided(const struct contract_at *where, bool *out, struct batch_digest digest,
                          struct err *err);
int view_ledger_claimed(const struct contract_at *where, struct amount *out,
                        struct address operator_address, uint8_t kind, const uint8_t id[32],
                        uint16_t position, struct err *err);
int view_ledger_paid(const struct contract_at *where, struct amount *out,
                     struct address operator_address, struct err *err);
int view_ledger_verify_receipt(const struct contract_at *where, bool *out, const struct batch *b,
                               uint32_t position, struct receipt_digest receipt,
                               const uint8_t (*proof)[32], size_t n_proof, struct err *err);
int view_ledger_verify_payout(const struct contract_at *where, bool *out, const struct batch *b,
                              const struct payout_claim *claim, struct err *err);
struct ledger_terms {
    struct address token, stake_manager, adapter_registry, escrow, disputes;
    uint64_t challenge_window_s;
};
int view_ledger_terms(const struct contract_at *where, struct ledger_terms *out, struct err *err);

#endif
