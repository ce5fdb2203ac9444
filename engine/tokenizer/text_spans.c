/* text_spans: see text_spans.h. A sorted list; membership by bisection. */
#include "engine/tokenizer/text_spans.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>

void text_spans_append(struct text_spans *s, size_t begin, size_t end)
{
    BUG_IF(end < begin);
    if (begin == end)
        return;
    if (s->n > 0) {
        BUG_IF(begin < s->spans[s->n - 1].end);
        if (begin == s->spans[s->n - 1].end) {
            s->spans[s->n - 1].end = end;
            return;
        }
    }
    if (s->n == s->cap) {
        s->cap = s->cap == 0 ? 16 : s->cap * 2;
        s->spans = xrealloc_array(s->spans, s->cap, sizeof *s->spans);
    }
    s->spans[s->n++] = (struct text_span){begin, end};
}

void text_spans_release(struct text_spans *s)
{
    free(s->spans);
    *s = (struct text_spans)TEXT_SPANS_INIT;
}

bool text_spans_touch(const struct text_spans *s, size_t begin, size_t end)
{
    if (s == NULL)
        return false;
    /* The first span that ends behind begin is the only one that can begin before end first. */
    size_t low = 0, high = s->n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (s->spans[mid].end <= begin)
            low = mid + 1;
        else
            high = mid;
    }
    return low < s->n && s->spans[low].begin < end;
}
