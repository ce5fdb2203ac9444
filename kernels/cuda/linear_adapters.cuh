/* linear_adapters.cuh: the adapters' warps of linear_narrow.cuh and linear_middle.cuh: t first
 * (linear_shrink.cuh), then the deltas of a block's tiles, from shared memory where they can be.
 * Part of linear.cu, whose head has the design. S is the shape of the kernel: struct narrow, or
 * middle. */
#ifndef TRIBUTARY_KERNELS_CUDA_LINEAR_ADAPTERS_CUH
#define TRIBUTARY_KERNELS_CUDA_LINEAR_ADAPTERS_CUH

#include "kernels/cuda/linear_direct.cuh"

/* The adapters' shared memory. */
template <class S> struct adapter_memory {
    const typename S::found *found;
    const typename S::run *run; /* what for_each_turn goes by */
    struct b_note *notes;       /* [B_SLOTS, GROUP, parts] */
    char *b, *t, *deltas;       /* deltas: of a tile or two, as the warpgroups hold their sums */
    uint64_t *b_full, *b_free;  /* [B_SLOTS] */
    uint64_t *deltas_full, *deltas_free; /* [2], or [1] without a lag */
};

/* Rows of t' in shared memory lie in different banks. */
__device__ static inline int t_width(int width)
{
    return width + 4;
}

__device__ static inline int t_bytes(int n_units, int width)
{
    return 8 * n_units * t_width(width) * 2;
}

/* Whether deltas are computed from shared memory: what is needed fits, and can be copied in bulk.
 * The others go straight to memory for all that they need, which takes a trip for every few ranks.
 */
template <class S>
__device__ static inline bool narrow_staged(const struct linear_args &a,
                                            const typename S::found &found)
{
    return a.b_in_bulk && found.head.plain && found.head.rank > 0 &&
           found.head.rank * TILE * 2 <= S::B_BYTES &&
           t_bytes(S::some_t_units(a.n_ranges), found.head.width) <= S::T_BYTES;
}

/* Whether t' of all of a block's rows fits. */
template <class S>
__device__ static inline bool has_all_t(const struct linear_args &a, const typename S::found &found)
{
    return t_bytes(S::all_t_units(a.n_ranges), found.head.width) <= S::T_BYTES;
}

/* B comes in groups: of some segments, all that a tile's outputs need, a slot of the ring each. A
 * group is 64 ranks or fewer, in steps of 16 ranks of a segment, for each as many as the linear's
 * largest rank has; or, where that is more than 32, a segment, in as many steps as it has itself.
 * In a slot, a segment's outputs lie in the order in which y has them; in a tile of an interleaved
 * pair, 32 of the first half and then 32 of the second. Each of the adapters' warps has 16.
 *
 * Tried for mixed ranks, on an H200: small segments packed into a slot with a note for every step,
 * pieces of outputs for ranks of more than 64, and rows of t' each as wide as its rank. With one
 * adapter of rank 256 among others of 16 the four products of a layer took 513 us instead of 2,740
 * (128 rows: neither t' nor B fits here, and all go straight to memory); but those of equal ranks
 * took 2 to 10 % longer, for registers, and ranks of 8 to 128 as well. Such steps go apart now
 * (linear.cu).
 *
 * A warp is alone on its quarter of the multiprocessor, so what deltas cost is instructions, some
 * five cycles each: 500 cycles for a segment, when each warp found out for itself where its pieces
 * lie. The warps that bring B have time for that, and leave a note for each piece. */
struct b_note { /* of a part of a segment */
    int32_t b;  /* where output 0 of the tile would be in the slot, in bytes */
    int32_t t;  /* where its ranks begin in a row of t', in bytes */
    int32_t rank;
    int32_t rows; /* of two units of eight rows, which are its: a bit each */
};

struct b_ring {
    int group;     /* segments of a group: 1, 2 or 4 */
    int shift;     /* log2 of the steps of a segment */
    int seg_bytes; /* from one to the next in a slot */
    int slot_bytes, n_slots;
    int slot;       /* the next to be filled, or read */
    uint32_t phase; /* of its barrier */
};

