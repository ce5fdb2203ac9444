/* linear.cuh: what linear.cu and weight.cu share: the packed weight. */
#ifndef TRIBUTARY_KERNELS_CUDA_LINEAR_CUH
#define TRIBUTARY_KERNELS_CUDA_LINEAR_CUH

#include "kernels/cuda/lora.cuh"

enum { TILE = 64, TILE_BYTES = TILE * TILE * 2 };

/* A base weight, [d_out, d_in].
 *
 * Packed (bf16 and f16, d_in a multiple of 8): tiles of 64 outputs by 64 k, each the image that the
 * matrix instruction wants in shared memory (rows of 128 bytes, 16-byte pieces exchanged by the
 * row's low three bits: the 128-byte swizzle), so that one bulk copy of 8 KiB brings it:
 *
 *   data[m_tile][k_tile][plane][64 rows x 128 bytes]      zero past the ends
 *
 * bf16 has one plane; f16 is split exactly into a bf16 and what is left of it, two planes that
 * multiply the same x. A weight of two parts of one width (gate and up) is interleaved by eights,
 * so that a thread of the matrix step holds gate and up of one output:
 *
 *   packed row 16 i + j = gate 8 i + j,   16 i + 8 + j = up 8 i + j     (0 <= j < 8)
 *
 * Otherwise (f32, odd d_in) the weight is row-major and takes a plain path. */
struct weight {
    void *data;
    int d_out, d_in, n_parts;
    enum dtype dtype;
    bool packed;
    int pair_width; /* d of an interleaved pair, or 0 */
    int n_m_tiles, n_k_tiles, n_planes;
    int n_ranges; /* 2, 4 or 8: K is summed in so many ranges, added in order. Fixed by the shape.
                   */
};

__host__ __device__ static inline int64_t packed_offset(int row, int k, int n_k_tiles, int n_planes,
                                                        int plane)
{
    int64_t tile = ((int64_t)(row / TILE) * n_k_tiles + k / TILE) * n_planes + plane;
    int r = row % TILE, piece = k % TILE / 8;
    return tile * (TILE_BYTES / 2) + r * TILE + ((piece ^ (r & 7)) * 8) + k % 8;
}

/* The packed row of output o of part p. */
__host__ __device__ static inline int packed_row(int o, int pair_width)
{
    if (pair_width == 0)
        return o;
    int half = o >= pair_width, i = o - half * pair_width;
    return i / 8 * 16 + half * 8 + i % 8;
}

#endif
