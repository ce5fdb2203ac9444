/* embedded: see embedded.h. The assembler's .incbin puts the files between two labels. */
#include "chain/embedded.h"

#include "node/base/err.h"

#include <pthread.h>
#include <string.h>

#define EMBED(symbol, path)                                                          \
    extern const char symbol##_begin[], symbol##_end[];                              \
    __asm__(".section .rodata\n"                                                     \
            ".global " #symbol "_begin\n.hidden " #symbol "_begin\n"                 \
            ".global " #symbol "_end\n.hidden " #symbol "_end\n" #symbol "_begin:\n" \
            ".incbin \"contracts-abi/" path "\"\n" #symbol "_end:\n"                 \
            ".previous\n")

EMBED(embedded_file_types, "types.json");
EMBED(embedded_file_stake_manager, "StakeManager.json");
EMBED(embedded_file_adapter_registry, "AdapterRegistry.json");
EMBED(embedded_file_escrow, "Escrow.json");
EMBED(embedded_file_attribution_ledger, "AttributionLedger.json");
EMBED(embedded_file_test_token, "TestToken.json");

static struct {
    const char *name;
    const char *begin, *end;
    json_t *parsed;
} files[] = {
    {"types", embedded_file_types_begin, embedded_file_types_end, NULL},
    {"StakeManager", embedded_file_stake_manager_begin, embedded_file_stake_manager_end, NULL},
    {"AdapterRegistry", embedded_file_adapter_registry_begin, embedded_file_adapter_registry_end,
     NULL},
    {"Escrow", embedded_file_escrow_begin, embedded_file_escrow_end, NULL},
    {"AttributionLedger", embedded_file_attribution_ledger_begin,
     embedded_file_attribution_ledger_end, NULL},
    {"TestToken", embedded_file_test_token_begin, embedded_file_test_token_end, NULL},
};

enum { N_FILES = sizeof files / sizeof *files };

static void parse_all(void)
{
    for (size_t i = 0; i < N_FILES; i++) {
        json_error_t error;
        files[i].parsed = json_loadb(files[i].begin, (size_t)(files[i].end - files[i].begin),
                                     JSON_REJECT_DUPLICATES, &error);
        if (files[i].parsed == NULL)
            BUG("contracts-abi/%s.json, line %d: %s", files[i].name, error.line, error.text);
    }
}

static const json_t *parsed(const char *name)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, parse_all);
    for (size_t i = 0; i < N_FILES; i++) {
        if (strcmp(files[i].name, name) == 0)
            return files[i].parsed;
    }
    BUG("no embedded file %s", name);
}

const char *embedded_types_text(size_t *n)
{
    *n = (size_t)(files[0].end - files[0].begin);
    return files[0].begin;
}

const json_t *embedded_types(void)
{
    return parsed("types");
}

const json_t *embedded_contract(const char *name)
{
    BUG_IF(strcmp(name, "types") == 0);
    return parsed(name);
}
