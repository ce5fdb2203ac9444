/* sol_value: see sol_value.h. */
#include "chain/sol_value.h"

#include "chain/types.h"
#include "chain/u256.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A size without leading zeros; 0 when the text is no such number. */
static unsigned parse_size(const char *text, size_t n)
{
    unsigned v = 0;
    if (n == 0 || n > 3 || text[0] == '0')
        return 0;
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9')
            return 0;
        v = v * 10 + (unsigned)(text[i] - '0');
    }
    return v;
}

static bool starts_with(const char *name, size_t n, const char *prefix)
{
    size_t len = strlen(prefix);
    return n >= len && memcmp(name, prefix, len) == 0;
}

static bool is(const char *name, size_t n, const char *word)
{
    return n == strlen(word) && memcmp(name, word, n) == 0;
}

bool sol_type_parse(struct sol_type *out, const char *name, size_t n)
{
    *out = (struct sol_type){.kind = SOL_BOOL};
    if (is(name, n, "bool"))
        return true;
    if (is(name, n, "address")) {
        out->kind = SOL_ADDRESS;
        return true;
    }
    if (is(name, n, "string") || is(name, n, "bytes")) {
        out->kind = name[0] == 's' ? SOL_STRING : SOL_BYTES;
        return true;
    }
    if (starts_with(name, n, "bytes")) {
        out->kind = SOL_BYTES_N;
        out->size = parse_size(name + 5, n - 5);
        return out->size >= 1 && out->size <= 32;
    }
    bool is_uint = starts_with(name, n, "uint");
    if (!is_uint && !starts_with(name, n, "int"))
        return false;
    size_t prefix = is_uint ? 4 : 3;
    out->kind = is_uint ? SOL_UINT : SOL_INT;
    out->size = n == prefix ? 256 : parse_size(name + prefix, n - prefix);
    return out->size >= 8 && out->size <= 256 && out->size % 8 == 0;
}

static struct u256 negate(struct u256 a)
{
    uint64_t carry = 1;
    for (int i = 0; i < 4; i++) {
        a.limb[i] = ~a.limb[i] + carry;
        carry = carry != 0 && a.limb[i] == 0;
    }
    return a;
}

static int number_from_json(uint8_t out[32], const struct sol_type *type, const json_t *value,
                            struct err *err)
{
    char text[U256_TEXT_BYTES + 2];
    const char *digits = text;
    if (json_is_integer(value))
        snprintf(text, sizeof text, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_string(value))
        digits = json_string_value(value);
    else
        return err_set(err, ERR_INVALID, "expected a number");
    bool negative = digits[0] == '-';
    struct u256 a;
    const char *magnitude = digits + negative;
    if (magnitude[0] == '0' && magnitude[1] == 'x' ? u256_parse_hex(&a, magnitude) != 0
                                                   : u256_parse(&a, magnitude) != 0)
        return err_set(err, ERR_INVALID, "\"%.80s\" is no 256-bit number", digits);
    /* -2^(size-1) has the same number of bits as 2^(size-1): one more than a positive int may have.
     */
    unsigned bits = u256_bits(a);
    bool fits = bits <= type->size && !negative;
    if (type->kind == SOL_INT) {
        struct u256 below = a;
        if (negative && !u256_is_zero(a))
            u256_sub(&below, a, u256_of(1));
        fits = u256_bits(below) < type->size;
    }
    if (!fits && !(negative && bits == 0))
        return err_set(err, ERR_INVALID, "%.80s does not fit %s%u", digits,
                       type->kind == SOL_INT ? "int" : "uint", type->size);
    u256_to_bytes(out, negative ? negate(a) : a);
    return 0;
}

int sol_bytes_from_json(struct buf *out, const struct sol_type *type, const json_t *value,
                        struct err *err)
{
    if (!json_is_string(value))
        return err_set(err, ERR_INVALID, "expected a string");
    const char *text = json_string_value(value);
    size_t n = json_string_length(value);
    if (type->kind == SOL_STRING) {
        buf_append(out, text, n);
        return 0;
    }
    if (n < 2 || n % 2 != 0 || text[0] != '0' || text[1] != 'x' || strlen(text) != n)
        return err_set(err, ERR_INVALID, "expected 0x and an even number of digits");
    n = n / 2 - 1;
    buf_reserve(out, n);
    if (hex_decode(out->data + out->len, n, text) != 0)
        return err_set(err, ERR_INVALID, "expected hexadecimal digits after 0x");
    out->len += n;
    out->data[out->len] = '\0';
    return 0;
}

int sol_word_from_json(uint8_t out[32], const struct sol_type *type, const json_t *value,
                       struct err *err)
{
    memset(out, 0, 32);
    switch (type->kind) {
    case SOL_UINT:
    case SOL_INT:
        return number_from_json(out, type, value, err);
    case SOL_BOOL:
        if (!json_is_boolean(value))
            return err_set(err, ERR_INVALID, "expected true or false");
        out[31] = json_is_true(value);
        return 0;
    case SOL_ADDRESS: {
        struct address a;
        if (!json_is_string(value) || address_parse(&a, json_string_value(value)) != 0)
            return err_set(err, ERR_INVALID, "expected an address");
        memcpy(out + 12, a.bytes, sizeof a.bytes);
        return 0;
    }
    case SOL_BYTES_N: {
        const char *text = json_string_value(value);
        if (text == NULL || strncmp(text, "0x", 2) != 0 || hex_decode(out, type->size, text) != 0)
            return err_set(err, ERR_INVALID, "expected 0x and %u digits", 2 * type->size);
        return 0;
    }
    case SOL_BYTES:
    case SOL_STRING:
        break;
    }
    BUG("a type of more than one word");
}

static json_t *hex_json(const uint8_t *bytes, size_t n)
{
    char text[2 * 32 + 3];
    return json_string(hex_encode_0x(text, bytes, n));
}

json_t *sol_word_to_json(const uint8_t word[32], const struct sol_type *type, struct err *err)
{
    size_t used = type->kind == SOL_ADDRESS ? 20 : type->kind == SOL_BOOL ? 1 : type->size / 8;
    bool negative = type->kind == SOL_INT && (word[32 - used] & 0x80) != 0;
    bool proper = true;
    if (type->kind == SOL_BYTES_N) {
        for (size_t i = type->size; i < 32; i++)
            proper &= word[i] == 0;
    } else {
        for (size_t i = 0; i < 32 - used; i++)
            proper &= word[i] == (negative ? 0xff : 0);
        proper &= type->kind != SOL_BOOL || word[31] <= 1;
    }
    if (!proper) {
        err_set(err, ERR_CORRUPT, "a word has bits outside its type");
        return NULL;
    }
    char text[U256_TEXT_BYTES + 1] = "-";
    struct u256 a = u256_from_bytes(word);
    switch (type->kind) {
    case SOL_UINT:
    case SOL_INT:
        u256_format(text + negative, negative ? negate(a) : a);
        return json_string(text);
    case SOL_BOOL:
        return json_boolean(word[31]);
    case SOL_ADDRESS: {
        struct address addr;
        memcpy(addr.bytes, word + 12, sizeof addr.bytes);
        return json_string(address_format(text, addr));
    }
    case SOL_BYTES_N:
        return hex_json(word, type->size);
    case SOL_BYTES:
    case SOL_STRING:
        break;
    }
    BUG("a type of more than one word");
}
