/* The HTTP server against raw sockets: limits, keep-alive, pipelining, streams, vanished clients.
 */
#include "tests/support.h"

#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/http.h"
#include "node/api_error.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* ---- a server whose paths are the cases ---------------------------------------------------------
 */

struct world {
    struct http_server *server;
    _Atomic int n_requests, n_done, n_gone, n_drained;
    _Atomic uint64_t last_written;
    _Atomic bool stop_producer;
    struct http_exchange *kept;           /* of /later and /stream */
    struct http_exchange *_Atomic handed; /* of /handed, for another thread to answer */
    pthread_t server_thread;              /* that handed it */
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

static void on_event(void *user, enum http_event event)
{
    struct world *w = user;
    pthread_mutex_lock(&w->lock);
    if (event == HTTP_GONE)
        w->n_gone++;
    else
        w->n_drained++;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

enum { HANDED_US = 4 };

static void spin_us(unsigned us)
{
    for (struct monotonic_us began = clock_monotonic_us();
         clock_elapsed_us(began, clock_monotonic_us()) < us;)
        ;
}

static void on_request(void *context, struct http_exchange *x)
{
    struct world *w = context;
    const char *path = http_path(x);
    size_t n;
    const char *body = http_body(x, &n);
    w->n_requests++;
    if (strcmp(path, "/echo") == 0) {
        struct buf b = BUF_INIT;
        const char *q = http_query(x, "q");
        buf_appendf(&b, "%s %s|", http_method(x), q != NULL ? q : "");
        buf_append(&b, body, n);
        http_reply(x, 200, "text/plain", &b);
    } else if (strcmp(path, "/busy") == 0) {
        struct api_error e = {.retry_after_s = (unsigned)atoi(http_query(x, "after"))};
        api_error_set(&e, ERR_BUSY, NULL, "not now");
        api_error_reply(x, &e);
    } else if (strcmp(path, "/header") == 0) {
        struct buf b = BUF_INIT;
        const char *a = http_header(x, "X-A");
        buf_appendf(&b, "[%s]", a != NULL ? a : "none");
        http_reply(x, 200, "text/plain", &b);
    } else if (strcmp(path, "/big") == 0) {
        struct buf b = BUF_INIT;
        for (int i = 0; i < 1 << 20; i++)
            buf_append_byte(&b, (uint8_t)('a' + i % 26));
        http_reply(x, 200, "text/plain", &b);
    } else if (strcmp(path, "/handed") == 0) {
        http_retain(x);
        w->server_thread = pthread_self();
        atomic_store(&w->handed, x);
        spin_us(HANDED_US);
    } else if (strcmp(path, "/later") == 0 || strcmp(path, "/stream") == 0) {
        http_retain(x);
        http_listen(x, on_event, w);
        if (path[1] == 's')
            http_stream_begin(x, 200, "text/event-stream");
        pthread_mutex_lock(&w->lock);
        w->kept = x;
        pthread_cond_broadcast(&w->changed);
        pthread_mutex_unlock(&w->lock);
    } else {
        http_reply_text(x, 404, "text/plain", "no");
    }
}

static void on_head(void *context, struct http_exchange *x)
{
    (void)context;
    if (strcmp(http_path(x), "/forbidden") == 0)
        http_reply_text(x, 403, "text/plain", "never");
}

static void on_done(void *context, struct http_exchange *x, unsigned status, uint64_t us)
{
    (void)x;
    (void)status;
    (void)us;
    struct world *w = context;
    w->n_done++;
}

static struct world *world_open(struct http_options *o)
{
    struct world *w = xcalloc(1, sizeof *w);
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    o->listen = "127.0.0.1:0";
    o->on_head = on_head;
    o->on_request = on_request;
    o->on_done = on_done;
    o->context = w;
    struct err err = {0};
    assert_ok(http_open(&w->server, o, &err), err);
    return w;
}

static void world_close(struct world *w)
{
    http_close(w->server);
    if (w->kept != NULL) {
        http_unlisten(w->kept);
        http_drop(w->kept);
    }
    free(w);
}

static struct http_exchange *wait_kept(struct world *w)
{
    pthread_mutex_lock(&w->lock);
    while (w->kept == NULL)
        pthread_cond_wait(&w->changed, &w->lock);
    struct http_exchange *x = w->kept;
    pthread_mutex_unlock(&w->lock);
    return x;
}

/* Waits at most two seconds. */
static bool wait_for(_Atomic int *counter, int value)
{
    for (int i = 0; i < 400 && atomic_load(counter) < value; i++)
        usleep(5000);
    return atomic_load(counter) >= value;
}

/* ---- a client made of bytes ---------------------------------------------------------------------
 */

static int port_of(struct world *w)
{
    return atoi(strrchr(http_url(w->server), ':') + 1);
}

/* Calls 127.0.0.1, from 127.0.0.caller. */
static bool call(int fd, int port, uint32_t caller)
{
    struct sockaddr_in from = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK - 1 + caller)};
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return (caller == 1 || bind(fd, (struct sockaddr *)&from, sizeof from) == 0) &&
           connect(fd, (struct sockaddr *)&to, sizeof to) == 0;
}

static int dial_from(struct world *w, uint32_t caller)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(call(fd, port_of(w), caller));
    return fd;
}

static int dial(struct world *w)
{
    return dial_from(w, 1);
}

