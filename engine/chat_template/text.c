/* text: see text.h. Case goes character by character (simple mappings), except that "ß" in upper
 * case is "SS"; Python also knows a few dozen ligatures that become two letters. */
#include "engine/chat_template/text.h"

#include "engine/chat_template/eval.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"

#include <string.h>

enum { WIDTH_MAX = 1 << 20 };

bool text_is_space(uint32_t c)
{
    return unicode_is_space(c) || (c >= 0x1C && c <= 0x1F);
}

static bool is_stripped(struct eval *e, const struct string *s, size_t begin, size_t end,
                        const struct string *chars)
{
    if (chars == NULL)
        return text_is_space(utf8_next(s->bytes, &begin));
    eval_charge(e, chars->n / 16 + 1);
    /* A character's bytes can only be found at a character's beginning. */
    return memmem(chars->bytes, chars->n, s->bytes + begin, end - begin) != NULL;
}

const struct string *text_strip(struct eval *e, const struct string *s, const struct string *chars,
                                bool left, bool right)
{
    size_t begin = 0, end = s->n;
    eval_charge(e, s->n / 16 + 1);
    while (left && begin < end && !eval_failed(e)) {
        size_t next = begin + utf8_char_bytes((uint8_t)s->bytes[begin]);
        if (!is_stripped(e, s, begin, next, chars))
            break;
        begin = next;
    }
    while (right && end > begin && !eval_failed(e)) {
        size_t before = utf8_before(s->bytes, end);
        if (!is_stripped(e, s, before, end, chars))
            break;
        end = before;
    }
    return string_slice(e, s, begin, end);
}

ptrdiff_t text_find(struct eval *e, const struct string *s, const struct string *part, size_t from,
                    bool from_right)
{
    if (from > s->n)
        return -1;
    if (!from_right) {
        const char *found = memmem(s->bytes + from, s->n - from, part->bytes, part->n);
        return found == NULL ? -1 : found - s->bytes;
    }
    /* Each place may take as long as `part`: that is work to be counted, before it is done. */
    size_t n_tried = 0;
    for (size_t at = s->n - from >= part->n ? s->n - part->n + 1 : 0; at > from; at--) {
        if (memcmp(s->bytes + at - 1, part->bytes, part->n) == 0)
            return (ptrdiff_t)at - 1;
        if (++n_tried % 1024 == 0) {
            eval_charge(e, 64 * (part->n / 16 + 1));
            if (eval_failed(e))
                break;
        }
    }
    return -1;
}

const struct string *text_replace(struct eval *e, const struct string *s, const struct string *old,
                                  const struct string *new, int64_t count)
{
    struct builder b = {0};
    size_t at = 0;
    eval_charge(e, s->n / 16 + 1);
    while (count != 0 && !eval_failed(e)) {
        ptrdiff_t found = text_find(e, s, old, at, false);
        if (found < 0)
            break;
        builder_put(e, &b, string_slice(e, s, at, (size_t)found));
        builder_put(e, &b, new);
        at = (size_t)found + old->n;
        count -= count > 0;
        if (old->n == 0) {
            if (at == s->n)
                break;
            size_t next = at + utf8_char_bytes((uint8_t)s->bytes[at]);
            builder_put(e, &b, string_slice(e, s, at, next));
            at = next;
        }
    }
    if (at == 0 && b.n == 0)
        return s;
    builder_put(e, &b, string_slice(e, s, at, s->n));
    return builder_string(e, &b);
}

/* ---- splitting ------------------------------------------------------------------------------- */

struct pieces { /* a list that grows */
    struct value *items;
    size_t n, cap;
};

static void add_piece(struct eval *e, struct pieces *p, const struct string *s, size_t begin,
                      size_t end)
{
    eval_charge(e, 1);
    if (p->n == p->cap) {
        size_t cap = p->cap == 0 ? 8 : p->cap * 2;
        struct value *items = eval_alloc(e, cap, sizeof *items);
        if (items == NULL)
            return;
        if (p->n > 0)
            memcpy(items, p->items, p->n * sizeof *items);
        p->items = items;
        p->cap = cap;
    }
    p->items[p->n++] = value_string(string_slice(e, s, begin, end));
}

static struct value pieces_list(struct eval *e, const struct pieces *p, bool reversed)
{
    struct value v = value_list(e, VALUE_LIST, p->n);
    for (size_t i = 0; i < p->n && !eval_failed(e); i++)
        v.as.list->items[i] = p->items[reversed ? p->n - 1 - i : i];
    return v;
}

static size_t skip(const struct string *s, size_t at, bool space)
{
    while (at < s->n) {
        size_t next = at;
        if (text_is_space(utf8_next(s->bytes, &next)) != space)
            break;
        at = next;
    }
    return at;
}

static size_t skip_back(const struct string *s, size_t at, bool space)
{
    while (at > 0) {
        size_t before = utf8_before(s->bytes, at), next = before;
        if (text_is_space(utf8_next(s->bytes, &next)) != space)
            break;
        at = before;
    }
    return at;
}

