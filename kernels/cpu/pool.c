/* pool: see pool.h.
 *
 * An operator lasts 5 to 500 us, so handing it out must cost less than a microsecond while the
 * threads are awake, and nothing while there is no work. One 64-bit word, the ticket, says it all:
 *
 *     ticket = generation << 32 | next tile
 *
 * A thread claims a tile by compare-and-swap of the whole ticket. That succeeds only while the
 * generation it read the job under is still the current one, and while it holds the tile the job
 * can't end; so a thread that slept through several jobs can never run a tile with another job's
 * function. To begin a job the caller
 *
 *     1. closes the ticket   (generation + 1, tile CLOSED: no claim can succeed),
 *     2. writes fn, context, n_tiles, n_done = 0,
 *     3. opens the ticket    (generation + 2, tile 0), and wakes sleepers if there are any.
 *
 * Step 1 before 2 matters: a thread that still holds the old ticket and reads the new n_tiles must
 * fail its claim.
 *
 * Waiting, for a job or for the last tile, spins for SPIN_CYCLES and then sleeps on a futex. The
 * spin bridges the gaps between the operators of one step; the bound keeps the pool from eating a
 * core that others need, and lets the kernel run a descheduled worker on the waiting caller's core.
 * The sleeper's protocol is the usual one: announce (sleepers, caller_sleeps), look again, sleep on
 * the value last seen. All of it is sequentially consistent; on x86 only the announcements pay. */
#include "kernels/cpu/pool.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <x86intrin.h>

enum { SPIN_CYCLES = 60000 }; /* about 20 us */

#define CLOSED UINT32_MAX

struct worker {
    struct pool *pool;
    pthread_t thread;
    int index; /* 1 to n_threads - 1 */
};

