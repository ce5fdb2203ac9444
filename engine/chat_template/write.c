/* write: values as text. str() and repr() as Python 3 writes them, json.dumps as transformers calls
 * it (ensure_ascii off, keys in their order).
 *
 * Where text of the request is written with escapes, the escapes count as the request's as well:
 * they stand for its characters. */
#include "engine/chat_template/value.h"

#include "engine/chat_template/eval.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FLOAT_TEXT_BYTES = 40 };

/* The shortest decimal digits that read back as the same double, laid out by float.__repr__: with
 * an exponent below 1e-4 and from 1e16 on. */
static void float_text(char out[FLOAT_TEXT_BYTES], double f)
{
    if (isnan(f) || isinf(f)) {
        strcpy(out, isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
        return;
    }
    char text[FLOAT_TEXT_BYTES];
    int precision = 0;
    do
        snprintf(text, sizeof text, "%.*e", precision, f);
    while (strtod(text, NULL) != f && precision++ < 17);
    char *mark = strchr(text, 'e');
    int exponent = atoi(mark + 1);
    if (exponent < -4 || exponent >= 16) {
        *mark = '\0';
        snprintf(out, FLOAT_TEXT_BYTES, "%.25se%c%02d", text, exponent < 0 ? '-' : '+',
                 abs(exponent));
        return;
    }
    int decimals = precision - exponent;
    snprintf(out, FLOAT_TEXT_BYTES, "%.*f", decimals > 0 ? decimals : 1, f);
}

static void put_number(struct eval *e, struct builder *b, struct value v)
{
    char text[FLOAT_TEXT_BYTES];
    if (v.type == VALUE_FLOAT)
        float_text(text, v.as.real);
    else
        snprintf(text, sizeof text, "%" PRId64, v.as.integer);
    builder_put_text(e, b, text);
}

/* Is the byte at `at` of s the request's? */
static bool from_input(const struct string *s, size_t at)
{
    return s->input != NULL ? s->input[at] != 0 : s->all_input;
}

/* The quotation marks are the template's, whoever wrote what stands between them. */
static void put_string_repr(struct eval *e, struct builder *b, const struct string *s)
{
    bool single = memchr(s->bytes, '\'', s->n) != NULL,
         twofold = memchr(s->bytes, '"', s->n) != NULL;
    char quote = single && !twofold ? '"' : '\'';
    builder_put_bytes(e, b, &quote, 1, false);
    for (size_t at = 0; at < s->n && !eval_failed(e);) {
        size_t begin = at;
        uint32_t c = utf8_next(s->bytes, &at);
        char escape[16];
        const char *short_form = c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : NULL;
        int n = 0;
        if (c == (uint32_t)quote || c == '\\')
            n = snprintf(escape, sizeof escape, "\\%c", (char)c);
        else if (short_form != NULL)
            n = snprintf(escape, sizeof escape, "%s", short_form);
        else if (c < 0x100 && (c < 0x20 || (c >= 0x7F && !unicode_is_printable(c))))
            n = snprintf(escape, sizeof escape, "\\x%02x", (unsigned)c);
        else if (c >= 0x80 && !unicode_is_printable(c))
            n = snprintf(escape, sizeof escape, c < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)c);
        if (n > 0)
            builder_put_bytes(e, b, escape, (size_t)n, from_input(s, begin));
        else
            builder_put_bytes(e, b, s->bytes + begin, at - begin, from_input(s, begin));
    }
    builder_put_bytes(e, b, &quote, 1, false);
}

static void put_dict_repr(struct eval *e, struct builder *b, const struct dict *d, int depth)
{
    builder_put_text(e, b, "{");
    for (size_t i = 0; i < d->n && !eval_failed(e); i++) {
        builder_put_text(e, b, i == 0 ? "" : ", ");
        value_put_repr(e, b, d->entries[i].key, depth + 1);
        builder_put_text(e, b, ": ");
        value_put_repr(e, b, d->entries[i].value, depth + 1);
    }
    builder_put_text(e, b, "}");
}

static void put_list_repr(struct eval *e, struct builder *b, struct value v, int depth)
{
    const struct list *list = v.as.list;
    bool tuple = v.type == VALUE_TUPLE;
    builder_put_text(e, b, tuple ? "(" : "[");
    for (size_t i = 0; i < list->n && !eval_failed(e); i++) {
        builder_put_text(e, b, i == 0 ? "" : ", ");
        value_put_repr(e, b, list->items[i], depth + 1);
    }
    builder_put_text(e, b, tuple ? list->n == 1 ? ",)" : ")" : "]");
}

