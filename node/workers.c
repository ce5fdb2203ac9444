/* workers: see workers.h. */
#include "node/workers.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/queue.h"

#include <pthread.h>
#include <stdlib.h>

struct job {
    void (*run)(void *context, void *argument);
    void *context, *argument;
};

struct workers {
    struct queue *jobs;
    pthread_t *threads;
    int n_threads; /* that run */
};

static void *worker_main(void *context)
{
    struct workers *w = context;
    struct job *job;
    while ((job = queue_pop(w->jobs)) != NULL) {
        job->run(job->context, job->argument);
        free(job);
    }
    return NULL;
}

int workers_create(struct workers **out, int n_threads, size_t capacity, struct err *err)
{
    struct workers *w = xcalloc(1, sizeof *w);
    w->jobs = queue_create(capacity);
    w->threads = xcalloc((size_t)n_threads, sizeof *w->threads);
    while (w->n_threads < n_threads) {
        if (pthread_create(&w->threads[w->n_threads], NULL, worker_main, w) != 0) {
            workers_stop(w);
            workers_free(w);
            return err_set(err, ERR_NO_MEMORY, "cannot start a worker thread");
        }
        w->n_threads++;
    }
    *out = w;
    return 0;
}

bool workers_submit(struct workers *w, void (*run)(void *context, void *argument), void *context,
                    void *argument)
{
    struct job *job = xmalloc(sizeof *job);
    *job = (struct job){run, context, argument};
    bool ok = queue_try_push(w->jobs, job);
    if (!ok)
        free(job);
    return ok;
}

void workers_stop(struct workers *w)
{
    if (w == NULL)
        return;
    queue_close(w->jobs);
    while (w->n_threads > 0)
        pthread_join(w->threads[--w->n_threads], NULL);
}

void workers_free(struct workers *w)
{
    if (w == NULL)
        return;
    BUG_IF(w->n_threads > 0);
    queue_free(w->jobs);
    free(w->threads);
    free(w);
}
