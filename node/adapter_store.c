/* adapter_store: see adapter_store.h; adapter_store_internal.h says which file does what.
 *
 *   item      a name: a local one, or one of a registry's manifests that was checked
 *   content   a set of files by its digest, which items mean; several may mean the same one
 *
 * A request becomes a waiter. What is loaded it gets at once, on its own thread. Otherwise it joins
 * the content's load (adapter_tiers.c) or, when a registry or the chain has to be asked first, the
 * name's fetch (adapter_fetch.c), whose end is a load or a use again:
 *
 *     resolve --known, loaded----------------------------> told
 *        |  `---known, on disk--> load --ok--------------> told
 *        |                         | failed: from other files of the content, else (once)
 *        `------else------------> fetch --ok--> load or told
 *
 * A name means a local adapter if there is one, else the first creator who used it in the index,
 * and of that creator's adapters the highest version. A digest or an id means exactly one adapter.
 *
 * A registry's item is good for refresh_ms; then its registration is looked up again, so that
 * retiring an adapter takes effect without a restart. A chain that doesn't answer leaves a checked
 * item in use and lets no new one in. An index that is older is asked for again, by a thread of its
 * own; so nobody who asks for what is here waits for a registry that is slow, unless it is so slow
 * that the index gets twice as old. */
#include "node/adapter_store_internal.h"

#include "attribution/attribution.h"
#include "node/base/hex.h"
#include "node/base/http_client.h"
#include "node/base/log.h"
#include "node/metrics.h"
#include "node/workers.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LOADERS_MIN = 2, LOADERS_MAX = 8, FETCHERS = 8, WAITING_MAX = 512, QUEUE_MAX = 65536 };
enum { BRINGERS_EACH = 2 }; /* for a fetcher; one customer alone has half of them at most */

const char *adapter_tier_name(enum adapter_tier tier)
{
    static const char *const names[N_TIERS] = {"device", "host", "disk", "registry"};
    return names[tier];
}

/* ---- what a request asks for -------------------------------------------------------------------
 */

int wanted_parse(struct wanted *w, const char *model, struct err *err)
{
    *w = (struct wanted){.by = BY_NAME};
    const char *digest = strncmp(model, "sha256:", 7) == 0 ? model + 7 : model;
    if (hex_decode(w->digest, 32, digest) == 0) {
        w->by = digest == model && model[1] == 'x' ? BY_ID : BY_CONTENT;
        return 0;
    }
    const char *at = strchr(model, '@');
    size_t n = at == NULL ? strlen(model) : (size_t)(at - model);
    char *end = NULL;
    if (at != NULL)
        w->version = strtoull(at + 1, &end, 10);
    if (n == 0 || n >= sizeof w->name ||
        (at != NULL && (at[1] < '1' || at[1] > '9' || *end != '\0')))
        return err_set(err, ERR_NOT_FOUND, "there is no model \"%.100s\"", model);
    memcpy(w->name, model, n);
    return 0;
}

bool item_is_checked(const struct adapter_store *s, const struct item *i)
{
    return i->dir != NULL || s->rpc == NULL ||
           (i->checked.us != 0 &&
            clock_elapsed_us(i->checked, clock_monotonic_us()) < s->refresh_us);
}

bool item_is_here(const struct item *i)
{
    return i->dir != NULL || i->content->loaded || i->content->disk_bytes > 0;
}

struct item *content_local(const struct content *c)
{
    struct item *i = c->items;
    while (i != NULL && i->dir == NULL)
        i = i->next;
    return i;
}

/* What a content's digest means: with a chain its earliest registration, which never changes once
 * there is one. A later one may be somebody's copy that is after the royalties, whoever asked for
 * it first here. fresh: NULL when the chain has to be asked, or when the earliest isn't here. */
static struct item *content_meant(struct adapter_store *s, const struct content *c, bool fresh)
{
    if (s->rpc == NULL || s->index == NULL)
        return c->items;
    bool registered = !bytes32_is_zero(c->first.bytes);
    if (!registered) {
        bool known = c->first_asked.us != 0 &&
                     clock_elapsed_us(c->first_asked, clock_monotonic_us()) < s->refresh_us;
        return known || !fresh ? c->items : NULL;
    }
    struct item *i = hash_map_get(&s->by_id, c->first.bytes, 32);
    if (i == NULL)
        i = content_local(c);
    return i != NULL || fresh ? i : c->items;
}

