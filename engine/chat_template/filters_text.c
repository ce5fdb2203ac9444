/* filters_text: filters of texts, numbers and single values, after jinja2/filters.py.
 *
 * What `e`, `escape` and `safe` do is about HTML: without autoescape nothing is escaped, so `safe`
 * changes nothing, and `escape` is left out, as its result would change how every string it meets
 * is joined. */
#include "engine/chat_template/filters.h"

#include "engine/chat_template/text.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int64_t filter_int_or(struct eval *e, struct value v, int64_t absent)
{
    int64_t i = absent;
    if (filter_given(v) && !value_as_int(v, &i) && !eval_refuse_undefined(e, v))
        eval_error(e, "'%s' object cannot be interpreted as an integer", value_type_name(v));
    return i;
}

/* ---- texts ----------------------------------------------------------------------------------- */

FILTER(string)
{
    return value_string(value_str(e, v[0]));
}

FILTER(safe)
{
    return value_string(value_str(e, v[0]));
}

FILTER(trim)
{
    const struct string *chars = filter_given(v[1]) ? value_str(e, v[1]) : NULL;
    return value_string(text_strip(e, value_str(e, v[0]), chars, true, true));
}

FILTER(upper)
{
    return value_string(text_recase(e, value_str(e, v[0]), TEXT_UPPER));
}

FILTER(lower)
{
    return value_string(text_recase(e, value_str(e, v[0]), TEXT_LOWER));
}

FILTER(capitalize)
{
    return value_string(text_recase(e, value_str(e, v[0]), TEXT_CAPITALIZE));
}

static void put_titled(struct eval *e, struct builder *b, const struct string *word)
{
    size_t first = word->n > 0 ? utf8_char_bytes((uint8_t)word->bytes[0]) : 0;
    builder_put(e, b, text_recase(e, string_slice(e, word, 0, first), TEXT_UPPER));
    builder_put(e, b, text_recase(e, string_slice(e, word, first, word->n), TEXT_LOWER));
}

/* Unlike str.title(): a word begins behind white space, hyphens and opening brackets only. */
FILTER(title)
{
    const struct string *s = value_str(e, v[0]);
    struct builder b = {0};
    size_t begin = 0;
    for (size_t at = 0; at < s->n && !eval_failed(e);) {
        size_t here = at;
        uint32_t c = utf8_next(s->bytes, &at);
        bool opens = c != 0 && c < 0x80 && strchr("-({[<", (int)c) != NULL;
        if (!opens && !text_is_space(c))
            continue;
        put_titled(e, &b, string_slice(e, s, begin, here));
        builder_put(e, &b, string_slice(e, s, here, at));
        begin = at;
    }
    put_titled(e, &b, string_slice(e, s, begin, s->n));
    return value_string(builder_string(e, &b));
}

FILTER(replace)
{
    return value_string(text_replace(e, value_str(e, v[0]), value_str(e, v[1]), value_str(e, v[2]),
                                     filter_int_or(e, v[3], -1)));
}

FILTER(center)
{
    return value_string(
        text_align(e, value_str(e, v[0]), filter_int_or(e, v[1], 80), TEXT_CENTER, NULL));
}

