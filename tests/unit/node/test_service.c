/* The service with everything real under it: engine (stories260K), ledger, wallet, HTTP.
 *
 * Requests go through sockets; receipts are checked against what came out of them. */
#include "tests/support.h"
#include "tests/unit/node/node_listen.h"

#include "attribution/attribution.h"
#include "engine/engine.h"
#include "node/adapter_store.h"
#include "node/admission.h"
#include "node/api_keys.h"
#include "node/base/clock.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/sha256.h"
#include "node/http.h"
#include "node/metrics.h"
#include "node/node.h"
#include "node/service.h"
#include "node/workers.h"
#include "wallet/wallet.h"

#include <arpa/inet.h>
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
#include <sys/stat.h>
#include <unistd.h>

#define MODEL   "tests/fixtures/models/stories260K"
#define ADAPTER "tests/fixtures/adapters/stories260K-law"
#define SECOND  "tests/fixtures/adapters/stories260K-code"
#define THIRD   "tests/fixtures/adapters/stories260K-fiction"
#define FOURTH  "tests/fixtures/adapters/stories260K-medicine"

struct world {
    char *dir;
    struct wallet *wallet;
    struct node node;
    struct service_resolver store;
    struct content_digest law, code;
    _Atomic int n_resolved, n_given_up, n_released;
    _Atomic bool hold; /* slow models don't come while it is set */
};

/* ---- the adapter store, and a model that takes its time ----------------------------------------
 */

struct slow {
    struct world *w;
    const char *late; /* the store's name for it, which it isn't asked for yet; NULL: none */
    bool is_law;
    service_resolved_fn *done;
    void *user;
};

static void *slowly(void *context)
{
    struct slow s = *(struct slow *)context;
    free(context);
    usleep(400000);
    while (s.w->hold)
        usleep(1000);
    if (s.late != NULL) {
        s.w->store.resolve(s.w->store.context, s.late, 0, 0, s.done, s.user);
        return NULL;
    }
    struct resolved out = {.content = s.is_law ? s.w->law : s.w->code, .handle = s.w};
    snprintf(out.name, sizeof out.name, "%s", s.is_law ? "slow" : "slow-code");
    s.w->n_resolved++;
    s.done(s.user, &out, NULL);
    return NULL;
}

static void resolve(void *context, const char *model, uint64_t customer, uint64_t holder,
                    service_resolved_fn *done, void *user)
{
    struct world *w = context;
    bool is_law = strcmp(model, "slow") == 0;
    const char *late = strcmp(model, "late-fiction") == 0    ? "fiction"
                       : strcmp(model, "late-medicine") == 0 ? "medicine"
                                                             : NULL;
    if (!is_law && late == NULL && strcmp(model, "slow-code") != 0) {
        w->store.resolve(w->store.context, model, customer, holder, done, user);
        return;
    }
    pthread_t thread;
    struct slow *s = xmalloc(sizeof *s);
    *s = (struct slow){w, late, is_law, done, user};
    assert_int_equal(pthread_create(&thread, NULL, slowly, s), 0);
    pthread_detach(thread);
}

static void give_up(void *context, void *user)
{
    struct world *w = context;
    w->n_given_up++;
    if (w->store.give_up != NULL)
        w->store.give_up(w->store.context, user); /* it knows only whom it was asked for */
}

static void release(void *context, const struct resolved *r)
{
    struct world *w = context;
    if (r->handle == w)
        w->n_released++;
    else
        w->store.release(w->store.context, r);
}

static int fits(void *context, const char *const *models, const struct resolved *adapters, size_t n,
                struct monotonic_us since, struct err *err)
{
    struct world *w = context;
    return w->store.fits(w->store.context, models, adapters, n, since, err);
}

static void list(void *context, json_t *models, size_t max)
{
    struct world *w = context;
    w->store.list(w->store.context, models, max);
}

static json_t *show(void *context, const char *model)
{
    struct world *w = context;
    return w->store.show(w->store.context, model);
}

/* ---- the world ----------------------------------------------------------------------------------
 */

/* host_bytes: for adapters; 0: plenty. */
static struct world *world_open_with(size_t host_bytes)
{
    struct world *w = xcalloc(1, sizeof *w);
    struct err err = {0};
    log_set_level(LOG_ERROR);
    w->dir = temp_dir_create();
    static const struct wallet_memory_key keys[] = {{.name = "signer", .key = {[31] = 1}},
                                                    {.name = "house", .key = {[31] = 2}}};
    w->wallet = wallet_open_memory(keys, 2, &err);
    if (w->wallet == NULL)
        fail_msg("wallet: %s", err.message);
    w->node.metrics = metrics_create();
    w->node.started = clock_monotonic_us();
    w->node.admission = admission_create(&(struct admission_options){0});
    w->node.ledger = ledger_open(
        &(struct ledger_options){
            .data_dir = w->dir, .wallet = w->wallet, .rates = {amount_of(1000), amount_of(2000)}},
        &err);
    if (w->node.ledger == NULL)
        fail_msg("ledger: %s", err.message);
    struct service_options so = {
        .base_name = "base",
        .metrics = w->node.metrics,
        .resolver = {resolve, give_up, release, fits, list, show, w},
    };
    w->node.adapters = adapter_store_create(&(struct adapter_store_options){
        .data_dir = w->dir, .base_name = "base", .metrics = w->node.metrics});
    w->store = adapter_store_resolver(w->node.adapters);
    w->node.service = service_create(&so);
    struct engine_options eo = {.model_dir = MODEL,
                                .backend = "ref",
                                .max_seqs = 16,
                                .max_rows = 32,
                                .max_waiting = 32,
                                .adapter_host_bytes = host_bytes,
                                .on_events = service_on_events,
                                .context = w->node.service};
    assert_ok(engine_open(&w->node.engine, &eo, &err), err);
    assert_ok(service_start(w->node.service, w->node.engine, w->node.ledger, &err), err);
    assert_ok(adapter_store_start(w->node.adapters, w->node.engine, w->node.ledger, &err), err);
    assert_ok(adapter_store_add(w->node.adapters, "law", ADAPTER, false, NULL, &err), err);
    assert_ok(adapter_store_add(w->node.adapters, "code", SECOND, false, NULL, &err), err);
    assert_ok(adapter_content_digest(ADAPTER, &w->law, &err), err);
    assert_ok(adapter_content_digest(SECOND, &w->code, &err), err);
    node_listen(&w->node);
    return w;
}

static struct world *world_open(void)
{
    return world_open_with(0);
}

static void world_close(struct world *w)
{
    service_stop(w->node.service);
    adapter_store_stop(w->node.adapters);
    workers_stop(w->node.workers);
    http_close(w->node.http);
    workers_free(w->node.workers);
    engine_close(w->node.engine);
    service_free(w->node.service);
    adapter_store_free(w->node.adapters);
    struct err err = {0};
    json_t *report = NULL;
    int rc = ledger_check(w->node.ledger, NULL, &report, &err);
    json_decref(report);
    ledger_close(w->node.ledger);
    wallet_close(w->wallet);
    admission_free(w->node.admission);
    metrics_free(w->node.metrics);
    temp_dir_remove(w->dir);
    free(w);
    assert_ok(rc, err); /* whatever a test did, the books are right */
}

/* ---- a client -----------------------------------------------------------------------------------
 */

static int dial(struct world *w)
{
    int port = atoi(strrchr(http_url(w->node.http), ':') + 1);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)port),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

/* key: of the Authorization header; NULL: none. */
static void send_post_as(int fd, const char *key, const char *path, const char *body)
{
    struct buf b = BUF_INIT;
    buf_appendf(&b,
                "POST %s HTTP/1.0\r\nHost: x\r\n%s%s%sContent-Type: application/json\r\n"
                "Content-Length: %zu\r\n\r\n%s",
                path, key != NULL ? "Authorization: Bearer " : "", key != NULL ? key : "",
                key != NULL ? "\r\n" : "", strlen(body), body);
    if (send(fd, b.data, b.len, MSG_NOSIGNAL) != (ssize_t)b.len)
        fail_msg("cannot send");
    buf_release(&b);
}

static void send_post(int fd, const char *path, const char *body)
{
    send_post_as(fd, NULL, path, body);
}

/* Reads until `until` is there (NULL: to the end), at most 60 s. */
static void receive(int fd, struct buf *out, const char *until)
{
    for (;;) {
        if (until != NULL && strstr(buf_cstr(out), until) != NULL)
            return;
        struct pollfd p = {fd, POLLIN, 0};
        if (poll(&p, 1, 60000) <= 0)
            fail_msg("no answer for 60 s; so far:\n%s", buf_cstr(out));
        char piece[8192];
        ssize_t n = recv(fd, piece, sizeof piece, 0);
        if (n <= 0)
            return;
        buf_append(out, piece, (size_t)n);
    }
}

struct answer_seen { /* what a client has of an answer */
    int status;
    int retry_after_s; /* 0: no such header */
    json_t *body;      /* not streamed, or an error */
    json_t *last;      /* streamed: the chunk with the receipt */
    json_t *error;     /* streamed: an error event */
    char *text;        /* of choice 0 */
    struct buf ids;    /* token_ids of all choices as little-endian uint32, choice by choice */
    size_t n_ids;
    json_t *offsets; /* text_offset of choice 0; NULL: no log-probabilities */
    int n_chunks;
    bool done; /* [DONE] came */
};

static void add_ids(struct buf *per_choice, json_t *list)
{
    size_t i;
    json_t *id;
    json_array_foreach(list, i, id)
    {
        uint32_t v = (uint32_t)json_integer_value(id);
        uint8_t le[4] = {(uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24)};
        buf_append(per_choice, le, 4);
    }
}