template <class S>
__device__ static inline struct b_ring b_ring_of(const typename S::found &found, uint32_t phase)
{
    struct b_ring r;
    r.shift = 0;
    while (16 << r.shift < found.head.rank)
        r.shift++;
    int most = S::GROUP >> r.shift;
    /* Slots that can't be filled would be fewer slots. */
    int wanted = found.head.run <= 1 ? 1 : found.head.run == 2 ? 2 : 4;
    r.group = wanted < most ? wanted : most > 1 ? most : 1;
    r.seg_bytes = found.head.rank * TILE * 2;
    r.slot_bytes = r.group * r.seg_bytes;
    r.n_slots = S::B_BYTES / r.slot_bytes;
    r.n_slots = r.n_slots < S::B_SLOTS ? r.n_slots : (int)S::B_SLOTS;
    r.slot = 0;
    r.phase = phase;
    return r;
}

__device__ static inline void b_ring_next(struct b_ring &r)
{
    if (++r.slot == r.n_slots) {
        r.slot = 0;
        r.phase ^= 1;
    }
}

/* What a tile has of a part: its outputs from .. to - 1, of which the first is output `at` of the
 * tile, in the order above. Nothing: from >= to. */
struct tile_part {
    int from, to, at;
};

__device__ static inline struct tile_part tile_part_of(const struct linear_args &a, int m_tile,
                                                       int p)
{
    int width = a.pair_width > 0 ? TILE / 2 : TILE;
    int begin = a.lora.part[p].out_begin, n = a.lora.part[p].d_out;
    bool second = a.pair_width > 0 && begin >= a.pair_width;
    int first = m_tile * width - begin + (second ? a.pair_width : 0);
    struct tile_part x;
    x.from = first > 0 ? first : 0;
    x.to = first + width < n ? first + width : n;
    x.at = x.from - first + (second ? TILE / 2 : 0);
    return x;
}

/* The segments that have rows in two units of eight, ascending; each once. */
struct two_runs {
    int begin0, n0, begin1, n;
};

template <class Found>
__device__ static inline struct two_runs two_runs_of(const Found &found, const int (&row)[2])
{
    struct lora_run first = found.units[row[0] / 8], second = {0, 0};
    if (row[1] >= 0)
        second = found.units[row[1] / 8];
    struct two_runs r;
    r.begin0 = first.begin;
    r.n0 = first.end - first.begin;
    r.begin1 = second.begin > first.end ? second.begin : first.end;
    r.n = r.n0 + (second.end > r.begin1 ? second.end - r.begin1 : 0);
    return r;
}

__device__ static inline int seg_of(const struct two_runs &r, int i)
{
    return i < r.n0 ? r.begin0 + i : r.begin1 + i - r.n0;
}

/* What deltas a block computes, in turns, each a buffer of them: for warpgroup wg, of its tile of
 * 64 outputs, the units of eight rows first(wg), first(wg) + step, ... below end. S::for_each_turn
 * calls with one after the other. (No arrays: what is indexed lies in memory.) */
struct delta_turn {
    int tile0, tile1, first0, first1, step, end;

    __device__ int tile(int wg) const
    {
        return wg == 0 ? tile0 : tile1;
    }
    __device__ int first(int wg) const
    {
        return wg == 0 ? first0 : first1;
    }
};

/* Calls f(warpgroup, its number of the first unit, rows) for every two units of a turn. Joint: the
 * warpgroups have one unit each, of the same outputs, and these two are one call's. */
template <class S, typename Function>
__device__ static inline void
for_each_delta(const struct linear_args &a, const struct delta_turn &turn, bool joint, Function &&f)
{
#pragma unroll 1
    for (int wg = 0; wg < (joint ? 1 : 2); wg++) {
        int u = turn.first(wg);
#pragma unroll 1
        for (int i = 0; i < S::turn_units(a.n_ranges) && u < turn.end; i += 2) {
            int next = joint ? turn.first1 : u + turn.step;
            bool both = (joint || i + 1 < S::turn_units(a.n_ranges)) && next < turn.end;
            const int row[2] = {8 * u, both ? 8 * next : -1};
            f(wg, i, row);
            u += 2 * turn.step;
        }
    }
}

