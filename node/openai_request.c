/* openai_request: see openai_request.h.
 *
 * A field is taken by one of a handful of readers (read_bool, read_number, read_int, ...), each of
 * which knows absent, null, wrong type and out of range, and speaks the same sentence for each.
 * What can't be honoured is a table. */
#include "node/openai_request.h"

#include "node/api_error.h"
#include "node/base/err.h"
#include "node/json_util.h"

#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double WEIGHT_MAX = 1e6; /* the engine's own */
static const double TIMEOUT_MIN_S = 0.001, TIMEOUT_MAX_S = 86400;

static const char *type_name(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_TRUE:
    case JSON_FALSE:
        return "a boolean";
    case JSON_NULL:
        return "null";
    }
    BUG("json type");
}

/* NULL when absent or null. */
static json_t *field(const json_t *o, const char *name)
{
    json_t *v = json_object_get(o, name);
    return v == NULL || json_is_null(v) ? NULL : v;
}

static int wrong_type(struct api_error *e, const char *param, const char *wanted, const json_t *v)
{
    return api_error_set(e, ERR_INVALID, param, "'%s' must be %s, not %s", param, wanted,
                         type_name(v));
}

static int read_bool(const json_t *o, const char *name, bool *out, struct api_error *e)
{
    const json_t *v = field(o, name);
    if (v == NULL)
        return 0;
    if (!json_is_boolean(v))
        return wrong_type(e, name, "a boolean", v);
    *out = json_is_true(v);
    return 0;
}

static int read_int(const json_t *o, const char *name, int64_t min, int64_t max, int64_t *out,
                    struct api_error *e)
{
    const json_t *v = field(o, name);
    if (v == NULL)
        return 0;
    if (!json_is_integer(v))
        return wrong_type(e, name, "an integer", v);
    int64_t i = json_integer_value(v);
    if (i < min || i > max)
        return api_error_set(e, ERR_INVALID, name, "'%s' is %lld; it must lie in %lld to %lld",
                             name, (long long)i, (long long)min, (long long)max);
    *out = i;
    return 0;
}

static int read_float(const json_t *o, const char *name, double min, double max, float *out,
                      struct api_error *e)
{
    const json_t *v = field(o, name);
    if (v == NULL)
        return 0;
    if (!json_is_number(v))
        return wrong_type(e, name, "a number", v);
    double d = json_number_value(v);
    if (!(d >= min && d <= max))
        return api_error_set(e, ERR_INVALID, name, "'%s' is %g; it must lie in %g to %g", name, d,
                             min, max);
    *out = (float)d;
    return 0;
}

/* ---- refused -----------------------------------------------------------------------------------
 */

/* Fields that would change the answer, and the values of them that don't (so that clients which
 * always send a field can still be served). */
static bool harmless(const char *name, const json_t *v)
{
    if (strcmp(name, "web_search_options") == 0) /* all its members have defaults */
        return false;
    if (json_is_array(v) || json_is_object(v)) {
        if (json_is_array(v) ? json_array_size(v) == 0 : json_object_size(v) == 0)
            return true;
    }
    const char *s = json_string_value(v);
    if (strcmp(name, "response_format") == 0) {
        const char *type = json_string_value(json_object_get(v, "type"));
        return type != NULL && strcmp(type, "text") == 0;
    }
    if (strcmp(name, "tool_choice") == 0 || strcmp(name, "function_call") == 0)
        return s != NULL && (strcmp(s, "none") == 0 || strcmp(s, "auto") == 0);
    if (strcmp(name, "modalities") == 0)
        return json_array_size(v) == 1 && json_string_value(json_array_get(v, 0)) != NULL &&
               strcmp(json_string_value(json_array_get(v, 0)), "text") == 0;
    if (strcmp(name, "reasoning_effort") == 0)
        return s != NULL && strcmp(s, "none") == 0;
    if (strcmp(name, "suffix") == 0)
        return s != NULL && s[0] == '\0';
    if (strcmp(name, "min_tokens") == 0)
        return json_is_integer(v) && json_integer_value(v) == 0;
    if (strcmp(name, "length_penalty") == 0)
        return json_is_number(v) && json_number_value(v) == 1.0;
    if (strcmp(name, "add_generation_prompt") == 0)
        return json_is_true(v);
    return json_is_false(v);
}

