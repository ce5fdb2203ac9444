/* sample.cu: from logits to a token, without sorting them.
 *
 * A row is the work of one cluster of eight thread blocks, each with an eighth of the vocabulary.
 * They meet by storing into one another's shared memory, counted by a barrier of the receiver, and
 * all decide the same. Nothing but a row's own numbers and the vocabulary's size enters its result.
 * What is launched depends on n and vocab alone, so that it can be recorded; each row takes its own
 * way on the device.
 *
 *   scan     one pass over the logits: the best candidate, and the sum of exponentials online in
 *            f32, merged in f64. A greedy row is done here. The logits stay in shared memory.
 *   tops     each thread block lists its n_top best, the first of the cluster merges the lists.
 *   select   all filters and the draw ask one question: in ops.h's order of candidates, which is
 *            the first at which the cumulative weight reaches a goal? The weight is 1 for top-k and
 *            the probability else. A histogram over 256 equal steps of (best - logit) / temperature
 *            tells the step. Its candidates, when they aren't many, are sent to all, and each block
 *            picks among them on its own; many are first narrowed by a digit of their place.
 *
 * A candidate's *place* is a u64: its *order*, a u32 that ascends where logits descend, above its
 * id. Places ascend as ops.h's candidates do, and no two are the same.
 *
 * Probabilities relative to the best are computed in f64 and counted in units of 2^-44. So their
 * sums are integers: exact in any order, which makes atomics harmless, and prefix sums agree
 * between levels. The unit is far below the generator's (2^-24), so that what it rounds to nothing,
 * a whole vocabulary of it, can't be drawn.
 * A filter leaves a prefix of the candidates, and a prefix is told by its sum alone: the next
 * goal is a share of that sum. Nothing is ever marked or moved.
 *
 * Parameters and results in pinned memory are read and written by the kernel itself: copies would
 * take longer than a greedy row. Others are copied.
 *
 * Rows with penalties or bias get a changed copy of their logits first (penalise_kernel). That
 * needs memory sized by the vocabulary, so it is outside of recordings.
 *
 * Source of select: radix selection as in Alabi et al., Fast k-Selection Algorithms for Graphics
 * Processing Units, JEA 2012, with sums in place of counts. */
#include "kernels/cuda/sample.cuh"

/* A row with penalties or bias; *_at count words of the upload. */
struct special {
    int32_t row, n_prompt, n_tokens, n_bias, tokens_at, bias_at;
};

struct sample_scratch {
    struct sample_params *params;  /* device [ROWS_MAX] */
    struct sample_result *results; /* device [ROWS_MAX] */
    int32_t *wanted, *n_top;       /* device [ROWS_MAX] */
    int32_t *host, *device;        /* the upload of the special rows, [n_words] */
    size_t n_words;
    cudaEvent_t taken; /* when the device has `host` */
    float *penalised;  /* device [n_special, vocab] */
    int32_t *counts;   /* the same shape, all 0 between calls */
    size_t n_penalised;
};

/* ---- kernels --------------------------------------------------------------------------------- */

/* A row's parameters by words. To score a token is to draw greedily and have `seed` say what. The
 * host may have written them just before the launch, so a cache may be wrong about them. */
__device__ static inline uint64_t params_word(const struct sample_args &args, int row, int i)
{
    if (args.params != nullptr)
        return reinterpret_cast<const volatile uint64_t *>(args.params + row)[i];
    if (i == (int)offsetof(struct sample_params, n_top) / 8 && args.n_top != nullptr)
        return (uint64_t)(uint32_t) reinterpret_cast<const volatile int32_t *>(args.n_top)[row]
               << offsetof(struct sample_params, n_top) % 8 * 8;
    if (i == (int)offsetof(struct sample_params, seed) / 8)
        return (uint64_t)(uint32_t) reinterpret_cast<const volatile int32_t *>(args.wanted)[row];
    return 0;
}

/* Grid [RANKS, n]; dynamic shared memory: args.part logits when args.keeps. A rank may leave when
 * it has had all that is sent to it. */
