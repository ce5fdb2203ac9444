/* abi: see abi.h.
 *
 * A type string is parsed into a small tree on an arena. Encoding writes a sequence (a tuple or an
 * array) as a head and a tail: static members lie in the head; a dynamic member leaves in the head
 * the offset, from the head's beginning, at which it begins in the tail.
 *
 *   head   [ member 0 | offset of 1 | member 2 ... ]      32 bytes or the static member's size each
 *   tail   [ member 1 ...                          ]
 *
 * Decoding reads the same way and requires each offset to be the end of what was read before it,
 * which makes it the exact inverse. */
#include "chain/abi.h"

#include "chain/keccak.h"
#include "chain/sol_value.h"
#include "chain/u256.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 32, FIXED_ARRAY_MAX = 1 << 20, WORD = 32 };

enum shape { ELEMENTARY, TUPLE, ARRAY, FIXED_ARRAY };

struct type {
    enum shape shape;
    struct sol_type elementary;
    struct type *first; /* tuple: its members, linked by next; array: the element */
    struct type *next;
    size_t n; /* tuple: members; fixed array: length */
    bool dynamic;
    size_t head_bytes; /* of a static type: its whole size; of a dynamic one: 32, the offset */
};

struct parser {
    const char *text, *at;
    struct arena *arena;
    struct err *err;
};

static struct type *parse_type(struct parser *p, int depth);

static struct type *bad_type(struct parser *p, const char *why)
{
    err_set(p->err, ERR_INVALID, "ABI type \"%.100s\": %s at \"%.20s\"", p->text, why, p->at);
    return NULL;
}

static void measure(struct type *t)
{
    size_t bytes = 0;
    switch (t->shape) {
    case ELEMENTARY:
        t->dynamic = t->elementary.kind == SOL_BYTES || t->elementary.kind == SOL_STRING;
        bytes = WORD;
        break;
    case TUPLE:
        for (struct type *m = t->first; m != NULL; m = m->next) {
            t->dynamic |= m->dynamic;
            bytes += m->head_bytes;
        }
        break;
    case ARRAY:
        t->dynamic = true;
        break;
    case FIXED_ARRAY:
        t->dynamic = t->first->dynamic;
        bytes = t->n * t->first->head_bytes; /* both bounded: no overflow */
        break;
    }
    t->head_bytes = t->dynamic ? WORD : bytes;
}

/* "[]" and "[3]" after a type, from left to right: T[3][] is an array of T[3]. */
static struct type *parse_suffixes(struct parser *p, struct type *t, int depth)
{
    for (; *p->at == '['; depth++) {
        if (depth > DEPTH_MAX)
            return bad_type(p, "nested too deep");
        p->at++;
        struct type *array = arena_alloc(p->arena, sizeof *array);
        array->shape = *p->at == ']' ? ARRAY : FIXED_ARRAY;
        array->first = t;
        for (; *p->at >= '0' && *p->at <= '9'; p->at++) {
            array->n = array->n * 10 + (size_t)(*p->at - '0');
            if (array->n > FIXED_ARRAY_MAX)
                return bad_type(p, "array too long");
        }
        if (*p->at != ']')
            return bad_type(p, "expected ]");
        p->at++;
        measure(array);
        if (array->head_bytes > (size_t)FIXED_ARRAY_MAX * WORD)
            return bad_type(p, "array too large");
        t = array;
    }
    return t;
}

static struct type *parse_tuple(struct parser *p, int depth)
{
    struct type *t = arena_alloc(p->arena, sizeof *t), **link = &t->first;
    t->shape = TUPLE;
    p->at++;
    while (*p->at != ')') {
        if (t->n > 0) {
            if (*p->at != ',')
                return bad_type(p, "expected , or )");
            p->at++;
        }
        struct type *member = parse_type(p, depth + 1);
        if (member == NULL)
            return NULL;
        if (*p->at == ' ') /* a name */
            p->at += strcspn(p->at, ",)");
        /* Arrays share their element's node, so a member's next is its own. */
        *link = member;
        link = &member->next;
        t->n++;
    }
    p->at++;
    measure(t);
    return t;
}

static struct type *parse_type(struct parser *p, int depth)
{
    struct type *t;
    if (depth > DEPTH_MAX)
        return bad_type(p, "nested too deep");
    if (strncmp(p->at, "tuple(", 6) == 0)
        p->at += 5;
    if (*p->at == '(') {
        t = parse_tuple(p, depth);
        if (t == NULL)
            return NULL;
    } else {
        size_t n = strcspn(p->at, "[](), ");
        t = arena_alloc(p->arena, sizeof *t);
        if (!sol_type_parse(&t->elementary, p->at, n))
            return bad_type(p, "no such elementary type");
        p->at += n;
        measure(t);
    }
    return parse_suffixes(p, t, depth + 1);
}

