/* rpc: a client of an Ethereum node's JSON-RPC, over several endpoints.
 *
 * Endpoints are tried in order, beginning with the one that answered last; one that fails (no
 * connection, time-out, HTTP error, an answer that isn't JSON-RPC, another chain's id) is passed
 * over for a while. Before an endpoint is used its eth_chainId is compared with the expected one.
 * Answers are bounded and every field is checked: a node is no more trusted than any stranger,
 * except that what it says about the chain can't be proven here.
 *
 * Errors. -1 with ERR_UPSTREAM (no endpoint answers; the last reason is named), ERR_TIMEOUT,
 * ERR_CANCELLED, ERR_TOO_LARGE, or, where the node answered with an error: ERR_CONFLICT for a
 * revert (the sentence has the decoded reason), ERR_INVALID for all else, with the node's words.
 *
 * Any thread; calls don't wait for each other. */
#ifndef TRIBUTARY_CHAIN_RPC_H
#define TRIBUTARY_CHAIN_RPC_H

#include "chain/evm.h"
#include "chain/u256.h"
#include "node/base/amount.h"

#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct arena;
struct buf;
struct err;
struct rpc; /* opaque */

struct rpc_options {
    const char *const *urls;     /* [n_urls], copied; http or https */
    size_t n_urls;               /* 1 to RPC_ENDPOINTS_MAX */
    uint64_t chain_id;           /* 0: whatever the first endpoint that answers is on */
    uint64_t timeout_ms;         /* a call, all in all, an endpoint; 0: 15,000 */
    uint64_t connect_timeout_ms; /* 0: 5,000 */
    uint64_t endpoint_rest_ms;   /* how long a failed endpoint is passed over; 0: 10,000 */
    size_t max_response_bytes;   /* 0: 4 MiB */
    uint64_t logs_page_blocks;   /* blocks an eth_getLogs; 0: 500 */
    const _Atomic bool *cancel;  /* may be NULL; true ends calls with ERR_CANCELLED */
};
enum { RPC_ENDPOINTS_MAX = 8 };

/* Connects to nothing yet. NULL with ERR_INVALID for bad options. */
struct rpc *rpc_open(const struct rpc_options *opt, struct err *err);
void rpc_close(struct rpc *rpc); /* no call may be running; NULL is quiet */

/* The chain's id: the option, or what the endpoints say. */
int rpc_chain_id(struct rpc *rpc, uint64_t *out, struct err *err);

/* Any method. params is a new reference that the call takes over (NULL: []). *result is a new
 * reference. Idempotent methods only: it may be sent to several endpoints. */
int rpc_request(struct rpc *rpc, const char *method, json_t *params, json_t **result,
                struct err *err);

/* ---- blocks ------------------------------------------------------------------------------- */

enum rpc_tag { RPC_LATEST, RPC_SAFE, RPC_FINALIZED, RPC_PENDING, RPC_EARLIEST, RPC_NUMBER };

struct rpc_at { /* a moment of the chain */
    enum rpc_tag tag;
    uint64_t number; /* RPC_NUMBER */
};
#define RPC_AT_LATEST    ((struct rpc_at){RPC_LATEST, 0})
#define RPC_AT_SAFE      ((struct rpc_at){RPC_SAFE, 0})
#define RPC_AT_FINALIZED ((struct rpc_at){RPC_FINALIZED, 0})
#define RPC_AT_PENDING   ((struct rpc_at){RPC_PENDING, 0})
#define RPC_AT_BLOCK(n)  ((struct rpc_at){RPC_NUMBER, (n)})

struct rpc_block {
    uint64_t number, timestamp_s;
    struct block_hash hash, parent;
    bool has_base_fee;    /* EIP-1559 */
    struct u256 base_fee; /* wei a unit of gas */
};
/* ERR_NOT_FOUND: there is no such block (yet), or the chain knows no such tag. */
int rpc_block(struct rpc *rpc, struct rpc_block *out, struct rpc_at at, struct err *err);

/* ---- accounts and calls ------------------------------------------------------------------- */

int rpc_nonce(struct rpc *rpc, uint64_t *out, struct address account, struct rpc_at at,
              struct err *err); /* eth_getTransactionCount: the next free nonce */
int rpc_balance(struct rpc *rpc, struct u256 *wei, struct address account, struct rpc_at at,
                struct err *err);
int rpc_code(struct rpc *rpc, struct buf *out, struct address account, struct rpc_at at,
             struct err *err); /* appends; nothing for an account without code */

struct rpc_call {
    struct address from; /* zero: the node's choice */
    bool creates;        /* data is init code */
    struct address to;
    struct u256 value;
    const uint8_t *data;
    size_t n_data;
};
/* Appends the returned bytes to out. On a revert ERR_CONFLICT; the revert's data is appended to
 * revert (may be NULL), and the sentence has it decoded by contracts_revert_text. */
int rpc_call(struct rpc *rpc, struct buf *out, const struct rpc_call *call, struct rpc_at at,
             struct buf *revert, struct err *err);
