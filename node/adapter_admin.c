/* adapter_admin: what operators ask the adapter store, and order it to do. The shape of an item:
 *
 *   {"id": what a request calls it, "name", "source": "local"|"registry", "tier": the fastest that
 *    holds it, "pinned", "in_use": requests, "uses": since the start, "content_digest": hex or
 * null, "bytes": in memory, or null, "rank", "targets", "load_ms": the last time, or null, "dir"
 * (local) | "version", "creator", "manifest", "adapter_id" (registry)} */
#include "node/adapter_store_internal.h"

#include "node/base/hex.h"
#include "node/json_util.h"

#include <stdlib.h>
#include <string.h>

enum {
    EVICT_TURNS = 100,
    EVICT_PAUSE_MS = 5,
    LIST_DEFAULT = 100,
    LIST_MAX = 1000,
    ID_BYTES = SERVICE_NAME_BYTES + 24
};

static void set_hex(json_t *o, const char *key, const uint8_t bytes[32], bool prefix)
{
    char hex[67];
    if (!bytes32_is_zero(bytes))
        json_object_set_new(
            o, key,
            json_string(prefix ? hex_encode_0x(hex, bytes, 32) : hex_encode(hex, bytes, 32)));
}

/* With the lock. */
static enum adapter_tier tier_of(const struct adapter_store *s, const struct item *i)
{
    const struct content *c = i->content;
    struct engine_residency at;
    if (c != NULL && c->loaded)
        return engine_adapter_residency(s->engine, &c->digest, &at, NULL) == 0 && at.on_device
                   ? TIER_DEVICE
                   : TIER_HOST;
    bool on_disk = i->dir != NULL || c->disk_bytes > 0 || content_local(c) != NULL;
    return on_disk ? TIER_DISK : TIER_REGISTRY;
}

static void id_of(char out[ID_BYTES], const struct item *i)
{
    if (i->dir != NULL)
        snprintf(out, ID_BYTES, "%s", i->name);
    else
        snprintf(out, ID_BYTES, "%s@%llu", i->name, (unsigned long long)i->version);
}

/* With the lock. */
static json_t *item_json(const struct adapter_store *s, const struct item *i)
{
    const struct content *c = i->content;
    char id[ID_BYTES], creator[ADDRESS_TEXT_BYTES];
    id_of(id, i);
    bool known = c != NULL && c->n_bytes > 0;
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:b, s:i, s:I}", "id", id, "name", i->name,
                          "source", i->dir != NULL ? "local" : "registry", "tier",
                          adapter_tier_name(tier_of(s, i)), "pinned", i->pinned, "in_use",
                          c != NULL ? c->users : 0, "uses",
                          c != NULL ? (json_int_t)c->n_uses : (json_int_t)0);
    if (c != NULL)
        set_hex(o, "content_digest", c->digest.bytes, false);
    else
        json_object_set_new(o, "content_digest", json_null());
    json_object_set_new(o, "bytes", known ? json_integer((json_int_t)c->n_bytes) : json_null());
    json_object_set_new(o, "rank", known ? json_integer(c->rank_max) : json_null());
    json_object_set_new(o, "targets", known ? json_string(c->targets) : json_null());
    json_object_set_new(o, "load_ms",
                        c != NULL && c->load_us > 0 ? json_real((double)c->load_us / 1e3)
                                                    : json_null());
    if (i->dir != NULL) {
        json_object_set_new(o, "dir", json_text(i->dir));
    } else {
        json_object_set_new(o, "version", json_integer((json_int_t)i->version));
        json_object_set_new(o, "creator", json_string(address_format(creator, i->creator)));
        set_hex(o, "manifest", i->manifest.bytes, false);
        set_hex(o, "adapter_id", i->id.bytes, true);
    }
    return o;
}

/* What only an index lists. */
static json_t *entry_json(const struct index_entry *e, const char *id)
{
    char creator[ADDRESS_TEXT_BYTES];
    json_t *o = json_pack(
        "{s:s, s:s, s:s, s:s, s:b, s:i, s:i, s:n, s:n, s:n, s:n, s:n, s:I, s:s}", "id", id, "name",
        e->e.name, "source", "registry", "tier", adapter_tier_name(TIER_REGISTRY), "pinned", 0,
        "in_use", 0, "uses", 0, "content_digest", "bytes", "rank", "targets", "load_ms", "version",
        (json_int_t)e->e.version, "creator", address_format(creator, e->e.creator));
    set_hex(o, "manifest", e->e.manifest.bytes, false);
    return o;
}

