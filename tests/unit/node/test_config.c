/* Configuration: who wins, what is refused and how it says so; and the command line around it. */
#include "tests/support.h"

#include "node/base/err.h"
#include "node/cli/cli.h"
#include "node/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *write_file(const char *dir, const char *text)
{
    char *path = xasprintf("%s/tributary.conf", dir);
    struct err err = {0};
    assert_ok(file_write_atomic(path, text, strlen(text), 0600, &err), err);
    return path;
}

static void the_stronger_source_wins_and_is_remembered(void **state)
{
    (void)state;
    static const struct {
        const char *file, *environment, *flag;
        const char *value, *source;
    } rows[] = {
        {NULL, NULL, NULL, "127.0.0.1:8080", "default"},
        {"[server]\nlisten = 127.0.0.1:1\n", NULL, NULL, "127.0.0.1:1", "tributary.conf:2"},
        {"[server]\nlisten = 127.0.0.1:1\n", "127.0.0.1:2", NULL, "127.0.0.1:2",
         "TRIBUTARY_SERVER_LISTEN"},
        {"[server]\nlisten = 127.0.0.1:1\n", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:3",
         "--listen"},
        {NULL, "127.0.0.1:2", NULL, "127.0.0.1:2", "TRIBUTARY_SERVER_LISTEN"},
        {NULL, NULL, "127.0.0.1:3", "127.0.0.1:3", "--listen"},
        {"; comment\n# another\n\n[server]\n listen=127.0.0.1:4 ; why\n", NULL, NULL, "127.0.0.1:4",
         "tributary.conf:5"},
        {"[server]\nlisten = 127.0.0.1:1\nlisten = 127.0.0.1:5\n", NULL, NULL, "127.0.0.1:5",
         "tributary.conf:3"},
        {"[server]\n  listen = 127.0.0.1:6\n  threads = 3\n\tmax_requests = 4\n", NULL, NULL,
         "127.0.0.1:6", "tributary.conf:2"},
        {"[server]\nlisten = 127.0.0.1:7\n\f[limits]\n\v# nothing\n", NULL, NULL, "127.0.0.1:7",
         "tributary.conf:2"},
    };
    char *dir = temp_dir_create();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct config *c = config_create();
        struct err err = {0};
        if (rows[i].file != NULL) {
            char *path = write_file(dir, rows[i].file);
            assert_ok(config_read_file(c, path, &err), err);
            free(path);
        }
        char *entry = xasprintf("TRIBUTARY_SERVER_LISTEN=%s",
                                rows[i].environment != NULL ? rows[i].environment : "");
        char *environment[] = {"HOME=/nowhere", "TRIBUTARY_LOG=debug",
                               rows[i].environment != NULL ? entry : NULL, NULL};
        assert_ok(config_read_environment(c, environment, &err), err);
        if (rows[i].flag != NULL)
            assert_ok(config_set_flag(c, "listen", rows[i].flag, &err), err);
        const char *source = config_source(c, CONFIG_SERVER_LISTEN);
        const char *slash = strrchr(source, '/');
        if (strcmp(config_string(c, CONFIG_SERVER_LISTEN), rows[i].value) != 0 ||
            strcmp(slash != NULL ? slash + 1 : source, rows[i].source) != 0)
            fail_msg("row %zu: %s from %s, expected %s from %s", i,
                     config_string(c, CONFIG_SERVER_LISTEN), source, rows[i].value, rows[i].source);
        free(entry);
        config_free(c);
    }
    temp_dir_remove(dir);
}

static void lists_grow_within_a_source_and_are_replaced_by_a_stronger_one(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    char *path = write_file(dir, "[model]\nadapters = a=x, b=y\nadapters = c=z\n");
    struct config *c = config_create();
    struct err err = {0};
    assert_ok(config_read_file(c, path, &err), err);
    assert_int_equal(config_list_len(c, CONFIG_MODEL_ADAPTERS), 3);
    assert_string_equal(config_list_item(c, CONFIG_MODEL_ADAPTERS, 1), "b=y");
    assert_string_equal(config_text(c, CONFIG_MODEL_ADAPTERS), "a=x,b=y,c=z");
    assert_ok(config_set_flag(c, "adapter", "d=with,comma", &err), err);
    assert_ok(config_set_flag(c, "adapter", "e=v", &err), err);
    assert_int_equal(config_list_len(c, CONFIG_MODEL_ADAPTERS), 2);
    assert_string_equal(config_list_item(c, CONFIG_MODEL_ADAPTERS, 0), "d=with,comma");
    config_free(c);
    free(path);
    temp_dir_remove(dir);
}

