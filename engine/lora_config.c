/* lora_config: see lora_config.h.
 *
 * The rules are PEFT's (huggingface/peft, LoraConfig and tuners_utils.check_target_module_exists,
 * as documented), in this order:
 *
 *   exclude_modules  a string: re.fullmatch over the module's name; a list: the name itself or its
 *                    ending after a dot. Excluded is excluded.
 *   target_modules   a string: "all-linear", or re.fullmatch; a list: the name itself, or its
 * ending after a dot, and then, if layers_to_transform is given, the layer's number taken from
 * ".*\.[^.]*\.(\d+)\." or, with layers_pattern, ".*\.<pattern>\.(\d+)\.". rank             the
 * value of the first key of rank_pattern for which re.match of
 *                    "(.*\.)?(KEY)$" holds, else r. alpha likewise.
 *   scaling          alpha / rank, or alpha / sqrt(rank) with use_rslora.
 *
 * Keys fall into three lists: those read here; those that must be neutral because they change the
 * maths; those that only say how training went. A key in none of them is warned about. */
#include "engine/lora_config.h"

#include "engine/config_json.h"
#include "engine/tokenizer/module_pattern.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/log.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct pattern_value { /* a member of rank_pattern or alpha_pattern */
    struct module_pattern *pattern;
    double value;
};

struct selector {                   /* target_modules or exclude_modules */
    struct module_pattern *pattern; /* a string's */
    char **names;                   /* [n_names] a list's */
    size_t n_names;
};

struct lora_config {
    int rank;
    double alpha;
    bool rslora, all_linear;
    struct selector target, exclude;
    struct pattern_value *ranks, *alphas; /* [n_ranks], [n_alphas], in the file's order */
    size_t n_ranks, n_alphas;
    int *layers; /* [n_layers] layers_to_transform */
    size_t n_layers;
    bool has_layers;
    struct module_pattern **layer_patterns; /* [n_layer_patterns] their group 1 is the number */
    size_t n_layer_patterns;
    int64_t steps_left; /* that all patterns together may yet take */
};

/* Refused when set. */
static const char *const CHANGES_MATHS[] = {
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
};

/* Says nothing about inference, or was read. */
static const char *const KNOWN[] = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
};

enum { WARNINGS_MAX = 8 }; /* of one file, which may hold 100,000 keys */

#define N_OF(array) (sizeof(array) / sizeof((array)[0]))

static bool in_list(const char *key, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcmp(key, list[i]) == 0)
            return true;
    return false;
}

static int refuse(const char *where, const char *key, const char *why, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, "%s: %s %s", where, key, why);
}

static int check_keys(const json_t *config, const char *where, struct err *err)
{
    for (size_t i = 0; i < N_OF(CHANGES_MATHS); i++)
        if (config_json_is_set(json_object_get(config, CHANGES_MATHS[i])))
            return refuse(where, CHANGES_MATHS[i], "is set and not supported: it changes the maths",
                          err);
    const char *key;
    json_t *value;
    size_t n_unknown = 0;
    json_object_foreach((json_t *)(uintptr_t)config, key, value)
    {
        if (!in_list(key, KNOWN, N_OF(KNOWN)) &&
            !in_list(key, CHANGES_MATHS, N_OF(CHANGES_MATHS)) && config_json_is_set(value) &&
            n_unknown++ < WARNINGS_MAX)
            log_warn("lora", "%s: key %s is not known and ignored", where, key);
    }
    if (n_unknown > WARNINGS_MAX)
        log_warn("lora", "%s: %zu more keys are not known and ignored", where,
                 n_unknown - WARNINGS_MAX);

    const char *text = NULL;
    if (config_json_string(config, "peft_type", where, &text, err) != 0)
        return -1;
    if (text == NULL || strcmp(text, "LORA") != 0)
        return refuse(where, "peft_type", "is not LORA", err);
    text = "none";
    if (config_json_string(config, "bias", where, &text, err) != 0)
        return -1;
    if (strcmp(text, "none") != 0)
        return refuse(where, "bias", "is not none: adapters that replace biases are not supported",
                      err);
    bool fan_in_fan_out = false;
    if (config_json_bool(config, "fan_in_fan_out", where, &fan_in_fan_out, err) != 0)
        return -1;
    if (fan_in_fan_out)
        return refuse(where, "fan_in_fan_out", "is true: no module of these models is transposed",
                      err);
    /* pissa, olora, loftq, corda and lora_ga change the base weights when training begins; such an
     * adapter is right only on that changed base. PEFT converts them when saving if asked to, and
     * then writes true. */
    const json_t *init = json_object_get(config, "init_lora_weights");
    if (json_is_string(init)) {
        const char *way = json_string_value(init);
        if (strcmp(way, "gaussian") != 0 && strcmp(way, "eva") != 0 &&
            strcmp(way, "orthogonal") != 0)
            return err_set(err, ERR_UNSUPPORTED,
                           "%s: init_lora_weights %s means a changed base model; save the adapter "
                           "converted to a plain LoRA",
                           where, way);
    } else if (init != NULL && !json_is_boolean(init) && !json_is_null(init)) {
        return err_set(err, ERR_INVALID, "%s: init_lora_weights is neither string nor boolean",
                       where);
    }
    return 0;
}

