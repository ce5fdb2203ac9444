/* `tributary wallet`, run as a person or a script would: arguments, standard input, exit status and
 * both outputs. Each run is a child of its own without a terminal. */
#include "tests/support.h"

#include "node/base/err.h"
#include "node/cli/cli.h"
#include "node/cli/cmd_wallet.h"
#include "node/cli/commands.h"
#include "wallet/wallet.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#define DEV_KEY     "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
#define DEV_ADDRESS "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
#define DEV_PHRASE  "test test test test test test test test test test test junk"

struct outcome {
    int status;
    struct buf out, err;
};

static void outcome_release(struct outcome *o)
{
    buf_release(&o->out);
    buf_release(&o->err);
}

static void put(const char *path, const char *text)
{
    struct err err;
    assert_ok(file_write_atomic(path, text, strlen(text), 0600, &err), err);
}

static void take(const char *path, struct buf *out)
{
    struct err err;
    buf_reset(out);
    assert_ok(file_read(path, 1 << 20, out, &err), err);
}

struct place { /* a test's directory */
    char *dir, *passphrase, *in, *out, *err;
};

static void enter(struct place *p)
{
    p->dir = temp_dir_create();
    p->passphrase = xasprintf("%s/passphrase", p->dir);
    p->in = xasprintf("%s/stdin", p->dir);
    p->out = xasprintf("%s/stdout", p->dir);
    p->err = xasprintf("%s/stderr", p->dir);
    put(p->passphrase, "open sesame\n");
}

static void leave(struct place *p)
{
    free(p->passphrase);
    free(p->in);
    free(p->out);
    free(p->err);
    temp_dir_remove(p->dir);
}

/* Runs "tributary wallet <words>": split at spaces, $P stands for the passphrase's file and $D for
 * the directory; input is standard input. The wallet is $D/keys. */
