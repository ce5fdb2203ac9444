// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

// What gets signed, in Solidity.
//
// contracts-abi/types.json is the arbiter of these types; test/types.test.mjs compares every type
// hash below with the type string built from that file. The structs have the members of types.json
// in its order, so that abi.encode(TYPEHASH, struct) is the EIP-712 encodeData of every struct
// without a dynamic member (EIP-712, "Definition of encodeData": each member takes one 32-byte
// word).
//
// Hashes here are hashStruct values. What the rest of Tributary calls receiptHash, batchHash and
// requestId is the *digest*, keccak256(0x1901 || domainSeparator || hashStruct), which the contract
// that owns the domain computes.

/// One adapter's part in an answer: its share of the absolute weights in basis points, its royalty.
struct AdapterShare {
    bytes32 adapterId;
    uint16 bps;
    uint128 royalty;
}

/// What an operator says it did, one a request; a hash chain in each channel. Signed by a hot key.
struct Receipt {
    bytes32 requestId;
    address operator;
    address payer;
    bytes32 channel;
    uint64 index;
    bytes32 prevReceiptHash;
    bytes32 modelId;
    AdapterShare[] adapters;
    uint32 promptTokens;
    uint32 completionTokens;
    uint128 computeFee;
    uint128 royalty;
    uint128 channelTotal;
    uint64 timestampMs;
    bytes32 requestHash;
    bytes32 responseHash;
    bytes32 attributionHash;
}

/// A payer's cumulative promise for a channel, naming the receipt it pays up to. Signed by the
/// payer.
struct Voucher {
    address payer;
    address operator;
    bytes32 channel;
    uint64 timestampMs;
    uint128 valueAggregate;
    bytes32 lastReceiptHash;
}

/// What a payer asks for and at most pays for it. Signed by the payer; its digest is the requestId.
struct Request {
    address payer;
    address operator;
    bytes32 channel;
    uint64 nonce;
    bytes32 requestHash;
    uint128 maxFee;
    uint64 deadlineMs;
}

/// A settled set of receipts and the cumulative payouts after it. Signed by a hot key.
struct Batch {
    address operator;
    uint64 seq;
    uint32 leafCount;
    bytes32 receiptsRoot;
    bytes32 payoutRoot;
    uint128 committed;
    uint64 periodStart;
    uint64 periodEnd;
    bytes32 dataHash;
    bytes32 prevBatchHash;
}

/// An adapter version as its creator publishes it. Signed by the creator.
struct Manifest {
    bytes32 manifestHash;
    bytes32 contentDigest;
    bytes32 modelId;
    address creator;
    uint64 version;
    bytes32 parent;
}

/// Who shares an adapter's royalty: `bps` and `datanetBps` together sum to 10,000. Not signed and
/// not stored; the registry keeps keccak256(abi.encode(splits)).
struct Splits {
    address[] payees;
    uint16[] bps;
    bytes32[] datanets;
    uint16[] datanetBps;
}

/// Type hashes and hashStruct of every signed type.
library Types {
    bytes32 internal constant ADAPTER_SHARE_TYPEHASH =
        keccak256("AdapterShare(bytes32 adapterId,uint16 bps,uint128 royalty)");

    bytes32 internal constant RECEIPT_TYPEHASH = keccak256(
        "Receipt(bytes32 requestId,address operator,address payer,bytes32 channel,uint64 index,"
        "bytes32 prevReceiptHash,bytes32 modelId,AdapterShare[] adapters,uint32 promptTokens,"
        "uint32 completionTokens,uint128 computeFee,uint128 royalty,uint128 channelTotal,"
        "uint64 timestampMs,bytes32 requestHash,bytes32 responseHash,bytes32 attributionHash)"
        "AdapterShare(bytes32 adapterId,uint16 bps,uint128 royalty)"
    );

    bytes32 internal constant VOUCHER_TYPEHASH = keccak256(
        "Voucher(address payer,address operator,bytes32 channel,uint64 timestampMs,"
        "uint128 valueAggregate,bytes32 lastReceiptHash)"
    );

    bytes32 internal constant REQUEST_TYPEHASH = keccak256(
        "Request(address payer,address operator,bytes32 channel,uint64 nonce,bytes32 requestHash,"
        "uint128 maxFee,uint64 deadlineMs)"
    );

    bytes32 internal constant BATCH_TYPEHASH = keccak256(
        "Batch(address operator,uint64 seq,uint32 leafCount,bytes32 receiptsRoot,"
        "bytes32 payoutRoot,uint128 committed,uint64 periodStart,uint64 periodEnd,"
        "bytes32 dataHash,bytes32 prevBatchHash)"
    );

    bytes32 internal constant MANIFEST_TYPEHASH = keccak256(
        "Manifest(bytes32 manifestHash,bytes32 contentDigest,bytes32 modelId,address creator,"
        "uint64 version,bytes32 parent)"
    );

    function hashStruct(Voucher calldata voucher) internal pure returns (bytes32) {
        return keccak256(abi.encode(VOUCHER_TYPEHASH, voucher));
    }

    function hashStruct(Request calldata request) internal pure returns (bytes32) {
        return keccak256(abi.encode(REQUEST_TYPEHASH, request));
    }

    function hashStruct(Batch calldata batch) internal pure returns (bytes32) {
        return keccak256(abi.encode(BATCH_TYPEHASH, batch));
    }

    function hashStruct(Manifest calldata manifest) internal pure returns (bytes32) {
        return keccak256(abi.encode(MANIFEST_TYPEHASH, manifest));
    }

    /// EIP-712: an array is encoded as the keccak256 of its members' concatenated encodings, a
    /// struct member as its hashStruct.
    function hashStruct(Receipt calldata receipt) internal pure returns (bytes32) {
        bytes32[] memory shares = new bytes32[](receipt.adapters.length);
        for (uint256 i = 0; i < shares.length; i++) {
            shares[i] = keccak256(abi.encode(ADAPTER_SHARE_TYPEHASH, receipt.adapters[i]));
        }
        // In two halves, because one abi.encode of 18 values is too deep for the stack. Every value
        // is one word, so the concatenation is the encoding of all of them.
        return keccak256(
            bytes.concat(
                abi.encode(
                    RECEIPT_TYPEHASH,
                    receipt.requestId,
                    receipt.operator,
                    receipt.payer,
                    receipt.channel,
                    receipt.index,
                    receipt.prevReceiptHash,
                    receipt.modelId,
                    keccak256(abi.encodePacked(shares))
                ),
                abi.encode(
                    receipt.promptTokens,
                    receipt.completionTokens,
                    receipt.computeFee,
                    receipt.royalty,
                    receipt.channelTotal,
                    receipt.timestampMs,
                    receipt.requestHash,
                    receipt.responseHash,
                    receipt.attributionHash
                )
            )
        );
    }
}
