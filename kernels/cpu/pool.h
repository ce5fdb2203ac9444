/* pool: a few threads that share out the tiles of one operator.
 *
 * pool_run calls fn(context, tile, thread) once for every tile in [0, n_tiles) and returns when all
 * are done; the caller works along as thread 0. Tiles go to whoever asks next, so a thread that
 * lost its core to another process holds up one tile, not its share of the work. Which thread runs
 * a tile is not determined: the results of a tile must not depend on it. One caller at a time. */
#ifndef TRIBUTARY_KERNELS_CPU_POOL_H
#define TRIBUTARY_KERNELS_CPU_POOL_H

struct pool;
struct err;

typedef void pool_fn(void *context, int tile, int thread);

/* n_threads counts the caller; >= 1. NULL with ERR_INTERNAL when a thread can't be started. */
struct pool *pool_create(int n_threads, struct err *err);
void pool_free(struct pool *p); /* quiet on NULL */
int pool_threads(const struct pool *p);
void pool_run(struct pool *p, int n_tiles, pool_fn *fn, void *context);

/* Physical cores in this process's affinity mask, at least 1. */
int pool_physical_cores(void);

#endif
