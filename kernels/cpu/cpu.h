/* cpu: the backend for machines without a GPU. Private to kernels/cpu/.
 *
 * Three layers: cpu_*.c are the operators of ops.h, which cut the work into tiles; pool.c runs the
 * tiles on the threads; isa.h has the inner loops, one table per instruction set. A tile writes
 * what no other tile writes, and its bits don't depend on where the cuts are. */
#ifndef TRIBUTARY_KERNELS_CPU_CPU_H
#define TRIBUTARY_KERNELS_CPU_CPU_H

#include "kernels/cpu/isa.h"
#include "kernels/cpu/pool.h"
#include "kernels/ops.h"

struct shrink_task { /* ranks [rank_begin, rank_end) of rows [row_begin, row_begin + n_rows) */
    int seg, part, row_begin, n_rows, rank_begin, rank_end;
};

struct attend_task {
    int seq, row_begin, row_end, head_begin, head_end;
};

/* Memory that grows when a call needs more than any before it, and never shrinks: after the first
 * steps of full size nothing is allocated any more. */
struct scratch {
    void *memory; /* 64-byte aligned */
    size_t n_bytes;
};

struct backend {
    struct backend_options options;
    const struct isa *isa;
    const struct int8_products *int8; /* of int8 weights, or NULL: isa multiplies them */
    struct pool *pool;
    struct scratch *of_thread; /* [threads] */
    struct scratch tasks;      /* of the operator that runs */
    struct scratch lora_t;     /* the ranks' products between shrink and expand */
    struct scratch lora_offset;
    struct scratch x_int16, x_scale; /* the rows of x, rounded for be->int8 */
    struct range *ranges;            /* kernels/ranges.h */
};

void *scratch_reserve(struct scratch *s, size_t n_bytes);
/* The same size for every thread; read it as be->of_thread[thread].memory. */
void threads_reserve(struct backend *be, size_t n_bytes);
/* Of x_int16 and x_scale, for so many rows. */
void x_int16_reserve(struct backend *be, int n_rows, int d_in);

/* pool_run, or a plain loop when all tiles together (work: about one FMA or element each) take less
 * time than waking a thread. */
void tiles_run(struct backend *be, int n_tiles, double work, pool_fn *fn, void *context);

void cpu_embed(struct backend *be, struct devptr y, struct devptr token, const struct weight *w,
               int n_rows, float scale);
void cpu_add_rmsnorm(struct backend *be, struct devptr y, struct devptr residual, struct devptr x,
                     struct devptr w, int n_rows, int d, float eps, float w_offset);
void cpu_linear(struct backend *be, struct devptr y, struct devptr x, const struct weight *w,
                struct devptr bias, int n_rows, bool y_f32, const struct lora_args *lora);
void cpu_sgmv_shrink(struct backend *be, struct devptr t, struct devptr x, int n_rows, int d_in,
                     const struct lora_args *lora);
void cpu_sgmv_expand(struct backend *be, struct devptr y, struct devptr t, int n_rows,
                     int d_out_total, const struct lora_args *lora);
void cpu_linear_swiglu(struct backend *be, struct devptr y, struct devptr scratch, struct devptr x,
                       const struct weight *w, struct devptr bias, int n_rows,
                       const struct lora_args *lora);
void cpu_swiglu(struct backend *be, struct devptr y, struct devptr x, int n_rows, int d);
void cpu_gather_rows(struct backend *be, struct devptr y, struct devptr x, struct devptr rows,
                     int n, int d);

void cpu_rope_kv_write(struct backend *be, struct devptr qkv, const struct kv_layer *kv,
                       const struct batch *batch, const struct attention_shape *shape,
                       const struct rope_shape *rope);
void cpu_attention(struct backend *be, struct devptr y, struct devptr qkv,
                   const struct kv_layer *kv, const struct batch *batch,
                   const struct attention_shape *shape);
void cpu_kv_copy_blocks(struct backend *be, const struct kv_layer *kv,
                        const struct attention_shape *shape, const int32_t *src, const int32_t *dst,
                        int n);

void cpu_sample(struct backend *be, struct sample_result *results, struct devptr tokens,
                struct devptr logits, int n, int vocab, const struct sample_params *params,
                const struct sample_history *history);
void cpu_score(struct backend *be, struct sample_result *results, struct devptr logits, int n,
               int vocab, const int32_t *tokens, const int32_t *n_top);

#endif
