/* parse_expression: what stands in {{ }}, and behind the words of tags.
 *
 * Recursive descent over Jinja2's grammar, in its order of binding, loosest first:
 *
 *   a if b else c      conditional
 *   or, and, not
 *   == != < <= > >= in not-in      chained, as in Python: a < b < c
 *   + -
 *   ~                  concatenation of texts
 *   * / // %
 *   **
 *   - +                in front
 *   . [] ()            behind, then |filter and `is test`
 *
 * So `a + b | trim` trims b, and `-1 | abs` is 1.
 *
 * Names become numbers while parsing. Depth is counted in every rule that can contain itself, and
 * in chains, whose trees are as deep as they are long, so that a source of a million brackets ends
 * with a sentence and not with the stack. */
#include "engine/chat_template/parser.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <string.h>

static struct node *parse_conditional(struct parser *p, bool allow_conditional);

/* ---- expressions: the parts ------------------------------------------------------------------ */

static struct node *name_node(struct parser *p, const struct token *t)
{
    struct node *n = node_at(p, NODE_NAME, t->line);
    n->as.name.symbol = parser_symbol(p, t->text, t->n);
    n->as.name.name = parser_string(p, t->text, t->n);
    if (p->signature != NULL) {
        if (token_is(t, "caller"))
            p->signature->caller = n->as.name.symbol;
        if (token_is(t, "varargs"))
            p->signature->varargs = n->as.name.symbol;
        if (token_is(t, "kwargs"))
            p->signature->kwargs = n->as.name.symbol;
    }
    return n;
}

static struct node *constant(struct parser *p, struct value v)
{
    struct node *n = node_new(p, NODE_CONST);
    n->as.constant = v;
    return n;
}

struct node *parse_name(struct parser *p)
{
    const struct token *t = p->at;
    struct node *n;
    if (token_is(t, "true") || token_is(t, "True"))
        n = constant(p, value_bool(true));
    else if (token_is(t, "false") || token_is(t, "False"))
        n = constant(p, value_bool(false));
    else if (token_is(t, "none") || token_is(t, "None"))
        n = constant(p, value_none());
    else
        n = name_node(p, t);
    parser_advance(p);
    return n;
}

/* Strings side by side are one. */
static struct node *parse_string(struct parser *p)
{
    struct node *n = node_new(p, NODE_CONST);
    struct buf text = BUF_INIT;
    for (; p->at->kind == TOKEN_STRING; parser_advance(p))
        buf_append(&text, p->at->text, p->at->n);
    n->as.constant = value_string(parser_string(p, buf_cstr(&text), text.len));
    buf_release(&text);
    return n;
}

static struct node *parse_list(struct parser *p)
{
    struct node *n = node_new(p, NODE_LIST);
    parser_advance(p);
    while (!p->failed && !at_operator(p, "]")) {
        if (n->as.sequence.items.n > 0)
            expect_operator(p, ",");
        if (at_operator(p, "]"))
            break;
        node_list_add(p, &n->as.sequence.items, parse_expression(p));
    }
    expect_operator(p, "]");
    return n;
}

static struct node *parse_dict(struct parser *p)
{
    struct node *n = node_new(p, NODE_DICT);
    parser_advance(p);
    while (!p->failed && !at_operator(p, "}")) {
        if (n->as.sequence.items.n > 0)
            expect_operator(p, ",");
        if (at_operator(p, "}"))
            break;
        node_list_add(p, &n->as.sequence.items, parse_expression(p));
        expect_operator(p, ":");
        node_list_add(p, &n->as.sequence.values, parse_expression(p));
    }
    expect_operator(p, "}");
    return n;
}

struct node *parse_tuple(struct parser *p, bool allow_conditional, const char *end_word,
                         bool in_parentheses)
{
    struct node *tuple = node_new(p, NODE_TUPLE);
    struct node_list *items = &tuple->as.sequence.items;
    bool comma = false;
    while (!p->failed) {
        if (p->at->kind == TOKEN_VARIABLE_END || p->at->kind == TOKEN_BLOCK_END ||
            at_operator(p, ")") || (end_word != NULL && at_word(p, end_word)))
            break;
        node_list_add(p, items, parse_conditional(p, allow_conditional));
        if (!skip_operator(p, ","))
            break;
        comma = true;
    }
    if (comma || p->failed)
        return tuple;
    if (items->n == 1)
        return items->nodes[0];
    return in_parentheses ? tuple : parser_unexpected(p, "an expression");
}

