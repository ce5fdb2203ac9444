/* lora_look_up.cu: finds the adapters of a step's linears, all at once.
 *
 * segment -> slot -> entry -> matrix is a chain of dependent loads. Inside a linear each of them
 * takes as long as the weights that are on their way to that multiprocessor (linear.cu), for every
 * one of some hundred linears. So a step begins with one kernel that follows the chain for all of
 * them, and leaves for each a struct lora_found, which narrow's blocks copy into shared memory in
 * one trip, before the kernel before them has ended.
 *
 * A block for a linear. Three trips through an idle memory, some 4 us a step, and 15 KB a block at
 * most.
 *
 * Tags. Words that blocks hand on within a launch bear its tag (linear_shrink.cuh). A tag is made
 * here: found f of n, looked up for the r-th time, has 2^31 + (r n + f) mod 2^31: no two launches
 * have the same for 2^31 / n steps, and a word that is clear bears none. Each look-up clears a
 * piece of the words, so that none lives that long. */
#include "kernels/cuda/lora.cuh"

#include <cstring>

enum { THREADS = 128, SEGS = 2 * THREADS }; /* looked at: more than are found */

struct linear_sites { /* a linear, as it was told */
    const struct lora_entry *entries[LORA_PARTS_MAX];
    int n_parts, d_in, out_begin[LORA_PARTS_MAX], d_out[LORA_PARTS_MAX];
};

/* Place 0 is for a linear that wasn't told; those that were have 1 to n. */
struct lora_looked {
    int n;                        /* places, without 0 */
    struct linear_sites *sites;   /* [n] */
    struct linear_sites *d_sites; /* the same on the device */
    bool *open;                   /* [n] looked up, and not yet asked for */
    struct lora_found *d_found;   /* [n + 1] */
};

struct look_up_args {
    const struct linear_sites *sites; /* or null: one */
    struct linear_sites one;
    struct lora_view v; /* its segments */
    struct lora_found *found;
    int first_place, n_found;
    uint64_t *words[2]; /* that bear tags */
    int64_t n_words[2];
};

