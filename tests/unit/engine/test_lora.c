/* Adapters, good and hostile: which modules a configuration means, and which files are refused. */
#include "engine/lora.h"
#include "engine/engine.h"
#include "engine/lora_config.h"
#include "kernels/numeric.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "tests/support.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- what a configuration means ---------------------------------------------------------- */

#define R "\"peft_type\":\"LORA\",\"r\":8,\"lora_alpha\":16"

static const char Q0[] = "model.layers.0.self_attn.q_proj";
static const char Q1[] = "model.layers.1.self_attn.q_proj";
static const char D1[] = "model.layers.1.mlp.down_proj";
static const char D11[] = "model.layers.11.mlp.down_proj";
static const char HEAD[] = "lm_head";

static const struct {
    const char *config, *module;
    int rank; /* 0: no target */
    double scaling;
    /* clang-format off */
} MODULES[] = {
    {"{" R ",\"target_modules\":[\"q_proj\"]}", Q0, 8, 2},
    {"{" R ",\"target_modules\":[\"q_proj\"]}", D1, 0, 0},
    {"{" R ",\"target_modules\":[\"proj\"]}", Q0, 0, 0}, /* endings begin after a dot */
    {"{" R ",\"target_modules\":[\"self_attn.q_proj\"]}", Q0, 8, 2},
    {"{" R ",\"target_modules\":[\"model.layers.1.self_attn.q_proj\"]}", Q1, 8, 2},
    {"{" R ",\"target_modules\":[\"model.layers.1.self_attn.q_proj\"]}", Q0, 0, 0},
    {"{" R ",\"target_modules\":\"all-linear\"}", D1, 8, 2},
    {"{" R ",\"target_modules\":\"all-linear\"}", HEAD, 0, 0},
    {"{" R ",\"target_modules\":[\"lm_head\"]}", HEAD, 8, 2},
    {"{" R ",\"target_modules\":\".*q_proj\"}", Q0, 8, 2},
    {"{" R ",\"target_modules\":\"q_proj\"}", Q0, 0, 0}, /* a string must match the whole name */
    {"{" R ",\"target_modules\":\".*(q_proj|down_proj)\"}", D1, 8, 2},
    {"{" R ",\"target_modules\":\".*\\\\.(0|4)\\\\.self_attn\\\\.q_proj\"}", Q0, 8, 2},
    {"{" R ",\"target_modules\":\".*\\\\.(0|4)\\\\.self_attn\\\\.q_proj\"}", Q1, 0, 0},
    {"{" R ",\"target_modules\":[\"q_proj\"],\"exclude_modules\":[\"q_proj\"]}", Q0, 0, 0},
    {"{" R ",\"target_modules\":\"all-linear\",\"exclude_modules\":\".*\\\\.1\\\\..*\"}", Q1, 0, 0},
    {"{" R ",\"target_modules\":\"all-linear\",\"exclude_modules\":\".*\\\\.1\\\\..*\"}", Q0, 8, 2},
    {"{" R ",\"target_modules\":[\"down_proj\"],\"layers_to_transform\":[1]}", D1, 8, 2},
    {"{" R ",\"target_modules\":[\"down_proj\"],\"layers_to_transform\":1}", D11, 0, 0},
    {"{" R ",\"target_modules\":[\"down_proj\"],\"layers_to_transform\":[]}", D11, 8, 2},
    {"{" R ",\"target_modules\":[\"down_proj\"],\"layers_to_transform\":[11],"
     "\"layers_pattern\":\"layers\"}", D11, 8, 2},
    {"{" R ",\"target_modules\":[\"down_proj\"],\"layers_to_transform\":[11],"
     "\"layers_pattern\":[\"h\",\"layers\"]}", D11, 8, 2},
    {"{" R ",\"target_modules\":[\"down_proj\"],\"layers_to_transform\":[11],"
     "\"layers_pattern\":\"h\"}", D11, 0, 0},
    {"{" R ",\"target_modules\":[\"model.layers.1.mlp.down_proj\"],\"layers_to_transform\":[7]}", D1, 8,
     2}, /* a whole name isn't asked for its layer */
    {"{" R ",\"target_modules\":[\"q_proj\"],\"use_rslora\":true}", Q0, 8, 5.656854249},
    {"{" R ",\"target_modules\":[\"q_proj\"],\"rank_pattern\":{\"q_proj\":2}}", Q0, 2, 8},
    {"{" R ",\"target_modules\":[\"q_proj\"],\"rank_pattern\":{\"_proj\":2}}", Q0, 8, 2},
    {"{" R ",\"target_modules\":[\"q_proj\"],\"rank_pattern\":{\".*_proj\":2}}", Q0, 2, 8},
    {"{" R ",\"target_modules\":[\"q_proj\"],\"rank_pattern\":{\"q_proj\":2,\"0.self_attn.q_proj\":4}}",
     Q0, 2, 8}, /* the first key that matches */
    {"{" R ",\"target_modules\":[\"q_proj\"],\"rank_pattern\":{\"0.self_attn.q_proj\":4,\"q_proj\":2}}",
     Q0, 4, 4},
    {"{" R ",\"target_modules\":[\"q_proj\"],\"rank_pattern\":{\"^model.layers.0.self_attn.q_proj\":4}}",
     Q0, 4, 4},
    {"{" R ",\"target_modules\":[\"q_proj\"],\"alpha_pattern\":{\"q_proj\":4}}", Q0, 8, 0.5},
    {"{" R ",\"target_modules\":[\"q_proj\"],\"alpha_pattern\":{\"q_proj\":4.5},"
     "\"rank_pattern\":{\"q_proj\":3},\"use_rslora\":true}", Q0, 3, 2.598076211},
};
/* clang-format on */