struct pool {
    _Alignas(64) _Atomic uint64_t ticket;
    _Alignas(64) _Atomic uint32_t n_done; /* the caller's futex */
    _Atomic uint32_t caller_sleeps;
    _Alignas(64) _Atomic(pool_fn *) fn;
    _Atomic(void *) context;
    _Atomic uint32_t n_tiles;
    _Alignas(64) _Atomic uint32_t epoch; /* the workers' futex: counts jobs */
    _Atomic uint32_t sleepers;
    _Atomic bool quit;
    int n_threads;
    struct worker *workers;
};

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake_all(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Runs tiles of the current job until none is left to claim. */
static void work(struct pool *p, int thread)
{
    for (;;) {
        uint64_t ticket = atomic_load(&p->ticket);
        uint32_t tile = (uint32_t)ticket;
        uint32_t n_tiles = atomic_load(&p->n_tiles);
        if (tile >= n_tiles)
            return;
        pool_fn *fn = atomic_load(&p->fn);
        void *context = atomic_load(&p->context);
        if (!atomic_compare_exchange_strong(&p->ticket, &ticket, ticket + 1))
            continue;
        fn(context, (int)tile, thread);
        if (atomic_fetch_add(&p->n_done, 1) + 1 == n_tiles && atomic_load(&p->caller_sleeps))
            futex_wake_all(&p->n_done);
    }
}

static bool work_waits(struct pool *p)
{
    return (uint32_t)atomic_load(&p->ticket) < atomic_load(&p->n_tiles) || atomic_load(&p->quit);
}

static void wait_for_work(struct pool *p)
{
    uint64_t begin = __rdtsc();
    do {
        if (work_waits(p))
            return;
        _mm_pause();
    } while (__rdtsc() - begin < SPIN_CYCLES);
    uint32_t epoch = atomic_load(&p->epoch);
    atomic_fetch_add(&p->sleepers, 1);
    if (!work_waits(p))
        futex_wait(&p->epoch, epoch);
    atomic_fetch_sub(&p->sleepers, 1);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    while (!atomic_load(&w->pool->quit)) {
        work(w->pool, w->index);
        wait_for_work(w->pool);
    }
    return NULL;
}

static void wait_for_end(struct pool *p, uint32_t n_tiles)
{
    uint64_t begin = __rdtsc();
    do {
        if (atomic_load(&p->n_done) == n_tiles)
            return;
        _mm_pause();
    } while (__rdtsc() - begin < SPIN_CYCLES);
    atomic_store(&p->caller_sleeps, 1);
    for (;;) {
        uint32_t n_done = atomic_load(&p->n_done);
        if (n_done == n_tiles)
            break;
        futex_wait(&p->n_done, n_done);
    }
    atomic_store(&p->caller_sleeps, 0);
}

void pool_run(struct pool *p, int n_tiles, pool_fn *fn, void *context)
{
    if (p->n_threads == 1 || n_tiles <= 1) {
        for (int tile = 0; tile < n_tiles; tile++)
            fn(context, tile, 0);
        return;
    }
    uint64_t generation = atomic_load(&p->ticket) >> 32;
    atomic_store(&p->ticket, (generation + 1) << 32 | CLOSED);
    atomic_store(&p->fn, fn);
    atomic_store(&p->context, context);
    atomic_store(&p->n_done, 0);
    atomic_store(&p->n_tiles, (uint32_t)n_tiles);
    atomic_store(&p->ticket, (generation + 2) << 32);
    atomic_fetch_add(&p->epoch, 1);
    if (atomic_load(&p->sleepers) > 0)
        futex_wake_all(&p->epoch);
    work(p, 0);
    wait_for_end(p, (uint32_t)n_tiles);
}

int pool_threads(const struct pool *p)
{
    return p->n_threads;
}

struct pool *pool_create(int n_threads, struct err *err)
{
    BUG_IF(n_threads < 1);
    struct pool *p = aligned_alloc(64, sizeof *p);
    if (p == NULL) {
        err_set(err, ERR_NO_MEMORY, "no memory for a pool of %d threads", n_threads);
        return NULL;
    }
    *p = (struct pool){.n_threads = 1};
    atomic_store(&p->ticket, CLOSED);
    p->workers = xcalloc((size_t)n_threads, sizeof *p->workers);
    for (int i = 1; i < n_threads; i++) {
        p->workers[i] = (struct worker){.pool = p, .index = i};
        int rc = pthread_create(&p->workers[i].thread, NULL, worker_main, &p->workers[i]);
        if (rc != 0) {
            err_set_errno(err, rc, "can't start worker thread %d of %d", i, n_threads);
            pool_free(p);
            return NULL;
        }
        p->n_threads = i + 1;
    }
    return p;
}

void pool_free(struct pool *p)
{
    if (p == NULL)
        return;
    atomic_store(&p->quit, true);
    atomic_fetch_add(&p->epoch, 1);
    futex_wake_all(&p->epoch);
    for (int i = 1; i < p->n_threads; i++)
        pthread_join(p->workers[i].thread, NULL);
    free(p->workers);
    free(p);
}

/* A logical processor stands for its core when it is the first of the core's threads that the mask
 * allows: then each core counts once, also when the mask cuts cores apart. */
static bool is_first_of_core(int cpu, const cpu_set_t *allowed)
{
    char path[96], list[256];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *f = fopen(path, "re");
    if (f == NULL)
        return true; /* no topology known: count every logical processor */
    char *line = fgets(list, sizeof list, f);
    fclose(f);
    while (line != NULL && *line != '\0' && *line != '\n') { /* "0-1" or "0,64" */
        char *end;
        long first = strtol(line, &end, 10), last = first;
        if (end == line)
            break;
        if (*end == '-')
            last = strtol(end + 1, &end, 10);
        for (long i = first; i <= last && i < cpu; i++)
            if (i >= 0 && CPU_ISSET((size_t)i, allowed))
                return false;
        line = *end == ',' ? end + 1 : end;
    }
    return true;
}

int pool_physical_cores(void)
{
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0)
        return 1;
    int n = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        n += CPU_ISSET((size_t)cpu, &allowed) && is_first_of_core(cpu, &allowed);
    return n > 0 ? n : 1;
}
