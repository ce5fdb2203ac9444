/* lexer: see lexer.h.
 *
 * Jinja2's lexer as transformers configures it (trim_blocks, lstrip_blocks, no autoescape, "\n").
 * The source alternates between text and tags:
 *
 *   tag              white space before it                  white space after it
 *   {% ... %}        spaces and tabs since the line's       one newline
 *                    beginning, if nothing else is there
 *   {# ... #}        the same                               one newline
 *   {{ ... }}        stays                                  stays
 *   with -           all of it, newlines too                all of it, newlines too
 *   with +           stays                                  stays
 *
 * \r\n and \r count as \n everywhere, and the last newline of the source is dropped. Inside a tag,
 * an open bracket keeps the tag open: {{ {'a': {}} }}. Between {% raw %} and {% endraw %} all is
 * text. */
#include "engine/chat_template/lexer.h"

#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { BRACKETS_MAX = 200, NUMBER_MAX_BYTES = 400 };

struct lexer {
    struct arena *arena;
    struct tokens *out;
    const char *s; /* [n] and a NUL */
    size_t n, at;
    int line;         /* of `at` */
    bool line_begins; /* what was read last ended with a newline */
    struct err *err;
};

/* ---- small things ---------------------------------------------------------------------------- */

/* Python's \s and str.isspace(), which count four separators as space. */
static bool is_space(uint32_t c)
{
    return unicode_is_space(c) || (c >= 0x1C && c <= 0x1F);
}

static bool starts(const struct lexer *x, size_t at, const char *text)
{
    size_t n = strlen(text);
    return x->n - at >= n && memcmp(x->s + at, text, n) == 0;
}

static size_t skip_space(const struct lexer *x, size_t at)
{
    while (at < x->n) {
        size_t next = at;
        if (!is_space(utf8_next(x->s, &next)))
            break;
        at = next;
    }
    return at;
}

/* Moves to `to`, counting lines. */
static void move(struct lexer *x, size_t to)
{
    for (; x->at < to; x->at++)
        x->line += x->s[x->at] == '\n';
}

static struct token *emit(struct lexer *x, enum token_kind kind, const char *text, size_t n)
{
    struct tokens *t = x->out;
    if (t->n == t->cap) {
        size_t cap = t->cap == 0 ? 256 : t->cap * 2;
        struct token *grown = arena_array(x->arena, cap, sizeof *grown);
        if (t->n > 0)
            memcpy(grown, t->tokens, t->n * sizeof *grown);
        t->tokens = grown;
        t->cap = cap;
    }
    t->tokens[t->n] = (struct token){.kind = kind, .line = x->line, .text = text, .n = n};
    return &t->tokens[t->n++];
}

static int fail(struct lexer *x, const char *what)
{
    return err_set(x->err, ERR_INVALID, "line %d: %s", x->line, what);
}

/* ---- text ------------------------------------------------------------------------------------ */

/* Emits the text from x->at to `end`, where a tag with this sign begins. */
static void emit_text(struct lexer *x, size_t end, char sign, bool is_variable)
{
    size_t begin = x->at, stop = end;
    if (sign == '-') {
        while (stop > begin) {
            size_t before = utf8_before(x->s, stop), at = before;
            if (!is_space(utf8_next(x->s, &at)))
                break;
            stop = before;
        }
    } else if (sign != '+' && !is_variable) {
        size_t line = end;
        while (line > begin && x->s[line - 1] != '\n')
            line--;
        if ((line > begin || x->line_begins) && skip_space(x, line) >= end)
            stop = line;
    }
    if (stop > begin)
        emit(x, TOKEN_TEXT, x->s + begin, stop - begin);
    move(x, end);
    x->line_begins = false;
}

static char sign_at(const struct lexer *x, size_t at)
{
    char c = at < x->n ? x->s[at] : '\0';
    return c == '-' || c == '+' ? c : '\0';
}

