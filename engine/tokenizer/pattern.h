/* pattern: what a tokenizer file searches for: a literal string, or a regular expression in
 * Oniguruma's dialect, which is the one tokenizer files are written in.
 *
 * A pattern never changes after it was made; any number of threads may search with it. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_PATTERN_H
#define TRIBUTARY_ENGINE_TOKENIZER_PATTERN_H

#include "engine/tokenizer/json_read.h"

#include <stdbool.h>
#include <stddef.h>

struct err;
struct pattern;

enum { PATTERN_MAX_BYTES = 16384 };

/* Fails with ERR_INVALID when the expression is malformed, and with ERR_UNSUPPORTED, naming the
 * construct, when it means something in Oniguruma that PCRE2 can't be told to do. */
struct pattern *pattern_regex(const char *source, size_t n_bytes, struct err *err);
struct pattern *pattern_literal(const char *text, size_t n_bytes);

/* The member "pattern" of a tokenizer file's object: {"String": s}, {"Regex": r}. */
struct pattern *pattern_read(const json_t *object, const char *where, struct err *err);

void pattern_free(struct pattern *p); /* quiet on NULL */

/* The string of a literal pattern, its length in *n_bytes; NULL for a regular expression. */
const char *pattern_literal_text(const struct pattern *p, size_t *n_bytes);

/* All matches in text [n_bytes], valid UTF-8, from left to right, not overlapping. */
struct pattern_search {
    const struct pattern *pattern;
    const char *text;
    size_t n_bytes;
    size_t at;       /* where the search goes on */
    size_t last_end; /* of the last match */
    bool matched;    /* there was one */
    void *scratch;
};

void pattern_search_init(struct pattern_search *s, const struct pattern *p, const char *text,
                         size_t n_bytes);

/* Returns 1 and the next match [*begin, *end), which may be empty, 0 when there are no more, or -1
 * when the expression needs too many steps on this text. */
int pattern_search_next(struct pattern_search *s, size_t *begin, size_t *end, struct err *err);
void pattern_search_release(struct pattern_search *s);

#endif