static void target_rank_and_scaling_follow_pefts_rules(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof MODULES / sizeof MODULES[0]; i++) {
        struct err err = {0};
        struct lora_config *c;
        bool targeted;
        int rank;
        float scaling;
        assert_ok(lora_config_parse(&c, MODULES[i].config, strlen(MODULES[i].config),
                                    "adapter_config.json", &err),
                  err);
        assert_ok(lora_config_module(c, MODULES[i].module, MODULES[i].module == HEAD, &targeted,
                                     &rank, &scaling, &err),
                  err);
        if (targeted != (MODULES[i].rank > 0))
            fail_msg("%s: %s is %sa target", MODULES[i].config, MODULES[i].module,
                     targeted ? "" : "not ");
        if (targeted &&
            (rank != MODULES[i].rank || fabs((double)scaling - MODULES[i].scaling) > 1e-6))
            fail_msg("%s: rank %d scaling %g, expected %d and %g", MODULES[i].config, rank,
                     (double)scaling, MODULES[i].rank, MODULES[i].scaling);
        lora_config_free(c);
    }
    print_message("note: %zu questions\n", sizeof MODULES / sizeof MODULES[0]);
}

#define T "\"target_modules\":[\"q_proj\"]"

static void configurations_that_change_the_maths_are_refused_naming_the_key(void **state)
{
    static const struct {
        const char *config, *says; /* NULL: taken */
        enum err_code code;
    } cases[] = {
        {"{" R "," T "}", NULL, 0},
        {"{" R "," T ",\"qalora_group_size\":16,\"lora_dropout\":0.1,\"some_future_key\":3}", NULL,
         0},
        {"{" R "," T ",\"init_lora_weights\":\"gaussian\",\"lora_bias\":false,\"loftq_config\":{}}",
         NULL, 0},
        {"{" R "," T ",\"use_dora\":true}", "use_dora", ERR_UNSUPPORTED},
        {"{" R "," T ",\"modules_to_save\":[\"lm_head\"]}", "modules_to_save", ERR_UNSUPPORTED},
        {"{" R "," T ",\"bias\":\"all\"}", "bias", ERR_UNSUPPORTED},
        {"{" R "," T ",\"bias\":\"lora_only\"}", "bias", ERR_UNSUPPORTED},
        {"{" R "," T ",\"lora_bias\":true}", "lora_bias", ERR_UNSUPPORTED},
        {"{" R "," T ",\"trainable_token_indices\":[1]}", "trainable_token_indices",
         ERR_UNSUPPORTED},
        {"{" R "," T ",\"target_parameters\":[\"x\"]}", "target_parameters", ERR_UNSUPPORTED},
        {"{" R "," T ",\"layer_replication\":[[0,4]]}", "layer_replication", ERR_UNSUPPORTED},
        {"{" R "," T ",\"alora_invocation_tokens\":[1]}", "alora_invocation_tokens",
         ERR_UNSUPPORTED},
        {"{" R "," T ",\"use_qalora\":true}", "use_qalora", ERR_UNSUPPORTED},
        {"{" R "," T ",\"velora_config\":{\"a\":1}}", "velora_config", ERR_UNSUPPORTED},
        {"{" R "," T ",\"kasa_config\":{\"a\":1}}", "kasa_config", ERR_UNSUPPORTED},
        {"{" R "," T ",\"arrow_config\":{\"a\":1}}", "arrow_config", ERR_UNSUPPORTED},
        {"{" R "," T ",\"use_bdlora\":{\"a\":1}}", "use_bdlora", ERR_UNSUPPORTED},
        {"{" R "," T ",\"monteclora_config\":{\"a\":1}}", "monteclora_config", ERR_UNSUPPORTED},
        {"{" R "," T ",\"fan_in_fan_out\":true}", "fan_in_fan_out", ERR_UNSUPPORTED},
        {"{" R "," T ",\"init_lora_weights\":\"pissa_niter_4\"}", "init_lora_weights",
         ERR_UNSUPPORTED},
        {"{\"peft_type\":\"IA3\",\"r\":1,\"lora_alpha\":1," T "}", "peft_type", ERR_UNSUPPORTED},
        {"{\"r\":1,\"lora_alpha\":1," T "}", "peft_type", ERR_UNSUPPORTED},
        {"{" R "}", "target_modules", ERR_INVALID},
        {"{" R ",\"target_modules\":7}", "target_modules", ERR_INVALID},
        {"{" R ",\"target_modules\":[7]}", "target_modules[0]", ERR_INVALID},
        {"{" R ",\"target_modules\":\"(\"}", "pattern", ERR_INVALID},
        {"{" R "," T ",\"layers_pattern\":\"layers\"}", "layers_pattern", ERR_INVALID},
        {"{" R ",\"target_modules\":\".*\",\"layers_to_transform\":[1]}", "layers_to_transform",
         ERR_INVALID},
        {"{" R "," T ",\"layers_to_transform\":[-1]}", "layers_to_transform", ERR_INVALID},
        {"{" R "," T ",\"rank_pattern\":{\"q_proj\":0}}", "rank_pattern", ERR_INVALID},
        {"{" R "," T ",\"rank_pattern\":{\"q_proj\":1.5}}", "rank_pattern", ERR_INVALID},
        {"{" R "," T ",\"rank_pattern\":{\"(\":1}}", "rank_pattern", ERR_INVALID},
        {"{" R "," T ",\"alpha_pattern\":{\"q_proj\":\"x\"}}", "alpha_pattern", ERR_INVALID},
        {"{\"peft_type\":\"LORA\",\"r\":0,\"lora_alpha\":1," T "}", "r is 0", ERR_INVALID},
        {"{\"peft_type\":\"LORA\",\"r\":99999,\"lora_alpha\":1," T "}", "r is 99999", ERR_INVALID},
        {"{\"peft_type\":\"LORA\",\"lora_alpha\":1," T "}", "no r", ERR_INVALID},
        {"{\"peft_type\":\"LORA\",\"r\":1," T "}", "lora_alpha", ERR_INVALID},
        {"{" R "," T "," T "}", "duplicate", ERR_INVALID},
        {"[]", "object", ERR_INVALID},
        {"{", "line 1", ERR_INVALID},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct err err = {0};
        struct lora_config *c;
        int rc = lora_config_parse(&c, cases[i].config, strlen(cases[i].config),
                                   "adapter_config.json", &err);
        if ((rc == 0) != (cases[i].says == NULL) ||
            (rc != 0 && (strstr(err.message, cases[i].says) == NULL || err.code != cases[i].code)))
            fail_msg("%s: %s: %s", cases[i].config, rc == 0 ? "taken" : err_code_name(err.code),
                     rc == 0 ? "" : err.message);
        if (rc == 0)
            lora_config_free(c);
    }
}

