/* lora_expand.cu: y += B t', the second half of the adapters' product as a kernel of its own.
 * lora.cuh has the order of the sums, lora.cu the first half.
 *
 * A warp has a tile of rows for good and a range of outputs, cut evenly over the warps that have
 * the same rows; no thread block is in step with another, no warp either. What a tile's segments
 * need stands in a table of the warp. The range goes by in groups of outputs, a group segment after
 * segment; a segment's B for a group's outputs is one piece of memory:
 *
 *   pieces  (group 0, segment 0) (group 0, segment 1) .. (group 1, segment 0) (group 1, segment 1)
 *
 * They come through a ring of the warp in shared memory by bulk copies, up to 8 KB ahead, the first
 * of them before t' is there. The delta is a sum of its own from +0 and is added once: y =
 * bf16(y + delta). t' of the tile is brought into shared memory once.
 *
 * Tiles have 8 rows; fewer where there would be idle warps, since the adapters of a tile come one
 * after another; 32 where the work is many times the warps, so that B is fetched once for four
 * matrix steps.
 *
 * Which output is which row of the matrix step is free, so it is chosen by the memory: of a group
 * of 16 M outputs lane (g, t) has 4 M t .. 4 M t + 4 M - 1 of row g, together in y, whose 2 M
 * pairs, each transposed over the warp, are the step's accumulators.
 *
 * Two numbers (64 rows, 64 adapters, H200): rank 16, 4,096 outputs: 8.4 MB of B, 2 us at 4.3 TB/s,
 * all of it in the rings at once; rank 64, 14,336 outputs: 117 MB, 27 us, in which each
 * multiprocessor takes 19 bytes a cycle: a warp 2 KB in 860 cycles. */
#include "kernels/cuda/async.cuh"
#include "kernels/cuda/lora.cuh"

enum {
    EXPAND_WARPS = 8,
    EXPAND_UNIT = 16,   /* outputs: ranges are whole units */
    EXPAND_RANKS = 256, /* of a segment; more take the slow way */
    EXPAND_RING = 8192, /* bytes of a warp: a unit of EXPAND_RANKS */
    EXPAND_STAGES = 16, /* of a ring, at most */
    EXPAND_STEP = 32,   /* bytes of 16 ranks */
};
static_assert(EXPAND_RING >= EXPAND_UNIT * EXPAND_RANKS * 2, "a piece fits");

struct alignas(16) expand_cell { /* a segment that has rows in the tile */
    uintptr_t b;
    int32_t t_at;
    uint16_t rank;
    uint8_t begin, end; /* its rows among the tile's */
};

struct expand_args {
    bf16 *y;
    int n_rows, d_out;
    int tile_rows; /* at most 8 NT */
    struct lora_view v;
};

/* NT: n8 tiles of rows. */
template <int NT> struct expand_memory {
    static constexpr int SEGS = NT == 1 ? 32 : 64; /* of a tile of rows; more take the slow way */
    static constexpr int PIECE = NT == 1 ? 2048 : 4096; /* bytes, if a unit isn't more */
    static constexpr int M_MAX = NT == 1 ? 4 : 2;       /* units of a group */
    static constexpr int T_BYTES = 8 * NT * (NT == 1 ? 17 : 9) * EXPAND_STEP; /* t' of a tile */

    char ring[EXPAND_WARPS][EXPAND_RING];
    char t[EXPAND_WARPS][T_BYTES];
    struct expand_cell cells[EXPAND_WARPS][SEGS];
    uint64_t full[EXPAND_WARPS][EXPAND_STAGES];
};
static_assert(sizeof(expand_memory<1>) <= 104 << 10, "fits beside lora.cu's");

/* What a warp is at: some rows, a part, and the segments that touch the rows. */
struct expand_place {
    struct expand_cell *cells; /* shared memory */
    int n;                     /* cells; ranks above 0 */
    int row0, n_rows, part;
    int first, end;     /* segments */
    int out, out_end;   /* of the part */
    unsigned rows;      /* bit i: row0 + i is in a segment */
    int rank;           /* the largest */
    int t_begin, t_end; /* what the cells have of a row of t' */
    char *t;            /* a copy of it in shared memory, [n_rows, t_pitch] bytes */
    int t_pitch;        /* 0: it doesn't fit there */
};

