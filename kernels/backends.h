/* backends: the tables behind ops_find. Private to kernels/. */
#ifndef TRIBUTARY_KERNELS_BACKENDS_H
#define TRIBUTARY_KERNELS_BACKENDS_H

#include "kernels/ops.h"

extern const struct ops ops_ref;
extern const struct ops ops_cpu;
#ifdef TRIBUTARY_CUDA /* defined by the Makefile when nvcc was found */
extern const struct ops ops_cuda;
#endif

#endif
