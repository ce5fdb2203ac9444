/* linear_narrow.cuh: linear for up to 128 rows. Part of linear.cu, whose head has the design. */
#ifndef TRIBUTARY_KERNELS_CUDA_LINEAR_NARROW_CUH
#define TRIBUTARY_KERNELS_CUDA_LINEAR_NARROW_CUH

#include "kernels/cuda/linear_tile.cuh"

/* PAIR: two tiles of outputs to one range of K, instead of one tile to two ranges. x then passes
 * half as often; with few rows it is too little to matter, and clusters are twice as large. */
template <int N, bool PAIR> struct narrow {
    static constexpr bool PAIRED = PAIR;
    static constexpr int TILES = PAIRED ? 2 : 1; /* of outputs, in the hands of a cluster */
    static constexpr int RINGS = PAIRED ? 1 : 2; /* one for both warpgroups, or one each */
    static constexpr int STAGE = TILES * TILE_BYTES + N * TILE * 2; /* bytes */
    static constexpr int DEPTH = N <= 16 ? 6
                                 : N == 32
                                     ? 5
                                     : (PAIR ? 5 : 3) - (N > 64) * (PAIR ? 2 : 1); /* stages */
    /* Stages on their way at a time, 64 KiB a block: enough to keep memory busy. More would make
     * all other loads wait behind them; the ring is deeper to ride over the ends of tiles. */
    static constexpr int FLIGHT = ((64 << 10) - 1) / (RINGS * STAGE) + 1 < DEPTH
                                      ? ((64 << 10) - 1) / (RINGS * STAGE) + 1
                                      : DEPTH;
    static constexpr int UNITS = N / 8;    /* m64n8 pieces of the accumulator */
    static constexpr int PIECE = 128 * 16; /* bytes of one in shared memory: a float4 a thread */
    static constexpr int SEGS = N < 32 ? 32 : N; /* of a step; more go the wide way */
    /* The launch bound of 640 stands for 96 registers a thread: with them a small kernel that comes
     * next fits beside this one, and waits there. 512 stands for 128. The warpgroups divide them
     * anew. */
    static constexpr int BOUND = N <= 64 ? 640 : 512;
    static constexpr int REGISTERS = (N <= 64 ? 96 : 128) * 16; /* of a lane of all warps */
    static constexpr int MULTIPLY_REGISTERS = N <= 64 ? 96 : 128, FILL_REGISTERS = 40;
    static constexpr int ADAPT_REGISTERS =
        (REGISTERS - 8 * MULTIPLY_REGISTERS - 4 * FILL_REGISTERS) / 4;

    /* Thread blocks of a cluster, and where a range is summed. */
    static __host__ __device__ int cluster(int n_ranges)
    {
        return PAIRED ? n_ranges : n_ranges / 2;
    }
    static __device__ int range_of(int rank, int wg)
    {
        return PAIRED ? rank : 2 * rank + wg;
    }
    /* Rows 0-7, 8-15, ... are finished by the warpgroup of range 0, 1, ...: so many each. */
    static __host__ __device__ int units_each(int n_ranges)
    {
        return (UNITS + n_ranges - 1) / n_ranges;
    }
    static __host__ __device__ int partial_bytes(int n_ranges)
    {
        return 2 * (n_ranges - 1) * units_each(n_ranges) * PIECE;
    }
    /* B on its way to the adapters' warps, and t' of the rows that they compute. */
    static constexpr int B_BYTES = N <= 64 ? 32768 : 16384, B_SLOTS = 16, T_BYTES = 12288;
    /* With adapters a tile is finished when the next one has been summed, where there is room to
     * keep it: the first tile's deltas come late. */
    static __host__ __device__ bool lags(int n_ranges)
    {
        return N <= 64 && n_ranges >= 4;
    }
    static __host__ __device__ int delta_bytes(int n_ranges)
    {
        return 2 * units_each(n_ranges) * PIECE;
    }
    static size_t shared_bytes(int n_ranges)
    {
        return 1024 + (size_t)RINGS * DEPTH * STAGE + partial_bytes(n_ranges) +
               (lags(n_ranges) ? 3 : 1) * delta_bytes(n_ranges) + B_BYTES + T_BYTES +
               lora_table_bytes(SEGS) + (SEGS * LORA_PARTS_MAX + N + 16) * sizeof(int) +
               (2 * RINGS * DEPTH + 8 + 2 * B_SLOTS) * 8;
    }
};

/* Warps 0-7: two warpgroups that multiply. 8, 9: fill the rings, 10:
 * that of B. 12-15: the adapters. */
enum {
    NARROW_FILLERS = 8,
    NARROW_ADAPTERS = 12,
    ADAPTER_WARPS = 4,
    NARROW_THREADS = (NARROW_ADAPTERS + ADAPTER_WARPS) * 32,
};

/* ---- the adapters' warps
 * ------------------------------------------------------------------------------------ */

struct shrink_unit { /* 16 ranks by 8 rows of t */
    struct lora_cell cell;
    int row, row_end, rank0;
};