static struct node *parse_primary(struct parser *p)
{
    struct node *n;
    switch (p->at->kind) {
    case TOKEN_NAME:
        return parse_name(p);
    case TOKEN_STRING:
        return parse_string(p);
    case TOKEN_INTEGER:
        n = constant(p, value_int(p->at->integer));
        parser_advance(p);
        return n;
    case TOKEN_FLOAT:
        n = constant(p, value_float(p->at->real));
        parser_advance(p);
        return n;
    case TOKEN_OPERATOR:
        if (at_operator(p, "["))
            return parse_list(p);
        if (at_operator(p, "{"))
            return parse_dict(p);
        if (skip_operator(p, "(")) {
            n = parse_tuple(p, true, NULL, true);
            expect_operator(p, ")");
            return n;
        }
        break;
    case TOKEN_END:
    case TOKEN_TEXT:
    case TOKEN_BLOCK_BEGIN:
    case TOKEN_BLOCK_END:
    case TOKEN_VARIABLE_BEGIN:
    case TOKEN_VARIABLE_END:
        break;
    }
    return parser_unexpected(p, "an expression");
}

static void parse_arguments(struct parser *p, struct argument_list *a)
{
    expect_operator(p, "(");
    bool first = true;
    size_t cap_names = 0;
    while (!p->failed && !at_operator(p, ")")) {
        if (!first)
            expect_operator(p, ",");
        first = false;
        if (at_operator(p, ")"))
            break;
        if (skip_operator(p, "*")) {
            if (a->spread != NULL || a->spread_named != NULL)
                parser_unexpected(p, "one spread");
            a->spread = parse_expression(p);
        } else if (skip_operator(p, "**")) {
            if (a->spread_named != NULL)
                parser_unexpected(p, "one named spread");
            a->spread_named = parse_expression(p);
        } else if (p->at->kind == TOKEN_NAME && p->at[1].kind == TOKEN_OPERATOR &&
                   token_is(&p->at[1], "=")) {
            if (a->named.n == cap_names) {
                cap_names = cap_names == 0 ? 4 : cap_names * 2;
                const struct string **grown = parser_alloc(p, cap_names, sizeof *grown);
                if (a->named.n > 0)
                    memcpy(grown, a->names, a->named.n * sizeof *grown);
                a->names = grown;
            }
            a->names[a->named.n] = expect_name(p);
            parser_advance(p);
            node_list_add(p, &a->named, parse_expression(p));
        } else {
            if (a->named.n > 0 || a->spread != NULL || a->spread_named != NULL)
                parser_unexpected(p, "a named argument");
            node_list_add(p, &a->positional, parse_expression(p));
        }
    }
    expect_operator(p, ")");
}

static struct node *parse_call(struct parser *p, struct node *callee)
{
    struct node *n = node_new(p, NODE_CALL);
    n->as.call.callee = callee;
    parse_arguments(p, &n->as.call.args);
    return n;
}

/* Inside the brackets: an expression, or start:stop:step with any of them missing. */
static struct node *parse_subscript(struct parser *p, struct node *left)
{
    struct node *parts[3] = {NULL, NULL, NULL};
    int part = 0, line = p->at->line;
    bool slice = false;
    while (!p->failed && !at_operator(p, "]")) {
        if (skip_operator(p, ":")) {
            slice = true;
            if (++part == 3)
                parser_unexpected(p, "]");
        } else {
            if (parts[part] != NULL) {
                parser_unexpected(p, "]");
                break;
            }
            parts[part] = parse_expression(p);
        }
    }
    expect_operator(p, "]");
    if (!slice && parts[0] == NULL)
        return parser_unexpected(p, "an index");
    struct node *n = node_at(p, slice ? NODE_SLICE : NODE_ITEM, line);
    if (slice) {
        n->as.slice.left = left;
        n->as.slice.start = parts[0];
        n->as.slice.stop = parts[1];
        n->as.slice.step = parts[2];
    } else {
        n->as.binary.left = left;
        n->as.binary.right = parts[0];
    }
    return n;
}

static struct node *parse_postfix(struct parser *p, struct node *n)
{
    int depth = p->depth;
    while (!p->failed) {
        /* a.b.c.d is a tree as deep as it is long. */
        if ((at_operator(p, ".") || at_operator(p, "[") || at_operator(p, "(")) &&
            parser_too_deep(p))
            break;
        p->depth++;
        if (skip_operator(p, ".")) {
            struct node *attribute = node_new(p, NODE_ATTRIBUTE);
            attribute->as.binary.left = n;
            if (p->at->kind == TOKEN_INTEGER) { /* a.0 is a[0] */
                attribute->kind = NODE_ITEM;
                attribute->as.binary.right = parse_primary(p);
            } else {
                attribute->as.binary.name = expect_name(p);
            }
            n = attribute;
        } else if (skip_operator(p, "[")) {
            n = parse_subscript(p, n);
        } else if (at_operator(p, "(")) {
            n = parse_call(p, n);
        } else {
            break;
        }
    }
    p->depth = depth;
    return n;
}

