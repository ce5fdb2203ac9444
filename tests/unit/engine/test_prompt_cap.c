/* What prompts may have of a step, as tables and as a load that asks for more. */
#include "engine/prompt_cap.h"
#include "tests/support.h"

enum { MAX_ROWS = 2048 };

#define BUSY                                          \
    (struct prompt_cap_view)                          \
    {                                                 \
        .seen = true, .decodes = true, .queues = true \
    }

static struct prompt_cap of_mean(int mean)
{
    return (struct prompt_cap){.sum = (int64_t)mean * PROMPT_CAP_WINDOW};
}

static void prompts_are_capped_while_somebody_favoured_is_about_and_others_decode(void **state)
{
    static const struct {
        const char *what;
        int mean, n_plans, max_rows;
        struct prompt_cap_view view;
        int expected;
    } cases[] = {
        {"nobody is about", 200, 0, MAX_ROWS, {.decodes = true, .queues = true}, MAX_ROWS},
        {"somebody is there", 200, 0, MAX_ROWS, BUSY, 400},
        {"somebody was there lately", 200, 1, MAX_ROWS, {.decodes = true, .queues = true}, 400},
        {"nobody decodes", 200, 1, MAX_ROWS, {.seen = true, .queues = true}, MAX_ROWS},
        {"a sixteenth is for prompts in any case", 5, 0, MAX_ROWS, BUSY, 128},
        {"of small steps more than that", 5, 0, 512, BUSY, 64},
        {"and of smaller ones all", 5, 0, 48, BUSY, 48},
        {"without a queue a quarter", 200, 0, MAX_ROWS, {.seen = true, .decodes = true}, 512},
        {"or what the mean gives", 300, 0, MAX_ROWS, {.seen = true, .decodes = true}, 600},
        {"no more than there are", 1500, 0, MAX_ROWS, BUSY, MAX_ROWS},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct prompt_cap c = of_mean(cases[i].mean);
        c.n_plans = cases[i].n_plans;
        int n = prompt_cap_rows(&c, cases[i].max_rows, cases[i].view);
        if (n != cases[i].expected)
            fail_msg("%s: %d rows, expected %d", cases[i].what, n, cases[i].expected);
    }
}

static void who_was_there_is_about_for_so_many_plans(void **state)
{
    (void)state;
    struct prompt_cap c = prompt_cap_next(&(struct prompt_cap){0}, 0, true, false);
    struct prompt_cap_view gone = {.decodes = true, .queues = true};
    for (int i = 0; i < PROMPT_CAP_PLANS; i++) {
        assert_int_equal(prompt_cap_rows(&c, MAX_ROWS, gone), MAX_ROWS / PROMPT_CAP_PART);
        c = prompt_cap_next(&c, 0, false, false);
    }
    assert_int_equal(prompt_cap_rows(&c, MAX_ROWS, gone), MAX_ROWS);
    c = prompt_cap_next(&c, 0, false, false);
    assert_int_equal(c.n_plans, 0);
}

/* Whatever a load asks for, after a while it gets that, from any mean: nothing that binds stays. */
static void a_cap_that_binds_grows_until_it_no_longer_does(void **state)
{
    (void)state;
    for (int asked = 1; asked <= MAX_ROWS; asked += 89) {
        for (int mean = 0; mean <= MAX_ROWS; mean += MAX_ROWS / 2) {
            struct prompt_cap c = of_mean(mean);
            int n = 0, n_steps = 0;
            for (; n_steps < 4 * PROMPT_CAP_WINDOW; n_steps++) {
                int cap = prompt_cap_rows(&c, MAX_ROWS, BUSY);
                n = asked < cap ? asked : cap;
                c = prompt_cap_next(&c, n, true, false);
            }
            if (n != asked)
                fail_msg("%d rows of %d from a mean of %d", n, asked, mean);
        }
    }
}

/* Places for 32 sequences of 128 in and 64 out; who ends is followed by the next in a queue. They
 * all begin together, and without a cap would go on doing so. */
static void bursts_are_spread_and_places_stay_taken(void **state)
{
    enum { SEQS = 32, PROMPT = 128, ANSWER = 64, STEPS = 2000 };
    (void)state;
    struct prompt_cap c = {0};
    int left[SEQS], most = 0, n_decoding = 0;
    for (int i = 0; i < SEQS; i++)
        left[i] = ANSWER;
    for (int step = 0; step < STEPS; step++) {
        int cap = prompt_cap_rows(&c, MAX_ROWS, BUSY), n_rows = 0;
        for (int i = 0; i < SEQS; i++) {
            if (left[i] == 0 && n_rows + PROMPT <= cap) {
                left[i] = ANSWER + 1;
                n_rows += PROMPT;
            }
            n_decoding += left[i] > 0 && step >= STEPS / 2;
            left[i] -= left[i] > 0;
        }
        most = n_rows > most && step >= STEPS / 2 ? n_rows : most;
        c = prompt_cap_next(&c, n_rows, true, false);
    }
    assert_in_range(most, PROMPT, 2 * PROMPT);
    assert_in_range(n_decoding, SEQS * (STEPS / 2) * 98 / 100, SEQS * (STEPS / 2));
}

static void a_pause_is_not_the_second_in_a_row_and_leaves_the_mean(void **state)
{
    (void)state;
    struct prompt_cap c = of_mean(200);
    assert_true(prompt_cap_may_pause(&c, 400));
    assert_false(prompt_cap_may_pause(&c, 399)); /* the next step couldn't make up for it */
    struct prompt_cap paused = prompt_cap_next(&c, 0, true, true);
    assert_int_equal(paused.sum, c.sum);
    assert_false(prompt_cap_may_pause(&paused, 400));
    struct prompt_cap after = prompt_cap_next(&paused, 200, true, false);
    assert_int_equal(after.sum, c.sum);
    assert_true(prompt_cap_may_pause(&after, 400));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_are_capped_while_somebody_favoured_is_about_and_others_decode),
        cmocka_unit_test(who_was_there_is_about_for_so_many_plans),
        cmocka_unit_test(a_cap_that_binds_grows_until_it_no_longer_does),
        cmocka_unit_test(bursts_are_spread_and_places_stay_taken),
        cmocka_unit_test(a_pause_is_not_the_second_in_a_row_and_leaves_the_mean),
    };
    return cmocka_run_group_tests_name("prompt_cap", tests, NULL, NULL);
}
