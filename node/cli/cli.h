/* cli: what every sub-command of the program is made of.
 *
 * A command is a constant: its name, its man page in pieces, its options in a table, and a
 * function. From these, and from nothing else, come parsing, `--help`, the suggestions after a
 * typing error and the shell completion; a command never looks at argv itself. A command may have
 * sub-commands
 * ("wallet new") instead of a function.
 *
 * Standard output carries data, standard error carries sentences about it. Exit status: 0, or
 * err_exit_status() of what went wrong, or EX_USAGE (64) when the command line makes no sense. */
#ifndef TRIBUTARY_NODE_CLI_CLI_H
#define TRIBUTARY_NODE_CLI_CLI_H

#include "node/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct config;
struct json_t; /* jansson's */

enum cli_option_kind {
    CLI_SWITCH, /* --json */
    CLI_VALUE,  /* --node URL, --node=URL; the last one counts */
    CLI_LIST,   /* as CLI_VALUE, but every one counts */
};

struct cli_option {
    const char *name; /* without the dashes */
    enum cli_option_kind kind;
    const char *value; /* the value's name in help ("URL"); NULL for a switch */
    const char *help;  /* one or two sentences, ending with a full stop */
};

struct cli_args;

struct cli_command {
    const char *name;        /* "receipt"; of a sub-command the last word only */
    const char *summary;     /* one line, no full stop */
    const char *synopsis;    /* "ID [--node URL] [--json]"; without the program and command names */
    const char *description; /* paragraphs, separated by empty lines; wrapped when printed */
    const char *examples;    /* lines, printed as they are; may be NULL */
    const struct cli_option *options; /* ends with {0}; may be NULL */
    bool takes_config;                /* accepts every configuration flag too; see node/config.h */
    int n_operands_min, n_operands_max;    /* words that are no options; max -1: any number */
    const struct cli_command *subcommands; /* ends with {0}; NULL: `run` is there */
    int (*run)(const struct cli_args *args);
};

/* ---- what a command is given -------------------------------------------------------------------
 */

bool cli_has(const struct cli_args *a, const char *option); /* given at least once */
const char *cli_value(const struct cli_args *a, const char *option, const char *otherwise);
size_t cli_count(const struct cli_args *a, const char *option);
const char *cli_nth(const struct cli_args *a, const char *option, size_t i);
size_t cli_n_operands(const struct cli_args *a);
const char *cli_operand(const struct cli_args *a, size_t i); /* NULL beyond the last */
/* With takes_config: file, environment and flags put together. */
struct config *cli_config(const struct cli_args *a);
/* Asking for an option that the command's table lacks is a bug and aborts. */

/* ---- what a command says -----------------------------------------------------------------------
 */

/* Text for people that may be a stranger's: control characters, which could take the cursor back
 * and write over what was said before, become "?". Tables and cli_fail do so by themselves. */
void cli_put_text(FILE *to, const char *text);
/* Prints "tributary COMMAND: MESSAGE" to standard error; returns err_exit_status(err->code). */
int cli_fail(const struct cli_args *a, const struct err *err);
/* A command line that makes no sense: the sentence and a pointer to --help; returns EX_USAGE. */
int cli_usage(const struct cli_args *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Text in lines of at most 80 columns, each behind the margin; a newline ends a paragraph. */
void cli_print_wrapped(FILE *to, const char *margin, const char *text);
/* A table for people: columns aligned, numbers to the right. cells [n_rows * n_columns], row by
 * row; a cell that looks like a number is set to the right. */
void cli_print_table(FILE *to, const char *const *titles, size_t n_columns,
                     const char *const *cells, size_t n_rows);
/* A value for programs: one JSON text and a newline on standard output. */
void cli_print_json(const struct json_t *value);

/* ---- running -----------------------------------------------------------------------------------
 */

/* Dispatches argv (argv[0] is the program) over commands [n]; the process's exit status. */
int cli_main(const struct cli_command *const *commands, size_t n, int argc, char **argv);

/* The man page of one command. words: "tributary wallet new". */
void cli_print_help(FILE *to, const struct cli_command *c, const char *words);

/* A bash completion script for commands [n]. */
void cli_print_completion(FILE *to, const struct cli_command *const *commands, size_t n);

/* The word of candidates [n] that is nearest to typed, or NULL when none is near. */
const char *cli_suggest(const char *typed, const char *const *candidates, size_t n);

#endif
