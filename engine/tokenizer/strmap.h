/* strmap: byte strings to numbers. Filled once, then only read. */
#ifndef TRIBUTARY_ENGINE_TOKENIZER_STRMAP_H
#define TRIBUTARY_ENGINE_TOKENIZER_STRMAP_H

#include "node/base/buf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct strmap_entry {
    uint32_t hash;
    uint32_t n_bytes;
    uint32_t offset; /* of the key in `keys` */
    int32_t value;
};

struct strmap {
    struct buf keys;              /* one after the other, each followed by a NUL */
    struct strmap_entry *entries; /* [n], in the order of insertion */
    size_t n, cap;
    struct strmap_entry *slots; /* [n_slots], a power of two: the entries once more, where their
                                   hash puts them; n_bytes UINT32_MAX: empty */
    size_t n_slots;
};
#define STRMAP_INIT                   \
    {                                 \
        BUF_INIT, NULL, 0, 0, NULL, 0 \
    }

/* Copies the key. Returns false, and changes nothing, when the key is there already. All keys
 * together are less than 4 GiB. */
bool strmap_put(struct strmap *m, const char *key, size_t n_bytes, int32_t value);

/* The value, or -1. */
int32_t strmap_get(const struct strmap *m, const char *key, size_t n_bytes);

void strmap_release(struct strmap *m);

#endif
