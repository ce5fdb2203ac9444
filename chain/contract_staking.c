/* contract_staking: the token and StakeManager. See contracts.h. */
#include "chain/contract_calls.h"

#include "node/base/buf.h"

/* ---- ERC-20, TestToken -------------------------------------------------------------------- */

void initcode_test_token(struct buf *out)
{
    call_initcode(out, CONTRACT_TEST_TOKEN, json_array());
}

void calldata_token_mint(struct buf *out, struct address to, struct u256 amount)
{
    call_data(out, CALL_TOKEN_MINT,
              json_pack("[o, o]", call_address_value(to), call_u256_value(amount)));
}

void calldata_token_approve(struct buf *out, struct address spender, struct u256 amount)
{
    call_data(out, CALL_TOKEN_APPROVE,
              json_pack("[o, o]", call_address_value(spender), call_u256_value(amount)));
}

void calldata_token_transfer(struct buf *out, struct address to, struct u256 amount)
{
    call_data(out, CALL_TOKEN_TRANSFER,
              json_pack("[o, o]", call_address_value(to), call_u256_value(amount)));
}

int view_token_balance(const struct contract_at *where, struct u256 *out, struct address owner,
                       struct err *err)
{
    return call_view_u256(where, out, CALL_TOKEN_BALANCE,
                          json_pack("[o]", call_address_value(owner)), err);
}

int view_token_allowance(const struct contract_at *where, struct u256 *out, struct address owner,
                         struct address spender, struct err *err)
{
    return call_view_u256(
        where, out, CALL_TOKEN_ALLOWANCE,
        json_pack("[o, o]", call_address_value(owner), call_address_value(spender)), err);
}

int view_token_decimals(const struct contract_at *where, uint8_t *out, struct err *err)
{
    uint64_t v;
    if (call_view_u64(where, &v, CALL_TOKEN_DECIMALS, NULL, err) != 0)
        return -1;
    *out = (uint8_t)v; /* a uint8 of the ABI */
    return 0;
}

/* ---- StakeManager ------------------------------------------------------------------------- */

void initcode_stake_manager(struct buf *out, struct address token, struct amount min_stake,
                            uint64_t unbonding_s, struct address treasury, struct address disputes)
{
    call_initcode(out, CONTRACT_STAKE_MANAGER,
                  json_pack("[o, o, o, o, o]", call_address_value(token),
                            call_amount_value(min_stake), call_u64_value(unbonding_s),
                            call_address_value(treasury), call_address_value(disputes)));
}

void calldata_stake_add(struct buf *out, struct amount amount)
{
    call_data(out, CALL_STAKE_ADD, json_pack("[o]", call_amount_value(amount)));
}

void calldata_stake_request_unstake(struct buf *out, struct amount amount)
{
    call_data(out, CALL_STAKE_REQUEST_UNSTAKE, json_pack("[o]", call_amount_value(amount)));
}

void calldata_stake_withdraw(struct buf *out)
{
    call_data(out, CALL_STAKE_WITHDRAW, NULL);
}

void calldata_stake_offer_signer(struct buf *out, struct address operator_address)
{
    call_data(out, CALL_STAKE_OFFER_SIGNER, json_pack("[o]", call_address_value(operator_address)));
}

void calldata_stake_add_signer(struct buf *out, struct address signer)
{
    call_data(out, CALL_STAKE_ADD_SIGNER, json_pack("[o]", call_address_value(signer)));
}

void calldata_stake_remove_signer(struct buf *out, struct address signer)
{
    call_data(out, CALL_STAKE_REMOVE_SIGNER, json_pack("[o]", call_address_value(signer)));
}

int view_stake(const struct contract_at *where, struct stake_state *out,
               struct address operator_address, struct err *err)
{
    json_t *r = call_view(where, CALL_STAKE_OF,
                          json_pack("[o]", call_address_value(operator_address)), err);
    if (r == NULL)
        return -1;
    *out = (struct stake_state){result_amount(r, 0), result_amount(r, 1), result_u64(r, 2)};
    json_decref(r);
    return 0;
}

int view_stake_signer(const struct contract_at *where, struct stake_signer *out,
                      struct address signer, struct err *err)
{
    json_t *r = call_view(where, CALL_STAKE_SIGNER, json_pack("[o]", call_address_value(signer)),
                          err);
    if (r == NULL)
        return -1;
    *out = (struct stake_signer){result_address(r, 0), result_u64(r, 1), result_u64(r, 2)};
    json_decref(r);
    return 0;
}

int view_stake_behind(const struct contract_at *where, struct stake_behind *out,
                      struct address signer, struct err *err)
{
    json_t *r = call_view(where, CALL_STAKE_BEHIND, json_pack("[o]", call_address_value(signer)),
                          err);
    if (r == NULL)
        return -1;
    *out = (struct stake_behind){result_address(r, 0), result_amount(r, 1), result_bool(r, 2)};
    json_decref(r);
    return 0;
}

int view_stake_terms(const struct contract_at *where, struct stake_terms *out, struct err *err)
{
    return call_view_address(where, &out->token, CALL_STAKE_TOKEN, NULL, err) ||
                   call_view_address(where, &out->treasury, CALL_STAKE_TREASURY, NULL, err) ||
                   call_view_address(where, &out->disputes, CALL_STAKE_DISPUTES, NULL, err) ||
                   call_view_amount(where, &out->min_stake, CALL_STAKE_MIN, NULL, err) ||
                   call_view_u64(where, &out->unbonding_s, CALL_STAKE_UNBONDING, NULL, err)
               ? -1
               : 0;
}
