/* added_tokens: see added_tokens.h.
 *
 * Special tokens ("<|im_end|>") and others that were added after training never pass through the
 * model: the text is cut at them first. Two sets, two tries: tokens with normalized = false are
 * looked for in the text as it comes, the others, spelt as the normalizer would spell them, in what
 * the normalizer made of the pieces between.
 *
 * At each byte the trie is walked as far as it goes, and the longest token met wins; then the
 * search goes on behind it. So work is at most text length times longest token (64 bytes in
 * practice, ADDED_TOKEN_MAX_BYTES at most), and one table look-up a byte where no token begins.
 *
 * The trie is an array of nodes; a node's children lie side by side, sorted by byte. Building goes
 * through the sorted contents level by level: a node is a range of contents with a common prefix.
 *
 * A special token that must not be taken (is_literal) is passed over as a whole: what it covers is
 * plain text, and no other token is looked for inside it. */
#include "engine/tokenizer/added_tokens.h"

#include "engine/tokenizer/pattern.h"
#include "engine/tokenizer/tokenizer.h"
#include "engine/tokenizer/unicode.h"
#include "engine/tokenizer/utf8.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

/* ---- trie ------------------------------------------------------------------------------------ */

struct trie_node {
    uint32_t first_child; /* index into nodes; children are consecutive */
    uint16_t n_children;
    uint8_t byte;  /* that leads here */
    int32_t token; /* index into added_tokens.tokens of the token that ends here, or -1 */
};

struct trie {
    struct trie_node *nodes; /* [n]; 0 is the root */
    size_t n, cap;
    uint32_t root_child[256]; /* 0: none */
};

struct trie_key {
    const char *bytes;
    size_t n;
    int32_t token;
};

static int key_compare(const void *a, const void *b)
{
    const struct trie_key *x = a, *y = b;
    int c = memcmp(x->bytes, y->bytes, x->n < y->n ? x->n : y->n);
    if (c == 0)
        c = (x->n > y->n) - (x->n < y->n);
    return c;
}

static void trie_free(struct trie *t)
{
    if (t == NULL)
        return;
    free(t->nodes);
    free(t);
}

/* keys [n], sorted, no two the same, none empty. */
static struct trie *trie_build(const struct trie_key *keys, size_t n)
{
    struct range {
        size_t begin, end;
        size_t depth;
    } *ranges = NULL; /* [nodes]: the keys below each node */
    struct trie *t = xcalloc(1, sizeof *t);
    t->n = 1;
    t->cap = 64;
    t->nodes = xcalloc(t->cap, sizeof *t->nodes);
    ranges = xcalloc(t->cap, sizeof *ranges);
    t->nodes[0].token = -1;
    ranges[0] = (struct range){0, n, 0};
    for (size_t k = 0; k < t->n; k++) {
        struct range r = ranges[k];
        if (r.begin < r.end && keys[r.begin].n == r.depth)
            t->nodes[k].token = keys[r.begin++].token;
        t->nodes[k].first_child = (uint32_t)t->n;
        while (r.begin < r.end) {
            uint8_t byte = (uint8_t)keys[r.begin].bytes[r.depth];
            size_t end = r.begin + 1;
            while (end < r.end && (uint8_t)keys[end].bytes[r.depth] == byte)
                end++;
            if (t->n == t->cap) {
                t->cap *= 2;
                t->nodes = xrealloc_array(t->nodes, t->cap, sizeof *t->nodes);
                ranges = xrealloc_array(ranges, t->cap, sizeof *ranges);
            }
            if (k == 0)
                t->root_child[byte] = (uint32_t)t->n;
            t->nodes[k].n_children++;
            t->nodes[t->n] = (struct trie_node){.byte = byte, .token = -1};
            ranges[t->n] = (struct range){r.begin, end, r.depth + 1};
            t->n++;
            r.begin = end;
        }
    }
    free(ranges);
    return t;
}

static uint32_t trie_child(const struct trie *t, uint32_t node, uint8_t byte)
{
    uint32_t low = t->nodes[node].first_child, high = low + t->nodes[node].n_children;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (t->nodes[mid].byte == byte)
            return mid;
        if (t->nodes[mid].byte < byte)
            low = mid + 1;
        else
            high = mid;
    }
    return 0;
}

/* The longest token at text [at], its end in *end; or -1. */
static int32_t trie_longest(const struct trie *t, const char *text, size_t n, size_t at,
                            size_t *end)
{
    int32_t found = -1;
    uint32_t node = t->root_child[(uint8_t)text[at]];
    while (node != 0) {
        at++;
        if (t->nodes[node].token >= 0) {
            found = t->nodes[node].token;
            *end = at;
        }
        if (at == n)
            break;
        node = trie_child(t, node, (uint8_t)text[at]);
    }
    return found;
}

/* ---- reading --------------------------------------------------------------------------------- */