static void take_choices(struct answer_seen *a, json_t *chunk, struct buf *text, struct buf *ids)
{
    size_t i;
    json_t *c;
    json_array_foreach(json_object_get(chunk, "choices"), i, c)
    {
        json_int_t index = json_integer_value(json_object_get(c, "index"));
        add_ids(&ids[index], json_object_get(c, "token_ids"));
        const char *t = json_string_value(json_object_get(c, "text"));
        if (index == 0 && t != NULL)
            buf_append_str(text, t);
        json_t *offsets = json_object_get(json_object_get(c, "logprobs"), "text_offset");
        if (index == 0 && offsets != NULL && a->offsets == NULL)
            a->offsets = json_array();
        if (index == 0 && offsets != NULL)
            json_array_extend(a->offsets, offsets);
    }
}

static struct answer_seen parse_answer(struct buf *raw)
{
    struct answer_seen a = {0};
    struct buf text = BUF_INIT, ids[64] = {0};
    const char *p = strstr(buf_cstr(raw), "\r\n\r\n");
    if (p == NULL)
        fail_msg("no HTTP answer:\n%s", buf_cstr(raw));
    a.status = atoi(buf_cstr(raw) + 9);
    const char *retry = strcasestr(buf_cstr(raw), "\r\nRetry-After: ");
    if (retry != NULL && retry < p)
        a.retry_after_s = atoi(retry + 15);
    p += 4;
    if (strncmp(p, "data: ", 6) != 0) {
        a.body = json_loads(p, 0, NULL);
        if (a.body == NULL)
            fail_msg("no JSON:\n%s", buf_cstr(raw));
        take_choices(&a, a.body, &text, ids);
    }
    for (const char *end; strncmp(p, "data: ", 6) == 0; p = end + 2) {
        end = strstr(p, "\n\n");
        if (end == NULL)
            break; /* cut off within an event: not seen */
        if (strncmp(p, "data: [DONE]", 12) == 0) {
            a.done = true;
            continue;
        }
        json_t *chunk = json_loadb(p + 6, (size_t)(end - p - 6), 0, NULL);
        if (chunk == NULL)
            fail_msg("an event that is no JSON: %.*s", (int)(end - p), p);
        a.n_chunks++;
        take_choices(&a, chunk, &text, ids);
        if (json_object_get(chunk, "tributary") != NULL)
            a.last = json_incref(chunk);
        if (json_object_get(chunk, "error") != NULL)
            a.error = json_incref(chunk);
        json_decref(chunk);
    }
    for (int i = 0; i < 64; i++) {
        if (ids[i].len > 0)
            buf_append(&a.ids, ids[i].data, ids[i].len);
        buf_release(&ids[i]);
    }
    a.n_ids = a.ids.len / 4;
    a.text = xstrdup(buf_cstr(&text));
    buf_release(&text);
    return a;
}

static void answer_release(struct answer_seen *a)
{
    json_decref(a->body);
    json_decref(a->last);
    json_decref(a->error);
    json_decref(a->offsets);
    free(a->text);
    buf_release(&a->ids);
}

static struct answer_seen ask_as(struct world *w, const char *key, const char *body)
{
    int fd = dial(w);
    struct buf raw = BUF_INIT;
    send_post_as(fd, key, "/v1/completions", body);
    receive(fd, &raw, NULL);
    struct answer_seen a = parse_answer(&raw);
    buf_release(&raw);
    close(fd);
    return a;
}

static struct answer_seen ask(struct world *w, const char *body)
{
    return ask_as(w, NULL, body);
}

static const char *hex_field(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    if (s == NULL)
        fail_msg("the receipt has no %s", key);
    return s;
}

static void expect_hash(const char *what, const json_t *receipt, const char *key, const void *bytes,
                        size_t n)
{
    char hex[67];
    struct sha256_digest h = sha256(bytes, n);
    if (strcmp(hex_field(receipt, key), hex_encode_0x(hex, h.bytes, 32)) != 0)
        fail_msg("%s: %s is %s, expected %s", what, key, hex_field(receipt, key), hex);
}

/* The receipt of an answer says what its client has seen. */
static void check_receipt(const char *what, const struct answer_seen *a, const char *body)
{
    const json_t *top = a->body != NULL ? a->body : a->last;
    const json_t *receipt = json_object_get(json_object_get(top, "tributary"), "receipt");
    if (a->status != 200 || receipt == NULL)
        fail_msg("%s: status %d, no receipt: %s", what, a->status,
                 a->body != NULL ? json_dumps(a->body, 0) : "(a stream)");
    json_int_t billed = json_integer_value(json_object_get(receipt, "completionTokens"));
    if ((size_t)billed != a->n_ids)
        fail_msg("%s: %lld tokens billed, %zu received", what, (long long)billed, a->n_ids);
    expect_hash(what, receipt, "responseHash", a->ids.data != NULL ? (void *)a->ids.data : "",
                a->ids.len);
    expect_hash(what, receipt, "requestHash", body, strlen(body));
}

/* ---- tests --------------------------------------------------------------------------------------
 */

#define ONCE "\"prompt\":\"Once upon a time\",\"return_token_ids\":true"

static void every_answer_carries_a_receipt_of_exactly_its_tokens(void **state)
{
    struct world *w = *state;
    static const char *const bodies[] = {
        "{\"model\":\"base\"," ONCE ",\"max_tokens\":12,\"temperature\":0}",
        "{\"model\":\"law\"," ONCE ",\"max_tokens\":12,\"seed\":3}",
        "{\"model\":\"base\"," ONCE ",\"max_tokens\":12,\"stream\":true,\"temperature\":0}",
        "{\"model\":\"law\"," ONCE ",\"max_tokens\":12,\"stream\":true,\"seed\":3}",
        "{\"model\":\"base\"," ONCE ",\"max_tokens\":7,\"n\":3,\"seed\":1}",
        "{\"model\":\"base\"," ONCE ",\"max_tokens\":7,\"n\":3,\"seed\":1,\"stream\":true}",
        "{\"model\":\"base\"," ONCE ",\"max_tokens\":0,\"echo\":true,\"logprobs\":0}",
        "{\"model\":\"base\"," ONCE ",\"max_tokens\":200,\"temperature\":0,\"stop\":[\"park\"]}",
        "{\"model\":\"base\"," ONCE ",\"max_tokens\":200,\"temperature\":0,\"stop\":\"park\","
        "\"stream\":true}",
        "{\"model\":\"base\",\"prompt\":[\"Once\",\"Lily\"],\"return_token_ids\":true,"
        "\"max_tokens\":5,\"seed\":9}",
    };
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        struct answer_seen a = ask(w, bodies[i]);
        check_receipt(bodies[i], &a, bodies[i]);
        if (strstr(bodies[i], "stream") != NULL && !a.done)
            fail_msg("%s: no [DONE]", bodies[i]);
        const json_t *usage = json_object_get(a.body, "usage");
        const json_t *cached = json_object_get(json_object_get(usage, "prompt_tokens_details"),
                                               "cached_tokens");
        if (a.body != NULL && (!json_is_integer(cached) || json_integer_value(cached) < 0 ||
                               json_integer_value(cached) >=
                                   json_integer_value(json_object_get(usage, "prompt_tokens"))))
            fail_msg("%s: usage %s", bodies[i], json_dumps(usage, 0));
        answer_release(&a);
    }
}

static void a_stream_and_a_body_say_the_same(void **state)
{
    struct world *w = *state;
    static const char *const requests[] = {
        ONCE ",\"max_tokens\":40,\"temperature\":0",
        ONCE ",\"max_tokens\":40,\"seed\":11,\"temperature\":1.3",
        ONCE ",\"max_tokens\":200,\"temperature\":0,\"stop\":[\"day\",\"park\"]",
        ONCE ",\"max_tokens\":20,\"temperature\":0,\"echo\":true,\"logprobs\":2",
        "\"prompt\":[1,403,407],\"return_token_ids\":true,\"max_tokens\":9,\"seed\":5,\"top_k\":5",
    };
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        char *plain = xasprintf("{\"model\":\"law\",%s}", requests[i]);
        char *streamed = xasprintf("{\"model\":\"law\",\"stream\":true,%s}", requests[i]);
        struct answer_seen a = ask(w, plain), b = ask(w, streamed);
        check_receipt(plain, &a, plain);
        check_receipt(streamed, &b, streamed);
        if (strcmp(a.text, b.text) != 0 || a.ids.len != b.ids.len ||
            memcmp(a.ids.data, b.ids.data, a.ids.len) != 0)
            fail_msg("%s:\nplain    %s\nstreamed %s", requests[i], a.text, b.text);
        answer_release(&a);
        answer_release(&b);
        free(plain);
        free(streamed);
    }
}

static void a_salt_shares_with_itself_alone(void **state)
{
    struct world *w = *state;
    static const struct {
        const char *salt; /* as JSON, to be copied into the body */
        bool found;
    } asked[] = {{"null", false},      {"null", true},          {"\"ann's own\"", false},
                 {"\"bob's\"", false}, {"\"ann's own\"", true}, {"\"bob's\"", true},
                 {"null", true}};
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        char *body = xasprintf("{\"model\":\"law\",\"prompt\":\"Tim and Sue saw a salt shaker. It "
                               "was full, and it was not shared with anybody.\",\"max_tokens\":2"
                               ",\"return_token_ids\":true,\"cache_salt\":%s}",
                               asked[i].salt);
        struct answer_seen a = ask(w, body);
        check_receipt(body, &a, body);
        const json_t *details = json_object_get(json_object_get(a.body, "usage"),
                                                "prompt_tokens_details");
        json_int_t n = json_integer_value(json_object_get(details, "cached_tokens"));
        if ((n > 0) != asked[i].found)
            fail_msg("request %zu, salt %s: %lld tokens were found", i, asked[i].salt, n);
        answer_release(&a);
        free(body);
    }
}