/* where: "", or the name of the field that o is, and a point. */
static int refuse_of(const json_t *o, const char *where, const char *const *names, size_t n,
                     struct api_error *e)
{
    char param[96];
    for (size_t i = 0; i < n; i++) {
        const json_t *v = field(o, names[i]);
        if (v == NULL || harmless(names[i], v))
            continue;
        snprintf(param, sizeof param, "%s%s", where, names[i]);
        return api_error_set(e, ERR_UNSUPPORTED, param,
                             "'%s' is not supported with this value by this node", param);
    }
    return 0;
}

static int refuse_unsupported(const json_t *root, enum openai_kind kind, struct api_error *e)
{
    static const char *const names[] = {
        "tools",
        "tool_choice",
        "functions",
        "function_call",
        "response_format",
        "audio",
        "modalities",
        "reasoning_effort",
        "reasoning",
        "verbosity",
        "web_search_options",
        "suffix",
        "documents",
        "chat_template",
        "continue_final_message",
        "use_beam_search",
        "length_penalty",
        "early_stopping",
        "min_tokens",
        "bad_words",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
        "grammar",
        "json_schema",
        "logits_processors",
        "include_stop_str_in_output",
        "prompt_embeds",
        "allowed_token_ids",
        "truncate_prompt_tokens",
        "prompt_logprobs",
    };
    static const char *const of_chat[] = {"echo", "add_generation_prompt"};
    if (refuse_of(root, "", names, sizeof names / sizeof *names, e) != 0)
        return -1;
    if (kind != OPENAI_CHAT)
        return 0;
    return refuse_of(root, "", of_chat, sizeof of_chat / sizeof *of_chat, e);
}

/* ---- messages ----------------------------------------------------------------------------------
 */

/* Content parts become one string: the texts, a line end between two. */
static int join_parts(json_t *message, const json_t *parts, const char *where, struct api_error *e)
{
    struct buf text = BUF_INIT;
    size_t i;
    const json_t *part;
    char param[96];
    json_array_foreach(parts, i, part)
    {
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *t = json_object_get(part, "text");
        if (type == NULL) {
            snprintf(param, sizeof param, "%s.content[%zu].type", where, i);
            buf_release(&text);
            return api_error_set(e, ERR_INVALID, param, "'%s' must be a string", param);
        }
        if (strcmp(type, "text") != 0) {
            snprintf(param, sizeof param, "%s.content[%zu].type", where, i);
            buf_release(&text);
            return api_error_set(e, ERR_UNSUPPORTED, param,
                                 "content of type '%.40s' is not supported by this model; only "
                                 "'text' is",
                                 type);
        }
        if (!json_is_string(t)) {
            snprintf(param, sizeof param, "%s.content[%zu].text", where, i);
            buf_release(&text);
            return api_error_set(e, ERR_INVALID, param, "'%s' must be a string", param);
        }
        if (i > 0)
            buf_append_byte(&text, '\n');
        buf_append(&text, json_string_value(t), json_string_length(t));
    }
    json_object_set_new(message, "content", json_stringn(buf_cstr(&text), text.len));
    buf_release(&text);
    return 0;
}