static void keys_that_are_not_known_take_a_few_lines_of_the_log(void **state)
{
    (void)state;
    struct err err = {0};
    struct lora_config *c;
    struct buf text = BUF_INIT, log = BUF_INIT;
    char *dir = temp_dir_create(), *path = xasprintf("%s/log", dir);
    buf_append_str(&text, "{" R "," T);
    for (int i = 0; i < 1000; i++)
        buf_appendf(&text, ",\"k%d\":1", i);
    buf_append_str(&text, "}");
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600), was = dup(STDERR_FILENO);
    assert_true(fd >= 0 && was >= 0 && dup2(fd, STDERR_FILENO) >= 0);
    int rc = lora_config_parse(&c, buf_cstr(&text), text.len, "adapter_config.json", &err);
    assert_true(dup2(was, STDERR_FILENO) >= 0);
    close(was);
    close(fd);
    assert_ok(rc, err);
    assert_ok(file_read(path, 1 << 20, &log, &err), err);
    size_t n_lines = 0;
    for (const char *p = buf_cstr(&log); (p = strchr(p, '\n')) != NULL; p++)
        n_lines++;
    assert_int_equal(n_lines, 9);
    assert_non_null(strstr(buf_cstr(&log), "key k7 is not known"));
    assert_non_null(strstr(buf_cstr(&log), "992 more keys are not known"));
    lora_config_free(c);
    buf_release(&text);
    buf_release(&log);
    temp_dir_remove(dir);
    free(path);
}

static void a_pattern_that_would_run_for_ever_is_stopped(void **state)
{
    (void)state;
    struct err err = {0};
    struct lora_config *c;
    bool targeted;
    int rank;
    float scaling;
    const char *text = "{" R ",\"target_modules\":\"((([a-z_.]+)+)+)+[0-9]\"}";
    assert_ok(lora_config_parse(&c, text, strlen(text), "adapter_config.json", &err), err);
    assert_int_equal(lora_config_module(c,
                                        "model.layers.self_attn.q_proj.aaaaaaaaaaaaaaaaaaaaaaaaa",
                                        false, &targeted, &rank, &scaling, &err),
                     -1);
    assert_true(strstr(err.message, "limit") != NULL);
    lora_config_free(c);
}

/* Each match alone is well below its own limit. */
static void patterns_that_would_run_for_ever_together_are_stopped(void **state)
{
    (void)state;
    struct err err = {0};
    struct lora_config *c;
    struct buf text = BUF_INIT;
    bool targeted;
    int rank, rc = 0, n_asked = 0;
    float scaling;
    buf_append_str(&text, "{" R ",\"target_modules\":[\"q_proj\"],\"rank_pattern\":{");
    for (int i = 0; i < 4000; i++)
        buf_appendf(&text, "%s\".*.*.*.*.*z%d\":4", i > 0 ? "," : "", i);
    buf_append_str(&text, "}}");
    assert_ok(lora_config_parse(&c, buf_cstr(&text), text.len, "adapter_config.json", &err), err);
    for (; n_asked < 224 && rc == 0; n_asked++)
        rc = lora_config_module(c, Q0, false, &targeted, &rank, &scaling, &err);
    assert_int_equal(rc, -1);
    assert_true(n_asked < 3 && strstr(err.message, "limit") != NULL);
    lora_config_free(c);
    buf_release(&text);
}

