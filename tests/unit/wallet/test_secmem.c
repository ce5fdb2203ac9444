/* Guarded memory, and the ways secrets come into it: files, descriptors, the terminal. Whether a
 * byte can be read is asked of the kernel, which answers EFAULT instead of ending the program. */
#include "tests/unit/wallet/vector.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static bool readable(const uint8_t *p)
{
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    ssize_t n = write(fds[1], p, 1);
    assert_true(n == 1 || errno == EFAULT);
    close(fds[0]);
    close(fds[1]);
    return n == 1;
}

static bool writable(const uint8_t *p)
{
    int zero = open("/dev/zero", O_RDONLY);
    ssize_t n = syscall(SYS_read, zero, p, 1) /* past the sanitizer, which would look at p */;
    assert_true(n == 1 || errno == EFAULT);
    close(zero);
    return n == 1;
}

static bool mapped(const uint8_t *p)
{
    unsigned char resident;
    uintptr_t page = (uintptr_t)p & ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);
    int rc = mincore((void *)page, 1, &resident);
    assert_true(rc == 0 || errno == ENOMEM);
    return rc == 0;
}

static void a_secret_is_readable_between_reveal_and_conceal_only(void **state)
{
    (void)state;
    uint8_t *bytes;
    struct secret *s = secret_create(32, &bytes);
    assert_true(readable(bytes) && writable(bytes));
    memset(bytes, 7, 32);
    secret_seal(s);
    assert_false(readable(bytes) || writable(bytes));
    assert_ptr_equal(secret_reveal(s), bytes);
    assert_true(readable(bytes));
    assert_false(writable(bytes));
    assert_int_equal(bytes[31], 7);
    secret_reveal(s); /* a second reader */
    secret_conceal(s);
    assert_true(readable(bytes));
    secret_conceal(s);
    assert_false(readable(bytes));
    secret_free(s);
}

static void the_byte_after_a_secret_is_out_of_reach(void **state)
{
    (void)state;
    for (size_t n = 1; n <= 5000; n += 311) {
        uint8_t *bytes;
        struct secret *s = secret_create(n, &bytes);
        assert_true(readable(bytes) && readable(bytes + n - 1));
        assert_false(readable(bytes + n));
        secret_free(s);
    }
}

static void a_freed_secret_is_unmapped(void **state)
{
    (void)state;
    struct secret *s = vector_secret_text("not for long");
    const uint8_t *p = secret_reveal(s);
    secret_conceal(s);
    assert_true(mapped(p));
    secret_free(s);
    assert_false(mapped(p));
    secret_free(NULL);
}

static void *reveal_often(void *arg)
{
    const struct secret *s = arg;
    for (int i = 0; i < 2000; i++) {
        const uint8_t *p = secret_reveal(s);
        bool ok = p[0] == 42 && p[31] == 24;
        secret_conceal(s);
        if (!ok)
            return arg;
    }
    return NULL;
}

static void threads_may_reveal_one_secret_at_once(void **state)
{
    (void)state;
    uint8_t *bytes;
    struct secret *s = secret_create(32, &bytes);
    bytes[0] = 42;
    bytes[31] = 24;
    secret_seal(s);
    pthread_t threads[4];
    for (size_t t = 0; t < COUNT(threads); t++)
        assert_int_equal(pthread_create(&threads[t], NULL, reveal_often, s), 0);
    for (size_t t = 0; t < COUNT(threads); t++) {
        void *failed;
        assert_int_equal(pthread_join(threads[t], &failed), 0);
        assert_null(failed);
    }
    assert_false(readable(bytes));
    secret_free(s);
}

/* ---- files and descriptors ------------------------------------------------------------------- */

static char *file_with(const char *dir, const char *name, const void *bytes, size_t n)
{
    struct err err;
    char *path = xasprintf("%s/%s", dir, name);
    assert_ok(file_write_atomic(path, bytes, n, 0600, &err), err);
    return path;
}

