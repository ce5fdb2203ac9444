/* keyfile: see keyfile.h.
 *
 * Problem. A key file is written once and must be whole or absent, never half, and never replace
 * another: the other may be the only copy of a key that owns money. It must be private from its
 * first byte on.
 *
 * Idea. The bytes go to a temporary file of mode 0600 in the same directory and to the disk
 * (fsync); link(2) then gives it its name, which fails if the name is taken, in one step that two
 * processes cannot both win; the temporary name goes away and the directory is synced.
 *
 *     crash before link      a file NAME.key.XXXXXX that nothing reads
 *     crash after link       the key, and a second name for it that nothing reads
 *
 * On reading, a file that the group or others may touch is refused instead of repaired: whoever
 * could read it has had the chance, which its owner should know. */
#include "wallet/keyfile.h"

#include "wallet/secmem.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char suffix[] = ".key";

static char *path_of(const char *dir, const char *name, struct err *err)
{
    if (!keystore_name_ok(name)) {
        err_set(err, ERR_INVALID,
                "key name %.40s: 1 to %d of a-z, 0-9, _ and -, the first a letter or digit", name,
                WALLET_NAME_BYTES - 1);
        return NULL;
    }
    return xasprintf("%s/%s%s", dir, name, suffix);
}

static int exists_already(const char *path, struct err *err)
{
    return err_set(err, ERR_CONFLICT, "%s exists; a key is never overwritten", path);
}

int keyfile_absent(const char *dir, const char *name, struct err *err)
{
    char *path = path_of(dir, name, err);
    struct stat st;
    if (path == NULL)
        return -1;
    int rc = 0;
    if (lstat(path, &st) == 0)
        rc = exists_already(path, err);
    else if (errno != ENOENT)
        rc = err_set_errno(err, errno, "looking for %s", path);
    free(path);
    return rc;
}

static int write_and_sync(int fd, const uint8_t *bytes, size_t n)
{
    size_t done = 0;
    while (done < n) {
        ssize_t wrote = write(fd, bytes + done, n - done);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            return -1;
        done += (size_t)wrote;
    }
    return fsync(fd);
}

static int sync_directory(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    int rc = fsync(fd), e = errno;
    close(fd);
    errno = e;
    return rc;
}

int keyfile_create(const char *dir, const char *name, const uint8_t file[KEYSTORE_BYTES],
                   struct err *err)
{
    char *path = path_of(dir, name, err), *temporary = NULL;
    int rc = -1, fd = -1;
    if (path == NULL || dir_ensure(dir, err) != 0)
        goto done;
    temporary = xasprintf("%s.XXXXXX", path);
    fd = mkostemp(temporary, O_CLOEXEC); /* mode 0600 */
    if (fd < 0) {
        err_set_errno(err, errno, "creating a file beside %s", path);
        goto done;
    }
    if (write_and_sync(fd, file, KEYSTORE_BYTES) != 0) {
        err_set_errno(err, errno, "writing %s", temporary);
    } else if (link(temporary, path) != 0) {
        if (errno == EEXIST)
            exists_already(path, err);
        else
            err_set_errno(err, errno, "naming %s", path);
    } else {
        rc = 0;
    }
    if (unlink(temporary) != 0 && rc == 0)
        rc = err_set_errno(err, errno, "removing %s", temporary);
    if (rc == 0 && sync_directory(dir) != 0)
        rc = err_set_errno(err, errno, "syncing directory %s", dir);
done:
    if (fd >= 0)
        close(fd);
    free(temporary);
    free(path);
    return rc;
}