static void a_stop_string_ends_text_and_bill(void **state)
{
    struct world *w = *state;
    const char *whole_body = "{\"model\":\"base\"," ONCE ",\"max_tokens\":120,\"temperature\":0}";
    struct answer_seen whole = ask(w, whole_body);
    check_receipt("whole", &whole, whole_body);
    static const char *const stops[] = {"park", "was", " a little", "One day, "};
    int n_found = 0;
    for (size_t i = 0; i < sizeof stops / sizeof *stops; i++) {
        const char *at = strstr(whole.text, stops[i]);
        char *body = xasprintf(
            "{\"model\":\"base\"," ONCE
            ",\"max_tokens\":120,\"temperature\":0,\"stream\":true,\"stop\":\"%s\"}",
            stops[i]);
        struct answer_seen a = ask(w, body);
        check_receipt(body, &a, body);
        size_t expected = at != NULL ? (size_t)(at - whole.text) : strlen(whole.text);
        if (strlen(a.text) != expected || strncmp(a.text, whole.text, expected) != 0)
            fail_msg("stop \"%s\": text \"%s\", expected \"%.*s\"", stops[i], a.text, (int)expected,
                     whole.text);
        if (at != NULL) {
            n_found++;
            const json_t *c = json_array_get(json_object_get(a.last, "choices"), 0);
            assert_string_equal(json_string_value(json_object_get(c, "finish_reason")), "stop");
            assert_true(a.n_ids < whole.n_ids);
            assert_memory_equal(a.ids.data, whole.ids.data, a.ids.len);
        }
        answer_release(&a);
        free(body);
    }
    if (n_found < 2)
        fail_msg("only %d of the stops occur in: %s", n_found, whole.text);
    answer_release(&whole);
}

static void scores_of_a_prompt_equal_those_of_its_generation(void **state)
{
    struct world *w = *state;
    struct answer_seen a = ask(w, "{\"model\":\"law\"," ONCE
                                  ",\"max_tokens\":16,\"temperature\":0,\"logprobs\":0}");
    const json_t *c = json_array_get(json_object_get(a.body, "choices"), 0);
    const json_t *generated = json_object_get(json_object_get(c, "logprobs"), "token_logprobs");
    json_t *prompt = json_array();
    json_array_extend(prompt, json_object_get(c, "prompt_token_ids"));
    size_t n_prompt = json_array_size(prompt);
    json_array_extend(prompt, json_object_get(c, "token_ids"));
    char *ids = json_dumps(prompt, JSON_COMPACT);
    char *body = xasprintf("{\"model\":\"law\",\"prompt\":%s,\"max_tokens\":0,\"echo\":true,"
                           "\"logprobs\":0}",
                           ids);
    struct answer_seen b = ask(w, body);
    const json_t *scores = json_object_get(
        json_object_get(json_array_get(json_object_get(b.body, "choices"), 0), "logprobs"),
        "token_logprobs");
    assert_int_equal(json_array_size(scores), n_prompt + json_array_size(generated));
    assert_true(json_is_null(json_array_get(scores, 0)));
    for (size_t i = 0; i < json_array_size(generated); i++) {
        double x = json_real_value(json_array_get(generated, i)),
               y = json_real_value(json_array_get(scores, n_prompt + i));
        if (x != y)
            fail_msg("token %zu: %.9g when generated, %.9g when scored", i, x, y);
    }
    free(ids);
    free(body);
    json_decref(prompt);
    answer_release(&a);
    answer_release(&b);
}

/* The newest receipt of the ledger, by request id. */
static json_t *receipt_of(struct world *w, const char *answer_id)
{
    uint8_t id[32];
    const char *dash = strchr(answer_id, '-');
    assert_int_equal(hex_decode(id, 32, dash + 1), 0);
    for (int i = 0; i < 400; i++) {
        json_t *r = ledger_query_receipt(w->node.ledger, id, NULL);
        if (r != NULL)
            return r;
        usleep(10000);
    }
    fail_msg("no receipt for %s after four seconds", answer_id);
    return NULL;
}

