/* tensor_read: the tensors of files whose headers have been read; see safetensors.h.
 *
 *     a file   | header | tensor | tensor | tensor |    end to end, as the parser made sure
 *     reader             ------> ------> ------>        to its place; looks at its numbers
 *     caller    ------>  ------> ------>                takes the sha256 of header and places
 *
 * The hash is of the file's bytes. Of a tensor that is held as another dtype these come to a ring
 * of a few pieces and stay there until they are hashed; their numbers go on to their place.
 *
 * A SHA-256 is one chain, which no second thread makes faster: a core takes 50 to 65 ms for 84 MB,
 * and for all else that is to be done with them less. So the caller does nothing but hash, in the
 * order of the file, and a thread of its own reads ahead of it and looks at the numbers of a piece
 * while that is in its core's cache. Files that are small aren't worth a thread: the caller then
 * reads a piece, too, before he hashes it, as he does when there is no thread to be had.
 *
 * Whose turn it is: a piece is the reader's until n_ready has passed it; then nobody writes its
 * bytes before n_hashed has passed it, too, and of those that lie in their place nobody ever. */
#include "engine/tensor_read.h"

#include "engine/safetensors.h"
#include "engine/tensor_numbers.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/sha256.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE_BYTES = 256 << 10, ALONE_BYTES = 1 << 20, RING_PIECES = 8 };

struct piece {
    const struct tensor_dir_file *file;
    const struct tensor *tensor;
    uint8_t *bytes;     /* as in the file: at `to`, or in the ring */
    uint8_t *to;        /* its numbers' place */
    size_t at, n_bytes; /* in the file */
};

struct reading {
    const struct tensor_dir *dir;
    struct piece *pieces; /* [n_pieces] in the order of files, then of their bytes */
    size_t n_pieces;
    uint8_t
        *ring;  /* [RING_PIECES, PIECE_BYTES]: i % RING_PIECES is piece i's; NULL: none needs it */
    bool alone; /* there is no reader */
    struct err *err; /* who reads writes it */
    pthread_mutex_t lock;
    pthread_cond_t turn; /* one of the two waits at most: something is always ready or free */
    size_t n_ready;      /* pieces that have been read; under the lock */
    size_t n_hashed;     /* of these; under the lock */
    bool failed;         /* no more will be read; under the lock */
};

