/* demo7m: the golden requests of demo-7m, as tests of this room read them. */
#ifndef TRIBUTARY_TESTS_UNIT_ENGINE_DEMO7M_H
#define TRIBUTARY_TESTS_UNIT_ENGINE_DEMO7M_H

#include "tests/unit/engine/run.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

enum { DEMO_ADAPTERS = 5, DEMO_TOP = 5 };

static const char *const DEMO_NAMES[DEMO_ADAPTERS] = {"base", "med", "law", "code", "verse"};

struct golden {   /* a line of demo-7m_greedy.jsonl */
    int adapter;  /* index into DEMO_NAMES */
    int32_t *ids; /* [n_prompt + n_output] */
    int n_prompt, n_output;
    struct {
        int32_t id;
        double logprob;
    } top[64][DEMO_TOP]; /* of each output token, best first */
};

struct goldens {
    struct golden *list; /* [n] */
    int n;
};

static inline void goldens_row(json_t *line, void *context)
{
    struct goldens *all = context;
    all->list = xrealloc_array(all->list, (size_t)all->n + 1, sizeof *all->list);
    struct golden *g = &all->list[all->n++];
    const char *name = json_string_value(json_object_get(line, "adapter"));
    for (g->adapter = 0; strcmp(DEMO_NAMES[g->adapter], name != NULL ? name : "base") != 0;)
        assert_true(++g->adapter < DEMO_ADAPTERS);
    int32_t *prompt = run_ids(json_object_get(line, "prompt_ids"), &g->n_prompt);
    int32_t *output = run_ids(json_object_get(line, "output_ids"), &g->n_output);
    g->ids = xcalloc((size_t)(g->n_prompt + g->n_output), sizeof *g->ids);
    memcpy(g->ids, prompt, (size_t)g->n_prompt * sizeof *prompt);
    memcpy(g->ids + g->n_prompt, output, (size_t)g->n_output * sizeof *output);
    free(prompt);
    free(output);
    assert_true(g->n_output <= 64);
    const json_t *top = json_object_get(line, "top5_logprobs");
    assert_int_equal(json_array_size(top), g->n_output);
    for (int i = 0; i < g->n_output; i++)
        for (int j = 0; j < DEMO_TOP; j++) {
            const json_t *pair = json_array_get(json_array_get(top, (size_t)i), (size_t)j);
            g->top[i][j].id = (int32_t)json_integer_value(json_array_get(pair, 0));
            g->top[i][j].logprob = json_number_value(json_array_get(pair, 1));
        }
}

static inline struct goldens goldens_read(void)
{
    struct goldens all = {0};
    fixture_jsonl("tests/vectors/golden/demo-7m_greedy.jsonl.gz", goldens_row, &all);
    assert_int_equal(all.n, 53);
    return all;
}

static inline void goldens_release(struct goldens *all)
{
    for (int i = 0; i < all->n; i++)
        free(all->list[i].ids);
    free(all->list);
}

struct demo { /* an engine on demo-7m with its four adapters */
    struct run run;
    struct content_digest content[DEMO_ADAPTERS]; /* [0] unused */
};

static inline void demo_open(struct demo *d, struct engine_options options, int n_max)
{
    run_open(&d->run, options, n_max);
    for (int i = 1; i < DEMO_ADAPTERS; i++) {
        char *dir = xasprintf(ADAPTERS "demo-7m/%s", DEMO_NAMES[i]);
        d->content[i] = run_load(&d->run, dir);
        free(dir);
    }
}

static inline struct engine_request demo_under(const struct demo *d, struct engine_request request,
                                               int adapter)
{
    if (adapter > 0) {
        request.n_adapters = 1;
        request.adapters[0].content = d->content[adapter];
        request.adapters[0].weight = 1;
    }
    return request;
}

#endif