/* <0xE2> is token 229, and so on; 1 is the beginning of a text, 412 is "a". */
static void a_token_begins_in_the_text_where_its_first_bytes_character_does(void **state)
{
    struct world *w = *state;
    static const struct {
        const char *ids, *text, *offsets;
    } rows[] = {
        {"[1,412,412]", "aa", "[0,0,1]"},
        {"[1,229,133,175,198,172,412,412]", "\u20ac\u00e9aa", "[0,0,0,0,1,1,2,3]"},
        {"[1,412,229,133,175,198,172]", "a\u20ac\u00e9", "[0,0,1,1,1,2,2]"}, /* to the end */
        {"[1,229,412]", "\ufffda", "[0,0,1]"},
        {"[1,412,229,133,412]", "a\ufffd\ufffda", "[0,0,1,2,3]"},
        {"[1,229,133,175,258,412]", "\ufffd\ufffd\ufffd\ufffda", "[0,0,1,2,3,4]"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *body = xasprintf("{\"model\":\"base\",\"prompt\":%s,\"max_tokens\":0,\"echo\":true,"
                               "\"logprobs\":0}",
                               rows[i].ids);
        struct answer_seen a = ask(w, body);
        char *offsets = json_dumps(a.offsets, JSON_COMPACT);
        if (strcmp(a.text, rows[i].text) != 0 || offsets == NULL ||
            strcmp(offsets, rows[i].offsets) != 0)
            fail_msg("%s: \"%s\" %s, expected \"%s\" %s", rows[i].ids, a.text,
                     offsets != NULL ? offsets : "", rows[i].text, rows[i].offsets);
        free(offsets);
        free(body);
        answer_release(&a);
    }
}

/* 13 is <0x0A>: what the prompt ends with is known only when the first token is. */
static void a_stop_in_the_echoed_prompt_is_none(void **state)
{
    struct world *w = *state;
    static const struct {
        const char *ids, *forced, *stop;
        int max_tokens;
        const char *text, *finish;
    } rows[] = {
        {"[1,412,13]", "412", "\\n", 3, "a\naaa", "length"},
        {"[1,412,13]", "412", "\\na", 3, "a\naaa", "length"}, /* half of it is the prompt's */
        {"[1,412,13]", "412", "aa", 3, "a\n", "stop"},
        {"[1,412,13]", "13", "\\n", 3, "a\n", "stop"},
        {"[1,412,13]", "412", "\\n", 0, "a\n", "length"},
        {"[1,412,13,13]", "412", "\\n\\n", 1, "a\n\na", "length"},
        {"[1,412,229]", "412", "\ufffd", 2, "a\ufffdaa", "length"},
        {"[1,412,229,133]", "175", "\u20ac", 1, "a", "stop"}, /* which a token has completed */
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        for (int stream = 0; stream < 2; stream++) {
            char *body = xasprintf(
                "{\"model\":\"base\",\"prompt\":%s,\"max_tokens\":%d,\"echo\":true,"
                "\"temperature\":0,\"logit_bias\":{\"%s\":100},\"stop\":\"%s\","
                "\"stream\":%s}",
                rows[i].ids, rows[i].max_tokens, rows[i].forced, rows[i].stop,
                stream ? "true" : "false");
            struct answer_seen a = ask(w, body);
            const json_t *top = stream ? a.last : a.body;
            const char *finish = json_string_value(json_object_get(
                json_array_get(json_object_get(top, "choices"), 0), "finish_reason"));
            if (strcmp(a.text, rows[i].text) != 0 || finish == NULL ||
                strcmp(finish, rows[i].finish) != 0)
                fail_msg("%s: \"%s\" (%s), expected \"%s\" (%s)", body, a.text,
                         finish != NULL ? finish : "", rows[i].text, rows[i].finish);
            free(body);
            answer_release(&a);
        }
    }
}

/* The bytes at the prompt's end wait for the first that is generated, and may be more than one
 * character with it: 13 is <0x0A>, a line end of its own. */
static void a_streamed_echo_tells_the_offsets_that_the_whole_answer_has(void **state)
{
    struct world *w = *state;
    static const char *const prompts[] = {"[1,412,13]", "[1,13,13,13]", "[1,412,229,133]",
                                          "[1,412,1]"};
    for (size_t i = 0; i < sizeof prompts / sizeof *prompts; i++) {
        char *offsets[2];
        for (int stream = 0; stream < 2; stream++) {
            char *body = xasprintf(
                "{\"model\":\"base\",\"prompt\":%s,\"max_tokens\":4,\"echo\":true,\"logprobs\":0,"
                "\"temperature\":0,\"logit_bias\":{\"13\":100},\"stream\":%s}",
                prompts[i], stream ? "true" : "false");
            struct answer_seen a = ask(w, body);
            offsets[stream] = a.offsets != NULL ? json_dumps(a.offsets, JSON_COMPACT) : xstrdup("");
            free(body);
            answer_release(&a);
        }
        if (offsets[0][0] == '\0' || strcmp(offsets[0], offsets[1]) != 0)
            fail_msg("%s and four line ends: %s, streamed %s", prompts[i], offsets[0], offsets[1]);
        free(offsets[0]);
        free(offsets[1]);
    }
}

static void a_vanished_client_is_billed_what_its_socket_took(void **state)
{
    struct world *w = *state;
    const char *request = ONCE ",\"max_tokens\":400,\"temperature\":0,\"ignore_eos\":true";
    char *whole_body = xasprintf("{\"model\":\"law\",%s}", request);
    char *body = xasprintf("{\"model\":\"law\",\"stream\":true,%s}", request);
    struct answer_seen whole = ask(w, whole_body);
    for (int round = 0; round < 4; round++) {
        int fd = dial(w);
        struct buf raw = BUF_INIT;
        send_post(fd, "/v1/completions", body);
        size_t wanted = 1 + (size_t)round * 5, seen = 0;
        while (seen < wanted) {
            size_t before = raw.len;
            char piece[512];
            ssize_t n = recv(fd, piece, sizeof piece, 0);
            if (n <= 0)
                fail_msg("the stream ended early");
            buf_append(&raw, piece, (size_t)n);
            (void)before;
            seen = 0;
            for (const char *p = buf_cstr(&raw); (p = strstr(p, "\n\n")) != NULL; p += 2)
                seen++;
        }
        close(fd);
        struct answer_seen a = parse_answer(&raw);
        char id[80] = "";
        sscanf(strstr(buf_cstr(&raw), "\"id\":\"") + 6, "%79[^\"]", id);
        json_t *top = receipt_of(w, id);
        const json_t *receipt = json_object_get(top, "receipt");
        size_t billed = (size_t)json_integer_value(json_object_get(receipt, "completionTokens"));
        if (billed < a.n_ids || billed >= whole.n_ids)
            fail_msg("round %d: %zu tokens billed; the client has read %zu, the whole has %zu",
                     round, billed, a.n_ids, whole.n_ids);
        /* Whatever was billed is a prefix of what the model says, and the receipt names it. */
        expect_hash("vanished", receipt, "responseHash", whole.ids.data, billed * 4);
        json_decref(top);
        answer_release(&a);
        buf_release(&raw);
    }
    struct service_stats s;
    for (int i = 0; i < 400; i++) {
        service_stats(w->node.service, &s);
        if (s.n_answers == 0)
            break;
        usleep(10000);
    }
    assert_int_equal(s.n_answers, 0);
    assert_int_equal(s.n_vanished, 4);
    struct engine_stats e;
    engine_stats(w->node.engine, &e);
    assert_int_equal(e.n_running + e.n_waiting, 0);
    answer_release(&whole);
    free(whole_body);
    free(body);
}

static void a_client_that_leaves_before_the_first_byte_is_billed_nothing(void **state)
{
    struct world *w = *state;
    struct ledger_health before, after;
    ledger_health(w->node.ledger, &before);
    struct service_stats s0, s;
    service_stats(w->node.service, &s0);
    int fd = dial(w);
    send_post(fd, "/v1/completions",
              "{\"model\":\"base\"," ONCE ",\"max_tokens\":490,\"ignore_eos\":true}");
    usleep(20000);
    close(fd);
    for (int i = 0; i < 400; i++) {
        service_stats(w->node.service, &s);
        if (s.n_vanished > s0.n_vanished)
            break;
        usleep(10000);
    }
    assert_int_equal(s.n_vanished, s0.n_vanished + 1);
    ledger_health(w->node.ledger, &after);
    assert_int_equal(after.receipts, before.receipts);
}

struct parallel {
    struct world *w;
    const char *body;
    char *text;
};

static void *ask_in_parallel(void *context)
{
    struct parallel *p = context;
    struct answer_seen a = ask(p->w, p->body);
    check_receipt(p->body, &a, p->body);
    p->text = xstrdup(a.text);
    answer_release(&a);
    return NULL;
}

static void many_at_once_get_the_words_they_get_alone(void **state)
{
    struct world *w = *state;
    enum { N = 8 };
    struct parallel alone[N], together[N];
    char *bodies[N];
    pthread_t threads[N];
    for (int i = 0; i < N; i++) {
        bodies[i] = xasprintf("{\"model\":\"%s\"," ONCE
                              ",\"max_tokens\":30,\"seed\":%d,\"stream\":%s}",
                              i % 2 == 0 ? "law" : "base", i, i % 3 == 0 ? "true" : "false");
        alone[i] = together[i] = (struct parallel){w, bodies[i], NULL};
        ask_in_parallel(&alone[i]);
    }
    for (int i = 0; i < N; i++)
        pthread_create(&threads[i], NULL, ask_in_parallel, &together[i]);
    for (int i = 0; i < N; i++) {
        pthread_join(threads[i], NULL);
        if (strcmp(alone[i].text, together[i].text) != 0)
            fail_msg("request %d: alone \"%s\", together \"%s\"", i, alone[i].text,
                     together[i].text);
        free(alone[i].text);
        free(together[i].text);
        free(bodies[i]);
    }
}

/* Waits until nothing is being answered. */
static void wait_until_idle(struct world *w)
{
    struct service_stats s;
    for (int i = 0; i < 2000; i++) {
        service_stats(w->node.service, &s);
        if (s.n_answers == 0)
            return;
        usleep(5000);
    }
    fail_msg("%zu answers are still under way", s.n_answers);
}

/* What the resolver gave out was released, and not twice. */
static void everything_is_given_back(struct world *w)
{
    for (int i = 0; i < 200 && w->n_released < w->n_resolved; i++)
        usleep(5000);
    usleep(5000);
    assert_int_equal(w->n_released, w->n_resolved);
}

#define GREEDY "\"max_tokens\":24,\"temperature\":0,\"logprobs\":3"

static json_t *choice_of(const struct answer_seen *a)
{
    return json_array_get(json_object_get(a->body, "choices"), 0);
}

static void an_adapter_of_weight_0_changes_nothing(void **state)
{
    struct world *w = *state;
    static const char *const bodies[] = {
        "{\"adapters\":[{\"model\":\"law\",\"weight\":1}]," ONCE "," GREEDY "}",
        "{\"model\":\"base\",\"adapters\":[{\"model\":\"law\"},{\"model\":\"code\",\"weight\":0}]"
        "," ONCE "," GREEDY "}",
        "{\"adapters\":[{\"model\":\"slow\"},{\"model\":\"slow-code\",\"weight\":0}]," ONCE
        "," GREEDY "}",
    };
    static const char *const names[] = {"law", "law+0*code", "slow+0*slow-code"};
    const char *plain_body = "{\"model\":\"law\"," ONCE "," GREEDY "}";
    struct answer_seen plain = ask(w, plain_body);
    check_receipt("plain", &plain, plain_body);
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        struct answer_seen a = ask(w, bodies[i]);
        check_receipt(bodies[i], &a, bodies[i]);
        if (!json_equal(choice_of(&a), choice_of(&plain))) /* with every log-probability */
            fail_msg("%s:\nalone \"%s\"\nhere  \"%s\"", bodies[i], plain.text, a.text);
        assert_string_equal(json_string_value(json_object_get(a.body, "model")), names[i]);
        answer_release(&a);
    }
    answer_release(&plain);
    everything_is_given_back(w);
}

/* "7000 3000": the shares that a receipt names, in its order. */
static void expect_shares(const char *what, const struct answer_seen *a, const char *shares)
{
    const json_t *top = a->body != NULL ? a->body : a->last, *share;
    const json_t *receipt = json_object_get(json_object_get(top, "tributary"), "receipt");
    struct buf got = BUF_INIT;
    size_t i;
    json_array_foreach(json_object_get(receipt, "adapters"), i, share)
        buf_appendf(&got, "%s%lld", i > 0 ? " " : "",
                    (long long)json_integer_value(json_object_get(share, "bps")));
    if (strcmp(buf_cstr(&got), shares) != 0)
        fail_msg("%s: the receipt shares %s, expected %s", what, buf_cstr(&got), shares);
    buf_release(&got);
}

static void an_ensemble_is_receipted_by_share(void **state)
{
    struct world *w = *state;
    static const struct {
        const char *adapters, *shares, *name;
    } rows[] = {
        {"{\"model\":\"law\",\"weight\":0.7},{\"model\":\"code\",\"weight\":0.3}", "7000 3000",
         "0.7*law+0.3*code"},
        {"{\"model\":\"code\",\"weight\":-0.5},{\"model\":\"slow\"}", "3333 6667",
         "-0.5*code+slow"},
        {"{\"model\":\"slow\",\"weight\":2},{\"model\":\"slow-code\",\"weight\":1}", "6667 3333",
         "2*slow+slow-code"},
        {"{\"model\":\"law\",\"weight\":0.25}", "10000", "0.25*law"},
    };
    struct answer_seen law = ask(w, "{\"model\":\"law\"," ONCE "," GREEDY "}");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *body = xasprintf("{\"adapters\":[%s]," ONCE "," GREEDY "}", rows[i].adapters);
        char *streamed = xasprintf("{\"adapters\":[%s]," ONCE "," GREEDY ",\"stream\":true}",
                                   rows[i].adapters);
        struct answer_seen a = ask(w, body), b = ask(w, streamed);
        check_receipt(body, &a, body);
        check_receipt(streamed, &b, streamed);
        expect_shares(body, &a, rows[i].shares);
        expect_shares(streamed, &b, rows[i].shares);
        assert_string_equal(json_string_value(json_object_get(a.body, "model")), rows[i].name);
        assert_string_equal(json_string_value(json_object_get(b.last, "model")), rows[i].name);
        assert_string_equal(a.text, b.text);
        if (json_equal(choice_of(&a), choice_of(&law)))
            fail_msg("%s: the same scores as law alone: the weights were not applied", body);
        answer_release(&a);
        answer_release(&b);
        free(body);
        free(streamed);
    }
    answer_release(&law);
    everything_is_given_back(w);
}

