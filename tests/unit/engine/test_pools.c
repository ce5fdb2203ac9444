/* The three pools: KV blocks, the heap of the adapters' region, adapters on the device. */
#include "engine/heap.h"
#include "engine/judge.h"
#include "engine/kv_pool.h"
#include "engine/lora_pool.h"
#include "node/base/err.h"
#include "tests/support.h"

#include <math.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Does f abort (a bug found), in a process of its own? */
static void assert_aborts(const char *what, void (*f)(void *), void *context)
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (freopen("/dev/null", "w", stderr) == NULL)
            _exit(3);
        signal(SIGABRT, SIG_DFL); /* cmocka's handler would turn it into a failed test */
        f(context);
        _exit(0);
    }
    int status;
    assert_true(waitpid(child, &status, 0) == child);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT)
        fail_msg("%s: should abort, ended with status %d", what, status);
}

/* ---- KV blocks --------------------------------------------------------------------------- */

static void blocks_are_given_once_until_their_last_reference_is_dropped(void **state)
{
    (void)state;
    struct kv_pool *p = kv_pool_create(3, 3);
    int32_t a = kv_pool_take(p), b = kv_pool_take(p), c = kv_pool_take(p);
    assert_true(a != b && b != c && a != c);
    assert_int_equal(kv_pool_take(p), -1);
    kv_pool_retain(p, b);
    kv_pool_drop(p, b);
    assert_int_equal(kv_pool_n_free(p), 0);
    assert_int_equal(kv_pool_references(p, b), 1);
    kv_pool_drop(p, b);
    assert_int_equal(kv_pool_take(p), b);
    kv_pool_drop(p, a);
    kv_pool_drop(p, b);
    kv_pool_drop(p, c);
    assert_int_equal(kv_pool_n_free(p), 3);
    kv_pool_free(p);
}

static void drop_free_block(void *pool)
{
    kv_pool_drop(pool, 0);
}

static void dropping_a_free_block_is_a_bug(void **state)
{
    (void)state;
    struct kv_pool *p = kv_pool_create(1, 1);
    assert_aborts("drop of a free block", drop_free_block, p);
    kv_pool_free(p);
}

static void the_lowest_free_block_is_taken(void **state)
{
    (void)state;
    struct kv_pool *p = kv_pool_create(200, 200);
    for (int i = 0; i < 200; i++)
        assert_int_equal(kv_pool_take(p), i);
    kv_pool_drop(p, 150);
    kv_pool_drop(p, 70);
    kv_pool_drop(p, 3);
    kv_pool_drop(p, 66);
    assert_int_equal(kv_pool_take(p), 3);
    assert_int_equal(kv_pool_take(p), 66);
    assert_int_equal(kv_pool_take(p), 70);
    assert_int_equal(kv_pool_take(p), 150);
    for (int i = 0; i < 200; i++)
        kv_pool_drop(p, i);
    kv_pool_free(p);
}

static void shrink_below_a_used_block(void *pool)
{
    kv_pool_resize(pool, 2);
}

static void the_pool_grows_and_shrinks_at_its_end_and_moves_what_is_used_there(void **state)
{
    (void)state;
    struct kv_pool *p = kv_pool_create(3, 9);
    for (int i = 0; i < 3; i++)
        assert_int_equal(kv_pool_take(p), i);
    assert_int_equal(kv_pool_take(p), -1);
    kv_pool_resize(p, 6);
    assert_int_equal(kv_pool_n_blocks(p), 6);
    assert_int_equal(kv_pool_n_free(p), 3);
    assert_int_equal(kv_pool_n_max(p), 9);
    assert_int_equal(kv_pool_take(p), 3);
    assert_int_equal(kv_pool_take(p), 4);
    kv_pool_retain(p, 4);
    kv_pool_drop(p, 1);
    kv_pool_drop(p, 2);
    assert_int_equal(kv_pool_n_used_from(p, 3), 2);
    assert_aborts("shrinking below a used block", shrink_below_a_used_block, p);
    assert_int_equal(kv_pool_move(p, 4), 1);
    assert_int_equal(kv_pool_references(p, 1), 2);
    assert_int_equal(kv_pool_references(p, 4), 0);
    assert_int_equal(kv_pool_move(p, 3), 2);
    kv_pool_resize(p, 3);
    assert_int_equal(kv_pool_n_free(p), 0);
    assert_int_equal(kv_pool_take(p), -1);
    kv_pool_resize(p, 9);
    for (int i = 3; i < 9; i++)
        assert_int_equal(kv_pool_take(p), i);
    for (int i = 0; i < 9; i++)
        kv_pool_drop(p, i);
    kv_pool_drop(p, 1);
    assert_int_equal(kv_pool_n_free(p), 9);
    kv_pool_free(p);
}

/* ---- heap -------------------------------------------------------------------------------- */

