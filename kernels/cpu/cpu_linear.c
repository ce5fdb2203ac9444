/* cpu_linear: the linear operator with its adapters, and the row-wise rest.
 *
 * A tile is a block of rows by a few panels. It computes W x for its rows, panel by panel, so that
 * a panel is read from memory once and used for all rows while it is in cache; adds the bias; then
 * adds to the still warm columns of y what each adapter segment owes them (expand). Before that,
 * one pass over all segments and parts has computed t = A x (shrink). Two passes, one barrier; a
 * third one before them rounds x where integers multiply int8 weights (adapters see x itself).
 *
 * With few rows the B of many adapters is the bulk of what expand reads, and 64 columns of one are
 * 2 KB, too short a run for memory. y stays warm anyway, so expand is a pass of its own, by few
 * rows and many columns. The order of the sums is the same.
 *
 * Row blocks hold at most ROW_BLOCK rows, so that their x stays in the second-level cache while the
 * weights stream past; one step of up to ROW_BLOCK rows reads the weights from memory once. */
#include "kernels/cpu/cpu.h"

#include "node/base/err.h"

#include <string.h>

enum {
    ROW_BLOCK = GEMM_ROWS_MAX,
    FEW_ROWS = 32,         /* a decode step's size: one segment is few rows */
    FEW_COLUMNS = 512,     /* of one tile of expand in such a step */
    FEW_TILE_ROWS = 8,     /* of the same */
    SHRINK_ROWS = 16,      /* of one task */
    SHRINK_RANKS = 8,      /* of one task */
    ROUND_ROWS = 8,        /* of one tile */
    ROW_TILE_WORK = 16384, /* elements of one tile of the row-wise operators */
};

struct linear_job {
    struct backend *be;
    struct gemm gemm; /* gemm.w NULL: expand only */
    int d_out;        /* of y, all parts */
    int n_rows, n_row_blocks;
    int n_column_tiles;
    const struct lora_args *lora; /* or NULL */
    const float *t;
    const size_t *t_offset; /* [n_segs, n_parts] into t */
    const float *x;         /* shrink */
    float *t_out;
    int d_in;
    const struct shrink_task *tasks;
};

static const struct lora_entry *entry_of(const struct lora_args *lora, int seg, int part)
{
    return &lora->parts[part].entries[lora->step->segs[seg].slot];
}

/* Fills be->lora_offset; returns the floats of t in all, and the work of shrink. */
static size_t t_layout(struct backend *be, const struct lora_args *lora, int n_rows, int d_in,
                       double *work)
{
    size_t total = 0, *offset = scratch_reserve(
                          &be->lora_offset,
                          (size_t)lora->step->n_segs * (size_t)lora->n_parts * sizeof *offset + 1);
    int max_rank = 0;
    for (int s = 0; s < lora->step->n_segs; s++) {
        const struct lora_seg *seg = &lora->step->segs[s];
        BUG_IF(seg->row_begin < 0 || seg->n_rows < 0 || seg->n_rows > n_rows - seg->row_begin);
        for (int p = 0; p < lora->n_parts; p++) {
            int rank = entry_of(lora, s, p)->rank;
            offset[s * lora->n_parts + p] = total;
            total += (size_t)seg->n_rows * (size_t)rank;
            max_rank = rank > max_rank ? rank : max_rank;
        }
    }
    threads_reserve(be, (size_t)max_rank * LORA_TILE_COLS * sizeof(float) + 1);
    *work = (double)total * d_in;
    return total;
}

static void shrink_tile(void *context, int tile, int thread)
{
    (void)thread;
    const struct linear_job *job = context;
    const struct shrink_task *task = &job->tasks[tile];
    const struct lora_entry *entry = entry_of(job->lora, task->seg, task->part);
    size_t row = (size_t)(job->lora->step->segs[task->seg].row_begin + task->row_begin);
    float *t = job->t_out + job->t_offset[task->seg * job->lora->n_parts + task->part] +
               (size_t)task->row_begin * (size_t)entry->rank;
    job->be->isa->shrink(t, entry->rank, job->x + row * (size_t)job->d_in, job->d_in,
                         (const void *)entry->a.addr, (enum dtype)entry->dtype, task->n_rows,
                         task->rank_begin, task->rank_end);
}

static int min_int(int a, int b)
{
    return a < b ? a : b;
}

