/* eval: a template's statements and expressions; see eval.h.
 *
 * A tree walk. Expressions give values, statements append to e->out and say whether the loop around
 * them goes on. Names live in scopes, innermost first: a loop's pass, a macro's call, a with block
 * have their own, an if has not. So what is set inside a loop is gone after it, as in Jinja, unless
 * it was set on a namespace. A macro sees the scope in which it was defined.
 *
 * Every node, pass and byte is charged (eval_charge), depth is counted, memory is the rendering's
 * arena: a rendering ends, in bounded time and space, whatever the template and the request hold.
 */
#include "engine/chat_template/eval.h"

#include "engine/chat_template/chat_template.h"
#include "engine/chat_template/filters.h"
#include "node/base/buf.h"

#include <stdio.h>
#include <string.h>

enum flow { FLOW_ON, FLOW_BREAK, FLOW_CONTINUE };

static enum flow run(struct eval *e, const struct node_list *body);

/* ---- errors, work, memory -------------------------------------------------------------------- */

struct value eval_fail(struct eval *e, enum err_code code, const char *format, ...)
{
    if (!e->failed) {
        e->failed = true;
        e->line_failed = e->line;
        va_list args;
        va_start(args, format);
        err_setv(&e->err, code, format, args);
        va_end(args);
    }
    static const struct undefined failed = {"the rendering failed"};
    return (struct value){.type = VALUE_UNDEFINED, .as.undefined = &failed};
}

void eval_charge(struct eval *e, size_t n_steps)
{
    e->steps += n_steps;
    if (e->steps > CHAT_TEMPLATE_STEPS_MAX)
        eval_fail(e, ERR_TOO_LARGE, "rendering takes more than %d steps", CHAT_TEMPLATE_STEPS_MAX);
}

void *eval_alloc(struct eval *e, size_t n, size_t size_bytes)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size_bytes, &bytes) ||
        bytes > CHAT_TEMPLATE_MEMORY_MAX_BYTES - e->arena.used_bytes) {
        eval_fail(e, ERR_TOO_LARGE, "rendering takes more than %d bytes of memory",
                  CHAT_TEMPLATE_MEMORY_MAX_BYTES);
        return NULL;
    }
    return arena_alloc(&e->arena, bytes);
}

struct value eval_undefined(struct eval *e, const char *format, ...)
{
    struct buf b = BUF_INIT;
    va_list args;
    va_start(args, format);
    buf_appendfv(&b, format, args);
    va_end(args);
    struct undefined *u = eval_alloc(e, 1, sizeof *u);
    char *message = eval_alloc(e, b.len + 1, 1);
    struct value v = {.type = VALUE_UNDEFINED, .as.undefined = u};
    if (u == NULL || message == NULL) {
        v = eval_fail(e, ERR_TOO_LARGE, "no memory");
    } else {
        memcpy(message, buf_cstr(&b), b.len);
        u->message = message;
    }
    buf_release(&b);
    return v;
}

bool eval_refuse_undefined(struct eval *e, struct value v)
{
    if (v.type != VALUE_UNDEFINED)
        return false;
    eval_error(e, "%s", v.as.undefined->message);
    return true;
}

/* ---- names ----------------------------------------------------------------------------------- */

void eval_bind(struct eval *e, struct scope *scope, int symbol, struct value value)
{
    eval_charge(e, 1);
    for (size_t i = 0; i < scope->n; i++) {
        if (scope->bindings[i].symbol == symbol) {
            scope->bindings[i].value = value;
            return;
        }
    }
    if (scope->n == scope->cap) {
        size_t cap = scope->cap == 0 ? 4 : scope->cap * 2;
        struct binding *grown = eval_alloc(e, cap, sizeof *grown);
        if (grown == NULL)
            return;
        if (scope->n > 0)
            memcpy(grown, scope->bindings, scope->n * sizeof *grown);
        scope->bindings = grown;
        scope->cap = cap;
    }
    scope->bindings[scope->n++] = (struct binding){symbol, value};
}

