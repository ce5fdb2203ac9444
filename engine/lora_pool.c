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
 *   3. A pinned slot is never evicted, moved or refilled, nor is one whose adapter is on its way.
 *      Evicting a pinned slot is a bug and aborts.
 *   4. Unpinned adapters stay, as a cache, until room is needed. Then the one worth least goes:
 *
 *          worth = age + uses * (1 + FIXED_BYTES / bytes)
 *
 *      reckoned when it is used; age is the worth of the last one that went. That is GreedyDual-
 *      Size-Frequency (Cherkasova, HPL-98-69): uses times what bringing it back takes, by its size,
 *      where a copy takes as long as its bytes and FIXED_BYTES more; what isn't used any more is
 *      overtaken by age. Of equals the least recently pinned goes. One that was promised to
 *      somebody stays for him, but where a pin finds no other room.
 *   5. Each filling of a slot has a generation that no other filling of any slot has. A pin carries
 *      it, and before a slot is put into a step's segments the pin's generation and the sequence's
 *      digest are compared with the slot's (lora_pool_check): a reused slot can't be read by a
 *      sequence that was admitted with the old adapter.
 *   6. A step reads a slot's entries only under a pin, so nothing enqueued reads the memory of an
 *      unpinned one: it may be refilled on the lane without waiting for the stream.
 *   7. Memory is cut at the granularity of sites: first one piece for the whole adapter; if the
 *      region is too fragmented, as many consecutive sites as fit into the largest span, and so on.
 *      So an adapter fits whenever the free bytes, in spans not smaller than a site's, suffice; and
 *      with nothing pinned the region is one span again.
 *   8. After creation nothing is allocated.
 *   9. Of a region of bricks, one without memory is a piece of the heap that no adapter has. Any
 *      brick may lose its memory whose adapters are all idle; the lowest without gets some first.
 *      lora_pool_clear moves all memory to the front, so that rule 7's one span is true here too.
 *
 * On its way. First the slot's entries go to the device, a column of the table, in one copy; then
 * the matrices, layer by layer, with a place in the lane (a mark) behind layers 0, 1, 3, 7, 15, ...
 * A copy is COPY_BYTES at most, so that the small copies of the steps never wait long for the bus.
 * lora_pool_need makes the stream wait for the mark that covers a layer, once for each. */
#include "engine/lora_pool.h"

#include "engine/heap.h"
#include "engine/judge.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct extent {
    size_t offset, n_bytes;
    int first_site, end_site; /* of the adapter's */
};

enum {
    EXTENTS_MAX = 16,  /* of one adapter; more fragmentation than this means: evict */
    CHUNKS_MAX = 12,   /* of an adapter on its way: 1, 1, 2, 4, ... layers */
    PROMISES_PART = 4, /* of the pool's bytes, 1 / so much may wait for its first pin */
    COPY_BYTES = 4 << 20,
    FIXED_BYTES = 8 << 20, /* copied in the time that a copy takes whatever its size */
};

struct slot {
    struct content_digest content;
    uint64_t generation; /* 0: empty */
    uint64_t last_pin;   /* in pins */
    uint64_t last_step;  /* that used it */
    double worth;
    uint32_t n_uses;
    int32_t n_pins;
    bool kept, promised;
    /* On its way: the places in the lane behind each chunk of layers, and how many of these the
     * stream waits for already. n_chunks 0: it is here. */
    uint64_t marks[CHUNKS_MAX];
    int n_chunks, n_needed;
    void *owner;
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
    size_t n_bytes;       /* with memory ... */
    size_t n_bytes_first; /* ... in the beginning */
    struct heap *heap;
    size_t brick_bytes; /* 0: there are no bricks */
    int n_bricks_max;
    bool *bricks; /* [n_bricks_max] has it memory? */
    double *loss; /* [n_bricks_max] scratch */
    uint64_t now;
    struct slot *slots;     /* [n_slots] */
    struct extent *extents; /* [n_slots, EXTENTS_MAX] */
    int n_slots, n_sites;
    int32_t *chains; /* [n_chains] first slot with that hash, or -1; n_chains is a power of two */
    uint32_t n_chains;
    int32_t empty;               /* first of the list of empty slots */
    struct lora_entry *entries;  /* [n_sites, n_slots], of host_alloc */
    struct devptr d_entries;     /* the same on the device */
    struct lora_part *parts;     /* [n_layers, SITE_KINDS] */
    struct lora_linear *linears; /* [n_layers, FUSED_KINDS] */
    uint64_t n_fills, n_ticks;
    double age;
    size_t bytes_held; /* pinned, kept or promised; what is two of these counts once */
    int32_t *loading;  /* [stats.n_loading] slots on their way */
    struct lora_pool_owners owners;
    pthread_mutex_t lock; /* of what lora_pool_look reads */
    struct lora_pool_stats stats;
};

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

