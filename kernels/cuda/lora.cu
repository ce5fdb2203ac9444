/* lora.cu: t' = A x, the first half of the adapters' product as a kernel of its own; the second is
 * in lora_expand.cu. lora.cuh has the order of the sums; linear.cu computes both halves inside its
 * own kernel where rows are few and adapters light, and calls this one, or both, elsewhere.
 *
 * Few rows are latency, many adapters are bytes; both want everything that doesn't depend on an
 * earlier kernel to be under way before pdl_wait returns: the segments, the entries, and A or B
 * itself. A block of shrink of few rows and one of expand fit on a multiprocessor together, so that
 * while one finishes the other's matrices are already coming in.
 *
 * Few rows (up to 256). A unit is 16 ranks of a segment's part by 8 of its rows, a piece a unit's
 * slice of 1,024 k. All pieces stand in a row, units as segments, parts, ranks and rows follow one
 * another, a unit's slices ascending, and are cut evenly over the blocks, one on a multiprocessor:
 *
 *     unit     0             1             2
 *     slice    0  1  2  3    0  1  2  3    0  1  2  3
 *     block    0  0  0  0    0 |1  1  1    1  1 |2  2 ...
 *
 *   the producer's warp     A, [16, 1024] a stage: a bulk copy a rank, into a ring; rows lie 2,112
 *                           bytes apart, so that a warp's 16-byte reads meet no bank twice. The
 *                           first before pdl_wait
 *   four warps              a chain each, its x asked for a piece ahead; a stage is free as soon
 *                           as it has been read
 *   their 128 threads       a sum of the unit each: four chains to a slice, slices to t'
 *
 * The block that has a unit's last slice finishes it; others hand it their slices on, which may not
 * be added up before the ones below them are there. A block goes through its units from the last to
 * the first, so what it hands on comes first and what is handed to it is wanted last (as in
 * linear_middle.cuh). A place for a sum is EMPTY until the sum is there, and the one who takes it
 * waits for nothing else. Places are in L2, EMPTY again when the launch has ended. Blocks wait only
 * for ones below them, and all of them get a place (no more than multiprocessors, and no later
 * kernel starts before each of them has called pdl_trigger, first of all), so every wait ends.
 * Segments that one table can't hold come in several; then the row is cut between units, and
 * nothing is handed on.
 *
 * One block on a multiprocessor, and those that got no piece leave at once: what counts is that an
 * expand finds room. Two blocks of a single stage, and places for two on each multiprocessor, look
 * better on paper; but when blocks of an expand end, the next shrink's, two or four of them, take
 * that room, and a third of the next expand's blocks start when they are gone (stamps of blocks;
 * 64 adapters of rank 16: pair 9.7 us, now 8.4; 256 rows, one of rank 64, out 14,336: 19.5, 16.3).
 *
 * Many rows: lora_shrink_many.cu.
 *
 * Tried and dropped: asking L2 for the pieces behind the ring, and for B (64 adapters of rank 64,
 * pair: 28.1 us for 27.6; 256 of them 106 for 96); clusters of four blocks that hand slices on in
 * each other's shared memory (2 % slower in the mean of the grid, and the sanitizers don't follow
 * words that are polled there); two teams of five warps in a block (1.5 us slower: a multiprocessor
 * has no room for the next one's block); a ring of three stages (16 ranks the same; 64: 4 %
 * slower).
 *
 * Two numbers (64 rows, 64 adapters of 16 ranks, K = 4,096): 8.4 MB of A, 1.9 us at 4.4 TB/s, what
 * bulk copies reach with 64 KB and more on their way to each multiprocessor; 17 MFLOP. Of a single
 * adapter the two numbers say nothing: x, its chain's 16 dependent matrix steps, a slice handed on
 * and t' are each a trip of 500 to 1,000 cycles. */
#include "kernels/cuda/lora_shrink.cuh"

