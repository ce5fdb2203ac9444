/* forward: one step through the model. Engine thread only. */
#ifndef TRIBUTARY_ENGINE_FORWARD_H
#define TRIBUTARY_ENGINE_FORWARD_H

#include "engine/batch.h"
#include "engine/lora_pool.h"
#include "engine/model.h"
#include "engine/weights.h"
#include "kernels/ops.h"

struct err;

struct forward {
    const struct ops *ops;
    struct backend *be;
    const struct model_config *config;
    const struct weights *weights;
    int max_rows, max_logit_rows;
    /* Activations, in the backend's dtype; d as named. */
    struct devptr residual;  /* [max_rows, hidden] */
    struct devptr x;         /* [max_rows, hidden] normed, or the output of o and down */
    struct devptr qkv;       /* [max_rows, (n_heads + 2 n_kv_heads) * head_dim] */
    struct devptr attention; /* [max_rows, n_heads * head_dim] */
    struct devptr gate_up;   /* [max_rows, 2 ffn] */
    struct devptr ffn;       /* [max_rows, ffn] */
    struct devptr picked;    /* [max_logit_rows, hidden] */
    struct devptr logits;    /* f32 [max_logit_rows, vocab] */
    struct kv_layer *kv;     /* [n_layers] */
    bool kv_reserved;        /* forward_reserve_kv */
};

/* Bytes of one block in K, or in V, of one layer; and of K and V in all layers. */
size_t forward_side_block_bytes(const struct model_config *c, enum dtype dtype);
size_t forward_block_bytes(const struct model_config *c, enum dtype dtype);

/* Allocates activations. All pointers must outlive it. */
int forward_create(struct forward *f, const struct model_config *config,
                   const struct weights *weights, const struct ops *ops, struct backend *be,
                   int max_rows, int max_logit_rows, struct err *err);
/* Then the KV cache: of n_blocks; or addresses alone, side_bytes for K and V of a layer each, whole
 * granules, which the caller gives memory (ops.h, mem_back). */
int forward_create_kv(struct forward *f, int n_blocks, struct err *err);
int forward_reserve_kv(struct forward *f, size_t side_bytes, struct err *err);
void forward_release(struct forward *f); /* quiet on zeroed */

/* Enqueues the layers: K and V of all rows are written, f->x holds the final normed rows. */
void forward_run(struct forward *f, const struct step_batch *b, struct lora_pool *pool);

/* Enqueues logits of n <= max_logit_rows rows, whose numbers are at d_rows, into f->logits. */
void forward_logits(struct forward *f, struct devptr d_rows, int n);

#endif
