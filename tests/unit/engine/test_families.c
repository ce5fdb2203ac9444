/* Each family against its formula: small random models, written as files, opened by the engine, and
 * computed a second time here, in f64, position by position, without cache, batch or kernels. */
#include "tests/unit/engine/run.h"

#include "engine/lora.h"

static const double LOGIT_TOLERANCE = 1e-4;

/* ---- the formula ------------------------------------------------------------------------- */

enum { N_MAX = 48, D_MAX = 256, VOCAB = 96 };

struct naive {
    const struct model *m;
    const struct lora_adapter *lora;               /* or NULL */
    double k[4][N_MAX][D_MAX], v[4][N_MAX][D_MAX]; /* [layer][position] */
};

static const struct tensor *tensor_of(const struct naive *n, int layer, const char *name)
{
    char full[128];
    if (layer >= 0)
        snprintf(full, sizeof full, "model.layers.%d.%s", layer, name);
    else
        snprintf(full, sizeof full, "%s", name);
    return tensor_dir_find(&n->m->tensors, full);
}

static double element(const struct lora_adapter *a, const struct lora_site *s, size_t offset,
                      size_t i)
{
    struct tensor t = {.data = a->data + offset,
                       .dtype = s->dtype == DTYPE_F32 ? TENSOR_F32 : TENSOR_BF16};
    return (double)tensor_f32(&t, i);
}

/* y = W x + bias + scaling B (A x) */
static void linear(const struct naive *n, double *y, const double *x, int layer, int kind)
{
    char site[SITE_NAME_BYTES], name[SITE_NAME_BYTES + 8];
    model_site_name(site, layer * SITE_KINDS + kind);
    snprintf(name, sizeof name, "%s.weight", site);
    const struct tensor *w = tensor_of(n, -1, name);
    snprintf(name, sizeof name, "%s.bias", site);
    const struct tensor *bias = tensor_of(n, -1, name);
    int d_out = (int)w->shape[0], d_in = (int)w->shape[1];
    for (int i = 0; i < d_out; i++) {
        y[i] = bias != NULL ? (double)tensor_f32(bias, (size_t)i) : 0;
        for (int j = 0; j < d_in; j++)
            y[i] += (double)tensor_f32(w, (size_t)(i * d_in + j)) * x[j];
    }
    for (int s = 0; n->lora != NULL && s < n->lora->n_sites; s++) {
        const struct lora_site *at = &n->lora->sites[s];
        if (at->site != layer * SITE_KINDS + kind)
            continue;
        for (int r = 0; r < at->rank; r++) {
            double t = 0;
            for (int j = 0; j < d_in; j++)
                t += element(n->lora, at, at->a_offset, (size_t)(r * d_in + j)) * x[j];
            for (int i = 0; i < d_out; i++)
                y[i] += (double)at->scaling * t *
                        element(n->lora, at, at->b_offset, (size_t)(i * at->rank + r));
        }
    }
}

static void rmsnorm(const struct naive *n, double *y, const double *x, int d,
                    const struct tensor *w)
{
    double sum = 0;
    for (int i = 0; i < d; i++)
        sum += x[i] * x[i];
    double inverse = 1 / sqrt(sum / d + (double)n->m->config.norm_eps);
    for (int i = 0; i < d; i++)
        y[i] = x[i] * inverse * (double)tensor_f32(w, (size_t)i);
}

static void rope(const struct naive *n, double *head, int position)
{
    float inv_freq[D_MAX];
    int half = n->m->config.head_dim / 2;
    model_rope_inv_freq(&n->m->config, inv_freq);
    for (int i = 0; i < half; i++) {
        double angle = (double)((float)position * inv_freq[i]), a = head[i], b = head[half + i];
        head[i] = a * cos(angle) - b * sin(angle);
        head[half + i] = b * cos(angle) + a * sin(angle);
    }
}

