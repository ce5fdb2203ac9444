/* sha256: FIPS 180-4, by OpenSSL. */
#ifndef TRIBUTARY_BASE_SHA256_H
#define TRIBUTARY_BASE_SHA256_H

#include "node/base/digest.h"

#include <stddef.h>

struct sha256 { /* in progress; opaque, may be copied */
    _Alignas(16) uint8_t state[128];
};

void sha256_init(struct sha256 *h);
void sha256_update(struct sha256 *h, const void *bytes, size_t n);
struct sha256_digest sha256_final(struct sha256 *h);

struct sha256_digest sha256(const void *bytes, size_t n);

/* Hashes a file while reading it in pieces. Fails naming the path; *size_bytes (may be NULL) is
 * the number of bytes hashed. */
struct err;
int sha256_file(const char *path, struct sha256_digest *out, uint64_t *size_bytes, struct err *err);

#endif
