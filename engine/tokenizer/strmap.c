/* strmap: see strmap.h. Open addressing with linear probing, at most half full; the slots hold
 * indexes into a dense array of entries, whose stored hash settles most comparisons. */
#include "engine/tokenizer/strmap.h"

#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t a, uint64_t b)
{
    __uint128_t product = (__uint128_t)(a ^ 0x9E3779B97F4A7C15u) * (b ^ 0xD6E8FEB86659FD93u);
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint32_t hash_bytes(const char *key, size_t n)
{
    uint64_t h = n, word = 0;
    for (; n > 8; key += 8, n -= 8) {
        memcpy(&word, key, 8);
        h = mix(h, word);
    }
    word = 0;
    memcpy(&word, key, n);
    h = mix(h, word);
    return (uint32_t)(h ^ h >> 32);
}

static size_t slot_of(const struct strmap *m, const char *key, size_t n_bytes, uint32_t hash)
{
    size_t mask = m->n_slots - 1;
    for (size_t i = hash & mask;; i = (i + 1) & mask) {
        if (m->slots[i] == 0)
            return i;
        const struct strmap_entry *e = &m->entries[m->slots[i] - 1];
        if (e->hash == hash && e->n_bytes == n_bytes &&
            memcmp(m->keys.data + e->offset, key, n_bytes) == 0)
            return i;
    }
}

static void grow(struct strmap *m)
{
    m->cap = m->cap == 0 ? 64 : m->cap * 2;
    m->entries = xrealloc_array(m->entries, m->cap, sizeof *m->entries);
    free(m->slots);
    m->n_slots = m->cap * 2;
    m->slots = xcalloc(m->n_slots, sizeof *m->slots);
    for (size_t k = 0; k < m->n; k++) {
        size_t i = m->entries[k].hash & (m->n_slots - 1);
        while (m->slots[i] != 0)
            i = (i + 1) & (m->n_slots - 1);
        m->slots[i] = (uint32_t)k + 1;
    }
}

bool strmap_put(struct strmap *m, const char *key, size_t n_bytes, int32_t value)
{
    BUG_IF(n_bytes > UINT32_MAX || m->n >= UINT32_MAX - 1);
    if (m->n == m->cap)
        grow(m);
    uint32_t hash = hash_bytes(key, n_bytes);
    size_t slot = slot_of(m, key, n_bytes, hash);
    if (m->slots[slot] != 0)
        return false;
    m->entries[m->n] = (struct strmap_entry){hash, (uint32_t)n_bytes, m->keys.len, value};
    buf_append(&m->keys, key, n_bytes);
    buf_append_byte(&m->keys, 0);
    m->slots[slot] = (uint32_t)++m->n;
    return true;
}

int32_t strmap_get(const struct strmap *m, const char *key, size_t n_bytes)
{
    if (m->n == 0)
        return -1;
    uint32_t slot = m->slots[slot_of(m, key, n_bytes, hash_bytes(key, n_bytes))];
    return slot == 0 ? -1 : m->entries[slot - 1].value;
}

void strmap_release(struct strmap *m)
{
    buf_release(&m->keys);
    free(m->entries);
    free(m->slots);
    *m = (struct strmap)STRMAP_INIT;
}
