/* sample.cuh: how a row of logits becomes a token, on the device. Part of sample.cu, whose head has
 * the design: places, the cluster, scan, tops, select. */
#ifndef TRIBUTARY_KERNELS_CUDA_SAMPLE_CUH
#define TRIBUTARY_KERNELS_CUDA_SAMPLE_CUH

#include "kernels/cuda/async.cuh"

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstring>

enum {
    RANKS = 8, /* thread blocks of a row; a rank is one of them */
    SAMPLE_THREADS = 512,
    SAMPLE_WARPS = SAMPLE_THREADS / 32,
    VECTORS = 8, /* of four logits, in flight in each thread */
    SWEEP = SAMPLE_THREADS * 4,
    DIGIT_BITS = 8,
    BINS = 1 << DIGIT_BITS,
    LIST_MAX = 128,             /* candidates of a thread block that are sent to all */
    KEPT_BYTES_MAX = 184 << 10, /* of shared memory; a larger part is read from memory each time */
    ROWS_MAX = 256,             /* of one launch */
    SEEN_MAX = 4, /* rows whose parameters and results are read and written in host memory, without
                     a copy; for more the bus is slower than two copies */
    SPECIAL_MAX = 64, /* rows with penalties or bias in one launch */
    PENALISE_THREADS = 1024,
    VOCAB_MAX = 1 << 19, /* times a unit's 2^44 is below 2^64 */
};

static constexpr uint32_t FORBIDDEN =
    0xff800000u; /* the order of -inf; what isn't there is above */
static constexpr uint32_t NOT_HERE = 0xffffffffu;
static constexpr uint64_t NO_PLACE = ~0ull;
static constexpr uint64_t WHOLE = 1ull << 44; /* the best candidate's weight, in units */

struct sample_args {
    struct sample_result *results;      /* [n]; it and params perhaps in the host's memory */
    int32_t *tokens;                    /* [n] or NULL */
    const float *logits;                /* [n, vocab] */
    const struct sample_params *params; /* [n], or NULL: take `wanted` and `n_top` */
    const int32_t *wanted;              /* [n] */
    const int32_t *n_top;               /* [n], or NULL: 0 */
    const int32_t *special;             /* [n]: row of penalised or -1; or NULL: all -1 */
    const float *penalised;             /* [, vocab] */
    int vocab, part;                    /* logits of a thread block, a multiple of 4 */
    bool keeps;                         /* part * 4 bytes of shared memory are there */
};

/* ---- orders and places ----------------------------------------------------------------------- */

/* No number is -inf, +inf the largest finite, -0 equals 0. */
__device__ static inline float tame(float v)
{
    return v == v ? fminf(v, FLT_MAX) + 0.0f : -INFINITY;
}

