/* http_server: a small server inside a test, which says whatever a test's handler wants it to,
 * wrong things included. A thread for each connection; 127.0.0.1, a free port. */
#ifndef TRIBUTARY_TESTS_HTTP_SERVER_H
#define TRIBUTARY_TESTS_HTTP_SERVER_H

#include "tests/support.h"

#include "node/base/buf.h"

#include <arpa/inet.h>
#include <errno.h>
#include <jansson.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

struct server;

struct exchange { /* one request */
    struct server *server;
    int fd;
    struct buf head; /* request line and header, as text */
    struct buf body;
    char method[16], path[512];
    bool close; /* set by the handler: no further request on this connection */
};
typedef void exchange_handler(struct exchange *x);

enum { SERVER_CONNECTIONS_MAX = 512 };

struct server {
    exchange_handler *handler;
    void *context;
    int fd;
    uint16_t port;
    pthread_t listener, workers[SERVER_CONNECTIONS_MAX];
    _Atomic size_t n_connections, n_requests;
    _Atomic bool stopping;
};

/* Waits for events on fd; false when the server stops first. */
static inline bool server_wait(struct server *s, int fd, short events)
{
    while (!atomic_load(&s->stopping)) {
        struct pollfd p = {fd, events, 0};
        if (poll(&p, 1, 20) > 0)
            return true;
    }
    return false;
}

/* false: the other side has gone, or the server stops. */
static inline bool exchange_write(struct exchange *x, const void *bytes, size_t n)
{
    const char *p = bytes;
    while (n > 0) {
        if (!server_wait(x->server, x->fd, POLLOUT))
            return false;
        ssize_t w = send(x->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (w < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (w <= 0)
            return false;
        p += w;
        n -= (size_t)w;
    }
    return true;
}

static inline bool exchange_text(struct exchange *x, const char *text)
{
    return exchange_write(x, text, strlen(text));
}

/* A whole answer. headers: complete lines, or "". */
static inline void exchange_answer(struct exchange *x, int status, const char *headers,
                                   const void *body, size_t n)
{
    /* In one piece: a second small packet would wait for the first one's acknowledgement. */
    struct buf text = BUF_INIT;
    buf_appendf(&text, "HTTP/1.1 %d Status\r\nContent-Length: %zu\r\n%s\r\n", status, n, headers);
    buf_append(&text, body, n);
    if (!exchange_write(x, text.data, text.len))
        x->close = true;
    buf_release(&text);
}

/* The result of a JSON-RPC call; takes result. */
static inline void exchange_answer_rpc(struct exchange *x, const json_t *request, json_t *result)
{
    json_t *whole = json_pack("{s:s, s:O, s:o}", "jsonrpc", "2.0", "id",
                              json_object_get(request, "id"), "result", result);
    char *text = json_dumps(whole, 0);
    exchange_answer(x, 200, "Content-Type: application/json\r\n", text, strlen(text));
    free(text);
    json_decref(whole);
}

/* false when the other side closes, or the server stops, within ms. */
static inline bool exchange_sleep(struct exchange *x, int ms)
{
    for (; ms > 0 && !atomic_load(&x->server->stopping); ms -= 10) {
        struct pollfd p = {x->fd, POLLIN | POLLRDHUP, 0};
        if (poll(&p, 1, 10) > 0)
            return false;
    }
    return !atomic_load(&x->server->stopping);
}

/* The value of a request header, copied to out; "" when it isn't there. */
static inline const char *exchange_header(struct exchange *x, const char *name, char *out,
                                          size_t cap)
{
    size_t n = strlen(name);
    out[0] = '\0';
    for (const char *line = buf_cstr(&x->head); line != NULL && *line != '\0';) {
        const char *end = strstr(line, "\r\n");
        if (strncasecmp(line, name, n) == 0 && line[n] == ':') {
            const char *v = line + n + 1 + strspn(line + n + 1, " ");
            snprintf(out, cap, "%.*s", end == NULL ? 0 : (int)(end - v), v);
            break;
        }
        line = end == NULL ? NULL : end + 2;
    }
    return out;
}

static inline bool exchange_read(struct exchange *x, struct buf *in)
{
    char chunk[65536];
    if (!server_wait(x->server, x->fd, POLLIN))
        return false;
    ssize_t n = recv(x->fd, chunk, sizeof chunk, 0);
    if (n <= 0)
        return false;
    buf_append(in, chunk, (size_t)n);
    return true;
}

/* Reads one request; what was read beyond it stays in in. */
static inline bool exchange_receive(struct exchange *x, struct buf *in)
{
    const char *end;
    char length[32];
    while ((end = in->len == 0 ? NULL : strstr(buf_cstr(in), "\r\n\r\n")) == NULL) {
        if (!exchange_read(x, in))
            return false;
    }
    size_t n_head = (size_t)(end + 4 - buf_cstr(in));
    buf_reset(&x->head);
    buf_reset(&x->body);
    buf_append(&x->head, in->data, n_head);
    if (sscanf(buf_cstr(&x->head), "%15s %511s", x->method, x->path) != 2)
        return false;
    size_t n_body = strtoul(exchange_header(x, "Content-Length", length, sizeof length), NULL, 10);
    while (in->len < n_head + n_body) {
        if (!exchange_read(x, in))
            return false;
    }
    buf_append(&x->body, in->data + n_head, n_body);
    size_t rest = in->len - n_head - n_body;
    memmove(in->data, in->data + n_head + n_body, rest);
    in->len = rest;
    in->data[rest] = '\0';
    return true;
}

static inline void *server_worker(void *arg)
{
    struct exchange *x = arg;
    struct buf in = BUF_INIT;
    while (!x->close && exchange_receive(x, &in)) {
        atomic_fetch_add(&x->server->n_requests, 1);
        x->server->handler(x);
    }
    shutdown(x->fd, SHUT_RDWR);
    close(x->fd);
    buf_release(&in);
    buf_release(&x->head);
    buf_release(&x->body);
    free(x);
    return NULL;
}

static inline void *server_listen(void *arg)
{
    struct server *s = arg;
    while (server_wait(s, s->fd, POLLIN)) {
        int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        size_t i = atomic_load(&s->n_connections);
        struct exchange *x = xcalloc(1, sizeof *x);
        *x = (struct exchange){.server = s, .fd = fd};
        if (i == SERVER_CONNECTIONS_MAX)
            abort();
        /* Counted before it can answer: who has its answer sees it in the count. */
        atomic_store(&s->n_connections, i + 1);
        if (pthread_create(&s->workers[i], NULL, server_worker, x))
            abort();
    }
    return NULL;
}

static inline struct server *server_start(exchange_handler *handler, void *context)
{
    struct server *s = xcalloc(1, sizeof *s);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof at;
    signal(SIGPIPE, SIG_IGN);
    s->handler = handler;
    s->context = context;
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s->fd < 0 || bind(s->fd, (struct sockaddr *)&at, sizeof at) != 0 ||
        listen(s->fd, 64) != 0 || getsockname(s->fd, (struct sockaddr *)&at, &n) != 0 ||
        pthread_create(&s->listener, NULL, server_listen, s) != 0)
        fail_msg("cannot start a server on 127.0.0.1: %s", strerror(errno));
    s->port = ntohs(at.sin_port);
    return s;
}

static inline void server_stop(struct server *s)
{
    if (s == NULL)
        return;
    atomic_store(&s->stopping, true);
    pthread_join(s->listener, NULL);
    for (size_t i = 0; i < atomic_load(&s->n_connections); i++)
        pthread_join(s->workers[i], NULL);
    close(s->fd);
    free(s);
}

#endif
