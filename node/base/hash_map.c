/* hash_map: see hash_map.h. Open addressing with linear probing, at most three quarters full; an
 * entry that leaves lets those behind it move up, so that no marks of the dead are needed (Knuth,
 * The Art of Computer Programming, volume 3, section 6.4, algorithm R). */
#include "node/base/hash_map.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/random.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { SLOTS_MIN = 16 };

/* Bytes eight at a time, each stirred by a multiplication whose two halves are folded together. */
static uint64_t stir(uint64_t a, uint64_t b)
{
    __uint128_t product = (__uint128_t)(a ^ UINT64_C(0x9E3779B97F4A7C15)) *
                          (b ^ UINT64_C(0xD6E8FEB86659FD93));
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t hash_of(const struct hash_map *m, const void *key, size_t n)
{
    const uint8_t *p = key;
    uint64_t h = m->seed ^ n;
    for (; n > 0;) {
        uint64_t word = 0;
        size_t take = n < 8 ? n : 8;
        memcpy(&word, p, take);
        h = stir(h, word ^ m->seed);
        p += take;
        n -= take;
    }
    return stir(h, m->seed);
}

static size_t home_of(const struct hash_map *m, uint64_t hash)
{
    return (size_t)hash & (m->n_slots - 1);
}

/* The entry's slot, or the empty one where it would go. With room in the table. */
static struct hash_map_slot *find(const struct hash_map *m, const void *key, size_t n_key,
                                  uint64_t hash)
{
    size_t i = home_of(m, hash);
    for (;; i = (i + 1) & (m->n_slots - 1)) {
        struct hash_map_slot *s = &m->slots[i];
        if (s->key == NULL ||
            (s->hash == hash && s->n_key == n_key && memcmp(s->key, key, n_key) == 0))
            return s;
    }
}

static void grow(struct hash_map *m)
{
    struct hash_map old = *m;
    if (old.n_slots == 0)
        m->seed = random_u64();
    m->n_slots = old.n_slots == 0 ? SLOTS_MIN : old.n_slots * 2;
    m->slots = xcalloc(m->n_slots, sizeof *m->slots);
    for (size_t i = 0; i < old.n_slots; i++) {
        const struct hash_map_slot *s = &old.slots[i];
        if (s->key != NULL)
            *find(m, s->key, s->n_key, s->hash) = *s;
    }
    free(old.slots);
}

void hash_map_release(struct hash_map *m)
{
    free(m->slots);
    *m = (struct hash_map)HASH_MAP_INIT;
}

void *hash_map_get(const struct hash_map *m, const void *key, size_t n_key)
{
    if (m->n == 0)
        return NULL;
    const struct hash_map_slot *s = find(m, key, n_key, hash_of(m, key, n_key));
    return s->key != NULL ? s->value : NULL;
}

void *hash_map_put(struct hash_map *m, const void *key, size_t n_key, void *value)
{
    BUG_IF(value == NULL);
    if ((m->n + 1) * 4 > m->n_slots * 3)
        grow(m);
    uint64_t hash = hash_of(m, key, n_key);
    struct hash_map_slot *s = find(m, key, n_key, hash);
    void *before = s->key != NULL ? s->value : NULL;
    m->n += s->key == NULL;
    *s = (struct hash_map_slot){key, n_key, value, hash};
    return before;
}

void *hash_map_remove(struct hash_map *m, const void *key, size_t n_key)
{
    if (m->n == 0)
        return NULL;
    struct hash_map_slot *s = find(m, key, n_key, hash_of(m, key, n_key));
    if (s->key == NULL)
        return NULL;
    void *value = s->value;
    m->n--;
    size_t mask = m->n_slots - 1, hole = (size_t)(s - m->slots);
    for (size_t i = (hole + 1) & mask; m->slots[i].key != NULL; i = (i + 1) & mask) {
        /* What lies at i may fill the hole unless its home is behind the hole, up to i. */
        size_t home = home_of(m, m->slots[i].hash);
        bool stays = hole <= i ? home > hole && home <= i : home > hole || home <= i;
        if (stays)
            continue;
        m->slots[hole] = m->slots[i];
        hole = i;
    }
    m->slots[hole] = (struct hash_map_slot){0};
    return value;
}

void *hash_map_next(const struct hash_map *m, size_t *at)
{
    while (*at < m->n_slots) {
        const struct hash_map_slot *s = &m->slots[(*at)++];
        if (s->key != NULL)
            return s->value;
    }
    return NULL;
}
