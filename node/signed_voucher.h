/* signed_voucher: a payer's Voucher as JSON, the body of POST /v1/vouchers.
 *
 * The members of the EIP-712 type Voucher (contracts-abi/types.json) and the signature over it,
 * each once, in any order, and no others:
 *
 *   {"payer":"0x...","operator":"0x...","channel":"0x<64 digits>","timestampMs":1789000000000,
 *    "valueAggregate":"1000000000000000","lastReceiptHash":"0x<64 digits>",
 *    "signature":"0x<130 digits: r, s, v>"}
 *
 * Their forms are those of signed_fields.h. What the node makes of it: attribution.h, "payers'
 * vouchers". */
#ifndef TRIBUTARY_NODE_SIGNED_VOUCHER_H
#define TRIBUTARY_NODE_SIGNED_VOUCHER_H

#include "attribution/attribution.h"

struct buf;
struct err;

enum { SIGNED_VOUCHER_BYTES_MAX = 2048 };

/* ERR_INVALID names the member. Says nothing about the signature but that it has one's form. */
int signed_voucher_parse(struct signed_voucher *out, const void *text, size_t n, struct err *err);

/* Appends the object, in the order above; timestamp_ms must be below 2^53. */
void signed_voucher_write(struct buf *out, const struct signed_voucher *v);

#endif
