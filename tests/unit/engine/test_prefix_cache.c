/* The prefix cache without an engine: keys, order of eviction, references. */
#include "engine/kv_pool.h"
#include "engine/prefix_cache.h"
#include "kernels/ops.h"
#include "node/base/clock.h"
#include "tests/support.h"

#include <string.h>

/* ---- keys -------------------------------------------------------------------------------- */

static const struct prefix_secret SECRET = {{7}};
static const struct prefix_adapter A = {{{1, 2}}, 1}, B = {{{1, 3}}, 1}, A_HALF = {{{1, 2}}, 0.5f},
                                   A_MINUS = {{{1, 2}}, -1};

static void assert_same(bool same, struct prefix_key a, struct prefix_key b)
{
    assert_int_equal(DIGEST_EQ(a, b), same);
}

static void a_root_is_of_adapters_weights_order_and_secret(void **state)
{
    (void)state;
    static const struct {
        struct prefix_adapter adapters[2];
        int n;
    } sets[] = {{{A}, 0},       {{A}, 1},    {{B}, 1},    {{A_HALF}, 1},
                {{A_MINUS}, 1}, {{A, B}, 2}, {{B, A}, 2}, {{A_HALF, B}, 2}};
    enum { N = sizeof sets / sizeof sets[0] };
    const struct prefix_secret other = {{8}};
    for (int i = 0; i < N; i++) {
        struct prefix_key key = prefix_key_root(&SECRET, sets[i].adapters, sets[i].n);
        for (int k = 0; k < N; k++)
            assert_same(i == k, key, prefix_key_root(&SECRET, sets[k].adapters, sets[k].n));
        assert_same(false, key, prefix_key_root(&other, sets[i].adapters, sets[i].n));
    }
}

static void a_block_s_key_is_of_everything_before_it_and_each_of_its_tokens(void **state)
{
    (void)state;
    int32_t tokens[BLOCK_TOKENS] = {0};
    struct prefix_key root = prefix_key_root(&SECRET, NULL, 0);
    struct prefix_key under_a = prefix_key_root(&SECRET, &A, 1);
    struct prefix_key first = prefix_key_block(&root, tokens);
    assert_same(true, first, prefix_key_block(&root, tokens));
    assert_same(false, first, prefix_key_block(&under_a, tokens));
    assert_same(false, first, prefix_key_block(&first, tokens)); /* the same tokens, later */
    for (int i = 0; i < BLOCK_TOKENS; i++) {
        tokens[i] = 1;
        assert_same(false, first, prefix_key_block(&root, tokens));
        tokens[i] = 0;
    }
}

static void making_a_key_takes_microseconds(void **state)
{
    (void)state;
    enum { N = 20000 };
    int32_t tokens[BLOCK_TOKENS] = {0};
    struct prefix_key key = prefix_key_root(&SECRET, NULL, 0);
    struct monotonic_us begin = clock_monotonic_us();
    for (int i = 0; i < N; i++)
        key = prefix_key_block(&key, tokens);
    double us = (double)clock_elapsed_us(begin, clock_monotonic_us()) / N;
    print_message("note: a block's key takes %.2f us\n", us);
    assert_false(bytes32_is_zero(key.bytes));
    assert_true(us < 50); /* a machine that is busy and without SHA instructions */
}

/* ---- use and eviction -------------------------------------------------------------------- */

enum { BLOCKS = 8 };

struct fixture {
    struct kv_pool *kv;
    struct prefix_cache *cache;
};

static void open_fixture(struct fixture *f, int n_blocks)
{
    f->kv = kv_pool_create(n_blocks, n_blocks);
    f->cache = prefix_cache_create(f->kv);
}

static void close_fixture(struct fixture *f)
{
    prefix_cache_free(f->cache);
    assert_int_equal(kv_pool_n_free(f->kv), kv_pool_n_blocks(f->kv));
    kv_pool_free(f->kv);
}

static struct prefix_key key_of(int n)
{
    struct prefix_key key = {{0}};
    memcpy(key.bytes, &n, sizeof n);
    return key;
}

/* A sequence whose n blocks get the keys first, first + 1 ... and are all full. */
static void run_sequence(struct fixture *f, int first, int n, uint64_t owner, int32_t *blocks)
{
    for (int i = 0; i < n; i++) {
        struct prefix_key key = key_of(first + i);
        if (kv_pool_n_free(f->kv) == 0)
            prefix_cache_evict(f->cache);
        blocks[i] = prefix_cache_put(f->cache, &key, owner, kv_pool_take(f->kv));
    }
}

