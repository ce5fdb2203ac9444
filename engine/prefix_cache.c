/* prefix_cache: see prefix_cache.h.
 *
 * Keys are chained: key(i) = sha256(key(i - 1), tokens of block i), key(-1) = the root =
 * sha256(secret, adapters). A block is found under its whole history at once, in one look-up, and
 * two different histories never meet: their keys would be a collision of sha256. A cheaper hash
 * won't do, because whoever chooses prompts could then choose two that collide and read the K and V
 * of someone else's. The secret keeps people from choosing which chain of the table a key falls
 * into. A key costs two compressions, 0.2 us with SHA instructions, against the milliseconds that
 * 16 tokens of prefill take. Nothing but keys says whose block it is: an adapter's name and its
 * slot don't occur, so a name that points at new content has new keys.
 *
 * What a block holds is the same for every head shape, window and rope: the cache deals in indexes
 * of blocks, as kv_pool does, and a block index covers all layers. A layer with a sliding window
 * keeps the K and V of all positions (attention only reads fewer), at rotations that the absolute
 * position alone decides; so they too are a function of adapters and tokens.
 *
 *     key ──hash──> heads[] ──> node = block ──next──> node = block
 *
 *     disowned: oldest <─> ... <─> newest      both lists hold idle blocks: cached, used by nobody
 *     idle:     oldest <─> ... <─> newest
 *
 * A node has the number of its block; nothing is allocated and nothing can be full. The rules:
 *
 *   1. A cached block has one reference of the cache's and one for each sequence that uses it. With
 *      the cache's alone it is idle, and in exactly one of the two lists.
 *   2. Only full blocks are cached, and a full block is never written again: what is shared is read
 *      only, and nobody needs to copy before writing.
 *   3. Who uses a block uses all blocks before it in its chain (prefix_cache_take, _put), and gives
 *      them back last block first. So when a block becomes idle, those behind it in its chain are
 *      idle already, and nearer to the oldest end. Eviction from that end takes leaves before
 *      parents without knowing who is whose parent: what is in the cache is always reachable.
 *   4. The disowned are idle blocks of an adapter that was unloaded: its next request has to load
 *      it again first, if one comes. All idle ones of an owner move over together and in order, so
 *      rule 3 holds for both lists: a block and those behind it are in one list, or those behind it
 *      are in the list that is emptied first. Used again, they return to the common list.
 *
 * Within a list the order is by last use. Not by what it costs to compute a block again: that grows
 * with its position (attention) by a few per cent over a context, while the odds of being asked for
 * again differ by orders of magnitude. */
#include "engine/prefix_cache.h"

#include "engine/kv_pool.h"
#include "kernels/ops.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/sha256.h"

#include <stdlib.h>
#include <string.h>

struct node {
    struct prefix_key key;
    uint64_t owner;
    int32_t next;         /* in the chain of its head, or -1 */
    int32_t older, newer; /* in its list, or -1; idle only */
    bool cached, disowned;
    uint32_t n_found;
    uint64_t last_use; /* the step in which it became idle */
};

struct list {
    int32_t oldest, newest; /* -1: empty */
};

struct prefix_cache {
    struct kv_pool *kv;
    struct node *nodes; /* [n_max of kv] */
    int32_t *heads;     /* [n_heads] first node of each chain, or -1 */
    uint32_t n_heads;   /* a power of two, at least the number of blocks */
    struct list idle, disowned;
    int n_cached, n_idle;
    uint64_t n_evicted, now;
};

/* ---- keys -------------------------------------------------------------------------------- */

struct prefix_secret prefix_secret_salted(const struct prefix_secret *secret, const void *salt,
                                          size_t n)
{
    /* Hashed by itself first, so that a salt of any length is 32 bytes of a text of one length. */
    struct prefix_secret salted;
    struct {
        struct prefix_secret secret;
        struct sha256_digest salt;
        uint8_t what[32];
    } text = {*secret, sha256(salt, n), "prefix cache, salted"};
    struct sha256_digest d = sha256(&text, sizeof text);
    memcpy(salted.bytes, d.bytes, sizeof salted.bytes);
    return salted;
}