void value_put_repr(struct eval *e, struct builder *b, struct value v, int depth)
{
    if (depth > NESTED_VALUES_MAX) {
        eval_error(e, "values nested deeper than %d are printed", NESTED_VALUES_MAX);
        return;
    }
    switch (v.type) {
    case VALUE_ABSENT:
    case VALUE_UNDEFINED:
        builder_put_text(e, b, "Undefined");
        break;
    case VALUE_NONE:
        builder_put_text(e, b, "None");
        break;
    case VALUE_BOOL:
        builder_put_text(e, b, v.as.boolean ? "True" : "False");
        break;
    case VALUE_INT:
    case VALUE_FLOAT:
        put_number(e, b, v);
        break;
    case VALUE_STRING:
        put_string_repr(e, b, v.as.string);
        break;
    case VALUE_LIST:
    case VALUE_TUPLE:
        put_list_repr(e, b, v, depth);
        break;
    case VALUE_RANGE: {
        const struct list *r = v.as.list;
        builder_put(e, b,
                    value_textf(e,
                                r->step == 1 ? "range(%" PRId64 ", %" PRId64 ")"
                                             : "range(%" PRId64 ", %" PRId64 ", %" PRId64 ")",
                                r->start, r->stop, r->step)
                        .as.string);
        break;
    }
    case VALUE_VIEW:
        builder_put_text(e, b, v.as.list->name);
        builder_put_text(e, b, "(");
        put_list_repr(e, b, (struct value){.type = VALUE_LIST, .as.list = v.as.list}, depth);
        builder_put_text(e, b, ")");
        break;
    case VALUE_DICT:
        put_dict_repr(e, b, v.as.dict, depth);
        break;
    case VALUE_NAMESPACE:
        builder_put_text(e, b, "<Namespace ");
        put_dict_repr(e, b, v.as.dict, depth);
        builder_put_text(e, b, ">");
        break;
    case VALUE_ITERATOR:
    case VALUE_FUNCTION:
    case VALUE_METHOD:
    case VALUE_MACRO:
    case VALUE_LOOP:
        /* Python writes an address here. */
        builder_put_text(e, b, "<");
        builder_put_text(e, b, value_type_name(v));
        builder_put_text(e, b, ">");
        break;
    }
}

void value_put_str(struct eval *e, struct builder *b, struct value v)
{
    if (v.type == VALUE_STRING)
        builder_put(e, b, v.as.string);
    else if (v.type != VALUE_UNDEFINED && v.type != VALUE_ABSENT)
        value_put_repr(e, b, v, 0);
}

const struct string *value_str(struct eval *e, struct value v)
{
    if (v.type == VALUE_STRING)
        return v.as.string;
    struct builder b = {0};
    value_put_str(e, &b, v);
    return builder_string(e, &b);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void put_json_string(struct eval *e, struct builder *b, const struct string *s,
                            bool ensure_ascii)
{
    builder_put_text(e, b, "\"");
    for (size_t at = 0; at < s->n && !eval_failed(e);) {
        size_t begin = at;
        uint32_t c = utf8_next(s->bytes, &at);
        static const char letters[] = "\"\\\n\r\t\f\b", escapes[] = "\"\\nrtfb";
        const char *letter = c != 0 && c < 0x80 ? strchr(letters, (int)c) : NULL;
        char escape[16];
        int n = 0;
        if (letter != NULL)
            n = snprintf(escape, sizeof escape, "\\%c", escapes[letter - letters]);
        else if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000 && c != 0x7F))
            n = snprintf(escape, sizeof escape, "\\u%04x", (unsigned)c);
        else if (ensure_ascii && c >= 0x10000)
            n = snprintf(escape, sizeof escape, "\\u%04x\\u%04x",
                         (unsigned)(0xD800 + ((c - 0x10000) >> 10)),
                         (unsigned)(0xDC00 + ((c - 0x10000) & 0x3FF)));
        if (n > 0)
            builder_put_bytes(e, b, escape, (size_t)n, from_input(s, begin));
        else
            builder_put_bytes(e, b, s->bytes + begin, at - begin, from_input(s, begin));
    }
    builder_put_text(e, b, "\"");
}

static void new_line(struct eval *e, struct builder *b, const struct json_style *s, int depth)
{
    if (s->indent < 0 && s->indent_text == NULL)
        return;
    builder_put_text(e, b, "\n");
    for (int i = 0; i < depth && !eval_failed(e); i++) {
        if (s->indent_text != NULL)
            builder_put(e, b, s->indent_text);
        else
            for (int k = 0; k < s->indent && !eval_failed(e); k++)
                builder_put_text(e, b, " ");
    }
}

