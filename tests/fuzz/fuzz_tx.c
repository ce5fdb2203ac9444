/* Transactions from strangers: what is parsed must be written back as the same bytes. */
#include "chain/tx.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct arena arena = ARENA_INIT;
    struct tx tx;
    struct signature sig;
    bool is_signed;
    if (tx_parse(&tx, &sig, &is_signed, &arena, data, n, NULL) == 0) {
        struct buf again = BUF_INIT;
        struct u256 cost;
        if (is_signed)
            tx_write_signed(&again, &tx, &sig);
        else
            tx_write_unsigned(&again, &tx);
        BUG_IF(again.len != n || memcmp(again.data, data, n) != 0);
        tx_signing_digest(&tx);
        tx_cost_limit(&cost, &tx);
        buf_release(&again);
    }
    arena_release(&arena);
    return 0;
}
