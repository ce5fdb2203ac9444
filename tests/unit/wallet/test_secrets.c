/* No secret survives where it should not: the whole readable memory of this process is searched for
 * a key, at rest, after signing and after closing; standard error is searched after every way to
 * fail.
 *
 * How. /proc/self/maps says which pages may be read; those are read through /proc/self/mem, so that
 * the sanitizer's own marks don't get in the way. Pages without access rights are passed over: that
 * is the protection under test. The key is known to the test only masked (xor 0xa5), so that the
 * search does not find the test itself; each half of it is looked for in both byte orders, since
 * the arithmetic keeps numbers least significant limb first, and as hexadecimal text. */
#include "tests/unit/wallet/vector.h"

#include "chain/types.h"
#include "node/base/log.h"
#include "wallet/wallet.h"

#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    MASK = 0xa5,
    HALF = 16,
    CHUNK = 1 << 16,
    OVERLAP = 64, /* longest pattern: 32 hex digits */
};

struct pattern {
    uint8_t masked[2 * HALF];
    size_t n;
    const char *what;
};

struct patterns {
    size_t n;
    struct pattern list[8];
};

static uint8_t masked_hex_digit(unsigned v)
{
    return (uint8_t)((v < 10 ? '0' + v : 'a' + v - 10) ^ MASK);
}

/* Of a masked 32-byte secret. Unmasked bytes live in registers only. */
static struct patterns patterns_of(const uint8_t masked[32])
{
    struct patterns p = {0};
    for (int half = 0; half < 2; half++) {
        struct pattern *plain = &p.list[p.n++], *reversed = &p.list[p.n++], *hex = &p.list[p.n++];
        *plain = (struct pattern){.n = HALF, .what = "bytes"};
        *reversed = (struct pattern){.n = HALF, .what = "bytes, last first"};
        *hex = (struct pattern){.n = 2 * HALF, .what = "hexadecimal"};
        for (int i = 0; i < HALF; i++) {
            uint8_t m = masked[half * HALF + i];
            plain->masked[i] = m;
            reversed->masked[HALF - 1 - i] = m;
            hex->masked[2 * i] = masked_hex_digit((unsigned)(m ^ MASK) >> 4);
            hex->masked[2 * i + 1] = masked_hex_digit((unsigned)(m ^ MASK) & 15);
        }
    }
    return p;
}

static uint8_t *window; /* [CHUNK + OVERLAP], mapped apart, passed over by the search */

/* The hot loop, spared the sanitizers: at [n] is searched for patterns that begin in its first
 * n_begin bytes. may_begin [256] says which bytes begin one, which is known of few. */
__attribute__((no_sanitize("address", "undefined"))) static size_t
search_window(const uint8_t *at, size_t n, size_t n_begin, const bool *may_begin,
              const struct patterns *p, const char **what)
{
    size_t hits = 0;
    for (size_t i = 0; i < n_begin; i++) {
        if (!may_begin[at[i]])
            continue;
        for (size_t k = 0; k < p->n; k++) {
            const struct pattern *one = &p->list[k];
            size_t same = 0;
            while (same < one->n && i + same < n && (at[i + same] ^ MASK) == one->masked[same])
                same++;
            if (same < one->n)
                continue;
            hits++;
            *what = one->what;
        }
    }
    return hits;
}

/* Searches [from, to); returns the number of hits, the last one's kind in *what. */
static size_t search_region(int mem, uintptr_t from, uintptr_t to, const bool *may_begin,
                            const struct patterns *p, const char **what)
{
    size_t hits = 0;
    for (uintptr_t at = from; at < to; at += CHUNK) {
        size_t want = to - at < CHUNK + OVERLAP ? to - at : CHUNK + OVERLAP;
        ssize_t n = pread(mem, window, want, (off_t)at);
        /* Most of a sanitized process is pages of one byte over and over, as a rule zero. */
        if (n <= 1 || memcmp(window, window + 1, (size_t)n - 1) == 0)
            continue;
        hits += search_window(window, (size_t)n, (size_t)(n < CHUNK ? n : CHUNK), may_begin, p,
                              what);
    }
    return hits;
}