__device__ static inline int rows_of(const struct lora_span &span, int row)
{
    int begin = span.row_begin - row, end = span.row_end - row;
    begin = begin < 0 ? 0 : begin > 8 ? 8 : begin;
    end = end < 0 ? 0 : end > 8 ? 8 : end;
    return row < 0 || begin >= end ? 0 : (1 << end) - (1 << begin);
}

/* Brings B, by two warps of its own that take turns (what one group takes of one warp is more than
 * its bytes take): a lane has a part of a segment. */
template <class S>
__device__ static void narrow_fill_b(const struct linear_args &a, const struct adapter_memory<S> &m,
                                     unsigned mine, int lane)
{
    static_assert(S::GROUP * LORA_PARTS_MAX <= 32, "a lane each");
    int n_parts = a.lora.n_parts, j = lane / n_parts, p = lane % n_parts;
    struct b_ring ring = b_ring_of<S>(*m.found, 1); /* the first round waits for nobody */
    int rank_most = m.found->head.rank;
    struct tile_part part = {0, 0, 0};
    /* The turns. (Of a slot alone, each phase is known only to who has seen the one before.) */
    unsigned no = 0, others = ring.n_slots > 1 ? 1 : 0;
    int last_tile = -1;
    bool joint = S::one_unit_each(a.n_ranges) && has_all_t<S>(a, *m.found);
    S::for_each_turn(a, m.run, [&](int, const struct delta_turn &turn) {
        for_each_delta<S>(a, turn, joint, [&](int wg, int, const int(&row)[2]) {
            if (turn.tile(wg) != last_tile) {
                last_tile = turn.tile(wg);
                part = tile_part_of(a, last_tile, p);
            }
            struct two_runs run = two_runs_of(*m.found, row);
#pragma unroll 1
            for (int k = 0; k < run.n; k += ring.group, b_ring_next(ring)) {
                if ((no++ & others) != mine)
                    continue;
                uint32_t bytes = 0;
                const char *from = nullptr;
                struct b_note note = {};
                int to = j * ring.seg_bytes + part.at * rank_most * 2;
                if (j < ring.group && k + j < run.n && part.from < part.to) {
                    int s = seg_of(run, k + j);
                    const struct lora_cell *cell = &m.found->cells[s * n_parts + p];
                    note.rank = cell->rank;
                    note.t = cell->t_at * 2;
                    note.b = to - part.at * note.rank * 2;
                    note.rows = rows_of(m.found->spans[s], row[0]) |
                                rows_of(m.found->spans[s], row[1]) << 8;
                    bytes = (uint32_t)((part.to - part.from) * note.rank * 2);
                    from = reinterpret_cast<const char *>(cell->b) +
                           (uint64_t)part.from * (unsigned)note.rank * 2;
                }
                uint32_t all = __reduce_add_sync(0xffffffffu, bytes);
                barrier_wait(&m.b_free[ring.slot], ring.phase);
                if (j < ring.group)
                    m.notes[(ring.slot * ring.group + j) * n_parts + p] = note;
                if (lane == 0)
                    barrier_expect(&m.b_full[ring.slot], all);
                else
                    barrier_arrive(&m.b_full[ring.slot]);
                __syncwarp();
                if (bytes > 0)
                    copy_bytes(m.b + ring.slot * ring.slot_bytes + to, from, bytes,
                               &m.b_full[ring.slot]);
            }
        });
    });
}

/* The part that a tile's outputs first .. first + 7 are of, or -1. */
__device__ static inline int part_of(const struct linear_args &a, int m_tile, int first)
{
    int found = -1;
#pragma unroll
    for (int p = 0; p < LORA_PARTS_MAX; p++) {
        struct tile_part part = tile_part_of(a, m_tile, p);
        if (p < a.lora.n_parts && part.from < part.to && first >= part.at &&
            first < part.at + part.to - part.from)
            found = p;
    }
    return found;
}

__device__ static inline uint2 load_shared_8(uint32_t at)
{
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(at));
    return v;
}

__device__ static inline struct b_note load_note(uint32_t at)
{
    struct b_note n;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(n.b), "=r"(n.t), "=r"(n.rank), "=r"(n.rows)
                 : "r"(at));
    return n;
}

/* Adds a group of segments to the deltas of two units of rows: of the outputs o and o + 8 (the
 * lane's rows g and g + 8), where they are live. In shared memory: slot, notes (of the part,
 * n_parts apart), and t' of the lane's row g in the first unit and, t_unit bytes on, in the second.
 */
