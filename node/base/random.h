/* random: bytes from the kernel's generator. */
#ifndef TRIBUTARY_BASE_RANDOM_H
#define TRIBUTARY_BASE_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* Fills out [n]. Cannot fail: a kernel without randomness is not worth running on (aborts). */
void random_bytes(void *out, size_t n);
uint64_t random_u64(void);

#endif