/* Ranks by whole names, as some tools write them for each module of a large model. */
static void a_rank_for_each_module_of_a_large_model_is_within_the_limit(void **state)
{
    (void)state;
    struct err err = {0};
    struct lora_config *c;
    struct buf text = BUF_INIT;
    char module[SITE_NAME_BYTES];
    bool targeted;
    int rank;
    float scaling;
    enum { N = 126 * SITE_KINDS };
    buf_append_str(&text, "{" R ",\"target_modules\":\"all-linear\",\"rank_pattern\":{");
    for (int i = 0; i < N; i++)
        buf_appendf(&text, "%s\"%s\":%d", i > 0 ? "," : "", model_site_name(module, i), i % 7 + 1);
    buf_append_str(&text, "}}");
    assert_ok(lora_config_parse(&c, buf_cstr(&text), text.len, "adapter_config.json", &err), err);
    for (int i = 0; i < N; i++) {
        assert_ok(lora_config_module(c, model_site_name(module, i), false, &targeted, &rank,
                                     &scaling, &err),
                  err);
        assert_int_equal(rank, i % 7 + 1);
    }
    lora_config_free(c);
    buf_release(&text);
}

/* ---- files ------------------------------------------------------------------------------- */

static const struct model_config MODEL = {.vocab = 16,
                                          .hidden = 8,
                                          .n_layers = 2,
                                          .n_heads = 2,
                                          .n_kv_heads = 1,
                                          .head_dim = 4,
                                          .ffn = 12};

/* What to do wrong while writing an adapter of rank 2 on q_proj and down_proj of both layers. */
struct wrong {
    const char *name, *says; /* NULL: fine */
    int site;                /* of the wrong tensor: layer * SITE_KINDS + kind */
    enum {
        FINE,
        LEAVE_OUT,
        WRONG_SHAPE,
        TRANSPOSED,
        WRONG_DTYPE,
        NOT_A_NUMBER,
        INFINITE_BF16,
        NO_PREFIX,
        TWICE,
        EXTRA,
        EXTRA_DORA,
        MIXED_DTYPES
    } what;
};

struct writing {
    struct buf header, data;
};

static void add_tensor(struct writing *w, const char *name, const char *dtype, int64_t d0,
                       int64_t d1, float value)
{
    size_t begin = w->data.len;
    for (int64_t i = 0; i < d0 * d1; i++) {
        float number = value + (float)(i % 64) / 64; /* exact in BF16, too */
        uint32_t bits;
        memcpy(&bits, &number, 4);
        uint16_t half = (uint16_t)(bits >> 16);
        if (strcmp(dtype, "F32") == 0)
            buf_append(&w->data, &bits, 4);
        else if (strcmp(dtype, "BF16") == 0)
            buf_append(&w->data, &half, 2);
        else
            buf_append(&w->data, "\1\2\3\4\5\6\7\10", 8);
    }
    buf_appendf(&w->header,
                "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%d,%d],\"data_offsets\":[%zu,%zu]}",
                w->header.len == 0 ? '{' : ',', name, dtype, (int)d0, (int)d1, begin, w->data.len);
}

static void write_file(const char *dir, const char *name, const void *bytes, size_t n)
{
    struct err err = {0};
    char *path = xasprintf("%s/%s", dir, name);
    assert_ok(file_write_atomic(path, bytes, n, 0600, &err), err);
    free(path);
}

static void write_adapter(const char *dir, const struct wrong *wrong)
{
    static const int sites[] = {SITE_Q, SITE_DOWN, SITE_KINDS + SITE_Q, SITE_KINDS + SITE_DOWN};
    struct writing w = {BUF_INIT, BUF_INIT};
    char module[SITE_NAME_BYTES];
    for (size_t i = 0; i < 4; i++) {
        enum site_kind kind = (enum site_kind)(sites[i] % SITE_KINDS);
        int what = sites[i] == wrong->site ? (int)wrong->what : FINE;
        const char *prefix = what == NO_PREFIX ? "" : "base_model.model.";
        const char *dtype = what == WRONG_DTYPE ? "I64" : what == INFINITE_BF16 ? "BF16" : "F32";
        float value = what == NOT_A_NUMBER ? NAN : what == INFINITE_BF16 ? INFINITY : 0.5f;
        int64_t d_in = model_site_d_in(&MODEL, kind), d_out = model_site_d_out(&MODEL, kind);
        model_site_name(module, sites[i]);
        char *a = xasprintf("%s%s.lora_A.weight", prefix, module);
        char *b = xasprintf("%s%s.lora_B.weight", prefix, module);
        if (what == TRANSPOSED)
            add_tensor(&w, a, dtype, d_in, 2, value);
        else
            add_tensor(&w, a, what == MIXED_DTYPES ? "BF16" : dtype, what == WRONG_SHAPE ? 3 : 2,
                       d_in, value);
        if (what != LEAVE_OUT)
            add_tensor(&w, b, dtype, d_out, 2, value);
        if (what == TWICE)
            add_tensor(&w, b + strlen(prefix), dtype, d_out, 2, value);
        if (what == EXTRA)
            add_tensor(&w, "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", dtype,
                       2, 8, value);
        if (what == EXTRA_DORA)
            add_tensor(&w, "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
                       dtype, 8, 1, value);
        free(a);
        free(b);
    }
    buf_append_byte(&w.header, '}');
    struct buf file = BUF_INIT;
    uint64_t n_header = w.header.len;
    buf_append(&file, &n_header, 8);
    buf_append(&file, w.header.data, w.header.len);
    buf_append(&file, w.data.data, w.data.len);
    write_file(dir, "adapter_model.safetensors", file.data, file.len);
    static const char config[] = "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":3,"
                                 "\"target_modules\":[\"q_proj\",\"down_proj\"]}";
    write_file(dir, "adapter_config.json", config, strlen(config));
    buf_release(&file);
    buf_release(&w.header);
    buf_release(&w.data);
}