/* Cuts every (segment, part) into tasks of SHRINK_ROWS x SHRINK_RANKS and runs them. */
static void shrink_run(struct backend *be, struct linear_job *job, double work)
{
    const struct lora_args *lora = job->lora;
    size_t n_tasks = 0;
    struct shrink_task *tasks = NULL;
    for (int counting = 1; counting >= 0; counting--) {
        if (!counting)
            tasks = scratch_reserve(&be->tasks, n_tasks * sizeof *tasks + 1);
        n_tasks = 0;
        for (int s = 0; s < lora->step->n_segs; s++)
            for (int p = 0; p < lora->n_parts; p++) {
                int rank = entry_of(lora, s, p)->rank, n_rows = lora->step->segs[s].n_rows;
                for (int row = 0; row < n_rows; row += SHRINK_ROWS)
                    for (int j = 0; j < rank; j += SHRINK_RANKS, n_tasks++)
                        if (!counting)
                            tasks[n_tasks] = (struct shrink_task){
                                .seg = s,
                                .part = p,
                                .row_begin = row,
                                .n_rows = min_int(SHRINK_ROWS, n_rows - row),
                                .rank_begin = j,
                                .rank_end = min_int(j + SHRINK_RANKS, rank)};
            }
    }
    BUG_IF(n_tasks > INT32_MAX);
    job->tasks = tasks;
    tiles_run(be, (int)n_tasks, work, shrink_tile, job);
}

/* y[rows, columns] += each segment's delta, segments in order. */
static void expand_columns(const struct linear_job *job, int row_begin, int row_end,
                           int column_begin, int column_end, float *scratch)
{
    const struct lora_args *lora = job->lora;
    for (int s = 0; s < lora->step->n_segs; s++) {
        const struct lora_seg *seg = &lora->step->segs[s];
        int from = row_begin > seg->row_begin ? row_begin : seg->row_begin;
        int to = min_int(row_end, seg->row_begin + seg->n_rows);
        if (from >= to)
            continue;
        for (int p = 0; p < lora->n_parts; p++) {
            const struct lora_part *part = &lora->parts[p];
            const struct lora_entry *entry = entry_of(lora, s, p);
            int c0 = column_begin > part->out_begin ? column_begin : part->out_begin;
            int c1 = min_int(column_end, part->out_begin + part->d_out);
            if (entry->rank == 0 || c0 >= c1)
                continue;
            const float *t = job->t + job->t_offset[s * lora->n_parts + p] +
                             (size_t)(from - seg->row_begin) * (size_t)entry->rank;
            size_t b_row = (size_t)entry->rank * dtype_bytes((enum dtype)entry->dtype);
            for (int c = c0; c < c1; c += LORA_TILE_COLS)
                job->be->isa->expand(job->gemm.y + (size_t)from * (size_t)job->d_out + c,
                                     job->d_out, min_int(c1 - c, LORA_TILE_COLS), t,
                                     (const char *)entry->b.addr +
                                         (size_t)(c - part->out_begin) * b_row,
                                     (enum dtype)entry->dtype, entry->rank, to - from,
                                     seg->weight * entry->scaling, scratch);
        }
    }
}

/* A step of few rows by few rows and many columns. */
static void expand_tile(void *context, int tile, int thread)
{
    const struct linear_job *job = context;
    int n_columns = (job->d_out + FEW_COLUMNS - 1) / FEW_COLUMNS;
    int row = tile / n_columns * FEW_TILE_ROWS, column = tile % n_columns * FEW_COLUMNS;
    expand_columns(job, row, min_int(row + FEW_TILE_ROWS, job->n_rows), column,
                   min_int(column + FEW_COLUMNS, job->d_out), job->be->of_thread[thread].memory);
}

static void round_tile(void *context, int tile, int thread)
{
    (void)thread;
    const struct linear_job *job = context;
    const size_t d_in = (size_t)job->d_in;
    const int end = min_int((tile + 1) * ROUND_ROWS, job->n_rows);
    for (size_t i = (size_t)tile * ROUND_ROWS; i < (size_t)end; i++)
        job->be->int8->round_row((int16_t *)job->be->x_int16.memory + i * int8_x_stride(job->d_in),
                                 (float *)job->be->x_scale.memory + i * int8_x_blocks(job->d_in),
                                 job->x + i * d_in, job->d_in);
}

