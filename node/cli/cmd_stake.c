/* cmd_stake: `tributary stake add|signer|revoke|unstake|withdraw|status`: what an operator puts at
 * stake.
 *
 * The stake key ("operator") owns the stake; the hot key ("signer") signs receipts and batches and
 * can't touch it. A hot key offers itself, the operator takes it: two transactions, both sent here
 * when the wallet holds both keys. */
#include "chain/contracts.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/cli/chain_session.h"
#include "node/cli/cli.h"
#include "node/cli/commands.h"
#include "node/config.h"
#include "wallet/wallet.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

static const char *operator_key(const struct cli_args *a)
{
    return cli_value(a, "key", "operator");
}

/* One transaction to StakeManager from the operator's key. */
static int run_simple(const struct cli_args *a, const char *what, bool takes_amount,
                      void (*calldata)(struct buf *out, struct amount amount))
{
    struct chain_session s = {0};
    struct err err = {0};
    struct amount amount = AMOUNT_ZERO;
    struct chain_sent sent;
    struct buf data = BUF_INIT;
    int rc = takes_amount ? amount_from_text(&amount, cli_operand(a, 0), &err) : 0;
    if (rc == 0)
        rc = chain_session_open(&s, a, CHAIN_CONTRACTS | CHAIN_WALLET, &err);
    if (rc == 0) {
        calldata(&data, amount);
        rc = chain_send(&s, &sent, what, operator_key(a), &s.contracts.stake_manager, &data, &err);
    }
    if (rc == 0)
        chain_print_sent(&s, what, &sent, json_object());
    buf_release(&data);
    chain_session_close(&s);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static void withdraw_data(struct buf *out, struct amount none)
{
    (void)none;
    calldata_stake_withdraw(out);
}

static int run_unstake(const struct cli_args *a)
{
    return run_simple(a, "unstake", true, calldata_stake_request_unstake);
}

static int run_withdraw(const struct cli_args *a)
{
    return run_simple(a, "withdraw", false, withdraw_data);
}

static int run_add(const struct cli_args *a)
{
    struct chain_session s = {0};
    struct err err = {0};
    struct amount amount;
    struct chain_sent sent;
    struct buf data = BUF_INIT;
    int rc = amount_from_text(&amount, cli_operand(a, 0), &err);
    if (rc == 0)
        rc = chain_session_open(&s, a, CHAIN_CONTRACTS | CHAIN_WALLET, &err);
    if (rc == 0) {
        s.must_wait = true; /* the stake needs the approval in a block */
        calldata_token_approve(&data, s.contracts.stake_manager, u256_of_amount(amount));
        rc = chain_send(&s, &sent, "approve", operator_key(a), &s.contracts.token, &data, &err);
    }
    if (rc == 0) {
        s.must_wait = false;
        buf_reset(&data);
        calldata_stake_add(&data, amount);
        rc = chain_send(&s, &sent, "stake", operator_key(a), &s.contracts.stake_manager, &data,
                        &err);
    }
    if (rc == 0)
        chain_print_sent(&s, "stake", &sent, json_object());
    buf_release(&data);
    chain_session_close(&s);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

/* ---- signers
 * --------------------------------------------------------------------------------------- */

static const char *signer_key(const struct cli_args *a)
{
    const char *name = cli_operand(a, 0);
    return name != NULL ? name : config_string(cli_config(a), CONFIG_WALLET_SIGNER);
}

static int add_signer(struct chain_session *s, const struct cli_args *a, struct chain_sent *sent,
                      struct err *err)
{
    struct address owner, signer;
    struct stake_signer state;
    struct contract_at at = chain_at(s, CONTRACT_STAKE_MANAGER);
    if (wallet_key_address(s->wallet, operator_key(a), &owner, err) != 0 ||
        wallet_key_address(s->wallet, signer_key(a), &signer, err) != 0 ||
        view_stake_signer(&at, &state, signer, err) != 0)
        return -1;
    struct buf data = BUF_INIT;
    int rc = 0;
    /* An operator's own key needs no offer; an offer that was made needs no second one. */
    if (!address_eq(owner, signer) && !address_eq(state.operator_address, owner)) {
        s->must_wait = true;
        calldata_stake_offer_signer(&data, owner);
        rc = chain_send(s, sent, "offer of the signer", signer_key(a), &s->contracts.stake_manager,
                        &data, err);
        s->must_wait = false;
    }
    if (rc == 0) {
        buf_reset(&data);
        calldata_stake_add_signer(&data, signer);
        rc = chain_send(s, sent, "add signer", operator_key(a), &s->contracts.stake_manager, &data,
                        err);
    }
    buf_release(&data);
    return rc;
}

static int remove_signer(struct chain_session *s, const struct cli_args *a, struct chain_sent *sent,
                         struct err *err)
{
    struct address signer;
    if (wallet_key_address(s->wallet, signer_key(a), &signer, err) != 0)
        return -1;
    struct buf data = BUF_INIT;
    calldata_stake_remove_signer(&data, signer);
    int rc = chain_send(s, sent, "revoke signer", operator_key(a), &s->contracts.stake_manager,
                        &data, err);
    buf_release(&data);
    return rc;
}

static int run_signer_change(const struct cli_args *a, const char *what,
                             int (*change)(struct chain_session *s, const struct cli_args *a,
                                           struct chain_sent *sent, struct err *err))
{
    struct chain_session s;
    struct err err = {0};
    struct chain_sent sent;
    int rc = chain_session_open(&s, a, CHAIN_CONTRACTS | CHAIN_WALLET, &err);
    if (rc == 0)
        rc = change(&s, a, &sent, &err);
    if (rc == 0)
        chain_print_sent(&s, what, &sent, json_object());
    chain_session_close(&s);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static int run_signer(const struct cli_args *a)
{
    return run_signer_change(a, "signer", add_signer);
}

static int run_revoke(const struct cli_args *a)
{
    return run_signer_change(a, "revoke", remove_signer);
}

/* ---- status
 * ---------------------------------------------------------------------------------------- */

static int status_address(const struct cli_args *a, const struct chain_session *s,
                          struct address *out, struct err *err)
{
    int given = address_option(a, "operator", out, err);
    if (given != 0)
        return given < 0 ? -1 : 0;
    return wallet_key_address(s->wallet, operator_key(a), out, err);
}

static int run_status(const struct cli_args *a)
{
    struct chain_session s;
    struct err err = {0};
    struct address who;
    struct stake_state state;
    struct stake_terms terms;
    unsigned needs = CHAIN_CONTRACTS | (cli_value(a, "operator", NULL) ? 0u : CHAIN_WALLET);
    int rc = chain_session_open(&s, a, needs, &err);
    struct contract_at at = chain_at(&s, CONTRACT_STAKE_MANAGER);
    if (rc == 0)
        rc = status_address(a, &s, &who, &err);
    if (rc == 0)
        rc = view_stake(&at, &state, who, &err);
    if (rc == 0)
        rc = view_stake_terms(&at, &terms, &err);
    if (rc == 0) {
        char text[ADDRESS_TEXT_BYTES], total[64], unbonding[64], least[64];
        struct amount active = state.total;
        amount_sub(&active, active, state.unbonding);
        bool live = amount_cmp(active, terms.min_stake) >= 0;
        if (cli_has(a, "json")) {
            json_t *o = json_object();
            json_object_set_new(o, "operator", json_string(address_format(text, who)));
            json_object_set_new(o, "total", json_string(amount_format(total, state.total)));
            json_object_set_new(o, "unbonding",
                                json_string(amount_format(unbonding, state.unbonding)));
            json_object_set_new(o, "minStake", json_string(amount_format(least, terms.min_stake)));
            json_object_set_new(o, "withdrawableAt",
                                json_integer((json_int_t)state.withdrawable_at_s));
            json_object_set_new(o, "live", json_boolean(live));
            cli_print_json(o);
            json_decref(o);
        } else {
            printf("operator    %s\nstake       %s (least: %s)\nunbonding   %s\nlive        %s\n",
                   address_format(text, who), amount_to_tokens(total, state.total),
                   amount_to_tokens(least, terms.min_stake),
                   amount_to_tokens(unbonding, state.unbonding), live ? "yes" : "no");
        }
    }
    chain_session_close(&s);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static const struct cli_option options[] = {
    CHAIN_SEND_OPTIONS,
    CHAIN_KEY_OPTION("The operator's stake key. Default: operator."),
    {0},
};
static const struct cli_option status_options[] = {
    CHAIN_JSON_OPTION,
    CHAIN_KEY_OPTION("The operator's stake key. Default: operator."),
    {"operator", CLI_VALUE, "ADDRESS", "Another operator; needs no wallet."},
    {0},
};

static const struct cli_command subcommands[] = {
    {
        .name = "add",
        .summary = "stake tokens",
        .synopsis = "AMOUNT --deployment FILE",
        .description = "Approves and stakes AMOUNT of the operator's tokens.",
        .examples = "    tributary stake add 50000tok --deployment deployment.json\n",
        .options = options,
        .takes_config = true,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = run_add,
    },
    {
        .name = "signer",
        .summary = "make a hot key of the wallet one of the operator's signers",
        .synopsis = "[NAME] --deployment FILE",
        .description =
            "The hot key offers itself, the operator's key takes it. Both must be in the "
            "wallet. A key serves one operator, ever.",
        .options = options,
        .takes_config = true,
        .n_operands_max = 1,
        .run = run_signer,
    },
    {
        .name = "revoke",
        .summary = "revoke a signer, for good",
        .synopsis = "[NAME] --deployment FILE",
        .description = "What the key has signed and the chain has not seen becomes void.",
        .options = options,
        .takes_config = true,
        .n_operands_max = 1,
        .run = run_revoke,
    },
    {
        .name = "unstake",
        .summary = "ask for stake back",
        .synopsis = "AMOUNT --deployment FILE",
        .description = "Starts the unbonding period for AMOUNT, in place of any earlier request; 0 "
                       "cancels.",
        .options = options,
        .takes_config = true,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = run_unstake,
    },
    {
        .name = "withdraw",
        .summary = "take out what has unbonded",
        .synopsis = "--deployment FILE",
        .description = "Pays the unbonded stake to the operator's account.",
        .options = options,
        .takes_config = true,
        .run = run_withdraw,
    },
    {
        .name = "status",
        .summary = "show an operator's stake",
        .synopsis = "[--operator ADDRESS] --deployment FILE [--json]",
        .description = "Total, what is unbonding, and whether it reaches the least stake.",
        .options = status_options,
        .takes_config = true,
        .run = run_status,
    },
    {0},
};

const struct cli_command cmd_stake = {
    .name = "stake",
    .summary = "stake tokens, name signers, take stake back",
    .synopsis = "COMMAND",
    .description = "An operator's stake stands behind its receipts and bounds the value of batches "
                   "that can still be challenged.",
    .subcommands = subcommands,
};
