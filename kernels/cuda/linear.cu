/* linear.cu: y = W x + bias + adapters, for 1 to max_rows rows with the same bits.
 *
 * Idea. Decode reads every weight once for a handful of rows, so it is bound by bytes: the weights
 * lie on the wide side of the tensor core's tile (m16n8k16: 16 outputs) and the rows on the narrow
 * one (8 rows). One kernel then serves 1 to 256 rows, and a row's sum runs in an order that depends
 * on d_in alone: a column of the tile never sees its neighbours.
 *
 * Order of a sum. K is cut into chunks of 32, the chunks into SLICES = 8 runs; warp s of the thread
 * block sums run s from its first chunk to its last, and the eight results are added in the order
 * of s. Then bias, then the adapters' deltas in segment order. Nothing else touches the order.
 *
 * Packed weights. A dot product doesn't mind in which order k runs, as long as W and x agree. So
 * lane (g = lane / 4, t = lane % 4) takes the eight consecutive k = 32 c + 8 t ... + 7 of its rows,
 * 16 bytes, and the two m16n8k16 steps of a chunk use elements {0,1 | 2,3} and {4,5 | 6,7} of them.
 * x is then read row-major, 16 bytes a lane, with no staging; W is packed once so that a warp reads
 * 512 consecutive bytes:
 *
 *   packed[m_tile][chunk][half][lane][8]     element (row = 16 m_tile + 8 half + g, k = 32 chunk +
 * 8 t + e)
 *
 * rows and chunks past the end are zero. f16 weights are split exactly into hi + lo bf16 in
 * registers (two matrix steps; decode stays bound by bytes). f32 weights take a plain path.
 *
 * Adapters. shrink computes t = A x for tiles of 8 rows of a segment with the same lanes and
 * slices; expand is fused into linear's last lines: each output adds its rank-long dot product B t,
 * so B is read once a row group and the delta costs no pass over y. Ranks are true ranks.
 *
 * Two numbers (8B shape, batch 64): 15.0 GB of weights at the card's read bandwidth, and 2 x 8.0e9
 * x 64 FLOP, a hundredth of what the tensor cores do in that time. */
#include "kernels/cuda/cuda.cuh"

enum { SLICES = 8, THREADS = SLICES * 32, CHUNK = 32, ROW_SEGS_MAX = 8 };

/* ---- packing
 * ------------------------------------------------------------------------------------- */

static __device__ __host__ inline int64_t packed_index(int row, int k, int n_chunks)
{
    int m_tile = row >> 4, half = (row >> 3) & 1, g = row & 7;
    int chunk = k >> 5, t = (k >> 3) & 3, e = k & 7;
    return ((((int64_t)m_tile * n_chunks + chunk) * 2 + half) * 32 + g * 4 + t) * 8 + e;
}

/* src holds rows [row_begin, row_begin + n_rows) of the weight, row-major, 16-bit elements. */
__global__ static void pack_kernel(uint16_t *dst, const uint16_t *src, int row_begin, int n_rows,
                                   int d_in, int n_chunks)
{
    int64_t n = (int64_t)n_rows * d_in;
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        int row = (int)(i / d_in), k = (int)(i % d_in);
        dst[packed_index(row_begin + row, k, n_chunks)] = src[i];
    }
}

