/* random: see random.h. getrandom(2) blocks only until the kernel's pool is first filled, at boot.
 */
#include "node/base/random.h"

#include "node/base/err.h"

#include <errno.h>
#include <sys/random.h>
#include <sys/types.h>

void random_bytes(void *out, size_t n)
{
    uint8_t *p = out;
    while (n > 0) {
        ssize_t got = getrandom(p, n, 0);
        if (got < 0 && errno == EINTR)
            continue;
        BUG_IF(got <= 0);
        p += got;
        n -= (size_t)got;
    }
}

uint64_t random_u64(void)
{
    uint64_t x;
    random_bytes(&x, sizeof x);
    return x;
}
