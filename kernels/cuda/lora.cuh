/* lora.cuh: the adapters' half of linear, on the device. Used by linear*, lora* and weight.cu
 * alone.
 *
 * Order of summation.
 *
 * The delta of a row is weight * scaling * B (A x). Its order is fixed by d_in and the rank, and is
 * the same in every kernel here:
 *
 *   t = A x       K is cut into chains of 256, each summed by mma.m16n8k16 in ascending k; four
 *                 chains make a slice of 1,024: ((c0 + c1) + c2) + c3; slices are added ascending.
 *   t' = bf16(weight * scaling * t)
 *   d = B t'      mma.m16n8k16 from zero on, 16 ranks a step, ascending, segment after segment.
 *   y = (W x + bias) + d
 *
 * Rows are the columns of both products (n8), so a neighbour is another column and can't be seen: a
 * column whose row is not of the segment gets t' = 0, and adding zero products to an accumulator
 * leaves it as it is. W x is summed from +0 on and so is never -0: adding the zero of a row without
 * an adapter leaves it as it is.
 *
 * The instruction doesn't mind in which order k runs as long as both operands agree: in the first
 * product lane t (of 4) takes eight consecutive k of a chunk of 32, in the second four consecutive
 * ranks of a chunk of 16, so that global memory is read 16 or 8 bytes a lane without staging.
 *
 * Finding things. segment -> slot -> entry -> matrix is a chain of dependent loads, each a trip to
 * L2. A step finds what its linears need at its beginning (lora_look_up.cu), and narrow's blocks
 * copy it; shrink and expand first gather what they need of their segments into a table in shared
 * memory, all at once, before pdl_wait (nobody writes those while a step runs). Then every load of
 * a matrix is one trip, and many are in flight. Wide's helpers have a tile's time to look up a
 * segment after another. */
#ifndef TRIBUTARY_KERNELS_CUDA_LORA_CUH
#define TRIBUTARY_KERNELS_CUDA_LORA_CUH

#include "kernels/cuda/cuda.cuh"

enum {
    LORA_PARTS_MAX = 3,
    LORA_CHAIN = 256,                  /* k of one warp's chain */
    LORA_SLICE = 4 * LORA_CHAIN,       /* k of a slice */
    LORA_SEGS_MAX = 8192,              /* of a step */
    LORA_T_PAD = 4,                    /* a part's t begins at a multiple of this */
    LORA_UNIT = 128,                   /* sums of a unit of shrink: 16 ranks by 8 rows */
    LORA_FOUND_ROWS = LORA_ALONE_ROWS, /* lora_found */
    LORA_FOUND_SEGS = 128,
};

__host__ __device__ static inline int lora_slices(int d_in)
{
    return (d_in + LORA_SLICE - 1) / LORA_SLICE;
}

static inline int lora_n_chains(int d_in) /* those of the last slice may be empty */
{
    return lora_slices(d_in) * (LORA_SLICE / LORA_CHAIN);
}

/* What the device needs of lora_args, by value. */
struct lora_view {
    const struct lora_seg *segs;
    const int32_t *d_n_segs; /* or null: n_segs */
    int n_segs, n_parts;
    struct {
        const struct lora_entry *entries;
        int out_begin, d_out;
    } part[LORA_PARTS_MAX];
    bf16 *t; /* t' [row, t_stride]; a row's segments and parts behind one another, each padded */
    int t_stride;
    const struct lora_found *found; /* narrow's: what was looked up */
};

__device__ static inline int lora_n_segs(const struct lora_view &v)
{
    return v.d_n_segs != nullptr ? __ldg(v.d_n_segs) : v.n_segs;
}

__device__ static inline struct lora_seg lora_seg_at(const struct lora_view &v, int s)
{
    const int4 raw = __ldg(reinterpret_cast<const int4 *>(v.segs) + s);
    return {raw.x, raw.y, raw.z, __int_as_float(raw.w)};
}

__device__ static inline int lora_rank(const struct lora_view &v, int p, int slot)
{
    return __ldg(&v.part[p].entries[slot].rank);
}

__device__ static inline struct lora_entry lora_entry_of(const struct lora_entry *entries, int slot)
{
    const longlong2 *q = reinterpret_cast<const longlong2 *>(&entries[slot]);
    static_assert(sizeof(struct lora_entry) == 32, "read as two 16-byte words");
    longlong2 ab = __ldg(q), rest = __ldg(q + 1);
    struct lora_entry e;
    e.a.addr = (uintptr_t)ab.x;
    e.b.addr = (uintptr_t)ab.y;
    e.rank = (int32_t)rest.x;
    e.scaling = __int_as_float((int32_t)(rest.x >> 32));
    e.dtype = (int32_t)rest.y;
    e.reserved = 0;
    return e;
}

