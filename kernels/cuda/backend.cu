/* backend.cu: the CUDA backend's table, its stream and its memory.
 *
 * One stream; every entry enqueues on it. A fault of any call is kept and told by the next sync,
 * which is the only place the engine looks. Weights are packed at load (linear.cu); activations and
 * the KV cache are bf16 by default, sums f32. No library chooses algorithms on the path: a row's
 * bits depend on the weight's shape, its own inputs and its position, never on the batch around it.
 *
 * Host memory handed to upload and download is pageable or pinned; from pageable memory
 * cudaMemcpyAsync returns once it has staged the bytes, so that the buffer may be reused at once.
 */
#include "kernels/cuda/cuda.cuh"

#include <cstdio>
#include <cstring>

extern "C" {
#include "kernels/backends.h"
}

void cuda_score(struct backend *be, struct sample_result *results, struct devptr logits, int n,
                int vocab, const int32_t *tokens, const int32_t *n_top);
void cuda_sample(struct backend *be, struct sample_result *results, struct devptr logits, int n,
                 int vocab, const struct sample_params *params,
                 const struct sample_history *history);

void cuda_note(struct backend *be, cudaError_t status, const char *what)
{
    if (status != cudaSuccess && be->fault == cudaSuccess) {
        be->fault = status;
        be->fault_what = what;
    }
}

static void be_close(struct backend *be)
{
    if (be == nullptr)
        return;
    if (be->stream != nullptr) {
        cudaStreamSynchronize(be->stream);
        cudaStreamDestroy(be->stream);
    }
    cudaFree(be->lora_t);
    cudaFree(be->seg_offset);
    delete be;
}

static int be_open(struct backend **out, const struct backend_options *options, struct err *err)
{
    int n_devices = 0;
    cudaError_t rc = cudaGetDeviceCount(&n_devices);
    if (rc != cudaSuccess || n_devices == 0) {
        cudaGetLastError();
        return err_set(err, ERR_UNSUPPORTED, "cuda: no usable GPU on this machine (%s)",
                       rc == cudaSuccess ? "none found" : cudaGetErrorString(rc));
    }
    if (options->device < 0 || options->device >= n_devices)
        return err_set(err, ERR_INVALID, "cuda: device %d of %d", options->device, n_devices);
    struct cudaDeviceProp prop;
    rc = cudaSetDevice(options->device);
    if (rc == cudaSuccess)
        rc = cudaGetDeviceProperties(&prop, options->device);
    if (rc != cudaSuccess)
        return err_set(err, ERR_UNSUPPORTED, "cuda: device %d: %s", options->device,
                       cudaGetErrorString(rc));
    if (prop.major != 9)
        return err_set(err, ERR_UNSUPPORTED,
                       "cuda: %s has compute capability %d.%d; this build is for 9.0 (Hopper)",
                       prop.name, prop.major, prop.minor);
    struct backend *be = new backend();
    be->options = *options;
    snprintf(be->description, sizeof be->description, "cuda: %.80s, %d multiprocessors", prop.name,
             prop.multiProcessorCount);
    size_t rows = (size_t)options->max_rows;
    rc = cudaStreamCreateWithFlags(&be->stream, cudaStreamNonBlocking);
    if (rc == cudaSuccess)
        rc = cudaMalloc(&be->lora_t, rows * (size_t)(options->max_rank + 1) * sizeof(float));
    if (rc == cudaSuccess)
        rc = cudaMalloc(&be->seg_offset, rows * 8 * sizeof(int64_t));
    if (rc != cudaSuccess) {
        be_close(be);
        return err_set(err, ERR_NO_MEMORY, "cuda: scratch memory for %zu rows: %s", rows,
                       cudaGetErrorString(rc));
    }
    *out = be;
    return 0;
}

static void be_caps(struct backend *be, struct backend_caps *out)
{
    memset(out, 0, sizeof *out);
    out->activation = DTYPE_BF16;
    out->loads_in_place = false;
    CUDA_NOTE(be, cudaMemGetInfo(&out->memory_free_bytes, &out->memory_total_bytes));
    snprintf(out->description, sizeof out->description, "%s", be->description);
}

static int be_mem_alloc(struct backend *be, struct devptr *out, size_t n_bytes, struct err *err)
{
    (void)be;
    void *p = nullptr;
    cudaError_t rc = cudaMalloc(&p, n_bytes ? n_bytes : 1);
    if (rc != cudaSuccess) {
        cudaGetLastError();
        return err_set(err, ERR_NO_MEMORY, "cuda: no memory for %zu bytes: %s", n_bytes,
                       cudaGetErrorString(rc));
    }
    out->addr = reinterpret_cast<uintptr_t>(p);
    return 0;
}

static void be_mem_free(struct backend *be, struct devptr p)
{
    CUDA_NOTE(be, cudaFree(dev<void>(p)));
}

static int be_host_alloc(struct backend *be, void **out, size_t n_bytes, struct err *err)
{
    (void)be;
    cudaError_t rc = cudaMallocHost(out, n_bytes ? n_bytes : 1);
    if (rc != cudaSuccess) {
        cudaGetLastError();
        return err_set(err, ERR_NO_MEMORY, "cuda: no pinned memory for %zu bytes: %s", n_bytes,
                       cudaGetErrorString(rc));
    }
    return 0;
}

static void be_host_free(struct backend *be, void *p)
{
    if (p != nullptr)
        CUDA_NOTE(be, cudaFreeHost(p));
}

static void be_upload(struct backend *be, struct devptr dst, const void *src, size_t n_bytes)
{
    CUDA_NOTE(be,
              cudaMemcpyAsync(dev<void>(dst), src, n_bytes, cudaMemcpyHostToDevice, be->stream));
}

static void be_download(struct backend *be, void *dst, struct devptr src, size_t n_bytes)
{
    CUDA_NOTE(be,
              cudaMemcpyAsync(dst, dev<void>(src), n_bytes, cudaMemcpyDeviceToHost, be->stream));
}

static int be_sync(struct backend *be, struct err *err)
{
    CUDA_NOTE(be, cudaStreamSynchronize(be->stream));
    if (be->fault == cudaSuccess)
        return 0;
    return err_set(err, ERR_INTERNAL, "cuda: %s: %s", be->fault_what,
                   cudaGetErrorString(be->fault));
}

extern "C" const struct ops ops_cuda = {
    .name = "cuda",
    .open = be_open,
    .close = be_close,
    .caps = be_caps,
    .mem_alloc = be_mem_alloc,
    .mem_free = be_mem_free,
    .host_alloc = be_host_alloc,
    .host_free = be_host_free,
    .upload = be_upload,
    .download = be_download,
    .sync = be_sync,
    .weight_create = cuda_weight_create,
    .weight_free = cuda_weight_free,
    .embed = cuda_embed,
    .add_rmsnorm = cuda_add_rmsnorm,
    .linear = cuda_linear,
    .sgmv_shrink = cuda_sgmv_shrink,
    .sgmv_expand = cuda_sgmv_expand,
    .rope_kv_write = cuda_rope_kv_write,
    .attention = cuda_attention,
    .swiglu = cuda_swiglu,
    .gather_rows = cuda_gather_rows,
    .sample = cuda_sample,
    .score = cuda_score,
    .kv_copy_blocks = cuda_kv_copy_blocks,
};
