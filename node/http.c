/* http: see http.h.
 *
 * One MHD daemon with a pool of epoll threads. An exchange moves through
 *
 *     HEAD -> BODY -> HANDLED -> (asleep) -> ANSWERING -> DONE
 *
 * and is owned by two sides, each with a reference: the connection (until MHD says "completed") and
 * whoever retained it. All that both sides touch is under x->lock.
 *
 * Sleeping. MHD never looks at a suspended connection; that is what makes 10,000 idle streams
 * cheap. The decision to sleep ("nothing to send") and the decision to wake ("there is something
 * now") are taken under the same lock, so no wake-up is lost:
 *
 *     pool thread                          producer
 *     lock; buffer empty?                  lock; append
 *           yes: asleep = true, suspend          asleep? asleep = false, resume after unlock
 *     unlock                               unlock
 *
 * Whoever turns `asleep` from true to false resumes, exactly once; a suspended connection can't be
 * freed by MHD, so its handle stays valid until then.
 *
 * Wake-ups are gathered. A write that isn't urgent puts the exchange on the server's ready list;
 * the ticker thread takes the whole list every tick_ms and resumes what sleeps. Thousands of
 * streams then cost one wake-up a tick and a pool thread, and each writes all that came in the
 * meantime at once.
 *
 * What was written. MHD calls the content reader for position p only after the kernel has taken all
 * bytes before p, so `written` = p on entry. What was handed over last when a connection breaks has
 * perhaps left in part; it doesn't count.
 *
 * Who is gone. The ticker polls the sockets of sleeping exchanges for POLLRDHUP every 100 ms, since
 * MHD doesn't; awake ones fail by themselves. MHD's own timeout sees silence only, so connections
 * also have a deadline (for the headers, for the body, for taking an answer), and the ticker shuts
 * those down that passed it: one byte a second keeps nobody alive. A socket is shut down under
 * conn_lock, which MHD's "closed" notification takes before the descriptor is closed. */
#include "node/http.h"
#include "node/http_address.h"

#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/random.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <microhttpd.h>

enum {
    CHUNK_BYTES = 16 * 1024,      /* largest piece of a stream that MHD asks for */
    MIN_RATE_BYTES_PER_S = 16384, /* slower transfers than this run into their deadline */
    POLL_GONE_US = 100 * 1000,    /* how often sleeping sockets are looked at */
    DEADLINES_US = 250 * 1000,    /* how often deadlines are looked at */
    HEADERS_MAX = 100,
    LINGER_BYTES = 16 << 20, /* of a body over its limit that are read, so that the 413 arrives */
};

struct conn { /* one a TCP connection */
    struct conn *prev, *next;
    int fd;
    _Atomic uint64_t deadline_us; /* monotonic; 0: none */
    char peer[INET6_ADDRSTRLEN];
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
    bool nul;        /* in path or query, which end there for us */
    bool needs_host; /* HTTP/1.1 */
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
    struct MHD_Daemon *daemon;
    int listen_fd;
    bool loopback;
    _Atomic bool draining;

    pthread_mutex_t lock; /* exchanges, closing */
    struct http_exchange *exchanges;
    size_t n_exchanges;
    bool closing;

    pthread_mutex_t conn_lock;
    struct conn *conns;
    size_t n_conns;

    pthread_mutex_t ready_lock;
    pthread_cond_t ready_cond;
    struct http_exchange *ready;
    bool stop_ticker;
    pthread_t ticker;
};

static uint64_t now_us(void)
{
    return clock_monotonic_us().us;
}

/* ---- exchanges ---------------------------------------------------------------------------------
 */

void http_retain(struct http_exchange *x)
{
    atomic_fetch_add(&x->refs, 1);
}

void http_drop(struct http_exchange *x)
{
    if (x == NULL || atomic_fetch_sub(&x->refs, 1) != 1)
        return;
    BUG_IF(x->response != NULL);
    buf_release(&x->body);
    buf_release(&x->out);
    arena_release(&x->arena);
    pthread_mutex_destroy(&x->lock);
    pthread_mutex_destroy(&x->event_lock);
    free(x);
}

static void tell(struct http_exchange *x, enum http_event event)
{
    pthread_mutex_lock(&x->event_lock);
    bool again = event == HTTP_GONE && x->gone_told;
    if (event == HTTP_GONE)
        x->gone_told = true;
    if (x->on_event != NULL && !again)
        x->on_event(x->event_user, event);
    pthread_mutex_unlock(&x->event_lock);
}

void http_listen(struct http_exchange *x, void (*on_event)(void *user, enum http_event event),
                 void *user)
{
    pthread_mutex_lock(&x->event_lock);
    x->on_event = on_event;
    x->event_user = user;
    pthread_mutex_unlock(&x->event_lock);
}

void http_unlisten(struct http_exchange *x)
{
    http_listen(x, NULL, NULL);
}

/* Resumes x if it sleeps. The lock is not held. */
static void wake(struct http_exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool resume = x->asleep;
    x->asleep = false;
    struct MHD_Connection *mhd = x->mhd;
    pthread_mutex_unlock(&x->lock);
    if (resume)
        MHD_resume_connection(mhd);
}

