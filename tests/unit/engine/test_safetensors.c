/* safetensors files, good and hostile, at the edge of an unreadable page; and directories of them.
 */
#include "engine/safetensors.h"
#include "node/base/err.h"
#include "tests/support.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Parses `header` followed by n_data bytes, the file's last byte being the page's last. */
static int parse_guarded(const char *header, size_t n_header_says, size_t n_data, size_t *n_tensors,
                         struct err *err)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = 8 + strlen(header) + n_data;
    size_t n_pages = (n + page - 1) / page;
    uint8_t *map = mmap(NULL, (n_pages + 1) * page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(map != MAP_FAILED);
    assert_int_equal(mprotect(map + n_pages * page, page, PROT_NONE), 0);
    uint8_t *file = map + n_pages * page - n;
    for (int i = 0; i < 8; i++)
        file[i] = (uint8_t)((uint64_t)n_header_says >> 8 * i);
    memcpy(file + 8, header, strlen(header));
    struct safetensors s;
    int rc = safetensors_parse(&s, file, n, err);
    *n_tensors = rc == 0 ? s.n_tensors : 0;
    if (rc == 0) {
        for (size_t i = 0; i < s.n_tensors; i++)
            assert_ptr_equal(safetensors_find(&s, s.tensors[i].name), &s.tensors[i]);
        assert_null(safetensors_find(&s, "no such tensor"));
        safetensors_release(&s);
    }
    munmap(map, (n_pages + 1) * page);
    return rc;
}

#define T(name, dtype, shape, b, e) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #b "," #e "]}"

