/* adapter_store: see adapter_store.h.
 *
 * Three tables under one lock, none of which is held while anything is fetched:
 *
 *   entries     the registries' index as of its last refresh, oldest first; a hint, never believed;
 *               by_name has its adapters sorted by name, the oldest of a name first
 *   items       adapters whose manifest was checked; loaded ones hold one reference in the engine
 *   in flight   manifest hashes that some thread is fetching; others who want one wait for it
 *
 * A name means the first creator who used it in the index, and of that creator's adapters the
 * highest version: who comes later can't take a name over. A digest or an id means exactly one
 * adapter.
 *
 * An item is good for refresh_ms; then its registration is looked up again, so that retiring an
 * adapter takes effect without a restart. A chain that doesn't answer leaves a checked item in use
 * and lets no new one in. */
#include "node/adapter_store.h"

#include "attribution/attribution.h"
#include "attribution/manifest.h"
#include "chain/contracts.h"
#include "chain/keccak.h"
#include "engine/engine.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/http_client.h"
#include "node/base/log.h"
#include "node/deployment.h"
#include "node/registry.h"

#include <dirent.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ENTRIES_MAX = 200000, IN_FLIGHT_MAX = 64, LOOK_AHEAD_MANIFESTS = 2000 };
enum { UNKNOWN_AGAIN_US = 500000 };

struct entry {
    struct registry_entry e;
    size_t registry; /* index into urls */
};

struct item {
    struct item *next;
    char name[MANIFEST_NAME_BYTES];
    uint64_t version;
    struct address creator;
    struct sha256_digest manifest; /* zero: known from the ledger only */
    struct content_digest content;
    struct adapter_id id; /* zero without a chain */
    struct monotonic_us checked, used;
    int users;
    bool loaded;
};

struct adapter_store {
    char *root; /* DATA/adapters */
    char **urls;
    size_t n_urls;
    uint64_t refresh_us, cache_bytes;
    struct engine *engine;
    struct ledger *ledger;
    struct rpc *rpc;
    const struct deployment *deployment;
    struct http_client *http;
    _Atomic bool cancelled;

    pthread_mutex_t lock;
    pthread_cond_t landed; /* something left in_flight, or the index's refresh ended */
    struct entry *entries;
    uint32_t *by_name; /* [n_by_name] into entries */
    size_t n_entries, n_by_name;
    bool refreshing, has_index;
    struct monotonic_us refreshed;
    struct item *items;
    struct sha256_digest in_flight[IN_FLIGHT_MAX];
    size_t n_in_flight;
};

/* ---- what a request asks for
 * -------------------------------------------------------------------------- */

struct wanted {
    enum { BY_NAME, BY_CONTENT, BY_ID } by;
    const char *text; /* as the client wrote it */
    char name[MANIFEST_NAME_BYTES];
    uint64_t version; /* 0: the highest */
    uint8_t digest[32];
};

