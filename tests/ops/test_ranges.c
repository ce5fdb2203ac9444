/* variant: both. Ranges of addresses whose memory comes and goes, on every backend that opens here:
 * what was backed holds bytes, calls work across pieces, and what one range lost another gets. */
#include "tests/ops/harness.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PIECES = 6 };

static bool open_named(struct dev *d, const char *name)
{
    struct err err = {0};
    if (dev_try_open(d, name, 1, false, &err))
        return true;
    print_message("note: ranges of %s not tested: %s\n", name, err.message);
    assert_true(strcmp(name, "ref") != 0 && strcmp(name, "cpu") != 0);
    return false;
}

static void sync_device(struct dev *d)
{
    struct err err = {0};
    assert_ok(d->ops->sync(d->be, &err), err);
}

static size_t granule_of(struct dev *d)
{
    struct backend_caps caps;
    d->ops->caps(d->be, &caps);
    assert_true(caps.granule_bytes >= 4096 && caps.granule_bytes % 4096 == 0);
    return caps.granule_bytes;
}

static size_t free_of(struct dev *d)
{
    struct backend_caps caps;
    d->ops->caps(d->be, &caps);
    return caps.own_memory ? caps.memory_free_bytes : 0; /* the host's is everybody's */
}

static void put(struct dev *d, struct devptr p, size_t n_bytes, uint64_t seed)
{
    uint8_t *bytes = random_as(DTYPE_F32, n_bytes / 4, seed, 1);
    d->ops->upload(d->be, p, bytes, n_bytes);
    sync_device(d);
    free(bytes);
}

static void assert_has(struct dev *d, struct devptr p, size_t n_bytes, uint64_t seed,
                       const char *what)
{
    uint8_t *bytes = random_as(DTYPE_F32, n_bytes / 4, seed, 1), *got = xmalloc(n_bytes);
    d->ops->download(d->be, got, p, n_bytes);
    sync_device(d);
    if (memcmp(got, bytes, n_bytes) != 0)
        fail_msg("%s: %s", d->ops->name, what);
    free(bytes);
    free(got);
}

/* Two ranges; the second gets, piece by piece, what the first loses at its end, and gives it back;
 * what stays keeps its bytes, and the device has as much free memory all the time. */
static void memory_moves_from_one_range_to_another(void **state)
{
    (void)state;
    for (const char *const *name = ops_names(); *name != NULL; name++) {
        struct dev d;
        struct devptr a, b;
        struct err err = {0};
        if (!open_named(&d, *name))
            continue;
        size_t g = granule_of(&d);
        assert_ok(d.ops->mem_reserve(d.be, &a, PIECES * g, &err), err);
        assert_ok(d.ops->mem_reserve(d.be, &b, 2 * PIECES * g, &err), err);
        assert_ok(d.ops->mem_back(d.be, a, PIECES * g, &err), err);
        size_t free_bytes = free_of(&d);
        for (size_t i = 0; i < PIECES; i++)
            put(&d, devptr_at(a, i * g), g, i + 1);
        for (size_t i = 0; i < PIECES - 1; i++) { /* into every second piece of b */
            d.ops->mem_unback(d.be, devptr_at(a, (PIECES - 1 - i) * g), g);
            assert_ok(d.ops->mem_back(d.be, devptr_at(b, 2 * i * g), g, &err), err);
            put(&d, devptr_at(b, 2 * i * g), g, 100 + i);
            assert_has(&d, a, g, 1, "what stayed has other bytes");
        }
        for (size_t i = 0; i < PIECES - 1; i++)
            assert_has(&d, devptr_at(b, 2 * i * g), g, 100 + i, "what moved has other bytes");
        for (size_t i = 0; i < PIECES - 1; i++)
            d.ops->mem_unback(d.be, devptr_at(b, 2 * i * g), g);
        assert_ok(d.ops->mem_back(d.be, devptr_at(a, g), (PIECES - 1) * g, &err), err);
        put(&d, a, PIECES * g, 7);
        assert_has(&d, a, PIECES * g, 7, "a range in one piece again has other bytes");
        assert_int_equal(free_of(&d), free_bytes);
        d.ops->mem_release(d.be, b); /* nothing is left in it */
        d.ops->mem_release(d.be, a); /* with all its memory */
        d.ops->mem_release(d.be, (struct devptr){0});
        print_message("note: ranges of %s: granules of %zu bytes\n", *name, g);
        dev_close(&d);
    }
}

/* A KV cache that grows by a piece while another lies behind it: blocks are copied to where memory
 * came, and back before it goes. */
