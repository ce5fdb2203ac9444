/* model_config: config.json of the supported families; see model.h.
 *
 * A wrong guess here computes nonsense that looks like language, so the rule is: every key of the
 * file is either read, or known to say nothing about the maths, or neutral (null, false, empty), or
 * the model is refused naming it. Both generations of Hugging Face's keys are read: rope_theta and
 * rope_scaling {type | rope_type}, torch_dtype; and rope_parameters, dtype.
 *
 * Source of defaults and formulas: transformers' configuration_{llama,mistral,qwen2,qwen3}.py and
 * modeling_rope_utils.py, as described by their documentation; llama3 scaling: Meta's
 * llama-models, apply_scaling. */
#include "engine/model.h"

#include "engine/config_json.h"
#include "node/base/err.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Keys that never change what one forward pass computes. */
static const char *const HARMLESS[] = {
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "id2label",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config", /* SmolLM2 */
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "max_sequence_length", /* Vicuna: of the training */
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
};

/* Keys that this file reads; a value that would change the maths is refused where it is read. */
static const char *const READ[] = {
    "attention_bias",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "partial_rotary_factor",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
    "vocab_size",
};

static int compare_key(const void *key, const void *entry)
{
    return strcmp(key, *(const char *const *)entry);
}

#define IN_LIST(key, list) \
    (bsearch(key, list, sizeof(list) / sizeof((list)[0]), sizeof((list)[0]), compare_key) != NULL)

static int refuse_unknown_keys(const json_t *config, const char *where, struct err *err)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)config, key, value)
    {
        if (key[0] == '_' || !config_json_is_set(value) || IN_LIST(key, HARMLESS) ||
            IN_LIST(key, READ))
            continue;
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: key %s is set and not known; it may change the maths", where, key);
    }
    return 0;
}

static int parse_family(struct model_config *c, const json_t *config, const char *where,
                        struct err *err)
{
    static const char *const names[] = {[MODEL_LLAMA] = "llama",
                                        [MODEL_MISTRAL] = "mistral",
                                        [MODEL_QWEN2] = "qwen2",
                                        [MODEL_QWEN3] = "qwen3"};
    const char *type = NULL;
    if (config_json_string(config, "model_type", where, &type, err) != 0)
        return -1;
    if (type == NULL)
        return err_set(err, ERR_INVALID, "%s: has no model_type", where);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(type, names[i]) == 0) {
            c->family = (enum model_family)i;
            return 0;
        }
    }
    return err_set(err, ERR_UNSUPPORTED,
                   "%s: model_type %s is not supported (llama, mistral, qwen2 and qwen3 are)",
                   where, type);
}

/* A dimension that must be there. */
static int dimension(const json_t *config, const char *key, const char *where, int *out,
                     struct err *err)
{
    int64_t v = 0;
    if (config_json_int(config, key, where, 1, MODEL_DIM_MAX, &v, err) != 0)
        return -1;
    if (v == 0)
        return err_set(err, ERR_INVALID, "%s: has no %s", where, key);
    *out = (int)v;
    return 0;
}

