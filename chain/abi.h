/* abi: Solidity's contract ABI, driven by type strings.
 *
 * A type is an elementary one (sol_value.h), a tuple "(address,(uint256,bytes)[])", or an array of
 * a type, "T[]" or "T[3]". Values are JSON: arrays for tuples and arrays, elementary values as in
 * sol_value.h. Decoding is strict: offsets must point to where the standard encoder puts things,
 * padding must be zero, lengths must fit what is there; so a value has one encoding, and a hostile
 * answer can't make us read twice or allocate more than it sent. Names in a tuple ("(address
 * to,uint256 value)") are ignored. Nesting is bounded by 32.
 *
 * Source: Solidity documentation, Contract ABI Specification. Pure functions, any thread. */
#ifndef TRIBUTARY_CHAIN_ABI_H
#define TRIBUTARY_CHAIN_ABI_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct err;

/* Appends the encoding of value as type. Function arguments are a tuple: "(uint256,address)" with
 * an array. ERR_INVALID names the place ("[2][0]: ...") or what is wrong with the type. */
int abi_encode(struct buf *out, const char *type, const json_t *value, struct err *err);

/* Decodes exactly n bytes; a new reference, or NULL with ERR_CORRUPT (bytes) or ERR_INVALID (type).
 */
json_t *abi_decode(const char *type, const void *bytes, size_t n, struct err *err);

/* The first four bytes of keccak256 of a canonical signature, "transfer(address,uint256)". */
void abi_selector(uint8_t out[4], const char *signature);

/* The canonical type of an ABI JSON parameter ({"type":"tuple[]","components":[...]}), appended. */
int abi_type_of_parameter(struct buf *out, const json_t *parameter, struct err *err);
/* "name(types)" of a function, event or error of an ABI, appended. */
int abi_signature_of(struct buf *out, const json_t *entry, struct err *err);

#endif
