/* pattern: see pattern.h.
 *
 * tokenizer.json files are written for Oniguruma (Ruby syntax, UTF-8); here PCRE2 does the work,
 * with UTF, UCP and its JIT compiler. The two agree on almost all that tokenizers use. Where they
 * differ, the expression is translated on the way in, and where that can't be done it is refused:
 *
 *   construct           Oniguruma, Ruby syntax           here
 *   ^  $                at every line                    PCRE2_MULTILINE
 *   \s \S               property White_Space             spelt out: PCRE2 counts U+180E as space
 *   \w \W               Alphabetic, M, Nd, Pc            spelt out: PCRE2 has L, N and _ only
 *   \h \H               hexadecimal digit                spelt out: PCRE2 has horizontal space
 *   \uHHHH              that character                   \x{HHHH}
 *   \p{L} \p{Nd} ...    Unicode 16                       what PCRE2 may lack is added, see
 *                                                        unicode_later.h; \P inside []: refused
 *   \p{Han}             that script                      \p{sc:Han}: PCRE2 means the extensions
 *   x{n,m}+             repeats the repetition           refused: PCRE2 has possession
 *   (?m) (?s) (?x)      other letters, other meanings    refused; (?i:...) is the same in both
 *   (?i) inside         to the end of the group, across |  refused, but at the very beginning
 *   [a[b]] [a&&b]       union, intersection              refused
 *   \b \B \g \k \K \R \X (?{ (?( (*VERB)                 refused
 *
 * Both fold case over whole classes: (?i:'s) finds U+017F in either. Checked with all of Unicode
 * behind an apostrophe.
 *
 * Steps of one match are bounded (MATCH_STEPS_MAX), so that a hostile expression ends with an
 * error. The JIT code runs on 32 KiB of the thread's stack; should that not do, the same match is
 * repeated by the interpreter, whose memory is bounded as well. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/tokenizer/pattern.h"

#include "engine/tokenizer/unicode_later.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MATCH_STEPS_MAX = 50 * 1000 * 1000, MATCH_HEAP_KIB = 256 * 1024 };

struct pattern {
    char *literal; /* NULL: a regular expression */
    size_t n_literal;
    pcre2_code *code;
    pcre2_match_context *limits;
    bool jit;
};

/* ---- translation ----------------------------------------------------------------------------- */

#define SPACE                                                                               \
    "\\x09-\\x0d\\x20\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}" \
    "\\x{205f}\\x{3000}"
#define NOT_SPACE                                                                            \
    "\\x00-\\x08\\x0e-\\x1f\\x21-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}" \
    "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}"           \
    "\\x{3001}-\\x{10ffff}"
/* Below U+0100 Oniguruma goes by its table of ISO 8859-1, which has superscripts and fractions. */
#define WORD                                                                                    \
    "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}" LATER_LU LATER_LL \
        LATER_LM LATER_LO LATER_MN LATER_MC LATER_ND
#define HEX "0-9A-Fa-f"

static const struct {
    char letter;
    const char *in_class;  /* between brackets; NULL: can't be said there */
    const char *elsewhere; /* on its own */
} spelt_out[] = {
    {'s', SPACE, "[" SPACE "]"}, {'S', NOT_SPACE, "[^" SPACE "]"}, {'w', WORD, "[" WORD "]"},
    {'W', NULL, "[^" WORD "]"},  {'h', HEX, "[" HEX "]"},          {'H', NULL, "[^" HEX "]"},
};

struct translation {
    const char *s;
    size_t n, at;
    struct buf *out;
    bool in_class;
    struct err *err;
};

static int refuse(const struct translation *t, size_t at, const char *what)
{
    size_t n = t->n - at < 12 ? t->n - at : 12;
    return err_set(t->err, ERR_UNSUPPORTED, "regular expression: %s at \"%.*s\" is not supported",
                   what, (int)n, t->s + at);
}

/* \p{name}: a script, in the words of PCRE2 (perluniprops: "Script=", not its extensions)? */
static bool is_script(const char *name, size_t n)
{
    char text[64];
    int error;
    PCRE2_SIZE at;
    if (n <= 2 || n > sizeof text - 8) /* shorter: a category */
        return false;
    snprintf(text, sizeof text, "\\p{sc:%.*s}", (int)n, name);
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &error,
                                     &at, NULL);
    pcre2_code_free(code);
    return code != NULL;
}

/* \p{name} or \P{name}, from the p on; t->at is at the backslash. */
static int translate_property(struct translation *t, const char *name, size_t n)
{
    const char *later = NULL;
    if (memchr(name, '\0', n) != NULL)
        return refuse(t, t->at, "a property with a zero in its name");
    bool negated = t->s[t->at + 1] == 'P';
    for (size_t i = 0; i < sizeof unicode_later / sizeof *unicode_later; i++) {
        if (strlen(unicode_later[i].name) == n && memcmp(unicode_later[i].name, name, n) == 0)
            later = unicode_later[i].later;
    }
    if (later != NULL && negated && t->in_class)
        return refuse(t, t->at, "a negated class inside brackets");
    const char *script = is_script(name, n) ? "sc:" : "";
    if (later != NULL)
        buf_appendf(t->out, "%s\\p{%s%.*s}%s%s",
                    t->in_class ? ""
                    : negated   ? "[^"
                                : "[",
                    script, (int)n, name, later, t->in_class ? "" : "]");
    else
        buf_appendf(t->out, "\\%c{%s%.*s}", negated ? 'P' : 'p', script, (int)n, name);
    t->at += n + 4;
    return 0;
}

