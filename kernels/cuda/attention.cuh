/* attention.cuh: what the two attention kernels share, and why they agree to the last bit.
 *
 * A query row is one (token, query head). Heads of one KV head's group and the rows of one sequence
 * are packed, row = token * group + head in group, into the 16 rows of mma.sync m16n8k16 tiles (of
 * wgmma's m64 a warp has 16, in the same lanes), so that K and V are read once for the whole group.
 *
 *     keys     0        64       128      192      256                         position of the row
 *              | tile 0 | tile 1 | tile 2 | tile 3 | tile 4 |  ...             |
 *              |------------- piece 0 -------------|------- piece 1 ------- ...
 *
 * Keys are cut at fixed absolute positions: tiles of 64, pieces of 256. A piece starts fresh (m =
 * -inf, l = 0, acc = 0) and walks its tiles in order with online softmax; finished pieces are
 * merged in ascending order into a total that starts empty (merge_weights, merge_value).
 *   - decode (attention_decode.cu): pieces of one sequence go to different thread blocks; the last
 *     to arrive merges. Four warps share the work of a piece.
 *   - prefill (attention_prefill.cu): a warpgroup owns 64 query rows and does all pieces itself.
 *
 * The bits of an output row are a function of its q, its position and its keys:
 *   1. An element of a tensor core product depends on its row of A, its column of B and its own
 *      accumulator. Key j always sits in the same column (S) and the same k (P V) of the tile; S
 *      sums head_dim in ascending steps of 16, P V sums keys in ascending steps of 16. mma.sync
 *      (decode) and wgmma (prefill) add a step alike: seen on the H100 over chains of 16 steps
 *      with exponents up to 12 apart, and in every test that compares the two kernels.
 *   2. The maximum is exact in any order. Sums of p have one fixed tree: a lane's 4 columns of each
 *      16 keys, the four 16s (tile_sum), tiles in order, the 4 lanes that share a row (quad_sum).
 *   3. Everything else is elementwise, written with intrinsics so that the compiler contracts
 *      nothing differently in one kernel than in the other.
 *   4. A masked key has s = -inf, p = +0. A tile that is masked for a whole row changes nothing in
 *      it: m stays, alpha = ex2(m - m) = 1, l * 1 + 0, acc * 1 + 0 * v. A piece that is masked for
 *      a whole row merges with weights 1 and 0. So it is of no matter which tiles beyond its own a
 *      row is walked through (its neighbours' in the same 16), nor where a window's walk begins.
 *   5. V of keys past the sequence's end is zeros in shared memory, so that 0 * v is 0; their S is
 *      masked whatever it is.
 *
 * Sources: FlashAttention-2, arXiv:2307.08691; Flash-Decoding, crfm.stanford.edu/2023/10/12. */
#ifndef TRIBUTARY_KERNELS_CUDA_ATTENTION_CUH
#define TRIBUTARY_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/async.cuh"

#include <climits>

enum {
    ATT_TILE = 64,                                 /* keys */
    ATT_PIECE = 256,                               /* keys */
    ATT_TILES_PER_PIECE = ATT_PIECE / ATT_TILE,    /* 4 */
    ATT_BLOCKS_PER_TILE = ATT_TILE / BLOCK_TOKENS, /* 4 */
};

/* Scratch of the decode kernel. Items of a call are numbered; item i keeps its partial result in
 * slot i, and a unit (sequence, KV head, 16 query rows) counts its finished pieces at its first
 * item's number. */
struct attention_scratch {
    float *partial;    /* slots of slot_rows (head_dim + 4), as many as fit */
    size_t n_floats;   /* of partial */
    unsigned *arrived; /* [n_slots + 1], all zero between calls; the last is args' claimed */
    int n_slots;
};

struct attention_args {
    bf16 *y;           /* [n_rows, n_heads, head_dim] */
    const bf16 *qkv;   /* [n_rows, n_heads + 2 n_kv_heads, head_dim] */
    const bf16 *k, *v; /* [n_blocks, BLOCK_TOKENS, n_kv_heads, head_dim] */
    const int32_t *seq_indptr, *kv_len, *block_table;
    int n_seqs, max_blocks, n_heads, n_kv_heads, group, window;
    float to_log2; /* p = 2^(s * to_log2 - m): scale * log2 e, or log2 e after a soft cap */
    float cap;     /* s = cap * tanh(s * scale / cap); 0: none */
    float cap_in;  /* 2 log2 e * scale / cap */
    int few;       /* sequences of at most so many packed rows are decode's, others prefill's */
    float *partial;
    unsigned *arrived;
    unsigned *claimed; /* [1]: decode's items that thread blocks took beyond their first */
    int n_slots, slot_rows;
};