__global__ static void __launch_bounds__(THREADS)
    look_up_kernel(const __grid_constant__ struct look_up_args a)
{
    __shared__ struct lora_found f;
    __shared__ struct lora_seg segs[SEGS];
    __shared__ struct linear_sites sites;
    __shared__ int rank_max, width_max, run_max;
    int thread = (int)threadIdx.x, which = (int)blockIdx.x + a.first_place;
    struct lora_found *to = &a.found[which];
    pdl_wait();
    int n_all = lora_n_segs(a.v);
    uint32_t round = __ldcg(&to->head.round) + 1;
    if (thread == 0) {
        sites = a.sites != nullptr ? a.sites[blockIdx.x] : a.one;
        rank_max = width_max = run_max = 0;
    }
    int64_t n_words = a.n_words[0] + a.n_words[1];
    int64_t word = ((int64_t)round * (int)gridDim.x + (int)blockIdx.x) * THREADS + thread;
    word %= n_words;
    *(word < a.n_words[0] ? a.words[0] + word : a.words[1] + (word - a.n_words[0])) = 0;

    int n_looked = n_all < SEGS ? n_all : SEGS, n = 0;
    for (int s0 = 0; s0 < SEGS; s0 += THREADS) {
        int s = s0 + thread;
        bool is = s < n_looked;
        if (is)
            segs[s] = lora_seg_at(a.v, s);
        n += __syncthreads_count(is && segs[s].row_begin < LORA_FOUND_ROWS);
    }
    bool fits = n <= LORA_FOUND_SEGS;
    __syncthreads();
    static_assert(THREADS == LORA_FOUND_SEGS && THREADS == LORA_FOUND_ROWS, "one each");
    int n_parts = sites.n_parts, n_cells = fits ? n * n_parts : 0;
    bool plain = true;
    if (thread < n && fits) {
        int begin = segs[thread].row_begin, end = begin + segs[thread].n_rows;
        f.spans[thread].row_begin = begin;
        f.spans[thread].row_end = end < LORA_FOUND_ROWS ? end : LORA_FOUND_ROWS;
    }
    for (int i = thread; i < n_cells; i += THREADS) {
        struct lora_seg seg = segs[i / n_parts];
        struct lora_entry e = lora_entry_of(sites.entries[i % n_parts], seg.slot);
        f.cells[i] = {e.a.addr, e.b.addr, e.rank, e.dtype, seg.weight * e.scaling, 0};
        plain = plain && e.dtype == DTYPE_BF16 && e.rank % 4 == 0 && e.b.addr % 16 == 0;
    }
    bool all_plain = __syncthreads_and(plain);
    for (int i = thread; i < n_cells; i += THREADS) {
        int s = i / n_parts, at = 0, rank = f.cells[i].rank;
        for (int q = s * n_parts; q < i; q++)
            at += lora_padded(f.cells[q].rank);
        /* An ensemble's earlier segments lie over the same rows. */
        int row_begin = segs[s].row_begin;
        for (int u = s - 1; u >= 0; u--) {
            if (segs[u].n_rows == 0)
                continue;
            if (segs[u].row_begin != row_begin)
                break;
            for (int q = u * n_parts; q < (u + 1) * n_parts; q++)
                at += lora_padded(f.cells[q].rank);
        }
        f.cells[i].t_at = at;
        struct lora_span span = f.spans[s];
        f.unit_end[i] = (span.row_end - span.row_begin + 7) / 8 * ((rank + 15) / 16);
        atomicMax(&rank_max, rank);
        atomicMax(&width_max, at + rank);
    }
    lora_scan(f.unit_end, n_cells, thread, THREADS, 1);
    /* How much of t' my row has, and which segments the eight rows from mine on. */
    /* The first segment that ends behind the row. */
    auto first_behind = [&](int row) {
        int low = 0, high = fits ? n : 0;
        while (low < high) {
            int mid = (low + high) / 2;
            if (f.spans[mid].row_end > row)
                high = mid;
            else
                low = mid + 1;
        }
        return low;
    };
    int t_end = 0;
    for (int s = first_behind(thread); s < n && fits; s++) {
        struct lora_span span = f.spans[s];
        if (span.row_begin > thread)
            break;
        for (int p = 0; p < n_parts && thread < span.row_end; p++) {
            const struct lora_cell *cell = &f.cells[s * n_parts + p];
            t_end = cell->rank > 0 ? cell->t_at + cell->rank : t_end;
        }
    }
    if (thread % 8 == 0) {
        int begin = first_behind(thread), end = begin;
        while (end < n && fits && f.spans[end].row_begin < thread + 8)
            end++;
        f.units[thread / 8] = {begin, end};
        atomicMax(&run_max, end - begin);
    }
    f.t_end[thread] = t_end;
    __syncthreads();
    if (thread == 0) {
        f.head.n_segs = n;
        f.head.n_units = n_cells > 0 ? f.unit_end[n_cells - 1] : 0;
        f.head.rank = rank_max;
        f.head.width = width_max;
        f.head.plain = all_plain;
        f.head.tag = 0x80000000u | (round * (uint32_t)a.n_found + (uint32_t)which);
        f.head.round = round;
        f.head.run = run_max;
    }
    __syncthreads();
    auto copy = [&](size_t offset, size_t bytes) {
        const char *from = reinterpret_cast<const char *>(&f) + offset;
        char *at = reinterpret_cast<char *>(to) + offset;
        for (size_t i = (size_t)thread * 16; i < bytes; i += THREADS * 16)
            *reinterpret_cast<int4 *>(at + i) = *reinterpret_cast<const int4 *>(from + i);
    };
    copy(0, offsetof(struct lora_found, spans));
    if (fits) {
        copy(offsetof(struct lora_found, spans), (size_t)n * sizeof f.spans[0]);
        copy(offsetof(struct lora_found, unit_end), (size_t)n_cells * sizeof f.unit_end[0]);
        copy(offsetof(struct lora_found, cells), (size_t)n_cells * sizeof f.cells[0]);
    }
    pdl_trigger_written(); /* the kernels behind this one read it before their pdl_wait */
}

static void look_up(struct backend *be, const struct lora_step *step,
                    const struct linear_sites *one)
{
    struct lora_looked *l = be->linear->looked;
    struct look_up_args a = {};
    a.v = lora_segs_of(step);
    a.sites = one == nullptr ? l->d_sites : nullptr;
    if (one != nullptr)
        a.one = *one;
    a.found = l->d_found;
    a.first_place = one == nullptr ? 1 : 0;
    a.n_found = l->n + 1;
    a.words[0] = be->linear->tag_t;
    a.n_words[0] = (int64_t)LORA_FOUND_ROWS * (be->linear->t_stride / 2);
    a.words[1] = be->linear->tag_chains;
    a.n_words[1] = be->linear->n_tag_chains;
    launch(be, "adapters of a step", look_up_kernel, dim3((unsigned)(one == nullptr ? l->n : 1)),
           THREADS, 0, a);
}