struct expand_ring {
    char *bytes;    /* shared memory, [n_stages, stage_bytes] */
    uint64_t *full; /* [n_stages] */
    int stage_bytes, n_stages;
    int stage;       /* the oldest */
    uint32_t phases; /* bit i: the parity that says that stage i is full */
    int group_outs;
    int out, cell; /* what it is given next */
};

__device__ static inline struct expand_cell cell_at(const struct expand_place &p, int cell)
{
    static_assert(sizeof(struct expand_cell) == 16, "read as one word");
    const uint4 raw = *reinterpret_cast<const uint4 *>(&p.cells[cell]);
    struct expand_cell e;
    memcpy(&e, &raw, sizeof e);
    return e;
}

/* Output (of a group) that row i of half q of the group's matrix steps is. */
template <int M> __device__ static inline int output_at(int q, int i)
{
    return 4 * M * (i >> 1) + 2 * q + (i & 1);
}

/* Which segments touch the place's rows. */
__device__ static inline void place_find(struct expand_place &p, const struct lora_view &v,
                                         int n_segs, int lane)
{
    p.first = n_segs;
    p.end = 0;
    for (int s0 = n_segs > 512 ? lora_first_seg(v, n_segs, p.row0) : 0; s0 < n_segs; s0 += 128) {
        int begin[4], end[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int s = s0 + 32 * i + lane;
            struct lora_seg seg = {INT32_MAX, 0, 0, 0};
            if (s < n_segs)
                seg = lora_seg_at(v, s);
            begin[i] = seg.row_begin;
            end[i] = seg.n_rows == 0 ? 0 : seg.row_begin + seg.n_rows;
        }
        bool more = true;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            unsigned hit = __ballot_sync(0xffffffffu,
                                         begin[i] < p.row0 + p.n_rows && end[i] > p.row0);
            more = more && !__any_sync(0xffffffffu, begin[i] >= p.row0 + p.n_rows);
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

/* Gathers the cells of a part. False: they need the slow way. */
__device__ static inline bool place_fill(struct expand_place &p, const struct lora_view &v,
                                         int segs_max, int lane)
{
    p.n = 0;
    if (p.end - p.first > segs_max)
        return false;
    bool plain = true;
    unsigned rows = 0, rank = 0, t_begin = INT32_MAX, t_end = 0;
    __syncwarp(); /* the last cells have been read */
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
        unsigned all = __ballot_sync(0xffffffffu, live);
        if (live) {
            unsigned at = (unsigned)lora_t_at(v, s, seg, p.part);
            /* A piece begins and ends at multiples of 16 bytes. */
            plain = plain && e.dtype == DTYPE_BF16 && e.rank % 4 == 0 && e.rank <= EXPAND_RANKS &&
                    e.b.addr % 16 == 0 && (e.rank % 8 == 0 || v.part[p.part].d_out % 2 == 0);
            rows |= 0xffffffffu >> (32 - (end - begin)) << begin;
            rank = rank > (unsigned)e.rank ? rank : (unsigned)e.rank;
            t_begin = t_begin < at ? t_begin : at;
            t_end = t_end > at + (unsigned)e.rank ? t_end : at + (unsigned)e.rank;
            p.cells[p.n + __popc(all & ((1u << lane) - 1))] = {
                e.b.addr, (int32_t)at, (uint16_t)e.rank, (uint8_t)begin, (uint8_t)end};
        }
        p.n += __popc(all);
    }
    __syncwarp();
    p.rows = __reduce_or_sync(0xffffffffu, rows);
    p.rank = (int)__reduce_max_sync(0xffffffffu, rank);
    p.t_begin = (int)__reduce_min_sync(0xffffffffu, t_begin);
    p.t_end = (int)__reduce_max_sync(0xffffffffu, t_end);
    return __all_sync(0xffffffffu, plain);
}

/* Asks for the next piece of B, if there is one, in a stage that nobody reads any more. */
__device__ static inline void ring_ask(struct expand_ring &ring, const struct expand_place &p,
                                       int stage, int lane)
{
    if (ring.out >= p.out_end)
        return;
    if (lane == 0) {
        const struct expand_cell e = cell_at(p, ring.cell);
        int n = p.out_end - ring.out;
        n = n < ring.group_outs ? n : ring.group_outs;
        uint32_t row_bytes = e.rank * 2u, bytes = (uint32_t)n * row_bytes;
        barrier_expect(&ring.full[stage], bytes);
        copy_bytes(ring.bytes + stage * ring.stage_bytes,
                   reinterpret_cast<const char *>(e.b) + (uint64_t)(uint32_t)ring.out * row_bytes,
                   bytes, &ring.full[stage]);
    }
    __syncwarp();
    if (++ring.cell < p.n)
        return;
    ring.cell = 0;
    ring.out += ring.group_outs;
}

/* Cuts the ring into stages for groups of m units, and asks for as much as fits. */
__device__ static inline void ring_begin(struct expand_ring &ring, const struct expand_place &p,
                                         int m, int lane)
{
    ring.group_outs = m * EXPAND_UNIT;
    ring.stage_bytes = ring.group_outs * p.rank * 2;
    ring.n_stages = EXPAND_RING / ring.stage_bytes;
    ring.n_stages = ring.n_stages < EXPAND_STAGES ? ring.n_stages : EXPAND_STAGES;
    ring.stage = 0;
    ring.out = p.out;
    ring.cell = 0;
#pragma unroll 1
    for (int i = 0; i < ring.n_stages; i++)
        ring_ask(ring, p, i, lane);
}

/* Copies the tile's t' to shared memory, if it fits. Rows lie an odd number of steps apart there,
 * so that the reads of four of them meet no bank twice. */
template <int NT>
__device__ static inline void place_load_t(struct expand_place &p, const struct lora_view &v,
                                           int lane)
{
    constexpr int AHEAD = NT == 1 ? 4 : 2; /* steps of 16 ranks */
    int g = lane >> 2, t = lane & 3, n_steps = (p.t_end - p.t_begin + 15) / 16;
    p.t_pitch = (n_steps | 1) * EXPAND_STEP;
    if (p.n_rows * p.t_pitch > expand_memory<NT>::T_BYTES) {
        p.t_pitch = 0;
        return;
    }
    const bf16 *from = v.t + (int64_t)(p.row0 + g) * v.t_stride + p.t_begin + 4 * t;
    char *to = p.t + g * p.t_pitch + 8 * t;
#pragma unroll 1
    for (int j0 = 0; j0 < n_steps; j0 += AHEAD) {
        uint2 w[NT][AHEAD];
#pragma unroll
        for (int i = 0; i < NT; i++)
#pragma unroll
            for (int j = 0; j < AHEAD; j++) {
                int at = 16 * (j0 + j);
                w[i][j] = make_uint2(0, 0);
                if ((p.rows >> (8 * i + g) & 1) && p.t_begin + at + 4 * t < p.t_end)
                    w[i][j] = __ldcg(
                        reinterpret_cast<const uint2 *>(from + (int64_t)(8 * i) * v.t_stride + at));
            }
#pragma unroll
        for (int i = 0; i < NT; i++)
#pragma unroll
            for (int j = 0; j < AHEAD; j++)
                if ((p.rows >> (8 * i + g) & 1) && j0 + j < n_steps)
                    *reinterpret_cast<uint2 *>(to + 8 * i * p.t_pitch +
                                               (j0 + j) * EXPAND_STEP) = w[i][j];
    }
    __syncwarp();
}

/* Four ranks of row r of the tile, which begin at `at` in its t'. */
__device__ static inline uint2 load_t(const struct expand_place &p, const struct lora_view &v,
                                      int r, int at)
{
    if (p.t_pitch > 0)
        return *reinterpret_cast<const uint2 *>(p.t + r * p.t_pitch + 2 * (at - p.t_begin));
    return __ldcg(reinterpret_cast<const uint2 *>(v.t + (int64_t)(p.row0 + r) * v.t_stride + at));
}

/* Adds a cell's part of the deltas of a group, whose B is at b. Ranks that aren't there count as 0,
 * whatever lies in their place; outputs that aren't there are not stored. */
template <int NT, int M>
__device__ static inline void piece_add(float (&c)[NT][M][4], const char *b,
                                        const struct expand_cell &e, const struct expand_place &p,
                                        const struct lora_view &v, int lane)
{
    int g = lane >> 2, t = lane & 3, rank = e.rank;
    int pitch = 4 * rank; /* bytes from half to half */
    b += output_at<M>(0, g) * 2 * rank + 8 * t;
    /* Outputs may lie 128 bytes apart, all in the same banks. So half of the lanes read two steps
     * the other way round. */
    bool swapped = g >> 1 & 1;
    int first = swapped ? EXPAND_STEP : 0, second = EXPAND_STEP - first;
    int r = 0;
#pragma unroll 1
    for (; r + 16 < rank; r += 32, b += 2 * EXPAND_STEP) {
        bool live = r + 16 + 4 * t < rank;
        uint2 one[2 * M], two[2 * M];
#pragma unroll
        for (int q = 0; q < 2 * M; q++) {
            uint2 x = make_uint2(0, 0), y = x;
            if (live || !swapped)
                x = *reinterpret_cast<const uint2 *>(b + q * pitch + first);
            if (live || swapped)
                y = *reinterpret_cast<const uint2 *>(b + q * pitch + second);
            one[q] = swapped ? y : x;
            two[q] = swapped ? x : y;
        }
#pragma unroll
        for (int i = 0; i < NT; i++) {
            if (NT > 1 && (e.begin >= 8 * i + 8 || e.end <= 8 * i))
                continue; /* the whole warp agrees */
            int row = 8 * i + g;
            bool in = row >= e.begin && row < e.end;
            uint2 f = make_uint2(0, 0), h = f;
            if (in)
                f = load_t(p, v, row, e.t_at + r + 4 * t);
            if (in && live)
                h = load_t(p, v, row, e.t_at + r + 16 + 4 * t);
#pragma unroll
            for (int m = 0; m < M; m++)
                mma_bf16(c[i][m], one[2 * m].x, one[2 * m + 1].x, one[2 * m].y, one[2 * m + 1].y,
                         f.x, f.y);
#pragma unroll
            for (int m = 0; m < M; m++)
                mma_bf16(c[i][m], two[2 * m].x, two[2 * m + 1].x, two[2 * m].y, two[2 * m + 1].y,
                         h.x, h.y);
        }
    }
    if (r >= rank)
        return;
    bool live = r + 4 * t < rank;
    uint2 one[2 * M];
#pragma unroll
    for (int q = 0; q < 2 * M; q++) {
        one[q] = make_uint2(0, 0);
        if (live)
            one[q] = *reinterpret_cast<const uint2 *>(b + q * pitch);
    }
#pragma unroll
    for (int i = 0; i < NT; i++) {
        if (NT > 1 && (e.begin >= 8 * i + 8 || e.end <= 8 * i))
            continue;
        int row = 8 * i + g;
        uint2 f = make_uint2(0, 0);
        if (row >= e.begin && row < e.end && live)
            f = load_t(p, v, row, e.t_at + r + 4 * t);
#pragma unroll
        for (int m = 0; m < M; m++)
            mma_bf16(c[i][m], one[2 * m].x, one[2 * m + 1].x, one[2 * m].y, one[2 * m + 1].y, f.x,
                     f.y);
    }
}

/* Where the lane's 4 M outputs of row i of a group begin in y, and how many of them there are. */
template <int M>
__device__ static inline bf16 *outputs_at(int *n, const struct expand_args &a,
                                          const struct expand_place &p, int i, int out, int lane)
{
    out += 4 * M * (lane & 3);
    *n = p.rows >> i & 1 ? p.out_end - out : 0;
    return a.y + (int64_t)(p.row0 + i) * a.d_out + a.v.part[p.part].out_begin + out;
}

/* WORDS: all that begins and ends in y does so at multiples of 16 bytes. */
template <bool WORDS, int M>
__device__ static inline void load_outputs(uint32_t (&w)[2 * M], const struct expand_args &a,
                                           const struct expand_place &p, int i, int out, int lane)
{
    int n;
    const bf16 *y = outputs_at<M>(&n, a, p, i, out, lane);
#pragma unroll
    for (int e = 0; e < 2 * M; e++)
        w[e] = 0;
    if (!WORDS) {
        const unsigned short *h = reinterpret_cast<const unsigned short *>(y);
#pragma unroll
        for (int e = 0; e < 4 * M; e++)
            if (e < n)
                w[e / 2] |= (uint32_t)__ldcg(h + e) << e % 2 * 16;
    } else if (M == 1) {
        if (n > 0) {
            uint2 x = __ldcg(reinterpret_cast<const uint2 *>(y));
            w[0] = x.x;
            w[1] = x.y;
        }
    } else {
#pragma unroll
        for (int e = 0; e + 3 < 2 * M; e += 4)
            if (2 * e < n) {
                uint4 x = __ldcg(reinterpret_cast<const uint4 *>(y + 2 * e));
                w[e] = x.x;
                w[e + 1] = x.y;
                w[e + 2] = x.z;
                w[e + 3] = x.w;
            }
    }
}

template <bool WORDS, int M>
__device__ static inline void store_outputs(const uint32_t (&w)[2 * M], const struct expand_args &a,
                                            const struct expand_place &p, int i, int out, int lane)
{
    int n;
    bf16 *y = outputs_at<M>(&n, a, p, i, out, lane);
    if (!WORDS) {
        unsigned short *h = reinterpret_cast<unsigned short *>(y);
#pragma unroll
        for (int e = 0; e < 4 * M; e++)
            if (e < n)
                h[e] = (unsigned short)(w[e / 2] >> e % 2 * 16);
    } else if (M == 1) {
        if (n > 0)
            *reinterpret_cast<uint2 *>(y) = make_uint2(w[0], w[1]);
    } else {
#pragma unroll
        for (int e = 0; e + 3 < 2 * M; e += 4)
            if (2 * e < n)
                *reinterpret_cast<uint4 *>(y + 2 * e) = make_uint4(w[e], w[e + 1], w[e + 2],
                                                                   w[e + 3]);
    }
}

/* Adds the deltas, which are put back to 0, to a row's outputs. */
template <int M> __device__ static inline void add_deltas(uint32_t (&w)[2 * M], float (&c)[M][4])
{
#pragma unroll
    for (int q = 0; q < 2 * M; q++) {
        float *delta = &c[q / 2][q % 2 * 2];
        uint32_t was = transposed(w[q]);
        w[q] = transposed(pack_bf16(__uint_as_float(was << 16) + delta[0],
                                    __uint_as_float(was & 0xffff0000u) + delta[1]));
        delta[0] = delta[1] = 0;
    }
}

/* The place's range, in groups of M units; the ring has been begun so. */
template <bool WORDS, int NT, int M>
__device__ static inline void expand_range(const struct expand_args &a, struct expand_place &p,
                                           struct expand_ring &ring, int lane)
{
    int g = lane >> 2;
    float c[NT][M][4] = {};
#pragma unroll 1
    for (int out = p.out; out < p.out_end; out += M * EXPAND_UNIT) {
        uint32_t y[NT][2 * M]; /* wanted last */
#pragma unroll
        for (int i = 0; i < NT; i++)
            load_outputs<WORDS, M>(y[i], a, p, 8 * i + g, out, lane);
        if (out == p.out)
            place_load_t<NT>(p, a.v, lane);
#pragma unroll 1
        for (int cell = 0; cell < p.n; cell++) {
            const struct expand_cell e = cell_at(p, cell);
            int stage = ring.stage;
            barrier_wait(&ring.full[stage], ring.phases >> stage & 1);
            piece_add<NT, M>(c, ring.bytes + stage * ring.stage_bytes, e, p, a.v, lane);
            ring.phases ^= 1u << stage;
            ring.stage = stage + 1 == ring.n_stages ? 0 : stage + 1;
            __syncwarp(); /* all have read the stage */
            ring_ask(ring, p, stage, lane);
        }
#pragma unroll
        for (int i = 0; i < NT; i++) {
            add_deltas<M>(y[i], c[i]);
            store_outputs<WORDS, M>(y[i], a, p, 8 * i + g, out, lane);
        }
    }
}

/* The place's range, step by step: many segments, any dtype, any rank. */
__device__ static void __noinline__ expand_slowly(const struct expand_args &a, int row0, int part,
                                                  int first_seg, int end_seg, int out, int out_end,
                                                  int lane)
{
    constexpr int M = 2;
    struct expand_place p = {};
    p.row0 = row0;
    p.part = part;
    p.out_end = out_end;
    int g = lane >> 2, t = lane & 3;
#pragma unroll 1
    for (int r0 = g; out < out_end; r0 += 8) {
        if (r0 - g >= a.tile_rows) { /* the next group, from the first rows on */
            r0 = g - 8;
            out += M * EXPAND_UNIT;
            continue;
        }
        int row = row0 + r0;
        float c[M][4] = {};
        bool mine = false;
#pragma unroll 1
        for (int s = first_seg; s < end_seg; s++) {
            struct lora_seg seg = lora_seg_at(a.v, s);
            if (seg.n_rows == 0)
                continue;
            struct lora_entry e = lora_entry_at(a.v, part, seg.slot);
            int at = lora_t_at(a.v, s, seg, part);
            bool in = r0 < a.tile_rows && row >= seg.row_begin && row < seg.row_begin + seg.n_rows;
            mine = mine || (in && e.rank > 0);
#pragma unroll 1
            for (int r = 0; r < e.rank; r += 16) {
                float w[4][4];
#pragma unroll
                for (int h = 0; h < 4; h++) {
                    int o = out + output_at<M>(h, g);
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        w[h][i] = o < out_end && r + 4 * t + i < e.rank
                                      ? load_as_float(reinterpret_cast<const void *>(e.b.addr),
                                                      (int64_t)o * e.rank + r + 4 * t + i, e.dtype)
                                      : 0;
                }
                uint2 f = make_uint2(0, 0);
                if (in && r + 4 * t < e.rank)
                    f = load_t(p, a.v, r0, at + r + 4 * t);
                for (int plane = 0; plane < planes_of(e.dtype); plane++) {
                    uint32_t b[8];
#pragma unroll
                    for (int h = 0; h < 4; h++) {
                        b[2 * h] = take_plane(w[h][0], w[h][1]);
                        b[2 * h + 1] = take_plane(w[h][2], w[h][3]);
                    }
                    mma_bf16(c[0], b[0], b[2], b[1], b[3], f.x, f.y);
                    mma_bf16(c[1], b[4], b[6], b[5], b[7], f.x, f.y);
                }
            }
        }
        p.rows = (unsigned)mine << r0; /* this lane's own */
        uint32_t y[2 * M];
        load_outputs<false, M>(y, a, p, r0, out, lane);
        add_deltas<M>(y, c);
        store_outputs<false, M>(y, a, p, r0, out, lane);
    }
}

template <bool WORDS, int NT>
__global__ static void __maxnreg__(NT == 1 ? 128 : 168)
    expand_kernel(const __grid_constant__ struct expand_args a)
{
    typedef expand_memory<NT> memory;
    extern __shared__ float4 shared[];
    memory &m = *reinterpret_cast<memory *>(shared);
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x & 31;
    pdl_trigger();
    int n_segs = lora_n_segs(a.v);
    struct expand_ring ring = {};
    ring.bytes = m.ring[warp];
    ring.full = m.full[warp];
    if (lane < EXPAND_STAGES) {
        barrier_init(&ring.full[lane], 1);
        barrier_init_done();
    }
    __syncwarp();

    int n_tiles = (a.n_rows + a.tile_rows - 1) / a.tile_rows;
    int n_warps = (int)gridDim.x * EXPAND_WARPS, me = (int)blockIdx.x * EXPAND_WARPS + warp;
    int n_sharers = n_warps < n_tiles ? 1 : n_warps / n_tiles; /* warps with the same rows */
    int n_units = 0;
    for (int i = 0; i < a.v.n_parts; i++)
        n_units += (a.v.part[i].d_out + EXPAND_UNIT - 1) / EXPAND_UNIT;
    int sharer = me / n_tiles;
    int unit = n_units * sharer / n_sharers, unit_end = n_units * (sharer + 1) / n_sharers;
    if (sharer >= n_sharers || unit == unit_end)
        n_segs = 0; /* nothing to do */
    bool waited = false;
    struct expand_place p = {};
    p.cells = m.cells[warp];
    p.t = m.t[warp];
    p.n_rows = a.tile_rows;
    for (int tile = me % n_tiles; tile < n_tiles && n_segs > 0; tile += n_warps) {
        p.row0 = a.tile_rows * tile;
        place_find(p, a.v, n_segs, lane);
        int part_unit = 0; /* where the part's begin */
        for (p.part = 0; p.part < a.v.n_parts && p.end > 0; p.part++) {
            int d_out = a.v.part[p.part].d_out;
            int begin = unit - part_unit, end = unit_end - part_unit;
            part_unit += (d_out + EXPAND_UNIT - 1) / EXPAND_UNIT;
            p.out = begin > 0 ? begin * EXPAND_UNIT : 0;
            p.out_end = end * EXPAND_UNIT < d_out ? end * EXPAND_UNIT : d_out;
            if (p.out >= p.out_end)
                continue;
            bool plain = place_fill(p, a.v, memory::SEGS, lane);
            if (plain && p.n == 0)
                continue;
            int units = (p.out_end - p.out + EXPAND_UNIT - 1) / EXPAND_UNIT, n = 1;
            while (plain && 2 * n <= memory::M_MAX && 2 * n <= units &&
                   2 * n * EXPAND_UNIT * p.rank * 2 <= memory::PIECE)
                n *= 2;
            if (plain)
                ring_begin(ring, p, n, lane);
            if (!waited)
                pdl_wait();
            waited = true;
            if (!plain)
                expand_slowly(a, p.row0, p.part, p.first, p.end, p.out, p.out_end, lane);
            else if (n == 1)
                expand_range<WORDS, NT, 1>(a, p, ring, lane);
            else if (n == 2)
                expand_range<WORDS, NT, 2>(a, p, ring, lane);
            else if (NT == 1)
                expand_range<WORDS, NT, NT == 1 ? 4 : 2>(a, p, ring, lane);
        }
    }
    if (!waited)
        pdl_wait();
}

typedef void expand_function(const struct expand_args a);

/* The kernel for tiles of up to 8 rows, or for many rows 32; and its shared memory. */
static expand_function *expand_choice(bool words, bool many, size_t *shared_bytes)
{
    *shared_bytes = many ? sizeof(expand_memory<4>) : sizeof(expand_memory<1>);
    if (many)
        return words ? expand_kernel<true, 4> : expand_kernel<false, 4>;
    return words ? expand_kernel<true, 1> : expand_kernel<false, 1>;
}

int lora_expand_open(struct err *err)
{
    for (int i = 0; i < 4; i++) {
        size_t bytes;
        expand_function *kernel = expand_choice(i % 2, i / 2, &bytes);
        cudaError_t rc = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              (int)bytes);
        if (rc != cudaSuccess)
            return err_set(err, ERR_INTERNAL, "cuda: shared memory of sgmv_expand: %s",
                           cudaGetErrorString(rc));
    }
    return 0;
}