struct lora_view lora_segs_of(const struct lora_step *step)
{
    struct lora_view v = {};
    BUG_IF(step->n_segs > LORA_SEGS_MAX);
    v.segs = dev<const struct lora_seg>(step->d_segs);
    v.d_n_segs = dev<const int32_t>(step->d_n_segs);
    v.n_segs = step->n_segs;
    return v;
}

struct lora_view lora_view_of(struct backend *be, const struct lora_args *lora)
{
    if (lora == nullptr)
        return {};
    BUG_IF(lora->n_parts > LORA_PARTS_MAX);
    struct lora_view v = lora_segs_of(lora->step);
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

/* ---- few rows
 * ---------------------------------------------------------------------------------------- */

enum {
    TABLE_CELLS = 256, /* in a table at a time: segments times parts */
    STAGE_BYTES = 16 * SHRINK_PITCH,
    FEW_STAGES = 2,                 /* of the ring */
    FEW_SUMMING = 128,              /* threads: a warp a chain, a thread a sum of a unit */
    FEW_THREADS = FEW_SUMMING + 32, /* and the producer */
    FEW_ASKED = 8,                  /* slices asked for together */
    FEW_CHUNKS = 4,                 /* of A in registers at a time, by 32 k */
    FEW_REGISTERS = 96,
};

struct alignas(16) few_cell { /* a segment's part */
    uintptr_t a;
    int32_t rank, dtype;
    float scale; /* weight * scaling */
    int32_t t_at;
    int32_t row_begin, row_end;
};

/* By the producer; else it is read where it lies: f16, f32, odd addresses. */
__device__ static inline bool few_copied(const struct few_cell &cell)
{
    return cell.dtype == DTYPE_BF16 && (cell.a & 15) == 0;
}

struct few_memory {
    struct few_cell cells[TABLE_CELLS];                /* [segments, parts] */
    float sums[2][4][8 * SHRINK_SUM_PITCH];            /* of chains: [8 rows, 16 ranks], in turn */
    int unit_end[TABLE_CELLS];                         /* running sums of the cells' units */
    uint64_t full[FEW_STAGES], free[FEW_STAGES], meet; /* meet: of all threads */
    struct shrink_run run;
    struct shrink_at at; /* where it begins */
    alignas(128) char ring[FEW_STAGES][STAGE_BYTES];
};

struct few_unit { /* 16 ranks by 8 rows */
    int cell, rank0, row;
};

/* Cell i's segment, counted from the table's first. */
__device__ static inline int few_segment(int i, int n_parts)
{
    static_assert(LORA_PARTS_MAX == 3, "so many factors");
    return i * (n_parts == 1 ? 65536 : n_parts == 2 ? 32768 : 21846) >> 16;
}

/* Gathers segments first .. first + n - 1, but for t_at. seg: that of cell `thread`, if it is below
 * n_ahead. */
__device__ static inline void few_fill(struct few_memory &m, const struct lora_view &v, int first,
                                       int n, struct lora_seg seg, int n_ahead, int thread)
{
#pragma unroll 1
    for (int i = thread; i < n * v.n_parts; i += FEW_THREADS) {
        int s = few_segment(i, v.n_parts), p = i - s * v.n_parts;
        s += first;
        if (i != thread || s >= n_ahead)
            seg = lora_seg_at(v, s);
        struct lora_entry e = lora_entry_at(v, p, seg.slot);
        m.cells[i] = {e.a.addr,
                      e.rank,
                      e.dtype,
                      seg.weight * e.scaling,
                      0,
                      seg.row_begin,
                      seg.row_begin + seg.n_rows};
    }
}

/* lora_t_at of cell i, from the table as far as it goes back. */
__device__ static inline int few_t_at(const struct few_memory &m, const struct lora_view &v,
                                      int first, int i)
{
    int at = 0, s = few_segment(i, v.n_parts), row_begin = m.cells[i].row_begin;
#pragma unroll 1
    for (int q = s * v.n_parts; q < i; q++)
        at += lora_padded(m.cells[q].rank);
#pragma unroll 1
    for (int u = s - 1; u >= 0; u--) { /* an ensemble's earlier segments, over the same rows */
        const struct few_cell *before = &m.cells[u * v.n_parts];
        if (before->row_begin == before->row_end)
            continue;
        if (before->row_begin != row_begin)
            return at;
#pragma unroll 1
        for (int q = 0; q < v.n_parts; q++)
            at += lora_padded(before[q].rank);
    }
    return first > 0 ? at + lora_t_at(v, first, {row_begin, 0, 0, 0}, 0) : at;
}

/* By a warp: unit_end of the n cells; returns the last. */
__device__ static inline int few_count(struct few_memory &m, int n, int lane)
{
    int before = 0;
#pragma unroll 1
    for (int i = lane; i < n + lane; i += 32) {
        int mine = 0;
        if (i < n)
            mine = (m.cells[i].rank + 15) / 16 *
                   ((m.cells[i].row_end - m.cells[i].row_begin + 7) / 8);
        mine = warp_running_sum(mine, lane);
        if (i < n)
            m.unit_end[i] = before + mine;
        before += __shfl_sync(0xffffffffu, mine, 31);
    }
    __syncwarp();
    return before;
}

/* By a warp. A cell's units: ranks, and for each of them rows. */
__device__ static inline struct few_unit few_unit_at(const struct few_memory &m, int n_cells,
                                                     int unit, int lane)
{
    int at = 0; /* cells that end at or before it */
#pragma unroll 1
    for (int i = lane; i < n_cells + lane; i += 32)
        at += __popc(__ballot_sync(0xffffffffu, i < n_cells && m.unit_end[i] <= unit));
    int rest = unit - (at > 0 ? m.unit_end[at - 1] : 0), row = m.cells[at].row_begin;
    int n_tiles = (m.cells[at].row_end - row + 7) / 8, step = (int)shrink_divide(rest, n_tiles);
    return {at, step * 16, row + (rest - step * n_tiles) * 8};
}

/* ---- sums handed on */

__device__ static inline float get_sum(const float *from)
{
    float f;
    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(f) : "l"(from) : "memory");
    return f;
}

