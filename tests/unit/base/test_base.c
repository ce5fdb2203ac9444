/* The floor: errors, buffers, hex, arena, queue, sha256, files. */
#include "tests/support.h"

#include "node/base/arena.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/queue.h"
#include "node/base/sha256.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What clients and registries say comes into the log: it must neither begin lines nor move a
 * terminal's cursor, which U+009B does as well as ESC [. */
static void a_record_of_the_log_is_one_line_without_control_characters(void **state)
{
    (void)state;
    int ends[2], was = dup(STDERR_FILENO);
    char line[256] = "";
    assert_true(was >= 0 && pipe(ends) == 0 && dup2(ends[1], STDERR_FILENO) >= 0);
    log_error("test", "%s",
              "caf\xC3\xA9\n\x1b[2A\x7f\xC2\x9B"
              "2J\xC2\xA0.");
    dup2(was, STDERR_FILENO);
    close(ends[1]);
    ssize_t n = read(ends[0], line, sizeof line - 1);
    close(ends[0]);
    close(was);
    const char *message = strstr(line, "test: ");
    assert_true(n > 0 && message != NULL);
    assert_string_equal(message, "test: caf\xC3\xA9  [2A   2J\xC2\xA0.\n");
}

static void an_error_reads_from_the_outside_in(void **state)
{
    (void)state;
    struct err e = {0};
    assert_int_equal(err_set(&e, ERR_TOO_LARGE, "header is %d bytes", 12), -1);
    assert_int_equal(err_wrap(&e, "adapter %s", "med"), -1);
    assert_string_equal(e.message, "adapter med: header is 12 bytes");
    assert_int_equal(e.code, ERR_TOO_LARGE);
    assert_int_equal(err_http_status(e.code), 413);
}

static void an_overlong_error_is_cut_at_a_character(void **state)
{
    (void)state;
    for (int pad = 0; pad < 4; pad++) {
        char text[2000];
        memset(text, 'x', sizeof text);
        for (size_t i = (size_t)pad; i + 3 < sizeof text; i += 3)
            memcpy(text + i, "\xe2\x82\xac", 3);
        text[sizeof text - 1] = '\0';
        struct err e = {0};
        err_set(&e, ERR_INVALID, "%s", text);
        size_t len = strlen(e.message);
        assert_true(len > ERR_MESSAGE_BYTES - 8);
        assert_memory_equal(e.message + len - 3, "\xe2\x82\xac", 3);
    }
}

static void every_error_code_has_a_name_and_a_status(void **state)
{
    (void)state;
    for (int c = ERR_OK; c <= ERR_INTERNAL; c++) {
        assert_non_null(err_code_name((enum err_code)c));
        assert_in_range(err_http_status((enum err_code)c), 200, 599);
    }
}

static void a_buffer_grows_and_stays_terminated(void **state)
{
    (void)state;
    struct buf b = BUF_INIT;
    assert_string_equal(buf_cstr(&b), "");
    for (int i = 0; i < 1000; i++)
        buf_appendf(&b, "%d,", i);
    assert_int_equal(b.len, strlen(buf_cstr(&b)));
    char *s = buf_detach(&b);
    assert_memory_equal(s + strlen(s) - 4, "999,", 4);
    free(s);
    assert_null(b.data);
}

static void hex_accepts_exactly_its_own_form(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int rc;
        const char *why;
    } rows[] = {
        {"0x00ff", 0, "prefix"},        {"00FF", 0, "upper case"},  {"0x00f", -1, "odd"},
        {"0x00ff0", -1, "too long"},    {"", -1, "empty"},          {"0x00fg", -1, "not a digit"},
        {" 00ff", -1, "leading space"}, {"0x0x00", -1, "twice 0x"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint8_t out[2];
        if (hex_decode(out, 2, rows[i].text) != rows[i].rc)
            fail_msg("%s (%s): expected %d", rows[i].text, rows[i].why, rows[i].rc);
        if (rows[i].rc == 0)
            assert_memory_equal(out, "\x00\xff", 2);
    }
}

