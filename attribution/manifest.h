/* manifest: what a creator says about an adapter, and a data owner about a Datanet.
 *
 * A manifest is a JSON object in RFC 8785 canonical form: keys sorted, no white space, integers
 * below 2^53, strings. Amounts are decimal strings, digests are 64 lower-case hexadecimal digits,
 * addresses are 0x and 40 lower-case digits, ids on chain 0x and 64. manifestHash = sha256 of those
 * bytes; the creator's signature (EIP-712 Manifest) lies beside them, never inside. Parsing is
 * strict: unknown or missing or repeated keys, floats, other forms of a number or digest are
 * refused by name. So a manifest has exactly one text, and the text says all there is to know.
 *
 *   adapter                                         Datanet
 *   {"baseModel":{"modelId":hex,"name":str},        {"created":unix seconds,
 *    "chatTemplate":str,        optional             "description":str,
 *    "contentDigest":hex,                            "licence":str,
 *    "created":unix seconds,                         "name":str,
 *    "creator":address,                              "owner":address,
 *    "datanets":[{"bps":n,"id":0xhex}],              "payee":address,
 *    "files":[{"path":str,"sha256":hex,"size":n}],   "schema":"tributary.datanet/1",
 *    "licence":str,                                  "sources":[{"sha256":hex,"url":str}]}
 *    "name":str,
 *    "parent":hex,              optional: manifestHash of the version before
 *    "rank":n,
 *    "royalty":{"completionPer1k":amount,"promptPer1k":amount},
 *    "schema":"tributary.adapter/1",
 *    "splits":[{"bps":n,"payee":address}],
 *    "targetModules":[str],
 *    "version":n}
 *
 * The order of splits is what leaves of the payout tree call position. bps of splits and Datanets
 * together sum to 10,000. contentDigest = sha256 over the lines "<sha256 hex>  <size>  <path>\n"
 * of the files, sorted by path bytes (manifest_content_digest).
 *
 * All functions are pure and may be called from any thread. */
#ifndef TRIBUTARY_ATTRIBUTION_MANIFEST_H
#define TRIBUTARY_ATTRIBUTION_MANIFEST_H

#include "chain/types.h"
#include "node/base/amount.h"
#include "node/base/digest.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct arena;
struct buf;
struct err;

enum {
    MANIFEST_MAX_BYTES = 256 * 1024,
    MANIFEST_NAME_BYTES = 97,       /* [a-z0-9][a-z0-9._-]{0,95} and a NUL */
    MANIFEST_TEXT_MAX_BYTES = 4096, /* licence, description, url */
    MANIFEST_TEMPLATE_MAX_BYTES = 64 * 1024,
    MANIFEST_SHARES_MAX = 64, /* payees, and Datanets: AdapterRegistry.MAX_SHARES */
    MANIFEST_FILES_MAX = 256,
    MANIFEST_PATH_MAX_BYTES = 255,
    MANIFEST_MODULES_MAX = 64,
    MANIFEST_RANK_MAX = 65535,
};

/* keccak256(abi.encode(chainid, registry, owner, sha256 of its canonical manifest)) */
struct datanet_id {
    uint8_t bytes[32];
};

struct manifest_split {
    struct address payee;
    uint16_t bps; /* 1 to 10,000 */
};

struct manifest_datanet_share {
    struct datanet_id id;
    uint16_t bps; /* 1 to 10,000 */
};

struct manifest_file {
    const char *path; /* relative, '/'-separated, no "", "." or ".." parts, printable ASCII */
    uint64_t size_bytes;
    struct sha256_digest sha256;
};

/* An adapter manifest. Pointers point into the arena it was parsed into. */
struct manifest_adapter {
    const char *name; /* [a-z0-9][a-z0-9._-]{0,95} */
    uint64_t version; /* 1 to 2^53 - 1 */
    bool has_parent;
    struct sha256_digest
        parent; /* manifestHash of the version before; zero when has_parent is not */
    const char *base_model_name;
    struct model_id base_model;
    struct content_digest content;
    struct address creator;
    uint64_t created_unix_s;
    const char *licence;
    const char *chat_template; /* NULL: the base model's */
    uint32_t rank;             /* the largest of its modules */
    uint32_t n_target_modules;
    const char **target_modules;
    uint32_t n_files;
    const struct manifest_file *files; /* strictly ascending by path bytes */
    struct amount royalty_prompt_per_1k, royalty_completion_per_1k;
    uint32_t n_splits; /* 0 only when Datanets take the whole */
    const struct manifest_split *splits;
    uint32_t n_datanets;
    const struct manifest_datanet_share *datanets; /* no id twice */
};

struct manifest_source {
    const char *url;
    struct sha256_digest sha256;
};

struct manifest_datanet {
    const char *name;
    const char *description;
    const char *licence;
    struct address owner, payee;
    uint64_t created_unix_s;
    uint32_t n_sources;
    const struct manifest_source *sources;
};

/* Parses and validates text [n] (hostile). It must be canonical byte for byte, so that hash (sha256
 * of the text, may be NULL) is the manifestHash. ERR_INVALID names the key, ERR_TOO_LARGE the
 * limit, ERR_UNSUPPORTED another schema. */
int manifest_adapter_parse(struct manifest_adapter *out, struct sha256_digest *hash,
                           struct arena *arena, const void *text, size_t n, struct err *err);
int manifest_datanet_parse(struct manifest_datanet *out, struct sha256_digest *hash,
                           struct arena *arena, const void *text, size_t n, struct err *err);

/* Appends the canonical text, after the same validation (a manifest that can be written can be
 * parsed). */
int manifest_adapter_write(const struct manifest_adapter *m, struct buf *out, struct err *err);
int manifest_datanet_write(const struct manifest_datanet *m, struct buf *out, struct err *err);

/* What the creator signs: the EIP-712 struct of a manifest whose text hashes to hash. */
void manifest_signed_fields(struct manifest *out, const struct manifest_adapter *m,
                            struct sha256_digest hash);

/* The content digest of a set of files, in any order. */
struct content_digest manifest_content_digest(const struct manifest_file *files, size_t n);

/* Ids on chain. */
struct adapter_id manifest_adapter_id(uint64_t chain_id, struct address registry,
                                      struct address creator, struct model_id model,
                                      struct sha256_digest manifest_hash);
struct datanet_id manifest_datanet_id(uint64_t chain_id, struct address registry,
                                      struct address owner, struct sha256_digest manifest_hash);

/* RFC 8785 for the JSON that Tributary hashes: objects, arrays, strings, integers from -(2^53 - 1)
 * to 2^53 - 1, booleans, null. A real number is refused by name ("royalty.promptPer1k is a floating
 * point number; amounts are decimal strings"), as are depths above 32. Appends to out. */
int canonical_json_write(const json_t *value, struct buf *out, struct err *err);

#endif