/* Ends the exchange without a (further) answer. */
static void cut(struct http_exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool was = x->cut;
    x->cut = true;
    pthread_mutex_unlock(&x->lock);
    if (!was)
        tell(x, HTTP_GONE);
    wake(x);
}

static void wake_soon(struct http_exchange *x)
{
    struct http_server *s = x->server;
    pthread_mutex_lock(&s->ready_lock);
    if (!x->on_ready_list) {
        x->on_ready_list = true;
        http_retain(x);
        x->ready_next = s->ready;
        if (s->ready == NULL)
            pthread_cond_signal(&s->ready_cond);
        s->ready = x;
    }
    pthread_mutex_unlock(&s->ready_lock);
}

const char *http_method(const struct http_exchange *x)
{
    return x->method;
}

const char *http_path(const struct http_exchange *x)
{
    return x->path;
}

const char *http_peer(const struct http_exchange *x)
{
    return x->peer;
}

const uint8_t *http_request_id(const struct http_exchange *x)
{
    return x->id;
}

void http_set_request_id(struct http_exchange *x, const uint8_t id[32])
{
    BUG_IF(x->answered);
    memcpy(x->id, id, sizeof x->id);
}

const void *http_body(const struct http_exchange *x, size_t *n)
{
    *n = x->body.len;
    return x->body.data != NULL ? (const void *)x->body.data : "";
}

void http_body_release(struct http_exchange *x)
{
    buf_release(&x->body);
}

uint64_t http_body_file_bytes(const struct http_exchange *x)
{
    return x->body_fd >= 0 ? x->body_seen : 0;
}

void http_body_to_file(struct http_exchange *x, int fd, uint64_t max_bytes)
{
    BUG_IF(x->body_seen > 0 || x->handled);
    x->body_fd = fd;
    x->body_max = max_bytes;
}

void http_set_user(struct http_exchange *x, void *user)
{
    x->user = user;
}

void *http_user(const struct http_exchange *x)
{
    return x->user;
}

const char *http_header(const struct http_exchange *x, const char *name)
{
    for (const struct pair *p = x->headers; p != NULL; p = p->next) {
        if (strcasecmp(p->name, name) == 0)
            return p->value;
    }
    return NULL;
}

const char *http_query(const struct http_exchange *x, const char *name)
{
    for (const struct pair *p = x->queries; p != NULL; p = p->next) {
        if (strcmp(p->name, name) == 0)
            return p->value;
    }
    return NULL;
}

/* ---- answering ---------------------------------------------------------------------------------
 */

void http_set_header(struct http_exchange *x, const char *name, const char *value)
{
    pthread_mutex_lock(&x->lock);
    struct pair *p = arena_alloc(&x->arena, sizeof *p);
    p->name = arena_strdup(&x->arena, name);
    p->value = arena_strdup(&x->arena, value);
    p->next = x->reply_headers;
    x->reply_headers = p;
    pthread_mutex_unlock(&x->lock);
}

static void set_deadline(struct http_exchange *x, uint64_t seconds, uint64_t n_bytes)
{
    atomic_store(&x->connection->deadline_us,
                 now_us() + (seconds + n_bytes / MIN_RATE_BYTES_PER_S) * 1000000);
}

/* Takes response. */
static void answer(struct http_exchange *x, unsigned status, const char *content_type,
                   struct MHD_Response *response, uint64_t n_bytes, bool is_stream)
{
    BUG_IF(response == NULL);
    const struct http_server *s = x->server;
    char id[67];
    MHD_add_response_header(response, "x-request-id", hex_encode_0x(id, x->id, 32));
    if (content_type != NULL)
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, content_type);
    if (s->cors_origin != NULL) {
        MHD_add_response_header(response, "Access-Control-Allow-Origin", s->cors_origin);
        MHD_add_response_header(response, "Access-Control-Expose-Headers",
                                "x-request-id, retry-after");
        if (strcmp(s->cors_origin, "*") != 0)
            MHD_add_response_header(response, "Vary", "Origin");
    }
    if (atomic_load(&s->draining))
        MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close");
    pthread_mutex_lock(&x->lock);
    BUG_IF(x->answered);
    for (const struct pair *p = x->reply_headers; p != NULL; p = p->next)
        MHD_add_response_header(response, p->name, p->value);
    x->answered = true;
    x->streaming = is_stream;
    x->status = status;
    /* A stream's response holds a reference to x: it is kept only until MHD has it, or the
     * connection ends, so that the two don't keep each other. */
    bool late = x->mhd == NULL;
    if (!late) {
        x->response = response;
        if (is_stream)
            atomic_store(&x->connection->deadline_us, 0);
        else
            set_deadline(x, s->opt.idle_timeout_s, n_bytes);
    }
    pthread_mutex_unlock(&x->lock);
    if (late)
        MHD_destroy_response(response);
    else
        wake(x);
}

