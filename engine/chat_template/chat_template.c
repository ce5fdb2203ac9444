/* chat_template: see chat_template.h.
 *
 * The border of the room: JSON comes in here and becomes values, with every string marked as the
 * request's; the rendered text goes out with the spans that still bear the mark. What lies between
 * (lexer, parser, eval and the tables of filters, tests and methods) knows no JSON.
 *
 * A template sees messages, tools, documents, add_generation_prompt, the special tokens and
 * whatever the request adds, as Hugging Face transformers gives them to it
 * (utils/chat_template_utils.py). */
#include "engine/chat_template/chat_template.h"

#include "engine/chat_template/ast.h"
#include "engine/chat_template/eval.h"
#include "engine/chat_template/tokenizer_config.h"
#include "node/base/err.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

struct chat_template {
    struct template *plain; /* what is taken without tools; NULL when there is only the other */
    struct template *with_tools; /* taken when there are tools; NULL: `plain` is */
    char *bos_token, *eos_token, *pad_token, *unk_token; /* NULL: the model names none */
};

/* ---- opening --------------------------------------------------------------------------------- */

static struct template *parse(const char *source, size_t n_bytes, struct err *err)
{
    if (n_bytes > CHAT_TEMPLATE_SOURCE_MAX_BYTES) {
        err_set(err, ERR_TOO_LARGE, "chat template of %zu bytes, the limit is %d", n_bytes,
                CHAT_TEMPLATE_SOURCE_MAX_BYTES);
        return NULL;
    }
    struct template *t = template_parse(source, n_bytes, err);
    if (t == NULL)
        err_wrap(err, "chat template");
    return t;
}

int chat_template_parse(struct chat_template **out, const char *source, size_t n_bytes,
                        struct err *err)
{
    *out = NULL;
    struct template *t = parse(source, n_bytes, err);
    if (t == NULL)
        return -1;
    *out = xcalloc(1, sizeof **out);
    (*out)->plain = t;
    return 0;
}

static char *copy(const char *s)
{
    return s == NULL ? NULL : xstrdup(s);
}

int chat_template_open(struct chat_template **out, const char *model_dir, struct err *err)
{
    struct tokenizer_config c;
    *out = NULL;
    if (tokenizer_config_load(&c, model_dir, err) != 0)
        return -1;
    int rc = 0;
    if (c.n_templates > 0) {
        const char *plain = tokenizer_config_template(&c, "default");
        const char *with_tools = tokenizer_config_template(&c, "tool_use");
        struct chat_template *t = xcalloc(1, sizeof *t);
        if (plain == NULL && with_tools == NULL)
            rc = err_set(err, ERR_UNSUPPORTED,
                         "%s: of the chat templates none is named default or tool_use", model_dir);
        if (plain != NULL && (t->plain = parse(plain, strlen(plain), err)) == NULL)
            rc = err_wrap(err, "%s", model_dir);
        if (rc == 0 && with_tools != NULL &&
            (t->with_tools = parse(with_tools, strlen(with_tools), err)) == NULL)
            rc = err_wrap(err, "%s", model_dir);
        t->bos_token = copy(c.bos_token);
        t->eos_token = copy(c.eos_token);
        t->pad_token = copy(c.pad_token);
        t->unk_token = copy(c.unk_token);
        if (rc == 0)
            *out = t;
        else
            chat_template_free(t);
    }
    tokenizer_config_release(&c);
    return rc;
}

void chat_template_free(struct chat_template *t)
{
    if (t == NULL)
        return;
    template_free(t->plain);
    template_free(t->with_tools);
    free(t->bos_token);
    free(t->eos_token);
    free(t->pad_token);
    free(t->unk_token);
    free(t);
}

/* ---- JSON to values -------------------------------------------------------------------------- */

static struct value input_string(struct eval *e, const char *bytes, size_t n)
{
    struct string *s = eval_alloc(e, 1, sizeof *s);
    char *text = eval_alloc(e, n + 1, 1);
    if (s == NULL || text == NULL)
        return value_none();
    memcpy(text, bytes, n);
    *s = (struct string){.bytes = text, .n = n, .all_input = true};
    return value_string(s);
}

