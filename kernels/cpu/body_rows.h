/* body_rows: norms, activation and the sampler's passes over a row. Compiled once per instruction
 * set (isa_*.c), after body_attention.h, whose sum_squares it uses. */
#ifndef TRIBUTARY_KERNELS_CPU_BODY_ROWS_H
#define TRIBUTARY_KERNELS_CPU_BODY_ROWS_H

#include "kernels/cpu/body_attention.h"

static void add_rmsnorm_row(float *y, float *residual, const float *x, const float *w, int d,
                            float eps, float w_offset)
{
    if (x != NULL)
        for (int k = 0; k < d; k++)
            residual[k] += x[k];
    float inverse_rms = 1.0f / sqrtf(sum_squares(residual, d) / (float)d + eps);
    for (int k = 0; k < d; k++)
        y[k] = residual[k] * inverse_rms * (w[k] + w_offset);
}

/* y = gate / (1 + exp(-gate)) * up */
static void swiglu(float *y, const float *gate, const float *up, int n)
{
    for (int i = 0; i < n; i += LANES) {
        bool whole = n - i >= LANES;
        vec g = whole ? vec_load(gate + i) : vec_load_n(gate + i, n - i);
        vec u = whole ? vec_load(up + i) : vec_load_n(up + i, n - i);
        vec e = vec_exp(vec_sub(vec_zero(), g));
        vec r = vec_mul(vec_div(g, vec_add(vec_set1(1), e)), u);
        if (whole)
            vec_store(y + i, r);
        else
            vec_store_n(y + i, r, n - i);
    }
}

static float row_max(const float *x, int n)
{
    vec max = vec_set1(-INFINITY);
    int i = 0;
    for (; i + LANES <= n; i += LANES) /* vec_max yields its second operand when the first is NaN */
        max = vec_max(vec_load(x + i), max);
    float best = vec_reduce_max(max);
    for (; i < n; i++)
        best = x[i] > best ? x[i] : best;
    return best;
}

static double row_sum_exp(const float *x, int n, float max, float inverse_temperature)
{
    double sum[LANES] = {0}, total = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        vec e = vec_exp(
            vec_mul(vec_sub(vec_load(x + i), vec_set1(max)), vec_set1(inverse_temperature)));
        vec_sum_f64(sum, e);
    }
    if (i < n) {
        float rest[LANES];
        for (int k = 0; k < LANES; k++)
            rest[k] = i + k < n ? x[i + k] : -INFINITY;
        vec e = vec_exp(
            vec_mul(vec_sub(vec_load(rest), vec_set1(max)), vec_set1(inverse_temperature)));
        vec_sum_f64(sum, e);
    }
    for (int k = 0; k < LANES; k++)
        total += sum[k];
    return total;
}

static int row_indices_at_least(int32_t *out, int max_out, const float *x, int n, float threshold)
{
    int found = 0, i = 0;
    for (; i + LANES <= n; i += LANES) {
        unsigned mask = vec_mask_at_least(vec_load(x + i), vec_set1(threshold));
        for (; mask != 0; mask &= mask - 1, found++)
            if (found < max_out)
                out[found] = i + __builtin_ctz(mask);
    }
    for (; i < n; i++)
        if (x[i] >= threshold) {
            if (found < max_out)
                out[found] = i;
            found++;
        }
    return found;
}

#endif