static void attend(struct naive *n, double *x, int layer, int position)
{
    const struct model_config *c = &n->m->config;
    double q[D_MAX], out[D_MAX], y[D_MAX];
    int hd = c->head_dim, window = c->window[layer];
    linear(n, q, x, layer, SITE_Q);
    linear(n, n->k[layer][position], x, layer, SITE_K);
    linear(n, n->v[layer][position], x, layer, SITE_V);
    for (int h = 0; h < c->n_heads + c->n_kv_heads; h++) {
        bool is_q = h < c->n_heads;
        double *head = is_q ? q + h * hd : n->k[layer][position] + (h - c->n_heads) * hd;
        if (c->qk_norm)
            rmsnorm(
                n, head, head, hd,
                tensor_of(n, layer, is_q ? "self_attn.q_norm.weight" : "self_attn.k_norm.weight"));
        rope(n, head, position);
    }
    for (int h = 0; h < c->n_heads; h++) {
        int kv = h / (c->n_heads / c->n_kv_heads) * hd;
        int first = window > 0 && position - window + 1 > 0 ? position - window + 1 : 0;
        double scores[N_MAX], sum = 0;
        for (int j = first; j <= position; j++) {
            double s = 0;
            for (int i = 0; i < hd; i++)
                s += q[h * hd + i] * n->k[layer][j][kv + i];
            scores[j] = exp(s / sqrt(hd));
            sum += scores[j];
        }
        for (int i = 0; i < hd; i++) {
            out[h * hd + i] = 0;
            for (int j = first; j <= position; j++)
                out[h * hd + i] += scores[j] / sum * n->v[layer][j][kv + i];
        }
    }
    linear(n, y, out, layer, SITE_O);
    memcpy(x, y, (size_t)c->hidden * sizeof *x);
}

