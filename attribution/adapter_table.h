/* adapter_table: the adapters that the ledger knows, in memory, for pricing and routing.
 *
 * Filled from the database at open and by the ledger thread afterwards; read from any thread.
 * Entries are never removed and never move, so that a pointer stays good until the table is freed;
 * only `retired` changes. */
#ifndef TRIBUTARY_ATTRIBUTION_ADAPTER_TABLE_H
#define TRIBUTARY_ATTRIBUTION_ADAPTER_TABLE_H

#include "attribution/attribution.h"
#include "attribution/manifest.h"

#include <stdatomic.h>

struct adapter_entry {
    struct adapter_id id;
    struct sha256_digest manifest_hash;
    struct manifest_adapter facts;
    _Atomic bool retired;
    /* sha256 of the adapter's part of an attribution list needs the bytes themselves: */
    size_t n_attribution;
    const uint8_t *attribution; /* 36 bytes a Datanet, attribution.h */
    size_t n_shares;            /* splits, then Datanets */
    const uint16_t *share_bps;
    uint64_t put_order;
};

struct adapter_table; /* opaque */

struct adapter_table *adapter_table_create(void);
void adapter_table_free(struct adapter_table *t);

/* Parses and adds; an id that is there already must have the same manifest (ERR_CONFLICT). */
int adapter_table_put(struct adapter_table *t, struct adapter_id id, const void *manifest, size_t n,
                      bool retired, struct err *err);

/* NULL when there is none. */
struct adapter_entry *adapter_table_by_id(struct adapter_table *t, struct adapter_id id);
struct adapter_entry *adapter_table_by_content(struct adapter_table *t,
                                               struct content_digest content);
struct adapter_entry *adapter_table_by_name(struct adapter_table *t, const char *name,
                                            uint64_t version);

#endif
