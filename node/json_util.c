/* json_util: see json_util.h. jansson checks the grammar, UTF-8, surrogates, NUL and (when asked)
 * repeated keys. It recurses up to 2,048 levels deep and builds a node for each value, so a pass
 * over the text bounds both before it starts. */
#include "node/json_util.h"

#include "node/base/err.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int check_bounds(const char *s, size_t n, struct err *err)
{
    size_t depth = 0, values = 1;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        if (c == '"') {
            in_string = true;
        } else if (c == '[' || c == '{') {
            values++;
            if (++depth > JSON_DEPTH_MAX)
                return err_set(err, ERR_TOO_LARGE, "JSON is nested deeper than %d levels",
                               JSON_DEPTH_MAX);
        } else if (c == ']' || c == '}') {
            if (depth > 0)
                depth--;
        } else if (c == ',') {
            values++;
        }
        if (values > JSON_VALUES_MAX)
            return err_set(err, ERR_TOO_LARGE, "JSON has more than %d values", JSON_VALUES_MAX);
    }
    return 0;
}

json_t *json_parse(const void *bytes, size_t n_bytes, struct err *err)
{
    if (n_bytes == 0) {
        err_set(err, ERR_INVALID, "JSON is empty");
        return NULL;
    }
    if (check_bounds(bytes, n_bytes, err) != 0)
        return NULL;
    json_error_t e;
    json_t *value = json_loadb(bytes, n_bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    if (value == NULL) {
        /* jansson quotes the text near the error, which may be no UTF-8: only its own words are
         * passed on. */
        char text[sizeof e.text];
        snprintf(text, sizeof text, "%s", e.text);
        char *near = strstr(text, " near ");
        if (near != NULL)
            *near = '\0';
        /* ...and not the name of the flag that would allow it. */
        char *flag = strstr(text, " without JSON_ALLOW_NUL");
        if (flag != NULL)
            *flag = '\0';
        for (char *p = text; *p != '\0'; p++) {
            if ((unsigned char)*p >= 0x7F || (unsigned char)*p < 0x20)
                *p = '?';
        }
        err_set(err, ERR_INVALID, "JSON is not valid: %s (line %d, column %d)", text, e.line,
                e.column);
    }
    return value;
}

static bool has_nul(const json_t *v)
{
    return json_is_string(v) && strlen(json_string_value(v)) != json_string_length(v);
}

/* Where integers were read as numbers. */
static bool is_big(const json_t *v)
{
    return json_is_real(v) && fabs(json_real_value(v)) >= 0x1p63;
}

/* Appends the way to the first value that is so; false: none is. */
static bool find_below(const json_t *v, bool (*is_so)(const json_t *v), struct buf *path)
{
    if (is_so(v))
        return true;
    size_t n = path->len, i;
    const char *key;
    json_t *child;
    json_array_foreach(v, i, child)
    {
        buf_appendf(path, "[%zu]", i);
        if (find_below(child, is_so, path))
            return true;
        path->len = n;
    }
    json_object_foreach((json_t *)(uintptr_t)v, key, child)
    {
        buf_appendf(path, "%s%s", n > 0 ? "." : "", key);
        if (find_below(child, is_so, path))
            return true;
        path->len = n;
    }
    return false;
}

/* Reads once more, with a flag for what was wrong. */
static bool find(const void *bytes, size_t n_bytes, size_t flag, bool (*is_so)(const json_t *v),
                 char *path, size_t n_path)
{
    struct err unused;
    struct buf where = BUF_INIT;
    if (check_bounds(bytes, n_bytes, &unused) != 0)
        return false;
    json_t *v = json_loadb(bytes, n_bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | flag, NULL);
    bool found = v != NULL && find_below(v, is_so, &where) && where.len > 0;
    if (found) {
        size_t n = where.len < n_path ? where.len : n_path - 1, len = 1;
        for (size_t at = 0; at < n; at += len) { /* no half of a character */
            len = utf8_char_len((const char *)where.data + at, where.len - at);
            if (at + len > n)
                n = at;
        }
        memcpy(path, where.data, n);
        path[n] = '\0';
    }
    json_decref(v);
    buf_release(&where);
    return found;
}

bool json_find_nul(const void *bytes, size_t n_bytes, char *path, size_t n_path)
{
    if (n_bytes == 0 || memmem(bytes, n_bytes, "\\u0000", 6) == NULL) /* no second reading */
        return false;
    return find(bytes, n_bytes, JSON_ALLOW_NUL, has_nul, path, n_path);
}

bool json_find_big_integer(const void *bytes, size_t n_bytes, char *path, size_t n_path)
{
    enum { DIGITS_MIN = 19 }; /* of 2^63 */
    const char *s = bytes;
    size_t n_digits = 0;
    for (size_t i = 0; i < n_bytes && n_digits < DIGITS_MIN; i++)
        n_digits = s[i] >= '0' && s[i] <= '9' ? n_digits + 1 : 0;
    return n_digits == DIGITS_MIN &&
           find(bytes, n_bytes, JSON_DECODE_INT_AS_REAL, is_big, path, n_path);
}

size_t utf8_char_len(const char *s, size_t n)
{
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80)
        return 1;
    size_t len = u[0] >= 0xF0 ? 4 : u[0] >= 0xE0 ? 3 : u[0] >= 0xC2 ? 2 : 0;
    if (len == 0 || u[0] > 0xF4 || n < len)
        return 0;
    for (size_t i = 1; i < len; i++) {
        if ((u[i] & 0xC0) != 0x80)
            return 0;
    }
    if ((u[0] == 0xE0 && u[1] < 0xA0) || (u[0] == 0xED && u[1] > 0x9F) ||
        (u[0] == 0xF0 && u[1] < 0x90) || (u[0] == 0xF4 && u[1] > 0x8F))
        return 0;
    return len;
}

