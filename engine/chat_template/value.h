/* value: what template expressions evaluate to. Python's types, as far as templates meet them.
 *
 * Values are immutable but for namespaces and iterators' positions; all memory is the arena of one
 * rendering (or of the template, for its literals). A string remembers which of its bytes came from
 * the request (`input`), through every operation, so that the tokenizer can be told.
 *
 * Errors are sticky: an operation that fails notes the first error in the rendering (eval.h) and
 * returns undefined; loops look at eval_failed and end. */
#ifndef TRIBUTARY_ENGINE_CHAT_TEMPLATE_VALUE_H
#define TRIBUTARY_ENGINE_CHAT_TEMPLATE_VALUE_H

#include "node/base/arena.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct eval;
struct node;
struct scope;

enum value_type {
    VALUE_ABSENT, /* an argument that was not given; never the value of an expression */
    VALUE_UNDEFINED,
    VALUE_NONE,
    VALUE_BOOL,
    VALUE_INT,
    VALUE_FLOAT,
    VALUE_STRING,
    VALUE_LIST,
    VALUE_TUPLE,
    VALUE_RANGE,    /* a list that prints as range(...) */
    VALUE_VIEW,     /* dict.items() and the like: a list without elements to index */
    VALUE_ITERATOR, /* what a generator is to Python: can be gone through once */
    VALUE_DICT,
    VALUE_NAMESPACE,
    VALUE_FUNCTION, /* a global */
    VALUE_METHOD,   /* "abc".upper */
    VALUE_MACRO,
    VALUE_LOOP,
};

struct string {
    const char *bytes; /* [n], UTF-8 */
    size_t n;
    bool all_input;       /* every byte came from the request */
    const uint8_t *input; /* [n] 1: came from the request; NULL: all or none, as all_input says */
};

struct value {
    enum value_type type;
    union {
        bool boolean;
        int64_t integer;
        double real;
        const struct string *string;
        struct list *list; /* LIST, TUPLE, RANGE, VIEW, ITERATOR */
        struct dict *dict; /* DICT, NAMESPACE */
        const struct undefined *undefined;
        const struct function *function;
        struct method *method;
        struct macro *macro;
        struct loop *loop;
    } as;
};

struct list {
    struct value *items; /* [n] */
    size_t n;
    size_t at;                 /* ITERATOR: items gone through */
    const char *name;          /* VIEW, ITERATOR: Python's name of the type */
    int64_t start, stop, step; /* RANGE: as written */
};

struct dict_entry {
    struct value key, value;
};

struct dict {
    struct dict_entry *entries; /* [n], in order of insertion */
    size_t n, cap;
};

struct undefined {
    const char *message; /* what is raised when it is used */
};

/* Arguments of a call. */
struct args {
    struct value *positional; /* [n] */
    size_t n;
    struct dict_entry *named; /* [n_named]; keys are strings */
    size_t n_named;
};

/* A filter, test, method or global function written in C. params names its parameters after the
 * first (the value filtered or tested, the object of a method), separated by spaces; a '?' behind
 * one says that it may be missing. "*" alone: call gets the arguments as they came. */
struct function {
    const char *name;
    const char *params;
    /* v[0] is the first parameter (ABSENT for globals), v[1..] those of params. */
    struct value (*call)(struct eval *e, const struct value *v, const struct args *args);
    unsigned types; /* methods: bit 1 << enum value_type for each type that has it */
};

enum { PARAMS_MAX = 8 };

struct method {
    struct value self;
    const struct function *function;
};

struct macro {
    const struct node *node; /* NODE_MACRO or NODE_CALL_BLOCK */
    struct scope *scope;     /* where it was defined */
};

struct loop {
    const struct node *node; /* NODE_FOR */
    struct scope *scope;     /* around the loop */
    struct value *items;     /* [n] */
    size_t n, at;
    size_t depth;         /* of recursion, from 0 */
    struct value changed; /* arguments of the last loop.changed(...); ABSENT at first */
};

/* ---- making ---------------------------------------------------------------------------------- */

static inline struct value value_none(void)
{
    return (struct value){.type = VALUE_NONE};
}
static inline struct value value_bool(bool b)
{
    return (struct value){.type = VALUE_BOOL, .as.boolean = b};
}
static inline struct value value_int(int64_t i)
{
    return (struct value){.type = VALUE_INT, .as.integer = i};
}
static inline struct value value_float(double f)
{
    return (struct value){.type = VALUE_FLOAT, .as.real = f};
}
static inline struct value value_string(const struct string *s)
{
    return (struct value){.type = VALUE_STRING, .as.string = s};
}
static inline bool value_is_list(struct value v)
{
    return v.type >= VALUE_LIST && v.type <= VALUE_ITERATOR;
}

/* A string of the template's own (not of the request); text is copied. */
struct value value_text(struct eval *e, const char *text);
struct value value_textf(struct eval *e, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* bytes [begin, end) of s. */
const struct string *string_slice(struct eval *e, const struct string *s, size_t begin, size_t end);

struct value value_list(struct eval *e, enum value_type type,
                        size_t n); /* n items, undefined yet */
struct value value_iterator(struct eval *e, struct value list, const char *name);
struct value value_dict(struct eval *e);
void dict_put(struct eval *e, struct dict *d, struct value key, struct value value);
const struct value *dict_get(struct eval *e, const struct dict *d, struct value key); /* or NULL */
const struct value *dict_get_text(const struct dict *d, const char *key);

/* ---- building strings ------------------------------------------------------------------------ */

struct builder { /* grows on the arena; {0} is empty */
    char *bytes;
    uint8_t *input;
    size_t n, cap;
    bool any_input;
};
void builder_put(struct eval *e, struct builder *b, const struct string *s);
void builder_put_bytes(struct eval *e, struct builder *b, const char *bytes, size_t n, bool input);
void builder_put_text(struct eval *e, struct builder *b, const char *text);
const struct string *builder_string(struct eval *e, const struct builder *b); /* b is then done */

/* ---- looking at values ----------------------------------------------------------------------- */

const char *value_type_name(struct value v); /* Python's: "NoneType", "str", ... */
bool value_truth(struct value v);
bool value_equal(struct eval *e, struct value a, struct value b);
bool string_equal(const struct string *a, const struct string *b);
bool string_is(const struct string *s, const char *text);

/* -1, 0, 1, for < and sorting; fails when the types have no order. */
int value_compare(struct eval *e, struct value a, struct value b, const char *operator);

/* bool, int and float as a number. */
bool value_is_number(struct value v);
double value_real(struct value v);
bool value_as_int(struct value v, int64_t *out); /* bool and int */

/* The items of anything that can be gone through, as a LIST (an iterator is used up). Fails with
 * Python's words otherwise. */
struct value value_items(struct eval *e, struct value v);

/* len(); fails when v has none. */
int64_t value_length(struct eval *e, struct value v);

/* str() and repr(). */
const struct string *value_str(struct eval *e, struct value v);
void value_put_str(struct eval *e, struct builder *b, struct value v);
void value_put_repr(struct eval *e, struct builder *b, struct value v, int depth);

/* json.dumps with ensure_ascii, indent (< 0: none), separators and sort_keys. */
struct json_style {
    bool ensure_ascii, sort_keys;
    int indent;
    const struct string *indent_text; /* instead of so many spaces; may be NULL */
    const struct string *item_separator, *key_separator; /* NULL: Python's */
};
void value_put_json(struct eval *e, struct builder *b, struct value v, const struct json_style *s,
                    int depth);

#endif
