/* ops.h: the one table of operators, and the door of kernels/.
 *
 * Three implementations answer to it: ref/ (the specification: loops in f32, no tricks), cpu/
 * (AVX2, AVX-512, threads) and cuda/. Each implements every entry and answers to ref, never to
 * another, over odd shapes, mixed ranks, half-full blocks and empty segments. Operators know
 * shapes, not models.
 *
 * Words. A *row* is one token of this step. A *sequence* owns consecutive rows of a step. A *block*
 * is BLOCK_TOKENS tokens of KV cache; a sequence's *block table* lists its blocks in order. An
 * *adapter slot* is an index into the per-site adapter tables. A *site* is one linear module of one
 * layer (layer 3's q_proj). Axes: n_rows, n_seqs, n_heads, n_kv_heads, head_dim, d_in, d_out,
 * vocab. All matrices are row-major; [a, b] means b is contiguous. A weight is [d_out, d_in] as in
 * the file.
 *
 * Stream order. Compute entries enqueue and return; they take effect in the order called. Inputs
 * and outputs must live until the next sync, or until a mark behind the call was waited for. ref
 * and cpu run at once; only cuda defers. Wrong shapes are a bug (BUG_IF). Device faults show at
 * sync. One thread, the engine's, calls everything but where said.
 *
 * Determinism (DESIGN: a row never depends on its neighbours). For a given backend, machine and
 * weight, the bits of an output row are a function of that row's own inputs, its sequence's KV
 * cache and its adapters. Not of n_rows, of its place in the batch, of the other rows, of how its
 * prompt was cut into chunks, or of the number of threads. So: K is split at fixed places for each
 * d_in and summed in index order; attention walks the keys in fixed absolute pieces, merged in
 * order; the adapter's delta is added once, after the base sum and the bias; no atomics in sums.
 *
 * Bounds that every implementation is tested to keep against ref on f32-exact inputs (normalised
 * MSE = sum (y - r)^2 / sum r^2): linear, attention, swiglu, rmsnorm, rope 1e-10 for f32
 * activations, 5e-5 for bf16 activations; embed, gather, block copy: bit-equal; sample: ids equal,
 * log-probabilities within 2e-5 for f32. One linear has a bound of its own: with int8 weights cpu
 * may round x to 16 bits in blocks of 64 of d_in, to multiply in integers, 1e-8. Such weights are
 * 5e-5 from the file's. There an infinity in x makes its row NaN, and a block of numbers below
 * 2^-96 in size counts as zeros. */
#ifndef TRIBUTARY_KERNELS_OPS_H
#define TRIBUTARY_KERNELS_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

enum { BLOCK_TOKENS = 16 }; /* tokens of one KV block, every backend */

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16 };

static inline size_t dtype_bytes(enum dtype t)
{
    return t == DTYPE_F32 ? 4 : 2;
}

/* Memory of the device. On ref and cpu it is an ordinary address, but code outside the backends
 * must not rely on it. */
struct devptr {
    uintptr_t addr;
};

static inline struct devptr devptr_at(struct devptr p, size_t offset_bytes)
{
    return (struct devptr){p.addr + offset_bytes};
}

struct backend;   /* one device: its stream, its worker threads, its scratch memory */
struct weight;    /* a base weight in whatever layout the backend likes best */
struct recording; /* a step's calls, to be replayed (cuda: a graph) */

struct backend_options {
    int n_threads;   /* cpu: workers, caller included; 0: one a physical core of this process's mask
                      */
    int device;      /* cuda: ordinal */
    int max_rows;    /* largest n_rows of any call: scratch memory is sized from these at open */
    int max_d;       /* largest d_in or d_out, lm_head excepted */
    int max_rank;    /* largest sum over a call's parts of the ranks of one row */
    int max_seqs;    /* largest n_seqs */
    int max_context; /* tokens */
    /* ref and cpu: weights become int8 when they are created, w[c, k] = q[c, k] * scale[c] with one
     * scale an output column (a token, of an embedding): the largest |w| of the column is 127, the
     * rest is rounded to nearest, ties to even. The bounds then hold between backends of this kind.
     * cuda's open refuses. */
    bool weights_int8;
};

