/* kv_pool: see kv_pool.h.
 *
 * A block is BLOCK_TOKENS tokens of K and V in every layer at the same index; the pool deals in
 * indexes and knows no memory. The rules:
 *
 *   1. A block is free, or it has as many references as there are block tables that list it, and
 *      one more if the prefix cache knows it.
 *   2. Who takes or retains a block drops it exactly once. A sequence drops all of its blocks when
 *      it finishes, is cancelled or preempted, in one place (engine_run.c,
 *      sequence_release_device).
 *   3. A block is written only by the sequence that lists it, at positions it is computing, and
 *      only while it has one reference (sequence_blocks_check_writable). Nobody copies before
 *      writing: only full blocks get a second reference, and those are read only for good.
 *   4. A free block's contents mean nothing; nobody clears it. Attention reads positions below
 *      kv_len only, and those have been written by rule 3.
 *   5. Blocks are taken only after the scheduler granted them (scheduler.h), so that taking never
 *      fails in the middle of a step.
 *   6. Taking prefers the block that became free last: it is the likeliest to be in a cache. */
#include "engine/kv_pool.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>

struct kv_pool {
    int32_t *free;       /* [n_free] a stack */
    int32_t *references; /* [n_blocks] */
    int n_blocks, n_free;
};

struct kv_pool *kv_pool_create(int n_blocks)
{
    BUG_IF(n_blocks < 1);
    struct kv_pool *p = xcalloc(1, sizeof *p);
    p->free = xcalloc((size_t)n_blocks, sizeof *p->free);
    p->references = xcalloc((size_t)n_blocks, sizeof *p->references);
    p->n_blocks = p->n_free = n_blocks;
    for (int i = 0; i < n_blocks; i++)
        p->free[i] = n_blocks - 1 - i; /* block 0 goes first */
    return p;
}

void kv_pool_free(struct kv_pool *p)
{
    if (p == NULL)
        return;
    BUG_IF(p->n_free != p->n_blocks);
    free(p->free);
    free(p->references);
    free(p);
}

int32_t kv_pool_take(struct kv_pool *p)
{
    if (p->n_free == 0)
        return -1;
    int32_t block = p->free[--p->n_free];
    BUG_IF(p->references[block] != 0);
    p->references[block] = 1;
    return block;
}

void kv_pool_retain(struct kv_pool *p, int32_t block)
{
    BUG_IF(block < 0 || block >= p->n_blocks || p->references[block] < 1);
    p->references[block]++;
}

void kv_pool_drop(struct kv_pool *p, int32_t block)
{
    BUG_IF(block < 0 || block >= p->n_blocks || p->references[block] < 1);
    if (--p->references[block] == 0)
        p->free[p->n_free++] = block;
}

int kv_pool_references(const struct kv_pool *p, int32_t block)
{
    BUG_IF(block < 0 || block >= p->n_blocks);
    return p->references[block];
}

int kv_pool_n_blocks(const struct kv_pool *p)
{
    return p->n_blocks;
}

int kv_pool_n_free(const struct kv_pool *p)
{
    return p->n_free;
}
