/* parser: see parser.h. The entrance, and what every rule uses. */
#include "engine/chat_template/parser.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

/* ---- small things ---------------------------------------------------------------------------- */

void parser_fail(struct parser *p, enum err_code code, int line, const char *format, ...)
{
    if (p->failed)
        return;
    p->failed = true;
    va_list args;
    va_start(args, format);
    err_setv(p->err, code, format, args);
    va_end(args);
    err_wrap(p->err, "line %d", line);
}

void *parser_alloc(struct parser *p, size_t n, size_t size_bytes)
{
    return arena_array(&p->t->arena, n, size_bytes);
}

struct node *node_at(struct parser *p, enum node_kind kind, int line)
{
    struct node *n = parser_alloc(p, 1, sizeof *n);
    n->kind = kind;
    n->line = line;
    return n;
}

struct node *node_new(struct parser *p, enum node_kind kind)
{
    return node_at(p, kind, p->at->line);
}

/* What a failed rule returns: something that can be held, and is never evaluated. */
struct node *node_none(struct parser *p)
{
    struct node *n = node_new(p, NODE_CONST);
    n->as.constant = value_none();
    return n;
}

struct node *parser_unexpected(struct parser *p, const char *wanted)
{
    if (p->at->kind == TOKEN_END)
        parser_fail(p, ERR_INVALID, p->at->line, "the template ends where %s was expected", wanted);
    else
        parser_fail(p, ERR_INVALID, p->at->line, "\"%.*s\" where %s was expected",
                    (int)(p->at->n < 40 ? p->at->n : 40), p->at->text, wanted);
    return node_none(p);
}

/* Lists grow by doubling on the arena: room is made whenever n is a power of two. */
void node_list_add(struct parser *p, struct node_list *list, struct node *n)
{
    if ((list->n & (list->n - 1)) == 0) {
        struct node **grown = parser_alloc(p, list->n == 0 ? 1 : list->n * 2,
                                           sizeof(struct node *));
        if (list->n > 0)
            memcpy(grown, list->nodes, list->n * sizeof *grown);
        list->nodes = grown;
    }
    list->nodes[list->n++] = n;
}

const struct string *parser_string(struct parser *p, const char *bytes, size_t n)
{
    struct string *s = parser_alloc(p, 1, sizeof *s);
    char *copy = parser_alloc(p, n + 1, 1);
    memcpy(copy, bytes, n);
    *s = (struct string){.bytes = copy, .n = n};
    return s;
}

int parser_symbol(struct parser *p, const char *name, size_t n)
{
    int32_t known = strmap_get(&p->t->symbols, name, n);
    if (known >= 0)
        return known;
    int32_t symbol = (int32_t)p->t->symbols.n;
    strmap_put(&p->t->symbols, name, n, symbol);
    return symbol;
}

bool token_is(const struct token *t, const char *text)
{
    return t->n == strlen(text) && memcmp(t->text, text, t->n) == 0;
}

bool at_operator(const struct parser *p, const char *text)
{
    return p->at->kind == TOKEN_OPERATOR && token_is(p->at, text);
}

bool at_word(const struct parser *p, const char *text)
{
    return p->at->kind == TOKEN_NAME && token_is(p->at, text);
}

void parser_advance(struct parser *p)
{
    if (p->at->kind != TOKEN_END)
        p->at++;
}

bool skip_operator(struct parser *p, const char *text)
{
    bool is = at_operator(p, text);
    if (is)
        parser_advance(p);
    return is;
}

bool skip_word(struct parser *p, const char *text)
{
    bool is = at_word(p, text);
    if (is)
        parser_advance(p);
    return is;
}

void expect_operator(struct parser *p, const char *text)
{
    if (!skip_operator(p, text))
        parser_unexpected(p, text);
}

void expect_kind(struct parser *p, enum token_kind kind, const char *what)
{
    if (p->at->kind == kind)
        parser_advance(p);
    else
        parser_unexpected(p, what);
}

const struct string *expect_name(struct parser *p)
{
    const struct token *t = p->at;
    if (t->kind != TOKEN_NAME) {
        parser_unexpected(p, "a name");
        return parser_string(p, "", 0);
    }
    parser_advance(p);
    return parser_string(p, t->text, t->n);
}

bool parser_too_deep(struct parser *p)
{
    if (p->depth < PARSER_DEPTH_MAX)
        return false;
    parser_fail(p, ERR_INVALID, p->at->line, "the template nests deeper than %d", PARSER_DEPTH_MAX);
    return true;
}

/* ---- the whole ------------------------------------------------------------------------------- */

struct template *template_parse(const char *source, size_t n_bytes, struct err *err)
{
    struct template *t = xcalloc(1, sizeof *t);
    struct arena scratch = ARENA_INIT; /* of the tokens */
    struct tokens tokens;
    struct parser p = {.t = t, .err = err};
    int rc = lexer_run(&scratch, &tokens, source, n_bytes, err);
    if (rc == 0) {
        p.at = tokens.tokens;
        t->symbol_loop = parser_symbol(&p, "loop", 4);
        parse_body(&p, &t->body, NULL);
        rc = p.failed ? -1 : 0;
    }
    arena_release(&scratch);
    if (rc != 0) {
        template_free(t);
        return NULL;
    }
    return t;
}

void template_free(struct template *t)
{
    if (t == NULL)
        return;
    strmap_release(&t->symbols);
    arena_release(&t->arena);
    free(t);
}

int template_symbol(const struct template *t, const char *name, size_t n_bytes)
{
    return strmap_get(&t->symbols, name, n_bytes);
}