FILTER(indent)
{
    enum { WIDTH_MAX = 1000 };
    int64_t width = v[1].type == VALUE_STRING ? 0 : filter_int_or(e, v[1], 4);
    bool first = value_truth(v[2]), blank = value_truth(v[3]);
    if (v[0].type != VALUE_STRING) {
        if (!eval_refuse_undefined(e, v[0]))
            eval_error(e, "unsupported operand type(s) for +=: '%s' and 'str'",
                       value_type_name(v[0]));
        return v[0];
    }
    if (width > WIDTH_MAX)
        return eval_fail(e, ERR_TOO_LARGE, "an indent of more than %d spaces", WIDTH_MAX);
    struct builder spaces = {0}, b = {0}, ended = {0};
    for (int64_t i = 0; i < width; i++)
        builder_put_text(e, &spaces, " ");
    const struct string *indent = v[1].type == VALUE_STRING ? v[1].as.string
                                                            : builder_string(e, &spaces);
    builder_put(e, &ended, v[0].as.string); /* with a newline, so that the last line counts */
    builder_put_text(e, &ended, "\n");
    struct value lines = text_lines(e, builder_string(e, &ended), false);
    for (size_t i = 0; !eval_failed(e) && i < lines.as.list->n; i++) {
        const struct string *line = lines.as.list->items[i].as.string;
        if (i > 0)
            builder_put_text(e, &b, "\n");
        if (i == 0 ? first : blank || line->n > 0)
            builder_put(e, &b, indent);
        builder_put(e, &b, line);
    }
    return value_string(builder_string(e, &b));
}

FILTER(truncate)
{
    int64_t length = filter_int_or(e, v[1], 255), leeway = filter_int_or(e, v[4], 5),
            n = value_length(e, v[0]);
    struct value end = filter_given(v[3]) ? v[3] : value_text(e, "...");
    int64_t n_end = value_length(e, end);
    if (length < n_end || leeway < 0)
        return eval_error(e, "expected length >= %lld, got %lld", (long long)n_end,
                          (long long)length);
    if (n <= length + leeway || eval_failed(e))
        return v[0];
    if (v[0].type != VALUE_STRING)
        return eval_error(e, "'%s' object is not a string to truncate", value_type_name(v[0]));
    struct value kept = eval_slice(e, v[0], value_none(), value_int(length - n_end), value_none());
    static const struct string space = {.bytes = " ", .n = 1};
    if (!value_truth(v[2]) && !eval_failed(e)) {
        ptrdiff_t last = text_find(e, kept.as.string, &space, 0, true);
        if (last >= 0)
            kept = value_string(string_slice(e, kept.as.string, 0, (size_t)last));
    }
    return eval_operator(e, OP_ADD, kept, end);
}

FILTER(wordcount)
{
    const struct string *s = value_str(e, v[0]);
    int64_t n = 0;
    bool inside = false;
    eval_charge(e, s->n / 16 + 1);
    for (size_t at = 0; at < s->n;) {
        uint32_t c = utf8_next(s->bytes, &at);
        bool word = c == '_' || unicode_is_letter(c) || unicode_is_numeric(c);
        n += word && !inside;
        inside = word;
    }
    return value_int(n);
}

FILTER(format)
{
    if (args->n > 0 && args->n_named > 0)
        return eval_error(e, "can't handle positional and keyword arguments at the same time");
    struct value all;
    if (args->n_named > 0) {
        all = value_dict(e);
        for (size_t i = 0; i < args->n_named && !eval_failed(e); i++)
            dict_put(e, all.as.dict, args->named[i].key, args->named[i].value);
    } else {
        all = value_list(e, VALUE_TUPLE, args->n);
        for (size_t i = 0; i < args->n && !eval_failed(e); i++)
            all.as.list->items[i] = args->positional[i];
    }
    return eval_failed(e) ? all : eval_format(e, value_str(e, v[0]), all);
}

FILTER(tojson)
{
    struct json_style style = {
        .ensure_ascii = value_truth(v[1]), .indent = -1, .sort_keys = value_truth(v[4])};
    if (v[2].type == VALUE_STRING) {
        style.indent_text = v[2].as.string;
    } else if (filter_given(v[2])) {
        int64_t indent = filter_int_or(e, v[2], -1);
        if (indent > 100)
            return eval_fail(e, ERR_TOO_LARGE, "an indent of more than 100 spaces");
        style.indent = indent < 0 ? 0 : (int)indent;
    }
    if (filter_given(v[3])) {
        struct value two = value_items(e, v[3]);
        if (eval_failed(e))
            return two;
        if (two.as.list->n != 2 || two.as.list->items[0].type != VALUE_STRING ||
            two.as.list->items[1].type != VALUE_STRING)
            return eval_error(e, "separators must be two strings");
        style.item_separator = two.as.list->items[0].as.string;
        style.key_separator = two.as.list->items[1].as.string;
    }
    struct builder b = {0};
    value_put_json(e, &b, v[0], &style, 0);
    return value_string(builder_string(e, &b));
}