static int translate_escape(struct translation *t)
{
    size_t start = t->at;
    if (t->at + 1 == t->n)
        return err_set(t->err, ERR_INVALID, "regular expression ends with a backslash");
    char c = t->s[t->at + 1];
    for (size_t i = 0; i < sizeof spelt_out / sizeof spelt_out[0]; i++) {
        if (spelt_out[i].letter != c)
            continue;
        const char *text = t->in_class ? spelt_out[i].in_class : spelt_out[i].elsewhere;
        if (text == NULL)
            return refuse(t, start, "a negated class inside brackets");
        buf_append_str(t->out, text);
        t->at += 2;
        return 0;
    }
    if (c == 'u') {
        if (t->n - t->at < 6 || strspn(t->s + t->at + 2, "0123456789abcdefABCDEF") < 4)
            return refuse(t, start, "\\u without four digits");
        buf_appendf(t->out, "\\x{%.4s}", t->s + t->at + 2);
        t->at += 6;
        return 0;
    }
    if (strchr("bBgkKRXNOQECcyYuUlL", c) != NULL && !(c == 'b' && t->in_class))
        return refuse(t, start, "the escape");
    size_t n = 2;
    if ((c == 'p' || c == 'P' || c == 'x') && t->at + 2 < t->n && t->s[t->at + 2] == '{') {
        const char *name = t->s + t->at + 3;
        const char *close = memchr(name, '}', t->n - t->at - 3);
        if (close == NULL)
            return err_set(t->err, ERR_INVALID, "regular expression: \\%c{ without }", c);
        if (c != 'x')
            return translate_property(t, name, (size_t)(close - name));
        n = (size_t)(close - (t->s + t->at)) + 1;
    }
    buf_append(t->out, t->s + t->at, n);
    t->at += n;
    return 0;
}

