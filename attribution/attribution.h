/* attribution: the ledger. The door of the room attribution/.
 *
 * The service hands over one `struct usage` when an answer ends and gets a signed receipt back once
 * it is on disk. From then on the ledger sees to it that the receipt is paid for: a voucher of the
 * house account redeems it, a batch settles it, a payout tree says who earned what, and the chain
 * is told, through crashes, reorgs and lost endpoints. Payers of their own hand in vouchers
 * themselves.
 *
 *   usage --ledger_commit--> receipt (hash chain of its channel, EIP-712, signed, fsynced)
 *         --sealing--------> voucher + batch + payout tree + outbox rows, in one transaction
 *         --publisher------> redeem, submit: signed bytes stored first, then broadcast, mined,
 *                            confirmed, final
 *
 * Threads. The ledger thread is the only one that writes the database (SQLite, WAL, synchronous =
 * FULL); every commit group is one transaction and one fsync of the log, however many receipts are
 * in it. The publisher thread, there when an RPC endpoint was given, owns the nonces; its writes go
 * through the ledger thread, its queue is the table `outbox`. Queries read on connections of their
 * own, from any thread, and see everything whose callback has run.
 *
 * Two configurations. *Local* (chain_id 0, all contract addresses zero): receipts are signed for
 * chain id 0 and stay local for ever; nothing is sealed. *Chain*: vouchers and batches are made;
 * without an endpoint, or with none that answers, they wait in the outbox. Naming another chain or
 * other contracts starts new channels beside the old ones; the old ones stay readable.
 *
 * Files in the data directory: ledger.db (+ -wal, -shm), ledger.generation, ledger.lock.
 *
 * Backups. A node restored from a backup must never extend an old channel: two different receipts
 * for one (channel, index) prove fraud. Three guards find a restored database; each opens a new
 * epoch for every payer, that is, new channels, and leaves the old receipts valid:
 *   1. ledger.generation is advanced and fsynced after each commit group and before any of the
 *      group's receipts leaves the ledger. A database that is behind it, is another's, or has none
 *      beside it, was restored.
 *   2. That file records its own inode number and birth, and each start and each orderly end makes
 *      it anew: a copy made before tells of a file that is gone. (A move to a new disk looks the
 *      same; an epoch too many costs nothing but one storage slot.)
 *   3. Before the publisher's first transaction it compares the contracts with the database: a
 *      redeemed lastReceiptHash, more redeemed than it has vouchers for, or a batch that the
 *      database doesn't know was made by a later self.
 *      This finds a restored disk image, too. A database that is new on a chain asks before its
 *      first receipt; when the chain can't be asked it starts with a fresh epoch.
 * A fresh epoch is numbered by the unix milliseconds now and ten random bits, or, where the clock
 * is behind the epochs known, a random step above them, so that two restorations of one backup
 * don't meet either, not even of two machines at once. A new installation starts with epoch 0, and
 * so does every account and chain that is new to a database that never was restored.
 *
 * Amounts in JSON are decimal strings; hashes, ids, addresses and signatures 0x and lower-case
 * hexadecimal; all other integers are JSON numbers below 2^53. */
#ifndef TRIBUTARY_ATTRIBUTION_H
#define TRIBUTARY_ATTRIBUTION_H

#include "attribution/manifest.h"
#include "chain/types.h"
#include "node/base/amount.h"
#include "node/base/digest.h"
#include "node/base/err.h"
#include "node/base/usage.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct rpc; /* chain/rpc.h */
struct wallet;

struct ledger; /* opaque */

/* ---- open and close ------------------------------------------------------------------------- */

/* Where receipts are settled. All zero: local. Otherwise chain_id and all four addresses are set.
 */
struct ledger_chain {
    uint64_t chain_id;
    struct address stake_manager, adapter_registry, escrow, attribution_ledger;
};

struct ledger_rates { /* the operator's compute fee */
    struct amount prompt_per_1k, completion_per_1k;
};

/* A batch is sealed when unsealed receipts reach any of the three. Zero means the default. */
struct ledger_seal_policy {
    uint32_t max_receipts;   /* also the most in one batch; default 1,000, at most 20,000 */
    uint64_t max_age_ms;     /* of the oldest unsealed receipt; default 600,000 */
    struct amount max_value; /* also the most in one batch; default: no limit but the stake */
};

