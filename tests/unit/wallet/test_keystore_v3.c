/* Ethereum's keystore v3 against the vectors of ethereum/tests (5) and ethers (7, and two presale
 * wallets, which are refused by name), a round trip, and files that nobody honest would write. */
#include "tests/unit/wallet/vector.h"

#include "wallet/ecdsa.h"
#include "wallet/keystore_v3.h"

#include <stdlib.h>

static void every_vector_of_ethereum_tests_opens(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/ethereum-tests/KeyStoreTests_basic_tests.json");
    const char *name;
    json_t *v;
    size_t n = 0;
    json_object_foreach(all, name, v)
    {
        struct err err = {0};
        char *text = json_dumps(json_object_get(v, "json"), 0);
        struct secret *file = vector_secret_text(text);
        struct secret *passphrase = vector_secret_text(vector_str(v, "password"));
        vector_expect_hex(keystore_v3_decrypt(file, passphrase, &err), vector_str(v, "priv"), name,
                          &err);
        secret_free(passphrase);
        secret_free(file);
        free(text);
        n++;
    }
    printf("note: ethereum/tests keystores: %zu\n", n);
    assert_int_equal(n, 5);
    json_decref(all);
}

/* Which key is right is checked by the address inside the file, or that in the vector. */
static void every_keystore_of_ethers_opens_and_presale_wallets_are_named(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/ethers-v6/wallets.json.gz");
    const json_t *v;
    size_t i, n_opened = 0, n_presale = 0;
    json_array_foreach(all, i, v)
    {
        struct err err = {0};
        const char *name = vector_str(v, "name");
        struct secret *file = vector_secret_text(vector_str(v, "content"));
        struct secret *passphrase = vector_secret(vector_str(v, "password"));
        struct secret *key = keystore_v3_decrypt(file, passphrase, &err);
        if (strcmp(vector_str(v, "type"), "crowdsale") == 0) {
            if (key != NULL || err.code != ERR_UNSUPPORTED ||
                strstr(err.message, "presale (crowdsale) wallet") == NULL)
                fail_msg("%s: expected a refusal by name, got: %s", name, err.message);
            n_presale++;
        } else {
            uint8_t address[20], want[20], public_key[ECDSA_PUBLIC_BYTES];
            if (key == NULL)
                fail_msg("%s: %s", name, err.message);
            assert_ok(ecdsa_public_key(public_key, secret_reveal(key), &err), err);
            secret_conceal(key);
            ecdsa_address(address, public_key);
            assert_int_equal(hex_decode(want, 20, vector_str(v, "address")), 0);
            if (memcmp(address, want, 20) != 0)
                fail_msg("%s: another key came out", name);
            n_opened++;
        }
        secret_free(key);
        secret_free(passphrase);
        secret_free(file);
    }
    printf("note: ethers wallets: %zu opened, %zu presale wallets refused by name\n", n_opened,
           n_presale);
    assert_int_equal(n_opened, 7);
    assert_int_equal(n_presale, 2);
    json_decref(all);
}

#define KEY "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"

static void what_is_exported_is_imported(void **state)
{
    (void)state;
    struct buf json = BUF_INIT;
    struct err err = {0};
    struct secret *key = vector_secret(KEY), *right = vector_secret_text("export me"),
                  *wrong = vector_secret_text("export you");
    assert_ok(keystore_v3_encrypt(&json, key, right, 1024, &err), err);
    struct secret *file = secret_from_bytes(json.data, json.len);
    vector_expect_hex(keystore_v3_decrypt(file, right, &err), KEY, "round trip", &err);
    assert_null(keystore_v3_decrypt(file, wrong, &err));
    assert_int_equal(err.code, ERR_UNAUTHORIZED);
    assert_null(strstr(buf_cstr(&json), KEY));

    json_t *o = json_loadb((char *)json.data, json.len, 0, NULL);
    assert_string_equal(vector_str(o, "address"), "2c7536e3605d9c16a7a3d7b1898e529396a65c23");
    assert_int_equal(vector_num(o, "version"), 3);
    const char *id = vector_str(o, "id");
    assert_int_equal(strlen(id), 36);
    assert_int_equal(id[14], '4'); /* a random UUID says so */
    assert_non_null(strchr("89ab", id[19]));
    json_decref(o);
    secret_free(file);
    secret_free(key);
    secret_free(right);
    secret_free(wrong);
    buf_release(&json);
}

