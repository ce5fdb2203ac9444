/* engine_device: what the engine has on its device, opened in an order that lets the last ones take
 * what memory is left. Engine thread only.
 *
 *     backend > weights > activations > adapter pool > KV cache > batch > recordings
 *
 * Memory is taken at open and never after. Where the device's memory is the host's (cpu, ref), the
 * two pools have sizes from the options or their defaults: nobody can say what else the machine
 * wants its memory for. A device with memory of its own is there for the engine, so the pools take
 * what is left:
 *
 *     |<------------------- free when the engine opened ------------------->|
 *     | weights, activations | batch, ...    |  adapters  |   KV cache   | kept free |
 *     |                      |<-- RESERVE -->|<-- 1/4 --->|              |           |
 *     |<----------------- gpu_memory of it -------------------------------->|
 *
 * If the options size neither pool, what they have is cut into bricks (budget.h), and this is only
 * how they begin: bricks go where they are worth most (engine_budget.c). What the KV cache can't
 * use is the adapters' then. With a size for one, or too little for bricks, each keeps what it got.
 */
#include "engine/internal.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/log.h"

#include <stdlib.h>
#include <string.h>

enum {
    LOGIT_ROWS_HOST = 64, /* logits made at once: 33 MB for a vocabulary of 128k */
    /* Adapters resident at once, if the pool's bytes suffice: one for so many bytes of it. */
    SLOT_BYTES = 4 << 20,
    SLOTS_MIN = 2048,
    SLOTS_MAX = 16384,
    HOST_FIRST_BYTES = 1 << 30, /* pinned memory for adapters taken at open */
};

static const size_t HOST_SHARED_BYTES = (size_t)1536 << 20;
/* Of what adapters and KV cache share, adapters begin with one part. */
enum { ADAPTERS_PART_HOST = 3, ADAPTERS_PART_DEVICE = 4 };

/* For what is allocated behind the pools: the batch and the tables of adapters, which are counted,
 * and recordings, which are not known before. A quarter of what is left at most, for small devices.
 */
static const size_t RESERVE_BYTES = (size_t)256 << 20;

const struct ops *engine_debug_ops;

static int max_of(int a, int b)
{
    return a > b ? a : b;
}

static int min_of(int a, int b)
{
    return a < b ? a : b;
}

static int open_backend(struct engine *e, struct backend_caps *caps, struct err *err)
{
    const struct model_config *c = &e->model->config;
    const struct engine_options *o = &e->options;
    e->ops = engine_debug_ops != NULL ? engine_debug_ops : ops_find(o->backend, err);
    if (e->ops == NULL)
        return -1;
    int heads = c->n_heads * c->head_dim, kv_heads = c->n_kv_heads * c->head_dim;
    struct backend_options options = {
        .n_threads = o->n_threads,
        .max_rows = o->max_rows,
        .max_d = max_of(max_of(c->hidden, 2 * c->ffn), heads + 2 * kv_heads),
        .max_rank = LORA_RANK_SUM_MAX,
        .max_seqs = o->max_seqs,
        .max_context = e->max_context,
        .weights_int8 = engine_has_int8(o),
    };
    if (e->ops->open(&e->be, &options, err) != 0)
        return -1;
    e->ops->caps(e->be, caps);
    memcpy(e->backend_text, caps->description, sizeof e->backend_text);
    e->backend_text[sizeof e->backend_text - 1] = '\0';
    return 0;
}

/* ---- memory ------------------------------------------------------------------------------ */

struct shares { /* of the two pools, and what both may have together */
    size_t adapter_bytes, kv_bytes, total_bytes;
};