/* ---- numbers and the rest -------------------------------------------------------------------- */

FILTER(default)
{
    struct value otherwise = v[1].type == VALUE_ABSENT ? value_text(e, "") : v[1];
    return v[0].type == VALUE_UNDEFINED || (value_truth(v[2]) && !value_truth(v[0])) ? otherwise
                                                                                     : v[0];
}

FILTER(attr)
{
    if (v[1].type != VALUE_STRING)
        return eval_error(e, "the name of an attribute must be a string");
    /* Attributes only, no items: a dict's key is none. */
    struct value found = eval_attribute(e, v[0], v[1].as.string);
    if (v[0].type == VALUE_DICT && dict_get(e, v[0].as.dict, v[1]) != NULL &&
        found.type != VALUE_METHOD)
        return eval_undefined(e, "'dict object' has no attribute '%.*s'",
                              (int)(v[1].as.string->n < 100 ? v[1].as.string->n : 100),
                              v[1].as.string->bytes);
    return found;
}

/* The number that a text is, as Python's int(text, base) or float(text) has it; false if none. */
static bool parse_number(struct eval *e, const struct string *s, int base, bool real, double *f,
                         int64_t *i)
{
    char text[128], *end;
    const struct string *t = text_strip(e, s, NULL, true, true);
    size_t n = 0;
    for (size_t k = 0; k < t->n; k++) {
        bool between = k > 0 && k + 1 < t->n && t->bytes[k - 1] != '_';
        if (t->bytes[k] == '_' && between)
            continue;
        if (n + 1 == sizeof text || t->bytes[k] == '\0')
            return false;
        text[n++] = t->bytes[k];
    }
    text[n] = '\0';
    const char *digits = text + (text[0] == '-' || text[0] == '+');
    if (n == 0 || text_is_space((uint8_t)*digits))
        return false;
    if (real) {
        if (strpbrk(digits, "xXpP(") != NULL) /* what only C reads as a number */
            return false;
        *f = strtod(text, &end);
    } else {
        int64_t value;
        bool prefixed = digits[0] == '0' && (digits[1] == 'x' || digits[1] == 'X');
        if ((prefixed && base == 10) || strspn(text, "+-") > 1)
            return false;
        value = strtoll(text, &end, base);
        if (value == INT64_MAX || value == INT64_MIN) {
            eval_error(e, "integers beyond 64 bits are not supported");
            return false;
        }
        *i = value;
    }
    return *end == '\0';
}

static struct value real_to_int(struct eval *e, double f, struct value otherwise)
{
    if (isnan(f) || isinf(f))
        return otherwise;
    f = trunc(f);
    if (!(f > -9.2233720368547758e18 && f < 9.2233720368547758e18))
        return eval_error(e, "integers beyond 64 bits are not supported");
    return value_int((int64_t)f);
}

FILTER(int)
{
    struct value otherwise = v[1].type == VALUE_ABSENT ? value_int(0) : v[1];
    int64_t i, base = filter_int_or(e, v[2], 10);
    double f;
    if (eval_refuse_undefined(e, v[0]))
        return v[0];
    if (value_as_int(v[0], &i))
        return value_int(i);
    if (v[0].type == VALUE_FLOAT)
        return real_to_int(e, v[0].as.real, otherwise);
    if (v[0].type != VALUE_STRING)
        return otherwise;
    if (base != 0 && (base < 2 || base > 36))
        return otherwise;
    if (parse_number(e, v[0].as.string, (int)base, false, &f, &i))
        return value_int(i);
    if (parse_number(e, v[0].as.string, 10, true, &f, &i))
        return real_to_int(e, f, otherwise);
    return otherwise;
}

