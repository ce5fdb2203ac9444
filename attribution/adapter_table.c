/* adapter_table: three chained hash indices over one append-only list.
 *
 * Every request is priced through this table, so it is in memory and a look-up is O(1): by id (to
 * price), by content digest and by name (to route). The table grows by doubling its buckets;
 * entries lie in their own arena with the parsed manifest, so that growing moves no entry.
 *
 * One read-write lock; several threads may put at once. */
#include "attribution/adapter_table.h"

#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/sha256.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { BY_ID, BY_CONTENT, BY_NAME, N_INDICES, FIRST_BUCKETS = 64, METHOD_VERSION = 1 };

struct node {
    struct adapter_entry entry;
    struct arena arena;
    uint64_t key[N_INDICES];
    struct node *next[N_INDICES];
};

struct adapter_table {
    pthread_rwlock_t lock;
    struct node **buckets[N_INDICES]; /* [n_buckets] each; a chain is newest first */
    struct node **nodes;              /* [n] in the order of adapter_table_put */
    size_t n_buckets, n;
};

static uint64_t key_of_bytes(const uint8_t *bytes)
{
    uint64_t key;
    memcpy(&key, bytes, sizeof(key)); /* digests are uniform already */
    return key;
}

static uint64_t key_of_name(const char *name)
{
    uint64_t h = 14695981039346656037u; /* FNV-1a */
    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 1099511628211u;
    return h;
}

struct adapter_table *adapter_table_create(void)
{
    struct adapter_table *t = xcalloc(1, sizeof(*t));
    BUG_IF(pthread_rwlock_init(&t->lock, NULL) != 0);
    t->n_buckets = FIRST_BUCKETS;
    for (int i = 0; i < N_INDICES; i++)
        t->buckets[i] = xcalloc(t->n_buckets, sizeof(struct node *));
    return t;
}

void adapter_table_free(struct adapter_table *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n; i++) {
        arena_release(&t->nodes[i]->arena);
        free(t->nodes[i]);
    }
    free(t->nodes);
    for (int i = 0; i < N_INDICES; i++)
        free(t->buckets[i]);
    pthread_rwlock_destroy(&t->lock);
    free(t);
}

static void link_node(struct adapter_table *t, struct node *node)
{
    for (int i = 0; i < N_INDICES; i++) {
        struct node **bucket = &t->buckets[i][node->key[i] % t->n_buckets];
        node->next[i] = *bucket;
        *bucket = node;
    }
}

static void add_node(struct adapter_table *t, struct node *node)
{
    if (t->n % FIRST_BUCKETS == 0)
        t->nodes = xrealloc_array(t->nodes, t->n + FIRST_BUCKETS, sizeof(struct node *));
    node->entry.put_order = t->n;
    t->nodes[t->n++] = node;
    if (t->n > t->n_buckets) {
        t->n_buckets *= 2;
        for (int i = 0; i < N_INDICES; i++) {
            free(t->buckets[i]);
            t->buckets[i] = xcalloc(t->n_buckets, sizeof(struct node *));
        }
        for (size_t i = 0; i + 1 < t->n; i++)
            link_node(t, t->nodes[i]);
    }
    link_node(t, node);
}

/* What pricing and hashing need of a manifest, ready made. */
static void derive(struct node *node)
{
    struct adapter_entry *e = &node->entry;
    const struct manifest_adapter *m = &e->facts;
    e->n_shares = m->n_splits + m->n_datanets;
    uint16_t *bps = arena_array(&node->arena, e->n_shares, sizeof(*bps));
    for (uint32_t i = 0; i < m->n_splits; i++)
        bps[i] = m->splits[i].bps;
    e->n_attribution = (size_t)m->n_datanets * 36;
    uint8_t *list = arena_alloc(&node->arena, e->n_attribution + 1);
    for (uint32_t i = 0; i < m->n_datanets; i++) {
        uint8_t *at = list + (size_t)i * 36;
        bps[m->n_splits + i] = m->datanets[i].bps;
        memcpy(at, m->datanets[i].id.bytes, 32);
        at[32] = (uint8_t)(m->datanets[i].bps >> 8);
        at[33] = (uint8_t)m->datanets[i].bps;
        at[34] = 0;
        at[35] = METHOD_VERSION;
    }
    e->share_bps = bps;
    e->attribution = list;
    node->key[BY_ID] = key_of_bytes(e->id.bytes);
    node->key[BY_CONTENT] = key_of_bytes(m->content.bytes);
    node->key[BY_NAME] = key_of_name(m->name);
}

