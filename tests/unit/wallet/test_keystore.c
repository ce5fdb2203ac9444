/* The key file: what it opens with, what damage it notices, where it may lie. Argon2id is set to
 * its cheapest here (8 KiB, one pass), which only the tests' options may. */
#include "tests/unit/wallet/vector.h"

#include "node/base/sha256.h"
#include "wallet/ecdsa.h"
#include "wallet/keyfile.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* Offsets of keystore.c's drawing, written down once more on purpose. */
enum {
    AT_VERSION = 8,
    AT_KDF = 12,
    AT_PASSES = 16,
    AT_MEMORY = 20,
    AT_SALT = 24,
    AT_NAME = 64,
    AT_ADDRESS = 96,
    AT_CIPHERTEXT = 124,
    AT_TAG = 156,
    AT_CHECKSUM = 172,
};

#define KEY     "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
#define ADDRESS "2c7536e3605d9c16a7a3d7b1898e529396a65c23" /* of KEY, by ethers */

static void make_file(uint8_t file[KEYSTORE_BYTES], const char *name, const char *passphrase)
{
    struct keystore_header h = {.kdf_passes = 1, .kdf_memory_kib = 8, .created_unix_s = 1700000000};
    struct err err;
    struct secret *key = vector_secret(KEY), *p = vector_secret_text(passphrase);
    snprintf(h.name, sizeof h.name, "%s", name);
    assert_ok(keystore_encrypt(file, &h, key, p, &err), err);
    secret_free(key);
    secret_free(p);
}

static void fix_checksum(uint8_t file[KEYSTORE_BYTES])
{
    struct sha256_digest d = sha256(file, AT_CHECKSUM);
    memcpy(file + AT_CHECKSUM, d.bytes, sizeof d.bytes);
}

/* The code with which n bytes are refused, ERR_OK when they open. */
static enum err_code try_open(const uint8_t *file, size_t n, const char *passphrase,
                              struct err *err)
{
    *err = (struct err){0};
    struct secret *p = vector_secret_text(passphrase);
    struct secret *key = keystore_decrypt(file, n, p, NULL, err);
    secret_free(p);
    if (key != NULL)
        vector_expect_hex(key, KEY, "the key that came out", err);
    return key != NULL ? ERR_OK : err->code;
}

static void a_key_comes_back_with_its_header(void **state)
{
    (void)state;
    uint8_t file[KEYSTORE_BYTES];
    struct keystore_header h;
    struct err err = {0};
    char hex[41];
    make_file(file, "operator", "open sesame");
    assert_ok(keystore_parse(&h, file, sizeof file, &err), err);
    assert_string_equal(h.name, "operator");
    assert_string_equal(hex_encode(hex, h.address, 20), ADDRESS);
    assert_int_equal(h.created_unix_s, 1700000000);
    assert_int_equal(h.kdf_passes, 1);
    assert_int_equal(h.kdf_memory_kib, 8);
    assert_int_equal(try_open(file, sizeof file, "open sesame", &err), ERR_OK);
}

static void the_layout_is_the_one_in_the_drawing(void **state)
{
    (void)state;
    uint8_t file[KEYSTORE_BYTES], again[KEYSTORE_BYTES], address[20];
    make_file(file, "operator", "open sesame");
    assert_memory_equal(file, "TRIBKEY\n\0\0\0\1\0\0\0\1\0\0\0\1\0\0\0\10", 24);
    assert_memory_equal(file + AT_NAME, "operator\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
                        32);
    hex_decode(address, 20, ADDRESS);
    assert_memory_equal(file + AT_ADDRESS, address, 20);
    assert_memory_equal(file + 116, "\0\0\0\0\x65\x53\xf1\x00", 8);
    /* salt, nonce and all that follows from them are fresh each time */
    make_file(again, "operator", "open sesame");
    assert_memory_not_equal(file + AT_SALT, again + AT_SALT, 16);
    assert_memory_not_equal(file + 40, again + 40, 24);
    assert_memory_not_equal(file + AT_CIPHERTEXT, again + AT_CIPHERTEXT, 32);
}

