/* deferring: a backend as late as ops.h allows, for tests of whoever calls one. It notes every call
 * and does nothing until somebody waits; then it does what lies before the mark, and no more, on
 * the cpu backend. It reads host memory when its turn comes, so memory that was reused too early
 * shows as wrong results; it reads batches and adapters where the device has them, so does what was
 * not uploaded. Its lane is as late: a copy is done when the stream comes to a need of it, or when
 * somebody has asked for it three times. It records and replays. It may have memory of its own, of
 * any size, and it may fail. One at a time in a process. */
#ifndef TRIBUTARY_TESTS_UNIT_ENGINE_DEFERRING_H
#define TRIBUTARY_TESTS_UNIT_ENGINE_DEFERRING_H

#include "kernels/cpu/isa.h"
#include "kernels/ops.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

enum deferred_kind {
    DO_UPLOAD,
    DO_DOWNLOAD,
    DO_EMBED,
    DO_NORM,
    DO_LINEAR,
    DO_SWIGLU,
    DO_ROPE,
    DO_ATTENTION,
    DO_GATHER,
    DO_SAMPLE,
    DO_SCORE,
    DO_NEED,
    DO_COPY_BLOCKS,
};

struct deferred { /* one call; which members mean something depends on the kind */
    enum deferred_kind kind;
    struct devptr y, x, z, w; /* devices' memory, in the order of the call's arguments */
    const void *from;         /* host memory */
    void *to, *copy;          /* copy: of pageable memory, freed when done */
    size_t n_bytes;
    const struct weight *weight;
    int n, d;
    float f, g;
    bool flag, has_lora, has_rope;
    bool replayed; /* it comes from a recording */
    struct lora_args lora;
    struct lora_step lora_step;
    struct lora_part parts[3];
    struct batch batch;
    struct kv_layer kv;
    struct attention_shape shape;
    struct rope_shape rope;
    const struct sample_params *params;
    struct sample_result *results;
    const int32_t *ids, *n_top;
    int32_t *blocks; /* [2 n] from, then to; freed when done */
};

struct recording {
    struct deferred *calls;
    size_t n;
};

enum { DEFERRED_RANGES = 64, DEFERRED_ALLOCATIONS = 1024 };

static struct {
    const struct ops *cpu;
    struct ops table;
    bool records;
    struct deferred *calls; /* [n] from the first that isn't done, number n_done */
    size_t n;
    uint64_t n_done;
    struct lane_copy {
        struct devptr to;
        const char *from;
        size_t n_bytes, stride;
        int n_rows;
    } * lane; /* [n_lane], all that were ever asked for */
    size_t n_lane, n_lane_done;
    unsigned n_polls;
    struct recording *recording;
    struct {
        const char *begin;
        size_t n_bytes;
    } host[DEFERRED_RANGES];          /* of host_alloc */
    int n_waits_left;                 /* then it fails; < 0: never */
    size_t memory_total, memory_used; /* total 0: the host's */
    size_t memory_backing;            /* of the used, what ranges had and have ... */
    size_t memory_spare;              /* ... and of this, what no range has now */
    int n_ranges;
    struct {
        uintptr_t addr;
        size_t n_bytes;
    } device[DEFERRED_ALLOCATIONS]; /* of mem_alloc */
} late;

static inline bool late_is_pinned(const void *p, size_t n_bytes)
{
    for (int i = 0; i < DEFERRED_RANGES; i++)
        if (late.host[i].begin != NULL && (const char *)p >= late.host[i].begin &&
            (const char *)p + n_bytes <= late.host[i].begin + late.host[i].n_bytes)
            return true;
    return false;
}

static inline void late_note(const struct deferred *c)
{
    if (late.recording != NULL) {
        struct recording *r = late.recording;
        r->calls = xrealloc_array(r->calls, r->n + 1, sizeof *r->calls);
        r->calls[r->n++] = *c;
        return;
    }
    late.calls = xrealloc_array(late.calls, late.n + 1, sizeof *late.calls);
    late.calls[late.n++] = *c;
}

/* ---- doing ------------------------------------------------------------------------------- */

/* What the call was told of adapters, as the device would see it. */
static inline const struct lora_args *late_lora(struct deferred *c)
{
    if (!c->has_lora)
        return NULL;
    c->lora_step.n_segs = *(const int32_t *)c->lora_step.d_n_segs.addr;
    BUG_IF(c->replayed && c->lora_step.n_segs > c->n); /* ops.h: at most one a row */
    c->lora_step.segs = (const struct lora_seg *)c->lora_step.d_segs.addr;
    for (int i = 0; i < c->lora.n_parts; i++)
        c->parts[i].entries = (const struct lora_entry *)c->parts[i].d_entries.addr;
    c->lora.step = &c->lora_step;
    c->lora.parts = c->parts;
    return c->lora_step.n_segs > 0 ? &c->lora : NULL;
}