static void put_item_separator(struct eval *e, struct builder *b, const struct json_style *s)
{
    if (s->item_separator != NULL)
        builder_put(e, b, s->item_separator);
    else
        builder_put_text(e, b, s->indent < 0 && s->indent_text == NULL ? ", " : ",");
}

static void put_json_key(struct eval *e, struct builder *b, struct value key,
                         const struct json_style *s)
{
    switch (key.type) {
    case VALUE_STRING:
        put_json_string(e, b, key.as.string, s->ensure_ascii);
        break;
    case VALUE_NONE:
    case VALUE_BOOL:
    case VALUE_INT:
    case VALUE_FLOAT:
        builder_put_text(e, b, "\"");
        value_put_json(e, b, key, s, 0);
        builder_put_text(e, b, "\"");
        break;
    default:
        eval_error(e, "keys must be str, int, float, bool or None, not %s", value_type_name(key));
        return;
    }
    if (s->key_separator != NULL)
        builder_put(e, b, s->key_separator);
    else
        builder_put_text(e, b, ": ");
}

/* The entries in the order of their keys. */
static const struct dict_entry *sorted_entries(struct eval *e, const struct dict *d)
{
    struct dict_entry *sorted = eval_alloc(e, d->n, sizeof *sorted);
    for (size_t i = 0; i < d->n && !eval_failed(e); i++) {
        size_t k = i;
        for (; k > 0 && value_compare(e, d->entries[i].key, sorted[k - 1].key, "<") < 0; k--)
            sorted[k] = sorted[k - 1];
        sorted[k] = d->entries[i];
        eval_charge(e, i - k);
    }
    return sorted;
}

static void put_json_dict(struct eval *e, struct builder *b, const struct dict *d,
                          const struct json_style *s, int depth)
{
    const struct dict_entry *entries = s->sort_keys ? sorted_entries(e, d) : d->entries;
    builder_put_text(e, b, "{");
    for (size_t i = 0; i < d->n && !eval_failed(e); i++) {
        if (i > 0)
            put_item_separator(e, b, s);
        new_line(e, b, s, depth + 1);
        put_json_key(e, b, entries[i].key, s);
        value_put_json(e, b, entries[i].value, s, depth + 1);
    }
    if (d->n > 0)
        new_line(e, b, s, depth);
    builder_put_text(e, b, "}");
}

static void put_json_list(struct eval *e, struct builder *b, const struct list *list,
                          const struct json_style *s, int depth)
{
    builder_put_text(e, b, "[");
    for (size_t i = 0; i < list->n && !eval_failed(e); i++) {
        if (i > 0)
            put_item_separator(e, b, s);
        new_line(e, b, s, depth + 1);
        value_put_json(e, b, list->items[i], s, depth + 1);
    }
    if (list->n > 0)
        new_line(e, b, s, depth);
    builder_put_text(e, b, "]");
}

void value_put_json(struct eval *e, struct builder *b, struct value v, const struct json_style *s,
                    int depth)
{
    if (depth > NESTED_VALUES_MAX) {
        eval_error(e, "values nested deeper than %d are written as JSON", NESTED_VALUES_MAX);
        return;
    }
    switch (v.type) {
    case VALUE_NONE:
        builder_put_text(e, b, "null");
        break;
    case VALUE_BOOL:
        builder_put_text(e, b, v.as.boolean ? "true" : "false");
        break;
    case VALUE_INT:
        put_number(e, b, v);
        break;
    case VALUE_FLOAT:
        if (isnan(v.as.real) || isinf(v.as.real))
            builder_put_text(e, b,
                             isnan(v.as.real) ? "NaN"
                             : v.as.real > 0  ? "Infinity"
                                              : "-Infinity");
        else
            put_number(e, b, v);
        break;
    case VALUE_STRING:
        put_json_string(e, b, v.as.string, s->ensure_ascii);
        break;
    case VALUE_LIST:
    case VALUE_TUPLE:
        put_json_list(e, b, v.as.list, s, depth);
        break;
    case VALUE_DICT:
        put_json_dict(e, b, v.as.dict, s, depth);
        break;
    case VALUE_ABSENT:
    case VALUE_UNDEFINED:
    case VALUE_RANGE:
    case VALUE_VIEW:
    case VALUE_ITERATOR:
    case VALUE_NAMESPACE:
    case VALUE_FUNCTION:
    case VALUE_METHOD:
    case VALUE_MACRO:
    case VALUE_LOOP:
        eval_error(e, "Object of type %s is not JSON serializable", value_type_name(v));
        break;
    }
}
