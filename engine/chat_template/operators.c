/* operators: Python's operators on values, and how parts of values are reached.
 *
 * Messages are those of CPython and Jinja2, because templates are debugged by people who know them
 * and because the goldens hold them. Integers are 64 bits; where Python would go on to bigger ones,
 * the rendering fails. */
#include "engine/chat_template/eval.h"

#include "engine/tokenizer/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static const char *symbol(enum operator op)
{
    switch (op) {
    case OP_ADD:
        return "+";
    case OP_SUB:
        return "-";
    case OP_MUL:
        return "*";
    case OP_DIV:
        return "/";
    case OP_FLOORDIV:
        return "//";
    case OP_MOD:
        return "%";
    case OP_POW:
        return "** or pow()";
    case OP_EQ:
        return "==";
    case OP_NE:
        return "!=";
    case OP_LT:
        return "<";
    case OP_LE:
        return "<=";
    case OP_GT:
        return ">";
    case OP_GE:
        return ">=";
    case OP_IN:
        return "in";
    case OP_NOT_IN:
        return "not in";
    }
    BUG("operator %d", (int)op);
}

/* ---- arithmetic ------------------------------------------------------------------------------ */

static struct value too_large(struct eval *e)
{
    return eval_error(e, "integers beyond 64 bits are not supported");
}

static struct value power_ints(struct eval *e, int64_t a, int64_t b)
{
    if (b < 0)
        return a == 0 ? eval_error(e, "0.0 cannot be raised to a negative power")
                      : value_float(pow((double)a, (double)b));
    int64_t result = 1;
    for (; b > 0; b >>= 1) {
        if ((b & 1) && __builtin_mul_overflow(result, a, &result))
            return too_large(e);
        if (b > 1 && __builtin_mul_overflow(a, a, &a))
            return too_large(e);
    }
    return value_int(result);
}

static struct value operate_ints(struct eval *e, enum operator op, int64_t a, int64_t b)
{
    int64_t r;
    switch (op) {
    case OP_ADD:
        return __builtin_add_overflow(a, b, &r) ? too_large(e) : value_int(r);
    case OP_SUB:
        return __builtin_sub_overflow(a, b, &r) ? too_large(e) : value_int(r);
    case OP_MUL:
        return __builtin_mul_overflow(a, b, &r) ? too_large(e) : value_int(r);
    case OP_DIV:
        return b == 0 ? eval_error(e, "division by zero") : value_float((double)a / (double)b);
    case OP_FLOORDIV:
    case OP_MOD:
        if (b == 0)
            return eval_error(e, op == OP_MOD ? "integer modulo by zero"
                                              : "integer division or modulo by zero");
        if (b == -1) /* INT64_MIN / -1 has no answer */
            return op == OP_MOD ? value_int(0) : operate_ints(e, OP_SUB, 0, a);
        r = a % b;
        if (r != 0 && (r < 0) != (b < 0)) /* Python's remainder has the divisor's sign */
            return value_int(op == OP_MOD ? r + b : a / b - 1);
        return value_int(op == OP_MOD ? r : a / b);
    case OP_POW:
        return power_ints(e, a, b);
    default:
        BUG("operator %d", (int)op);
    }
}

static struct value operate_floats(struct eval *e, enum operator op, double a, double b)
{
    double r;
    switch (op) {
    case OP_ADD:
        return value_float(a + b);
    case OP_SUB:
        return value_float(a - b);
    case OP_MUL:
        return value_float(a * b);
    case OP_DIV:
        return b == 0 ? eval_error(e, "float division by zero") : value_float(a / b);
    case OP_FLOORDIV:
    case OP_MOD:
        if (b == 0)
            return eval_error(e, op == OP_MOD ? "float modulo" : "float floor division by zero");
        r = fmod(a, b);
        if (r != 0 && (r < 0) != (b < 0))
            r += b;
        return value_float(op == OP_MOD ? r : floor((a - r) / b + 0.5));
    case OP_POW:
        r = pow(a, b);
        return isnan(r) && !isnan(a) && !isnan(b)
                   ? eval_error(e, "complex numbers are not supported")
                   : value_float(r);
    default:
        BUG("operator %d", (int)op);
    }
}