/* The end of a block or comment tag at `at`, with the white space that goes with it; or 0. */
static size_t tag_end(const struct lexer *x, size_t at, const char *close)
{
    char sign = sign_at(x, at);
    size_t behind = at + (sign != '\0') + 2;
    if (behind > x->n || !starts(x, behind - 2, close))
        return 0;
    if (sign == '-')
        return skip_space(x, behind);
    if (sign == '\0' && behind < x->n && x->s[behind] == '\n')
        behind++;
    return behind;
}

static int skip_comment(struct lexer *x, size_t at)
{
    for (; at < x->n; at++) {
        size_t end = tag_end(x, at, "#}");
        if (end != 0) {
            move(x, end);
            x->line_begins = x->s[end - 1] == '\n';
            return 0;
        }
    }
    return fail(x, "a comment is not closed");
}

/* {%- raw -%} at `at`: where it ends, or 0. */
static size_t raw_begin(const struct lexer *x, size_t at)
{
    at = skip_space(x, at + 2 + (sign_at(x, at + 2) != '\0'));
    if (!starts(x, at, "raw"))
        return 0;
    at = skip_space(x, at + 3);
    if (starts(x, at, "-%}"))
        return skip_space(x, at + 3);
    return starts(x, at, "%}") ? at + 2 : 0;
}

static int raw_text(struct lexer *x, size_t begin)
{
    move(x, begin);
    x->line_begins = begin > 0 && x->s[begin - 1] == '\n';
    for (size_t at = begin; at + 2 < x->n; at++) {
        if (!starts(x, at, "{%"))
            continue;
        char sign = sign_at(x, at + 2);
        size_t word = skip_space(x, at + 2 + (sign != '\0'));
        if (!starts(x, word, "endraw"))
            continue;
        size_t end = tag_end(x, skip_space(x, word + 6), "%}");
        if (end == 0)
            continue;
        emit_text(x, at, sign, false);
        move(x, end);
        x->line_begins = x->s[end - 1] == '\n';
        return 0;
    }
    return fail(x, "a raw block is not closed");
}

/* ---- inside a tag ---------------------------------------------------------------------------- */

static bool is_name_char(uint32_t c)
{
    return c < 0x80 ? isalnum((int)c) || c == '_' : unicode_is_letter(c) || unicode_is_numeric(c);
}

static size_t digits(const struct lexer *x, size_t at, int base)
{
    size_t end = at;
    while (end < x->n) {
        int d = hex_digit(x->s[end]);
        bool separator = x->s[end] == '_' && end > at && end + 1 < x->n &&
                         hex_digit(x->s[end + 1]) >= 0 && hex_digit(x->s[end + 1]) < base;
        if (!separator && (d < 0 || d >= base))
            break;
        end++;
    }
    return end;
}

static int lex_number(struct lexer *x)
{
    size_t begin = x->at, end;
    int base = 10;
    bool real = false;
    char mark = begin + 1 < x->n && x->s[begin] == '0' ? (char)tolower((uint8_t)x->s[begin + 1])
                                                       : 0;
    if (mark == 'x' || mark == 'o' || mark == 'b')
        base = mark == 'x' ? 16 : mark == 'o' ? 8 : 2;
    size_t first = begin + (base == 10 ? 0 : 2);
    end = digits(x, first, base);
    if (base != 10 && end == first) { /* "0x" and nothing: a zero and a name */
        base = 10;
        first = begin;
        end = begin + 1;
    }
    bool after_dot = begin > 0 && x->s[begin - 1] == '.';
    if (base == 10 && !after_dot) {
        size_t fraction = end + 1 < x->n && x->s[end] == '.' ? digits(x, end + 1, 10) : end;
        if (fraction > end + 1) {
            end = fraction;
            real = true;
        }
        if (end + 1 < x->n && (x->s[end] == 'e' || x->s[end] == 'E')) {
            size_t e = end + 1 + (x->s[end + 1] == '+' || x->s[end + 1] == '-');
            size_t exponent = e < x->n ? digits(x, e, 10) : e;
            if (exponent > e) {
                end = exponent;
                real = true;
            }
        }
    }
    char text[NUMBER_MAX_BYTES];
    size_t n = 0;
    for (size_t i = first; i < end && n < sizeof text - 1; i++)
        if (x->s[i] != '_')
            text[n++] = x->s[i];
    text[n] = '\0';
    if (n == sizeof text - 1)
        return fail(x, "a number with too many digits");
    struct token *t = emit(x, real ? TOKEN_FLOAT : TOKEN_INTEGER, x->s + begin, end - begin);
    errno = 0;
    if (real)
        t->real = strtod(text, NULL);
    else
        t->integer = strtoll(text, NULL, base);
    if (!real && errno != 0)
        return fail(x, "an integer above 2^63 is not supported");
    move(x, end);
    return 0;
}