static void every_tensor_is_checked_against_the_base_model(void **state)
{
    static const struct wrong cases[] = {
        {"good", NULL, 0, FINE},
        {"no prefix", NULL, SITE_Q, NO_PREFIX},
        {"A and B of different dtypes", NULL, SITE_Q, MIXED_DTYPES},
        {"a tensor is missing", "layers.0.mlp.down_proj.lora_B.weight is missing", SITE_DOWN,
         LEAVE_OUT},
        {"another rank", "[3, 8]", SITE_Q, WRONG_SHAPE},
        {"transposed", "[12, 2]", SITE_DOWN, TRANSPOSED},
        {"integers", "I64", SITE_KINDS + SITE_Q, WRONG_DTYPE},
        {"not a number", "not finite", SITE_KINDS + SITE_DOWN, NOT_A_NUMBER},
        {"infinite", "not finite", SITE_Q, INFINITE_BF16},
        {"with and without prefix", "belongs to no module", SITE_Q, TWICE},
        {"a layer too many", "layers.9", SITE_Q, EXTRA},
        {"a magnitude vector", "lora_magnitude_vector", SITE_Q, EXTRA_DORA},
    };
    (void)state;
    char *dir = temp_dir_create();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct err err = {0};
        struct lora_adapter *a = NULL;
        write_adapter(dir, &cases[i]);
        int rc = lora_open(&a, &MODEL, dir, LORA_HELD_FILE, 1 << 20, NULL, &err);
        if ((rc == 0) != (cases[i].says == NULL) ||
            (rc != 0 &&
             (strstr(err.message, cases[i].says) == NULL || strstr(err.message, dir) != NULL)))
            fail_msg("%s: %s", cases[i].name, rc == 0 ? "was taken" : err.message);
        if (rc == 0) {
            assert_int_equal(a->n_sites, 4);
            assert_int_equal(a->rank_max, 2);
            assert_int_equal(a->rank_mean, 1); /* four sites of many: rounded up */
            assert_string_equal(a->targets, "q_proj down_proj");
            assert_true(fabs((double)a->sites[0].scaling - 1.5) < 1e-6);
            assert_int_equal(a->sites[0].dtype, DTYPE_F32);
            for (int k = 0; k < 16; k++) {
                float f;
                memcpy(&f, a->data + a->sites[0].a_offset + 4 * k, 4);
                assert_true(fabs((double)f - 0.5 - k / 64.0) < 1e-9);
            }
        }
        lora_close(a);
    }
    temp_dir_remove(dir);
}

static void a_truncated_file_is_refused_at_every_length(void **state)
{
    (void)state;
    struct buf file = BUF_INIT;
    struct err err = {0};
    char *dir = temp_dir_create();
    write_adapter(dir, &(struct wrong){.what = FINE});
    char *path = xasprintf("%s/adapter_model.safetensors", dir);
    assert_ok(file_read(path, 1 << 20, &file, &err), err);
    for (size_t n = 0; n < file.len; n += n < 16 ? 1 : 13) {
        struct lora_adapter *a;
        write_file(dir, "adapter_model.safetensors", file.data, n);
        assert_int_equal(lora_open(&a, &MODEL, dir, LORA_HELD_FILE, 1 << 20, NULL, &err), -1);
    }
    buf_release(&file);
    free(path);
    temp_dir_remove(dir);
}

static void what_host_memory_never_holds_is_refused_naming_the_limit(void **state)
{
    (void)state;
    struct lora_adapter *a;
    struct err err = {0};
    char *dir = temp_dir_create();
    write_adapter(dir, &(struct wrong){.what = FINE});
    for (int held = LORA_HELD_FILE; held <= LORA_HELD_BF16; held++) {
        enum lora_held as = (enum lora_held)held;
        size_t n_bytes;
        assert_ok(lora_measure(&n_bytes, &MODEL, dir, as, SIZE_MAX, &err), err);
        char *says = xasprintf("it needs %zu bytes, %zu are allowed (engine.adapter_host_bytes)",
                               n_bytes, n_bytes - 1);
        assert_int_equal(lora_open(&a, &MODEL, dir, as, n_bytes - 1, NULL, &err), -1);
        assert_int_equal(err.code, ERR_TOO_LARGE);
        assert_string_equal(err.message, says);
        assert_ok(lora_open(&a, &MODEL, dir, as, n_bytes, NULL, &err), err);
        lora_close(a);
        free(says);
    }
    /* Nor is a header taken to memory of which nothing could fit. */
    assert_int_equal(lora_open(&a, &MODEL, dir, LORA_HELD_FILE, 100, NULL, &err), -1);
    assert_int_equal(err.code, ERR_TOO_LARGE);
    assert_non_null(strstr(err.message, "200 are allowed (twice engine.adapter_host_bytes)"));
    temp_dir_remove(dir);
}