__device__ static inline struct shrink_unit shrink_unit_at(const struct lora_view &v,
                                                           const struct lora_table &table,
                                                           const int *unit_end, int unit)
{
    struct shrink_unit u;
    int at = lora_find(unit_end, table.n * v.n_parts, unit);
    int rest = unit - (at > 0 ? unit_end[at - 1] : 0);
    const struct lora_span span = table.spans[at / v.n_parts];
    int n_tiles = (span.row_end - span.row_begin + 7) / 8;
    u.cell = table.cells[at];
    u.row = span.row_begin + rest % n_tiles * 8;
    u.row_end = span.row_end;
    u.rank0 = rest / n_tiles * 16;
    return u;
}

/* Words with a tag. What blocks hand one another within a launch are 64-bit words of 32 bits of
 * data and the launch's tag: who reads one that doesn't bear the tag reads it again. A word is
 * written and read whole, so there is no fence, no counter and no second trip. A launch's last
 * block moves the tag on, and clears a piece of the words so that none is as old as the tag's
 * range. */
__device__ static inline void put_word(uint64_t *to, uint32_t data, uint32_t tag)
{
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"((uint64_t)tag << 32 | data)
                 : "memory");
}

__device__ static inline uint64_t get_word(const uint64_t *from)
{
    uint64_t w;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(w) : "l"(from) : "memory");
    return w;
}

/* w, or what is there when the tag is. */
__device__ static inline uint32_t await_word(uint64_t w, const uint64_t *from, uint32_t tag)
{
    while ((uint32_t)(w >> 32) != tag)
        w = get_word(from);
    return (uint32_t)w;
}

/* t' lies as [row, tag_t_stride] words of two ranks. */
__device__ static inline uint64_t *word_of_t(const struct linear_args &a, int row, int at)
{
    return a.tag_t + (int64_t)row * (a.lora.t_stride / 2) + at / 2;
}

/* Puts two ranks, rank0 + rank (even) and the next, of a row of t'. */
__device__ static inline void put_t(const struct linear_args &a, const struct shrink_unit &u,
                                    int rank, int row, float lo, float hi, uint32_t tag)
{
    rank += u.rank0;
    row += u.row;
    if (rank < lora_padded(u.cell.rank) && row < u.row_end)
        put_word(word_of_t(a, row, u.cell.t_at + rank),
                 pack_bf16(u.cell.scale * lo, u.cell.scale * hi), tag);
}

/* This block's share of t = A x. All chains of all units stand in one list, cut evenly over the
 * warps of the grid; chains are handed on as [unit, chain, 8 rows, 16 ranks] words. Where there
 * would be too many of them the list is cut between units, and no more is to be done. */
__device__ static void narrow_chains(const struct linear_args &a, const struct lora_table &table,
                                     const int *unit_end, int n_units, bool whole, uint32_t tag,
                                     int warp, int lane)
{
    int g = lane >> 2, t = lane & 3, n_chains = a.n_chains,
        n_warps = ADAPTER_WARPS * (int)gridDim.x;
    /* The last blocks have the fewest tiles of outputs, some none: they begin. */
    int me = warp * (int)gridDim.x + (int)(gridDim.x - 1 - blockIdx.x);
    int grain = whole ? n_chains : 1;
    int64_t pieces = (int64_t)n_units * n_chains / grain;
    int at = (int)(me * pieces / n_warps) * grain;
    int end = (int)((me + 1) * pieces / n_warps) * grain;
    float total[4] = {}, slice[4] = {};
#pragma unroll 1
    for (; at < end; at++) {
        int unit = at / n_chains, i = at % n_chains, begin = i * LORA_CHAIN;
        struct shrink_unit u = shrink_unit_at(a.lora, table, unit_end, unit);
        float c[1][4];
        lora_chain<1>(c, u.cell, u.rank0, u.row, u.row_end, a.x, a.d_in, begin,
                      begin + LORA_CHAIN < a.d_in ? begin + LORA_CHAIN : a.d_in, lane);
        if (!whole) {
            uint64_t *to = a.tag_chains + (int64_t)at * LORA_UNIT + 2 * t * 16 + g;
#pragma unroll
            for (int j = 0; j < 4; j++)
                put_word(to + j % 2 * 16 + j / 2 * 8, __float_as_uint(c[0][j]), tag);
            continue;
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            slice[j] = i % 4 == 0 ? c[0][j] : slice[j] + c[0][j];
            if (i % 4 == 3)
                total[j] = i == 3 ? slice[j] : total[j] + slice[j];
        }
        if (i + 1 < n_chains)
            continue;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float next = __shfl_down_sync(0xffffffffu, total[j], 4); /* the rank after mine */
            if (g % 2 == 0)
                put_t(a, u, g + j / 2 * 8, 2 * t + j % 2, total[j], next, tag);
        }
    }
}

