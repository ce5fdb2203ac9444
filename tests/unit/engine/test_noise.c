/* noise: the same bytes whoever makes them, none of them zero, and as wide as asked for. */
#include "engine/noise.h"
#include "kernels/numeric.h"
#include "node/base/buf.h"
#include "tests/support.h"

#include <math.h>
#include <string.h>

enum { N = (3 << 20) + 5 }; /* enough for three threads, and no whole number of anything */

static void any_number_of_threads_makes_the_same_bytes(void **state)
{
    (void)state;
    uint16_t *one = xcalloc(N, sizeof *one), *three = xcalloc(N, sizeof *three);
    noise_fill(one, DTYPE_BF16, N, 7, 0, 0.02f, 1);
    noise_fill(three, DTYPE_BF16, N, 7, 0, 0.02f, 3);
    assert_memory_equal(one, three, N * sizeof *one);
    noise_fill(three, DTYPE_BF16, N, 8, 0, 0.02f, 3);
    assert_memory_not_equal(one, three, N * sizeof *one);
    free(one);
    free(three);
}

static void the_numbers_are_uniform_and_never_zero(void **state)
{
    (void)state;
    float *x = xcalloc(N, sizeof *x);
    noise_fill(x, DTYPE_F32, N, 3, 1, 2, 0);
    double sum = 0, squares = 0;
    for (int i = 0; i < N; i++) {
        assert_true(fabsf(x[i] - 1) > 0 && fabsf(x[i] - 1) < 2);
        sum += (double)x[i];
        squares += (double)(x[i] - 1) * (double)(x[i] - 1);
    }
    assert_true(fabs(sum / N - 1) < 0.005);
    assert_true(fabs(squares / N - 4.0 / 3) < 0.005);
    free(x);
}

static void a_number_is_the_same_in_every_dtype_but_for_its_rounding(void **state)
{
    (void)state;
    float *x = xcalloc(N, sizeof *x);
    uint16_t *f16 = xcalloc(N, sizeof *f16), *bf16 = xcalloc(N, sizeof *bf16);
    static const float spreads[] = {2, 0.006f, 1e-4f}; /* the last ones are subnormal as f16 */
    for (int s = 0; s < 3; s++) {
        noise_fill(x, DTYPE_F32, N, 3, 0, spreads[s], 0);
        noise_fill(f16, DTYPE_F16, N, 3, 0, spreads[s], 0);
        noise_fill(bf16, DTYPE_BF16, N, 3, 0, spreads[s], 0);
        for (int i = 0; i < N; i++)
            if (f16[i] != f32_to_f16(x[i]) || bf16[i] != f32_to_bf16(x[i]))
                fail_msg("%g is %04x as an f16, %04x as a bf16", (double)x[i], f16[i], bf16[i]);
    }
    free(x);
    free(f16);
    free(bf16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_number_of_threads_makes_the_same_bytes),
        cmocka_unit_test(the_numbers_are_uniform_and_never_zero),
        cmocka_unit_test(a_number_is_the_same_in_every_dtype_but_for_its_rounding),
    };
    return cmocka_run_group_tests_name("noise", tests, NULL, NULL);
}
