/* cmd_token: `tributary token mint|balance|transfer`: the payment token, as far as trying things
 * out needs. */
#include "chain/contracts.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/cli/chain_session.h"
#include "node/cli/cli.h"
#include "node/cli/commands.h"

#include <stdio.h>

static int operand_address(const struct cli_args *a, struct address *out, struct err *err)
{
    const char *text = cli_operand(a, 0);
    return address_parse(out, text) == 0
               ? 0
               : err_set(err, ERR_INVALID, "\"%.60s\" is no address", text);
}

/* mint and transfer: an address, an amount, one transaction to the token. */
static int run_send(const struct cli_args *a, const char *what,
                    void (*calldata)(struct buf *out, struct address to, struct u256 amount))
{
    struct chain_session s = {0};
    struct err err = {0};
    struct address to;
    struct amount amount;
    struct chain_sent sent;
    struct buf data = BUF_INIT;
    int rc = operand_address(a, &to, &err);
    if (rc == 0)
        rc = amount_from_text(&amount, cli_operand(a, 1), &err);
    if (rc == 0)
        rc = chain_session_open(&s, a, CHAIN_CONTRACTS | CHAIN_WALLET, &err);
    if (rc == 0) {
        calldata(&data, to, u256_of_amount(amount));
        rc = chain_send(&s, &sent, what, cli_value(a, "key", "default"), &s.contracts.token, &data,
                        &err);
    }
    if (rc == 0)
        chain_print_sent(&s, what, &sent, json_object());
    buf_release(&data);
    chain_session_close(&s);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static int run_mint(const struct cli_args *a)
{
    return run_send(a, "mint", calldata_token_mint);
}

static int run_transfer(const struct cli_args *a)
{
    return run_send(a, "transfer", calldata_token_transfer);
}

static int run_balance(const struct cli_args *a)
{
    struct chain_session s = {0};
    struct err err = {0};
    struct address owner;
    struct u256 balance;
    int rc = operand_address(a, &owner, &err);
    if (rc == 0)
        rc = chain_session_open(&s, a, CHAIN_CONTRACTS, &err);
    if (rc == 0) {
        struct contract_at at = chain_at(&s, CONTRACT_TEST_TOKEN);
        rc = view_token_balance(&at, &balance, owner, &err);
    }
    if (rc == 0) {
        char units[U256_TEXT_BYTES];
        u256_format(units, balance);
        if (cli_has(a, "json"))
            printf("{\"balance\": \"%s\"}\n", units);
        else
            printf("%s\n", units);
    }
    chain_session_close(&s);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static const struct cli_option options[] = {
    CHAIN_SEND_OPTIONS,
    CHAIN_KEY_OPTION("The key that sends. Default: default."),
    {0},
};
static const struct cli_option balance_options[] = {CHAIN_JSON_OPTION, {0}};

static const struct cli_command subcommands[] = {
    {
        .name = "mint",
        .summary = "make test tokens out of nothing",
        .synopsis = "ADDRESS AMOUNT --deployment FILE [--key NAME]",
        .description = "Only a TestToken lets anyone mint; a real token refuses.",
        .options = options,
        .takes_config = true,
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = run_mint,
    },
    {
        .name = "transfer",
        .summary = "send tokens",
        .synopsis = "ADDRESS AMOUNT --deployment FILE [--key NAME]",
        .description = "Moves tokens of the key's account to ADDRESS.",
        .options = options,
        .takes_config = true,
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = run_transfer,
    },
    {
        .name = "balance",
        .summary = "show an account's tokens",
        .synopsis = "ADDRESS --deployment FILE",
        .description = "Prints the balance in the token's smallest unit.",
        .options = balance_options,
        .takes_config = true,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = run_balance,
    },
    {0},
};

const struct cli_command cmd_token = {
    .name = "token",
    .summary = "the payment token: balance, transfer, mint on test chains",
    .synopsis = "COMMAND",
    .description = "AMOUNT is in the smallest unit, or in tokens as 12.5tok (18 decimals).",
    .subcommands = subcommands,
};
