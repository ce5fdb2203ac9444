/* utf8: code points in bytes. Shared by the tokenizer and the chat template. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_UTF8_H
#define TRIBUTARY_ENGINE_TOKENIZER_UTF8_H

#include "node/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { UTF8_MAX_BYTES = 4 };

/* Looks at the beginning of bytes [n], n >= 1. Returns
 *   k > 0   the first k bytes are a character
 *   0       all n bytes (at most 3) begin a character whose rest is missing
 *   -k < 0  the first k bytes are no character and begin none: they become one U+FFFD
 * as Unicode 15, 3.9, "substitution of maximal subparts", has it. */
int utf8_scan(const uint8_t *bytes, size_t n);

bool utf8_is_valid(const void *bytes, size_t n);

/* Appends bytes [n] with what is no UTF-8 replaced by U+FFFD. */
void utf8_append_lossy(struct buf *out, const void *bytes, size_t n);

/* The rest take valid UTF-8 only. */

/* Reads the character at *at, which must lie before the end, and moves *at behind it. */
uint32_t utf8_next(const char *text, size_t *at);

/* The first byte of the character that ends at `at`, at > 0. */
size_t utf8_before(const char *text, size_t at);

size_t utf8_char_bytes(uint8_t first_byte); /* length of the character that begins so */
size_t utf8_count(const char *text, size_t n_bytes);

/* Writes code_point, which must be a Unicode scalar value, and returns its length. */
size_t utf8_encode(char out[UTF8_MAX_BYTES], uint32_t code_point);
void utf8_append(struct buf *out, uint32_t code_point);

#endif