static int parse_wanted(struct wanted *w, const char *model, struct err *err)
{
    *w = (struct wanted){.by = BY_NAME, .text = model};
    if (hex_decode(w->digest, 32, model) == 0) {
        w->by = model[1] == 'x' ? BY_ID : BY_CONTENT;
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

static bool item_matches(const struct item *i, const struct wanted *w)
{
    switch (w->by) {
    case BY_CONTENT:
        return memcmp(i->content.bytes, w->digest, 32) == 0;
    case BY_ID:
        return memcmp(i->id.bytes, w->digest, 32) == 0;
    case BY_NAME:
        return strcmp(i->name, w->name) == 0 && (w->version == 0 || i->version == w->version);
    }
    BUG("unknown kind of name");
}

static bool is_fresh(const struct adapter_store *s, struct monotonic_us since)
{
    return clock_elapsed_us(since, clock_monotonic_us()) < s->refresh_us;
}

/* ---- the index
 * ----------------------------------------------------------------------------------------- */

struct gathered {
    struct entry *items;
    size_t n;
    size_t registry;
};

static int gather(void *context, const struct registry_entry *e, struct err *err)
{
    struct gathered *g = context;
    if (g->n == ENTRIES_MAX)
        return err_set(err, ERR_TOO_LARGE, "a registry's index has more than %d entries",
                       ENTRIES_MAX);
    if ((g->n & (g->n - 1)) == 0)
        g->items = xrealloc_array(g->items, g->n == 0 ? 1 : 2 * g->n, sizeof *g->items);
    g->items[g->n++] = (struct entry){*e, g->registry};
    return 0;
}

static struct registry_client client_of(struct adapter_store *s, size_t registry)
{
    return (struct registry_client){s->http, s->urls[registry], &s->cancelled};
}

/* Fetches all registries' indexes; an unreachable one leaves its part empty and is logged. Without
 * the lock. false: none answered. */
static bool fetch_index(struct adapter_store *s, struct gathered *g, struct err *err)
{
    bool any = false;
    for (size_t i = 0; i < s->n_urls; i++) {
        struct registry_client c = client_of(s, i);
        size_t begin = g->n;
        g->registry = i;
        if (registry_walk(&c, gather, g, err) == 0) {
            any = true;
            /* The walk is newest first; the table is oldest first. */
            for (size_t a = begin, b = g->n; a + 1 < b; a++, b--) {
                struct entry swap = g->items[a];
                g->items[a] = g->items[b - 1];
                g->items[b - 1] = swap;
            }
        } else {
            g->n = begin;
            log_warn("registry", "%s", err->message);
        }
    }
    return any;
}

static int name_order(const void *a, const void *b, void *entries)
{
    uint32_t i = *(const uint32_t *)a, k = *(const uint32_t *)b;
    const struct entry *e = entries;
    int order = strcmp(e[i].e.name, e[k].e.name);
    return order != 0 ? order : i < k ? -1 : i > k;
}

static uint32_t *sort_names(const struct gathered *g, size_t *n)
{
    uint32_t *order = xcalloc(g->n + 1, sizeof *order);
    *n = 0;
    for (size_t i = 0; i < g->n; i++) {
        if (!g->items[i].e.is_datanet)
            order[(*n)++] = (uint32_t)i;
    }
    qsort_r(order, *n, sizeof *order, name_order, g->items);
    return order;
}

/* Makes the index no older than max_age_us, or waits for the thread that is at it. With the lock,
 * which is let go of meanwhile. A failure matters only when there is no index at all. */
static int refresh_index(struct adapter_store *s, uint64_t max_age_us, struct err *err)
{
    while (s->refreshing)
        pthread_cond_wait(&s->landed, &s->lock);
    if (s->has_index && clock_elapsed_us(s->refreshed, clock_monotonic_us()) < max_age_us)
        return 0;
    s->refreshing = true;
    pthread_mutex_unlock(&s->lock);
    struct gathered g = {0};
    struct err problem = {0};
    err_set(&problem, ERR_NOT_FOUND, "none is configured");
    bool any = fetch_index(s, &g, &problem);
    size_t n_by_name;
    uint32_t *by_name = sort_names(&g, &n_by_name);
    pthread_mutex_lock(&s->lock);
    s->refreshing = false;
    if (any) {
        free(s->entries);
        free(s->by_name);
        s->entries = g.items;
        s->n_entries = g.n;
        s->by_name = by_name;
        s->n_by_name = n_by_name;
        s->has_index = true;
    } else {
        free(g.items);
        free(by_name);
    }
    s->refreshed = clock_monotonic_us();
    pthread_cond_broadcast(&s->landed);
    if (s->has_index)
        return 0;
    if (err != NULL)
        *err = problem;
    return err_wrap(err, "no registry answers");
}

/* The entry that a name means, of those that have it: by_name from *k on, to the name's end, where
 * *k is left. version 0: the highest. NULL: none. With the lock. */
static const struct entry *entry_meant(const struct adapter_store *s, size_t *k, uint64_t version)
{
    const struct entry *owner = &s->entries[s->by_name[*k]], *best = NULL;
    for (; *k < s->n_by_name; (*k)++) {
        const struct entry *e = &s->entries[s->by_name[*k]];
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

/* With the lock. */
static const struct entry *entry_named(const struct adapter_store *s, const struct wanted *w)
{
    size_t begin = 0, end = s->n_by_name;
    while (begin < end) {
        size_t middle = begin + (end - begin) / 2;
        if (strcmp(s->entries[s->by_name[middle]].e.name, w->name) < 0)
            begin = middle + 1;
        else
            end = middle;
    }
    if (begin == s->n_by_name || strcmp(s->entries[s->by_name[begin]].e.name, w->name) != 0)
        return NULL;
    return entry_meant(s, &begin, w->version);
}

/* ---- one adapter's way in
 * ------------------------------------------------------------------------------- */

/* What was learnt about an adapter on the way; memory in the arena. */
struct found {
    struct arena arena;
    struct buf text;
    struct manifest_adapter m;
    struct sha256_digest hash;
    struct registry_signature signature;
    struct adapter_id id;
};

static void found_release(struct found *f)
{
    buf_release(&f->text);
    arena_release(&f->arena);
}

static int read_manifest(struct adapter_store *s, struct found *f, const struct entry *e,
                         struct err *err)
{
    struct registry_client c = client_of(s, e->registry);
    if (registry_manifest(&c, e->e.manifest, &f->text, &f->signature, err) != 0)
        return -1;
    if (manifest_adapter_parse(&f->m, &f->hash, &f->arena, f->text.data, f->text.len, err) != 0) {
        if (err != NULL)
            err->code = ERR_CORRUPT;
        return err_wrap(err, "adapter %s: its manifest", e->e.name);
    }
    if (registry_check_adapter(&f->m, f->hash, &f->signature, err) != 0)
        return -1;
    const struct engine_model *model = engine_model(s->engine);
    if (!DIGEST_EQ(f->m.base_model, model->id))
        return err_set(err, ERR_NOT_FOUND,
                       "adapter %s is for another base model (%s), this node serves %s", f->m.name,
                       f->m.base_model_name, model->name);
    return 0;
}

static struct contract_at registry_contract(const struct adapter_store *s)
{
    return (struct contract_at){.rpc = s->rpc, .address = s->deployment->adapter_registry};
}

/* Known on chain, not retired; with m the splits are those that were registered, too. */
static int check_registration(struct adapter_store *s, const char *name, struct adapter_id id,
                              const struct manifest_adapter *m, struct err *err)
{
    struct contract_at where = registry_contract(s);
    struct registry_adapter state;
    char hex[67];
    if (view_registry_adapter(&where, &state, id, err) != 0)
        return err_wrap(err, "adapter %s: its registration", name);
    if (!state.registered)
        return err_set(err, ERR_NOT_FOUND, "adapter %s (%s) is not registered on chain %" PRIu64,
                       name, hex_encode_0x(hex, id.bytes, 32), s->deployment->chain_id);
    if (state.retired) {
        ledger_adapter_retire(s->ledger, id, NULL);
        return err_set(err, ERR_NOT_FOUND, "adapter %s (%s) was retired by its creator", name,
                       hex_encode_0x(hex, id.bytes, 32));
    }
    if (m == NULL)
        return 0;
    struct payee_share *payees = xcalloc(m->n_splits, sizeof *payees);
    struct datanet_share *datanets = xcalloc(m->n_datanets, sizeof *datanets);
    for (uint32_t i = 0; i < m->n_splits; i++)
        payees[i] = (struct payee_share){m->splits[i].payee, m->splits[i].bps};
    for (uint32_t i = 0; i < m->n_datanets; i++) {
        memcpy(datanets[i].datanet, m->datanets[i].id.bytes, 32);
        datanets[i].bps = m->datanets[i].bps;
    }
    struct splits splits = {payees, m->n_splits, datanets, m->n_datanets};
    struct buf encoded = BUF_INIT;
    splits_encode(&encoded, &splits);
    struct keccak_digest hash = keccak256(encoded.data, encoded.len);
    buf_release(&encoded);
    free(payees);
    free(datanets);
    if (memcmp(hash.bytes, state.splits_hash, 32) != 0)
        return err_set(err, ERR_CORRUPT,
                       "adapter %s (%s) is registered with other splits than its manifest's", name,
                       hex_encode_0x(hex, id.bytes, 32));
    return 0;
}

static char *dir_of(const struct adapter_store *s, struct content_digest content)
{
    char hex[65];
    return xasprintf("%s/%s", s->root, hex_encode(hex, content.bytes, 32));
}

static bool on_disk(const struct adapter_store *s, struct content_digest content)
{
    char *dir = dir_of(s, content);
    struct content_digest got;
    bool there = access(dir, F_OK) == 0 && adapter_content_digest(dir, &got, NULL) == 0 &&
                 DIGEST_EQ(got, content);
    free(dir);
    return there;
}

/* All files into DIR.part, which becomes DIR when the whole has the content digest. */
static int fetch_files(struct adapter_store *s, const struct found *f, size_t registry,
                       struct err *err)
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < f->m.n_files; i++) {
        if (strchr(f->m.files[i].path, '/') != NULL)
            return err_set(err, ERR_UNSUPPORTED, "adapter %s: file %s lies in a folder", f->m.name,
                           f->m.files[i].path);
        if (__builtin_add_overflow(total, f->m.files[i].size_bytes, &total) ||
            total > s->cache_bytes)
            return err_set(err, ERR_TOO_LARGE,
                           "adapter %s: its files exceed the %" PRIu64
                           " bytes that this node keeps (registry.cache_bytes)",
                           f->m.name, s->cache_bytes);
    }
    char *dir = dir_of(s, f->m.content), *part = xasprintf("%s.part", dir);
    struct registry_client c = client_of(s, registry);
    int rc = dir_ensure(part, err);
    for (uint32_t i = 0; i < f->m.n_files && rc == 0; i++) {
        char *path = xasprintf("%s/%s", part, f->m.files[i].path);
        rc = registry_blob(&c, f->m.files[i].sha256, f->m.files[i].size_bytes, path, err);
        free(path);
    }
    struct content_digest got;
    if (rc == 0)
        rc = adapter_content_digest(part, &got, err);
    if (rc == 0 && !DIGEST_EQ(got, f->m.content))
        rc = err_set(err, ERR_CORRUPT, "its files don't have the content digest of its manifest");
    if (rc == 0 && rename(part, dir) != 0 && access(dir, F_OK) != 0)
        rc = err_set(err, ERR_IO, "cannot store %s", dir);
    if (rc != 0)
        err_wrap(err, "adapter %s", f->m.name);
    free(part);
    free(dir);
    return rc;
}

/* Datanets that the adapter pays, if the index has their manifests: for people who ask who they
 * are. */
static void learn_datanets(struct adapter_store *s, const struct manifest_adapter *m)
{
    for (uint32_t k = 0; k < m->n_datanets; k++) {
        struct entry hit;
        bool found = false;
        pthread_mutex_lock(&s->lock);
        for (size_t i = 0; i < s->n_entries && !found; i++) {
            const struct registry_entry *e = &s->entries[i].e;
            if (!e->is_datanet)
                continue;
            struct datanet_id id = manifest_datanet_id(
                s->deployment->chain_id, s->deployment->adapter_registry, e->creator, e->manifest);
            found = DIGEST_EQ(id, m->datanets[k].id);
            hit = s->entries[i];
        }
        pthread_mutex_unlock(&s->lock);
        if (!found)
            continue;
        struct registry_client c = client_of(s, hit.registry);
        struct buf text = BUF_INIT;
        struct registry_signature signature;
        struct arena arena = ARENA_INIT;
        struct manifest_datanet d;
        struct sha256_digest hash;
        struct err err = {0};
        if (registry_manifest(&c, hit.e.manifest, &text, &signature, &err) != 0 ||
            manifest_datanet_parse(&d, &hash, &arena, text.data, text.len, &err) != 0 ||
            registry_check_datanet(&d, hash, &signature, &err) != 0 ||
            ledger_datanet_put(s->ledger, m->datanets[k].id, text.data, text.len, &err) != 0)
            log_warn("registry", "Datanet %s: %s", hit.e.name, err.message);
        arena_release(&arena);
        buf_release(&text);
    }
}

/* The idle loaded item that was used longest ago leaves the engine. With the lock. */
static bool unload_one(struct adapter_store *s)
{
    struct item *oldest = NULL;
    for (struct item *i = s->items; i != NULL; i = i->next) {
        if (i->loaded && i->users == 0 && (oldest == NULL || i->used.us < oldest->used.us))
            oldest = i;
    }
    if (oldest == NULL)
        return false;
    oldest->loaded = false;
    engine_adapter_drop(s->engine, &oldest->content, NULL);
    return true;
}

static int load(struct adapter_store *s, struct content_digest content, struct err *err)
{
    char *dir = dir_of(s, content);
    struct err local = {0};
    int rc;
    for (;;) {
        rc = engine_adapter_load(s->engine, dir, NULL, &local);
        if (rc == 0 || (local.code != ERR_BUSY && local.code != ERR_NO_MEMORY))
            break;
        pthread_mutex_lock(&s->lock);
        bool room = unload_one(s);
        pthread_mutex_unlock(&s->lock);
        if (!room)
            break;
    }
    if (rc != 0 && err != NULL)
        *err = local;
    free(dir);
    return rc;
}

/* ---- the disk's bound
 * ------------------------------------------------------------------------------------ */

static uint64_t dir_bytes(const char *path, time_t *used)
{
    uint64_t total = 0;
    struct stat st;
    DIR *d = opendir(path);
    *used = stat(path, &st) == 0 ? st.st_mtime : 0;
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        char *file = xasprintf("%s/%s", path, e->d_name);
        if (stat(file, &st) == 0 && S_ISREG(st.st_mode))
            total += (uint64_t)st.st_size;
        free(file);
    }
    if (d != NULL)
        closedir(d);
    return total;
}

static void remove_dir(const char *path)
{
    DIR *d = opendir(path);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        if (e->d_name[0] == '.')
            continue;
        char *file = xasprintf("%s/%s", path, e->d_name);
        unlink(file);
        free(file);
    }
    if (d != NULL)
        closedir(d);
    rmdir(path);
}

