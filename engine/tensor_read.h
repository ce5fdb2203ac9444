/* tensor_read: bytes of a file that may become shorter at any moment. */
#ifndef TRIBUTARY_ENGINE_TENSOR_READ_H
#define TRIBUTARY_ENGINE_TENSOR_READ_H

#include <stddef.h>
#include <stdint.h>

struct err;

/* Bytes [at, at + n) of fd to out. ERR_IO when they are not all there; the error doesn't know the
 * file's name. */
int tensor_read_bytes(int fd, uint8_t *out, size_t at, size_t n, struct err *err);

#endif
