/* buf: see buf.h. */
#include "node/base/buf.h"

#include "node/base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static _Noreturn void out_of_memory(size_t n)
{
    fprintf(stderr, "tributary: out of memory allocating %zu bytes\n", n);
    abort();
}

void *xmalloc(size_t n_bytes)
{
    void *p = malloc(n_bytes ? n_bytes : 1);
    if (p == NULL)
        out_of_memory(n_bytes);
    return p;
}

void *xcalloc(size_t n, size_t size_bytes)
{
    void *p = calloc(n ? n : 1, size_bytes ? size_bytes : 1);
    if (p == NULL)
        out_of_memory(n);
    return p;
}

void *xrealloc_array(void *p, size_t n, size_t size_bytes)
{
    size_t total;
    if (__builtin_mul_overflow(n, size_bytes, &total))
        out_of_memory(SIZE_MAX);
    p = realloc(p, total ? total : 1);
    if (p == NULL)
        out_of_memory(total);
    return p;
}

char *xstrndup(const char *s, size_t n)
{
    size_t len = strnlen(s, n);
    char *copy = xmalloc(len + 1);
    memcpy(copy, s, len);
    copy[len] = '\0';
    return copy;
}

char *xstrdup(const char *s)
{
    return xstrndup(s, strlen(s));
}

char *xasprintf(const char *fmt, ...)
{
    struct buf b = BUF_INIT;
    va_list args;
    va_start(args, fmt);
    buf_appendfv(&b, fmt, args);
    va_end(args);
    return buf_detach(&b);
}

void buf_release(struct buf *b)
{
    free(b->data);
    *b = (struct buf)BUF_INIT;
}

void buf_reset(struct buf *b)
{
    b->len = 0;
    if (b->data != NULL)
        b->data[0] = '\0';
}

void buf_reserve(struct buf *b, size_t n_extra)
{
    size_t need;
    if (__builtin_add_overflow(b->len, n_extra, &need) || __builtin_add_overflow(need, 1, &need))
        out_of_memory(SIZE_MAX);
    if (need <= b->cap)
        return;
    size_t cap = b->cap < 64 ? 64 : b->cap;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    b->data = xrealloc_array(b->data, cap, 1);
    b->cap = cap;
}

void buf_append(struct buf *b, const void *bytes, size_t n)
{
    buf_reserve(b, n);
    if (n > 0)
        memcpy(b->data + b->len, bytes, n);
    b->len += n;
    b->data[b->len] = '\0';
}

void buf_append_byte(struct buf *b, uint8_t byte)
{
    buf_append(b, &byte, 1);
}

void buf_append_str(struct buf *b, const char *s)
{
    buf_append(b, s, strlen(s));
}

void buf_appendfv(struct buf *b, const char *fmt, va_list args)
{
    va_list again;
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    BUG_IF(n < 0);
    buf_reserve(b, (size_t)n);
    vsnprintf((char *)b->data + b->len, (size_t)n + 1, fmt, again);
    va_end(again);
    b->len += (size_t)n;
}

void buf_appendf(struct buf *b, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    buf_appendfv(b, fmt, args);
    va_end(args);
}

const char *buf_cstr(struct buf *b)
{
    return b->data == NULL ? "" : (const char *)b->data;
}

char *buf_detach(struct buf *b)
{
    buf_reserve(b, 0);
    b->data[b->len] = '\0';
    char *s = (char *)b->data;
    *b = (struct buf)BUF_INIT;
    return s;
}

/* Reads to the end and closes fd. */
static int read_all(int fd, const char *path, size_t max_bytes, struct buf *out, struct err *err)
{
    size_t len_before = out->len;
    for (;;) {
        size_t have = out->len - len_before;
        /* One byte over the limit is enough to know that the file is too large. */
        size_t want = max_bytes - have < 65536 ? max_bytes - have + 1 : 65536;
        buf_reserve(out, want);
        ssize_t n = read(fd, out->data + out->len, want);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            int e = errno;
            close(fd);
            return err_set_errno(err, e, "reading %s", path);
        }
        out->len += (size_t)n;
        out->data[out->len] = '\0';
        if (out->len - len_before > max_bytes) {
            close(fd);
            return err_set(err, ERR_TOO_LARGE, "%s: larger than %zu bytes", path, max_bytes);
        }
        if (n == 0)
            break;
    }
    close(fd);
    return 0;
}