static bool is_loaded(const struct adapter_store *s, const char *hex)
{
    struct content_digest content;
    if (hex_decode(content.bytes, 32, hex) != 0)
        return false;
    for (const struct item *i = s->items; i != NULL; i = i->next) {
        if (i->loaded && DIGEST_EQ(i->content, content))
            return true;
    }
    return false;
}

/* Removes whole adapters, the longest unused first, until the bound is kept. With the lock. */
static void trim_disk(struct adapter_store *s)
{
    for (;;) {
        uint64_t total = 0;
        char *oldest = NULL;
        time_t oldest_used = 0;
        DIR *d = opendir(s->root);
        for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
            if (strlen(e->d_name) != 64)
                continue;
            char *path = xasprintf("%s/%s", s->root, e->d_name);
            time_t used;
            total += dir_bytes(path, &used);
            if (!is_loaded(s, e->d_name) && (oldest == NULL || used < oldest_used)) {
                free(oldest);
                oldest = xstrdup(path);
                oldest_used = used;
            }
            free(path);
        }
        if (d != NULL)
            closedir(d);
        if (total > s->cache_bytes && oldest != NULL)
            remove_dir(oldest);
        bool done = total <= s->cache_bytes || oldest == NULL;
        free(oldest);
        if (done)
            return;
    }
}

