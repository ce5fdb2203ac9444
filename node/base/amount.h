/* amount: money, in the smallest unit of the payment token (wei of an 18-decimals token).
 *
 * A one-field struct, so that an amount never meets a token count or a time by accident; arithmetic
 * goes through functions that can say "overflow". The range is uint128, the type of every amount in
 * the signed formats. In JSON and text an amount is a decimal string without sign, leading zeros
 * or spaces; in bytes it is 16 bytes, big-endian, so that memcmp orders amounts. */
#ifndef TRIBUTARY_BASE_AMOUNT_H
#define TRIBUTARY_BASE_AMOUNT_H

#include <stdbool.h>
#include <stdint.h>

typedef unsigned __int128 uint128;

struct amount {
    uint128 units;
};
#define AMOUNT_ZERO ((struct amount){0})
#define AMOUNT_MAX  ((struct amount){~(uint128)0})

enum { AMOUNT_TEXT_BYTES = 40 }; /* 39 digits of 2^128 - 1, and a NUL */

static inline struct amount amount_of(uint64_t units)
{
    return (struct amount){units};
}

/* Each writes *out and returns 0, or returns -1 on overflow (underflow) and leaves *out alone.
 * out may be one of the operands. */
int amount_add(struct amount *out, struct amount a, struct amount b);
int amount_sub(struct amount *out, struct amount a, struct amount b);
int amount_mul(struct amount *out, struct amount a, uint64_t factor);

/* floor(a / divisor); divisor 0 is a bug. */
struct amount amount_div(struct amount a, uint64_t divisor);

/* -1, 0, 1 as a is below, equal to or above b. */
int amount_cmp(struct amount a, struct amount b);
bool amount_is_zero(struct amount a);

/* out [AMOUNT_TEXT_BYTES]; returns out. */
char *amount_format(char *out, struct amount a);
/* Exactly the form that amount_format writes; -1 for anything else or above 2^128 - 1. */
int amount_parse(struct amount *out, const char *text);

void amount_to_bytes(uint8_t out[16], struct amount a); /* big-endian */
struct amount amount_from_bytes(const uint8_t bytes[16]);

#endif
