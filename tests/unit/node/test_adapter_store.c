/* The adapter store: adapters between disk and host memory, under load, beside slow registries.
 * (Fetching and refusing are tested end to end: tests/e2e/registry.test.mjs.) */
#include "node/base/clock.h"
#include "node/base/hex.h"
#include "tests/http_server.h"
#include "tests/unit/node/store_world.h"

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

static void await_bytes_kept(struct world *w, size_t n_bytes)
{
    struct engine_stats s;
    for (int i = 0; i < 1000; i++) {
        engine_stats(w->engine, &s);
        if (s.adapter_bytes_kept == n_bytes)
            return;
        usleep(5000);
    }
    fail_msg("%zu bytes are kept on the device, not %zu", s.adapter_bytes_kept, n_bytes);
}

static void a_pinned_adapter_is_kept_on_the_device_once_that_has_room(void **state)
{
    (void)state;
    world_device_adapters = 2; /* half of which may be kept */
    struct world *w = world_open(3, NULL, NULL);
    world_device_adapters = 0;
    struct err err = {0};
    add_adapters(w, 2);
    for (int i = 0; i < 2; i++) {
        assert_ok(adapter_store_pin(w->store, i == 0 ? "a0" : "a1", true, &err), err);
        await_bytes_kept(w, w->n_bytes);
    }
    use(w, "a1"); /* which is refused again */
    assert_ok(adapter_store_pin(w->store, "a0", false, &err), err);
    for (int i = 0; i < 20; i++) {
        use(w, "a1");
        usleep(5000);
    }
    await_bytes_kept(w, w->n_bytes);
    assert_ok(adapter_store_pin(w->store, "a1", false, &err), err);
    await_bytes_kept(w, 0);
    world_close(w, false);
}

static void expect_no_room(const struct err *err, struct world *w, const char *pinned)
{
    char *bytes = xasprintf(" %zu bytes are needed", w->n_bytes);
    if (err->code != ERR_TOO_LARGE || strstr(err->message, bytes) == NULL ||
        strstr(err->message, pinned) == NULL)
        fail_msg("code %d: %s", err->code, err->message);
    free(bytes);
}

static void what_does_not_fit_beside_pinned_adapters_is_refused_at_once(void **state)
{
    (void)state;
    struct world *w = world_open(2, NULL, NULL);
    struct err err = {0};
    struct result r, waits;
    add_adapters(w, 4);
    assert_ok(adapter_store_pin(w->store, "a0", true, &err), err);
    struct resolved a0 = get(w, "a0"), a1 = get(w, "a1");
    ask(w, &waits, "a3"); /* for a1's room, in vain once that is pinned, too */
    usleep(20000);
    assert_false(has_come(&waits));
    struct monotonic_us began = clock_monotonic_us();
    assert_ok(adapter_store_pin(w->store, "a1", true, &err), err);
    await(&waits);
    expect_no_room(&waits.err, w, "pinned adapters (a");
    ask(w, &r, "a2");
    await(&r);
    expect_no_room(&r.err, w, "pinned adapters (a");
    assert_non_null(strstr(r.err.message, "adapter a2"));
    uint64_t us = clock_elapsed_us(began, clock_monotonic_us());
    if (us > 5000000)
        fail_msg("it took %llu us", (unsigned long long)us);
    w->r.release(w->r.context, &a0);
    w->r.release(w->r.context, &a1);
    assert_ok(adapter_store_pin(w->store, "a1", false, &err), err);
    use(w, "a2");
    use(w, "a3");
    world_close(w, false);
}

/* The engine lets go of an adapter on a thread's order, which must not stand behind the loads that
 * wait for it. */
