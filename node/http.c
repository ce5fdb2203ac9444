/* http: see http.h. Here is the whole picture, and the server's own life: opening, closing, what
 * happens by the clock. http_accept.c and http_request.c have the way in, http_answer.c the way
 * out.
 *
 * A pool of loops, each an MHD daemon with one epoll thread, and a thread that hands them
 * connections. An exchange moves through
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
#include "node/http_internal.h"

#include "node/base/err.h"
#include "node/base/log.h"
#include "node/http_address.h"

#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    POLL_GONE_US = 100 * 1000, /* how often sleeping sockets are looked at */
    DEADLINES_US = 250 * 1000, /* how often deadlines are looked at */
};

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
        exchange_wake(taken[i]);
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
                exchange_cut(owners[i]);
        }
    }
    for (size_t i = 0; i < n; i++)
        http_drop(owners[i]);
    free(fds);
    free(owners);
}

static void enforce_deadlines(struct http_server *s)
{
    uint64_t now = http_now_us();
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
        uint64_t now = http_now_us();
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

static void ticker_stop(struct http_server *s)
{
    pthread_mutex_lock(&s->ready_lock);
    s->stop_ticker = true;
    pthread_cond_signal(&s->ready_cond);
    pthread_mutex_unlock(&s->ready_lock);
    pthread_join(s->ticker, NULL);
}

/* ---- open and close ----------------------------------------------------------------------------
 */

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

/* One of the loops. It neither listens nor limits: http_accept.c does. */
static struct MHD_Daemon *loop_start(struct http_server *s)
{
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_MEM_CERT, 0, s->tls_cert},
        {MHD_OPTION_HTTPS_MEM_KEY, 0, s->tls_key},
        {MHD_OPTION_END, 0, NULL},
    };
    return MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD | MHD_USE_NO_LISTEN_SOCKET | MHD_ALLOW_SUSPEND_RESUME |
            MHD_USE_ERROR_LOG | (s->tls_cert != NULL ? MHD_USE_TLS : 0),
        0, NULL, NULL, mhd_on_access, s, MHD_OPTION_EXTERNAL_LOGGER, on_mhd_log, NULL,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)INT_MAX, MHD_OPTION_CONNECTION_TIMEOUT,
        s->opt.idle_timeout_s, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        s->opt.max_header_bytes + HTTP_CHUNK_BYTES + 1024, MHD_OPTION_NOTIFY_COMPLETED,
        mhd_on_completed, s, MHD_OPTION_NOTIFY_CONNECTION, mhd_on_connection, s,
        MHD_OPTION_UNESCAPE_CALLBACK, mhd_unescape, NULL, MHD_OPTION_ARRAY,
        s->tls_cert != NULL ? tls : tls + 2, MHD_OPTION_END);
}

static void server_free(struct http_server *s)
{
    http_accept_stop(s);
    for (int i = 0; i < s->opt.n_threads && s->loops[i].daemon != NULL; i++)
        MHD_stop_daemon(s->loops[i].daemon);
    http_accept_release(s);
    free(s->loops);
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
    s->listen_fd = s->accept_wake = -1;
    s->loops = xcalloc((size_t)s->opt.n_threads, sizeof *s->loops);
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
    for (int i = 0; i < s->opt.n_threads; i++) {
        s->loops[i].daemon = loop_start(s);
        if (s->loops[i].daemon == NULL) {
            err_set(err, ERR_IO, "libmicrohttpd would not start on %s%s", s->url,
                    s->tls_cert != NULL ? " (are certificate and key PEM, and do they match?)"
                                        : "");
            goto fail;
        }
    }
    if (pthread_create(&s->ticker, NULL, ticker_main, s) != 0) {
        err_set(err, ERR_NO_MEMORY, "cannot start the ticker thread of %s", s->url);
        goto fail;
    }
    if (http_accept_start(s, err) != 0) {
        ticker_stop(s);
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
    http_accept_stop(s);
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
    ticker_stop(s);
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
        exchange_cut(all[i]);
        http_drop(all[i]);
    }
    free(all);
    server_free(s);
}
