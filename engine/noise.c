/* noise: see noise.h. SplitMix64 (Steele et al., OOPSLA 2014) of a counter gives 64 bits, which are
 * four elements. A core makes some hundreds of millions of elements a second, so that sixteen fill
 * the 16 GB of an 8B model in one or two seconds: about what touching the memory takes. */
#include "engine/noise.h"

#include "node/base/err.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { LANES = 4, THREADS_MAX = 64, PART_MIN = 1 << 20, HUGE_PAGE = 2 << 20 };

static uint64_t splitmix64(uint64_t seed, uint64_t counter)
{
    uint64_t z = seed + counter * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

struct part {
    void *out;
    enum dtype dtype;
    uint64_t seed;
    float centre, spread;
    size_t begin, end; /* begin is a multiple of LANES */
};

static uint16_t bf16(float x) /* finite; to nearest, ties to even */
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static uint16_t f16(float x) /* below 65504; likewise */
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    uint32_t sign = u >> 16 & 0x8000u, rest = u & 0x7fffffffu;
    if (rest < 0x38800000u) { /* subnormal there: beside 0.5 an f32 ends where it does */
        float sum = fabsf(x) + 0.5f;
        memcpy(&rest, &sum, sizeof rest);
        return (uint16_t)(sign | (rest - 0x3f000000u));
    }
    return (uint16_t)(sign | ((rest + 0xfffu + (rest >> 13 & 1u) - 0x38000000u) >> 13));
}

static void *fill_part(void *context)
{
    const struct part *p = context;
    for (size_t i = p->begin; i < p->end; i += LANES) {
        uint64_t bits = splitmix64(p->seed, i / LANES + 1);
        for (size_t k = 0; k < LANES && i + k < p->end; k++) {
            int32_t odd = 2 * (int32_t)(bits >> 16 * k & 0xffff) - 65535;
            float x = p->centre + p->spread * ((float)odd * 0x1p-16f);
            if (p->dtype == DTYPE_F32)
                ((float *)p->out)[i + k] = x;
            else
                ((uint16_t *)p->out)[i + k] = p->dtype == DTYPE_F16 ? f16(x) : bf16(x);
        }
    }
    return NULL;
}

void noise_fill(void *out, enum dtype dtype, size_t n, uint64_t seed, float centre, float spread,
                int n_threads)
{
    long n_parts = n_threads > 0 ? n_threads : sysconf(_SC_NPROCESSORS_ONLN);
    if (n_parts > THREADS_MAX)
        n_parts = THREADS_MAX;
    if (n_parts > (long)(n / PART_MIN))
        n_parts = (long)(n / PART_MIN);
    if (n_parts < 1)
        n_parts = 1;
    struct part parts[THREADS_MAX];
    pthread_t threads[THREADS_MAX];
    size_t step = (n / (size_t)n_parts + LANES - 1) / LANES * LANES;
    int n_started = 0;
    for (long i = 0; i < n_parts; i++) {
        size_t begin = (size_t)i * step;
        parts[i] = (struct part){out,
                                 dtype,
                                 splitmix64(seed, 0),
                                 centre,
                                 spread,
                                 begin,
                                 i + 1 == n_parts ? n : begin + step};
    }
    while (n_started + 1 < n_parts &&
           pthread_create(&threads[n_started], NULL, fill_part, &parts[n_started]) == 0)
        n_started++;
    for (long i = n_started; i < n_parts; i++)
        fill_part(&parts[i]);
    for (int i = 0; i < n_started; i++)
        pthread_join(threads[i], NULL);
}

void *noise_alloc(size_t n_bytes)
{
    if (n_bytes < HUGE_PAGE)
        return aligned_alloc(256, (n_bytes + 255) & ~(size_t)255);
    size_t n = (n_bytes + HUGE_PAGE - 1) & ~(size_t)(HUGE_PAGE - 1);
    void *p = aligned_alloc(HUGE_PAGE, n);
    if (p != NULL)
        madvise(p, n, MADV_HUGEPAGE);
    return p;
}
