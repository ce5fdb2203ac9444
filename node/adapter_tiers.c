/* adapter_tiers: host memory: what comes in, and what leaves for it.
 *
 * What leaves first is decided by GreedyDual-Size-Frequency (Cherkasova, "Improving WWW Proxies
 * Performance with Greedy-Dual-Size-Frequency Caching Policy", HP Labs 1998; after Young's
 * GreedyDual, SODA 1991). An adapter's priority, taken anew at each use:
 *
 *     priority = age + uses * cost / size
 *
 *     uses   since it came in
 *     cost   microseconds of reading, hashing and checking it: half what it took the last time,
 *            half what its size takes on average, so that a load which happened to be held up
 *            makes no favourite
 *     size   its bytes in host memory
 *     age    of the cache: the priority of the one that left last
 *
 * The lowest leaves. An adapter that is not used stands still while `age` climbs past it, so that
 * former favourites leave in the end; one that is small, asked for often, or slow to read stays
 * longer. What is in use or pinned is not in the heap at all.
 *
 * Room is reserved before a file is read (adapter_room.c), from the size that was learnt or, the
 * first time, from its header. */
#include "node/adapter_store_internal.h"

#include "attribution/attribution.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/workers.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

enum { PRESSED_MS = 2, PRESSED_TURNS = 16 };
enum { EVICT_TURNS = 100, EVICT_PAUSE_MS = 5, AVERAGE_OVER = 32 };

/* ---- the idle ones: a heap ---------------------------------------------------------------------
 */

static void idle_set(struct adapter_store *s, size_t at, struct content *c)
{
    s->idle[at] = c;
    c->idle_at = at + 1;
}

static void idle_sink(struct adapter_store *s, size_t at, struct content *c)
{
    for (size_t child; (child = 2 * at + 1) < s->n_idle; at = child) {
        if (child + 1 < s->n_idle && s->idle[child + 1]->priority < s->idle[child]->priority)
            child++;
        if (s->idle[child]->priority >= c->priority)
            break;
        idle_set(s, at, s->idle[child]);
    }
    idle_set(s, at, c);
}

static void idle_rise(struct adapter_store *s, size_t at, struct content *c)
{
    for (; at > 0 && s->idle[(at - 1) / 2]->priority > c->priority; at = (at - 1) / 2)
        idle_set(s, at, s->idle[(at - 1) / 2]);
    idle_set(s, at, c);
}

static void idle_remove(struct adapter_store *s, struct content *c)
{
    size_t at = c->idle_at - 1;
    struct content *last = s->idle[--s->n_idle];
    c->idle_at = 0;
    if (last == c)
        return;
    if (at > 0 && s->idle[(at - 1) / 2]->priority > last->priority)
        idle_rise(s, at, last);
    else
        idle_sink(s, at, last);
}

/* Puts c where it belongs: among the idle ones, or not. */
static void idle_update(struct adapter_store *s, struct content *c)
{
    bool idle = c->loaded && c->users == 0 && c->n_pins == 0;
    if (idle == (c->idle_at > 0))
        return;
    if (!idle) {
        idle_remove(s, c);
        return;
    }
    if (s->n_idle == s->cap_idle) {
        s->cap_idle = s->cap_idle == 0 ? 64 : s->cap_idle * 2;
        s->idle = xrealloc_array(s->idle, s->cap_idle, sizeof(struct content *));
    }
    idle_rise(s, s->n_idle++, c);
    pthread_cond_broadcast(&s->room);
}

/* ---- use ---------------------------------------------------------------------------------------
 */

void content_take(struct adapter_store *s, struct content *c)
{
    BUG_IF(!c->loaded);
    s->n_in_use += c->users++ == 0;
    c->n_uses++;
    c->frequency++;
    c->used = clock_unix_ms();
    idle_update(s, c);
    c->priority = s->age + (double)c->frequency * c->cost_us / (double)c->n_bytes;
}

