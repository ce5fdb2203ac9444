/* host_memory: see host_memory.h.
 *
 *   slab 0   [ adapter | free | adapter  ]     first_bytes, stays
 *   slab 1   [ adapter | adapter |  free ]     SLAB_BYTES, or one adapter's size if that is more
 *   ...
 *
 * A piece comes from the first slab that has room. The lock is held while a slab is taken: whoever
 * wants memory meanwhile would want a slab, too. */
#include "engine/host_memory.h"

#include "engine/heap.h"
#include "kernels/ops.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum {
    ALIGN_BYTES = 256,
    SLAB_BYTES = 256 << 20,
    SLABS_MAX = 1024,
    PIECES_MAX = 1 << 14, /* of a slab */
    HUGE_PAGE_BYTES = 2 << 20,
};

struct slab {
    char *begin;
    size_t n_bytes;
    struct heap *heap;
};

struct host_memory {
    const struct ops *ops;
    pthread_mutex_t lock;
    struct slab slabs[SLABS_MAX]; /* [n_slabs] */
    int n_slabs;
    bool pinned;
    size_t used, held;
};

static size_t aligned(size_t n)
{
    return (n + ALIGN_BYTES - 1) & ~(size_t)(ALIGN_BYTES - 1);
}

static int add_slab(struct host_memory *h, size_t n_bytes, struct err *err)
{
    struct slab *s = &h->slabs[h->n_slabs];
    void *begin;
    if (h->n_slabs == SLABS_MAX)
        return err_set(err, ERR_NO_MEMORY, "pinned memory is in %d slabs already", SLABS_MAX);
    if (h->ops->host_alloc(NULL, &begin, n_bytes, err) != 0)
        return -1;
    *s = (struct slab){begin, n_bytes, heap_create(n_bytes, ALIGN_BYTES, PIECES_MAX)};
    h->n_slabs++;
    h->held += n_bytes;
    return 0;
}

static void drop_slab(struct host_memory *h, int i)
{
    h->ops->host_free(NULL, h->slabs[i].begin);
    heap_free(h->slabs[i].heap);
    h->held -= h->slabs[i].n_bytes;
    h->slabs[i] = h->slabs[--h->n_slabs];
}

int host_memory_create(struct host_memory **out, const struct ops *ops, size_t first_bytes,
                       struct err *err)
{
    struct host_memory *h = xcalloc(1, sizeof *h);
    h->ops = ops;
    h->pinned = first_bytes > 0;
    pthread_mutex_init(&h->lock, NULL);
    if (h->pinned && add_slab(h, aligned(first_bytes), err) != 0) {
        host_memory_free(h);
        return err_wrap(err, "host memory for adapters");
    }
    *out = h;
    return 0;
}

void host_memory_free(struct host_memory *h)
{
    if (h == NULL)
        return;
    BUG_IF(h->used != 0);
    while (h->n_slabs > 0)
        drop_slab(h, h->n_slabs - 1);
    pthread_mutex_destroy(&h->lock);
    free(h);
}

void *host_memory_plain(size_t n_bytes)
{
    size_t n = aligned(n_bytes > 0 ? n_bytes : 1), huge = n & ~(size_t)(HUGE_PAGE_BYTES - 1);
    void *p;
    if (posix_memalign(&p, huge > 0 ? HUGE_PAGE_BYTES : ALIGN_BYTES, n) != 0)
        return NULL;
    if (huge > 0)
        (void)madvise(p, huge, MADV_HUGEPAGE); /* advice: not every system takes it */
    return p;
}

static void *take_pinned(struct host_memory *h, size_t n_bytes, struct err *err)
{
    for (int i = 0;; i++) {
        if (i == h->n_slabs && add_slab(h, n_bytes > SLAB_BYTES ? n_bytes : SLAB_BYTES, err) != 0)
            return NULL;
        size_t at = heap_take(h->slabs[i].heap, n_bytes);
        if (at != SIZE_MAX)
            return h->slabs[i].begin + at;
    }
}

int host_memory_take(struct host_memory *h, void **out, size_t n_bytes, struct err *err)
{
    size_t n = aligned(n_bytes > 0 ? n_bytes : 1);
    pthread_mutex_lock(&h->lock);
    void *p = h->pinned ? take_pinned(h, n, err) : host_memory_plain(n);
    if (p != NULL)
        h->used += n;
    pthread_mutex_unlock(&h->lock);
    if (p == NULL && !h->pinned)
        err_set(err, ERR_NO_MEMORY, "no memory for %zu bytes", n_bytes);
    *out = p;
    return p != NULL ? 0 : -1;
}

static int slab_of(const struct host_memory *h, const void *p)
{
    for (int i = 0; i < h->n_slabs; i++)
        if ((const char *)p >= h->slabs[i].begin &&
            (const char *)p < h->slabs[i].begin + h->slabs[i].n_bytes)
            return i;
    return -1;
}

void host_memory_give(struct host_memory *h, void *p, size_t n_bytes)
{
    size_t n = aligned(n_bytes > 0 ? n_bytes : 1);
    pthread_mutex_lock(&h->lock);
    h->used -= n;
    if (!h->pinned) {
        free(p);
    } else {
        int i = slab_of(h, p);
        BUG_IF(i < 0);
        heap_give(h->slabs[i].heap, (size_t)((char *)p - h->slabs[i].begin), n);
        if (i > 0 && heap_used(h->slabs[i].heap) == 0)
            drop_slab(h, i);
    }
    pthread_mutex_unlock(&h->lock);
}

bool host_memory_has(struct host_memory *h, const void *p)
{
    pthread_mutex_lock(&h->lock);
    bool has = !h->pinned || slab_of(h, p) >= 0;
    pthread_mutex_unlock(&h->lock);
    return has;
}

void host_memory_stats(struct host_memory *h, size_t *used_bytes, size_t *held_bytes)
{
    pthread_mutex_lock(&h->lock);
    *used_bytes = h->used;
    *held_bytes = h->pinned ? h->held : h->used;
    pthread_mutex_unlock(&h->lock);
}
