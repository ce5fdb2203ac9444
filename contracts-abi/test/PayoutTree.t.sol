// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";

import {Fixture} from "./Fixture.sol";
import {PlainTree} from "./PlainTree.sol";
import {Payout, PayoutProof, PayoutTree} from "../src/lib/PayoutTree.sol";
import {Batch} from "../src/lib/Types.sol";

/// The library as it is compiled into the committed ledger, through verifyPayout.
contract PayoutTreeTest is Fixture {
    function climbsTo(bytes32 root, uint128 sum, Payout memory payout, PayoutProof memory proof)
        private
        view
        returns (bool)
    {
        Batch memory batch;
        (batch.payoutRoot, batch.committed) = (root, sum);
        return ledger.verifyPayout(batch, payout, proof);
    }

    function refuse(Payout memory payout, PayoutProof memory proof, bytes memory why) private {
        Batch memory batch;
        vm.expectRevert(why);
        ledger.verifyPayout(batch, payout, proof);
    }

    function ascending(uint256 n, uint256 seed) private pure returns (Payout[] memory leaves) {
        leaves = new Payout[](n);
        for (uint256 i = 0; i < n; i++) {
            uint256 r = uint256(keccak256(abi.encode(seed, i)));
            leaves[i] = Payout(
                uint8(i * 3 / n),
                bytes32((i << 200) | (r >> 100)),
                uint16(r),
                uint128(r >> (136 + r % 100))
            );
        }
    }

    function check(Payout[] memory leaves, uint256 index) private view {
        (bytes32 root, uint128 sum) = PlainTree.root(leaves);
        require(
            climbsTo(root, sum, leaves[index], PlainTree.proof(leaves, index)),
            string.concat(
                "leaf ",
                Strings.toString(index),
                " of ",
                Strings.toString(leaves.length),
                " doesn't climb to the plain root and sum"
            )
        );
    }

    function test_every_leaf_of_every_tree_up_to_24_leaves_climbs_to_the_plain_root() public view {
        for (uint256 n = 1; n <= 24; n++) {
            Payout[] memory leaves = ascending(n, n);
            for (uint256 i = 0; i < n; i++) {
                check(leaves, i);
            }
        }
    }

    function testFuzz_a_leaf_of_any_tree_climbs_to_the_plain_root(
        uint256 n,
        uint256 index,
        uint256 seed
    ) public view {
        n = bound(n, 1, 120);
        check(ascending(n, seed), bound(index, 0, n - 1));
    }

    /// Whatever is changed in a leaf or its proof leads elsewhere or is refused.
    function testFuzz_an_altered_leaf_or_proof_does_not_climb_to_the_root(
        uint256 n,
        uint256 index,
        uint256 seed,
        uint256 what,
        uint256 how
    ) public view {
        n = bound(n, 1, 40);
        index = bound(index, 0, n - 1);
        Payout[] memory leaves = ascending(n, seed);
        (bytes32 root, uint128 sum) = PlainTree.root(leaves);
        Payout memory payout = leaves[index];
        PayoutProof memory proof = PlainTree.proof(leaves, index);
        what = bound(what, 0, proof.siblings.length == 0 ? 6 : 8);
        how = bound(how, 1, 255);
        if (what == 0) payout.kind ^= uint8(how);
        if (what == 1) payout.id ^= bytes32(how);
        if (what == 2) payout.position ^= uint16(how);
        if (what == 3) payout.amount ^= uint128(how);
        if (what == 4) proof.index ^= uint32(how);
        if (what == 5) proof.leafCount ^= uint32(how);
        if (what == 6) proof.siblings = abi.encodePacked(proof.siblings, new bytes(48));
        if (what == 7) proof.siblings[seed % proof.siblings.length] ^= bytes1(uint8(how));
        if (what == 8) proof.siblings = cutShort(proof.siblings, proof.siblings.length - 48);
        Batch memory batch;
        (batch.payoutRoot, batch.committed) = (root, sum);
        try ledger.verifyPayout(batch, payout, proof) returns (bool climbs) {
            require(!climbs, "an altered leaf or proof climbs to the root");
        } catch {}
    }

    function cutShort(bytes memory data, uint256 length) private pure returns (bytes memory) {
        assembly {
            mstore(data, length)
        }
        return data;
    }

    function test_a_node_can_not_pass_as_a_leaf() public {
        // Second preimage: the parent of leaves 0 and 1 shown as the only leaf's hash is not
        // possible, because a leaf is hashed from its members; shown as a sibling it only proves
        // what lies below.
        Payout[] memory leaves = ascending(4, 9);
        PayoutProof memory proof = PlainTree.proof(leaves, 0);
        proof.leafCount = 2; // as if the right half were a leaf
        refuse(
            leaves[0],
            proof,
            abi.encodeWithSelector(PayoutTree.PayoutProofShape.selector, 0, 2, 96)
        );
    }

    function test_the_leaf_count_is_part_of_the_root() public view {
        // Leaf 0 of three and of four leaves has two siblings: only the count tells the trees
        // apart.
        Payout[] memory leaves = ascending(4, 9);
        (bytes32 root, uint128 sum) = PlainTree.root(leaves);
        PayoutProof memory proof = PlainTree.proof(leaves, 0);
        proof.leafCount = 3;
        require(!climbsTo(root, sum, leaves[0], proof), "a wrong leaf count climbs to the root");
    }

    function test_an_index_outside_the_tree_is_refused() public {
        Payout[] memory leaves = ascending(5, 1);
        PayoutProof memory proof = PlainTree.proof(leaves, 4);
        // As many siblings as a walk from there would take.
        proof.siblings = abi.encodePacked(proof.siblings, proof.siblings);
        proof.index = 5;
        refuse(
            leaves[4],
            proof,
            abi.encodeWithSelector(PayoutTree.PayoutProofShape.selector, 5, 5, 96)
        );
        refuse(
            leaves[0],
            PayoutProof(0, 0, ""),
            abi.encodeWithSelector(PayoutTree.PayoutProofShape.selector, 0, 0, 0)
        );
    }

    function test_siblings_that_are_not_whole_records_are_refused() public {
        Payout[] memory leaves = ascending(2, 1);
        PayoutProof memory proof = PlainTree.proof(leaves, 0);
        proof.siblings = abi.encodePacked(proof.siblings, uint8(0));
        refuse(
            leaves[0],
            proof,
            abi.encodeWithSelector(PayoutTree.PayoutProofShape.selector, 0, 2, 49)
        );
    }

    function test_a_sum_of_2_to_128_is_refused() public {
        Payout memory payout = Payout(0, bytes32(uint256(1)), 0, 1);
        PayoutProof memory proof =
            PayoutProof(0, 2, abi.encodePacked(bytes32(uint256(7)), type(uint128).max));
        refuse(
            payout,
            proof,
            abi.encodeWithSelector(PayoutTree.PayoutSumOverflow.selector, uint256(1) << 128)
        );
        // One unit less is the largest sum there is.
        payout.amount = 0;
        bytes32 top =
            PlainTree.join(PlainTree.leaf(payout), 0, bytes32(uint256(7)), type(uint128).max);
        bytes32 root = keccak256(abi.encodePacked(uint8(2), top, type(uint128).max, uint32(2)));
        require(climbsTo(root, type(uint128).max, payout, proof), "the largest sum is refused");
    }

    function test_a_proof_may_not_wrap_the_sum_around() public {
        // Enough siblings of 2^128 - 1 to come round to a small number modulo 2^128.
        bytes memory siblings;
        for (uint256 i = 0; i < 31; i++) {
            siblings = abi.encodePacked(siblings, bytes32(uint256(i)), type(uint128).max);
        }
        PayoutProof memory proof = PayoutProof(0, uint32(1) << 31, siblings);
        refuse(
            Payout(0, 0, 0, 31),
            proof,
            abi.encodeWithSelector(
                PayoutTree.PayoutSumOverflow.selector, 31 * uint256(type(uint128).max) + 31
            )
        );
    }
}
