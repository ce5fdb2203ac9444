/* decoder: see decoder.h.
 *
 * A tokenizer file describes decoding as steps from a list of strings to a list of strings, the
 * last list being joined. Here each step is a stage that is fed one string at a time and passes on
 * what no later string can change; what it must hold back it keeps in the stream. Decoding a whole
 * list is feeding it all and flushing, so the streamed text is the decoded text by construction.
 *
 *   Replace       one string for another, inside each token
 *   ByteFallback  a run of tokens "<0xE2>" becomes the bytes' text if the whole run is UTF-8, else
 *                 one U+FFFD a byte; so a run is held until its end is seen
 *   Metaspace     U+2581 becomes a space; in the first token it goes away
 *   Strip         takes up to so many of a character off both ends of each token
 *   Fuse          makes one string of all: from here on, the stages see fragments of one token
 *   ByteLevel     tokens spelt in the byte alphabet become bytes, one string; what is no UTF-8
 *                 becomes U+FFFD (one per maximal subpart); up to 3 bytes are held
 *   Join          no decoder: a space between tokens
 *
 * Behind Fuse or ByteLevel ("fused") a stage sees fragments cut at character boundaries, never in
 * between. There Strip waits for the beginning once and holds back a trailing run, and Replace
 * holds back what may be the beginning of its string. Stages that would have to see the whole text
 * first (ByteFallback, ByteLevel, a regular expression) are refused there. */
#include "engine/tokenizer/decoder.h"

#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/pattern.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <stdlib.h>
#include <string.h>

enum { NESTING_MAX = 8, STRIP_MAX = 1 << 20 };

enum stage_kind {
    STAGE_REPLACE,
    STAGE_BYTE_FALLBACK,
    STAGE_METASPACE,
    STAGE_STRIP,
    STAGE_FUSE,
    STAGE_BYTE_LEVEL,
    STAGE_JOIN,
};

struct stage {
    enum stage_kind kind;
    bool fused;              /* a stage before made one string of all */
    struct pattern *pattern; /* Replace */
    char *text;              /* Replace: by what; Strip, Metaspace: the character. [n_text] */
    size_t n_text;
    size_t start, stop; /* Strip: characters */
    bool drop_first;    /* Metaspace: in the first token the mark goes away */
};

struct decoder {
    struct stage stages[DECODER_STAGES_MAX];
    size_t n;
};

/* ---- reading --------------------------------------------------------------------------------- */

static int read_character(struct stage *s, const json_t *json, const char *where, const char *key,
                          struct err *err)
{
    struct json_text c;
    if (json_read_text(json, where, key, &c, err) != 0)
        return -1;
    if (c.n == 0 || utf8_char_bytes((uint8_t)c.bytes[0]) != c.n)
        return err_set(err, ERR_INVALID, "%s: %s \"%.64s\" is not one character", where, key,
                       c.bytes);
    s->text = xstrndup(c.bytes, c.n);
    s->n_text = c.n;
    return 0;
}

static int read_replace(struct stage *s, const json_t *json, struct err *err)
{
    struct json_text content;
    size_t n;
    if (json_read_text(json, "decoder Replace", "content", &content, err) != 0)
        return -1;
    s->text = xmalloc(content.n + 1);
    memcpy(s->text, content.bytes, content.n + 1);
    s->n_text = content.n;
    s->pattern = pattern_read(json, "decoder Replace", err);
    if (s->pattern == NULL)
        return -1;
    if (s->fused && pattern_literal_text(s->pattern, &n) == NULL)
        return err_set(err, ERR_UNSUPPORTED,
                       "decoder Replace: a regular expression behind Fuse is not supported");
    return 0;
}

static int read_strip(struct stage *s, const json_t *json, struct err *err)
{
    json_int_t start, stop;
    if (read_character(s, json, "decoder Strip", "content", err) != 0 ||
        json_read_count(json, "decoder Strip", "start", STRIP_MAX, &start, err) != 0 ||
        json_read_count(json, "decoder Strip", "stop", STRIP_MAX, &stop, err) != 0)
        return -1;
    s->start = (size_t)start;
    s->stop = (size_t)stop;
    return 0;
}

