/* The header x-tributary-request from strangers. What is accepted reads back from what is written
 * of it; what is refused has a sentence. */
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/signed_request.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct signed_request q, again;
    struct err err = {0};
    char *text = xstrndup((const char *)data, n); /* as a header: it ends at the first NUL */
    if (signed_request_parse(&q, text, &err) == 0) {
        struct buf written = BUF_INIT, twice = BUF_INIT;
        signed_request_write(&written, &q);
        BUG_IF(written.len > SIGNED_REQUEST_BYTES_MAX);
        BUG_IF(signed_request_parse(&again, buf_cstr(&written), &err) != 0);
        signed_request_write(&twice, &again);
        BUG_IF(strcmp(buf_cstr(&written), buf_cstr(&twice)) != 0);
        buf_release(&written);
        buf_release(&twice);
    } else {
        BUG_IF(err.code != ERR_INVALID || err.message[0] == '\0');
    }
    free(text);
    return 0;
}
