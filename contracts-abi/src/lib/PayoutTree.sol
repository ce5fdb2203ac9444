// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// One leaf of a payout tree: what (kind, id, position) has earned from an operator over all its batches.
struct Payout {
    uint8 kind;
    bytes32 id;
    uint16 position;
    uint128 amount;
}

/// A subtree beside the path from a leaf to the root.
struct PayoutNode {
    bytes32 hash;
    uint128 sum;
}

/// Where a leaf lies and the siblings on its way up, the lowest first.
struct PayoutProof {
    uint32 index;
    uint32 leafCount;
    PayoutNode[] siblings;
}

// The payout tree: a Merkle *sum* tree.
//
//     leaf  = keccak256(0x00 || kind:1 || id:32 || position:2 || amount:16)              sum = amount
//     node  = keccak256(0x01 || left:32 || leftSum:16 || right:32 || rightSum:16)        sum = leftSum + rightSum
//     root  = keccak256(0x02 || top:32 || topSum:16 || leafCount:4)
//
// The shape is RFC 6962's (section 2.1): of n > 1 leaves the left subtree takes the largest power of two
// below n. Left and right stay apart and the leaf count is in the root, so a leaf's index is proven with
// it; leaves are strictly ascending by (kind, id, position), so two neighbours prove that a leaf is
// missing. Because every node carries its sum, no leaf can be worth more than the rest leaves over:
// whoever checks one path against `committed` has checked that the tree promises no more than that.
//
//                     node 01234                      5 leaves: 4 on the left (the largest 2^k < 5),
//                    /          \                     1 on the right. The proof of leaf 4 is one
//              node 0123       leaf 4                 sibling, node 0123; that of leaf 0 has three:
//              /      \                               leaf 1, node 23, leaf 4.
//          node 01  node 23
//
// The one-byte prefixes keep a leaf from being read as a node (second preimage) and a node as a root.
library PayoutTree {
    uint8 internal constant KIND_OPERATOR = 0; // id = the operator's address as a number, position 0
    uint8 internal constant KIND_ADAPTER = 1; // id = adapterId, position = index in the splits' payees
    uint8 internal constant KIND_DATANET = 2; // id = datanetId, position 0

    /// The siblings don't lead from this index to the top of a tree with this many leaves.
    error PayoutProofShape(uint32 index, uint32 leafCount, uint256 siblings);

    function leafHash(Payout calldata payout) internal pure returns (bytes32) {
        return keccak256(
            abi.encodePacked(uint8(0), payout.kind, payout.id, payout.position, payout.amount)
        );
    }

    function nodeHash(bytes32 left, uint128 leftSum, bytes32 right, uint128 rightSum)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encodePacked(uint8(1), left, leftSum, right, rightSum));
    }

    function rootHash(bytes32 top, uint128 topSum, uint32 leafCount) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(2), top, topSum, leafCount));
    }

    /// Climbs from a leaf to the root; the caller compares both results with what a batch says.
    /// The walk is that of RFC 9162, section 2.1.3.2, which verifies inclusion in RFC 6962's trees.
    /// Sums are checked: an overflow reverts.
    function climb(Payout calldata payout, PayoutProof calldata proof)
        internal
        pure
        returns (bytes32 root, uint128 sum)
    {
        if (proof.index >= proof.leafCount) revert PayoutProofShape(proof.index, proof.leafCount, proof.siblings.length);
        uint256 node = proof.index; // RFC: fn, the node on the path, counted within its level
        uint256 last = proof.leafCount - 1; // RFC: sn, the last node of that level
        bytes32 hash = leafHash(payout);
        sum = payout.amount;
        for (uint256 i = 0; i < proof.siblings.length; i++) {
            if (last == 0) revert PayoutProofShape(proof.index, proof.leafCount, proof.siblings.length);
            PayoutNode calldata sibling = proof.siblings[i];
            if (node & 1 == 1 || node == last) {
                hash = nodeHash(sibling.hash, sibling.sum, hash, sum);
                // The last node of a level with no right neighbour rises until it has a left one.
                while (node & 1 == 0 && node != 0) {
                    node >>= 1;
                    last >>= 1;
                }
            } else {
                hash = nodeHash(hash, sum, sibling.hash, sibling.sum);
            }
            sum += sibling.sum;
            node >>= 1;
            last >>= 1;
        }
        if (last != 0) revert PayoutProofShape(proof.index, proof.leafCount, proof.siblings.length);
        root = rootHash(hash, sum, proof.leafCount);
    }
}