static struct linear_sites sites_of(const struct lora_part *parts, int n_parts, int d_in)
{
    struct linear_sites s;
    BUG_IF(n_parts > LORA_PARTS_MAX);
    memset(&s, 0, sizeof s); /* they are compared byte by byte */
    s.n_parts = n_parts;
    s.d_in = d_in;
    for (int p = 0; p < n_parts; p++) {
        s.entries[p] = dev<const struct lora_entry>(parts[p].d_entries);
        s.out_begin[p] = parts[p].out_begin;
        s.d_out[p] = parts[p].d_out;
    }
    return s;
}

/* Memory for n places; tags begin anew, so the words that bear them are cleared. */
static cudaError_t make_places(struct backend *be, int n)
{
    struct lora_looked *l = be->linear->looked;
    size_t found_bytes = (size_t)(n + 1) * sizeof *l->d_found;
    cudaFree(l->d_found);
    cudaFree(l->d_sites);
    l->d_found = nullptr;
    l->d_sites = nullptr;
    delete[] l->sites;
    delete[] l->open;
    l->sites = new linear_sites[(size_t)n]();
    l->open = new bool[(size_t)n]();
    l->n = n;
    cudaError_t rc = cudaMalloc(&l->d_found, found_bytes);
    if (rc == cudaSuccess)
        rc = cudaMalloc(&l->d_sites, (size_t)(n + 1) * sizeof *l->d_sites);
    if (rc == cudaSuccess)
        rc = fill_async(be, l->d_found, 0, found_bytes);
    return rc == cudaSuccess ? lora_clear_words(be) : rc;
}

void cuda_lora_look_up(struct backend *be, const struct lora_step *step,
                       const struct lora_linear *linears, int n_linears)
{
    struct lora_looked *l = be->linear->looked;
    if (n_linears > l->n) {
        BUG_IF(be->recording); /* ops.h */
        CUDA_NOTE(be, cudaStreamSynchronize(be->stream));
        CUDA_NOTE(be, make_places(be, n_linears));
        if (be->fault != cudaSuccess)
            return;
    }
    bool same = true;
    for (int i = 0; i < n_linears; i++) {
        struct linear_sites s = sites_of(linears[i].parts, linears[i].n_parts, linears[i].d_in);
        same = same && memcmp(&s, &l->sites[i], sizeof s) == 0;
        l->sites[i] = s;
        l->open[i] = true;
    }
    for (int i = n_linears; i < l->n; i++) {
        same = same && l->sites[i].n_parts == 0;
        l->sites[i] = linear_sites{};
        l->open[i] = false;
    }
    if (!same) {
        BUG_IF(be->recording);
        CUDA_NOTE(be, copy_async(be, l->d_sites, l->sites, (size_t)l->n * sizeof *l->sites,
                                 cudaMemcpyHostToDevice));
    }
    look_up(be, step, nullptr);
}

/* A view of a place, with what it found. */
static struct lora_view view_of_place(struct backend *be, const struct lora_step *step, int place)
{
    const struct lora_looked *l = be->linear->looked;
    const struct linear_sites *s = &l->sites[place - 1];
    struct lora_view v = lora_segs_of(step);
    v.n_parts = s->n_parts;
    for (int p = 0; p < s->n_parts; p++) {
        v.part[p].entries = s->entries[p];
        v.part[p].out_begin = s->out_begin[p];
        v.part[p].d_out = s->d_out[p];
    }
    v.found = &l->d_found[place];
    return v;
}

void lora_find_all(struct backend *be, const struct lora_args *lora, int d_in)
{
    struct lora_looked *l = be->linear->looked;
    if (lora->place > 0) {
        BUG_IF(lora->place > l->n || !l->open[lora->place - 1]); /* ops.h: told, and asked once */
        l->open[lora->place - 1] = false;
        return;
    }
    struct linear_sites one = sites_of(lora->parts, lora->n_parts, d_in);
    look_up(be, lora->step, &one);
}

const struct lora_found *lora_found_at(const struct backend *be, const struct lora_args *lora)
{
    return &be->linear->looked->d_found[lora->place];
}

struct lora_view lora_next_of(struct backend *be, const struct lora_args *lora, int *d_in)
{
    const struct lora_looked *l = be->linear->looked;
    int place = lora->place + 1;
    if (lora->place == 0 || place > l->n || l->sites[place - 1].n_parts == 0)
        return {};
    *d_in = l->sites[place - 1].d_in;
    return view_of_place(be, lora->step, place);
}

cudaError_t lora_look_up_open(struct backend *be)
{
    be->linear->looked = new lora_looked{};
    return make_places(be, 0);
}

void lora_look_up_close(struct backend *be)
{
    struct lora_looked *l = be->linear->looked;
    if (l == nullptr)
        return;
    cudaFree(l->d_found);
    cudaFree(l->d_sites);
    delete[] l->sites;
    delete[] l->open;
    delete l;
}
