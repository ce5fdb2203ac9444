/* commands: the list of sub-commands, in the order in which help shows them.
 *
 * Adding a command is one line here and one file node/cli/cmd_<name>.c that defines
 * `const struct cli_command cmd_<name>`. */
#ifndef TRIBUTARY_NODE_CLI_COMMANDS_H
#define TRIBUTARY_NODE_CLI_COMMANDS_H

#include "node/cli/cli.h"

/* clang-format off */
#define CLI_COMMANDS(X) \
    X(serve)            \
    X(config)           \
    X(wallet)           \
    X(deploy)           \
    X(token)            \
    X(stake)            \
    X(escrow)           \
    X(request)          \
    X(voucher)          \
    X(adapter)          \
    X(datanet)          \
    X(registry)         \
    X(status)           \
    X(usage)            \
    X(rewards)          \
    X(receipt)          \
    X(batches)          \
    X(seal)             \
    X(claim)            \
    X(verify)           \
    X(bench)            \
    X(completion)       \
    X(version)          \
    X(help)
/* clang-format on */

#define X(name) extern const struct cli_command cmd_##name;
CLI_COMMANDS(X)
#undef X

extern const struct cli_command *const cli_commands[]; /* [cli_n_commands] */
extern const size_t cli_n_commands;

#endif