static int translate_group(struct translation *t)
{
    static const char *const same[] = {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:", "(?-i:"};
    const char *s = t->s + t->at;
    size_t n = t->n - t->at;
    if (n >= 2 && s[1] == '*')
        return refuse(t, t->at, "a verb");
    if (n < 2 || s[1] != '?') {
        buf_append_byte(t->out, '(');
        t->at++;
        return 0;
    }
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        size_t k = strlen(same[i]);
        if (n >= k && memcmp(s, same[i], k) == 0) {
            buf_append(t->out, s, k);
            t->at += k;
            return 0;
        }
    }
    if (t->at == 0 && n >= 4 && memcmp(s, "(?i)", 4) == 0) {
        buf_append_str(t->out, "(?i)");
        t->at += 4;
        return 0;
    }
    return refuse(t, t->at, "the group");
}

static int translate(struct translation *t)
{
    size_t class_begin = 0; /* behind the [ or [^ of the class we are in */
    while (t->at < t->n) {
        char c = t->s[t->at];
        if (c == '\\') {
            if (translate_escape(t) != 0)
                return -1;
            continue;
        }
        if (t->in_class) {
            if (c == '[')
                return refuse(t, t->at, "a class inside brackets");
            if (c == '&' && t->at + 1 < t->n && t->s[t->at + 1] == '&')
                return refuse(t, t->at, "an intersection of classes");
            if (c == ']' && t->at > class_begin)
                t->in_class = false;
        } else if (c == '[') {
            t->in_class = true;
            buf_append_byte(t->out, '[');
            t->at++;
            if (t->at < t->n && t->s[t->at] == '^') {
                buf_append_byte(t->out, '^');
                t->at++;
            }
            class_begin = t->at;
            continue;
        } else if (c == '(') {
            if (translate_group(t) != 0)
                return -1;
            continue;
        } else if (c == '}' && t->at + 1 < t->n && t->s[t->at + 1] == '+') {
            return refuse(t, t->at, "a repeated repetition");
        }
        buf_append_byte(t->out, (uint8_t)c);
        t->at++;
    }
    return 0;
}

/* ---- making ---------------------------------------------------------------------------------- */

struct pattern *pattern_regex(const char *source, size_t n_bytes, struct err *err)
{
    if (n_bytes > PATTERN_MAX_BYTES) {
        err_set(err, ERR_TOO_LARGE, "regular expression of %zu bytes, the limit is %d", n_bytes,
                PATTERN_MAX_BYTES);
        return NULL;
    }
    struct buf text = BUF_INIT;
    struct translation t = {.s = source, .n = n_bytes, .out = &text, .err = err};
    if (translate(&t) != 0) {
        buf_release(&text);
        return NULL;
    }
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    BUG_IF(context == NULL);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int code_error;
    PCRE2_SIZE at;
    pcre2_code *code = pcre2_compile((PCRE2_SPTR)buf_cstr(&text), text.len,
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE |
                                         PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE,
                                     &code_error, &at, context);
    pcre2_compile_context_free(context);
    buf_release(&text);
    if (code == NULL) {
        PCRE2_UCHAR message[256];
        pcre2_get_error_message(code_error, message, sizeof message);
        err_set(err, ERR_INVALID, "regular expression: %s", (const char *)message);
        return NULL;
    }
    struct pattern *p = xcalloc(1, sizeof *p);
    p->code = code;
    p->limits = pcre2_match_context_create(NULL);
    BUG_IF(p->limits == NULL);
    pcre2_set_match_limit(p->limits, MATCH_STEPS_MAX);
    pcre2_set_heap_limit(p->limits, MATCH_HEAP_KIB);
    /* No JIT on this machine, or not for this expression: the interpreter does it, slower. */
    p->jit = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
    return p;
}

struct pattern *pattern_literal(const char *text, size_t n_bytes)
{
    struct pattern *p = xcalloc(1, sizeof *p);
    p->literal = xmalloc(n_bytes + 1);
    memcpy(p->literal, text, n_bytes);
    p->literal[n_bytes] = '\0';
    p->n_literal = n_bytes;
    return p;
}

struct pattern *pattern_read(const json_t *object, const char *where, struct err *err)
{
    const json_t *pattern = json_object_get(object, "pattern");
    struct json_text text;
    bool regex = json_object_get(pattern, "Regex") != NULL;
    if (!json_is_object(pattern) || json_object_size(pattern) != 1 ||
        json_read_text(pattern, where, regex ? "Regex" : "String", &text, NULL) != 0) {
        err_set(err, ERR_INVALID, "%s: pattern should be {\"String\": ...} or {\"Regex\": ...}",
                where);
        return NULL;
    }
    if (text.n == 0) {
        err_set(err, ERR_INVALID, "%s: the pattern is empty", where);
        return NULL;
    }
    if (!regex)
        return pattern_literal(text.bytes, text.n);
    struct pattern *p = pattern_regex(text.bytes, text.n, err);
    if (p == NULL)
        err_wrap(err, "%s", where);
    return p;
}

void pattern_free(struct pattern *p)
{
    if (p == NULL)
        return;
    free(p->literal);
    pcre2_code_free(p->code);
    pcre2_match_context_free(p->limits);
    free(p);
}

const char *pattern_literal_text(const struct pattern *p, size_t *n_bytes)
{
    *n_bytes = p->n_literal;
    return p->literal;
}

/* ---- searching ------------------------------------------------------------------------------- */

void pattern_search_init(struct pattern_search *s, const struct pattern *p, const char *text,
                         size_t n_bytes)
{
    *s = (struct pattern_search){.pattern = p, .text = text, .n_bytes = n_bytes};
    if (p->literal == NULL) {
        s->scratch = pcre2_match_data_create(1, NULL);
        BUG_IF(s->scratch == NULL);
    }
}

static int match_at(struct pattern_search *s, struct err *err)
{
    const struct pattern *p = s->pattern;
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (p->jit)
        rc = pcre2_jit_match(p->code, (PCRE2_SPTR)s->text, s->n_bytes, s->at, PCRE2_NO_UTF_CHECK,
                             s->scratch, p->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(p->code, (PCRE2_SPTR)s->text, s->n_bytes, s->at,
                         PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, s->scratch, p->limits);
    if (rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc < 0) {
        PCRE2_UCHAR message[256];
        pcre2_get_error_message(rc, message, sizeof message);
        return err_set(err, ERR_INVALID, "the tokenizer's regular expression failed: %s",
                       (const char *)message);
    }
    return 1;
}

int pattern_search_next(struct pattern_search *s, size_t *begin, size_t *end, struct err *err)
{
    const struct pattern *p = s->pattern;
    if (p->literal != NULL) {
        const char *found = s->at <= s->n_bytes ? memmem(s->text + s->at, s->n_bytes - s->at,
                                                         p->literal, p->n_literal)
                                                : NULL;
        if (found == NULL)
            return 0;
        *begin = (size_t)(found - s->text);
        *end = s->at = *begin + p->n_literal;
        return 1;
    }
    while (s->at <= s->n_bytes) {
        int rc = match_at(s, err);
        if (rc <= 0)
            return rc;
        const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(s->scratch);
        *begin = bounds[0];
        *end = bounds[1];
        /* After an empty match, or an empty one where the last ended, go on one character later:
         * an empty match right behind another match is not counted. */
        bool empty = *begin == *end;
        bool again = empty && s->matched && *end == s->last_end;
        s->at = *end;
        if (empty)
            s->at += s->at < s->n_bytes ? utf8_char_bytes((uint8_t)s->text[s->at]) : 1;
        if (again)
            continue;
        s->matched = true;
        s->last_end = *end;
        return 1;
    }
    return 0;
}

void pattern_search_release(struct pattern_search *s)
{
    pcre2_match_data_free(s->scratch);
    s->scratch = NULL;
}
