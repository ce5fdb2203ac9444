/* load: streaming completions against a node over HTTP, from one process; each answer checked.
 *
 *     load HOST:PORT [--streams 64] [--adapters 32] [--prompt 128] [--generate 64] [--warm 10]
 *          [--seconds 60] [--vocab 128256] [--csv FILE] [--commit ID]             closed loop
 *     load HOST:PORT --rate 40 --cv 8 --popularity zipf:1.1 --lengths azure-conv   open loop
 *
 * Closed loop: each of `streams` connections asks, waits for the last event of the answer, and asks
 * again. Open loop (--rate): requests come when they come, over as many connections as it takes, up
 * to --connections; one that finds none free waits for it, its clock running. Adapters are those
 * that /v1/models lists after the base model (--adapters 0: the base model). Without --popularity,
 * stream i always has adapter i modulo their number (an open loop: uniform); with it the workload
 * draws (workload.h). Prompts are random token ids, all different (without --seed in every run,
 * too, so that a node's prefix cache finds none of the last run's); end-of-sequence tokens are
 * ignored, so every answer has the length that was asked for. --keys FILE: an API key a line;
 * stream i asks with key i modulo their number, in an open loop the workload's payers are the keys.
 *
 * After `warm` seconds everything counts for `seconds`:
 *   output   tokens that arrived, per second
 *   ttft     from the sending (open loop: from when it was due) to the first token, of requests
 * that began in the window itl      between two events with tokens, divided by the tokens of the
 * later one jain     Jain's index over the tokens that the keys were given distinct the node's own
 * count of decode steps by distinct adapters, from /metrics: the share of the bucket of the median
 * step is told, and that no step held more different adapters than were out at once (nobody else
 * may ask the node meanwhile)
 *
 * 429 and 503 are counted and not errors when they say Retry-After, which a stream heeds for up to
 * a second. Everything else than a whole answer (answer.h: receipt, counts, hashes) is an error.
 * Requests that are out when the window ends are waited for (--drain 60), and count as unfinished
 * then. Exit status: 1 if there are errors, or no answer at all; 2 it could not be run.
 *
 * One thread: libcurl's multi interface by its socket callbacks, on an epoll of ours. */
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "tests/bench/answer.h"
#include "tests/bench/latency.h"
#include "tests/bench/workload.h"

#include <curl/curl.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
    ERRORS_TOLD = 5,
    EVENTS = 64,
    BUCKETS = 9,
    RETRY_MAX_US = 1000000,
    AFTER_ERROR_US = 200000,
    MODELS_MAX_BYTES = 64 << 20,
};

struct options {
    const char *address, *csv, *commit, *popularity, *lengths, *keys, *models;
    int n_streams, n_adapters, n_prompt, n_generate, vocab, n_connections;
    double warm_s, seconds, drain_s, rate, cv;
    uint64_t seed;
};

struct load;

struct call { /* one connection, and the request on it */
    struct load *load;
    CURL *easy;
    struct curl_slist *headers;
    int index;
    bool busy, counts;
    int adapter, key, n_prompt, n_generate;
    struct buf body;
    struct answer answer;
    struct monotonic_us due, last, not_before;
    char curl_error[CURL_ERROR_SIZE];
};

struct pending { /* open loop: due, and no connection was free */
    struct workload_request request;
    struct monotonic_us due;
};

struct load {
    struct options o;
    CURLM *multi;
    int epoll;
    struct monotonic_us timer; /* libcurl's; 0: none */
    char *url;
    char **models; /* [n_models]: the adapters, or the base model alone */
    int n_models;
    char **keys; /* [n_keys] */
    int n_keys;
    struct workload *workload;
    uint64_t random;
    struct call *calls; /* [n_calls] */
    int n_calls, n_busy;
    struct pending *waiting; /* [n_waiting] a queue; from first_waiting on */
    size_t first_waiting, n_waiting, max_waiting;
    struct workload_request next;
    struct monotonic_us begin, window, end;
    int *n_out; /* [n_models] requests under way */
    int n_distinct, distinct_max;
    double *served; /* [n_keys] tokens in the window */
    struct latency ttft, itl;
    uint64_t prompt_asked, generate_asked; /* tokens, of requests that began in the window */
    uint64_t n_tokens, n_prompt_tokens, n_answers, n_asked, n_429, n_503, n_unfinished, n_errors;
    uint64_t held_before[BUCKETS], held[BUCKETS];
};

