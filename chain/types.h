/* types: the words of the ledger half. Small values, each its own type, so that two hashes which
 * must never meet can't be mixed up, and the five messages that get signed as plain structs.
 *
 * The fields of the messages are those of contracts-abi/types.json, in its order; chain/eip712.c
 * checks that at start and refuses to run if they differ. */
#ifndef TRIBUTARY_CHAIN_TYPES_H
#define TRIBUTARY_CHAIN_TYPES_H

#include "node/base/amount.h"
#include "node/base/digest.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct address {
    uint8_t bytes[20];
};

/* secp256k1, recoverable; s in the lower half of the group order (EIP-2). Big-endian. */
struct signature {
    uint8_t r[32], s[32];
    uint8_t y_parity; /* 0 or 1; "v" is 27 + y_parity in typed-data signatures */
};

enum { SIGNATURE_BYTES = 65 }; /* r, s, v: what contracts take */

/* EIP-712 digests, domain included: what the wallet signs. receiptHash, batchHash and requestId are
 * these. Only chain/eip712.c makes them. */
struct receipt_digest {
    uint8_t bytes[32];
};
struct batch_digest {
    uint8_t bytes[32];
};
struct voucher_digest {
    uint8_t bytes[32];
};
struct request_digest {
    uint8_t bytes[32];
};
struct manifest_digest {
    uint8_t bytes[32];
};

/* The signing hash of a transaction; only chain/tx.c makes it. */
struct tx_digest {
    uint8_t bytes[32];
};

/* The hash by which the chain knows a signed transaction. */
struct tx_hash {
    uint8_t bytes[32];
};

/* keccak256(abi.encode(payer, operator, epoch)) */
struct channel_id {
    uint8_t bytes[32];
};

/* ---- the messages -------------------------------------------------------------------------------
 */

struct adapter_share {
    struct adapter_id adapter_id;
    uint16_t bps; /* share of the absolute weights; a receipt's sum to 10,000 */
    struct amount royalty;
};

struct receipt {
    uint8_t request_id[32];
    struct address operator_address; /* "operator" */
    struct address payer;
    uint8_t channel[32];
    uint64_t index; /* from 0, no gaps */
    uint8_t prev_receipt_hash[32];
    struct model_id model_id;
    const struct adapter_share *adapters; /* [n_adapters] */
    size_t n_adapters;
    uint32_t prompt_tokens, completion_tokens;
    struct amount compute_fee, royalty;
    struct amount channel_total; /* this receipt's fees included */
    uint64_t timestamp_ms;
    struct sha256_digest request_hash, response_hash, attribution_hash;
};

struct voucher {
    struct address payer;
    struct address operator_address;
    uint8_t channel[32];
    uint64_t timestamp_ms;
    struct amount value_aggregate; /* equals channelTotal of the receipt named next */
    uint8_t last_receipt_hash[32];
};

struct request_auth { /* "Request" */
    struct address payer;
    struct address operator_address;
    uint8_t channel[32];
    uint64_t nonce;
    struct sha256_digest request_hash;
    struct amount max_fee;
    uint64_t deadline_ms;
};

struct batch {
    struct address operator_address;
    uint64_t seq;
    uint32_t leaf_count;
    uint8_t receipts_root[32], payout_root[32];
    struct amount committed;           /* cumulative */
    uint64_t period_start, period_end; /* ms since 1970, of the first and last receipt */
    struct sha256_digest data_hash;
    uint8_t prev_batch_hash[32];
};

struct manifest { /* "Manifest": what a creator signs */
    struct sha256_digest manifest_hash;
    struct content_digest content_digest;
    struct model_id model_id;
    struct address creator;
    uint64_t version;
    struct sha256_digest parent; /* zero: none */
};

/* ---- addresses and signatures as text and bytes
 * --------------------------------------------------- */

enum { ADDRESS_TEXT_BYTES = 43 }; /* 0x, 40 digits, NUL */

bool address_is_zero(struct address a);
bool address_eq(struct address a, struct address b);

/* EIP-55 mixed case. out [ADDRESS_TEXT_BYTES]; returns out. */
char *address_format(char *out, struct address a);
/* Lower case, the form of JSON that gets hashed. */
char *address_format_lower(char *out, struct address a);
/* 0x and 40 digits. Mixed case must be EIP-55's (a typing error is caught); all lower or all upper
 * is taken as it is. -1 for anything else. */
int address_parse(struct address *out, const char *text);

/* CREATE (the nonce of the sender's deploying transaction) and CREATE2 (EIP-1014). */
struct address address_create(struct address sender, uint64_t nonce);
struct address address_create2(struct address sender, const uint8_t salt[32],
                               const uint8_t init_code_hash[32]);

/* r, s, v with v = 27 + y_parity. */
void signature_to_bytes(uint8_t out[SIGNATURE_BYTES], const struct signature *s);
/* v of 27, 28, 0 or 1. -1 otherwise. Says nothing about r and s. */
int signature_from_bytes(struct signature *out, const uint8_t bytes[SIGNATURE_BYTES]);

struct channel_id channel_id_of(struct address payer, struct address operator_address,
                                uint64_t epoch);

#endif
