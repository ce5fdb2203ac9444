/* methods: what values can do: "abc".upper(), d.items(), loop.cycle(...). As in transformers'
 * sandbox, methods that change a list or a dict are out of reach. */
#include "engine/chat_template/eval.h"

#include "engine/chat_template/text.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"

#include <string.h>

#define ON(type)  (1u << (type))
#define ON_STRING ON(VALUE_STRING)
#define ON_DICT   ON(VALUE_DICT)
#define ON_LOOP   ON(VALUE_LOOP)
#define ON_ITEMS  (ON(VALUE_LIST) | ON(VALUE_TUPLE) | ON(VALUE_RANGE))

/* One method: v[0] is the object, v[1..] the arguments in the order of the table below. */
#define METHOD(name)                                                          \
    static struct value method_##name(struct eval *e __attribute__((unused)), \
                                      const struct value *v,                  \
                                      const struct args *args __attribute__((unused)))

/* An argument that must be a string; NULL when it isn't (then the rendering has failed). */
static const struct string *want_string(struct eval *e, struct value v, const char *what)
{
    if (v.type == VALUE_STRING)
        return v.as.string;
    if (!eval_refuse_undefined(e, v))
        eval_error(e, "%s must be str, not %s", what, value_type_name(v));
    return NULL;
}

static bool want_int(struct eval *e, struct value v, int64_t absent, int64_t *out)
{
    *out = absent;
    if (v.type == VALUE_ABSENT || v.type == VALUE_NONE || value_as_int(v, out))
        return true;
    if (!eval_refuse_undefined(e, v))
        eval_error(e, "'%s' object cannot be interpreted as an integer", value_type_name(v));
    return false;
}

/* ---- str: case and shape --------------------------------------------------------------------- */

static struct value recase(struct eval *e, const struct value *v, enum text_case how)
{
    return value_string(text_recase(e, v[0].as.string, how));
}

METHOD(upper)
{
    return recase(e, v, TEXT_UPPER);
}

METHOD(lower)
{
    return recase(e, v, TEXT_LOWER);
}

METHOD(title)
{
    return recase(e, v, TEXT_TITLE);
}

METHOD(capitalize)
{
    return recase(e, v, TEXT_CAPITALIZE);
}

METHOD(swapcase)
{
    return recase(e, v, TEXT_SWAP);
}

static struct value strip_ends(struct eval *e, const struct value *v, bool left, bool right)
{
    const struct string *chars = NULL;
    if (v[1].type != VALUE_ABSENT && v[1].type != VALUE_NONE) {
        chars = want_string(e, v[1], "strip arg");
        if (chars == NULL)
            return v[0];
    }
    return value_string(text_strip(e, v[0].as.string, chars, left, right));
}

METHOD(strip)
{
    return strip_ends(e, v, true, true);
}

METHOD(lstrip)
{
    return strip_ends(e, v, true, false);
}

METHOD(rstrip)
{
    return strip_ends(e, v, false, true);
}

static struct value justify(struct eval *e, const struct value *v, enum text_align how)
{
    int64_t width;
    const struct string *fill = NULL;
    if (!want_int(e, v[1], 0, &width))
        return v[0];
    if (v[2].type != VALUE_ABSENT) {
        fill = want_string(e, v[2], "the fill character");
        if (fill == NULL || utf8_count(fill->bytes, fill->n) != 1)
            return eval_error(e, "The fill character must be exactly one character long");
    }
    return value_string(text_align(e, v[0].as.string, width, how, fill));
}

METHOD(center)
{
    return justify(e, v, TEXT_CENTER);
}

METHOD(ljust)
{
    return justify(e, v, TEXT_LEFT);
}

METHOD(rjust)
{
    return justify(e, v, TEXT_RIGHT);
}

