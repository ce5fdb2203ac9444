// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

import {Fixture} from "./Fixture.sol";
import {PlainTree} from "./PlainTree.sol";
import {AdapterRegistry} from "../src/AdapterRegistry.sol";
import {AttributionLedger} from "../src/AttributionLedger.sol";
import {Payout, PayoutProof, PayoutTree} from "../src/lib/PayoutTree.sol";
import {Batch, Voucher} from "../src/lib/Types.sol";

contract AttributionLedgerTest is Fixture {
    uint64 private constant START = 1_790_000_000;

    function setUp() public override {
        super.setUp();
        earn(500 * ONE);
    }

    /// 100 tokens: 50 to the operator, 30 and 15 to the adapter's positions, 5 to the Datanet;
    /// times `times`.
    function hundred(uint128 times) private view returns (Payout[] memory) {
        return leavesOf(50 * ONE * times, 30 * ONE * times, 15 * ONE * times, 5 * ONE * times);
    }

    function refuseSubmit(Batch memory batch, bytes memory why) private {
        bytes memory signature = signed(hotKey, ledger.batchDigest(batch));
        vm.expectRevert(why);
        ledger.submit(batch, signature);
    }

    function refuseClaim(
        Batch memory batch,
        Payout[] memory leaves,
        uint256 index,
        bytes memory why
    ) private {
        AttributionLedger.BatchRef memory ref = refOf(batch);
        refuseClaim(
            ref,
            leaves[index],
            PlainTree.proof(leaves, index),
            leaves[index].kind == 1 ? shown() : bytes(""),
            why
        );
    }

    function refuseClaim(
        AttributionLedger.BatchRef memory ref,
        Payout memory payout,
        PayoutProof memory proof,
        bytes memory shownSplits,
        bytes memory why
    ) private {
        vm.expectRevert(why);
        ledger.claim(ref, payout, proof, shownSplits);
    }

    function voidBatch(Batch memory batch) private {
        vm.prank(disputes);
        ledger.void(batch);
    }

    function finalise() private {
        vm.warp(block.timestamp + WINDOW);
    }

    // ---------------------------------------------------------------- deployment

    function test_the_unbonding_must_outlast_the_challenge_window() public {
        uint64[3] memory windows = [uint64(0), UNBONDING, UNBONDING + 1];
        for (uint256 i = 0; i < 3; i++) {
            vm.expectRevert(
                abi.encodeWithSelector(
                    AttributionLedger.BadChallengeWindow.selector, windows[i], UNBONDING
                )
            );
            make("AttributionLedger", abi.encode(stakes, registry, escrow, windows[i]));
        }
    }

    function test_the_escrow_must_name_this_ledger() public {
        vm.expectRevert(
            abi.encodeWithSelector(AttributionLedger.NotEscrowsLedger.selector, address(ledger))
        );
        make("AttributionLedger", abi.encode(stakes, registry, escrow, WINDOW));
    }

    function test_stake_and_payments_must_be_of_one_token() public {
        address other = make("TestToken", "");
        address otherStakes =
            make("StakeManager", abi.encode(other, MIN_STAKE, UNBONDING, treasury, disputes));
        vm.expectRevert(
            abi.encodeWithSelector(AttributionLedger.TokensDiffer.selector, other, address(token))
        );
        make("AttributionLedger", abi.encode(otherStakes, registry, escrow, WINDOW));
    }

    // ---------------------------------------------------------------- submitting

    function test_a_batch_is_submitted_by_anyone_who_has_the_operators_signature() public {
        Batch memory batch = batchOf(hundred(1));
        bytes32 digest = ledger.batchDigest(batch);
        bytes memory signature = signed(hotKey, digest);
        vm.expectEmit(true, true, true, true);
        emit AttributionLedger.BatchSubmitted(
            operator,
            0,
            digest,
            3,
            batch.receiptsRoot,
            batch.payoutRoot,
            100 * ONE,
            1000,
            2000,
            batch.dataHash,
            0
        );
        vm.prank(stranger);
        ledger.submit(batch, signature);

        (uint64 next, bytes32 head, uint128 committed) = ledger.headOf(operator);
        eq(next, 1, "next seq");
        eq(ledger.nextSeq(operator), 1, "nextSeq");
        eq(head, digest, "head");
        eq(committed, 100 * ONE, "committed");
        (bytes32 commitment, uint128 c, uint32 leafCount, uint64 finalAt) =
            ledger.batchOf(operator, 0);
        eq(
            commitment,
            keccak256(abi.encode(digest, batch.payoutRoot, batch.committed)),
            "commitment"
        );
        eq(c, 100 * ONE, "committed of the batch");
        eq(leafCount, 3, "leafCount");
        eq(finalAt, START + WINDOW, "finalAt");
        require(ledger.isSubmitted(batch), "not submitted");
        batch.dataHash = 0;
        require(!ledger.isSubmitted(batch), "another batch is submitted");
    }

    function test_only_the_next_seq_is_accepted() public {
        Batch memory batch = batchOf(hundred(1));
        batch.seq = 1;
        refuseSubmit(
            batch, abi.encodeWithSelector(AttributionLedger.WrongSeq.selector, operator, 1, 0)
        );
        batch.seq = 0;
        submit(batch);
        refuseSubmit(
            batch, abi.encodeWithSelector(AttributionLedger.WrongSeq.selector, operator, 0, 1)
        );
        batch = batchOf(hundred(2));
        batch.seq = 2;
        refuseSubmit(
            batch, abi.encodeWithSelector(AttributionLedger.WrongSeq.selector, operator, 2, 1)
        );
    }

    function test_a_batch_names_the_one_before() public {
        Batch memory batch = batchOf(hundred(1));
        batch.prevBatchHash = keccak256("any");
        refuseSubmit(
            batch,
            abi.encodeWithSelector(
                AttributionLedger.WrongPrevBatch.selector,
                operator,
                0,
                keccak256("any"),
                bytes32(0)
            )
        );
        Batch memory first = submitPayouts(hundred(1));
        batch = batchOf(hundred(2));
        eq(batch.prevBatchHash, ledger.batchDigest(first), "prevBatchHash");
        batch.prevBatchHash = 0;
        refuseSubmit(
            batch,
            abi.encodeWithSelector(
                AttributionLedger.WrongPrevBatch.selector,
                operator,
                1,
                bytes32(0),
                ledger.batchDigest(first)
            )
        );
    }

    function test_committed_never_decreases_and_never_exceeds_what_was_redeemed() public {
        submitPayouts(hundred(2));
        refuseSubmit(
            batchOf(hundred(1)),
            abi.encodeWithSelector(
                AttributionLedger.CommittedDecreased.selector, operator, 100 * ONE, 200 * ONE
            )
        );
        Payout[] memory leaves = hundred(5);
        leaves[0].amount += 1;
        refuseSubmit(
            batchOf(leaves),
            abi.encodeWithSelector(
                AttributionLedger.CommittedAboveRedeemed.selector,
                operator,
                500 * ONE + 1,
                500 * ONE
            )
        );
        submitPayouts(hundred(2)); // free requests commit to nothing more
        submitPayouts(hundred(5));
    }

    function test_an_empty_batch_and_a_reversed_period_are_refused() public {
        Batch memory batch = batchOf(hundred(1));
        batch.leafCount = 0;
        refuseSubmit(
            batch, abi.encodeWithSelector(AttributionLedger.EmptyBatch.selector, operator, 0)
        );
        batch = batchOf(hundred(1));
        batch.periodStart = 2001;
        refuseSubmit(
            batch, abi.encodeWithSelector(AttributionLedger.PeriodReversed.selector, 2001, 2000)
        );
    }

    function test_only_a_key_that_serves_the_operator_signs() public {
        Batch memory batch = batchOf(hundred(1));
        bytes32 digest = ledger.batchDigest(batch);
        bytes memory signature = signed(strangerKey, digest);
        vm.expectRevert(
            abi.encodeWithSelector(
                AttributionLedger.WrongSigner.selector, operator, stranger, address(0)
            )
        );
        ledger.submit(batch, signature);

        signature = signed(operatorKey, digest); // the stake key is no signer unless added
        vm.expectRevert(
            abi.encodeWithSelector(
                AttributionLedger.WrongSigner.selector, operator, operator, address(0)
            )
        );
        ledger.submit(batch, signature);

        uint256 otherHot = uint256(keccak256("other hot"));
        address other = address(0x0be7);
        enrol(other, vm.addr(otherHot), MIN_STAKE);
        signature = signed(otherHot, digest);
        vm.expectRevert(
            abi.encodeWithSelector(
                AttributionLedger.WrongSigner.selector, operator, vm.addr(otherHot), other
            )
        );
        ledger.submit(batch, signature);

        vm.prank(operator);
        stakes.removeSigner(hot);
        signature = signed(hotKey, digest);
        vm.expectRevert(
            abi.encodeWithSelector(
                AttributionLedger.WrongSigner.selector, operator, hot, address(0)
            )
        );
        ledger.submit(batch, signature);
    }

    function test_a_batch_of_nobody_is_refused() public {
        Batch memory batch = batchOf(hundred(1));
        batch.operator = address(0);
        bytes memory signature = signed(strangerKey, ledger.batchDigest(batch));
        vm.expectRevert(
            abi.encodeWithSelector(
                AttributionLedger.WrongSigner.selector, address(0), stranger, address(0)
            )
        );
        ledger.submit(batch, signature);
    }

    function test_malleable_and_malformed_signatures_are_refused() public {
        Batch memory batch = batchOf(hundred(1));
        bytes memory signature = signed(hotKey, ledger.batchDigest(batch));
        bytes memory high = malleated(signature);
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureS.selector, sOf(high)));
        ledger.submit(batch, high);
        vm.expectRevert(ECDSA.ECDSAInvalidSignature.selector);
        ledger.submit(batch, new bytes(65));
        vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureLength.selector, 66));
        ledger.submit(batch, abi.encodePacked(signature, uint8(0)));
    }

    function test_a_batch_signed_for_another_chain_or_ledger_is_refused() public {
        Batch memory batch = batchOf(hundred(1));
        bytes memory signature = signed(hotKey, ledger.batchDigest(batch));
        vm.chainId(1612);
        vm.expectRevert(); // recovers to an address that depends on the digest
        ledger.submit(batch, signature);
        vm.chainId(31337);
        AttributionLedger first = ledger;
        deployAll(address(token));
        enrol(operator, hot, 1000 * ONE);
        mint(payer, 500 * ONE);
        earn(500 * ONE);
        require(first.batchDigest(batch) != ledger.batchDigest(batch), "two ledgers, one digest");
        vm.expectRevert();
        ledger.submit(batch, signature);
    }

    function test_an_operator_below_the_minimum_stake_submits_nothing() public {
        vm.prank(operator);
        stakes.requestUnstake(900 * ONE + 1);
        refuseSubmit(
            batchOf(hundred(1)),
            abi.encodeWithSelector(
                AttributionLedger.NotLive.selector, operator, 100 * ONE - 1, MIN_STAKE
            )
        );
        vm.prank(operator);
        stakes.requestUnstake(900 * ONE);
        submitPayouts(hundred(1));
    }

    function test_the_value_of_open_batches_stays_within_the_active_stake() public {
        vm.prank(operator);
        stakes.requestUnstake(700 * ONE); // 300 active
        submitPayouts(hundred(1));
        submitPayouts(hundred(3)); // 300 open, in two batches
        refuseSubmit(
            batchOf(hundred(4)),
            abi.encodeWithSelector(
                AttributionLedger.ValueAboveStake.selector, operator, 400 * ONE, 300 * ONE
            )
        );
        finalise(); // both are final
        (uint64 count, uint128 committed) = ledger.finalOf(operator);
        eq(count, 2, "final batches");
        eq(committed, 300 * ONE, "final committed");
        submitPayouts(hundred(5)); // 200 open
    }

    function test_the_bound_counts_every_batch_that_became_final_however_many() public {
        vm.prank(operator);
        stakes.requestUnstake(900 * ONE); // 100 active
        for (uint128 i = 1; i <= 10; i++) {
            submitPayouts(leavesOf(10 * ONE * i, 0, 0, 0));
            vm.warp(block.timestamp + 1 hours);
        }
        refuseSubmit(
            batchOf(leavesOf(100 * ONE + 1, 0, 0, 0)),
            abi.encodeWithSelector(
                AttributionLedger.ValueAboveStake.selector, operator, 100 * ONE + 1, 100 * ONE
            )
        );
        // Batches 0 to 6 are final now; two steps of noting don't reach them.
        vm.warp(START + WINDOW + 6 hours);
        refuseSubmit(
            batchOf(leavesOf(170 * ONE + 1, 0, 0, 0)),
            abi.encodeWithSelector(
                AttributionLedger.ValueAboveStake.selector, operator, 100 * ONE + 1, 100 * ONE
            )
        );
        submitPayouts(leavesOf(170 * ONE, 0, 0, 0));
    }

    // ---------------------------------------------------------------- claims

    function test_every_payee_gets_what_its_leaf_says_once_the_batch_is_final() public {
        Payout[] memory leaves = hundred(1);
        Batch memory batch = submitPayouts(leaves);
        finalise();
        address[4] memory payees = [operator, payeeA, payeeB, dataOwner];
        for (uint256 i = 0; i < 4; i++) {
            uint256 before = token.balanceOf(payees[i]);
            eq(claim(batch, leaves, i), leaves[i].amount, "claimed");
            eq(token.balanceOf(payees[i]) - before, leaves[i].amount, "paid");
            eq(
                ledger.claimed(operator, leaves[i].kind, leaves[i].id, leaves[i].position),
                leaves[i].amount,
                "on the books"
            );
        }
        eq(ledger.paid(operator), 100 * ONE, "paid in all");
        eq(token.balanceOf(address(ledger)), 400 * ONE, "left in the ledger");
    }

    function test_a_claim_tells_whom_it_paid() public {
        Payout[] memory leaves = hundred(1);
        Batch memory batch = submitPayouts(leaves);
        finalise();
        AttributionLedger.BatchRef memory ref = refOf(batch);
        vm.expectEmit(true, true, true, true);
        emit AttributionLedger.Claimed(operator, adapter, payeeB, 1, 1, 15 * ONE, 15 * ONE);
        ledger.claim(ref, leaves[2], PlainTree.proof(leaves, 2), shown());
    }

    function test_a_claim_a_second_before_the_window_closes_is_refused() public {
        Payout[] memory leaves = hundred(1);
        Batch memory batch = submitPayouts(leaves);
        vm.warp(START + WINDOW - 1);
        refuseClaim(
            batch,
            leaves,
            1,
            abi.encodeWithSelector(
                AttributionLedger.NotFinal.selector, operator, 0, START + WINDOW
            )
        );
        vm.warp(START + WINDOW);
        claim(batch, leaves, 1);
    }

    function test_a_second_claim_of_the_same_amount_is_refused() public {
        Payout[] memory leaves = hundred(1);
        Batch memory batch = submitPayouts(leaves);
        finalise();
        claim(batch, leaves, 1);
        refuseClaim(
            batch,
            leaves,
            1,
            abi.encodeWithSelector(AttributionLedger.NothingToClaim.selector, 30 * ONE, 30 * ONE)
        );
    }

    function test_a_later_batch_pays_the_difference_an_earlier_one_nothing_more() public {
        Payout[] memory one = hundred(1);
        Batch memory first = submitPayouts(one);
        Payout[] memory three = hundred(3);
        Batch memory second = submitPayouts(three);
        finalise();
        claim(first, one, 1);
        eq(claim(second, three, 1), 60 * ONE, "the difference");
        refuseClaim(
            first,
            one,
            1,
            abi.encodeWithSelector(AttributionLedger.NothingToClaim.selector, 30 * ONE, 90 * ONE)
        );
        eq(claim(first, one, 2), 15 * ONE, "an older final batch still serves");
        eq(claim(second, three, 2), 30 * ONE, "and the newer one pays the rest");
    }

    function test_an_open_batch_does_not_stop_claims_against_a_final_one() public {
        Payout[] memory one = hundred(1);
        Batch memory first = submitPayouts(one);
        finalise();
        Payout[] memory two = hundred(2);
        Batch memory second = submitPayouts(two);
        eq(claim(first, one, 1), 30 * ONE, "claimed");
        refuseClaim(
            second,
            two,
            1,
            abi.encodeWithSelector(
                AttributionLedger.NotFinal.selector, operator, 1, START + 2 * WINDOW
            )
        );
    }

    function test_a_claim_against_no_batch_is_refused() public {
        Payout[] memory leaves = hundred(1);
        Batch memory batch = batchOf(leaves);
        refuseClaim(
            batch,
            leaves,
            1,
            abi.encodeWithSelector(AttributionLedger.UnknownBatch.selector, operator, 0)
        );
    }

    function test_a_wrong_digest_amount_sum_or_proof_is_refused() public {
        Payout[] memory leaves = hundred(1);
        Batch memory batch = submitPayouts(leaves);
        finalise();
        PayoutProof memory proof = PlainTree.proof(leaves, 1);
        AttributionLedger.BatchRef memory ref = refOf(batch);

        AttributionLedger.BatchRef memory wrong =
            AttributionLedger.BatchRef(operator, 0, keccak256("any"));
        refuseClaim(
            wrong,
            leaves[1],
            proof,
            shown(),
            abi.encodeWithSelector(
                AttributionLedger.WrongPayoutProof.selector,
                operator,
                0,
                keccak256("any"),
                batch.payoutRoot
            )
        );
        Payout memory inflated = Payout(1, adapter, 0, 31 * ONE);
        refuseClaim(
            ref,
            inflated,
            proof,
            shown(),
            abi.encodeWithSelector(AttributionLedger.WrongPayoutSum.selector, 101 * ONE, 100 * ONE)
        );
        // Inflated, with the sum kept by deflating a sibling: another root.
        Payout[] memory shifted = hundred(1);
        shifted[1].amount += ONE;
        shifted[0].amount -= ONE;
        (bytes32 shiftedRoot,) = PlainTree.root(shifted);
        refuseClaim(
            ref,
            shifted[1],
            PlainTree.proof(shifted, 1),
            shown(),
            abi.encodeWithSelector(
                AttributionLedger.WrongPayoutProof.selector,
                operator,
                0,
                ref.batchHash,
                shiftedRoot
            )
        );
        proof.index = 4;
        refuseClaim(
            ref,
            leaves[1],
            proof,
            shown(),
            abi.encodeWithSelector(PayoutTree.PayoutProofShape.selector, 4, 4, 96)
        );
    }

    function test_a_tree_whose_sum_is_not_committed_pays_nothing() public {
        Payout[] memory leaves = hundred(1);
        Batch memory batch = batchOf(leaves);
        batch.committed = 99 * ONE; // the operator commits to less than its tree promises
        submit(batch);
        finalise();
        refuseClaim(
            batch,
            leaves,
            1,
            abi.encodeWithSelector(AttributionLedger.WrongPayoutSum.selector, 100 * ONE, 99 * ONE)
        );
    }

    function test_leaves_that_name_nobody_are_refused() public {
        Payout[] memory leaves = new Payout[](6);
        leaves[0] = Payout(0, bytes32(uint256(uint160(stranger))), 0, ONE); // another operator
        leaves[1] = Payout(0, bytes32(uint256(uint160(operator))), 1, ONE); // position
        leaves[2] = Payout(1, keccak256("unregistered"), 0, ONE);
        leaves[3] = Payout(2, keccak256("unregistered"), 0, ONE);
        leaves[4] = Payout(2, datanet, 1, ONE); // position
        leaves[5] = Payout(3, datanet, 0, ONE); // kind
        Batch memory batch = submitPayouts(leaves);
        finalise();
        for (uint256 i = 0; i < 6; i++) {
            bytes memory why = i == 2
                ? abi.encodeWithSelector(AdapterRegistry.UnknownAdapter.selector, leaves[i].id)
                : i == 3
                    ? abi.encodeWithSelector(AdapterRegistry.UnknownDatanet.selector, leaves[i].id)
                    : abi.encodeWithSelector(
                        AttributionLedger.WrongLeaf.selector,
                        leaves[i].kind,
                        leaves[i].id,
                        leaves[i].position
                    );
            refuseClaim(batch, leaves, i, why);
        }
    }

    function test_wrong_or_missing_splits_are_refused() public {
        Payout[] memory leaves = hundred(1);
        Batch memory batch = submitPayouts(leaves);
        finalise();
        AttributionLedger.BatchRef memory ref = refOf(batch);
        PayoutProof memory proof = PlainTree.proof(leaves, 1);
        refuseClaim(
            ref,
            leaves[1],
            proof,
            "",
            abi.encodeWithSelector(AdapterRegistry.SplitsNeeded.selector, adapter, 0)
        );
        bytes memory right = shown();
        splits.payees[0] = stranger;
        refuseClaim(
            ref,
            leaves[1],
            proof,
            shown(),
            abi.encodeWithSelector(
                AdapterRegistry.WrongSplits.selector, adapter, keccak256(shown()), keccak256(right)
            )
        );
        ledger.claim(ref, leaves[1], proof, right);
    }

    function test_after_the_first_claim_of_a_position_no_splits_are_needed() public {
        Payout[] memory one = hundred(1);
        Batch memory first = submitPayouts(one);
        Payout[] memory two = hundred(2);
        Batch memory second = submitPayouts(two);
        finalise();
        claim(first, one, 1);
        ledger.claim(refOf(second), two[1], PlainTree.proof(two, 1), "");
        eq(token.balanceOf(payeeA), 60 * ONE, "paid");
    }

    function test_claims_go_to_the_payee_of_the_moment() public {
        Payout[] memory one = hundred(1);
        Batch memory first = submitPayouts(one);
        vm.prank(payeeA);
        registry.proposePayee(adapter, 0, stranger, shown());
        vm.warp(START + WINDOW); // past the payee delay
        claim(first, one, 1);
        eq(token.balanceOf(stranger), 30 * ONE, "paid to the new payee");
        eq(token.balanceOf(payeeA), 0, "paid to the old payee");
        vm.prank(dataOwner);
        registry.proposeDatanetPayee(datanet, stranger);
        claim(first, one, 3); // announced, not yet effective
        eq(token.balanceOf(dataOwner), 5 * ONE, "paid to the Datanet's payee");
    }

    function test_a_retired_adapter_is_paid_for_all_the_same() public {
        Payout[] memory leaves = hundred(1);
        Batch memory batch = submitPayouts(leaves);
        vm.prank(creator);
        registry.retire(adapter);
        finalise();
        eq(claim(batch, leaves, 1), 30 * ONE, "claimed");
    }

    function test_claims_outlive_the_operator() public {
        Payout[] memory leaves = hundred(1);
        Batch memory batch = submitPayouts(leaves);
        vm.startPrank(operator);
        stakes.removeSigner(hot);
        stakes.requestUnstake(1000 * ONE);
        vm.warp(START + UNBONDING);
        stakes.withdraw();
        vm.stopPrank();
        eq(claim(batch, leaves, 1), 30 * ONE, "claimed");
    }

    // ---------------------------------------------------------------- dishonest trees

    function test_an_operator_that_moves_value_between_leaves_pays_no_more_than_it_committed()
        public
    {
        Payout[] memory honest = hundred(1);
        Batch memory first = submitPayouts(honest);
        // The second batch takes everything from the others and gives it to the operator.
        Payout[] memory grab = leavesOf(120 * ONE, 0, 0, 0);
        Batch memory second = submitPayouts(grab);
        // Another operator's money lies in the same ledger.
        uint256 before = token.balanceOf(address(ledger));
        finalise();
        claim(first, honest, 1);
        claim(first, honest, 2);
        claim(first, honest, 3);
        refuseClaim(
            second,
            grab,
            0,
            abi.encodeWithSelector(
                AttributionLedger.OverCommitted.selector, operator, 170 * ONE, 120 * ONE
            )
        );
        claim(first, honest, 0); // 100 in all, within 120
        eq(before - token.balanceOf(address(ledger)), 100 * ONE, "paid out");
    }

    function test_the_newest_batch_known_to_be_final_limits_claims_against_older_ones() public {
        Payout[] memory one = hundred(1);
        Batch memory first = submitPayouts(one);
        Payout[] memory three = hundred(3);
        Batch memory second = submitPayouts(three);
        finalise();
        // 285 of 300: more than the first batch commits to.
        for (uint256 i = 0; i < 3; i++) {
            claim(second, three, i);
        }
        eq(claim(first, one, 3), 5 * ONE, "an older proof pays in spite of that");
        eq(ledger.paid(operator), 290 * ONE, "paid in all");
    }

    // ---------------------------------------------------------------- many

    function many(Payout[] memory leaves)
        private
        view
        returns (AttributionLedger.Claim[] memory claims)
    {
        claims = new AttributionLedger.Claim[](leaves.length);
        for (uint256 i = 0; i < leaves.length; i++) {
            claims[i] = AttributionLedger.Claim(
                leaves[i], PlainTree.proof(leaves, i), leaves[i].kind == 1 ? shown() : bytes("")
            );
        }
    }

    function test_many_claims_skip_what_is_already_paid() public {
        Payout[] memory leaves = hundred(1);
        Batch memory batch = submitPayouts(leaves);
        finalise();
        claim(batch, leaves, 2);
        eq(ledger.claimMany(refOf(batch), many(leaves)), 85 * ONE, "the rest");
        eq(ledger.claimMany(refOf(batch), many(leaves)), 0, "again");
        eq(ledger.paid(operator), 100 * ONE, "paid in all");
    }

    function test_the_same_leaf_twice_in_one_call_is_paid_once() public {
        Payout[] memory leaves = hundred(1);
        Batch memory batch = submitPayouts(leaves);
        finalise();
        AttributionLedger.Claim[] memory claims = many(leaves);
        claims[2] = claims[1];
        eq(ledger.claimMany(refOf(batch), claims), 85 * ONE, "paid");
        eq(token.balanceOf(payeeA), 30 * ONE, "the leaf shown twice");
    }

    function test_one_wrong_proof_among_many_pays_nobody() public {
        Payout[] memory leaves = hundred(1);
        Batch memory batch = submitPayouts(leaves);
        finalise();
        AttributionLedger.Claim[] memory claims = many(leaves);
        claims[3].payout.amount += 1;
        AttributionLedger.BatchRef memory ref = refOf(batch);
        vm.expectRevert(
            abi.encodeWithSelector(
                AttributionLedger.WrongPayoutSum.selector, 100 * ONE + 1, 100 * ONE
            )
        );
        ledger.claimMany(ref, claims);
        eq(ledger.paid(operator), 0, "paid in all");
    }

    // ---------------------------------------------------------------- trees of all shapes

    function test_trees_at_the_boundaries_of_their_shape_pay_every_leaf() public {
        uint256[6] memory sizes = [uint256(1), 2, 3, 5, 8, 17];
        bytes32[] memory ids = sixteenDatanets();
        for (uint256 s = 0; s < 6; s++) {
            uint256 n = sizes[s];
            // The operator and n - 1 Datanets, each with n tokens in all so far.
            Payout[] memory leaves = new Payout[](n);
            leaves[0] = Payout(0, bytes32(uint256(uint160(operator))), 0, uint128(n) * ONE);
            for (uint256 i = 1; i < n; i++) {
                leaves[i] = Payout(2, ids[i - 1], 0, uint128(n) * ONE);
            }
            Batch memory batch = submitPayouts(leaves);
            finalise();
            for (uint256 i = 0; i < n; i++) {
                claim(batch, leaves, i);
            }
            eq(ledger.paid(operator), n * n * ONE, "paid in all");
            eq(ledger.paid(operator), batch.committed, "paid and committed");
        }
    }

    function sixteenDatanets() private returns (bytes32[] memory ids) {
        ids = new bytes32[](16);
        vm.startPrank(dataOwner);
        for (uint256 i = 0; i < 16; i++) {
            ids[i] = registry.registerDatanet(keccak256(abi.encode("shape", i)), dataOwner);
            for (uint256 j = i; j > 0 && ids[j] < ids[j - 1]; j--) {
                (ids[j], ids[j - 1]) = (ids[j - 1], ids[j]);
            }
        }
        vm.stopPrank();
    }

    // ---------------------------------------------------------------- voiding

    function test_only_the_disputes_contract_voids() public {
        Batch memory batch = submitPayouts(hundred(1));
        address[3] memory others = [operator, hot, address(this)];
        for (uint256 i = 0; i < 3; i++) {
            vm.expectRevert(
                abi.encodeWithSelector(AttributionLedger.NotDisputes.selector, others[i])
            );
            vm.prank(others[i]);
            ledger.void(batch);
        }
    }

    function test_voiding_restores_what_was_before_the_batch() public {
        Batch memory first = submitPayouts(hundred(1));
        Batch memory second = submitPayouts(hundred(2));
        Batch memory third = submitPayouts(hundred(3));
        bytes32 secondHash = ledger.batchDigest(second);
        vm.expectEmit(true, true, true, true);
        emit AttributionLedger.BatchVoided(operator, 1, secondHash, 100 * ONE);
        voidBatch(second);
        (uint64 next, bytes32 head, uint128 committed) = ledger.headOf(operator);
        eq(next, 1, "next seq");
        eq(head, ledger.batchDigest(first), "head");
        eq(committed, 100 * ONE, "committed");
        require(ledger.isVoided(secondHash), "not marked as voided");
        require(
            !ledger.isSubmitted(second) && !ledger.isSubmitted(third),
            "a voided batch counts as submitted"
        );
        vm.expectRevert(
            abi.encodeWithSelector(AttributionLedger.UnknownBatch.selector, operator, 1)
        );
        ledger.batchOf(operator, 1);

        voidBatch(first);
        (next, head, committed) = ledger.headOf(operator);
        eq(next, 0, "next seq after voiding the first");
        eq(head, bytes32(0), "head after voiding the first");
        eq(committed, 0, "committed after voiding the first");
    }

    function test_a_voided_batch_pays_nothing_however_long_one_waits() public {
        Payout[] memory leaves = hundred(1);
        Batch memory first = submitPayouts(leaves);
        Payout[] memory two = hundred(2);
        Batch memory second = submitPayouts(two);
        voidBatch(first);
        vm.warp(START + 10 * WINDOW);
        refuseClaim(
            first,
            leaves,
            1,
            abi.encodeWithSelector(AttributionLedger.UnknownBatch.selector, operator, 0)
        );
        refuseClaim(
            second,
            two,
            1,
            abi.encodeWithSelector(AttributionLedger.UnknownBatch.selector, operator, 1)
        );
    }

    function test_a_voided_batch_can_not_be_submitted_again_a_corrected_one_can() public {
        Payout[] memory leaves = hundred(2);
        Batch memory bad = submitPayouts(leaves);
        Batch memory after_ = submitPayouts(hundred(3));
        voidBatch(bad);
        bytes32 hash = ledger.batchDigest(bad);
        refuseSubmit(
            bad, abi.encodeWithSelector(AttributionLedger.VoidedBatch.selector, operator, 0, hash)
        );
        Payout[] memory good = hundred(1);
        Batch memory corrected = submitPayouts(good);
        // What followed the voided batch names it and fits nowhere.
        refuseSubmit(
            after_,
            abi.encodeWithSelector(
                AttributionLedger.WrongPrevBatch.selector,
                operator,
                1,
                hash,
                ledger.batchDigest(corrected)
            )
        );
        voidBatch(corrected); // wrong again
        refuseSubmit(
            bad, abi.encodeWithSelector(AttributionLedger.VoidedBatch.selector, operator, 0, hash)
        );
        hash = ledger.batchDigest(corrected);
        refuseSubmit(
            corrected,
            abi.encodeWithSelector(AttributionLedger.VoidedBatch.selector, operator, 0, hash)
        );
        corrected.dataHash = keccak256("third time");
        submit(corrected);
        finalise();
        eq(claim(corrected, good, 1), 30 * ONE, "claimed");
    }

    function test_claims_against_the_leftovers_of_a_voided_batch_are_refused_after_a_corrected_one()
        public
    {
        Payout[] memory leaves = hundred(2);
        Batch memory bad = submitPayouts(leaves);
        voidBatch(bad);
        Payout[] memory good = hundred(1);
        submitPayouts(good);
        finalise();
        refuseClaim(
            bad,
            leaves,
            1,
            abi.encodeWithSelector(AttributionLedger.WrongPayoutSum.selector, 200 * ONE, 100 * ONE)
        );
    }

    function test_a_final_batch_can_not_be_voided() public {
        Batch memory batch = submitPayouts(hundred(1));
        vm.warp(START + WINDOW);
        vm.expectRevert(
            abi.encodeWithSelector(
                AttributionLedger.AlreadyFinal.selector, operator, 0, START + WINDOW
            )
        );
        voidBatch(batch);
    }

    function test_an_open_batch_can_be_voided_until_the_last_second() public {
        Batch memory batch = submitPayouts(hundred(1));
        vm.warp(START + WINDOW - 1);
        voidBatch(batch);
    }

    function test_only_what_was_submitted_can_be_voided() public {
        Batch memory batch = submitPayouts(hundred(1));
        batch.prevBatchHash = keccak256("any"); // would become the head
        bytes32 hash = ledger.batchDigest(batch);
        vm.expectRevert(
            abi.encodeWithSelector(AttributionLedger.WrongBatch.selector, operator, 0, hash)
        );
        voidBatch(batch);
        batch.seq = 1;
        vm.expectRevert(
            abi.encodeWithSelector(AttributionLedger.UnknownBatch.selector, operator, 1)
        );
        voidBatch(batch);
    }

    // ---------------------------------------------------------------- operators side by side

    function test_operators_do_not_touch_each_other() public {
        uint256 otherHot = uint256(keccak256("other hot"));
        address other = address(0x0be7);
        enrol(other, vm.addr(otherHot), 1000 * ONE);
        // The other operator has redeemed nothing: it can commit to nothing, though the ledger
        // holds 500.
        Payout[] memory leaves = new Payout[](1);
        leaves[0] = Payout(0, bytes32(uint256(uint160(other))), 0, 1);
        Batch memory batch = batchOf(leaves);
        (batch.operator, batch.seq, batch.prevBatchHash) = (other, 0, 0);
        bytes memory signature = signed(otherHot, ledger.batchDigest(batch));
        vm.expectRevert(
            abi.encodeWithSelector(
                AttributionLedger.CommittedAboveRedeemed.selector, other, uint128(1), uint128(0)
            )
        );
        ledger.submit(batch, signature);

        submitPayouts(hundred(1));
        batch.committed = 0;
        leaves[0].amount = 0;
        (batch.payoutRoot,) = PlainTree.root(leaves);
        signature = signed(otherHot, ledger.batchDigest(batch));
        ledger.submit(batch, signature); // the same seq, another chain
        eq(ledger.nextSeq(other), 1, "the other's next seq");
        eq(ledger.nextSeq(operator), 1, "the operator's next seq");
    }
}