/* ---- resolving
 * ------------------------------------------------------------------------------------------- */

static void fill_resolved(struct resolved *out, struct item *i)
{
    *out = (struct resolved){.content = i->content, .id = i->id, .handle = i};
    snprintf(out->name, sizeof out->name, "%s", i->name);
    i->users++;
    i->used = clock_monotonic_us();
}

static struct item *item_by_manifest(struct adapter_store *s, struct sha256_digest manifest)
{
    for (struct item *i = s->items; i != NULL; i = i->next) {
        if (DIGEST_EQ(i->manifest, manifest))
            return i;
    }
    return NULL;
}

/* Waits until nobody fetches this manifest, then claims it. With the lock. */
static int claim(struct adapter_store *s, struct sha256_digest manifest, struct err *err)
{
    for (;;) {
        bool busy = false;
        for (size_t i = 0; i < s->n_in_flight; i++)
            busy |= DIGEST_EQ(s->in_flight[i], manifest);
        if (!busy)
            break;
        pthread_cond_wait(&s->landed, &s->lock);
    }
    if (s->n_in_flight == IN_FLIGHT_MAX)
        return err_set(err, ERR_BUSY, "too many adapters are being fetched");
    s->in_flight[s->n_in_flight++] = manifest;
    return 0;
}

static void unclaim(struct adapter_store *s, struct sha256_digest manifest)
{
    for (size_t i = 0; i < s->n_in_flight; i++) {
        if (DIGEST_EQ(s->in_flight[i], manifest)) {
            s->in_flight[i] = s->in_flight[--s->n_in_flight];
            break;
        }
    }
    pthread_cond_broadcast(&s->landed);
}