/* ---- what matrices are held as ------------------------------------------------------------ */

enum { RANK = 2, N_A = 8 * RANK }; /* q_proj's A */

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* An adapter on q_proj of layer 0: A [RANK, 8] and B [8, RANK] hold numbers [N_A] each, rounded to
 * the dtype if need be. */
static void write_numbers(const char *dir, const char *dtype_a, const char *dtype_b,
                          const float numbers[N_A])
{
    static const char config[] = "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,"
                                 "\"target_modules\":[\"model.layers.0.self_attn.q_proj\"]}";
    struct buf file = BUF_INIT, header = BUF_INIT, data = BUF_INIT;
    for (int m = 0; m < 2; m++) {
        const char *dtype = m == 0 ? dtype_a : dtype_b;
        size_t begin = data.len;
        for (int i = 0; i < N_A; i++) {
            uint32_t bits = bits_of(numbers[i]);
            uint16_t half = strcmp(dtype, "F16") == 0 ? f32_to_f16(numbers[i])
                                                      : f32_to_bf16(numbers[i]);
            if (strcmp(dtype, "F32") == 0)
                buf_append(&data, &bits, 4);
            else
                buf_append(&data, &half, 2);
        }
        buf_appendf(&header,
                    "%c\"base_model.model.model.layers.0.self_attn.q_proj.lora_%c.weight\":"
                    "{\"dtype\":\"%s\",\"shape\":[%d,%d],\"data_offsets\":[%zu,%zu]}",
                    m == 0 ? '{' : ',', 'A' + m, dtype, m == 0 ? RANK : 8, m == 0 ? 8 : RANK, begin,
                    data.len);
    }
    buf_append_byte(&header, '}');
    uint64_t n_header = header.len;
    buf_append(&file, &n_header, 8);
    buf_append(&file, header.data, header.len);
    buf_append(&file, data.data, data.len);
    write_file(dir, "adapter_model.safetensors", file.data, file.len);
    write_file(dir, "adapter_config.json", config, strlen(config));
    buf_release(&file);
    buf_release(&header);
    buf_release(&data);
}

static void matrices_are_held_as_asked_for_and_their_bytes_are_of_that(void **state)
{
    static const float numbers[N_A] = {0,
                                       -0.0f,
                                       1,
                                       1.00390625f, /* ties: 1 + 2^-8 */
                                       -1.01171875f,
                                       0.1f,
                                       -0.3f,
                                       1e-3f,
                                       6.1e-5f,
                                       6e-5f,
                                       6e-8f,
                                       -3e-7f, /* subnormal as f16 */
                                       60000,
                                       -7,
                                       0.75f,
                                       3};
    static const struct {
        const char *a, *b;
        enum lora_held held;
        enum dtype dtype;
    } cases[] = {
        {"F32", "F32", LORA_HELD_FILE, DTYPE_F32},    {"F16", "F16", LORA_HELD_FILE, DTYPE_F16},
        {"BF16", "BF16", LORA_HELD_FILE, DTYPE_BF16}, {"F32", "BF16", LORA_HELD_FILE, DTYPE_F32},
        {"BF16", "F16", LORA_HELD_FILE, DTYPE_F32},   {"F32", "F32", LORA_HELD_BF16, DTYPE_BF16},
        {"F16", "F16", LORA_HELD_BF16, DTYPE_BF16},   {"BF16", "BF16", LORA_HELD_BF16, DTYPE_BF16},
        {"F32", "BF16", LORA_HELD_BF16, DTYPE_BF16},  {"F16", "F32", LORA_HELD_BF16, DTYPE_BF16},
    };
    (void)state;
    char *dir = temp_dir_create();
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct err err = {0};
        struct lora_adapter *a;
        struct content_digest content;
        size_t n_bytes;
        write_numbers(dir, cases[c].a, cases[c].b, numbers);
        assert_ok(lora_measure(&n_bytes, &MODEL, dir, cases[c].held, SIZE_MAX, &err), err);
        assert_ok(lora_open(&a, &MODEL, dir, cases[c].held, SIZE_MAX, NULL, &err), err);
        assert_ok(adapter_content_digest(dir, &content, &err), err);
        const struct lora_site *s = &a->sites[0];
        assert_true(DIGEST_EQ(a->content, content));
        assert_int_equal(a->n_sites, 1);
        assert_int_equal(s->dtype, cases[c].dtype);
        assert_int_equal(a->n_bytes, n_bytes);
        assert_int_equal(n_bytes, 2 * LORA_ALIGN_BYTES);
        for (int m = 0; m < 2; m++) {
            const char *dtype = m == 0 ? cases[c].a : cases[c].b;
            const uint8_t *at = a->data + (m == 0 ? s->a_offset : s->b_offset);
            for (int i = 0; i < N_A; i++) {
                float in_file = strcmp(dtype, "F32") == 0   ? numbers[i]
                                : strcmp(dtype, "F16") == 0 ? f16_to_f32(f32_to_f16(numbers[i]))
                                                            : bf16_to_f32(f32_to_bf16(numbers[i]));
                float expected = s->dtype == DTYPE_BF16 ? bf16_to_f32(f32_to_bf16(in_file))
                                                        : in_file;
                float is = element_f32(at, s->dtype, (size_t)i);
                if (bits_of(is) != bits_of(expected))
                    fail_msg("case %zu, number %d: %g, not %g", c, i, (double)is, (double)expected);
            }
            for (size_t i = N_A * dtype_bytes(s->dtype); i < LORA_ALIGN_BYTES; i++)
                assert_int_equal(at[i], 0);
        }
        lora_close(a);
    }
    temp_dir_remove(dir);
}

