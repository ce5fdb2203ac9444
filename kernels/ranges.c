/* ranges: see ranges.h.
 *
 * A range is a private mapping without access and without a claim on swap; backing a piece opens it
 * and unbacking closes it and gives its pages back, so that a read or write of memory that isn't
 * there ends the program at the place that did it. The list knows which granules are backed:
 * backing one twice, or unbacking one that isn't, is a bug.
 *
 *     begin                                            begin + n_bytes
 *     |  backed  |  backed  |  no access  |  backed  |  no access |
 */
#include "kernels/ranges.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HUGE_PAGE = 2 << 20 };

struct range {
    struct range *next;
    char *begin;
    size_t n_bytes;
    bool *backed; /* [n_bytes / granule] */
};

size_t ranges_granule(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Addresses at a multiple of `align`, which is one of the page size. */
static char *map_aligned(size_t n_bytes, size_t align)
{
    size_t all = n_bytes + align;
    char *p = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    size_t before = (align - (uintptr_t)p % align) % align;
    if (before > 0)
        (void)munmap(p, before);
    if (all - before > n_bytes)
        (void)munmap(p + before + n_bytes, all - before - n_bytes);
    return p + before;
}

int ranges_reserve(struct range **list, struct devptr *out, size_t n_bytes, struct err *err)
{
    size_t granule = ranges_granule();
    bool large = n_bytes >= HUGE_PAGE;
    BUG_IF(n_bytes == 0 || n_bytes % granule != 0 || n_bytes > SIZE_MAX / 2);
    char *begin = map_aligned(n_bytes, large ? HUGE_PAGE : granule);
    if (begin == NULL)
        return err_set(err, ERR_NO_MEMORY, "no addresses for %zu bytes: %s", n_bytes,
                       strerror(errno));
    if (large)
        (void)madvise(begin, n_bytes, MADV_HUGEPAGE); /* a wish: small pages work too */
    struct range *r = xcalloc(1, sizeof *r);
    *r = (struct range){.next = *list, .begin = begin, .n_bytes = n_bytes};
    r->backed = xcalloc(n_bytes / granule, sizeof *r->backed);
    *list = r;
    out->addr = (uintptr_t)begin;
    return 0;
}

/* The range that [p, p + n_bytes) lies in, whose granules there are then marked; all of them must
 * have been otherwise. */
static void mark(struct range *list, struct devptr p, size_t n_bytes, bool backed)
{
    size_t granule = ranges_granule();
    struct range *r = list;
    while (r != NULL &&
           (p.addr < (uintptr_t)r->begin || p.addr - (uintptr_t)r->begin >= r->n_bytes))
        r = r->next;
    BUG_IF(r == NULL || n_bytes == 0);
    size_t at = p.addr - (uintptr_t)r->begin;
    BUG_IF(at % granule != 0 || n_bytes % granule != 0 || n_bytes > r->n_bytes - at);
    for (size_t i = at / granule; i < (at + n_bytes) / granule; i++) {
        BUG_IF(r->backed[i] == backed);
        r->backed[i] = backed;
    }
}

int ranges_back(struct range *list, struct devptr p, size_t n_bytes, struct err *err)
{
    mark(list, p, n_bytes, true);
    if (mprotect((void *)p.addr, n_bytes, PROT_READ | PROT_WRITE) == 0)
        return 0;
    err_set(err, ERR_NO_MEMORY, "no memory for %zu bytes: %s", n_bytes, strerror(errno));
    mark(list, p, n_bytes, false);
    return -1;
}

void ranges_unback(struct range *list, struct devptr p, size_t n_bytes)
{
    mark(list, p, n_bytes, false);
    BUG_IF(madvise((void *)p.addr, n_bytes, MADV_DONTNEED) != 0 ||
           mprotect((void *)p.addr, n_bytes, PROT_NONE) != 0);
}

void ranges_release(struct range **list, struct devptr p)
{
    struct range **link = list;
    if (p.addr == 0)
        return;
    while (*link != NULL && (uintptr_t)(*link)->begin != p.addr)
        link = &(*link)->next;
    struct range *r = *link;
    BUG_IF(r == NULL);
    *link = r->next;
    (void)munmap(r->begin, r->n_bytes);
    free(r->backed);
    free(r);
}