static struct value repeat(struct eval *e, struct value v, int64_t n)
{
    size_t times = n > 0 ? (size_t)n : 0;
    if (v.type == VALUE_STRING) {
        struct builder b = {0};
        for (size_t i = 0; i < times && v.as.string->n > 0 && !eval_failed(e); i++)
            builder_put(e, &b, v.as.string);
        return value_string(builder_string(e, &b));
    }
    size_t len = v.as.list->n;
    if (len != 0 && times > LIST_MAX / len)
        return eval_fail(e, ERR_TOO_LARGE, "a list of more than %d items", LIST_MAX);
    struct value out = value_list(e, v.type, len * times);
    for (size_t i = 0; !eval_failed(e) && i < len * times; i++)
        out.as.list->items[i] = v.as.list->items[i % len];
    return out;
}

static struct value concatenate(struct eval *e, struct value a, struct value b)
{
    if (a.type == VALUE_STRING) {
        struct builder both = {0};
        builder_put(e, &both, a.as.string);
        builder_put(e, &both, b.as.string);
        return value_string(builder_string(e, &both));
    }
    size_t n = a.as.list->n, m = b.as.list->n;
    struct value out = value_list(e, a.type, n + m);
    for (size_t i = 0; !eval_failed(e) && i < n + m; i++)
        out.as.list->items[i] = i < n ? a.as.list->items[i] : b.as.list->items[i - n];
    return out;
}

static bool is_sequence(struct value v)
{
    return v.type == VALUE_STRING || v.type == VALUE_LIST || v.type == VALUE_TUPLE;
}

static struct value arithmetic(struct eval *e, enum operator op, struct value a, struct value b)
{
    int64_t i, j;
    if (eval_refuse_undefined(e, a))
        return a;
    if (op == OP_MOD && a.type == VALUE_STRING)
        return eval_format(e, a.as.string, b);
    if (eval_refuse_undefined(e, b))
        return b;
    if (value_as_int(a, &i) && value_as_int(b, &j))
        return operate_ints(e, op, i, j);
    if (value_is_number(a) && value_is_number(b))
        return operate_floats(e, op, value_real(a), value_real(b));
    if (op == OP_ADD && a.type == b.type && is_sequence(a))
        return concatenate(e, a, b);
    if (op == OP_MUL && is_sequence(a) && value_as_int(b, &j))
        return repeat(e, a, j);
    if (op == OP_MUL && is_sequence(b) && value_as_int(a, &i))
        return repeat(e, b, i);
    if (op == OP_ADD && is_sequence(a))
        return eval_error(e, "can only concatenate %s (not \"%s\") to %s", value_type_name(a),
                          value_type_name(b), value_type_name(a));
    if (op == OP_MUL && (is_sequence(a) || is_sequence(b)))
        return eval_error(e, "can't multiply sequence by non-int of type '%s'",
                          value_type_name(is_sequence(a) ? b : a));
    return eval_error(e, "unsupported operand type(s) for %s: '%s' and '%s'", symbol(op),
                      value_type_name(a), value_type_name(b));
}