__global__ static void __cluster_dims__(RANKS, 1, 1) __launch_bounds__(SAMPLE_THREADS, 2)
    sample_kernel(const struct sample_args args)
{
    extern __shared__ uint4 kept[];
    __shared__ struct sample_shared s;
    pdl_trigger();
    const int row = (int)blockIdx.y, vocab = args.vocab;
    if (threadIdx.x == 0)
        barriers_init(&s);
    cluster_arrive(); /* nobody sends to a thread block that hasn't begun */
    uint64_t word = 0;
    if (threadIdx.x < PARAMS_WORDS) /* uploaded before the step, or written by the host */
        word = params_word(args, row, (int)threadIdx.x);
    if (threadIdx.x < RESULT_WORDS)
        s.result_words[threadIdx.x] = 0;
    pdl_wait();
    const int special = args.special != nullptr ? args.special[row] : -1;
    const float *logits = args.logits + (int64_t)row * vocab;
    struct part p = {};
    p.s = &s;
    p.kept = args.keeps ? reinterpret_cast<float *>(kept) : nullptr;
    p.row = logits;
    p.begin = min(rank_here() * args.part, vocab);
    p.end = min(p.begin + args.part, vocab);
    p.wide = vocab % 4 == 0 && reinterpret_cast<uintptr_t>(p.row) % 16 == 0;

    struct scanned mine = scan(&p, word);
    cluster_wait();
    uint64_t place = scan_end(&p, mine, true);
    const int n_top = min(min(max(s.params.n_top, 0), (int)SAMPLE_TOP_MAX), vocab);
    if (n_top > 0)
        tops(&p, mine.mine, n_top);
    if (args.params != nullptr) {
        if (special >= 0) {
            __syncthreads(); /* other threads may still read what was kept */
            p.row = args.penalised + (int64_t)special * vocab;
            p.wide = vocab % 4 == 0;
            place = scan_end(&p, scan(&p, word), false);
        }
        if (s.params.temperature > 0 && place_order(place) < FORBIDDEN)
            place = draw(&p, place);
    }
    if (rank_here() != 0)
        return;
    if (threadIdx.x == 0) {
        bool known = args.params != nullptr && place_order(place) < FORBIDDEN;
        int32_t token = known                    ? (int32_t)(uint32_t)place
                        : args.params != nullptr ? 0
                                                 : (int32_t)s.params.seed;
        float logit = known && special < 0 ? logit_of(place_order(place)) : tame(logits[token]);
        s.result.token = token;
        s.result.logprob = (float)((double)logit - s.log_sum);
        s.result.n_top = n_top;
        if (args.tokens != nullptr)
            args.tokens[row] = token;
    }
    __syncthreads();
    if (threadIdx.x < RESULT_WORDS)
        reinterpret_cast<uint32_t *>(args.results + row)[threadIdx.x] = s.result_words[threadIdx.x];
}

/* Grid [specials]. counts is all 0 before and after: a token's bit 0 says that it was seen, the
 * rest how often in the output, and who takes it away applies it. Products and differences round
 * one by one, as ref's do. */
