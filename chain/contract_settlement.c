/* contract_settlement: Escrow and AttributionLedger. See contracts.h. */
#include "chain/contract_calls.h"

#include "chain/keccak.h"
#include "node/base/buf.h"

#include <string.h>

/* ---- Escrow ------------------------------------------------------------------------------- */

static json_t *voucher_value(const struct voucher *v)
{
    return json_pack("[o, o, o, o, o, o]", call_address_value(v->payer),
                     call_address_value(v->operator_address), call_word_value(v->channel),
                     call_u64_value(v->timestamp_ms), call_amount_value(v->value_aggregate),
                     call_word_value(v->last_receipt_hash));
}

void initcode_escrow(struct buf *out, struct address token, struct address stake_manager,
                     struct address attribution_ledger, uint64_t thaw_s)
{
    call_initcode(out, CONTRACT_ESCROW,
                  json_pack("[o, o, o, o]", call_address_value(token),
                            call_address_value(stake_manager),
                            call_address_value(attribution_ledger), call_u64_value(thaw_s)));
}

void calldata_escrow_deposit(struct buf *out, struct address operator_address, struct amount amount)
{
    call_data(out, CALL_ESCROW_DEPOSIT,
              json_pack("[o, o]", call_address_value(operator_address), call_amount_value(amount)));
}

void calldata_escrow_deposit_for(struct buf *out, struct address payer,
                                 struct address operator_address, struct amount amount)
{
    call_data(out, CALL_ESCROW_DEPOSIT_FOR,
              json_pack("[o, o, o]", call_address_value(payer),
                        call_address_value(operator_address), call_amount_value(amount)));
}

void calldata_escrow_request_thaw(struct buf *out, struct address operator_address,
                                  struct amount amount)
{
    call_data(out, CALL_ESCROW_REQUEST_THAW,
              json_pack("[o, o]", call_address_value(operator_address), call_amount_value(amount)));
}

void calldata_escrow_withdraw(struct buf *out, struct address operator_address)
{
    call_data(out, CALL_ESCROW_WITHDRAW, json_pack("[o]", call_address_value(operator_address)));
}

void calldata_escrow_add_signer(struct buf *out, struct address signer)
{
    call_data(out, CALL_ESCROW_ADD_SIGNER, json_pack("[o]", call_address_value(signer)));
}

void calldata_escrow_remove_signer(struct buf *out, struct address signer)
{
    call_data(out, CALL_ESCROW_REMOVE_SIGNER, json_pack("[o]", call_address_value(signer)));
}

static json_t *redeemable_value(const struct redeemable_voucher *v)
{
    return json_pack("[o, o, o]", voucher_value(&v->voucher), call_u64_value(v->epoch),
                     call_signature_value(&v->signature));
}

void calldata_escrow_redeem(struct buf *out, const struct redeemable_voucher *v)
{
    /* The members of a SignedVoucher are redeem's three arguments. */
    call_data(out, CALL_ESCROW_REDEEM, redeemable_value(v));
}

void calldata_escrow_redeem_many(struct buf *out, struct address operator_address,
                                 const struct redeemable_voucher *vouchers, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, redeemable_value(&vouchers[i]));
    call_data(out, CALL_ESCROW_REDEEM_MANY,
              json_pack("[o, o]", call_address_value(operator_address), list));
}

int view_escrow_account(const struct contract_at *where, struct escrow_account *out,
                        struct address payer, struct address operator_address, struct err *err)
{
    json_t *r = call_view(
        where, CALL_ESCROW_ACCOUNT,
        json_pack("[o, o]", call_address_value(payer), call_address_value(operator_address)), err);
    if (r == NULL)
        return -1;
    *out = (struct escrow_account){result_amount(r, 0), result_amount(r, 1), result_u64(r, 2)};
    json_decref(r);
    return 0;
}

int view_escrow_channel(const struct contract_at *where, struct escrow_channel *out,
                        struct address payer, struct address operator_address, uint64_t epoch,
                        struct err *err)
{
    json_t *r = call_view(where, CALL_ESCROW_CHANNEL,
                          json_pack("[o, o, o]", call_address_value(payer),
                                    call_address_value(operator_address), call_u64_value(epoch)),
                          err);
    if (r == NULL)
        return -1;
    out->value_aggregate = result_amount(r, 0);
    result_word(out->last_receipt.bytes, r, 1);
    json_decref(r);
    return 0;
}

int view_escrow_redeemed(const struct contract_at *where, struct amount *out,
                         struct address operator_address, struct err *err)
{
    return call_view_amount(where, out, CALL_ESCROW_REDEEMED,
                            json_pack("[o]", call_address_value(operator_address)), err);
}

