/* arena: see arena.h. A list of chunks that double up to 1 MiB; a large request gets its own. */
#include "node/base/arena.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct arena_chunk {
    struct arena_chunk *next;
    size_t used, cap; /* bytes of data */
    _Alignas(16) uint8_t data[];
};

enum { CHUNK_FIRST_BYTES = 4096, CHUNK_LARGEST_BYTES = 1 << 20 };

void *arena_alloc(struct arena *a, size_t n_bytes)
{
    BUG_IF(n_bytes > SIZE_MAX / 2);
    size_t n = (n_bytes + 15) & ~(size_t)15;
    struct arena_chunk *c = a->head;
    if (c == NULL || c->cap - c->used < n) {
        size_t cap = c == NULL ? CHUNK_FIRST_BYTES : c->cap * 2;
        if (cap > CHUNK_LARGEST_BYTES)
            cap = CHUNK_LARGEST_BYTES;
        if (cap < n)
            cap = n;
        c = xmalloc(sizeof *c + cap);
        c->next = a->head;
        c->used = 0;
        c->cap = cap;
        a->head = c;
    }
    void *p = c->data + c->used;
    c->used += n;
    a->used_bytes += n;
    memset(p, 0, n);
    return p;
}

void *arena_array(struct arena *a, size_t n, size_t size_bytes)
{
    size_t total;
    BUG_IF(__builtin_mul_overflow(n, size_bytes, &total));
    return arena_alloc(a, total);
}

char *arena_strndup(struct arena *a, const char *s, size_t n)
{
    size_t len = strnlen(s, n);
    char *copy = arena_alloc(a, len + 1);
    memcpy(copy, s, len);
    return copy;
}

char *arena_strdup(struct arena *a, const char *s)
{
    return arena_strndup(a, s, strlen(s));
}

void arena_release(struct arena *a)
{
    while (a->head != NULL) {
        struct arena_chunk *next = a->head->next;
        free(a->head);
        a->head = next;
    }
    a->used_bytes = 0;
}
