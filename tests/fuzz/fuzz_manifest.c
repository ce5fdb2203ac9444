/* Adapter and Datanet manifests from strangers: what is accepted must be its own canonical text,
 * and what the struct says must be writable. */
#include "attribution/manifest.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/sha256.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void same_text(const struct buf *again, const uint8_t *data, size_t n)
{
    BUG_IF(again->len != n || memcmp(again->data, data, n) != 0);
}

static void adapter(const uint8_t *data, size_t n)
{
    struct arena arena = ARENA_INIT;
    struct buf again = BUF_INIT;
    struct manifest_adapter m;
    struct sha256_digest hash;
    struct err err;
    if (manifest_adapter_parse(&m, &hash, &arena, data, n, &err) == 0) {
        uint32_t bps = 0;
        for (uint32_t i = 0; i < m.n_splits; i++)
            bps += m.splits[i].bps;
        for (uint32_t i = 0; i < m.n_datanets; i++)
            bps += m.datanets[i].bps;
        BUG_IF(bps != 10000);
        BUG_IF(manifest_adapter_write(&m, &again, &err) != 0);
        same_text(&again, data, n);
        struct sha256_digest want = sha256(data, n);
        BUG_IF(!DIGEST_EQ(hash, want));
    }
    buf_release(&again);
    arena_release(&arena);
}

static void datanet(const uint8_t *data, size_t n)
{
    struct arena arena = ARENA_INIT;
    struct buf again = BUF_INIT;
    struct manifest_datanet m;
    struct err err;
    if (manifest_datanet_parse(&m, NULL, &arena, data, n, &err) == 0) {
        BUG_IF(manifest_datanet_write(&m, &again, &err) != 0);
        same_text(&again, data, n);
    }
    buf_release(&again);
    arena_release(&arena);
}

static void any_json(const uint8_t *data, size_t n)
{
    struct buf once = BUF_INIT, twice = BUF_INIT;
    struct err err;
    json_t *value = json_loadb((const char *)data, n, JSON_REJECT_DUPLICATES, NULL);
    if (value && canonical_json_write(value, &once, &err) == 0) {
        /* Canonical text is a fixed point. */
        json_t *again = json_loadb((const char *)once.data, once.len, 0, NULL);
        BUG_IF(!again || canonical_json_write(again, &twice, &err) != 0);
        same_text(&twice, once.data, once.len);
        json_decref(again);
    }
    json_decref(value);
    buf_release(&once);
    buf_release(&twice);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    adapter(data, n);
    datanet(data, n);
    any_json(data, n);
    return 0;
}
