/* lora_pool: adapters on the device. Engine thread only.
 *
 * A slot is an index into the tables of lora_entry that every linear call reads; it has no size.
 * The matrices lie where a heap over one region put them, at their true size and rank. */
#ifndef TRIBUTARY_ENGINE_LORA_POOL_H
#define TRIBUTARY_ENGINE_LORA_POOL_H

#include "engine/lora.h"
#include "kernels/ops.h"

#include <stdbool.h>
#include <stdint.h>

struct err;
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
    size_t bytes_used, bytes_total, bytes_pinned;
    int n_resident, n_slots;
};

/* Takes n_bytes of device memory and builds tables of n_slots for every site. */
int lora_pool_create(struct lora_pool **out, const struct model_config *model,
                     const struct ops *ops, struct backend *be, size_t n_bytes, int n_slots,
                     struct err *err);
void lora_pool_free(struct lora_pool *p); /* quiet on NULL; nothing may be pinned */

/* Makes the adapter resident, evicting unpinned ones as needed (least recently pinned first), and
 * pins it. False: what is pinned leaves no room, and nothing of the asked-for adapter changed (some
 * unpinned ones may be gone). `a` must live until the device has done what was enqueued so far. */
bool lora_pool_pin(struct lora_pool *p, const struct lora_adapter *a, struct lora_pin *out);
void lora_pool_unpin(struct lora_pool *p, struct lora_pin pin);

/* Evicts all that nobody pins. With nothing pinned the region is then one piece, into which any set
 * of adapters fits whose bytes sum to no more. */
void lora_pool_clear(struct lora_pool *p);

/* The slot may be put into a lora_seg: aborts unless the pin is alive and holds that content. */
void lora_pool_check(const struct lora_pool *p, struct lora_pin pin,
                     const struct content_digest *content);

/* For the scheduler. */
bool lora_pool_is_resident(const struct lora_pool *p, const struct content_digest *content);
bool lora_pool_is_pinned(const struct lora_pool *p, const struct content_digest *content);

/* What a linear call gets: [*n_parts]. */
const struct lora_part *lora_pool_parts(const struct lora_pool *p, int layer, enum fused_kind kind,
                                        int *n_parts);

void lora_pool_stats(const struct lora_pool *p, struct lora_pool_stats *out);

/* Tests only: exchanges what two slots point at, so that a test can see a wrong adapter be noticed.
 */
void lora_pool_swap_entries(struct lora_pool *p, int32_t slot_a, int32_t slot_b);
/* The slot of a resident adapter, or -1. */
int32_t lora_pool_slot(const struct lora_pool *p, const struct content_digest *content);

#endif
