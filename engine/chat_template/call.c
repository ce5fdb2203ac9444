/* call: functions, filters, tests and macros, and how arguments find their parameters.
 *
 * What is written in C names its parameters in one string (value.h, struct function), and gets its
 * arguments in that order, positional and named ones alike, as Python would bind them. A macro's
 * arguments become names in a scope of its own, which lies inside the scope where it was defined;
 * what it writes is its value. */
#include "engine/chat_template/eval.h"

#include "engine/chat_template/filters.h"

#include <string.h>

/* ---- arguments
 * ----------------------------------------------------------------------------------- */

static void add_positional(struct eval *e, struct args *a, const struct value *items, size_t n)
{
    struct value *all = eval_alloc(e, a->n + n, sizeof *all);
    if (all == NULL)
        return;
    for (size_t i = 0; i < a->n + n; i++)
        all[i] = i < a->n ? a->positional[i] : items[i - a->n];
    a->positional = all;
    a->n += n;
}

void args_add_named(struct eval *e, struct args *a, const struct dict_entry *entries, size_t n)
{
    struct dict_entry *all = eval_alloc(e, a->n_named + n, sizeof *all);
    if (all == NULL)
        return;
    for (size_t i = 0; i < a->n_named + n; i++)
        all[i] = i < a->n_named ? a->named[i] : entries[i - a->n_named];
    a->named = all;
    a->n_named += n;
}

struct args eval_arguments(struct eval *e, const struct argument_list *list)
{
    struct args a = {0};
    a.positional = eval_alloc(e, list->positional.n, sizeof *a.positional);
    a.named = eval_alloc(e, list->named.n, sizeof *a.named);
    if (a.positional == NULL || a.named == NULL)
        return a;
    for (; a.n < list->positional.n && !eval_failed(e); a.n++)
        a.positional[a.n] = eval_expression(e, list->positional.nodes[a.n]);
    for (; a.n_named < list->named.n && !eval_failed(e); a.n_named++)
        a.named[a.n_named] = (struct dict_entry){value_string(list->names[a.n_named]),
                                                 eval_expression(e, list->named.nodes[a.n_named])};
    if (list->spread != NULL) {
        struct value items = value_items(e, eval_expression(e, list->spread));
        if (!eval_failed(e))
            add_positional(e, &a, items.as.list->items, items.as.list->n);
    }
    if (list->spread_named != NULL) {
        struct value d = eval_expression(e, list->spread_named);
        if (d.type != VALUE_DICT)
            eval_error(e, "argument after ** must be a mapping, not %s", value_type_name(d));
        else
            args_add_named(e, &a, d.as.dict->entries, d.as.dict->n);
    }
    for (size_t i = 0; i < a.n_named && !eval_failed(e); i++)
        if (a.named[i].key.type != VALUE_STRING)
            eval_error(e, "keywords must be strings");
    return a;
}

/* The next parameter's name in params; *optional when it ends in '?'. */
static size_t next_parameter(const char **params, const char **name, bool *optional)
{
    while (**params == ' ')
        ++*params;
    *name = *params;
    size_t n = strcspn(*params, " ");
    *params += n;
    *optional = n > 0 && (*name)[n - 1] == '?';
    return *optional ? n - 1 : n;
}

struct value eval_call_function(struct eval *e, const struct function *f, const char *kind,
                                struct value self, const struct args *args)
{
    struct value v[PARAMS_MAX + 1] = {self};
    if (eval_failed(e))
        return value_none();
    if (strcmp(f->params, "*") == 0)
        return f->call(e, v, args);
    const char *params = f->params, *name;
    size_t n = 0, n_taken = 0, n_used = 0, len;
    bool optional;
    for (; (len = next_parameter(&params, &name, &optional)) > 0; n++) {
        struct value *slot = &v[n + 1];
        BUG_IF(n == PARAMS_MAX);
        for (size_t i = 0; i < args->n_named; i++) {
            const struct string *key = args->named[i].key.as.string;
            if (key->n == len && memcmp(key->bytes, name, len) == 0) {
                *slot = args->named[i].value;
                n_used++;
            }
        }
        if (n_taken < args->n) {
            if (slot->type != VALUE_ABSENT)
                return eval_error(e, "%s() got multiple values for argument '%.*s'", f->name,
                                  (int)len, name);
            *slot = args->positional[n_taken++];
        } else if (slot->type == VALUE_ABSENT && !optional) {
            return eval_error(e, "%s() missing 1 required positional argument: '%.*s'", f->name,
                              (int)len, name);
        }
    }
    if (n_taken < args->n)
        return eval_error(e, "%s%s() takes %zu arguments but %zu were given", kind, f->name, n,
                          args->n);
    if (n_used < args->n_named)
        return eval_error(e, "%s%s() got an unexpected keyword argument", kind, f->name);
    return f->call(e, v, args);
}