/* ---- listing: the `limit` smallest ids behind the cursor ---------------------------------------
 */

struct row {
    char id[ID_BYTES];
    const struct item *item; /* NULL: entry */
    struct index_entry entry;
};

struct page {
    struct adapter_store *s;
    const struct adapter_filter *filter;
    int worst; /* tier */
    size_t limit, n;
    struct row **rows; /* [limit + 1] by id */
};

/* A place on the page for this id, if it belongs there and is wanted; NULL: it doesn't. */
static struct row *page_place(struct page *p, const char *id, const char *name,
                              enum adapter_tier tier, bool pinned)
{
    const struct adapter_filter *f = p->filter;
    if ((int)tier > p->worst || (f->pinned && !pinned) ||
        (f->prefix != NULL && strncmp(name, f->prefix, strlen(f->prefix)) != 0) ||
        (f->cursor != NULL && strcmp(id, f->cursor) <= 0))
        return NULL;
    size_t at = p->n;
    while (at > 0 && strcmp(p->rows[at - 1]->id, id) > 0)
        at--;
    if (at > p->limit)
        return NULL;
    /* When the page is full, the largest leaves. */
    struct row *r = p->n > p->limit ? p->rows[--p->n] : xmalloc(sizeof *r);
    snprintf(r->id, sizeof r->id, "%s", id);
    memmove(p->rows + at + 1, p->rows + at, (p->n - at) * sizeof(struct row *));
    p->rows[at] = r;
    p->n++;
    return r;
}

static void offer_item(struct page *p, const struct item *i)
{
    char id[ID_BYTES];
    id_of(id, i);
    struct row *r = page_place(p, id, i->name, tier_of(p->s, i), i->pinned);
    if (r != NULL)
        r->item = i;
}

static void offer_entry(void *context, const struct index_entry *e)
{
    struct page *p = context;
    char id[ID_BYTES];
    if (hash_map_get(&p->s->by_manifest, e->e.manifest.bytes, 32) != NULL)
        return; /* an item */
    snprintf(id, sizeof id, "%s@%llu", e->e.name, (unsigned long long)e->e.version);
    struct row *r = page_place(p, id, e->e.name, TIER_REGISTRY, false);
    if (r != NULL) {
        r->item = NULL;
        r->entry = *e;
    }
}

static int tier_parse(const char *name, struct err *err)
{
    for (int t = 0; t < N_TIERS; t++) {
        if (strcmp(name, adapter_tier_name((enum adapter_tier)t)) == 0)
            return t;
    }
    return err_set(err, ERR_INVALID, "tier is device, host, disk or registry, not \"%.20s\"", name);
}

json_t *adapter_store_list(struct adapter_store *s, const struct adapter_filter *filter,
                           struct err *err)
{
    struct page p = {.s = s, .filter = filter, .worst = TIER_REGISTRY};
    p.limit = filter->limit == 0         ? LIST_DEFAULT
              : filter->limit > LIST_MAX ? LIST_MAX
                                         : filter->limit;
    if (filter->tier != NULL && (p.worst = tier_parse(filter->tier, err)) < 0)
        return NULL;
    p.rows = xcalloc(p.limit + 2, sizeof(struct row *));
    json_t *items = json_array();
    pthread_mutex_lock(&s->lock);
    size_t at = 0;
    for (struct item *i; (i = hash_map_next(&s->local, &at)) != NULL;)
        offer_item(&p, i);
    for (size_t k = 0; k < s->n_registry_items; k++)
        offer_item(&p, s->registry_items[k]);
    if (s->index != NULL && p.worst == TIER_REGISTRY)
        adapter_index_each(s->index, offer_entry, &p);
    for (size_t k = 0; k < p.n && k < p.limit; k++)
        json_array_append_new(items, p.rows[k]->item != NULL
                                         ? item_json(s, p.rows[k]->item)
                                         : entry_json(&p.rows[k]->entry, p.rows[k]->id));
    pthread_mutex_unlock(&s->lock);
    json_t *next = p.n > p.limit ? json_string(p.rows[p.limit - 1]->id) : json_null();
    for (size_t k = 0; k < p.n; k++)
        free(p.rows[k]);
    free(p.rows);
    return json_pack("{s:o, s:o}", "items", items, "next", next);
}

