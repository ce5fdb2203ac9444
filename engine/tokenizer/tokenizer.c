/* tokenizer: see tokenizer.h.
 *
 * A text goes through five rooms, each a file of its own that reads its member of tokenizer.json:
 *
 *   added_tokens    cut out "<|im_end|>" and the like; the rest goes on piece by piece
 *   normalizer      spell it as the model knows it, then cut out the added tokens that say they are
 *                   to be found in normalised text
 *   pre_tokenizer   cut into words
 *   bpe             words to ids
 *   post_processor  put a begin-of-text token in front
 *
 * and ids go back through one: decoder.c, token by token, for streams and for whole lists alike.
 *
 * The members "truncation" and "padding" are settings of someone's training run and are not looked
 * at. Everything else that a file holds is either obeyed or refused by name.
 *
 * Source for all behaviour: github.com/huggingface/tokenizers 0.23, and the golden files that its
 * JavaScript package wrote (tests/fixtures/tokenizers). One deliberate difference: 0.23 doesn't
 * skip a special token with normalized = true when the normalizer changes its spelling (it compares
 * spellings); we go by the id, as it did before. */
#include "engine/tokenizer/tokenizer.h"

#include "engine/tokenizer/added_tokens.h"
#include "engine/tokenizer/bpe.h"
#include "engine/tokenizer/decoder.h"
#include "engine/tokenizer/json_read.h"
#include "engine/tokenizer/normalizer.h"
#include "engine/tokenizer/post_processor.h"
#include "engine/tokenizer/pre_tokenizer.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct token {
    const char *text;    /* as the file spells it; NULL: no token has this id */
    const char *decoded; /* what the decoder is fed: differs for normalised added tokens */
    uint32_t n_text, n_decoded;
    bool special;
};

struct tokenizer {
    struct bpe *bpe;
    struct normalizer *normalizer;
    struct pre_tokenizer *pre_tokenizer;
    struct decoder *decoder;
    struct added_tokens added;
    struct post_processor post_processor;
    struct token *tokens; /* [n_ids] */
    int32_t n_ids;
};

struct detokenizer {
    const struct tokenizer *t;
    unsigned flags;
    struct decoder_stream stream;
};

/* ---- open ------------------------------------------------------------------------------------ */

static void index_tokens(struct tokenizer *t)
{
    const struct strmap *vocabulary = bpe_vocabulary(t->bpe);
    int32_t last = 0;
    for (size_t k = 0; k < vocabulary->n; k++)
        last = vocabulary->entries[k].value > last ? vocabulary->entries[k].value : last;
    for (size_t i = 0; i < t->added.n; i++)
        last = t->added.tokens[i].id > last ? t->added.tokens[i].id : last;
    t->n_ids = last + 1;
    t->tokens = xcalloc((size_t)t->n_ids, sizeof *t->tokens);
    for (size_t k = 0; k < vocabulary->n; k++) {
        const struct strmap_entry *e = &vocabulary->entries[k];
        const char *text = (const char *)vocabulary->keys.data + e->offset;
        t->tokens[e->value] = (struct token){text, text, e->n_bytes, e->n_bytes, false};
    }
    for (size_t i = 0; i < t->added.n; i++) {
        const struct added_token *a = &t->added.tokens[i];
        bool other = a->normalized_content != NULL;
        t->tokens[a->id] = (struct token){
            a->content, other ? a->normalized_content : a->content, (uint32_t)a->n_content,
            (uint32_t)(other ? a->n_normalized_content : a->n_content), a->special};
    }
}

static int check_post_processor(const struct tokenizer *t, struct err *err)
{
    const struct token_ids *lists[] = {&t->post_processor.before, &t->post_processor.after};
    for (size_t k = 0; k < 2; k++)
        for (size_t i = 0; i < lists[k]->n; i++)
            if (tokenizer_token(t, lists[k]->ids[i], NULL) == NULL)
                return err_set(err, ERR_INVALID,
                               "post_processor adds the id %d, which no token has",
                               lists[k]->ids[i]);
    return 0;
}

