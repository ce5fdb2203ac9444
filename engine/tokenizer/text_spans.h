/* text_spans: parts of a text, as byte ranges.
 *
 * The chat template marks with them what it copied from the messages, the tokenizer reads them to
 * know where "<|im_end|>" is a user's words and not the end of a turn. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_TEXT_SPANS_H
#define TRIBUTARY_ENGINE_TOKENIZER_TEXT_SPANS_H

#include <stdbool.h>
#include <stddef.h>

struct text_span {
    size_t begin, end; /* bytes [begin, end) */
};

struct text_spans { /* ascending, not empty, neither overlapping nor touching */
    struct text_span *spans;
    size_t n, cap;
};
#define TEXT_SPANS_INIT \
    {                   \
        NULL, 0, 0      \
    }

/* Adds [begin, end); begin must not lie before the end of the last span. A span that touches the
 * last one makes it longer; an empty one changes nothing. */
void text_spans_append(struct text_spans *s, size_t begin, size_t end);
void text_spans_release(struct text_spans *s); /* frees, and returns to TEXT_SPANS_INIT */

/* Does any span hold a byte of [begin, end)? O(log n). s may be NULL: no. */
bool text_spans_touch(const struct text_spans *s, size_t begin, size_t end);

#endif
