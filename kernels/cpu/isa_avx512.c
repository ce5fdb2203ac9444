/* isa_avx512: the bodies, compiled for AVX-512 F, BW, VL and DQ: x86-64-v4, Skylake servers and Zen
 * 4 on. The Makefile gives this file its flags by its name; cpu_backend.c calls it only where they
 * hold.
 *
 * AVX512-BF16 (VDPBF16PS) is left alone on purpose. It does two products where an FMA does one, but
 * one bf16 of an f32 activation is four decimal orders over the bound of ops.h, and two of them
 * (the rounded value and what was lost: 5e-12) are as many instructions as the FMAs. Measured on
 * one core of a Zen 4 VM, weights in cache, 6 rows x 4 panels: 57.3 GMAC/s with two planes, 57.2
 * with bf16 widened to f32, whose shifts and ANDs go to other ports; with few rows both wait for
 * memory. It also takes subnormals for zeros. int8 weights have integer products:
 * int8_avx512vnni.c. */
#include "kernels/cpu/body_attention.h"
#include "kernels/cpu/body_gemm.h"
#include "kernels/cpu/body_lora.h"
#include "kernels/cpu/body_rows.h"

const struct isa isa_avx512 = {
    .name = "AVX-512",
    .tile_turns = TILE_TURNS,
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
