/* lora_expand.cuh: what a block of lora_expand.cu does, and how B comes to it. Part of
 * lora_expand.cu, whose head has the design. */
#ifndef TRIBUTARY_KERNELS_CUDA_LORA_EXPAND_CUH
#define TRIBUTARY_KERNELS_CUDA_LORA_EXPAND_CUH

#include "kernels/cuda/async.cuh"
#include "kernels/cuda/lora.cuh"

enum {
    EXPAND_WARPS = 8, /* that multiply */
    EXPAND_THREADS = EXPAND_WARPS * 32 + 32,
    EXPAND_UNIT = 16,           /* outputs: ranges are whole units */
    EXPAND_Y = 4,               /* units of y of a warp that are on their way */
    EXPAND_SEGS = 64,           /* of a tile of rows; more take the slow way */
    EXPAND_RANKS = 512,         /* of a segment; likewise */
    EXPAND_RING_MIN = 24 << 10, /* bytes */
    EXPAND_RING_MAX = 64 << 10,
    EXPAND_STAGES = 16, /* of a ring, at most */
    EXPAND_STEP = 32,   /* bytes of 16 ranks */
    EXPAND_TILES = 32,  /* of rows, that are cut by what they take */
    EXPAND_ENTRIES = EXPAND_TILES * (int)LORA_PARTS_MAX, /* a part of a tile each */
};
static_assert(EXPAND_RING_MIN >= EXPAND_UNIT * EXPAND_RANKS * 2, "a unit fits");

struct alignas(16) expand_cell { /* a segment that has rows in the tile */
    uintptr_t b;
    int32_t t_at;
    uint16_t rank;
    uint8_t begin, end; /* its rows among the tile's */
};

struct expand_args {
    bf16 *y;
    float *deltas; /* instead of y */
    int *any;      /* whether there are deltas; if not, none are stored */
    int n_rows, d_out;
    int tile_rows;   /* at most 8 NT */
    int tile_blocks; /* with the same rows; 0: the units of all tiles are cut as one row */
    int n_units;     /* of all parts */
    int ring_bytes;
    bool words; /* all that begins and ends in y does so at multiples of 16 bytes */
    struct lora_view v;
};

/* What a block is at: some rows, a part, and the segments that touch the rows. */
struct expand_place {
    int row0, n_rows, part;
    int first, end;     /* segments */
    int out, out_end;   /* of the part */
    int n;              /* cells; ranks above 0 */
    int rank, ranks;    /* the largest, and their sum */
    unsigned rows;      /* bit i: row0 + i is in a segment */
    int t_begin, t_end; /* what the cells have of a row of t' */
    int t_pitch;        /* bytes of a row in the copy of it; 0: it doesn't fit there */
    bool plain;         /* else the slow way */
    int m, group_outs, n_groups;
    bool pairs; /* any two cells of up to 16 ranks are in the ring together */
};

/* A tile's cells of a part: how many, and their ranks. */
struct expand_load {
    int n, ranks, rank_max;
};

/* NT: n8 tiles of rows. The ring lies behind it. */
template <int NT> struct alignas(16) expand_memory {
    static constexpr int M_MAX = NT == 1 ? 4 : 2; /* units of a warp in a group */
    static constexpr int Y_BYTES = 8 * NT * EXPAND_UNIT * EXPAND_Y * 2;       /* of a warp */
    static constexpr int T_BYTES = 8 * NT * (NT == 1 ? 17 : 9) * EXPAND_STEP; /* t' of a tile */

    /* Groups on their way: [EXPAND_Y / M, 8 NT rows, 16 M outputs] */
    char y[EXPAND_WARPS][Y_BYTES];
    char t[T_BYTES];
    struct expand_cell cells[EXPAND_SEGS];
    uint64_t full[EXPAND_STAGES], free[EXPAND_STAGES], meet; /* meet: of all threads */
    int64_t begins[EXPAND_STAGES]; /* the producer's: where the newest pieces lie */
    struct expand_place place;
    struct expand_load loads[EXPAND_ENTRIES];
    int ends[EXPAND_ENTRIES]; /* running sums of what they take */
    bool even, any;           /* any: some entry has cells */
};
static_assert(sizeof(expand_memory<4>) + EXPAND_RING_MAX <= 110 << 10, "fits beside lora.cu's");

