/* post_processor: the special tokens put around an encoded text. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_POST_PROCESSOR_H
#define TRIBUTARY_ENGINE_TOKENIZER_POST_PROCESSOR_H

#include "engine/tokenizer/json_read.h"
#include "engine/tokenizer/tokenizer.h"

struct err;

struct post_processor {
    struct token_ids before, after; /* what goes before and after a single text */
};

/* json: the member "post_processor", or NULL. */
int post_processor_read(struct post_processor *out, const json_t *json, struct err *err);
void post_processor_release(struct post_processor *p);

#endif
