/* parse_statement: what stands in {% %}.
 *
 * A block's body is parsed until a tag that begins with one of the words that may end it, so each
 * rule reads its own end. Tags that need other templates (include, import, extends, block) or
 * change how text is escaped are refused by name. */
#include "engine/chat_template/parser.h"

#include "node/base/err.h"

/* ---- statements ------------------------------------------------------------------------------ */

/* The body, the word that ends it, and the end of that tag. */
static void parse_block_body(struct parser *p, struct node_list *body, const char *end)
{
    const char *const until[] = {end, NULL};
    expect_kind(p, TOKEN_BLOCK_END, "%}");
    parse_body(p, body, until);
    parser_advance(p);
    expect_kind(p, TOKEN_BLOCK_END, "%}");
}

/* A name, or several with commas between, in parentheses or not. */
static struct node *parse_target(struct parser *p, const char *end_word)
{
    struct node *tuple = node_new(p, NODE_TUPLE);
    struct node_list *items = &tuple->as.sequence.items;
    bool comma = false;
    if (parser_too_deep(p))
        return node_none(p);
    p->depth++;
    while (!p->failed) {
        if (skip_operator(p, "(")) {
            node_list_add(p, items, parse_target(p, NULL));
            expect_operator(p, ")");
        } else if (p->at->kind == TOKEN_NAME && !(end_word != NULL && at_word(p, end_word))) {
            struct node *n = parse_name(p);
            if (n->kind != NODE_NAME)
                parser_unexpected(p, "a name to assign to");
            node_list_add(p, items, n);
        } else if (!comma) {
            parser_unexpected(p, "a name");
        } else {
            break;
        }
        if (!skip_operator(p, ","))
            break;
        comma = true;
    }
    p->depth--;
    return comma || p->failed ? tuple : items->nodes[0];
}

static struct node *parse_set(struct parser *p)
{
    struct node *n = node_new(p, NODE_SET);
    if (p->at->kind == TOKEN_NAME && p->at[1].kind == TOKEN_OPERATOR && token_is(&p->at[1], ".")) {
        struct node *ref = node_new(p, NODE_NAMESPACE_REF);
        ref->as.namespace_ref.symbol = parser_symbol(p, p->at->text, p->at->n);
        parser_advance(p);
        parser_advance(p);
        ref->as.namespace_ref.attribute = expect_name(p);
        n->as.set.target = ref;
    } else {
        n->as.set.target = parse_target(p, NULL);
    }
    if (skip_operator(p, "=")) {
        n->as.set.value = parse_tuple(p, true, NULL, false);
        expect_kind(p, TOKEN_BLOCK_END, "%}");
        return n;
    }
    n->kind = NODE_SET_BLOCK;
    while (!p->failed && skip_operator(p, "|"))
        n->as.set.filter = parse_filter(p, n->as.set.filter);
    parse_block_body(p, &n->as.set.body, "endset");
    return n;
}

static struct node *parse_if(struct parser *p)
{
    static const char *const until[] = {"elif", "else", "endif", NULL};
    static const char *const until_end[] = {"endif", NULL};
    struct node *first = node_new(p, NODE_IF), *n = first;
    for (;;) {
        n->as.branch.test = parse_tuple(p, false, NULL, false);
        expect_kind(p, TOKEN_BLOCK_END, "%}");
        parse_body(p, &n->as.branch.body, until);
        if (p->failed || !at_word(p, "elif"))
            break;
        struct node *next = node_new(p, NODE_IF);
        parser_advance(p);
        node_list_add(p, &n->as.branch.otherwise, next);
        n = next;
    }
    if (skip_word(p, "else")) {
        expect_kind(p, TOKEN_BLOCK_END, "%}");
        parse_body(p, &n->as.branch.otherwise, until_end);
    }
    parser_advance(p);
    expect_kind(p, TOKEN_BLOCK_END, "%}");
    return first;
}

