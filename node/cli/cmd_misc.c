/* cmd_misc: version, help, completion: commands about the program itself. */
#include "node/cli/commands.h"
#include "node/node.h"

#include <string.h>

#include <jansson.h>

static int run_version(const struct cli_args *a)
{
    if (cli_has(a, "json")) {
        json_t *v = json_pack("{s:s}", "version", TRIBUTARY_VERSION);
        cli_print_json(v);
        json_decref(v);
    } else {
        puts("tributary " TRIBUTARY_VERSION);
    }
    return 0;
}

const struct cli_command cmd_version = {
    .name = "version",
    .summary = "print the version",
    .synopsis = "[--json]",
    .description = "Prints the program's version.",
    .options = (const struct cli_option[]){{"json", CLI_SWITCH, NULL, "Print JSON."}, {0}},
    .run = run_version,
};

static int run_help(const struct cli_args *a)
{
    const char *name = cli_operand(a, 0), *sub = cli_operand(a, 1);
    if (name == NULL) {
        char *argv[] = {"tributary", "--help", NULL};
        return cli_main(cli_commands, cli_n_commands, 2, argv);
    }
    char *argv[] = {"tributary", (char *)(uintptr_t)name,
                    sub != NULL ? (char *)(uintptr_t)sub : "--help", "--help", NULL};
    return cli_main(cli_commands, cli_n_commands, sub != NULL ? 4 : 3, argv);
}

const struct cli_command cmd_help = {
    .name = "help",
    .summary = "tell about a command",
    .synopsis = "[COMMAND [SUBCOMMAND]]",
    .description = "Prints the list of commands, or the manual of one, as COMMAND --help does.",
    .n_operands_max = 2,
    .run = run_help,
};

static int run_completion(const struct cli_args *a)
{
    if (cli_operand(a, 0) != NULL && strcmp(cli_operand(a, 0), "bash") != 0)
        return cli_usage(a, "no completion for %s; there is one for bash", cli_operand(a, 0));
    cli_print_completion(stdout, cli_commands, cli_n_commands);
    return 0;
}

const struct cli_command cmd_completion = {
    .name = "completion",
    .summary = "print a completion script for bash",
    .synopsis = "[bash]",
    .description = "Prints a script that lets bash complete commands, sub-commands and options. It "
                   "is made from the same tables as the help.",
    .examples = "    source <(tributary completion)\n",
    .n_operands_max = 1,
    .run = run_completion,
};
