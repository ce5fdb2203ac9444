/* strmap: see strmap.h. Open addressing with linear probing, at most half full. A slot is a whole
 * entry, so that a look-up touches one line of the table and, when the hash agrees, the key. */
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
        const struct strmap_entry *e = &m->slots[i];
        if (e->n_bytes == UINT32_MAX)
            return i;
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
    for (size_t i = 0; i < m->n_slots; i++)
        m->slots[i].n_bytes = UINT32_MAX;
    for (size_t k = 0; k < m->n; k++) {
        size_t i = m->entries[k].hash & (m->n_slots - 1);
        while (m->slots[i].n_bytes != UINT32_MAX)
            i = (i + 1) & (m->n_slots - 1);
        m->slots[i] = m->entries[k];
    }
}

bool strmap_put(struct strmap *m, const char *key, size_t n_bytes, int32_t value)
{
    BUG_IF(n_bytes >= UINT32_MAX || m->keys.len >= UINT32_MAX - n_bytes - 1);
    if (m->n == m->cap)
        grow(m);
    uint32_t hash = hash_bytes(key, n_bytes);
    size_t slot = slot_of(m, key, n_bytes, hash);
    if (m->slots[slot].n_bytes != UINT32_MAX)
        return false;
    m->slots[slot] = (struct strmap_entry){hash, (uint32_t)n_bytes, (uint32_t)m->keys.len, value};
    m->entries[m->n++] = m->slots[slot];
    buf_append(&m->keys, key, n_bytes);
    buf_append_byte(&m->keys, 0);
    return true;
}

int32_t strmap_get(const struct strmap *m, const char *key, size_t n_bytes)
{
    if (m->n == 0)
        return -1;
    const struct strmap_entry *e = &m->slots[slot_of(m, key, n_bytes, hash_bytes(key, n_bytes))];
    return e->n_bytes == UINT32_MAX ? -1 : e->value;
}

void strmap_release(struct strmap *m)
{
    buf_release(&m->keys);
    free(m->entries);
    free(m->slots);
    *m = (struct strmap)STRMAP_INIT;
}
