// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {
    ReentrancyGuardTransient
} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";

import {AdapterRegistry} from "./AdapterRegistry.sol";
import {Escrow} from "./Escrow.sol";
import {StakeManager} from "./StakeManager.sol";
import {Payout, PayoutProof, PayoutTree} from "./lib/PayoutTree.sol";
import {Batch, Receipt, Types} from "./lib/Types.sol";

/// @title Batches of receipts, and the claims they give.
///
/// @notice An operator's batches form a chain: seq counts from 0, prevBatchHash names the digest of
/// the batch before, committed is cumulative. A batch is *open* (to challenge) for challengeWindow
/// seconds after it was submitted, then *final*. An open batch can be voided by the Disputes
/// contract, with everything after it; a final one can't.
///
///     seq      0        1        2        3        4
///              final    final    open     open     (next)
///              `-------'                            claims are paid against these
///              `-------------------------'          committed of the head <= redeemed(operator)
///                                `-------'          their value <= active stake, at submission
///
/// This contract holds what Escrow has redeemed and nobody has claimed. For each operator, at every
/// moment:
///
///     paid <= committed of the newest final batch <= committed of the head <= redeemed(operator)
///     token.balanceOf(ledger) >= sum over operators of (redeemed - paid)
///
/// A claim shows a leaf of a final batch's payout tree and is paid what the leaf's cumulative
/// amount exceeds earlier claims by. Any final batch serves, not the newest alone: an older one
/// proves at most what was then final, and if only the newest would do, an operator that submits a
/// batch a block could make every claim come too late. The first inequality holds whatever the
/// trees say, so a dishonest operator can never touch another operator's money.
///
/// A batch is kept as a commitment to its digest, its payout root and its committed value. A claim
/// opens it with the digest and what its proof computes, everyone else with the batch (from
/// BatchSubmitted).
///
/// Immutable: no owner, no pause, no upgrade.
contract AttributionLedger is EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    struct BatchRecord {
        bytes32 commitment; // keccak256(abi.encode(batchHash, payoutRoot, committed))
        uint128 committed;
        uint64 submittedAt; // unix seconds
        uint32 leafCount;
    }

    /// What is known of an operator's chain. Records at and above `count` are leftovers of voided
    /// batches and mean nothing. `finalCount` may lag behind the clock; it never runs ahead of it.
    struct Chain {
        uint128 paid; // by claims, cumulative
        uint64 count; // of batches
        uint64 finalCount; // of batches known to be final, the first ones
    }

    /// Names a batch to claim against.
    struct BatchRef {
        address operator;
        uint64 seq;
        bytes32 batchHash;
    }

    /// One claim of a claimMany.
    struct Claim {
        Payout payout;
        PayoutProof proof;
        bytes splits;
    }

    IERC20 public immutable token;
    StakeManager public immutable stakeManager;
    AdapterRegistry public immutable registry;
    Escrow public immutable escrow;
    /// @notice The only caller of void: stakeManager.disputes().
    address public immutable disputes;
    /// @notice Seconds for which a batch stays open to challenge.
    uint64 public immutable challengeWindow;

    mapping(address operator => Chain) private _chains;
    mapping(address operator => bytes32 batchHash) private _heads; // digest of the newest batch
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
    /// @notice Batch `seq` and all after it are void; the operator's next seq is `seq` again and
    /// its committed value is `committed`.
    event BatchVoided(
        address indexed operator, uint64 indexed seq, bytes32 indexed batchHash, uint128 committed
    );
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
    error WrongBatch(address operator, uint64 seq, bytes32 batchHash);
    /// The tree that the proof belongs to promises another sum than the batch commits to.
    error WrongPayoutSum(uint128 sum, uint128 committed);
    /// The proof leads to another root than that of the batch with this digest (or the digest is
    /// wrong).
    error WrongPayoutProof(address operator, uint64 seq, bytes32 batchHash, bytes32 payoutRoot);
    /// No leaf of this operator can be named so.
    error WrongLeaf(uint8 kind, bytes32 id, uint16 position);
    error NothingToClaim(uint128 cumulative, uint128 claimed);
    /// The operator's trees promise more, all in all, than its final batches commit to.
    error OverCommitted(address operator, uint256 paid, uint128 committed);

    /// @param stakeManager_ operators; its unbonding must outlast the challenge window
    /// @param registry_ payees
    /// @param escrow_ the vault; must name this contract as its ledger, and hold the token that is
    /// staked
    /// @param challengeWindow_ seconds, at least 1
    constructor(
        StakeManager stakeManager_,
        AdapterRegistry registry_,
        Escrow escrow_,
        uint64 challengeWindow_
    ) EIP712("Tributary AttributionLedger", "1") {
        uint64 unbonding = stakeManager_.unbondingPeriod();
        if (challengeWindow_ == 0 || unbonding <= challengeWindow_) {
            revert BadChallengeWindow(challengeWindow_, unbonding);
        }
        (address staked, address escrowed) =
            (address(stakeManager_.token()), address(escrow_.token()));
        if (staked != escrowed) revert TokensDiffer(staked, escrowed);
        if (escrow_.ledger() != address(this)) revert NotEscrowsLedger(escrow_.ledger());
        registry_.payeeDelay(); // reverts if there is no registry at the address
        token = escrow_.token();
        stakeManager = stakeManager_;
        registry = registry_;
        escrow = escrow_;
        disputes = stakeManager_.disputes();
        challengeWindow = challengeWindow_;
    }

    // ---------------------------------------------------------------- batches

    /// @notice Appends a batch to its operator's chain. Anyone may relay it; it must be signed by a
    /// signer of a live operator.
    function submit(Batch calldata batch, bytes calldata signature) external {
        address operator = batch.operator;
        bytes32 hash = batchDigest(batch);
        uint128 active = _checkSigner(operator, hash, signature);
        (uint64 count, uint64 finalCount) = (_chains[operator].count, _chains[operator].finalCount);
        _checkNext(batch, count);
        uint128 redeemed = escrow.redeemed(operator);
        if (batch.committed > redeemed) {
            revert CommittedAboveRedeemed(operator, batch.committed, redeemed);
        }

        // Two steps for each batch, so that what is noted as final catches up with the clock. That
        // suffices mostly; look further only if the stake doesn't.
        for (uint256 i = 0; i < 2 && finalCount < count; i++) {
            if (block.timestamp < _finalAt(operator, finalCount)) break;
            finalCount++;
        }
        if (batch.committed - _committedBy(operator, finalCount) > active) {
            finalCount = _finalCount(operator, finalCount, count);
            uint128 openValue = batch.committed - _committedBy(operator, finalCount);
            if (openValue > active) revert ValueAboveStake(operator, openValue, active);
        }

        BatchRecord storage record = _batches[operator][batch.seq];
        // A leftover means that a batch was voided here. Its signature is still good and its place
        // is free again: without this check anyone could submit it once more.
        if (record.commitment != 0 && _voided[hash]) {
            revert VoidedBatch(operator, batch.seq, hash);
        }
        record.commitment = _commitment(hash, batch.payoutRoot, batch.committed);
        record.committed = batch.committed;
        record.submittedAt = uint64(block.timestamp);
        record.leafCount = batch.leafCount;
        (_chains[operator].count, _chains[operator].finalCount) = (count + 1, finalCount);
        _heads[operator] = hash;
        _emitSubmitted(batch, hash);
    }

    /// @notice Takes an open batch, and all after it, out of its operator's chain: the next seq is
    /// the batch's again, and the batch itself can't come back. Only the Disputes contract may
    /// call; it slashes by StakeManager.slash.
    /// @param batch as it was submitted
    function void(Batch calldata batch) external {
        if (msg.sender != disputes) revert NotDisputes(msg.sender);
        (address operator, uint64 seq) = (batch.operator, batch.seq);
        bytes32 hash = _checkBatch(batch);
        uint64 finalAt = _finalAt(operator, seq);
        if (block.timestamp >= finalAt) revert AlreadyFinal(operator, seq, finalAt);
        _chains[operator].count = seq;
        _heads[operator] = batch.prevBatchHash;
        _voided[hash] = true;
        emit BatchVoided(operator, seq, hash, _committedBy(operator, seq));
    }

    // ---------------------------------------------------------------- claims

    /// @notice Pays the payee of a leaf what the leaf's amount exceeds earlier payments by. Anyone
    /// may call.
    /// @param ref a final batch
    /// @param payout the leaf
    /// @param proof the leaf's path in the batch's payout tree
    /// @param splits for an adapter's position: abi.encode(splits), or empty if the registry has
    /// written the payee down (AdapterRegistry.writtenPayee); empty for the other kinds
    /// @return amount what was paid, never 0: with nothing to pay the call reverts
    function claim(
        BatchRef calldata ref,
        Payout calldata payout,
        PayoutProof calldata proof,
        bytes calldata splits
    ) external nonReentrant returns (uint128 amount) {
        Chain storage chain = _openBatch(ref);
        amount = _claim(ref, chain, payout, proof, splits);
        if (amount == 0) {
            revert NothingToClaim(payout.amount, _claimed[_leafKey(ref.operator, payout)]);
        }
    }

    /// @notice As claim, for several leaves of one batch; leaves with nothing to pay are skipped,
    /// so that somebody else's claim of one of them does no harm. A wrong proof reverts everything.
    /// @return amount the sum of what was paid
    function claimMany(BatchRef calldata ref, Claim[] calldata claims)
        external
        nonReentrant
        returns (uint128 amount)
    {
        Chain storage chain = _openBatch(ref);
        for (uint256 i = 0; i < claims.length; i++) {
            amount += _claim(ref, chain, claims[i].payout, claims[i].proof, claims[i].splits);
        }
    }

    // ---------------------------------------------------------------- views

    /// @notice The seq the operator's next batch must have; as many batches are in its chain.
    function nextSeq(address operator) external view returns (uint64) {
        return _chains[operator].count;
    }

    /// @notice The end of the operator's chain: the next seq, and of the newest batch the digest
    /// (the next prevBatchHash) and the committed value; zeros if there is none.
    function headOf(address operator)
        external
        view
        returns (uint64 next, bytes32 batchHash, uint128 committed)
    {
        next = _chains[operator].count;
        return (next, _heads[operator], _committedBy(operator, next));
    }

    /// @notice How many of the operator's batches are final at this moment (they are the first
    /// ones), and the committed value of the newest of them.
    function finalOf(address operator) external view returns (uint64 count, uint128 committed) {
        Chain storage chain = _chains[operator];
        count = _finalCount(operator, chain.finalCount, chain.count);
        committed = _committedBy(operator, count);
    }

    /// @notice What claims against an operator's batches have been paid, all together.
    function paid(address operator) external view returns (uint128) {
        return _chains[operator].paid;
    }

    /// @notice A batch of the operator's chain; reverts with UnknownBatch if there is none with
    /// this seq.
    /// @return commitment keccak256(abi.encode(batchHash, payoutRoot, committed))
    /// @return committed the batch's
    /// @return leafCount the batch's
    /// @return finalAt unix seconds from which on it is final
    function batchOf(address operator, uint64 seq)
        external
        view
        returns (bytes32 commitment, uint128 committed, uint32 leafCount, uint64 finalAt)
    {
        if (seq >= _chains[operator].count) revert UnknownBatch(operator, seq);
        BatchRecord storage record = _batches[operator][seq];
        return (record.commitment, record.committed, record.leafCount, _finalAt(operator, seq));
    }

    /// @notice Whether exactly this batch is part of its operator's chain.
    function isSubmitted(Batch calldata batch) public view returns (bool) {
        return batch.seq < _chains[batch.operator].count
            && _batches[batch.operator][batch.seq].commitment
                == _commitment(batchDigest(batch), batch.payoutRoot, batch.committed);
    }

    /// @notice Whether a batch was voided by the Disputes contract itself (not only with one before
    /// it).
    function isVoided(bytes32 batchHash) external view returns (bool) {
        return _voided[batchHash];
    }

    /// @notice What a leaf has been paid so far.
    function claimed(address operator, uint8 kind, bytes32 id, uint16 position)
        external
        view
        returns (uint128)
    {
        return _claimed[keccak256(abi.encode(operator, kind, id, position))];
    }

    /// @notice Whether a receipt lies at a position of a batch; reverts unless exactly this batch
    /// is part of its operator's chain.
    /// @param batch as it was submitted (BatchSubmitted has all of it)
    /// @param receiptHash the receipt's EIP-712 digest
    /// @param proof siblings, the lowest first (OpenZeppelin's standard tree over (uint32 position,
    /// bytes32 receiptHash), leaves in order, not sorted by hash)
    function verifyReceipt(
        Batch calldata batch,
        uint32 position,
        bytes32 receiptHash,
        bytes32[] calldata proof
    ) external view returns (bool) {
        _checkBatch(batch);
        bytes32 leaf = keccak256(bytes.concat(keccak256(abi.encode(position, receiptHash))));
        return
            position < batch.leafCount
                && MerkleProof.verifyCalldata(proof, batch.receiptsRoot, leaf);
    }

    /// @notice Whether a payout leaf lies in a batch's payout tree; the batch need not be
    /// submitted.
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

    /// @notice Whether a Receipt is signed by a key that serves, or served before it was revoked,
    /// the operator that the receipt names.
    function isSignedReceipt(Receipt calldata receipt, bytes calldata signature)
        external
        view
        returns (bool)
    {
        (address signer, ECDSA.RecoverError failure,) =
            ECDSA.tryRecoverCalldata(receiptDigest(receipt), signature);
        if (failure != ECDSA.RecoverError.NoError) return false;
        (address operator, uint48 addedAt,) = stakeManager.signerInfo(signer);
        return addedAt != 0 && operator == receipt.operator;
    }

    // ---------------------------------------------------------------- inside

    function _commitment(bytes32 batchHash, bytes32 payoutRoot, uint128 committed)
        private
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(batchHash, payoutRoot, committed));
    }

    /// Checks who signed a batch, and returns the stake that answers for it.
    function _checkSigner(address operator, bytes32 hash, bytes calldata signature)
        private
        view
        returns (uint128 active)
    {
        address signer = ECDSA.recoverCalldata(hash, signature);
        address signersOperator;
        bool live;
        (signersOperator, active, live) = stakeManager.stakeBehind(signer);
        if (signersOperator == address(0) || signersOperator != operator) {
            revert WrongSigner(operator, signer, signersOperator);
        }
        if (!live) revert NotLive(operator, active, stakeManager.minStake());
    }

    /// Checks that a batch is the next one of its chain.
    function _checkNext(Batch calldata batch, uint64 count) private view {
        address operator = batch.operator;
        if (batch.seq != count) revert WrongSeq(operator, batch.seq, count);
        bytes32 head = _heads[operator];
        if (batch.prevBatchHash != head) {
            revert WrongPrevBatch(operator, batch.seq, batch.prevBatchHash, head);
        }
        uint128 before = _committedBy(operator, count);
        if (batch.committed < before) {
            revert CommittedDecreased(operator, batch.committed, before);
        }
        if (batch.leafCount == 0) revert EmptyBatch(operator, batch.seq);
        if (batch.periodStart > batch.periodEnd) {
            revert PeriodReversed(batch.periodStart, batch.periodEnd);
        }
    }

    /// Checks that exactly this batch is part of its operator's chain, and returns its digest.
    function _checkBatch(Batch calldata batch) private view returns (bytes32 hash) {
        if (batch.seq >= _chains[batch.operator].count) {
            revert UnknownBatch(batch.operator, batch.seq);
        }
        hash = batchDigest(batch);
        if (
            _batches[batch.operator][batch.seq].commitment
                != _commitment(hash, batch.payoutRoot, batch.committed)
        ) revert WrongBatch(batch.operator, batch.seq, hash);
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

    /// What the operator's first `count` batches commit to.
    function _committedBy(address operator, uint64 count) private view returns (uint128) {
        return count == 0 ? 0 : _batches[operator][count - 1].committed;
    }

    /// When a batch is final, leftovers included.
    function _finalAt(address operator, uint64 seq) private view returns (uint64) {
        return _batches[operator][seq].submittedAt + challengeWindow;
    }

    /// How many batches of a chain are final, found by bisection between `low`, below which all are
    /// known to be, and `high`, the head: submittedAt never decreases along a chain.
    function _finalCount(address operator, uint64 low, uint64 high) private view returns (uint64) {
        while (low < high) {
            uint64 middle = low + (high - low) / 2;
            if (block.timestamp >= _finalAt(operator, middle)) low = middle + 1;
            else high = middle;
        }
        return low;
    }

    /// Checks that a batch is final, and notes it in its operator's chain, which it returns.
    function _openBatch(BatchRef calldata ref) private returns (Chain storage chain) {
        chain = _chains[ref.operator];
        uint64 seq = ref.seq;
        (uint64 count, uint64 finalCount) = (chain.count, chain.finalCount);
        if (seq >= count) revert UnknownBatch(ref.operator, seq);
        if (seq >= finalCount) {
            uint64 finalAt = _finalAt(ref.operator, seq);
            if (block.timestamp < finalAt) revert NotFinal(ref.operator, seq, finalAt);
            chain.finalCount = seq + 1;
        }
    }

    function _leafKey(address operator, Payout calldata payout) private pure returns (bytes32) {
        return keccak256(abi.encode(operator, payout.kind, payout.id, payout.position));
    }

    /// Pays one leaf of a batch that _openBatch has accepted; 0 if there is nothing to pay.
    function _claim(
        BatchRef calldata ref,
        Chain storage chain,
        Payout calldata payout,
        PayoutProof calldata proof,
        bytes calldata splits
    ) private returns (uint128 amount) {
        address operator = ref.operator;
        uint128 limit = _checkProof(ref, payout, proof);
        (uint256 total, uint64 finalCount) = (chain.paid, chain.finalCount);
        // An older batch than the newest known to be final: that one limits what all claims may sum
        // to.
        if (ref.seq + 1 != finalCount) limit = _committedBy(operator, finalCount);

        bytes32 key = _leafKey(operator, payout);
        uint128 cumulative = payout.amount;
        uint128 before = _claimed[key];
        if (cumulative <= before) return 0;
        amount = cumulative - before;
        total += amount;
        if (total > limit) revert OverCommitted(operator, total, limit);
        _claimed[key] = cumulative;
        chain.paid = uint128(total);
        _pay(operator, payout, splits, amount);
    }

    /// Pays part of a leaf's cumulative amount to whoever is the leaf's payee at this moment.
    function _pay(address operator, Payout calldata payout, bytes calldata splits, uint128 amount)
        private
    {
        address payee = _payee(operator, payout, splits);
        emit Claimed(
            operator, payout.id, payee, payout.kind, payout.position, amount, payout.amount
        );
        token.safeTransfer(payee, amount);
    }

    /// Checks that a leaf lies in the payout tree of a batch and that the tree's sum is what the
    /// batch commits to (one comparison, because the commitment holds both), and returns that sum.
    function _checkProof(BatchRef calldata ref, Payout calldata payout, PayoutProof calldata proof)
        private
        view
        returns (uint128 sum)
    {
        bytes32 root;
        (root, sum) = PayoutTree.climb(payout, proof);
        BatchRecord storage record = _batches[ref.operator][ref.seq];
        if (record.commitment != _commitment(ref.batchHash, root, sum)) {
            if (record.committed != sum) revert WrongPayoutSum(sum, record.committed);
            revert WrongPayoutProof(ref.operator, ref.seq, ref.batchHash, root);
        }
    }

    /// Who a leaf's money goes to at this moment.
    function _payee(address operator, Payout calldata payout, bytes calldata splits)
        private
        returns (address)
    {
        if (payout.kind == PayoutTree.KIND_ADAPTER) {
            return registry.payee(payout.id, payout.position, splits);
        }
        if (payout.position == 0) {
            if (payout.kind == PayoutTree.KIND_DATANET) return registry.datanetPayee(payout.id);
            if (
                payout.kind == PayoutTree.KIND_OPERATOR
                    && payout.id == bytes32(uint256(uint160(operator)))
            ) {
                return operator;
            }
        }
        revert WrongLeaf(payout.kind, payout.id, payout.position);
    }
}