static void say(int fd, const char *text)
{
    size_t n = strlen(text);
    if (send(fd, text, n, MSG_NOSIGNAL) != (ssize_t)n)
        fail_msg("cannot send");
}

/* Reads until what came contains `until`, or the end, or two seconds of silence. */
static void hear(int fd, struct buf *out, const char *until)
{
    for (;;) {
        if (until != NULL && strstr(buf_cstr(out), until) != NULL)
            return;
        struct pollfd p = {fd, POLLIN, 0};
        int ready = poll(&p, 1, 2000);
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0)
            return;
        char piece[4096];
        ssize_t n = recv(fd, piece, sizeof piece, 0);
        if (n <= 0)
            return;
        buf_append(out, piece, (size_t)n);
    }
}

static bool ends(int fd) /* the server closes within four seconds */
{
    char piece[4096];
    for (;;) {
        struct pollfd p = {fd, POLLIN, 0};
        if (poll(&p, 1, 4000) <= 0)
            return false;
        if (recv(fd, piece, sizeof piece, 0) <= 0)
            return true;
    }
}

static bool is_silent(int fd) /* for a tenth of a second */
{
    struct pollfd p = {fd, POLLIN, 0};
    return poll(&p, 1, 100) == 0;
}

static void expect(const char *what, struct buf *got, const char *part)
{
    if (strstr(buf_cstr(got), part) == NULL)
        fail_msg("%s: expected \"%s\" in:\n%s", what, part, buf_cstr(got));
}

/* Of a connection of its own: the answer's head has that part. */
static void expect_head(struct world *w, const char *request, const char *part)
{
    struct buf got = BUF_INIT;
    int fd = dial(w);
    say(fd, request);
    hear(fd, &got, "\r\n\r\n");
    expect(request, &got, part);
    buf_release(&got);
    close(fd);
}

/* ---- tests -------------------------------------------------------------------------------------
 */

static void requests_are_answered_or_refused_by_rule(void **state)
{
    (void)state;
    static const struct {
        const char *request, *answer, *why;
    } rows[] = {
        {"GET /echo?q=a%20b HTTP/1.1\r\nHost: x\r\n\r\n", "GET a b|", "query is decoded"},
        {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", "POST |hello", "body"},
        {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
         "chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n"
         "0\r\n\r\n",
         "POST |abcde", "chunked body"},
        {"GET /none HTTP/1.1\r\nHost: x\r\n\r\n", "404", "unknown path"},
        {"GET http://x:80/echo?q=whole HTTP/1.1\r\nHost: x\r\n\r\n", "GET whole|", "absolute form"},
        {"GET HTTPS://x/none HTTP/1.1\r\nHost: x\r\n\r\n", "404", "absolute form, unknown path"},
        {"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", "404", "absolute form without a path"},
        {"GET /echo HTTP/1.1\r\n\r\n", "400", "no Host"},
        {"GET /echo HTTP/1.1\r\nHost: x\r\nhost: y\r\n\r\n", "400", "two Hosts"},
        {"POST /echo HTTP/1.1\r\nContent-Length: 2\r\n\r\nab", "one Host", "no Host, a body"},
        {"GET /echo?q=old HTTP/1.0\r\n\r\n", "GET old|", "HTTP/1.0 needs no Host"},
        {"GET /echo%00 HTTP/1.1\r\nHost: x\r\n\r\n", "400", "a NUL in the path"},
        {"GET /ec%00ho HTTP/1.1\r\nHost: x\r\n\r\n", "400", "a NUL in the path"},
        {"POST /echo?q=a%00b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab", "has a NUL",
         "a NUL in the query"},
        {"GET /echo?q%00r=a HTTP/1.1\r\nHost: x\r\n\r\n", "400", "a NUL in a parameter's name"},
        {"GET /echo?q=%2500%3 HTTP/1.1\r\nHost: x\r\n\r\n", "GET %00%3|", "decoded once"},
        {"GET /%00 HTTP/1.1\r\nHost: x\r\n\r\nGET /echo HTTP/1.1\r\nHost: x\r\n\r\n", "GET |",
         "the next one has none"},
        {"POST /forbidden HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", "never",
         "refused by its head, answered after its body"},
        {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n", "413",
         "declared far too large: refused before it is sent"},
        {"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n", "x-request-id: 0x", "request id"},
        {"GET /header HTTP/1.1\r\nHost: x\r\nX-A: \t a  b \t \r\n\r\n", "[a  b]",
         "white space around a field's value isn't of it"},
        {"GET /header HTTP/1.1\r\nHost: x\r\nX-A: \t \r\n\r\n", "[]", "nothing but white space"},
        {"GET /header HTTP/1.1\r\nHost: x \r\nx-a:b\r\n\r\n", "[b]", "nor need there be any"},
    };
    struct http_options o = {.max_body_bytes = 4096};
    struct world *w = world_open(&o);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct buf got = BUF_INIT;
        int fd = dial(w);
        say(fd, rows[i].request);
        hear(fd, &got, rows[i].answer);
        expect(rows[i].why, &got, rows[i].answer);
        buf_release(&got);
        close(fd);
    }
    world_close(w);
}

