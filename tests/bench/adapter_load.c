/* adapter_load: what reading an adapter from disk costs, and its parts.
 *
 *     adapter_load SHAPE DIR [ROUNDS [AT_ONCE [HELD]]]
 *
 * DIR holds adapter-00 and so on, as `make_random only SHAPE DIR ADAPTERS` writes them. Each round
 * takes the next one. HELD bf16: held as that, else (file) as they are. Times are medians in ms, of
 * one thread but for the last two:
 *
 *   read      the weight file, from the page cache if it is there, into memory that was used before
 *   sha256    of these bytes: no load can be faster than its hash
 *   fresh     touching as much memory that was not used before
 *   load      lora_open into memory that lies ready, as pinned memory does: a miss of a node
 *   check     lora_open into fresh memory, and away with it: what the examiner does
 *   at once   loads of AT_ONCE (2) threads, each under its own adapter: the time of one
 *   cpu       of that, what the processors worked for each load */
#include "engine/bench.h"
#include "engine/host_memory.h"
#include "engine/lora.h"
#include "engine/model.h"
#include "kernels/ops.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/sha256.h"
#include "tests/bench/latency.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { ADAPTERS_MAX = 100, AT_ONCE_MAX = 16, PIECE_BYTES = 256 << 10, PAGE_BYTES = 4096 };

struct bench {
    const struct model_config *config;
    char *dirs[ADAPTERS_MAX + 1];
    int n, rounds;
    enum lora_held held;
    struct host_memory *home;
};

struct loads { /* of one thread */
    const struct bench *bench;
    int first, step;
    struct latency *times;
};

_Noreturn static void die(const char *what, const char *why)
{
    fprintf(stderr, "adapter_load: %s: %s\n", what, why);
    exit(1);
}

static double ms_since(struct monotonic_us began)
{
    return (double)clock_elapsed_us(began, clock_monotonic_us()) / 1000;
}

static double cpu_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static double load(const struct bench *b, int i, struct host_memory *home)
{
    struct err err = {0};
    struct lora_adapter *a;
    struct monotonic_us began = clock_monotonic_us();
    if (lora_open(&a, b->config, b->dirs[i % b->n], b->held, SIZE_MAX, home, &err) != 0)
        die(b->dirs[i % b->n], err.message);
    double ms = ms_since(began);
    lora_close(a);
    return home != NULL ? ms : ms_since(began);
}

static void *load_many(void *context)
{
    struct loads *l = context;
    for (int i = 0; i < l->bench->rounds; i++)
        latency_note(l->times, load(l->bench, l->first + i * l->step, l->bench->home));
    return NULL;
}

static void print(const char *what, const struct latency *l)
{
    printf("%-8s %7.1f  p90 %.1f\n", what, latency_percentile(l, 50), latency_percentile(l, 90));
}

static void measure_parts(const struct bench *b, uint8_t *bytes, size_t n)
{
    struct latency *read_ms = xcalloc(3, sizeof *read_ms), *hash_ms = read_ms + 1,
                   *fresh_ms = read_ms + 2;
    for (int i = 0; i < b->rounds; i++) {
        char *path = xasprintf("%s/adapter_model.safetensors", b->dirs[i % b->n]);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            die(path, "cannot open");
        struct monotonic_us began = clock_monotonic_us();
        for (size_t at = 0; at < n;) {
            ssize_t got = read(fd, bytes + at, n - at < PIECE_BYTES ? n - at : PIECE_BYTES);
            if (got <= 0)
                die(path, "cannot read");
            at += (size_t)got;
        }
        latency_note(read_ms, ms_since(began));
        close(fd);
        free(path);
        began = clock_monotonic_us();
        volatile uint8_t seen = sha256(bytes, n).bytes[0];
        (void)seen;
        latency_note(hash_ms, ms_since(began));
        began = clock_monotonic_us();
        volatile uint8_t *fresh = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                                       -1, 0);
        if (fresh == MAP_FAILED)
            die(b->dirs[0], "no memory");
        for (size_t at = 0; at < n; at += PAGE_BYTES)
            fresh[at] = 1;
        latency_note(fresh_ms, ms_since(began));
        munmap((void *)(uintptr_t)fresh, n);
    }
    print("read", read_ms);
    print("sha256", hash_ms);
    print("fresh", fresh_ms);
    free(read_ms);
}

