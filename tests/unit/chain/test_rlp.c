/* RLP and u256. */
#include "tests/support.h"

#include "chain/rlp.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct buf bytes_of(const char *hex)
{
    struct buf b = BUF_INIT;
    if (strncmp(hex, "0x", 2) == 0)
        hex += 2;
    size_t n = strlen(hex) / 2;
    buf_reserve(&b, n);
    assert_int_equal(hex_decode(b.data, n, hex), 0);
    b.len = n;
    return b;
}

/* in: a list, a string ("#123" is a number; 0x text is bytes when as_hex), an integer. */
static void encode(struct buf *out, const json_t *in, bool as_hex)
{
    if (json_is_array(in)) {
        struct buf payload = BUF_INIT;
        size_t i;
        json_t *item;
        json_array_foreach(in, i, item) encode(&payload, item, as_hex);
        rlp_list(out, &payload);
        buf_release(&payload);
    } else if (json_is_integer(in)) {
        rlp_u64(out, (uint64_t)json_integer_value(in));
    } else if (as_hex) {
        struct buf b = bytes_of(json_string_value(in));
        rlp_string(out, b.data, b.len);
        buf_release(&b);
    } else if (json_string_value(in)[0] == '#') {
        struct u256 v;
        if (u256_parse(&v, json_string_value(in) + 1) == 0) {
            rlp_u256(out, v);
            return;
        }
        /* the vectors have one number of 257 bits: 2^256 */
        uint8_t big[33] = {1};
        assert_string_equal(json_string_value(in) + 1,
                            "115792089237316195423570985008687907853269984665640564039457584007913"
                            "129639936");
        rlp_string(out, big, sizeof big);
    } else {
        rlp_string(out, json_string_value(in), json_string_length(in));
    }
}

/* Decodes and encodes again. */
static void reencode(struct buf *out, const struct rlp_item *item)
{
    if (!item->is_list) {
        rlp_string(out, item->payload, item->n_bytes);
        return;
    }
    struct buf payload = BUF_INIT;
    struct rlp_reader r = rlp_items(item);
    struct rlp_item member;
    struct err e = {0};
    int more;
    while ((more = rlp_next(&r, &member, &e)) == 1)
        reencode(&payload, &member);
    assert_int_equal(more, 0);
    rlp_list(out, &payload);
    buf_release(&payload);
}

static void check_valid(const char *name, const json_t *in, const char *out, bool as_hex)
{
    struct buf want = bytes_of(out), got = BUF_INIT, again = BUF_INIT;
    struct err e = {0};
    encode(&got, in, as_hex);
    if (got.len != want.len || memcmp(got.data, want.data, want.len) != 0)
        fail_msg("%s: encoded to %zu bytes, expected %s", name, got.len, out);
    struct rlp_item item;
    assert_ok(rlp_decode(&item, want.data, want.len, &e), e);
    assert_ok(rlp_check(want.data, want.len, &e), e);
    reencode(&again, &item);
    assert_int_equal(again.len, want.len);
    assert_memory_equal(again.data, want.data, want.len);
    buf_release(&want);
    buf_release(&got);
    buf_release(&again);
}

static void valid_rlp_encodes_and_decodes(void **state)
{
    (void)state;
    size_t n = 0, i;
    const char *name;
    json_t *v, *file = fixture_json("tests/vectors/ethereum-tests/RLPTests_rlptest.json");
    json_object_foreach(file, name, v)
    {
        check_valid(name, json_object_get(v, "in"), json_string_value(json_object_get(v, "out")),
                    false);
        n++;
    }
    json_decref(file);
    file = fixture_json("tests/vectors/ethers-v6/rlp.json.gz");
    json_array_foreach(file, i, v)
    {
        check_valid(json_string_value(json_object_get(v, "name")), json_object_get(v, "decoded"),
                    json_string_value(json_object_get(v, "encoded")), true);
        n++;
    }
    json_decref(file);
    printf("note: %zu valid RLP texts\n", n);
}

static void invalid_rlp_is_refused(void **state)
{
    (void)state;
    size_t n = 0;
    const char *name;
    json_t *v, *file = fixture_json("tests/vectors/ethereum-tests/RLPTests_invalidRLPTest.json");
    json_object_foreach(file, name, v)
    {
        struct buf b = bytes_of(json_string_value(json_object_get(v, "out")));
        struct err e = {0};
        if (rlp_check(b.data, b.len, &e) == 0)
            fail_msg("%s was accepted", name);
        assert_int_equal(e.code, ERR_INVALID);
        buf_release(&b);
        n++;
    }
    json_decref(file);
    printf("note: %zu invalid RLP texts refused\n", n);
}