static int parse_message(json_t *messages, size_t i, struct api_error *e)
{
    static const char *const refused[] = {"tool_calls", "function_call", "audio", "tool_call_id"};
    char where[48], param[96];
    snprintf(where, sizeof where, "messages[%zu]", i);
    const json_t *m = json_array_get(messages, i);
    if (!json_is_object(m))
        return wrong_type(e, where, "an object", m);
    snprintf(param, sizeof param, "%s.role", where);
    const json_t *role = field(m, "role");
    if (role == NULL)
        return api_error_set(e, ERR_INVALID, param, "'%s' is missing", param);
    if (!json_is_string(role))
        return wrong_type(e, param, "a string", role);
    const char *r = json_string_value(role);
    if (strcmp(r, "developer") == 0)
        r = "system"; /* OpenAI's newer word for it; templates know the older */
    if (strcmp(r, "system") != 0 && strcmp(r, "user") != 0 && strcmp(r, "assistant") != 0)
        return api_error_set(e, ERR_INVALID, param,
                             "'%s' is '%.40s'; it must be one of system, developer, user, "
                             "assistant",
                             param, r);
    for (size_t k = 0; k < sizeof refused / sizeof *refused; k++) {
        const json_t *v = field(m, refused[k]);
        if (v != NULL && !(json_is_array(v) && json_array_size(v) == 0)) {
            snprintf(param, sizeof param, "%s.%s", where, refused[k]);
            return api_error_set(e, ERR_UNSUPPORTED, param, "'%s' is not supported by this node",
                                 param);
        }
    }
    json_t *clean = json_object();
    json_object_set_new(clean, "role", json_string(r));
    int rc = 0;
    snprintf(param, sizeof param, "%s.content", where);
    json_t *content = field(m, "content");
    const json_t *name = field(m, "name");
    if (content == NULL)
        rc = api_error_set(e, ERR_INVALID, param, "'%s' is missing", param);
    else if (json_is_string(content))
        json_object_set(clean, "content", content);
    else if (json_is_array(content))
        rc = join_parts(clean, content, where, e);
    else
        rc = wrong_type(e, param, "a string or an array of content parts", content);
    snprintf(param, sizeof param, "%s.name", where);
    if (rc == 0 && name != NULL && !json_is_string(name))
        rc = wrong_type(e, param, "a string", name);
    if (rc == 0 && name != NULL)
        json_object_set_new(clean, "name", json_string(json_string_value(name)));
    if (rc == 0)
        json_array_set(messages, i, clean);
    json_decref(clean);
    return rc;
}

static int parse_chat(struct openai_request *r, struct api_error *e)
{
    /* What a template is given from elsewhere, so that a value here would be passed over. */
    static const char *const of_template[] = {"messages", "tools", "documents",
                                              "add_generation_prompt"};
    r->messages = field(r->root, "messages");
    if (r->messages == NULL)
        return api_error_set(e, ERR_INVALID, "messages", "'messages' is missing");
    if (!json_is_array(r->messages))
        return wrong_type(e, "messages", "an array", r->messages);
    size_t n = json_array_size(r->messages);
    if (n == 0 || n > OPENAI_MESSAGES_MAX)
        return api_error_set(e, ERR_INVALID, "messages",
                             "'messages' has %zu items; it must have 1 to %d", n,
                             OPENAI_MESSAGES_MAX);
    for (size_t i = 0; i < n; i++) {
        if (parse_message(r->messages, i, e) != 0)
            return -1;
    }
    r->n_prompts = 1;
    r->template_kwargs = field(r->root, "chat_template_kwargs");
    if (r->template_kwargs != NULL && !json_is_object(r->template_kwargs))
        return wrong_type(e, "chat_template_kwargs", "an object", r->template_kwargs);
    if (r->template_kwargs != NULL &&
        refuse_of(r->template_kwargs, "chat_template_kwargs.", of_template,
                  sizeof of_template / sizeof *of_template, e) != 0)
        return -1;
    bool logprobs = false;
    int64_t top = 0;
    if (read_bool(r->root, "logprobs", &logprobs, e) != 0 ||
        read_int(r->root, "top_logprobs", 0, OPENAI_TOP_LOGPROBS_MAX, &top, e) != 0)
        return -1;
    if (field(r->root, "top_logprobs") != NULL && !logprobs)
        return api_error_set(e, ERR_INVALID, "top_logprobs",
                             "'top_logprobs' needs 'logprobs' to be true");
    r->n_logprobs = logprobs ? (int)top : -1;
    int64_t completion = -1;
    if (read_int(r->root, "max_tokens", 1, INT32_MAX, &r->max_tokens, e) != 0 ||
        read_int(r->root, "max_completion_tokens", 1, INT32_MAX, &completion, e) != 0)
        return -1;
    if (r->max_tokens >= 0)
        r->max_tokens_param = "max_tokens";
    if (completion >= 0) { /* the newer name wins */
        r->max_tokens = completion;
        r->max_tokens_param = "max_completion_tokens";
    }
    return 0;
}

/* ---- prompts -----------------------------------------------------------------------------------
 */

