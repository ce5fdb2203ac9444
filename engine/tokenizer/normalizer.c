/* normalizer: see normalizer.h.
 *
 * A flat list of steps (nested sequences are unrolled while reading), each from one buffer into
 * another:
 *
 *   Prepend   puts a string before a text that isn't empty
 *   Replace   puts a string in place of each match of a pattern
 *   NFC       Unicode normalisation form C
 *
 * When asked, each output byte remembers the byte of the original that it comes from: that is how
 * a special token found in a normalised text is known to lie in what a user wrote. Inserted bytes
 * take the place of what follows them, replaced and composed ones that of where they began. */
#include "engine/tokenizer/normalizer.h"

#include "engine/tokenizer/pattern.h"
#include "engine/tokenizer/unicode.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

enum { STEPS_MAX = 32, NESTING_MAX = 8 };

enum step_kind { STEP_PREPEND, STEP_REPLACE, STEP_NFC };

struct step {
    enum step_kind kind;
    struct pattern *pattern; /* Replace */
    char *text;              /* Prepend: what; Replace: by what. [n_text] */
    size_t n_text;
};

struct normalizer {
    struct step steps[STEPS_MAX];
    size_t n;
};

/* ---- reading --------------------------------------------------------------------------------- */

static struct step *add_step(struct normalizer *n, enum step_kind kind, struct err *err)
{
    if (n->n == STEPS_MAX) {
        err_set(err, ERR_UNSUPPORTED, "normalizer: more than %d steps", STEPS_MAX);
        return NULL;
    }
    struct step *s = &n->steps[n->n++];
    s->kind = kind;
    return s;
}

static int read_step(struct normalizer *n, const json_t *json, int nesting, struct err *err)
{
    struct json_text type, text;
    if (nesting > NESTING_MAX)
        return err_set(err, ERR_INVALID, "normalizer: sequences nest deeper than %d", NESTING_MAX);
    if (json_read_text(json, "normalizer", "type", &type, err) != 0)
        return -1;
    if (json_text_is(type, "Sequence")) {
        const json_t *list;
        if (json_read_array(json, "normalizer Sequence", "normalizers", &list, err) != 0)
            return -1;
        for (size_t i = 0; i < json_array_size(list); i++)
            if (read_step(n, json_array_get(list, i), nesting + 1, err) != 0)
                return -1;
        return 0;
    }
    if (json_text_is(type, "NFC"))
        return add_step(n, STEP_NFC, err) == NULL ? -1 : 0;
    bool prepend = json_text_is(type, "Prepend");
    if (!prepend && !json_text_is(type, "Replace"))
        return err_set(err, ERR_UNSUPPORTED, "normalizer: type \"%.64s\" is not supported",
                       type.bytes);
    if (json_read_text(json, prepend ? "normalizer Prepend" : "normalizer Replace",
                       prepend ? "prepend" : "content", &text, err) != 0)
        return -1;
    struct step *s = add_step(n, prepend ? STEP_PREPEND : STEP_REPLACE, err);
    if (s == NULL)
        return -1;
    s->text = xmalloc(text.n + 1);
    memcpy(s->text, text.bytes, text.n + 1);
    s->n_text = text.n;
    if (!prepend)
        s->pattern = pattern_read(json, "normalizer Replace", err);
    return prepend || s->pattern != NULL ? 0 : -1;
}

struct normalizer *normalizer_read(const json_t *json, struct err *err)
{
    struct normalizer *n = xcalloc(1, sizeof *n);
    if (json != NULL && read_step(n, json, 0, err) != 0) {
        normalizer_free(n);
        return NULL;
    }
    return n;
}

void normalizer_free(struct normalizer *n)
{
    if (n == NULL)
        return;
    for (size_t i = 0; i < n->n; i++) {
        pattern_free(n->steps[i].pattern);
        free(n->steps[i].text);
    }
    free(n);
}

bool normalizer_is_empty(const struct normalizer *n)
{
    return n == NULL || n->n == 0;
}

/* ---- applying -------------------------------------------------------------------------------- */

void normalized_release(struct normalized *t)
{
    buf_release(&t->text);
    free(t->origin);
    *t = (struct normalized)NORMALIZED_INIT;
}

/* Notes that the bytes from t->text.len - n_bytes on come from `from` of the original; each from
 * one byte further when they were copied. */
