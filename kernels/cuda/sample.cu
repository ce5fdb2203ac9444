/* sample.cu: greedy choice and log-probabilities on the device; only results come back.
 *
 * One thread block a row. Sums are f64, thread by thread over a fixed stride, then in thread order,
 * so that a row's log-probabilities don't depend on what else is in the batch. The best n_top are
 * found by n_top passes of an ordered maximum (logit descending, id ascending).
 *
 * A row that wants more than that (a temperature, penalties, bias) is copied back and drawn on the
 * host by the rules of kernels/ops.h, in f64: exact, and slow for large vocabularies. */
#include "kernels/cuda/cuda.cuh"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <vector>

enum { SAMPLE_THREADS = 512 };

struct best {
    float logit;
    int32_t id;
};

__device__ __host__ static inline bool before(const struct best &a, const struct best &b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

__device__ __host__ static inline float tame(float v)
{
    return v != v ? -INFINITY : v > FLT_MAX ? FLT_MAX : v;
}

__device__ static struct best block_best(struct best mine)
{
    __shared__ struct best warps[SAMPLE_THREADS / 32];
    for (int o = 16; o > 0; o >>= 1) {
        struct best other = {__shfl_xor_sync(0xffffffffu, mine.logit, o),
                             __shfl_xor_sync(0xffffffffu, mine.id, o)};
        if (before(other, mine))
            mine = other;
    }
    if ((threadIdx.x & 31) == 0)
        warps[threadIdx.x / 32] = mine;
    __syncthreads();
    mine = warps[0];
    for (int i = 1; i < SAMPLE_THREADS / 32; i++) {
        if (before(warps[i], mine))
            mine = warps[i];
    }
    __syncthreads();
    return mine;
}

/* wanted[row] < 0: the greedy token. */
__global__ static void __launch_bounds__(SAMPLE_THREADS)
    score_kernel(struct sample_result *results, const float *logits, int vocab,
                 const int32_t *wanted, const int32_t *n_top)
{
    const float *row = logits + (int64_t)blockIdx.x * vocab;
    struct sample_result *r = results + blockIdx.x;
    struct best mine = {-INFINITY, INT32_MAX};
    for (int i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) {
        struct best c = {tame(row[i]), i};
        if (before(c, mine))
            mine = c;
    }
    struct best top = block_best(mine);
    __shared__ double sums[SAMPLE_THREADS];
    double sum = 0;
    for (int i = threadIdx.x; i < vocab; i += SAMPLE_THREADS)
        sum += exp((double)tame(row[i]) - (double)top.logit);
    sums[threadIdx.x] = sum;
    __syncthreads();
    __shared__ double log_sum;
    if (threadIdx.x == 0) {
        double total = 0;
        for (int i = 0; i < SAMPLE_THREADS; i++)
            total += sums[i];
        log_sum = top.logit == -INFINITY ? 0 : (double)top.logit + log(total);
        int32_t token = wanted[blockIdx.x] >= 0  ? wanted[blockIdx.x]
                        : top.logit == -INFINITY ? 0
                                                 : top.id;
        r->token = token;
        r->logprob = (float)((double)tame(row[token]) - log_sum);
        r->n_top = n_top[blockIdx.x] < vocab ? n_top[blockIdx.x] : vocab;
    }
    __syncthreads();
    int n = n_top[blockIdx.x] < vocab ? n_top[blockIdx.x] : vocab;
    struct best last = {INFINITY, -1};
    for (int k = 0; k < n; k++) {
        mine = {-INFINITY, INT32_MAX};
        for (int i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) {
            struct best c = {tame(row[i]), i};
            if (before(last, c) && before(c, mine))
                mine = c;
        }
        last = block_best(mine);
        if (threadIdx.x == 0) {
            r->top_ids[k] = last.id;
            r->top_logprobs[k] = (float)((double)last.logit - log_sum);
        }
    }
}

/* results, wanted and n_top are host memory; small, so they go through one allocation of the
 * stream. */
static void score(struct backend *be, struct sample_result *results, struct devptr logits, int n,
                  int vocab, const std::vector<int32_t> &wanted, const std::vector<int32_t> &n_top)
{
    size_t bytes = (size_t)n * (sizeof(struct sample_result) + 2 * sizeof(int32_t));
    void *scratch = nullptr;
    CUDA_NOTE(be, cudaMallocAsync(&scratch, bytes, be->stream));
    if (scratch == nullptr)
        return;
    struct sample_result *d_results = static_cast<struct sample_result *>(scratch);
    int32_t *d_wanted = reinterpret_cast<int32_t *>(d_results + n), *d_top = d_wanted + n;
    CUDA_NOTE(be, cudaMemsetAsync(d_results, 0, (size_t)n * sizeof *results, be->stream));
    CUDA_NOTE(be, cudaMemcpyAsync(d_wanted, wanted.data(), (size_t)n * 4, cudaMemcpyHostToDevice,
                                  be->stream));
    CUDA_NOTE(be, cudaMemcpyAsync(d_top, n_top.data(), (size_t)n * 4, cudaMemcpyHostToDevice,
                                  be->stream));
    score_kernel<<<n, SAMPLE_THREADS, 0, be->stream>>>(d_results, dev<float>(logits), vocab,
                                                       d_wanted, d_top);
    CUDA_LAUNCHED(be, "score");
    CUDA_NOTE(be, cudaMemcpyAsync(results, d_results, (size_t)n * sizeof *results,
                                  cudaMemcpyDeviceToHost, be->stream));
    CUDA_NOTE(be, cudaFreeAsync(scratch, be->stream));
}

void cuda_score(struct backend *be, struct sample_result *results, struct devptr logits, int n,
                int vocab, const int32_t *tokens, const int32_t *n_top)
{
    if (n == 0)
        return;
    std::vector<int32_t> wanted(tokens, tokens + n), top((size_t)n, 0);
    if (n_top != nullptr)
        top.assign(n_top, n_top + n);
    score(be, results, logits, n, vocab, wanted, top);
}

static bool is_greedy(const struct sample_params &p, const struct sample_history *h)
{
    if (h != nullptr && (h->n_bias > 0 || (h->tokens != nullptr &&
                                           (p.repetition_penalty != 1 || p.frequency_penalty != 0 ||
                                            p.presence_penalty != 0))))
        return false;
    return p.temperature == 0;
}

static void penalise(std::vector<float> &logits, const struct sample_params &p,
                     const struct sample_history &h)
{
    if (h.tokens != nullptr) {
        std::vector<int> seen(logits.size()), output(logits.size());
        for (int i = 0; i < h.n_tokens; i++) {
            seen[(size_t)h.tokens[i]]++;
            output[(size_t)h.tokens[i]] += i >= h.n_prompt;
        }
        for (size_t i = 0; i < logits.size(); i++) {
            if (seen[i] > 0 && p.repetition_penalty != 1)
                logits[i] = logits[i] > 0 ? logits[i] / p.repetition_penalty
                                          : logits[i] * p.repetition_penalty;
            if (output[i] > 0) {
                logits[i] -= p.frequency_penalty * (float)output[i];
                logits[i] -= p.presence_penalty;
            }
        }
    }
    for (int i = 0; i < h.n_bias; i++)
        logits[(size_t)h.bias_ids[i]] += h.bias_values[i];
}

static int32_t draw(std::vector<float> &logits, const struct sample_params &p)
{
    std::vector<struct best> c(logits.size());
    for (size_t i = 0; i < logits.size(); i++)
        c[i] = {logits[i], (int32_t)i};
    std::sort(c.begin(), c.end(), before);
    if (c[0].logit == -INFINITY)
        return 0;
    if (p.temperature == 0)
        return c[0].id;
    size_t n = p.top_k > 0 && (size_t)p.top_k < c.size() ? (size_t)p.top_k : c.size();
    std::vector<double> mass(n);
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        mass[i] = std::exp(((double)c[i].logit - (double)c[0].logit) / (double)p.temperature);
        sum += mass[i];
    }
    if (p.top_p < 1) {
        double kept = 0;
        size_t m = 0;
        for (; m < n && (m == 0 || kept < (double)p.top_p * sum); m++)
            kept += mass[m];
        n = m;
        sum = kept;
    }
    if (p.min_p > 0) {
        double kept = mass[0];
        size_t m = 1;
        for (; m < n && mass[m] >= (double)p.min_p * mass[0]; m++)
            kept += mass[m];
        n = m;
        sum = kept;
    }
    double target = (double)ops_uniform(p.seed, p.position) * sum, cumulative = 0;
    int32_t id = c[0].id;
    for (size_t i = 0; i < n && mass[i] > 0; i++) {
        id = c[i].id;
        cumulative += mass[i];
        if (cumulative > target)
            break;
    }
    return id;
}

void cuda_sample(struct backend *be, struct sample_result *results, struct devptr logits, int n,
                 int vocab, const struct sample_params *params,
                 const struct sample_history *history)
{
    if (n == 0)
        return;
    std::vector<int32_t> wanted((size_t)n, -1), top((size_t)n);
    std::vector<float> row((size_t)vocab);
    for (int i = 0; i < n; i++) {
        const struct sample_history *h = history != nullptr ? &history[i] : nullptr;
        top[(size_t)i] = params[i].n_top;
        if (is_greedy(params[i], h))
            continue;
        CUDA_NOTE(be, cudaMemcpyAsync(row.data(), dev<float>(logits) + (size_t)i * vocab,
                                      (size_t)vocab * 4, cudaMemcpyDeviceToHost, be->stream));
        CUDA_NOTE(be, cudaStreamSynchronize(be->stream));
        for (float &v : row)
            v = tame(v);
        if (h != nullptr)
            penalise(row, params[i], *h);
        wanted[(size_t)i] = draw(row, params[i]);
    }
    score(be, results, logits, n, vocab, wanted, top);
}