int view_escrow_is_signer(const struct contract_at *where, bool *out, struct address payer,
                          struct address signer, struct err *err)
{
    return call_view_bool(
        where, out, CALL_ESCROW_IS_SIGNER,
        json_pack("[o, o]", call_address_value(payer), call_address_value(signer)), err);
}

int view_escrow_terms(const struct contract_at *where, struct escrow_terms *out, struct err *err)
{
    return call_view_address(where, &out->token, CALL_ESCROW_TOKEN, NULL, err) ||
                   call_view_address(where, &out->stake_manager, CALL_ESCROW_STAKE_MANAGER, NULL,
                                     err) ||
                   call_view_address(where, &out->attribution_ledger, CALL_ESCROW_LEDGER, NULL,
                                     err) ||
                   call_view_u64(where, &out->thaw_s, CALL_ESCROW_THAW, NULL, err)
               ? -1
               : 0;
}

/* ---- AttributionLedger -------------------------------------------------------------------- */

static json_t *batch_value(const struct batch *b)
{
    return json_pack("[o, o, o, o, o, o, o, o, o, o]", call_address_value(b->operator_address),
                     call_u64_value(b->seq), call_u64_value(b->leaf_count),
                     call_word_value(b->receipts_root), call_word_value(b->payout_root),
                     call_amount_value(b->committed), call_u64_value(b->period_start),
                     call_u64_value(b->period_end), call_word_value(b->data_hash.bytes),
                     call_word_value(b->prev_batch_hash));
}

static json_t *payout_value(const struct payout_claim *c)
{
    return json_pack("[o, o, o, o]", call_u64_value(c->kind), call_word_value(c->id),
                     call_u64_value(c->position), call_amount_value(c->amount));
}

/* Siblings end to end, 48 bytes each: hash, sum (PayoutTree.sol). */
static json_t *proof_value(const struct payout_claim *c)
{
    struct buf b = BUF_INIT;
    for (size_t i = 0; i < c->n_siblings; i++) {
        uint8_t sum[16];
        amount_to_bytes(sum, c->siblings[i].sum);
        buf_append(&b, c->siblings[i].hash, sizeof c->siblings[i].hash);
        buf_append(&b, sum, sizeof sum);
    }
    json_t *value = json_pack("[o, o, o]", call_u64_value(c->index), call_u64_value(c->leaf_count),
                              call_bytes_value(b.data, b.len));
    buf_release(&b);
    return value;
}

void initcode_attribution_ledger(struct buf *out, struct address stake_manager,
                                 struct address adapter_registry, struct address escrow,
                                 uint64_t challenge_window_s)
{
    call_initcode(out, CONTRACT_ATTRIBUTION_LEDGER,
                  json_pack("[o, o, o, o]", call_address_value(stake_manager),
                            call_address_value(adapter_registry), call_address_value(escrow),
                            call_u64_value(challenge_window_s)));
}

void calldata_ledger_submit(struct buf *out, const struct batch *b, const struct signature *sig)
{
    call_data(out, CALL_LEDGER_SUBMIT,
              json_pack("[o, o]", batch_value(b), call_signature_value(sig)));
}

static json_t *batch_ref_value(struct address operator_address, uint64_t seq,
                               struct batch_digest batch)
{
    return json_pack("[o, o, o]", call_address_value(operator_address), call_u64_value(seq),
                     call_word_value(batch.bytes));
}

void calldata_ledger_claim(struct buf *out, struct address operator_address, uint64_t seq,
                           struct batch_digest batch, const struct payout_claim *claim)
{
    call_data(out, CALL_LEDGER_CLAIM,
              json_pack("[o, o, o, o]", batch_ref_value(operator_address, seq, batch),
                        payout_value(claim), proof_value(claim),
                        call_shown_splits_value(claim->splits)));
}

void calldata_ledger_claim_many(struct buf *out, struct address operator_address, uint64_t seq,
                                struct batch_digest batch, const struct payout_claim *claims,
                                size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, json_pack("[o, o, o]", payout_value(&claims[i]),
                                              proof_value(&claims[i]),
                                              call_shown_splits_value(claims[i].splits)));
    call_data(out, CALL_LEDGER_CLAIM_MANY,
              json_pack("[o, o]", batch_ref_value(operator_address, seq, batch), list));
}

int view_ledger_head(const struct contract_at *where, struct batch_head *out,
                     struct address operator_address, struct err *err)
{
    json_t *r = call_view(where, CALL_LEDGER_HEAD,
                          json_pack("[o]", call_address_value(operator_address)), err);
    if (r == NULL)
        return -1;
    out->next_seq = result_u64(r, 0);
    result_word(out->newest.bytes, r, 1);
    out->committed = result_amount(r, 2);
    json_decref(r);
    return 0;
}

