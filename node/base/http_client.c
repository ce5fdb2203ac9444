/* http_client: see http_client.h. The only file that knows libcurl.
 *
 * Problem. A registry or an endpoint may be slow, broken or hostile: it may announce 10 GB, send
 * headers for ever, redirect in circles or to a file:// URL, trickle a byte a minute, or cut a body
 * short. None of it may hang, fill or mislead the node.
 *
 * Idea. libcurl moves the bytes; every limit is kept here, in the callbacks and in the loop around
 * them, so that each has a sentence of its own and none depends on the version of the library:
 *
 *   header callback   counts bytes, reads the few fields we need, decides at the empty line
 *                     whether this hop is the answer (on_head) or a redirect
 *   body callback     counts bytes against max_body_bytes, passes them on or drops a redirect's
 *   the loop          drives a multi handle in steps of at most 50 ms; between two steps it looks
 * at the cancel flag, the deadline and the progress of the last stall window
 *
 * Redirects are followed here and not by libcurl: rules about schemes and hosts compare two URLs,
 * and libcurl's own options can't say "never from https to http" of a chain that began with http.
 *
 *   client -- mutex -- idle slots (easy + multi handle, with its open connections)
 *
 * A call takes a slot or makes one, and gives it back; slots are never shared while in use. */
#include "node/base/http_client.h"

#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    IDLE_SLOTS_MAX = 8,
    STEP_MS = 50,
    URL_MAX_BYTES = 8192,
    DEFAULT_HEADER_BYTES = 64 * 1024,
    DEFAULT_REDIRECTS = 5,
    DEFAULT_CONNECT_MS = 10000,
    DEFAULT_TIMEOUT_MS = 60000,
    DEFAULT_STALL_MS = 20000,
};
#define DEFAULT_BODY_BYTES ((uint64_t)1 << 20)

struct slot {
    CURL *easy;
    CURLM *multi;
};

struct http_client {
    pthread_mutex_t lock;
    struct slot idle[IDLE_SLOTS_MAX];
    size_t n_idle;
};