struct item *item_find(struct adapter_store *s, const char *model, bool fresh)
{
    struct item *i = hash_map_get(&s->local, model, strlen(model));
    struct wanted w;
    if (i != NULL || wanted_parse(&w, model, NULL) != 0)
        return i;
    struct index_entry e;
    const struct content *c;
    switch (w.by) {
    case BY_CONTENT:
        c = hash_map_get(&s->contents, w.digest, 32);
        return c != NULL ? content_meant(s, c, fresh) : NULL;
    case BY_ID:
        return hash_map_get(&s->by_id, w.digest, 32);
    case BY_NAME:
        if (s->index == NULL || (fresh && !adapter_index_counts(s->index)) ||
            !adapter_index_named(s->index, w.name, w.version, &e))
            return NULL;
        return hash_map_get(&s->by_manifest, e.e.manifest.bytes, 32);
    }
    BUG("unknown kind of name");
}

/* ---- contents and items ------------------------------------------------------------------------
 */

struct content *content_get(struct adapter_store *s, const struct content_digest *digest)
{
    struct content *c = hash_map_get(&s->contents, digest->bytes, 32);
    if (c == NULL) {
        c = xcalloc(1, sizeof *c);
        c->digest = *digest;
        hash_map_put(&s->contents, c->digest.bytes, 32, c);
    }
    return c;
}

void content_learn(struct content *c, const struct engine_adapter *facts)
{
    BUG_IF(!DIGEST_EQ(c->digest, facts->content));
    if (c->loaded)
        return; /* known at first hand, and counted */
    c->n_bytes = facts->n_bytes;
    c->rank_max = facts->rank_max;
    c->n_sites = facts->n_sites;
    if (c->targets == NULL)
        c->targets = xstrdup(facts->targets);
}

void content_settle(struct adapter_store *s, struct content *c)
{
    if (c->items != NULL || c->users > 0 || c->load != NULL || c->fetching ||
        c->disk_bytes + c->part_bytes > 0)
        return;
    if (c->loaded)
        content_unload(s, c);
    if (c->perhaps_on_device)
        device_forget(s, &c->digest);
    hash_map_remove(&s->contents, c->digest.bytes, 32);
    free(c->targets);
    free(c);
}

void item_attach(struct adapter_store *s, struct item *i, struct content *c)
{
    BUG_IF(i->content != NULL);
    struct item **tail = &c->items;
    while (*tail != NULL)
        tail = &(*tail)->next;
    *tail = i;
    i->next = NULL;
    i->content = c;
    if (i->pinned)
        content_pin(s, c, 1);
}

void item_detach(struct adapter_store *s, struct item *i)
{
    struct content *c = i->content;
    if (c == NULL)
        return;
    struct item **link = &c->items;
    while (*link != i)
        link = &(*link)->next;
    *link = i->next;
    i->content = NULL;
    if (i->pinned)
        content_pin(s, c, -1);
    content_settle(s, c);
}

/* ---- waiters -----------------------------------------------------------------------------------
 */

void waiters_add(struct waiters *list, struct waiter *w)
{
    w->next = NULL;
    if (list->last != NULL)
        list->last->next = w;
    else
        list->first = w;
    list->last = w;
}

static struct waiter *waiters_take(struct waiters *list)
{
    struct waiter *w = list->first;
    if (w != NULL) {
        list->first = w->next;
        if (list->first == NULL)
            list->last = NULL;
    }
    return w;
}

void waiters_fail(struct waiters *from, const struct err *err, struct waiters *ready)
{
    for (struct waiter *w; (w = waiters_take(from)) != NULL;) {
        w->failed = true;
        w->err = *err;
        waiters_add(ready, w);
    }
}

void waiters_tell(struct adapter_store *s, struct waiters *ready)
{
    for (struct waiter *w; (w = waiters_take(ready)) != NULL;) {
        if (w->failed) {
            w->done(w->user, NULL, &w->err);
        } else {
            struct engine_residency at;
            if (w->tier == TIER_HOST &&
                engine_adapter_residency(s->engine, &w->out.content, &at, NULL) == 0 &&
                at.on_device)
                w->tier = TIER_DEVICE;
            atomic_fetch_add(&s->hits[w->tier], 1);
            metrics_observe(s->metrics, METRICS_ADAPTER_SECONDS + w->tier,
                            clock_elapsed_us(w->began, clock_monotonic_us()));
            w->done(w->user, &w->out, NULL);
        }
        free(w->model);
        free(w);
    }
}