static void the_heap_takes_the_smallest_span_that_fits_and_joins_neighbours(void **state)
{
    (void)state;
    struct heap *h = heap_create(100 * 16, 16, 32);
    size_t a = heap_take(h, 10 * 16), b = heap_take(h, 1), c = heap_take(h, 30 * 16);
    size_t d = heap_take(h, 5 * 16), e = heap_take(h, 54 * 16);
    assert_int_equal(a, 0);
    assert_int_equal(b, 160); /* rounded up to 16 */
    assert_int_equal(e, 46 * 16);
    assert_int_equal(heap_take(h, 1), SIZE_MAX);
    heap_give(h, a, 10 * 16);
    heap_give(h, c, 30 * 16);
    heap_give(h, d, 5 * 16); /* behind c: one span of 35 */
    assert_int_equal(heap_largest(h), 35 * 16);
    assert_int_equal(heap_take(h, 10 * 16), a);
    assert_int_equal(heap_take(h, 35 * 16), c);
    heap_give(h, c, 35 * 16);
    heap_give(h, a, 10 * 16);
    heap_give(h, b, 1);
    heap_give(h, e, 54 * 16);
    assert_int_equal(heap_largest(h), 100 * 16);
    assert_int_equal(heap_used(h), 0);
    heap_free(h);
}

static void a_piece_can_be_taken_where_it_is_wanted_if_it_is_free(void **state)
{
    (void)state;
    struct heap *h = heap_create(10 * 16, 16, 8);
    assert_true(heap_take_at(h, 4 * 16, 2 * 16)); /* in the middle: two spans of 4 */
    assert_false(heap_take_at(h, 4 * 16, 16));
    assert_false(heap_take_at(h, 3 * 16, 2 * 16)); /* half of it is taken */
    assert_false(heap_take_at(h, 9 * 16, 2 * 16)); /* ends behind the end */
    assert_int_equal(heap_largest(h), 4 * 16);
    assert_true(heap_take_at(h, 0, 16));          /* the beginning of a span ... */
    assert_true(heap_take_at(h, 9 * 16, 16));     /* ... the end of one ... */
    assert_true(heap_take_at(h, 6 * 16, 3 * 16)); /* ... and what is left of it */
    assert_int_equal(heap_used(h), 7 * 16);
    assert_int_equal(heap_take(h, 3 * 16), 16);
    heap_give(h, 4 * 16, 2 * 16);
    heap_give(h, 16, 3 * 16);
    heap_give(h, 0, 16);
    heap_give(h, 6 * 16, 4 * 16);
    assert_int_equal(heap_largest(h), 10 * 16);
    heap_free(h);
}

static void random_taking_and_giving_never_overlaps_and_ends_whole(void **state)
{
    enum { N = 64, UNITS = 500 };
    (void)state;
    struct heap *h = heap_create(UNITS * 8, 8, N);
    struct {
        size_t at, n;
    } pieces[N] = {{0}};
    uint8_t owner[UNITS] = {0};
    uint32_t random = 1;
    for (int step = 0; step < 20000; step++) {
        random = random * 1664525u + 1013904223u;
        int i = (int)(random >> 8) % N;
        if (pieces[i].n == 0) {
            size_t n = 1 + (random >> 16) % 40, at = heap_take(h, n * 8);
            if (at == SIZE_MAX)
                continue;
            for (size_t u = at / 8; u < at / 8 + n; u++) {
                assert_int_equal(owner[u], 0);
                owner[u] = (uint8_t)(i + 1);
            }
            pieces[i].at = at;
            pieces[i].n = n;
        } else {
            memset(owner + pieces[i].at / 8, 0, pieces[i].n);
            heap_give(h, pieces[i].at, pieces[i].n * 8);
            pieces[i].n = 0;
        }
    }
    for (int i = 0; i < N; i++)
        if (pieces[i].n > 0)
            heap_give(h, pieces[i].at, pieces[i].n * 8);
    assert_int_equal(heap_largest(h), UNITS * 8);
    heap_free(h);
}

/* ---- adapters on the device -------------------------------------------------------------- */

enum { RANKS = 6 };

struct pool_fixture {
    struct model_config model;
    const struct ops *ops;
    struct backend *be;
    struct lora_pool *pool;
    struct lora_adapter *adapters[RANKS]; /* of rank 1 to RANKS: six sizes */
};

