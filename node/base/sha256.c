/* sha256: see sha256.h. libsodium's implementation behind our own type, so that sodium.h stays out
 * of the headers of the floor. */
#include "node/base/sha256.h"

#include "node/base/err.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <unistd.h>

_Static_assert(sizeof(crypto_hash_sha256_state) <= sizeof(struct sha256), "state must fit");

static crypto_hash_sha256_state *state_of(struct sha256 *h)
{
    return (crypto_hash_sha256_state *)(void *)h->state;
}

void sha256_init(struct sha256 *h)
{
    crypto_hash_sha256_init(state_of(h));
}

void sha256_update(struct sha256 *h, const void *bytes, size_t n)
{
    crypto_hash_sha256_update(state_of(h), bytes, n);
}

struct sha256_digest sha256_final(struct sha256 *h)
{
    struct sha256_digest d;
    crypto_hash_sha256_final(state_of(h), d.bytes);
    return d;
}

struct sha256_digest sha256(const void *bytes, size_t n)
{
    struct sha256_digest d;
    crypto_hash_sha256(d.bytes, bytes, n);
    return d;
}

int sha256_file(const char *path, struct sha256_digest *out, uint64_t *size_bytes, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(err, errno, "%s", path);
    struct sha256 h;
    sha256_init(&h);
    uint8_t chunk[65536];
    uint64_t total = 0;
    for (;;) {
        ssize_t n = read(fd, chunk, sizeof chunk);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            int e = errno;
            close(fd);
            return err_set_errno(err, e, "reading %s", path);
        }
        if (n == 0)
            break;
        sha256_update(&h, chunk, (size_t)n);
        total += (uint64_t)n;
    }
    close(fd);
    *out = sha256_final(&h);
    if (size_bytes != NULL)
        *size_bytes = total;
    return 0;
}
