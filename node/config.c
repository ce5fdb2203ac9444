/* config: see config.h.
 *
 * A value is kept as the text that was given, its source, and the parsed form that its type needs.
 * `rank` is the strength of the source; a list is emptied when a stronger source names it first,
 * and grows when the same source names it again.
 *
 * libinih reports neither line numbers (in the packaged build) nor lines that its buffer cuts, so
 * lines reach it through a reader that counts and refuses over-long ones. */
#include "node/config.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/cli/cli.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <ini.h>

enum { RANK_DEFAULT, RANK_FILE, RANK_ENVIRONMENT, RANK_FLAG };
enum { FILE_MAX_BYTES = 1 << 20, LIST_MAX = 4096 };

#define X(id_, section_, key_, type_, default_, min_, max_, unit_, flag_, value_, help_) \
    [CONFIG_##id_] = {section_, key_,  CONFIG_##type_, default_, min_,                   \
                      max_,     unit_, flag_,          value_,   help_},
const struct config_option config_options[CONFIG_N_OPTIONS] = {CONFIG_OPTIONS(X)};
#undef X

struct value {
    int rank;
    char *source;
    char *text; /* of a list: its items joined with commas */
    int64_t integer;
    bool boolean;
    double number;
    struct amount amount;
    uint8_t address[20];
    char **items;
    size_t n_items;
};

struct config {
    struct value values[CONFIG_N_OPTIONS];
};

/* ---- names -------------------------------------------------------------------------------------
 */

const char *config_type_name(enum config_type type)
{
    switch (type) {
    case CONFIG_STRING:
        return "text";
    case CONFIG_PATH:
        return "path";
    case CONFIG_INT:
        return "integer";
    case CONFIG_BOOL:
        return "yes or no";
    case CONFIG_BYTES:
        return "bytes (k, m, g)";
    case CONFIG_DURATION:
        return "time (ms, s, m, h)";
    case CONFIG_AMOUNT:
        return "amount (decimal integer)";
    case CONFIG_ADDRESS:
        return "address (0x and 40 hexadecimal digits)";
    case CONFIG_NUMBER:
        return "number";
    case CONFIG_LIST:
        return "list";
    }
    BUG("config type %d", (int)type);
}

const char *config_flag_name(const struct config_option *o, char out[64])
{
    if (o->flag != NULL)
        snprintf(out, 64, "%s", o->flag);
    else
        snprintf(out, 64, "%s-%s", o->section, o->key);
    for (char *p = out; *p != '\0'; p++) {
        if (*p == '_')
            *p = '-';
    }
    return out;
}

const char *config_env_name(const struct config_option *o, char out[64])
{
    snprintf(out, 64, "TRIBUTARY_%s_%s", o->section, o->key);
    for (char *p = out; *p != '\0'; p++)
        *p = (char)toupper((unsigned char)*p);
    return out;
}

const struct config_option *config_by_flag(const char *flag)
{
    char name[64];
    for (int i = 0; i < CONFIG_N_OPTIONS; i++) {
        if (strcmp(config_flag_name(&config_options[i], name), flag) == 0)
            return &config_options[i];
    }
    return NULL;
}

/* ---- setting -----------------------------------------------------------------------------------
 */

static int parse_suffixed(const char *text, const char *const *suffixes, const int64_t *factors,
                          int64_t *out)
{
    char *end;
    errno = 0;
    if (!isdigit((unsigned char)text[0]))
        return -1;
    unsigned long long v = strtoull(text, &end, 10);
    if (errno != 0 || v > INT64_MAX)
        return -1;
    for (size_t i = 0; suffixes[i] != NULL; i++) {
        if (strcasecmp(end, suffixes[i]) == 0)
            return __builtin_mul_overflow((int64_t)v, factors[i], out) ? -1 : 0;
    }
    return -1;
}

/* words: "this|that" */
static bool is_one_of(const char *text, const char *words)
{
    size_t n = strlen(text);
    for (;; words++) {
        size_t len = strcspn(words, "|");
        if (len == n && memcmp(text, words, n) == 0)
            return true;
        words += len;
        if (*words == '\0')
            return false;
    }
}

