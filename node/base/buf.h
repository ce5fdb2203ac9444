/* buf: a growable byte buffer, and checked heap allocation.
 *
 * init is `struct buf b = BUF_INIT;` (holds no memory); release frees and returns to BUF_INIT.
 * data is always followed by a NUL byte once anything was appended, so that text buffers can be
 * passed as C strings; len never counts it. Appending is amortised O(1). Like every allocation in
 * the node outside the request path's bounded pools, running out of memory aborts with a message:
 * sizes that come from outside are bounded by their parsers long before they reach malloc. */
#ifndef TRIBUTARY_BASE_BUF_H
#define TRIBUTARY_BASE_BUF_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

struct buf {
    uint8_t *data;
    size_t len, cap;
};
#define BUF_INIT   \
    {              \
        NULL, 0, 0 \
    }

void buf_release(struct buf *b);
void buf_reset(struct buf *b);                   /* len = 0, keeps the memory */
void buf_reserve(struct buf *b, size_t n_extra); /* room for n_extra more bytes and the NUL */
void buf_append(struct buf *b, const void *bytes, size_t n);
void buf_append_byte(struct buf *b, uint8_t byte);
void buf_append_str(struct buf *b, const char *s);
void buf_appendf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_appendfv(struct buf *b, const char *fmt, va_list args)
    __attribute__((format(printf, 2, 0)));

/* The contents as a C string ("" when empty); valid until the next change of b. */
const char *buf_cstr(struct buf *b);

/* Hands the memory to the caller (free() it) and returns b to BUF_INIT. Never NULL. */
char *buf_detach(struct buf *b);

/* malloc family that aborts when out of memory; xcalloc and xrealloc_array check n * size. */
void *xmalloc(size_t n_bytes);
void *xcalloc(size_t n, size_t size_bytes);
void *xrealloc_array(void *p, size_t n, size_t size_bytes);
char *xstrdup(const char *s);
char *xstrndup(const char *s, size_t n);
char *xasprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Reads a whole file of at most max_bytes into *out (appended).
 * Fails with ERR_NOT_FOUND, ERR_IO or ERR_TOO_LARGE naming the path. */
struct err;
int file_read(const char *path, size_t max_bytes, struct buf *out, struct err *err);
/* The same of dir's file `name`, which is all that errors name; what is no regular file is
 * ERR_INVALID. A directory that others fill may have a FIFO in it, which file_read would wait
 * for. */
int file_read_regular(const char *dir, const char *name, size_t max_bytes, struct buf *out,
                      struct err *err);

/* Writes a file so that a crash leaves the old or the new contents, never a mixture: temporary
 * file in the same directory, fsync, rename, fsync of the directory. mode as in open(2). */
int file_write_atomic(const char *path, const void *bytes, size_t n, unsigned mode,
                      struct err *err);
/* The same of a file that isn't there; ERR_CONFLICT leaves one that is as it is. */
int file_create_atomic(const char *path, const void *bytes, size_t n, unsigned mode,
                       struct err *err);

/* Makes a file's name in its directory durable: after a rename, say. 0, or -1 and errno. */
int fsync_parent(const char *path);
/* mkdir -p with mode 0700 for what is created. */
int dir_ensure(const char *path, struct err *err);

#endif
