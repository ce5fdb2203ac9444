/* cli: see cli.h. Parsing, help and completion are three readings of the same constants.
 *
 * The words of a command line are taken in order: the program, the command, its sub-command, then
 * options and operands in any order; "--" ends the options. An option that is not in the command's
 * table is looked for among the configuration's flags when the command takes those. --help is
 * understood everywhere. */
#include "node/cli/cli.h"

#include "node/base/buf.h"
#include "node/config.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

extern char **environ;

struct given {
    const struct cli_option *option;
    const char *value;
};

struct cli_args {
    const struct cli_command *command;
    char *words; /* "tributary wallet new" */
    struct given *given;
    size_t n_given;
    const char **operands;
    size_t n_operands;
    struct config *config;
};

/* ---- suggestions -------------------------------------------------------------------------------
 */

/* Damerau-Levenshtein distance (optimal string alignment), for short words. */
static size_t distance(const char *a, const char *b)
{
    enum { MAX = 48 };
    size_t n = strlen(a), m = strlen(b);
    if (n >= MAX || m >= MAX)
        return MAX;
    size_t d[MAX][MAX];
    for (size_t i = 0; i <= n; i++)
        d[i][0] = i;
    for (size_t j = 0; j <= m; j++)
        d[0][j] = j;
    for (size_t i = 1; i <= n; i++) {
        for (size_t j = 1; j <= m; j++) {
            size_t best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best)
                best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best)
                best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    }
    return d[n][m];
}

const char *cli_suggest(const char *typed, const char *const *candidates, size_t n)
{
    const char *best = NULL;
    size_t best_distance = strlen(typed) / 3 + 2;
    for (size_t i = 0; i < n; i++) {
        size_t d = distance(typed, candidates[i]);
        if (strlen(typed) >= 3 && strncmp(typed, candidates[i], strlen(typed)) == 0)
            d = 1;
        if (d < best_distance) {
            best_distance = d;
            best = candidates[i];
        }
    }
    return best;
}

/* ---- what a command is given -------------------------------------------------------------------
 */

static const struct cli_option *own_option(const struct cli_command *c, const char *name)
{
    for (const struct cli_option *o = c->options; o != NULL && o->name != NULL; o++) {
        if (strcmp(o->name, name) == 0)
            return o;
    }
    return NULL;
}

static const struct cli_option *must_have(const struct cli_args *a, const char *name)
{
    const struct cli_option *o = own_option(a->command, name);
    if (o == NULL)
        BUG("command \"%s\" has no option --%s", a->command->name, name);
    return o;
}

size_t cli_count(const struct cli_args *a, const char *option)
{
    const struct cli_option *o = must_have(a, option);
    size_t n = 0;
    for (size_t i = 0; i < a->n_given; i++)
        n += a->given[i].option == o;
    return n;
}

bool cli_has(const struct cli_args *a, const char *option)
{
    return cli_count(a, option) > 0;
}

const char *cli_nth(const struct cli_args *a, const char *option, size_t nth)
{
    const struct cli_option *o = must_have(a, option);
    for (size_t i = 0; i < a->n_given; i++) {
        if (a->given[i].option == o && nth-- == 0)
            return a->given[i].value;
    }
    BUG("option --%s was not given so often", option);
}

const char *cli_value(const struct cli_args *a, const char *option, const char *otherwise)
{
    size_t n = cli_count(a, option);
    return n > 0 ? cli_nth(a, option, n - 1) : otherwise;
}

size_t cli_n_operands(const struct cli_args *a)
{
    return a->n_operands;
}

const char *cli_operand(const struct cli_args *a, size_t i)
{
    return i < a->n_operands ? a->operands[i] : NULL;
}

struct config *cli_config(const struct cli_args *a)
{
    BUG_IF(!a->command->takes_config);
    return a->config;
}

/* ---- what a command says -----------------------------------------------------------------------
 */

void cli_put_text(FILE *to, const char *text)
{
    for (const char *s = text; *s != '\0'; s++) {
        unsigned char c = (unsigned char)*s;
        bool c1 = c == 0xC2 && (unsigned char)s[1] >= 0x80 && (unsigned char)s[1] < 0xA0;
        fputc(c < 0x20 || c == 0x7F || c1 ? '?' : c, to);
        s += c1;
    }
}

