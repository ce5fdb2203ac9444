/* stop_match: finds stop strings in text that arrives in pieces.
 *
 * Text before a stop is delivered, the stop and what follows it is not. Text that might still
 * become the beginning of a stop is held back until the next piece decides. The answer does not
 * depend on how the text was cut: the stop that is complete first wins, the longest of those that
 * end at the same byte.
 *
 *   stops "END", "."     pieces "th", "e E", "ND x"    delivered "th", "the ", (stop)
 */
#ifndef TRIBUTARY_NODE_STOP_MATCH_H
#define TRIBUTARY_NODE_STOP_MATCH_H

#include "node/base/buf.h"

#include <stdbool.h>
#include <stddef.h>

enum { STOP_MATCH_MAX = 4, STOP_MATCH_BYTES_MAX = 1024 };

struct stop_match;

/* stops [n <= STOP_MATCH_MAX]: NUL-terminated, 1 to STOP_MATCH_BYTES_MAX bytes, whole characters;
 * copied. */
struct stop_match *stop_match_create(const char *const *stops, size_t n);
void stop_match_free(struct stop_match *m); /* quiet on NULL */

/* Takes the next piece; appends to out what is now certain. True: a stop is complete, out has all
 * text before it, and m takes no more pieces. Pieces and what comes out are whole UTF-8 characters.
 */
bool stop_match_push(struct stop_match *m, struct buf *out, const char *piece, size_t n);

/* The text has ended without a stop: appends what was held back. */
void stop_match_flush(struct stop_match *m, struct buf *out);

/* Which stop matched, or -1. */
int stop_match_which(const struct stop_match *m);

#endif