static struct value from_json(struct eval *e, const json_t *json, int depth)
{
    struct value v;
    size_t i = 0;
    eval_charge(e, 1);
    if (depth > NESTED_VALUES_MAX)
        return eval_error(e, "the request nests deeper than %d", NESTED_VALUES_MAX);
    if (json == NULL || eval_failed(e))
        return value_none();
    switch (json_typeof(json)) {
    case JSON_NULL:
        return value_none();
    case JSON_TRUE:
    case JSON_FALSE:
        return value_bool(json_is_true(json));
    case JSON_INTEGER:
        return value_int(json_integer_value(json));
    case JSON_REAL:
        return value_float(json_real_value(json));
    case JSON_STRING:
        return input_string(e, json_string_value(json), json_string_length(json));
    case JSON_ARRAY:
        v = value_list(e, VALUE_LIST, json_array_size(json));
        for (; i < json_array_size(json) && !eval_failed(e); i++)
            v.as.list->items[i] = from_json(e, json_array_get(json, i), depth + 1);
        return v;
    case JSON_OBJECT:
        v = value_dict(e);
        struct dict_entry *entries = eval_alloc(e, json_object_size(json), sizeof *entries);
        if (eval_failed(e))
            return v;
        v.as.dict->entries = entries; /* JSON's keys are unique: they need not be compared */
        v.as.dict->cap = json_object_size(json);
        for (void *it = json_object_iter((json_t *)json); it != NULL && !eval_failed(e);
             it = json_object_iter_next((json_t *)json, it)) {
            const char *key = json_object_iter_key(it);
            entries[i].key = input_string(e, key, strlen(key));
            entries[i].value = from_json(e, json_object_iter_value(it), depth + 1);
            v.as.dict->n = ++i;
        }
        return v;
    }
    BUG("json type %d", (int)json_typeof(json));
}

/* ---- rendering ------------------------------------------------------------------------------- */

static void set(struct eval *e, const char *name, struct value value)
{
    int symbol = template_symbol(e->t, name, strlen(name));
    if (symbol >= 0) /* else the template never looks at it */
        eval_bind(e, e->scope, symbol, value);
}

static void set_token(struct eval *e, const char *name, const char *given, const char *known)
{
    const char *token = given != NULL ? given : known;
    if (token != NULL)
        set(e, name, value_text(e, token));
}

static void set_variables(struct eval *e, const struct chat_template *t,
                          const struct chat_template_input *input)
{
    set_token(e, "bos_token", input->bos_token, t->bos_token);
    set_token(e, "eos_token", input->eos_token, t->eos_token);
    set_token(e, "pad_token", NULL, t->pad_token);
    set_token(e, "unk_token", NULL, t->unk_token);
    for (void *it = json_object_iter((json_t *)input->extra); it != NULL;
         it = json_object_iter_next((json_t *)input->extra, it))
        set(e, json_object_iter_key(it), from_json(e, json_object_iter_value(it), 0));
    set(e, "messages", from_json(e, input->messages, 0));
    set(e, "tools", from_json(e, input->tools, 0));
    set(e, "documents", from_json(e, input->documents, 0));
    set(e, "add_generation_prompt", value_bool(input->add_generation_prompt));
}

static void append_spans(struct text_spans *literal, const struct builder *text)
{
    for (size_t at = 0; at < text->n;) {
        size_t begin = at;
        while (at < text->n && (text->input[at] != 0) == (text->input[begin] != 0))
            at++;
        if (text->input[begin] != 0)
            text_spans_append(literal, begin, at);
    }
}

int chat_template_render(const struct chat_template *t, struct buf *out, struct text_spans *literal,
                         const struct chat_template_input *input, struct err *err)
{
    if (!json_is_array(input->messages))
        return err_set(err, ERR_INVALID, "messages should be an array");
    if (input->extra != NULL && !json_is_object(input->extra))
        return err_set(err, ERR_INVALID, "the template's further variables should be an object");
    BUG_IF(literal != NULL && literal->n > 0);
    bool tools = input->tools != NULL && !json_is_null(input->tools);
    struct builder text = {0};
    struct scope scope = {0};
    struct eval e = {
        .t = (tools && t->with_tools != NULL) || t->plain == NULL ? t->with_tools : t->plain,
        .arena = ARENA_INIT,
        .scope = &scope,
        .out = &text,
        .now = input->now,
    };
    set_variables(&e, t, input);
    if (!eval_failed(&e))
        eval_template(&e, e.t);
    int rc = 0;
    if (eval_failed(&e)) {
        rc = err_set(err, e.err.code, "%s", e.err.message);
        if (!e.raised)
            err_wrap(err, "chat template, line %d", e.line_failed);
    } else {
        buf_append(out, text.bytes, text.n);
        if (literal != NULL)
            append_spans(literal, &text);
    }
    arena_release(&e.arena);
    return rc;
}
