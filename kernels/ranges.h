/* ranges: the entries mem_reserve to mem_release of ops.h where the device's memory is the host's.
 * Shared by ref and cpu. */
#ifndef TRIBUTARY_KERNELS_RANGES_H
#define TRIBUTARY_KERNELS_RANGES_H

#include "kernels/ops.h"

struct range; /* one; a backend holds a list of them, NULL: none */

size_t ranges_granule(void); /* bytes of a page */
int ranges_reserve(struct range **list, struct devptr *out, size_t n_bytes, struct err *err);
int ranges_back(struct range *list, struct devptr p, size_t n_bytes, struct err *err);
void ranges_unback(struct range *list, struct devptr p, size_t n_bytes);
void ranges_release(struct range **list, struct devptr p);

#endif
