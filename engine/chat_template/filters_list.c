/* filters_list: filters that go through items, after jinja2/filters.py.
 *
 * Filters that Python writes as generators (map, select, items, ...) give an iterator here as well,
 * so that what can't be done to it there (index it, take its length) can't be done here; but its
 * items are made at once. */
#include "engine/chat_template/filters.h"

#include "engine/chat_template/text.h"

#include <stdlib.h>
#include <string.h>

/* A list to be filled, of at most n items. */
static struct value list_for(struct eval *e, size_t n)
{
    struct value out = value_list(e, VALUE_LIST, n);
    if (!eval_failed(e))
        out.as.list->n = 0;
    return out;
}

static void list_add(struct eval *e, struct value list, struct value item)
{
    if (!eval_failed(e))
        list.as.list->items[list.as.list->n++] = item;
}

/* ---- attributes of items --------------------------------------------------------------------- */

/* "a.b.0" of an item, or the item itself when attribute is not given. */
static struct value item_attribute(struct eval *e, struct value item, struct value attribute)
{
    if (!filter_given(attribute))
        return item;
    if (attribute.type != VALUE_STRING)
        return eval_item(e, item, attribute);
    const struct string *path = attribute.as.string;
    for (size_t at = 0; at <= path->n && !eval_failed(e);) {
        size_t end = at;
        bool digits = true;
        for (; end < path->n && path->bytes[end] != '.'; end++)
            digits = digits && path->bytes[end] >= '0' && path->bytes[end] <= '9';
        struct value key = value_string(string_slice(e, path, at, end));
        if (digits && end > at && end - at < 18)
            key = value_int(
                strtoll(value_textf(e, "%.*s", (int)(end - at), path->bytes + at).as.string->bytes,
                        NULL, 10));
        item = eval_item(e, item, key);
        at = end + 1;
    }
    return item;
}

/* What sort, unique and the like compare by: without case unless it is asked for. */
static struct value sort_key(struct eval *e, struct value item, struct value attribute,
                             bool case_sensitive)
{
    struct value key = item_attribute(e, item, attribute);
    if (key.type == VALUE_STRING && !case_sensitive)
        key = value_string(text_recase(e, key.as.string, TEXT_LOWER));
    return key;
}

struct keyed {
    struct value key, item;
};

/* A stable merge sort of in [n], with as much room in spare. */
static void sort_keyed(struct eval *e, struct keyed *in, struct keyed *spare, size_t n,
                       bool reverse)
{
    for (size_t width = 1; width < n && !eval_failed(e); width *= 2) {
        for (size_t begin = 0; begin < n && !eval_failed(e); begin += 2 * width) {
            size_t mid = begin + width < n ? begin + width : n;
            size_t end = begin + 2 * width < n ? begin + 2 * width : n;
            size_t i = begin, k = mid;
            for (size_t out = begin; out < end; out++) {
                bool right = i == mid;
                if (i < mid && k < end) {
                    eval_charge(e, 1);
                    int c = value_compare(e, in[k].key, in[i].key, "<");
                    right = reverse ? c == 1 : c == -1;
                }
                spare[out] = right ? in[k++] : in[i++];
            }
        }
        memcpy(in, spare, n * sizeof *in);
    }
}

/* "a,b.c": a list of what the item has there. Python compares such lists, so keys that are equal
 * without having an order (undefined ones) don't make sorting fail. */
static struct value sort_keys(struct eval *e, struct value item, struct value attributes,
                              bool case_sensitive)
{
    static const struct string comma = {.bytes = ",", .n = 1};
    struct value names = value_list(e, VALUE_LIST, 1);
    if (attributes.type == VALUE_STRING)
        names = text_split(e, attributes.as.string, &comma, -1, false);
    else if (!eval_failed(e))
        names.as.list->items[0] = attributes;
    if (eval_failed(e))
        return names;
    struct value keys = value_list(e, VALUE_LIST, names.as.list->n);
    for (size_t i = 0; !eval_failed(e) && i < names.as.list->n; i++)
        keys.as.list->items[i] = sort_key(e, item, names.as.list->items[i], case_sensitive);
    return keys;
}

static struct value sorted(struct eval *e, struct value iterable, bool reverse, bool case_sensitive,
                           struct value attribute, bool by_list)
{
    struct value items = value_items(e, iterable);
    if (eval_failed(e))
        return items;
    size_t n = items.as.list->n;
    struct keyed *keyed = eval_alloc(e, n, sizeof *keyed);
    struct keyed *spare = eval_alloc(e, n, sizeof *spare);
    for (size_t i = 0; i < n && !eval_failed(e); i++)
        keyed[i] = (struct keyed){
            (by_list ? sort_keys : sort_key)(e, items.as.list->items[i], attribute, case_sensitive),
            items.as.list->items[i]};
    if (!eval_failed(e))
        sort_keyed(e, keyed, spare, n, reverse);
    struct value out = list_for(e, n);
    for (size_t i = 0; i < n && !eval_failed(e); i++)
        list_add(e, out, keyed[i].item);
    return out;
}

