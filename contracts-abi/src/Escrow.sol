// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {
    ReentrancyGuardTransient
} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

import {StakeManager} from "./StakeManager.sol";
import {ExactTransfer} from "./lib/ExactTransfer.sol";
import {Request, Types, Voucher} from "./lib/Types.sol";

/// @title Payers' deposits, and the vouchers that turn them into an operator's income.
///
/// @notice Each pair (payer, operator) has one account. A deposit can leave it in two ways only:
/// back to the payer after a thaw, or, by a voucher of the payer's, to AttributionLedger, which
/// pays it out claim by claim. No call of anyone else moves a token.
///
///     payer --deposit--> balance(payer, operator) --redeem--> AttributionLedger --claim--> payees
///                              `--thaw, withdraw--> payer
///
///     token.balanceOf(escrow) >= sum of balances
///
/// Vouchers are cumulative in a channel = keccak256(abi.encode(payer, operator, epoch)): a voucher
/// moves what its valueAggregate exceeds the last redeemed one by. An old voucher moves nothing and
/// is refused. A voucher is redeemed whole or not at all: the redeemed value of a channel is always
/// the channelTotal of one receipt, which lastReceiptHash names, so "covered by a redeemed voucher"
/// needs no fractions. An operator whose payer's balance is short redeems a smaller voucher that it
/// kept.
///
/// Only the operator or one of its signers may redeem. A redeemed voucher binds the operator to the
/// receipt it names; if the payer could redeem, it could sign for a receipt that doesn't exist and
/// have the operator slashed for not showing it.
///
/// Payers may sign with other keys than their own (`addSigner`). A removed key's vouchers stay
/// redeemable for one thaw period, as thawing funds do: otherwise removing a key would cancel a
/// debt.
///
/// Immutable: no owner, no pause, no upgrade.
contract Escrow is EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    struct Account {
        uint128 balance; // includes what is thawing
        uint128 firstEpochValue; // redeemed in the channel of epoch 0, beside the balance: one slot
        uint128 thawing; // may exceed balance after a redeem; withdraw pays the lesser
        uint64 withdrawableAt; // unix seconds; meaningless while thawing = 0
    }

    struct SignedVoucher {
        Voucher voucher;
        uint64 epoch;
        bytes signature;
    }

    /// Why a voucher was not redeemed.
    enum Refusal {
        None,
        WrongOperator, // names another operator than the one redeemed for
        WrongChannel, // channel is not keccak256(abi.encode(payer, operator, epoch))
        Stale, // valueAggregate is not above what the channel has redeemed
        Unfunded, // the payer's balance doesn't cover the difference
        WrongSignature // malformed, malleable, or by a key that doesn't sign for the payer
    }

    /// @notice Above this a thaw period is taken for a mistake at deployment.
    uint64 public constant MAX_THAW_PERIOD = 365 days;

    IERC20 public immutable token;
    StakeManager public immutable stakeManager;
    /// @notice The AttributionLedger: where redeemed tokens go.
    address public immutable ledger;
    /// @notice Seconds from requestThaw to withdraw, and from removeSigner to its effect.
    uint64 public immutable thawPeriod;

    /// @notice What an operator's redeemed vouchers sum to, over all payers and for all time.
    mapping(address operator => uint128) public redeemed;

    mapping(address payer => mapping(address operator => Account)) private _accounts;
    mapping(bytes32 channel => uint128) private _laterEpochValue; // channels of epochs above 0
    mapping(bytes32 channel => bytes32) private _lastReceiptHash;
    mapping(address payer => mapping(address signer => uint64 validUntil)) private _signers;

    event Deposited(
        address indexed payer, address indexed operator, address indexed from, uint128 amount
    );
    /// @notice `thawing` replaces any earlier request; 0 means cancelled.
    event ThawRequested(
        address indexed payer, address indexed operator, uint128 thawing, uint64 withdrawableAt
    );
    event Withdrawn(address indexed payer, address indexed operator, uint128 amount);
    event SignerAdded(address indexed payer, address indexed signer);
    event SignerRemoved(address indexed payer, address indexed signer, uint64 validUntil);
    /// @notice `amount` moved from the payer's balance to AttributionLedger, to the operator's
    /// account there.
    event Redeemed(
        address indexed operator,
        address indexed payer,
        bytes32 indexed channel,
        uint128 valueAggregate,
        uint128 amount,
        bytes32 lastReceiptHash
    );
    /// @notice One voucher of a redeemMany was left out.
    event VoucherRefused(
        address indexed operator,
        address indexed payer,
        bytes32 indexed channel,
        uint128 valueAggregate,
        Refusal why
    );

    error ZeroAddress();
    error ZeroAmount();
    error BadThawPeriod(uint64 period);
    /// The caller is neither the operator nor one of its signers.
    error NotOperator(address caller, address operator);
    error BalanceTooSmall(address payer, address operator, uint128 balance, uint128 wanted);
    error NothingThawing(address payer, address operator);
    error StillThawing(address payer, address operator, uint64 withdrawableAt);
    error SignerExists(address payer, address signer);
    error NotSigner(address payer, address signer);
    /// redeem's voucher can't be redeemed.
    error Refused(bytes32 channel, uint128 valueAggregate, Refusal why);

    /// @param token_ what is paid in; must be the token that is staked (AttributionLedger checks)
    /// @param stakeManager_ knows the operators' signers
    /// @param ledger_ the AttributionLedger at its predicted address
    /// @param thawPeriod_ seconds, 1 to MAX_THAW_PERIOD
    constructor(IERC20 token_, StakeManager stakeManager_, address ledger_, uint64 thawPeriod_)
        EIP712("Tributary Escrow", "1")
    {
        if (
            address(token_) == address(0) || address(stakeManager_) == address(0)
                || ledger_ == address(0)
        ) {
            revert ZeroAddress();
        }
        if (thawPeriod_ == 0 || thawPeriod_ > MAX_THAW_PERIOD) revert BadThawPeriod(thawPeriod_);
        token = token_;
        stakeManager = stakeManager_;
        ledger = ledger_;
        thawPeriod = thawPeriod_;
    }

    // ---------------------------------------------------------------- payers

    /// @notice Adds `amount` of the caller's tokens (approved before) to its account with
    /// `operator`.
    function deposit(address operator, uint128 amount) external {
        depositFor(msg.sender, operator, amount);
    }

    /// @notice As deposit, into the account of `payer`, who alone may withdraw it.
    function depositFor(address payer, address operator, uint128 amount) public nonReentrant {
        if (payer == address(0) || operator == address(0)) revert ZeroAddress();
        if (amount == 0) revert ZeroAmount();
        _accounts[payer][operator].balance += amount;
        ExactTransfer.pull(token, msg.sender, amount);
        emit Deposited(payer, operator, msg.sender, amount);
    }

    /// @notice Sets how much of the caller's balance with `operator` is thawing, from now for the
    /// thaw period. One request at a time: a new one replaces the old and starts the clock again; 0
    /// cancels. Vouchers may still take thawing funds.
    function requestThaw(address operator, uint128 amount) external {
        Account storage a = _accounts[msg.sender][operator];
        if (amount > a.balance) revert BalanceTooSmall(msg.sender, operator, a.balance, amount);
        a.thawing = amount;
        a.withdrawableAt = uint64(block.timestamp) + thawPeriod;
        emit ThawRequested(msg.sender, operator, amount, a.withdrawableAt);
    }

    /// @notice Pays thawed funds back to the caller.
    /// @return amount what was thawing, or the balance if vouchers left less
    function withdraw(address operator) external nonReentrant returns (uint128 amount) {
        Account storage a = _accounts[msg.sender][operator];
        if (a.thawing == 0) revert NothingThawing(msg.sender, operator);
        if (block.timestamp < a.withdrawableAt) {
            revert StillThawing(msg.sender, operator, a.withdrawableAt);
        }
        amount = a.thawing < a.balance ? a.thawing : a.balance;
        a.thawing = 0;
        a.balance -= amount;
        emit Withdrawn(msg.sender, operator, amount);
        token.safeTransfer(msg.sender, amount);
    }

    /// @notice Lets `signer` sign vouchers and requests for the caller, with every operator. The
    /// caller's own key always may. Adding a key again that is being removed keeps it.
    function addSigner(address signer) external {
        if (signer == address(0)) revert ZeroAddress();
        if (_signers[msg.sender][signer] == type(uint64).max) {
            revert SignerExists(msg.sender, signer);
        }
        _signers[msg.sender][signer] = type(uint64).max;
        emit SignerAdded(msg.sender, signer);
    }

    /// @notice Ends `signer`'s authority after one thaw period.
    function removeSigner(address signer) external {
        if (_signers[msg.sender][signer] != type(uint64).max) {
            revert NotSigner(msg.sender, signer);
        }
        uint64 validUntil = uint64(block.timestamp) + thawPeriod;
        _signers[msg.sender][signer] = validUntil;
        emit SignerRemoved(msg.sender, signer, validUntil);
    }

    // ---------------------------------------------------------------- operators

    /// @notice Redeems one voucher; reverts with Refused if it can't be.
    /// @param epoch the epoch that voucher.channel was made with
    /// @return amount what moved to AttributionLedger
    function redeem(Voucher calldata voucher, uint64 epoch, bytes calldata signature)
        external
        nonReentrant
        returns (uint128 amount)
    {
        _checkOperator(voucher.operator);
        Refusal why;
        (why, amount) = _redeem(voucher.operator, voucher, epoch, signature);
        if (why != Refusal.None) revert Refused(voucher.channel, voucher.valueAggregate, why);
        _passOn(voucher.operator, amount);
    }

    /// @notice Redeems vouchers of one operator, each by itself: one that can't be redeemed is left
    /// out with a VoucherRefused event and blocks no other.
    /// @return amount what moved to AttributionLedger, all together
    function redeemMany(address operator, SignedVoucher[] calldata vouchers)
        external
        nonReentrant
        returns (uint128 amount)
    {
        _checkOperator(operator);
        for (uint256 i = 0; i < vouchers.length; i++) {
            SignedVoucher calldata s = vouchers[i];
            (Refusal why, uint128 moved) = _redeem(operator, s.voucher, s.epoch, s.signature);
            if (why == Refusal.None) {
                amount += moved;
            } else {
                emit VoucherRefused(
                    operator, s.voucher.payer, s.voucher.channel, s.voucher.valueAggregate, why
                );
            }
        }
        if (amount != 0) _passOn(operator, amount);
    }

    // ---------------------------------------------------------------- views

    /// @notice A payer's account with an operator. What is thawing is part of balance, at most all
    /// of it.
    function accountOf(address payer, address operator)
        external
        view
        returns (uint128 balance, uint128 thawing, uint64 withdrawableAt)
    {
        Account storage a = _accounts[payer][operator];
        balance = a.balance;
        thawing = a.thawing < balance ? a.thawing : balance;
        withdrawableAt = a.withdrawableAt;
    }

    /// @notice The newest redeemed voucher of a channel: its valueAggregate and lastReceiptHash;
    /// zeros if none.
    function channelState(address payer, address operator, uint64 epoch)
        external
        view
        returns (uint128 valueAggregate, bytes32 lastReceiptHash)
    {
        bytes32 channel = channelOf(payer, operator, epoch);
        valueAggregate =
            epoch == 0 ? _accounts[payer][operator].firstEpochValue : _laterEpochValue[channel];
        lastReceiptHash = _lastReceiptHash[channel];
    }

    /// @notice The name of a channel.
    function channelOf(address payer, address operator, uint64 epoch)
        public
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(payer, operator, epoch));
    }

    /// @notice Whether `signer` may sign for `payer` at this moment.
    function isSigner(address payer, address signer) public view returns (bool) {
        return signer == payer || block.timestamp < _signers[payer][signer];
    }

    /// @notice Until when (unix seconds, exclusive) `signer` may sign for `payer`; 2^64 - 1: until
    /// removed.
    function signerValidUntil(address payer, address signer) external view returns (uint64) {
        return _signers[payer][signer];
    }

    /// @notice The EIP-712 digest of a Voucher: what the payer signs.
    function voucherDigest(Voucher calldata voucher) public view returns (bytes32) {
        return _hashTypedDataV4(Types.hashStruct(voucher));
    }

    /// @notice The EIP-712 digest of a Request: what the payer signs, and the requestId of its
    /// receipt.
    function requestDigest(Request calldata request) public view returns (bytes32) {
        return _hashTypedDataV4(Types.hashStruct(request));
    }

    /// @notice Whether a Voucher is signed for its payer; says nothing about channel and funds.
    function isSignedVoucher(Voucher calldata voucher, bytes calldata signature)
        external
        view
        returns (bool)
    {
        return _isSigned(voucher.payer, voucherDigest(voucher), signature);
    }

    /// @notice Whether a Request is signed for its payer.
    function isSignedRequest(Request calldata request, bytes calldata signature)
        external
        view
        returns (bool)
    {
        return _isSigned(request.payer, requestDigest(request), signature);
    }

    // ---------------------------------------------------------------- inside

    function _checkOperator(address operator) private view {
        if (
            msg.sender != operator
                && (operator == address(0) || stakeManager.operatorOf(msg.sender) != operator)
        ) {
            revert NotOperator(msg.sender, operator);
        }
    }

    /// Hands redeemed tokens to the ledger, whose batches may commit to them from now on.
    function _passOn(address operator, uint128 amount) private {
        redeemed[operator] += amount;
        ExactTransfer.push(token, ledger, amount);
    }

    function _isSigned(address payer, bytes32 digest, bytes calldata signature)
        private
        view
        returns (bool)
    {
        (address signer, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature);
        return failure == ECDSA.RecoverError.NoError && isSigner(payer, signer);
    }

    /// Checks a voucher and, if nothing speaks against it, moves its difference out of the payer's
    /// balance; the caller passes it on.
    function _redeem(
        address operator,
        Voucher calldata voucher,
        uint64 epoch,
        bytes calldata signature
    ) private returns (Refusal why, uint128 amount) {
        if (voucher.operator != operator) return (Refusal.WrongOperator, 0);
        bytes32 channel = channelOf(voucher.payer, operator, epoch);
        if (voucher.channel != channel) return (Refusal.WrongChannel, 0);

        Account storage a = _accounts[voucher.payer][operator];
        (uint128 balance, uint128 before) = (a.balance, a.firstEpochValue);
        if (epoch != 0) before = _laterEpochValue[channel];
        if (voucher.valueAggregate <= before) return (Refusal.Stale, 0);
        amount = voucher.valueAggregate - before;
        if (amount > balance) return (Refusal.Unfunded, 0);
        if (!_isSigned(voucher.payer, voucherDigest(voucher), signature)) {
            return (Refusal.WrongSignature, 0);
        }

        a.balance = balance - amount;
        if (epoch == 0) a.firstEpochValue = voucher.valueAggregate;
        else _laterEpochValue[channel] = voucher.valueAggregate;
        _lastReceiptHash[channel] = voucher.lastReceiptHash;
        emit Redeemed(
            operator,
            voucher.payer,
            channel,
            voucher.valueAggregate,
            amount,
            voucher.lastReceiptHash
        );
    }
}
