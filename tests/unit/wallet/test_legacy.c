/* The algorithms that others' formats demand, against others' vectors: PBKDF2 and scrypt of ethers'
 * pbkdf.json (265 each), PBKDF2 of Wycheproof (118), AES-128-CTR of NIST SP 800-38A, RIPEMD-160 of
 * its authors. (ethers' hmac.json is left out: HMAC is libsodium's and has no function of ours.) */
#include "tests/unit/wallet/vector.h"

#include "wallet/legacy.h"

static void pbkdf2_and_scrypt_agree_with_ethers(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/ethers-v6/pbkdf.json.gz");
    struct buf password = BUF_INIT, salt = BUF_INIT, want = BUF_INIT, got = BUF_INIT;
    size_t i;
    const json_t *v;
    json_array_foreach(all, i, v)
    {
        const json_t *p = json_object_get(v, "pbkdf2"), *s = json_object_get(v, "scrypt");
        const char *hash = vector_str(p, "algorithm");
        struct err err;
        vector_bytes(&password, vector_str(v, "password"));
        vector_bytes(&salt, vector_str(v, "salt"));
        size_t n = vector_num(v, "dkLen");
        buf_reserve(&got, n);
        vector_bytes(&want, vector_str(p, "key"));
        assert_int_equal(want.len, n);
        enum legacy_hash h = strcmp(hash, "sha256") == 0 ? LEGACY_SHA256 : LEGACY_SHA512;
        assert_ok(legacy_pbkdf2(got.data, n, h, password.data, password.len, salt.data, salt.len,
                                vector_num(p, "iterations"), &err),
                  err);
        if (memcmp(got.data, want.data, n) != 0)
            fail_msg("PBKDF2 of %s differs", vector_str(v, "name"));
        vector_bytes(&want, vector_str(s, "key"));
        assert_ok(legacy_scrypt(got.data, n, password.data, password.len, salt.data, salt.len,
                                vector_num(s, "N"), vector_num(s, "r"), vector_num(s, "p"), &err),
                  err);
        if (memcmp(got.data, want.data, n) != 0)
            fail_msg("scrypt of %s differs", vector_str(v, "name"));
    }
    printf("note: ethers pbkdf: %zu PBKDF2 and %zu scrypt\n", i, i);
    assert_int_equal(i, 265);
    json_decref(all);
    buf_release(&password);
    buf_release(&salt);
    buf_release(&want);
    buf_release(&got);
}

static size_t wycheproof_pbkdf2(const char *path, enum legacy_hash hash)
{
    json_t *file = fixture_json(path);
    struct buf password = BUF_INIT, salt = BUF_INIT, want = BUF_INIT, got = BUF_INIT;
    size_t g, i, n_cases = 0;
    const json_t *group, *v;
    json_array_foreach(json_object_get(file, "testGroups"), g, group)
    {
        json_array_foreach(json_object_get(group, "tests"), i, v)
        {
            struct err err;
            vector_bytes(&password, vector_str(v, "password"));
            vector_bytes(&salt, vector_str(v, "salt"));
            vector_bytes(&want, vector_str(v, "dk"));
            buf_reserve(&got, want.len);
            assert_string_equal(vector_str(v, "result"), "valid");
            assert_ok(legacy_pbkdf2(got.data, want.len, hash, password.data, password.len,
                                    salt.data, salt.len, vector_num(v, "iterationCount"), &err),
                      err);
            if (memcmp(got.data, want.data, want.len) != 0)
                fail_msg("%s: case %u (%s) differs", path, vector_num(v, "tcId"),
                         vector_str(v, "comment"));
            n_cases++;
        }
    }
    json_decref(file);
    buf_release(&password);
    buf_release(&salt);
    buf_release(&want);
    buf_release(&got);
    return n_cases;
}

static void pbkdf2_agrees_with_wycheproof(void **state)
{
    (void)state;
    size_t n = wycheproof_pbkdf2("tests/vectors/wycheproof/pbkdf2_hmacsha256_test.json.gz",
                                 LEGACY_SHA256) +
               wycheproof_pbkdf2("tests/vectors/wycheproof/pbkdf2_hmacsha512_test.json.gz",
                                 LEGACY_SHA512);
    printf("note: Wycheproof PBKDF2: %zu\n", n);
    assert_int_equal(n, 118);
}