static int read_metaspace(struct stage *s, const json_t *json, struct err *err)
{
    static const char where[] = "decoder Metaspace";
    struct json_text scheme;
    bool prefix_space = true;
    if (read_character(s, json, where, "replacement", err) != 0 ||
        json_read_text_optional(json, where, "prepend_scheme", &scheme, err) != 0 ||
        json_read_bool(json, where, "add_prefix_space", &prefix_space, err) != 0)
        return -1;
    s->drop_first = scheme.bytes == NULL ? prefix_space : !json_text_is(scheme, "never");
    return 0;
}

static int read_plain(struct stage *s, const json_t *json, struct err *err)
{
    (void)json;
    if (s->fused && s->kind != STAGE_FUSE)
        return err_set(err, ERR_UNSUPPORTED,
                       "decoder: %s behind Fuse or ByteLevel is not supported",
                       s->kind == STAGE_BYTE_LEVEL ? "ByteLevel" : "ByteFallback");
    return 0;
}

static int read_stage(struct decoder *d, const json_t *json, int nesting, struct err *err)
{
    static const struct {
        const char *name;
        enum stage_kind kind;
        int (*read)(struct stage *s, const json_t *json, struct err *err);
    } types[] = {
        {"Replace", STAGE_REPLACE, read_replace},
        {"ByteFallback", STAGE_BYTE_FALLBACK, read_plain},
        {"Metaspace", STAGE_METASPACE, read_metaspace},
        {"Strip", STAGE_STRIP, read_strip},
        {"Fuse", STAGE_FUSE, read_plain},
        {"ByteLevel", STAGE_BYTE_LEVEL, read_plain},
    };
    struct json_text type;
    if (nesting > NESTING_MAX)
        return err_set(err, ERR_INVALID, "decoder: sequences nest deeper than %d", NESTING_MAX);
    if (json_read_text(json, "decoder", "type", &type, err) != 0)
        return -1;
    if (json_text_is(type, "Sequence")) {
        const json_t *list;
        if (json_read_array(json, "decoder Sequence", "decoders", &list, err) != 0)
            return -1;
        for (size_t i = 0; i < json_array_size(list); i++)
            if (read_stage(d, json_array_get(list, i), nesting + 1, err) != 0)
                return -1;
        return 0;
    }
    if (d->n == DECODER_STAGES_MAX)
        return err_set(err, ERR_UNSUPPORTED, "decoder: more than %d steps", DECODER_STAGES_MAX);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        if (!json_text_is(type, types[i].name))
            continue;
        struct stage *s = &d->stages[d->n++];
        s->kind = types[i].kind;
        for (struct stage *before = d->stages; before < s; before++)
            s->fused = s->fused || before->kind == STAGE_FUSE || before->kind == STAGE_BYTE_LEVEL;
        return types[i].read(s, json, err);
    }
    return err_set(err, ERR_UNSUPPORTED, "decoder: type \"%.64s\" is not supported", type.bytes);
}

struct decoder *decoder_read(const json_t *json, struct err *err)
{
    struct decoder *d = xcalloc(1, sizeof *d);
    if (json == NULL) {
        d->stages[d->n++].kind = STAGE_JOIN;
    } else if (read_stage(d, json, 0, err) != 0) {
        decoder_free(d);
        return NULL;
    }
    return d;
}

void decoder_free(struct decoder *d)
{
    if (d == NULL)
        return;
    for (size_t i = 0; i < d->n; i++) {
        pattern_free(d->stages[i].pattern);
        free(d->stages[i].text);
    }
    free(d);
}

/* ---- what the stages do ---------------------------------------------------------------------- */

struct flow { /* one push or flush on its way through the stages */
    const struct decoder *d;
    struct decoder_stream *stream;
    struct buf *out;
};

static void feed(struct flow *f, size_t index, const char *text, size_t n);

