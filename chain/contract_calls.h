/* contract_calls: what the typed calls of contracts.h are made of. Inside chain/.
 *
 * A call is a row of a table: contract, function, argument types, result types. The files of each
 * contract build arguments in the order of their row and read results in the order of theirs:
 *
 *   contract_staking.c      the token, StakeManager
 *   contract_registry.c     AdapterRegistry
 *   contract_settlement.c   Escrow, AttributionLedger */
#ifndef TRIBUTARY_CHAIN_CONTRACT_CALLS_H
#define TRIBUTARY_CHAIN_CONTRACT_CALLS_H

#include "chain/contracts.h"

enum contract_call {
    CALL_TOKEN_MINT,
    CALL_TOKEN_APPROVE,
    CALL_TOKEN_TRANSFER,
    CALL_TOKEN_BALANCE,
    CALL_TOKEN_ALLOWANCE,
    CALL_TOKEN_DECIMALS,
    CALL_STAKE_ADD,
    CALL_STAKE_REQUEST_UNSTAKE,
    CALL_STAKE_WITHDRAW,
    CALL_STAKE_OFFER_SIGNER,
    CALL_STAKE_ADD_SIGNER,
    CALL_STAKE_REMOVE_SIGNER,
    CALL_STAKE_OF,
    CALL_STAKE_SIGNER,
    CALL_STAKE_BEHIND,
    CALL_STAKE_TOKEN,
    CALL_STAKE_TREASURY,
    CALL_STAKE_DISPUTES,
    CALL_STAKE_MIN,
    CALL_STAKE_UNBONDING,
    CALL_REGISTRY_REGISTER_DATANET,
    CALL_REGISTRY_REGISTER_ADAPTER,
    CALL_REGISTRY_RETIRE,
    CALL_REGISTRY_PROPOSE_PAYEE,
    CALL_REGISTRY_PROPOSE_DATANET_PAYEE,
    CALL_REGISTRY_ADAPTER,
    CALL_REGISTRY_FIRST_BY_CONTENT,
    CALL_REGISTRY_PAYEE,
    CALL_REGISTRY_WRITTEN_PAYEE,
    CALL_REGISTRY_DATANET_PAYEE,
    CALL_REGISTRY_PAYEE_DELAY,
    CALL_ESCROW_DEPOSIT,
    CALL_ESCROW_DEPOSIT_FOR,
    CALL_ESCROW_REQUEST_THAW,
    CALL_ESCROW_WITHDRAW,
    CALL_ESCROW_ADD_SIGNER,
    CALL_ESCROW_REMOVE_SIGNER,
    CALL_ESCROW_REDEEM,
    CALL_ESCROW_REDEEM_MANY,
    CALL_ESCROW_ACCOUNT,
    CALL_ESCROW_CHANNEL,
    CALL_ESCROW_REDEEMED,
    CALL_ESCROW_IS_SIGNER,
    CALL_ESCROW_TOKEN,
    CALL_ESCROW_STAKE_MANAGER,
    CALL_ESCROW_LEDGER,
    CALL_ESCROW_THAW,
    CALL_LEDGER_SUBMIT,
    CALL_LEDGER_CLAIM,
    CALL_LEDGER_CLAIM_MANY,
    CALL_LEDGER_HEAD,
    CALL_LEDGER_FINAL,
    CALL_LEDGER_BATCH,
    CALL_LEDGER_IS_SUBMITTED,
    CALL_LEDGER_IS_VOIDED,
    CALL_LEDGER_CLAIMED,
    CALL_LEDGER_PAID,
    CALL_LEDGER_VERIFY_RECEIPT,
    CALL_LEDGER_VERIFY_PAYOUT,
    CALL_LEDGER_TOKEN,
    CALL_LEDGER_STAKE_MANAGER,
    CALL_LEDGER_REGISTRY,
    CALL_LEDGER_ESCROW,
    CALL_LEDGER_DISPUTES,
    CALL_LEDGER_WINDOW,
    N_CALLS
};

/* Appends the data of a call. args is taken over; NULL: none. */
void call_data(struct buf *out, enum contract_call call, json_t *args);
void call_initcode(struct buf *out, enum contract c, json_t *args);

/* The results, a new reference; NULL with *err. */
json_t *call_view(const struct contract_at *where, enum contract_call call, json_t *args,
                  struct err *err);
/* Views of one result. */
int call_view_address(const struct contract_at *where, struct address *out, enum contract_call call,
                      json_t *args, struct err *err);
int call_view_u256(const struct contract_at *where, struct u256 *out, enum contract_call call,
                   json_t *args, struct err *err);
int call_view_amount(const struct contract_at *where, struct amount *out, enum contract_call call,
                     json_t *args, struct err *err);
int call_view_u64(const struct contract_at *where, uint64_t *out, enum contract_call call,
                  json_t *args, struct err *err);
int call_view_bool(const struct contract_at *where, bool *out, enum contract_call call,
                   json_t *args, struct err *err);

/* Arguments: new JSON values. */
json_t *call_bytes_value(const void *bytes, size_t n);
json_t *call_address_value(struct address a);
json_t *call_word_value(const uint8_t bytes[32]);
json_t *call_u256_value(struct u256 v);
json_t *call_amount_value(struct amount a);
json_t *call_u64_value(uint64_t v);
json_t *call_signature_value(const struct signature *sig);
/* The splits as the `bytes` argument that shows them to the registry; NULL: no bytes. */
json_t *call_shown_splits_value(const struct splits *s);

/* Results by place. The decoder has checked that they are of the table's types: anything else is a
 * bug. */
struct u256 result_u256(const json_t *results, size_t i);
struct amount result_amount(const json_t *results, size_t i);
uint64_t result_u64(const json_t *results, size_t i);
void result_word(uint8_t out[32], const json_t *results, size_t i);
struct address result_address(const json_t *results, size_t i);
bool result_bool(const json_t *results, size_t i);

#endif
