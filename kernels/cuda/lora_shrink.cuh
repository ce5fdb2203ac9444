/* lora_shrink.cuh: what the two kernels of t' = A x share, lora.cu's for few rows and
 * lora_shrink_many.cu's. Both have a list of units (rows of a segment by ranks of it), each of a
 * piece for every slice of 1,024 k, and cut it evenly and contiguously over the blocks. */
#ifndef TRIBUTARY_KERNELS_CUDA_LORA_SHRINK_CUH
#define TRIBUTARY_KERNELS_CUDA_LORA_SHRINK_CUH

#include "kernels/cuda/async.cuh"
#include "kernels/cuda/lora.cuh"

enum {
    SHRINK_CHUNKS = LORA_CHAIN / 32,
    SHRINK_PITCH = LORA_SLICE * 2 + 64, /* bytes of a slice of a rank of A, or a row of x */
    SHRINK_SUM_PITCH = 20,              /* floats of a row's 16 ranks */
};

/* ---- the list
 * --------------------------------------------------------------------------------------- */

/* A block's run of pieces. */
struct shrink_run {
    int begin, end; /* pieces */
    int owner;      /* the block that finishes the last unit */
};

/* Where in it one is: units from the last to the first, a unit's slices from the first to the last.
 */
struct shrink_at {
    int unit, slice, slices_end; /* of the next piece */
    int n_left;                  /* pieces */

    __device__ void next(int begin, int n_slices)
    {
        n_left--;
        if (++slice < slices_end)
            return;
        unit--;
        slice = begin > unit * n_slices ? begin - unit * n_slices : 0;
        slices_end = n_slices;
    }
};

/* a / b, below 2^24, in a quarter of a division's 40 instructions. */
__device__ static inline unsigned shrink_divide(unsigned a, unsigned b)
{
    unsigned q = (unsigned)__fdividef((float)a, (float)b);
    int rest = (int)(a - q * b);
    return rest < 0 ? q - 1 : rest >= (int)b ? q + 1 : q;
}

/* The list is cut evenly, between slices or, if they are to stay whole, between units; the first
 * blocks have one more than the others. Pieces are below 2^24: a table's units are 10^5 at most,
 * slices 28. */
__device__ static inline struct shrink_at shrink_run_of(struct shrink_run &run, unsigned n_units,
                                                        unsigned n_slices, bool whole)
{
    unsigned each = whole ? n_slices : 1, n = n_units * (whole ? 1 : n_slices);
    unsigned block = blockIdx.x, q = shrink_divide(n, gridDim.x), more = n - q * gridDim.x;
    auto begin_of = [&](unsigned b) { return (b * q + (b < more ? b : more)) * each; };
    unsigned begin = begin_of(block), end = begin_of(block + 1);
    if (begin == end)
        return {};
    unsigned unit = shrink_divide(end - 1, n_slices), owner = block;
#pragma unroll 1
    while (begin_of(owner + 1) < (unit + 1) * n_slices)
        owner++;
    run = {(int)begin, (int)end, (int)owner};
    return {(int)unit, begin > unit * n_slices ? (int)(begin - unit * n_slices) : 0,
            (int)(end - unit * n_slices), (int)(end - begin)};
}

/* ---- a chain
 * ---------------------------------------------------------------------------------------- */

/* A chain whose A isn't in the ring, but where it lies; any dtype. */
template <int NT>
__device__ static inline void shrink_in_place(float (&c)[NT][4], const void *a, int dtype, int rank,
                                              int rank0, int row, int row_end, const bf16 *x,
                                              int d_in, int k_begin, int k_end, int lane)
{
    int g = lane >> 2, t = lane & 3, r0 = rank0 + g, r1 = r0 + 8;
#pragma unroll 1
    for (int k = k_begin + 8 * t; k < k_end + 8 * t; k += 32) {
        bool inside = k < k_end;
        float f0[8], f1[8];
#pragma unroll
        for (int e = 0; e < 8; e++) {
            f0[e] = inside && r0 < rank ? load_as_float(a, (int64_t)r0 * d_in + k + e, dtype) : 0;
            f1[e] = inside && r1 < rank ? load_as_float(a, (int64_t)r1 * d_in + k + e, dtype) : 0;
        }
        for (int plane = 0; plane < planes_of(dtype); plane++) {
            uint32_t p0[4], p1[4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                p0[e] = take_plane(f0[2 * e], f0[2 * e + 1]);
                p1[e] = take_plane(f1[2 * e], f1[2 * e + 1]);
            }
#pragma unroll
            for (int n = 0; n < NT; n++) {
                uint4 b = make_uint4(0, 0, 0, 0);
                if (inside && row + 8 * n + g < row_end)
                    b = __ldcg(
                        reinterpret_cast<const uint4 *>(x + (int64_t)(row + 8 * n + g) * d_in + k));
                mma_bf16(c[n], p0[0], p1[0], p0[1], p1[1], b.x, b.y);
                mma_bf16(c[n], p0[2], p1[2], p0[3], p1[3], b.z, b.w);
            }
        }
    }
}

#endif