__device__ static inline uint32_t order_of(float tamed)
{
    uint32_t bits = __float_as_uint(tamed);
    return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

__device__ static inline float logit_of(uint32_t order)
{
    return __uint_as_float(order & 0x80000000u ? order : ~order & 0x7fffffffu);
}

/* A place in the order of candidates: order above, id below. */
__device__ static inline uint64_t place_of(uint32_t order, uint32_t id)
{
    return (uint64_t)order << 32 | id;
}

__device__ static inline uint32_t place_order(uint64_t place)
{
    return (uint32_t)(place >> 32);
}

/* ---- the thread block and the cluster -------------------------------------------------------- */

struct message {
    uint64_t a, b;
};

/* What the ranks of a row send one another at a time: messages, and one kind of the rest. */
struct inbox {
    struct message messages[RANKS];
    union {
        uint64_t bins[RANKS][BINS];
        uint64_t places[RANKS][LIST_MAX];
    };
};

struct sample_shared {
    struct inbox inbox[2];
    uint64_t full[2]; /* barrier: all of inbox is there */
    struct message warps[2][SAMPLE_WARPS];
    uint32_t low[BINS], high[BINS]; /* histogram of u64 */
    uint64_t bin_sums[2][BINS / 32];
    uint64_t masses[BINS], other[BINS]; /* histograms found, as sums of bins up to each */
    int found_bin[2];
    uint64_t found_before[2];
    uint64_t list[LIST_MAX]; /* the first n_listed places */
    int n_listed;
    uint64_t heads[2 * SAMPLE_WARPS];
    uint64_t tops[RANKS][SAMPLE_TOP_MAX]; /* of rank 0; tops_full: all of it is there */
    uint64_t tops_full;
    double log_sum;
    union {
        struct sample_params params;
        uint64_t params_words[sizeof(struct sample_params) / sizeof(uint64_t)];
    };
    union {
        struct sample_result result;
        uint32_t result_words[sizeof(struct sample_result) / sizeof(uint32_t)];
    };
};

enum {
    PARAMS_WORDS = sizeof(struct sample_params) / sizeof(uint64_t),
    RESULT_WORDS = sizeof(struct sample_result) / sizeof(uint32_t),
};

/* What every thread knows of its part. Buffers that others read or write come in pairs, used in
 * turn: whoever uses the first one again has passed a barrier that all others reached after they
 * had done with it. */
struct part {
    struct sample_shared *s;
    float *kept;      /* tamed logits of [begin, end), padded to a multiple of 4; or NULL */
    const float *row; /* [vocab] */
    int begin, end;
    bool wide; /* row can be read by 16 bytes */
    unsigned inbox_turn, warps_turn, bins_turn, found_turn;
    float best;            /* logit */
    float steps_per_logit; /* of the first histogram */
    double log2_per_logit; /* log2(e) / temperature */
};

__device__ static inline int rank_here()
{
    return (int)blockIdx.x;
}

/* The barriers' phases end by one arrival and the bytes it expects. */
__device__ static inline void barriers_init(struct sample_shared *s)
{
    uint64_t *const barriers[] = {&s->full[0], &s->full[1], &s->tops_full};
    for (uint64_t *b : barriers)
        barrier_init(b, 1);
    barrier_init_done();
}

/* Stores at the same place in the thread block `rank` of the cluster, and counts the bytes on that
 * one's barrier: who waits there sees them. */
__device__ static inline void send_one(uint64_t *to, int rank, uint64_t *barrier, uint64_t a)
{
    asm volatile(
        "{.reg .b32 r, b; mapa.shared::cluster.u32 r, %0, %1;\n"
        "mapa.shared::cluster.u32 b, %2, %1;\n"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [r], %3, [b];}" ::"r"(
            shared_address(to)),
        "r"(rank), "r"(shared_address(barrier)), "l"(a)
        : "memory");
}

__device__ static inline void send_two(void *to, int rank, uint64_t *barrier, uint64_t a,
                                       uint64_t b)
{
    asm volatile("{.reg .b32 r, b; mapa.shared::cluster.u32 r, %0, %1;\n"
                 "mapa.shared::cluster.u32 b, %2, %1;\n"
                 "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b64 "
                 "[r], {%3, %4}, [b];}" ::"r"(shared_address(to)),
                 "r"(rank), "r"(shared_address(barrier)), "l"(a), "l"(b)
                 : "memory");
}

/* An exchange: inbox_begin, anything sent to all ranks' inbox_barrier, inbox_end. All ranks send
 * as much to each. */
__device__ static inline uint64_t *inbox_barrier(struct part *p)
{
    return &p->s->full[p->inbox_turn & 1];
}

__device__ static inline struct inbox *inbox_begin(struct part *p, size_t bytes_each)
{
    if (threadIdx.x == 0)
        barrier_expect(inbox_barrier(p), (uint32_t)(RANKS * bytes_each));
    return &p->s->inbox[p->inbox_turn & 1];
}

__device__ static inline void inbox_end(struct part *p)
{
    barrier_wait(inbox_barrier(p), p->inbox_turn >> 1 & 1);
    p->inbox_turn++;
}

/* Brings one message of each rank to all. a and b must be right on threads 0 to RANKS - 1. */
__device__ static inline const struct message *exchange(struct part *p, uint64_t a, uint64_t b)
{
    struct inbox *inbox = inbox_begin(p, sizeof(struct message));
    if (threadIdx.x < RANKS)
        send_two(&inbox->messages[rank_here()], (int)threadIdx.x, inbox_barrier(p), a, b);
    inbox_end(p);
    return inbox->messages;
}

__device__ static inline uint64_t warp_first(uint64_t place)
{
    uint32_t order = __reduce_min_sync(0xffffffffu, place_order(place));
    uint32_t id = place_order(place) == order ? (uint32_t)place : NOT_HERE;
    return place_of(order, __reduce_min_sync(0xffffffffu, id));
}

__device__ static inline uint64_t block_first(struct part *p, uint64_t place)
{
    struct message *warps = p->s->warps[p->warps_turn++ & 1];
    place = warp_first(place);
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32].a = place;
    __syncthreads();
    return warp_first(warps[threadIdx.x % SAMPLE_WARPS].a);
}

