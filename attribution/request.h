/* request: payers' Requests that are being answered. The rules are in attribution.h. */
#ifndef TRIBUTARY_ATTRIBUTION_REQUEST_H
#define TRIBUTARY_ATTRIBUTION_REQUEST_H

#include "attribution/ledger.h"

struct open_request {
    struct open_request *next;
    uint8_t id[32]; /* the Request's digest, the requestId of its receipt */
    struct address payer;
    struct channel_id channel;
    struct amount max_fee;
};

/* Whether a requestId is that of a Request that was let in and has not left; *out is a copy. Any
 * thread. */
bool request_find(struct ledger *l, struct open_request *out, const uint8_t id[32]);

/* The maxFee of all Requests of a payer that are being answered; 2^128 - 1 when that overflows. Any
 * thread. */
struct amount requests_pending(struct ledger *l, struct address payer);

void requests_release(struct ledger *l); /* forgets what is left, at the ledger's end */

#endif
