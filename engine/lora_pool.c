/* lora_pool: see lora_pool.h.
 *
 *    digest ──hash──> slot ──┬─> extents in the region (one, or a few when it is fragmented)
 *                            └─> entries[site][slot] = {a, b, rank, scaling}   host and device
 *
 * The rules:
 *
 *   1. A slot is empty or holds one adapter, found by its content digest and by nothing else. Names
 *      and requests never hold a slot without a pin.
 *   2. A sequence pins its adapters when it is admitted and unpins them when it leaves the batch
 *      (finished, cancelled, preempted). Between steps a pin is the only thing that keeps a slot.
 *   3. A pinned slot is never evicted, moved or refilled. Evicting a pinned slot is a bug and
 * aborts.
 *   4. Unpinned adapters stay, as a cache, until room is needed; the least recently pinned goes
 * first.
 *   5. Each filling of a slot has a generation that no other filling of any slot has. A pin carries
 *      it, and before a slot is put into a step's segments the pin's generation and the sequence's
 *      digest are compared with the slot's (lora_pool_check): a reused slot can't be read by a
 *      sequence that was admitted with the old adapter.
 *   6. Evicting clears the slot's entries at every site (rank 0: touches nothing) before its memory
 * is given back, in stream order, so that no step sees an entry whose memory is another's.
 *   7. Memory is cut at the granularity of sites: first one piece for the whole adapter; if the
 * region is too fragmented, as many consecutive sites as fit into the largest span, and so on. So
 * an adapter fits whenever the free bytes, in spans not smaller than a site's, suffice; and with
 *      nothing pinned the region is one span again.
 *   8. After creation nothing is allocated. */
#include "engine/lora_pool.h"

#include "engine/heap.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct extent {
    size_t offset, n_bytes;
};

struct slot {
    struct content_digest content;
    uint64_t generation; /* 0: empty */
    uint64_t last_pin;
    int32_t n_pins;
    int32_t next;           /* in its hash chain, or in the list of empty slots; -1: last */
    struct extent *extents; /* [n_extents], memory for n_sites of them */
    int n_extents;
    size_t n_bytes;
};

struct lora_pool {
    const struct model_config *model;
    const struct ops *ops;
    struct backend *be;
    struct devptr region;
    size_t n_bytes;
    struct heap *heap;
    struct slot *slots;     /* [n_slots] */
    struct extent *extents; /* [n_slots, EXTENTS_MAX] */
    int n_slots, n_sites;
    int32_t *chains; /* [n_chains] first slot with that hash, or -1; n_chains is a power of two */
    uint32_t n_chains;
    int32_t empty;              /* first of the list of empty slots */
    struct lora_entry *entries; /* [n_sites, n_slots] */
    struct devptr d_entries;    /* the same on the device */
    struct lora_part *parts;    /* [n_layers, SITE_KINDS] */
    uint64_t n_fills, n_ticks;
    struct lora_pool_stats stats;
};

enum { EXTENTS_MAX = 16 }; /* of one adapter; more fragmentation than this means: evict */

static const struct {
    int first, n_parts;
} FUSED[FUSED_KINDS] = {
    [FUSED_QKV] = {SITE_Q, 3},
    [FUSED_O] = {SITE_O, 1},
    [FUSED_GATE_UP] = {SITE_GATE, 2},
    [FUSED_DOWN] = {SITE_DOWN, 1},
};

static struct lora_entry *entry_at(const struct lora_pool *p, int site, int32_t slot)
{
    return &p->entries[(size_t)site * (size_t)p->n_slots + (size_t)slot];
}

static struct devptr d_entry_at(const struct lora_pool *p, int site, int32_t slot)
{
    return devptr_at(p->d_entries, ((size_t)site * (size_t)p->n_slots + (size_t)slot) *
                                       sizeof(struct lora_entry));
}

static void build_parts(struct lora_pool *p)
{
    for (int layer = 0; layer < p->model->n_layers; layer++) {
        for (int f = 0; f < FUSED_KINDS; f++) {
            int out_begin = 0;
            for (int i = 0; i < FUSED[f].n_parts; i++) {
                int site = layer * SITE_KINDS + FUSED[f].first + i;
                int d_out = model_site_d_out(p->model, (enum site_kind)(FUSED[f].first + i));
                p->parts[site] = (struct lora_part){entry_at(p, site, 0), d_entry_at(p, site, 0),
                                                    out_begin, d_out};
                out_begin += d_out;
            }
        }
    }
}

