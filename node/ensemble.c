/* ensemble: see ensemble.h. */
#include "node/ensemble.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/usage.h"
#include "node/json_util.h"

#include <math.h>
#include <stdbool.h>

void ensemble_shares(uint16_t *shares, const float *weights, size_t n)
{
    double sum = 0, remainders[USAGE_ADAPTERS_MAX];
    int left = BPS_WHOLE;
    BUG_IF(n < 1 || n > USAGE_ADAPTERS_MAX);
    for (size_t i = 0; i < n; i++)
        sum += fabs((double)weights[i]);
    BUG_IF(!(sum > 0) || !isfinite(sum));
    for (size_t i = 0; i < n; i++) {
        double exact = fabs((double)weights[i]) * BPS_WHOLE / sum;
        shares[i] = (uint16_t)exact;
        remainders[i] = exact - shares[i];
        left -= shares[i];
    }
    /* Rounding errs by 1e-11 at most, so no more than n are left, and never less than none. */
    BUG_IF(left < 0 || left > (int)n);
    for (; left > 0; left--) {
        size_t best = 0;
        for (size_t i = 1; i < n; i++)
            if (remainders[i] > remainders[best])
                best = i;
        shares[best]++;
        remainders[best] = -1;
    }
}

void ensemble_name(struct buf *out, const char *const *names, const float *weights, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        bool negative = signbit(weights[i]);
        float size = fabsf(weights[i]);
        if (negative || i > 0)
            buf_append_byte(out, negative ? '-' : '+');
        if (size < 1.0F || size > 1.0F) {
            json_append_float(out, size);
            buf_append_byte(out, '*');
        }
        buf_append_str(out, names[i]);
    }
}
