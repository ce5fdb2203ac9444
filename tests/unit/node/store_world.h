/* store_world: an adapter store over a real engine and ledger, and adapters made for it; what the
 * store's tests share. A test opens a world, asks for names (ask, await; get waits) and closes it;
 * a resolved name is released by the test. */
#ifndef TRIBUTARY_TESTS_UNIT_NODE_STORE_WORLD_H
#define TRIBUTARY_TESTS_UNIT_NODE_STORE_WORLD_H

#include "attribution/attribution.h"
#include "engine/engine.h"
#include "node/adapter_store.h"
#include "node/base/err.h"
#include "node/base/log.h"
#include "tests/support.h"
#include "wallet/wallet.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

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

static inline void on_events(void *context, const struct engine_event *events, size_t n)
{
    struct world *w = context;
    for (size_t i = 0; i < n; i++)
        w->n_finished += events[i].kind == ENGINE_EVENT_FINISHED;
}

/* How many of ADAPTER's size the device holds in worlds opened from now on; 0: plenty. */
static size_t world_device_adapters;

/* host_adapters: how many of ADAPTER's size host memory holds. */
static inline struct world *world_open(int host_adapters, const char *registry_url, char *dir)
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
                              .adapter_bytes = w->n_bytes * world_device_adapters,
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
static inline char *world_close(struct world *w, bool keep)
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

static inline void write_file(const char *path, const void *bytes, size_t n)
{
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(bytes, 1, n, f) != n || fclose(f) != 0)
        fail_msg("cannot write %s", path);
}

/* Files of `from` into dir; with a number, one bit of the tensors' last bytes says which. */
static inline void write_adapter(const char *dir, const char *from, int number)
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

/* An adapter over the sites of `from`, `times` as wide, of zeros but for its number. */
static inline void write_wide_adapter(const char *dir, const char *from, int times, uint8_t number)
{
    struct err err = {0};
    struct buf in = BUF_INIT, out = BUF_INIT;
    uint64_t n_header;
    char *path = xasprintf("%s/adapter_model.safetensors", from);
    assert_ok(file_read(path, 1 << 24, &in, &err), err);
    free(path);
    memcpy(&n_header, in.data, sizeof n_header);
    json_t *header = json_loadb((const char *)in.data + 8, n_header, 0, NULL), *tensor;
    size_t n_bytes = (in.len - 8 - n_header) * (size_t)times;
    const char *name;
    json_object_foreach(header, name, tensor)
    {
        json_t *shape = json_object_get(tensor, "shape");
        json_t *offsets = json_object_get(tensor, "data_offsets");
        size_t rank_at = strstr(name, "lora_A") != NULL ? 0 : 1;
        if (shape == NULL)
            continue;
        json_array_set_new(
            shape, rank_at,
            json_integer(times * json_integer_value(json_array_get(shape, rank_at))));
        for (size_t i = 0; i < 2; i++)
            json_array_set_new(
                offsets, i, json_integer(times * json_integer_value(json_array_get(offsets, i))));
    }
    char *text = json_dumps(header, JSON_COMPACT);
    n_header = strlen(text);
    buf_append(&out, &n_header, sizeof n_header);
    buf_append_str(&out, text);
    for (size_t at = out.len; out.len < at + n_bytes;)
        buf_append(&out, (const char[4]){0}, 4);
    out.data[out.len - 1] = 0x3f; /* a float of 0.5 or more, by its number */
    out.data[out.len - 2] = number;
    free(text);
    json_decref(header);
    assert_ok(dir_ensure(dir, &err), err);
    path = xasprintf("%s/adapter_model.safetensors", dir);
    write_file(path, out.data, out.len);
    free(path);
    buf_release(&in);
    buf_release(&out);
    path = xasprintf("%s/adapter_config.json", from);
    json_t *config = json_load_file(path, 0, NULL);
    free(path);
    json_object_set_new(config, "r",
                        json_integer(times * json_integer_value(json_object_get(config, "r"))));
    path = xasprintf("%s/adapter_config.json", dir);
    assert_int_equal(json_dump_file(config, path, 0), 0);
    free(path);
    json_decref(config);
}

static inline void add_wide(struct world *w, const char *name, int times, uint8_t number)
{
    struct err err = {0};
    char *dir = xasprintf("%s/made/%s", w->dir, name);
    write_wide_adapter(dir, ADAPTER, times, number);
    assert_ok(adapter_store_add(w->store, name, dir, false, NULL, &err), err);
    free(dir);
}

/* Makes n adapters, all different, named a0 and so on, and adds them. */
static inline void add_adapters(struct world *w, int n)
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

static inline void on_result(void *user, const struct resolved *out, const struct err *err)
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

static inline void ask(struct world *w, struct result *r, const char *model)
{
    *r = (struct result){.lock = PTHREAD_MUTEX_INITIALIZER, .came = PTHREAD_COND_INITIALIZER};
    w->r.resolve(w->r.context, model, 0, 0, on_result, r);
}

static inline void await(struct result *r)
{
    pthread_mutex_lock(&r->lock);
    while (!r->done)
        pthread_cond_wait(&r->came, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

static inline bool has_come(struct result *r)
{
    pthread_mutex_lock(&r->lock);
    bool done = r->done;
    pthread_mutex_unlock(&r->lock);
    return done;
}

static inline struct resolved get(struct world *w, const char *model)
{
    struct result r;
    ask(w, &r, model);
    await(&r);
    if (r.rc != 0)
        fail_msg("%s: %s", model, r.err.message);
    return r.out;
}

static inline void use(struct world *w, const char *model)
{
    struct resolved got = get(w, model);
    w->r.release(w->r.context, &got);
}

static inline const char *tier(struct world *w, const char *model)
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

static inline struct adapter_store_stats stats(struct world *w)
{
    struct adapter_store_stats s;
    adapter_store_stats(w->store, &s);
    assert_true(s.bytes[TIER_HOST] <= s.host_bytes_total);
    return s;
}

/* A submission needs the adapter loaded: the engine's own word for it. */
static inline bool engine_has(struct world *w, struct content_digest content)
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

#endif
