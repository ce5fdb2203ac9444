/* Tensors that are read to their places: what lies there is what was hashed, whatever the files do,
 * and what is short or not finite is refused. Files above a megabyte are read by a thread beside
 * the one that hashes, smaller ones in turn; each case is both. */
#include "engine/safetensors.h"
#include "engine/tensor_numbers.h"
#include "node/base/err.h"
#include "node/base/sha256.h"
#include "tests/support.h"

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SMALL = 1000, LARGE = 300 * 1000, N_TENSORS = 3 }; /* numbers of a tensor */

static const size_t SIZES[] = {SMALL, LARGE};

/* Three tensors of n numbers each, from `first` down: their names run against their order. */
static void file_make(struct buf *out, const char *const dtypes[N_TENSORS], size_t n, char first)
{
    struct buf header = BUF_INIT;
    size_t at = 0;
    for (int t = 0; t < N_TENSORS; t++) {
        size_t bytes = n * (strcmp(dtypes[t], "F32") == 0 ? 4 : 2);
        buf_appendf(&header,
                    "%s\"%c\":{\"dtype\":\"%s\",\"shape\":[%zu],\"data_offsets\":[%zu,%zu]}",
                    t == 0 ? "{" : ",", first - t, dtypes[t], n, at, at + bytes);
        at += bytes;
    }
    buf_append_byte(&header, '}');
    uint64_t n_header = header.len;
    buf_reset(out);
    buf_append(out, &n_header, 8);
    buf_append(out, header.data, header.len);
    buf_release(&header);
    uint32_t noise = 1;
    for (size_t i = 0; i < at; i += 2) {
        noise = noise * 1664525 + 1013904223;
        uint16_t word = (noise >> 16) & 0xbbff; /* finite in each dtype */
        buf_append(out, &word, 2);
    }
}

static void file_write(const char *dir, const char *name, const struct buf *file)
{
    struct err err = {0};
    char *path = xasprintf("%s/%s", dir, name);
    assert_ok(file_write_atomic(path, file->data, file->len, 0600, &err), err);
    free(path);
}

enum { AS_IN_FILE = -1 };

/* Opens DIR/m and gives each tensor a place of its own, of dtype `held`, or AS_IN_FILE;
 * free(*places). */
static void open_and_place(struct tensor_dir *d, const char *dir, int held, uint8_t **places)
{
    struct err err = {0};
    assert_ok(tensor_dir_open(d, dir, "m", TENSOR_DIR_HEADERS, SIZE_MAX, &err), err);
    size_t total = 0;
    for (size_t i = 0; i < d->n_tensors; i++)
        total += tensor_n_elements(d->tensors[i]) * 4;
    *places = xcalloc(total, 1);
    for (size_t i = 0, at = 0; i < d->n_tensors; i++) {
        const struct tensor *t = d->tensors[i];
        enum tensor_dtype to = held == AS_IN_FILE ? t->dtype : (enum tensor_dtype)held;
        assert_null(t->data);
        tensor_dir_place(d, t, *places + at, to);
        at += tensor_n_elements(t) * tensor_dtype_bytes(to);
    }
}

static void tensors_come_to_their_places_and_digests_are_of_the_files(void **state)
{
    static const char *const dtypes[] = {"BF16", "F32", "F16"};
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct buf file = BUF_INIT;
        struct tensor_dir d, whole;
        struct err err = {0};
        uint8_t *places;
        char *dir = temp_dir_create();
        file_make(&file, dtypes, SIZES[k], 'c');
        file_write(dir, "m.safetensors", &file);
        open_and_place(&d, dir, AS_IN_FILE, &places);
        assert_ok(tensor_dir_read(&d, &err), err);
        assert_ok(tensor_dir_open(&whole, dir, "m", TENSOR_DIR_READ, SIZE_MAX, &err), err);
        assert_true(DIGEST_EQ(d.files[0].digest, sha256(file.data, file.len)));
        assert_int_equal(d.n_tensors, whole.n_tensors);
        for (size_t i = 0; i < d.n_tensors; i++) {
            assert_string_equal(d.tensors[i]->name, whole.tensors[i]->name);
            assert_int_equal(d.tensors[i]->n_bytes, whole.tensors[i]->n_bytes);
            assert_memory_equal(d.tensors[i]->data, whole.tensors[i]->data, d.tensors[i]->n_bytes);
        }
        tensor_dir_close(&d);
        tensor_dir_close(&whole);
        free(places);
        buf_release(&file);
        temp_dir_remove(dir);
    }
}