static int read_parts(struct tokenizer *t, const json_t *root, struct err *err)
{
    const json_t *model, *added = json_member(root, "added_tokens");
    struct json_text version;
    if (!json_is_object(root))
        return err_set(err, ERR_INVALID, "a tokenizer file should be an object and is %s",
                       json_type_name(root));
    if (json_read_text_optional(root, "tokenizer", "version", &version, err) != 0)
        return -1;
    if (version.bytes != NULL && !json_text_is(version, "1.0"))
        return err_set(err, ERR_UNSUPPORTED, "version \"%.64s\" is not supported, only 1.0 is",
                       version.bytes);
    if (added != NULL && !json_is_array(added))
        return err_set(err, ERR_INVALID, "added_tokens should be an array and is %s",
                       json_type_name(added));
    if (json_read_object(root, "tokenizer", "model", &model, err) != 0)
        return -1;
    /* The pre-tokenizer first: it knows whether the vocabulary spells bytes. */
    t->pre_tokenizer = pre_tokenizer_read(json_member(root, "pre_tokenizer"), err);
    if (t->pre_tokenizer == NULL)
        return -1;
    t->bpe = bpe_read(model, pre_tokenizer_is_byte_level(t->pre_tokenizer), err);
    if (t->bpe == NULL)
        return -1;
    t->normalizer = normalizer_read(json_member(root, "normalizer"), err);
    if (t->normalizer == NULL)
        return -1;
    t->decoder = decoder_read(json_member(root, "decoder"), err);
    if (t->decoder == NULL)
        return -1;
    if (added_tokens_read(&t->added, added, bpe_vocabulary(t->bpe), t->normalizer, err) != 0)
        return -1;
    index_tokens(t);
    if (post_processor_read(&t->post_processor, json_member(root, "post_processor"), err) != 0)
        return -1;
    return check_post_processor(t, err);
}

int tokenizer_open_memory(struct tokenizer **out, const void *json, size_t n_bytes, struct err *err)
{
    *out = NULL;
    if (n_bytes > TOKENIZER_JSON_MAX_BYTES)
        return err_set(err, ERR_TOO_LARGE, "tokenizer file of %zu bytes, the limit is %d", n_bytes,
                       TOKENIZER_JSON_MAX_BYTES);
    json_error_t problem;
    json_t *root = json_loadb(n_bytes == 0 ? "" : json, n_bytes,
                              JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &problem);
    if (root == NULL)
        return err_set(err, ERR_INVALID, "tokenizer file, line %d: %s", problem.line, problem.text);
    struct tokenizer *t = xcalloc(1, sizeof *t);
    int rc = read_parts(t, root, err);
    json_decref(root);
    if (rc != 0) {
        tokenizer_close(t);
        return -1;
    }
    *out = t;
    return 0;
}

int tokenizer_open(struct tokenizer **out, const char *path, struct err *err)
{
    *out = NULL;
    struct stat st;
    bool directory = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    char *file = directory ? xasprintf("%s/tokenizer.json", path) : xstrdup(path);
    struct buf json = BUF_INIT;
    int rc = file_read(file, TOKENIZER_JSON_MAX_BYTES, &json, err);
    if (rc == 0) {
        rc = tokenizer_open_memory(out, json.data, json.len, err);
        if (rc != 0)
            err_wrap(err, "%s", file);
    }
    buf_release(&json);
    free(file);
    return rc;
}

void tokenizer_close(struct tokenizer *t)
{
    if (t == NULL)
        return;
    added_tokens_release(&t->added);
    post_processor_release(&t->post_processor);
    decoder_free(t->decoder);
    pre_tokenizer_free(t->pre_tokenizer);
    normalizer_free(t->normalizer);
    bpe_free(t->bpe);
    free(t->tokens);
    free(t);
}

/* ---- ids ------------------------------------------------------------------------------------- */

void token_ids_append(struct token_ids *list, int32_t id)
{
    if (list->n == list->cap) {
        list->cap = list->cap == 0 ? 64 : list->cap * 2;
        list->ids = xrealloc_array(list->ids, list->cap, sizeof *list->ids);
    }
    list->ids[list->n++] = id;
}