/* The engine is told to keep what is pinned and loaded on the device, and no longer what isn't. It
 * answers after a step, so a thread of its own waits for that: loaders may be waiting for the very
 * room in host memory that this frees. What counts is the state at that moment. Where there is no
 * room it is tried again when a request of the adapter ends. */
static void keep_run(void *store, void *argument)
{
    struct adapter_store *s = store;
    struct content_digest *digest = argument;
    char *name = NULL; /* as which it is pinned */
    pthread_mutex_lock(&s->lock);
    const struct content *c = hash_map_get(&s->contents, digest->bytes, 32);
    if (c != NULL && c->loaded)
        for (const struct item *i = c->items; i != NULL && name == NULL; i = i->next)
            name = i->pinned ? xstrdup(i->name) : NULL;
    pthread_mutex_unlock(&s->lock);
    struct err err = {0};
    bool refused = engine_adapter_keep(s->engine, digest, name != NULL, &err) != 0 && name != NULL;
    bool told = false;
    pthread_mutex_lock(&s->lock);
    struct content *now = hash_map_get(&s->contents, digest->bytes, 32);
    if (now != NULL) {
        told = now->refused;
        now->refused = refused;
        now->kept = name != NULL && !refused;
        now->keeping = false;
    }
    pthread_mutex_unlock(&s->lock);
    if (refused && !told)
        log_warn("adapters", "%s is pinned, but not kept on the device: %s", name, err.message);
    free(name);
    free(digest);
}

static void keep_begin(struct adapter_store *s, struct content *c)
{
    struct content_digest *digest = xmalloc(sizeof *digest);
    *digest = c->digest;
    c->keeping = workers_submit(s->keeper, keep_run, s, digest);
    if (!c->keeping)
        free(digest); /* stopping */
}

void content_give_back(struct adapter_store *s, struct content *c)
{
    BUG_IF(c->users <= 0);
    s->n_in_use -= --c->users == 0;
    if (c->n_pins > 0 && !c->kept && !c->keeping)
        keep_begin(s, c);
    idle_update(s, c);
    content_settle(s, c);
}

void content_pin(struct adapter_store *s, struct content *c, int by)
{
    c->n_pins += by;
    BUG_IF(c->n_pins < 0);
    if (by > 0)
        s->n_pinned += c->n_pins == 1;
    else
        s->n_pinned -= c->n_pins == 0;
    idle_update(s, c);
    if (c->loaded && c->n_pins == (by > 0)) {
        s->host_pinned += by > 0 ? c->n_bytes : -c->n_bytes;
        room_count(s, c, by < 0);
        pthread_cond_broadcast(&s->room); /* what waits may fit no more */
        keep_begin(s, c);
    }
}

/* A sequence whose answer has ended may hold its adapter for a moment more. */
int device_evict(struct adapter_store *s, const struct content_digest *digest, struct err *err)
{
    struct err problem = {0};
    int rc = -1;
    for (int turn = 0; turn < EVICT_TURNS; turn++) {
        rc = engine_adapter_evict(s->engine, digest, &problem);
        if (rc == 0 || problem.code != ERR_BUSY)
            break;
        nanosleep(&(struct timespec){0, EVICT_PAUSE_MS * 1000000L}, NULL);
    }
    if (rc != 0 && err != NULL)
        *err = problem;
    return rc;
}

static void forget_run(void *store, void *argument)
{
    struct adapter_store *s = store;
    struct content_digest *digest = argument;
    pthread_mutex_lock(&s->lock);
    struct content *again = hash_map_get(&s->contents, digest->bytes, 32);
    if (again != NULL) /* somebody means it now, and sees to it later */
        again->perhaps_on_device = true;
    pthread_mutex_unlock(&s->lock);
    if (again == NULL && !atomic_load(&s->cancelled))
        device_evict(s, digest, NULL);
    free(digest);
}