/* A cheap and correct file, to be bent: KEY under "pw", scrypt with n = 2. */
static json_t *cheap_file(void)
{
    struct buf json = BUF_INIT;
    struct err err = {0};
    struct secret *key = vector_secret(KEY), *p = vector_secret_text("pw");
    assert_ok(keystore_v3_encrypt(&json, key, p, 2, &err), err);
    json_t *o = json_loadb((char *)json.data, json.len, 0, NULL);
    secret_free(key);
    secret_free(p);
    buf_release(&json);
    return o;
}

static enum err_code open_json(const json_t *o, struct err *err)
{
    *err = (struct err){0};
    char *text = json_dumps(o, 0);
    struct secret *file = vector_secret_text(text), *p = vector_secret_text("pw");
    struct secret *key = keystore_v3_decrypt(file, p, err);
    secret_free(file);
    secret_free(p);
    free(text);
    if (key != NULL)
        vector_expect_hex(key, KEY, "the key that came out", err);
    return key != NULL ? ERR_OK : err->code;
}

/* The object that holds the last part of a path like "crypto.kdfparams.n". */
static json_t *parent_of(json_t *o, const char *path, const char **last)
{
    const char *dot;
    while ((dot = strchr(path, '.')) != NULL) {
        char *part = xstrndup(path, (size_t)(dot - path));
        o = json_object_get(o, part);
        free(part);
        path = dot + 1;
    }
    *last = path;
    return o;
}

#define DIGITS_31 "00000000000000000000000000000000000000000000000000000000000000"

static void a_file_that_breaks_a_rule_is_refused_by_that_rule(void **state)
{
    (void)state;
    static const struct {
        const char *path, *json; /* json NULL: the field is taken away */
        enum err_code code;      /* ERR_OK: still opens */
        const char *says;
    } table[] = {
        {"id", NULL, ERR_OK, ""},
        {"address", NULL, ERR_OK, ""},
        {"address", "\"0x2c7536E3605d9c16a7a3d7b1898e529396a65c23\"", ERR_OK, ""},
        {"address", "\"2c7536e3605d9c16a7a3d7b1898e529396a65c24\"", ERR_CORRUPT, "address"},
        {"address", "\"2c75\"", ERR_INVALID, "address"},
        {"address", "7", ERR_INVALID, "address"},
        {"version", NULL, ERR_UNSUPPORTED, "version"},
        {"version", "1", ERR_UNSUPPORTED, "version"},
        {"version", "4", ERR_UNSUPPORTED, "version"},
        {"version", "\"3\"", ERR_UNSUPPORTED, "version"},
        {"crypto", NULL, ERR_INVALID, "crypto"},
        {"crypto", "[]", ERR_INVALID, "crypto"},
        {"crypto.cipher", NULL, ERR_INVALID, "cipher"},
        {"crypto.cipher", "\"aes-128-cbc\"", ERR_UNSUPPORTED, "aes-128-cbc"},
        {"crypto.cipherparams", NULL, ERR_INVALID, "iv"},
        {"crypto.cipherparams.iv", "\"00\"", ERR_INVALID, "iv"},
        {"crypto.ciphertext", "\"" DIGITS_31 "\"", ERR_INVALID, "ciphertext"},
        {"crypto.ciphertext", "\"" DIGITS_31 "00\"", ERR_UNAUTHORIZED, "passphrase"},
        {"crypto.ciphertext", "\"" DIGITS_31 "0g\"", ERR_INVALID, "ciphertext"},
        {"crypto.ciphertext", "null", ERR_INVALID, "ciphertext"},
        {"crypto.mac", "\"" DIGITS_31 "00\"", ERR_UNAUTHORIZED, "passphrase"},
        {"crypto.mac", "\"\"", ERR_INVALID, "mac"},
        {"crypto.kdf", "\"argon2id\"", ERR_UNSUPPORTED, "argon2id"},
        {"crypto.kdf", "\"pbkdf2\"", ERR_INVALID, "prf"},
        {"crypto.kdfparams", NULL, ERR_INVALID, "salt"},
        {"crypto.kdfparams.salt", "\"abc\"", ERR_INVALID, "salt"},
        {"crypto.kdfparams.salt", "\"\"", ERR_UNAUTHORIZED, "passphrase"},
        {"crypto.kdfparams.dklen", "31", ERR_INVALID, "dklen"},
        {"crypto.kdfparams.dklen", "64", ERR_OK, ""}, /* scrypt's first 32 are the same */
        {"crypto.kdfparams.dklen", "129", ERR_TOO_LARGE, "dklen"},
        {"crypto.kdfparams.dklen", "-1", ERR_INVALID, "dklen"},
        {"crypto.kdfparams.dklen", "32.5", ERR_INVALID, "dklen"},
        {"crypto.kdfparams.n", "0", ERR_INVALID, "\"n\""},
        {"crypto.kdfparams.n", "3", ERR_INVALID, "power of two"},
        {"crypto.kdfparams.n", "4294967296", ERR_TOO_LARGE, "\"n\""},
        {"crypto.kdfparams.n", "2147483648", ERR_TOO_LARGE, "scrypt"},
        {"crypto.kdfparams.n", "\"2\"", ERR_INVALID, "\"n\""},
        {"crypto.kdfparams.r", "1073741823", ERR_TOO_LARGE, "scrypt"},
        {"crypto.kdfparams.p", "1073741824", ERR_INVALID, "scrypt"},
        {"crypto.kdfparams.p", "4", ERR_UNAUTHORIZED, "passphrase"},
        {"encseed", "\"00\"", ERR_UNSUPPORTED, "presale"},
    };
    for (size_t i = 0; i < COUNT(table); i++) {
        json_t *o = cheap_file();
        const char *last;
        json_t *parent = parent_of(o, table[i].path, &last);
        if (table[i].json == NULL)
            json_object_del(parent, last);
        else
            json_object_set_new(parent, last, json_loads(table[i].json, JSON_DECODE_ANY, NULL));
        struct err err;
        enum err_code code = open_json(o, &err);
        if (code != table[i].code || strstr(err.message, table[i].says) == NULL)
            fail_msg("%s = %s: expected %s that says \"%s\", got %s: %s", table[i].path,
                     table[i].json == NULL ? "(absent)" : table[i].json,
                     err_code_name(table[i].code), table[i].says, err_code_name(code), err.message);
        json_decref(o);
    }
}

