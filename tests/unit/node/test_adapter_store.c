/* The adapter store: the registries' index, and local adapters between disk and host memory.
 * (Fetching and refusing are tested end to end: tests/e2e/registry.test.mjs.) */
#include "tests/http_server.h"
#include "tests/support.h"

#include "attribution/attribution.h"
#include "engine/engine.h"
#include "node/adapter_index.h"
#include "node/adapter_store.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/http_client.h"
#include "node/base/sha256.h"
#include "wallet/wallet.h"

#include <sys/stat.h>
#include <utime.h>

enum { PAGES = 5, PAGE_ITEMS = 4000, NAMES = 5000 };

/* ---- the index ---------------------------------------------------------------------------------
 */

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

/* ---- a store over a real engine ----------------------------------------------------------------
 */

#define MODEL   "tests/fixtures/models/stories260K"
#define ADAPTER "tests/fixtures/adapters/stories260K-law"
#define OTHER   "tests/fixtures/adapters/stories260K-medicine"

struct world {
    char *dir;
    struct wallet *wallet;
    struct ledger *ledger;
    struct engine *engine;
    struct adapter_store *store;
    struct service_resolver r;
    size_t n_bytes; /* of ADAPTER and all made from it */
    int n_made;
    int n_submitted;
    _Atomic int n_finished;
};

static void on_events(void *context, const struct engine_event *events, size_t n)
{
    struct world *w = context;
    for (size_t i = 0; i < n; i++)
        w->n_finished += events[i].kind == ENGINE_EVENT_FINISHED;
}

/* host_adapters: how many of ADAPTER's size host memory holds. */
static struct world *world_open(int host_adapters, const char *registry_url, char *dir)
{
    struct world *w = xcalloc(1, sizeof *w);
    struct err err = {0};
    struct engine_adapter facts;
    static const struct wallet_memory_key keys[] = {{.name = "signer", .key = {[31] = 1}},
                                                    {.name = "house", .key = {[31] = 2}}};
    log_set_level(LOG_ERROR);
    w->dir = dir != NULL ? dir : temp_dir_create();
    w->wallet = wallet_open_memory(keys, 2, &err);
    w->ledger = ledger_open(&(struct ledger_options){.data_dir = w->dir, .wallet = w->wallet},
                            &err);
    if (w->wallet == NULL || w->ledger == NULL)
        fail_msg("%s", err.message);
    assert_ok(engine_check_adapter(MODEL, ADAPTER, NULL, NULL, &facts, &err), err);
    w->n_bytes = facts.n_bytes;
    assert_ok(engine_open(&w->engine,
                          &(struct engine_options){
                              .model_dir = MODEL,
                              .backend = "ref",
                              .max_seqs = 4,
                              .max_rows = 16,
                              .adapter_host_bytes = w->n_bytes * (size_t)host_adapters + 20000,
                              .on_events = on_events,
                              .context = w},
                          &err),
              err);
    w->store = adapter_store_create(&(struct adapter_store_options){
        .data_dir = w->dir,
        .base_name = "base",
        .registries = &registry_url,
        .n_registries = registry_url != NULL,
        .refresh_ms = 60000,
        .cache_bytes = 1 << 30,
    });
    assert_ok(adapter_store_start(w->store, w->engine, w->ledger, &err), err);
    w->r = adapter_store_resolver(w->store);
    return w;
}

/* keep: the data directory stays, and is returned. */
static char *world_close(struct world *w, bool keep)
{
    char *dir = w->dir;
    adapter_store_stop(w->store);
    engine_close(w->engine);
    adapter_store_free(w->store);
    ledger_close(w->ledger);
    wallet_close(w->wallet);
    free(w);
    if (keep)
        return dir;
    temp_dir_remove(dir);
    return NULL;
}

static void write_file(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(bytes, 1, n, f) != n || fclose(f) != 0)
        fail_msg("cannot write %s", path);
}

