/* queue: a bounded queue of pointers between threads.
 *
 * Before queue_push the item belongs to the pusher, after it to the queue, after queue_pop to the
 * popper. Any number of pushers and poppers. A closed queue refuses pushes and hands out what it
 * still holds; then pop returns NULL. */
#ifndef TRIBUTARY_BASE_QUEUE_H
#define TRIBUTARY_BASE_QUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct queue;

struct queue *queue_create(size_t capacity); /* capacity >= 1 */
void queue_free(struct queue *q);            /* must be empty: the items are not ours to free */

bool queue_try_push(struct queue *q, void *item); /* false: full or closed; item stays yours */
bool queue_push(struct queue *q, void *item);     /* waits while full; false: closed */

void *queue_try_pop(struct queue *q);                       /* NULL: empty */
void *queue_pop(struct queue *q);                           /* waits; NULL: closed and empty */
void *queue_pop_timeout(struct queue *q, uint64_t wait_us); /* NULL: nothing in time, or closed */

void queue_close(struct queue *q);
bool queue_is_closed(struct queue *q);
size_t queue_len(struct queue *q);

#endif