int file_read(const char *path, size_t max_bytes, struct buf *out, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(err, errno, "%s", path);
    return read_all(fd, path, max_bytes, out, err);
}

int file_read_regular(const char *dir, const char *name, size_t max_bytes, struct buf *out,
                      struct err *err)
{
    struct stat st;
    char *path = xasprintf("%s/%s", dir, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK),
        why = errno; /* a FIFO's open would wait */
    free(path);
    if (fd < 0)
        return err_set_errno(err, why, "%s", name);
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return err_set(err, ERR_INVALID, "%s: is not a regular file", name);
    }
    return read_all(fd, name, max_bytes, out, err);
}

static int write_all(int fd, const uint8_t *p, size_t n)
{
    while (n > 0) {
        ssize_t w = write(fd, p, n);
        if (w < 0 && errno == EINTR)
            continue;
        if (w < 0)
            return -1;
        p += w;
        n -= (size_t)w;
    }
    return 0;
}

int fsync_parent(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *dir = slash == NULL   ? xstrdup(".")
                : slash == path ? xstrdup("/")
                                : xstrndup(path, (size_t)(slash - path));
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(dir);
    if (fd < 0)
        return -1;
    int rc = fsync(fd);
    int e = errno;
    close(fd);
    errno = e;
    return rc;
}

/* The file's new contents get the name in one step. */
static int give_name(const char *tmp, const char *path, bool replaces)
{
    return replaces ? rename(tmp, path) : link(tmp, path);
}

static int write_atomic(const char *path, const void *bytes, size_t n, unsigned mode, bool replaces,
                        struct err *err)
{
    char *tmp = xasprintf("%s.XXXXXX", path);
    int fd = mkostemp(tmp, O_CLOEXEC);
    if (fd < 0) {
        int e = errno;
        free(tmp);
        return err_set_errno(err, e, "creating a temporary file beside %s", path);
    }
    int rc = 0;
    bool written = fchmod(fd, mode) == 0 && write_all(fd, bytes, n) == 0 && fsync(fd) == 0;
    if (!written)
        rc = err_set_errno(err, errno, "writing %s", path);
    if (close(fd) != 0 && rc == 0)
        rc = err_set_errno(err, errno, "writing %s", path);
    if (rc == 0 && give_name(tmp, path, replaces) != 0)
        rc = errno == EEXIST ? err_set(err, ERR_CONFLICT, "%s exists", path)
                             : err_set_errno(err, errno, "writing %s", path);
    if (rc != 0 || !replaces)
        unlink(tmp);
    if (rc == 0 && fsync_parent(path) != 0)
        rc = err_set_errno(err, errno, "fsync of the directory of %s", path);
    free(tmp);
    return rc;
}

int file_write_atomic(const char *path, const void *bytes, size_t n, unsigned mode, struct err *err)
{
    return write_atomic(path, bytes, n, mode, true, err);
}

int file_create_atomic(const char *path, const void *bytes, size_t n, unsigned mode,
                       struct err *err)
{
    return write_atomic(path, bytes, n, mode, false, err);
}

int dir_ensure(const char *path, struct err *err)
{
    char *copy = xstrdup(path);
    int rc = 0;
    for (char *p = copy + 1; rc == 0; p++) {
        if (*p != '/' && *p != '\0')
            continue;
        char keep = *p;
        *p = '\0';
        if (mkdir(copy, 0700) != 0 && errno != EEXIST)
            rc = err_set_errno(err, errno, "creating directory %s", copy);
        *p = keep;
        if (keep == '\0')
            break;
    }
    free(copy);
    struct stat st;
    if (rc == 0 && (stat(path, &st) != 0 || !S_ISDIR(st.st_mode)))
        rc = err_set(err, ERR_IO, "%s: not a directory", path);
    return rc;
}