/* Python's escapes. Writes what the one at `at` (a backslash) means and returns where it ends, or
 * 0. */
static size_t lex_escape(struct lexer *x, size_t at, struct buf *out)
{
    static const char letters[] = "\\'\"abfnrtv";
    static const char means[] = "\\'\"\a\b\f\n\r\t\v";
    char c = x->s[at + 1];
    const char *letter = memchr(letters, c, sizeof letters - 1);
    if (letter != NULL) {
        buf_append_byte(out, (uint8_t)means[letter - letters]);
        return at + 2;
    }
    if (c == '\n')
        return at + 2;
    size_t wanted = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    uint32_t code = 0;
    size_t end = at + 2;
    if (wanted > 0) {
        for (size_t i = 0; i < wanted; i++, end++) {
            int d = end < x->n ? hex_digit(x->s[end]) : -1;
            if (d < 0)
                return 0;
            code = code << 4 | (uint32_t)d;
        }
    } else if (c >= '0' && c <= '7') {
        for (end = at + 1; end < at + 4 && end < x->n && x->s[end] >= '0' && x->s[end] <= '7';
             end++)
            code = code << 3 | (uint32_t)(x->s[end] - '0');
    } else if (c == 'N') {
        return 0;
    } else { /* no escape: the backslash stays */
        buf_append_byte(out, '\\');
        return at + 1;
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF))
        return 0;
    utf8_append(out, code);
    return end;
}

static int lex_string(struct lexer *x)
{
    char quote = x->s[x->at];
    struct buf text = BUF_INIT;
    size_t at = x->at + 1;
    int rc = 0;
    while (at < x->n && x->s[at] != quote && rc == 0) {
        if (x->s[at] != '\\') {
            buf_append_byte(&text, (uint8_t)x->s[at++]);
        } else if (at + 1 == x->n) {
            at = x->n;
        } else {
            size_t end = lex_escape(x, at, &text);
            rc = end == 0 ? fail(x, "an escape in a string means nothing") : 0;
            at = end;
        }
    }
    if (rc == 0 && at >= x->n)
        rc = fail(x, "a string is not closed");
    if (rc == 0) {
        char *copy = arena_alloc(x->arena, text.len + 1);
        memcpy(copy, buf_cstr(&text), text.len);
        emit(x, TOKEN_STRING, copy, text.len);
        move(x, at + 1);
    }
    buf_release(&text);
    return rc;
}

