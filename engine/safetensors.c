/* safetensors: see safetensors.h.
 *
 * The header's JSON has one shape only, so it is read by a scanner of its own, without building a
 * tree: a header of 100 MB of nested arrays costs nothing but the first wrong byte. Memory is the
 * tensors found (each took at least 40 bytes of header) and their names.
 *
 * After scanning, tensors are ordered by their beginning; each must begin where the one before
 * ended and the last must end with the file. That one walk excludes overlap, holes and a rest, as
 * the reference implementation does. Then they are ordered by name, for lookup and for finding
 * twins.
 *
 * Accepted JSON is the standard's, with two narrowings: names must be UTF-8 without control
 * characters, and numbers are plain non-negative integers. The texts of __metadata__ may have them
 * escaped, as a training's settings written on several lines do; nobody looks at those. */
#include "engine/safetensors.h"

#include "node/base/err.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    size_t n_bytes;
} DTYPES[] = {
    [TENSOR_F32] = {"F32", 4},         [TENSOR_F16] = {"F16", 2},
    [TENSOR_BF16] = {"BF16", 2},       [TENSOR_F64] = {"F64", 8},
    [TENSOR_I64] = {"I64", 8},         [TENSOR_U64] = {"U64", 8},
    [TENSOR_I32] = {"I32", 4},         [TENSOR_U32] = {"U32", 4},
    [TENSOR_I16] = {"I16", 2},         [TENSOR_U16] = {"U16", 2},
    [TENSOR_I8] = {"I8", 1},           [TENSOR_U8] = {"U8", 1},
    [TENSOR_BOOL] = {"BOOL", 1},       [TENSOR_F8_E4M3] = {"F8_E4M3", 1},
    [TENSOR_F8_E5M2] = {"F8_E5M2", 1},
};
enum { N_DTYPES = sizeof DTYPES / sizeof DTYPES[0] };

const char *tensor_dtype_name(enum tensor_dtype dtype)
{
    return DTYPES[dtype].name;
}

size_t tensor_dtype_bytes(enum tensor_dtype dtype)
{
    return DTYPES[dtype].n_bytes;
}

char *tensor_shape_text(const struct tensor *t, char *out, size_t n_out)
{
    size_t at = (size_t)snprintf(out, n_out, "[");
    for (int i = 0; i < t->n_dims && at < n_out; i++)
        at += (size_t)snprintf(out + at, n_out - at, "%s%" PRId64, i > 0 ? ", " : "", t->shape[i]);
    if (at < n_out)
        snprintf(out + at, n_out - at, "]");
    return out;
}

bool tensor_is(const struct tensor *t, int64_t d0, int64_t d1)
{
    return t->n_dims == (d1 < 0 ? 1 : 2) && t->shape[0] == d0 && (d1 < 0 || t->shape[1] == d1);
}

size_t tensor_n_elements(const struct tensor *t)
{
    return t->n_bytes / tensor_dtype_bytes(t->dtype);
}

static float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h >> 15) << 31, exponent = (h >> 10) & 31, fraction = h & 1023;
    uint32_t bits;
    if (exponent == 31) {
        bits = sign | 0x7f800000u | fraction << 13;
    } else if (exponent != 0) {
        bits = sign | (exponent + 112) << 23 | fraction << 13;
    } else {
        float f = (float)fraction * 0x1p-24f; /* zero or subnormal: exact in f32 */
        return sign != 0 ? -f : f;
    }
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

float tensor_f32(const struct tensor *t, size_t i)
{
    float f;
    uint16_t h;
    uint32_t bits;
    switch (t->dtype) {
    case TENSOR_F32:
        memcpy(&f, t->data + 4 * i, 4);
        return f;
    case TENSOR_F16:
        memcpy(&h, t->data + 2 * i, 2);
        return f16_to_f32(h);
    case TENSOR_BF16:
        memcpy(&h, t->data + 2 * i, 2);
        bits = (uint32_t)h << 16;
        memcpy(&f, &bits, 4);
        return f;
    case TENSOR_F64:
    case TENSOR_I64:
    case TENSOR_U64:
    case TENSOR_I32:
    case TENSOR_U32:
    case TENSOR_I16:
    case TENSOR_U16:
    case TENSOR_I8:
    case TENSOR_U8:
    case TENSOR_BOOL:
    case TENSOR_F8_E4M3:
    case TENSOR_F8_E5M2:
        break;
    }
    BUG("tensor_f32 of %s", tensor_dtype_name(t->dtype));
}

