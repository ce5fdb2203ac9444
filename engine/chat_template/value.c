/* value: see value.h. Strings with the memory of where they came from, lists and dicts on the
 * arena, and Python's rules for truth, equality and order. How values are written is in write.c.
 *
 * A dict is an array of entries in order of insertion, searched from the front: what templates meet
 * (messages, tools, schemas) has few keys. Every search is charged as work, so that a request with
 * a million keys ends at the bound on steps and not after an hour. */
#include "engine/chat_template/value.h"

#include "engine/chat_template/eval.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/buf.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- strings --------------------------------------------------------------------------------- */

static const struct string *string_copy(struct eval *e, const char *bytes, size_t n, bool input)
{
    static const struct string empty = {.bytes = ""};
    struct string *s = eval_alloc(e, 1, sizeof *s);
    char *copy = eval_alloc(e, n + 1, 1);
    if (s == NULL || copy == NULL)
        return &empty;
    if (n > 0)
        memcpy(copy, bytes, n);
    *s = (struct string){.bytes = copy, .n = n, .all_input = input};
    return s;
}

struct value value_text(struct eval *e, const char *text)
{
    return value_string(string_copy(e, text, strlen(text), false));
}

struct value value_textf(struct eval *e, const char *format, ...)
{
    struct buf b = BUF_INIT;
    va_list args;
    va_start(args, format);
    buf_appendfv(&b, format, args);
    va_end(args);
    struct value v = value_string(string_copy(e, buf_cstr(&b), b.len, false));
    buf_release(&b);
    return v;
}

const struct string *string_slice(struct eval *e, const struct string *s, size_t begin, size_t end)
{
    if (begin == 0 && end == s->n)
        return s;
    struct string *part = eval_alloc(e, 1, sizeof *part);
    if (part == NULL)
        return s;
    *part = (struct string){.bytes = s->bytes + begin,
                            .n = end - begin,
                            .all_input = s->all_input,
                            .input = s->input == NULL ? NULL : s->input + begin};
    return part;
}

bool string_equal(const struct string *a, const struct string *b)
{
    return a->n == b->n && memcmp(a->bytes, b->bytes, a->n) == 0;
}

bool string_is(const struct string *s, const char *text)
{
    return s->n == strlen(text) && memcmp(s->bytes, text, s->n) == 0;
}

/* ---- builder --------------------------------------------------------------------------------- */

static bool builder_reserve(struct eval *e, struct builder *b, size_t n)
{
    if (b->cap - b->n >= n)
        return true;
    size_t cap = b->cap == 0 ? 64 : b->cap;
    while (cap - b->n < n)
        cap *= 2;
    char *bytes = eval_alloc(e, cap, 1);
    uint8_t *input = eval_alloc(e, cap, 1);
    if (bytes == NULL || input == NULL)
        return false;
    if (b->n > 0) {
        memcpy(bytes, b->bytes, b->n);
        memcpy(input, b->input, b->n);
    }
    b->bytes = bytes;
    b->input = input;
    b->cap = cap;
    return true;
}

void builder_put_bytes(struct eval *e, struct builder *b, const char *bytes, size_t n, bool input)
{
    eval_charge(e, n / 16 + 1);
    if (n == 0 || eval_failed(e) || !builder_reserve(e, b, n))
        return;
    memcpy(b->bytes + b->n, bytes, n);
    memset(b->input + b->n, input, n);
    b->any_input = b->any_input || input;
    b->n += n;
}

void builder_put(struct eval *e, struct builder *b, const struct string *s)
{
    size_t before = b->n;
    builder_put_bytes(e, b, s->bytes, s->n, s->all_input);
    if (s->input != NULL && b->n > before) {
        memcpy(b->input + before, s->input, s->n);
        b->any_input = true;
    }
}

void builder_put_text(struct eval *e, struct builder *b, const char *text)
{
    builder_put_bytes(e, b, text, strlen(text), false);
}

const struct string *builder_string(struct eval *e, const struct builder *b)
{
    if (b->n == 0)
        return string_copy(e, "", 0, false);
    struct string *s = eval_alloc(e, 1, sizeof *s);
    if (s == NULL)
        return string_copy(e, "", 0, false);
    *s = (struct string){.bytes = b->bytes, .n = b->n, .input = b->any_input ? b->input : NULL};
    return s;
}