/* This block's share of t' = the sum of a unit's chains: a thread a sum. */
__device__ static void narrow_sums(const struct linear_args &a, const struct lora_table &table,
                                   const int *unit_end, int n_units, uint32_t tag, int thread)
{
    enum { AHEAD = 16 };
#pragma unroll 1
    for (int unit = (int)(gridDim.x - 1 - blockIdx.x); unit < n_units; unit += (int)gridDim.x) {
        struct shrink_unit u = shrink_unit_at(a.lora, table, unit_end, unit);
        const uint64_t *chains = a.tag_chains + (int64_t)unit * a.n_chains * LORA_UNIT + thread;
        float total = 0;
#pragma unroll 1
        for (int i = 0; i < a.n_chains; i += AHEAD) {
            uint64_t w[AHEAD];
            float c[AHEAD];
#pragma unroll
            for (int j = 0; j < AHEAD; j++)
                w[j] = i + j < a.n_chains ? get_word(chains + (i + j) * LORA_UNIT) : 0;
#pragma unroll
            for (int j = 0; j < AHEAD; j++)
                c[j] = i + j < a.n_chains
                           ? __uint_as_float(await_word(w[j], chains + (i + j) * LORA_UNIT, tag))
                           : 0;
#pragma unroll
            for (int j = 0; j < AHEAD; j += 4) {
                float slice = ((c[j] + c[j + 1]) + c[j + 2]) + c[j + 3];
                if (i + j < a.n_chains)
                    total = i + j == 0 ? slice : total + slice;
            }
        }
        float next = __shfl_down_sync(0xffffffffu, total, 1);
        if (thread % 2 == 0)
            put_t(a, u, thread % 16, thread / 16, total, next, tag);
    }
}

/* The adapters' shared memory. */
struct adapter_memory {
    struct lora_table table;
    int *unit_end;
    int *t_end;                /* how much of t' each of my rows has */
    char *b, *t, *deltas;      /* deltas: of a tile or two, as the warpgroups hold their sums */
    uint64_t *b_full, *b_free; /* [B_SLOTS] */
    uint64_t *deltas_full, *deltas_free; /* [2], or [1] without a lag */
};

/* Whether deltas are computed from shared memory: what is needed fits, and can be copied in bulk.
 * The others go straight to memory for all that they need, which takes a trip for every few ranks.
 */
template <int N, bool PAIR>
__device__ static inline bool narrow_staged(const struct linear_args &a,
                                            const struct lora_table &table)
{
    using shape = narrow<N, PAIR>;
    int n_rows = (PAIR ? 1 : 2) * shape::units_each(a.n_ranges) * 8;
    bool ok = table.plain && table.rank > 0 && table.rank * TILE * 2 <= shape::B_BYTES &&
              n_rows * (table.width + 4) * 2 <= shape::T_BYTES;
    for (int p = 0; p < a.lora.n_parts; p++) {
        int begin = a.lora.part[p].out_begin, n = a.lora.part[p].d_out;
        ok = ok && begin % 8 == 0 && n % 8 == 0;
        if (a.pair_width > 0)
            ok = ok && (begin + n <= a.pair_width || begin >= a.pair_width);
    }
    return ok;
}

/* Calls f(part, segment, first output of the part, end) for all of B that a tile's rows need, in
 * the order of the sums. By a warp. */
template <typename Function>
__device__ static inline void narrow_for_b(const struct linear_args &a,
                                           const struct lora_table &table, int m_tile,
                                           const int (&row)[2], int lane, Function &&f)
{
    int width = a.pair_width > 0 ? TILE / 2 : TILE;
#pragma unroll 1
    for (int p = 0; p < a.lora.n_parts; p++) {
        int begin = a.lora.part[p].out_begin, n = a.lora.part[p].d_out;
        int from = m_tile * width - begin;
        if (a.pair_width > 0 && begin >= a.pair_width)
            from += a.pair_width;
        int to = from + width < n ? from + width : n;
        from = from > 0 ? from : 0;
        if (from >= to || m_tile >= a.n_m_tiles)
            continue;
#pragma unroll 1
        for (int base = 0; base < table.n; base += 32)
            for (unsigned todo = lora_touching(table, a.lora.n_parts, p, base, row, lane);
                 todo != 0; todo &= todo - 1)
                f(p, base + __ffs((int)todo) - 1, from, to);
    }
}

/* Calls f(warpgroup, its number of the first tile, tile of outputs, rows) for every two tiles of
 * deltas that this block needs of the cluster's tiles. */
template <int N, bool PAIR, typename Function>
__device__ static inline void narrow_for_deltas(const struct linear_args &a, int tile, int rank,
                                                Function &&f)
{
    using shape = narrow<N, PAIR>;
    int n_row_units = (a.n_rows + 7) / 8;
#pragma unroll 1
    for (int wg = 0; wg < 2; wg++) {
        int u = shape::range_of(rank, wg);
#pragma unroll 1
        for (int i = 0; u < n_row_units; i += 2, u += 2 * a.n_ranges) {
            const int row[2] = {8 * u, u + a.n_ranges < n_row_units ? 8 * (u + a.n_ranges) : -1};
            f(wg, i, tile * shape::TILES + (PAIR ? wg : 0), row);
        }
    }
}

