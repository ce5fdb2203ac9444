/* kv_pool: the blocks of the paged KV cache. Engine thread only. */
#ifndef TRIBUTARY_ENGINE_KV_POOL_H
#define TRIBUTARY_ENGINE_KV_POOL_H

#include <stdint.h>

struct kv_pool;

struct kv_pool *kv_pool_create(int n_blocks);
void kv_pool_free(struct kv_pool *p); /* quiet on NULL; all blocks must be back */

int32_t kv_pool_take(struct kv_pool *p);               /* a block with one reference, or -1 */
void kv_pool_retain(struct kv_pool *p, int32_t block); /* one reference more */
void kv_pool_drop(struct kv_pool *p, int32_t block);   /* one less; at zero it is free */
int kv_pool_references(const struct kv_pool *p, int32_t block);

int kv_pool_n_blocks(const struct kv_pool *p);
int kv_pool_n_free(const struct kv_pool *p);

#endif