static struct type *parse(const char *text, struct arena *arena, struct err *err)
{
    struct parser p = {text, text, arena, err};
    struct type *t = parse_type(&p, 0);
    if (t != NULL && *p.at != '\0')
        return bad_type(&p, "something left over");
    return t;
}

/* ---- encoding
 * --------------------------------------------------------------------------------------- */

static void append_word(struct buf *out, uint64_t v)
{
    uint8_t word[WORD];
    u256_to_bytes(word, u256_of(v));
    buf_append(out, word, sizeof word);
}

static int encode(struct buf *out, const struct type *t, const json_t *value, struct err *err);

/* The members of a sequence: n values, of the types of a tuple or all of the array's element. */
static int encode_members(struct buf *out, const struct type *t, const json_t *values, size_t n,
                          struct err *err)
{
    struct buf tail = BUF_INIT;
    size_t head = 0;
    const struct type *m = t->first;
    for (size_t i = 0; i < n; i++, m = t->shape == TUPLE ? m->next : m)
        head += m->head_bytes;
    int rc = 0;
    m = t->first;
    for (size_t i = 0; i < n && rc == 0; i++, m = t->shape == TUPLE ? m->next : m) {
        if (m->dynamic)
            append_word(out, head + tail.len);
        rc = encode(m->dynamic ? &tail : out, m, json_array_get(values, i), err);
        if (rc != 0)
            err_wrap(err, "[%zu]", i);
    }
    buf_append(out, tail.data, tail.len);
    buf_release(&tail);
    return rc;
}

static int encode(struct buf *out, const struct type *t, const json_t *value, struct err *err)
{
    if (t->shape == ELEMENTARY && !t->dynamic) {
        uint8_t word[WORD];
        if (sol_word_from_json(word, &t->elementary, value, err) != 0)
            return -1;
        buf_append(out, word, sizeof word);
        return 0;
    }
    if (t->shape == ELEMENTARY) {
        struct buf bytes = BUF_INIT;
        int rc = sol_bytes_from_json(&bytes, &t->elementary, value, err);
        if (rc == 0) {
            static const uint8_t zeros[WORD];
            append_word(out, bytes.len);
            buf_append(out, bytes.data, bytes.len);
            buf_append(out, zeros, (WORD - bytes.len % WORD) % WORD);
        }
        buf_release(&bytes);
        return rc;
    }
    if (!json_is_array(value))
        return err_set(err, ERR_INVALID, "expected an array");
    size_t n = json_array_size(value);
    if (t->shape == ARRAY)
        append_word(out, n);
    else if (n != t->n)
        return err_set(err, ERR_INVALID, "expected %zu values, got %zu", t->n, n);
    return encode_members(out, t, value, n, err);
}

int abi_encode(struct buf *out, const char *type, const json_t *value, struct err *err)
{
    struct arena arena = ARENA_INIT;
    const struct type *t = parse(type, &arena, err);
    size_t before = out->len;
    int rc = t == NULL ? -1 : encode(out, t, value, err);
    if (rc != 0 && out->data != NULL) {
        out->len = before;
        out->data[before] = '\0';
    }
    arena_release(&arena);
    return rc;
}

/* ---- decoding
 * --------------------------------------------------------------------------------------- */

struct reader {
    const uint8_t *bytes;
    size_t n;
    size_t budget; /* values that may still be made: a [1048576] of () costs no bytes */
    struct err *err;
};

static json_t *corrupt(struct reader *r, const char *why, size_t at)
{
    err_set(r->err, ERR_CORRUPT, "ABI data: %s at byte %zu of %zu", why, at, r->n);
    return NULL;
}

static const uint8_t *word_at(struct reader *r, size_t at)
{
    if (at > r->n || r->n - at < WORD) {
        corrupt(r, "ends inside a word", at);
        return NULL;
    }
    return r->bytes + at;
}

/* A word as a size; SIZE_MAX when it is larger than the data. */
static size_t size_at(struct reader *r, size_t at)
{
    const uint8_t *word = word_at(r, at);
    uint64_t v;
    if (word == NULL)
        return SIZE_MAX;
    if (u256_to_u64(&v, u256_from_bytes(word)) != 0 || v > r->n) {
        corrupt(r, "a length or offset beyond the end", at);
        return SIZE_MAX;
    }
    return (size_t)v;
}

/* Decodes t at `at`; *end becomes the end of what it took. */
static json_t *decode(struct reader *r, const struct type *t, size_t at, size_t *end);