static void end_sequence(struct fixture *f, const int32_t *blocks, int n)
{
    while (n-- > 0)
        prefix_cache_drop(f->cache, blocks[n]);
}

static bool has(const struct fixture *f, int key)
{
    struct prefix_key k = key_of(key);
    return prefix_cache_find(f->cache, &k) >= 0;
}

static void assert_has(const struct fixture *f, const char *what, const int *keys, int n_max)
{
    for (int key = 1; key <= n_max; key++) {
        bool listed = false;
        for (int i = 0; keys[i] != 0; i++)
            listed |= keys[i] == key;
        if (has(f, key) != listed)
            fail_msg("%s: block %d is %s", what, key, listed ? "gone" : "there");
    }
}

static void what_was_used_least_recently_goes_first_and_leaves_before_parents(void **state)
{
    (void)state;
    struct fixture f;
    int32_t a[3], b[3];
    open_fixture(&f, BLOCKS);
    run_sequence(&f, 1, 3, 0, a);
    run_sequence(&f, 4, 3, 0, b);
    end_sequence(&f, a, 3);
    end_sequence(&f, b, 3);
    assert_int_equal(prefix_cache_n_idle(f.cache), 6);
    assert_int_equal(kv_pool_n_free(f.kv), 2);
    prefix_cache_take(f.cache, a[0]); /* a's beginning is used again */
    prefix_cache_drop(f.cache, a[0]);
    static const int left[][7] = {{1, 2, 4, 5, 6}, {1, 4, 5, 6}, {1, 4, 5}, {1, 4}, {1}, {0}};
    for (size_t i = 0; i < sizeof left / sizeof left[0]; i++) {
        prefix_cache_evict(f.cache);
        assert_has(&f, "evicting", left[i], 6);
    }
    assert_int_equal(prefix_cache_n_blocks(f.cache), 0);
    close_fixture(&f);
}

static void what_is_in_use_is_not_evicted(void **state)
{
    (void)state;
    struct fixture f;
    int32_t used[4], other[4];
    open_fixture(&f, BLOCKS);
    run_sequence(&f, 1, 4, 0, used);
    for (int i = 0; i < 5; i++) {
        run_sequence(&f, 10 + 4 * i, 4, 0, other);
        end_sequence(&f, other, 4);
        assert_has(&f, "in use", (int[]){1, 2, 3, 4, 0}, 9);
        assert_int_equal(prefix_cache_n_users(f.cache, used[2]), 1);
    }
    assert_int_equal(prefix_cache_n_blocks(f.cache), BLOCKS);
    end_sequence(&f, used, 4);
    close_fixture(&f);
}

static void of_two_blocks_with_the_same_key_one_is_kept_and_used_by_both(void **state)
{
    (void)state;
    struct fixture f;
    int32_t a[2], b[2];
    open_fixture(&f, BLOCKS);
    run_sequence(&f, 1, 2, 0, a);
    run_sequence(&f, 1, 2, 0, b);
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(kv_pool_n_free(f.kv), BLOCKS - 2);
    assert_int_equal(prefix_cache_n_users(f.cache, a[1]), 2);
    end_sequence(&f, a, 2);
    assert_int_equal(prefix_cache_n_idle(f.cache), 0);
    end_sequence(&f, b, 2);
    assert_int_equal(prefix_cache_n_idle(f.cache), 2);
    run_sequence(&f, 1, 2, 0, b); /* computed again, although an idle one was there */
    assert_memory_equal(a, b, sizeof a);
    assert_int_equal(prefix_cache_n_idle(f.cache), 0);
    end_sequence(&f, b, 2);
    close_fixture(&f);
}

static void blocks_of_an_adapter_that_left_go_before_older_ones(void **state)
{
    (void)state;
    struct fixture f;
    int32_t base[2], a[3], b[2];
    uint64_t owner_a = prefix_owner(&A.content), owner_b = prefix_owner(&B.content);
    assert_true(owner_a != owner_b && owner_a != 0);
    open_fixture(&f, BLOCKS);
    run_sequence(&f, 1, 2, 0, base);
    end_sequence(&f, base, 2);
    run_sequence(&f, 3, 3, owner_a, a);
    end_sequence(&f, a, 3);
    run_sequence(&f, 6, 2, owner_b, b);
    end_sequence(&f, b, 2);
    prefix_cache_disown(f.cache, &owner_a, 1);
    prefix_cache_evict(f.cache);
    assert_has(&f, "first", (int[]){1, 2, 3, 4, 6, 7, 0}, 7);
    prefix_cache_take(f.cache, a[0]); /* it came back: the common order counts again */
    prefix_cache_drop(f.cache, a[0]);
    prefix_cache_evict(f.cache); /* what nobody used again since */
    assert_has(&f, "second", (int[]){1, 2, 3, 6, 7, 0}, 7);
    prefix_cache_evict(f.cache);
    prefix_cache_evict(f.cache);
    assert_has(&f, "then", (int[]){3, 6, 7, 0}, 7);
    close_fixture(&f);
}

