/* rpc_internal: what the files of the RPC client share. Inside chain/. */
#ifndef TRIBUTARY_CHAIN_RPC_INTERNAL_H
#define TRIBUTARY_CHAIN_RPC_INTERNAL_H

#include "chain/rpc_json.h"

enum rpc_ask_mode {
    /* The first endpoint that answers decides, unless its error is about itself (rate limits, a
     * method it doesn't have): then the others are asked, too. */
    RPC_ASK_ONE,
    /* Every endpoint is asked until one has a result. */
    RPC_ASK_ALL,
};

/* One request. params is taken over (NULL: []). 0 and *result (a new reference); 1 and *node_error,
 * to be released; -1 when no endpoint answered. */
int rpc_ask(struct rpc *rpc, enum rpc_ask_mode mode, const char *method, json_t *params,
            json_t **result, struct rpc_node_error *node_error, struct err *err);

/* The same where a node's error is a failure: ERR_INVALID with its words. */
int rpc_ask_result(struct rpc *rpc, const char *method, json_t *params, json_t **result,
                   struct err *err);

/* ERR_INVALID with a node's words. */
int rpc_fail_with(const struct rpc_node_error *e, const char *method, struct err *err);

uint64_t rpc_logs_page(const struct rpc *rpc);

/* JSON values, new references. */
json_t *rpc_value_quantity(uint64_t v);
json_t *rpc_value_u256(struct u256 v);
json_t *rpc_value_hex(const void *bytes, size_t n); /* 0x... */
json_t *rpc_value_at(struct rpc_at at);

#endif
