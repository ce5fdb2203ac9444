// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {World} from "./Fixture.sol";
import {PlainTree} from "./PlainTree.sol";
import {AttributionLedger} from "../src/AttributionLedger.sol";
import {Payout} from "../src/lib/PayoutTree.sol";
import {Batch, Voucher} from "../src/lib/Types.sol";

/// A market in which everything happens in any order: deposits, thaws, vouchers (old ones too),
/// stakes coming and going, batches, disputes, claims, time. Operator 0 is honest; operator 1
/// writes any payout tree whose sum is what it commits to, also trees that take back what earlier
/// ones gave.
///
/// Next to the contracts it keeps the books it expects. Calls that must fail are made, and must
/// fail with the right error.
contract Market is World {
    uint256 private constant LEAVES = 5;
    address[2] public operators;
    uint256[2] private hotKeys;
    address[3] public payers;
    uint256[3] private payerKeys;
    bytes32 private adapter2;

    /// What a batch was submitted with, in the order of its chain; voided ones are popped.
    struct Submitted {
        Batch batch;
        uint128[LEAVES] amounts;
        uint256 time;
    }

    Submitted[][2] private chains;
    uint128[2] public redeemed;
    uint128[2] public paid;
    uint256[2] private salt;
    uint256 public deposited; // less withdrawn and redeemed
    uint256 public staked;
    uint256 public overCommitted; // claims that met the cap of the dishonest operator
    uint256[10] public done; // calls that went through, by kind

    constructor() {
        build();
        operators = [operator, address(0x0be7)];
        hotKeys = [hotKey, uint256(keccak256("other hot"))];
        enrol(operators[1], vm.addr(hotKeys[1]), 1000 * ONE);
        staked = 2000 * ONE;
        for (uint256 i = 0; i < 3; i++) {
            payerKeys[i] = uint256(keccak256(abi.encode("payer", i)));
            payers[i] = vm.addr(payerKeys[i]);
            mint(payers[i], 1_000_000 * ONE);
        }
        for (uint256 i = 0; i < 2; i++) {
            mint(operators[i], 1_000_000 * ONE);
        }
        adapter2 = register(manifestOf("law", 1, 0));
    }

    // ---------------------------------------------------------------- payers

    function deposit(uint256 p, uint256 o, uint128 amount) external {
        amount = uint128(bound(amount, 1, 500 * ONE));
        vm.prank(payers[p % 3]);
        escrow.deposit(operators[o % 2], amount);
        deposited += amount;
        done[0]++;
    }

    function thaw(uint256 p, uint256 o, uint128 amount) external {
        (uint128 balance,,) = escrow.accountOf(payers[p % 3], operators[o % 2]);
        vm.prank(payers[p % 3]);
        escrow.requestThaw(operators[o % 2], uint128(bound(amount, 0, balance)));
        done[1]++;
    }

    function withdraw(uint256 p, uint256 o) external {
        (p, o) = (p % 3, o % 2);
        (, uint128 thawing, uint64 end) = escrow.accountOf(payers[p], operators[o]);
        if (thawing == 0) return;
        if (block.timestamp < end) vm.warp(end);
        vm.prank(payers[p]);
        eq(escrow.withdraw(operators[o]), thawing, "withdrawn");
        deposited -= thawing;
        done[2]++;
    }

    /// Any value, so that some are old and some unfunded: those must be refused and change nothing.
    function redeem(uint256 p, uint256 o, uint64 epoch, uint128 value) external {
        (p, o, epoch) = (p % 3, o % 2, epoch % 3);
        (uint128 balance,,) = escrow.accountOf(payers[p], operators[o]);
        (uint128 before,) = escrow.channelState(payers[p], operators[o], epoch);
        value =
            uint128(bound(value, before > ONE ? before - ONE : 0, before + balance + balance / 8));
        Voucher memory v = voucherOf(payers[p], operators[o], epoch, value);
        bytes memory signature = signed(payerKeys[p], escrow.voucherDigest(v));
        bool good = value > before && value - before <= balance;
        vm.prank(vm.addr(hotKeys[o]));
        try escrow.redeem(v, epoch, signature) returns (uint128 amount) {
            require(good, "an old or unfunded voucher was redeemed");
            eq(amount, value - before, "redeemed by a voucher");
            redeemed[o] += amount;
            deposited -= amount;
            done[3]++;
        } catch {
            require(!good, "a good voucher was refused");
        }
    }

    // ---------------------------------------------------------------- operators

    function stake(uint256 o, uint128 amount) external {
        amount = uint128(bound(amount, 1, 100 * ONE));
        vm.prank(operators[o % 2]);
        stakes.stake(amount);
        staked += amount;
        done[4]++;
    }

    /// Unstakes all but the minimum at most, so that operators stay in business.
    function unstake(uint256 o, uint128 amount) external {
        address op = operators[o % 2];
        (uint128 total, uint128 unbonding, uint64 end) = stakes.stakeOf(op);
        vm.startPrank(op);
        if (unbonding != 0 && amount % 4 != 0) {
            if (block.timestamp < end) vm.warp(end);
            eq(stakes.withdraw(), unbonding, "unstaked");
            staked -= unbonding;
        } else {
            stakes.requestUnstake(uint128(bound(amount, 0, total - MIN_STAKE)));
        }
        vm.stopPrank();
        done[5]++;
    }

    function leavesFor(uint256 o, uint128[LEAVES] memory amounts)
        private
        view
        returns (Payout[] memory leaves)
    {
        (bytes32 low, bytes32 high) =
            adapter < adapter2 ? (adapter, adapter2) : (adapter2, adapter);
        leaves = new Payout[](LEAVES);
        leaves[0] = Payout(0, bytes32(uint256(uint160(operators[o]))), 0, amounts[0]);
        leaves[1] = Payout(1, low, 0, amounts[1]);
        leaves[2] = Payout(1, low, 1, amounts[2]);
        leaves[3] = Payout(1, high, 0, amounts[3]);
        leaves[4] = Payout(2, datanet, 0, amounts[4]);
    }

    /// What the stake lets the next batch commit to at most, recomputed from the books.
    function allowance(uint256 o) private view returns (uint128) {
        uint128 active = stakes.activeStake(operators[o]);
        (, uint128 finalCommitted) = expectedFinal(o);
        uint128 byStake = finalCommitted + active;
        return byStake < redeemed[o] ? byStake : redeemed[o];
    }

    function expectedFinal(uint256 o) public view returns (uint64 count, uint128 committed) {
        for (
            uint256 i = 0;
            i < chains[o].length && block.timestamp >= chains[o][i].time + WINDOW;
            i++
        ) {
            (count, committed) = (uint64(i + 1), chains[o][i].batch.committed);
        }
    }

    function submitNext(uint256 o, uint128 delta, uint256 spread) external {
        o = o % 2;
        uint256 n = chains[o].length;
        uint128[LEAVES] memory amounts;
        uint128 before = 0;
        if (n != 0) {
            (amounts, before) = (chains[o][n - 1].amounts, chains[o][n - 1].batch.committed);
        }
        uint128 most = allowance(o);
        if (most < before) return; // the stake shrank meanwhile
        delta = uint128(bound(delta, 0, most - before));
        if (o == 1 && spread % 3 == 0) {
            // Takes everything back and hands it out anew.
            delete amounts;
            delta += before;
        }
        for (uint256 i = 0; i < LEAVES - 1; i++) {
            uint128 part =
                uint128(uint256(keccak256(abi.encode(spread, i))) % (uint256(delta) + 1));
            amounts[i] += part;
            delta -= part;
        }
        amounts[LEAVES - 1] += delta;
        push(o, amounts);
    }

    function push(uint256 o, uint128[LEAVES] memory amounts) private {
        uint256 n = chains[o].length;
        (bytes32 root, uint128 sum) = PlainTree.root(leavesFor(o, amounts));
        Batch memory batch = Batch({
            operator: operators[o],
            seq: uint64(n),
            leafCount: 1,
            receiptsRoot: keccak256("receipts"),
            payoutRoot: root,
            committed: sum,
            periodStart: 1,
            periodEnd: 2,
            dataHash: keccak256(abi.encode(salt[o]++)), // never the same batch twice
            prevBatchHash: n == 0 ? bytes32(0) : ledger.batchDigest(chains[o][n - 1].batch)
        });
        ledger.submit(batch, signed(hotKeys[o], ledger.batchDigest(batch)));
        chains[o].push(Submitted(batch, amounts, block.timestamp));
        done[6]++;
    }

    /// One unit more than the stake or the vouchers allow must be refused.
    function submitTooMuch(uint256 o) external {
        o = o % 2;
        uint256 n = chains[o].length;
        uint128 before = n == 0 ? 0 : chains[o][n - 1].batch.committed;
        uint128 most = allowance(o);
        uint128[LEAVES] memory amounts;
        amounts[0] = (most < before ? before : most) + 1;
        (bytes32 root, uint128 sum) = PlainTree.root(leavesFor(o, amounts));
        Batch memory batch = Batch(
            operators[o],
            uint64(n),
            1,
            0,
            root,
            sum,
            1,
            2,
            0,
            n == 0 ? bytes32(0) : ledger.batchDigest(chains[o][n - 1].batch)
        );
        bytes memory signature = signed(hotKeys[o], ledger.batchDigest(batch));
        try ledger.submit(batch, signature) {
            revert("a batch above stake or vouchers was accepted");
        } catch (bytes memory why) {
            require(
                bytes4(why) == AttributionLedger.ValueAboveStake.selector
                    || bytes4(why) == AttributionLedger.CommittedAboveRedeemed.selector,
                "refused for another reason"
            );
        }
    }

    // ---------------------------------------------------------------- disputes

    function void(uint256 o, uint256 which) external {
        o = o % 2;
        (uint64 finalCount,) = expectedFinal(o);
        uint256 n = chains[o].length;
        if (n == finalCount) return;
        uint256 seq = bound(which, finalCount, n - 1);
        Batch memory batch = chains[o][seq].batch;
        vm.prank(disputes);
        ledger.void(batch);
        while (chains[o].length > seq) chains[o].pop();
        try ledger.submit(batch, signed(hotKeys[o], ledger.batchDigest(batch))) {
            revert("a voided batch was accepted again");
        } catch {}
        done[7]++;
    }

    // ---------------------------------------------------------------- claims

    function claim(uint256 o, uint256 which, uint256 leaf) external {
        o = o % 2;
        if (chains[o].length == 0) return;
        (uint64 finalCount,) = expectedFinal(o);
        Submitted memory s = chains[o][which % chains[o].length];
        Payout[] memory leaves = leavesFor(o, s.amounts);
        leaf = leaf % LEAVES;
        Payout memory payout = leaves[leaf];
        uint128 before = ledger.claimed(operators[o], payout.kind, payout.id, payout.position);
        AttributionLedger.BatchRef memory ref = refOf(s.batch);
        uint256 held = token.balanceOf(address(ledger));
        try ledger.claim(ref, payout, PlainTree.proof(leaves, leaf), shown()) returns (
            uint128 amount
        ) {
            require(s.batch.seq < finalCount, "an open batch was claimed against");
            eq(amount, payout.amount - before, "claimed");
            eq(held - token.balanceOf(address(ledger)), amount, "paid");
            paid[o] += amount;
            done[8]++;
        } catch (bytes memory why) {
            bytes4 error_ = bytes4(why);
            if (error_ == AttributionLedger.NotFinal.selector) {
                require(s.batch.seq >= finalCount, "a final batch counts as open");
            } else if (error_ == AttributionLedger.NothingToClaim.selector) {
                require(payout.amount <= before, "something to claim counts as nothing");
            } else {
                require(
                    error_ == AttributionLedger.OverCommitted.selector,
                    "a claim failed for another reason"
                );
                require(o == 1, "an honest operator's books don't add up");
                overCommitted++;
            }
            require(
                o == 1 || s.batch.seq >= finalCount || payout.amount <= before,
                "an honest claim was refused"
            );
        }
    }

    function passTime(uint256 seconds_) external {
        vm.warp(block.timestamp + bound(seconds_, 1, 5 days));
        done[9]++;
    }

    // ---------------------------------------------------------------- for the invariants

    function head(uint256 o) external view returns (uint64 seq, bytes32 hash, uint128 committed) {
        seq = uint64(chains[o].length);
        if (seq != 0) {
            Batch memory batch = chains[o][seq - 1].batch;
            (hash, committed) = (ledger.batchDigest(batch), batch.committed);
        }
    }

    function claimedLeaves(uint256 o) external view returns (uint256 sum) {
        uint128[LEAVES] memory none;
        Payout[] memory leaves = leavesFor(o, none);
        for (uint256 i = 0; i < LEAVES; i++) {
            sum += ledger.claimed(operators[o], leaves[i].kind, leaves[i].id, leaves[i].position);
        }
    }

    function check() external view {
        eq(
            token.balanceOf(address(escrow)),
            deposited,
            "escrow holds what was deposited and not redeemed"
        );
        eq(token.balanceOf(address(stakes)), staked, "the stake manager holds what was staked");
        eq(
            token.balanceOf(address(ledger)),
            uint256(redeemed[0]) + redeemed[1] - paid[0] - paid[1],
            "the ledger holds what was redeemed and not claimed"
        );
        uint256 balances = 0;
        for (uint256 p = 0; p < 3; p++) {
            for (uint256 o = 0; o < 2; o++) {
                (uint128 balance,,) = escrow.accountOf(payers[p], operators[o]);
                balances += balance;
            }
        }
        eq(balances, deposited, "the payers' balances sum to what escrow holds");
        for (uint256 o = 0; o < 2; o++) {
            (uint64 next, bytes32 hash, uint128 committed) = ledger.headOf(operators[o]);
            (uint64 wantNext, bytes32 wantHash, uint128 wantCommitted) = this.head(o);
            eq(next, wantNext, "next seq");
            eq(hash, wantHash, "head");
            eq(committed, wantCommitted, "committed");
            (uint64 finalCount, uint128 finalCommitted) = ledger.finalOf(operators[o]);
            (uint64 wantFinal, uint128 wantFinalCommitted) = expectedFinal(o);
            eq(finalCount, wantFinal, "final batches");
            eq(finalCommitted, wantFinalCommitted, "final committed");
            eq(escrow.redeemed(operators[o]), redeemed[o], "redeemed");
            eq(ledger.paid(operators[o]), paid[o], "paid");
            eq(this.claimedLeaves(o), paid[o], "claimed leaves sum to what was paid");
            atMost(paid[o], finalCommitted, "paid <= final committed");
            atMost(finalCommitted, committed, "final committed <= committed");
            atMost(committed, redeemed[o], "committed <= redeemed");
        }
    }
}