static void build_linears(struct lora_pool *p)
{
    for (int layer = 0; layer < p->model->n_layers; layer++) {
        for (int f = 0; f < FUSED_KINDS; f++) {
            int out_begin = 0, first = layer * SITE_KINDS + FUSED[f].first;
            p->linears[layer * FUSED_KINDS + f] = (struct lora_linear){
                &p->parts[first], FUSED[f].n_parts,
                model_site_d_in(p->model, (enum site_kind)FUSED[f].first)};
            for (int i = 0; i < FUSED[f].n_parts; i++) {
                int site = first + i;
                int d_out = model_site_d_out(p->model, (enum site_kind)(FUSED[f].first + i));
                p->parts[site] = (struct lora_part){entry_at(p, site, 0), d_entry_at(p, site, 0),
                                                    out_begin, d_out};
                out_begin += d_out;
            }
        }
    }
}

/* The region's addresses, its heap, and memory for what has some. */
static int create_region(struct lora_pool *p, const struct lora_region *r, struct err *err)
{
    size_t n_pieces = (size_t)p->n_slots * EXTENTS_MAX;
    p->n_bytes = p->n_bytes_first = r->n_bytes / LORA_ALIGN_BYTES * LORA_ALIGN_BYTES;
    if (r->brick_bytes == 0) {
        p->heap = heap_create(p->n_bytes, LORA_ALIGN_BYTES, n_pieces);
        return p->ops->mem_alloc(p->be, &p->region, p->n_bytes > 0 ? p->n_bytes : LORA_ALIGN_BYTES,
                                 err);
    }
    BUG_IF(r->n_bricks < 1 || r->n_bricks > r->n_bricks_max ||
           r->brick_bytes % LORA_ALIGN_BYTES != 0);
    size_t n_max = (size_t)r->n_bricks_max;
    p->brick_bytes = r->brick_bytes;
    p->n_bytes = p->n_bytes_first = (size_t)r->n_bricks * r->brick_bytes;
    p->n_bricks_max = r->n_bricks_max;
    p->bricks = xcalloc(n_max, sizeof *p->bricks);
    p->loss = xcalloc(n_max, sizeof *p->loss);
    p->heap = heap_create(n_max * r->brick_bytes, LORA_ALIGN_BYTES, n_pieces + n_max);
    for (size_t i = 0; i < n_max; i++) {
        p->bricks[i] = i < (size_t)r->n_bricks;
        BUG_IF(!p->bricks[i] && !heap_take_at(p->heap, i * p->brick_bytes, p->brick_bytes));
    }
    if (p->ops->mem_reserve(p->be, &p->region, n_max * r->brick_bytes, err) != 0)
        return -1;
    return p->ops->mem_back(p->be, p->region, p->n_bytes, err);
}