static void a_file_gives_its_bytes_without_the_final_newline(void **state)
{
    (void)state;
    static const struct {
        const char *in;
        size_t n_in;
        const char *out; /* NULL: refused as empty */
    } table[] = {
        {"passphrase", 10, "passphrase"},
        {"passphrase\n", 11, "passphrase"},
        {"passphrase\r\n", 12, "passphrase"},
        {"passphrase\n\n", 12, "passphrase\n"},
        {"passphrase\r", 11, "passphrase\r"},
        {" two words ", 11, " two words "},
        {"line\nline", 9, "line\nline"},
        {"x", 1, "x"},
        {"", 0, NULL},
        {"\n", 1, NULL},
        {"\r\n", 2, NULL},
    };
    char *dir = temp_dir_create();
    for (size_t i = 0; i < COUNT(table); i++) {
        struct err err = {0};
        char *path = file_with(dir, "secret", table[i].in, table[i].n_in);
        struct secret *s = secret_read_file(path, &err);
        if (table[i].out != NULL)
            vector_expect(s, table[i].out, strlen(table[i].out), table[i].in, &err);
        else if (s != NULL || err.code != ERR_INVALID || strstr(err.message, path) == NULL)
            fail_msg("row %zu: an empty file was taken, or not named: %s", i, err.message);
        free(path);
    }
    temp_dir_remove(dir);
}

