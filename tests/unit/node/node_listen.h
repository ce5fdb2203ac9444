/* node_listen: opens the door of a node whose parts a test has put together. */
#ifndef TRIBUTARY_TESTS_UNIT_NODE_NODE_LISTEN_H
#define TRIBUTARY_TESTS_UNIT_NODE_NODE_LISTEN_H

#include "node/base/err.h"
#include "node/http.h"
#include "node/node.h"
#include "node/workers.h"
#include "tests/support.h"

/* On a free port of loopback, with workers of its own; all routes. */
static inline void node_listen(struct node *n)
{
    struct err err = {0};
    struct http_server *server;
    struct http_options o = {.listen = "127.0.0.1:0",
                             .tick_ms = 1,
                             .on_head = routes_on_head,
                             .on_request = routes_on_request,
                             .on_done = routes_on_done,
                             .context = n};
    assert_ok(workers_create(&n->workers, 2, 16, &err), err);
    assert_ok(http_open(&server, &o, &err), err);
    atomic_store(&n->http, server);
    atomic_store(&n->opened, true);
}

#endif
