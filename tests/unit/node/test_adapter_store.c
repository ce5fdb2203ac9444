/* The adapter store's index: which adapter a name means, and the list of names, for a registry with
 * many entries. (Fetching and refusing are tested end to end: tests/e2e/registry.test.mjs.) */
#include "tests/http_server.h"
#include "tests/support.h"

#include "node/adapter_store.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/sha256.h"

enum { PAGES = 5, PAGE_ITEMS = 4000, NAMES = 5000 };

static struct buf pages[PAGES]; /* the last is the newest, which is the index itself */
static char hashes[PAGES][65];

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
    for (int p = 0; p < PAGES; p++) {
        bool index = p == PAGES - 1 && strcmp(x->path, "/v1/index.json") == 0;
        if (index || strstr(x->path, hashes[p]) != NULL) {
            exchange_answer(x, 200, "", pages[p].data, pages[p].len);
            return;
        }
    }
    exchange_answer(x, 404, "", "", 0);
}

static void a_long_index_is_listed_once_a_name_and_quickly(void **state)
{
    (void)state;
    log_set_level(LOG_ERROR);
    make_pages();
    struct server *server = server_start(registry, NULL);
    char *url = xasprintf("http://127.0.0.1:%u", server->port), *dir = temp_dir_create();
    const char *urls[] = {url, url}; /* a mirror adds nothing */
    struct adapter_store *s = adapter_store_create(&(struct adapter_store_options){
        .data_dir = dir, .registries = urls, .n_registries = 2, .refresh_ms = 60000});
    struct service_resolver r = adapter_store_resolver(s);
    struct resolved out;
    struct err err = {0};
    assert_int_equal(r.resolve(r.context, "n5000", &out, &err), -1); /* reads the index */
    assert_string_equal(err.message, "there is no model \"n5000\"");
    assert_int_equal(err.code, ERR_NOT_FOUND);
    /* Version 2 is the stranger's, who came later. */
    assert_int_equal(r.resolve(r.context, "n7@2", &out, &err), -1);
    assert_string_equal(err.message, "there is no model \"n7@2\"");
    /* The newest of the owner's is what the name means: its manifest is asked for, and isn't there.
     */
    assert_int_equal(r.resolve(r.context, "n7", &out, &err), -1);
    char manifest[65];
    snprintf(manifest, sizeof manifest, "%064x", 3 * NAMES + 1);
    if (strstr(err.message, manifest) == NULL)
        fail_msg("n7 should be manifest %s: %s", manifest, err.message);

    json_t *models = json_array(), *m;
    struct monotonic_us began = clock_monotonic_us();
    r.list(r.context, models);
    uint64_t us = clock_elapsed_us(began, clock_monotonic_us());
    assert_int_equal(json_array_size(models), NAMES);
    bool seen[NAMES] = {false};
    size_t i;
    json_array_foreach(models, i, m)
    {
        int n = atoi(json_string_value(json_object_get(m, "id")) + 1);
        assert_true(n >= 0 && n < NAMES && !seen[n]);
        seen[n] = true;
    }
    printf("note: %d entries listed in %llu us\n", 2 * PAGES * PAGE_ITEMS, (unsigned long long)us);
    assert_true(us < 2000000); /* comparing each with each takes many times that */
    json_decref(models);
    adapter_store_free(s);
    server_stop(server);
    temp_dir_remove(dir);
    free(url);
    for (int p = 0; p < PAGES; p++)
        buf_release(&pages[p]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_long_index_is_listed_once_a_name_and_quickly),
    };
    return cmocka_run_group_tests_name("adapter_store", tests, NULL, NULL);
}