/* ---- lists and dicts ------------------------------------------------------------------------- */

struct value value_list(struct eval *e, enum value_type type, size_t n)
{
    struct list *list = eval_alloc(e, 1, sizeof *list);
    struct value *items = eval_alloc(e, n, sizeof *items);
    eval_charge(e, n);
    if (list == NULL || items == NULL)
        return eval_undefined(e, "no memory");
    for (size_t i = 0; i < n; i++)
        items[i] = value_none();
    *list = (struct list){.items = items, .n = n};
    return (struct value){.type = type, .as.list = list};
}

struct value value_iterator(struct eval *e, struct value list, const char *name)
{
    if (!value_is_list(list))
        return list;
    struct list *it = eval_alloc(e, 1, sizeof *it);
    if (it == NULL)
        return list;
    *it = (struct list){.items = list.as.list->items, .n = list.as.list->n, .name = name};
    return (struct value){.type = VALUE_ITERATOR, .as.list = it};
}

struct value value_dict(struct eval *e)
{
    struct dict *d = eval_alloc(e, 1, sizeof *d);
    if (d == NULL)
        return eval_undefined(e, "no memory");
    return (struct value){.type = VALUE_DICT, .as.dict = d};
}

const struct value *dict_get(struct eval *e, const struct dict *d, struct value key)
{
    for (size_t i = 0; i < d->n; i++) {
        if (value_equal(e, d->entries[i].key, key)) {
            eval_charge(e, i + 1);
            return &d->entries[i].value;
        }
    }
    eval_charge(e, d->n);
    return NULL;
}

const struct value *dict_get_text(const struct dict *d, const char *key)
{
    for (size_t i = 0; i < d->n; i++)
        if (d->entries[i].key.type == VALUE_STRING && string_is(d->entries[i].key.as.string, key))
            return &d->entries[i].value;
    return NULL;
}

void dict_put(struct eval *e, struct dict *d, struct value key, struct value value)
{
    struct value *known = (struct value *)dict_get(e, d, key);
    if (known != NULL) {
        *known = value;
        return;
    }
    if (d->n == d->cap) {
        size_t cap = d->cap == 0 ? 8 : d->cap * 2;
        struct dict_entry *entries = eval_alloc(e, cap, sizeof *entries);
        if (entries == NULL)
            return;
        if (d->n > 0)
            memcpy(entries, d->entries, d->n * sizeof *entries);
        d->entries = entries;
        d->cap = cap;
    }
    d->entries[d->n++] = (struct dict_entry){key, value};
}

/* ---- looking --------------------------------------------------------------------------------- */

const char *value_type_name(struct value v)
{
    switch (v.type) {
    case VALUE_ABSENT:
    case VALUE_UNDEFINED:
        return "Undefined";
    case VALUE_NONE:
        return "NoneType";
    case VALUE_BOOL:
        return "bool";
    case VALUE_INT:
        return "int";
    case VALUE_FLOAT:
        return "float";
    case VALUE_STRING:
        return "str";
    case VALUE_LIST:
        return "list";
    case VALUE_TUPLE:
        return "tuple";
    case VALUE_RANGE:
        return "range";
    case VALUE_VIEW:
    case VALUE_ITERATOR:
        return v.as.list->name;
    case VALUE_DICT:
        return "dict";
    case VALUE_NAMESPACE:
        return "Namespace";
    case VALUE_FUNCTION:
        return "function";
    case VALUE_METHOD:
        return "builtin_function_or_method";
    case VALUE_MACRO:
        return "Macro";
    case VALUE_LOOP:
        return "LoopContext";
    }
    BUG("value type %d", (int)v.type);
}

bool value_truth(struct value v)
{
    switch (v.type) {
    case VALUE_ABSENT:
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        return false;
    case VALUE_BOOL:
        return v.as.boolean;
    case VALUE_INT:
        return v.as.integer != 0;
    case VALUE_FLOAT:
        return v.as.real != 0;
    case VALUE_STRING:
        return v.as.string->n > 0;
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
        return v.as.list->n > 0;
    case VALUE_DICT:
        return v.as.dict->n > 0;
    case VALUE_LOOP:
        return v.as.loop->n > 0;
    case VALUE_ITERATOR:
    case VALUE_NAMESPACE:
    case VALUE_FUNCTION:
    case VALUE_METHOD:
    case VALUE_MACRO:
        return true;
    }
    BUG("value type %d", (int)v.type);
}

