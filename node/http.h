/* http: the server side of HTTP/1.1. The only room that knows libmicrohttpd.
 *
 * A server owns sockets, a small pool of epoll threads and one ticker thread. Each request becomes
 * an exchange. `on_request` is called on a pool thread when the whole request has arrived; it must
 * not block for long. It answers at once (http_reply), or keeps the exchange (http_retain) and
 * answers from any thread later; in the meantime the connection sleeps and costs a few kilobytes.
 *
 * A streamed answer is a bounded buffer between a producer and the socket. The producer never
 * blocks: when the buffer is full the reader is too slow, the stream is cut and the producer told.
 * Wake-ups are gathered: what many producers write within one tick goes out together; a write
 * marked urgent (the first token, the last chunk) goes out at once. `http_stream_written` says how
 * many bytes the kernel has taken for certain, which is what is billed by.
 *
 * Limits, all of which a hostile client meets before it costs much: bytes of header and body,
 * connections in all and from one address, seconds for a request to arrive however slowly it
 * trickles, seconds without progress on a write, bytes a stream may lag behind.
 *
 * A client that closes its side while an answer is being made counts as gone (a half-closed
 * connection too), is noticed within 0.1 s, and HTTP_GONE says so.
 *
 * What a proxy and this server could read differently is 400: a body's end that is said twice, a
 * header's name that is no token, a request of HTTP/1.1 without Host or with two (RFC 9112). A
 * target in the absolute form is its path.
 *
 * Every answer carries `x-request-id`: 0x and 64 digits, the same id that its receipt has. */
#ifndef TRIBUTARY_NODE_HTTP_H
#define TRIBUTARY_NODE_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct err;
struct http_server;
struct http_exchange;

struct http_options {
    const char *listen;         /* "127.0.0.1:8080", "[::1]:0"; port 0: any free one */
    bool insecure_bind;         /* allow an address that is not loopback without TLS */
    const char *loopback_only;  /* not NULL: why an address that is not loopback is refused */
    const char *tls_cert;       /* PEM file with the chain; NULL: no TLS */
    const char *tls_key;        /* PEM file */
    int n_threads;              /* 0: 2 */
    int max_connections;        /* 0: 4096; more wait in the backlog until one ends */
    int max_connections_per_ip; /* 0: no limit; one more is closed */
    size_t max_header_bytes;    /* 0: 32 KiB; request line and headers; over it, or 100: 431 */
    size_t max_body_bytes;      /* 0: 4 MiB; else 413 */
    size_t stream_buffer_bytes; /* 0: 256 KiB */
    unsigned request_timeout_s; /* 0: 20; for headers, and again for the body, to arrive */
    unsigned idle_timeout_s;    /* 0: 60; between requests, and without progress on a write */
    unsigned tick_ms;           /* 0: 15 */
    const char *cors_origin;    /* NULL: no CORS headers; else the allowed origin, or "*" */

    /* Optional; called when the headers are there, before any body byte. May http_reply (refusing
     * early) or http_body_to_file. */
    void (*on_head)(void *context, struct http_exchange *x);
    /* The request has arrived. Replies, or retains x. */
    void (*on_request)(void *context, struct http_exchange *x);
    /* Optional; called on any thread, once for each answered request, for the access log and
     * metrics; status 0: the connection ended before an answer. */
    void (*on_done)(void *context, struct http_exchange *x, unsigned status, uint64_t us);
    void *context;
};

/* Binds, starts the threads. Strings are copied. ERR_FORBIDDEN: a bind that others could reach,
 * without TLS and without insecure_bind; ERR_IO names the address. */
int http_open(struct http_server **out, const struct http_options *options, struct err *err);

const char *http_url(const struct http_server *s); /* "http://127.0.0.1:41234" */

bool http_is_loopback(const struct http_server *s); /* nobody outside this machine reaches it */

/* Closes the listening socket; what is under way goes on; new requests on open connections get a
 * 503 with Connection: close, except for GETs. */