/* The earliest registration of a content, if its manifest is known here. With the lock. */
static bool content_registered(const struct adapter_store *s, const struct content *c,
                               struct ledger_adapter *out)
{
    if (bytes32_is_zero(c->first.bytes)) /* the chain wasn't asked, or couldn't be */
        return ledger_adapter_by_content(s->ledger, out, c->digest, NULL) == 0;
    return ledger_adapter_by_id(s->ledger, out, c->first, NULL) == 0;
}

/* Whether the chain has to be asked whose a local adapter is: somebody registered its content. The
 * fetchers ask, and take no name that could not be a registry's. */
static bool first_is_wanted(const struct adapter_store *s, const struct item *i)
{
    const struct content *c = i->content;
    struct ledger_adapter known;
    struct wanted w;
    return i->dir != NULL && c != NULL && s->rpc != NULL && s->index != NULL &&
           bytes32_is_zero(c->first.bytes) &&
           (c->first_asked.us == 0 ||
            clock_elapsed_us(c->first_asked, clock_monotonic_us()) >= s->refresh_us) &&
           wanted_parse(&w, i->name, NULL) == 0 &&
           ledger_adapter_by_content(s->ledger, &known, c->digest, NULL) == 0;
}

/* ---- resolving ---------------------------------------------------------------------------------
 */

void item_use(struct adapter_store *s, struct item *i, struct waiter *w, struct waiters *ready)
{
    struct content *c = i->content;
    struct ledger_adapter known;
    memcpy(w->out.name, i->name, sizeof w->out.name);
    w->out.id = i->id;
    /* Registered or not, a local adapter is served; it earns for its earliest registration. */
    if (i->dir != NULL && c != NULL && content_registered(s, c, &known))
        w->out.id = known.id;
    if (c == NULL || !c->loaded) {
        load_join(s, i, w, ready);
        return;
    }
    content_take(s, c);
    w->out.content = c->digest;
    w->out.handle = c;
    if (w->tier < TIER_HOST)
        w->tier = TIER_HOST;
    waiters_add(ready, w);
}

static void begin(struct adapter_store *s, const char *model, uint64_t customer, uint64_t holder,
                  service_resolved_fn *done, void *user)
{
    struct waiter *w = xcalloc(1, sizeof *w);
    w->model = xstrdup(model);
    w->customer = customer;
    w->holder = holder;
    w->began = clock_monotonic_us();
    w->done = done;
    w->user = user;
    struct waiters ready = {0};
    pthread_mutex_lock(&s->lock);
    struct item *i = item_find(s, model, true);
    if (i != NULL && item_is_checked(s, i) && !first_is_wanted(s, i)) {
        item_use(s, i, w, &ready);
        if (i->dir == NULL)
            refresh_begin(s);
    } else {
        fetch_begin(s, w, &ready);
    }
    pthread_mutex_unlock(&s->lock);
    waiters_tell(s, &ready);
}

static void resolve(void *context, const char *model, uint64_t customer, uint64_t holder,
                    service_resolved_fn *done, void *user)
{
    begin(context, model, customer, holder, done, user);
}

static void give_up(void *context, void *user)
{
    struct adapter_store *s = context;
    struct waiters ready = {0};
    pthread_mutex_lock(&s->lock);
    fetch_leave(s, user, &ready);
    pthread_mutex_unlock(&s->lock);
    waiters_tell(s, &ready);
}

static void release(void *context, const struct resolved *r)
{
    struct adapter_store *s = context;
    pthread_mutex_lock(&s->lock);
    content_give_back(s, r->handle);
    pthread_mutex_unlock(&s->lock);
}

static int fits(void *context, const char *const *models, const struct resolved *adapters, size_t n,
                struct monotonic_us since, struct err *err)
{
    struct adapter_store *s = context;
    pthread_mutex_lock(&s->lock);
    int rc = contents_fit(s, models, adapters, n, since, err);
    pthread_mutex_unlock(&s->lock);
    return rc;
}