/* The rows of a tile, up to 8. A tile's adapters come one after another, so its warps' time is the
 * rows times the units of the warp that has most; but more rows in a tile may have the same
 * adapter. So rows are halved while a warp has but one unit, or where it saves a tenth. */
static int expand_tile_rows(int n_units, int n_rows, int n_warps)
{
    int best = 8, best_units = 0;
    int64_t best_cost = 0;
    for (int rows = 8; rows > 0; rows /= 2) {
        int n_tiles = ceil_div(n_rows, rows);
        int units = ceil_div(n_units, n_warps < n_tiles ? 1 : n_warps / n_tiles);
        int64_t cost = (int64_t)units * rows * ceil_div(n_tiles, n_warps);
        if (best_units > 1 && 10 * cost > 9 * best_cost)
            break;
        best = rows;
        best_units = units;
        best_cost = cost;
    }
    return best;
}

void cuda_sgmv_expand(struct backend *be, struct devptr y, struct devptr t, int n_rows,
                      int d_out_total, const struct lora_args *lora)
{
    (void)t;
    if (n_rows == 0 || lora == nullptr || lora->n_parts == 0)
        return;
    struct expand_args a = {dev<bf16>(y), n_rows, d_out_total, 8, lora_view_of(be, lora)};
    bool words = y.addr % 16 == 0 && d_out_total % 8 == 0;
    int n_units = 0, n_warps = be->n_multiprocessors * EXPAND_WARPS;
    for (int p = 0; p < a.v.n_parts; p++) {
        words = words && a.v.part[p].out_begin % 8 == 0 && a.v.part[p].d_out % 8 == 0;
        n_units += ceil_div(a.v.part[p].d_out, EXPAND_UNIT);
    }
    bool many = n_rows > 64 && (int64_t)n_units * ceil_div(n_rows, 32) >= 6 * n_warps;
    a.tile_rows = many ? 32 : expand_tile_rows(n_units, n_rows, n_warps);
    int64_t n = (int64_t)n_units * ceil_div(n_rows, a.tile_rows);
    int n_blocks = n < be->n_multiprocessors ? (int)n : be->n_multiprocessors;
    size_t shared_bytes;
    expand_function *kernel = expand_choice(words, many, &shared_bytes);
    launch(be, "sgmv_expand", kernel, dim3((unsigned)n_blocks), EXPAND_WARPS * 32, shared_bytes, a);
}