METHOD(zfill)
{
    static const struct string zero = {.bytes = "0", .n = 1};
    const struct string *s = v[0].as.string;
    int64_t width;
    if (!want_int(e, v[1], 0, &width))
        return v[0];
    bool sign = s->n > 0 && (s->bytes[0] == '-' || s->bytes[0] == '+');
    struct builder b = {0};
    builder_put(e, &b, string_slice(e, s, 0, sign));
    builder_put(e, &b,
                text_align(e, string_slice(e, s, sign, s->n), width - sign, TEXT_RIGHT, &zero));
    return value_string(builder_string(e, &b));
}

/* ---- str: parts ------------------------------------------------------------------------------ */

static struct value split_by(struct eval *e, const struct value *v, bool from_right)
{
    const struct string *separator = NULL;
    int64_t max;
    if (v[1].type != VALUE_ABSENT && v[1].type != VALUE_NONE) {
        separator = want_string(e, v[1], "separator");
        if (separator == NULL)
            return v[0];
    }
    if (!want_int(e, v[2], -1, &max))
        return v[0];
    return text_split(e, v[0].as.string, separator, max, from_right);
}

METHOD(split)
{
    return split_by(e, v, false);
}

METHOD(rsplit)
{
    return split_by(e, v, true);
}

METHOD(splitlines)
{
    return text_lines(e, v[0].as.string, value_truth(v[1]));
}

static struct value partition_at(struct eval *e, const struct value *v, bool from_right)
{
    const struct string *s = v[0].as.string, *separator = want_string(e, v[1], "separator");
    if (separator == NULL)
        return v[0];
    if (separator->n == 0)
        return eval_error(e, "empty separator");
    ptrdiff_t found = text_find(e, s, separator, 0, from_right);
    eval_charge(e, s->n / 16 + 1);
    struct value parts = value_list(e, VALUE_TUPLE, 3);
    if (eval_failed(e))
        return parts;
    struct value *p = parts.as.list->items;
    if (found < 0) {
        p[0] = p[1] = p[2] = value_text(e, "");
        p[from_right ? 2 : 0] = v[0];
    } else {
        size_t at = (size_t)found, behind = at + separator->n;
        p[0] = value_string(string_slice(e, s, 0, at));
        p[1] = value_string(string_slice(e, s, at, behind));
        p[2] = value_string(string_slice(e, s, behind, s->n));
    }
    return parts;
}

METHOD(partition)
{
    return partition_at(e, v, false);
}

METHOD(rpartition)
{
    return partition_at(e, v, true);
}

METHOD(replace)
{
    const struct string *old = want_string(e, v[1], "replace() argument 1");
    const struct string *new = want_string(e, v[2], "replace() argument 2");
    int64_t count;
    if (old == NULL || new == NULL || !want_int(e, v[3], -1, &count))
        return v[0];
    return value_string(text_replace(e, v[0].as.string, old, new, count));
}

METHOD(join)
{
    struct value items = value_items(e, v[1]);
    struct builder b = {0};
    for (size_t i = 0; !eval_failed(e) && i < items.as.list->n; i++) {
        struct value item = items.as.list->items[i];
        if (item.type != VALUE_STRING)
            return eval_error(e, "sequence item %zu: expected str instance, %s found", i,
                              value_type_name(item));
        if (i > 0)
            builder_put(e, &b, v[0].as.string);
        builder_put(e, &b, item.as.string);
    }
    return value_string(builder_string(e, &b));
}

METHOD(format)
{
    return eval_format_fields(e, v[0].as.string, args);
}

/* ---- str: questions -------------------------------------------------------------------------- */

/* s[start:end], for methods that take these two. */
static const struct string *part_of(struct eval *e, struct value s, struct value start,
                                    struct value end)
{
    if (start.type == VALUE_ABSENT && end.type == VALUE_ABSENT)
        return s.as.string;
    struct value part = eval_slice(e, s, start.type == VALUE_ABSENT ? value_none() : start,
                                   end.type == VALUE_ABSENT ? value_none() : end, value_none());
    return part.type == VALUE_STRING ? part.as.string : s.as.string;
}

