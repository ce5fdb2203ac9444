/* The door: making, importing, opening, listing; and what each key signs. Argon2id is at its
 * cheapest except where its default is measured. */
#include "tests/unit/wallet/vector.h"

#include "chain/types.h"
#include "node/base/clock.h"
#include "wallet/ecdsa.h"
#include "wallet/wallet.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct wallet_key_options cheap = {
    .kdf_passes = 1, .kdf_memory_kib = 8, .cheap_kdf_for_tests = true};

#define DEV_MNEMONIC "test test test test test test test test test test test junk"

/* What anvil prints when it starts. */
static const struct {
    const char *address, *key;
} dev[] = {
    {"0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266",
     "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"},
    {"0x70997970c51812dc3a010c7d01b50e0d17dc79c8",
     "59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"},
    {"0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc",
     "5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a"},
    {"0x90f79bf6eb2c4f870365e785982e1f101e93b906",
     "7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"},
    {"0x15d34aaf54267db7d7c367839aaf71a00a2c6a65",
     "47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a"},
};

static void expect_address(const struct address *got, const char *want, const char *where)
{
    char text[43];
    hex_encode_0x(text, got->bytes, 20);
    if (strcmp(text, want) != 0)
        fail_msg("%s: expected address %s, got %s", where, want, text);
}

static void expect_file_mode_0600(const char *dir, const char *name)
{
    struct stat st;
    char *path = xasprintf("%s/%s.key", dir, name);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    free(path);
}

static void a_new_keys_mnemonic_brings_the_same_key_back(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    struct secret *p = vector_secret_text("open sesame");
    for (unsigned words = 0; words <= 24; words += words == 0 ? 12 : 3) {
        struct wallet_key_options opt = cheap;
        struct address made, imported;
        struct secret *mnemonic = NULL;
        struct err err;
        char name[16];
        opt.mnemonic_words = words;
        snprintf(name, sizeof name, "new%u", words);
        assert_ok(wallet_key_create(dir, name, &made, &mnemonic, p, &opt, &err), err);
        assert_non_null(mnemonic);
        expect_file_mode_0600(dir, name);
        snprintf(name, sizeof name, "again%u", words);
        assert_ok(wallet_key_import(dir, name, &imported, mnemonic, p, &cheap, &err), err);
        assert_memory_equal(made.bytes, imported.bytes, 20);
        secret_free(mnemonic);
    }
    secret_free(p);
    temp_dir_remove(dir);
}

static void a_key_without_a_mnemonic_is_random(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    struct secret *p = vector_secret_text("open sesame");
    struct address a, b;
    struct err err;
    assert_ok(wallet_key_create(dir, "a", &a, NULL, p, &cheap, &err), err);
    assert_ok(wallet_key_create(dir, "b", &b, NULL, p, &cheap, &err), err);
    assert_memory_not_equal(a.bytes, b.bytes, 20);
    struct wallet *w = wallet_open(dir, NULL, p, &err);
    assert_non_null(w);
    struct address opened;
    assert_ok(wallet_key_address(w, "a", &opened, &err), err);
    assert_memory_equal(opened.bytes, a.bytes, 20);
    wallet_close(w);
    secret_free(p);
    temp_dir_remove(dir);
}

