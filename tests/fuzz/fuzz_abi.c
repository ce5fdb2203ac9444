/* ABI types and data from strangers. The input is a type, a zero byte, and data; what decodes must
 * encode back to the same bytes. */
#include "chain/abi.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    const uint8_t *zero = memchr(data, 0, n);
    if (zero == NULL)
        return 0;
    const char *type = (const char *)data;
    size_t n_data = n - (size_t)(zero - data) - 1;
    json_t *value = abi_decode(type, zero + 1, n_data, NULL);
    if (value == NULL)
        return 0;
    struct buf out = BUF_INIT;
    BUG_IF(abi_encode(&out, type, value, NULL) != 0);
    BUG_IF(out.len != n_data || (n_data > 0 && memcmp(out.data, zero + 1, n_data) != 0));
    buf_release(&out);
    json_decref(value);
    return 0;
}