/* The environment variable TRIBUTARY_ISA, read by cpu's open, holds a processor to an older code
 * path than its best: "avx2", "avx512" or "avx512vnni" (which differs for int8 weights only). For
 * tests and comparisons; empty is as unset. What the processor lacks is ERR_UNSUPPORTED, another
 * word ERR_INVALID. */

struct backend_caps {
    enum dtype
        activation; /* of x, y, q, k, v and the residual stream: f32 on ref and cpu, bf16 on cuda */
    bool loads_in_place; /* weight_create keeps `host` (an mmap) instead of copying it */
    bool own_memory;     /* not the host's: what is free there is for the engine to take */
    size_t memory_free_bytes;
    size_t memory_total_bytes;
    size_t granule_bytes;  /* of mem_reserve: a page, or what the device maps at once */
    char description[128]; /* "cpu: AVX2, 2 threads" */
};

/* ---- the batch of a step -----------------------------------------------------------------------
 */

/* Ragged batch. The host arrays are what the engine planned; the devptrs hold the same numbers
 * where the device can read them (on ref and cpu the same memory). Rows of a sequence are
 * consecutive and in token order. */
struct batch {
    int n_rows, n_seqs;
    int max_blocks;            /* stride of block_table */
    const int32_t *seq_indptr; /* host [n_seqs + 1]: first row of each sequence; last = n_rows */
    const int32_t *kv_len; /* host [n_seqs]: tokens in cache after this step's writes; the last row
                              of sequence s is at position kv_len[s] - 1 */
    const int32_t *position; /* host [n_rows] */
    struct devptr d_seq_indptr, d_kv_len, d_position;
    struct devptr d_token;   /* i32 [n_rows] */
    struct devptr d_row_seq; /* i32 [n_rows]: the sequence of a row */
    struct devptr
        d_slot; /* i32 [n_rows]: where the row's K and V go: block * BLOCK_TOKENS + offset */
    struct devptr d_block_table; /* i32 [n_seqs, max_blocks] */
};

/* ---- adapters ----------------------------------------------------------------------------------
 */

/* A run of consecutive rows under one adapter. Rows under no adapter are in no segment and cost
 * nothing. A request with several weighted adapters is several segments over the same rows, in the
 * request's order: their deltas are added in that order. Otherwise segments don't overlap, and
 * ascend by row_begin. */
struct lora_seg {
    int32_t row_begin, n_rows;
    int32_t slot;
    float weight; /* multiplies the delta; 1 for a single adapter */
};

enum {
    LORA_ALONE_ROWS = 128, /* more rows are computed another way (cuda) */
    LORA_SEGS_FEW = 32,    /* of such a step: more segments are heavy whatever their ranks */
};

/* Are a step's adapters heavy, so that a device may fetch them in another way, and a step of each
 * kind is worth recording? ranks: the sum, over its segments, of an adapter's mean rank over all
 * sites; rank_max: the largest of any site. The bounds are cuda's: up to LORA_ALONE_ROWS rows a
 * layer of an 8B model takes 0.08 us longer for each of the ranks when their product is fused with
 * the base's, more where ranks above 64 are among others; and 25, 0.6 a segment and 0.05 a rank
 * when two kernels before it make it. More rows: 7 us a segment of rank 16, and the same as before,
 * but for ranks above 512, which are slow there. (One H200; linear.cu.) */
static inline bool lora_is_heavy(int n_rows, int n_segs, int ranks, int rank_max)
{
    if (n_rows > LORA_ALONE_ROWS)
        return n_segs > LORA_SEGS_FEW || (ranks > 600 && rank_max <= 512);
    return ranks > 860 + 21 * n_segs || (n_rows > 64 && rank_max > 64) ||
           (n_rows > 8 && rank_max > 128);
}

