/* adapter_index: see adapter_index.h.
 *
 *   entries     all registries' indexes, each oldest first
 *   by_name     its adapters, sorted by name, the oldest of a name first
 *   places      manifest hash -> entry, the first registry that has it
 *   datanets    id -> entry
 *   learnt      manifest hash -> what the manifest said; outlives a refresh, as a manifest never
 *               changes under its hash; found by content and by id, too
 *
 * All under one lock, which is not held while a registry is asked. */
#include "node/adapter_index.h"

#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hash_map.h"
#include "node/base/log.h"
#include "node/deployment.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { READERS_MAX = 2 };

struct learnt {
    struct sha256_digest manifest;
    struct content_digest content;
    struct adapter_id id;
    bool usable;
};

struct datanet_place {
    struct datanet_id id;
    size_t entry;
};

/* One generation of the index; replaced as a whole. */
struct table {
    struct index_entry *entries;
    size_t n;
    uint32_t *by_name; /* [n_by_name] into entries */
    size_t n_by_name;
    struct hash_map places; /* of struct index_entry */
    struct datanet_place *datanet_places;
    struct hash_map datanets; /* of struct datanet_place */
};

struct adapter_index {
    char **urls;
    size_t n_urls;
    uint64_t refresh_us;
    struct http_client *http;
    const _Atomic bool *cancel;
    const struct deployment *deployment;

    pthread_mutex_t lock;
    pthread_cond_t refreshed_now; /* a refresh has ended */
    struct table t;
    bool refreshing, has_index;
    struct monotonic_us refreshed;
    struct hash_map learnt, by_content, by_id; /* of struct learnt; the first owns */
    int n_readers;
};

size_t adapter_index_n_registries(const struct adapter_index *ix)
{
    return ix->n_urls;
}

struct registry_client adapter_index_client(struct adapter_index *ix, size_t registry)
{
    return (struct registry_client){ix->http, ix->urls[registry], ix->cancel};
}

/* ---- building a table --------------------------------------------------------------------------
 */

struct gathered {
    struct index_entry *items;
    size_t n, cap;
    size_t registry;
};

static int gather(void *context, const struct registry_entry *e, struct err *err)
{
    struct gathered *g = context;
    if (g->n == INDEX_ENTRIES_MAX)
        return err_set(err, ERR_TOO_LARGE, "a registry's index has more than %d entries",
                       INDEX_ENTRIES_MAX);
    if (g->n == g->cap) {
        g->cap = g->cap == 0 ? 64 : g->cap * 2;
        g->items = xrealloc_array(g->items, g->cap, sizeof *g->items);
    }
    g->items[g->n++] = (struct index_entry){*e, g->registry};
    return 0;
}

/* What this registry listed when it last answered. The table is this thread's while it refreshes.
 */
static void gather_again(const struct adapter_index *ix, struct gathered *g)
{
    for (size_t i = 0; i < ix->t.n; i++) {
        if (ix->t.entries[i].registry == g->registry)
            gather(g, &ix->t.entries[i].e, NULL);
    }
}

/* Asks all registries; of one that fails, which is logged, what it listed before counts on: else
 * its names would mean what others list under them. false: none answered, and *err says why the
 * last one didn't. */
static bool ask_registries(struct adapter_index *ix, struct gathered *g, struct err *err)
{
    bool any = false;
    for (size_t i = 0; i < ix->n_urls; i++) {
        struct registry_client c = adapter_index_client(ix, i);
        size_t begin = g->n;
        g->registry = i;
        if (registry_walk(&c, gather, g, err) == 0) {
            any = true;
            /* The walk is newest first; the table is oldest first. */
            for (size_t a = begin, b = g->n; a + 1 < b; a++, b--) {
                struct index_entry swap = g->items[a];
                g->items[a] = g->items[b - 1];
                g->items[b - 1] = swap;
            }
        } else {
            g->n = begin;
            gather_again(ix, g);
            log_warn("registry", "%s", err->message);
        }
    }
    return any;
}

static int name_order(const void *a, const void *b, void *entries)
{
    uint32_t i = *(const uint32_t *)a, k = *(const uint32_t *)b;
    const struct index_entry *e = entries;
    int order = strcmp(e[i].e.name, e[k].e.name);
    return order != 0 ? order : i < k ? -1 : i > k;
}

static void table_release(struct table *t)
{
    free(t->entries);
    free(t->by_name);
    hash_map_release(&t->places);
    free(t->datanet_places);
    hash_map_release(&t->datanets);
    *t = (struct table){0};
}

