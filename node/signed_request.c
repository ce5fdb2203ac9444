/* signed_request: see signed_request.h. */
#include "node/signed_request.h"

#include "node/base/buf.h"
#include "node/base/hex.h"
#include "node/json_util.h"

#include <string.h>

#define INTEGER_END ((json_int_t)1 << 53) /* from here on not every program's JSON is exact */

enum member { PAYER, OPERATOR, CHANNEL, NONCE, REQUEST_HASH, MAX_FEE, DEADLINE_MS, SIGNATURE };

static const struct {
    const char *name, *form;
} members[] = {
    [PAYER] = {"payer", "an address"},
    [OPERATOR] = {"operator", "an address"},
    [CHANNEL] = {"channel", "0x and 64 hexadecimal digits"},
    [NONCE] = {"nonce", "an integer from 0 to 2^53 - 1"},
    [REQUEST_HASH] = {"requestHash", "0x and 64 hexadecimal digits"},
    [MAX_FEE] = {"maxFee", "an amount: a decimal string below 2^128"},
    [DEADLINE_MS] = {"deadlineMs", "an integer from 0 to 2^53 - 1"},
    [SIGNATURE] = {"signature", "0x and 130 hexadecimal digits: r, s and v"},
};
enum { N_MEMBERS = sizeof members / sizeof *members };

static int read_bytes(uint8_t *out, size_t n, const char *text)
{
    return text == NULL || strncmp(text, "0x", 2) != 0 ? -1 : hex_decode(out, n, text);
}

static int read_integer(uint64_t *out, const json_t *v)
{
    json_int_t i = json_integer_value(v);
    if (!json_is_integer(v) || i < 0 || i >= INTEGER_END)
        return -1;
    *out = (uint64_t)i;
    return 0;
}

static int read_member(struct signed_request *out, enum member m, const json_t *v)
{
    struct request_auth *r = &out->request;
    const char *text = json_string_value(v); /* NULL: not a string */
    uint8_t signature[SIGNATURE_BYTES];
    switch (m) {
    case PAYER:
        return text == NULL ? -1 : address_parse(&r->payer, text);
    case OPERATOR:
        return text == NULL ? -1 : address_parse(&r->operator_address, text);
    case CHANNEL:
        return read_bytes(r->channel, sizeof r->channel, text);
    case NONCE:
        return read_integer(&r->nonce, v);
    case REQUEST_HASH:
        return read_bytes(r->request_hash.bytes, sizeof r->request_hash.bytes, text);
    case MAX_FEE:
        return text == NULL ? -1 : amount_parse(&r->max_fee, text);
    case DEADLINE_MS:
        return read_integer(&r->deadline_ms, v);
    case SIGNATURE:
        return read_bytes(signature, sizeof signature, text) != 0
                   ? -1
                   : signature_from_bytes(&out->signature, signature);
    }
    BUG("member %d", (int)m);
}

int signed_request_parse(struct signed_request *out, const char *text, struct err *err)
{
    size_t n = strlen(text);
    if (n > SIGNED_REQUEST_BYTES_MAX)
        return err_set(err, ERR_INVALID, SIGNED_REQUEST_HEADER " has %zu bytes, at most %d fit", n,
                       SIGNED_REQUEST_BYTES_MAX);
    json_t *o = json_parse(text, n, err);
    if (o == NULL) {
        if (err != NULL)
            err->code = ERR_INVALID;
        return err_wrap(err, SIGNED_REQUEST_HEADER);
    }
    int rc = 0;
    *out = (struct signed_request){.request = {.nonce = 0}};
    if (!json_is_object(o))
        rc = err_set(err, ERR_INVALID, SIGNED_REQUEST_HEADER " is not a JSON object");
    for (int m = 0; m < N_MEMBERS && rc == 0; m++) {
        const json_t *v = json_object_get(o, members[m].name);
        if (v == NULL)
            rc = err_set(err, ERR_INVALID, SIGNED_REQUEST_HEADER " has no \"%s\"", members[m].name);
        else if (read_member(out, (enum member)m, v) != 0)
            rc = err_set(err, ERR_INVALID, SIGNED_REQUEST_HEADER ": \"%s\" is not %s",
                         members[m].name, members[m].form);
    }
    if (rc == 0 && json_object_size(o) != N_MEMBERS)
        rc = err_set(err, ERR_INVALID,
                     SIGNED_REQUEST_HEADER " has members that a Request doesn't have");
    json_decref(o);
    return rc;
}

void signed_request_write(struct buf *out, const struct signed_request *q)
{
    const struct request_auth *r = &q->request;
    char hex[2 * SIGNATURE_BYTES + 3], text[AMOUNT_TEXT_BYTES];
    uint8_t signature[SIGNATURE_BYTES];
    BUG_IF(r->nonce >= (uint64_t)INTEGER_END || r->deadline_ms >= (uint64_t)INTEGER_END);
    buf_appendf(out, "{\"payer\":\"%s\"", address_format(hex, r->payer));
    buf_appendf(out, ",\"operator\":\"%s\"", address_format(hex, r->operator_address));
    buf_appendf(out, ",\"channel\":\"%s\",\"nonce\":%llu", hex_encode_0x(hex, r->channel, 32),
                (unsigned long long)r->nonce);
    buf_appendf(out, ",\"requestHash\":\"%s\",\"maxFee\":\"%s\",\"deadlineMs\":%llu",
                hex_encode_0x(hex, r->request_hash.bytes, 32), amount_format(text, r->max_fee),
                (unsigned long long)r->deadline_ms);
    signature_to_bytes(signature, &q->signature);
    buf_appendf(out, ",\"signature\":\"%s\"}", hex_encode_0x(hex, signature, sizeof signature));
}
