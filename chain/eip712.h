/* eip712: digests of typed structured data (EIP-712).
 *
 * Two faces. The five messages of DESIGN section 7 as C structs (chain/types.h), with type strings
 * built from contracts-abi/types.json alone, embedded in the binary: field order, names and types
 * are checked against the structs before the first digest, and a difference is a bug that stops the
 * program. And a general engine over types, domain and message as JSON, for tests and tools.
 *
 *   digest = keccak256(0x19 0x01 || hashStruct(domain) || hashStruct(message))
 *
 * All functions may be called from any thread. */
#ifndef TRIBUTARY_CHAIN_EIP712_H
#define TRIBUTARY_CHAIN_EIP712_H

#include "chain/keccak.h"
#include "chain/types.h"

#include <jansson.h>

struct err;

/* Where a signature counts. chain_id 0 with the zero address: local, valid nowhere on chain. */
struct eip712_domain {
    uint64_t chain_id;
    struct address verifying_contract;
};

/* The domain's name and version are types.json's for the message. */
struct receipt_digest eip712_receipt(const struct receipt *r, const struct eip712_domain *d);
struct batch_digest eip712_batch(const struct batch *b, const struct eip712_domain *d);
struct voucher_digest eip712_voucher(const struct voucher *v, const struct eip712_domain *d);
struct request_digest eip712_request(const struct request_auth *q, const struct eip712_domain *d);
struct manifest_digest eip712_manifest(const struct manifest *m, const struct eip712_domain *d);

/* "Receipt(bytes32 requestId,...)AdapterShare(...)": the encodeType string of a type of types.json,
 * or NULL. Lives for ever. */
const char *eip712_type_string(const char *type);

/* The general engine.
 *
 * in   types        {"Name": [{"name","type"}], ...}; EIP712Domain may be absent
 *      primary      a key of types
 *      domain       any subset of name, version, chainId, verifyingContract, salt
 *      message      numbers as JSON integers or as decimal or 0x strings; bytes and addresses as 0x
 * text out  digest ERR_INVALID names the member that does not fit its type. Depth is bounded by 64,
 * text by 1 MiB. */
int eip712_digest_json(struct keccak_digest *digest, const json_t *types, const char *primary,
                       const json_t *domain, const json_t *message, struct err *err);

/* hashStruct of a value alone, and encodeType of a type appended as text (free() it). */
int eip712_hash_struct_json(struct keccak_digest *out, const json_t *types, const char *type,
                            const json_t *value, struct err *err);
char *eip712_encode_type_json(const json_t *types, const char *type, struct err *err);

#endif