static void ensembles_that_wait_for_room_do_not_wait_for_each_other(void **state)
{
    (void)state;
    enum { N = 4 };
    struct err err = {0};
    struct engine_adapter facts;
    struct world *w = world_open_with(800000); /* for two of these adapters */
    assert_ok(adapter_store_add(w->node.adapters, "fiction", THIRD, false, &facts, &err), err);
    assert_ok(adapter_store_add(w->node.adapters, "medicine", FOURTH, false, NULL, &err), err);
    assert_true(facts.n_bytes * 2 <= 800000 && facts.n_bytes * 3 > 800000);
    static const char *const bodies[2] = {
        "{\"adapters\":[{\"model\":\"law\"},{\"model\":\"late-fiction\"}]," ONCE
        ",\"max_tokens\":4}",
        "{\"adapters\":[{\"model\":\"code\"},{\"model\":\"late-medicine\"}]," ONCE
        ",\"max_tokens\":4}",
    };
    int fds[N];
    w->hold = true;
    for (int i = 0; i < N; i++) {
        fds[i] = dial(w);
        send_post(fds[i], "/v1/completions", bodies[i % 2]);
    }
    usleep(100000);
    struct monotonic_us began = clock_monotonic_us();
    w->hold = false; /* half of what each needs would fill host memory */
    for (int i = 0; i < N; i++) {
        struct buf raw = BUF_INIT;
        receive(fds[i], &raw, NULL);
        struct answer_seen a = parse_answer(&raw);
        check_receipt(bodies[i % 2], &a, bodies[i % 2]);
        answer_release(&a);
        buf_release(&raw);
        close(fds[i]);
    }
    uint64_t us = clock_elapsed_us(began, clock_monotonic_us());
    if (us > 20000000)
        fail_msg("the answers took %llu us", (unsigned long long)us);
    /* What never fits is told so, not to wait. */
    struct answer_seen large = ask(w, "{\"adapters\":[{\"model\":\"law\"},{\"model\":\"code\"},"
                                      "{\"model\":\"late-fiction\"}]," ONCE "}");
    assert_int_equal(large.status, 413);
    answer_release(&large);
    wait_until_idle(w);
    struct adapter_store_stats s;
    adapter_store_stats(w->node.adapters, &s);
    assert_int_equal(s.n_in_use, 0);
    world_close(w);
}

static void expect_refusal(const char *what, const struct answer_seen *a, int status,
                           const char *param, const char *in_message)
{
    const json_t *e = json_object_get(a->body, "error");
    const char *got = json_string_value(json_object_get(e, "param"));
    const char *message = json_string_value(json_object_get(e, "message"));
    if (a->status != status || message == NULL || strstr(message, in_message) == NULL ||
        (got == NULL) != (param == NULL) || (param != NULL && strcmp(got, param) != 0))
        fail_msg("%s: status %d, param %s: %s", what, a->status, got, message);
}

static void an_ensemble_that_cannot_fit_beside_pinned_adapters_is_refused_at_once(void **state)
{
    (void)state;
    struct err err = {0};
    struct engine_adapter facts;
    struct world *w = world_open_with(800000); /* for two of these adapters */
    assert_ok(adapter_store_add(w->node.adapters, "fiction", THIRD, false, &facts, &err), err);
    assert_ok(adapter_store_pin(w->node.adapters, "law", true, &err), err);
    struct monotonic_us began = clock_monotonic_us();
    struct answer_seen a = ask(w, "{\"adapters\":[{\"model\":\"code\"},"
                                  "{\"model\":\"late-fiction\"}]," ONCE "}");
    uint64_t us = clock_elapsed_us(began, clock_monotonic_us());
    char *bytes = xasprintf("adapters code, fiction together: %zu bytes are needed",
                            facts.n_bytes * 2);
    expect_refusal("beside law", &a, 413, "adapters", bytes);
    expect_refusal("beside law", &a, 413, "adapters", "pinned adapters (law)");
    if (us > 5000000)
        fail_msg("the refusal took %llu us", (unsigned long long)us);
    free(bytes);
    answer_release(&a);
    /* The pinned one itself takes no more room. */
    const char *body = "{\"adapters\":[{\"model\":\"law\"},{\"model\":\"late-fiction\"}]," ONCE
                       ",\"max_tokens\":4}";
    a = ask(w, body);
    check_receipt(body, &a, body);
    answer_release(&a);
    wait_until_idle(w);
    world_close(w);
}

/* Waits until n adapters are in use. */
static void await_in_use(struct world *w, size_t n)
{
    struct adapter_store_stats s;
    for (int i = 0; i < 1000; i++) {
        adapter_store_stats(w->node.adapters, &s);
        if (s.n_in_use == n)
            return;
        usleep(5000);
    }
    fail_msg("%zu adapters are in use, expected %zu", s.n_in_use, n);
}

static void keep_it(void *user, const struct resolved *out, const struct err *err)
{
    struct resolved *r = user;
    if (out == NULL)
        fail_msg("%s", err->message);
    *r = *out;
}

/* It holds one adapter while it waits for the other, and nobody else could use that room. */
static void an_ensemble_that_gathers_gives_up_when_room_or_time_is_gone(void **state)
{
    (void)state;
    struct err err = {0};
    struct resolved law = {0};
    struct world *w = world_open_with(800000); /* for two of these adapters */
    struct service_resolver r = adapter_store_resolver(w->node.adapters);
    assert_ok(adapter_store_add(w->node.adapters, "fiction", THIRD, false, NULL, &err), err);
    static const struct {
        const char *more;
        bool pin;
        int status;
    } rows[] = {{",\"timeout\":0.5", false, 504}, {"", true, 413}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *body = xasprintf("{\"adapters\":[{\"model\":\"code\"},{\"model\":\"fiction\"}]," ONCE
                               "%s}",
                               rows[i].more);
        struct buf raw = BUF_INIT;
        r.resolve(r.context, "law", 0, 0, keep_it, &law);
        await_in_use(w, 1);
        int fd = dial(w);
        send_post(fd, "/v1/completions", body);
        await_in_use(w, 2);
        usleep(100000);
        struct monotonic_us began = clock_monotonic_us();
        if (rows[i].pin)
            assert_ok(adapter_store_pin(w->node.adapters, "law", true, &err), err);
        receive(fd, &raw, NULL);
        struct answer_seen a = parse_answer(&raw);
        if (a.status != rows[i].status)
            fail_msg("%s: status %d", body, a.status);
        await_in_use(w, 1);
        uint64_t us = clock_elapsed_us(began, clock_monotonic_us());
        if (us > 5000000)
            fail_msg("%s: it took %llu us", body, (unsigned long long)us);
        answer_release(&a);
        buf_release(&raw);
        close(fd);
        free(body);
        r.release(r.context, &law);
        wait_until_idle(w);
        await_in_use(w, 0);
    }
    world_close(w);
}

static void expect_timeout(const char *what, const struct answer_seen *a)
{
    const json_t *e = json_object_get(a->body, "error");
    if (a->status != 504 || strcmp(json_string_value(json_object_get(e, "code")), "timeout") != 0)
        fail_msg("%s: status %d: %s", what, a->status, json_dumps(a->body, 0));
}

static void time_runs_while_an_adapter_is_fetched(void **state)
{
    struct world *w = *state;
    struct service_stats before, after;
    service_stats(w->node.service, &before);
    static const char *const bodies[] = {
        "{\"model\":\"slow\"," ONCE ",\"timeout\":0.05}",
        "{\"adapters\":[{\"model\":\"law\"},{\"model\":\"slow-code\"}]," ONCE ",\"timeout\":0.05}",
        "{\"model\":\"slow\"," ONCE ",\"timeout\":0.05,\"stream\":true}",
        "{\"adapters\":[{\"model\":\"slow\"},{\"model\":\"nobody\"}]," ONCE ",\"timeout\":0.05}",
    };
    w->hold = true;
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        struct answer_seen a = ask(w, bodies[i]);
        expect_timeout(bodies[i], &a);
        answer_release(&a);
    }
    wait_until_idle(w);
    service_stats(w->node.service, &after);
    assert_int_equal(after.n_loading, 0);
    assert_int_equal(after.n_receipts, before.n_receipts);
    /* What they asked for comes when nobody waits for it any more. */
    int n = w->n_resolved;
    w->hold = false;
    for (int i = 0; i < 2000 && w->n_resolved < n + 4; i++)
        usleep(5000);
    assert_int_equal(w->n_resolved, n + 4);
    everything_is_given_back(w);
}

/* Nothing else that happens wakes the service thread. */
static void time_runs_for_the_first_request_of_a_node_too(void **state)
{
    (void)state;
    struct world *w = world_open();
    struct service_stats stats;
    w->hold = true;
    int fd = dial(w);
    send_post(fd, "/v1/completions", "{\"model\":\"slow\"," ONCE ",\"timeout\":0.2}");
    for (int i = 0; i < 600; i++) {
        service_stats(w->node.service, &stats);
        if (stats.n_failed > 0)
            break;
        usleep(5000);
    }
    w->hold = false;
    assert_int_equal(stats.n_failed, 1);
    close(fd);
    while (w->n_released < 1)
        usleep(5000);
    world_close(w);
}

static void who_leaves_while_an_adapter_is_fetched_gives_up_its_place(void **state)
{
    struct world *w = *state;
    struct service_stats before, stats;
    struct admission_stats inside;
    const char *body = "{\"model\":\"slow\"," ONCE "}";
    int n = w->n_resolved, n_given_up = w->n_given_up, fds[4];
    service_stats(w->node.service, &before);
    w->hold = true;
    for (size_t i = 0; i < 4; i++) {
        fds[i] = dial(w);
        send_post(fds[i], "/v1/completions", body);
    }
    for (int i = 0; i < 1000; i++) {
        service_stats(w->node.service, &stats);
        if (stats.n_loading == 4)
            break;
        usleep(5000);
    }
    assert_int_equal(stats.n_loading, 4);
    for (size_t i = 0; i < 4; i++)
        close(fds[i]);
    wait_until_idle(w);
    admission_stats(w->node.admission, &inside);
    assert_int_equal(inside.n_inside, 0);
    assert_int_equal(w->n_resolved, n);
    assert_int_equal(w->n_given_up, n_given_up + 4);
    service_stats(w->node.service, &stats);
    assert_int_equal(stats.n_vanished, before.n_vanished + 4);
    assert_int_equal(stats.n_failed, before.n_failed);
    w->hold = false;
    for (int i = 0; i < 2000 && w->n_resolved < n + 4; i++)
        usleep(5000);
    assert_int_equal(w->n_resolved, n + 4);
    everything_is_given_back(w);
}