static inline const struct batch *late_batch(struct deferred *c)
{
    c->batch.seq_indptr = (const int32_t *)c->batch.d_seq_indptr.addr;
    c->batch.kv_len = (const int32_t *)c->batch.d_kv_len.addr;
    c->batch.position = (const int32_t *)c->batch.d_position.addr;
    return &c->batch;
}

static inline void late_lane_do(struct backend *be, size_t end)
{
    for (; late.n_lane_done < end; late.n_lane_done++) {
        const struct lane_copy *c = &late.lane[late.n_lane_done];
        late.cpu->lane_upload(be, c->to, c->from, c->n_bytes, c->stride, c->n_rows);
    }
}

static inline void late_do(struct backend *be, struct deferred call)
{
    const struct ops *o = late.cpu;
    struct deferred *c = &call;
    switch (c->kind) {
    case DO_UPLOAD:
        o->upload(be, c->y, c->from, c->n_bytes);
        free(c->copy);
        break;
    case DO_DOWNLOAD:
        o->download(be, c->to, c->y, c->n_bytes);
        break;
    case DO_EMBED:
        for (int i = 0; i < c->n; i++) /* a GPU would read from anywhere */
            BUG_IF(((const int32_t *)c->x.addr)[i] < 0 ||
                   ((const int32_t *)c->x.addr)[i] >= c->weight->d_out);
        o->embed(be, c->y, c->x, c->weight, c->n, c->f);
        break;
    case DO_NORM:
        o->add_rmsnorm(be, c->y, c->x, c->z, c->w, c->n, c->d, c->f, c->g);
        break;
    case DO_LINEAR:
        o->linear(be, c->y, c->x, c->weight, c->z, c->n, c->flag, late_lora(c));
        break;
    case DO_SWIGLU:
        o->linear_swiglu(be, c->y, c->x, c->z, c->weight, c->w, c->n, late_lora(c));
        break;
    case DO_ROPE:
        o->rope_kv_write(be, c->y, &c->kv, late_batch(c), &c->shape, c->has_rope ? &c->rope : NULL);
        break;
    case DO_ATTENTION:
        o->attention(be, c->y, c->x, &c->kv, late_batch(c), &c->shape);
        break;
    case DO_GATHER:
        o->gather_rows(be, c->y, c->x, c->z, c->n, c->d);
        break;
    case DO_SAMPLE:
        o->sample(be, c->results, c->y, c->x, c->n, c->d, c->params, c->copy);
        free(c->copy);
        break;
    case DO_SCORE:
        o->score(be, c->results, c->x, c->n, c->d, c->ids, c->n_top);
        break;
    case DO_NEED:
        late_lane_do(be, c->n_bytes);
        break;
    case DO_COPY_BLOCKS:
        o->kv_copy_blocks(be, &c->kv, &c->shape, c->blocks, c->blocks + c->n, c->n);
        free(c->blocks);
        break;
    }
}

static inline int late_wait(struct backend *be, uint64_t mark, struct err *err)
{
    BUG_IF(late.recording != NULL || mark > late.n_done + late.n);
    if (late.n_waits_left == 0) {
        for (size_t i = 0; i < late.n; i++) {
            free(late.calls[i].copy);
            free(late.calls[i].blocks);
        }
        late.n_done += late.n;
        late.n = 0;
        return err_set(err, ERR_INTERNAL, "the device is on fire");
    }
    late.n_waits_left -= late.n_waits_left > 0;
    size_t n = mark > late.n_done ? (size_t)(mark - late.n_done) : 0;
    for (size_t i = 0; i < n; i++)
        late_do(be, late.calls[i]);
    late.n -= n;
    late.n_done += n;
    if (late.n > 0)
        memmove(late.calls, late.calls + n, late.n * sizeof *late.calls);
    return 0;
}

static inline uint64_t late_mark(struct backend *be)
{
    (void)be;
    return late.n_done + late.n;
}

/* ---- the lane ---------------------------------------------------------------------------- */

static inline void late_lane_upload(struct backend *be, struct devptr to, const void *from,
                                    size_t n_bytes, size_t stride, int n_rows)
{
    (void)be;
    BUG_IF(late.recording != NULL);
    late.lane = xrealloc_array(late.lane, late.n_lane + 1, sizeof *late.lane);
    late.lane[late.n_lane++] = (struct lane_copy){to, from, n_bytes, stride, n_rows};
}