/* The least number of adapters of the buckets that /metrics tells. */
static const int BUCKET_LEAST[BUCKETS] = {0, 1, 2, 3, 4, 5, 9, 17, 65};
static const char *const BUCKET_TEXT[BUCKETS] = {"0",   "1",    "2",     "3",  "4",
                                                 "5-8", "9-16", "17-64", "65+"};

_Noreturn static void die(const char *what, const char *why)
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

static void tell_error(struct load *l, const struct call *c, const char *why)
{
    if (l->n_errors++ < ERRORS_TOLD)
        printf("error: connection %d, %s: %s\n", c->index, l->models[c->adapter], why);
}

/* ---- plain requests ---------------------------------------------------------------------- */

static size_t append_body(char *bytes, size_t size, size_t n, void *context)
{
    struct buf *b = context;
    if (b->len + n * size > MODELS_MAX_BYTES)
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

static void get(const struct load *l, const char *path, struct buf *out)
{
    CURL *easy = curl_easy_init();
    char *url = xasprintf("%s%s", l->url, path), wrong[CURL_ERROR_SIZE] = "";
    struct curl_slist *headers = NULL;
    long status = 0;
    if (easy == NULL)
        die(url, "no memory");
    set_key(l, &headers, 0);
    curl_easy_setopt(easy, CURLOPT_URL, url);
    curl_easy_setopt(easy, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, append_body);
    curl_easy_setopt(easy, CURLOPT_WRITEDATA, out);
    curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, wrong);
    curl_easy_setopt(easy, CURLOPT_TIMEOUT, 30L);
    if (curl_easy_perform(easy) != CURLE_OK)
        die(url, wrong);
    curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
    if (status != 200)
        die(url, "the answer is not 200");
    curl_slist_free_all(headers);
    curl_easy_cleanup(easy);
    free(url);
}

/* The lines of a file, at least one of them. */
static char **read_lines(const char *path, int *n)
{
    struct buf text = BUF_INIT;
    struct err err = {0};
    char *rest = NULL, **lines = NULL;
    if (file_read(path, 1 << 24, &text, &err) != 0)
        die(path, err.message);
    buf_append_byte(&text, '\0'); /* cut in place */
    *n = 0;
    for (char *line = strtok_r((char *)text.data, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        lines = xrealloc_array(lines, (size_t)*n + 1, sizeof *lines);
        lines[(*n)++] = xstrdup(line);
    }
    buf_release(&text);
    if (*n == 0)
        die(path, "no line in it");
    return lines;
}

static void list_models(struct load *l)
{
    struct buf text = BUF_INIT;
    if (l->o.models != NULL) {
        l->models = read_lines(l->o.models, &l->n_models);
        l->o.n_adapters = l->n_models;
        return;
    }
    get(l, "/v1/models", &text);
    json_t *root = json_loadb((const char *)text.data, text.len, 0, NULL);
    const json_t *data = json_object_get(root, "data");
    int n = (int)json_array_size(data), first = l->o.n_adapters > 0 ? 1 : 0;
    l->n_models = l->o.n_adapters > 0 ? l->o.n_adapters : 1;
    if (n < first + l->n_models) {
        fprintf(stderr, "load: the node serves %d models, %d adapters are asked for\n", n,
                l->o.n_adapters);
        exit(2);
    }
    l->models = xcalloc((size_t)l->n_models, sizeof *l->models);
    for (int i = 0; i < l->n_models; i++) {
        const json_t *id = json_object_get(json_array_get(data, (size_t)(first + i)), "id");
        if (!json_is_string(id))
            die("/v1/models", "a model without an id");
        l->models[i] = xstrdup(json_string_value(id));
    }
    json_decref(root);
    buf_release(&text);
}

static void read_held(const struct load *l, uint64_t held[BUCKETS])
{
    struct buf text = BUF_INIT;
    get(l, "/metrics", &text);
    for (int i = 0; i < BUCKETS; i++) {
        char *name = xasprintf("tributary_engine_decode_steps_total{adapters=\"%s\"} ",
                               BUCKET_TEXT[i]);
        const char *at = strstr(buf_cstr(&text), name);
        if (at == NULL)
            die("/metrics", "no count of decode steps by adapters");
        held[i] = strtoull(at + strlen(name), NULL, 10);
        free(name);
    }
    buf_release(&text);
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
        die("epoll", strerror(errno));
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
    if (status != 200)
        return n * size;
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
    answer_init(&c->answer);
    curl_slist_free_all(c->headers);
    c->headers = curl_slist_append(NULL, "Content-Type: application/json");
    set_key(l, &c->headers, c->key);
    curl_easy_setopt(c->easy, CURLOPT_HTTPHEADER, c->headers);
    curl_easy_setopt(c->easy, CURLOPT_POSTFIELDS, c->body.data);
    curl_easy_setopt(c->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)c->body.len);
    if (curl_multi_add_handle(l->multi, c->easy) != CURLM_OK)
        die("a request", "libcurl doesn't take it");
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
            die("a connection", "no memory");
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
            tell_error(l, c, "429 or 503 without Retry-After");
        return;
    }
    if (rc != CURLE_OK)
        snprintf(text, sizeof text, "%s",
                 c->curl_error[0] != '\0' ? c->curl_error : curl_easy_strerror(rc));
    else if (status != 200)
        snprintf(text, sizeof text, "HTTP status %ld", status);
    else if (answer_check(&c->answer, c->n_prompt, c->n_generate, c->body.data, c->body.len,
                          &err) != 0)
        snprintf(text, sizeof text, "%.200s", err.message);
    else {
        l->n_answers += in_window(l, now);
        return;
    }
    c->not_before.us += AFTER_ERROR_US;
    tell_error(l, c, text);
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
        die("epoll", strerror(errno));
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

