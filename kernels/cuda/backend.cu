/* backend.cu: the CUDA backend's table, its stream and its memory.
 *
 * One stream; every entry enqueues on it, but the lane's, which have a second one for adapters that
 * come in beside the steps. A kernel behind lane_need is launched without overlap (`dependent`), so
 * that it sees what the lane brought, and so do those behind it. A fault of any call is kept and
 * told by the next sync, which is the only place the engine looks. Weights are packed at load
 * (linear.cu); activations and the KV cache are bf16 by default, sums f32. No library chooses
 * algorithms on the path: a row's bits depend on the weight's shape, its own inputs and its
 * position, never on the batch around it.
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
    if (be->lane != nullptr) {
        cudaStreamSynchronize(be->lane);
        cudaStreamDestroy(be->lane);
    }
    for (cudaEvent_t mark : be->marks)
        if (mark != nullptr)
            cudaEventDestroy(mark);
    for (cudaEvent_t mark : be->lane_marks)
        if (mark != nullptr)
            cudaEventDestroy(mark);
    cuda_attention_close(be);
    cuda_sample_close(be);
    cuda_linear_close(be);
    staging_close(be);
    cuda_ranges_close(be);
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
    if (options->weights_int8)
        return err_set(
            err, ERR_UNSUPPORTED,
            "cuda: weights = int8 (--weights int8) is for the backends cpu and ref; this "
            "one keeps them as they are in the file");
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
    be->n_multiprocessors = prop.multiProcessorCount;
    snprintf(be->description, sizeof be->description, "cuda: %.80s, %d multiprocessors", prop.name,
             prop.multiProcessorCount);
    rc = cudaStreamCreateWithFlags(&be->stream, cudaStreamNonBlocking);
    if (rc == cudaSuccess)
        rc = cudaStreamCreateWithFlags(&be->lane, cudaStreamNonBlocking);
    if (rc != cudaSuccess) {
        be_close(be);
        return err_set(err, ERR_UNSUPPORTED, "cuda: %s", cudaGetErrorString(rc));
    }
    for (cudaEvent_t &mark : be->marks)
        if (rc == cudaSuccess)
            rc = cudaEventCreateWithFlags(&mark, cudaEventDisableTiming);
    for (cudaEvent_t &mark : be->lane_marks)
        if (rc == cudaSuccess)
            rc = cudaEventCreateWithFlags(&mark, cudaEventDisableTiming);
    if (rc != cudaSuccess) {
        be_close(be);
        return err_set(err, ERR_UNSUPPORTED, "cuda: events: %s", cudaGetErrorString(rc));
    }
    if (cuda_ranges_open(be, err) != 0 || cuda_linear_open(be, err) != 0 ||
        cuda_attention_open(be, err) != 0 || cuda_sample_open(be, err) != 0) {
        be_close(be);
        return -1;
    }
    *out = be;
    return 0;
}

static void be_caps(struct backend *be, struct backend_caps *out)
{
    memset(out, 0, sizeof *out);
    out->activation = DTYPE_BF16;
    out->loads_in_place = false;
    out->own_memory = true;
    out->granule_bytes = cuda_ranges_granule(be);
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
    (void)be;
    if (p != nullptr && cudaFreeHost(p) != cudaSuccess)
        cudaGetLastError(); /* the device has failed, and with it all that was pinned */
}

static void be_upload(struct backend *be, struct devptr dst, const void *src, size_t n_bytes)
{
    CUDA_NOTE(be, copy_async(be, dev<void>(dst), src, n_bytes, cudaMemcpyHostToDevice));
}

static void be_download(struct backend *be, void *dst, struct devptr src, size_t n_bytes)
{
    CUDA_NOTE(be, copy_async(be, dst, dev<void>(src), n_bytes, cudaMemcpyDeviceToHost));
}

static int tell_fault(const struct backend *be, struct err *err)
{
    if (be->fault == cudaSuccess)
        return 0;
    return err_set(err, ERR_INTERNAL, "cuda: %s: %s", be->fault_what,
                   cudaGetErrorString(be->fault));
}

static int be_sync(struct backend *be, struct err *err)
{
    CUDA_NOTE(be, cudaStreamSynchronize(be->stream));
    return tell_fault(be, err);
}

static uint64_t be_mark(struct backend *be)
{
    CUDA_NOTE(be, cudaEventRecord(be->marks[be->n_marks % OPS_MARKS], be->stream));
    return be->n_marks++;
}

/* Spins: a sleeping thread is woken some 20 us late, which is a step's whole slack. */
static int be_wait(struct backend *be, uint64_t mark, struct err *err)
{
    BUG_IF(mark >= be->n_marks || be->n_marks - mark > OPS_MARKS);
    cudaError_t rc;
    while ((rc = cudaEventQuery(be->marks[mark % OPS_MARKS])) == cudaErrorNotReady)
        cudaGetLastError(); /* not ready is no error, but it is noted as one */
    CUDA_NOTE(be, rc);
    return tell_fault(be, err);
}

