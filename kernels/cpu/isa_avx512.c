/* isa_avx512: the bodies, compiled for AVX-512 F, BW, VL and DQ: x86-64-v4, Skylake servers and Zen
 * 4 on. The Makefile gives this file its flags by its name; cpu_backend.c calls it only where they
 * hold.
 *
 * AVX512-BF16 (VDPBF16PS) is left alone on purpose: it would round the f32 activations to bf16,
 * four decimal orders over the bound of ops.h, and sums pairs in an order of its own. */
#include "kernels/cpu/body_attention.h"
#include "kernels/cpu/body_gemm.h"
#include "kernels/cpu/body_lora.h"
#include "kernels/cpu/body_rows.h"

const struct isa isa_avx512 = {
    .name = "AVX-512",
    .gemm = gemm,
    .shrink = shrink,
    .expand = expand,
    .attend = attend,
    .rope_row = rope_row,
    .embed_row = embed_row,
    .add_rmsnorm_row = add_rmsnorm_row,
    .swiglu = swiglu,
    .max = row_max,
    .sum_exp = row_sum_exp,
    .indices_at_least = row_indices_at_least,
};