static void costs_that_would_stall_a_node_are_refused_before_any_work(void **state)
{
    (void)state;
    static const struct {
        uint64_t n;
        uint32_t r, p;
        enum err_code code;
    } table[] = {
        {0, 8, 1, ERR_INVALID},
        {1, 8, 1, ERR_INVALID},
        {3, 8, 1, ERR_INVALID},
        {1024, 0, 1, ERR_INVALID},
        {1024, 8, 0, ERR_INVALID},
        {1024, 1u << 15, 1u << 15, ERR_INVALID},
        {1024, UINT32_MAX, UINT32_MAX, ERR_INVALID},
        {2, (1u << 30) - 1, 1, ERR_TOO_LARGE},
        {2, 1, (1u << 30) - 1, ERR_TOO_LARGE},
        {(uint64_t)1 << 21, 8, 1, ERR_TOO_LARGE},
        {(uint64_t)1 << 63, 1, 1, ERR_TOO_LARGE},
        {(uint64_t)1 << 63, (1u << 29), 1, ERR_TOO_LARGE},
    };
    uint8_t out[32];
    for (size_t i = 0; i < COUNT(table); i++) {
        struct err err = {0};
        int rc = legacy_scrypt(out, sizeof out, (const uint8_t *)"x", 1, (const uint8_t *)"y", 1,
                               table[i].n, table[i].r, table[i].p, &err);
        if (rc != -1 || err.code != table[i].code)
            fail_msg("scrypt N=%llu r=%u p=%u: expected %s, got %d %s",
                     (unsigned long long)table[i].n, table[i].r, table[i].p,
                     err_code_name(table[i].code), rc, err_code_name(err.code));
    }
    struct err err = {0};
    assert_int_equal(legacy_pbkdf2(out, sizeof out, LEGACY_SHA256, NULL, 0, NULL, 0, 0, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    assert_int_equal(
        legacy_pbkdf2(out, sizeof out, LEGACY_SHA256, NULL, 0, NULL, 0, 1u << 31, &err), -1);
}

/* F.5.1 and F.5.2: four blocks, and their decryption. */
static void aes_128_ctr_agrees_with_nist_sp_800_38a(void **state)
{
    (void)state;
    struct buf key = BUF_INIT, iv = BUF_INIT, plain = BUF_INIT, want = BUF_INIT;
    uint8_t got[64];
    struct err err;
    vector_bytes(&key, "2b7e151628aed2a6abf7158809cf4f3c");
    vector_bytes(&iv, "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff");
    vector_bytes(&plain, "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
                         "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710");
    vector_bytes(&want, "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
                        "5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee");
    for (size_t n = 0; n <= sizeof got; n++) {
        assert_ok(legacy_aes128_ctr(got, plain.data, n, key.data, iv.data, &err), err);
        if (memcmp(got, want.data, n) != 0)
            fail_msg("AES-128-CTR of %zu bytes differs", n);
        assert_ok(legacy_aes128_ctr(got, got, n, key.data, iv.data, &err), err);
        if (memcmp(got, plain.data, n) != 0)
            fail_msg("AES-128-CTR of %zu bytes does not undo itself in place", n);
    }
    buf_release(&key);
    buf_release(&iv);
    buf_release(&plain);
    buf_release(&want);
}

static void ripemd_160_agrees_with_its_authors(void **state)
{
    (void)state;
    static const struct {
        const char *text, *hex;
    } table[] = {
        {"", "9c1185a5c5e9fc54612808977ee8f548b2258d31"},
        {"abc", "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"},
        {"abcdefghijklmnopqrstuvwxyz", "f71c27109c692c1b56bbdceb5b9d2865b3708dbc"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "12a053384a9c0c88e405a06c27dcf49ada62eb2b"},
    };
    for (size_t i = 0; i < COUNT(table); i++) {
        uint8_t out[20];
        char hex[41];
        struct err err;
        assert_ok(
            legacy_ripemd160(out, (const uint8_t *)table[i].text, strlen(table[i].text), &err),
            err);
        assert_string_equal(hex_encode(hex, out, sizeof out), table[i].hex);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pbkdf2_and_scrypt_agree_with_ethers),
        cmocka_unit_test(pbkdf2_agrees_with_wycheproof),
        cmocka_unit_test(costs_that_would_stall_a_node_are_refused_before_any_work),
        cmocka_unit_test(aes_128_ctr_agrees_with_nist_sp_800_38a),
        cmocka_unit_test(ripemd_160_agrees_with_its_authors),
    };
    return cmocka_run_group_tests_name("legacy", tests, NULL, NULL);
}
