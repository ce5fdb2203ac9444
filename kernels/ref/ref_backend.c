/* ref_backend: opening, memory and weights of the reference backend.
 *
 * "Device" memory is the heap, every call runs at once, sync has nothing to wait for. A weight
 * keeps the caller's pointers (loads_in_place), so loading a model costs no memory beyond its mmap.
 */
#include "kernels/ref/ref.h"

#include "kernels/backends.h"
#include "kernels/ranges.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int ref_open(struct backend **out, const struct backend_options *options, struct err *err)
{
    (void)err;
    struct backend *be = xcalloc(1, sizeof *be);
    be->options = *options;
    *out = be;
    return 0;
}

static void ref_close(struct backend *be)
{
    free(be);
}

static void ref_caps(struct backend *be, struct backend_caps *out)
{
    long page = sysconf(_SC_PAGESIZE), free_pages = sysconf(_SC_AVPHYS_PAGES),
         pages = sysconf(_SC_PHYS_PAGES);
    *out = (struct backend_caps){
        .activation = DTYPE_F32,
        .loads_in_place = true,
        .memory_free_bytes = page > 0 && free_pages > 0 ? (size_t)page * (size_t)free_pages : 0,
        .memory_total_bytes = page > 0 && pages > 0 ? (size_t)page * (size_t)pages : 0,
        .granule_bytes = ranges_granule(),
    };
    snprintf(out->description, sizeof out->description, "ref: plain loops, 1 thread%s",
             be->options.weights_int8 ? ", int8 weights" : "");
}

static int ref_mem_alloc(struct backend *be, struct devptr *out, size_t n_bytes, struct err *err)
{
    (void)be;
    void *p = NULL;
    if (posix_memalign(&p, 64, n_bytes ? n_bytes : 1) != 0)
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu bytes", n_bytes);
    out->addr = (uintptr_t)p;
    return 0;
}

static void ref_mem_free(struct backend *be, struct devptr p)
{
    (void)be;
    free((void *)p.addr);
}

static int ref_mem_reserve(struct backend *be, struct devptr *out, size_t n_bytes, struct err *err)
{
    return ranges_reserve(&be->ranges, out, n_bytes, err);
}

static int ref_mem_back(struct backend *be, struct devptr p, size_t n_bytes, struct err *err)
{
    return ranges_back(be->ranges, p, n_bytes, err);
}

static void ref_mem_unback(struct backend *be, struct devptr p, size_t n_bytes)
{
    ranges_unback(be->ranges, p, n_bytes);
}

static void ref_mem_release(struct backend *be, struct devptr p)
{
    ranges_release(&be->ranges, p);
}

static int ref_host_alloc(struct backend *be, void **out, size_t n_bytes, struct err *err)
{
    struct devptr p = {0};
    if (ref_mem_alloc(be, &p, n_bytes, err) != 0)
        return -1;
    *out = (void *)p.addr;
    return 0;
}

static void ref_host_free(struct backend *be, void *p)
{
    (void)be;
    free(p);
}

static void ref_upload(struct backend *be, struct devptr dst, const void *src, size_t n_bytes)
{
    (void)be;
    if (n_bytes > 0)
        memcpy((void *)dst.addr, src, n_bytes);
}

static void ref_download(struct backend *be, void *dst, struct devptr src, size_t n_bytes)
{
    (void)be;
    if (n_bytes > 0)
        memcpy(dst, (const void *)src.addr, n_bytes);
}

static int ref_sync(struct backend *be, struct err *err)
{
    (void)be;
    (void)err;
    return 0;
}

static void ref_lane_upload(struct backend *be, struct devptr dst, const void *src, size_t n_bytes,
                            size_t stride, int n_rows)
{
    for (int i = 0; i < n_rows; i++)
        ref_upload(be, devptr_at(dst, (size_t)i * stride), (const char *)src + (size_t)i * stride,
                   n_bytes);
}

/* Everything before it is done: any number will do. */
static uint64_t ref_mark(struct backend *be)
{
    (void)be;
    return 0;
}

