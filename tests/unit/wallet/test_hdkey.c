/* BIP-32 against its own test vectors 1 to 5, and Base58Check below it. */
#include "tests/unit/wallet/vector.h"

#include "wallet/hdkey.h"

#define VECTORS "tests/vectors/bip32/bip32-vectors.json"

static void every_valid_node_is_derived_written_and_read(void **state)
{
    (void)state;
    json_t *all = fixture_json(VECTORS);
    size_t i;
    const json_t *v;
    json_array_foreach(json_object_get(all, "valid"), i, v)
    {
        struct err err = {0};
        char where[200], xpub[BASE58_TEXT_MAX_BYTES];
        const char *xprv = vector_str(v, "xprv"), *path = vector_str(v, "path");
        snprintf(where, sizeof where, "vector %u, %s", vector_num(v, "vector"), path);
        struct secret *seed = vector_secret(vector_str(v, "seed"));
        struct secret *master = hdkey_master(seed, &err);
        struct secret *node = hdkey_derive(master, path, &err);
        if (node == NULL)
            fail_msg("%s: %s", where, err.message);
        struct secret *text = hdkey_xprv(node), *read = hdkey_from_xprv(text, &err);
        assert_ok(hdkey_xpub(xpub, node, &err), err);
        vector_expect(text, xprv, strlen(xprv), where, &err);
        if (strcmp(xpub, vector_str(v, "xpub")) != 0)
            fail_msg("%s: xpub is %s", where, xpub);
        vector_expect(read, secret_reveal(node), HDKEY_BYTES, where, &err);
        secret_conceal(node);
        uint8_t public_node[HDKEY_BYTES];
        assert_ok(hdkey_from_xpub(public_node, xpub, &err), err);
        secret_free(node);
        secret_free(master);
        secret_free(seed);
    }
    printf("note: BIP-32 valid nodes: %zu\n", i);
    assert_int_equal(i, 17);
    json_decref(all);
}

static void every_invalid_key_is_refused_as_private_and_as_public(void **state)
{
    (void)state;
    json_t *all = fixture_json(VECTORS);
    size_t i;
    const json_t *v;
    json_array_foreach(json_object_get(all, "invalid"), i, v)
    {
        struct err err = {0};
        uint8_t node[HDKEY_BYTES];
        const char *key = vector_str(v, "key");
        struct secret *text = vector_secret_text(key);
        if (hdkey_from_xprv(text, &err) != NULL || err.code != ERR_INVALID)
            fail_msg("accepted as private (%s): %s", vector_str(v, "why"), key);
        err = (struct err){0};
        if (hdkey_from_xpub(node, key, &err) == 0 || err.code != ERR_INVALID)
            fail_msg("accepted as public (%s): %s", vector_str(v, "why"), key);
        secret_free(text);
    }
    printf("note: BIP-32 invalid keys refused: %zu\n", i);
    assert_int_equal(i, 16);
    json_decref(all);
}

/* Which rule refuses which invalid key: a refusal for another reason would hide a missing rule. */
static void an_invalid_key_is_refused_for_its_own_reason(void **state)
{
    (void)state;
    static const struct {
        const char *why, *says;
    } table[] = {
        {"pubkey version", "public key"}, {"prvkey version", "private key"},
        {"invalid pubkey", "public key"}, {"invalid prvkey", "private key"},
        {"private key", "private key"},   {"zero depth", "master key"},
        {"unknown extended", "version"},  {"checksum", "checksum"},
    };
    json_t *all = fixture_json(VECTORS);
    size_t i, n_matched = 0;
    const json_t *v;
    json_array_foreach(json_object_get(all, "invalid"), i, v)
    {
        const char *key = vector_str(v, "key"), *why = vector_str(v, "why");
        struct err err = {0};
        uint8_t node[HDKEY_BYTES];
        if (strncmp(key, "xpub", 4) == 0) {
            assert_int_equal(hdkey_from_xpub(node, key, &err), -1);
        } else {
            struct secret *text = vector_secret_text(key);
            assert_null(hdkey_from_xprv(text, &err));
            secret_free(text);
        }
        for (size_t k = 0; k < COUNT(table); k++) {
            if (strstr(why, table[k].why) == NULL)
                continue;
            if (strstr(err.message, table[k].says) == NULL)
                fail_msg("%s (%s): refused because \"%s\"", key, why, err.message);
            n_matched++;
            break;
        }
    }
    assert_int_equal(n_matched, 16);
    json_decref(all);
}