struct order {
    struct adapter_store *store;
    char *model;
    enum adapter_load how;
    service_resolved_fn *done;
    void *user;
};

static void order_done(void *user, const struct resolved *out, const struct err *why)
{
    struct order *o = user;
    struct err err = {0};
    if (out != NULL) {
        /* While it is held, so that it can't leave in between. */
        if (o->how == LOAD_PIN && adapter_store_pin(o->store, o->model, true, &err) != 0)
            why = &err;
        if (o->how == LOAD_WARM &&
            engine_adapter_warm(o->store->engine, &out->content, &err) != 0) {
            err_wrap(&err, "adapter %s", o->model);
            why = &err;
        }
        release(o->store, out);
    }
    o->done(o->user, why == NULL ? out : NULL, why);
    free(o->model);
    free(o);
}

void adapter_store_load(struct adapter_store *s, const char *model, enum adapter_load how,
                        service_resolved_fn *done, void *user)
{
    if (strcmp(model, s->base_name) == 0) {
        struct err err = {0};
        no_adapter(s, model, &err);
        done(user, NULL, &err);
        return;
    }
    struct order *o = xmalloc(sizeof *o);
    *o = (struct order){s, xstrdup(model), how, done, user};
    begin(s, model, 0, 0, order_done, o);
}

/* ---- fetches -----------------------------------------------------------------------------------
 */

static size_t n_waiting_of(const struct adapter_store *s, uint64_t customer)
{
    size_t n = 0, at = 0;
    for (const struct fetch *f; (f = hash_map_next(&s->fetches, &at)) != NULL;) {
        for (const struct waiter *w = f->waiters.first; w != NULL; w = w->next)
            n += w->fetches && w->customer == customer;
    }
    return n;
}

/* May one more of w's customer wait for what isn't here? As in admission.h: while it has fewer of
 * the places than are free. */
static bool may_wait(const struct adapter_store *s, const struct waiter *w)
{
    return s->n_fetch_waiters < s->max_fetch_waiters &&
           n_waiting_of(s, w->customer) < s->max_fetch_waiters - s->n_fetch_waiters;
}

void fetch_begin(struct adapter_store *s, struct waiter *w, struct waiters *ready)
{
    struct waiters one = {0};
    struct err err = {0};
    struct wanted wanted;
    struct fetch *f = hash_map_get(&s->fetches, w->model, strlen(w->model));
    const struct item *i = item_find(s, w->model, false);
    w->fetches = i == NULL || !item_is_here(i); /* else there is a question to wait for, no more */
    if (s->index == NULL || wanted_parse(&wanted, w->model, &err) != 0) {
        err_set(&err, ERR_NOT_FOUND, "there is no model \"%.100s\"", w->model);
    } else if (w->fetches && !may_wait(s, w)) {
        err_set(&err, ERR_BUSY, "too many requests wait for adapters to be fetched");
    } else if (f != NULL) {
        waiters_add(&f->waiters, w);
        if (f->brings)
            bring_begin(s);
    } else {
        f = xcalloc(1, sizeof *f);
        f->store = s;
        f->model = xstrdup(w->model);
        if (workers_submit(s->fetchers, fetch_run, s, f)) {
            hash_map_put(&s->fetches, f->model, strlen(f->model), f);
            waiters_add(&f->waiters, w);
        } else {
            err_set(&err, ERR_BUSY, "the node is shutting down");
            free(f->model);
            free(f);
        }
    }
    if (err.code == ERR_OK) {
        s->n_fetch_waiters += w->fetches;
        return;
    }
    waiters_add(&one, w);
    waiters_fail(&one, &err, ready);
}

/* By whom it is for; NULL: it isn't there. */
static struct waiter *waiters_remove(struct waiters *list, const void *user)
{
    struct waiters others = {0};
    struct waiter *found = NULL;
    for (struct waiter *w; (w = waiters_take(list)) != NULL;) {
        if (w->user == user)
            found = w;
        else
            waiters_add(&others, w);
    }
    *list = others;
    return found;
}

static void fetch_free(struct adapter_store *s, struct fetch *f)
{
    hash_map_remove(&s->fetches, f->model, strlen(f->model));
    free(f->model);
    free(f);
}