__device__ static inline struct expand_cell cell_at(const struct expand_cell *cells, int cell)
{
    static_assert(sizeof(struct expand_cell) == 16, "read as one word");
    const uint4 raw = *reinterpret_cast<const uint4 *>(&cells[cell]);
    struct expand_cell e;
    memcpy(&e, &raw, sizeof e);
    return e;
}

/* Output (of a warp's in a group) that row i of half q of the matrix steps is. */
template <int M> __device__ static inline int output_at(int q, int i)
{
    return 4 * M * (i >> 1) + 2 * q + (i & 1);
}

/* ---- the producer
 * ---------------------------------------------------------------------------------------- */

/* Which segments touch the place's rows. */
__device__ static inline void place_find(struct expand_place &p, const struct lora_view &v,
                                         int n_segs, int lane)
{
    p.first = n_segs;
    p.end = 0;
    /* Up to the most that there are: no need to wait for the number. */
    for (int s0 = v.n_segs > 512 ? lora_first_seg(v, n_segs, p.row0) : 0; s0 < v.n_segs;
         s0 += 128) {
        struct lora_seg segs[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int s = s0 + 32 * i + lane;
            segs[i] = {INT32_MAX, 0, 0, 0};
            if (s < v.n_segs)
                segs[i] = lora_seg_at(v, s);
        }
        bool more = true;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            bool is = s0 + 32 * i + lane < n_segs;
            int begin = is ? segs[i].row_begin : INT32_MAX;
            int end = is && segs[i].n_rows > 0 ? begin + segs[i].n_rows : 0;
            unsigned hit = __ballot_sync(0xffffffffu, begin < p.row0 + p.n_rows && end > p.row0);
            more = more && !__any_sync(0xffffffffu, begin >= p.row0 + p.n_rows);
            if (hit == 0)
                continue;
            if (p.end == 0)
                p.first = s0 + 32 * i + __ffs((int)hit) - 1;
            p.end = s0 + 32 * i + 32 - __clz((int)hit);
        }
        if (!more)
            break;
    }
}

/* Gathers the cells of a part. */
__device__ static inline void place_fill(struct expand_place &p, struct expand_cell *cells,
                                         const struct lora_view &v, bool words, int lane)
{
    p.n = 0;
    p.plain = words && p.end - p.first <= EXPAND_SEGS;
    if (!p.plain)
        return;
    bool plain = true;
    unsigned rows = 0, rank = 0, ranks = 0, t_begin = INT32_MAX, t_end = 0;
#pragma unroll 1
    for (int s = p.first + lane; s - lane < p.end; s += 32) {
        struct lora_seg seg = {0, 0, 0, 0};
        struct lora_entry e = {};
        if (s < p.end)
            seg = lora_seg_at(v, s);
        if (seg.n_rows > 0)
            e = lora_entry_at(v, p.part, seg.slot);
        int begin = seg.row_begin - p.row0, end = begin + seg.n_rows;
        begin = begin > 0 ? begin : 0;
        end = end < p.n_rows ? end : p.n_rows;
        bool live = e.rank > 0 && begin < end;
        /* Is none of the ensemble before it? Those would touch the rows as well. */
        int before = __shfl_up_sync(0xffffffffu, seg.n_rows > 0 ? seg.row_begin : -1, 1);
        bool first = s == p.first || (lane > 0 && before >= 0 && before != seg.row_begin);
        unsigned all = __ballot_sync(0xffffffffu, live);
        if (live) {
            unsigned at = (unsigned)(first ? lora_part_at(v, seg.slot, p.part)
                                           : lora_t_at(v, s, seg, p.part));
            plain = plain && e.dtype == DTYPE_BF16 && e.rank % 4 == 0 && e.rank <= EXPAND_RANKS &&
                    e.b.addr % 16 == 0;
            rows |= 0xffffffffu >> (32 - (end - begin)) << begin;
            rank = rank > (unsigned)e.rank ? rank : (unsigned)e.rank;
            ranks += (unsigned)e.rank;
            t_begin = t_begin < at ? t_begin : at;
            t_end = t_end > at + (unsigned)e.rank ? t_end : at + (unsigned)e.rank;
            cells[p.n + __popc(all & ((1u << lane) - 1))] = {
                e.b.addr, (int32_t)at, (uint16_t)e.rank, (uint8_t)begin, (uint8_t)end};
        }
        p.n += __popc(all);
    }
    p.rows = __reduce_or_sync(0xffffffffu, rows);
    p.rank = (int)__reduce_max_sync(0xffffffffu, rank);
    p.ranks = (int)__reduce_add_sync(0xffffffffu, ranks);
    p.t_begin = (int)__reduce_min_sync(0xffffffffu, t_begin);
    p.t_end = (int)__reduce_max_sync(0xffffffffu, t_end);
    p.plain = __all_sync(0xffffffffu, plain);
}

