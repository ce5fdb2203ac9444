/* secmem: see secmem.h.
 *
 * Problem. A key in ordinary memory leaks in dull ways: a buffer over-read copies it into an
 * answer, a core dump or the swap file carries it to a disk, a freed block hands it to the next
 * owner. None of these needs an attacker inside the process.
 *
 * Idea. Each secret lives alone, on pages of its own, which the processor itself refuses to read
 * except for the moments of use. libsodium's guarded allocator lays them out so that the object
 * ends where an inaccessible page begins:
 *
 *     | no access | canary, padding ...... [ the secret ] | no access |
 *                   <- one page or more, locked, no dump ->
 *
 *     state     access      entered by
 *     open      read/write  secret_create         filled by its maker, one thread
 *     sealed    none        secret_seal           at rest
 *     revealed  read        secret_reveal         while n_readers > 0
 *     gone      unmapped    secret_free           wiped first, canary checked
 *
 * Guarantees. Over- and under-runs fault instead of leaking; the pages are in no core dump
 * (MADV_DONTDUMP) and, where RLIMIT_MEMLOCK allows, never in swap (a warning says so once where
 * it does not); freeing wipes. Not guarded against: code running in this process that calls
 * secret_reveal, and a debugger with the owner's rights.
 *
 * Cost. Two mprotect calls (about 1 us each) around a use; four pages a secret. Secrets are few.
 *
 * Source: libsodium, "Secure memory" (sodium_malloc). */
#include "wallet/secmem.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sodium.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct secret {
    pthread_mutex_t lock; /* guards n_readers and the page's rights */
    unsigned n_readers;
    bool sealed;
    size_t len, cap;
    uint8_t *bytes; /* [cap], from sodium_malloc */
};

static void init_sodium(void)
{
    if (sodium_init() < 0)
        BUG("libsodium does not initialise");
}

void secmem_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_sodium);
}

static void warn_not_locked(void)
{
    static atomic_flag warned = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&warned))
        log_warn("wallet", "keys can't be locked in memory (RLIMIT_MEMLOCK), so they may be "
                           "swapped out; raise `ulimit -l` or encrypt the swap");
}

struct secret *secret_create(size_t n, uint8_t **bytes)
{
    BUG_IF(n == 0);
    secmem_init();
    struct secret *s = xcalloc(1, sizeof *s);
    s->bytes = sodium_malloc(n);
    if (s->bytes == NULL) {
        log_error("wallet",
                  "out of guarded memory: cannot map %zu bytes (limits: vm.max_map_count, "
                  "RLIMIT_AS)",
                  n);
        abort();
    }
    /* sodium_malloc has tried already, but keeps the outcome to itself; locking doesn't nest. */
    if (sodium_mlock(s->bytes, n) != 0)
        warn_not_locked();
    memset(s->bytes, 0, n);
    pthread_mutex_init(&s->lock, NULL);
    s->len = s->cap = n;
    *bytes = s->bytes;
    return s;
}

void secret_seal_at(struct secret *s, size_t n_used)
{
    BUG_IF(s->sealed || n_used > s->cap);
    s->len = n_used;
    s->sealed = true;
    BUG_IF(sodium_mprotect_noaccess(s->bytes) != 0);
}

void secret_seal(struct secret *s)
{
    secret_seal_at(s, s->cap);
}

/* A secret is const to those who read it; its lock and counter are not part of its value. */
static struct secret *mutable_of(const struct secret *s)
{
    union {
        const struct secret *in;
        struct secret *out;
    } u = {.in = s};
    return u.out;
}

const uint8_t *secret_reveal(const struct secret *s)
{
    struct secret *m = mutable_of(s);
    BUG_IF(!m->sealed);
    pthread_mutex_lock(&m->lock);
    if (m->n_readers++ == 0)
        BUG_IF(sodium_mprotect_readonly(m->bytes) != 0);
    pthread_mutex_unlock(&m->lock);
    return m->bytes;
}

void secret_conceal(const struct secret *s)
{
    struct secret *m = mutable_of(s);
    pthread_mutex_lock(&m->lock);
    BUG_IF(m->n_readers == 0);
    if (--m->n_readers == 0)
        BUG_IF(sodium_mprotect_noaccess(m->bytes) != 0);
    pthread_mutex_unlock(&m->lock);
}

void secret_free(struct secret *s)
{
    if (s == NULL)
        return;
    BUG_IF(s->n_readers != 0);
    sodium_free(s->bytes); /* makes it writable, checks the canary, wipes, unlocks, unmaps */
    pthread_mutex_destroy(&s->lock);
    free(s);
}

size_t secret_len(const struct secret *s)
{
    return s->len;
}

struct secret *secret_from_bytes(const void *bytes, size_t n)
{
    uint8_t *to;
    struct secret *s = secret_create(n == 0 ? 1 : n, &to);
    if (n > 0)
        memcpy(to, bytes, n);
    secret_seal_at(s, n);
    return s;
}

int secret_write_fd(const struct secret *s, int fd, struct err *err)
{
    const uint8_t *p = secret_reveal(s);
    size_t done = 0;
    int rc = 0;
    while (done < s->len && rc == 0) {
        ssize_t n = write(fd, p + done, s->len - done);
        if (n > 0)
            done += (size_t)n;
        else if (n == 0 || errno != EINTR)
            rc = err_set_errno(err, n == 0 ? EIO : errno, "writing a secret to descriptor %d", fd);
    }
    secret_conceal(s);
    return rc;
}