void token_ids_release(struct token_ids *list)
{
    free(list->ids);
    *list = (struct token_ids)TOKEN_IDS_INIT;
}

/* ---- encode ---------------------------------------------------------------------------------- */

struct encoding { /* one call of tokenizer_encode */
    const struct tokenizer *t;
    const struct tokenizer_encode_options *options;
    struct token_ids *out;
    size_t piece_begin; /* of the text: where the piece in `normalized` begins */
    struct normalized normalized;
    struct words words;
    struct bpe_scratch scratch;
};

/* Of the text as it came. */
static bool is_literal(void *context, size_t begin, size_t end)
{
    const struct encoding *e = context;
    return !e->options->parse_special || text_spans_touch(e->options->literal, begin, end);
}

/* Of a normalised piece. */
static bool is_literal_normalized(void *context, size_t begin, size_t end)
{
    const struct encoding *e = context;
    if (e->normalized.with_origin) {
        begin = e->normalized.origin[begin];
        end = e->normalized.origin[end];
    }
    return is_literal(context, e->piece_begin + begin, e->piece_begin + end);
}

static int encode_plain(struct encoding *e, const char *text, size_t n_bytes, bool at_start,
                        struct err *err)
{
    if (pre_tokenizer_apply(e->t->pre_tokenizer, &e->words, text, n_bytes, at_start, err) != 0)
        return -1;
    for (size_t i = 0; i < e->words.n; i++) {
        struct word w = e->words.words[i];
        bpe_encode(e->t->bpe, e->out, (const char *)e->words.text.data + w.begin, w.end - w.begin,
                   &e->scratch);
    }
    return 0;
}

static int encode_piece(struct encoding *e, const char *text, size_t begin, size_t end,
                        struct err *err)
{
    const struct tokenizer *t = e->t;
    const char *piece = text + begin;
    size_t n = end - begin;
    e->piece_begin = begin;
    if (!normalizer_is_empty(t->normalizer)) {
        e->normalized.with_origin = t->added.any_normalized_special && e->options->literal != NULL;
        if (normalizer_apply(t->normalizer, &e->normalized, piece, n, err) != 0)
            return -1;
        piece = buf_cstr(&e->normalized.text);
        n = e->normalized.text.len;
    }
    struct added_search search;
    struct added_match m;
    added_search_init(&search, &t->added, true, piece, n, is_literal_normalized, e);
    while (added_search_next(&search, &m)) {
        if (m.token != NULL)
            token_ids_append(e->out, m.token->id);
        else if (encode_plain(e, piece + m.begin, m.end - m.begin, begin == 0 && m.begin == 0,
                              err) != 0)
            return -1;
    }
    return 0;
}

static int encode_text(struct encoding *e, const char *text, size_t n_bytes, struct err *err)
{
    struct added_search search;
    struct added_match m;
    added_search_init(&search, &e->t->added, false, text, n_bytes, is_literal, e);
    while (added_search_next(&search, &m)) {
        if (m.token != NULL)
            token_ids_append(e->out, m.token->id);
        else if (encode_piece(e, text, m.begin, m.end, err) != 0)
            return -1;
    }
    return 0;
}

static void append_all(struct token_ids *out, const struct token_ids *list)
{
    for (size_t i = 0; i < list->n; i++)
        token_ids_append(out, list->ids[i]);
}