static int parse_value(const struct config_option *o, const char *text, struct value *v,
                       struct err *err)
{
    static const char *const int_suffix[] = {"", NULL};
    static const int64_t int_factor[] = {1};
    static const char *const bytes_suffix[] = {"",    "b", "k",  "kb",  "kib", "m", "mb",
                                               "mib", "g", "gb", "gib", "t",   NULL};
    static const int64_t bytes_factor[] = {1,       1,       1 << 10, 1 << 10,
                                           1 << 10, 1 << 20, 1 << 20, 1 << 20,
                                           1 << 30, 1 << 30, 1 << 30, INT64_C(1) << 40};
    static const char *const time_suffix[] = {"ms", "s", "m", "h", "d", NULL};
    static const int64_t time_factor[] = {1, 1000, 60000, 3600000, 86400000};
    int rc = 0;
    switch (o->type) {
    case CONFIG_STRING:
        if (o->value != NULL && strchr(o->value, '|') != NULL && !is_one_of(text, o->value))
            return err_set(err, ERR_INVALID, "%s.%s = \"%s\" is none of %s", o->section, o->key,
                           text, o->value);
        return 0;
    case CONFIG_PATH:
    case CONFIG_LIST:
        return 0;
    case CONFIG_BOOL: {
        static const char *const yes[] = {"yes", "true", "on", "1"}, *const no[] = {"no", "false",
                                                                                    "off", "0"};
        for (int i = 0; i < 4; i++) {
            if (strcasecmp(text, yes[i]) == 0 || strcasecmp(text, no[i]) == 0) {
                v->boolean = strcasecmp(text, yes[i]) == 0;
                return 0;
            }
        }
        rc = -1;
        break;
    }
    case CONFIG_INT:
        rc = parse_suffixed(text, int_suffix, int_factor, &v->integer);
        break;
    case CONFIG_BYTES:
        rc = parse_suffixed(text, bytes_suffix, bytes_factor, &v->integer);
        break;
    case CONFIG_DURATION:
        rc = parse_suffixed(text, time_suffix, time_factor, &v->integer);
        if (strcmp(text, "0") == 0) {
            v->integer = 0;
            rc = 0;
        }
        break;
    case CONFIG_NUMBER: {
        char *end;
        v->number = strtod(text, &end);
        rc = end == text || *end != '\0' || !isfinite(v->number) || v->number < 0 ? -1 : 0;
        break;
    }
    case CONFIG_AMOUNT:
        rc = amount_parse(&v->amount, text);
        break;
    case CONFIG_ADDRESS:
        if (text[0] == '\0')
            return 0;
        rc = strncmp(text, "0x", 2) != 0 ? -1 : hex_decode(v->address, 20, text);
        break;
    }
    if (rc != 0)
        return err_set(err, ERR_INVALID, "%s.%s = \"%s\" is not a valid %s", o->section, o->key,
                       text, config_type_name(o->type));
    bool ranged = o->type == CONFIG_INT || o->type == CONFIG_BYTES || o->type == CONFIG_DURATION;
    if (ranged && (o->min != 0 || o->max != 0) && (v->integer < o->min || v->integer > o->max))
        return err_set(err, ERR_INVALID, "%s.%s = \"%s\" is outside %lld to %lld%s%s", o->section,
                       o->key, text, (long long)o->min, (long long)o->max,
                       o->type == CONFIG_DURATION ? " ms"
                       : o->unit[0] != '\0'       ? " "
                                                  : "",
                       o->type == CONFIG_DURATION ? "" : o->unit);
    if (o->type == CONFIG_NUMBER && (o->min != 0 || o->max != 0) &&
        (v->number < (double)o->min || v->number > (double)o->max))
        return err_set(err, ERR_INVALID, "%s.%s = \"%s\" is outside %lld to %lld", o->section,
                       o->key, text, (long long)o->min, (long long)o->max);
    return 0;
}

static void items_clear(struct value *v)
{
    for (size_t i = 0; i < v->n_items; i++)
        free(v->items[i]);
    free(v->items);
    v->items = NULL;
    v->n_items = 0;
}

static int list_add(const struct config_option *o, struct value *v, const char *text, size_t n,
                    struct err *err)
{
    while (n > 0 && isspace((unsigned char)text[0]))
        text++, n--;
    while (n > 0 && isspace((unsigned char)text[n - 1]))
        n--;
    if (n == 0)
        return 0;
    if (v->n_items == LIST_MAX)
        return err_set(err, ERR_TOO_LARGE, "%s.%s has more than %d items", o->section, o->key,
                       LIST_MAX);
    v->items = xrealloc_array(v->items, v->n_items + 1, sizeof(char *));
    v->items[v->n_items++] = xstrndup(text, n);
    return 0;
}

