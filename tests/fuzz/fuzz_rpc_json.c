/* What nodes answer: the envelope, and its result read as everything a result can be. */
#include "chain/contracts.h"
#include "chain/events.h"
#include "chain/rpc_json.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void read_log(const json_t *value, struct arena *arena)
{
    struct rpc_log log;
    if (rpc_json_log(&log, value, arena, NULL) != 0)
        return;
    for (int c = 0; c < N_CONTRACTS; c++) {
        struct event event;
        /* The first topic decides what it is read as; try each, so that data gets further. */
        event_decode(&event, (enum contract)c, &log, arena, NULL);
        for (int kind = EVENT_OTHER + 1; kind < N_EVENT_KINDS && log.n_topics > 0; kind++) {
            struct rpc_log other = log;
            other.topics[0] = event_topic((enum event_kind)kind);
            event_decode(&event, (enum contract)c, &other, arena, NULL);
        }
    }
}

static void read_result(const json_t *value, struct arena *arena)
{
    struct rpc_block block;
    struct rpc_receipt receipt;
    struct rpc_logs logs;
    struct tx_hash hash;
    struct u256 a, b;
    uint64_t number;
    struct buf bytes = BUF_INIT;
    rpc_json_block(&block, value, NULL);
    memset(hash.bytes, 0x11, sizeof hash.bytes);
    rpc_json_receipt(&receipt, value, hash, &logs, arena, NULL);
    rpc_json_fee_history(&a, &b, value, NULL);
    rpc_json_u256(&a, value, "value", NULL);
    rpc_json_u64(&number, value, "value", NULL);
    rpc_json_hash(hash.bytes, value, "value", NULL);
    rpc_json_bytes(&bytes, value, "value", NULL);
    buf_release(&bytes);
    read_log(value, arena);
    for (size_t i = 0; i < json_array_size(value) && i < 16; i++)
        read_log(json_array_get(value, i), arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct arena arena = ARENA_INIT;
    struct rpc_node_error error = {0};
    json_t *result = NULL;
    char text[300];
    int rc = rpc_json_answer(&result, &error, data, n, 1, NULL);
    if (rc == 0)
        read_result(result, &arena);
    if (rc == 1) {
        rpc_json_is_revert(&error);
        BUG_IF(memchr(error.message, '\0', sizeof error.message) == NULL);
        if (error.has_data)
            contracts_revert_text(text, sizeof text, error.data.data, error.data.len);
        rpc_node_error_release(&error);
    }
    json_decref(result);
    /* The same bytes as a revert's data. */
    contracts_revert_text(text, sizeof text, data, n);
    arena_release(&arena);
    return 0;
}
