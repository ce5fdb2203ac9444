/* builtins: the tests ("x is defined") and the global functions of templates. */
#include "engine/chat_template/eval.h"

#include "engine/chat_template/text.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"

#include <string.h>
#include <time.h>

enum { RANGE_MAX = 100000, DATE_MAX_BYTES = 1024 }; /* Jinja's sandbox has the same for range */

/* ---- tests ----------------------------------------------------------------------------------- */

#define TEST(name, condition)                                                                    \
    static struct value test_##name(struct eval *e, const struct value *v, const struct args *a) \
    {                                                                                            \
        (void)e;                                                                                 \
        (void)v;                                                                                 \
        (void)a;                                                                                 \
        return value_bool(condition);                                                            \
    }

TEST(defined, v[0].type != VALUE_UNDEFINED)
TEST(undefined, v[0].type == VALUE_UNDEFINED)
TEST(none, v[0].type == VALUE_NONE)
TEST(boolean, v[0].type == VALUE_BOOL)
TEST(true, v[0].type == VALUE_BOOL && v[0].as.boolean)
TEST(false, v[0].type == VALUE_BOOL && !v[0].as.boolean)
TEST(integer, v[0].type == VALUE_INT)
TEST(float, v[0].type == VALUE_FLOAT)
TEST(number, value_is_number(v[0]))
TEST(string, v[0].type == VALUE_STRING)
TEST(mapping, v[0].type == VALUE_DICT)
TEST(iterable, value_is_list(v[0]) || v[0].type == VALUE_STRING || v[0].type == VALUE_DICT ||
                   v[0].type == VALUE_UNDEFINED || v[0].type == VALUE_LOOP)
TEST(sequence, v[0].type == VALUE_STRING || v[0].type == VALUE_DICT || v[0].type == VALUE_LIST ||
                   v[0].type == VALUE_TUPLE || v[0].type == VALUE_RANGE ||
                   v[0].type == VALUE_UNDEFINED)
TEST(callable, v[0].type == VALUE_FUNCTION || v[0].type == VALUE_METHOD ||
                   v[0].type == VALUE_MACRO || v[0].type == VALUE_LOOP ||
                   v[0].type == VALUE_UNDEFINED)
TEST(escaped, false)
TEST(in, eval_contains(e, v[1], v[0]))
TEST(eq, value_equal(e, v[0], v[1]))
TEST(ne, !value_equal(e, v[0], v[1]))
TEST(sameas, v[0].type == v[1].type && value_equal(e, v[0], v[1]))
TEST(filter, v[0].type == VALUE_STRING && filter_named(v[0].as.string) != NULL)
TEST(test, v[0].type == VALUE_STRING && test_named(v[0].as.string) != NULL)

static struct value compare(struct eval *e, const struct value *v, enum operator op)
{
    return eval_operator(e, op, v[0], v[1]);
}

static struct value test_lt(struct eval *e, const struct value *v, const struct args *a)
{
    (void)a;
    return compare(e, v, OP_LT);
}

static struct value test_le(struct eval *e, const struct value *v, const struct args *a)
{
    (void)a;
    return compare(e, v, OP_LE);
}

static struct value test_gt(struct eval *e, const struct value *v, const struct args *a)
{
    (void)a;
    return compare(e, v, OP_GT);
}

static struct value test_ge(struct eval *e, const struct value *v, const struct args *a)
{
    (void)a;
    return compare(e, v, OP_GE);
}

static struct value remainder_is(struct eval *e, struct value v, struct value divisor,
                                 int64_t wanted)
{
    return eval_operator(e, OP_EQ, eval_operator(e, OP_MOD, v, divisor), value_int(wanted));
}

static struct value test_odd(struct eval *e, const struct value *v, const struct args *a)
{
    (void)a;
    return remainder_is(e, v[0], value_int(2), 1);
}

static struct value test_even(struct eval *e, const struct value *v, const struct args *a)
{
    (void)a;
    return remainder_is(e, v[0], value_int(2), 0);
}

static struct value test_divisibleby(struct eval *e, const struct value *v, const struct args *a)
{
    (void)a;
    return remainder_is(e, v[0], v[1], 0);
}

static struct value has_case(struct eval *e, const struct value *v, const char *method)
{
    const struct string name = {.bytes = method, .n = strlen(method)};
    bool forbidden = false;
    struct value text = value_string(value_str(e, v[0]));
    const struct args none = {0};
    return eval_call_function(e, method_named(VALUE_STRING, &name, &forbidden), "", text, &none);
}