static inline uint64_t late_lane_mark(struct backend *be)
{
    (void)be;
    return late.n_lane;
}

static inline bool late_lane_reached(struct backend *be, uint64_t mark)
{
    BUG_IF(mark > late.n_lane);
    if (late.n_lane_done < mark && ++late.n_polls % 3 == 0)
        late_lane_do(be, mark);
    return late.n_lane_done >= mark;
}

static inline void late_lane_need(struct backend *be, uint64_t mark)
{
    (void)be;
    BUG_IF(late.recording != NULL);
    late_note(&(struct deferred){.kind = DO_NEED, .n_bytes = (size_t)mark});
}

static inline int late_sync(struct backend *be, struct err *err)
{
    return late_wait(be, late_mark(be), err);
}

/* ---- memory ------------------------------------------------------------------------------ */

static inline int late_host_alloc(struct backend *be, void **out, size_t n_bytes, struct err *err)
{
    int i = 0;
    if (late.cpu->host_alloc(be, out, n_bytes, err) != 0)
        return -1;
    while (late.host[i].begin != NULL)
        BUG_IF(++i == DEFERRED_RANGES);
    late.host[i].begin = *out;
    late.host[i].n_bytes = n_bytes;
    return 0;
}

static inline void late_host_free(struct backend *be, void *p)
{
    for (int i = 0; i < DEFERRED_RANGES; i++)
        if (late.host[i].begin == p)
            late.host[i].begin = NULL;
    late.cpu->host_free(be, p);
}

static inline void late_caps(struct backend *be, struct backend_caps *out)
{
    late.cpu->caps(be, out);
    if (late.memory_total == 0)
        return;
    out->own_memory = true;
    out->memory_total_bytes = late.memory_total;
    out->memory_free_bytes = late.memory_total - late.memory_used;
}

static inline int late_mem_alloc(struct backend *be, struct devptr *out, size_t n_bytes,
                                 struct err *err)
{
    int i = 0;
    if (late.memory_total != 0 && n_bytes > late.memory_total - late.memory_used)
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu bytes", n_bytes);
    if (late.cpu->mem_alloc(be, out, n_bytes, err) != 0)
        return -1;
    while (late.device[i].addr != 0)
        BUG_IF(++i == DEFERRED_ALLOCATIONS);
    late.device[i].addr = out->addr;
    late.device[i].n_bytes = n_bytes;
    late.memory_used += n_bytes;
    return 0;
}

static inline void late_mem_free(struct backend *be, struct devptr p)
{
    BUG_IF(p.addr != 0 && late.n > 0); /* something may want it */
    late_lane_do(be, late.n_lane);
    for (int i = 0; i < DEFERRED_ALLOCATIONS && p.addr != 0; i++)
        if (late.device[i].addr == p.addr) {
            late.memory_used -= late.device[i].n_bytes;
            late.device[i].addr = 0;
        }
    late.cpu->mem_free(be, p);
}

/* Memory that was taken away is not the device's again before the end; what lies in it goes at
 * once, so a call that comes to touch it later dies. */
static inline int late_mem_back(struct backend *be, struct devptr p, size_t n_bytes,
                                struct err *err)
{
    size_t fresh = n_bytes > late.memory_spare ? n_bytes - late.memory_spare : 0;
    if (late.memory_total != 0 && fresh > late.memory_total - late.memory_used)
        return err_set(err, ERR_NO_MEMORY, "no memory for %zu bytes", n_bytes);
    if (late.cpu->mem_back(be, p, n_bytes, err) != 0)
        return -1;
    late.memory_spare -= n_bytes - fresh;
    late.memory_used += fresh;
    late.memory_backing += fresh;
    return 0;
}

static inline void late_mem_unback(struct backend *be, struct devptr p, size_t n_bytes)
{
    late.cpu->mem_unback(be, p, n_bytes);
    late.memory_spare += n_bytes;
}

static inline int late_mem_reserve(struct backend *be, struct devptr *out, size_t n_bytes,
                                   struct err *err)
{
    int rc = late.cpu->mem_reserve(be, out, n_bytes, err);
    late.n_ranges += rc == 0;
    return rc;
}

static inline void late_mem_release(struct backend *be, struct devptr p)
{
    BUG_IF(p.addr != 0 && late.n > 0);
    late_lane_do(be, late.n_lane);
    late.n_ranges -= p.addr != 0;
    late.cpu->mem_release(be, p);
}

