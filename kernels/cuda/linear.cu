/* linear.cu: y = W x + bias + adapters, for 1 to max_rows rows with the same bits.
 *
 * Idea. The weight lies on the wide side of the matrix instruction (wgmma m64nNk16: 64 outputs by N
 * rows), the rows on the narrow one. A row is a column of the product: it never sees its
 * neighbours, and the instruction adds up a column the same way whatever N is. So three kernels
 * serve all row counts with one order of summation:
 *
 *   K is cut into S = 2, 4 or 8 ranges, S fixed by the weight's shape (weight.cu). A range is one
 *   chain of wgmma steps in ascending k, begun from zero. The ranges are added to +0 in order, then
 *   the bias, then the adapters' delta (lora.cuh).
 *
 * narrow (up to 128 rows: decode). Bound by bytes: 15.0 GB of weights for an 8B step, 4.84 ms at
 * 3.1 TB/s; and by L2, since x passes once for every tile of outputs: as many bytes as the weights
 * at 64 rows. A cluster of thread blocks takes a tile of 64 outputs; each of its 2 * cluster
 * warpgroups sums one range. Two producer warps keep a ring of weight and x tiles full; they ask
 * for the first weights before the kernel before this one has ended (pdl). At a tile's end the
 * ranges meet in shared memory: every warpgroup finishes its share of the rows.
 *
 *     warpgroup 0   k k k k k --+-- partials (dsmem) --+-- rows 0-7, 16-23, ...: add, finish
 *     warpgroup 1   k k k k k --+                      +-- rows 8-15, 24-31, ...: add, finish
 *
 * Adapters in narrow are the business of four more warps, so that the weights stream on meanwhile:
 *
 *     the adapters' warps     t = A x, all blocks together | the delta of each tile, a tile ahead
 *     the two warpgroups      first tile of W x ............ + delta | second tile ... + delta
 *
 * Where the step's adapters lie has been looked up for all linears together (lora_look_up.cu), and
 * the first A is on its way before the kernel before has ended. All chains of t (lora.cuh) are
 * dealt out evenly to these warps of the whole grid; each unit of 16 ranks by 8 rows has a block
 * that adds up its chains to t'; and each block takes t' of its rows to shared memory (or adds up
 * their chains itself, where that is little: sums_here). What blocks hand on so are words that bear
 * the launch's tag beside the data (put_word), so that who waits for one reads it until it is
 * there: two trips through L2, and no fence. Two warps bring B in bulk, some segments at a time,
 * with notes where each lies. The deltas B t' of a tile lie in shared memory before its own sums
 * are ready, but for the first tile's; so with adapters a tile is finished when the next one has
 * been summed. All blocks of the grid are resident together (the grid is no larger), so every wait
 * ends. A trip takes as long as what is under way to a multiprocessor is deep (Little: 64 KiB at 23
 * GB/s are 2.7 us), which is why the rings hold back. Adapters cost no launch in a linear, and a
 * step without any reads one copy of what was (not) found.
 *
 * middle (33 to 128 rows, weights of many outputs: gate and up, the head). x passes once for 128 or
 * 256 outputs, each block or two have a run of ranges and outputs, and no sums are handed on but at
 * the ends of runs. Under many adapters it is narrow that computes, in the same launch.
 * linear_middle.cuh has the rest.
 *
 * wide (more rows: prefill). Bound by arithmetic, and by what L2 can deliver: a thread block sums
 * 128 outputs by up to 192 rows, each of two warpgroups 64 outputs; two thread blocks with the same
 * rows and neighbouring outputs form a cluster, each fetches half of x for both. Ranges are summed
 * one after the other into a second set of registers. t' comes from lora_shrink; its expansion is a
 * last, short range, whose operands spare warps bring meanwhile. linear_wide.cuh has the rest.
 *
 * Apart. Where adapters are heavy (lora_is_heavy) they cost more inside than beside the product:
 * what their warps do for a segment takes a multiprocessor 500 cycles and more, ranks above 64
 * leave B's ring a slot or none, and one large rank widens t' for all. There shrink and expand
 * (lora.cu, lora_expand.cu) make the deltas before, in f32, [row, output], and the adapters' warps
 * of narrow and middle, or wide's summing threads, only add them: bytes at the rate of bulk copies,
 * which ranks may mix as they like. Two launches more a linear, 25 us of an 8B layer; so both ways
 * are there, with the same bits. In large steps the first rows go so, if they have adapters of
 * their own, as the rows of decoding have that come before a prompt's (rows_apart). Four products
 * of an 8B layer, us on an H200, fused and apart; and what narrow took in halves for 256 rows:
 *
 *     rows, adapters       32       64       128         256 in halves   256
 *     16 each         148 182  205 226   331 338        698             565
 *     64 each         279 267  430 389   865 650      1,732           1,199
 *     8 to 128        268 260  456 394 1,635 645      3,271           1,136
 *     16, one of 256  359 227  605 288 2,728 431
 *
 * (Looking the segments up from what the step found, instead of again, made the two kernels 2 %
 * slower: 15 KB a block for what is mostly not its own.) With the code for both ways in one kernel
 * the base product took 2 to 8 % longer; so each kernel has a twin.
 *
 * Nothing here is chosen by a library or by a clock.
 *
 * The ladder (four products of an 8B layer, us, one H100; bound 141; bench_cuda --only layer):
 *
 *                                           8 rows   64 rows   64 rows, one r16   64 rows, 64 r16
 *   partials by fences, one m tile a block     160       187                345               604
 *   balanced clusters                          164       187                255               601
 *   partials by st.async, no fences            146       164                230               616
 *   adapters fetched ahead, no spills          146       161                214               367
 *     the same on another card                 146       172                229               384
 *   warps of their own for the adapters        147       178                185               352
 *   on an H200:                                108       151                161               317
 *     the end of a tile without divisions      106       144                152
 *     adapters looked up once a step                                                          331
 *     B by groups, gate and up by halves                                                      245
 *     notes of where B lies                                                                   225
 *     missing words asked for all at once      108       145                150               221
 *     qkv in two ranges; gate and up by middle 107       130                135               220
 *     less code, fewer divisions               108       131                135               206
 *
 * (128 rows: 207 and, under one adapter, 219 before the last step but one; 181 and 191 now. cuBLAS
 * on the same card, without adapters: 125 at 64 rows, 138 at 128.)
 *
 * (Cards differ by a tenth, and days.) What was learned from traces of the last ones: a warp is
 * alone on its quarter of the multiprocessor, so a chain of a hundred instructions takes 500 cycles
 * whatever the memory does, and the deltas of a tile took twice as long as its weights. Code that
 * doesn't fit the instruction cache costs even those who run little of it, and the kernels around
 * them: in a step each kernel finds the cache full of the others' code, which no bench of one
 * kernel shows (attention took 4 us longer after a linear with adapters). A linear with one adapter
 * takes longer in a step than in a row of linears, too: o's blocks begin when attention's end, and
 * a chain of t then has found (3 us), A's place (1 to 3, mostly code) and x (3) to wait for.
 *
 * Tried and dropped: two tiles of outputs to a range of K, so that x passes half as often (each
 * product alone 4 to 25 % faster at 64 rows, but not in a row: clusters of eight wait for one
 * another to start). Middle for o, qkv and down as well, with several blocks finishing rows of the
 * same outputs, through L2: what they hand one another at the end takes 4 us (64 rows: 137 for
 * 130). Middle at 128 rows in halves of 64, weights shared by two blocks: as many bytes from L2 as
 * narrow (gate and up 94 us, narrow 107, middle 70). Its deltas under many adapters: some blocks
 * have two groups of outputs to finish, some one (220 for 64 adapters where narrow has 221 and base
 * cost 15 more; 128 adapters of rank 64 1,616 for 926). A ring of B for each of the adapters'
 * warps, filled by its own lanes, each warp with rows of its own, and t by slices. Skipping the
 * steps of a unit that has no row of a segment: the branches cost more than the zeros. One
 * adapter's t by every cluster for itself, out of the x of its first tile (no trip through L2; but
 * x comes in the order of the ring, to its last piece at the tile's end, and o and down have one
 * tile a cluster: 198 for 152 at 64 rows). Words asked for in turns, half a trip apart (152 for
 * 150). Loads before the blocks of a cluster have met (2 % slower for all). Fewer stages on their
 * way at 32 rows (base 3 % slower; at 8 it costs 0.5 %, and one adapter gains 1). At 64 rows and
 * more, saying that the next kernel may start only when the adapters' warps have gone, so that a
 * norm finds room beside the others (nothing); 112 registers a thread at 64 rows and a norm of 256
 * threads beside them (2 % slower). Middle's ring a stage shorter at 128 rows and four buffers of
 * deltas instead of two (one adapter 1 % slower, base 2).
 *
 * What was left at 64 rows and 64 adapters (H200, qkv, us after the kernel before has ended):
 * chains 16, sums 4, t' to shared memory 3, then the deltas; so the chains, whose loads of A are 32
 * KiB in flight a multiprocessor, are next, by bulk copies into the room of t' and the deltas. At
 * 64 rows and one adapter: chains 5, sums 9.5, t' 14 in qkv, whose first tile then waits for 3.6
 * (and o's only tile for 1 to 3); in gate_up and down nobody waits.
 *
 * The kernels are in linear_narrow.cuh, linear_middle.cuh and linear_wide.cuh; this file launches
 * them, and has the plain path for weights that aren't packed. */