static size_t search_memory(const struct patterns *p, const char **what)
{
    char line[512], access[8];
    uint64_t from, to;
    size_t hits = 0;
    bool may_begin[256] = {false};
    for (size_t k = 0; k < p->n; k++)
        may_begin[p->list[k].masked[0] ^ MASK] = true;
    int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_true(mem >= 0 && maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) {
        assert_int_equal(sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s", &from, &to, access), 3);
        /* The sanitizer's shadow is terabytes of marks, one a eighth of an address: no bytes. */
        if (access[0] != 'r' || to - from > (uint64_t)1 << 30 || strstr(line, "[v") != NULL ||
            from == (uintptr_t)window)
            continue;
        hits += search_region(mem, (uintptr_t)from, (uintptr_t)to, may_begin, p, what);
    }
    fclose(maps);
    close(mem);
    explicit_bzero(window, CHUNK + OVERLAP);
    return hits;
}

static void expect_nowhere(const struct patterns *p, const char *when)
{
    const char *what = "";
    size_t hits = search_memory(p, &what);
    if (hits != 0)
        fail_msg("%s: the key lies readable in memory %zu times, at last as %s", when, hits, what);
}

/* A random valid key, masked; its first byte is not 0xff, so it is below the group order. */
static void masked_key(uint8_t masked[32])
{
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    assert_int_equal(read(fd, masked, 32), 32);
    close(fd);
    masked[0] &= 0x5a; /* unmasked: the other bits of 0xa5 set */
    if ((masked[0] ^ MASK) == 0xff)
        masked[0] ^= 1;
}

static struct wallet *wallet_of_masked(const uint8_t masked[32])
{
    struct wallet_memory_key *k = xcalloc(1, sizeof *k);
    struct err err;
    k->name = "signer";
    for (int i = 0; i < 32; i++)
        k->key[i] = masked[i] ^ MASK;
    struct wallet *w = wallet_open_memory(k, 1, &err);
    explicit_bzero(k, sizeof *k);
    free(k);
    assert_non_null(w);
    return w;
}

static void the_search_finds_what_lies_open(void **state)
{
    (void)state;
    uint8_t masked[32];
    masked_key(masked);
    struct patterns p = patterns_of(masked);
    const char *what = "";
    volatile uint8_t *open_key = xmalloc(32);
    for (int i = 0; i < 32; i++)
        open_key[i] = masked[i] ^ MASK;
    assert_true(search_memory(&p, &what) >= 2); /* both halves */
    for (int i = 0; i < 32; i++)
        open_key[31 - i] = masked[i] ^ MASK;
    assert_true(search_memory(&p, &what) >= 2);
    assert_string_equal(what, "bytes, last first");

    /* and what a sealed secret holds while it is revealed, but not before and after */
    uint8_t *bytes;
    struct secret *s = secret_create(32, &bytes);
    for (int i = 0; i < 32; i++) {
        bytes[i] = masked[i] ^ MASK;
        open_key[i] = 0;
    }
    secret_seal(s);
    assert_int_equal(search_memory(&p, &what), 0);
    secret_reveal(s);
    assert_true(search_memory(&p, &what) >= 2);
    secret_conceal(s);
    assert_int_equal(search_memory(&p, &what), 0);
    secret_free(s);
    free((void *)open_key);
}

static void a_key_at_rest_is_nowhere_in_readable_memory(void **state)
{
    (void)state;
    uint8_t masked[32];
    masked_key(masked);
    struct patterns p = patterns_of(masked);
    struct wallet *w = wallet_of_masked(masked);
    expect_nowhere(&p, "after opening");
    for (int i = 0; i < 20; i++) {
        struct receipt_digest d = {{(uint8_t)i}};
        struct signature sig;
        struct err err;
        assert_ok(wallet_sign_receipt(w, "signer", &sig, &d, &err), err);
    }
    expect_nowhere(&p, "after signing");
    wallet_close(w);
    expect_nowhere(&p, "after closing");
}

struct other {
    struct wallet *w;
    pthread_barrier_t *signed_some, *searched;
};

static void *sign_elsewhere(void *arg)
{
    struct other *o = arg;
    struct tx_digest d = {{9}};
    struct signature sig;
    int rc = wallet_sign_transaction(o->w, "signer", &sig, &d, NULL);
    pthread_barrier_wait(o->signed_some); /* this thread's stack stays while it is searched */
    pthread_barrier_wait(o->searched);
    return rc == 0 ? NULL : arg;
}

static void a_key_is_not_left_on_another_threads_stack(void **state)
{
    (void)state;
    uint8_t masked[32];
    masked_key(masked);
    struct patterns p = patterns_of(masked);
    pthread_barrier_t signed_some, searched;
    pthread_barrier_init(&signed_some, NULL, 2);
    pthread_barrier_init(&searched, NULL, 2);
    struct other o = {wallet_of_masked(masked), &signed_some, &searched};
    pthread_t thread;
    void *failed;
    assert_int_equal(pthread_create(&thread, NULL, sign_elsewhere, &o), 0);
    pthread_barrier_wait(&signed_some);
    expect_nowhere(&p, "while a thread that signed is alive");
    pthread_barrier_wait(&searched);
    assert_int_equal(pthread_join(thread, &failed), 0);
    assert_null(failed);
    wallet_close(o.w);
    pthread_barrier_destroy(&signed_some);
    pthread_barrier_destroy(&searched);
}

/* A key file's way: typed as hexadecimal, stored, opened, signed with, exported, closed. */
static void a_key_leaves_no_trace_on_its_way_through_files(void **state)
{
    (void)state;
    static const struct wallet_key_options cheap = {
        .kdf_passes = 1, .kdf_memory_kib = 8, .cheap_kdf_for_tests = true};
    char *dir = temp_dir_create();
    uint8_t masked[32];
    int fds[2];
    struct err err;
    masked_key(masked);
    struct patterns p = patterns_of(masked);
    assert_int_equal(pipe(fds), 0);
    for (int i = 0; i < 64; i++) {
        unsigned v = (unsigned)(masked[i / 2] ^ MASK);
        char digit = (char)(masked_hex_digit(i % 2 == 0 ? v >> 4 : v & 15) ^ MASK);
        assert_int_equal(write(fds[1], &digit, 1), 1);
    }
    close(fds[1]);
    struct secret *material = secret_read_fd(fds[0], "a pipe", &err);
    close(fds[0]);
    assert_non_null(material);
    expect_nowhere(&p, "after reading it");
    struct secret *passphrase = vector_secret_text("open sesame");
    assert_ok(wallet_key_import(dir, "a", NULL, material, passphrase, &cheap, &err), err);
    expect_nowhere(&p, "after importing it");
    secret_free(material);
    struct wallet *w = wallet_open(dir, NULL, passphrase, &err);
    assert_non_null(w);
    expect_nowhere(&p, "after opening its file");
    struct buf json = BUF_INIT;
    assert_ok(wallet_key_export_v3(dir, "a", &json, passphrase, passphrase, &err), err);
    expect_nowhere(&p, "after exporting it");
    buf_release(&json);
    wallet_close(w);
    secret_free(passphrase);
    expect_nowhere(&p, "at the end");
    temp_dir_remove(dir);
}

/* ---- standard error ----------------------------------------------------------------------------
 */

static const char *const told[] = {
    "hunter2 horse battery", "xylophonist", "open sesame",
    "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"};

static void fail_in_every_way(const char *dir)
{
    struct wallet_key_options opt = {
        .kdf_passes = 1, .kdf_memory_kib = 8, .cheap_kdf_for_tests = true};
    static const char *const materials[] = {
        "hunter2 horse battery",
        "xylophonist horse battery",
        "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f3623188",
        "xprv4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318",
        "{\"version\":3,\"crypto\":{\"cipher\":\"open sesame\"",
        "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318",
    };
    struct secret *p = vector_secret_text("open sesame"), *q = vector_secret_text(told[0]);
    opt.import_passphrase = q;
    for (size_t i = 0; i < COUNT(materials); i++) {
        struct err err = {0};
        struct secret *m = vector_secret_text(materials[i]);
        int rc = wallet_key_import(dir, "a", NULL, m, p, &opt, &err);
        log_error("test", "import: %d %s", rc, err.message);
        secret_free(m);
    }
    struct err err = {0};
    struct wallet *w = wallet_open(dir, NULL, q, &err);
    assert_null(w);
    log_error("test", "open: %s", err.message);
    w = wallet_open(dir, NULL, p, &err);
    assert_non_null(w);
    struct signature sig;
    struct receipt_digest d = {{1}};
    wallet_sign_receipt(w, "a", &sig, &d, &err);
    wallet_sign_receipt(w, "b", &sig, &d, &err);
    log_error("test", "sign: %s", err.message);
    wallet_close(w);
    secret_free(p);
    secret_free(q);
}

static void errors_and_logs_never_hold_a_secret(void **state)
{
    (void)state;
    char *dir = temp_dir_create(), *path = xasprintf("%s/log", dir);
    char *wallet_dir = xasprintf("%s/wallet", dir);
    int keep = dup(STDERR_FILENO), to = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    log_set_level(LOG_DEBUG);
    assert_true(dup2(to, STDERR_FILENO) >= 0);
    fail_in_every_way(wallet_dir);
    assert_true(dup2(keep, STDERR_FILENO) >= 0);
    log_set_level(LOG_INFO);
    close(keep);
    close(to);
    struct buf log = BUF_INIT;
    struct err err;
    assert_ok(file_read(path, 1 << 20, &log, &err), err);
    assert_non_null(strstr(buf_cstr(&log), "open: "));
    assert_non_null(strstr(buf_cstr(&log), "import: 0"));
    for (size_t i = 0; i < COUNT(told); i++)
        if (strstr(buf_cstr(&log), told[i]) != NULL)
            fail_msg("\"%s\" is in the log: %s", told[i], buf_cstr(&log));
    buf_release(&log);
    free(path);
    free(wallet_dir);
    temp_dir_remove(dir);
}

static int map_window(void **state)
{
    (void)state;
    window = mmap(NULL, CHUNK + OVERLAP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                  0);
    return window == MAP_FAILED ? -1 : 0;
}

static int unmap_window(void **state)
{
    (void)state;
    return munmap(window, CHUNK + OVERLAP);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_search_finds_what_lies_open),
        cmocka_unit_test(a_key_at_rest_is_nowhere_in_readable_memory),
        cmocka_unit_test(a_key_is_not_left_on_another_threads_stack),
        cmocka_unit_test(a_key_leaves_no_trace_on_its_way_through_files),
        cmocka_unit_test(errors_and_logs_never_hold_a_secret),
    };
    return cmocka_run_group_tests_name("secrets", tests, map_window, unmap_window);
}