static const struct string *parse_dotted_name(struct parser *p)
{
    const struct string *name = expect_name(p);
    while (!p->failed && skip_operator(p, ".")) {
        const struct string *more = expect_name(p);
        struct buf both = BUF_INIT;
        buf_append(&both, name->bytes, name->n);
        buf_append_byte(&both, '.');
        buf_append(&both, more->bytes, more->n);
        name = parser_string(p, buf_cstr(&both), both.len);
        buf_release(&both);
    }
    return name;
}

struct node *parse_filter(struct parser *p, struct node *value)
{
    struct node *n = node_new(p, NODE_FILTER);
    n->as.call.callee = value;
    n->as.call.name = parse_dotted_name(p);
    if (at_operator(p, "("))
        parse_arguments(p, &n->as.call.args);
    return n;
}

static bool begins_test_argument(const struct parser *p)
{
    switch (p->at->kind) {
    case TOKEN_NAME:
        return !at_word(p, "else") && !at_word(p, "or") && !at_word(p, "and");
    case TOKEN_STRING:
    case TOKEN_INTEGER:
    case TOKEN_FLOAT:
        return true;
    case TOKEN_OPERATOR:
        return at_operator(p, "[") || at_operator(p, "{");
    case TOKEN_END:
    case TOKEN_TEXT:
    case TOKEN_BLOCK_BEGIN:
    case TOKEN_BLOCK_END:
    case TOKEN_VARIABLE_BEGIN:
    case TOKEN_VARIABLE_END:
        break;
    }
    return false;
}

static struct node *parse_test(struct parser *p, struct node *value)
{
    struct node *n = node_new(p, NODE_TEST);
    bool negated = skip_word(p, "not");
    n->as.call.callee = value;
    n->as.call.name = parse_dotted_name(p);
    if (at_operator(p, "(")) {
        parse_arguments(p, &n->as.call.args);
    } else if (begins_test_argument(p)) {
        if (at_word(p, "is"))
            return parser_unexpected(p, "anything but a second test");
        node_list_add(p, &n->as.call.args.positional, parse_postfix(p, parse_primary(p)));
    }
    if (!negated)
        return n;
    struct node *not = node_at(p, NODE_NOT, n->line);
    not ->as.binary.left = n;
    return not ;
}

static struct node *parse_filters(struct parser *p, struct node *n)
{
    int depth = p->depth;
    while (!p->failed) {
        if ((at_operator(p, "|") || at_word(p, "is") || at_operator(p, "(")) && parser_too_deep(p))
            break;
        p->depth++;
        if (skip_operator(p, "|"))
            n = parse_filter(p, n);
        else if (skip_word(p, "is"))
            n = parse_test(p, n);
        else if (at_operator(p, "("))
            n = parse_call(p, n);
        else
            break;
    }
    p->depth = depth;
    return n;
}

/* ---- expressions: the operators -------------------------------------------------------------- */

static struct node *parse_unary(struct parser *p, bool with_filter)
{
    struct node *n;
    if (parser_too_deep(p))
        return node_none(p);
    p->depth++;
    if (at_operator(p, "-") || at_operator(p, "+")) {
        n = node_new(p, at_operator(p, "-") ? NODE_NEGATE : NODE_PLUS);
        parser_advance(p);
        n->as.binary.left = parse_unary(p, false);
    } else {
        n = parse_primary(p);
    }
    n = parse_postfix(p, n);
    if (with_filter)
        n = parse_filters(p, n);
    p->depth--;
    return n;
}

static struct node *parse_power(struct parser *p)
{
    return parse_unary(p, true);
}

static struct node *parse_concat(struct parser *p);

/* The binary operators, loosest level first. All are left-associative, ** as well. */
static const struct level {
    struct {
        const char *text;
        enum operator op;
    } operators[4];
} levels[] = {
    {{{"+", OP_ADD}, {"-", OP_SUB}}},
    {{{"*", OP_MUL}, {"/", OP_DIV}, {"//", OP_FLOORDIV}, {"%", OP_MOD}}},
    {{{"**", OP_POW}}},
};

