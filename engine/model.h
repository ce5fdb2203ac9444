/* model: what a base model is, read from a directory in Hugging Face layout.
 *
 * The families of this file share one skeleton: embedding; layers of RMSNorm, attention with
 * grouped heads, RMSNorm, SwiGLU; RMSNorm; output matrix. What differs is in model_config.
 * Everything that would make the skeleton compute something else is refused, naming the key. */
#ifndef TRIBUTARY_ENGINE_MODEL_H
#define TRIBUTARY_ENGINE_MODEL_H

#include "engine/safetensors.h"
#include "node/base/digest.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct json_t;

enum { MODEL_LAYERS_MAX = 512, MODEL_EOS_MAX = 8, MODEL_DIM_MAX = 1 << 20 };

enum model_family { MODEL_LLAMA, MODEL_MISTRAL, MODEL_QWEN2, MODEL_QWEN3 };

enum rope_scaling { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 };

struct model_config {
    enum model_family family;
    int vocab, hidden, n_layers, n_heads, n_kv_heads, head_dim, ffn;
    int max_context; /* max_position_embeddings */
    float norm_eps;
    bool tied;                                /* lm_head is the embedding */
    bool qkv_bias, o_bias, mlp_bias, qk_norm; /* further tensors a layer has */
    struct {
        enum rope_scaling scaling;
        float theta, factor;
        float low_freq_factor, high_freq_factor; /* llama3 */
        float original_context;                  /* llama3: tokens */
    } rope;
    int window[MODEL_LAYERS_MAX]; /* tokens an attention layer sees back; 0: all */
    int32_t bos;                  /* -1: none */
    int32_t eos[MODEL_EOS_MAX];
    int n_eos;
};

/* config is the object of config.json; generation (may be NULL) that of generation_config.json,
 * whose bos_token_id and eos_token_id win. `where` names the file in messages. */
int model_config_parse(struct model_config *out, const struct json_t *config,
                       const struct json_t *generation, const char *where, struct err *err);

/* inv_freq [head_dim / 2] of the rope, scaled, in the f32 steps that transformers takes. */
void model_rope_inv_freq(const struct model_config *c, float *inv_freq);

/* ---- sites: the linear modules that adapters touch --------------------------------------- */

enum site_kind { SITE_Q, SITE_K, SITE_V, SITE_O, SITE_GATE, SITE_UP, SITE_DOWN, SITE_KINDS };

/* Sites are numbered layer * SITE_KINDS + kind. */
int model_n_sites(const struct model_config *c);
int model_site_d_in(const struct model_config *c, enum site_kind kind);
int model_site_d_out(const struct model_config *c, enum site_kind kind);
const char *model_site_kind_name(enum site_kind kind); /* "q_proj" */
enum { SITE_NAME_BYTES = 64 };
/* "model.layers.3.self_attn.q_proj"; returns out. */
char *model_site_name(char out[SITE_NAME_BYTES], int site);

/* ---- the model --------------------------------------------------------------------------- */

struct model {
    struct model_config config;
    char name[128];                /* the directory's last component, UTF-8 */
    struct model_id id;            /* ask model_identity */
    struct model_hashing *hashing; /* in progress; NULL: id is there */
    uint64_t n_params;
    struct tensor_dir tensors;
};

/* Maps the weights and checks that every tensor the config asks for is there with the right shape
 * and a dtype that can be computed with, and no other.
 *
 * The id is sha256 over lines, sorted by name, one for config.json and one for each weight file:
 *   "<sha256 of the file, hex>  <size in bytes>  <name>\n"
 * The index of shards is not among them: it adds nothing that the shards don't say. Every byte is
 * read for that, which takes a thread about half a second to a second for each GB, by a thread for
 * each file while there are cores. They begin in model_open and go on while the caller brings the
 * weights to the device. */
int model_open(struct model **out, const char *dir, struct err *err);

/* The id; waits until it is computed, which can't fail. The thread that has m calls it; others may
 * use the tensors meanwhile. */
struct model_id model_identity(struct model *m);

/* Are the weights of all linear modules that adapters touch of this dtype? */
bool model_linears_are(const struct model *m, enum tensor_dtype dtype);

/* Quiet on NULL. Doesn't wait for an id that nobody asked for. */
void model_close(struct model *m);

/* A model of the given shape with seeded random bf16 weights, in memory, for measurements and
 * tests. Weights are uniform with the variance that keeps activations near 1. */
int model_random(struct model **out, const struct model_config *config, const char *name,
                 uint64_t seed, struct err *err);

/* Gives the memory of a random model's weights back, whose tensors then are without data. A model
 * of files keeps its mappings: their pages are the system's to drop, and the id may still need
 * them. */
void model_forget_random(struct model *m);

#endif
