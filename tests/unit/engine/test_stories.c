/* stories260K and the adapters made for it, each against the logits of its golden file. The
 * adapters of stories260K-test have one PEFT feature each, with seeded random numbers. */
#include "tests/unit/engine/run.h"

static const double LOGIT_TOLERANCE = 1e-3;

struct watched { /* the logits behind the first drawn token */
    float *logits;
    int vocab;
};

static void keep_first_logits(void *context, void *user, int position, const float *logits,
                              int vocab)
{
    struct watched *w = context;
    (void)user;
    (void)position;
    if (w->logits != NULL)
        return;
    w->logits = xcalloc((size_t)vocab, sizeof *w->logits);
    memcpy(w->logits, logits, (size_t)vocab * sizeof *logits);
    w->vocab = vocab;
}

/* Every prompt of the golden file: the logits after it, and the greedy ids behind it. */
static void check_golden(struct run *run, const char *golden_path, const char *adapter_dir)
{
    json_t *golden = fixture_json(golden_path);
    struct content_digest content = {{0}};
    if (adapter_dir != NULL)
        content = run_load(run, adapter_dir);
    double worst = 0;
    for (size_t p = 0; p < json_array_size(golden); p++) {
        const json_t *g = json_array_get(golden, p);
        int n_prompt, n_greedy;
        int32_t *prompt = run_ids(json_object_get(g, "prompt"), &n_prompt);
        int32_t *greedy = run_ids(json_object_get(g, "greedy"), &n_greedy);
        const json_t *logits = json_object_get(g, "logits_after_prompt");
        struct watched watched = {0};
        engine_set_logits_hook(run->engine, keep_first_logits, &watched);
        struct engine_request request = run_greedy(prompt, n_prompt, n_greedy, 0);
        request.ignore_eos = true; /* the golden runs past it */
        if (adapter_dir != NULL) {
            request.n_adapters = 1;
            request.adapters[0].content = content;
            request.adapters[0].weight = 1;
        }
        struct answer *a = run_submit(run, request);
        run_wait(run);
        engine_set_logits_hook(run->engine, NULL, NULL);
        assert_int_equal(watched.vocab, json_array_size(logits));
        for (int i = 0; i < watched.vocab; i++) {
            double want = json_number_value(json_array_get(logits, (size_t)i));
            double distance = fabs(want - (double)watched.logits[i]);
            if (!(distance < LOGIT_TOLERANCE))
                fail_msg("%s, prompt %zu: logit %d is %.6f, golden %.6f", golden_path, p, i,
                         (double)watched.logits[i], want);
            worst = distance > worst ? distance : worst;
        }
        assert_int_equal(a->n_tokens, n_greedy);
        for (int i = 0; i < n_greedy; i++)
            if (a->tokens[i].token != greedy[i])
                fail_msg("%s, prompt %zu: greedy id %d is %d, golden %d", golden_path, p, i,
                         a->tokens[i].token, greedy[i]);
        free(watched.logits);
        free(prompt);
        free(greedy);
    }
    print_message("note: %s: largest distance of a logit %.2e\n", golden_path, worst);
    json_decref(golden);
}

static void base_on(const char *backend)
{
    struct run run;
    struct engine_options options = run_options(MODELS "stories260K");
    options.backend = backend;
    options.max_context = 512;
    run_open(&run, options, 8);
    check_golden(&run, MODELS "stories260K/golden_logits.json", NULL);
    run_close(&run);
}

static void the_base_gives_the_golden_logits_and_ids_on_ref(void **state)
{
    (void)state;
    base_on("ref");
}

static void the_base_gives_the_golden_logits_and_ids_on_cpu(void **state)
{
    (void)state;
    base_on("cpu");
}

static const char *const SUPPORTED[] = {
    "stories260K-test/r4-qv",
    "stories260K-test/r8-all-linear",
    "stories260K-test/r16-rslora",
    "stories260K-test/r3-odd-rank",
    "stories260K-test/patterns",
    "stories260K-test/layers-1-3",
    "stories260K-test/regex-target",
    "stories260K-fiction",
    "stories260K-law",
    "stories260K-medicine",
    "stories260K-code",
};

static void adapters_on(const char *backend, size_t n)
{
    struct run run;
    struct engine_options options = run_options(MODELS "stories260K");
    options.backend = backend;
    options.max_context = 512;
    run_open(&run, options, 64);
    for (size_t i = 0; i < n; i++) {
        char *dir = xasprintf(ADAPTERS "%s", SUPPORTED[i]);
        char *golden = xasprintf(ADAPTERS "%s/golden_logits.json", SUPPORTED[i]);
        check_golden(&run, golden, dir);
        free(dir);
        free(golden);
    }
    run_close(&run);
}

static void every_supported_adapter_gives_its_golden_logits_and_ids_on_cpu(void **state)
{
    (void)state;
    adapters_on("cpu", sizeof SUPPORTED / sizeof SUPPORTED[0]);
}

static void feature_adapters_give_their_golden_logits_and_ids_on_ref(void **state)
{
    (void)state;
    adapters_on("ref", 7);
}

static void adapters_with_unsupported_features_are_refused_naming_the_key(void **state)
{
    static const struct {
        const char *dir, *key;
    } cases[] = {
        {ADAPTERS "stories260K-test/dora", "use_dora"},
        {ADAPTERS "stories260K-test/modules-to-save", "modules_to_save"},
        {ADAPTERS "stories260K-test/embed", "embed_tokens"},
    };
    (void)state;
    struct run run;
    struct engine_options options = run_options(MODELS "stories260K");
    options.backend = "ref";
    run_open(&run, options, 8);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct err err = {0};
        assert_int_equal(engine_adapter_load(run.engine, cases[i].dir, NULL, &err), -1);
        if (err.code != ERR_UNSUPPORTED || strstr(err.message, cases[i].key) == NULL)
            fail_msg("%s: expected unsupported and %s, got %s: %s", cases[i].dir, cases[i].key,
                     err_code_name(err.code), err.message);
    }
    /* The engine is as well as before. */
    check_golden(&run, MODELS "stories260K/golden_logits.json", NULL);
    run_close(&run);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_base_gives_the_golden_logits_and_ids_on_ref),
        cmocka_unit_test(the_base_gives_the_golden_logits_and_ids_on_cpu),
        cmocka_unit_test(feature_adapters_give_their_golden_logits_and_ids_on_ref),
        cmocka_unit_test(every_supported_adapter_gives_its_golden_logits_and_ids_on_cpu),
        cmocka_unit_test(adapters_with_unsupported_features_are_refused_naming_the_key),
    };
    return cmocka_run_group_tests_name("stories260K", tests, NULL, NULL);
}
