/* http_client: HTTP and HTTPS requests to servers that are not trusted.
 *
 * For the chain's endpoints and for registries. Only http and https; TLS certificates are verified;
 * everything a server can send is bounded, in bytes and in time; nothing is decompressed. The body
 * goes to a callback piece by piece, so that a large file is hashed and stored while it arrives.
 *
 * A call is a success when an answer came completely, whatever its status: 404 is an answer.
 * Failures: ERR_UPSTREAM (no connection, TLS, broken or cut off answer), ERR_TIMEOUT,
 * ERR_TOO_LARGE, ERR_CANCELLED, ERR_INVALID (the call itself), or what a callback returned.
 * Sentences begin with the URL, without what may hold a secret (user, password, query), or with the
 * call's name for it.
 *
 * Threads: any number of calls at once on one client. Connections are kept and reused. The program
 * must ignore SIGPIPE. */
#ifndef TRIBUTARY_BASE_HTTP_CLIENT_H
#define TRIBUTARY_BASE_HTTP_CLIENT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct err;
struct http_client; /* opaque */

struct http_client *http_client_create(void);
void http_client_free(struct http_client *c); /* no call may be running; NULL is quiet */

enum http_method { HTTP_GET, HTTP_HEAD, HTTP_POST, HTTP_PUT, HTTP_DELETE };

/* What the server said before the body. Texts too long for their field are cut. */
struct http_reply {
    int status; /* of the last hop: 200 to 599 */
    bool has_length;
    uint64_t length_bytes; /* Content-Length: of this body, so of the rest when resumed */
    uint64_t range_from;   /* first byte of the body within the file; 0 unless status is 206 */
    bool has_total;
    uint64_t total_bytes;   /* of the whole file, from Content-Range */
    uint64_t retry_after_s; /* Retry-After in seconds; 0: none */
    char content_type[128];
    char etag[128];
    char location[1024]; /* of an answer that was not followed */
    uint64_t body_bytes; /* received; final when the call returns */
    unsigned redirects;  /* followed */
};

/* Both return 0 to go on, or -1 with *err set, which ends the call with that error. on_head comes
 * once, after the last redirect and before the first piece of the body; on_body never with n = 0.
 */
typedef int http_on_head(void *context, const struct http_reply *reply, struct err *err);
typedef int http_on_body(void *context, const void *bytes, size_t n, struct err *err);

struct http_call { /* zero means the default */
    enum http_method method;
    const char *url;
    const char *name;           /* in errors, instead of the URL */
    const char *const *headers; /* [n_headers] "Name: value"; not sent to another host or port */
    size_t n_headers;
    const void *body; /* of POST and PUT */
    size_t n_body;
    /* GET from this byte on. A server may ignore it: then status is 200, range_from 0, and the body
     * begins at the start. 206 with another start is ERR_UPSTREAM; 416 is an answer. */
    uint64_t range_from;
    uint64_t max_body_bytes;     /* default 1 MiB; refused as soon as Content-Length says more */
    size_t max_header_bytes;     /* a hop; default 64 KiB */
    unsigned max_redirects;      /* default 5; GET and HEAD only, never from https to http */
    bool no_redirects;           /* an answer 3xx is returned as it is */
    const char *ca_file;         /* PEM: the authorities to trust; default: the system's */
    uint64_t connect_timeout_ms; /* default 10,000 */
    uint64_t timeout_ms;         /* all in all, with redirects; default 60,000 */
    /* Fewer than stall_bytes in stall_ms, in both directions together: ERR_TIMEOUT. Default 1 byte
     * in 20,000 ms. */
    uint64_t stall_ms, stall_bytes;
    const _Atomic bool *cancel; /* seen within about 50 ms; may be NULL */
    http_on_head *on_head;      /* may be NULL */
    http_on_body *on_body;      /* NULL: the body is read and dropped */
    void *context;
};

/* Blocks until the answer is complete or the call has failed; reply (may be NULL) is filled as far
 * as it went in both cases. */
int http_client_call(struct http_client *c, const struct http_call *call, struct http_reply *reply,
                     struct err *err);

/* As http_client_call, with the body appended to body; on_head, on_body and context are not used.
 * On failure body has what came. */
int http_client_fetch(struct http_client *c, const struct http_call *call, struct buf *body,
                      struct http_reply *reply, struct err *err);

/* The URL without user, password, query and fragment; with host_only without the path, too.
 * out [cap], cut when longer; returns out. For logs and errors. */
char *http_url_redact(char *out, size_t cap, const char *url, bool host_only);

#endif