/* One call, over all its hops. */
struct flight {
    const struct http_call *call;
    struct http_reply reply;
    struct err *err;
    bool failed;             /* *err is ours or a callback's, not libcurl's */
    char name[1024];         /* what errors call it */
    char url[URL_MAX_BYTES]; /* of this hop */
    uint64_t max_body_bytes;
    size_t max_header_bytes, header_bytes;
    bool head_done, follows; /* this hop: its header is complete; it is a redirect to follow */
    bool has_content_range, bad_range;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void init_library(void)
{
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        BUG("libcurl cannot be initialised");
}

struct http_client *http_client_create(void)
{
    pthread_once(&once, init_library);
    struct http_client *c = xcalloc(1, sizeof *c);
    pthread_mutex_init(&c->lock, NULL);
    return c;
}

static void slot_release(struct slot *s)
{
    if (s->easy != NULL)
        curl_easy_cleanup(s->easy);
    if (s->multi != NULL)
        curl_multi_cleanup(s->multi);
    *s = (struct slot){NULL, NULL};
}

void http_client_free(struct http_client *c)
{
    if (c == NULL)
        return;
    for (size_t i = 0; i < c->n_idle; i++)
        slot_release(&c->idle[i]);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

static int slot_take(struct http_client *c, struct slot *out, struct err *err)
{
    *out = (struct slot){NULL, NULL};
    pthread_mutex_lock(&c->lock);
    if (c->n_idle > 0)
        *out = c->idle[--c->n_idle];
    pthread_mutex_unlock(&c->lock);
    if (out->easy != NULL)
        return 0;
    out->easy = curl_easy_init();
    out->multi = curl_multi_init();
    if (out->easy == NULL || out->multi == NULL) {
        slot_release(out);
        return err_set(err, ERR_NO_MEMORY, "no memory for an HTTP request");
    }
    return 0;
}

static void slot_give_back(struct http_client *c, struct slot *s)
{
    /* Forgets all options (they point into the caller's memory), keeps the connections. */
    curl_easy_reset(s->easy);
    pthread_mutex_lock(&c->lock);
    if (c->n_idle < IDLE_SLOTS_MAX) {
        c->idle[c->n_idle++] = *s;
        *s = (struct slot){NULL, NULL};
    }
    pthread_mutex_unlock(&c->lock);
    slot_release(s);
}

/* ---- URLs --------------------------------------------------------------------------------- */

char *http_url_redact(char *out, size_t cap, const char *url, bool host_only)
{
    BUG_IF(cap == 0);
    const char *mark = strstr(url, "://");
    const char *host = mark == NULL ? url : mark + 3;
    size_t n_authority = strcspn(host, "/?#");
    const char *at = memrchr(host, '@', n_authority);
    const char *from = at == NULL ? host : at + 1;
    size_t n_from = host_only ? n_authority - (size_t)(from - host) : strcspn(from, "?#");
    snprintf(out, cap, "%.*s%.*s", mark == NULL ? 0 : (int)(mark + 3 - url), url,
             n_from > 4096 ? 4096 : (int)n_from, from);
    /* Whoever writes the URL writes into our log. */
    for (char *p = out; *p != '\0'; p++) {
        if ((unsigned char)*p < ' ' || *p == 127)
            *p = '?';
    }
    return out;
}

static bool has_scheme(const char *url, const char *scheme)
{
    size_t n = strlen(scheme);
    return strncasecmp(url, scheme, n) == 0 && strncmp(url + n, "://", 3) == 0;
}

/* Whether two URLs have scheme, host and port in common, so that what is meant for one may be told
 * to the other. Anything unparsable is another place. */
static bool same_place(const char *a, const char *b)
{
    static const CURLUPart parts[] = {CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT};
    CURLU *ua = curl_url(), *ub = curl_url();
    bool same = ua != NULL && ub != NULL && curl_url_set(ua, CURLUPART_URL, a, 0) == CURLUE_OK &&
                curl_url_set(ub, CURLUPART_URL, b, 0) == CURLUE_OK;
    for (size_t i = 0; same && i < sizeof parts / sizeof *parts; i++) {
        char *x = NULL, *y = NULL;
        same = curl_url_get(ua, parts[i], &x, CURLU_DEFAULT_PORT) == CURLUE_OK &&
               curl_url_get(ub, parts[i], &y, CURLU_DEFAULT_PORT) == CURLUE_OK &&
               strcasecmp(x, y) == 0;
        curl_free(x);
        curl_free(y);
    }
    curl_url_cleanup(ua);
    curl_url_cleanup(ub);
    return same;
}

static int set_url(struct flight *f, const char *url, struct err *err)
{
    size_t n = strlen(url);
    if (n >= sizeof f->url)
        return err_set(err, ERR_INVALID, "%s: the URL is longer than %d bytes", f->name,
                       URL_MAX_BYTES - 1);
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)url[i] <= ' ' || url[i] == 127)
            return err_set(err, ERR_INVALID, "%s: a space or control character in the URL",
                           f->name);
    }
    if (!has_scheme(url, "http") && !has_scheme(url, "https"))
        return err_set(err, ERR_INVALID, "%s: neither an http nor an https URL", f->name);
    memcpy(f->url, url, n + 1);
    return 0;
}

/* ---- the header --------------------------------------------------------------------------- */

