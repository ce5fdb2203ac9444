/* lexer: template source to tokens. */
#ifndef TRIBUTARY_ENGINE_CHAT_TEMPLATE_LEXER_H
#define TRIBUTARY_ENGINE_CHAT_TEMPLATE_LEXER_H

#include "node/base/arena.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

enum token_kind {
    TOKEN_END,
    TOKEN_TEXT,           /* between tags */
    TOKEN_BLOCK_BEGIN,    /* {% */
    TOKEN_BLOCK_END,      /* %} */
    TOKEN_VARIABLE_BEGIN, /* {{ */
    TOKEN_VARIABLE_END,   /* }} */
    TOKEN_NAME,
    TOKEN_STRING, /* text: what it means */
    TOKEN_INTEGER,
    TOKEN_FLOAT,
    TOKEN_OPERATOR, /* text: + - / // * % ** ~ [ ] ( ) { } == != > >= < <= = . : | , ; */
};

struct token {
    enum token_kind kind;
    int line;
    const char *text; /* [n] */
    size_t n;
    int64_t integer;
    double real;
};

struct tokens {
    struct token *tokens; /* [n], the last is TOKEN_END */
    size_t n, cap;
};

/* On the arena. Fails with ERR_INVALID and names the line. */
int lexer_run(struct arena *arena, struct tokens *out, const char *source, size_t n_bytes,
              struct err *err);

#endif