__device__ static inline void narrow_group(float (&c)[2][4], uint32_t slot, uint32_t notes,
                                           int n_parts, int n_steps, int shift, int o, bool live0,
                                           bool live1, uint32_t t, uint32_t t_unit, int lane)
{
    enum { STEPS = 2 };
    int g = lane >> 2, t4 = lane % 4 * 4;
#pragma unroll 1
    for (int h = 0; h < n_steps; h += STEPS) {
        uint2 x[STEPS], y[STEPS], f[STEPS][2];
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            int j = (h + i) >> shift, r = t4 + (h + i - (j << shift)) * 16;
            x[i] = y[i] = f[i][0] = f[i][1] = make_uint2(0, 0);
            struct b_note note = {0, 0, 0, 0};
            if (i == 0 || h + i < n_steps)
                note = load_note(notes + (uint32_t)(j * n_parts) * sizeof note);
            bool inside = r < note.rank;
            uint32_t b = slot + (uint32_t)(note.b + (o * note.rank + r) * 2);
            uint32_t at = t + (uint32_t)(note.t + r * 2);
            if (inside && live0)
                x[i] = load_shared_8(b);
            if (inside && live1)
                y[i] = load_shared_8(b + (uint32_t)note.rank * 16);
            if (inside && (note.rows >> g & 1))
                f[i][0] = load_shared_8(at);
            if (inside && (note.rows >> g & 256))
                f[i][1] = load_shared_8(at + t_unit);
        }
#pragma unroll
        for (int i = 0; i < STEPS; i++)
#pragma unroll
            for (int u = 0; u < 2; u++)
                mma_bf16(c[u], x[i].x, y[i].x, x[i].y, y[i].y, f[i][u].x, f[i][u].y);
    }
}

/* Adds one segment, in as many steps as it has. (With a step as a function that both loops call,
 * a layer takes 4 % longer at rank 64.) */
__device__ static inline void narrow_segment(float (&c)[2][4], uint32_t slot, uint32_t note_at,
                                             int o, bool live0, bool live1, uint32_t t,
                                             uint32_t t_unit, int lane)
{
    int g = lane >> 2, t4 = lane % 4 * 4;
    struct b_note note = load_note(note_at);
    uint32_t b = slot + (uint32_t)(note.b + (o * note.rank + t4) * 2);
    uint32_t at = t + (uint32_t)(note.t + t4 * 2), eight = (uint32_t)note.rank * 16;
    bool has0 = note.rows >> g & 1, has1 = note.rows >> g & 256;
#pragma unroll 1
    for (int r = t4; r - t4 < note.rank; r += 32) {
        uint2 x[2], y[2], f[2][2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            x[i] = y[i] = f[i][0] = f[i][1] = make_uint2(0, 0);
            bool inside = r + 16 * i < note.rank;
            if (inside && live0)
                x[i] = load_shared_8(b + 32 * i);
            if (inside && live1)
                y[i] = load_shared_8(b + eight + 32 * i);
            if (inside && has0)
                f[i][0] = load_shared_8(at + 32 * i);
            if (inside && has1)
                f[i][1] = load_shared_8(at + 32 * i + t_unit);
        }
        b += 64;
        at += 64;
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int u = 0; u < 2; u++)
                mma_bf16(c[u], x[i].x, y[i].x, x[i].y, y[i].y, f[i][u].x, f[i][u].y);
    }
}

/* Puts the deltas of a warp's 16 outputs where the warps that hold the sums have theirs. */
__device__ static inline void put_deltas(char *to, const float (&c)[4], bool pair, int warp,
                                         int lane)
{
    if (!pair) {
        *reinterpret_cast<float4 *>(to + (warp * 32 + lane) * 16) = make_float4(c[0], c[1], c[2],
                                                                                c[3]);
        return;
    }
    /* Those have eight of each half (linear.cuh); this one has 16 of one. */
    char *mine = to + (warp % 2 * 64 + lane) * 16 + warp / 2 * 8;
    *reinterpret_cast<float2 *>(mine) = make_float2(c[0], c[1]);
    *reinterpret_cast<float2 *>(mine + 32 * 16) = make_float2(c[2], c[3]);
}