int cuda_weight_create(struct backend *be, struct weight **out, const void *const *parts,
                       const int *d_out, int n_parts, int d_in, enum dtype dtype, struct err *err)
{
    int total = 0;
    for (int i = 0; i < n_parts; i++)
        total += d_out[i];
    bool packed = dtype != DTYPE_F32;
    int n_chunks = ceil_div(d_in, CHUNK);
    size_t bytes = packed ? (size_t)ceil_div(total, 16) * 16 * n_chunks * CHUNK * 2
                          : (size_t)total * d_in * 4;
    void *data = nullptr;
    if (cudaMalloc(&data, bytes) != cudaSuccess) {
        cudaGetLastError();
        return err_set(err, ERR_NO_MEMORY, "cuda: no %zu bytes for a weight [%d, %d]", bytes, total,
                       d_in);
    }
    size_t row_bytes = (size_t)d_in * dtype_bytes(dtype);
    /* Packed through a bounded staging buffer, so that loading needs no second copy of the model.
     */
    const size_t staging_bytes = (size_t)64 << 20;
    int rows_a_time = (int)(staging_bytes / row_bytes > 0 ? staging_bytes / row_bytes : 1);
    void *staging = nullptr;
    cudaError_t rc = cudaSuccess;
    if (packed)
        rc = cudaMemsetAsync(data, 0, bytes, be->stream);
    if (rc == cudaSuccess && packed)
        rc = cudaMallocAsync(&staging, (size_t)rows_a_time * row_bytes, be->stream);
    int row = 0;
    for (int p = 0; p < n_parts && rc == cudaSuccess; p++) {
        const char *src = static_cast<const char *>(parts[p]);
        if (!packed) {
            rc = cudaMemcpyAsync(static_cast<char *>(data) + row * row_bytes, src,
                                 d_out[p] * row_bytes, cudaMemcpyHostToDevice, be->stream);
            row += d_out[p];
            continue;
        }
        for (int done = 0; done < d_out[p] && rc == cudaSuccess; done += rows_a_time) {
            int n = d_out[p] - done < rows_a_time ? d_out[p] - done : rows_a_time;
            rc = cudaMemcpyAsync(staging, src + done * row_bytes, n * row_bytes,
                                 cudaMemcpyHostToDevice, be->stream);
            if (rc == cudaSuccess) {
                pack_kernel<<<1024, 256, 0, be->stream>>>(static_cast<uint16_t *>(data),
                                                          static_cast<uint16_t *>(staging), row, n,
                                                          d_in, n_chunks);
                rc = cudaGetLastError();
            }
            row += n;
        }
    }
    if (staging != nullptr)
        cudaFreeAsync(staging, be->stream);
    if (rc == cudaSuccess)
        rc = cudaStreamSynchronize(be->stream);
    if (rc != cudaSuccess) {
        cudaFree(data);
        return err_set(err, ERR_INTERNAL, "cuda: uploading a weight [%d, %d]: %s", total, d_in,
                       cudaGetErrorString(rc));
    }
    struct weight *w = new weight;
    w->data = data;
    w->d_out = total;
    w->d_in = d_in;
    w->dtype = dtype;
    *out = w;
    return 0;
}

void cuda_weight_free(struct backend *be, struct weight *w)
{
    (void)be;
    if (w == nullptr)
        return;
    cudaFree(w->data);
    delete w;
}

__global__ static void embed_kernel(bf16 *y, const int32_t *token, const void *w, int dtype, int d,
                                    int n_chunks, float scale)
{
    int row = blockIdx.x, id = token[row];
    for (int k = threadIdx.x; k < d; k += blockDim.x) {
        int64_t i = dtype == DTYPE_F32 ? (int64_t)id * d + k : packed_index(id, k, n_chunks);
        y[(int64_t)row * d + k] = __float2bfloat16_rn(load_as_float(w, i, dtype) * scale);
    }
}

void cuda_embed(struct backend *be, struct devptr y, struct devptr token, const struct weight *w,
                int n_rows, float scale)
{
    if (n_rows == 0)
        return;
    embed_kernel<<<n_rows, 256, 0, be->stream>>>(dev<bf16>(y), dev<int32_t>(token), w->data,
                                                 w->dtype, w->d_in, ceil_div(w->d_in, CHUNK),
                                                 scale);
    CUDA_LAUNCHED(be, "embed");
}

/* ---- adapters: which segments a row is in
 * -------------------------------------------------------- */

/* What the device needs of lora_args, by value. */
struct lora_view {
    const struct lora_seg *segs;
    int n_segs, n_parts;
    struct {
        const struct lora_entry *entries;
        int out_begin, d_out;
    } part[4];
    /* t of (segment, part): packed as ops.h says when offset is given (one a segment, of its first
     * part); else at t[row * stride + ranks of the row's earlier segments and parts]. */
    const int64_t *offset;
    int stride;
};

static struct lora_view view_of(const struct lora_args *lora)
{
    struct lora_view v = {};
    if (lora == nullptr)
        return v;
    BUG_IF(lora->n_parts > 4);
    v.segs = dev<const struct lora_seg>(lora->step->d_segs);
    v.n_segs = lora->step->n_segs;
    v.n_parts = lora->n_parts;
    for (int i = 0; i < lora->n_parts; i++) {
        v.part[i].entries = dev<const struct lora_entry>(lora->parts[i].d_entries);
        v.part[i].out_begin = lora->parts[i].out_begin;
        v.part[i].d_out = lora->parts[i].d_out;
    }
    return v;
}

