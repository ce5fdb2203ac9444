/* tokenizer: text to token ids and back, from a Hugging Face tokenizer.json.
 *
 * What it reads: BPE models, byte-level (GPT-2, Llama 3, Qwen, demo-7m) and with byte fallback
 * (Llama 2, Mistral, Gemma, stories260K), with the normalizers, pre-tokenizers, post-processors and
 * decoders that these families use. A file that asks for anything else is refused with
 * ERR_UNSUPPORTED and a sentence that names the component; a file that contradicts itself (ids that
 * are too large or used twice, merges of unknown tokens, wrong types) with ERR_INVALID.
 *
 * A tokenizer never changes after open: any number of threads may use one at the same time.
 * Text is UTF-8. Bytes that are no UTF-8 are read as U+FFFD, as a lossy conversion before the call
 * would have left them. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_TOKENIZER_H
#define TRIBUTARY_ENGINE_TOKENIZER_TOKENIZER_H

#include "engine/tokenizer/text_spans.h"
#include "node/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct tokenizer;

enum {
    TOKENIZER_JSON_MAX_BYTES = 256 << 20,
    TOKENIZER_TEXT_MAX_BYTES = 8 << 20, /* one encode; more is ERR_TOO_LARGE */
    TOKENIZER_ID_MAX = (1 << 24) - 1,   /* ids are 0 to this */
};

/* path: a tokenizer.json, or a directory that holds one. */
int tokenizer_open(struct tokenizer **out, const char *path, struct err *err);

/* json [n_bytes]: the contents of a tokenizer.json; not needed after the call. */
int tokenizer_open_memory(struct tokenizer **out, const void *json, size_t n_bytes,
                          struct err *err);

void tokenizer_close(struct tokenizer *t); /* quiet on NULL */

/* ---- ids: a growable list -------------------------------------------------------------------- */

struct token_ids {
    int32_t *ids; /* [n] */
    size_t n, cap;
};
#define TOKEN_IDS_INIT \
    {                  \
        NULL, 0, 0     \
    }

void token_ids_append(struct token_ids *list, int32_t id);
void token_ids_release(struct token_ids *list); /* frees, and returns to TOKEN_IDS_INIT */

/* ---- encode ---------------------------------------------------------------------------------- */

struct tokenizer_encode_options { /* zeroed: plain text, nothing added */
    bool add_special;   /* add what the post-processor adds: usually a begin-of-text token */
    bool parse_special; /* "<|im_end|>" and the like in the text become their special tokens; else
                           they are ordinary characters. Added tokens that the file doesn't call
                           special ("<think>") are always found. */
    /* With parse_special: a special token is not found where it touches one of these spans of the
     * text, which must then be UTF-8. chat_template_render fills them with what came from the
     * messages, so that a user can't write a turn marker. NULL: none. */
    const struct text_spans *literal;
};

/* Appends the ids of text [n_bytes] to *out. options NULL means zeroed. Work is
 * O(n log n) in the length of the text, whatever it holds, and about 40 bytes of memory a byte of
 * it at worst. Fails with ERR_TOO_LARGE, or ERR_INVALID when a pattern of the tokenizer file needs
 * too many steps on this text; *out then holds what it held before. */
int tokenizer_encode(const struct tokenizer *t, struct token_ids *out, const char *text,
                     size_t n_bytes, const struct tokenizer_encode_options *options,
                     struct err *err);

/* ---- decode ---------------------------------------------------------------------------------- */

/* Appends the text of ids [n]. skip_special leaves out special tokens. Ids that name no token
 * stand for nothing. The text is always valid UTF-8: bytes that are not become U+FFFD. */
void tokenizer_decode(const struct tokenizer *t, struct buf *out, const int32_t *ids, size_t n,
                      bool skip_special);

/* Text as it becomes final, for streaming. What all pushes and the flush append, put together, is
 * what tokenizer_decode gives for the whole list; a push never appends a part of a character, nor
 * text that a later id could still change. One thread at a time; the tokenizer must outlive it. */
struct detokenizer;

enum detokenizer_flags {
    DETOKENIZER_SKIP_SPECIAL = 1,
    /* The ids continue a text whose beginning the reader has already (a completion of a prompt): a
     * leading space is kept where a decoder would strip it from the beginning of a text. */
    DETOKENIZER_CONTINUES = 2,
};

struct detokenizer *detokenizer_create(const struct tokenizer *t, unsigned flags);
void detokenizer_push(struct detokenizer *d, struct buf *out, int32_t id);
void detokenizer_flush(struct detokenizer *d, struct buf *out); /* ends the text; d is as created */
size_t detokenizer_pending_bytes(const struct detokenizer *d);  /* held back until more is known */
void detokenizer_free(struct detokenizer *d);                   /* quiet on NULL */
/* Bytes that are not UTF-8 become one U+FFFD each, not one for as many as begin a character. */
bool tokenizer_replaces_bytes(const struct tokenizer *t);

/* ---- the vocabulary -------------------------------------------------------------------------- */

/* One more than the largest id. Not every id below it need have a token. */
int32_t tokenizer_vocab_size(const struct tokenizer *t);

/* The token as the file spells it ("Ġthe", "<0x0A>", "<|im_end|>"), NUL-terminated, with its length
 * in *n_bytes (may be NULL); lives as long as t. NULL when the id names none. */
const char *tokenizer_token(const struct tokenizer *t, int32_t id, size_t *n_bytes);

/* The id of a token as the file spells it, or -1. */
int32_t tokenizer_id(const struct tokenizer *t, const char *token);

/* Appends the bytes that the token stands for inside a text (" the", "\n", "<|im_end|>"); they may
 * be a part of a character. Nothing when the id names no token. */
void tokenizer_token_bytes(const struct tokenizer *t, struct buf *out, int32_t id);

bool tokenizer_is_special(const struct tokenizer *t, int32_t id);

#endif