bool value_as_int(struct value v, int64_t *out)
{
    if (v.type == VALUE_BOOL)
        *out = v.as.boolean;
    else if (v.type == VALUE_INT)
        *out = v.as.integer;
    else
        return false;
    return true;
}

bool value_is_number(struct value v)
{
    return v.type == VALUE_BOOL || v.type == VALUE_INT || v.type == VALUE_FLOAT;
}

double value_real(struct value v)
{
    int64_t i;
    return v.type == VALUE_FLOAT ? v.as.real : value_as_int(v, &i) ? (double)i : NAN;
}

/* ---- equality and order ---------------------------------------------------------------------- */

/* -1, 0, 1, or 2 when one of them is not a number. Exact also where a double isn't. */
static int compare_numbers(struct value a, struct value b)
{
    int64_t i, j;
    if (value_as_int(a, &i) && value_as_int(b, &j))
        return (i > j) - (i < j);
    double x = value_real(a), y = value_real(b);
    if (isnan(x) || isnan(y))
        return 2;
    if (x != y || a.type == b.type)
        return (x > y) - (x < y);
    /* Equal as doubles, and one of them is an int that the conversion may have rounded. */
    bool a_int = value_as_int(a, &i);
    if (!a_int)
        value_as_int(b, &i);
    double real = a_int ? y : x;
    if (real >= 9223372036854775808.0)
        return a_int ? -1 : 1;
    int64_t whole = (int64_t)real;
    return a_int ? (i > whole) - (i < whole) : (whole > i) - (whole < i);
}

static bool equal_nested(struct eval *e, struct value a, struct value b, int depth);

static bool equal_lists(struct eval *e, const struct list *a, const struct list *b, int depth)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n && !eval_failed(e); i++)
        if (!equal_nested(e, a->items[i], b->items[i], depth))
            return false;
    return true;
}

static bool equal_dicts(struct eval *e, const struct dict *a, const struct dict *b, int depth)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n && !eval_failed(e); i++) {
        const struct value *other = dict_get(e, b, a->entries[i].key);
        if (other == NULL || !equal_nested(e, a->entries[i].value, *other, depth))
            return false;
    }
    return true;
}

static bool equal_nested(struct eval *e, struct value a, struct value b, int depth)
{
    eval_charge(e, 1);
    if (depth > NESTED_VALUES_MAX) {
        eval_error(e, "values nested deeper than %d are compared", NESTED_VALUES_MAX);
        return false;
    }
    if (value_is_number(a) && value_is_number(b))
        return compare_numbers(a, b) == 0;
    if (a.type != b.type)
        return false;
    switch (a.type) {
    case VALUE_ABSENT:
    case VALUE_UNDEFINED:
    case VALUE_NONE:
        return true;
    case VALUE_STRING:
        eval_charge(e, a.as.string->n / 64);
        return string_equal(a.as.string, b.as.string);
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
        return equal_lists(e, a.as.list, b.as.list, depth + 1);
    case VALUE_DICT:
        return equal_dicts(e, a.as.dict, b.as.dict, depth + 1);
    case VALUE_VIEW:
    case VALUE_ITERATOR:
        return a.as.list == b.as.list;
    case VALUE_NAMESPACE:
        return a.as.dict == b.as.dict;
    case VALUE_FUNCTION:
        return a.as.function == b.as.function;
    case VALUE_METHOD:
        return a.as.method == b.as.method;
    case VALUE_MACRO:
        return a.as.macro == b.as.macro;
    case VALUE_LOOP:
        return a.as.loop == b.as.loop;
    case VALUE_BOOL:
    case VALUE_INT:
    case VALUE_FLOAT:
        break;
    }
    BUG("value type %d", (int)a.type);
}

bool value_equal(struct eval *e, struct value a, struct value b)
{
    return equal_nested(e, a, b, 0);
}

