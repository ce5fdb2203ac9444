/* normalizer: what is done to a text before it is cut into words. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_NORMALIZER_H
#define TRIBUTARY_ENGINE_TOKENIZER_NORMALIZER_H

#include "engine/tokenizer/json_read.h"
#include "node/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct normalizer;

enum { NORMALIZED_MAX_BYTES = 64 << 20 };

struct normalized {
    struct buf text;
    /* [text.len + 1] where in the original each byte comes from, ascending; the last is the
     * original's length. Only when with_origin was set before normalizer_apply. */
    uint32_t *origin;
    size_t cap_origin;
    bool with_origin;
};
#define NORMALIZED_INIT          \
    {                            \
        BUF_INIT, NULL, 0, false \
    }

/* json: the member "normalizer", or NULL: nothing is done. */
struct normalizer *normalizer_read(const json_t *json, struct err *err);
void normalizer_free(struct normalizer *n); /* quiet on NULL */
bool normalizer_is_empty(const struct normalizer *n);

/* Replaces *out by what becomes of text [n_bytes], valid UTF-8 of at most 4 GiB. Fails with
 * ERR_TOO_LARGE beyond NORMALIZED_MAX_BYTES. n may be NULL: a copy. */
int normalizer_apply(const struct normalizer *n, struct normalized *out, const char *text,
                     size_t n_bytes, struct err *err);
void normalized_release(struct normalized *t);

#endif