static void pbkdf2_files_are_bounded_too(void **state)
{
    (void)state;
    static const struct {
        const char *params;
        enum err_code code;
        const char *says;
    } table[] = {
        {"{\"dklen\":32,\"salt\":\"00\",\"c\":1,\"prf\":\"hmac-sha256\"}", ERR_UNAUTHORIZED,
         "passphrase"},
        {"{\"dklen\":32,\"salt\":\"00\",\"c\":0,\"prf\":\"hmac-sha256\"}", ERR_INVALID, "\"c\""},
        {"{\"dklen\":32,\"salt\":\"00\",\"prf\":\"hmac-sha256\"}", ERR_INVALID, "\"c\""},
        {"{\"dklen\":32,\"salt\":\"00\",\"c\":1,\"prf\":\"hmac-md5\"}", ERR_UNSUPPORTED,
         "hmac-md5"},
        {"{\"dklen\":32,\"salt\":\"00\",\"c\":10000001,\"prf\":\"hmac-sha256\"}", ERR_TOO_LARGE,
         "\"c\""},
    };
    for (size_t i = 0; i < COUNT(table); i++) {
        json_t *o = cheap_file(), *crypto = json_object_get(o, "crypto");
        json_object_set_new(crypto, "kdf", json_string("pbkdf2"));
        json_object_set_new(crypto, "kdfparams", json_loads(table[i].params, 0, NULL));
        struct err err;
        enum err_code code = open_json(o, &err);
        if (code != table[i].code || strstr(err.message, table[i].says) == NULL)
            fail_msg("%s: expected %s that says %s, got %s: %s", table[i].params,
                     err_code_name(table[i].code), table[i].says, err_code_name(code), err.message);
        json_decref(o);
    }
}

static void what_is_not_an_object_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "{",
                                      "[]",
                                      "null",
                                      "{}",
                                      "{\"version\":3}",
                                      "{\"version\":3,\"version\":3}",
                                      "\xff\xfe",
                                      "{\"a\":\"\\u0000\"}"};
    struct secret *p = vector_secret_text("pw");
    for (size_t i = 0; i < COUNT(bad); i++) {
        struct err err = {0};
        struct secret *file = vector_secret_text(bad[i]);
        if (keystore_v3_decrypt(file, p, &err) != NULL ||
            (err.code != ERR_INVALID && err.code != ERR_UNSUPPORTED))
            fail_msg("\"%s\": %s", bad[i], err_code_name(err.code));
        secret_free(file);
    }
    secret_free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_vector_of_ethereum_tests_opens),
        cmocka_unit_test(every_keystore_of_ethers_opens_and_presale_wallets_are_named),
        cmocka_unit_test(what_is_exported_is_imported),
        cmocka_unit_test(a_file_that_breaks_a_rule_is_refused_by_that_rule),
        cmocka_unit_test(pbkdf2_files_are_bounded_too),
        cmocka_unit_test(what_is_not_an_object_is_refused),
    };
    return cmocka_run_group_tests_name("keystore_v3", tests, NULL, NULL);
}
