/* contracts: the engine under the typed calls. See contracts.h.
 *
 * At the first use every entry of the five ABI files becomes a row with its signature, its hash and
 * its types as the strings that abi_encode takes. Nothing about a contract's layout is written in C
 * twice: contract_calls.c names a function and gives values; what they are encoded as comes from
 * the row.
 *
 *   constructor   initcode = bytecode || encode(inputs)
 *   function      calldata = hash[0..4) || encode(inputs);  results = decode(outputs)
 *   error         revert   = hash[0..4) || encode(inputs)
 *   event         topics[0] = hash                           (events.c) */
#include "chain/contracts.h"

#include "chain/abi.h"
#include "chain/contract_abi.h"
#include "chain/embedded.h"
#include "chain/keccak.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SELECTOR_BYTES = 4, ENTRIES_MAX = 512 };

static struct {
    pthread_once_t once;
    struct arena arena;
    struct abi_entry entries[ENTRIES_MAX];
    size_t n;
} table = {.once = PTHREAD_ONCE_INIT};

const char *contract_name(enum contract c)
{
    switch (c) {
    case CONTRACT_STAKE_MANAGER:
        return "StakeManager";
    case CONTRACT_ADAPTER_REGISTRY:
        return "AdapterRegistry";
    case CONTRACT_ESCROW:
        return "Escrow";
    case CONTRACT_ATTRIBUTION_LEDGER:
        return "AttributionLedger";
    case CONTRACT_TEST_TOKEN:
        return "TestToken";
    }
    BUG("no such contract");
}

/* ---- the table ---------------------------------------------------------------------------- */

/* "(type,type)" of an ABI's list of parameters. */
static const char *types_of(const json_t *parameters)
{
    struct buf b = BUF_INIT;
    size_t i;
    json_t *p;
    buf_append_byte(&b, '(');
    json_array_foreach(parameters, i, p)
    {
        if (i > 0)
            buf_append_byte(&b, ',');
        BUG_IF(abi_type_of_parameter(&b, p, NULL) != 0);
    }
    buf_append_byte(&b, ')');
    const char *text = arena_strdup(&table.arena, buf_cstr(&b));
    buf_release(&b);
    return text;
}

static bool kind_of(enum abi_entry_kind *out, const char *type)
{
    static const char *const names[] = {[ABI_CONSTRUCTOR] = "constructor",
                                        [ABI_FUNCTION] = "function",
                                        [ABI_EVENT] = "event",
                                        [ABI_ERROR] = "error"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i], type) == 0) {
            *out = (enum abi_entry_kind)i;
            return true;
        }
    }
    return false; /* receive, fallback */
}

static void make_table(void)
{
    for (int c = 0; c < N_CONTRACTS; c++) {
        size_t i;
        json_t *entry;
        const json_t *abi = json_object_get(embedded_contract(contract_name((enum contract)c)),
                                            "abi");
        BUG_IF(!json_is_array(abi));
        json_array_foreach(abi, i, entry)
        {
            enum abi_entry_kind kind;
            const char *name = json_string_value(json_object_get(entry, "name"));
            if (!kind_of(&kind, json_string_value(json_object_get(entry, "type"))))
                continue;
            BUG_IF(table.n == ENTRIES_MAX);
            struct abi_entry *e = &table.entries[table.n++];
            e->kind = kind;
            e->contract = (enum contract)c;
            e->name = name == NULL ? "" : name;
            e->parameters = json_object_get(entry, "inputs");
            const char *inputs = types_of(e->parameters);
            size_t n = strlen(e->name) + strlen(inputs) + 1;
            char *signature = arena_alloc(&table.arena, n);
            snprintf(signature, n, "%s%s", e->name, inputs);
            e->signature = signature;
            e->inputs = signature + strlen(e->name);
            e->outputs = types_of(json_object_get(entry, "outputs"));
            struct keccak_digest h = keccak256(signature, n - 1);
            memcpy(e->hash.bytes, h.bytes, sizeof e->hash.bytes);
        }
    }
}

const struct abi_entry *abi_entries(size_t *n)
{
    pthread_once(&table.once, make_table);
    *n = table.n;
    return table.entries;
}

const struct abi_entry *abi_find(enum contract c, enum abi_entry_kind kind, const char *name)
{
    size_t n;
    const struct abi_entry *entries = abi_entries(&n), *found = NULL;
    for (size_t i = 0; i < n; i++) {
        const struct abi_entry *e = &entries[i];
        if (e->contract == c && e->kind == kind && strcmp(e->name, name) == 0) {
            /* A name means one function: the contracts overload none. */
            BUG_IF(found != NULL);
            found = e;
        }
    }
    return found;
}

static const struct abi_entry *function_of(enum contract c, const char *name)
{
    const struct abi_entry *e = abi_find(c, ABI_FUNCTION, name);
    if (e == NULL)
        BUG("%s has no function %s", contract_name(c), name);
    return e;
}

/* ---- calling ------------------------------------------------------------------------------ */

void contract_calldata(struct buf *out, enum contract c, const char *function, json_t *args)
{
    const struct abi_entry *e = function_of(c, function);
    struct err err = {0};
    if (args == NULL)
        args = json_array();
    buf_append(out, e->hash.bytes, SELECTOR_BYTES);
    if (abi_encode(out, e->inputs, args, &err) != 0)
        BUG("%s.%s: %s", contract_name(c), e->signature, err.message);
    json_decref(args);
}