/* What comes after such a request on its connection may be meant as its body. */
static void a_body_without_a_clear_end_is_refused_and_the_connection_closed(void **state)
{
    (void)state;
    static const char *const rows[] = {
        "Content-Length: 5\r\nContent-Length: 2\r\n\r\nhello",
        "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "transfer-encoding: identity\r\n\r\nhello",
        "Transfer-Encoding: chunked \r\n\r\n0\r\n\r\n", /* which MHD doesn't know */
        "Content-Length : 5\r\n\r\nhello",              /* nor these names */
        "Content-Length\t: 5\r\n\r\nhello",
        "Content-Length: 2\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Content Length: 5\r\n\r\nhello",
        "X-\x01: a\r\n\r\n",
        "X-\xC3\xA9: a\r\n\r\n",
        "X(a): a\r\n\r\n",
    };
    struct http_options o = {0};
    struct world *w = world_open(&o);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct buf got = BUF_INIT, request = BUF_INIT;
        buf_appendf(&request, "POST /echo HTTP/1.1\r\nHost: x\r\n%s", rows[i]);
        buf_append_str(&request, "GET /echo?q=next HTTP/1.1\r\nHost: x\r\n\r\n");
        int fd = dial(w);
        say(fd, buf_cstr(&request)); /* at once: the connection ends while one would say more */
        hear(fd, &got, "next|");
        expect(rows[i], &got, "HTTP/1.1 400");
        assert_int_equal(w->n_requests, 0);
        if (!ends(fd))
            fail_msg("%s: the connection stays open", rows[i]);
        buf_release(&request);
        buf_release(&got);
        close(fd);
    }
    world_close(w);
}

/* RFC 9110, 10.1.1: who asks before it sends a body is told to send it, or the answer. */
static void who_asks_before_sending_a_body_is_not_made_to_send_one_in_vain(void **state)
{
    (void)state;
    static const struct {
        const char *path, *length, *answer, *second;
    } rows[] = {
        {"/echo", "3", "HTTP/1.1 100 Continue\r\n\r\n", "POST |abc"},
        {"/forbidden", "3", "HTTP/1.1 403", NULL},
        {"/echo", "5000", "HTTP/1.1 413", NULL},
    };
    struct http_options o = {.max_body_bytes = 4096};
    struct world *w = world_open(&o);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct buf got = BUF_INIT, request = BUF_INIT;
        buf_appendf(&request,
                    "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %s\r\n"
                    "Expect: 100-Continue\r\n\r\n",
                    rows[i].path, rows[i].length);
        int fd = dial(w);
        say(fd, buf_cstr(&request));
        hear(fd, &got, rows[i].answer);
        if (strncmp(buf_cstr(&got), rows[i].answer, strlen(rows[i].answer)) != 0)
            fail_msg("%s of %s bytes: expected \"%s\" first in:\n%s", rows[i].path, rows[i].length,
                     rows[i].answer, buf_cstr(&got));
        if (rows[i].second != NULL) {
            say(fd, "abc");
            hear(fd, &got, rows[i].second);
            expect(rows[i].path, &got, rows[i].second);
        } else if (!ends(fd)) {
            fail_msg("%s: the connection stays open, and what follows might be the body",
                     buf_cstr(&got));
        }
        buf_release(&request);
        buf_release(&got);
        close(fd);
    }
    world_close(w);
}

