/* http_answer: from an answer to the socket; see http.c for sleeping, waking and what was written.
 *
 * Any thread may call what is here; MHD calls read_stream on the connection's own. */
#include "node/http_internal.h"

#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"

#include <stdlib.h>
#include <string.h>

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

void exchange_tell(struct http_exchange *x, enum http_event event)
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

void exchange_wake(struct http_exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool resume = x->asleep;
    x->asleep = false;
    struct MHD_Connection *mhd = x->mhd;
    pthread_mutex_unlock(&x->lock);
    if (resume)
        MHD_resume_connection(mhd);
}

void exchange_cut(struct http_exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool was = x->cut;
    x->cut = true;
    pthread_mutex_unlock(&x->lock);
    if (!was)
        exchange_tell(x, HTTP_GONE);
    exchange_wake(x);
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

void exchange_set_deadline(struct http_exchange *x, uint64_t seconds, uint64_t n_bytes)
{
    atomic_store(&x->connection->deadline_us,
                 http_now_us() + (seconds + n_bytes / HTTP_MIN_RATE_BYTES_PER_S) * 1000000);
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
            exchange_set_deadline(x, s->opt.idle_timeout_s, n_bytes);
    }
    pthread_mutex_unlock(&x->lock);
    if (late)
        MHD_destroy_response(response);
    else
        exchange_wake(x);
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
        exchange_tell(x, HTTP_DRAINED);
    return n;
}

static void drop_stream(void *context)
{
    http_drop(context);
}

void http_stream_begin(struct http_exchange *x, unsigned status, const char *content_type)
{
    http_retain(x);
    struct MHD_Response *r = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, HTTP_CHUNK_BYTES,
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
        exchange_cut(x);
        return false;
    }
    if (alive && urgent)
        exchange_wake(x);
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
        exchange_set_deadline(x, x->server->opt.idle_timeout_s, x->out.len - x->out_at);
    pthread_mutex_unlock(&x->lock);
    exchange_wake(x);
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
            exchange_set_deadline(x, x->server->opt.idle_timeout_s, x->out.len - x->out_at);
    }
    pthread_mutex_unlock(&x->lock);
    if (!done)
        exchange_wake(x);
    return done;
}

bool http_gone(struct http_exchange *x)
{
    pthread_mutex_lock(&x->lock);
    bool gone = x->cut || x->mhd == NULL;
    pthread_mutex_unlock(&x->lock);
    return gone;
}
