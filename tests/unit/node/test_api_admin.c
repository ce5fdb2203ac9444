/* The admin API over HTTP: who may ask, what it answers, what it does to the store. */
#include "tests/support.h"
#include "tests/unit/node/node_listen.h"

#include "attribution/attribution.h"
#include "engine/engine.h"
#include "node/adapter_store.h"
#include "node/admission.h"
#include "node/api_keys.h"
#include "node/base/hex.h"
#include "node/base/http_client.h"
#include "node/base/log.h"
#include "node/base/sha256.h"
#include "node/http.h"
#include "node/metrics.h"
#include "node/node.h"
#include "node/workers.h"
#include "wallet/wallet.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL     "tests/fixtures/models/stories260K"
#define ADAPTERS  "tests/fixtures/adapters"
#define DIGITS_64 "1111111111111111111111111111111111111111111111111111111111111111"

struct world {
    char *dir, *here;
    struct wallet *wallet;
    struct node node;
    struct http_server *door; /* where it is asked */
    struct http_client *client;
};

static int world_open_with(void **state, const char *model_dir)
{
    struct world *w = xcalloc(1, sizeof *w);
    struct err err = {0};
    static const struct wallet_memory_key keys[] = {{.name = "signer", .key = {[31] = 1}},
                                                    {.name = "house", .key = {[31] = 2}}};
    log_set_level(LOG_ERROR);
    w->dir = temp_dir_create();
    w->here = getcwd(NULL, 0);
    w->wallet = wallet_open_memory(keys, 2, &err);
    w->node.metrics = metrics_create();
    w->node.admission = admission_create(&(struct admission_options){0});
    w->node.ledger = ledger_open(&(struct ledger_options){.data_dir = w->dir, .wallet = w->wallet},
                                 &err);
    if (w->wallet == NULL || w->node.ledger == NULL)
        fail_msg("%s", err.message);
    w->node.adapters = adapter_store_create(&(struct adapter_store_options){
        .data_dir = w->dir, .base_name = "base", .metrics = w->node.metrics});
    struct service_options so = {.base_name = "base",
                                 .metrics = w->node.metrics,
                                 .resolver = adapter_store_resolver(w->node.adapters)};
    w->node.service = service_create(&so);
    struct engine_options eo = {.model_dir = model_dir,
                                .backend = "ref",
                                .max_seqs = 4,
                                .max_rows = 16,
                                .on_events = service_on_events,
                                .context = w->node.service};
    assert_ok(engine_open(&w->node.engine, &eo, &err), err);
    assert_ok(adapter_store_start(w->node.adapters, w->node.engine, w->node.ledger, &err), err);
    assert_ok(service_start(w->node.service, w->node.engine, w->node.ledger, &err), err);
    node_listen(&w->node);
    w->door = w->node.http;
    w->client = http_client_create();
    *state = w;
    return 0;
}

static int world_open(void **state)
{
    return world_open_with(state, MODEL);
}

static int world_close(void **state)
{
    struct world *w = *state;
    service_stop(w->node.service);
    adapter_store_stop(w->node.adapters);
    workers_stop(w->node.workers);
    http_close(w->node.http);
    workers_free(w->node.workers);
    engine_close(w->node.engine);
    service_free(w->node.service);
    adapter_store_free(w->node.adapters);
    ledger_close(w->node.ledger);
    wallet_close(w->wallet);
    admission_free(w->node.admission);
    metrics_free(w->node.metrics);
    api_keys_close(w->node.admin_keys);
    http_client_free(w->client);
    temp_dir_remove(w->dir);
    free(w->here);
    free(w);
    return 0;
}

