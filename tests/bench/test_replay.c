/* replay: its rig makes the adapters it says, and a measurement counts what was done. On `ref`, so
 * that the engine is the plainest one. */
#include "engine/bench.h"
#include "node/base/err.h"
#include "tests/bench/replay.h"
#include "tests/support.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static struct rig_spec spec_of(const char *adapters)
{
    struct rig_spec spec = {.shape = "tiny", .max_context = 64};
    struct err err = {0};
    assert_ok(rig_parse_classes(&spec, adapters, &err), err);
    return spec;
}

static void adapters_are_as_the_classes_say(void **state)
{
    (void)state;
    struct rig rig;
    struct err err = {0};
    struct rig_spec spec = spec_of("3:r8:qv,2:r4:all,1:r1:d");
    assert_int_equal(rig_count(&spec), 6);
    rig_init(&rig, "ref", 1, 1);
    assert_ok(rig_open(&rig, &spec, &err), err);
    /* tiny: q 32 to 32, k and v 32 to 16, o 32 to 32, gate and up 32 to 48, down 48 to 32; 2 layers
     * of bf16, so 4 bytes for each rank and each input or output */
    const size_t rank_bytes[] = {4 * (64 + 48), 4 * (64 + 48 + 48 + 64 + 80 + 80 + 80), 4 * 80};
    const int ranks[] = {8, 8, 8, 4, 4, 1}, classes[] = {0, 0, 0, 1, 1, 2};
    for (int i = 0; i < 6; i++) {
        struct engine_residency place;
        assert_ok(engine_adapter_residency(rig.engine, &rig.digests[i], &place, &err), err);
        assert_int_equal(place.rank_max, ranks[i]);
        assert_int_equal(rig.bytes[i], rank_bytes[classes[i]] * (size_t)ranks[i]);
        assert_true(fabs(rig.ranks[i] - (double)(rank_bytes[classes[i]] * (size_t)ranks[i]) /
                                            (double)rank_bytes[1]) < 1e-9);
        for (int k = 0; k < i; k++)
            assert_false(DIGEST_EQ(rig.digests[i], rig.digests[k]));
    }
    /* All fit, so all came to the device. */
    struct engine_stats stats;
    engine_stats(rig.engine, &stats);
    assert_int_equal(stats.n_adapters_resident, 6);
    rig_release(&rig);
}

static void a_set_folds_into_a_smaller_one_class_by_class(void **state)
{
    (void)state;
    struct rig rig = {.spec = spec_of("3:r8:qv,1:r4:all,2:r1:d")};
    struct rig_spec larger = spec_of("6:r8:qv,2:r4:all,5:r1:d");
    const int expected[] = {0, 1, 2, 0, 1, 2, 3, 3, 4, 5, 4, 5, 4};
    for (int i = 0; i < 13; i++)
        assert_int_equal(rig_fold(&rig, &larger, i), expected[i]);
    rig_divide(&larger, 3);
    assert_int_equal(larger.classes[0].n, 2);
    assert_int_equal(larger.classes[1].n, 1);
    assert_int_equal(larger.classes[2].n, 2);
}

static void classes_that_mean_nothing_are_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {"8",           "0:r8:qv",  "8:r0:qv",   "8:8:qv",
                                        "8:r8:",       "8:r8:x",   "8:r8:qv;1", "8:r8",
                                        "8:r2000:all", "8:r8:qv,x"};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        struct rig_spec spec = {.shape = "tiny"};
        struct err err = {0};
        if (rig_parse_classes(&spec, texts[i], &err) == 0)
            fail_msg("\"%s\" was taken", texts[i]);
    }
}

/* n requests of three streams, over `adapters` in a pool of n_pool. */
static void run_some(struct rig *rig, struct run_result *out, const char *adapters, int n_pool,
                     int n, int n_off)
{
    struct err err = {0};
    struct rig_spec spec = spec_of(adapters);
    spec.pool_adapters = n_pool;
    rig_init(rig, "ref", 1, 1);
    assert_ok(rig_open(rig, &spec, &err), err);
    rig->n_off = n_off;
    struct run_options o = {.row = "t",
                            .name = "test",
                            .seconds = 1000,
                            .n_requests = (uint64_t)n,
                            .n_groups = 1,
                            .groups = {{.name = "all",
                                        .n_streams = 3,
                                        .workload = {.seed = 1,
                                                     .n_adapters = rig_count(&spec),
                                                     .popularity = POPULARITY_DISTINCT,
                                                     .lengths = LENGTHS_FIXED,
                                                     .length_a = 5,
                                                     .length_b = 6}}}};
    assert_ok(run_measure(rig, &o, out, &err), err);
}