FILTER(sort)
{
    return sorted(e, v[0], value_truth(v[1]), value_truth(v[2]), v[3], true);
}

FILTER(dictsort)
{
    if (v[0].type != VALUE_DICT)
        return eval_error(e, "'%s' object has no attribute 'items'", value_type_name(v[0]));
    bool by_value = v[2].type == VALUE_STRING && string_is(v[2].as.string, "value");
    struct value pairs = list_for(e, v[0].as.dict->n);
    for (size_t i = 0; i < v[0].as.dict->n && !eval_failed(e); i++) {
        struct value pair = value_list(e, VALUE_TUPLE, 2);
        if (eval_failed(e))
            break;
        pair.as.list->items[0] = v[0].as.dict->entries[i].key;
        pair.as.list->items[1] = v[0].as.dict->entries[i].value;
        list_add(e, pairs, pair);
    }
    return sorted(e, pairs, value_truth(v[3]), value_truth(v[1]), value_int(by_value), false);
}

FILTER(unique)
{
    struct value items = value_items(e, v[0]);
    if (eval_failed(e))
        return items;
    size_t n = items.as.list->n;
    struct value out = list_for(e, n), keys = list_for(e, n);
    for (size_t i = 0; i < n && !eval_failed(e); i++) {
        struct value key = sort_key(e, items.as.list->items[i], v[2], value_truth(v[1]));
        if (key.type == VALUE_LIST || key.type == VALUE_DICT)
            eval_error(e, "unhashable type: '%s'", value_type_name(key));
        if (!eval_failed(e) && !eval_contains(e, keys, key)) {
            list_add(e, keys, key);
            list_add(e, out, items.as.list->items[i]);
        }
    }
    return value_iterator(e, out, "generator");
}

static struct value extreme(struct eval *e, const struct value *v, int wanted)
{
    struct value items = value_items(e, v[0]), best = value_none(), best_key = value_none();
    if (eval_failed(e))
        return items;
    if (items.as.list->n == 0)
        return eval_undefined(e, "No aggregated item, sequence was empty.");
    for (size_t i = 0; i < items.as.list->n && !eval_failed(e); i++) {
        struct value key = sort_key(e, items.as.list->items[i], v[2], value_truth(v[1]));
        if (i == 0 || value_compare(e, key, best_key, wanted < 0 ? "<" : ">") == wanted) {
            best = items.as.list->items[i];
            best_key = key;
        }
    }
    return best;
}

FILTER(min)
{
    return extreme(e, v, -1);
}

FILTER(max)
{
    return extreme(e, v, 1);
}

FILTER(sum)
{
    struct value items = value_items(e, v[0]);
    struct value total = v[2].type == VALUE_ABSENT ? value_int(0) : v[2];
    for (size_t i = 0; !eval_failed(e) && i < items.as.list->n; i++) {
        eval_charge(e, 1);
        total = eval_operator(e, OP_ADD, total, item_attribute(e, items.as.list->items[i], v[1]));
    }
    return total;
}

/* [(key, [items]), ...], by key. */
FILTER(groupby)
{
    bool sensitive = value_truth(v[3]);
    struct value items = sorted(e, v[0], false, sensitive, v[1], false);
    if (eval_failed(e))
        return items;
    size_t n = items.as.list->n;
    struct value out = list_for(e, n);
    for (size_t i = 0; i < n && !eval_failed(e);) {
        struct value key = sort_key(e, items.as.list->items[i], v[1], sensitive);
        struct value group = list_for(e, n - i), pair = value_list(e, VALUE_TUPLE, 2);
        size_t k = i;
        for (; k < n && !eval_failed(e); k++) {
            if (k > i &&
                !value_equal(e, key, sort_key(e, items.as.list->items[k], v[1], sensitive)))
                break;
            list_add(e, group, items.as.list->items[k]);
        }
        if (eval_failed(e))
            break;
        struct value real = item_attribute(e, items.as.list->items[i], v[1]);
        pair.as.list->items[0] = real.type == VALUE_UNDEFINED && filter_given(v[2]) ? v[2] : real;
        pair.as.list->items[1] = group;
        list_add(e, out, pair);
        i = k;
    }
    return out;
}

/* ---- choosing and mapping -------------------------------------------------------------------- */

/* The arguments behind the first n. */
static struct args rest_of(const struct args *args, size_t n)
{
    struct args rest = *args;
    rest.positional += n;
    rest.n -= n;
    return rest;
}

