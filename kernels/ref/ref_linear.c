/* ref_linear: embedding, norms, the linear operator with its adapters, and the element-wise rest.
 *
 * Every sum is one f32 accumulator over ascending index. The adapter's delta is complete before it
 * is added to y, once per segment, after the base sum and the bias. */
#include "kernels/ref/ref.h"

#include "kernels/numeric.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Row `out` of the stacked weight, widened into row [d_in]. */
static void weight_row(float *row, const struct weight *w, int out)
{
    int part = 0;
    while (out >= w->part_d_out[part])
        out -= w->part_d_out[part++];
    const size_t begin = (size_t)out * (size_t)w->d_in;
    for (int k = 0; k < w->d_in; k++)
        row[k] = element_f32(w->parts[part], w->dtype, begin + (size_t)k);
    if (w->int8) {
        float scale = int8_scale(w->parts[part], w->dtype, begin, w->d_in);
        for (int k = 0; k < w->d_in; k++)
            row[k] = (float)int8_round(row[k], scale) * scale;
    }
}

static float dot(const float *a, const float *b, int n)
{
    float sum = 0;
    for (int k = 0; k < n; k++)
        sum += a[k] * b[k];
    return sum;
}

void ref_embed(struct backend *be, struct devptr y, struct devptr token, const struct weight *w,
               int n_rows, float scale)
{
    (void)be;
    BUG_IF(w->n_parts != 1);
    for (int i = 0; i < n_rows; i++) {
        int32_t id = ref_i32(token)[i];
        float *out = ref_f32(y) + (size_t)i * (size_t)w->d_in;
        BUG_IF(id < 0 || id >= w->d_out);
        weight_row(out, w, id);
        for (int k = 0; k < w->d_in; k++)
            out[k] *= scale;
    }
}

void ref_add_rmsnorm(struct backend *be, struct devptr y, struct devptr residual, struct devptr x,
                     struct devptr w, int n_rows, int d, float eps, float w_offset)
{
    (void)be;
    for (int i = 0; i < n_rows; i++) {
        float *r = ref_f32(residual) + (size_t)i * (size_t)d;
        float *out = ref_f32(y) + (size_t)i * (size_t)d;
        if (x.addr != 0) {
            const float *in = ref_f32(x) + (size_t)i * (size_t)d;
            for (int k = 0; k < d; k++)
                r[k] += in[k];
        }
        float inverse_rms = 1.0f / sqrtf(dot(r, r, d) / (float)d + eps);
        for (int k = 0; k < d; k++)
            out[k] = r[k] * inverse_rms * (ref_f32(w)[k] + w_offset);
    }
}

/* t [n_rows of the segment, rank] = A x for one segment and one part. Returns what it wrote. */
static size_t shrink_one(float *t, const float *x, int d_in, const struct lora_seg *seg,
                         const struct lora_entry *entry)
{
    for (int i = 0; i < seg->n_rows; i++)
        for (int j = 0; j < entry->rank; j++) {
            const float *xi = x + (size_t)(seg->row_begin + i) * (size_t)d_in;
            float sum = 0;
            for (int k = 0; k < d_in; k++)
                sum += xi[k] * element_f32((const void *)entry->a.addr, (enum dtype)entry->dtype,
                                           (size_t)j * (size_t)d_in + (size_t)k);
            t[(size_t)i * (size_t)entry->rank + (size_t)j] = sum;
        }
    return (size_t)seg->n_rows * (size_t)entry->rank;
}

/* y[rows of the segment, columns of the part] += weight * scaling * B t. Returns what it read of t.
 */
static size_t expand_one(float *y, int d_out_total, const float *t, const struct lora_seg *seg,
                         const struct lora_part *part, const struct lora_entry *entry)
{
    for (int i = 0; i < seg->n_rows; i++)
        for (int o = 0; o < part->d_out; o++) {
            float sum = 0;
            for (int j = 0; j < entry->rank; j++)
                sum += t[(size_t)i * (size_t)entry->rank + (size_t)j] *
                       element_f32((const void *)entry->b.addr, (enum dtype)entry->dtype,
                                   (size_t)o * (size_t)entry->rank + (size_t)j);
            size_t at = (size_t)(seg->row_begin + i) * (size_t)d_out_total +
                        (size_t)(part->out_begin + o);
            y[at] += seg->weight * entry->scaling * sum;
        }
    return (size_t)seg->n_rows * (size_t)entry->rank;
}

