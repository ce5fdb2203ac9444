/* decoder: tokens back to text, piece by piece. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_DECODER_H
#define TRIBUTARY_ENGINE_TOKENIZER_DECODER_H

#include "engine/tokenizer/json_read.h"
#include "node/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct decoder;

enum { DECODER_STAGES_MAX = 16 };

/* json: the member "decoder", or NULL: tokens are joined with a space between. */
struct decoder *decoder_read(const json_t *json, struct err *err);
void decoder_free(struct decoder *d); /* quiet on NULL */

/* The state of one text. `struct decoder_stream s = {0};` is the beginning; release when done. */
struct decoder_stream {
    struct decoder_stage {
        struct buf held;   /* bytes that wait for what follows */
        bool begun;        /* something came already */
        size_t n_stripped; /* Strip: characters taken from the beginning */
    } stages[DECODER_STAGES_MAX];
};
void decoder_stream_release(struct decoder_stream *s);

/* The text goes on after one that is read already: nothing is taken from its beginning. */
void decoder_stream_continue(const struct decoder *d, struct decoder_stream *s);

/* Feeds one token as the file spells it; appends what of the text is now final. */
void decoder_push(const struct decoder *d, struct decoder_stream *s, struct buf *out,
                  const char *token, size_t n_bytes);

/* Ends the text and appends its rest; s is at the beginning again. */
void decoder_flush(const struct decoder *d, struct decoder_stream *s, struct buf *out);

size_t decoder_pending_bytes(const struct decoder *d, const struct decoder_stream *s);
bool decoder_replaces_bytes(const struct decoder *d); /* see tokenizer_replaces_bytes */

/* Appends the bytes that one token stands for wherever it occurs, be they UTF-8 or not. */
void decoder_token_bytes(const struct decoder *d, struct buf *out, const char *token,
                         size_t n_bytes);

#endif