void fetch_leave(struct adapter_store *s, const void *user, struct waiters *ready)
{
    struct waiter *w = NULL;
    struct fetch *f;
    size_t at = 0;
    while (w == NULL && (f = hash_map_next(&s->fetches, &at)) != NULL)
        w = waiters_remove(&f->waiters, user);
    if (w == NULL)
        return; /* it has been told, or waits for files that are here */
    struct waiters one = {0};
    struct err err = {0};
    err_set(&err, ERR_CANCELLED, "nobody waits for adapter %s any more", w->model);
    s->n_fetch_waiters -= w->fetches;
    waiters_add(&one, w);
    waiters_fail(&one, &err, ready);
    if (f->waiters.first == NULL && bring_off(s, f))
        fetch_free(s, f);
}

void fetch_end(struct adapter_store *s, struct fetch *f, struct item *i, const struct err *err)
{
    struct waiters ready = {0};
    for (struct waiter *w; (w = waiters_take(&f->waiters)) != NULL;) {
        s->n_fetch_waiters -= w->fetches;
        if (f->downloaded)
            w->tier = TIER_REGISTRY;
        if (i != NULL) {
            item_use(s, i, w, &ready);
            continue;
        }
        struct waiters one = {0};
        waiters_add(&one, w);
        waiters_fail(&one, err, &ready);
    }
    fetch_free(s, f);
    pthread_mutex_unlock(&s->lock);
    waiters_tell(s, &ready);
}

/* ---- lists -------------------------------------------------------------------------------------
 */

/* What a list says of a model; copied under the lock, made into JSON without it: ten thousand
 * objects take a while, and requests want the lock. */
struct model_row {
    char name[SERVICE_NAME_BYTES];
    bool local, has_content;
    struct address creator;
    struct content_digest content;
    int rank; /* 0: not known */
};

static json_t *row_object(const struct adapter_store *s, const struct model_row *r)
{
    char owner[ADDRESS_TEXT_BYTES], hex[65];
    json_t *o = json_pack("{s:s, s:s, s:i, s:s, s:s}", "id", r->name, "object", "model", "created",
                          0, "owned_by", r->local ? "operator" : address_format(owner, r->creator),
                          "parent", s->base_name);
    if (r->has_content)
        json_object_set_new(o, "content_digest",
                            json_string(hex_encode(hex, r->content.bytes, 32)));
    if (r->rank > 0)
        json_object_set_new(o, "rank", json_integer(r->rank));
    return o;
}

/* With the lock. */
static struct model_row item_row(const struct item *i)
{
    struct model_row r = {.local = i->dir != NULL, .creator = i->creator};
    memcpy(r.name, i->name, sizeof r.name);
    r.has_content = i->content != NULL;
    if (r.has_content) {
        r.content = i->content->digest;
        r.rank = i->content->rank_max;
    }
    return r;
}

static struct model_row entry_row(const struct index_entry *e)
{
    struct model_row r = {.creator = e->e.creator};
    snprintf(r.name, sizeof r.name, "%s", e->e.name);
    return r;
}

struct listing {
    const struct adapter_store *s;
    struct model_row *rows;
    size_t n, cap, max;
};

static void listing_add(struct listing *l, const struct model_row *r)
{
    if (l->n >= l->max)
        return;
    if (l->n == l->cap) {
        l->cap = l->cap == 0 ? 64 : l->cap * 2;
        l->rows = xrealloc_array(l->rows, l->cap, sizeof *l->rows);
    }
    l->rows[l->n++] = *r;
}

static void list_entry(void *context, const struct index_entry *e)
{
    struct listing *l = context;
    struct model_row r = entry_row(e);
    if (hash_map_get(&l->s->local, r.name, strlen(r.name)) == NULL)
        listing_add(l, &r); /* else the local one is what the name means */
}

static int by_number(const void *a, const void *b)
{
    uint64_t i = (*(struct item *const *)a)->number, k = (*(struct item *const *)b)->number;
    return i < k ? -1 : i > k;
}

struct item **items_in_order(const struct adapter_store *s, size_t *n)
{
    struct item **items = xcalloc(s->local.n + 1, sizeof(struct item *));
    size_t at = 0;
    *n = 0;
    for (struct item *i; (i = hash_map_next(&s->local, &at)) != NULL;)
        items[(*n)++] = i;
    qsort(items, *n, sizeof *items, by_number);
    return items;
}