/* Made with other implementations of everything: tests/vectors/keyfile/generate.mjs. */
static void key_files_of_another_implementation_open(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/keyfile/keyfile.json");
    struct buf file = BUF_INIT;
    size_t i;
    const json_t *v;
    json_array_foreach(all, i, v)
    {
        struct keystore_header h;
        struct err err = {0};
        const char *name = vector_str(v, "name");
        struct secret *p = vector_secret_text(vector_str(v, "passphrase"));
        vector_bytes(&file, vector_str(v, "file"));
        assert_int_equal(file.len, KEYSTORE_BYTES);
        vector_expect_hex(keystore_decrypt(file.data, file.len, p, &h, &err), vector_str(v, "key"),
                          name, &err);
        assert_string_equal(h.name, name);
        assert_int_equal(h.kdf_passes, vector_num(v, "passes"));
        assert_int_equal(h.kdf_memory_kib, vector_num(v, "memoryKib"));
        secret_free(p);
    }
    printf("note: key files of another implementation: %zu\n", i);
    assert_int_equal(i, 3);
    buf_release(&file);
    json_decref(all);
}

static void damage_anywhere_is_corrupt(void **state)
{
    (void)state;
    uint8_t file[KEYSTORE_BYTES];
    struct err err;
    size_t n_tried = 0;
    make_file(file, "operator", "open sesame");
    for (size_t at = 0; at < KEYSTORE_BYTES; at++) {
        for (int bit = 0; bit < 8; bit++) {
            file[at] ^= (uint8_t)(1 << bit);
            enum err_code code = try_open(file, sizeof file, "open sesame", &err);
            if (code != ERR_CORRUPT)
                fail_msg("byte %zu, bit %d: %s", at, bit, err_code_name(code));
            file[at] ^= (uint8_t)(1 << bit);
            n_tried++;
        }
    }
    printf("note: single bits turned over in a key file: %zu, all ERR_CORRUPT\n", n_tried);
    assert_int_equal(try_open(file, sizeof file, "open sesame", &err), ERR_OK);
}

/* An attacker mends the checksum; the tag, and the limits, must hold on their own. */
static void an_alteration_behind_a_mended_checksum_is_refused(void **state)
{
    (void)state;
    uint8_t file[KEYSTORE_BYTES];
    struct err err;
    size_t n_corrupt = 0, n_unauthorized = 0;
    make_file(file, "operator", "open sesame");
    for (size_t at = 0; at < AT_CHECKSUM; at++) {
        uint8_t keep = file[at];
        for (int i = 0; i < 2; i++) {
            file[at] = keep ^ (i == 0 ? 0x01 : 0x80);
            fix_checksum(file);
            enum err_code code = try_open(file, sizeof file, "open sesame", &err);
            bool structural = at < AT_SALT || (at >= AT_NAME && at < AT_ADDRESS);
            if (code != ERR_UNAUTHORIZED &&
                !(structural && (code == ERR_CORRUPT || code == ERR_UNSUPPORTED)))
                fail_msg("byte %zu became %02x: %s (%s)", at, file[at], err_code_name(code),
                         err.message);
            *(code == ERR_UNAUTHORIZED ? &n_unauthorized : &n_corrupt) += 1;
        }
        file[at] = keep;
    }
    fix_checksum(file);
    printf("note: alterations with a mended checksum: %zu refused by the tag, %zu by the layout\n",
           n_unauthorized, n_corrupt);
    assert_int_equal(try_open(file, sizeof file, "open sesame", &err), ERR_OK);
}

static void another_passphrase_does_not_open_it(void **state)
{
    (void)state;
    static const char *const wrong[] = {"open sesam", "open sesame ", "Open sesame", "x",
                                        "open sesame\n"};
    uint8_t file[KEYSTORE_BYTES];
    struct err err;
    make_file(file, "operator", "open sesame");
    for (size_t i = 0; i < COUNT(wrong); i++) {
        assert_int_equal(try_open(file, sizeof file, wrong[i], &err), ERR_UNAUTHORIZED);
        assert_non_null(strstr(err.message, "passphrase"));
        assert_null(strstr(err.message, wrong[i]));
    }
}