/* Takes the entries. */
static struct table table_build(const struct adapter_index *ix, struct gathered *g)
{
    struct table t = {.entries = g->items, .n = g->n};
    t.by_name = xcalloc(g->n + 1, sizeof *t.by_name);
    t.datanet_places = xcalloc(g->n + 1, sizeof *t.datanet_places);
    size_t n_datanets = 0;
    for (size_t i = 0; i < t.n; i++) {
        struct index_entry *e = &t.entries[i];
        if (hash_map_get(&t.places, e->e.manifest.bytes, 32) == NULL)
            hash_map_put(&t.places, e->e.manifest.bytes, 32, e);
        if (!e->e.is_datanet) {
            t.by_name[t.n_by_name++] = (uint32_t)i;
        } else if (ix->deployment != NULL) {
            struct datanet_place *p = &t.datanet_places[n_datanets++];
            *p = (struct datanet_place){manifest_datanet_id(ix->deployment->chain_id,
                                                            ix->deployment->adapter_registry,
                                                            e->e.creator, e->e.manifest),
                                        i};
            if (hash_map_get(&t.datanets, p->id.bytes, 32) == NULL)
                hash_map_put(&t.datanets, p->id.bytes, 32, p);
        }
    }
    if (t.n_by_name > 1)
        qsort_r(t.by_name, t.n_by_name, sizeof *t.by_name, name_order, t.entries);
    return t;
}

/* What contents and ids mean, from what was learnt: the newest entry of each. With the lock. */
static void index_learnt(struct adapter_index *ix)
{
    hash_map_release(&ix->by_content);
    hash_map_release(&ix->by_id);
    for (size_t k = ix->t.n; k-- > 0;) {
        struct learnt *l = hash_map_get(&ix->learnt, ix->t.entries[k].e.manifest.bytes, 32);
        if (l == NULL || !l->usable)
            continue;
        if (hash_map_get(&ix->by_content, l->content.bytes, 32) == NULL)
            hash_map_put(&ix->by_content, l->content.bytes, 32, l);
        if (!bytes32_is_zero(l->id.bytes) && hash_map_get(&ix->by_id, l->id.bytes, 32) == NULL)
            hash_map_put(&ix->by_id, l->id.bytes, 32, l);
    }
}

/* What was learnt of manifests that no registry lists any more is forgotten: the memory stays
 * bounded by the index. With the lock. */
static void forget_unlisted(struct adapter_index *ix)
{
    struct learnt **gone = xcalloc(ix->learnt.n + 1, sizeof(struct learnt *));
    size_t n = 0, at = 0;
    for (struct learnt *l; (l = hash_map_next(&ix->learnt, &at)) != NULL;) {
        if (hash_map_get(&ix->t.places, l->manifest.bytes, 32) == NULL)
            gone[n++] = l;
    }
    for (size_t i = 0; i < n; i++)
        hash_map_remove(&ix->learnt, gone[i]->manifest.bytes, 32);
    if (n > 0)
        index_learnt(ix);
    for (size_t i = 0; i < n; i++)
        free(gone[i]);
    free(gone);
}

/* With the lock. */
static bool is_younger(const struct adapter_index *ix, uint64_t age_us)
{
    return ix->has_index && clock_elapsed_us(ix->refreshed, clock_monotonic_us()) < age_us;
}

int adapter_index_refresh(struct adapter_index *ix, uint64_t max_age_us, struct err *err)
{
    pthread_mutex_lock(&ix->lock);
    while (ix->refreshing && !is_younger(ix, max_age_us))
        pthread_cond_wait(&ix->refreshed_now, &ix->lock);
    if (is_younger(ix, max_age_us)) {
        pthread_mutex_unlock(&ix->lock);
        return 0;
    }
    ix->refreshing = true;
    pthread_mutex_unlock(&ix->lock);
    struct gathered g = {0};
    struct err problem = {0};
    err_set(&problem, ERR_NOT_FOUND, "none is configured");
    bool any = ask_registries(ix, &g, &problem);
    struct table fresh = any ? table_build(ix, &g) : (struct table){0}, old = {0};
    if (!any)
        free(g.items);
    pthread_mutex_lock(&ix->lock);
    ix->refreshing = false;
    if (any) {
        old = ix->t;
        ix->t = fresh;
        ix->has_index = true;
        forget_unlisted(ix);
    }
    ix->refreshed = clock_monotonic_us();
    bool has_index = ix->has_index;
    pthread_cond_broadcast(&ix->refreshed_now);
    pthread_mutex_unlock(&ix->lock);
    table_release(&old);
    if (has_index)
        return 0;
    if (err != NULL)
        *err = problem;
    return err_wrap(err, "no registry answers");
}