static void make_traffic(struct load *l)
{
    l->begin = clock_monotonic_us();
    l->window = later(l->begin, l->o.warm_s);
    l->end = later(l->window, l->o.seconds);
    read_held(l, l->held_before);
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
    read_held(l, l->held);
}

/* ---- telling ----------------------------------------------------------------------------- */

/* The bucket of the median decode step, and its share of the steps; checks the most of any. */
static int check_held(struct load *l, double *share)
{
    uint64_t n = 0, at = 0;
    int median = 0, most = 0;
    for (int i = 0; i < BUCKETS; i++) {
        l->held[i] -= l->held_before[i];
        n += l->held[i];
        most = l->held[i] > 0 ? i : most;
    }
    while (median < BUCKETS - 1 && (at += l->held[median]) * 2 <= n)
        median++;
    *share = n > 0 ? (double)l->held[median] / (double)n : 0;
    if (BUCKET_LEAST[most] > l->distinct_max) {
        printf("error: the node counted decode steps with %s different adapters, %d were out\n",
               BUCKET_TEXT[most], l->distinct_max);
        l->n_errors++;
    }
    return median;
}

static void tell(struct load *l)
{
    double share, s = l->o.seconds, asked = fmax(1, (double)l->n_asked);
    int median = check_held(l, &share), n_keys = l->n_keys > 0 ? l->n_keys : 1;
    struct buf row = BUF_INIT, titles = BUF_INIT;
    const struct {
        const char *name;
        int digits;
        double value;
    } cells[] = {
        {"streams", 0, l->o.rate > 0 ? 0 : l->o.n_streams},
        {"rate", 2, l->o.rate},
        {"cv", 2, l->o.rate > 0 ? l->o.cv : 0},
        {"adapters", 0, l->o.n_adapters},
        {"prompt", 0, (double)l->prompt_asked / asked}, /* means */
        {"generate", 0, (double)l->generate_asked / asked},
        {"seconds", 0, s},
        {"output_tokens_s", 1, (double)l->n_tokens / s},
        {"prompt_tokens_s", 1, (double)l->n_prompt_tokens / s},
        {"asked", 0, (double)l->n_asked},
        {"answers", 0, (double)l->n_answers},
        {"answers_s", 2, (double)l->n_answers / s},
        {"ttft_mean_ms", 1, latency_mean(&l->ttft)},
        {"ttft_p50_ms", 1, latency_percentile(&l->ttft, 50)},
        {"ttft_p90_ms", 1, latency_percentile(&l->ttft, 90)},
        {"ttft_p99_ms", 1, latency_percentile(&l->ttft, 99)},
        {"itl_mean_ms", 2, latency_mean(&l->itl)},
        {"itl_p50_ms", 2, latency_percentile(&l->itl, 50)},
        {"itl_p99_ms", 2, latency_percentile(&l->itl, 99)},
        {"keys", 0, l->n_keys},
        {"jain", 4, jain_index(l->served, n_keys)},
        {"out_distinct_max", 0, l->distinct_max},
        {"held_share", 3, share},
        {"status_429", 0, (double)l->n_429},
        {"status_503", 0, (double)l->n_503},
        {"unfinished", 0, (double)l->n_unfinished},
        {"errors", 0, (double)l->n_errors},
    };
    for (size_t i = 0; i < sizeof cells / sizeof cells[0]; i++) {
        printf("%-16s %.*f\n", cells[i].name, cells[i].digits, cells[i].value);
        buf_appendf(&titles, "%s,", cells[i].name);
        buf_appendf(&row, "%.*f,", cells[i].digits, cells[i].value);
    }
    const char *held = share > 0 ? BUCKET_TEXT[median] : "-"; /* no decode step */
    printf("%-16s %s\n", "held", held);
    buf_append_str(&titles, "held,popularity,lengths,commit");
    buf_appendf(&row, "%s,%s,%s,%s", held, l->o.popularity != NULL ? l->o.popularity : "by stream",
                l->o.lengths != NULL ? l->o.lengths : "fixed", l->o.commit);
    FILE *f = l->o.csv != NULL ? fopen(l->o.csv, "w") : NULL;
    if (f != NULL)
        fprintf(f, "%s\n%s\n", buf_cstr(&titles), buf_cstr(&row));
    if (l->o.csv != NULL && (f == NULL || fclose(f) != 0))
        die(l->o.csv, "cannot be written");
    buf_release(&titles);
    buf_release(&row);
}

