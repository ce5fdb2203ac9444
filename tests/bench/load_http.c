/* load_http: the requests of load on their way. libcurl's multi interface by its socket callbacks,
 * on an epoll of ours, so that a turn costs what happened in it and not the number of connections.
 */
#include "tests/bench/load.h"

#include "node/base/err.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    ERRORS_TOLD = 5,
    EVENTS = 64,
    RETRY_MAX_US = 1000000,
    AFTER_ERROR_US = 200000,
    GET_MAX_BYTES = 64 << 20,
    REFUSAL_MAX_BYTES = 4096,
};

_Noreturn void load_die(const char *what, const char *why)
{
    fprintf(stderr, "load: %s: %s\n", what, why);
    exit(2);
}

static struct monotonic_us later(struct monotonic_us t, double seconds)
{
    return (struct monotonic_us){t.us + (uint64_t)(seconds * 1e6)};
}

static double seconds_between(struct monotonic_us a, struct monotonic_us b)
{
    return (double)clock_elapsed_us(a, b) * 1e-6;
}

static bool in_window(const struct load *l, struct monotonic_us t)
{
    return t.us >= l->window.us && t.us < l->end.us;
}

void load_tell_error(struct load *l, const struct call *c, const char *why)
{
    if (l->n_errors++ < ERRORS_TOLD)
        printf("error: connection %d, %s: %s\n", c->index, l->models[c->adapter], why);
}

/* ---- plain requests ---------------------------------------------------------------------- */

static size_t append_body(char *bytes, size_t size, size_t n, void *context)
{
    struct buf *b = context;
    if (b->len + n * size > GET_MAX_BYTES)
        return 0;
    buf_append(b, bytes, n * size);
    return n * size;
}

static void set_key(const struct load *l, struct curl_slist **headers, int key)
{
    if (l->n_keys == 0)
        return;
    char *line = xasprintf("Authorization: Bearer %s", l->keys[key]);
    *headers = curl_slist_append(*headers, line);
    free(line);
}

void load_get(const struct load *l, const char *path, struct buf *out)
{
    CURL *easy = curl_easy_init();
    char *url = xasprintf("%s%s", l->url, path), wrong[CURL_ERROR_SIZE] = "";
    struct curl_slist *headers = NULL;
    long status = 0;
    if (easy == NULL)
        load_die(url, "no memory");
    set_key(l, &headers, 0);
    curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, append_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, out);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, wrong);
    curl_easy_setopt(easy, CURLOPT_TIMEOUT, 30L);
    CURLcode rc = curl_easy_perform(easy);
    if (rc != CURLE_OK)
        load_die(url, wrong[0] != '\0' ? wrong : curl_easy_strerror(rc));
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200)
        load_die(url, "the answer is not 200");
    curl_slist_free_all(headers);
    curl_easy_cleanup(easy);
    free(url);
}

/* ---- sockets ----------------------------------------------------------------------------- */

/* libcurl says what it waits for on a socket; `known` is what it was told before. */
static int on_socket(CURL *easy, curl_socket_t fd, int what, void *context, void *known)
{
    struct load *l = context;
    struct epoll_event e = {.data.fd = fd};
    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        /* A socket that is closed already has left by itself. */
        int rc = epoll_ctl(l->epoll, EPOLL_CTL_DEL, fd, NULL);
        return rc == 0 || errno == EBADF || errno == ENOENT ? 0 : -1;
    }
    e.events = (what != CURL_POLL_OUT ? EPOLLIN : 0u) | (what != CURL_POLL_IN ? EPOLLOUT : 0u);
    if (epoll_ctl(l->epoll, known == NULL ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd, &e) != 0)
        load_die("epoll", strerror(errno));
    return curl_multi_assign(l->multi, fd, l) == CURLM_OK ? 0 : -1;
}

static int on_timer(CURLM *multi, long timeout_ms, void *context)
{
    struct load *l = context;
    (void)multi;
    l->timer = timeout_ms < 0 ? (struct monotonic_us){0}
                              : later(clock_monotonic_us(), (double)timeout_ms * 1e-3);
    return 0;
}