static void sha256_of_abc_is_the_published_one(void **state)
{
    (void)state;
    char hex[65];
    struct sha256_digest d = sha256("abc", 3);
    assert_string_equal(hex_encode(hex, d.bytes, 32),
                        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

static void a_file_is_written_whole_and_read_back(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    char *nested = xasprintf("%s/a/b", dir), *path = xasprintf("%s/a/b/f", dir);
    struct err e = {0};
    assert_ok(dir_ensure(nested, &e), e);
    assert_ok(dir_ensure(nested, &e), e);
    assert_ok(file_write_atomic(path, "hello", 5, 0600, &e), e);
    struct buf b = BUF_INIT;
    assert_ok(file_read(path, 5, &b, &e), e);
    assert_string_equal(buf_cstr(&b), "hello");
    buf_reset(&b);
    assert_int_equal(file_read(path, 4, &b, &e), -1);
    assert_int_equal(e.code, ERR_TOO_LARGE);
    struct sha256_digest d, want = sha256("hello", 5);
    uint64_t size;
    assert_ok(sha256_file(path, &d, &size, &e), e);
    assert_true(DIGEST_EQ(d, want) && size == 5);
    assert_int_equal(file_read(nested, 100, &b, &e), -1);
    /* One that is there isn't created, and stays; nothing is left beside it. */
    char *twin = xasprintf("%s/a/b/g", dir);
    assert_ok(file_create_atomic(twin, "first", 5, 0600, &e), e);
    assert_int_equal(file_create_atomic(twin, "second", 6, 0600, &e), -1);
    assert_int_equal(e.code, ERR_CONFLICT);
    buf_reset(&b);
    assert_ok(file_read(twin, 100, &b, &e), e);
    assert_string_equal(buf_cstr(&b), "first");
    assert_int_equal(unlink(twin) | unlink(path) | rmdir(nested), 0);
    free(twin);
    buf_release(&b);
    free(nested);
    free(path);
    temp_dir_remove(dir);
}

static void arena_memory_is_aligned_zeroed_and_separate(void **state)
{
    (void)state;
    struct arena a = ARENA_INIT;
    uint8_t *last = NULL;
    for (size_t n = 1; n < 5000; n += 37) {
        uint8_t *p = arena_alloc(&a, n);
        assert_int_equal((uintptr_t)p % 16, 0);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(p[i], 0);
        memset(p, 0xff, n);
        assert_ptr_not_equal(p, last);
        last = p;
    }
    arena_release(&a);
    assert_string_equal(arena_strndup(&a, "abcdef", 3), "abc");
    arena_release(&a);
}

struct pass {
    struct queue *q;
    size_t n;
};

static void *push_numbers(void *arg)
{
    struct pass *p = arg;
    for (size_t i = 1; i <= p->n; i++)
        queue_push(p->q, (void *)(uintptr_t)i);
    return NULL;
}

static void a_queue_keeps_order_between_threads_and_bounds_its_length(void **state)
{
    (void)state;
    struct pass p = {queue_create(4), 10000};
    pthread_t t;
    pthread_create(&t, NULL, push_numbers, &p);
    for (size_t i = 1; i <= p.n; i++) {
        assert_in_range(queue_len(p.q), 0, 4);
        assert_int_equal((uintptr_t)queue_pop(p.q), i);
    }
    pthread_join(t, NULL);
    queue_free(p.q);
}

static void a_closed_queue_refuses_pushes_and_drains(void **state)
{
    (void)state;
    struct queue *q = queue_create(2);
    int item;
    assert_true(queue_try_push(q, &item));
    assert_true(queue_try_push(q, &item));
    assert_false(queue_try_push(q, &item));
    queue_close(q);
    assert_false(queue_push(q, &item));
    assert_ptr_equal(queue_pop(q), &item);
    assert_ptr_equal(queue_pop_timeout(q, 1000), &item);
    assert_null(queue_pop(q));
    queue_free(q);
}

static void waiting_on_an_empty_queue_ends_in_time(void **state)
{
    (void)state;
    struct queue *q = queue_create(1);
    struct monotonic_us before = clock_monotonic_us();
    assert_null(queue_pop_timeout(q, 20000));
    assert_in_range(clock_elapsed_us(before, clock_monotonic_us()), 19000, 5000000);
    queue_free(q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_error_reads_from_the_outside_in),
        cmocka_unit_test(an_overlong_error_is_cut_at_a_character),
        cmocka_unit_test(every_error_code_has_a_name_and_a_status),
        cmocka_unit_test(a_buffer_grows_and_stays_terminated),
        cmocka_unit_test(hex_accepts_exactly_its_own_form),
        cmocka_unit_test(sha256_of_abc_is_the_published_one),
        cmocka_unit_test(a_file_is_written_whole_and_read_back),
        cmocka_unit_test(arena_memory_is_aligned_zeroed_and_separate),
        cmocka_unit_test(a_record_of_the_log_is_one_line_without_control_characters),
        cmocka_unit_test(a_queue_keeps_order_between_threads_and_bounds_its_length),
        cmocka_unit_test(a_closed_queue_refuses_pushes_and_drains),
        cmocka_unit_test(waiting_on_an_empty_queue_ends_in_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