/* The digest stays that of the file; a tensor that has the dtype already comes straight. */
static void tensors_may_be_held_as_another_dtype_than_the_file_s(void **state)
{
    static const char *const dtypes[][N_TENSORS] = {
        {"F32", "F32", "F32"}, {"F16", "F16", "F16"}, {"BF16", "F32", "F16"}};
    (void)state;
    char *dir = temp_dir_create();
    for (size_t c = 0; c < 2 * 2 * sizeof dtypes / sizeof dtypes[0]; c++) {
        size_t n = SIZES[c % 2];
        enum tensor_dtype held = c / 2 % 2 == 0 ? TENSOR_BF16 : TENSOR_F32;
        struct buf file = BUF_INIT;
        struct tensor_dir d, whole;
        struct err err = {0};
        uint8_t *places, *expected = xcalloc(n, 4);
        file_make(&file, dtypes[c / 4], n, 'c');
        file_write(dir, "m.safetensors", &file);
        open_and_place(&d, dir, (int)held, &places);
        assert_ok(tensor_dir_read(&d, &err), err);
        assert_ok(tensor_dir_open(&whole, dir, "m", TENSOR_DIR_READ, SIZE_MAX, &err), err);
        assert_true(DIGEST_EQ(d.files[0].digest, sha256(file.data, file.len)));
        for (size_t i = 0; i < d.n_tensors; i++) {
            const struct tensor *t = whole.tensors[i];
            tensor_numbers_convert(expected, held, t->data, t->dtype, n);
            assert_memory_equal(d.tensors[i]->data, expected, n * tensor_dtype_bytes(held));
        }
        tensor_dir_close(&d);
        tensor_dir_close(&whole);
        free(places);
        free(expected);
        buf_release(&file);
    }
    temp_dir_remove(dir);
}

static void every_shard_has_its_digest(void **state)
{
    static const char *const dtypes[] = {"BF16", "BF16", "BF16"};
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct buf file = BUF_INIT, index = BUF_INIT;
        struct tensor_dir d;
        struct err err = {0};
        uint8_t *places;
        char *dir = temp_dir_create();
        file_make(&file, dtypes, SIZES[k], 'c');
        file_write(dir, "m-1.safetensors", &file);
        struct sha256_digest one = sha256(file.data, file.len);
        file_make(&file, dtypes, SIZES[k], 'f');
        file_write(dir, "m-2.safetensors", &file);
        struct sha256_digest two = sha256(file.data, file.len);
        buf_append_str(&index, "{\"weight_map\":{");
        for (int c = 'a'; c <= 'f'; c++)
            buf_appendf(&index, "%s\"%c\":\"m-%d.safetensors\"", c > 'a' ? "," : "", c,
                        c <= 'c' ? 1 : 2);
        buf_append_str(&index, "}}");
        file_write(dir, "m.safetensors.index.json", &index);
        open_and_place(&d, dir, AS_IN_FILE, &places);
        assert_ok(tensor_dir_read(&d, &err), err);
        assert_int_equal(d.n_files, 3);
        assert_true(DIGEST_EQ(d.files[0].digest, sha256(index.data, index.len)));
        for (size_t i = 1; i < 3; i++)
            assert_true(DIGEST_EQ(d.files[i].digest,
                                  strcmp(d.files[i].name, "m-1.safetensors") == 0 ? one : two));
        tensor_dir_close(&d);
        free(places);
        buf_release(&file);
        buf_release(&index);
        temp_dir_remove(dir);
    }
}