uint64_t adapter_index_age_us(struct adapter_index *ix)
{
    pthread_mutex_lock(&ix->lock);
    uint64_t age = clock_elapsed_us(ix->refreshed, clock_monotonic_us());
    pthread_mutex_unlock(&ix->lock);
    return age;
}

static bool check_younger(struct adapter_index *ix, uint64_t age_us)
{
    pthread_mutex_lock(&ix->lock);
    bool younger = is_younger(ix, age_us);
    pthread_mutex_unlock(&ix->lock);
    return younger;
}

bool adapter_index_is_fresh(struct adapter_index *ix)
{
    return check_younger(ix, ix->refresh_us);
}

bool adapter_index_counts(struct adapter_index *ix)
{
    return check_younger(ix, 2 * ix->refresh_us);
}

/* ---- names -------------------------------------------------------------------------------------
 */

/* The entry that a name means, of those that have it: by_name from *k on, to the name's end, where
 * *k is left. NULL: none. With the lock. */
static const struct index_entry *entry_meant(const struct table *t, size_t *k, uint64_t version)
{
    const struct index_entry *owner = &t->entries[t->by_name[*k]], *best = NULL;
    for (; *k < t->n_by_name; (*k)++) {
        const struct index_entry *e = &t->entries[t->by_name[*k]];
        if (strcmp(e->e.name, owner->e.name) != 0)
            break;
        if (!address_eq(owner->e.creator, e->e.creator) ||
            (version != 0 && e->e.version != version))
            continue;
        if (best == NULL || e->e.version > best->e.version)
            best = e;
    }
    return best;
}

bool adapter_index_named(struct adapter_index *ix, const char *name, uint64_t version,
                         struct index_entry *out)
{
    pthread_mutex_lock(&ix->lock);
    const struct table *t = &ix->t;
    const struct index_entry *e = NULL;
    size_t begin = 0, end = t->n_by_name;
    while (begin < end) {
        size_t middle = begin + (end - begin) / 2;
        if (strcmp(t->entries[t->by_name[middle]].e.name, name) < 0)
            begin = middle + 1;
        else
            end = middle;
    }
    if (begin < t->n_by_name && strcmp(t->entries[t->by_name[begin]].e.name, name) == 0)
        e = entry_meant(t, &begin, version);
    if (e != NULL)
        *out = *e;
    pthread_mutex_unlock(&ix->lock);
    return e != NULL;
}

void adapter_index_each(struct adapter_index *ix,
                        void (*each)(void *context, const struct index_entry *entry), void *context)
{
    pthread_mutex_lock(&ix->lock);
    for (size_t k = 0; k < ix->t.n_by_name;)
        each(context, entry_meant(&ix->t, &k, 0));
    pthread_mutex_unlock(&ix->lock);
}

size_t adapter_index_n_adapters(struct adapter_index *ix)
{
    pthread_mutex_lock(&ix->lock);
    size_t n = ix->t.n_by_name;
    pthread_mutex_unlock(&ix->lock);
    return n;
}

bool adapter_index_datanet(struct adapter_index *ix, struct datanet_id id, struct index_entry *out)
{
    pthread_mutex_lock(&ix->lock);
    const struct datanet_place *p = hash_map_get(&ix->t.datanets, id.bytes, 32);
    if (p != NULL)
        *out = ix->t.entries[p->entry];
    pthread_mutex_unlock(&ix->lock);
    return p != NULL;
}

/* ---- digests -----------------------------------------------------------------------------------
 */

/* With the lock. The newest with a content is read first, and stays what the content means. */
static void learn(struct adapter_index *ix, const struct index_entry *e, bool usable,
                  const struct content_digest *content, const struct adapter_id *id)
{
    if (hash_map_get(&ix->learnt, e->e.manifest.bytes, 32) != NULL)
        return; /* another reader was faster */
    struct learnt *l = xcalloc(1, sizeof *l);
    l->manifest = e->e.manifest;
    l->usable = usable;
    hash_map_put(&ix->learnt, l->manifest.bytes, 32, l);
    if (!usable)
        return;
    l->content = *content;
    l->id = *id;
    if (hash_map_get(&ix->by_content, l->content.bytes, 32) == NULL)
        hash_map_put(&ix->by_content, l->content.bytes, 32, l);
    if (!bytes32_is_zero(l->id.bytes) && hash_map_get(&ix->by_id, l->id.bytes, 32) == NULL)
        hash_map_put(&ix->by_id, l->id.bytes, 32, l);
}