static int parse_names(struct selector *out, const json_t *list, const char *where, const char *key,
                       struct err *err)
{
    size_t n = json_array_size(list);
    if (n > LORA_CONFIG_NAMES_MAX)
        return err_set(err, ERR_TOO_LARGE, "%s: %s lists more than %d names", where, key,
                       LORA_CONFIG_NAMES_MAX);
    out->names = xcalloc(n, sizeof *out->names);
    for (size_t i = 0; i < n; i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (name == NULL || name[0] == '\0')
            return err_set(err, ERR_INVALID, "%s: %s[%zu] is not a name", where, key, i);
        out->names[out->n_names++] = xstrdup(name);
    }
    return 0;
}

static int parse_selector(struct selector *out, const json_t *config, const char *key,
                          const char *where, int64_t *steps_left, struct err *err)
{
    const json_t *v = json_object_get(config, key);
    if (!config_json_is_set(v))
        return 0;
    if (json_is_array(v))
        return parse_names(out, v, where, key, err);
    if (!json_is_string(v))
        return err_set(err, ERR_INVALID, "%s: %s is neither a list nor a string", where, key);
    if (module_pattern_compile(&out->pattern, "(?:", json_string_value(v), ")", steps_left, err) !=
        0)
        return err_wrap(err, "%s: %s", where, key);
    return 0;
}

static int parse_pattern_values(struct pattern_value **out, size_t *n_out, const json_t *config,
                                const char *key, const char *where, double min, double max,
                                int64_t *steps_left, struct err *err)
{
    const json_t *object = json_object_get(config, key);
    if (!config_json_is_set(object))
        return 0;
    if (!json_is_object(object))
        return err_set(err, ERR_INVALID, "%s: %s is not an object", where, key);
    if (json_object_size(object) > LORA_CONFIG_NAMES_MAX)
        return err_set(err, ERR_TOO_LARGE, "%s: %s has more than %d keys", where, key,
                       LORA_CONFIG_NAMES_MAX);
    *out = xcalloc(json_object_size(object), sizeof **out);
    const char *pattern;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, pattern, value) /* in the file's order */
    {
        struct pattern_value *p = &(*out)[*n_out];
        p->value = min - 1;
        if (json_is_number(value))
            p->value = json_number_value(value);
        if (!(p->value >= min && p->value <= max) || (min == 1 && !json_is_integer(value)))
            return err_set(err, ERR_INVALID, "%s: %s of %s is not a number from %g to %g", where,
                           key, pattern, min, max);
        if (module_pattern_compile(&p->pattern, "(.*\\.)?(", pattern, ")$", steps_left, err) != 0)
            return err_wrap(err, "%s: %s", where, key);
        (*n_out)++;
    }
    return 0;
}