struct ledger_publish_policy {
    /* When a mined transaction counts as confirmed: it lies this many blocks deep (1: just mined),
     * or, if use_safe_tag, at or below the chain's "safe" block. Default: 12 blocks. */
    uint32_t confirmations;
    bool use_safe_tag;
    uint64_t poll_ms;          /* how often the chain is asked; default 2,000 */
    uint64_t replace_after_ms; /* not mined in this time: replace with more fee; default 60,000 */
    struct amount max_fee_per_gas;   /* wei a unit of gas, never exceeded; default 500 gwei */
    struct amount max_spend_per_day; /* wei, worst case of all transactions signed in the last 24
                                        hours; default 1 native token (10^18) */
    struct amount redeem_min; /* a payer's voucher that would move less waits; default: none */
};

struct ledger_options {
    const char *data_dir; /* created with mode 0700 */
    /* Not owned; must outlive the ledger. NULL only with read_only. */
    struct wallet *wallet;
    const char *signer_key;          /* NULL: "signer": receipts, batches, transactions */
    const char *house_key;           /* NULL: "house": payer of API-key customers */
    struct address operator_address; /* the stake key's; all zero: the signer key's own address */
    struct ledger_chain chain;
    struct ledger_rates rates;
    struct amount payer_credit; /* what each payer may owe; 0: no payer's Request is let in */
    struct ledger_seal_policy seal;
    struct ledger_publish_policy publish;
    struct rpc *rpc; /* not owned; used by the publisher thread only. NULL: batches wait */
    /* Queries only, also beside a running node: no thread, no lock, nothing is written. */
    bool read_only;
    uint32_t queue_capacity; /* commits waiting; default 4,096 */
    uint32_t group_max;      /* commits sharing one transaction; default 512 */
};

/* Opens or creates the ledger and starts its threads.
 * NULL with ERR_CONFLICT (another process has it open), ERR_UNSUPPORTED (a newer schema),
 * ERR_CANCELLED (the rpc's cancel flag, while the chain was asked), ERR_CORRUPT (not ours, or
 * damaged), ERR_NOT_FOUND (the wallet lacks a key; read_only and there is no database), ERR_INVALID
 * (an option), ERR_IO. */
struct ledger *ledger_open(const struct ledger_options *opt, struct err *err);

/* Runs what is queued, stops the threads and closes. No other call may be running. NULL is quiet.
 */
void ledger_close(struct ledger *l);

struct address ledger_operator(const struct ledger *l);
struct address ledger_signer(const struct ledger *l);
struct address ledger_house(const struct ledger *l);
struct ledger_chain ledger_chain_of(const struct ledger *l);

/* ---- metering and committing ---------------------------------------------------------------- */

struct ledger_price {
    struct amount compute_fee, royalty, total; /* total = compute_fee + royalty */
    struct amount adapter_royalty[USAGE_ADAPTERS_MAX];
};

/* What an answer costs; with the most tokens it may take, the worst case before admission.
 *
 *   compute_fee = floor((prompt_per_1k * tokens_prompt + completion_per_1k * tokens_completion) /
 * 1000) royalty_i   = floor((p_i * tokens_prompt + c_i * tokens_completion) * weight_bps_i /
 * 10,000,000)
 *
 * rounded down once, at the end of each line; p_i, c_i are the rates of adapter i's manifest, and
 * royalty is the sum. An all-zero adapter id earns nothing. ERR_NOT_FOUND: an adapter that was
 * never put. ERR_INVALID: overflow of 128 bits, or weights that don't sum to 10,000. Any thread. */
int ledger_quote(struct ledger *l, struct ledger_price *out, const struct usage_adapter *adapters,
                 uint32_t n_adapters, uint32_t tokens_prompt, uint32_t tokens_completion,
                 struct err *err);

/* How many completion tokens a fee is enough for, exactly: one more would cost more. ERR_PAYMENT:
 * the prompt alone does. ERR_NOT_FOUND and ERR_INVALID as ledger_quote. Any thread. */
int ledger_most_tokens(struct ledger *l, uint32_t *tokens_completion, struct amount max_fee,
                       const struct usage_adapter *adapters, uint32_t n_adapters,
                       uint32_t tokens_prompt, struct err *err);