static void values_are_read_by_their_type(void **state)
{
    (void)state;
    static const struct {
        const char *flag, *text;
        enum config_id id;
        int64_t value;
    } rows[] = {
        {"server-max-body", "4096", CONFIG_SERVER_MAX_BODY, 4096},
        {"server-max-body", "64k", CONFIG_SERVER_MAX_BODY, 65536},
        {"server-max-body", "2MiB", CONFIG_SERVER_MAX_BODY, 2 << 20},
        {"kv-bytes", "3g", CONFIG_ENGINE_KV_BYTES, INT64_C(3) << 30},
        {"shared-bytes", "2g", CONFIG_ENGINE_SHARED_BYTES, INT64_C(2) << 30},
        {"server-idle-timeout", "1500ms", CONFIG_SERVER_IDLE_TIMEOUT, 1500},
        {"server-idle-timeout", "2m", CONFIG_SERVER_IDLE_TIMEOUT, 120000},
        {"batch-max-age", "1h", CONFIG_BATCH_MAX_AGE, 3600000},
        {"server-drain-timeout", "0", CONFIG_SERVER_DRAIN_TIMEOUT, 0},
        {"threads", "8", CONFIG_ENGINE_THREADS, 8},
        {"chain-id", "9007199254740991", CONFIG_CHAIN_ID, INT64_C(9007199254740991)},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct config *c = config_create();
        struct err err = {0};
        assert_ok(config_set_flag(c, rows[i].flag, rows[i].text, &err), err);
        if (config_int(c, rows[i].id) != rows[i].value)
            fail_msg("--%s %s is %lld, expected %lld", rows[i].flag, rows[i].text,
                     (long long)config_int(c, rows[i].id), (long long)rows[i].value);
        config_free(c);
    }
    struct config *c = config_create();
    struct err err = {0};
    uint8_t address[20];
    assert_false(config_address(c, CONFIG_CHAIN_ESCROW, address));
    assert_ok(config_set_flag(c, "escrow", "0x00000000000000000000000000000000000000ff", &err),
              err);
    assert_true(config_address(c, CONFIG_CHAIN_ESCROW, address));
    assert_int_equal(address[19], 255);
    assert_ok(config_set_flag(c, "insecure-bind", "yes", &err), err);
    assert_true(config_bool(c, CONFIG_SERVER_INSECURE_BIND));
    assert_true(config_bool(c, CONFIG_ENGINE_PREFIX_CACHE));
    assert_ok(config_set_flag(c, "no-prefix-cache", "yes", &err), err);
    assert_false(config_bool(c, CONFIG_ENGINE_PREFIX_CACHE));
    assert_ok(config_set_flag(c, "no-prefix-cache", "no", &err), err);
    assert_true(config_bool(c, CONFIG_ENGINE_PREFIX_CACHE));
    assert_ok(config_set_flag(c, "price-prompt", "340282366920938463463374607431768211455", &err),
              err);
    assert_int_equal(amount_cmp(config_amount(c, CONFIG_PRICES_PROMPT_PER_1K), AMOUNT_MAX), 0);
    config_free(c);
}

