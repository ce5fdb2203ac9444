/* lora.cu: the two halves of the adapters' product as kernels of their own. lora.cuh has the design
 * and the order of the sums; linear.cu computes both halves inside its own kernel where rows are
 * few, and calls lora_shrink where they are many.
 *
 * shrink. A thread block takes units (segment, part, 16 ranks, tile of rows) from a list that it
 * counts on the device, so that one launch shape serves any set of adapters. Its 8 warps sum 8
 * chains at a time (2,048 of K), and the block adds them slice by slice.
 *
 * expand. A thread block takes tiles of 16 outputs by 64 rows, a warp 8 rows of it; it asks L2 for
 * the next tile's B while it computes.
 *
 * Two numbers (64 rows, 64 adapters, 4096 -> 16 -> 4096): 8.4 MB of A, 8.4 MB of B, 5.4 us at
 * 3.1 TB/s; the products are 34 MFLOP. */
#include "kernels/cuda/lora.cuh"

enum {
    SHRINK_WARPS = 8, /* so small that the next kernel's blocks fit beside them and wait there */
    SHRINK_THREADS = SHRINK_WARPS * 32,
    SHRINK_SEGS = 256, /* in the table at a time */
    EXPAND_WARPS = 8,
    EXPAND_OUTS = 16,
    EXPAND_ROWS = 64,
};

struct lora_view lora_view_of(struct backend *be, const struct lora_args *lora)
{
    struct lora_view v = {};
    if (lora == nullptr)
        return v;
    BUG_IF(lora->n_parts > LORA_PARTS_MAX || lora->step->n_segs > LORA_SEGS_MAX);
    v.segs = dev<const struct lora_seg>(lora->step->d_segs);
    v.d_n_segs = dev<const int32_t>(lora->step->d_n_segs);
    v.n_segs = lora->step->n_segs;
    v.n_parts = lora->n_parts;
    for (int i = 0; i < lora->n_parts; i++) {
        v.part[i].entries = dev<const struct lora_entry>(lora->parts[i].d_entries);
        v.part[i].out_begin = lora->parts[i].out_begin;
        v.part[i].d_out = lora->parts[i].d_out;
    }
    v.t = be->linear->t;
    v.t_stride = be->linear->t_stride;
    return v;
}

struct lora_view lora_next_of(struct backend *be, const struct lora_args *lora)
{
    if (lora == nullptr || lora->next == nullptr)
        return {};
    struct lora_args next = {lora->step, lora->next, lora->n_next, nullptr, 0, 0};
    return lora_view_of(be, &next);
}

/* ---- shrink
 * --------------------------------------------------------------------------------------- */

template <int NT> struct shrink_shape {
    static constexpr int ROWS = 8 * NT, TILE = 16 * ROWS;
    static constexpr size_t SHARED =
        SHRINK_WARPS * TILE * sizeof(float) +
        SHRINK_SEGS *
            (LORA_PARTS_MAX * (sizeof(struct lora_cell) + sizeof(int)) + sizeof(struct lora_span));
};