/* select, reject, selectattr, rejectattr: attribute first if there is one, then test and arguments.
 */
static struct value choose(struct eval *e, struct value iterable, const struct args *args,
                           bool by_attribute, bool wanted)
{
    if (!value_truth(iterable)) /* nothing to choose from, None included */
        return value_iterator(e, value_list(e, VALUE_LIST, 0), "generator");
    struct value items = value_items(e, iterable);
    if (eval_failed(e))
        return items;
    if (by_attribute && args->n == 0)
        return eval_error(e, "Missing parameter for attribute name");
    size_t n_used = by_attribute ? 1 : 0;
    struct value out = list_for(e, items.as.list->n);
    for (size_t i = 0; i < items.as.list->n && !eval_failed(e); i++) {
        struct value item = items.as.list->items[i], subject = item;
        eval_charge(e, 1);
        if (by_attribute)
            subject = item_attribute(e, item, args->positional[0]);
        bool holds = value_truth(subject);
        if (args->n > n_used) {
            if (args->positional[n_used].type != VALUE_STRING)
                return eval_error(e, "the name of a test must be a string");
            struct args rest = rest_of(args, n_used + 1);
            holds = eval_test(e, args->positional[n_used].as.string, subject, &rest);
        }
        if (holds == wanted)
            list_add(e, out, item);
    }
    return value_iterator(e, out, "generator");
}

FILTER(select)
{
    return choose(e, v[0], args, false, true);
}

FILTER(reject)
{
    return choose(e, v[0], args, false, false);
}

FILTER(selectattr)
{
    return choose(e, v[0], args, true, true);
}

FILTER(rejectattr)
{
    return choose(e, v[0], args, true, false);
}

FILTER(map)
{
    struct value attribute = {0}, otherwise = {0};
    if (!value_truth(v[0]))
        return value_iterator(e, value_list(e, VALUE_LIST, 0), "generator");
    for (size_t i = 0; args->n == 0 && i < args->n_named; i++) {
        const struct string *key = args->named[i].key.as.string;
        if (string_is(key, "attribute"))
            attribute = args->named[i].value;
        else if (string_is(key, "default"))
            otherwise = args->named[i].value;
        else
            return eval_error(e, "Unexpected keyword argument '%.*s'",
                              (int)(key->n < 100 ? key->n : 100), key->bytes);
    }
    if (args->n == 0 && attribute.type == VALUE_ABSENT)
        return eval_error(e, "map requires a filter argument");
    if (args->n > 0 && args->positional[0].type != VALUE_STRING)
        return eval_error(e, "the name of a filter must be a string");
    struct value items = value_items(e, v[0]);
    if (eval_failed(e))
        return items;
    struct value out = list_for(e, items.as.list->n);
    for (size_t i = 0; i < items.as.list->n && !eval_failed(e); i++) {
        struct value item = items.as.list->items[i];
        eval_charge(e, 1);
        if (args->n > 0) {
            struct args rest = rest_of(args, 1);
            item = eval_filter(e, args->positional[0].as.string, item, &rest);
        } else {
            item = item_attribute(e, item, attribute);
            if (item.type == VALUE_UNDEFINED && filter_given(otherwise))
                item = otherwise;
        }
        list_add(e, out, item);
    }
    return value_iterator(e, out, "generator");
}

FILTER(items)
{
    static const struct string name = {.bytes = "items", .n = 5};
    const struct args none = {0};
    if (v[0].type == VALUE_UNDEFINED)
        return value_iterator(e, value_list(e, VALUE_LIST, 0), "generator");
    if (v[0].type != VALUE_DICT)
        return eval_error(e, "Can only get item pairs from a mapping.");
    struct value pairs = eval_call(e, eval_attribute(e, v[0], &name), &none);
    return value_iterator(e, pairs, "generator");
}

/* ---- lists ----------------------------------------------------------------------------------- */

FILTER(list)
{
    return value_items(e, v[0]);
}

FILTER(first)
{
    if (v[0].type == VALUE_ITERATOR && v[0].as.list->at < v[0].as.list->n)
        return v[0].as.list->items[v[0].as.list->at++]; /* takes the one item */
    struct value items = value_items(e, v[0]);
    if (eval_failed(e))
        return items;
    return items.as.list->n > 0 ? items.as.list->items[0]
                                : eval_undefined(e, "No first item, sequence was empty.");
}

FILTER(last)
{
    if (v[0].type == VALUE_ITERATOR || v[0].type == VALUE_NONE || value_is_number(v[0]))
        return eval_error(e, "'%s' object is not reversible", value_type_name(v[0]));
    struct value items = value_items(e, v[0]);
    if (eval_failed(e))
        return items;
    size_t n = items.as.list->n;
    return n > 0 ? items.as.list->items[n - 1]
                 : eval_undefined(e, "No last item, sequence was empty.");
}