static struct value at_end(struct eval *e, const struct value *v, const char *name, bool end)
{
    const struct string *s = part_of(e, v[0], v[2], v[3]);
    struct value one = v[1], *wanted = &one;
    size_t n = 1;
    if (v[1].type == VALUE_TUPLE) {
        wanted = v[1].as.list->items;
        n = v[1].as.list->n;
    }
    for (size_t i = 0; i < n && !eval_failed(e); i++) {
        if (wanted[i].type != VALUE_STRING) {
            if (!eval_refuse_undefined(e, wanted[i]))
                eval_error(e, "%s first arg must be str or a tuple of str, not %s", name,
                           value_type_name(wanted[i]));
            break;
        }
        const struct string *w = wanted[i].as.string;
        eval_charge(e, w->n / 16 + 1);
        if (w->n <= s->n && memcmp(s->bytes + (end ? s->n - w->n : 0), w->bytes, w->n) == 0)
            return value_bool(true);
    }
    return value_bool(false);
}

METHOD(startswith)
{
    return at_end(e, v, "startswith", false);
}

METHOD(endswith)
{
    return at_end(e, v, "endswith", true);
}

static struct value find_in(struct eval *e, const struct value *v, bool from_right, bool must)
{
    const struct string *wanted = want_string(e, v[1], "the substring");
    if (wanted == NULL)
        return v[0];
    const struct string *s = part_of(e, v[0], v[2], v[3]);
    ptrdiff_t found = text_find(e, s, wanted, 0, from_right);
    eval_charge(e, s->n / 16 + 1);
    if (found < 0)
        return must ? eval_error(e, "substring not found") : value_int(-1);
    size_t before = (size_t)(s->bytes - v[0].as.string->bytes) + (size_t)found;
    return value_int((int64_t)utf8_count(v[0].as.string->bytes, before));
}

METHOD(find)
{
    return find_in(e, v, false, false);
}

METHOD(rfind)
{
    return find_in(e, v, true, false);
}

METHOD(index_of)
{
    return find_in(e, v, false, true);
}

METHOD(rindex)
{
    return find_in(e, v, true, true);
}

METHOD(count)
{
    const struct string *wanted = want_string(e, v[1], "the substring");
    if (wanted == NULL)
        return v[0];
    const struct string *s = part_of(e, v[0], v[2], v[3]);
    int64_t n = 0;
    eval_charge(e, s->n / 16 + 1);
    if (wanted->n == 0)
        return value_int((int64_t)utf8_count(s->bytes, s->n) + 1);
    for (ptrdiff_t at = 0; (at = text_find(e, s, wanted, (size_t)at, false)) >= 0;
         at += (ptrdiff_t)wanted->n)
        n++;
    return value_int(n);
}

static bool is_alpha(uint32_t c)
{
    return unicode_is_letter(c);
}

static bool is_alnum(uint32_t c)
{
    return unicode_is_letter(c) || unicode_is_numeric(c);
}

/* Is there a character, and do all satisfy the test? */
static struct value all_are(struct eval *e, const struct value *v, bool (*test)(uint32_t c))
{
    const struct string *s = v[0].as.string;
    bool all = s->n > 0;
    eval_charge(e, s->n / 16 + 1);
    for (size_t at = 0; at < s->n && all;)
        all = test(utf8_next(s->bytes, &at));
    return value_bool(all);
}

METHOD(isalpha)
{
    return all_are(e, v, is_alpha);
}

METHOD(isalnum)
{
    return all_are(e, v, is_alnum);
}

METHOD(isdigit)
{
    return all_are(e, v, unicode_is_numeric);
}

METHOD(isspace)
{
    return all_are(e, v, text_is_space);
}

/* Is there a cased character, and is none of the other case? */
static struct value one_case(struct eval *e, const struct value *v, bool (*wanted)(uint32_t c),
                             bool (*other)(uint32_t c))
{
    const struct string *s = v[0].as.string;
    bool any = false, none = true;
    eval_charge(e, s->n / 16 + 1);
    for (size_t at = 0; at < s->n && none;) {
        uint32_t c = utf8_next(s->bytes, &at);
        any = any || wanted(c);
        none = !other(c);
    }
    return value_bool(any && none);
}