#include "kernels/cuda/linear_middle.cuh"
#include "kernels/cuda/linear_wide.cuh"

/* ---- the plain path: f32 weights, rows that don't begin on 16 bytes
 * ---------------------------------------- */

/* t' of one row's segments; grid: (rows, parts); warps take ranks in turn. */
__global__ static void plain_shrink_kernel(const bf16 *x, int d_in,
                                           const __grid_constant__ struct lora_view v)
{
    int row = (int)blockIdx.x, p = (int)blockIdx.y;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x & 31;
    __shared__ struct lora_cell cells[LORA_PARTS_MAX];
    __shared__ struct lora_span spans[1];
    struct lora_table table = {spans, cells};
    pdl_trigger();
    pdl_wait();
    int n_segs = lora_n_segs(v);
    for (int s = lora_first_seg(v, n_segs, row); s < n_segs; s++) {
        struct lora_seg seg = lora_seg_at(v, s);
        if (seg.row_begin > row)
            break;
        if (seg.row_begin + seg.n_rows <= row)
            continue;
        __syncthreads();
        lora_table_fill(table, v, s, 1, (int)threadIdx.x, (int)blockDim.x);
        __syncthreads();
        const struct lora_cell e = cells[p];
        for (int r = warp; r < e.rank; r += (int)blockDim.x / 32) {
            float sum = 0;
            for (int k = lane; k < d_in; k += 32)
                sum = fmaf(load_as_float(reinterpret_cast<const void *>(e.a), (int64_t)r * d_in + k,
                                         e.dtype),
                           __bfloat162float(x[(int64_t)row * d_in + k]), sum);
            sum = warp_sum(sum);
            if (lane == 0)
                v.t[(int64_t)row * v.t_stride + e.t_at + r] = __float2bfloat16_rn(e.scale * sum);
        }
    }
}