FILTER(length)
{
    return value_int(value_length(e, v[0]));
}

FILTER(reverse)
{
    struct value items = value_items(e, v[0]);
    if (eval_failed(e))
        return items;
    size_t n = items.as.list->n;
    if (v[0].type == VALUE_STRING) {
        struct builder b = {0};
        for (size_t i = n; i > 0 && !eval_failed(e); i--)
            builder_put(e, &b, items.as.list->items[i - 1].as.string);
        return value_string(builder_string(e, &b));
    }
    struct value out = list_for(e, n);
    for (size_t i = n; i > 0 && !eval_failed(e); i--)
        list_add(e, out, items.as.list->items[i - 1]);
    return v[0].type == VALUE_ITERATOR ? out : value_iterator(e, out, "list_reverseiterator");
}

FILTER(join)
{
    struct value items = value_items(e, v[0]);
    struct builder b = {0};
    for (size_t i = 0; !eval_failed(e) && i < items.as.list->n; i++) {
        if (i > 0 && v[1].type != VALUE_ABSENT)
            value_put_str(e, &b, v[1]);
        value_put_str(e, &b, item_attribute(e, items.as.list->items[i], v[2]));
    }
    return value_string(builder_string(e, &b));
}

FILTER(batch)
{
    int64_t size = filter_int_or(e, v[1], 0);
    struct value items = value_items(e, v[0]);
    if (eval_failed(e))
        return items;
    if (size < 1 || size > LIST_MAX)
        return eval_error(e, "batch size %lld is not supported", (long long)size);
    size_t n = items.as.list->n, step = (size_t)size;
    struct value out = list_for(e, n);
    for (size_t i = 0; i < n && !eval_failed(e); i += step) {
        size_t here = n - i < step ? n - i : step;
        struct value batch = list_for(e, filter_given(v[2]) ? step : here);
        for (size_t k = 0; !eval_failed(e) && k < (filter_given(v[2]) ? step : here); k++)
            list_add(e, batch, k < here ? items.as.list->items[i + k] : v[2]);
        list_add(e, out, batch);
    }
    return value_iterator(e, out, "generator");
}

FILTER(slice)
{
    int64_t slices = filter_int_or(e, v[1], 0);
    struct value items = value_items(e, v[0]);
    if (eval_failed(e))
        return items;
    if (slices < 1 || slices > LIST_MAX)
        return eval_error(e, "%lld slices are not supported", (long long)slices);
    size_t n = items.as.list->n, each = n / (size_t)slices, extra = n % (size_t)slices, at = 0;
    struct value out = list_for(e, (size_t)slices);
    for (size_t k = 0; k < (size_t)slices && !eval_failed(e); k++) {
        size_t here = each + (k < extra);
        struct value part = list_for(e, here + 1);
        for (size_t i = 0; i < here; i++)
            list_add(e, part, items.as.list->items[at++]);
        if (filter_given(v[2]) && k >= extra)
            list_add(e, part, v[2]);
        list_add(e, out, part);
    }
    return value_iterator(e, out, "generator");
}

/* ---- table ----------------------------------------------------------------------------------- */

static const struct function filters[] = {
    {"batch", "linecount fill_with?", filter_batch, 0},
    {"count", "", filter_length, 0},
    {"dictsort", "case_sensitive? by? reverse?", filter_dictsort, 0},
    {"first", "", filter_first, 0},
    {"groupby", "attribute default? case_sensitive?", filter_groupby, 0},
    {"items", "", filter_items, 0},
    {"join", "d? attribute?", filter_join, 0},
    {"last", "", filter_last, 0},
    {"length", "", filter_length, 0},
    {"list", "", filter_list, 0},
    {"map", "*", filter_map, 0},
    {"max", "case_sensitive? attribute?", filter_max, 0},
    {"min", "case_sensitive? attribute?", filter_min, 0},
    {"reject", "*", filter_reject, 0},
    {"rejectattr", "*", filter_rejectattr, 0},
    {"reverse", "", filter_reverse, 0},
    {"select", "*", filter_select, 0},
    {"selectattr", "*", filter_selectattr, 0},
    {"slice", "slices fill_with?", filter_slice, 0},
    {"sort", "reverse? case_sensitive? attribute?", filter_sort, 0},
    {"sum", "attribute? start?", filter_sum, 0},
    {"unique", "case_sensitive? attribute?", filter_unique, 0},
};

const struct function *filter_of_lists(const struct string *name)
{
    for (size_t i = 0; i < sizeof filters / sizeof filters[0]; i++)
        if (string_is(name, filters[i].name))
            return &filters[i];
    return NULL;
}
