/* embedded: the signed types and the contracts' ABI and bytecode, inside the binary.
 *
 * The files are contracts-abi/types.json and contracts-abi/<Contract>.json as they were when the
 * program was built: what signs and what deploys can't drift apart from what the contracts were
 * tested with. */
#ifndef TRIBUTARY_CHAIN_EMBEDDED_H
#define TRIBUTARY_CHAIN_EMBEDDED_H

#include <jansson.h>
#include <stddef.h>

/* contracts-abi/types.json, [*n] bytes, not NUL-terminated. */
const char *embedded_types_text(size_t *n);
/* The same, parsed once; borrowed, read-only, lives for ever. Any thread. */
const json_t *embedded_types(void);

/* {"contractName","abi","bytecode"} of "Escrow", "StakeManager", "AdapterRegistry",
 * "AttributionLedger" or "TestToken"; as above. An unknown name is a bug. */
const json_t *embedded_contract(const char *name);

#endif