static const struct {
    const char *name, *header;
    size_t n_data;
    const char *error; /* a part of the sentence; NULL: good */
    size_t n_tensors;
    /* clang-format off */
} CASES[] = {
    {"nothing at all", "{}", 0, NULL, 0},
    {"one tensor", "{" T("a", "F32", "[2,3]", 0, 24) "}", 24, NULL, 1},
    {"a scalar", "{" T("a", "F64", "[]", 0, 8) "}", 8, NULL, 1},
    {"an empty tensor", "{" T("a", "F32", "[0,5]", 0, 0) "," T("b", "U8", "[1]", 0, 1) "}", 1, NULL, 2},
    {"any order", "{" T("b", "U8", "[3]", 2, 5) "," T("a", "BF16", "[1]", 0, 2) "}", 5, NULL, 2},
    {"metadata and white space",
     "{ \"__metadata__\" : {\"format\":\"pt\", \"x\":\"\\u00e9\\ud83d\\ude00\\/\"} ,\n"
     T("a", "I64", "[1]", 0, 8) " } \t ", 8, NULL, 1},
    {"metadata of several lines",
     "{\"__metadata__\":{\"config\":\"{\\n  \\\"lr\\\": 1\\r\\n\\t}\",\"a\\tb\":\"\\u0000\\u001b[0m\\b\\f\x7f\"}}",
     0, NULL, 0},
    {"keys of a tensor in any order",
     "{\"a\":{\"data_offsets\":[0,1],\"shape\":[1],\"dtype\":\"BOOL\"}}", 1, NULL, 1},

    {"no object", "[]", 0, "expected '{'", 0},
    {"white space first", " {}", 0, "expected '{'", 0},
    {"text behind", "{}x", 0, "text after the object", 0},
    {"no end", "{" T("a", "U8", "[1]", 0, 1), 1, "expected '}'", 0},
    {"end in a string", "{\"a", 0, "no end", 0},
    {"end in an escape", "{\"a\\", 0, "no end", 0},
    {"end in a \\u escape", "{\"a\\u00", 0, "four hexadecimal", 0},
    {"half a surrogate pair", "{\"\\ud800\":1}", 0, "surrogate", 0},
    {"a control character", "{\"a\nb\":1}", 0, "control character", 0},
    {"an escaped NUL", "{\"a\\u0000b\":1}", 0, "control character", 0},
    {"not UTF-8", "{\"a\xff\":1}", 0, "UTF-8", 0},
    {"overlong UTF-8", "{\"a\xc0\xaf\":1}", 0, "UTF-8", 0},
    {"cut UTF-8", "{\"a\xe2\x82\"}", 0, "UTF-8", 0},
    {"unknown dtype", "{" T("a", "F7", "[1]", 0, 1) "}", 1, "unknown dtype", 0},
    {"unknown key", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}", 1,
     "unknown key", 0},
    {"a key twice", "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
     1, "twice", 0},
    {"no shape", "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "lacks", 0},
    {"nested instead of a tensor", "{\"a\":[[[[[[[[[[[[[", 0, "expected '{'", 0},
    {"a negative dimension", "{" T("a", "U8", "[-1]", 0, 1) "}", 1, "non-negative integer", 0},
    {"a dimension with a point", "{" T("a", "U8", "[1.0]", 0, 1) "}", 1, "non-negative integer", 0},
    {"a leading zero", "{" T("a", "U8", "[01]", 0, 1) "}", 1, "begins with 0", 0},
    {"a number too large", "{" T("a", "U8", "[99999999999999999999]", 0, 1) "}", 1, "too large", 0},
    {"nine dimensions", "{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", 0, 1) "}", 1, "too long", 0},
    {"shape overflow", "{" T("a", "F64", "[4611686018427387904,8]", 0, 8) "}", 8, "overflows", 0},
    {"shape overflow to the right size",
     "{" T("a", "U8", "[4294967296,4294967297]", 0, 4) "}", 4, "overflows", 0},
    {"three offsets", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]}}", 1,
     "too long", 0},
    {"one offset", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1, "two numbers", 0},
    {"offsets backwards", "{" T("a", "U8", "[1]", 1, 0) "}", 1, "backwards", 0},
    {"beyond the file", "{" T("a", "U8", "[9]", 0, 9) "}", 8, "the file holds 8", 0},
    {"size against shape", "{" T("a", "F32", "[2]", 0, 4) "}", 4, "needs 8 bytes", 0},
    {"overlap", "{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[4]", 2, 6) "}", 6, "overlapping", 0},
    {"the same place twice", "{" T("a", "U8", "[4]", 0, 4) "," T("b", "U8", "[4]", 0, 4) "}", 4,
     "overlapping", 0},
    {"a hole", "{" T("a", "U8", "[2]", 0, 2) "," T("b", "U8", "[2]", 3, 5) "}", 5, "hole", 0},
    {"a hole at the beginning", "{" T("a", "U8", "[2]", 1, 3) "}", 3, "hole", 0},
    {"a rest", "{" T("a", "U8", "[2]", 0, 2) "}", 3, "belong to no tensor", 0},
    {"a rest of no tensors", "{}", 3, "belong to no tensor", 0},
    {"a name twice", "{" T("a", "U8", "[2]", 0, 2) "," T("a", "U8", "[2]", 2, 4) "}", 4,
     "comes twice", 0},
    {"metadata twice", "{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice", 0},
    {"a line end in metadata that is not escaped",
     "{\"__metadata__\":{\"a\":\"b\nc\"}}", 0, "control character", 0},
    {"an escape in metadata that is none", "{\"__metadata__\":{\"a\":\"\\x\"}}", 0, "escape", 0},
    {"an escaped line end in a name", "{\"a\\nb\":1}", 0, "control character", 0},
    {"metadata that is no text", "{\"__metadata__\":{\"a\":1}}", 0, "expected '\"'", 0},
    {"a comma too many", "{" T("a", "U8", "[1]", 0, 1) ",}", 1, "expected '\"'", 0},
};
/* clang-format on */

static void headers_are_taken_or_refused_as_the_table_says(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        struct err err = {0};
        size_t n_tensors;
        int rc = parse_guarded(CASES[i].header, strlen(CASES[i].header), CASES[i].n_data,
                               &n_tensors, &err);
        if ((rc == 0) != (CASES[i].error == NULL))
            fail_msg("%s: %s", CASES[i].name, rc == 0 ? "was taken" : err.message);
        if (rc == 0 && n_tensors != CASES[i].n_tensors)
            fail_msg("%s: %zu tensors, expected %zu", CASES[i].name, n_tensors, CASES[i].n_tensors);
        if (rc != 0 && strstr(err.message, CASES[i].error) == NULL)
            fail_msg("%s: expected \"%s\", got \"%s\"", CASES[i].name, CASES[i].error, err.message);
    }
    print_message("note: %zu headers\n", sizeof CASES / sizeof CASES[0]);
}