static int parse_shape(struct model_config *c, const json_t *config, const char *where,
                       struct err *err)
{
    int64_t context = c->family == MODEL_LLAMA ? 2048 : 32768, kv_heads, head_dim;
    double eps = 1e-6;
    const char *act = "silu";
    if (dimension(config, "vocab_size", where, &c->vocab, err) != 0 ||
        dimension(config, "hidden_size", where, &c->hidden, err) != 0 ||
        dimension(config, "intermediate_size", where, &c->ffn, err) != 0 ||
        dimension(config, "num_hidden_layers", where, &c->n_layers, err) != 0 ||
        dimension(config, "num_attention_heads", where, &c->n_heads, err) != 0 ||
        config_json_int(config, "max_position_embeddings", where, 1, 1 << 24, &context, err) != 0 ||
        config_json_real(config, "rms_norm_eps", where, 0, 1, &eps, err) != 0 ||
        config_json_string(config, "hidden_act", where, &act, err) != 0)
        return -1;
    if (c->n_layers > MODEL_LAYERS_MAX)
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: num_hidden_layers is %d, at most %d are supported", where, c->n_layers,
                       MODEL_LAYERS_MAX);
    if (strcmp(act, "silu") != 0)
        return err_set(err, ERR_UNSUPPORTED, "%s: hidden_act %s is not supported (silu is)", where,
                       act);
    /* num_key_value_heads null: as many as query heads. */
    kv_heads = c->n_heads;
    if (config_json_int(config, "num_key_value_heads", where, 1, c->n_heads, &kv_heads, err) != 0)
        return -1;
    if (c->n_heads % kv_heads != 0)
        return err_set(err, ERR_INVALID,
                       "%s: num_attention_heads %d is no multiple of "
                       "num_key_value_heads %d",
                       where, c->n_heads, (int)kv_heads);
    head_dim = c->family == MODEL_QWEN3 ? 128 : c->hidden / c->n_heads;
    if (config_json_int(config, "head_dim", where, 2, 1024, &head_dim, err) != 0)
        return -1;
    if (head_dim < 2 || head_dim % 2 != 0)
        return err_set(err, ERR_UNSUPPORTED, "%s: head_dim %d is not even", where, (int)head_dim);
    if ((int64_t)c->n_heads * head_dim > MODEL_DIM_MAX)
        return err_set(err, ERR_INVALID, "%s: num_attention_heads times head_dim is over %d", where,
                       MODEL_DIM_MAX);
    c->n_kv_heads = (int)kv_heads;
    c->head_dim = (int)head_dim;
    c->max_context = (int)context;
    c->norm_eps = (float)eps;
    return 0;
}

static int parse_bias(struct model_config *c, const json_t *config, const char *where,
                      struct err *err)
{
    bool attention = false, mlp = false, tied = false;
    if (config_json_bool(config, "attention_bias", where, &attention, err) != 0 ||
        config_json_bool(config, "mlp_bias", where, &mlp, err) != 0 ||
        config_json_bool(config, "tie_word_embeddings", where, &tied, err) != 0)
        return -1;
    if (c->family != MODEL_LLAMA && mlp)
        return err_set(err, ERR_UNSUPPORTED, "%s: mlp_bias is not supported in this model_type",
                       where);
    if ((c->family == MODEL_MISTRAL || c->family == MODEL_QWEN2) && attention)
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: attention_bias is not supported in this model_type", where);
    c->qkv_bias = attention || c->family == MODEL_QWEN2;
    c->o_bias = attention;
    c->mlp_bias = mlp;
    c->qk_norm = c->family == MODEL_QWEN3;
    c->tied = tied;
    return 0;
}

static int parse_windows(struct model_config *c, const json_t *config, const char *where,
                         struct err *err)
{
    int64_t window = 0, first = 0;
    bool use = c->family == MODEL_MISTRAL;
    if (use && json_object_get(config, "sliding_window") == NULL)
        window = 4096; /* the default, unlike null */
    if (config_json_int(config, "sliding_window", where, 1, 1 << 24, &window, err) != 0)
        return -1;
    if (c->family == MODEL_QWEN2 || c->family == MODEL_QWEN3) {
        first = 28; /* the default of both */
        if (config_json_bool(config, "use_sliding_window", where, &use, err) != 0 ||
            config_json_int(config, "max_window_layers", where, 0, 1 << 20, &first, err) != 0)
            return -1;
        if (use && window == 0)
            window = 4096;
    } else if (c->family == MODEL_LLAMA && window != 0) {
        return err_set(err, ERR_UNSUPPORTED, "%s: sliding_window is set, llama has none", where);
    }
    for (int l = 0; l < c->n_layers; l++)
        c->window[l] = use && l >= first ? (int)window : 0;

