/* The table of payers: counters, the level of those who come back, the door, what is forgotten. */
#include "engine/payers.h"
#include "tests/support.h"

#include <string.h>

enum { MAX_LIVE = 8, CREDIT = 100 };

/* One view: bits of `there` and of `waits` are places in held. */
static void view(struct payers *t, const int *held, unsigned there, unsigned waits)
{
    int n;
    payers_view_begin(t);
    for (int i = 0; i < MAX_LIVE; i++)
        if (there >> i & 1)
            payers_view_add(t, held[i], waits >> i & 1);
    payers_view_end(t, &n);
}

static void a_token_costs_less_the_more_weight_its_payer_has(void **state)
{
    (void)state;
    struct payers *t = payers_create(MAX_LIVE, CREDIT);
    int a = payers_hold(t, 1), b = payers_hold(t, 2);
    payers_set_weight(t, b, 4);
    payers_charge(t, a, 100);
    payers_charge(t, b, 100);
    assert_true(payers_counter(t, a) > 99.9 && payers_counter(t, a) < 100.1);
    assert_true(payers_counter(t, b) > 24.9 && payers_counter(t, b) < 25.1);
    payers_free(t);
}

static void who_comes_back_is_lifted_to_the_level_less_the_credit(void **state)
{
    (void)state;
    struct payers *t = payers_create(MAX_LIVE, CREDIT);
    int held[3] = {payers_hold(t, 1), payers_hold(t, 2), payers_hold(t, 3)};
    view(t, held, 3, 3); /* 0 and 1 wait */
    payers_charge(t, held[0], 5000);
    payers_charge(t, held[1], 4000);
    view(t, held, 7, 7); /* 2 begins to */
    assert_int_equal((int)payers_level(t), 4000);
    assert_int_equal((int)payers_counter(t, held[2]), 4000 - CREDIT);
    assert_int_equal((int)payers_counter(t, held[1]), 4000);
    view(t, held, 7, 7); /* that was no gift: it waited all the time since */
    assert_int_equal((int)payers_level(t), 4000);
    payers_charge(t, held[2], 50);
    view(t, held, 3, 3); /* gone for one view: it keeps what it has, being above */
    view(t, held, 7, 7);
    assert_int_equal((int)payers_counter(t, held[2]), 4000 - CREDIT + 50);
    payers_charge(t, held[2], 9000);
    view(t, held, 3, 3);
    view(t, held, 7, 7); /* who has had too much isn't forgiven */
    assert_int_equal((int)payers_counter(t, held[2]), 4000 - CREDIT + 9050);
    payers_free(t);
}

static void one_whose_adapter_is_on_its_way_waits_for_nothing_yet(void **state)
{
    (void)state;
    struct payers *t = payers_create(MAX_LIVE, CREDIT);
    int held[2] = {payers_hold(t, 1), payers_hold(t, 2)};
    view(t, held, 3, 1); /* 1 is loading: not waiting, as the view is told */
    view(t, held, 3, 1);
    payers_charge(t, held[0], 5000);
    view(t, held, 3, 1);
    assert_int_equal((int)payers_counter(t, held[1]), 0);
    assert_int_equal((int)payers_level(t), 5000); /* it doesn't hold the level down */
    view(t, held, 3, 3);
    assert_int_equal((int)payers_counter(t, held[1]), 5000 - CREDIT);
    payers_free(t);
}

static void with_nobody_waiting_the_level_is_of_those_who_run_and_never_falls(void **state)
{
    (void)state;
    struct payers *t = payers_create(MAX_LIVE, CREDIT);
    int held[3] = {payers_hold(t, 1), payers_hold(t, 2), payers_hold(t, 3)};
    view(t, held, 3, 0);
    payers_charge(t, held[0], 700);
    payers_charge(t, held[1], 900);
    view(t, held, 3, 0);
    assert_int_equal((int)payers_level(t), 700);
    view(t, held, 0, 0);
    view(t, held, 4, 0); /* one that has had nothing runs */
    view(t, held, 4, 0);
    assert_int_equal((int)payers_level(t), 700);
    payers_free(t);
}

/* One has had much while nobody waited, one who has had little runs beside it; a third who comes
 * then is no further ahead of the first than anybody may be. */
static void a_newcomer_has_no_claim_to_what_others_had_while_nobody_waited(void **state)
{
    (void)state;
    struct payers *t = payers_create(MAX_LIVE, CREDIT);
    int held[3] = {payers_hold(t, 1), payers_hold(t, 2), payers_hold(t, 3)};
    view(t, held, 3, 3);
    payers_charge(t, held[0], 100000);
    payers_charge(t, held[1], 50);
    view(t, held, 3, 0);
    view(t, held, 3, 0);
    view(t, held, 7, 5); /* 0 comes back, 2 is new */
    assert_int_equal((int)payers_counter(t, held[0]), 100000);
    assert_int_equal((int)payers_counter(t, held[2]), 100000 - CREDIT);
    view(t, held, 7, 7); /* nor has the one that had little */
    assert_int_equal((int)payers_counter(t, held[1]), 100000 - 2 * CREDIT);
    payers_free(t);
}

