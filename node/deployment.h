/* deployment: the file that `tributary deploy` writes.
 *
 *   {"chainId": 31337, "stakeManager": "0x...", "adapterRegistry": "0x...", "escrow": "0x...",
 *    "attributionLedger": "0x...", "token": "0x..."}
 *
 * Further keys are ignored. */
#ifndef TRIBUTARY_NODE_DEPLOYMENT_H
#define TRIBUTARY_NODE_DEPLOYMENT_H

#include "chain/types.h"

#include <stdbool.h>
#include <stdint.h>

struct config;
struct err;

struct deployment { /* chain_id 0: no chain; addresses that are nowhere given are zero */
    uint64_t chain_id;
    struct address stake_manager, adapter_registry, escrow, attribution_ledger, token;
};

/* From the options chain.id, chain.<contract>, and, for what they leave out, chain.deployment.
 * ERR_CONFLICT when file and option name different chains; ERR_INVALID names the key. */
int deployment_load(struct deployment *out, const struct config *c, struct err *err);

#endif