struct value eval_call(struct eval *e, struct value callee, const struct args *args)
{
    if (eval_failed(e))
        return value_none();
    switch (callee.type) {
    case VALUE_FUNCTION:
        return eval_call_function(e, callee.as.function, "", (struct value){0}, args);
    case VALUE_METHOD:
        return eval_call_function(e, callee.as.method->function, "", callee.as.method->self, args);
    case VALUE_MACRO:
        return eval_call_macro(e, callee.as.macro, args);
    case VALUE_LOOP:
        if (args->n != 1 || args->n_named != 0)
            return eval_error(e, "loop() takes one argument");
        return eval_recurse_loop(e, callee.as.loop, args->positional[0]);
    default:
        if (!eval_refuse_undefined(e, callee))
            eval_error(e, "'%s' object is not callable", value_type_name(callee));
        return callee;
    }
}

const struct function *filter_named(const struct string *name)
{
    const struct function *f = filter_of_lists(name);
    return f != NULL ? f : filter_of_texts(name);
}

struct value eval_filter(struct eval *e, const struct string *name, struct value v,
                         const struct args *args)
{
    const struct function *f = filter_named(name);
    if (f == NULL)
        return eval_error(e, "No filter named '%.*s'.", (int)(name->n < 100 ? name->n : 100),
                          name->bytes);
    return eval_call_function(e, f, "filter ", v, args);
}

bool eval_test(struct eval *e, const struct string *name, struct value v, const struct args *args)
{
    const struct function *f = test_named(name);
    if (f == NULL) {
        eval_error(e, "No test named '%.*s'.", (int)(name->n < 100 ? name->n : 100), name->bytes);
        return false;
    }
    return value_truth(eval_call_function(e, f, "test ", v, args));
}

static const struct value *take_named(const struct args *args, const struct string *name)
{
    for (size_t i = 0; i < args->n_named; i++)
        if (string_equal(args->named[i].key.as.string, name))
            return &args->named[i].value;
    return NULL;
}

static bool is_parameter(const struct signature *s, const struct string *name)
{
    for (size_t i = 0; i < s->n; i++)
        if (string_equal(s->names[i], name))
            return true;
    return false;
}

/* Positional arguments beyond the parameters, and named ones that no parameter has, go to varargs
 * and kwargs when the macro's body uses these names; `caller` likewise. */
static void bind_rest(struct eval *e, const struct macro *m, const struct args *args)
{
    static const struct string caller_name = {.bytes = "caller", .n = 6};
    const struct signature *s = &m->node->as.macro.signature;
    const struct string *name = m->node->as.macro.name;
    if (s->caller >= 0 && !is_parameter(s, &caller_name)) {
        const struct value *caller = take_named(args, &caller_name);
        eval_bind(e, e->scope, s->caller,
                  caller != NULL ? *caller : eval_undefined(e, "No caller defined"));
    }
    struct value rest = value_dict(e);
    for (size_t i = 0; i < args->n_named && !eval_failed(e); i++) {
        const struct string *key = args->named[i].key.as.string;
        if (is_parameter(s, key) || (s->caller >= 0 && string_equal(key, &caller_name)))
            continue;
        if (s->kwargs < 0)
            eval_error(e, "macro '%.*s' takes no keyword argument '%.*s'",
                       (int)(name->n < 100 ? name->n : 100), name->bytes,
                       (int)(key->n < 100 ? key->n : 100), key->bytes);
        else
            dict_put(e, rest.as.dict, args->named[i].key, args->named[i].value);
    }
    if (s->kwargs >= 0)
        eval_bind(e, e->scope, s->kwargs, rest);
    size_t extra = args->n > s->n ? args->n - s->n : 0;
    if (s->varargs >= 0) {
        struct value more = value_list(e, VALUE_TUPLE, extra);
        for (size_t i = 0; i < extra && !eval_failed(e); i++)
            more.as.list->items[i] = args->positional[s->n + i];
        eval_bind(e, e->scope, s->varargs, more);
    } else if (extra > 0) {
        eval_error(e, "macro '%.*s' takes not more than %zu argument(s)",
                   (int)(name->n < 100 ? name->n : 100), name->bytes, s->n);
    }
}

struct value eval_call_macro(struct eval *e, const struct macro *m, const struct args *args)
{
    const struct signature *s = &m->node->as.macro.signature;
    struct scope *outer = e->scope;
    struct value result = value_none();
    if (eval_enter(e)) {
        e->scope = eval_push_scope(e, m->scope);
        size_t n_required = s->n - s->defaults.n;
        for (size_t i = 0; i < s->n && !eval_failed(e); i++) {
            const struct value *named = i < args->n ? NULL : take_named(args, s->names[i]);
            struct value v;
            if (i < args->n)
                v = args->positional[i];
            else if (named != NULL)
                v = *named;
            else if (i >= n_required) /* may use the parameters before it */
                v = eval_expression(e, s->defaults.nodes[i - n_required]);
            else
                v = eval_undefined(e, "parameter '%.*s' was not provided",
                                   (int)(s->names[i]->n < 100 ? s->names[i]->n : 100),
                                   s->names[i]->bytes);
            eval_bind(e, e->scope, s->symbols[i], v);
        }
        bind_rest(e, m, args);
        if (!eval_failed(e))
            result = eval_capture(e, &m->node->as.macro.body);
        e->scope = outer;
    }
    e->depth--;
    return result;
}
