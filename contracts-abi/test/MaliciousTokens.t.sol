// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {
    ReentrancyGuardTransient
} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {Fixture} from "./Fixture.sol";
import {PlainTree} from "./PlainTree.sol";
import {AttributionLedger} from "../src/AttributionLedger.sol";
import {ExactTransfer} from "../src/lib/ExactTransfer.sol";
import {Payout} from "../src/lib/PayoutTree.sol";
import {Batch, Voucher} from "../src/lib/Types.sol";

/// Keeps a part of each transfer, once told to.
contract FeeToken is ERC20("fee", "FEE") {
    uint256 public feeBps;

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function charge(uint256 bps) external {
        feeBps = bps;
    }

    function _update(address from, address to, uint256 value) internal override {
        uint256 fee = from == address(0) || to == address(0) ? 0 : value * feeBps / 10_000;
        super._update(from, to, value - fee);
        if (fee != 0) super._update(from, address(0), fee);
    }
}

/// Returns false instead of moving anything.
contract RefusingToken is FeeToken {
    function transferFrom(address, address, uint256) public pure override returns (bool) {
        return false;
    }
}

/// Calls somebody in the middle of each transfer, as ERC-777 does, and remembers whether that
/// worked.
contract CallingToken is ERC20("calling", "CALL") {
    address private target;
    bytes private data;
    bool public called;
    bool public succeeded;
    bytes public answer;

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function callDuringTransfers(address target_, bytes calldata data_) external {
        (target, data) = (target_, data_);
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (target != address(0) && !called) {
            called = true;
            (succeeded, answer) = target.call(data);
        }
    }
}

