/* sequence_blocks: a sequence's KV blocks: from the pool, from the prefix cache, and back. Engine
 * thread only, but for sequence_blocks_init. */
#ifndef TRIBUTARY_ENGINE_SEQUENCE_BLOCKS_H
#define TRIBUTARY_ENGINE_SEQUENCE_BLOCKS_H

#include "engine/kv_pool.h"
#include "engine/prefix_cache.h"
#include "engine/sequence.h"

/* When the sequence is made, its prompt, adapters and n_total_max filled in: memory for its blocks,
 * and, if it takes part in the prefix cache, the keys of its prompt. */
void sequence_blocks_init(struct sequence *s, const struct prefix_secret *secret, bool uses_cache);
void sequence_blocks_release(struct sequence *s); /* that memory; no blocks may be left */

/* Of a waiting sequence: notes in n_found how many of its first blocks the cache has now, and in
 * n_found_idle how many of these nobody uses. Good until a block is evicted. */
void sequence_blocks_look_up(const struct prefix_cache *c, struct sequence *s);

/* Takes the blocks that were found: the sequence has them and has computed them. */
void sequence_blocks_reuse(struct prefix_cache *c, struct sequence *s);

/* Takes n more. There must be so many free ones and idle ones of the cache together. */
void sequence_blocks_take(struct kv_pool *kv, struct prefix_cache *c, struct sequence *s, int n);

/* Tokens up to n_cached are computed, by steps that are done: blocks that got full enter the cache.
 * Some may change their number, for one that holds the same bits. */
void sequence_blocks_publish(struct prefix_cache *c, struct sequence *s);

/* All go back; none of its tokens is computed any more. */
void sequence_blocks_drop(struct prefix_cache *c, struct sequence *s);

/* Those that another sequence uses, too. */
int sequence_blocks_n_shared(const struct prefix_cache *c, const struct sequence *s);

/* Aborts unless the sequence may write its tokens from n_cached to n_cached + n_rows: it alone
 * knows the blocks in which they lie. */
void sequence_blocks_check_writable(const struct kv_pool *kv, const struct sequence *s,
                                    int n_cached, int n_rows);

#endif