static inline void late_close(struct backend *be)
{
    BUG_IF(late.n > 0 || late.n_ranges != 0);
    late.memory_used -= late.memory_backing;
    late.memory_backing = late.memory_spare = 0;
    free(late.calls);
    late.calls = NULL;
    free(late.lane);
    late.lane = NULL;
    late.n_lane = late.n_lane_done = 0;
    late.cpu->close(be);
}

static inline void late_upload(struct backend *be, struct devptr dst, const void *src, size_t n)
{
    (void)be;
    struct deferred c = {.kind = DO_UPLOAD, .y = dst, .from = src, .n_bytes = n};
    if (!late_is_pinned(src, n)) {
        BUG_IF(late.recording != NULL);
        c.copy = xmalloc(n > 0 ? n : 1);
        memcpy(c.copy, src, n);
        c.from = c.copy;
    }
    late_note(&c);
}

static inline void late_download(struct backend *be, void *dst, struct devptr src, size_t n)
{
    (void)be;
    late_note(&(struct deferred){.kind = DO_DOWNLOAD, .to = dst, .y = src, .n_bytes = n});
}

/* ---- noting ------------------------------------------------------------------------------ */

static inline void late_set_lora(struct deferred *c, const struct lora_args *lora)
{
    c->has_lora = lora != NULL;
    if (lora == NULL)
        return;
    BUG_IF(lora->n_parts > 3 || lora->step->d_n_segs.addr == 0);
    c->lora = *lora;
    c->lora_step = *lora->step;
    memcpy(c->parts, lora->parts, (size_t)lora->n_parts * sizeof *lora->parts);
}

static inline void late_embed(struct backend *be, struct devptr y, struct devptr token,
                              const struct weight *w, int n_rows, float scale)
{
    (void)be;
    late_note(&(struct deferred){
        .kind = DO_EMBED, .y = y, .x = token, .weight = w, .n = n_rows, .f = scale});
}

static inline void late_norm(struct backend *be, struct devptr y, struct devptr residual,
                             struct devptr x, struct devptr w, int n_rows, int d, float eps,
                             float w_offset)
{
    (void)be;
    late_note(&(struct deferred){.kind = DO_NORM,
                                 .y = y,
                                 .x = residual,
                                 .z = x,
                                 .w = w,
                                 .n = n_rows,
                                 .d = d,
                                 .f = eps,
                                 .g = w_offset});
}

static inline void late_linear(struct backend *be, struct devptr y, struct devptr x,
                               const struct weight *w, struct devptr bias, int n_rows, bool y_f32,
                               const struct lora_args *lora)
{
    (void)be;
    struct deferred c = {
        .kind = DO_LINEAR, .y = y, .x = x, .z = bias, .weight = w, .n = n_rows, .flag = y_f32};
    late_set_lora(&c, lora);
    late_note(&c);
}

static inline void late_swiglu(struct backend *be, struct devptr y, struct devptr scratch,
                               struct devptr x, const struct weight *w, struct devptr bias,
                               int n_rows, const struct lora_args *lora)
{
    (void)be;
    struct deferred c = {
        .kind = DO_SWIGLU, .y = y, .x = scratch, .z = x, .w = bias, .weight = w, .n = n_rows};
    late_set_lora(&c, lora);
    late_note(&c);
}

static inline void late_rope(struct backend *be, struct devptr qkv, const struct kv_layer *kv,
                             const struct batch *batch, const struct attention_shape *shape,
                             const struct rope_shape *rope)
{
    (void)be;
    struct deferred c = {.kind = DO_ROPE, .y = qkv, .kv = *kv, .batch = *batch, .shape = *shape};
    c.has_rope = rope != NULL;
    if (rope != NULL)
        c.rope = *rope;
    late_note(&c);
}

static inline void late_attention(struct backend *be, struct devptr y, struct devptr qkv,
                                  const struct kv_layer *kv, const struct batch *batch,
                                  const struct attention_shape *shape)
{
    (void)be;
    late_note(&(struct deferred){
        .kind = DO_ATTENTION, .y = y, .x = qkv, .kv = *kv, .batch = *batch, .shape = *shape});
}

static inline void late_gather(struct backend *be, struct devptr y, struct devptr x,
                               struct devptr rows, int n, int d)
{
    (void)be;
    late_note(&(struct deferred){.kind = DO_GATHER, .y = y, .x = x, .z = rows, .n = n, .d = d});
}