static int refuse(struct flight *f, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Ends the flight from within a callback. */
static int refuse(struct flight *f, enum err_code code, const char *fmt, ...)
{
    char why[ERR_MESSAGE_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, sizeof why, fmt, args);
    va_end(args);
    f->failed = true;
    return err_set(f->err, code, "%s: %s", f->name, why);
}

/* The value when line is "name: value", without white space around it; else false. */
static bool field(const char *line, size_t n, const char *name, const char **value, size_t *n_value)
{
    size_t n_name = strlen(name);
    if (n <= n_name || strncasecmp(line, name, n_name) != 0 || line[n_name] != ':')
        return false;
    const char *v = line + n_name + 1, *end = line + n;
    while (v < end && (*v == ' ' || *v == '\t'))
        v++;
    while (end > v && (unsigned char)end[-1] <= ' ')
        end--;
    *value = v;
    *n_value = (size_t)(end - v);
    return true;
}

static void copy_text(char *out, size_t cap, const char *v, size_t n)
{
    if (n >= cap)
        n = cap - 1;
    for (size_t i = 0; i < n; i++)
        out[i] = (unsigned char)v[i] < ' ' || v[i] == 127 ? '?' : v[i];
    out[n] = '\0';
}

/* Digits alone, below 2^63; returns the number of bytes read, 0 when there is no such number. */
static size_t read_number(uint64_t *out, const char *v, size_t n)
{
    uint64_t value = 0;
    size_t i = 0;
    for (; i < n && v[i] >= '0' && v[i] <= '9'; i++) {
        if (value > ((uint64_t)INT64_MAX - 9) / 10)
            return 0;
        value = value * 10 + (uint64_t)(v[i] - '0');
    }
    *out = value;
    return i;
}

/* "bytes 100-199/200" or "bytes 100-199/" and an asterisk (RFC 9110, 14.4). */
static void read_content_range(struct flight *f, const char *v, size_t n)
{
    uint64_t first, last, total;
    size_t used;
    f->has_content_range = true;
    f->bad_range = true;
    if (n < 6 || strncasecmp(v, "bytes ", 6) != 0)
        return;
    v += 6, n -= 6;
    if ((used = read_number(&first, v, n)) == 0 || used == n || v[used] != '-')
        return;
    v += used + 1, n -= used + 1;
    if ((used = read_number(&last, v, n)) == 0 || used == n || v[used] != '/' || last < first)
        return;
    v += used + 1, n -= used + 1;
    if (n == 1 && v[0] == '*') {
        f->bad_range = false;
    } else if (read_number(&total, v, n) == n && n > 0 && total > last) {
        f->reply.has_total = true;
        f->reply.total_bytes = total;
        f->bad_range = false;
    }
    f->reply.range_from = first;
}

static void head_begin(struct flight *f, int status)
{
    struct http_reply fresh = {.status = status, .redirects = f->reply.redirects};
    f->reply = fresh;
    f->head_done = f->follows = f->has_content_range = f->bad_range = false;
}

/* The header of a final (not 1xx) answer is complete. */
static int head_end(struct flight *f)
{
    struct http_reply *r = &f->reply;
    const struct http_call *call = f->call;
    f->head_done = true;
    bool redirects = r->status == 301 || r->status == 302 || r->status == 303 || r->status == 307 ||
                     r->status == 308;
    if (redirects && r->location[0] != '\0' && !call->no_redirects) {
        if (call->method != HTTP_GET && call->method != HTTP_HEAD)
            return refuse(f, ERR_UPSTREAM, "answers with a redirect, which only GET may follow");
        f->follows = true;
        return 0;
    }
    if (r->status == 206) {
        if (call->range_from == 0)
            return refuse(f, ERR_UPSTREAM, "answers with a part (206) that nobody asked for");
        if (!f->has_content_range || f->bad_range || r->range_from != call->range_from)
            return refuse(f, ERR_UPSTREAM, "answers with another part than from byte %llu on",
                          (unsigned long long)call->range_from);
    } else {
        r->range_from = 0;
    }
    if (r->has_length && call->method != HTTP_HEAD && r->length_bytes > f->max_body_bytes)
        return refuse(f, ERR_TOO_LARGE, "announces %llu bytes, the limit is %llu",
                      (unsigned long long)r->length_bytes, (unsigned long long)f->max_body_bytes);
    if (call->on_head != NULL && call->on_head(call->context, r, f->err) != 0) {
        f->failed = true;
        return -1;
    }
    return 0;
}

static int head_line(struct flight *f, const char *line, size_t n)
{
    const char *v;
    size_t n_v;
    if (n >= 5 && memcmp(line, "HTTP/", 5) == 0) {
        /* "HTTP/1.1 200 OK", "HTTP/2 200"; libcurl has checked the version. */
        const char *space = memchr(line, ' ', n);
        uint64_t status = 0;
        if (space == NULL || read_number(&status, space + 1, (size_t)(line + n - space - 1)) != 3)
            return refuse(f, ERR_UPSTREAM, "answers without a status");
        head_begin(f, (int)status);
        return 0;
    }
    if (f->head_done)
        return 0; /* a trailer of a chunked body */
    struct http_reply *r = &f->reply;
    if (n == 0)
        return r->status >= 200 ? head_end(f) : 0;
    if (field(line, n, "Content-Type", &v, &n_v)) {
        copy_text(r->content_type, sizeof r->content_type, v, n_v);
    } else if (field(line, n, "ETag", &v, &n_v)) {
        copy_text(r->etag, sizeof r->etag, v, n_v);
    } else if (field(line, n, "Location", &v, &n_v)) {
        copy_text(r->location, sizeof r->location, v, n_v);
    } else if (field(line, n, "Retry-After", &v, &n_v)) {
        uint64_t s;
        if (n_v > 0 && read_number(&s, v, n_v) == n_v)
            r->retry_after_s = s;
    } else if (field(line, n, "Content-Length", &v, &n_v)) {
        uint64_t length;
        if (n_v == 0 || read_number(&length, v, n_v) != n_v)
            return refuse(f, ERR_UPSTREAM, "answers with an impossible Content-Length");
        if (r->has_length && r->length_bytes != length)
            return refuse(f, ERR_UPSTREAM, "answers with two different Content-Lengths");
        r->has_length = true;
        r->length_bytes = length;
    } else if (field(line, n, "Content-Range", &v, &n_v)) {
        read_content_range(f, v, n_v);
    }
    return 0;
}

static size_t on_header(char *bytes, size_t size, size_t n_items, void *context)
{
    struct flight *f = context;
    size_t n = size * n_items;
    f->header_bytes += n;
    if (f->header_bytes > f->max_header_bytes) {
        refuse(f, ERR_TOO_LARGE, "its header is longer than %zu bytes", f->max_header_bytes);
        return 0;
    }
    size_t line = n;
    while (line > 0 && (bytes[line - 1] == '\n' || bytes[line - 1] == '\r'))
        line--;
    return head_line(f, bytes, line) == 0 ? n : 0;
}

/* ---- the body ----------------------------------------------------------------------------- */

static size_t on_write(char *bytes, size_t size, size_t n_items, void *context)
{
    struct flight *f = context;
    size_t n = size * n_items;
    f->reply.body_bytes += n;
    if (f->reply.body_bytes > f->max_body_bytes) {
        refuse(f, ERR_TOO_LARGE, "its body is longer than %llu bytes",
               (unsigned long long)f->max_body_bytes);
        return 0;
    }
    if (n == 0 || f->follows || f->call->on_body == NULL)
        return n;
    if (f->call->on_body(f->call->context, bytes, n, f->err) != 0) {
        f->failed = true;
        return 0;
    }
    return n;
}

/* ---- one hop ------------------------------------------------------------------------------ */

/* Setting an option fails only for a wrong type or for want of memory. */
#define SET(option, value)                                                             \
    do {                                                                               \
        if (curl_easy_setopt(easy, option, value) != CURLE_OK)                         \
            return err_set(f->err, ERR_NO_MEMORY, "%s: cannot set " #option, f->name); \
    } while (0)

static int prepare(struct flight *f, CURL *easy, struct curl_slist *headers, const char *no_proxy)
{
    const struct http_call *call = f->call;
    curl_easy_reset(easy);
    SET(CURLOPT_URL, f->url);
    SET(CURLOPT_PROTOCOLS_STR, "http,https");
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_SSL_VERIFYPEER, 1L);
    SET(CURLOPT_SSL_VERIFYHOST, 2L);
    SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    if (call->ca_file != NULL)
        SET(CURLOPT_CAINFO, call->ca_file);
    SET(CURLOPT_NOPROXY, no_proxy);
    SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    SET(CURLOPT_USERAGENT, "tributary");
    SET(CURLOPT_HTTPHEADER, headers);
    SET(CURLOPT_HEADERFUNCTION, on_header);
    SET(CURLOPT_HEADERDATA, f);
    SET(CURLOPT_WRITEFUNCTION, on_write);
    SET(CURLOPT_WRITEDATA, f);
    SET(CURLOPT_CONNECTTIMEOUT_MS,
        (long)(call->connect_timeout_ms != 0 ? call->connect_timeout_ms : DEFAULT_CONNECT_MS));
    switch (call->method) {
    case HTTP_GET:
        SET(CURLOPT_HTTPGET, 1L);
        break;
    case HTTP_HEAD:
        SET(CURLOPT_NOBODY, 1L);
        break;
    case HTTP_DELETE:
        SET(CURLOPT_CUSTOMREQUEST, "DELETE");
        break;
    case HTTP_PUT:
    case HTTP_POST:
        /* PUT as a POST of another name: the same path through libcurl, and no read callback. */
        SET(CURLOPT_POST, 1L);
        SET(CURLOPT_POSTFIELDS, call->body != NULL ? call->body : "");
        SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)call->n_body);
        if (call->method == HTTP_PUT)
            SET(CURLOPT_CUSTOMREQUEST, "PUT");
        break;
    }
    if (call->range_from != 0) {
        char range[32];
        snprintf(range, sizeof range, "%llu-", (unsigned long long)call->range_from);
        SET(CURLOPT_RANGE, range);
    }
    return 0;
}

