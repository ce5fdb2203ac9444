/* u256: 256-bit unsigned integers of fixed width, the EVM's word.
 *
 * Operations that can leave the range say so: they return -1 and leave *out alone. */
#ifndef TRIBUTARY_CHAIN_U256_H
#define TRIBUTARY_CHAIN_U256_H

#include "node/base/amount.h"

#include <stdbool.h>
#include <stdint.h>

struct u256 {
    uint64_t limb[4]; /* least significant first */
};
#define U256_ZERO ((struct u256){{0, 0, 0, 0}})

enum { U256_TEXT_BYTES = 79 }; /* 78 digits of 2^256 - 1, and a NUL */

struct u256 u256_of(uint64_t v);
struct u256 u256_of_amount(struct amount a);
int u256_to_u64(uint64_t *out, struct u256 a);         /* -1: above 2^64 - 1 */
int u256_to_amount(struct amount *out, struct u256 a); /* -1: above 2^128 - 1 */

struct u256 u256_from_bytes(const uint8_t bytes[32]); /* big-endian */
void u256_to_bytes(uint8_t out[32], struct u256 a);

int u256_add(struct u256 *out, struct u256 a, struct u256 b);
int u256_sub(struct u256 *out, struct u256 a, struct u256 b);
int u256_mul(struct u256 *out, struct u256 a, uint64_t factor);
struct u256 u256_div(struct u256 a, uint64_t divisor, uint64_t *remainder); /* divisor not 0 */
int u256_cmp(struct u256 a, struct u256 b);
bool u256_is_zero(struct u256 a);
unsigned u256_bits(struct u256 a); /* 0 for zero, else the index of the highest bit set plus 1 */

/* Decimal digits only, at least one. -1: anything else, or above 2^256 - 1. */
int u256_parse(struct u256 *out, const char *text);
char *u256_format(char *out, struct u256 a); /* out [U256_TEXT_BYTES]; returns out */

/* JSON-RPC quantities: 0x, no leading zeros ("0x0" for zero). Parsing accepts leading zeros. */
int u256_parse_hex(struct u256 *out, const char *text);
char *u256_format_hex(char *out, struct u256 a); /* out [67] */

#endif
