/* added_tokens: tokens that are found in a text as they stand, before anything else is done. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_ADDED_TOKENS_H
#define TRIBUTARY_ENGINE_TOKENIZER_ADDED_TOKENS_H

#include "engine/tokenizer/json_read.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/strmap.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct pattern;

enum { ADDED_TOKEN_MAX_BYTES = 1024 };

struct added_token {
    int32_t id;
    char *content; /* [n_content] and a NUL */
    size_t n_content;
    char *normalized_content; /* what the normalizer makes of it, when it isn't content; or NULL */
    size_t n_normalized_content;
    bool single_word;    /* not where a word goes on, to its left or right */
    bool lstrip, rstrip; /* swallows white space beside it */
    bool normalized;     /* found in the normalised text, else in the text as it comes */
    bool special;
};

struct trie;

struct added_tokens {
    struct added_token *tokens; /* [n], in the file's order */
    size_t n;
    struct trie *as_is, *normalized; /* what is found when; NULL: nothing */
    struct pattern *word_char;       /* for single_word; NULL when no token has it */
    bool any_normalized_special;
};

/* list: the member "added_tokens". A token that the vocabulary knows must have the id it has there;
 * one that it doesn't know must have an id that is free. */
int added_tokens_read(struct added_tokens *out, const json_t *list, const struct strmap *vocabulary,
                      const struct normalizer *normalizer, struct err *err);
void added_tokens_release(struct added_tokens *a);

/* One part of a text: a token found, or what lies between two. */
struct added_match {
    const struct added_token *token; /* NULL: plain text */
    size_t begin, end;
};

/* Goes through text [n_bytes] from left to right; at each place the longest token wins. */
struct added_search {
    const struct added_tokens *added;
    const struct trie *trie;
    const char *text;
    size_t n_bytes;
    /* Is the special token at [begin, end) of the text to be taken as plain characters? */
    bool (*is_literal)(void *context, size_t begin, size_t end);
    void *context;
    size_t at;          /* the search goes on here */
    size_t plain_begin; /* the plain text not yet handed out begins here */
    struct added_match pending;
    bool has_pending;
};

void added_search_init(struct added_search *s, const struct added_tokens *added, bool normalized,
                       const char *text, size_t n_bytes,
                       bool (*is_literal)(void *context, size_t begin, size_t end), void *context);
bool added_search_next(struct added_search *s, struct added_match *out);

#endif