static void a_measurement_counts_requests_tokens_adapters_and_misses(void **state)
{
    (void)state;
    struct rig rig;
    struct run_result *r = xcalloc(1, sizeof *r);
    run_some(&rig, r, "8:r4:all", 4, 24, 0);
    const struct group_result *g = &r->groups[0];
    assert_int_equal(r->n_failed, 0);
    assert_int_equal(g->n_requests, 24);
    assert_int_equal(g->n_finished, 24);
    assert_int_equal(g->n_tokens, 24 * 6);
    assert_int_equal(g->n_prompt, 24 * 5);
    assert_int_equal(g->ttft.n, 24);
    assert_int_equal(g->itl.n, 24 * 5);
    /* Adapters come in turn, so each has left a pool of four when it is asked for again. */
    assert_int_equal(g->n_misses, 24);
    assert_int_equal(g->ttft_miss.n, 24);
    assert_int_equal(g->ttft_resident.n, 0);
    assert_int_equal(r->n_uploads, 24);
    assert_true(r->distinct_max >= 1 && r->distinct_max <= 3);
    uint64_t n_steps = 0;
    for (int i = 0; i <= DISTINCT_MAX; i++)
        n_steps += r->distinct[i];
    assert_int_equal(n_steps, r->n_decode_steps);
    assert_int_equal(r->pool_true, (size_t)r->n_resident * rig.bytes[0]);
    assert_true(r->pool_used >= r->pool_true);
    assert_int_equal(r->n_prefix_tokens, 0);
    rig_release(&rig);
    free(r);
}

static void with_all_resident_nothing_is_missed(void **state)
{
    (void)state;
    struct rig rig;
    struct run_result *r = xcalloc(1, sizeof *r);
    run_some(&rig, r, "8:r4:all", 0, 24, 0);
    assert_int_equal(r->n_failed, 0);
    assert_int_equal(r->n_uploads, 0);
    assert_int_equal(r->groups[0].ttft_resident.n, 24);
    assert_int_equal(r->n_resident, 8);
    rig_release(&rig);
    free(r);
}

/* Prompts of two blocks, so that the prefix cache has something to keep. */
static void two_runs_share_no_prompts(void **state)
{
    (void)state;
    struct rig rig;
    struct err err = {0};
    struct rig_spec spec = spec_of("2:r4:all");
    struct run_result *r = xcalloc(1, sizeof *r);
    rig_init(&rig, "ref", 1, 1);
    assert_ok(rig_open(&rig, &spec, &err), err);
    struct run_options o = {.row = "t",
                            .name = "test",
                            .seconds = 1000,
                            .n_requests = 6,
                            .n_groups = 1,
                            .groups = {{.name = "all",
                                        .n_streams = 1,
                                        .workload = {.seed = 1,
                                                     .n_adapters = 2,
                                                     .lengths = LENGTHS_FIXED,
                                                     .length_a = 40,
                                                     .length_b = 2}}}};
    for (int i = 0; i < 3; i++) {
        assert_ok(run_measure(&rig, &o, r, &err), err);
        assert_int_equal(r->n_prefix_tokens, 0);
        assert_int_equal(r->groups[0].n_prompt, 6 * 40);
    }
    rig.n_runs = 1; /* as in the one before the last: then they do */
    assert_ok(run_measure(&rig, &o, r, &err), err);
    assert_true(r->n_prefix_tokens > 0);
    rig_release(&rig);
    free(r);
}

static void a_step_with_another_adapter_than_was_asked_for_is_a_failure(void **state)
{
    (void)state;
    struct rig rig;
    struct run_result *r = xcalloc(1, sizeof *r);
    run_some(&rig, r, "8:r4:all", 0, 6, 1);
    assert_true(r->n_failed > 0);
    assert_int_equal(r->groups[0].n_failed, 0); /* they all had their tokens */
    rig_release(&rig);
    free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adapters_are_as_the_classes_say),
        cmocka_unit_test(a_set_folds_into_a_smaller_one_class_by_class),
        cmocka_unit_test(classes_that_mean_nothing_are_refused),
        cmocka_unit_test(a_measurement_counts_requests_tokens_adapters_and_misses),
        cmocka_unit_test(with_all_resident_nothing_is_missed),
        cmocka_unit_test(two_runs_share_no_prompts),
        cmocka_unit_test(a_step_with_another_adapter_than_was_asked_for_is_a_failure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