static struct node *parse_binary(struct parser *p, const struct level *level)
{
    struct node *(*operand)(struct parser *) = level == &levels[0] ? parse_concat : NULL;
    struct node *left = operand != NULL       ? operand(p)
                        : level == &levels[1] ? parse_binary(p, &levels[2])
                                              : parse_power(p);
    int depth = p->depth;
    while (!p->failed) {
        int found = -1;
        for (int i = 0; i < 4 && level->operators[i].text != NULL; i++)
            if (at_operator(p, level->operators[i].text))
                found = i;
        if (found < 0 || parser_too_deep(p))
            break;
        p->depth++; /* a + b + c is a tree as deep as it is long */
        struct node *n = node_new(p, NODE_OPERATOR);
        n->as.binary.op = level->operators[found].op;
        parser_advance(p);
        n->as.binary.left = left;
        n->as.binary.right = operand != NULL       ? operand(p)
                             : level == &levels[1] ? parse_binary(p, &levels[2])
                                                   : parse_power(p);
        left = n;
    }
    p->depth = depth;
    return left;
}

static struct node *parse_concat(struct parser *p)
{
    struct node *n = node_new(p, NODE_CONCAT);
    do
        node_list_add(p, &n->as.sequence.items, parse_binary(p, &levels[1]));
    while (!p->failed && skip_operator(p, "~"));
    return n->as.sequence.items.n == 1 ? n->as.sequence.items.nodes[0] : n;
}

static bool skip_comparison(struct parser *p, enum operator* op)
{
    static const struct {
        const char *text;
        enum operator op;
    } operators[] = {
        {"==", OP_EQ}, {"!=", OP_NE}, {"<", OP_LT}, {"<=", OP_LE}, {">", OP_GT}, {">=", OP_GE},
    };
    for (size_t i = 0; i < sizeof operators / sizeof operators[0]; i++) {
        if (skip_operator(p, operators[i].text)) {
            *op = operators[i].op;
            return true;
        }
    }
    if (skip_word(p, "in")) {
        *op = OP_IN;
        return true;
    }
    if (at_word(p, "not") && p->at[1].kind == TOKEN_NAME && token_is(&p->at[1], "in")) {
        parser_advance(p);
        parser_advance(p);
        *op = OP_NOT_IN;
        return true;
    }
    return false;
}

static struct node *parse_compare(struct parser *p)
{
    struct node *first = parse_binary(p, &levels[0]);
    enum operator op;
    if (p->failed || !skip_comparison(p, &op))
        return first;
    struct node *n = node_at(p, NODE_COMPARE, first->line);
    struct node_list *items = &n->as.sequence.items;
    node_list_add(p, items, first);
    do {
        enum operator* ops = parser_alloc(p, items->n, sizeof *ops);
        if (items->n > 1)
            memcpy(ops, n->as.sequence.ops, (items->n - 1) * sizeof *ops);
        ops[items->n - 1] = op;
        n->as.sequence.ops = ops;
        node_list_add(p, items, parse_binary(p, &levels[0]));
        if (items->n > PARSER_DEPTH_MAX)
            parser_fail(p, ERR_INVALID, n->line, "more than %d comparisons in a chain",
                        PARSER_DEPTH_MAX);
    } while (!p->failed && skip_comparison(p, &op));
    return n;
}

static struct node *parse_not(struct parser *p)
{
    if (!at_word(p, "not"))
        return parse_compare(p);
    if (parser_too_deep(p))
        return node_none(p);
    p->depth++;
    struct node *n = node_new(p, NODE_NOT);
    parser_advance(p);
    n->as.binary.left = parse_not(p);
    p->depth--;
    return n;
}

static struct node *parse_logical(struct parser *p, const char *word, enum node_kind kind,
                                  struct node *(*operand)(struct parser *))
{
    struct node *left = operand(p);
    int depth = p->depth;
    while (!p->failed && at_word(p, word) && !parser_too_deep(p)) {
        p->depth++;
        struct node *n = node_new(p, kind);
        parser_advance(p);
        n->as.binary.left = left;
        n->as.binary.right = operand(p);
        left = n;
    }
    p->depth = depth;
    return left;
}

static struct node *parse_and(struct parser *p)
{
    return parse_logical(p, "and", NODE_AND, parse_not);
}

static struct node *parse_or(struct parser *p)
{
    return parse_logical(p, "or", NODE_OR, parse_and);
}

static struct node *parse_conditional(struct parser *p, bool allow_conditional)
{
    if (parser_too_deep(p))
        return node_none(p);
    p->depth++;
    int depth = p->depth;
    struct node *n = parse_or(p);
    while (allow_conditional && !p->failed && at_word(p, "if") && !parser_too_deep(p)) {
        p->depth++;
        struct node *c = node_new(p, NODE_CONDITIONAL);
        parser_advance(p);
        c->as.binary.left = n;
        c->as.binary.test = parse_or(p);
        if (skip_word(p, "else"))
            c->as.binary.right = parse_conditional(p, true);
        n = c;
    }
    p->depth = depth - 1;
    return n;
}

struct node *parse_expression(struct parser *p)
{
    return parse_conditional(p, true);
}