static void half_of_an_f32_adapter_is_enough_as_bf16(void **state)
{
    (void)state;
    struct err err = {0};
    static const char *const dir = "tests/fixtures/adapters/stories260K-test/r16-rslora";
    struct model *m;
    size_t file, bf16;
    assert_ok(model_open(&m, "tests/fixtures/models/stories260K", &err), err);
    assert_ok(lora_measure(&file, &m->config, dir, LORA_HELD_FILE, SIZE_MAX, &err), err);
    assert_ok(lora_measure(&bf16, &m->config, dir, LORA_HELD_BF16, SIZE_MAX, &err), err);
    assert_true(bf16 >= file / 2 && bf16 < file / 2 + 70 * LORA_ALIGN_BYTES);
    model_close(m);
}

static void what_is_not_finite_is_refused_whatever_it_is_held_as(void **state)
{
    static const struct {
        uint32_t bits;
        bool taken;
    } cases[] = {
        {0x7f800000, false}, {0xff800000, false}, {0x7fc00000, false}, {0x7f800001, false},
        {0x7f7fffff, false}, {0x7f7f8000, false}, {0x7f7f7fff, true},  {0x00000001, true},
    };
    (void)state;
    char *dir = temp_dir_create();
    for (size_t c = 0; c < 2 * sizeof cases / sizeof cases[0]; c++) {
        struct err err = {0};
        struct lora_adapter *a = NULL;
        float numbers[N_A] = {0};
        memcpy(&numbers[N_A - 1], &cases[c / 2].bits, 4);
        write_numbers(dir, "F32", "F32", numbers);
        int rc = lora_open(&a, &MODEL, dir, c % 2 == 0 ? LORA_HELD_FILE : LORA_HELD_BF16, SIZE_MAX,
                           NULL, &err);
        if ((rc == 0) != cases[c / 2].taken ||
            (rc != 0 && (strstr(err.message, "q_proj.lora_A.weight") == NULL ||
                         strstr(err.message, "not finite as bf16") == NULL)))
            fail_msg("case %zu: %s", c, rc == 0 ? "was taken" : err.message);
        lora_close(a);
    }
    temp_dir_remove(dir);
}

static void the_policy_looks_at_activations_and_at_the_base_model_s_weights(void **state)
{
    enum { OF_F16 = 1, OF_F32, MIXED };
    static const struct {
        const char *option;
        enum dtype activation;
        int model; /* 0: bf16 */
        enum lora_held held;
    } cases[] = {
        {NULL, DTYPE_BF16, 0, LORA_HELD_BF16},        {"auto", DTYPE_BF16, 0, LORA_HELD_BF16},
        {"auto", DTYPE_F32, 0, LORA_HELD_FILE},       {"auto", DTYPE_BF16, OF_F16, LORA_HELD_FILE},
        {"auto", DTYPE_BF16, OF_F32, LORA_HELD_FILE}, {"auto", DTYPE_BF16, MIXED, LORA_HELD_FILE},
        {"file", DTYPE_BF16, 0, LORA_HELD_FILE},      {"bf16", DTYPE_F32, 0, LORA_HELD_BF16},
        {"bf16", DTYPE_BF16, OF_F16, LORA_HELD_BF16},
    };
    static const char *const wrong[] = {"", "f16", "BF16", "int8"};
    (void)state;
    struct err err = {0};
    struct model *m;
    enum lora_held held;
    assert_ok(model_random(&m, &MODEL, "tiny", 1, &err), err);
    struct safetensors *parsed = &m->tensors.files[0].parsed;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (size_t i = 0; i < parsed->n_tensors; i++) {
            struct tensor *t = &parsed->tensors[i];
            bool other = cases[c].model == MIXED && strstr(t->name, "1.mlp.down_proj") == NULL;
            t->dtype = cases[c].model == 0 || other ? TENSOR_BF16
                       : cases[c].model == OF_F32   ? TENSOR_F32
                                                    : TENSOR_F16;
        }
        assert_ok(lora_held_for(&held, cases[c].option, m, cases[c].activation, &err), err);
        if (held != cases[c].held)
            fail_msg("case %zu: %d", c, (int)held);
    }
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(lora_held_for(&held, wrong[i], m, DTYPE_BF16, &err), -1);
        assert_int_equal(err.code, ERR_INVALID);
        assert_non_null(strstr(err.message, "is none of auto, file and bf16"));
    }
    model_close(m);
}

/* ---- files that aren't there or aren't files ---------------------------------------------- */

