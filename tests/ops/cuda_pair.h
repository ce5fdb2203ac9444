/* cuda_pair: the CUDA backend beside ref, for the tests of its operators.
 *
 * Inputs are rounded to bf16 first, so that both sides compute with the same numbers; the bound is
 * ops.h's for bf16 activations. A machine without a Hopper GPU skips all of it and says so. */
#ifndef TRIBUTARY_TESTS_OPS_CUDA_PAIR_H
#define TRIBUTARY_TESTS_OPS_CUDA_PAIR_H

#include "tests/ops/harness.h"

static struct dev gpu, ref;
static bool have_gpu;

UNUSED static int open_both(void **state)
{
    (void)state;
    struct err err = {0};
    struct backend_options options = {
        .max_rows = 512, .max_d = 16384, .max_rank = 1024, .max_seqs = 64, .max_context = 4096};
    gpu.ops = ops_find("cuda", &err); /* NULL: not in this build */
    have_gpu = gpu.ops != NULL && gpu.ops->open(&gpu.be, &options, &err) == 0;
    if (!have_gpu)
        printf("note: CUDA tests are skipped: %s\n", err.message);
    ref.ops = ops_find("ref", &err);
    return ref.ops->open(&ref.be, &options, &err);
}

UNUSED static int close_both(void **state)
{
    (void)state;
    dev_close(&ref);
    if (have_gpu)
        dev_close(&gpu);
    return 0;
}

/* The tests of a program; with TEST=PATTERN in the environment those whose names fit it. */
#define RUN_BESIDE_REF(tests) \
    (cmocka_set_test_filter(getenv("TEST")), cmocka_run_group_tests(tests, open_both, close_both))

#define NEEDS_GPU()    \
    do {               \
        if (!have_gpu) \
            skip();    \
    } while (0)

/* ---- activations: f32 for ref, bf16 for cuda
 * ---------------------------------------------------------- */

UNUSED static float *activations(size_t n, uint64_t seed)
{
    float *x = random_f32(n, seed, 1.0f);
    for (size_t i = 0; i < n; i++)
        x[i] = bf16_to_f32(f32_to_bf16(x[i]));
    return x;
}

UNUSED static struct devptr put_activations(struct dev *d, const float *x, size_t n)
{
    if (d == &ref)
        return dev_put(d, x, n * 4);
    uint16_t *h = xcalloc(n, 2);
    for (size_t i = 0; i < n; i++)
        h[i] = f32_to_bf16(x[i]);
    struct devptr p = dev_put(d, h, n * 2);
    struct err err = {0};
    assert_ok(d->ops->sync(d->be, &err), err);
    free(h);
    return p;
}

UNUSED static struct devptr empty_activations(struct dev *d, size_t n)
{
    struct devptr p = dev_alloc(d, n * 4);
    uint8_t *poison = xmalloc(n * 4);
    memset(poison, 0xff, n * 4); /* NaN in every format */
    d->ops->upload(d->be, p, poison, n * 4);
    struct err err = {0};
    assert_ok(d->ops->sync(d->be, &err), err);
    free(poison);
    return p;
}

UNUSED static float *get_activations(struct dev *d, struct devptr p, size_t n)
{
    float *x = xcalloc(n, 4);
    if (d == &ref) {
        dev_get(d, x, p, n * 4);
        return x;
    }
    uint16_t *h = xcalloc(n, 2);
    dev_get(d, h, p, n * 2);
    for (size_t i = 0; i < n; i++)
        x[i] = bf16_to_f32(h[i]);
    free(h);
    return x;
}

UNUSED static void compare(const char *what, const float *y, const float *r, size_t n, double bound)
{
    double e = nmse(y, r, n);
    if (!(e <= bound))
        fail_msg("%s: normalised MSE %.3g, at most %.3g is allowed", what, e, bound);
}

enum { BOUND_NANO = 50000 }; /* 5e-5 */
#define BOUND (BOUND_NANO * 1e-9)

#endif