template <int NT>
__global__ static void __launch_bounds__(SHRINK_THREADS)
    shrink_kernel(const bf16 *x, int d_in, const __grid_constant__ struct lora_view v)
{
    constexpr int ROWS = shrink_shape<NT>::ROWS, TILE = shrink_shape<NT>::TILE;
    constexpr int MINE = (TILE + SHRINK_THREADS - 1) / SHRINK_THREADS;
    extern __shared__ float4 shared[];
    float *sums = reinterpret_cast<float *>(shared); /* [SHRINK_WARPS, 16, ROWS] */
    struct lora_table table = lora_table_at(sums + SHRINK_WARPS * TILE, SHRINK_SEGS);
    int *unit_end = reinterpret_cast<int *>(table.spans + SHRINK_SEGS); /* [segments, parts] */
    int thread = (int)threadIdx.x, warp = thread >> 5, lane = thread & 31;
    int g = lane >> 2, t = lane & 3;
    pdl_trigger();
    int n_segs = lora_n_segs(v);
    for (int first = 0; first < n_segs; first += SHRINK_SEGS) {
        int n = n_segs - first < SHRINK_SEGS ? n_segs - first : SHRINK_SEGS;
        lora_table_fill(table, v, first, n, thread, SHRINK_THREADS);
        __syncthreads();
        for (int i = thread; i < n * v.n_parts; i += SHRINK_THREADS) {
            struct lora_span span = table.spans[i / v.n_parts];
            unit_end[i] = (span.row_end - span.row_begin + ROWS - 1) / ROWS *
                          ((table.cells[i].rank + 15) / 16);
        }
        lora_scan(unit_end, n * v.n_parts, thread, SHRINK_THREADS, 0);
        if (first == 0)
            pdl_wait();
        int n_units = unit_end[n * v.n_parts - 1];
        for (int unit = (int)blockIdx.x; unit < n_units; unit += (int)gridDim.x) {
            int i = lora_find(unit_end, n * v.n_parts, unit);
            int rest = unit - (i > 0 ? unit_end[i - 1] : 0);
            const struct lora_cell cell = table.cells[i];
            const struct lora_span span = table.spans[i / v.n_parts];
            int n_tiles = (span.row_end - span.row_begin + ROWS - 1) / ROWS;
            int row = span.row_begin + rest % n_tiles * ROWS, rank0 = rest / n_tiles * 16;
            float total[MINE] = {};
            for (int k0 = 0; k0 < d_in; k0 += SHRINK_WARPS * LORA_CHAIN) {
                int begin = k0 + warp * LORA_CHAIN;
                int end = begin + LORA_CHAIN < d_in ? begin + LORA_CHAIN : d_in;
                float c[NT][4];
                lora_chain<NT>(c, cell, rank0, row, span.row_end, x, d_in, begin, end, lane);
                float *mine = sums + warp * TILE;
                __syncthreads(); /* the last round's sums have been read */
#pragma unroll
                for (int j = 0; j < NT; j++) {
                    *reinterpret_cast<float2 *>(mine + g * ROWS + 8 * j +
                                                2 * t) = make_float2(c[j][0], c[j][1]);
                    *reinterpret_cast<float2 *>(mine + (g + 8) * ROWS + 8 * j +
                                                2 * t) = make_float2(c[j][2], c[j][3]);
                }
                __syncthreads();
#pragma unroll
                for (int m = 0; m < MINE; m++) {
                    int at = thread + m * SHRINK_THREADS;
                    if (at >= TILE)
                        break;
                    const float *p = sums + at % 16 * ROWS + at / 16;
#pragma unroll
                    for (int s = 0; s < SHRINK_WARPS / 4; s++) {
                        if (k0 + s * LORA_SLICE >= d_in)
                            break;
                        const float *q = p + 4 * s * TILE;
                        float slice = ((q[0] + q[TILE]) + q[2 * TILE]) + q[3 * TILE];
                        total[m] = k0 + s == 0 ? slice : total[m] + slice;
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < MINE; m++) {
                int at = thread + m * SHRINK_THREADS, rank = rank0 + at % 16, r = row + at / 16;
                if (at < TILE && rank < lora_padded(cell.rank) && r < span.row_end)
                    v.t[(int64_t)r * v.t_stride + cell.t_at + rank] = __float2bfloat16_rn(
                        cell.scale * total[m]);
            }
        }
        __syncthreads();
    }
    if (n_segs == 0)
        pdl_wait();
}

template <int NT>
static void launch_shrink(struct backend *be, const struct lora_view &v, const bf16 *x, int d_in)
{
    launch(be, "sgmv_shrink", shrink_kernel<NT>, dim3(2 * (unsigned)be->n_multiprocessors),
           SHRINK_THREADS, shrink_shape<NT>::SHARED, x, d_in, v);
}

void lora_shrink(struct backend *be, const struct lora_view &v, const bf16 *x, int n_rows, int d_in)
{
    BUG_IF(d_in % 8 != 0);
    if (n_rows <= 256)
        launch_shrink<1>(be, v, x, d_in);
    else
        launch_shrink<2>(be, v, x, d_in);
}

int lora_open(struct err *err)
{
    cudaError_t rc = cudaFuncSetAttribute(shrink_kernel<1>,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          (int)shrink_shape<1>::SHARED);
    if (rc == cudaSuccess)
        rc = cudaFuncSetAttribute(shrink_kernel<2>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)shrink_shape<2>::SHARED);
    return rc == cudaSuccess ? 0
                             : err_set(err, ERR_INTERNAL, "cuda: shared memory of sgmv_shrink: %s",
                                       cudaGetErrorString(rc));
}

/* ---- the two halves alone
 * ------------------------------------------------------------------------- */

/* t' stays in the backend's own memory. */
void cuda_sgmv_shrink(struct backend *be, struct devptr t, struct devptr x, int n_rows, int d_in,
                      const struct lora_args *lora)
{
    (void)t;
    if (n_rows > 0 && lora != nullptr)
        lora_shrink(be, lora_view_of(be, lora), dev<bf16>(x), n_rows, d_in);
}

/* grid: (blocks that take tiles of outputs in turn, tiles of rows) */
__global__ static void __launch_bounds__(EXPAND_WARPS * 32, 2)
    expand_kernel(bf16 *y, int n_rows, int d_out, const __grid_constant__ struct lora_view v)
{
    extern __shared__ float4 shared[];
    struct lora_table table = lora_table_at(shared, EXPAND_ROWS);
    int thread = (int)threadIdx.x, lane = thread & 31, g = lane >> 2, t = lane & 3;
    int rows_begin = (int)blockIdx.y * EXPAND_ROWS, row0 = rows_begin + thread / 32 * 8;
    int row = row0 + 2 * t, step = (int)gridDim.x * EXPAND_OUTS;
    pdl_trigger();
    int n_segs = lora_n_segs(v);
    bool waited = false;
    for (int first = lora_first_seg(v, n_segs, rows_begin); first < n_segs; first += EXPAND_ROWS) {
        if (lora_seg_at(v, first).row_begin >= rows_begin + EXPAND_ROWS)
            break; /* the whole block agrees */
        int n = n_segs - first < EXPAND_ROWS ? n_segs - first : EXPAND_ROWS;
        int begin = (int)blockIdx.x * EXPAND_OUTS;
        if (waited)
            __syncthreads(); /* the last table has been read */
        lora_table_fill(table, v, first, n, thread, EXPAND_WARPS * 32);
        __syncthreads();
        lora_prefetch_b(table, v, begin, begin + EXPAND_OUTS, thread, EXPAND_WARPS * 32);
        lora_prefetch_b(table, v, begin + step, begin + step + EXPAND_OUTS, thread,
                        EXPAND_WARPS * 32);
        lora_table_look(table, v.n_parts, lane);
        if (!waited)
            pdl_wait();
        waited = true;
        for (; begin < d_out; begin += step) {
            lora_prefetch_b(table, v, begin + 2 * step, begin + 2 * step + EXPAND_OUTS, thread,
                            EXPAND_WARPS * 32);
            if (row0 >= n_rows)
                continue;
            int o = begin + g, out[2] = {o < d_out ? o : -1, o + 8 < d_out ? o + 8 : -1};
            float c[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                c[i] = row + (i & 1) < n_rows && out[i >> 1] >= 0
                           ? __bfloat162float(y[(int64_t)(row + (i & 1)) * d_out + out[i >> 1]])
                           : 0;
            float d[2][4];
            const int rows[2] = {row0, -1};
            lora_delta(d, rows, table, v, out, lane,
                       [&](const struct lora_cell &cell, int my_row, int r) {
                           return __ldcg(reinterpret_cast<const uint2 *>(
                               v.t + (int64_t)my_row * v.t_stride + cell.t_at + r));
                       });
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (row + (i & 1) < n_rows && out[i >> 1] >= 0)
                    y[(int64_t)(row + (i & 1)) * d_out + out[i >> 1]] = __float2bfloat16_rn(
                        c[i] + d[0][i]);
        }
    }
    if (!waited)
        pdl_wait();
}

void cuda_sgmv_expand(struct backend *be, struct devptr y, struct devptr t, int n_rows,
                      int d_out_total, const struct lora_args *lora)
{
    (void)t;
    if (n_rows == 0 || lora == nullptr)
        return;
    launch(
        be, "sgmv_expand", expand_kernel,
        dim3((unsigned)ceil_div(d_out_total, EXPAND_OUTS), (unsigned)ceil_div(n_rows, EXPAND_ROWS)),
        EXPAND_WARPS * 32, lora_table_bytes(EXPAND_ROWS), dev<bf16>(y), n_rows, d_out_total,
        lora_view_of(be, lora));
}
