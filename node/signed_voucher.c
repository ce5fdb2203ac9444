/* signed_voucher: see signed_voucher.h. */
#include "node/signed_voucher.h"

#include "node/base/err.h"
#include "node/signed_fields.h"

#define IN_VOUCHER(member) offsetof(struct signed_voucher, voucher.member)
#define COUNT_OF(table)    (sizeof(table) / sizeof *(table))

static const struct signed_field fields[] = {
    {"payer", FIELD_ADDRESS, IN_VOUCHER(payer)},
    {"operator", FIELD_ADDRESS, IN_VOUCHER(operator_address)},
    {"channel", FIELD_BYTES32, IN_VOUCHER(channel)},
    {"timestampMs", FIELD_INTEGER, IN_VOUCHER(timestamp_ms)},
    {"valueAggregate", FIELD_AMOUNT, IN_VOUCHER(value_aggregate)},
    {"lastReceiptHash", FIELD_BYTES32, IN_VOUCHER(last_receipt_hash)},
    {"signature", FIELD_SIGNATURE, offsetof(struct signed_voucher, signature)},
};

int signed_voucher_parse(struct signed_voucher *out, const void *text, size_t n, struct err *err)
{
    *out = (struct signed_voucher){.voucher = {.timestamp_ms = 0}};
    if (n > SIGNED_VOUCHER_BYTES_MAX)
        return err_set(err, ERR_INVALID, "the voucher has %zu bytes, at most %d fit", n,
                       SIGNED_VOUCHER_BYTES_MAX);
    return signed_fields_parse(out, fields, COUNT_OF(fields), "the voucher", text, n, err);
}

void signed_voucher_write(struct buf *out, const struct signed_voucher *v)
{
    signed_fields_write(out, fields, COUNT_OF(fields), v);
}