/* ---- one adapter -------------------------------------------------------------------------------
 */

int no_adapter(const struct adapter_store *s, const char *model, struct err *err)
{
    if (strcmp(model, s->base_name) == 0) /* which /v1/models lists, so "there is none" is wrong */
        return err_set(err, ERR_NOT_FOUND,
                       "%s is the base model, which is always loaded; it is no "
                       "adapter",
                       model);
    return err_set(err, ERR_NOT_FOUND, "there is no adapter \"%.100s\" here", model);
}

json_t *adapter_store_show(struct adapter_store *s, const char *model, struct err *err)
{
    struct wanted w;
    struct index_entry e;
    json_t *o = NULL;
    pthread_mutex_lock(&s->lock);
    const struct item *i = item_find(s, model, false);
    if (i != NULL) {
        o = item_json(s, i);
    } else if (s->index != NULL && wanted_parse(&w, model, NULL) == 0 && w.by == BY_NAME &&
               adapter_index_named(s->index, w.name, w.version, &e)) {
        char id[ID_BYTES];
        snprintf(id, sizeof id, "%s@%llu", e.e.name, (unsigned long long)e.e.version);
        o = entry_json(&e, id);
    }
    pthread_mutex_unlock(&s->lock);
    if (o == NULL)
        no_adapter(s, model, err);
    return o;
}

static json_t *before_and_after(size_t before, size_t after)
{
    return json_pack("{s:I, s:I}", "before", (json_int_t)before, "after", (json_int_t)after);
}

/* Its content is, under its own name or under others. */
static void say_pinned(const struct item *i, struct err *err)
{
    const struct item *by = i->pinned ? i : i->content->items;
    while (!by->pinned)
        by = by->next;
    err_set(err, ERR_CONFLICT, "adapter %s is pinned%s%s", i->name, by != i ? " as " : "",
            by != i ? by->name : "");
}

json_t *adapter_store_unload(struct adapter_store *s, const char *model, struct err *err)
{
    struct engine_stats before, after;
    struct content_digest digest;
    bool known = false;
    json_t *o = NULL;
    engine_stats(s->engine, &before);
    pthread_mutex_lock(&s->lock);
    const struct item *i = item_find(s, model, false);
    struct content *c = i != NULL ? i->content : NULL;
    if (i == NULL) {
        no_adapter(s, model, err);
    } else if (c != NULL && c->n_pins > 0) {
        say_pinned(i, err);
    } else if (c != NULL && c->load != NULL) {
        err_set(err, ERR_CONFLICT, "adapter %s is being loaded", i->name);
    } else if (c != NULL && c->users > 0) {
        err_set(err, ERR_CONFLICT, "adapter %s is in use (requests: %d)", i->name, c->users);
    } else {
        if (c != NULL && c->loaded)
            content_unload(s, c);
        known = c != NULL;
        if (known)
            digest = c->digest;
        o = item_json(s, i);
    }
    pthread_mutex_unlock(&s->lock);
    struct err problem = {0};
    if (known && device_evict(s, &digest, &problem) != 0) { /* somebody came in between */
        err_set(err, ERR_CONFLICT, "adapter %s is still on the device: %s", model, problem.message);
        json_decref(o);
        return NULL;
    }
    if (o == NULL)
        return NULL;
    engine_stats(s->engine, &after);
    json_object_set_new(
        o, "host_bytes",
        before_and_after(before.adapter_host_bytes_used, after.adapter_host_bytes_used));
    json_object_set_new(o, "device_bytes",
                        before_and_after(before.adapter_bytes_used, after.adapter_bytes_used));
    return o;
}

int adapter_store_pin(struct adapter_store *s, const char *model, bool pinned, struct err *err)
{
    pthread_mutex_lock(&s->lock);
    struct item *i = item_find(s, model, false);
    if (i != NULL && i->pinned != pinned) {
        i->pinned = pinned;
        if (i->content != NULL)
            content_pin(s, i->content, pinned ? 1 : -1);
    }
    pthread_mutex_unlock(&s->lock);
    return i != NULL ? 0 : no_adapter(s, model, err);
}
