/* weight.cu: base weights on their way to the device, and the embedding.
 *
 * A weight streams from the mapped file through two pinned buffers: threads copy a piece of rows
 * into one while the device takes the other and packs it (linear.cuh draws the layout). Page
 * faults of the mapping are the slow part, hence several threads. */
#include "kernels/cuda/linear.cuh"

#include <cstring>
#include <thread>
#include <vector>

enum { COPY_THREADS = 8, STAGING_BYTES = 32 << 20 };

/* src: rows [row_begin, row_begin + n_rows) of the weight, row-major. A thread packs 8 elements. */
__global__ static void pack_kernel(uint16_t *dst, const uint16_t *src, int row_begin, int n_rows,
                                   int d_in, int pair_width, int n_k_tiles, int n_planes)
{
    int64_t n = (int64_t)n_rows * (d_in / 8);
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        int row = (int)(i / (d_in / 8)), k = (int)(i % (d_in / 8)) * 8;
        uint4 v = *reinterpret_cast<const uint4 *>(src + (int64_t)row * d_in + k);
        int to = packed_row(row_begin + row, pair_width);
        uint16_t *at = dst + packed_offset(to, k, n_k_tiles, n_planes, 0);
        if (n_planes == 1) {
            *reinterpret_cast<uint4 *>(at) = v;
            continue;
        }
        const __half *h = reinterpret_cast<const __half *>(&v);
        uint32_t hi[4], lo[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float f0 = __half2float(h[2 * j]), f1 = __half2float(h[2 * j + 1]);
            hi[j] = take_plane(f0, f1);
            lo[j] = take_plane(f0, f1);
        }
        *reinterpret_cast<uint4 *>(at) = make_uint4(hi[0], hi[1], hi[2], hi[3]);
        *reinterpret_cast<uint4 *>(at + TILE_BYTES / 2) = make_uint4(lo[0], lo[1], lo[2], lo[3]);
    }
}

static void copy_fast(char *dst, const char *src, size_t n_bytes)
{
    if (n_bytes < (1 << 20)) {
        memcpy(dst, src, n_bytes);
        return;
    }
    std::vector<std::thread> threads;
    size_t piece = (n_bytes / COPY_THREADS + 4095) & ~(size_t)4095;
    for (size_t at = piece; at < n_bytes; at += piece)
        threads.emplace_back(
            [=] { memcpy(dst + at, src + at, at + piece < n_bytes ? piece : n_bytes - at); });
    memcpy(dst, src, piece < n_bytes ? piece : n_bytes);
    for (std::thread &t : threads)
        t.join();
}

/* Rows of one part, in pieces. */
static cudaError_t stream_part(struct backend *be, struct weight *w, const char *src, int row,
                               int n_rows)
{
    size_t row_bytes = (size_t)w->d_in * dtype_bytes(w->dtype);
    int step = (int)(STAGING_BYTES / row_bytes);
    for (int done = 0; done < n_rows; done += step) {
        int n = n_rows - done < step ? n_rows - done : step;
        struct staging *s = &be->staging[be->n_staged++ & 1];
        cudaError_t rc = cudaEventSynchronize(s->free);
        if (rc != cudaSuccess)
            return rc;
        copy_fast(static_cast<char *>(s->host), src + (size_t)done * row_bytes,
                  (size_t)n * row_bytes);
        void *to = w->packed ? s->device
                             : static_cast<char *>(w->data) + (size_t)(row + done) * row_bytes;
        rc = copy_async(be, to, s->host, (size_t)n * row_bytes, cudaMemcpyHostToDevice);
        if (rc == cudaSuccess && w->packed) {
            pack_kernel<<<1024, 256, 0, be->stream>>>(
                static_cast<uint16_t *>(w->data), static_cast<uint16_t *>(s->device), row + done, n,
                w->d_in, w->pair_width, w->n_k_tiles, w->n_planes);
            rc = cudaGetLastError();
        }
        if (rc == cudaSuccess)
            rc = cudaEventRecord(s->free, be->stream);
        if (rc != cudaSuccess)
            return rc;
    }
    return cudaSuccess;
}

static cudaError_t staging_open(struct backend *be, size_t row_bytes)
{
    cudaError_t rc = cudaSuccess;
    size_t bytes = row_bytes > STAGING_BYTES ? row_bytes : (size_t)STAGING_BYTES;
    for (int i = 0; i < 2 && rc == cudaSuccess; i++) {
        struct staging *s = &be->staging[i];
        if (s->host != nullptr && s->bytes >= bytes)
            continue;
        if (s->host == nullptr)
            rc = cudaEventCreateWithFlags(&s->free, cudaEventDisableTiming);
        else
            rc = cudaEventSynchronize(s->free);
        cudaFreeHost(s->host);
        cudaFree(s->device);
        s->host = s->device = nullptr;
        s->bytes = bytes;
        if (rc == cudaSuccess)
            rc = cudaMallocHost(&s->host, bytes);
        if (rc == cudaSuccess)
            rc = cudaMalloc(&s->device, bytes);
    }
    return rc;
}

void staging_close(struct backend *be)
{
    for (struct staging &s : be->staging) {
        cudaFreeHost(s.host);
        cudaFree(s.device);
        if (s.free != nullptr)
            cudaEventDestroy(s.free);
        s = {};
    }
}