static struct outcome run(const struct place *p, const char *words, const char *input)
{
    static const struct cli_command *const commands[] = {&cmd_wallet};
    struct outcome o = {0, BUF_INIT, BUF_INIT};
    put(p->in, input);
    pid_t child = fork();
    if (child == 0) {
        char *argv[32] = {"tributary", "wallet"}, *save = NULL, *copy = xstrdup(words);
        int argc = 2,
            fds[3] = {open(p->in, O_RDONLY), open(p->out, O_CREAT | O_TRUNC | O_WRONLY, 0600),
                      open(p->err, O_CREAT | O_TRUNC | O_WRONLY, 0600)};
        setsid();
        for (int i = 0; i < 3; i++)
            dup2(fds[i], i);
        for (char *w = strtok_r(copy, " ", &save); w != NULL; w = strtok_r(NULL, " ", &save))
            argv[argc++] = strcmp(w, "$P") == 0       ? p->passphrase
                           : strncmp(w, "$D", 2) == 0 ? xasprintf("%s%s", p->dir, w + 2)
                                                      : w;
        argv[argc++] = "--wallet";
        argv[argc++] = xasprintf("%s/keys", p->dir);
        int status = cli_main(commands, 1, argc, argv);
        fflush(NULL);
        _exit(status);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    o.status = WEXITSTATUS(status);
    take(p->out, &o.out);
    take(p->err, &o.err);
    return o;
}

/* Runs, expects a status, and text in one of the outputs; *out (may be NULL) gets standard output.
 */
static void expect(const struct place *p, const char *words, const char *input, int status,
                   const char *out_holds, const char *err_holds, struct buf *out)
{
    struct outcome o = run(p, words, input);
    if (o.status != status || strstr(buf_cstr(&o.out), out_holds) == NULL ||
        strstr(buf_cstr(&o.err), err_holds) == NULL)
        fail_msg("wallet %s: expected status %d, \"%s\" and \"%s\"; got %d, out \"%s\", err \"%s\"",
                 words, status, out_holds, err_holds, o.status, buf_cstr(&o.out), buf_cstr(&o.err));
    if (out != NULL) {
        buf_reset(out);
        buf_append(out, o.out.data, o.out.len);
    }
    outcome_release(&o);
}

static void a_new_key_shows_its_mnemonic_once_and_it_brings_the_key_back(void **state)
{
    (void)state;
    struct place p;
    struct buf out = BUF_INIT;
    enter(&p);
    expect(&p, "new house --words 12 --passphrase-file $P", "", 0, "0x", "shown this once", &out);
    char *phrase = strchr(buf_cstr(&out), '\n') + 1, *address = xstrndup(buf_cstr(&out), 42);
    size_t n_spaces = 0;
    for (const char *c = phrase; *c != '\0'; c++)
        n_spaces += *c == ' ';
    assert_int_equal(n_spaces, 11);
    expect(&p, "import again --passphrase-file $P", phrase, 0, address, "", NULL);
    expect(&p, "address house", "", 0, address, "", NULL);
    expect(&p, "new house --passphrase-file $P", "", err_exit_status(ERR_CONFLICT), "",
           "house.key exists", NULL);
    free(address);
    buf_release(&out);
    leave(&p);
}

static void scripts_get_json(void **state)
{
    (void)state;
    struct place p;
    struct buf out = BUF_INIT;
    enter(&p);
    expect(&p, "new a --json --passphrase-file $P", "", 0, "\"mnemonic\": \"", "", &out);
    json_t *o = json_loads(buf_cstr(&out), 0, NULL);
    assert_non_null(o);
    assert_string_equal(json_string_value(json_object_get(o, "name")), "a");
    json_decref(o);
    expect(&p, "new b --json --no-mnemonic --passphrase-file $P", "", 0, "0x", "", &out);
    o = json_loads(buf_cstr(&out), 0, NULL);
    assert_non_null(o);
    assert_null(json_object_get(o, "mnemonic"));
    json_decref(o);
    expect(&p, "import c --json --passphrase-file $P", DEV_KEY "\n", 0, DEV_ADDRESS, "", &out);
    expect(&p, "address c --json", "", 0, "", "", &out);
    o = json_loads(buf_cstr(&out), 0, NULL);
    assert_string_equal(json_string_value(json_object_get(o, "address")), DEV_ADDRESS);
    json_decref(o);
    expect(&p, "list --json", "", 0, "", "", &out);
    o = json_loads(buf_cstr(&out), 0, NULL);
    assert_int_equal(json_array_size(o), 3);
    const json_t *c = json_array_get(o, 2);
    assert_string_equal(json_string_value(json_object_get(c, "name")), "c");
    assert_string_equal(json_string_value(json_object_get(c, "address")), DEV_ADDRESS);
    assert_true(json_integer_value(json_object_get(c, "created")) > 1700000000);
    json_decref(o);
    buf_release(&out);
    leave(&p);
}

static void a_key_comes_from_standard_input_or_a_file(void **state)
{
    (void)state;
    struct place p;
    enter(&p);
    char *path = xasprintf("%s/phrase", p.dir);
    put(path, DEV_PHRASE "\n");
    expect(&p, "import --passphrase-file $P", "0x" DEV_KEY, 0, DEV_ADDRESS, "", NULL);
    expect(&p, "address", "", 0, DEV_ADDRESS, "", NULL); /* the only one */
    expect(&p, "import b --from $D/phrase --passphrase-file $P", "", 0, DEV_ADDRESS, "", NULL);
    expect(&p, "import c --from $D/phrase --path m/44'/60'/0'/0/1 --passphrase-file $P", "", 0,
           "0x70997970C51812dc3A010C7d01b50e0d17dc79C8", "", NULL);
    expect(&p, "import d --passphrase-file $P", "hunter2", err_exit_status(ERR_INVALID), "",
           "neither 64 hexadecimal digits", NULL);
    expect(&p, "import d --passphrase-file $P", "", err_exit_status(ERR_INVALID), "",
           "standard input: empty", NULL);
    expect(&p, "import d --from $D/absent --passphrase-file $P", "", err_exit_status(ERR_NOT_FOUND),
           "", "absent", NULL);
    expect(&p, "list", "", 0, "default", "", NULL);
    free(path);
    leave(&p);
}

static void an_exported_key_opens_with_its_own_passphrase(void **state)
{
    (void)state;
    struct place p;
    struct buf json = BUF_INIT;
    enter(&p);
    char *other = xasprintf("%s/other", p.dir);
    put(other, "another word");
    expect(&p, "import a --passphrase-file $P", DEV_KEY, 0, DEV_ADDRESS, "", NULL);
    expect(&p, "export a --passphrase-file $P --export-passphrase-file $D/other", "", 0,
           "\"version\": 3", "", &json);
    expect(&p, "import b --passphrase-file $P --import-passphrase-file $D/other", buf_cstr(&json),
           0, DEV_ADDRESS, "", NULL);
    expect(&p, "import c --passphrase-file $P --import-passphrase-file $P", buf_cstr(&json),
           err_exit_status(ERR_UNAUTHORIZED), "", "passphrase is wrong", NULL);
    expect(&p, "export nobody --passphrase-file $P --export-passphrase-file $P", "",
           err_exit_status(ERR_NOT_FOUND), "", "nobody", NULL);
    free(other);
    buf_release(&json);
    leave(&p);
}

static void a_command_that_makes_no_sense_is_a_usage_error(void **state)
{
    (void)state;
    static const char *const wrong[] = {"new --words 13 --passphrase-file $P",
                                        "new --words x --passphrase-file $P",
                                        "new a b",
                                        "import --key 00",
                                        "list extra",
                                        "burn"};
    struct place p;
    enter(&p);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        expect(&p, wrong[i], "", EX_USAGE, "", "", NULL);
    leave(&p);
}

static void without_a_passphrase_nothing_is_made(void **state)
{
    (void)state;
    struct place p;
    struct stat st;
    enter(&p);
    unsetenv("TRIBUTARY_PASSPHRASE_FILE");
    expect(&p, "new a", "", err_exit_status(ERR_INVALID), "", "--passphrase-file", NULL);
    expect(&p, "new A --passphrase-file $P", "", err_exit_status(ERR_INVALID), "", "key name",
           NULL);
    char *keys = xasprintf("%s/keys", p.dir);
    assert_int_equal(stat(keys, &st), -1);
    expect(&p, "list", "", 0, "", "holds no key", NULL);
    expect(&p, "list --json", "", 0, "[]", "", NULL);
    expect(&p, "address", "", err_exit_status(ERR_NOT_FOUND), "", "default.key", NULL);
    setenv("TRIBUTARY_PASSPHRASE_FILE", p.passphrase, 1);
    expect(&p, "new a --no-mnemonic", "", 0, "0x", "", NULL);
    expect(&p, "new b --no-mnemonic", "", 0, "0x", "", NULL);
    unsetenv("TRIBUTARY_PASSPHRASE_FILE");
    expect(&p, "address", "", err_exit_status(ERR_NOT_FOUND), "", "holds 2 keys", NULL);
    free(keys);
    leave(&p);
}

static void a_damaged_file_is_listed_with_its_damage(void **state)
{
    (void)state;
    struct place p;
    enter(&p);
    expect(&p, "import a --passphrase-file $P", DEV_KEY, 0, DEV_ADDRESS, "", NULL);
    char *path = xasprintf("%s/keys/b.key", p.dir);
    put(path, "not a key file");
    expect(&p, "list", "", 0, "not a key file", "", NULL);
    expect(&p, "list --json", "", 0, "\"problem\"", "", NULL);
    expect(&p, "address b", "", err_exit_status(ERR_CORRUPT), "", "b.key", NULL);
    free(path);
    leave(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_new_key_shows_its_mnemonic_once_and_it_brings_the_key_back),
        cmocka_unit_test(scripts_get_json),
        cmocka_unit_test(a_key_comes_from_standard_input_or_a_file),
        cmocka_unit_test(an_exported_key_opens_with_its_own_passphrase),
        cmocka_unit_test(a_command_that_makes_no_sense_is_a_usage_error),
        cmocka_unit_test(without_a_passphrase_nothing_is_made),
        cmocka_unit_test(a_damaged_file_is_listed_with_its_damage),
    };
    return cmocka_run_group_tests_name("cmd_wallet", tests, NULL, NULL);
}