/* One request; *status gets its status; a new reference. header may be NULL. */
static json_t *ask(struct world *w, enum http_method method, const char *path, const char *body,
                   const char *header, int *status)
{
    char *url = xasprintf("%s/admin/v1/adapters%s", http_url(w->door), path);
    const char *headers[] = {"Content-Type: application/json", header};
    struct http_call call = {.method = method,
                             .url = url,
                             .headers = headers,
                             .n_headers = header != NULL ? 2 : 1,
                             .body = body,
                             .n_body = body != NULL ? strlen(body) : 0};
    struct buf text = BUF_INIT;
    struct http_reply reply = {0};
    struct err err = {0};
    assert_ok(http_client_fetch(w->client, &call, &text, &reply, &err), err);
    json_t *answer = json_loadb(buf_cstr(&text), text.len, 0, NULL);
    if (answer == NULL)
        fail_msg("%s: no JSON: %s", path, buf_cstr(&text));
    buf_release(&text);
    free(url);
    *status = reply.status;
    return answer;
}

static const char *text_at(const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    return text != NULL ? text : "(none)";
}

/* status and, of a failure, its sentence's beginning; of a success the adapter's tier. */
static void expect(struct world *w, enum http_method method, const char *path, const char *body,
                   int status, const char *what)
{
    int got;
    json_t *answer = ask(w, method, path, body, NULL, &got);
    const json_t *error = json_object_get(answer, "error");
    const char *text = error != NULL ? text_at(error, "message") : text_at(answer, "tier");
    if (got != status || strncmp(text, what, strlen(what)) != 0)
        fail_msg("%s: %d \"%s\", expected %d \"%s\"", path, got, text, status, what);
    json_decref(answer);
}

static char *add_body(struct world *w, const char *name, const char *dir)
{
    return xasprintf("{\"name\":\"%s\",\"dir\":\"%s/%s/%s\"}", name, w->here, ADAPTERS, dir);
}

static void an_adapter_is_added_loaded_pinned_unloaded_and_removed(void **state)
{
    struct world *w = *state;
    struct engine_stats before, after;
    int status;
    char *law = add_body(w, "org/law", "stories260K-law");
    char *code = add_body(w, "org/law", "stories260K-code");
    char *nothing = add_body(w, "none", "no-such-adapter");
    char *file = add_body(w, "none", "stories260K-law/adapter_config.json");
    char *beyond = add_body(w, "none", "stories260K-law/adapter_config.json/law");
    char *where = xasprintf("adapter none: %s/%s/stories260K-law/adapter_config.json: not a "
                            "directory",
                            w->here, ADAPTERS);
    expect(w, HTTP_POST, "", law, 200, "host");
    engine_stats(w->node.engine, &before);
    expect(w, HTTP_POST, "/org%2Flaw/unload", "{}", 200, "disk");
    engine_stats(w->node.engine, &after);
    assert_true(before.adapter_host_bytes_used > 0);
    assert_int_equal(after.adapter_host_bytes_used, 0);
    expect(w, HTTP_POST, "/org/law/load", "{}", 200, "host");
    engine_stats(w->node.engine, &before);
    assert_int_equal(before.adapter_bytes_used, 0);
    expect(w, HTTP_POST, "/org/law/warm", "{}", 200, "");
    for (int i = 0; i < 500 && before.n_adapters_resident == 0; i++) {
        usleep(10000);
        engine_stats(w->node.engine, &before);
    }
    expect(w, HTTP_GET, "/org/law", NULL, 200, "device");
    assert_true(before.adapter_bytes_used > 0);
    expect(w, HTTP_POST, "/org/law/unload", "{}", 200, "disk");
    engine_stats(w->node.engine, &after);
    assert_int_equal(after.adapter_bytes_used, 0);
    assert_int_equal(after.adapter_host_bytes_used, 0);
    expect(w, HTTP_POST, "/org/law/pin", "{}", 200, "");
    expect(w, HTTP_POST, "/org/law/unload", "{}", 409, "adapter org/law is pinned");
    for (int i = 0; i < 500 && after.adapter_bytes_kept == 0; i++) {
        usleep(10000);
        engine_stats(w->node.engine, &after);
    }
    assert_true(after.adapter_bytes_kept > 0);
    json_t *page = ask(w, HTTP_GET, "?pinned=true&tier=host&limit=5", NULL, NULL, &status);
    assert_int_equal(json_array_size(json_object_get(page, "items")), 1);
    json_decref(page);
    expect(w, HTTP_POST, "/org/law/unpin", "{}", 200, "");
    for (int i = 0; i < 500 && after.adapter_bytes_kept > 0; i++) {
        usleep(10000);
        engine_stats(w->node.engine, &after);
    }
    assert_int_equal(after.adapter_bytes_kept, 0);
    json_t *old = ask(w, HTTP_GET, "/org%2Flaw", NULL, NULL, &status);
    expect(w, HTTP_POST, "", code, 200, "host");
    json_t *new = ask(w, HTTP_GET, "/org/law", NULL, NULL, &status);
    assert_string_not_equal(text_at(old, "content_digest"), text_at(new, "content_digest"));
    json_decref(old);
    json_decref(new);
    expect(w, HTTP_DELETE, "/org%2Flaw", NULL, 200, "(none)");
    expect(w, HTTP_GET, "/org%2Flaw", NULL, 404, "there is no adapter \"org/law\"");
    engine_stats(w->node.engine, &after);
    assert_int_equal(after.adapter_host_bytes_used, 0);
    expect(w, HTTP_POST, "", nothing, 404, "adapter none: ");
    expect(w, HTTP_POST, "", file, 400, where);
    char *empty = xasprintf("{\"name\":\"none\",\"dir\":\"%s\"}", w->dir);
    char *what = xasprintf("adapter none (%s): adapter_config.json: No such file", w->dir);
    expect(w, HTTP_POST, "", empty, 404, what);
    free(empty);
    free(what);
    expect(w, HTTP_POST, "", beyond, 404, "adapter none: ");
    free(law);
    free(code);
    free(nothing);
    free(file);
    free(beyond);
    free(where);
}