/* Copies t' of so many units of eight rows, unit_of(i) each, into shared memory, as it comes. */
template <class S, typename Unit>
__device__ static inline void narrow_stage_t(const struct linear_args &a,
                                             const struct adapter_memory<S> &m, int n_units,
                                             int width, int thread, Unit &&unit_of)
{
    enum { AHEAD = 8, THREADS = ADAPTER_WARPS * 32 };
    int n_rows = 8 * n_units, words = m.found->head.width / 2;
#pragma unroll 1
    for (int i0 = thread; i0 < n_rows * words; i0 += AHEAD * THREADS) {
        uint64_t w[AHEAD];
        const uint64_t *from[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            int i = i0 + j * THREADS, r = i / words, at = i % words * 2;
            int row = 8 * unit_of(r / 8) + r % 8;
            bool is_there = i < n_rows * words && row < S::ROWS && at < m.found->t_end[row];
            from[j] = is_there ? word_of_t(a, row, at) : nullptr;
        }
        await_words(w, m.found->head.tag, [&](int j) { return from[j]; });
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            int i = i0 + j * THREADS;
            if (from[j] != nullptr)
                *reinterpret_cast<uint32_t *>(m.t + (i / words * width + i % words * 2) *
                                                        2) = (uint32_t)w[j];
        }
    }
}

/* Whether each block adds up the chains of its own rows, straight into shared memory: one trip
 * through L2 instead of two, where that is little. */
template <class S>
__device__ static inline bool sums_here(const struct linear_args &a, const typename S::found &found)
{
    enum { UNITS_MAX = 4 };
    int n_row_units = a.n_rows > 8 ? 2 : 1, n_parts = S::one_tile(a) ? 1 : a.lora.n_parts;
    return S::one_unit_each(a.n_ranges) && a.n_chains <= CHAINS_AHEAD &&
           found.head.n_segs * n_parts * ((found.head.rank + 15) / 16) * n_row_units <= UNITS_MAX;
}

/* Does so. Of a block's only tile, what its outputs need. */
template <class S>
__device__ static void narrow_sum_t(const struct linear_args &a, const struct adapter_memory<S> &m,
                                    int width, int thread)
{
    const typename S::found &found = *m.found;
    int rank = thread % 16, only = S::one_tile(a) ? S::first_tile() : -1;
#pragma unroll 1
    for (int unit = 0; unit < found.head.n_units; unit++) {
        struct shrink_unit u = shrink_unit_at(a.lora, found, unit);
        int row = u.row + thread / 16, at = S::t_row(row, a.n_ranges);
        bool live = row < u.row_end && at >= 0 && u.rank0 + rank < u.cell.rank;
        if (only >= 0) {
            struct tile_part part = tile_part_of(a, only, u.part);
            live = live && part.from < part.to;
        }
        if (!__any_sync(0xffffffffu, live))
            continue;
        const uint64_t *chains = a.tag_chains + (int64_t)unit * a.n_chains * LORA_UNIT + thread;
        uint64_t w[CHAINS_AHEAD];
        await_words(w, found.head.tag, [&](int j) {
            return live && j < a.n_chains ? chains + j * LORA_UNIT : nullptr;
        });
        float total = add_chains(0, w, 0, a.n_chains),
              next = __shfl_down_sync(0xffffffffu, total, 1);
        if (live && rank % 2 == 0)
            *reinterpret_cast<uint32_t *>(m.t + (at * width + u.cell.t_at + u.rank0 + rank) * 2) =
                pack_bf16(u.cell.scale * total, u.cell.scale * next);
    }
}

/* Asks for what the linear found, by all lanes of the adapters' warps. The lists are copied as far
 * as they could be used; behind n_segs they hold something old. */