int lora_pool_create(struct lora_pool **out, const struct model_config *model,
                     const struct ops *ops, struct backend *be, size_t n_bytes, int n_slots,
                     struct err *err)
{
    BUG_IF(n_slots < 1);
    struct lora_pool *p = xcalloc(1, sizeof *p);
    p->model = model;
    p->ops = ops;
    p->be = be;
    p->n_bytes = n_bytes / LORA_ALIGN_BYTES * LORA_ALIGN_BYTES;
    p->n_slots = n_slots;
    p->n_sites = model_n_sites(model);
    p->slots = xcalloc((size_t)n_slots, sizeof *p->slots);
    p->extents = xcalloc((size_t)n_slots * EXTENTS_MAX, sizeof *p->extents);
    p->n_chains = 16;
    while (p->n_chains < 2 * (uint32_t)n_slots)
        p->n_chains *= 2;
    p->chains = xcalloc(p->n_chains, sizeof *p->chains);
    memset(p->chains, 0xff, p->n_chains * sizeof *p->chains);
    for (int i = 0; i < n_slots; i++) {
        p->slots[i].extents = &p->extents[(size_t)i * EXTENTS_MAX];
        p->slots[i].next = i + 1 < n_slots ? i + 1 : -1;
    }
    p->heap = heap_create(p->n_bytes, LORA_ALIGN_BYTES, (size_t)n_slots * EXTENTS_MAX);
    size_t n_entries = (size_t)p->n_sites * (size_t)n_slots;
    p->entries = xcalloc(n_entries, sizeof *p->entries);
    p->parts = xcalloc((size_t)p->n_sites, sizeof *p->parts);
    if (ops->mem_alloc(be, &p->d_entries, n_entries * sizeof *p->entries, err) != 0 ||
        ops->mem_alloc(be, &p->region, p->n_bytes > 0 ? p->n_bytes : LORA_ALIGN_BYTES, err) != 0) {
        lora_pool_free(p);
        return err_wrap(err, "adapter pool of %zu bytes, %d slots", n_bytes, n_slots);
    }
    ops->upload(be, p->d_entries, p->entries, n_entries * sizeof *p->entries);
    build_parts(p);
    p->stats.bytes_total = p->n_bytes;
    p->stats.n_slots = n_slots;
    *out = p;
    return 0;
}

void lora_pool_free(struct lora_pool *p)
{
    if (p == NULL)
        return;
    BUG_IF(p->stats.bytes_pinned != 0);
    p->ops->mem_free(p->be, p->region);
    p->ops->mem_free(p->be, p->d_entries);
    heap_free(p->heap);
    free(p->slots);
    free(p->extents);
    free(p->chains);
    free(p->entries);
    free(p->parts);
    free(p);
}

/* ---- finding ----------------------------------------------------------------------------- */

static int32_t *chain_of(const struct lora_pool *p, const struct content_digest *content)
{
    uint32_t hash; /* of a hash: any four bytes do */
    memcpy(&hash, content->bytes, sizeof hash);
    return &p->chains[hash & (p->n_chains - 1)];
}

int32_t lora_pool_slot(const struct lora_pool *p, const struct content_digest *content)
{
    int32_t i = *chain_of(p, content);
    while (i >= 0 && !DIGEST_EQ(p->slots[i].content, *content))
        i = p->slots[i].next;
    return i;
}

bool lora_pool_is_resident(const struct lora_pool *p, const struct content_digest *content)
{
    return lora_pool_slot(p, content) >= 0;
}

bool lora_pool_is_pinned(const struct lora_pool *p, const struct content_digest *content)
{
    int32_t i = lora_pool_slot(p, content);
    return i >= 0 && p->slots[i].n_pins > 0;
}

/* ---- eviction ---------------------------------------------------------------------------- */

static void set_entry(struct lora_pool *p, int site, int32_t slot, struct lora_entry entry)
{
    struct lora_entry *e = entry_at(p, site, slot);
    *e = entry;
    p->ops->upload(p->be, d_entry_at(p, site, slot), e, sizeof *e);
}

static void evict(struct lora_pool *p, int32_t i)
{
    struct slot *s = &p->slots[i];
    BUG_IF(s->generation == 0 || s->n_pins != 0); /* rule 3 */
    for (int site = 0; site < p->n_sites; site++) /* rule 6 */
        if (entry_at(p, site, i)->rank != 0)
            set_entry(p, site, i, (struct lora_entry){0});
    for (int e = 0; e < s->n_extents; e++)
        heap_give(p->heap, s->extents[e].offset, s->extents[e].n_bytes);
    int32_t *link = chain_of(p, &s->content);
    while (*link != i)
        link = &p->slots[*link].next;
    *link = s->next;
    s->generation = 0;
    s->n_extents = 0;
    s->next = p->empty;
    p->empty = i;
    p->stats.n_resident--;
    p->stats.n_evictions++;
}

/* The least recently pinned adapter leaves. False: all that are here are pinned. */
static bool evict_one(struct lora_pool *p)
{
    int32_t oldest = -1;
    for (int32_t i = 0; i < p->n_slots; i++) {
        const struct slot *s = &p->slots[i];
        if (s->generation != 0 && s->n_pins == 0 &&
            (oldest < 0 || s->last_pin < p->slots[oldest].last_pin))
            oldest = i;
    }
    if (oldest < 0)
        return false;
    evict(p, oldest);
    return true;
}

void lora_pool_clear(struct lora_pool *p)
{
    while (evict_one(p))
        continue;
}

/* ---- placing ----------------------------------------------------------------------------- */

/* Memory for all sites of a, in as few extents as the heap allows; piece_end[e] is the number of
 * sites in extents up to e. False, with nothing taken, when it doesn't fit. */