/* How many units a group may have: as many as make all of the pieces fit the ring at once, if it
 * holds all the place's; else a quarter of it a piece (where ranks differ: half of it the largest),
 * or half of it in a small ring, if that gives more warps work, and where rows share one adapter,
 * whose work for a piece is then worth its wait. */
template <int NT>
__device__ static inline int units_of_group(int n_units, int n, int ranks, int rank, int ring_bytes)
{
    constexpr int GROUP = EXPAND_WARPS * expand_memory<NT>::M_MAX;
    int unit_bytes = EXPAND_UNIT * rank * 2, most = ring_bytes / (EXPAND_UNIT * ranks * 2);
    if (n_units > most) {
        int quarter = ring_bytes / 4 / unit_bytes, half = ring_bytes / 2 / unit_bytes;
        most = quarter;
        if (NT > 1 && n == 1)
            most = half;
        else if (ring_bytes < EXPAND_RING_MAX && most < EXPAND_WARPS)
            most = half < EXPAND_WARPS ? half : EXPAND_WARPS;
        if (ranks < n * rank) {
            int mean = ring_bytes / 4 * n / (EXPAND_UNIT * ranks * 2);
            mean = mean < half ? mean : half;
            most = most > mean ? most : mean;
        }
    }
    most = most < 1 ? 1 : most < GROUP ? most : GROUP;
    return most > 2 * EXPAND_WARPS ? most & ~3 : most > EXPAND_WARPS ? most & ~1 : most;
}

/* Cuts the place's outputs into groups of equal size. */
template <int NT> __device__ static inline void place_cut(struct expand_place &p, int ring_bytes)
{
    p.t_pitch = ((p.t_end - p.t_begin + 15) / 16 | 1) * EXPAND_STEP;
    if (p.n_rows * p.t_pitch > expand_memory<NT>::T_BYTES)
        p.t_pitch = 0;
    int n_units = (p.out_end - p.out + EXPAND_UNIT - 1) / EXPAND_UNIT;
    int most = units_of_group<NT>(n_units, p.n, p.ranks, p.rank, ring_bytes);
    int n_groups = (n_units + most - 1) / most, group = (n_units + n_groups - 1) / n_groups;
    p.m = group > 2 * EXPAND_WARPS ? 4 : group > EXPAND_WARPS ? 2 : 1;
    group = (group + p.m - 1) & -p.m; /* not above most */
    p.n_groups = (n_units + group - 1) / group;
    p.group_outs = group * EXPAND_UNIT;
    /* Of pieces of one size two stages will do; of others a third, as one of them may lie behind
     * the ring's end. */
    p.pairs = ring_bytes / (p.group_outs * 2) >= (p.ranks == p.n * p.rank ? 2 * p.rank : 3 * 16);
}

/* Where pieces lie in the ring. Each uses the next of EXPAND_STAGES pairs of barriers. */
struct expand_ring {
    unsigned no;     /* of the next piece */
    unsigned oldest; /* the producer's: that isn't known to have been read */
    int at;          /* bytes; a piece that would lie over the end lies at the beginning */