    const json_t *types = json_object_get(config, "layer_types");
    if (!config_json_is_set(types))
        return 0;
    if (!json_is_array(types) || json_array_size(types) != (size_t)c->n_layers)
        return err_set(err, ERR_INVALID, "%s: layer_types is not an array of %d", where,
                       c->n_layers);
    for (int l = 0; l < c->n_layers; l++) {
        const char *type = json_string_value(json_array_get(types, (size_t)l));
        if (type == NULL)
            return err_set(err, ERR_INVALID, "%s: layer_types[%d] is not a string", where, l);
        if (strcmp(type, "full_attention") == 0) {
            c->window[l] = 0;
        } else if (strcmp(type, "sliding_attention") == 0 && window > 0 &&
                   c->family != MODEL_LLAMA) {
            c->window[l] = (int)window;
        } else {
            return err_set(err, ERR_UNSUPPORTED,
                           "%s: layer_types[%d] is %s, which is not supported", where, l, type);
        }
    }
    return 0;
}

/* rope: one object says it all (rope_parameters), or rope_theta and rope_scaling do. */
static int parse_rope(struct model_config *c, const json_t *config, const char *where,
                      struct err *err)
{
    static const char *const known[] = {
        "factor",
        "high_freq_factor",
        "low_freq_factor",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "rope_theta",
        "rope_type",
        "type",
    };
    const json_t *parameters = json_object_get(config, "rope_parameters");
    const json_t *scaling = json_object_get(config, "rope_scaling");
    const char *from = "rope_scaling";
    if (config_json_is_set(parameters)) {
        if (config_json_is_set(scaling) &&
            !json_equal((json_t *)(uintptr_t)scaling, (json_t *)(uintptr_t)parameters))
            return err_set(err, ERR_INVALID, "%s: has rope_parameters and another rope_scaling",
                           where);
        scaling = parameters;
        from = "rope_parameters";
    }
    double theta = 10000;
    double partial = 1, factor = 1, low = 1, high = 4, original = 0;
    if (config_json_real(config, "rope_theta", where, 1, 1e12, &theta, err) != 0 ||
        config_json_real(config, "partial_rotary_factor", where, 0, 1, &partial, err) != 0)
        return -1;
    c->rope.scaling = ROPE_DEFAULT;
    if (config_json_is_set(scaling)) {
        if (!json_is_object(scaling))
            return err_set(err, ERR_INVALID, "%s: %s is not an object", where, from);
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)(uintptr_t)scaling, key, value)
        {
            if (config_json_is_set(value) && !IN_LIST(key, known))
                return err_set(err, ERR_UNSUPPORTED, "%s: %s.%s is not supported", where, from,
                               key);
        }
        const char *type = NULL;
        if (config_json_string(scaling, "type", where, &type, err) != 0 ||
            config_json_string(scaling, "rope_type", where, &type, err) != 0 ||
            config_json_real(scaling, "rope_theta", where, 1, 1e12, &theta, err) != 0 ||
            config_json_real(scaling, "partial_rotary_factor", where, 0, 1, &partial, err) != 0 ||
            config_json_real(scaling, "factor", where, 1, 1e6, &factor, err) != 0 ||
            config_json_real(scaling, "low_freq_factor", where, 1e-3, 1e6, &low, err) != 0 ||
            config_json_real(scaling, "high_freq_factor", where, 1e-3, 1e6, &high, err) != 0 ||
            config_json_real(scaling, "original_max_position_embeddings", where, 1, 1 << 24,
                             &original, err) != 0)
            return -1;
        if (type == NULL && from[5] == 's')
            return err_set(err, ERR_INVALID, "%s: %s has no rope_type", where, from);
        if (type == NULL || strcmp(type, "default") == 0) {
            c->rope.scaling = ROPE_DEFAULT;
        } else if (strcmp(type, "linear") == 0) {
            c->rope.scaling = ROPE_LINEAR;
        } else if (strcmp(type, "llama3") == 0) {
            c->rope.scaling = ROPE_LLAMA3;
        } else {
            return err_set(err, ERR_UNSUPPORTED,
                           "%s: %s type %s is not supported (default, linear "
                           "and llama3 are)",
                           where, from, type);
        }
        if (c->rope.scaling != ROPE_DEFAULT &&
            !config_json_is_set(json_object_get(scaling, "factor")))
            return err_set(err, ERR_INVALID, "%s: %s has no factor", where, from);
        if (c->rope.scaling == ROPE_LLAMA3 && (original == 0 || high <= low))
            return err_set(err, ERR_INVALID,
                           "%s: %s of llama3 needs "
                           "original_max_position_embeddings and low_freq_factor below "
                           "high_freq_factor",
                           where, from);
    }
    if (partial < 1)
        return err_set(err, ERR_UNSUPPORTED, "%s: partial_rotary_factor %g is not supported", where,
                       partial);
    c->rope.theta = (float)theta;
    c->rope.factor = (float)factor;
    c->rope.low_freq_factor = (float)low;
    c->rope.high_freq_factor = (float)high;
    c->rope.original_context = (float)original;
    return 0;
}