__device__ static inline void put_sum(float *to, float sum)
{
    asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(to), "f"(sum) : "memory");
}

/* The sum of the first n slices, as a thread has it; their places, from `from` on, are EMPTY again.
 */
__device__ static inline float few_take(float *from, int n)
{
    float total = 0;
#pragma unroll 1
    for (bool first = true; n > 0; from += FEW_ASKED * LORA_UNIT, n -= FEW_ASKED, first = false) {
        float h[FEW_ASKED];
#pragma unroll
        for (int j = 0; j < FEW_ASKED; j++)
            h[j] = __uint_as_float(j < n ? EMPTY : 0);
        for (bool all = false; !__all_sync(0xffffffffu, all);) {
            all = true;
#pragma unroll
            for (int j = 0; j < FEW_ASKED; j++)
                if (__float_as_uint(h[j]) == EMPTY)
                    h[j] = get_sum(from + j * LORA_UNIT);
#pragma unroll
            for (int j = 0; j < FEW_ASKED; j++)
                all = all && __float_as_uint(h[j]) != EMPTY;
        }
#pragma unroll
        for (int j = 0; j < FEW_ASKED; j++) {
            if (j >= n)
                break;
            total = first && j == 0 ? h[j] : total + h[j];
            put_sum(from + j * LORA_UNIT, __uint_as_float(EMPTY));
        }
    }
    return total;
}

/* ---- the two roles */

/* A lane's rank of a piece of A. */
struct few_rank {
    uintptr_t from;
    uint32_t bytes;
    int n; /* ranks of the piece */
};

__device__ static inline struct few_rank
few_rank_of(const struct few_memory &m, const struct few_unit &unit, int slice, int d_in, int lane)
{
    const struct few_cell &cell = m.cells[unit.cell];
    int n = cell.rank - unit.rank0, k = slice * LORA_SLICE;
    n = !few_copied(cell) ? 0 : n < 16 ? n : 16;
    return {cell.a + ((uintptr_t)(unit.rank0 + lane) * (unsigned)d_in + (unsigned)k) * 2,
            (uint32_t)(d_in - k < LORA_SLICE ? d_in - k : LORA_SLICE) * 2, n};
}