void http_reply(struct http_exchange *x, unsigned status, const char *content_type,
                struct buf *body)
{
    size_t n = body->len;
    struct MHD_Response *r;
    if (n == 0) {
        buf_release(body);
        r = MHD_create_response_from_buffer(0, (void *)"", MHD_RESPMEM_PERSISTENT);
    } else {
        r = MHD_create_response_from_buffer(n, buf_detach(body), MHD_RESPMEM_MUST_FREE);
    }
    answer(x, status, content_type, r, n, false);
}

void http_reply_text(struct http_exchange *x, unsigned status, const char *content_type,
                     const char *text)
{
    struct buf b = BUF_INIT;
    buf_append_str(&b, text);
    http_reply(x, status, content_type, &b);
}

void http_reply_file(struct http_exchange *x, unsigned status, const char *content_type, int fd,
                     uint64_t offset, uint64_t n)
{
    struct MHD_Response *r = MHD_create_response_from_fd_at_offset64(n, fd, offset);
    answer(x, status, content_type, r, n, false);
}

/* ---- streams -----------------------------------------------------------------------------------
 */

static ssize_t read_stream(void *context, uint64_t pos, char *out, size_t max)
{
    struct http_exchange *x = context;
    bool drained = false;
    ssize_t n = 0;
    pthread_mutex_lock(&x->lock);
    x->n_written = pos;
    size_t have = x->out.len - x->out_at;
    if (x->cut) {
        n = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (have > 0) {
        size_t take = have < max ? have : max;
        memcpy(out, x->out.data + x->out_at, take);
        x->out_at += take;
        if (x->out_at == x->out.len) {
            buf_reset(&x->out);
            x->out_at = 0;
        }
        n = (ssize_t)take;
    } else if (x->ended) {
        n = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        drained = x->want_drained;
        x->want_drained = false;
        x->asleep = true;
        atomic_store(&x->connection->deadline_us, 0);
        MHD_suspend_connection(x->mhd);
    }
    if (n == MHD_CONTENT_READER_END_OF_STREAM)
        x->want_drained = false;
    pthread_mutex_unlock(&x->lock);
    if (drained)
        tell(x, HTTP_DRAINED);
    return n;
}

static void drop_stream(void *context)
{
    http_drop(context);
}

void http_stream_begin(struct http_exchange *x, unsigned status, const char *content_type)
{
    http_retain(x);
    struct MHD_Response *r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, CHUNK_BYTES,
                                                               read_stream, x, drop_stream);
    BUG_IF(r == NULL);
    /* Proxies that gather a stream would defeat it. */
    MHD_add_response_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    MHD_add_response_header(r, "X-Accel-Buffering", "no");
    answer(x, status, content_type, r, 0, true);
}

bool http_stream_write(struct http_exchange *x, const void *bytes, size_t n, bool urgent)
{
    pthread_mutex_lock(&x->lock);
    BUG_IF(!x->streaming || x->ended);
    bool alive = !x->cut && x->mhd != NULL;
    size_t limit = alive ? x->server->opt.stream_buffer_bytes : 0; /* the server may be closed */
    if (urgent || n > limit)
        x->n_burst += n;
    bool slow = alive && x->out.len - x->out_at + n > limit + x->n_burst;
    if (alive && !slow) {
        if (x->out_at > 0 && x->out_at >= x->out.len / 2) {
            memmove(x->out.data, x->out.data + x->out_at, x->out.len - x->out_at);
            x->out.len -= x->out_at;
            x->out_at = 0;
        }
        buf_append(&x->out, bytes, n);
        x->n_queued += n;
    }
    pthread_mutex_unlock(&x->lock);
    if (slow) {
        log_info("http", "%s lags more than %zu bytes behind its stream and is cut off", x->peer,
                 limit);
        cut(x);
        return false;
    }
    if (alive && urgent)
        wake(x);
    else if (alive)
        wake_soon(x);
    return alive;
}

void http_stream_end(struct http_exchange *x)
{
    pthread_mutex_lock(&x->lock);
    BUG_IF(!x->streaming || x->ended);
    x->ended = true;
    if (x->mhd != NULL)
        set_deadline(x, x->server->opt.idle_timeout_s, x->out.len - x->out_at);
    pthread_mutex_unlock(&x->lock);
    wake(x);
}

uint64_t http_stream_written(struct http_exchange *x)
{
    pthread_mutex_lock(&x->lock);
    uint64_t n = x->n_written;
    pthread_mutex_unlock(&x->lock);
    return n;
}

bool http_stream_drained(struct http_exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool done = x->n_written == x->n_queued;
    if (!done && !x->want_drained) {
        x->want_drained = true;
        if (x->mhd != NULL)
            set_deadline(x, x->server->opt.idle_timeout_s, x->out.len - x->out_at);
    }
    pthread_mutex_unlock(&x->lock);
    if (!done)
        wake(x);
    return done;
}

bool http_gone(struct http_exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool gone = x->cut || x->mhd == NULL;
    pthread_mutex_unlock(&x->lock);
    return gone;
}

/* ---- what MHD calls ----------------------------------------------------------------------------
 */

