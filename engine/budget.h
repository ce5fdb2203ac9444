/* budget: the device memory that adapters and the KV cache share, cut into bricks. Pure numbers;
 * engine_budget.c moves the memory.
 *
 * A brick is what moves: one piece of the K and one of the V of each layer, whole granules each, or
 * as many bytes in a row in the adapters' region:
 *
 *     layer 0  K |piece 0|piece 1|piece 2|- - - -|- - - -|     |piece|: has memory
 *              V |piece 0|piece 1|piece 2|- - - -|- - - -|     |- - -|: addresses only
 *     layer 1  K |piece 0|piece 1|piece 2|- - - -|- - - -|
 *              V |piece 0|piece 1|piece 2|- - - -|- - - -|
 *     adapters   |   brick 0     |   brick 1     |- - - - - - - -|- - -
 *
 * A KV block may lie across two pieces; it is there when both are. */
#ifndef TRIBUTARY_ENGINE_BUDGET_H
#define TRIBUTARY_ENGINE_BUDGET_H

#include <stdbool.h>
#include <stddef.h>

struct budget_sizes {
    size_t total_bytes;      /* for both */
    size_t adapter_bytes;    /* of these, what adapters begin with at least */
    size_t side_block_bytes; /* of a block in K, or in V, of one layer */
    int n_sides;             /* 2 a layer */
    size_t granule_bytes;
    int n_blocks_useful; /* more are never needed */
};

struct budget {
    size_t brick_bytes, piece_bytes;
    size_t side_block_bytes;
    int n_bricks;
    int n_kv, n_kv_min, n_kv_max; /* bricks of the KV cache: now, and its bounds */
    int n_adapters, n_adapters_min, n_adapters_max; /* likewise; n_kv + n_adapters = n_bricks */
    int n_blocks_useful;
};

/* Divides at open. The KV cache keeps a quarter of what it begins with, and so do the adapters of
 * their share. False: there are too few bricks for moving to make sense. */
bool budget_divide(struct budget *b, const struct budget_sizes *sizes);

/* The KV cache keeps what n_blocks need; they fit into what it begins with. */
void budget_keep_blocks(struct budget *b, int n_blocks);

/* Blocks that so many bricks hold; never more than are useful. */
int budget_blocks(const struct budget *b, int n_bricks);

#endif