int cli_fail(const struct cli_args *a, const struct err *err)
{
    fflush(stdout);
    fprintf(stderr, "%s: ", a->words);
    cli_put_text(stderr, err->message);
    fputc('\n', stderr);
    return err_exit_status(err->code);
}

int cli_usage(const struct cli_args *a, const char *fmt, ...)
{
    fflush(stdout);
    fprintf(stderr, "%s: ", a->words);
    va_list args;
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\nTry: %s --help\n", a->words);
    return EX_USAGE;
}

/* Columns of a UTF-8 text on a terminal, one a character. */
static int width(const char *s)
{
    int n = 0;
    for (; *s != '\0'; s++)
        n += ((unsigned char)*s & 0xC0) != 0x80;
    return n;
}

static bool looks_like_number(const char *s)
{
    return *s != '\0' && strspn(s, "0123456789.,+-%") == strlen(s);
}

void cli_print_table(FILE *to, const char *const *titles, size_t n_columns,
                     const char *const *cells, size_t n_rows)
{
    int *widths = xcalloc(n_columns, sizeof *widths);
    bool *right = xcalloc(n_columns, sizeof *right);
    for (size_t c = 0; c < n_columns; c++) {
        widths[c] = width(titles[c]);
        right[c] = n_rows > 0;
        for (size_t r = 0; r < n_rows; r++) {
            const char *cell = cells[r * n_columns + c];
            if (width(cell) > widths[c])
                widths[c] = width(cell);
            right[c] = right[c] && looks_like_number(cell);
        }
    }
    for (size_t r = 0; r <= n_rows; r++) {
        for (size_t c = 0; c < n_columns; c++) {
            const char *cell = r == 0 ? titles[c] : cells[(r - 1) * n_columns + c];
            int pad = widths[c] - width(cell);
            if (right[c])
                fprintf(to, "%*s", pad, "");
            cli_put_text(to, cell);
            if (!right[c] && c + 1 < n_columns)
                fprintf(to, "%*s", pad, "");
            if (c + 1 < n_columns)
                fputs("  ", to);
        }
        fputc('\n', to);
    }
    free(widths);
    free(right);
}

void cli_print_json(const struct json_t *value)
{
    json_dumpf(value, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY);
    fputc('\n', stdout);
}

/* ---- help --------------------------------------------------------------------------------------
 */

void cli_print_wrapped(FILE *to, const char *margin, const char *text)
{
    int column = 0;
    while (*text != '\0') {
        if (*text == '\n') {
            fputc('\n', to);
            column = 0;
            text++;
            continue;
        }
        size_t n = strcspn(text, " \n");
        if (n > 0) {
            if (column > 0 && column + 1 + (int)n > 80) {
                fputc('\n', to);
                column = 0;
            }
            if (column == 0)
                column = fprintf(to, "%s", margin);
            else
                column += fprintf(to, " ");
            column += fprintf(to, "%.*s", (int)n, text);
        }
        text += n;
        if (*text == ' ')
            text++;
    }
    if (column > 0)
        fputc('\n', to);
}

static void print_option(FILE *to, const char *name, const char *value, const char *help,
                         const char *tail)
{
    fprintf(to, "    --%s%s%s\n", name, value != NULL ? " " : "", value != NULL ? value : "");
    struct buf b = BUF_INIT;
    buf_appendf(&b, "%s%s%s", help, tail[0] != '\0' ? " " : "", tail);
    cli_print_wrapped(to, "        ", buf_cstr(&b));
    buf_release(&b);
}