/* The first segment that holds the row, or n_segs. Segments ascend by row_begin; those of an
 * ensemble cover the same rows. */
__device__ static int first_seg_of(const struct lora_view &v, int row)
{
    int low = 0, high = v.n_segs;
    while (low < high) {
        int mid = (low + high) / 2;
        if (v.segs[mid].row_begin + v.segs[mid].n_rows > row)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

/* Where t of (segment s, part p) begins for the row, and the step between neighbours in rank. */
__device__ static int64_t t_index(const struct lora_view &v, int s, int p, int row)
{
    int64_t at;
    if (v.offset != nullptr) {
        at = v.offset[s];
        for (int q = 0; q < p; q++)
            at += (int64_t)v.segs[s].n_rows * v.part[q].entries[v.segs[s].slot].rank;
        return at + (int64_t)(row - v.segs[s].row_begin) * v.part[p].entries[v.segs[s].slot].rank;
    }
    at = (int64_t)row * v.stride;
    for (int u = first_seg_of(v, row); u <= s; u++) {
        if (v.segs[u].row_begin + v.segs[u].n_rows <= row)
            continue;
        int n_before = u < s ? v.n_parts : p;
        for (int q = 0; q < n_before; q++)
            at += v.part[q].entries[v.segs[u].slot].rank;
    }
    return at;
}

/* ---- the matrix step
 * ------------------------------------------------------------------------------ */

__device__ static inline void mma_bf16(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static inline uint32_t pair(float lo, float hi)
{
    __nv_bfloat162 p = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<uint32_t *>(&p);
}

/* One chunk: a0, a1 are the lane's eight elements of rows g and g + 8; b those of x's row g. The
 * planes of a split weight are added one after the other. */
template <int PLANES>
__device__ static inline void chunk_mma(float c[4], const float (&w0)[8], const float (&w1)[8],
                                        const uint4 &b)
{
    float r0[8], r1[8];
    for (int e = 0; e < 8; e++) {
        r0[e] = w0[e];
        r1[e] = w1[e];
    }
#pragma unroll
    for (int plane = 0; plane < PLANES; plane++) {
        uint32_t h0[4], h1[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            h0[i] = pair(r0[2 * i], r0[2 * i + 1]);
            h1[i] = pair(r1[2 * i], r1[2 * i + 1]);
            if (plane + 1 < PLANES) {
                r0[2 * i] -= __uint_as_float(h0[i] << 16);
                r0[2 * i + 1] -= __uint_as_float(h0[i] & 0xffff0000u);
                r1[2 * i] -= __uint_as_float(h1[i] << 16);
                r1[2 * i + 1] -= __uint_as_float(h1[i] & 0xffff0000u);
            }
        }
        uint32_t a[4] = {h0[0], h1[0], h0[1], h1[1]};
        mma_bf16(c, a, b.x, b.y);
        uint32_t d[4] = {h0[2], h1[2], h0[3], h1[3]};
        mma_bf16(c, d, b.z, b.w);
    }
}

__device__ static inline void chunk_mma_bf16(float c[4], const uint4 &w0, const uint4 &w1,
                                             const uint4 &b)
{
    uint32_t a[4] = {w0.x, w1.x, w0.y, w1.y};
    mma_bf16(c, a, b.x, b.y);
    uint32_t d[4] = {w0.z, w1.z, w0.w, w1.w};
    mma_bf16(c, d, b.z, b.w);
}

__device__ static inline void halves_to_floats(float (&out)[8], const uint4 &v)
{
    const __half2 *h = reinterpret_cast<const __half2 *>(&v);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 f = __half22float2(h[i]);
        out[2 * i] = f.x;
        out[2 * i + 1] = f.y;
    }
}

/* The lane's eight elements of a row of x; zero past the row's end. ALIGNED: d_in is a multiple of
 * 8, so that a row begins on 16 bytes and a lane's eight elements are all inside or all outside. */
template <bool ALIGNED>
__device__ static inline uint4 load_x(const bf16 *x, bool live, int64_t row, int k, int d_in)
{
    uint4 v = make_uint4(0, 0, 0, 0);
    if (!live || k >= d_in)
        return v;
    const bf16 *p = x + row * d_in + k;
    if constexpr (ALIGNED) {
        return *reinterpret_cast<const uint4 *>(p);
    } else {
        uint16_t e[8];
        for (int i = 0; i < 8; i++)
            e[i] = k + i < d_in ? reinterpret_cast<const uint16_t *>(p)[i] : (uint16_t)0;
        v.x = e[0] | (uint32_t)e[1] << 16;
        v.y = e[2] | (uint32_t)e[3] << 16;
        v.z = e[4] | (uint32_t)e[5] << 16;
        v.w = e[6] | (uint32_t)e[7] << 16;
        return v;
    }
}

/* Adds the adapters' deltas of (row, out) in segment order. Threads of a warp ask for neighbouring
 * outputs of one row, so that B is read in whole lines. */
__device__ static float add_deltas(float y, const struct lora_view &v, const float *t, int row,
                                   int out)
{
    int p = 0;
    while (p + 1 < v.n_parts && out >= v.part[p + 1].out_begin)
        p++;
    if (out < v.part[p].out_begin || out >= v.part[p].out_begin + v.part[p].d_out)
        return y;
    for (int s = first_seg_of(v, row); s < v.n_segs && v.segs[s].row_begin <= row; s++) {
        const struct lora_entry e = v.part[p].entries[v.segs[s].slot];
        if (e.rank == 0 || v.segs[s].row_begin + v.segs[s].n_rows <= row)
            continue; /* not a target, or an empty segment */
        const float *tr = t + t_index(v, s, p, row);
        int64_t b_row = (int64_t)(out - v.part[p].out_begin) * e.rank;
        const void *b = reinterpret_cast<const void *>(e.b.addr);
        float delta = 0;
        int j = 0;
        if (e.dtype != DTYPE_F32 && e.rank % 8 == 0) {
            const uint4 *b16 = reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(b) +
                                                               b_row);
            for (; j < e.rank; j += 8) {
                uint4 raw = b16[j / 8];
                float f[8];
                if (e.dtype == DTYPE_F16) {
                    halves_to_floats(f, raw);
                } else {
                    const uint32_t word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        f[2 * i] = __uint_as_float(word[i] << 16);
                        f[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
                    }
                }
#pragma unroll
                for (int i = 0; i < 8; i++)
                    delta = fmaf(f[i], tr[j + i], delta);
            }
        }
        for (; j < e.rank; j++)
            delta = fmaf(load_as_float(b, b_row + j, e.dtype), tr[j], delta);
        y += v.segs[s].weight * e.scaling * delta;
    }
    return y;
}

/* ---- base product
 * --------------------------------------------------------------------------------- */

/* grid: (m tiles of 16 outputs, groups of 8 NT rows). */
template <int NT, int DTYPE, bool ALIGNED>
__global__ static void __launch_bounds__(THREADS)
    linear_kernel(void *y, bool y_f32, const bf16 *x, const uint4 *w, const float *bias, int n_rows,
                  int d_out, int d_in, struct lora_view lora, const float *t)
{
    int slice = threadIdx.x >> 5, lane = threadIdx.x & 31;
    int g = lane >> 2, tk = lane & 3;
    int m_tile = blockIdx.x, row0 = blockIdx.y * 8 * NT;
    int n_chunks = (d_in + CHUNK - 1) / CHUNK;
    int chunk = slice * n_chunks / SLICES, chunk_end = (slice + 1) * n_chunks / SLICES;
    const uint4 *wp = w + (int64_t)m_tile * n_chunks * 64 + lane;

    float acc[NT][4] = {};
    constexpr int AHEAD = 4; /* chunks in flight a warp: 4 KiB of weights */
    for (; chunk < chunk_end; chunk += AHEAD) {
        uint4 w0[AHEAD], w1[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (chunk + i < chunk_end) {
                w0[i] = __ldcs(wp + (int64_t)(chunk + i) * 64);
                w1[i] = __ldcs(wp + (int64_t)(chunk + i) * 64 + 32);
            }
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (chunk + i >= chunk_end)
                break;
            int k = (chunk + i) * CHUNK + tk * 8;
#pragma unroll
            for (int n = 0; n < NT; n++) {
                int row = row0 + n * 8 + g;
                uint4 b = load_x<ALIGNED>(x, row < n_rows, row, k, d_in);
                if (DTYPE == DTYPE_F16) {
                    float f0[8], f1[8];
                    halves_to_floats(f0, w0[i]);
                    halves_to_floats(f1, w1[i]);
                    chunk_mma<2>(acc[n], f0, f1, b);
                } else {
                    chunk_mma_bf16(acc[n], w0[i], w1[i], b);
                }
            }
        }
    }

    /* c0, c1: (out g, rows 2 tk, 2 tk + 1); c2, c3: out g + 8. */
    __shared__ float part[SLICES][8 * NT][17];
#pragma unroll
    for (int n = 0; n < NT; n++) {
        part[slice][n * 8 + tk * 2][g] = acc[n][0];
        part[slice][n * 8 + tk * 2 + 1][g] = acc[n][1];
        part[slice][n * 8 + tk * 2][g + 8] = acc[n][2];
        part[slice][n * 8 + tk * 2 + 1][g + 8] = acc[n][3];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 8 * NT * 16; i += THREADS) {
        int r = i / 16, o = i % 16, row = row0 + r, out = m_tile * 16 + o;
        if (row >= n_rows || out >= d_out)
            continue;
        float sum = part[0][r][o];
#pragma unroll
        for (int s = 1; s < SLICES; s++)
            sum += part[s][r][o];
        if (bias != nullptr)
            sum += bias[out];
        if (lora.n_segs > 0)
            sum = add_deltas(sum, lora, t, row, out);
        int64_t at = (int64_t)row * d_out + out;
        if (y_f32)
            static_cast<float *>(y)[at] = sum;
        else
            static_cast<bf16 *>(y)[at] = __float2bfloat16_rn(sum);
    }
}

/* f32 weights: a warp a (row, output); each lane strides over k, then a butterfly. */
__global__ static void linear_f32_kernel(void *y, bool y_f32, const bf16 *x, const float *w,
                                         const float *bias, int d_out, int d_in,
                                         struct lora_view lora, const float *t)
{
    int out = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x & 31;
    int row = blockIdx.y;
    if (out >= d_out)
        return;
    float sum = 0;
    for (int k = lane; k < d_in; k += 32)
        sum = fmaf(w[(int64_t)out * d_in + k], __bfloat162float(x[(int64_t)row * d_in + k]), sum);
    sum = warp_sum(sum);
    if (lane != 0)
        return;
    if (bias != nullptr)
        sum += bias[out];
    if (lora.n_segs > 0)
        sum = add_deltas(sum, lora, t, row, out);
    int64_t at = (int64_t)row * d_out + out;
    if (y_f32)
        static_cast<float *>(y)[at] = sum;
    else
        static_cast<bf16 *>(y)[at] = __float2bfloat16_rn(sum);
}

/* ---- shrink
 * --------------------------------------------------------------------------------------- */

/* grid: (tiles of 8 rows of a segment, parts, tiles of 16 ranks). Tiles of a segment begin at its
 * first row; which tile falls where changes no bits, since a row's column of the product is its
 * own. */
template <bool ALIGNED>
__global__ static void __launch_bounds__(THREADS)
    shrink_kernel(float *t, const bf16 *x, int d_in, struct lora_view v)
{
    __shared__ int found_seg, found_tile;
    int slice = threadIdx.x >> 5, lane = threadIdx.x & 31;
    if (slice == 0) {
        /* Which segment does tile blockIdx.x belong to? A warp-wide prefix sum over tile counts. */
        int before = 0;
        bool done = false;
        for (int s = 0; s < v.n_segs && !done; s += 32) {
            int mine = s + lane < v.n_segs ? (v.segs[s + lane].n_rows + 7) / 8 : 0, sum = mine;
            for (int o = 1; o < 32; o <<= 1) {
                int up = __shfl_up_sync(0xffffffffu, sum, o);
                if (lane >= o)
                    sum += up;
            }
            int begin = before + sum - mine, tile = (int)blockIdx.x;
            if (tile >= begin && tile < begin + mine) {
                found_seg = s + lane;
                found_tile = tile - begin;
            }
            before += __shfl_sync(0xffffffffu, sum, 31);
            done = before > tile;
        }
    }
    __syncthreads();
    int s = found_seg, p = blockIdx.y, rank0 = blockIdx.z * 16;
    const struct lora_seg seg = v.segs[s];
    const struct lora_entry e = v.part[p].entries[seg.slot];
    if (rank0 >= e.rank)
        return;
    int g = lane >> 2, tk = lane & 3;
    int row_in_seg = found_tile * 8 + g;
    bool live = row_in_seg < seg.n_rows;
    int64_t row = seg.row_begin + row_in_seg;
    const void *a = reinterpret_cast<const void *>(e.a.addr);
    int n_chunks = (d_in + CHUNK - 1) / CHUNK;
    int chunk_end = (slice + 1) * n_chunks / SLICES;
    float acc[4] = {};
    for (int chunk = slice * n_chunks / SLICES; chunk < chunk_end; chunk++) {
        int k = chunk * CHUNK + tk * 8;
        uint4 b = load_x<ALIGNED>(x, live, row, k, d_in);
        float f[2][8];
        uint4 raw[2] = {make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0)};
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = rank0 + g + 8 * h;
            if (ALIGNED && e.dtype != DTYPE_F32) {
                if (r < e.rank && k < d_in)
                    raw[h] = *reinterpret_cast<const uint4 *>(static_cast<const uint16_t *>(a) +
                                                              (int64_t)r * d_in + k);
                if (e.dtype == DTYPE_F16)
                    halves_to_floats(f[h], raw[h]);
            } else {
                for (int i = 0; i < 8; i++)
                    f[h][i] = r < e.rank && k + i < d_in
                                  ? load_as_float(a, (int64_t)r * d_in + k + i, e.dtype)
                                  : 0.0f;
            }
        }
        if (ALIGNED && e.dtype == DTYPE_BF16)
            chunk_mma_bf16(acc, raw[0], raw[1], b);
        else
            chunk_mma<3>(acc, f[0], f[1], b);
    }
    __shared__ float part[SLICES][8][17];
    part[slice][tk * 2][g] = acc[0];
    part[slice][tk * 2 + 1][g] = acc[1];
    part[slice][tk * 2][g + 8] = acc[2];
    part[slice][tk * 2 + 1][g + 8] = acc[3];
    __syncthreads();
    if (threadIdx.x < 128) {
        int r = threadIdx.x / 16, j = threadIdx.x % 16;
        if (found_tile * 8 + r < seg.n_rows && rank0 + j < e.rank) {
            float sum = part[0][r][j];
#pragma unroll
            for (int i = 1; i < SLICES; i++)
                sum += part[i][r][j];
            t[t_index(v, s, p, seg.row_begin + found_tile * 8 + r) + rank0 + j] = sum;
        }
    }
}

