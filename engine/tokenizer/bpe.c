/* bpe: see bpe.h.
 *
 * Byte pair encoding (Sennrich et al., arXiv:1508.07909): a word begins as its characters' tokens
 * ("symbols"); then, again and again, of all neighbours that the file lists as a merge, the pair
 * with the lowest rank, and of equals the leftmost, becomes one symbol; until no pair is listed.
 *
 * Data. Merges lie in an open-addressing table, (left, right) -> (rank, merged), 16 bytes a slot.
 * Symbols are a doubly linked list in an array. A short word is merged by scanning for the lowest
 * rank; a long one by a binary heap of candidates (rank, position), stale ones dropped when they
 * come up. Both give the same, the second in O(n log n): a megabyte without a space must not take
 * an hour.
 *
 * Three things make it fast and change no result:
 *
 *   whole words  Most words are one token. Whether the merges lead from a token's own text to that
 *                token is a fact about the vocabulary, found out once and remembered in a byte per
 *                token (relaxed atomics: two threads can only write the same answer).
 *   seams        Llama's and Gemma's texts come as one word. But symbols can only ever merge across
 *                a boundary between characters x|y if some merge has a left part ending in x and a
 *                right part beginning with y. Where none has ("o|▁"), the text falls into parts
 * that know nothing of each other. The pairs (x, y) that merges do join are kept in a set. first
 * ids    Characters of the Basic Multilingual Plane find their symbol in an array.
 *
 * A character that the vocabulary lacks becomes its bytes' tokens "<0x0A>" (byte_fallback, if all
 * of them are there), else the unknown token, runs of it being one with fuse_unk, else nothing. For
 * seams, a byte token ends in '>' and begins with '<', as it is spelt. No seam is taken while an
 * unknown token waits to be fused. */
#include "engine/tokenizer/bpe.h"

#include "engine/tokenizer/byte_alphabet.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/err.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SHORT_WORD = 40, /* symbols: scan up to here, heap beyond; measured, flat from 25 to 60 */
    WHOLE_WORD_MAX_BYTES = 255,
    HOLES_MAX = 1 << 20, /* ids below the highest that no token has */
    BMP = 0x10000,
};

struct merge_slot {
    uint64_t pair; /* left << 32 | right; PAIR_NONE: empty */
    uint32_t rank;
    int32_t merged;
};
static const uint64_t PAIR_NONE = UINT64_MAX;

enum whole_state { WHOLE_UNKNOWN, WHOLE_YES, WHOLE_NO };

/* What a character that isn't in the vocabulary becomes. */
enum missing { MISSING_BYTES, MISSING_UNKNOWN, MISSING_NOTHING };

struct bpe {
    struct strmap vocabulary;   /* as the file spells it */
    struct strmap raw;          /* byte_level: as the bytes they stand for */
    const struct strmap *words; /* of the two, the one that words are looked up in */
    struct merge_slot *merges;  /* [n_merge_slots], a power of two */
    size_t n_merge_slots;
    uint64_t *joins; /* [n_join_slots], a power of two: last char << 32 | first char; PAIR_NONE */
    size_t n_join_slots;
    _Atomic(uint8_t) *whole; /* [id]: enum whole_state */
    int32_t *char_id;        /* [BMP]: the character's token or -1; byte_level: [256] by byte */
    int32_t byte_token[256]; /* "<0x0A>", or -1 */
    int32_t unknown;         /* -1: none */
    bool byte_level, byte_fallback, fuse_unknown, ignore_merges;
    bool all_byte_tokens; /* byte_fallback, and none of the 256 is missing */
};

struct bpe_symbol {
    int32_t id;         /* -1: swallowed by its left neighbour */
    int32_t prev, next; /* -1: none */
};

struct bpe_candidate {
    uint32_t rank;
    int32_t at; /* the left symbol */
    int32_t merged;
};

/* ---- tables ---------------------------------------------------------------------------------- */

static size_t pair_hash(uint64_t pair, size_t n_slots)
{
    uint64_t h = pair * 0x9E3779B97F4A7C15u;
    h ^= h >> 29;
    h *= 0xBF58476D1CE4E5B9u;
    return (size_t)(h >> 32) & (n_slots - 1);
}

static size_t slots_for(size_t n)
{
    size_t slots = 16;
    while (slots < n * 2)
        slots *= 2;
    return slots;
}

