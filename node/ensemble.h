/* ensemble: several weighted adapters in one request: who has which share of it, what it is called.
 * Pure functions; any thread. */
#ifndef TRIBUTARY_NODE_ENSEMBLE_H
#define TRIBUTARY_NODE_ENSEMBLE_H

#include <stddef.h>
#include <stdint.h>

struct buf;

/* shares [n]: of the absolute weights, in basis points; they sum to BPS_WHOLE.
 *
 *   exact_i = |w_i| * 10,000 / (|w_0| + |w_1| + ...)     in double, summed in order
 *   share_i = floor(exact_i), and one more for the largest remainders until the sum is 10,000;
 *             equal remainders: the lower i
 *
 * weights [n]: finite, not all 0; as float32, which is how they are applied. n from 1 to
 * USAGE_ADAPTERS_MAX. A small weight's share may be 0. */
void ensemble_shares(uint16_t *shares, const float *weights, size_t n);

/* Appends the name that answers carry: "0.7*law+0.3*med", "law-0.5*med"; a weight of 1 is left
 * out. Weights are written with as few digits as read back as the same float32. */
void ensemble_name(struct buf *out, const char *const *names, const float *weights, size_t n);

#endif
