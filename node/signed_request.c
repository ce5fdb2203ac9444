/* signed_request: see signed_request.h. */
#include "node/signed_request.h"

#include "node/base/err.h"
#include "node/signed_fields.h"

#include <string.h>

#define IN_REQUEST(member) offsetof(struct signed_request, request.member)
#define COUNT_OF(table)    (sizeof(table) / sizeof *(table))

static const struct signed_field fields[] = {
    {"payer", FIELD_ADDRESS, IN_REQUEST(payer)},
    {"operator", FIELD_ADDRESS, IN_REQUEST(operator_address)},
    {"channel", FIELD_BYTES32, IN_REQUEST(channel)},
    {"nonce", FIELD_INTEGER, IN_REQUEST(nonce)},
    {"requestHash", FIELD_BYTES32, IN_REQUEST(request_hash)},
    {"maxFee", FIELD_AMOUNT, IN_REQUEST(max_fee)},
    {"deadlineMs", FIELD_INTEGER, IN_REQUEST(deadline_ms)},
    {"signature", FIELD_SIGNATURE, offsetof(struct signed_request, signature)},
};

int signed_request_parse(struct signed_request *out, const char *text, struct err *err)
{
    size_t n = strlen(text);
    *out = (struct signed_request){.request = {.nonce = 0}};
    if (n > SIGNED_REQUEST_BYTES_MAX)
        return err_set(err, ERR_INVALID, SIGNED_REQUEST_HEADER " has %zu bytes, at most %d fit", n,
                       SIGNED_REQUEST_BYTES_MAX);
    return signed_fields_parse(out, fields, COUNT_OF(fields), SIGNED_REQUEST_HEADER, text, n, err);
}

void signed_request_write(struct buf *out, const struct signed_request *q)
{
    signed_fields_write(out, fields, COUNT_OF(fields), q);
}