/* Everything between a manifest's hash and a loaded adapter; without the lock. */
static int bring_in(struct adapter_store *s, const struct entry *e, struct found *f,
                    struct err *err)
{
    if (read_manifest(s, f, e, err) != 0)
        return -1;
    if (s->rpc != NULL) {
        if (f->signature.chain_id != s->deployment->chain_id ||
            !address_eq(f->signature.verifying_contract, s->deployment->adapter_registry))
            return err_set(err, ERR_NOT_FOUND,
                           "adapter %s is signed for another chain or registry contract",
                           f->m.name);
        f->id = manifest_adapter_id(s->deployment->chain_id, s->deployment->adapter_registry,
                                    f->m.creator, f->m.base_model, f->hash);
        if (check_registration(s, f->m.name, f->id, &f->m, err) != 0)
            return -1;
    }
    if (!on_disk(s, f->m.content) && fetch_files(s, f, e->registry, err) != 0)
        return -1;
    if (s->rpc != NULL) {
        if (ledger_adapter_put(s->ledger, f->id, f->text.data, f->text.len, err) != 0)
            return -1;
        learn_datanets(s, &f->m);
    }
    if (load(s, f->m.content, err) != 0)
        return err_wrap(err, "adapter %s", f->m.name);
    return 0;
}