static void a_number_that_is_not_finite_is_found_wherever_it_is(void **state)
{
    static const struct {
        const char *dtype;
        uint32_t bits; /* of the number; of 16 bits the low ones */
        bool finite;
    } cases[] = {
        {"BF16", 0x7f80, false},    {"BF16", 0xff80, false},    {"BF16", 0x7fc1, false},
        {"BF16", 0xff7f, true},     {"F16", 0x7c00, false},     {"F16", 0xfc00, false},
        {"F16", 0x7e01, false},     {"F16", 0xfbff, true},      {"F32", 0x7f800000, false},
        {"F32", 0xff800000, false}, {"F32", 0x7fc00001, false}, {"F32", 0xffffffff, false},
        {"F32", 0xff7fffff, false}, {"F32", 0x7f7f8000, false}, /* infinite as a bf16 */
        {"F32", 0xff7f7fff, true},  {"F32", 0x807fffff, true},
    };
    (void)state;
    char *dir = temp_dir_create();
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (size_t k = 0; k < 2; k++) {
            const char *const dtypes[] = {cases[c].dtype, cases[c].dtype, cases[c].dtype};
            size_t width = strcmp(cases[c].dtype, "F32") == 0 ? 4 : 2, n = SIZES[k];
            size_t all = N_TENSORS * n, where[] = {0, n - 1, n, all - n / 2, all - 1};
            struct buf file = BUF_INIT;
            file_make(&file, dtypes, n, 'c');
            size_t data = file.len - all * width;
            for (size_t w = 0; w < sizeof where / sizeof where[0]; w++) {
                struct tensor_dir d;
                struct err err = {0};
                uint8_t *places, was[4];
                int held = (w + k) % 2 == 0 ? AS_IN_FILE : (int)TENSOR_BF16;
                memcpy(was, file.data + data + where[w] * width, width);
                memcpy(file.data + data + where[w] * width, &cases[c].bits, width);
                file_write(dir, "m.safetensors", &file);
                memcpy(file.data + data + where[w] * width, was, width);
                open_and_place(&d, dir, held, &places);
                int rc = tensor_dir_read(&d, &err);
                char says[100];
                snprintf(says, sizeof says, "tensor %c: holds numbers that are not finite%s",
                         (char)('c' - (int)(where[w] / n)), width == 4 ? " as bf16" : "");
                if ((rc == 0) != cases[c].finite ||
                    (rc != 0 && (err.code != ERR_INVALID || strcmp(err.message, says) != 0)))
                    fail_msg("%s %08" PRIx32 " as number %zu of %zu: %s", cases[c].dtype,
                             cases[c].bits, where[w], all, rc == 0 ? "was taken" : err.message);
                tensor_dir_close(&d);
                free(places);
            }
            buf_release(&file);
        }
    }
    temp_dir_remove(dir);
}

static void a_file_that_becomes_shorter_is_refused_by_name(void **state)
{
    static const char *const dtypes[] = {"BF16", "BF16", "BF16"};
    (void)state;
    for (size_t k = 0; k < 2; k++) {
        struct buf file = BUF_INIT;
        char *dir = temp_dir_create(), *path = xasprintf("%s/m.safetensors", dir);
        file_make(&file, dtypes, SIZES[k], 'c');
        size_t lengths[] = {0, 8, file.len / 2, file.len - 1};
        for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
            struct tensor_dir d;
            struct err err = {0};
            uint8_t *places;
            file_write(dir, "m.safetensors", &file);
            open_and_place(&d, dir, AS_IN_FILE, &places);
            assert_int_equal(truncate(path, (off_t)lengths[i]), 0);
            int rc = tensor_dir_read(&d, &err);
            if (rc == 0 || err.code != ERR_IO ||
                strncmp(err.message, "m.safetensors: became shorter", 29) != 0)
                fail_msg("%zu of %zu bytes: %s", lengths[i], file.len,
                         rc == 0 ? "was taken" : err.message);
            tensor_dir_close(&d);
            free(places);
        }
        buf_release(&file);
        free(path);
        temp_dir_remove(dir);
    }
}

/* Somebody writes the file while others read it, several at once. */
struct meddling {
    const char *path;
    const struct buf *file;
    atomic_bool stop;
};

