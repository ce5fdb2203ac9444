/* registry: a client of adapter registries. What comes from them is hostile until it has proven
 * itself.
 *
 * A registry is a static, content-addressed HTTP layout (DESIGN section 9):
 *
 *   /v1/index.json               newest manifests; names the page before it by its sha256
 *   /v1/manifests/<sha256>.json  canonical manifest; <sha256>.sig beside it
 *   /v1/blobs/<sha256>           files, and older index pages
 *
 *   index page    {"items":[{"creator":address,"kind":"adapter"|"datanet","manifest":sha256 hex,
 *                            "name":str,"version":n}],        oldest first
 *                  "previous":sha256 hex or null,"schema":"tributary.index/1","updated":unix
 * seconds} signature     {"chainId":n,"signature":0x r s v,"verifyingContract":address}
 *
 * What is believed, and why: a manifest, because its hash was asked for, its creator signed it, and
 * (where a chain is configured) the AdapterRegistry contract knows it; a file, because the manifest
 * names its hash; the index not at all: it can hide an adapter or offer an unwanted one, not forge
 * one.
 *
 * Any thread; calls block. */
#ifndef TRIBUTARY_NODE_REGISTRY_H
#define TRIBUTARY_NODE_REGISTRY_H

#include "attribution/manifest.h"
#include "chain/types.h"
#include "node/base/digest.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct err;
struct http_client;
struct wallet;

enum {
    REGISTRY_INDEX_MAX_BYTES = 1 << 20,
    REGISTRY_PAGES_MAX = 10000,
    REGISTRY_PAGE_ITEMS = 100, /* what the reference server puts on a page */
};

struct registry_client {
    struct http_client *http;
    const char *url;            /* base, without a final slash */
    const _Atomic bool *cancel; /* may be NULL */
};

struct registry_entry {
    bool is_datanet;
    char name[MANIFEST_NAME_BYTES];
    uint64_t version; /* 0: Datanet */
    struct address creator;
    struct sha256_digest manifest;
};

/* The index, newest first, page after page: calls each until it returns 1 (then 1 is returned), -1,
 * or the index ends (0). ERR_UPSTREAM, ERR_CORRUPT name the page. */
typedef int registry_entry_fn(void *context, const struct registry_entry *entry, struct err *err);
int registry_walk(const struct registry_client *c, registry_entry_fn *each, void *context,
                  struct err *err);

/* Where a signature counts; as in the .sig file. */
struct registry_signature {
    uint64_t chain_id;
    struct address verifying_contract;
    struct signature signature;
};
/* The .sig file's canonical JSON, both ways. */
void registry_signature_write(struct buf *out, const struct registry_signature *s);
int registry_signature_parse(struct registry_signature *out, const void *text, size_t n,
                             struct err *err);

/* Appends the manifest's text, whose sha256 is hash, and reads its signature.
 * ERR_NOT_FOUND: the registry hasn't it; ERR_CORRUPT: it answered other bytes. */
int registry_manifest(const struct registry_client *c, struct sha256_digest hash, struct buf *text,
                      struct registry_signature *signature, struct err *err);

/* ERR_CORRUPT unless the manifest's creator signed it in the domain that the signature names. */
int registry_check_adapter(const struct manifest_adapter *m, struct sha256_digest hash,
                           const struct registry_signature *s, struct err *err);
/* A Datanet's owner signs the same type, with contentDigest, modelId, version and parent zero; the
 * contract refuses such a message, so the signature is good for nothing else. */
int registry_check_datanet(const struct manifest_datanet *m, struct sha256_digest hash,
                           const struct registry_signature *s, struct err *err);
void registry_datanet_fields(struct manifest *out, const struct manifest_datanet *m,
                             struct sha256_digest hash);

/* Fetches a file to path, hashing while it comes; what an earlier attempt left is taken up where it
 * ended. The file at path is complete and right when 0 is returned; a wrong one is removed.
 * ERR_CORRUPT: other bytes, or another size. */
int registry_blob(const struct registry_client *c, struct sha256_digest hash, uint64_t size_bytes,
                  const char *path, struct err *err);

/* Uploads. The server checks the signature against the creator and takes blobs that a manifest it
 * has accepted names. Putting what is there already is a success. */
int registry_put_manifest(const struct registry_client *c, const struct buf *text,
                          const struct registry_signature *signature, struct err *err);
int registry_put_blob(const struct registry_client *c, struct sha256_digest hash, const char *path,
                      struct err *err);

#endif