struct ledger_receipt {            /* valid during the callback */
    const struct receipt *receipt; /* chain/types.h: the signed fields */
    struct receipt_digest hash;
    struct signature signature;
    const char *json; /* canonical; see receipt JSON below */
    size_t json_bytes;
};

/* Called on the ledger thread: receipt after the fsync, or NULL and *err when it was not written
 * and never will be. (One exception, said so in *err: stored, but ledger.generation could not be
 * written after it; then it must not leave, and shows only in later queries.) Must be quick and
 * must not call ledger_* functions that wait. */
typedef void ledger_done(void *context, const struct ledger_receipt *receipt,
                         const struct err *err);

/* Queues one commit. usage is copied. On 0 done is called exactly once, ledger_close included.
 * On -1 it is not called: ERR_BUSY (queue full: try later), ERR_INVALID (usage breaks a rule, or
 * its price overflows), ERR_NOT_FOUND (unknown adapter). The request_id makes it idempotent: the
 * same usage again gives the same receipt, another usage of that id ERR_CONFLICT. Any thread.
 *
 * The house account pays, unless the request_id is that of a payer's Request that has been let in
 * (below): then its payer does, in the channel that it names, and a price above its maxFee is a
 * bug, which stops the program before anything is written. */
int ledger_commit(struct ledger *l, const struct usage *usage, ledger_done *done, void *context,
                  struct err *err);

/* ---- payers' requests ---------------------------------------------------------------------------
 *
 * A payer needs no API key: it signs a Request, which names the operator, one of its own channels
 * there, the sha256 of the body, and the most that the answer may cost. The Request's digest is the
 * requestId of the receipt, and a requestId has one receipt, for ever, so a Request pays once. Its
 * nonce orders nothing: it makes two Requests for equal bodies differ.
 *
 *   check ---> enter ---> (answer) ---> ledger_commit, done ---> leave
 *   no state    its maxFee counts as owed from here ----------------'
 *
 * One that leaves without a receipt (refused later, or nothing was written) has cost nothing and
 * may come again.
 *
 * Payers pay after the fact: what a payer owes is the sum of its receipts that no redeemed voucher
 * covers, and the maxFee of all that is being answered; options.payer_credit bounds it. A payer's
 * channel is opened by its first receipt: epoch 0, or in a database that was restored a fresh one.
 * Request signatures must be the payer's own; keys that it has registered at Escrow (addSigner) are
 * not looked up. */

struct signed_request {
    struct request_auth request; /* chain/types.h */
    struct signature signature;
};

/* Whether a Request is meant for this operator and chain, in time, over this body (NULL: not known
 * yet), and signed by its payer; id: its digest. Asks nothing but the clock. ERR_UNSUPPORTED: no
 * chain is configured; ERR_FORBIDDEN: no payer has credit here; ERR_UNAUTHORIZED says what is
 * wrong. Any thread. */
int ledger_request_check(const struct ledger *l, struct request_digest *id,
                         const struct signed_request *q, const struct sha256_digest *body,
                         struct err *err);

/* Lets in a Request that was checked. ERR_CONFLICT: it has its receipt, or is being answered; or
 * its channel isn't the payer's open one, which the sentence names. ERR_PAYMENT: over the credit.
 * Reads the database; not from the ledger thread. */
int ledger_request_enter(struct ledger *l, struct request_digest id, const struct request_auth *q,
                         struct err *err);
/* Once for each that was let in, when no ledger_commit of it is under way. Any thread. */
void ledger_request_leave(struct ledger *l, struct request_digest id);

/* ---- payers' vouchers ---------------------------------------------------------------------------
 *
 * With a Voucher a payer accepts its channel up to one receipt, which it names by its hash and by
 * its channelTotal: the payer co-signs that usage, neither more nor less. It is cumulative, so one
 * replaces all before it, and an old one does nothing.
 *
 *   accept ---> held ---> the outbox's own way ---> redeemed ---> its receipts are sealed, settled
 *               until Escrow has the money
 *
 * A voucher is a promise on escrowed funds, which may be missing or thaw away. So what it is over
 * stays owed, and counts against the credit, until it is redeemed and the redeem confirmed; a payer
 * that has used up its credit gets on after publish.confirmations blocks.
 *
 * What is not paid blocks nobody. A held voucher is outside the outbox: the publisher looks at a
 * few of them in each round, the new ones first, and lets in what Escrow has funds for, one a
 * channel and OUTBOX_PAYERS_MAX in all (outbox.h). Of each channel only the newest is held. One
 * whose funds leave while it waits goes back. What would move less than publish.redeem_min waits
 * for a bigger one, and all payers' redeems together cost at most half of
 * publish.max_spend_per_day. Signatures must be the payer's own, as those of Requests. */