void http_drain(struct http_server *s);
size_t http_n_active(struct http_server *s); /* exchanges not answered completely */
size_t http_n_connections(struct http_server *s);

/* Cuts what is still open (HTTP_GONE where someone listens), joins the threads, frees. Retained
 * exchanges stay valid memory until dropped. Quiet on NULL. */
void http_close(struct http_server *s);

/* ---- the request -------------------------------------------------------------------------------
 * Strings live as long as the exchange. */

const char *http_method(const struct http_exchange *x);
const char *http_path(const struct http_exchange *x); /* percent-decoded, without the query */
const char *http_query(const struct http_exchange *x, const char *name); /* decoded, or NULL */
/* Without white space around it, or NULL. */
const char *http_header(const struct http_exchange *x, const char *name);
const void *http_body(const struct http_exchange *x, size_t *n);
void http_body_release(struct http_exchange *x); /* frees it early; http_body is empty then */
const uint8_t *http_request_id(const struct http_exchange *x); /* [32] random bytes */
/* Before the answer: the id that a payer's Request gives it, in place of the random one. */
void http_set_request_id(struct http_exchange *x, const uint8_t id[32]);
const char *http_peer(const struct http_exchange *x); /* "127.0.0.1" */

/* on_head only: the body goes to fd (the caller's; at most max_bytes, else 413), not to memory.
 * http_body is then empty and http_body_file_bytes tells how much was written. */
void http_body_to_file(struct http_exchange *x, int fd, uint64_t max_bytes);
uint64_t http_body_file_bytes(const struct http_exchange *x);

/* on_head only: this request's body may have at most max_bytes, else 413. */
void http_body_limit(struct http_exchange *x, uint64_t max_bytes);

/* A word for the handler to keep with the exchange (its route, its customer). */
void http_set_user(struct http_exchange *x, void *user);
void *http_user(const struct http_exchange *x);

/* ---- the answer --------------------------------------------------------------------------------
 * One answer an exchange; a second is a bug. Answering one that is gone is quiet. */

void http_retain(struct http_exchange *x);
void http_drop(struct http_exchange *x);

/* Before the answer. Copies. */
void http_set_header(struct http_exchange *x, const char *name, const char *value);

/* Takes the buffer's memory (body is BUF_INIT afterwards). content_type may be NULL when empty. */
void http_reply(struct http_exchange *x, unsigned status, const char *content_type,
                struct buf *body);
void http_reply_text(struct http_exchange *x, unsigned status, const char *content_type,
                     const char *text);
/* Sends n bytes of fd from offset; takes fd and closes it. */
void http_reply_file(struct http_exchange *x, unsigned status, const char *content_type, int fd,
                     uint64_t offset, uint64_t n);

/* ---- a streamed answer -------------------------------------------------------------------------
 */

enum http_event {
    HTTP_DRAINED, /* all that was written so far has left; armed by http_stream_drained */
    HTTP_GONE,    /* the client vanished, was too slow, or the server is closing; at most once */
};
/* Called on a thread of the server; must not block, and must not call back into the exchange.
 * Set before on_request returns. After http_unlisten returns, no call is under way or comes. */
void http_listen(struct http_exchange *x, void (*on_event)(void *user, enum http_event event),
                 void *user);
void http_unlisten(struct http_exchange *x);

void http_stream_begin(struct http_exchange *x, unsigned status, const char *content_type);
/* Queues bytes. false: the client is gone, or was too slow and is cut off now. Urgent writes, and
 * any that alone exceeds the limit, come at once: they may wait beside stream_buffer_bytes. */
bool http_stream_write(struct http_exchange *x, const void *bytes, size_t n, bool urgent);
void http_stream_end(struct http_exchange *x);
/* Bytes that the socket has taken, out of all that were queued; a chunk torn by the end of the
 * connection doesn't count. */
uint64_t http_stream_written(struct http_exchange *x);
/* True: everything queued so far has been written. False: HTTP_DRAINED will tell (or HTTP_GONE). */
bool http_stream_drained(struct http_exchange *x);
bool http_gone(struct http_exchange *x);

#endif
