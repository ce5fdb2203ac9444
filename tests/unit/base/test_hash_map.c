/* hash_map against a table that walks. */
#include "tests/support.h"

#include "node/base/hash_map.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { N = 3000 };

struct one {
    char key[24];
    bool in;
};

static void puts_and_removals_in_any_order_leave_what_a_walk_would(void **state)
{
    (void)state;
    static struct one ones[N];
    struct hash_map m = HASH_MAP_INIT;
    size_t n_in = 0;
    uint32_t random = 1;
    for (int i = 0; i < N; i++)
        snprintf(ones[i].key, sizeof ones[i].key, "%s%d", i % 3 == 0 ? "adapter-" : "a", i);
    for (int turn = 0; turn < 60000; turn++) {
        random = random * 1664525 + 1013904223;
        /* Few at first, so that the table is small and wraps around; then many. */
        struct one *o = &ones[(random >> 8) % (turn < 20000 ? 40 : N)];
        size_t n = strlen(o->key);
        assert_ptr_equal(hash_map_get(&m, o->key, n), o->in ? o : NULL);
        if (random >> 31) {
            assert_ptr_equal(hash_map_put(&m, o->key, n, o), o->in ? o : NULL);
            n_in += !o->in;
            o->in = true;
        } else {
            assert_ptr_equal(hash_map_remove(&m, o->key, n), o->in ? o : NULL);
            n_in -= o->in;
            o->in = false;
        }
        assert_int_equal(m.n, n_in);
    }
    size_t at = 0, seen = 0;
    for (struct one *o; (o = hash_map_next(&m, &at)) != NULL; seen++)
        assert_true(o->in);
    assert_int_equal(seen, n_in);
    for (int i = 0; i < N; i++)
        assert_ptr_equal(hash_map_get(&m, ones[i].key, strlen(ones[i].key)),
                         ones[i].in ? &ones[i] : NULL);
    hash_map_release(&m);
    assert_null(hash_map_get(&m, "a", 1));
    assert_null(hash_map_remove(&m, "a", 1));
}

static void keys_are_bytes_and_their_length_counts(void **state)
{
    (void)state;
    struct hash_map m = HASH_MAP_INIT;
    static const uint8_t zeros[40] = {0};
    int values[41];
    for (size_t n = 0; n <= 40; n++)
        assert_null(hash_map_put(&m, zeros, n, &values[n]));
    for (size_t n = 0; n <= 40; n++)
        assert_ptr_equal(hash_map_get(&m, zeros, n), &values[n]);
    assert_ptr_equal(hash_map_put(&m, zeros, 7, &values[0]), &values[7]);
    assert_int_equal(m.n, 41);
    hash_map_release(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(puts_and_removals_in_any_order_leave_what_a_walk_would),
        cmocka_unit_test(keys_are_bytes_and_their_length_counts),
    };
    return cmocka_run_group_tests_name("hash_map", tests, NULL, NULL);
}
