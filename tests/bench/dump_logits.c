/* dump_logits: the raw logits behind each token that this engine draws, for compare_torch.py.
 *
 *     dump_logits BACKEND MODEL_DIR OUT [ADAPTER_DIR ...] < REQUESTS
 *
 * REQUESTS has one request a line, numbers with spaces between: the adapter (1 is the first
 * ADAPTER_DIR, 0 none), how many tokens to generate, and the prompt's ids. All are submitted at
 * once, so they share steps, and greedily decoded; no end-of-sequence token ends them.
 *
 * OUT gets, request by request: generated ids, int32 [n]; their logits, f32 [n, vocab]. Both in the
 * machine's own order. The vocabulary's size is printed. */
#include "engine/internal.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ADAPTERS_MAX = 64, LINE_BYTES = 1 << 20 };

struct request {
    int adapter, n_generate, n_prompt;
    int32_t *prompt, *ids; /* ids [n_generate] */
    float *logits;         /* [n_generate, vocab] */
    int n_tokens;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t finished = PTHREAD_COND_INITIALIZER;
static int n_running;

_Noreturn static void die(const char *what, const char *why)
{
    fprintf(stderr, "dump_logits: %s: %s\n", what, why);
    exit(1);
}

static void on_logits(void *context, void *user, int position, const float *logits, int vocab)
{
    struct request *r = user;
    (void)context;
    int i = position - r->n_prompt;
    if (i >= 0 && i < r->n_generate)
        memcpy(r->logits + (size_t)i * (size_t)vocab, logits, (size_t)vocab * sizeof *logits);
}

static void on_events(void *context, const struct engine_event *events, size_t n)
{
    (void)context;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < n; i++) {
        struct request *r = events[i].user;
        if (events[i].kind == ENGINE_EVENT_TOKEN && r->n_tokens < r->n_generate)
            r->ids[r->n_tokens++] = events[i].token;
        else if (events[i].kind == ENGINE_EVENT_FINISHED && --n_running == 0)
            pthread_cond_signal(&finished);
    }
    pthread_mutex_unlock(&lock);
}

static struct request *read_requests(int *n, int vocab)
{
    struct request *list = NULL;
    char *line = xmalloc(LINE_BYTES);
    *n = 0;
    while (fgets(line, LINE_BYTES, stdin) != NULL) {
        char *at = line, *end;
        long v[2];
        for (int i = 0; i < 2; i++, at = end)
            if ((v[i] = strtol(at, &end, 10)) < 0 || end == at)
                die("a request", "does not begin with two numbers");
        list = xrealloc_array(list, (size_t)*n + 1, sizeof *list);
        struct request *r = &list[(*n)++];
        *r = (struct request){.adapter = (int)v[0], .n_generate = (int)v[1]};
        for (long id; id = strtol(at, &end, 10), end != at; at = end) {
            r->prompt = xrealloc_array(r->prompt, (size_t)r->n_prompt + 1, sizeof *r->prompt);
            r->prompt[r->n_prompt++] = (int32_t)id;
        }
        r->ids = xcalloc((size_t)r->n_generate, sizeof *r->ids);
        r->logits = xcalloc((size_t)r->n_generate * (size_t)vocab, sizeof *r->logits);
    }
    free(line);
    return list;
}

static void submit(struct engine *e, struct request *r, const struct engine_adapter *adapters,
                   int n_adapters)
{
    struct err err = {0};
    struct engine_request q = {.prompt = r->prompt,
                               .n_prompt = r->n_prompt,
                               .max_tokens = r->n_generate,
                               .ignore_eos = true,
                               .no_prefix_cache = true,
                               .sampling = {.n_top_logprobs = -1},
                               .user = r};
    if (r->adapter > n_adapters)
        die("a request", "there is no such adapter");
    if (r->adapter > 0) {
        q.n_adapters = 1;
        q.adapters[0].content = adapters[r->adapter - 1].content;
        q.adapters[0].weight = 1;
    }
    if (engine_submit(e, &q, NULL, &err) != 0)
        die("a request", err.message);
}

int main(int argc, char **argv)
{
    if (argc < 4 || argc - 4 > ADAPTERS_MAX)
        die("usage", "dump_logits BACKEND MODEL_DIR OUT [ADAPTER_DIR ...] < REQUESTS");
    struct err err = {0};
    struct engine *e;
    struct engine_adapter adapters[ADAPTERS_MAX];
    struct engine_options options = {.model_dir = argv[2],
                                     .backend = argv[1],
                                     .max_context = 2048,
                                     .max_waiting = 1 << 16,
                                     .on_events = on_events};
    if (engine_open(&e, &options, &err) != 0)
        die(argv[2], err.message);
    for (int i = 4; i < argc; i++)
        if (engine_adapter_load(e, argv[i], &adapters[i - 4], &err) != 0)
            die(argv[i], err.message);
    int vocab = engine_model(e)->vocab, n;
    struct request *list = read_requests(&n, vocab);
    engine_set_logits_hook(e, on_logits, NULL);
    n_running = n;
    for (int i = 0; i < n; i++)
        submit(e, &list[i], adapters, argc - 4);
    pthread_mutex_lock(&lock);
    while (n_running > 0)
        pthread_cond_wait(&finished, &lock);
    pthread_mutex_unlock(&lock);
    FILE *out = fopen(argv[3], "w");
    for (int i = 0; out != NULL && i < n; i++) {
        const struct request *r = &list[i];
        size_t n_generate = (size_t)r->n_generate, n_logits = n_generate * (size_t)vocab;
        if (r->n_tokens != r->n_generate)
            die("a request", "gave fewer tokens than asked for");
        if (fwrite(r->ids, sizeof *r->ids, n_generate, out) != n_generate ||
            fwrite(r->logits, sizeof *r->logits, n_logits, out) != n_logits)
            die(argv[3], "cannot be written");
        free(r->prompt);
        free(r->ids);
        free(r->logits);
    }
    if (out == NULL || fclose(out) != 0)
        die(argv[3], "cannot be written");
    free(list);
    engine_close(e);
    printf("%d\n", vocab);
    return 0;
}
