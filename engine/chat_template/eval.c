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

struct scope *eval_push_scope(struct eval *e, struct scope *parent)
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

/* ---- blocks and depth ------------------------------------------------------------------------ */

bool eval_enter(struct eval *e)
{
    if (e->depth >= EVAL_DEPTH_MAX)
        eval_error(e, "the rendering nests deeper than %d", EVAL_DEPTH_MAX);
    e->depth++;
    return !eval_failed(e);
}

static struct value capture(struct eval *e, const struct node_list *body, enum flow *flow)
{
    struct builder text = {0}, *out = e->out;
    e->out = &text;
    *flow = run(e, body);
    e->out = out;
    return value_string(builder_string(e, &text));
}

struct value eval_capture(struct eval *e, const struct node_list *body)
{
    enum flow flow; /* no loop goes on around a macro */
    return capture(e, body, &flow);
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
    struct value left = eval_expression(e, items->nodes[0]), result = value_bool(true);
    for (size_t i = 1; i < items->n && !eval_failed(e); i++) {
        struct value right = eval_expression(e, items->nodes[i]);
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
        v.as.list->items[i] = eval_expression(e, items->nodes[i]);
    return v;
}

static struct value make_dict(struct eval *e, const struct node *n)
{
    struct value v = value_dict(e);
    for (size_t i = 0; i < n->as.sequence.items.n && !eval_failed(e); i++) {
        struct value key = eval_expression(e, n->as.sequence.items.nodes[i]);
        if (key.type == VALUE_LIST || key.type == VALUE_DICT)
            return eval_error(e, "unhashable type: '%s'", value_type_name(key));
        dict_put(e, v.as.dict, key, eval_expression(e, n->as.sequence.values.nodes[i]));
    }
    return v;
}

static struct value concat(struct eval *e, const struct node *n)
{
    struct builder b = {0};
    for (size_t i = 0; i < n->as.sequence.items.n && !eval_failed(e); i++)
        value_put_str(e, &b, eval_expression(e, n->as.sequence.items.nodes[i]));
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
    return n == NULL ? value_none() : eval_expression(e, n);
}

static struct value conditional(struct eval *e, const struct node *n)
{
    if (value_truth(eval_expression(e, n->as.binary.test)))
        return eval_expression(e, n->as.binary.left);
    if (n->as.binary.right != NULL)
        return eval_expression(e, n->as.binary.right);
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
        return eval_attribute(e, eval_expression(e, n->as.binary.left), n->as.binary.name);
    case NODE_ITEM:
        left = eval_expression(e, n->as.binary.left);
        return eval_item(e, left, eval_expression(e, n->as.binary.right));
    case NODE_SLICE:
        left = or_none(e, n->as.slice.start);
        right = or_none(e, n->as.slice.stop);
        step = or_none(e, n->as.slice.step);
        return eval_slice(e, eval_expression(e, n->as.slice.left), left, right, step);
    case NODE_CALL:
        left = eval_expression(e, n->as.call.callee);
        args = eval_arguments(e, &n->as.call.args);
        e->line = n->line;
        return eval_call(e, left, &args);
    case NODE_FILTER:
        left = eval_expression(e, n->as.call.callee);
        args = eval_arguments(e, &n->as.call.args);
        e->line = n->line;
        return eval_filter(e, n->as.call.name, left, &args);
    case NODE_TEST:
        left = eval_expression(e, n->as.call.callee);
        args = eval_arguments(e, &n->as.call.args);
        e->line = n->line;
        return value_bool(eval_test(e, n->as.call.name, left, &args));
    case NODE_LIST:
        return make_list(e, n, VALUE_LIST);
    case NODE_TUPLE:
        return make_list(e, n, VALUE_TUPLE);
    case NODE_DICT:
        return make_dict(e, n);
    case NODE_OPERATOR:
        left = eval_expression(e, n->as.binary.left);
        right = eval_expression(e, n->as.binary.right);
        e->line = n->line;
        return eval_operator(e, n->as.binary.op, left, right);
    case NODE_COMPARE:
        return compare_chain(e, n);
    case NODE_CONCAT:
        return concat(e, n);
    case NODE_AND:
        left = eval_expression(e, n->as.binary.left);
        return value_truth(left) ? eval_expression(e, n->as.binary.right) : left;
    case NODE_OR:
        left = eval_expression(e, n->as.binary.left);
        return value_truth(left) ? left : eval_expression(e, n->as.binary.right);
    case NODE_NOT:
        return value_bool(!value_truth(eval_expression(e, n->as.binary.left)));
    case NODE_NEGATE:
    case NODE_PLUS:
        return negate(e, eval_expression(e, n->as.binary.left), n->kind == NODE_NEGATE);
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
    if (eval_enter(e)) {
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
    struct args args = eval_arguments(e, &filter->as.call.args);
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
        e->scope = eval_push_scope(e, outer);
        assign(e, n->as.loop.target, loop->items[i]);
        if (value_truth(eval_expression(e, n->as.loop.test)))
            items[kept++] = loop->items[i];
    }
    e->scope = outer;
    loop->items = items;
    loop->n = kept;
}

/* What it returns is about the loop around it: its own else may end that. */
static enum flow run_loop(struct eval *e, const struct node *n, struct value iterable, size_t depth)
{
    struct value items = value_items(e, iterable);
    struct loop *loop = eval_alloc(e, 1, sizeof *loop);
    struct scope *outer = e->scope;
    if (eval_failed(e) || loop == NULL)
        return FLOW_ON;
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
        e->scope = eval_push_scope(e, outer);
        eval_bind(e, e->scope, e->t->symbol_loop,
                  (struct value){.type = VALUE_LOOP, .as.loop = loop});
        assign(e, n->as.loop.target, loop->items[loop->at]);
        if (!eval_failed(e))
            flow = run(e, &n->as.loop.body);
        completed = completed || flow == FLOW_ON;
    }
    e->scope = outer;
    flow = FLOW_ON;
    if (!completed && !eval_failed(e) && n->as.loop.otherwise.n > 0) {
        e->scope = eval_push_scope(e, outer);
        flow = run(e, &n->as.loop.otherwise);
        e->scope = outer;
    }
    return flow;
}

