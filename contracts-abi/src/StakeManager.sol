// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {
    ReentrancyGuardTransient
} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {ExactTransfer} from "./lib/ExactTransfer.sol";

/// @title Operators' stakes, their hot keys, and slashing.
///
/// @notice An operator is the address that stakes (the cold stake key). Its hot keys, here
/// *signers*, sign receipts and batches and send the node's transactions; they can't move the
/// stake.
///
/// A signer serves one operator, ever. The key says so itself, by a transaction (`offerSigner`),
/// and the operator confirms (`addSigner`): nobody can claim another's key, and no key can attach
/// itself to an operator that doesn't know it. A removed signer is revoked for good but stays bound
/// to its operator, so that what it signed can still be held against the operator.
///
/// Stake that is being unbonded is not *active*: it no longer makes an operator live and covers no
/// new batch. It stays slashable until it is withdrawn. AttributionLedger's constructor refuses a
/// StakeManager whose unbonding doesn't outlast the challenge window, so whatever a batch was
/// covered by when it was submitted is still here when its window closes.
///
/// Immutable: no owner, no pause, no upgrade.
contract StakeManager is ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    struct Stake {
        uint128 total; // everything slashable
        uint128 unbonding; // the part of total that is on its way out
        uint64 withdrawableAt; // unix seconds; meaningless while unbonding = 0
    }

    struct Signer {
        address operator; // who the key offered itself to; fixed once addedAt is set
        uint48 addedAt; // unix seconds; 0: offered only
        uint48 revokedAt; // unix seconds; 0: not revoked
    }

    /// @notice Above this unbonding is taken for a mistake at deployment.
    uint64 public constant MAX_UNBONDING_PERIOD = 365 days;

    /// @notice The token that is staked; AttributionLedger requires that Escrow holds the same.
    IERC20 public immutable token;
    /// @notice An operator with less active stake is not live.
    uint128 public immutable minStake;
    /// @notice Seconds from requestUnstake to withdraw.
    uint64 public immutable unbondingPeriod;
    /// @notice Gets what a reporter doesn't get of a slash; a burn address serves.
    address public immutable treasury;
    /// @notice The only caller of slash, and of AttributionLedger.void.
    address public immutable disputes;

    mapping(address operator => Stake) private _stakes;
    mapping(address signer => Signer) private _signers;

    event Staked(address indexed operator, uint128 amount, uint128 total);
    /// @notice `unbonding` replaces any earlier request; 0 means cancelled.
    event UnstakeRequested(address indexed operator, uint128 unbonding, uint64 withdrawableAt);
    event Withdrawn(address indexed operator, uint128 amount, uint128 total);
    event SignerOffered(address indexed operator, address indexed signer);
    event SignerAdded(address indexed operator, address indexed signer);
    event SignerRemoved(address indexed operator, address indexed signer);
    event Slashed(
        address indexed operator,
        address indexed reporter,
        uint128 amount,
        uint128 toReporter,
        uint128 toTreasury
    );

    error ZeroAddress();
    error ZeroAmount();
    error BadUnbondingPeriod(uint64 period);
    error NotDisputes(address caller);
    error StakeTooSmall(address operator, uint128 total, uint128 wanted);
    error NothingUnbonding(address operator);
    error StillUnbonding(address operator, uint64 withdrawableAt);
    /// The key already serves, or once served, `operator`; it can serve nobody else and not again.
    error SignerTaken(address signer, address operator);
    /// The key has not offered itself to `operator`.
    error SignerNotOffered(address signer, address operator);
    error NotSigner(address signer, address operator);

    /// @param token_ what is staked
    /// @param minStake_ least active stake of a live operator, smallest unit
    /// @param unbondingPeriod_ seconds, 1 to MAX_UNBONDING_PERIOD
    /// @param treasury_ receives the rest of a slash
    /// @param disputes_ the Disputes contract, at its predicted address if it is deployed later
    constructor(
        IERC20 token_,
        uint128 minStake_,
        uint64 unbondingPeriod_,
        address treasury_,
        address disputes_
    ) {
        if (address(token_) == address(0) || treasury_ == address(0) || disputes_ == address(0)) {
            revert ZeroAddress();
        }
        if (minStake_ == 0) revert ZeroAmount();
        if (unbondingPeriod_ == 0 || unbondingPeriod_ > MAX_UNBONDING_PERIOD) {
            revert BadUnbondingPeriod(unbondingPeriod_);
        }
        token = token_;
        minStake = minStake_;
        unbondingPeriod = unbondingPeriod_;
        treasury = treasury_;
        disputes = disputes_;
    }

    // ---------------------------------------------------------------- stake

    /// @notice Adds `amount` of the caller's tokens (approved before) to the caller's active stake.
    function stake(uint128 amount) external nonReentrant {
        if (amount == 0) revert ZeroAmount();
        Stake storage s = _stakes[msg.sender];
        s.total += amount;
        ExactTransfer.pull(token, msg.sender, amount);
        emit Staked(msg.sender, amount, s.total);
    }

    /// @notice Sets how much of the caller's stake is on its way out, from now for the unbonding
    /// period. One request at a time: a new one replaces the old and starts the clock again; 0
    /// cancels.
    function requestUnstake(uint128 amount) external {
        Stake storage s = _stakes[msg.sender];
        if (amount > s.total) revert StakeTooSmall(msg.sender, s.total, amount);
        s.unbonding = amount;
        s.withdrawableAt = uint64(block.timestamp) + unbondingPeriod;
        emit UnstakeRequested(msg.sender, amount, s.withdrawableAt);
    }

    /// @notice Pays the unbonded stake out to the caller, the operator.
    /// @return amount what was paid: the request, less what was slashed of it meanwhile
    function withdraw() external nonReentrant returns (uint128 amount) {
        Stake storage s = _stakes[msg.sender];
        amount = s.unbonding;
        if (amount == 0) revert NothingUnbonding(msg.sender);
        if (block.timestamp < s.withdrawableAt) {
            revert StillUnbonding(msg.sender, s.withdrawableAt);
        }
        s.unbonding = 0;
        s.total -= amount;
        emit Withdrawn(msg.sender, amount, s.total);
        token.safeTransfer(msg.sender, amount);
    }

    /// @notice Takes `amount`, or all there is if it is less, from an operator's stake, active
    /// stake first. Half (rounded down) goes to `reporter`, the rest to the treasury; a zero
    /// reporter gets nothing. Only the Disputes contract may call.
    /// @return slashed what was taken
    function slash(address operator, uint128 amount, address reporter)
        external
        nonReentrant
        returns (uint128 slashed)
    {
        if (msg.sender != disputes) revert NotDisputes(msg.sender);
        Stake storage s = _stakes[operator];
        slashed = amount < s.total ? amount : s.total;
        s.total -= slashed;
        if (s.unbonding > s.total) s.unbonding = s.total;
        uint128 toReporter = reporter == address(0) ? 0 : slashed / 2;
        uint128 toTreasury = slashed - toReporter;
        emit Slashed(operator, reporter, slashed, toReporter, toTreasury);
        if (toReporter != 0) token.safeTransfer(reporter, toReporter);
        if (toTreasury != 0) token.safeTransfer(treasury, toTreasury);
    }

    // ---------------------------------------------------------------- signers

    /// @notice The caller, a hot key, consents to sign for `operator`. Needs the operator's
    /// addSigner to take effect; until then a new offer replaces the old one.
    function offerSigner(address operator) external {
        if (operator == address(0)) revert ZeroAddress();
        Signer storage k = _signers[msg.sender];
        if (k.addedAt != 0) revert SignerTaken(msg.sender, k.operator);
        k.operator = operator;
        emit SignerOffered(operator, msg.sender);
    }

    /// @notice Makes `signer` one of the caller's hot keys. The key must have offered itself to the
    /// caller; the caller's own key needs no offer.
    function addSigner(address signer) external {
        Signer storage k = _signers[signer];
        if (k.addedAt != 0) revert SignerTaken(signer, k.operator);
        if (signer == msg.sender) {
            k.operator = msg.sender;
        } else if (k.operator != msg.sender) {
            revert SignerNotOffered(signer, msg.sender);
        }
        k.addedAt = uint48(block.timestamp);
        emit SignerAdded(msg.sender, signer);
    }

    /// @notice Revokes one of the caller's hot keys, at once and for good. What the key signed and
    /// the chain has not seen is void from now on: submit batches and redeem vouchers first, or
    /// sign them again.
    function removeSigner(address signer) external {
        Signer storage k = _signers[signer];
        if (k.operator != msg.sender || k.addedAt == 0 || k.revokedAt != 0) {
            revert NotSigner(signer, msg.sender);
        }
        k.revokedAt = uint48(block.timestamp);
        emit SignerRemoved(msg.sender, signer);
    }

    // ---------------------------------------------------------------- views

    /// @notice The operator for which `signer` may sign now; zero if none (offered only, or
    /// revoked). Says nothing about stake.
    function operatorOf(address signer) public view returns (address operator) {
        Signer storage k = _signers[signer];
        return k.addedAt != 0 && k.revokedAt == 0 ? k.operator : address(0);
    }

    /// @notice Everything about a key: for disputes, which must hold an operator to what a key
    /// signed while it served, though it was revoked since.
    function signerInfo(address signer)
        external
        view
        returns (address operator, uint48 addedAt, uint48 revokedAt)
    {
        Signer storage k = _signers[signer];
        return (k.operator, k.addedAt, k.revokedAt);
    }

    /// @notice operatorOf(signer), that operator's active stake and whether it makes it live, in
    /// one call.
    function stakeBehind(address signer)
        external
        view
        returns (address operator, uint128 active, bool live)
    {
        operator = operatorOf(signer);
        if (operator != address(0)) {
            active = activeStake(operator);
            live = active >= minStake;
        }
    }

    /// @notice Stake that is not being unbonded.
    function activeStake(address operator) public view returns (uint128) {
        Stake storage s = _stakes[operator];
        return s.total - s.unbonding;
    }

    /// @notice Whether the operator's active stake reaches minStake.
    function isLive(address operator) external view returns (bool) {
        return activeStake(operator) >= minStake;
    }

    /// @notice total (slashable), the part of it that is unbonding, and when that may be withdrawn.
    function stakeOf(address operator)
        external
        view
        returns (uint128 total, uint128 unbonding, uint64 withdrawableAt)
    {
        Stake storage s = _stakes[operator];
        return (s.total, s.unbonding, s.withdrawableAt);
    }
}
