/* rlp: recursive length prefix, Ethereum's encoding of nested byte strings (Yellow Paper, appendix
 * B).
 *
 * Encoding appends to a buf: strings at once, lists by length of an already encoded payload.
 * Decoding is strict: exactly one canonical encoding of each value is accepted (shortest length
 * form, single bytes below 0x80 as themselves, no trailing bytes), so that no two texts of a
 * transaction have one meaning. */
#ifndef TRIBUTARY_CHAIN_RLP_H
#define TRIBUTARY_CHAIN_RLP_H

#include "chain/u256.h"
#include "node/base/buf.h"

#include <stdbool.h>

struct err;

void rlp_string(struct buf *out, const void *bytes, size_t n);
void rlp_u64(struct buf *out, uint64_t v); /* big-endian without leading zeros; 0 is "" */
void rlp_u256(struct buf *out, struct u256 v);
void rlp_list(struct buf *out, const struct buf *payload); /* payload: the items, encoded */

struct rlp_item { /* points into the decoded bytes */
    const uint8_t *payload;
    size_t n_bytes; /* of the payload */
    bool is_list;
};

struct rlp_reader { /* what is left of a list, or of the input */
    const uint8_t *at;
    size_t left;
};

/* The one item that bytes [n] are; ERR_INVALID says why they are not. The items of a list are
 * checked when they are read; rlp_check reads them all. */
int rlp_decode(struct rlp_item *out, const void *bytes, size_t n, struct err *err);
struct rlp_reader rlp_items(const struct rlp_item *list);
/* 1 and the next item, 0 at the end, -1 with ERR_INVALID. */
int rlp_next(struct rlp_reader *r, struct rlp_item *out, struct err *err);
/* Whether everything nested in bytes [n] is canonical, to a depth of 1,024. */
int rlp_check(const void *bytes, size_t n, struct err *err);

/* A string item as a number: no leading zeros, at most 8 or 32 bytes. */
int rlp_to_u64(uint64_t *out, const struct rlp_item *item, struct err *err);
int rlp_to_u256(struct u256 *out, const struct rlp_item *item, struct err *err);

#endif
