// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {Fixture} from "./Fixture.sol";
import {Escrow} from "../src/Escrow.sol";
import {StakeManager} from "../src/StakeManager.sol";
import {Voucher} from "../src/lib/Types.sol";

contract EscrowTest is Fixture {
    function setUp() public override {
        super.setUp();
        vm.prank(payer);
        escrow.deposit(operator, 100 * ONE);
    }

    function balance() private view returns (uint128 b) {
        (b,,) = escrow.accountOf(payer, operator);
    }

    function pay(Voucher memory v, uint64 epoch) private returns (uint128) {
        bytes memory signature = signed(payerKey, escrow.voucherDigest(v));
        vm.prank(hot);
        return escrow.redeem(v, epoch, signature);
    }

    function refuse(Voucher memory v, uint64 epoch, bytes memory signature, Escrow.Refusal why)
        private
    {
        vm.expectRevert(
            abi.encodeWithSelector(Escrow.Refused.selector, v.channel, v.valueAggregate, why)
        );
        vm.prank(hot);
        escrow.redeem(v, epoch, signature);
    }

    // ---------------------------------------------------------------- deployment

    function test_zero_addresses_and_absurd_periods_are_refused_at_deployment() public {
        IERC20 t = IERC20(address(token));
        vm.expectRevert(Escrow.ZeroAddress.selector);
        make("Escrow", abi.encode(IERC20(address(0)), stakes, address(ledger), THAW));
        vm.expectRevert(Escrow.ZeroAddress.selector);
        make("Escrow", abi.encode(t, StakeManager(address(0)), address(ledger), THAW));
        vm.expectRevert(Escrow.ZeroAddress.selector);
        make("Escrow", abi.encode(t, stakes, address(0), THAW));
        vm.expectRevert(abi.encodeWithSelector(Escrow.BadThawPeriod.selector, 0));
        make("Escrow", abi.encode(t, stakes, address(ledger), 0));
        vm.expectRevert(abi.encodeWithSelector(Escrow.BadThawPeriod.selector, 366 days));
        make("Escrow", abi.encode(t, stakes, address(ledger), 366 days));
    }

    // ---------------------------------------------------------------- deposits and thaws

    function test_a_deposit_for_somebody_is_somebodys() public {
        mint(stranger, 5 * ONE);
        vm.prank(stranger);
        escrow.depositFor(payer, operator, 5 * ONE);
        eq(balance(), 105 * ONE, "balance");
        vm.expectRevert(
            abi.encodeWithSelector(
                Escrow.BalanceTooSmall.selector, stranger, operator, uint128(0), uint128(1)
            )
        );
        vm.prank(stranger);
        escrow.requestThaw(operator, 1);
    }

    function test_empty_deposits_are_refused() public {
        vm.startPrank(payer);
        vm.expectRevert(Escrow.ZeroAmount.selector);
        escrow.deposit(operator, 0);
        vm.expectRevert(Escrow.ZeroAddress.selector);
        escrow.deposit(address(0), 1);
        vm.expectRevert(Escrow.ZeroAddress.selector);
        escrow.depositFor(address(0), operator, 1);
    }

    function test_a_balance_of_more_than_2_to_128_is_refused() public {
        mint(stranger, type(uint128).max);
        vm.startPrank(stranger);
        vm.expectRevert(); // checked arithmetic
        escrow.depositFor(payer, operator, type(uint128).max);
    }

    function test_funds_leave_after_the_thaw_and_not_a_second_before() public {
        vm.startPrank(payer);
        vm.expectRevert(abi.encodeWithSelector(Escrow.NothingThawing.selector, payer, operator));
        escrow.withdraw(operator);
        escrow.requestThaw(operator, 40 * ONE);
        uint64 end = 1_790_000_000 + THAW;
        vm.warp(end - 1);
        vm.expectRevert(abi.encodeWithSelector(Escrow.StillThawing.selector, payer, operator, end));
        escrow.withdraw(operator);
        vm.warp(end);
        uint256 before = token.balanceOf(payer);
        eq(escrow.withdraw(operator), 40 * ONE, "withdrawn");
        eq(token.balanceOf(payer) - before, 40 * ONE, "paid out");
        eq(balance(), 60 * ONE, "balance left");
        vm.expectRevert(abi.encodeWithSelector(Escrow.NothingThawing.selector, payer, operator));
        escrow.withdraw(operator);
    }

    function test_a_new_thaw_replaces_the_old_and_zero_cancels() public {
        vm.startPrank(payer);
        escrow.requestThaw(operator, 100 * ONE);
        vm.warp(1_790_000_000 + THAW);
        escrow.requestThaw(operator, 10 * ONE);
        vm.expectRevert(
            abi.encodeWithSelector(
                Escrow.StillThawing.selector, payer, operator, 1_790_000_000 + 2 * THAW
            )
        );
        escrow.withdraw(operator);
        escrow.requestThaw(operator, 0);
        vm.warp(1_790_000_000 + 9 * THAW);
        vm.expectRevert(abi.encodeWithSelector(Escrow.NothingThawing.selector, payer, operator));
        escrow.withdraw(operator);
    }

    function test_a_voucher_takes_thawing_funds_and_the_withdrawal_gets_the_rest() public {
        vm.prank(payer);
        escrow.requestThaw(operator, 100 * ONE);
        eq(pay(voucherOf(payer, operator, 0, 70 * ONE), 0), 70 * ONE, "redeemed");
        (uint128 b, uint128 thawing,) = escrow.accountOf(payer, operator);
        eq(b, 30 * ONE, "balance");
        eq(thawing, 30 * ONE, "thawing: at most the balance");
        vm.warp(1_790_000_000 + THAW);
        vm.prank(payer);
        eq(escrow.withdraw(operator), 30 * ONE, "withdrawn");
        eq(balance(), 0, "balance left");
    }

    // ---------------------------------------------------------------- vouchers

    function test_a_voucher_moves_the_difference_to_the_ledger() public {
        eq(pay(voucherOf(payer, operator, 0, 10 * ONE), 0), 10 * ONE, "first");
        eq(pay(voucherOf(payer, operator, 0, 25 * ONE), 0), 15 * ONE, "second");
        eq(token.balanceOf(address(ledger)), 25 * ONE, "held by the ledger");
        eq(token.balanceOf(address(escrow)), 75 * ONE, "held by the escrow");
        eq(escrow.redeemed(operator), 25 * ONE, "redeemed");
        (uint128 value, bytes32 last) = escrow.channelState(payer, operator, 0);
        eq(value, 25 * ONE, "the channel's value");
        eq(
            last,
            voucherOf(payer, operator, 0, 25 * ONE).lastReceiptHash,
            "the channel's last receipt"
        );
    }

    function test_an_old_or_repeated_voucher_is_refused_and_changes_nothing() public {
        Voucher memory v10 = voucherOf(payer, operator, 0, 10 * ONE);
        Voucher memory v25 = voucherOf(payer, operator, 0, 25 * ONE);
        pay(v25, 0);
        refuse(v25, 0, signed(payerKey, escrow.voucherDigest(v25)), Escrow.Refusal.Stale);
        refuse(v10, 0, signed(payerKey, escrow.voucherDigest(v10)), Escrow.Refusal.Stale);
        (, bytes32 last) = escrow.channelState(payer, operator, 0);
        eq(last, v25.lastReceiptHash, "the channel's last receipt");
        eq(escrow.redeemed(operator), 25 * ONE, "redeemed");
    }

    function test_a_voucher_is_redeemed_whole_or_not_at_all() public {
        Voucher memory v = voucherOf(payer, operator, 0, 100 * ONE + 1);
        refuse(v, 0, signed(payerKey, escrow.voucherDigest(v)), Escrow.Refusal.Unfunded);
        eq(balance(), 100 * ONE, "balance");
        eq(pay(voucherOf(payer, operator, 0, 100 * ONE), 0), 100 * ONE, "a smaller one");
        refuse(v, 0, signed(payerKey, escrow.voucherDigest(v)), Escrow.Refusal.Unfunded);
        vm.prank(payer);
        escrow.deposit(operator, 1);
        eq(pay(v, 0), 1, "the same, once funded");
    }

    function test_each_epoch_is_a_channel_of_its_own() public {
        pay(voucherOf(payer, operator, 0, 10 * ONE), 0);
        pay(voucherOf(payer, operator, 7, 3 * ONE), 7);
        eq(pay(voucherOf(payer, operator, 0, 11 * ONE), 0), ONE, "epoch 0 goes on after epoch 7");
        eq(pay(voucherOf(payer, operator, 7, 5 * ONE), 7), 2 * ONE, "epoch 7 goes on");
        Voucher memory v = voucherOf(payer, operator, 7, 5 * ONE);
        refuse(v, 7, signed(payerKey, escrow.voucherDigest(v)), Escrow.Refusal.Stale);
        (uint128 value,) = escrow.channelState(payer, operator, 7);
        eq(value, 5 * ONE, "epoch 7's value");
        (value,) = escrow.channelState(payer, operator, 0);
        eq(value, 11 * ONE, "epoch 0's value");
        (value,) = escrow.channelState(payer, operator, 1);
        eq(value, 0, "epoch 1's value");
        eq(escrow.redeemed(operator), 16 * ONE, "redeemed");
    }

    function test_a_channel_that_is_not_the_epochs_is_refused() public {
        Voucher memory v = voucherOf(payer, operator, 0, ONE);
        bytes memory signature = signed(payerKey, escrow.voucherDigest(v));
        refuse(v, 1, signature, Escrow.Refusal.WrongChannel);
        v.channel = keccak256("any");
        signature = signed(payerKey, escrow.voucherDigest(v));
        refuse(v, 0, signature, Escrow.Refusal.WrongChannel);
    }

    function testFuzz_a_signature_over_anything_else_is_refused(uint256 what, uint256 how) public {
        Voucher memory v = voucherOf(payer, operator, 0, ONE);
        bytes memory signature = signed(payerKey, escrow.voucherDigest(v));
        how = bound(how, 1, 255);
        what = bound(what, 0, 3);
        if (what == 0) v.timestampMs ^= uint64(how);
        if (what == 1) v.valueAggregate ^= uint128(how);
        if (what == 2) v.lastReceiptHash ^= bytes32(how);
        if (what == 3) signature[how % 64] ^= bytes1(uint8(how));
        refuse(v, 0, signature, Escrow.Refusal.WrongSignature);
    }

    function test_malleable_malformed_and_foreign_signatures_are_refused() public {
        Voucher memory v = voucherOf(payer, operator, 0, ONE);
        bytes memory signature = signed(payerKey, escrow.voucherDigest(v));
        refuse(v, 0, malleated(signature), Escrow.Refusal.WrongSignature);
        refuse(v, 0, "", Escrow.Refusal.WrongSignature);
        refuse(v, 0, new bytes(65), Escrow.Refusal.WrongSignature);
        refuse(v, 0, abi.encodePacked(signature, uint8(0)), Escrow.Refusal.WrongSignature);
        refuse(v, 0, signed(strangerKey, escrow.voucherDigest(v)), Escrow.Refusal.WrongSignature);
        refuse(v, 0, signed(operatorKey, escrow.voucherDigest(v)), Escrow.Refusal.WrongSignature);
    }

    function test_a_voucher_of_nobody_is_refused() public {
        mint(stranger, ONE);
        Voucher memory v = voucherOf(address(0), operator, 0, ONE);
        // Nobody's account can't even be funded; were it, ecrecover's zero would still be no payer.
        vm.expectRevert(Escrow.ZeroAddress.selector);
        vm.prank(stranger);
        escrow.depositFor(address(0), operator, ONE);
        v.valueAggregate = 0;
        refuse(v, 0, new bytes(65), Escrow.Refusal.Stale);
        v.valueAggregate = 1;
        refuse(v, 0, new bytes(65), Escrow.Refusal.Unfunded);
        require(
            !escrow.isSignedVoucher(v, new bytes(65)), "a voucher of nobody is signed by nobody"
        );
    }

    function test_a_voucher_for_another_chain_or_escrow_is_refused() public {
        Voucher memory v = voucherOf(payer, operator, 0, ONE);
        Escrow other = Escrow(
            make("Escrow", abi.encode(IERC20(address(token)), stakes, address(ledger), THAW))
        );
        refuse(v, 0, signed(payerKey, other.voucherDigest(v)), Escrow.Refusal.WrongSignature);
        bytes memory signature = signed(payerKey, escrow.voucherDigest(v));
        vm.chainId(1612);
        refuse(v, 0, signature, Escrow.Refusal.WrongSignature);
    }

    function test_only_the_operator_and_its_signers_redeem() public {
        Voucher memory v = voucherOf(payer, operator, 0, ONE);
        bytes memory signature = signed(payerKey, escrow.voucherDigest(v));
        address[3] memory others = [payer, stranger, address(ledger)];
        for (uint256 i = 0; i < others.length; i++) {
            vm.expectRevert(
                abi.encodeWithSelector(Escrow.NotOperator.selector, others[i], operator)
            );
            vm.prank(others[i]);
            escrow.redeem(v, 0, signature);
            vm.expectRevert(
                abi.encodeWithSelector(Escrow.NotOperator.selector, others[i], operator)
            );
            vm.prank(others[i]);
            escrow.redeemMany(operator, new Escrow.SignedVoucher[](0));
        }
        vm.expectRevert(abi.encodeWithSelector(Escrow.NotOperator.selector, stranger, address(0)));
        vm.prank(stranger); // serves no operator: not the same as serving the zero address
        escrow.redeemMany(address(0), new Escrow.SignedVoucher[](0));
        vm.prank(operator);
        escrow.redeem(v, 0, signature);
        vm.prank(operator);
        stakes.removeSigner(hot);
        v = voucherOf(payer, operator, 0, 2 * ONE);
        signature = signed(payerKey, escrow.voucherDigest(v));
        vm.expectRevert(abi.encodeWithSelector(Escrow.NotOperator.selector, hot, operator));
        vm.prank(hot);
        escrow.redeem(v, 0, signature);
    }

    // ---------------------------------------------------------------- the payer's keys

    function test_a_payers_key_signs_until_one_thaw_period_after_its_removal() public {
        Voucher memory v = voucherOf(payer, operator, 0, ONE);
        bytes memory signature = signed(strangerKey, escrow.voucherDigest(v));
        refuse(v, 0, signature, Escrow.Refusal.WrongSignature);
        vm.prank(payer);
        escrow.addSigner(stranger);
        require(escrow.isSigner(payer, stranger), "not a signer once added");
        require(!escrow.isSigner(operator, stranger), "a signer for everybody");

        vm.prank(payer);
        escrow.removeSigner(stranger);
        vm.warp(1_790_000_000 + THAW - 1);
        vm.prank(hot);
        eq(escrow.redeem(v, 0, signature), ONE, "a second before");
        vm.warp(1_790_000_000 + THAW);
        v = voucherOf(payer, operator, 0, 2 * ONE);
        refuse(v, 0, signed(strangerKey, escrow.voucherDigest(v)), Escrow.Refusal.WrongSignature);
    }

    function test_keys_are_added_and_removed_once() public {
        vm.startPrank(payer);
        vm.expectRevert(Escrow.ZeroAddress.selector);
        escrow.addSigner(address(0));
        vm.expectRevert(abi.encodeWithSelector(Escrow.NotSigner.selector, payer, stranger));
        escrow.removeSigner(stranger);
        escrow.addSigner(stranger);
        vm.expectRevert(abi.encodeWithSelector(Escrow.SignerExists.selector, payer, stranger));
        escrow.addSigner(stranger);
        escrow.removeSigner(stranger);
        vm.expectRevert(abi.encodeWithSelector(Escrow.NotSigner.selector, payer, stranger));
        escrow.removeSigner(stranger); // must not push the end further away
        escrow.addSigner(stranger); // kept after all
        eq(escrow.signerValidUntil(payer, stranger), type(uint64).max, "valid until");
    }

    // ---------------------------------------------------------------- many

    function entry(Voucher memory v, uint64 epoch, uint256 key)
        private
        view
        returns (Escrow.SignedVoucher memory)
    {
        return Escrow.SignedVoucher(v, epoch, signed(key, escrow.voucherDigest(v)));
    }

    function test_a_bad_voucher_among_many_blocks_no_other() public {
        Voucher memory good = voucherOf(payer, operator, 0, 10 * ONE);
        Voucher memory older = voucherOf(payer, operator, 0, 4 * ONE);
        Voucher memory unfunded = voucherOf(payer, operator, 1, 1000 * ONE);
        Voucher memory foreign = voucherOf(payer, stranger, 0, ONE);
        Voucher memory other = voucherOf(payer, operator, 2, 5 * ONE);
        Escrow.SignedVoucher[] memory list = new Escrow.SignedVoucher[](7);
        list[0] = entry(unfunded, 1, payerKey);
        list[1] = entry(good, 0, payerKey);
        list[2] = entry(older, 0, payerKey);
        list[3] = entry(foreign, 0, payerKey);
        list[4] = entry(other, 3, payerKey); // the wrong epoch
        list[5] = entry(other, 2, strangerKey);
        list[6] = entry(other, 2, payerKey);

        Escrow.Refusal[7] memory why = [
            Escrow.Refusal.Unfunded,
            Escrow.Refusal.None,
            Escrow.Refusal.Stale,
            Escrow.Refusal.WrongOperator,
            Escrow.Refusal.WrongChannel,
            Escrow.Refusal.WrongSignature,
            Escrow.Refusal.None
        ];
        for (uint256 i = 0; i < list.length; i++) {
            Voucher memory v = list[i].voucher;
            vm.expectEmit(true, true, true, true);
            if (why[i] == Escrow.Refusal.None) {
                emit Escrow.Redeemed(
                    operator,
                    payer,
                    v.channel,
                    v.valueAggregate,
                    v.valueAggregate,
                    v.lastReceiptHash
                );
            } else {
                emit Escrow.VoucherRefused(operator, payer, v.channel, v.valueAggregate, why[i]);
            }
        }
        vm.prank(hot);
        eq(escrow.redeemMany(operator, list), 15 * ONE, "redeemed by the call");
        eq(escrow.redeemed(operator), 15 * ONE, "redeemed in all");
        eq(token.balanceOf(address(ledger)), 15 * ONE, "held by the ledger");
        eq(balance(), 85 * ONE, "balance");
    }

    function test_many_with_nothing_to_redeem_move_nothing() public {
        Escrow.SignedVoucher[] memory list = new Escrow.SignedVoucher[](1);
        list[0] = entry(voucherOf(payer, operator, 0, 1000 * ONE), 0, payerKey);
        vm.prank(hot);
        eq(escrow.redeemMany(operator, list), 0, "redeemed by the call");
        eq(token.balanceOf(address(ledger)), 0, "held by the ledger");
    }

    /// Whatever order vouchers of one channel come in, the newest decides.
    function testFuzz_the_newest_voucher_decides_whatever_the_order(uint128[5] memory values)
        public
    {
        uint128 newest = 0;
        for (uint256 i = 0; i < 5; i++) {
            values[i] = uint128(bound(values[i], 1, 100 * ONE));
            if (values[i] > newest) newest = values[i];
        }
        Escrow.SignedVoucher[] memory list = new Escrow.SignedVoucher[](5);
        for (uint256 i = 0; i < 5; i++) {
            list[i] = entry(voucherOf(payer, operator, 0, values[i]), 0, payerKey);
        }
        vm.prank(hot);
        eq(escrow.redeemMany(operator, list), newest, "redeemed");
        (uint128 value, bytes32 last) = escrow.channelState(payer, operator, 0);
        eq(value, newest, "the channel's value");
        eq(
            last,
            voucherOf(payer, operator, 0, newest).lastReceiptHash,
            "the channel's last receipt"
        );
    }
}
