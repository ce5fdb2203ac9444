/* tensor_numbers: the numbers of F32, F16 and BF16 tensors, many at a time: are they finite, and
 * what are they as another dtype. Nothing here is aligned to anything. */
#ifndef TRIBUTARY_ENGINE_TENSOR_NUMBERS_H
#define TRIBUTARY_ENGINE_TENSOR_NUMBERS_H

#include "engine/safetensors.h"

/* Are the n numbers at `in` finite? Of F32 as a bf16, too: those from 3.396e38 on aren't. */
bool tensor_numbers_finite(const uint8_t *in, enum tensor_dtype dtype, size_t n);

/* out [n] numbers of dtype `to`, F32 or BF16, from in [n] of dtype `from`, which must be finite in
 * that sense; out and in don't overlap. To F32 exactly; to BF16 to the nearest, ties to even. */
void tensor_numbers_convert(uint8_t *restrict out, enum tensor_dtype to, const uint8_t *restrict in,
                            enum tensor_dtype from, size_t n);

#endif
