/* amount: checked 128-bit money. See amount.h.
 *
 * The compilers' overflow built-ins work on unsigned __int128, so every operation is one checked
 * machine operation; only text needs a loop. Decimal text is parsed strictly: one number has one
 * text, because texts of amounts are hashed. */
#include "node/base/amount.h"

#include "node/base/err.h"

#include <string.h>

int amount_add(struct amount *out, struct amount a, struct amount b)
{
    uint128 sum;
    if (__builtin_add_overflow(a.units, b.units, &sum))
        return -1;
    out->units = sum;
    return 0;
}

int amount_sub(struct amount *out, struct amount a, struct amount b)
{
    if (b.units > a.units)
        return -1;
    out->units = a.units - b.units;
    return 0;
}

int amount_mul(struct amount *out, struct amount a, uint64_t factor)
{
    uint128 product;
    if (__builtin_mul_overflow(a.units, (uint128)factor, &product))
        return -1;
    out->units = product;
    return 0;
}

struct amount amount_div(struct amount a, uint64_t divisor)
{
    BUG_IF(divisor == 0);
    return (struct amount){a.units / divisor};
}

int amount_cmp(struct amount a, struct amount b)
{
    return a.units < b.units ? -1 : a.units > b.units;
}

bool amount_is_zero(struct amount a)
{
    return a.units == 0;
}

char *amount_format(char *out, struct amount a)
{
    char digits[AMOUNT_TEXT_BYTES]; /* last digit first */
    size_t n = 0;
    do {
        digits[n++] = (char)('0' + (int)(a.units % 10));
        a.units /= 10;
    } while (a.units != 0);
    for (size_t i = 0; i < n; i++)
        out[i] = digits[n - 1 - i];
    out[n] = '\0';
    return out;
}

int amount_parse(struct amount *out, const char *text)
{
    if (text[0] == '\0' || (text[0] == '0' && text[1] != '\0'))
        return -1;
    struct amount value = AMOUNT_ZERO;
    for (const char *c = text; *c; c++) {
        if (*c < '0' || *c > '9' || amount_mul(&value, value, 10) != 0 ||
            amount_add(&value, value, amount_of((uint64_t)(*c - '0'))) != 0)
            return -1;
    }
    *out = value;
    return 0;
}

void amount_to_bytes(uint8_t out[16], struct amount a)
{
    for (int i = 15; i >= 0; i--) {
        out[i] = (uint8_t)a.units;
        a.units >>= 8;
    }
}

struct amount amount_from_bytes(const uint8_t bytes[16])
{
    struct amount a = AMOUNT_ZERO;
    for (int i = 0; i < 16; i++)
        a.units = a.units << 8 | bytes[i];
    return a;
}
