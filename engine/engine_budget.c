/* engine_budget: moves memory between the adapters' region and the KV cache, a brick at a time
 * (budget.h draws them). Engine thread only.
 *
 * Both sides lie at addresses that never change (ops.h, mem_reserve): recorded steps, tables of
 * adapters and block numbers stay right, only what has memory changes. The KV cache grows and
 * shrinks at its end; of the adapters' region any brick may go whose adapters are all idle
 * (lora_pool.c rule 9). Together they always have all bricks, so nothing is ever asked of the
 * driver after open, and nothing is left when the engine closes.
 *
 * When. Each plan that is made with nothing flying says what it lacked (scheduler.h, sched_want);
 * then the judge (judge.h) is asked, bricks move, and if any did the plan is made anew, on what is
 * really there. So the scheduler stays a function of what it is shown, and never counts on memory
 * that is to be had in theory. Besides wants there is pressure: a side that evicted something since
 * the last look, and would rather have a brick that is worth less on the other side.
 *
 * How, with nothing flying:
 *
 *   to the KV cache      evict what lies in the brick (idle: nobody pins it, so nothing enqueued
 *                        reads it) > unback > back the next piece of each side > blocks are free
 *   to the adapters      evict idle blocks, the oldest first, until as many are free as the last
 *                        brick has > move its used ones to free numbers below: contents
 *                        (kv_copy_blocks), pool, prefix cache, and the tables of those that run >
 *                        sync, for the copies > unback > back a brick of the region
 *
 * By hand. An adapter that is warmed or kept (engine_orders.c) is a want of its own, if it finds no
 * room: the order waits until nothing flies.
 *
 * Nothing that enqueued work reads or writes loses its memory: steps have landed, a moved block's
 * copy is waited for, and an adapter on its way is not idle. Nobody but running sequences, the pool
 * and the cache knows block numbers: those that wait have none, steps are built from the tables.
 *
 * No thrashing. After a brick went one way, the way back is closed for QUIET_PLANS plans to all but
 * running sequences' wants of blocks, and to a lone sequence's wants. What is taken back for these
 * is idle, and becomes used at once. Pressure moves one brick a plan, and only for twice its worth.
 *
 * No live-lock and no starvation. Each side keeps a floor; the KV cache's holds the longest
 * sequence that is accepted. So scheduler.c's argument holds with the cache at its floor as it
 * holds with a cache of that size, whatever moves: the anchor has its blocks, an end comes. A
 * request is accepted if its adapters fit into what the region began with, and the region may be
 * smaller when its turn comes. It is passed by, becomes overdue and a barrier; as it needs more
 * than the region has, nobody at all begins behind it (scheduler.c), so all that run come to their
 * ends, their blocks are free or idle, and the region grows to what it needs: at most what it began
 * with, which leaves the KV cache what that began with. Wants of those that wait are tried only if
 * all of it can be had, so a brick isn't taken in vain. */
#include "engine/internal.h"

#include "node/base/buf.h"

#include <math.h>
#include <stdlib.h>

enum {
    QUIET_PLANS = 64,
    LOOK_PLANS = 8, /* from a look in vain to the next; it looks at every adapter there is */
};

void engine_budget_open(struct engine *e, bool own_memory)
{
    struct mover *m = &e->mover;
    size_t n = (size_t)budget_blocks(&e->budget, e->budget.n_kv_max) + 1;
    m->moved = xcalloc(n, sizeof *m->moved);
    m->from = xcalloc(n, sizeof *m->from);
    m->to = xcalloc(n, sizeof *m->to);
    m->costs = judge_costs(e->model->n_params, own_memory);
}

void engine_budget_close(struct engine *e)
{
    free(e->mover.moved);
    free(e->mover.from);
    free(e->mover.to);
}

/* ---- moving ------------------------------------------------------------------------------ */

/* The piece of each side that brick number `brick` of the KV cache consists of. */
static int back_kv(struct engine *e, int brick, bool back, struct err *err)
{
    size_t at = (size_t)brick * e->budget.piece_bytes, n = e->budget.piece_bytes;
    for (int l = 0; l < e->model->config.n_layers; l++) {
        struct devptr sides[] = {devptr_at(e->forward.kv[l].k, at),
                                 devptr_at(e->forward.kv[l].v, at)};
        for (int i = 0; i < 2; i++) {
            if (!back)
                e->ops->mem_unback(e->be, sides[i], n);
            else if (e->ops->mem_back(e->be, sides[i], n, err) != 0)
                return -1;
        }
    }
    return 0;
}

int engine_budget_back_kv(struct engine *e, struct err *err)
{
    for (int i = 0; i < e->budget.n_kv; i++)
        if (back_kv(e, i, true, err) != 0)
            return err_wrap(err, "KV cache of %d bricks of %zu bytes", e->budget.n_kv,
                            e->budget.brick_bytes);
    return 0;
}