static void every_prefix_of_a_good_file_is_refused(void **state)
{
    (void)state;
    const char *header = "{\"__metadata__\":{\"a\":\"b\"}," T("a", "F32", "[2,3]", 0, 24) "," T(
        "b", "BF16", "[1]", 24, 26) "}";
    size_t n = strlen(header), n_tensors;
    struct err err = {0};
    assert_ok(parse_guarded(header, n, 26, &n_tensors, &err), err);
    for (size_t cut = 0; cut < n; cut++) {
        char *part = xstrndup(header, cut);
        assert_int_equal(parse_guarded(part, cut, 0, &n_tensors, &err), -1);
        assert_int_equal(parse_guarded(part, n, 0, &n_tensors, &err), -1);
        free(part);
    }
    for (size_t n_data = 0; n_data < 26; n_data++)
        assert_int_equal(parse_guarded(header, n, n_data, &n_tensors, &err), -1);
    uint8_t few[8] = {1, 0, 0, 0, 0, 0, 0, 0};
    struct safetensors s;
    for (size_t i = 0; i < 8; i++)
        assert_int_equal(safetensors_parse(&s, few, i, &err), -1);
}

static void a_header_of_ten_gigabytes_is_refused_by_its_length(void **state)
{
    (void)state;
    struct err err = {0};
    size_t n_tensors;
    assert_int_equal(parse_guarded("{}", 10737418240u, 0, &n_tensors, &err), -1);
    assert_string_equal(err.message, "header is 10737418240 bytes, limit is 100000000");
    assert_int_equal(err.code, ERR_TOO_LARGE);
    assert_int_equal(parse_guarded("{}", SIZE_MAX, 0, &n_tensors, &err), -1);
    assert_int_equal(parse_guarded("{}", 3, 0, &n_tensors, &err), -1); /* one byte is not there */
}

static void numbers_of_every_dtype_are_read_exactly(void **state)
{
    static const struct {
        uint16_t bits;
        float f16, bf16;
    } halves[] = {
        {0x0000, 0.0f, 0.0f},
        {0x3c00, 1.0f, 0x1p-7f},
        {0xc000, -2.0f, -2.0f},
        {0x0001, 0x1p-24f, 0x1p-133f},
        {0x03ff, 0x1.ff8p-15f, 0x1.fep-120f},
        {0x7bff, 65504.0f, 0x1.fep120f},
        {0x8000, -0.0f, -0.0f},
        {0x3f80, 1.875f, 1.0f},
    };
    (void)state;
    for (size_t i = 0; i < sizeof halves / sizeof halves[0]; i++) {
        struct tensor t = {.data = (const uint8_t *)&halves[i].bits, .n_bytes = 2};
        t.dtype = TENSOR_F16;
        float f = tensor_f32(&t, 0);
        assert_memory_equal(&f, &halves[i].f16, 4);
        t.dtype = TENSOR_BF16;
        f = tensor_f32(&t, 0);
        assert_memory_equal(&f, &halves[i].bf16, 4);
    }
}

/* ---- directories ------------------------------------------------------------------------- */

static void write_file(const char *dir, const char *name, const void *bytes, size_t n)
{
    struct err err = {0};
    char *path = xasprintf("%s/%s", dir, name);
    assert_ok(file_write_atomic(path, bytes, n, 0600, &err), err);
    free(path);
}