#define LONG "\"max_tokens\":480,\"ignore_eos\":true,\"n\":8"

static void time_runs_while_an_answer_is_made_or_waits(void **state)
{
    struct world *w = *state;
    struct answer_seen a = ask(w, "{\"model\":\"law\"," ONCE "," LONG ",\"timeout\":0.1}");
    expect_timeout("running", &a);
    answer_release(&a);
    /* A stream has begun: it ends with an error, and bills what was written. */
    const char *body = "{\"model\":\"law\"," ONCE "," LONG ",\"timeout\":0.3,\"stream\":true}";
    a = ask(w, body);
    if (a.error == NULL || a.done || a.n_ids == 0 || a.n_ids >= 480 * 8)
        fail_msg("the stream has %zu ids, %s error, %s end", a.n_ids, a.error ? "an" : "no",
                 a.done ? "an" : "no");
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(a.error, "error"), "code")), "timeout");
    check_receipt("a stream out of time", &a, body);
    answer_release(&a);
    /* Sixteen sequences run, as many as can; the next waits in the queue. */
    int busy[2];
    for (int i = 0; i < 2; i++) {
        busy[i] = dial(w);
        send_post(busy[i], "/v1/completions", "{\"model\":\"base\"," ONCE "," LONG "}");
    }
    usleep(50000);
    a = ask(w, "{\"model\":\"base\"," ONCE ",\"max_tokens\":1,\"timeout\":0.05}");
    expect_timeout("waiting", &a);
    answer_release(&a);
    close(busy[0]);
    close(busy[1]);
    wait_until_idle(w);
}

static void a_fetch_does_not_block_other_requests(void **state)
{
    struct world *w = *state;
    int fd = dial(w);
    const char *body = "{\"model\":\"slow\"," ONCE ",\"max_tokens\":4,\"temperature\":0}";
    int resolved = w->n_resolved;
    w->hold = true;
    send_post(fd, "/v1/completions", body);
    usleep(50000);
    struct answer_seen fast = ask(w, "{\"model\":\"base\"," ONCE
                                     ",\"max_tokens\":4,\"temperature\":0}");
    assert_int_equal(fast.status, 200);
    if (w->n_resolved != resolved)
        fail_msg("the other request waited for the fetch");
    w->hold = false;
    struct buf raw = BUF_INIT;
    receive(fd, &raw, NULL);
    struct answer_seen slow = parse_answer(&raw);
    check_receipt("slow", &slow, body);
    assert_string_equal(json_string_value(json_object_get(slow.body, "model")), "slow");
    everything_is_given_back(w);
    answer_release(&fast);
    answer_release(&slow);
    buf_release(&raw);
    close(fd);
}

/* The files of law, with tensors that are all 1e38: each number is finite, their products aren't.
 */
static char *huge_adapter(struct world *w)
{
    struct err err = {0};
    char *dir = xasprintf("%s/huge", w->dir), *path;
    struct buf file = BUF_INIT;
    uint64_t n_header;
    assert_int_equal(mkdir(dir, 0700), 0);
    assert_ok(file_read(ADAPTER "/adapter_model.safetensors", 1 << 24, &file, &err), err);
    memcpy(&n_header, file.data, 8);
    for (size_t i = 8 + n_header; i + 4 <= file.len; i += 4)
        memcpy(file.data + i, &(float){1e38F}, 4);
    path = xasprintf("%s/adapter_model.safetensors", dir);
    assert_ok(file_write_atomic(path, file.data, file.len, 0600, &err), err);
    free(path);
    buf_release(&file);
    assert_ok(file_read(ADAPTER "/adapter_config.json", 1 << 20, &file, &err), err);
    path = xasprintf("%s/adapter_config.json", dir);
    assert_ok(file_write_atomic(path, file.data, file.len, 0600, &err), err);
    free(path);
    buf_release(&file);
    return dir;
}

static void what_is_no_number_is_neither_an_answer_nor_billed(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    char *dir = huge_adapter(w);
    struct answer_seen sound = ask(w, "{\"model\":\"law\"," ONCE "," GREEDY "}");
    assert_ok(adapter_store_add(w->node.adapters, "huge", dir, true, NULL, &err), err);
    struct service_stats before, after;
    service_stats(w->node.service, &before);
    static const struct {
        const char *body, *param;
    } asked[] = {
        {"{\"model\":\"huge\"," ONCE "," GREEDY "}", "model"},
        {"{\"model\":\"huge\"," ONCE ",\"temperature\":1.5,\"n\":3}", "model"},
        {"{\"adapters\":[{\"model\":\"law\"},{\"model\":\"huge\",\"weight\":-2}]," ONCE "}",
         "adapters"},
    };
    for (size_t i = 0; i < sizeof asked / sizeof *asked; i++) {
        struct answer_seen a = ask(w, asked[i].body);
        const json_t *e = json_object_get(a.body, "error");
        const char *param = json_string_value(json_object_get(e, "param"));
        if (a.status != 400 || param == NULL || strcmp(param, asked[i].param) != 0)
            fail_msg("%s: status %d, %s", asked[i].body, a.status, json_dumps(a.body, 0));
        answer_release(&a);
        struct answer_seen again = ask(w, "{\"model\":\"law\"," ONCE "," GREEDY "}");
        if (!json_equal(choice_of(&again), choice_of(&sound)))
            fail_msg("after %s others get other answers: %s", asked[i].body, again.text);
        answer_release(&again);
    }
    service_stats(w->node.service, &after);
    assert_int_equal(after.n_receipts, before.n_receipts + sizeof asked / sizeof *asked);
    answer_release(&sound);
    assert_ok(adapter_store_remove(w->node.adapters, "huge", &err), err);
    everything_is_given_back(w);
    free(dir);
}

static void what_cannot_be_answered_is_refused_by_name(void **state)
{
    struct world *w = *state;
    static const struct {
        const char *body;
        int status;
        const char *param, *code;
    } rows[] = {
        {"{\"model\":\"nobody\"," ONCE "}", 404, "model", "model_not_found"},
        {"{\"model\":\"base\",\"prompt\":[512]}", 400, "prompt", "invalid"},
        {"{\"model\":\"base\",\"prompt\":[[5],[6,512]]}", 400, "prompt[1]", "invalid"},
        {"{\"model\":\"base\",\"prompt\":[\"x\",\"\"],\"add_special_tokens\":false}", 400,
         "prompt[1]", "invalid"},
        {"{\"model\":\"base\",\"prompt\":\"x\",\"logit_bias\":{\"512\":1}}", 400, "logit_bias",
         "invalid"},
        {"{\"model\":\"base\",\"prompt\":\"x\",\"stop_token_ids\":[99999]}", 400, "stop_token_ids",
         "invalid"},
        {"{\"model\":\"base\",\"prompt\":\"\",\"add_special_tokens\":false}", 400, "prompt",
         "invalid"},
        {"{\"model\":\"law\",\"adapters\":[{\"model\":\"code\"}]," ONCE "}", 400, "model",
         "invalid"},
        {"{\"model\":\"nobody\",\"adapters\":[{\"model\":\"code\"}]," ONCE "}", 400, "model",
         "invalid"},
        {"{\"adapters\":[{\"model\":\"code\"},{\"model\":\"base\"}]," ONCE "}", 400,
         "adapters[1].model", "invalid"},
        {"{\"adapters\":[{\"model\":\"law\"},{\"model\":\"law\"}]," ONCE "}", 400,
         "adapters[1].model", "invalid"},
        {"{\"adapters\":[{\"model\":\"law\"},{\"model\":\"code\"},{\"model\":\"slow\"}]," ONCE "}",
         400, "adapters[2].model", "invalid"},
        {"{\"adapters\":[{\"model\":\"slow\"},{\"model\":\"nobody\"}]," ONCE "}", 404,
         "adapters[1].model", "model_not_found"},
        {"{", 400, NULL, "invalid"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct answer_seen a = ask(w, rows[i].body);
        const json_t *e = json_object_get(a.body, "error");
        const char *param = json_string_value(json_object_get(e, "param"));
        const char *code = json_string_value(json_object_get(e, "code"));
        if (a.status != rows[i].status || (param == NULL) != (rows[i].param == NULL) ||
            (param != NULL && strcmp(param, rows[i].param) != 0) || strcmp(code, rows[i].code) != 0)
            fail_msg("%s: status %d, param %s, code %s", rows[i].body, a.status,
                     param != NULL ? param : "null", code);
        answer_release(&a);
    }
    everything_is_given_back(w);
}

static void a_prompt_that_fills_the_context_is_refused_by_its_place(void **state)
{
    struct world *w = *state;
    static const struct {
        int n_ids;
        bool beside; /* another prompt */
        const char *param, *words;
    } rows[] = {
        {513, false, "prompt", "maximum context length is 512 tokens; 'prompt' has 513"},
        {512, false, "prompt", "'prompt' has 512, which leaves none for an answer"},
        {513, true, "prompt[1]", "'prompt[1]' has 513"},
    };
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        struct buf body = BUF_INIT;
        buf_append_str(&body, "{\"model\":\"base\",\"prompt\":[");
        buf_append_str(&body, rows[k].beside ? "[5],[1" : "1");
        for (int i = 1; i < rows[k].n_ids; i++)
            buf_append_str(&body, ",5");
        buf_append_str(&body, rows[k].beside ? "]]}" : "]}");
        struct answer_seen a = ask(w, buf_cstr(&body));
        expect_refusal("the context", &a, 400, rows[k].param, rows[k].words);
        assert_string_equal(
            json_string_value(json_object_get(json_object_get(a.body, "error"), "code")),
            "context_length_exceeded");
        answer_release(&a);
        buf_release(&body);
    }
    everything_is_given_back(w);
}

