/* The registries' index: what a name means, and which manifest a digest is in. */
#include "node/adapter_index.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/http_client.h"
#include "node/base/log.h"
#include "node/base/sha256.h"
#include "tests/http_server.h"
#include "tests/support.h"

enum { PAGES = 5, PAGE_ITEMS = 4000, NAMES = 5000 };

static struct buf pages[PAGES]; /* the last is the newest, which is the index itself */
static char hashes[PAGES][65];
static _Atomic bool silent;
static _Atomic int n_kept_waiting;

/* Entry i has name i % NAMES: the first of a name is creator 1's version 1, later ones are version
 * 2 of a stranger, a Datanet, and version 3 of creator 1. Names sort otherwise than they come. */
static void make_pages(void)
{
    for (int p = 0; p < PAGES; p++) {
        struct buf *b = &pages[p];
        buf_append_str(b, "{\"items\":[");
        for (int k = 0; k < PAGE_ITEMS; k++) {
            int i = p * PAGE_ITEMS + k, round = i / NAMES;
            buf_appendf(b,
                        "%s{\"creator\":\"0x%040x\",\"kind\":\"%s\",\"manifest\":\"%064x\","
                        "\"name\":\"n%d\",\"version\":%d}",
                        k > 0 ? "," : "", round == 1 ? 2 : 1, round == 2 ? "datanet" : "adapter", i,
                        (i % NAMES * 7) % NAMES, round == 2 ? 0 : round + 1);
        }
        buf_appendf(b, "],\"previous\":%s%s%s,\"schema\":\"tributary.index/1\",\"updated\":1}",
                    p > 0 ? "\"" : "", p > 0 ? hashes[p - 1] : "null", p > 0 ? "\"" : "");
        struct sha256_digest h = sha256(b->data, b->len);
        hex_encode(hashes[p], h.bytes, 32);
    }
}

static void registry(struct exchange *x)
{
    n_kept_waiting += silent;
    while (silent && !x->server->stopping)
        usleep(1000);
    for (int p = 0; p < PAGES; p++) {
        bool index = p == PAGES - 1 && strcmp(x->path, "/v1/index.json") == 0;
        if (index || strstr(x->path, hashes[p]) != NULL) {
            exchange_answer(x, 200, "", pages[p].data, pages[p].len);
            return;
        }
    }
    exchange_answer(x, 404, "", "", 0);
}

struct index_world {
    struct server *server;
    struct http_client *http;
    struct adapter_index *ix;
    char *url;
};

static int index_open(void **state)
{
    struct index_world *w = xcalloc(1, sizeof *w);
    log_set_level(LOG_ERROR);
    make_pages();
    w->server = server_start(registry, NULL);
    w->http = http_client_create();
    w->url = xasprintf("http://127.0.0.1:%u/", w->server->port);
    const char *urls[] = {w->url, w->url}; /* a mirror adds nothing */
    w->ix = adapter_index_create(&(struct adapter_index_options){
        .urls = urls, .n_urls = 2, .refresh_us = 60000000, .http = w->http});
    struct err err = {0};
    assert_false(adapter_index_is_fresh(w->ix));
    assert_ok(adapter_index_refresh(w->ix, 60000000, &err), err);
    assert_true(adapter_index_is_fresh(w->ix));
    *state = w;
    return 0;
}

static int index_close(void **state)
{
    struct index_world *w = *state;
    adapter_index_free(w->ix);
    http_client_free(w->http);
    server_stop(w->server);
    free(w->url);
    free(w);
    for (int p = 0; p < PAGES; p++)
        buf_release(&pages[p]);
    return 0;
}

static void a_name_means_its_first_owners_highest_version(void **state)
{
    struct index_world *w = *state;
    struct index_entry e;
    char hex[65], expected[65];
    assert_false(adapter_index_named(w->ix, "n5000", 0, &e));
    /* Version 2 is the stranger's, who came later. */
    assert_false(adapter_index_named(w->ix, "n7", 2, &e));
    assert_true(adapter_index_named(w->ix, "n7", 1, &e));
    assert_true(adapter_index_named(w->ix, "n7", 0, &e));
    snprintf(expected, sizeof expected, "%064x", 3 * NAMES + 1);
    assert_string_equal(hex_encode(hex, e.e.manifest.bytes, 32), expected);
}

static void count_name(void *context, const struct index_entry *e)
{
    bool *seen = context;
    int n = atoi(e->e.name + 1);
    assert_true(n >= 0 && n < NAMES && !seen[n]);
    seen[n] = true;
}

static void a_long_index_is_listed_once_a_name_and_quickly(void **state)
{
    struct index_world *w = *state;
    bool seen[NAMES] = {false};
    struct monotonic_us began = clock_monotonic_us();
    adapter_index_each(w->ix, count_name, seen);
    uint64_t us = clock_elapsed_us(began, clock_monotonic_us());
    for (int i = 0; i < NAMES; i++)
        assert_true(seen[i]);
    printf("note: %d entries listed in %llu us\n", 2 * PAGES * PAGE_ITEMS, (unsigned long long)us);
    assert_true(us < 2000000); /* comparing each with each takes many times that */
}

/* A manifest's content is its hash with the first byte 0xcc; those of odd number are for another
 * model, and the first answer about any is that it can't be had. */
struct looker {
    int n_looks;
    bool refuse;
};

static enum index_look look(void *context, const struct index_entry *e,
                            struct content_digest *content, struct adapter_id *id)
{
    struct looker *l = context;
    l->n_looks++;
    if (l->refuse)
        return INDEX_LATER;
    if (e->e.manifest.bytes[31] % 2 == 1)
        return INDEX_OTHER;
    memcpy(content->bytes, e->e.manifest.bytes, 32);
    content->bytes[0] = 0xcc;
    memcpy(id->bytes, e->e.manifest.bytes, 32);
    id->bytes[0] = 0x1d;
    return INDEX_KNOWN;
}