struct lora_step {
    int n_segs;
    const struct lora_seg *segs; /* host */
    struct devptr d_segs;        /* struct lora_seg [n_segs] */
    /* i32, or addr 0: the number of segments where the device reads it, so that a recorded step
     * serves whatever adapters come: at most 8 times n_rows, and in a replay at most n_rows; of
     * more than LORA_ALONE_ROWS rows, at most one a row. While recording segs is not looked at, and
     * n_segs is the most that a replay will have. */
    struct devptr d_n_segs;
    /* lora_is_heavy. A hint: the bits don't depend on it. Not looked at in steps of more than 256
     * rows; of more than LORA_ALONE_ROWS it must be true while recording for more segments than
     * LORA_SEGS_FEW. */
    bool heavy;
};

/* What an adapter slot holds at a site. rank 0: the adapter leaves this module alone. */
struct lora_entry {
    struct devptr a;  /* [rank, d_in], dtype */
    struct devptr b;  /* [d_out, rank], dtype */
    int32_t rank;     /* true rank; no padding */
    float scaling;    /* alpha / r, or alpha / sqrt(r) for rsLoRA */
    int32_t dtype;    /* enum dtype of a and b */
    int32_t reserved; /* 0 */
};

/* One part of a (possibly fused) linear weight: q, k and v of a fused qkv are three parts. */
struct lora_part {
    const struct lora_entry *entries; /* host [n_slots] */
    struct devptr d_entries;          /* the same on the device; written by the adapter pool */
    int out_begin, d_out;             /* its columns of y */
};

/* A linear that adapters may touch. */
struct lora_linear {
    const struct lora_part *parts; /* host [n_parts] */
    int n_parts, d_in;
};

struct lora_args { /* pass NULL for `lora` when no row of the step has an adapter */
    const struct lora_step *step;
    const struct lora_part *parts; /* host [n_parts] */
    int n_parts;
    int place; /* among those told to lora_look_up, from 1 on; 0: it wasn't told */
};

/* ---- attention ---------------------------------------------------------------------------------
 */

/* One layer of the paged KV cache: k and v are [n_blocks, BLOCK_TOKENS, n_kv_heads, head_dim]. */
struct kv_layer {
    struct devptr k, v;
    enum dtype dtype;
};

struct attention_shape {
    int n_heads, n_kv_heads, head_dim; /* n_heads is a multiple of n_kv_heads (GQA) */
    float scale;                       /* multiplies q . k; usually head_dim^-0.5 */
    float softcap;                     /* s = softcap * tanh(s / softcap); 0: none */
    int window; /* key j is visible to the query at i if i - window < j <= i; 0: all j <= i */
};

struct rope_shape {
    int rotary_dim; /* <= head_dim; pairs (i, i + rotary_dim / 2), the Hugging Face order */
    struct devptr
        cos_sin; /* f32 [max_context, rotary_dim]: cos in the first half, sin in the second */
    struct devptr q_norm; /* [head_dim] RMSNorm weights applied before rope (Qwen3), or addr 0 */
    struct devptr k_norm;
    float norm_eps;
};

/* ---- sampling ----------------------------------------------------------------------------------
 */

enum { SAMPLE_TOP_MAX = 20 };

/* Order of operations, each skipped at its neutral value: repetition penalty (over prompt and
 * output; CTRL, Keskar et al. 2019), frequency and presence penalties (over output; OpenAI),
 * bias, temperature, top-k, top-p (smallest set whose sum reaches p), min-p (p >= min_p * p_max),
 * draw. The candidates are ordered by (logit descending, id ascending): ties go to the lowest id.
 * temperature 0 is greedy. The draw is u = philox4x32-10(key = seed, counter = position) -> [0, 1)
 * with 24 bits, and the first candidate, in that order, whose cumulative probability exceeds u. */
struct sample_params {
    float temperature;
    int32_t top_k;                                                 /* 0: off */
    float top_p;                                                   /* 1: off */
    float min_p;                                                   /* 0: off */
    float repetition_penalty, frequency_penalty, presence_penalty; /* 1, 0, 0: off */
    int32_t n_top; /* wanted top log-probabilities, 0 to SAMPLE_TOP_MAX */
    uint64_t seed;
    uint64_t position; /* of the token being drawn, in its sequence */
};

