/* api_rpc: JSON-RPC 2.0 over the ledger's queries, and the same receipts over plain GETs.
 *
 * The handlers are declared in node/node.h; this is the part that needs no HTTP, so that it can be
 * tested as text in, text out. */
#ifndef TRIBUTARY_NODE_API_RPC_H
#define TRIBUTARY_NODE_API_RPC_H

#include <stdbool.h>
#include <stddef.h>

struct buf;
struct node;

enum { RPC_BATCH_MAX = 100 };

/* Answers one body (a call or a batch of them). local: the caller is on this machine, and may call
 * what spends the operator's money (node_seal). Appends nothing when all calls are notifications.
 */
void rpc_answer(struct node *n, struct buf *out, const void *body, size_t n_bytes, bool local);

/* Appends the OpenRPC document, made from the same table as the methods. */
void rpc_openrpc(struct buf *out);

#endif