static int explain(struct flight *f, CURLcode code, const char *detail)
{
    if (f->failed)
        return -1;
    const char *text = detail[0] != '\0' ? detail : curl_easy_strerror(code);
    switch (code) {
    case CURLE_OPERATION_TIMEDOUT:
        return refuse(f, ERR_TIMEOUT, "%s", text);
    case CURLE_OUT_OF_MEMORY:
        /* Which is also what older versions say of a header line beyond their own limit. */
        if (!f->head_done)
            return refuse(f, ERR_TOO_LARGE,
                          "a line of its header is too long, or no memory is left");
        return refuse(f, ERR_NO_MEMORY, "%s", text);
    case CURLE_URL_MALFORMAT:
        return refuse(f, ERR_INVALID, "%s", text);
    case CURLE_PARTIAL_FILE:
        return refuse(f, ERR_UPSTREAM, "the answer ends early (%s)", text);
    default:
        return refuse(f, ERR_UPSTREAM, "%s", text);
    }
}

/* Progress of the last stall window. */
struct pace {
    struct monotonic_us window_start;
    uint64_t bytes_then;
};

/* Between two steps: may the flight go on? */
static int check_flight(struct flight *f, CURL *easy, struct monotonic_us begun, struct pace *pace)
{
    const struct http_call *call = f->call;
    if (call->cancel != NULL && atomic_load(call->cancel))
        return refuse(f, ERR_CANCELLED, "cancelled");
    struct monotonic_us now = clock_monotonic_us();
    uint64_t limit_ms = call->timeout_ms != 0 ? call->timeout_ms : DEFAULT_TIMEOUT_MS;
    if (clock_elapsed_us(begun, now) / 1000 >= limit_ms)
        return refuse(f, ERR_TIMEOUT, "no complete answer within %llu ms",
                      (unsigned long long)limit_ms);
    uint64_t stall_ms = call->stall_ms != 0 ? call->stall_ms : DEFAULT_STALL_MS;
    if (clock_elapsed_us(pace->window_start, now) / 1000 < stall_ms)
        return 0;
    curl_off_t down = 0, up = 0;
    curl_easy_getinfo(easy, CURLINFO_SIZE_DOWNLOAD_T, &down);
    curl_easy_getinfo(easy, CURLINFO_SIZE_UPLOAD_T, &up);
    uint64_t bytes = (uint64_t)down + (uint64_t)up + f->header_bytes;
    uint64_t least = call->stall_bytes != 0 ? call->stall_bytes : 1;
    if (bytes - pace->bytes_then < least)
        return refuse(f, ERR_TIMEOUT, "stalled: %llu bytes in %llu ms",
                      (unsigned long long)(bytes - pace->bytes_then), (unsigned long long)stall_ms);
    *pace = (struct pace){now, bytes};
    return 0;
}