static void fixture_open_region(struct pool_fixture *f, struct lora_region region, int n_slots)
{
    struct err err = {0};
    struct backend_options options = {.n_threads = 1,
                                      .max_rows = 1,
                                      .max_d = 64,
                                      .max_rank = 64,
                                      .max_seqs = 1,
                                      .max_context = 16};
    f->model = (struct model_config){.vocab = 16,
                                     .hidden = 32,
                                     .n_layers = 2,
                                     .n_heads = 2,
                                     .n_kv_heads = 1,
                                     .head_dim = 16,
                                     .ffn = 48};
    f->ops = ops_find("ref", &err);
    assert_non_null(f->ops);
    assert_ok(f->ops->open(&f->be, &options, &err), err);
    assert_ok(lora_pool_create(&f->pool, &f->model, f->ops, f->be, &region, n_slots, &err), err);
    for (int i = 0; i < RANKS; i++)
        f->adapters[i] = lora_random(&f->model, i + 1, DTYPE_BF16, (uint64_t)i + 1);
}

static void fixture_open(struct pool_fixture *f, size_t pool_bytes, int n_slots)
{
    fixture_open_region(f, (struct lora_region){.n_bytes = pool_bytes}, n_slots);
}

static void fixture_close(struct pool_fixture *f)
{
    lora_pool_free(f->pool);
    f->ops->close(f->be);
    for (int i = 0; i < RANKS; i++)
        lora_close(f->adapters[i]);
}

/* With a pool of n times the bytes of an adapter. */
static void fixture_open_for(struct pool_fixture *f, size_t n, int adapter)
{
    fixture_open(f, 1, 1); /* to learn the sizes */
    size_t n_bytes = f->adapters[adapter]->n_bytes;
    fixture_close(f);
    fixture_open(f, n * n_bytes, 8);
}

/* Do the slot's entries, at every site, lead to exactly the adapter's numbers? */
static void assert_holds(const struct pool_fixture *f, int32_t slot, const struct lora_adapter *a)
{
    for (int i = 0; i < a->n_sites; i++) {
        const struct lora_site *s = &a->sites[i];
        static const enum fused_kind fused[SITE_KINDS] = {
            [SITE_Q] = FUSED_QKV,    [SITE_K] = FUSED_QKV,        [SITE_V] = FUSED_QKV,
            [SITE_O] = FUSED_O,      [SITE_GATE] = FUSED_GATE_UP, [SITE_UP] = FUSED_GATE_UP,
            [SITE_DOWN] = FUSED_DOWN};
        static const int part[SITE_KINDS] = {0, 1, 2, 0, 0, 1, 0};
        int kind = s->site % SITE_KINDS, n_linears;
        int linear = s->site / SITE_KINDS * FUSED_KINDS + (int)fused[kind];
        const struct lora_part *parts = lora_pool_linears(f->pool, &n_linears)[linear].parts;
        assert_in_range(linear, 0, n_linears - 1);
        const struct lora_entry *e = &parts[part[kind]].entries[slot];
        assert_int_equal(e->rank, s->rank);
        size_t n_a = (size_t)s->rank * (size_t)model_site_d_in(&f->model, (enum site_kind)kind) * 2;
        size_t n_b = (size_t)s->rank * (size_t)model_site_d_out(&f->model, (enum site_kind)kind) *
                     2;
        uint8_t bytes[4096];
        f->ops->download(f->be, bytes, e->a, n_a);
        assert_memory_equal(bytes, a->data + s->a_offset, n_a);
        f->ops->download(f->be, bytes, e->b, n_b);
        assert_memory_equal(bytes, a->data + s->b_offset, n_b);
        struct lora_entry on_device;
        f->ops->download(f->be, &on_device,
                         devptr_at(parts[part[kind]].d_entries, (size_t)slot * sizeof on_device),
                         sizeof on_device);
        assert_memory_equal(&on_device, e, sizeof on_device);
    }
}

static void pin_and_unpin(struct pool_fixture *f, const struct lora_adapter *a, int times)
{
    struct lora_pin pin;
    for (int i = 0; i < times; i++) {
        assert_true(lora_pool_pin(f->pool, a, NULL, &pin));
        lora_pool_unpin(f->pool, pin);
    }
}

static bool is_here(const struct pool_fixture *f, const struct lora_adapter *a)
{
    return lora_pool_is_resident(f->pool, &a->content);
}

static void of_equals_the_least_recently_pinned_leaves_and_pinned_ones_stay(void **state)
{
    (void)state;
    struct pool_fixture f;
    struct lora_adapter *alike[4];
    struct lora_pin pins[3];
    fixture_open(&f, 1 << 20, 3);
    for (int i = 0; i < 4; i++)
        alike[i] = lora_random(&f.model, 2, DTYPE_BF16, 100 + (uint64_t)i);
    for (int i = 0; i < 3; i++)
        assert_true(lora_pool_pin(f.pool, alike[i], NULL, &pins[i]));
    assert_false(lora_pool_pin(f.pool, alike[3], NULL, &pins[0])); /* three slots, all pinned */
    for (int i = 0; i < 3; i++)
        lora_pool_unpin(f.pool, pins[i]);
    pin_and_unpin(&f, alike[0], 1); /* used again */
    pin_and_unpin(&f, alike[3], 1);
    assert_true(is_here(&f, alike[0]) && is_here(&f, alike[2]) && is_here(&f, alike[3]));
    assert_false(is_here(&f, alike[1])); /* pinned longest ago */
    fixture_close(&f);
    for (int i = 0; i < 4; i++)
        lora_close(alike[i]);
}

