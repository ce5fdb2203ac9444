/* sequence_blocks: see sequence_blocks.h.
 *
 *     tokens   |0 ... 15|16 ... 31|32 ... 47|48 ..  n_cached .. n_tokens |
 *     blocks   |   b0   |   b1    |   b2    |   b3                       |
 *     keys   k0|   k1   |   k2    |   k3    |    a key when it is full
 *              |<- n_published, cached --->|<- its own, written to ---->|
 *
 * keys[0] is the root of its adapters, keys[i + 1] that of block i. Those of a prompt are made
 * where it is submitted, by that thread; those of generated tokens here, one every BLOCK_TOKENS
 * steps. They don't depend on blocks, so a preempted sequence keeps them.
 *
 * Which blocks may be taken from the cache. At least one token is always computed, because the next
 * one is drawn from its logits; so a prompt of exactly two blocks takes one. A request for the
 * log-probabilities of its prompt needs the logits of every position that wasn't reported yet: a
 * new one takes nothing, one that was preempted what lies before.
 *
 * What the cache has of a chain is always a beginning of it (prefix_cache.c rule 3), and what is
 * idle of this an end. So both are looked for from where they were the last time, up or down: a
 * sequence that waits for long asks for two keys a plan, not for all.
 *
 * A block enters when the step that filled it is done. One behind it may fly already, and may have
 * been built with another number for a block that then turns out to be in the cache: the number in
 * flight is of a block with the same bits, and what writes to that block after it was given back is
 * enqueued behind the step that reads it. */
#include "engine/sequence_blocks.h"

#include "kernels/ops.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>

static void make_keys(struct sequence *s, int n)
{
    for (; s->n_keys < n; s->n_keys++)
        s->keys[s->n_keys + 1] = prefix_key_block(&s->keys[s->n_keys],
                                                  s->tokens + (size_t)s->n_keys * BLOCK_TOKENS);
}

void sequence_blocks_init(struct sequence *s, const struct prefix_secret *secret, bool uses_cache)
{
    struct prefix_adapter adapters[ENGINE_ADAPTERS_MAX];
    s->blocks = xcalloc((size_t)(s->n_total_max + BLOCK_TOKENS - 1) / BLOCK_TOKENS,
                        sizeof *s->blocks);
    if (!uses_cache)
        return;
    s->keys = xcalloc((size_t)s->n_total_max / BLOCK_TOKENS + 1, sizeof *s->keys);
    for (int i = 0; i < s->n_adapters; i++)
        adapters[i] = (struct prefix_adapter){s->adapters[i]->lora->content, s->weights[i]};
    s->keys[0] = prefix_key_root(secret, adapters, s->n_adapters);
    make_keys(s, s->n_prompt / BLOCK_TOKENS);
}

void sequence_blocks_release(struct sequence *s)
{
    BUG_IF(s->n_blocks != 0);
    free(s->blocks);
    free(s->keys);
}

void sequence_blocks_look_up(const struct prefix_cache *c, struct sequence *s)
{
    int n_tokens = s->n_tokens - 1;
    if (s->keys == NULL)
        return;
    if (s->prompt_logprobs && s->n_scored + 1 < s->n_prompt)
        n_tokens = s->n_scored;
    int n_max = n_tokens / BLOCK_TOKENS, n = s->n_found < n_max ? s->n_found : n_max;
    make_keys(s, n_max);
    while (n > 0 && prefix_cache_find(c, &s->keys[n]) < 0)
        n--;
    while (n < n_max && prefix_cache_find(c, &s->keys[n + 1]) >= 0)
        n++;
    int used = s->n_found - s->n_found_idle;
    if (used > n)
        used = n;
    while (used > 0 && prefix_cache_n_users(c, prefix_cache_find(c, &s->keys[used])) == 0)
        used--;
    while (used < n && prefix_cache_n_users(c, prefix_cache_find(c, &s->keys[used + 1])) > 0)
        used++;
    s->n_found = n;
    s->n_found_idle = n - used;
}

void sequence_blocks_reuse(struct prefix_cache *c, struct sequence *s)
{
    BUG_IF(s->n_blocks != 0);
    for (; s->n_blocks < s->n_found; s->n_blocks++) {
        int32_t block = prefix_cache_find(c, &s->keys[s->n_blocks + 1]);
        BUG_IF(block < 0);
        prefix_cache_take(c, block);
        s->blocks[s->n_blocks] = block;
    }
    s->n_published = s->n_blocks;
    s->n_cached = s->n_blocks * BLOCK_TOKENS;
}

void sequence_blocks_take(struct kv_pool *kv, struct prefix_cache *c, struct sequence *s, int n)
{
    for (int i = 0; i < n; i++) {
        if (kv_pool_n_free(kv) == 0)
            prefix_cache_evict(c); /* the plan counted */
        s->blocks[s->n_blocks++] = kv_pool_take(kv);
    }
}

void sequence_blocks_publish(struct prefix_cache *c, struct sequence *s)
{
    int n_full = s->n_cached / BLOCK_TOKENS;
    uint64_t owner = s->n_adapters > 0 ? prefix_owner(&s->adapters[0]->lora->content) : 0;
    if (s->keys == NULL)
        return;
    make_keys(s, n_full);
    for (; s->n_published < n_full; s->n_published++) {
        int32_t *block = &s->blocks[s->n_published];
        *block = prefix_cache_put(c, &s->keys[s->n_published + 1], owner, *block);
    }
}

void sequence_blocks_drop(struct prefix_cache *c, struct sequence *s)
{
    while (s->n_blocks > 0)
        prefix_cache_drop(c, s->blocks[--s->n_blocks]);
    s->n_published = s->n_cached = 0;
}

int sequence_blocks_n_shared(const struct prefix_cache *c, const struct sequence *s)
{
    int n = 0;
    for (int i = 0; i < s->n_published; i++)
        n += prefix_cache_n_users(c, s->blocks[i]) > 1;
    return n;
}

void sequence_blocks_check_writable(const struct kv_pool *kv, const struct sequence *s,
                                    int n_cached, int n_rows)
{
    int last = (n_cached + n_rows - 1) / BLOCK_TOKENS;
    for (int i = n_cached / BLOCK_TOKENS; i <= last; i++)
        BUG_IF(kv_pool_references(kv, s->blocks[i]) != 1);
}
