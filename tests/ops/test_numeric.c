/* The generator's published vectors, the 16-bit formats, and which backends there are. */
#include "tests/ops/harness.h"

#include "kernels/cpu/pool.h"
#include "kernels/philox.h"

#include <stdatomic.h>

/* kat_vectors of Random123 1.14 (D. E. Shaw Research, BSD licence), the lines "philox4x32 10". */
static void philox_gives_the_published_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], answer[4];
    } kat[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < COUNT(kat); i++) {
        uint32_t out[4];
        philox4x32_10(out, kat[i].counter, kat[i].key);
        for (int k = 0; k < 4; k++)
            if (out[k] != kat[i].answer[k])
                fail_msg("vector %zu, word %d: %08x, published %08x", i, k, out[k],
                         kat[i].answer[k]);
    }
    printf("note: philox: %zu published vectors\n", COUNT(kat));
}

static void uniform_is_the_top_24_bits_of_the_first_word(void **state)
{
    (void)state;
    assert_true(ops_uniform(0, 0) == (float)(0x6627e8d5u >> 8) / 16777216.0f);
    uint32_t out[4], counter[4] = {5, 7, 0, 0}, key[2] = {3, 1};
    philox4x32_10(out, counter, key);
    assert_true(ops_uniform(1ull << 32 | 3, 7ull << 32 | 5) == (float)(out[0] >> 8) * 0x1p-24f);
    for (uint64_t i = 0; i < 10000; i++)
        assert_true(ops_uniform(9, i) >= 0 && ops_uniform(9, i) < 1);
}

static void f16_and_bf16_round_to_nearest_even(void **state)
{
    (void)state;
    static const struct {
        float x;
        uint16_t f16, bf16;
    } cases[] = {
        {0, 0, 0},
        {-0.0f, 0x8000, 0x8000},
        {1, 0x3c00, 0x3f80},
        {-2, 0xc000, 0xc000},
        {65504, 0x7bff, 0x4780},
        {65519, 0x7bff, 0x4780},
        {65520, 0x7c00, 0x4780},
        {1e9f, 0x7c00, 0x4e6e},
        {0x1p-24f, 0x0001, 0x3380},
        {0x1p-25f, 0x0000, 0x3300}, /* tie to even: zero */
        {0x1.8p-25f, 0x0001, 0x3340},
        {1 + 0x1p-11f, 0x3c00, 0x3f80},   /* tie */
        {1 + 0x1.8p-10f, 0x3c02, 0x3f80}, /* tie to even, up */
        {1 + 0x1p-8f, 0x3c04, 0x3f80},    /* tie for bf16 */
        {1 + 0x1.8p-7f, 0x3c0c, 0x3f82},
        {INFINITY, 0x7c00, 0x7f80},
    };
    for (size_t i = 0; i < COUNT(cases); i++)
        if (f32_to_f16(cases[i].x) != cases[i].f16 || f32_to_bf16(cases[i].x) != cases[i].bf16)
            fail_msg("%a: f16 %04x, expected %04x; bf16 %04x, expected %04x", (double)cases[i].x,
                     f32_to_f16(cases[i].x), cases[i].f16, f32_to_bf16(cases[i].x), cases[i].bf16);
    for (uint32_t h = 0; h < 65536; h++) { /* widening and narrowing again is the identity */
        float a = f16_to_f32((uint16_t)h), b = bf16_to_f32((uint16_t)h);
        if (isnan(a) ? (f32_to_f16(a) & 0x7e00) != 0x7e00 : f32_to_f16(a) != h)
            fail_msg("f16 %04x comes back as %04x", h, f32_to_f16(a));
        if (isnan(b) ? (f32_to_bf16(b) & 0x7fc0) != 0x7fc0 : f32_to_bf16(b) != h)
            fail_msg("bf16 %04x comes back as %04x", h, f32_to_bf16(b));
    }
}

static void backends_are_found_by_name(void **state)
{
    (void)state;
    struct err err = {0};
    for (const char *const *name = ops_names(); *name != NULL; name++)
        assert_string_equal(ops_find(*name, &err)->name, *name);
    assert_null(ops_find("abacus", &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.message, "abacus"));
}

static void tributary_isa_names_a_code_path_that_the_processor_has(void **state)
{
    (void)state;
    const struct ops *cpu = ops_find("cpu", NULL);
    struct backend_options options = {.n_threads = 1, .weights_int8 = true};
    static const char *const descriptions[] = {"cpu: AVX2, 1 thread, int8 weights",
                                               "cpu: AVX-512, 1 thread, int8 weights",
                                               "cpu: AVX-512 VNNI, 1 thread, int8 weights"};
    const int n_here = isa_variants_count(true);
    for (int i = -1; i < (int)COUNT(isa_variants); i++) {
        struct err err = {0};
        struct backend *be = NULL;
        struct backend_caps caps;
        const char *isa = i < 0 ? "" : isa_variants[i];
        setenv("TRIBUTARY_ISA", isa, 1);
        int rc = cpu->open(&be, &options, &err);
        if (i >= n_here) { /* a newer machine's */
            assert_int_equal(rc, -1);
            assert_int_equal(err.code, ERR_UNSUPPORTED);
            assert_non_null(strstr(err.message, isa));
            continue;
        }
        assert_ok(rc, err);
        cpu->caps(be, &caps);
        assert_string_equal(caps.description, descriptions[i < 0 ? n_here - 1 : i]);
        cpu->close(be);
    }
    struct err err = {0};
    struct backend *be = NULL;
    setenv("TRIBUTARY_ISA", "sse9", 1);
    assert_int_equal(cpu->open(&be, &options, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.message, "sse9"));
    unsetenv("TRIBUTARY_ISA");
}

struct tally {
    _Atomic int count[1000];
    _Atomic int wrong_thread;
    int n_threads;
};

static void tally_tile(void *context, int tile, int thread)
{
    struct tally *t = context;
    atomic_fetch_add(&t->count[tile], 1);
    if (thread < 0 || thread >= t->n_threads)
        atomic_store(&t->wrong_thread, 1);
}

static void the_pool_runs_every_tile_exactly_once(void **state)
{
    (void)state;
    struct err err = {0};
    for (int n_threads = 1; n_threads <= 7; n_threads += 2) {
        struct pool *pool = pool_create(n_threads, &err);
        assert_non_null(pool);
        for (int round = 0; round < 2000; round++) {
            struct tally t = {.n_threads = n_threads};
            int n = round % 50 == 0 ? 1000 : round % 37;
            pool_run(pool, n, tally_tile, &t);
            for (int i = 0; i < 1000; i++)
                if (t.count[i] != (i < n))
                    fail_msg("%d threads, round %d: tile %d of %d ran %d times", n_threads, round,
                             i, n, t.count[i]);
            assert_int_equal(t.wrong_thread, 0);
        }
        pool_free(pool);
    }
    assert_true(pool_physical_cores() >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_gives_the_published_answers),
        cmocka_unit_test(uniform_is_the_top_24_bits_of_the_first_word),
        cmocka_unit_test(f16_and_bf16_round_to_nearest_even),
        cmocka_unit_test(backends_are_found_by_name),
        cmocka_unit_test(tributary_isa_names_a_code_path_that_the_processor_has),
        cmocka_unit_test(the_pool_runs_every_tile_exactly_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