/* History and bias of one row; host memory, read during the call on ref and cpu and copied by cuda.
 */
struct sample_history {
    const int32_t *tokens;    /* prompt then output; NULL when no penalty needs it */
    int n_prompt, n_tokens;   /* n_tokens counts both */
    const int32_t *bias_ids;  /* logit_bias */
    const float *bias_values; /* -inf forbids */
    int n_bias;
};

/* Log-probabilities are of the model's own distribution: log softmax of the raw logits. */
struct sample_result {
    int32_t token;
    float logprob;
    int32_t n_top;
    int32_t top_ids[SAMPLE_TOP_MAX]; /* descending */
    float top_logprobs[SAMPLE_TOP_MAX];
};

enum { OPS_MARKS = 8 }; /* see `mark` */

/* ---- the table ---------------------------------------------------------------------------------
 */

struct ops {
    const char *name; /* "ref", "cpu", "cuda" */

    /* Fails with ERR_UNSUPPORTED when the machine can't run it (no GPU, no AVX2), saying why. */
    int (*open)(struct backend **out, const struct backend_options *options, struct err *err);
    void (*close)(struct backend *be); /* quiet on NULL */
    void (*caps)(struct backend *be, struct backend_caps *out);

    /* Memory. 64-byte aligned or better. alloc fails with ERR_NO_MEMORY naming the size. */
    int (*mem_alloc)(struct backend *be, struct devptr *out, size_t n_bytes, struct err *err);
    void (*mem_free)(struct backend *be, struct devptr p); /* quiet on addr 0 */

    /* Ranges: addresses first, memory for pieces of them when it is wanted; so memory can go from
     * one range to another while all addresses stay, also those in recordings. Sizes and places are
     * multiples of caps.granule_bytes, a piece lies in one range.
     * reserve takes addresses alone. back gives all of a piece memory, of unknown contents, where
     * there is none; it fails with ERR_NO_MEMORY, and then changed nothing. unback takes it away:
     * nothing that is enqueued, on the stream or the lane, may touch the piece (sync first). What
     * was taken away stays with the backend for the next back, of any range, which then can't fail
     * for want of memory and asks nobody for it. release gives a range back whole. Touching what
     * isn't backed is a fault. */
    int (*mem_reserve)(struct backend *be, struct devptr *out, size_t n_bytes, struct err *err);
    int (*mem_back)(struct backend *be, struct devptr p, size_t n_bytes, struct err *err);
    void (*mem_unback)(struct backend *be, struct devptr p, size_t n_bytes);
    void (*mem_release)(struct backend *be, struct devptr p); /* quiet on addr 0 */

    /* Host memory the device can copy from at full speed (pinned on cuda). These two may be called
     * by any thread, host_free also after close; neither looks at be. */
    int (*host_alloc)(struct backend *be, void **out, size_t n_bytes, struct err *err);
    void (*host_free)(struct backend *be, void *p);
    void (*upload)(struct backend *be, struct devptr dst, const void *src, size_t n_bytes);
    void (*download)(struct backend *be, void *dst, struct devptr src, size_t n_bytes);
    int (*sync)(struct backend *be, struct err *err); /* ERR_INTERNAL: the device failed */
    /* A place in the stream, behind all that was enqueued; wait returns when the device has come
     * there, and leaves running what was enqueued since. It is a sync of what lies before the mark:
     * inputs may go and outputs are there. Only the newest OPS_MARKS marks can be waited for. */
    uint64_t (*mark)(struct backend *be);
    int (*wait)(struct backend *be, uint64_t mark, struct err *err);

    /* The lane: copies beside the stream, in an order of their own, for memory that no call
     * enqueued so far reads or writes (adapters on their way in). lane_upload copies n_rows pieces
     * of n_bytes, piece i from src + i * stride to dst + i * stride; src stays as it is until it
     * has been copied (from memory that isn't of host_alloc it is slow, and copied when the call
     * returns). lane_mark is a place behind the lane's copies so far; lane_reached says whether the
     * lane has come there; what is enqueued on the stream behind lane_need runs when it has. Not
     * while recording. Where the memory is the host's, lane_upload copies at once. */
    void (*lane_upload)(struct backend *be, struct devptr dst, const void *src, size_t n_bytes,
                        size_t stride, int n_rows);
    uint64_t (*lane_mark)(struct backend *be);
    bool (*lane_reached)(struct backend *be, uint64_t mark);
    void (*lane_need)(struct backend *be, uint64_t mark);

