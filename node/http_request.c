/* http_request: from a connection to a request, and the request's own questions.
 *
 * MHD parses; what it takes and two readers could take differently is refused here (head), and what
 * a request costs before it is whole is bounded: bytes of the head, of the body, and time.
 *
 * What MHD refuses by itself, before it calls us, it refuses in HTML: a line of the head that can't
 * be parsed, an HTTP version that there isn't, a Content-Length that is no number, broken chunks, a
 * head beyond its memory. It has no hook for those bodies (0.9.75), and nobody's client sends such
 * requests by accident but the last: that memory is HTTP_CHUNK_BYTES larger than max_header_bytes,
 * so that a head that is somewhat too long meets our own 431, in JSON. */
#include "node/http_internal.h"

#include "node/base/err.h"
#include "node/base/log.h"
#include "node/base/random.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum {
    HEADERS_MAX = 100,
    LINGER_BYTES = 16 << 20, /* of a body over its limit that are read, so that the 413 arrives */
};

/* ---- the request -------------------------------------------------------------------------------
 */

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

void http_body_limit(struct http_exchange *x, uint64_t max_bytes)
{
    BUG_IF(x->body_seen > 0 || x->handled);
    if (max_bytes < x->body_max)
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

/* ---- what MHD calls ----------------------------------------------------------------------------
 */

/* Decodes %HH. For everybody here a text ends with its first NUL: what %00 cuts off would be passed
 * over in silence. */
size_t mhd_unescape(void *context, struct MHD_Connection *mhd, char *s)
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
    struct copy_pairs *c = context;
    if (++c->n > HEADERS_MAX)
        return MHD_NO;
    struct pair *p = arena_alloc(&c->x->arena, sizeof *p);
    if (value == NULL)
        value = "";
    size_t n = strlen(value);
    /* RFC 9110, 5.5: white space around a field's value isn't of it. MHD leaves out what is before,
     * not what is behind. */
    while (kind == MHD_HEADER_KIND && n > 0 && (value[n - 1] == ' ' || value[n - 1] == '\t'))
        n--;
    p->name = arena_strdup(&c->x->arena, name != NULL ? name : "");
    p->value = arena_strndup(&c->x->arena, value, n);
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
    x->is_http_1_1 = strcmp(version, MHD_HTTP_VERSION_1_1) == 0;
    x->peer = arena_strdup(&x->arena, x->connection->peer->text);
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

void mhd_on_completed(void *context, struct MHD_Connection *mhd, void **con_cls,
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
                 http_now_us() +
                     (s->opt.idle_timeout_s + s->opt.request_timeout_s) * UINT64_C(1000000));
    pthread_mutex_unlock(&x->lock);
    if (unused != NULL)
        MHD_destroy_response(unused);
    if (broken)
        exchange_tell(x, HTTP_GONE);
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

/* RFC 9110, 5.1: a field's name is a token; RFC 9112, 5.1: with white space before its colon it is
 * refused. To MHD "Content-Length " is another name, and the body another request; to a proxy it
 * may be the length. */
static bool names_are_clear(const struct http_exchange *x)
{
    for (const struct pair *p = x->headers; p != NULL; p = p->next) {
        for (const char *c = p->name; *c != '\0'; c++) {
            bool letter = (*c | 0x20) >= 'a' && (*c | 0x20) <= 'z', digit = *c >= '0' && *c <= '9';
            if (!letter && !digit && strchr("!#$%&'*+-.^_`|~", *c) == NULL)
                return false;
        }
    }
    return true;
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
    if (n_lengths + n_codings != 1)
        return n_lengths + n_codings == 0;
    /* As MHD has it: with a space behind it, it doesn't know the word. */
    const char *coding = MHD_lookup_connection_value(x->mhd, MHD_HEADER_KIND, "Transfer-Encoding");
    return n_codings == 0 || (coding != NULL && strcasecmp(coding, "chunked") == 0);
}

/* RFC 9112, 3.2: HTTP/1.1 names its host, and nobody names two: who stands between might have gone
 * by the other. */
static bool host_is_clear(const struct http_exchange *x)
{
    int n = 0;
    for (const struct pair *p = x->headers; p != NULL; p = p->next)
        n += strcasecmp(p->name, "Host") == 0;
    return n == 1 || (n == 0 && !x->is_http_1_1);
}

/* RFC 9110, 10.1.1: the client waits for our word before it sends the body. */
static bool asks_first(const struct http_exchange *x)
{
    const char *expect = http_header(x, "Expect");
    return x->is_http_1_1 && expect != NULL && strcasecmp(expect, "100-continue") == 0;
}

/* The headers are there. True: answered, and not worth reading the body. */
static bool head(struct http_exchange *x)
{
    struct http_server *s = x->server;
    x->head_seen = true;
    exchange_set_deadline(x, s->opt.request_timeout_s, 0);
    if (!names_are_clear(x)) {
        http_set_header(x, "Connection", "close");
        reply_error(x, ERR_INVALID,
                    "a header's name must be a token, with no white space before its colon");
        return true;
    }
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
    exchange_set_deadline(x, x->server->opt.request_timeout_s, 0);
    /* From when the headers came: a trickle runs out of time, an honest upload doesn't. */
    atomic_store(&x->connection->deadline_us,
                 x->began.us + (x->server->opt.request_timeout_s * UINT64_C(1000000)) +
                     x->body_seen / HTTP_MIN_RATE_BYTES_PER_S * 1000000);
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

enum MHD_Result mhd_on_access(void *context, struct MHD_Connection *mhd, const char *url,
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
         * large to wait for is refused at once, and one that the client asks about before it sends
         * it. */
        bool at_once = head(x) || (replied(x) && asks_first(x));
        return at_once ? queue_or_sleep(x, false) : MHD_YES;
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