/* A warp a (row, output). */
__global__ static void plain_kernel(const __grid_constant__ struct linear_args a, int dtype)
{
    int out = (int)blockIdx.x * ((int)blockDim.x / 32) + (int)threadIdx.x / 32;
    int lane = (int)threadIdx.x & 31, row = (int)blockIdx.y;
    pdl_trigger();
    pdl_wait();
    if (out >= a.d_out)
        return;
    float sum = 0;
    for (int k = lane; k < a.d_in; k += 32)
        sum = fmaf(load_as_float(a.w, (int64_t)out * a.d_in + k, dtype),
                   __bfloat162float(a.x[(int64_t)row * a.d_in + k]), sum);
    sum = 0.0f + warp_sum(sum);
    if (lane != 0)
        return;
    if (a.bias != nullptr)
        sum += a.bias[out];
    float d = 0;
    const struct lora_view &v = a.lora;
    int n_segs = lora_n_segs(v);
    for (int s = lora_first_seg(v, n_segs, row); s < n_segs; s++) {
        struct lora_seg seg = lora_seg_at(v, s);
        if (seg.row_begin > row)
            break;
        for (int p = 0; p < v.n_parts; p++) {
            int o = out - v.part[p].out_begin;
            if (seg.row_begin + seg.n_rows <= row || o < 0 || o >= v.part[p].d_out)
                continue;
            struct lora_entry e = lora_entry_at(v, p, seg.slot);
            const void *b = reinterpret_cast<const void *>(e.b.addr);
            const bf16 *t = v.t + (int64_t)row * v.t_stride + lora_t_at(v, s, seg, p);
            float delta = 0;
            for (int r = 0; r < e.rank; r++)
                delta = fmaf(load_as_float(b, (int64_t)o * e.rank + r, e.dtype),
                             __bfloat162float(t[r]), delta);
            d += delta;
        }
    }
    sum += d;
    int64_t at = (int64_t)row * a.d_out + out;
    if (a.store == STORE_F32)
        static_cast<float *>(a.y)[at] = sum;
    else
        static_cast<bf16 *>(a.y)[at] = __float2bfloat16_rn(sum);
}

/* ---- launches
 * ---------------------------------------------------------------------------------------- */

static cudaLaunchConfig_t cluster_config(struct backend *be, int cluster, bool dependent,
                                         cudaLaunchAttribute (&attributes)[3])
{
    cudaLaunchConfig_t config = {};
    config.stream = be->stream;
    cudaLaunchAttribute *a = &attributes[config.numAttrs++];
    *a = {};
    a->id = cudaLaunchAttributeClusterDimension; /* of one too: st.async asks for it */
    a->val.clusterDim.x = (unsigned)cluster;
    a->val.clusterDim.y = a->val.clusterDim.z = 1;
    add_attributes(config, attributes, dependent);
    return config;
}

template <int N>
static cudaLaunchConfig_t narrow_config(struct backend *be, int n_ranges, bool dependent,
                                        cudaLaunchAttribute (&attributes)[3])
{
    cudaLaunchConfig_t config = cluster_config(be, narrow<N>::cluster(n_ranges), dependent,
                                               attributes);
    config.blockDim = dim3(NARROW_THREADS);
    config.dynamicSmemBytes = narrow<N>::shared_bytes(n_ranges);
    return config;
}

/* A kernel and its twin that takes the deltas from memory. They take the same of a multiprocessor,
 * so one of them says how many are resident. */
