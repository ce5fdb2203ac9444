/* prefix_cache: full KV blocks that may be used again, found by what is in them. Engine thread
 * only, but for the making of keys.
 *
 * A key names everything that the K and V of a block depend on: the adapters, with their weights
 * and in their order, and all tokens from the sequence's first to the block's last. Two blocks with
 * one key hold the same bits (kernels/ops.h), so either may stand for the other. */
#ifndef TRIBUTARY_ENGINE_PREFIX_CACHE_H
#define TRIBUTARY_ENGINE_PREFIX_CACHE_H

#include "node/base/digest.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kv_pool;
struct prefix_cache;

struct prefix_key { /* sha256 */
    uint8_t bytes[32];
};

struct prefix_secret { /* random, one an engine: nobody outside can compute its keys */
    uint8_t bytes[32];
};

struct prefix_adapter {
    struct content_digest content;
    float weight;
};

/* The secret for requests that share with nobody but those of the same salt [n > 0]. */
struct prefix_secret prefix_secret_salted(const struct prefix_secret *secret, const void *salt,
                                          size_t n);

/* Keys; any thread. The root stands before the first block: n 0 is the base model's. Weights differ
 * if their bits do. A block's comes from that of the block before it, or the root, and its tokens
 * [BLOCK_TOKENS]. */
struct prefix_key prefix_key_root(const struct prefix_secret *secret,
                                  const struct prefix_adapter *adapters, int n);
struct prefix_key prefix_key_block(const struct prefix_key *before, const int32_t *tokens);

/* Over all blocks of kv that there may ever be; kv must outlive it. Allocates all it will need. */
struct prefix_cache *prefix_cache_create(struct kv_pool *kv);
void prefix_cache_free(struct prefix_cache *c); /* its references go back; quiet on NULL */

/* The block with that key, or -1. Good until the next evict. */
int32_t prefix_cache_find(const struct prefix_cache *c, const struct prefix_key *key);

/* One more sequence uses a block that was found: one more reference. A sequence takes the blocks
 * before it first, so that they stay as long. */
void prefix_cache_take(struct prefix_cache *c, int32_t block);

/* A sequence gives its reference of any block back, cached or not; its last block first. A cached
 * one that nobody uses any more is idle: it keeps its contents until it is evicted. */
void prefix_cache_drop(struct prefix_cache *c, int32_t block);

/* The caller's block is full and its bits are final. Returns the block to use in its place from now
 * on: the same, now cached with a reference of the cache's own; or, if another one with that key is
 * there, that one, and the caller's reference has moved to it. The blocks before it must be cached
 * and used by the caller. owner says whose it is, for prefix_cache_disown; 0: the base model's. */
int32_t prefix_cache_put(struct prefix_cache *c, const struct prefix_key *key, uint64_t owner,
                         int32_t block);

/* Frees one idle block, of those that are idle the longest and no other depends on; first of all
 * the disowned. There must be one. */
void prefix_cache_evict(struct prefix_cache *c);

/* The owner in whose blocks an adapter has a part: that of its content, never 0. */
uint64_t prefix_owner(const struct content_digest *content);

/* Idle blocks of these owners [n] will hardly be asked for again and may go before all others.
 * Looks at every idle block. */
void prefix_cache_disown(struct prefix_cache *c, const uint64_t *owners, int n);

/* The moment, in steps, from which ages are counted. */
void prefix_cache_tick(struct prefix_cache *c, uint64_t now);

/* An idle block as a judge sees it (judge.h). */
struct prefix_idle {
    uint64_t owner;
    bool disowned;
    uint32_t n_found; /* how often it was found since it was computed */
    uint64_t age;     /* steps that nobody has used it */
};
/* The idle block that is evicted after `block`, or first (-1); -1: there is none. */
int32_t prefix_cache_next_idle(const struct prefix_cache *c, int32_t block);
void prefix_cache_look(const struct prefix_cache *c, int32_t block, struct prefix_idle *out);

/* kv has given a block another number: so does the cache, if it knows the block. */
void prefix_cache_move(struct prefix_cache *c, int32_t from, int32_t to);

/* Sequences that use the block. 0: it is idle. */
int prefix_cache_n_users(const struct prefix_cache *c, int32_t block);

int prefix_cache_n_blocks(const struct prefix_cache *c); /* cached, idle or not */
int prefix_cache_n_idle(const struct prefix_cache *c);
uint64_t prefix_cache_n_evicted(const struct prefix_cache *c); /* so far */

#endif
