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

/* linear.cu's and lora.cu's. */
struct linear_scratch {
    bf16 *t; /* A x, scaled, of the step's segments: [max_rows, t_stride] */
    int t_stride;
    float *deltas;   /* of a linear, computed before it: [min(max_rows, APART_ROWS_MAX), max_d] */
    int *any_deltas; /* 0: they are all 0, and not there */
    uint64_t *tag_chains, *tag_t; /* narrow, and the two below: see linear_args */
    int64_t n_tag_chains;
    struct lora_looked *looked; /* lora_look_up.cu */
    char *slots;                /* middle: what its blocks hand on */
    char *many_slots;           /* lora_shrink_many.cu's likewise */
    float *shrink_slots;        /* lora.cu's likewise: [blocks, slices, LORA_UNIT] */
    int n_clusters[5][3];       /* resident together, of each narrow kernel, for 2, 4, 8 ranges */
    int n_middle[4];            /* blocks resident together, of each middle kernel */
    int n_wide_clusters[4];     /* clusters, of the wide ones */
    void *encode_tiled;         /* cuTensorMapEncodeTiled */
};

/* weight.cu: a piece of a weight on its way. */
struct staging {
    void *host, *device;
    size_t bytes;
    cudaEvent_t free; /* when the device has taken it */
};

enum { LANE_MARKS = 512 }; /* of the newest places; an older one is taken for the oldest of them */

struct backend {
    struct backend_options options;
    cudaStream_t stream, lane;
    cudaEvent_t lane_marks[LANE_MARKS]; /* in turn */
    uint64_t n_lane_marks;
    int n_multiprocessors;
    bool copied;                         /* see dependent */
    bool recording;                      /* between record_begin and record_end: a stream capture */
    struct linear_scratch *linear;       /* linear.cu */
    struct attention_scratch *attention; /* attention.cu */
    struct sample_scratch *sampling;     /* sample.cu */
    struct staging staging[2];           /* weight.cu */
    struct ranges *ranges;               /* ranges.cu */
    unsigned n_staged;
    cudaEvent_t marks[OPS_MARKS]; /* of the newest marks, in turn */
    uint64_t n_marks;
    cudaError_t fault;      /* the first error of any call; sync reports it */
    const char *fault_what; /* the call that saw it */
    char description[128];
};

/* Notes the first fault of a launch or call; sync returns it. */
void cuda_note(struct backend *be, cudaError_t status, const char *what);
#define CUDA_NOTE(be, call)     cuda_note(be, call, #call)
#define CUDA_LAUNCHED(be, what) cuda_note(be, cudaGetLastError(), what)

template <typename T> static inline T *dev(struct devptr p)
{
    return reinterpret_cast<T *>(p.addr);
}

/* Programmatic dependent launch. Every kernel of this backend is launched with `launch`: its thread
 * blocks may start while the kernel before it still runs, as soon as some thread of each of that
 * one's has called pdl_trigger. So every thread of every kernel
 *   1. calls pdl_trigger() first,
 *   2. may read what no kernel writes (weights, adapters, and what an upload brought before the
 *      step), and
 *   3. calls pdl_wait() before it reads or writes anything that a kernel before it may write or
 *      read (activations, caches, scratch). pdl_wait returns when all earlier kernels are complete.
 *      It does so because some thread of each of them called it; a block with nothing to do may
 *      leave without, as long as one block of every launch waits (lora.cu: the first).
 * One that writes what the next may read early by rule 2 (copied KV blocks, what a step's adapters
 * are) calls pdl_trigger_written instead, last. And behind one that calls pdl_trigger after
 * pdl_wait (lora_shrink_many.cu) the next may go on without pdl_wait, but for what that one writes
 * (which it may not read) or reads (which it may not write); some thread of it calls pdl_wait
 * all the same, as of every launch.
 * Captured into a graph these become programmatic edges. */
__device__ static inline void pdl_trigger()
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* By all threads of a block: what any of them has written is there for those that start now. */
__device__ static inline void pdl_trigger_written()
{
    __syncthreads();
    __threadfence();
    pdl_trigger();
}

__device__ static inline void pdl_wait()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

/* May the next kernel be launched as a dependent of the one before it? Not right behind a copy, a
 * fill or a graph: pdl_wait waits for kernels alone, and a kernel launched early behind a small
 * copy has been seen to read what was there before the copy. So these go through the two functions
 * below. */
static inline bool dependent(struct backend *be)
{
    bool yes = !be->copied;
    be->copied = false;
    return yes;
}

static inline cudaError_t copy_async(struct backend *be, void *dst, const void *src, size_t n_bytes,
                                     cudaMemcpyKind kind)
{
    be->copied = true;
    return cudaMemcpyAsync(dst, src, n_bytes, kind, be->stream);
}

static inline cudaError_t fill_async(struct backend *be, void *dst, int byte, size_t n_bytes)
{
    be->copied = true;
    return cudaMemsetAsync(dst, byte, n_bytes, be->stream);
}