/* Reads an open file after a look at whose it is. */
static int read_private(int fd, const char *path, uint8_t out[KEYFILE_MAX_BYTES], size_t *n_out,
                        struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return err_set_errno(err, errno, "looking at %s", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, ERR_FORBIDDEN, "%s is not a regular file", path);
    if ((st.st_mode & 0077) != 0)
        return err_set(err, ERR_FORBIDDEN,
                       "%s has mode %03o, so others than its owner may touch it; if nobody has, "
                       "`chmod 600` makes it usable",
                       path, (unsigned)(st.st_mode & 0777));
    size_t n = 0;
    for (;;) {
        ssize_t got = read(fd, out + n, KEYFILE_MAX_BYTES - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set_errno(err, errno, "reading %s", path);
        if (got == 0)
            break;
        n += (size_t)got;
        if (n == KEYFILE_MAX_BYTES)
            return err_set(err, ERR_CORRUPT, "%s: %d bytes and more is not a key file", path,
                           KEYFILE_MAX_BYTES);
    }
    *n_out = n;
    return 0;
}

int keyfile_read(const char *dir, const char *name, uint8_t out[KEYFILE_MAX_BYTES], size_t *n_out,
                 struct err *err)
{
    char *path = path_of(dir, name, err);
    if (path == NULL)
        return -1;
    int rc, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hold us */
    if (fd < 0) {
        rc = err_set_errno(err, errno, "key %s: opening %s", name, path);
    } else {
        rc = read_private(fd, path, out, n_out, err);
        close(fd);
    }
    free(path);
    return rc;
}

/* The name inside is authenticated, the file's is not: they must agree. */
static int name_check(const char *dir, const char *name, const struct keystore_header *h,
                      struct err *err)
{
    if (strcmp(name, h->name) == 0)
        return 0;
    return err_set(err, ERR_CORRUPT, "%s/%s%s holds the key named %s: a key file keeps its name",
                   dir, name, suffix, h->name);
}

int keyfile_peek(const char *dir, const char *name, struct keystore_header *out, struct err *err)
{
    uint8_t file[KEYFILE_MAX_BYTES];
    size_t n = 0;
    if (keyfile_read(dir, name, file, &n, err) != 0)
        return -1;
    secmem_init();
    if (keystore_parse(out, file, n, err) != 0)
        return err_wrap(err, "%s/%s%s", dir, name, suffix);
    return name_check(dir, name, out, err);
}

struct secret *keyfile_open(const char *dir, const char *name, const struct secret *passphrase,
                            struct keystore_header *out, struct err *err)
{
    uint8_t file[KEYFILE_MAX_BYTES];
    size_t n = 0;
    struct keystore_header h;
    if (keyfile_read(dir, name, file, &n, err) != 0)
        return NULL;
    struct secret *key = keystore_decrypt(file, n, passphrase, &h, err);
    if (key == NULL) {
        err_wrap(err, "%s/%s%s", dir, name, suffix);
        return NULL;
    }
    if (name_check(dir, name, &h, err) != 0) {
        secret_free(key);
        return NULL;
    }
    *out = h;
    return key;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

int keyfile_names(const char *dir, char (**names)[WALLET_NAME_BYTES], size_t *n, struct err *err)
{
    *names = NULL;
    *n = 0;
    DIR *d = opendir(dir);
    if (d == NULL)
        return errno == ENOENT ? 0 : err_set_errno(err, errno, "opening directory %s", dir);
    const struct dirent *entry;
    for (errno = 0; (entry = readdir(d)) != NULL; errno = 0) {
        size_t len = strlen(entry->d_name), n_suffix = sizeof suffix - 1;
        if (len <= n_suffix || len - n_suffix >= WALLET_NAME_BYTES ||
            strcmp(entry->d_name + len - n_suffix, suffix) != 0)
            continue;
        char name[WALLET_NAME_BYTES] = {0};
        memcpy(name, entry->d_name, len - n_suffix);
        if (!keystore_name_ok(name))
            continue;
        *names = xrealloc_array(*names, *n + 1, sizeof **names);
        memcpy((*names)[(*n)++], name, sizeof name);
    }
    int e = errno;
    closedir(d);
    if (e != 0) {
        free(*names);
        *names = NULL;
        *n = 0;
        return err_set_errno(err, e, "reading directory %s", dir);
    }
    if (*n > 0)
        qsort(*names, *n, sizeof **names, by_name);
    return 0;
}
