/* cpu_backend: choosing the instruction set, memory, and packing weights.
 *
 * A weight is packed once, into the panels that isa.h draws, and made int8 where asked, by all
 * threads; the file's pages are not needed afterwards. Large weights lie on 2 MiB pages when the
 * kernel has them: a decode step walks every weight once, and with 4 KiB pages each core would miss
 * its TLB every 4 KiB of that walk. */
#include "kernels/cpu/cpu.h"

#include "kernels/backends.h"
#include "kernels/numeric.h"
#include "kernels/ranges.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <cpuid.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HUGE_PAGE = 2 * 1024 * 1024, INLINE_WORK = 16384 };

void *scratch_reserve(struct scratch *s, size_t n_bytes)
{
    if (n_bytes > s->n_bytes) {
        free(s->memory);
        s->n_bytes = (n_bytes + n_bytes / 4 + 63) / 64 * 64;
        s->memory = aligned_alloc(64, s->n_bytes);
        if (s->memory == NULL) /* the engine sized the machine at open; here there is no way back */
            BUG("out of memory for %zu bytes of kernel scratch", s->n_bytes);
    }
    return s->memory;
}

void threads_reserve(struct backend *be, size_t n_bytes)
{
    for (int i = 0; i < pool_threads(be->pool); i++)
        scratch_reserve(&be->of_thread[i], n_bytes);
}

void x_int16_reserve(struct backend *be, int n_rows, int d_in)
{
    scratch_reserve(&be->x_int16, (size_t)n_rows * int8_x_stride(d_in) * sizeof(int16_t));
    scratch_reserve(&be->x_scale, (size_t)n_rows * int8_x_blocks(d_in) * sizeof(float));
}

void tiles_run(struct backend *be, int n_tiles, double work, pool_fn *fn, void *context)
{
    if (work < INLINE_WORK) {
        for (int tile = 0; tile < n_tiles; tile++)
            fn(context, tile, 0);
        return;
    }
    pool_run(be->pool, n_tiles, fn, context);
}

/* What a processor may have, in ascending order: each needs those before it. */
static const struct level {
    const char *name; /* TRIBUTARY_ISA (ops.h) */
    const struct isa *isa;
    const struct int8_products *int8;
} levels[] = {
    {"avx2", &isa_avx2, NULL},
    {"avx512", &isa_avx512, NULL},
    {"avx512vnni", &isa_avx512, &int8_avx512vnni},
};

