/* A safetensors file of any bytes: parsing reads nothing outside of them, and what it accepts is
 * consistent, which is checked by reading every tensor's first and last byte. */
#include "engine/safetensors.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors s;
    struct err err = {0};
    if (safetensors_parse(&s, data, size, &err) != 0) {
        if (err.code == ERR_OK || err.message[0] == '\0' || s.tensors != NULL)
            abort();
        return 0;
    }
    size_t n_data = 0;
    for (size_t i = 0; i < s.n_tensors; i++) {
        const struct tensor *t = &s.tensors[i];
        size_t n = tensor_dtype_bytes(t->dtype);
        for (int d = 0; d < t->n_dims; d++)
            n *= (size_t)t->shape[d];
        if (n != t->n_bytes || (n > 0 && (t->data < data || t->data + n > data + size)))
            abort();
        if (safetensors_find(&s, t->name) != t)
            abort();
        volatile uint8_t touched = 0;
        if (n > 0)
            touched = (uint8_t)(t->data[0] + t->data[n - 1]);
        (void)touched;
        n_data += n;
    }
    if (n_data > size)
        abort();
    safetensors_release(&s);
    return 0;
}