void device_forget(struct adapter_store *s, const struct content_digest *digest)
{
    struct content_digest *copy = xmalloc(sizeof *copy);
    *copy = *digest;
    if (!workers_submit(s->loaders, forget_run, s, copy))
        free(copy); /* stopping */
}

void content_unload(struct adapter_store *s, struct content *c)
{
    BUG_IF(!c->loaded || c->users > 0 || c->n_pins > 0);
    c->loaded = false;
    c->frequency = 0;
    idle_update(s, c);
    s->host_used -= c->n_bytes;
    room_count(s, c, false);
    engine_adapter_drop(s->engine, &c->digest, NULL);
}

bool host_evict_one(struct adapter_store *s)
{
    if (s->n_idle == 0)
        return false;
    struct content *c = s->idle[0];
    s->age = c->priority;
    s->n_evicted_host++;
    content_unload(s, c);
    content_settle(s, c);
    return true;
}

/* ---- loading -----------------------------------------------------------------------------------
 */

struct pressed {
    struct adapter_store *store;
    int turn;
};

/* The engine counts for itself, and what a finished sequence held is freed a moment after its
 * answer: then it says ERR_BUSY although there is room here. If waiting doesn't help, the files are
 * larger than they were when they were measured, and others have to leave. Without the lock. */
static bool wait_pressed(void *context)
{
    struct pressed *p = context;
    struct adapter_store *s = p->store;
    int turn = p->turn++;
    if (atomic_load(&s->cancelled))
        return false;
    pthread_mutex_lock(&s->lock);
    bool freed = turn % PRESSED_TURNS == PRESSED_TURNS - 1 && host_evict_one(s);
    pthread_mutex_unlock(&s->lock);
    if (!freed && turn * PRESSED_MS >= ROOM_WAIT_S * 1000)
        return false;
    nanosleep(&(struct timespec){0, PRESSED_MS * 1000000L}, NULL);
    return true;
}

void content_landed(struct adapter_store *s, struct content *c, uint64_t us,
                    const struct room *room)
{
    c->load_us = us > 0 ? us : 1;
    double per_byte = (double)c->load_us / (double)c->n_bytes;
    s->us_per_byte += (per_byte - s->us_per_byte) /
                      (s->n_loads < AVERAGE_OVER ? (double)s->n_loads + 1 : AVERAGE_OVER);
    c->cost_us = ((double)c->load_us + s->us_per_byte * (double)c->n_bytes) / 2;
    c->distrusted = false;
    s->n_loads++;
    if (c->loaded) { /* another load was faster; one is enough */
        engine_adapter_drop(s->engine, &c->digest, NULL);
        return;
    }
    c->loaded = c->perhaps_on_device = true;
    c->frequency = 0;
    c->priority = s->age;
    c->asked = room != NULL ? room->asked : 0;
    c->entered = room != NULL ? room->entered : 0;
    s->host_used += c->n_bytes;
    idle_update(s, c);
    if (c->n_pins == 0) {
        room_count(s, c, true);
    } else {
        s->host_pinned += c->n_bytes;
        pthread_cond_broadcast(&s->room);
        keep_begin(s, c);
    }
}

int files_read(struct adapter_store *s, const char *dir, struct engine_adapter *facts, bool *loaded,
               uint64_t *us, struct err *err)
{
    size_t n_bytes;
    struct room room = {0};
    if (engine_adapter_measure(s->engine, dir, &n_bytes, err) != 0)
        return -1;
    pthread_mutex_lock(&s->lock);
    *loaded = room_try(s, &room, n_bytes);
    pthread_mutex_unlock(&s->lock);
    struct monotonic_us began = clock_monotonic_us();
    int rc = -1;
    if (*loaded) {
        struct err problem = {0};
        rc = engine_adapter_load(s->engine, dir, facts, &problem);
        *us = clock_elapsed_us(began, clock_monotonic_us());
        *loaded = rc == 0;
        pthread_mutex_lock(&s->lock);
        room_give_back(s, &room);
        pthread_mutex_unlock(&s->lock);
        if (rc != 0 && problem.code != ERR_BUSY) {
            if (err != NULL)
                *err = problem;
            return -1;
        }
    }
    return rc == 0 ? 0 : engine_adapter_check(s->engine, dir, facts, err);
}