struct signed_voucher {
    struct voucher voucher; /* chain/types.h */
    struct signature signature;
};

struct voucher_held {         /* the newest of a channel */
    bool accepted;            /* it is the one that was given; else that one is no newer */
    struct amount value;      /* zero: there is none, since the channel owes nothing */
    uint64_t index;           /* of the receipt that it names */
    uint8_t last_receipt[32]; /* its hash */
    struct amount redeemed;   /* of the channel, confirmed */
};

/* Stores a payer's voucher; returns after the commit. 0 also when a newer one is held, or the same:
 * *out says so. ERR_UNSUPPORTED: no chain is configured; ERR_INVALID: for another operator;
 * ERR_NOT_FOUND: no such channel here; ERR_FORBIDDEN: the house account's; ERR_CONFLICT: it names
 * no receipt of the channel, or another value than that receipt's channelTotal; ERR_UNAUTHORIZED:
 * another payer's channel, or not signed by the payer, which is looked at last. Waits; not from the
 * ledger thread. */
int ledger_voucher_accept(struct ledger *l, struct voucher_held *out,
                          const struct signed_voucher *v, struct err *err);

/* What a payer needs to know to sign: {"payer","operator","domain":{"chainId","verifyingContract"}
 * (Escrow: of Requests and Vouchers),"credit","owed" (by receipts that no redeemed voucher covers),
 * "answering" (maxFee of what is being answered),"channels":[{"channel","epoch","receipts","head"
 * (hash of the newest receipt),"total","redeemed","open" (the one that new Requests must name; it
 * comes first, and may have no receipt yet),"voucher":{"valueAggregate","lastReceiptHash","index",
 * "state":"held"|"waiting"|"signed"|"mined"|"confirmed"|"moot","waiting" (a sentence, or null)} or
 * null}]}, the newest 100 channels. ERR_UNSUPPORTED: no chain is configured. */
json_t *ledger_query_payer(struct ledger *l, struct address payer, struct err *err);

/* Receipt JSON, the field `tributary` of the last chunk (RFC 8785, so keys are sorted):
 *
 *   {"domain":{"chainId":n,"verifyingContract":address},
 *    "receipt":{"adapters":[{"adapterId":hex,"bps":n,"royalty":amount}],"attributionHash":hex,
 *               "channel":hex,"channelTotal":amount,"completionTokens":n,"computeFee":amount,
 *               "index":n,"modelId":hex,"operator":address,"payer":address,"prevReceiptHash":hex,
 *               "promptTokens":n,"requestHash":hex,"requestId":hex,"responseHash":hex,
 *               "royalty":amount,"timestampMs":n},
 *    "receiptHash":hex,"signature":hex of r, s, v,"signer":address}
 *
 * attributionHash = sha256 of, for each adapter of the receipt in order and each Datanet of its
 * manifest in order, 36 bytes: Datanet id (32) || bps (uint16, big-endian) || method version
 * (uint16, big-endian, 1). bps is the manifest's; the adapter's weight is in the receipt beside it.
 * No adapter, or none with Datanets: sha256 of nothing. */

/* ---- adapters and Datanets ------------------------------------------------------------------ */

/* Stores a verified manifest under its id, before any usage names it; waits for the commit. Putting
 * the same again is a success. ERR_CONFLICT: the id is known with another manifest (a broken hash).
 * manifest_text must parse (manifest.h) and hash to what the id was made of; the caller has checked
 * signature and registration. Not from the ledger thread. */
int ledger_adapter_put(struct ledger *l, struct adapter_id id, const void *manifest_text, size_t n,
                       struct err *err);
int ledger_datanet_put(struct ledger *l, struct datanet_id id, const void *manifest_text, size_t n,
                       struct err *err);

