/* run: what the engine's tests share: an engine whose events are collected a request, and waiting.
 */
#ifndef TRIBUTARY_TESTS_UNIT_ENGINE_RUN_H
#define TRIBUTARY_TESTS_UNIT_ENGINE_RUN_H

#include "engine/engine.h"
#include "engine/internal.h"
#include "node/base/err.h"
#include "tests/support.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

#define MODELS   "tests/fixtures/models/"
#define ADAPTERS "tests/fixtures/adapters/"

struct run_event { /* of a token: drawn, or of the prompt */
    int32_t token, position;
    float logprob;
    int32_t n_top, top_ids[ENGINE_TOP_LOGPROBS_MAX];
    float top_logprobs[ENGINE_TOP_LOGPROBS_MAX];
    bool is_eos;
};

struct run; /* all requests of a test */

struct answer { /* the `user` of a request */
    struct run *run;
    struct run_event *tokens, *prompt;
    int n_tokens, n_prompt, n_finished;
    enum engine_finish finish;
    int n_prompt_cached;
    uint64_t id;
};

struct run {
    struct engine *engine;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct answer *answers; /* [n_max] */
    int n, n_max, n_finished;
    void (*watch)(struct run *run, const struct engine_event *event); /* or NULL; under the lock */
    void *watch_context;
};

static inline void run_keep(struct run_event **list, int *n, const struct engine_event *e)
{
    *list = xrealloc_array(*list, (size_t)*n + 1, sizeof **list);
    struct run_event *out = &(*list)[(*n)++];
    *out = (struct run_event){.token = e->token,
                              .position = e->position,
                              .logprob = e->logprob,
                              .n_top = e->n_top,
                              .is_eos = e->is_eos};
    memcpy(out->top_ids, e->top_ids, sizeof out->top_ids);
    memcpy(out->top_logprobs, e->top_logprobs, sizeof out->top_logprobs);
}

static inline void run_on_events(void *context, const struct engine_event *events, size_t n)
{
    struct run *run = context;
    pthread_mutex_lock(&run->lock);
    for (size_t i = 0; i < n; i++) {
        struct answer *a = events[i].user;
        switch (events[i].kind) {
        case ENGINE_EVENT_TOKEN:
            run_keep(&a->tokens, &a->n_tokens, &events[i]);
            break;
        case ENGINE_EVENT_PROMPT:
            run_keep(&a->prompt, &a->n_prompt, &events[i]);
            break;
        case ENGINE_EVENT_FINISHED:
            a->finish = events[i].finish;
            a->n_prompt_cached = events[i].n_prompt_cached;
            a->n_finished++;
            run->n_finished++;
            break;
        }
        if (run->watch != NULL)
            run->watch(run, &events[i]);
    }
    pthread_cond_broadcast(&run->changed);
    pthread_mutex_unlock(&run->lock);
}

/* Small pools, one thread: tests are many and share two cores. */
static inline struct engine_options run_options(const char *model)
{
    return (struct engine_options){.model_dir = model,
                                   .n_threads = 1,
                                   .kv_bytes = 64 << 20,
                                   .adapter_bytes = 16 << 20,
                                   .max_context = 1024};
}

/* The hash of logits that a hook was shown: FNV-1a. */
static inline uint64_t run_hash(const float *logits, int vocab)
{
    const unsigned char *bytes = (const unsigned char *)logits;
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < (size_t)vocab * sizeof *logits; i++)
        h = (h ^ bytes[i]) * 0x100000001b3u;
    return h;
}

static inline void run_prepare(struct run *run, int n_max)
{
    *run = (struct run){.n_max = n_max};
    pthread_mutex_init(&run->lock, NULL);
    pthread_cond_init(&run->changed, NULL);
    run->answers = xcalloc((size_t)n_max, sizeof *run->answers);
}

static inline void run_open(struct run *run, struct engine_options options, int n_max)
{
    struct err err = {0};
    run_prepare(run, n_max);
    options.on_events = run_on_events;
    options.context = run;
    assert_ok(engine_open(&run->engine, &options, &err), err);
}

static inline void run_close(struct run *run)
{
    engine_close(run->engine);
    for (int i = 0; i < run->n; i++) {
        if (run->answers[i].n_finished != 1)
            fail_msg("request %d: %d FINISHED events", i, run->answers[i].n_finished);
        free(run->answers[i].tokens);
        free(run->answers[i].prompt);
    }
    free(run->answers);
    pthread_cond_destroy(&run->changed);
    pthread_mutex_destroy(&run->lock);
}

/* Submits; the answer fills as events come. */
static inline struct answer *run_submit(struct run *run, struct engine_request request)
{
    struct err err = {0};
    if (run->n == run->n_max)
        fail_msg("more than %d requests", run->n_max);
    struct answer *a = &run->answers[run->n++];
    a->run = run;
    request.user = a;
    assert_ok(engine_submit(run->engine, &request, &a->id, &err), err);
    return a;
}

static inline void run_wait(struct run *run) /* until all have finished */
{
    pthread_mutex_lock(&run->lock);
    while (run->n_finished < run->n)
        pthread_cond_wait(&run->changed, &run->lock);
    pthread_mutex_unlock(&run->lock);
}

static inline struct content_digest run_load(struct run *run, const char *dir)
{
    struct err err = {0};
    struct engine_adapter out;
    assert_ok(engine_adapter_load(run->engine, dir, &out, &err), err);
    return out.content;
}

/* Greedy, with the log-probabilities of n_top. */
static inline struct engine_request run_greedy(const int32_t *prompt, int n_prompt, int max_tokens,
                                               int n_top)
{
    return (struct engine_request){.prompt = prompt,
                                   .n_prompt = n_prompt,
                                   .max_tokens = max_tokens,
                                   .sampling = {.n_top_logprobs = n_top}};
}

/* Same tokens, same bits of every log-probability? */
static inline bool run_same_events(const struct run_event *a, int n_a, const struct run_event *b,
                                   int n_b)
{
    if (n_a != n_b)
        return false;
    for (int i = 0; i < n_a; i++)
        if (a[i].token != b[i].token || a[i].position != b[i].position ||
            a[i].n_top != b[i].n_top ||
            memcmp(&a[i].logprob, &b[i].logprob, sizeof a[i].logprob) != 0 ||
            memcmp(a[i].top_ids, b[i].top_ids, (size_t)a[i].n_top * sizeof a[i].top_ids[0]) != 0 ||
            memcmp(a[i].top_logprobs, b[i].top_logprobs,
                   (size_t)a[i].n_top * sizeof a[i].top_logprobs[0]) != 0)
            return false;
    return true;
}

static inline bool run_same(const struct answer *a, const struct answer *b)
{
    return a->finish == b->finish &&
           run_same_events(a->tokens, a->n_tokens, b->tokens, b->n_tokens) &&
           run_same_events(a->prompt, a->n_prompt, b->prompt, b->n_prompt);
}

/* Integers of a JSON array; free() them. */
static inline int32_t *run_ids(const json_t *array, int *n)
{
    *n = (int)json_array_size(array);
    int32_t *ids = xcalloc((size_t)*n, sizeof *ids);
    for (int i = 0; i < *n; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(array, (size_t)i));
    return ids;
}

#endif