static void launch_shrink(struct backend *be, float *t, const bf16 *x, int d_in,
                          const struct lora_args *lora, const struct lora_view &v)
{
    int tiles = 0, rank = 0;
    for (int s = 0; s < lora->step->n_segs; s++) {
        tiles += ceil_div(lora->step->segs[s].n_rows, 8);
        for (int p = 0; p < lora->n_parts; p++) {
            int r = lora->parts[p].entries[lora->step->segs[s].slot].rank;
            rank = r > rank ? r : rank;
        }
    }
    if (tiles == 0 || rank == 0)
        return;
    dim3 grid(tiles, lora->n_parts, ceil_div(rank, 16));
    if (d_in % 8 == 0)
        shrink_kernel<true><<<grid, THREADS, 0, be->stream>>>(t, x, d_in, v);
    else
        shrink_kernel<false><<<grid, THREADS, 0, be->stream>>>(t, x, d_in, v);
    CUDA_LAUNCHED(be, "sgmv_shrink");
}

/* ---- entries of the table
 * ------------------------------------------------------------------------- */

template <int NT, int DTYPE>
static void launch_linear(struct backend *be, void *y, bool y_f32, const bf16 *x,
                          const struct weight *w, const float *bias, int n_rows,
                          const struct lora_view &v)
{
    dim3 grid(ceil_div(w->d_out, 16), ceil_div(n_rows, 8 * NT));
    const uint4 *data = static_cast<const uint4 *>(w->data);
    if (w->d_in % 8 == 0)
        linear_kernel<NT, DTYPE, true><<<grid, THREADS, 0, be->stream>>>(
            y, y_f32, x, data, bias, n_rows, w->d_out, w->d_in, v, be->lora_t);
    else
        linear_kernel<NT, DTYPE, false><<<grid, THREADS, 0, be->stream>>>(
            y, y_f32, x, data, bias, n_rows, w->d_out, w->d_in, v, be->lora_t);
}