static void note_origin(struct normalized *t, size_t n_bytes, const struct normalized *source,
                        size_t from, bool copied)
{
    if (!t->with_origin)
        return;
    size_t end = t->text.len, begin = end - n_bytes;
    if (end + 1 > t->cap_origin) {
        t->cap_origin = end * 2 + 64;
        t->origin = xrealloc_array(t->origin, t->cap_origin, sizeof *t->origin);
    }
    for (size_t i = begin; i < end; i++)
        t->origin[i] = source->origin[copied ? from + (i - begin) : from];
}

static void put_copy(struct normalized *out, const struct normalized *in, size_t begin, size_t end)
{
    buf_append(&out->text, in->text.data + begin, end - begin);
    note_origin(out, end - begin, in, begin, true);
}

static void put_text(struct normalized *out, const struct step *s, const struct normalized *in,
                     size_t from)
{
    buf_append(&out->text, s->text, s->n_text);
    note_origin(out, s->n_text, in, from, false);
}

static int replace(const struct step *s, struct normalized *out, const struct normalized *in,
                   struct err *err)
{
    struct pattern_search search;
    size_t begin, end, done = 0;
    int rc;
    pattern_search_init(&search, s->pattern, (const char *)in->text.data, in->text.len);
    while ((rc = pattern_search_next(&search, &begin, &end, err)) == 1) {
        put_copy(out, in, done, begin);
        put_text(out, s, in, begin);
        done = end;
        if (out->text.len > NORMALIZED_MAX_BYTES) {
            rc = err_set(err, ERR_TOO_LARGE, "the normalised text is longer than %d bytes",
                         NORMALIZED_MAX_BYTES);
            break;
        }
    }
    pattern_search_release(&search);
    if (rc == 0)
        put_copy(out, in, done, in->text.len);
    return rc;
}

static void compose(struct normalized *out, const struct normalized *in)
{
    const char *text = (const char *)in->text.data;
    size_t n = in->text.len, at = 0;
    while (at < n) {
        size_t ascii = at;
        while (ascii < n && (uint8_t)text[ascii] < 0x80)
            ascii++;
        /* The last of them may be the base of a mark. */
        if (ascii > at + 1) {
            size_t end = ascii < n ? ascii - 1 : n;
            put_copy(out, in, at, end);
            at = end;
            continue;
        }
        size_t before = out->text.len;
        size_t step = unicode_nfc_step(&out->text, text + at, n - at);
        size_t made = out->text.len - before;
        bool same = made == step && memcmp(out->text.data + before, text + at, step) == 0;
        note_origin(out, made, in, at, same);
        at += step;
    }
}

int normalizer_apply(const struct normalizer *n, struct normalized *out, const char *text,
                     size_t n_bytes, struct err *err)
{
    BUG_IF(n_bytes > UINT32_MAX);
    buf_reset(&out->text);
    buf_append(&out->text, text, n_bytes);
    if (out->with_origin) {
        if (n_bytes + 1 > out->cap_origin) {
            out->cap_origin = n_bytes + 1;
            out->origin = xrealloc_array(out->origin, out->cap_origin, sizeof *out->origin);
        }
        for (size_t i = 0; i <= n_bytes; i++)
            out->origin[i] = (uint32_t)i;
    }
    if (n_bytes == 0 || normalizer_is_empty(n))
        return 0;
    struct normalized other = NORMALIZED_INIT;
    other.with_origin = out->with_origin;
    int rc = 0;
    for (size_t i = 0; i < n->n && rc == 0 && out->text.len > 0; i++) {
        const struct step *s = &n->steps[i];
        buf_reset(&other.text);
        switch (s->kind) {
        case STEP_PREPEND:
            put_text(&other, s, out, 0);
            put_copy(&other, out, 0, out->text.len);
            break;
        case STEP_REPLACE:
            rc = replace(s, &other, out, err);
            break;
        case STEP_NFC:
            compose(&other, out);
            break;
        }
        if (other.with_origin) {
            note_origin(&other, 0, out, 0, false); /* room for the last one */
            other.origin[other.text.len] = (uint32_t)n_bytes;
        }
        struct normalized swap = *out;
        *out = other;
        other = swap;
    }
    normalized_release(&other);
    return rc;
}
