/* tx: transactions: built, hashed for signing, signed by somebody else, serialised, parsed.
 *
 * chain/ never sees a key: tx_signing_digest goes to wallet_sign_transaction, whose signature comes
 * back to tx_write_signed. The order for a publisher: fill struct tx; sign; tx_write_signed; store
 * the bytes; broadcast; tx_hash_of(bytes) is what the chain calls it.
 *
 *   kind             layout                                                            source
 *   TX_LEGACY        rlp([nonce, gasPrice, gas, to, value, data, v, r, s])             EIP-155
 *   TX_ACCESS_LIST   0x01 || rlp([chainId, nonce, gasPrice, ..., accessList, y, r, s]) EIP-2930
 *   TX_FEE_MARKET    0x02 || rlp([chainId, nonce, maxPriority, maxFee, ...])           EIP-1559
 *
 * Blob (EIP-4844) and set-code (EIP-7702) transactions are refused by name. Pure functions, any
 * thread. */
#ifndef TRIBUTARY_CHAIN_TX_H
#define TRIBUTARY_CHAIN_TX_H

#include "chain/evm.h"
#include "chain/u256.h"

struct arena;
struct buf;
struct err;

enum tx_kind { TX_LEGACY, TX_ACCESS_LIST, TX_FEE_MARKET };

enum {
    TX_MAX_BYTES = 128 *
                   1024, /* longest that tx_parse reads: what nodes accept (geth, txMaxSize) */
};

struct tx_access {
    struct address address;
    size_t n_keys;
    const struct bytes32 *keys;
};

struct tx {
    enum tx_kind kind;
    uint64_t chain_id; /* TX_LEGACY, 0: without replay protection (before EIP-155) */
    uint64_t nonce;
    struct u256 gas_price;        /* wei; TX_LEGACY and TX_ACCESS_LIST */
    struct u256 max_priority_fee; /* wei; TX_FEE_MARKET: to the block's maker, a unit of gas */
    struct u256 max_fee;          /* wei; TX_FEE_MARKET: all in all, a unit of gas */
    uint64_t gas_limit;
    bool creates; /* a contract; to is not used then */
    struct address to;
    struct u256 value; /* wei */
    const uint8_t *data;
    size_t n_data;
    const struct tx_access *accesses; /* EIP-2930; not TX_LEGACY */
    size_t n_accesses;
};

/* What is to be signed. Appends the bytes whose keccak256 tx_signing_digest is. */
void tx_write_unsigned(struct buf *out, const struct tx *tx);
struct tx_digest tx_signing_digest(const struct tx *tx);

/* Appends what is broadcast. */
void tx_write_signed(struct buf *out, const struct tx *tx, const struct signature *sig);

/* The name of what tx_write_signed wrote. */
struct tx_hash tx_hash_of(const void *signed_bytes, size_t n);

/* The most that the transaction can cost: gas_limit * (gas price or max_fee) + value; -1 when that
 * exceeds 256 bits. On an OP Stack chain the L1 data fee comes on top (rpc_l1_fee). */
int tx_cost_limit(struct u256 *out, const struct tx *tx);

/* Parses signed or unsigned bytes (hostile: strict RLP, canonical integers, nothing after the end).
 *
 * out  tx         its data points into bytes, its access list into the arena
 *      sig        zero when unsigned
 *      is_signed
 *
 * ERR_INVALID names the field; ERR_UNSUPPORTED names the kind; ERR_TOO_LARGE. r and s are only
 * checked to fit 32 bytes: recovery judges them. */
int tx_parse(struct tx *out, struct signature *sig, bool *is_signed, struct arena *arena,
             const void *bytes, size_t n, struct err *err);

#endif