int view_ledger_final(const struct contract_at *where, struct batch_final *out,
                      struct address operator_address, struct err *err)
{
    json_t *r = call_view(where, CALL_LEDGER_FINAL,
                          json_pack("[o]", call_address_value(operator_address)), err);
    if (r == NULL)
        return -1;
    *out = (struct batch_final){result_u64(r, 0), result_amount(r, 1)};
    json_decref(r);
    return 0;
}

int view_ledger_batch(const struct contract_at *where, struct batch_record *out,
                      struct address operator_address, uint64_t seq, struct err *err)
{
    json_t *r = call_view(
        where, CALL_LEDGER_BATCH,
        json_pack("[o, o]", call_address_value(operator_address), call_u64_value(seq)), err);
    if (r == NULL)
        return -1;
    result_word(out->commitment, r, 0);
    out->committed = result_amount(r, 1);
    out->leaf_count = (uint32_t)result_u64(r, 2); /* a uint32 of the ABI */
    out->final_at_s = result_u64(r, 3);
    json_decref(r);
    return 0;
}

struct bytes32 batch_commitment(struct batch_digest digest, const struct batch *b)
{
    uint8_t words[96] = {0};
    struct bytes32 out;
    memcpy(words, digest.bytes, 32);
    memcpy(words + 32, b->payout_root, 32);
    amount_to_bytes(words + 80, b->committed);
    struct keccak_digest h = keccak256(words, sizeof words);
    memcpy(out.bytes, h.bytes, sizeof out.bytes);
    return out;
}

int view_ledger_is_submitted(const struct contract_at *where, bool *out, const struct batch *b,
                             struct err *err)
{
    return call_view_bool(where, out, CALL_LEDGER_IS_SUBMITTED, json_pack("[o]", batch_value(b)),
                          err);
}

int view_ledger_is_voided(const struct contract_at *where, bool *out, struct batch_digest digest,
                          struct err *err)
{
    return call_view_bool(where, out, CALL_LEDGER_IS_VOIDED,
                          json_pack("[o]", call_word_value(digest.bytes)), err);
}

int view_ledger_claimed(const struct contract_at *where, struct amount *out,
                        struct address operator_address, uint8_t kind, const uint8_t id[32],
                        uint16_t position, struct err *err)
{
    return call_view_amount(where, out, CALL_LEDGER_CLAIMED,
                            json_pack("[o, o, o, o]", call_address_value(operator_address),
                                      call_u64_value(kind), call_word_value(id),
                                      call_u64_value(position)),
                            err);
}

int view_ledger_paid(const struct contract_at *where, struct amount *out,
                     struct address operator_address, struct err *err)
{
    return call_view_amount(where, out, CALL_LEDGER_PAID,
                            json_pack("[o]", call_address_value(operator_address)), err);
}

int view_ledger_verify_receipt(const struct contract_at *where, bool *out, const struct batch *b,
                               uint32_t position, struct receipt_digest receipt,
                               const uint8_t (*proof)[32], size_t n_proof, struct err *err)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n_proof; i++)
        json_array_append_new(list, call_word_value(proof[i]));
    return call_view_bool(where, out, CALL_LEDGER_VERIFY_RECEIPT,
                          json_pack("[o, o, o, o]", batch_value(b), call_u64_value(position),
                                    call_word_value(receipt.bytes), list),
                          err);
}

int view_ledger_verify_payout(const struct contract_at *where, bool *out, const struct batch *b,
                              const struct payout_claim *claim, struct err *err)
{
    return call_view_bool(
        where, out, CALL_LEDGER_VERIFY_PAYOUT,
        json_pack("[o, o, o]", batch_value(b), payout_value(claim), proof_value(claim)), err);
}

int view_ledger_terms(const struct contract_at *where, struct ledger_terms *out, struct err *err)
{
    return call_view_address(where, &out->token, CALL_LEDGER_TOKEN, NULL, err) ||
                   call_view_address(where, &out->stake_manager, CALL_LEDGER_STAKE_MANAGER, NULL,
                                     err) ||
                   call_view_address(where, &out->adapter_registry, CALL_LEDGER_REGISTRY, NULL,
                                     err) ||
                   call_view_address(where, &out->escrow, CALL_LEDGER_ESCROW, NULL, err) ||
                   call_view_address(where, &out->disputes, CALL_LEDGER_DISPUTES, NULL, err) ||
                   call_view_u64(where, &out->challenge_window_s, CALL_LEDGER_WINDOW, NULL, err)
               ? -1
               : 0;
}