FILTER(float)
{
    double f;
    int64_t i;
    if (eval_refuse_undefined(e, v[0]))
        return v[0];
    if (value_is_number(v[0]))
        return value_float(value_real(v[0]));
    if (v[0].type == VALUE_STRING && parse_number(e, v[0].as.string, 10, true, &f, &i))
        return value_float(f);
    return v[1].type == VALUE_ABSENT ? value_float(0) : v[1];
}

FILTER(abs)
{
    int64_t i;
    if (v[0].type == VALUE_FLOAT)
        return value_float(fabs(v[0].as.real));
    if (!value_as_int(v[0], &i))
        return eval_refuse_undefined(e, v[0])
                   ? v[0]
                   : eval_error(e, "bad operand type for abs(): '%s'", value_type_name(v[0]));
    return i < 0 ? eval_operator(e, OP_SUB, value_int(0), value_int(i)) : value_int(i);
}

FILTER(round)
{
    int64_t precision = filter_int_or(e, v[1], 0), i;
    const struct string *method = v[2].type == VALUE_STRING ? v[2].as.string : NULL;
    bool common = method == NULL || string_is(method, "common");
    if (!value_is_number(v[0]))
        return eval_refuse_undefined(e, v[0])
                   ? v[0]
                   : eval_error(e, "type %s doesn't define __round__ method",
                                value_type_name(v[0]));
    if (precision < -300 || precision > 300)
        return eval_error(e, "a precision of %lld is not supported", (long long)precision);
    if (common && value_as_int(v[0], &i) && precision >= 0)
        return value_int(i);
    double f = value_real(v[0]), scale = pow(10, (double)precision);
    if (common) {
        char text[700]; /* correctly rounded, halves to even, as the decimal text is */
        if (precision < 0) {
            double whole = rint(f * scale) / scale;
            return v[0].type == VALUE_FLOAT ? value_float(whole) : value_int((int64_t)whole);
        }
        snprintf(text, sizeof text, "%.*f", (int)precision, f);
        return value_float(strtod(text, NULL));
    }
    if (string_is(method, "ceil"))
        return value_float(ceil(f * scale) / scale);
    if (string_is(method, "floor"))
        return value_float(floor(f * scale) / scale);
    return eval_error(e, "method must be common, ceil or floor");
}

/* ---- table ----------------------------------------------------------------------------------- */

static const struct function filters[] = {
    {"abs", "", filter_abs, 0},
    {"attr", "name", filter_attr, 0},
    {"capitalize", "", filter_capitalize, 0},
    {"center", "width?", filter_center, 0},
    {"d", "default_value? boolean?", filter_default, 0},
    {"default", "default_value? boolean?", filter_default, 0},
    {"float", "default?", filter_float, 0},
    {"format", "*", filter_format, 0},
    {"indent", "width? first? blank?", filter_indent, 0},
    {"int", "default? base?", filter_int, 0},
    {"lower", "", filter_lower, 0},
    {"replace", "old new count?", filter_replace, 0},
    {"round", "precision? method?", filter_round, 0},
    {"safe", "", filter_safe, 0},
    {"string", "", filter_string, 0},
    {"title", "", filter_title, 0},
    {"tojson", "ensure_ascii? indent? separators? sort_keys?", filter_tojson, 0},
    {"trim", "chars?", filter_trim, 0},
    {"truncate", "length? killwords? end? leeway?", filter_truncate, 0},
    {"upper", "", filter_upper, 0},
    {"wordcount", "", filter_wordcount, 0},
};

const struct function *filter_of_texts(const struct string *name)
{
    for (size_t i = 0; i < sizeof filters / sizeof filters[0]; i++)
        if (string_is(name, filters[i].name))
            return &filters[i];
    return NULL;
}
