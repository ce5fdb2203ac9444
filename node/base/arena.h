/* arena: a request's small memory, freed at once.
 *
 * Allocations are 16-byte aligned and zeroed, live until arena_release, and are never freed one by
 * one. Not thread-safe: one owner at a time. */
#ifndef TRIBUTARY_BASE_ARENA_H
#define TRIBUTARY_BASE_ARENA_H

#include <stddef.h>

struct arena_chunk;

struct arena {
    struct arena_chunk *head;
    size_t used_bytes; /* all that was handed out */
};
#define ARENA_INIT \
    {              \
        NULL, 0    \
    }

void *arena_alloc(struct arena *a, size_t n_bytes);
void *arena_array(struct arena *a, size_t n, size_t size_bytes); /* checks n * size */
char *arena_strndup(struct arena *a, const char *s, size_t n);
char *arena_strdup(struct arena *a, const char *s);
void arena_release(struct arena *a); /* frees all; the arena is empty and usable again */

#endif