static int parse_ids(struct openai_request *r, const json_t *array, const char *param,
                     struct openai_prompt *out, struct api_error *e)
{
    size_t n = json_array_size(array), i;
    if (n == 0)
        return api_error_set(e, ERR_INVALID, param, "'%s' is empty", param);
    int32_t *ids = arena_array(&r->arena, n, sizeof *ids);
    const json_t *v;
    json_array_foreach(array, i, v)
    {
        if (!json_is_integer(v))
            return api_error_set(e, ERR_INVALID, param,
                                 "'%s' item %zu must be an integer (a token id), not %s", param, i,
                                 type_name(v));
        json_int_t id = json_integer_value(v);
        if (id < 0 || id > INT32_MAX)
            return api_error_set(e, ERR_INVALID, param, "'%s' item %zu is no token id", param, i);
        ids[i] = (int32_t)id;
    }
    *out = (struct openai_prompt){.ids = ids, .n_ids = n};
    return 0;
}

static int parse_prompt(struct openai_request *r, struct api_error *e)
{
    const json_t *p = field(r->root, "prompt");
    if (p == NULL)
        return api_error_set(e, ERR_INVALID, "prompt", "'prompt' is missing");
    r->prompts = arena_array(&r->arena, OPENAI_PROMPTS_MAX, sizeof *r->prompts);
    if (json_is_string(p)) {
        r->n_prompts = 1;
        r->prompts[0] = (struct openai_prompt){.text = json_string_value(p),
                                               .n_bytes = json_string_length(p)};
        return 0;
    }
    if (!json_is_array(p))
        return wrong_type(e, "prompt", "a string, an array of strings, or token ids", p);
    const json_t *first = json_array_get(p, 0);
    if (json_is_integer(first)) {
        r->n_prompts = 1;
        return parse_ids(r, p, "prompt", &r->prompts[0], e);
    }
    size_t n = json_array_size(p), i;
    if (n == 0 || n > OPENAI_PROMPTS_MAX)
        return api_error_set(e, ERR_INVALID, "prompt",
                             "'prompt' has %zu items; it must have 1 to %d", n, OPENAI_PROMPTS_MAX);
    r->n_prompts = n;
    const json_t *v;
    json_array_foreach(p, i, v)
    {
        char param[48];
        snprintf(param, sizeof param, "prompt[%zu]", i);
        if (json_typeof(v) != json_typeof(first) || (!json_is_string(v) && !json_is_array(v)))
            return api_error_set(e, ERR_INVALID, "prompt",
                                 "'prompt' must hold strings only, or token ids only, or arrays "
                                 "of token ids only; item %zu is %s",
                                 i, type_name(v));
        if (json_is_array(v)) {
            if (parse_ids(r, v, param, &r->prompts[i], e) != 0)
                return -1;
        } else {
            r->prompts[i] = (struct openai_prompt){.text = json_string_value(v),
                                                   .n_bytes = json_string_length(v)};
        }
    }
    return 0;
}

static int parse_completion(struct openai_request *r, struct api_error *e)
{
    int64_t logprobs = -1;
    r->max_tokens = 16; /* OpenAI's default */
    if (parse_prompt(r, e) != 0 || read_bool(r->root, "echo", &r->echo, e) != 0 ||
        read_int(r->root, "max_tokens", 0, INT32_MAX, &r->max_tokens, e) != 0 ||
        read_bool(r->root, "add_special_tokens", &r->add_special_tokens, e) != 0)
        return -1;
    if (field(r->root, "max_tokens") != NULL)
        r->max_tokens_param = "max_tokens";
    if (r->max_tokens == 0 && !r->echo)
        return api_error_set(e, ERR_INVALID, "max_tokens",
                             "'max_tokens' is 0 and 'echo' is not set: there would be no answer");
    if (read_int(r->root, "logprobs", 0, OPENAI_TOP_LOGPROBS_MAX, &logprobs, e) != 0)
        return -1;
    r->n_logprobs = (int)logprobs;
    return 0;
}

/* ---- what both have ----------------------------------------------------------------------------
 */

static int parse_stops(struct openai_request *r, struct api_error *e)
{
    const json_t *v = field(r->root, "stop");
    if (v == NULL)
        return 0;
    if (!json_is_string(v) && !json_is_array(v))
        return wrong_type(e, "stop", "a string or an array of strings", v);
    size_t n = json_is_string(v) ? 1 : json_array_size(v);
    if (n > OPENAI_STOPS_MAX)
        return api_error_set(e, ERR_INVALID, "stop", "'stop' has %zu items; at most %d are allowed",
                             n, OPENAI_STOPS_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *s = json_is_string(v) ? v : json_array_get(v, i);
        if (!json_is_string(s))
            return wrong_type(e, "stop", "a string or an array of strings", s);
        if (json_string_length(s) == 0 || json_string_length(s) > OPENAI_STOP_BYTES_MAX)
            return api_error_set(e, ERR_INVALID, "stop",
                                 "a 'stop' string has %zu bytes; it must have 1 to %d",
                                 json_string_length(s), OPENAI_STOP_BYTES_MAX);
        r->stops[r->n_stops++] = json_string_value(s);
    }
    return 0;
}