__global__ static void __launch_bounds__(PENALISE_THREADS)
    penalise_kernel(float *penalised, int32_t *counts, const float *logits, int vocab,
                    const struct sample_params *params, const struct special *specials,
                    const int32_t *words)
{
    pdl_trigger();
    pdl_wait();
    const struct special h = specials[blockIdx.x];
    const struct sample_params o = params[h.row];
    const float *from = logits + (int64_t)h.row * vocab;
    float *to = penalised + (int64_t)blockIdx.x * vocab;
    int32_t *count = counts + (int64_t)blockIdx.x * vocab;
    const int32_t *tokens = words + h.tokens_at, *bias_ids = words + h.bias_at;
    const int32_t *bias_values = bias_ids + h.n_bias; /* bits of f32 */
#pragma unroll 8
    for (int i = (int)threadIdx.x; i < vocab; i += PENALISE_THREADS)
        to[i] = tame(from[i]);
    for (int i = (int)threadIdx.x; i < h.n_tokens; i += PENALISE_THREADS) {
        atomicOr(&count[tokens[i]], 1);
        if (i >= h.n_prompt)
            atomicAdd(&count[tokens[i]], 2);
    }
    __syncthreads();
    for (int i = (int)threadIdx.x; i < h.n_tokens; i += PENALISE_THREADS) {
        int32_t c = atomicExch(&count[tokens[i]], 0);
        if (c == 0)
            continue;
        float v = to[tokens[i]];
        if (o.repetition_penalty != 1)
            v = v > 0 ? __fdiv_rn(v, o.repetition_penalty) : __fmul_rn(v, o.repetition_penalty);
        if (c > 1) {
            v = __fsub_rn(v, __fmul_rn(o.frequency_penalty, (float)(c >> 1)));
            v = __fsub_rn(v, o.presence_penalty);
        }
        to[tokens[i]] = v;
    }
    __syncthreads();
    /* In order where an id comes twice: its first one adds them all. */
    for (int i = (int)threadIdx.x; i < h.n_bias; i += PENALISE_THREADS) {
        int32_t id = bias_ids[i];
        bool is_first = true;
        for (int k = 0; k < i; k++)
            is_first = is_first && bias_ids[k] != id;
        if (!is_first)
            continue;
        float v = to[id];
        for (int k = i; k < h.n_bias; k++) {
            if (bias_ids[k] == id)
                v = __fadd_rn(v, __int_as_float(bias_values[k]));
        }
        to[id] = v;
    }
}

/* ---- host ------------------------------------------------------------------------------------ */

int cuda_sample_open(struct backend *be, struct err *err)
{
    struct sample_scratch *s = new sample_scratch();
    be->sampling = s;
    cudaError_t rc = cudaMalloc(&s->params, ROWS_MAX * sizeof *s->params);
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->results, ROWS_MAX * sizeof *s->results);
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->wanted, ROWS_MAX * sizeof *s->wanted);
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->n_top, ROWS_MAX * sizeof *s->n_top);
    if (rc == cudaSuccess)
        rc = cudaEventCreateWithFlags(&s->taken, cudaEventDisableTiming);
    if (rc == cudaSuccess)
        rc = cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  KEPT_BYTES_MAX);
    if (rc != cudaSuccess)
        return err_set(err, ERR_NO_MEMORY, "cuda: scratch memory for sampling: %s",
                       cudaGetErrorString(rc));
    return 0;
}

void cuda_sample_close(struct backend *be)
{
    struct sample_scratch *s = be->sampling;
    if (s == nullptr)
        return;
    cudaFree(s->params);
    cudaFree(s->results);
    cudaFree(s->wanted);
    cudaFree(s->n_top);
    cudaFree(s->device);
    cudaFree(s->penalised);
    cudaFree(s->counts);
    if (s->host != nullptr)
        cudaFreeHost(s->host);
    if (s->taken != nullptr)
        cudaEventDestroy(s->taken);
    delete s;
    be->sampling = nullptr;
}

static void copy_in(struct backend *be, void *device, const void *host, size_t n_bytes)
{
    CUDA_NOTE(be, copy_async(be, device, host, n_bytes, cudaMemcpyHostToDevice));
}

/* Where the device finds host memory, or NULL when it isn't pinned. */
template <typename T> static T *seen_by_device(T *host, int n)
{
    if (n > SEEN_MAX)
        return nullptr;
    cudaPointerAttributes a = {};
    if (cudaPointerGetAttributes(&a, host) != cudaSuccess) {
        cudaGetLastError();
        return nullptr;
    }
    return a.type == cudaMemoryTypeHost ? static_cast<T *>(a.devicePointer) : nullptr;
}

/* The same, or a copy in `device`. */
template <typename T> static const T *bring(struct backend *be, T *device, const T *host, int n)
{
    const T *seen = seen_by_device(host, n);
    if (seen == nullptr)
        copy_in(be, device, host, (size_t)n * sizeof *host);
    return seen != nullptr ? seen : device;
}