static void list(void *context, json_t *models, size_t max)
{
    struct adapter_store *s = context;
    size_t n, given = json_array_size(models);
    struct listing l = {.s = s, .max = max > given ? max - given : 0};
    pthread_mutex_lock(&s->lock);
    struct item **items = items_in_order(s, &n);
    for (size_t k = 0; k < n; k++) {
        struct model_row r = item_row(items[k]);
        listing_add(&l, &r);
    }
    free(items);
    if (s->index != NULL)
        adapter_index_each(s->index, list_entry, &l);
    pthread_mutex_unlock(&s->lock);
    for (size_t k = 0; k < l.n; k++)
        json_array_append_new(models, row_object(s, &l.rows[k]));
    free(l.rows);
}

static json_t *show(void *context, const char *model)
{
    struct adapter_store *s = context;
    struct wanted w;
    struct index_entry e;
    struct model_row r;
    bool found = true;
    pthread_mutex_lock(&s->lock);
    const struct item *i = item_find(s, model, false);
    if (i != NULL)
        r = item_row(i);
    else if (s->index != NULL && wanted_parse(&w, model, NULL) == 0 && w.by == BY_NAME &&
             adapter_index_named(s->index, w.name, w.version, &e))
        r = entry_row(&e);
    else
        found = false;
    pthread_mutex_unlock(&s->lock);
    return found ? row_object(s, &r) : NULL;
}

/* ---- create, start, stop, free -----------------------------------------------------------------
 */

/* A load is hashing, about 1.5 GB/s of a core, and a thread that reads ahead of it and needs a
 * third of another (engine/tensor_read.c); steps and sockets need cores, too. */
static int default_loaders(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN) / 4;
    return n < LOADERS_MIN ? LOADERS_MIN : n > LOADERS_MAX ? LOADERS_MAX : (int)n;
}

struct adapter_store *adapter_store_create(const struct adapter_store_options *options)
{
    struct adapter_store *s = xcalloc(1, sizeof *s);
    s->data_dir = xstrdup(options->data_dir);
    s->root = xasprintf("%s/adapters", options->data_dir);
    s->base_name = xstrdup(options->base_name);
    s->refresh_us = options->refresh_ms * 1000;
    s->cache_bytes = options->cache_bytes;
    s->max_royalty_per_1k = options->max_royalty_per_1k;
    s->n_loaders = options->n_loaders > 0 ? options->n_loaders : default_loaders();
    s->n_fetchers = options->n_fetchers > 0 ? options->n_fetchers : FETCHERS;
    s->max_fetch_waiters = options->max_waiting > 0 ? options->max_waiting : WAITING_MAX;
    s->rpc = options->rpc;
    s->deployment = options->deployment;
    s->metrics = options->metrics;
    if (options->n_registries > 0) {
        s->http = http_client_create();
        s->index = adapter_index_create(&(struct adapter_index_options){
            .urls = options->registries,
            .n_urls = options->n_registries,
            .refresh_us = s->refresh_us,
            .http = s->http,
            .cancel = &s->cancelled,
            .deployment = s->rpc != NULL ? s->deployment : NULL,
        });
    }
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->told_lock, NULL);
    pthread_cond_init(&s->landed, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->room, &attr);
    pthread_condattr_destroy(&attr);
    return s;
}

int adapter_store_start(struct adapter_store *s, struct engine *engine, struct ledger *ledger,
                        struct err *err)
{
    s->engine = engine;
    s->ledger = ledger;
    struct engine_stats stats;
    engine_stats(engine, &stats);
    s->host_total = stats.adapter_host_bytes_total;
    disk_scan(s);
    if (workers_create(&s->loaders, s->n_loaders, QUEUE_MAX, err) != 0 ||
        workers_create(&s->ahead, 1, QUEUE_MAX, err) != 0 ||
        workers_create(&s->keeper, 1, QUEUE_MAX, err) != 0)
        return -1;
    if (s->index == NULL)
        return 0;
    if (workers_create(&s->fetchers, s->n_fetchers, QUEUE_MAX, err) != 0)
        return -1;
    s->n_bringers = BRINGERS_EACH * s->n_fetchers;
    s->bringing = xcalloc((size_t)s->n_bringers, sizeof *s->bringing);
    return workers_create(&s->bringers, s->n_bringers, QUEUE_MAX, err);
}