static int parse_stop_ids(struct openai_request *r, struct api_error *e)
{
    const json_t *v = field(r->root, "stop_token_ids"), *item;
    if (v == NULL)
        return 0;
    if (!json_is_array(v))
        return wrong_type(e, "stop_token_ids", "an array of integers", v);
    size_t n = json_array_size(v), i;
    if (n > OPENAI_STOP_IDS_MAX)
        return api_error_set(e, ERR_INVALID, "stop_token_ids",
                             "'stop_token_ids' has %zu items; at most %d are allowed", n,
                             OPENAI_STOP_IDS_MAX);
    r->stop_ids = arena_array(&r->arena, n + 1, sizeof *r->stop_ids);
    json_array_foreach(v, i, item)
    {
        if (!json_is_integer(item) || json_integer_value(item) < 0 ||
            json_integer_value(item) > INT32_MAX)
            return api_error_set(e, ERR_INVALID, "stop_token_ids",
                                 "'stop_token_ids' item %zu is no token id", i);
        r->stop_ids[r->n_stop_ids++] = (int32_t)json_integer_value(item);
    }
    return 0;
}

static int parse_bias(struct openai_request *r, struct api_error *e)
{
    json_t *v = field(r->root, "logit_bias"), *item;
    if (v == NULL)
        return 0;
    if (!json_is_object(v))
        return wrong_type(e, "logit_bias", "an object from token ids to numbers", v);
    size_t n = json_object_size(v);
    if (n > OPENAI_BIAS_MAX)
        return api_error_set(e, ERR_INVALID, "logit_bias",
                             "'logit_bias' has %zu entries; at most %d are allowed", n,
                             OPENAI_BIAS_MAX);
    r->bias_ids = arena_array(&r->arena, n + 1, sizeof *r->bias_ids);
    r->bias_values = arena_array(&r->arena, n + 1, sizeof *r->bias_values);
    const char *key;
    json_object_foreach(v, key, item)
    {
        char *end;
        errno = 0;
        long id = strtol(key, &end, 10);
        /* "05" would be "5" a second time, and the sum of both past the bounds. */
        if (key[0] < '0' || key[0] > '9' || (key[0] == '0' && key[1] != '\0') || *end != '\0' ||
            errno != 0 || id > INT32_MAX)
            return api_error_set(e, ERR_INVALID, "logit_bias",
                                 "'logit_bias' has the key \"%.40s\", which is no token id", key);
        double value = json_number_value(item);
        if (!json_is_number(item) || !(value >= -100 && value <= 100))
            return api_error_set(e, ERR_INVALID, "logit_bias",
                                 "'logit_bias' of token %ld must be a number in -100 to 100", id);
        r->bias_ids[r->n_bias] = (int32_t)id;
        r->bias_values[r->n_bias++] = (float)value;
    }
    return 0;
}

static int parse_stream(struct openai_request *r, struct api_error *e)
{
    if (read_bool(r->root, "stream", &r->stream, e) != 0)
        return -1;
    const json_t *options = field(r->root, "stream_options");
    if (options == NULL)
        return 0;
    if (!json_is_object(options))
        return wrong_type(e, "stream_options", "an object", options);
    if (!r->stream)
        return api_error_set(e, ERR_INVALID, "stream_options",
                             "'stream_options' is only allowed when 'stream' is true");
    const json_t *usage = field(options, "include_usage");
    if (usage != NULL && !json_is_boolean(usage))
        return wrong_type(e, "stream_options.include_usage", "a boolean", usage);
    r->include_usage = usage != NULL && json_is_true(usage);
    return 0;
}

