/* replay_main: a main for fuzz targets where libFuzzer isn't.
 *
 *   fuzz_x [-n MUTATIONS] FILE-OR-DIRECTORY...
 *
 * Runs the target over every file named, directories with all below them, in the order of their
 * names, then over a fixed number of mutations of them. Everything comes from a fixed seed, so a
 * failure here is a failure everywhere. Each input lies in memory of exactly its size, so that
 * AddressSanitizer sees a read beyond its end. When the target dies, the input it died of is
 * written to a file that is named on standard error. */
#include "node/base/buf.h"
#include "node/base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { INPUT_MAX_BYTES = 4 << 20, MUTATED_MAX_BYTES = 1 << 16, STEPS_MAX = 6 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
/* AddressSanitizer's, where it is linked in. */
__attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)(void));

static struct {
    struct buf *files;
    char **paths;
    size_t n, cap;
} corpus;

/* ---- what the target died of -------------------------------------------------------------- */

static const uint8_t *current;
static size_t n_current;
static char current_name[256];

static void save_current(void)
{
    char path[] = "/tmp/tributary-fuzz.XXXXXX";
    int fd = mkstemp(path);
    if (fd < 0 || write(fd, current, n_current) != (ssize_t)n_current)
        return;
    close(fd);
    dprintf(2, "\n%s: the target died; its input (%zu bytes) is in %s\n", current_name, n_current,
            path);
}

