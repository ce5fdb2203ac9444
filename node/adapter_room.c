/* adapter_room: room in host memory, for adapters that are to be loaded.
 *
 * It is reserved before a file is read: two loads can't both count on the same bytes. When
 * everything is in use a load waits until something becomes idle, at most ROOM_WAIT_S seconds;
 * requests for what is loaded go past it meanwhile. What is pinned won't become idle, so what
 * doesn't fit beside it isn't waited for.
 *
 * The order of those that wait is that in which they were asked for:
 *
 *     |<------------------------- all but pinned --------------------------->|
 *     |   claimed by those before    |  came in past them, still held  | free |
 *
 *   1. Who is first has a claim to all that becomes idle: it leaves at once, and nobody else has
 *      it.
 *   2. Others pass if they fit beside the claims of all who wait before them and beside what others
 *      hold already that passed one of these (bytes_passed). So all who pass, however many come,
 *      take no more than what the claim leaves: once those have ended who were there before it, its
 *      room is there. A large adapter waits for answers that run, not for ones still to come; but
 *      for those, too, whose adapter was there before it and is never idle between them.
 *   3. Who gives up, or doesn't fit any more, leaves the list, and its claim is no more.
 *   4. An ensemble that gathers (answer_resolve.c) holds adapters while it waits for others. What
 *      it waits for goes ahead of everybody: else the first might wait for what the ensemble holds,
 *      and the ensemble for the first. There is one at a time, which doesn't begin while somebody
 *      waits who asked before it stood in line and whom it would be in the way of (contents_fit);
 *      so ensembles without end don't hold up anybody for ever. What goes ahead has a thread of its
 *      own, as those that wait may have all the loaders.
 *   5. An ensemble that was given up holds nothing any more, but its loads are still there. They
 *      go back to their places in the order, and leave the thread, when a later one waits. */
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

/* ---- the order --------------------------------------------------------------------------------
 */

void room_ask(struct adapter_store *s, struct room *r)
{
    r->asked = ++s->n_asked;
    r->since = clock_monotonic_us();
}

bool room_is_ahead(const struct adapter_store *s, const struct room *r)
{
    return r->holder != 0 && r->holder == s->holder;
}

static bool is_before(const struct adapter_store *s, const struct room *r, const struct room *v)
{
    bool ahead = room_is_ahead(s, r);
    return ahead != room_is_ahead(s, v) ? ahead : r->asked < v->asked;
}

static void join(struct adapter_store *s, struct room *r)
{
    struct room **at = &s->rooms;
    while (*at != NULL && is_before(s, *at, r))
        at = &(*at)->next;
    r->next = *at;
    *at = r;
}

static void leave(struct adapter_store *s, struct room *r)
{
    struct room **at = &s->rooms;
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    pthread_cond_broadcast(&s->room); /* it was in somebody's way */
}

void room_go_ahead(struct adapter_store *s, struct room *r, uint64_t holder)
{
    struct room *rooms = s->rooms;
    r->holder = holder > r->holder ? holder : r->holder;
    s->holder = holder > s->holder ? holder : s->holder;
    s->rooms = NULL;
    for (struct room *v = rooms, *next; v != NULL; v = next) {
        next = v->next;
        join(s, v);
    }
    pthread_cond_broadcast(&s->room);
}

/* Rule 2: what those before r, who claim so much, leave. */
static bool fits_beside(const struct adapter_store *s, size_t claimed, size_t passed, size_t n)
{
    size_t most = s->host_total - s->host_pinned;
    return claimed <= most && passed <= most - claimed && n <= most - claimed - passed;
}

static bool is_its_turn(const struct adapter_store *s, const struct room *r)
{
    size_t claimed = 0, passed = 0;
    for (const struct room *v = s->rooms; v != r; v = v->next) {
        claimed += v->n_bytes;
        passed = v->bytes_passed > passed ? v->bytes_passed : passed;
    }
    return claimed == 0 || fits_beside(s, claimed, passed, r->n_bytes);
}