static void paths_are_read_strictly(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "44'",
        "/",
        "m/",
        "m//0",
        "n/0",
        "m/0/",
        "m/x",
        "m/-1",
        "m/0''",
        "m/0'h",
        "m/2147483648",
        "m/4294967296",
        "m/99999999999999999999",
        "m/0 ",
        " m/0",
        "m/0'/",
        "M/0",
        "m/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0",
    };
    static const char *const same[] = {"m/44'/60'/0'/0/0", "m/44h/60H/0'/0/0",
                                       "m/044'/060'/0h/00/0"};
    struct err err = {0};
    struct secret *seed = vector_secret("000102030405060708090a0b0c0d0e0f");
    struct secret *master = hdkey_master(seed, &err);
    for (size_t i = 0; i < COUNT(bad); i++) {
        err = (struct err){0};
        if (hdkey_derive(master, bad[i], &err) != NULL || err.code != ERR_INVALID)
            fail_msg("path \"%s\" was accepted", bad[i]);
    }
    struct secret *first = hdkey_derive(master, same[0], &err);
    for (size_t i = 0; i < COUNT(same); i++)
        vector_expect(hdkey_derive(master, same[i], &err), secret_reveal(first), HDKEY_BYTES,
                      same[i], &err);
    for (size_t i = 0; i < COUNT(same); i++)
        secret_conceal(first);
    assert_int_equal(hdkey_depth(first), 5);
    struct secret *deep = hdkey_derive(master, "m/2147483647'/0/0/0/0/0/0/0/0/0/0/0/0/0/0/0", &err);
    assert_int_equal(hdkey_depth(deep), 16);
    secret_free(deep);
    secret_free(first);
    secret_free(master);
    secret_free(seed);
}

static void depth_ends_at_255(void **state)
{
    (void)state;
    struct err err = {0};
    struct secret *seed = vector_secret("000102030405060708090a0b0c0d0e0f");
    struct secret *node = hdkey_master(seed, &err);
    for (unsigned depth = 1; depth <= 255; depth++) {
        struct secret *child = hdkey_child(node, 0, &err);
        assert_non_null(child);
        secret_free(node);
        node = child;
        assert_int_equal(hdkey_depth(node), depth);
    }
    assert_null(hdkey_child(node, 0, &err));
    assert_int_equal(err.code, ERR_INVALID);
    secret_free(node);
    secret_free(seed);
}

static void a_seed_has_16_to_64_bytes(void **state)
{
    (void)state;
    static const uint8_t bytes[80] = {1};
    for (size_t n = 1; n <= sizeof bytes; n++) {
        struct err err = {0};
        struct secret *seed = secret_from_bytes(bytes, n), *master = hdkey_master(seed, &err);
        assert_int_equal(master != NULL, n >= 16 && n <= 64);
        secret_free(master);
        secret_free(seed);
    }
}

static void base58check_is_its_own_inverse_and_has_one_form(void **state)
{
    (void)state;
    struct err err = {0};
    for (size_t n = 0; n <= BASE58_PAYLOAD_MAX_BYTES; n++) {
        uint8_t payload[BASE58_PAYLOAD_MAX_BYTES], back[BASE58_PAYLOAD_MAX_BYTES];
        char text[BASE58_TEXT_MAX_BYTES];
        /* leading zero bytes, none at all, and the largest number there is */
        for (int kind = 0; kind < 3; kind++) {
            for (size_t i = 0; i < n; i++)
                payload[i] = kind == 2 ? 0xff : kind == 1 && i < n / 2 ? 0 : (uint8_t)(i * 37 + 1);
            size_t len = base58check_encode(text, payload, n);
            assert_int_equal(len, strlen(text));
            assert_ok(base58check_decode(back, n, text, len, &err), err);
            assert_memory_equal(back, payload, n);
            /* a leading 1 more or less is another number of bytes */
            char longer[BASE58_TEXT_MAX_BYTES + 1];
            snprintf(longer, sizeof longer, "1%s", text);
            assert_int_equal(base58check_decode(back, n, longer, len + 1, &err), -1);
            if (text[0] == '1')
                assert_int_equal(base58check_decode(back, n, text + 1, len - 1, &err), -1);
            /* every single character counts */
            for (size_t i = 0; i < len; i += 7) {
                char keep = text[i];
                text[i] = keep == '2' ? '3' : '2';
                assert_int_equal(base58check_decode(back, n, text, len, &err), -1);
                text[i] = "0OIl +/"[i % 7];
                assert_int_equal(base58check_decode(back, n, text, len, &err), -1);
                text[i] = keep;
            }
        }
    }
    uint8_t out[4];
    assert_int_equal(base58check_decode(out, 0, "", 0, &err), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_valid_node_is_derived_written_and_read),
        cmocka_unit_test(every_invalid_key_is_refused_as_private_and_as_public),
        cmocka_unit_test(an_invalid_key_is_refused_for_its_own_reason),
        cmocka_unit_test(paths_are_read_strictly),
        cmocka_unit_test(depth_ends_at_255),
        cmocka_unit_test(a_seed_has_16_to_64_bytes),
        cmocka_unit_test(base58check_is_its_own_inverse_and_has_one_form),
    };
    return cmocka_run_group_tests_name("hdkey", tests, NULL, NULL);
}
