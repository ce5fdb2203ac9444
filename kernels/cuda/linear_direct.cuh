/* linear_direct.cuh: the deltas of linear_narrow.cuh and linear_middle.cuh straight from memory: of
 * any type and rank, a trip for every few ranks. linear_adapters.cuh has the fast way. Part of
 * linear.cu, whose head has the design. */
#ifndef TRIBUTARY_KERNELS_CUDA_LINEAR_DIRECT_CUH
#define TRIBUTARY_KERNELS_CUDA_LINEAR_DIRECT_CUH

#include "kernels/cuda/linear_shrink.cuh"

/* Four ranks r .. r + 3 of row `out` of a bf16 B whose rank is a multiple of 4, as two pairs. */
__device__ static inline void lora_load_b(uint32_t &lo, uint32_t &hi, uintptr_t b, int rank,
                                          int out, int r, bool live)
{
    uint2 v = make_uint2(0, 0);
    if (live && r < rank)
        v = __ldg(reinterpret_cast<const uint2 *>(
            b + ((uint32_t)out * (uint32_t)rank + (uint32_t)r) * 2ull));
    lo = v.x;
    hi = v.y;
}

/* The same as numbers, of any dtype and rank: of the outputs o0 and o1. */
__device__ static inline void lora_load_b_floats(float (&w)[8], const struct lora_cell &e, int o0,
                                                 int o1, bool live0, bool live1, int r)
{
    const void *b = reinterpret_cast<const void *>(e.b);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        bool inside = r + j < e.rank;
        w[j] = inside && live0 ? load_as_float(b, (int64_t)o0 * e.rank + r + j, e.dtype) : 0;
        w[4 + j] = inside && live1 ? load_as_float(b, (int64_t)o1 * e.rank + r + j, e.dtype) : 0;
    }
}

/* The segments among base .. base + 31 whose part p has rows in the tiles: a bit each. */
template <class Found>
__device__ static inline unsigned lora_touching(const Found &found, int n_parts, int p, int base,
                                                const int (&row)[2], int lane)
{
    bool touches = false;
    if (base + lane < found.head.n_segs) {
        struct lora_span span = found.spans[base + lane];
#pragma unroll
        for (int u = 0; u < 2; u++)
            touches |= span.row_begin < row[u] + 8 && span.row_end > row[u] && row[u] >= 0;
        touches = touches && span.row_begin < span.row_end &&
                  found.cells[(base + lane) * n_parts + p].rank > 0;
    }
    return __ballot_sync(0xffffffffu, touches);
}

/* Four ranks of the t' of row `row`, if that is one of the segment's. */
template <typename Load>
__device__ static inline uint2 lora_load_t(const struct lora_span &span,
                                           const struct lora_cell &cell, int row, int r, Load &load)
{
    if (row < span.row_begin || row >= span.row_end || r >= cell.rank)
        return make_uint2(0, 0);
    return load(cell, row, r);
}

/* Which of a segment's outputs a lane's rows g and g + 8 are. */
struct lora_lane {
    int o0, o1;
    bool live0, live1;
};

struct lora_sums { /* by value through calls: what is pointed to can't stay in registers */
    float c[2][4];
};

/* The next BATCH steps of the segments in left (a bit each), from rank next_rank of the first on; a
 * step is 16 ranks of a segment. No branches: a step too many multiplies zeros. */
template <int BATCH, class Found, typename Load>
__device__ static inline void lora_steps(float (&c)[2][4], const int (&row)[2], const Found &found,
                                         const struct lora_view &v, int p, int base, unsigned &left,
                                         int &next_rank, const struct lora_lane &o, int lane,
                                         Load &load)
{
    int g = lane >> 2, t = lane & 3;
    uint32_t a[BATCH][4];
    uint2 f[BATCH][2];
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        int s = base + (left != 0 ? __ffs((int)left) - 1 : 0), r = next_rank + 4 * t;
        const struct lora_cell cell = found.cells[s * v.n_parts + p];
        const struct lora_span span = found.spans[s];
        bool is_step = left != 0;
        lora_load_b(a[i][0], a[i][2], cell.b, cell.rank, o.o0, r, is_step && o.live0);
        lora_load_b(a[i][1], a[i][3], cell.b, cell.rank, o.o1, r, is_step && o.live1);
#pragma unroll
        for (int u = 0; u < 2; u++) {
            f[i][u] = make_uint2(0, 0);
            if (is_step && row[u] >= 0)
                f[i][u] = lora_load_t(span, cell, row[u] + g, r, load);
        }
        next_rank += 16;
        bool is_last = next_rank >= cell.rank;
        next_rank = is_last ? 0 : next_rank;
        left = is_last ? left & (left - 1) : left;
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++)
#pragma unroll
        for (int u = 0; u < 2; u++)
            mma_bf16(c[u], a[i][0], a[i][1], a[i][2], a[i][3], f[i][u].x, f[i][u].y);
}

