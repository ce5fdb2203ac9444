/* registry_server: the reference registry: a directory served as the layout of registry.h, and
 * uploads.
 *
 *   ROOT/manifests/<sha256>.json, .sig     as served
 *   ROOT/blobs/<sha256>                    as served; files, and older index pages
 *   ROOT/pending/<sha256>.json, .sig       manifests whose blobs have not all come
 *   ROOT/index.json                        the newest page
 *
 * The same directory can be served by any web server; only uploads need this one. A manifest is
 * taken when its creator's signature is good and the creator may upload; a blob when a manifest
 * that was taken names it, at the size it names, and its bytes have its hash. A manifest becomes
 * visible, and enters the index, when all its blobs are there. Nothing is ever overwritten.
 *
 * Trust: none is needed. A registry that serves wrong bytes is found out by every client.
 *
 * The handlers are an http server's; any thread, one lock around the directory's index. */
#ifndef TRIBUTARY_NODE_REGISTRY_SERVER_H
#define TRIBUTARY_NODE_REGISTRY_SERVER_H

#include "chain/types.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct http_exchange;
struct registry_server;

struct registry_server_options {
    const char *root; /* created */
    bool anyone_uploads;
    const struct address *uploaders; /* [n_uploaders] creators who may; copied */
    size_t n_uploaders;
    uint64_t max_blob_bytes; /* 0: 4 GiB */
};

/* Reads the directory. ERR_CORRUPT names a file that can't be what its name says. */
int registry_server_open(struct registry_server **out,
                         const struct registry_server_options *options, struct err *err);
void registry_server_close(struct registry_server *s); /* quiet on NULL */

/* For http_options; the context is the registry_server. */
void registry_server_on_head(void *server, struct http_exchange *x);
void registry_server_on_request(void *server, struct http_exchange *x);
void registry_server_on_done(void *server, struct http_exchange *x, unsigned status, uint64_t us);

#endif