/* Brings B, by a warp of its own. */
template <int N, bool PAIR>
__device__ static void narrow_fill_b(const struct linear_args &a, const struct adapter_memory &m,
                                     int lane)
{
    using shape = narrow<N, PAIR>;
    int cluster = cluster_size(), rank = cluster_rank(), n_clusters = (int)gridDim.x / cluster;
    int n_tiles = (a.n_m_tiles + shape::TILES - 1) / shape::TILES;
    int slot_bytes = m.table.rank * TILE * 2, n_slots = shape::B_BYTES / slot_bytes;
    n_slots = n_slots < shape::B_SLOTS ? n_slots : (int)shape::B_SLOTS;
    int slot = 0;
    uint32_t phase = 1; /* the first round waits for nobody */
    for (int tile = (int)blockIdx.x / cluster; tile < n_tiles; tile += n_clusters)
        narrow_for_deltas<N, PAIR>(a, tile, rank, [&](int, int, int m_tile, const int(&row)[2]) {
            narrow_for_b(a, m.table, m_tile, row, lane, [&](int p, int s, int from, int to) {
                const struct lora_cell &cell = m.table.cells[s * a.lora.n_parts + p];
                if (lane == 0) {
                    uint32_t bytes = (uint32_t)(to - from) * (uint32_t)cell.rank * 2;
                    barrier_wait(&m.b_free[slot], phase);
                    barrier_expect(&m.b_full[slot], bytes);
                    copy_weight(m.b + slot * slot_bytes,
                                reinterpret_cast<const char *>(cell.b) +
                                    (uint64_t)from * (unsigned)cell.rank * 2,
                                bytes, &m.b_full[slot], evict_normal());
                }
                __syncwarp();
                if (++slot == n_slots) {
                    slot = 0;
                    phase ^= 1;
                }
            });
        });
}

/* Copies t' of this block's rows into shared memory, as it comes. */
template <int N, bool PAIR>
__device__ static void narrow_stage_t(const struct linear_args &a, const struct adapter_memory &m,
                                      int width, uint32_t tag, int thread)
{
    using shape = narrow<N, PAIR>;
    enum { AHEAD = 8, THREADS = ADAPTER_WARPS * 32 };
    int units_each = shape::units_each(a.n_ranges), n_rows = (PAIR ? 1 : 2) * units_each * 8;
    int rank = cluster_rank(), n_parts = a.lora.n_parts, words = m.table.width / 2;
    auto row_at = [&](int i) {
        return 8 * (shape::range_of(rank, i / 8 / units_each) + i / 8 % units_each * a.n_ranges) +
               i % 8;
    };
    for (int i = thread; i < n_rows; i += THREADS) {
        int row = row_at(i), end = 0;
        for (int s = 0; s < m.table.n; s++) {
            struct lora_span span = m.table.spans[s];
            if (row < span.row_begin || row >= span.row_end)
                continue;
            for (int p = 0; p < n_parts; p++) {
                const struct lora_cell *cell = &m.table.cells[s * n_parts + p];
                end = cell->rank > 0 ? cell->t_at + cell->rank : end;
            }
        }
        m.t_end[i] = end;
    }
    named_sync(1, THREADS);
#pragma unroll 1
    for (int i0 = thread; i0 < n_rows * words; i0 += AHEAD * THREADS) {
        uint64_t w[AHEAD];
        const uint64_t *from[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            int i = i0 + j * THREADS, r = i / words, at = i % words * 2;
            bool is_there = i < n_rows * words && at < m.t_end[r];
            from[j] = is_there ? word_of_t(a, row_at(r), at) : nullptr;
            w[j] = is_there ? get_word(from[j]) : 0;
        }
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            int i = i0 + j * THREADS;
            if (from[j] != nullptr)
                *reinterpret_cast<uint32_t *>(m.t + (i / words * width + i % words * 2) *
                                                        2) = await_word(w[j], from[j], tag);
        }
    }
    named_sync(1, THREADS);
}

/* When all of a block's adapters' warps have read all that they want: the last block of the grid
 * moves the tag on. */
__device__ static void narrow_done(const struct linear_args &a, uint32_t tag, int *is_last,
                                   int thread)
{
    named_sync(1, ADAPTER_WARPS * 32);
    if (thread == 0)
        *is_last = atomicAdd(a.tag + 2, 1) == (int)gridDim.x - 1;
    named_sync(1, ADAPTER_WARPS * 32);
    if (*is_last == 0)
        return;
    int64_t n_t = (int64_t)NARROW_ROWS_MAX * (a.lora.t_stride / 2);
    int64_t at = ((int64_t)tag * ADAPTER_WARPS * 32 + thread) % (n_t + a.n_tag_chains);
    *(at < n_t ? a.tag_t + at : a.tag_chains + (at - n_t)) = 0;
    if (thread == 0) {
        a.tag[0] = tag + 1 != 0 ? (int)(tag + 1) : 1; /* 0 is the cleared words' */
        a.tag[2] = 0;
    }
}

