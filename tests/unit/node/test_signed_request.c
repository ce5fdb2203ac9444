/* The header of a payer's Request: what is written reads back, what has another form is refused by
 * name. Who may ask with it is test_request.c's, and the end-to-end test's. */
#include "tests/support.h"

#include "node/base/err.h"
#include "node/signed_request.h"

#include <stdio.h>
#include <string.h>

#define HEX_64  "1111111111111111111111111111111111111111111111111111111111111111"
#define PAYER   "\"payer\":\"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC\","
#define OTHER   "\"operator\":\"0x70997970c51812dc3a010c7d01b50e0d17dc79c8\","
#define CHANNEL "\"channel\":\"0x" HEX_64 "\","
#define NONCE   "\"nonce\":9007199254740991,"
#define HASH    "\"requestHash\":\"0x" HEX_64 "\","
#define FEE     "\"maxFee\":\"340282366920938463463374607431768211455\","
#define TIME    "\"deadlineMs\":1789000000000,"
#define SIGNED  "\"signature\":\"0x" HEX_64 HEX_64 "1b\""

static void a_request_reads_back_as_it_was_written(void **state)
{
    (void)state;
    struct signed_request q, again;
    struct buf text = BUF_INIT;
    struct err err = {0};
    assert_ok(
        signed_request_parse(&q, "{" PAYER OTHER CHANNEL NONCE HASH FEE TIME SIGNED "}", &err),
        err);
    assert_int_equal(q.request.payer.bytes[0], 0x3c);
    assert_int_equal(q.request.operator_address.bytes[19], 0xc8);
    assert_true(q.request.nonce == ((uint64_t)1 << 53) - 1);
    assert_int_equal(amount_cmp(q.request.max_fee, AMOUNT_MAX), 0);
    assert_true(q.request.deadline_ms == 1789000000000);
    assert_int_equal(q.signature.y_parity, 0);
    signed_request_write(&text, &q);
    assert_true(text.len < SIGNED_REQUEST_BYTES_MAX);
    assert_ok(signed_request_parse(&again, buf_cstr(&text), &err), err);
    struct buf twice = BUF_INIT;
    signed_request_write(&twice, &again);
    assert_string_equal(buf_cstr(&text), buf_cstr(&twice));
    buf_release(&text);
    buf_release(&twice);
    /* In any order. */
    assert_ok(
        signed_request_parse(&again, "{" TIME FEE HASH NONCE CHANNEL OTHER PAYER SIGNED "}", &err),
        err);
    assert_memory_equal(again.request.payer.bytes, q.request.payer.bytes, 20);
}

