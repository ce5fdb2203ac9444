/* format: "%s is %d" % (a, b), the filter `format`, and str.format with plain fields. */
#include "engine/chat_template/eval.h"
#include "engine/tokenizer/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH_MAX = 1000, NUMBER_BYTES = WIDTH_MAX + 400 };

struct spec { /* %-08.3f */
    bool left, zero, plus, space, alternate;
    int width, precision; /* -1: not given */
    char type;
};

static const char *read_number(const char *at, const char *end, int *out)
{
    int n = 0;
    for (; at < end && *at >= '0' && *at <= '9'; at++)
        n = n > WIDTH_MAX ? n : n * 10 + (*at - '0');
    *out = n;
    return at;
}

/* From behind the '%'. Returns where the conversion ends, or NULL. */
static const char *read_spec(const char *at, const char *end, struct spec *s)
{
    *s = (struct spec){.width = -1, .precision = -1};
    for (; at < end && *at != '\0' && strchr("-0+ #", *at) != NULL; at++) {
        s->left = s->left || *at == '-';
        s->zero = s->zero || *at == '0';
        s->plus = s->plus || *at == '+';
        s->space = s->space || *at == ' ';
        s->alternate = s->alternate || *at == '#';
    }
    if (at < end && *at >= '1' && *at <= '9')
        at = read_number(at, end, &s->width);
    if (at < end && *at == '.')
        at = read_number(at + 1, end, &s->precision);
    if (at == end || s->width > WIDTH_MAX || s->precision > WIDTH_MAX)
        return NULL;
    s->type = *at;
    return at + 1;
}

static void put_padded(struct eval *e, struct builder *b, const struct spec *s,
                       const struct string *text)
{
    int missing = s->width - (int)utf8_count(text->bytes, text->n);
    for (int i = 0; i < missing && !s->left; i++)
        builder_put_text(e, b, " ");
    builder_put(e, b, text);
    for (int i = 0; i < missing && s->left; i++)
        builder_put_text(e, b, " ");
}

static void put_number(struct eval *e, struct builder *b, const struct spec *s, struct value v)
{
    char format[32], text[NUMBER_BYTES];
    int64_t i;
    bool real = strchr("eEfFgG", s->type) != NULL;
    if (!value_is_number(v)) {
        if (!eval_refuse_undefined(e, v))
            eval_error(e, "%%%c format: a real number is required, not %s", s->type,
                       value_type_name(v));
        return;
    }
    /* Only flags, lengths and the type get into the format. */
    char type = s->type == 'i' || s->type == 'u' ? 'd' : s->type;
    snprintf(format, sizeof format, "%%%s%s%s%s%s*.*%s%c", s->left ? "-" : "", s->zero ? "0" : "",
             s->plus ? "+" : "", s->space ? " " : "", s->alternate ? "#" : "", real ? "" : "j",
             type);
    int width = s->width < 0 ? 0 : s->width;
    if (real) {
        snprintf(text, sizeof text, format, width, s->precision, value_real(v));
    } else {
        if (!value_as_int(v, &i)) {
            double f = trunc(v.as.real);
            if (!(f >= -9.2e18 && f <= 9.2e18)) {
                eval_error(e, "cannot convert this float to an integer");
                return;
            }
            i = (int64_t)f;
        }
        if (i < 0 && type != 'd') {
            eval_error(e, "negative numbers in %%%c are not supported", s->type);
            return;
        }
        snprintf(text, sizeof text, format, width, s->precision, (intmax_t)i);
    }
    builder_put_text(e, b, text);
}

static void put_conversion(struct eval *e, struct builder *b, const struct spec *s, struct value v)
{
    struct builder text = {0};
    const struct string *str;
    switch (s->type) {
    case 's':
    case 'r':
        if (s->type == 's')
            value_put_str(e, &text, v);
        else
            value_put_repr(e, &text, v, 0);
        str = builder_string(e, &text);
        if (s->precision >= 0) {
            size_t at = 0;
            for (int i = 0; i < s->precision && at < str->n; i++)
                at += utf8_char_bytes((uint8_t)str->bytes[at]);
            str = string_slice(e, str, 0, at);
        }
        put_padded(e, b, s, str);
        break;
    case 'd':
    case 'i':
    case 'u':
    case 'x':
    case 'X':
    case 'o':
    case 'e':
    case 'E':
    case 'f':
    case 'F':
    case 'g':
    case 'G':
        put_number(e, b, s, v);
        break;
    default:
        eval_error(e, "unsupported format character '%c'", s->type);
    }
}

