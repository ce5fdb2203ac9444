/* answer_offsets: where each token begins in its choice's text, for a completion's text_offset.
 *
 * The unit is a character of the text as the client receives it, U+FFFD included. A token whose
 * bytes complete or continue a character begins where that character does.
 *
 *     tokens   <E2> <82> <AC>  <C3> <A9>  b        held before: 0 1 2 3 4 5 bytes
 *     text     |  one euro  |  one e'  |  b        offsets      0 0 0 1 1 2
 *
 * What a token's bytes become is known when the detokenizer lets go of them, so tokens stay open
 * from first_open on until a piece of text comes, which holds all their bytes but the last token's
 * end. Of each is known how many bytes were held before it; the piece is walked along beside these.
 * There a character stands for its own bytes, and U+FFFD for one (byte tokens) or for all that were
 * held (a byte alphabet holds the beginning of one character at most), or, where none was, for what
 * has just come. */
#include "node/service_internal.h"

#include <string.h>

void offsets_begin(struct choice *c, struct score *s)
{
    s->text_offset = c->n_chars;
    s->n_held = (uint32_t)detokenizer_pending_bytes(c->detokenizer);
}

static struct score *score_at(struct choice *c, size_t i)
{
    return i < c->prompt_scores.n ? &c->prompt_scores.items[i]
                                  : &c->scores.items[i - c->prompt_scores.n];
}

static size_t char_bytes(const char *text, size_t n)
{
    size_t k = 1;
    while (k < n && ((unsigned char)text[k] & 0xC0) == 0x80)
        k++;
    return k;
}

struct walk { /* through a piece of text, beside the bytes that it is made of */
    size_t at, bytes;
    uint32_t chars;
};

/* Past the characters that end with the first n_bytes, or before. */
static void walk_to(struct walk *w, const struct choice *c, size_t n_bytes, size_t n_held,
                    const char *piece, size_t n)
{
    bool by_byte = tokenizer_replaces_bytes(answer_tokenizer(c->answer));
    for (size_t k; w->at < n; w->at += k, w->chars++) {
        k = char_bytes(piece + w->at, n - w->at);
        bool replaced = k == 3 && memcmp(piece + w->at, "\xEF\xBF\xBD", 3) == 0;
        size_t stands_for = !replaced ? k : by_byte || n_held == 0 ? 1 : n_held;
        if (w->bytes + stands_for > n_bytes)
            break;
        w->bytes += stands_for;
    }
}

void offsets_settle(struct choice *c, size_t n_known, size_t n_held, const char *piece, size_t n)
{
    if (n == 0)
        return;
    struct walk w = {0};
    for (; c->first_open < n_known; c->first_open++) {
        struct score *s = score_at(c, c->first_open);
        walk_to(&w, c, s->n_held, n_held, piece, n);
        s->text_offset += w.chars;
    }
    for (; w.at < n; w.at += char_bytes(piece + w.at, n - w.at))
        w.chars++;
    c->n_chars += w.chars;
}

size_t offsets_of_prompt(const struct choice *c, size_t n_held, const char *piece, size_t n)
{
    struct walk w = {0};
    walk_to(&w, c, c->n_prompt_held, n_held, piece, n);
    return w.at;
}