static void another_form_is_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"", "x-tributary-request"},
        {"Bearer sesame", "x-tributary-request"},
        {"[]", "not a JSON object"},
        {"null", "x-tributary-request"},
        {"{}", "no \"payer\""},
        {"{" PAYER OTHER CHANNEL NONCE HASH FEE TIME SIGNED "} ", NULL},
        {"{" PAYER OTHER CHANNEL NONCE HASH FEE TIME SIGNED "}{}", "x-tributary-request"},
        {"{" PAYER PAYER OTHER CHANNEL NONCE HASH FEE TIME SIGNED "}", "duplicate"},
        {"{" PAYER OTHER CHANNEL NONCE HASH FEE TIME "\"tip\":1," SIGNED "}", "members"},
        {"{" OTHER CHANNEL NONCE HASH FEE TIME SIGNED "}", "no \"payer\""},
        {"{" PAYER CHANNEL NONCE HASH FEE TIME SIGNED "}", "no \"operator\""},
        {"{" PAYER OTHER NONCE HASH FEE TIME SIGNED "}", "no \"channel\""},
        {"{" PAYER OTHER CHANNEL HASH FEE TIME SIGNED "}", "no \"nonce\""},
        {"{" PAYER OTHER CHANNEL NONCE FEE TIME SIGNED "}", "no \"requestHash\""},
        {"{" PAYER OTHER CHANNEL NONCE HASH TIME SIGNED "}", "no \"maxFee\""},
        {"{" PAYER OTHER CHANNEL NONCE HASH FEE SIGNED "}", "no \"deadlineMs\""},
        {"{" PAYER OTHER CHANNEL NONCE HASH FEE "\"deadlineMs\":1}", "no \"signature\""},
        {"{\"payer\":null," OTHER CHANNEL NONCE HASH FEE TIME SIGNED "}", "\"payer\" is not"},
        /* one letter of the checksum in the other case */
        {"{\"payer\":\"0x3c44CdDdB6a900fa2b585dd299e03d12FA4293BC\"," OTHER CHANNEL NONCE HASH FEE
             TIME SIGNED "}",
         "\"payer\" is not an address"},
        {"{" PAYER OTHER "\"channel\":\"" HEX_64 "\"," NONCE HASH FEE TIME SIGNED "}",
         "\"channel\" is not"},
        {"{" PAYER OTHER "\"channel\":\"0x" HEX_64 "11\"," NONCE HASH FEE TIME SIGNED "}",
         "\"channel\" is not"},
        {"{" PAYER OTHER CHANNEL "\"nonce\":9007199254740992," HASH FEE TIME SIGNED "}",
         "\"nonce\" is not"},
        {"{" PAYER OTHER CHANNEL "\"nonce\":-1," HASH FEE TIME SIGNED "}", "\"nonce\" is not"},
        {"{" PAYER OTHER CHANNEL "\"nonce\":1.0," HASH FEE TIME SIGNED "}", "\"nonce\" is not"},
        {"{" PAYER OTHER CHANNEL "\"nonce\":\"1\"," HASH FEE TIME SIGNED "}", "\"nonce\" is not"},
        {"{" PAYER OTHER CHANNEL NONCE HASH "\"maxFee\":1," TIME SIGNED "}", "\"maxFee\" is not"},
        {"{" PAYER OTHER CHANNEL NONCE HASH "\"maxFee\":\"01\"," TIME SIGNED "}",
         "\"maxFee\" is not"},
        {"{" PAYER OTHER CHANNEL NONCE HASH
         "\"maxFee\":\"340282366920938463463374607431768211456\"," TIME SIGNED "}",
         "\"maxFee\" is not"},
        {"{" PAYER OTHER CHANNEL NONCE HASH FEE TIME "\"signature\":\"0x" HEX_64 HEX_64 "1d\"}",
         "\"signature\" is not"},
        {"{" PAYER OTHER CHANNEL NONCE HASH FEE TIME "\"signature\":\"0x" HEX_64 "1b\"}",
         "\"signature\" is not"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct signed_request q;
        struct err err = {0};
        int rc = signed_request_parse(&q, rows[i].text, &err);
        if (rows[i].says == NULL ? rc != 0 : rc == 0)
            fail_msg("%s: %s", rows[i].text, rc == 0 ? "accepted" : err.message);
        if (rc != 0 && (err.code != ERR_INVALID || strstr(err.message, rows[i].says) == NULL))
            fail_msg("%s: %s: %s; expected ...%s...", rows[i].text, err_code_name(err.code),
                     err.message, rows[i].says);
    }
}

static void a_header_without_end_is_not_read(void **state)
{
    (void)state;
    struct signed_request q;
    struct err err = {0};
    char *long_one = xmalloc(SIGNED_REQUEST_BYTES_MAX + 2);
    memset(long_one, ' ', SIGNED_REQUEST_BYTES_MAX + 1);
    long_one[SIGNED_REQUEST_BYTES_MAX + 1] = '\0';
    assert_int_equal(signed_request_parse(&q, long_one, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.message, "2049 bytes"));
    free(long_one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_reads_back_as_it_was_written),
        cmocka_unit_test(another_form_is_refused_by_name),
        cmocka_unit_test(a_header_without_end_is_not_read),
    };
    return cmocka_run_group_tests_name("signed_request", tests, NULL, NULL);
}