struct prefix_key prefix_key_root(const struct prefix_secret *secret,
                                  const struct prefix_adapter *adapters, int n)
{
    /* 32 + 36 n bytes: no length is a block's 32 + 64, so a root is nobody's block. */
    struct prefix_key key;
    struct sha256 h;
    sha256_init(&h);
    sha256_update(&h, secret->bytes, sizeof secret->bytes);
    for (int i = 0; i < n; i++) {
        sha256_update(&h, adapters[i].content.bytes, sizeof adapters[i].content.bytes);
        sha256_update(&h, &adapters[i].weight, sizeof adapters[i].weight);
    }
    struct sha256_digest d = sha256_final(&h);
    memcpy(key.bytes, d.bytes, sizeof key.bytes);
    return key;
}

struct prefix_key prefix_key_block(const struct prefix_key *before, const int32_t *tokens)
{
    struct prefix_key key;
    struct {
        struct prefix_key before;
        int32_t tokens[BLOCK_TOKENS];
    } text = {.before = *before};
    memcpy(text.tokens, tokens, sizeof text.tokens);
    struct sha256_digest d = sha256(&text, sizeof text);
    memcpy(key.bytes, d.bytes, sizeof key.bytes);
    return key;
}

uint64_t prefix_owner(const struct content_digest *content)
{
    uint64_t owner;
    memcpy(&owner, content->bytes, sizeof owner);
    return owner != 0 ? owner : 1;
}

/* ---- the table --------------------------------------------------------------------------- */

static int32_t *head_of(const struct prefix_cache *c, const struct prefix_key *key)
{
    uint32_t hash;
    memcpy(&hash, key->bytes, sizeof hash);
    return &c->heads[hash & (c->n_heads - 1)];
}

struct prefix_cache *prefix_cache_create(struct kv_pool *kv)
{
    struct prefix_cache *c = xcalloc(1, sizeof *c);
    uint32_t n_blocks = (uint32_t)kv_pool_n_max(kv);
    c->kv = kv;
    c->n_heads = 1;
    while (c->n_heads < n_blocks)
        c->n_heads *= 2;
    c->nodes = xcalloc(n_blocks, sizeof *c->nodes);
    c->heads = xcalloc(c->n_heads, sizeof *c->heads);
    for (uint32_t i = 0; i < c->n_heads; i++)
        c->heads[i] = -1;
    c->idle = c->disowned = (struct list){-1, -1};
    return c;
}

void prefix_cache_free(struct prefix_cache *c)
{
    if (c == NULL)
        return;
    while (c->n_idle > 0)
        prefix_cache_evict(c);
    BUG_IF(c->n_cached != 0); /* a sequence still uses some */
    free(c->nodes);
    free(c->heads);
    free(c);
}

int32_t prefix_cache_find(const struct prefix_cache *c, const struct prefix_key *key)
{
    int32_t i = *head_of(c, key);
    while (i >= 0 && !DIGEST_EQ(c->nodes[i].key, *key))
        i = c->nodes[i].next;
    return i;
}

/* ---- lists of idle blocks ---------------------------------------------------------------- */

static struct list *list_of(struct prefix_cache *c, const struct node *n)
{
    return n->disowned ? &c->disowned : &c->idle;
}

static void list_append(struct prefix_cache *c, int32_t block)
{
    struct node *n = &c->nodes[block];
    struct list *l = list_of(c, n);
    n->older = l->newest;
    n->newer = -1;
    n->last_use = n->disowned ? n->last_use : c->now;
    if (l->newest >= 0)
        c->nodes[l->newest].newer = block;
    else
        l->oldest = block;
    l->newest = block;
}

static void list_remove(struct prefix_cache *c, int32_t block)
{
    struct node *n = &c->nodes[block];
    struct list *l = list_of(c, n);
    if (n->older >= 0)
        c->nodes[n->older].newer = n->newer;
    else
        l->oldest = n->newer;
    if (n->newer >= 0)
        c->nodes[n->newer].older = n->older;
    else
        l->newest = n->older;
}

/* ---- use --------------------------------------------------------------------------------- */

void prefix_cache_take(struct prefix_cache *c, int32_t block)
{
    struct node *n = &c->nodes[block];
    BUG_IF(!n->cached);
    if (prefix_cache_n_users(c, block) == 0) {
        list_remove(c, block);
        n->disowned = false;
        c->n_idle--;
    }
    n->n_found++;
    kv_pool_retain(c->kv, block);
}