void cli_print_help(FILE *to, const struct cli_command *c, const char *words)
{
    fprintf(to, "NAME\n    %s - %s\n\nSYNOPSIS\n", words, c->summary);
    if (c->subcommands != NULL) {
        for (const struct cli_command *s = c->subcommands; s->name != NULL; s++)
            fprintf(to, "    %s %s %s\n", words, s->name, s->synopsis);
    } else {
        fprintf(to, "    %s %s\n", words, c->synopsis);
    }
    fprintf(to, "\nDESCRIPTION\n");
    cli_print_wrapped(to, "    ", c->description);
    if (c->subcommands != NULL) {
        fprintf(to, "\nCOMMANDS\n");
        for (const struct cli_command *s = c->subcommands; s->name != NULL; s++)
            fprintf(to, "    %-12s %s\n", s->name, s->summary);
        fprintf(to, "\n    %s COMMAND --help tells more.\n", words);
    }
    if (c->options != NULL && c->options[0].name != NULL) {
        fprintf(to, "\nOPTIONS\n");
        for (const struct cli_option *o = c->options; o->name != NULL; o++)
            print_option(to, o->name, o->value, o->help, "");
    }
    if (c->takes_config) {
        fprintf(to, "\nCONFIGURATION\n");
        print_option(to, "config", "FILE",
                     "The configuration file; TRIBUTARY_CONFIG names it too. Without either, "
                     "tributary.conf in the working directory is read if it is there. "
                     "Paths are relative to the working directory, not to the file.",
                     "");
        const char *section = "";
        for (int i = 0; i < CONFIG_N_OPTIONS; i++) {
            const struct config_option *o = &config_options[i];
            if (strcmp(section, o->section) != 0)
                fprintf(to, "\n  [%s]\n", section = o->section);
            char flag[64], env[64], tail[256];
            snprintf(tail, sizeof tail, "(%s%s%s; %s, default %s%s)", config_type_name(o->type),
                     o->unit[0] != '\0' ? ", " : "", o->unit, config_env_name(o, env),
                     o->otherwise[0] != '\0' ? o->otherwise : "none", "");
            print_option(to, config_flag_name(o, flag), o->value, o->help, tail);
        }
    }
    if (c->examples != NULL)
        fprintf(to, "\nEXAMPLES\n%s", c->examples);
    fprintf(to,
            "\nEXIT STATUS\n    0 on success; 64 when the command line makes no sense; else the "
            "code of\n    sysexits.h that fits best (66 not found, 69 unavailable, 75 try "
            "again, 77 not\n    allowed).\n");
}

/* ---- parsing -----------------------------------------------------------------------------------
 */

static int unknown_option(const struct cli_args *a, const char *name)
{
    const struct cli_command *c = a->command;
    const char *names[CONFIG_N_OPTIONS + 66];
    static char flags[CONFIG_N_OPTIONS][64];
    size_t n = 0;
    for (const struct cli_option *o = c->options; o != NULL && o->name != NULL && n < 64; o++)
        names[n++] = o->name;
    names[n++] = "help";
    for (int i = 0; c->takes_config && i < CONFIG_N_OPTIONS; i++)
        names[n++] = config_flag_name(&config_options[i], flags[i]);
    const char *near = cli_suggest(name, names, n);
    if (near != NULL)
        return cli_usage(a, "no option --%s; did you mean --%s?", name, near);
    return cli_usage(a, "no option --%s", name);
}

static void add_given(struct cli_args *a, const struct cli_option *o, const char *value)
{
    a->given = xrealloc_array(a->given, a->n_given + 1, sizeof *a->given);
    a->given[a->n_given++] = (struct given){o, value};
}

