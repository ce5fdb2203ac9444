/* The commands' tables: what help lists is what a command reads, and nothing else is taken. */
#include "tests/support.h"

#include "node/cli/commands.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#define X(name) &cmd_##name,
const struct cli_command *const cli_commands[] = {CLI_COMMANDS(X)};
#undef X
const size_t cli_n_commands = sizeof cli_commands / sizeof *cli_commands;

/* The command line of up to six words; its exit status. */
static int run(const char *line)
{
    char *copy = xasprintf("tributary %s", line), *rest = copy, *argv[8] = {0};
    int argc = 0;
    while (argc < 7 && (argv[argc] = strsep(&rest, " ")) != NULL)
        argc++;
    int status = cli_main(cli_commands, cli_n_commands, argc, argv);
    free(copy);
    return status;
}

static bool help_lists(const struct cli_command *c, const char *option)
{
    char *text = NULL, *line = xasprintf("\n    --%s", option);
    size_t n;
    FILE *to = open_memstream(&text, &n);
    cli_print_help(to, c, "tributary");
    fclose(to);
    bool listed = strstr(text, line) != NULL;
    free(text);
    free(line);
    return listed;
}

/* A node that is asked for its books could otherwise take the cursor back over a line and write
 * another bill, or an "ok". */
static void what_a_node_says_cannot_move_the_cursor(void **state)
{
    (void)state;
    static const char *const titles[] = {"name", "n"};
    static const char *const cells[] = {"a\x1b[2Ab\r\nok\x7f", "1",
                                        "caf\xC3\xA9\xC2\x9B"
                                        "2J",
                                        "22"};
    char *text = NULL;
    size_t n;
    FILE *to = open_memstream(&text, &n);
    cli_print_table(to, titles, 2, cells, 2);
    fclose(to);
    assert_string_equal(text, "name          n\n"
                              "a?[2Ab??ok?   1\n"
                              "caf\xC3\xA9?2J      22\n");
    free(text);
}

/* A command that sends transactions may be told not to wait for them; deploy needs each contract's
 * block, and the others send nothing. */
static void only_what_sends_transactions_takes_no_wait(void **state)
{
    (void)state;
    static const char *const senders[] = {
        "token mint",     "token transfer",  "stake add",       "stake signer",
        "stake revoke",   "stake unstake",   "stake withdraw",  "escrow deposit",
        "escrow thaw",    "escrow withdraw", "adapter publish", "adapter register",
        "adapter retire", "datanet create",  "datanet payee",   "claim",
    };
    size_t n_seen = 0;
    for (size_t i = 0; i < cli_n_commands; i++) {
        const struct cli_command *c = cli_commands[i], *sub = c->subcommands;
        for (bool alone = sub == NULL; alone || (sub != NULL && sub->name != NULL); alone = false) {
            const struct cli_command *one = alone ? c : sub++;
            char *words = alone ? xstrdup(c->name) : xasprintf("%s %s", c->name, one->name);
            char *line = xasprintf("%s --no-wait", words);
            bool sends = false;
            for (size_t k = 0; k < sizeof senders / sizeof *senders; k++)
                sends |= strcmp(senders[k], words) == 0;
            n_seen += sends;
            if (help_lists(one, "no-wait") != sends)
                fail_msg("%s: help %s --no-wait", words, sends ? "lacks" : "lists");
            if (!sends && run(line) != EX_USAGE)
                fail_msg("%s is taken", line);
            free(words);
            free(line);
        }
    }
    assert_int_equal(n_seen, sizeof senders / sizeof *senders);
}

static void an_option_that_a_command_does_not_read_is_refused(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "verify receipt.json --no-wait",
        "adapter inspect . --no-wait",
        "token balance 0x0000000000000000000000000000000000000001 --no-wait",
        "token balance 0x0000000000000000000000000000000000000001 --key default",
        "stake status --no-wait",
        "escrow status --no-wait",
        "deploy --no-wait",
        "verify --all --node http://127.0.0.1:1",
    };
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        if (run(lines[i]) != EX_USAGE)
            fail_msg("tributary %s: not refused as a mistake in the command line", lines[i]);
    }
}

/* What a command line prints, as JSON; a new reference. */
static json_t *printed(const char *line)
{
    char *dir = temp_dir_create(), *path = xasprintf("%s/out", dir);
    fflush(stdout);
    int out = dup(STDOUT_FILENO), fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(out >= 0 && fd >= 0 && dup2(fd, STDOUT_FILENO) >= 0);
    int status = run(line);
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    close(out);
    close(fd);
    json_t *value = json_load_file(path, JSON_DECODE_ANY, NULL);
    if (status != 0 || value == NULL)
        fail_msg("tributary %s: status %d, %s JSON", line, status, value != NULL ? "with" : "no");
    free(path);
    temp_dir_remove(dir);
    return value;
}

static void a_path_in_no_utf8_is_shown_all_the_same(void **state)
{
    (void)state;
    json_t *all = printed("config --json --model mod\xe9l --adapter a=caf\xe9");
    const json_t *dir = json_object_get(json_object_get(all, "model.dir"), "value");
    const json_t *list = json_object_get(json_object_get(all, "model.adapters"), "value");
    assert_string_equal(json_string_value(dir), "mod\xef\xbf\xbdl");
    assert_string_equal(json_string_value(json_array_get(list, 0)), "a=caf\xef\xbf\xbd");
    json_decref(all);
}

/* A node that lost its api_keys with its file would serve everyone. */
static void a_configuration_that_can_not_be_read_is_not_passed_over(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    int home = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(home >= 0 && chdir(dir) == 0);
    json_decref(printed("config --json")); /* there is none: the defaults */
    assert_int_equal(symlink("tributary.conf", "tributary.conf"),
                     0); /* root can't read this, too */
    int status = run("config --template");
    assert_true(fchdir(home) == 0 && close(home) == 0);
    assert_int_equal(status, EX_CONFIG);
    temp_dir_remove(dir);
}

/* Before the node is asked: nobody listens at port 1, which would be another status. */
static void what_a_node_could_not_be_told_is_refused_here(void **state)
{
    (void)state;
    char *dir = temp_dir_create(), *path = xasprintf("%s/keys", dir);
    char *list = xasprintf("adapter list --node http://127.0.0.1:1 --admin-key-file %s", path);
    struct err err = {0};
    assert_ok(file_write_atomic(path, "# keys\nann 00\n", 14, 0600, &err), err);
    assert_int_equal(run(list), EX_DATAERR); /* the file that a node has, not a key */
    assert_int_equal(run("adapter add law no/such/directory --node http://127.0.0.1:1"),
                     EX_NOINPUT);
    free(list);
    free(path);
    temp_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_node_says_cannot_move_the_cursor),
        cmocka_unit_test(only_what_sends_transactions_takes_no_wait),
        cmocka_unit_test(a_path_in_no_utf8_is_shown_all_the_same),
        cmocka_unit_test(an_option_that_a_command_does_not_read_is_refused),
        cmocka_unit_test(a_configuration_that_can_not_be_read_is_not_passed_over),
        cmocka_unit_test(what_a_node_could_not_be_told_is_refused_here),
    };
    return cmocka_run_group_tests_name("cli", tests, NULL, NULL);
}
