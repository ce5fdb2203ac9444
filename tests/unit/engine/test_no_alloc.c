/* A running engine allocates nothing: from the first token of the last of several sequences to the
 * moment before the first of them ends, the engine thread never calls malloc. Prefill in chunks,
 * preemption and adapters that come and go are part of it. The sanitizer's allocator counts. */
#include "tests/unit/engine/run.h"

#if defined(__SANITIZE_ADDRESS__)
/* sanitizer/allocator_interface.h, which not every gcc package brings along. */
int __sanitizer_install_malloc_and_free_hooks(void (*malloc_hook)(const volatile void *, size_t),
                                              void (*free_hook)(const volatile void *));

static pthread_t engine_thread_id;
static atomic_bool counting;
static atomic_int n_allocations;

static void on_malloc(const volatile void *p, size_t n)
{
    (void)p;
    (void)n;
    if (atomic_load(&counting) && pthread_equal(pthread_self(), engine_thread_id))
        atomic_fetch_add(&n_allocations, 1);
}

static void on_free(const volatile void *p)
{
    (void)p;
}

enum { SEQS = 12, TOKENS = 40 };

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int n_finished, n_tokens[SEQS];
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void count_events(void *context, const struct engine_event *events, size_t n)
{
    (void)context;
    pthread_mutex_lock(&watch.lock);
    for (size_t i = 0; i < n; i++) {
        int *tokens = events[i].user;
        if (events[i].kind == ENGINE_EVENT_TOKEN && ++*tokens == TOKENS - 1)
            atomic_store(&counting, false); /* one step before the first one ends and is freed */
        watch.n_finished += events[i].kind == ENGINE_EVENT_FINISHED;
    }
    pthread_cond_broadcast(&watch.changed);
    pthread_mutex_unlock(&watch.lock);
}

/* Requests of many kinds; returns when all have finished. */
static void submit_wave(struct engine *e, const int32_t *prompt,
                        const struct engine_adapter loaded[3], bool penalties)
{
    struct err err = {0};
    memset(watch.n_tokens, 0, sizeof watch.n_tokens);
    watch.n_finished = 0;
    for (int i = 0; i < SEQS; i++) {
        struct engine_request r = run_greedy(prompt, 10 + i, TOKENS, 5);
        r.ignore_eos = true;
        r.prompt_logprobs = i % 3 == 0;
        r.sampling.temperature = i % 2 ? 0.8f : 0;
        r.sampling.top_p = 0.9f;
        r.sampling.frequency_penalty = i % 4 == 1 && penalties ? 0.2f : 0;
        r.user = &watch.n_tokens[i];
        if (i % 4 > 0) {
            r.n_adapters = 1;
            r.adapters[0].content = loaded[i % 4 - 1].content;
            r.adapters[0].weight = 1;
        }
        assert_ok(engine_submit(e, &r, NULL, &err), err);
    }
    pthread_mutex_lock(&watch.lock);
    while (watch.n_finished < SEQS)
        pthread_cond_wait(&watch.changed, &watch.lock);
    pthread_mutex_unlock(&watch.lock);
}

static void count_allocations(bool ahead, bool shared)
{
    static const char *const adapters[] = {ADAPTERS "stories260K-test/r8-all-linear",
                                           ADAPTERS "stories260K-test/r16-rslora",
                                           ADAPTERS "stories260K-law"};
    struct err err = {0};
    struct engine *e;
    struct engine_options o = run_options(MODELS "stories260K");
    o.max_context = 128;
    o.max_rows = 9;
    o.adapter_bytes = 800000; /* two of the three: evictions while counting */
    if (shared) {             /* and memory that moves */
        o.adapter_bytes = o.kv_bytes = 0;
        o.shared_bytes = 1300000;
    }
    o.debug_preempt = true;
    o.debug_pad = o.debug_overlap = ahead;
    o.on_events = count_events;
    assert_ok(engine_open(&e, &o, &err), err);
    engine_thread_id = e->thread;
    struct engine_adapter loaded[3];
    for (int i = 0; i < 3; i++)
        assert_ok(engine_adapter_load(e, adapters[i], &loaded[i], &err), err);
    int32_t prompt[30];
    for (int i = 0; i < 30; i++)
        prompt[i] = 1 + i * 7 % 500;
    submit_wave(e, prompt, loaded, !ahead); /* a backend's scratch memory may grow to its size */
    struct engine_stats stats;
    engine_stats(e, &stats);
    uint64_t n_moved = stats.n_bricks_to_kv + stats.n_bricks_to_adapters;
    atomic_store(&counting, true);
    submit_wave(e, prompt, loaded, !ahead);
    engine_stats(e, &stats);
    assert_true((stats.n_bricks_to_kv + stats.n_bricks_to_adapters > n_moved) == shared);
    assert_true(stats.n_preemptions > 3 && stats.n_adapter_uploads >= 3);
    assert_true((stats.n_steps_ahead > 3) == ahead);
    assert_false(atomic_load(&counting));
    if (atomic_load(&n_allocations) != 0)
        fail_msg("the engine thread allocated %d times in its steps", atomic_load(&n_allocations));
    engine_close(e);
}

static void no_step_allocates(void **state)
{
    (void)state;
    assert_true(__sanitizer_install_malloc_and_free_hooks(on_malloc, on_free) != 0);
    count_allocations(false, false);
    count_allocations(true, false); /* filled up, one step ahead */
    count_allocations(false, true);
}
#else
static void no_step_allocates(void **state)
{
    (void)state;
    print_message("counting allocations needs a build with AddressSanitizer\n");
    skip();
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_step_allocates),
    };
    return cmocka_run_group_tests_name("no allocation", tests, NULL, NULL);
}