/* Everything else that the adapters' warps do. */
template <int N, bool PAIR>
__device__ static void narrow_adapters(const struct linear_args &a, struct adapter_memory &m,
                                       int n_segs)
{
    using shape = narrow<N, PAIR>;
    int cluster = cluster_size(), rank = cluster_rank(), n_clusters = (int)gridDim.x / cluster;
    int thread = (int)threadIdx.x - NARROW_ADAPTERS * 32, warp = thread >> 5, lane = thread & 31;
    int g = lane >> 2, t = lane & 3;
    int tile = (int)blockIdx.x / cluster, n_tiles = (a.n_m_tiles + shape::TILES - 1) / shape::TILES;
    int units_each = shape::units_each(a.n_ranges), n = n_segs * a.lora.n_parts;
    struct lora_table &table = m.table;

    lora_table_fill(table, a.lora, 0, n_segs, thread, ADAPTER_WARPS * 32);
    named_sync(2, (ADAPTER_WARPS + 1) * 32);
    for (int i = thread; i < n; i += ADAPTER_WARPS * 32) {
        struct lora_span span = table.spans[i / a.lora.n_parts];
        m.unit_end[i] = (span.row_end - span.row_begin + 7) / 8 * ((table.cells[i].rank + 15) / 16);
    }
    lora_scan(m.unit_end, n, thread, ADAPTER_WARPS * 32, 1);
    lora_table_look(table, a.lora.n_parts, lane);
    bool staged = narrow_staged<N, PAIR>(a, table);
    int n_units = m.unit_end[n - 1];
    pdl_wait();
    uint32_t tag = (uint32_t)get_word(reinterpret_cast<const uint64_t *>(a.tag));
    bool whole = (int64_t)n_units * a.n_chains * LORA_UNIT > a.n_tag_chains;
    narrow_chains(a, table, m.unit_end, n_units, whole, tag, warp, lane);
    if (!whole)
        narrow_sums(a, table, m.unit_end, n_units, tag, thread);
    if (warp == ADAPTER_WARPS - 1 && a.next.n_parts > 0)
        lora_prefetch_next(a.next, n_segs, a.next_d_in, lane);
    int width = table.width + 4; /* of a row of t' in shared memory: rows in different banks */
    if (staged)
        narrow_stage_t<N, PAIR>(a, m, width, tag, thread);
    int slot_bytes = table.rank * TILE * 2, n_slots = shape::B_BYTES / slot_bytes;
    n_slots = n_slots < shape::B_SLOTS ? n_slots : (int)shape::B_SLOTS;
    int slot = 0;
    uint32_t phase = 0;
    int n_buffers = shape::lags(a.n_ranges) ? 2 : 1;
    for (int tile_no = 0; tile < n_tiles; tile += n_clusters, tile_no++) {
        int buffer = tile_no % n_buffers, turn = tile_no / n_buffers;
        char *deltas = m.deltas + buffer * shape::delta_bytes(a.n_ranges);
        if (turn > 0)
            barrier_wait(&m.deltas_free[buffer], (turn - 1) & 1);
        narrow_for_deltas<N, PAIR>(
            a, tile, rank, [&](int wg, int i, int m_tile, const int(&row)[2]) {
                float c[2][4] = {};
                int out[2];
                outputs_of(out, a, m_tile * TILE + warp * 16 + g);
                if (staged) {
                    const char *my_t = m.t +
                                       (((PAIR ? 0 : wg) * units_each + i) * 8 + g) * width * 2;
                    narrow_for_b(a, table, m_tile, row, lane, [&](int p, int s, int from, int to) {
                        const struct lora_cell cell = table.cells[s * a.lora.n_parts + p];
                        const struct lora_span span = table.spans[s];
                        int o0 = out[0] - a.lora.part[p].out_begin;
                        int o1 = out[1] - a.lora.part[p].out_begin;
                        bool live0 = o0 >= from && o0 < to, live1 = o1 >= from && o1 < to;
                        bool mine[2];
#pragma unroll
                        for (int u = 0; u < 2; u++)
                            mine[u] = row[u] >= 0 && row[u] + g >= span.row_begin &&
                                      row[u] + g < span.row_end;
                        const char *b0 = m.b + slot * slot_bytes +
                                         ((o0 - from) * cell.rank + 4 * t) * 2;
                        const char *b1 = b0 + (o1 - o0) * cell.rank * 2;
                        const char *t0 = my_t + (cell.t_at + 4 * t) * 2;
                        barrier_wait(&m.b_full[slot], phase);
#pragma unroll 2
                        for (int r0 = 0; r0 < cell.rank; r0 += 16) {
                            bool inside = r0 + 4 * t < cell.rank;
                            uint2 x = make_uint2(0, 0), y = x, f[2] = {x, x};
                            if (inside && live0)
                                x = *reinterpret_cast<const uint2 *>(b0 + r0 * 2);
                            if (inside && live1)
                                y = *reinterpret_cast<const uint2 *>(b1 + r0 * 2);
#pragma unroll
                            for (int u = 0; u < 2; u++) {
                                if (inside && mine[u])
                                    f[u] = *reinterpret_cast<const uint2 *>(t0 + u * 8 * width * 2 +
                                                                            r0 * 2);
                                mma_bf16(c[u], x.x, y.x, x.y, y.y, f[u].x, f[u].y);
                            }
                        }
                        __syncwarp();
                        if (lane == 0)
                            barrier_arrive(&m.b_free[slot]);
                        if (++slot == n_slots) {
                            slot = 0;
                            phase ^= 1;
                        }
                    });
                } else {
                    lora_delta(c, row, table, a.lora, out, lane,
                               [&](const struct lora_cell &cell, int my_row, int r) {
                                   const uint64_t *from = word_of_t(a, my_row, cell.t_at + r);
                                   uint64_t w[2] = {get_word(from), get_word(from + 1)};
                                   return make_uint2(await_word(w[0], from, tag),
                                                     await_word(w[1], from + 1, tag));
                               });
                }
                char *to = deltas + (wg * units_each + i) * shape::PIECE + (warp * 32 + lane) * 16;
#pragma unroll
                for (int u = 0; u < 2; u++)
                    if (row[u] >= 0)
                        *reinterpret_cast<float4 *>(to + u * shape::PIECE) = make_float4(
                            c[u][0], c[u][1], c[u][2], c[u][3]);
            });
        __syncwarp();
        if (lane == 0)
            barrier_arrive(&m.deltas_full[buffer]);
    }
    narrow_done(a, tag, m.t_end, thread);
}