/* Of the thread block: the first of `first`, the last of `last`. */
__device__ static inline void block_range(struct part *p, uint64_t *first, uint64_t *last)
{
    struct message *warps = p->s->warps[p->warps_turn++ & 1];
    uint64_t a = warp_first(*first), b = warp_first(~*last);
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = (struct message){a, b};
    __syncthreads();
    *first = warp_first(warps[threadIdx.x % SAMPLE_WARPS].a);
    *last = ~warp_first(warps[threadIdx.x % SAMPLE_WARPS].b);
}

__device__ static inline void row_range(struct part *p, uint64_t *first, uint64_t *last)
{
    block_range(p, first, last);
    const struct message *all = exchange(p, *first, *last);
    for (int r = 0; r < RANKS; r++) {
        *first = min(*first, all[r].a);
        *last = max(*last, all[r].b);
    }
}

__device__ static inline uint64_t row_sum(struct part *p, uint64_t v)
{
    struct message *warps = p->s->warps[p->warps_turn++ & 1];
    for (int o = 16; o > 0; o >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, o);
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32].a = v;
    __syncthreads();
    v = 0;
    for (int i = 0; i < SAMPLE_WARPS; i++)
        v += warps[i].a;
    const struct message *all = exchange(p, v, 0);
    v = 0;
    for (int r = 0; r < RANKS; r++)
        v += all[r].a;
    return v;
}

/* ---- scan ------------------------------------------------------------------------------------ */

/* Four logits at i, as they are; -inf from `end` on. */
template <bool WIDE> __device__ static inline float4 load_four(const float *row, int i, int end)
{
    float4 v = make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    if (WIDE) {
        if (i < end)
            v = *reinterpret_cast<const float4 *>(row + i);
    } else {
        v.x = i < end ? row[i] : v.x;
        v.y = i + 1 < end ? row[i + 1] : v.y;
        v.z = i + 2 < end ? row[i + 2] : v.z;
        v.w = i + 3 < end ? row[i + 3] : v.w;
    }
    return v;
}

__device__ static inline float4 tame_four(float4 v)
{
    return make_float4(tame(v.x), tame(v.y), tame(v.z), tame(v.w));
}

struct scanned {
    uint64_t mine;  /* place of this thread's best */
    uint64_t first; /* of the thread block's */
    double sum;     /* of exponentials, relative to that */
};

/* Reads p->row, and keeps it if there is room. Element i of a part belongs to the same thread and
 * the same place in its sum whatever the address. Thread i's params_word becomes word i of the
 * parameters in shared memory: they had time to come here meanwhile. */
__device__ static struct scanned scan(struct part *p, uint64_t params_word)
{
    float best = -INFINITY, sum = 0;
    uint32_t id = NOT_HERE;
    for (int base = p->begin; base < p->end; base += VECTORS * SWEEP) {
        const int mine = base + (int)threadIdx.x * 4; /* the first of them */
        const int left = p->end - mine;
        float4 v[VECTORS];
        float top = -INFINITY;
        if (p->wide) { /* no branches, so that all are under way together */
#pragma unroll
            for (int k = 0; k < VECTORS; k++)
                v[k] = k * SWEEP < left
                           ? *reinterpret_cast<const float4 *>(p->row + mine + k * SWEEP)
                           : make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
        } else {
#pragma unroll
            for (int k = 0; k < VECTORS; k++)
                v[k] = load_four<false>(p->row, mine + k * SWEEP, p->end);
        }
#pragma unroll
        for (int k = 0; k < VECTORS; k++) {
            v[k] = tame_four(v[k]);
            if (p->kept != nullptr && k * SWEEP < left)
                *reinterpret_cast<float4 *>(p->kept + mine - p->begin + k * SWEEP) = v[k];
            top = fmaxf(top, fmaxf(fmaxf(v[k].x, v[k].y), fmaxf(v[k].z, v[k].w)));
        }
        if (top > best || (id == NOT_HERE && left > 0)) {
            int lowest = 0; /* the lowest id: what is past the end is -inf, and behind */
#pragma unroll
            for (int k = VECTORS - 1; k >= 0; k--) {
                lowest = v[k].w == top ? k * SWEEP + 3 : lowest;
                lowest = v[k].z == top ? k * SWEEP + 2 : lowest;
                lowest = v[k].y == top ? k * SWEEP + 1 : lowest;
                lowest = v[k].x == top ? k * SWEEP : lowest;
            }
            id = (uint32_t)(mine + lowest);
        }
        float next = fmaxf(best, top), from = next == -INFINITY ? 0.0f : next;
        sum *= __expf(best - from);
#pragma unroll
        for (int k = 0; k < VECTORS; k++)
            sum += (__expf(v[k].x - from) + __expf(v[k].y - from)) +
                   (__expf(v[k].z - from) + __expf(v[k].w - from));
        best = next;
    }
    if (threadIdx.x < PARAMS_WORDS)
        p->s->params_words[threadIdx.x] = params_word;
    struct scanned result;
    result.mine = id == NOT_HERE ? NO_PLACE : place_of(order_of(best), id);
    auto best_of = [](uint64_t place) {
        return place_order(place) < FORBIDDEN ? logit_of(place_order(place)) : 0.0f;
    };
    struct message *warps = p->s->warps[p->warps_turn++ & 1];
    uint64_t first = warp_first(result.mine);
    sum = warp_sum(sum * __expf(best - best_of(first)));
    if (threadIdx.x % 32 == 0)
        warps[threadIdx.x / 32] = (struct message){first, __float_as_uint(sum)};
    __syncthreads();
    struct message m = warps[threadIdx.x % SAMPLE_WARPS];
    result.first = warp_first(m.a);
    sum = __uint_as_float((uint32_t)m.b);
    result.sum = sum > 0 ? (double)(sum * __expf(best_of(m.a) - best_of(result.first))) : 0;
    for (int o = SAMPLE_WARPS / 2; o > 0; o >>= 1)
        result.sum += __shfl_xor_sync(0xffffffffu, result.sum, o);
    return result;
}