static void on_connection(void *context, struct MHD_Connection *mhd, void **socket_context,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http_server *s = context;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        struct conn *c = xcalloc(1, sizeof *c);
        c->fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        http_address_text(
            c->peer, MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS)->client_addr);
        atomic_store(&c->deadline_us, now_us() + s->opt.request_timeout_s * UINT64_C(1000000));
        int on = 1;
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        pthread_mutex_lock(&s->conn_lock);
        c->next = s->conns;
        if (c->next != NULL)
            c->next->prev = c;
        s->conns = c;
        s->n_conns++;
        pthread_mutex_unlock(&s->conn_lock);
        *socket_context = c;
        return;
    }
    struct conn *c = *socket_context;
    pthread_mutex_lock(&s->conn_lock);
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        s->conns = c->next;
    if (c->next != NULL)
        c->next->prev = c->prev;
    s->n_conns--;
    pthread_mutex_unlock(&s->conn_lock);
    free(c);
}

/* Decodes %HH. For everybody here a text ends with its first NUL: what %00 cuts off would be passed
 * over in silence. */
static size_t unescape(void *context, struct MHD_Connection *mhd, char *s)
{
    (void)context;
    struct conn *c =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    size_t n = MHD_http_unescape(s);
    c->nul = c->nul || strlen(s) != n;
    return n;
}

struct copy_pairs {
    struct http_exchange *x;
    struct pair **tail;
    int n;
};

static enum MHD_Result copy_pair(void *context, enum MHD_ValueKind kind, const char *name,
                                 const char *value)
{
    (void)kind;
    struct copy_pairs *c = context;
    if (++c->n > HEADERS_MAX)
        return MHD_NO;
    struct pair *p = arena_alloc(&c->x->arena, sizeof *p);
    p->name = arena_strdup(&c->x->arena, name != NULL ? name : "");
    p->value = arena_strdup(&c->x->arena, value != NULL ? value : "");
    *c->tail = p;
    c->tail = &p->next;
    return MHD_YES;
}

/* RFC 9112, 3.2.2: a target in the absolute form, as for a proxy, is its path. */
static const char *path_of(const char *target)
{
    size_t scheme = strncasecmp(target, "http://", 7) == 0    ? 7
                    : strncasecmp(target, "https://", 8) == 0 ? 8
                                                              : 0;
    if (scheme == 0)
        return target;
    const char *path = strchr(target + scheme, '/');
    return path != NULL ? path : "/";
}

static struct http_exchange *exchange_create(struct http_server *s, struct MHD_Connection *mhd,
                                             const char *method, const char *target,
                                             const char *version)
{
    struct http_exchange *x = xcalloc(1, sizeof *x);
    x->server = s;
    x->refs = 1;
    x->mhd = mhd;
    x->connection =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT)->socket_context;
    x->method = arena_strdup(&x->arena, method);
    x->path = arena_strdup(&x->arena, path_of(target));
    x->needs_host = strcmp(version, MHD_HTTP_VERSION_1_1) == 0;
    x->peer = arena_strdup(&x->arena, x->connection->peer);
    x->nul = x->connection->nul;
    x->connection->nul = false;
    x->body_fd = -1;
    x->body_max = s->opt.max_body_bytes;
    x->began = clock_monotonic_us();
    random_bytes(x->id, sizeof x->id);
    pthread_mutex_init(&x->lock, NULL);
    pthread_mutex_init(&x->event_lock, NULL);
    struct copy_pairs headers = {x, &x->headers, 0}, queries = {x, &x->queries, 0};
    x->n_headers = MHD_get_connection_values(mhd, MHD_HEADER_KIND, NULL, NULL);
    x->head_bytes =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE)->header_size;
    MHD_get_connection_values(mhd, MHD_HEADER_KIND, copy_pair, &headers);
    MHD_get_connection_values(mhd, MHD_GET_ARGUMENT_KIND, copy_pair, &queries);
    pthread_mutex_lock(&s->lock);
    x->next = s->exchanges;
    if (x->next != NULL)
        x->next->prev = x;
    s->exchanges = x;
    s->n_exchanges++;
    x->cut = s->closing;
    pthread_mutex_unlock(&s->lock);
    return x;
}

static void on_completed(void *context, struct MHD_Connection *mhd, void **con_cls,
                         enum MHD_RequestTerminationCode code)
{
    (void)mhd;
    struct http_server *s = context;
    struct http_exchange *x = *con_cls;
    if (x == NULL)
        return;
    *con_cls = NULL;
    pthread_mutex_lock(&s->lock);
    if (x->prev != NULL)
        x->prev->next = x->next;
    else
        s->exchanges = x->next;
    if (x->next != NULL)
        x->next->prev = x->prev;
    s->n_exchanges--;
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_lock(&x->lock);
    BUG_IF(x->asleep);
    x->mhd = NULL;
    bool broken = code != MHD_REQUEST_TERMINATED_COMPLETED_OK;
    if (!broken)
        x->n_written = x->n_queued;
    unsigned status = x->queued ? x->status : 0;
    struct MHD_Response *unused = x->response;
    x->response = NULL;
    /* MHD closes the connection after an error, else the next request may come. */
    atomic_store(&x->connection->deadline_us,
                 now_us() + (s->opt.idle_timeout_s + s->opt.request_timeout_s) * UINT64_C(1000000));
    pthread_mutex_unlock(&x->lock);
    if (unused != NULL)
        MHD_destroy_response(unused);
    if (broken)
        tell(x, HTTP_GONE);
    if (s->opt.on_done != NULL)
        s->opt.on_done(s->opt.context, x, status, clock_elapsed_us(x->began, clock_monotonic_us()));
    http_drop(x);
}

