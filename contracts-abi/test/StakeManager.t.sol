// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {Fixture} from "./Fixture.sol";
import {StakeManager} from "../src/StakeManager.sol";

contract StakeManagerTest is Fixture {
    function stakeOf(address op)
        private
        view
        returns (uint128 total, uint128 unbonding, uint64 end)
    {
        return stakes.stakeOf(op);
    }

    // ---------------------------------------------------------------- deployment

    function test_zero_addresses_zero_stake_and_absurd_periods_are_refused_at_deployment() public {
        IERC20 t = IERC20(address(token));
        vm.expectRevert(StakeManager.ZeroAddress.selector);
        make("StakeManager", abi.encode(IERC20(address(0)), 1, 1, treasury, disputes));
        vm.expectRevert(StakeManager.ZeroAddress.selector);
        make("StakeManager", abi.encode(t, 1, 1, address(0), disputes));
        vm.expectRevert(StakeManager.ZeroAddress.selector);
        make("StakeManager", abi.encode(t, 1, 1, treasury, address(0)));
        vm.expectRevert(StakeManager.ZeroAmount.selector);
        make("StakeManager", abi.encode(t, 0, 1, treasury, disputes));
        vm.expectRevert(abi.encodeWithSelector(StakeManager.BadUnbondingPeriod.selector, 0));
        make("StakeManager", abi.encode(t, 1, 0, treasury, disputes));
        vm.expectRevert(abi.encodeWithSelector(StakeManager.BadUnbondingPeriod.selector, 366 days));
        make("StakeManager", abi.encode(t, 1, 366 days, treasury, disputes));
    }

    // ---------------------------------------------------------------- stake

    function test_an_operator_is_live_from_the_minimum_stake_on() public {
        mint(stranger, MIN_STAKE);
        vm.startPrank(stranger);
        stakes.stake(MIN_STAKE - 1);
        require(!stakes.isLive(stranger), "live one unit below the minimum");
        stakes.stake(1);
        require(stakes.isLive(stranger), "not live at the minimum");
        vm.expectRevert(StakeManager.ZeroAmount.selector);
        stakes.stake(0);
    }

    function test_unbonding_stake_is_not_active_but_slashable() public {
        vm.prank(operator);
        stakes.requestUnstake(901 * ONE);
        eq(stakes.activeStake(operator), 99 * ONE, "active stake");
        require(!stakes.isLive(operator), "live with too little active stake");
        vm.prank(disputes);
        eq(stakes.slash(operator, 1000 * ONE, stranger), 1000 * ONE, "slashed");
        eq(stakes.activeStake(operator), 0, "active stake after the slash");
    }

    function test_stake_leaves_after_the_unbonding_period_and_not_a_second_before() public {
        vm.startPrank(operator);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NothingUnbonding.selector, operator));
        stakes.withdraw();
        stakes.requestUnstake(400 * ONE);
        uint64 end = 1_790_000_000 + UNBONDING;
        vm.warp(end - 1);
        vm.expectRevert(
            abi.encodeWithSelector(StakeManager.StillUnbonding.selector, operator, end)
        );
        stakes.withdraw();
        vm.warp(end);
        eq(stakes.withdraw(), 400 * ONE, "withdrawn");
        eq(token.balanceOf(operator), 400 * ONE, "balance");
        (uint128 total, uint128 unbonding,) = stakeOf(operator);
        eq(total, 600 * ONE, "stake left");
        eq(unbonding, 0, "unbonding left");
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NothingUnbonding.selector, operator));
        stakes.withdraw();
    }

    function test_a_new_request_replaces_the_old_and_starts_the_clock_again() public {
        vm.startPrank(operator);
        stakes.requestUnstake(400 * ONE);
        vm.warp(1_790_000_000 + UNBONDING);
        stakes.requestUnstake(500 * ONE);
        vm.expectRevert(
            abi.encodeWithSelector(
                StakeManager.StillUnbonding.selector, operator, 1_790_000_000 + 2 * UNBONDING
            )
        );
        stakes.withdraw();
        stakes.requestUnstake(0);
        eq(stakes.activeStake(operator), 1000 * ONE, "active stake after cancelling");
        vm.warp(1_790_000_000 + 4 * UNBONDING);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NothingUnbonding.selector, operator));
        stakes.withdraw();
        vm.expectRevert(
            abi.encodeWithSelector(
                StakeManager.StakeTooSmall.selector, operator, 1000 * ONE, 1000 * ONE + 1
            )
        );
        stakes.requestUnstake(1000 * ONE + 1);
    }

    // ---------------------------------------------------------------- slashing

    function test_only_the_disputes_contract_slashes() public {
        address[4] memory others = [operator, hot, treasury, address(this)];
        for (uint256 i = 0; i < others.length; i++) {
            vm.expectRevert(abi.encodeWithSelector(StakeManager.NotDisputes.selector, others[i]));
            vm.prank(others[i]);
            stakes.slash(operator, 1, others[i]);
        }
    }

    function testFuzz_a_reporter_gets_at_most_half_and_nothing_is_lost(
        uint128 amount,
        uint128 unbonding,
        bool reported
    ) public {
        unbonding = uint128(bound(unbonding, 0, 1000 * ONE));
        vm.prank(operator);
        stakes.requestUnstake(unbonding);
        address reporter = reported ? stranger : address(0);
        vm.prank(disputes);
        uint128 slashed = stakes.slash(operator, amount, reporter);

        eq(
            slashed,
            amount < 1000 * ONE ? amount : 1000 * ONE,
            "slashed: the amount, or all there is"
        );
        eq(token.balanceOf(stranger), reported ? slashed / 2 : 0, "the reporter's part");
        eq(token.balanceOf(treasury), slashed - token.balanceOf(stranger), "the treasury's part");
        (uint128 total, uint128 left,) = stakeOf(operator);
        eq(total, 1000 * ONE - slashed, "stake left");
        eq(left, unbonding < total ? unbonding : total, "unbonding left: active stake goes first");
        eq(token.balanceOf(address(stakes)), total, "tokens held");
        eq(stakes.activeStake(operator), total - left, "active stake");
    }

    function test_a_request_that_was_slashed_pays_what_is_left() public {
        vm.prank(operator);
        stakes.requestUnstake(1000 * ONE);
        vm.warp(1_790_000_000 + UNBONDING);
        vm.prank(disputes);
        stakes.slash(operator, 999 * ONE, address(0));
        vm.prank(operator);
        eq(stakes.withdraw(), ONE, "withdrawn");
    }

    // ---------------------------------------------------------------- signers

    function test_nobody_can_claim_a_key_that_did_not_offer_itself() public {
        vm.expectRevert(
            abi.encodeWithSelector(StakeManager.SignerNotOffered.selector, stranger, operator)
        );
        vm.prank(operator);
        stakes.addSigner(stranger);

        vm.prank(stranger);
        stakes.offerSigner(operator);
        vm.expectRevert(
            abi.encodeWithSelector(StakeManager.SignerNotOffered.selector, stranger, payer)
        );
        vm.prank(payer);
        stakes.addSigner(stranger);
    }

    function test_an_offer_alone_makes_no_signer() public {
        vm.startPrank(stranger);
        stakes.offerSigner(operator);
        eq(stakes.operatorOf(stranger), address(0), "operator of a key that only offered itself");
        (address op, uint128 active, bool live) = stakes.stakeBehind(stranger);
        eq(op, address(0), "operator behind it");
        eq(active, 0, "stake behind it");
        require(!live, "live behind it");
        vm.expectRevert(StakeManager.ZeroAddress.selector);
        stakes.offerSigner(address(0));
        stakes.offerSigner(payer); // a better offer
        vm.stopPrank();
        vm.expectRevert(
            abi.encodeWithSelector(StakeManager.SignerNotOffered.selector, stranger, operator)
        );
        vm.prank(operator);
        stakes.addSigner(stranger);
    }

    function test_a_key_serves_one_operator_only_and_never_again_once_removed() public {
        eq(stakes.operatorOf(hot), operator, "operator of the hot key");
        bytes memory taken =
            abi.encodeWithSelector(StakeManager.SignerTaken.selector, hot, operator);
        vm.expectRevert(taken);
        vm.prank(hot);
        stakes.offerSigner(payer);

        vm.warp(1_790_000_500);
        vm.prank(operator);
        stakes.removeSigner(hot);
        eq(stakes.operatorOf(hot), address(0), "operator of a removed key");
        (address op, uint48 addedAt, uint48 revokedAt) = stakes.signerInfo(hot);
        eq(op, operator, "a removed key stays bound to its operator");
        eq(addedAt, 1_790_000_000, "added at");
        eq(revokedAt, 1_790_000_500, "revoked at");

        vm.expectRevert(taken);
        vm.prank(hot);
        stakes.offerSigner(payer);
        vm.startPrank(operator);
        vm.expectRevert(taken);
        stakes.addSigner(hot);
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NotSigner.selector, hot, operator));
        stakes.removeSigner(hot);
    }

    function test_only_the_operator_removes_its_keys() public {
        vm.expectRevert(abi.encodeWithSelector(StakeManager.NotSigner.selector, hot, stranger));
        vm.prank(stranger);
        stakes.removeSigner(hot);
        vm.prank(stranger);
        stakes.offerSigner(operator);
        vm.expectRevert(
            abi.encodeWithSelector(StakeManager.NotSigner.selector, stranger, operator)
        );
        vm.prank(operator);
        stakes.removeSigner(stranger); // offered, not added
    }

    function test_an_operator_may_sign_with_its_own_key_if_it_says_so() public {
        eq(stakes.operatorOf(operator), address(0), "operator of the stake key before");
        vm.prank(operator);
        stakes.addSigner(operator);
        eq(stakes.operatorOf(operator), operator, "operator of the stake key after");
    }

    function test_an_operators_key_that_offered_itself_elsewhere_can_still_be_its_own() public {
        vm.startPrank(operator);
        stakes.offerSigner(stranger);
        stakes.addSigner(operator);
        eq(stakes.operatorOf(operator), operator, "operator of the stake key");
    }
}
