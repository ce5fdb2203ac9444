/* RLP from strangers: what decodes must be canonical, that is, encode back to the same bytes. */
#include "chain/rlp.h"
#include "node/base/err.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void reencode(struct buf *out, const struct rlp_item *item)
{
    if (!item->is_list) {
        rlp_string(out, item->payload, item->n_bytes);
        return;
    }
    struct buf payload = BUF_INIT;
    struct rlp_reader r = rlp_items(item);
    struct rlp_item member;
    while (rlp_next(&r, &member, NULL) == 1)
        reencode(&payload, &member);
    rlp_list(out, &payload);
    buf_release(&payload);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct rlp_item item;
    if (n > 4096 || rlp_check(data, n, NULL) != 0)
        return 0;
    BUG_IF(rlp_decode(&item, data, n, NULL) != 0);
    struct buf out = BUF_INIT;
    reencode(&out, &item);
    BUG_IF(out.len != n || memcmp(out.data, data, n) != 0);
    buf_release(&out);
    return 0;
}
