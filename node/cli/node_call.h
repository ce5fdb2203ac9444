/* node_call: one request to a running node's own paths, for commands. */
#ifndef TRIBUTARY_NODE_CLI_NODE_CALL_H
#define TRIBUTARY_NODE_CLI_NODE_CALL_H

#include "node/base/http_client.h"

#include <jansson.h>

struct buf;

/* path begins with a slash and may have a query. body: JSON, or empty; header: one more "Name:
 * value", or NULL. A new reference to the answer, or NULL with the node's own sentence and the code
 * that its status stands for, or ERR_UPSTREAM when nobody answers, or not as a node does. */
json_t *node_call(const char *node_url, enum http_method method, const char *path,
                  const struct buf *body, const char *header, struct err *err);

#endif