contract InvariantsTest {
    Market private market;

    function setUp() public {
        market = new Market();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(market);
    }

    function invariant_the_books_agree_with_the_tokens() public view {
        market.check();
    }

    /// The invariant is worth nothing if the walk never claims or voids: a fixed one must do
    /// everything.
    function test_a_fixed_walk_of_800_steps_does_everything_and_the_books_agree() public {
        for (uint256 i = 0; i < 800; i++) {
            uint256 r = uint256(keccak256(abi.encode(i)));
            (uint256 a, uint256 b, uint128 c) =
                (r >> 8 & 0xffff, r >> 24 & 0xffff, uint128(r >> 128));
            uint256 what = r % 13;
            if (what == 0) market.deposit(a, b, c);
            if (what == 1) market.thaw(a, b, c);
            if (what == 2) market.withdraw(a, b);
            if (what == 3) market.redeem(a, b, uint64(c), uint128(c));
            if (what == 4) market.stake(a, c);
            if (what == 5) market.unstake(a, c);
            if (what == 6) market.submitNext(a, c, b);
            if (what == 7) market.submitTooMuch(a);
            if (what == 8 && c % 4 == 0) market.void(a, b);
            if (what > 8 && what < 12) market.claim(a, b, c);
            if (what == 12) market.passTime(c);
            if (i % 50 == 49) market.check();
        }
        for (uint256 i = 0; i < 10; i++) {
            require(market.done(i) >= 5, "a kind of call hardly ever went through");
        }
        require(market.overCommitted() > 0, "no claim ever met the cap of a dishonest operator");
    }
}