static void wrong_values_are_refused_with_option_and_source(void **state)
{
    (void)state;
    static const struct {
        const char *flag, *text, *in_message;
    } rows[] = {
        {"threads", "many", "--threads: engine.threads = \"many\" is not a valid integer"},
        {"threads", "-1", "is not a valid integer"},
        {"threads", "4 ", "is not a valid integer"},
        {"threads", "2000", "outside 0 to 1024 threads"},
        {"threads", "99999999999999999999", "is not a valid integer"},
        {"kv-bytes", "1x", "is not a valid bytes"},
        {"kv-bytes", "99999999999g", "is not a valid bytes"},
        {"server-idle-timeout", "5", "is not a valid time"},
        {"server-idle-timeout", "10ms", "outside 1000 to 3600000 ms"},
        {"insecure-bind", "maybe", "is not a valid yes or no"},
        {"no-prefix-cache", "maybe", "is not a valid yes or no"},
        {"escrow", "0x12", "is not a valid address"},
        {"escrow", "00000000000000000000000000000000000000ff", "is not a valid address"},
        {"price-prompt", "1.5", "is not a valid amount"},
        {"price-prompt", "-1", "is not a valid amount"},
        {"price-prompt", "340282366920938463463374607431768211456", "is not a valid amount"},
        {"limits-requests-per-second", "inf", "is not a valid number"},
        {"gpu-memory", "1.01", "outside 0 to 1"},
        {"gpu-memory", "-0.5", "is not a valid number"},
        {"backend", "gpu", "--backend: engine.backend = \"gpu\" is none of cpu|ref|cuda"},
        {"backend", "cpu|ref", "is none of"},
        {"backend", "", "is none of"},
        {"weights", "int", "is none of file|int8"},
        {"adapter-dtype", "f16", "is none of auto|file|bf16"},
        {"log-level", "loud", "is none of error|warn|info|debug"},
        {"no-such-flag", "1", "no option --no-such-flag"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct config *c = config_create();
        struct err err = {0};
        if (config_set_flag(c, rows[i].flag, rows[i].text, &err) == 0)
            fail_msg("--%s %s: accepted", rows[i].flag, rows[i].text);
        if (strstr(err.message, rows[i].in_message) == NULL || err.code != ERR_INVALID)
            fail_msg("--%s %s: \"%s\", expected \"%s\" in it", rows[i].flag, rows[i].text,
                     err.message, rows[i].in_message);
        config_free(c);
    }
}

static void files_are_refused_with_line_and_suggestion(void **state)
{
    (void)state;
    char longline[1200];
    memset(longline, 'x', sizeof longline);
    memcpy(longline, "[server]\nlisten = ", 18);
    longline[sizeof longline - 1] = '\0';
    const struct {
        const char *text, *in_message;
    } rows[] = {
        {"[server]\nlistn = x\n", ":2: section [server] has no option \"listn\"; did you mean "
                                  "\"listen\"?"},
        {"[sever]\nlisten = x\n", ":2: no section [sever]; did you mean [server]?"},
        {"[engine]\nthreads = lots\n", ":2: engine.threads = \"lots\""},
        {"[server]\nnothing\n", ":2: neither"},
        {"[server\nlisten = x\n", ":1: neither"},
        {"listen = x\n", ":1: no section []"},
        {longline, ":2: the line is longer than"},
    };
    char *dir = temp_dir_create();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *path = write_file(dir, rows[i].text);
        struct config *c = config_create();
        struct err err = {0};
        if (config_read_file(c, path, &err) == 0)
            fail_msg("row %zu: accepted", i);
        if (strstr(err.message, rows[i].in_message) == NULL)
            fail_msg("row %zu: \"%s\", expected \"%s\" in it", i, err.message, rows[i].in_message);
        config_free(c);
        free(path);
    }
    struct config *c = config_create();
    struct err err = {0};
    char *missing = xasprintf("%s/none.conf", dir);
    assert_int_equal(config_read_file(c, missing, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    free(missing);
    err = (struct err){0};
    assert_int_equal(config_read_file(c, dir, &err), -1); /* a directory can be opened */
    if (strstr(err.message, "Is a directory") == NULL)
        fail_msg("a directory as the file: \"%s\"", err.message);
    config_free(c);
    temp_dir_remove(dir);
}

static void a_misspelt_variable_of_ours_is_an_error_and_a_strangers_is_not(void **state)
{
    (void)state;
    struct config *c = config_create();
    struct err err = {0};
    char *ours[] = {"TRIBUTARY_SERVER_LISTN=x", NULL};
    assert_int_equal(config_read_environment(c, ours, &err), -1);
    assert_non_null(strstr(err.message, "TRIBUTARY_SERVER_LISTN"));
    char *strangers[] = {"TRIBUTARY_DEMO_KEEP=1", "TRIBUTARY=x", "TRIBUTARYSERVER=1",
                         "TRIBUTARY_PASSPHRASE_FILE=/x", NULL};
    assert_ok(config_read_environment(c, strangers, &err), err);
    config_free(c);
}

static void every_option_has_names_and_help_of_its_own(void **state)
{
    (void)state;
    char flags[CONFIG_N_OPTIONS][64], env[64];
    for (int i = 0; i < CONFIG_N_OPTIONS; i++) {
        const struct config_option *o = &config_options[i];
        config_flag_name(o, flags[i]);
        for (int k = 0; k < i; k++) {
            if (strcmp(flags[k], flags[i]) == 0)
                fail_msg("two options have the flag --%s", flags[i]);
        }
        if (o->help[strlen(o->help) - 1] != '.')
            fail_msg("%s.%s: the help is no sentence", o->section, o->key);
        if ((o->value == NULL) != (o->type == CONFIG_BOOL))
            fail_msg("%s.%s: a switch has no value's name, all others have one", o->section,
                     o->key);
        if (strspn(config_env_name(o, env), "ABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") != strlen(env))
            fail_msg("%s is no name of a variable", env);
    }
}

/* ---- the command line ---------------------------------------------------------------------------
 */

static int seen_operands;
static char seen_name[64], seen_listen[64];
static bool seen_json;

static int run_probe(const struct cli_args *a)
{
    seen_operands = (int)cli_n_operands(a);
    seen_json = cli_has(a, "json");
    snprintf(seen_name, sizeof seen_name, "%s", cli_value(a, "name", "none"));
    snprintf(seen_listen, sizeof seen_listen, "%s",
             config_string(cli_config(a), CONFIG_SERVER_LISTEN));
    return 0;
}

static const struct cli_option probe_options[] = {
    {"json", CLI_SWITCH, NULL, "JSON."}, {"name", CLI_VALUE, "NAME", "A name."}, {0}};
static const struct cli_command probe = {.name = "probe",
                                         .summary = "tests the command line",
                                         .synopsis = "[WORD]",
                                         .description = "Tests.",
                                         .options = probe_options,
                                         .takes_config = true,
                                         .n_operands_max = 1,
                                         .run = run_probe};
static const struct cli_command group_subs[] = {{.name = "one",
                                                 .summary = "s",
                                                 .synopsis = "",
                                                 .description = "d",
                                                 .takes_config = true,
                                                 .options = probe_options,
                                                 .run = run_probe},
                                                {0}};
static const struct cli_command group = {
    .name = "group", .summary = "s", .synopsis = "", .description = "d", .subcommands = group_subs};
static const struct cli_command *const commands[] = {&probe, &group};

static void words_become_options_and_operands(void **state)
{
    (void)state;
    static const struct {
        const char *argv[8];
        int status, operands;
        bool json;
        const char *name, *listen;
    } rows[] = {
        {{"t", "probe"}, 0, 0, false, "none", "127.0.0.1:8080"},
        {{"t", "probe", "w", "--json"}, 0, 1, true, "none", "127.0.0.1:8080"},
        {{"t", "probe", "--name", "a", "--name=b"}, 0, 0, false, "b", "127.0.0.1:8080"},
        {{"t", "probe", "--listen", "127.0.0.1:9"}, 0, 0, false, "none", "127.0.0.1:9"},
        {{"t", "probe", "--", "--json"}, 0, 1, false, "none", "127.0.0.1:8080"},
        {{"t", "probe", "--insecure-bind"}, 0, 0, false, "none", "127.0.0.1:8080"},
        {{"t", "group", "one", "--json"}, 0, 0, true, "none", "127.0.0.1:8080"},
        {{"t", "probe", "--jsn"}, 64, 0, false, NULL, NULL},
        {{"t", "probe", "--json=1"}, 64, 0, false, NULL, NULL},
        {{"t", "probe", "--name"}, 64, 0, false, NULL, NULL},
        {{"t", "probe", "a", "b"}, 64, 0, false, NULL, NULL},
        {{"t", "probe", "-j"}, 64, 0, false, NULL, NULL},
        {{"t", "prob"}, 64, 0, false, NULL, NULL},
        {{"t", "group"}, 64, 0, false, NULL, NULL},
        {{"t", "group", "two"}, 64, 0, false, NULL, NULL},
        {{"t"}, 64, 0, false, NULL, NULL},
        {{"t", "probe", "--threads", "x"}, 78, 0, false, NULL, NULL},
    };
    fflush(stderr);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int argc = 0;
        while (argc < 8 && rows[i].argv[argc] != NULL)
            argc++;
        int status = cli_main(commands, 2, argc, (char **)(uintptr_t)rows[i].argv);
        if (status != rows[i].status)
            fail_msg("row %zu: exit status %d, expected %d", i, status, rows[i].status);
        if (status == 0 &&
            (seen_operands != rows[i].operands || seen_json != rows[i].json ||
             strcmp(seen_name, rows[i].name) != 0 || strcmp(seen_listen, rows[i].listen) != 0))
            fail_msg("row %zu: %d operands, json %d, name %s, listen %s", i, seen_operands,
                     seen_json, seen_name, seen_listen);
    }
}

static void a_near_word_is_suggested_and_a_far_one_is_not(void **state)
{
    (void)state;
    static const char *const words[] = {"serve", "receipt", "rewards", "status", "stake"};
    static const struct {
        const char *typed, *suggested;
    } rows[] = {{"serv", "serve"},   {"sevre", "serve"},    {"reciept", "receipt"},
                {"stats", "status"}, {"reward", "rewards"}, {"xylophone", NULL},
                {"stak", "stake"},   {"recei", "receipt"},  {"", NULL}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *got = cli_suggest(rows[i].typed, words, 5);
        if ((got == NULL) != (rows[i].suggested == NULL) ||
            (got != NULL && strcmp(got, rows[i].suggested) != 0))
            fail_msg("\"%s\": suggested %s, expected %s", rows[i].typed, got != NULL ? got : "none",
                     rows[i].suggested != NULL ? rows[i].suggested : "none");
    }
}

static char *printed(void (*print)(FILE *to))
{
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    print(f);
    fclose(f);
    return text;
}

static void print_help_page(FILE *to)
{
    cli_print_help(to, &probe, "tributary probe");
}

static void print_completion_script(FILE *to)
{
    cli_print_completion(to, commands, 2);
}

static void help_and_completion_come_from_the_tables(void **state)
{
    (void)state;
    char *help = printed(print_help_page), *script = printed(print_completion_script);
    for (int i = 0; i < CONFIG_N_OPTIONS; i++) {
        char flag[64], env[64], option[70];
        snprintf(option, sizeof option, "--%s", config_flag_name(&config_options[i], flag));
        if (strstr(help, option) == NULL ||
            strstr(help, config_env_name(&config_options[i], env)) == NULL)
            fail_msg("the help says nothing of %s", option);
        if (strstr(script, option) == NULL)
            fail_msg("the completion does not know %s", option);
    }
    assert_non_null(strstr(script, "\"group one\")"));
    for (const char *line = help; *line != '\0';) {
        size_t n = strcspn(line, "\n");
        if (n > 110)
            fail_msg("a line of the help has %zu columns: %.*s", n, (int)n, line);
        line += n + (line[n] == '\n');
    }
    free(help);
    free(script);
}

static void print_sample_table(FILE *to)
{
    const char *titles[] = {"name", "n"};
    const char *cells[] = {"\xC3\xA9t\xC3\xA9", "7", "winter", "1000"};
    cli_print_table(to, titles, 2, cells, 2);
}

static void tables_are_aligned_by_characters(void **state)
{
    (void)state;
    char *text = printed(print_sample_table);
    assert_string_equal(text, "name       n\n\xC3\xA9t\xC3\xA9        7\nwinter  1000\n");
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_stronger_source_wins_and_is_remembered),
        cmocka_unit_test(lists_grow_within_a_source_and_are_replaced_by_a_stronger_one),
        cmocka_unit_test(values_are_read_by_their_type),
        cmocka_unit_test(wrong_values_are_refused_with_option_and_source),
        cmocka_unit_test(files_are_refused_with_line_and_suggestion),
        cmocka_unit_test(a_misspelt_variable_of_ours_is_an_error_and_a_strangers_is_not),
        cmocka_unit_test(every_option_has_names_and_help_of_its_own),
        cmocka_unit_test(words_become_options_and_operands),
        cmocka_unit_test(a_near_word_is_suggested_and_a_far_one_is_not),
        cmocka_unit_test(help_and_completion_come_from_the_tables),
        cmocka_unit_test(tables_are_aligned_by_characters),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
