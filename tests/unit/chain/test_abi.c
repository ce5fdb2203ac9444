/* The contract ABI, both ways. */
#include "tests/support.h"

#include "chain/abi.h"
#include "chain/embedded.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Texts of addresses and bytes may differ in case; all else is equal to the letter. */
static bool same_value(const json_t *a, const json_t *b)
{
    if (json_is_array(a) && json_is_array(b)) {
        if (json_array_size(a) != json_array_size(b))
            return false;
        for (size_t i = 0; i < json_array_size(a); i++) {
            if (!same_value(json_array_get(a, i), json_array_get(b, i)))
                return false;
        }
        return true;
    }
    if (json_is_string(a) && json_is_string(b) && strncmp(json_string_value(a), "0x", 2) == 0)
        return strcasecmp(json_string_value(a), json_string_value(b)) == 0;
    return json_equal(a, b);
}

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

static void check(const char *name, const char *type, json_t *value, const char *encoded,
                  bool decode_equal)
{
    struct err e = {0};
    struct buf got = BUF_INIT, want = bytes_of(encoded), again = BUF_INIT;
    assert_ok(abi_encode(&got, type, value, &e), e);
    if (got.len != want.len || memcmp(got.data, want.data, want.len) != 0)
        fail_msg("%s: %s encoded to other bytes", name, type);
    json_t *back = abi_decode(type, want.data, want.len, &e);
    if (back == NULL)
        fail_msg("%s: %s was not decoded: %s", name, type, e.message);
    if (decode_equal && !same_value(back, value))
        fail_msg("%s: %s decoded to another value", name, type);
    assert_ok(abi_encode(&again, type, back, &e), e);
    assert_int_equal(again.len, want.len);
    assert_memory_equal(again.data, want.data, want.len);
    json_decref(back);
    buf_release(&got);
    buf_release(&want);
    buf_release(&again);
}

static void public_vectors_encode_and_decode(void **state)
{
    (void)state;
    json_t *file = fixture_json("tests/vectors/ethers-v6/abi.json.gz"), *v;
    size_t i;
    json_array_foreach(file, i, v)
    {
        char *type = xasprintf("(%s)", json_string_value(json_object_get(v, "type")));
        json_t *value = json_pack("[O]", json_object_get(v, "value"));
        check(json_string_value(json_object_get(v, "name")), type, value,
              json_string_value(json_object_get(v, "encoded")), true);
        json_decref(value);
        free(type);
    }
    printf("note: %zu ABI values encoded and decoded\n", i);
    json_decref(file);
}

static void the_specifications_examples_encode(void **state)
{
    (void)state;
    const char *name;
    json_t *file = fixture_json("tests/vectors/ethereum-tests/ABITests_basic_abi_tests.json"), *v;
    size_t n = 0;
    json_object_foreach(file, name, v)
    {
        struct buf type = BUF_INIT;
        json_t *args = json_deep_copy(json_object_get(v, "args")), *t;
        size_t i;
        json_array_foreach(json_object_get(v, "types"), i, t)
        {
            buf_appendf(&type, "%c%s", i == 0 ? '(' : ',', json_string_value(t));
            /* These vectors write bytes as their characters. */
            if (strncmp(json_string_value(t), "bytes", 5) == 0) {
                const char *text = json_string_value(json_array_get(args, i));
                char *hex = xmalloc(2 * strlen(text) + 3);
                hex_encode_0x(hex, (const uint8_t *)text, strlen(text));
                json_array_set_new(args, i, json_string(hex));
                free(hex);
            }
        }
        buf_append_byte(&type, ')');
        check(name, buf_cstr(&type), args, json_string_value(json_object_get(v, "result")), false);
        json_decref(args);
        buf_release(&type);
        n++;
    }
    printf("note: %zu examples of the ABI specification\n", n);
    json_decref(file);
}

/* Words from a text: "20 1 <ff" is 0x20 and 1, right-aligned, and ff, left-aligned. */
static struct buf words_of(const char *text)
{
    struct buf b = BUF_INIT;
    while (*text != '\0') {
        bool left = *text == '<';
        text += left;
        size_t n = strcspn(text, " ");
        char hex[65];
        memset(hex, '0', 64);
        hex[64] = '\0';
        memcpy(left ? hex : hex + 64 - n, text, n);
        uint8_t word[32];
        assert_int_equal(hex_decode(word, 32, hex), 0);
        buf_append(&b, word, 32);
        text += n + (text[n] == ' ');
    }
    return b;
}

#define FULL "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"