contract MaliciousTokensTest is Fixture {
    function setUp() public override {
        vm.warp(1_790_000_000);
    }

    function inexact(address to, uint256 expected, uint256 received)
        private
        view
        returns (bytes memory)
    {
        return abi.encodeWithSelector(
            ExactTransfer.InexactTransfer.selector, address(token), to, expected, received
        );
    }

    function test_a_fee_on_transfer_token_can_be_neither_staked_nor_deposited() public {
        FeeToken fee = new FeeToken();
        deployAll(address(fee));
        mint(payer, 100 * ONE);
        fee.charge(1);
        vm.startPrank(payer);
        vm.expectRevert(inexact(address(stakes), 100 * ONE, 100 * ONE - 100 * ONE / 10_000));
        stakes.stake(100 * ONE);
        vm.expectRevert(inexact(address(escrow), 100 * ONE, 100 * ONE - 100 * ONE / 10_000));
        escrow.deposit(operator, 100 * ONE);
        eq(stakes.activeStake(payer), 0, "staked");
        (uint128 balance,,) = escrow.accountOf(payer, operator);
        eq(balance, 0, "deposited");
    }

    function test_a_token_that_begins_to_charge_later_can_not_empty_the_ledger() public {
        FeeToken fee = new FeeToken();
        deployAll(address(fee));
        enrol(operator, hot, 1000 * ONE);
        mint(payer, 100 * ONE);
        vm.prank(payer);
        escrow.deposit(operator, 100 * ONE);
        fee.charge(100);
        Voucher memory v = voucherOf(payer, operator, 0, 100 * ONE);
        bytes memory signature = signed(payerKey, escrow.voucherDigest(v));
        vm.expectRevert(inexact(address(ledger), 100 * ONE, 99 * ONE));
        vm.prank(hot);
        escrow.redeem(v, 0, signature);
        eq(escrow.redeemed(operator), 0, "redeemed");
    }

    function test_a_token_that_answers_false_moves_no_books() public {
        deployAll(address(new RefusingToken()));
        mint(payer, 100 * ONE);
        vm.startPrank(payer);
        vm.expectRevert();
        stakes.stake(100 * ONE);
        vm.expectRevert();
        escrow.deposit(operator, 100 * ONE);
    }

    // ---------------------------------------------------------------- reentrancy

    CallingToken private calling;
    Batch private batch;
    Payout[] private leaves;

    /// Everything up to a final batch of two leaves, on a token that can call out.
    function reentrantSetUp() private {
        calling = new CallingToken();
        deployAll(address(calling));
        enrol(operator, hot, 1000 * ONE);
        mint(payer, 1000 * ONE);
        earn(500 * ONE);
        vm.prank(dataOwner);
        datanet = registry.registerDatanet(keccak256("prose"), dataOwner);
        leaves.push(Payout(0, bytes32(uint256(uint160(operator))), 0, 60 * ONE));
        leaves.push(Payout(2, datanet, 0, 40 * ONE));
        batch = submitPayouts(leaves);
        vm.warp(block.timestamp + WINDOW);
    }

    function wasRefused() private view {
        require(calling.called(), "the token never called");
        require(!calling.succeeded(), "the nested call went through");
        eq(
            bytes4(calling.answer()),
            ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector,
            "why the nested call failed"
        );
    }

    function test_a_claim_within_a_claim_is_refused() public {
        reentrantSetUp();
        bytes memory again = abi.encodeCall(
            ledger.claim, (refOf(batch), leaves[1], PlainTree.proof(leaves, 1), bytes(""))
        );
        calling.callDuringTransfers(address(ledger), again);
        claim(batch, leaves, 1);
        wasRefused();
        eq(calling.balanceOf(dataOwner), 40 * ONE, "paid once");
    }

    function test_a_claim_within_many_claims_is_refused() public {
        reentrantSetUp();
        bytes memory nested = abi.encodeCall(
            ledger.claim, (refOf(batch), leaves[1], PlainTree.proof(leaves, 1), bytes(""))
        );
        calling.callDuringTransfers(address(ledger), nested);
        AttributionLedger.Claim[] memory claims = new AttributionLedger.Claim[](2);
        for (uint256 i = 0; i < 2; i++) {
            claims[i] = AttributionLedger.Claim(leaves[i], PlainTree.proof(leaves, i), "");
        }
        eq(ledger.claimMany(refOf(batch), claims), 100 * ONE, "paid by the call");
        wasRefused();
        eq(ledger.paid(operator), 100 * ONE, "paid in all");
    }

    function test_a_deposit_within_a_deposit_is_refused() public {
        reentrantSetUp();
        calling.callDuringTransfers(
            address(escrow), abi.encodeCall(escrow.deposit, (operator, ONE))
        );
        vm.prank(payer);
        escrow.deposit(operator, ONE);
        wasRefused();
    }

    /// The token itself is the payer that withdraws twice.
    function test_a_withdrawal_within_a_withdrawal_is_refused() public {
        reentrantSetUp();
        mint(address(calling), 10 * ONE);
        vm.startPrank(address(calling));
        escrow.deposit(operator, 10 * ONE);
        escrow.requestThaw(operator, 10 * ONE);
        vm.warp(block.timestamp + THAW);
        calling.callDuringTransfers(address(escrow), abi.encodeCall(escrow.withdraw, (operator)));
        eq(escrow.withdraw(operator), 10 * ONE, "withdrawn");
        wasRefused();
    }

    function test_a_redeem_within_a_redeem_is_refused() public {
        reentrantSetUp();
        vm.prank(payer);
        escrow.deposit(operator, 100 * ONE);
        Voucher memory v = voucherOf(payer, operator, 3, 10 * ONE);
        bytes memory signature = signed(payerKey, escrow.voucherDigest(v));
        calling.callDuringTransfers(
            address(escrow), abi.encodeCall(escrow.redeem, (v, 3, signature))
        );
        vm.prank(hot);
        escrow.redeem(v, 3, signature);
        wasRefused();
        eq(escrow.redeemed(operator), 510 * ONE, "redeemed");
    }

    function test_stake_can_not_be_withdrawn_twice_by_reentering() public {
        reentrantSetUp();
        mint(address(calling), 10 * ONE);
        vm.startPrank(address(calling));
        stakes.stake(10 * ONE);
        stakes.requestUnstake(10 * ONE);
        vm.warp(block.timestamp + UNBONDING);
        calling.callDuringTransfers(address(stakes), abi.encodeCall(stakes.withdraw, ()));
        eq(stakes.withdraw(), 10 * ONE, "withdrawn");
        wasRefused();
        eq(calling.balanceOf(address(stakes)), 1000 * ONE, "the operator's stake");
    }
}