static void a_short_or_long_file_is_corrupt(void **state)
{
    (void)state;
    uint8_t file[KEYSTORE_BYTES + 64] = {0};
    struct err err;
    make_file(file, "operator", "open sesame");
    for (size_t n = 0; n <= sizeof file; n++)
        if (n != KEYSTORE_BYTES)
            assert_int_equal(try_open(file, n, "open sesame", &err), ERR_CORRUPT);
    /* even where the checksum follows the cut */
    for (size_t n = 44; n < KEYSTORE_BYTES; n++) {
        uint8_t cut[KEYSTORE_BYTES];
        memcpy(cut, file, n);
        struct sha256_digest d = sha256(cut, n - 32);
        memcpy(cut + n - 32, d.bytes, 32);
        assert_int_equal(try_open(cut, n, "open sesame", &err), ERR_CORRUPT);
    }
}

static void put_be32(uint8_t *out, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        out[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void a_header_beyond_the_limits_is_refused_before_any_work(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        uint32_t value;
        enum err_code code;
        const char *says;
    } table[] = {
        {AT_VERSION, 0, ERR_UNSUPPORTED, "version 0"},
        {AT_VERSION, 2, ERR_UNSUPPORTED, "version 2"},
        {AT_KDF, 0, ERR_CORRUPT, "key derivation 0"},
        {AT_KDF, 2, ERR_CORRUPT, "key derivation 2"},
        {AT_PASSES, 0, ERR_CORRUPT, "0 passes"},
        {AT_PASSES, 17, ERR_CORRUPT, "17 passes"},
        {AT_PASSES, UINT32_MAX, ERR_CORRUPT, "4294967295 passes"},
        {AT_MEMORY, 0, ERR_CORRUPT, "over 0 KiB"},
        {AT_MEMORY, 7, ERR_CORRUPT, "over 7 KiB"},
        {AT_MEMORY, 1024 * 1024 + 1, ERR_CORRUPT, "over 1048577 KiB"},
        {AT_MEMORY, UINT32_MAX, ERR_CORRUPT, "over 4294967295 KiB"},
    };
    for (size_t i = 0; i < COUNT(table); i++) {
        uint8_t file[KEYSTORE_BYTES];
        struct err err;
        make_file(file, "operator", "open sesame");
        put_be32(file + table[i].at, table[i].value);
        fix_checksum(file);
        enum err_code code = try_open(file, sizeof file, "open sesame", &err);
        if (code != table[i].code || strstr(err.message, table[i].says) == NULL)
            fail_msg("%u at %zu: expected %s that says \"%s\", got %s: %s", table[i].value,
                     table[i].at, err_code_name(table[i].code), table[i].says, err_code_name(code),
                     err.message);
    }
}

static void names_are_safe_as_file_names(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        bool ok;
    } table[] = {
        {"operator", true},
        {"a", true},
        {"0", true},
        {"a-b_c9", true},
        {"", false},
        {"A", false},
        {"-a", false},
        {"_a", false},
        {".", false},
        {"..", false},
        {"../a", false},
        {"a/b", false},
        {"a.key", false},
        {"a b", false},
        {"a\n", false},
        {"\xc3\xa9", false},
        {"abcdefghijklmnopqrstuvwxyz01234", true},
        {"abcdefghijklmnopqrstuvwxyz012345", false},
    };
    for (size_t i = 0; i < COUNT(table); i++) {
        if (keystore_name_ok(table[i].name) != table[i].ok)
            fail_msg("name \"%s\": expected %s", table[i].name, table[i].ok ? "yes" : "no");
        uint8_t file[KEYFILE_MAX_BYTES];
        size_t n;
        struct err err = {0};
        if (!table[i].ok) {
            assert_int_equal(keyfile_read("/nonexistent", table[i].name, file, &n, &err), -1);
            assert_int_equal(err.code, ERR_INVALID);
        }
    }
}

