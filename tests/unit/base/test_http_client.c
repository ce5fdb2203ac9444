/* The HTTP client against a server that answers well, wrongly, endlessly, slowly and not at all. */
#include "tests/http_server.h"

#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/http_client.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))

extern char **environ;

static struct server *server;
static struct http_client *client;

/* ---- the other side ----------------------------------------------------------------------- */

enum { FILE_BYTES = 100000 };

static void file_bytes(uint8_t out[FILE_BYTES])
{
    for (size_t i = 0; i < FILE_BYTES; i++)
        out[i] = (uint8_t)(i * 7 + i / 251);
}

static void answer_file(struct exchange *x, bool knows_ranges, unsigned shift)
{
    uint8_t *file = xmalloc(FILE_BYTES);
    char range[64], header[128];
    file_bytes(file);
    unsigned from = 0;
    if (!knows_ranges ||
        sscanf(exchange_header(x, "Range", range, sizeof range), "bytes=%u-", &from) != 1) {
        exchange_answer(x, 200, "ETag: \"seven\"\r\n", file, FILE_BYTES);
    } else if (from >= FILE_BYTES) {
        exchange_answer(x, 416, "Content-Range: bytes */100000\r\n", "", 0);
    } else {
        from += shift;
        snprintf(header, sizeof header, "Content-Range: bytes %u-%d/%d\r\n", from, FILE_BYTES - 1,
                 FILE_BYTES);
        exchange_answer(x, 206, header, file + from, FILE_BYTES - from);
    }
    free(file);
}

static void answer_forever(struct exchange *x, const char *head, const char *again, int pause_ms)
{
    x->close = true;
    if (!exchange_text(x, head))
        return;
    while (exchange_text(x, again) && (pause_ms == 0 || exchange_sleep(x, pause_ms)))
        ;
}

static void answer_redirect(struct exchange *x, int status, const char *where)
{
    char header[600];
    snprintf(header, sizeof header, "Location: %s\r\n", where);
    exchange_answer(x, status, header, "moved", 5);
}