/* A checked item that is loaded and registered now; takes a user. With the lock, let go of when the
 * chain or the disk is asked. */
static int use_item(struct adapter_store *s, struct item *i, struct resolved *out, struct err *err)
{
    struct item copy = *i;
    i->users++; /* keeps it while the lock is open */
    if (s->rpc != NULL && !is_fresh(s, copy.checked)) {
        struct err problem = {0};
        pthread_mutex_unlock(&s->lock);
        int rc = check_registration(s, copy.name, copy.id, NULL, &problem);
        pthread_mutex_lock(&s->lock);
        if (rc != 0 && problem.code == ERR_NOT_FOUND) {
            i->users--;
            if (err != NULL)
                *err = problem;
            return -1;
        }
        if (rc == 0)
            i->checked = clock_monotonic_us();
        else
            log_warn("registry", "%s", problem.message);
    }
    int rc = 0;
    if (!i->loaded) {
        pthread_mutex_unlock(&s->lock);
        rc = load(s, copy.content, err);
        pthread_mutex_lock(&s->lock);
        if (rc == 0 && i->loaded) /* another thread was faster: one reference is enough */
            engine_adapter_drop(s->engine, &copy.content, NULL);
        i->loaded |= rc == 0;
    }
    i->users--;
    if (rc == 0)
        fill_resolved(out, i);
    return rc;
}

