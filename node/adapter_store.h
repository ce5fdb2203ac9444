/* adapter_store: every adapter that the node can serve, and where each one is.
 *
 * Four tiers, the fastest first:
 *
 *   device    pages of the engine's pool; the engine moves adapters there and away on its own
 *   host      loaded in the engine, by digest: what a request needs before it can be submitted
 *   disk      a local directory of the operator's, or DATA/adapters/<contentDigest>/ for fetched
 *             ones
 *   registry  a manifest that an index lists
 *
 * From a name to tensors that serve:
 *
 *   name, name@version, contentDigest or adapterId
 *     local:    a directory, given by --adapter, found in --adapters-dir or told through the admin
 *               API
 *     else -> manifest       from a registry, by the index; hash and creator's signature checked
 *          -> registration   where a chain is configured: known to AdapterRegistry, not retired
 *          -> files          each hashed while it arrives, resumed if it broke off; then the
 * content digest of the whole
 *          -> ledger         the manifest, so that royalties can be split
 *     -> tensors             read, hashed again, checked against the base model by the engine
 *
 * With a chain a contentDigest means its earliest registration: a copy that is registered later
 * earns only what is asked for by its own name or id.
 *
 * What fails is refused by name and nothing half-done is left in the way. Requests for one adapter
 * that isn't there share one load and one fetch. Reading from disk has threads of its own, so that
 * it never waits behind a slow registry; and so has asking whether a name still means what is here,
 * so that this never waits behind slow files.
 *
 * Whatever a name points at, tensors only ever serve under their own digest: files that were edited
 * since their digest was taken are an error that names the adapter, until it is registered anew.
 *
 * Host memory is bounded by engine.adapter_host_bytes: idle adapters leave by cost
 * (adapter_tiers.c), those in use or pinned never. The disk is bounded by registry.cache_bytes for
 * fetched adapters, whole or not, the longest unused first; the operator's own directories are
 * never touched. */
#ifndef TRIBUTARY_NODE_ADAPTER_STORE_H
#define TRIBUTARY_NODE_ADAPTER_STORE_H

#include "node/base/amount.h"
#include "node/service.h"

#include <stdint.h>

struct adapter_store;
struct deployment;
struct engine;
struct ledger;
struct metrics;
struct rpc;

enum adapter_tier { TIER_DEVICE, TIER_HOST, TIER_DISK, TIER_REGISTRY, N_TIERS };
const char *adapter_tier_name(enum adapter_tier tier); /* "device" */

struct adapter_store_options {
    const char *data_dir;
    const char *base_name;         /* no adapter may have it */
    const char *const *registries; /* [n_registries] URLs; copied */
    size_t n_registries;
    uint64_t refresh_ms;
    uint64_t cache_bytes;
    struct amount max_royalty_per_1k; /* of adapters from registries; 0: no limit */
    int n_loaders;  /* threads that read from disk; 0: a quarter of the cores, 2 to 8 */
    int n_fetchers; /* threads that ask what a name means, and half of those that fetch; 0: 8 */
    /* Requests for what isn't here that wait for registries, then ERR_BUSY; one customer alone has
     * half of the places. 0: 512. */
    size_t max_waiting;
    /* All must outlive the store. rpc NULL: no chain; signatures are all there is to check. metrics
     * may be NULL. */
    struct rpc *rpc;
    const struct deployment *deployment;
    struct metrics *metrics;
};

/* Made before the service, whose options name its resolver. */
struct adapter_store *adapter_store_create(const struct adapter_store_options *options);
/* Before the first resolve. Both must outlive adapter_store_stop. */
int adapter_store_start(struct adapter_store *s, struct engine *engine, struct ledger *ledger,
                        struct err *err);
/* Ends what is under way: who waits gets ERR_CANCELLED, soon. */
void adapter_store_cancel(struct adapter_store *s);
/* Cancels, tells all who wait, joins the threads. Before engine_close. Quiet on NULL and twice. */
void adapter_store_stop(struct adapter_store *s);
void adapter_store_free(struct adapter_store *s); /* after adapter_store_stop; quiet on NULL */

/* For service_options; the context is the store. */
struct service_resolver adapter_store_resolver(struct adapter_store *s);