/* Hands a finished answer to MHD, or sleeps until there is one. */
static enum MHD_Result queue_or_sleep(struct http_exchange *x, bool may_sleep)
{
    enum MHD_Result result = MHD_YES;
    struct MHD_Response *response = NULL;
    pthread_mutex_lock(&x->lock);
    if (x->cut) {
        result = MHD_NO;
    } else if (x->answered && !x->queued) {
        x->queued = true;
        response = x->response;
        x->response = NULL;
    } else if (!x->answered && may_sleep) {
        x->asleep = true;
        atomic_store(&x->connection->deadline_us, 0);
        MHD_suspend_connection(x->mhd);
    }
    pthread_mutex_unlock(&x->lock);
    /* Not under the lock: MHD locks the response here, and holds that lock around read_stream. The
     * handle stays: this is the connection's own thread. */
    if (response != NULL) {
        result = MHD_queue_response(x->mhd, x->status, response);
        MHD_destroy_response(response); /* MHD counts its own reference */
    }
    return result;
}

static bool replied(struct http_exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool r = x->answered;
    pthread_mutex_unlock(&x->lock);
    return r;
}

static void reply_status(struct http_exchange *x, unsigned status, enum err_code code,
                         const char *message)
{
    struct buf b = BUF_INIT;
    buf_appendf(
        &b, "{\"error\":{\"message\":\"%s\",\"type\":\"%s\",\"param\":null,\"code\":\"%s\"}}",
        message, code == ERR_BUSY ? "server_error" : "invalid_request_error", err_code_name(code));
    http_reply(x, status, "application/json", &b);
}

static void reply_error(struct http_exchange *x, enum err_code code, const char *message)
{
    reply_status(x, (unsigned)err_http_status(code), code, message);
}

/* RFC 9112, 6.3: where the body ends must be said once, and understood. MHD takes the first of two
 * lengths and waits for the end of the connection under a coding that it doesn't know; a proxy that
 * reads such a request otherwise would take a part of its body for somebody's next request, or the
 * other way round. */
static bool body_end_is_clear(const struct http_exchange *x)
{
    int n_lengths = 0, n_codings = 0;
    for (const struct pair *p = x->headers; p != NULL; p = p->next) {
        n_lengths += strcasecmp(p->name, "Content-Length") == 0;
        n_codings += strcasecmp(p->name, "Transfer-Encoding") == 0;
    }
    return n_lengths + n_codings == 0 ||
           (n_lengths + n_codings == 1 &&
            (n_codings == 0 || strcasecmp(http_header(x, "Transfer-Encoding"), "chunked") == 0));
}

/* RFC 9112, 3.2: HTTP/1.1 names its host, and nobody names two: who stands between might have gone
 * by the other. */
static bool host_is_clear(const struct http_exchange *x)
{
    int n = 0;
    for (const struct pair *p = x->headers; p != NULL; p = p->next)
        n += strcasecmp(p->name, "Host") == 0;
    return n == 1 || (n == 0 && !x->needs_host);
}