/* Who asked as number `asked`, and was number `entered` to come in, holds n_bytes: counted with all
 * whom it passed; or it does no more. */
static void count(struct adapter_store *s, uint64_t asked, uint64_t entered, size_t n_bytes,
                  bool in)
{
    for (struct room *v = s->rooms; v != NULL; v = v->next) {
        if (v->asked >= asked || v->n_entered_before >= entered)
            continue;
        v->bytes_passed += in ? n_bytes : -n_bytes;
        if (!in)
            pthread_cond_broadcast(&s->room);
    }
}

void room_count(struct adapter_store *s, const struct content *c, bool in)
{
    count(s, c->asked, c->entered, c->n_bytes, in);
}

/* ---- reserving ---------------------------------------------------------------------------------
 */

static void enter(struct adapter_store *s, struct room *r)
{
    s->host_reserved += r->n_bytes;
    r->entered = ++s->n_entered;
    count(s, r->asked, r->entered, r->n_bytes, true);
}

static bool has_room(const struct adapter_store *s, size_t n_bytes)
{
    return n_bytes <= s->host_total && s->host_used + s->host_reserved <= s->host_total - n_bytes;
}

bool room_try(struct adapter_store *s, struct room *r, size_t n_bytes)
{
    if (s->rooms != NULL || !has_room(s, n_bytes))
        return false;
    r->n_bytes = n_bytes;
    enter(s, r);
    return true;
}

int room_reserve(struct adapter_store *s, struct room *r, size_t n_bytes, struct err *err)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ROOM_WAIT_S;
    bool in_time = true;
    int rc = 0;
    r->n_bytes = n_bytes;
    r->n_entered_before = s->n_entered;
    r->bytes_passed = 0;
    join(s, r);
    while (rc == 0 && !(has_room(s, n_bytes) && is_its_turn(s, r))) {
        if (atomic_load(&s->cancelled))
            rc = err_set(err, ERR_CANCELLED, "the node is shutting down");
        else if (check_pinned(s, n_bytes, err) != 0)
            rc = -1;
        else if (is_its_turn(s, r) && host_evict_one(s))
            continue;
        else if (r->lent && !room_is_ahead(s, r))
            rc = err_set(err, ERR_BUSY, "others go ahead of it now");
        else if (!in_time)
            rc = err_set(err, ERR_BUSY,
                         "all of the %zu bytes of host memory for adapters are in use or pinned",
                         s->host_total);
        else
            in_time = pthread_cond_timedwait(&s->room, &s->lock, &until) == 0;
    }
    leave(s, r);
    if (rc == 0)
        enter(s, r);
    return rc;
}

void room_give_back(struct adapter_store *s, const struct room *r)
{
    s->host_reserved -= r->n_bytes;
    count(s, r->asked, r->entered, r->n_bytes, false);
    pthread_cond_broadcast(&s->room);
}

/* ---- several at once ---------------------------------------------------------------------------
 */

/* Beside the claims of those who have been waiting since before then. */
static bool fits_beside_older(const struct adapter_store *s, struct monotonic_us then, size_t n)
{
    size_t claimed = 0, passed = 0;
    for (const struct room *v = s->rooms; v != NULL; v = v->next) {
        if (v->since.us >= then.us)
            continue;
        claimed += v->n_bytes;
        passed = v->bytes_passed > passed ? v->bytes_passed : passed;
    }
    return claimed == 0 || fits_beside(s, claimed, passed, n);
}

int contents_fit(struct adapter_store *s, const char *const *models,
                 const struct resolved *adapters, size_t n, struct monotonic_us since,
                 struct err *err)
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
    if (rc == 0 && !fits_beside_older(s, since, n_bytes))
        rc = err_set(err, ERR_BUSY, "others have been waiting longer for room in host memory");
    if (rc != 0)
        err_wrap(err, "adapters %s together", buf_cstr(&names));
    buf_release(&names);
    return rc;
}
