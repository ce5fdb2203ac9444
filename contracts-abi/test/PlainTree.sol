// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Payout, PayoutProof} from "../src/lib/PayoutTree.sol";

/// The payout tree as RFC 6962, section 2.1 defines it, by recursion and with abi.encodePacked:
/// slow, and short enough to believe. The tests build trees with it and hold PayoutTree against it.
library PlainTree {
    function leaf(Payout memory p) internal pure returns (bytes32) {
        return keccak256(abi.encodePacked(uint8(0), p.kind, p.id, p.position, p.amount));
    }

    function join(bytes32 left, uint128 leftSum, bytes32 right, uint128 rightSum)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encodePacked(uint8(1), left, leftSum, right, rightSum));
    }

    /// The largest power of two below n, for n > 1.
    function cut(uint256 n) internal pure returns (uint256 k) {
        k = 1;
        while (k * 2 < n) k *= 2;
    }

    /// Hash and sum of leaves[from .. from + n).
    function top(Payout[] memory leaves, uint256 from, uint256 n)
        internal
        pure
        returns (bytes32 hash, uint128 sum)
    {
        if (n == 1) return (leaf(leaves[from]), leaves[from].amount);
        uint256 k = cut(n);
        (bytes32 left, uint128 leftSum) = top(leaves, from, k);
        (bytes32 right, uint128 rightSum) = top(leaves, from + k, n - k);
        return (join(left, leftSum, right, rightSum), leftSum + rightSum);
    }

    function root(Payout[] memory leaves) internal pure returns (bytes32 payoutRoot, uint128 sum) {
        bytes32 hash;
        (hash, sum) = top(leaves, 0, leaves.length);
        payoutRoot = keccak256(abi.encodePacked(uint8(2), hash, sum, uint32(leaves.length)));
    }

    function proof(Payout[] memory leaves, uint256 index)
        internal
        pure
        returns (PayoutProof memory)
    {
        return PayoutProof(
            uint32(index), uint32(leaves.length), path(leaves, 0, leaves.length, index)
        );
    }

    /// The siblings of leaf from + m, the lowest first.
    function path(Payout[] memory leaves, uint256 from, uint256 n, uint256 m)
        internal
        pure
        returns (bytes memory)
    {
        if (n == 1) return "";
        uint256 k = cut(n);
        (bytes32 hash, uint128 sum) = m < k ? top(leaves, from + k, n - k) : top(leaves, from, k);
        bytes memory below =
            m < k ? path(leaves, from, k, m) : path(leaves, from + k, n - k, m - k);
        return abi.encodePacked(below, hash, sum);
    }
}