static struct node *parse_for(struct parser *p)
{
    static const char *const until[] = {"else", "endfor", NULL};
    static const char *const until_end[] = {"endfor", NULL};
    struct node *n = node_new(p, NODE_FOR);
    if (at_word(p, "loop"))
        parser_unexpected(p, "a name that is not the loop's own");
    n->as.loop.target = parse_target(p, "in");
    if (!skip_word(p, "in"))
        parser_unexpected(p, "\"in\"");
    n->as.loop.items = parse_tuple(p, false, "recursive", false);
    if (skip_word(p, "if"))
        n->as.loop.test = parse_expression(p);
    n->as.loop.recursive = skip_word(p, "recursive");
    expect_kind(p, TOKEN_BLOCK_END, "%}");
    p->loops++;
    parse_body(p, &n->as.loop.body, until);
    p->loops--;
    if (skip_word(p, "else")) {
        expect_kind(p, TOKEN_BLOCK_END, "%}");
        parse_body(p, &n->as.loop.otherwise, until_end);
    }
    parser_advance(p);
    expect_kind(p, TOKEN_BLOCK_END, "%}");
    return n;
}

static void parse_signature(struct parser *p, struct signature *s)
{
    enum { PARAMETERS_MAX = 64 };
    s->symbols = parser_alloc(p, PARAMETERS_MAX, sizeof *s->symbols);
    s->names = parser_alloc(p, PARAMETERS_MAX, sizeof *s->names);
    expect_operator(p, "(");
    while (!p->failed && !at_operator(p, ")")) {
        if (s->n > 0)
            expect_operator(p, ",");
        if (s->n == PARAMETERS_MAX) {
            parser_fail(p, ERR_INVALID, p->at->line, "a macro of more than %d parameters",
                        PARAMETERS_MAX);
            break;
        }
        const struct string *name = expect_name(p);
        s->names[s->n] = name;
        s->symbols[s->n++] = parser_symbol(p, name->bytes, name->n);
        if (skip_operator(p, "="))
            node_list_add(p, &s->defaults, parse_expression(p));
        else if (s->defaults.n > 0)
            parser_unexpected(p, "a default, as the parameter before has one,");
    }
    expect_operator(p, ")");
}

/* The rest of a macro or call block: its body is a function of its own. */
static void parse_function_body(struct parser *p, struct node *n, const char *end)
{
    struct signature *outer = p->signature;
    int loops = p->loops;
    p->signature = &n->as.macro.signature;
    p->loops = 0;
    parse_block_body(p, &n->as.macro.body, end);
    p->loops = loops;
    p->signature = outer;
}

static struct node *parse_macro(struct parser *p)
{
    struct node *n = node_new(p, NODE_MACRO);
    struct signature *s = &n->as.macro.signature;
    s->caller = s->varargs = s->kwargs = -1;
    n->as.macro.name = expect_name(p);
    n->as.macro.symbol = parser_symbol(p, n->as.macro.name->bytes, n->as.macro.name->n);
    parse_signature(p, s);
    parse_function_body(p, n, "endmacro");
    return n;
}

static struct node *parse_call_block(struct parser *p)
{
    struct node *n = node_new(p, NODE_CALL_BLOCK);
    struct signature *s = &n->as.macro.signature;
    s->caller = s->varargs = s->kwargs = -1;
    n->as.macro.name = parser_string(p, "caller", 6);
    if (at_operator(p, "("))
        parse_signature(p, s);
    n->as.macro.call = parse_expression(p);
    if (n->as.macro.call->kind != NODE_CALL)
        parser_unexpected(p, "the call of a macro");
    parse_function_body(p, n, "endcall");
    return n;
}

static struct node *parse_filter_block(struct parser *p)
{
    struct node *n = node_new(p, NODE_FILTER_BLOCK);
    n->as.block.filter = parse_filter(p, NULL);
    while (!p->failed && skip_operator(p, "|"))
        n->as.block.filter = parse_filter(p, n->as.block.filter);
    parse_block_body(p, &n->as.block.body, "endfilter");
    return n;
}