static int ref_wait(struct backend *be, uint64_t mark, struct err *err)
{
    (void)be;
    (void)mark;
    (void)err;
    return 0;
}

static bool ref_lane_reached(struct backend *be, uint64_t mark)
{
    (void)be;
    (void)mark;
    return true;
}

static void ref_lane_need(struct backend *be, uint64_t mark)
{
    (void)be;
    (void)mark;
}

/* Here an adapter is found where it is used. */
static void ref_lora_look_up(struct backend *be, const struct lora_step *step,
                             const struct lora_linear *linears, int n_linears)
{
    (void)be, (void)step, (void)linears, (void)n_linears;
}

static int ref_weight_create(struct backend *be, struct weight **out, const void *const *parts,
                             const int *d_out, int n_parts, int d_in, enum dtype dtype,
                             struct err *err)
{
    (void)err;
    BUG_IF(n_parts < 1 || d_in < 1);
    struct weight *w = xcalloc(1, sizeof *w);
    *w = (struct weight){
        .dtype = dtype, .int8 = be->options.weights_int8, .d_in = d_in, .n_parts = n_parts};
    w->part_d_out = xcalloc((size_t)n_parts, sizeof *w->part_d_out);
    w->parts = xcalloc((size_t)n_parts, sizeof *w->parts);
    for (int i = 0; i < n_parts; i++) {
        BUG_IF(d_out[i] < 1 || d_out[i] > INT_MAX - w->d_out);
        w->part_d_out[i] = d_out[i];
        w->parts[i] = parts[i];
        w->d_out += d_out[i];
    }
    *out = w;
    return 0;
}

static void ref_weight_free(struct backend *be, struct weight *w)
{
    (void)be;
    if (w == NULL)
        return;
    free(w->part_d_out);
    free(w->parts);
    free(w);
}

/* Entries run at once: there is nothing to gain from recording. */
static bool ref_record_begin(struct backend *be)
{
    (void)be;
    return false;
}

static int ref_record_end(struct backend *be, struct recording **out, struct err *err)
{
    (void)be;
    (void)out;
    (void)err;
    BUG("record_end without record_begin");
}

static void ref_replay(struct backend *be, struct recording *recording)
{
    (void)be;
    (void)recording;
    BUG("there are no recordings");
}

static void ref_recording_free(struct backend *be, struct recording *recording)
{
    (void)be;
    BUG_IF(recording != NULL);
}

const struct ops ops_ref = {
    .name = "ref",
    .open = ref_open,
    .close = ref_close,
    .caps = ref_caps,
    .mem_alloc = ref_mem_alloc,
    .mem_free = ref_mem_free,
    .mem_reserve = ref_mem_reserve,
    .mem_back = ref_mem_back,
    .mem_unback = ref_mem_unback,
    .mem_release = ref_mem_release,
    .host_alloc = ref_host_alloc,
    .host_free = ref_host_free,
    .upload = ref_upload,
    .download = ref_download,
    .sync = ref_sync,
    .mark = ref_mark,
    .wait = ref_wait,
    .lane_upload = ref_lane_upload,
    .lane_mark = ref_mark,
    .lane_reached = ref_lane_reached,
    .lane_need = ref_lane_need,
    .weight_create = ref_weight_create,
    .weight_free = ref_weight_free,
    .embed = ref_embed,
    .add_rmsnorm = ref_add_rmsnorm,
    .lora_look_up = ref_lora_look_up,
    .linear = ref_linear,
    .sgmv_shrink = ref_sgmv_shrink,
    .sgmv_expand = ref_sgmv_expand,
    .rope_kv_write = ref_rope_kv_write,
    .attention = ref_attention,
    .linear_swiglu = ref_linear_swiglu,
    .swiglu = ref_swiglu,
    .gather_rows = ref_gather_rows,
    .sample = ref_sample,
    .score = ref_score,
    .record_begin = ref_record_begin,
    .record_end = ref_record_end,
    .replay = ref_replay,
    .recording_free = ref_recording_free,
    .kv_copy_blocks = ref_kv_copy_blocks,
};