template <class Kernel> static cudaError_t allow_memory(Kernel *kernel, Kernel *apart, size_t bytes)
{
    cudaError_t rc = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          (int)bytes);
    return rc != cudaSuccess ? rc
                             : cudaFuncSetAttribute(
                                   apart, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

/* How many clusters are resident together, for 2, 4 and 8 ranges: the grid is never larger (see the
 * head). */
template <int N> static cudaError_t narrow_open(struct backend *be, int (&resident)[3])
{
    constexpr size_t most = 227 << 10;
    static_assert(narrow<N>::shared_bytes(2) <= most && narrow<N>::shared_bytes(4) <= most &&
                      narrow<N>::shared_bytes(8) <= most,
                  "fits");
    cudaError_t rc = allow_memory(narrow_kernel<N, false>, narrow_kernel<N, true>, most);
    for (int i = 0; i < 3 && rc == cudaSuccess; i++) {
        cudaLaunchAttribute attributes[3];
        cudaLaunchConfig_t config = narrow_config<N>(be, 2 << i, false, attributes);
        int cluster = narrow<N>::cluster(2 << i), all = be->n_multiprocessors / cluster;
        config.gridDim = dim3((unsigned)(all * cluster));
        resident[i] = all;
        if (cluster > 1)
            rc = cudaOccupancyMaxActiveClusters(&resident[i], narrow_kernel<N, false>, &config);
        if (resident[i] > all)
            resident[i] = all;
    }
    return rc;
}

template <int N>
static void launch_narrow(struct backend *be, const struct weight *w, struct linear_args &a,
                          int resident)
{
    CUtensorMap map = map_boxes(be->linear->encode_tiled, a.x, (uint64_t)a.n_rows, (uint64_t)a.d_in,
                                N, TILE);
    cudaLaunchAttribute attributes[3];
    cudaLaunchConfig_t config = narrow_config<N>(be, a.n_ranges, dependent(be), attributes);
    BUG_IF(resident < 1);
    /* Blocks without a tile of outputs still have a share in the adapters. */
    int n_clusters = a.lora.n_parts > 0 || w->n_m_tiles > resident ? resident : w->n_m_tiles;
    config.gridDim = dim3((unsigned)n_clusters * config.attrs[0].val.clusterDim.x);
    cuda_note(be,
              a.deltas != nullptr ? cudaLaunchKernelEx(&config, narrow_kernel<N, true>, map, a)
                                  : cudaLaunchKernelEx(&config, narrow_kernel<N, false>, map, a),
              "linear");
}

#define FOR_EACH_NARROW(DO) DO(0, 8) DO(1, 16) DO(2, 32) DO(3, 64) DO(4, 128)

static int narrow_choice(int n_rows)
{
    return n_rows <= 8 ? 0 : n_rows <= 16 ? 1 : n_rows <= 32 ? 2 : n_rows <= 64 ? 3 : 4;
}

/* y in boxes of so many rows, a tile of outputs wide, if it can be written so (a.y_boxes). */
static CUtensorMap boxes_of_y(const struct backend *be, struct linear_args &a, int box_rows,
                              const CUtensorMap &otherwise)
{
    bool fused = a.store == STORE_SWIGLU;
    int width = fused ? a.pair_width : a.d_out;
    a.y_boxes = (fused || (a.store == STORE_BF16 && a.pair_width == 0)) && width % 8 == 0 &&
                reinterpret_cast<uintptr_t>(a.y) % 16 == 0;
    if (!a.y_boxes)
        return otherwise;
    return map_boxes(be->linear->encode_tiled, static_cast<bf16 *>(a.y), (uint64_t)a.n_rows,
                     (uint64_t)width, box_rows, fused ? TILE / 2 : TILE);
}

/* In clusters as narrow has them, which a step of many adapters goes through. */
template <class S>
static cudaLaunchConfig_t middle_config(struct backend *be, bool dependent,
                                        cudaLaunchAttribute (&attributes)[3])
{
    constexpr int cluster = S::BITS == 2 ? narrow<S::N>::cluster(4) : S::CLUSTER;
    static_assert(cluster % S::CLUSTER == 0, "whole clusters");
    cudaLaunchConfig_t config = cluster_config(be, cluster, dependent, attributes);
    config.blockDim = dim3(NARROW_THREADS);
    config.dynamicSmemBytes = S::SHARED;
    if (S::BITS == 2 && S::SHARED < narrow<S::N>::shared_bytes(4))
        config.dynamicSmemBytes = narrow<S::N>::shared_bytes(4);
    return config;
}

/* How many blocks are resident together, in whole clusters. */
template <class S> static cudaError_t middle_open(struct backend *be, int *resident)
{
    static_assert(S::SHARED <= 227 << 10, "fits");
    typedef middle<S::N, S::BITS, true> apart;
    cudaLaunchAttribute attributes[3];
    cudaLaunchConfig_t config = middle_config<S>(be, false, attributes);
    cudaError_t rc = allow_memory(middle_kernel<S>, middle_kernel<apart>, config.dynamicSmemBytes);
    int cluster = (int)config.attrs[0].val.clusterDim.x, all = be->n_multiprocessors / cluster;
    int n = all;
    config.gridDim = dim3((unsigned)(all * cluster));
    if (rc == cudaSuccess && cluster > 1)
        rc = cudaOccupancyMaxActiveClusters(&n, middle_kernel<S>, &config);
    *resident = (n < all ? n : all) * cluster;
    return rc;
}

template <class S>
static void launch_middle(struct backend *be, struct linear_args &a, int resident)
{
    CUtensorMap map = map_boxes(be->linear->encode_tiled, a.x, (uint64_t)a.n_rows, (uint64_t)a.d_in,
                                S::N / S::CLUSTER, TILE);
    CUtensorMap narrow_map = map_boxes(be->linear->encode_tiled, a.x, (uint64_t)a.n_rows,
                                       (uint64_t)a.d_in, S::N, TILE);
    CUtensorMap y_map = boxes_of_y(be, a, 8, map);
    cudaLaunchAttribute attributes[3];
    cudaLaunchConfig_t config = middle_config<S>(be, dependent(be), attributes);
    BUG_IF(S::BITS == 2 && a.n_k < S::RANGES); /* weight.cu: none of four ranges is empty */
    config.gridDim = dim3((unsigned)resident);
    a.slots = be->linear->slots;
    typedef middle<S::N, S::BITS, true> apart;
    cuda_note(be,
              a.deltas != nullptr
                  ? cudaLaunchKernelEx(&config, middle_kernel<apart>, map, y_map, narrow_map, a)
                  : cudaLaunchKernelEx(&config, middle_kernel<S>, map, y_map, narrow_map, a),
              "linear");
}

/* By rows, and log2 of the ranges: weights of so many outputs have two or four (weight.cu). */
#define FOR_EACH_MIDDLE(DO) \
    DO(0, middle<64, 1>) DO(1, middle<64, 2>) DO(2, middle<128, 1>) DO(3, middle<128, 2>)

/* Which middle kernel computes it, if any: where each cluster gets all ranges of some outputs. */
static int middle_choice(const struct backend *be, const struct weight *w, int n_rows, int bits,
                         int *resident)
{
    if (n_rows <= 32 || bits > 2)
        return -1;
    int choice = (n_rows <= 64 ? 0 : 2) + bits - 1;
    *resident = be->linear->n_middle[choice];
    bool enough = n_rows <= 64 ? middle<64, 1>::fills(w->n_m_tiles, *resident)
                               : middle<128, 1>::fills(w->n_m_tiles, *resident);
    return enough ? choice : -1;
}

template <class S>
static cudaLaunchConfig_t wide_config(struct backend *be, bool dependent,
                                      cudaLaunchAttribute (&attributes)[3])
{
    cudaLaunchConfig_t config = cluster_config(be, S::CLUSTER, dependent, attributes);
    config.blockDim = dim3(WIDE_THREADS);
    config.dynamicSmemBytes = S::SHARED;
    return config;
}

/* How many clusters are resident together. */
template <class S> static cudaError_t wide_open(struct backend *be, int *limit)
{
    cudaError_t rc = cudaFuncSetAttribute(
        wide_kernel<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)S::SHARED);
    cudaLaunchAttribute attributes[3];
    cudaLaunchConfig_t config = wide_config<S>(be, false, attributes);
    config.gridDim = dim3((unsigned)(be->n_multiprocessors / S::CLUSTER * S::CLUSTER));
    if (rc == cudaSuccess)
        rc = cudaOccupancyMaxActiveClusters(limit, wide_kernel<S>, &config);
    return rc;
}