int lora_pool_create(struct lora_pool **out, const struct model_config *model,
                     const struct ops *ops, struct backend *be, const struct lora_region *region,
                     int n_slots, struct err *err)
{
    BUG_IF(n_slots < 1);
    struct lora_pool *p = xcalloc(1, sizeof *p);
    p->model = model;
    p->ops = ops;
    p->be = be;
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
    p->loading = xcalloc((size_t)n_slots, sizeof *p->loading);
    pthread_mutex_init(&p->lock, NULL);
    size_t n_entries = (size_t)p->n_sites * (size_t)n_slots;
    p->parts = xcalloc((size_t)p->n_sites, sizeof *p->parts);
    p->linears = xcalloc((size_t)(model->n_layers * FUSED_KINDS), sizeof *p->linears);
    if (ops->host_alloc(be, (void **)&p->entries, n_entries * sizeof *p->entries, err) != 0 ||
        ops->mem_alloc(be, &p->d_entries, n_entries * sizeof *p->entries, err) != 0 ||
        create_region(p, region, err) != 0) {
        err_wrap(err, "adapter pool of %zu bytes, %d slots", p->n_bytes, n_slots);
        lora_pool_free(p);
        return -1;
    }
    memset(p->entries, 0, n_entries * sizeof *p->entries);
    ops->upload(be, p->d_entries, p->entries, n_entries * sizeof *p->entries);
    build_linears(p);
    p->stats.bytes_total = p->n_bytes;
    p->stats.n_slots = n_slots;
    *out = p;
    return 0;
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

size_t lora_pool_bytes_loading(const struct lora_pool *p)
{
    return p->stats.bytes_loading;
}

bool lora_pool_has_arrived(const struct lora_pool *p, const struct content_digest *content)
{
    int32_t i = lora_pool_slot(p, content);
    return i >= 0 && p->slots[i].n_chunks == 0;
}

/* ---- eviction ---------------------------------------------------------------------------- */

/* When it is used, or promised to be. */
static void reckon(struct lora_pool *p, struct slot *s)
{
    s->worth = p->age + (double)s->n_uses * (1 + FIXED_BYTES / (double)s->n_bytes);
}

static bool is_held(const struct slot *s)
{
    return s->n_pins > 0 || s->kept || s->promised;
}

/* Behind a change of what is_held asks. */
static void count_held(struct lora_pool *p, const struct slot *s, bool was_held)
{
    if (is_held(s) != was_held)
        p->bytes_held += was_held ? -s->n_bytes : s->n_bytes;
}

static void set_promised(struct lora_pool *p, struct slot *s, bool promised)
{
    bool was_held = is_held(s);
    if (s->promised != promised)
        p->stats.bytes_promised += promised ? s->n_bytes : -s->n_bytes;
    s->promised = promised;
    count_held(p, s, was_held);
}

static void set_kept(struct lora_pool *p, struct slot *s, bool keep)
{
    bool was_held = is_held(s);
    if (s->kept != keep)
        p->stats.bytes_kept += keep ? s->n_bytes : -s->n_bytes;
    s->kept = keep;
    count_held(p, s, was_held);
}

static void evict(struct lora_pool *p, int32_t i)
{
    struct slot *s = &p->slots[i];
    BUG_IF(s->generation == 0 || s->n_pins != 0 || s->n_chunks != 0); /* rule 3 */
    for (int site = 0; site < p->n_sites; site++)
        *entry_at(p, site, i) = (struct lora_entry){0};
    for (int e = 0; e < s->n_extents; e++)
        heap_give(p->heap, s->extents[e].offset, s->extents[e].n_bytes);
    int32_t *link = chain_of(p, &s->content);
    while (*link != i)
        link = &p->slots[*link].next;
    *link = s->next;
    set_promised(p, s, false);
    set_kept(p, s, false);
    if (s->worth > p->age)
        p->age = s->worth;
    s->generation = 0;
    s->n_extents = 0;
    s->next = p->empty;
    p->empty = i;
    p->stats.n_resident--;
    p->stats.n_evictions++;
}

/* The one worth least, of those that may leave, or -1. */
static int32_t next_to_go(const struct lora_pool *p, bool promised_too, bool kept_too)
{
    int32_t least = -1;
    for (int32_t i = 0; i < p->n_slots; i++) {
        const struct slot *s = &p->slots[i], *l = &p->slots[least < 0 ? i : least];
        if (s->generation == 0 || s->n_pins != 0 || s->n_chunks != 0 ||
            (s->promised && !promised_too) || (s->kept && !kept_too))
            continue;
        if (least < 0 || s->worth < l->worth || (s->worth <= l->worth && s->last_pin < l->last_pin))
            least = i;
    }
    return least;
}

/* False: nobody may leave. */
static bool evict_one(struct lora_pool *p, bool promised_too, bool kept_too)
{
    int32_t i = next_to_go(p, promised_too, kept_too);
    if (i >= 0)
        evict(p, i);
    return i >= 0;
}

/* ---- on its way -------------------------------------------------------------------------- */

static int chunk_of(int layer)
{
    return layer == 0 ? 0 : 32 - __builtin_clz((unsigned)layer);
}

/* Sites [begin, end) of a, which lie in s's extents. */
static void send(struct lora_pool *p, const struct slot *s, const struct lora_adapter *a, int begin,
                 int end)
{
    for (int e = 0; e < s->n_extents; e++) {
        const struct extent *x = &s->extents[e];
        int from = begin > x->first_site ? begin : x->first_site;
        int to = end < x->end_site ? end : x->end_site;
        if (from >= to)
            continue;
        size_t at = a->sites[from].a_offset, last = a->sites[to - 1].end_offset;
        size_t base = a->sites[x->first_site].a_offset;
        while (at < last) {
            size_t n = last - at < COPY_BYTES ? last - at : COPY_BYTES;
            p->ops->lane_upload(p->be, devptr_at(p->region, x->offset + (at - base)), a->data + at,
                                n, 0, 1);
            at += n;
        }
    }
}

static void fill(struct lora_pool *p, int32_t i, const struct lora_adapter *a, void *owner)
{
    struct slot *s = &p->slots[i];
    for (int e = 0; e < s->n_extents; e++) {
        const struct extent *x = &s->extents[e];
        size_t base = a->sites[x->first_site].a_offset;
        struct devptr to = devptr_at(p->region, x->offset);
        for (int k = x->first_site; k < x->end_site; k++) {
            const struct lora_site *site = &a->sites[k];
            *entry_at(p, site->site,
                      i) = (struct lora_entry){.a = devptr_at(to, site->a_offset - base),
                                               .b = devptr_at(to, site->b_offset - base),
                                               .rank = site->rank,
                                               .scaling = site->scaling,
                                               .dtype = (int32_t)site->dtype};
        }
    }
    p->ops->lane_upload(p->be, d_entry_at(p, 0, i), entry_at(p, 0, i), sizeof(struct lora_entry),
                        (size_t)p->n_slots * sizeof(struct lora_entry), p->n_sites);
    s->n_chunks = s->n_needed = 0;
    for (int begin = 0; begin < a->n_sites; s->n_chunks++) {
        int end = begin;
        while (end < a->n_sites && chunk_of(a->sites[end].site / SITE_KINDS) <= s->n_chunks)
            end++;
        send(p, s, a, begin, end);
        BUG_IF(s->n_chunks == CHUNKS_MAX);
        s->marks[s->n_chunks] = p->ops->lane_mark(p->be);
        begin = end;
    }
    p->loading[p->stats.n_loading++] = i;
    p->stats.bytes_loading += s->n_bytes;
    s->owner = owner;
    if (p->owners.retain != NULL)
        p->owners.retain(p->owners.context, owner);
}

void lora_pool_poll(struct lora_pool *p)
{
    int kept = 0, n = p->stats.n_loading;
    for (int k = 0; k < n; k++) {
        struct slot *s = &p->slots[p->loading[k]];
        if (!p->ops->lane_reached(p->be, s->marks[s->n_chunks - 1])) {
            p->loading[kept++] = p->loading[k];
            continue;
        }
        pthread_mutex_lock(&p->lock);
        s->n_chunks = 0;
        pthread_mutex_unlock(&p->lock);
        p->stats.bytes_loading -= s->n_bytes;
        if (p->owners.drop != NULL)
            p->owners.drop(p->owners.context, s->owner);
        s->owner = NULL;
    }
    p->stats.n_loading = kept;
}

void lora_pool_need(struct lora_pool *p, int layer)
{
    for (int k = 0; k < p->stats.n_loading; k++) {
        struct slot *s = &p->slots[p->loading[k]];
        int n = chunk_of(layer) + 1 < s->n_chunks ? chunk_of(layer) + 1 : s->n_chunks;
        if (s->n_pins == 0 || n <= s->n_needed)
            continue;
        p->ops->lane_need(p->be, s->marks[n - 1]);
        s->n_needed = n;
    }
}

static void wait_for_all(struct lora_pool *p)
{
    while (p->stats.n_loading > 0)
        lora_pool_poll(p);
}

/* ---- bricks ------------------------------------------------------------------------------ */

/* Nothing lies in it, and nothing enqueued reads it. */
static void close_brick(struct lora_pool *p, int brick)
{
    size_t at = (size_t)brick * p->brick_bytes;
    BUG_IF(!p->bricks[brick] || !heap_take_at(p->heap, at, p->brick_bytes));
    p->ops->mem_unback(p->be, devptr_at(p->region, at), p->brick_bytes);
    p->bricks[brick] = false;
    p->n_bytes -= p->brick_bytes;
    p->stats.bytes_total = p->n_bytes;
}

static void open_brick(struct lora_pool *p, int brick)
{
    size_t at = (size_t)brick * p->brick_bytes;
    struct err err = {0};
    if (p->bricks[brick] ||
        p->ops->mem_back(p->be, devptr_at(p->region, at), p->brick_bytes, &err) != 0)
        BUG("brick %d of the adapters' region: %s", brick, err.message);
    heap_give(p->heap, at, p->brick_bytes);
    p->bricks[brick] = true;
    p->n_bytes += p->brick_bytes;
    p->stats.bytes_total = p->n_bytes;
}

static bool is_idle(const struct slot *s)
{
    return s->generation != 0 && s->n_pins == 0 && s->n_chunks == 0 && !s->promised && !s->kept;
}

static double worth_of(const struct lora_pool *p, const struct slot *s,
                       const struct judge_costs *costs)
{
    return judge_adapter(costs, s->n_bytes, s->n_uses, p->now - s->last_step);
}

void lora_pool_look_at_bricks(struct lora_pool *p, const struct judge_costs *costs,
                              struct lora_bricks *out)
{
    *out = (struct lora_bricks){.cheapest = -1, .loss = INFINITY};
    for (int b = 0; b < p->n_bricks_max; b++)
        p->loss[b] = p->bricks[b] ? 0 : INFINITY;
    for (int32_t i = 0; i < p->n_slots; i++) {
        const struct slot *s = &p->slots[i];
        double worth = is_idle(s) ? worth_of(p, s, costs) : INFINITY;
        int counted = -1; /* extents may share a brick: it loses the adapter once */
        for (int e = 0; s->generation != 0 && e < s->n_extents; e++) {
            const struct extent *x = &s->extents[e];
            int last = (int)((x->offset + x->n_bytes - 1) / p->brick_bytes);
            for (int b = (int)(x->offset / p->brick_bytes); b <= last; b++) {
                p->loss[b] += b != counted ? worth : 0;
                counted = b;
            }
        }
    }
    for (int b = 0; b < p->n_bricks_max; b++) {
        if (isinf(p->loss[b]))
            continue;
        out->n_idle++;
        if (p->loss[b] <= out->loss) { /* of equals the last, so that memory gathers in front */
            out->loss = p->loss[b];
            out->cheapest = b;
        }
    }
}

void lora_pool_give_brick(struct lora_pool *p, int brick)
{
    size_t begin = (size_t)brick * p->brick_bytes, end = begin + p->brick_bytes;
    pthread_mutex_lock(&p->lock);
    for (int32_t i = 0; i < p->n_slots; i++) {
        const struct slot *s = &p->slots[i];
        bool lies_in = false;
        for (int e = 0; s->generation != 0 && e < s->n_extents; e++)
            lies_in |= s->extents[e].offset < end &&
                       s->extents[e].offset + s->extents[e].n_bytes > begin;
        BUG_IF(lies_in && !is_idle(s));
        if (lies_in)
            evict(p, i);
    }
    pthread_mutex_unlock(&p->lock);
    close_brick(p, brick);
}

void lora_pool_get_brick(struct lora_pool *p)
{
    int brick = 0;
    while (p->bricks[brick])
        BUG_IF(++brick == p->n_bricks_max);
    open_brick(p, brick);
}

double lora_pool_byte_worth(const struct lora_pool *p, const struct judge_costs *costs)
{
    int32_t i = next_to_go(p, false, false);
    return i < 0 ? 0 : worth_of(p, &p->slots[i], costs) / (double)p->slots[i].n_bytes;
}

void lora_pool_touch(struct lora_pool *p, const struct content_digest *content)
{
    int32_t i = lora_pool_slot(p, content);
    if (i >= 0)
        p->slots[i].last_step = p->now;
}

void lora_pool_tick(struct lora_pool *p, uint64_t now)
{
    p->now = now;
}

bool lora_pool_has_owner(const struct lora_pool *p, uint64_t owner)
{
    uint32_t hash; /* an owner is the beginning of a digest, as a hash is (chain_of) */
    memcpy(&hash, &owner, sizeof hash);
    int32_t i = p->chains[hash & (p->n_chains - 1)];
    while (i >= 0 && memcmp(p->slots[i].content.bytes, &owner, sizeof owner) != 0)
        i = p->slots[i].next;
    return i >= 0;
}

/* ---- placing ----------------------------------------------------------------------------- */

/* Memory for all sites of a, in as few extents as the heap allows. False, with nothing taken, when
 * it doesn't fit. */
static bool place(struct lora_pool *p, struct slot *s, const struct lora_adapter *a)
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
        s->extents[s->n_extents++] = (struct extent){offset, n_bytes, next, end};
        next = end;
    }
    if (next == a->n_sites)
        return true;
    for (int e = 0; e < s->n_extents; e++)
        heap_give(p->heap, s->extents[e].offset, s->extents[e].n_bytes);
    s->n_extents = 0;
    return false;
}