static int blocks_for(int n_tokens)
{
    return (n_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
}

static bool wants_sharing(const struct engine_options *o)
{
    return o->adapter_bytes == 0 && o->kv_bytes == 0;
}

/* Of the host's memory: known before anything else is there. */
static struct shares host_shares(const struct engine_options *o)
{
    size_t total = o->shared_bytes != 0 ? o->shared_bytes : HOST_SHARED_BYTES;
    struct shares shares = {
        .adapter_bytes = o->adapter_bytes != 0 ? o->adapter_bytes
                                               : HOST_SHARED_BYTES / ADAPTERS_PART_HOST,
        .kv_bytes = o->kv_bytes != 0 ? o->kv_bytes
                                     : HOST_SHARED_BYTES - HOST_SHARED_BYTES / ADAPTERS_PART_HOST,
        .total_bytes = total,
    };
    if (wants_sharing(o)) {
        shares.adapter_bytes = total / ADAPTERS_PART_HOST;
        shares.kv_bytes = total - shares.adapter_bytes;
    }
    return shares;
}

/* Adapters that may be resident at once, if so many bytes are the most that they may have. */
static int slots_for(const struct engine_options *o, size_t n_bytes)
{
    size_t slots = n_bytes / SLOT_BYTES;
    int n_slots = slots > SLOTS_MAX ? SLOTS_MAX : max_of(SLOTS_MIN, (int)slots);
    return max_of(n_slots, o->max_seqs * ENGINE_ADAPTERS_MAX);
}

/* What weights and activations left. */
static int divide_memory(struct engine *e, size_t free_at_open, struct shares *out, struct err *err)
{
    const struct engine_options *o = &e->options;
    struct backend_caps caps;
    if (e->ops->sync(e->be, err) != 0)
        return -1;
    e->ops->caps(e->be, &caps);
    size_t taken = free_at_open > caps.memory_free_bytes ? free_at_open - caps.memory_free_bytes
                                                         : 0;
    size_t ours = (size_t)((double)free_at_open * (double)o->gpu_memory);
    size_t left = ours > taken ? ours - taken : 0;
    size_t batch = stepper_bytes(o->max_rows, o->max_seqs, blocks_for(e->max_context));
    size_t tables = (size_t)slots_for(o, o->adapter_bytes != 0 ? o->adapter_bytes : left) *
                    (size_t)model_n_sites(&e->model->config) * sizeof(struct lora_entry);
    size_t reserve = RESERVE_BYTES < left / 4 ? RESERVE_BYTES : left / 4;
    size_t behind = reserve + batch + tables;
    left = left > behind ? left - behind : 0;
    size_t total = wants_sharing(o) && o->shared_bytes != 0 ? o->shared_bytes : left;
    out->total_bytes = total;
    out->adapter_bytes = o->adapter_bytes != 0 ? o->adapter_bytes : total / ADAPTERS_PART_DEVICE;
    size_t rest = total > out->adapter_bytes ? total - out->adapter_bytes : 0;
    out->kv_bytes = o->kv_bytes != 0 ? o->kv_bytes : rest;
    if (out->adapter_bytes > left || out->kv_bytes > left - out->adapter_bytes)
        return err_set(
            err, ERR_NO_MEMORY,
            "%zu MiB of %zu MiB of device memory (gpu_memory %g) are left beside weights "
            "and workspace; adapters (%zu MiB) and KV cache (%zu MiB) don't fit",
            left >> 20, ours >> 20, (double)o->gpu_memory, out->adapter_bytes >> 20,
            out->kv_bytes >> 20);
    return 0;
}

/* Blocks that the sequences could fill. */
static size_t useful_blocks(const struct engine *e)
{
    size_t n = (size_t)blocks_for(e->max_context) * (size_t)e->options.max_seqs;
    return n < INT32_MAX / BLOCK_TOKENS - 1 ? n : INT32_MAX / BLOCK_TOKENS - 1;
}

/* Cuts into bricks, or leaves it (e->shares); returns the number of blocks then, padding's
 * included. */
static int share_memory(struct engine *e, const struct backend_caps *caps,
                        const struct shares *shares)
{
    struct budget_sizes sizes = {
        .total_bytes = shares->total_bytes,
        .adapter_bytes = shares->adapter_bytes,
        .side_block_bytes = forward_side_block_bytes(&e->model->config, caps->activation),
        .n_sides = 2 * e->model->config.n_layers,
        .granule_bytes = caps->granule_bytes,
        .n_blocks_useful = (int)useful_blocks(e) + 1,
    };
    size_t kv_bytes = (size_t)sizes.n_blocks_useful * sizes.side_block_bytes *
                      (size_t)sizes.n_sides;
    if (!caps->own_memory && kv_bytes < shares->kv_bytes) /* the host has other uses for the rest */
        sizes.total_bytes = shares->adapter_bytes + kv_bytes;
    e->shares = budget_divide(&e->budget, &sizes);
    return e->shares ? budget_blocks(&e->budget, e->budget.n_kv) : 0;
}

/* The KV cache has not even one block: which option has to be larger, and how much. */
static int too_small_for_kv(const struct engine *e, const struct backend_caps *caps,
                            size_t block_bytes, const struct shares *shares, struct err *err)
{
    const struct engine_options *o = &e->options;
    size_t part = caps->own_memory ? ADAPTERS_PART_DEVICE : ADAPTERS_PART_HOST;
    if (o->kv_bytes != 0)
        return err_set(err, ERR_INVALID,
                       "kv_bytes is %zu, it must be at least %zu: one block of the KV cache",
                       o->kv_bytes, block_bytes);
    if (wants_sharing(o) && o->shared_bytes != 0)
        return err_set(err, ERR_INVALID,
                       "shared_bytes is %zu, it must be at least %zu: adapters begin with one part "
                       "in %zu of it, and one block of the KV cache needs %zu bytes",
                       o->shared_bytes, (block_bytes - 1) * part / (part - 1) + 1, part,
                       block_bytes);
    return err_set(err, ERR_NO_MEMORY,
                   "%zu bytes are left for the KV cache, one block of it needs %zu",
                   shares->kv_bytes, block_bytes);
}

/* How many blocks the KV cache has, beside padding's; shortens max_context to what one sequence
 * could fill. */
static int size_kv(struct engine *e, const struct backend_caps *caps, const struct shares *shares,
                   int *n_blocks, struct err *err)
{
    size_t block_bytes = forward_block_bytes(&e->model->config, caps->activation);
    size_t n = shares->kv_bytes / block_bytes, useful = useful_blocks(e);
    if (wants_sharing(&e->options)) {
        int n_shared = share_memory(e, caps, shares);
        n = n_shared > 1 ? (size_t)n_shared - 1 : n;
    }
    if (n > useful)
        n = useful;
    if (n == 0)
        return too_small_for_kv(e, caps, block_bytes, shares, err);
    if (n * BLOCK_TOKENS < (size_t)e->max_context) {
        log_warn("engine", "the KV cache holds %zu tokens: context shortened from %d",
                 n * BLOCK_TOKENS, e->max_context);
        e->max_context = (int)(n * BLOCK_TOKENS);
    }
    *n_blocks = (int)n;
    if (e->shares)
        budget_keep_blocks(&e->budget, blocks_for(e->max_context) + 1);
    return 0;
}

/* ---- opening ----------------------------------------------------------------------------- */

static int open_weights(struct engine *e, const struct backend_caps *caps, struct err *err)
{
    const struct engine_options *o = &e->options;
    int logit_rows = caps->own_memory ? max_of(LOGIT_ROWS_HOST, STEP_DECODE_ROWS_MAX)
                                      : LOGIT_ROWS_HOST;
    if (weights_create(&e->weights, e->model, e->ops, e->be, e->max_context, err) != 0)
        return -1;
    if (!caps->loads_in_place)
        model_forget_random(e->model);
    return forward_create(&e->forward, &e->model->config, &e->weights, e->ops, e->be, o->max_rows,
                          min_of(logit_rows, o->max_rows), err);
}

static void retain_adapter(void *engine, void *adapter)
{
    struct engine *e = engine;
    struct loaded_adapter *a = adapter;
    loaded_adapters_retain(e->adapters, a);
    atomic_fetch_add(&a->n_uploads, 1);
}

static void drop_adapter(void *engine, void *adapter)
{
    struct engine *e = engine;
    loaded_adapters_unuse(e->adapters, adapter);
}

static int open_host_memory(struct engine *e, const struct backend_caps *caps, struct err *err)
{
    size_t most = e->options.adapter_host_bytes;
    size_t first = most < HOST_FIRST_BYTES ? most : HOST_FIRST_BYTES;
    e->prefetches = caps->own_memory;
    return host_memory_create(&e->host, e->ops, caps->own_memory ? first : 0, err);
}

static int open_lora(struct engine *e, size_t n_bytes, struct err *err)
{
    const struct engine_options *o = &e->options;
    const struct budget *b = &e->budget;
    struct lora_region region = {.n_bytes = n_bytes};
    if (e->shares)
        region = (struct lora_region){.brick_bytes = b->brick_bytes,
                                      .n_bricks = b->n_adapters,
                                      .n_bricks_max = b->n_adapters_max};
    size_t most = e->shares ? b->brick_bytes * (size_t)b->n_adapters_max : n_bytes;
    if (lora_pool_create(&e->lora, &e->model->config, e->ops, e->be, &region, slots_for(o, most),
                         err) != 0)
        return -1;
    struct lora_pool_stats pool;
    struct lora_pool_owners owners = {retain_adapter, drop_adapter, e};
    lora_pool_set_owners(e->lora, &owners);
    lora_pool_stats(e->lora, &pool);
    e->adapter_pool_bytes = pool.bytes_total;
    return 0;
}

/* n_blocks, and one more for padding. */
static int open_kv(struct engine *e, int n_blocks, struct err *err)
{
    const struct budget *b = &e->budget;
    int n_max = e->shares ? budget_blocks(b, b->n_kv_max) : n_blocks + 1;
    e->kv = kv_pool_create(n_blocks + 1, n_max);
    e->pad_block = kv_pool_take(e->kv);
    e->prefixes = prefix_cache_create(e->kv);
    if (!e->shares)
        return forward_create_kv(&e->forward, n_blocks + 1, err);
    if (forward_reserve_kv(&e->forward, (size_t)b->n_kv_max * b->piece_bytes, err) != 0)
        return -1;
    return engine_budget_back_kv(e, err);
}

static int open_steps(struct engine *e, struct err *err)
{
    const struct engine_options *o = &e->options;
    if (stepper_create(&e->stepper, e->ops, e->be, &e->forward, e->lora, o->max_rows, o->max_seqs,
                       blocks_for(e->max_context), e->pad_block, o->debug_pad, err) != 0 ||
        stepper_record(&e->stepper, err) != 0)
        return -1;
    e->overlaps = e->stepper.recorded || o->debug_overlap;
    return e->ops->sync(e->be, err);
}

static void open_lists(struct engine *e)
{
    const struct engine_options *o = &e->options;
    int max_waiting = o->max_waiting + o->max_seqs; /* preempted ones come back */
    int max_adapters = (max_waiting + o->max_seqs) * ENGINE_ADAPTERS_MAX;
    sched_plan_init(&e->plan, o->max_seqs, max_waiting, max_adapters);
    e->running = xcalloc((size_t)o->max_seqs, sizeof(struct sequence *));
    e->waiting = xcalloc((size_t)max_waiting, sizeof(struct sequence *));
    /* All that may end from one delivery to the next, and those that ended before and still fly. */
    e->done = xcalloc((size_t)(max_waiting + 3 * o->max_seqs), sizeof(struct sequence *));
    e->max_events = o->max_rows + 2 * o->max_seqs + ENGINE_WAITING_EVENTS_EXTRA;
    e->events = xcalloc((size_t)e->max_events, sizeof *e->events);
    e->sched_running = xcalloc((size_t)o->max_seqs, sizeof *e->sched_running);
    e->sched_waiting = xcalloc((size_t)max_waiting, sizeof *e->sched_waiting);
    e->sched_adapters = xcalloc((size_t)max_adapters, sizeof *e->sched_adapters);
}

static void tell_memory(const struct engine *e, const struct backend_caps *at_open, int n_blocks)
{
    struct backend_caps now;
    e->ops->caps(e->be, &now);
    size_t kv = (size_t)n_blocks * forward_block_bytes(&e->model->config, now.activation);
    size_t known = now.memory_free_bytes + kv + e->adapter_pool_bytes;
    /* Another process on the card may have given some back meanwhile. */
    size_t rest = at_open->memory_free_bytes > known ? at_open->memory_free_bytes - known : 0;
    if (now.own_memory)
        log_info("engine",
                 "device memory, MiB: %zu of %zu were free; weights, workspace and recordings %zu, "
                 "adapters %zu, KV cache %zu (%d blocks); left %zu",
                 at_open->memory_free_bytes >> 20, at_open->memory_total_bytes >> 20, rest >> 20,
                 e->adapter_pool_bytes >> 20, kv >> 20, n_blocks, now.memory_free_bytes >> 20);
}

int engine_device_open(struct engine *e, struct err *err)
{
    struct backend_caps caps;
    struct shares shares;
    int n_blocks = 0;
    if (open_backend(e, &caps, err) != 0 ||
        lora_held_for(&e->held, e->options.adapter_dtype, e->model, caps.activation, err) != 0)
        return -1;
    shares = host_shares(&e->options);
    /* Before the weights where it can be: the rope table is as long as the context. */
    if ((!caps.own_memory && size_kv(e, &caps, &shares, &n_blocks, err) != 0) ||
        open_weights(e, &caps, err) != 0)
        return -1;
    if (caps.own_memory && (divide_memory(e, caps.memory_free_bytes, &shares, err) != 0 ||
                            size_kv(e, &caps, &shares, &n_blocks, err) != 0))
        return -1;
    if (open_host_memory(e, &caps, err) != 0 || open_lora(e, shares.adapter_bytes, err) != 0 ||
        open_kv(e, n_blocks, err) != 0 || open_steps(e, err) != 0)
        return -1;
    if (e->shares)
        engine_budget_open(e, caps.own_memory);
    open_lists(e);
    tell_memory(e, &caps, n_blocks);
    engine_publish_stats(e);
    e->counts.progress = clock_monotonic_us();
    return 0;
}

void engine_device_close(struct engine *e)
{
    sched_plan_release(&e->plan);
    free(e->running);
    free(e->waiting);
    free(e->done);
    free(e->events);
    free(e->sched_running);
    free(e->sched_waiting);
    free(e->sched_adapters);
    prefix_cache_free(e->prefixes);
    if (e->kv != NULL)
        kv_pool_drop(e->kv, e->pad_block);
    kv_pool_free(e->kv);
    engine_budget_close(e);
    if (e->ops == NULL || e->be == NULL)
        return;
    stepper_release(&e->stepper);
    lora_pool_free(e->lora);
    forward_release(&e->forward);
    weights_release(&e->weights, &e->model->config, e->ops, e->be);
    e->ops->close(e->be);
}