/* Marks an adapter retired (or not): ledger_adapter_by_* still find it; the caller decides. */
int ledger_adapter_retire(struct ledger *l, struct adapter_id id, struct err *err);

struct ledger_adapter { /* what the service needs to route and to price */
    struct adapter_id id;
    struct content_digest content;
    struct model_id base_model;
    struct address creator;
    char name[MANIFEST_NAME_BYTES];
    uint64_t version;
    bool retired;
    struct amount royalty_prompt_per_1k, royalty_completion_per_1k;
};
/* From memory, any thread. ERR_NOT_FOUND. By content: the first that was put. By name: version 0
 * means the highest; of several creators' adapters of one name the first that was put. */
int ledger_adapter_by_id(struct ledger *l, struct ledger_adapter *out, struct adapter_id id,
                         struct err *err);
int ledger_adapter_by_content(struct ledger *l, struct ledger_adapter *out,
                              struct content_digest content, struct err *err);
int ledger_adapter_by_name(struct ledger *l, struct ledger_adapter *out, const char *name,
                           uint64_t version, struct err *err);

/* ---- queries ------------------------------------------------------------------------------------
 *
 * Each returns a new reference, or NULL with *err. Lists are {"items":[...],"next":cursor or null};
 * a cursor is text to pass back, valid across restarts; ERR_INVALID when it is not one. */

enum { LEDGER_PAGE_MAX = 500 };

struct ledger_filter {                /* all zero: everything, from the start, 100 a page */
    const struct adapter_id *adapter; /* NULL: any */
    const struct address *creator, *payer;
    uint64_t key_tag;        /* 0: any customer */
    uint64_t from_ms, to_ms; /* half-open [from, to); to 0: no end */
    const char *cursor;      /* NULL: from the start */
    uint32_t limit;          /* 1 to LEDGER_PAGE_MAX; 0: 100 */
};

/* Totals by adapter over the filter: items {"adapterId","name","version","creator","requests",
 * "promptTokens","completionTokens","royalty","computeFee"}; adapterId null is the base model, zero
 * is adapters that are nowhere registered. A request with several adapters counts once for each,
 * its tokens with each; computeFee is shared by no one and counted with the first. "totals" beside
 * items counts every request once. */
json_t *ledger_query_usage(struct ledger *l, const struct ledger_filter *f, struct err *err);

/* Who is owed what: one item a payout leaf (operator, adapter position, Datanet), {"kind":
 * "operator"|"adapter"|"datanet","id","position","payee" (as the manifest says; the registry may
 * know a later one; null when unknown),"name","earned" (by all receipts of this chain),"sealed"
 * (in batches),"submitted" (on chain),"final" (claimable or claimed),"claimed"}. Filters: adapter,
 * creator. Local: sealed and the rest are "0". */
json_t *ledger_query_rewards(struct ledger *l, const struct ledger_filter *f, struct err *err);

/* One receipt by its hash, or by its requestId; ERR_NOT_FOUND. */
json_t *ledger_query_receipt(struct ledger *l, const uint8_t id[32], struct err *err);
/* A channel's receipts from an index on, in order. Of channels of one name on several chains it is
 * the newest that has receipts. */
json_t *ledger_query_receipts(struct ledger *l, const uint8_t channel[32], uint64_t from_index,
                              uint32_t limit, struct err *err);
/* Channels: {"channel","payer","epoch","receipts","head","total","sealed","redeemed","open"}. */
json_t *ledger_query_channels(struct ledger *l, const struct ledger_filter *f, struct err *err);

/* {"receipt":<receipt JSON>,"batch":<batch>,"position":n,"proof":[hex],"leaf":hex}; all but receipt
 * null while it isn't sealed. ERR_NOT_FOUND when the receipt isn't known. */
json_t *ledger_query_receipt_proof(struct ledger *l, const uint8_t id[32], struct err *err);

enum payout_kind { PAYOUT_OPERATOR = 0, PAYOUT_ADAPTER = 1, PAYOUT_DATANET = 2 };

