/* chat_template: messages to prompt text, by the model's own Jinja template.
 *
 * Templates are programs in Jinja2, and are evaluated as such, with the semantics that Hugging Face
 * transformers gives them: sandboxed, trim_blocks, lstrip_blocks, loop controls, undefined values
 * that print as nothing and raise when used, tojson without HTML escaping, raise_exception and
 * strftime_now. A template and its input are hostile until shown otherwise: steps, depth, memory
 * and output are bounded.
 *
 * A parsed template never changes: any number of threads may render with one at the same time. */
#ifndef TRIBUTARY_ENGINE_CHAT_TEMPLATE_CHAT_TEMPLATE_H
#define TRIBUTARY_ENGINE_CHAT_TEMPLATE_CHAT_TEMPLATE_H

#include "engine/tokenizer/text_spans.h"
#include "node/base/buf.h"
#include "node/base/clock.h"

#include <stdbool.h>
#include <stddef.h>

struct err;
struct json_t; /* jansson's */
struct chat_template;

enum {
    CHAT_TEMPLATE_SOURCE_MAX_BYTES = 1 << 20,
    CHAT_TEMPLATE_OUTPUT_MAX_BYTES = 8 << 20,   /* as much as tokenizer_encode takes */
    CHAT_TEMPLATE_MEMORY_MAX_BYTES = 128 << 20, /* values of one rendering */
    CHAT_TEMPLATE_STEPS_MAX = 20 * 1000 * 1000, /* nodes evaluated, items visited */
};

/* Parses one template. Fails with ERR_INVALID, naming the line. */
int chat_template_parse(struct chat_template **out, const char *source, size_t n_bytes,
                        struct err *err);

/* Reads what a model directory says: tokenizer_config.json (chat_template as a string or as a list
 * of named ones, bos_token, eos_token and the other special tokens), and chat_template.jinja, which
 * wins over the former when it exists. *out is NULL, and the call succeeds, when the model has no
 * chat template. */
int chat_template_open(struct chat_template **out, const char *model_dir, struct err *err);

void chat_template_free(struct chat_template *t); /* quiet on NULL */

struct chat_template_input {
    const struct json_t *messages;  /* array of objects */
    const struct json_t *tools;     /* array, or NULL: the template sees None */
    const struct json_t *documents; /* array, or NULL: the template sees None */
    const struct json_t *extra;     /* object of further variables ({"enable_thinking": false}), or
                                       NULL; wins over the special tokens, not over the above */
    bool add_generation_prompt;
    const char *bos_token; /* NULL: what chat_template_open found, else undefined */
    const char *eos_token; /* likewise */
    struct unix_ms now;    /* what strftime_now tells, in UTC */
};

/* Appends the prompt text to *out. literal (may be NULL) receives the spans of the appended text
 * that came from messages, tools, documents or extra, counted from its beginning, for
 * tokenizer_encode. When `tools` is there and the model has a template named tool_use, that one is
 * taken. Fails with ERR_INVALID: what the template raised, in its own words, or what went wrong and
 * at which line; with ERR_TOO_LARGE when a bound is passed. *out and *literal are then unchanged.
 */
int chat_template_render(const struct chat_template *t, struct buf *out, struct text_spans *literal,
                         const struct chat_template_input *input, struct err *err);

#endif