static int parse_layers(struct lora_config *c, const json_t *config, const char *where,
                        struct err *err)
{
    const json_t *layers = json_object_get(config, "layers_to_transform");
    const json_t *pattern = json_object_get(config, "layers_pattern");
    if (layers == NULL || json_is_null(layers)) {
        if (config_json_is_set(pattern))
            return err_set(err, ERR_INVALID, "%s: layers_pattern without layers_to_transform",
                           where);
        return 0;
    }
    if (c->target.pattern != NULL || c->all_linear)
        return err_set(err, ERR_INVALID,
                       "%s: layers_to_transform needs target_modules to be a list", where);
    size_t n = json_is_array(layers) ? json_array_size(layers) : 1;
    c->has_layers = n > 0; /* an empty list is as good as none */
    if (n > LORA_CONFIG_NAMES_MAX)
        return err_set(err, ERR_TOO_LARGE, "%s: layers_to_transform is too long", where);
    c->layers = xcalloc(n, sizeof *c->layers);
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_is_array(layers) ? json_array_get(layers, i) : layers;
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > 1 << 20)
            return err_set(err, ERR_INVALID, "%s: layers_to_transform[%zu] is not a layer", where,
                           i);
        c->layers[c->n_layers++] = (int)json_integer_value(v);
    }
    size_t n_patterns = json_is_array(pattern) ? json_array_size(pattern) : 1;
    if (!config_json_is_set(pattern)) {
        c->layer_patterns = xcalloc(1, sizeof(struct module_pattern *));
        c->n_layer_patterns = 1;
        return module_pattern_compile(&c->layer_patterns[0], ".*\\.[^.]*\\.(\\d+)\\.", "", "",
                                      &c->steps_left, err);
    }
    if (n_patterns > LORA_CONFIG_NAMES_MAX)
        return err_set(err, ERR_TOO_LARGE, "%s: layers_pattern is too long", where);
    c->layer_patterns = xcalloc(n_patterns, sizeof(struct module_pattern *));
    for (size_t i = 0; i < n_patterns; i++) {
        const json_t *v = json_is_array(pattern) ? json_array_get(pattern, i) : pattern;
        if (!json_is_string(v))
            return err_set(err, ERR_INVALID, "%s: layers_pattern is not text", where);
        if (strchr(json_string_value(v), '(') != NULL)
            return err_set(err, ERR_UNSUPPORTED, "%s: layers_pattern with a group", where);
        if (module_pattern_compile(&c->layer_patterns[i], ".*\\.", json_string_value(v),
                                   "\\.(\\d+)\\.", &c->steps_left, err) != 0)
            return err_wrap(err, "%s: layers_pattern", where);
        c->n_layer_patterns++;
    }
    return 0;
}

static int parse(struct lora_config *c, const json_t *config, const char *where, struct err *err)
{
    if (check_keys(config, where, err) != 0)
        return -1;
    int64_t rank = 0;
    c->alpha = NAN;
    if (config_json_int(config, "r", where, 1, LORA_RANK_MAX, &rank, err) != 0 ||
        config_json_real(config, "lora_alpha", where, -1e6, 1e6, &c->alpha, err) != 0 ||
        config_json_bool(config, "use_rslora", where, &c->rslora, err) != 0)
        return -1;
    if (rank == 0)
        return err_set(err, ERR_INVALID, "%s: has no r", where);
    if (isnan(c->alpha))
        return err_set(err, ERR_INVALID, "%s: has no lora_alpha", where);
    c->rank = (int)rank;

    const json_t *target = json_object_get(config, "target_modules");
    if (!config_json_is_set(target))
        return err_set(err, ERR_INVALID, "%s: has no target_modules", where);
    if (json_is_string(target) && strcasecmp(json_string_value(target), "all-linear") == 0)
        c->all_linear = true;
    else if (parse_selector(&c->target, config, "target_modules", where, &c->steps_left, err) != 0)
        return -1;
    if (parse_selector(&c->exclude, config, "exclude_modules", where, &c->steps_left, err) != 0 ||
        parse_layers(c, config, where, err) != 0 ||
        parse_pattern_values(&c->ranks, &c->n_ranks, config, "rank_pattern", where, 1,
                             LORA_RANK_MAX, &c->steps_left, err) != 0 ||
        parse_pattern_values(&c->alphas, &c->n_alphas, config, "alpha_pattern", where, -1e6, 1e6,
                             &c->steps_left, err) != 0)
        return -1;
    return 0;
}

int lora_config_parse(struct lora_config **out, const char *text, size_t n, const char *where,
                      struct err *err)
{
    json_t *config;
    if (config_json_parse(&config, text, n, where, err) != 0)
        return -1;
    struct lora_config *c = xcalloc(1, sizeof *c);
    c->steps_left = MODULE_PATTERN_STEPS_MAX;
    int rc = parse(c, config, where, err);
    json_decref(config);
    if (rc != 0) {
        lora_config_free(c);
        return -1;
    }
    *out = c;
    return 0;
}

