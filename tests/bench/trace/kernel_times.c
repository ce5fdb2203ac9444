/* kernel_times: what each kernel of a program takes, where it stands among the others. A library
 * that the CUDA runtime loads (CUDA_INJECTION64_PATH); kernel_times.sh builds it and starts a
 * program with it.
 *
 * Kernels of a decode step overlap: each is launched while the one before it runs, and waits. What
 * a kernel costs is therefore told as the time from the end of the kernel before it to its own end;
 * these times add up to the step's. The same kernel costs another time in another place, so pairs
 * (previous, kernel) are told, each with its medians:
 *
 *   previous,kernel,n,step_us,duration_us,gap_us
 *
 *   step      from the previous kernel's end to this one's
 *   duration  from its first thread block's start to its last one's end
 *   gap       from the previous one's end to its start; below 0 where it was launched early
 *
 * The largest n * step first. Names are mangled (c++filt). Environment: KERNEL_TIMES, the file;
 * KERNEL_TIMES_FROM, 0 to 1 (0): kernels before that share of all are left out. Records that CUPTI
 * drops are an error: there is no file then.
 * Source: CUPTI's activity API. CUPTI calls from threads of its own, one at a time. */
#include <cupti.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUFFER_BYTES = 8 << 20, ALIGNMENT = 8 };

struct record {
    uint64_t start, end; /* ns */
    const char *name;    /* CUPTI's, good for ever; the same for all records of a kernel */
};

struct pair { /* a record, and the one before it */
    const char *previous, *name;
    double step, duration, gap; /* us */
};

struct line {
    const struct pair *first;
    size_t n;
    double step, duration, gap;
};

static struct record *records;
static size_t n_records, n_dropped, capacity;
static double share; /* of the records, at the beginning, that are left out */

static void die(const char *what)
{
    fprintf(stderr, "kernel_times: %s\n", what);
    exit(1);
}

static void *resized(void *p, size_t n, size_t size)
{
    p = reallocarray(p, n > 0 ? n : 1, size);
    if (p == NULL)
        die("no memory");
    return p;
}

static void CUPTIAPI give_buffer(uint8_t **buffer, size_t *n_bytes, size_t *records_max)
{
    *n_bytes = BUFFER_BYTES;
    *records_max = 0; /* as many as fit */
    *buffer = aligned_alloc(ALIGNMENT, BUFFER_BYTES);
    if (*buffer == NULL)
        die("no memory");
}

static void CUPTIAPI take_buffer(CUcontext context, uint32_t stream, uint8_t *buffer,
                                 size_t n_bytes, size_t n_valid)
{
    (void)n_bytes;
    CUpti_Activity *at = NULL;
    size_t n = 0;
    if (cuptiActivityGetNumDroppedRecords(context, stream, &n) == CUPTI_SUCCESS)
        n_dropped += n;
    while (cuptiActivityGetNextRecord(buffer, n_valid, &at) == CUPTI_SUCCESS) {
        if (at->kind != CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL)
            continue;
        const CUpti_ActivityKernel9 *k = (const CUpti_ActivityKernel9 *)(void *)at;
        if (n_records == capacity) {
            capacity = capacity > 0 ? 2 * capacity : 65536;
            records = resized(records, capacity, sizeof *records);
        }
        records[n_records++] = (struct record){k->start, k->end, k->name};
    }
    free(buffer);
}

static int by_start(const void *a, const void *b)
{
    const struct record *x = a, *y = b;
    return (x->start > y->start) - (x->start < y->start);
}

