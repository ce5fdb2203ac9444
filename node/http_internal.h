/* http_internal: what the files of the HTTP server share; others include node/http.h.
 *
 *     http.c          opens, closes, and what happens by the clock
 *     http_accept.c   from the listening socket to a connection; who may have how many
 *     http_request.c  from a connection to a request: what libmicrohttpd calls
 *     http_answer.c   from an answer to the socket: replies, streams, who sleeps and who wakes
 *
 * http.c says how they fit together. */
#ifndef TRIBUTARY_NODE_HTTP_INTERNAL_H
#define TRIBUTARY_NODE_HTTP_INTERNAL_H

#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/hash_map.h"
#include "node/http.h"

#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>

#include <microhttpd.h>

enum {
    HTTP_CHUNK_BYTES = 16 * 1024,      /* largest piece of a stream that MHD asks for */
    HTTP_MIN_RATE_BYTES_PER_S = 16384, /* slower transfers than this run into their deadline */
};

struct http_loop { /* one a thread of the pool */
    struct MHD_Daemon *daemon;
    size_t n_conns;
};

struct http_peer { /* one an address that has connections */
    char text[INET6_ADDRSTRLEN];
    int n_conns;
};

struct conn { /* one a TCP connection */
    struct conn *prev, *next;
    int fd;
    _Atomic uint64_t deadline_us; /* monotonic; 0: none */
    struct http_loop *loop;
    struct http_peer *peer;
    bool nul; /* the request that is being read has one in its path or query */
};

struct pair {
    struct pair *next;
    const char *name, *value;
};

struct http_exchange {
    struct http_server *server;
    struct http_exchange *prev, *next; /* server's list of live exchanges */
    struct http_exchange *ready_next;
    _Atomic int refs;

    /* set before on_request, constant after it */
    struct arena arena;
    const char *method, *path, *peer;
    struct pair *headers, *queries;
    int n_headers;
    size_t head_bytes; /* request line and headers, as they came */
    uint8_t id[32];
    struct buf body;
    bool nul; /* in path or query, which end there for us */
    bool is_http_1_1;
    bool head_seen, handled;
    int body_fd; /* -1: memory */
    uint64_t body_max, body_seen;
    struct monotonic_us began;
    void *user;
    struct conn *connection; /* valid while mhd is */

    pthread_mutex_t lock;       /* all below */
    struct MHD_Connection *mhd; /* NULL once completed */
    bool asleep, cut, answered, queued, on_ready_list;
    unsigned status;
    struct MHD_Response *response;
    struct pair *reply_headers;
    bool streaming, ended, want_drained;
    struct buf out; /* bytes [out_at, len) are not yet handed to MHD */
    size_t out_at;
    uint64_t n_queued, n_written;
    size_t n_burst; /* bytes that came at once: no reader can have kept up with them */

    pthread_mutex_t event_lock; /* held during on_event */
    void (*on_event)(void *user, enum http_event event);
    void *event_user;
    bool gone_told;
};

struct http_server {
    struct http_options opt;
    char *cors_origin, *url;
    char *tls_cert, *tls_key;
    struct http_loop *loops; /* [opt.n_threads] */
    int listen_fd;           /* -1: closed */
    bool loopback;
    _Atomic bool draining;

    pthread_mutex_t lock; /* exchanges, closing */
    struct http_exchange *exchanges;
    size_t n_exchanges;
    bool closing;

    pthread_mutex_t conn_lock; /* conns, their counts, what the acceptor waits for */
    struct conn *conns;
    size_t n_conns;
    struct hash_map handed; /* by descriptor: conns that MHD doesn't serve yet */
    struct hash_map peers;  /* by text */
    bool accept_full;       /* the acceptor waits for a connection to end */

    int accept_wake; /* eventfd */
    bool accepting;  /* there is a thread to join */
    pthread_t acceptor;

    pthread_mutex_t ready_lock;
    pthread_cond_t ready_cond;
    struct http_exchange *ready;
    bool stop_ticker;
    pthread_t ticker;
};

static inline uint64_t http_now_us(void)
{
    return clock_monotonic_us().us;
}

/* ---- http_accept.c -----------------------------------------------------------------------------
 */

int http_accept_start(struct http_server *s, struct err *err);
/* After `draining` was set. Closes the listening socket; again: quiet. */
void http_accept_stop(struct http_server *s);
/* The loops are gone. */
void http_accept_release(struct http_server *s);
/* What MHD calls; the context is the server. */
void mhd_on_connection(void *context, struct MHD_Connection *mhd, void **socket_context,
                       enum MHD_ConnectionNotificationCode code);

/* ---- http_answer.c -----------------------------------------------------------------------------
 */

/* Tells who listens; HTTP_GONE once. No lock is held. */
void exchange_tell(struct http_exchange *x, enum http_event event);
/* Resumes x if it sleeps. The lock is not held. */
void exchange_wake(struct http_exchange *x);
/* Ends the exchange without a (further) answer. */
void exchange_cut(struct http_exchange *x);
/* So many seconds from now, and the time that n_bytes take. While x->mhd is there. */
void exchange_set_deadline(struct http_exchange *x, uint64_t seconds, uint64_t n_bytes);

/* ---- http_request.c: what MHD calls; the context is the server ----------------------------------
 */

size_t mhd_unescape(void *context, struct MHD_Connection *mhd, char *s);
enum MHD_Result mhd_on_access(void *context, struct MHD_Connection *mhd, const char *url,
                              const char *method, const char *version, const char *piece,
                              size_t *piece_bytes, void **con_cls);
void mhd_on_completed(void *context, struct MHD_Connection *mhd, void **con_cls,
                      enum MHD_RequestTerminationCode code);

#endif