int rpc_estimate_gas(struct rpc *rpc, uint64_t *gas, const struct rpc_call *call,
                     struct buf *revert, struct err *err);

/* ---- fees --------------------------------------------------------------------------------- */

struct rpc_fees {
    bool legacy;           /* the chain has no EIP-1559, or no eth_feeHistory: use gas_price */
    struct u256 gas_price; /* wei; set in both cases */
    struct u256 base_fee;  /* of the next block */
    struct u256 max_priority_fee, max_fee; /* suggested: the median of recent tips; twice the base
                                              fee and the tip, good for six full blocks */
};
int rpc_fees(struct rpc *rpc, struct rpc_fees *out, struct err *err);

/* What an OP Stack chain charges for the transaction's bytes on L1, asked of its predeploy
 * GasPriceOracle; 0 where there is none. */
int rpc_l1_fee(struct rpc *rpc, struct u256 *wei, const void *tx_bytes, size_t n, struct err *err);

/* ---- transactions ------------------------------------------------------------------------- */

/* What became of a broadcast. When the node refuses, the chain is asked (receipt, nonce, balance,
 * base fee), because nodes word and number their errors differently. */
enum rpc_sent {
    RPC_SENT,        /* accepted, or known already */
    RPC_MINED,       /* it lies in a block */
    RPC_NONCE_USED,  /* another transaction with its nonce is mined: it can never be */
    RPC_UNDERPRICED, /* another with its nonce is pending, and pays too much to be replaced */
    RPC_FEE_TOO_LOW, /* its max fee is below the base fee, or below the node's floor */
    RPC_NO_FUNDS,    /* the sender's balance doesn't cover tx_cost_limit */
    RPC_REFUSED,     /* none of these; *why has the node's words */
};
const char *rpc_sent_name(enum rpc_sent sent);

/* Broadcasts signed bytes, to every endpoint that answers until one takes them. sender is who
 * signed. why (may be NULL) gets a sentence when the result isn't RPC_SENT or RPC_MINED. -1 when no
 * endpoint answered: it may or may not have been sent; asking again is safe. ERR_CORRUPT: the bytes
 * are no signed transaction; nothing was sent. */
int rpc_send(struct rpc *rpc, enum rpc_sent *out, const void *tx_bytes, size_t n,
             struct address sender, struct err *why, struct err *err);

struct rpc_receipt {
    bool mined;     /* false: the rest is zero */
    bool succeeded; /* false: reverted; its fee is spent and its nonce used */
    uint64_t block_number;
    struct block_hash block;
    uint64_t gas_used;
    struct u256 gas_price; /* effective; zero if the node doesn't say */
    struct u256 l1_fee;    /* OP Stack; zero elsewhere */
    bool created;          /* a contract, at: */
    struct address contract;
};
/* ERR_OK and mined false when the chain knows no such mined transaction. logs (may be NULL) gets
 * its events, allocated in arena. */
struct rpc_logs;
int rpc_tx_receipt(struct rpc *rpc, struct rpc_receipt *out, struct tx_hash hash,
                   struct rpc_logs *logs, struct arena *arena, struct err *err);

/* Whether the node knows the transaction at all, pending or mined. */
int rpc_tx_known(struct rpc *rpc, bool *out, struct tx_hash hash, struct err *err);

/* ---- events ------------------------------------------------------------------------------- */

enum { RPC_TOPICS_MAX = 4 };

struct rpc_log {
    struct address address;
    uint32_t n_topics;
    struct bytes32 topics[RPC_TOPICS_MAX];
    const uint8_t *data;
    size_t n_data;
    uint64_t block_number, tx_index, log_index;
    struct block_hash block;
    struct tx_hash tx;
};
struct rpc_logs {
    const struct rpc_log *items;
    size_t n;
};

struct rpc_log_filter {
    const struct address *addresses; /* [n_addresses]; none: any */
    size_t n_addresses;
    const struct bytes32 *topics[RPC_TOPICS_MAX]; /* NULL: any */
    uint64_t from_block, to_block;                /* inclusive */
};

/* Calls each for every log in the chain's order, a page of logs_page_blocks after the other; a page
 * that the node finds too large is halved. each returns 0 to go on, anything else ends the walk
 * with that value (and *err as each left it). A log that the filter doesn't ask for is an error. */
typedef int rpc_log_fn(void *context, const struct rpc_log *log, struct err *err);
int rpc_logs(struct rpc *rpc, const struct rpc_log_filter *filter, rpc_log_fn *each, void *context,
             struct err *err);

/* ---- health ------------------------------------------------------------------------------- */

struct rpc_health {
    bool answers; /* some endpoint answered the last call */
    uint64_t calls, failures, failovers;
    uint64_t silent_ms; /* since an endpoint answered last; since open when none ever has */
    char endpoint[256]; /* the preferred one, without userinfo, path and query (they hold keys) */
};
void rpc_health(struct rpc *rpc, struct rpc_health *out); /* no I/O */

#endif