/* The same, one after the other, with any type and rank of B. */
template <class Found, typename Load>
__device__ static __noinline__ struct lora_sums
lora_steps_planes(struct lora_sums sums, int row0, int row1, const Found &found,
                  const struct lora_view &v, int p, int base, unsigned left, struct lora_lane o,
                  int lane, Load load)
{
    const int row[2] = {row0, row1};
    int g = lane >> 2, t = lane & 3;
    for (; left != 0; left &= left - 1) {
        int s = base + __ffs((int)left) - 1;
        const struct lora_cell cell = found.cells[s * v.n_parts + p];
#pragma unroll 1
        for (int r0 = 0; r0 < cell.rank; r0 += 16) {
            float w[8];
            uint2 f[2];
            int r = r0 + 4 * t;
            lora_load_b_floats(w, cell, o.o0, o.o1, o.live0, o.live1, r);
#pragma unroll
            for (int u = 0; u < 2; u++)
                f[u] = row[u] >= 0 ? lora_load_t(found.spans[s], cell, row[u] + g, r, load)
                                   : make_uint2(0, 0);
#pragma unroll 1
            for (int plane = 0; plane < planes_of(cell.dtype); plane++) {
                uint32_t q0 = take_plane(w[0], w[1]), q2 = take_plane(w[2], w[3]);
                uint32_t q1 = take_plane(w[4], w[5]), q3 = take_plane(w[6], w[7]);
#pragma unroll
                for (int u = 0; u < 2; u++)
                    mma_bf16(sums.c[u], q0, q1, q2, q3, f[u].x, f[u].y);
            }
        }
    }
    return sums;
}

/* c[0], c[1] = the deltas of rows row[0] .. row[0] + 7 and row[1] .. row[1] + 7 (row[1] < 0: none)
 * for 16 outputs, as m16n8 tiles, by a warp. out[0], out[1]: the outputs that the lane's rows g and
 * g + 8 are, or -1. The loads of several steps are in flight together, and each fragment of B
 * serves both tiles. load(cell, row, rank): four ranks of a row of t'. */
template <class Found, typename Load>
__device__ static inline void lora_delta(float (&c)[2][4], const int (&row)[2], const Found &found,
                                         const struct lora_view &v, const int (&out)[2], int lane,
                                         Load load)
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        c[0][i] = c[1][i] = 0;
#pragma unroll 1
    for (int p = 0; p < v.n_parts; p++) {
        struct lora_lane o = {out[0] - v.part[p].out_begin, out[1] - v.part[p].out_begin, false,
                              false};
        o.live0 = out[0] >= 0 && o.o0 >= 0 && o.o0 < v.part[p].d_out;
        o.live1 = out[1] >= 0 && o.o1 >= 0 && o.o1 < v.part[p].d_out;
        if (!__any_sync(0xffffffffu, o.live0 || o.live1))
            continue;
#pragma unroll 1
        for (int base = 0; base < found.head.n_segs; base += 32) {
            unsigned left = lora_touching(found, v.n_parts, p, base, row, lane);
            int next_rank = 0;
            if (!found.head.plain) {
                struct lora_sums sums;
#pragma unroll
                for (int i = 0; i < 8; i++)
                    sums.c[i / 4][i % 4] = c[i / 4][i % 4];
                sums = lora_steps_planes(sums, row[0], row[1], found, v, p, base, left, o, lane,
                                         load);
#pragma unroll
                for (int i = 0; i < 8; i++)
                    c[i / 4][i % 4] = sums.c[i / 4][i % 4];
                continue;
            }
            while (left != 0) {
                if (found.head.rank <= 16 && __popc(left) <= 2)
                    lora_steps<2>(c, row, found, v, p, base, left, next_rank, o, lane, load);
                else
                    lora_steps<8>(c, row, found, v, p, base, left, next_rank, o, lane, load);
            }
        }
    }
}

/* The deltas of 16 packed outputs, straight from memory. A function of its own, so that the other
 * way keeps its registers. */
template <class Found>
__device__ static __noinline__ struct lora_sums narrow_direct(const struct linear_args &a,
                                                              const Found &found, int packed_row,
                                                              int row0, int row1, int lane)
{
    struct lora_sums sums = {};
    const int row[2] = {row0, row1};
    int out[2];
    outputs_of(out, a, packed_row);
    lora_delta(sums.c, row, found, a.lora, out, lane,
               [&](const struct lora_cell &cell, int my_row, int r) {
                   const uint64_t *from = word_of_t(a, my_row, cell.t_at + r);
                   uint64_t w[2];
                   await_words(w, found.head.tag, [&](int j) { return from + j; });
                   return make_uint2((uint32_t)w[0], (uint32_t)w[1]);
               });
    return sums;
}

#endif
