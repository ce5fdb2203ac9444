/* lora: one adapter in host memory, checked against its base model. Immutable after opening.
 *
 * What its matrices are held as, in host memory and on the device. Most adapters are saved as F32,
 * whatever they were trained beside, because peft casts them so; many others are F16. Where
 * activations and base weights are bf16, as those of a bf16 model on cuda are, every factor beside
 * them is rounded that far already; an F32 adapter costs twice the memory and copying there, and
 * cuda multiplies an F32 as three bf16 numbers and an F16 as two. So they are held as bf16 then,
 * rounded to nearest, as other servers do. Elsewhere they are held as in their file, also beside an
 * f16 model: an f16 ends at 65504, is coarse below 6e-5 and 0 below 3e-8, so that an F32 adapter
 * could lose what matters or be refused, to be multiplied as two numbers instead of three. Who
 * prefers speed there, or half the memory on a cpu, asks for bf16, which has the range of an F32.
 */
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

/* FILE: as in the file; matrices of one site that differ there as F32, which holds both exactly. */
enum lora_held { LORA_HELD_FILE, LORA_HELD_BF16 };

/* What engine_options.adapter_dtype (NULL: "auto") comes to beside such activations and weights.
 * ERR_INVALID: it is none of "auto", "file" and "bf16". */
int lora_held_for(enum lora_held *out, const char *adapter_dtype, const struct model *model,
                  enum dtype activation, struct err *err);

struct lora_site {
    int site; /* model.h */
    int rank; /* true rank, nothing padded */
    float scaling;
    enum dtype dtype; /* of both matrices, here and on the device */
    /* In lora_adapter.data: A [rank, d_in], then B [d_out, rank]; both begin aligned. */
    size_t a_offset, b_offset, end_offset;
};

struct lora_adapter {
    struct content_digest content; /* of the files */
    int rank_max;                  /* of any site */
    int rank_sum_max;              /* of any fused linear's parts together */
    int rank_mean;                 /* over all of the model's sites, rounded up */
    int n_sites;
    struct lora_site *sites; /* [n_sites] ascending by site */
    uint8_t *data;           /* [n_bytes] */
    size_t n_bytes;
    struct host_memory *home; /* data's; NULL: malloc's */
    char targets[256];        /* "q_proj v_proj" */
};

/* Reads dir (PEFT layout) and checks every tensor's name, shape, dtype and numbers against the base
 * model: nothing may be missing, nothing surplus, nothing infinite (of f32 not as a bf16 either).
 * max_bytes bounds its n_bytes, and twice that its files. The matrices lie in `home`, which must
 * outlive it, or on the heap (NULL). The error names the file, the tensor or the key, and not dir.
 */
int lora_open(struct lora_adapter **out, const struct model_config *model, const char *dir,
              enum lora_held held, size_t max_bytes, struct host_memory *home, struct err *err);

/* Its n_bytes, from the headers of the same files, with the same checks but those of numbers. */
int lora_measure(size_t *n_bytes, const struct model_config *model, const char *dir,
                 enum lora_held held, size_t max_bytes, struct err *err);

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