static void loads_that_wait_for_unpinned_room_get_it_however_many_wait(void **state)
{
    (void)state;
    enum { PINNED = 2, WAITING = 8 }; /* as many as there ever are loaders */
    struct world *w = world_open(PINNED + 1, NULL, NULL);
    struct err err = {0};
    struct result waits[WAITING];
    add_adapters(w, PINNED + 1 + WAITING);
    for (int i = 0; i < PINNED; i++) {
        char name[16];
        snprintf(name, sizeof name, "a%d", i);
        use(w, name);
        assert_ok(adapter_store_pin(w->store, name, true, &err), err);
        while (strcmp(tier(w, name), "device") != 0)
            usleep(1000);
    }
    struct resolved held = get(w, "a2");
    for (int i = 0; i < WAITING; i++) {
        char name[16];
        snprintf(name, sizeof name, "a%d", PINNED + 1 + i);
        ask(w, &waits[i], name);
    }
    usleep(20000);
    struct monotonic_us began = clock_monotonic_us();
    assert_ok(adapter_store_pin(w->store, "a0", false, &err), err);
    assert_ok(adapter_store_pin(w->store, "a1", false, &err), err);
    for (int left = WAITING; left > 0;) {
        for (int i = 0; i < WAITING; i++) {
            if (!has_come(&waits[i]) || waits[i].out.handle == NULL)
                continue;
            w->r.release(w->r.context, &waits[i].out);
            waits[i].out.handle = NULL;
            left--;
        }
        if (clock_elapsed_us(began, clock_monotonic_us()) > 10000000)
            fail_msg("%d adapters still wait for room", left);
        usleep(1000);
    }
    w->r.release(w->r.context, &held);
    world_close(w, false);
}