static int parse_sampling(struct openai_request *r, struct api_error *e)
{
    int64_t n = 1, best_of = -1, top_k = 0, seed = 0;
    r->temperature = 1.0F;
    r->top_p = 1.0F;
    r->repetition_penalty = 1.0F;
    if (read_float(r->root, "temperature", 0, 2, &r->temperature, e) != 0 ||
        read_float(r->root, "top_p", 0, 1, &r->top_p, e) != 0 ||
        read_float(r->root, "min_p", 0, 1, &r->min_p, e) != 0 ||
        read_int(r->root, "top_k", -1, INT32_MAX, &top_k, e) != 0 ||
        read_float(r->root, "presence_penalty", -2, 2, &r->presence_penalty, e) != 0 ||
        read_float(r->root, "frequency_penalty", -2, 2, &r->frequency_penalty, e) != 0 ||
        read_float(r->root, "repetition_penalty", 0.01, 10, &r->repetition_penalty, e) != 0 ||
        read_int(r->root, "seed", INT64_MIN, INT64_MAX, &seed, e) != 0 ||
        read_int(r->root, "n", 1, OPENAI_N_MAX, &n, e) != 0 ||
        read_int(r->root, "best_of", 1, 20, &best_of, e) != 0 ||
        read_bool(r->root, "ignore_eos", &r->ignore_eos, e) != 0 ||
        read_bool(r->root, "return_token_ids", &r->return_token_ids, e) != 0 ||
        read_bool(r->root, "skip_special_tokens", &r->skip_special_tokens, e) != 0)
        return -1;
    if (best_of >= 0 && best_of != n)
        return api_error_set(e, ERR_UNSUPPORTED, "best_of",
                             "'best_of' is %lld; only the value of 'n' (%lld) is supported",
                             (long long)best_of, (long long)n);
    r->n = (int)n;
    r->top_k = top_k < 0 ? 0 : (int32_t)top_k;
    r->seed_given = field(r->root, "seed") != NULL;
    r->seed = (uint64_t)seed;
    return 0;
}

static int read_name(const json_t *o, const char *param, const char **out, struct api_error *e)
{
    const json_t *v = field(o, "model");
    if (v == NULL)
        return api_error_set(e, ERR_INVALID, param, "'%s' is missing", param);
    if (!json_is_string(v))
        return wrong_type(e, param, "a string", v);
    if (json_string_length(v) == 0 || json_string_length(v) > OPENAI_NAME_BYTES_MAX)
        return api_error_set(e, ERR_INVALID, param, "'%s' must have 1 to %d bytes", param,
                             OPENAI_NAME_BYTES_MAX);
    *out = json_string_value(v);
    return 0;
}

static int parse_adapter(struct openai_adapter *out, const json_t *v, size_t i, struct api_error *e)
{
    char param[48];
    snprintf(param, sizeof param, "adapters[%zu]", i);
    if (!json_is_object(v))
        return wrong_type(e, param, "an object with 'model' and 'weight'", v);
    const char *key;
    json_t *item;
    json_object_foreach((json_t *)(uintptr_t)v, key, item)
    { /* the field is ours alone, and a weight that is spelt wrong would be a bill of 1 */
        if (strcmp(key, "model") != 0 && strcmp(key, "weight") != 0)
            return api_error_set(e, ERR_INVALID, param,
                                 "'%s' has the field \"%.40s\"; it may have 'model' and 'weight'",
                                 param, key);
    }
    snprintf(param, sizeof param, "adapters[%zu].model", i);
    if (read_name(v, param, &out->model, e) != 0)
        return -1;
    out->weight = 1.0F;
    const json_t *weight = field(v, "weight");
    snprintf(param, sizeof param, "adapters[%zu].weight", i);
    if (weight == NULL)
        return 0;
    if (!json_is_number(weight))
        return wrong_type(e, param, "a number", weight);
    double d = json_number_value(weight);
    if (!(fabs(d) <= WEIGHT_MAX))
        return api_error_set(e, ERR_INVALID, param, "'%s' is %g; it must lie in %g to %g", param, d,
                             -WEIGHT_MAX, WEIGHT_MAX);
    out->weight = (float)d;
    return 0;
}