__device__ static inline struct lora_entry lora_entry_at(const struct lora_view &v, int p, int slot)
{
    return lora_entry_of(v.part[p].entries, slot);
}

/* The first segment with a row at or after `row`, or n_segs. Segments ascend; those of an ensemble
 * cover the same rows. */
__device__ static inline int lora_first_seg(const struct lora_view &v, int n_segs, int row)
{
    int low = 0, high = n_segs;
    while (low < high) {
        int mid = (low + high) / 2;
        struct lora_seg s = lora_seg_at(v, mid);
        if (s.row_begin + s.n_rows > row)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

__device__ static inline int lora_padded(int rank)
{
    return (rank + LORA_T_PAD - 1) / LORA_T_PAD * LORA_T_PAD;
}

/* Where the ranks of part p begin among those of a segment. */
__device__ static inline int lora_part_at(const struct lora_view &v, int slot, int p)
{
    int at = 0;
    for (int q = 0; q < p; q++)
        at += lora_padded(lora_rank(v, q, slot));
    return at;
}

/* Where the ranks of (segment s, part p) begin in a row of t'. */
__device__ static inline int lora_t_at(const struct lora_view &v, int s, const struct lora_seg &seg,
                                       int p)
{
    int at = lora_part_at(v, seg.slot, p);
    for (int u = s - 1; u >= 0; u--) { /* an ensemble's earlier segments, over the same rows */
        struct lora_seg before = lora_seg_at(v, u);
        if (before.n_rows == 0)
            continue;
        if (before.row_begin != seg.row_begin)
            break;
        at += lora_part_at(v, before.slot, v.n_parts);
    }
    return at;
}

/* ---- the table
 * ------------------------------------------------------------------------------------ */

struct lora_span { /* a segment's rows */
    int32_t row_begin, row_end;
};

struct lora_cell { /* a segment's part */
    uintptr_t a, b;
    int32_t rank, dtype;
    float scale;  /* weight * scaling */
    int32_t t_at; /* where its ranks begin in a row of t' */
};

struct lora_table {          /* in shared memory */
    struct lora_span *spans; /* [n] */
    struct lora_cell *cells; /* [n, n_parts] */
};

/* Gathers segments first .. first + n - 1. The caller puts a barrier behind it. */
__device__ static inline void lora_table_fill(struct lora_table &table, const struct lora_view &v,
                                              int first, int n, int thread, int n_threads)
{
    for (int i = thread; i < n * v.n_parts; i += n_threads) {
        int s = first + i / v.n_parts, p = i % v.n_parts;
        struct lora_seg seg = lora_seg_at(v, s);
        struct lora_entry e = lora_entry_at(v, p, seg.slot);
        table.cells[i] = {
            e.a.addr, e.b.addr, e.rank, e.dtype, seg.weight * e.scaling, lora_t_at(v, s, seg, p)};
        if (p == 0)
            table.spans[i / v.n_parts] = {seg.row_begin, seg.row_begin + seg.n_rows};
    }
}

/* What a linear found, of the rows below LORA_FOUND_ROWS. In device memory, by lora_look_up.cu; and
 * its first entries in narrow's shared memory. */
struct lora_head {
    int32_t n_segs;  /* above LORA_FOUND_SEGS: too many, and nothing else is there */
    int32_t n_units; /* of 16 ranks by 8 rows */
    int32_t rank;    /* the largest */
    int32_t width;   /* of a row of t' */
    int32_t plain;   /* all are bf16, ranks multiples of 4, B aligned */
    uint32_t tag;
    uint32_t round; /* look-ups so far */
    int32_t run;    /* the most segments that have rows among eight (units) */
};

struct lora_run { /* segments begin .. end - 1; empty ones may be among them */
    int32_t begin, end;
};

struct alignas(16) lora_found {
    struct lora_head head;
    int32_t t_end[LORA_FOUND_ROWS];             /* how much of t' a row has */
    struct lora_run units[LORA_FOUND_ROWS / 8]; /* the segments that have rows among eight */
    struct lora_span spans[LORA_FOUND_SEGS];
    int32_t unit_end[LORA_FOUND_SEGS * LORA_PARTS_MAX];       /* [n_segs, n_parts] running sums */
    struct lora_cell cells[LORA_FOUND_SEGS * LORA_PARTS_MAX]; /* [n_segs, n_parts] */
};

/* ---- the matrix step
 * ------------------------------------------------------------------------------ */

__device__ static inline void mma_bf16(float &c0, float &c1, float &c2, float &c3, uint32_t a0,
                                       uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                       uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ static inline void mma_bf16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                       uint32_t a3, uint32_t b0, uint32_t b1)
{
    mma_bf16(c[0], c[1], c[2], c[3], a0, a1, a2, a3, b0, b1);
}

__device__ static inline uint32_t pack_bf16(float lo, float hi)
{
    __nv_bfloat162 p = __floats2bfloat162_rn(lo, hi);
    return *reinterpret_cast<uint32_t *>(&p);
}

/* The next bf16 plane of f (the values nearest to it), taken off f: three planes hold an f32, two
 * an f16, exactly. */
__device__ static inline uint32_t take_plane(float &lo, float &hi)
{
    uint32_t p = pack_bf16(lo, hi);
    lo -= __uint_as_float(p << 16);
    hi -= __uint_as_float(p & 0xffff0000u);
    return p;
}

__device__ static inline int planes_of(int dtype)
{
    return dtype == DTYPE_BF16 ? 1 : dtype == DTYPE_F16 ? 2 : 3;
}

/* An 8 x 8 matrix of 16-bit numbers, a row's two in a lane, the other way round. */
__device__ static inline uint32_t transposed(uint32_t x)
{
    uint32_t y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

/* ---- sums handed on
 * ------------------------------------------------------------------------------- */

/* What a place for a sum holds while there is none: a NaN that arithmetic doesn't make. */
enum : uint32_t { EMPTY = 0xffffffffu, NAN_MADE = 0x7fffffffu };

__device__ static inline float not_empty(float f)
{
    return __float_as_uint(f) == EMPTY ? __uint_as_float(NAN_MADE) : f;
}

__device__ static inline bool is_empty(float x, float y, float z, float w)
{
    return __float_as_uint(x) == EMPTY || __float_as_uint(y) == EMPTY ||
           __float_as_uint(z) == EMPTY || __float_as_uint(w) == EMPTY;
}

__device__ static inline void store_sums(void *to, float x, float y, float z, float w)
{
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x), "f"(y),
                 "f"(z), "f"(w)
                 : "memory");
}

__device__ static inline void put_sums(void *to, float x, float y, float z, float w)
{
    store_sums(to, not_empty(x), not_empty(y), not_empty(z), not_empty(w));
}

/* Asks for what was put at from, of the units below n, where it isn't there yet. */
template <int UNITS, int PIECE>
__device__ static inline void ask_sums(float (&c)[4 * UNITS], const char *from, int n)
{
#pragma unroll
    for (int u = 0; u < UNITS; u++)
        if (u < n && is_empty(c[4 * u], c[4 * u + 1], c[4 * u + 2], c[4 * u + 3]))
            asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(c[4 * u]), "=f"(c[4 * u + 1]), "=f"(c[4 * u + 2]),
                           "=f"(c[4 * u + 3])
                         : "l"(from + u * PIECE)
                         : "memory");
}