static void round_run(struct backend *be, struct linear_job *job)
{
    x_int16_reserve(be, job->n_rows, job->d_in);
    job->gemm.x_int16 = be->x_int16.memory;
    job->gemm.x_scale = be->x_scale.memory;
    tiles_run(be, (job->n_rows + ROUND_ROWS - 1) / ROUND_ROWS, (double)job->n_rows * job->d_in,
              round_tile, job);
}

static void linear_tile(void *context, int tile, int thread)
{
    const struct linear_job *job = context;
    int block = tile / job->n_column_tiles, columns = tile % job->n_column_tiles;
    int row = (int)((int64_t)job->n_rows * block / job->n_row_blocks);
    int row_end = (int)((int64_t)job->n_rows * (block + 1) / job->n_row_blocks);
    if (job->gemm.w != NULL && job->gemm.w->packed == PACKED_INT8_PAIRS)
        job->be->int8->gemm(&job->gemm, row, row_end, columns);
    else if (job->gemm.w != NULL)
        job->be->isa->gemm(&job->gemm, row, row_end, columns);
    if (job->lora != NULL && job->n_rows > FEW_ROWS)
        expand_columns(job, row, row_end, columns * LORA_TILE_COLS,
                       min_int((columns + 1) * LORA_TILE_COLS, job->d_out),
                       job->be->of_thread[thread].memory);
}

static void linear_run(struct backend *be, struct linear_job *job, double work)
{
    job->n_row_blocks = (job->n_rows + ROW_BLOCK - 1) / ROW_BLOCK;
    job->n_column_tiles = (job->d_out + LORA_TILE_COLS - 1) / LORA_TILE_COLS;
    if (job->gemm.w != NULL || job->n_rows > FEW_ROWS)
        tiles_run(be, job->n_row_blocks * job->n_column_tiles, work, linear_tile, job);
    if (job->lora != NULL && job->n_rows <= FEW_ROWS)
        tiles_run(be,
                  (job->n_rows + FEW_TILE_ROWS - 1) / FEW_TILE_ROWS *
                      ((job->d_out + FEW_COLUMNS - 1) / FEW_COLUMNS),
                  work, expand_tile, job);
}

void cpu_linear(struct backend *be, struct devptr y, struct devptr x, const struct weight *w,
                struct devptr bias, int n_rows, bool y_f32, const struct lora_args *lora)
{
    (void)y_f32; /* activations are f32 anyway */
    BUG_IF(n_rows < 0);
    struct linear_job job = {
        .be = be,
        .gemm = {.y = (float *)y.addr,
                 .x = (const float *)x.addr,
                 .w = w,
                 .bias = (const float *)bias.addr},
        .d_out = w->d_out,
        .n_rows = n_rows,
        .x = (const float *)x.addr,
        .d_in = w->d_in,
    };
    if (n_rows == 0)
        return;
    double work = 0;
    if (w->packed == PACKED_INT8_PAIRS)
        round_run(be, &job);
    if (lora != NULL) {
        size_t n_t = t_layout(be, lora, n_rows, w->d_in, &work);
        if (n_t > 0) {
            job.lora = lora;
            job.t = job.t_out = scratch_reserve(&be->lora_t, n_t * sizeof(float));
            job.t_offset = be->lora_offset.memory;
            shrink_run(be, &job, work);
        }
    }
    linear_run(be, &job, work + (double)n_rows * w->d_out * w->d_in);
}

void cpu_sgmv_shrink(struct backend *be, struct devptr t, struct devptr x, int n_rows, int d_in,
                     const struct lora_args *lora)
{
    double work;
    t_layout(be, lora, n_rows, d_in, &work);
    struct linear_job job = {.be = be,
                             .lora = lora,
                             .x = (const float *)x.addr,
                             .d_in = d_in,
                             .t_out = (float *)t.addr,
                             .t_offset = be->lora_offset.memory};
    shrink_run(be, &job, work);
}

void cpu_sgmv_expand(struct backend *be, struct devptr y, struct devptr t, int n_rows,
                     int d_out_total, const struct lora_args *lora)
{
    double work;
    t_layout(be, lora, n_rows, d_out_total, &work);
    struct linear_job job = {.be = be,
                             .gemm = {.y = (float *)y.addr},
                             .d_out = d_out_total,
                             .n_rows = n_rows,
                             .lora = lora,
                             .t = (const float *)t.addr,
                             .t_offset = be->lora_offset.memory};
    if (n_rows > 0)
        linear_run(be, &job, work);
}