/* ---- random ------------------------------------------------------------------------------ */

enum { SEQS = 6, CHAIN = 6, POOL = 30, TREES = 4 };

static uint32_t next_random(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;
}

/* Sequences walk down trees in which every block has two that may follow: key = 1, 2 * key, 2 * key
 * + 1, in a tree of its own for each owner. */
static void whatever_is_taken_and_dropped_the_cache_holds_whole_chains_and_true_counts(void **state)
{
    (void)state;
    struct fixture f;
    struct {
        int32_t blocks[CHAIN];
        int n, key, owner;
    } seqs[SEQS] = {{.n = 0}};
    uint32_t random = 11;
    int n_reused = 0;
    open_fixture(&f, POOL);
    for (int step = 0; step < 30000; step++) {
        int s = (int)(next_random(&random) % SEQS), n_taken = 0, users[POOL] = {0};
        if (seqs[s].n == 0) { /* begin: a new walk, first along what is there */
            seqs[s].owner = (int)(next_random(&random) % TREES);
            seqs[s].key = 1;
        }
        if (seqs[s].n < CHAIN && next_random(&random) % 8 != 0) {
            int tagged = seqs[s].key | seqs[s].owner << 16;
            struct prefix_key key = key_of(tagged);
            int32_t block = prefix_cache_find(f.cache, &key);
            if (block >= 0 && next_random(&random) % 4 != 0) {
                prefix_cache_take(f.cache, block);
                n_reused++;
            } else {
                if (kv_pool_n_free(f.kv) == 0 && prefix_cache_n_idle(f.cache) == 0)
                    continue;
                if (kv_pool_n_free(f.kv) == 0)
                    prefix_cache_evict(f.cache);
                block = prefix_cache_put(f.cache, &key, (uint64_t)seqs[s].owner,
                                         kv_pool_take(f.kv));
            }
            seqs[s].blocks[seqs[s].n++] = block;
            seqs[s].key = 2 * seqs[s].key + (int)(next_random(&random) % 2);
        } else {
            end_sequence(&f, seqs[s].blocks, seqs[s].n);
            seqs[s].n = 0;
        }
        if (next_random(&random) % 64 == 0) {
            uint64_t owner = 1 + next_random(&random) % (TREES - 1);
            prefix_cache_disown(f.cache, &owner, 1);
        }
        for (s = 0; s < SEQS; s++)
            for (int i = 0; i < seqs[s].n; i++)
                n_taken += users[seqs[s].blocks[i]]++ == 0;
        for (int b = 0; b < POOL; b++)
            assert_int_equal(prefix_cache_n_users(f.cache, b), users[b]);
        assert_int_equal(kv_pool_n_free(f.kv) + prefix_cache_n_idle(f.cache), POOL - n_taken);
        assert_int_equal(prefix_cache_n_blocks(f.cache), POOL - kv_pool_n_free(f.kv));
        for (int owner = 0; owner < TREES; owner++)
            for (int key = 2; key < 1 << CHAIN; key++)
                if (has(&f, key | owner << 16) && !has(&f, key / 2 | owner << 16))
                    fail_msg("step %d: block %d is there without the one before it", step, key);
    }
    assert_true(n_reused > 3000);
    for (int s = 0; s < SEQS; s++)
        end_sequence(&f, seqs[s].blocks, seqs[s].n);
    close_fixture(&f);
}

/* ---- judged and moved -------------------------------------------------------------------- */

