/* pre_tokenizer: see pre_tokenizer.h.
 *
 * A flat list of steps (nested sequences are unrolled while reading). Each cuts every word that the
 * steps before it left, some change the text as well:
 *
 *   Split      cuts at the matches of a pattern; `behavior` says what becomes of a match, `invert`
 *              makes matches of what lies between them
 *   Digits     cuts numbers from the rest, each digit for itself or runs together
 *   Metaspace  a space becomes U+2581, one more is put in front, and each begins a word
 *   ByteLevel  GPT-2's: may put a space in front, may cut with GPT-2's expression; from here on a
 *              word is bytes. It must be the last step: the byte alphabet is never written out
 * here, the vocabulary was translated instead (bpe.c).
 *
 * What becomes of matches, after the reference (tokenizers, normalizer.rs), for "the-final--word"
 * cut at "-":
 *
 *   Removed             the final word
 *   Isolated            the - final - - word
 *   MergedWithPrevious  the- final- - word
 *   MergedWithNext      the -final - -word
 *   Contiguous          the - final -- word */
#include "engine/tokenizer/pre_tokenizer.h"

#include "engine/tokenizer/pattern.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

enum { STEPS_MAX = 32, NESTING_MAX = 8, WORDS_TEXT_MAX_BYTES = 256 << 20 };

enum behavior {
    BEHAVIOR_REMOVED,
    BEHAVIOR_ISOLATED,
    BEHAVIOR_MERGED_WITH_PREVIOUS,
    BEHAVIOR_MERGED_WITH_NEXT,
    BEHAVIOR_CONTIGUOUS,
};

enum step_kind { STEP_SPLIT, STEP_DIGITS, STEP_METASPACE, STEP_BYTE_LEVEL };
enum prepend { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS };

struct step {
    enum step_kind kind;
    struct pattern *pattern; /* Split; ByteLevel with use_regex, Metaspace with split; or NULL */
    enum behavior behavior;
    bool invert;
    bool prefix_space;         /* ByteLevel */
    char mark[UTF8_MAX_BYTES]; /* Metaspace: what stands for a space */
    size_t n_mark;
    enum prepend prepend;
};

struct pre_tokenizer {
    struct step steps[STEPS_MAX];
    size_t n;
    bool byte_level;
};

/* ---- reading --------------------------------------------------------------------------------- */

static const char GPT2_WORDS[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static int read_split(struct step *s, const json_t *json, struct err *err)
{
    static const struct {
        const char *name;
        enum behavior behavior;
    } names[] = {
        {"Removed", BEHAVIOR_REMOVED},
        {"Isolated", BEHAVIOR_ISOLATED},
        {"MergedWithPrevious", BEHAVIOR_MERGED_WITH_PREVIOUS},
        {"MergedWithNext", BEHAVIOR_MERGED_WITH_NEXT},
        {"Contiguous", BEHAVIOR_CONTIGUOUS},
    };
    struct json_text behavior;
    s->pattern = pattern_read(json, "pre_tokenizer Split", err);
    if (s->pattern == NULL ||
        json_read_text(json, "pre_tokenizer Split", "behavior", &behavior, err) != 0 ||
        json_read_bool(json, "pre_tokenizer Split", "invert", &s->invert, err) != 0)
        return -1;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (json_text_is(behavior, names[i].name)) {
            s->behavior = names[i].behavior;
            return 0;
        }
    }
    return err_set(err, ERR_UNSUPPORTED, "pre_tokenizer Split: behavior \"%.64s\" is unknown",
                   behavior.bytes);
}

static int read_digits(struct step *s, const json_t *json, struct err *err)
{
    bool individual = false;
    if (json_read_bool(json, "pre_tokenizer Digits", "individual_digits", &individual, err) != 0)
        return -1;
    s->behavior = individual ? BEHAVIOR_ISOLATED : BEHAVIOR_CONTIGUOUS;
    return 0;
}

static int read_byte_level(struct step *s, const json_t *json, struct err *err)
{
    static const char where[] = "pre_tokenizer ByteLevel";
    bool use_regex = true;
    s->prefix_space = true;
    s->behavior = BEHAVIOR_ISOLATED;
    if (json_read_bool(json, where, "add_prefix_space", &s->prefix_space, err) != 0 ||
        json_read_bool(json, where, "use_regex", &use_regex, err) != 0)
        return -1;
    if (use_regex)
        s->pattern = pattern_regex(GPT2_WORDS, sizeof GPT2_WORDS - 1, err);
    return use_regex && s->pattern == NULL ? -1 : 0;
}

