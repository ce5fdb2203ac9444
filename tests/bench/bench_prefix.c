/* bench_prefix: what the prefix cache saves: the time to the first token of a prompt that nobody
 * sent before, of the same prompt again, and of the next turn of a chat (the prompt, the answer and
 * 64 tokens more).
 *
 *     bench_prefix MODEL_DIR [BACKEND [ADAPTER_DIR]]      (make_random makes both)
 *
 * One request at a time; the median of ROUNDS, each with a prompt of its own. The cache must have
 * found every whole block but the last, or it ends with exit status 1. */
#include "engine/engine.h"
#include "kernels/ops.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 3, ANSWER = 32, TURN = 64, ASKED = 3 };

static const int LENGTHS[] = {128, 512, 1024, 1536};
enum { N_LENGTHS = sizeof LENGTHS / sizeof LENGTHS[0] };

struct bench {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct engine *engine;
    struct engine_adapter adapter;
    bool has_adapter;
    uint64_t random;
    /* Of the request at hand. */
    struct monotonic_us first;
    int32_t answer[ANSWER];
    int n_answer, n_cached;
    bool finished;
};

_Noreturn static void die(const char *what, const char *why)
{
    fprintf(stderr, "bench_prefix: %s: %s\n", what, why);
    exit(1);
}

static void on_events(void *context, const struct engine_event *events, size_t n)
{
    struct bench *b = context;
    pthread_mutex_lock(&b->lock);
    for (size_t i = 0; i < n; i++) {
        if (events[i].kind == ENGINE_EVENT_TOKEN) {
            if (b->n_answer == 0)
                b->first = clock_monotonic_us();
            b->answer[b->n_answer++] = events[i].token;
        } else if (events[i].kind == ENGINE_EVENT_FINISHED) {
            b->n_cached = events[i].n_prompt_cached;
            b->finished = true;
            pthread_cond_signal(&b->changed);
        }
    }
    pthread_mutex_unlock(&b->lock);
}

/* Milliseconds to the first token. */
static double ask(struct bench *b, const int32_t *prompt, int n_prompt, int n_expected)
{
    struct err err = {0};
    struct engine_request r = {.prompt = prompt,
                               .n_prompt = n_prompt,
                               .max_tokens = ANSWER,
                               .ignore_eos = true,
                               .n_adapters = b->has_adapter,
                               .sampling = {.n_top_logprobs = -1}};
    r.adapters[0].content = b->adapter.content;
    r.adapters[0].weight = 1;
    b->n_answer = 0;
    b->finished = false;
    struct monotonic_us begin = clock_monotonic_us();
    if (engine_submit(b->engine, &r, NULL, &err) != 0)
        die("a request", err.message);
    pthread_mutex_lock(&b->lock);
    while (!b->finished)
        pthread_cond_wait(&b->changed, &b->lock);
    pthread_mutex_unlock(&b->lock);
    if (b->n_cached != n_expected)
        die("a request", "the prefix cache found another number of tokens than there were");
    return (double)clock_elapsed_us(begin, b->first) * 1e-3;
}

static int32_t next_token(struct bench *b)
{
    b->random = b->random * 6364136223846793005u + 1442695040888963407u;
    return (int32_t)((b->random >> 33) % (uint64_t)engine_model(b->engine)->vocab);
}

static int compare(const void *x, const void *y)
{
    double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

static void measure(struct bench *b, int n)
{
    double ms[ASKED][ROUNDS];
    int32_t *prompt = xcalloc((size_t)(n + ANSWER + TURN), sizeof *prompt);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < n; i++)
            prompt[i] = next_token(b);
        ms[0][round] = ask(b, prompt, n, 0);
        ms[1][round] = ask(b, prompt, n, (n - 1) / BLOCK_TOKENS * BLOCK_TOKENS);
        memcpy(prompt + n, b->answer, sizeof b->answer);
        for (int i = 0; i < TURN; i++)
            prompt[n + ANSWER + i] = next_token(b);
        ms[2][round] = ask(b, prompt, n + ANSWER + TURN,
                           (n + ANSWER - 1) / BLOCK_TOKENS * BLOCK_TOKENS);
    }
    for (int i = 0; i < ASKED; i++)
        qsort(ms[i], ROUNDS, sizeof ms[i][0], compare);
    printf("%6d %10.1f %10.1f %10.1f %9.1fx\n", n, ms[0][ROUNDS / 2], ms[1][ROUNDS / 2],
           ms[2][ROUNDS / 2], ms[0][ROUNDS / 2] / ms[1][ROUNDS / 2]);
    fflush(stdout);
    free(prompt);
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 4)
        die("usage", "bench_prefix MODEL_DIR [BACKEND [ADAPTER_DIR]]");
    struct err err = {0};
    struct bench b = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    struct engine_options options = {.model_dir = argv[1],
                                     .backend = argc > 2 ? argv[2] : NULL,
                                     .max_seqs = 16,
                                     .on_events = on_events,
                                     .context = &b};
    if (engine_open(&b.engine, &options, &err) != 0)
        die(argv[1], err.message);
    b.has_adapter = argc > 3;
    if (b.has_adapter && engine_adapter_load(b.engine, argv[3], &b.adapter, &err) != 0)
        die(argv[3], err.message);
    printf("# %s on %s, %s\n", argv[1], engine_model(b.engine)->backend,
           b.has_adapter ? "one adapter" : "base model");
    printf("# ms to the first token, median of %d\nprompt        new      again  next turn   "
           "new/again\n",
           ROUNDS);
    for (int i = 0; i < N_LENGTHS; i++)
        if (LENGTHS[i] + 2 * ANSWER + TURN <= engine_model(b.engine)->max_context)
            measure(&b, LENGTHS[i]);
    engine_close(b.engine);
    return 0;
}