static void the_one_worth_least_leaves_first(void **state)
{
    static const struct {
        int uses[3]; /* of ranks 4, 16 and 64, in this order */
        int leaves;
        const char *why;
    } cases[] = {
        {{1, 1, 1}, 2, "used alike, the largest costs least to bring back, by its size"},
        {{1, 1, 30}, 1, "what is used often stays, though it is large"},
        {{3, 30, 300}, 0, "used least, for its size"},
    };
    static const int ranks[3] = {4, 16, 64};
    (void)state;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        struct pool_fixture f;
        struct lora_adapter *sized[3];
        fixture_open(&f, 1 << 20, 3);
        for (int i = 0; i < 3; i++) {
            sized[i] = lora_random(&f.model, ranks[i], DTYPE_BF16, 100);
            pin_and_unpin(&f, sized[i], cases[c].uses[i]);
        }
        pin_and_unpin(&f, f.adapters[3], 1);
        for (int i = 0; i < 3; i++)
            if (is_here(&f, sized[i]) != (i != cases[c].leaves))
                fail_msg("case %zu (%s): rank %d is%s here", c, cases[c].why, ranks[i],
                         i == cases[c].leaves ? "" : " not");
        fixture_close(&f);
        for (int i = 0; i < 3; i++)
            lora_close(sized[i]);
    }
}

static void an_adapter_that_was_popular_once_leaves_in_the_end(void **state)
{
    (void)state;
    struct pool_fixture f;
    fixture_open(&f, 1 << 20, 2);
    pin_and_unpin(&f, f.adapters[0], 20);
    for (int i = 0; is_here(&f, f.adapters[0]); i++) {
        assert_true(i < 200);
        pin_and_unpin(&f, f.adapters[1 + i % 5], 1); /* five take turns in the other slot */
    }
    fixture_close(&f);
}

/* ---- beside the steps -------------------------------------------------------------------- */

static void a_promised_adapter_stays_until_its_pin_or_until_it_is_forgotten(void **state)
{
    (void)state;
    struct pool_fixture f;
    struct lora_pool_stats stats;
    fixture_open(&f, 1 << 20, 2);
    assert_true(lora_pool_prefetch(f.pool, f.adapters[5], NULL, true));
    for (int i = 0; i < 10; i++)
        assert_true(lora_pool_prefetch(f.pool, f.adapters[i % 4], NULL, false));
    assert_true(is_here(&f, f.adapters[5]));
    lora_pool_forget(f.pool, &f.adapters[5]->content);
    for (int i = 0; i < 10; i++)
        assert_true(lora_pool_prefetch(f.pool, f.adapters[i % 4], NULL, false));
    assert_false(is_here(&f, f.adapters[5]));
    lora_pool_stats(f.pool, &stats);
    assert_int_equal(stats.n_prefetched, stats.n_uploads);
    assert_int_equal(stats.n_hits, 0);
    pin_and_unpin(&f, f.adapters[1], 1);
    lora_pool_stats(f.pool, &stats);
    assert_int_equal(stats.n_hits, 1);
    fixture_close(&f);
}

static void promises_take_a_quarter_of_the_pool_at_most(void **state)
{
    (void)state;
    struct pool_fixture f;
    fixture_open_for(&f, 4, 3);
    assert_false(lora_pool_prefetch(f.pool, f.adapters[4], NULL, true)); /* larger than a quarter */
    assert_true(lora_pool_prefetch(f.pool, f.adapters[3], NULL, true));
    assert_false(lora_pool_prefetch(f.pool, f.adapters[0], NULL, true));
    assert_true(lora_pool_prefetch(f.pool, f.adapters[0], NULL, false));
    pin_and_unpin(&f, f.adapters[3], 1);
    assert_true(lora_pool_prefetch(f.pool, f.adapters[1], NULL, true));
    fixture_close(&f);
}

/* One that is kept and in use takes its bytes once. */
static void what_is_kept_and_pinned_leaves_the_rest_to_be_brought_in(void **state)
{
    (void)state;
    struct pool_fixture f;
    struct err err = {0};
    struct lora_pin pin;
    fixture_open_for(&f, 2, 5);
    assert_true(lora_pool_pin(f.pool, f.adapters[5], NULL, &pin));
    assert_ok(lora_pool_keep(f.pool, &f.adapters[5]->content, true, &err), err);
    assert_true(lora_pool_prefetch(f.pool, f.adapters[4], NULL, false));
    assert_ok(lora_pool_keep(f.pool, &f.adapters[5]->content, false, &err), err);
    lora_pool_unpin(f.pool, pin);
    fixture_close(&f);
}

