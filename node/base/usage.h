/* usage: what one answer consumed. The only thing the compute half tells the ledger half.
 *
 * The service fills it when a request ends, whatever the reason (finished, stopped, cancelled by a
 * vanished client): exactly the tokens written to the socket are billed. Plain values, no
 * ownership; copied through the ledger's queue. */
#ifndef TRIBUTARY_BASE_USAGE_H
#define TRIBUTARY_BASE_USAGE_H

#include "node/base/clock.h"
#include "node/base/digest.h"

#include <stdint.h>

enum { USAGE_ADAPTERS_MAX = 8, BPS_WHOLE = 10000 };

struct usage_adapter {
    struct adapter_id id;          /* who is paid; all zero: registered nowhere, earns no royalty */
    struct content_digest content; /* what ran */
    uint16_t weight_bps;           /* share of the absolute weights; a request's sum to 10,000 */
};

struct usage {
    uint8_t request_id[32];            /* unique; random for API-key consumers */
    struct model_id model;             /* the base model, as it computed (engine_model.served_id) */
    struct sha256_digest request_hash; /* sha256 of the request body as sent */
    /* sha256 of the generated token ids as little-endian uint32, as written to the socket; the
     * choices of an `n` > 1 request one after the other, in index order. */
    struct sha256_digest response_hash;
    struct unix_ms finished;
    uint32_t tokens_prompt;     /* of the prompt, counted once whatever `n` */
    uint32_t tokens_completion; /* all choices together */
    uint32_t n_adapters;        /* 0: base model */
    struct usage_adapter adapters[USAGE_ADAPTERS_MAX];
    uint64_t
        key_tag; /* the operator's customer (first 8 bytes of sha256 of the API key); 0: none */
};

#endif