static int read_token(struct added_token *t, const json_t *json, const struct strmap *vocabulary,
                      struct err *err)
{
    static const char where[] = "added_tokens";
    if (!json_is_object(json))
        return err_set(err, ERR_INVALID, "added_tokens: an entry is %s, not an object",
                       json_type_name(json));
    json_int_t id;
    struct json_text content;
    if (json_read_text(json, where, "content", &content, err) != 0 ||
        json_read_count(json, where, "id", TOKENIZER_ID_MAX, &id, err) != 0 ||
        json_read_bool(json, where, "single_word", &t->single_word, err) != 0 ||
        json_read_bool(json, where, "lstrip", &t->lstrip, err) != 0 ||
        json_read_bool(json, where, "rstrip", &t->rstrip, err) != 0 ||
        json_read_bool(json, where, "special", &t->special, err) != 0)
        return -1;
    t->normalized = !t->special;
    if (json_read_bool(json, where, "normalized", &t->normalized, err) != 0)
        return -1;
    if (content.n == 0 || content.n > ADDED_TOKEN_MAX_BYTES)
        return err_set(err, ERR_INVALID,
                       "added_tokens: the content of id %" JSON_INTEGER_FORMAT
                       " is %zu bytes long, outside 1 to %d",
                       id, content.n, ADDED_TOKEN_MAX_BYTES);
    if (memchr(content.bytes, '\0', content.n) != NULL)
        return err_set(err, ERR_UNSUPPORTED,
                       "added_tokens: the content of id %" JSON_INTEGER_FORMAT " holds a NUL byte",
                       id);
    t->id = (int32_t)id;
    t->content = xstrndup(content.bytes, content.n);
    t->n_content = content.n;
    int32_t known = strmap_get(vocabulary, content.bytes, content.n);
    if (known >= 0 && known != t->id)
        return err_set(err, ERR_INVALID,
                       "added_tokens: \"%.64s\" has id %d, but the vocabulary gives it %d",
                       t->content, t->id, known);
    return 0;
}

