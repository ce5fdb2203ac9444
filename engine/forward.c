/* forward: see forward.h. The whole model on one page:
 *
 *   residual = embed(token)
 *   each layer:
 *     x         = rmsnorm(residual += x) * attention_norm          (no += in the first)
 *     qkv       = W_qkv x + bias + delta                           delta: the row's adapters
 *     qkv       = rope(qkv); cache[slot] = k, v
 *     attention = softmax(q K^T * scale) V   over the row's own sequence
 *     x         = W_o attention + bias + delta
 *     x         = rmsnorm(residual += x) * ffn_norm
 *     gate_up   = W_gate_up x + bias + delta
 *     x         = W_down (silu(gate) * up) + bias + delta
 *   x = rmsnorm(residual += x) * norm
 *   logits = W_lm_head x     of the rows that draw or score
 *
 * Sources: Touvron et al., LLaMA, arXiv:2302.13971; Hu et al., LoRA, arXiv:2106.09685. */
#include "engine/forward.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <math.h>
#include <stdlib.h>

size_t forward_side_block_bytes(const struct model_config *c, enum dtype dtype)
{
    return (size_t)BLOCK_TOKENS * (size_t)c->n_kv_heads * (size_t)c->head_dim * dtype_bytes(dtype);
}

size_t forward_block_bytes(const struct model_config *c, enum dtype dtype)
{
    return 2 * forward_side_block_bytes(c, dtype) * (size_t)c->n_layers;
}

int forward_create(struct forward *f, const struct model_config *config,
                   const struct weights *weights, const struct ops *ops, struct backend *be,
                   int max_rows, int max_logit_rows, struct err *err)
{
    *f = (struct forward){.ops = ops,
                          .be = be,
                          .config = config,
                          .weights = weights,
                          .max_rows = max_rows,
                          .max_logit_rows = max_logit_rows};
    struct backend_caps caps;
    ops->caps(be, &caps);
    const struct model_config *c = config;
    size_t rows = (size_t)max_rows, word = dtype_bytes(caps.activation);
    size_t heads = (size_t)c->n_heads * (size_t)c->head_dim;
    size_t kv_heads = (size_t)c->n_kv_heads * (size_t)c->head_dim;
    size_t hidden = (size_t)c->hidden, ffn = (size_t)c->ffn;
    const struct {
        struct devptr *out;
        size_t n_bytes;
    } buffers[] = {
        {&f->residual, rows * hidden * word},
        {&f->x, rows * hidden * word},
        {&f->qkv, rows * (heads + 2 * kv_heads) * word},
        {&f->attention, rows * heads * word},
        {&f->gate_up, rows * 2 * ffn * word},
        {&f->ffn, rows * ffn * word},
        {&f->picked, (size_t)max_logit_rows * hidden * word},
        {&f->logits, (size_t)max_logit_rows * (size_t)c->vocab * sizeof(float)},
    };
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < sizeof buffers / sizeof buffers[0]; i++)
        rc = ops->mem_alloc(be, buffers[i].out, buffers[i].n_bytes, err);
    if (rc == 0)
        return 0;
    forward_release(f);
    return err_wrap(err, "activations of %d rows", max_rows);
}

static int create_kv(struct forward *f,
                     int (*take)(struct backend *be, struct devptr *out, size_t n_bytes,
                                 struct err *err),
                     size_t side_bytes, struct err *err)
{
    struct backend_caps caps;
    int n_layers = f->config->n_layers;
    f->ops->caps(f->be, &caps);
    f->kv = xcalloc((size_t)n_layers, sizeof *f->kv);
    for (int l = 0; l < n_layers; l++) {
        f->kv[l].dtype = caps.activation;
        if (take(f->be, &f->kv[l].k, side_bytes, err) != 0 ||
            take(f->be, &f->kv[l].v, side_bytes, err) != 0)
            return err_wrap(err, "KV cache");
    }
    return 0;
}

int forward_create_kv(struct forward *f, int n_blocks, struct err *err)
{
    struct backend_caps caps;
    f->ops->caps(f->be, &caps);
    size_t side_bytes = (size_t)n_blocks * forward_side_block_bytes(f->config, caps.activation);
    return create_kv(f, f->ops->mem_alloc, side_bytes, err);
}

int forward_reserve_kv(struct forward *f, size_t side_bytes, struct err *err)
{
    f->kv_reserved = true;
    return create_kv(f, f->ops->mem_reserve, side_bytes, err);
}

