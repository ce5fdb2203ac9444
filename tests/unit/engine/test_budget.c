/* Adapters and KV cache share their memory: how it is cut and judged, and an engine on little of
 * it, in which it goes to and fro, gives the answers of one with plenty. */
#include "tests/unit/engine/deferring.h"
#include "tests/unit/engine/run.h"

#include "engine/budget.h"
#include "engine/judge.h"

#include <unistd.h>

/* ---- cutting ----------------------------------------------------------------------------- */

static void memory_is_cut_into_bricks_and_each_side_keeps_a_part(void **state)
{
    enum { KIB = 1024, MIB = 1024 * KIB };
    static const struct {
        const char *what;
        struct budget_sizes sizes;
        bool shares;
        size_t brick_bytes;
        int kv[3], adapters[3]; /* bricks at open, at least, at most */
        int n_blocks;           /* at open */
    } cases[] = {
        {"8B on a GPU: 2 MiB a layer and side, 64 blocks",
         {64000UL * MIB, 16000UL * MIB, 32 * KIB, 64, 2 * MIB, 1 << 20},
         true,
         128 * MIB,
         {375, 93, 469},
         {125, 31, 407},
         24000},
        {"stories260K on a CPU: 2 blocks",
         {2 * MIB, 700 * KIB, 2 * KIB, 10, 4 * KIB, 1000},
         true,
         40 * KIB,
         {33, 8, 47},
         {18, 4, 43},
         66},
        {"a block is larger than a granule",
         {64 * MIB, 16 * MIB, 10 * KIB, 10, 4 * KIB, 10000},
         true,
         120 * KIB,
         {409, 102, 512},
         {137, 34, 444},
         490},
        {"what the KV cache can't use is the adapters'",
         {2 * MIB, 700 * KIB, 2 * KIB, 10, 4 * KIB, 20},
         true,
         40 * KIB,
         {10, 2, 10},
         {41, 4, 49},
         20},
        {"no more bricks than a thousand",
         {1024UL * MIB, 256 * MIB, 2 * KIB, 10, 4 * KIB, 1 << 20},
         true,
         1000 * KIB,
         {785, 196, 983},
         {263, 65, 852},
         39250},
        {"too little to move",
         {800 * MIB, 200 * MIB, 32 * KIB, 64, 2 * MIB, 1 << 20},
         false,
         0,
         {0},
         {0},
         0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct budget b;
        if (budget_divide(&b, &cases[i].sizes) != cases[i].shares)
            fail_msg("%s: is%s shared", cases[i].what, cases[i].shares ? " not" : "");
        if (!cases[i].shares)
            continue;
        int kv[] = {b.n_kv, b.n_kv_min, b.n_kv_max};
        int adapters[] = {b.n_adapters, b.n_adapters_min, b.n_adapters_max};
        int n_blocks = budget_blocks(&b, b.n_kv);
        if (b.brick_bytes != cases[i].brick_bytes || memcmp(kv, cases[i].kv, sizeof kv) != 0 ||
            memcmp(adapters, cases[i].adapters, sizeof adapters) != 0 ||
            n_blocks != cases[i].n_blocks)
            fail_msg("%s: bricks of %zu; KV cache %d, %d to %d; adapters %d, %d to %d; %d blocks",
                     cases[i].what, b.brick_bytes, kv[0], kv[1], kv[2], adapters[0], adapters[1],
                     adapters[2], n_blocks);
        assert_int_equal(b.n_kv + b.n_adapters, b.n_bricks);
        assert_true(b.piece_bytes % cases[i].sizes.granule_bytes == 0);
        assert_true((size_t)b.n_bricks * b.brick_bytes <= cases[i].sizes.total_bytes);
        budget_keep_blocks(&b, n_blocks / 2);
        assert_true(budget_blocks(&b, b.n_kv_min) >= n_blocks / 2);
        assert_int_equal(b.n_kv_min + b.n_adapters_max, b.n_bricks);
    }
}

/* ---- judging ----------------------------------------------------------------------------- */

static void
worth_is_what_it_takes_to_have_it_again_times_the_chance_that_it_is_asked_for(void **state)
{
    const struct judge_costs c = {.token_s = 40e-6, .byte_s = 20e-12, .fixed_s = 150e-6}; /* 8B */
    enum { MB = 1000000, ADAPTER = 84 * MB };
    (void)state;
    double block = judge_block(&c, 16, 1, 100, OWNER_HERE, ADAPTER);
    double adapter = judge_adapter(&c, ADAPTER, 1, 100);
    struct {
        const char *what;
        bool holds;
    } cases[] = {
        {"found more often", judge_block(&c, 16, 5, 100, OWNER_HERE, ADAPTER) > 4 * block},
        {"idle for longer", judge_block(&c, 16, 1, 1000, OWNER_HERE, ADAPTER) < block / 9},
        {"never found again", judge_block(&c, 16, 0, 100, OWNER_HERE, ADAPTER) < block / 10},
        {"its adapter is away", judge_block(&c, 16, 1, 100, OWNER_AWAY, ADAPTER) < block &&
                                    judge_block(&c, 16, 1, 100, OWNER_AWAY, ADAPTER) > block / 2},
        {"its adapter is away, and dearer than the tokens",
         judge_block(&c, 16, 1, 100, OWNER_AWAY, 100 * (size_t)ADAPTER) <= 0},
        {"its adapter is unloaded", judge_block(&c, 16, 9, 0, OWNER_GONE, ADAPTER) <= 0},
        {"a byte of KV is dearer to have again than one of an adapter",
         block / (2 << 20) > 5 * adapter / ADAPTER},
        {"an adapter used more often", judge_adapter(&c, ADAPTER, 3, 100) > 2.9 * adapter},
        {"an adapter idle for longer", judge_adapter(&c, ADAPTER, 1, 1000) < adapter / 9},
        {"a small adapter, by its size, for what each takes",
         judge_adapter(&c, MB, 1, 100) / MB > 2 * adapter / ADAPTER},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if (!cases[i].holds)
            fail_msg("%s: isn't judged so", cases[i].what);
    struct judge_costs device = judge_costs(8000000000, true), host = judge_costs(15000000, false);
    assert_true(device.token_s > 1e-5 && device.token_s < 1e-3);
    assert_true(host.token_s > 1e-6 && host.token_s < 1e-2 && host.byte_s > device.byte_s);
}

static void the_judge_moves_a_brick_as_the_table_says(void **state)
{
    /* bricks, min, max | wanted by running, by waiting | idle, loss, gain, quiet */
#define SIDE(n, least, most, ...)                                 \
    {                                                             \
        .n_bricks = n, .n_min = least, .n_max = most, __VA_ARGS__ \
    }
    static const struct {
        const char *what;
        struct judge_side kv, adapters;
        bool idle;
        enum judge_verdict verdict;
    } cases[] = {
        {"nothing wanted, nothing evicted", SIDE(5, 2, 9, .n_idle = 5), SIDE(5, 1, 8, .n_idle = 5),
         false, JUDGE_STAY},
        {"running sequences take idle adapters, whatever these are worth",
         SIDE(5, 2, 9, .n_wanted_running = 1), SIDE(5, 1, 8, .n_idle = 1, .loss = 100), false,
         JUDGE_TO_KV},
        {"they don't wait for quiet", SIDE(5, 2, 9, .n_wanted_running = 1, .quiet = true),
         SIDE(5, 1, 8, .n_idle = 1, .loss = 100), false, JUDGE_TO_KV},
        {"a part of what they want is better than nothing", SIDE(5, 2, 9, .n_wanted_running = 4),
         SIDE(5, 1, 8, .n_idle = 1), false, JUDGE_TO_KV},
        {"adapters in use stay", SIDE(5, 2, 9, .n_wanted_running = 1), SIDE(5, 1, 8), false,
         JUDGE_STAY},
        {"the adapters' floor stays", SIDE(5, 2, 9, .n_wanted_running = 1),
         SIDE(1, 1, 8, .n_idle = 1), false, JUDGE_STAY},
        {"a full KV cache takes no more", SIDE(9, 2, 9, .n_wanted_running = 1),
         SIDE(5, 1, 8, .n_idle = 5), false, JUDGE_STAY},
        {"waiting sequences take idle adapters", SIDE(5, 2, 9, .n_wanted_waiting = 2),
         SIDE(5, 1, 8, .n_idle = 2, .loss = 100), false, JUDGE_TO_KV},
        {"but not a part of what they need", SIDE(5, 2, 9, .n_wanted_waiting = 3),
         SIDE(5, 1, 8, .n_idle = 2), false, JUDGE_STAY},
        {"nor while it is quiet", SIDE(5, 2, 9, .n_wanted_waiting = 2, .quiet = true),
         SIDE(5, 1, 8, .n_idle = 2), false, JUDGE_STAY},
        {"if anything runs", SIDE(5, 2, 9, .n_wanted_waiting = 2, .quiet = true),
         SIDE(5, 1, 8, .n_idle = 2), true, JUDGE_TO_KV},
        {"adapters that are waited for take idle blocks", SIDE(5, 2, 9, .n_idle = 2, .loss = 100),
         SIDE(5, 1, 8, .n_wanted_waiting = 2), false, JUDGE_TO_ADAPTERS},
        {"not below the KV cache's floor", SIDE(3, 2, 9, .n_idle = 3),
         SIDE(5, 1, 8, .n_wanted_waiting = 2), false, JUDGE_STAY},
        {"nor while it is quiet", SIDE(5, 2, 9, .n_idle = 2),
         SIDE(5, 1, 8, .n_wanted_waiting = 2, .quiet = true), false, JUDGE_STAY},
        {"blocks go first", SIDE(5, 2, 9, .n_wanted_waiting = 1, .n_idle = 2),
         SIDE(5, 1, 8, .n_wanted_waiting = 1, .n_idle = 2), false, JUDGE_TO_KV},
        {"who wants in vain gives nothing", SIDE(5, 2, 9, .n_wanted_running = 1, .n_idle = 2),
         SIDE(5, 1, 8, .n_wanted_waiting = 1, .gain = 9), false, JUDGE_STAY},
        {"the adapters too", SIDE(5, 2, 9, .gain = 9),
         SIDE(5, 1, 8, .n_wanted_waiting = 9, .n_idle = 2), false, JUDGE_STAY},
        {"a free brick goes to who evicts", SIDE(5, 2, 9, .n_idle = 2),
         SIDE(5, 1, 8, .gain = 1, .n_idle = 2, .loss = 1), false, JUDGE_TO_ADAPTERS},
        {"and so does one worth less than half", SIDE(5, 2, 9, .n_idle = 2, .loss = 0.4),
         SIDE(5, 1, 8, .gain = 1, .n_idle = 2, .loss = 1), false, JUDGE_TO_ADAPTERS},
        {"one worth nearly as much stays", SIDE(5, 2, 9, .n_idle = 2, .loss = 0.6),
         SIDE(5, 1, 8, .gain = 1, .n_idle = 2, .loss = 1), false, JUDGE_STAY},
        {"idle adapters go to a prefix cache that evicts what is worth more",
         SIDE(5, 2, 9, .gain = 3, .n_idle = 2, .loss = 3), SIDE(5, 1, 8, .n_idle = 2, .loss = 1),
         false, JUDGE_TO_KV},
        {"pressure waits for quiet, also when nothing runs",
         SIDE(5, 2, 9, .gain = 3, .n_idle = 2, .loss = 3, .quiet = true),
         SIDE(5, 1, 8, .n_idle = 2, .loss = 1), true, JUDGE_STAY},
    };
#undef SIDE
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        enum judge_verdict v = judge(&cases[i].kv, &cases[i].adapters, cases[i].idle);
        if (v != cases[i].verdict)
            fail_msg("%s: verdict %d, not %d", cases[i].what, (int)v, (int)cases[i].verdict);
    }
}

/* ---- moving ------------------------------------------------------------------------------ */

enum {
    CONTEXT = 256,
    SHARED_BYTES = 1 << 20, /* 25 bricks of 2 blocks */
    LONG = 6,               /* prompts of 200 tokens: 13 blocks each */
    LONG_TOKENS = 200,
    SHORT = 12, /* prompts under as many adapters of 65 kB each */
    SHORT_TOKENS = 24,
    ROUNDS_MAX = 8,
    N_REQUESTS = ROUNDS_MAX * (LONG + 2 * SHORT + 4),
};

struct load { /* the same each time */
    int32_t tokens[N_REQUESTS][LONG_TOKENS];
    struct content_digest content[SHORT];
};

/* Who is on its way where, seen from the engine thread once an event. */
struct watch {
    uint64_t n_to_kv, n_to_adapters, plan_to_kv, plan_to_adapters;
    bool idle;                /* nothing ran at the last look */
    uint64_t shortest_return; /* plans from a brick's coming to one's going back, by a want or
                                 pressure of adapters */
    uint64_t n_returns;
    int n_bricks; /* of both sides; all the time */
};

static void watch_moves(struct run *run, const struct engine_event *event)
{
    struct watch *w = run->watch_context;
    const struct engine *e = run->engine;
    (void)event;
    if (e->counts.n_bricks_to_kv > w->n_to_kv)
        w->plan_to_kv = e->n_plans;
    if (e->counts.n_bricks_to_adapters > w->n_to_adapters && w->plan_to_kv > 0) {
        uint64_t n = e->n_plans - w->plan_to_kv;
        if (!w->idle && n < w->shortest_return)
            w->shortest_return = n;
        w->n_returns += w->plan_to_kv > w->plan_to_adapters;
        w->plan_to_adapters = e->n_plans;
    }
    w->n_to_kv = e->counts.n_bricks_to_kv;
    w->n_to_adapters = e->counts.n_bricks_to_adapters;
    w->idle = e->n_running == 0;
    if (e->budget.n_kv + e->budget.n_adapters != e->budget.n_bricks)
        w->n_bricks = -1;
}

static struct engine_options options_of(size_t shared_bytes)
{
    struct engine_options o = run_options(MODELS "stories260K");
    o.max_context = CONTEXT;
    o.max_seqs = 16;
    o.max_rows = 64;
    if (shared_bytes > 0) {
        o.kv_bytes = o.adapter_bytes = 0;
        o.shared_bytes = shared_bytes;
    }
    return o;
}

static void nobody_listens(void *context, const struct engine_event *events, size_t n)
{
    (void)context;
    (void)events;
    (void)n;
}

/* The number that the refusal names opens the engine, and one byte less doesn't. */
static void memory_for_less_than_a_block_is_refused_by_the_option_that_was_given(void **state)
{
    (void)state;
    for (size_t shared = 0; shared < 2; shared++) {
        struct err err = {0};
        struct engine *e;
        struct engine_options o = options_of(shared);
        size_t *given = shared ? &o.shared_bytes : &o.kv_bytes, least, was;
        const char *format = shared ? "shared_bytes is %zu, it must be at least %zu"
                                    : "kv_bytes is %zu, it must be at least %zu";
        o.on_events = nobody_listens;
        *given = 1;
        assert_int_equal(engine_open(&e, &o, &err), -1);
        if (sscanf(err.message, format, &was, &least) != 2 || was != 1)
            fail_msg("%s", err.message);
        *given = least - 1;
        assert_int_equal(engine_open(&e, &o, &err), -1);
        assert_int_equal(err.code, ERR_INVALID);
        *given = least;
        assert_ok(engine_open(&e, &o, &err), err);
        engine_close(e);
    }
}

static void open_load(struct run *run, struct load *load, struct engine_options o)
{
    run_open(run, o, N_REQUESTS);
    for (int i = 0; i < SHORT; i++) {
        struct err err = {0};
        struct lora_adapter *a = lora_random(&run->engine->model->config, 4, DTYPE_BF16,
                                             100 + (uint64_t)i);
        load->content[i] = a->content;
        assert_ok(engine_adapter_add(run->engine, a, &err), err);
    }
}

static struct answer *submit(struct run *run, struct load *load, int n_tokens, int max_tokens,
                             int adapter)
{
    int32_t *tokens = load->tokens[run->n];
    for (int k = 0; k < n_tokens; k++) /* the first two blocks are shared by many */
        tokens[k] = k == 0 ? 1 : 3 + (k < 32 ? k * k : run->n * 131 + k * k * 17) % 500;
    struct engine_request r = run_greedy(tokens, n_tokens, max_tokens, 0);
    r.ignore_eos = true;
    if (adapter >= 0) {
        r.n_adapters = 1;
        r.adapters[0].content = load->content[adapter];
        r.adapters[0].weight = 1;
    }
    return run_submit(run, r);
}

/* Adapters come one after the other and stay idle; a burst of long prompts takes their memory; then
 * many adapters at once, beside some that decode for long, take it back. */
static void carry_round(struct run *run, struct load *load, int round)
{
    for (int i = 0; i < SHORT; i++) {
        submit(run, load, SHORT_TOKENS, 2, i);
        if (i % 4 == 3)
            run_wait(run);
    }
    for (int i = 0; i < LONG; i++)
        submit(run, load, LONG_TOKENS, 10, i % 5 == 4 ? i : -1);
    run_wait(run);
    for (int i = 0; i < 4; i++)
        submit(run, load, 40 + i, 90, -1);
    for (int i = 0; i < SHORT; i++)
        submit(run, load, SHORT_TOKENS, 10 + i, (i * 5 + round) % SHORT);
    run_wait(run);
}

/* Nothing runs: all blocks are free, no adapter is pinned, and when those on the device are gone
 * nothing is used. */
static void check_rest(struct run *run, const struct load *load, const char *way)
{
    struct engine_stats s;
    struct err err = {0};
    for (int i = 0; i < SHORT; i++)
        assert_ok(engine_adapter_evict(run->engine, &load->content[i], &err), err);
    engine_stats(run->engine, &s);
    if (s.n_blocks_free != s.n_blocks || s.adapter_bytes_used != 0)
        fail_msg("%s: %d of %d blocks are free, adapters use %zu bytes", way, s.n_blocks_free,
                 s.n_blocks, s.adapter_bytes_used);
}

static const struct {
    const char *name;
    const char *backend; /* NULL: the deferring one, with memory of its own */
    bool ahead, preempt, records;
    int n_rounds;
} WAYS[] = {
    {"cpu", "cpu", false, false, false, 3},
    {"ref", "ref", false, false, false, 2},
    {"cpu, ahead, preempted", "cpu", true, true, false, 2},
    {"late, recorded", NULL, false, false, true, 3},
    {"late, ahead, preempted", NULL, true, true, false, 2},
};

static void memory_goes_to_and_fro_and_no_answer_changes(void **state)
{
    (void)state;
    for (size_t w = 0; w < sizeof WAYS / sizeof WAYS[0]; w++) {
        bool late_way = WAYS[w].backend == NULL;
        struct run plenty, little;
        struct load *load = xcalloc(1, sizeof *load);
        struct watch watch = {.shortest_return = UINT64_MAX};
        struct engine_stats s;
        struct engine_options o = options_of(SHARED_BYTES);
        o.backend = late_way ? "cpu" : WAYS[w].backend;
        o.debug_overlap = WAYS[w].ahead;
        o.debug_preempt = WAYS[w].preempt;
        engine_debug_ops = late_way ? deferring_ops(WAYS[w].records, 64 << 20) : NULL;
        open_load(&little, load, o);
        engine_debug_ops = NULL;
        little.watch_context = &watch;
        little.watch = watch_moves;
        size_t used = late.memory_used;
        int n_rounds = 0;
        do { /* whether a brick is wanted while blocks lie in it depends on who comes when */
            carry_round(&little, load, n_rounds++);
            engine_stats(little.engine, &s);
        } while (n_rounds < WAYS[w].n_rounds || (s.n_blocks_moved == 0 && n_rounds < ROUNDS_MAX));
        print_message("%s: %d bricks to the KV cache, %d to adapters in %d turns, %d blocks moved; "
                      "%d preemptions, %d prefix and %d adapter evictions in %d steps\n",
                      WAYS[w].name, (int)s.n_bricks_to_kv, (int)s.n_bricks_to_adapters,
                      (int)watch.n_returns, (int)s.n_blocks_moved, (int)s.n_preemptions,
                      (int)s.n_prefix_evictions, (int)s.n_adapter_evictions, (int)s.n_steps);
        uint64_t least = (uint64_t)WAYS[w].n_rounds;
        assert_true(s.n_bricks_to_kv >= least && s.n_bricks_to_adapters >= least);
        assert_true(s.n_blocks_moved > 0 && watch.n_bricks == 0);
        assert_int_equal(late.memory_used, used); /* whatever moved: nothing more was taken */
        check_rest(&little, load, WAYS[w].name);
        o = options_of(0);
        o.backend = late_way ? "cpu" : WAYS[w].backend;
        open_load(&plenty, load, o);
        for (int round = 0; round < n_rounds; round++)
            carry_round(&plenty, load, round);
        engine_stats(plenty.engine, &s);
        assert_int_equal(s.brick_bytes, 0);
        assert_int_equal(plenty.n, little.n);
        for (int i = 0; i < plenty.n; i++)
            if (!run_same(&plenty.answers[i], &little.answers[i]))
                fail_msg("%s: request %d has another answer", WAYS[w].name, i);
        run_close(&plenty);
        run_close(&little);
        free(load);
    }
}

/* Long prompts and other adapters all the time: each side wants what the other has. A brick that
 * came isn't wanted back at once. */
static void what_came_stays_for_a_while_though_both_sides_want_it(void **state)
{
    (void)state;
    struct run run;
    struct load *load = xcalloc(1, sizeof *load);
    struct watch watch = {.shortest_return = UINT64_MAX};
    struct engine_stats s;
    open_load(&run, load, options_of(SHARED_BYTES));
    run.watch_context = &watch;
    run.watch = watch_moves;
    for (int i = 0; i < N_REQUESTS * 2 / 3; i++)
        if (i % 4 == 0)
            submit(&run, load, LONG_TOKENS, 20, -1);
        else
            submit(&run, load, SHORT_TOKENS, 20, i * 7 % SHORT);
    run_wait(&run);
    engine_stats(run.engine, &s);
    print_message("%d bricks to the KV cache, %d to adapters, %d returns, none within %d plans; %d "
                  "preemptions, %d adapter evictions in %d steps\n",
                  (int)s.n_bricks_to_kv, (int)s.n_bricks_to_adapters, (int)watch.n_returns,
                  (int)watch.shortest_return, (int)s.n_preemptions, (int)s.n_adapter_evictions,
                  (int)s.n_steps);
    assert_true(s.n_bricks_to_kv > 0 && s.n_bricks_to_adapters > 0 && watch.n_returns > 0);
    assert_true(watch.shortest_return >= 60 && watch.n_returns <= s.n_steps / 32 + 1);
    check_rest(&run, load, "both want");
    run_close(&run);
    free(load);
}

/* The region is at its floor, and base requests that never stop coming fill the KV cache. A request
 * under an adapter larger than the region still begins: in time nobody is let in before it. */
static void an_adapter_larger_than_the_region_has_its_turn_under_load_that_never_ends(void **state)
{
    enum { BASE_MAX = N_REQUESTS - 2, AT_ONCE = 24 };
    (void)state;
    struct run run;
    struct load *load = xcalloc(1, sizeof *load);
    struct err err = {0};
    struct engine_stats s;
    open_load(&run, load, options_of(SHARED_BYTES));
    struct lora_adapter *large = lora_random(&run.engine->model->config, 16, DTYPE_BF16, 9);
    size_t n_bytes = large->n_bytes;
    load->content[0] = large->content;
    assert_ok(engine_adapter_add(run.engine, large, &err), err);
    for (int i = 0; i < AT_ONCE; i++)
        submit(&run, load, LONG_TOKENS, 50, -1);
    do { /* they take what they can */
        usleep(2000);
        engine_stats(run.engine, &s);
    } while (s.adapter_bytes_total > n_bytes);
    struct answer *answer = submit(&run, load, SHORT_TOKENS, 4, 0);
    pthread_mutex_lock(&run.lock);
    while (answer->n_finished == 0) {
        if (run.n - run.n_finished > AT_ONCE) {
            pthread_cond_wait(&run.changed, &run.lock);
            continue;
        }
        pthread_mutex_unlock(&run.lock);
        if (run.n == BASE_MAX)
            fail_msg("%d others have begun, and it waits", run.n);
        submit(&run, load, LONG_TOKENS, 50, -1);
        pthread_mutex_lock(&run.lock);
    }
    pthread_mutex_unlock(&run.lock);
    engine_stats(run.engine, &s);
    print_message("%d others were let in\n", run.n - AT_ONCE - 1);
    assert_true(s.adapter_bytes_total >= n_bytes && s.n_bricks_to_adapters > 0);
    run_wait(&run);
    run_close(&run);
    free(load);
}

/* By hand, too: an adapter larger than the region is warmed while sequences decode, steps ahead or
 * not, when the blocks that had its memory are idle. */
static void an_order_makes_room_for_an_adapter_while_others_decode(void **state)
{
    (void)state;
    for (int ahead = 0; ahead < 2; ahead++) {
        struct run run;
        struct load *load = xcalloc(1, sizeof *load);
        struct err err = {0};
        struct engine_stats s;
        struct engine_residency r;
        struct engine_options o = options_of(SHARED_BYTES);
        o.debug_overlap = ahead;
        open_load(&run, load, o);
        struct lora_adapter *large = lora_random(&run.engine->model->config, 12, DTYPE_BF16, 9);
        struct content_digest content = large->content;
        size_t n_bytes = large->n_bytes;
        assert_ok(engine_adapter_add(run.engine, large, &err), err);
        for (int i = 0; i < 3 * LONG; i++)
            submit(&run, load, LONG_TOKENS, 10, -1);
        run_wait(&run);
        engine_stats(run.engine, &s);
        assert_true(s.adapter_bytes_total < n_bytes);
        struct answer *decoding = submit(&run, load, 20, 230, -1);
        pthread_mutex_lock(&run.lock);
        while (decoding->n_tokens < 100) /* adapters aren't quiet any more */
            pthread_cond_wait(&run.changed, &run.lock);
        pthread_mutex_unlock(&run.lock);
        assert_ok(engine_adapter_keep(run.engine, &content, true, &err), err);
        assert_int_equal(decoding->n_finished, 0);
        assert_ok(engine_adapter_residency(run.engine, &content, &r, &err), err);
        engine_stats(run.engine, &s);
        assert_true(r.on_device && r.kept && s.adapter_bytes_total >= n_bytes);
        assert_true((s.n_steps_ahead > 0) == (ahead != 0));
        assert_ok(engine_adapter_keep(run.engine, &content, false, &err), err);
        run_wait(&run);
        run_close(&run);
        free(load);
    }
}

/* Wherever the device fails, also while memory moves, all end. */
static void a_device_that_fails_while_memory_moves_ends_everything(void **state)
{
    (void)state;
    struct load *load = xcalloc(1, sizeof *load);
    uint64_t n_moves = 0;
    for (int n_waits = 30; n_waits < 110; n_waits += 13) {
        struct run run;
        struct err err = {0};
        engine_debug_ops = deferring_ops(n_waits % 2 == 0, 64 << 20);
        open_load(&run, load, options_of(SHARED_BYTES));
        engine_debug_ops = NULL;
        for (int i = 0; i < LONG; i++)
            submit(&run, load, LONG_TOKENS, 10, -1);
        for (int i = 0; i < SHORT; i++)
            submit(&run, load, SHORT_TOKENS, 20, i);
        late.n_waits_left = n_waits; /* the engine may be at work already */
        run_wait(&run);
        n_moves += run.engine->counts.n_bricks_to_kv + run.engine->counts.n_bricks_to_adapters;
        struct engine_request r = run_greedy(load->tokens[0], 3, 1, 0);
        if (engine_submit(run.engine, &r, NULL, &err) == 0 || err.code != ERR_INTERNAL)
            fail_msg("a failed engine takes requests after %d waits", n_waits);
        run_close(&run);
    }
    assert_true(n_moves > 0);
    free(load);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_cut_into_bricks_and_each_side_keeps_a_part),
        cmocka_unit_test(
            worth_is_what_it_takes_to_have_it_again_times_the_chance_that_it_is_asked_for),
        cmocka_unit_test(the_judge_moves_a_brick_as_the_table_says),
        cmocka_unit_test(memory_for_less_than_a_block_is_refused_by_the_option_that_was_given),
        cmocka_unit_test(memory_goes_to_and_fro_and_no_answer_changes),
        cmocka_unit_test(what_came_stays_for_a_while_though_both_sides_want_it),
        cmocka_unit_test(an_adapter_larger_than_the_region_has_its_turn_under_load_that_never_ends),
        cmocka_unit_test(an_order_makes_room_for_an_adapter_while_others_decode),
        cmocka_unit_test(a_device_that_fails_while_memory_moves_ends_everything),
    };
    return cmocka_run_group_tests_name("budget", tests, NULL, NULL);
}