static const struct value *find(struct eval *e, int symbol)
{
    for (const struct scope *s = e->scope; s != NULL; s = s->parent) {
        eval_charge(e, s->n / 4);
        for (size_t i = 0; i < s->n; i++)
            if (s->bindings[i].symbol == symbol)
                return &s->bindings[i].value;
    }
    return NULL;
}

static struct scope *push_scope(struct eval *e, struct scope *parent)
{
    struct scope *s = eval_alloc(e, 1, sizeof *s);
    if (s == NULL)
        return parent;
    s->parent = parent;
    return s;
}

static struct value name_value(struct eval *e, const struct node *n)
{
    const struct value *v = find(e, n->as.name.symbol);
    if (v != NULL)
        return *v;
    const struct function *f = global_named(n->as.name.name);
    if (f != NULL)
        return (struct value){.type = VALUE_FUNCTION, .as.function = f};
    return eval_undefined(e, "'%.*s' is undefined",
                          (int)(n->as.name.name->n < 200 ? n->as.name.name->n : 200),
                          n->as.name.name->bytes);
}

/* Gives names to a value: one, or a tuple's to its items. */
static void assign(struct eval *e, const struct node *target, struct value value)
{
    if (target->kind == NODE_NAME) {
        eval_bind(e, e->scope, target->as.name.symbol, value);
    } else if (target->kind == NODE_NAMESPACE_REF) {
        const struct value *ns = find(e, target->as.namespace_ref.symbol);
        if (ns == NULL || ns->type != VALUE_NAMESPACE)
            eval_error(e, "cannot assign attribute on non-namespace object");
        else
            dict_put(e, ns->as.dict, value_string(target->as.namespace_ref.attribute), value);
    } else {
        const struct node_list *targets = &target->as.sequence.items;
        if (!value_is_list(value) && value.type != VALUE_STRING && value.type != VALUE_DICT &&
            value.type != VALUE_UNDEFINED)
            eval_error(e, "cannot unpack non-iterable %s object", value_type_name(value));
        struct value items = value_items(e, value);
        if (eval_failed(e))
            return;
        if (items.as.list->n != targets->n) {
            if (items.as.list->n > targets->n)
                eval_error(e, "too many values to unpack (expected %zu)", targets->n);
            else
                eval_error(e, "not enough values to unpack (expected %zu, got %zu)", targets->n,
                           items.as.list->n);
            return;
        }
        for (size_t i = 0; i < targets->n && !eval_failed(e); i++)
            assign(e, targets->nodes[i], items.as.list->items[i]);
    }
}

/* ---- calls ----------------------------------------------------------------------------------- */

static struct value nested(struct eval *e, const struct node *n)
{
    return eval_expression(e, n);
}

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

static void add_named(struct eval *e, struct args *a, const struct dict_entry *entries, size_t n)
{
    struct dict_entry *all = eval_alloc(e, a->n_named + n, sizeof *all);
    if (all == NULL)
        return;
    for (size_t i = 0; i < a->n_named + n; i++)
        all[i] = i < a->n_named ? a->named[i] : entries[i - a->n_named];
    a->named = all;
    a->n_named += n;
}