static int lex_operator(struct lexer *x, char *brackets, size_t *n_brackets)
{
    static const char *const twos[] = {"**", "//", "==", "!=", ">=", "<="};
    size_t n = 1;
    char c = x->s[x->at];
    for (size_t i = 0; i < sizeof twos / sizeof twos[0]; i++)
        n = starts(x, x->at, twos[i]) ? 2 : n;
    if (n == 1 && (c == '\0' || strchr("+-/*%~[](){}><=.:|,;", c) == NULL))
        return fail(x, "a character that no expression holds");
    if (n == 1 && strchr("([{", c) != NULL) {
        if (*n_brackets == BRACKETS_MAX)
            return fail(x, "brackets nest too deeply");
        brackets[(*n_brackets)++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (n == 1 && strchr(")]}", c) != NULL) {
        if (*n_brackets == 0 || brackets[--*n_brackets] != c)
            return fail(x, "a closing bracket that was not opened");
    }
    emit(x, TOKEN_OPERATOR, x->s + x->at, n);
    move(x, x->at + n);
    return 0;
}

/* From behind "{%" or "{{" to behind its end. */
static int lex_tag(struct lexer *x, bool is_variable)
{
    char brackets[BRACKETS_MAX];
    size_t n_brackets = 0;
    while (x->at < x->n) {
        if (n_brackets == 0) {
            size_t end = 0;
            if (!is_variable)
                end = tag_end(x, x->at, "%}");
            else if (starts(x, x->at, "-}}"))
                end = skip_space(x, x->at + 3);
            else if (starts(x, x->at, "}}"))
                end = x->at + 2;
            if (end != 0) {
                emit(x, is_variable ? TOKEN_VARIABLE_END : TOKEN_BLOCK_END, x->s + x->at, 2);
                move(x, end);
                x->line_begins = x->s[end - 1] == '\n';
                return 0;
            }
        }
        size_t next = x->at;
        uint32_t c = utf8_next(x->s, &next);
        int rc = 0;
        if (is_space(c)) {
            move(x, skip_space(x, x->at));
        } else if (c >= '0' && c <= '9') {
            rc = lex_number(x);
        } else if (is_name_char(c)) {
            size_t end = next;
            while (end < x->n) {
                next = end;
                if (!is_name_char(utf8_next(x->s, &next)))
                    break;
                end = next;
            }
            emit(x, TOKEN_NAME, x->s + x->at, end - x->at);
            move(x, end);
        } else if (c == '"' || c == '\'') {
            rc = lex_string(x);
        } else {
            rc = lex_operator(x, brackets, &n_brackets);
        }
        if (rc != 0)
            return -1;
    }
    return fail(x, "a tag is not closed");
}

/* ---- the whole ------------------------------------------------------------------------------- */

static void normalize_newlines(struct lexer *x, const char *source, size_t n)
{
    char *s = arena_alloc(x->arena, n + 1);
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        if (source[i] == '\r') {
            s[k++] = '\n';
            i += i + 1 < n && source[i + 1] == '\n';
        } else {
            s[k++] = source[i];
        }
    }
    if (k > 0 && s[k - 1] == '\n')
        k--;
    s[k] = '\0';
    x->s = s;
    x->n = k;
}

int lexer_run(struct arena *arena, struct tokens *out, const char *source, size_t n_bytes,
              struct err *err)
{
    struct lexer x = {.arena = arena, .out = out, .line = 1, .line_begins = true, .err = err};
    *out = (struct tokens){0};
    if (!utf8_is_valid(source, n_bytes))
        return err_set(err, ERR_INVALID, "the template is not UTF-8");
    normalize_newlines(&x, source, n_bytes);
    for (;;) {
        size_t tag = x.at;
        while (tag < x.n && !(x.s[tag] == '{' && tag + 1 < x.n &&
                              (x.s[tag + 1] == '%' || x.s[tag + 1] == '{' || x.s[tag + 1] == '#')))
            tag++;
        if (tag == x.n)
            break;
        char kind = x.s[tag + 1], sign = sign_at(&x, tag + 2);
        emit_text(&x, tag, sign, kind == '{');
        size_t behind = tag + 2 + (sign != '\0'), raw = kind == '%' ? raw_begin(&x, tag) : 0;
        int rc;
        if (raw != 0) {
            rc = raw_text(&x, raw);
        } else if (kind == '#') {
            rc = skip_comment(&x, behind);
        } else {
            emit(&x, kind == '{' ? TOKEN_VARIABLE_BEGIN : TOKEN_BLOCK_BEGIN, x.s + tag, 2);
            move(&x, behind);
            rc = lex_tag(&x, kind == '{');
        }
        if (rc != 0)
            return -1;
    }
    if (x.at < x.n)
        emit(&x, TOKEN_TEXT, x.s + x.at, x.n - x.at);
    move(&x, x.n);
    emit(&x, TOKEN_END, x.s + x.n, 0);
    return 0;
}