/* A slot with memory for a, out of the list of empty ones, or -1. */
static int32_t make_room(struct lora_pool *p, const struct lora_adapter *a, bool promised_too)
{
    if (a->n_bytes > p->n_bytes - p->stats.bytes_pinned)
        return -1;
    while (p->empty < 0)
        if (!evict_one(p, promised_too, false))
            return -1;
    int32_t i = p->empty;
    while (!place(p, &p->slots[i], a))
        if (!evict_one(p, promised_too, false))
            return -1; /* i is still empty, further down the list */
    int32_t *link = &p->empty;
    while (*link != i)
        link = &p->slots[*link].next;
    *link = p->slots[i].next;
    return i;
}

/* Brings in what isn't here; the slot or -1. Under the lock. */
static int32_t bring_in(struct lora_pool *p, const struct lora_adapter *a, void *owner,
                        bool promised_too)
{
    int32_t i = make_room(p, a, promised_too);
    if (i < 0)
        return -1;
    struct slot *s = &p->slots[i];
    s->content = a->content;
    s->generation = ++p->n_fills; /* rule 5 */
    s->n_bytes = a->n_bytes;
    s->n_pins = 0;
    s->n_uses = 0;
    s->last_pin = p->n_ticks;
    s->last_step = p->now;
    fill(p, i, a, owner);
    int32_t *chain = chain_of(p, &s->content);
    s->next = *chain;
    *chain = i;
    p->stats.n_resident++;
    p->stats.n_uploads++;
    p->stats.bytes_uploaded += s->n_bytes;
    return i;
}

