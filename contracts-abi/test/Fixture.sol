// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Base} from "./Base.sol";
import {PlainTree} from "./PlainTree.sol";
import {AdapterRegistry} from "../src/AdapterRegistry.sol";
import {AttributionLedger} from "../src/AttributionLedger.sol";
import {Escrow} from "../src/Escrow.sol";
import {StakeManager} from "../src/StakeManager.sol";
import {TestToken} from "../src/TestToken.sol";
import {Payout, PayoutProof} from "../src/lib/PayoutTree.sol";
import {Batch, Manifest, Splits, Voucher} from "../src/lib/Types.sol";

/// All contracts, one operator with a hot key, one payer, one adapter with two payees and a
/// Datanet.
abstract contract World is Base {
    uint128 internal constant ONE = 1e18;
    uint128 internal constant MIN_STAKE = 100 * ONE;
    uint64 internal constant WINDOW = 7 days;
    uint64 internal constant UNBONDING = 8 days;
    uint64 internal constant THAW = 3 days;
    uint64 internal constant PAYEE_DELAY = 2 days;
    bytes32 internal constant MODEL = keccak256("demo-7m");

    address internal constant treasury = address(0x7ea5);
    address internal constant disputes = address(0xd15);

    uint256 internal constant operatorKey = uint256(keccak256("operator"));
    uint256 internal constant hotKey = uint256(keccak256("hot"));
    uint256 internal constant payerKey = uint256(keccak256("payer"));
    uint256 internal constant creatorKey = uint256(keccak256("creator"));
    uint256 internal constant strangerKey = uint256(keccak256("stranger"));
    address internal operator = vm.addr(operatorKey);
    address internal hot = vm.addr(hotKey);
    address internal payer = vm.addr(payerKey);
    address internal creator = vm.addr(creatorKey);
    address internal stranger = vm.addr(strangerKey);
    address internal payeeA = address(0xa11ce);
    address internal payeeB = address(0xb0b);
    address internal dataOwner = address(0xda7a);

    TestToken internal token;
    StakeManager internal stakes;
    AdapterRegistry internal registry;
    Escrow internal escrow;
    AttributionLedger internal ledger;

    bytes32 internal datanet;
    bytes32 internal adapter;
    Splits internal splits;

    function build() internal {
        vm.warp(1_790_000_000);
        deployAll(make("TestToken", ""));
        enrol(operator, hot, 1000 * ONE);
        mint(payer, 1_000_000 * ONE);

        vm.prank(dataOwner);
        datanet = registry.registerDatanet(keccak256("prose"), dataOwner);
        splits.payees = [payeeA, payeeB];
        splits.bps = [6000, 3000];
        splits.datanets = [datanet];
        splits.datanetBps = [1000];
        adapter = register(manifestOf("med", 1, 0));
    }

    function deployAll(address token_) internal {
        token = TestToken(token_);
        stakes = StakeManager(
            make("StakeManager", abi.encode(token_, MIN_STAKE, UNBONDING, treasury, disputes))
        );
        registry = AdapterRegistry(make("AdapterRegistry", abi.encode(PAYEE_DELAY)));
        address ledgerAddress =
            vm.computeCreateAddress(address(this), vm.getNonce(address(this)) + 1);
        escrow = Escrow(make("Escrow", abi.encode(token_, stakes, ledgerAddress, THAW)));
        ledger = AttributionLedger(
            make("AttributionLedger", abi.encode(stakes, registry, escrow, WINDOW))
        );
    }

    function mint(address to, uint128 amount) internal {
        token.mint(to, amount);
        vm.startPrank(to);
        token.approve(address(stakes), type(uint256).max);
        token.approve(address(escrow), type(uint256).max);
        vm.stopPrank();
    }

    /// Stakes for an operator and gives it a hot key.
    function enrol(address op, address key, uint128 amount) internal {
        mint(op, amount);
        vm.prank(op);
        stakes.stake(amount);
        vm.prank(key);
        stakes.offerSigner(op);
        vm.prank(op);
        stakes.addSigner(key);
    }

    // ---------------------------------------------------------------- adapters

    function manifestOf(string memory name, uint64 version, bytes32 parent)
        internal
        view
        returns (Manifest memory)
    {
        return Manifest({
            manifestHash: keccak256(bytes(name)),
            contentDigest: keccak256(abi.encode("content of", name)),
            modelId: MODEL,
            creator: creator,
            version: version,
            parent: parent
        });
    }

    function register(Manifest memory m) internal returns (bytes32) {
        bytes memory signature = signed(creatorKey, registry.manifestDigest(m));
        vm.prank(creator);
        return registry.registerAdapter(m, splits, signature);
    }

    function shown() internal view returns (bytes memory) {
        return abi.encode(splits);
    }

    // ---------------------------------------------------------------- money in

    function voucherOf(address payer_, address op, uint64 epoch, uint128 value)
        internal
        pure
        returns (Voucher memory)
    {
        return Voucher({
            payer: payer_,
            operator: op,
            channel: keccak256(abi.encode(payer_, op, epoch)),
            timestampMs: 1_790_000_000_000,
            valueAggregate: value,
            lastReceiptHash: keccak256(abi.encode("receipt", epoch, value))
        });
    }

    /// Deposits and redeems so that redeemed(operator) grows by `amount`.
    function earn(uint128 amount) internal {
        vm.prank(payer);
        escrow.deposit(operator, amount);
        (uint128 before,) = escrow.channelState(payer, operator, 0);
        Voucher memory v = voucherOf(payer, operator, 0, before + amount);
        bytes memory signature = signed(payerKey, escrow.voucherDigest(v));
        vm.prank(hot);
        escrow.redeem(v, 0, signature);
    }

    // ---------------------------------------------------------------- batches

    /// The fixture's leaves, ascending: operator, the adapter's two positions, Datanet.
    function leavesOf(uint128 op, uint128 a, uint128 b, uint128 data)
        internal
        view
        returns (Payout[] memory leaves)
    {
        leaves = new Payout[](4);
        leaves[0] = Payout(0, bytes32(uint256(uint160(operator))), 0, op);
        leaves[1] = Payout(1, adapter, 0, a);
        leaves[2] = Payout(1, adapter, 1, b);
        leaves[3] = Payout(2, datanet, 0, data);
    }

    /// The next batch of the operator with these payouts.
    function batchOf(Payout[] memory leaves) internal view returns (Batch memory batch) {
        (uint64 seq, bytes32 head,) = ledger.headOf(operator);
        (bytes32 root, uint128 sum) = PlainTree.root(leaves);
        batch = Batch({
            operator: operator,
            seq: seq,
            leafCount: 3,
            receiptsRoot: keccak256(abi.encode("receipts", seq)),
            payoutRoot: root,
            committed: sum,
            periodStart: 1000,
            periodEnd: 2000,
            dataHash: keccak256(abi.encode("file", seq)),
            prevBatchHash: head
        });
    }

    function submit(Batch memory batch) internal {
        bytes memory signature = signed(hotKey, ledger.batchDigest(batch));
        ledger.submit(batch, signature);
    }

    function submitPayouts(Payout[] memory leaves) internal returns (Batch memory batch) {
        batch = batchOf(leaves);
        submit(batch);
    }

    function refOf(Batch memory batch) internal view returns (AttributionLedger.BatchRef memory) {
        return AttributionLedger.BatchRef(batch.operator, batch.seq, ledger.batchDigest(batch));
    }

    function claim(Batch memory batch, Payout[] memory leaves, uint256 index)
        internal
        returns (uint128)
    {
        return ledger.claim(
            refOf(batch),
            leaves[index],
            PlainTree.proof(leaves, index),
            leaves[index].kind == 1 ? shown() : bytes("")
        );
    }
}

/// A world for each test.
abstract contract Fixture is World {
    function setUp() public virtual {
        build();
    }
}
