/* signed_request: a payer's Request as the HTTP header x-tributary-request, in place of an API key.
 *
 * The header is one line of JSON, the members of the EIP-712 type Request
 * (contracts-abi/types.json) and the signature over it, each once, in any order, and no others:
 *
 *   {"payer":"0x...","operator":"0x...","channel":"0x<64 digits>","nonce":1,
 *    "requestHash":"0x<64 digits>","maxFee":"1000000000000000","deadlineMs":1789000000000,
 *    "signature":"0x<130 digits: r, s, v>"}
 *
 * maxFee is a decimal string, in the smallest unit of the token; nonce and deadlineMs (of Unix
 * time) are integers from 0 to 2^53 - 1; addresses in mixed case carry EIP-55's checksum.
 * requestHash is sha256 of the body as it is sent. What the node makes of it: attribution.h,
 * "payers' requests". */
#ifndef TRIBUTARY_NODE_SIGNED_REQUEST_H
#define TRIBUTARY_NODE_SIGNED_REQUEST_H

#include "attribution/attribution.h"

struct buf;
struct err;

#define SIGNED_REQUEST_HEADER "x-tributary-request"

enum { SIGNED_REQUEST_BYTES_MAX = 2048 };

/* ERR_INVALID names the member. Says nothing about the signature but that it has one's form. */
int signed_request_parse(struct signed_request *out, const char *text, struct err *err);

/* Appends the header's value, in the order above; nonce and deadline_ms must be below 2^53. */
void signed_request_write(struct buf *out, const struct signed_request *q);

#endif
