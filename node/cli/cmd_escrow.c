/* cmd_escrow: `tributary escrow deposit|thaw|withdraw|status`: a payer's money at an operator. */
#include "chain/contracts.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/cli/chain_session.h"
#include "node/cli/cli.h"
#include "node/cli/commands.h"
#include "node/config.h"
#include "wallet/wallet.h"

#include <stdio.h>

static const char *payer_key(const struct cli_args *a)
{
    return cli_value(a, "key", config_string(cli_config(a), CONFIG_WALLET_HOUSE));
}

/* The operator the money is for: the option, or chain.operator, or the wallet's key "operator". */
static int operator_of(const struct cli_args *a, const struct chain_session *s, struct address *out,
                       struct err *err)
{
    if (config_address(s->config, CONFIG_CHAIN_OPERATOR, out->bytes))
        return 0;
    if (s->wallet != NULL && wallet_has(s->wallet, "operator"))
        return wallet_key_address(s->wallet, "operator", out, err);
    (void)a;
    return err_set(err, ERR_INVALID, "which operator? (--operator ADDRESS)");
}

enum action { DEPOSIT, THAW, WITHDRAW };

static int act(struct chain_session *s, const struct cli_args *a, enum action action,
               struct chain_sent *sent, struct err *err)
{
    struct address operator_address;
    struct amount amount = AMOUNT_ZERO;
    if (operator_of(a, s, &operator_address, err) != 0 ||
        (action != WITHDRAW && amount_from_text(&amount, cli_operand(a, 0), err) != 0))
        return -1;
    struct buf data = BUF_INIT;
    int rc = 0;
    const char *what = "withdraw";
    switch (action) {
    case DEPOSIT:
        s->must_wait = true;
        calldata_token_approve(&data, s->contracts.escrow, u256_of_amount(amount));
        rc = chain_send(s, sent, "approve", payer_key(a), &s->contracts.token, &data, err);
        s->must_wait = false;
        buf_reset(&data);
        calldata_escrow_deposit(&data, operator_address, amount);
        what = "deposit";
        break;
    case THAW:
        calldata_escrow_request_thaw(&data, operator_address, amount);
        what = "thaw";
        break;
    case WITHDRAW:
        calldata_escrow_withdraw(&data, operator_address);
        break;
    }
    if (rc == 0)
        rc = chain_send(s, sent, what, payer_key(a), &s->contracts.escrow, &data, err);
    if (rc == 0)
        chain_print_sent(s, what, sent, json_object());
    buf_release(&data);
    return rc;
}

static int run(const struct cli_args *a, enum action action)
{
    struct chain_session s;
    struct err err = {0};
    struct chain_sent sent;
    int rc = chain_session_open(&s, a, CHAIN_CONTRACTS | CHAIN_WALLET, &err);
    if (rc == 0)
        rc = act(&s, a, action, &sent, &err);
    chain_session_close(&s);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static int run_deposit(const struct cli_args *a)
{
    return run(a, DEPOSIT);
}

static int run_thaw(const struct cli_args *a)
{
    return run(a, THAW);
}

static int run_withdraw(const struct cli_args *a)
{
    return run(a, WITHDRAW);
}

static int show(struct chain_session *s, const struct cli_args *a, struct err *err)
{
    struct address operator_address, payer;
    struct escrow_account account;
    struct amount redeemed;
    struct contract_at at = chain_at(s, CONTRACT_ESCROW);
    int given = address_option(a, "payer", &payer, err);
    if (given < 0 || operator_of(a, s, &operator_address, err) != 0 ||
        (given == 0 && wallet_key_address(s->wallet, payer_key(a), &payer, err) != 0) ||
        view_escrow_account(&at, &account, payer, operator_address, err) != 0 ||
        view_escrow_redeemed(&at, &redeemed, operator_address, err) != 0)
        return -1;
    char who[ADDRESS_TEXT_BYTES], whose[ADDRESS_TEXT_BYTES], one[64], two[64], three[64];
    address_format(who, payer);
    address_format(whose, operator_address);
    if (cli_has(a, "json")) {
        json_t *o = json_object();
        json_object_set_new(o, "payer", json_string(who));
        json_object_set_new(o, "operator", json_string(whose));
        json_object_set_new(o, "balance", json_string(amount_format(one, account.balance)));
        json_object_set_new(o, "thawing", json_string(amount_format(two, account.thawing)));
        json_object_set_new(o, "withdrawableAt",
                            json_integer((json_int_t)account.withdrawable_at_s));
        json_object_set_new(o, "operatorRedeemed", json_string(amount_format(three, redeemed)));
        cli_print_json(o);
        json_decref(o);
    } else {
        printf("payer       %s\noperator    %s\nbalance     %s\nthawing     %s\nredeemed    %s (by "
               "the operator, of all payers)\n",
               who, whose, amount_to_tokens(one, account.balance),
               amount_to_tokens(two, account.thawing), amount_to_tokens(three, redeemed));
    }
    return 0;
}

static int run_status(const struct cli_args *a)
{
    struct chain_session s;
    struct err err = {0};
    unsigned needs = CHAIN_CONTRACTS | (cli_value(a, "payer", NULL) ? 0u : CHAIN_WALLET);
    int rc = chain_session_open(&s, a, needs, &err);
    if (rc == 0)
        rc = show(&s, a, &err);
    chain_session_close(&s);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static const struct cli_option options[] = {
    CHAIN_SEND_OPTIONS,
    CHAIN_KEY_OPTION("The payer's key. Default: wallet.house."),
    {0},
};
static const struct cli_option status_options[] = {
    CHAIN_JSON_OPTION,
    CHAIN_KEY_OPTION("The payer's key. Default: wallet.house."),
    {"payer", CLI_VALUE, "ADDRESS", "Another payer; needs no wallet."},
    {0},
};

static const struct cli_command subcommands[] = {
    {
        .name = "deposit",
        .summary = "put tokens into the escrow at an operator",
        .synopsis = "AMOUNT [--operator ADDRESS] --deployment FILE",
        .description =
            "Approves and deposits AMOUNT of the payer's tokens. Vouchers that the payer "
            "signs are redeemed from it.",
        .examples = "    tributary escrow deposit 1000tok --deployment deployment.json\n",
        .options = options,
        .takes_config = true,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = run_deposit,
    },
    {
        .name = "thaw",
        .summary = "announce a withdrawal",
        .synopsis = "AMOUNT [--operator ADDRESS] --deployment FILE",
        .description = "Starts the thaw period for AMOUNT, in place of any earlier request; 0 "
                       "cancels. Vouchers can still be redeemed from what is thawing.",
        .options = options,
        .takes_config = true,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = run_thaw,
    },
    {
        .name = "withdraw",
        .summary = "take out what has thawed",
        .synopsis = "[--operator ADDRESS] --deployment FILE",
        .description = "Pays what has thawed, and is still there, to the payer.",
        .options = options,
        .takes_config = true,
        .run = run_withdraw,
    },
    {
        .name = "status",
        .summary = "show a payer's escrow at an operator",
        .synopsis = "[--payer ADDRESS] [--operator ADDRESS] --deployment FILE [--json]",
        .description = "Balance, what is thawing, and what the operator has redeemed in all.",
        .options = status_options,
        .takes_config = true,
        .run = run_status,
    },
    {0},
};

const struct cli_command cmd_escrow = {
    .name = "escrow",
    .summary = "a payer's deposit at an operator",
    .synopsis = "COMMAND",
    .description = "The payer is the operator's house account unless --key names another key.",
    .subcommands = subcommands,
};