static void selector_release(struct selector *s)
{
    module_pattern_free(s->pattern);
    for (size_t i = 0; i < s->n_names; i++)
        free(s->names[i]);
    free(s->names);
}

void lora_config_free(struct lora_config *c)
{
    if (c == NULL)
        return;
    selector_release(&c->target);
    selector_release(&c->exclude);
    for (size_t i = 0; i < c->n_ranks; i++)
        module_pattern_free(c->ranks[i].pattern);
    for (size_t i = 0; i < c->n_alphas; i++)
        module_pattern_free(c->alphas[i].pattern);
    for (size_t i = 0; i < c->n_layer_patterns; i++)
        module_pattern_free(c->layer_patterns[i]);
    free(c->ranks);
    free(c->alphas);
    free(c->layers);
    free(c->layer_patterns);
    free(c);
}

/* ---- questions --------------------------------------------------------------------------- */

enum named { NAMED_NOT, NAMED_EXACTLY, NAMED_BY_ENDING };

static enum named named_in(const struct selector *s, const char *module)
{
    enum named best = NAMED_NOT;
    size_t n = strlen(module);
    for (size_t i = 0; i < s->n_names; i++) {
        size_t n_name = strlen(s->names[i]);
        if (strcmp(s->names[i], module) == 0)
            return NAMED_EXACTLY;
        if (n > n_name && module[n - n_name - 1] == '.' &&
            strcmp(module + n - n_name, s->names[i]) == 0)
            best = NAMED_BY_ENDING;
    }
    return best;
}

/* Is the module in one of layers_to_transform? 1, 0 or -1. */
static int in_layers(const struct lora_config *c, const char *module, struct err *err)
{
    for (size_t i = 0; i < c->n_layer_patterns; i++) {
        int span[2];
        int found = module_pattern_match(c->layer_patterns[i], module, false, span, err);
        if (found < 0)
            return -1;
        if (found == 0 || span[0] < 0)
            continue;
        long layer = strtol(module + span[0], NULL, 10);
        for (size_t j = 0; j < c->n_layers; j++)
            if (c->layers[j] == layer)
                return 1;
        return 0;
    }
    return 0;
}

static int is_targeted(const struct lora_config *c, const char *module, bool is_output,
                       struct err *err)
{
    if (c->exclude.pattern != NULL) {
        int excluded = module_pattern_match(c->exclude.pattern, module, true, NULL, err);
        if (excluded != 0)
            return excluded < 0 ? -1 : 0;
    }
    if (named_in(&c->exclude, module) != NAMED_NOT)
        return 0;
    if (c->all_linear)
        return is_output ? 0 : 1;
    if (c->target.pattern != NULL)
        return module_pattern_match(c->target.pattern, module, true, NULL, err);
    switch (named_in(&c->target, module)) {
    case NAMED_NOT:
        return 0;
    case NAMED_EXACTLY: /* PEFT doesn't ask for the layer then */
        return 1;
    case NAMED_BY_ENDING:
        return c->has_layers ? in_layers(c, module, err) : 1;
    }
    BUG("unreachable");
}

static int first_match(const struct pattern_value *list, size_t n, const char *module,
                       double *inout, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        int found = module_pattern_match(list[i].pattern, module, false, NULL, err);
        if (found < 0)
            return -1;
        if (found > 0) {
            *inout = list[i].value;
            return 0;
        }
    }
    return 0;
}

int lora_config_module(const struct lora_config *c, const char *module, bool is_output,
                       bool *targeted, int *rank, float *scaling, struct err *err)
{
    int t = is_targeted(c, module, is_output, err);
    if (t < 0)
        return -1;
    *targeted = t > 0;
    double r = c->rank, alpha = c->alpha;
    if (first_match(c->ranks, c->n_ranks, module, &r, err) != 0 ||
        first_match(c->alphas, c->n_alphas, module, &alpha, err) != 0)
        return -1;
    *rank = (int)r;
    *scaling = (float)(alpha / (c->rslora ? sqrt(r) : r));
    return 0;
}
