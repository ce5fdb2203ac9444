/* rpc_call: asks a running node's /rpc, for commands. */
#ifndef TRIBUTARY_NODE_CLI_RPC_CALL_H
#define TRIBUTARY_NODE_CLI_RPC_CALL_H

#include <jansson.h>

struct cli_args;
struct err;

/* The node's URL: --node (the command must have it), TRIBUTARY_NODE, or http://127.0.0.1:8080. */
const char *rpc_call_node(const struct cli_args *a);

/* The digits of a request's id, which may be given as an answer's: "chatcmpl-...", "cmpl-...". */
const char *rpc_call_request_id(const char *id);

/* Takes params (NULL: {}). A new reference to the result, or NULL with the node's own code
 * (ERR_NOT_FOUND, ...) and sentence, or ERR_UPSTREAM when nobody answers. */
json_t *rpc_call_method(const char *node_url, const char *method, json_t *params, struct err *err);

/* Follows `next` until the list ends; all items in one array. Takes params (NULL: {}). *last (may
 * be NULL) is the newest page, a new reference. */
json_t *rpc_call_list(const char *node_url, const char *method, json_t *params, json_t **last,
                      struct err *err);

#define RPC_CALL_NODE_OPTION                                                    \
    {                                                                           \
        "node", CLI_VALUE, "URL",                                               \
            "The node to ask; else TRIBUTARY_NODE, else http://127.0.0.1:8080." \
    }

#endif