static void blocks_are_copied_to_memory_that_came(void **state)
{
    (void)state;
    const struct attention_shape shape = {.n_heads = 2, .n_kv_heads = 2, .head_dim = 64};
    for (const char *const *name = ops_names(); *name != NULL; name++) {
        struct dev d;
        struct backend_caps caps;
        struct kv_layer kv;
        struct err err = {0};
        if (!open_named(&d, *name))
            continue;
        d.ops->caps(d.be, &caps);
        size_t block = BLOCK_TOKENS * 2 * 64 * dtype_bytes(caps.activation), g = caps.granule_bytes;
        size_t piece = block > g ? block : g, last = 3 * piece / block - 1;
        assert_true(piece % block == 0 && piece % g == 0);
        kv.dtype = caps.activation;
        assert_ok(d.ops->mem_reserve(d.be, &kv.k, 4 * piece, &err), err);
        assert_ok(d.ops->mem_reserve(d.be, &kv.v, 4 * piece, &err), err);
        assert_ok(d.ops->mem_back(d.be, kv.k, piece, &err), err);
        assert_ok(d.ops->mem_back(d.be, kv.v, piece, &err), err);
        put(&d, kv.k, block, 1);
        put(&d, kv.v, block, 2);
        for (int round = 0; round < 3; round++) {
            const int32_t first = 0, end = (int32_t)last;
            assert_ok(d.ops->mem_back(d.be, devptr_at(kv.k, piece), 2 * piece, &err), err);
            assert_ok(d.ops->mem_back(d.be, devptr_at(kv.v, piece), 2 * piece, &err), err);
            d.ops->kv_copy_blocks(d.be, &kv, &shape, &first, &end, 1);
            assert_has(&d, devptr_at(kv.k, last * block), block, 1, "K wasn't copied out");
            put(&d, kv.k, block, 3);
            d.ops->kv_copy_blocks(d.be, &kv, &shape, &end, &first, 1);
            sync_device(&d);
            d.ops->mem_unback(d.be, devptr_at(kv.k, piece), 2 * piece);
            d.ops->mem_unback(d.be, devptr_at(kv.v, piece), 2 * piece);
            assert_has(&d, kv.k, block, 1, "K wasn't copied back");
            assert_has(&d, kv.v, block, 2, "V wasn't copied back");
        }
        d.ops->mem_release(d.be, kv.k);
        d.ops->mem_release(d.be, kv.v);
        dev_close(&d);
    }
}

/* ---- misuse, on the host ----------------------------------------------------------------- */

struct misuse {
    struct dev *d;
    struct devptr p;
    size_t g;
};

static void back_twice(const struct misuse *m)
{
    (void)m->d->ops->mem_back(m->d->be, m->p, m->g, NULL);
}

static void unback_what_has_none(const struct misuse *m)
{
    m->d->ops->mem_unback(m->d->be, devptr_at(m->p, m->g), m->g);
}

static void back_beyond_the_end(const struct misuse *m)
{
    (void)m->d->ops->mem_back(m->d->be, devptr_at(m->p, m->g), 2 * m->g, NULL);
}

static void read_where_nothing_is(const struct misuse *m)
{
    uint8_t byte;
    m->d->ops->download(m->d->be, &byte, devptr_at(m->p, m->g), 1);
}

static void misuse_of_a_range_ends_the_program(void **state)
{
    static const struct {
        const char *what;
        void (*f)(const struct misuse *m);
        int signal;
    } cases[] = {{"backing twice", back_twice, SIGABRT},
                 {"unbacking what has no memory", unback_what_has_none, SIGABRT},
                 {"backing beyond the end", back_beyond_the_end, SIGABRT},
                 {"reading where nothing is", read_where_nothing_is, SIGSEGV}};
    static const char *const names[] = {"ref", "cpu"};
    (void)state;
    for (size_t b = 0; b < COUNT(names); b++) {
        struct dev d;
        struct err err = {0};
        dev_open(&d, names[b], 1, NULL);
        struct misuse m = {.d = &d, .g = granule_of(&d)};
        assert_ok(d.ops->mem_reserve(d.be, &m.p, 2 * m.g, &err), err);
        assert_ok(d.ops->mem_back(d.be, m.p, m.g, &err), err);
        for (size_t i = 0; i < COUNT(cases); i++) {
            fflush(NULL);
            pid_t child = fork();
            assert_true(child >= 0);
            if (child == 0) {
                if (freopen("/dev/null", "w", stderr) == NULL)
                    _exit(3);
                signal(SIGABRT, SIG_DFL);
                signal(SIGSEGV, SIG_DFL);
                cases[i].f(&m);
                _exit(0);
            }
            int status;
            assert_true(waitpid(child, &status, 0) == child);
            if (!WIFSIGNALED(status) || WTERMSIG(status) != cases[i].signal)
                fail_msg("%s on %s: ended with status %d", cases[i].what, names[b], status);
        }
        d.ops->mem_release(d.be, m.p);
        dev_close(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_moves_from_one_range_to_another),
        cmocka_unit_test(blocks_are_copied_to_memory_that_came),
        cmocka_unit_test(misuse_of_a_range_ends_the_program),
    };
    return cmocka_run_group_tests_name("ranges", tests, NULL, NULL);
}
