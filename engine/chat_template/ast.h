/* ast: a parsed template. */
#ifndef TRIBUTARY_ENGINE_CHAT_TEMPLATE_AST_H
#define TRIBUTARY_ENGINE_CHAT_TEMPLATE_AST_H

#include "engine/chat_template/value.h"
#include "engine/tokenizer/strmap.h"
#include "node/base/arena.h"

#include <stdbool.h>
#include <stddef.h>

struct err;

enum operator{
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOORDIV,
    OP_MOD,
    OP_POW,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN,
};

struct node_list {
    struct node **nodes; /* [n] */
    size_t n;
};

struct argument_list { /* f(positional, name=value, *spread, **spread_named) */
    struct node_list positional;
    struct node_list named;             /* the values */
    const struct string **names;        /* [named.n] */
    struct node *spread, *spread_named; /* or NULL */
};

struct signature {               /* of a macro or a call block */
    int *symbols;                /* [n] of the parameters */
    const struct string **names; /* [n] */
    size_t n;
    struct node_list defaults; /* of the last defaults.n parameters */
    /* Symbols of the special names, or -1 where the body doesn't use them. */
    int caller, varargs, kwargs;
};

enum node_kind {
    /* expressions */
    NODE_CONST,
    NODE_NAME,
    NODE_ATTRIBUTE, /* left.name */
    NODE_ITEM,      /* left[right] */
    NODE_SLICE,     /* left[start:stop:step] */
    NODE_CALL,
    NODE_FILTER,
    NODE_TEST,
    NODE_LIST,
    NODE_TUPLE,
    NODE_DICT,
    NODE_OPERATOR, /* left op right */
    NODE_COMPARE,  /* a < b <= c */
    NODE_CONCAT,   /* a ~ b ~ c */
    NODE_AND,
    NODE_OR,
    NODE_NOT,
    NODE_NEGATE,
    NODE_PLUS,
    NODE_CONDITIONAL,   /* left if test else right */
    NODE_NAMESPACE_REF, /* name.attribute, as the target of a set */
    /* statements */
    NODE_TEXT,
    NODE_OUTPUT,
    NODE_IF,
    NODE_FOR,
    NODE_SET,
    NODE_SET_BLOCK,
    NODE_MACRO,
    NODE_CALL_BLOCK,
    NODE_FILTER_BLOCK,
    NODE_WITH,
    NODE_SCOPED, /* generation: a block with names of its own */
    NODE_BREAK,
    NODE_CONTINUE,
};

struct node {
    enum node_kind kind;
    int line;
    union {
        struct value constant;
        struct {
            int symbol;
            const struct string *name;
        } name;
        struct {
            struct node *left, *right, *test; /* right may be NULL: no else */
            enum operator op;
            const struct string *name; /* ATTRIBUTE */
        } binary; /* ATTRIBUTE, ITEM, OPERATOR, AND, OR, NOT, NEGATE, PLUS (left), CONDITIONAL */
        struct {
            struct node *left, *start, *stop, *step; /* the last three may be NULL */
        } slice;
        struct {
            struct node *callee;       /* CALL: the function; FILTER, TEST: the value, NULL in the
                                          filter of a block */
            const struct string *name; /* FILTER, TEST */
            struct argument_list args;
        } call;
        struct {
            struct node_list items;  /* LIST, TUPLE, CONCAT; COMPARE: the operands */
            struct node_list values; /* DICT: items are the keys */
            enum operator* ops;      /* COMPARE [items.n - 1] */
        } sequence;
        struct {
            int symbol;
            const struct string *attribute;
        } namespace_ref;
        const struct string *text;
        struct node *output;
        struct {
            struct node *test;
            struct node_list body, otherwise; /* an elif is an IF that is all of otherwise */
        } branch;
        struct {
            struct node *target, *items, *test; /* test may be NULL */
            struct node_list body, otherwise;
            bool recursive;
        } loop;
        struct {
            struct node *target, *value; /* SET */
            struct node *filter;         /* SET_BLOCK: applied to the captured text; or NULL */
            struct node_list body;       /* SET_BLOCK */
        } set;
        struct {
            int symbol;
            const struct string *name; /* MACRO */
            struct signature signature;
            struct node *call; /* CALL_BLOCK: whose `caller` the body is */
            struct node_list body;
        } macro;
        struct {
            struct node *filter;
            struct node_list targets, values; /* WITH */
            struct node_list body;
        } block; /* FILTER_BLOCK, WITH, SCOPED */
    } as;
};

struct template
{
    struct arena arena; /* of everything below */
    struct node_list body;
    struct strmap symbols; /* the names that occur, to their numbers */
    int symbol_loop;       /* of "loop" */
};

/* Parses source [n_bytes], UTF-8. Fails with ERR_INVALID or ERR_UNSUPPORTED and names the line. */
struct template *template_parse(const char *source, size_t n_bytes, struct err *err);
void template_free(struct template *t); /* quiet on NULL */

/* The number of a name that occurs in the template, or -1. */
int template_symbol(const struct template *t, const char *name, size_t n_bytes);

#endif
