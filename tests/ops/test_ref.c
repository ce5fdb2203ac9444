/* ref against numbers worked out by hand: the specification's own check. */
#include "tests/ops/harness.h"

static void near(const float *got, const float *want, int n, const char *what)
{
    for (int i = 0; i < n; i++)
        if (!(fabsf(got[i] - want[i]) <= 1e-6f * (1 + fabsf(want[i]))))
            fail_msg("%s: element %d is %.8g, by hand %.8g", what, i, (double)got[i],
                     (double)want[i]);
}

/* W = [1 2; 3 4; 5 6] as two parts (2 + 1), x = (1, -1), bias (10, 20, 30): W x = (-1, -1, -1).
 * Adapter on part 1 (column 2): A = [2 1], B = [3], scaling 0.5, weight 2: delta = 1 * 3 * (2 - 1)
 * = 3. */
static void linear_with_an_adapter(void **state)
{
    (void)state;
    struct dev d;
    struct err err = {0};
    struct weight *w;
    const float part0[] = {1, 2, 3, 4}, part1[] = {5, 6}, x[] = {1, -1}, bias[] = {10, 20, 30};
    const float a[] = {2, 1}, b[] = {3};
    const void *parts[] = {part0, part1};
    const int d_out[] = {2, 1};
    float y[3];
    dev_open(&d, "ref", 1, NULL);
    assert_ok(d.ops->weight_create(d.be, &w, parts, d_out, 2, 2, DTYPE_F32, &err), err);
    struct lora_entry none = {0}, entry = {dev_put(&d, a, sizeof a),
                                           dev_put(&d, b, sizeof b),
                                           1,
                                           0.5f,
                                           DTYPE_F32,
                                           0};
    struct lora_part lora_parts[] = {{&none, {0}, 0, 2}, {&entry, {0}, 2, 1}};
    struct lora_seg seg = {0, 1, 0, 2};
    struct lora_step step = {.n_segs = 1, .segs = &seg};
    struct lora_args lora = {.step = &step, .parts = lora_parts, .n_parts = 2};
    struct devptr d_y = dev_alloc(&d, sizeof y), d_x = dev_put(&d, x, sizeof x);
    d.ops->linear(d.be, d_y, d_x, w, (struct devptr){0}, 1, true, NULL);
    dev_get(&d, y, d_y, sizeof y);
    near(y, (const float[]){-1, -1, -1}, 3, "base");
    d.ops->linear(d.be, d_y, d_x, w, dev_put(&d, bias, sizeof bias), 1, true, &lora);
    dev_get(&d, y, d_y, sizeof y);
    near(y, (const float[]){9, 19, 32}, 3, "bias and adapter");
    d.ops->weight_free(d.be, w);
    dev_close(&d);
}

/* residual (3, 0) + x (0, 4) = (3, 4): rms = sqrt(25 / 2); w = (1, 2), offset 1. */
static void add_rmsnorm_and_swiglu(void **state)
{
    (void)state;
    struct dev d;
    const float r[] = {3, 0}, x[] = {0, 4}, w[] = {1, 2};
    float y[2], root = sqrtf(12.5f);
    dev_open(&d, "ref", 1, NULL);
    struct devptr d_r = dev_put(&d, r, sizeof r), d_y = dev_alloc(&d, sizeof y);
    d.ops->add_rmsnorm(d.be, d_y, d_r, dev_put(&d, x, sizeof x), dev_put(&d, w, sizeof w), 1, 2, 0,
                       1);
    dev_get(&d, y, d_y, sizeof y);
    near(y, (const float[]){6 / root, 12 / root}, 2, "norm");
    dev_get(&d, y, d_r, sizeof y);
    near(y, (const float[]){3, 4}, 2, "residual");
    /* gate (0, ln 3), up (5, 4): silu(0) = 0; silu(ln 3) = ln 3 * 3/4 */
    const float g[] = {0, logf(3), 5, 4};
    d.ops->swiglu(d.be, d_y, dev_put(&d, g, sizeof g), 1, 2);
    dev_get(&d, y, d_y, sizeof y);
    near(y, (const float[]){0, 3 * logf(3)}, 2, "swiglu");
    dev_close(&d);
}

/* One head of 2, two tokens; no rope for the scores: q1 = (1, 0), k0 = (0, 0), k1 = (ln 3, 0), so
 * the weights are 1/4 and 3/4; v0 = (4, 0), v1 = (0, 8): y = (1, 6). Window 1: y = v1. Then a
 * rotation by 90 degrees at position 1: (1, 2) -> (-2, 1). */
static void attention_window_and_rotation(void **state)
{
    (void)state;
    struct dev d;
    const float qkv[] = {0, 0, 0, 0, 4, 0, 1, 0, logf(3), 0, 0, 8};
    const int32_t indptr[] = {0, 2}, kv_len[] = {2}, position[] = {0, 1};
    const int32_t slot[] = {BLOCK_TOKENS, BLOCK_TOKENS + 1}, table[] = {1};
    float y[4], zero[2 * BLOCK_TOKENS * 2] = {0};
    dev_open(&d, "ref", 1, NULL);
    struct kv_layer kv = {dev_put(&d, zero, sizeof zero), dev_put(&d, zero, sizeof zero),
                          DTYPE_F32};
    struct batch batch = {.n_rows = 2,
                          .n_seqs = 1,
                          .max_blocks = 1,
                          .seq_indptr = indptr,
                          .kv_len = kv_len,
                          .position = position,
                          .d_slot = dev_put(&d, slot, sizeof slot),
                          .d_block_table = dev_put(&d, table, sizeof table)};
    struct attention_shape shape = {1, 1, 2, 1, 0, 0};
    struct devptr d_qkv = dev_put(&d, qkv, sizeof qkv), d_y = dev_alloc(&d, sizeof y);
    d.ops->rope_kv_write(d.be, d_qkv, &kv, &batch, &shape, NULL);
    d.ops->attention(d.be, d_y, d_qkv, &kv, &batch, &shape);
    dev_get(&d, y, d_y, sizeof y);
    near(y, (const float[]){4, 0, 1, 6}, 4, "attention");
    shape.window = 1;
    d.ops->attention(d.be, d_y, d_qkv, &kv, &batch, &shape);
    dev_get(&d, y, d_y, sizeof y);
    near(y, (const float[]){4, 0, 0, 8}, 4, "window of one");

    const float again[] = {1, 2, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6}, angles[] = {1, 0, 0, 1};
    float out[12];
    struct rope_shape rope = {2, dev_put(&d, angles, sizeof angles), {0}, {0}, 0};
    d_qkv = dev_put(&d, again, sizeof again);
    d.ops->rope_kv_write(d.be, d_qkv, &kv, &batch, &shape, &rope);
    dev_get(&d, out, d_qkv, sizeof out);
    near(out, (const float[]){1, 2, 0, 0, 0, 0, -2, 1, -4, 3, 5, 6}, 12, "rotation");
    dev_get(&d, out, devptr_at(kv.k, (BLOCK_TOKENS + 1) * 2 * sizeof(float)), 2 * sizeof(float));
    near(out, (const float[]){-4, 3}, 2, "K in its slot");
    dev_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(linear_with_an_adapter),
        cmocka_unit_test(add_rmsnorm_and_swiglu),
        cmocka_unit_test(attention_window_and_rotation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