template <class S>
__device__ static void narrow_ask_found(const struct linear_args &a, void *to, int thread)
{
    typedef typename S::found found;
    const char *from = reinterpret_cast<const char *>(a.lora.found);
    auto copy = [&](size_t at, size_t from_at, size_t bytes) {
        for (int i = thread * 16; i < (int)bytes; i += ADAPTER_WARPS * 32 * 16)
            copy_16(static_cast<char *>(to) + at + i, from + from_at + i);
    };
    size_t n_cells = (size_t)(S::SEGS * a.lora.n_parts);
    copy(0, 0, sizeof(struct lora_head));
    copy(offsetof(found, t_end), offsetof(struct lora_found, t_end), S::ROWS * sizeof(int32_t));
    copy(offsetof(found, units), offsetof(struct lora_found, units), sizeof found::units);
    copy(offsetof(found, spans), offsetof(struct lora_found, spans),
         S::SEGS * sizeof(struct lora_span));
    copy(offsetof(found, unit_end), offsetof(struct lora_found, unit_end),
         n_cells * sizeof(int32_t));
    copy(offsetof(found, cells), offsetof(struct lora_found, cells),
         n_cells * sizeof(struct lora_cell));
}

/* Has the linear anything of adapters to add? */
template <class S> __device__ static inline bool has_deltas(const typename S::found &found)
{
    return found.head.n_segs > 0 && (!S::APART || found.head.rank > 0);
}

/* The adapters' warps, where the deltas lie in memory: brings those of each tile. */
template <class S>
__device__ static void fetch_deltas(const struct linear_args &a, const struct adapter_memory<S> &m)
{
    enum { AHEAD = 4 };
    int thread = (int)threadIdx.x - NARROW_ADAPTERS * 32, warp = thread >> 5, lane = thread & 31;
    int n_buffers = S::n_buffers(a.n_ranges), n_units = S::turn_units(a.n_ranges);
    pdl_wait();
    S::for_each_turn(a, m.run, [&](int no, const struct delta_turn &turn) {
        int buffer = no % n_buffers, round = no / n_buffers;
        char *deltas = m.deltas + buffer * S::delta_bytes(a.n_ranges) + thread * 16;
        if (round > 0)
            barrier_wait(&m.deltas_free[buffer], (round - 1) & 1);
#pragma unroll 1
        for (int wg = 0; wg < 2; wg++) {
            int out[2], first = turn.first(wg);
            outputs_of(out, a, turn.tile(wg) * TILE + warp * 16 + (lane >> 2));
            bool live0 = has_part(a, out[0]), live1 = has_part(a, out[1]);
#pragma unroll 1
            for (int i0 = 0; i0 < n_units && first + i0 * turn.step < turn.end; i0 += AHEAD) {
                float d[AHEAD][4];
#pragma unroll
                for (int j = 0; j < AHEAD; j++) {
                    int u = first + (i0 + j) * turn.step;
                    bool is = i0 + j < n_units && u < turn.end;
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        int row = 8 * u + 2 * (lane & 3) + r;
                        const float *from = a.deltas + (int64_t)row * a.d_out;
                        bool there = is && row < a.n_rows;
                        d[j][r] = there && live0 ? __ldcg(from + out[0]) : 0;
                        d[j][2 + r] = there && live1 ? __ldcg(from + out[1]) : 0;
                    }
                }
#pragma unroll
                for (int j = 0; j < AHEAD; j++)
                    if (i0 + j < n_units)
                        *reinterpret_cast<float4 *>(deltas + (wg * n_units + i0 + j) * S::PIECE) =
                            make_float4(d[j][0], d[j][1], d[j][2], d[j][3]);
            }
        }
        barrier_arrive(&m.deltas_full[buffer]);
    });
}