static void *meddle(void *context)
{
    struct meddling *m = context;
    int fd = open(m->path, O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    for (unsigned i = 0; !atomic_load(&m->stop); i++) {
        size_t at = m->file->len - 2 - i * 10000 % (m->file->len / 2) / 2 * 2;
        uint16_t word = (uint16_t)(i & 0x3fff);
        assert_int_equal(pwrite(fd, &word, 2, (off_t)at), 2);
        usleep(100);
        if (i % 256 == 255) {
            assert_int_equal(ftruncate(fd, (off_t)(m->file->len / 2)), 0);
            assert_int_equal(pwrite(fd, m->file->data, m->file->len, 0), m->file->len);
        }
    }
    close(fd);
    return NULL;
}

enum { READS = 8, TRIES_MAX = 1000 };

struct outcome {
    const char *dir;
    enum tensor_dtype held; /* BF16, as in the file; or F32, which can be taken back exactly */
    int n_read, n_refused;
    bool wrong;
};

static void *read_many(void *context)
{
    struct outcome *o = context;
    while (o->n_read < READS && o->n_read + o->n_refused < TRIES_MAX) {
        struct tensor_dir d;
        struct err err = {0};
        if (tensor_dir_open(&d, o->dir, "m", TENSOR_DIR_HEADERS, SIZE_MAX, &err) != 0) {
            o->n_refused++;
            continue;
        }
        const struct tensor_dir_file *f = &d.files[0];
        uint8_t *bytes = xcalloc(f->n_bytes, 1); /* the file again: tensors lie where they did */
        uint8_t *held = xcalloc(f->n_bytes, 2);
        memcpy(bytes, f->bytes, f->n_header);
        for (size_t t = 0; t < d.n_tensors; t++) {
            uint8_t *place = o->held == TENSOR_BF16 ? bytes + d.tensors[t]->at
                                                    : held + 2 * d.tensors[t]->at;
            tensor_dir_place(&d, d.tensors[t], place, o->held);
        }
        if (tensor_dir_read(&d, &err) != 0) {
            o->wrong |= err.code != ERR_IO;
            o->n_refused++;
        } else {
            for (size_t t = 0; o->held != TENSOR_BF16 && t < d.n_tensors; t++)
                tensor_numbers_convert(bytes + d.tensors[t]->at, TENSOR_BF16, d.tensors[t]->data,
                                       o->held, tensor_n_elements(d.tensors[t]));
            o->wrong |= !DIGEST_EQ(f->digest, sha256(bytes, f->n_bytes));
            o->n_read++;
        }
        free(bytes);
        free(held);
        tensor_dir_close(&d);
    }
    return NULL;
}

static void what_was_hashed_is_what_lies_there_whoever_writes_the_file(void **state)
{
    enum { READERS = 3 };
    static const char *const dtypes[] = {"BF16", "BF16", "BF16"};
    (void)state;
    struct buf file = BUF_INIT;
    char *dir = temp_dir_create(), *path = xasprintf("%s/m.safetensors", dir);
    file_make(&file, dtypes, LARGE, 'c');
    file_write(dir, "m.safetensors", &file);
    struct meddling m = {.path = path, .file = &file};
    struct outcome outcomes[READERS] = {{0}};
    pthread_t meddler, readers[READERS];
    assert_int_equal(pthread_create(&meddler, NULL, meddle, &m), 0);
    for (int i = 0; i < READERS; i++) {
        outcomes[i].dir = dir;
        outcomes[i].held = i % 2 == 0 ? TENSOR_F32 : TENSOR_BF16;
        assert_int_equal(pthread_create(&readers[i], NULL, read_many, &outcomes[i]), 0);
    }
    int n_refused = 0;
    for (int i = 0; i < READERS; i++) {
        pthread_join(readers[i], NULL);
        assert_false(outcomes[i].wrong);
        assert_int_equal(outcomes[i].n_read, READS);
        n_refused += outcomes[i].n_refused;
    }
    atomic_store(&m.stop, true);
    pthread_join(meddler, NULL);
    printf("note: %d read, %d refused\n", READERS * READS, n_refused);
    buf_release(&file);
    free(path);
    temp_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_come_to_their_places_and_digests_are_of_the_files),
        cmocka_unit_test(tensors_may_be_held_as_another_dtype_than_the_file_s),
        cmocka_unit_test(every_shard_has_its_digest),
        cmocka_unit_test(a_number_that_is_not_finite_is_found_wherever_it_is),
        cmocka_unit_test(a_file_that_becomes_shorter_is_refused_by_name),
        cmocka_unit_test(what_was_hashed_is_what_lies_there_whoever_writes_the_file),
    };
    return cmocka_run_group_tests_name("tensor_read", tests, NULL, NULL);
}