/* ---- the scanner ------------------------------------------------------------------------- */

struct scan {
    const uint8_t *at, *end;
    const uint8_t *begin; /* for positions in messages */
    struct err *err;
};

static int bad(struct scan *s, const char *what)
{
    return err_set(s->err, ERR_INVALID, "header: %s at byte %zu", what,
                   (size_t)(s->at - s->begin) + 8);
}

static void skip_space(struct scan *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\n' || *s->at == '\r'))
        s->at++;
}

/* Takes c if it comes next. */
static bool take(struct scan *s, char c)
{
    skip_space(s);
    if (s->at == s->end || *s->at != (uint8_t)c)
        return false;
    s->at++;
    return true;
}

static int expect(struct scan *s, char c)
{
    char what[] = "expected ' '";
    what[10] = c;
    return take(s, c) ? 0 : bad(s, what);
}

static int hex4(struct scan *s, uint32_t *out)
{
    *out = 0;
    for (int i = 0; i < 4; i++, s->at++) {
        if (s->at == s->end || !isxdigit(*s->at))
            return bad(s, "a \\u escape needs four hexadecimal digits");
        uint32_t c = *s->at;
        *out = *out << 4 | (c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    return 0;
}

static size_t utf8_put(uint8_t out[4], uint32_t c)
{
    if (c < 0x80) {
        out[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        out[0] = (uint8_t)(0xc0 | c >> 6);
        out[1] = (uint8_t)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        out[0] = (uint8_t)(0xe0 | c >> 12);
        out[1] = (uint8_t)(0x80 | (c >> 6 & 63));
        out[2] = (uint8_t)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (uint8_t)(0xf0 | c >> 18);
    out[1] = (uint8_t)(0x80 | (c >> 12 & 63));
    out[2] = (uint8_t)(0x80 | (c >> 6 & 63));
    out[3] = (uint8_t)(0x80 | (c & 63));
    return 4;
}

/* Length of the valid UTF-8 character at p (RFC 3629: no overlong forms, no surrogates), or 0. */
static size_t utf8_len(const uint8_t *p, const uint8_t *end)
{
    size_t left = (size_t)(end - p);
    if (p[0] < 0x80)
        return 1;
    if (p[0] >= 0xc2 && p[0] <= 0xdf)
        return left >= 2 && (p[1] & 0xc0) == 0x80 ? 2 : 0;
    if ((p[0] & 0xf0) == 0xe0) {
        uint8_t low = p[0] == 0xe0 ? 0xa0 : 0x80, high = p[0] == 0xed ? 0x9f : 0xbf;
        return left >= 3 && p[1] >= low && p[1] <= high && (p[2] & 0xc0) == 0x80 ? 3 : 0;
    }
    if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        uint8_t low = p[0] == 0xf0 ? 0x90 : 0x80, high = p[0] == 0xf4 ? 0x8f : 0xbf;
        return left >= 4 && p[1] >= low && p[1] <= high && (p[2] & 0xc0) == 0x80 &&
                       (p[3] & 0xc0) == 0x80
                   ? 4
                   : 0;
    }
    return 0;
}

/* A string, unescaped and NUL-terminated into out (reset first); at most max bytes. A name holds no
 * control character, not even escaped. */
static int scan_string(struct scan *s, struct buf *out, size_t max, bool is_name)
{
    buf_reset(out);
    buf_reserve(out, 1);
    out->data[0] = '\0';
    if (expect(s, '"') != 0)
        return -1;
    for (;;) {
        if (s->at == s->end)
            return bad(s, "a string has no end");
        if (out->len > max)
            return bad(s, "a string is too long");
        uint8_t c = *s->at;
        if (c == '"') {
            s->at++;
            return 0;
        }
        if (c < 0x20 || (c == 0x7f && is_name))
            return bad(s, "a control character in a string");
        if (c != '\\') {
            size_t n = utf8_len(s->at, s->end);
            if (n == 0)
                return bad(s, "a string is not UTF-8");
            buf_append(out, s->at, n);
            s->at += n;
            continue;
        }
        s->at++;
        if (s->at == s->end)
            return bad(s, "a string has no end");
        c = *s->at++;
        if (c == '"' || c == '\\' || c == '/') {
            buf_append_byte(out, c);
            continue;
        }
        if (!is_name && (c == 'b' || c == 'f' || c == 'n' || c == 'r' || c == 't')) {
            buf_append_byte(out, ' '); /* a control character that nobody reads */
            continue;
        }
        if (c != 'u')
            return bad(s, "an escape that is none, or of a control character");
        uint32_t code, low;
        if (hex4(s, &code) != 0)
            return -1;
        if (code >= 0xd800 && code <= 0xdbff) {
            if (s->end - s->at < 2 || s->at[0] != '\\' || s->at[1] != 'u')
                return bad(s, "half of a surrogate pair");
            s->at += 2;
            if (hex4(s, &low) != 0)
                return -1;
            if (low < 0xdc00 || low > 0xdfff)
                return bad(s, "half of a surrogate pair");
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        } else if ((code >= 0xdc00 && code <= 0xdfff) ||
                   (is_name && (code < 0x20 || code == 0x7f))) {
            return bad(s, "an escape that is none, or of a control character");
        }
        uint8_t utf8[4];
        buf_append(out, utf8, utf8_put(utf8, code));
    }
}

static int scan_integer(struct scan *s, int64_t *out)
{
    skip_space(s);
    if (s->at == s->end || !isdigit(*s->at))
        return bad(s, "expected a non-negative integer");
    const uint8_t *first = s->at;
    int64_t v = 0;
    while (s->at < s->end && isdigit(*s->at)) {
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, *s->at - '0', &v))
            return bad(s, "a number is too large");
        s->at++;
    }
    if (*first == '0' && s->at - first > 1)
        return bad(s, "a number begins with 0");
    if (s->at < s->end && (*s->at == '.' || *s->at == 'e' || *s->at == 'E'))
        return bad(s, "expected a non-negative integer");
    *out = v;
    return 0;
}

/* [int, int, ...] of at most max members. */
static int scan_integers(struct scan *s, int64_t *out, int max, int *n)
{
    *n = 0;
    if (expect(s, '[') != 0)
        return -1;
    if (take(s, ']'))
        return 0;
    do {
        if (*n == max)
            return bad(s, "an array is too long");
        if (scan_integer(s, &out[*n]) != 0)
            return -1;
        (*n)++;
    } while (take(s, ','));
    return expect(s, ']');
}

static int scan_metadata(struct scan *s, struct buf *text)
{
    if (expect(s, '{') != 0)
        return -1;
    if (take(s, '}'))
        return 0;
    do {
        if (scan_string(s, text, SAFETENSORS_HEADER_MAX_BYTES, false) != 0 || expect(s, ':') != 0 ||
            scan_string(s, text, SAFETENSORS_HEADER_MAX_BYTES, false) != 0)
            return -1;
    } while (take(s, ','));
    return expect(s, '}');
}

struct found { /* a tensor while scanning: the memory of names still moves */
    size_t name_at, begin, end;
    int64_t shape[SAFETENSORS_DIMS_MAX];
    int n_dims;
    enum tensor_dtype dtype;
};

/* {"dtype": ..., "shape": ..., "data_offsets": ...} in any order, each exactly once. */
static int scan_tensor(struct scan *s, struct buf *text, struct found *t)
{
    enum { DTYPE_SEEN = 1, SHAPE_SEEN = 2, OFFSETS_SEEN = 4 };
    int seen = 0, n;
    int64_t offsets[2];
    if (expect(s, '{') != 0)
        return -1;
    do {
        if (scan_string(s, text, 64, true) != 0 || expect(s, ':') != 0)
            return -1;
        const char *key = buf_cstr(text);
        int bit = strcmp(key, "dtype") == 0          ? DTYPE_SEEN
                  : strcmp(key, "shape") == 0        ? SHAPE_SEEN
                  : strcmp(key, "data_offsets") == 0 ? OFFSETS_SEEN
                                                     : 0;
        if (bit == 0)
            return bad(s, "an unknown key of a tensor");
        if (seen & bit)
            return bad(s, "a key of a tensor comes twice");
        seen |= bit;
        if (bit == DTYPE_SEEN) {
            if (scan_string(s, text, 64, true) != 0)
                return -1;
            int d = 0;
            while (d < N_DTYPES && strcmp(buf_cstr(text), DTYPES[d].name) != 0)
                d++;
            if (d == N_DTYPES)
                return bad(s, "an unknown dtype");
            t->dtype = (enum tensor_dtype)d;
        } else if (bit == SHAPE_SEEN) {
            if (scan_integers(s, t->shape, SAFETENSORS_DIMS_MAX, &t->n_dims) != 0)
                return -1;
        } else {
            if (scan_integers(s, offsets, 2, &n) != 0)
                return -1;
            if (n != 2)
                return bad(s, "data_offsets needs two numbers");
            t->begin = (size_t)offsets[0];
            t->end = (size_t)offsets[1];
        }
    } while (take(s, ','));
    if (seen != (DTYPE_SEEN | SHAPE_SEEN | OFFSETS_SEEN))
        return bad(s, "a tensor lacks dtype, shape or data_offsets");
    return expect(s, '}');
}

static int by_begin(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) /* an empty tensor before the one that begins where it does */
        return x->end < y->end ? -1 : 1;
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

/* Sizes, order and coverage; found becomes ordered by begin. */
static int check_layout(struct found *found, size_t n, const char *names, size_t n_data,
                        struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        const char *name = names + found[i].name_at;
        size_t n_bytes = tensor_dtype_bytes(found[i].dtype);
        for (int d = 0; d < found[i].n_dims; d++)
            if (__builtin_mul_overflow(n_bytes, (size_t)found[i].shape[d], &n_bytes))
                return err_set(err, ERR_INVALID, "tensor %s: its shape overflows", name);
        if (found[i].begin > found[i].end)
            return err_set(err, ERR_INVALID, "tensor %s: data_offsets [%zu, %zu] run backwards",
                           name, found[i].begin, found[i].end);
        if (found[i].end > n_data)
            return err_set(err, ERR_INVALID,
                           "tensor %s: ends at byte %zu of the data, the file holds %zu", name,
                           found[i].end, n_data);
        if (found[i].end - found[i].begin != n_bytes)
            return err_set(err, ERR_INVALID,
                           "tensor %s: %s of its shape needs %zu bytes, data_offsets give %zu",
                           name, tensor_dtype_name(found[i].dtype), n_bytes,
                           found[i].end - found[i].begin);
    }
    qsort(found, n, sizeof *found, by_begin);
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        if (found[i].begin != at)
            return err_set(
                err, ERR_INVALID, "tensor %s: begins at byte %zu of the data, %s byte %zu",
                names + found[i].name_at, found[i].begin,
                found[i].begin < at ? "overlapping what ends at" : "leaving a hole after", at);
        at = found[i].end;
    }
    if (at != n_data)
        return err_set(err, ERR_INVALID, "%zu bytes of data belong to no tensor", n_data - at);
    return 0;
}

