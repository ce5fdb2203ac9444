/* u256: see u256.h. Schoolbook arithmetic on four limbs; nothing here is secret or hot. */
#include "chain/u256.h"

#include "node/base/err.h"
#include "node/base/hex.h"

#include <string.h>

struct u256 u256_of(uint64_t v)
{
    return (struct u256){{v, 0, 0, 0}};
}

struct u256 u256_of_amount(struct amount a)
{
    return (struct u256){{(uint64_t)a.units, (uint64_t)(a.units >> 64), 0, 0}};
}

int u256_to_u64(uint64_t *out, struct u256 a)
{
    if ((a.limb[1] | a.limb[2] | a.limb[3]) != 0)
        return -1;
    *out = a.limb[0];
    return 0;
}

int u256_to_amount(struct amount *out, struct u256 a)
{
    if ((a.limb[2] | a.limb[3]) != 0)
        return -1;
    out->units = (uint128)a.limb[1] << 64 | a.limb[0];
    return 0;
}

struct u256 u256_from_bytes(const uint8_t bytes[32])
{
    struct u256 a = U256_ZERO;
    for (int i = 0; i < 32; i++) {
        uint64_t *limb = &a.limb[3 - i / 8];
        *limb = *limb << 8 | bytes[i];
    }
    return a;
}

void u256_to_bytes(uint8_t out[32], struct u256 a)
{
    for (int i = 0; i < 32; i++)
        out[i] = (uint8_t)(a.limb[3 - i / 8] >> (8 * (7 - i % 8)));
}

int u256_add(struct u256 *out, struct u256 a, struct u256 b)
{
    uint128 carry = 0;
    for (int i = 0; i < 4; i++) {
        carry += (uint128)a.limb[i] + b.limb[i];
        a.limb[i] = (uint64_t)carry;
        carry >>= 64;
    }
    if (carry != 0)
        return -1;
    *out = a;
    return 0;
}

int u256_sub(struct u256 *out, struct u256 a, struct u256 b)
{
    if (u256_cmp(a, b) < 0)
        return -1;
    unsigned borrow = 0;
    for (int i = 0; i < 4; i++) {
        uint64_t d;
        unsigned under = __builtin_sub_overflow(a.limb[i], b.limb[i], &d);
        under |= __builtin_sub_overflow(d, (uint64_t)borrow, &a.limb[i]);
        borrow = under;
    }
    *out = a;
    return 0;
}

int u256_mul(struct u256 *out, struct u256 a, uint64_t factor)
{
    uint128 carry = 0;
    for (int i = 0; i < 4; i++) {
        carry += (uint128)a.limb[i] * factor;
        a.limb[i] = (uint64_t)carry;
        carry >>= 64;
    }
    if (carry != 0)
        return -1;
    *out = a;
    return 0;
}

struct u256 u256_div(struct u256 a, uint64_t divisor, uint64_t *remainder)
{
    BUG_IF(divisor == 0);
    uint128 rest = 0;
    for (int i = 3; i >= 0; i--) {
        rest = rest << 64 | a.limb[i];
        a.limb[i] = (uint64_t)(rest / divisor);
        rest %= divisor;
    }
    if (remainder != NULL)
        *remainder = (uint64_t)rest;
    return a;
}

int u256_cmp(struct u256 a, struct u256 b)
{
    for (int i = 3; i >= 0; i--) {
        if (a.limb[i] != b.limb[i])
            return a.limb[i] < b.limb[i] ? -1 : 1;
    }
    return 0;
}

bool u256_is_zero(struct u256 a)
{
    return (a.limb[0] | a.limb[1] | a.limb[2] | a.limb[3]) == 0;
}

unsigned u256_bits(struct u256 a)
{
    for (unsigned i = 4; i-- > 0;) {
        if (a.limb[i] != 0)
            return 64 * i + 64 - (unsigned)__builtin_clzll(a.limb[i]);
    }
    return 0;
}

int u256_parse(struct u256 *out, const char *text)
{
    struct u256 a = U256_ZERO;
    if (*text == '\0')
        return -1;
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9' || u256_mul(&a, a, 10) != 0 ||
            u256_add(&a, a, u256_of((uint64_t)(*text - '0'))) != 0)
            return -1;
    }
    *out = a;
    return 0;
}

char *u256_format(char *out, struct u256 a)
{
    char digits[U256_TEXT_BYTES];
    size_t n = 0;
    do {
        uint64_t digit;
        a = u256_div(a, 10, &digit);
        digits[n++] = (char)('0' + digit);
    } while (!u256_is_zero(a));
    for (size_t i = 0; i < n; i++)
        out[i] = digits[n - 1 - i];
    out[n] = '\0';
    return out;
}

int u256_parse_hex(struct u256 *out, const char *text)
{
    struct u256 a = U256_ZERO;
    if (text[0] != '0' || (text[1] != 'x' && text[1] != 'X') || text[2] == '\0')
        return -1;
    for (text += 2; *text != '\0'; text++) {
        int digit = hex_digit(*text);
        if (digit < 0 || u256_mul(&a, a, 16) != 0)
            return -1;
        a.limb[0] |= (uint64_t)digit;
    }
    *out = a;
    return 0;
}

char *u256_format_hex(char *out, struct u256 a)
{
    uint8_t bytes[32];
    char digits[65];
    u256_to_bytes(bytes, a);
    hex_encode(digits, bytes, sizeof bytes);
    const char *first = digits;
    while (*first == '0' && first[1] != '\0')
        first++;
    out[0] = '0';
    out[1] = 'x';
    strcpy(out + 2, first);
    return out;
}