/* Everything else that the adapters' warps do. */
template <class S>
__device__ static void narrow_adapters(const struct linear_args &a,
                                       const struct adapter_memory<S> &m)
{
    int thread = (int)threadIdx.x - NARROW_ADAPTERS * 32, warp = thread >> 5, lane = thread & 31;
    int g = lane >> 2;
    const typename S::found &found = *m.found;

    bool staged = narrow_staged<S>(a, found), once = has_all_t<S>(a, found);
    bool whole = (int64_t)found.head.n_units * a.n_chains * LORA_UNIT > a.n_tag_chains;
    bool here = staged && once && !whole && sums_here<S>(a, found);
    narrow_chains(a, found, whole, warp, lane);
    if (!whole && !here)
        narrow_sums(a, found, thread);
    if (warp == ADAPTER_WARPS - 1 && a.next.n_parts > 0)
        lora_prefetch_next(a.next, found.head.n_segs, a.next_d_in, lane);
    int width = t_width(found.head.width);
    bool joint = once && S::one_unit_each(a.n_ranges);
    int n_t = once ? S::all_t_units(a.n_ranges) : S::some_t_units(a.n_ranges);
    bool has_t = false;
    struct b_ring ring = b_ring_of<S>(found, 0);
    bool pair = a.pair_width > 0;
    int n_parts = a.lora.n_parts;
    int n_buffers = S::n_buffers(a.n_ranges);
    int last_tile = -1, p0 = -1, p1 = -1; /* the parts of a warp's outputs */
    S::for_each_turn(a, m.run, [&](int no, const struct delta_turn &turn) {
        int buffer = no % n_buffers, round = no / n_buffers;
        char *deltas = m.deltas + buffer * S::delta_bytes(a.n_ranges);
        if (round > 0)
            barrier_wait(&m.deltas_free[buffer], (round - 1) & 1);
        for_each_delta<S>(a, turn, joint, [&](int wg, int i, const int(&row)[2]) {
            float c[2][4] = {};
            int tile = turn.tile(wg);
            if (tile != last_tile) {
                p0 = part_of(a, tile, warp * 16);
                p1 = part_of(a, tile, warp * 16 + 8);
                last_tile = tile;
            }
            if (staged && i == 0 && (once ? !has_t : S::ROWS_OF_WG || wg == 0 || !has_t)) {
                if (has_t)
                    named_sync(2, ADAPTER_WARPS * 32); /* all have read what was there */
                if (here)
                    narrow_sum_t<S>(a, m, width, thread);
                else
                    narrow_stage_t<S>(a, m, n_t, width, thread, [&](int unit) {
                        return S::t_unit(turn, wg, unit, a.n_ranges, once);
                    });
                named_sync(1, ADAPTER_WARPS * 32);
                has_t = true;
            }
            if (staged) {
                uint32_t t = shared_address(m.t) +
                             (uint32_t)(((S::t_first(turn, wg, a.n_ranges, once) + i) * 8 + g) *
                                        width * 2);
                int n = two_runs_of(found, row).n;
#pragma unroll 1
                for (int k = 0; k < n; k += ring.group) {
                    uint32_t slot = shared_address(m.b) + (uint32_t)(ring.slot * ring.slot_bytes);
                    uint32_t notes = shared_address(m.notes) +
                                     (uint32_t)(ring.slot * ring.group * n_parts) *
                                         sizeof(struct b_note);
                    int n_steps = (n - k < ring.group ? n - k : ring.group) << ring.shift;
                    barrier_wait(&m.b_full[ring.slot], ring.phase);
                    /* Nearly always both eights of outputs are of one part. */
#pragma unroll 1
                    for (int eight = 0; eight < (p0 == p1 ? 1 : 2); eight++) {
                        int p = eight == 0 ? p0 : p1;
                        if (p >= 0 && ring.group > 1)
                            narrow_group(c, slot, notes + (uint32_t)p * sizeof(struct b_note),
                                         n_parts, n_steps, ring.shift, warp * 16 + g, eight == 0,
                                         eight == 1 || p0 == p1, t, (uint32_t)(width * 16), lane);
                        else if (p >= 0)
                            narrow_segment(c, slot, notes + (uint32_t)p * sizeof(struct b_note),
                                           warp * 16 + g, eight == 0, eight == 1 || p0 == p1, t,
                                           (uint32_t)(width * 16), lane);
                    }
                    barrier_arrive(&m.b_free[ring.slot]);
                    b_ring_next(ring);
                }
            } else {
                struct lora_sums sums = narrow_direct(a, found, tile * TILE + warp * 16 + g, row[0],
                                                      row[1], lane);
#pragma unroll
                for (int u = 0; u < 8; u++)
                    c[u / 4][u % 4] = sums.c[u / 4][u % 4];
            }
            char *to = deltas + (wg * S::turn_units(a.n_ranges) + i) * S::PIECE;
#pragma unroll
            for (int u = 0; u < 2; u++)
                if (row[u] >= 0)
                    put_deltas(to + u * S::PIECE, c[u], pair && staged, warp, lane);
        });
        barrier_arrive(&m.deltas_full[buffer]);
    });
}

#endif