/* n <= ROWS_MAX; everything else of args is the caller's. */
static void sample_rows(struct backend *be, struct sample_result *results, struct sample_args args,
                        int n)
{
    BUG_IF(args.vocab < 1 || args.vocab > VOCAB_MAX);
    struct sample_result *seen = seen_by_device(results, n);
    args.results = seen != nullptr ? seen : be->sampling->results;
    args.part = ceil_div(ceil_div(args.vocab, RANKS), 4) * 4;
    size_t kept_bytes = (size_t)args.part * sizeof(float);
    args.keeps = kept_bytes <= KEPT_BYTES_MAX;
    launch(be, "sample", sample_kernel, dim3(RANKS, (unsigned)n), SAMPLE_THREADS,
           args.keeps ? kept_bytes : 0, args);
    if (seen == nullptr)
        CUDA_NOTE(be, copy_async(be, results, args.results, (size_t)n * sizeof *results,
                                 cudaMemcpyDeviceToHost));
}

void cuda_score(struct backend *be, struct sample_result *results, struct devptr logits, int n,
                int vocab, const int32_t *tokens, const int32_t *n_top)
{
    struct sample_scratch *s = be->sampling;
    for (int first = 0, rows; first < n; first += rows) {
        rows = n - first < ROWS_MAX ? n - first : ROWS_MAX;
        struct sample_args args = {};
        args.logits = dev<float>(logits) + (int64_t)first * vocab;
        args.vocab = vocab;
        args.wanted = bring(be, s->wanted, tokens + first, rows);
        if (n_top != nullptr)
            args.n_top = bring(be, s->n_top, n_top + first, rows);
        sample_rows(be, results + first, args, rows);
    }
}

/* ---- host: rows with penalties or bias ------------------------------------------------------- */

static bool is_penalised(const struct sample_params &o, const struct sample_history &h)
{
    return h.tokens != nullptr && h.n_tokens > 0 &&
           (o.repetition_penalty != 1 || o.frequency_penalty != 0 || o.presence_penalty != 0);
}

static bool is_special(const struct sample_params &o, const struct sample_history &h)
{
    return is_penalised(o, h) || h.n_bias > 0;
}

/* Makes room for the changed logits of up to n rows; returns how many there is room for. The engine
 * may have taken most of the memory, so fewer will do. */
static int reserve_penalised(struct backend *be, int n, int vocab)
{
    struct sample_scratch *s = be->sampling;
    if (s->n_penalised >= (size_t)n * (size_t)vocab)
        return n;
    int room = (int)(s->n_penalised / (size_t)vocab);
    int more = 1;
    while (more < n)
        more *= 2; /* so that it grows seldom */
    for (; more > room; more /= 2) {
        size_t size = (size_t)more * (size_t)vocab;
        float *penalised = nullptr;
        int32_t *counts = nullptr;
        if (cudaMalloc(&penalised, size * sizeof *penalised) != cudaSuccess ||
            cudaMalloc(&counts, size * sizeof *counts) != cudaSuccess) {
            cudaGetLastError();
            cudaFree(penalised);
            continue;
        }
        cudaFree(s->penalised); /* waits for who uses it */
        cudaFree(s->counts);
        s->penalised = penalised;
        s->counts = counts;
        s->n_penalised = size;
        CUDA_NOTE(be, fill_async(be, counts, 0, size * sizeof *counts));
        room = more;
        break;
    }
    return room < n ? room : n;
}

static bool reserve_words(struct backend *be, size_t n_words)
{
    struct sample_scratch *s = be->sampling;
    if (n_words <= s->n_words)
        return true;
    n_words += n_words / 2; /* a history grows by a token a step */
    cudaFree(s->device);
    if (s->host != nullptr)
        cudaFreeHost(s->host);
    s->device = s->host = nullptr;
    s->n_words = 0;
    cudaError_t rc = cudaMallocHost(&s->host, n_words * sizeof *s->host);
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->device, n_words * sizeof *s->device);
    CUDA_NOTE(be, rc);
    if (rc == cudaSuccess)
        s->n_words = n_words;
    return rc == cudaSuccess;
}

static int32_t *put_ids(int32_t *to, const int32_t *ids, int n, int vocab)
{
    for (int i = 0; i < n; i++) {
        BUG_IF(ids[i] < 0 || ids[i] >= vocab);
        to[i] = ids[i];
    }
    return to + n;
}