uint64_t safetensors_header_bytes(const uint8_t bytes[8])
{
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | bytes[i];
    return n;
}

int safetensors_parse(struct safetensors *out, const uint8_t *bytes, size_t n, struct err *err)
{
    if (safetensors_parse_header(out, bytes, n, n, err) != 0)
        return -1;
    for (size_t i = 0; i < out->n_tensors; i++)
        out->tensors[i].data = bytes + out->tensors[i].at;
    return 0;
}

int safetensors_parse_header(struct safetensors *out, const uint8_t *bytes, size_t n, size_t n_file,
                             struct err *err)
{
    *out = (struct safetensors){0};
    if (n_file < 8)
        return err_set(err, ERR_INVALID, "the file has %zu bytes, a header needs 8", n_file);
    BUG_IF(n < 8);
    uint64_t n_header = safetensors_header_bytes(bytes);
    if (n_header > SAFETENSORS_HEADER_MAX_BYTES)
        return err_set(err, ERR_TOO_LARGE, "header is %" PRIu64 " bytes, limit is %d", n_header,
                       SAFETENSORS_HEADER_MAX_BYTES);
    if (n_header > n_file - 8)
        return err_set(err, ERR_INVALID, "header is %" PRIu64 " bytes, the file has %zu after it",
                       n_header, n_file - 8);
    BUG_IF(n_header > n - 8);