static void a_view_has_each_payer_once(void **state)
{
    (void)state;
    struct payers *t = payers_create(MAX_LIVE, CREDIT);
    int a = payers_hold(t, 7), b = payers_hold(t, 8), n;
    assert_int_equal(payers_hold(t, 7), a);
    payers_set_weight(t, b, 3);
    payers_charge(t, b, 30);
    payers_view_begin(t);
    assert_int_equal(payers_view_add(t, b, true), 0);
    assert_int_equal(payers_view_add(t, a, true), 1);
    assert_int_equal(payers_view_add(t, b, false), 0);
    const struct sched_payer *shown = payers_view_end(t, &n);
    assert_int_equal(n, 2);
    assert_int_equal((int)shown[0].counter, 10);
    assert_int_equal((int)shown[0].weight, 3);
    payers_free(t);
}

static void one_payer_cannot_fill_the_queue_against_others(void **state)
{
    (void)state;
    enum { PLACES = 90 };
    struct payers *t = payers_create(PLACES, CREDIT);
    int a = payers_hold(t, 1), n_a = 0, n_b = 0;
    for (int n_free = PLACES; payers_may_wait(t, a, n_free); n_free--, n_a++)
        payers_wait(t, a);
    assert_int_equal(n_a, PLACES); /* alone it can */
    for (int i = 0; i < n_a; i++)
        payers_go(t, a);
    int b = payers_hold(t, 2);
    for (n_a = 0; payers_may_wait(t, a, PLACES - n_a); n_a++)
        payers_wait(t, a);
    assert_int_equal(n_a, PLACES * PAYERS_QUEUE_PART / (PAYERS_QUEUE_PART + 1));
    for (; payers_may_wait(t, b, PLACES - n_a - n_b); n_b++)
        payers_wait(t, b);
    assert_true(n_b >= 8 && n_a + n_b < PLACES);
    assert_false(payers_may_wait(t, a, PLACES - n_a - n_b));
    payers_free(t);
}

static void a_payers_share_is_what_it_may_have_waiting_beside_others(void **state)
{
    (void)state;
    for (int places = 1; places < 300; places++) {
        struct payers *t = payers_create(places, CREDIT);
        int a = payers_hold(t, 1), n = 0;
        payers_hold(t, 2);
        for (; payers_may_wait(t, a, places - n); n++)
            payers_wait(t, a);
        if (n != payers_share(places))
            fail_msg("of %d places %d may wait, the share is %d", places, n, payers_share(places));
        payers_free(t);
    }
}

static void a_stream_of_payers_is_forgotten_but_not_whoever_has_had_much_or_is_there(void **state)
{
    (void)state;
    struct payers *t = payers_create(MAX_LIVE, CREDIT);
    int debtor = payers_hold(t, 1), there = payers_hold(t, 2);
    payers_charge(t, debtor, 1000000);
    payers_charge(t, there, 5);
    payers_drop(t, debtor);
    for (uint64_t id = 10; id < 10 + 20 * PAYERS_IDLE_MAX; id++) {
        int p = payers_hold(t, id << 20); /* ids may be alike */
        payers_charge(t, p, 1 + (int)(id % 7));
        payers_drop(t, p);
    }
    assert_true(payers_n_known(t) <= MAX_LIVE + PAYERS_IDLE_MAX);
    assert_int_equal(payers_hold(t, 2), there);
    assert_int_equal((int)payers_counter(t, there), 5);
    assert_int_equal((int)payers_counter(t, payers_hold(t, 1)), 1000000);
    payers_free(t);
}

/* A third of 1, added up as often as there are places, is less than so many times a third. */
static void
of_payers_who_have_had_the_same_some_are_forgotten_however_the_mean_is_rounded(void **state)
{
    (void)state;
    enum { N = MAX_LIVE + PAYERS_IDLE_MAX };
    for (int cost = 1; cost < 16; cost++) {
        struct payers *t = payers_create(MAX_LIVE, CREDIT);
        for (uint64_t id = 0; id < N; id++) {
            int p = payers_hold(t, id);
            payers_set_weight(t, p, 3);
            payers_charge(t, p, cost);
            payers_drop(t, p);
        }
        assert_int_equal(payers_n_known(t), N);
        payers_drop(t, payers_hold(t, N));
        assert_in_range(payers_n_known(t), 1, N - 1);
        payers_free(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_token_costs_less_the_more_weight_its_payer_has),
        cmocka_unit_test(who_comes_back_is_lifted_to_the_level_less_the_credit),
        cmocka_unit_test(one_whose_adapter_is_on_its_way_waits_for_nothing_yet),
        cmocka_unit_test(with_nobody_waiting_the_level_is_of_those_who_run_and_never_falls),
        cmocka_unit_test(a_newcomer_has_no_claim_to_what_others_had_while_nobody_waited),
        cmocka_unit_test(a_view_has_each_payer_once),
        cmocka_unit_test(one_payer_cannot_fill_the_queue_against_others),
        cmocka_unit_test(a_payers_share_is_what_it_may_have_waiting_beside_others),
        cmocka_unit_test(a_stream_of_payers_is_forgotten_but_not_whoever_has_had_much_or_is_there),
        cmocka_unit_test(
            of_payers_who_have_had_the_same_some_are_forgotten_however_the_mean_is_rounded),
    };
    return cmocka_run_group_tests_name("payers", tests, NULL, NULL);
}