/* Enqueues the changed logits of the special ones of n rows, and sets args accordingly. The upload
 * is: the index of each row among the specials or -1; the specials; their tokens, bias ids and bias
 * values. */
static bool penalise(struct backend *be, struct sample_args *args, int n,
                     const struct sample_params *params, const struct sample_history *history)
{
    struct sample_scratch *s = be->sampling;
    size_t n_words = (size_t)n;
    int n_special = 0;
    for (int i = 0; i < n; i++) {
        if (!is_special(params[i], history[i]))
            continue;
        n_special++;
        n_words += sizeof(struct special) / sizeof(int32_t) + 2 * (size_t)history[i].n_bias +
                   (is_penalised(params[i], history[i]) ? (size_t)history[i].n_tokens : 0);
    }
    CUDA_NOTE(be, cudaEventSynchronize(s->taken));
    if (!reserve_words(be, n_words))
        return false;
    struct special *special = reinterpret_cast<struct special *>(s->host + n);
    int32_t *at = reinterpret_cast<int32_t *>(special + n_special);
    for (int i = 0, k = 0; i < n; i++) {
        const struct sample_history &h = history[i];
        s->host[i] = -1;
        if (!is_special(params[i], h))
            continue;
        s->host[i] = k;
        struct special *sp = &special[k++];
        sp->row = i;
        sp->n_prompt = h.n_prompt;
        sp->n_tokens = is_penalised(params[i], h) ? h.n_tokens : 0;
        sp->n_bias = h.n_bias;
        sp->tokens_at = (int32_t)(at - s->host);
        at = put_ids(at, h.tokens, sp->n_tokens, args->vocab);
        sp->bias_at = (int32_t)(at - s->host);
        at = put_ids(at, h.bias_ids, h.n_bias, args->vocab);
        if (h.n_bias > 0)
            memcpy(at, h.bias_values, (size_t)h.n_bias * sizeof *at);
        at += h.n_bias;
    }
    copy_in(be, s->device, s->host, n_words * sizeof *s->host);
    CUDA_NOTE(be, cudaEventRecord(s->taken, be->stream));
    launch(be, "penalise", penalise_kernel, dim3((unsigned)n_special), PENALISE_THREADS, 0,
           s->penalised, s->counts, args->logits, args->vocab, args->params,
           reinterpret_cast<const struct special *>(s->device + n), s->device);
    args->special = s->device;
    args->penalised = s->penalised;
    return true;
}

void cuda_sample(struct backend *be, struct sample_result *results, struct devptr tokens,
                 struct devptr logits, int n, int vocab, const struct sample_params *params,
                 const struct sample_history *history)
{
    struct sample_scratch *s = be->sampling;
    BUG_IF(be->recording && history != nullptr);
    for (int first = 0, rows; first < n; first += rows) {
        rows = n - first < ROWS_MAX ? n - first : ROWS_MAX;
        int n_special = 0;
        for (int i = first; history != nullptr && i < first + rows; i++)
            n_special += is_special(params[i], history[i]);
        if (n_special > 0) { /* as many rows as there is room for special ones among them */
            int room = reserve_penalised(be, n_special < SPECIAL_MAX ? n_special : SPECIAL_MAX,
                                         vocab);
            if (room == 0) {
                CUDA_NOTE(be, cudaErrorMemoryAllocation);
                return;
            }
            n_special = 0;
            for (int i = first; i < first + rows; i++) {
                bool more = is_special(params[i], history[i]);
                if (more && n_special == room)
                    rows = i - first;
                else
                    n_special += more;
            }
        }
        struct sample_args args = {};
        args.logits = dev<float>(logits) + (int64_t)first * vocab;
        args.tokens = tokens.addr != 0 ? dev<int32_t>(tokens) + first : nullptr;
        args.vocab = vocab;
        args.params = bring(be, s->params, params + first, rows);
        if (n_special > 0 && !penalise(be, &args, rows, params + first, history + first))
            return;
        sample_rows(be, results + first, args, rows);
    }
}