static void pin_slot(struct lora_pool *p, int32_t i, struct lora_pin *out)
{
    struct slot *s = &p->slots[i];
    bool was_held = is_held(s);
    if (s->n_pins++ == 0)
        p->stats.bytes_pinned += s->n_bytes;
    count_held(p, s, was_held);
    s->last_pin = ++p->n_ticks;
    set_promised(p, s, false);
    s->n_uses++;
    reckon(p, s);
    *out = (struct lora_pin){i, s->generation};
}

bool lora_pool_pin(struct lora_pool *p, const struct lora_adapter *a, void *owner,
                   struct lora_pin *out)
{
    int32_t i = lora_pool_slot(p, &a->content);
    p->stats.n_hits += i >= 0;
    if (i < 0)
        lora_pool_poll(p);
    pthread_mutex_lock(&p->lock);
    if (i < 0)
        i = bring_in(p, a, owner, true);
    if (i >= 0)
        pin_slot(p, i, out);
    pthread_mutex_unlock(&p->lock);
    return i >= 0;
}

bool lora_pool_prefetch(struct lora_pool *p, const struct lora_adapter *a, void *owner,
                        bool promise)
{
    if (lora_pool_is_resident(p, &a->content))
        return true;
    if (a->n_bytes > p->n_bytes - p->bytes_held ||
        (promise && p->stats.bytes_promised + a->n_bytes > p->n_bytes / PROMISES_PART))
        return false;
    lora_pool_poll(p);
    pthread_mutex_lock(&p->lock);
    int32_t i = bring_in(p, a, owner, false);
    if (i >= 0) {
        struct slot *s = &p->slots[i];
        s->n_uses = 1; /* as if; its first pin is that use */
        reckon(p, s);
        s->n_uses = 0;
        set_promised(p, s, promise);
        p->stats.n_prefetched++;
    }
    pthread_mutex_unlock(&p->lock);
    return i >= 0;
}