static void an_adapters_own_limit_is_refused_by_its_name(void **state)
{
    struct world *w = *state;
    wait_until_idle(w);
    struct admission *unlimited = w->node.admission;
    w->node.admission = admission_create(&(struct admission_options){.adapter = {.concurrent = 1}});
    int busy = dial(w);
    send_post(busy, "/v1/completions", "{\"model\":\"law\"," ONCE "," LONG ",\"stream\":true}");
    struct buf raw = BUF_INIT;
    receive(busy, &raw, "\n\n");
    static const struct {
        const char *body;
        int status;
        const char *param;
    } rows[] = {
        {"{\"model\":\"law\"," ONCE "}", 429, "model"},
        {"{\"model\":\"slow\"," ONCE "}", 429, "model"}, /* another name of law's content */
        {"{\"adapters\":[{\"model\":\"code\"},{\"model\":\"law\"}]," ONCE "}", 429, "adapters"},
        {"{\"model\":\"code\"," ONCE ",\"max_tokens\":1}", 200, NULL},
        {"{\"model\":\"base\"," ONCE ",\"max_tokens\":1}", 200, NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct answer_seen a = ask(w, rows[i].body);
        if (rows[i].status == 200) {
            check_receipt(rows[i].body, &a, rows[i].body);
        } else {
            expect_refusal(rows[i].body, &a, 429, rows[i].param, "for the adapter ");
            assert_int_equal(a.retry_after_s, 1);
        }
        answer_release(&a);
    }
    struct admission_stats s;
    admission_stats(w->node.admission, &s);
    assert_int_equal(s.refused_adapter, 3);
    close(busy);
    buf_release(&raw);
    wait_until_idle(w);
    everything_is_given_back(w);
    struct answer_seen again = ask(w, "{\"model\":\"law\"," ONCE ",\"max_tokens\":1}");
    assert_int_equal(again.status, 200);
    answer_release(&again);
    wait_until_idle(w);
    admission_free(w->node.admission);
    w->node.admission = unlimited;
}

static void a_request_may_lower_its_priority_and_never_raise_it(void **state)
{
    struct world *w = *state;
    char *path = xasprintf("%s/keys", w->dir), hex[2][65];
    struct sha256_digest first = sha256("first", 5), plain = sha256("plain", 5);
    char *text = xasprintf("first %s priority=10 weight=2\nplain %s concurrent=1\n",
                           hex_encode(hex[0], first.bytes, 32),
                           hex_encode(hex[1], plain.bytes, 32));
    struct err err = {0};
    struct admission_limits none = {0};
    assert_ok(file_write_atomic(path, text, strlen(text), 0600, &err), err);
    assert_ok(api_keys_open(&w->node.keys, path, &none, &err), err);
    static const struct {
        const char *key;
        int priority, status;
    } rows[] = {
        {"first", 10, 200}, {"first", 0, 200},  {"first", -100, 200}, {"first", 11, 400},
        {"plain", 0, 200},  {"plain", -1, 200}, {"plain", 1, 400},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *body = xasprintf("{\"model\":\"base\"," ONCE ",\"max_tokens\":1,\"priority\":%d}",
                               rows[i].priority);
        struct answer_seen a = ask_as(w, rows[i].key, body);
        if (a.status != rows[i].status)
            fail_msg("%s asks for priority %d: %d", rows[i].key, rows[i].priority, a.status);
        if (a.status == 400)
            expect_refusal(body, &a, 400, "priority", "yours may be at most");
        else
            check_receipt(body, &a, body);
        answer_release(&a);
        free(body);
    }
    /* A line's own limit counts. */
    wait_until_idle(w);
    int busy = dial(w);
    send_post_as(busy, "plain", "/v1/completions", "{\"model\":\"base\"," ONCE "," LONG "}");
    usleep(30000);
    struct answer_seen a = ask_as(w, "plain", "{\"model\":\"base\"," ONCE "}");
    expect_refusal("a second of plain", &a, 429, NULL, "too many requests at the same time");
    answer_release(&a);
    a = ask_as(w, "first", "{\"model\":\"base\"," ONCE ",\"max_tokens\":1}");
    assert_int_equal(a.status, 200);
    answer_release(&a);
    close(busy);
    wait_until_idle(w);
    api_keys_close(w->node.keys);
    w->node.keys = NULL;
    free(text);
    free(path);
}

/* n times the same prompt, for `max_tokens` each. */
static char *many_prompts(int n, int max_tokens, bool stream)
{
    struct buf body = BUF_INIT;
    buf_appendf(&body,
                "{\"model\":\"base\",\"max_tokens\":%d,\"ignore_eos\":true,\"stream\":%s,"
                "\"prompt\":[\"a\"",
                max_tokens, stream ? "true" : "false");
    for (int i = 1; i < n; i++)
        buf_append_str(&body, ",\"a\"");
    buf_append_str(&body, "]}");
    return buf_detach(&body);
}

static void a_full_queue_says_when_to_come_back(void **state)
{
    struct world *w = *state;
    /* 16 run, 8 wait, and 29 more than the 32 that may. */
    char *first = many_prompts(24, 400, true), *second = many_prompts(29, 2, false);
    int busy = dial(w);
    send_post(busy, "/v1/completions", first);
    struct buf got = BUF_INIT;
    receive(busy, &got, "data: ");
    struct answer_seen a = ask(w, second);
    expect_refusal("29 beside 24", &a, 503, NULL, "requests are waiting"); /* most are its own */
    if (a.retry_after_s < 1 || a.retry_after_s > 60)
        fail_msg("Retry-After is %d", a.retry_after_s);
    answer_release(&a);
    close(busy);
    buf_release(&got);
    free(first);
    free(second);
    wait_until_idle(w);
}

/* A client that comes back when it is told to would come back for ever. */
static void a_request_that_no_queue_could_hold_is_not_told_to_come_back(void **state)
{
    struct world *w = *state;
    /* 16 run and 32 wait, but who comes first finds no place to run, and of those to wait a payer
     * beside others (there were some) has eight ninths. */
    static const int n_prompts[] = {30, 32, 33, 48, 49};
    for (size_t i = 0; i < sizeof n_prompts / sizeof *n_prompts; i++) {
        char *body = many_prompts(n_prompts[i], 100, false);
        char *said = xasprintf("%d prompts of 1 choices each are more than the 29 sequences",
                               n_prompts[i]);
        struct answer_seen a = ask(w, body);
        expect_refusal(said, &a, 400, "prompt", said);
        assert_int_equal(a.retry_after_s, 0);
        answer_release(&a);
        free(body);
        free(said);
    }
    char *body = many_prompts(29, 2, false);
    struct answer_seen a = ask(w, body);
    assert_int_equal(a.status, 200);
    answer_release(&a);
    free(body);
    wait_until_idle(w);
}

static void many_queries_are_answered_beside_a_stream(void **state)
{
    struct world *w = *state;
    enum { N = 40 };
    int stream = dial(w), fds[N];
    const char *body = "{\"model\":\"base\"," ONCE
                       ",\"max_tokens\":60,\"ignore_eos\":true,\"stream\":true,\"seed\":2}";
    send_post(stream, "/v1/completions", body);
    int answered = 0, refused = 0;
    for (int i = 0; i < N; i++) {
        fds[i] = dial(w);
        send_post(fds[i], "/rpc",
                  "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"attribution_usage\"}");
    }
    for (int i = 0; i < N; i++) {
        struct buf raw = BUF_INIT;
        receive(fds[i], &raw, NULL);
        if (strstr(buf_cstr(&raw), "\"totals\"") != NULL)
            answered++;
        else if (strstr(buf_cstr(&raw), "503") != NULL && strstr(buf_cstr(&raw), "Retry-After"))
            refused++;
        else
            fail_msg("query %d: %s", i, buf_cstr(&raw));
        buf_release(&raw);
        close(fds[i]);
    }
    if (answered < 16)
        fail_msg("%d queries answered, %d refused; the queue holds 16", answered, refused);
    struct buf raw = BUF_INIT;
    receive(stream, &raw, NULL);
    struct answer_seen a = parse_answer(&raw);
    check_receipt("beside queries", &a, body);
    answer_release(&a);
    buf_release(&raw);
    close(stream);
}

/* A request whose prompt takes long to become tokens, all but its last bytes: as many are whole at
 * the same moment as somebody wants. */
static int send_most_of_a_large_prompt(struct world *w, const char *tail)
{
    enum { N_SPACES = 300000 };
    static const char head[] = "{\"model\":\"base\",\"prompt\":\"";
    struct buf b = BUF_INIT;
    buf_appendf(&b,
                "POST /v1/completions HTTP/1.0\r\nHost: x\r\nContent-Type: application/json\r\n"
                "Content-Length: %zu\r\n\r\n%s%*s",
                sizeof head - 1 + N_SPACES + strlen(tail), head, N_SPACES, "");
    int fd = dial(w);
    assert_int_equal(send(fd, b.data, b.len, MSG_NOSIGNAL), (ssize_t)b.len);
    buf_release(&b);
    return fd;
}

static void receive_refusal(int fd)
{
    struct buf raw = BUF_INIT;
    receive(fd, &raw, NULL);
    assert_non_null(strstr(buf_cstr(&raw), "context_length_exceeded"));
    buf_release(&raw);
    close(fd);
}

static void large_prompts_hold_up_nobody_else(void **state)
{
    struct world *w = *state;
    enum { N = 8 }; /* more than there are HTTP threads */
    static const char tail[] = "\"}", get[] = "GET /healthz HTTP/1.0\r\nHost: x\r\n\r\n";
    int fds[N], fd;
    fds[0] = send_most_of_a_large_prompt(w, tail);
    struct monotonic_us began = clock_monotonic_us();
    assert_int_equal(send(fds[0], tail, 2, MSG_NOSIGNAL), 2);
    receive_refusal(fds[0]);
    uint64_t alone_us = clock_elapsed_us(began, clock_monotonic_us()), longest_us = 0;
    for (int i = 0; i < N; i++)
        fds[i] = send_most_of_a_large_prompt(w, tail);
    struct monotonic_us all_began = clock_monotonic_us();
    for (int i = 0; i < N; i++)
        assert_int_equal(send(fds[i], tail, 2, MSG_NOSIGNAL), 2);
    for (int i = 0; i < 4; i++) { /* on one HTTP thread or another */
        struct buf raw = BUF_INIT;
        fd = dial(w);
        began = clock_monotonic_us();
        assert_int_equal(send(fd, get, sizeof get - 1, MSG_NOSIGNAL), sizeof get - 1);
        receive(fd, &raw, NULL);
        uint64_t us = clock_elapsed_us(began, clock_monotonic_us());
        longest_us = us > longest_us ? us : longest_us;
        assert_non_null(strstr(buf_cstr(&raw), " 200 "));
        buf_release(&raw);
        close(fd);
    }
    for (int i = 0; i < N; i++)
        receive_refusal(fds[i]);
    uint64_t all_us = clock_elapsed_us(all_began, clock_monotonic_us());
    printf(
        "note: a large prompt takes %llu us, %d of them %llu us; beside them /healthz takes %llu "
        "us\n",
        (unsigned long long)alone_us, N, (unsigned long long)all_us,
        (unsigned long long)longest_us);
    /* On the HTTP threads it would come behind most of them; the machine's other work makes both
     * longer. */
    assert_true(longest_us < all_us / 2);
}

static void what_nobody_waited_for_counts_against_the_limit_of_tokens(void **state)
{
    struct world *w = *state;
    wait_until_idle(w);
    struct admission *unlimited = w->node.admission;
    w->node.admission = admission_create(
        &(struct admission_options){.customer = {.tokens_per_minute = 1}});
    struct engine_stats e0, e;
    engine_stats(w->node.engine, &e0);
    int fd = dial(w);
    send_post(fd, "/v1/completions",
              "{\"model\":\"base\"," ONCE ",\"max_tokens\":490,\"ignore_eos\":true}");
    for (int i = 0; i < 4000; i++) {
        engine_stats(w->node.engine, &e);
        if (e.n_rows_decode >= e0.n_rows_decode + 4)
            break;
        usleep(1000);
    }
    close(fd);
    assert_true(e.n_rows_decode >= e0.n_rows_decode + 4);
    wait_until_idle(w);
    struct answer_seen next = ask(w, "{\"model\":\"base\"," ONCE ",\"max_tokens\":1}");
    assert_int_equal(next.status, 429);
    answer_release(&next);
    wait_until_idle(w);
    admission_free(w->node.admission);
    w->node.admission = unlimited;
}

static void without_a_receipt_there_is_no_success(void **state)
{
    struct world *w = *state;
    wait_until_idle(w);
    /* One token is enough to be let in, and one that counts too many for the next. */
    struct admission *unlimited = w->node.admission;
    w->node.admission = admission_create(
        &(struct admission_options){.customer = {.tokens_per_minute = 1}});
    struct rlimit saved, none;
    getrlimit(RLIMIT_FSIZE, &saved);
    none = saved;
    none.rlim_cur = 0; /* no file may grow: the ledger's writes fail as on a full disk */
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &none);
    struct answer_seen plain = ask(w, "{\"model\":\"base\"," ONCE
                                      ",\"max_tokens\":4,\"temperature\":0}");
    struct answer_seen streamed = ask(w, "{\"model\":\"base\"," ONCE
                                         ",\"max_tokens\":4,\"temperature\":0,\"stream\":true}");
    setrlimit(RLIMIT_FSIZE, &saved);
    if (plain.status < 500 || json_object_get(plain.body, "choices") != NULL)
        fail_msg("the ledger could not write, and the answer has status %d", plain.status);
    if (streamed.status == 429)
        fail_msg("tokens that nobody was answered with count against the customer's limit");
    if (streamed.error == NULL || streamed.done || streamed.last != NULL)
        fail_msg("the ledger could not write, and the stream ended as if it could");
    /* Nobody outside learns where the operator keeps the ledger, or what went wrong inside. */
    char ready[256], *said[] = {json_dumps(plain.body, 0), json_dumps(streamed.error, 0)};
    assert_false(health_ready(&w->node, ready));
    assert_null(strstr(ready, w->dir));
    for (size_t i = 0; i < 2; i++) {
        if (strstr(said[i], w->dir) != NULL || strstr(said[i], "ledger.db") != NULL)
            fail_msg("a client is told: %s", said[i]);
        free(said[i]);
    }
    answer_release(&plain);
    answer_release(&streamed);
    wait_until_idle(w);
    admission_free(w->node.admission);
    w->node.admission = unlimited;
}