/* With the lock. */
static bool find_learnt(struct adapter_index *ix, bool by_id, const uint8_t digest[32],
                        struct index_entry *out)
{
    const struct learnt *l = hash_map_get(by_id ? &ix->by_id : &ix->by_content, digest, 32);
    const struct index_entry *e = l == NULL ? NULL
                                            : hash_map_get(&ix->t.places, l->manifest.bytes, 32);
    if (e != NULL)
        *out = *e;
    return e != NULL;
}

/* Manifests that nobody has read yet, newest first. With the lock, let go of while one is read. */
static bool read_on(struct adapter_index *ix, bool by_id, const uint8_t digest[32],
                    index_look_fn *look, void *context, struct index_entry *out)
{
    size_t looked = 0;
    for (size_t k = ix->t.n; k-- > 0 && looked < INDEX_LOOK_AHEAD;) {
        if (k >= ix->t.n) /* the index changed while the lock was open */
            continue;
        struct index_entry e = ix->t.entries[k];
        if (e.e.is_datanet || hash_map_get(&ix->learnt, e.e.manifest.bytes, 32) != NULL)
            continue;
        looked++;
        pthread_mutex_unlock(&ix->lock);
        struct content_digest content = {0};
        struct adapter_id id = {0};
        enum index_look saw = look(context, &e, &content, &id);
        pthread_mutex_lock(&ix->lock);
        if (saw != INDEX_LATER)
            learn(ix, &e, saw == INDEX_KNOWN, &content, &id);
        if (saw == INDEX_KNOWN && find_learnt(ix, by_id, digest, out))
            return true;
        if (ix->cancel != NULL && atomic_load(ix->cancel))
            return false;
    }
    return false;
}

int adapter_index_find(struct adapter_index *ix, bool by_id, const uint8_t digest[32],
                       index_look_fn *look, void *context, struct index_entry *out, struct err *err)
{
    pthread_mutex_lock(&ix->lock);
    bool found = find_learnt(ix, by_id, digest, out), busy = false;
    if (!found) {
        busy = ix->n_readers == READERS_MAX;
        if (!busy) {
            ix->n_readers++;
            found = read_on(ix, by_id, digest, look, context, out);
            ix->n_readers--;
        }
    }
    pthread_mutex_unlock(&ix->lock);
    if (found)
        return 0;
    return busy ? err_set(err, ERR_BUSY, "other requests read the registries' manifests already")
                : err_set(err, ERR_NOT_FOUND, "no manifest that was read has this digest");
}

/* ---- create, free ------------------------------------------------------------------------------
 */

struct adapter_index *adapter_index_create(const struct adapter_index_options *options)
{
    struct adapter_index *ix = xcalloc(1, sizeof *ix);
    ix->urls = xcalloc(options->n_urls + 1, sizeof *ix->urls);
    for (size_t i = 0; i < options->n_urls; i++) {
        ix->urls[i] = xstrdup(options->urls[i]);
        size_t n = strlen(ix->urls[i]);
        while (n > 0 && ix->urls[i][n - 1] == '/')
            ix->urls[i][--n] = '\0';
    }
    ix->n_urls = options->n_urls;
    ix->refresh_us = options->refresh_us;
    ix->http = options->http;
    ix->cancel = options->cancel;
    ix->deployment = options->deployment;
    pthread_mutex_init(&ix->lock, NULL);
    pthread_cond_init(&ix->refreshed_now, NULL);
    return ix;
}

void adapter_index_free(struct adapter_index *ix)
{
    if (ix == NULL)
        return;
    table_release(&ix->t);
    size_t at = 0;
    for (struct learnt *l; (l = hash_map_next(&ix->learnt, &at)) != NULL;)
        free(l);
    hash_map_release(&ix->learnt);
    hash_map_release(&ix->by_content);
    hash_map_release(&ix->by_id);
    for (size_t i = 0; i < ix->n_urls; i++)
        free(ix->urls[i]);
    free(ix->urls);
    pthread_cond_destroy(&ix->refreshed_now);
    pthread_mutex_destroy(&ix->lock);
    free(ix);
}