/* Files of `from` into dir; with a number, one bit of the tensors' last bytes says which. */
static void write_adapter(const char *dir, const char *from, int number)
{
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors"};
    struct err err = {0};
    assert_ok(dir_ensure(dir, &err), err);
    for (int i = 0; i < 2; i++) {
        struct buf b = BUF_INIT;
        char *in = xasprintf("%s/%s", from, names[i]), *out = xasprintf("%s/%s", dir, names[i]);
        assert_ok(file_read(in, 1 << 24, &b, &err), err);
        for (int k = 0; i == 1 && k < 16; k++) /* low bits of sixteen float or half numbers */
            b.data[b.len - 64 + (size_t)k * 4] =
                (uint8_t)(b.data[b.len - 64 + (size_t)k * 4] & 0xfe) | (number >> k & 1);
        write_file(out, b.data, b.len);
        buf_release(&b);
        free(in);
        free(out);
    }
}

/* Makes n adapters, all different, named a0 and so on, and adds them. */
static void add_adapters(struct world *w, int n)
{
    struct err err = {0};
    for (; n > 0; n--, w->n_made++) {
        char name[16];
        snprintf(name, sizeof name, "a%d", w->n_made);
        char *dir = xasprintf("%s/made/%s", w->dir, name);
        write_adapter(dir, ADAPTER, w->n_made + 1);
        assert_ok(adapter_store_add(w->store, name, dir, false, NULL, &err), err);
        free(dir);
    }
}

struct result {
    pthread_mutex_t lock;
    pthread_cond_t came;
    bool done;
    struct resolved out;
    struct err err;
    int rc;
};

static void on_result(void *user, const struct resolved *out, const struct err *err)
{
    struct result *r = user;
    pthread_mutex_lock(&r->lock);
    assert_false(r->done);
    r->done = true;
    r->rc = out != NULL ? 0 : -1;
    if (out != NULL)
        r->out = *out;
    else
        r->err = *err;
    pthread_cond_signal(&r->came);
    pthread_mutex_unlock(&r->lock);
}

static void ask(struct world *w, struct result *r, const char *model)
{
    *r = (struct result){.lock = PTHREAD_MUTEX_INITIALIZER, .came = PTHREAD_COND_INITIALIZER};
    w->r.resolve(w->r.context, model, on_result, r);
}