/* attention_decode.cu, attention_prefill.cu; head_dim is 64, 80, 96, 128 or 256. */
cudaError_t attention_decode_open(int max_seqs);
cudaError_t attention_prefill_open(int max_seqs);
void attention_decode(struct backend *be, const struct attention_args *a, int head_dim, int n_rows);
void attention_prefill(struct backend *be, const struct attention_args *a, int head_dim,
                       int n_tiles);
/* Query rows (packed) of one thread block of the prefill kernel. */
int attention_prefill_rows(int head_dim);

/* ---- arithmetic: both kernels, the same bits
 * ---------------------------------------------------------------------------- */

__device__ static inline float ex2(float x) /* ex2(-inf) = +0, ex2(0) = 1 */
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* cap * tanh(x), with tanh(x) = 1 - 2 / (1 + e^(2 x)) */
__device__ static inline float soft_cap(float s, float cap, float cap_in)
{
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(__fadd_rn(1.0f, ex2(__fmul_rn(s, cap_in)))));
    return __fmul_rn(cap, __fmaf_rn(-2.0f, r, 1.0f));
}

/* Moves the running maximum m (log2 domain) to include a tile whose largest s is tile_max. Returns
 * what p subtracts; *alpha multiplies what was summed before. */
__device__ static inline float tile_maximum(float *m, float *alpha, float tile_max, float to_log2)
{
    float top = fmaxf(*m, __fmul_rn(tile_max, to_log2));
    float base = top == -INFINITY ? 0.0f : top;
    *alpha = ex2(__fsub_rn(*m, base));
    *m = top;
    return base;
}

__device__ static inline float tile_p(float s, float to_log2, float base)
{
    return ex2(__fmaf_rn(s, to_log2, -base));
}

/* A lane's sum over its 4 columns of 16 keys; then over the tile's four 16s. */
__device__ static inline float sum_of_4(float a, float b, float c, float d)
{
    return __fadd_rn(__fadd_rn(a, b), __fadd_rn(c, d));
}

__device__ static inline float tile_sum(float l, float alpha, float g0, float g1, float g2,
                                        float g3)
{
    return __fmaf_rn(l, alpha, sum_of_4(g0, g1, g2, g3));
}

