/* pre_tokenizer: cuts a text into the words that the model encodes one by one. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_PRE_TOKENIZER_H
#define TRIBUTARY_ENGINE_TOKENIZER_PRE_TOKENIZER_H

#include "engine/tokenizer/json_read.h"
#include "node/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct pre_tokenizer;

struct word {
    uint32_t begin, end; /* bytes of words.text */
};

struct words { /* reused from text to text */
    struct buf text;
    struct word *words; /* [n], ascending, not empty */
    size_t n, cap;
};
#define WORDS_INIT           \
    {                        \
        BUF_INIT, NULL, 0, 0 \
    }
void words_release(struct words *w);

/* json: the member "pre_tokenizer", or NULL: a text is one word. */
struct pre_tokenizer *pre_tokenizer_read(const json_t *json, struct err *err);
void pre_tokenizer_free(struct pre_tokenizer *p); /* quiet on NULL */

/* Are words raw bytes, which the vocabulary spells with the byte alphabet? */
bool pre_tokenizer_is_byte_level(const struct pre_tokenizer *p);

/* Replaces *out by the words of text [n_bytes], valid UTF-8. at_start: the text is where the whole
 * input begins. Fails with ERR_INVALID when a regular expression needs too many steps. */
int pre_tokenizer_apply(const struct pre_tokenizer *p, struct words *out, const char *text,
                        size_t n_bytes, bool at_start, struct err *err);

#endif