/* bos_token_id and eos_token_id of one file; absent leaves what there is. */
static int parse_ends(struct model_config *c, const json_t *object, const char *where,
                      struct err *err)
{
    int64_t bos = c->bos;
    const json_t *v = json_object_get(object, "bos_token_id");
    if (json_is_array(v))
        v = json_array_get(v, 0);
    if (json_is_integer(v)) {
        bos = json_integer_value(v);
        if (bos < 0 || bos >= c->vocab)
            return err_set(err, ERR_INVALID, "%s: bos_token_id is not in the vocabulary", where);
    } else if (v != NULL && !json_is_null(v)) {
        return err_set(err, ERR_INVALID, "%s: bos_token_id is not an integer", where);
    }
    c->bos = (int32_t)bos;

    v = json_object_get(object, "eos_token_id");
    if (v == NULL || json_is_null(v))
        return 0;
    size_t n = json_is_array(v) ? json_array_size(v) : 1;
    if (n > MODEL_EOS_MAX)
        return err_set(err, ERR_UNSUPPORTED, "%s: eos_token_id lists more than %d ids", where,
                       MODEL_EOS_MAX);
    c->n_eos = 0;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_is_array(v) ? json_array_get(v, i) : v;
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= c->vocab)
            return err_set(err, ERR_INVALID, "%s: eos_token_id is not in the vocabulary", where);
        c->eos[c->n_eos++] = (int32_t)json_integer_value(id);
    }
    return 0;
}

int model_config_parse(struct model_config *out, const struct json_t *config,
                       const struct json_t *generation, const char *where, struct err *err)
{
    *out = (struct model_config){.bos = -1};
    if (parse_family(out, config, where, err) != 0 ||
        refuse_unknown_keys(config, where, err) != 0 || parse_shape(out, config, where, err) != 0 ||
        parse_bias(out, config, where, err) != 0 || parse_windows(out, config, where, err) != 0 ||
        parse_rope(out, config, where, err) != 0 || parse_ends(out, config, where, err) != 0)
        return -1;
    return generation != NULL ? parse_ends(out, generation, "generation_config.json", err) : 0;
}

void model_rope_inv_freq(const struct model_config *c, float *inv_freq)
{
    const float two_pi = 6.283185307179586f;
    for (int i = 0; i < c->head_dim / 2; i++) {
        float f = 1.0f / powf(c->rope.theta, (float)(2 * i) / (float)c->head_dim);
        switch (c->rope.scaling) {
        case ROPE_DEFAULT:
            break;
        case ROPE_LINEAR:
            f /= c->rope.factor;
            break;
        case ROPE_LLAMA3: {
            float low_wavelength = c->rope.original_context / c->rope.low_freq_factor;
            float high_wavelength = c->rope.original_context / c->rope.high_freq_factor;
            float wavelength = two_pi / f;
            if (wavelength > low_wavelength) {
                f /= c->rope.factor;
            } else if (wavelength >= high_wavelength) {
                float smooth = (c->rope.original_context / wavelength - c->rope.low_freq_factor) /
                               (c->rope.high_freq_factor - c->rope.low_freq_factor);
                f = (1.0f - smooth) * f / c->rope.factor + smooth * f;
            }
            break;
        }
        }
        inv_freq[i] = f;
    }
}