static bool place(struct lora_pool *p, struct slot *s, const struct lora_adapter *a,
                  int piece_end[EXTENTS_MAX])
{
    int next = 0; /* site of a */
    s->n_extents = 0;
    while (next < a->n_sites && s->n_extents < EXTENTS_MAX) {
        size_t begin = a->sites[next].a_offset, largest = heap_largest(p->heap);
        int end = next;
        while (end < a->n_sites && a->sites[end].end_offset - begin <= largest)
            end++;
        if (end == next)
            break;
        size_t n_bytes = a->sites[end - 1].end_offset - begin;
        size_t offset = heap_take(p->heap, n_bytes);
        BUG_IF(offset == SIZE_MAX);
        s->extents[s->n_extents] = (struct extent){offset, n_bytes};
        piece_end[s->n_extents++] = end;
        next = end;
    }
    if (next == a->n_sites)
        return true;
    for (int e = 0; e < s->n_extents; e++)
        heap_give(p->heap, s->extents[e].offset, s->extents[e].n_bytes);
    s->n_extents = 0;
    return false;
}

static void fill(struct lora_pool *p, int32_t i, const struct lora_adapter *a,
                 const int piece_end[EXTENTS_MAX])
{
    struct slot *s = &p->slots[i];
    int next = 0;
    for (int e = 0; e < s->n_extents; e++) {
        size_t begin = a->sites[next].a_offset;
        struct devptr base = devptr_at(p->region, s->extents[e].offset);
        p->ops->upload(p->be, base, a->data + begin, s->extents[e].n_bytes);
        for (; next < piece_end[e]; next++) {
            const struct lora_site *site = &a->sites[next];
            set_entry(p, site->site, i,
                      (struct lora_entry){.a = devptr_at(base, site->a_offset - begin),
                                          .b = devptr_at(base, site->b_offset - begin),
                                          .rank = site->rank,
                                          .scaling = site->scaling,
                                          .dtype = (int32_t)site->dtype});
        }
    }
}

static void pin_slot(struct lora_pool *p, int32_t i, struct lora_pin *out)
{
    struct slot *s = &p->slots[i];
    if (s->n_pins++ == 0)
        p->stats.bytes_pinned += s->n_bytes;
    s->last_pin = ++p->n_ticks;
    *out = (struct lora_pin){i, s->generation};
}

bool lora_pool_pin(struct lora_pool *p, const struct lora_adapter *a, struct lora_pin *out)
{
    int32_t i = lora_pool_slot(p, &a->content);
    if (i >= 0) {
        pin_slot(p, i, out);
        return true;
    }
    if (a->n_bytes > p->n_bytes - p->stats.bytes_pinned)
        return false;
    while (p->empty < 0)
        if (!evict_one(p))
            return false;
    i = p->empty;
    struct slot *s = &p->slots[i];
    int piece_end[EXTENTS_MAX];
    while (!place(p, s, a, piece_end)) {
        if (!evict_one(p))
            return false;
        /* what was evicted became the head of the empty list; i is still empty, further down */
    }
    int32_t *link = &p->empty; /* take i out of the empty list */
    while (*link != i)
        link = &p->slots[*link].next;
    *link = s->next;
    s->content = a->content;
    s->generation = ++p->n_fills; /* rule 5 */
    s->n_bytes = a->n_bytes;
    s->n_pins = 0;
    fill(p, i, a, piece_end);
    int32_t *chain = chain_of(p, &s->content);
    s->next = *chain;
    *chain = i;
    p->stats.n_resident++;
    p->stats.n_uploads++;
    pin_slot(p, i, out);
    return true;
}

void lora_pool_unpin(struct lora_pool *p, struct lora_pin pin)
{
    BUG_IF(pin.slot < 0 || pin.slot >= p->n_slots);
    struct slot *s = &p->slots[pin.slot];
    BUG_IF(s->generation != pin.generation || s->n_pins < 1);
    if (--s->n_pins == 0)
        p->stats.bytes_pinned -= s->n_bytes;
}

void lora_pool_check(const struct lora_pool *p, struct lora_pin pin,
                     const struct content_digest *content)
{
    BUG_IF(pin.slot < 0 || pin.slot >= p->n_slots);
    const struct slot *s = &p->slots[pin.slot];
    BUG_IF(s->generation != pin.generation || s->n_pins < 1 || !DIGEST_EQ(s->content, *content));
}

const struct lora_part *lora_pool_parts(const struct lora_pool *p, int layer, enum fused_kind kind,
                                        int *n_parts)
{
    *n_parts = FUSED[kind].n_parts;
    return &p->parts[layer * SITE_KINDS + FUSED[kind].first];
}

void lora_pool_stats(const struct lora_pool *p, struct lora_pool_stats *out)
{
    *out = p->stats;
    out->bytes_used = heap_used(p->heap);
}

void lora_pool_swap_entries(struct lora_pool *p, int32_t slot_a, int32_t slot_b)
{
    for (int site = 0; site < p->n_sites; site++) {
        struct lora_entry a = *entry_at(p, site, slot_a);
        set_entry(p, site, slot_a, *entry_at(p, site, slot_b));
        set_entry(p, site, slot_b, a);
    }
}