/* Returns the place of the row's best. Thread 0 of rank 0 leaves log_sum, 0 when all are -inf. */
__device__ static uint64_t scan_end(struct part *p, const struct scanned &mine, bool want_sum)
{
    const struct message *all = exchange(p, mine.first, (uint64_t)__double_as_longlong(mine.sum));
    uint64_t first = NO_PLACE;
    for (int r = 0; r < RANKS; r++)
        first = min(first, all[r].a);
    if (want_sum && rank_here() == 0 && threadIdx.x < 32) {
        const struct message &one = all[threadIdx.x % RANKS];
        bool any = place_order(one.a) < FORBIDDEN;
        double top = (double)logit_of(place_order(first));
        double sum = any ? __longlong_as_double((long long)one.b) *
                               exp((double)logit_of(place_order(one.a)) - top)
                         : 0;
        for (int o = RANKS / 2; o > 0; o >>= 1)
            sum += __shfl_xor_sync(0xffffffffu, sum, o);
        if (threadIdx.x == 0)
            p->s->log_sum = place_order(first) < FORBIDDEN ? top + log(sum) : 0;
    }
    return first;
}

/* f(orders, i) for this thread's candidates i to i + 3, ascending: those that it kept itself. The
 * order of what isn't there is NOT_HERE. */
template <typename F> __device__ static inline void each_four(const struct part *p, F f)
{
    for (int i = p->begin + (int)threadIdx.x * 4; i < p->end; i += SWEEP) {
        float4 v = p->kept != nullptr ? *reinterpret_cast<const float4 *>(p->kept + i - p->begin)
                   : p->wide          ? tame_four(load_four<true>(p->row, i, p->end))
                                      : tame_four(load_four<false>(p->row, i, p->end));
        uint32_t orders[4] = {order_of(v.x), i + 1 < p->end ? order_of(v.y) : NOT_HERE,
                              i + 2 < p->end ? order_of(v.z) : NOT_HERE,
                              i + 3 < p->end ? order_of(v.w) : NOT_HERE};
        f(orders, (uint32_t)i);
    }
}

template <typename F> __device__ static inline void each(const struct part *p, F f)
{
    each_four(p, [&](const uint32_t(&orders)[4], uint32_t i) {
#pragma unroll
        for (uint32_t k = 0; k < 4; k++)
            f(orders[k], i + k);
    });
}

/* Lists the thread block's candidates that are `in`; s->n_listed says how many there are, even if
 * not all have room. It is 0 before. */
template <typename In> __device__ static inline int list_places(struct part *p, In in)
{
    struct sample_shared *s = p->s;
    each(p, [&](uint32_t order, uint32_t id) {
        if (!in(order, id))
            return;
        int at = atomicAdd(&s->n_listed, 1);
        if (at < LIST_MAX)
            s->list[at] = place_of(order, id);
    });
    __syncthreads();
    return s->n_listed;
}