static int to_kv(struct engine *e, int brick, struct err *err)
{
    struct budget *b = &e->budget;
    lora_pool_give_brick(e->lora, brick);
    if (back_kv(e, b->n_kv, true, err) != 0)
        return -1;
    b->n_adapters--;
    kv_pool_resize(e->kv, budget_blocks(b, ++b->n_kv));
    e->counts.n_bricks_to_kv++;
    e->mover.adapters_quiet_until = e->n_plans + QUIET_PLANS;
    return 0;
}

/* Blocks from n on get other numbers, below. */
static void empty_end(struct engine *e, int n)
{
    struct mover *m = &e->mover;
    const struct model_config *c = &e->model->config;
    struct attention_shape shape = {
        .n_heads = c->n_heads, .n_kv_heads = c->n_kv_heads, .head_dim = c->head_dim};
    int n_moved = 0;
    for (int32_t block = n; block < kv_pool_n_blocks(e->kv); block++) {
        if (kv_pool_references(e->kv, block) == 0)
            continue;
        int32_t to = kv_pool_move(e->kv, block);
        prefix_cache_move(e->prefixes, block, to);
        m->from[n_moved] = block;
        m->to[n_moved++] = m->moved[block] = to;
    }
    e->counts.n_blocks_moved += (uint64_t)n_moved;
    for (int i = 0; i < e->n_running; i++)
        for (int k = 0; k < e->running[i]->n_blocks; k++)
            if (e->running[i]->blocks[k] >= n)
                e->running[i]->blocks[k] = m->moved[e->running[i]->blocks[k]];
    for (int l = 0; l < c->n_layers && n_moved > 0; l++)
        e->ops->kv_copy_blocks(e->be, &e->forward.kv[l], &shape, m->from, m->to, n_moved);
}

static int to_adapters(struct engine *e, struct err *err)
{
    struct budget *b = &e->budget;
    int n = budget_blocks(b, b->n_kv - 1), n_go = kv_pool_n_blocks(e->kv) - n;
    while (kv_pool_n_free(e->kv) < n_go)
        prefix_cache_evict(e->prefixes);
    empty_end(e, n);
    kv_pool_resize(e->kv, n);
    if (e->ops->sync(e->be, err) != 0)
        return -1;
    back_kv(e, --b->n_kv, false, NULL);
    lora_pool_get_brick(e->lora);
    b->n_adapters++;
    e->counts.n_bricks_to_adapters++;
    e->mover.kv_quiet_until = e->n_plans + QUIET_PLANS;
    return 0;
}

/* ---- judging ----------------------------------------------------------------------------- */

static double block_worth(const struct engine *e, int32_t block, size_t adapter_bytes)
{
    struct prefix_idle idle;
    prefix_cache_look(e->prefixes, block, &idle);
    enum judge_owner owner = OWNER_HERE;
    if (idle.disowned)
        owner = OWNER_GONE;
    else if (idle.owner != 0 && !lora_pool_has_owner(e->lora, idle.owner))
        owner = OWNER_AWAY;
    return judge_block(&e->mover.costs, BLOCK_TOKENS, idle.n_found, idle.age, owner, adapter_bytes);
}

/* What running sequences and those that the plan admits leave of the blocks. */
static int blocks_left(const struct engine *e, const struct sched_plan *plan)
{
    int n = kv_pool_n_free(e->kv) + prefix_cache_n_idle(e->prefixes);
    for (int i = 0; plan != NULL && i < plan->n_run; i++)
        n -= plan->run[i].n_blocks;
    for (int i = 0; plan != NULL && i < plan->n_admit; i++)
        n -= plan->admit[i].n_blocks + e->waiting[plan->admit[i].index]->n_found_idle;
    return n;
}

static void look_at_kv(const struct engine *e, const struct sched_plan *plan, size_t adapter_bytes,
                       bool evicts, struct judge_side *side)
{
    const struct budget *b = &e->budget;
    int n_left = blocks_left(e, plan), n_now = kv_pool_n_blocks(e->kv);
    *side = (struct judge_side){.n_bricks = b->n_kv, .n_min = b->n_kv_min, .n_max = b->n_kv_max};
    while (side->n_idle < b->n_kv && n_now - budget_blocks(b, b->n_kv - side->n_idle - 1) <= n_left)
        side->n_idle++;
    int n_brick = n_now - budget_blocks(b, b->n_kv - 1);
    int n_evict = n_brick - kv_pool_n_free(e->kv);
    int32_t block = prefix_cache_next_idle(e->prefixes, -1);
    if (evicts && block >= 0)
        side->gain = block_worth(e, block, adapter_bytes) * n_brick;
    for (; n_evict > 0 && block >= 0; n_evict--) {
        side->loss += block_worth(e, block, adapter_bytes);
        block = prefix_cache_next_idle(e->prefixes, block);
    }
    side->quiet = e->n_plans < e->mover.kv_quiet_until;
}

