/* eval: one rendering. Internal to the room; the door is chat_template.h. */
#ifndef TRIBUTARY_ENGINE_CHAT_TEMPLATE_EVAL_H
#define TRIBUTARY_ENGINE_CHAT_TEMPLATE_EVAL_H

#include "engine/chat_template/ast.h"
#include "engine/chat_template/value.h"
#include "node/base/clock.h"
#include "node/base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    /* Nested expressions, calls and statements. A level takes up to 1 KiB of C stack (gcc 12, -O2),
     * so this needs less than half a megabyte. */
    EVAL_DEPTH_MAX = 400,
    NESTED_VALUES_MAX = 200, /* lists in lists, when printed or compared */
    LIST_MAX = 1000 * 1000,  /* items of a list that an expression makes */
};

struct binding {
    int symbol;
    struct value value;
};

struct scope { /* names bound in a loop's pass, a macro's call, a with block; or of the template */
    struct scope *parent;
    struct binding *bindings; /* [n] */
    size_t n, cap;
};

struct eval {
    const struct template *t;
    struct arena arena;
    struct scope *scope;
    struct builder *out; /* where output goes: the prompt, or what a block captures */
    struct unix_ms now;
    uint64_t steps;
    int depth;
    int line;        /* of the node being evaluated */
    int line_failed; /* of the one that failed */
    bool failed;
    bool raised; /* by the template, in its own words */
    struct err err;
};

static inline bool eval_failed(const struct eval *e)
{
    return e->failed;
}

/* Notes an error, if it is the first, and returns undefined. */
struct value eval_fail(struct eval *e, enum err_code code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
#define eval_error(e, ...) eval_fail(e, ERR_INVALID, __VA_ARGS__)

/* Counts work; fails when there was too much. */
void eval_charge(struct eval *e, size_t n_steps);

/* Memory of the rendering; NULL when there is no more (then it has failed). */
void *eval_alloc(struct eval *e, size_t n, size_t size_bytes);

struct value eval_undefined(struct eval *e, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Fails with what is wrong about using an undefined value; true when v was one. */
bool eval_refuse_undefined(struct eval *e, struct value v);

struct value eval_expression(struct eval *e, const struct node *n);
void eval_template(struct eval *e, const struct template *t);

/* Counts one level more; false, and failed, when it is one too many. Each call is followed by
 * e->depth-- whatever it returned. */
bool eval_enter(struct eval *e);

struct scope *eval_push_scope(struct eval *e, struct scope *parent); /* a new one inside parent */

/* Runs the body and returns what it wrote. */
struct value eval_capture(struct eval *e, const struct node_list *body);

struct args eval_arguments(struct eval *e, const struct argument_list *list);
void args_add_named(struct eval *e, struct args *a, const struct dict_entry *entries, size_t n);
struct value eval_call(struct eval *e, struct value callee, const struct args *args);
struct value eval_call_macro(struct eval *e, const struct macro *m, const struct args *args);
struct value eval_call_function(struct eval *e, const struct function *f, const char *kind,
                                struct value self, const struct args *args);
struct value eval_recurse_loop(struct eval *e, const struct loop *around, struct value items);
void eval_bind(struct eval *e, struct scope *scope, int symbol, struct value value);

/* The value of a[b], and of a.b. */
struct value eval_item(struct eval *e, struct value object, struct value key);
struct value eval_attribute(struct eval *e, struct value object, const struct string *name);
struct value eval_slice(struct eval *e, struct value object, struct value start, struct value stop,
                        struct value step);

/* Binary operators on values. */
struct value eval_operator(struct eval *e, enum operator op, struct value a, struct value b);
bool eval_contains(struct eval *e, struct value container, struct value v);

/* printf in Python's manner: s % args. */
struct value eval_format(struct eval *e, const struct string *format, struct value args);

/* str.format with fields {}, {0} and {name}. */
struct value eval_format_fields(struct eval *e, const struct string *format,
                                const struct args *args);

/* Tables (builtins.c, filters.c, methods.c); NULL when there is no such name. */
const struct function *filter_named(const struct string *name);
const struct function *test_named(const struct string *name);
const struct function *method_named(enum value_type type, const struct string *name,
                                    bool *forbidden);
const struct function *global_named(const struct string *name);

/* Applies a filter or test that a template names. */
struct value eval_filter(struct eval *e, const struct string *name, struct value v,
                         const struct args *args);
bool eval_test(struct eval *e, const struct string *name, struct value v, const struct args *args);

#endif