template <int DTYPE>
static void pick_linear(struct backend *be, void *y, bool y_f32, const bf16 *x,
                        const struct weight *w, const float *bias, int n_rows,
                        const struct lora_view &v)
{
    if (n_rows <= 8)
        launch_linear<1, DTYPE>(be, y, y_f32, x, w, bias, n_rows, v);
    else if (n_rows <= 16)
        launch_linear<2, DTYPE>(be, y, y_f32, x, w, bias, n_rows, v);
    else if (n_rows <= 32)
        launch_linear<4, DTYPE>(be, y, y_f32, x, w, bias, n_rows, v);
    else
        launch_linear<8, DTYPE>(be, y, y_f32, x, w, bias, n_rows, v);
}

void cuda_linear(struct backend *be, struct devptr y, struct devptr x, const struct weight *w,
                 struct devptr bias, int n_rows, bool y_f32, const struct lora_args *lora)
{
    if (n_rows == 0)
        return;
    BUG_IF(n_rows > be->options.max_rows);
    struct lora_view v = view_of(lora);
    v.stride = be->options.max_rank;
    if (lora != nullptr)
        launch_shrink(be, be->lora_t, dev<bf16>(x), w->d_in, lora, v);
    void *out = reinterpret_cast<void *>(y.addr);
    const float *b = dev<float>(bias);
    switch (w->dtype) {
    case DTYPE_F32:
        linear_f32_kernel<<<dim3(ceil_div(w->d_out, 8), n_rows), 256, 0, be->stream>>>(
            out, y_f32, dev<bf16>(x), static_cast<const float *>(w->data), b, w->d_out, w->d_in, v,
            be->lora_t);
        break;
    case DTYPE_F16:
        pick_linear<DTYPE_F16>(be, out, y_f32, dev<bf16>(x), w, b, n_rows, v);
        break;
    case DTYPE_BF16:
        pick_linear<DTYPE_BF16>(be, out, y_f32, dev<bf16>(x), w, b, n_rows, v);
        break;
    }
    CUDA_LAUNCHED(be, "linear");
}

