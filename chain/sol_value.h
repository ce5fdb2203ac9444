/* sol_value: Solidity's elementary types as text, and their values between JSON and 32-byte words.
 *
 * What the ABI and EIP-712 have in common: the names of types, and that uint, int, bool, address
 * and bytesN fill one word each, numbers right-aligned (negative ones sign-extended), bytesN
 * left-aligned. */
#ifndef TRIBUTARY_CHAIN_SOL_VALUE_H
#define TRIBUTARY_CHAIN_SOL_VALUE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct err;

enum sol_kind { SOL_UINT, SOL_INT, SOL_BOOL, SOL_ADDRESS, SOL_BYTES_N, SOL_BYTES, SOL_STRING };

struct sol_type {
    enum sol_kind kind;
    unsigned size; /* bits of uint and int; bytes of bytesN; else 0 */
};

/* "uint" and "int" are uint256 and int256. false: not an elementary type. */
bool sol_type_parse(struct sol_type *out, const char *name, size_t n);

/* One word of an elementary type that fills one (all but bytes and string). JSON: integers, decimal
 * or 0x strings (a leading - for int), true and false, 0x text. ERR_INVALID says what doesn't fit;
 * the caller adds where. */
int sol_word_from_json(uint8_t out[32], const struct sol_type *type, const json_t *value,
                       struct err *err);

/* The other way: a new reference; numbers as decimal strings, the rest as above. Strict: bits that
 * the type doesn't have must be a proper extension, else NULL with ERR_CORRUPT. */
json_t *sol_word_to_json(const uint8_t word[32], const struct sol_type *type, struct err *err);

/* The bytes of a `bytes` (0x text) or `string` (UTF-8) value, appended. */
int sol_bytes_from_json(struct buf *out, const struct sol_type *type, const json_t *value,
                        struct err *err);

#endif
