/* workers: threads for answers that take a while, so that the HTTP threads never wait.
 *
 * A query over a million receipts takes seconds; on an HTTP thread it would hold up every stream of
 * that thread. The queue is bounded: what doesn't fit is refused at once. */
#ifndef TRIBUTARY_NODE_WORKERS_H
#define TRIBUTARY_NODE_WORKERS_H

#include <stdbool.h>
#include <stddef.h>

struct err;
struct workers;

int workers_create(struct workers **out, int n_threads, size_t capacity, struct err *err);
/* Runs run(context, argument) on some worker, once. false: full, or stopped. Any thread. */
bool workers_submit(struct workers *w, void (*run)(void *context, void *argument), void *context,
                    void *argument);
/* Finishes what is queued and joins the threads; later submissions are refused. Quiet on NULL. */
void workers_stop(struct workers *w);
void workers_free(struct workers *w); /* after workers_stop; quiet on NULL */

#endif
