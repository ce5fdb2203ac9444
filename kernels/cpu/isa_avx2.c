/* isa_avx2: the bodies, compiled for AVX2, FMA and F16C: x86-64-v3, every x86 server since 2015
 * (Haswell, Zen). The Makefile gives this file its flags by its name; cpu_backend.c calls it only
 * where they hold. */
#include "kernels/cpu/body_attention.h"
#include "kernels/cpu/body_gemm.h"
#include "kernels/cpu/body_lora.h"
#include "kernels/cpu/body_rows.h"

const struct isa isa_avx2 = {
    .name = "AVX2",
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