/* Raw answers, for what a well-built one can't be. */
static const struct {
    const char *path, *raw;
} raw_answers[] = {
    {"/ok", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello"},
    {"/empty", "HTTP/1.1 204 No Content\r\n\r\n"},
    {"/missing", "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone"},
    {"/busy", "HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n"},
    {"/continue", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"},
    {"/chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                 "5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n"},
    {"/gzip", "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nzzzz"},
    {"/truncated", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"},
    {"/truncated-chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\nonly this"},
    {"/truncated-header", "HTTP/1.1 200 OK\r\nContent-Le"},
    {"/ten-gigabytes", "HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\nAAAA"},
    {"/two-lengths", "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 6\r\n\r\nAAAAAA"},
    {"/negative-length", "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nAAAA"},
    {"/huge-length", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nAAAA"},
    {"/unasked-part", "HTTP/1.1 206 Partial\r\nContent-Range: bytes 5-8/9\r\nContent-Length: 4\r\n"
                      "\r\nAAAA"},
    {"/no-status", "HTTP/1.1 OK\r\n\r\n"},
    {"/not-http", "SSH-2.0-OpenSSH_9.2\r\n"},
    {"/http-0.9", "<html>no header at all</html>"},
    {"/nothing", ""},
    {"/nowhere", "HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"},
};

static void answer(struct exchange *x)
{
    char long_line[200];
    for (size_t i = 0; i < COUNT(raw_answers); i++) {
        if (strcmp(x->path, raw_answers[i].path) != 0)
            continue;
        exchange_text(x, raw_answers[i].raw);
        /* All but the complete ones end with the connection. */
        x->close = i > 4;
        return;
    }
    if (strcmp(x->path, "/echo") == 0) {
        struct buf b = BUF_INIT;
        buf_append(&b, x->head.data, x->head.len);
        buf_append(&b, x->body.data, x->body.len);
        exchange_answer(x, 200, "", b.data, strcmp(x->method, "HEAD") == 0 ? 0 : b.len);
        buf_release(&b);
    } else if (strcmp(x->path, "/file") == 0) {
        answer_file(x, true, 0);
    } else if (strcmp(x->path, "/file-without-ranges") == 0) {
        answer_file(x, false, 0);
    } else if (strcmp(x->path, "/file-shifted") == 0) {
        answer_file(x, true, 1);
    } else if (strcmp(x->path, "/endless-body") == 0) {
        answer_forever(x, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
                       "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
                       0);
    } else if (strcmp(x->path, "/endless-header") == 0) {
        answer_forever(x, "HTTP/1.1 200 OK\r\n", "X-More: and more and more and more\r\n", 0);
    } else if (strcmp(x->path, "/endless-line") == 0) {
        memset(long_line, 'A', sizeof long_line - 1);
        long_line[sizeof long_line - 1] = '\0';
        answer_forever(x, "HTTP/1.1 200 OK\r\nX-Long: ", long_line, 0);
    } else if (strcmp(x->path, "/endless-continue") == 0) {
        answer_forever(x, "", "HTTP/1.1 100 Continue\r\n\r\n", 0);
    } else if (strcmp(x->path, "/trickle") == 0) {
        answer_forever(x, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", "A", 20);
    } else if (strcmp(x->path, "/trickling-header") == 0) {
        answer_forever(x, "HTTP/1.1 200 OK\r\nX-Slow: ", "A", 20);
    } else if (strcmp(x->path, "/stall") == 0) {
        exchange_text(x, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nAAAA");
        exchange_sleep(x, 60000);
        x->close = true;
    } else if (strcmp(x->path, "/silence") == 0) {
        exchange_sleep(x, 60000);
        x->close = true;
    } else if (strcmp(x->path, "/loop") == 0) {
        answer_redirect(x, 302, "/loop");
    } else if (strncmp(x->path, "/to/", 4) == 0) {
        answer_redirect(x, 301, x->path + 4);
    } else if (strncmp(x->path, "/hops/", 6) == 0) {
        int left = atoi(x->path + 6);
        char next[32];
        snprintf(next, sizeof next, "/hops/%d", left - 1);
        answer_redirect(x, 307, left > 1 ? next : "/ok");
    } else {
        exchange_answer(x, 500, "", "no such test", 12);
    }
}

static char *url_of(const char *path)
{
    return xasprintf("http://127.0.0.1:%u%s", server->port, path);
}

static int fetch(const char *path, struct http_call call, struct buf *body,
                 struct http_reply *reply, struct err *err)
{
    char *url = url_of(path);
    call.url = url;
    if (call.timeout_ms == 0)
        call.timeout_ms = 10000;
    int rc = http_client_fetch(client, &call, body, reply, err);
    free(url);
    return rc;
}

static int open_both(void **state)
{
    (void)state;
    server = server_start(answer, NULL);
    client = http_client_create();
    return 0;
}

static int close_both(void **state)
{
    (void)state;
    http_client_free(client);
    server_stop(server);
    return 0;
}

/* ---- tests -------------------------------------------------------------------------------- */

static void complete_answers_are_successes_whatever_their_status(void **state)
{
    (void)state;
    static const struct {
        const char *path, *body;
        int status;
    } cases[] = {
        {"/ok", "hello", 200},  {"/empty", "", 204},      {"/missing", "gone", 404},
        {"/busy", "", 503},     {"/continue", "ok", 200}, {"/chunked", "hello world", 200},
        {"/gzip", "zzzz", 200}, {"/nowhere", "", 302},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct buf body = BUF_INIT;
        struct http_reply reply;
        struct err err;
        if (fetch(cases[i].path, (struct http_call){0}, &body, &reply, &err) != 0)
            fail_msg("%s: %s", cases[i].path, err.message);
        if (reply.status != cases[i].status || strcmp(buf_cstr(&body), cases[i].body) != 0)
            fail_msg("%s: status %d, body \"%s\"", cases[i].path, reply.status, buf_cstr(&body));
        assert_int_equal(reply.body_bytes, strlen(cases[i].body));
        if (strcmp(cases[i].path, "/busy") == 0)
            assert_int_equal(reply.retry_after_s, 7);
        if (strcmp(cases[i].path, "/ok") == 0) {
            assert_string_equal(reply.content_type, "text/plain");
            assert_true(reply.has_length && reply.length_bytes == 5);
        }
        buf_release(&body);
    }
}

static void broken_answers_are_failures_that_name_the_url(void **state)
{
    (void)state;
    static const struct {
        const char *path, *says;
        enum err_code code;
    } cases[] = {
        {"/truncated", "the answer ends early", ERR_UPSTREAM},
        {"/truncated-chunk", "", ERR_UPSTREAM},
        {"/truncated-header", "", ERR_UPSTREAM},
        {"/ten-gigabytes", "announces 10737418240 bytes, the limit is 100000", ERR_TOO_LARGE},
        {"/endless-body", "its body is longer than 100000 bytes", ERR_TOO_LARGE},
        {"/endless-header", "its header is longer than 65536 bytes", ERR_TOO_LARGE},
        {"/endless-line", "", ERR_OK},
        {"/endless-continue", "its header is longer than 65536 bytes", ERR_TOO_LARGE},
        {"/two-lengths", "", ERR_UPSTREAM},
        {"/negative-length", "", ERR_UPSTREAM},
        {"/huge-length", "", ERR_OK},
        {"/unasked-part", "a part (206) that nobody asked for", ERR_UPSTREAM},
        {"/no-status", "", ERR_UPSTREAM},
        {"/not-http", "", ERR_UPSTREAM},
        {"/http-0.9", "", ERR_UPSTREAM},
        {"/nothing", "", ERR_UPSTREAM},
        {"/loop", "redirects more than 5 times", ERR_UPSTREAM},
        {"/hops/6", "redirects more than 5 times", ERR_UPSTREAM},
        {"/to/file:///etc/passwd", "neither http nor https", ERR_UPSTREAM},
        {"/to/gopher://127.0.0.1/x", "neither http nor https", ERR_UPSTREAM},
        {"/to/http://127.0.0.1:1/", "", ERR_UPSTREAM},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct buf body = BUF_INIT;
        struct err err = {.code = ERR_OK};
        char *url = url_of(cases[i].path);
        struct http_call call = {.max_body_bytes = 100000};
        if (fetch(cases[i].path, call, &body, NULL, &err) != -1)
            fail_msg("%s: accepted, %zu bytes", cases[i].path, body.len);
        /* libcurl's own limits may come first where ERR_OK stands. */
        bool code_ok = cases[i].code == ERR_OK
                           ? err.code == ERR_TOO_LARGE || err.code == ERR_UPSTREAM
                           : err.code == cases[i].code;
        if (!code_ok || strstr(err.message, cases[i].says) == NULL ||
            strncmp(err.message, url, strlen(url)) != 0)
            fail_msg("%s: %s: %s", cases[i].path, err_code_name(err.code), err.message);
        assert_true(body.len <= 100000);
        free(url);
        buf_release(&body);
    }
    printf("note: %zu broken and hostile HTTP answers refused\n", COUNT(cases));
}

static void nobody_at_the_port_is_named(void **state)
{
    (void)state;
    struct err err;
    struct http_call call = {.url = "http://user:secret@127.0.0.1:1/a/b?key=secret"};
    assert_int_equal(http_client_call(client, &call, NULL, &err), -1);
    assert_int_equal(err.code, ERR_UPSTREAM);
    assert_non_null(strstr(err.message, "http://127.0.0.1:1/a/b: "));
    assert_null(strstr(err.message, "secret"));
    call.name = "endpoint 3";
    assert_int_equal(http_client_call(client, &call, NULL, &err), -1);
    assert_int_equal(strncmp(err.message, "endpoint 3: ", 12), 0);
}

static void only_http_and_https_urls_are_taken(void **state)
{
    (void)state;
    static const char *const urls[] = {
        "file:///etc/passwd",   "ftp://127.0.0.1/",          "127.0.0.1/x",   "", "http:/127.0.0.1",
        "http://127.0.0.1/a b", "http://127.0.0.1/\r\nX: y", "http://:80:80/"};
    for (size_t i = 0; i < COUNT(urls); i++) {
        struct err err;
        struct http_call call = {.url = urls[i]};
        if (http_client_call(client, &call, NULL, &err) != -1 || err.code != ERR_INVALID)
            fail_msg("\"%s\": %s", urls[i], err_code_name(err.code));
    }
    char *longest = xmalloc(9000);
    struct err err;
    memset(longest, 'a', 9000);
    memcpy(longest, "http://127.0.0.1/", 17);
    longest[8999] = '\0';
    struct http_call call = {.url = longest};
    assert_int_equal(http_client_call(client, &call, NULL, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    free(longest);
}

static void slow_servers_are_left(void **state)
{
    (void)state;
    static const struct {
        const char *path;
        struct http_call call;
        const char *says;
    } cases[] = {
        {"/silence", {.timeout_ms = 300}, "no complete answer within 300 ms"},
        {"/trickle", {.timeout_ms = 300}, "no complete answer within 300 ms"},
        {"/trickling-header", {.timeout_ms = 300}, "no complete answer within 300 ms"},
        {"/silence", {.stall_ms = 200}, "stalled: 0 bytes in 200 ms"},
        {"/stall", {.stall_ms = 200}, "stalled: "},
        {"/trickle", {.stall_ms = 300, .stall_bytes = 1000}, "stalled: "},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct buf body = BUF_INIT;
        struct err err = {.code = ERR_OK};
        struct monotonic_us begun = clock_monotonic_us();
        assert_int_equal(fetch(cases[i].path, cases[i].call, &body, NULL, &err), -1);
        uint64_t ms = clock_elapsed_us(begun, clock_monotonic_us()) / 1000;
        if (err.code != ERR_TIMEOUT || strstr(err.message, cases[i].says) == NULL)
            fail_msg("%s: %s: %s", cases[i].path, err_code_name(err.code), err.message);
        if (ms < 150 || ms > 5000)
            fail_msg("%s: left after %llu ms", cases[i].path, (unsigned long long)ms);
        buf_release(&body);
    }
}

static void *raise_flag(void *flag)
{
    usleep(150 * 1000);
    atomic_store((_Atomic bool *)flag, true);
    return NULL;
}

static void a_cancelled_call_ends_at_once(void **state)
{
    (void)state;
    _Atomic bool cancel = false;
    pthread_t thread;
    struct err err;
    struct buf body = BUF_INIT;
    struct http_call call = {.cancel = &cancel, .timeout_ms = 20000};
    assert_int_equal(pthread_create(&thread, NULL, raise_flag, &cancel), 0);
    struct monotonic_us begun = clock_monotonic_us();
    assert_int_equal(fetch("/stall", call, &body, NULL, &err), -1);
    uint64_t ms = clock_elapsed_us(begun, clock_monotonic_us()) / 1000;
    pthread_join(thread, NULL);
    assert_int_equal(err.code, ERR_CANCELLED);
    if (ms > 3000)
        fail_msg("cancelled after %llu ms", (unsigned long long)ms);
    size_t before = atomic_load(&server->n_requests);
    assert_int_equal(fetch("/ok", call, &body, NULL, &err), -1);
    assert_int_equal(err.code, ERR_CANCELLED);
    assert_int_equal(atomic_load(&server->n_requests), before);
    buf_release(&body);
}

static void requests_carry_method_headers_and_body(void **state)
{
    (void)state;
    static const char *const headers[] = {"X-One: 1", "Content-Type: application/json"};
    static const struct {
        enum http_method method;
        const char *line, *body;
    } cases[] = {
        {HTTP_GET, "GET /echo HTTP/1.1\r\n", ""},
        {HTTP_POST, "POST /echo HTTP/1.1\r\n", "{\"a\":1}"},
        {HTTP_POST, "POST /echo HTTP/1.1\r\n", ""},
        {HTTP_PUT, "PUT /echo HTTP/1.1\r\n", "file"},
        {HTTP_DELETE, "DELETE /echo HTTP/1.1\r\n", ""},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct buf body = BUF_INIT;
        struct err err;
        struct http_call call = {.method = cases[i].method,
                                 .headers = headers,
                                 .n_headers = 2,
                                 .body = cases[i].body,
                                 .n_body = strlen(cases[i].body)};
        assert_ok(fetch("/echo", call, &body, NULL, &err), err);
        const char *text = buf_cstr(&body);
        if (strncmp(text, cases[i].line, strlen(cases[i].line)) != 0 ||
            strstr(text, "\r\nX-One: 1\r\n") == NULL ||
            strstr(text, "\r\nUser-Agent: tributary\r\n") == NULL ||
            strstr(text, "Expect") != NULL || strstr(text, "Accept-Encoding") != NULL ||
            strcmp(strstr(text, "\r\n\r\n") + 4, cases[i].body) != 0)
            fail_msg("%s came as:\n%s", cases[i].line, text);
        buf_release(&body);
    }
    struct http_reply reply;
    struct err err;
    struct buf body = BUF_INIT;
    assert_ok(fetch("/ok", (struct http_call){.method = HTTP_HEAD, .max_body_bytes = 1}, &body,
                    &reply, &err),
              err);
    assert_int_equal(body.len, 0);
    assert_int_equal(reply.length_bytes, 5);
    buf_release(&body);
}

static void redirects_are_followed_within_limits(void **state)
{
    (void)state;
    struct buf body = BUF_INIT;
    struct http_reply reply;
    struct err err;
    assert_ok(fetch("/hops/5", (struct http_call){0}, &body, &reply, &err), err);
    assert_string_equal(buf_cstr(&body), "hello"); /* and nothing of the redirects' bodies */
    assert_int_equal(reply.redirects, 5);
    assert_int_equal(reply.body_bytes, 5);
    assert_int_equal(fetch("/hops/2", (struct http_call){.max_redirects = 1}, &body, &reply, &err),
                     -1);
    assert_non_null(strstr(err.message, "redirects more than 1 times"));
    buf_reset(&body);
    assert_ok(fetch("/to//ok", (struct http_call){.no_redirects = true}, &body, &reply, &err), err);
    assert_int_equal(reply.status, 301);
    assert_string_equal(reply.location, "/ok");
    assert_string_equal(buf_cstr(&body), "moved");
    assert_int_equal(fetch("/to//ok", (struct http_call){.method = HTTP_POST}, &body, &reply, &err),
                     -1);
    assert_non_null(strstr(err.message, "only GET may follow"));
    buf_release(&body);
}

static void headers_stay_with_the_host_they_are_for(void **state)
{
    (void)state;
    static const char *const headers[] = {"Authorization: Bearer secret"};
    struct buf body = BUF_INIT;
    struct err err;
    struct http_call call = {.headers = headers, .n_headers = 1};
    assert_ok(fetch("/to//echo", call, &body, NULL, &err), err);
    assert_non_null(strstr(buf_cstr(&body), "Bearer secret"));
    buf_reset(&body);
    char *other = xasprintf("/to/http://localhost:%u/echo", server->port);
    assert_ok(fetch(other, call, &body, NULL, &err), err);
    assert_non_null(strstr(buf_cstr(&body), "GET /echo"));
    assert_null(strstr(buf_cstr(&body), "secret"));
    free(other);
    buf_release(&body);
}

static void a_broken_download_goes_on_where_it_ended(void **state)
{
    (void)state;
    uint8_t *file = xmalloc(FILE_BYTES);
    struct buf body = BUF_INIT;
    struct http_reply reply;
    struct err err;
    file_bytes(file);
    assert_ok(fetch("/file", (struct http_call){.range_from = 60000}, &body, &reply, &err), err);
    assert_int_equal(reply.status, 206);
    assert_int_equal(reply.range_from, 60000);
    assert_true(reply.has_total && reply.total_bytes == FILE_BYTES);
    assert_int_equal(body.len, FILE_BYTES - 60000);
    assert_memory_equal(body.data, file + 60000, body.len);

    buf_reset(&body);
    struct http_call resumed = {.range_from = 60000};
    assert_ok(fetch("/file-without-ranges", resumed, &body, &reply, &err), err);
    assert_int_equal(reply.status, 200);
    assert_int_equal(reply.range_from, 0);
    assert_int_equal(body.len, FILE_BYTES);
    assert_memory_equal(body.data, file, body.len);
    assert_string_equal(reply.etag, "\"seven\"");

    assert_int_equal(fetch("/file-shifted", resumed, &body, &reply, &err), -1);
    assert_non_null(strstr(err.message, "another part than from byte 60000 on"));
    buf_reset(&body);
    assert_ok(fetch("/file", (struct http_call){.range_from = FILE_BYTES}, &body, &reply, &err),
              err);
    assert_int_equal(reply.status, 416);
    buf_release(&body);
    free(file);
}

struct pieces {
    int heads, status, bodies;
    bool stop_at_head, stop_at_body;
};

static int see_head(void *context, const struct http_reply *reply, struct err *err)
{
    struct pieces *p = context;
    p->heads++;
    p->status = reply->status;
    assert_int_equal(p->bodies, 0);
    return p->stop_at_head ? err_set(err, ERR_CORRUPT, "I don't like its head") : 0;
}

static int see_body(void *context, const void *bytes, size_t n, struct err *err)
{
    struct pieces *p = context;
    (void)bytes;
    assert_int_equal(p->heads, 1);
    assert_true(n > 0);
    p->bodies++;
    return p->stop_at_body ? err_set(err, ERR_CORRUPT, "I don't like its body") : 0;
}

static void callbacks_see_the_last_head_first_and_may_end_the_call(void **state)
{
    (void)state;
    char *url = url_of("/hops/2");
    struct pieces p = {0};
    struct err err;
    struct http_call call = {.url = url, .on_head = see_head, .on_body = see_body, .context = &p};
    assert_ok(http_client_call(client, &call, NULL, &err), err);
    assert_int_equal(p.heads, 1);
    assert_int_equal(p.status, 200);
    assert_true(p.bodies > 0);
    p = (struct pieces){.stop_at_head = true};
    assert_int_equal(http_client_call(client, &call, NULL, &err), -1);
    assert_string_equal(err.message, "I don't like its head");
    assert_int_equal(err.code, ERR_CORRUPT);
    p = (struct pieces){.stop_at_body = true};
    assert_int_equal(http_client_call(client, &call, NULL, &err), -1);
    assert_string_equal(err.message, "I don't like its body");
    assert_int_equal(p.bodies, 1);
    free(url);
}

static void connections_are_reused(void **state)
{
    (void)state;
    struct buf body = BUF_INIT;
    struct err err;
    assert_ok(fetch("/ok", (struct http_call){0}, &body, NULL, &err), err);
    size_t before = atomic_load(&server->n_connections);
    for (int i = 0; i < 10; i++)
        assert_ok(fetch("/ok", (struct http_call){0}, &body, NULL, &err), err);
    assert_int_equal(atomic_load(&server->n_connections), before);
    buf_release(&body);
}

static void *many_fetches(void *failures)
{
    for (int i = 0; i < 10; i++) {
        struct buf body = BUF_INIT;
        struct err err;
        if (fetch(i % 2 == 0 ? "/ok" : "/file", (struct http_call){0}, &body, NULL, &err) != 0 ||
            body.len != (i % 2 == 0 ? 5 : FILE_BYTES))
            atomic_fetch_add((_Atomic int *)failures, 1);
        buf_release(&body);
    }
    return NULL;
}

static void threads_share_a_client(void **state)
{
    (void)state;
    pthread_t threads[12];
    _Atomic int failures = 0;
    for (size_t i = 0; i < COUNT(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, many_fetches, &failures), 0);
    for (size_t i = 0; i < COUNT(threads); i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(atomic_load(&failures), 0);
}

static void urls_are_redacted(void **state)
{
    (void)state;
    static const struct {
        const char *url, *redacted, *host;
    } cases[] = {
        {"https://a.example/x?key=1#f", "https://a.example/x", "https://a.example"},
        {"https://u:p@a.example:8/v3/KEY", "https://a.example:8/v3/KEY", "https://a.example:8"},
        {"http://a.example/p@q", "http://a.example/p@q", "http://a.example"},
        {"http://a.example?x=@", "http://a.example", "http://a.example"},
        {"nonsense", "nonsense", "nonsense"},
        {"http://a\nb/", "http://a?b/", "http://a?b"},
    };
    char out[256];
    for (size_t i = 0; i < COUNT(cases); i++) {
        assert_string_equal(http_url_redact(out, sizeof out, cases[i].url, false),
                            cases[i].redacted);
        assert_string_equal(http_url_redact(out, sizeof out, cases[i].url, true), cases[i].host);
    }
    assert_string_equal(http_url_redact(out, 10, "https://a.example/", false), "https://a");
}

/* ---- TLS: node answers with a certificate that only this test's authority file knows ------ */

/* Made for this test, worth nothing: EC P-256, subject alternative name IP:127.0.0.1, until 2120.
 */
static const char test_certificate[] =
    "-----BEGIN CERTIFICATE-----\n"
    "MIIBZzCCAQygAwIBAgIBATAKBggqhkjOPQQDAjAZMRcwFQYDVQQDDA50cmlidXRh\n"
    "cnkgdGVzdDAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowGTEXMBUG\n"
    "A1UEAwwOdHJpYnV0YXJ5IHRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASG\n"
    "gakCXorjkI5lhp5m+N/ECNeQrQ3whWJtoBJBKmQImvkHLJqbYqJMMxisTqELj74p\n"
    "qeThZsXFr5+3iqOOOJSlo0MwQTAPBgNVHREECDAGhwR/AAABMA8GA1UdEwEB/wQF\n"
    "MAMBAf8wHQYDVR0OBBYEFD4UTpt5Fn43XBLiBAwidxnCooR9MAoGCCqGSM49BAMC\n"
    "A0kAMEYCIQCUziGj8hL6jL01DGnvX82pBzIXVWR1Mg/FQ2X9lzbXNQIhAN/3ctXd\n"
    "/LrLBULcIBrFLXHhZ9ctg7woXoYntepAKj0O\n"
    "-----END CERTIFICATE-----\n";

static const char tls_server[] =
    "const key='-----BEGIN PRIVATE KEY-----\\n"
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg5Nrjp5FggvQeNHE1\\n"
    "Bw02N7J2H8pmUAdTgiXOi6af/4WhRANCAASGgakCXorjkI5lhp5m+N/ECNeQrQ3w\\n"
    "hWJtoBJBKmQImvkHLJqbYqJMMxisTqELj74pqeThZsXFr5+3iqOOOJSl\\n"
    "-----END PRIVATE KEY-----\\n';"
    "const cert=require('fs').readFileSync(process.argv[1]);"
    "const s=require('https').createServer({key,cert},(q,r)=>{"
    "if(q.url==='/down'){r.writeHead(302,{location:process.argv[2]});r.end()}else r.end('safe')});"
    "s.listen(0,'127.0.0.1',()=>console.log(s.address().port));"
    "process.stdin.on('end',()=>process.exit(0)).resume();";

static void certificates_are_verified_and_https_never_falls_back(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    char *authority = xasprintf("%s/authority.pem", dir);
    char *plain = url_of("/ok");
    struct err err;
    assert_ok(
        file_write_atomic(authority, test_certificate, sizeof test_certificate - 1, 0600, &err),
        err);

    int in[2], out[2];
    pid_t pid;
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    char *argv[] = {"node", "-e", (char *)tls_server, authority, plain, NULL};
    if (posix_spawnp(&pid, "node", &actions, NULL, argv, environ) != 0)
        fail_msg("cannot start node, which the tests need (make deps)");
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    char port[16] = "";
    ssize_t n = read(out[0], port, sizeof port - 1);
    if (n <= 0)
        fail_msg("node's TLS server did not start");
    char *safe = xasprintf("https://127.0.0.1:%d/x", atoi(port));
    char *down = xasprintf("https://127.0.0.1:%d/down", atoi(port));

    struct buf body = BUF_INIT;
    struct http_call call = {.url = safe};
    assert_int_equal(http_client_fetch(client, &call, &body, NULL, &err), -1);
    assert_int_equal(err.code, ERR_UPSTREAM);
    assert_non_null(strstr(err.message, "certificate"));
    assert_int_equal(body.len, 0);

    call.ca_file = authority;
    assert_ok(http_client_fetch(client, &call, &body, NULL, &err), err);
    assert_string_equal(buf_cstr(&body), "safe");

    /* The trust of the call before doesn't outlive it. */
    call.ca_file = NULL;
    assert_int_equal(http_client_fetch(client, &call, &body, NULL, &err), -1);

    call.ca_file = authority;
    call.url = down;
    assert_int_equal(http_client_fetch(client, &call, &body, NULL, &err), -1);
    assert_non_null(strstr(err.message, "redirects from https to http://127.0.0.1"));

    /* The other name of this machine isn't in the certificate. */
    char *wrong_name = xasprintf("https://localhost:%d/x", atoi(port));
    call.url = wrong_name;
    assert_int_equal(http_client_fetch(client, &call, &body, NULL, &err), -1);
    assert_int_equal(err.code, ERR_UPSTREAM);

    close(in[1]);
    close(out[0]);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    buf_release(&body);
    free(safe);
    free(down);
    free(wrong_name);
    free(plain);
    free(authority);
    temp_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(complete_answers_are_successes_whatever_their_status),
        cmocka_unit_test(broken_answers_are_failures_that_name_the_url),
        cmocka_unit_test(nobody_at_the_port_is_named),
        cmocka_unit_test(only_http_and_https_urls_are_taken),
        cmocka_unit_test(slow_servers_are_left),
        cmocka_unit_test(a_cancelled_call_ends_at_once),
        cmocka_unit_test(requests_carry_method_headers_and_body),
        cmocka_unit_test(redirects_are_followed_within_limits),
        cmocka_unit_test(headers_stay_with_the_host_they_are_for),
        cmocka_unit_test(a_broken_download_goes_on_where_it_ended),
        cmocka_unit_test(callbacks_see_the_last_head_first_and_may_end_the_call),
        cmocka_unit_test(connections_are_reused),
        cmocka_unit_test(threads_share_a_client),
        cmocka_unit_test(urls_are_redacted),
        cmocka_unit_test(certificates_are_verified_and_https_never_falls_back),
    };
    return cmocka_run_group_tests_name("http_client", tests, open_both, close_both);
}