/* ---- the kernel
 * ----------------------------------------------------------------------------------------- */

/* Fills a ring: of warpgroup `wg`, or of both. One thread. */
template <int N, bool PAIR>
__device__ static void narrow_fill(const struct linear_args &a, const CUtensorMap *x_map,
                                   char *slots, uint64_t *full, uint64_t *empty, int wg)
{
    using shape = narrow<N, PAIR>;
    int cluster = cluster_size(), n_clusters = (int)gridDim.x / cluster;
    int first_tile = (int)blockIdx.x / cluster;
    int n_tiles = (a.n_m_tiles + shape::TILES - 1) / shape::TILES;
    int range = shape::range_of(cluster_rank(), wg);
    int begin = range * a.n_k / a.n_ranges, n = (range + 1) * a.n_k / a.n_ranges - begin;
    if (n == 0 || first_tile >= n_tiles)
        return;
    uint64_t policy = evict_first();
    int total = (n_tiles - first_tile + n_clusters - 1) / n_clusters * n;
    auto weights = [&](int i) {
        int slot = i % shape::DEPTH, tile = first_tile + i / n * n_clusters, k = begin + i % n;
        barrier_expect(&full[slot], shape::STAGE);
#pragma unroll
        for (int j = 0; j < shape::TILES; j++) {
            int m = tile * shape::TILES + j; /* a tile past the end is summed, and dropped */
            m = m < a.n_m_tiles ? m : a.n_m_tiles - 1;
            copy_weight(slots + slot * shape::STAGE + j * TILE_BYTES,
                        a.w + ((int64_t)m * a.n_k + k) * TILE_BYTES, TILE_BYTES, &full[slot],
                        policy);
        }
    };
    auto rows = [&](int i) {
        int slot = i % shape::DEPTH, k = begin + i % n;
        copy_box(slots + slot * shape::STAGE + shape::TILES * TILE_BYTES, x_map,
                 k / a.n_planes * TILE, 0, &full[slot]);
    };
    int ahead = total < shape::FLIGHT ? total : shape::FLIGHT;
    for (int i = 0; i < ahead; i++)
        weights(i);
    pdl_wait();
    for (int i = 0; i < ahead; i++)
        rows(i);
    for (int i = ahead; i < total; i++) {
        barrier_wait(&empty[i % shape::DEPTH], (i / shape::DEPTH - 1) & 1);
        int landed = i - shape::FLIGHT;
        barrier_wait(&full[landed % shape::DEPTH], landed / shape::DEPTH & 1);
        weights(i);
        rows(i);
    }
}