static void look_at_adapters(struct engine *e, bool evicts, struct judge_side *side, int *cheapest)
{
    const struct budget *b = &e->budget;
    struct lora_bricks bricks;
    lora_pool_look_at_bricks(e->lora, &e->mover.costs, &bricks);
    *cheapest = bricks.cheapest;
    *side = (struct judge_side){.n_bricks = b->n_adapters,
                                .n_min = b->n_adapters_min,
                                .n_max = b->n_adapters_max,
                                .n_idle = bricks.n_idle,
                                .loss = bricks.loss,
                                .quiet = e->n_plans < e->mover.adapters_quiet_until};
    if (evicts)
        side->gain = lora_pool_byte_worth(e->lora, &e->mover.costs) * (double)b->brick_bytes;
}

static int bricks_for(int64_t n, int64_t a_brick)
{
    return n > 0 ? (int)((n + a_brick - 1) / a_brick) : 0;
}

/* Those that the plan admits will use their adapters now. */
static void touch_adapters(struct engine *e, const struct sched_plan *plan)
{
    for (int i = 0; i < plan->n_admit; i++) {
        const struct sequence *s = e->waiting[plan->admit[i].index];
        for (int k = 0; k < s->n_adapters; k++)
            lora_pool_touch(e->lora, &s->adapters[k]->lora->content);
    }
}

/* What moves are made for, in bricks still to come. */
struct cause {
    int running, waiting, adapters;
    bool kv_evicts, adapters_evict;
};

/* Moves bricks until the judge says to stay. plan: what it grants is kept for it; or NULL. */
static int settle(struct engine *e, struct cause *cause, const struct sched_plan *plan, bool *moved,
                  struct err *err)
{
    struct lora_pool_stats pool;
    lora_pool_stats(e->lora, &pool);
    size_t usual_bytes = pool.n_uploads > 0 ? pool.bytes_uploaded / pool.n_uploads : 0;
    BUG_IF(e->flying != NULL);
    *moved = false;
    for (;;) {
        struct judge_side kv, adapters;
        int brick;
        look_at_kv(e, plan, usual_bytes, cause->kv_evicts, &kv);
        look_at_adapters(e, cause->adapters_evict, &adapters, &brick);
        kv.n_wanted_running = cause->running;
        kv.n_wanted_waiting = cause->waiting;
        adapters.n_wanted_waiting = cause->adapters;
        enum judge_verdict verdict = judge(&kv, &adapters, e->n_running == 0);
        if (verdict == JUDGE_STAY)
            break;
        if (!*moved && e->ops->sync(e->be, err) != 0)
            return -1;
        *moved = true;
        if (verdict == JUDGE_TO_KV) {
            if (to_kv(e, brick, err) != 0)
                return -1;
            cause->running -= cause->running > 0;
            cause->waiting -= cause->waiting > 0;
        } else {
            if (to_adapters(e, err) != 0)
                return -1;
            cause->adapters -= cause->adapters > 0;
        }
        cause->kv_evicts = cause->adapters_evict = false; /* one for pressure */
    }
    lora_pool_stats(e->lora, &pool);
    e->mover.n_prefixes_then = prefix_cache_n_evicted(e->prefixes);
    e->mover.n_adapters_then = pool.n_evictions;
    return 0;
}

int engine_budget_balance(struct engine *e, bool *moved, struct err *err)
{
    struct mover *m = &e->mover;
    const struct budget *b = &e->budget;
    const struct sched_want *want = &e->plan.want;
    struct lora_pool_stats pool;
    *moved = false;
    if (!e->shares)
        return 0;
    lora_pool_stats(e->lora, &pool);
    int64_t n_brick_blocks = (int64_t)(b->piece_bytes / b->side_block_bytes);
    struct cause cause = {
        .running = bricks_for(want->n_blocks_running, n_brick_blocks),
        .waiting = bricks_for(want->n_blocks_waiting, n_brick_blocks),
        .adapters = bricks_for((int64_t)want->adapter_bytes, (int64_t)b->brick_bytes),
        .kv_evicts = prefix_cache_n_evicted(e->prefixes) > m->n_prefixes_then,
        .adapters_evict = pool.n_evictions > m->n_adapters_then,
    };
    if (cause.running + cause.waiting + cause.adapters == 0 && !cause.kv_evicts &&
        !cause.adapters_evict)
        return 0;
    if (cause.running == 0 && e->n_running > 0 && e->n_plans < m->look_after)
        return 0;
    touch_adapters(e, &e->plan);
    if (settle(e, &cause, &e->plan, moved, err) != 0)
        return -1;
    m->look_after = e->n_plans + (*moved ? 0 : LOOK_PLANS);
    return 0;
}

int engine_budget_make_room(struct engine *e, size_t n_bytes, bool *moved, struct err *err)
{
    struct cause cause = {.adapters = bricks_for((int64_t)n_bytes, (int64_t)e->budget.brick_bytes)};
    return settle(e, &cause, NULL, moved, err);
}