static void a_manifest_is_read_once_however_many_digests_are_asked_for(void **state)
{
    struct index_world *w = *state;
    struct looker l = {.refuse = true};
    struct index_entry e;
    struct err err = {0};
    uint8_t digest[32] = {0xcc}, id[32] = {0x1d}, unknown[32] = {0xff};
    int wanted = PAGES * PAGE_ITEMS - 999; /* the 500th from the end, of which all are adapters */
    wanted += wanted % 2;
    digest[30] = id[30] = (uint8_t)(wanted >> 8);
    digest[31] = id[31] = (uint8_t)wanted;
    assert_int_equal(adapter_index_find(w->ix, false, digest, look, &l, &e, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_int_equal(l.n_looks, INDEX_LOOK_AHEAD); /* and each is asked for again: */
    l = (struct looker){0};
    assert_ok(adapter_index_find(w->ix, false, digest, look, &l, &e, &err), err);
    assert_int_equal(e.e.manifest.bytes[31], digest[31]);
    int looks = l.n_looks;
    assert_true(looks > 900 && looks < 1100);
    assert_ok(adapter_index_find(w->ix, true, id, look, &l, &e, &err), err);
    assert_ok(adapter_index_find(w->ix, false, digest, look, &l, &e, &err), err);
    assert_int_equal(l.n_looks, looks);
    /* One nobody has: the rest of the index is read, a part a question, and never again. */
    for (int i = 0; i < 20; i++)
        assert_int_equal(adapter_index_find(w->ix, false, unknown, look, &l, &e, &err), -1);
    int n_manifests = PAGES * PAGE_ITEMS * 3 / 4;
    assert_int_equal(l.n_looks, n_manifests);
}

static void *refresh_now(void *ix)
{
    adapter_index_refresh(ix, 0, NULL);
    return NULL;
}

/* Somebody asks for a name that isn't known, so the registries are asked again; who is content with
 * the index that is there doesn't wait for that. */
static void an_index_that_is_young_enough_serves_while_a_registry_is_slow(void **state)
{
    struct index_world *w = *state;
    struct err err = {0};
    pthread_t thread;
    silent = true;
    assert_int_equal(pthread_create(&thread, NULL, refresh_now, w->ix), 0);
    while (n_kept_waiting == 0)
        usleep(1000);
    struct monotonic_us began = clock_monotonic_us();
    assert_ok(adapter_index_refresh(w->ix, 60000000, &err), err);
    if (clock_elapsed_us(began, clock_monotonic_us()) > 1000000)
        fail_msg("waited for a registry");
    silent = false;
    pthread_join(thread, NULL);
}

/* Each of two lists "law", of a creator of its own; the first one fails while it is silent. */
static void one_of_two(struct exchange *x)
{
    int number = *(const int *)x->server->context;
    char index[512];
    int n = snprintf(index, sizeof index,
                     "{\"items\":[{\"creator\":\"0x%040x\",\"kind\":\"adapter\","
                     "\"manifest\":\"%064x\",\"name\":\"law\",\"version\":%d}],"
                     "\"previous\":null,\"schema\":\"tributary.index/1\",\"updated\":1}",
                     (unsigned)number, (unsigned)number, number);
    exchange_answer(x, silent && number == 1 ? 503 : 200, "", index, (size_t)n);
}

static void a_registry_that_fails_leaves_its_names_to_nobody_else(void **state)
{
    (void)state;
    int numbers[] = {1, 2};
    struct server *servers[2];
    const char *urls[2];
    struct index_entry e;
    struct err err = {0};
    for (int i = 0; i < 2; i++) {
        servers[i] = server_start(one_of_two, &numbers[i]);
        urls[i] = xasprintf("http://127.0.0.1:%u", servers[i]->port);
    }
    log_set_level(LOG_ERROR);
    struct http_client *http = http_client_create();
    struct adapter_index *ix = adapter_index_create(&(struct adapter_index_options){
        .urls = urls, .n_urls = 2, .refresh_us = 60000000, .http = http});
    for (int round = 0; round < 4; round++) { /* it answers, fails twice, answers again */
        silent = round == 1 || round == 2;
        assert_ok(adapter_index_refresh(ix, 0, &err), err);
        bool found = adapter_index_named(ix, "law", 0, &e);
        if (!found || e.e.manifest.bytes[31] != 1)
            fail_msg("round %d: law means %s", round, found ? "the other's" : "nothing");
        assert_int_equal(adapter_index_n_adapters(ix), 2);
    }
    adapter_index_free(ix);
    http_client_free(http);
    for (int i = 0; i < 2; i++) {
        server_stop(servers[i]);
        free((char *)(uintptr_t)urls[i]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_name_means_its_first_owners_highest_version, index_open,
                                        index_close),
        cmocka_unit_test_setup_teardown(a_long_index_is_listed_once_a_name_and_quickly, index_open,
                                        index_close),
        cmocka_unit_test_setup_teardown(a_manifest_is_read_once_however_many_digests_are_asked_for,
                                        index_open, index_close),
        cmocka_unit_test_setup_teardown(
            an_index_that_is_young_enough_serves_while_a_registry_is_slow, index_open, index_close),
        cmocka_unit_test(a_registry_that_fails_leaves_its_names_to_nobody_else),
    };
    return cmocka_run_group_tests_name("adapter_index", tests, NULL, NULL);
}