void adapter_store_cancel(struct adapter_store *s)
{
    atomic_store(&s->cancelled, true);
    pthread_mutex_lock(&s->lock);
    pthread_cond_broadcast(&s->room);
    pthread_cond_broadcast(&s->landed);
    pthread_mutex_unlock(&s->lock);
}

void adapter_store_stop(struct adapter_store *s)
{
    if (s == NULL)
        return;
    adapter_store_cancel(s);
    local_examiner_stop(s);
    workers_stop(s->fetchers); /* what they leave may be the bringers' */
    workers_stop(s->bringers); /* their ends may be loads */
    workers_stop(s->loaders);
    workers_stop(s->ahead);
    workers_stop(s->keeper);
    if (s->engine != NULL)
        local_remember(s);
}

void adapter_store_free(struct adapter_store *s)
{
    if (s == NULL)
        return;
    BUG_IF(s->fetches.n > 0 || s->to_bring != NULL || s->n_bringing > 0);
    workers_free(s->fetchers);
    workers_free(s->bringers);
    workers_free(s->loaders);
    workers_free(s->ahead);
    workers_free(s->keeper);
    size_t at = 0;
    for (struct item *i; (i = hash_map_next(&s->local, &at)) != NULL;) {
        free(i->dir);
        free(i);
    }
    for (size_t i = 0; i < s->n_registry_items; i++)
        free(s->registry_items[i]);
    at = 0;
    for (struct content *c; (c = hash_map_next(&s->contents, &at)) != NULL;) {
        BUG_IF(c->users > 0 || c->load != NULL);
        free(c->targets);
        free(c);
    }
    hash_map_release(&s->contents);
    hash_map_release(&s->local);
    hash_map_release(&s->by_manifest);
    hash_map_release(&s->by_id);
    hash_map_release(&s->fetches);
    free(s->registry_items);
    free(s->idle);
    free(s->bringing);
    adapter_index_free(s->index);
    http_client_free(s->http);
    pthread_cond_destroy(&s->room);
    pthread_cond_destroy(&s->landed);
    pthread_mutex_destroy(&s->told_lock);
    pthread_mutex_destroy(&s->lock);
    free(s->base_name);
    free(s->data_dir);
    free(s->root);
    free(s);
}

struct service_resolver adapter_store_resolver(struct adapter_store *s)
{
    return (struct service_resolver){resolve, give_up, release, fits, list, show, s};
}

void adapter_store_stats(struct adapter_store *s, struct adapter_store_stats *out)
{
    struct engine_stats e;
    engine_stats(s->engine, &e);
    size_t n_listed = s->index != NULL ? adapter_index_n_adapters(s->index) : 0;
    *out = (struct adapter_store_stats){0};
    pthread_mutex_lock(&s->lock);
    size_t at = 0;
    for (const struct content *c; (c = hash_map_next(&s->contents, &at)) != NULL;) {
        bool local = content_local(c) != NULL;
        out->n_adapters[TIER_HOST] += c->loaded;
        out->n_adapters[TIER_DISK] += local || c->disk_bytes > 0;
        out->bytes[TIER_DISK] += c->disk_bytes + (local ? c->n_bytes : 0);
    }
    for (int t = 0; t < N_TIERS; t++)
        out->hits[t] = atomic_load(&s->hits[t]);
    out->n_adapters[TIER_DEVICE] = (size_t)e.n_adapters_resident;
    out->n_adapters[TIER_REGISTRY] = n_listed;
    out->bytes[TIER_DEVICE] = e.adapter_bytes_used;
    out->bytes[TIER_HOST] = e.adapter_host_bytes_used;
    out->evictions[TIER_DEVICE] = e.n_adapter_evictions;
    out->evictions[TIER_HOST] = s->n_evicted_host;
    out->evictions[TIER_DISK] = s->n_evicted_disk;
    out->n_loads = s->n_loads;
    out->n_fetches = s->n_fetches;
    out->n_failed = s->n_failed;
    out->host_bytes_total = s->host_total;
    out->n_local = s->local.n;
    out->n_pinned = s->n_pinned;
    out->n_in_use = s->n_in_use;
    out->n_waiting = s->n_fetch_waiters;
    pthread_mutex_unlock(&s->lock);
}
