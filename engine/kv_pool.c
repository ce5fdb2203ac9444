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
 *   6. Taking prefers low numbers, so that the end is empty as soon as can be: it is where the pool
 *      shrinks. What is used there is moved (kv_pool_move), contents, tables and cache together, by
 *      the one who shrinks it, and nobody may hold a number over that. */
#include "engine/kv_pool.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>

enum { WORD_BITS = 64 };

struct kv_pool {
    uint64_t *free;      /* a bit a block of n_max; set: it is free and has memory */
    int32_t *references; /* [n_max] */
    int n_blocks, n_max, n_free;
    int first_word; /* no earlier one has a free block */
};

static void set_free(struct kv_pool *p, int32_t block)
{
    int word = block / WORD_BITS;
    p->free[word] |= (uint64_t)1 << block % WORD_BITS;
    p->n_free++;
    if (word < p->first_word)
        p->first_word = word;
}

static void clear_free(struct kv_pool *p, int32_t block)
{
    p->free[block / WORD_BITS] &= ~((uint64_t)1 << block % WORD_BITS);
    p->n_free--;
}

struct kv_pool *kv_pool_create(int n_blocks, int n_max)
{
    BUG_IF(n_blocks < 1 || n_max < n_blocks);
    struct kv_pool *p = xcalloc(1, sizeof *p);
    p->free = xcalloc((size_t)n_max / WORD_BITS + 1, sizeof *p->free);
    p->references = xcalloc((size_t)n_max, sizeof *p->references);
    p->n_max = n_max;
    kv_pool_resize(p, n_blocks);
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
    while (p->free[p->first_word] == 0)
        p->first_word++;
    int32_t block = p->first_word * WORD_BITS + __builtin_ctzll(p->free[p->first_word]);
    BUG_IF(p->references[block] != 0);
    clear_free(p, block);
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
        set_free(p, block);
}

void kv_pool_resize(struct kv_pool *p, int n)
{
    BUG_IF(n < 1 || n > p->n_max);
    for (; p->n_blocks < n; p->n_blocks++)
        set_free(p, p->n_blocks);
    while (p->n_blocks > n) {
        BUG_IF(p->references[--p->n_blocks] != 0);
        clear_free(p, p->n_blocks);
    }
}

int kv_pool_n_used_from(const struct kv_pool *p, int first)
{
    int n = 0;
    for (int32_t block = first; block < p->n_blocks; block++)
        n += p->references[block] != 0;
    return n;
}

int32_t kv_pool_move(struct kv_pool *p, int32_t block)
{
    int32_t to = kv_pool_take(p);
    BUG_IF(to < 0 || to >= block || p->references[block] < 1);
    p->references[to] = p->references[block];
    p->references[block] = 0;
    set_free(p, block);
    return to;
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

int kv_pool_n_max(const struct kv_pool *p)
{
    return p->n_max;
}

int kv_pool_n_free(const struct kv_pool *p)
{
    return p->n_free;
}
