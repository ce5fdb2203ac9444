/* elementwise.cu: norms, SwiGLU, gathers. One pass each; bound by latency at decode, where the
 * activations stay in L2, and by bytes in a prefill. A row's sums run in an order fixed by its
 * width.
 *
 * Everything moves in pieces of eight elements, 16 bytes of bf16, where the width is a multiple of
 * eight and the addresses allow it, and element by element, in the same order, elsewhere. */
#include "kernels/cuda/cuda.cuh"

enum {
    EIGHT = 8,
    NORM_THREADS_MAX = 512,
    NORM_WIDTH_MAX = 2 * NORM_THREADS_MAX * EIGHT, /* what a thread block holds in registers */
    NORM_ROWS_FEW = 32,
    COPY_THREADS = 128,
};

struct alignas(16) eight {
    __nv_bfloat162 pair[EIGHT / 2];
};

static bool is_aligned(struct devptr p)
{
    return p.addr % 16 == 0;
}

/* Elements [i, i + 8) of a row, 0 beyond its end. */
template <bool WIDE> __device__ static inline struct eight load_eight(const bf16 *row, int i, int d)
{
    struct eight v;
    if (WIDE) {
        if (i < d)
            return *reinterpret_cast<const struct eight *>(row + i);
    }
#pragma unroll
    for (int k = 0; k < EIGHT / 2; k++) {
        bf16 zero = __float2bfloat16_rn(0);
        v.pair[k].x = !WIDE && i + 2 * k < d ? row[i + 2 * k] : zero;
        v.pair[k].y = !WIDE && i + 2 * k + 1 < d ? row[i + 2 * k + 1] : zero;
    }
    return v;
}

template <bool WIDE>
__device__ static inline void store_eight(bf16 *row, int i, int d, const struct eight &v)
{
    if (WIDE) {
        if (i < d)
            *reinterpret_cast<struct eight *>(row + i) = v;
    } else {
#pragma unroll
        for (int k = 0; k < EIGHT / 2; k++) {
            if (i + 2 * k < d)
                row[i + 2 * k] = v.pair[k].x;
            if (i + 2 * k + 1 < d)
                row[i + 2 * k + 1] = v.pair[k].y;
        }
    }
}

/* Sum over the thread block, the same on every thread, warp by warp in order. */
__device__ static inline float block_sum(float v)
{
    __shared__ float warps[NORM_THREADS_MAX / 32];
    v = warp_sum(v);
    if ((threadIdx.x & 31) == 0)
        warps[threadIdx.x / 32] = v;
    __syncthreads();
    float total = 0;
    for (int i = 0; i < (int)blockDim.x / 32; i++)
        total += warps[i];
    return total;
}

/* One row; PIECES eights a thread, kept in registers between the sum and the scaling. The residual
 * is rounded to bf16 before it is squared, so that what is normalised is what is kept. w is a
 * weight, so it is fetched while the kernel before still runs. SMALL: of 32 registers, so that it
 * finds room beside a linear of up to 32 rows and waits there (1.5 us less; by itself it is
 * slower). */
template <int PIECES, bool WIDE, bool SMALL>
__global__ static void __launch_bounds__(NORM_THREADS_MAX, SMALL ? 4 : 1)
    add_rmsnorm_kernel(bf16 *y, bf16 *residual, const bf16 *x, const float *w, int d, float eps,
                       float w_offset)
{
    pdl_trigger();
    const int64_t row = (int64_t)blockIdx.x * d;
    const int step = (int)blockDim.x * EIGHT;
    float scale_of[PIECES][EIGHT];
    struct eight v[PIECES];
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
        int i = p * step + (int)threadIdx.x * EIGHT;
        if (WIDE && i < d) {
            *reinterpret_cast<float4 *>(&scale_of[p][0]) = *reinterpret_cast<const float4 *>(w + i);
            *reinterpret_cast<float4 *>(&scale_of[p][4]) = *reinterpret_cast<const float4 *>(w + i +
                                                                                             4);
        } else {
#pragma unroll
            for (int k = 0; k < EIGHT; k++)
                scale_of[p][k] = !WIDE && i + k < d ? w[i + k] : 0;
        }
    }
    pdl_wait();
#pragma unroll
    for (int p = 0; p < PIECES; p++)
        v[p] = load_eight<WIDE>(residual + row, p * step + (int)threadIdx.x * EIGHT, d);
    if (x != nullptr) {
#pragma unroll
        for (int p = 0; p < PIECES; p++) {
            int i = p * step + (int)threadIdx.x * EIGHT;
            struct eight more = load_eight<WIDE>(x + row, i, d);
#pragma unroll
            for (int k = 0; k < EIGHT / 2; k++) {
                float2 a = __bfloat1622float2(v[p].pair[k]);
                float2 b = __bfloat1622float2(more.pair[k]);
                v[p].pair[k] = __floats2bfloat162_rn(a.x + b.x, a.y + b.y);
            }
            store_eight<WIDE>(residual + row, i, d, v[p]);
        }
    }
    float squares = 0;
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
#pragma unroll
        for (int k = 0; k < EIGHT / 2; k++) {
            float2 a = __bfloat1622float2(v[p].pair[k]);
            squares = fmaf(a.x, a.x, squares);
            squares = fmaf(a.y, a.y, squares);
        }
    }
    float scale = rsqrtf(block_sum(squares) / (float)d + eps);