/* ---- options ----------------------------------------------------------------------------- */

static void help(FILE *out)
{
    fputs("usage: load HOST:PORT [OPTION ...]\n"
          "  --streams N         closed loop of so many; 64\n"
          "  --rate R --cv C     open loop instead: requests a second, variation of arrivals (1)\n"
          "  --connections N     of an open loop at most; 1024\n"
          "  --adapters N        of those that the node lists; 32. 0: the base model\n"
          "  --models FILE       instead: names of adapters, one a line\n"
          "  --popularity WORD   uniform, identical, distinct, zipf:S, power:A, punica:R\n"
          "  --prompt N --generate N   tokens; 128 and 64\n"
          "  --lengths WORD      fixed:P:G, uniform:A:B, punica, azure-conv, azure-code\n"
          "  --vocab N           ids to draw from; 128256\n"
          "  --keys FILE         API keys, one a line\n"
          "  --warm S --seconds S --drain S    10, 60 and 60\n"
          "  --csv FILE, --commit ID, --seed N\n",
          out);
}

_Noreturn static void wrong(const char *name, const char *value)
{
    fprintf(stderr, "load: %s %s\n", name, value != NULL ? value : "(nothing)");
    help(stderr);
    exit(2);
}

static double number(const char *name, const char *text)
{
    char *end = NULL;
    double n = text != NULL ? strtod(text, &end) : 0;
    if (text == NULL || end == text || *end != '\0' || !(n >= 0 && n <= 1e9))
        wrong(name, text);
    return n;
}