template <int N, bool PAIR>
__global__ static void __launch_bounds__(narrow<N, PAIR>::BOUND, 1)
    narrow_kernel(const __grid_constant__ CUtensorMap x_map,
                  const __grid_constant__ struct linear_args a)
{
    using shape = narrow<N, PAIR>;
    extern __shared__ char raw[];
    char *ring = reinterpret_cast<char *>(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
    char *partials = ring + shape::RINGS * shape::DEPTH * shape::STAGE;
    char *deltas = partials + shape::partial_bytes(a.n_ranges);
    char *sums = deltas + 2 * shape::delta_bytes(a.n_ranges); /* with a lag */
    char *stage_b = deltas + (shape::lags(a.n_ranges) ? 3 : 1) * shape::delta_bytes(a.n_ranges);
    char *stage_t = stage_b + shape::B_BYTES;
    char *tables = stage_t + shape::T_BYTES;
    uint64_t *full = reinterpret_cast<uint64_t *>(tables + lora_table_bytes(shape::SEGS) +
                                                  (shape::SEGS * LORA_PARTS_MAX + N + 16) *
                                                      sizeof(int));
    uint64_t *empty = full + shape::RINGS * shape::DEPTH;
    uint64_t *partials_full = empty + shape::RINGS * shape::DEPTH; /* [2], of a warpgroup */
    uint64_t *partials_free = partials_full + 2;                   /* [2], if paired; else [1] */
    uint64_t *deltas_full = partials_free + 2, *deltas_free = deltas_full + 2;
    uint64_t *b_full = deltas_free + 2, *b_free = b_full + shape::B_SLOTS;

    int cluster = cluster_size(), rank = cluster_rank();
    int warp = (int)threadIdx.x >> 5, lane = (int)threadIdx.x & 31;
    pdl_trigger();
    if (threadIdx.x == 0) {
        for (int i = 0; i < shape::RINGS * shape::DEPTH; i++) {
            barrier_init(&full[i], 1);
            barrier_init(&empty[i], 8 / shape::RINGS);
        }
        for (int i = 0; i < 2; i++) {
            barrier_init(&partials_full[i], 1);
            barrier_init(&partials_free[i], 8 / shape::TILES * cluster);
            barrier_init(&deltas_full[i], ADAPTER_WARPS);
            barrier_init(&deltas_free[i], 8);
        }
        for (int i = 0; i < shape::B_SLOTS; i++) {
            barrier_init(&b_full[i], 1);
            barrier_init(&b_free[i], ADAPTER_WARPS);
        }
        barrier_init_done();
    }
    if (cluster > 1)
        cluster_meet();
    else
        __syncthreads();

    struct adapter_memory memory;
    memory.table = lora_table_at(tables, shape::SEGS);
    memory.unit_end = reinterpret_cast<int *>(tables + lora_table_bytes(shape::SEGS));
    memory.t_end = memory.unit_end + shape::SEGS * LORA_PARTS_MAX;
    memory.b = stage_b;
    memory.t = stage_t;
    memory.deltas = deltas;
    memory.b_full = b_full;
    memory.b_free = b_free;
    memory.deltas_full = deltas_full;
    memory.deltas_free = deltas_free;
    if (warp >= NARROW_ADAPTERS) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(shape::ADAPT_REGISTERS));
        int n_segs = lora_n_segs(a.lora);
        if (n_segs > shape::SEGS)
            __trap(); /* the caller broke ops.h: more segments than the table holds */
        if (n_segs > 0)
            narrow_adapters<N, PAIR>(a, memory, n_segs);
        return;
    }
    if (warp >= NARROW_FILLERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(shape::FILL_REGISTERS));
        int i = warp - NARROW_FILLERS;
        if (i == 2) { /* fills B's */
            memory.table.n = lora_n_segs(a.lora);
            if (memory.table.n == 0)
                return;
            named_sync(2, (ADAPTER_WARPS + 1) * 32);
            lora_table_look(memory.table, a.lora.n_parts, lane);
            if (narrow_staged<N, PAIR>(a, memory.table))
                narrow_fill_b<N, PAIR>(a, memory, lane);
        } else if (i < shape::RINGS && lane == 0)
            narrow_fill<N, PAIR>(a, &x_map, ring + i * shape::DEPTH * shape::STAGE,
                                 full + i * shape::DEPTH, empty + i * shape::DEPTH, i);
        return;
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(shape::MULTIPLY_REGISTERS));
    int wg = warp >> 2, me = shape::range_of(rank, wg); /* my range, and my share of the rows */
    int thread = (int)threadIdx.x & 127, g = lane >> 2, t = lane & 3;
    int n_clusters = (int)gridDim.x / cluster;
    int n_tiles = (a.n_m_tiles + shape::TILES - 1) / shape::TILES;
    int units_each = shape::units_each(a.n_ranges);
    /* Units are rows 0-7, 8-15, ...; mine are me, me + n_ranges, ... */
    int n_row_units = (a.n_rows + 7) / 8;
    int n_mine = n_row_units > me ? (n_row_units - me + a.n_ranges - 1) / a.n_ranges : 0;
    int begin = me * a.n_k / a.n_ranges, n = (me + 1) * a.n_k / a.n_ranges - begin;
    int my_ring = shape::PAIRED ? 0 : wg;
    const char *slots = ring + my_ring * shape::DEPTH * shape::STAGE;
    const int w_at = shape::PAIRED ? wg * TILE_BYTES : 0;
    uint64_t *my_full = full + my_ring * shape::DEPTH, *my_empty = empty + my_ring * shape::DEPTH;
    uint64_t *my_free = partials_free + (shape::PAIRED ? wg : 0);
    char *mine = partials + wg * (a.n_ranges - 1) * units_each * shape::PIECE + thread * 16;
    const char *my_deltas = deltas + wg * units_each * shape::PIECE + thread * 16;
    char *my_sums = sums + wg * units_each * shape::PIECE + thread * 16;
    bool adapters = lora_n_segs(a.lora) > 0, lag = adapters && shape::lags(a.n_ranges);

    /* Adds bias and deltas to the sums of a tile, which lie in my place of the first partial or,
     * with a lag, in one of their own. */
    auto finish = [&](int tile, int tile_no) {
        int buffer = lag ? tile_no % 2 : 0, turn = lag ? tile_no / 2 : tile_no, out[2];
        const char *from = lag ? my_sums : mine;
        const char *delta = my_deltas + buffer * shape::delta_bytes(a.n_ranges);
        outputs_of(out, a,
                   (tile * shape::TILES + (shape::PAIRED ? wg : 0)) * TILE + (warp & 3) * 16 + g);
        float bias[2] = {};
#pragma unroll
        for (int i = 0; i < 2; i++)
            if (a.bias != nullptr && out[i] >= 0)
                bias[i] = __ldg(a.bias + out[i]);
        if (adapters)
            barrier_wait(&deltas_full[buffer], turn & 1);
#pragma unroll 1
        for (int i = 0; i < n_mine; i++) {
            float4 v = *reinterpret_cast<const float4 *>(from + i * shape::PIECE);
            v = make_float4(v.x + bias[0], v.y + bias[0], v.z + bias[1], v.w + bias[1]);
            if (adapters) {
                float4 d = *reinterpret_cast<const float4 *>(delta + i * shape::PIECE);
                v = make_float4(v.x + d.x, v.y + d.y, v.z + d.z, v.w + d.w);
            }
            store_tile({v.x, v.y, v.z, v.w}, a, out, 8 * (me + i * a.n_ranges) + 2 * t);
        }
        __syncwarp();
        if (adapters && lane == 0)
            barrier_arrive(&deltas_free[buffer]);
    };

    int stage = 0, tile_no = 0;
    uint32_t phase = 0;
    for (int tile = (int)blockIdx.x / cluster; tile < n_tiles; tile += n_clusters, tile_no++) {
        float acc[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            acc[i] = 0;
        for (int k = 0; k < n; k++) {
            barrier_wait(&my_full[stage], phase);
            uint32_t at = shared_address(slots + stage * shape::STAGE);
            uint64_t w = wgmma_descriptor(at + w_at);
            uint64_t b = wgmma_descriptor(at + shape::TILES * TILE_BYTES);
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < 4; s++)
                wgmma<N>(acc, w + 2 * s, b + 2 * s, k > 0 || s > 0);
            wgmma_commit();
            wgmma_wait<0>();
            if (lane == 0)
                barrier_arrive(&my_empty[stage]);
            if (++stage == shape::DEPTH) {
                stage = 0;
                phase ^= 1;
            }
        }

        /* Hand the others their rows of my range. */
        if (thread == 0)
            barrier_expect(&partials_full[wg],
                           (uint32_t)(n_mine * (a.n_ranges - 1) * shape::PIECE));
        if (tile_no > 0)
            barrier_wait(my_free, (tile_no - 1) & 1);
#pragma unroll
        for (int u = 0; u < shape::UNITS; u++) {
            int owner = u % a.n_ranges, from = me < owner ? me : me - 1;
            int block = shape::PAIRED ? owner : owner >> 1, its = shape::PAIRED ? wg : owner & 1;
            char *to = partials +
                       ((its * (a.n_ranges - 1) + from) * units_each + u / a.n_ranges) *
                           shape::PIECE +
                       thread * 16;
            if (owner != me && u < n_row_units)
                store_remote(shared_address(to), block, &partials_full[its], acc[4 * u],
                             acc[4 * u + 1], acc[4 * u + 2], acc[4 * u + 3]);
        }
        if (lag && tile_no > 0)
            finish(tile - n_clusters, tile_no - 1);
        barrier_wait(&partials_full[wg], tile_no & 1);

        /* Add up mine, from +0 on so that no sum is -0. */
#pragma unroll
        for (int u = 0; u < shape::UNITS; u++) {
            if (u % a.n_ranges != me || u >= n_row_units)
                continue;
            char *at = mine + u / a.n_ranges * shape::PIECE;
            float4 sum = make_float4(0, 0, 0, 0);
            for (int r = 0; r < a.n_ranges; r++) {
                float4 v = make_float4(acc[4 * u], acc[4 * u + 1], acc[4 * u + 2], acc[4 * u + 3]);
                if (r != me)
                    v = *reinterpret_cast<float4 *>(at + (r < me ? r : r - 1) * units_each *
                                                             shape::PIECE);
                sum = make_float4(sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w);
            }
            *reinterpret_cast<float4 *>((lag ? my_sums : mine) +
                                        u / a.n_ranges * shape::PIECE) = sum;
        }
        if (!lag)
            finish(tile, tile_no);
        __syncwarp();
        if (lane < cluster && tile + n_clusters < n_tiles) /* else nobody waits for it, and that
                                                              block may be gone */
            barrier_arrive_remote(my_free, lane);
    }
    if (lag && tile_no > 0)
        finish((int)blockIdx.x / cluster + (tile_no - 1) * n_clusters, tile_no - 1);
}

#endif