/* The producer: A of the run's pieces into the ring. */
__device__ static inline void few_copy(struct few_memory &m, struct shrink_at at, int n_cells,
                                       int n_slices, int d_in, int &stage, uint32_t &phase,
                                       int lane)
{
    struct few_unit unit = {};
    int found = -1;
#pragma unroll 1
    for (; at.n_left > 0; at.next(m.run.begin, n_slices)) {
        if (at.unit != found)
            unit = few_unit_at(m, n_cells, at.unit, lane);
        found = at.unit;
        struct few_rank rank = few_rank_of(m, unit, at.slice, d_in, lane);
        barrier_wait(&m.free[stage], phase ^ 1);
        if (lane == 0)
            barrier_expect(&m.full[stage], (uint32_t)rank.n * rank.bytes);
        __syncwarp();
        if (lane < rank.n)
            copy_bytes(m.ring[stage] + lane * SHRINK_PITCH,
                       reinterpret_cast<const void *>(rank.from), rank.bytes, &m.full[stage]);
        if (++stage == FEW_STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
}

/* What a lane takes of x for a chain: eight k of every 32 of a row. */
struct few_x {
    const bf16 *from;
    int n; /* k from there on that there are; 0 or less: none */

    __device__ uint4 at(int chunk) const
    {
        if (32 * chunk < n)
            return __ldcg(reinterpret_cast<const uint4 *>(from + 32 * chunk));
        return make_uint4(0, 0, 0, 0);
    }
};

__device__ static inline struct few_x few_x_of(const struct few_memory &m,
                                               const struct few_unit &unit, int slice, int chain,
                                               const bf16 *x, int d_in, int lane)
{
    int row = unit.row + (lane >> 2), k = slice * LORA_SLICE + chain * LORA_CHAIN + 8 * (lane & 3);
    return {x + row * d_in + k, row < m.cells[unit.cell].row_end ? d_in - k : 0};
}

/* The others: the run's sums. Piece for piece each warp sums its chain; then each thread adds one
 * sum of the unit. */
__device__ static inline void few_sum(struct few_memory &m, struct shrink_at at,
                                      struct few_unit unit, int n_cells, int n_slices,
                                      const bf16 *x, int d_in, float *slots,
                                      const struct lora_view &v, int &stage, uint32_t &phase,
                                      int thread)
{
    int lane = thread & 31, chain = thread >> 5, turn = 0;
    struct few_x next_x = few_x_of(m, unit, at.slice, chain, x, d_in, lane);
    uint4 b[SHRINK_CHUNKS];
#pragma unroll
    for (int u = 0; u < SHRINK_CHUNKS; u++)
        b[u] = next_x.at(u);
    float total = 0;
#pragma unroll 1
    while (at.n_left > 0) {
        struct shrink_at next = at;
        next.next(m.run.begin, n_slices);
        next_x.n = 0;
        if (next.n_left > 0) {
            struct few_unit next_unit = unit;
            if (next.unit != at.unit)
                next_unit = few_unit_at(m, n_cells, next.unit, lane);
            next_x = few_x_of(m, next_unit, next.slice, chain, x, d_in, lane);
        }

        float c[1][4] = {};
        const struct few_cell &cell = m.cells[unit.cell];
        int k = at.slice * LORA_SLICE + chain * LORA_CHAIN;
        barrier_wait(&m.full[stage], phase);
        if (few_copied(cell)) {
            int n = d_in - k - 8 * (lane & 3); /* k that there are */
            const char *a = m.ring[stage] + chain * LORA_CHAIN * 2 + (lane >> 2) * SHRINK_PITCH +
                            16 * (lane & 3);
#pragma unroll
            for (int first = 0; first < SHRINK_CHUNKS; first += FEW_CHUNKS) {
                uint4 p[FEW_CHUNKS], q[FEW_CHUNKS];
#pragma unroll
                for (int u = 0; u < FEW_CHUNKS; u++) {
                    p[u] = q[u] = make_uint4(0, 0, 0, 0);
                    if (32 * (first + u) < n) { /* what lies there otherwise may be no number */
                        const char *from = a + 64 * (first + u);
                        p[u] = *reinterpret_cast<const uint4 *>(from);
                        q[u] = *reinterpret_cast<const uint4 *>(from + 8 * SHRINK_PITCH);
                    }
                }
                if (first + FEW_CHUNKS == SHRINK_CHUNKS) /* all has been read */
                    barrier_arrive(&m.free[stage]);
#pragma unroll
                for (int u = 0; u < FEW_CHUNKS; u++) {
                    uint4 &w = b[first + u];
                    mma_bf16(c[0], p[u].x, q[u].x, p[u].y, q[u].y, w.x, w.y);
                    mma_bf16(c[0], p[u].z, q[u].z, p[u].w, q[u].w, w.z, w.w);
                    w = next_x.at(first + u);
                }
            }
        } else {
            barrier_arrive(&m.free[stage]);
            shrink_in_place<1>(c, reinterpret_cast<const void *>(cell.a), cell.dtype, cell.rank,
                               unit.rank0, unit.row, cell.row_end, x, d_in, k,
                               k + LORA_CHAIN < d_in ? k + LORA_CHAIN : d_in, lane);
#pragma unroll
            for (int u = 0; u < SHRINK_CHUNKS; u++)
                b[u] = next_x.at(u);
        }
        if (++stage == FEW_STAGES) {
            stage = 0;
            phase ^= 1;
        }

        float *to = m.sums[turn][chain] + 2 * (lane & 3) * SHRINK_SUM_PITCH + (lane >> 2);
        to[0] = c[0][0];
        to[SHRINK_SUM_PITCH] = c[0][1];
        to[8] = c[0][2];
        to[SHRINK_SUM_PITCH + 8] = c[0][3];
        named_sync(2, FEW_SUMMING);
        int row = thread / 16, rank = thread % 16, from = row * SHRINK_SUM_PITCH + rank;
        float slice = m.sums[turn][0][from];
#pragma unroll
        for (int i = 1; i < 4; i++)
            slice += m.sums[turn][i][from];
        turn ^= 1; /* who writes a half again has met everybody since */

        int unit_begin = at.unit * n_slices;
        bool ends = unit_begin + n_slices <= m.run.end, last = at.slice == n_slices - 1;
        float *places = slots + (ends ? (int)blockIdx.x : m.run.owner) * n_slices * LORA_UNIT +
                        thread;
        if (ends && unit_begin >= m.run.begin)
            total = at.slice == 0 ? slice : total + slice;
        else if (last)
            total = few_take(places, n_slices - 1) + slice;
        else /* to be kept for the last slice, if this block has it */
            put_sum(places + at.slice * LORA_UNIT, not_empty(slice));
        rank += unit.rank0;
        row += unit.row;
        if (last && row < cell.row_end && rank < lora_padded(cell.rank))
            v.t[(int64_t)row * v.t_stride + cell.t_at + rank] = __float2bfloat16_rn(
                rank < cell.rank ? cell.scale * total : 0);
        if (at.slice + 1 == at.slices_end && at.n_left > 1)
            unit = few_unit_at(m, n_cells, at.unit - 1, lane);
        at.next(m.run.begin, n_slices);
    }
}

__global__ static void __maxnreg__(FEW_REGISTERS)
    shrink_few_kernel(const bf16 *x, int d_in, int n_slices, float *slots,
                      const __grid_constant__ struct lora_view v)
{
    extern __shared__ float4 shared[];
    struct few_memory &m = *reinterpret_cast<struct few_memory *>(shared);
    int thread = (int)threadIdx.x, lane = thread & 31;
    bool producer = thread >= FEW_SUMMING;
    pdl_trigger();
    int n_segs = lora_n_segs(v), segs_max = few_segment(TABLE_CELLS, v.n_parts);
    int mine = few_segment(thread, v.n_parts);
    struct lora_seg seg = {};
    if (mine < v.n_segs) /* the most that there are: no need to wait for the number */
        seg = lora_seg_at(v, mine);
    if (thread == 0) {
        for (int i = 0; i < FEW_STAGES; i++) {
            barrier_init(&m.full[i], 1);
            barrier_init(&m.free[i], FEW_SUMMING);
        }
        barrier_init(&m.meet, FEW_THREADS);
        barrier_init_done();
    }
    __syncthreads(); /* the barriers are there */

    int stage = 0; /* of the ring */
    uint32_t phase = 0, met = 0;
    bool waited = false;
#pragma unroll 1
    for (int first = 0; first < n_segs; first += segs_max) {
        int n = n_segs - first < segs_max ? n_segs - first : segs_max, n_cells = n * v.n_parts;
        if (first > 0)
            barrier_meet(&m.meet, met); /* the last table has been read */
        few_fill(m, v, first, n, seg, first == 0 ? v.n_segs : 0, thread);
        barrier_meet(&m.meet, met);
        if (producer) {
            int n_units = few_count(m, n_cells, lane);
            struct shrink_run run = {};
            struct shrink_at at = shrink_run_of(run, (unsigned)n_units, (unsigned)n_slices,
                                                n_segs > segs_max);
            if (lane == 0) {
                m.run = run;
                m.at = at;
            }
            __syncwarp();
            named_arrive(1, FEW_THREADS);
            few_copy(m, at, n_cells, n_slices, d_in, stage, phase, lane);
        } else {
#pragma unroll 1
            for (int i = thread; i < n_cells; i += FEW_SUMMING)
                m.cells[i].t_at = few_t_at(m, v, first, i);
            named_sync(1, FEW_THREADS); /* the run and t_at are there */
            struct shrink_at at = m.at;
            if (at.n_left > 0) {
                struct few_unit unit = few_unit_at(m, n_cells, at.unit, lane);
                pdl_wait();
                waited = true;
                few_sum(m, at, unit, n_cells, n_slices, x, d_in, slots, v, stage, phase, thread);
            }
        }
    }
    /* Who has nothing to do makes room for expand; but some block waits, or the next kernel would
     * know nothing of those before this one. */
    if (!waited && blockIdx.x == 0)
        pdl_wait();
}

/* ---- launches
 * ---------------------------------------------------------------------------------------- */

bool lora_shrink(struct backend *be, const struct lora_view &v, const bf16 *x, int n_rows, int d_in)
{
    BUG_IF(d_in % 8 != 0);
    BUG_IF(lora_slices(d_in) > lora_slices(be->options.max_d));
    if (n_rows > 256) {
        lora_shrink_many(be, v, x, d_in);
        return true;
    }
    launch(be, "sgmv_shrink", shrink_few_kernel, dim3((unsigned)be->n_multiprocessors), FEW_THREADS,
           sizeof(struct few_memory), x, d_in, lora_slices(d_in), be->linear->shrink_slots, v);
    return false;
}

/* t' stays in the backend's own memory. */
void cuda_sgmv_shrink(struct backend *be, struct devptr t, struct devptr x, int n_rows, int d_in,
                      const struct lora_args *lora)
{
    (void)t;
    if (n_rows > 0 && lora != nullptr && lora->n_parts > 0)
        lora_shrink(be, lora_view_of(be, lora), dev<bf16>(x), n_rows, d_in);
}

int lora_open(struct err *err)
{
    cudaError_t rc = cudaFuncSetAttribute(shrink_few_kernel,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          (int)sizeof(struct few_memory));
    if (rc == cudaSuccess)
        rc = lora_shrink_many_open();
    return rc == cudaSuccess ? 0
                             : err_set(err, ERR_INTERNAL, "cuda: shared memory of sgmv_shrink: %s",
                                       cudaGetErrorString(rc));
}