static void await(struct result *r)
{
    pthread_mutex_lock(&r->lock);
    while (!r->done)
        pthread_cond_wait(&r->came, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

static bool has_come(struct result *r)
{
    pthread_mutex_lock(&r->lock);
    bool done = r->done;
    pthread_mutex_unlock(&r->lock);
    return done;
}

static struct resolved get(struct world *w, const char *model)
{
    struct result r;
    ask(w, &r, model);
    await(&r);
    if (r.rc != 0)
        fail_msg("%s: %s", model, r.err.message);
    return r.out;
}

static void use(struct world *w, const char *model)
{
    struct resolved got = get(w, model);
    w->r.release(w->r.context, &got);
}

static const char *tier(struct world *w, const char *model)
{
    static const char *const names[N_TIERS] = {"device", "host", "disk", "registry"};
    struct err err = {0};
    json_t *o = adapter_store_show(w->store, model, &err);
    if (o == NULL)
        fail_msg("%s: %s", model, err.message);
    const char *t = json_string_value(json_object_get(o, "tier"));
    for (int i = 0; i < N_TIERS; i++) {
        if (strcmp(t, names[i]) == 0) {
            json_decref(o);
            return names[i];
        }
    }
    fail_msg("tier %s", t);
    return NULL;
}

static struct adapter_store_stats stats(struct world *w)
{
    struct adapter_store_stats s;
    adapter_store_stats(w->store, &s);
    assert_true(s.bytes[TIER_HOST] <= s.host_bytes_total);
    return s;
}

/* A submission needs the adapter loaded: the engine's own word for it. */
static bool engine_has(struct world *w, struct content_digest content)
{
    int32_t prompt[] = {1, 2, 3};
    struct engine_request request = {.prompt = prompt,
                                     .n_prompt = 3,
                                     .max_tokens = 1,
                                     .n_adapters = 1,
                                     .adapters = {{.content = content, .weight = 1}},
                                     .sampling = {.n_top_logprobs = -1}};
    if (engine_submit(w->engine, &request, NULL, NULL) != 0)
        return false;
    w->n_submitted++;
    while (w->n_finished < w->n_submitted)
        usleep(1000);
    return true;
}

/* ---- host memory -------------------------------------------------------------------------------
 */

static void more_adapters_than_host_memory_holds_are_all_served(void **state)
{
    (void)state;
    struct world *w = world_open(4, NULL, NULL);
    add_adapters(w, 12);
    struct adapter_store_stats s = stats(w);
    assert_int_equal(s.n_adapters[TIER_HOST], 4); /* the first ones, while there was room */
    assert_int_equal(s.n_adapters[TIER_DISK], 12);
    assert_int_equal(s.evictions[TIER_HOST], 0);
    for (int turn = 0; turn < 3; turn++) {
        for (int i = 0; i < 12; i++) {
            char name[16];
            snprintf(name, sizeof name, "a%d", i);
            struct resolved got = get(w, name);
            assert_string_equal(got.name, name);
            assert_true(engine_has(w, got.content));
            w->r.release(w->r.context, &got);
        }
    }
    s = stats(w);
    assert_int_equal(s.n_adapters[TIER_HOST], 4);
    assert_int_equal(s.hits[TIER_HOST] + s.hits[TIER_DISK] + s.hits[TIER_DEVICE], 36);
    assert_int_equal(s.evictions[TIER_HOST], s.n_loads - 4);
    assert_int_equal(s.n_failed, 0);
    assert_int_equal(s.n_in_use, 0);
    world_close(w, false);
}

static void what_is_asked_for_often_stays_and_what_was_leaves_in_the_end(void **state)
{
    (void)state;
    struct world *w = world_open(4, NULL, NULL);
    add_adapters(w, 40);
    for (int i = 0; i < 20; i++)
        use(w, "a0");
    for (int i = 1; i < 12; i++) { /* a scan of strangers, each once */
        char name[16];
        snprintf(name, sizeof name, "a%d", i);
        use(w, name);
    }
    assert_string_equal(tier(w, "a0"), "host");
    /* It isn't used any more; the cache's age climbs by about what one use is worth with each
     * three that leave, so that twenty uses are outweighed by some hundreds. */
    int turns = 0;
    for (; turns < 1000 && strcmp(tier(w, "a0"), "host") == 0; turns++) {
        char name[16];
        snprintf(name, sizeof name, "a%d", 12 + turns % 28);
        use(w, name);
    }
    assert_true(turns < 1000);
    world_close(w, false);
}

static void a_pinned_adapter_never_leaves(void **state)
{
    (void)state;
    struct world *w = world_open(2, NULL, NULL);
    struct err err = {0};
    add_adapters(w, 8);
    assert_ok(adapter_store_pin(w->store, "a5", true, &err), err);
    use(w, "a5");
    for (int turn = 0; turn < 30; turn++) {
        char name[16];
        snprintf(name, sizeof name, "a%d", turn % 5);
        use(w, name);
    }
    assert_string_not_equal(tier(w, "a5"), "disk"); /* there, or on the device */
    assert_int_equal(stats(w).n_pinned, 1);
    assert_null(adapter_store_unload(w->store, "a5", &err));
    assert_int_equal(err.code, ERR_CONFLICT);
    assert_string_equal(err.message, "adapter a5 is pinned");
    assert_ok(adapter_store_pin(w->store, "a5", false, &err), err);
    for (int turn = 0; turn < 30; turn++) {
        char name[16];
        snprintf(name, sizeof name, "a%d", turn % 5);
        use(w, name);
    }
    assert_string_equal(tier(w, "a5"), "disk");
    assert_int_equal(stats(w).n_pinned, 0);
    assert_int_equal(adapter_store_pin(w->store, "nobody", true, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    world_close(w, false);
}

static void many_requests_for_one_absent_adapter_share_one_load(void **state)
{
    (void)state;
    enum { N = 64 };
    struct world *w = world_open(2, NULL, NULL);
    add_adapters(w, 6);
    uint64_t before = stats(w).n_loads;
    static struct result results[N];
    for (int i = 0; i < N; i++)
        ask(w, &results[i], "a5");
    for (int i = 0; i < N; i++)
        await(&results[i]);
    struct adapter_store_stats s = stats(w);
    assert_int_equal(s.n_loads, before + 1);
    assert_int_equal(s.n_in_use, 1);
    for (int i = 0; i < N; i++) {
        assert_int_equal(results[i].rc, 0);
        w->r.release(w->r.context, &results[i].out);
    }
    assert_int_equal(stats(w).n_in_use, 0);
    world_close(w, false);
}

static void when_all_is_in_use_a_load_waits_for_room_and_does_not_fail(void **state)
{
    (void)state;
    struct world *w = world_open(2, NULL, NULL);
    add_adapters(w, 4);
    struct resolved first = get(w, "a0"), second = get(w, "a1");
    struct result third;
    ask(w, &third, "a2");
    usleep(100000);
    assert_false(has_come(&third));
    use(w, "a0"); /* what is there is served meanwhile */
    struct err err = {0};
    assert_null(adapter_store_unload(w->store, "a1", &err));
    assert_string_equal(err.message, "adapter a1 is in use (requests: 1)");
    assert_false(has_come(&third));
    w->r.release(w->r.context, &second);
    await(&third);
    assert_int_equal(third.rc, 0);
    assert_string_equal(tier(w, "a1"), "disk");
    w->r.release(w->r.context, &third.out);
    w->r.release(w->r.context, &first);
    world_close(w, false);
}

static void what_waits_is_told_when_the_node_stops(void **state)
{
    (void)state;
    struct world *w = world_open(1, NULL, NULL);
    add_adapters(w, 3);
    struct resolved held = get(w, "a0");
    struct result a, b;
    ask(w, &a, "a1");
    ask(w, &b, "a2");
    adapter_store_stop(w->store);
    await(&a);
    await(&b);
    assert_int_equal(a.err.code, ERR_CANCELLED);
    assert_int_equal(b.err.code, ERR_CANCELLED);
    w->r.release(w->r.context, &held);
    world_close(w, false);
}

static void unloading_frees_host_memory_and_says_how_much(void **state)
{
    (void)state;
    struct world *w = world_open(4, NULL, NULL);
    struct err err = {0};
    add_adapters(w, 2);
    use(w, "a1");
    struct engine_stats e;
    engine_stats(w->engine, &e);
    size_t before = e.adapter_host_bytes_used;
    json_t *o = adapter_store_unload(w->store, "a1", &err);
    const json_t *host = json_object_get(o, "host_bytes");
    assert_int_equal(json_integer_value(json_object_get(host, "before")), before);
    assert_int_equal(json_integer_value(json_object_get(host, "after")), before - w->n_bytes);
    json_decref(o);
    engine_stats(w->engine, &e);
    assert_int_equal(e.adapter_host_bytes_used, before - w->n_bytes);
    assert_string_equal(tier(w, "a1"), "disk");
    o = adapter_store_unload(w->store, "a1", &err); /* again: nothing to do is a success */
    assert_non_null(o);
    json_decref(o);
    use(w, "a1");
    assert_null(adapter_store_unload(w->store, "nobody", &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    world_close(w, false);
}

/* ---- local files -------------------------------------------------------------------------------
 */

static void edited_files_never_serve_under_their_old_digest(void **state)
{
    (void)state;
    struct world *w = world_open(1, NULL, NULL);
    struct err err = {0};
    add_adapters(w, 2);
    struct resolved before = get(w, "a0");
    w->r.release(w->r.context, &before);
    use(w, "a1"); /* a0 leaves */
    char *dir = xasprintf("%s/made/a0", w->dir);
    write_adapter(dir, OTHER, 0);
    struct result r;
    ask(w, &r, "a0");
    await(&r);
    assert_int_equal(r.rc, -1);
    assert_int_equal(r.err.code, ERR_CONFLICT);
    if (strstr(r.err.message, "adapter a0") == NULL || strstr(r.err.message, "changed") == NULL)
        fail_msg("%s", r.err.message);
    assert_false(engine_has(w, before.content));
    struct engine_adapter facts;
    assert_ok(adapter_store_add(w->store, "a0", dir, true, &facts, &err), err);
    assert_false(DIGEST_EQ(facts.content, before.content));
    struct resolved after = get(w, "a0");
    assert_true(DIGEST_EQ(after.content, facts.content));
    w->r.release(w->r.context, &after);
    free(dir);
    world_close(w, false);
}

static void a_name_pointed_elsewhere_means_the_new_content_from_then_on(void **state)
{
    (void)state;
    struct world *w = world_open(4, NULL, NULL);
    struct err err = {0};
    char hex[65];
    add_adapters(w, 1);
    struct resolved old = get(w, "a0");
    assert_int_equal(adapter_store_add(w->store, "a0", OTHER, false, NULL, &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    assert_ok(adapter_store_add(w->store, "a0", OTHER, true, NULL, &err), err);
    struct resolved new = get(w, "a0");
    assert_false(DIGEST_EQ(old.content, new.content));
    assert_true(engine_has(w, old.content)); /* what is under way finishes with it */
    w->r.release(w->r.context, &old);
    assert_false(engine_has(w, old.content));
    assert_null(adapter_store_show(w->store, hex_encode(hex, old.content.bytes, 32), &err));
    w->r.release(w->r.context, &new);
    assert_ok(adapter_store_remove(w->store, "a0", &err), err);
    assert_false(engine_has(w, new.content));
    struct result r;
    ask(w, &r, "a0");
    await(&r);
    assert_int_equal(r.err.code, ERR_NOT_FOUND);
    assert_int_equal(adapter_store_remove(w->store, "a0", &err), -1);
    world_close(w, false);
}

static void two_names_of_one_content_share_its_memory(void **state)
{
    (void)state;
    struct world *w = world_open(3, NULL, NULL);
    struct err err = {0};
    char hex[65];
    assert_ok(adapter_store_add(w->store, "one", ADAPTER, false, NULL, &err), err);
    assert_ok(adapter_store_add(w->store, "two", ADAPTER, false, NULL, &err), err);
    assert_int_equal(stats(w).bytes[TIER_HOST], w->n_bytes);
    struct resolved one = get(w, "one"), two = get(w, "two");
    assert_string_equal(two.name, "two");
    assert_true(DIGEST_EQ(one.content, two.content));
    struct resolved by_digest = get(w, hex_encode(hex, one.content.bytes, 32));
    assert_string_equal(by_digest.name, "one");
    w->r.release(w->r.context, &by_digest);
    assert_ok(adapter_store_remove(w->store, "one", &err), err);
    w->r.release(w->r.context, &one);
    assert_true(engine_has(w, two.content));
    w->r.release(w->r.context, &two);
    world_close(w, false);
}

static void a_name_that_could_mean_something_else_is_refused(void **state)
{
    (void)state;
    struct world *w = world_open(3, NULL, NULL);
    static const struct {
        const char *name;
        enum err_code code;
    } cases[] = {
        {"", ERR_INVALID},
        {"base", ERR_CONFLICT},
        {"a b", ERR_INVALID},
        {"a\nb", ERR_INVALID},
        {"0x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", ERR_INVALID},
        {"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff", ERR_INVALID},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err err = {0};
        assert_int_equal(adapter_store_add(w->store, cases[i].name, ADAPTER, true, NULL, &err), -1);
        assert_int_equal(err.code, cases[i].code);
    }
    world_close(w, false);
}

static bool digest_known(struct world *w, const char *model)
{
    struct err err = {0};
    json_t *o = adapter_store_show(w->store, model, &err);
    bool known = json_is_string(json_object_get(o, "content_digest"));
    json_decref(o);
    return known;
}

static void a_directory_of_adapters_is_there_at_once_and_remembered(void **state)
{
    (void)state;
    enum { N = 300 };
    struct world *w = world_open(8, NULL, NULL);
    struct err err = {0};
    size_t n;
    char *root = temp_dir_create(), *dir, name[16];
    for (int i = 0; i < N; i++) {
        dir = xasprintf("%s/b%d", root, i);
        write_adapter(dir, ADAPTER, i + 1);
        free(dir);
    }
    dir = xasprintf("%s/empty", root);
    assert_ok(dir_ensure(dir, &err), err);
    free(dir);
    assert_ok(adapter_store_add(w->store, "b7", OTHER, false, NULL, &err), err);
    struct monotonic_us began = clock_monotonic_us();
    assert_ok(adapter_store_add_all(w->store, root, &n, &err), err);
    uint64_t us = clock_elapsed_us(began, clock_monotonic_us());
    printf("note: %d adapters found in %llu us\n", N, (unsigned long long)us);
    assert_int_equal(n, N - 1); /* b7 was given by name, empty is none */
    use(w, "b200");             /* whether anybody has looked at it or not */
    for (int i = 0; i < 2000 && !digest_known(w, "b99"); i++)
        usleep(10000);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "b%d", i);
        for (int k = 0; k < 2000 && !digest_known(w, name); k++)
            usleep(10000);
        assert_true(digest_known(w, name));
    }
    json_t *b8 = adapter_store_show(w->store, "b8", &err);
    char *data = world_close(w, true);

    /* The next run knows the digests without reading; what was edited since it doesn't. */
    dir = xasprintf("%s/b9", root);
    write_adapter(dir, OTHER, 0);
    free(dir);
    w = world_open(8, NULL, data);
    assert_ok(adapter_store_add_all(w->store, root, &n, &err), err);
    json_t *again = adapter_store_show(w->store, "b8", &err);
    assert_string_equal(json_string_value(json_object_get(again, "content_digest")),
                        json_string_value(json_object_get(b8, "content_digest")));
    struct resolved by_digest = get(w, json_string_value(json_object_get(b8, "content_digest")));
    assert_string_equal(by_digest.name, "b8");
    w->r.release(w->r.context, &by_digest);
    struct resolved b9 = get(w, "b9");
    struct content_digest other;
    dir = xasprintf("%s/b9", root);
    assert_ok(adapter_content_digest(dir, &other, &err), err);
    free(dir);
    assert_true(DIGEST_EQ(b9.content, other));
    w->r.release(w->r.context, &b9);
    json_decref(again);
    json_decref(b8);
    world_close(w, false);
    temp_dir_remove(root);
}

static void a_list_comes_in_pages_and_can_be_filtered(void **state)
{
    (void)state;
    struct world *w = world_open(4, NULL, NULL);
    struct err err = {0};
    add_adapters(w, 25);
    assert_ok(adapter_store_pin(w->store, "a3", true, &err), err);
    struct adapter_filter f = {.limit = 10};
    char cursor[64];
    size_t seen = 0, pages_read = 0;
    char last[64] = "";
    for (;;) {
        json_t *page = adapter_store_list(w->store, &f, &err), *one;
        size_t i;
        json_array_foreach(json_object_get(page, "items"), i, one)
        {
            const char *id = json_string_value(json_object_get(one, "id"));
            assert_true(strcmp(id, last) > 0);
            snprintf(last, sizeof last, "%s", id);
            seen++;
        }
        pages_read++;
        const char *next = json_string_value(json_object_get(page, "next"));
        snprintf(cursor, sizeof cursor, "%s", next != NULL ? next : "");
        json_decref(page);
        if (cursor[0] == '\0')
            break;
        f.cursor = cursor;
    }
    assert_int_equal(seen, 25);
    assert_int_equal(pages_read, 3);
    static const struct {
        struct adapter_filter f;
        size_t n;
    } cases[] = {
        {{.tier = "host"}, 4},  {{.tier = "disk"}, 25}, {{.pinned = true}, 1},
        {{.prefix = "a1"}, 11}, {{.prefix = "b"}, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *page = adapter_store_list(w->store, &cases[i].f, &err);
        assert_int_equal(json_array_size(json_object_get(page, "items")), cases[i].n);
        assert_true(json_is_null(json_object_get(page, "next")));
        json_decref(page);
    }
    assert_null(adapter_store_list(w->store, &(struct adapter_filter){.tier = "moon"}, &err));
    assert_int_equal(err.code, ERR_INVALID);
    world_close(w, false);
}

/* ---- all at once -------------------------------------------------------------------------------
 */

enum { STRESS_NAMES = 6, STRESS_MS = 1500 };

struct stress {
    struct world *w;
    _Atomic bool over;
    _Atomic int n_served, n_refused;
};

static uint32_t draw(uint32_t *state)
{
    *state = *state * 1664525 + 1013904223;
    return *state >> 12;
}

/* Asks, and looks while it holds what it got: that stays loaded. */
static void *client(void *context)
{
    struct stress *s = context;
    uint32_t random = (uint32_t)(uintptr_t)pthread_self();
    while (!s->over) {
        struct result r;
        char name[16];
        snprintf(name, sizeof name, "a%u", draw(&random) % STRESS_NAMES);
        ask(s->w, &r, name);
        await(&r);
        if (r.rc != 0) {
            if (r.err.code != ERR_NOT_FOUND)
                fail_msg("%s: %s", name, r.err.message);
            s->n_refused++; /* it was just removed */
            continue;
        }
        struct engine_residency at;
        if (engine_adapter_residency(s->w->engine, &r.out.content, &at, NULL) != 0)
            fail_msg("%s is held and not loaded", name);
        s->w->r.release(s->w->r.context, &r.out);
        s->n_served++;
    }
    return NULL;
}

static void *operate(void *context)
{
    struct stress *s = context;
    struct adapter_store *store = s->w->store;
    uint32_t random = 7;
    while (!s->over) {
        char name[16];
        uint32_t what = draw(&random) % 8;
        unsigned i = draw(&random) % STRESS_NAMES;
        snprintf(name, sizeof name, "a%u", i);
        char *dir = xasprintf("%s/made/a%u", s->w->dir, draw(&random) % (STRESS_NAMES + 2));
        if (what == 0)
            adapter_store_remove(store, name, NULL);
        else if (what <= 2)
            adapter_store_add(store, name, dir, true, NULL, NULL); /* perhaps another's content */
        else if (what == 3)
            adapter_store_pin(store, name, draw(&random) % 3 == 0, NULL);
        else if (what == 4)
            json_decref(adapter_store_list(store, &(struct adapter_filter){.limit = 3}, NULL));
        else
            json_decref(adapter_store_unload(store, name, NULL));
        free(dir);
    }
    for (unsigned i = 0; i < STRESS_NAMES; i++) { /* pins, too, come to an end */
        char name[16];
        snprintf(name, sizeof name, "a%u", i);
        adapter_store_pin(store, name, false, NULL);
    }
    return NULL;
}

static void names_come_and_go_under_load_and_what_is_held_stays(void **state)
{
    (void)state;
    struct world *w = world_open(4, NULL, NULL);
    add_adapters(w, STRESS_NAMES + 2);
    struct stress s = {.w = w};
    pthread_t threads[5];
    for (int i = 0; i < 5; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, i == 0 ? operate : client, &s), 0);
    usleep(STRESS_MS * 1000);
    s.over = true;
    for (int i = 0; i < 5; i++)
        pthread_join(threads[i], NULL);
    printf("note: %d served, %d refused while names came and went\n", s.n_served, s.n_refused);
    assert_true(s.n_served > 0);
    /* Everything comes down to nothing again. */
    for (int i = 0; i < STRESS_NAMES + 2; i++) {
        char name[16];
        snprintf(name, sizeof name, "a%d", i);
        adapter_store_remove(w->store, name, NULL);
    }
    struct adapter_store_stats end = stats(w);
    assert_int_equal(end.n_in_use, 0);
    assert_int_equal(end.n_pinned, 0);
    assert_int_equal(end.n_adapters[TIER_HOST], 0);
    assert_int_equal(end.n_adapters[TIER_DISK], 0);
    for (int i = 0; i < 500 && stats(w).bytes[TIER_HOST] + stats(w).bytes[TIER_DEVICE] > 0; i++)
        usleep(10000); /* until the loaders have told the engine */
    assert_int_equal(stats(w).bytes[TIER_HOST], 0);
    assert_int_equal(stats(w).bytes[TIER_DEVICE], 0);
    world_close(w, false);
}

/* ---- slow registries ---------------------------------------------------------------------------
 */

static void silence(struct exchange *x)
{
    exchange_sleep(x, 60000);
    x->close = true;
}

static void a_silent_registry_does_not_hold_up_what_is_on_disk(void **state)
{
    (void)state;
    enum { N = 20 };
    struct server *server = server_start(silence, NULL);
    char *url = xasprintf("http://127.0.0.1:%u", server->port);
    struct world *w = world_open(2, url, NULL);
    add_adapters(w, 4);
    static struct result waiting[N];
    for (int i = 0; i < N; i++) {
        char name[16];
        snprintf(name, sizeof name, "far%d", i % 15);
        ask(w, &waiting[i], name);
    }
    assert_int_equal(stats(w).n_waiting, N);
    struct monotonic_us began = clock_monotonic_us();
    use(w, "a3");
    use(w, "a2");
    uint64_t us = clock_elapsed_us(began, clock_monotonic_us());
    if (us > 5000000)
        fail_msg("two loads from disk took %llu us", (unsigned long long)us);
    for (int i = 0; i < N; i++)
        assert_false(has_come(&waiting[i]));
    adapter_store_stop(w->store); /* ends them all, at once */
    for (int i = 0; i < N; i++) {
        await(&waiting[i]);
        assert_int_equal(waiting[i].rc, -1);
    }
    world_close(w, false);
    server_stop(server);
    free(url);
}

static void requests_beyond_the_bound_are_told_to_come_back(void **state)
{
    (void)state;
    struct server *server = server_start(silence, NULL);
    char *url = xasprintf("http://127.0.0.1:%u", server->port);
    struct world *w = world_open(2, url, NULL);
    static struct result waiting[256];
    for (int i = 0; i < 256; i++)
        ask(w, &waiting[i], "far");
    struct result one_more;
    ask(w, &one_more, "far");
    await(&one_more);
    assert_int_equal(one_more.err.code, ERR_BUSY);
    adapter_store_stop(w->store);
    for (int i = 0; i < 256; i++)
        await(&waiting[i]);
    world_close(w, false);
    server_stop(server);
    free(url);
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
        cmocka_unit_test(more_adapters_than_host_memory_holds_are_all_served),
        cmocka_unit_test(what_is_asked_for_often_stays_and_what_was_leaves_in_the_end),
        cmocka_unit_test(a_pinned_adapter_never_leaves),
        cmocka_unit_test(many_requests_for_one_absent_adapter_share_one_load),
        cmocka_unit_test(when_all_is_in_use_a_load_waits_for_room_and_does_not_fail),
        cmocka_unit_test(what_waits_is_told_when_the_node_stops),
        cmocka_unit_test(unloading_frees_host_memory_and_says_how_much),
        cmocka_unit_test(edited_files_never_serve_under_their_old_digest),
        cmocka_unit_test(a_name_pointed_elsewhere_means_the_new_content_from_then_on),
        cmocka_unit_test(two_names_of_one_content_share_its_memory),
        cmocka_unit_test(a_name_that_could_mean_something_else_is_refused),
        cmocka_unit_test(a_directory_of_adapters_is_there_at_once_and_remembered),
        cmocka_unit_test(a_list_comes_in_pages_and_can_be_filtered),
        cmocka_unit_test(names_come_and_go_under_load_and_what_is_held_stays),
        cmocka_unit_test(a_silent_registry_does_not_hold_up_what_is_on_disk),
        cmocka_unit_test(requests_beyond_the_bound_are_told_to_come_back),
    };
    return cmocka_run_group_tests_name("adapter_store", tests, NULL, NULL);
}
