/* tokenizer_config: see tokenizer_config.h.
 *
 * A special token is a string, or an object that holds one as "content", or null. chat_template is
 * a string, or an array of {"name", "template"}. A file chat_template.jinja in the same directory
 * is where newer models have it; it then is the default, as in transformers. */
#include "engine/chat_template/tokenizer_config.h"

#include "engine/tokenizer/json_read.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_MAX_BYTES = 64 << 20, TEMPLATE_MAX_BYTES = 1 << 20, TEMPLATES_MAX = 64 };

static int read_token(char **out, const json_t *config, const char *key, struct err *err)
{
    const json_t *token = json_member(config, key);
    if (json_is_object(token))
        token = json_member(token, "content");
    if (token == NULL)
        return 0;
    if (!json_is_string(token))
        return err_set(err, ERR_INVALID, "%s should be a string and is %s", key,
                       json_type_name(token));
    *out = xstrdup(json_string_value(token));
    return 0;
}

static void put_template(struct tokenizer_config *c, const char *name, const char *source)
{
    for (size_t i = 0; i < c->n_templates; i++) {
        if (strcmp(c->templates[i].name, name) == 0) {
            free(c->templates[i].source);
            c->templates[i].source = xstrdup(source);
            return;
        }
    }
    c->templates = xrealloc_array(c->templates, c->n_templates + 1, sizeof *c->templates);
    c->templates[c->n_templates].name = xstrdup(name);
    c->templates[c->n_templates++].source = xstrdup(source);
}

static int read_templates(struct tokenizer_config *c, const json_t *config, struct err *err)
{
    const json_t *value = json_member(config, "chat_template");
    if (value == NULL)
        return 0;
    if (json_is_string(value)) {
        put_template(c, "default", json_string_value(value));
        return 0;
    }
    if (!json_is_array(value) || json_array_size(value) > TEMPLATES_MAX)
        return err_set(err, ERR_INVALID,
                       "chat_template should be a string or an array of at most %d, and is %s",
                       TEMPLATES_MAX, json_type_name(value));
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *entry = json_array_get(value, i);
        struct json_text name, source;
        if (json_read_text(entry, "chat_template", "name", &name, err) != 0 ||
            json_read_text(entry, "chat_template", "template", &source, err) != 0)
            return -1;
        put_template(c, name.bytes, source.bytes);
    }
    return 0;
}

static int read_config(struct tokenizer_config *c, const char *path, struct err *err)
{
    struct buf text = BUF_INIT;
    struct err problem = {0};
    if (file_read(path, CONFIG_MAX_BYTES, &text, &problem) != 0) {
        buf_release(&text);
        return problem.code == ERR_NOT_FOUND ? 0
                                             : err_set(err, problem.code, "%s", problem.message);
    }
    json_error_t json_problem;
    /* Integers as reals: model_max_length is 10^30 where transformers knew no better. */
    json_t *config = json_loadb(buf_cstr(&text), text.len, JSON_DECODE_INT_AS_REAL, &json_problem);
    buf_release(&text);
    int rc = 0;
    if (!json_is_object(config))
        rc = err_set(err, ERR_INVALID, "not a JSON object%s%s", config == NULL ? ": " : "",
                     config == NULL ? json_problem.text : "");
    if (rc == 0 && (read_token(&c->bos_token, config, "bos_token", err) != 0 ||
                    read_token(&c->eos_token, config, "eos_token", err) != 0 ||
                    read_token(&c->pad_token, config, "pad_token", err) != 0 ||
                    read_token(&c->unk_token, config, "unk_token", err) != 0 ||
                    read_templates(c, config, err) != 0))
        rc = -1;
    json_decref(config);
    return rc == 0 ? 0 : err_wrap(err, "%s", path);
}

static int read_template_file(struct tokenizer_config *c, const char *path, struct err *err)
{
    struct buf text = BUF_INIT;
    struct err problem = {0};
    int rc = 0;
    if (file_read(path, TEMPLATE_MAX_BYTES, &text, &problem) == 0) {
        if (memchr(buf_cstr(&text), '\0', text.len) != NULL)
            rc = err_set(err, ERR_INVALID, "%s: holds a NUL byte", path);
        else
            put_template(c, "default", buf_cstr(&text));
    } else if (problem.code != ERR_NOT_FOUND) {
        rc = err_set(err, problem.code, "%s", problem.message);
    }
    buf_release(&text);
    return rc;
}

int tokenizer_config_load(struct tokenizer_config *out, const char *model_dir, struct err *err)
{
    *out = (struct tokenizer_config){0};
    char *config = xasprintf("%s/tokenizer_config.json", model_dir);
    char *template = xasprintf("%s/chat_template.jinja", model_dir);
    int rc = read_config(out, config, err);
    if (rc == 0)
        rc = read_template_file(out, template, err);
    if (rc != 0)
        tokenizer_config_release(out);
    free(config);
    free(template);
    return rc;
}

void tokenizer_config_release(struct tokenizer_config *c)
{
    free(c->bos_token);
    free(c->eos_token);
    free(c->pad_token);
    free(c->unk_token);
    for (size_t i = 0; i < c->n_templates; i++) {
        free(c->templates[i].name);
        free(c->templates[i].source);
    }
    free(c->templates);
    *c = (struct tokenizer_config){0};
}

const char *tokenizer_config_template(const struct tokenizer_config *c, const char *name)
{
    for (size_t i = 0; i < c->n_templates; i++)
        if (strcmp(c->templates[i].name, name) == 0)
            return c->templates[i].source;
    return NULL;
}
