/* Numbers that become another dtype, against kernels/numeric.h, which is another's code: every
 * 16-bit one, and of f32 those beside which rounding changes its mind. */
#include "engine/tensor_numbers.h"
#include "kernels/numeric.h"
#include "node/base/buf.h"
#include "tests/support.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { ALL_16 = 1 << 16 };

/* Converts in [n], lying one byte off every alignment, in one piece and in two. */
static void convert(void *out, enum tensor_dtype to, const void *in, enum tensor_dtype from,
                    size_t n)
{
    size_t width_in = tensor_dtype_bytes(from), width_out = tensor_dtype_bytes(to);
    uint8_t *source = xmalloc(n * width_in + 1), *target = xmalloc(n * width_out + 1);
    memcpy(source + 1, in, n * width_in);
    tensor_numbers_convert(target + 1, to, source + 1, from, n);
    memcpy(out, target + 1, n * width_out);
    size_t part = n / 3;
    tensor_numbers_convert(target + 1, to, source + 1, from, part);
    tensor_numbers_convert(target + 1 + part * width_out, to, source + 1 + part * width_in, from,
                           n - part);
    assert_memory_equal(out, target + 1, n * width_out);
    free(source);
    free(target);
}

static size_t finite_16(uint16_t *out, uint32_t exponent)
{
    size_t n = 0;
    for (uint32_t bits = 0; bits < ALL_16; bits++)
        if ((bits & exponent) != exponent)
            out[n++] = (uint16_t)bits;
    return n;
}

static void every_finite_16_bit_number_is_widened_exactly(void **state)
{
    (void)state;
    uint16_t *h = xcalloc(ALL_16, sizeof *h);
    uint32_t *wide = xcalloc(ALL_16, sizeof *wide);
    size_t n = finite_16(h, 0x7c00);
    convert(wide, TENSOR_F32, h, TENSOR_F16, n);
    for (size_t i = 0; i < n; i++)
        if (wide[i] != f32_bits(f16_to_f32(h[i])))
            fail_msg("f16 %04x became %08" PRIx32, h[i], wide[i]);
    n = finite_16(h, 0x7f80);
    convert(wide, TENSOR_F32, h, TENSOR_BF16, n);
    for (size_t i = 0; i < n; i++)
        if (wide[i] != (uint32_t)h[i] << 16)
            fail_msg("bf16 %04x became %08" PRIx32, h[i], wide[i]);
    free(h);
    free(wide);
}

static void every_finite_f16_becomes_the_nearest_bf16(void **state)
{
    (void)state;
    uint16_t *h = xcalloc(ALL_16, sizeof *h), *out = xcalloc(ALL_16, sizeof *out);
    size_t n = finite_16(h, 0x7c00);
    convert(out, TENSOR_BF16, h, TENSOR_F16, n);
    for (size_t i = 0; i < n; i++)
        if (out[i] != f32_to_bf16(f16_to_f32(h[i])))
            fail_msg("f16 %04x became %04x", h[i], out[i]);
    free(h);
    free(out);
}

/* Each bf16 there is, subnormal ones and zeros included, with what follows it below the half, at
 * the tie and above. */
static void an_f32_becomes_the_nearest_bf16_ties_to_even(void **state)
{
    static const uint32_t behind[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    enum { N_BEHIND = sizeof behind / sizeof behind[0] };
    static const struct {
        uint32_t bits;
        uint16_t nearest;
    } known[] = {
        {0x3f808000, 0x3f80}, /* 1 + 2^-8: a tie, down to even */
        {0x3f818000, 0x3f82}, /* up to even */
        {0x3f808001, 0x3f81}, {0x3f807fff, 0x3f80}, {0xbf818000, 0xbf82},
        {0x00008000, 0x0000}, /* subnormal ones: a tie to zero, ... */
        {0x00008001, 0x0001}, {0x80018000, 0x8002}, {0x807fffff, 0x8080}, /* ... out of them */
        {0x80000000, 0x8000}, {0x7f7f7fff, 0x7f7f}, /* the largest that isn't refused */
    };
    (void)state;
    uint32_t *in = xcalloc((size_t)ALL_16 * N_BEHIND, sizeof *in);
    uint16_t *out = xcalloc((size_t)ALL_16 * N_BEHIND, sizeof *out);
    size_t n = 0;
    for (uint32_t bits = 0; bits < ALL_16; bits++)
        for (int i = 0; i < N_BEHIND; i++) {
            uint32_t f = bits << 16 | behind[i];
            if (tensor_numbers_finite((const uint8_t *)&f, TENSOR_F32, 1))
                in[n++] = f;
        }
    assert_int_equal(n, 2 * ((0x7f80 - 1) * N_BEHIND + 3)); /* of the last ones three round up */
    convert(out, TENSOR_BF16, in, TENSOR_F32, n);
    for (size_t i = 0; i < n; i++) {
        uint16_t expected = f32_to_bf16(f32_from_bits(in[i]));
        if (out[i] != expected || (out[i] & 0x7f80) == 0x7f80)
            fail_msg("f32 %08" PRIx32 " became %04x, not %04x", in[i], out[i], expected);
    }
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        convert(out, TENSOR_BF16, &known[i].bits, TENSOR_F32, 1);
        if (out[0] != known[i].nearest)
            fail_msg("f32 %08" PRIx32 " became %04x", known[i].bits, out[0]);
    }
    free(in);
    free(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_finite_16_bit_number_is_widened_exactly),
        cmocka_unit_test(every_finite_f16_becomes_the_nearest_bf16),
        cmocka_unit_test(an_f32_becomes_the_nearest_bf16_ties_to_even),
    };
    return cmocka_run_group_tests_name("tensor_numbers", tests, NULL, NULL);
}
