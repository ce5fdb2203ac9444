/* json_util: JSON from strangers, and JSON text written by hand.
 *
 * Reading is strict: one value and nothing after it, valid UTF-8, no \u0000, no lone surrogates, no
 * key twice, at most JSON_DEPTH_MAX levels and JSON_VALUES_MAX values; a sentence says what was
 * wrong and where. Writing goes straight into a buffer: a token's chunk is built a thousand times a
 * second, and needs no tree. */
#ifndef TRIBUTARY_NODE_JSON_UTIL_H
#define TRIBUTARY_NODE_JSON_UTIL_H

#include "node/base/buf.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

enum { JSON_DEPTH_MAX = 32, JSON_VALUES_MAX = 1 << 19 };

/* A new reference, or NULL with ERR_INVALID (or ERR_TOO_LARGE: depth, values). */
json_t *json_parse(const void *bytes, size_t n_bytes, struct err *err);

/* Of a text that json_parse refuses for a \u0000 and nothing else: where it is, "a.b[0].c", cut to
 * the room of path [n_path]. False: there is none, it is the whole text, or more is wrong. */
bool json_find_nul(const void *bytes, size_t n_bytes, char *path, size_t n_path);
/* The same of an integer that 64 bits don't hold. */
bool json_find_big_integer(const void *bytes, size_t n_bytes, char *path, size_t n_path);

/* Appends text [n] as a JSON string with its quotes. Bytes that are no UTF-8 become U+FFFD. */
void json_append_string(struct buf *b, const char *text, size_t n);
void json_append_cstr(struct buf *b, const char *text);
/* The same as a value, for what may have any bytes: a path, a file's name, a sentence with a
 * quotation that was cut in the middle of a character. json_string and json_pack refuse such a
 * text, and then the whole member, or object, is missing. */
json_t *json_text(const char *text);
/* The shortest of up to nine digits that reads back as the same float; null when not finite. */
void json_append_float(struct buf *b, float value);
/* Compact text of a value. */
void json_append_value(struct buf *b, const json_t *value);

/* Length of the UTF-8 character at s [n >= 1], or 0 when it is none (overlong forms, surrogates
 * and values above U+10FFFF included). */
size_t utf8_char_len(const char *s, size_t n);
bool utf8_is_text(const char *text);

#endif