/* The headers are there. True: answered, and not worth reading the body. */
static bool head(struct http_exchange *x)
{
    struct http_server *s = x->server;
    x->head_seen = true;
    set_deadline(x, s->opt.request_timeout_s, 0);
    if (!body_end_is_clear(x)) {
        http_set_header(x, "Connection", "close");
        reply_error(x, ERR_INVALID,
                    "the body's end must be given by one Content-Length, or by "
                    "Transfer-Encoding: chunked");
        return true;
    }
    if (!host_is_clear(x)) {
        http_set_header(x, "Connection", "close");
        reply_error(x, ERR_INVALID, "HTTP/1.1 wants one Host header");
        return true;
    }
    if (atomic_load(&s->draining) && strcmp(x->method, "GET") != 0 &&
        strcmp(x->method, "HEAD") != 0) {
        http_set_header(x, "Retry-After", "5");
        reply_error(x, ERR_BUSY, "the node is shutting down");
        return false;
    }
    if (s->cors_origin != NULL && strcmp(x->method, "OPTIONS") == 0) {
        /* OpenAI's own client sends a dozen (x-stainless-...), and others have theirs: what we
         * don't know we don't read. Not "*", which doesn't stand for Authorization (Fetch
         * standard). */
        const char *asked = http_header(x, "Access-Control-Request-Headers");
        http_set_header(x, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
        http_set_header(x, "Access-Control-Allow-Headers",
                        asked != NULL ? asked : "authorization, content-type");
        http_set_header(x, "Access-Control-Max-Age", "600");
        http_reply_text(x, 204, NULL, "");
        return false;
    }
    /* MHD's own limit is on memory that a response needs, too, and only stops what has no end. */
    if (x->nul)
        reply_error(x, ERR_INVALID, "the path or the query has a NUL in it");
    else if (x->head_bytes > s->opt.max_header_bytes || x->n_headers > HEADERS_MAX)
        reply_status(x, 431, ERR_TOO_LARGE,
                     "the request has more headers than this server accepts");
    else if (s->opt.on_head != NULL)
        s->opt.on_head(s->opt.context, x);
    const char *length = http_header(x, "Content-Length");
    uint64_t n = length != NULL ? strtoull(length, NULL, 10) : 0;
    if (n <= x->body_max)
        return false;
    if (!replied(x)) {
        http_set_header(x, "Connection", "close");
        reply_error(x, ERR_TOO_LARGE, "the request body is larger than this server accepts");
    }
    return n - x->body_max > LINGER_BYTES;
}

static enum MHD_Result body_piece(struct http_exchange *x, const char *piece, size_t n)
{
    uint64_t before = x->body_seen;
    x->body_seen += n;
    set_deadline(x, x->server->opt.request_timeout_s, 0);
    /* From when the headers came: a trickle runs out of time, an honest upload doesn't. */
    atomic_store(&x->connection->deadline_us,
                 x->began.us + (x->server->opt.request_timeout_s * UINT64_C(1000000)) +
                     x->body_seen / MIN_RATE_BYTES_PER_S * 1000000);
    if (x->body_seen > x->body_max) {
        /* The answer can only be given after the body; read on for a while, but keep nothing. */
        buf_release(&x->body);
        return x->body_seen - x->body_max > LINGER_BYTES ? MHD_NO : MHD_YES;
    }
    if (replied(x))
        return MHD_YES;
    if (x->body_fd < 0) {
        buf_append(&x->body, piece, n);
        return MHD_YES;
    }
    for (size_t at = 0; at < n;) {
        ssize_t w = pwrite(x->body_fd, piece + at, n - at, (off_t)(before + at));
        if (w < 0 && errno == EINTR)
            continue;
        if (w <= 0) {
            log_error("http", "cannot store an upload from %s: %s", x->peer, strerror(errno));
            return MHD_NO;
        }
        at += (size_t)w;
    }
    return MHD_YES;
}

static enum MHD_Result on_access(void *context, struct MHD_Connection *mhd, const char *url,
                                 const char *method, const char *version, const char *piece,
                                 size_t *piece_bytes, void **con_cls)
{
    struct http_server *s = context;
    struct http_exchange *x = *con_cls;
    if (x == NULL) {
        x = exchange_create(s, mhd, method, url, version);
        *con_cls = x;
        /* An early answer waits for the body all the same, which is thrown away: closing on unread
         * bytes resets the connection, and the client may lose the answer. Only a body that is too
         * large to wait for is refused at once. */
        return head(x) ? queue_or_sleep(x, false) : MHD_YES;
    }
    if (*piece_bytes > 0) {
        size_t n = *piece_bytes;
        *piece_bytes = 0;
        return body_piece(x, piece, n);
    }
    if (!x->handled) {
        x->handled = true;
        if (!replied(x) && x->body_seen > x->body_max)
            reply_error(x, ERR_TOO_LARGE, "the request body is larger than this server accepts");
        else if (!replied(x))
            s->opt.on_request(s->opt.context, x);
        /* References first: who held another has answered before it gave that back. */
        BUG_IF(atomic_load(&x->refs) == 1 && !replied(x) && !http_gone(x));
    }
    return queue_or_sleep(x, true);
}

static void on_mhd_log(void *context, const char *fmt, va_list args)
    __attribute__((format(printf, 2, 0)));
static void on_mhd_log(void *context, const char *fmt, va_list args)
{
    (void)context;
    char line[256];
    vsnprintf(line, sizeof line, fmt, args);
    line[strcspn(line, "\n")] = '\0';
    log_debug("http", "%s", line);
}

/* ---- the ticker --------------------------------------------------------------------------------
 */

static void wake_ready(struct http_server *s)
{
    pthread_mutex_lock(&s->ready_lock);
    struct http_exchange *list = s->ready;
    s->ready = NULL;
    for (struct http_exchange *x = list; x != NULL; x = x->ready_next)
        x->on_ready_list = false;
    /* From here a producer may put an exchange on the new list and overwrite ready_next, so the
     * chain is taken apart while the lock is held. */
    size_t n = 0, cap = 0;
    struct http_exchange **taken = NULL;
    for (struct http_exchange *x = list; x != NULL; x = x->ready_next) {
        if (n == cap) {
            cap = cap == 0 ? 64 : cap * 2;
            taken = xrealloc_array(taken, cap, sizeof(struct http_exchange *));
        }
        taken[n++] = x;
    }
    pthread_mutex_unlock(&s->ready_lock);
    for (size_t i = 0; i < n; i++) {
        wake(taken[i]);
        http_drop(taken[i]);
    }
    free(taken);
}

static void find_gone(struct http_server *s)
{
    size_t n = 0, cap = 0;
    struct pollfd *fds = NULL;
    struct http_exchange **owners = NULL;
    pthread_mutex_lock(&s->lock);
    for (struct http_exchange *x = s->exchanges; x != NULL; x = x->next) {
        pthread_mutex_lock(&x->lock);
        bool look = x->asleep;
        int fd = look ? x->connection->fd : -1;
        pthread_mutex_unlock(&x->lock);
        if (!look)
            continue;
        if (n == cap) {
            cap = cap == 0 ? 64 : cap * 2;
            fds = xrealloc_array(fds, cap, sizeof *fds);
            owners = xrealloc_array(owners, cap, sizeof(struct http_exchange *));
        }
        http_retain(x);
        fds[n] = (struct pollfd){.fd = fd, .events = POLLRDHUP};
        owners[n++] = x;
    }
    pthread_mutex_unlock(&s->lock);
    /* One that woke up and closed in the meantime may have lent its number to another connection:
     * asked again under the lock before anything is done. */
    if (n > 0 && poll(fds, (nfds_t)n, 0) > 0) {
        for (size_t i = 0; i < n; i++) {
            if ((fds[i].revents & (POLLRDHUP | POLLHUP | POLLERR)) == 0)
                continue;
            pthread_mutex_lock(&owners[i]->lock);
            bool gone = false;
            if (owners[i]->asleep) {
                struct pollfd again = {.fd = owners[i]->connection->fd, .events = POLLRDHUP};
                gone = poll(&again, 1, 0) > 0;
            }
            pthread_mutex_unlock(&owners[i]->lock);
            if (gone)
                cut(owners[i]);
        }
    }
    for (size_t i = 0; i < n; i++)
        http_drop(owners[i]);
    free(fds);
    free(owners);
}

static void enforce_deadlines(struct http_server *s)
{
    uint64_t now = now_us();
    pthread_mutex_lock(&s->conn_lock);
    for (struct conn *c = s->conns; c != NULL; c = c->next) {
        uint64_t deadline = atomic_load(&c->deadline_us);
        if (deadline != 0 && now > deadline) {
            atomic_store(&c->deadline_us, 0);
            shutdown(c->fd, SHUT_RDWR);
        }
    }
    pthread_mutex_unlock(&s->conn_lock);
}

static void *ticker_main(void *context)
{
    struct http_server *s = context;
    uint64_t next_poll = 0, next_deadlines = 0;
    for (;;) {
        pthread_mutex_lock(&s->ready_lock);
        if (s->ready == NULL && !s->stop_ticker) {
            struct timespec until;
            clock_gettime(CLOCK_MONOTONIC, &until);
            until.tv_nsec += POLL_GONE_US * 1000L;
            if (until.tv_nsec >= 1000000000) {
                until.tv_sec++;
                until.tv_nsec -= 1000000000;
            }
            pthread_cond_timedwait(&s->ready_cond, &s->ready_lock, &until);
        }
        bool stop = s->stop_ticker, ready = s->ready != NULL;
        pthread_mutex_unlock(&s->ready_lock);
        if (stop)
            return NULL;
        if (ready) {
            struct timespec tick = {0, (long)s->opt.tick_ms * 1000000};
            nanosleep(&tick, NULL);
            wake_ready(s);
        }
        uint64_t now = now_us();
        if (now >= next_poll) {
            find_gone(s);
            next_poll = now + POLL_GONE_US;
        }
        if (now >= next_deadlines) {
            enforce_deadlines(s);
            next_deadlines = now + DEADLINES_US;
        }
    }
}

/* ---- open and close ----------------------------------------------------------------------------
 */

static int read_tls(struct http_server *s, struct err *err)
{
    if (s->opt.tls_cert == NULL)
        return 0;
    if (s->opt.tls_key == NULL)
        return err_set(err, ERR_INVALID, "server.tls_cert needs server.tls_key");
    if (MHD_is_feature_supported(MHD_FEATURE_TLS) != MHD_YES)
        return err_set(err, ERR_UNSUPPORTED, "this libmicrohttpd was built without TLS");
    struct buf b = BUF_INIT;
    if (file_read(s->opt.tls_cert, 1 << 20, &b, err) != 0)
        goto fail;
    s->tls_cert = buf_detach(&b);
    if (file_read(s->opt.tls_key, 1 << 20, &b, err) != 0)
        goto fail;
    s->tls_key = buf_detach(&b);
    return 0;
fail:
    buf_release(&b);
    return -1;
}

static void set_defaults(struct http_options *o)
{
    if (o->n_threads <= 0)
        o->n_threads = 2;
    if (o->max_connections <= 0)
        o->max_connections = 4096;
    if (o->max_header_bytes == 0)
        o->max_header_bytes = 32 * 1024;
    if (o->max_body_bytes == 0)
        o->max_body_bytes = 4 << 20;
    if (o->stream_buffer_bytes == 0)
        o->stream_buffer_bytes = 256 * 1024;
    if (o->request_timeout_s == 0)
        o->request_timeout_s = 20;
    if (o->idle_timeout_s == 0)
        o->idle_timeout_s = 60;
    if (o->tick_ms == 0)
        o->tick_ms = 15;
}

static void server_free(struct http_server *s)
{
    if (s->listen_fd >= 0)
        close(s->listen_fd);
    free(s->cors_origin);
    free(s->url);
    free(s->tls_cert);
    free(s->tls_key);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->conn_lock);
    pthread_mutex_destroy(&s->ready_lock);
    pthread_cond_destroy(&s->ready_cond);
    free(s);
}

