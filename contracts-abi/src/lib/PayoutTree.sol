// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// One leaf of a payout tree: what (kind, id, position) has earned from an operator over all its
/// batches.
struct Payout {
    uint8 kind;
    bytes32 id;
    uint16 position;
    uint128 amount;
}

/// Where a leaf lies, and the subtrees beside its way up, the lowest first: 48 bytes each, hash
/// (32) and sum (16, big-endian), end to end.
struct PayoutProof {
    uint32 index;
    uint32 leafCount;
    bytes siblings;
}

// The payout tree: a Merkle *sum* tree.
//
//     leaf  = keccak256(0x00 || kind:1 || id:32 || position:2 || amount:16)        sum: amount
//     node  = keccak256(0x01 || left:32 || leftSum:16 || right:32 || rightSum:16)  sum: both sums
//     root  = keccak256(0x02 || top:32 || topSum:16 || leafCount:4)
//
// The shape is RFC 6962's (section 2.1): of n > 1 leaves the left subtree takes the largest power
// of two below n. Left and right stay apart and the leaf count is in the root, so a leaf's index is
// proven with it; leaves are strictly ascending by (kind, id, position), so two neighbours prove
// that a leaf is missing. Because every node carries its sum, no leaf can be worth more than the
// rest leaves over: whoever checks one path against `committed` has checked that the tree promises
// no more than that.
//
//                node 01234             5 leaves: 4 on the left (the largest 2^k < 5),
//               /          \            1 on the right. The proof of leaf 4 is one
//          node 0123      leaf 4        sibling, node 0123; that of leaf 0 has three:
//          /      \                     leaf 1, node 23, leaf 4.
//      node 01  node 23
//
// The one-byte prefixes keep a leaf from being read as a node (second preimage) and a node as a
// root.
library PayoutTree {
    uint8 internal constant KIND_OPERATOR = 0; // id: the operator's address; position 0
    uint8 internal constant KIND_ADAPTER = 1; // position: index in the splits' payees
    uint8 internal constant KIND_DATANET = 2; // position 0

    /// The siblings don't lead from this index to the top of a tree with this many leaves.
    error PayoutProofShape(uint32 index, uint32 leafCount, uint256 siblingBytes);
    /// The sums on the way to the top exceed 2^128 - 1.
    error PayoutSumOverflow(uint256 sum);

    /// Climbs from a leaf to the root; the caller compares both results with what a batch says.
    ///
    /// At each level the path has a sibling, to the left of an odd node and to the right of an even
    /// one, with one exception: the last node of a level, if even, has none and rises as it is. A
    /// path that has met the right edge stays on it, so there are two loops: up to the edge, then
    /// along it. (RFC 9162, section 2.1.3.2 walks the same way with fn, here `node`, and sn, here
    /// `last`.)
    ///
    /// Ten siblings are climbed with each claim, so nodes are hashed in assembly: 5,000 gas less
    /// than slices and abi.encodePacked cost. test/PayoutTree.t.sol holds this against the
    /// definition written plainly.
    function climb(Payout calldata payout, PayoutProof calldata proof)
        internal
        pure
        returns (bytes32 root, uint128 sum)
    {
        bytes calldata siblings = proof.siblings;
        uint256 node = proof.index;
        uint256 last = proof.leafCount;
        if (node >= last) revert PayoutProofShape(proof.index, proof.leafCount, siblings.length);
        bytes32 hash = _leaf(payout.kind, payout.id, payout.position, payout.amount);
        // Sums never decrease on the way up, so one check of the last one covers all of them: a sum
        // that doesn't fit 16 bytes is hashed wrongly below, and refused at the end.
        uint256 total = payout.amount;
        // Calldata offset of the next sibling. Reading past the last one does no harm, because the
        // proof is refused unless it ends where the walk ends.
        uint256 next;
        uint256 end;
        assembly ("memory-safe") {
            next := siblings.offset
            end := add(next, siblings.length)
        }
        unchecked {
            last -= 1;
            while (node != last) {
                (hash, total) = node & 1 == 1
                    ? _joinLeft(next, hash, total)
                    : _joinRight(next, hash, total);
                next += 48;
                node >>= 1;
                last >>= 1;
            }
            while (node != 0) {
                if (node & 1 == 1) {
                    (hash, total) = _joinLeft(next, hash, total);
                    next += 48;
                }
                node >>= 1;
            }
        }
        if (next != end) revert PayoutProofShape(proof.index, proof.leafCount, siblings.length);
        if (total > type(uint128).max) revert PayoutSumOverflow(total);
        sum = uint128(total);
        root = _root(hash, sum, proof.leafCount);
    }

    /// keccak256(abi.encodePacked(uint8(0), kind, id, position, amount)). Like all below it is put
    /// together beyond the free memory pointer and not kept.
    function _leaf(uint8 kind, bytes32 id, uint16 position, uint128 amount)
        private
        pure
        returns (bytes32 hash)
    {
        assembly ("memory-safe") {
            let buffer := mload(0x40)
            mstore(buffer, shl(240, kind)) // 00 kind
            mstore(add(buffer, 2), id)
            mstore(add(buffer, 34), or(shl(240, position), shl(112, amount)))
            hash := keccak256(buffer, 52)
        }
    }

    /// keccak256(abi.encodePacked(uint8(2), top, sum, leafCount))
    function _root(bytes32 top, uint128 sum, uint32 leafCount)
        private
        pure
        returns (bytes32 hash)
    {
        assembly ("memory-safe") {
            let buffer := mload(0x40)
            mstore8(buffer, 2)
            mstore(add(buffer, 1), top)
            mstore(add(buffer, 33), or(shl(128, sum), shl(96, leafCount)))
            hash := keccak256(buffer, 53)
        }
    }

    /// The parent of a node and the sibling at calldata offset `sibling`, to its left: its hash,
    /// keccak256(abi.encodePacked(uint8(1), left, leftSum, right, rightSum)), and its sum.
    function _joinLeft(uint256 sibling, bytes32 hash, uint256 sum)
        private
        pure
        returns (bytes32 parent, uint256 total)
    {
        assembly ("memory-safe") {
            let buffer := mload(0x40)
            mstore8(buffer, 1)
            calldatacopy(add(buffer, 1), sibling, 48)
            mstore(add(buffer, 49), hash)
            mstore(add(buffer, 81), shl(128, sum))
            parent := keccak256(buffer, 97)
            total := add(sum, shr(128, calldataload(add(sibling, 32))))
        }
    }

    /// As _joinLeft, with the sibling to the right.
    function _joinRight(uint256 sibling, bytes32 hash, uint256 sum)
        private
        pure
        returns (bytes32 parent, uint256 total)
    {
        assembly ("memory-safe") {
            let buffer := mload(0x40)
            mstore8(buffer, 1)
            mstore(add(buffer, 1), hash)
            mstore(add(buffer, 33), shl(128, sum)) // 16 bytes; the other 16 are overwritten next
            calldatacopy(add(buffer, 49), sibling, 48)
            parent := keccak256(buffer, 97)
            total := add(sum, shr(128, calldataload(add(sibling, 32))))
        }
    }
}
