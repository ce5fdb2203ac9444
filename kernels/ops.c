/* ops: which backends this build has, and the sampler's generator.
 *
 * A build without nvcc knows the name "cuda" but has no table for it; the two failures differ so
 * that an operator can tell a typing error from a missing toolkit. */
#include "kernels/ops.h"

#include "kernels/backends.h"
#include "kernels/philox.h"
#include "node/base/err.h"

#include <string.h>

#ifdef TRIBUTARY_CUDA
#define TABLE_CUDA &ops_cuda
static const char *const names[] = {"cpu", "cuda", "ref", NULL};
#else
#define TABLE_CUDA NULL
static const char *const names[] = {"cpu", "ref", NULL};
#endif

static const struct {
    const char *name;
    const struct ops *table; /* NULL: not in this build */
} backends[] = {{"ref", &ops_ref}, {"cpu", &ops_cpu}, {"cuda", TABLE_CUDA}};

const struct ops *ops_find(const char *name, struct err *err)
{
    for (size_t i = 0; i < sizeof backends / sizeof *backends; i++) {
        if (strcmp(backends[i].name, name) != 0)
            continue;
        if (backends[i].table == NULL)
            err_set(err, ERR_UNSUPPORTED, "backend %s is not in this build", name);
        return backends[i].table;
    }
    err_set(err, ERR_INVALID, "backend \"%.40s\" is unknown; there are cpu, cuda and ref", name);
    return NULL;
}

const char *const *ops_names(void)
{
    return names;
}

float ops_uniform(uint64_t seed, uint64_t position)
{
    uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0};
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t out[4];
    philox4x32_10(out, counter, key);
    return (float)(out[0] >> 8) * 0x1p-24f; /* exact: 24 bits fit in an f32 */
}