/* What the load found out goes into the tables. With the lock. */
static void load_landed(struct adapter_store *s, struct load *l, const struct engine_adapter *facts,
                        uint64_t us)
{
    struct content *c = content_get(s, &facts->content);
    content_learn(c, facts);
    if (l->item != NULL && l->content == NULL) {
        l->item->examined = true;
        s->facts_changed = true;
        item_attach(s, l->item, c);
    }
    content_landed(s, c, us, &l->room);
}

/* An operator's directory that has the content: of those that didn't fail the first one, else the
 * one that did so the longest ago; NULL: none. */
static const struct item *local_item(const struct content *c)
{
    const struct item *best = NULL;
    for (const struct item *i = c->items; i != NULL; i = i->next) {
        if (i->dir != NULL && (best == NULL || i->failed.us < best->failed.us))
            best = i;
    }
    return best;
}

/* Whose files w gets, who asked for i: a local name means its own directory. What means a content,
 * or a registry's name for it, is as well served from any place that has it: the fetched files
 * (*from is NULL) or a local adapter's. False: none are here that didn't fail since w asked. */
static bool source_for(const struct item *i, const struct waiter *w, const struct item **from)
{
    const struct content *c = i->content;
    *from = i;
    if (c != NULL && (i->dir == NULL || strcmp(i->name, w->model) != 0)) {
        uint64_t fetched_us = c->disk_bytes > 0 ? c->fetched_failed.us : UINT64_MAX;
        *from = local_item(c);
        if (*from == NULL || fetched_us <= (*from)->failed.us) {
            *from = NULL;
            return fetched_us < w->began.us;
        }
    }
    return (*from)->failed.us < w->began.us;
}

/* l's files failed at that moment, or loaded (0). With the lock. */
static void files_failed(struct load *l, uint64_t at_us)
{
    if (l->content == NULL)
        return; /* they are of one name, and the load's end says so */
    if (l->fetched)
        l->content->fetched_failed.us = at_us;
    for (struct item *i = l->content->items; i != NULL; i = i->next) {
        if (i->dir != NULL && strcmp(i->dir, l->dir) == 0)
            i->failed.us = at_us;
    }
}

/* After a failure: who can be served from other files that are here has these read, each of them
 * once, as what failed since somebody asked is not read for him again. The others are sent to the
 * registries, once, if these have it and no fetched files are here. With the lock. */
static void load_elsewhere(struct adapter_store *s, struct load *l, struct waiters *ready)
{
    struct content *c = l->content;
    if (l->fetched && !c->distrusted && s->index != NULL) {
        c->distrusted = true;
        disk_remove(s, c);
    }
    struct waiters kept = {0};
    for (struct waiter *w = l->waiters.first, *next; w != NULL; w = next) {
        struct item *i = item_find(s, w->model, false);
        const struct item *from;
        bool ours = i != NULL && i->content == c;
        next = w->next;
        if (ours && source_for(i, w, &from)) {
            item_use(s, i, w, ready);
        } else if (s->index != NULL && !w->again && c->disk_bytes == 0 &&
                   (l->fetched || (ours && i->dir == NULL))) {
            w->again = true;
            fetch_begin(s, w, ready);
        } else {
            waiters_add(&kept, w);
        }
    }
    l->waiters = kept;
}

static void load_run(void *store, void *load);

