/* elementwise.cu: norms, SwiGLU, gathers. One pass each; bound by bytes of activations, which stay
 * in L2 at decode. A row's sums run in an order fixed by its width. */
#include "kernels/cuda/cuda.cuh"

enum { NORM_THREADS = 256 };

/* The residual is rounded to bf16 before it is squared, so that what is normalised is what is kept.
 */
__global__ static void __launch_bounds__(NORM_THREADS)
    add_rmsnorm_kernel(bf16 *y, bf16 *residual, const bf16 *x, const float *w, int d, float eps,
                       float w_offset)
{
    int64_t row = (int64_t)blockIdx.x * d;
    float squares = 0;
    for (int i = threadIdx.x; i < d; i += NORM_THREADS) {
        float v = __bfloat162float(residual[row + i]);
        if (x != nullptr) {
            bf16 sum = __float2bfloat16_rn(v + __bfloat162float(x[row + i]));
            residual[row + i] = sum;
            v = __bfloat162float(sum);
        }
        squares = fmaf(v, v, squares);
    }
    __shared__ float warps[NORM_THREADS / 32];
    squares = warp_sum(squares);
    if ((threadIdx.x & 31) == 0)
        warps[threadIdx.x / 32] = squares;
    __syncthreads();
    float total = 0;
    for (int i = 0; i < NORM_THREADS / 32; i++)
        total += warps[i];
    float scale = rsqrtf(total / (float)d + eps);
    for (int i = threadIdx.x; i < d; i += NORM_THREADS)
        y[row + i] = __float2bfloat16_rn(__bfloat162float(residual[row + i]) * scale *
                                         (w[i] + w_offset));
}

void cuda_add_rmsnorm(struct backend *be, struct devptr y, struct devptr residual, struct devptr x,
                      struct devptr w, int n_rows, int d, float eps, float w_offset)
{
    if (n_rows == 0)
        return;
    add_rmsnorm_kernel<<<n_rows, NORM_THREADS, 0, be->stream>>>(
        dev<bf16>(y), dev<bf16>(residual), dev<bf16>(x), dev<float>(w), d, eps, w_offset);
    CUDA_LAUNCHED(be, "add_rmsnorm");
}

__global__ static void swiglu_kernel(bf16 *y, const bf16 *x, int64_t n, int d)
{
    int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i >= n)
        return;
    int64_t row = i / d, j = i % d;
    float gate = __bfloat162float(x[row * 2 * d + j]),
          up = __bfloat162float(x[row * 2 * d + d + j]);
    y[i] = __float2bfloat16_rn(gate / (1.0f + expf(-gate)) * up);
}

void cuda_swiglu(struct backend *be, struct devptr y, struct devptr x, int n_rows, int d)
{
    int64_t n = (int64_t)n_rows * d;
    if (n == 0)
        return;
    swiglu_kernel<<<(unsigned)((n + 255) / 256), 256, 0, be->stream>>>(dev<bf16>(y), dev<bf16>(x),
                                                                       n, d);
    CUDA_LAUNCHED(be, "swiglu");
}

__global__ static void gather_kernel(bf16 *y, const bf16 *x, const int32_t *rows, int d)
{
    int64_t to = (int64_t)blockIdx.x * d, from = (int64_t)rows[blockIdx.x] * d;
    for (int i = threadIdx.x; i < d; i += blockDim.x)
        y[to + i] = x[from + i];
}

void cuda_gather_rows(struct backend *be, struct devptr y, struct devptr x, struct devptr rows,
                      int n, int d)
{
    if (n == 0)
        return;
    gather_kernel<<<n, 256, 0, be->stream>>>(dev<bf16>(y), dev<bf16>(x), dev<int32_t>(rows), d);
    CUDA_LAUNCHED(be, "gather_rows");
}