static size_t on_body(char *bytes, size_t size, size_t n, void *context)
{
    struct call *c = context;
    struct load *l = c->load;
    struct monotonic_us now = clock_monotonic_us();
    long status = 0;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200) {
        if (c->refusal.len + n * size <= REFUSAL_MAX_BYTES)
            buf_append(&c->refusal, bytes, n * size);
        return n * size;
    }
    int before = c->answer.n_tokens, n_new = answer_feed(&c->answer, bytes, n * size);
    bool counts = in_window(l, now);
    if (n_new == 0)
        return n * size;
    if (before == 0 && c->counts)
        latency_note(&l->ttft, seconds_between(c->due, now) * 1e3);
    else if (before > 0 && counts)
        latency_note(&l->itl, seconds_between(c->last, now) * 1e3 / n_new);
    if (counts) {
        l->n_tokens += (uint64_t)n_new;
        l->n_prompt_tokens += before == 0 ? (uint64_t)c->n_prompt : 0;
        l->served[c->key] += n_new + (before == 0 ? c->n_prompt : 0);
    }
    c->last = now;
    return n * size;
}

/* ---- asking ------------------------------------------------------------------------------ */

static void write_body(struct load *l, struct call *c)
{
    struct buf *b = &c->body;
    json_t *model = json_string(l->models[c->adapter]);
    char *name = json_dumps(model, JSON_ENCODE_ANY);
    buf_reset(b);
    buf_appendf(b,
                "{\"model\":%s,\"stream\":true,\"max_tokens\":%d,\"temperature\":0,"
                "\"ignore_eos\":true,\"return_token_ids\":true,\"prompt\":[",
                name, c->n_generate);
    for (int i = 0; i < c->n_prompt; i++)
        buf_appendf(b, "%s%d", i > 0 ? "," : "",
                    (int)(random_next(&l->random) % (uint64_t)l->o.vocab));
    buf_append_str(b, "]}");
    free(name);
    json_decref(model);
}

static void start(struct load *l, struct call *c, const struct workload_request *w,
                  struct monotonic_us due)
{
    bool closed = l->o.rate <= 0;
    c->adapter = w->adapter < 0 ? 0 : w->adapter;
    if (closed && l->o.popularity == NULL)
        c->adapter = c->index % l->n_models;
    c->key = l->n_keys > 0 ? (closed ? c->index % l->n_keys : w->payer) : 0;
    c->n_prompt = w->n_prompt;
    c->n_generate = w->n_generate;
    c->due = due;
    c->counts = in_window(l, due);
    write_body(l, c);
    buf_reset(&c->refusal);
    answer_init(&c->answer);
    curl_slist_free_all(c->headers);
    c->headers = curl_slist_append(NULL, "Content-Type: application/json");
    set_key(l, &c->headers, c->key);
    curl_easy_setopt(c->easy, CURLOPT_HTTPHEADER, c->headers);
    curl_easy_setopt(c->easy, CURLOPT_POSTFIELDS, c->body.data);
    curl_easy_setopt(c->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)c->body.len);
    if (curl_multi_add_handle(l->multi, c->easy) != CURLM_OK)
        load_die("a request", "libcurl doesn't take it");
    c->busy = true;
    l->n_busy++;
    if (c->counts) {
        l->n_asked++;
        l->prompt_asked += (uint64_t)c->n_prompt;
        l->generate_asked += (uint64_t)c->n_generate;
    }
    if (l->o.n_adapters > 0 && l->n_out[c->adapter]++ == 0 && ++l->n_distinct > l->distinct_max)
        l->distinct_max = l->n_distinct;
}

static void open_calls(struct load *l)
{
    l->n_calls = l->o.rate > 0 ? l->o.n_connections : l->o.n_streams;
    l->calls = xcalloc((size_t)l->n_calls, sizeof *l->calls);
    char *url = xasprintf("%s/v1/completions", l->url);
    for (int i = 0; i < l->n_calls; i++) {
        struct call *c = &l->calls[i];
        c->load = l;
        c->index = i;
        c->easy = curl_easy_init();
        if (c->easy == NULL)
            load_die("a connection", "no memory");
        curl_easy_setopt(c->easy, CURLOPT_URL, url);
        curl_easy_setopt(c->easy, CURLOPT_WRITEFUNCTION, on_body);
        curl_easy_setopt(c->easy, CURLOPT_WRITEDATA, c);
        curl_easy_setopt(c->easy, CURLOPT_PRIVATE, c);
        curl_easy_setopt(c->easy, CURLOPT_ERRORBUFFER, c->curl_error);
        curl_easy_setopt(c->easy, CURLOPT_TCP_NODELAY, 1L);
    }
    curl_multi_setopt(l->multi, CURLMOPT_MAXCONNECTS, (long)l->n_calls);
    free(url);
}

