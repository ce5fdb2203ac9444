/* lora_pool: adapters on the device. Engine thread only, but for lora_pool_look.
 *
 * A slot is an index into the tables of lora_entry that every linear call reads; it has no size.
 * The matrices lie where a heap over one region put them, at their true size and rank. The region
 * may be of bricks, which come and go (engine_budget.c).
 *
 * An adapter comes in on the backend's lane (ops.h), layer after layer, while steps compute: it is
 * pinned at once, and each layer of the next step that isn't there yet is waited for on the device
 * (lora_pool_need). So a miss costs its sequence the first layers' copy, and the others nothing. */
#ifndef TRIBUTARY_ENGINE_LORA_POOL_H
#define TRIBUTARY_ENGINE_LORA_POOL_H

#include "engine/lora.h"
#include "kernels/ops.h"

#include <stdbool.h>
#include <stdint.h>

struct err;
struct judge_costs;
struct lora_pool;

/* The linears of a layer as weights.c fuses them; site kinds q k v | o | gate up | down. */
enum fused_kind { FUSED_QKV, FUSED_O, FUSED_GATE_UP, FUSED_DOWN, FUSED_KINDS };

/* A pinned adapter: its slot, and which filling of that slot. */
struct lora_pin {
    int32_t slot;
    uint64_t generation;
};

struct lora_pool_stats {
    uint64_t n_uploads, n_evictions;
    uint64_t n_hits;       /* pins that found the adapter here or on its way */
    uint64_t n_prefetched; /* of the uploads, those that nobody had pinned when they began */
    size_t bytes_used, bytes_total, bytes_pinned, bytes_kept, bytes_promised, bytes_loading;
    uint64_t bytes_uploaded; /* by all uploads */
    int n_resident, n_slots, n_loading;
};

/* While an adapter is on its way, its host memory must stay. The pool says when that begins and
 * ends, naming the owner that pin or prefetch was given. */
struct lora_pool_owners {
    void (*retain)(void *context, void *owner);
    void (*drop)(void *context, void *owner);
    void *context;
};

/* The region: of n_bytes for good (brick_bytes 0); or of n_bricks with memory, of n_bricks_max that
 * there are addresses for. */
struct lora_region {
    size_t n_bytes;     /* brick_bytes 0 */
    size_t brick_bytes; /* whole granules (ops.h) */
    int n_bricks, n_bricks_max;
};

/* Takes the region's memory and builds tables of n_slots for every site. */
int lora_pool_create(struct lora_pool **out, const struct model_config *model,
                     const struct ops *ops, struct backend *be, const struct lora_region *region,
                     int n_slots, struct err *err);
void lora_pool_free(struct lora_pool *p); /* quiet on NULL; nothing may be pinned */
void lora_pool_set_owners(struct lora_pool *p, const struct lora_pool_owners *owners);

/* Makes the adapter resident, evicting others as needed (those worth least first; lora_pool.c), and
 * pins it. False: what is pinned, kept or on its way leaves no room, and nothing of the asked-for
 * adapter changed (some others may be gone). `a` must live while its owner is retained. */
bool lora_pool_pin(struct lora_pool *p, const struct lora_adapter *a, void *owner,
                   struct lora_pin *out);
void lora_pool_unpin(struct lora_pool *p, struct lora_pin pin);

/* Brings it in before somebody pins it. promise: somebody waits to, so that it stays until he does
 * or lora_pool_forget says that nobody does any more. False: there is no room that may be used for
 * it now (a quarter of the pool is for promises), and nothing of it changed, but that some others
 * may be gone. True also when it is here. */
bool lora_pool_prefetch(struct lora_pool *p, const struct lora_adapter *a, void *owner,
                        bool promise);
void lora_pool_forget(struct lora_pool *p, const struct content_digest *content);

/* Kept ones are not evicted but by lora_pool_clear. ERR_NOT_FOUND: it isn't here (prefetch first);
 * ERR_TOO_LARGE: more than half of what the pool began with would be kept. */
int lora_pool_keep(struct lora_pool *p, const struct content_digest *content, bool keep,
                   struct err *err);

/* Takes one off the device, kept or not. ERR_BUSY: it is pinned or on its way. Fine when it isn't
 * here. */
int lora_pool_evict(struct lora_pool *p, const struct content_digest *content, struct err *err);

/* Evicts all that nobody pins, kept ones and those on their way (which it waits for) too. With
 * nothing pinned the region is then one piece, into which any set of adapters fits whose bytes sum
 * to no more. */
void lora_pool_clear(struct lora_pool *p);

/* Bricks, of a region that has some. What is idle there: nobody pins or keeps it, nothing was
 * promised, and it isn't on its way. */
struct lora_bricks {
    int n_idle;   /* bricks that hold idle adapters at most */
    int cheapest; /* of these, the one worth least; -1: there is none */
    double loss;  /* what it is worth (judge.h), with all adapters that lie in it, even in part */
};
void lora_pool_look_at_bricks(struct lora_pool *p, const struct judge_costs *costs,
                              struct lora_bricks *out);
/* Evicts what lies in it, which is idle, and takes its memory away. The stream must be synced. */
void lora_pool_give_brick(struct lora_pool *p, int brick);
/* Gives memory to a brick without: the backend was given back as much (ops.h, mem_back). */
void lora_pool_get_brick(struct lora_pool *p);
/* Of the adapter that is next to go, what a byte is worth (judge.h); 0: nobody may. */
double lora_pool_byte_worth(const struct lora_pool *p, const struct judge_costs *costs);
/* Somebody is about to pin it, if it is here: its age begins anew. */
void lora_pool_touch(struct lora_pool *p, const struct content_digest *content);
/* The moment, in steps, from which ages are counted. */
void lora_pool_tick(struct lora_pool *p, uint64_t now);
/* Is an adapter here whose blocks have that owner (prefix_cache.h)? */
bool lora_pool_has_owner(const struct lora_pool *p, uint64_t owner);

/* Notes which have arrived; drops their owners. */
void lora_pool_poll(struct lora_pool *p);

/* What is enqueued on the stream behind this sees all pinned adapters' layers up to `layer`. */
void lora_pool_need(struct lora_pool *p, int layer);

/* The slot may be put into a lora_seg: aborts unless the pin is alive and holds that content. */
void lora_pool_check(const struct lora_pool *p, struct lora_pin pin,
                     const struct content_digest *content);

/* For other threads. */
struct lora_place {
    bool is_here, is_loading, is_kept, is_pinned;
};
void lora_pool_look(struct lora_pool *p, const struct content_digest *content,
                    struct lora_place *out);

/* For the scheduler. */
bool lora_pool_is_resident(const struct lora_pool *p, const struct content_digest *content);
size_t lora_pool_bytes_loading(const struct lora_pool *p); /* on their way */
bool lora_pool_has_arrived(const struct lora_pool *p, const struct content_digest *content);

/* The model's linears, in the order in which a step asks for them: [n_layers, FUSED_KINDS]. */
const struct lora_linear *lora_pool_linears(const struct lora_pool *p, int *n);

void lora_pool_stats(const struct lora_pool *p, struct lora_pool_stats *out);

/* Tests only: exchanges what two slots point at, so that a test can see a wrong adapter be noticed.
 */
void lora_pool_swap_entries(struct lora_pool *p, int32_t slot_a, int32_t slot_b);
/* The slot of a resident adapter, or -1. */
int32_t lora_pool_slot(const struct lora_pool *p, const struct content_digest *content);

#endif