static int drive(struct flight *f, const struct slot *s, struct monotonic_us begun)
{
    char detail[CURL_ERROR_SIZE] = "";
    if (curl_easy_setopt(s->easy, CURLOPT_ERRORBUFFER, detail) != CURLE_OK ||
        curl_multi_add_handle(s->multi, s->easy) != CURLM_OK)
        return err_set(f->err, ERR_NO_MEMORY, "%s: cannot start the request", f->name);
    struct pace pace = {clock_monotonic_us(), 0};
    CURLcode code = CURLE_OK;
    int rc = 0, running = 1;
    f->header_bytes = 0;
    while (rc == 0) {
        CURLMcode m = curl_multi_perform(s->multi, &running);
        if (m == CURLM_OK && running > 0)
            m = curl_multi_poll(s->multi, NULL, 0, STEP_MS, NULL);
        if (m != CURLM_OK)
            rc = refuse(f, ERR_UPSTREAM, "%s", curl_multi_strerror(m));
        else if (running == 0)
            break;
        else
            rc = check_flight(f, s->easy, begun, &pace);
    }
    CURLMsg *msg;
    int left;
    while ((msg = curl_multi_info_read(s->multi, &left)) != NULL) {
        if (msg->msg == CURLMSG_DONE)
            code = msg->data.result;
    }
    curl_multi_remove_handle(s->multi, s->easy);
    curl_easy_setopt(s->easy, CURLOPT_ERRORBUFFER, NULL);
    if (rc != 0)
        return rc;
    if (code != CURLE_OK)
        return explain(f, code, detail);
    if (!f->head_done)
        return refuse(f, ERR_UPSTREAM, "the answer ends within its header");
    return 0;
}