static const struct merge_slot *merge_find(const struct bpe *b, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (size_t i = pair_hash(pair, b->n_merge_slots);; i = (i + 1) & (b->n_merge_slots - 1)) {
        const struct merge_slot *m = &b->merges[i];
        if (m->pair == pair)
            return m;
        if (m->pair == PAIR_NONE)
            return NULL;
    }
}

/* A pair listed twice counts with its later rank, as a map filled in order would have it. */
static void merge_put(struct bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t merged)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    size_t i = pair_hash(pair, b->n_merge_slots);
    while (b->merges[i].pair != PAIR_NONE && b->merges[i].pair != pair)
        i = (i + 1) & (b->n_merge_slots - 1);
    b->merges[i] = (struct merge_slot){pair, rank, merged};
}

static bool joins_has(const struct bpe *b, uint32_t last, uint32_t first)
{
    uint64_t pair = (uint64_t)last << 32 | first;
    for (size_t i = pair_hash(pair, b->n_join_slots);; i = (i + 1) & (b->n_join_slots - 1)) {
        if (b->joins[i] == pair)
            return true;
        if (b->joins[i] == PAIR_NONE)
            return false;
    }
}

static void joins_put(struct bpe *b, uint32_t last, uint32_t first)
{
    uint64_t pair = (uint64_t)last << 32 | first;
    size_t i = pair_hash(pair, b->n_join_slots);
    while (b->joins[i] != PAIR_NONE && b->joins[i] != pair)
        i = (i + 1) & (b->n_join_slots - 1);
    b->joins[i] = pair;
}

/* ---- merging --------------------------------------------------------------------------------- */

void bpe_scratch_release(struct bpe_scratch *s)
{
    free(s->symbols);
    free(s->heap);
    *s = (struct bpe_scratch)BPE_SCRATCH_INIT;
}

static void push_symbol(struct bpe_scratch *s, int32_t id)
{
    if (s->n_symbols == s->cap_symbols) {
        s->cap_symbols = s->cap_symbols == 0 ? 64 : s->cap_symbols * 2;
        s->symbols = xrealloc_array(s->symbols, s->cap_symbols, sizeof *s->symbols);
    }
    s->symbols[s->n_symbols++].id = id;
}