int http_open(struct http_server **out, const struct http_options *options, struct err *err)
{
    struct http_server *s = xcalloc(1, sizeof *s);
    s->opt = *options;
    set_defaults(&s->opt);
    s->listen_fd = -1;
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->conn_lock, NULL);
    pthread_mutex_init(&s->ready_lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->ready_cond, &attr);
    pthread_condattr_destroy(&attr);
    if (options->cors_origin != NULL && options->cors_origin[0] != '\0')
        s->cors_origin = xstrdup(options->cors_origin);
    if (http_listen_on(&s->opt, &s->listen_fd, &s->loopback, &s->url, err) != 0 ||
        read_tls(s, err) != 0)
        goto fail;
    struct MHD_OptionItem extra[8];
    int n = 0;
    if (s->opt.n_threads > 1)
        extra[n++] = (struct MHD_OptionItem){MHD_OPTION_THREAD_POOL_SIZE, s->opt.n_threads, NULL};
    if (s->opt.max_connections_per_ip > 0)
        extra[n++] = (struct MHD_OptionItem){MHD_OPTION_PER_IP_CONNECTION_LIMIT,
                                             s->opt.max_connections_per_ip, NULL};
    if (s->tls_cert != NULL) {
        extra[n++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_CERT, 0, s->tls_cert};
        extra[n++] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_KEY, 0, s->tls_key};
    }
    extra[n] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
    s->daemon = MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG |
            (s->tls_cert != NULL ? MHD_USE_TLS : 0),
        0, NULL, NULL, on_access, s, MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, s->listen_fd, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)s->opt.max_connections, MHD_OPTION_CONNECTION_TIMEOUT, s->opt.idle_timeout_s,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, s->opt.max_header_bytes + CHUNK_BYTES + 1024,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, s, MHD_OPTION_NOTIFY_CONNECTION, on_connection,
        s, MHD_OPTION_UNESCAPE_CALLBACK, unescape, NULL, MHD_OPTION_ARRAY, extra, MHD_OPTION_END);
    if (s->daemon == NULL) {
        err_set(err, ERR_IO, "libmicrohttpd would not start on %s%s", s->url,
                s->tls_cert != NULL ? " (are certificate and key PEM, and do they match?)" : "");
        goto fail;
    }
    if (pthread_create(&s->ticker, NULL, ticker_main, s) != 0) {
        MHD_stop_daemon(s->daemon);
        s->listen_fd = -1; /* closed with the daemon */
        err_set(err, ERR_NO_MEMORY, "cannot start the ticker thread of %s", s->url);
        goto fail;
    }
    *out = s;
    return 0;
