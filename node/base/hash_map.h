/* hash_map: values by a key of bytes. One owner at a time: who shares a map holds a lock.
 *
 * Keys are not copied: each must stay as it is, where it is, for as long as its entry does; it is
 * usually a member of the value. Reading, putting and removing take constant time whatever a
 * stranger chose as keys: the hash is seeded at random, once for each map.
 *
 * A map begins as HASH_MAP_INIT and holds no memory until something is put into it. */
#ifndef TRIBUTARY_BASE_HASH_MAP_H
#define TRIBUTARY_BASE_HASH_MAP_H

#include <stddef.h>
#include <stdint.h>

struct hash_map_slot {
    const void *key; /* NULL: empty */
    size_t n_key;
    void *value;
    uint64_t hash;
};

struct hash_map {
    struct hash_map_slot *slots; /* [n_slots], a power of two */
    size_t n_slots, n;           /* n: entries */
    uint64_t seed;
};
#define HASH_MAP_INIT \
    {                 \
        NULL, 0, 0, 0 \
    }

void hash_map_release(struct hash_map *m); /* the values are not ours to free */

/* NULL: no such key. */
void *hash_map_get(const struct hash_map *m, const void *key, size_t n_key);
/* Puts value (not NULL) under key. What lay there before is returned (its key is forgotten, too),
 * or NULL. */
void *hash_map_put(struct hash_map *m, const void *key, size_t n_key, void *value);
/* Takes an entry out and returns its value, or NULL. */
void *hash_map_remove(struct hash_map *m, const void *key, size_t n_key);

/* Every value once, in no order: begin with *at = 0, until NULL. The map must not change between
 * the calls. */
void *hash_map_next(const struct hash_map *m, size_t *at);

#endif