static void measure_loads(const struct bench *b, int at_once)
{
    struct latency *times = xcalloc((size_t)at_once + 2, sizeof *times);
    struct loads loads[AT_ONCE_MAX];
    pthread_t threads[AT_ONCE_MAX];
    load_many(&(struct loads){b, 0, 1, &times[0]});
    print("load", &times[0]);
    for (int i = 0; i < b->rounds; i++)
        latency_note(&times[1], load(b, i, NULL));
    print("check", &times[1]);
    double cpu = cpu_ms();
    for (int i = 0; i < at_once; i++) {
        loads[i] = (struct loads){b, i, at_once, &times[2 + i]};
        if (pthread_create(&threads[i], NULL, load_many, &loads[i]) != 0)
            die("at once", "cannot start a thread");
    }
    for (int i = 0; i < at_once; i++)
        pthread_join(threads[i], NULL);
    cpu = (cpu_ms() - cpu) / (at_once * b->rounds);
    for (int i = 1; i < at_once; i++)
        latency_add(&times[2], &times[2 + i]);
    print("at once", &times[2]);
    printf("%-8s %7.1f\n", "cpu", cpu);
    free(times);
}

int main(int argc, char **argv)
{
    if (argc < 3 || argc > 6)
        die("usage", "adapter_load SHAPE DIR [ROUNDS [AT_ONCE [HELD]]]");
    struct bench b = {.config = bench_shape(argv[1]), .rounds = argc > 3 ? atoi(argv[3]) : 20};
    if (argc > 5 && strcmp(argv[5], "bf16") == 0)
        b.held = LORA_HELD_BF16;
    int at_once = argc > 4 ? atoi(argv[4]) : 2;
    struct stat st;
    struct err err = {0};
    if (b.config == NULL || b.rounds < 1 || at_once < 1 || at_once > AT_ONCE_MAX)
        die(argv[1], "no such shape, or ROUNDS or AT_ONCE is out of range");
    for (; b.n < ADAPTERS_MAX; b.n++) {
        b.dirs[b.n] = xasprintf("%s/adapter-%02d", argv[2], b.n);
        if (access(b.dirs[b.n], R_OK) != 0)
            break;
    }
    free(b.dirs[b.n]);
    b.dirs[b.n] = NULL;
    if (b.n == 0)
        die(argv[2], "holds no adapter-00");
    char *path = xasprintf("%s/adapter_model.safetensors", b.dirs[0]);
    if (stat(path, &st) != 0)
        die(path, "is not there");
    size_t n = (size_t)st.st_size, room = (n + (1 << 20)) * (size_t)(at_once + 1);
    uint8_t *bytes = malloc(n);
    if (bytes == NULL)
        die(path, "no memory");
    memset(bytes, 1, n);
    /* A slab of the plain backend stands for a pinned one: all its pages are there. */
    const struct ops *ops = ops_find("cpu", &err);
    void *slab;
    if (ops == NULL || host_memory_create(&b.home, ops, room, &err) != 0 ||
        host_memory_take(b.home, &slab, room - (1 << 20), &err) != 0)
        die("memory", err.message);
    memset(slab, 1, room - (1 << 20));
    host_memory_give(b.home, slab, room - (1 << 20));
    printf("%d adapters of %.1f MB, %d rounds, medians in ms\n", b.n, (double)n / 1e6, b.rounds);
    measure_parts(&b, bytes, n);
    measure_loads(&b, at_once);
    host_memory_free(b.home);
    free(bytes);
    free(path);
    for (int i = 0; i < b.n; i++)
        free(b.dirs[i]);
    return 0;
}