struct value eval_format(struct eval *e, const struct string *format, struct value args)
{
    struct builder b = {0};
    const char *at = format->bytes, *end = at + format->n;
    bool tuple = args.type == VALUE_TUPLE;
    size_t n_args = tuple ? args.as.list->n : 1, used = 0;
    while (at < end && !eval_failed(e)) {
        const char *percent = memchr(at, '%', (size_t)(end - at));
        size_t begin = (size_t)(at - format->bytes);
        size_t stop = percent == NULL ? format->n : (size_t)(percent - format->bytes);
        builder_put(e, &b, string_slice(e, format, begin, stop));
        if (percent == NULL)
            break;
        at = percent + 1;
        if (at < end && *at == '%') {
            builder_put_text(e, &b, "%");
            at++;
            continue;
        }
        struct value v = tuple && used < n_args ? args.as.list->items[used] : args;
        if (at < end && *at == '(') { /* %(name)s */
            const char *close = memchr(at, ')', (size_t)(end - at));
            if (close == NULL || args.type != VALUE_DICT)
                return eval_error(e, "format requires a mapping");
            size_t key = (size_t)(at + 1 - format->bytes);
            v = eval_item(
                e, args,
                value_string(string_slice(e, format, key, (size_t)(close - format->bytes))));
            at = close + 1;
            used = n_args - 1;
        }
        if (used++ >= n_args)
            return eval_error(e, "not enough arguments for format string");
        struct spec s;
        at = read_spec(at, end, &s);
        if (at == NULL)
            return eval_error(e, "incomplete format");
        put_conversion(e, &b, &s, v);
    }
    /* Python asks this of what can't be indexed only. */
    bool one = tuple || args.type == VALUE_STRING || value_is_number(args) ||
               args.type == VALUE_NONE;
    if (used < n_args && one)
        return eval_error(e, "not all arguments converted during string formatting");
    return value_string(builder_string(e, &b));
}

static struct value field_value(struct eval *e, const struct args *args, const char *name, size_t n,
                                size_t *next)
{
    if (n == 0 || (name[0] >= '0' && name[0] <= '9')) {
        int index = 0;
        if (n > 0 && read_number(name, name + n, &index) != name + n)
            return eval_error(e, "only plain fields are supported in str.format");
        size_t i = n == 0 ? (*next)++ : (size_t)index;
        return i < args->n ? args->positional[i]
                           : eval_error(e,
                                        "Replacement index %zu out of range for positional args "
                                        "tuple",
                                        i);
    }
    for (size_t i = 0; i < args->n_named; i++) {
        const struct string *key = args->named[i].key.as.string;
        if (key->n == n && memcmp(key->bytes, name, n) == 0)
            return args->named[i].value;
    }
    return eval_error(e, "only plain fields with a value are supported in str.format");
}

struct value eval_format_fields(struct eval *e, const struct string *format,
                                const struct args *args)
{
    struct builder b = {0};
    size_t next = 0;
    for (size_t at = 0; at < format->n && !eval_failed(e);) {
        char c = format->bytes[at];
        bool twice = at + 1 < format->n && format->bytes[at + 1] == c;
        if ((c == '{' || c == '}') && twice) {
            builder_put_bytes(e, &b, &c, 1, false);
            at += 2;
        } else if (c == '{') {
            const char *close = memchr(format->bytes + at, '}', format->n - at);
            if (close == NULL)
                return eval_error(e, "expected '}' before end of string");
            size_t end = (size_t)(close - format->bytes);
            value_put_str(e, &b, field_value(e, args, format->bytes + at + 1, end - at - 1, &next));
            at = end + 1;
        } else if (c == '}') {
            return eval_error(e, "Single '}' encountered in format string");
        } else {
            size_t end = at + 1;
            while (end < format->n && format->bytes[end] != '{' && format->bytes[end] != '}')
                end++;
            builder_put(e, &b, string_slice(e, format, at, end));
            at = end;
        }
    }
    return value_string(builder_string(e, &b));
}