static bool candidate_less(const struct bpe_candidate *a, const struct bpe_candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(struct bpe_scratch *s, struct bpe_candidate c)
{
    if (s->n_heap == s->cap_heap) {
        s->cap_heap = s->cap_heap == 0 ? 128 : s->cap_heap * 2;
        s->heap = xrealloc_array(s->heap, s->cap_heap, sizeof *s->heap);
    }
    size_t i = s->n_heap++;
    while (i > 0 && candidate_less(&c, &s->heap[(i - 1) / 2])) {
        s->heap[i] = s->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    s->heap[i] = c;
}

static struct bpe_candidate heap_pop(struct bpe_scratch *s)
{
    struct bpe_candidate top = s->heap[0], c = s->heap[--s->n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= s->n_heap)
            break;
        if (child + 1 < s->n_heap && candidate_less(&s->heap[child + 1], &s->heap[child]))
            child++;
        if (!candidate_less(&s->heap[child], &c))
            break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = c;
    return top;
}

static void consider(const struct bpe *b, struct bpe_scratch *s, int32_t at)
{
    if (at < 0 || s->symbols[at].next < 0)
        return;
    const struct merge_slot *m = merge_find(b, s->symbols[at].id,
                                            s->symbols[s->symbols[at].next].id);
    if (m != NULL)
        heap_push(s, (struct bpe_candidate){m->rank, at, m->merged});
}

static void merge_by_heap(const struct bpe *b, struct bpe_scratch *s, struct token_ids *out)
{
    struct bpe_symbol *y = s->symbols;
    int32_t n = (int32_t)s->n_symbols;
    for (int32_t i = 0; i < n; i++) {
        y[i].prev = i - 1;
        y[i].next = i + 1 < n ? i + 1 : -1;
    }
    s->n_heap = 0;
    for (int32_t i = 0; i < n; i++)
        consider(b, s, i);
    while (s->n_heap > 0) {
        struct bpe_candidate c = heap_pop(s);
        int32_t right = y[c.at].next;
        if (y[c.at].id < 0 || right < 0)
            continue;
        /* The neighbours may have changed since the candidate was noted. */
        const struct merge_slot *m = merge_find(b, y[c.at].id, y[right].id);
        if (m == NULL || m->merged != c.merged)
            continue;
        y[c.at].id = c.merged;
        y[c.at].next = y[right].next;
        y[right].id = -1;
        if (y[c.at].next >= 0)
            y[y[c.at].next].prev = c.at;
        consider(b, s, y[c.at].prev);
        consider(b, s, c.at);
    }
    for (int32_t i = 0; i >= 0; i = y[i].next)
        token_ids_append(out, y[i].id);
}

static void merge_by_scan(const struct bpe *b, struct bpe_scratch *s, struct token_ids *out)
{
    int32_t id[SHORT_WORD];
    const struct merge_slot *pair[SHORT_WORD]; /* of id[i] and id[i + 1]; NULL: no merge */
    size_t n = s->n_symbols;
    for (size_t i = 0; i < n; i++)
        id[i] = s->symbols[i].id;
    for (size_t i = 0; i + 1 < n; i++)
        pair[i] = merge_find(b, id[i], id[i + 1]);
    for (;;) {
        size_t best = n;
        for (size_t i = 0; i + 1 < n; i++)
            if (pair[i] != NULL && (best == n || pair[i]->rank < pair[best]->rank))
                best = i;
        if (best == n)
            break;
        id[best] = pair[best]->merged;
        n--;
        memmove(id + best + 1, id + best + 2, (n - best - 1) * sizeof id[0]);
        memmove(pair + best, pair + best + 1, (n - best - 1) * sizeof pair[0]);
        if (best > 0)
            pair[best - 1] = merge_find(b, id[best - 1], id[best]);
        if (best + 1 < n)
            pair[best] = merge_find(b, id[best], id[best + 1]);
    }
    for (size_t i = 0; i < n; i++)
        token_ids_append(out, id[i]);
}

/* Is the word a token that its own merges lead to? Then that is its encoding. Else *token is the
 * token that the merges must be seen to lead to or not (learn_whole), or -1. */
static bool whole_word(const struct bpe *b, const char *word, size_t n_bytes, int32_t *token)
{
    *token = n_bytes <= WHOLE_WORD_MAX_BYTES ? strmap_get(b->words, word, n_bytes) : -1;
    return *token >= 0 &&
           atomic_load_explicit(&b->whole[*token], memory_order_relaxed) == WHOLE_YES;
}

/* Merges the symbols in s, appends the ids, empties s and remembers what it says about token. */
static void merge(const struct bpe *b, struct token_ids *out, int32_t token, struct bpe_scratch *s)
{
    size_t before = out->n;
    if (s->n_symbols > SHORT_WORD)
        merge_by_heap(b, s, out);
    else
        merge_by_scan(b, s, out);
    s->n_symbols = 0;
    if (token >= 0) {
        bool whole = out->n == before + 1 && out->ids[before] == token;
        atomic_store_explicit(&b->whole[token], whole ? WHOLE_YES : WHOLE_NO, memory_order_relaxed);
    }
}

/* ---- words to symbols ------------------------------------------------------------------------ */

static int32_t char_token(const struct bpe *b, uint32_t c, const char *bytes, size_t n)
{
    return c < BMP ? b->char_id[c] : strmap_get(&b->vocabulary, bytes, n);
}

/* Pushes the byte tokens of a character that is no token itself, if there are such. */
static enum missing push_missing(const struct bpe *b, struct bpe_scratch *s, const char *bytes,
                                 size_t n)
{
    bool all = b->byte_fallback;
    for (size_t i = 0; i < n && all; i++)
        all = b->byte_token[(uint8_t)bytes[i]] >= 0;
    if (all) {
        for (size_t i = 0; i < n; i++)
            push_symbol(s, b->byte_token[(uint8_t)bytes[i]]);
        return MISSING_BYTES;
    }
    return b->unknown >= 0 ? MISSING_UNKNOWN : MISSING_NOTHING;
}

/* One character's symbol, given its token (or -1) and its spelling in the vocabulary. *unknown
 * counts the unknown tokens that wait for the next character that is known: with fuse_unk a run of
 * them is one. Byte tokens in between don't end the run, as the reference has it. */
static enum missing push_char(const struct bpe *b, struct bpe_scratch *s, int32_t token,
                              const char *bytes, size_t n, bool *unknown)
{
    if (token >= 0) {
        if (*unknown)
            push_symbol(s, b->unknown);
        *unknown = false;
        push_symbol(s, token);
        return MISSING_BYTES;
    }
    enum missing what = push_missing(b, s, bytes, n);
    if (what == MISSING_UNKNOWN) {
        if (*unknown && !b->fuse_unknown)
            push_symbol(s, b->unknown);
        *unknown = true;
    }
    return what;
}

static void encode_bytes(const struct bpe *b, struct token_ids *out, const char *word, size_t n,
                         struct bpe_scratch *s)
{
    int32_t whole;
    if (whole_word(b, word, n, &whole)) {
        token_ids_append(out, whole);
        return;
    }
    bool unknown = false;
    for (size_t i = 0; i < n; i++) {
        int32_t token = b->char_id[(uint8_t)word[i]];
        char spelling[UTF8_MAX_BYTES];
        size_t n_spelling = token >= 0
                                ? 0
                                : utf8_encode(spelling, byte_alphabet_char((uint8_t)word[i]));
        push_char(b, s, token, spelling, n_spelling, &unknown);
    }
    if (unknown)
        push_symbol(s, b->unknown);
    merge(b, out, whole, s);
}

static void finish_part(const struct bpe *b, struct token_ids *out, const char *part, size_t n,
                        struct bpe_scratch *s)
{
    int32_t whole = -1;
    if (s->n_symbols == 1) {
        token_ids_append(out, s->symbols[0].id);
    } else if (whole_word(b, part, n, &whole)) {
        token_ids_append(out, whole);
    } else {
        merge(b, out, whole, s);
    }
    s->n_symbols = 0;
}

static void encode_text(const struct bpe *b, struct token_ids *out, const char *word, size_t n,
                        struct bpe_scratch *s)
{
    size_t begin = 0;  /* of the part since the last seam */
    uint32_t last = 0; /* the character that its symbols end with */
    bool unknown = false;
    for (size_t at = 0; at < n;) {
        size_t next = at;
        uint32_t c = utf8_next(word, &next);
        int32_t token = char_token(b, c, word + at, next - at);
        bool known = token >= 0;
        if (s->n_symbols > 0 && !unknown && (known || b->all_byte_tokens) &&
            !joins_has(b, last, known ? c : '<')) {
            finish_part(b, out, word + begin, at - begin, s);
            begin = at;
        }
        enum missing what = push_char(b, s, token, word + at, next - at, &unknown);
        last = known ? c : what == MISSING_BYTES ? '>' : last;
        at = next;
    }
    if (unknown)
        push_symbol(s, b->unknown);
    finish_part(b, out, word + begin, n - begin, s);
}

void bpe_encode(const struct bpe *b, struct token_ids *out, const char *word, size_t n_bytes,
                struct bpe_scratch *scratch)
{
    if (n_bytes == 0)
        return;
    if (b->ignore_merges) {
        int32_t token = strmap_get(b->words, word, n_bytes);
        if (token >= 0) {
            token_ids_append(out, token);
            return;
        }
    }
    scratch->n_symbols = 0;
    if (b->byte_level)
        encode_bytes(b, out, word, n_bytes, scratch);
    else
        encode_text(b, out, word, n_bytes, scratch);
}

/* ---- reading --------------------------------------------------------------------------------- */

const struct strmap *bpe_vocabulary(const struct bpe *b)
{
    return &b->vocabulary;
}

static int read_vocabulary(struct bpe *b, const json_t *model, struct err *err)
{
    const json_t *vocabulary;
    if (json_read_object(model, "model", "vocab", &vocabulary, err) != 0)
        return -1;
    size_t n = json_object_size(vocabulary);
    if (n == 0)
        return err_set(err, ERR_INVALID, "model: vocab is empty");
    /* Holes are allowed; a few bytes of JSON must not make us reserve a gigabyte. */
    json_int_t id_max = (json_int_t)n + HOLES_MAX;
    if (id_max > TOKENIZER_ID_MAX)
        id_max = TOKENIZER_ID_MAX;
    uint8_t *seen = xcalloc((size_t)id_max + 1, 1);
    int rc = -1;
    json_int_t id_highest = 0;
    for (void *it = json_object_iter((json_t *)vocabulary); it != NULL;
         it = json_object_iter_next((json_t *)vocabulary, it)) {
        const char *token = json_object_iter_key(it);
        const json_t *id_json = json_object_iter_value(it);
        json_int_t id = json_integer_value(id_json);
        if (!json_is_integer(id_json)) {
            err_set(err, ERR_INVALID,
                    "model: vocab: the id of \"%.64s\" should be an integer and is %s", token,
                    json_type_name(id_json));
            goto out;
        }
        if (id < 0 || id > id_max) {
            err_set(err, ERR_INVALID,
                    "model: vocab: the id of \"%.64s\", %" JSON_INTEGER_FORMAT
                    ", is outside 0 to %" JSON_INTEGER_FORMAT,
                    token, id, id_max);
            goto out;
        }
        if (seen[id]++ != 0) {
            err_set(err, ERR_INVALID,
                    "model: vocab: the id %" JSON_INTEGER_FORMAT
                    " of \"%.64s\" is another token's as well",
                    id, token);
            goto out;
        }
        if (id > id_highest)
            id_highest = id;
        BUG_IF(!strmap_put(&b->vocabulary, token, strlen(token), (int32_t)id));
    }
    b->whole = xcalloc((size_t)id_highest + 1, sizeof *b->whole);
    rc = 0;
out:
    free(seen);
    return rc;
}

/* The tokens spelt in the byte alphabet, as bytes. Others can't come out of a text. */
static void index_raw(struct bpe *b)
{
    struct buf raw = BUF_INIT;
    for (size_t k = 0; k < b->vocabulary.n; k++) {
        const struct strmap_entry *e = &b->vocabulary.entries[k];
        const char *token = (const char *)b->vocabulary.keys.data + e->offset;
        int byte = 0;
        buf_reset(&raw);
        for (size_t at = 0; at < e->n_bytes && byte >= 0;) {
            byte = byte_alphabet_byte(utf8_next(token, &at));
            if (byte >= 0)
                buf_append_byte(&raw, (uint8_t)byte);
        }
        if (byte >= 0)
            strmap_put(&b->raw, buf_cstr(&raw), raw.len, e->value);
    }
    buf_release(&raw);
}

static void index_characters(struct bpe *b)
{
    size_t n = b->byte_level ? 256 : BMP;
    b->char_id = xcalloc(n, sizeof *b->char_id);
    for (size_t i = 0; i < n; i++) {
        char bytes[UTF8_MAX_BYTES];
        uint32_t c = b->byte_level ? byte_alphabet_char((uint8_t)i) : (uint32_t)i;
        bool surrogate = c >= 0xD800 && c <= 0xDFFF;
        b->char_id[i] = surrogate ? -1 : strmap_get(&b->vocabulary, bytes, utf8_encode(bytes, c));
    }
    b->all_byte_tokens = b->byte_fallback;
    for (int byte = 0; byte < 256; byte++) {
        char name[8];
        int len = snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
        b->byte_token[byte] = strmap_get(&b->vocabulary, name, (size_t)len);
        b->all_byte_tokens = b->all_byte_tokens && b->byte_token[byte] >= 0;
    }
}

/* A merge is "left right", or ["left", "right"]. */
static int read_merge(const json_t *json, size_t index, struct json_text *left,
                      struct json_text *right, struct err *err)
{
    const json_t *pair[2] = {json_array_get(json, 0), json_array_get(json, 1)};
    if (json_is_array(json) && json_array_size(json) == 2 && json_is_string(pair[0]) &&
        json_is_string(pair[1])) {
        *left = (struct json_text){json_string_value(pair[0]), json_string_length(pair[0])};
        *right = (struct json_text){json_string_value(pair[1]), json_string_length(pair[1])};
        return 0;
    }
    if (json_is_string(json)) {
        struct json_text all = {json_string_value(json), json_string_length(json)};
        const char *space = memchr(all.bytes, ' ', all.n);
        if (space != NULL) {
            *left = (struct json_text){all.bytes, (size_t)(space - all.bytes)};
            *right = (struct json_text){space + 1, all.n - left->n - 1};
            if (memchr(right->bytes, ' ', right->n) == NULL)
                return 0;
        }
    }
    return err_set(err, ERR_INVALID,
                   "model: merges: number %zu is neither \"left right\" nor [\"left\", \"right\"]",
                   index);
}

static int read_merges(struct bpe *b, const json_t *model, struct err *err)
{
    const json_t *merges;
    if (json_read_array(model, "model", "merges", &merges, err) != 0)
        return -1;
    size_t n = json_array_size(merges);
    if (n > UINT32_MAX)
        return err_set(err, ERR_TOO_LARGE, "model: %zu merges", n);
    b->n_merge_slots = b->n_join_slots = slots_for(n);
    b->merges = xcalloc(b->n_merge_slots, sizeof *b->merges);
    b->joins = xcalloc(b->n_join_slots, sizeof *b->joins);
    for (size_t i = 0; i < b->n_merge_slots; i++)
        b->merges[i].pair = b->joins[i] = PAIR_NONE;
    struct buf both = BUF_INIT;
    uint32_t rank = 0;
    int rc = -1;
    for (size_t i = 0; i < n; i++) {
        const json_t *json = json_array_get(merges, i);
        /* The first line of a merges.txt that found its way here. */
        if (json_is_string(json) && strncmp(json_string_value(json), "#version", 8) == 0)
            continue;
        struct json_text left = {NULL, 0}, right = {NULL, 0};
        if (read_merge(json, i, &left, &right, err) != 0)
            goto out;
        buf_reset(&both);
        buf_append(&both, left.bytes, left.n);
        buf_append(&both, right.bytes, right.n);
        int32_t l = strmap_get(&b->vocabulary, left.bytes, left.n);
        int32_t r = strmap_get(&b->vocabulary, right.bytes, right.n);
        int32_t merged = strmap_get(&b->vocabulary, buf_cstr(&both), both.len);
        if (l < 0 || r < 0 || merged < 0 || left.n == 0 || right.n == 0) {
            err_set(
                err, ERR_INVALID,
                "model: merges: number %zu, \"%.64s\" and \"%.64s\": %s is not in the vocabulary",
                i, left.bytes, right.bytes,
                l < 0   ? "the left part"
                : r < 0 ? "the right part"
                        : "what they make");
            goto out;
        }
        merge_put(b, l, r, rank++, merged);
        size_t first = 0;
        size_t last = utf8_before(left.bytes, left.n);
        uint32_t last_char = utf8_next(left.bytes, &last);
        joins_put(b, last_char, utf8_next(right.bytes, &first));
    }
    rc = 0;
out:
    buf_release(&both);
    return rc;
}

static int read_options(struct bpe *b, const json_t *model, struct err *err)
{
    const json_t *dropout = json_member(model, "dropout");
    if (dropout != NULL && json_number_value(dropout) != 0)
        return err_set(err, ERR_UNSUPPORTED, "model: dropout is not supported: it is for training");
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < 2; i++) {
        struct json_text affix;
        if (json_read_text_optional(model, "model", affixes[i], &affix, err) != 0)
            return -1;
        if (affix.n != 0)
            return err_set(err, ERR_UNSUPPORTED, "model: %s \"%.64s\" is not supported", affixes[i],
                           affix.bytes);
    }
    if (json_read_bool(model, "model", "fuse_unk", &b->fuse_unknown, err) != 0 ||
        json_read_bool(model, "model", "byte_fallback", &b->byte_fallback, err) != 0 ||
        json_read_bool(model, "model", "ignore_merges", &b->ignore_merges, err) != 0)
        return -1;
    return 0;
}

struct bpe *bpe_read(const json_t *model, bool byte_level, struct err *err)
{
    struct json_text type, unknown;
    struct bpe *b = xcalloc(1, sizeof *b);
    b->byte_level = byte_level;
    b->unknown = -1;
    if (json_read_text_optional(model, "model", "type", &type, err) != 0)
        goto fail;
    if (type.bytes != NULL && !json_text_is(type, "BPE")) {
        err_set(err, ERR_UNSUPPORTED, "model: type \"%.64s\" is not supported, only BPE is",
                type.bytes);
        goto fail;
    }
    if (read_options(b, model, err) != 0 || read_vocabulary(b, model, err) != 0 ||
        read_merges(b, model, err) != 0 ||
        json_read_text_optional(model, "model", "unk_token", &unknown, err) != 0)
        goto fail;
    if (unknown.bytes != NULL) {
        b->unknown = strmap_get(&b->vocabulary, unknown.bytes, unknown.n);
        if (b->unknown < 0) {
            err_set(err, ERR_INVALID, "model: unk_token \"%.64s\" is not in the vocabulary",
                    unknown.bytes);
            goto fail;
        }
    }
    index_characters(b);
    if (byte_level)
        index_raw(b);
    b->words = byte_level ? &b->raw : &b->vocabulary;
    return b;
fail:
    bpe_free(b);
    return NULL;
}

void bpe_free(struct bpe *b)
{
    if (b == NULL)
        return;
    strmap_release(&b->vocabulary);
    strmap_release(&b->raw);
    free(b->merges);
    free(b->joins);
    free(b->whole);
    free(b->char_id);
    free(b);
}