static void kept_adapters_stay_and_are_half_of_the_pool_at_most(void **state)
{
    (void)state;
    struct pool_fixture f;
    struct err err = {0};
    struct lora_pin pin;
    fixture_open_for(&f, 2, 5);
    assert_int_equal(lora_pool_keep(f.pool, &f.adapters[2]->content, true, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    pin_and_unpin(&f, f.adapters[2], 1);
    assert_ok(lora_pool_keep(f.pool, &f.adapters[2]->content, true, &err), err);
    assert_true(lora_pool_pin(f.pool, f.adapters[4], NULL, &pin));
    assert_int_equal(lora_pool_keep(f.pool, &f.adapters[4]->content, true, &err), -1);
    assert_int_equal(err.code, ERR_TOO_LARGE);
    lora_pool_unpin(f.pool, pin);
    for (int i = 0; i < 12; i++)
        if (lora_pool_pin(f.pool, f.adapters[i % 5], NULL, &pin))
            lora_pool_unpin(f.pool, pin);
    assert_true(is_here(&f, f.adapters[2]));
    assert_ok(lora_pool_keep(f.pool, &f.adapters[2]->content, false, &err), err);
    pin_and_unpin(&f, f.adapters[5], 5);
    pin_and_unpin(&f, f.adapters[4], 5);
    assert_false(is_here(&f, f.adapters[2]));
    fixture_close(&f);
}

static void taking_an_adapter_off_by_hand_frees_its_bytes_unless_it_is_pinned(void **state)
{
    (void)state;
    struct pool_fixture f;
    struct err err = {0};
    struct lora_pin pin;
    struct lora_pool_stats stats;
    fixture_open(&f, 1 << 20, 8);
    assert_ok(lora_pool_evict(f.pool, &f.adapters[0]->content, &err), err); /* isn't here */
    assert_true(lora_pool_pin(f.pool, f.adapters[0], NULL, &pin));
    assert_int_equal(lora_pool_evict(f.pool, &f.adapters[0]->content, &err), -1);
    assert_int_equal(err.code, ERR_BUSY);
    lora_pool_unpin(f.pool, pin);
    assert_ok(lora_pool_evict(f.pool, &f.adapters[0]->content, &err), err);
    lora_pool_stats(f.pool, &stats);
    assert_int_equal(stats.bytes_used, 0);
    assert_false(is_here(&f, f.adapters[0]));
    fixture_close(&f);
}

struct held {
    int now, begun;
};

static void hold(void *context, void *owner)
{
    (void)context;
    struct held *h = owner;
    h->now++;
    h->begun++;
}

static void let_go(void *context, void *owner)
{
    (void)context;
    struct held *h = owner;
    h->now--;
}

static void an_adapter_on_its_way_has_its_owner_held_and_is_not_evicted(void **state)
{
    (void)state;
    struct pool_fixture f;
    struct held held = {0};
    struct lora_pin pin;
    struct err err = {0};
    fixture_open(&f, 1 << 20, 8);
    lora_pool_set_owners(f.pool, &(struct lora_pool_owners){hold, let_go, NULL});
    assert_true(lora_pool_pin(f.pool, f.adapters[0], &held, &pin));
    assert_int_equal(held.now, 1);
    lora_pool_unpin(f.pool, pin);
    struct lora_place place;
    lora_pool_look(f.pool, &f.adapters[0]->content, &place);
    assert_true(place.is_here && place.is_loading && !place.is_pinned && !place.is_kept);
    lora_pool_poll(f.pool);
    assert_int_equal(held.now, 0);
    assert_true(lora_pool_pin(f.pool, f.adapters[0], &held, &pin)); /* is here: nothing begins */
    assert_int_equal(held.begun, 1);
    lora_pool_unpin(f.pool, pin);
    assert_ok(lora_pool_evict(f.pool, &f.adapters[0]->content, &err), err);
    assert_true(lora_pool_prefetch(f.pool, f.adapters[0], &held, false));
    assert_int_equal(held.now, 1);
    lora_pool_clear(f.pool); /* waits for it */
    assert_int_equal(held.now, 0);
    assert_false(is_here(&f, f.adapters[0]));
    fixture_close(&f);
}

static void every_filling_of_a_slot_has_its_own_generation(void **state)
{
    (void)state;
    struct pool_fixture f;
    struct lora_pin first, second, third;
    fixture_open(&f, 1 << 20, 1);
    assert_true(lora_pool_pin(f.pool, f.adapters[0], NULL, &first));
    lora_pool_unpin(f.pool, first);
    assert_true(lora_pool_pin(f.pool, f.adapters[1], NULL, &second));
    lora_pool_unpin(f.pool, second);
    assert_true(lora_pool_pin(f.pool, f.adapters[0], NULL, &third));
    assert_int_equal(first.slot, second.slot);
    assert_true(first.generation != second.generation && first.generation != third.generation);
    assert_holds(&f, third.slot, f.adapters[0]);
    lora_pool_unpin(f.pool, third);
    fixture_close(&f);
}

struct stale {
    struct pool_fixture *f;
    struct lora_pin pin;
    int content;
};

static void check_stale(void *context)
{
    struct stale *s = context;
    lora_pool_check(s->f->pool, s->pin, &s->f->adapters[s->content]->content);
}

static void a_reused_slot_cannot_be_read_with_the_old_pin(void **state)
{
    (void)state;
    struct pool_fixture f;
    struct lora_pin old, now;
    fixture_open(&f, 1 << 20, 1);
    assert_true(lora_pool_pin(f.pool, f.adapters[0], NULL, &old));
    lora_pool_unpin(f.pool, old);
    assert_true(lora_pool_pin(f.pool, f.adapters[1], NULL, &now));
    lora_pool_check(f.pool, now, &f.adapters[1]->content);
    assert_aborts("old pin, old content", check_stale, &(struct stale){&f, old, 0});
    assert_aborts("old pin, new content", check_stale, &(struct stale){&f, old, 1});
    assert_aborts("new pin, old content", check_stale, &(struct stale){&f, now, 0});
    lora_pool_unpin(f.pool, now);
    assert_aborts("no pin at all", check_stale, &(struct stale){&f, now, 1});
    fixture_close(&f);
}

static void adapters_of_all_sizes_come_and_go_and_always_hold_their_numbers(void **state)
{
    (void)state;
    struct pool_fixture f;
    fixture_open(&f, 1, 1); /* to learn the sizes */
    size_t n_bytes = f.adapters[5]->n_bytes + f.adapters[4]->n_bytes + f.adapters[0]->n_bytes;
    fixture_close(&f);
    fixture_open(&f, n_bytes, 8);
    struct lora_pin pins[RANKS];
    bool pinned[RANKS] = {false};
    uint32_t random = 7;
    int n_refused = 0, n_pinned = 0;
    for (int step = 0; step < 3000; step++) {
        random = random * 1664525u + 1013904223u;
        int i = (int)(random >> 10) % RANKS;
        if (pinned[i]) {
            assert_holds(&f, pins[i].slot, f.adapters[i]);
            lora_pool_check(f.pool, pins[i], &f.adapters[i]->content);
            lora_pool_unpin(f.pool, pins[i]);
            pinned[i] = false;
        } else if (lora_pool_pin(f.pool, f.adapters[i], NULL, &pins[i])) {
            pinned[i] = true;
            n_pinned++;
            for (int j = 0; j < RANKS; j++)
                if (pinned[j])
                    assert_holds(&f, pins[j].slot, f.adapters[j]);
        } else {
            n_refused++;
        }
    }
    struct lora_pool_stats stats;
    lora_pool_stats(f.pool, &stats);
    assert_true(n_refused > 10 && n_pinned > 500 && stats.n_evictions > 100);
    assert_true(stats.bytes_used <= stats.bytes_total);
    for (int i = 0; i < RANKS; i++)
        if (pinned[i])
            lora_pool_unpin(f.pool, pins[i]);
    /* With nothing pinned, whatever fits at all fits. */
    assert_true(lora_pool_pin(f.pool, f.adapters[5], NULL, &pins[5]));
    assert_true(lora_pool_pin(f.pool, f.adapters[4], NULL, &pins[4]));
    lora_pool_unpin(f.pool, pins[5]);
    lora_pool_unpin(f.pool, pins[4]);
    fixture_close(&f);
}

/* Adapter 2 alone in the middle: 5 then fits on neither side, though the bytes would do. */
static void a_cleared_pool_takes_what_its_bytes_allow(void **state)
{
    (void)state;
    struct pool_fixture f;
    struct lora_pin pins[RANKS];
    fixture_open(&f, 1, 1); /* to learn the sizes */
    size_t n_bytes = f.adapters[5]->n_bytes + f.adapters[2]->n_bytes;
    fixture_close(&f);
    fixture_open(&f, n_bytes, 8);
    assert_true(lora_pool_pin(f.pool, f.adapters[0], NULL, &pins[0]));
    assert_true(lora_pool_pin(f.pool, f.adapters[2], NULL, &pins[2]));
    lora_pool_unpin(f.pool, pins[0]);
    lora_pool_unpin(f.pool, pins[2]);
    lora_pool_clear(f.pool);
    assert_false(lora_pool_is_resident(f.pool, &f.adapters[2]->content));
    assert_true(lora_pool_pin(f.pool, f.adapters[2], NULL, &pins[2]));
    assert_true(lora_pool_pin(f.pool, f.adapters[5], NULL, &pins[5]));
    assert_holds(&f, pins[2].slot, f.adapters[2]);
    assert_holds(&f, pins[5].slot, f.adapters[5]);
    lora_pool_clear(f.pool); /* takes nothing that is pinned */
    assert_holds(&f, pins[5].slot, f.adapters[5]);
    lora_pool_unpin(f.pool, pins[2]);
    lora_pool_unpin(f.pool, pins[5]);
    fixture_close(&f);
}

static void ranks_are_true_in_the_pool_and_cost_what_they_are(void **state)
{
    (void)state;
    struct pool_fixture f;
    struct lora_pin pin;
    fixture_open(&f, 1 << 20, 4);
    struct lora_pool_stats stats;
    for (int i = 0; i < 2; i++) {
        lora_pool_stats(f.pool, &stats);
        size_t before = stats.bytes_used;
        assert_true(lora_pool_pin(f.pool, f.adapters[i * 5], NULL, &pin));
        lora_pool_stats(f.pool, &stats);
        assert_int_equal(stats.bytes_used - before, f.adapters[i * 5]->n_bytes);
        lora_pool_unpin(f.pool, pin);
    }
    assert_true(f.adapters[0]->n_bytes < f.adapters[5]->n_bytes);
    fixture_close(&f);
}

/* ---- bricks ------------------------------------------------------------------------------ */

static struct lora_bricks bricks_of(const struct pool_fixture *f)
{
    const struct judge_costs costs = {.byte_s = 1, .fixed_s = 0};
    struct lora_bricks b;
    lora_pool_look_at_bricks(f->pool, &costs, &b);
    return b;
}

static size_t bytes_total(const struct pool_fixture *f)
{
    struct lora_pool_stats s;
    lora_pool_stats(f->pool, &s);
    return s.bytes_total;
}

static void bricks_that_hold_nothing_in_use_can_be_given_and_come_back(void **state)
{
    enum { BRICK = 8192 };
    (void)state;
    struct pool_fixture f;
    struct err err = {0};
    struct lora_pin pin;
    struct lora_pool_stats s;
    struct lora_adapter *large[3]; /* about two bricks each */
    fixture_open_region(
        &f, (struct lora_region){.brick_bytes = BRICK, .n_bricks = 6, .n_bricks_max = 9}, 8);
    for (int i = 0; i < 3; i++)
        large[i] = lora_random(&f.model, 5, DTYPE_BF16, 100 + (uint64_t)i);
    size_t n_bytes = large[0]->n_bytes;
    assert_true(n_bytes > BRICK && n_bytes < 2 * BRICK);
    assert_int_equal(bytes_total(&f), 6 * BRICK);
    assert_int_equal(bricks_of(&f).n_idle, 6);
    assert_int_equal(bricks_of(&f).cheapest, 5); /* nothing is anywhere: the last */

    pin_and_unpin(&f, large[0], 3); /* in bricks 0 and 1, then ... */
    pin_and_unpin(&f, large[1], 1);
    assert_true(lora_pool_pin(f.pool, large[2], NULL, &pin));
    size_t pinned_first = 2 * n_bytes / BRICK, pinned_last = (3 * n_bytes - 1) / BRICK;
    assert_int_equal(bricks_of(&f).n_idle, 6 - (pinned_last - pinned_first + 1));
    lora_pool_poll(f.pool);
    lora_pool_give_brick(f.pool, 5);
    assert_int_equal(bytes_total(&f), 5 * BRICK);
    assert_true(is_here(&f, large[0]) && is_here(&f, large[1]));
    struct lora_bricks b = bricks_of(&f); /* [1] was used less than [0] */
    assert_true(b.cheapest >= (int)(n_bytes / BRICK) && b.loss > 0 && isfinite(b.loss));
    lora_pool_give_brick(f.pool, b.cheapest);
    assert_true(is_here(&f, large[0]) && !is_here(&f, large[1]) && is_here(&f, large[2]));
    assert_int_equal(bytes_total(&f), 4 * BRICK);
    lora_pool_stats(f.pool, &s);
    assert_int_equal(s.bytes_used,
                     2 * ((n_bytes + LORA_ALIGN_BYTES - 1) / LORA_ALIGN_BYTES * LORA_ALIGN_BYTES));
    assert_holds(&f, lora_pool_slot(f.pool, &large[0]->content), large[0]);
    assert_holds(&f, pin.slot, large[2]);

    lora_pool_keep(f.pool, &large[0]->content, true, &err);
    b = bricks_of(&f);
    for (int i = 0; b.n_idle > 0; i++, b = bricks_of(&f)) { /* what is pinned or kept stays */
        assert_true(i < 9);
        lora_pool_give_brick(f.pool, b.cheapest);
    }
    assert_true(is_here(&f, large[0]) && is_here(&f, large[2]) && isinf(b.loss));
    assert_int_equal(b.cheapest, -1);
    while (bytes_total(&f) < 9 * BRICK)
        lora_pool_get_brick(f.pool);
    pin_and_unpin(&f, large[1], 1);
    for (int i = 0; i < 3; i++)
        assert_holds(&f, lora_pool_slot(f.pool, &large[i]->content), large[i]);
    lora_pool_unpin(f.pool, pin);
    fixture_close(&f);
    for (int i = 0; i < 3; i++)
        lora_close(large[i]);
}

static void a_cleared_region_of_bricks_is_one_piece(void **state)
{
    enum { BRICK = 8192 };
    (void)state;
    struct pool_fixture f;
    struct lora_pin pin;
    struct lora_adapter *whole = NULL;
    fixture_open_region(
        &f, (struct lora_region){.brick_bytes = BRICK, .n_bricks = 6, .n_bricks_max = 9}, 8);
    lora_pool_give_brick(f.pool, 1);
    lora_pool_give_brick(f.pool, 3);
    whole = lora_random(&f.model, 16, DTYPE_BF16, 5);
    assert_true(whole->n_bytes > 3 * BRICK && whole->n_bytes <= 4 * BRICK);
    lora_pool_clear(f.pool);
    assert_int_equal(bytes_total(&f), 4 * BRICK);
    assert_true(lora_pool_pin(f.pool, whole, NULL, &pin));
    lora_pool_poll(f.pool);
    assert_holds(&f, pin.slot, whole);
    lora_pool_get_brick(f.pool);
    assert_int_equal(bricks_of(&f).cheapest, 4); /* the four in front are in use */
    lora_pool_unpin(f.pool, pin);
    fixture_close(&f);
    lora_close(whole);
}

static void an_owner_is_found_while_its_adapter_is_here(void **state)
{
    (void)state;
    struct pool_fixture f;
    struct err err = {0};
    uint64_t owner;
    fixture_open(&f, 1 << 20, 8);
    memcpy(&owner, f.adapters[2]->content.bytes, sizeof owner);
    assert_false(lora_pool_has_owner(f.pool, owner));
    pin_and_unpin(&f, f.adapters[2], 1);
    assert_true(lora_pool_has_owner(f.pool, owner));
    lora_pool_poll(f.pool);
    assert_ok(lora_pool_evict(f.pool, &f.adapters[2]->content, &err), err);
    assert_false(lora_pool_has_owner(f.pool, owner));
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_are_given_once_until_their_last_reference_is_dropped),
        cmocka_unit_test(dropping_a_free_block_is_a_bug),
        cmocka_unit_test(the_lowest_free_block_is_taken),
        cmocka_unit_test(the_pool_grows_and_shrinks_at_its_end_and_moves_what_is_used_there),
        cmocka_unit_test(a_piece_can_be_taken_where_it_is_wanted_if_it_is_free),
        cmocka_unit_test(bricks_that_hold_nothing_in_use_can_be_given_and_come_back),
        cmocka_unit_test(a_cleared_region_of_bricks_is_one_piece),
        cmocka_unit_test(an_owner_is_found_while_its_adapter_is_here),
        cmocka_unit_test(the_heap_takes_the_smallest_span_that_fits_and_joins_neighbours),
        cmocka_unit_test(random_taking_and_giving_never_overlaps_and_ends_whole),
        cmocka_unit_test(of_equals_the_least_recently_pinned_leaves_and_pinned_ones_stay),
        cmocka_unit_test(the_one_worth_least_leaves_first),
        cmocka_unit_test(an_adapter_that_was_popular_once_leaves_in_the_end),
        cmocka_unit_test(a_promised_adapter_stays_until_its_pin_or_until_it_is_forgotten),
        cmocka_unit_test(promises_take_a_quarter_of_the_pool_at_most),
        cmocka_unit_test(what_is_kept_and_pinned_leaves_the_rest_to_be_brought_in),
        cmocka_unit_test(kept_adapters_stay_and_are_half_of_the_pool_at_most),
        cmocka_unit_test(taking_an_adapter_off_by_hand_frees_its_bytes_unless_it_is_pinned),
        cmocka_unit_test(an_adapter_on_its_way_has_its_owner_held_and_is_not_evicted),
        cmocka_unit_test(every_filling_of_a_slot_has_its_own_generation),
        cmocka_unit_test(a_reused_slot_cannot_be_read_with_the_old_pin),
        cmocka_unit_test(adapters_of_all_sizes_come_and_go_and_always_hold_their_numbers),
        cmocka_unit_test(a_cleared_pool_takes_what_its_bytes_allow),
        cmocka_unit_test(ranks_are_true_in_the_pool_and_cost_what_they_are),
    };
    return cmocka_run_group_tests_name("pools", tests, NULL, NULL);
}