static struct value test_upper(struct eval *e, const struct value *v, const struct args *a)
{
    (void)a;
    return has_case(e, v, "isupper");
}

static struct value test_lower(struct eval *e, const struct value *v, const struct args *a)
{
    (void)a;
    return has_case(e, v, "islower");
}

static const struct function tests[] = {
    {"defined", "", test_defined, 0},
    {"undefined", "", test_undefined, 0},
    {"none", "", test_none, 0},
    {"boolean", "", test_boolean, 0},
    {"true", "", test_true, 0},
    {"false", "", test_false, 0},
    {"integer", "", test_integer, 0},
    {"float", "", test_float, 0},
    {"number", "", test_number, 0},
    {"string", "", test_string, 0},
    {"mapping", "", test_mapping, 0},
    {"iterable", "", test_iterable, 0},
    {"sequence", "", test_sequence, 0},
    {"callable", "", test_callable, 0},
    {"escaped", "", test_escaped, 0},
    {"in", "seq", test_in, 0},
    {"eq", "other", test_eq, 0},
    {"equalto", "other", test_eq, 0},
    {"==", "other", test_eq, 0},
    {"ne", "other", test_ne, 0},
    {"!=", "other", test_ne, 0},
    {"lt", "other", test_lt, 0},
    {"lessthan", "other", test_lt, 0},
    {"<", "other", test_lt, 0},
    {"le", "other", test_le, 0},
    {"<=", "other", test_le, 0},
    {"gt", "other", test_gt, 0},
    {"greaterthan", "other", test_gt, 0},
    {">", "other", test_gt, 0},
    {"ge", "other", test_ge, 0},
    {">=", "other", test_ge, 0},
    {"sameas", "other", test_sameas, 0},
    {"odd", "", test_odd, 0},
    {"even", "", test_even, 0},
    {"divisibleby", "num", test_divisibleby, 0},
    {"upper", "", test_upper, 0},
    {"lower", "", test_lower, 0},
    {"filter", "", test_filter, 0},
    {"test", "", test_test, 0},
};

/* ---- globals --------------------------------------------------------------------------------- */

static struct value raise_exception(struct eval *e, const struct value *v, const struct args *a)
{
    (void)a;
    const struct string *message = value_str(e, v[1]);
    if (eval_failed(e))
        return value_none();
    e->raised = true;
    return eval_error(e, "%.*s",
                      (int)(message->n < ERR_MESSAGE_BYTES ? message->n : ERR_MESSAGE_BYTES),
                      message->bytes);
}

static struct value range(struct eval *e, const struct value *v, const struct args *a)
{
    int64_t n[3] = {0, 0, 1};
    (void)v;
    if (a->n_named > 0 || a->n < 1 || a->n > 3)
        return eval_error(e, "range expected 1 to 3 positional arguments");
    for (size_t i = 0; i < a->n; i++) {
        if (eval_refuse_undefined(e, a->positional[i]))
            return value_none();
        if (!value_as_int(a->positional[i], &n[a->n == 1 ? 1 : i]))
            return eval_error(e, "'%s' object cannot be interpreted as an integer",
                              value_type_name(a->positional[i]));
    }
    if (n[2] == 0)
        return eval_error(e, "range() arg 3 must not be zero");
    uint64_t distance = n[2] > 0 ? (n[1] > n[0] ? (uint64_t)n[1] - (uint64_t)n[0] : 0)
                                 : (n[0] > n[1] ? (uint64_t)n[0] - (uint64_t)n[1] : 0);
    uint64_t stride = n[2] > 0 ? (uint64_t)n[2] : 0 - (uint64_t)n[2];
    uint64_t count = distance == 0 ? 0 : (distance - 1) / stride + 1;
    if (count > RANGE_MAX)
        return eval_fail(e, ERR_TOO_LARGE,
                         "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).",
                         RANGE_MAX);
    struct value list = value_list(e, VALUE_RANGE, (size_t)count);
    if (eval_failed(e))
        return list;
    list.as.list->start = n[0];
    list.as.list->stop = n[1];
    list.as.list->step = n[2];
    for (size_t i = 0; i < count; i++)
        list.as.list->items[i] = value_int((int64_t)((uint64_t)n[0] + i * (uint64_t)n[2]));
    return list;
}