static int parse_model(struct openai_request *r, struct api_error *e)
{
    const json_t *list = field(r->root, "adapters"), *v;
    if ((list == NULL || field(r->root, "model") != NULL) &&
        read_name(r->root, "model", &r->model, e) != 0)
        return -1;
    if (list == NULL)
        return 0;
    if (!json_is_array(list))
        return wrong_type(e, "adapters", "an array of objects", list);
    size_t n = json_array_size(list), i;
    if (n == 0 || n > OPENAI_ADAPTERS_MAX)
        return api_error_set(e, ERR_INVALID, "adapters",
                             "'adapters' has %zu items; it must have 1 to %d", n,
                             OPENAI_ADAPTERS_MAX);
    bool any = false;
    json_array_foreach(list, i, v)
    {
        if (parse_adapter(&r->adapters[i], v, i, e) != 0)
            return -1;
        any |= fpclassify(r->adapters[i].weight) != FP_ZERO;
    }
    if (!any)
        return api_error_set(e, ERR_INVALID, "adapters",
                             "the weights of 'adapters' are all 0; name the base model in 'model' "
                             "instead");
    r->n_adapters = n;
    return 0;
}

/* How soon the answer is wanted, and until when. */
static int parse_urgency(struct openai_request *r, struct api_error *e)
{
    int64_t priority = 0;
    if (read_int(r->root, "priority", -OPENAI_PRIORITY_MAX, OPENAI_PRIORITY_MAX, &priority, e) != 0)
        return -1;
    r->priority_given = field(r->root, "priority") != NULL;
    r->priority = (int32_t)priority;
    const json_t *timeout = field(r->root, "timeout");
    if (timeout == NULL)
        return 0;
    if (!json_is_number(timeout))
        return wrong_type(e, "timeout", "a number of seconds", timeout);
    r->timeout_s = json_number_value(timeout);
    if (!(r->timeout_s >= TIMEOUT_MIN_S && r->timeout_s <= TIMEOUT_MAX_S))
        return api_error_set(e, ERR_INVALID, "timeout",
                             "'timeout' is %g seconds; it must lie in %g to %g", r->timeout_s,
                             TIMEOUT_MIN_S, TIMEOUT_MAX_S);
    return 0;
}

static int parse_cache_salt(struct openai_request *r, struct api_error *e)
{
    const json_t *salt = field(r->root, "cache_salt");
    if (salt == NULL)
        return 0;
    if (!json_is_string(salt))
        return wrong_type(e, "cache_salt", "a string", salt);
    size_t n = json_string_length(salt);
    if (n < 1 || n > OPENAI_CACHE_SALT_BYTES_MAX)
        return api_error_set(e, ERR_INVALID, "cache_salt", "'cache_salt' must have 1 to %d bytes",
                             OPENAI_CACHE_SALT_BYTES_MAX);
    /* Submitting needs it when the JSON is forgotten. */
    r->cache_salt = arena_strndup(&r->arena, json_string_value(salt), n);
    return 0;
}

int openai_request_parse(struct openai_request *r, enum openai_kind kind, const void *body,
                         size_t n, struct api_error *e)
{
    char where[sizeof e->param];
    r->kind = kind;
    r->max_tokens = -1;
    r->n_logprobs = -1;
    r->skip_special_tokens = r->add_special_tokens = true;
    r->root = json_parse(body, n, &e->err);
    if (r->root == NULL && json_find_nul(body, n, where, sizeof where))
        return api_error_set(
            e, ERR_INVALID, where,
            "'%s' has a NUL character (\\u0000) in it, which no text here may have", where);
    if (r->root == NULL && json_find_big_integer(body, n, where, sizeof where))
        return api_error_set(e, ERR_INVALID, where, "'%s' is an integer that 64 bits can't hold",
                             where);
    if (r->root == NULL)
        return -1;
    if (!json_is_object(r->root))
        return api_error_set(e, ERR_INVALID, NULL, "the request body must be a JSON object");
    const json_t *user = field(r->root, "user");
    if (user != NULL && !json_is_string(user))
        return wrong_type(e, "user", "a string", user);
    if (parse_model(r, e) != 0 || parse_urgency(r, e) != 0 || parse_cache_salt(r, e) != 0)
        return -1;
    if (refuse_unsupported(r->root, kind, e) != 0 || parse_sampling(r, e) != 0 ||
        parse_stream(r, e) != 0 || parse_stops(r, e) != 0 || parse_stop_ids(r, e) != 0 ||
        parse_bias(r, e) != 0)
        return -1;
    return kind == OPENAI_CHAT ? parse_chat(r, e) : parse_completion(r, e);
}

void openai_request_release(struct openai_request *r)
{
    json_decref(r->root);
    arena_release(&r->arena);
    *r = (struct openai_request){0};
}