    struct scan s = {bytes + 8, bytes + 8 + n_header, bytes + 8, err};
    struct buf text = BUF_INIT, names = BUF_INIT, found = BUF_INIT;
    size_t n_found = 0, n_metadata = 0;
    int rc = -1;
    if (s.at == s.end || *s.at != '{') {
        bad(&s, "expected '{'");
        goto out;
    }
    s.at++;
    if (!take(&s, '}')) {
        do {
            if (scan_string(&s, &text, SAFETENSORS_NAME_MAX_BYTES, true) != 0 ||
                expect(&s, ':') != 0)
                goto out;
            if (strcmp(buf_cstr(&text), "__metadata__") == 0) {
                if (n_metadata++ > 0) {
                    bad(&s, "__metadata__ comes twice");
                    goto out;
                }
                if (scan_metadata(&s, &text) != 0)
                    goto out;
                continue;
            }
            if (n_found == SAFETENSORS_TENSORS_MAX) {
                err_set(err, ERR_TOO_LARGE, "more than %d tensors", SAFETENSORS_TENSORS_MAX);
                goto out;
            }
            struct found t = {.name_at = names.len};
            buf_append(&names, text.data, text.len + 1);
            if (scan_tensor(&s, &text, &t) != 0) {
                err_wrap(err, "tensor %s", (const char *)names.data + t.name_at);
                goto out;
            }
            buf_append(&found, &t, sizeof t);
            n_found++;
        } while (take(&s, ','));
        if (expect(&s, '}') != 0)
            goto out;
    }
    skip_space(&s);
    if (s.at != s.end) {
        bad(&s, "text after the object");
        goto out;
    }