/* Asks again, by a warp, until all of it is there, and leaves the place empty. */
template <int UNITS, int PIECE>
__device__ static inline void take_sums(float (&c)[4 * UNITS], char *from, int n)
{
    for (;;) {
        bool all = true;
#pragma unroll
        for (int u = 0; u < UNITS; u++)
            all = all && !(u < n && is_empty(c[4 * u], c[4 * u + 1], c[4 * u + 2], c[4 * u + 3]));
        if (__all_sync(0xffffffffu, all))
            break;
        ask_sums<UNITS, PIECE>(c, from, n);
    }
    const float none = __uint_as_float(EMPTY);
#pragma unroll
    for (int u = 0; u < UNITS; u++)
        if (u < n)
            store_sums(from + u * PIECE, none, none, none, none);
}

/* ---- lists
 * --------------------------------------------------------------------------------------- */

/* The sum of the values of a warp's lanes up to this one. */
__device__ static inline int warp_running_sum(int value, int lane)
{
    for (int o = 1; o < 32; o <<= 1) {
        int up = __shfl_up_sync(0xffffffffu, value, o);
        value += lane >= o ? up : 0;
    }
    return value;
}

/* values [n] in shared memory become their running sums. All n_threads (a multiple of 32) call. */
__device__ static inline void lora_scan(int *values, int n, int thread, int n_threads,
                                        int barrier_id)
{
    asm volatile("bar.sync %0, %1;" ::"r"(barrier_id), "r"(n_threads) : "memory");
    if (thread < 32) {
        int before = 0;
        for (int s = 0; s < n; s += 32) {
            int mine = s + thread < n ? values[s + thread] : 0;
            mine = warp_running_sum(mine, thread);
            if (s + thread < n)
                values[s + thread] = before + mine;
            before += __shfl_sync(0xffffffffu, mine, 31);
        }
    }
    asm volatile("bar.sync %0, %1;" ::"r"(barrier_id), "r"(n_threads) : "memory");
}

