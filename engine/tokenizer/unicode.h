/* unicode: properties of characters and normalisation; the only file that knows utf8proc. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_UNICODE_H
#define TRIBUTARY_ENGINE_TOKENIZER_UNICODE_H

#include "node/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

bool unicode_is_space(uint32_t c);     /* property White_Space */
bool unicode_is_numeric(uint32_t c);   /* categories Nd, Nl, No */
bool unicode_is_letter(uint32_t c);    /* categories L* */
bool unicode_is_printable(uint32_t c); /* what Python's repr() leaves as it is */
bool unicode_is_upper(uint32_t c);
bool unicode_is_lower(uint32_t c);
uint32_t unicode_upper(uint32_t c); /* simple case mapping: one character to one */
uint32_t unicode_lower(uint32_t c);
uint32_t unicode_title(uint32_t c);

/* One step of normalisation: the shortest prefix of text [n_bytes > 0], valid UTF-8, whose form C
 * doesn't depend on what follows it. Appends its form C to *out and returns its length in bytes.
 * Work is O(n log n) over a whole text, also when it is one long run of combining marks. */
size_t unicode_nfc_step(struct buf *out, const char *text, size_t n_bytes);

#endif
