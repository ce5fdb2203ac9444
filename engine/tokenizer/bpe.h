/* bpe: words to token ids by byte pair encoding. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_BPE_H
#define TRIBUTARY_ENGINE_TOKENIZER_BPE_H

#include "engine/tokenizer/json_read.h"
#include "engine/tokenizer/strmap.h"
#include "engine/tokenizer/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct bpe;

/* model: the member "model" of a tokenizer file. byte_level: words come as raw bytes, and the
 * vocabulary spells them with the byte alphabet; else words come as text. */
struct bpe *bpe_read(const json_t *model, bool byte_level, struct err *err);
void bpe_free(struct bpe *b); /* quiet on NULL */

/* The vocabulary as the file spells it: token to id. Lives as long as b. */
const struct strmap *bpe_vocabulary(const struct bpe *b);

/* Work memory of one caller, reused from word to word. */
struct bpe_scratch {
    struct bpe_symbol *symbols;
    size_t n_symbols, cap_symbols;
    struct bpe_candidate *heap;
    size_t n_heap, cap_heap;
};
#define BPE_SCRATCH_INIT       \
    {                          \
        NULL, 0, 0, NULL, 0, 0 \
    }
void bpe_scratch_release(struct bpe_scratch *s);

/* Appends the ids of one word [n_bytes]. O(n log n). Any thread, each with its own scratch. */
void bpe_encode(const struct bpe *b, struct token_ids *out, const char *word, size_t n_bytes,
                struct bpe_scratch *scratch);

#endif
