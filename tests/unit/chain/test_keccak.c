/* Keccak-256, addresses and their text, contract addresses. */
#include "tests/support.h"

#include "chain/keccak.h"
#include "chain/types.h"
#include "node/base/hex.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct buf bytes_of(const json_t *text)
{
    const char *hex = json_string_value(text);
    struct buf b = BUF_INIT;
    size_t n = strlen(hex) / 2 - 1;
    buf_reserve(&b, n);
    assert_int_equal(hex_decode(b.data, n, hex), 0);
    b.len = n;
    return b;
}

static void keccak256_agrees_with_the_published_vectors(void **state)
{
    (void)state;
    json_t *vectors = fixture_json("tests/vectors/ethers-v6/hashes.json.gz"), *v;
    size_t i;
    json_array_foreach(vectors, i, v)
    {
        struct buf data = bytes_of(json_object_get(v, "data"));
        char got[67];
        hex_encode_0x(got, keccak256(data.data, data.len).bytes, 32);
        assert_string_equal(got, json_string_value(json_object_get(v, "keccak256")));
        buf_release(&data);
    }
    printf("note: %zu Keccak-256 digests\n", i);
    json_decref(vectors);
}

static void keccak256_in_pieces_is_keccak256_at_once(void **state)
{
    (void)state;
    uint8_t data[1000];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(i * 7);
    for (size_t cut = 0; cut < 300; cut++) {
        struct keccak k;
        keccak_init(&k);
        keccak_update(&k, data, cut);
        keccak_update(&k, data + cut, cut / 3);
        keccak_update(&k, data + cut + cut / 3, sizeof data - cut - cut / 3);
        struct keccak_digest pieces = keccak_final(&k), whole = keccak256(data, sizeof data);
        assert_memory_equal(pieces.bytes, whole.bytes, 32);
    }
}

static void an_address_has_its_eip_55_form(void **state)
{
    (void)state;
    json_t *vectors = fixture_json("tests/vectors/ethers-v6/accounts.json.gz"), *v;
    size_t i;
    json_array_foreach(vectors, i, v)
    {
        const char *want = json_string_value(json_object_get(v, "address"));
        struct address a;
        char got[ADDRESS_TEXT_BYTES];
        assert_int_equal(address_parse(&a, want), 0);
        assert_string_equal(address_format(got, a), want);
        /* one letter in the wrong case */
        char wrong[ADDRESS_TEXT_BYTES];
        strcpy(wrong, want);
        char *letter = strpbrk(wrong + 2, "abcdefABCDEF");
        bool other_letters = letter != NULL && strpbrk(letter + 1, "abcdefABCDEF") != NULL;
        if (other_letters) {
            *letter = (char)(*letter ^ 0x20);
            bool has_lower = strpbrk(wrong + 2, "abcdef"), has_upper = strpbrk(wrong + 2, "ABCDEF");
            assert_int_equal(address_parse(&a, wrong), has_lower && has_upper ? -1 : 0);
        }
    }
    printf("note: %zu EIP-55 addresses\n", i);
    json_decref(vectors);
}

static void what_is_no_address_is_refused(void **state)
{
    (void)state;
    static const char *const rows[] = {
        "",
        "0x",
        "1234567890123456789012345678901234567890",
        "0x123456789012345678901234567890123456789",
        "0x12345678901234567890123456789012345678901",
        "0x123456789012345678901234567890123456789g",
        "0X1234567890123456789012345678901234567890",
    };
    struct address a;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (address_parse(&a, rows[i]) == 0)
            fail_msg("\"%s\" was taken for an address", rows[i]);
    }
}

static void a_contract_lies_where_its_creator_and_nonce_say(void **state)
{
    (void)state;
    size_t n = 0, i, k;
    json_t *vectors = fixture_json("tests/vectors/ethers-v6/create.json.gz"), *v;
    json_array_foreach(vectors, i, v)
    {
        struct address sender, want;
        assert_int_equal(address_parse(&sender, json_string_value(json_object_get(v, "sender"))),
                         0);
        json_t *row;
        json_array_foreach(json_object_get(v, "creates"), k, row)
        {
            uint64_t nonce = (uint64_t)json_integer_value(json_object_get(row, "nonce"));
            assert_int_equal(
                address_parse(&want, json_string_value(json_object_get(row, "address"))), 0);
            assert_true(address_eq(address_create(sender, nonce), want));
            n++;
        }
    }
    json_decref(vectors);
    vectors = fixture_json("tests/vectors/ethers-v6/create2.json.gz");
    json_array_foreach(vectors, i, v)
    {
        struct address sender, want;
        assert_int_equal(address_parse(&sender, json_string_value(json_object_get(v, "sender"))),
                         0);
        json_t *row;
        json_array_foreach(json_object_get(v, "creates"), k, row)
        {
            uint8_t salt[32];
            assert_int_equal(hex_decode(salt, 32, json_string_value(json_object_get(row, "salt"))),
                             0);
            struct buf code = bytes_of(json_object_get(row, "initCode"));
            struct keccak_digest hash = keccak256(code.data, code.len);
            buf_release(&code);
            assert_int_equal(
                address_parse(&want, json_string_value(json_object_get(row, "address"))), 0);
            assert_true(address_eq(address_create2(sender, salt, hash.bytes), want));
            n++;
        }
    }
    json_decref(vectors);
    assert_true(n >= 32);
    printf("note: %zu contract addresses\n", n);
}

static void a_signature_keeps_its_parity_through_bytes(void **state)
{
    (void)state;
    struct signature s, back;
    memset(&s, 7, sizeof s);
    uint8_t bytes[SIGNATURE_BYTES];
    for (uint8_t parity = 0; parity < 2; parity++) {
        s.y_parity = parity;
        signature_to_bytes(bytes, &s);
        assert_int_equal(bytes[64], 27 + parity);
        assert_int_equal(signature_from_bytes(&back, bytes), 0);
        assert_memory_equal(&s, &back, sizeof s);
    }
    bytes[64] = 29;
    assert_int_equal(signature_from_bytes(&back, bytes), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keccak256_agrees_with_the_published_vectors),
        cmocka_unit_test(keccak256_in_pieces_is_keccak256_at_once),
        cmocka_unit_test(an_address_has_its_eip_55_form),
        cmocka_unit_test(what_is_no_address_is_refused),
        cmocka_unit_test(a_contract_lies_where_its_creator_and_nonce_say),
        cmocka_unit_test(a_signature_keeps_its_parity_through_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