/* Adds to a launch's attributes (there is room for two more) what every launch wants: to begin
 * before the one before it has ended, if it may; and all of an SM's memory as shared memory,
 * because a thread block can't start beside those of a kernel that wants another division. */
static inline void add_attributes(cudaLaunchConfig_t &config, cudaLaunchAttribute *attributes,
                                  bool is_dependent)
{
    config.attrs = attributes;
    cudaLaunchAttribute *a = &attributes[config.numAttrs++];
    *a = {};
    a->id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    a->val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
    if (!is_dependent)
        return;
    a = &attributes[config.numAttrs++];
    *a = {};
    a->id = cudaLaunchAttributeProgrammaticStreamSerialization;
    a->val.programmaticStreamSerializationAllowed = 1;
}

/* Dynamic shared memory above 48 KiB: raise the kernel's limit once before. */
template <typename... Params, typename... Args>
static inline void launch(struct backend *be, const char *what, void (*kernel)(Params...),
                          dim3 grid, int n_threads, size_t shared_bytes, Args... args)
{
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)n_threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = be->stream;
    add_attributes(config, attributes, dependent(be));
    cuda_note(be, cudaLaunchKernelEx(&config, kernel, Params(args)...), what);
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

/* weight.cu */
int cuda_weight_create(struct backend *be, struct weight **out, const void *const *parts,
                       const int *d_out, int n_parts, int d_in, enum dtype dtype, struct err *err);
void cuda_weight_free(struct backend *be, struct weight *w);
void staging_close(struct backend *be);
void cuda_embed(struct backend *be, struct devptr y, struct devptr token, const struct weight *w,
                int n_rows, float scale);

/* ranges.cu */
int cuda_ranges_open(struct backend *be, struct err *err);
void cuda_ranges_close(struct backend *be);
size_t cuda_ranges_granule(const struct backend *be);
int cuda_mem_reserve(struct backend *be, struct devptr *out, size_t n_bytes, struct err *err);
int cuda_mem_back(struct backend *be, struct devptr p, size_t n_bytes, struct err *err);
void cuda_mem_unback(struct backend *be, struct devptr p, size_t n_bytes);
void cuda_mem_release(struct backend *be, struct devptr p);

/* linear.cu */
int cuda_linear_open(struct backend *be, struct err *err);
void cuda_linear_close(struct backend *be);
void cuda_linear(struct backend *be, struct devptr y, struct devptr x, const struct weight *w,
                 struct devptr bias, int n_rows, bool y_f32, const struct lora_args *lora);
void cuda_lora_look_up(struct backend *be, const struct lora_step *step,
                       const struct lora_linear *linears, int n_linears);
void cuda_sgmv_shrink(struct backend *be, struct devptr t, struct devptr x, int n_rows, int d_in,
                      const struct lora_args *lora);
void cuda_sgmv_expand(struct backend *be, struct devptr y, struct devptr t, int n_rows,
                      int d_out_total, const struct lora_args *lora);

void cuda_linear_swiglu(struct backend *be, struct devptr y, struct devptr scratch, struct devptr x,
                        const struct weight *w, struct devptr bias, int n_rows,
                        const struct lora_args *lora);

/* attention.cu */
int cuda_attention_open(struct backend *be, struct err *err);
void cuda_attention_close(struct backend *be);
void cuda_rope_kv_write(struct backend *be, struct devptr qkv, const struct kv_layer *kv,
                        const struct batch *batch, const struct attention_shape *shape,
                        const struct rope_shape *rope);
void cuda_attention(struct backend *be, struct devptr y, struct devptr qkv,
                    const struct kv_layer *kv, const struct batch *batch,
                    const struct attention_shape *shape);
void cuda_kv_copy_blocks(struct backend *be, const struct kv_layer *kv,
                         const struct attention_shape *shape, const int32_t *src,
                         const int32_t *dst, int n);

/* sample.cu */
int cuda_sample_open(struct backend *be, struct err *err);
void cuda_sample_close(struct backend *be);
void cuda_sample(struct backend *be, struct sample_result *results, struct devptr tokens,
                 struct devptr logits, int n, int vocab, const struct sample_params *params,
                 const struct sample_history *history);
void cuda_score(struct backend *be, struct sample_result *results, struct devptr logits, int n,
                int vocab, const int32_t *tokens, const int32_t *n_top);

/* elementwise.cu */
void cuda_add_rmsnorm(struct backend *be, struct devptr y, struct devptr residual, struct devptr x,
                      struct devptr w, int n_rows, int d, float eps, float w_offset);
void cuda_swiglu(struct backend *be, struct devptr y, struct devptr x, int n_rows, int d);
void cuda_gather_rows(struct backend *be, struct devptr y, struct devptr x, struct devptr rows,
                      int n, int d);

#endif