/* ---- tops ------------------------------------------------------------------------------------ */

__device__ static inline int count_before(const uint64_t *places, int n, uint64_t place)
{
    int before = 0;
#pragma unroll 8
    for (int i = 0; i < n; i++)
        before += places[i] < place;
    return before;
}

__device__ static inline uint64_t first_behind(const struct part *p, uint64_t last)
{
    uint64_t first = NO_PLACE;
    each(p, [&](uint32_t order, uint32_t id) {
        uint64_t place = place_of(order, id);
        if (order != NOT_HERE && place > last)
            first = min(first, place);
    });
    return first;
}

/* 1 <= n <= SAMPLE_TOP_MAX; `mine` is this thread's best. Rank 0's go into s->result. */
__device__ static void tops(struct part *p, uint64_t mine, int n)
{
    struct sample_shared *s = p->s;
    /* The n-th of some is no better than the n-th of all: so all n are up to there. Some are the
     * bests of the two best threads of each warp. */
    int lane = (int)threadIdx.x % 32;
    uint64_t first = warp_first(mine), second = warp_first(mine == first ? NO_PLACE : mine);
    if (lane == 0) {
        s->heads[threadIdx.x / 32 * 2] = first;
        s->heads[threadIdx.x / 32 * 2 + 1] = second;
    }
    if (threadIdx.x == 0) {
        s->n_listed = 0;
        if (rank_here() == 0)
            barrier_expect(&s->tops_full, (uint32_t)(RANKS * n * (int)sizeof(uint64_t)));
    }
    __syncthreads();
    static_assert(2 * SAMPLE_WARPS == 32, "a head for each lane");
    uint64_t head = s->heads[lane];
    uint64_t bound = warp_first(count_before(s->heads, 32, head) == n - 1 ? head : NO_PLACE);
    int n_listed = list_places(p, [&](uint32_t order, uint32_t id) {
        return order != NOT_HERE && place_of(order, id) <= bound;
    });
    if (n_listed <= LIST_MAX) {
        if ((int)threadIdx.x < LIST_MAX) {
            bool is = (int)threadIdx.x < n_listed;
            uint64_t place = is ? s->list[threadIdx.x] : NO_PLACE;
            int at = is ? count_before(s->list, n_listed, place) : (int)threadIdx.x;
            if (at < n)
                send_one(&s->tops[rank_here()][at], 0, &s->tops_full, place);
        }
    } else { /* many equal ones, or most of the best in one warp */
        for (int k = 0; k < n; k++) {
            first = block_first(p, mine);
            if (threadIdx.x == 0)
                send_one(&s->tops[rank_here()][k], 0, &s->tops_full, first);
            if (mine == first && first != NO_PLACE)
                mine = first_behind(p, first);
        }
    }
    if (rank_here() != 0)
        return;
    barrier_wait(&s->tops_full, 0);
    if ((int)threadIdx.x < RANKS * n) {
        uint64_t place = s->tops[(int)threadIdx.x / n][(int)threadIdx.x % n];
        int at = 0;
        for (int r = 0; r < RANKS; r++)
            at += count_before(s->tops[r], n, place);
        if (at < n && place != NO_PLACE) {
            s->result.top_ids[at] = (int32_t)(uint32_t)place;
            s->result.top_logprobs[at] = (float)((double)logit_of(place_order(place)) - s->log_sum);
        }
    }
}

/* ---- select ---------------------------------------------------------------------------------- */

/* exp((logit - best) / temperature) */
__device__ static inline double probability(const struct part *p, uint32_t order)
{
    double x = ((double)logit_of(order) - (double)p->best) / (double)p->s->params.temperature;
    return x > -32.0 ? exp(x) : 0; /* e^-32 is less than half a unit */
}

/* The same in units, by a polynomial for 2^f, |f| <= 0.5, of relative error below 2^-44
 * (interpolated at Chebyshev's points), and without a conversion. 0 of what is forbidden or isn't
 * there. */
