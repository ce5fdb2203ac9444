/* canonical_json: RFC 8785 (JSON Canonicalization Scheme) for JSON without real numbers.
 *
 * Problem. What is hashed must have one text. RFC 8785 gives one: no white space (3.2.1),
 * properties sorted by their names' UTF-16 code units (3.2.3), strings with the shortest escapes
 * (3.2.2.2), numbers as ECMAScript prints them (3.2.2.3).
 *
 * The number rule is the hard part and the dangerous one, for amounts don't survive doubles. Here
 * numbers are integers within +-(2^53 - 1), for which ECMAScript's text is plain decimal; a real
 * number is refused by its path, so that an amount can never slip in as one.
 *
 * Sorting. UTF-16 order differs from code point order (and so from UTF-8 byte order) in one place:
 * code points above U+FFFF are surrogates D800..DFFF there and sort before E000..FFFF. */
#include "attribution/manifest.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 32 };
#define INTEGER_MAX ((json_int_t)9007199254740991) /* 2^53 - 1 */

struct path { /* where in the document we are, for errors */
    const struct path *up;
    const char *key; /* NULL: an array element */
    size_t index;
};

static void path_write(const struct path *p, struct buf *out)
{
    if (!p)
        return;
    path_write(p->up, out);
    if (p->key)
        buf_appendf(out, "%s%.64s", out->len ? "." : "", p->key);
    else
        buf_appendf(out, "[%zu]", p->index);
}

static int refuse(const struct path *p, const char *why, struct err *err)
{
    struct buf text = BUF_INIT;
    path_write(p, &text);
    err_set(err, ERR_INVALID, "%.200s %s", text.len ? buf_cstr(&text) : "the document", why);
    buf_release(&text);
    return -1;
}

/* The next UTF-16 sort key at *s (valid UTF-8, as jansson guarantees): code points above U+FFFF map
 * to where their leading surrogate stands, with their own order kept. */
static uint32_t next_sort_key(const unsigned char **s)
{
    const unsigned char *c = *s;
    uint32_t point;
    if (c[0] < 0x80) {
        *s = c + 1;
        return c[0];
    }
    if (c[0] < 0xe0) {
        *s = c + 2;
        return (uint32_t)(c[0] & 0x1f) << 6 | (c[1] & 0x3fu);
    }
    if (c[0] < 0xf0) {
        *s = c + 3;
        point = (uint32_t)(c[0] & 0x0f) << 12 | (uint32_t)(c[1] & 0x3f) << 6 | (c[2] & 0x3fu);
        return point < 0xe000 ? point : point + 0x200000; /* after every surrogate pair */
    }
    *s = c + 4;
    return (uint32_t)(c[0] & 0x07) << 18 | (uint32_t)(c[1] & 0x3f) << 12 |
           (uint32_t)(c[2] & 0x3f) << 6 | (c[3] & 0x3fu);
}

static int compare_utf16(const void *a, const void *b)
{
    const unsigned char *x = *(const unsigned char *const *)a;
    const unsigned char *y = *(const unsigned char *const *)b;
    while (*x && *y) {
        uint32_t kx = next_sort_key(&x), ky = next_sort_key(&y);
        if (kx != ky)
            return kx < ky ? -1 : 1;
    }
    return *x ? 1 : *y ? -1 : 0;
}

/* RFC 8785, 3.2.2.2: two-character escapes where there are any, \u00xx for other controls,
 * everything else as it is. */
static void write_string(const char *text, size_t n, struct buf *out)
{
    buf_append_byte(out, '"');
    size_t from = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        buf_append(out, text + from, i - from);
        from = i + 1;
        static const char short_forms[] = "\bb\tt\nn\ff\rr\"\"\\\\";
        const char *hit = NULL;
        for (const char *f = short_forms; *f; f += 2) {
            if ((unsigned char)*f == c)
                hit = f + 1;
        }
        if (hit)
            buf_appendf(out, "\\%c", *hit);
        else
            buf_appendf(out, "\\u%04x", c);
    }
    buf_append(out, text + from, n - from);
    buf_append_byte(out, '"');
}

static int write_value(const json_t *value, const struct path *where, int depth, struct buf *out,
                       struct err *err);

static int write_object(const json_t *object, const struct path *where, int depth, struct buf *out,
                        struct err *err)
{
    size_t n = json_object_size(object), i = 0;
    const char **keys = xcalloc(n + 1, sizeof(*keys));
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)object, key, member) keys[i++] = key;
    qsort(keys, n, sizeof(*keys), compare_utf16);
    int rc = 0;
    buf_append_byte(out, '{');
    for (i = 0; i < n && rc == 0; i++) {
        if (i > 0)
            buf_append_byte(out, ',');
        write_string(keys[i], strlen(keys[i]), out);
        buf_append_byte(out, ':');
        struct path here = {where, keys[i], 0};
        rc = write_value(json_object_get(object, keys[i]), &here, depth + 1, out, err);
    }
    buf_append_byte(out, '}');
    free(keys);
    return rc;
}

static int write_value(const json_t *value, const struct path *where, int depth, struct buf *out,
                       struct err *err)
{
    if (depth > DEPTH_MAX)
        return refuse(where, "is nested more than 32 deep", err);
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return write_object(value, where, depth, out, err);
    case JSON_ARRAY:
        buf_append_byte(out, '[');
        for (size_t i = 0; i < json_array_size(value); i++) {
            if (i > 0)
                buf_append_byte(out, ',');
            struct path here = {where, NULL, i};
            if (write_value(json_array_get(value, i), &here, depth + 1, out, err) != 0)
                return -1;
        }
        buf_append_byte(out, ']');
        return 0;
    case JSON_STRING:
        write_string(json_string_value(value), json_string_length(value), out);
        return 0;
    case JSON_INTEGER: {
        json_int_t n = json_integer_value(value);
        if (n > INTEGER_MAX || n < -INTEGER_MAX)
            return refuse(where, "is an integer beyond 2^53 - 1", err);
        buf_appendf(out, "%lld", (long long)n);
        return 0;
    }
    case JSON_REAL:
        return refuse(where,
                      "is a floating point number; numbers are integers here and amounts are "
                      "decimal strings",
                      err);
    case JSON_TRUE:
        buf_append_str(out, "true");
        return 0;
    case JSON_FALSE:
        buf_append_str(out, "false");
        return 0;
    case JSON_NULL:
        buf_append_str(out, "null");
        return 0;
    }
    BUG("a JSON value of type %d", (int)json_typeof(value));
}

int canonical_json_write(const json_t *value, struct buf *out, struct err *err)
{
    return write_value(value, NULL, 0, out, err);
}