/* "<0xE2>" and nothing else: the byte, or -1. */
static int fallback_byte(const char *token, size_t n)
{
    if (n != 6 || memcmp(token, "<0x", 3) != 0 || token[5] != '>')
        return -1;
    int high = hex_digit(token[3]), low = hex_digit(token[4]);
    return high < 0 || low < 0 ? -1 : high << 4 | low;
}

static void append_replaced(const struct stage *s, struct buf *out, const char *text, size_t n)
{
    struct pattern_search search;
    size_t begin, end, done = 0;
    pattern_search_init(&search, s->pattern, text, n);
    while (pattern_search_next(&search, &begin, &end, NULL) == 1) {
        buf_append(out, text + done, begin - done);
        buf_append(out, s->text, s->n_text);
        done = end;
    }
    buf_append(out, text + done, n - done);
    pattern_search_release(&search);
}

static void replace_token(struct flow *f, size_t index, const char *text, size_t n)
{
    struct buf made = BUF_INIT;
    append_replaced(&f->d->stages[index], &made, text, n);
    feed(f, index + 1, buf_cstr(&made), made.len);
    buf_release(&made);
}

/* Behind Fuse: what is held is a proper beginning of the string looked for. */
static void replace_fragment(struct flow *f, size_t index, const char *text, size_t n)
{
    const struct stage *s = &f->d->stages[index];
    struct buf *held = &f->stream->stages[index].held;
    size_t n_wanted;
    const char *wanted = pattern_literal_text(s->pattern, &n_wanted);
    buf_append(held, text, n);
    const char *all = buf_cstr(held);
    size_t keep = 0, done = 0;
    for (const char *match;
         (match = memmem(all + done, held->len - done, wanted, n_wanted)) != NULL;
         done = (size_t)(match - all) + n_wanted)
        ;
    for (size_t k = 1; k < n_wanted && k <= held->len - done; k++)
        if (memcmp(all + held->len - k, wanted, k) == 0)
            keep = k;
    struct buf made = BUF_INIT, rest = BUF_INIT;
    append_replaced(s, &made, all, held->len - keep);
    buf_append(&rest, all + held->len - keep, keep);
    buf_release(held);
    *held = rest;
    feed(f, index + 1, buf_cstr(&made), made.len);
    buf_release(&made);
}

static void end_byte_run(struct flow *f, size_t index)
{
    struct buf *held = &f->stream->stages[index].held;
    if (held->len == 0)
        return;
    struct buf run = *held;
    *held = (struct buf)BUF_INIT;
    if (utf8_is_valid(run.data, run.len)) {
        feed(f, index + 1, (const char *)run.data, run.len);
    } else {
        for (size_t i = 0; i < run.len; i++)
            feed(f, index + 1, "\xEF\xBF\xBD", 3);
    }
    buf_release(&run);
}

static void byte_fallback(struct flow *f, size_t index, const char *text, size_t n)
{
    int byte = fallback_byte(text, n);
    if (byte >= 0) {
        buf_append_byte(&f->stream->stages[index].held, (uint8_t)byte);
        return;
    }
    end_byte_run(f, index);
    feed(f, index + 1, text, n);
}

static void metaspace(struct flow *f, size_t index, const char *text, size_t n)
{
    const struct stage *s = &f->d->stages[index];
    struct decoder_stage *state = &f->stream->stages[index];
    bool drop = s->drop_first && !state->begun;
    struct buf made = BUF_INIT;
    for (size_t at = 0; at < n;) {
        size_t k = utf8_char_bytes((uint8_t)text[at]);
        if (k != s->n_text || memcmp(text + at, s->text, k) != 0)
            buf_append(&made, text + at, k);
        else if (!drop)
            buf_append_byte(&made, ' ');
        at += k;
    }
    /* Behind Fuse the first token is the whole text. */
    state->begun = state->begun || !s->fused;
    feed(f, index + 1, buf_cstr(&made), made.len);
    buf_release(&made);
}

