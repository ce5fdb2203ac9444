/* weights: see weights.h.
 *
 * q, k and v become one fused weight, gate and up another: their inputs are the same row, so a step
 * reads it once and the backend sees larger matrices. Norms, biases and the rope table become f32.
 *
 * The rope table follows transformers step by step in f32: angle = position * inv_freq, both f32,
 * rounded to f32, and cos and sin of that rounded angle. */
#include "engine/weights.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct making {
    float **sent; /* [n_sent] on their way to the device until the last sync */
    size_t n_sent;
    struct weights *out;
    const struct model *m;
    const struct ops *ops;
    struct backend *be;
    struct err *err;
};

static const struct tensor *find(const struct making *k, const char *name)
{
    const struct tensor *t = tensor_dir_find(&k->m->tensors, name);
    BUG_IF(t == NULL); /* model_open checked */
    return t;
}

static enum dtype dtype_of(const struct tensor *t)
{
    BUG_IF(t->dtype > TENSOR_BF16);
    return t->dtype == TENSOR_F32 ? DTYPE_F32 : t->dtype == TENSOR_F16 ? DTYPE_F16 : DTYPE_BF16;
}

/* The tensor's memory, aligned to its elements: a file may begin its data anywhere. */
static const void *aligned_data(const struct making *k, const struct tensor *t)
{
    if ((uintptr_t)t->data % tensor_dtype_bytes(t->dtype) == 0)
        return t->data;
    struct weights *w = k->out;
    void *copy = xmalloc(t->n_bytes);
    memcpy(copy, t->data, t->n_bytes);
    w->copies = xrealloc_array(w->copies, w->n_copies + 1, sizeof *w->copies);
    w->copies[w->n_copies++] = copy;
    return copy;
}

/* names [n_parts] stacked; a layer's parts must agree in dtype. */
static int make_weight(const struct making *k, struct weight **out, const char *prefix,
                       const char *const *names, int n_parts)
{
    const void *parts[3];
    int d_out[3];
    char name[128];
    snprintf(name, sizeof name, "%s%s.weight", prefix, names[0]);
    const struct tensor *first = find(k, name);
    for (int i = 0; i < n_parts; i++) {
        snprintf(name, sizeof name, "%s%s.weight", prefix, names[i]);
        const struct tensor *t = find(k, name);
        if (t->dtype != first->dtype)
            return err_set(k->err, ERR_UNSUPPORTED,
                           "tensor %s is %s, %s is %s: they must be the same", first->name,
                           tensor_dtype_name(first->dtype), t->name, tensor_dtype_name(t->dtype));
        parts[i] = aligned_data(k, t);
        d_out[i] = (int)t->shape[0];
    }
    if (k->ops->weight_create(k->be, out, parts, d_out, n_parts, (int)first->shape[1],
                              dtype_of(first), k->err) != 0)
        return err_wrap(k->err, "tensor %s", first->name);
    return 0;
}

/* Takes values. No sync: the loading of weights goes on meanwhile. */
static int make_floats(struct making *k, struct devptr *out, float *values, size_t n)
{
    k->sent = xrealloc_array(k->sent, k->n_sent + 1, sizeof *k->sent);
    k->sent[k->n_sent++] = values;
    if (k->ops->mem_alloc(k->be, out, n * sizeof(float), k->err) != 0)
        return -1;
    k->ops->upload(k->be, *out, values, n * sizeof(float));
    return 0;
}

/* Vectors stacked as f32: norms and biases. */
static int make_vector(struct making *k, struct devptr *out, const char *prefix,
                       const char *const *names, int n_parts, const char *suffix)
{
    char name[128];
    float *values = NULL;
    size_t n = 0;
    for (int i = 0; i < n_parts; i++) {
        snprintf(name, sizeof name, "%s%s.%s", prefix, names[i], suffix);
        const struct tensor *t = find(k, name);
        size_t n_part = tensor_n_elements(t);
        values = xrealloc_array(values, n + n_part, sizeof *values);
        for (size_t j = 0; j < n_part; j++)
            values[n + j] = tensor_f32(t, j);
        n += n_part;
    }
    int rc = make_floats(k, out, values, n);
    return rc != 0 ? err_wrap(k->err, "tensor %s", name) : 0;
}

static int make_rope(struct making *k, int max_context)
{
    const struct model_config *c = &k->m->config;
    int half = c->head_dim / 2;
    float *inv_freq = xcalloc((size_t)half, sizeof *inv_freq);
    float *table = xcalloc((size_t)max_context * (size_t)c->head_dim, sizeof *table);
    model_rope_inv_freq(c, inv_freq);
    for (int p = 0; p < max_context; p++) {
        float *row = table + (size_t)p * (size_t)c->head_dim;
        for (int i = 0; i < half; i++) {
            float angle = (float)p * inv_freq[i];
            row[i] = (float)cos((double)angle);
            row[half + i] = (float)sin((double)angle);
        }
    }
    int rc = make_floats(k, &k->out->cos_sin, table, (size_t)max_context * (size_t)c->head_dim);
    free(inv_freq);
    return rc != 0 ? err_wrap(k->err, "rope table of %d positions", max_context) : 0;
}