/* The first of the running sums end [n] that is above i. */
__device__ static inline int lora_find(const int *end, int n, int i)
{
    int low = 0, high = n - 1;
    while (low < high) {
        int mid = (low + high) / 2;
        if (end[mid] > i)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

/* Asks L2 for all of A (and of B, when they are few) of the n_segs segments in the linear that
 * comes next: by a warp of each block of a grid, in pieces dealt out to the blocks. Cells behind
 * n_segs are of an earlier step, and what they point to may be gone. */
__device__ static inline void lora_prefetch_next(const struct lora_view &v, int n_segs, int d_in,
                                                 int lane)
{
    const uint32_t PIECE = 16384;
    if (blockIdx.x == 0 && lane == 0) /* the cells are read here */
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(v.found),
                     "n"(offsetof(struct lora_found, cells) / 16 * 16)
                     : "memory");
    if (n_segs > LORA_FOUND_SEGS || n_segs * v.n_parts > 256)
        return;
    for (int i = lane; i < n_segs * v.n_parts; i += 32) {
        const int4 *q = reinterpret_cast<const int4 *>(&v.found->cells[i]);
        static_assert(sizeof(struct lora_cell) == 32, "read as two 16-byte words");
        int4 raw[2] = {__ldcg(q), __ldcg(q + 1)};
        struct lora_cell e;
        memcpy(&e, raw, sizeof e);
        if (e.dtype == DTYPE_F32 || e.rank * n_segs > 2048)
            continue; /* more than L2 could keep */
        for (int half = 0; half < 2; half++) {
            uintptr_t at = half == 0 ? e.a : e.b;
            uint32_t n = (uint32_t)e.rank *
                         (uint32_t)(half == 0 ? d_in : v.part[i % v.n_parts].d_out) * 2;
            if (half == 1 && n_segs > 4)
                break;
            n &= ~15u;
            uint32_t first = (blockIdx.x + gridDim.x - (unsigned)(i * 8 + half * 4) % gridDim.x) %
                             gridDim.x;
            for (uint32_t piece = first; piece * PIECE < n; piece += gridDim.x) {
                uint32_t bytes = n - piece * PIECE < PIECE ? n - piece * PIECE : PIECE;
                asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at + piece * PIECE),
                             "r"(bytes)
                             : "memory");
            }
        }
    }
}

/* lora.cu */
int lora_open(struct err *err);
/* Of the segments alone; and of a linear: lora NULL is a view of nothing. */
struct lora_view lora_segs_of(const struct lora_step *step);
struct lora_view lora_view_of(struct backend *be, const struct lora_args *lora);
/* t' of all segments. True: the kernel after it needn't wait for anything but t'. */
bool lora_shrink(struct backend *be, const struct lora_view &v, const bf16 *x, int n_rows,
                 int d_in);

/* lora_expand.cu */
int lora_expand_open(struct err *err);
/* The deltas of a linear's outputs out of t', alone: f32 [n_rows, d_out], of all rows (0 under no
 * adapter) and of the outputs that v has as parts. *any = 0 where no adapter has a rank; then they
 * are not stored. */
void lora_expand_deltas(struct backend *be, float *deltas, int *any, const struct lora_view &v,
                        int n_rows, int d_out);

/* lora_shrink_many.cu: the same of many rows; and how much of many_slots a block needs. */
void lora_shrink_many(struct backend *be, const struct lora_view &v, const bf16 *x, int d_in);
size_t lora_shrink_many_slots(int d_max);
cudaError_t lora_shrink_many_open();

/* lora_look_up.cu */
cudaError_t lora_look_up_open(struct backend *be);
void lora_look_up_close(struct backend *be);
/* Makes sure, once for a linear, that what it finds has been looked up: at lora_found_at. */
void lora_find_all(struct backend *be, const struct lora_args *lora, int d_in);
const struct lora_found *lora_found_at(const struct backend *be, const struct lora_args *lora);
/* What the step's next linear finds, and its d_in; n_parts 0: not known. */
struct lora_view lora_next_of(struct backend *be, const struct lora_args *lora, int *d_in);

/* linear.cu: clears all words that bear tags. */
cudaError_t lora_clear_words(struct backend *be);

#endif
