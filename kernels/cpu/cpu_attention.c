/* cpu_attention: cuts a step's attention into tasks, one a (sequence, block of rows, range of KV
 * heads), large enough to be worth handing out and small enough to balance: a step may hold one
 * sequence that prefills thousands of tokens beside many that decode one. */
#include "kernels/cpu/cpu.h"

#include "node/base/err.h"

#include <string.h>

enum {
    TASK_QUERIES = 48,      /* (row, query head) pairs at once: their accumulators fit in cache */
    TASK_WORK = 128 * 1024, /* FMAs, at least */
    TASKS_A_THREAD = 8,     /* at least, where the work is enough */
    ROPE_WORK = 8 * 1024,   /* elements */
};

struct attention_job {
    struct backend *be;
    const struct batch *batch;
    const struct kv_layer *kv;
    const struct attention_shape *shape;
    const struct rope_shape *rope;
    float *y, *qkv;
    const struct attend_task *tasks;
    int rows_per_tile;
};

static size_t qkv_stride(const struct attention_shape *shape)
{
    return (size_t)(shape->n_heads + 2 * shape->n_kv_heads) * (size_t)shape->head_dim;
}

static void rope_tile(void *context, int tile, int thread)
{
    (void)thread;
    const struct attention_job *job = context;
    int row = tile * job->rows_per_tile, end = row + job->rows_per_tile;
    for (; row < end && row < job->batch->n_rows; row++)
        job->be->isa->rope_row(job->qkv + (size_t)row * qkv_stride(job->shape), job->kv,
                               (size_t)((const int32_t *)job->batch->d_slot.addr)[row],
                               job->batch->position[row], job->shape, job->rope);
}

void cpu_rope_kv_write(struct backend *be, struct devptr qkv, const struct kv_layer *kv,
                       const struct batch *batch, const struct attention_shape *shape,
                       const struct rope_shape *rope)
{
    BUG_IF(rope != NULL && (rope->rotary_dim > shape->head_dim || rope->rotary_dim % 2 != 0));
    struct attention_job job = {
        .be = be, .batch = batch, .kv = kv, .shape = shape, .rope = rope, .qkv = (float *)qkv.addr};
    int row_work = (int)qkv_stride(shape);
    job.rows_per_tile = ROPE_WORK / row_work > 0 ? ROPE_WORK / row_work : 1;
    tiles_run(be, (batch->n_rows + job.rows_per_tile - 1) / job.rows_per_tile,
              (double)batch->n_rows * row_work, rope_tile, &job);
}

static void attend_tile(void *context, int tile, int thread)
{
    const struct attention_job *job = context;
    const struct attend_task *task = &job->tasks[tile];
    const struct batch *batch = job->batch;
    struct attend a = {
        .y = job->y,
        .qkv = job->qkv,
        .k = (const void *)job->kv->k.addr,
        .v = (const void *)job->kv->v.addr,
        .dtype = job->kv->dtype,
        .blocks = (const int32_t *)batch->d_block_table.addr +
                  (size_t)task->seq * (size_t)batch->max_blocks,
        .position = batch->position,
        .shape = job->shape,
    };
    const int n_queries = (task->row_end - task->row_begin) *
                          (job->shape->n_heads / job->shape->n_kv_heads);
    const int heads = TASK_QUERIES / n_queries > 0 ? TASK_QUERIES / n_queries : 1;
    for (int head = task->head_begin; head < task->head_end; head += heads)
        job->be->isa->attend(&a, task->row_begin, task->row_end, head,
                             head + heads < task->head_end ? head + heads : task->head_end,
                             job->be->of_thread[thread].memory);
}

void cpu_attention(struct backend *be, struct devptr y, struct devptr qkv,
                   const struct kv_layer *kv, const struct batch *batch,
                   const struct attention_shape *shape)
{
    BUG_IF(shape->n_kv_heads < 1 || shape->n_heads % shape->n_kv_heads != 0);
    const int group = shape->n_heads / shape->n_kv_heads, n_kv = shape->n_kv_heads;
    const int task_rows = TASK_QUERIES / group > 0 ? TASK_QUERIES / group : 1;
    threads_reserve(be,
                    attend_scratch_bytes(shape->head_dim,
                                         (size_t)(group > TASK_QUERIES ? group : TASK_QUERIES)));

    size_t n_tasks = 0;
    struct attend_task *tasks = NULL;
    double work = 0, task_work = TASK_WORK;
    for (int counting = 1; counting >= 0; counting--) {
        if (!counting) {
            tasks = scratch_reserve(&be->tasks, n_tasks * sizeof *tasks + 1);
            /* Whole tokens where the work allows it; no more tasks than were counted. */
            double share = work / (TASKS_A_THREAD * pool_threads(be->pool));
            task_work = share > task_work ? share : task_work;
        }
        n_tasks = 0;
        work = 0;
        for (int s = 0; s < batch->n_seqs; s++)
            for (int row = batch->seq_indptr[s]; row < batch->seq_indptr[s + 1];) {
                int end = batch->seq_indptr[s + 1] - row < task_rows ? batch->seq_indptr[s + 1]
                                                                     : row + task_rows;
                int keys = batch->position[end - 1] + 1;
                BUG_IF((keys - 1) / BLOCK_TOKENS >= batch->max_blocks);
                double head_work = 2.0 * (end - row) * group * shape->head_dim *
                                   (shape->window > 0 && shape->window < keys ? shape->window
                                                                              : keys);
                int heads = head_work * n_kv < task_work ? n_kv : (int)(task_work / head_work);
                heads = heads < 1 ? 1 : heads;
                for (int head = 0; head < n_kv; head += heads, n_tasks++)
                    if (!counting)
                        tasks[n_tasks] = (struct attend_task){
                            .seq = s,
                            .row_begin = row,
                            .row_end = end,
                            .head_begin = head,
                            .head_end = head + heads < n_kv ? head + heads : n_kv};
                work += head_work * n_kv;
                row = end;
            }
    }
    BUG_IF(n_tasks > INT32_MAX);
    struct attention_job job = {.be = be,
                                .batch = batch,
                                .kv = kv,
                                .shape = shape,
                                .y = (float *)y.addr,
                                .qkv = (float *)qkv.addr,
                                .tasks = tasks};
    tiles_run(be, (int)n_tasks, work, attend_tile, &job);
}

void cpu_kv_copy_blocks(struct backend *be, const struct kv_layer *kv,
                        const struct attention_shape *shape, const int32_t *src, const int32_t *dst,
                        int n)
{
    (void)be;
    size_t block_bytes = (size_t)BLOCK_TOKENS * (size_t)shape->n_kv_heads *
                         (size_t)shape->head_dim * dtype_bytes(kv->dtype);
    for (int i = 0; i < n; i++) {
        size_t from = (size_t)src[i] * block_bytes, to = (size_t)dst[i] * block_bytes;
        memmove((char *)kv->k.addr + to, (const char *)kv->k.addr + from, block_bytes);
        memmove((char *)kv->v.addr + to, (const char *)kv->v.addr + from, block_bytes);
    }
}