json_t *contract_view(const struct contract_at *where, enum contract c, const char *function,
                      json_t *args, struct err *err)
{
    const struct abi_entry *e = function_of(c, function);
    struct buf data = BUF_INIT, answer = BUF_INIT;
    json_t *results = NULL;
    char to[ADDRESS_TEXT_BYTES];
    contract_calldata(&data, c, function, args);
    struct rpc_call call = {.to = where->address, .data = data.data, .n_data = data.len};
    int rc = rpc_call(where->rpc, &answer, &call, where->at, NULL, err);
    if (rc == 0 && answer.len == 0 && where->absent_is_zero) {
        static const uint8_t zero[32];
        for (const char *p = e->outputs; p != NULL; p = strchr(p + 1, ','))
            buf_append(&answer, zero, sizeof zero);
    }
    if (rc == 0 && answer.len == 0 && strcmp(e->outputs, "()") != 0) {
        rc = err_set(err, ERR_UPSTREAM, "there is no contract at %s",
                     address_format(to, where->address));
    } else if (rc == 0) {
        struct err why = {0};
        results = abi_decode(e->outputs, answer.data, answer.len, &why);
        if (results == NULL)
            rc = err_set(err, ERR_UPSTREAM, "%s answers what is no %s: %s",
                         address_format(to, where->address), e->outputs, why.message);
    }
    if (rc != 0)
        err_wrap(err, "%s.%s", contract_name(c), function);
    buf_release(&data);
    buf_release(&answer);
    return results;
}

/* ---- reverts ------------------------------------------------------------------------------ */

/* Solidity documentation, "Panic via assert and Error via require". */
static const char *panic_meaning(const char *code)
{
    static const struct {
        const char *code, *meaning;
    } rows[] = {
        {"1", "assertion failed"},
        {"17", "arithmetic overflow or underflow"},
        {"18", "division by zero"},
        {"33", "value out of an enum's range"},
        {"34", "storage array badly encoded"},
        {"49", "pop of an empty array"},
        {"50", "array index out of bounds"},
        {"65", "out of memory"},
        {"81", "call of an uninitialised function"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (strcmp(rows[i].code, code) == 0)
            return rows[i].meaning;
    }
    return "unknown code";
}

/* Text that a contract chose goes into logs and terminals: printable ASCII only. */
static void append_printable(struct buf *out, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p != '\0'; p++)
        buf_append_byte(out, *p < ' ' || *p >= 127 ? '?' : *p);
}

static void append_value(struct buf *out, const json_t *value)
{
    if (json_is_string(value)) {
        append_printable(out, json_string_value(value));
    } else {
        char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
        BUG_IF(text == NULL);
        append_printable(out, text);
        free(text);
    }
}

/* "Name(parameter: value, ...)"; false when the bytes aren't this error's. */
static bool append_error(struct buf *out, const struct abi_entry *e, const uint8_t *args, size_t n)
{
    json_t *values = abi_decode(e->inputs, args, n, NULL);
    if (values == NULL)
        return false;
    buf_appendf(out, "%s(", e->name);
    for (size_t i = 0; i < json_array_size(values); i++) {
        const char *name = json_string_value(
            json_object_get(json_array_get(e->parameters, i), "name"));
        buf_appendf(out, "%s%s%s", i > 0 ? ", " : "", name != NULL ? name : "",
                    name != NULL && name[0] != '\0' ? ": " : "");
        append_value(out, json_array_get(values, i));
    }
    buf_append_byte(out, ')');
    json_decref(values);
    return true;
}

/* What the compiler itself reverts with. */
static bool append_builtin(struct buf *out, const uint8_t *data, size_t n)
{
    static const uint8_t error_string[SELECTOR_BYTES] = {0x08, 0xc3, 0x79, 0xa0},
                         panic[SELECTOR_BYTES] = {0x4e, 0x48, 0x7b, 0x71};
    bool is_error = memcmp(data, error_string, SELECTOR_BYTES) == 0;
    if (!is_error && memcmp(data, panic, SELECTOR_BYTES) != 0)
        return false;
    json_t *values = abi_decode(is_error ? "(string)" : "(uint256)", data + SELECTOR_BYTES,
                                n - SELECTOR_BYTES, NULL);
    if (values == NULL)
        return false;
    const char *text = json_string_value(json_array_get(values, 0));
    if (is_error)
        append_printable(out, text);
    else
        buf_appendf(out, "panic %s: %s", text, panic_meaning(text));
    json_decref(values);
    return true;
}

char *contracts_revert_text(char *out, size_t cap, const void *data, size_t n)
{
    const uint8_t *bytes = data;
    struct buf text = BUF_INIT;
    bool known = false;
    BUG_IF(cap == 0);
    if (n >= SELECTOR_BYTES) {
        size_t n_entries;
        const struct abi_entry *entries = abi_entries(&n_entries);
        known = append_builtin(&text, bytes, n);
        for (size_t i = 0; i < n_entries && !known; i++) {
            if (entries[i].kind == ABI_ERROR &&
                memcmp(entries[i].hash.bytes, bytes, SELECTOR_BYTES) == 0)
                known = append_error(&text, &entries[i], bytes + SELECTOR_BYTES,
                                     n - SELECTOR_BYTES);
        }
    }
    if (n == 0) {
        buf_append_str(&text, "without a reason");
    } else if (!known) {
        size_t shown = n < 64 ? n : 64;
        char hex[2 * 64 + 3];
        buf_appendf(&text, "%s%s", hex_encode_0x(hex, bytes, shown), n > shown ? "..." : "");
    }
    snprintf(out, cap, "%s", buf_cstr(&text));
    buf_release(&text);
    return out;
}