static void a_key_is_never_made_over_another(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    struct secret *p = vector_secret_text("open sesame"), *key = vector_secret_text(dev[0].key);
    struct secret *mnemonic = NULL;
    struct wallet_entry before, after;
    struct err err;
    assert_ok(wallet_key_create(dir, "a", NULL, NULL, p, &cheap, &err), err);
    assert_ok(wallet_key_peek(dir, "a", &before, &err), err);
    assert_int_equal(wallet_key_create(dir, "a", NULL, &mnemonic, p, &cheap, &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    assert_null(mnemonic);
    assert_int_equal(wallet_key_import(dir, "a", NULL, key, p, &cheap, &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    assert_ok(wallet_key_peek(dir, "a", &after, &err), err);
    assert_memory_equal(&before, &after, sizeof before);
    secret_free(p);
    secret_free(key);
    temp_dir_remove(dir);
}

static void options_out_of_range_make_no_file(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        struct wallet_key_options opt;
        const char *says;
    } table[] = {
        {"a", {.kdf_passes = 1}, "too cheap"},
        {"a", {.kdf_memory_kib = 1024}, "too cheap"},
        {"a", {.kdf_passes = 1, .kdf_memory_kib = 8}, "too cheap"},
        {"a", {.kdf_passes = 17}, "17 passes"},
        {"a", {.kdf_memory_kib = 2 * 1024 * 1024}, "2097152 KiB"},
        {"a", {.kdf_memory_kib = 7, .cheap_kdf_for_tests = true}, "7 KiB"},
        {"a", {.mnemonic_words = 13}, "13 words"},
        {"a", {.derivation_path = "m/x"}, "m/x"},
        {"A", {0}, "key name"},
        {"../a", {0}, "key name"},
    };
    char *base = temp_dir_create(), *dir = xasprintf("%s/wallet", base);
    struct secret *p = vector_secret_text("open sesame");
    for (size_t i = 0; i < COUNT(table); i++) {
        struct secret *mnemonic = NULL;
        struct err err = {0};
        if (wallet_key_create(dir, table[i].name, NULL, &mnemonic, p, &table[i].opt, &err) == 0 ||
            err.code != ERR_INVALID || strstr(err.message, table[i].says) == NULL)
            fail_msg("row %zu: expected a refusal that says \"%s\", got: %s", i, table[i].says,
                     err.message);
        assert_null(mnemonic);
        assert_int_equal(access(dir, F_OK), -1);
    }
    secret_free(p);
    free(dir);
    temp_dir_remove(base);
}

/* ---- imports --------------------------------------------------------------------------------- */

/* The next five were made by ethers 6: the master of DEV_MNEMONIC, its nodes m/44'/60'/0'/0/3 and
 * m/44'/60'/0', the key of dev[1] under "pw" (scrypt n = 2). */
#define XPRV_MASTER                                                                                \
    "xprv9s21ZrQH143K3iDNSJZcYeHRe33FQ98DS1wZR9xstVPN8zs77wpsghZt41M6s72keKC1gW3ePJMyL19duV524VbE" \
    "q"                                                                                            \
    "WBW6BL5fJ4FopSgNLz"
#define XPRV_3                                                                                     \
    "xprvA3KbAeguosodR5ckaFEQ7Lq8bxM44yVXXFrjduXGtB11GiwfeP2rkrm24KF8Pfm5i3U4HEGmAW1RUQmEL8EFsxfC" \
    "o"                                                                                            \
    "BBUwBdcNZjhnswmmur"
#define XPRV_ACCOUNT                                                                               \
    "xprv9yeny6n2dNUokQFykGoZU6BDLeKbEBUoBeCFe2VF6MXdrHrprMYRc4tddncDRxrJCy7GtPDk68zRcgWtGFveqdCV" \
    "5"                                                                                            \
    "NyhZwVgMoZVbTm78vx"
#define V3_OF_DEV_1                                                                        \
    "{\"address\":\"70997970c51812dc3a010c7d01b50e0d17dc79c8\","                           \
    "\"id\":\"d02c8dec-34cc-458d-83eb-ae896b96e0eb\",\"version\":3,"                       \
    "\"Crypto\":{\"cipher\":\"aes-128-ctr\","                                              \
    "\"cipherparams\":{\"iv\":\"082bfb13b472d14810c649b6436400a1\"},"                      \
    "\"ciphertext\":\"080149e53068f8d210c7c53e8df16a2711bfaacb0ac521e70623154315a582bc\"," \
    "\"kdf\":\"scrypt\",\"kdfparams\":{"                                                   \
    "\"salt\":\"87c10fe87c9cec1559030f9c272b381078a2effdb044595761f97e2cc0b1f194\","       \
    "\"n\":2,\"dklen\":32,\"p\":1,\"r\":8},"                                               \
    "\"mac\":\"a6e971ccfd0ecb9fbffbfced4c7588da2b81da44466b9f6c2ff5a648c2a51844\"}}\n"

static void keys_come_in_every_shape(void **state)
{
    (void)state;
    static const struct {
        const char *material;
        const char *passphrase, *path; /* import options */
        enum wallet_material kind;
        const char *address;
    } table[] = {
        {"ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80", NULL, NULL,
         WALLET_MATERIAL_HEX, "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"},
        {"0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80", NULL, NULL,
         WALLET_MATERIAL_HEX, "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"},
        {" \t0XAC0974BEC39A17E36BA4A6B4D238FF944BACB478CBED5EFCAE784D7BF4F2FF80\r\n", NULL, NULL,
         WALLET_MATERIAL_HEX, "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"},
        {DEV_MNEMONIC, NULL, NULL, WALLET_MATERIAL_MNEMONIC,
         "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"},
        {"\n" DEV_MNEMONIC "\n", NULL, "m/44'/60'/0'/0/1", WALLET_MATERIAL_MNEMONIC,
         "0x70997970c51812dc3a010c7d01b50e0d17dc79c8"},
        {"Test test test test test test test test test test test JUNK", NULL, "m/44h/60h/0h/0/2",
         WALLET_MATERIAL_MNEMONIC, "0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc"},
        {DEV_MNEMONIC, "TREZOR", NULL, WALLET_MATERIAL_MNEMONIC, /* by ethers as well */
         "0x9313778b3753108128b9c476ebdd42fbd566f4ed"},
        {XPRV_MASTER, NULL, NULL, WALLET_MATERIAL_XPRV,
         "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"},
        {XPRV_3, NULL, NULL, WALLET_MATERIAL_XPRV, "0x90f79bf6eb2c4f870365e785982e1f101e93b906"},
        {XPRV_ACCOUNT, NULL, "m/0/4", WALLET_MATERIAL_XPRV,
         "0x15d34aaf54267db7d7c367839aaf71a00a2c6a65"},
        {V3_OF_DEV_1, "pw", NULL, WALLET_MATERIAL_KEYSTORE_V3,
         "0x70997970c51812dc3a010c7d01b50e0d17dc79c8"},
    };
    char *dir = temp_dir_create();
    struct secret *p = vector_secret_text("open sesame");
    for (size_t i = 0; i < COUNT(table); i++) {
        struct wallet_key_options opt = cheap;
        struct address got;
        struct err err;
        char name[24];
        struct secret *material = vector_secret_text(table[i].material);
        struct secret *inner = table[i].passphrase == NULL
                                   ? NULL
                                   : vector_secret_text(table[i].passphrase);
        opt.import_passphrase = inner;
        opt.derivation_path = table[i].path;
        snprintf(name, sizeof name, "k%zu", i);
        assert_int_equal(wallet_material(material), table[i].kind);
        assert_ok(wallet_key_import(dir, name, &got, material, p, &opt, &err), err);
        expect_address(&got, table[i].address, name);
        expect_file_mode_0600(dir, name);
        secret_free(inner);
        secret_free(material);
    }
    secret_free(p);
    temp_dir_remove(dir);
}

static void what_is_no_key_is_refused_and_never_repeated(void **state)
{
    (void)state;
    static const struct {
        const char *material, *passphrase;
        enum err_code code;
        const char *says;
    } table[] = {
        {"hunter2", NULL, ERR_INVALID, "neither"},
        {" ", NULL, ERR_INVALID, "neither"},
        {"ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff8", NULL, ERR_INVALID,
         "neither"},
        {"ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80a", NULL, ERR_INVALID,
         "neither"},
        {"gc0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80", NULL, ERR_INVALID,
         "neither"},
        {"0000000000000000000000000000000000000000000000000000000000000000", NULL, ERR_INVALID,
         "private key"},
        {"fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", NULL, ERR_INVALID,
         "private key"},
        {"test test hunter test test test test test test test test junk", NULL, ERR_INVALID,
         "word 3"},
        {"test test test test test test test test test test test test", NULL, ERR_INVALID,
         "checksum"},
        {"xprv9s21ZrQH143K3iDNSJZcYeHRe33FQ98DS1wZR9xstVPN8zs77wpsghZt41M6s72keKC1gW", NULL,
         ERR_INVALID, "Base58"},
        {"{\"hunter\": 2}", "pw", ERR_UNSUPPORTED, "version"},
        {"{\"encseed\": \"hunter\"}", "pw", ERR_UNSUPPORTED, "presale"},
        {"{\"encseed\": \"hunter\"}", NULL, ERR_UNSUPPORTED, "presale"},
        {V3_OF_DEV_1, NULL, ERR_INVALID, "passphrase it was saved with"},
        {V3_OF_DEV_1, "hunter", ERR_UNAUTHORIZED, "passphrase"},
    };
    char *base = temp_dir_create(), *dir = xasprintf("%s/wallet", base);
    struct secret *p = vector_secret_text("open sesame");
    for (size_t i = 0; i < COUNT(table); i++) {
        struct wallet_key_options opt = cheap;
        struct err err = {0};
        struct secret *material = vector_secret_text(table[i].material);
        struct secret *inner = table[i].passphrase == NULL
                                   ? NULL
                                   : vector_secret_text(table[i].passphrase);
        opt.import_passphrase = inner;
        if (wallet_key_import(dir, "k", NULL, material, p, &opt, &err) == 0 ||
            err.code != table[i].code || strstr(err.message, table[i].says) == NULL)
            fail_msg("row %zu: expected %s that says \"%s\", got %s: %s", i,
                     err_code_name(table[i].code), table[i].says, err_code_name(err.code),
                     err.message);
        if (strstr(err.message, "hunter") != NULL || strstr(err.message, "0974bec") != NULL)
            fail_msg("row %zu: the error repeats the material: %s", i, err.message);
        assert_int_equal(access(dir, F_OK), -1); /* nothing was written */
        secret_free(inner);
        secret_free(material);
    }
    secret_free(p);
    free(dir);
    temp_dir_remove(base);
}

static void an_exported_key_is_imported_elsewhere(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    struct secret *p = vector_secret_text("open sesame"), *q = vector_secret_text("other");
    struct secret *key = vector_secret_text(dev[2].key);
    struct wallet_key_options opt = cheap;
    struct buf json = BUF_INIT;
    struct address got;
    struct err err;
    assert_ok(wallet_key_import(dir, "a", NULL, key, p, &cheap, &err), err);
    assert_int_equal(wallet_key_export_v3(dir, "a", &json, q, q, &err), -1);
    assert_int_equal(err.code, ERR_UNAUTHORIZED);
    assert_int_equal(json.len, 0);
    assert_ok(wallet_key_export_v3(dir, "a", &json, p, q, &err), err);
    struct secret *file = secret_from_bytes(json.data, json.len);
    opt.import_passphrase = q;
    assert_ok(wallet_key_import(dir, "b", &got, file, p, &opt, &err), err);
    expect_address(&got, dev[2].address, "b");
    buf_release(&json);
    secret_free(file);
    secret_free(key);
    secret_free(p);
    secret_free(q);
    temp_dir_remove(dir);
}

/* ---- opening --------------------------------------------------------------------------------- */

/* A directory with operator, signer and house under "open sesame": dev[0] to dev[2]. */
static char *three_keys(void)
{
    static const char *const names[] = {"operator", "signer", "house"};
    char *dir = temp_dir_create();
    struct secret *p = vector_secret_text("open sesame");
    for (size_t i = 0; i < COUNT(names); i++) {
        struct err err;
        struct secret *key = vector_secret_text(dev[i].key);
        assert_ok(wallet_key_import(dir, names[i], NULL, key, p, &cheap, &err), err);
        secret_free(key);
    }
    secret_free(p);
    return dir;
}

static void a_wallet_holds_the_keys_that_were_asked_for(void **state)
{
    (void)state;
    char *dir = three_keys();
    struct secret *p = vector_secret_text("open sesame");
    struct address a;
    struct err err = {0};
    struct wallet *all = wallet_open(dir, NULL, p, &err);
    assert_non_null(all);
    assert_true(wallet_has(all, "operator") && wallet_has(all, "signer") &&
                wallet_has(all, "house"));
    static const char *const hot[] = {"signer", "house", NULL};
    struct wallet *w = wallet_open(dir, hot, p, &err);
    assert_non_null(w);
    assert_false(wallet_has(w, "operator"));
    assert_ok(wallet_key_address(w, "signer", &a, &err), err);
    expect_address(&a, dev[1].address, "signer");
    assert_ok(wallet_key_address(w, "house", &a, &err), err);
    expect_address(&a, dev[2].address, "house");
    assert_int_equal(wallet_key_address(w, "operator", &a, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err.message, "operator"));
    wallet_close(w);
    wallet_close(all);
    wallet_close(NULL);
    secret_free(p);
    temp_dir_remove(dir);
}

static void a_wallet_that_cannot_be_opened_says_which_file_and_why(void **state)
{
    (void)state;
    char *dir = three_keys(), *path = xasprintf("%s/signer.key", dir), *empty = temp_dir_create();
    struct secret *right = vector_secret_text("open sesame"), *wrong = vector_secret_text("open");
    struct err err = {0};
    static const char *const missing[] = {"signer", "creator", NULL}, *const none[] = {NULL};

    assert_null(wallet_open(dir, NULL, wrong, &err));
    assert_int_equal(err.code, ERR_UNAUTHORIZED);
    assert_non_null(strstr(err.message, "house.key"));
    assert_null(wallet_open(dir, missing, right, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err.message, "creator.key"));
    assert_null(wallet_open(empty, NULL, right, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_null(wallet_open(dir, none, right, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);

    assert_int_equal(chmod(path, 0640), 0);
    assert_null(wallet_open(dir, NULL, right, &err));
    assert_int_equal(err.code, ERR_FORBIDDEN);
    assert_non_null(strstr(err.message, "signer.key has mode 640"));
    assert_int_equal(chmod(path, 0600), 0);

    assert_int_equal(truncate(path, 100), 0);
    assert_null(wallet_open(dir, NULL, right, &err));
    assert_int_equal(err.code, ERR_CORRUPT);
    assert_non_null(strstr(err.message, "signer.key"));
    secret_free(right);
    secret_free(wrong);
    free(path);
    temp_dir_remove(dir);
    temp_dir_remove(empty);
}

static void a_list_shows_every_file_and_what_is_wrong_with_it(void **state)
{
    (void)state;
    char *dir = three_keys(), *path = xasprintf("%s/signer.key", dir);
    char *absent = xasprintf("%s/absent", dir);
    struct wallet_entry *entries;
    size_t n;
    struct err err;
    assert_int_equal(truncate(path, 100), 0);
    assert_ok(wallet_list(dir, &entries, &n, &err), err);
    assert_int_equal(n, 3);
    assert_string_equal(entries[0].name, "house");
    assert_string_equal(entries[1].name, "operator");
    assert_string_equal(entries[2].name, "signer");
    assert_string_equal(entries[0].problem, "");
    assert_non_null(strstr(entries[2].problem, "damaged"));
    struct address a;
    memcpy(a.bytes, entries[0].address, 20);
    expect_address(&a, dev[2].address, "house");
    assert_true(entries[0].created_unix_s + 3600 > clock_unix_ms().ms / 1000);
    free(entries);
    assert_ok(wallet_list(absent, &entries, &n, &err), err);
    assert_int_equal(n, 0);
    free(entries);
    assert_int_equal(wallet_list(path, &entries, &n, &err), -1);
    free(path);
    free(absent);
    temp_dir_remove(dir);
}

static void the_default_cost_is_rfc_9106s(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    struct secret *p = vector_secret_text("open sesame");
    struct err err;
    assert_ok(wallet_key_create(dir, "a", NULL, NULL, p, NULL, &err), err);
    struct monotonic_us begin = clock_monotonic_us();
    struct wallet *w = wallet_open(dir, NULL, p, &err);
    printf("note: opening one key at the default cost (3 passes, 64 MiB): %llu ms\n",
           (unsigned long long)(clock_elapsed_us(begin, clock_monotonic_us()) / 1000));
    assert_non_null(w);
    wallet_close(w);
    struct buf file = BUF_INIT;
    char *path = xasprintf("%s/a.key", dir);
    assert_ok(file_read(path, 1000, &file, &err), err);
    assert_memory_equal(file.data + 16, "\0\0\0\3\0\1\0\0", 8);
    buf_release(&file);
    free(path);
    secret_free(p);
    temp_dir_remove(dir);
}

/* ---- wallets of development keys --------------------------------------------------------------
 */

static void the_dev_mnemonic_gives_anvils_accounts(void **state)
{
    (void)state;
    struct err err = {0};
    struct wallet *w = wallet_open_dev_mnemonic(DEV_MNEMONIC, COUNT(dev), &err);
    assert_non_null(w);
    for (size_t i = 0; i < COUNT(dev); i++) {
        char name[8];
        struct address a;
        snprintf(name, sizeof name, "%zu", i);
        assert_ok(wallet_key_address(w, name, &a, &err), err);
        expect_address(&a, dev[i].address, name);
    }
    wallet_close(w);
    assert_null(wallet_open_dev_mnemonic("test test", 1, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_null(wallet_open_dev_mnemonic(DEV_MNEMONIC, 0, &err));
    assert_int_equal(err.code, ERR_INVALID);
}

static struct wallet *memory_wallet(void)
{
    struct wallet_memory_key keys[COUNT(dev)];
    static const char *const names[] = {"operator", "signer", "house", "creator", "payer"};
    struct err err;
    for (size_t i = 0; i < COUNT(dev); i++) {
        keys[i].name = names[i];
        hex_decode(keys[i].key, 32, dev[i].key);
    }
    struct wallet *w = wallet_open_memory(keys, COUNT(dev), &err);
    assert_non_null(w);
    return w;
}

static void a_memory_wallet_refuses_keys_that_are_none(void **state)
{
    (void)state;
    struct err err = {0};
    struct wallet_memory_key keys[2] = {{.name = "a", .key = {1}}, {.name = "b", .key = {0}}};
    assert_null(wallet_open_memory(keys, 2, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.message, "key b"));
    keys[1].key[31] = 1;
    keys[1].name = "B";
    assert_null(wallet_open_memory(keys, 2, &err));
    assert_int_equal(err.code, ERR_INVALID);
}

/* ---- the window ------------------------------------------------------------------------------ */

/* One row of the window: sign with a key, recover its address, and refuse what isn't there. */
#define SIGN_AND_RECOVER(thing, digest_type)                                    \
    do {                                                                        \
        struct digest_type d = {{0x5a, 1, 2, 3}}, other = {{0x5a, 1, 2, 4}};    \
        struct signature sig, again;                                            \
        struct address want, got;                                               \
        assert_ok(wallet_key_address(w, "signer", &want, &err), err);           \
        assert_ok(wallet_sign_##thing(w, "signer", &sig, &d, &err), err);       \
        assert_ok(wallet_sign_##thing(w, "signer", &again, &d, &err), err);     \
        assert_memory_equal(sig.r, again.r, 32);                                \
        assert_memory_equal(sig.s, again.s, 32);                                \
        assert_ok(wallet_recover_##thing(&got, &sig, &d, &err), err);           \
        assert_memory_equal(got.bytes, want.bytes, 20);                         \
        if (wallet_recover_##thing(&got, &sig, &other, &err) == 0)              \
            assert_memory_not_equal(got.bytes, want.bytes, 20);                 \
        assert_int_equal(wallet_sign_##thing(w, "nobody", &sig, &d, &err), -1); \
        assert_int_equal(err.code, ERR_NOT_FOUND);                              \
        memset(sig.r, 0, 32);                                                   \
        assert_int_equal(wallet_recover_##thing(&got, &sig, &d, &err), -1);     \
        assert_int_equal(err.code, ERR_UNAUTHORIZED);                           \
        sig = again;                                                            \
        sig.y_parity = 2;                                                       \
        assert_int_equal(wallet_recover_##thing(&got, &sig, &d, &err), -1);     \
    } while (0)

static void each_thing_that_is_signed_recovers_to_its_signer(void **state)
{
    (void)state;
    struct err err = {0};
    struct wallet *w = memory_wallet();
    SIGN_AND_RECOVER(receipt, receipt_digest);
    SIGN_AND_RECOVER(batch, batch_digest);
    SIGN_AND_RECOVER(voucher, voucher_digest);
    SIGN_AND_RECOVER(request, request_digest);
    SIGN_AND_RECOVER(manifest, manifest_digest);
    SIGN_AND_RECOVER(transaction, tx_digest);
    wallet_close(w);
}

struct worker {
    struct wallet *w;
    const char *name;
    struct address want;
};

static void *sign_and_check(void *arg)
{
    struct worker *k = arg;
    for (int i = 0; i < 100; i++) {
        struct receipt_digest d = {{(uint8_t)i, 7}};
        struct signature sig;
        struct address got;
        if (wallet_sign_receipt(k->w, k->name, &sig, &d, NULL) != 0 ||
            wallet_recover_receipt(&got, &sig, &d, NULL) != 0 ||
            memcmp(got.bytes, k->want.bytes, 20) != 0)
            return arg;
    }
    return NULL;
}

static void many_threads_may_sign_with_one_wallet(void **state)
{
    (void)state;
    struct err err;
    struct wallet *w = memory_wallet();
    struct worker workers[6];
    pthread_t threads[COUNT(workers)];
    for (size_t i = 0; i < COUNT(workers); i++) {
        workers[i] = (struct worker){.w = w, .name = i % 3 == 0 ? "house" : "signer"};
        assert_ok(wallet_key_address(w, workers[i].name, &workers[i].want, &err), err);
    }
    for (size_t i = 0; i < COUNT(workers); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, sign_and_check, &workers[i]), 0);
    for (size_t i = 0; i < COUNT(workers); i++) {
        void *failed;
        assert_int_equal(pthread_join(threads[i], &failed), 0);
        assert_null(failed);
    }
    wallet_close(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_new_keys_mnemonic_brings_the_same_key_back),
        cmocka_unit_test(a_key_without_a_mnemonic_is_random),
        cmocka_unit_test(a_key_is_never_made_over_another),
        cmocka_unit_test(options_out_of_range_make_no_file),
        cmocka_unit_test(keys_come_in_every_shape),
        cmocka_unit_test(what_is_no_key_is_refused_and_never_repeated),
        cmocka_unit_test(an_exported_key_is_imported_elsewhere),
        cmocka_unit_test(a_wallet_holds_the_keys_that_were_asked_for),
        cmocka_unit_test(a_wallet_that_cannot_be_opened_says_which_file_and_why),
        cmocka_unit_test(a_list_shows_every_file_and_what_is_wrong_with_it),
        cmocka_unit_test(the_default_cost_is_rfc_9106s),
        cmocka_unit_test(the_dev_mnemonic_gives_anvils_accounts),
        cmocka_unit_test(a_memory_wallet_refuses_keys_that_are_none),
        cmocka_unit_test(each_thing_that_is_signed_recovers_to_its_signer),
        cmocka_unit_test(many_threads_may_sign_with_one_wallet),
    };
    return cmocka_run_group_tests_name("wallet", tests, NULL, NULL);
}