/* *read: a failure is the files' own. What room there was is the load's until room_give_back. */
static int load_files(struct adapter_store *s, struct load *l, struct engine_adapter *facts,
                      size_t n_bytes, uint64_t *us, bool *read, struct err *err)
{
    *read = true;
    if (n_bytes == 0 && engine_adapter_measure(s->engine, l->dir, &n_bytes, err) != 0)
        return -1;
    pthread_mutex_lock(&s->lock);
    int rc = atomic_load(&s->cancelled) ? err_set(err, ERR_CANCELLED, "the node is shutting down")
                                        : room_reserve(s, &l->room, n_bytes, err);
    pthread_mutex_unlock(&s->lock);
    *read = rc == 0;
    if (rc != 0)
        return -1;
    struct monotonic_us began = clock_monotonic_us();
    struct pressed pressed = {.store = s};
    rc = engine_adapter_load_when(s->engine, l->dir, wait_pressed, &pressed, facts, err);
    *us = clock_elapsed_us(began, clock_monotonic_us());
    return rc;
}

/* The files have another digest than they should: nothing serves. With the lock. */
static int refuse_changed(struct adapter_store *s, struct load *l,
                          const struct engine_adapter *facts, struct err *err)
{
    engine_adapter_drop(s->engine, &facts->content, NULL);
    char was[65], is[65];
    if (l->fetched)
        return err_set(err, ERR_CORRUPT, "its files on disk no longer have its content digest");
    for (struct item *i = l->content->items; i != NULL; i = i->next) {
        if (i->dir != NULL && strcmp(i->dir, l->dir) == 0) /* not to be remembered */
            i->stamp[0] = '\0';
    }
    s->facts_changed = true;
    hex_encode(was, l->content->digest.bytes, 32);
    hex_encode(is, facts->content.bytes, 32);
    return err_set(err, ERR_CONFLICT,
                   "its files have changed: their digest is %.16s.., it was registered as %.16s..; "
                   "register it again (tributary adapter add)",
                   is, was);
}

/* Hands the loaded content to all who wait for it. With the lock. */
static void load_serve(struct adapter_store *s, struct load *l, struct content *c,
                       struct waiters *ready)
{
    struct ledger_adapter known;
    bool local = l->content == NULL; /* its digest is new, so nobody has asked the ledger yet */
    bool registered = local && ledger_adapter_by_content(s->ledger, &known, c->digest, NULL) == 0;
    for (struct waiter *w = l->waiters.first, *next; w != NULL; w = next) {
        next = w->next;
        content_take(s, c);
        w->out.content = c->digest;
        w->out.handle = c;
        if (registered)
            w->out.id = known.id;
        if (w->tier < TIER_DISK)
            w->tier = TIER_DISK;
        waiters_add(ready, w);
    }
    idle_update(s, c);
    content_settle(s, c);
}

/* Each reads the name that it asked for, not that under which the load was begun. With the lock. */
static void load_fail(struct load *l, const struct err *why, struct waiters *ready)
{
    for (struct waiter *w = l->waiters.first, *next; w != NULL; w = next) {
        next = w->next;
        w->failed = true;
        w->err = *why;
        err_wrap(&w->err, "adapter %s", w->out.name);
        waiters_add(ready, w);
    }
    l->waiters = (struct waiters){0};
}

/* l has the thread of those that go ahead, and does so no more: a loader goes on with it. With the
 * lock. */
static bool load_put_back(struct adapter_store *s, struct load *l)
{
    if (!l->room.lent || room_is_ahead(s, &l->room) || atomic_load(&s->cancelled) ||
        !workers_submit(s->loaders, load_run, s, l))
        return false;
    l->n_jobs++;
    l->begun = false;
    return true;
}