    /* A base weight of one or more parts stacked along d_out (q, k, v). parts[i] is host memory
     * [d_out[i], d_in] of the given dtype; it must outlive the weight when caps.loads_in_place. */
    int (*weight_create)(struct backend *be, struct weight **out, const void *const *parts,
                         const int *d_out, int n_parts, int d_in, enum dtype dtype,
                         struct err *err);
    void (*weight_free)(struct backend *be, struct weight *w);

    /* y[i] = W[token[i]] (a weight of one part, [vocab, d]); times scale.
     * y [n_rows, d] activation; token i32 [n_rows], each in range (the engine checked). */
    void (*embed)(struct backend *be, struct devptr y, struct devptr token, const struct weight *w,
                  int n_rows, float scale);

    /* residual[i] += x[i] when x is given; then y[i] = residual[i] / rms(residual[i]) * (w +
     * w_offset) rms = sqrt(mean of squares + eps), sums in f32. y, x, residual [n_rows, d]
     * activation; w f32 [d]; x.addr may be 0; y may be x. w_offset is 1 for Gemma, else 0. */
    void (*add_rmsnorm)(struct backend *be, struct devptr y, struct devptr residual,
                        struct devptr x, struct devptr w, int n_rows, int d, float eps,
                        float w_offset);

    /* Tells of all linears that will be asked for with this step, in the order in which they will
     * be, so that a device can find their adapters at once and fetch them ahead. What it finds
     * holds until the next call, and is used once: each linear whose place is given follows once at
     * most. The adapters' entries must be there (lane_need before). Nobody has to call it. linears
     * and what they point to are read during the call; recordings remember them, so while
     * recording, and as long as there are recordings with a call in them, the same ones are told.
     */
    void (*lora_look_up)(struct backend *be, const struct lora_step *step,
                         const struct lora_linear *linears, int n_linears);

    /* y[i] = W x[i] + bias + sum over the row's segments of
     *        weight * scaling * B (A x[i])   for each part that the adapter touches.
     * y [n_rows, sum of d_out] activation, or f32 when y_f32; x [n_rows, d_in] activation;
     * bias f32 [sum of d_out] or addr 0; lora may be NULL. The sums are f32.
     * Source: Hu et al., LoRA, arXiv:2106.09685; Chen et al., Punica (SGMV), arXiv:2310.18547. */
    void (*linear)(struct backend *be, struct devptr y, struct devptr x, const struct weight *w,
                   struct devptr bias, int n_rows, bool y_f32, const struct lora_args *lora);

    /* y[i, j] = silu(gate) * up with gate and up the two halves of what `linear` would give: w has
     * two parts of one width d. scratch [n_rows, 2 d] activation may be written. y [n_rows, d].
     * Source: Shazeer, GLU variants, arXiv:2002.05202. */
    void (*linear_swiglu)(struct backend *be, struct devptr y, struct devptr scratch,
                          struct devptr x, const struct weight *w, struct devptr bias, int n_rows,
                          const struct lora_args *lora);

    /* The two halves of the adapter's product alone, for tests and measurements; `linear` may fuse
     * them. shrink: t[i, seg] = A x[i]; expand: y[i, part] += weight * scaling * B t[i, seg].
     * t is memory for [for each segment, for each part: n_rows x rank] f32, packed in that order;
     * a backend may keep the product elsewhere, so expand follows the shrink of the same lora_args.
     * d_in is a multiple of 8. */
    void (*sgmv_shrink)(struct backend *be, struct devptr t, struct devptr x, int n_rows, int d_in,
                        const struct lora_args *lora);
    void (*sgmv_expand)(struct backend *be, struct devptr y, struct devptr t, int n_rows,
                        int d_out_total, const struct lora_args *lora);

