/* payout: who earned what. Splits of a royalty, and the payout tree
 * (contracts-abi/src/lib/PayoutTree.sol).
 *
 * A payout leaf is the cumulative amount that (kind, id, position) has earned from one operator
 * over all its batches. The tree is a Merkle sum tree in RFC 6962's shape:
 *
 *     leaf  = keccak256(0x00 || kind:1 || id:32 || position:2 || amount:16)
 *     node  = keccak256(0x01 || left:32 || leftSum:16 || right:32 || rightSum:16)
 *     root  = keccak256(0x02 || top:32 || topSum:16 || leafCount:4)
 *
 * with integers big-endian and the leaves strictly ascending by (kind, id, position). The sum of
 * the root is the batch's `committed`. Pure; any thread. */
#ifndef TRIBUTARY_ATTRIBUTION_PAYOUT_H
#define TRIBUTARY_ATTRIBUTION_PAYOUT_H

#include "attribution/attribution.h"
#include "node/base/amount.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct payout { /* one leaf */
    enum payout_kind kind;
    uint8_t id[32]; /* operator: its address, left-padded; adapterId; Datanet id */
    uint16_t position;
    struct amount amount;
};

struct payout_node {
    uint8_t hash[32];
    struct amount sum;
};

enum { PAYOUT_PROOF_MAX = 32 };

/* -1, 0, 1 by (kind, id, position); the amount doesn't take part. */
int payout_compare(const struct payout *a, const struct payout *b);
const char *payout_kind_name(enum payout_kind kind); /* "operator", "adapter", "datanet" */

/* Splits amount over n shares of bps that sum to 10,000: each gets floor(amount * bps / 10,000),
 * and what is left over goes, one unit each, to the largest remainders; of equal ones to the lower
 * position. parts sum to amount exactly. Positions of the manifest come first, then Datanets. */
void payout_split(struct amount *parts, struct amount amount, const uint16_t *bps, size_t n);

/* root [32] and sum of leaves [n], n from 1 to 2^32 - 1. ERR_INVALID when they don't ascend
 * strictly (the sentence names the first that doesn't) or the sum overflows. */
int payout_root(uint8_t root[32], struct amount *sum, const struct payout *leaves, size_t n,
                struct err *err);

/* The siblings of leaf i, the lowest first, into siblings [PAYOUT_PROOF_MAX]; returns their number.
 * leaves as payout_root has accepted them. */
size_t payout_proof(struct payout_node *siblings, const struct payout *leaves, size_t n, size_t i);

/* Climbs from a leaf as the contract does: root and sum, for the caller to compare with the batch.
 * ERR_INVALID when the siblings don't lead to the top of a tree of n leaves, or sums overflow. */
int payout_climb(uint8_t root[32], struct amount *sum, const struct payout *leaf, uint32_t i,
                 uint32_t n, const struct payout_node *siblings, size_t n_siblings,
                 struct err *err);

#endif