static void pickles_and_missing_files_are_refused_by_name(void **state)
{
    (void)state;
    struct lora_adapter *a;
    struct err err = {0};
    char *dir = temp_dir_create();
    assert_int_equal(lora_open(&a, &MODEL, dir, LORA_HELD_FILE, 1 << 20, NULL, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_string_equal(err.message, "adapter_config.json: No such file or directory");
    write_file(dir, "adapter_config.json", "{}", 2);
    write_file(dir, "adapter_model.bin", "x", 1);
    assert_int_equal(lora_open(&a, &MODEL, dir, LORA_HELD_FILE, 1 << 20, NULL, &err), -1);
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "pickle"));
    assert_null(strstr(err.message, dir));
    temp_dir_remove(dir);
}

/* A FIFO that nobody writes to would keep the thread that opens it, and whoever comes after. */
static void what_is_no_file_is_refused_and_not_waited_for(void **state)
{
    (void)state;
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors"};
    for (int i = 0; i < 4; i++) {
        const char *name = names[i / 2];
        bool fifo = i % 2 == 0;
        struct lora_adapter *a;
        struct err err = {0};
        char *dir = temp_dir_create(), *path = xasprintf("%s/%s", dir, name);
        write_adapter(dir, &(struct wrong){.what = FINE});
        assert_int_equal(unlink(path), 0);
        assert_int_equal(fifo ? mkfifo(path, 0600) : mkdir(path, 0700), 0);
        alarm(20); /* ends the program, should it wait */
        assert_int_equal(lora_open(&a, &MODEL, dir, LORA_HELD_FILE, 1 << 20, NULL, &err), -1);
        alarm(0);
        if (err.code != ERR_INVALID || strncmp(err.message, name, strlen(name)) != 0)
            fail_msg("%s as a %s: %s", name, fifo ? "FIFO" : "directory", err.message);
        free(path);
        temp_dir_remove(dir);
    }
}

/* The digest as the header defines it, recomputed with the tools of a shell:
 *   cd DIR; for f in adapter_config.json adapter_model.safetensors; do
 *     echo "$(sha256sum <$f | cut -c1-64)  $(stat -c %s $f)  $f"; done | sha256sum */
static void content_digests_are_what_the_header_says(void **state)
{
    static const struct {
        const char *dir, *digest;
    } cases[] = {
        {"tests/fixtures/adapters/demo-7m/med",
         "efa99de02e8f9d12ce283c586319c5e2d19b75bd0acddd950b2bb77532b0985d"},
        {"tests/fixtures/adapters/demo-7m/verse",
         "0b6a27846ea8f7e737393b39713b6fd3e504a00e2378dfd872c367bd9a36d612"},
        {"tests/fixtures/adapters/stories260K-test/r3-odd-rank",
         "19507dfe8e540cf63d5ba547c78b6c52e28771b1d94752347c52dfe7178d03c1"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct err err = {0};
        struct content_digest d;
        char hex[65];
        assert_ok(adapter_content_digest(cases[i].dir, &d, &err), err);
        assert_string_equal(hex_encode(hex, d.bytes, 32), cases[i].digest);
    }
}

static void one_changed_byte_is_another_adapter(void **state)
{
    (void)state;
    struct err err = {0};
    struct content_digest before, after;
    char *dir = temp_dir_create();
    write_adapter(dir, &(struct wrong){.what = FINE});
    write_file(dir, "README.md", "x", 1); /* doesn't count */
    assert_ok(adapter_content_digest(dir, &before, &err), err);
    write_file(dir, "README.md", "y", 1);
    assert_ok(adapter_content_digest(dir, &after, &err), err);
    assert_true(DIGEST_EQ(before, after));
    static const char config[] = "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,"
                                 "\"target_modules\":[\"q_proj\",\"down_proj\"]}";
    write_file(dir, "adapter_config.json", config, strlen(config));
    assert_ok(adapter_content_digest(dir, &after, &err), err);
    assert_false(DIGEST_EQ(before, after));
    temp_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(target_rank_and_scaling_follow_pefts_rules),
        cmocka_unit_test(configurations_that_change_the_maths_are_refused_naming_the_key),
        cmocka_unit_test(keys_that_are_not_known_take_a_few_lines_of_the_log),
        cmocka_unit_test(a_pattern_that_would_run_for_ever_is_stopped),
        cmocka_unit_test(patterns_that_would_run_for_ever_together_are_stopped),
        cmocka_unit_test(a_rank_for_each_module_of_a_large_model_is_within_the_limit),
        cmocka_unit_test(every_tensor_is_checked_against_the_base_model),
        cmocka_unit_test(a_truncated_file_is_refused_at_every_length),
        cmocka_unit_test(what_host_memory_never_holds_is_refused_naming_the_limit),
        cmocka_unit_test(matrices_are_held_as_asked_for_and_their_bytes_are_of_that),
        cmocka_unit_test(half_of_an_f32_adapter_is_enough_as_bf16),
        cmocka_unit_test(what_is_not_finite_is_refused_whatever_it_is_held_as),
        cmocka_unit_test(the_policy_looks_at_activations_and_at_the_base_model_s_weights),
        cmocka_unit_test(pickles_and_missing_files_are_refused_by_name),
        cmocka_unit_test(what_is_no_file_is_refused_and_not_waited_for),
        cmocka_unit_test(content_digests_are_what_the_header_says),
        cmocka_unit_test(one_changed_byte_is_another_adapter),
    };
    return cmocka_run_group_tests_name("lora", tests, NULL, NULL);
}
