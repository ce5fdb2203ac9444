/* cuda.cuh: what the files of this backend share. Not for anyone else.
 *
 * Activations are bf16, sums f32. Everything runs on one stream. See backend.cu for the design. */
#ifndef TRIBUTARY_KERNELS_CUDA_CUH
#define TRIBUTARY_KERNELS_CUDA_CUH

#define _Noreturn [[noreturn]]
extern "C" {
#include "kernels/ops.h"
#include "node/base/err.h"
}
#undef _Noreturn

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

typedef __nv_bfloat16 bf16;

struct backend {
    struct backend_options options;
    cudaStream_t stream;
    cudaError_t fault;      /* the first error of any call; sync reports it */
    const char *fault_what; /* the call that saw it */
    float *lora_t;          /* [max_rows, max_rank]: A x of the step's segments */
    int64_t *seg_offset;    /* [max_rows * 8]: of sgmv_shrink's packed layout */
    int32_t *staging;       /* [max_rows]: small tables on their way to the device */
    char description[128];
};

/* A base weight, [d_out, d_in]. bf16 and f16 are packed for the tensor cores (linear.cu draws the
 * layout); f32 stays row-major. */
struct weight {
    void *data;
    int d_out, d_in;
    enum dtype dtype;
};

/* Notes the first fault of a launch or call; sync returns it. */
void cuda_note(struct backend *be, cudaError_t status, const char *what);
#define CUDA_NOTE(be, call)     cuda_note(be, call, #call)
#define CUDA_LAUNCHED(be, what) cuda_note(be, cudaGetLastError(), what)

template <typename T> static inline T *dev(struct devptr p)
{
    return reinterpret_cast<T *>(p.addr);
}

static inline int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

__device__ static inline float load_as_float(const void *p, int64_t i, int dtype)
{
    switch (dtype) {
    case DTYPE_F32:
        return static_cast<const float *>(p)[i];
    case DTYPE_F16:
        return __half2float(static_cast<const __half *>(p)[i]);
    default:
        return __bfloat162float(static_cast<const bf16 *>(p)[i]);
    }
}

__device__ static inline void store_from_float(void *p, int64_t i, int dtype, float v)
{
    switch (dtype) {
    case DTYPE_F32:
        static_cast<float *>(p)[i] = v;
        break;
    case DTYPE_F16:
        static_cast<__half *>(p)[i] = __float2half_rn(v);
        break;
    default:
        static_cast<bf16 *>(p)[i] = __float2bfloat16_rn(v);
        break;
    }
}

/* Butterfly sum: the same order on every lane, whatever runs beside it. */
__device__ static inline float warp_sum(float v)
{
    for (int o = 16; o > 0; o >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}

__device__ static inline float warp_max(float v)
{
    for (int o = 16; o > 0; o >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
}

/* linear.cu */
int cuda_weight_create(struct backend *be, struct weight **out, const void *const *parts,
                       const int *d_out, int n_parts, int d_in, enum dtype dtype, struct err *err);
void cuda_weight_free(struct backend *be, struct weight *w);
void cuda_embed(struct backend *be, struct devptr y, struct devptr token, const struct weight *w,
                int n_rows, float scale);
void cuda_linear(struct backend *be, struct devptr y, struct devptr x, const struct weight *w,
                 struct devptr bias, int n_rows, bool y_f32, const struct lora_args *lora);
void cuda_sgmv_shrink(struct backend *be, struct devptr t, struct devptr x, int n_rows, int d_in,
                      const struct lora_args *lora);
void cuda_sgmv_expand(struct backend *be, struct devptr y, struct devptr t, int n_rows,
                      int d_out_total, const struct lora_args *lora);

/* attention.cu */
void cuda_rope_kv_write(struct backend *be, struct devptr qkv, const struct kv_layer *kv,
                        const struct batch *batch, const struct attention_shape *shape,
                        const struct rope_shape *rope);
void cuda_attention(struct backend *be, struct devptr y, struct devptr qkv,
                    const struct kv_layer *kv, const struct batch *batch,
                    const struct attention_shape *shape);
void cuda_kv_copy_blocks(struct backend *be, const struct kv_layer *kv,
                         const struct attention_shape *shape, const int32_t *src,
                         const int32_t *dst, int n);

/* elementwise.cu */
void cuda_add_rmsnorm(struct backend *be, struct devptr y, struct devptr residual, struct devptr x,
                      struct devptr w, int n_rows, int d, float eps, float w_offset);
void cuda_swiglu(struct backend *be, struct devptr y, struct devptr x, int n_rows, int d);
void cuda_gather_rows(struct backend *be, struct devptr y, struct devptr x, struct devptr rows,
                      int n, int d);

#endif