/* Over the 4 lanes that share a row: the same bits on each of them. */
__device__ static inline float quad_sum(float v)
{
    v = __fadd_rn(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return __fadd_rn(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

__device__ static inline float quad_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}

/* Merges a piece (m, l) into the total (*top, *sum): total = total * *a + piece * *b. */
__device__ static inline void merge_weights(float *top, float *sum, float *a, float *b, float m,
                                            float l)
{
    float both = fmaxf(*top, m);
    float base = both == -INFINITY ? 0.0f : both;
    *a = ex2(__fsub_rn(*top, base));
    *b = ex2(__fsub_rn(m, base));
    *top = both;
    *sum = __fmaf_rn(l, *b, __fmul_rn(*sum, *a));
}

__device__ static inline float merge_value(float total, float a, float piece, float b)
{
    return __fmaf_rn(piece, b, __fmul_rn(total, a));
}

/* The row's output: total / sum. A row always sees itself, so sum > 0. */
__device__ static inline float row_inverse(float sum)
{
    return __frcp_rn(sum);
}

__device__ static inline uint32_t pack_bf16(float low, float high)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t *>(&v);
}

/* ---- fragments
 * ------------------------------------------------------------------------------------------- */

/* c[16, 8] += a[16, 16] b[16, 8]. Lane = 4 g + t holds c[g, 2t..], c[g + 8, 2t..]. */
__device__ static inline void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static inline void load_matrices(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ static inline void load_matrices_transposed(uint32_t r[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* ---- tiles as the TMA unit writes them
 * ----------------------------------------------------------------------------------- */

/* A slot is a tile of K or V, as boxes of columns beside one another: [boxes][64 keys][pitch]. */
template <int D> struct tile_boxes {
    static constexpr int chunks = D % 64 == 0 ? 8 : D % 32 == 0 ? 4 : 2; /* of 16 bytes, a row */
    static constexpr int pitch = chunks * 16;
    static constexpr int boxes = D * 2 / pitch;
    static constexpr int box = ATT_TILE * pitch; /* bytes of a slot's box */
    static constexpr int slot = boxes * box;     /* a multiple of 1024 */
};

/* Chunk c of a box's row r lies at c ^ swizzle(r): what TMA does with rows of that many chunks, and
 * 8 rows' chunks c lie in different banks. */
template <int CHUNKS> __device__ static inline int swizzle(int r)
{
    return CHUNKS == 8 ? r & 7 : CHUNKS == 4 ? r >> 1 & 3 : r >> 2 & 1;
}

/* The cache as a matrix of tokens, a cache block's columns a box. How many tokens there are is not
 * told; no block number is past them. */
template <int D, int BOX_COLUMNS = tile_boxes<D>::pitch / (int)sizeof(bf16)>
static inline CUtensorMap map_cache(struct backend *be, const bf16 *side, int n_kv_heads)
{
    uint64_t width = (uint64_t)n_kv_heads * D, rows = (UINT64_C(1) << 38) / (width * sizeof(bf16));
    return map_boxes(be->linear->encode_tiled, side, rows < INT_MAX ? rows : INT_MAX, width,
                     BLOCK_TOKENS, BOX_COLUMNS);
}

/* ---- the batch on the device
 * -------------------------------------------------------------------------------- */

/* table[s] = sum of count(0 .. s - 1), table[n_seqs] the total, by all THREADS threads. Ends with a
 * barrier. */
template <int THREADS, typename Count>
__device__ static inline void prefix_sums(int *table, int n_seqs, Count count)
{
    __shared__ int of_warp[THREADS / 32];
    int each = (n_seqs + THREADS - 1) / THREADS, begin = (int)threadIdx.x * each, sum = 0;
    int end = begin + each < n_seqs ? begin + each : n_seqs;
    for (int s = begin; s < end; s++)
        sum += count(s);
    int lane = threadIdx.x & 31, warp = threadIdx.x / 32, upto = sum;
#pragma unroll
    for (int o = 1; o < 32; o <<= 1) {
        int below = __shfl_up_sync(0xffffffffu, upto, o);
        upto += lane >= o ? below : 0;
    }
    if (lane == 31)
        of_warp[warp] = upto;
    __syncthreads();
    int at = upto - sum;
    for (int w = 0; w < warp; w++)
        at += of_warp[w];
    for (int s = begin; s < end; s++) {
        table[s] = at;
        at += count(s);
    }
    if (threadIdx.x == THREADS - 1) {
        int total = 0;
        for (int w = 0; w < THREADS / 32; w++)
            total += of_warp[w];
        table[n_seqs] = total;
    }
    __syncthreads();
}

/* The sequence that item belongs to: the last s with table[s] <= item. */
__device__ static inline int prefix_find(const int *table, int n_seqs, int item)
{
    int low = 0, high = n_seqs;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (table[middle] <= item)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* The row at pos sees the keys with key <= pos and pos - key < reach. */
__device__ static inline int attention_reach(int window)
{
    return window > 0 ? window : INT_MAX / 2;
}

/* The element at which packed row r of a sequence begins in qkv, and in y. */
__device__ static inline int64_t q_offset(const struct attention_args &a, int head_dim, int row0,
                                          int kv_head, int r)
{
    int token = r / a.group, head = r - token * a.group;
    return ((int64_t)(row0 + token) * (a.n_heads + 2 * a.n_kv_heads) + kv_head * a.group + head) *
           head_dim;
}

__device__ static inline int64_t y_offset(const struct attention_args &a, int head_dim, int row0,
                                          int kv_head, int r)
{
    int token = r / a.group, head = r - token * a.group;
    return ((int64_t)(row0 + token) * a.n_heads + kv_head * a.group + head) * head_dim;
}

#endif