template <class S> static int wide_items(const struct linear_args &a)
{
    return ceil_div(a.n_m_tiles, 2 * S::CLUSTER) * ceil_div(a.n_rows, S::N);
}

/* Items of the last round, of `clusters` at a time, if halves of all of them fit into one. */
static int wide_halves(int n_items, int clusters)
{
    int left = n_items % clusters;
    return 2 * left <= clusters ? left : 0;
}

template <class S> static void launch_wide(struct backend *be, struct linear_args &a, int limit)
{
    CUtensorMap x_map = map_boxes(be->linear->encode_tiled, a.x, (uint64_t)a.n_rows,
                                  (uint64_t)a.d_in, S::N / 2, TILE);
    CUtensorMap y_map = boxes_of_y(be, a, S::N, x_map);
    CUtensorMap y_half_map = boxes_of_y(be, a, S::N / 2, x_map);
    int n_items = wide_items<S>(a);
    a.n_halves = wide_halves(n_items, limit);
    int n_work = n_items + a.n_halves;
    cudaLaunchAttribute attributes[3];
    cudaLaunchConfig_t config = wide_config<S>(be, dependent(be), attributes);
    config.gridDim = dim3((unsigned)((n_work < limit ? n_work : limit) * S::CLUSTER));
    cuda_note(be, cudaLaunchKernelEx(&config, wide_kernel<S>, x_map, y_map, y_half_map, a),
              "linear");
}