/* The packed offsets of ops.h, for the two halves alone: one thread, n_segs is small. */
__global__ static void offsets_kernel(int64_t *offset, struct lora_view v)
{
    int64_t at = 0;
    for (int s = 0; s < v.n_segs; s++) {
        offset[s] = at;
        for (int p = 0; p < v.n_parts; p++)
            at += (int64_t)v.segs[s].n_rows * v.part[p].entries[v.segs[s].slot].rank;
    }
}

static struct lora_view packed_view(struct backend *be, const struct lora_args *lora)
{
    struct lora_view v = view_of(lora);
    BUG_IF(v.n_segs > be->options.max_rows * ROW_SEGS_MAX);
    offsets_kernel<<<1, 1, 0, be->stream>>>(be->seg_offset, v);
    v.offset = be->seg_offset;
    return v;
}

void cuda_sgmv_shrink(struct backend *be, struct devptr t, struct devptr x, int n_rows, int d_in,
                      const struct lora_args *lora)
{
    if (n_rows == 0 || lora == nullptr || lora->step->n_segs == 0)
        return;
    launch_shrink(be, dev<float>(t), dev<bf16>(x), d_in, lora, packed_view(be, lora));
}

__global__ static void expand_kernel(bf16 *y, const float *t, int d_out, struct lora_view v)
{
    int out = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (out >= d_out)
        return;
    int64_t at = (int64_t)row * d_out + out;
    y[at] = __float2bfloat16_rn(add_deltas(__bfloat162float(y[at]), v, t, row, out));
}

void cuda_sgmv_expand(struct backend *be, struct devptr y, struct devptr t, int n_rows,
                      int d_out_total, const struct lora_args *lora)
{
    if (n_rows == 0 || lora == nullptr || lora->step->n_segs == 0)
        return;
    struct lora_view v = packed_view(be, lora);
    expand_kernel<<<dim3(ceil_div(d_out_total, 128), n_rows), 128, 0, be->stream>>>(
        dev<bf16>(y), dev<float>(t), d_out_total, v);
    CUDA_LAUNCHED(be, "sgmv_expand");
}