/* ---- ends -------------------------------------------------------------------------------- */

/* The node's own sentence, if there is one. */
static void tell_status(char *out, size_t size, struct call *c, long status)
{
    json_t *root = json_loadb(buf_cstr(&c->refusal), c->refusal.len, 0, NULL);
    const char *message = json_string_value(
        json_object_get(json_object_get(root, "error"), "message"));
    snprintf(out, size, "HTTP status %ld%s%.200s", status, message != NULL ? ": " : "",
             message != NULL ? message : "");
    json_decref(root);
}

static void note_end(struct load *l, struct call *c, CURLcode rc)
{
    struct monotonic_us now = clock_monotonic_us();
    struct err err = {0};
    char text[CURL_ERROR_SIZE + 64];
    long status = 0;
    curl_off_t retry_s = 0;
    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(c->easy, CURLINFO_RETRY_AFTER, &retry_s);
    c->not_before = now;
    if (rc == CURLE_OK && (status == 429 || status == 503)) {
        l->n_429 += status == 429;
        l->n_503 += status == 503;
        c->not_before.us += RETRY_MAX_US;
        if (retry_s <= 0)
            load_tell_error(l, c, "429 or 503 without Retry-After");
        return;
    }
    if (rc != CURLE_OK)
        snprintf(text, sizeof text, "%s",
                 c->curl_error[0] != '\0' ? c->curl_error : curl_easy_strerror(rc));
    else if (status != 200)
        tell_status(text, sizeof text, c, status);
    else if (answer_check(&c->answer, c->n_prompt, c->n_generate, c->body.data, c->body.len,
                          &err) != 0)
        snprintf(text, sizeof text, "%.200s", err.message);
    else {
        l->n_answers += in_window(l, now);
        return;
    }
    c->not_before.us += AFTER_ERROR_US;
    load_tell_error(l, c, text);
}

static void take_ends(struct load *l)
{
    int n_left;
    for (CURLMsg *m; (m = curl_multi_info_read(l->multi, &n_left)) != NULL;) {
        struct call *c = NULL;
        if (m->msg != CURLMSG_DONE)
            continue;
        CURLcode rc = m->data.result; /* the message goes with the handle */
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &c);
        note_end(l, c, rc);
        curl_multi_remove_handle(l->multi, c->easy);
        c->busy = false;
        l->n_busy--;
        if (l->o.n_adapters > 0)
            l->n_distinct -= --l->n_out[c->adapter] == 0;
    }
}

/* ---- the loop ---------------------------------------------------------------------------- */

static void put_waiting(struct load *l, const struct workload_request *w, struct monotonic_us due)
{
    if (l->n_waiting == l->max_waiting) {
        l->max_waiting = 2 * l->max_waiting + 256;
        l->waiting = xrealloc_array(l->waiting, l->max_waiting, sizeof *l->waiting);
    }
    l->waiting[l->n_waiting++] = (struct pending){*w, due};
}

/* Requests that are due go out; returns when the next one may. */
static struct monotonic_us ask_due(struct load *l)
{
    struct monotonic_us now = clock_monotonic_us(), next = l->end;
    if (now.us >= l->end.us)
        return later(now, 0.1);
    while (l->o.rate > 0 && later(l->begin, l->next.at_s).us <= now.us) {
        put_waiting(l, &l->next, later(l->begin, l->next.at_s));
        workload_next(l->workload, &l->next);
    }
    for (int i = 0; i < l->n_calls; i++) {
        struct call *c = &l->calls[i];
        if (c->busy)
            continue;
        if (l->o.rate > 0) {
            if (l->first_waiting == l->n_waiting)
                break;
            const struct pending *p = &l->waiting[l->first_waiting++];
            start(l, c, &p->request, p->due);
        } else if (c->not_before.us <= now.us) {
            struct workload_request w;
            workload_next(l->workload, &w);
            start(l, c, &w, now);
        } else if (c->not_before.us < next.us) {
            next = c->not_before;
        }
    }
    if (l->first_waiting == l->n_waiting)
        l->first_waiting = l->n_waiting = 0;
    if (l->o.rate > 0 && later(l->begin, l->next.at_s).us < next.us)
        next = later(l->begin, l->next.at_s);
    return next;
}