void forward_release(struct forward *f)
{
    if (f->ops == NULL)
        return;
    struct devptr buffers[] = {f->residual, f->x,   f->qkv,    f->attention,
                               f->gate_up,  f->ffn, f->picked, f->logits};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        f->ops->mem_free(f->be, buffers[i]);
    void (*give)(struct backend * be, struct devptr p) = f->kv_reserved ? f->ops->mem_release
                                                                        : f->ops->mem_free;
    for (int l = 0; f->kv != NULL && l < f->config->n_layers; l++) {
        give(f->be, f->kv[l].k);
        give(f->be, f->kv[l].v);
    }
    free(f->kv);
    *f = (struct forward){0};
}

static struct lora_args adapters(const struct step_batch *b, const struct lora_pool *pool,
                                 int layer, enum fused_kind kind)
{
    int n, i = layer * FUSED_KINDS + (int)kind;
    const struct lora_linear *l = &lora_pool_linears(pool, &n)[i];
    return (struct lora_args){
        .step = &b->lora, .parts = l->parts, .n_parts = l->n_parts, .place = i + 1};
}

/* All adapters' entries come before the first layer's matrices (lora_pool_need). */
static void look_up(const struct forward *f, const struct step_batch *b, struct lora_pool *pool)
{
    int n;
    const struct lora_linear *linears = lora_pool_linears(pool, &n);
    lora_pool_need(pool, 0);
    f->ops->lora_look_up(f->be, &b->lora, linears, n);
}

/* One linear of a layer with the step's adapters; a step without adapters passes none on. */
static void linear(struct forward *f, struct devptr y, struct devptr x, const struct weight *w,
                   struct devptr bias, const struct step_batch *b, const struct lora_pool *pool,
                   int layer, enum fused_kind kind)
{
    struct lora_args lora = adapters(b, pool, layer, kind);
    f->ops->linear(f->be, y, x, w, bias, b->batch.n_rows, false, b->has_lora ? &lora : NULL);
}

void forward_run(struct forward *f, const struct step_batch *b, struct lora_pool *pool)
{
    const struct ops *ops = f->ops;
    const struct model_config *c = f->config;
    struct backend *be = f->be;
    int n = b->batch.n_rows;
    struct attention_shape shape = {.n_heads = c->n_heads,
                                    .n_kv_heads = c->n_kv_heads,
                                    .head_dim = c->head_dim,
                                    .scale = 1.0f / sqrtf((float)c->head_dim)};
    struct rope_shape rope = {
        .rotary_dim = c->head_dim, .cos_sin = f->weights->cos_sin, .norm_eps = c->norm_eps};
    struct devptr none = {0};

    if (b->has_lora)
        look_up(f, b, pool);
    ops->embed(be, f->residual, b->batch.d_token, f->weights->embed, n, 1.0f);
    for (int l = 0; l < c->n_layers; l++) {
        const struct layer_weights *w = &f->weights->layers[l];
        if (b->has_lora)
            lora_pool_need(pool, l);
        shape.window = c->window[l];
        rope.q_norm = w->q_norm;
        rope.k_norm = w->k_norm;
        ops->add_rmsnorm(be, f->x, f->residual, l > 0 ? f->x : none, w->attention_norm, n,
                         c->hidden, c->norm_eps, 0);
        linear(f, f->qkv, f->x, w->qkv, w->qkv_bias, b, pool, l, FUSED_QKV);
        ops->rope_kv_write(be, f->qkv, &f->kv[l], &b->batch, &shape, &rope);
        ops->attention(be, f->attention, f->qkv, &f->kv[l], &b->batch, &shape);
        linear(f, f->x, f->attention, w->o, w->o_bias, b, pool, l, FUSED_O);
        ops->add_rmsnorm(be, f->x, f->residual, f->x, w->ffn_norm, n, c->hidden, c->norm_eps, 0);
        struct lora_args lora = adapters(b, pool, l, FUSED_GATE_UP);
        ops->linear_swiglu(be, f->ffn, f->gate_up, f->x, w->gate_up, w->gate_up_bias, n,
                           b->has_lora ? &lora : NULL);
        linear(f, f->x, f->ffn, w->down, w->down_bias, b, pool, l, FUSED_DOWN);
    }
    ops->add_rmsnorm(be, f->x, f->residual, f->x, f->weights->norm, n, c->hidden, c->norm_eps, 0);
}

void forward_logits(struct forward *f, struct devptr d_rows, int n)
{
    BUG_IF(n < 1 || n > f->max_logit_rows);
    f->ops->gather_rows(f->be, f->picked, f->x, d_rows, n, f->config->hidden);
    f->ops->linear(f->be, f->logits, f->picked, f->weights->lm_head, (struct devptr){0}, n, true,
                   NULL);
}