/* One U8 tensor a name, of one byte each. */
static void write_shard(const char *dir, const char *name, const char *const *tensors, int n)
{
    struct buf header = BUF_INIT, file = BUF_INIT;
    buf_append_byte(&header, '{');
    for (int i = 0; i < n; i++)
        buf_appendf(&header, "%s\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                    i > 0 ? "," : "", tensors[i], i, i + 1);
    buf_append_byte(&header, '}');
    uint64_t n_header = header.len;
    buf_append(&file, &n_header, 8);
    buf_append(&file, header.data, header.len);
    buf_append(&file, "abcdefgh", (size_t)n);
    write_file(dir, name, file.data, file.len);
    buf_release(&header);
    buf_release(&file);
}

static void shards_and_their_index_must_agree(void **state)
{
    static const struct {
        const char *name, *index, *error;
    } cases[] = {
        {"good",
         "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-1.safetensors\","
         "\"c\":\"m-2.safetensors\"}}",
         NULL},
        {"no map", "{}", "weight_map"},
        {"an empty map", "{\"weight_map\":{}}", "empty"},
        {"not JSON", "{", "line"},
        {"twin keys", "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"a\":\"m-1.safetensors\"}}",
         "duplicate"},
        {"a path", "{\"weight_map\":{\"a\":\"../m-1.safetensors\"}}", "not a plain name"},
        {"an absolute path", "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "not a plain name"},
        {"a number", "{\"weight_map\":{\"a\":7}}", "not a plain name"},
        {"no such shard", "{\"weight_map\":{\"a\":\"m-9.safetensors\"}}", "m-9.safetensors"},
        {"the wrong shard",
         "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-2.safetensors\","
         "\"c\":\"m-2.safetensors\"}}",
         "tensor b"},
        {"a tensor nobody has",
         "{\"weight_map\":{\"a\":\"m-1.safetensors\","
         "\"b\":\"m-1.safetensors\",\"c\":\"m-2.safetensors\","
         "\"d\":\"m-2.safetensors\"}}",
         "lacks tensor d"},
        {"a tensor in two shards",
         "{\"weight_map\":{\"a\":\"m-1.safetensors\",\"b\":\"m-1.safetensors\","
         "\"c\":\"m-3.safetensors\"}}",
         "in two files"},
    };
    static const char *const first[] = {"a", "b"}, *const second[] = {"c"};
    static const char *const third[] = {"c", "a"};
    (void)state;
    char *dir = temp_dir_create();
    write_shard(dir, "m-1.safetensors", first, 2);
    write_shard(dir, "m-2.safetensors", second, 1);
    write_shard(dir, "m-3.safetensors", third, 2);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int how = TENSOR_DIR_MAP; how <= TENSOR_DIR_READ; how++) {
            struct tensor_dir d;
            struct err err = {0};
            write_file(dir, "m.safetensors.index.json", cases[i].index, strlen(cases[i].index));
            int rc = tensor_dir_open(&d, dir, "m", (enum tensor_dir_how)how, 1 << 20, &err);
            if ((rc == 0) != (cases[i].error == NULL) ||
                (rc != 0 && strstr(err.message, cases[i].error) == NULL))
                fail_msg("%s: %s", cases[i].name, rc == 0 ? "was taken" : err.message);
            if (rc == 0) {
                assert_int_equal(d.n_tensors, 3);
                assert_int_equal(tensor_dir_find(&d, "c")->data[0], 'a');
                assert_int_equal(tensor_dir_find(&d, "b")->data[0], 'b');
                tensor_dir_close(&d);
            }
        }
    }
    temp_dir_remove(dir);
}

static void files_over_the_limit_and_pickles_are_refused(void **state)
{
    static const char *const one[] = {"a"};
    (void)state;
    struct tensor_dir d;
    struct err err = {0};
    char *dir = temp_dir_create();
    assert_int_equal(tensor_dir_open(&d, dir, "m", TENSOR_DIR_READ, 1000, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    write_shard(dir, "m.safetensors", one, 1);
    assert_ok(tensor_dir_open(&d, dir, "m", TENSOR_DIR_READ, 1000, &err), err);
    tensor_dir_close(&d);
    assert_int_equal(tensor_dir_open(&d, dir, "m", TENSOR_DIR_READ, 50, &err), -1);
    assert_int_equal(err.code, ERR_TOO_LARGE);
    temp_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers_are_taken_or_refused_as_the_table_says),
        cmocka_unit_test(every_prefix_of_a_good_file_is_refused),
        cmocka_unit_test(a_header_of_ten_gigabytes_is_refused_by_its_length),
        cmocka_unit_test(numbers_of_every_dtype_are_read_exactly),
        cmocka_unit_test(shards_and_their_index_must_agree),
        cmocka_unit_test(files_over_the_limit_and_pickles_are_refused),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}