void lora_pool_forget(struct lora_pool *p, const struct content_digest *content)
{
    int32_t i = lora_pool_slot(p, content);
    if (i >= 0)
        set_promised(p, &p->slots[i], false);
}

int lora_pool_keep(struct lora_pool *p, const struct content_digest *content, bool keep,
                   struct err *err)
{
    int32_t i = lora_pool_slot(p, content);
    if (i < 0)
        return keep ? err_set(err, ERR_NOT_FOUND, "the adapter isn't on the device") : 0;
    struct slot *s = &p->slots[i];
    if (keep && !s->kept && s->n_bytes > p->n_bytes_first / 2 - p->stats.bytes_kept)
        return err_set(err, ERR_TOO_LARGE,
                       "%zu bytes of adapters are kept on the device; with %zu more it would be "
                       "over half of the %zu bytes that adapters began with",
                       p->stats.bytes_kept, s->n_bytes, p->n_bytes_first);
    pthread_mutex_lock(&p->lock);
    set_kept(p, s, keep);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

int lora_pool_evict(struct lora_pool *p, const struct content_digest *content, struct err *err)
{
    int32_t i = lora_pool_slot(p, content);
    if (i < 0)
        return 0;
    lora_pool_poll(p);
    if (p->slots[i].n_pins != 0 || p->slots[i].n_chunks != 0)
        return err_set(err, ERR_BUSY, "the adapter is in use on the device");
    pthread_mutex_lock(&p->lock);
    evict(p, i);
    pthread_mutex_unlock(&p->lock);
    return 0;
}

/* Memory goes from the last bricks that have some to the first that have none. */
static void gather_bricks(struct lora_pool *p)
{
    int to = 0, from = p->n_bricks_max - 1;
    for (;;) {
        while (to < from && p->bricks[to])
            to++;
        while (to < from && !p->bricks[from])
            from--;
        if (to >= from)
            return;
        close_brick(p, from);
        open_brick(p, to);
    }
}

void lora_pool_clear(struct lora_pool *p)
{
    wait_for_all(p);
    pthread_mutex_lock(&p->lock);
    while (evict_one(p, true, true))
        continue;
    pthread_mutex_unlock(&p->lock);
    if (p->stats.bytes_pinned == 0)
        gather_bricks(p);
}

void lora_pool_look(struct lora_pool *p, const struct content_digest *content,
                    struct lora_place *out)
{
    *out = (struct lora_place){0};
    pthread_mutex_lock(&p->lock);
    int32_t i = lora_pool_slot(p, content);
    if (i >= 0) {
        const struct slot *s = &p->slots[i];
        *out = (struct lora_place){.is_here = true,
                                   .is_loading = s->n_chunks != 0,
                                   .is_kept = s->kept,
                                   .is_pinned = s->n_pins != 0};
    }
    pthread_mutex_unlock(&p->lock);
}

void lora_pool_unpin(struct lora_pool *p, struct lora_pin pin)
{
    BUG_IF(pin.slot < 0 || pin.slot >= p->n_slots);
    struct slot *s = &p->slots[pin.slot];
    BUG_IF(s->generation != pin.generation || s->n_pins < 1);
    pthread_mutex_lock(&p->lock);
    if (--s->n_pins == 0)
        p->stats.bytes_pinned -= s->n_bytes;
    count_held(p, s, true);
    s->last_step = p->now;
    pthread_mutex_unlock(&p->lock);
}

void lora_pool_check(const struct lora_pool *p, struct lora_pin pin,
                     const struct content_digest *content)
{
    BUG_IF(pin.slot < 0 || pin.slot >= p->n_slots);
    const struct slot *s = &p->slots[pin.slot];
    BUG_IF(s->generation != pin.generation || s->n_pins < 1 || !DIGEST_EQ(s->content, *content));
}

const struct lora_linear *lora_pool_linears(const struct lora_pool *p, int *n)
{
    *n = p->model->n_layers * FUSED_KINDS;
    return p->linears;
}

void lora_pool_stats(const struct lora_pool *p, struct lora_pool_stats *out)
{
    *out = p->stats;
    out->bytes_used = heap_used(p->heap);
    if (p->brick_bytes > 0) /* a brick without memory is taken, too */
        out->bytes_used -= (size_t)p->n_bricks_max * p->brick_bytes - p->n_bytes;
}

static void set_entry(struct lora_pool *p, int site, int32_t slot, struct lora_entry entry)
{
    struct lora_entry *e = entry_at(p, site, slot);
    *e = entry;
    p->ops->upload(p->be, d_entry_at(p, site, slot), e, sizeof *e);
}

void lora_pool_swap_entries(struct lora_pool *p, int32_t slot_a, int32_t slot_b)
{
    for (int site = 0; site < p->n_sites; site++) {
        struct lora_entry a = *entry_at(p, site, slot_a);
        set_entry(p, site, slot_a, *entry_at(p, site, slot_b));
        set_entry(p, site, slot_b, a);
    }
}

/* ---- the end ----------------------------------------------------------------------------- */

void lora_pool_free(struct lora_pool *p)
{
    if (p == NULL)
        return;
    BUG_IF(p->stats.bytes_pinned != 0);
    wait_for_all(p);
    if (p->brick_bytes > 0)
        p->ops->mem_release(p->be, p->region);
    else
        p->ops->mem_free(p->be, p->region);
    p->ops->mem_free(p->be, p->d_entries);
    heap_free(p->heap);
    p->ops->host_free(p->be, p->entries);
    pthread_mutex_destroy(&p->lock);
    free(p->slots);
    free(p->extents);
    free(p->chains);
    free(p->loading);
    free(p->parts);
    free(p->linears);
    free(p->bricks);
    free(p->loss);
    free(p);
}

void lora_pool_set_owners(struct lora_pool *p, const struct lora_pool_owners *owners)
{
    p->owners = *owners;
}
