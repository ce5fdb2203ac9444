/* harness: what the operator tests share. Each test program includes it once.
 *
 * A `dev` is an opened backend that remembers what was allocated on it. Random numbers come from
 * splitmix64, so that a case is the same on every machine. */
#ifndef TRIBUTARY_TESTS_OPS_HARNESS_H
#define TRIBUTARY_TESTS_OPS_HARNESS_H

#include "kernels/numeric.h"
#include "kernels/ops.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "tests/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define UNUSED       __attribute__((unused))

struct dev {
    const struct ops *ops;
    struct backend *be;
    struct devptr held[256];
    int n_held;
};

/* The code paths of the cpu backend, in ascending order (TRIBUTARY_ISA, ops.h). This machine can
 * run the first isa_variants_count(), of which the third is one of its own for int8 weights only.
 */
static const char *const isa_variants[] = {"avx2", "avx512", "avx512vnni"};

UNUSED static int isa_variants_count(bool int8)
{
    bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return !avx512 ? 1 : int8 && __builtin_cpu_supports("avx512vnni") ? 3 : 2;
}

/* Of linear against ref (ops.h). */
UNUSED static double linear_bound(bool int8, const char *isa)
{
    return int8 && strcmp(isa, "avx512vnni") == 0 ? 1e-8 : 1e-10;
}

/* false, and *err says why: this build or this machine hasn't got the backend. */
UNUSED static bool dev_try_open(struct dev *d, const char *name, int n_threads, bool int8,
                                struct err *err)
{
    struct backend_options options = {.n_threads = n_threads,
                                      .max_rows = 64,
                                      .max_d = 512,
                                      .max_rank = 64,
                                      .max_seqs = 16,
                                      .max_context = 512,
                                      .weights_int8 = int8};
    *d = (struct dev){.ops = ops_find(name, err)};
    return d->ops != NULL && d->ops->open(&d->be, &options, err) == 0;
}

UNUSED static void dev_open_weights(struct dev *d, const char *name, int n_threads, const char *isa,
                                    bool int8)
{
    struct err err = {0};
    if (isa != NULL)
        setenv("TRIBUTARY_ISA", isa, 1);
    if (!dev_try_open(d, name, n_threads, int8, &err))
        fail_msg("backend %s: %s", name, err.message);
}

UNUSED static void dev_open(struct dev *d, const char *name, int n_threads, const char *isa)
{
    dev_open_weights(d, name, n_threads, isa, false);
}

UNUSED static void dev_close(struct dev *d)
{
    for (int i = 0; i < d->n_held; i++)
        d->ops->mem_free(d->be, d->held[i]);
    d->ops->close(d->be);
}

UNUSED static void dev_free_held(struct dev *d)
{
    for (int i = 0; i < d->n_held; i++)
        d->ops->mem_free(d->be, d->held[i]);
    d->n_held = 0;
}

UNUSED static struct devptr dev_alloc(struct dev *d, size_t n_bytes)
{
    struct err err = {0};
    assert_true(d->n_held < (int)COUNT(d->held));
    assert_ok(d->ops->mem_alloc(d->be, &d->held[d->n_held], n_bytes, &err), err);
    return d->held[d->n_held++];
}

UNUSED static struct devptr dev_put(struct dev *d, const void *host, size_t n_bytes)
{
    struct devptr p = dev_alloc(d, n_bytes);
    d->ops->upload(d->be, p, host, n_bytes);
    return p;
}

UNUSED static void dev_get(struct dev *d, void *host, struct devptr p, size_t n_bytes)
{
    struct err err = {0};
    d->ops->download(d->be, host, p, n_bytes);
    assert_ok(d->ops->sync(d->be, &err), err);
}

UNUSED static uint64_t random_u64(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Near-normal with the given standard deviation: the sum of four uniforms. */
UNUSED static float random_normal(uint64_t *state, float deviation)
{
    float sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (float)(random_u64(state) >> 40) * 0x1p-24f - 0.5f;
    return sum * 1.7320508f * deviation;
}

UNUSED static float *random_f32(size_t n, uint64_t seed, float deviation)
{
    float *x = xcalloc(n, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = random_normal(&seed, deviation);
    return x;
}

UNUSED static void *random_as(enum dtype t, size_t n, uint64_t seed, float deviation)
{
    void *x = xcalloc(n, dtype_bytes(t));
    for (size_t i = 0; i < n; i++)
        element_store(x, t, i, random_normal(&seed, deviation));
    return x;
}

UNUSED static double nmse(const float *y, const float *r, size_t n)
{
    double error = 0, power = 0;
    for (size_t i = 0; i < n; i++) {
        error += ((double)y[i] - (double)r[i]) * ((double)y[i] - (double)r[i]);
        power += (double)r[i] * (double)r[i];
    }
    return power > 0 ? error / power : error;
}

UNUSED static const char *dtype_name(enum dtype t)
{
    return t == DTYPE_F32 ? "f32" : t == DTYPE_F16 ? "f16" : "bf16";
}

#endif