    /* Rotates q and k of qkv in place (rope; q/k norms before it if given) and writes k and v of
     * each row into the cache at batch.slot. qkv [n_rows, (n_heads + 2 n_kv_heads) * head_dim]
     * activation: q heads, then k heads, then v heads. rope NULL: no rotation (NoPE layers).
     * Source: Su et al., RoFormer, arXiv:2104.09864. */
    void (*rope_kv_write)(struct backend *be, struct devptr qkv, const struct kv_layer *kv,
                          const struct batch *batch, const struct attention_shape *shape,
                          const struct rope_shape *rope);

    /* Causal attention of each row over its sequence's cache, up to and including its own position.
     * y [n_rows, n_heads * head_dim] activation; q heads are read from qkv as above.
     * Sources: FlashAttention arXiv:2205.14135; PagedAttention arXiv:2309.06180. */
    void (*attention)(struct backend *be, struct devptr y, struct devptr qkv,
                      const struct kv_layer *kv, const struct batch *batch,
                      const struct attention_shape *shape);

    /* y[i, j] = act(x[i, j]) * x[i, d + j]; x [n_rows, 2 d], y [n_rows, d]. */
    void (*swiglu)(struct backend *be, struct devptr y, struct devptr x, int n_rows, int d);

    /* y[i] = x[rows[i]]; rows i32 [n] in device memory. */
    void (*gather_rows)(struct backend *be, struct devptr y, struct devptr x, struct devptr rows,
                        int n, int d);

    /* Draws one token a row. logits f32 [n, vocab], unchanged; params and history host [n] (history
     * may be NULL); results host [n], valid after sync. tokens i32 [n] in device memory, or addr 0:
     * the drawn tokens once more, for a next step that doesn't wait for the host. While recording,
     * history is NULL, and params and results are of host_alloc and read and written at replay. */
    void (*sample)(struct backend *be, struct sample_result *results, struct devptr tokens,
                   struct devptr logits, int n, int vocab, const struct sample_params *params,
                   const struct sample_history *history);

    /* Log-probability of given tokens (prompt log-probabilities): results as in sample, with token
     * taken from tokens[i] instead of drawn. tokens host [n], n_top host [n] (or NULL: 0). */
    void (*score)(struct backend *be, struct sample_result *results, struct devptr logits, int n,
                  int vocab, const int32_t *tokens, const int32_t *n_top);

    /* Recording: a step whose calls and shapes come again is enqueued once between record_begin and
     * record_end, which note instead of doing, and then done by replay, in stream order, as often
     * as wanted. What the entries were given by value (shapes, device addresses, addresses of host
     * memory) stays; what lies at those addresses is read at each replay. Between the two only
     * compute entries, upload and download, the latter two with memory of host_alloc.
     * record_begin returns false, and nothing changes, on a backend that can't (ref, cpu).
     * record_end fails with ERR_INTERNAL; *out is then NULL and the backend works as before. */
    bool (*record_begin)(struct backend *be);
    int (*record_end)(struct backend *be, struct recording **out, struct err *err);
    void (*replay)(struct backend *be, struct recording *recording);
    void (*recording_free)(struct backend *be, struct recording *recording); /* quiet on NULL */

    /* Copies whole KV blocks of one layer, in order: block dst[i] = block src[i] (copy on write).
     * src, dst host [n]. */
    void (*kv_copy_blocks)(struct backend *be, const struct kv_layer *kv,
                           const struct attention_shape *shape, const int32_t *src,
                           const int32_t *dst, int n);
};

/* The table of that name ("ref", "cpu", "cuda"), or NULL with ERR_UNSUPPORTED when the build has
 * none, or ERR_INVALID when the name is unknown. */
const struct ops *ops_find(const char *name, struct err *err);

/* Names of the backends in this build, NULL-terminated. */
const char *const *ops_names(void);

/* Philox4x32-10 (Salmon et al., SC'11), the sampler's generator, here because every backend and the
 * tests must agree on it. Returns 24 random bits scaled to [0, 1). */
float ops_uniform(uint64_t seed, uint64_t position);

#endif