__device__ static inline uint64_t mass_of(const struct part *p, uint32_t order)
{
    constexpr double TO_INTEGER = 0x1.8p52;
    double d = (double)logit_of(order) - (double)p->best, scale = p->log2_per_logit;
    double z = fma(d, scale, TO_INTEGER);        /* its low word is the integer part, n */
    double f = fma(d, scale, -(z - TO_INTEGER)); /* nonsense below -46, where the mass is 0 */
    double y = 0x1.b63880a30e9ffp-24;
    y = fma(y, f, 0x1.63d136366db24p-20);
    y = fma(y, f, 0x1.ffcb9515a8016p-17);
    y = fma(y, f, 0x1.4308ac85aa947p-13);
    y = fma(y, f, 0x1.5d87fe86fe88ep-10);
    y = fma(y, f, 0x1.3b2ab7181b755p-7);
    y = fma(y, f, 0x1.c6b08d7047e52p-5);
    y = fma(y, f, 0x1.ebfbdff823cedp-3);
    y = fma(y, f, 0x1.62e42fefa39efp-1);
    y = fma(y, f, 1.0);
    uint32_t n = (uint32_t)__double_as_longlong(z);
    double whole = __longlong_as_double((long long)((uint64_t)(1023 + 44 + n) << 52));
    uint64_t bits = (uint64_t)__double_as_longlong(fma(y, whole, 0x1p52)); /* rounds to units */
    return order < FORBIDDEN && z >= TO_INTEGER - 46 ? bits & ((1ull << 52) - 1) : 0;
}

/* Monotonic in the order: every operation rounds monotonically. */
__device__ static inline int step_of(const struct part *p, uint32_t order)
{
    return (int)fminf((p->best - logit_of(order)) * p->steps_per_logit, (float)(BINS - 1));
}

/* A thread's additions to the histogram; those of one bin in a row are made at once. */
struct tally {
    uint32_t bin;
    uint64_t sum;
};

__device__ static inline void tally_flush(struct part *p, struct tally *t)
{
    if (t->sum == 0)
        return;
    uint32_t add = (uint32_t)t->sum, before = atomicAdd(&p->s->low[t->bin], add);
    uint32_t high = (uint32_t)(t->sum >> 32) + (before + add < before); /* the carry */
    if (high != 0)
        atomicAdd(&p->s->high[t->bin], high);
}

__device__ static inline void tally_add(struct part *p, struct tally *t, uint32_t bin,
                                        uint64_t weight)
{
    if (weight == 0)
        return;
    if (bin != t->bin) {
        tally_flush(p, t);
        t->bin = bin;
        t->sum = 0;
    }
    t->sum += weight;
}

/* Writes the cumulative sums; `sum` is that of bin threadIdx.x. Empties the thread block's
 * histogram; who adds to it next has to pass a barrier first. */
__device__ static inline void accumulate(struct part *p, uint64_t sum, uint64_t *upto)
{
    struct sample_shared *s = p->s;
    uint64_t *bin_sums = s->bin_sums[p->bins_turn++ & 1];
    for (int o = 1; o < 32; o <<= 1) {
        uint64_t other = __shfl_up_sync(0xffffffffu, sum, o);
        if ((int)(threadIdx.x % 32) >= o)
            sum += other;
    }
    if (threadIdx.x < BINS && threadIdx.x % 32 == 31)
        bin_sums[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < BINS) {
#pragma unroll
        for (int w = 0; w < BINS / 32 - 1; w++)
            sum += w < (int)threadIdx.x / 32 ? bin_sums[w] : 0;
        upto[threadIdx.x] = sum;
        s->low[threadIdx.x] = 0;
        s->high[threadIdx.x] = 0;
    }
    __syncthreads();
}

__device__ static inline uint64_t bin_sum(const struct sample_shared *s, int bin)
{
    return (uint64_t)s->high[bin] << 32 | s->low[bin];
}

/* After all of a thread block's additions: the histogram of the thread block alone. */
__device__ static inline void block_histogram(struct part *p, uint64_t *upto)
{
    __syncthreads();
    accumulate(p, threadIdx.x < BINS ? bin_sum(p->s, (int)threadIdx.x) : 0, upto);
}

/* The same of the row. */
__device__ static inline void row_histogram(struct part *p, uint64_t *upto)
{
    __syncthreads();
    struct inbox *inbox = inbox_begin(p, BINS * sizeof(uint64_t));
#pragma unroll
    for (int k = (int)threadIdx.x; k < RANKS * BINS / 2; k += SAMPLE_THREADS) {
        int bin = k % (BINS / 2) * 2;
        send_two(&inbox->bins[rank_here()][bin], k / (BINS / 2), inbox_barrier(p),
                 bin_sum(p->s, bin), bin_sum(p->s, bin + 1));
    }
    inbox_end(p);
    uint64_t sum = 0;
    if (threadIdx.x < BINS) {
#pragma unroll
        for (int r = 0; r < RANKS; r++)
            sum += inbox->bins[r][threadIdx.x];
    }
    accumulate(p, sum, upto);
}

