/* noise: random weights by the gigabyte, for measurements and tests.
 *
 * Element i is a function of the seed and of i alone (a counter-based generator), so that any
 * number of threads make the same bytes. Not for anything that should be hard to guess. */
#ifndef TRIBUTARY_ENGINE_NOISE_H
#define TRIBUTARY_ENGINE_NOISE_H

#include "kernels/ops.h"

#include <stddef.h>
#include <stdint.h>

/* out[i] = centre + spread * u, i < n, rounded to dtype, with u uniform over the 65536 odd
 * multiples of 2^-16 between -1 and 1: symmetric about 0 and never 0 (but as an f16 where it is
 * below 2^-25). n_threads 0: one for each core; a small n is filled by the caller alone in any
 * case. */
void noise_fill(void *out, enum dtype dtype, size_t n, uint64_t seed, float centre, float spread,
                int n_threads);

/* Memory for free(), in huge pages where the system has them, so that filling and uploading
 * gigabytes isn't a matter of page faults. NULL when there is none. */
void *noise_alloc(size_t n_bytes);

#endif