/* 0, or an exit status. Config flags are only collected into flags [2 * n]. */
static int parse_words(struct cli_args *a, int argc, char **argv, char ***flags, size_t *n_flags,
                       const char **config_file)
{
    const struct cli_command *c = a->command;
    bool only_operands = false;
    for (int i = 0; i < argc; i++) {
        const char *word = argv[i];
        if (only_operands || word[0] != '-' || strcmp(word, "-") == 0) {
            a->operands = xrealloc_array(a->operands, a->n_operands + 1, sizeof(char *));
            a->operands[a->n_operands++] = word;
            continue;
        }
        if (strcmp(word, "--") == 0) {
            only_operands = true;
            continue;
        }
        if (word[1] != '-')
            return cli_usage(a, "options have two dashes: %s", word);
        char name[64];
        size_t n = strcspn(word + 2, "=");
        if (n >= sizeof name)
            return cli_usage(a, "no option %s", word);
        memcpy(name, word + 2, n);
        name[n] = '\0';
        const char *value = word[2 + n] == '=' ? word + 3 + n : NULL;
        const struct cli_option *o = own_option(c, name);
        const struct config_option *conf = NULL;
        bool is_config_file = false;
        if (o == NULL && c->takes_config) {
            conf = config_by_flag(name);
            is_config_file = strcmp(name, "config") == 0;
        }
        if (o == NULL && conf == NULL && !is_config_file)
            return unknown_option(a, name);
        bool is_switch = o != NULL ? o->kind == CLI_SWITCH : conf != NULL && conf->value == NULL;
        if (is_switch && value != NULL && o != NULL)
            return cli_usage(a, "--%s takes no value", name);
        if (!is_switch && value == NULL) {
            if (i + 1 >= argc)
                return cli_usage(a, "--%s needs a value", name);
            value = argv[++i];
        }
        if (o != NULL) {
            add_given(a, o, value);
        } else if (is_config_file) {
            *config_file = value;
        } else {
            *flags = xrealloc_array(*flags, *n_flags + 2, sizeof(char *));
            (*flags)[(*n_flags)++] = xstrdup(name);
            (*flags)[(*n_flags)++] = xstrdup(value != NULL ? value : "yes");
        }
    }
    if ((int)a->n_operands < c->n_operands_min)
        return cli_usage(a, "something is missing: %s %s", a->words, c->synopsis);
    if (c->n_operands_max >= 0 && (int)a->n_operands > c->n_operands_max)
        return cli_usage(a, "\"%s\" is one word too many", a->operands[(size_t)c->n_operands_max]);
    return 0;
}

static int load_config(struct cli_args *a, const char *file, char **flags, size_t n_flags,
                       struct err *err)
{
    a->config = config_create();
    if (file == NULL)
        file = getenv("TRIBUTARY_CONFIG");
    bool named = file != NULL && file[0] != '\0';
    if (config_read_file(a->config, named ? file : "tributary.conf", err) != 0) {
        /* Only what isn't there is passed over: not a file that may not be read. */
        if (named || err->code != ERR_NOT_FOUND)
            return -1;
        *err = (struct err){0};
    }
    if (config_read_environment(a->config, environ, err) != 0)
        return -1;
    for (size_t i = 0; i < n_flags; i += 2) {
        if (config_set_flag(a->config, flags[i], flags[i + 1], err) != 0)
            return -1;
    }
    return 0;
}

static int run(const struct cli_command *c, char *words, int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            cli_print_help(stdout, c, words);
            return 0;
        }
    }
    struct cli_args a = {.command = c, .words = words};
    char **flags = NULL;
    const char *config_file = NULL;
    size_t n_flags = 0;
    struct err err = {0};
    int status = parse_words(&a, argc, argv, &flags, &n_flags, &config_file);
    if (status == 0 && c->takes_config && load_config(&a, config_file, flags, n_flags, &err) != 0) {
        cli_fail(&a, &err);
        status = EX_CONFIG;
    }
    if (status == 0)
        status = c->run(&a);
    for (size_t i = 0; i < n_flags; i++)
        free(flags[i]);
    free(flags);
    free(a.given);
    free(a.operands);
    config_free(a.config);
    if (fflush(stdout) != 0 && status == 0) {
        if (errno != EPIPE) /* "| head" wants no more, and knows it */
            fprintf(stderr, "%s: standard output: %s\n", words, strerror(errno));
        status = EX_IOERR;
    }
    return status;
}

static void print_overview(FILE *to, const struct cli_command *const *commands, size_t n)
{
    fprintf(to, "tributary - a node of a market of small, specialised models\n\n"
                "usage: tributary COMMAND [options]\n\n");
    for (size_t i = 0; i < n; i++)
        fprintf(to, "    %-12s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(to, "\n\"tributary COMMAND --help\" tells all about a command.\n");
}

