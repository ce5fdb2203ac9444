/* host_memory: where adapters wait for the device. Any thread.
 *
 * A device with memory of its own copies at full speed, and beside its steps, from pinned memory
 * only; pinning takes a millisecond for some megabytes and holds the driver up meanwhile. So pinned
 * memory is taken in slabs and cut by a heap: adapters have their true sizes, and a slab goes back
 * when it is empty (the first stays). Without such a device every piece is an allocation of its
 * own, and goes back at once; large ones are of huge pages where the system has them, because the
 * 20,000 page faults of 84 MB of small ones cost more than reading and hashing an adapter. */
#ifndef TRIBUTARY_ENGINE_HOST_MEMORY_H
#define TRIBUTARY_ENGINE_HOST_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

struct err;
struct host_memory;
struct ops;

/* first_bytes: of the first slab, taken now; 0 for memory that isn't pinned. Fails with
 * ERR_NO_MEMORY. */
int host_memory_create(struct host_memory **out, const struct ops *ops, size_t first_bytes,
                       struct err *err);
void host_memory_free(struct host_memory *h); /* quiet on NULL; all must be back */

/* n_bytes, aligned to 256. Fails with ERR_NO_MEMORY. give: what take returned, with its size. */
int host_memory_take(struct host_memory *h, void **out, size_t n_bytes, struct err *err);
void host_memory_give(struct host_memory *h, void *p, size_t n_bytes);

/* Memory for free() as host memory that isn't pinned is made of; NULL when there is none. */
void *host_memory_plain(size_t n_bytes);

/* Is it of this host memory's slabs? Always true where nothing is pinned. */
bool host_memory_has(struct host_memory *h, const void *p);

/* Bytes handed out, and bytes taken from the machine for them. */
void host_memory_stats(struct host_memory *h, size_t *used_bytes, size_t *held_bytes);

#endif