static void on_abort(int signal_number)
{
    save_current();
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void run(const void *bytes, size_t n, const char *name)
{
    uint8_t *exact = malloc(n);
    if (exact == NULL && n > 0)
        BUG("no memory for an input of %zu bytes", n);
    if (n > 0)
        memcpy(exact, bytes, n);
    current = exact;
    n_current = n;
    snprintf(current_name, sizeof current_name, "%s", name);
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
}

/* ---- the corpus --------------------------------------------------------------------------- */

static int add_file(const char *path)
{
    struct err err;
    struct buf b = BUF_INIT;
    if (file_read(path, INPUT_MAX_BYTES, &b, &err) != 0) {
        fprintf(stderr, "%s\n", err.message);
        return -1;
    }
    if (corpus.n == corpus.cap) {
        corpus.cap = corpus.cap == 0 ? 64 : 2 * corpus.cap;
        corpus.files = xrealloc_array(corpus.files, corpus.cap, sizeof *corpus.files);
        corpus.paths = xrealloc_array(corpus.paths, corpus.cap, sizeof *corpus.paths);
    }
    corpus.files[corpus.n] = b;
    corpus.paths[corpus.n++] = xstrdup(path);
    return 0;
}

static int visit(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st;
    (void)ftw;
    return type == FTW_F ? add_file(path) : 0;
}

/* By name: directories are read in an order that differs from machine to machine. */
static void sort_corpus(void)
{
    for (size_t i = 1; i < corpus.n; i++) {
        for (size_t k = i; k > 0 && strcmp(corpus.paths[k - 1], corpus.paths[k]) > 0; k--) {
            struct buf file = corpus.files[k];
            char *path = corpus.paths[k];
            corpus.files[k] = corpus.files[k - 1];
            corpus.paths[k] = corpus.paths[k - 1];
            corpus.files[k - 1] = file;
            corpus.paths[k - 1] = path;
        }
    }
}

/* ---- mutations ---------------------------------------------------------------------------- */

static uint64_t state = 0x9e3779b97f4a7c15;

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t next(void)
{
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

static size_t below(size_t n)
{
    return n == 0 ? 0 : (size_t)(next() % n);
}

/* Bytes that parsers find interesting: limits, lengths, brackets, quotes, a torn UTF-8 sequence. */
static uint8_t interesting(void)
{
    static const uint8_t bytes[] = {0,   1,   0x7f, 0x80, 0xff, 0xb8, 0xc0, 0xf8, 0xfe, '"',
                                    '{', '}', '[',  ']',  '(',  ')',  ',',  '\\', '0',  '9',
                                    '-', 'e', '\n', ' ',  'x',  '/',  '.',  0xe2, 0xed, 0xf4};
    return bytes[below(sizeof bytes)];
}

static void insert(struct buf *b, size_t at, const uint8_t *bytes, size_t n)
{
    if (b->len + n > MUTATED_MAX_BYTES)
        return;
    buf_reserve(b, n);
    memmove(b->data + at + n, b->data + at, b->len - at);
    memcpy(b->data + at, bytes, n);
    b->len += n;
}

static void mutate_once(struct buf *b)
{
    size_t at = below(b->len), n;
    uint8_t bytes[16];
    switch (below(8)) {
    case 0: /* flip a bit */
        if (b->len > 0)
            b->data[at] ^= (uint8_t)(1u << below(8));
        break;
    case 1: /* another byte */
        if (b->len > 0)
            b->data[at] = interesting();
        break;
    case 2: /* one more or one less: lengths and counters */
        if (b->len > 0)
            b->data[at] = (uint8_t)(b->data[at] + (next() % 2 == 0 ? 1 : 255));
        break;
    case 3: /* cut the end off */
        b->len = at;
        break;
    case 4: /* take a piece out */
        n = 1 + below(b->len - at < 32 ? b->len - at : 32);
        if (n <= b->len - at) {
            memmove(b->data + at, b->data + at + n, b->len - at - n);
            b->len -= n;
        }
        break;
    case 5: /* put bytes in */
        n = 1 + below(sizeof bytes);
        for (size_t i = 0; i < n; i++)
            bytes[i] = next() % 2 == 0 ? interesting() : (uint8_t)next();
        insert(b, at, bytes, n);
        break;
    case 6: { /* repeat a piece */
        uint8_t piece[256];
        n = below(b->len - at < sizeof piece ? b->len - at : sizeof piece);
        if (n > 0) {
            memcpy(piece, b->data + at, n);
            insert(b, below(b->len), piece, n);
        }
        break;
    }
    default: { /* a piece of another file */
        const struct buf *other = &corpus.files[below(corpus.n)];
        size_t from = below(other->len);
        n = below(other->len - from < 256 ? other->len - from : 256);
        if (n > 0)
            insert(b, at, other->data + from, n);
        break;
    }
    }
}

static void run_mutation(size_t i)
{
    const struct buf *file = &corpus.files[below(corpus.n)];
    struct buf b = BUF_INIT;
    char name[64];
    buf_append(&b, file->data, file->len < MUTATED_MAX_BYTES ? file->len : MUTATED_MAX_BYTES);
    for (size_t step = 1 + below(STEPS_MAX); step > 0; step--)
        mutate_once(&b);
    snprintf(name, sizeof name, "mutation %zu", i);
    run(b.data, b.len, name);
    buf_release(&b);
}

/* ---- the run ------------------------------------------------------------------------------ */

int main(int argc, char **argv)
{
    unsigned long n_mutations = 0;
    int arg = 1;
    if (argc > 2 && strcmp(argv[1], "-n") == 0) {
        char *end;
        errno = 0;
        n_mutations = strtoul(argv[2], &end, 10);
        if (errno != 0 || *end != '\0' || end == argv[2]) {
            fprintf(stderr, "%s: -n wants a number, not %s\n", argv[0], argv[2]);
            return 2;
        }
        arg = 3;
    }
    for (; arg < argc; arg++) {
        if (nftw(argv[arg], visit, 16, FTW_PHYS) != 0) {
            fprintf(stderr, "%s: cannot be read\n", argv[arg]);
            return 2;
        }
    }
    if (corpus.n == 0) {
        fprintf(stderr, "usage: %s [-n MUTATIONS] FILE-OR-DIRECTORY... (with at least one file)\n",
                argv[0]);
        return 2;
    }
    sort_corpus();
    if (__sanitizer_set_death_callback != NULL)
        __sanitizer_set_death_callback(save_current);
    signal(SIGABRT, on_abort);

    run("", 0, "no bytes");
    for (size_t i = 0; i < corpus.n; i++)
        run(corpus.files[i].data, corpus.files[i].len, corpus.paths[i]);
    for (unsigned long i = 0; i < n_mutations; i++)
        run_mutation(i);
    printf("note: %zu files, %lu mutations\n", corpus.n, n_mutations);
    for (size_t i = 0; i < corpus.n; i++) {
        buf_release(&corpus.files[i]);
        free(corpus.paths[i]);
    }
    free(corpus.files);
    free(corpus.paths);
    return 0;
}