#pragma unroll
    for (int p = 0; p < PIECES; p++) {
#pragma unroll
        for (int k = 0; k < EIGHT / 2; k++) {
            float2 a = __bfloat1622float2(v[p].pair[k]);
            v[p].pair[k] = __floats2bfloat162_rn(a.x * scale * (scale_of[p][2 * k] + w_offset),
                                                 a.y * scale * (scale_of[p][2 * k + 1] + w_offset));
        }
        store_eight<WIDE>(y + row, p * step + (int)threadIdx.x * EIGHT, d, v[p]);
    }
}

/* Rows of any width, read twice. */
__global__ static void __launch_bounds__(NORM_THREADS_MAX)
    add_rmsnorm_long_kernel(bf16 *y, bf16 *residual, const bf16 *x, const float *w, int d,
                            float eps, float w_offset)
{
    pdl_trigger();
    pdl_wait();
    int64_t row = (int64_t)blockIdx.x * d;
    float squares = 0;
    for (int i = (int)threadIdx.x; i < d; i += NORM_THREADS_MAX) {
        float v = __bfloat162float(residual[row + i]);
        if (x != nullptr) {
            bf16 sum = __float2bfloat16_rn(v + __bfloat162float(x[row + i]));
            residual[row + i] = sum;
            v = __bfloat162float(sum);
        }
        squares = fmaf(v, v, squares);
    }
    float scale = rsqrtf(block_sum(squares) / (float)d + eps);
    for (int i = (int)threadIdx.x; i < d; i += NORM_THREADS_MAX)
        y[row + i] = __float2bfloat16_rn(__bfloat162float(residual[row + i]) * scale *
                                         (w[i] + w_offset));
}

void cuda_add_rmsnorm(struct backend *be, struct devptr y, struct devptr residual, struct devptr x,
                      struct devptr w, int n_rows, int d, float eps, float w_offset)
{
    if (n_rows == 0)
        return;
    bool wide = d % EIGHT == 0 && is_aligned(y) && is_aligned(residual) && is_aligned(x) &&
                is_aligned(w);
    int n_threads = ceil_div(ceil_div(d, EIGHT), 32) * 32;
    if (n_threads > NORM_THREADS_MAX)
        n_threads = NORM_THREADS_MAX;
    auto kernel = d > NORM_WIDTH_MAX        ? add_rmsnorm_long_kernel
                  : n_threads * EIGHT < d   ? (wide ? add_rmsnorm_kernel<2, true, false>
                                                    : add_rmsnorm_kernel<2, false, false>)
                  : !wide                   ? add_rmsnorm_kernel<1, false, false>
                  : n_rows <= NORM_ROWS_FEW ? add_rmsnorm_kernel<1, true, true>
                                            : add_rmsnorm_kernel<1, true, false>;
    launch(be, "add_rmsnorm", kernel, dim3((unsigned)n_rows), n_threads, 0, dev<bf16>(y),
           dev<bf16>(residual), dev<bf16>(x), dev<float>(w), d, eps, w_offset);
}

/* blockIdx: row, piece of the row. */
template <bool WIDE>
__global__ static void __launch_bounds__(COPY_THREADS) swiglu_kernel(bf16 *y, const bf16 *x, int d)
{
    pdl_trigger();
    pdl_wait();
    int i = (int)(blockIdx.y * COPY_THREADS + threadIdx.x) * EIGHT;
    const bf16 *from = x + (int64_t)blockIdx.x * 2 * d;
    struct eight gate = load_eight<WIDE>(from, i, d), up = load_eight<WIDE>(from + d, i, d);
#pragma unroll
    for (int k = 0; k < EIGHT / 2; k++) {
        float2 g = __bfloat1622float2(gate.pair[k]), u = __bfloat1622float2(up.pair[k]);
        gate.pair[k] = __floats2bfloat162_rn(__fdividef(g.x, 1.0f + __expf(-g.x)) * u.x,
                                             __fdividef(g.y, 1.0f + __expf(-g.y)) * u.y);
    }
    store_eight<WIDE>(y + (int64_t)blockIdx.x * d, i, d, gate);
}

void cuda_swiglu(struct backend *be, struct devptr y, struct devptr x, int n_rows, int d)
{
    if (n_rows == 0)
        return;
    bool wide = d % EIGHT == 0 && is_aligned(y) && is_aligned(x);
    launch(be, "swiglu", wide ? swiglu_kernel<true> : swiglu_kernel<false>,
           dim3((unsigned)n_rows, (unsigned)ceil_div(d, COPY_THREADS * EIGHT)), COPY_THREADS, 0,
           dev<bf16>(y), dev<bf16>(x), d);
}

template <bool WIDE>
__global__ static void __launch_bounds__(COPY_THREADS)
    gather_kernel(bf16 *y, const bf16 *x, const int32_t *rows, int d)
{
    pdl_trigger();
    pdl_wait();
    int i = (int)(blockIdx.y * COPY_THREADS + threadIdx.x) * EIGHT;
    struct eight v = load_eight<WIDE>(x + (int64_t)rows[blockIdx.x] * d, i, d);
    store_eight<WIDE>(y + (int64_t)blockIdx.x * d, i, d, v);
}

void cuda_gather_rows(struct backend *be, struct devptr y, struct devptr x, struct devptr rows,
                      int n, int d)
{
    if (n == 0)
        return;
    bool wide = d % EIGHT == 0 && is_aligned(y) && is_aligned(x);
    launch(be, "gather_rows", wide ? gather_kernel<true> : gather_kernel<false>,
           dim3((unsigned)n, (unsigned)ceil_div(d, COPY_THREADS * EIGHT)), COPY_THREADS, 0,
           dev<bf16>(y), dev<bf16>(x), dev<int32_t>(rows), d);
}
