// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";

import {AdapterRegistry} from "./AdapterRegistry.sol";
import {Escrow} from "./Escrow.sol";
import {StakeManager} from "./StakeManager.sol";
import {Payout, PayoutProof, PayoutTree} from "./lib/PayoutTree.sol";
import {Batch, Receipt, Splits, Types} from "./lib/Types.sol";

/// @title Batches of receipts, and the claims they give.
///
/// @notice An operator's batches form a chain: seq counts from 0, prevBatchHash names the digest of the
/// batch before, committed is cumulative. A batch is *open* (to challenge) for challengeWindow seconds
/// after it was submitted, then *final*. An open batch can be voided by the Disputes contract, with
/// everything after it; a final one can't.
///
///     seq      0        1        2        3        4
///              final    final    open     open     (next)
///              |---- finalCommitted       |
///              |------------------------- committed of the head
///
/// For each operator and at every moment:
///   released <= finalCommitted <= committed <= redeemed(operator)        (Escrow keeps released, redeemed)
///   committed - finalCommitted <= active stake, when a batch is submitted
///
/// A claim shows a leaf of a final batch's payout tree and is paid what the leaf's cumulative amount
/// exceeds earlier claims by. Any final batch serves, not the newest alone: an older one proves at most
/// what was then final, and if only the newest would do, an operator that submits a batch a block could make
/// every claim come too late. The cap by finalCommitted, kept by Escrow, holds whatever the trees say.
///
/// Immutable: no owner, no pause, no upgrade.
contract AttributionLedger is EIP712, ReentrancyGuardTransient {
    struct BatchRecord {
        bytes32 batchHash;
        bytes32 receiptsRoot;
        uint128 committed;
        uint64 submittedAt; // unix seconds
        uint32 leafCount;
    }

    /// What is known of an operator's chain. Records at and above `count` are leftovers of voided
    /// batches and mean nothing. `finalCount` and `finalCommitted` may lag behind the clock; they never
    /// run ahead of it.
    struct Chain {
        uint64 count;
        uint64 finalCount;
        uint128 finalCommitted;
    }

    /// One claim of a claimMany.
    struct Claim {
        Payout payout;
        PayoutProof proof;
        Splits splits;
    }

    StakeManager public immutable stakeManager;
    AdapterRegistry public immutable registry;
    Escrow public immutable escrow;
    /// @notice The only caller of void: stakeManager.disputes().
    address public immutable disputes;
    /// @notice Seconds for which a batch stays open to challenge.
    uint64 public immutable challengeWindow;

    mapping(address operator => Chain) private _chains;
    mapping(address operator => mapping(uint64 seq => BatchRecord)) private _batches;
    mapping(bytes32 batchHash => bool) private _voided;
    mapping(bytes32 leafKey => uint128 cumulative) private _claimed;

    event BatchSubmitted(
        address indexed operator,
        uint64 indexed seq,
        bytes32 indexed batchHash,
        uint32 leafCount,
        bytes32 receiptsRoot,
        bytes32 payoutRoot,
        uint128 committed,
        uint64 periodStart,
        uint64 periodEnd,
        bytes32 dataHash,
        bytes32 prevBatchHash
    );
    /// @notice Batch `seq` and all after it are void; the operator's next seq is `seq` again and its
    /// committed value is `committed`.
    event BatchVoided(address indexed operator, uint64 indexed seq, bytes32 indexed batchHash, uint128 committed);
    /// @notice `payee` was paid `amount`; the leaf has now been paid `cumulative` in all.
    event Claimed(
        address indexed operator,
        bytes32 indexed id,
        address indexed payee,
        uint8 kind,
        uint16 position,
        uint128 amount,
        uint128 cumulative
    );

    error BadChallengeWindow(uint64 window, uint64 unbondingPeriod);
    error TokensDiffer(address staked, address escrowed);
    error NotEscrowsLedger(address escrowsLedger);
    error NotDisputes(address caller);
    /// The batch is signed by `signer`, which serves `signersOperator` (zero: nobody).
    error WrongSigner(address operator, address signer, address signersOperator);
    error NotLive(address operator, uint128 activeStake, uint128 minStake);
    error WrongSeq(address operator, uint64 seq, uint64 expected);
    error WrongPrevBatch(address operator, uint64 seq, bytes32 prevBatchHash, bytes32 expected);
    error VoidedBatch(address operator, uint64 seq, bytes32 batchHash);
    error EmptyBatch(address operator, uint64 seq);
    error PeriodReversed(uint64 periodStart, uint64 periodEnd);
    error CommittedDecreased(address operator, uint128 committed, uint128 before);
    error CommittedAboveRedeemed(address operator, uint128 committed, uint128 redeemed);
    /// What is committed and not yet final would exceed the active stake.
    error ValueAboveStake(address operator, uint128 openValue, uint128 activeStake);
    error UnknownBatch(address operator, uint64 seq);
    error NotFinal(address operator, uint64 seq, uint64 finalAt);
    error AlreadyFinal(address operator, uint64 seq, uint64 finalAt);
    /// The batch shown is not the one that was submitted.
    error WrongBatch(address operator, uint64 seq, bytes32 got, bytes32 want);
    /// The proof leads to another root than the batch's.
    error WrongPayoutRoot(bytes32 got, bytes32 want);
    /// The tree's sum is not what the batch commits to.
    error WrongPayoutSum(uint128 sum, uint128 committed);
    error WrongLeaf(uint8 kind, bytes32 id, uint16 position);
    error NothingToClaim(uint128 cumulative, uint128 claimed);

    /// @param stakeManager_ operators; its unbonding must outlast the challenge window
    /// @param registry_ payees
    /// @param escrow_ the vault; must name this contract as its ledger, and hold the token that is staked
    /// @param challengeWindow_ seconds, at least 1
    constructor(StakeManager stakeManager_, AdapterRegistry registry_, Escrow escrow_, uint64 challengeWindow_)
        EIP712("Tributary AttributionLedger", "1")
    {
        uint64 unbonding = stakeManager_.unbondingPeriod();
        if (challengeWindow_ == 0 || unbonding <= challengeWindow_) {
            revert BadChallengeWindow(challengeWindow_, unbonding);
        }
        (address staked, address escrowed) = (address(stakeManager_.token()), address(escrow_.token()));
        if (staked != escrowed) revert TokensDiffer(staked, escrowed);
        if (escrow_.ledger() != address(this)) revert NotEscrowsLedger(escrow_.ledger());
        registry_.payeeDelay(); // reverts if there is no registry at the address
        stakeManager = stakeManager_;
        registry = registry_;
        escrow = escrow_;
        disputes = stakeManager_.disputes();
        challengeWindow = challengeWindow_;
    }

    // ---------------------------------------------------------------- batches

    /// @notice Appends a batch to its operator's chain. Anyone may relay it; it must be signed by a signer of a
    /// live operator.
    function submit(Batch calldata batch, bytes calldata signature) external {
        bytes32 hash = batchDigest(batch);
        uint128 active = _checkSigner(batch.operator, hash, signature);
        Chain memory chain = _chains[batch.operator];
        _checkChain(batch, chain);
        uint128 redeemed = escrow.redeemed(batch.operator);
        if (batch.committed > redeemed) revert CommittedAboveRedeemed(batch.operator, batch.committed, redeemed);

        // What is known to be final suffices mostly; look for more only if it doesn't.
        if (batch.committed - chain.finalCommitted > active) {
            (chain.finalCount, chain.finalCommitted) = _newestFinal(batch.operator, chain);
            uint128 openValue = batch.committed - chain.finalCommitted;
            if (openValue > active) revert ValueAboveStake(batch.operator, openValue, active);
        }

        BatchRecord storage record = _batches[batch.operator][batch.seq];
        // A leftover means that a batch was voided here. Its signature is still good and its place
        // is free again: without this check anyone could submit it once more.
        if (record.batchHash != 0 && _voided[hash]) revert VoidedBatch(batch.operator, batch.seq, hash);
        record.batchHash = hash;
        record.receiptsRoot = batch.receiptsRoot;
        record.committed = batch.committed;
        record.submittedAt = uint64(block.timestamp);
        record.leafCount = batch.leafCount;
        chain.count++;
        _chains[batch.operator] = chain;
        _emitSubmitted(batch, hash);
    }

    /// @notice Takes an open batch, and all after it, out of the operator's chain. Only the Disputes contract
    /// may call; it slashes by StakeManager.slash.
    function void(address operator, uint64 seq) external {
        if (msg.sender != disputes) revert NotDisputes(msg.sender);
        Chain storage chain = _chains[operator];
        if (seq >= chain.count) revert UnknownBatch(operator, seq);
        BatchRecord storage record = _batches[operator][seq];
        uint64 finalAt = record.submittedAt + challengeWindow;
        if (block.timestamp >= finalAt) revert AlreadyFinal(operator, seq, finalAt);
        chain.count = seq;
        _voided[record.batchHash] = true;
        emit BatchVoided(operator, seq, record.batchHash, seq == 0 ? 0 : _batches[operator][seq - 1].committed);
    }

    // ---------------------------------------------------------------- claims

    /// @notice Pays the payee of a leaf what the leaf's amount exceeds earlier payments by. Anyone may call.
    /// @param batch a final batch as it was submitted
    /// @param payout the leaf
    /// @param proof the leaf's path in the batch's payout tree
    /// @param splits of the adapter for kind 1; anything, best empty, for the others
    /// @return paid the amount, never 0: with nothing to pay the call reverts
    function claim(
        Batch calldata batch,
        Payout calldata payout,
        PayoutProof calldata proof,
        Splits calldata splits
    ) external nonReentrant returns (uint128 paid) {
        uint128 limit = _openPot(batch);
        paid = _claim(batch, limit, payout, proof, splits);
        if (paid == 0) revert NothingToClaim(payout.amount, _claimed[_leafKey(batch.operator, payout)]);
    }

    /// @notice As claim, for several leaves of one batch; leaves with nothing to pay are skipped, so that
    /// somebody else's claim of one of them does no harm. A wrong proof reverts everything.
    /// @return paid the sum
    function claimMany(Batch calldata batch, Claim[] calldata claims) external nonReentrant returns (uint128 paid) {
        uint128 limit = _openPot(batch);
        for (uint256 i = 0; i < claims.length; i++) {
            paid += _claim(batch, limit, claims[i].payout, claims[i].proof, claims[i].splits);
        }
    }

    // ---------------------------------------------------------------- views

    /// @notice The seq the operator's next batch must have; as many batches are in its chain.
    function nextSeq(address operator) external view returns (uint64) {
        return _chains[operator].count;
    }

    /// @notice The end of the operator's chain: the next seq, and of the newest batch the digest (the next
    /// prevBatchHash) and the committed value; zeros if there is none.
    function headOf(address operator) external view returns (uint64 next, bytes32 batchHash, uint128 committed) {
        next = _chains[operator].count;
        if (next != 0) {
            BatchRecord storage record = _batches[operator][next - 1];
            (batchHash, committed) = (record.batchHash, record.committed);
        }
    }

    /// @notice How many of the operator's batches are final at this moment (they are the first ones), and the
    /// committed value of the newest of them.
    function finalOf(address operator) external view returns (uint64 count, uint128 committed) {
        return _newestFinal(operator, _chains[operator]);
    }

    /// @notice A batch of the chain; reverts with UnknownBatch if there is none with this seq.
    /// It is final from finalAt (unix seconds) on.
    function batchOf(address operator, uint64 seq)
        external
        view
        returns (bytes32 batchHash, bytes32 receiptsRoot, uint128 committed, uint32 leafCount, uint64 finalAt)
    {
        BatchRecord storage record = _record(operator, seq);
        return (
            record.batchHash,
            record.receiptsRoot,
            record.committed,
            record.leafCount,
            record.submittedAt + challengeWindow
        );
    }

    /// @notice Whether a batch was voided by the Disputes contract itself (not only with one before it).
    function isVoided(bytes32 batchHash) external view returns (bool) {
        return _voided[batchHash];
    }

    /// @notice What a leaf has been paid so far.
    function claimed(address operator, uint8 kind, bytes32 id, uint16 position) external view returns (uint128) {
        return _claimed[keccak256(abi.encode(operator, kind, id, position))];
    }

    /// @notice Whether a receipt lies at a position of a batch of the operator's chain.
    /// @param receiptHash the receipt's EIP-712 digest
    /// @param proof siblings, the lowest first (OpenZeppelin's standard tree, leaves in order, not sorted)
    function verifyReceipt(
        address operator,
        uint64 seq,
        uint32 position,
        bytes32 receiptHash,
        bytes32[] calldata proof
    ) external view returns (bool) {
        BatchRecord storage record = _record(operator, seq);
        bytes32 leaf = keccak256(bytes.concat(keccak256(abi.encode(position, receiptHash))));
        return position < record.leafCount && MerkleProof.verifyCalldata(proof, record.receiptsRoot, leaf);
    }

    /// @notice Whether a payout leaf lies in a batch's payout tree; the batch need not be submitted.
    function verifyPayout(Batch calldata batch, Payout calldata payout, PayoutProof calldata proof)
        external
        pure
        returns (bool)
    {
        (bytes32 root, uint128 sum) = PayoutTree.climb(payout, proof);
        return root == batch.payoutRoot && sum == batch.committed;
    }

    /// @notice The EIP-712 digest of a Batch: its batchHash.
    function batchDigest(Batch calldata batch) public view returns (bytes32) {
        return _hashTypedDataV4(Types.hashStruct(batch));
    }

    /// @notice The EIP-712 digest of a Receipt: its receiptHash.
    function receiptDigest(Receipt calldata receipt) public view returns (bytes32) {
        return _hashTypedDataV4(Types.hashStruct(receipt));
    }

    /// @notice Whether a Receipt is signed by a key that serves, or served before it was revoked, the
    /// operator that the receipt names.
    function isSignedReceipt(Receipt calldata receipt, bytes calldata signature) external view returns (bool) {
        (address signer, ECDSA.RecoverError failure,) =
            ECDSA.tryRecoverCalldata(receiptDigest(receipt), signature);
        if (failure != ECDSA.RecoverError.NoError) return false;
        (address operator, uint48 addedAt,) = stakeManager.signerInfo(signer);
        return addedAt != 0 && operator == receipt.operator;
    }

    // ---------------------------------------------------------------- inside

    function _checkSigner(address operator, bytes32 hash, bytes calldata signature)
        private
        view
        returns (uint128 active)
    {
        address signer = ECDSA.recoverCalldata(hash, signature);
        address signersOperator;
        (signersOperator, active) = stakeManager.stakeBehind(signer);
        if (signersOperator == address(0) || signersOperator != operator) {
            revert WrongSigner(operator, signer, signersOperator);
        }
        uint128 minStake = stakeManager.minStake();
        if (active < minStake) revert NotLive(operator, active, minStake);
    }

    /// Whether the batch is the next one of its chain.
    function _checkChain(Batch calldata batch, Chain memory chain) private view {
        address operator = batch.operator;
        if (batch.seq != chain.count) revert WrongSeq(operator, batch.seq, chain.count);
        bytes32 prevHash = 0;
        uint128 prevCommitted = 0;
        if (batch.seq != 0) {
            BatchRecord storage prev = _batches[operator][batch.seq - 1];
            (prevHash, prevCommitted) = (prev.batchHash, prev.committed);
        }
        if (batch.prevBatchHash != prevHash) {
            revert WrongPrevBatch(operator, batch.seq, batch.prevBatchHash, prevHash);
        }
        if (batch.committed < prevCommitted) revert CommittedDecreased(operator, batch.committed, prevCommitted);
        if (batch.leafCount == 0) revert EmptyBatch(operator, batch.seq);
        if (batch.periodStart > batch.periodEnd) revert PeriodReversed(batch.periodStart, batch.periodEnd);
    }

    function _emitSubmitted(Batch calldata batch, bytes32 hash) private {
        emit BatchSubmitted(
            batch.operator,
            batch.seq,
            hash,
            batch.leafCount,
            batch.receiptsRoot,
            batch.payoutRoot,
            batch.committed,
            batch.periodStart,
            batch.periodEnd,
            batch.dataHash,
            batch.prevBatchHash
        );
    }

    /// A batch of the chain, leftovers excluded.
    function _record(address operator, uint64 seq) private view returns (BatchRecord storage) {
        if (seq >= _chains[operator].count) revert UnknownBatch(operator, seq);
        return _batches[operator][seq];
    }

    /// The number of final batches and the newest one's committed value, found by bisection between
    /// what is known to be final and the head: submittedAt never decreases along a chain.
    function _newestFinal(address operator, Chain memory chain)
        private
        view
        returns (uint64 count, uint128 committed)
    {
        uint64 low = chain.finalCount; // all below are final
        uint64 high = chain.count; // all at and above are open
        while (low < high) {
            uint64 middle = low + (high - low) / 2;
            if (block.timestamp >= _batches[operator][middle].submittedAt + challengeWindow) low = middle + 1;
            else high = middle;
        }
        count = low;
        committed = count == chain.finalCount ? chain.finalCommitted : _batches[operator][count - 1].committed;
    }

    /// Checks that a batch is a final one of its operator's chain, and returns what all claims against
    /// that chain may sum to so far.
    function _openPot(Batch calldata batch) private returns (uint128 limit) {
        address operator = batch.operator;
        uint64 seq = batch.seq;
        Chain storage chain = _chains[operator];
        (uint64 count, uint64 finalCount) = (chain.count, chain.finalCount);
        if (seq >= count) revert UnknownBatch(operator, seq);
        BatchRecord storage record = _batches[operator][seq];
        bytes32 hash = batchDigest(batch);
        if (hash != record.batchHash) revert WrongBatch(operator, seq, hash, record.batchHash);
        limit = chain.finalCommitted;
        if (seq >= finalCount) {
            uint64 finalAt = record.submittedAt + challengeWindow;
            if (block.timestamp < finalAt) revert NotFinal(operator, seq, finalAt);
            chain.finalCount = seq + 1;
            chain.finalCommitted = limit = batch.committed;
        }
    }

    function _leafKey(address operator, Payout calldata payout) private pure returns (bytes32) {
        return keccak256(abi.encode(operator, payout.kind, payout.id, payout.position));
    }

    /// Pays one leaf of a batch that _openPot has accepted; 0 if there is nothing to pay.
    function _claim(
        Batch calldata batch,
        uint128 limit,
        Payout calldata payout,
        PayoutProof calldata proof,
        Splits calldata splits
    ) private returns (uint128 paid) {
        (bytes32 root, uint128 sum) = PayoutTree.climb(payout, proof);
        if (root != batch.payoutRoot) revert WrongPayoutRoot(root, batch.payoutRoot);
        if (sum != batch.committed) revert WrongPayoutSum(sum, batch.committed);

        bytes32 key = _leafKey(batch.operator, payout);
        uint128 before = _claimed[key];
        if (payout.amount <= before) return 0;
        paid = payout.amount - before;
        _claimed[key] = payout.amount;
        address payee = _payee(batch.operator, payout, splits);
        emit Claimed(batch.operator, payout.id, payee, payout.kind, payout.position, paid, payout.amount);
        escrow.release(batch.operator, payee, paid, limit);
    }

    /// Who a leaf's money goes to at this moment.
    function _payee(address operator, Payout calldata payout, Splits calldata splits)
        private
        view
        returns (address)
    {
        if (payout.kind == PayoutTree.KIND_ADAPTER) {
            return registry.payeeOf(payout.id, payout.position, splits);
        }
        if (payout.position == 0) {
            if (payout.kind == PayoutTree.KIND_DATANET) return registry.datanetPayee(payout.id);
            if (payout.kind == PayoutTree.KIND_OPERATOR && payout.id == bytes32(uint256(uint160(operator)))) {
                return operator;
            }
        }
        revert WrongLeaf(payout.kind, payout.id, payout.position);
    }
}