static struct args evaluate_arguments(struct eval *e, const struct argument_list *list)
{
    struct args a = {0};
    a.positional = eval_alloc(e, list->positional.n, sizeof *a.positional);
    a.named = eval_alloc(e, list->named.n, sizeof *a.named);
    if (a.positional == NULL || a.named == NULL)
        return a;
    for (; a.n < list->positional.n && !eval_failed(e); a.n++)
        a.positional[a.n] = nested(e, list->positional.nodes[a.n]);
    for (; a.n_named < list->named.n && !eval_failed(e); a.n_named++)
        a.named[a.n_named] = (struct dict_entry){value_string(list->names[a.n_named]),
                                                 nested(e, list->named.nodes[a.n_named])};
    if (list->spread != NULL) {
        struct value items = value_items(e, nested(e, list->spread));
        if (!eval_failed(e))
            add_positional(e, &a, items.as.list->items, items.as.list->n);
    }
    if (list->spread_named != NULL) {
        struct value d = nested(e, list->spread_named);
        if (d.type != VALUE_DICT)
            eval_error(e, "argument after ** must be a mapping, not %s", value_type_name(d));
        else
            add_named(e, &a, d.as.dict->entries, d.as.dict->n);
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

static bool enter(struct eval *e)
{
    if (e->depth >= EVAL_DEPTH_MAX)
        eval_error(e, "the rendering nests deeper than %d", EVAL_DEPTH_MAX);
    e->depth++;
    return !eval_failed(e);
}

/* Runs the body and returns what it wrote. */
static struct value capture(struct eval *e, const struct node_list *body)
{
    struct builder text = {0}, *out = e->out;
    e->out = &text;
    run(e, body);
    e->out = out;
    return value_string(builder_string(e, &text));
}

struct value eval_call_macro(struct eval *e, const struct macro *m, const struct args *args)
{
    const struct signature *s = &m->node->as.macro.signature;
    struct scope *outer = e->scope;
    struct value result = value_none();
    if (enter(e)) {
        e->scope = push_scope(e, m->scope);
        size_t n_required = s->n - s->defaults.n;
        for (size_t i = 0; i < s->n && !eval_failed(e); i++) {
            const struct value *named = i < args->n ? NULL : take_named(args, s->names[i]);
            struct value v;
            if (i < args->n)
                v = args->positional[i];
            else if (named != NULL)
                v = *named;
            else if (i >= n_required) /* may use the parameters before it */
                v = nested(e, s->defaults.nodes[i - n_required]);
            else
                v = eval_undefined(e, "parameter '%.*s' was not provided",
                                   (int)(s->names[i]->n < 100 ? s->names[i]->n : 100),
                                   s->names[i]->bytes);
            eval_bind(e, e->scope, s->symbols[i], v);
        }
        bind_rest(e, m, args);
        if (!eval_failed(e))
            result = capture(e, &m->node->as.macro.body);
        e->scope = outer;
    }
    e->depth--;
    return result;
}

static struct value make_macro(struct eval *e, const struct node *n)
{
    struct macro *m = eval_alloc(e, 1, sizeof *m);
    if (m == NULL)
        return value_none();
    *m = (struct macro){n, e->scope};
    return (struct value){.type = VALUE_MACRO, .as.macro = m};
}

/* ---- expressions ----------------------------------------------------------------------------- */

static struct value compare_chain(struct eval *e, const struct node *n)
{
    const struct node_list *items = &n->as.sequence.items;
    struct value left = nested(e, items->nodes[0]), result = value_bool(true);
    for (size_t i = 1; i < items->n && !eval_failed(e); i++) {
        struct value right = nested(e, items->nodes[i]);
        result = eval_operator(e, n->as.sequence.ops[i - 1], left, right);
        if (!value_truth(result))
            break;
        left = right;
    }
    return result;
}

static struct value make_list(struct eval *e, const struct node *n, enum value_type type)
{
    const struct node_list *items = &n->as.sequence.items;
    struct value v = value_list(e, type, items->n);
    for (size_t i = 0; i < items->n && !eval_failed(e); i++)
        v.as.list->items[i] = nested(e, items->nodes[i]);
    return v;
}

static struct value make_dict(struct eval *e, const struct node *n)
{
    struct value v = value_dict(e);
    for (size_t i = 0; i < n->as.sequence.items.n && !eval_failed(e); i++) {
        struct value key = nested(e, n->as.sequence.items.nodes[i]);
        if (key.type == VALUE_LIST || key.type == VALUE_DICT)
            return eval_error(e, "unhashable type: '%s'", value_type_name(key));
        dict_put(e, v.as.dict, key, nested(e, n->as.sequence.values.nodes[i]));
    }
    return v;
}

static struct value concat(struct eval *e, const struct node *n)
{
    struct builder b = {0};
    for (size_t i = 0; i < n->as.sequence.items.n && !eval_failed(e); i++)
        value_put_str(e, &b, nested(e, n->as.sequence.items.nodes[i]));
    return value_string(builder_string(e, &b));
}

static struct value negate(struct eval *e, struct value v, bool minus)
{
    int64_t i;
    if (eval_refuse_undefined(e, v))
        return v;
    if (v.type == VALUE_FLOAT)
        return value_float(minus ? -v.as.real : v.as.real);
    if (!value_as_int(v, &i))
        return eval_error(e, "bad operand type for unary %c: '%s'", minus ? '-' : '+',
                          value_type_name(v));
    return minus ? eval_operator(e, OP_SUB, value_int(0), value_int(i)) : value_int(i);
}

static struct value or_none(struct eval *e, const struct node *n)
{
    return n == NULL ? value_none() : nested(e, n);
}

static struct value conditional(struct eval *e, const struct node *n)
{
    if (value_truth(nested(e, n->as.binary.test)))
        return nested(e, n->as.binary.left);
    if (n->as.binary.right != NULL)
        return nested(e, n->as.binary.right);
    return eval_undefined(e,
                          "the inline if-expression on line %d evaluated to false and no else "
                          "section was defined.",
                          n->line);
}

static struct value expression(struct eval *e, const struct node *n)
{
    struct value left, right, step;
    struct args args;
    switch (n->kind) {
    case NODE_CONST:
        return n->as.constant;
    case NODE_NAME:
        return name_value(e, n);
    case NODE_ATTRIBUTE:
        return eval_attribute(e, nested(e, n->as.binary.left), n->as.binary.name);
    case NODE_ITEM:
        left = nested(e, n->as.binary.left);
        return eval_item(e, left, nested(e, n->as.binary.right));
    case NODE_SLICE:
        left = or_none(e, n->as.slice.start);
        right = or_none(e, n->as.slice.stop);
        step = or_none(e, n->as.slice.step);
        return eval_slice(e, nested(e, n->as.slice.left), left, right, step);
    case NODE_CALL:
        left = nested(e, n->as.call.callee);
        args = evaluate_arguments(e, &n->as.call.args);
        e->line = n->line;
        return eval_call(e, left, &args);
    case NODE_FILTER:
        left = nested(e, n->as.call.callee);
        args = evaluate_arguments(e, &n->as.call.args);
        e->line = n->line;
        return eval_filter(e, n->as.call.name, left, &args);
    case NODE_TEST:
        left = nested(e, n->as.call.callee);
        args = evaluate_arguments(e, &n->as.call.args);
        e->line = n->line;
        return value_bool(eval_test(e, n->as.call.name, left, &args));
    case NODE_LIST:
        return make_list(e, n, VALUE_LIST);
    case NODE_TUPLE:
        return make_list(e, n, VALUE_TUPLE);
    case NODE_DICT:
        return make_dict(e, n);
    case NODE_OPERATOR:
        left = nested(e, n->as.binary.left);
        right = nested(e, n->as.binary.right);
        e->line = n->line;
        return eval_operator(e, n->as.binary.op, left, right);
    case NODE_COMPARE:
        return compare_chain(e, n);
    case NODE_CONCAT:
        return concat(e, n);
    case NODE_AND:
        left = nested(e, n->as.binary.left);
        return value_truth(left) ? nested(e, n->as.binary.right) : left;
    case NODE_OR:
        left = nested(e, n->as.binary.left);
        return value_truth(left) ? left : nested(e, n->as.binary.right);
    case NODE_NOT:
        return value_bool(!value_truth(nested(e, n->as.binary.left)));
    case NODE_NEGATE:
    case NODE_PLUS:
        return negate(e, nested(e, n->as.binary.left), n->kind == NODE_NEGATE);
    case NODE_CONDITIONAL:
        return conditional(e, n);
    case NODE_NAMESPACE_REF:
    case NODE_TEXT:
    case NODE_OUTPUT:
    case NODE_IF:
    case NODE_FOR:
    case NODE_SET:
    case NODE_SET_BLOCK:
    case NODE_MACRO:
    case NODE_CALL_BLOCK:
    case NODE_FILTER_BLOCK:
    case NODE_WITH:
    case NODE_SCOPED:
    case NODE_BREAK:
    case NODE_CONTINUE:
        break;
    }
    BUG("node %d is no expression", (int)n->kind);
}

struct value eval_expression(struct eval *e, const struct node *n)
{
    struct value v = value_none();
    if (enter(e)) {
        eval_charge(e, 1);
        e->line = n->line;
        v = expression(e, n);
    }
    e->depth--;
    /* Where an operation failed half-way, what it made is not looked at. */
    return eval_failed(e) ? eval_error(e, "failed") : v;
}

/* ---- statements ------------------------------------------------------------------------------ */

/* The filters of a block, innermost first, over its text. */
static struct value filter_text(struct eval *e, const struct node *filter, struct value text)
{
    if (filter == NULL || eval_failed(e))
        return text;
    text = filter_text(e, filter->as.call.callee, text);
    struct args args = evaluate_arguments(e, &filter->as.call.args);
    e->line = filter->line;
    return eval_filter(e, filter->as.call.name, text, &args);
}

/* The items that the loop's test lets pass. */
static void choose_items(struct eval *e, const struct node *n, struct loop *loop)
{
    size_t kept = 0;
    struct value *items = eval_alloc(e, loop->n, sizeof *items);
    struct scope *outer = e->scope;
    if (items == NULL)
        return;
    for (size_t i = 0; i < loop->n && !eval_failed(e); i++) {
        e->scope = push_scope(e, outer);
        assign(e, n->as.loop.target, loop->items[i]);
        if (value_truth(eval_expression(e, n->as.loop.test)))
            items[kept++] = loop->items[i];
    }
    e->scope = outer;
    loop->items = items;
    loop->n = kept;
}

static void run_loop(struct eval *e, const struct node *n, struct value iterable, size_t depth)
{
    struct value items = value_items(e, iterable);
    struct loop *loop = eval_alloc(e, 1, sizeof *loop);
    struct scope *outer = e->scope;
    if (eval_failed(e) || loop == NULL)
        return;
    *loop = (struct loop){.node = n,
                          .scope = outer,
                          .items = items.as.list->items,
                          .n = items.as.list->n,
                          .depth = depth};
    if (n->as.loop.test != NULL)
        choose_items(e, n, loop);
    enum flow flow = FLOW_ON;
    bool completed =
        false; /* a pass, to its end: Jinja's else is about that, not about emptiness */
    for (; loop->at < loop->n && flow != FLOW_BREAK && !eval_failed(e); loop->at++) {
        eval_charge(e, 1);
        e->scope = push_scope(e, outer);
        eval_bind(e, e->scope, e->t->symbol_loop,
                  (struct value){.type = VALUE_LOOP, .as.loop = loop});
        assign(e, n->as.loop.target, loop->items[loop->at]);
        if (!eval_failed(e))
            flow = run(e, &n->as.loop.body);
        completed = completed || flow == FLOW_ON;
    }
    e->scope = outer;
    if (!completed && !eval_failed(e) && n->as.loop.otherwise.n > 0) {
        e->scope = push_scope(e, outer);
        run(e, &n->as.loop.otherwise);
        e->scope = outer;
    }
}

struct value eval_recurse_loop(struct eval *e, const struct loop *around, struct value items)
{
    if (!around->node->as.loop.recursive)
        return eval_error(e, "The loop must have the 'recursive' marker to be called recursively.");
    struct builder text = {0}, *out = e->out;
    struct scope *outer = e->scope;
    if (enter(e)) {
        e->out = &text;
        e->scope = around->scope;
        run_loop(e, around->node, items, around->depth + 1);
        e->scope = outer;
        e->out = out;
    }
    e->depth--;
    return value_string(builder_string(e, &text));
}

/* The first branch whose test holds. An elif is the only statement of the else before it, and is
 * looked at in this same frame: a chain may be longer than the stack is deep. */
static enum flow run_if(struct eval *e, const struct node *n)
{
    for (;;) {
        if (value_truth(eval_expression(e, n->as.branch.test)))
            return run(e, &n->as.branch.body);
        const struct node_list *otherwise = &n->as.branch.otherwise;
        if (otherwise->n != 1 || otherwise->nodes[0]->kind != NODE_IF)
            return run(e, otherwise);
        n = otherwise->nodes[0];
    }
}

static void run_call_block(struct eval *e, const struct node *n)
{
    static const struct string caller = {.bytes = "caller", .n = 6};
    const struct node *call = n->as.macro.call;
    struct value callee = eval_expression(e, call->as.call.callee);
    struct args args = evaluate_arguments(e, &call->as.call.args);
    struct dict_entry entry = {value_string(&caller), make_macro(e, n)};
    add_named(e, &args, &entry, 1);
    value_put_str(e, e->out, eval_call(e, callee, &args));
}

static void run_with(struct eval *e, const struct node *n)
{
    struct scope *outer = e->scope, *inner = push_scope(e, outer);
    for (size_t i = 0; i < n->as.block.targets.n && !eval_failed(e); i++) {
        struct value v = eval_expression(e, n->as.block.values.nodes[i]); /* in the outer scope */
        e->scope = inner;
        assign(e, n->as.block.targets.nodes[i], v);
        e->scope = outer;
    }
    e->scope = inner;
    run(e, &n->as.block.body);
    e->scope = outer;
}

static enum flow statement(struct eval *e, const struct node *n)
{
    struct scope *outer = e->scope;
    struct value v;
    enum flow flow = FLOW_ON;
    switch (n->kind) {
    case NODE_TEXT:
        builder_put(e, e->out, n->as.text);
        break;
    case NODE_OUTPUT:
        value_put_str(e, e->out, eval_expression(e, n->as.output));
        break;
    case NODE_IF:
        return run_if(e, n);
    case NODE_FOR:
        run_loop(e, n, eval_expression(e, n->as.loop.items), 0);
        break;
    case NODE_SET:
        assign(e, n->as.set.target, eval_expression(e, n->as.set.value));
        break;
    case NODE_SET_BLOCK:
        e->scope = push_scope(e, outer);
        v = capture(e, &n->as.set.body);
        e->scope = outer;
        assign(e, n->as.set.target, filter_text(e, n->as.set.filter, v));
        break;
    case NODE_MACRO:
        eval_bind(e, e->scope, n->as.macro.symbol, make_macro(e, n));
        break;
    case NODE_CALL_BLOCK:
        run_call_block(e, n);
        break;
    case NODE_FILTER_BLOCK:
        e->scope = push_scope(e, outer);
        v = capture(e, &n->as.block.body);
        e->scope = outer;
        value_put_str(e, e->out, filter_text(e, n->as.block.filter, v));
        break;
    case NODE_WITH:
        run_with(e, n);
        break;
    case NODE_SCOPED:
        e->scope = push_scope(e, outer);
        flow = run(e, &n->as.block.body);
        e->scope = outer;
        return flow;
    case NODE_BREAK:
        return FLOW_BREAK;
    case NODE_CONTINUE:
        return FLOW_CONTINUE;
    case NODE_CONST:
    case NODE_NAME:
    case NODE_ATTRIBUTE:
    case NODE_ITEM:
    case NODE_SLICE:
    case NODE_CALL:
    case NODE_FILTER:
    case NODE_TEST:
    case NODE_LIST:
    case NODE_TUPLE:
    case NODE_DICT:
    case NODE_OPERATOR:
    case NODE_COMPARE:
    case NODE_CONCAT:
    case NODE_AND:
    case NODE_OR:
    case NODE_NOT:
    case NODE_NEGATE:
    case NODE_PLUS:
    case NODE_CONDITIONAL:
    case NODE_NAMESPACE_REF:
        BUG("node %d is no statement", (int)n->kind);
    }
    return FLOW_ON;
}

static enum flow run(struct eval *e, const struct node_list *body)
{
    enum flow flow = FLOW_ON;
    if (enter(e)) {
        for (size_t i = 0; i < body->n && flow == FLOW_ON && !eval_failed(e); i++) {
            eval_charge(e, 1);
            e->line = body->nodes[i]->line;
            flow = statement(e, body->nodes[i]);
            if (e->out->n > CHAT_TEMPLATE_OUTPUT_MAX_BYTES)
                eval_fail(e, ERR_TOO_LARGE, "the rendered text is longer than %d bytes",
                          CHAT_TEMPLATE_OUTPUT_MAX_BYTES);
        }
    }
    e->depth--;
    return flow;
}

void eval_template(struct eval *e, const struct template *t)
{
    run(e, &t->body);
}
