/* merkle: OpenZeppelin's standard Merkle tree: build, prove, verify.
 *
 * Sources: npm @openzeppelin/merkle-tree 1.0.8 (layout, multiproofs), MerkleProof.sol
 * (verification). The ledger uses the unsorted variant for receipts: leaf i is receipt i of the
 * batch, leaf = keccak256(keccak256(abi.encode(uint32 position, bytes32 receiptHash))) hashed twice
 * so that a leaf is never mistaken for a node. Pure; any thread. */
#ifndef TRIBUTARY_ATTRIBUTION_MERKLE_H
#define TRIBUTARY_ATTRIBUTION_MERKLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

struct merkle_node {
    uint8_t bytes[32];
};

struct merkle {
    size_t n_leaves;
    struct merkle_node *nodes; /* [2 * n_leaves - 1], the root first */
    size_t *place;             /* [n_leaves] where leaf i lies in nodes */
};

enum { MERKLE_PROOF_MAX = 32 }; /* siblings of a leaf among at most 2^32 */

/* leaves [n], n from 1 to 2^32: hashes of the values. sorted: leaves are placed by their hash,
 * the package's default; otherwise in the given order. Numbers of leaves are those of the given
 * order in both. The memory is released by merkle_release. */
void merkle_init(struct merkle *m, const struct merkle_node *leaves, size_t n, bool sorted);
void merkle_release(struct merkle *m);
struct merkle_node merkle_root(const struct merkle *m);

/* The siblings of leaf i, the lowest first, into proof [MERKLE_PROOF_MAX]; returns their number. */
size_t merkle_proof(const struct merkle *m, size_t i, struct merkle_node *proof);
bool merkle_verify(struct merkle_node root, struct merkle_node leaf,
                   const struct merkle_node *proof, size_t n);

/* A proof of several leaves at once. All three arrays are the callee's; merkle_multiproof_release.
 */
struct merkle_multiproof {
    size_t n_leaves, n_proof, n_flags;
    struct merkle_node *leaves; /* in the order in which the verifier wants them */
    struct merkle_node *proof;
    bool *flags; /* step i takes its right operand from: true, leaves and results; false, proof */
};
/* indices [n] of leaves, in any order, none twice (ERR_INVALID). */
int merkle_multiproof(struct merkle_multiproof *out, const struct merkle *m, const size_t *indices,
                      size_t n, struct err *err);
bool merkle_multiproof_verify(struct merkle_node root, const struct merkle_multiproof *p);
void merkle_multiproof_release(struct merkle_multiproof *p);

/* The leaf of a receipt in a batch's receipts tree. */
struct merkle_node merkle_receipt_leaf(uint32_t position, const uint8_t receipt_hash[32]);

#endif
