/* api_payer: what a payer owes, and the vouchers with which it pays. Anyone may ask for the one, as
 * for receipts; a voucher says by its signature whom it is from. */
#include "attribution/attribution.h"
#include "node/api_error.h"
#include "node/base/buf.h"
#include "node/base/hex.h"
#include "node/http.h"
#include "node/json_util.h"
#include "node/node.h"
#include "node/signed_voucher.h"

#include <string.h>

static void reply(struct http_exchange *x, json_t *value)
{
    struct buf out = BUF_INIT;
    json_append_value(&out, value);
    json_decref(value);
    http_reply(x, 200, "application/json", &out);
}

void api_payer(struct node *n, struct http_exchange *x, const char *text)
{
    struct address payer;
    struct api_error e = {0};
    json_t *answer = NULL;
    if (address_parse(&payer, text) != 0)
        api_error_set(&e, ERR_INVALID, "address", "a payer is an address: 0x and 40 digits");
    else
        answer = ledger_query_payer(n->ledger, payer, &e.err);
    if (answer != NULL) {
        reply(x, answer);
        return;
    }
    api_error_hide(&e.err, "http");
    api_error_reply(x, &e);
}

/* {"accepted": false when the one that is held is as new, "channel", and of the newest that is
 * held "valueAggregate", "lastReceiptHash", "index"; "redeemed" of the channel} */
static json_t *held_to_json(const struct voucher_held *held, const struct voucher *v)
{
    char channel[67], last[67], value[AMOUNT_TEXT_BYTES], redeemed[AMOUNT_TEXT_BYTES];
    return json_pack("{s:b, s:s, s:s, s:s, s:I, s:s}", "accepted", held->accepted, "channel",
                     hex_encode_0x(channel, v->channel, 32), "valueAggregate",
                     amount_format(value, held->value), "lastReceiptHash",
                     hex_encode_0x(last, held->last_receipt, 32), "index", (json_int_t)held->index,
                     "redeemed", amount_format(redeemed, held->redeemed));
}

void api_voucher(struct node *n, struct http_exchange *x)
{
    struct signed_voucher v;
    struct voucher_held held;
    struct api_error e = {0};
    size_t n_body;
    const void *body = http_body(x, &n_body);
    if (signed_voucher_parse(&v, body, n_body, &e.err) == 0 &&
        ledger_voucher_accept(n->ledger, &held, &v, &e.err) == 0) {
        reply(x, held_to_json(&held, &v.voucher));
        return;
    }
    api_error_hide(&e.err, "http");
    api_error_reply(x, &e);
}