static json_t *decode_members(struct reader *r, const struct type *t, size_t n, size_t at,
                              size_t *end)
{
    size_t head = 0;
    const struct type *m = t->first;
    if (t->shape == TUPLE) {
        for (; m != NULL; m = m->next)
            head += m->head_bytes;
    } else {
        if (m->head_bytes > 0 && n > (r->n - at) / m->head_bytes)
            return corrupt(r, "more elements than bytes", at);
        head = n * m->head_bytes;
    }
    json_t *values = json_array();
    size_t tail = at + head, here = at;
    m = t->first;
    for (size_t i = 0; i < n; i++, m = t->shape == TUPLE ? m->next : m) {
        json_t *value = NULL;
        if (!m->dynamic) {
            value = decode(r, m, here, &here);
        } else {
            size_t offset = size_at(r, here);
            if (offset != SIZE_MAX && at + offset != tail)
                corrupt(r, "an offset that is not canonical", here);
            else if (offset != SIZE_MAX)
                value = decode(r, m, tail, &tail);
            here += WORD;
        }
        if (value == NULL || json_array_append_new(values, value) != 0) {
            json_decref(values);
            return NULL;
        }
    }
    *end = tail;
    return values;
}

static json_t *decode_bytes(struct reader *r, const struct type *t, size_t at, size_t *end)
{
    size_t n = size_at(r, at);
    if (n == SIZE_MAX)
        return NULL;
    at += WORD;
    size_t padded = (n + WORD - 1) / WORD * WORD;
    if (r->n - at < padded)
        return corrupt(r, "ends inside bytes", at);
    for (size_t i = n; i < padded; i++) {
        if (r->bytes[at + i] != 0)
            return corrupt(r, "padding that is not zero", at + i);
    }
    *end = at + padded;
    if (t->elementary.kind == SOL_STRING) {
        json_t *text = json_stringn((const char *)r->bytes + at, n);
        return text != NULL ? text : corrupt(r, "a string that is not UTF-8", at);
    }
    char *hex = xmalloc(2 * n + 3);
    json_t *text = json_string(hex_encode_0x(hex, r->bytes + at, n));
    free(hex);
    return text;
}

static json_t *decode(struct reader *r, const struct type *t, size_t at, size_t *end)
{
    if (r->budget-- == 0)
        return corrupt(r, "too many values", at);
    size_t n = t->n;
    switch (t->shape) {
    case ELEMENTARY: {
        if (t->dynamic)
            return decode_bytes(r, t, at, end);
        const uint8_t *word = word_at(r, at);
        *end = at + WORD;
        return word == NULL ? NULL : sol_word_to_json(word, &t->elementary, r->err);
    }
    case ARRAY:
        n = size_at(r, at);
        if (n == SIZE_MAX)
            return NULL;
        at += WORD;
        return decode_members(r, t, n, at, end);
    case TUPLE:
    case FIXED_ARRAY:
        return decode_members(r, t, n, at, end);
    }
    BUG("unknown shape");
}

json_t *abi_decode(const char *type, const void *bytes, size_t n, struct err *err)
{
    struct arena arena = ARENA_INIT;
    const struct type *t = parse(type, &arena, err);
    json_t *value = NULL;
    if (t != NULL) {
        struct reader r = {bytes, n, n / 8 + 1024, err};
        size_t end = 0;
        value = decode(&r, t, 0, &end);
        if (value != NULL && end != n) {
            json_decref(value);
            value = corrupt(&r, "bytes left over", end);
        }
    }
    arena_release(&arena);
    return value;
}

/* ---- signatures
 * ------------------------------------------------------------------------------------- */

void abi_selector(uint8_t out[4], const char *signature)
{
    struct keccak_digest h = keccak256(signature, strlen(signature));
    memcpy(out, h.bytes, 4);
}

static int append_parameters(struct buf *out, const json_t *parameters, int depth, struct err *err);

static int append_parameter(struct buf *out, const json_t *parameter, int depth, struct err *err)
{
    const char *type = json_string_value(json_object_get(parameter, "type"));
    if (type == NULL || depth > DEPTH_MAX)
        return err_set(err, ERR_INVALID, "ABI: a parameter without a type, or nested too deep");
    if (strncmp(type, "tuple", 5) != 0) {
        buf_append_str(out, type);
        return 0;
    }
    if (append_parameters(out, json_object_get(parameter, "components"), depth + 1, err) != 0)
        return -1;
    buf_append_str(out, type + 5);
    return 0;
}

static int append_parameters(struct buf *out, const json_t *parameters, int depth, struct err *err)
{
    size_t i;
    json_t *parameter;
    buf_append_byte(out, '(');
    json_array_foreach(parameters, i, parameter)
    {
        if (i > 0)
            buf_append_byte(out, ',');
        if (append_parameter(out, parameter, depth, err) != 0)
            return -1;
    }
    buf_append_byte(out, ')');
    return 0;
}

int abi_type_of_parameter(struct buf *out, const json_t *parameter, struct err *err)
{
    return append_parameter(out, parameter, 0, err);
}

int abi_signature_of(struct buf *out, const json_t *entry, struct err *err)
{
    const char *name = json_string_value(json_object_get(entry, "name"));
    if (name == NULL)
        return err_set(err, ERR_INVALID, "ABI: an entry without a name");
    buf_append_str(out, name);
    return append_parameters(out, json_object_get(entry, "inputs"), 0, err);
}