static void what_fits_is_counted_by_what_names_mean_now(void **state)
{
    (void)state;
    struct world *w = world_open(2, NULL, NULL);
    struct err err = {0};
    static const char *const models[] = {"x", "a1"};
    add_adapters(w, 3);
    char *a0 = xasprintf("%s/made/a0", w->dir), *a2 = xasprintf("%s/made/a2", w->dir);
    assert_ok(adapter_store_pin(w->store, "a0", true, &err), err);
    assert_ok(adapter_store_add(w->store, "x", a0, true, NULL, &err), err);
    struct resolved got[] = {get(w, "x"), get(w, "a1")}, held = got[0];
    w->r.release(w->r.context, &got[1]);
    got[0].handle = got[1].handle = NULL;
    assert_ok(w->r.fits(w->r.context, models, got, 2, (struct monotonic_us){0}, &err), err);
    assert_ok(adapter_store_add(w->store, "x", a2, true, NULL, &err), err);
    assert_int_equal(w->r.fits(w->r.context, models, got, 2, (struct monotonic_us){0}, &err), -1);
    assert_int_equal(err.code, ERR_TOO_LARGE);
    got[0] = held; /* which stays what it was */
    assert_ok(w->r.fits(w->r.context, models, got, 2, (struct monotonic_us){0}, &err), err);
    w->r.release(w->r.context, &held);
    free(a0);
    free(a2);
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

struct adding {
    struct world *w;
    const char *dir;
    _Atomic bool ends;
    int n_refused;
};

static void *add_again_and_again(void *context)
{
    struct adding *a = context;
    struct err err = {0};
    for (; !a->ends; a->n_refused++)
        assert_int_equal(adapter_store_add(a->w->store, "bad", a->dir, true, NULL, &err), -1);
    return NULL;
}

static struct content_digest digest_of(struct world *w, const char *model)
{
    struct content_digest digest;
    struct err err = {0};
    json_t *shown = adapter_store_show(w->store, model, &err);
    if (shown == NULL)
        fail_msg("%s: %s", model, err.message);
    const char *hex = json_string_value(json_object_get(shown, "content_digest"));
    assert_int_equal(hex_decode(digest.bytes, 32, hex), 0);
    json_decref(shown);
    return digest;
}

static void await_within(struct result *r, int ms, const char *what)
{
    for (; ms > 0 && !has_come(r); ms--)
        usleep(1000);
    if (!has_come(r))
        fail_msg("%s: nothing yet", what);
    if (r->rc != 0)
        fail_msg("%s: %s", what, r->err.message);
}

static void ask_holding(struct world *w, struct result *r, const char *model, uint64_t holder)
{
    *r = (struct result){.lock = PTHREAD_MUTEX_INITIALIZER, .came = PTHREAD_COND_INITIALIZER};
    w->r.resolve(w->r.context, model, 0, holder, on_result, r);
}

/* All of them come, if who has come is released; in no order that is promised. */
static void release_all(struct world *w, struct result *results, int n)
{
    int n_left = n;
    for (int ms = 0; n_left > 0; ms++) {
        for (int i = 0; i < n; i++) {
            if (!has_come(&results[i]) || (results[i].rc == 0 && results[i].out.handle == NULL))
                continue;
            assert_ok(results[i].rc, results[i].err);
            w->r.release(w->r.context, &results[i].out);
            results[i].out.handle = NULL;
            n_left--;
        }
        if (ms > 5000)
            fail_msg("%d of %d never came", n_left, n);
        usleep(1000);
    }
}

/* A large one that asked first, and small ones that come for each room that becomes free: one of
 * them fits beside it at a time, however many there are. */
static void room_that_becomes_free_is_for_who_asked_first(void **state)
{
    (void)state;
    enum { HELD = 4, LATER = 4, TIMES = 3 };
    struct world *w = world_open(HELD, NULL, NULL);
    struct resolved held[HELD];
    struct result large, small[LATER];
    add_adapters(w, HELD + LATER);
    add_wide(w, "large", TIMES, 1);
    for (int i = 0; i < HELD; i++)
        held[i] = get(w, (const char *[]){"a0", "a1", "a2", "a3"}[i]);
    ask(w, &large, "large");
    usleep(50000);
    for (int i = 0; i < LATER; i++)
        ask(w, &small[i], (const char *[]){"a4", "a5", "a6", "a7"}[i]);
    usleep(50000);
    w->r.release(w->r.context, &held[0]);
    await_within(&small[0], 5000, "the first small one, which fits beside the large");
    for (int i = 1; i < HELD; i++) {
        w->r.release(w->r.context, &held[i]);
        usleep(50000);
        if (has_come(&small[1]))
            fail_msg("a second small one had room %d, which is the large one's", i);
    }
    await_within(&large, 5000, "the large one");
    w->r.release(w->r.context, &large.out);
    for (int i = 0; i < LATER; i++) {
        await_within(&small[i], 5000, "a small one behind the large");
        w->r.release(w->r.context, &small[i].out);
    }
    world_close(w, false);
}

/* One that will have no room any more leaves its claim to the others. */
static void who_gives_up_waiting_for_room_frees_its_claim(void **state)
{
    (void)state;
    struct world *w = world_open(3, NULL, NULL);
    struct err err = {0};
    struct result large, small;
    add_adapters(w, 4);
    add_wide(w, "large", 3, 1);
    struct resolved a0 = get(w, "a0"), a1 = get(w, "a1"), a2 = get(w, "a2");
    ask(w, &large, "large");
    usleep(50000);
    ask(w, &small, "a3");
    w->r.release(w->r.context, &a0);
    usleep(50000);
    assert_false(has_come(&small));
    assert_ok(adapter_store_pin(w->store, "a1", true, &err), err);
    await(&large);
    assert_int_equal(large.err.code, ERR_TOO_LARGE);
    await_within(&small, 5000, "the small one, when the large had given up");
    w->r.release(w->r.context, &small.out);
    w->r.release(w->r.context, &a1);
    w->r.release(w->r.context, &a2);
    world_close(w, false);
}

/* Who holds adapters while it waits for another one isn't held up by those that wait for what it
 * holds, though they have all the loaders. */
static void who_holds_adapters_is_not_held_up_by_those_that_wait_for_them(void **state)
{
    (void)state;
    enum { LARGE = 9 };
    struct world *w = world_open(3, NULL, NULL);
    struct err err = {0};
    struct result large[LARGE], part;
    struct monotonic_us before = clock_monotonic_us();
    add_adapters(w, 4);
    struct resolved ensemble = get(w, "a0"), a1 = get(w, "a1"), a2 = get(w, "a2");
    for (int i = 0; i < LARGE; i++) {
        char *name = xasprintf("large%d", i);
        add_wide(w, name, 3, (uint8_t)i);
        ask(w, &large[i], name);
        free(name);
    }
    usleep(50000);

    /* It wouldn't have begun, if it had come behind them. */
    const char *const models[] = {"a0", "a3"};
    const struct resolved parts[] = {ensemble, {.name = "a3", .content = digest_of(w, "a3")}};
    assert_ok(w->r.fits(w->r.context, models, parts, 2, before, &err), err);
    struct monotonic_us now = clock_monotonic_us();
    assert_int_equal(w->r.fits(w->r.context, models, parts, 2, now, &err), -1);
    assert_int_equal(err.code, ERR_BUSY);

    ask_holding(w, &part, "a3", 1);
    w->r.release(w->r.context, &a1);
    await_within(&part, 5000, "what the ensemble waits for");
    w->r.release(w->r.context, &part.out);
    w->r.release(w->r.context, &ensemble);
    w->r.release(w->r.context, &a2);
    release_all(w, large, LARGE);
    world_close(w, false);
}

/* What an ensemble waits for that has gone meanwhile, and holds nothing any more, is not in the way
 * of the one that gathers next: not in the order, and not at the thread of those that go ahead. */
static void what_nobody_who_holds_waits_for_any_more_goes_ahead_no_more(void **state)
{
    (void)state;
    enum { LARGE = 9 };
    for (int n_large = 0; n_large <= LARGE; n_large += LARGE) { /* they have all the loaders */
        struct world *w = world_open(4, NULL, NULL);
        struct result others[1 + LARGE], part;
        add_adapters(w, 1);
        add_wide(w, "two0", 2, 1);
        add_wide(w, "two1", 2, 2);
        add_wide(w, "three", 3, 3);
        struct resolved a0 = get(w, "a0"), two0 = get(w, "two0");
        for (int i = 0; i < n_large; i++) {
            char *name = xasprintf("large%d", i);
            add_wide(w, name, 4, (uint8_t)i);
            ask(w, &others[1 + i], name);
            free(name);
        }
        usleep(50000);
        ask_holding(w, &others[0], "three", 1);
        usleep(50000);
        ask_holding(w, &part, "two1", 2);
        usleep(50000);
        assert_false(has_come(&part));
        w->r.release(w->r.context, &a0);
        await_within(&part, 5000, "what the second ensemble waits for");
        w->r.release(w->r.context, &part.out);
        w->r.release(w->r.context, &two0);
        release_all(w, others, 1 + n_large);
        world_close(w, false);
    }
}

/* Two names of one content share a load; each is told of its failure by its own name. */
static void who_waits_for_another_names_load_reads_its_own_name(void **state)
{
    (void)state;
    struct world *w = world_open(3, NULL, NULL);
    struct err err = {0};
    struct result x, y;
    add_adapters(w, 3);
    add_wide(w, "x", 3, 1);
    add_wide(w, "y", 3, 1);
    struct resolved a0 = get(w, "a0"), a1 = get(w, "a1");
    ask(w, &x, "x");
    ask(w, &y, "y");
    usleep(20000);
    assert_ok(adapter_store_pin(w->store, "a0", true, &err), err);
    await(&x);
    await(&y);
    assert_non_null(strstr(x.err.message, "adapter x: "));
    assert_non_null(strstr(y.err.message, "adapter y: "));
    w->r.release(w->r.context, &a0);
    w->r.release(w->r.context, &a1);
    world_close(w, false);
}

/* Beside one that is kept there is no room on the device for one that takes all of it. */
static void warming_that_finds_no_room_says_for_which_adapter(void **state)
{
    (void)state;
    enum { ON_DEVICE = 4 };
    world_device_adapters = ON_DEVICE;
    struct world *w = world_open(ON_DEVICE + 1, NULL, NULL);
    world_device_adapters = 0;
    struct err err = {0};
    struct result r = {.lock = PTHREAD_MUTEX_INITIALIZER, .came = PTHREAD_COND_INITIALIZER};
    add_adapters(w, 1);
    add_wide(w, "large", ON_DEVICE, 1);
    use(w, "a0");
    assert_ok(adapter_store_pin(w->store, "a0", true, &err), err);
    while (strcmp(tier(w, "a0"), "device") != 0)
        usleep(1000);
    adapter_store_load(w->store, "large", LOAD_WARM, on_result, &r);
    await(&r);
    assert_int_equal(r.rc, -1);
    assert_string_equal(r.err.message,
                        "adapter large: there is no room on the device for the adapter now");
    world_close(w, false);
}

struct churn {
    struct world *w;
    unsigned seed;
    _Atomic bool *ends;
    _Atomic uint64_t *n_served, *n_refused, *longest_us;
    int role;
    uint64_t n_held; /* role 0's */
};

static const char *const CHURNED[] = {"a0",   "a1",   "a2",    "a3",   "a4",
                                      "two0", "two1", "three", "moves"};
enum { N_CHURNED = sizeof CHURNED / sizeof CHURNED[0] };

static void churn_get(struct churn *c, struct result *r, const char *model, uint64_t holder)
{
    struct monotonic_us began = clock_monotonic_us();
    ask_holding(c->w, r, model, holder);
    await(r);
    uint64_t us = clock_elapsed_us(began, clock_monotonic_us());
    for (uint64_t most = *c->longest_us; us > most;)
        if (atomic_compare_exchange_weak(c->longest_us, &most, us))
            break;
    *(r->rc == 0 ? c->n_served : c->n_refused) += 1;
    if (r->rc != 0 && (r->err.code == ERR_BUSY || strstr(r->err.message, model) == NULL))
        fail_msg("%s: code %d: %s", model, r->err.code, r->err.message);
}

/* Roles: one that asks for two, holding the first; an operator; others ask for one. */
static void *churn_run(void *context)
{
    struct churn *c = context;
    struct world *w = c->w;
    struct err err;
    while (!*c->ends) {
        const char *one = CHURNED[rand_r(&c->seed) % N_CHURNED];
        const char *two = CHURNED[rand_r(&c->seed) % N_CHURNED];
        struct result a, b;
        if (c->role == 0) {
            churn_get(c, &a, one, 0);
            if (a.rc != 0)
                continue;
            const char *const models[] = {one, two};
            struct resolved parts[] = {a.out, {.content = a.out.content}};
            bool fits = strcmp(one, two) != 0 && w->r.fits(w->r.context, models, parts, 2,
                                                           (struct monotonic_us){0}, &err) == 0;
            if (fits && strcmp(one, "three") != 0 && strcmp(two, "three") != 0) {
                churn_get(c, &b, two, ++c->n_held);
                if (b.rc == 0)
                    w->r.release(w->r.context, &b.out);
            }
            w->r.release(w->r.context, &a.out);
        } else if (c->role == 1) {
            char *dir = xasprintf("%s/made/%s", w->dir, rand_r(&c->seed) % 2 ? "a0" : "two0");
            bool pins = rand_r(&c->seed) % 2;
            adapter_store_pin(w->store, pins ? "a1" : one, pins, &err);
            json_decref(adapter_store_unload(w->store, two, &err));
            assert_int_equal(adapter_store_add(w->store, "moves", dir, true, NULL, &err), 0);
            free(dir);
            usleep(2000);
        } else {
            churn_get(c, &a, one, 0);
            if (a.rc != 0)
                continue;
            usleep((unsigned)rand_r(&c->seed) % 2000);
            w->r.release(w->r.context, &a.out);
        }
    }
    return NULL;
}

/* Adapters of three sizes, more than there is room for, asked for, held while others are waited
 * for, pinned, unloaded and pointed elsewhere: everybody is served soon, and what they took is back
 * in the end. */
static void whatever_is_done_at_once_nobody_waits_long_and_all_bytes_come_back(void **state)
{
    (void)state;
    enum { THREADS = 8, MS = 3000 };
    struct world *w = world_open(4, NULL, NULL);
    struct err err = {0};
    struct engine_stats e;
    struct churn churn[THREADS];
    pthread_t threads[THREADS];
    _Atomic bool ends = false;
    _Atomic uint64_t n_served = 0, n_refused = 0, longest_us = 0;
    add_adapters(w, 5);
    add_wide(w, "two0", 2, 1);
    add_wide(w, "two1", 2, 2);
    add_wide(w, "three", 3, 3);
    char *dir = xasprintf("%s/made/a0", w->dir);
    assert_ok(adapter_store_add(w->store, "moves", dir, true, NULL, &err), err);
    free(dir);
    for (int i = 0; i < THREADS; i++) {
        churn[i] = (struct churn){w,          (unsigned)i + 1, &ends, &n_served,
                                  &n_refused, &longest_us,     i,     0};
        assert_int_equal(pthread_create(&threads[i], NULL, churn_run, &churn[i]), 0);
    }
    usleep(MS * 1000);
    ends = true;
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    printf("note: %d served, %d refused, the longest wait was %d ms\n", (int)n_served,
           (int)n_refused, (int)(longest_us / 1000));
    assert_true(n_served > 20);
    assert_true(longest_us < 10000000);
    assert_int_equal(stats(w).n_in_use, 0);
    for (int i = 0; i < N_CHURNED; i++) {
        assert_ok(adapter_store_pin(w->store, CHURNED[i], false, &err), err);
        json_t *o = adapter_store_unload(w->store, CHURNED[i], &err);
        if (o == NULL)
            fail_msg("%s", err.message);
        json_decref(o);
    }
    for (int ms = 0; ms < 5000; ms++) { /* the engine lets go of what was pinned a little later */
        engine_stats(w->engine, &e);
        if (e.adapter_host_bytes_used == 0)
            break;
        usleep(1000);
    }
    assert_int_equal(e.adapter_host_bytes_used, 0);
    assert_int_equal(stats(w).bytes[TIER_HOST], 0);
    use(w, "three");
    world_close(w, false);
}

/* Room that was kept for files which then are refused is anybody's, and who waits for some hears of
 * it at once. */
static void room_that_refused_files_did_not_need_goes_to_who_waits(void **state)
{
    (void)state;
    enum { TURNS = 100, PATIENCE_MS = 5000 };
    struct world *w = world_open(2, NULL, NULL);
    struct err err = {0};
    add_adapters(w, 2);
    char *dir = xasprintf("%s/bad", w->dir), *file = xasprintf("%s/adapter_model.safetensors", dir);
    write_adapter(dir, ADAPTER, 99);
    FILE *f = fopen(file, "r+b"); /* its size stays, its header says nothing */
    assert_non_null(f);
    for (int i = 0; i < 16; i++)
        fputc(0xff, f);
    fclose(f);
    struct resolved held = get(w, "a0");
    struct adding adding = {.w = w, .dir = dir};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, add_again_and_again, &adding), 0);
    for (int i = 0; i < TURNS; i++) {
        json_decref(adapter_store_unload(w->store, "a1", &err));
        struct result r;
        ask(w, &r, "a1");
        for (int ms = 0; ms < PATIENCE_MS && !has_come(&r); ms++)
            usleep(1000);
        if (!has_come(&r))
            fail_msg("turn %d: nothing after %d ms", i, PATIENCE_MS);
        await(&r);
        assert_ok(r.rc, r.err);
        w->r.release(w->r.context, &r.out);
    }
    adding.ends = true;
    pthread_join(thread, NULL);
    assert_true(adding.n_refused > 0);
    w->r.release(w->r.context, &held);
    free(dir);
    free(file);
    world_close(w, false);
}