struct located {
    int bin;
    uint64_t before;
};

/* The first bin at which the cumulative sum reaches goal; 1 <= goal <= upto[BINS - 1]. */
__device__ static struct located locate(struct part *p, const uint64_t *upto, uint64_t goal)
{
    struct sample_shared *s = p->s;
    unsigned turn = p->found_turn++ & 1;
    if (threadIdx.x < BINS) {
        uint64_t before = threadIdx.x > 0 ? upto[threadIdx.x - 1] : 0;
        if (upto[threadIdx.x] >= goal && before < goal) {
            s->found_bin[turn] = (int)threadIdx.x;
            s->found_before[turn] = before;
        }
    }
    __syncthreads();
    return (struct located){s->found_bin[turn], s->found_before[turn]};
}

__device__ static inline int digit_shift(uint64_t first, uint64_t last)
{
    return max(64 - __clzll((long long)(last - first)) - (int)DIGIT_BITS, 0);
}

/* Among the places sent to all: the first at which the cumulative weight reaches *goal; *goal
 * becomes what was missing before it. */
template <typename Weight>
__device__ static uint64_t pick(struct part *p, const struct inbox *inbox, Weight weight,
                                uint64_t *goal)
{
    enum { EACH = RANKS * LIST_MAX / SAMPLE_THREADS };
    uint64_t places[EACH];
#pragma unroll
    for (int k = 0; k < EACH; k++) {
        int i = (int)threadIdx.x + k * SAMPLE_THREADS;
        places[k] = inbox->places[i / LIST_MAX][i % LIST_MAX];
    }
    for (;;) {
        uint64_t first = NO_PLACE, last = 0;
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            first = min(first, places[k]);
            last = max(last, places[k] != NO_PLACE ? places[k] : 0);
        }
        block_range(p, &first, &last);
        if (first >= last) /* one is left */
            return first;
        int shift = digit_shift(first, last);
        struct tally t = {0, 0};
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            if (places[k] != NO_PLACE)
                tally_add(p, &t, (uint32_t)((places[k] - first) >> shift),
                          weight(place_order(places[k])));
        }
        tally_flush(p, &t);
        block_histogram(p, p->s->other);
        struct located l = locate(p, p->s->other, *goal);
        *goal -= l.before;
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            if (places[k] != NO_PLACE && (places[k] - first) >> shift != (uint64_t)l.bin)
                places[k] = NO_PLACE;
        }
    }
}

struct selected {
    uint64_t place;
    uint64_t upto; /* cumulative weight, its own included */
};

/* upto: the first histogram, by the same weight; 1 <= goal <= upto[BINS - 1]. */
template <typename Weight>
__device__ static struct selected select(struct part *p, const uint64_t *upto, uint64_t goal,
                                         Weight weight)
{
    struct sample_shared *s = p->s;
    struct located l = locate(p, upto, goal);
    uint64_t missing = goal - l.before, first = 0, last = NO_PLACE; /* candidates from, to */
    bool by_step = true;                                            /* only those of step l.bin */
    auto in = [&](uint32_t order, uint32_t id) {
        uint64_t place = place_of(order, id);
        return order < FORBIDDEN &&
               (by_step ? step_of(p, order) == l.bin : place >= first && place <= last);
    };
    for (;;) {
        if (threadIdx.x == 0)
            s->n_listed = 0;
        __syncthreads();
        int n = list_places(p, in);
        struct inbox *inbox = inbox_begin(p, sizeof(struct message) + LIST_MAX * sizeof(uint64_t));
        if (threadIdx.x < RANKS)
            send_two(&inbox->messages[rank_here()], (int)threadIdx.x, inbox_barrier(p), (uint64_t)n,
                     0);
#pragma unroll
        for (int k = (int)threadIdx.x; k < RANKS * LIST_MAX / 2; k += SAMPLE_THREADS) {
            int at = k % (LIST_MAX / 2) * 2;
            send_two(&inbox->places[rank_here()][at], k / (LIST_MAX / 2), inbox_barrier(p),
                     at < n ? s->list[at] : NO_PLACE, at + 1 < n ? s->list[at + 1] : NO_PLACE);
        }
        inbox_end(p);
        bool fit = true;
#pragma unroll
        for (int r = 0; r < RANKS; r++)
            fit = fit && inbox->messages[r].a <= LIST_MAX;
        if (fit) {
            struct selected result;
            result.place = pick(p, inbox, weight, &missing);
            result.upto = goal - missing + weight(place_order(result.place));
            return result;
        }
        uint64_t low = NO_PLACE, high = 0;
        each(p, [&](uint32_t order, uint32_t id) {
            if (in(order, id)) {
                low = min(low, place_of(order, id));
                high = max(high, place_of(order, id));
            }
        });
        row_range(p, &low, &high);
        int shift = digit_shift(low, high);
        struct tally t = {0, 0};
        each(p, [&](uint32_t order, uint32_t id) {
            uint64_t place = place_of(order, id);
            if (place >= low && place <= high)
                tally_add(p, &t, (uint32_t)((place - low) >> shift), weight(order));
        });
        tally_flush(p, &t);
        row_histogram(p, s->other);
        struct located digit = locate(p, s->other, missing);
        missing -= digit.before;
        first = low + ((uint64_t)digit.bin << shift);
        last = min(high, first + ((uint64_t)1 << shift) - 1);
        by_step = false;
    }
}

