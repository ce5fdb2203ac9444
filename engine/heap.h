/* heap: addresses of a region that this file never touches. Best fit over a list of spans.
 *
 * The lora pool cuts its device memory with it. Nothing is allocated after creation. */
#ifndef TRIBUTARY_ENGINE_HEAP_H
#define TRIBUTARY_ENGINE_HEAP_H

#include <stdbool.h>
#include <stddef.h>

struct heap;

/* n_bytes and all sizes are multiples of `align`; at most n_max pieces are handed out at once. */
struct heap *heap_create(size_t n_bytes, size_t align, size_t n_max);
void heap_free(struct heap *h); /* quiet on NULL */

/* The offset of n_bytes (rounded up to align), or SIZE_MAX when no span is large enough. Takes from
 * the smallest span that is; ties go to the lowest offset. */
size_t heap_take(struct heap *h, size_t n_bytes);

/* These very bytes, in whole units of align, if they are free. */
bool heap_take_at(struct heap *h, size_t offset, size_t n_bytes);

/* Gives back what heap_take returned for n_bytes; neighbours become one span again. */
void heap_give(struct heap *h, size_t offset, size_t n_bytes);

size_t heap_largest(const struct heap *h); /* bytes of the largest free span */
size_t heap_used(const struct heap *h);    /* bytes handed out */

#endif