    struct found *f = (struct found *)(void *)found.data;
    size_t n_data = n_file - 8 - (size_t)n_header;
    if (n_found == 0) {
        if (n_data != 0) {
            err_set(err, ERR_INVALID, "%zu bytes of data belong to no tensor", n_data);
            goto out;
        }
    } else if (check_layout(f, n_found, (const char *)names.data, n_data, err) != 0) {
        goto out;
    }
    out->names = buf_detach(&names);
    out->tensors = xcalloc(n_found, sizeof *out->tensors);
    out->n_tensors = n_found;
    for (size_t i = 0; i < n_found; i++) {
        struct tensor *t = &out->tensors[i];
        t->name = out->names + f[i].name_at;
        t->at = 8 + (size_t)n_header + f[i].begin;
        t->n_bytes = f[i].end - f[i].begin;
        t->dtype = f[i].dtype;
        t->n_dims = f[i].n_dims;
        memcpy(t->shape, f[i].shape, sizeof t->shape);
    }
    if (n_found > 0)
        qsort(out->tensors, n_found, sizeof *out->tensors, by_name);
    for (size_t i = 1; i < n_found; i++) {
        if (strcmp(out->tensors[i - 1].name, out->tensors[i].name) == 0) {
            err_set(err, ERR_INVALID, "tensor %s: comes twice", out->tensors[i].name);
            safetensors_release(out);
            goto out;
        }
    }
    rc = 0;
out:
    buf_release(&text);
    buf_release(&names);
    buf_release(&found);
    return rc;
}

void safetensors_release(struct safetensors *s)
{
    free(s->tensors);
    free(s->names);
    *s = (struct safetensors){0};
}

const struct tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    size_t low = 0, high = s->n_tensors;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(s->tensors[middle].name, name);
        if (order == 0)
            return &s->tensors[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}