fail:
    server_free(s);
    return -1;
}

const char *http_url(const struct http_server *s)
{
    return s->url;
}

bool http_is_loopback(const struct http_server *s)
{
    return s->loopback;
}

void http_drain(struct http_server *s)
{
    if (atomic_exchange(&s->draining, true))
        return;
    MHD_socket fd = MHD_quiesce_daemon(s->daemon);
    if (fd != MHD_INVALID_SOCKET)
        close(fd);
    s->listen_fd = -1;
}

size_t http_n_active(struct http_server *s)
{
    pthread_mutex_lock(&s->lock);
    size_t n = s->n_exchanges;
    pthread_mutex_unlock(&s->lock);
    return n;
}

size_t http_n_connections(struct http_server *s)
{
    pthread_mutex_lock(&s->conn_lock);
    size_t n = s->n_conns;
    pthread_mutex_unlock(&s->conn_lock);
    return n;
}

void http_close(struct http_server *s)
{
    if (s == NULL)
        return;
    http_drain(s);
    pthread_mutex_lock(&s->ready_lock);
    s->stop_ticker = true;
    pthread_cond_signal(&s->ready_cond);
    pthread_mutex_unlock(&s->ready_lock);
    pthread_join(s->ticker, NULL);
    wake_ready(s);
    /* After `closing` no exchange sleeps again: those that exist are cut here, later ones are born
     * cut. MHD refuses to stop while a connection is suspended. */
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    size_t n = 0;
    struct http_exchange **all = xcalloc(s->n_exchanges + 1, sizeof(struct http_exchange *));
    for (struct http_exchange *x = s->exchanges; x != NULL; x = x->next) {
        http_retain(x);
        all[n++] = x;
    }
    pthread_mutex_unlock(&s->lock);
    for (size_t i = 0; i < n; i++) {
        cut(all[i]);
        http_drop(all[i]);
    }
    free(all);
    MHD_stop_daemon(s->daemon);
    server_free(s);
}
