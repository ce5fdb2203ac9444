/* lora: one adapter in host memory, checked against its base model. Immutable after opening. */
#ifndef TRIBUTARY_ENGINE_LORA_H
#define TRIBUTARY_ENGINE_LORA_H

#include "engine/model.h"
#include "kernels/ops.h"
#include "node/base/digest.h"

#include <stddef.h>

struct err;
struct host_memory;

enum {
    LORA_ALIGN_BYTES = 256,   /* of every matrix on the device */
    LORA_RANK_SUM_MAX = 4096, /* sum of a row's ranks over the parts of one fused linear */
};

struct lora_site {
    int site; /* model.h */
    int rank; /* true rank, nothing padded */
    float scaling;
    enum dtype dtype; /* of both matrices */
    /* In lora_adapter.data: A [rank, d_in], then B [d_out, rank]; both begin aligned. */
    size_t a_offset, b_offset, end_offset;
};

struct lora_adapter {
    struct content_digest content;
    int rank_max;     /* of any site */
    int rank_sum_max; /* of any fused linear's parts together */
    int n_sites;
    struct lora_site *sites; /* [n_sites] ascending by site */
    uint8_t *data;           /* [n_bytes] */
    size_t n_bytes;
    struct host_memory *home; /* data's; NULL: malloc's */
    char targets[256];        /* "q_proj v_proj" */
};

/* Reads dir (PEFT layout) and checks every tensor's name, shape, dtype and numbers against the base
 * model: nothing may be missing, nothing surplus, nothing infinite (of f32 not as a bf16 either).
 * max_bytes bounds its files. The matrices lie in `home`, which must outlive it, or on the heap
 * (NULL). The error names the file, the tensor or the key, and not dir. */
int lora_open(struct lora_adapter **out, const struct model_config *model, const char *dir,
              size_t max_bytes, struct host_memory *home, struct err *err);
void lora_close(struct lora_adapter *a); /* quiet on NULL */

/* Moves the matrices of one that is on the heap. On failure it stays where it is. */
int lora_move(struct lora_adapter *a, struct host_memory *home, struct err *err);

/* An adapter with seeded random A and B, none of them zero, on every linear module: for
 * measurements and tests. B is small, so that texts stay texts. */
struct lora_adapter *lora_random(const struct model_config *model, int rank, enum dtype dtype,
                                 uint64_t seed);

/* The same with the sites' own ranks [model_n_sites], 0: left alone, and scalings (NULL: 1). */
struct lora_adapter *lora_random_mixed(const struct model_config *model, const int *ranks,
                                       const float *scalings, enum dtype dtype, uint64_t seed);

#endif