static void feed_forward(struct naive *n, double *x, int layer)
{
    const struct model_config *c = &n->m->config;
    double gate[D_MAX], up[D_MAX];
    linear(n, gate, x, layer, SITE_GATE);
    linear(n, up, x, layer, SITE_UP);
    for (int i = 0; i < c->ffn; i++)
        gate[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
    linear(n, x, gate, layer, SITE_DOWN);
}

static void naive_step(struct naive *n, double *logits, int32_t token, int position)
{
    const struct model_config *c = &n->m->config;
    const struct tensor *embed = tensor_of(n, -1, "model.embed_tokens.weight");
    const struct tensor *head = c->tied ? embed : tensor_of(n, -1, "lm_head.weight");
    double residual[D_MAX], x[D_MAX];
    for (int i = 0; i < c->hidden; i++)
        residual[i] = (double)tensor_f32(embed, (size_t)(token * c->hidden + i));
    for (int l = 0; l < c->n_layers; l++) {
        rmsnorm(n, x, residual, c->hidden, tensor_of(n, l, "input_layernorm.weight"));
        attend(n, x, l, position);
        for (int i = 0; i < c->hidden; i++)
            residual[i] += x[i];
        rmsnorm(n, x, residual, c->hidden, tensor_of(n, l, "post_attention_layernorm.weight"));
        feed_forward(n, x, l);
        for (int i = 0; i < c->hidden; i++)
            residual[i] += x[i];
    }
    rmsnorm(n, x, residual, c->hidden, tensor_of(n, -1, "model.norm.weight"));
    for (int t = 0; t < c->vocab; t++) {
        logits[t] = 0;
        for (int i = 0; i < c->hidden; i++)
            logits[t] += (double)tensor_f32(head, (size_t)(t * c->hidden + i)) * x[i];
    }
}

/* ---- the same through files and the engine ----------------------------------------------- */

static void write_text(const char *dir, const char *name, const char *text)
{
    struct err err = {0};
    char *path = xasprintf("%s/%s", dir, name);
    assert_ok(file_write_atomic(path, text, strlen(text), 0600, &err), err);
    free(path);
}

/* The model's tensors as one file; with pad, the data begin at an odd address. */
static void write_tensors(const char *dir, const struct model *m, bool odd)
{
    struct buf header = BUF_INIT, data = BUF_INIT, file = BUF_INIT;
    struct err err = {0};
    buf_append_byte(&header, '{');
    for (size_t i = 0; i < m->tensors.n_tensors; i++) {
        const struct tensor *t = m->tensors.tensors[i];
        char shape[64];
        buf_appendf(&header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                    i > 0 ? "," : "", t->name, tensor_dtype_name(t->dtype),
                    tensor_shape_text(t, shape, sizeof shape), data.len, data.len + t->n_bytes);
        buf_append(&data, t->data, t->n_bytes);
    }
    buf_append_byte(&header, '}');
    while (header.len % 2 != (odd ? 1 : 0))
        buf_append_byte(&header, ' ');
    uint64_t n_header = header.len;
    buf_append(&file, &n_header, 8);
    buf_append(&file, header.data, header.len);
    buf_append(&file, data.data, data.len);
    char *path = xasprintf("%s/model.safetensors", dir);
    assert_ok(file_write_atomic(path, file.data, file.len, 0600, &err), err);
    free(path);
    buf_release(&header);
    buf_release(&data);
    buf_release(&file);
}

struct seen {
    float logits[N_MAX][VOCAB];
    int n;
};

static void keep(void *context, void *user, int position, const float *logits, int vocab)
{
    struct seen *seen = context;
    (void)user;
    assert_true(position < N_MAX && vocab == VOCAB);
    memcpy(seen->logits[position], logits, sizeof seen->logits[position]);
    seen->n++;
}

static const struct {
    const char *name, *config;
    bool odd; /* data of the file begin at an odd address */
} FAMILIES[] = {
    {"llama, tied, grouped heads, keys of the old kind",
     "{\"model_type\":\"llama\",\"vocab_size\":96,\"hidden_size\":48,\"intermediate_size\":80,"
     "\"num_hidden_layers\":2,\"num_attention_heads\":6,\"num_key_value_heads\":2,"
     "\"max_position_embeddings\":64,\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,"
     "\"rope_scaling\":null,\"tie_word_embeddings\":true,\"torch_dtype\":\"bfloat16\"}",
     false},
    {"llama with all biases, own lm_head, num_key_value_heads null, odd addresses",
     "{\"model_type\":\"llama\",\"vocab_size\":96,\"hidden_size\":48,\"intermediate_size\":36,"
     "\"num_hidden_layers\":2,\"num_attention_heads\":3,\"num_key_value_heads\":null,"
     "\"max_position_embeddings\":64,\"attention_bias\":true,\"mlp_bias\":true}",
     true},
    {"llama3 scaling, rope_parameters, dtype",
     "{\"model_type\":\"llama\",\"vocab_size\":96,\"hidden_size\":32,\"intermediate_size\":48,"
     "\"num_hidden_layers\":2,\"num_attention_heads\":2,\"num_key_value_heads\":1,"
     "\"max_position_embeddings\":64,\"dtype\":\"bfloat16\",\"rope_parameters\":{"
     "\"rope_type\":\"llama3\",\"rope_theta\":500.0,\"factor\":4.0,\"low_freq_factor\":1.0,"
     "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":64}}",
     false},
    {"linear scaling",
     "{\"model_type\":\"llama\",\"vocab_size\":96,\"hidden_size\":32,\"intermediate_size\":48,"
     "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"max_position_embeddings\":64,"
     "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.5}}",
     false},
    {"mistral: window, head_dim of its own",
     "{\"model_type\":\"mistral\",\"vocab_size\":96,\"hidden_size\":40,\"intermediate_size\":64,"
     "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":16,"
     "\"max_position_embeddings\":64,\"sliding_window\":7,\"rms_norm_eps\":1e-5}",
     false},
    {"qwen2: biases of q, k, v; window in upper layers only",
     "{\"model_type\":\"qwen2\",\"vocab_size\":96,\"hidden_size\":48,\"intermediate_size\":56,"
     "\"num_hidden_layers\":3,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
     "\"max_position_embeddings\":64,\"tie_word_embeddings\":true,\"use_sliding_window\":true,"
     "\"sliding_window\":9,\"max_window_layers\":1,\"rope_theta\":1000000.0}",
     false},
    {"qwen3: norms of q and k, layer_types",
     "{\"model_type\":\"qwen3\",\"vocab_size\":96,\"hidden_size\":32,\"intermediate_size\":48,"
     "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":16,"
     "\"max_position_embeddings\":64,\"sliding_window\":null,\"use_sliding_window\":false,"
     "\"layer_types\":[\"full_attention\",\"full_attention\"]}",
     false},
};