/* weight: of any order, 0 of what is no candidate. */
template <typename Weight>
__device__ static void first_histogram(struct part *p, Weight weight, uint64_t *upto)
{
    __syncthreads();
    struct tally t = {0, 0};
    each_four(p, [&](const uint32_t(&orders)[4], uint32_t) {
        uint64_t weights[4];
#pragma unroll
        for (int k = 0; k < 4; k++)
            weights[k] = weight(orders[k]);
#pragma unroll
        for (int k = 0; k < 4; k++)
            tally_add(p, &t, (uint32_t)step_of(p, orders[k]), weights[k]);
    });
    tally_flush(p, &t);
    row_histogram(p, upto);
}

/* Philox4x32-10 as in kernels/philox.h: ops_uniform. */
__device__ static float uniform(uint64_t seed, uint64_t position)
{
    uint32_t c0 = (uint32_t)position, c1 = (uint32_t)(position >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (float)(c0 >> 8) * 0x1p-24f;
}

/* temperature > 0 and a candidate that isn't forbidden. Returns the place drawn. */
__device__ static uint64_t draw(struct part *p, uint64_t best)
{
    struct sample_shared *s = p->s;
    const struct sample_params &o = s->params;
    p->best = logit_of(place_order(best));
    p->log2_per_logit = 1.4426950408889634 / (double)o.temperature;
    p->steps_per_logit = fminf(8.0f / o.temperature, FLT_MAX); /* 256 steps reach e^-32 */
    for (int i = (int)threadIdx.x; i < BINS; i += SAMPLE_THREADS)
        s->low[i] = s->high[i] = 0;
    auto mass = [&](uint32_t order) { return mass_of(p, order); };
    auto one = [](uint32_t order) { return (uint64_t)(order < FORBIDDEN); };
    first_histogram(p, mass, s->masses);
    uint64_t kept = s->masses[BINS - 1];
    if (o.top_k > 0) {
        first_histogram(p, one, s->other);
        if ((uint64_t)o.top_k < s->other[BINS - 1]) {
            uint64_t last = select(p, s->other, (uint64_t)o.top_k, one).place, sum = 0;
            each(p, [&](uint32_t order, uint32_t id) {
                if (place_of(order, id) <= last)
                    sum += mass(order);
            });
            kept = row_sum(p, sum);
        }
    }
    if (o.top_p < 1) {
        /* A prefix reaches p * kept when its sum, an integer, reaches that rounded up. */
        uint64_t goal = o.top_p > 0 ? (uint64_t)ceil((double)o.top_p * (double)kept) : 1;
        goal = min(max(goal, (uint64_t)1), kept);
        kept = select(p, s->masses, goal, mass).upto;
    }
    if (o.min_p > 0) {
        uint64_t sum = 0;
        each(p, [&](uint32_t order, uint32_t) {
            if (order < FORBIDDEN && probability(p, order) >= (double)o.min_p)
                sum += mass(order);
        });
        kept = min(kept, max(row_sum(p, sum), WHOLE));
    }
    /* The first whose cumulative sum exceeds u * kept reaches that rounded down, and one. */
    uint64_t goal = (uint64_t)((double)uniform(o.seed, o.position) * (double)kept) + 1;
    goal = min(goal, kept);
    uint64_t place = select(p, s->masses, goal, mass).place;
    return place != NO_PLACE ? place : place_of(order_of(p->best), 0); /* never */
}

#endif