/* ---- files ----------------------------------------------------------------------------------- */

static size_t entries_of(const char *dir)
{
    char *command = xasprintf("ls -A '%s' | wc -l", dir);
    FILE *p = popen(command, "r");
    size_t n = 0;
    assert_int_equal(fscanf(p, "%zu", &n), 1);
    pclose(p);
    free(command);
    return n;
}

static void a_key_file_is_private_from_the_start_and_never_overwritten(void **state)
{
    (void)state;
    char *base = temp_dir_create(), *dir = xasprintf("%s/some/wallet", base);
    char *path = xasprintf("%s/house.key", dir);
    uint8_t file[KEYSTORE_BYTES], other[KEYSTORE_BYTES], got[KEYFILE_MAX_BYTES];
    struct stat st;
    struct err err;
    size_t n;
    make_file(file, "house", "open sesame");
    make_file(other, "house", "open sesame");
    mode_t before = umask(0); /* the mode must not depend on it */
    assert_ok(keyfile_create(dir, "house", file, &err), err);
    umask(before);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);

    assert_int_equal(keyfile_create(dir, "house", other, &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    assert_non_null(strstr(err.message, path));
    assert_ok(keyfile_read(dir, "house", got, &n, &err), err);
    assert_int_equal(n, KEYSTORE_BYTES);
    assert_memory_equal(got, file, n);
    assert_int_equal(entries_of(dir), 1); /* no temporary file is left */
    free(path);
    free(dir);
    temp_dir_remove(base);
}

static void a_disk_that_fills_up_leaves_no_file(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    uint8_t file[KEYSTORE_BYTES], got[KEYFILE_MAX_BYTES];
    struct err err;
    struct rlimit before, small;
    size_t n;
    make_file(file, "house", "open sesame");
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    for (rlim_t room = 0; room < KEYSTORE_BYTES; room += 17) {
        small = (struct rlimit){room, before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        int rc = keyfile_create(dir, "house", file, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(rc, -1);
        assert_int_equal(err.code, ERR_IO);
        assert_int_equal(entries_of(dir), 0);
    }
    signal(SIGXFSZ, handler);
    assert_ok(keyfile_create(dir, "house", file, &err), err);
    assert_ok(keyfile_read(dir, "house", got, &n, &err), err);
    temp_dir_remove(dir);
}

static void a_file_that_others_may_touch_is_refused(void **state)
{
    (void)state;
    char *dir = temp_dir_create(), *path = xasprintf("%s/house.key", dir);
    uint8_t file[KEYSTORE_BYTES], got[KEYFILE_MAX_BYTES];
    struct err err;
    size_t n;
    make_file(file, "house", "open sesame");
    assert_ok(keyfile_create(dir, "house", file, &err), err);
    for (mode_t mode = 0; mode < 01000; mode++) {
        if ((mode & 0400) == 0)
            continue; /* root reads it all the same, others don't */
        assert_int_equal(chmod(path, mode), 0);
        err = (struct err){0};
        int rc = keyfile_read(dir, "house", got, &n, &err);
        bool private = (mode & 0077) == 0;
        if ((rc == 0) != private)
            fail_msg("mode %03o: %s", (unsigned)mode, rc == 0 ? "accepted" : err.message);
        if (!private && (err.code != ERR_FORBIDDEN || strstr(err.message, path) == NULL ||
                         strstr(err.message, "chmod 600") == NULL))
            fail_msg("mode %03o: the sentence doesn't help: %s", (unsigned)mode, err.message);
    }
    free(path);
    temp_dir_remove(dir);
}

static void what_is_no_regular_file_is_refused(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    char *fifo = xasprintf("%s/fifo.key", dir), *sub = xasprintf("%s/folder.key", dir);
    char *big = xasprintf("%s/big.key", dir);
    uint8_t got[KEYFILE_MAX_BYTES], zeros[KEYFILE_MAX_BYTES] = {0};
    struct err err;
    size_t n;
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(keyfile_read(dir, "fifo", got, &n, &err), -1);
    assert_int_equal(err.code, ERR_FORBIDDEN);
    assert_int_equal(mkdir(sub, 0700), 0);
    assert_int_equal(keyfile_read(dir, "folder", got, &n, &err), -1);
    assert_int_equal(err.code, ERR_FORBIDDEN);
    assert_ok(file_write_atomic(big, zeros, sizeof zeros, 0600, &err), err);
    assert_int_equal(keyfile_read(dir, "big", got, &n, &err), -1);
    assert_int_equal(err.code, ERR_CORRUPT);
    assert_int_equal(keyfile_read(dir, "absent", got, &n, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err.message, "absent.key"));
    free(fifo);
    free(sub);
    free(big);
    temp_dir_remove(dir);
}

static void a_renamed_key_file_is_refused(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    uint8_t file[KEYSTORE_BYTES];
    struct keystore_header h;
    struct err err;
    make_file(file, "signer", "open sesame");
    assert_ok(keyfile_create(dir, "operator", file, &err), err);
    struct secret *p = vector_secret_text("open sesame");
    assert_null(keyfile_open(dir, "operator", p, &h, &err));
    assert_int_equal(err.code, ERR_CORRUPT);
    assert_non_null(strstr(err.message, "signer"));
    assert_int_equal(keyfile_peek(dir, "operator", &h, &err), -1);
    assert_int_equal(err.code, ERR_CORRUPT);
    secret_free(p);
    temp_dir_remove(dir);
}

static void a_directory_lists_its_keys_and_nothing_else(void **state)
{
    (void)state;
    static const char *const made[] = {
        "signer.key", "house.key",        "a.key",           "notes.txt", ".key",
        "B.key",      "house.key.Ab12Cd", "operator.key.bak"};
    char *dir = temp_dir_create(), *absent = xasprintf("%s/absent", dir);
    char(*names)[WALLET_NAME_BYTES];
    size_t n;
    struct err err;
    for (size_t i = 0; i < COUNT(made); i++) {
        char *path = xasprintf("%s/%s", dir, made[i]);
        assert_ok(file_write_atomic(path, "", 0, 0600, &err), err);
        free(path);
    }
    assert_ok(keyfile_names(dir, &names, &n, &err), err);
    assert_int_equal(n, 3);
    assert_string_equal(names[0], "a");
    assert_string_equal(names[1], "house");
    assert_string_equal(names[2], "signer");
    free(names);
    assert_ok(keyfile_names(absent, &names, &n, &err), err);
    assert_int_equal(n, 0);
    free(absent);
    temp_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_key_comes_back_with_its_header),
        cmocka_unit_test(the_layout_is_the_one_in_the_drawing),
        cmocka_unit_test(key_files_of_another_implementation_open),
        cmocka_unit_test(damage_anywhere_is_corrupt),
        cmocka_unit_test(an_alteration_behind_a_mended_checksum_is_refused),
        cmocka_unit_test(another_passphrase_does_not_open_it),
        cmocka_unit_test(a_short_or_long_file_is_corrupt),
        cmocka_unit_test(a_header_beyond_the_limits_is_refused_before_any_work),
        cmocka_unit_test(names_are_safe_as_file_names),
        cmocka_unit_test(a_key_file_is_private_from_the_start_and_never_overwritten),
        cmocka_unit_test(a_disk_that_fills_up_leaves_no_file),
        cmocka_unit_test(a_file_that_others_may_touch_is_refused),
        cmocka_unit_test(what_is_no_regular_file_is_refused),
        cmocka_unit_test(a_renamed_key_file_is_refused),
        cmocka_unit_test(a_directory_lists_its_keys_and_nothing_else),
    };
    return cmocka_run_group_tests_name("keystore", tests, NULL, NULL);
}