static void check_family(size_t family, const char *backend, const struct lora_adapter *lora,
                         const struct model *made, const char *dir)
{
    struct run run;
    struct engine_options options = run_options(dir);
    options.backend = backend;
    options.max_rows = 7; /* prompts come in chunks */
    run_open(&run, options, 2);
    int32_t prompt[20];
    for (int i = 0; i < 20; i++)
        prompt[i] = (i * 37 + 11) % VOCAB;
    struct engine_request r = run_greedy(prompt, 20, N_MAX - 20, -1);
    if (lora != NULL) {
        struct err err = {0};
        struct lora_adapter *copy = lora_random(&made->config, lora->rank_max, lora->sites[0].dtype,
                                                5);
        assert_memory_equal(copy->data, lora->data, lora->n_bytes);
        assert_ok(engine_adapter_add(run.engine, copy, &err), err);
        r.n_adapters = 1;
        r.adapters[0].content = lora->content;
        r.adapters[0].weight = 1;
    }
    struct seen seen = {.n = 0};
    engine_set_logits_hook(run.engine, keep, &seen);
    struct answer *a = run_submit(&run, r);
    run_wait(&run);
    assert_int_equal(seen.n, N_MAX - 20);

    struct naive *n = xcalloc(1, sizeof *n);
    n->m = made;
    n->lora = lora;
    double logits[VOCAB];
    for (int p = 0; p < N_MAX - 1; p++) {
        naive_step(n, logits, p < 20 ? prompt[p] : a->tokens[p - 20].token, p);
        for (int t = 0; p >= 19 && t < VOCAB; t++) {
            double distance = fabs(logits[t] - (double)seen.logits[p + 1][t]);
            if (!(distance < LOGIT_TOLERANCE))
                fail_msg("%s on %s%s: position %d, logit %d is %.6f, the formula says %.6f",
                         FAMILIES[family].name, backend, lora != NULL ? " with an adapter" : "",
                         p + 1, t, (double)seen.logits[p + 1][t], logits[t]);
        }
    }
    free(n);
    run_close(&run);
}

static void every_family_computes_its_formula_with_and_without_an_adapter(void **state)
{
    (void)state;
    for (size_t f = 0; f < sizeof FAMILIES / sizeof FAMILIES[0]; f++) {
        struct err err = {0};
        json_t *config = json_loads(FAMILIES[f].config, 0, NULL);
        struct model_config parsed;
        struct model *made;
        assert_non_null(config);
        assert_ok(model_config_parse(&parsed, config, NULL, "config.json", &err), err);
        assert_ok(model_random(&made, &parsed, FAMILIES[f].name, f + 1, &err), err);
        char *dir = temp_dir_create();
        write_text(dir, "config.json", FAMILIES[f].config);
        write_tensors(dir, made, FAMILIES[f].odd);
        struct lora_adapter *lora = lora_random(&parsed, 3, f % 2 ? DTYPE_F32 : DTYPE_BF16, 5);
        check_family(f, "ref", NULL, made, dir);
        check_family(f, "cpu", NULL, made, dir);
        check_family(f, "ref", lora, made, dir);
        check_family(f, "cpu", lora, made, dir);
        lora_close(lora);
        model_close(made);
        temp_dir_remove(dir);
        json_decref(config);
    }
    print_message("note: %zu families and variants on 2 backends\n",
                  sizeof FAMILIES / sizeof FAMILIES[0]);
}

/* ---- configurations ---------------------------------------------------------------------- */

#define LLAMA                                                                                 \
    "\"model_type\":\"llama\",\"vocab_size\":96,\"hidden_size\":48,\"intermediate_size\":36," \
    "\"num_hidden_layers\":2,\"num_attention_heads\":3"