METHOD(isupper)
{
    return one_case(e, v, unicode_is_upper, unicode_is_lower);
}

METHOD(islower)
{
    return one_case(e, v, unicode_is_lower, unicode_is_upper);
}

static struct value remove_end(struct eval *e, const struct value *v, bool end)
{
    const struct string *s = v[0].as.string, *w = want_string(e, v[1], "the affix");
    if (w == NULL || w->n > s->n)
        return v[0];
    eval_charge(e, w->n / 16 + 1);
    if (memcmp(s->bytes + (end ? s->n - w->n : 0), w->bytes, w->n) != 0)
        return v[0];
    return value_string(string_slice(e, s, end ? 0 : w->n, end ? s->n - w->n : s->n));
}

METHOD(removeprefix)
{
    return remove_end(e, v, false);
}

METHOD(removesuffix)
{
    return remove_end(e, v, true);
}

/* ---- list, dict, loop ------------------------------------------------------------------------ */

METHOD(list_count)
{
    int64_t n = 0;
    for (size_t i = 0; i < v[0].as.list->n && !eval_failed(e); i++) {
        eval_charge(e, 1);
        n += value_equal(e, v[0].as.list->items[i], v[1]);
    }
    return value_int(n);
}

METHOD(list_index)
{
    for (size_t i = 0; i < v[0].as.list->n && !eval_failed(e); i++) {
        eval_charge(e, 1);
        if (value_equal(e, v[0].as.list->items[i], v[1]))
            return value_int((int64_t)i);
    }
    return eval_error(e, "the value is not in the list");
}

METHOD(copy)
{
    return v[0]; /* lists and dicts never change here */
}

METHOD(get)
{
    const struct value *found = dict_get(e, v[0].as.dict, v[1]);
    return found != NULL ? *found : v[2].type == VALUE_ABSENT ? value_none() : v[2];
}

static struct value view(struct eval *e, const struct dict *d, const char *name, bool keys,
                         bool values)
{
    struct value list = value_list(e, VALUE_VIEW, d->n);
    for (size_t i = 0; i < d->n && !eval_failed(e); i++) {
        struct value item = keys ? d->entries[i].key : d->entries[i].value;
        if (keys && values) {
            item = value_list(e, VALUE_TUPLE, 2);
            if (eval_failed(e))
                break;
            item.as.list->items[0] = d->entries[i].key;
            item.as.list->items[1] = d->entries[i].value;
        }
        list.as.list->items[i] = item;
    }
    if (!eval_failed(e))
        list.as.list->name = name;
    return list;
}

METHOD(items)
{
    return view(e, v[0].as.dict, "dict_items", true, true);
}

METHOD(keys)
{
    return view(e, v[0].as.dict, "dict_keys", true, false);
}

METHOD(values)
{
    return view(e, v[0].as.dict, "dict_values", false, true);
}

METHOD(cycle)
{
    if (args->n == 0 || args->n_named != 0)
        return eval_error(e, "no items for cycling given");
    return args->positional[v[0].as.loop->at % args->n];
}

METHOD(changed)
{
    struct loop *l = v[0].as.loop;
    struct value now = value_list(e, VALUE_TUPLE, args->n);
    if (eval_failed(e))
        return now;
    for (size_t i = 0; i < args->n; i++)
        now.as.list->items[i] = args->positional[i];
    bool is = l->changed.type == VALUE_ABSENT || !value_equal(e, l->changed, now);
    l->changed = now;
    return value_bool(is);
}

/* ---- table ----------------------------------------------------------------------------------- */