static void split_words(struct eval *e, struct pieces *p, const struct string *s, int64_t max)
{
    size_t at = skip(s, 0, true);
    while (at < s->n && !eval_failed(e)) {
        size_t end = max == 0 ? s->n : skip(s, at, false); /* the rest goes as it is */
        max -= max > 0;
        add_piece(e, p, s, at, end);
        at = skip(s, end, true);
    }
}

static void split_words_back(struct eval *e, struct pieces *p, const struct string *s, int64_t max)
{
    size_t end = skip_back(s, s->n, true);
    while (end > 0 && !eval_failed(e)) {
        size_t begin = max == 0 ? 0 : skip_back(s, end, false);
        max -= max > 0;
        add_piece(e, p, s, begin, end);
        end = skip_back(s, begin, true);
    }
}

struct value text_split(struct eval *e, const struct string *s, const struct string *separator,
                        int64_t max, bool from_right)
{
    struct pieces p = {0};
    eval_charge(e, s->n / 16 + 1);
    if (separator == NULL) {
        (from_right ? split_words_back : split_words)(e, &p, s, max);
        return pieces_list(e, &p, from_right);
    }
    if (separator->n == 0)
        return eval_error(e, "empty separator");
    size_t begin = 0, end = s->n;
    while (max != 0 && !eval_failed(e)) {
        const struct string *rest = from_right ? string_slice(e, s, 0, end) : s;
        ptrdiff_t found = text_find(e, rest, separator, begin, from_right);
        if (found < 0)
            break;
        if (from_right) {
            add_piece(e, &p, s, (size_t)found + separator->n, end);
            end = (size_t)found;
        } else {
            add_piece(e, &p, s, begin, (size_t)found);
            begin = (size_t)found + separator->n;
        }
        max -= max > 0;
    }
    add_piece(e, &p, s, begin, end);
    return pieces_list(e, &p, from_right);
}

static bool ends_line(uint32_t c)
{
    return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
           c == 0x2029;
}

struct value text_lines(struct eval *e, const struct string *s, bool keep_ends)
{
    struct pieces p = {0};
    size_t begin = 0;
    eval_charge(e, s->n / 16 + 1);
    for (size_t at = 0; at < s->n && !eval_failed(e);) {
        size_t end = at;
        uint32_t c = utf8_next(s->bytes, &at);
        if (!ends_line(c))
            continue;
        if (c == '\r' && at < s->n && s->bytes[at] == '\n')
            at++;
        add_piece(e, &p, s, begin, keep_ends ? at : end);
        begin = at;
    }
    if (begin < s->n)
        add_piece(e, &p, s, begin, s->n);
    return pieces_list(e, &p, false);
}

/* ---- case and width -------------------------------------------------------------------------- */

const struct string *text_recase(struct eval *e, const struct string *s, enum text_case how)
{
    struct builder b = {0};
    bool inside = false; /* a word (title), or behind the first character (capitalize) */
    for (size_t at = 0; at < s->n && !eval_failed(e);) {
        size_t begin = at;
        uint32_t c = utf8_next(s->bytes, &at);
        bool upper = unicode_is_upper(c), lower = unicode_is_lower(c);
        uint32_t to = c;
        switch (how) {
        case TEXT_UPPER:
            to = unicode_upper(c);
            break;
        case TEXT_LOWER:
            to = unicode_lower(c);
            break;
        case TEXT_SWAP:
            to = upper ? unicode_lower(c) : lower ? unicode_upper(c) : c;
            break;
        case TEXT_TITLE:
        case TEXT_CAPITALIZE:
            to = inside ? unicode_lower(c) : unicode_title(c);
            inside = how == TEXT_CAPITALIZE || unicode_is_letter(c);
            break;
        }
        bool input = s->input != NULL ? s->input[begin] != 0 : s->all_input;
        char bytes[UTF8_MAX_BYTES];
        if (c == 0xDF && (how == TEXT_UPPER || how == TEXT_SWAP))
            builder_put_bytes(e, &b, "SS", 2, input);
        else
            builder_put_bytes(e, &b, bytes, utf8_encode(bytes, to), input);
    }
    return builder_string(e, &b);
}

const struct string *text_align(struct eval *e, const struct string *s, int64_t width,
                                enum text_align how, const struct string *fill)
{
    static const struct string space = {.bytes = " ", .n = 1};
    int64_t n = (int64_t)utf8_count(s->bytes, s->n), missing = width - n;
    eval_charge(e, s->n / 16 + 1);
    if (missing <= 0)
        return s;
    if (missing > WIDTH_MAX) {
        eval_fail(e, ERR_TOO_LARGE, "a width of more than %d characters", WIDTH_MAX);
        return s;
    }
    /* str.center puts the odd space as CPython does. */
    int64_t left = how == TEXT_LEFT    ? 0
                   : how == TEXT_RIGHT ? missing
                                       : missing / 2 + (missing & width & 1);
    struct builder b = {0};
    for (int64_t i = 0; i < missing && !eval_failed(e); i++) {
        if (i == left)
            builder_put(e, &b, s);
        builder_put(e, &b, fill == NULL ? &space : fill);
    }
    if (left == missing)
        builder_put(e, &b, s);
    return builder_string(e, &b);
}