/* ---- local adapters ----------------------------------------------------------------------------
 * Any thread, after the start. */

/* What adapter_store_add would refuse without reading tensors: a name that can't be one, a
 * directory that isn't there or has no adapter_config.json. Before the start, too. */
int adapter_store_check(const struct adapter_store *s, const char *name, const char *dir,
                        struct err *err);
/* A directory under a name. The files are read and checked now; they go into host memory, too, if
 * there is room without sending another away. A local name that is known already is pointed at the
 * new directory when it is `told` (requests under way finish with what they began with), else
 * ERR_CONFLICT. What is told of a running node is remembered in DATA/adapters.told. *facts may be
 * NULL. */
int adapter_store_add(struct adapter_store *s, const char *name, const char *dir, bool told,
                      struct engine_adapter *facts, struct err *err);
/* Every sub-directory of root that has an adapter_config.json, under the directory's name. Nothing
 * is read but what was remembered of earlier runs (DATA/adapters.known); a thread of its own looks
 * at the others when nothing else is to be done, or their first request does. Names that are known
 * already stay as they are. *n: how many were added. */
int adapter_store_add_all(struct adapter_store *s, const char *root, size_t *n, struct err *err);
/* What earlier runs were told of and did not forget: after what the configuration names, which
 * counts more, and before adapter_store_add_all. *n: how many. Their files are looked at as those
 * of adapter_store_add_all are; one that has gone is an error of whoever asks for it. */
int adapter_store_recall(struct adapter_store *s, size_t *n, struct err *err);
/* Forgets a local name, now, and if it was told of for later starts, too. ERR_NOT_FOUND;
 * ERR_CONFLICT when it comes from a registry. */
int adapter_store_remove(struct adapter_store *s, const char *name, struct err *err);

/* ---- for operators -----------------------------------------------------------------------------
 * Any thread. JSON results are new references, or NULL with *err. */

struct adapter_filter {
    const char *tier;   /* NULL: any; "host" means there or better */
    const char *prefix; /* of the name; NULL: any */
    const char *cursor; /* NULL: from the start */
    bool pinned;        /* only those */
    size_t limit;       /* 0: 100; at most 1000 */
};
/* {"items":[...],"next":cursor or null}, by name; item: see api_admin.c. */
json_t *adapter_store_list(struct adapter_store *s, const struct adapter_filter *filter,
                           struct err *err);
json_t *adapter_store_show(struct adapter_store *s, const char *model, struct err *err);
enum adapter_load {
    LOAD_HOST, /* into host memory, from wherever it is */
    LOAD_WARM, /* and towards the device; ERR_BUSY: there is no room for it now */
    LOAD_PIN,  /* into host memory, and pinned */
};
/* done is called as a resolver's, but its out is not held. Don't call it from the engine thread; it
 * may wait for it. */
void adapter_store_load(struct adapter_store *s, const char *model, enum adapter_load how,
                        service_resolved_fn *done, void *user);
/* Out of host memory and off the device. ERR_CONFLICT: pinned, or in use. The result says how many
 * bytes both tiers held before and hold after. Waits for the engine, a step at most. */
json_t *adapter_store_unload(struct adapter_store *s, const char *model, struct err *err);
/* A pinned adapter never leaves host memory once it is there, and the engine keeps it on the device
 * while it has room for it (engine_adapter_keep). */
int adapter_store_pin(struct adapter_store *s, const char *model, bool pinned, struct err *err);

/* ---- counters ----------------------------------------------------------------------------------
 */

struct adapter_store_stats {
    /* Requests, by the tier where their adapter was found; an ensemble asks for each of its own,
     * and for all again if they aren't there at once (answer_resolve.c). */
    uint64_t hits[N_TIERS];
    uint64_t evictions[N_TIERS];           /* device: see engine_stats */
    uint64_t n_loads, n_fetches, n_failed; /* from disk; from a registry; of both */
    size_t n_adapters[N_TIERS]; /* contents that are there; registry: names that are listed */
    uint64_t bytes[N_TIERS];    /* registry: 0, not known */
    size_t host_bytes_total;
    size_t n_local, n_pinned, n_in_use, n_waiting;
};
void adapter_store_stats(struct adapter_store *s, struct adapter_store_stats *out);

#endif
