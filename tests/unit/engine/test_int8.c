/* int8 weights through the engine: that the option arrives, what it costs in quality, and that a
 * row still doesn't depend on its neighbours. The operators themselves are tested in tests/ops. */
#include "tests/unit/engine/demo7m.h"

#include "node/base/hex.h"
#include "node/base/sha256.h"

enum { N_REQUESTS = 10, PROMPT_MAX = 48 };

/* Relative L2 distance of the logits behind the first generated token. Measured: see the note that
 * the test prints; rounding to 255 steps of a column's largest weight is 0.5 to 1 % a linear. */
static const double DISTANCE_MAX = 0.03;

struct seen { /* of one engine */
    struct run *run;
    float *logits; /* [N_REQUESTS, vocab] */
    int vocab;
};

static void on_logits(void *context, void *user, int position, const float *logits, int vocab)
{
    (void)position;
    struct seen *seen = context;
    ptrdiff_t i = (struct answer *)user - seen->run->answers;
    if (seen->logits == NULL)
        seen->logits = xcalloc((size_t)N_REQUESTS * (size_t)vocab, sizeof(float));
    seen->vocab = vocab;
    memcpy(seen->logits + (size_t)i * (size_t)vocab, logits, (size_t)vocab * sizeof(float));
}

/* First logits of N_REQUESTS golden prompts, `together` of them at a time. */
static struct seen first_logits(const char *backend, const char *weights, int together)
{
    struct goldens all = goldens_read();
    struct demo d;
    struct seen seen = {.run = &d.run};
    struct engine_options options = run_options(MODELS "demo-7m");
    options.backend = backend;
    options.weights = weights;
    demo_open(&d, options, N_REQUESTS);
    engine_set_logits_hook(d.run.engine, on_logits, &seen);
    for (int i = 0; i < N_REQUESTS; i++) {
        const struct golden *g = &all.list[i * (all.n / N_REQUESTS)];
        int n_prompt = g->n_prompt < PROMPT_MAX ? g->n_prompt : PROMPT_MAX;
        run_submit(&d.run, demo_under(&d, run_greedy(g->ids, n_prompt, 1, 0), g->adapter));
        if (i % together == together - 1)
            run_wait(&d.run);
    }
    run_wait(&d.run);
    run_close(&d.run);
    goldens_release(&all);
    return seen;
}

static double distance(const struct seen *a, const struct seen *b)
{
    double error = 0, power = 0;
    assert_int_equal(a->vocab, b->vocab);
    for (size_t i = 0; i < (size_t)N_REQUESTS * (size_t)a->vocab; i++) {
        double difference = (double)a->logits[i] - (double)b->logits[i];
        error += difference * difference;
        power += (double)b->logits[i] * (double)b->logits[i];
    }
    return sqrt(error / power);
}

static void int8_weights_keep_the_logits_of_demo_7m_within_three_percent(void **state)
{
    (void)state;
    struct seen file = first_logits("cpu", "file", N_REQUESTS);
    struct seen int8 = first_logits("cpu", "int8", N_REQUESTS);
    double d = distance(&int8, &file);
    print_message("note: demo-7m with int8 weights: relative L2 distance of logits %.2e\n", d);
    assert_true(d < DISTANCE_MAX);
    assert_true(d > 1e-4); /* or the option never arrived */
    free(file.logits);
    free(int8.logits);
}

/* The code paths of the cpu backend that differ for int8 weights (TRIBUTARY_ISA, ops.h), and the
 * largest relative L2 distance to ref: the operator's bounds, 1e-10 and 1e-8 of the power, are 1e-5
 * and 1e-4 a linear. */
static const struct {
    const char *isa;
    double distance_max;
} paths[] = {{"avx2", 1e-5}, {"avx512", 1e-5}, {"avx512vnni", 2e-4}};

static void int8_logits_on_cpu_are_those_on_ref_and_the_same_bits_alone(void **state)
{
    (void)state;
    struct seen ref = first_logits("ref", "int8", N_REQUESTS);
    size_t n = (size_t)N_REQUESTS * (size_t)ref.vocab, n_here = 1;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        n_here = __builtin_cpu_supports("avx512vnni") ? 3 : 2;
    for (size_t i = 0; i < n_here; i++) {
        setenv("TRIBUTARY_ISA", paths[i].isa, 1);
        struct seen cpu = first_logits("cpu", "int8", N_REQUESTS);
        struct seen alone = first_logits("cpu", "int8", 1);
        assert_memory_equal(cpu.logits, alone.logits, n * sizeof(float));
        double d = distance(&cpu, &ref);
        print_message("note: demo-7m with int8 weights: cpu, %s, is %.2e from ref\n", paths[i].isa,
                      d);
        if (!(d < paths[i].distance_max))
            fail_msg("relative L2 distance of int8 logits between cpu, %s, and ref: %.2e",
                     paths[i].isa, d);
        free(cpu.logits);
        free(alone.logits);
    }
    unsetenv("TRIBUTARY_ISA");
    free(ref.logits);
}

static void weights_of_an_unknown_kind_are_refused_by_name(void **state)
{
    (void)state;
    struct err err = {0};
    struct engine *e = NULL;
    struct engine_options options = run_options(MODELS "stories260K");
    options.on_events = run_on_events;
    options.weights = "int9";
    assert_int_equal(engine_open(&e, &options, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.message, "weights = \"int9\" (--weights) is neither file nor int8"));
}

/* Adapters are for the files' id; receipts name what computed. */
static void a_model_made_int8_has_an_id_of_its_own(void **state)
{
    (void)state;
    struct model_id ids[2], served[2];
    static const char *const kinds[] = {"file", "int8"};
    for (int i = 0; i < 2; i++) {
        struct run run;
        struct engine_options options = run_options(MODELS "stories260K");
        options.weights = kinds[i];
        run_open(&run, options, 1);
        const struct engine_model *m = engine_model(run.engine);
        ids[i] = m->id;
        served[i] = m->served_id;
        assert_string_equal(m->weights, kinds[i]);
        run_close(&run);
    }
    assert_memory_equal(ids[0].bytes, ids[1].bytes, 32);
    assert_memory_equal(served[0].bytes, ids[0].bytes, 32);
    char hex[65], text[128];
    snprintf(text, sizeof text, "%s  int8, a scale an output column\n",
             hex_encode(hex, ids[0].bytes, 32));
    struct sha256_digest expected = sha256(text, strlen(text));
    assert_memory_equal(served[1].bytes, expected.bytes, 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(int8_weights_keep_the_logits_of_demo_7m_within_three_percent),
        cmocka_unit_test(int8_logits_on_cpu_are_those_on_ref_and_the_same_bits_alone),
        cmocka_unit_test(a_model_made_int8_has_an_id_of_its_own),
        cmocka_unit_test(weights_of_an_unknown_kind_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