int cli_main(const struct cli_command *const *commands, size_t n, int argc, char **argv)
{
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_overview(argc < 2 ? stderr : stdout, commands, n);
        return argc < 2 ? EX_USAGE : 0;
    }
    const char *typed = strcmp(argv[1], "--version") == 0 ? "version" : argv[1];
    const struct cli_command *found = NULL;
    const char **names = xcalloc(n + 1, sizeof(char *));
    for (size_t i = 0; i < n; i++) {
        names[i] = commands[i]->name;
        if (strcmp(typed, names[i]) == 0)
            found = commands[i];
    }
    int status = EX_USAGE;
    if (found == NULL) {
        const char *near = cli_suggest(typed, names, n);
        fprintf(stderr, "tributary: no command \"%s\"%s%s%s\nTry: tributary help\n", typed,
                near != NULL ? "; did you mean \"" : "", near != NULL ? near : "",
                near != NULL ? "\"?" : "");
        free(names);
        return status;
    }
    free(names);
    if (found->subcommands == NULL) {
        char *words = xasprintf("tributary %s", found->name);
        status = run(found, words, argc - 2, argv + 2);
        free(words);
        return status;
    }
    char *words = xasprintf("tributary %s", found->name);
    if (argc < 3 || strcmp(argv[2], "--help") == 0 || strcmp(argv[2], "-h") == 0) {
        cli_print_help(argc < 3 ? stderr : stdout, found, words);
        free(words);
        return argc < 3 ? EX_USAGE : 0;
    }
    const struct cli_command *sub = found->subcommands;
    while (sub->name != NULL && strcmp(sub->name, argv[2]) != 0)
        sub++;
    if (sub->name == NULL) {
        const char *subs[64];
        size_t n_subs = 0;
        for (sub = found->subcommands; sub->name != NULL && n_subs < 64; sub++)
            subs[n_subs++] = sub->name;
        const char *near = cli_suggest(argv[2], subs, n_subs);
        fprintf(stderr, "%s: no command \"%s\"%s%s%s\nTry: %s --help\n", words, argv[2],
                near != NULL ? "; did you mean \"" : "", near != NULL ? near : "",
                near != NULL ? "\"?" : "", words);
    } else {
        char *more = xasprintf("%s %s", words, sub->name);
        status = run(sub, more, argc - 3, argv + 3);
        free(more);
    }
    free(words);
    return status;
}

/* ---- completion --------------------------------------------------------------------------------
 */

static void print_case(FILE *to, const char *words, const struct cli_command *c)
{
    fprintf(to, "        \"%s\") words=\"--help", words);
    for (const struct cli_option *o = c->options; o != NULL && o->name != NULL; o++)
        fprintf(to, " --%s", o->name);
    if (c->takes_config) {
        char flag[64];
        fprintf(to, " --config");
        for (int i = 0; i < CONFIG_N_OPTIONS; i++)
            fprintf(to, " --%s", config_flag_name(&config_options[i], flag));
    }
    for (const struct cli_command *s = c->subcommands; s != NULL && s->name != NULL; s++)
        fprintf(to, " %s", s->name);
    fprintf(to, "\" ;;\n");
}

void cli_print_completion(FILE *to, const struct cli_command *const *commands, size_t n)
{
    fprintf(to, "# bash completion of tributary; use it by: source <(tributary completion)\n"
                "_tributary() {\n"
                "    local word=${COMP_WORDS[COMP_CWORD]} words=\"\" path=\"\" i\n"
                "    for ((i = 1; i < COMP_CWORD && i <= 2; i++)); do\n"
                "        [[ ${COMP_WORDS[i]} == -* ]] && break\n"
                "        path+=\"${path:+ }${COMP_WORDS[i]}\"\n"
                "    done\n"
                "    local key\n"
                "    for key in \"$path\" \"${path%%%% *}\"; do\n"
                "    case \"$key\" in\n"
                "        \"\") words=\"");
    for (size_t i = 0; i < n; i++)
        fprintf(to, "%s%s", i > 0 ? " " : "", commands[i]->name);
    fprintf(to, "\" ;;\n");
    for (size_t i = 0; i < n; i++) {
        print_case(to, commands[i]->name, commands[i]);
        for (const struct cli_command *s = commands[i]->subcommands; s != NULL && s->name != NULL;
             s++) {
            char words[128];
            snprintf(words, sizeof words, "%s %s", commands[i]->name, s->name);
            print_case(to, words, s);
        }
    }
    fprintf(to, "    esac\n"
                "    [[ -n $words ]] && break\n"
                "    done\n"
                "    COMPREPLY=($(compgen -W \"$words\" -- \"$word\"))\n"
                "    [[ ${#COMPREPLY[@]} -eq 0 && $word != -* ]] && "
                "COMPREPLY=($(compgen -f -- \"$word\"))\n"
                "}\n"
                "complete -F _tributary tributary\n");
}
