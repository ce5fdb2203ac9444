/* The body of POST /v1/vouchers from strangers. What is accepted reads back from what is written of
 * it; what is refused has a sentence. */
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/signed_voucher.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct signed_voucher v, again;
    struct err err = {0};
    if (signed_voucher_parse(&v, data, n, &err) != 0) {
        BUG_IF(err.code != ERR_INVALID || err.message[0] == '\0');
        return 0;
    }
    struct buf written = BUF_INIT, twice = BUF_INIT;
    signed_voucher_write(&written, &v);
    BUG_IF(written.len > SIGNED_VOUCHER_BYTES_MAX);
    BUG_IF(signed_voucher_parse(&again, written.data, written.len, &err) != 0);
    signed_voucher_write(&twice, &again);
    BUG_IF(strcmp(buf_cstr(&written), buf_cstr(&twice)) != 0);
    buf_release(&written);
    buf_release(&twice);
    return 0;
}
