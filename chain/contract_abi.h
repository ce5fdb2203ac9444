/* contract_abi: the five contracts' ABI as a table, made once from what is in the binary. Inside
 * chain/. Any thread. */
#ifndef TRIBUTARY_CHAIN_CONTRACT_ABI_H
#define TRIBUTARY_CHAIN_CONTRACT_ABI_H

#include "chain/contracts.h"

enum abi_entry_kind { ABI_CONSTRUCTOR, ABI_FUNCTION, ABI_EVENT, ABI_ERROR };

struct abi_entry { /* lives for ever */
    enum abi_entry_kind kind;
    enum contract contract;
    const char *name;         /* "" for a constructor */
    const char *signature;    /* "name(types)" */
    const char *inputs;       /* "(types)": the end of signature */
    const char *outputs;      /* "(types)"; "()" unless a function */
    struct bytes32 hash;      /* keccak256(signature): a selector's four bytes, an event's topic */
    const json_t *parameters; /* the ABI's "inputs", for names and indexed */
};

/* NULL when there is none. */
const struct abi_entry *abi_find(enum contract c, enum abi_entry_kind kind, const char *name);
/* All of them; *n. */
const struct abi_entry *abi_entries(size_t *n);

#endif