int tokenizer_encode(const struct tokenizer *t, struct token_ids *out, const char *text,
                     size_t n_bytes, const struct tokenizer_encode_options *options,
                     struct err *err)
{
    static const struct tokenizer_encode_options plain = {0};
    if (n_bytes > TOKENIZER_TEXT_MAX_BYTES)
        return err_set(err, ERR_TOO_LARGE, "text of %zu bytes, the limit is %d", n_bytes,
                       TOKENIZER_TEXT_MAX_BYTES);
    struct encoding e = {.t = t, .options = options == NULL ? &plain : options, .out = out};
    size_t n_before = out->n;
    struct buf valid = BUF_INIT;
    if (!utf8_is_valid(text, n_bytes)) {
        if (e.options->literal != NULL)
            return err_set(err, ERR_INVALID, "a text with marked spans must be UTF-8");
        utf8_append_lossy(&valid, text, n_bytes);
        text = (const char *)valid.data;
        n_bytes = valid.len;
    }
    if (e.options->add_special)
        append_all(out, &t->post_processor.before);
    int rc = n_bytes == 0 ? 0 : encode_text(&e, text, n_bytes, err);
    if (e.options->add_special)
        append_all(out, &t->post_processor.after);
    if (rc != 0)
        out->n = n_before;
    buf_release(&valid);
    normalized_release(&e.normalized);
    words_release(&e.words);
    bpe_scratch_release(&e.scratch);
    return rc;
}

/* ---- decode ---------------------------------------------------------------------------------- */

static void push(const struct tokenizer *t, struct decoder_stream *s, struct buf *out, int32_t id,
                 bool skip_special)
{
    if (id < 0 || id >= t->n_ids || t->tokens[id].text == NULL ||
        (skip_special && t->tokens[id].special))
        return;
    decoder_push(t->decoder, s, out, t->tokens[id].decoded, t->tokens[id].n_decoded);
}

void tokenizer_decode(const struct tokenizer *t, struct buf *out, const int32_t *ids, size_t n,
                      bool skip_special)
{
    struct decoder_stream stream = {0};
    for (size_t i = 0; i < n; i++)
        push(t, &stream, out, ids[i], skip_special);
    decoder_flush(t->decoder, &stream, out);
    decoder_stream_release(&stream);
}

struct detokenizer *detokenizer_create(const struct tokenizer *t, unsigned flags)
{
    struct detokenizer *d = xcalloc(1, sizeof *d);
    d->t = t;
    d->flags = flags;
    if (flags & DETOKENIZER_CONTINUES)
        decoder_stream_continue(t->decoder, &d->stream);
    return d;
}

void detokenizer_push(struct detokenizer *d, struct buf *out, int32_t id)
{
    push(d->t, &d->stream, out, id, (d->flags & DETOKENIZER_SKIP_SPECIAL) != 0);
}

void detokenizer_flush(struct detokenizer *d, struct buf *out)
{
    decoder_flush(d->t->decoder, &d->stream, out);
    if (d->flags & DETOKENIZER_CONTINUES)
        decoder_stream_continue(d->t->decoder, &d->stream);
}

size_t detokenizer_pending_bytes(const struct detokenizer *d)
{
    return decoder_pending_bytes(d->t->decoder, &d->stream);
}

bool tokenizer_replaces_bytes(const struct tokenizer *t)
{
    return decoder_replaces_bytes(t->decoder);
}

void detokenizer_free(struct detokenizer *d)
{
    if (d == NULL)
        return;
    decoder_stream_release(&d->stream);
    free(d);
}

/* ---- the vocabulary -------------------------------------------------------------------------- */

int32_t tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->n_ids;
}

const char *tokenizer_token(const struct tokenizer *t, int32_t id, size_t *n_bytes)
{
    if (id < 0 || id >= t->n_ids || t->tokens[id].text == NULL)
        return NULL;
    if (n_bytes != NULL)
        *n_bytes = t->tokens[id].n_text;
    return t->tokens[id].text;
}

int32_t tokenizer_id(const struct tokenizer *t, const char *token)
{
    size_t n = strlen(token);
    for (size_t i = 0; i < t->added.n; i++)
        if (t->added.tokens[i].n_content == n && memcmp(t->added.tokens[i].content, token, n) == 0)
            return t->added.tokens[i].id;
    return strmap_get(bpe_vocabulary(t->bpe), token, n);
}

void tokenizer_token_bytes(const struct tokenizer *t, struct buf *out, int32_t id)
{
    if (id >= 0 && id < t->n_ids && t->tokens[id].text != NULL)
        decoder_token_bytes(t->decoder, out, t->tokens[id].decoded, t->tokens[id].n_decoded);
}

bool tokenizer_is_special(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n_ids && t->tokens[id].special;
}