/* ---- row by row
 * ---------------------------------------------------------------------------------- */

struct rows_job {
    struct backend *be;
    float *y, *residual;
    const float *x, *norm;
    const int32_t *index; /* token or source row */
    const struct weight *w;
    int n_rows, rows_per_tile, d, d_in;
    float scale, eps, offset;
};

static void rows_run(struct backend *be, struct rows_job *job, pool_fn *fn)
{
    job->be = be;
    job->rows_per_tile = ROW_TILE_WORK / job->d > 0 ? ROW_TILE_WORK / job->d : 1;
    tiles_run(be, (job->n_rows + job->rows_per_tile - 1) / job->rows_per_tile,
              (double)job->n_rows * job->d, fn, job);
}

/* Rows of a tile: from *begin to the returned end. */
static size_t rows_of_tile(const struct rows_job *job, int tile, size_t *begin)
{
    *begin = (size_t)tile * (size_t)job->rows_per_tile;
    size_t end = *begin + (size_t)job->rows_per_tile;
    return end < (size_t)job->n_rows ? end : (size_t)job->n_rows;
}

static void embed_tile(void *context, int tile, int thread)
{
    (void)thread;
    const struct rows_job *job = context;
    size_t i, end = rows_of_tile(job, tile, &i);
    for (; i < end; i++) {
        BUG_IF(job->index[i] < 0 || job->index[i] >= job->w->d_out);
        job->be->isa->embed_row(job->y + i * (size_t)job->d, job->w, job->index[i], job->scale);
    }
}

void cpu_embed(struct backend *be, struct devptr y, struct devptr token, const struct weight *w,
               int n_rows, float scale)
{
    struct rows_job job = {.y = (float *)y.addr,
                           .index = (const int32_t *)token.addr,
                           .w = w,
                           .n_rows = n_rows,
                           .d = w->d_in,
                           .scale = scale};
    rows_run(be, &job, embed_tile);
}

static void add_rmsnorm_tile(void *context, int tile, int thread)
{
    (void)thread;
    const struct rows_job *job = context;
    size_t i, end = rows_of_tile(job, tile, &i), d = (size_t)job->d;
    for (; i < end; i++)
        job->be->isa->add_rmsnorm_row(job->y + i * d, job->residual + i * d,
                                      job->x != NULL ? job->x + i * d : NULL, job->norm, job->d,
                                      job->eps, job->offset);
}

void cpu_add_rmsnorm(struct backend *be, struct devptr y, struct devptr residual, struct devptr x,
                     struct devptr w, int n_rows, int d, float eps, float w_offset)
{
    struct rows_job job = {.y = (float *)y.addr,
                           .residual = (float *)residual.addr,
                           .x = (const float *)x.addr,
                           .norm = (const float *)w.addr,
                           .n_rows = n_rows,
                           .d = d,
                           .eps = eps,
                           .offset = w_offset};
    rows_run(be, &job, add_rmsnorm_tile);
}

static void swiglu_tile(void *context, int tile, int thread)
{
    (void)thread;
    const struct rows_job *job = context;
    size_t i, end = rows_of_tile(job, tile, &i), d = (size_t)job->d;
    for (; i < end; i++)
        job->be->isa->swiglu(job->y + i * d, job->x + i * 2 * d, job->x + i * 2 * d + d, job->d);
}

void cpu_swiglu(struct backend *be, struct devptr y, struct devptr x, int n_rows, int d)
{
    struct rows_job job = {
        .y = (float *)y.addr, .x = (const float *)x.addr, .n_rows = n_rows, .d = d};
    rows_run(be, &job, swiglu_tile);
}

void cpu_gather_rows(struct backend *be, struct devptr y, struct devptr x, struct devptr rows,
                     int n, int d)
{
    (void)be;
    for (int i = 0; i < n; i++)
        memcpy((float *)y.addr + (size_t)i * (size_t)d,
               (const float *)x.addr + (size_t)((const int32_t *)rows.addr)[i] * (size_t)d,
               (size_t)d * sizeof(float));
}

void cpu_linear_swiglu(struct backend *be, struct devptr y, struct devptr scratch, struct devptr x,
                       const struct weight *w, struct devptr bias, int n_rows,
                       const struct lora_args *lora)
{
    cpu_linear(be, scratch, x, w, bias, n_rows, false, lora);
    cpu_swiglu(be, y, scratch, n_rows, w->d_out / 2);
}
