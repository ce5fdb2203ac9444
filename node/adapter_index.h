/* adapter_index: what the registries offer, as of the last time they were asked.
 *
 * A hint, never believed (registry.h). Names are looked up in a sorted table; manifest hashes and
 * Datanet ids in hash tables. A content digest or an adapter id stands in no index: manifests are
 * read, newest first, until one has it, and what was read once is remembered, so that the next
 * question costs nothing. One question reads at most INDEX_LOOK_AHEAD manifests.
 *
 * Any thread; refresh, find and their kind ask registries and block. */
#ifndef TRIBUTARY_NODE_ADAPTER_INDEX_H
#define TRIBUTARY_NODE_ADAPTER_INDEX_H

#include "node/registry.h"

struct adapter_index;
struct deployment;
struct http_client;

enum { INDEX_ENTRIES_MAX = 200000, INDEX_LOOK_AHEAD = 2000 };

struct index_entry {
    struct registry_entry e;
    size_t registry; /* index into urls */
};

struct adapter_index_options {
    const char *const *urls; /* [n_urls], copied without final slashes; 0: an index that is empty */
    size_t n_urls;
    uint64_t refresh_us;
    struct http_client *http; /* this and the next two outlive the index */
    const _Atomic bool *cancel;
    const struct deployment *deployment; /* for Datanet ids; NULL: no chain, none are looked up */
};

struct adapter_index *adapter_index_create(const struct adapter_index_options *options);
void adapter_index_free(struct adapter_index *ix); /* quiet on NULL */

size_t adapter_index_n_registries(const struct adapter_index *ix);
/* Where an entry's manifest and files are. */
struct registry_client adapter_index_client(struct adapter_index *ix, size_t registry);

/* Makes the index no older than max_age_us, or waits for the thread that is at it; never waits
 * where it is no older. Fails only when there is no index at all, not even an old one. */
int adapter_index_refresh(struct adapter_index *ix, uint64_t max_age_us, struct err *err);
/* Never block: no older than refresh_us; no older than twice that, so that names may still be
 * looked up while registries that are slow are asked again. */
bool adapter_index_is_fresh(struct adapter_index *ix);
bool adapter_index_counts(struct adapter_index *ix);
uint64_t adapter_index_age_us(struct adapter_index *ix); /* since the last attempt */

/* The entry that a name means: the first creator who used it, and of that creator's adapters the
 * highest version (version 0) or that one. Who comes later can't take a name over. */
bool adapter_index_named(struct adapter_index *ix, const char *name, uint64_t version,
                         struct index_entry *out);

/* What a manifest says, for look: INDEX_LATER when it can't be had now (it is asked for again),
 * INDEX_OTHER when it will never serve here, or its content and id. */
enum index_look { INDEX_LATER, INDEX_OTHER, INDEX_KNOWN };
typedef enum index_look index_look_fn(void *context, const struct index_entry *entry,
                                      struct content_digest *content, struct adapter_id *id);
/* The newest entry with this content digest or id. ERR_NOT_FOUND; ERR_BUSY: others are reading
 * manifests already, more readers would help nobody. */
int adapter_index_find(struct adapter_index *ix, bool by_id, const uint8_t digest[32],
                       index_look_fn *look, void *context, struct index_entry *out,
                       struct err *err);

bool adapter_index_datanet(struct adapter_index *ix, struct datanet_id id, struct index_entry *out);

/* Each name once, with the entry that it means, in the order of names. each must not call back. */
void adapter_index_each(struct adapter_index *ix,
                        void (*each)(void *context, const struct index_entry *entry),
                        void *context);
size_t adapter_index_n_adapters(struct adapter_index *ix); /* entries that are adapters */

#endif
