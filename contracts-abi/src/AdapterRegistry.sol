// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

import {Manifest, Splits, Types} from "./lib/Types.sol";

/// @title Which adapters and Datanets exist, and who is paid for them.
///
/// @notice A Datanet has an id and a payee. An adapter has an id, the hash of its splits, a version
/// and a flag; everything else about it is in its manifest (off chain, found by manifestHash) and
/// in the event of its registration, which also carries the splits, so that a claim never depends
/// on a web server.
///
///     datanetId = keccak256(abi.encode(chainid, registry, owner, metadataHash))
///     adapterId = keccak256(abi.encode(chainid, registry, creator, modelId, manifestHash))
///     splitsHash = keccak256(abi.encode(splits))
///
/// Payout leaves name ids and positions, never addresses. The payee of a position is the address in
/// the splits until that payee itself hands the position on; a change takes effect `payeeDelay`
/// seconds after it was announced. Retiring an adapter stops new use of it, never a claim.
///
/// Whoever asks for a position's payee first must show the splits, as the bytes whose hash was kept
/// (abi.encode(splits)). `payee` writes the answer down; from then on empty bytes do.
///
/// A manifest's parent is the manifestHash of an earlier version: same creator, same base model,
/// lower version, registered here (retired or not). So nobody can present an adapter as the next
/// version of somebody else's. Descent from another creator's work is said in the manifest's text
/// and paid for in the splits; a version for another base model starts a new line, with parent
/// zero.
///
/// Immutable: no owner, no pause, no upgrade.
contract AdapterRegistry is EIP712 {
    struct Adapter {
        address creator; // zero: not registered
        uint64 version;
        bool retired;
        bytes32 splitsHash;
    }

    /// A payee that changes with notice. `current` zero: not written down yet (positions), unknown
    /// (Datanets).
    struct Payee {
        address current;
        uint64 effectiveAt; // unix seconds from which on `next` is meant; 0: nothing announced
        address next;
    }

    /// @notice Basis points that make a whole.
    uint256 public constant BPS = 10_000;
    /// @notice Most payees, and most Datanets, that an adapter may name: bounds what a claim must
    /// carry.
    uint256 public constant MAX_SHARES = 64;
    /// @notice Above this a payee delay is taken for a mistake at deployment.
    uint64 public constant MAX_PAYEE_DELAY = 365 days;

    /// @notice Seconds between the announcement of a payee change and its effect.
    uint64 public immutable payeeDelay;

    /// @notice The earliest adapter registered with a contentDigest; zero if none.
    mapping(bytes32 contentDigest => bytes32 adapterId) public firstByContent;

    mapping(bytes32 adapterId => Adapter) private _adapters;
    mapping(bytes32 datanetId => Payee) private _datanets;
    mapping(bytes32 adapterId => mapping(uint16 position => Payee)) private _positions;

    event DatanetRegistered(
        bytes32 indexed datanetId,
        address indexed owner,
        address indexed payee,
        bytes32 metadataHash
    );
    event AdapterRegistered(
        bytes32 indexed adapterId,
        address indexed creator,
        bytes32 indexed contentDigest,
        bytes32 manifestHash,
        bytes32 modelId,
        uint64 version,
        bytes32 parent,
        Splits splits
    );
    event AdapterRetired(bytes32 indexed adapterId, address indexed creator);
    /// @notice From `effectiveAt` on `to` is paid instead of `from`, unless another proposal comes
    /// before.
    event PayeeProposed(
        bytes32 indexed adapterId,
        uint16 indexed position,
        address from,
        address indexed to,
        uint64 effectiveAt
    );
    event DatanetPayeeProposed(
        bytes32 indexed datanetId, address from, address indexed to, uint64 effectiveAt
    );

    error ZeroAddress();
    error ZeroHash();
    error BadPayeeDelay(uint64 delay);
    error DatanetExists(bytes32 datanetId);
    error UnknownDatanet(bytes32 datanetId);
    error DuplicateDatanet(bytes32 datanetId);
    error AdapterExists(bytes32 adapterId);
    error UnknownAdapter(bytes32 adapterId);
    error AlreadyRetired(bytes32 adapterId);
    /// The manifest is signed by `signer`, not by the creator it names.
    error WrongSignature(address creator, address signer);
    error NotCreator(address caller, address creator);
    error NotPayee(address caller, address payee);
    error UnknownParent(bytes32 parent);
    error VersionNotAbove(uint64 version, uint64 parentVersion);
    /// payees/bps or datanets/datanetBps differ in length, or exceed MAX_SHARES.
    error SplitsShape(uint256 payees, uint256 bps, uint256 datanets, uint256 datanetBps);
    error SplitsZero(uint256 entry);
    error SplitsSum(uint256 sum);
    error WrongSplits(bytes32 adapterId, bytes32 got, bytes32 want);
    error UnknownPosition(bytes32 adapterId, uint16 position);
    /// The position's payee was never asked for with the splits shown.
    error SplitsNeeded(bytes32 adapterId, uint16 position);

    /// @param payeeDelay_ seconds, 1 to MAX_PAYEE_DELAY
    constructor(uint64 payeeDelay_) EIP712("Tributary AdapterRegistry", "1") {
        if (payeeDelay_ == 0 || payeeDelay_ > MAX_PAYEE_DELAY) revert BadPayeeDelay(payeeDelay_);
        payeeDelay = payeeDelay_;
    }

    // ---------------------------------------------------------------- Datanets

    /// @notice Registers a Datanet of the caller's; `metadataHash` is the sha256 of its canonical
    /// manifest.
    /// @param payee_ who is paid for it, until it hands that on
    function registerDatanet(bytes32 metadataHash, address payee_)
        external
        returns (bytes32 datanetId)
    {
        if (metadataHash == 0) revert ZeroHash();
        if (payee_ == address(0)) revert ZeroAddress();
        datanetId = datanetIdOf(msg.sender, metadataHash);
        if (_datanets[datanetId].current != address(0)) revert DatanetExists(datanetId);
        _datanets[datanetId].current = payee_;
        emit DatanetRegistered(datanetId, msg.sender, payee_, metadataHash);
    }

    /// @notice The Datanet's payee of this moment announces its successor. A later announcement
    /// replaces an earlier one that has not taken effect; announcing oneself cancels it.
    function proposeDatanetPayee(bytes32 datanetId, address to) external {
        address from = datanetPayee(datanetId);
        uint64 effectiveAt = _propose(_datanets[datanetId], from, to);
        emit DatanetPayeeProposed(datanetId, from, to, effectiveAt);
    }

    // ---------------------------------------------------------------- adapters

    /// @notice Registers an adapter. The manifest must be signed by its creator, and the creator
    /// must send the transaction: the signed Manifest doesn't contain the splits, so a stranger who
    /// relayed it could put its own address into them.
    function registerAdapter(
        Manifest calldata manifest,
        Splits calldata splits,
        bytes calldata signature
    ) external returns (bytes32 adapterId) {
        address signer = ECDSA.recoverCalldata(manifestDigest(manifest), signature);
        if (signer != manifest.creator) revert WrongSignature(manifest.creator, signer);
        if (msg.sender != manifest.creator) revert NotCreator(msg.sender, manifest.creator);
        if (manifest.manifestHash == 0 || manifest.contentDigest == 0 || manifest.modelId == 0) {
            revert ZeroHash();
        }
        adapterId = adapterIdOf(manifest.creator, manifest.modelId, manifest.manifestHash);
        if (_adapters[adapterId].creator != address(0)) revert AdapterExists(adapterId);
        _checkParent(manifest);
        _checkSplits(splits);

        _adapters[adapterId] = Adapter({
            creator: manifest.creator,
            version: manifest.version,
            retired: false,
            splitsHash: keccak256(abi.encode(splits))
        });
        if (firstByContent[manifest.contentDigest] == 0) {
            firstByContent[manifest.contentDigest] = adapterId;
        }
        emit AdapterRegistered(
            adapterId,
            manifest.creator,
            manifest.contentDigest,
            manifest.manifestHash,
            manifest.modelId,
            manifest.version,
            manifest.parent,
            splits
        );
    }

    /// @notice The creator withdraws the adapter from use, for good. Claims go on.
    function retire(bytes32 adapterId) external {
        Adapter storage a = _adapters[adapterId];
        if (a.creator == address(0)) revert UnknownAdapter(adapterId);
        if (a.creator != msg.sender) revert NotCreator(msg.sender, a.creator);
        if (a.retired) revert AlreadyRetired(adapterId);
        a.retired = true;
        emit AdapterRetired(adapterId, msg.sender);
    }

    /// @notice Who is paid for a position of an adapter at this moment. Anyone may call; the first
    /// call for a position writes down what the splits say, so that later calls can do without
    /// them.
    /// @param splits abi.encode(splits), whose hash is splitsHash; empty if the position is written
    /// down
    function payee(bytes32 adapterId, uint16 position, bytes calldata splits)
        public
        returns (address now_)
    {
        Payee storage p = _positions[adapterId][position];
        now_ = _resolve(p);
        if (now_ == address(0)) {
            now_ = _shown(adapterId, position, splits);
            p.current = now_;
        }
    }

    /// @notice The position's payee of this moment announces its successor, as with Datanets.
    /// @param splits as for payee
    function proposePayee(bytes32 adapterId, uint16 position, address to, bytes calldata splits)
        external
    {
        address from = payee(adapterId, position, splits);
        uint64 effectiveAt = _propose(_positions[adapterId][position], from, to);
        emit PayeeProposed(adapterId, position, from, to, effectiveAt);
    }

    // ---------------------------------------------------------------- views

    /// @notice As payee, without writing anything down; reverts if adapter, position or splits are
    /// wrong.
    function payeeOf(bytes32 adapterId, uint16 position, bytes calldata splits)
        external
        view
        returns (address)
    {
        address written = _resolve(_positions[adapterId][position]);
        return written != address(0) ? written : _shown(adapterId, position, splits);
    }

    /// @notice The payee that is written down for a position; zero: none is, payee needs the
    /// splits.
    function writtenPayee(bytes32 adapterId, uint16 position) external view returns (address) {
        return _resolve(_positions[adapterId][position]);
    }

    /// @notice Who is paid for a Datanet at this moment.
    function datanetPayee(bytes32 datanetId) public view returns (address now_) {
        now_ = _resolve(_datanets[datanetId]);
        if (now_ == address(0)) revert UnknownDatanet(datanetId);
    }

    /// @notice The announced successor of a position's payee; effectiveAt 0: none was ever
    /// announced.
    function pendingPayee(bytes32 adapterId, uint16 position)
        external
        view
        returns (address next, uint64 effectiveAt)
    {
        Payee storage p = _positions[adapterId][position];
        return (p.next, p.effectiveAt);
    }

    /// @notice The announced successor of a Datanet's payee; effectiveAt 0: none was ever
    /// announced.
    function pendingDatanetPayee(bytes32 datanetId)
        external
        view
        returns (address next, uint64 effectiveAt)
    {
        Payee storage p = _datanets[datanetId];
        return (p.next, p.effectiveAt);
    }

    /// @notice A registered adapter; creator zero: not registered.
    function adapterOf(bytes32 adapterId)
        external
        view
        returns (address creator, uint64 version, bool retired, bytes32 splitsHash)
    {
        Adapter storage a = _adapters[adapterId];
        return (a.creator, a.version, a.retired, a.splitsHash);
    }

    /// @notice The id that a creator's manifest has, registered or not.
    function adapterIdOf(address creator, bytes32 modelId, bytes32 manifestHash)
        public
        view
        returns (bytes32)
    {
        return keccak256(abi.encode(block.chainid, address(this), creator, modelId, manifestHash));
    }

    /// @notice The id that an owner's Datanet has, registered or not.
    function datanetIdOf(address owner, bytes32 metadataHash) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), owner, metadataHash));
    }

    /// @notice The EIP-712 digest of a Manifest: what its creator signs.
    function manifestDigest(Manifest calldata manifest) public view returns (bytes32) {
        return _hashTypedDataV4(Types.hashStruct(manifest));
    }

    // ---------------------------------------------------------------- inside

    function _checkParent(Manifest calldata manifest) private view {
        if (manifest.parent == 0) return;
        Adapter storage parent =
            _adapters[adapterIdOf(manifest.creator, manifest.modelId, manifest.parent)];
        if (parent.creator == address(0)) revert UnknownParent(manifest.parent);
        if (manifest.version <= parent.version) {
            revert VersionNotAbove(manifest.version, parent.version);
        }
    }

    function _checkSplits(Splits calldata splits) private view {
        uint256 nPayees = splits.payees.length;
        uint256 nDatanets = splits.datanets.length;
        if (
            nPayees != splits.bps.length || nDatanets != splits.datanetBps.length
                || nPayees > MAX_SHARES || nDatanets > MAX_SHARES
        ) revert SplitsShape(nPayees, splits.bps.length, nDatanets, splits.datanetBps.length);
        uint256 sum = 0;
        for (uint256 i = 0; i < nPayees; i++) {
            if (splits.payees[i] == address(0) || splits.bps[i] == 0) revert SplitsZero(i);
            sum += splits.bps[i];
        }
        for (uint256 i = 0; i < nDatanets; i++) {
            bytes32 datanetId = splits.datanets[i];
            if (splits.datanetBps[i] == 0) revert SplitsZero(nPayees + i);
            if (_datanets[datanetId].current == address(0)) revert UnknownDatanet(datanetId);
            for (uint256 j = 0; j < i; j++) {
                if (splits.datanets[j] == datanetId) revert DuplicateDatanet(datanetId);
            }
            sum += splits.datanetBps[i];
        }
        if (sum != BPS) revert SplitsSum(sum);
    }

    /// What the splits say about a position, after checking that they are the adapter's.
    function _shown(bytes32 adapterId, uint16 position, bytes calldata splits)
        private
        view
        returns (address)
    {
        bytes32 want = _adapters[adapterId].splitsHash;
        if (want == 0) revert UnknownAdapter(adapterId);
        if (splits.length == 0) revert SplitsNeeded(adapterId, position);
        bytes32 got = keccak256(splits);
        if (got != want) revert WrongSplits(adapterId, got, want);
        address[] memory payees = abi.decode(splits, (Splits)).payees;
        if (position >= payees.length) revert UnknownPosition(adapterId, position);
        return payees[position];
    }

    /// Who a Payee entry means now; zero if it was never written.
    function _resolve(Payee storage p) private view returns (address) {
        uint64 effectiveAt = p.effectiveAt;
        return effectiveAt != 0 && block.timestamp >= effectiveAt ? p.next : p.current;
    }

    /// Writes down who is paid now (`from`, resolved by the caller) and who will be.
    function _propose(Payee storage p, address from, address to)
        private
        returns (uint64 effectiveAt)
    {
        if (msg.sender != from) revert NotPayee(msg.sender, from);
        if (to == address(0)) revert ZeroAddress();
        effectiveAt = uint64(block.timestamp) + payeeDelay;
        p.current = from;
        p.effectiveAt = effectiveAt;
        p.next = to;
    }
}