/* (rows of a tile, stages of the ring), and the time of such a tile, in rows of the second. */
#define WIDE_0            wide<128, 5>
#define WIDE_1            wide<160, 5>
#define WIDE_2            wide<176, 4>
#define WIDE_3            wide<192, 4>
#define WIDE_APART        wide<128, 5, true>
#define FOR_EACH_WIDE(DO) DO(0, 132) DO(1, 160) DO(2, 182) DO(3, 196)

/* The kernel that is done first: by the rounds of tiles that its clusters take. */
static void run_wide(struct backend *be, struct linear_args &a)
{
    const int *limits = be->linear->n_wide_clusters;
    if (a.deltas != nullptr) {
        launch_wide<WIDE_APART>(be, a, limits[0]);
        return;
    }
    int best = -1, best_time = 0;
#define LOOK(i, tile_time)                                                   \
    {                                                                        \
        BUG_IF(limits[i] < 1);                                               \
        int n = wide_items<WIDE_##i>(a), halves = wide_halves(n, limits[i]); \
        /* A half takes 0.55 of a tile's time. */                            \
        int time = (n - halves + limits[i] - 1) / limits[i] * (tile_time) +  \
                   (halves > 0 ? (tile_time)*11 / 20 : 0);                   \
        if (best < 0 || time < best_time) {                                  \
            best = i;                                                        \
            best_time = time;                                                \
        }                                                                    \
    }
    FOR_EACH_WIDE(LOOK)
#undef LOOK
    switch (best) {
#define LAUNCH(i, tile_time)                     \
    case i:                                      \
        launch_wide<WIDE_##i>(be, a, limits[i]); \
        break;
        FOR_EACH_WIDE(LAUNCH)
#undef LAUNCH
    default:
        BUG("no such kernel");
    }
}

static void run_plain(struct backend *be, const struct weight *w, struct linear_args &a)
{
    if (a.lora.n_parts > 0)
        launch(be, "shrink", plain_shrink_kernel,
               dim3((unsigned)a.n_rows, (unsigned)a.lora.n_parts), 128, 0, a.x, a.d_in, a.lora);
    launch(be, "linear", plain_kernel, dim3((unsigned)ceil_div(a.d_out, 8), (unsigned)a.n_rows),
           256, 0, a, (int)w->dtype);
}

/* Up to NARROW_ROWS_MAX rows: middle, or narrow. */
static void run_narrow(struct backend *be, const struct weight *w, struct linear_args &a,
                       const struct lora_args *lora)
{
    a.n_chains = lora_n_chains(w->d_in);
    a.tag_chains = be->linear->tag_chains;
    a.tag_t = be->linear->tag_t;
    a.n_tag_chains = be->linear->n_tag_chains;
    a.b_in_bulk = true;
    for (int p = 0; p < a.lora.n_parts; p++) {
        int begin = a.lora.part[p].out_begin, end = begin + a.lora.part[p].d_out;
        if (begin % 8 != 0 || end % 8 != 0 || (begin < a.pair_width && end > a.pair_width))
            a.b_in_bulk = false;
    }
    if (lora != nullptr)
        a.next = lora_next_of(be, lora, &a.next_d_in);
    int bits = w->n_ranges == 8 ? 3 : w->n_ranges / 2, resident;
    switch (middle_choice(be, w, a.n_rows, bits, &resident)) {
#define LAUNCH(i, ...)                               \
    case i:                                          \
        launch_middle<__VA_ARGS__>(be, a, resident); \
        return;
        FOR_EACH_MIDDLE(LAUNCH)
#undef LAUNCH
    }
    int choice = narrow_choice(a.n_rows);
    resident = be->linear->n_clusters[choice][bits - 1];
    switch (choice) {
#define LAUNCH(i, n)                          \
    case i:                                   \
        launch_narrow<n>(be, w, a, resident); \
        break;
        FOR_EACH_NARROW(LAUNCH)
#undef LAUNCH
    default:
        BUG("no such kernel");
    }
}

/* Has an adapter of the step anything here? Asked of large steps, which are computed another way
 * if not; a recording doesn't know. */
static bool is_touched(const struct backend *be, const struct lora_args *lora, int n_rows)
{
    if (be->recording || n_rows <= NARROW_ROWS_MAX)
        return true;
    for (int s = 0; s < lora->step->n_segs; s++)
        for (int p = 0; p < lora->n_parts; p++)
            if (lora->parts[p].entries[lora->step->segs[s].slot].rank > 0)
                return true;
    return false;
}

/* Segments that have rows from begin to end - 1. */
static int segments_over(const struct lora_step *step, int begin, int end)
{
    int n = 0;
    for (int s = 0; s < step->n_segs; s++)
        n += step->segs[s].row_begin < end &&
             step->segs[s].row_begin + step->segs[s].n_rows >= begin;
    return n;
}

/* Is it narrow's: few rows, whose segments fit its copy of what was found? While recording there
 * are no more than rows (ops.h). */
static bool is_narrow(const struct backend *be, const struct lora_args *lora, int n_rows)
{
    if (n_rows > NARROW_ROWS_MAX)
        return false;
    return lora == nullptr || be->recording ||
           segments_over(lora->step, 0, n_rows) <= (n_rows < 32 ? 32 : n_rows);
}