static inline void late_sample(struct backend *be, struct sample_result *results,
                               struct devptr tokens, struct devptr logits, int n, int vocab,
                               const struct sample_params *params,
                               const struct sample_history *history)
{
    (void)be;
    BUG_IF(!late_is_pinned(params, (size_t)n * sizeof *params));
    BUG_IF(!late_is_pinned(results, (size_t)n * sizeof *results));
    BUG_IF(late.recording != NULL && history != NULL);
    struct deferred c = {.kind = DO_SAMPLE,
                         .y = tokens,
                         .x = logits,
                         .n = n,
                         .d = vocab,
                         .results = results,
                         .params = params};
    if (history != NULL) {
        c.copy = xcalloc((size_t)n, sizeof *history);
        memcpy(c.copy, history, (size_t)n * sizeof *history);
    }
    late_note(&c);
}

static inline void late_score(struct backend *be, struct sample_result *results,
                              struct devptr logits, int n, int vocab, const int32_t *tokens,
                              const int32_t *n_top)
{
    (void)be;
    late_note(&(struct deferred){.kind = DO_SCORE,
                                 .x = logits,
                                 .n = n,
                                 .d = vocab,
                                 .results = results,
                                 .ids = tokens,
                                 .n_top = n_top});
}

static inline void late_copy_blocks(struct backend *be, const struct kv_layer *kv,
                                    const struct attention_shape *shape, const int32_t *src,
                                    const int32_t *dst, int n)
{
    (void)be;
    BUG_IF(late.recording != NULL);
    struct deferred c = {.kind = DO_COPY_BLOCKS, .kv = *kv, .shape = *shape, .n = n};
    c.blocks = xcalloc(2 * (size_t)n, sizeof *c.blocks);
    memcpy(c.blocks, src, (size_t)n * sizeof *src);
    memcpy(c.blocks + n, dst, (size_t)n * sizeof *dst);
    late_note(&c);
}

/* ---- recording --------------------------------------------------------------------------- */

static inline bool late_record_begin(struct backend *be)
{
    (void)be;
    BUG_IF(late.recording != NULL);
    if (late.records)
        late.recording = xcalloc(1, sizeof *late.recording);
    return late.records;
}

static inline int late_record_end(struct backend *be, struct recording **out, struct err *err)
{
    (void)be;
    (void)err;
    *out = late.recording;
    late.recording = NULL;
    return 0;
}

static inline void late_replay(struct backend *be, struct recording *r)
{
    (void)be;
    for (size_t i = 0; i < r->n; i++) {
        struct deferred call = r->calls[i];
        call.replayed = true;
        late_note(&call);
    }
}

static inline void late_recording_free(struct backend *be, struct recording *r)
{
    (void)be;
    if (r != NULL)
        free(r->calls);
    free(r);
}

/* Its table, for an engine that is opened after the last one was closed. memory_bytes of its own;
 * 0: the host's. */
static inline const struct ops *deferring_ops(bool records, size_t memory_bytes)
{
    late.cpu = ops_find("cpu", NULL);
    late.records = records;
    late.n_done = 0;
    late.n_waits_left = -1;
    late.memory_total = memory_bytes;
    BUG_IF(late.memory_used != 0);
    late.table = *late.cpu;
    late.table.close = late_close;
    late.table.caps = late_caps;
    late.table.mem_alloc = late_mem_alloc;
    late.table.mem_free = late_mem_free;
    late.table.mem_reserve = late_mem_reserve;
    late.table.mem_release = late_mem_release;
    late.table.mem_back = late_mem_back;
    late.table.mem_unback = late_mem_unback;
    late.table.host_alloc = late_host_alloc;
    late.table.host_free = late_host_free;
    late.table.upload = late_upload;
    late.table.download = late_download;
    late.table.sync = late_sync;
    late.table.mark = late_mark;
    late.table.wait = late_wait;
    late.table.lane_upload = late_lane_upload;
    late.table.lane_mark = late_lane_mark;
    late.table.lane_reached = late_lane_reached;
    late.table.lane_need = late_lane_need;
    late.table.embed = late_embed;
    late.table.add_rmsnorm = late_norm;
    late.table.linear = late_linear;
    late.table.linear_swiglu = late_swiglu;
    late.table.rope_kv_write = late_rope;
    late.table.attention = late_attention;
    late.table.gather_rows = late_gather;
    late.table.sample = late_sample;
    late.table.score = late_score;
    late.table.record_begin = late_record_begin;
    late.table.record_end = late_record_end;
    late.table.replay = late_replay;
    late.table.recording_free = late_recording_free;
    late.table.kv_copy_blocks = late_copy_blocks;
    /* What the engine doesn't call. */
    late.table.sgmv_shrink = NULL;
    late.table.sgmv_expand = NULL;
    late.table.swiglu = NULL;
    return &late.table;
}

#endif