    __device__ int next(int bytes, int ring_bytes)
    {
        int begin = at + bytes <= ring_bytes ? at : 0;
        at = begin + bytes;
        no++;
        return begin;
    }
    __device__ unsigned slot() const
    {
        return no % EXPAND_STAGES;
    }
    __device__ unsigned phase() const
    {
        return no / EXPAND_STAGES & 1;
    }
};

/* Fetches the place's pieces, by one thread. Positions count on from turn to turn of the ring, so
 * that a piece's place is free when all are that begin a ring's size before its end. Every
 * barrier's phase is waited for before the next begins (synccheck asks for it), so first those of
 * the place before this one, which has been read. */
template <int NT>
__device__ static inline void ring_fill(expand_memory<NT> &m, char *ring, int ring_bytes,
                                        const struct expand_place &p, struct expand_ring &r)
{
    int64_t turn = 0;
    for (; r.oldest != r.no; r.oldest++)
        barrier_wait(&m.free[r.oldest % EXPAND_STAGES], r.oldest / EXPAND_STAGES & 1);
    r.at = 0;
#pragma unroll 1
    for (int out = p.out; out < p.out_end; out += p.group_outs) {
        int left = p.out_end - out;
        uint32_t n = (uint32_t)(left < p.group_outs ? left : p.group_outs);
#pragma unroll 1
        for (int cell = 0; cell < p.n; cell++) {
            const struct expand_cell e = cell_at(m.cells, cell);
            uint32_t row_bytes = e.rank * 2u;
            unsigned slot = r.slot(), no = r.no;
            int bytes = p.group_outs * (int)row_bytes;
            if (r.at + bytes > ring_bytes)
                turn += ring_bytes;
            int to = r.next(bytes, ring_bytes);
            int64_t end = turn + to + bytes - ring_bytes;
            while (r.oldest != no &&
                   (no - r.oldest >= EXPAND_STAGES || m.begins[r.oldest % EXPAND_STAGES] < end)) {
                barrier_wait(&m.free[r.oldest % EXPAND_STAGES], r.oldest / EXPAND_STAGES & 1);
                r.oldest++;
            }
            m.begins[slot] = turn + to;
            barrier_expect(&m.full[slot], n * row_bytes);
            copy_bytes(ring + to,
                       reinterpret_cast<const char *>(e.b) + (uint64_t)(uint32_t)out * row_bytes,
                       n * row_bytes, &m.full[slot]);
        }
    }
}

/* ---- who does what
 * ------------------------------------------------------------------------------------ */

/* A block's work goes from one of these to another: an entry is a part of a tile of rows, tile
 * after tile; a unit is 16 of its outputs. */
struct expand_work {
    int entry, unit;

    __device__ bool before(const struct expand_work &end) const
    {
        return entry < end.entry || (entry == end.entry && unit < end.unit);
    }
};

__device__ static inline int units_of(const struct expand_args &a, int part)
{
    return (a.v.part[part].d_out + EXPAND_UNIT - 1) / EXPAND_UNIT;
}

/* By their number, of all tiles' in a row. */
__device__ static inline void work_by_units(const struct expand_args &a, struct expand_work &begin,
                                            struct expand_work &end)
{
    int n_tiles = (a.n_rows + a.tile_rows - 1) / a.tile_rows, block = (int)blockIdx.x;
    int unit, unit_end;
    if (a.tile_blocks > 0) {
        unit = unit_end = block / a.tile_blocks * a.n_units;
        block %= a.tile_blocks;
        unit += a.n_units * block / a.tile_blocks;
        unit_end += a.n_units * (block + 1) / a.tile_blocks;
    } else {
        int64_t n_all = (int64_t)n_tiles * a.n_units;
        unit = (int)(n_all * block / gridDim.x);
        unit_end = (int)(n_all * (block + 1) / gridDim.x);
    }
    auto at = [&](int u) {
        struct expand_work w = {u / a.n_units * a.v.n_parts, u % a.n_units};
        for (int part = 0; part + 1 < a.v.n_parts && w.unit >= units_of(a, part); part++) {
            w.unit -= units_of(a, part);
            w.entry++;
        }
        return w;
    };
    begin = at(unit);
    end = at(unit_end);
}