static void load_files_and_serve(struct adapter_store *s, struct load *l, size_t n_bytes)
{
    struct err err = {0};
    struct engine_adapter facts;
    uint64_t us = 0;
    bool read;
    int rc = load_files(s, l, &facts, n_bytes, &us, &read, &err);
    if (rc == 0 && l->fetched)
        utimensat(AT_FDCWD, l->dir, NULL, 0); /* for the disk's bound, over restarts */

    struct waiters ready = {0};
    pthread_mutex_lock(&s->lock);
    if (!read && load_put_back(s, l)) {
        pthread_mutex_unlock(&s->lock);
        return;
    }
    if (read)
        room_give_back(s, &l->room);
    if (rc == 0 && l->content != NULL && !DIGEST_EQ(facts.content, l->content->digest))
        rc = refuse_changed(s, l, &facts, &err);
    bool told = rc != 0 && err.code != ERR_CANCELLED && err.code != ERR_BUSY;
    if (rc == 0 || (told && read))
        files_failed(l, rc != 0 ? clock_monotonic_us().us : 0);
    if (rc == 0)
        load_landed(s, l, &facts, us);
    if (l->item != NULL)
        l->item->load = NULL;
    struct content *c = l->content;
    if (c != NULL)
        c->load = NULL;
    if (rc == 0) {
        load_serve(s, l, content_get(s, &facts.content), &ready);
    } else {
        s->n_failed++;
        if (told) /* where the files lie is for the operator alone */
            log_warn("adapters", "adapter %s (%s): %s", l->name, l->dir, err.message);
        if (told && read && c != NULL)
            load_elsewhere(s, l, &ready);
        load_fail(l, &err, &ready);
        if (c != NULL)
            content_settle(s, c);
    }
    pthread_mutex_unlock(&s->lock);
    waiters_tell(s, &ready);
}

static void load_run_at(struct adapter_store *s, struct load *l, bool lent)
{
    pthread_mutex_lock(&s->lock);
    bool begins = !l->begun;
    size_t n_bytes = begins && l->content != NULL ? l->content->n_bytes : 0;
    if (begins)
        l->room.lent = lent;
    l->begun = true;
    pthread_mutex_unlock(&s->lock);
    if (begins)
        load_files_and_serve(s, l, n_bytes);
    pthread_mutex_lock(&s->lock);
    bool last = --l->n_jobs == 0;
    pthread_mutex_unlock(&s->lock);
    if (!last)
        return;
    free(l->dir);
    free(l);
}

static void load_run(void *store, void *load)
{
    load_run_at(store, load, false);
}

static void load_run_ahead(void *store, void *load)
{
    load_run_at(store, load, true);
}

/* Who waits for it holds other adapters. */
static void load_go_ahead(struct adapter_store *s, struct load *l, uint64_t holder)
{
    if (holder <= l->room.holder)
        return;
    room_go_ahead(s, &l->room, holder);
    if (!l->begun && room_is_ahead(s, &l->room))
        l->n_jobs += workers_submit(s->ahead, load_run_ahead, s, l);
}

void load_join(struct adapter_store *s, struct item *i, struct waiter *w, struct waiters *ready)
{
    struct content *c = i->content;
    struct load **at = c != NULL ? &c->load : &i->load;
    if (*at == NULL) {
        struct load *l = xcalloc(1, sizeof *l);
        const struct item *where;
        source_for(i, w, &where);
        l->store = s;
        l->content = c;
        l->item = c == NULL ? i : NULL;
        memcpy(l->name, where != NULL ? where->name : i->name, sizeof l->name);
        l->fetched = where == NULL;
        l->dir = where != NULL ? xstrdup(where->dir) : content_dir(s, &c->digest);
        if (!workers_submit(s->loaders, load_run, s, l)) {
            free(l->dir);
            free(l);
            struct err err = {0};
            struct waiters one = {0};
            err_set(&err, ERR_BUSY, "the node is shutting down");
            waiters_add(&one, w);
            waiters_fail(&one, &err, ready);
            return;
        }
        l->n_jobs = 1;
        room_ask(s, &l->room);
        *at = l;
    }
    load_go_ahead(s, *at, w->holder);
    waiters_add(&(*at)->waiters, w);
}
