/* budget: see budget.h. */
#include "engine/budget.h"

#include "node/base/err.h"

#include <limits.h>

enum {
    BRICKS_MIN = 8,    /* with fewer, a move is a revolution */
    BRICKS_MAX = 1024, /* finer than this is of no use, and each has its calls of the driver */
    KEEPS_PART = 4,    /* of what a side begins with, one part is never given */
};

static size_t part_up(size_t a, size_t b)
{
    return (a + b - 1) / b;
}

static int at_least(int a, int b)
{
    return a > b ? a : b;
}

static int at_most(int a, int b)
{
    return a < b ? a : b;
}

static int bricks_for(const struct budget *b, int n_blocks)
{
    return (int)part_up((size_t)n_blocks * b->side_block_bytes, b->piece_bytes);
}

bool budget_divide(struct budget *b, const struct budget_sizes *s)
{
    BUG_IF(s->granule_bytes == 0 || s->side_block_bytes == 0 || s->n_sides < 1 ||
           s->n_blocks_useful < 1 || s->adapter_bytes > s->total_bytes);
    size_t least = s->granule_bytes * (size_t)s->n_sides;
    size_t n_granules = part_up(s->side_block_bytes, s->granule_bytes);
    if (n_granules < s->total_bytes / BRICKS_MAX / least)
        n_granules = s->total_bytes / BRICKS_MAX / least;
    *b = (struct budget){.brick_bytes = least * n_granules,
                         .piece_bytes = s->granule_bytes * n_granules,
                         .side_block_bytes = s->side_block_bytes,
                         .n_blocks_useful = s->n_blocks_useful};
    if (s->total_bytes / b->brick_bytes < BRICKS_MIN)
        return false;
    b->n_bricks = (int)(s->total_bytes / b->brick_bytes);
    int share = at_least(1, (int)part_up(s->adapter_bytes, b->brick_bytes));
    int useful = bricks_for(b, s->n_blocks_useful);
    if (share >= b->n_bricks)
        return false;
    b->n_kv = at_most(b->n_bricks - share, useful);
    b->n_kv_min = at_least(1, b->n_kv / KEEPS_PART);
    b->n_adapters = b->n_bricks - b->n_kv;
    b->n_adapters_min = at_least(1, share / KEEPS_PART);
    b->n_kv_max = at_most(b->n_bricks - b->n_adapters_min, useful);
    b->n_adapters_max = b->n_bricks - b->n_kv_min;
    return true;
}

void budget_keep_blocks(struct budget *b, int n_blocks)
{
    int n = bricks_for(b, n_blocks);
    BUG_IF(n > b->n_kv);
    b->n_kv_min = at_least(b->n_kv_min, n);
    b->n_adapters_max = b->n_bricks - b->n_kv_min;
}

int budget_blocks(const struct budget *b, int n_bricks)
{
    size_t n = (size_t)n_bricks * b->piece_bytes / b->side_block_bytes;
    return n < (size_t)b->n_blocks_useful ? (int)n : b->n_blocks_useful;
}