/* So many ranges of K that, where rows are few and a cluster of one, two or four thread blocks
 * shares a tile of outputs, most of a card's 132 multiprocessors are busy most of the time. A
 * larger cluster must be worth its hand-overs: three quarters of the multiprocessors draw as much
 * from memory as all of them (qkv of an 8B model, 96 tiles, us on an H200 at 1, 32, 64 and 128
 * rows: 15.3, 16.0, 18.4, 24.6 in two ranges, 15.0, 16.8, 21.0, 29.2 in four, 15.4, 18.3, 24.6,
 * 37.3 in eight; gate and up, 448 tiles: 58, 62, 74, 100 in two, 54, 57, 75, 107 in four). The
 * order of sums follows from it, for everybody: it depends on the shape alone, not on the card at
 * hand. */
static int ranges_of(int n_m_tiles, int n_k_tiles)
{
    static const int resident[] = {132, 66, 32}; /* clusters of 1, 2, 4 blocks */
    static const double gain[] = {1, 1.1, 1.4};  /* asked for, of the best so far */
    int best = 1;
    double best_share = 0;
    for (int i = 0; i < 3 && n_k_tiles >= 16 << i; i++) {
        int rounds = ceil_div(n_m_tiles, resident[i]);
        double share = (double)(n_m_tiles << i) / (rounds * 132);
        if (share > best_share * gain[i]) {
            best_share = share;
            best = 1 << i;
        }
    }
    return 2 * best;
}

int cuda_weight_create(struct backend *be, struct weight **out, const void *const *parts,
                       const int *d_out, int n_parts, int d_in, enum dtype dtype, struct err *err)
{
    struct weight *w = new weight{};
    for (int i = 0; i < n_parts; i++)
        w->d_out += d_out[i];
    w->d_in = d_in;
    w->n_parts = n_parts;
    w->dtype = dtype;
    w->packed = dtype != DTYPE_F32 && d_in % 8 == 0;
    size_t bytes = (size_t)w->d_out * d_in * dtype_bytes(dtype);
    if (w->packed) {
        if (n_parts == 2 && d_out[0] == d_out[1] && d_out[0] % 8 == 0)
            w->pair_width = d_out[0];
        w->n_m_tiles = ceil_div(w->d_out, TILE);
        w->n_k_tiles = ceil_div(d_in, TILE);
        w->n_planes = dtype == DTYPE_F16 ? 2 : 1;
        w->n_ranges = ranges_of(w->n_m_tiles, w->n_k_tiles);
        bytes = (size_t)w->n_m_tiles * w->n_k_tiles * w->n_planes * TILE_BYTES;
    }
    if (cudaMalloc(&w->data, bytes) != cudaSuccess) {
        cudaGetLastError();
        err_set(err, ERR_NO_MEMORY, "cuda: no %zu bytes for a weight [%d, %d]", bytes, w->d_out,
                d_in);
        delete w;
        return -1;
    }
    cudaError_t rc = staging_open(be, (size_t)d_in * dtype_bytes(dtype));
    if (rc == cudaSuccess && w->packed && (w->d_out % TILE != 0 || d_in % TILE != 0))
        rc = fill_async(be, w->data, 0, bytes);
    for (int p = 0, row = 0; p < n_parts && rc == cudaSuccess; row += d_out[p++])
        rc = stream_part(be, w, static_cast<const char *>(parts[p]), row, d_out[p]);
    if (rc != cudaSuccess) {
        cudaStreamSynchronize(be->stream);
        cudaFree(w->data);
        err_set(err, ERR_INTERNAL, "cuda: uploading a weight [%d, %d]: %s", w->d_out, d_in,
                cudaGetErrorString(rc));
        delete w;
        return -1;
    }
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

__global__ static void embed_kernel(bf16 *y, const int32_t *token, const void *w, int dtype,
                                    bool packed, int d, int n_k_tiles, int n_planes, float scale)
{
    pdl_trigger();
    pdl_wait();
    int row = blockIdx.x, id = token[row];
    for (int k = threadIdx.x; k < d; k += blockDim.x) {
        float v;
        if (!packed) {
            v = load_as_float(w, (int64_t)id * d + k, dtype);
        } else {
            v = load_as_float(w, packed_offset(id, k, n_k_tiles, n_planes, 0), DTYPE_BF16);
            if (n_planes == 2)
                v += load_as_float(w, packed_offset(id, k, n_k_tiles, n_planes, 1), DTYPE_BF16);
        }
        y[(int64_t)row * d + k] = __float2bfloat16_rn(v * scale);
    }
}

void cuda_embed(struct backend *be, struct devptr y, struct devptr token, const struct weight *w,
                int n_rows, float scale)
{
    if (n_rows == 0)
        return;
    BUG_IF(w->n_parts != 1);
    launch(be, "embed", embed_kernel, dim3((unsigned)n_rows), 256, 0, dev<bf16>(y),
           dev<int32_t>(token), static_cast<const void *>(w->data), (int)w->dtype, w->packed,
           w->d_in, w->n_k_tiles, w->n_planes, scale);
}