int tensor_read_bytes(int fd, uint8_t *out, size_t at, size_t n, struct err *err)
{
    while (n > 0) {
        ssize_t got = pread(fd, out, n, (off_t)at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set_errno(err, errno, "cannot read");
        if (got == 0)
            return err_set(err, ERR_IO, "became shorter while it was read");
        out += got;
        at += (size_t)got;
        n -= (size_t)got;
    }
    return 0;
}

/* ---- pieces ------------------------------------------------------------------------------ */

static int by_place(const void *a, const void *b)
{
    const struct tensor *x = *(const struct tensor *const *)a;
    const struct tensor *y = *(const struct tensor *const *)b;
    return x->at < y->at ? -1 : x->at > y->at;
}

static bool is_converted(const struct tensor *t)
{
    return t->held != t->dtype;
}

static void add_pieces(struct reading *r, size_t *cap, const struct tensor_dir_file *f,
                       const struct tensor *t)
{
    size_t from_width = tensor_dtype_bytes(t->dtype), to_width = tensor_dtype_bytes(t->held);
    BUG_IF(t->data == NULL && t->n_bytes > 0);
    for (size_t done = 0; done < t->n_bytes; r->n_pieces++) {
        size_t left = t->n_bytes - done, n = left < PIECE_BYTES ? left : PIECE_BYTES;
        if (r->n_pieces == *cap) {
            *cap = *cap == 0 ? 1024 : *cap * 2;
            r->pieces = xrealloc_array(r->pieces, *cap, sizeof *r->pieces);
        }
        if (is_converted(t) && r->ring == NULL)
            r->ring = xmalloc((size_t)RING_PIECES * PIECE_BYTES);
        uint8_t *to = (uint8_t *)(uintptr_t)t->data + done / from_width * to_width;
        uint8_t *bytes = is_converted(t) ? r->ring + r->n_pieces % RING_PIECES * PIECE_BYTES : to;
        r->pieces[r->n_pieces] = (struct piece){f, t, bytes, to, t->at + done, n};
        done += n;
    }
}

/* The sum of their bytes. */
static size_t cut(struct reading *r)
{
    size_t cap = 0, total = 0;
    const struct tensor **order = xcalloc(r->dir->n_tensors, sizeof(struct tensor *));
    for (size_t i = 0; i < r->dir->n_files; i++) {
        const struct tensor_dir_file *f = &r->dir->files[i];
        for (size_t k = 0; k < f->parsed.n_tensors; k++)
            order[k] = &f->parsed.tensors[k];
        qsort(order, f->parsed.n_tensors, sizeof(struct tensor *), by_place);
        for (size_t k = 0; k < f->parsed.n_tensors; k++)
            add_pieces(r, &cap, f, order[k]);
        total += f->n_bytes;
    }
    free(order);
    return total;
}

static int read_piece(const struct reading *r, const struct piece *p)
{
    const struct tensor *t = p->tensor;
    size_t n = p->n_bytes / tensor_dtype_bytes(t->dtype);
    if (tensor_read_bytes(p->file->fd, p->bytes, p->at, p->n_bytes, r->err) != 0)
        return err_wrap(r->err, "%s", p->file->name);
    if (!tensor_numbers_finite(p->bytes, t->dtype, n))
        return err_set(r->err, ERR_INVALID, "tensor %s: holds numbers that are not finite%s",
                       t->name, t->dtype == TENSOR_F32 ? " as bf16" : "");
    if (is_converted(t))
        tensor_numbers_convert(p->to, t->held, p->bytes, t->dtype, n);
    return 0;
}

/* Until piece i's part of the ring, if it needs one, is free. */
static void await_ring(struct reading *r, size_t i)
{
    if (!is_converted(r->pieces[i].tensor))
        return;
    pthread_mutex_lock(&r->lock);
    while (r->n_hashed + RING_PIECES <= i)
        pthread_cond_wait(&r->turn, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

static void *reader_main(void *context)
{
    struct reading *r = context;
    int rc = 0;
    for (size_t i = 0; i < r->n_pieces && rc == 0; i++) {
        await_ring(r, i);
        rc = read_piece(r, &r->pieces[i]);
        pthread_mutex_lock(&r->lock);
        r->n_ready += rc == 0;
        r->failed = rc != 0;
        pthread_cond_signal(&r->turn);
        pthread_mutex_unlock(&r->lock);
    }
    return NULL;
}

/* Those before piece i have been hashed; waits until it has been read. False: it can't be. */
static bool await(struct reading *r, size_t i)
{
    if (r->alone)
        return read_piece(r, &r->pieces[i]) == 0;
    pthread_mutex_lock(&r->lock);
    r->n_hashed = i;
    pthread_cond_signal(&r->turn);
    while (r->n_ready <= i && !r->failed)
        pthread_cond_wait(&r->turn, &r->lock);
    bool ready = r->n_ready > i;
    pthread_mutex_unlock(&r->lock);
    return ready;
}

static int hash_files(struct reading *r, struct tensor_dir *d)
{
    size_t at = 0;
    for (size_t i = 0; i < d->n_files; i++) {
        struct tensor_dir_file *f = &d->files[i];
        struct sha256 hash;
        if (f->fd < 0) /* the index, which was read whole */
            continue;
        sha256_init(&hash);
        sha256_update(&hash, f->bytes, f->n_header);
        for (; at < r->n_pieces && r->pieces[at].file == f; at++) {
            if (!await(r, at))
                return -1;
            sha256_update(&hash, r->pieces[at].bytes, r->pieces[at].n_bytes);
        }
        f->digest = sha256_final(&hash);
    }
    return 0;
}

void tensor_dir_place(struct tensor_dir *d, const struct tensor *t, uint8_t *data,
                      enum tensor_dtype held)
{
    struct tensor *ours = (struct tensor *)(uintptr_t)t;
    BUG_IF(d->how != TENSOR_DIR_HEADERS);
    ours->data = data;
    ours->held = held;
}

int tensor_dir_read(struct tensor_dir *d, struct err *err)
{
    struct err why = {0};
    struct reading r = {.dir = d, .err = &why};
    pthread_t reader;
    pthread_mutex_init(&r.lock, NULL);
    pthread_cond_init(&r.turn, NULL);
    r.alone = cut(&r) < ALONE_BYTES || pthread_create(&reader, NULL, reader_main, &r) != 0;
    int rc = hash_files(&r, d);
    if (!r.alone)
        pthread_join(reader, NULL);
    pthread_cond_destroy(&r.turn);
    pthread_mutex_destroy(&r.lock);
    free(r.pieces);
    free(r.ring);
    if (rc != 0 && err != NULL)
        *err = why;
    return rc;
}