/* The bytes of up to max characters s->text that text [n] begins with. */
static size_t leading(const struct stage *s, const char *text, size_t n, size_t max)
{
    size_t at = 0;
    for (size_t i = 0; i < max && n - at >= s->n_text; i++) {
        if (memcmp(text + at, s->text, s->n_text) != 0)
            break;
        at += s->n_text;
    }
    return at;
}

static size_t trailing(const struct stage *s, const char *text, size_t n, size_t max)
{
    size_t k = 0;
    for (size_t i = 0; i < max && n - k >= s->n_text; i++) {
        if (memcmp(text + n - k - s->n_text, s->text, s->n_text) != 0)
            break;
        k += s->n_text;
    }
    return k;
}

static void strip_token(struct flow *f, size_t index, const char *text, size_t n)
{
    const struct stage *s = &f->d->stages[index];
    size_t first = leading(s, text, n, s->start);
    size_t last = trailing(s, text + first, n - first, s->stop);
    feed(f, index + 1, text + first, n - first - last);
}

static void strip_fragment(struct flow *f, size_t index, const char *text, size_t n)
{
    const struct stage *s = &f->d->stages[index];
    struct decoder_stage *state = &f->stream->stages[index];
    if (!state->begun) {
        size_t k = leading(s, text, n, s->start - state->n_stripped);
        state->n_stripped += k / s->n_text;
        text += k;
        n -= k;
        state->begun = n > 0 || state->n_stripped == s->start;
    }
    if (n == 0)
        return;
    struct buf all = state->held;
    state->held = (struct buf)BUF_INIT;
    buf_append(&all, text, n);
    size_t last = trailing(s, (const char *)all.data, all.len, s->stop);
    buf_append(&state->held, all.data + all.len - last, last);
    feed(f, index + 1, (const char *)all.data, all.len - last);
    buf_release(&all);
}

/* The token's bytes when all its characters are of the byte alphabet, else the token as it is. */
static void append_raw(struct buf *out, const char *text, size_t n)
{
    size_t before = out->len;
    for (size_t at = 0; at < n;) {
        int byte = byte_alphabet_byte(utf8_next(text, &at));
        if (byte < 0) {
            out->len = before;
            buf_append(out, text, n);
            return;
        }
        buf_append_byte(out, (uint8_t)byte);
    }
}

static void byte_level(struct flow *f, size_t index, const char *text, size_t n)
{
    struct buf *held = &f->stream->stages[index].held;
    if (n == 0)
        return;
    append_raw(held, text, n);
    /* All but an unfinished character at the end is final. */
    size_t good = held->len;
    for (size_t k = 1; k <= 3 && k <= held->len; k++) {
        const uint8_t *tail = held->data + held->len - k;
        if ((tail[0] & 0xC0) == 0x80)
            continue;
        if (utf8_scan(tail, k) == 0)
            good = held->len - k;
        break;
    }
    struct buf made = BUF_INIT;
    utf8_append_lossy(&made, held->data, good);
    memmove(held->data, held->data + good, held->len - good);
    held->len -= good;
    feed(f, index + 1, buf_cstr(&made), made.len);
    buf_release(&made);
}

static void join(struct flow *f, size_t index, const char *text, size_t n)
{
    struct decoder_stage *state = &f->stream->stages[index];
    if (state->begun)
        feed(f, index + 1, " ", 1);
    state->begun = true;
    feed(f, index + 1, text, n);
}

static void feed(struct flow *f, size_t index, const char *text, size_t n)
{
    if (index == f->d->n) {
        buf_append(f->out, text, n);
        return;
    }
    const struct stage *s = &f->d->stages[index];
    switch (s->kind) {
    case STAGE_REPLACE:
        (s->fused ? replace_fragment : replace_token)(f, index, text, n);
        break;
    case STAGE_BYTE_FALLBACK:
        byte_fallback(f, index, text, n);
        break;
    case STAGE_METASPACE:
        metaspace(f, index, text, n);
        break;
    case STAGE_STRIP:
        (s->fused ? strip_fragment : strip_token)(f, index, text, n);
        break;
    case STAGE_FUSE:
        feed(f, index + 1, text, n);
        break;
    case STAGE_BYTE_LEVEL:
        byte_level(f, index, text, n);
        break;
    case STAGE_JOIN:
        join(f, index, text, n);
        break;
    }
}

