/* signed_fields: see signed_fields.h. */
#include "node/signed_fields.h"

#include "chain/types.h"
#include "node/base/amount.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/json_util.h"

#include <string.h>

static const char *form_of(enum field_kind kind)
{
    switch (kind) {
    case FIELD_ADDRESS:
        return "an address";
    case FIELD_BYTES32:
        return "0x and 64 hexadecimal digits";
    case FIELD_INTEGER:
        return "an integer from 0 to 2^53 - 1";
    case FIELD_AMOUNT:
        return "an amount: a decimal string below 2^128";
    case FIELD_SIGNATURE:
        return "0x and 130 hexadecimal digits: r, s and v";
    }
    BUG("field kind %d", (int)kind);
}

static int read_bytes(uint8_t *out, size_t n, const char *text)
{
    return text == NULL || strncmp(text, "0x", 2) != 0 ? -1 : hex_decode(out, n, text);
}

static int read_integer(uint64_t *out, const json_t *v)
{
    json_int_t i = json_integer_value(v);
    if (!json_is_integer(v) || i < 0 || (uint64_t)i > FIELD_INTEGER_MAX)
        return -1;
    *out = (uint64_t)i;
    return 0;
}

static int read_field(void *at, enum field_kind kind, const json_t *v)
{
    const char *text = json_string_value(v); /* NULL: not a string */
    uint8_t signature[SIGNATURE_BYTES];
    switch (kind) {
    case FIELD_ADDRESS:
        return text == NULL ? -1 : address_parse(at, text);
    case FIELD_BYTES32:
        return read_bytes(at, 32, text);
    case FIELD_INTEGER:
        return read_integer(at, v);
    case FIELD_AMOUNT:
        return text == NULL ? -1 : amount_parse(at, text);
    case FIELD_SIGNATURE:
        return read_bytes(signature, sizeof signature, text) != 0
                   ? -1
                   : signature_from_bytes(at, signature);
    }
    BUG("field kind %d", (int)kind);
}

int signed_fields_parse(void *out, const struct signed_field *fields, size_t n_fields,
                        const char *what, const char *text, size_t n_text, struct err *err)
{
    json_t *o = json_parse(text, n_text, err);
    if (o == NULL) {
        if (err != NULL)
            err->code = ERR_INVALID;
        return err_wrap(err, "%s", what);
    }
    int rc = 0;
    if (!json_is_object(o))
        rc = err_set(err, ERR_INVALID, "%s is not a JSON object", what);
    for (size_t i = 0; i < n_fields && rc == 0; i++) {
        const json_t *v = json_object_get(o, fields[i].name);
        if (v == NULL)
            rc = err_set(err, ERR_INVALID, "%s has no \"%s\"", what, fields[i].name);
        else if (read_field((char *)out + fields[i].offset, fields[i].kind, v) != 0)
            rc = err_set(err, ERR_INVALID, "%s: \"%s\" is not %s", what, fields[i].name,
                         form_of(fields[i].kind));
    }
    if (rc == 0 && json_object_size(o) != n_fields)
        rc = err_set(err, ERR_INVALID, "%s has members that don't belong there", what);
    json_decref(o);
    return rc;
}

static void write_field(struct buf *out, enum field_kind kind, const void *at)
{
    char hex[2 * SIGNATURE_BYTES + 3], text[AMOUNT_TEXT_BYTES];
    uint8_t signature[SIGNATURE_BYTES];
    uint64_t integer;
    switch (kind) {
    case FIELD_ADDRESS:
        buf_appendf(out, "\"%s\"", address_format(hex, *(const struct address *)at));
        return;
    case FIELD_BYTES32:
        buf_appendf(out, "\"%s\"", hex_encode_0x(hex, at, 32));
        return;
    case FIELD_INTEGER:
        integer = *(const uint64_t *)at;
        BUG_IF(integer > FIELD_INTEGER_MAX);
        buf_appendf(out, "%llu", (unsigned long long)integer);
        return;
    case FIELD_AMOUNT:
        buf_appendf(out, "\"%s\"", amount_format(text, *(const struct amount *)at));
        return;
    case FIELD_SIGNATURE:
        signature_to_bytes(signature, at);
        buf_appendf(out, "\"%s\"", hex_encode_0x(hex, signature, sizeof signature));
        return;
    }
    BUG("field kind %d", (int)kind);
}

void signed_fields_write(struct buf *out, const struct signed_field *fields, size_t n_fields,
                         const void *from)
{
    for (size_t i = 0; i < n_fields; i++) {
        buf_appendf(out, "%s\"%s\":", i == 0 ? "{" : ",", fields[i].name);
        write_field(out, fields[i].kind, (const char *)from + fields[i].offset);
    }
    buf_append_byte(out, '}');
}
