/* json_out: JSON values in the forms that attribution.h promises. */
#ifndef TRIBUTARY_ATTRIBUTION_JSON_OUT_H
#define TRIBUTARY_ATTRIBUTION_JSON_OUT_H

#include "node/base/amount.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <jansson.h>

/* 0x and lower-case hexadecimal; n up to 65. */
static inline json_t *out_hex(const uint8_t *bytes, size_t n)
{
    char text[2 * 65 + 3];
    BUG_IF(n > 65);
    return json_string(hex_encode_0x(text, bytes, n));
}

static inline json_t *out_amount(struct amount a)
{
    char text[AMOUNT_TEXT_BYTES];
    return json_string(amount_format(text, a));
}

static inline json_t *out_u64(uint64_t value)
{
    return json_integer((json_int_t)value);
}

static inline json_t *out_text_or_null(const char *text)
{
    return text && *text ? json_string(text) : json_null();
}

#endif