/* How many of the levels this processor has. */
static size_t levels_here(void)
{
    __builtin_cpu_init();
    unsigned a, b, c = 0, d; /* clang 14 knows no name for F16C: leaf 1, ECX bit 29 */
    bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
    if (!f16c || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return 1;
    return __builtin_cpu_supports("avx512vnni") ? 3 : 2;
}

/* The best level, or the one that TRIBUTARY_ISA names. */
static const struct level *level_choose(struct err *err)
{
    const char *wish = getenv("TRIBUTARY_ISA");
    const size_t n_here = levels_here(), n = sizeof levels / sizeof *levels;
    if (n_here == 0) {
        err_set(err, ERR_UNSUPPORTED,
                "backend cpu needs a processor with AVX2, FMA and F16C (Intel Haswell or AMD "
                "Zen and newer); this one lacks them, use the slow backend ref instead");
        return NULL;
    }
    if (wish == NULL || *wish == '\0')
        return &levels[n_here - 1];
    for (size_t i = 0; i < n; i++)
        if (strcmp(wish, levels[i].name) == 0) {
            if (i < n_here)
                return &levels[i];
            err_set(err, ERR_UNSUPPORTED,
                    "backend cpu: TRIBUTARY_ISA=%s, but this processor has %s at best", wish,
                    levels[n_here - 1].name);
            return NULL;
        }
    err_set(err, ERR_INVALID, "backend cpu: TRIBUTARY_ISA=%s is none of avx2, avx512, avx512vnni",
            wish);
    return NULL;
}

static void cpu_close(struct backend *be)
{
    if (be == NULL)
        return;
    if (be->of_thread != NULL)
        for (int i = 0; i < pool_threads(be->pool); i++)
            free(be->of_thread[i].memory);
    free(be->of_thread);
    free(be->tasks.memory);
    free(be->lora_t.memory);
    free(be->lora_offset.memory);
    free(be->x_int16.memory);
    free(be->x_scale.memory);
    pool_free(be->pool);
    free(be);
}

static int cpu_open(struct backend **out, const struct backend_options *options, struct err *err)
{
    const struct level *level = level_choose(err);
    if (level == NULL)
        return -1;
    if (options->n_threads < 0 || options->n_threads > 1024)
        return err_set(err, ERR_INVALID, "backend cpu: %d threads is not between 0 and 1024",
                       options->n_threads);
    struct backend *be = xcalloc(1, sizeof *be);
    be->options = *options;
    be->isa = level->isa;
    be->int8 = options->weights_int8 ? level->int8 : NULL;
    be->pool = pool_create(options->n_threads > 0 ? options->n_threads : pool_physical_cores(),
                           err);
    if (be->pool == NULL) {
        free(be);
        return err_wrap(err, "backend cpu");
    }
    be->of_thread = xcalloc((size_t)pool_threads(be->pool), sizeof *be->of_thread);
    if (options->max_rank > 0) {
        threads_reserve(be, (size_t)options->max_rank * LORA_TILE_COLS * sizeof(float));
        scratch_reserve(&be->lora_t, (size_t)options->max_rank *
                                         (size_t)(options->max_rows > 0 ? options->max_rows : 1) *
                                         sizeof(float));
    }
    if (be->int8 != NULL && options->max_rows > 0 && options->max_d > 0)
        x_int16_reserve(be, options->max_rows, options->max_d);
    *out = be;
    return 0;
}

static void cpu_caps(struct backend *be, struct backend_caps *out)
{
    long page = sysconf(_SC_PAGESIZE), free_pages = sysconf(_SC_AVPHYS_PAGES),
         pages = sysconf(_SC_PHYS_PAGES);
    *out = (struct backend_caps){
        .activation = DTYPE_F32,
        .loads_in_place = false,
        .memory_free_bytes = page > 0 && free_pages > 0 ? (size_t)page * (size_t)free_pages : 0,
        .memory_total_bytes = page > 0 && pages > 0 ? (size_t)page * (size_t)pages : 0,
        .granule_bytes = ranges_granule(),
    };
    snprintf(out->description, sizeof out->description, "cpu: %s%s%s, %d thread%s%s", be->isa->name,
             be->int8 != NULL ? " " : "", be->int8 != NULL ? be->int8->name : "",
             pool_threads(be->pool), pool_threads(be->pool) == 1 ? "" : "s",
             be->options.weights_int8 ? ", int8 weights" : "");
}

static void *pages_alloc(size_t n_bytes)
{
    size_t align = n_bytes >= HUGE_PAGE ? HUGE_PAGE : 64;
    if (n_bytes > SIZE_MAX - align)
        return NULL;
    size_t rounded = (n_bytes + align - 1) / align * align;
    void *p = aligned_alloc(align, rounded ? rounded : align);
    if (p != NULL && align == HUGE_PAGE)
        (void)madvise(p, rounded, MADV_HUGEPAGE); /* a wish: 4 KiB pages work too */
    return p;
}

static int cpu_mem_alloc(struct backend *be, struct devptr *out, size_t n_bytes, struct err *err)
{
    (void)be;
    void *p = pages_alloc(n_bytes);
    if (p == NULL)
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu bytes", n_bytes);
    out->addr = (uintptr_t)p;
    return 0;
}

static void cpu_mem_free(struct backend *be, struct devptr p)
{
    (void)be;
    free((void *)p.addr);
}

static int cpu_mem_reserve(struct backend *be, struct devptr *out, size_t n_bytes, struct err *err)
{
    return ranges_reserve(&be->ranges, out, n_bytes, err);
}

static int cpu_mem_back(struct backend *be, struct devptr p, size_t n_bytes, struct err *err)
{
    return ranges_back(be->ranges, p, n_bytes, err);
}

static void cpu_mem_unback(struct backend *be, struct devptr p, size_t n_bytes)
{
    ranges_unback(be->ranges, p, n_bytes);
}

static void cpu_mem_release(struct backend *be, struct devptr p)
{
    ranges_release(&be->ranges, p);
}

static int cpu_host_alloc(struct backend *be, void **out, size_t n_bytes, struct err *err)
{
    (void)be;
    *out = pages_alloc(n_bytes);
    return *out != NULL ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for %zu bytes", n_bytes);
}

static void cpu_host_free(struct backend *be, void *p)
{
    (void)be;
    free(p);
}

static void cpu_upload(struct backend *be, struct devptr dst, const void *src, size_t n_bytes)
{
    (void)be;
    if (n_bytes > 0)
        memcpy((void *)dst.addr, src, n_bytes);
}

static void cpu_download(struct backend *be, void *dst, struct devptr src, size_t n_bytes)
{
    (void)be;
    if (n_bytes > 0)
        memcpy(dst, (const void *)src.addr, n_bytes);
}

static void cpu_lane_upload(struct backend *be, struct devptr dst, const void *src, size_t n_bytes,
                            size_t stride, int n_rows)
{
    for (int i = 0; i < n_rows; i++)
        cpu_upload(be, devptr_at(dst, (size_t)i * stride), (const char *)src + (size_t)i * stride,
                   n_bytes);
}

/* Everything before it is done: any number will do. */
static uint64_t cpu_mark(struct backend *be)
{
    (void)be;
    return 0;
}

static int cpu_wait(struct backend *be, uint64_t mark, struct err *err)
{
    (void)be;
    (void)mark;
    (void)err;
    return 0;
}

static bool cpu_lane_reached(struct backend *be, uint64_t mark)
{
    (void)be;
    (void)mark;
    return true;
}

static void cpu_lane_need(struct backend *be, uint64_t mark)
{
    (void)be;
    (void)mark;
}

/* Here an adapter is found where it is used. */
static void cpu_lora_look_up(struct backend *be, const struct lora_step *step,
                             const struct lora_linear *linears, int n_linears)
{
    (void)be, (void)step, (void)linears, (void)n_linears;
}

static int cpu_sync(struct backend *be, struct err *err)
{
    (void)be;
    (void)err;
    return 0;
}

struct pack {
    struct weight *w;
    const void *const *parts;
    const int *d_out;
    int n_parts;
    enum dtype dtype; /* of the parts */
};

/* Where output column `column` of the stacked parts begins in the file; NULL beyond the last. */
static const char *column_source(const struct pack *p, int column)
{
    for (int i = 0; i < p->n_parts; column -= p->d_out[i++])
        if (column < p->d_out[i])
            return (const char *)p->parts[i] +
                   (size_t)column * (size_t)p->w->d_in * dtype_bytes(p->dtype);
    return NULL;
}

static void pack_tile(void *context, int tile, int thread)
{
    (void)thread;
    const struct pack *p = context;
    const struct weight *w = p->w;
    const size_t bytes = packed_bytes(w->packed);
    char *to = w->tiles;
    memset(to + (size_t)tile * w->tile_bytes, 0, w->tile_bytes);
    for (int c = tile * TILE_COLS; c < (tile + 1) * TILE_COLS; c++) {
        const char *from = column_source(p, c);
        if (from == NULL)
            break;
        if (w->scale != NULL) {
            float scale = int8_scale(from, p->dtype, 0, w->d_in);
            w->scale[c] = scale;
            for (int k = 0; k < w->d_in; k++)
                to[weight_at(w, (size_t)c, (size_t)k)] = (char)int8_round(
                    element_f32(from, p->dtype, (size_t)k), scale);
            continue;
        }
        for (int k = 0; k < w->d_in; k++) /* memcpy: the file's rows need not be aligned */
            memcpy(to + weight_at(w, (size_t)c, (size_t)k), from + (size_t)k * bytes, bytes);
    }
}

static int cpu_weight_create(struct backend *be, struct weight **out, const void *const *parts,
                             const int *d_out, int n_parts, int d_in, enum dtype dtype,
                             struct err *err)
{
    BUG_IF(n_parts < 1 || d_in < 1);
    struct weight *w = xcalloc(1, sizeof *w);
    *w = (struct weight){.packed = !be->options.weights_int8 ? (enum packed)dtype
                                   : be->int8 != NULL        ? PACKED_INT8_PAIRS
                                                             : PACKED_INT8,
                         .d_in = d_in};
    for (int i = 0; i < n_parts; i++) {
        BUG_IF(d_out[i] < 1 || d_out[i] > INT_MAX - TILE_COLS - w->d_out);
        w->d_out += d_out[i];
    }
    w->n_tiles = (w->d_out + TILE_COLS - 1) / TILE_COLS;
    const size_t turn = (size_t)packed_turn(w->packed), turn_bytes = packed_turn_bytes(w->packed);
    const size_t turns = ((size_t)d_in + turn - 1) / turn;
    const bool tile_turns = be->isa->tile_turns;
    w->panel_step = tile_turns ? turn_bytes : turn_bytes * turns;
    w->turn_step = tile_turns ? turn_bytes * TILE_PANELS : turn_bytes;
    w->tile_bytes = turn_bytes * turns * TILE_PANELS;
    size_t n_bytes;
    if (__builtin_mul_overflow((size_t)w->n_tiles, w->tile_bytes, &n_bytes) ||
        (w->tiles = pages_alloc(n_bytes)) == NULL) {
        err_set(err, ERR_NO_MEMORY, "no memory to pack a weight of %d x %d", w->d_out, d_in);
        free(w);
        return -1;
    }
    if (be->options.weights_int8)
        w->scale = xcalloc((size_t)w->n_tiles * TILE_COLS, sizeof *w->scale);
    struct pack pack = {w, parts, d_out, n_parts, dtype};
    tiles_run(be, w->n_tiles, (double)w->d_out * d_in, pack_tile, &pack);
    *out = w;
    return 0;
}

static void cpu_weight_free(struct backend *be, struct weight *w)
{
    (void)be;
    if (w == NULL)
        return;
    free(w->tiles);
    free(w->scale);
    free(w);
}

/* Entries run at once: there is nothing to gain from recording. */
static bool cpu_record_begin(struct backend *be)
{
    (void)be;
    return false;
}

static int cpu_record_end(struct backend *be, struct recording **out, struct err *err)
{
    (void)be;
    (void)out;
    (void)err;
    BUG("record_end without record_begin");
}

static void cpu_replay(struct backend *be, struct recording *recording)
{
    (void)be;
    (void)recording;
    BUG("there are no recordings");
}

static void cpu_recording_free(struct backend *be, struct recording *recording)
{
    (void)be;
    BUG_IF(recording != NULL);
}

const struct ops ops_cpu = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .caps = cpu_caps,
    .mem_alloc = cpu_mem_alloc,
    .mem_free = cpu_mem_free,
    .mem_reserve = cpu_mem_reserve,
    .mem_back = cpu_mem_back,
    .mem_unback = cpu_mem_unback,
    .mem_release = cpu_mem_release,
    .host_alloc = cpu_host_alloc,
    .host_free = cpu_host_free,
    .upload = cpu_upload,
    .download = cpu_download,
    .sync = cpu_sync,
    .mark = cpu_mark,
    .wait = cpu_wait,
    .lane_upload = cpu_lane_upload,
    .lane_mark = cpu_mark,
    .lane_reached = cpu_lane_reached,
    .lane_need = cpu_lane_need,
    .weight_create = cpu_weight_create,
    .weight_free = cpu_weight_free,
    .embed = cpu_embed,
    .add_rmsnorm = cpu_add_rmsnorm,
    .lora_look_up = cpu_lora_look_up,
    .linear = cpu_linear,
    .sgmv_shrink = cpu_sgmv_shrink,
    .sgmv_expand = cpu_sgmv_expand,
    .rope_kv_write = cpu_rope_kv_write,
    .attention = cpu_attention,
    .linear_swiglu = cpu_linear_swiglu,
    .swiglu = cpu_swiglu,
    .gather_rows = cpu_gather_rows,
    .sample = cpu_sample,
    .score = cpu_score,
    .record_begin = cpu_record_begin,
    .record_end = cpu_record_end,
    .replay = cpu_replay,
    .recording_free = cpu_recording_free,
    .kv_copy_blocks = cpu_kv_copy_blocks,
};
