/* kv_pool: the blocks of the paged KV cache. Engine thread only.
 *
 * It may have fewer blocks than numbers: those with memory are the first n_blocks of n_max, and the
 * number of them may change (engine_budget.c). */
#ifndef TRIBUTARY_ENGINE_KV_POOL_H
#define TRIBUTARY_ENGINE_KV_POOL_H

#include <stdint.h>

struct kv_pool;

struct kv_pool *kv_pool_create(int n_blocks, int n_max); /* n_blocks 1 to n_max */
void kv_pool_free(struct kv_pool *p);                    /* quiet on NULL; all must be back */

int32_t kv_pool_take(struct kv_pool *p);               /* a block with one reference, or -1 */
void kv_pool_retain(struct kv_pool *p, int32_t block); /* one reference more */
void kv_pool_drop(struct kv_pool *p, int32_t block);   /* one less; at zero it is free */
int kv_pool_references(const struct kv_pool *p, int32_t block);

/* From now on the first n blocks have memory. Those that go must be free. */
void kv_pool_resize(struct kv_pool *p, int n);
int kv_pool_n_used_from(const struct kv_pool *p, int first); /* with numbers from `first` on */
/* A used block gets the lowest free number, with all its references, which is returned; its own is
 * free then. There must be a free one below it. Whoever lists the block must be told. */
int32_t kv_pool_move(struct kv_pool *p, int32_t block);

int kv_pool_n_blocks(const struct kv_pool *p);
int kv_pool_n_max(const struct kv_pool *p);
int kv_pool_n_free(const struct kv_pool *p);

#endif