static int read_metaspace(struct step *s, const json_t *json, struct err *err)
{
    static const char where[] = "pre_tokenizer Metaspace";
    struct json_text mark, scheme;
    bool prefix_space = true, split = true;
    if (json_read_text(json, where, "replacement", &mark, err) != 0 ||
        json_read_text_optional(json, where, "prepend_scheme", &scheme, err) != 0 ||
        json_read_bool(json, where, "add_prefix_space", &prefix_space, err) != 0 ||
        json_read_bool(json, where, "split", &split, err) != 0)
        return -1;
    if (mark.n == 0 || utf8_char_bytes((uint8_t)mark.bytes[0]) != mark.n)
        return err_set(err, ERR_INVALID, "%s: replacement \"%.64s\" is not one character", where,
                       mark.bytes);
    memcpy(s->mark, mark.bytes, mark.n);
    s->n_mark = mark.n;
    if (scheme.bytes == NULL)
        s->prepend = prefix_space ? PREPEND_ALWAYS : PREPEND_NEVER;
    else if (json_text_is(scheme, "always"))
        s->prepend = PREPEND_ALWAYS;
    else if (json_text_is(scheme, "first"))
        s->prepend = PREPEND_FIRST;
    else if (json_text_is(scheme, "never"))
        s->prepend = PREPEND_NEVER;
    else
        return err_set(err, ERR_UNSUPPORTED, "%s: prepend_scheme \"%.64s\" is unknown", where,
                       scheme.bytes);
    if (!prefix_space && s->prepend != PREPEND_NEVER)
        return err_set(err, ERR_INVALID, "%s: add_prefix_space contradicts prepend_scheme", where);
    s->behavior = BEHAVIOR_MERGED_WITH_NEXT;
    if (split)
        s->pattern = pattern_literal(mark.bytes, mark.n);
    return 0;
}

static int read_step(struct pre_tokenizer *p, const json_t *json, int nesting, struct err *err)
{
    static const struct {
        const char *name;
        enum step_kind kind;
        int (*read)(struct step *s, const json_t *json, struct err *err);
    } types[] = {
        {"Split", STEP_SPLIT, read_split},
        {"Digits", STEP_DIGITS, read_digits},
        {"Metaspace", STEP_METASPACE, read_metaspace},
        {"ByteLevel", STEP_BYTE_LEVEL, read_byte_level},
    };
    struct json_text type;
    if (nesting > NESTING_MAX)
        return err_set(err, ERR_INVALID, "pre_tokenizer: sequences nest deeper than %d",
                       NESTING_MAX);
    if (json_read_text(json, "pre_tokenizer", "type", &type, err) != 0)
        return -1;
    if (json_text_is(type, "Sequence")) {
        const json_t *list;
        if (json_read_array(json, "pre_tokenizer Sequence", "pretokenizers", &list, err) != 0)
            return -1;
        for (size_t i = 0; i < json_array_size(list); i++)
            if (read_step(p, json_array_get(list, i), nesting + 1, err) != 0)
                return -1;
        return 0;
    }
    if (p->byte_level)
        return err_set(err, ERR_UNSUPPORTED,
                       "pre_tokenizer: %.64s after ByteLevel is not supported", type.bytes);
    if (p->n == STEPS_MAX)
        return err_set(err, ERR_UNSUPPORTED, "pre_tokenizer: more than %d steps", STEPS_MAX);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (json_text_is(type, types[i].name)) {
            struct step *s = &p->steps[p->n++];
            s->kind = types[i].kind;
            p->byte_level = s->kind == STEP_BYTE_LEVEL;
            return types[i].read(s, json, err);
        }
    }
    return err_set(err, ERR_UNSUPPORTED, "pre_tokenizer: type \"%.64s\" is not supported",
                   type.bytes);
}

struct pre_tokenizer *pre_tokenizer_read(const json_t *json, struct err *err)
{
    struct pre_tokenizer *p = xcalloc(1, sizeof *p);
    if (json != NULL && read_step(p, json, 0, err) != 0) {
        pre_tokenizer_free(p);
        return NULL;
    }
    return p;
}

void pre_tokenizer_free(struct pre_tokenizer *p)
{
    if (p == NULL)
        return;
    for (size_t i = 0; i < p->n; i++)
        pattern_free(p->steps[i].pattern);
    free(p);
}

bool pre_tokenizer_is_byte_level(const struct pre_tokenizer *p)
{
    return p->byte_level;
}

/* ---- words ----------------------------------------------------------------------------------- */

void words_release(struct words *w)
{
    buf_release(&w->text);
    free(w->words);
    *w = (struct words)WORDS_INIT;
}

static void put_word(struct words *w, size_t begin, size_t end)
{
    if (begin == end)
        return;
    if (w->n == w->cap) {
        w->cap = w->cap == 0 ? 64 : w->cap * 2;
        w->words = xrealloc_array(w->words, w->cap, sizeof *w->words);
    }
    w->words[w->n++] = (struct word){(uint32_t)begin, (uint32_t)end};
}

/* Receives the parts of one word, matches and what lies between them, from left to right, and puts
 * words together from them. An empty part is a part, too: it ends a word. */
struct cutter {
    struct words *out;
    enum behavior behavior;
    bool invert;
    bool open; /* [begin, end) is a word that the next part may yet extend */
    bool last_was_match;
    size_t begin, end;
};

