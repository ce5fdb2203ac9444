/* The JSON of a payer's Voucher: what is written reads back, what has another form is refused by
 * name. What a node takes is test_voucher.c's, and the end-to-end test's. */
#include "tests/support.h"

#include "node/base/err.h"
#include "node/signed_voucher.h"

#include <string.h>

#define HEX_64  "1111111111111111111111111111111111111111111111111111111111111111"
#define PAYER   "\"payer\":\"0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC\","
#define OTHER   "\"operator\":\"0x70997970c51812dc3a010c7d01b50e0d17dc79c8\","
#define CHANNEL "\"channel\":\"0x" HEX_64 "\","
#define TIME    "\"timestampMs\":9007199254740991,"
#define VALUE   "\"valueAggregate\":\"340282366920938463463374607431768211455\","
#define LAST    "\"lastReceiptHash\":\"0x" HEX_64 "\","
#define SIGNED  "\"signature\":\"0x" HEX_64 HEX_64 "1c\""

static int parse(struct signed_voucher *v, const char *text, struct err *err)
{
    return signed_voucher_parse(v, text, strlen(text), err);
}

static void a_voucher_reads_back_as_it_was_written(void **state)
{
    (void)state;
    struct signed_voucher v, again;
    struct buf text = BUF_INIT;
    struct err err = {0};
    assert_ok(parse(&v, "{" PAYER OTHER CHANNEL TIME VALUE LAST SIGNED "}", &err), err);
    assert_int_equal(v.voucher.payer.bytes[0], 0x3c);
    assert_int_equal(v.voucher.operator_address.bytes[19], 0xc8);
    assert_true(v.voucher.timestamp_ms == ((uint64_t)1 << 53) - 1);
    assert_int_equal(amount_cmp(v.voucher.value_aggregate, AMOUNT_MAX), 0);
    assert_int_equal(v.signature.y_parity, 1);
    signed_voucher_write(&text, &v);
    assert_true(text.len < SIGNED_VOUCHER_BYTES_MAX);
    assert_ok(parse(&again, buf_cstr(&text), &err), err);
    assert_memory_equal(&again.voucher, &v.voucher, sizeof v.voucher);
    buf_release(&text);
}

static void another_form_is_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"", "empty"},
        {"[]", "not a JSON object"},
        {"{}", "no \"payer\""},
        {"{" PAYER OTHER CHANNEL TIME VALUE LAST SIGNED "}{}", "the voucher"},
        {"{" PAYER PAYER OTHER CHANNEL TIME VALUE LAST SIGNED "}", "duplicate"},
        {"{" PAYER OTHER CHANNEL TIME VALUE LAST "\"epoch\":0," SIGNED "}", "members"},
        {"{" OTHER CHANNEL TIME VALUE LAST SIGNED "}", "no \"payer\""},
        {"{" PAYER CHANNEL TIME VALUE LAST SIGNED "}", "no \"operator\""},
        {"{" PAYER OTHER TIME VALUE LAST SIGNED "}", "no \"channel\""},
        {"{" PAYER OTHER CHANNEL VALUE LAST SIGNED "}", "no \"timestampMs\""},
        {"{" PAYER OTHER CHANNEL TIME LAST SIGNED "}", "no \"valueAggregate\""},
        {"{" PAYER OTHER CHANNEL TIME VALUE SIGNED "}", "no \"lastReceiptHash\""},
        {"{" PAYER OTHER CHANNEL TIME VALUE "\"lastReceiptHash\":\"0x\"}", "\"lastReceiptHash\""},
        {"{" PAYER OTHER CHANNEL "\"timestampMs\":1e3," VALUE LAST SIGNED "}", "\"timestampMs\""},
        {"{" PAYER OTHER CHANNEL TIME "\"valueAggregate\":1," LAST SIGNED "}",
         "\"valueAggregate\" is not"},
        {"{" PAYER OTHER CHANNEL TIME "\"valueAggregate\":\"-1\"," LAST SIGNED "}",
         "\"valueAggregate\" is not"},
        {"{" PAYER OTHER CHANNEL TIME VALUE LAST "\"signature\":\"0x" HEX_64 "1b\"}",
         "\"signature\" is not"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct signed_voucher v;
        struct err err = {0};
        if (parse(&v, rows[i].text, &err) == 0)
            fail_msg("%s: accepted", rows[i].text);
        if (err.code != ERR_INVALID || strstr(err.message, rows[i].says) == NULL)
            fail_msg("%s: %s: %s; expected ...%s...", rows[i].text, err_code_name(err.code),
                     err.message, rows[i].says);
    }
}

static void a_body_without_end_is_not_read(void **state)
{
    (void)state;
    struct signed_voucher v;
    struct err err = {0};
    char text[SIGNED_VOUCHER_BYTES_MAX + 1];
    memset(text, ' ', sizeof text);
    assert_int_equal(signed_voucher_parse(&v, text, sizeof text, &err), -1);
    assert_non_null(strstr(err.message, "2049 bytes"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_voucher_reads_back_as_it_was_written),
        cmocka_unit_test(another_form_is_refused_by_name),
        cmocka_unit_test(a_body_without_end_is_not_read),
    };
    return cmocka_run_group_tests_name("signed_voucher", tests, NULL, NULL);
}
