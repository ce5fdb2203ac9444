/* parser: what the two halves of the parser share. The door is ast.h.
 *
 * A rule reads from p->at on and leaves p->at behind what it read. Errors are sticky: the first one
 * is kept, and rules go on to return something that can be held, and is never evaluated; loops look
 * at p->failed. */
#ifndef TRIBUTARY_ENGINE_CHAT_TEMPLATE_PARSER_H
#define TRIBUTARY_ENGINE_CHAT_TEMPLATE_PARSER_H

#include "engine/chat_template/ast.h"
#include "engine/chat_template/lexer.h"
#include "node/base/err.h"

#include <stdbool.h>
#include <stddef.h>

enum { PARSER_DEPTH_MAX = 200 };

struct parser {
    struct template *t;
    struct token *at;
    int depth;
    int loops; /* open for loops in this macro: break and continue need one */
    bool failed;
    struct err *err;
    struct signature *signature; /* of the innermost macro or call block, for caller and the like */
};

/* ---- errors ---------------------------------------------------------------------------------- */

void parser_fail(struct parser *p, enum err_code code, int line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
struct node *parser_unexpected(struct parser *p, const char *wanted); /* fails at p->at */
bool parser_too_deep(struct parser *p);                               /* then it has failed */

/* ---- nodes, on the template's arena ---------------------------------------------------------- */

void *parser_alloc(struct parser *p, size_t n, size_t size_bytes);
struct node *node_new(struct parser *p, enum node_kind kind); /* of the line of p->at */
struct node *node_at(struct parser *p, enum node_kind kind, int line);
struct node *node_none(struct parser *p); /* what a failed rule returns */
void node_list_add(struct parser *p, struct node_list *list, struct node *n);
const struct string *parser_string(struct parser *p, const char *bytes, size_t n);
int parser_symbol(struct parser *p, const char *name, size_t n);

/* ---- tokens ---------------------------------------------------------------------------------- */

bool token_is(const struct token *t, const char *text);
bool at_operator(const struct parser *p, const char *text);
bool at_word(const struct parser *p, const char *text);
void parser_advance(struct parser *p); /* stays at the end */
bool skip_operator(struct parser *p, const char *text);
bool skip_word(struct parser *p, const char *text);
void expect_operator(struct parser *p, const char *text);
void expect_kind(struct parser *p, enum token_kind kind, const char *what);
const struct string *expect_name(struct parser *p);

/* ---- rules: parse_expression.c --------------------------------------------------------------- */

struct node *parse_expression(struct parser *p);

/* Expressions with commas between are a tuple, one alone is itself. end_word (may be NULL) ends the
 * list, as the end of a tag and a closing bracket do. */
struct node *parse_tuple(struct parser *p, bool allow_conditional, const char *end_word,
                         bool in_parentheses);
struct node *parse_name(struct parser *p); /* or true, false, none */

/* A filter's name and arguments, applied to value; NULL: to what a block captures. */
struct node *parse_filter(struct parser *p, struct node *value);

/* ---- rules: parse_statement.c ---------------------------------------------------------------- */

/* Statements until a tag that begins with one of the words (NULL: until the end). That tag's word
 * is not skipped. */
void parse_body(struct parser *p, struct node_list *body, const char *const *until);

#endif
