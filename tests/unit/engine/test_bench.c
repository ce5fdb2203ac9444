/* bench on a tiny shape: the table is whole and its numbers are numbers. */
#include "engine/bench.h"
#include "node/base/err.h"
#include "tests/support.h"

#include <stdio.h>
#include <string.h>

static void a_table_has_a_row_for_every_kind_and_number_of_streams(void **state)
{
    (void)state;
    struct err err = {0};
    char *text = NULL;
    size_t n_text = 0;
    FILE *out = open_memstream(&text, &n_text);
    struct bench_options o = {.shape = "tiny",
                              .backend = "ref",
                              .n_prompt = 20,
                              .n_generate = 6,
                              .rank = 3,
                              .n_rounds = 2,
                              .streams = {1, 3},
                              .csv = true,
                              .commit = "abc123",
                              .flags = "--tiny"};
    assert_ok(bench_run(&o, out, &err), err);
    fclose(out);
    assert_non_null(strstr(text, "# commit abc123\n# flags --tiny\n"));
    assert_non_null(strstr(text, "# device ref"));
    int n_rows = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        int streams;
        char kind[32];
        double output, low, high, prefill, decode;
        if (sscanf(line, "%d,%31[^,],%lf,%lf,%lf,%lf,%lf", &streams, kind, &output, &low, &high,
                   &prefill, &decode) != 7)
            continue;
        if (!(output > 0 && low > 0 && low <= output && output <= high && prefill > 0))
            fail_msg("a row without numbers: %s", line);
        n_rows++;
    }
    assert_int_equal(n_rows, 6);
    free(text);
}

static void other_kinds_share_adapters_as_they_say(void **state)
{
    (void)state;
    struct err err = {0};
    char *text = NULL;
    size_t n_text = 0;
    FILE *out = open_memstream(&text, &n_text);
    struct bench_options o = {.shape = "tiny",
                              .backend = "ref",
                              .kinds = 1u << BENCH_DISTINCT | 1u << BENCH_SKEWED,
                              .n_prompt = 5,
                              .n_generate = 6,
                              .n_adapters = 3,
                              .rank = 2,
                              .adapter_dtype = "f32",
                              .n_rounds = 1,
                              .streams = {7},
                              .bandwidth_gbs = 10,
                              .show_memory = true,
                              .csv = true};
    assert_ok(bench_run(&o, out, &err), err);
    fclose(out);
    /* 2 layers of 7 linears, A and B each, of 3 adapters */
    assert_non_null(strstr(text, "# 84 matrices on the device, 0 of them overlap another\n"));
    assert_non_null(strstr(text, "\n7,distinct,"));
    assert_non_null(strstr(text, ",3.0,3,0\n")); /* 3 adapters, as the engine counted; no uploads */
    assert_non_null(strstr(text, "\n7,skewed,")); /* 1, 1, 2, 3 of adapters 0, 1, 2 and 0 again */
    free(text);
}

static void shapes_and_sizes_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    struct err err = {0};
    struct bench_options cases[] = {{.shape = "9t"},
                                    {.shape = "tiny", .n_prompt = 250},
                                    {.shape = "tiny", .streams = {5000}},
                                    {.shape = "tiny", .rank = -1},
                                    {.shape = "tiny", .adapter_dtype = "int8"},
                                    {.shape = "tiny", .backend = "abacus"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(bench_run(&cases[i], stdout, &err), -1);
        assert_true(err.message[0] != '\0');
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_table_has_a_row_for_every_kind_and_number_of_streams),
        cmocka_unit_test(other_kinds_share_adapters_as_they_say),
        cmocka_unit_test(shapes_and_sizes_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests_name("bench", tests, NULL, NULL);
}