/* What a claim needs: {"batch":<batch>,"payout":{"amount","id","kind":n,"position"},"proof":
 * {"index","leafCount","siblings":[{"hash","sum"}]},"splits":{"payees","bps","datanets",
 * "datanetBps"} or null (kinds other than adapter)}. From the newest final batch, or with seq >= 0
 * from that one. ERR_NOT_FOUND: no such leaf; ERR_BUSY: no final batch yet. */
json_t *ledger_query_payout_proof(struct ledger *l, enum payout_kind kind, const uint8_t id[32],
                                  uint16_t position, int64_t seq, struct err *err);

/* Batches, oldest first: {"seq","batchHash","operator","leafCount","receiptsRoot","payoutRoot",
 * "committed","periodStart","periodEnd","dataHash","prevBatchHash","signature" (null until it was
 * handed to the chain),"value","state":"sealed"|"submitted"|"confirmed"|"final","txHash",
 * "sealedMs"}. */
json_t *ledger_query_batches(struct ledger *l, const struct ledger_filter *f, struct err *err);
json_t *ledger_query_batch(struct ledger *l, uint64_t seq, struct err *err);

/* Appends the batch file whose sha256 is hash; see batch.h. ERR_NOT_FOUND. */
int ledger_batch_file(struct ledger *l, struct sha256_digest hash, struct buf *out,
                      struct err *err);

/* {"items":[{"kind":"redeem"|"submit","of","state" (as in ledger_query_payer),
 * "transactions":[{"hash","nonce","state","maxFeePerGas","block"}],"waiting" (a sentence, or null),
 * "createdMs"}],"next"}. */
json_t *ledger_query_outbox(struct ledger *l, const struct ledger_filter *f, struct err *err);

/* All adapters / Datanets that were put: facts, id, manifest hash. Filters: creator, adapter. */
json_t *ledger_query_adapters(struct ledger *l, const struct ledger_filter *f, struct err *err);
json_t *ledger_query_datanets(struct ledger *l, const struct ledger_filter *f, struct err *err);

/* ---- health --------------------------------------------------------------------------------- */

struct ledger_health {
    bool ready;       /* false when stalled for 30 s, or the database can't be written */
    char reason[256]; /* a sentence when not ready, or when something needs the operator (ready
                         stays true): the house account's escrow is short, the stake too small */
    bool chain_configured, endpoint_answers;
    uint64_t queue_len;
    uint64_t ledger_stalled_ms;    /* since the ledger thread last made progress; 0: idle or busy */
    uint64_t publisher_stalled_ms; /* since the chain last answered; 0: no publisher */
    uint64_t receipts, commit_groups, commit_errors; /* since open */
    uint64_t unsealed_receipts; /* on the configured chain; not those that their payer owes */
    uint64_t batches_sealed, batches_submitted, batches_final;
    uint64_t outbox_waiting;                  /* rows that are not confirmed */
    uint64_t outbox_oldest_ms;                /* age of the oldest of them */
    uint64_t vouchers_held;                   /* payers', that wait for funds */
    struct amount house_balance, house_short; /* Escrow: deposit left; what vouchers lack */
    bool house_known;                         /* the chain has told since open */
};
void ledger_health(struct ledger *l, struct ledger_health *out); /* any thread, no I/O */

/* ---- sealing, epochs, books ----------------------------------------------------------------- */

/* Seals what can be sealed, up to one batch, and wakes the publisher. *sealed tells the number of
 * receipts, 0 when there was nothing. ERR_UNSUPPORTED: local. Waits; not from the ledger thread. */
int ledger_seal_now(struct ledger *l, uint32_t *sealed, struct err *err);

void ledger_publisher_wake(struct ledger *l); /* look at the chain now, not at the next poll */

/* Opens a new epoch for every payer: what the guards do, at the operator's wish. */
int ledger_epoch_advance(struct ledger *l, const char *why, struct err *err);

/* Recomputes everything from the receipts (hash chains, signatures, totals, prices' sums, vouchers,
 * batches, both trees, batch files, payout totals) and compares with what is stored; with rpc also
 * with the contracts (head, committed, redeemed, claimed). 0: the books are right. ERR_CORRUPT
 * names the first difference; *report (may be NULL; new reference, set in both cases) has the
 * counts and all differences (the first 100). Works on a read_only ledger. Slow: reads all. */
int ledger_check(struct ledger *l, struct rpc *rpc, json_t **report, struct err *err);

#endif
