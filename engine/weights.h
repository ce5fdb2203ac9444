/* weights: a model's tensors as the backend wants them. Immutable after creation. */
#ifndef TRIBUTARY_ENGINE_WEIGHTS_H
#define TRIBUTARY_ENGINE_WEIGHTS_H

#include "engine/model.h"
#include "kernels/ops.h"

struct err;

struct layer_weights {
    struct weight *qkv;     /* parts q, k, v */
    struct weight *o;       /* one part */
    struct weight *gate_up; /* parts gate, up */
    struct weight *down;
    struct devptr qkv_bias, o_bias, gate_up_bias, down_bias; /* f32, or addr 0 */
    struct devptr attention_norm, ffn_norm;                  /* f32 [hidden] */
    struct devptr q_norm, k_norm;                            /* f32 [head_dim], or addr 0 */
};

struct weights {
    struct weight *embed, *lm_head; /* the same one when tied */
    struct devptr norm;             /* f32 [hidden] */
    struct devptr cos_sin;          /* f32 [max_context, head_dim] */
    struct layer_weights *layers;   /* [n_layers] */
    void **copies;                  /* of tensors that were not aligned in their file */
    size_t n_copies;
};

/* Puts all weights on the device and builds the rope table for positions below max_context. The
 * model must outlive them (backends may keep the mapped files). Fails naming the tensor. */
int weights_create(struct weights *out, const struct model *m, const struct ops *ops,
                   struct backend *be, int max_context, struct err *err);
void weights_release(struct weights *w, const struct model_config *c, const struct ops *ops,
                     struct backend *be); /* quiet on zeroed */

#endif