/* dict(a=1), dict(other), dict([[k, v]]); namespace takes the same. */
static struct value make_dict(struct eval *e, const struct args *a, const char *name)
{
    struct value d = value_dict(e);
    if (a->n > 1)
        return eval_error(e, "%s expected at most 1 argument, got %zu", name, a->n);
    if (a->n == 1 && a->positional[0].type == VALUE_DICT) {
        const struct dict *from = a->positional[0].as.dict;
        for (size_t i = 0; i < from->n && !eval_failed(e); i++)
            dict_put(e, d.as.dict, from->entries[i].key, from->entries[i].value);
    } else if (a->n == 1) {
        struct value pairs = value_items(e, a->positional[0]);
        for (size_t i = 0; !eval_failed(e) && i < pairs.as.list->n; i++) {
            struct value pair = value_items(e, pairs.as.list->items[i]);
            if (eval_failed(e))
                break;
            if (pair.as.list->n != 2)
                return eval_error(e,
                                  "dictionary update sequence element #%zu has length %zu; 2 is "
                                  "required",
                                  i, pair.as.list->n);
            dict_put(e, d.as.dict, pair.as.list->items[0], pair.as.list->items[1]);
        }
    }
    for (size_t i = 0; i < a->n_named && !eval_failed(e); i++)
        dict_put(e, d.as.dict, a->named[i].key, a->named[i].value);
    return d;
}

static struct value dict(struct eval *e, const struct value *v, const struct args *a)
{
    (void)v;
    return make_dict(e, a, "dict");
}

static struct value namespace(struct eval *e, const struct value *v, const struct args *a)
{
    (void)v;
    struct value d = make_dict(e, a, "namespace");
    if (d.type == VALUE_DICT)
        d.type = VALUE_NAMESPACE;
    return d;
}

/* datetime.now().strftime(format), in UTC; a naive time, so %Z and %z are empty. */
static struct value strftime_now(struct eval *e, const struct value *v, const struct args *a)
{
    (void)a;
    if (v[1].type != VALUE_STRING)
        return eval_error(e, "strftime() argument 1 must be str, not %s", value_type_name(v[1]));
    const struct string *format = v[1].as.string;
    char plain[DATE_MAX_BYTES], text[DATE_MAX_BYTES];
    size_t n = 0;
    for (size_t i = 0; i < format->n; i++) {
        bool zone = format->bytes[i] == '%' && i + 1 < format->n &&
                    (format->bytes[i + 1] == 'Z' || format->bytes[i + 1] == 'z');
        if (zone) {
            i++;
            continue;
        }
        /* A pair goes over whole, so that "%%Z" is "%Z". */
        size_t k = format->bytes[i] == '%' && i + 1 < format->n ? 2 : 1;
        if (n + k >= sizeof plain)
            return eval_fail(e, ERR_TOO_LARGE, "a date format of more than %d bytes",
                             DATE_MAX_BYTES);
        memcpy(plain + n, format->bytes + i, k);
        n += k;
        i += k - 1;
    }
    if (n == 0)
        return value_text(e, "");
    plain[n] = '\0';
    time_t seconds = (time_t)(e->now.ms / 1000);
    struct tm tm;
    if (gmtime_r(&seconds, &tm) == NULL)
        return eval_error(e, "the time is outside the calendar");
    size_t n_text = strftime(text, sizeof text, plain, &tm);
    if (n_text == 0)
        return eval_fail(e, ERR_TOO_LARGE, "a date of more than %d bytes", DATE_MAX_BYTES);
    return value_text(e, text);
}

static const struct function globals[] = {
    {"raise_exception", "message", raise_exception, 0},
    {"range", "*", range, 0},
    {"dict", "*", dict, 0},
    {"namespace", "*", namespace, 0},
    {"strftime_now", "format", strftime_now, 0},
};

static const struct function *find(const struct function *table, size_t n,
                                   const struct string *name)
{
    for (size_t i = 0; i < n; i++)
        if (string_is(name, table[i].name))
            return &table[i];
    return NULL;
}

const struct function *test_named(const struct string *name)
{
    return find(tests, sizeof tests / sizeof tests[0], name);
}

const struct function *global_named(const struct string *name)
{
    return find(globals, sizeof globals / sizeof globals[0], name);
}