static void a_secret_has_at_most_its_limit(void **state)
{
    (void)state;
    char *dir = temp_dir_create(), *text = xmalloc(WALLET_SECRET_MAX_BYTES + 1);
    memset(text, 'a', WALLET_SECRET_MAX_BYTES + 1);
    struct err err = {0};
    char *path = file_with(dir, "secret", text, WALLET_SECRET_MAX_BYTES);
    vector_expect(secret_read_file(path, &err), text, WALLET_SECRET_MAX_BYTES, "the longest", &err);
    free(path);
    path = file_with(dir, "secret", text, WALLET_SECRET_MAX_BYTES + 1);
    assert_null(secret_read_file(path, &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    free(path);
    free(text);
    path = xasprintf("%s/absent", dir);
    assert_null(secret_read_file(path, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err.message, path));
    free(path);
    assert_null(secret_read_file(dir, &err));
    assert_int_equal(err.code, ERR_IO);
    temp_dir_remove(dir);
}

static void a_secret_arrives_through_a_pipe_in_pieces_and_leaves_whole(void **state)
{
    (void)state;
    int in[2], out[2];
    assert_int_equal(pipe(in), 0);
    assert_int_equal(pipe(out), 0);
    pid_t child = fork();
    if (child == 0) {
        for (const char *p = "piece by piece\n"; *p != '\0'; p++)
            if (write(in[1], p, 1) != 1)
                _exit(1);
        _exit(0);
    }
    close(in[1]);
    struct err err = {0};
    struct secret *s = secret_read_fd(in[0], "a pipe", &err);
    close(in[0]);
    assert_non_null(s);
    assert_ok(secret_write_fd(s, out[1], &err), err);
    close(out[1]);
    char back[64] = {0};
    assert_int_equal(read(out[0], back, sizeof back), 14);
    assert_string_equal(back, "piece by piece");
    close(out[0]);
    assert_int_equal(secret_write_fd(s, -1, &err), -1);
    secret_free(s);
    assert_null(secret_read_fd(-1, "nothing", &err));
    assert_int_equal(waitpid(child, NULL, 0), child);
}

/* Runs what in a child without a terminal; its return value is the exit status. */
static int without_terminal(int (*what)(void *), void *arg)
{
    pid_t child = fork();
    if (child == 0) {
        setsid();
        _exit(what(arg));
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static bool holds(struct secret *s, const char *text)
{
    bool same = s != NULL && secret_len(s) == strlen(text) &&
                memcmp(secret_reveal(s), text, strlen(text)) == 0;
    if (s != NULL && secret_len(s) == strlen(text))
        secret_conceal(s);
    secret_free(s);
    return same;
}

static int look_everywhere(void *arg)
{
    const char *const *paths = arg;
    struct err err = {0};
    unsetenv("TRIBUTARY_PASSPHRASE_FILE");
    if (!holds(secret_passphrase(paths[0], "? ", false, &err), "from the flag"))
        return 1;
    if (secret_passphrase(NULL, "? ", false, &err) != NULL || err.code != ERR_INVALID ||
        strstr(err.message, "--passphrase-file") == NULL ||
        strstr(err.message, "TRIBUTARY_PASSPHRASE_FILE") == NULL)
        return 2;
    setenv("TRIBUTARY_PASSPHRASE_FILE", paths[1], 1);
    if (!holds(secret_passphrase(NULL, "? ", false, &err), "from the environment"))
        return 3;
    if (!holds(secret_passphrase(paths[0], "? ", false, &err), "from the flag"))
        return 4;
    setenv("TRIBUTARY_PASSPHRASE_FILE", "/nonexistent/file", 1);
    if (secret_passphrase(NULL, "? ", false, &err) != NULL || err.code != ERR_NOT_FOUND)
        return 5;
    return 0;
}

static void a_passphrase_is_looked_for_in_flag_environment_and_terminal(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    char *paths[2] = {file_with(dir, "flag", "from the flag\n", 14),
                      file_with(dir, "environment", "from the environment\n", 21)};
    int rc = without_terminal(look_everywhere, paths);
    if (rc != 0)
        fail_msg("step %d went another way", rc);
    free(paths[0]);
    free(paths[1]);
    temp_dir_remove(dir);
}

/* ---- the terminal ---------------------------------------------------------------------------- */

/* Reads from the terminal's other end until text shows up in *seen. */
static void wait_for(int master, struct buf *seen, const char *text)
{
    while (strstr(buf_cstr(seen), text) == NULL) {
        struct pollfd p = {.fd = master, .events = POLLIN};
        uint8_t chunk[256];
        if (poll(&p, 1, 10000) != 1)
            fail_msg("waited for \"%s\", saw \"%s\"", text, buf_cstr(seen));
        ssize_t n = read(master, chunk, sizeof chunk);
        if (n <= 0)
            fail_msg("waited for \"%s\", saw \"%s\" and the end", text, buf_cstr(seen));
        buf_append(seen, chunk, (size_t)n);
    }
}

static void what_is_typed_is_taken_and_never_shown(void **state)
{
    (void)state;
    static const struct {
        const char *first, *second; /* what is typed; second NULL: asked once */
        const char *want;           /* NULL: refused */
        enum err_code code;
    } table[] = {
        {"sesame\r", NULL, "sesame", ERR_OK},
        {"sesame\n", "sesame\n", "sesame", ERR_OK},
        {"sesame\r", "sesane\r", NULL, ERR_INVALID},
        {"sesame\r", "sesam\r", NULL, ERR_INVALID},
        {"sesamm\x7f"
         "e\r",
         NULL, "sesame", ERR_OK},
        {"wrong\x15sesame\r", NULL, "sesame", ERR_OK},
        {"caf\xc3\xa9\x08"
         "e sesame\r",
         NULL, "cafe sesame", ERR_OK},
        {"\x7f\x7fsesame\r", NULL, "sesame", ERR_OK},
        {"sesame\x03", NULL, NULL, ERR_CANCELLED},
        {"sesame\x04", NULL, NULL, ERR_CANCELLED},
        {"\r", NULL, NULL, ERR_INVALID},
        {"sesame\r", "\x03", NULL, ERR_CANCELLED},
    };
    for (size_t i = 0; i < COUNT(table); i++) {
        int master;
        pid_t child = forkpty(&master, NULL, NULL, NULL);
        if (child == 0) {
            struct err err = {0};
            struct secret *s = secret_prompt("Say it: ", table[i].second != NULL, &err);
            bool as_wanted = table[i].want != NULL ? holds(s, table[i].want)
                                                   : s == NULL && err.code == table[i].code;
            if (!as_wanted)
                dprintf(1, "got another outcome: %s\n", err.message);
            dprintf(1, "the end\n");
            _exit(as_wanted ? 0 : 1);
        }
        struct buf seen = BUF_INIT;
        wait_for(master, &seen, "Say it: ");
        assert_true(write(master, table[i].first, strlen(table[i].first)) > 0);
        if (table[i].second != NULL) {
            wait_for(master, &seen, "Once more");
            assert_true(write(master, table[i].second, strlen(table[i].second)) > 0);
        }
        wait_for(master, &seen, "the end");
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
            fail_msg("row %zu: the terminal shows \"%s\"", i, buf_cstr(&seen));
        if (strstr(buf_cstr(&seen), "sesam") != NULL || strstr(buf_cstr(&seen), "wrong") != NULL)
            fail_msg("row %zu: the terminal shows the secret: \"%s\"", i, buf_cstr(&seen));
        buf_release(&seen);
        close(master);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_secret_is_readable_between_reveal_and_conceal_only),
        cmocka_unit_test(the_byte_after_a_secret_is_out_of_reach),
        cmocka_unit_test(a_freed_secret_is_unmapped),
        cmocka_unit_test(threads_may_reveal_one_secret_at_once),
        cmocka_unit_test(a_file_gives_its_bytes_without_the_final_newline),
        cmocka_unit_test(a_secret_has_at_most_its_limit),
        cmocka_unit_test(a_secret_arrives_through_a_pipe_in_pieces_and_leaves_whole),
        cmocka_unit_test(a_passphrase_is_looked_for_in_flag_environment_and_terminal),
        cmocka_unit_test(what_is_typed_is_taken_and_never_shown),
    };
    return cmocka_run_group_tests_name("secmem", tests, NULL, NULL);
}
