/* adapter_store: adapters that the node has never seen, from a name to tensors that serve.
 *
 *   name, name@version, contentDigest or adapterId
 *     -> manifest           from a registry, by the index; hash and creator's signature checked
 *     -> registration       where a chain is configured: known to AdapterRegistry, not retired
 *     -> files              each hashed while it arrives, resumed if it broke off; then the content
 *                           digest of the whole
 *     -> tensors            checked against the base model by the engine
 *     -> ledger             the manifest, so that royalties can be split
 *
 * What fails is refused by name and nothing half-done is left in the way. An adapter that was
 * fetched stays on disk (bounded by registry.cache_bytes, the longest unused leaves first) and
 * loaded (as long as the engine has room); its registration is looked at again every
 * registry.refresh.
 *
 * Disk: DATA/adapters/<contentDigest>/. Several loader threads may resolve at once; one content is
 * fetched once. */
#ifndef TRIBUTARY_NODE_ADAPTER_STORE_H
#define TRIBUTARY_NODE_ADAPTER_STORE_H

#include "node/service.h"

#include <stdint.h>

struct adapter_store;
struct deployment;
struct engine;
struct ledger;
struct rpc;

struct adapter_store_options {
    const char *data_dir;
    const char *const *registries; /* [n_registries] URLs; copied */
    size_t n_registries;
    uint64_t refresh_ms;
    uint64_t cache_bytes;
    /* Both must outlive the store. rpc NULL: no chain; signatures are all there is to check. */
    struct rpc *rpc;
    const struct deployment *deployment;
};

/* Made before the service, whose options name its resolver. */
struct adapter_store *adapter_store_create(const struct adapter_store_options *options);
/* Before the first resolve. Both must outlive the store. */
void adapter_store_start(struct adapter_store *s, struct engine *engine, struct ledger *ledger);
/* No resolve may be running. Quiet on NULL. */
void adapter_store_free(struct adapter_store *s);
/* Ends downloads under way: their requests fail with ERR_CANCELLED. */
void adapter_store_cancel(struct adapter_store *s);

/* For service_options; the context is the store. */
struct service_resolver adapter_store_resolver(struct adapter_store *s);

#endif