static void turn(struct load *l, struct monotonic_us until)
{
    struct epoll_event events[EVENTS];
    struct monotonic_us now = clock_monotonic_us();
    int n_running;
    if (l->timer.us != 0 && l->timer.us < until.us)
        until = l->timer;
    int wait_ms = until.us > now.us ? (int)((until.us - now.us + 999) / 1000) : 0;
    int n = epoll_wait(l->epoll, events, EVENTS, wait_ms < 100 ? wait_ms : 100);
    if (n < 0 && errno != EINTR)
        load_die("epoll", strerror(errno));
    for (int i = 0; i < n; i++) {
        int bits = ((events[i].events & (EPOLLIN | EPOLLHUP)) != 0 ? CURL_CSELECT_IN : 0) |
                   ((events[i].events & EPOLLOUT) != 0 ? CURL_CSELECT_OUT : 0) |
                   ((events[i].events & EPOLLERR) != 0 ? CURL_CSELECT_ERR : 0);
        curl_multi_socket_action(l->multi, events[i].data.fd, bits, &n_running);
    }
    if (l->timer.us != 0 && l->timer.us <= clock_monotonic_us().us) {
        l->timer.us = 0;
        curl_multi_socket_action(l->multi, CURL_SOCKET_TIMEOUT, 0, &n_running);
    }
    take_ends(l);
}

void load_run(struct load *l)
{
    l->begin = clock_monotonic_us();
    l->window = later(l->begin, l->o.warm_s);
    l->end = later(l->window, l->o.seconds);
    if (l->o.rate > 0)
        workload_next(l->workload, &l->next);
    while (clock_monotonic_us().us < l->end.us)
        turn(l, ask_due(l));
    struct monotonic_us give_up = later(l->end, l->o.drain_s);
    while (l->n_busy > 0 && clock_monotonic_us().us < give_up.us)
        turn(l, give_up);
    for (; l->first_waiting < l->n_waiting; l->first_waiting++)
        l->n_unfinished += in_window(l, l->waiting[l->first_waiting].due);
    for (int i = 0; i < l->n_calls; i++)
        l->n_unfinished += l->calls[i].busy && l->calls[i].counts;
}

/* ---- opening and closing ----------------------------------------------------------------- */

void load_open(struct load *l)
{
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK ||
        (l->multi = curl_multi_init()) == NULL || (l->epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
        load_die("libcurl or epoll", "cannot be set up");
    curl_multi_setopt(l->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(l->multi, CURLMOPT_SOCKETDATA, l);
    curl_multi_setopt(l->multi, CURLMOPT_TIMERFUNCTION, on_timer);
    curl_multi_setopt(l->multi, CURLMOPT_TIMERDATA, l);
    l->n_out = xcalloc((size_t)l->n_models, sizeof *l->n_out);
    l->served = xcalloc((size_t)l->n_keys + 1, sizeof *l->served);
    open_calls(l);
}

void load_close(struct load *l)
{
    for (int i = 0; i < l->n_calls; i++) {
        struct call *c = &l->calls[i];
        if (c->busy)
            curl_multi_remove_handle(l->multi, c->easy);
        curl_easy_cleanup(c->easy);
        curl_slist_free_all(c->headers);
        answer_release(&c->answer);
        buf_release(&c->body);
        buf_release(&c->refusal);
    }
    curl_multi_cleanup(l->multi);
    curl_global_cleanup();
    close(l->epoll);
    free(l->calls);
    free(l->waiting);
    free(l->n_out);
    free(l->served);
}
