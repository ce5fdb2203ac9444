/* adapter_room: room in host memory, for adapters that are to be loaded.
 *
 * It is reserved before a file is read: two loads can't both count on the same bytes. When
 * everything is in use a load waits until something becomes idle, at most ROOM_WAIT_S seconds;
 * requests for what is loaded go past it meanwhile. What is pinned won't become idle, so what
 * doesn't fit beside it isn't waited for. */
#include "node/adapter_store_internal.h"

#include <string.h>
#include <time.h>

enum { NAMES_BYTES = 150 }; /* in an error */

/* "law, code and 3 more" */
static void names_add(struct buf *names, size_t *n_more, const char *name)
{
    if (names->len + strlen(name) > NAMES_BYTES)
        ++*n_more;
    else
        buf_appendf(names, "%s%s", names->len > 0 ? ", " : "", name);
}

static void names_end(struct buf *names, size_t n_more)
{
    if (n_more > 0)
        buf_appendf(names, "%s%zu%s", names->len > 0 ? " and " : "", n_more,
                    names->len > 0 ? " more" : "");
}

/* The names in whose favour contents are pinned. With the lock. */
static void name_pinned(struct adapter_store *s, struct buf *names)
{
    size_t at = 0, n_more = 0;
    for (const struct content *c; (c = hash_map_next(&s->contents, &at)) != NULL;) {
        for (const struct item *i = c->loaded ? c->items : NULL; i != NULL; i = i->next) {
            if (i->pinned)
                names_add(names, &n_more, i->name);
        }
    }
    names_end(names, n_more);
}

/* Beside what is pinned there are never more bytes, whoever else leaves. With the lock. */
static int check_pinned(struct adapter_store *s, size_t n_bytes, struct err *err)
{
    if (n_bytes <= s->host_total - s->host_pinned)
        return 0;
    if (s->host_pinned == 0)
        return err_set(err, ERR_TOO_LARGE,
                       "%zu bytes are needed, host memory for adapters is %zu "
                       "(engine.adapter_host_bytes)",
                       n_bytes, s->host_total);
    struct buf names = BUF_INIT;
    name_pinned(s, &names);
    err_set(err, ERR_TOO_LARGE,
            "%zu bytes are needed, host memory for adapters is %zu (engine.adapter_host_bytes), of "
            "which %zu are taken by pinned adapters (%s)",
            n_bytes, s->host_total, s->host_pinned, buf_cstr(&names));
    buf_release(&names);
    return -1;
}

int contents_fit(struct adapter_store *s, const char *const *models,
                 const struct resolved *adapters, size_t n, struct err *err)
{
    struct buf names = BUF_INIT;
    size_t n_bytes = 0, n_more = 0;
    for (size_t i = 0; i < n; i++) {
        const struct item *now = adapters[i].handle == NULL ? item_find(s, models[i], false) : NULL;
        const struct content *c = now != NULL
                                      ? now->content
                                      : hash_map_get(&s->contents, adapters[i].content.bytes, 32);
        if (c == NULL || (c->loaded && c->n_pins > 0))
            continue;
        n_bytes += c->n_bytes;
        names_add(&names, &n_more, adapters[i].name);
    }
    names_end(&names, n_more);
    int rc = check_pinned(s, n_bytes, err);
    if (rc != 0)
        err_wrap(err, "adapters %s together", buf_cstr(&names));
    buf_release(&names);
    return rc;
}

int room_reserve(struct adapter_store *s, size_t n_bytes, struct err *err)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ROOM_WAIT_S;
    bool in_time = true;
    while (s->host_used + s->host_reserved + n_bytes > s->host_total) {
        if (atomic_load(&s->cancelled))
            return err_set(err, ERR_CANCELLED, "the node is shutting down");
        if (check_pinned(s, n_bytes, err) != 0)
            return -1;
        if (host_evict_one(s))
            continue;
        if (!in_time)
            return err_set(err, ERR_BUSY,
                           "all of the %zu bytes of host memory for adapters are in use or pinned",
                           s->host_total);
        in_time = pthread_cond_timedwait(&s->room, &s->lock, &until) == 0;
    }
    s->host_reserved += n_bytes;
    return 0;
}

void room_give_back(struct adapter_store *s, size_t n_bytes)
{
    s->host_reserved -= n_bytes;
    pthread_cond_broadcast(&s->room);
}