int adapter_table_put(struct adapter_table *t, struct adapter_id id, const void *manifest, size_t n,
                      bool retired, struct err *err)
{
    char name[67];
    struct adapter_entry *known = adapter_table_by_id(t, id);
    if (known) {
        struct sha256_digest hash = sha256(manifest, n);
        if (DIGEST_EQ(known->manifest_hash, hash))
            return 0;
        return err_set(err, ERR_CONFLICT, "adapter %s is known with another manifest",
                       hex_encode_0x(name, id.bytes, 32));
    }
    struct node *node = xcalloc(1, sizeof(*node));
    node->entry.id = id;
    atomic_init(&node->entry.retired, retired);
    if (manifest_adapter_parse(&node->entry.facts, &node->entry.manifest_hash, &node->arena,
                               manifest, n, err) != 0) {
        arena_release(&node->arena);
        free(node);
        return err_wrap(err, "adapter %s", hex_encode_0x(name, id.bytes, 32));
    }
    derive(node);
    pthread_rwlock_wrlock(&t->lock);
    struct node *faster = t->buckets[BY_ID][node->key[BY_ID] % t->n_buckets];
    while (faster && !DIGEST_EQ(faster->entry.id, id))
        faster = faster->next[BY_ID];
    if (!faster)
        add_node(t, node);
    pthread_rwlock_unlock(&t->lock);
    if (faster) { /* another thread put the same adapter meanwhile */
        arena_release(&node->arena);
        free(node);
    }
    return 0;
}

struct adapter_entry *adapter_table_by_id(struct adapter_table *t, struct adapter_id id)
{
    uint64_t key = key_of_bytes(id.bytes);
    pthread_rwlock_rdlock(&t->lock);
    struct node *node = t->buckets[BY_ID][key % t->n_buckets];
    while (node && !DIGEST_EQ(node->entry.id, id))
        node = node->next[BY_ID];
    pthread_rwlock_unlock(&t->lock);
    return node ? &node->entry : NULL;
}

struct adapter_entry *adapter_table_by_content(struct adapter_table *t,
                                               struct content_digest content)
{
    uint64_t key = key_of_bytes(content.bytes);
    struct adapter_entry *first = NULL;
    pthread_rwlock_rdlock(&t->lock);
    for (struct node *node = t->buckets[BY_CONTENT][key % t->n_buckets]; node;
         node = node->next[BY_CONTENT]) {
        struct adapter_entry *e = &node->entry;
        if (DIGEST_EQ(e->facts.content, content) && (!first || e->put_order < first->put_order))
            first = e;
    }
    pthread_rwlock_unlock(&t->lock);
    return first;
}

struct adapter_entry *adapter_table_by_name(struct adapter_table *t, const char *name,
                                            uint64_t version)
{
    uint64_t key = key_of_name(name);
    struct adapter_entry *first = NULL, *best = NULL;
    pthread_rwlock_rdlock(&t->lock);
    /* The name belongs to the creator that was put first. */
    for (struct node *node = t->buckets[BY_NAME][key % t->n_buckets]; node;
         node = node->next[BY_NAME]) {
        struct adapter_entry *e = &node->entry;
        if (strcmp(e->facts.name, name) == 0 && (!first || e->put_order < first->put_order))
            first = e;
    }
    for (struct node *node = t->buckets[BY_NAME][key % t->n_buckets]; node && first;
         node = node->next[BY_NAME]) {
        struct adapter_entry *e = &node->entry;
        if (strcmp(e->facts.name, name) != 0 || !DIGEST_EQ(e->facts.creator, first->facts.creator))
            continue;
        if (version ? e->facts.version == version : !best || e->facts.version > best->facts.version)
            best = e;
    }
    pthread_rwlock_unlock(&t->lock);
    return best;
}