static int compare_nested(struct eval *e, struct value a, struct value b, const char *operator,
                          int depth)
{
    eval_charge(e, 1);
    if (value_is_number(a) && value_is_number(b))
        return compare_numbers(a, b);
    if (a.type == VALUE_STRING && b.type == VALUE_STRING) {
        const struct string *x = a.as.string, *y = b.as.string;
        eval_charge(e, x->n / 64);
        /* The order of UTF-8 bytes is that of code points. */
        int c = memcmp(x->bytes, y->bytes, x->n < y->n ? x->n : y->n);
        return c != 0 ? (c > 0) - (c < 0) : (x->n > y->n) - (x->n < y->n);
    }
    if (a.type == b.type && (a.type == VALUE_LIST || a.type == VALUE_TUPLE) &&
        depth < NESTED_VALUES_MAX) {
        const struct list *x = a.as.list, *y = b.as.list;
        for (size_t i = 0; i < x->n && i < y->n && !eval_failed(e); i++) {
            if (!equal_nested(e, x->items[i], y->items[i], depth + 1))
                return compare_nested(e, x->items[i], y->items[i], operator, depth + 1);
        }
        return (x->n > y->n) - (x->n < y->n);
    }
    if (!eval_refuse_undefined(e, a) && !eval_refuse_undefined(e, b))
        eval_error(e, "'%s' not supported between instances of '%s' and '%s'", operator,
                   value_type_name(a), value_type_name(b));
    return 0;
}

int value_compare(struct eval *e, struct value a, struct value b, const char *operator)
{
    return compare_nested(e, a, b, operator, 0);
}

/* ---- going through --------------------------------------------------------------------------- */

static struct value characters(struct eval *e, const struct string *s)
{
    struct value v = value_list(e, VALUE_LIST, utf8_count(s->bytes, s->n));
    if (eval_failed(e))
        return v;
    size_t k = 0;
    for (size_t at = 0; at < s->n;) {
        size_t end = at + utf8_char_bytes((uint8_t)s->bytes[at]);
        v.as.list->items[k++] = value_string(string_slice(e, s, at, end));
        at = end;
    }
    return v;
}

struct value value_items(struct eval *e, struct value v)
{
    struct value out;
    switch (v.type) {
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
        out = v;
        out.type = VALUE_LIST;
        return out;
    case VALUE_ITERATOR: {
        struct list *it = v.as.list;
        out = value_list(e, VALUE_LIST, 0);
        if (!eval_failed(e)) {
            out.as.list->items = it->items + it->at;
            out.as.list->n = it->n - it->at;
            it->at = it->n;
        }
        return out;
    }
    case VALUE_DICT:
        out = value_list(e, VALUE_LIST, v.as.dict->n);
        for (size_t i = 0; i < v.as.dict->n && !eval_failed(e); i++)
            out.as.list->items[i] = v.as.dict->entries[i].key;
        return out;
    case VALUE_STRING:
        return characters(e, v.as.string);
    case VALUE_UNDEFINED:
        return value_list(e, VALUE_LIST, 0);
    case VALUE_ABSENT:
    case VALUE_NONE:
    case VALUE_BOOL:
    case VALUE_INT:
    case VALUE_FLOAT:
    case VALUE_NAMESPACE:
    case VALUE_FUNCTION:
    case VALUE_METHOD:
    case VALUE_MACRO:
    case VALUE_LOOP:
        break;
    }
    return eval_error(e, "'%s' object is not iterable", value_type_name(v));
}

int64_t value_length(struct eval *e, struct value v)
{
    switch (v.type) {
    case VALUE_UNDEFINED:
        return 0;
    case VALUE_STRING:
        eval_charge(e, v.as.string->n / 64);
        return (int64_t)utf8_count(v.as.string->bytes, v.as.string->n);
    case VALUE_LIST:
    case VALUE_TUPLE:
    case VALUE_RANGE:
    case VALUE_VIEW:
        return (int64_t)v.as.list->n;
    case VALUE_DICT:
        return (int64_t)v.as.dict->n;
    case VALUE_LOOP:
        return (int64_t)v.as.loop->n;
    case VALUE_ABSENT:
    case VALUE_NONE:
    case VALUE_BOOL:
    case VALUE_INT:
    case VALUE_FLOAT:
    case VALUE_ITERATOR:
    case VALUE_NAMESPACE:
    case VALUE_FUNCTION:
    case VALUE_METHOD:
    case VALUE_MACRO:
        break;
    }
    eval_error(e, "object of type '%s' has no len()", value_type_name(v));
    return 0;
}
