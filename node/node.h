/* node: the parts of a running node, as the HTTP handlers see them.
 *
 * Filled by cmd_serve; constant from `opened` on. Before, while the model is loaded, only what
 * needs none of the parts answers (routes.c): the metrics, the keys and admission are there then.
 */
#ifndef TRIBUTARY_NODE_NODE_H
#define TRIBUTARY_NODE_NODE_H

#include "node/base/clock.h"

#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>

#define TRIBUTARY_VERSION "0.1.0"

struct adapter_store;
struct admission;
struct api_error;
struct api_keys;
struct buf;
struct config;
struct engine;
struct http_exchange;
struct http_server;
struct ledger;
struct metrics;
struct service;
struct workers;

struct node {
    const struct config *config;
    struct engine *engine;
    struct ledger *ledger;
    struct service *service;
    struct adapter_store *adapters;
    struct http_server *_Atomic http; /* NULL until it is open */
    struct metrics *metrics;
    struct admission *admission;
    struct workers *workers;     /* for routes that take a while */
    struct api_keys *keys;       /* NULL: open */
    struct api_keys *admin_keys; /* NULL: admin routes answer on loopback only */
    struct monotonic_us started;
    _Atomic bool opened; /* all parts are there */
    _Atomic bool draining;
};

/* ---- routes.c ----------------------------------------------------------------------------------
 */

/* For http_options: the context is the node. */
void routes_on_head(void *node, struct http_exchange *x);
void routes_on_request(void *node, struct http_exchange *x);
void routes_on_done(void *node, struct http_exchange *x, unsigned status, uint64_t us);

/* ---- health.c ----------------------------------------------------------------------------------
 */

/* Whether the node makes progress; reason [256] says why not, or is "". */
bool health_ready(struct node *n, char reason[256]);
/* Everything worth knowing, for node_status and the status page. A new reference. */
json_t *health_status(struct node *n);

/* ---- handlers; x is answered or retained when they return
 * ---------------------------------------- */

/* Whether a payer's Request (signed_request.h) in the headers of x is good, as far as that can be
 * told before the body is there; -1 and *e say why not. */
int api_openai_check_payer(struct node *n, struct http_exchange *x, struct api_error *e);
void api_openai_models(struct node *n, struct http_exchange *x);
void api_openai_model(struct node *n, struct http_exchange *x, const char *name);
void api_openai_completions(struct node *n, struct http_exchange *x);
void api_openai_chat(struct node *n, struct http_exchange *x);

void api_rpc(struct node *n, struct http_exchange *x);
void api_rpc_openrpc(struct node *n, struct http_exchange *x);
void api_receipt(struct node *n, struct http_exchange *x, const char *id);
void api_receipts(struct node *n, struct http_exchange *x);
void api_batch_file(struct node *n, struct http_exchange *x, const char *hash);

void api_payer(struct node *n, struct http_exchange *x, const char *address);
void api_voucher(struct node *n, struct http_exchange *x);

void api_admin_adapters(struct node *n, struct http_exchange *x);
void api_admin_add(struct node *n, struct http_exchange *x);
void api_admin_adapter(struct node *n, struct http_exchange *x, const char *name);
void api_admin_remove(struct node *n, struct http_exchange *x, const char *name);
void api_admin_order(struct node *n, struct http_exchange *x, const char *rest);

void status_page(struct node *n, struct http_exchange *x);

#endif