bool utf8_is_text(const char *text)
{
    size_t n = strlen(text), at = 0, len = 1;
    for (; at < n && len > 0; at += len)
        len = utf8_char_len(text + at, n - at);
    return len > 0;
}

json_t *json_text(const char *text)
{
    if (utf8_is_text(text))
        return json_string(text);
    struct buf b = BUF_INIT;
    json_append_cstr(&b, text);
    json_t *value = json_loadb((const char *)b.data, b.len, JSON_DECODE_ANY, NULL);
    buf_release(&b);
    return value;
}

void json_append_string(struct buf *b, const char *text, size_t n)
{
    buf_append_byte(b, '"');
    size_t plain = 0; /* bytes since the last escape, not yet appended */
    for (size_t i = 0; i < n;) {
        unsigned char c = (unsigned char)text[i];
        size_t len = utf8_char_len(text + i, n - i);
        if (len > 0 && c >= 0x20 && c != '"' && c != '\\' && c != 0x7F) {
            plain += len;
            i += len;
            continue;
        }
        buf_append(b, text + i - plain, plain);
        plain = 0;
        if (len == 0)
            buf_append_str(b, "\xEF\xBF\xBD");
        else if (c == '"' || c == '\\')
            buf_appendf(b, "\\%c", c);
        else if (c == '\n')
            buf_append_str(b, "\\n");
        else if (c == '\t')
            buf_append_str(b, "\\t");
        else if (c == '\r')
            buf_append_str(b, "\\r");
        else
            buf_appendf(b, "\\u%04x", c);
        i++;
    }
    if (plain > 0)
        buf_append(b, text + n - plain, plain);
    buf_append_byte(b, '"');
}

void json_append_cstr(struct buf *b, const char *text)
{
    json_append_string(b, text, strlen(text));
}

void json_append_float(struct buf *b, float value)
{
    if (!isfinite(value)) {
        buf_append_str(b, "null");
        return;
    }
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value)
            break;
    }
    buf_append_str(b, text);
}

static int append_bytes(const char *bytes, size_t n, void *context)
{
    buf_append(context, bytes, n);
    return 0;
}

void json_append_value(struct buf *b, const json_t *value)
{
    json_dump_callback(value, append_bytes, b, JSON_COMPACT | JSON_ENCODE_ANY);
}
