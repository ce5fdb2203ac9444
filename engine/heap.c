/* heap: see heap.h.
 *
 * Only free spans are kept, ascending by offset, never touching each other: n pieces handed out
 * leave at most n + 1 spans. All walks are linear; an adapter is one piece or a few, so there are
 * hundreds of spans where a general heap would have millions. */
#include "engine/heap.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct span {
    size_t offset, n_bytes;
};

struct heap {
    struct span *spans; /* [n_spans] free ones */
    size_t n_spans, n_max_spans;
    size_t align, n_bytes, used;
};

struct heap *heap_create(size_t n_bytes, size_t align, size_t n_max)
{
    BUG_IF(align == 0 || n_bytes % align != 0);
    struct heap *h = xcalloc(1, sizeof *h);
    h->n_max_spans = n_max + 1;
    h->spans = xcalloc(h->n_max_spans, sizeof *h->spans);
    h->align = align;
    h->n_bytes = n_bytes;
    if (n_bytes > 0)
        h->spans[h->n_spans++] = (struct span){0, n_bytes};
    return h;
}

void heap_free(struct heap *h)
{
    if (h == NULL)
        return;
    free(h->spans);
    free(h);
}

static size_t rounded(const struct heap *h, size_t n_bytes)
{
    size_t rest = n_bytes % h->align;
    return rest == 0 ? n_bytes : n_bytes + (h->align - rest);
}

static void insert_span(struct heap *h, size_t i, struct span span)
{
    BUG_IF(h->n_spans == h->n_max_spans);
    memmove(&h->spans[i + 1], &h->spans[i], (h->n_spans - i) * sizeof *h->spans);
    h->spans[i] = span;
    h->n_spans++;
}

static void remove_span(struct heap *h, size_t i)
{
    memmove(&h->spans[i], &h->spans[i + 1], (h->n_spans - i - 1) * sizeof *h->spans);
    h->n_spans--;
}

/* Takes [offset, offset + n_bytes) out of span i, in which it lies; what is left of that is one
 * span, two or none. */
static void cut(struct heap *h, size_t i, size_t offset, size_t n_bytes)
{
    struct span *s = &h->spans[i];
    size_t before = offset - s->offset, behind = s->n_bytes - before - n_bytes;
    if (before > 0 && behind > 0)
        insert_span(h, i + 1, (struct span){offset + n_bytes, behind});
    h->used += n_bytes;
    if (before > 0)
        s->n_bytes = before;
    else if (behind > 0)
        *s = (struct span){offset + n_bytes, behind};
    else
        remove_span(h, i);
}

size_t heap_take(struct heap *h, size_t n_bytes)
{
    BUG_IF(n_bytes == 0 || n_bytes > SIZE_MAX - h->align);
    n_bytes = rounded(h, n_bytes);
    struct span *best = NULL;
    for (size_t i = 0; i < h->n_spans; i++) {
        struct span *s = &h->spans[i];
        if (s->n_bytes >= n_bytes && (best == NULL || s->n_bytes < best->n_bytes))
            best = s;
    }
    if (best == NULL)
        return SIZE_MAX;
    size_t offset = best->offset;
    cut(h, (size_t)(best - h->spans), offset, n_bytes);
    return offset;
}

bool heap_take_at(struct heap *h, size_t offset, size_t n_bytes)
{
    BUG_IF(n_bytes == 0 || offset % h->align != 0 || n_bytes % h->align != 0);
    size_t i = 0; /* the first span that doesn't end before it */
    while (i < h->n_spans && h->spans[i].offset + h->spans[i].n_bytes <= offset)
        i++;
    const struct span *s = &h->spans[i];
    if (i == h->n_spans || s->offset > offset || s->n_bytes - (offset - s->offset) < n_bytes)
        return false;
    cut(h, i, offset, n_bytes);
    return true;
}

void heap_give(struct heap *h, size_t offset, size_t n_bytes)
{
    n_bytes = rounded(h, n_bytes);
    BUG_IF(n_bytes == 0 || offset > h->n_bytes || n_bytes > h->n_bytes - offset);
    size_t i = 0; /* the first span behind the piece */
    while (i < h->n_spans && h->spans[i].offset < offset)
        i++;
    struct span *before = i > 0 ? &h->spans[i - 1] : NULL;
    struct span *behind = i < h->n_spans ? &h->spans[i] : NULL;
    BUG_IF(before != NULL && before->offset + before->n_bytes > offset);
    BUG_IF(behind != NULL && offset + n_bytes > behind->offset);
    bool joins_before = before != NULL && before->offset + before->n_bytes == offset;
    bool joins_behind = behind != NULL && offset + n_bytes == behind->offset;
    if (joins_before && joins_behind) {
        before->n_bytes += n_bytes + behind->n_bytes;
        remove_span(h, i);
    } else if (joins_before) {
        before->n_bytes += n_bytes;
    } else if (joins_behind) {
        behind->offset = offset;
        behind->n_bytes += n_bytes;
    } else {
        insert_span(h, i, (struct span){offset, n_bytes});
    }
    h->used -= n_bytes;
}

size_t heap_largest(const struct heap *h)
{
    size_t largest = 0;
    for (size_t i = 0; i < h->n_spans; i++)
        if (h->spans[i].n_bytes > largest)
            largest = h->spans[i].n_bytes;
    return largest;
}

size_t heap_used(const struct heap *h)
{
    return h->used;
}