struct value eval_recurse_loop(struct eval *e, const struct loop *around, struct value items)
{
    if (!around->node->as.loop.recursive)
        return eval_error(e, "The loop must have the 'recursive' marker to be called recursively.");
    struct builder text = {0}, *out = e->out;
    struct scope *outer = e->scope;
    if (eval_enter(e)) {
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
    struct args args = eval_arguments(e, &call->as.call.args);
    struct dict_entry entry = {value_string(&caller), make_macro(e, n)};
    args_add_named(e, &args, &entry, 1);
    value_put_str(e, e->out, eval_call(e, callee, &args));
}

static enum flow run_with(struct eval *e, const struct node *n)
{
    struct scope *outer = e->scope, *inner = eval_push_scope(e, outer);
    for (size_t i = 0; i < n->as.block.targets.n && !eval_failed(e); i++) {
        struct value v = eval_expression(e, n->as.block.values.nodes[i]); /* in the outer scope */
        e->scope = inner;
        assign(e, n->as.block.targets.nodes[i], v);
        e->scope = outer;
    }
    e->scope = inner;
    enum flow flow = run(e, &n->as.block.body);
    e->scope = outer;
    return flow;
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
        return run_loop(e, n, eval_expression(e, n->as.loop.items), 0);
    case NODE_SET:
        assign(e, n->as.set.target, eval_expression(e, n->as.set.value));
        break;
    case NODE_SET_BLOCK:
        e->scope = eval_push_scope(e, outer);
        v = capture(e, &n->as.set.body, &flow);
        e->scope = outer;
        if (flow != FLOW_ON) /* it left the loop: what it wrote is nobody's */
            return flow;
        assign(e, n->as.set.target, filter_text(e, n->as.set.filter, v));
        break;
    case NODE_MACRO:
        eval_bind(e, e->scope, n->as.macro.symbol, make_macro(e, n));
        break;
    case NODE_CALL_BLOCK:
        run_call_block(e, n);
        break;
    case NODE_FILTER_BLOCK:
        e->scope = eval_push_scope(e, outer);
        v = capture(e, &n->as.block.body, &flow);
        e->scope = outer;
        if (flow != FLOW_ON)
            return flow;
        value_put_str(e, e->out, filter_text(e, n->as.block.filter, v));
        break;
    case NODE_WITH:
        return run_with(e, n);
    case NODE_SCOPED:
        e->scope = eval_push_scope(e, outer);
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
    if (eval_enter(e)) {
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
