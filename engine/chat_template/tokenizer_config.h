/* tokenizer_config: what the engine needs from a model's tokenizer_config.json. */
#ifndef TRIBUTARY_ENGINE_CHAT_TEMPLATE_TOKENIZER_CONFIG_H
#define TRIBUTARY_ENGINE_CHAT_TEMPLATE_TOKENIZER_CONFIG_H

#include <stddef.h>

struct err;

struct tokenizer_config {
    /* NULL where the file has none. */
    char *bos_token, *eos_token, *pad_token, *unk_token;
    struct tokenizer_config_template {
        char *name;   /* "default" when the file holds one string */
        char *source; /* NUL-terminated */
    } * templates;    /* [n_templates] */
    size_t n_templates;
};

/* Reads tokenizer_config.json and chat_template.jinja of the directory; a file that doesn't exist
 * has nothing to say. Fails naming file and key when one has the wrong type. *out need not be
 * initialised; after a failure it holds nothing. */
int tokenizer_config_load(struct tokenizer_config *out, const char *model_dir, struct err *err);
void tokenizer_config_release(struct tokenizer_config *c);

/* The template of that name, or NULL. */
const char *tokenizer_config_template(const struct tokenizer_config *c, const char *name);

#endif