static void idle_blocks_are_listed_as_they_would_be_evicted(void **state)
{
    (void)state;
    struct fixture f;
    int32_t blocks[3][2];
    open_fixture(&f, 8);
    for (int i = 0; i < 3; i++) {
        prefix_cache_tick(f.cache, 10 * (uint64_t)i);
        run_sequence(&f, 1 + 2 * i, 2, 7 + (uint64_t)i, blocks[i]);
        end_sequence(&f, blocks[i], 2);
    }
    prefix_cache_tick(f.cache, 30);
    prefix_cache_take(f.cache, blocks[0][0]); /* found again, and idle since now */
    prefix_cache_drop(f.cache, blocks[0][0]);
    prefix_cache_tick(f.cache, 31);
    const uint64_t gone = 9;
    prefix_cache_disown(f.cache, &gone, 1);
    const struct {
        int32_t block;
        struct prefix_idle idle;
    } expected[] = {
        {blocks[2][1], {9, true, 0, 11}},  {blocks[2][0], {9, true, 0, 11}},
        {blocks[0][1], {7, false, 0, 31}}, {blocks[1][1], {8, false, 0, 21}},
        {blocks[1][0], {8, false, 0, 21}}, {blocks[0][0], {7, false, 1, 1}},
    };
    int32_t block = -1;
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; i++) {
        struct prefix_idle got;
        block = prefix_cache_next_idle(f.cache, block);
        assert_int_equal(block, expected[i].block);
        prefix_cache_look(f.cache, block, &got);
        if (got.owner != expected[i].idle.owner || got.disowned != expected[i].idle.disowned ||
            got.n_found != expected[i].idle.n_found || got.age != expected[i].idle.age)
            fail_msg("place %zu: owner %d, disowned %d, found %u times, idle for %d", i,
                     (int)got.owner, got.disowned, got.n_found, (int)got.age);
    }
    assert_int_equal(prefix_cache_next_idle(f.cache, block), -1);
    close_fixture(&f);
}

static void a_block_that_moves_stays_what_and_where_it_was(void **state)
{
    (void)state;
    static const int free_first[] = {0, 5}; /* ends of a list move as well as its middle */
    for (size_t k = 0; k < sizeof free_first / sizeof free_first[0]; k++) {
        struct fixture f;
        int32_t spare[5], blocks[3];
        open_fixture(&f, 10);
        for (int i = 0; i < 5; i++)
            spare[i] = kv_pool_take(f.kv);
        run_sequence(&f, 1, 3, 7, blocks);
        int32_t own = kv_pool_take(f.kv); /* of a sequence, not cached */
        prefix_cache_drop(f.cache, blocks[2]);
        if (free_first[k] > 0) {
            prefix_cache_drop(f.cache, blocks[1]);
            prefix_cache_drop(f.cache, blocks[0]);
        }
        for (int i = 0; i < 5; i++)
            kv_pool_drop(f.kv, spare[i]);
        int32_t all[] = {own, blocks[2], blocks[0], blocks[1]};
        for (int i = 0; i < 4; i++) {
            int32_t to = kv_pool_move(f.kv, all[i]);
            prefix_cache_move(f.cache, all[i], to);
            assert_true(to < 5 && kv_pool_references(f.kv, to) > 0);
            for (int b = 0; b < 3; b++)
                blocks[b] = blocks[b] == all[i] ? to : blocks[b];
            own = i == 0 ? to : own;
        }
        kv_pool_resize(f.kv, 5);
        for (int b = 0; b < 3; b++) {
            struct prefix_key key = key_of(1 + b);
            assert_int_equal(prefix_cache_find(f.cache, &key), blocks[b]);
        }
        assert_int_equal(prefix_cache_n_users(f.cache, blocks[2]), 0);
        assert_int_equal(prefix_cache_n_users(f.cache, blocks[0]), free_first[k] > 0 ? 0 : 1);
        kv_pool_drop(f.kv, own);
        if (free_first[k] == 0) {
            prefix_cache_drop(f.cache, blocks[1]);
            prefix_cache_drop(f.cache, blocks[0]);
        }
        for (int b = 2; b >= 0; b--) { /* leaves before parents, as ever */
            assert_int_equal(prefix_cache_next_idle(f.cache, -1), blocks[b]);
            prefix_cache_evict(f.cache);
        }
        close_fixture(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_root_is_of_adapters_weights_order_and_secret),
        cmocka_unit_test(a_block_s_key_is_of_everything_before_it_and_each_of_its_tokens),
        cmocka_unit_test(making_a_key_takes_microseconds),
        cmocka_unit_test(what_was_used_least_recently_goes_first_and_leaves_before_parents),
        cmocka_unit_test(what_is_in_use_is_not_evicted),
        cmocka_unit_test(idle_blocks_are_listed_as_they_would_be_evicted),
        cmocka_unit_test(a_block_that_moves_stays_what_and_where_it_was),
        cmocka_unit_test(of_two_blocks_with_the_same_key_one_is_kept_and_used_by_both),
        cmocka_unit_test(blocks_of_an_adapter_that_left_go_before_older_ones),
        cmocka_unit_test(
            whatever_is_taken_and_dropped_the_cache_holds_whole_chains_and_true_counts),
    };
    return cmocka_run_group_tests_name("prefix cache", tests, NULL, NULL);
}