static struct node *parse_with(struct parser *p)
{
    struct node *n = node_new(p, NODE_WITH);
    while (!p->failed && p->at->kind != TOKEN_BLOCK_END) {
        if (n->as.block.targets.n > 0)
            expect_operator(p, ",");
        node_list_add(p, &n->as.block.targets, parse_target(p, NULL));
        expect_operator(p, "=");
        node_list_add(p, &n->as.block.values, parse_expression(p));
    }
    parse_block_body(p, &n->as.block.body, "endwith");
    return n;
}

/* transformers marks with it what the assistant said, and gives it a scope like a macro's. */
static struct node *parse_generation(struct parser *p)
{
    struct node *n = node_new(p, NODE_SCOPED);
    int loops = p->loops;
    p->loops = 0;
    parse_block_body(p, &n->as.block.body, "endgeneration");
    p->loops = loops;
    return n;
}

static struct node *parse_loop_control(struct parser *p, enum node_kind kind)
{
    struct node *n = node_new(p, kind);
    if (p->loops == 0)
        parser_fail(p, ERR_INVALID, n->line, "break or continue outside a loop");
    expect_kind(p, TOKEN_BLOCK_END, "%}");
    return n;
}

static struct node *parse_break(struct parser *p)
{
    return parse_loop_control(p, NODE_BREAK);
}

static struct node *parse_continue(struct parser *p)
{
    return parse_loop_control(p, NODE_CONTINUE);
}

static struct node *parse_statement(struct parser *p)
{
    static const struct {
        const char *word;
        struct node *(*parse)(struct parser *p); /* NULL: a tag of Jinja that we refuse */
    } tags[] = {
        {"set", parse_set},
        {"if", parse_if},
        {"for", parse_for},
        {"macro", parse_macro},
        {"call", parse_call_block},
        {"filter", parse_filter_block},
        {"with", parse_with},
        {"generation", parse_generation},
        {"break", parse_break},
        {"continue", parse_continue},
        {"include", NULL},
        {"import", NULL},
        {"from", NULL},
        {"extends", NULL},
        {"block", NULL},
        {"autoescape", NULL},
        {"do", NULL},
        {"trans", NULL},
        {"print", NULL},
        {"debug", NULL},
    };
    const struct token *t = p->at;
    if (t->kind != TOKEN_NAME)
        return parser_unexpected(p, "the name of a tag");
    for (size_t i = 0; i < sizeof tags / sizeof tags[0]; i++) {
        if (!token_is(t, tags[i].word))
            continue;
        if (tags[i].parse != NULL) {
            parser_advance(p);
            return tags[i].parse(p);
        }
        parser_fail(p, ERR_UNSUPPORTED, t->line, "the tag \"%s\" is not supported", tags[i].word);
        return node_none(p);
    }
    parser_fail(p, ERR_INVALID, t->line, "unknown tag \"%.*s\"", (int)(t->n < 40 ? t->n : 40),
                t->text);
    return node_none(p);
}

void parse_body(struct parser *p, struct node_list *body, const char *const *until)
{
    if (parser_too_deep(p))
        return;
    p->depth++;
    while (!p->failed) {
        struct node *n;
        if (p->at->kind == TOKEN_TEXT) {
            n = node_new(p, NODE_TEXT);
            n->as.text = parser_string(p, p->at->text, p->at->n);
            parser_advance(p);
            node_list_add(p, body, n);
        } else if (p->at->kind == TOKEN_VARIABLE_BEGIN) {
            parser_advance(p);
            n = node_new(p, NODE_OUTPUT);
            n->as.output = parse_tuple(p, true, NULL, false);
            expect_kind(p, TOKEN_VARIABLE_END, "}}");
            node_list_add(p, body, n);
        } else if (p->at->kind == TOKEN_BLOCK_BEGIN) {
            parser_advance(p);
            for (size_t i = 0; until != NULL && until[i] != NULL; i++) {
                if (at_word(p, until[i])) {
                    p->depth--;
                    return;
                }
            }
            node_list_add(p, body, parse_statement(p));
        } else if (until == NULL && p->at->kind == TOKEN_END) {
            break;
        } else {
            parser_unexpected(p, until == NULL ? "text or a tag" : until[0]);
        }
    }
    p->depth--;
}