static void configurations_that_are_not_understood_are_refused_naming_the_key(void **state)
{
    static const struct {
        const char *config, *says; /* NULL: good */
    } cases[] = {
        {"{" LLAMA "}", NULL},
        {"{" LLAMA ",\"quantization_config\":null,\"new_thing\":null,\"_name_or_path\":\"x\"}",
         NULL},
        {"{" LLAMA
         ",\"is_llama_config\":true,\"rope_interleaved\":false,\"transformers.js_config\":"
         "{\"dtype\":\"q4\"},\"max_sequence_length\":2048}",
         NULL}, /* SmolLM2's and Vicuna's */
        {"{" LLAMA ",\"rope_interleaved\":true}", "rope_interleaved"},
        {"{}", "model_type"},
        {"{\"model_type\":\"gpt2\"}", "model_type gpt2"},
        {"{\"model_type\":\"mixtral\"}", "model_type mixtral"},
        {"{\"model_type\":7}", "model_type is not a string"},
        {"{" LLAMA ",\"new_thing\":3}", "key new_thing"},
        {"{" LLAMA ",\"quantization_config\":{\"bits\":4}}", "key quantization_config"},
        {"{" LLAMA ",\"hidden_act\":\"gelu\"}", "hidden_act gelu"},
        {"{" LLAMA ",\"num_key_value_heads\":2}", "num_key_value_heads"},
        {"{" LLAMA ",\"num_key_value_heads\":0}", "num_key_value_heads"},
        {"{" LLAMA ",\"head_dim\":15}", "head_dim 15"},
        {"{" LLAMA ",\"max_position_embeddings\":1e9}", "max_position_embeddings"},
        {"{" LLAMA ",\"sliding_window\":4}", "sliding_window"},
        {"{" LLAMA ",\"partial_rotary_factor\":0.5}", "partial_rotary_factor"},
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0}}", "type yarn"},
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", "no factor"},
        {"{" LLAMA ",\"rope_scaling\":{\"factor\":2.0}}", "rope_type"},
        {"{" LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":2.0}}", "llama3"},
        {"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0,\"beta_fast\":3}}",
         "beta_fast"},
        {"{" LLAMA ",\"rope_scaling\":7}", "rope_scaling"},
        {"{" LLAMA ",\"layer_types\":[\"full_attention\"]}", "layer_types"},
        {"{" LLAMA ",\"layer_types\":[\"full_attention\",\"chunked_attention\"]}",
         "chunked_attention"},
        {"{" LLAMA ",\"eos_token_id\":96}", "eos_token_id"},
        {"{" LLAMA ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9]}", "eos_token_id"},
        {"{" LLAMA ",\"bos_token_id\":\"a\"}", "bos_token_id"},
        {"{" LLAMA ",\"rms_norm_eps\":-1}", "rms_norm_eps"},
        {"{" LLAMA ",\"attention_bias\":1}", "attention_bias"},
        {"{\"model_type\":\"llama\",\"vocab_size\":96}", "hidden_size"},
        {"{\"model_type\":\"llama\",\"vocab_size\":-1}", "vocab_size"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct err err = {0};
        struct model_config c;
        json_t *j = json_loads(cases[i].config, 0, NULL);
        assert_non_null(j);
        int rc = model_config_parse(&c, j, NULL, "config.json", &err);
        if ((rc == 0) != (cases[i].says == NULL) ||
            (rc != 0 && strstr(err.message, cases[i].says) == NULL))
            fail_msg("%s: %s", cases[i].config, rc == 0 ? "was taken" : err.message);
        json_decref(j);
    }
}

static void generation_config_wins_and_eos_may_be_a_list(void **state)
{
    (void)state;
    struct err err = {0};
    struct model_config c;
    json_t *config = json_loads("{" LLAMA ",\"eos_token_id\":5,\"bos_token_id\":1}", 0, NULL);
    json_t *generation = json_loads("{\"eos_token_id\":[7,9],\"temperature\":0.6}", 0, NULL);
    assert_ok(model_config_parse(&c, config, NULL, "config.json", &err), err);
    assert_true(c.n_eos == 1 && c.eos[0] == 5 && c.bos == 1);
    assert_ok(model_config_parse(&c, config, generation, "config.json", &err), err);
    assert_true(c.n_eos == 2 && c.eos[0] == 7 && c.eos[1] == 9 && c.bos == 1);
    json_decref(config);
    json_decref(generation);
}

static void mistral_has_a_window_unless_it_says_null(void **state)
{
    static const struct {
        const char *key;
        int window;
    } cases[] = {
        {"", 4096},
        {",\"sliding_window\":null", 0},
        {",\"sliding_window\":7", 7},
        {",\"layer_types\":[\"full_attention\",\"sliding_attention\"]", 4096},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct err err = {0};
        struct model_config c;
        char *text = xasprintf("{\"model_type\":\"mistral\",\"vocab_size\":96,\"hidden_size\":48,"
                               "\"intermediate_size\":36,\"num_hidden_layers\":2,"
                               "\"num_attention_heads\":3%s}",
                               cases[i].key);
        json_t *j = json_loads(text, 0, NULL);
        assert_ok(model_config_parse(&c, j, NULL, "config.json", &err), err);
        assert_int_equal(c.window[1], cases[i].window);
        json_decref(j);
        free(text);
    }
}