/* What each entry has to fetch, by all threads. */
template <int NT>
__device__ static inline void loads_count(expand_memory<NT> &m, const struct expand_args &a,
                                          int n_segs)
{
    int n_parts = a.v.n_parts;
    for (int i = (int)threadIdx.x; i < EXPAND_ENTRIES; i += EXPAND_THREADS)
        m.loads[i] = {0, 0, 0};
    __syncthreads();
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < n_segs * n_parts; i += EXPAND_THREADS) {
        struct lora_seg seg = lora_seg_at(a.v, i / n_parts);
        int rank = lora_rank(a.v, i % n_parts, seg.slot);
        int end = seg.row_begin + seg.n_rows < a.n_rows ? seg.row_begin + seg.n_rows : a.n_rows;
        for (int row = seg.row_begin / a.tile_rows * a.tile_rows;
             row < end && rank > 0 && seg.n_rows > 0; row += a.tile_rows) {
            struct expand_load *load = &m.loads[row / a.tile_rows * n_parts + i % n_parts];
            atomicAdd(&load->n, 1);
            atomicAdd(&load->ranks, rank);
            atomicMax(&load->rank_max, rank);
        }
    }
}

/* About how long, in four cycles, a unit of an entry takes: B's bytes, a share of what a group's
 * pieces take whatever their size, and a unit of deltas. */
template <int NT>
__device__ static inline int time_of(const struct expand_load &load, const struct expand_args &a,
                                     int n_units)
{
    if (load.n == 0)
        return 2;
    int group = units_of_group<NT>(n_units, load.n, load.ranks, load.rank_max, a.ring_bytes);
    return load.ranks / 2 + 75 * (load.n + 1) / group + 6;
}

/* Running sums over the entries, by a warp; and whether all tiles take about as long. */
template <int NT>
__device__ static inline void loads_sum(expand_memory<NT> &m, const struct expand_args &a, int lane)
{
    static_assert(EXPAND_TILES == 32, "a lane each");
    int n_parts = a.v.n_parts, n_tiles = (a.n_rows + a.tile_rows - 1) / a.tile_rows, before = 0;
    int n = n_tiles * n_parts;
#pragma unroll 1
    for (int i0 = 0; i0 < n; i0 += 32) {
        int i = i0 + lane, sum = 0;
        if (i < n) {
            int n_units = units_of(a, i % n_parts);
            sum = n_units * time_of<NT>(m.loads[i], a, n_units);
        }
        sum = warp_running_sum(sum, lane);
        if (i < n)
            m.ends[i] = before + sum;
        before += __shfl_sync(0xffffffffu, sum, 31);
    }
    __syncwarp();
    int tile = 0;
    if (lane < n_tiles)
        tile = m.ends[(lane + 1) * n_parts - 1] - (lane > 0 ? m.ends[lane * n_parts - 1] : 0);
    int most = __reduce_max_sync(0xffffffffu, tile);
    bool any = false;
    for (int i = lane; i < n; i += 32)
        any = any || m.loads[i].n > 0;
    any = __any_sync(0xffffffffu, any);
    if (lane == 0) {
        m.even = (int64_t)most * n_tiles * 8 <= (int64_t)before * 9;
        m.any = any;
    }
}

/* Where block b begins, so that all take equally long. */
template <int NT>
__device__ static inline struct expand_work work_by_load(const expand_memory<NT> &m,
                                                         const struct expand_args &a, int b)
{
    int n = (a.n_rows + a.tile_rows - 1) / a.tile_rows * a.v.n_parts;
    if (b >= (int)gridDim.x)
        return {n, 0};
    int from = (int)((int64_t)m.ends[n - 1] * b / gridDim.x);
    int entry = lora_find(m.ends, n, from), begin = entry > 0 ? m.ends[entry - 1] : 0;
    int n_units = units_of(a, entry % a.v.n_parts);
    return {entry, (int)((int64_t)(from - begin) * n_units / (m.ends[entry] - begin))};
}

#endif