/* What the stage still holds goes on; the stages behind it have not been flushed yet. */
static void flush_stage(struct flow *f, size_t index)
{
    const struct stage *s = &f->d->stages[index];
    struct decoder_stage *state = &f->stream->stages[index];
    struct buf held = BUF_INIT;
    switch (s->kind) {
    case STAGE_BYTE_FALLBACK:
        end_byte_run(f, index);
        break;
    case STAGE_BYTE_LEVEL:
        utf8_append_lossy(&held, state->held.data, state->held.len);
        break;
    case STAGE_REPLACE:
        buf_append(&held, state->held.data, state->held.len);
        break;
    case STAGE_STRIP: /* what it holds is what is to be taken off */
    case STAGE_METASPACE:
    case STAGE_FUSE:
    case STAGE_JOIN:
        break;
    }
    if (held.len > 0)
        feed(f, index + 1, (const char *)held.data, held.len);
    buf_release(&held);
    buf_reset(&state->held);
    state->begun = false;
    state->n_stripped = 0;
}

/* ---- the door -------------------------------------------------------------------------------- */

void decoder_stream_release(struct decoder_stream *s)
{
    for (size_t i = 0; i < DECODER_STAGES_MAX; i++)
        buf_release(&s->stages[i].held);
}

void decoder_stream_continue(const struct decoder *d, struct decoder_stream *s)
{
    for (size_t i = 0; i < d->n; i++)
        s->stages[i].begun = true;
}

void decoder_push(const struct decoder *d, struct decoder_stream *s, struct buf *out,
                  const char *token, size_t n_bytes)
{
    struct flow f = {d, s, out};
    feed(&f, 0, token, n_bytes);
}

void decoder_flush(const struct decoder *d, struct decoder_stream *s, struct buf *out)
{
    struct flow f = {d, s, out};
    for (size_t i = 0; i < d->n; i++)
        flush_stage(&f, i);
}

size_t decoder_pending_bytes(const struct decoder *d, const struct decoder_stream *s)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n; i++)
        n += s->stages[i].held.len;
    return n;
}

bool decoder_replaces_bytes(const struct decoder *d)
{
    bool does = false;
    for (size_t i = 0; i < d->n; i++)
        does |= d->stages[i].kind == STAGE_BYTE_FALLBACK;
    return does;
}

void decoder_token_bytes(const struct decoder *d, struct buf *out, const char *token,
                         size_t n_bytes)
{
    struct buf text = BUF_INIT;
    buf_append(&text, token, n_bytes);
    for (size_t i = 0; i < d->n; i++) {
        const struct stage *s = &d->stages[i];
        const char *from = buf_cstr(&text);
        struct buf made = BUF_INIT;
        int byte;
        switch (s->kind) {
        case STAGE_REPLACE:
            append_replaced(s, &made, from, text.len);
            break;
        case STAGE_METASPACE:
            for (size_t at = 0; at < text.len;) {
                size_t k = utf8_char_bytes((uint8_t)from[at]);
                bool mark = k == s->n_text && memcmp(from + at, s->text, k) == 0;
                buf_append(&made, mark ? " " : from + at, mark ? 1 : k);
                at += k;
            }
            break;
        case STAGE_BYTE_FALLBACK:
            byte = fallback_byte(from, text.len);
            if (byte >= 0) { /* may be no UTF-8: the stages behind have nothing to do with it */
                buf_release(&text);
                buf_append_byte(out, (uint8_t)byte);
                return;
            }
            continue;
        case STAGE_BYTE_LEVEL:
            append_raw(out, from, text.len); /* likewise */
            buf_release(&text);
            return;
        case STAGE_STRIP:
        case STAGE_FUSE:
        case STAGE_JOIN:
            continue;
        }
        buf_release(&text);
        text = made;
    }
    buf_append(out, text.data, text.len);
    buf_release(&text);
}