static const struct function methods[] = {
    {"strip", "chars?", method_strip, ON_STRING},
    {"lstrip", "chars?", method_lstrip, ON_STRING},
    {"rstrip", "chars?", method_rstrip, ON_STRING},
    {"split", "sep? maxsplit?", method_split, ON_STRING},
    {"rsplit", "sep? maxsplit?", method_rsplit, ON_STRING},
    {"splitlines", "keepends?", method_splitlines, ON_STRING},
    {"partition", "sep", method_partition, ON_STRING},
    {"rpartition", "sep", method_rpartition, ON_STRING},
    {"replace", "old new count?", method_replace, ON_STRING},
    {"startswith", "prefix start? end?", method_startswith, ON_STRING},
    {"endswith", "suffix start? end?", method_endswith, ON_STRING},
    {"removeprefix", "prefix", method_removeprefix, ON_STRING},
    {"removesuffix", "suffix", method_removesuffix, ON_STRING},
    {"join", "iterable", method_join, ON_STRING},
    {"format", "*", method_format, ON_STRING},
    {"find", "sub start? end?", method_find, ON_STRING},
    {"rfind", "sub start? end?", method_rfind, ON_STRING},
    {"index", "sub start? end?", method_index_of, ON_STRING},
    {"rindex", "sub start? end?", method_rindex, ON_STRING},
    {"count", "sub start? end?", method_count, ON_STRING},
    {"upper", "", method_upper, ON_STRING},
    {"lower", "", method_lower, ON_STRING},
    {"casefold", "", method_lower, ON_STRING},
    {"title", "", method_title, ON_STRING},
    {"capitalize", "", method_capitalize, ON_STRING},
    {"swapcase", "", method_swapcase, ON_STRING},
    {"center", "width fillchar?", method_center, ON_STRING},
    {"ljust", "width fillchar?", method_ljust, ON_STRING},
    {"rjust", "width fillchar?", method_rjust, ON_STRING},
    {"zfill", "width", method_zfill, ON_STRING},
    {"isalpha", "", method_isalpha, ON_STRING},
    {"isalnum", "", method_isalnum, ON_STRING},
    {"isdigit", "", method_isdigit, ON_STRING},
    {"isdecimal", "", method_isdigit, ON_STRING},
    {"isnumeric", "", method_isdigit, ON_STRING},
    {"isspace", "", method_isspace, ON_STRING},
    {"isupper", "", method_isupper, ON_STRING},
    {"islower", "", method_islower, ON_STRING},
    {"count", "value", method_list_count, ON_ITEMS},
    {"index", "value", method_list_index, ON_ITEMS},
    {"copy", "", method_copy, ON(VALUE_LIST) | ON_DICT},
    {"get", "key default?", method_get, ON_DICT},
    {"items", "", method_items, ON_DICT},
    {"keys", "", method_keys, ON_DICT},
    {"values", "", method_values, ON_DICT},
    {"cycle", "*", method_cycle, ON_LOOP},
    {"changed", "*", method_changed, ON_LOOP},
};

static const struct {
    const char *name;
    unsigned types;
} forbidden_methods[] = {
    {"append", ON(VALUE_LIST)},
    {"extend", ON(VALUE_LIST)},
    {"insert", ON(VALUE_LIST)},
    {"remove", ON(VALUE_LIST)},
    {"reverse", ON(VALUE_LIST)},
    {"sort", ON(VALUE_LIST)},
    {"pop", ON(VALUE_LIST) | ON_DICT},
    {"clear", ON(VALUE_LIST) | ON_DICT},
    {"popitem", ON_DICT},
    {"setdefault", ON_DICT},
    {"update", ON_DICT},
};

const struct function *method_named(enum value_type type, const struct string *name,
                                    bool *forbidden)
{
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++)
        if ((methods[i].types & ON(type)) != 0 && string_is(name, methods[i].name))
            return &methods[i];
    for (size_t i = 0; i < sizeof forbidden_methods / sizeof forbidden_methods[0]; i++)
        if ((forbidden_methods[i].types & ON(type)) != 0 &&
            string_is(name, forbidden_methods[i].name))
            *forbidden = true;
    return NULL;
}
