/* ledger_json: receipts, batches and payouts as a node prints them, back into the structs that get
 * hashed.
 *
 * For commands that don't believe the node: what is parsed here is hashed and checked against
 * signatures and the chain. Every field must be there and fit its type; ERR_CORRUPT names the one
 * that doesn't. */
#ifndef TRIBUTARY_NODE_CLI_LEDGER_JSON_H
#define TRIBUTARY_NODE_CLI_LEDGER_JSON_H

#include "chain/contracts.h"
#include "chain/eip712.h"

#include <jansson.h>

struct arena;
struct err;

struct parsed_receipt {
    struct receipt receipt; /* adapters in the arena */
    struct eip712_domain domain;
    struct receipt_digest hash; /* as claimed */
    struct signature signature;
    struct address signer; /* as claimed */
};
/* The object of the field `tributary`. */
int receipt_from_json(struct parsed_receipt *out, const json_t *o, struct arena *arena,
                      struct err *err);

/* An item of attribution_batches; digest is its batchHash, as claimed. */
int batch_from_json(struct batch *out, struct batch_digest *digest, const json_t *o,
                    struct err *err);

/* What attribution_proof says of a payout leaf; siblings and splits in the arena. */
int payout_from_json(struct payout_claim *out, const json_t *o, struct arena *arena,
                     struct err *err);

/* "proof" of a receipt: hashes, the lowest first, in the arena. */
int proof_from_json(uint8_t (**out)[32], size_t *n, const json_t *array, struct arena *arena,
                    struct err *err);

#endif
