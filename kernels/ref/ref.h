/* ref: the specification of kernels/ops.h as loops. Private to kernels/ref/.
 *
 * One thread, f32, no layout of its own: a weight is the file's rows, read in place. What a
 * function computes should be checkable against its comment in ops.h by eye; where that comment
 * leaves a choice, the choice is made and stated here, and the other backends follow. */
#ifndef TRIBUTARY_KERNELS_REF_H
#define TRIBUTARY_KERNELS_REF_H

#include "kernels/ops.h"

struct backend {
    struct backend_options options;
    struct range *ranges; /* kernels/ranges.h */
};

struct weight {
    enum dtype dtype;
    bool int8;       /* read as what int8 would hold of it */
    int d_in, d_out; /* d_out: of all parts together */
    int n_parts;
    int *part_d_out;    /* [n_parts] */
    const void **parts; /* [n_parts] host [part_d_out, d_in], the caller's */
};

static inline float *ref_f32(struct devptr p)
{
    return (float *)p.addr;
}

static inline const int32_t *ref_i32(struct devptr p)
{
    return (const int32_t *)p.addr;
}

void ref_embed(struct backend *be, struct devptr y, struct devptr token, const struct weight *w,
               int n_rows, float scale);
void ref_add_rmsnorm(struct backend *be, struct devptr y, struct devptr residual, struct devptr x,
                     struct devptr w, int n_rows, int d, float eps, float w_offset);
void ref_linear(struct backend *be, struct devptr y, struct devptr x, const struct weight *w,
                struct devptr bias, int n_rows, bool y_f32, const struct lora_args *lora);
void ref_sgmv_shrink(struct backend *be, struct devptr t, struct devptr x, int n_rows, int d_in,
                     const struct lora_args *lora);
void ref_sgmv_expand(struct backend *be, struct devptr y, struct devptr t, int n_rows,
                     int d_out_total, const struct lora_args *lora);
void ref_linear_swiglu(struct backend *be, struct devptr y, struct devptr scratch, struct devptr x,
                       const struct weight *w, struct devptr bias, int n_rows,
                       const struct lora_args *lora);
void ref_swiglu(struct backend *be, struct devptr y, struct devptr x, int n_rows, int d);
void ref_gather_rows(struct backend *be, struct devptr y, struct devptr x, struct devptr rows,
                     int n, int d);

void ref_rope_kv_write(struct backend *be, struct devptr qkv, const struct kv_layer *kv,
                       const struct batch *batch, const struct attention_shape *shape,
                       const struct rope_shape *rope);
void ref_attention(struct backend *be, struct devptr y, struct devptr qkv,
                   const struct kv_layer *kv, const struct batch *batch,
                   const struct attention_shape *shape);
void ref_kv_copy_blocks(struct backend *be, const struct kv_layer *kv,
                        const struct attention_shape *shape, const int32_t *src, const int32_t *dst,
                        int n);

void ref_sample(struct backend *be, struct sample_result *results, struct devptr tokens,
                struct devptr logits, int n, int vocab, const struct sample_params *params,
                const struct sample_history *history);
void ref_score(struct backend *be, struct sample_result *results, struct devptr logits, int n,
               int vocab, const int32_t *tokens, const int32_t *n_top);

#endif