bool eval_contains(struct eval *e, struct value container, struct value v)
{
    if (container.type == VALUE_STRING) {
        if (v.type != VALUE_STRING) {
            eval_error(e, "'in <string>' requires string as left operand, not %s",
                       value_type_name(v));
            return false;
        }
        eval_charge(e, container.as.string->n / 16);
        return memmem(container.as.string->bytes, container.as.string->n, v.as.string->bytes,
                      v.as.string->n) != NULL;
    }
    if (container.type == VALUE_DICT) {
        if (v.type == VALUE_LIST || v.type == VALUE_DICT)
            eval_error(e, "unhashable type: '%s'", value_type_name(v));
        return dict_get(e, container.as.dict, v) != NULL;
    }
    if (!value_is_list(container) && container.type != VALUE_UNDEFINED) {
        eval_error(e, "argument of type '%s' is not iterable", value_type_name(container));
        return false;
    }
    struct value items = value_items(e, container);
    for (size_t i = 0; !eval_failed(e) && i < items.as.list->n; i++) {
        eval_charge(e, 1);
        if (value_equal(e, items.as.list->items[i], v))
            return true;
    }
    return false;
}

struct value eval_operator(struct eval *e, enum operator op, struct value a, struct value b)
{
    int c;
    switch (op) {
    case OP_ADD:
    case OP_SUB:
    case OP_MUL:
    case OP_DIV:
    case OP_FLOORDIV:
    case OP_MOD:
    case OP_POW:
        return arithmetic(e, op, a, b);
    case OP_EQ:
        return value_bool(value_equal(e, a, b));
    case OP_NE:
        return value_bool(!value_equal(e, a, b));
    case OP_LT:
        return value_bool(value_compare(e, a, b, symbol(op)) == -1);
    case OP_LE:
        c = value_compare(e, a, b, symbol(op));
        return value_bool(c == -1 || c == 0);
    case OP_GT:
        return value_bool(value_compare(e, a, b, symbol(op)) == 1);
    case OP_GE:
        c = value_compare(e, a, b, symbol(op));
        return value_bool(c == 1 || c == 0);
    case OP_IN:
        return value_bool(eval_contains(e, b, a));
    case OP_NOT_IN:
        return value_bool(!eval_contains(e, b, a));
    }
    BUG("operator %d", (int)op);
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* As Jinja's Undefined names an object. */
static const char *object_name(struct value v)
{
    return v.type == VALUE_NONE        ? "None"
           : v.type == VALUE_NAMESPACE ? "jinja2.utils.Namespace object"
           : v.type == VALUE_MACRO     ? "jinja2.runtime.Macro object"
           : v.type == VALUE_LOOP      ? "jinja2.runtime.LoopContext object"
                                       : value_type_name(v);
}

static struct value no_attribute(struct eval *e, struct value object, const struct string *name)
{
    bool whole = object.type == VALUE_NONE || object.type == VALUE_NAMESPACE ||
                 object.type == VALUE_MACRO || object.type == VALUE_LOOP;
    struct builder quoted = {0};
    value_put_repr(e, &quoted, value_string(name), 0);
    const struct string *q = builder_string(e, &quoted);
    return eval_undefined(e, "'%s%s' has no attribute %.*s", object_name(object),
                          whole ? "" : " object", (int)(q->n < 200 ? q->n : 200), q->bytes);
}

static struct value no_element(struct eval *e, struct value object, struct value key)
{
    if (key.type == VALUE_STRING)
        return no_attribute(e, object, key.as.string);
    struct builder quoted = {0};
    value_put_repr(e, &quoted, key, 0);
    const struct string *q = builder_string(e, &quoted);
    return eval_undefined(e, "%s%s has no element %.*s", object_name(object),
                          object.type == VALUE_NONE ? "" : " object",
                          (int)(q->n < 200 ? q->n : 200), q->bytes);
}

static struct value loop_attribute(struct eval *e, const struct loop *l, const struct string *name,
                                   bool *found)
{
    int64_t at = (int64_t)l->at, n = (int64_t)l->n;
    *found = true;
    if (string_is(name, "index"))
        return value_int(at + 1);
    if (string_is(name, "index0"))
        return value_int(at);
    if (string_is(name, "revindex"))
        return value_int(n - at);
    if (string_is(name, "revindex0"))
        return value_int(n - at - 1);
    if (string_is(name, "first"))
        return value_bool(at == 0);
    if (string_is(name, "last"))
        return value_bool(at == n - 1);
    if (string_is(name, "length"))
        return value_int(n);
    if (string_is(name, "depth"))
        return value_int((int64_t)l->depth + 1);
    if (string_is(name, "depth0"))
        return value_int((int64_t)l->depth);
    if (string_is(name, "previtem"))
        return at > 0 ? l->items[at - 1] : eval_undefined(e, "there is no previous item");
    if (string_is(name, "nextitem"))
        return at + 1 < n ? l->items[at + 1] : eval_undefined(e, "there is no next item");
    *found = false;
    return value_none();
}

/* What Python's getattr finds: attributes and methods, no items. */
static struct value python_attribute(struct eval *e, struct value object, const struct string *name,
                                     bool *found)
{
    *found = true;
    if (name->n >= 2 && memcmp(name->bytes, "__", 2) == 0)
        return eval_undefined(e, "access to attribute '%.*s' of '%s' object is unsafe.",
                              (int)(name->n < 100 ? name->n : 100), name->bytes,
                              value_type_name(object));
    if (object.type == VALUE_NAMESPACE) {
        const struct value *v = dict_get(e, object.as.dict, value_string(name));
        if (v != NULL)
            return *v;
    } else if (object.type == VALUE_LOOP) {
        struct value v = loop_attribute(e, object.as.loop, name, found);
        if (*found)
            return v;
    } else if (object.type == VALUE_MACRO && string_is(name, "name")) {
        return value_string(object.as.macro->node->as.macro.name);
    }
    bool forbidden = false;
    const struct function *f = method_named(object.type, name, &forbidden);
    *found = true;
    if (forbidden)
        return eval_undefined(e, "access to attribute '%.*s' of '%s' object is unsafe.",
                              (int)name->n, name->bytes, value_type_name(object));
    if (f != NULL) {
        struct method *m = eval_alloc(e, 1, sizeof *m);
        if (m != NULL)
            *m = (struct method){object, f};
        return m == NULL ? value_none() : (struct value){.type = VALUE_METHOD, .as.method = m};
    }
    *found = false;
    return value_none();
}

/* What Python's object[key] finds, with everything it would raise counted as not found. */
static struct value python_item(struct eval *e, struct value object, struct value key, bool *found)
{
    int64_t i;
    *found = true;
    if (object.type == VALUE_DICT) {
        const struct value *v = dict_get(e, object.as.dict, key);
        if (v != NULL)
            return *v;
    } else if (object.type == VALUE_STRING && value_as_int(key, &i)) {
        const struct string *s = object.as.string;
        int64_t n = value_length(e, object);
        i = i < 0 ? i + n : i;
        if (i >= 0 && i < n) {
            size_t at = 0;
            for (; i > 0; i--)
                at += utf8_char_bytes((uint8_t)s->bytes[at]);
            return value_string(
                string_slice(e, s, at, at + utf8_char_bytes((uint8_t)s->bytes[at])));
        }
    } else if ((object.type == VALUE_LIST || object.type == VALUE_TUPLE ||
                object.type == VALUE_RANGE) &&
               value_as_int(key, &i)) {
        int64_t n = (int64_t)object.as.list->n;
        i = i < 0 ? i + n : i;
        if (i >= 0 && i < n)
            return object.as.list->items[i];
    }
    *found = false;
    return value_none();
}

struct value eval_attribute(struct eval *e, struct value object, const struct string *name)
{
    bool found;
    if (eval_refuse_undefined(e, object))
        return object;
    struct value v = python_attribute(e, object, name, &found);
    if (!found)
        v = python_item(e, object, value_string(name), &found);
    return found ? v : no_attribute(e, object, name);
}

struct value eval_item(struct eval *e, struct value object, struct value key)
{
    bool found;
    if (eval_refuse_undefined(e, object))
        return object;
    struct value v = python_item(e, object, key, &found);
    if (!found && key.type == VALUE_STRING)
        v = python_attribute(e, object, key.as.string, &found);
    return found ? v : no_element(e, object, key);
}

/* An end of a slice: None means the default, a negative one counts from behind. */
static bool slice_bound(struct eval *e, struct value v, int64_t n, int64_t lowest, int64_t highest,
                        int64_t *bound)
{
    int64_t i;
    if (v.type == VALUE_NONE)
        return true;
    if (!value_as_int(v, &i)) {
        eval_error(e, "slice indices must be integers or None or have an __index__ method");
        return false;
    }
    if (i < 0)
        i = i < -n ? lowest : i + n;
    *bound = i < lowest ? lowest : i > highest ? highest : i;
    return true;
}

struct value eval_slice(struct eval *e, struct value object, struct value start, struct value stop,
                        struct value step)
{
    int64_t by = 1;
    if (eval_refuse_undefined(e, object))
        return object;
    /* Jinja compiles a slice to Python's, which raises where an index would be undefined. */
    if (object.type == VALUE_DICT)
        return eval_error(e, "unhashable type: 'slice'");
    if (!is_sequence(object) && object.type != VALUE_RANGE)
        return eval_error(e, "'%s' object is not subscriptable", value_type_name(object));
    if (step.type != VALUE_NONE && !value_as_int(step, &by))
        return eval_error(e, "slice indices must be integers or None or have an __index__ method");
    if (by == 0)
        return eval_error(e, "slice step cannot be zero");
    int64_t n = value_length(e, object);
    int64_t from = by > 0 ? 0 : n - 1, to = by > 0 ? n : -1;
    if (!slice_bound(e, start, n, by > 0 ? 0 : -1, by > 0 ? n : n - 1, &from) ||
        !slice_bound(e, stop, n, by > 0 ? 0 : -1, by > 0 ? n : n - 1, &to))
        return object;
    if (object.type == VALUE_STRING && by == 1) {
        const struct string *s = object.as.string;
        size_t begin = 0;
        int64_t i = 0;
        for (; i < from; i++)
            begin += utf8_char_bytes((uint8_t)s->bytes[begin]);
        size_t end = begin;
        for (; i < to; i++)
            end += utf8_char_bytes((uint8_t)s->bytes[end]);
        return value_string(string_slice(e, s, begin, end));
    }
    uint64_t distance = by > 0 ? (to > from ? (uint64_t)(to - from) : 0)
                               : (from > to ? (uint64_t)(from - to) : 0);
    uint64_t stride = by > 0 ? (uint64_t)by : 0 - (uint64_t)by;
    size_t count = (size_t)(distance == 0 ? 0 : (distance - 1) / stride + 1);
    struct value all = value_items(e, object);
    struct value out = value_list(e, object.type == VALUE_TUPLE ? VALUE_TUPLE : VALUE_LIST, count);
    for (size_t k = 0; k < count && !eval_failed(e); k++)
        out.as.list->items[k] = all.as.list->items[from + (int64_t)k * by];
    if (object.type == VALUE_RANGE && !eval_failed(e)) {
        const struct list *r = object.as.list;
        out.type = VALUE_RANGE;
        /* Modulo 2^64, as the stop of a range may lie one step beyond what fits. */
        out.as.list->start = (int64_t)((uint64_t)r->start + (uint64_t)from * (uint64_t)r->step);
        out.as.list->stop = (int64_t)((uint64_t)r->start + (uint64_t)to * (uint64_t)r->step);
        out.as.list->step = __builtin_mul_overflow(r->step, by, &by) ? 1 : by;
    }
    if (object.type != VALUE_STRING || eval_failed(e))
        return out;
    struct builder b = {0};
    for (size_t k = 0; k < count && !eval_failed(e); k++)
        builder_put(e, &b, out.as.list->items[k].as.string);
    return value_string(builder_string(e, &b));
}