static void hostile_data_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *why, *type, *words;
        size_t cut; /* bytes taken off the end */
    } rows[] = {
        {"short word", "(uint256)", "0", 31},
        {"no bytes at all", "(uint256)", "", 0},
        {"bytes left over", "(uint256)", "1 2", 0},
        {"dirty bool", "(bool)", "2", 0},
        {"dirty uint8", "(uint8)", "100", 0},
        {"int8 that is not sign-extended", "(int8)", "80", 0},
        {"dirty address", "(address)", "<01", 0},
        {"dirty bytes1", "(bytes1)", "1", 0},
        {"offset beyond the end", "(bytes)", "60 0", 0},
        {"offset that points back", "(bytes)", "0 0", 0},
        {"offset that leaves a gap", "(bytes)", "40 0 0", 0},
        {"two members at one offset", "(bytes,bytes)", "40 40 0", 0},
        {"huge offset", "(bytes)", FULL, 0},
        {"huge length", "(bytes)", "20 " FULL, 0},
        {"length beyond the end", "(bytes)", "20 21 0", 0},
        {"padding not zero", "(bytes)", "20 1 1", 0},
        {"padding cut off", "(bytes)", "20 1 <01", 31},
        {"a million elements", "(uint256[])", "20 100000", 0},
        {"a million empty elements", "(()[])", "20 100000", 0},
        {"a million empty elements, in a fixed array", "(()[1048576])", "", 0},
        {"a string that is not UTF-8", "(string)", "20 1 <ff", 0},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct buf b = words_of(rows[i].words);
        struct err e = {0};
        json_t *value = abi_decode(rows[i].type, b.data, b.len - rows[i].cut, &e);
        if (value != NULL)
            fail_msg("%s was accepted", rows[i].why);
        assert_int_equal(e.code, ERR_CORRUPT);
        buf_release(&b);
    }
}

static void what_is_no_type_is_refused_by_name(void **state)
{
    (void)state;
    static const char *const rows[] = {
        "",
        "uint7",
        "uint264",
        "int0",
        "bytes0",
        "bytes33",
        "(uint256",
        "uint256)",
        "uint256[",
        "[]",
        "uint256[-1]",
        "(,)",
        "uint08",
        "address payable",
        "uint256[99999999]",
        "uint256[1048576][1048576]",
    };
    json_t *value = json_array();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct buf out = BUF_INIT;
        struct err e = {0};
        if (abi_encode(&out, rows[i], value, &e) == 0)
            fail_msg("type \"%s\" was accepted", rows[i]);
        assert_int_equal(e.code, ERR_INVALID);
        buf_release(&out);
    }
    json_decref(value);
    char deep[200];
    memset(deep, '(', 100);
    memset(deep + 100, ')', 99);
    deep[199] = '\0';
    struct err e = {0};
    assert_null(abi_decode(deep, "", 0, &e));
}

static void values_that_do_not_fit_say_where(void **state)
{
    (void)state;
    static const struct {
        const char *type, *json, *where;
    } rows[] = {
        {"(uint8,uint8)", "[1,256]", "[1]: 256 does not fit uint8"},
        {"(int8)", "[-129]", "[0]: -129 does not fit int8"},
        {"(uint256)", "[-1]", "does not fit"},
        {"(uint256)", "[\"1x\"]", "no 256-bit number"},
        {"((address)[])", "[[[\"0x12\"]]]", "[0]: [0]: [0]: expected an address"},
        {"(bool)", "[1]", "expected true or false"},
        {"(bytes)", "[\"0x1\"]", "even number"},
        {"(bytes4)", "[\"0x010203\"]", "8 digits"},
        {"(uint8[2])", "[[1]]", "expected 2 values"},
        {"(uint8[2])", "[1]", "expected an array"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        json_t *value = json_loads(rows[i].json, 0, NULL);
        struct buf out = BUF_INIT;
        struct err e = {0};
        assert_int_equal(abi_encode(&out, rows[i].type, value, &e), -1);
        if (strstr(e.message, rows[i].where) == NULL)
            fail_msg("%s as %s: expected \"%s\", got \"%s\"", rows[i].json, rows[i].type,
                     rows[i].where, e.message);
        assert_int_equal(out.len, 0);
        buf_release(&out);
        json_decref(value);
    }
}

static void selectors_come_from_the_abi(void **state)
{
    (void)state;
    uint8_t selector[4];
    abi_selector(selector, "transfer(address,uint256)");
    assert_memory_equal(selector, "\xa9\x05\x9c\xbb", 4);
    json_t *entry;
    size_t i, n = 0;
    json_array_foreach(json_object_get(embedded_contract("AttributionLedger"), "abi"), i, entry)
    {
        struct err e = {0};
        struct buf s = BUF_INIT;
        if (json_object_get(entry, "name") == NULL)
            continue; /* the constructor */
        assert_ok(abi_signature_of(&s, entry, &e), e);
        if (strncmp(buf_cstr(&s), "submit(", 7) == 0) {
            assert_string_equal(buf_cstr(&s),
                                "submit((address,uint64,uint32,bytes32,bytes32,uint128,"
                                "uint64,uint64,bytes32,bytes32),bytes)");
            n++;
        }
        buf_release(&s);
    }
    assert_int_equal(n, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(public_vectors_encode_and_decode),
        cmocka_unit_test(the_specifications_examples_encode),
        cmocka_unit_test(hostile_data_is_refused),
        cmocka_unit_test(what_is_no_type_is_refused_by_name),
        cmocka_unit_test(values_that_do_not_fit_say_where),
        cmocka_unit_test(selectors_come_from_the_abi),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