/* The headers of this hop; those of the caller only where they were meant to go. */
static int make_headers(struct curl_slist **out, const struct http_call *call, const char *url,
                        struct err *err)
{
    /* No "Expect: 100-continue", which costs a round trip or, with servers that don't know it, a
     * second. */
    static const char *const own[] = {"Expect:", "Accept: */*"};
    bool theirs = same_place(call->url, url);
    *out = NULL;
    for (size_t i = 0; i < 2 + (theirs ? call->n_headers : 0); i++) {
        const char *line = i < 2 ? own[i] : call->headers[i - 2];
        BUG_IF(strpbrk(line, "\r\n") != NULL);
        struct curl_slist *longer = curl_slist_append(*out, line);
        if (longer == NULL) {
            curl_slist_free_all(*out);
            *out = NULL;
            return err_set(err, ERR_NO_MEMORY, "no memory for HTTP headers");
        }
        *out = longer;
    }
    return 0;
}

/* Where the redirect of the last hop leads. */
static int follow(struct flight *f, CURL *easy)
{
    char *next = NULL;
    const struct http_call *call = f->call;
    unsigned limit = call->max_redirects != 0 ? call->max_redirects : DEFAULT_REDIRECTS;
    if (f->reply.redirects >= limit)
        return refuse(f, ERR_UPSTREAM, "redirects more than %u times", limit);
    curl_easy_getinfo(easy, CURLINFO_REDIRECT_URL, &next);
    if (next == NULL)
        return refuse(f, ERR_UPSTREAM, "redirects to nowhere");
    char where[256];
    http_url_redact(where, sizeof where, next, false);
    if (!has_scheme(next, "http") && !has_scheme(next, "https"))
        return refuse(f, ERR_UPSTREAM, "redirects to %s, which is neither http nor https", where);
    if (has_scheme(f->url, "https") && !has_scheme(next, "https"))
        return refuse(f, ERR_UPSTREAM, "redirects from https to %s", where);
    char *copy = xstrdup(next); /* next dies with the next option */
    struct err why;
    int rc = set_url(f, copy, &why);
    free(copy);
    if (rc != 0)
        return refuse(f, ERR_UPSTREAM, "redirects to a bad URL");
    f->reply.redirects++;
    return 0;
}