static void a_chunked_body_over_the_limit_is_refused(void **state)
{
    (void)state;
    struct http_options o = {.max_body_bytes = 1024};
    struct world *w = world_open(&o);
    int fd = dial(w);
    say(fd, "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    char chunk[600];
    memset(chunk, 'x', sizeof chunk);
    for (int i = 0; i < 4; i++) {
        say(fd, "200\r\n");
        assert_int_equal(send(fd, chunk, 512, MSG_NOSIGNAL), 512);
        say(fd, "\r\n");
    }
    say(fd, "0\r\n\r\n");
    struct buf got = BUF_INIT;
    hear(fd, &got, "\r\n\r\n");
    expect("2,048 bytes in chunks", &got, "413");
    buf_release(&got);
    close(fd);
    world_close(w);
}

static void headers_over_the_limit_are_refused(void **state)
{
    (void)state;
    struct http_options o = {.max_header_bytes = 4096};
    struct world *w = world_open(&o);
    int fd = dial(w);
    say(fd, "GET /echo HTTP/1.1\r\nHost: x\r\n");
    char line[1024];
    memset(line, 'h', sizeof line);
    memcpy(line, "X-A: ", 5);
    memcpy(line + 1020, "\r\n", 3);
    for (int i = 0; i < 64; i++) {
        if (send(fd, line, 1022, MSG_NOSIGNAL) < 0)
            break;
    }
    struct buf got = BUF_INIT;
    hear(fd, &got, "\r\n\r\n");
    if (got.len > 0) /* the connection may have been reset before the answer was read */
        expect("64 KiB of headers", &got, "431");
    assert_int_equal(w->n_requests, 0);
    close(fd);
    /* A little over the limit, and small ones without number. */
    for (int few = 0; few < 2; few++) {
        struct buf request = BUF_INIT;
        buf_append_str(&request, "GET /echo HTTP/1.1\r\nHost: x\r\n");
        for (int i = 0; i < (few ? 4 : 100); i++)
            buf_appendf(&request, "X-%d: %.*s\r\n", i, few ? 1012 : 1, line + 5);
        buf_append_str(&request, "\r\n");
        fd = dial(w);
        buf_reset(&got);
        say(fd, buf_cstr(&request));
        hear(fd, &got, "accepts\"");
        expect(few ? "4 KiB and a little of headers" : "101 headers", &got, "431");
        assert_int_equal(w->n_requests, 0);
        close(fd);
        buf_release(&request);
    }
    buf_release(&got);
    world_close(w);
}

static void a_page_of_the_allowed_origin_may_send_and_read_what_a_client_needs(void **state)
{
    (void)state;
    static const struct {
        const char *request, *answer;
    } rows[] = {
        {"OPTIONS /echo HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\n"
         "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: "
         "authorization,content-type,x-stainless-lang\r\n\r\n",
         "Access-Control-Allow-Headers: authorization,content-type,x-stainless-lang\r\n"},
        {"OPTIONS /echo HTTP/1.1\r\nHost: x\r\n\r\n",
         "Access-Control-Allow-Headers: authorization, content-type\r\n"},
        {"GET /echo HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\n\r\n",
         "Access-Control-Allow-Origin: https://a.example\r\n"},
        {"GET /none HTTP/1.1\r\nHost: x\r\nOrigin: https://a.example\r\n\r\n",
         "Access-Control-Expose-Headers: x-request-id, retry-after\r\n"},
    };
    struct http_options o = {.cors_origin = "https://a.example"};
    struct world *w = world_open(&o);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        expect_head(w, rows[i].request, rows[i].answer);
    world_close(w);
}

static void whoever_is_to_come_back_hears_when(void **state)
{
    (void)state;
    static const struct {
        const char *request, *answer;
    } rows[] = {
        {"GET /busy?after=0 HTTP/1.1\r\nHost: x\r\n\r\n", "\r\nRetry-After: 2\r\n"},
        {"GET /busy?after=7 HTTP/1.1\r\nHost: x\r\n\r\n", "\r\nRetry-After: 7\r\n"},
    };
    struct world *w = world_open(&(struct http_options){0});
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        expect_head(w, rows[i].request, rows[i].answer);
    world_close(w);
}

static void pipelined_requests_are_answered_in_order(void **state)
{
    (void)state;
    struct http_options o = {0};
    struct world *w = world_open(&o);
    int fd = dial(w);
    say(fd, "GET /echo?q=1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /echo?q=2 HTTP/1.1\r\nHost: x\r\n"
            "Content-Length: 1\r\n\r\nzGET /echo?q=3 HTTP/1.1\r\nHost: x\r\n\r\n");
    struct buf got = BUF_INIT;
    hear(fd, &got, "GET 3|");
    const char *first = strstr(buf_cstr(&got), "GET 1|"),
               *second = strstr(buf_cstr(&got), "POST 2|z"),
               *third = strstr(buf_cstr(&got), "GET 3|");
    if (first == NULL || second == NULL || third == NULL || first > second || second > third)
        fail_msg("three answers in order expected, got:\n%s", buf_cstr(&got));
    buf_release(&got);
    close(fd);
    world_close(w);
}

static void a_request_that_trickles_is_cut_off(void **state)
{
    (void)state;
    static const char *const beginnings[] = {
        "GET /echo HTTP/1.1\r\nX: ",
        "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
    };
    struct http_options o = {.request_timeout_s = 1, .idle_timeout_s = 30};
    struct world *w = world_open(&o);
    for (size_t i = 0; i < 2; i++) {
        int fd = dial(w);
        say(fd, beginnings[i]);
        struct monotonic_us began = clock_monotonic_us();
        bool closed = false;
        for (int k = 0; k < 40 && !closed; k++) { /* one byte each 100 ms, never silent */
            usleep(100000);
            struct pollfd p = {fd, POLLRDHUP | POLLIN, 0};
            closed = send(fd, "a", 1, MSG_NOSIGNAL) < 0 ||
                     (poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP)) != 0);
        }
        uint64_t ms = clock_elapsed_us(began, clock_monotonic_us()) / 1000;
        if (!closed)
            fail_msg("case %zu: still open after %llu ms, limit 1,000", i, (unsigned long long)ms);
        close(fd);
    }
    assert_int_equal(w->n_requests, 0);
    world_close(w);
}

static void an_answer_may_come_from_another_thread_later(void **state)
{
    (void)state;
    struct http_options o = {0};
    struct world *w = world_open(&o);
    int fd = dial(w);
    say(fd, "GET /later HTTP/1.1\r\nHost: x\r\n\r\n");
    struct http_exchange *x = wait_kept(w);
    usleep(50000);
    http_reply_text(x, 200, "text/plain", "at last");
    struct buf got = BUF_INIT;
    hear(fd, &got, "at last");
    expect("late answer", &got, "at last");
    assert_int_equal(w->n_gone, 0);
    buf_release(&got);
    close(fd);
    world_close(w);
}

static void a_client_that_leaves_while_it_waits_is_noticed(void **state)
{
    (void)state;
    struct http_options o = {0};
    struct world *w = world_open(&o);
    int fd = dial(w);
    say(fd, "GET /later HTTP/1.1\r\nHost: x\r\n\r\n");
    struct http_exchange *x = wait_kept(w);
    close(fd);
    if (!wait_for(&w->n_gone, 1))
        fail_msg("nobody noticed within two seconds");
    assert_true(http_gone(x));
    http_reply_text(x, 200, "text/plain", "to nobody"); /* quiet */
    assert_true(wait_for(&w->n_done, 1));
    world_close(w);
}