static struct options options_of(char **argv)
{
    struct options o = {.commit = "unknown",
                        .n_streams = 64,
                        .n_adapters = 32,
                        .n_prompt = 128,
                        .n_generate = 64,
                        .vocab = 128256,
                        .n_connections = 1024,
                        .warm_s = 10,
                        .seconds = 60,
                        .drain_s = 60,
                        .cv = 1};
    const struct {
        const char *name, **word;
        int *whole;
        double *real;
    } names[] = {
        {"--csv", &o.csv, NULL, NULL},
        {"--commit", &o.commit, NULL, NULL},
        {"--popularity", &o.popularity, NULL, NULL},
        {"--lengths", &o.lengths, NULL, NULL},
        {"--keys", &o.keys, NULL, NULL},
        {"--models", &o.models, NULL, NULL},
        {"--streams", NULL, &o.n_streams, NULL},
        {"--adapters", NULL, &o.n_adapters, NULL},
        {"--prompt", NULL, &o.n_prompt, NULL},
        {"--generate", NULL, &o.n_generate, NULL},
        {"--vocab", NULL, &o.vocab, NULL},
        {"--connections", NULL, &o.n_connections, NULL},
        {"--warm", NULL, NULL, &o.warm_s},
        {"--seconds", NULL, NULL, &o.seconds},
        {"--drain", NULL, NULL, &o.drain_s},
        {"--rate", NULL, NULL, &o.rate},
        {"--cv", NULL, NULL, &o.cv},
    };
    for (char **a = argv + 1; *a != NULL; a++) {
        size_t i = 0, n = sizeof names / sizeof names[0];
        if (strcmp(*a, "--help") == 0) {
            help(stdout);
            exit(0);
        }
        if (**a != '-' && o.address == NULL) {
            o.address = *a;
            continue;
        }
        while (i < n && strcmp(names[i].name, *a) != 0)
            i++;
        const char *value = a[1];
        if (value == NULL || (i == n && strcmp(*a, "--seed") != 0))
            wrong(*a, value);
        if (i == n)
            o.seed = (uint64_t)number(*a, value);
        else if (names[i].word != NULL)
            *names[i].word = value;
        else if (names[i].whole != NULL)
            *names[i].whole = (int)number(*a, value);
        else
            *names[i].real = number(*a, value);
        a++;
    }
    if (o.address == NULL || o.n_streams < 1 || o.n_connections < 1 || o.vocab < 1 ||
        o.seconds <= 0)
        wrong("an address, and numbers above 0, are wanted", "");
    return o;
}

static void open_workload(struct load *l)
{
    struct err err = {0};
    struct workload_options w = {.seed = l->o.seed > 0 ? l->o.seed : 1,
                                 .rate = l->o.rate,
                                 .cv = l->o.cv,
                                 .n_adapters = l->o.n_adapters,
                                 .n_payers = l->n_keys,
                                 .lengths = LENGTHS_FIXED,
                                 .length_a = l->o.n_prompt,
                                 .length_b = l->o.n_generate};
    if ((l->o.popularity != NULL && workload_parse_popularity(&w, l->o.popularity, &err) != 0) ||
        (l->o.lengths != NULL && workload_parse_lengths(&w, l->o.lengths, &err) != 0) ||
        workload_create(&l->workload, &w, &err) != 0)
        die("the workload", err.message);
}

int main(int argc, char **argv)
{
    (void)argc;
    struct load *l = xcalloc(1, sizeof *l);
    struct rlimit files;
    l->o = options_of(argv);
    l->random = l->o.seed > 0 ? l->o.seed : clock_unix_ms().ms;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) { /* a socket for each connection */
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK ||
        (l->multi = curl_multi_init()) == NULL || (l->epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
        die("libcurl or epoll", "cannot be set up");
    curl_multi_setopt(l->multi, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(l->multi, CURLMOPT_SOCKETDATA, l);
    curl_multi_setopt(l->multi, CURLMOPT_TIMERFUNCTION, on_timer);
    curl_multi_setopt(l->multi, CURLMOPT_TIMERDATA, l);
    l->url = strstr(l->o.address, "://") != NULL ? xstrdup(l->o.address)
                                                 : xasprintf("http://%s", l->o.address);
    if (l->o.keys != NULL)
        l->keys = read_lines(l->o.keys, &l->n_keys);
    list_models(l);
    open_workload(l);
    open_calls(l);
    l->n_out = xcalloc((size_t)l->n_models, sizeof *l->n_out);
    l->served = xcalloc((size_t)l->n_keys + 1, sizeof *l->served);
    make_traffic(l);
    tell(l);
    int rc = l->n_errors > 0 || l->ttft.n == 0 ? 1 : 0;
    for (int i = 0; i < l->n_calls; i++) {
        struct call *c = &l->calls[i];
        if (c->busy)
            curl_multi_remove_handle(l->multi, c->easy);
        curl_easy_cleanup(c->easy);
        curl_slist_free_all(c->headers);
        answer_release(&c->answer);
        buf_release(&c->body);
    }
    curl_multi_cleanup(l->multi);
    curl_global_cleanup();
    close(l->epoll);
    for (int i = 0; i < l->n_models; i++)
        free(l->models[i]);
    for (int i = 0; i < l->n_keys; i++)
        free(l->keys[i]);
    workload_free(l->workload);
    free(l->models);
    free(l->keys);
    free(l->calls);
    free(l->waiting);
    free(l->n_out);
    free(l->served);
    free(l->url);
    free(l);
    return rc;
}