void ref_sgmv_shrink(struct backend *be, struct devptr t, struct devptr x, int n_rows, int d_in,
                     const struct lora_args *lora)
{
    (void)be;
    float *out = ref_f32(t);
    for (int s = 0; s < lora->step->n_segs; s++) {
        const struct lora_seg *seg = &lora->step->segs[s];
        BUG_IF(seg->row_begin < 0 || seg->n_rows < 0 || seg->n_rows > n_rows - seg->row_begin);
        for (int p = 0; p < lora->n_parts; p++)
            out += shrink_one(out, ref_f32(x), d_in, seg, &lora->parts[p].entries[seg->slot]);
    }
}

void ref_sgmv_expand(struct backend *be, struct devptr y, struct devptr t, int n_rows,
                     int d_out_total, const struct lora_args *lora)
{
    (void)be;
    const float *in = ref_f32(t);
    for (int s = 0; s < lora->step->n_segs; s++) {
        const struct lora_seg *seg = &lora->step->segs[s];
        BUG_IF(seg->row_begin < 0 || seg->n_rows < 0 || seg->n_rows > n_rows - seg->row_begin);
        for (int p = 0; p < lora->n_parts; p++) {
            const struct lora_part *part = &lora->parts[p];
            BUG_IF(part->out_begin < 0 || part->d_out > d_out_total - part->out_begin);
            in += expand_one(ref_f32(y), d_out_total, in, seg, part, &part->entries[seg->slot]);
        }
    }
}

void ref_linear(struct backend *be, struct devptr y, struct devptr x, const struct weight *w,
                struct devptr bias, int n_rows, bool y_f32, const struct lora_args *lora)
{
    (void)y_f32; /* activations are f32 here anyway */
    float *row = xcalloc((size_t)w->d_in, sizeof *row);
    for (int o = 0; o < w->d_out; o++) {
        weight_row(row, w, o);
        for (int i = 0; i < n_rows; i++) {
            float sum = dot(row, ref_f32(x) + (size_t)i * (size_t)w->d_in, w->d_in);
            ref_f32(y)[(size_t)i * (size_t)w->d_out + (size_t)o] = bias.addr != 0
                                                                       ? sum + ref_f32(bias)[o]
                                                                       : sum;
        }
    }
    free(row);
    if (lora == NULL)
        return;
    size_t n_t = 0;
    for (int s = 0; s < lora->step->n_segs; s++)
        for (int p = 0; p < lora->n_parts; p++)
            n_t += (size_t)lora->step->segs[s].n_rows *
                   (size_t)lora->parts[p].entries[lora->step->segs[s].slot].rank;
    float *t = xcalloc(n_t, sizeof *t);
    ref_sgmv_shrink(be, (struct devptr){(uintptr_t)t}, x, n_rows, w->d_in, lora);
    ref_sgmv_expand(be, y, (struct devptr){(uintptr_t)t}, n_rows, w->d_out, lora);
    free(t);
}

/* act is SiLU: x * sigmoid(x). */
void ref_swiglu(struct backend *be, struct devptr y, struct devptr x, int n_rows, int d)
{
    (void)be;
    for (int i = 0; i < n_rows; i++)
        for (int j = 0; j < d; j++) {
            const float *row = ref_f32(x) + (size_t)i * 2 * (size_t)d;
            ref_f32(y)[(size_t)i * (size_t)d + (size_t)j] = row[j] / (1.0f + expf(-row[j])) *
                                                            row[d + j];
        }
}

void ref_gather_rows(struct backend *be, struct devptr y, struct devptr x, struct devptr rows,
                     int n, int d)
{
    (void)be;
    for (int i = 0; i < n; i++)
        memcpy(ref_f32(y) + (size_t)i * (size_t)d,
               ref_f32(x) + (size_t)ref_i32(rows)[i] * (size_t)d, (size_t)d * sizeof(float));
}

void ref_linear_swiglu(struct backend *be, struct devptr y, struct devptr scratch, struct devptr x,
                       const struct weight *w, struct devptr bias, int n_rows,
                       const struct lora_args *lora)
{
    ref_linear(be, scratch, x, w, bias, n_rows, false, lora);
    ref_swiglu(be, y, scratch, n_rows, w->d_out / 2);
}