/* What was read for an engine that has no room yet is loaded when it has some, and not read again:
 * its files may have gone meanwhile. */
static void a_load_that_waits_for_the_engine_reads_its_files_once(void **state)
{
    (void)state;
    struct world *w = world_open(1, NULL, NULL);
    struct err err = {0};
    add_adapters(w, 2);
    struct resolved first = get(w, "a0");
    int32_t prompt[] = {1, 2, 3};
    struct engine_request request = {.prompt = prompt,
                                     .n_prompt = 3,
                                     .max_tokens = 500,
                                     .ignore_eos = true,
                                     .n_adapters = 1,
                                     .adapters = {{.content = first.content, .weight = 1}},
                                     .sampling = {.n_top_logprobs = -1}};
    uint64_t sequences[4]; /* of the reference backend: some seconds */
    for (int i = 0; i < 4; i++, w->n_submitted++)
        assert_ok(engine_submit(w->engine, &request, &sequences[i], &err), err);
    w->r.release(w->r.context, &first);
    struct result r;
    ask(w, &r, "a1"); /* a0 leaves the store; the engine keeps it for its sequences */
    usleep(200000);
    char *dir = xasprintf("%s/made/a1", w->dir), *away = xasprintf("%s/made/away", w->dir);
    assert_int_equal(rename(dir, away), 0);
    usleep(50000);
    if (has_come(&r))
        fail_msg("the engine made room too early, or none: %s", r.err.message);
    for (int i = 0; i < 4; i++)
        engine_cancel(w->engine, sequences[i]);
    await(&r);
    assert_ok(r.rc, r.err);
    assert_true(engine_has(w, r.out.content));
    w->r.release(w->r.context, &r.out);
    free(dir);
    free(away);
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

enum { LISTED = 20 };
static _Atomic bool index_comes, manifests_come;
static _Atomic uint32_t manifests_asked; /* bit i: that of n<i> */

/* Lists n0 to n19, whose manifests it hasn't; says so, and what it lists, only while it may. */
static void list_some(struct exchange *x)
{
    char hash[65];
    for (unsigned i = 0; i < LISTED; i++) {
        snprintf(hash, sizeof hash, "%064x", i);
        if (strstr(x->path, hash) != NULL)
            manifests_asked |= 1u << i;
    }
    bool index = strcmp(x->path, "/v1/index.json") == 0;
    if (index ? !index_comes : !manifests_come) {
        silence(x);
        return;
    }
    struct buf b = BUF_INIT;
    buf_append_str(&b, "{\"items\":[");
    for (unsigned i = 0; i < LISTED; i++)
        buf_appendf(&b,
                    "%s{\"creator\":\"0x%040x\",\"kind\":\"adapter\",\"manifest\":\"%064x\","
                    "\"name\":\"n%u\",\"version\":1}",
                    i > 0 ? "," : "", 1, i, i);
    buf_append_str(&b, "],\"previous\":null,\"schema\":\"tributary.index/1\",\"updated\":1}");
    exchange_answer(x, index ? 200 : 404, "", b.data, index ? b.len : 0);
    buf_release(&b);
}

static void ask_for(struct world *w, struct result *r, const char *model, uint64_t customer)
{
    *r = (struct result){.lock = PTHREAD_MUTEX_INITIALIZER, .came = PTHREAD_COND_INITIALIZER};
    w->r.resolve(w->r.context, model, customer, 0, on_result, r);
}

static int n_manifests_asked(void)
{
    return __builtin_popcount(manifests_asked);
}

static void names_that_nobody_lists_hold_up_none_that_is_listed(void **state)
{
    (void)state;
    enum { N = 20 };
    index_comes = manifests_come = true;
    struct server *server = server_start(list_some, NULL);
    char *url = xasprintf("http://127.0.0.1:%u", server->port);
    struct world *w = world_open(2, url, NULL);
    struct result near;
    ask(w, &near, "n0");
    await(&near);
    index_comes = false;
    usleep(600000); /* so that a name that isn't listed has the registry asked again */
    static struct result waiting[N];
    for (int i = 0; i < N; i++) {
        char name[16];
        snprintf(name, sizeof name, "far%d", i);
        ask(w, &waiting[i], name);
    }
    ask_for(w, &near, "n1", 7); /* another customer's */
    for (int i = 0; i < 1000 && !has_come(&near); i++)
        usleep(5000);
    bool came = has_come(&near);
    adapter_store_stop(w->store);
    await(&near);
    assert_true(came);
    for (int i = 0; i < N; i++)
        await(&waiting[i]);
    world_close(w, false);
    server_stop(server);
    free(url);
}

static void who_joins_a_fetch_is_not_held_up_by_who_began_it(void **state)
{
    (void)state;
    index_comes = true;
    manifests_come = false;
    manifests_asked = 0;
    struct server *server = server_start(list_some, NULL);
    char *url = xasprintf("http://127.0.0.1:%u", server->port);
    struct world *w = world_open(2, url, NULL);
    static struct result waiting[LISTED], joins;
    for (int i = 0; i < LISTED; i++) {
        char name[16];
        snprintf(name, sizeof name, "n%d", i);
        ask_for(w, &waiting[i], name, 1);
    }
    for (int i = 0; i < 1000 && n_manifests_asked() < 8; i++)
        usleep(5000);
    usleep(100000);
    assert_int_equal(n_manifests_asked(), 8); /* of 16 at a time */
    unsigned last = LISTED - 1;
    while (manifests_asked >> last & 1)
        last--;
    char name[16];
    snprintf(name, sizeof name, "n%u", last);
    ask_for(w, &joins, name, 2);
    for (int i = 0; i < 1000 && !(manifests_asked >> last & 1); i++)
        usleep(5000);
    bool began = manifests_asked >> last & 1;
    adapter_store_stop(w->store);
    await(&joins);
    for (int i = 0; i < LISTED; i++)
        await(&waiting[i]);
    assert_true(began);
    assert_int_equal(n_manifests_asked(), 9);
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

static void who_gives_up_waiting_for_a_fetch_leaves_its_place(void **state)
{
    (void)state;
    enum { NAMES = 32, EACH = 8 }; /* more names than may be brought at a time */
    struct server *server = server_start(silence, NULL);
    char *url = xasprintf("http://127.0.0.1:%u", server->port), name[16];
    struct world *w = world_open(2, url, NULL);
    static struct result waiting[NAMES * EACH];
    struct adapter_store_stats stats;
    struct result one_more;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < NAMES * EACH; i++) {
            snprintf(name, sizeof name, "far%d", i % NAMES);
            ask(w, &waiting[i], name);
        }
        ask(w, &one_more, "one-more");
        await(&one_more);
        assert_int_equal(one_more.err.code, ERR_BUSY);
        usleep(200000); /* some are being brought, the others wait for that */
        for (int i = 0; i < NAMES * EACH; i++) {
            w->r.give_up(w->r.context, &waiting[i]);
            await(&waiting[i]);
            assert_int_equal(waiting[i].err.code, ERR_CANCELLED);
        }
        adapter_store_stats(w->store, &stats);
        assert_int_equal(stats.n_waiting, 0);
    }
    w->r.give_up(w->r.context, &one_more); /* it has been told: nothing happens */
    world_close(w, false);
    server_stop(server);
    free(url);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(more_adapters_than_host_memory_holds_are_all_served),
        cmocka_unit_test(what_is_asked_for_often_stays_and_what_was_leaves_in_the_end),
        cmocka_unit_test(a_pinned_adapter_never_leaves),
        cmocka_unit_test(a_pinned_adapter_is_kept_on_the_device_once_that_has_room),
        cmocka_unit_test(what_does_not_fit_beside_pinned_adapters_is_refused_at_once),
        cmocka_unit_test(loads_that_wait_for_unpinned_room_get_it_however_many_wait),
        cmocka_unit_test(what_fits_is_counted_by_what_names_mean_now),
        cmocka_unit_test(many_requests_for_one_absent_adapter_share_one_load),
        cmocka_unit_test(when_all_is_in_use_a_load_waits_for_room_and_does_not_fail),
        cmocka_unit_test(room_that_becomes_free_is_for_who_asked_first),
        cmocka_unit_test(who_gives_up_waiting_for_room_frees_its_claim),
        cmocka_unit_test(who_holds_adapters_is_not_held_up_by_those_that_wait_for_them),
        cmocka_unit_test(what_nobody_who_holds_waits_for_any_more_goes_ahead_no_more),
        cmocka_unit_test(who_waits_for_another_names_load_reads_its_own_name),
        cmocka_unit_test(warming_that_finds_no_room_says_for_which_adapter),
        cmocka_unit_test(whatever_is_done_at_once_nobody_waits_long_and_all_bytes_come_back),
        cmocka_unit_test(room_that_refused_files_did_not_need_goes_to_who_waits),
        cmocka_unit_test(a_load_that_waits_for_the_engine_reads_its_files_once),
        cmocka_unit_test(what_waits_is_told_when_the_node_stops),
        cmocka_unit_test(unloading_frees_host_memory_and_says_how_much),
        cmocka_unit_test(names_come_and_go_under_load_and_what_is_held_stays),
        cmocka_unit_test(a_silent_registry_does_not_hold_up_what_is_on_disk),
        cmocka_unit_test(names_that_nobody_lists_hold_up_none_that_is_listed),
        cmocka_unit_test(who_joins_a_fetch_is_not_held_up_by_who_began_it),
        cmocka_unit_test(requests_beyond_the_bound_are_told_to_come_back),
        cmocka_unit_test(who_gives_up_waiting_for_a_fetch_leaves_its_place),
    };
    return cmocka_run_group_tests_name("adapter_store", tests, NULL, NULL);
}