static int by_names(const void *a, const void *b)
{
    const struct pair *x = a, *y = b;
    int c = strcmp(x->previous, y->previous);
    return c != 0 ? c : strcmp(x->name, y->name);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int by_total(const void *a, const void *b)
{
    const struct line *x = a, *y = b;
    double p = (double)x->n * x->step, q = (double)y->n * y->step;
    return (q > p) - (q < p);
}

/* Of the doubles at `offset` in n pairs; values has room for them. */
static double median(const struct pair *pairs, size_t n, size_t offset, double *values)
{
    for (size_t i = 0; i < n; i++)
        memcpy(&values[i], (const char *)&pairs[i] + offset, sizeof values[i]);
    qsort(values, n, sizeof *values, by_value);
    return values[n / 2];
}

static double us(uint64_t from, uint64_t to)
{
    return (double)(int64_t)(to - from) / 1000;
}

static void tell(FILE *f, const struct record *r, size_t n)
{
    struct pair *pairs = resized(NULL, n, sizeof *pairs);
    struct line *lines = resized(NULL, n, sizeof *lines);
    double *values = resized(NULL, n, sizeof *values);
    size_t n_pairs = 0, n_lines = 0;
    for (size_t i = 1; i < n; i++)
        pairs[n_pairs++] = (struct pair){r[i - 1].name, r[i].name, us(r[i - 1].end, r[i].end),
                                         us(r[i].start, r[i].end), us(r[i - 1].end, r[i].start)};
    qsort(pairs, n_pairs, sizeof *pairs, by_names);
    for (size_t from = 0, to; from < n_pairs; from = to) {
        for (to = from + 1; to < n_pairs && by_names(&pairs[from], &pairs[to]) == 0; to++)
            ;
        const struct pair *p = &pairs[from];
        size_t m = to - from;
        lines[n_lines++] = (struct line){p, m, median(p, m, offsetof(struct pair, step), values),
                                         median(p, m, offsetof(struct pair, duration), values),
                                         median(p, m, offsetof(struct pair, gap), values)};
    }
    qsort(lines, n_lines, sizeof *lines, by_total);
    fprintf(f, "previous,kernel,n,step_us,duration_us,gap_us\n");
    for (size_t i = 0; i < n_lines; i++)
        fprintf(f, "\"%s\",\"%s\",%zu,%.2f,%.2f,%.2f\n", lines[i].first->previous,
                lines[i].first->name, lines[i].n, lines[i].step, lines[i].duration, lines[i].gap);
    free(pairs);
    free(lines);
    free(values);
}

static void finish(void)
{
    const char *path = getenv("KERNEL_TIMES");
    CUptiResult flushed = cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
    size_t from = (size_t)(share * (double)n_records);
    if (flushed != CUPTI_SUCCESS)
        fprintf(stderr, "kernel_times: the last kernels may be missing (CUPTI error %d)\n",
                (int)flushed);
    if (n_dropped > 0 || n_records - from < 2) {
        fprintf(stderr, "kernel_times: %zu kernels were recorded, %zu lost\n", n_records,
                n_dropped);
        return;
    }
    FILE *f = path != NULL ? fopen(path, "w") : stderr;
    if (f == NULL) {
        fprintf(stderr, "kernel_times: %s can't be written\n", path);
        return;
    }
    qsort(records, n_records, sizeof *records, by_start);
    tell(f, records + from, n_records - from);
    free(records);
    if (f != stderr && fclose(f) != 0)
        fprintf(stderr, "kernel_times: %s couldn't be written\n", path);
}

static void read_share(void)
{
    const char *text = getenv("KERNEL_TIMES_FROM");
    char *end = NULL;
    if (text != NULL)
        share = strtod(text, &end);
    if (text != NULL && (end == text || *end != '\0' || !(share >= 0 && share < 1)))
        die("KERNEL_TIMES_FROM must be a number from 0 to below 1");
}

/* The name that the CUDA runtime calls; not 0: it is well. */
int InitializeInjection(void);

__attribute__((visibility("default"))) int InitializeInjection(void)
{
    read_share();
    if (cuptiActivityRegisterCallbacks(give_buffer, take_buffer) != CUPTI_SUCCESS ||
        cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) != CUPTI_SUCCESS)
        die("CUPTI doesn't record here");
    if (atexit(finish) != 0)
        die("atexit is full");
    return 1;
}