/* split: commas separate items. source is taken. */
static int set(struct config *c, const struct config_option *o, const char *text, int rank,
               char *source, bool split, struct err *err)
{
    struct value *v = &c->values[o - config_options];
    struct value parsed = {0};
    if (parse_value(o, text, &parsed, err) != 0) {
        err_wrap(err, "%s", source);
        free(source);
        return -1;
    }
    if (o->type == CONFIG_LIST) {
        if (v->rank != rank)
            items_clear(v);
        while (text != NULL) {
            const char *comma = split ? strchr(text, ',') : NULL;
            size_t n = comma != NULL ? (size_t)(comma - text) : strlen(text);
            if (list_add(o, v, text, n, err) != 0) {
                err_wrap(err, "%s", source);
                free(source);
                return -1;
            }
            text = comma != NULL ? comma + 1 : NULL;
        }
        struct buf joined = BUF_INIT;
        for (size_t i = 0; i < v->n_items; i++)
            buf_appendf(&joined, "%s%s", i > 0 ? "," : "", v->items[i]);
        free(v->text);
        v->text = xstrdup(buf_cstr(&joined));
        buf_release(&joined);
    } else {
        free(v->text);
        v->text = xstrdup(text);
        v->integer = parsed.integer;
        v->boolean = parsed.boolean;
        v->number = parsed.number;
        v->amount = parsed.amount;
        memcpy(v->address, parsed.address, 20);
    }
    free(v->source);
    v->source = source;
    v->rank = rank;
    return 0;
}

struct config *config_create(void)
{
    struct config *c = xcalloc(1, sizeof *c);
    for (int i = 0; i < CONFIG_N_OPTIONS; i++) {
        struct err err = {0};
        if (set(c, &config_options[i], config_options[i].otherwise, RANK_DEFAULT,
                xstrdup("default"), true, &err) != 0)
            BUG("config_options.h: %s", err.message);
    }
    return c;
}

void config_free(struct config *c)
{
    if (c == NULL)
        return;
    for (int i = 0; i < CONFIG_N_OPTIONS; i++) {
        struct value *v = &c->values[i];
        items_clear(v);
        free(v->text);
        free(v->source);
    }
    free(c);
}

/* ---- file --------------------------------------------------------------------------------------
 */

struct ini_state {
    struct config *config;
    const char *path;
    FILE *file;
    int line;
    bool too_long;
    struct err *err;
    bool failed;
};

static char *read_line(char *out, int n, void *context)
{
    struct ini_state *s = context;
    if (s->failed)
        return NULL;
    if (fgets(out, n, s->file) == NULL) {
        if (ferror(s->file)) { /* a directory opens, and fails only here */
            s->failed = true;
            err_set_errno(s->err, errno, "reading %s", s->path);
        }
        return NULL;
    }
    s->line++;
    size_t len = strlen(out);
    if (len + 1 == (size_t)n && out[len - 1] != '\n' && !feof(s->file)) {
        s->failed = true;
        err_set(s->err, ERR_INVALID, "%s:%d: the line is longer than %d bytes", s->path, s->line,
                n - 2);
        return NULL;
    }
    /* inih takes an indented line for more of the value before it, which would replace that. */
    size_t indent = strspn(out, " \t\f\v\r");
    memmove(out, out + indent, len - indent + 1);
    return out;
}

static int ini_pair(void *context, const char *section, const char *key, const char *text)
{
    struct ini_state *s = context;
    if (s->failed)
        return 0;
    bool section_known = false;
    const char *keys[CONFIG_N_OPTIONS];
    size_t n_keys = 0;
    for (int i = 0; i < CONFIG_N_OPTIONS; i++) {
        const struct config_option *o = &config_options[i];
        if (strcmp(o->section, section) != 0)
            continue;
        section_known = true;
        keys[n_keys++] = o->key;
        if (strcmp(o->key, key) == 0) {
            s->failed = set(s->config, o, text, RANK_FILE, xasprintf("%s:%d", s->path, s->line),
                            true, s->err) != 0;
            return s->failed ? 0 : 1;
        }
    }
    s->failed = true;
    if (!section_known) {
        const char *sections[CONFIG_N_OPTIONS];
        for (int i = 0; i < CONFIG_N_OPTIONS; i++)
            sections[i] = config_options[i].section;
        const char *near = cli_suggest(section, sections, CONFIG_N_OPTIONS);
        err_set(s->err, ERR_INVALID, "%s:%d: no section [%s]%s%s%s", s->path, s->line, section,
                near != NULL ? "; did you mean [" : "", near != NULL ? near : "",
                near != NULL ? "]?" : "");
    } else {
        const char *near = cli_suggest(key, keys, n_keys);
        err_set(s->err, ERR_INVALID, "%s:%d: section [%s] has no option \"%s\"%s%s%s", s->path,
                s->line, section, key, near != NULL ? "; did you mean \"" : "",
                near != NULL ? near : "", near != NULL ? "\"?" : "");
    }
    return 0;
}