/* By entry of the index. With the lock. */
static int resolve_entry(struct adapter_store *s, struct entry e, struct resolved *out,
                         struct err *err)
{
    if (claim(s, e.e.manifest, err) != 0)
        return -1;
    struct item *i = item_by_manifest(s, e.e.manifest);
    int rc;
    if (i != NULL) {
        rc = use_item(s, i, out, err);
        /* Its files may have left the disk since. */
        if (rc == 0 || on_disk(s, i->content) || i->users > 0) {
            unclaim(s, e.e.manifest);
            return rc;
        }
    }
    pthread_mutex_unlock(&s->lock);
    struct found f = {.arena = ARENA_INIT, .text = BUF_INIT};
    struct monotonic_us began = clock_monotonic_us();
    rc = bring_in(s, &e, &f, err);
    pthread_mutex_lock(&s->lock);
    if (rc == 0) {
        if (i == NULL) {
            i = xcalloc(1, sizeof *i);
            i->next = s->items;
            s->items = i;
        }
        memcpy(i->name, f.m.name, strlen(f.m.name) + 1);
        i->version = f.m.version;
        i->creator = f.m.creator;
        i->manifest = f.hash;
        i->content = f.m.content;
        i->id = f.id;
        i->checked = clock_monotonic_us();
        i->loaded = true;
        fill_resolved(out, i);
        log_info("registry",
                 "adapter %s version %" PRIu64 " serves, %" PRIu64
                 " ms after it was first asked for",
                 i->name, i->version, clock_elapsed_us(began, clock_monotonic_us()) / 1000);
        trim_disk(s);
    } else {
        log_warn("registry", "refused: %s", err != NULL ? err->message : "");
    }
    unclaim(s, e.e.manifest);
    found_release(&f);
    return rc;
}

/* The entry of a digest or id that is no known item: the manifests of the index are read, newest
 * first. With the lock, which is let go of meanwhile. */
static bool find_digest(struct adapter_store *s, const struct wanted *w, struct entry *out)
{
    size_t looked = 0;
    for (size_t k = s->n_entries; k-- > 0 && looked < LOOK_AHEAD_MANIFESTS;) {
        if (k >= s->n_entries) /* the index changed while the lock was open */
            continue;
        struct entry e = s->entries[k];
        if (e.e.is_datanet || item_by_manifest(s, e.e.manifest) != NULL)
            continue;
        looked++;
        pthread_mutex_unlock(&s->lock);
        struct found f = {.arena = ARENA_INIT, .text = BUF_INIT};
        bool hit = read_manifest(s, &f, &e, NULL) == 0;
        if (hit && w->by == BY_ID) {
            f.id = manifest_adapter_id(s->deployment->chain_id, s->deployment->adapter_registry,
                                       f.m.creator, f.m.base_model, f.hash);
            hit = memcmp(f.id.bytes, w->digest, 32) == 0;
        } else if (hit) {
            hit = memcmp(f.m.content.bytes, w->digest, 32) == 0;
        }
        found_release(&f);
        pthread_mutex_lock(&s->lock);
        if (hit) {
            *out = e;
            return true;
        }
    }
    return false;
}

/* No registry answers: what the ledger knows and the disk still has. With the lock. */
static int resolve_from_ledger(struct adapter_store *s, const struct wanted *w,
                               struct resolved *out, struct err *err)
{
    struct ledger_adapter a;
    struct content_digest content;
    struct adapter_id id;
    memcpy(content.bytes, w->digest, 32);
    memcpy(id.bytes, w->digest, 32);
    int rc = w->by == BY_NAME ? ledger_adapter_by_name(s->ledger, &a, w->name, w->version, NULL)
             : w->by == BY_ID ? ledger_adapter_by_id(s->ledger, &a, id, NULL)
                              : ledger_adapter_by_content(s->ledger, &a, content, NULL);
    if (rc != 0 || !on_disk(s, a.content))
        return -1; /* the sentence about the registry stands */
    struct item *i = xcalloc(1, sizeof *i);
    memcpy(i->name, a.name, sizeof i->name);
    i->version = a.version;
    i->creator = a.creator;
    i->content = a.content;
    i->id = a.id;
    i->next = s->items;
    s->items = i; /* checked is zero: use_item asks the chain */
    return use_item(s, i, out, err);
}