static int make_layer(struct making *k, int layer)
{
    static const char *const qkv[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"};
    static const char *const o[] = {"self_attn.o_proj"};
    static const char *const gate_up[] = {"mlp.gate_proj", "mlp.up_proj"};
    static const char *const down[] = {"mlp.down_proj"};
    static const char *const attention_norm[] = {"input_layernorm"};
    static const char *const ffn_norm[] = {"post_attention_layernorm"};
    static const char *const q_norm[] = {"self_attn.q_norm"};
    static const char *const k_norm[] = {"self_attn.k_norm"};
    const struct model_config *c = &k->m->config;
    struct layer_weights *w = &k->out->layers[layer];
    char prefix[48];
    snprintf(prefix, sizeof prefix, "model.layers.%d.", layer);
    if (make_weight(k, &w->qkv, prefix, qkv, 3) != 0 || make_weight(k, &w->o, prefix, o, 1) != 0 ||
        make_weight(k, &w->gate_up, prefix, gate_up, 2) != 0 ||
        make_weight(k, &w->down, prefix, down, 1) != 0 ||
        make_vector(k, &w->attention_norm, prefix, attention_norm, 1, "weight") != 0 ||
        make_vector(k, &w->ffn_norm, prefix, ffn_norm, 1, "weight") != 0)
        return -1;
    if (c->qkv_bias && make_vector(k, &w->qkv_bias, prefix, qkv, 3, "bias") != 0)
        return -1;
    if (c->o_bias && make_vector(k, &w->o_bias, prefix, o, 1, "bias") != 0)
        return -1;
    if (c->mlp_bias && (make_vector(k, &w->gate_up_bias, prefix, gate_up, 2, "bias") != 0 ||
                        make_vector(k, &w->down_bias, prefix, down, 1, "bias") != 0))
        return -1;
    if (c->qk_norm && (make_vector(k, &w->q_norm, prefix, q_norm, 1, "weight") != 0 ||
                       make_vector(k, &w->k_norm, prefix, k_norm, 1, "weight") != 0))
        return -1;
    return 0;
}

int weights_create(struct weights *out, const struct model *m, const struct ops *ops,
                   struct backend *be, int max_context, struct err *err)
{
    static const char *const embed[] = {"model.embed_tokens"};
    static const char *const norm[] = {"model.norm"};
    static const char *const lm_head[] = {"lm_head"};
    *out = (struct weights){0};
    struct making k = {.out = out, .m = m, .ops = ops, .be = be, .err = err};
    out->layers = xcalloc((size_t)m->config.n_layers, sizeof *out->layers);
    int rc = make_weight(&k, &out->embed, "", embed, 1);
    if (rc == 0 && m->config.tied)
        out->lm_head = out->embed;
    else if (rc == 0)
        rc = make_weight(&k, &out->lm_head, "", lm_head, 1);
    if (rc == 0)
        rc = make_vector(&k, &out->norm, "", norm, 1, "weight");
    for (int l = 0; rc == 0 && l < m->config.n_layers; l++)
        rc = make_layer(&k, l);
    if (rc == 0)
        rc = make_rope(&k, max_context);
    if (ops->sync(be, rc == 0 ? err : NULL) != 0)
        rc = -1;
    for (size_t i = 0; i < k.n_sent; i++)
        free(k.sent[i]);
    free(k.sent);
    if (rc != 0)
        weights_release(out, &m->config, ops, be);
    return rc;
}

static void free_weight(const struct ops *ops, struct backend *be, struct weight *w)
{
    if (w != NULL)
        ops->weight_free(be, w);
}

void weights_release(struct weights *w, const struct model_config *c, const struct ops *ops,
                     struct backend *be)
{
    for (int l = 0; w->layers != NULL && l < c->n_layers; l++) {
        struct layer_weights *layer = &w->layers[l];
        struct weight *weights[] = {layer->qkv, layer->o, layer->gate_up, layer->down};
        for (size_t i = 0; i < sizeof weights / sizeof weights[0]; i++)
            free_weight(ops, be, weights[i]);
        struct devptr vectors[] = {layer->qkv_bias,  layer->o_bias,         layer->gate_up_bias,
                                   layer->down_bias, layer->attention_norm, layer->ffn_norm,
                                   layer->q_norm,    layer->k_norm};
        for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++)
            ops->mem_free(be, vectors[i]);
    }
    if (w->lm_head != w->embed)
        free_weight(ops, be, w->lm_head);
    free_weight(ops, be, w->embed);
    if (w->layers != NULL) {
        ops->mem_free(be, w->norm);
        ops->mem_free(be, w->cos_sin);
    }
    for (size_t i = 0; i < w->n_copies; i++)
        free(w->copies[i]);
    free(w->copies);
    free(w->layers);
    *w = (struct weights){0};
}