static void a_stream_says_what_the_socket_has_taken(void **state)
{
    (void)state;
    struct http_options o = {.tick_ms = 5};
    struct world *w = world_open(&o);
    int fd = dial(w);
    say(fd, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    struct http_exchange *x = wait_kept(w);
    for (int i = 0; i < 100; i++) {
        char event[32];
        int n = snprintf(event, sizeof event, "data: %d\n\n", i);
        assert_true(http_stream_write(x, event, (size_t)n, i == 0));
        if (i % 10 == 0)
            usleep(2000);
    }
    if (!http_stream_drained(x) && !wait_for(&w->n_drained, 1))
        fail_msg("the stream was never drained");
    uint64_t total = http_stream_written(x);
    assert_int_equal(total, 10 * strlen("data: 0\n\n") + 90 * strlen("data: 10\n\n"));
    http_stream_end(x);
    struct buf got = BUF_INIT;
    hear(fd, &got, "0\r\n\r\n");
    expect("stream", &got, "data: 99\n\n");
    expect("stream", &got, "Transfer-Encoding: chunked");
    assert_true(wait_for(&w->n_done, 1));
    assert_int_equal(w->n_gone, 0);
    buf_release(&got);
    /* The connection serves the next request. */
    say(fd, "GET /echo?q=again HTTP/1.1\r\nHost: x\r\n\r\n");
    hear(fd, &got, "again|");
    expect("keep-alive after a stream", &got, "again|");
    buf_release(&got);
    close(fd);
    world_close(w);
}

static void a_vanished_reader_has_taken_no_more_than_was_counted(void **state)
{
    (void)state;
    struct http_options o = {.tick_ms = 1};
    struct world *w = world_open(&o);
    int fd = dial(w);
    say(fd, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    struct http_exchange *x = wait_kept(w);
    struct buf got = BUF_INIT;
    for (int i = 0; i < 5; i++) {
        http_stream_write(x, "data: x\n\n", 9, true);
        hear(fd, &got, i == 4 ? "x\n\n\r\n" : "data");
        usleep(10000);
    }
    size_t events = 0;
    for (const char *p = buf_cstr(&got); (p = strstr(p, "data: x\n\n")) != NULL; p++)
        events++;
    close(fd);
    int written_before_gone = 0;
    while (http_stream_write(x, "data: x\n\n", 9, true) && written_before_gone < 2000) {
        written_before_gone++;
        usleep(1000);
    }
    assert_true(wait_for(&w->n_gone, 1));
    uint64_t counted = http_stream_written(x);
    if (counted < events * 9)
        fail_msg("the client read %zu events, only %llu bytes were counted", events,
                 (unsigned long long)counted);
    if (counted > (5 + (uint64_t)written_before_gone) * 9)
        fail_msg("%llu bytes counted, %d were queued", (unsigned long long)counted,
                 (5 + written_before_gone) * 9);
    buf_release(&got);
    world_close(w);
}

static void a_reader_that_lags_too_far_is_cut_off(void **state)
{
    (void)state;
    struct http_options o = {.stream_buffer_bytes = 64 * 1024, .tick_ms = 1};
    struct world *w = world_open(&o);
    int fd = dial(w);
    int small = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    say(fd, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    struct http_exchange *x = wait_kept(w);
    char piece[1000];
    memset(piece, 'x', sizeof piece);
    int n = 0;
    while (http_stream_write(x, piece, sizeof piece, false) && n < 100000) {
        n++;
        if (n % 50 == 0)
            usleep(1000);
    }
    if (n == 100000)
        fail_msg("100 MB were queued for a reader that reads nothing");
    assert_int_equal(w->n_gone, 1);
    assert_false(http_stream_write(x, piece, 1, false));
    close(fd);
    world_close(w);
}

/* A choice begins with its echoed prompt, and tokens without text gather into one event: however
 * large, whoever reads gets them, as does the small event right behind. */
static void a_piece_larger_than_the_buffer_reaches_who_reads(void **state)
{
    (void)state;
    enum { LARGE = 1 << 20, LEAST = 64 * 1024 };
    static const struct {
        const char *what;
        size_t sizes[4];
        bool urgent;
    } cases[] = {
        {"first events of three choices", {LEAST * 3 / 4, LEAST * 3 / 4, LEAST * 3 / 4, 10}, true},
        {"a large first event", {LARGE, 10, 10, 10}, true},
        {"a large later event", {10, LARGE, 10, 10}, false},
    };
    char *piece = xcalloc(LARGE, 1);
    memset(piece, 'x', LARGE);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct http_options o = {.stream_buffer_bytes = LEAST, .tick_ms = 1};
        struct world *w = world_open(&o);
        int fd = dial(w);
        say(fd, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
        struct http_exchange *x = wait_kept(w);
        for (int k = 0; k < 4; k++) {
            if (!http_stream_write(x, piece, cases[i].sizes[k], cases[i].urgent && k < 3))
                fail_msg("%s: the reader was cut off at event %d", cases[i].what, k);
        }
        http_stream_end(x);
        struct buf got = BUF_INIT;
        hear(fd, &got, "\r\n0\r\n\r\n");
        size_t n = 0, sum = 0;
        for (size_t k = 0; k < got.len; k++)
            n += got.data[k] == 'x';
        for (int k = 0; k < 4; k++)
            sum += cases[i].sizes[k];
        if (n < sum) /* headers have an x of their own */
            fail_msg("%s: %zu bytes of %zu came", cases[i].what, n, sum);
        buf_release(&got);
        close(fd);
        world_close(w);
    }
    free(piece);
}

static void draining_finishes_what_runs_and_takes_nothing_new(void **state)
{
    (void)state;
    struct http_options o = {0};
    struct world *w = world_open(&o);
    int running = dial(w), idle = dial(w), asks = dial(w);
    say(running, "GET /later HTTP/1.1\r\nHost: x\r\n\r\n");
    struct buf got = BUF_INIT;
    say(idle, "GET /echo?q=before HTTP/1.1\r\nHost: x\r\n\r\n");
    hear(idle, &got, "before|");
    say(asks, "GET /echo?q=here HTTP/1.1\r\nHost: x\r\n\r\n");
    buf_reset(&got);
    hear(asks, &got, "here|");
    struct http_exchange *x = wait_kept(w);
    http_drain(w->server);
    buf_reset(&got);
    say(asks, "HEAD /none HTTP/1.1\r\nHost: x\r\n\r\n");
    hear(asks, &got, "\r\n\r\n");
    expect("who only asks", &got, "404");
    buf_reset(&got);
    say(idle, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nz");
    hear(idle, &got, "shutting down");
    expect("a new request", &got, "503");
    assert_true(ends(idle));
    http_reply_text(x, 200, "text/plain", "finished");
    buf_reset(&got);
    hear(running, &got, "finished");
    expect("the running one", &got, "finished");
    buf_release(&got);
    close(running);
    close(idle);
    close(asks);
    world_close(w);
}

static void take_a_nap(int signal)
{
    (void)signal;
    nanosleep(&(struct timespec){0, 60000}, NULL);
}

struct load {
    _Atomic int port;
    _Atomic int n_answers;
    _Atomic bool stop;
    _Atomic bool drains;
    pthread_t drainer;
};

/* Stops who drains between its steps, so that the server's threads come in between. */
static void *disturb_draining(void *context)
{
    struct load *l = context;
    while (!l->stop) {
        for (int i = 0; i < 10 && l->drains; i++) {
            pthread_kill(l->drainer, SIGUSR1);
            spin_us(5);
        }
        usleep(1000);
    }
    return NULL;
}

/* One short connection after the other, to whichever server there is. */
static void *call_again_and_again(void *context)
{
    struct load *l = context;
    while (!l->stop) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        static const char request[] = "GET /echo?q=short HTTP/1.1\r\nHost: x\r\n\r\n";
        if (call(fd, l->port, 1) &&
            send(fd, request, sizeof request - 1, MSG_NOSIGNAL) == sizeof request - 1) {
            struct buf got = BUF_INIT;
            hear(fd, &got, "GET short|");
            l->n_answers += strstr(buf_cstr(&got), "GET short|") != NULL;
            buf_release(&got);
        }
        close(fd);
    }
    return NULL;
}

static void draining_at_any_moment_of_other_connections_is_safe(void **state)
{
    (void)state;
    enum { ROUNDS = 200, CALLERS = 3 };
    static struct load load; /* outlives a test that fails */
    load.drainer = pthread_self();
    struct sigaction nap = {.sa_handler = take_a_nap, .sa_flags = SA_RESTART}, before;
    assert_int_equal(sigaction(SIGUSR1, &nap, &before), 0);
    pthread_t callers[CALLERS], disturber;
    assert_int_equal(pthread_create(&disturber, NULL, disturb_draining, &load), 0);
    for (int round = 0; round < ROUNDS; round++) {
        struct http_options o = {.n_threads = 4};
        struct world *w = world_open(&o);
        int running = dial(w);
        say(running, "GET /later HTTP/1.1\r\nHost: x\r\n\r\n");
        load.port = port_of(w);
        for (int i = 0; i < CALLERS && round == 0; i++)
            assert_int_equal(pthread_create(&callers[i], NULL, call_again_and_again, &load), 0);
        struct http_exchange *x = wait_kept(w);
        load.drains = true;
        spin_us((unsigned)round * 7919 % 2000);
        http_drain(w->server);
        load.drains = false;
        int refused = socket(AF_INET, SOCK_STREAM, 0);
        if (call(refused, load.port, 1))
            fail_msg("round %d: a new connection is taken", round);
        close(refused);
        http_reply_text(x, 200, "text/plain", "finished");
        struct buf got = BUF_INIT;
        hear(running, &got, "finished");
        expect("the running one", &got, "finished");
        buf_release(&got);
        close(running);
        world_close(w);
    }
    load.stop = true;
    for (int i = 0; i < CALLERS; i++)
        pthread_join(callers[i], NULL);
    pthread_join(disturber, NULL);
    sigaction(SIGUSR1, &before, NULL);
    assert_true(load.n_answers > ROUNDS);
}

static void closing_cuts_what_sleeps(void **state)
{
    (void)state;
    struct http_options o = {0};
    struct world *w = world_open(&o);
    int fd = dial(w);
    say(fd, "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    struct http_exchange *x = wait_kept(w);
    http_close(w->server);
    w->server = NULL;
    assert_int_equal(w->n_gone, 1);
    assert_true(http_gone(x));
    assert_false(http_stream_write(x, "x", 1, true));
    close(fd);
    world_close(w);
}

static void only_loopback_is_served_without_tls(void **state)
{
    (void)state;
    static const struct {
        const char *listen;
        bool insecure;
        enum err_code code;
    } rows[] = {
        {"0.0.0.0:0", false, ERR_FORBIDDEN}, {"0.0.0.0:0", true, ERR_OK},
        {"127.0.0.1:0", false, ERR_OK},      {"127.8.7.6:0", false, ERR_OK},
        {"[::]:0", false, ERR_FORBIDDEN},    {"nonsense", false, ERR_INVALID},
        {"127.0.0.1:", false, ERR_INVALID},  {"127.0.0.1:99999", false, ERR_INVALID},
        {"[::1:80", false, ERR_INVALID},     {"256.0.0.1:0", false, ERR_INVALID},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct http_server *s = NULL;
        struct err err = {0};
        struct http_options o = {
            .listen = rows[i].listen, .insecure_bind = rows[i].insecure, .on_request = on_request};
        int rc = http_open(&s, &o, &err);
        if ((rc == 0) != (rows[i].code == ERR_OK) || (rc != 0 && err.code != rows[i].code))
            fail_msg("%s: expected %s, got %s (%s)", rows[i].listen, err_code_name(rows[i].code),
                     err_code_name(err.code), err.message);
        if (rc == 0)
            http_close(s);
    }
}

static void expect_served(const char *what, int fd)
{
    struct buf got = BUF_INIT;
    say(fd, "GET /echo?q=served HTTP/1.1\r\nHost: x\r\n\r\n");
    hear(fd, &got, "served|");
    expect(what, &got, "served|");
    buf_release(&got);
}

static void one_address_gets_only_its_share_of_connections(void **state)
{
    (void)state;
    for (int n_threads = 1; n_threads <= 3; n_threads++) {
        struct http_options o = {.max_connections_per_ip = 2, .n_threads = n_threads};
        struct world *w = world_open(&o);
        int mine[] = {dial(w), dial(w)};
        expect_served("within the share", mine[0]);
        expect_served("within the share", mine[1]);
        int third = dial(w), other = dial_from(w, 2);
        if (!ends(third))
            fail_msg("%d threads: the third connection stays open", n_threads);
        expect_served("from another address", other);
        assert_int_equal(http_n_connections(w->server), 3);
        close(third);
        close(mine[0]);
        for (int i = 0; i < 400 && http_n_connections(w->server) > 2; i++)
            usleep(5000);
        mine[0] = dial(w);
        expect_served("in place of one that has ended", mine[0]);
        close(mine[0]);
        close(mine[1]);
        close(other);
        world_close(w);
    }
}

static void connections_over_the_limit_wait_until_one_ends(void **state)
{
    (void)state;
    enum { MAX = 4, WAITING = 3 };
    struct http_options o = {.max_connections = MAX, .n_threads = 3};
    struct world *w = world_open(&o);
    int fds[MAX + WAITING];
    for (int i = 0; i < MAX; i++) {
        fds[i] = dial(w);
        expect_served("within the limit", fds[i]);
    }
    for (int i = MAX; i < MAX + WAITING; i++) {
        fds[i] = dial(w);
        say(fds[i], "GET /echo?q=waited HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    assert_true(is_silent(fds[MAX]));
    assert_int_equal(http_n_connections(w->server), MAX);
    for (int i = MAX; i < MAX + WAITING; i++) {
        close(fds[i - MAX]);
        struct buf got = BUF_INIT;
        hear(fds[i], &got, "waited|");
        expect("after one ended", &got, "waited|");
        buf_release(&got);
        if (i + 1 < MAX + WAITING)
            assert_true(is_silent(fds[i + 1]));
    }
    for (int i = WAITING; i < MAX + WAITING; i++)
        close(fds[i]);
    world_close(w);
}

/* The process has no more descriptors, and none of its connections ends. */
static void connections_wait_while_there_are_no_descriptors(void **state)
{
    (void)state;
    struct http_options o = {0};
    struct world *w = world_open(&o);
    int before = dial(w), waits = socket(AF_INET, SOCK_STREAM, 0);
    expect_served("before", before);
    struct rlimit all, few;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &all), 0);
    few = all;
    int next = dup(before); /* all below it are in use */
    close(next);
    few.rlim_cur = (rlim_t)next;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    assert_true(call(waits, port_of(w), 1));
    say(waits, "GET /echo?q=waited HTTP/1.1\r\nHost: x\r\n\r\n");
    bool silent = is_silent(waits);
    expect_served("meanwhile", before);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &all), 0);
    assert_true(silent);
    struct buf got = BUF_INIT;
    hear(waits, &got, "waited|");
    expect("afterwards", &got, "waited|");
    buf_release(&got);
    close(waits);
    close(before);
    world_close(w);
}

static void many_streams_at_once_lose_nothing(void **state)
{
    (void)state;
    /* The whole pattern of sleeping and waking, from two producers, many times. */
    struct http_options o = {.tick_ms = 1};
    struct world *w = world_open(&o);
    enum { N = 16, EVENTS = 200 };
    int fds[N];
    struct http_exchange *xs[N];
    for (int i = 0; i < N; i++) {
        fds[i] = dial(w);
        say(fds[i], "GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
        xs[i] = wait_kept(w);
        pthread_mutex_lock(&w->lock);
        w->kept = NULL;
        pthread_mutex_unlock(&w->lock);
    }
    for (int e = 0; e < EVENTS; e++) {
        for (int i = 0; i < N; i++) {
            char event[32];
            int n = snprintf(event, sizeof event, "data: %d\n\n", e);
            assert_true(http_stream_write(xs[i], event, (size_t)n, (e + i) % 7 == 0));
        }
        if (e % 20 == 0)
            usleep(1000);
    }
    for (int i = 0; i < N; i++) {
        http_stream_end(xs[i]);
        struct buf got = BUF_INIT;
        hear(fds[i], &got, "0\r\n\r\n");
        int events = 0;
        for (const char *p = buf_cstr(&got); (p = strstr(p, "data: ")) != NULL; p++)
            events++;
        if (events != EVENTS)
            fail_msg("stream %d: %d events arrived, %d were written", i, events, EVENTS);
        buf_release(&got);
        close(fds[i]);
        http_unlisten(xs[i]);
        http_drop(xs[i]);
    }
    world_close(w);
}

/* Answers what was handed over while the server's thread naps, wherever that happens to be. */
static void *answer_handed(void *context)
{
    struct world *w = context;
    for (unsigned n = 0; !w->stop_producer;) {
        struct http_exchange *x = atomic_exchange(&w->handed, NULL);
        if (x == NULL)
            continue;
        struct timespec began, now;
        clock_gettime(CLOCK_MONOTONIC, &began);
        n = n * 1103515245 + 12345;
        do
            clock_gettime(CLOCK_MONOTONIC, &now);
        while ((now.tv_sec - began.tv_sec) * 1000000000 + now.tv_nsec - began.tv_nsec <
               (long)(n >> 16) % (2 * HANDED_US * 1000));
        pthread_kill(w->server_thread, SIGUSR1);
        http_reply_text(x, 200, "text/plain", "handed");
        http_drop(x);
    }
    return NULL;
}

/* The answer may come, and the last reference but the connection's go, between any two
 * instructions of the thread that has called on_request. */
static void an_answer_may_come_from_another_thread_at_any_moment(void **state)
{
    (void)state;
    enum { N = 20000 };
    struct http_options o = {.n_threads = 1};
    struct world *w = world_open(&o);
    struct sigaction nap = {.sa_handler = take_a_nap, .sa_flags = SA_RESTART}, before;
    assert_int_equal(sigaction(SIGUSR1, &nap, &before), 0);
    pthread_t answerer;
    assert_int_equal(pthread_create(&answerer, NULL, answer_handed, w), 0);
    int fd = dial(w);
    for (int i = 0; i < N; i++) {
        struct buf got = BUF_INIT;
        say(fd, "GET /handed HTTP/1.1\r\nHost: x\r\n\r\n");
        hear(fd, &got, "\r\n\r\nhanded");
        expect("handed over", &got, "\r\n\r\nhanded");
        buf_release(&got);
    }
    w->stop_producer = true;
    pthread_join(answerer, NULL);
    close(fd);
    world_close(w);
    sigaction(SIGUSR1, &before, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(requests_are_answered_or_refused_by_rule),
        cmocka_unit_test(a_body_without_a_clear_end_is_refused_and_the_connection_closed),
        cmocka_unit_test(who_asks_before_sending_a_body_is_not_made_to_send_one_in_vain),
        cmocka_unit_test(a_chunked_body_over_the_limit_is_refused),
        cmocka_unit_test(headers_over_the_limit_are_refused),
        cmocka_unit_test(a_page_of_the_allowed_origin_may_send_and_read_what_a_client_needs),
        cmocka_unit_test(whoever_is_to_come_back_hears_when),
        cmocka_unit_test(pipelined_requests_are_answered_in_order),
        cmocka_unit_test(a_request_that_trickles_is_cut_off),
        cmocka_unit_test(an_answer_may_come_from_another_thread_later),
        cmocka_unit_test(a_client_that_leaves_while_it_waits_is_noticed),
        cmocka_unit_test(a_stream_says_what_the_socket_has_taken),
        cmocka_unit_test(a_vanished_reader_has_taken_no_more_than_was_counted),
        cmocka_unit_test(a_reader_that_lags_too_far_is_cut_off),
        cmocka_unit_test(a_piece_larger_than_the_buffer_reaches_who_reads),
        cmocka_unit_test(draining_finishes_what_runs_and_takes_nothing_new),
        cmocka_unit_test(draining_at_any_moment_of_other_connections_is_safe),
        cmocka_unit_test(closing_cuts_what_sleeps),
        cmocka_unit_test(only_loopback_is_served_without_tls),
        cmocka_unit_test(one_address_gets_only_its_share_of_connections),
        cmocka_unit_test(connections_over_the_limit_wait_until_one_ends),
        cmocka_unit_test(connections_wait_while_there_are_no_descriptors),
        cmocka_unit_test(many_streams_at_once_lose_nothing),
        cmocka_unit_test(an_answer_may_come_from_another_thread_at_any_moment),
    };
    return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