/* What isn't proxied: the environment's list, and this machine. */
static char *no_proxy_list(void)
{
    const char *env = getenv("no_proxy");
    if (env == NULL)
        env = getenv("NO_PROXY");
    if (env == NULL)
        env = "";
    return xasprintf("%s%slocalhost,127.0.0.1,::1", env, env[0] != '\0' ? "," : "");
}

int http_client_call(struct http_client *c, const struct http_call *call, struct http_reply *reply,
                     struct err *err)
{
    struct err ignored = {0};
    struct flight *f = xcalloc(1, sizeof *f);
    struct slot slot = {NULL, NULL};
    struct monotonic_us begun = clock_monotonic_us();
    int rc;

    BUG_IF(call->url == NULL);
    f->call = call;
    f->err = err != NULL ? err : &ignored;
    f->max_body_bytes = call->max_body_bytes != 0 ? call->max_body_bytes : DEFAULT_BODY_BYTES;
    f->max_header_bytes = call->max_header_bytes != 0 ? call->max_header_bytes
                                                      : DEFAULT_HEADER_BYTES;
    if (call->name != NULL)
        snprintf(f->name, sizeof f->name, "%s", call->name);
    else
        http_url_redact(f->name, sizeof f->name, call->url, false);

    char *no_proxy = no_proxy_list();
    rc = set_url(f, call->url, f->err);
    if (rc == 0 && call->cancel != NULL && atomic_load(call->cancel))
        rc = refuse(f, ERR_CANCELLED, "cancelled");
    if (rc == 0)
        rc = slot_take(c, &slot, f->err);
    while (rc == 0) {
        struct curl_slist *headers = NULL;
        f->head_done = f->follows = false;
        rc = make_headers(&headers, call, f->url, f->err);
        if (rc == 0)
            rc = prepare(f, slot.easy, headers, no_proxy);
        if (rc == 0)
            rc = drive(f, &slot, begun);
        bool again = rc == 0 && f->follows;
        if (again)
            rc = follow(f, slot.easy);
        curl_easy_setopt(slot.easy, CURLOPT_HTTPHEADER, NULL);
        curl_slist_free_all(headers);
        if (!again)
            break;
    }
    if (slot.easy != NULL)
        slot_give_back(c, &slot);
    if (reply != NULL)
        *reply = f->reply;
    free(no_proxy);
    free(f);
    return rc;
}

static int append_body(void *context, const void *bytes, size_t n, struct err *err)
{
    (void)err;
    buf_append(context, bytes, n);
    return 0;
}

int http_client_fetch(struct http_client *c, const struct http_call *call, struct buf *body,
                      struct http_reply *reply, struct err *err)
{
    struct http_call collect = *call;
    collect.on_head = NULL;
    collect.on_body = append_body;
    collect.context = body;
    return http_client_call(c, &collect, reply, err);
}