/* How many rows, from the first on, get their deltas from kernels before the product. Of a step of
 * a few rows, all or none, as the caller says. Of a large one one or two times APART_ROWS, if they
 * have so many segments that wide would take longer (7 us a segment of rank 16 and layer of an 8B
 * model), up to the beginning of a segment. */
static int rows_apart(const struct lora_step *step, int n_rows)
{
    if (n_rows <= APART_ROWS_MAX)
        return step->heavy ? n_rows : 0;
    int end = 0;
    while (end < APART_ROWS_MAX && segments_over(step, end, end + APART_ROWS) > LORA_SEGS_FEW)
        end += APART_ROWS;
    int rows = end;
    for (int s = 0; s < step->n_segs; s++) {
        const struct lora_seg *seg = &step->segs[s];
        if (seg->row_begin < rows && seg->row_begin + seg->n_rows > end)
            rows = seg->row_begin;
    }
    return rows;
}

/* Makes two views of one of n_rows rows: of the segments before `row`, where one begins or none is,
 * and of those from there on. While recording row is n_rows, and they are all before it. */
static void cut_segments(struct lora_view &before, struct lora_view &v,
                         const struct lora_step *step, int row, int n_rows)
{
    before = v;
    if (row < n_rows) {
        before.d_n_segs = nullptr;
        before.n_segs = 0;
        while (before.n_segs < v.n_segs && step->segs[before.n_segs].row_begin < row)
            before.n_segs++;
    }
    v.segs += before.n_segs;
    v.n_segs -= before.n_segs;
    v.d_n_segs = nullptr;
}

static void run(struct backend *be, struct devptr y, struct devptr x, const struct weight *w,
                struct devptr bias, int n_rows, enum store store, const struct lora_args *lora)
{
    BUG_IF(n_rows > be->options.max_rows);
    if (lora != nullptr && (lora->n_parts == 0 || !is_touched(be, lora, n_rows)))
        lora = nullptr;
    struct linear_args a = {};
    a.y = dev<void>(y);
    a.x = dev<bf16>(x);
    a.w = static_cast<const char *>(w->data);
    a.bias = dev<float>(bias);
    a.n_rows = n_rows;
    a.d_out = w->d_out;
    a.d_in = w->d_in;
    a.store = store;
    a.lora = lora_view_of(be, lora);
    if (!w->packed) {
        run_plain(be, w, a);
        return;
    }
    a.pair_width = w->pair_width;
    a.n_m_tiles = w->n_m_tiles;
    a.n_planes = w->n_planes;
    a.n_k = w->n_k_tiles * w->n_planes;
    a.n_ranges = w->n_ranges;
    bool narrow = is_narrow(be, lora, n_rows);
    int apart = lora != nullptr ? rows_apart(lora->step, n_rows) : 0;
    if (lora != nullptr && narrow) {
        lora_find_all(be, lora, w->d_in);
        a.lora.found = lora_found_at(be, lora);
    }
    if (apart > 0) {
        struct lora_view first, rest = a.lora;
        cut_segments(first, rest, lora->step, apart, n_rows);
        lora_shrink(be, first, a.x, apart, a.d_in);
        a.deltas = be->linear->deltas;
        a.any_deltas = be->linear->any_deltas;
        lora_expand_deltas(be, be->linear->deltas, be->linear->any_deltas, first, apart, a.d_out);
        a.n_deltas = apart;
        if (!narrow)
            a.lora = rest;
    }
    if (narrow) {
        run_narrow(be, w, a, lora);
        return;
    }
    if (lora != nullptr && apart < n_rows)
        a.x_is_there = lora_shrink(be, a.lora, a.x, n_rows, a.d_in);
    run_wide(be, a);
}

void cuda_linear(struct backend *be, struct devptr y, struct devptr x, const struct weight *w,
                 struct devptr bias, int n_rows, bool y_f32, const struct lora_args *lora)
{
    if (n_rows > 0)
        run(be, y, x, w, bias, n_rows, y_f32 ? STORE_F32 : STORE_BF16, lora);
}

void cuda_linear_swiglu(struct backend *be, struct devptr y, struct devptr scratch, struct devptr x,
                        const struct weight *w, struct devptr bias, int n_rows,
                        const struct lora_args *lora)
{
    if (n_rows == 0)
        return;
    if (w->pair_width > 0) {
        run(be, y, x, w, bias, n_rows, STORE_SWIGLU, lora);
        return;
    }
    run(be, scratch, x, w, bias, n_rows, STORE_BF16, lora);
    cuda_swiglu(be, y, scratch, n_rows, w->d_out / 2);
}

enum { TAG_CHAINS_MAX = 4 << 20 };

static size_t words_of_t(const struct linear_scratch *s)
{
    return (size_t)NARROW_ROWS_MAX * (size_t)(s->t_stride / 2);
}