int config_read_file(struct config *c, const char *path, struct err *err)
{
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return err_set_errno(err, errno, "%s", path);
    struct ini_state s = {.config = c, .path = path, .file = f, .err = err};
    int rc = ini_parse_stream(read_line, &s, ini_pair, &s);
    fclose(f);
    /* A line that is no INI doesn't stop inih: what comes first is what is told. */
    if (s.failed && (rc <= 0 || rc >= s.line))
        return -1;
    if (rc > 0)
        return err_set(err, ERR_INVALID, "%s:%d: neither \"[section]\" nor \"key = value\"", path,
                       rc);
    if (rc < 0)
        return err_set(err, ERR_IO, "%s: cannot be parsed", path);
    return 0;
}

/* ---- environment and flags ---------------------------------------------------------------------
 */

int config_read_environment(struct config *c, char *const *environment, struct err *err)
{
    static const char *const others[] = {"TRIBUTARY_LOG", "TRIBUTARY_CONFIG",
                                         "TRIBUTARY_PASSPHRASE_FILE", "TRIBUTARY_NODE",
                                         "TRIBUTARY_FAULT"};
    for (; *environment != NULL; environment++) {
        const char *entry = *environment, *eq = strchr(entry, '=');
        if (eq == NULL || strncmp(entry, "TRIBUTARY_", 10) != 0)
            continue;
        char *name = xstrndup(entry, (size_t)(eq - entry));
        int rc = 0;
        bool known = false;
        for (size_t i = 0; i < sizeof others / sizeof *others; i++)
            known = known || strcmp(name, others[i]) == 0;
        const char *section = NULL;
        for (int i = 0; i < CONFIG_N_OPTIONS && !known; i++) {
            char candidate[64];
            config_env_name(&config_options[i], candidate);
            size_t prefix = 10 + strlen(config_options[i].section) + 1;
            if (strncmp(name, candidate, prefix) == 0)
                section = config_options[i].section;
            if (strcmp(name, candidate) == 0) {
                known = true;
                rc = set(c, &config_options[i], eq + 1, RANK_ENVIRONMENT, xstrdup(name), true, err);
            }
        }
        /* A variable of no section may be another program's; a misspelt one of ours is an error. */
        if (!known && section != NULL)
            rc = err_set(err, ERR_INVALID, "%s: section [%s] has no such option", name, section);
        free(name);
        if (rc != 0)
            return -1;
    }
    return 0;
}

int config_set_flag(struct config *c, const char *flag, const char *value, struct err *err)
{
    const struct config_option *o = config_by_flag(flag);
    if (o == NULL)
        return err_set(err, ERR_INVALID, "no option --%s", flag);
    struct value off;
    if (o->type == CONFIG_BOOL && strncmp(flag, "no-", 3) == 0 &&
        parse_value(o, value, &off, err) == 0)
        value = off.boolean ? "no" : "yes";
    return set(c, o, value, RANK_FLAG, xasprintf("--%s", flag), false, err);
}

/* ---- getting -----------------------------------------------------------------------------------
 */

static const struct value *get(const struct config *c, enum config_id id, unsigned types)
{
    BUG_IF(id >= CONFIG_N_OPTIONS || (types & 1U << config_options[id].type) == 0);
    return &c->values[id];
}

const char *config_text(const struct config *c, enum config_id id)
{
    return get(c, id, ~0U)->text;
}

const char *config_string(const struct config *c, enum config_id id)
{
    return get(c, id, 1U << CONFIG_STRING | 1U << CONFIG_PATH)->text;
}

const char *config_string_or_null(const struct config *c, enum config_id id)
{
    const char *s = config_string(c, id);
    return s[0] != '\0' ? s : NULL;
}

int64_t config_int(const struct config *c, enum config_id id)
{
    return get(c, id, 1U << CONFIG_INT | 1U << CONFIG_BYTES | 1U << CONFIG_DURATION)->integer;
}

bool config_bool(const struct config *c, enum config_id id)
{
    return get(c, id, 1U << CONFIG_BOOL)->boolean;
}

double config_number(const struct config *c, enum config_id id)
{
    return get(c, id, 1U << CONFIG_NUMBER)->number;
}

struct amount config_amount(const struct config *c, enum config_id id)
{
    return get(c, id, 1U << CONFIG_AMOUNT)->amount;
}

bool config_address(const struct config *c, enum config_id id, uint8_t out[20])
{
    const struct value *v = get(c, id, 1U << CONFIG_ADDRESS);
    memcpy(out, v->address, 20);
    return v->text[0] != '\0';
}

size_t config_list_len(const struct config *c, enum config_id id)
{
    return get(c, id, 1U << CONFIG_LIST)->n_items;
}

const char *config_list_item(const struct config *c, enum config_id id, size_t i)
{
    const struct value *v = get(c, id, 1U << CONFIG_LIST);
    BUG_IF(i >= v->n_items);
    return v->items[i];
}

const char *config_source(const struct config *c, enum config_id id)
{
    return get(c, id, ~0U)->source;
}