/* ---- the lane
 * ---------------------------------------------------------------------------------------- */

static void be_lane_upload(struct backend *be, struct devptr dst, const void *src, size_t n_bytes,
                           size_t stride, int n_rows)
{
    if (n_rows == 1)
        CUDA_NOTE(be,
                  cudaMemcpyAsync(dev<void>(dst), src, n_bytes, cudaMemcpyHostToDevice, be->lane));
    else
        CUDA_NOTE(be, cudaMemcpy2DAsync(dev<void>(dst), stride, src, stride, n_bytes,
                                        (size_t)n_rows, cudaMemcpyHostToDevice, be->lane));
}

static uint64_t be_lane_mark(struct backend *be)
{
    CUDA_NOTE(be, cudaEventRecord(be->lane_marks[be->n_lane_marks % LANE_MARKS], be->lane));
    return be->n_lane_marks++;
}

static cudaEvent_t lane_event(const struct backend *be, uint64_t mark)
{
    BUG_IF(mark >= be->n_lane_marks);
    if (be->n_lane_marks - mark > LANE_MARKS)
        mark = be->n_lane_marks - LANE_MARKS;
    return be->lane_marks[mark % LANE_MARKS];
}

static bool be_lane_reached(struct backend *be, uint64_t mark)
{
    cudaError_t rc = cudaEventQuery(lane_event(be, mark));
    if (rc == cudaErrorNotReady)
        cudaGetLastError();
    else
        CUDA_NOTE(be, rc);
    return rc != cudaErrorNotReady; /* a fault is told by sync; nobody should wait for it here */
}

static void be_lane_need(struct backend *be, uint64_t mark)
{
    CUDA_NOTE(be, cudaStreamWaitEvent(be->stream, lane_event(be, mark), 0));
    be->copied = true;
}

/* ---- recording: a stream capture, instantiated as a graph
 * --------------------------------------------- */

struct recording {
    cudaGraphExec_t exec;
};

static bool be_record_begin(struct backend *be)
{
    BUG_IF(be->recording);
    if (cudaStreamBeginCapture(be->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    be->recording = true;
    return true;
}

static int be_record_end(struct backend *be, struct recording **out, struct err *err)
{
    BUG_IF(!be->recording);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    be->recording = false;
    *out = nullptr;
    cudaError_t rc = cudaStreamEndCapture(be->stream, &graph);
    if (rc == cudaSuccess)
        rc = cudaGraphInstantiate(&exec, graph, 0);
    if (graph != nullptr)
        cudaGraphDestroy(graph);
    if (rc == cudaSuccess)
        rc = cudaGraphUpload(exec, be->stream);
    if (rc != cudaSuccess) {
        cudaGetLastError();
        return err_set(err, ERR_INTERNAL, "cuda: recording a step: %s", cudaGetErrorString(rc));
    }
    *out = new recording{exec};
    return 0;
}

static void be_replay(struct backend *be, struct recording *recording)
{
    be->copied = true;
    CUDA_NOTE(be, cudaGraphLaunch(recording->exec, be->stream));
}

static void be_recording_free(struct backend *be, struct recording *recording)
{
    if (recording == nullptr)
        return;
    CUDA_NOTE(be, cudaGraphExecDestroy(recording->exec));
    delete recording;
}

extern "C" const struct ops ops_cuda = {
    .name = "cuda",
    .open = be_open,
    .close = be_close,
    .caps = be_caps,
    .mem_alloc = be_mem_alloc,
    .mem_free = be_mem_free,
    .mem_reserve = cuda_mem_reserve,
    .mem_back = cuda_mem_back,
    .mem_unback = cuda_mem_unback,
    .mem_release = cuda_mem_release,
    .host_alloc = be_host_alloc,
    .host_free = be_host_free,
    .upload = be_upload,
    .download = be_download,
    .sync = be_sync,
    .mark = be_mark,
    .wait = be_wait,
    .lane_upload = be_lane_upload,
    .lane_mark = be_lane_mark,
    .lane_reached = be_lane_reached,
    .lane_need = be_lane_need,
    .weight_create = cuda_weight_create,
    .weight_free = cuda_weight_free,
    .embed = cuda_embed,
    .add_rmsnorm = cuda_add_rmsnorm,
    .lora_look_up = cuda_lora_look_up,
    .linear = cuda_linear,
    .linear_swiglu = cuda_linear_swiglu,
    .sgmv_shrink = cuda_sgmv_shrink,
    .sgmv_expand = cuda_sgmv_expand,
    .rope_kv_write = cuda_rope_kv_write,
    .attention = cuda_attention,
    .swiglu = cuda_swiglu,
    .gather_rows = cuda_gather_rows,
    .sample = cuda_sample,
    .score = cuda_score,
    .record_begin = be_record_begin,
    .record_end = be_record_end,
    .replay = be_replay,
    .recording_free = be_recording_free,
    .kv_copy_blocks = cuda_kv_copy_blocks,
};