/* By what the index says now; *known is false when it says nothing. With the lock. */
static int resolve_indexed(struct adapter_store *s, const struct wanted *w, struct resolved *out,
                           bool *known, struct err *err)
{
    *known = true;
    if (w->by == BY_NAME) {
        const struct entry *e = entry_named(s, w);
        if (e != NULL)
            return resolve_entry(s, *e, out, err);
    } else {
        struct item *i = s->items;
        while (i != NULL && !item_matches(i, w))
            i = i->next;
        if (i != NULL)
            return use_item(s, i, out, err);
        struct entry e;
        if (find_digest(s, w, &e))
            return resolve_entry(s, e, out, err);
    }
    *known = false;
    return err_set(err, ERR_NOT_FOUND, "there is no model \"%.100s\"", w->text);
}

static int resolve(void *context, const char *model, struct resolved *out, struct err *err)
{
    struct adapter_store *s = context;
    struct wanted w;
    if (parse_wanted(&w, model, err) != 0)
        return -1;
    pthread_mutex_lock(&s->lock);
    bool known = true;
    int rc = refresh_index(s, s->refresh_us, err);
    if (rc != 0)
        rc = resolve_from_ledger(s, &w, out, err);
    else
        rc = resolve_indexed(s, &w, out, &known, err);
    /* What was published a moment ago is asked for a moment later: an unknown name looks again, but
     * not at every request. */
    if (!known && clock_elapsed_us(s->refreshed, clock_monotonic_us()) >= UNKNOWN_AGAIN_US &&
        refresh_index(s, UNKNOWN_AGAIN_US, NULL) == 0)
        rc = resolve_indexed(s, &w, out, &known, err);
    pthread_mutex_unlock(&s->lock);
    return rc;
}

static void release(void *context, const struct resolved *r)
{
    struct adapter_store *s = context;
    struct item *i = r->handle;
    pthread_mutex_lock(&s->lock);
    BUG_IF(i->users <= 0);
    i->users--;
    pthread_mutex_unlock(&s->lock);
}

static void list(void *context, json_t *models)
{
    struct adapter_store *s = context;
    pthread_mutex_lock(&s->lock);
    for (size_t k = 0; k < s->n_by_name;) {
        const struct entry *e = entry_meant(s, &k, 0);
        json_array_append_new(models, json_pack("{s:s}", "id", e->e.name));
    }
    pthread_mutex_unlock(&s->lock);
}

/* ---- create, start, free
 * ------------------------------------------------------------------------------------ */

struct adapter_store *adapter_store_create(const struct adapter_store_options *options)
{
    struct adapter_store *s = xcalloc(1, sizeof *s);
    s->root = xasprintf("%s/adapters", options->data_dir);
    s->urls = xcalloc(options->n_registries, sizeof *s->urls);
    for (size_t i = 0; i < options->n_registries; i++) {
        s->urls[i] = xstrdup(options->registries[i]);
        size_t n = strlen(s->urls[i]);
        while (n > 0 && s->urls[i][n - 1] == '/')
            s->urls[i][--n] = '\0';
    }
    s->n_urls = options->n_registries;
    s->refresh_us = options->refresh_ms * 1000;
    s->cache_bytes = options->cache_bytes;
    s->rpc = options->rpc;
    s->deployment = options->deployment;
    s->http = http_client_create();
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->landed, NULL);
    return s;
}

void adapter_store_start(struct adapter_store *s, struct engine *engine, struct ledger *ledger)
{
    s->engine = engine;
    s->ledger = ledger;
}

void adapter_store_cancel(struct adapter_store *s)
{
    s->cancelled = true;
}

void adapter_store_free(struct adapter_store *s)
{
    if (s == NULL)
        return;
    while (s->items != NULL) {
        struct item *next = s->items->next;
        free(s->items);
        s->items = next;
    }
    http_client_free(s->http);
    pthread_cond_destroy(&s->landed);
    pthread_mutex_destroy(&s->lock);
    for (size_t i = 0; i < s->n_urls; i++)
        free(s->urls[i]);
    free(s->urls);
    free(s->entries);
    free(s->by_name);
    free(s->root);
    free(s);
}

struct service_resolver adapter_store_resolver(struct adapter_store *s)
{
    return (struct service_resolver){resolve, release, list, s};
}