void prefix_cache_drop(struct prefix_cache *c, int32_t block)
{
    bool cached = c->nodes[block].cached;
    BUG_IF(cached && prefix_cache_n_users(c, block) < 1);
    kv_pool_drop(c->kv, block);
    if (cached && prefix_cache_n_users(c, block) == 0) {
        list_append(c, block);
        c->n_idle++;
    }
}

int32_t prefix_cache_put(struct prefix_cache *c, const struct prefix_key *key, uint64_t owner,
                         int32_t block)
{
    struct node *n = &c->nodes[block];
    int32_t there = prefix_cache_find(c, key);
    BUG_IF(n->cached || kv_pool_references(c->kv, block) != 1); /* until now it was the caller's */
    if (there >= 0) {
        prefix_cache_take(c, there);
        kv_pool_drop(c->kv, block);
        return there;
    }
    int32_t *head = head_of(c, key);
    *n = (struct node){
        .key = *key, .owner = owner, .next = *head, .older = -1, .newer = -1, .cached = true};
    *head = block;
    c->n_cached++;
    kv_pool_retain(c->kv, block);
    return block;
}

void prefix_cache_evict(struct prefix_cache *c)
{
    int32_t block = c->disowned.oldest >= 0 ? c->disowned.oldest : c->idle.oldest;
    BUG_IF(block < 0);
    struct node *n = &c->nodes[block];
    int32_t *link = head_of(c, &n->key);
    while (*link != block)
        link = &c->nodes[*link].next;
    *link = n->next;
    list_remove(c, block);
    n->cached = false;
    c->n_idle--;
    c->n_cached--;
    c->n_evicted++;
    kv_pool_drop(c->kv, block);
    BUG_IF(kv_pool_references(c->kv, block) != 0);
}

void prefix_cache_disown(struct prefix_cache *c, const uint64_t *owners, int n)
{
    int32_t next;
    for (int32_t block = c->idle.oldest; block >= 0; block = next) {
        next = c->nodes[block].newer;
        bool listed = false;
        for (int i = 0; i < n && !listed; i++)
            listed = owners[i] == c->nodes[block].owner;
        if (listed) {
            list_remove(c, block);
            c->nodes[block].disowned = true;
            list_append(c, block);
        }
    }
}

/* ---- judged and moved -------------------------------------------------------------------- */

void prefix_cache_tick(struct prefix_cache *c, uint64_t now)
{
    c->now = now;
}

int32_t prefix_cache_next_idle(const struct prefix_cache *c, int32_t block)
{
    if (block < 0)
        return c->disowned.oldest >= 0 ? c->disowned.oldest : c->idle.oldest;
    const struct node *n = &c->nodes[block];
    return n->newer < 0 && n->disowned ? c->idle.oldest : n->newer;
}

void prefix_cache_look(const struct prefix_cache *c, int32_t block, struct prefix_idle *out)
{
    const struct node *n = &c->nodes[block];
    BUG_IF(!n->cached);
    *out = (struct prefix_idle){.owner = n->owner,
                                .disowned = n->disowned,
                                .n_found = n->n_found,
                                .age = c->now - n->last_use};
}

void prefix_cache_move(struct prefix_cache *c, int32_t from, int32_t to)
{
    struct node *n = &c->nodes[from];
    if (!n->cached)
        return;
    BUG_IF(c->nodes[to].cached);
    int32_t *link = head_of(c, &n->key);
    while (*link != from)
        link = &c->nodes[*link].next;
    *link = to;
    c->nodes[to] = *n;
    n->cached = false;
    if (prefix_cache_n_users(c, to) > 0)
        return;
    struct list *l = list_of(c, n);
    *(n->older >= 0 ? &c->nodes[n->older].newer : &l->oldest) = to;
    *(n->newer >= 0 ? &c->nodes[n->newer].older : &l->newest) = to;
}

/* ---- counts ------------------------------------------------------------------------------ */

int prefix_cache_n_users(const struct prefix_cache *c, int32_t block)
{
    return kv_pool_references(c->kv, block) - c->nodes[block].cached;
}

int prefix_cache_n_blocks(const struct prefix_cache *c)
{
    return c->n_cached;
}

int prefix_cache_n_idle(const struct prefix_cache *c)
{
    return c->n_idle;
}

uint64_t prefix_cache_n_evicted(const struct prefix_cache *c)
{
    return c->n_evicted;
}
