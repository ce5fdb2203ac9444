/* rpc_json: what nodes answer, from JSON text to C structs. Inside chain/.
 *
 * Everything here is hostile and bounded by the length of the text. Pure functions, any thread. */
#ifndef TRIBUTARY_CHAIN_RPC_JSON_H
#define TRIBUTARY_CHAIN_RPC_JSON_H

#include "chain/rpc.h"
#include "node/base/buf.h"

struct arena;

struct rpc_node_error { /* the "error" of an answer; release with rpc_node_error_release */
    int64_t code;
    char message[256]; /* printable, cut */
    bool has_data;     /* a revert's data, wherever the node put it */
    struct buf data;
};
void rpc_node_error_release(struct rpc_node_error *e);

/* Reads the answer to the request with this id: 0 and *result (a new reference), 1 and *node_error,
 * or -1 with ERR_UPSTREAM when text [n] is no JSON-RPC answer to it. */
int rpc_json_answer(json_t **result, struct rpc_node_error *node_error, const void *text, size_t n,
                    uint64_t id, struct err *err);

/* Whether an error of eth_call or eth_estimateGas means that the contract reverted. */
bool rpc_json_is_revert(const struct rpc_node_error *e);

/* One value that isn't in an object. what names it in ERR_UPSTREAM. */
int rpc_json_u256(struct u256 *out, const json_t *value, const char *what, struct err *err);
int rpc_json_u64(uint64_t *out, const json_t *value, const char *what, struct err *err);
int rpc_json_hash(uint8_t out[32], const json_t *value, const char *what, struct err *err);
int rpc_json_bytes(struct buf *out, const json_t *value, const char *what, struct err *err);

int rpc_json_block(struct rpc_block *out, const json_t *value, struct err *err);
int rpc_json_log(struct rpc_log *out, const json_t *value, struct arena *arena, struct err *err);
/* logs may be NULL. The receipt must be of hash. */
int rpc_json_receipt(struct rpc_receipt *out, const json_t *value, struct tx_hash hash,
                     struct rpc_logs *logs, struct arena *arena, struct err *err);

/* The base fee of the next block and the median of the blocks' median tips. ERR_UPSTREAM when the
 * chain has no base fee. */
int rpc_json_fee_history(struct u256 *base_fee, struct u256 *tip, const json_t *value,
                         struct err *err);

#endif