static void random_bytes_are_read_within_their_bounds(void **state)
{
    (void)state;
    const char *name;
    json_t *v,
        *file = fixture_json("tests/vectors/ethereum-tests/RLPTests_RandomRLPTests_example.json");
    json_object_foreach(file, name, v)
    {
        struct buf b = bytes_of(json_string_value(json_object_get(v, "out")));
        struct err e = {0};
        assert_ok(rlp_check(b.data, b.len, &e), e);
        buf_release(&b);
    }
    json_decref(file);
    uint32_t seed = 1;
    for (int round = 0; round < 20000; round++) {
        uint8_t *bytes = malloc(24); /* the end of the allocation is the sanitizer's */
        for (int i = 0; i < 24; i++) {
            seed = seed * 1664525 + 1013904223;
            bytes[i] = (uint8_t)(seed >> (i % 3 == 0 ? 24 : 26));
            if (i % 5 == 0)
                bytes[i] |= 0xb0;
        }
        struct err e = {0};
        if (rlp_check(bytes, 24, &e) != 0)
            assert_int_equal(e.code, ERR_INVALID);
        free(bytes);
    }
}

static void deep_nesting_is_refused_and_not_followed(void **state)
{
    (void)state;
    struct buf b = BUF_INIT;
    for (int i = 0; i < 3000; i++) {
        struct buf outer = BUF_INIT;
        rlp_list(&outer, &b);
        buf_release(&b);
        b = outer;
    }
    struct err e = {0};
    assert_int_equal(rlp_check(b.data, b.len, &e), -1);
    assert_non_null(strstr(e.message, "deeper"));
    buf_release(&b);
}

static void u256_says_when_it_overflows(void **state)
{
    (void)state;
    struct u256 max, v = U256_ZERO, one = u256_of(1);
    static const char *const max_text =
        "115792089237316195423570985008687907853269984665640564039457584007913129639935";
    assert_int_equal(u256_parse(&max, max_text), 0);
    assert_int_equal(u256_bits(max), 256);
    char text[U256_TEXT_BYTES], hex[67];
    assert_string_equal(u256_format(text, max), max_text);
    assert_int_equal(u256_add(&v, max, one), -1);
    assert_int_equal(u256_mul(&v, max, 2), -1);
    assert_int_equal(u256_sub(&v, one, max), -1);
    assert_true(u256_is_zero(v));
    assert_int_equal(u256_sub(&v, max, one), 0);
    assert_int_equal(u256_add(&v, v, one), 0);
    assert_int_equal(u256_cmp(v, max), 0);
    assert_int_equal(u256_parse(&v, "1157920892373161954235709850086879078532699846656405640394575"
                                    "84007913129639936"),
                     -1);
    assert_int_equal(u256_parse(&v, ""), -1);
    assert_int_equal(u256_parse(&v, "-1"), -1);
    assert_int_equal(u256_parse_hex(&v, "0x"), -1);
    assert_int_equal(u256_parse_hex(&v, "0x00ff"), 0);
    assert_string_equal(u256_format_hex(hex, v), "0xff");
    assert_string_equal(u256_format_hex(hex, U256_ZERO), "0x0");
    struct amount a;
    assert_int_equal(u256_to_amount(&a, max), -1);
    assert_int_equal(u256_to_amount(&a, u256_of_amount(AMOUNT_MAX)), 0);
    assert_int_equal(amount_cmp(a, AMOUNT_MAX), 0);
}

static void u256_divides_what_it_multiplies(void **state)
{
    (void)state;
    uint64_t seed = 42;
    for (int i = 0; i < 2000; i++) {
        struct u256 a = {{0}};
        for (int k = 0; k < 3; k++)
            a.limb[k] = seed = seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t factor = (seed >> 3) | 1, rest = 1;
        struct u256 product;
        assert_int_equal(u256_mul(&product, a, factor), 0);
        struct u256 back = u256_div(product, factor, &rest);
        assert_int_equal(rest, 0);
        assert_int_equal(u256_cmp(back, a), 0);
        uint8_t bytes[32];
        u256_to_bytes(bytes, product);
        assert_int_equal(u256_cmp(u256_from_bytes(bytes), product), 0);
        char text[U256_TEXT_BYTES];
        struct u256 read;
        assert_int_equal(u256_parse(&read, u256_format(text, product)), 0);
        assert_int_equal(u256_cmp(read, product), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(valid_rlp_encodes_and_decodes),
        cmocka_unit_test(invalid_rlp_is_refused),
        cmocka_unit_test(random_bytes_are_read_within_their_bounds),
        cmocka_unit_test(deep_nesting_is_refused_and_not_followed),
        cmocka_unit_test(u256_says_when_it_overflows),
        cmocka_unit_test(u256_divides_what_it_multiplies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