static void cut_part(struct cutter *c, size_t begin, size_t end, bool match)
{
    match = match != c->invert;
    bool extends = false; /* the open word */
    switch (c->behavior) {
    case BEHAVIOR_REMOVED:
        if (!match)
            put_word(c->out, begin, end);
        return;
    case BEHAVIOR_ISOLATED:
        put_word(c->out, begin, end);
        return;
    case BEHAVIOR_CONTIGUOUS:
        extends = match == c->last_was_match;
        break;
    case BEHAVIOR_MERGED_WITH_PREVIOUS:
        extends = match && !c->last_was_match;
        break;
    case BEHAVIOR_MERGED_WITH_NEXT:
        extends = !match && c->last_was_match;
        break;
    }
    if (c->open && extends) {
        c->end = end;
    } else {
        if (c->open)
            put_word(c->out, c->begin, c->end);
        c->begin = begin;
        c->end = end;
        c->open = true;
    }
    c->last_was_match = match;
}

static void cut_end(struct cutter *c)
{
    if (c->open)
        put_word(c->out, c->begin, c->end);
    c->open = false;
}

static int cut_by_pattern(const struct step *s, struct words *out, struct word w, struct err *err)
{
    struct cutter c = {.out = out, .behavior = s->behavior, .invert = s->invert};
    struct pattern_search search;
    size_t begin, end, done = 0;
    int rc;
    pattern_search_init(&search, s->pattern, (const char *)out->text.data + w.begin,
                        w.end - w.begin);
    while ((rc = pattern_search_next(&search, &begin, &end, err)) == 1) {
        if (done < begin)
            cut_part(&c, w.begin + done, w.begin + begin, false);
        cut_part(&c, w.begin + begin, w.begin + end, true);
        done = end;
    }
    if (rc == 0 && done < w.end - w.begin)
        cut_part(&c, w.begin + done, w.end, false);
    cut_end(&c);
    pattern_search_release(&search);
    return rc;
}

static void cut_by_digits(const struct step *s, struct words *out, struct word w)
{
    struct cutter c = {.out = out, .behavior = s->behavior};
    const char *text = (const char *)out->text.data;
    size_t done = w.begin;
    for (size_t at = w.begin; at < w.end;) {
        size_t begin = at;
        if (unicode_is_numeric(utf8_next(text, &at))) {
            if (done < begin)
                cut_part(&c, done, begin, false);
            cut_part(&c, begin, at, true);
            done = at;
        }
    }
    if (done < w.end)
        cut_part(&c, done, w.end, false);
    cut_end(&c);
}

/* Writes the words anew with what the step changes in them. */
static int rewrite(const struct step *s, struct words *w, bool at_start, struct err *err)
{
    struct words out = WORDS_INIT;
    for (size_t i = 0; i < w->n; i++) {
        const char *text = (const char *)w->text.data + w->words[i].begin;
        size_t n = w->words[i].end - w->words[i].begin, begin = out.text.len;
        if (s->kind == STEP_BYTE_LEVEL) {
            if (text[0] != ' ')
                buf_append_byte(&out.text, ' ');
            buf_append(&out.text, text, n);
        } else {
            bool marked = text[0] == ' ' ||
                          (n >= s->n_mark && memcmp(text, s->mark, s->n_mark) == 0);
            if (!marked && (s->prepend == PREPEND_ALWAYS ||
                            (s->prepend == PREPEND_FIRST && at_start && w->words[i].begin == 0)))
                buf_append(&out.text, s->mark, s->n_mark);
            while (n > 0) {
                const char *space = memchr(text, ' ', n);
                size_t k = space == NULL ? n : (size_t)(space - text);
                buf_append(&out.text, text, k);
                if (space != NULL)
                    buf_append(&out.text, s->mark, s->n_mark);
                text += k + (space != NULL);
                n -= k + (space != NULL);
            }
        }
        put_word(&out, begin, out.text.len);
        if (out.text.len > WORDS_TEXT_MAX_BYTES) {
            words_release(&out);
            return err_set(err, ERR_TOO_LARGE, "the text cut into words is longer than %d bytes",
                           WORDS_TEXT_MAX_BYTES);
        }
    }
    words_release(w);
    *w = out;
    return 0;
}

int pre_tokenizer_apply(const struct pre_tokenizer *p, struct words *out, const char *text,
                        size_t n_bytes, bool at_start, struct err *err)
{
    BUG_IF(n_bytes > WORDS_TEXT_MAX_BYTES);
    buf_reset(&out->text);
    buf_append(&out->text, text, n_bytes);
    out->n = 0;
    put_word(out, 0, n_bytes);
    int rc = 0;
    for (size_t i = 0; i < p->n && rc == 0; i++) {
        const struct step *s = &p->steps[i];
        if (s->kind == STEP_METASPACE || (s->kind == STEP_BYTE_LEVEL && s->prefix_space))
            rc = rewrite(s, out, at_start, err);
        if (rc != 0 || (s->pattern == NULL && s->kind != STEP_DIGITS))
            continue;
        /* The cut words take the place of the old ones; the text stays where it is. */
        struct word *old = out->words;
        size_t n_old = out->n;
        out->words = NULL;
        out->n = out->cap = 0;
        for (size_t k = 0; k < n_old && rc == 0; k++) {
            if (s->kind == STEP_DIGITS)
                cut_by_digits(s, out, old[k]);
            else
                rc = cut_by_pattern(s, out, old[k], err);
        }
        free(old);
    }
    return rc;
}