static void what_makes_no_sense_is_refused_with_a_sentence(void **state)
{
    struct world *w = *state;
    static const struct {
        enum http_method method;
        const char *path, *body;
        int status;
        const char *message;
    } cases[] = {
        {HTTP_POST, "", "{", 400, ""},
        {HTTP_POST, "", "[]", 400, "the body must be"},
        {HTTP_POST, "", "{\"name\":\"a\"}", 400, "the body must be"},
        {HTTP_POST, "", "{\"name\":\"a\",\"dir\":\"b\"}", 400, "dir must be an absolute path"},
        {HTTP_POST, "", "{\"name\":\"a\",\"dir\":\"/\",\"pin\":1}", 400, "unknown field 'pin'"},
        {HTTP_POST, "", "{\"name\":\"base\",\"dir\":\"/\"}", 409, "two models are named \"base\""},
        {HTTP_POST, "", "{\"name\":\"" METRICS_OTHERS "\",\"dir\":\"/\"}", 400,
         "adapter name \"" METRICS_OTHERS "\" must have"},
        {HTTP_POST, "", "{\"name\":\"" METRICS_ENSEMBLES "\",\"dir\":\"/\"}", 400,
         "adapter name \"" METRICS_ENSEMBLES "\" must have"},
        {HTTP_POST, "/law/fly", "{}", 404, "an order is"},
        {HTTP_POST, "/load", "{}", 404, "an order is"},
        {HTTP_POST, "/nobody/load", "{}", 404, "there is no model \"nobody\""},
        {HTTP_POST, "/nobody/pin", "{}", 404, "there is no model \"nobody\""},
        {HTTP_POST, "/nobody/unpin", "{}", 404, "there is no adapter \"nobody\""},
        {HTTP_POST, "/nobody/unload", "{}", 404, "there is no adapter \"nobody\""},
        {HTTP_DELETE, "/nobody", NULL, 404, "there is no adapter \"nobody\""},
        {HTTP_GET, "/base", NULL, 404, "base is the base model"},
        {HTTP_POST, "/base/load", "{}", 404, "base is the base model"},
        {HTTP_POST, "/base/pin", "{}", 404, "base is the base model"},
        {HTTP_POST, "/base/unpin", "{}", 404, "base is the base model"},
        {HTTP_POST, "/base/unload", "{}", 404, "base is the base model"},
        {HTTP_DELETE, "/base", NULL, 404, "base is the base model"},
        {HTTP_GET, "?limit=0", NULL, 400, "limit is a number"},
        {HTTP_GET, "?limit=1001", NULL, 400, "limit is a number"},
        {HTTP_GET, "?pinned=yes", NULL, 400, "pinned is"},
        {HTTP_GET, "?tier=moon", NULL, 400, "tier is"},
        {HTTP_DELETE, "", NULL, 405, "DELETE /admin/v1/adapters: only GET, POST is allowed"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect(w, cases[i].method, cases[i].path, cases[i].body, cases[i].status, cases[i].message);
}

/* The receipts' too: ask() goes from the adapters' path, and the client walks up. */
static void a_refusal_names_the_parameter(void **state)
{
    struct world *w = *state;
    static const struct {
        enum http_method method;
        const char *path, *body, *param;
    } cases[] = {
        {HTTP_GET, "?limit=0", NULL, "limit"},
        {HTTP_GET, "?pinned=yes", NULL, "pinned"},
        {HTTP_GET, "?tier=moon", NULL, "tier"},
        {HTTP_POST, "", "{\"name\":\"a\",\"dir\":\"b\"}", "dir"},
        {HTTP_POST, "", "{\"name\":\"a\",\"dir\":\"/\",\"pin\":1}", "pin"},
        {HTTP_POST, "", "{\"name\":\"a\"}", "(none)"},
        {HTTP_GET, "/nobody", NULL, "name"},
        {HTTP_GET, "/../../../v1/receipts?channel=x", NULL, "channel"},
        {HTTP_GET, "/../../../v1/receipts?channel=" DIGITS_64 "&from=-1", NULL, "from"},
        {HTTP_GET, "/../../../v1/receipts?channel=" DIGITS_64 "&limit=0", NULL, "limit"},
        {HTTP_GET, "/../../../v1/receipts/12", NULL, "id"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int status;
        json_t *answer = ask(w, cases[i].method, cases[i].path, cases[i].body, NULL, &status);
        const char *param = text_at(json_object_get(answer, "error"), "param");
        if (strcmp(param, cases[i].param) != 0)
            fail_msg("%s %s: %d, param %s, expected %s", cases[i].path,
                     cases[i].body != NULL ? cases[i].body : "", status, param, cases[i].param);
        json_decref(answer);
    }
}

static void with_admin_keys_only_their_owners_may_ask(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    char hex[65];
    struct sha256_digest h = sha256("secret", 6);
    char *path = xasprintf("%s/admin-keys", w->dir);
    char *line = xasprintf("me %s\n", hex_encode(hex, h.bytes, 32));
    assert_ok(file_write_atomic(path, line, strlen(line), 0600, &err), err);
    assert_ok(api_keys_open(&w->node.admin_keys, path, &(struct admission_limits){0}, &err), err);
    static const struct {
        const char *header;
        int status;
    } cases[] = {
        {NULL, 401},
        {"Authorization: Bearer wrong", 401},
        {"Authorization: Bearer secret", 200},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int status;
        json_decref(ask(w, HTTP_GET, "", NULL, cases[i].header, &status));
        assert_int_equal(status, cases[i].status);
    }
    free(path);
    free(line);
}

static void without_admin_keys_only_this_machine_may_ask_and_no_proxy_or_page(void **state)
{
    struct world *w = *state;
    static const struct {
        const char *header;
        int status;
    } cases[] = {
        {NULL, 200},
        {"Origin: http://example.org", 403},
        {"X-Forwarded-For: 192.0.2.1", 403},
        {"Forwarded: for=192.0.2.1", 403},
        {"Via: 1.1 proxy", 403},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int status;
        json_decref(ask(w, HTTP_GET, "", NULL, cases[i].header, &status));
        assert_int_equal(status, cases[i].status);
    }
    /* The same node on an address that others reach. */
    struct http_server *loopback = w->node.http, *open;
    struct http_options ho = {.listen = "0.0.0.0:0",
                              .insecure_bind = true,
                              .tick_ms = 1,
                              .on_head = routes_on_head,
                              .on_request = routes_on_request,
                              .on_done = routes_on_done,
                              .context = &w->node};
    struct err err = {0};
    assert_ok(http_open(&open, &ho, &err), err);
    atomic_store(&w->node.http, open);
    w->door = open;
    int status;
    json_decref(ask(w, HTTP_GET, "", NULL, NULL, &status));
    assert_int_equal(status, 403);
    atomic_store(&w->node.http, loopback);
    w->door = loopback;
    http_close(open);
}

/* The first visitor may come before the node knows its own door. */
static void who_comes_while_the_node_opens_is_told_to_come_again(void **state)
{
    struct world *w = *state;
    int status;
    atomic_store(&w->node.opened, false);
    for (int i = 0; i < 2; i++) {
        atomic_store(&w->node.http, i == 0 ? NULL : w->door);
        json_decref(ask(w, HTTP_GET, "", NULL, NULL, &status));
        assert_int_equal(status, 503);
        json_decref(ask(w, HTTP_GET, "", NULL, "Origin: http://example.org", &status));
        assert_int_equal(status, 403);
    }
    atomic_store(&w->node.opened, true);
}

/* Adapters and KV cache have no sizes in this engine's options: they share. */
static void metrics_and_status_tell_how_memory_is_shared(void **state)
{
    struct world *w = *state;
    struct engine_stats s;
    struct buf page = BUF_INIT;
    engine_stats(w->node.engine, &s);
    assert_true(s.brick_bytes > 0 && s.kv_bytes_total > 0 && s.adapter_bytes_total > 0);
    metrics_render(w->node.metrics, &page, &(struct metrics_sources){.engine = w->node.engine});
    const struct {
        const char *format;
        size_t value;
    } lines[] = {
        {"\ntributary_engine_memory_bytes{side=\"kv\"} %zu\n", s.kv_bytes_total},
        {"\ntributary_engine_memory_bytes{side=\"adapters\"} %zu\n", s.adapter_bytes_total},
        {"\ntributary_engine_memory_moved_bytes_total{to=\"kv\"} %zu\n",
         (size_t)s.n_bricks_to_kv * s.brick_bytes},
        {"\ntributary_engine_memory_moved_bytes_total{to=\"adapters\"} %zu\n",
         (size_t)s.n_bricks_to_adapters * s.brick_bytes},
    };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        char line[128];
        snprintf(line, sizeof line, lines[i].format, lines[i].value);
        if (strstr(buf_cstr(&page), line) == NULL)
            fail_msg("no line %s", line);
    }
    buf_release(&page);
    json_t *status = health_status(&w->node), *engine = json_object_get(status, "engine");
    assert_int_equal(json_integer_value(json_object_get(engine, "kvBytesTotal")), s.kv_bytes_total);
    assert_int_equal(json_integer_value(json_object_get(engine, "adapterBytesTotal")),
                     s.adapter_bytes_total);
    assert_int_equal(json_integer_value(json_object_get(engine, "bytesMovedToKv")),
                     s.n_bricks_to_kv * s.brick_bytes);
    json_decref(status);
}

/* dir/name with links to those files of `from`; the caller frees its path. */
static char *link_files(const char *dir, const char *name, const char *from,
                        const char *const *files, size_t n)
{
    char *to = xasprintf("%s/%s", dir, name);
    struct err err = {0};
    assert_ok(dir_ensure(to, &err), err);
    for (size_t i = 0; i < n; i++) {
        char *file = xasprintf("%s/%s", from, files[i]), *whole = realpath(file, NULL);
        char *link = xasprintf("%s/%s", to, files[i]);
        assert_int_equal(symlink(whole, link), 0);
        free(file);
        free(whole);
        free(link);
    }
    return to;
}

static void a_directory_that_is_named_in_no_utf8_is_still_told_of(void **state)
{
    static const struct {
        const char *dir, *name;
    } rows[] = {
        {"mod\xe9l", "mod\xef\xbf\xbdl"},
        {"\xff", "\xef\xbf\xbd"},
        {"mod\xc3\xa8l", "mod\xc3\xa8l"},
    };
    static const char *const files[] = {"config.json", "model.safetensors", "tokenizer.json"};
    char *dir = temp_dir_create();
    struct err err = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *model = link_files(dir, rows[i].dir, MODEL, files, 3);
        world_open_with(state, model);
        struct world *w = *state;
        json_t *status = health_status(&w->node), *about = json_object_get(status, "model");
        assert_string_equal(text_at(about, "name"), rows[i].name);
        assert_int_equal(json_integer_value(json_object_get(about, "vocabulary")), 512);
        json_decref(status);
        world_close(state);
        free(model);
    }
    /* A long name is cut between two characters. */
    char name[256] = "x";
    for (int i = 0; i < 120; i++)
        strcat(name, "\xc3\xa8");
    char *model = link_files(dir, name, MODEL, files, 3);
    world_open_with(state, model);
    struct world *w = *state;
    json_t *status = health_status(&w->node);
    name[127] = '\0'; /* x and 63 characters of two bytes */
    assert_string_equal(text_at(json_object_get(status, "model"), "name"), name);
    json_decref(status);
    free(model);
    /* An adapter's directory, likewise; but what is to be remembered must be said exactly. */
    static const char *const law_files[] = {"adapter_config.json", "adapter_model.safetensors"};
    char *root = xasprintf("%s/caf\xe9", dir);
    char *law = link_files(root, "law", ADAPTERS "/stories260K-law", law_files, 2);
    size_t n;
    int got;
    assert_ok(adapter_store_add_all(w->node.adapters, root, &n, &err), err);
    assert_int_equal(n, 1);
    json_t *one = ask(w, HTTP_GET, "/law", NULL, NULL, &got);
    char *said = xasprintf("%s/caf\xef\xbf\xbd/law", dir);
    assert_string_equal(text_at(one, "dir"), said);
    json_decref(one);
    assert_int_equal(adapter_store_add(w->node.adapters, "told", law, true, NULL, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    assert_ok(adapter_store_add(w->node.adapters, "given", law, false, NULL, &err), err);
    free(said);
    free(law);
    free(root);
    world_close(state);
    temp_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_adapter_is_added_loaded_pinned_unloaded_and_removed,
                                        world_open, world_close),
        cmocka_unit_test_setup_teardown(metrics_and_status_tell_how_memory_is_shared, world_open,
                                        world_close),
        cmocka_unit_test(a_directory_that_is_named_in_no_utf8_is_still_told_of),
        cmocka_unit_test_setup_teardown(what_makes_no_sense_is_refused_with_a_sentence, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(a_refusal_names_the_parameter, world_open, world_close),
        cmocka_unit_test_setup_teardown(with_admin_keys_only_their_owners_may_ask, world_open,
                                        world_close),
        cmocka_unit_test_setup_teardown(
            without_admin_keys_only_this_machine_may_ask_and_no_proxy_or_page, world_open,
            world_close),
        cmocka_unit_test_setup_teardown(who_comes_while_the_node_opens_is_told_to_come_again,
                                        world_open, world_close),
    };
    return cmocka_run_group_tests_name("api_admin", tests, NULL, NULL);
}