static int compare_ids(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* No two tokens share an id, and one that the vocabulary doesn't know takes nobody's. */
static int check_ids(const struct added_tokens *a, const struct strmap *vocabulary, struct err *err)
{
    size_t n = vocabulary->n, n_new = 0;
    int32_t *ids = xcalloc(n + a->n, sizeof *ids);
    for (size_t k = 0; k < n; k++)
        ids[k] = vocabulary->entries[k].value;
    for (size_t i = 0; i < a->n; i++)
        if (strmap_get(vocabulary, a->tokens[i].content, a->tokens[i].n_content) < 0)
            ids[n + n_new++] = a->tokens[i].id;
    qsort(ids, n + n_new, sizeof *ids, compare_ids);
    int rc = 0;
    for (size_t k = 1; k < n + n_new && rc == 0; k++)
        if (ids[k] == ids[k - 1])
            rc = err_set(err, ERR_INVALID,
                         "added_tokens: the id %d belongs to two tokens that differ", ids[k]);
    free(ids);
    return rc;
}

static int build_trie(struct added_tokens *a, bool normalized, struct trie **out, struct err *err)
{
    struct trie_key *keys = xcalloc(a->n + 1, sizeof *keys);
    size_t n = 0;
    for (size_t i = 0; i < a->n; i++) {
        const struct added_token *t = &a->tokens[i];
        if (t->normalized != normalized)
            continue;
        bool other = t->normalized_content != NULL;
        keys[n++] = (struct trie_key){other ? t->normalized_content : t->content,
                                      other ? t->n_normalized_content : t->n_content, (int32_t)i};
    }
    qsort(keys, n, sizeof *keys, key_compare);
    int rc = 0;
    for (size_t i = 1; i < n && rc == 0; i++)
        if (key_compare(&keys[i - 1], &keys[i]) == 0)
            rc = err_set(err, ERR_INVALID, "added_tokens: \"%.64s\" is there twice",
                         a->tokens[keys[i].token].content);
    if (rc == 0 && n > 0)
        *out = trie_build(keys, n);
    free(keys);
    return rc;
}

int added_tokens_read(struct added_tokens *out, const json_t *list, const struct strmap *vocabulary,
                      const struct normalizer *normalizer, struct err *err)
{
    *out = (struct added_tokens){0};
    size_t n = json_array_size(list);
    out->tokens = xcalloc(n + 1, sizeof *out->tokens);
    bool any_single_word = false;
    for (size_t i = 0; i < n; i++) {
        struct added_token *t = &out->tokens[i];
        out->n = i + 1;
        if (read_token(t, json_array_get(list, i), vocabulary, err) != 0)
            goto fail;
        any_single_word = any_single_word || t->single_word;
        if (t->normalized) {
            out->any_normalized_special = out->any_normalized_special || t->special;
            struct normalized text = NORMALIZED_INIT;
            if (normalizer_apply(normalizer, &text, t->content, t->n_content, err) != 0) {
                normalized_release(&text);
                goto fail;
            }
            if (text.text.len != t->n_content ||
                memcmp(text.text.data, t->content, t->n_content) != 0) {
                if (text.text.len == 0) {
                    err_set(err, ERR_INVALID,
                            "added_tokens: the normalizer leaves nothing of \"%.64s\"", t->content);
                    normalized_release(&text);
                    goto fail;
                }
                t->n_normalized_content = text.text.len;
                t->normalized_content = buf_detach(&text.text);
            }
            normalized_release(&text);
        }
    }
    if (check_ids(out, vocabulary, err) != 0 || build_trie(out, false, &out->as_is, err) != 0 ||
        build_trie(out, true, &out->normalized, err) != 0)
        goto fail;
    if (any_single_word) {
        /* \w of Rust's regex crate: UTS #18, annex C. */
        static const char word[] = "[\\w\\u200C\\u200D]";
        out->word_char = pattern_regex(word, sizeof word - 1, err);
        if (out->word_char == NULL)
            goto fail;
    }
    return 0;
fail:
    added_tokens_release(out);
    return -1;
}

void added_tokens_release(struct added_tokens *a)
{
    for (size_t i = 0; i < a->n; i++) {
        free(a->tokens[i].content);
        free(a->tokens[i].normalized_content);
    }
    free(a->tokens);
    trie_free(a->as_is);
    trie_free(a->normalized);
    pattern_free(a->word_char);
    *a = (struct added_tokens){0};
}

/* ---- searching ------------------------------------------------------------------------------- */

void added_search_init(struct added_search *s, const struct added_tokens *added, bool normalized,
                       const char *text, size_t n_bytes,
                       bool (*is_literal)(void *context, size_t begin, size_t end), void *context)
{
    *s = (struct added_search){.added = added,
                               .trie = normalized ? added->normalized : added->as_is,
                               .text = text,
                               .n_bytes = n_bytes,
                               .is_literal = is_literal,
                               .context = context};
}

static bool is_word_char(const struct added_search *s, size_t begin, size_t end)
{
    struct pattern_search search;
    size_t b, e;
    pattern_search_init(&search, s->added->word_char, s->text + begin, end - begin);
    bool found = pattern_search_next(&search, &b, &e, NULL) == 1;
    pattern_search_release(&search);
    return found;
}

/* Does a word go on beside [begin, end)? */
static bool inside_word(const struct added_search *s, size_t begin, size_t end)
{
    if (begin > 0 && is_word_char(s, utf8_before(s->text, begin), begin))
        return true;
    return end < s->n_bytes && is_word_char(s, end, end + utf8_char_bytes((uint8_t)s->text[end]));
}

/* White space beside the token becomes part of it. What an earlier token swallowed stays with that:
 * then the match may end before it begins. */
static void strip(const struct added_search *s, struct added_match *m)
{
    if (m->token->lstrip) {
        while (m->begin > s->plain_begin) {
            size_t before = utf8_before(s->text, m->begin), at = before;
            if (!unicode_is_space(utf8_next(s->text, &at)))
                break;
            m->begin = before;
        }
        if (m->begin < s->plain_begin)
            m->begin = s->plain_begin;
    }
    while (m->token->rstrip && m->end < s->n_bytes) {
        size_t next = m->end;
        if (!unicode_is_space(utf8_next(s->text, &next)))
            break;
        m->end = next;
    }
}

bool added_search_next(struct added_search *s, struct added_match *out)
{
    if (s->has_pending) {
        s->has_pending = false;
        *out = s->pending;
        return true;
    }
    while (s->trie != NULL && s->at < s->n_bytes) {
        size_t begin = s->at, end = 0;
        int32_t found = trie_longest(s->trie, s->text, s->n_bytes, begin, &end);
        if (found < 0) {
            s->at++;
            continue;
        }
        s->at = end; /* also when the token swallows more: that may begin another one */
        struct added_match m = {&s->added->tokens[found], begin, end};
        if (m.token->special && s->is_literal(s->context, begin, end))
            continue;
        if (m.token->single_word && inside_word(s, begin, end))
            continue;
        strip(s, &m);
        size_t plain = s->plain_begin;
        s->plain_begin = m.end;
        if (m.begin >= m.end)
            continue;
        if (plain < m.begin) {
            s->pending = m;
            s->has_pending = true;
            *out = (struct added_match){NULL, plain, m.begin};
        } else {
            *out = m;
        }
        return true;
    }
    if (s->plain_begin == s->n_bytes)
        return false;
    *out = (struct added_match){NULL, s->plain_begin, s->n_bytes};
    s->plain_begin = s->n_bytes;
    s->at = s->n_bytes;
    return true;
}