cudaError_t lora_clear_words(struct backend *be)
{
    const struct linear_scratch *s = be->linear;
    cudaError_t rc = fill_async(be, s->tag_chains, 0,
                                (size_t)s->n_tag_chains * sizeof *s->tag_chains);
    return rc == cudaSuccess ? fill_async(be, s->tag_t, 0, words_of_t(s) * sizeof *s->tag_t) : rc;
}

int cuda_linear_open(struct backend *be, struct err *err)
{
    struct linear_scratch *s = be->linear = new linear_scratch{};
    const struct backend_options *o = &be->options;
    s->t_stride = ceil_div(o->max_rank + 8 * LORA_PARTS_MAX * LORA_T_PAD, 8) * 8;
    /* Units of a step: each row at most max_rank ranks, each segment's parts rounded up to 16. */
    int n_units = NARROW_ROWS_MAX * (ceil_div(o->max_rank, 16) + LORA_PARTS_MAX);
    s->n_tag_chains = (int64_t)n_units * lora_n_chains(o->max_d) * LORA_UNIT;
    if (s->n_tag_chains > TAG_CHAINS_MAX)
        s->n_tag_chains = TAG_CHAINS_MAX;
    size_t chain_bytes = (size_t)s->n_tag_chains * sizeof *s->tag_chains;
    size_t t_bytes = (size_t)o->max_rows * (size_t)s->t_stride * sizeof(bf16);
    cudaDriverEntryPointQueryResult found;
    cudaError_t rc = cudaMalloc(&s->t, t_bytes);
    if (rc == cudaSuccess)
        rc = fill_async(be, s->t, 0, t_bytes);
    int n_deltas = o->max_rows < APART_ROWS_MAX ? o->max_rows : (int)APART_ROWS_MAX;
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->deltas, (size_t)n_deltas * (size_t)o->max_d * sizeof *s->deltas);
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->any_deltas, sizeof *s->any_deltas);
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->tag_chains, chain_bytes);
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->tag_t, words_of_t(s) * sizeof *s->tag_t);
    size_t slot_bytes = (size_t)be->n_multiprocessors * middle<128, 1>::SLOT_BYTES;
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->slots, slot_bytes);
    if (rc == cudaSuccess)
        rc = fill_async(be, s->slots, 0xff, slot_bytes); /* EMPTY */
    slot_bytes = (size_t)be->n_multiprocessors * (size_t)lora_slices(o->max_d) * LORA_UNIT *
                 sizeof *s->shrink_slots;
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->shrink_slots, slot_bytes);
    if (rc == cudaSuccess)
        rc = fill_async(be, s->shrink_slots, 0xff, slot_bytes); /* EMPTY */
    slot_bytes = (size_t)be->n_multiprocessors * lora_shrink_many_slots(o->max_d);
    if (rc == cudaSuccess)
        rc = cudaMalloc(&s->many_slots, slot_bytes);
    if (rc == cudaSuccess)
        rc = fill_async(be, s->many_slots, 0xff, slot_bytes); /* EMPTY */
    if (rc == cudaSuccess)
        rc = lora_look_up_open(be);
    if (rc != cudaSuccess)
        return err_set(err, ERR_NO_MEMORY, "cuda: scratch memory of %d rows for adapters: %s",
                       o->max_rows, cudaGetErrorString(rc));
    rc = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &s->encode_tiled, 12000,
                                          cudaEnableDefault, &found);
    if (rc == cudaSuccess && found != cudaDriverEntryPointSuccess)
        rc = cudaErrorNotSupported;
#define OPEN(i, n)         \
    if (rc == cudaSuccess) \
        rc = narrow_open<n>(be, s->n_clusters[i]);
    FOR_EACH_NARROW(OPEN)
#undef OPEN
#define OPEN(i, ...)       \
    if (rc == cudaSuccess) \
        rc = middle_open<__VA_ARGS__>(be, &s->n_middle[i]);
    FOR_EACH_MIDDLE(OPEN)
#undef OPEN
#define OPEN(i, tile_time) \
    if (rc == cudaSuccess) \
        rc = wide_open<WIDE_##i>(be, &s->n_wide_clusters[i]);
    FOR_EACH_WIDE(OPEN)
#undef OPEN
    int n_apart;
    if (rc == cudaSuccess)
        rc = wide_open<WIDE_APART>(be, &n_apart);
    BUG_IF(rc == cudaSuccess && n_apart < s->n_wide_clusters[0]);
    if (rc != cudaSuccess)
        return err_set(err, ERR_UNSUPPORTED, "cuda: kernels of linear: %s", cudaGetErrorString(rc));
    return lora_open(err) == 0 ? lora_expand_open(err) : -1;
}

void cuda_linear_close(struct backend *be)
{
    struct linear_scratch *s = be->linear;
    if (s == nullptr)
        return;
    cudaFree(s->t);
    cudaFree(s->deltas);
    cudaFree(s->any_deltas);
    cudaFree(s->tag_chains);
    cudaFree(s->tag_t);
    cudaFree(s->slots);
    cudaFree(s->shrink_slots);
    cudaFree(s->many_slots);
    lora_look_up_close(be);
    delete s;
}