static void the_node_recovers_when_the_disk_does(void **state)
{
    struct world *w = *state;
    const char *body = "{\"model\":\"base\"," ONCE ",\"max_tokens\":4,\"temperature\":0}";
    for (int i = 0; i < 50; i++) {
        struct answer_seen a = ask(w, body);
        bool ok = a.status == 200;
        if (ok)
            check_receipt("after the disk came back", &a, body);
        answer_release(&a);
        if (ok)
            return;
        usleep(100000);
    }
    fail_msg("five seconds after the disk came back requests still fail");
}

static void stopping_bills_and_tells_what_was_written(void **state)
{
    struct world *w = *state;
    int fd = dial(w);
    const char *body = "{\"model\":\"law\"," ONCE
                       ",\"max_tokens\":480,\"ignore_eos\":true,\"stream\":true,\"seed\":1}";
    send_post(fd, "/v1/completions", body);
    struct buf raw = BUF_INIT;
    receive(fd, &raw, "\n\n");
    service_stop(w->node.service);
    receive(fd, &raw, NULL);
    struct answer_seen a = parse_answer(&raw);
    if (a.error == NULL || a.done)
        fail_msg("the stream does not end with an error: %s",
                 raw.len > 400 ? buf_cstr(&raw) + raw.len - 400 : buf_cstr(&raw));
    check_receipt("stopped", &a, body);
    assert_true(a.n_ids > 0 && a.n_ids < 480);
    struct answer_seen late = ask(w, "{\"model\":\"base\"," ONCE "}");
    assert_int_equal(late.status, 503);
    answer_release(&late);
    answer_release(&a);
    buf_release(&raw);
    close(fd);
}

static int setup(void **state)
{
    *state = world_open();
    return 0;
}

static int teardown(void **state)
{
    world_close(*state);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_answer_carries_a_receipt_of_exactly_its_tokens),
        cmocka_unit_test(a_stream_and_a_body_say_the_same),
        cmocka_unit_test(a_salt_shares_with_itself_alone),
        cmocka_unit_test(a_stop_string_ends_text_and_bill),
        cmocka_unit_test(scores_of_a_prompt_equal_those_of_its_generation),
        cmocka_unit_test(a_token_begins_in_the_text_where_its_first_bytes_character_does),
        cmocka_unit_test(a_stop_in_the_echoed_prompt_is_none),
        cmocka_unit_test(a_streamed_echo_tells_the_offsets_that_the_whole_answer_has),
        cmocka_unit_test(a_vanished_client_is_billed_what_its_socket_took),
        cmocka_unit_test(a_client_that_leaves_before_the_first_byte_is_billed_nothing),
        cmocka_unit_test(what_nobody_waited_for_counts_against_the_limit_of_tokens),
        cmocka_unit_test(many_at_once_get_the_words_they_get_alone),
        cmocka_unit_test(an_adapter_of_weight_0_changes_nothing),
        cmocka_unit_test(an_ensemble_is_receipted_by_share),
        cmocka_unit_test(ensembles_that_wait_for_room_do_not_wait_for_each_other),
        cmocka_unit_test(an_ensemble_that_cannot_fit_beside_pinned_adapters_is_refused_at_once),
        cmocka_unit_test(an_ensemble_that_gathers_gives_up_when_room_or_time_is_gone),
        cmocka_unit_test(time_runs_while_an_adapter_is_fetched),
        cmocka_unit_test(time_runs_for_the_first_request_of_a_node_too),
        cmocka_unit_test(who_leaves_while_an_adapter_is_fetched_gives_up_its_place),
        cmocka_unit_test(time_runs_while_an_answer_is_made_or_waits),
        cmocka_unit_test(a_fetch_does_not_block_other_requests),
        cmocka_unit_test(what_is_no_number_is_neither_an_answer_nor_billed),
        cmocka_unit_test(what_cannot_be_answered_is_refused_by_name),
        cmocka_unit_test(a_prompt_that_fills_the_context_is_refused_by_its_place),
        cmocka_unit_test(an_adapters_own_limit_is_refused_by_its_name),
        cmocka_unit_test(a_request_may_lower_its_priority_and_never_raise_it),
        cmocka_unit_test(a_full_queue_says_when_to_come_back),
        cmocka_unit_test(a_request_that_no_queue_could_hold_is_not_told_to_come_back),
        cmocka_unit_test(many_queries_are_answered_beside_a_stream),
        cmocka_unit_test(large_prompts_hold_up_nobody_else),
        cmocka_unit_test(without_a_receipt_there_is_no_success),
        cmocka_unit_test(the_node_recovers_when_the_disk_does),
        cmocka_unit_test(stopping_bills_and_tells_what_was_written),
    };
    return cmocka_run_group_tests_name("service", tests, setup, teardown);
}