/* Llama 3.1 8B's frequencies: unchanged above wavelength 2048, an eighth below 8192, smooth
 * between. */
static void llama3_frequencies_are_scaled_in_three_regions(void **state)
{
    (void)state;
    struct model_config c = {.head_dim = 128,
                             .rope = {.scaling = ROPE_LLAMA3,
                                      .theta = 500000,
                                      .factor = 8,
                                      .low_freq_factor = 1,
                                      .high_freq_factor = 4,
                                      .original_context = 8192}};
    float scaled[64], plain[64];
    int n_same = 0, n_eighth = 0;
    model_rope_inv_freq(&c, scaled);
    c.rope.scaling = ROPE_DEFAULT;
    model_rope_inv_freq(&c, plain);
    for (int i = 0; i < 64; i++) {
        double wavelength = 2 * acos(-1) / (double)plain[i], ratio = (double)(scaled[i] / plain[i]);
        if (wavelength < 2048) {
            assert_true(ratio > 0.999999 && ratio < 1.000001);
            n_same++;
        } else if (wavelength > 8192) {
            assert_true(ratio > 0.1249999 && ratio < 0.1250001);
            n_eighth++;
        } else {
            double smooth = (8192 / wavelength - 1) / 3;
            assert_true(fabs(ratio - ((1 - smooth) / 8 + smooth)) < 1e-5);
        }
    }
    assert_true(n_same > 20 && n_eighth > 20);
    assert_true(fabs((double)plain[0] - 1) < 1e-7);
}

static void tensors_that_the_config_does_not_ask_for_are_refused_by_name(void **state)
{
    (void)state;
    struct err err = {0};
    struct model *made, *opened;
    json_t *j = json_loads(FAMILIES[1].config, 0, NULL);
    struct model_config c;
    assert_ok(model_config_parse(&c, j, NULL, "config.json", &err), err);
    assert_ok(model_random(&made, &c, "x", 1, &err), err);
    char *dir = temp_dir_create();
    write_tensors(dir, made, false);
    static const struct {
        const char *from, *to, *says;
    } cases[] = {
        {"", "", NULL},
        {"\"mlp_bias\":true", "\"mlp_bias\":false", "bias belongs to nothing"},
        {"\"intermediate_size\":36", "\"intermediate_size\":40", "config.json asks for"},
        {"\"num_hidden_layers\":2", "\"num_hidden_layers\":3", "model.layers.2"},
        {"\"model_type\":\"llama\"", "\"model_type\":\"qwen3\",\"head_dim\":16", "is missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *at = strstr(FAMILIES[1].config, cases[i].from);
        char *config = xasprintf("%.*s%s%s", (int)(at - FAMILIES[1].config), FAMILIES[1].config,
                                 cases[i].to, at + strlen(cases[i].from));
        if (i == 4) { /* qwen3 knows no mlp_bias */
            char *mlp = strstr(config, ",\"mlp_bias\":true");
            memmove(mlp, mlp + 16, strlen(mlp + 16) + 1);
        }
        write_text(dir, "config.json", config);
        int rc = model_open(&opened, dir, &err);
        if ((rc == 0) != (cases[i].says == NULL) ||
            (rc != 0 && strstr(err.message, cases[i].says) == NULL))
            fail_msg("%s: %s", cases[i].to, rc == 0 ? "was taken" : err.message);
        if (rc == 0)
            model_close(opened);
        free(config);
    }
    model_close(made);
    json_decref(j);
    temp_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_computes_its_formula_with_and_without_an_adapter),
        cmocka_unit_test(configurations_that_are_not_understood_are_refused_naming_the_key),
        cmocka_unit_test(generation_config_wins_and_eos_may_be_a_list),
        cmocka_unit_test(mistral_has_a_window_unless_it_says_null),
        cmocka_unit_test(llama3_frequencies_are_scaled_in_three_regions),
        cmocka_unit_test(tensors_that_the_config_does_not_ask_for_are_refused_by_name),
    };
    return cmocka_run_group_tests_name("families", tests, NULL, NULL);
}
