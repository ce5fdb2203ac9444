/* outbox: what has to happen on chain, row by row; read on any connection, written by the ledger
 * thread.
 *
 * States and tables are described in migrations.c, what moves a row in publisher.c. Every function
 * that takes a ledger writes: one transaction, waited for; not from the ledger thread. */
#ifndef TRIBUTARY_ATTRIBUTION_OUTBOX_H
#define TRIBUTARY_ATTRIBUTION_OUTBOX_H

#include "attribution/batch.h"
#include "attribution/ledger.h"
#include "attribution/voucher.h"
#include "node/base/buf.h"

enum {
    OUTBOX_ROWS_MAX = 256,  /* looked at in one round */
    OUTBOX_PAYERS_MAX = 32, /* of them, payers' vouchers at most: the rest is the house's */
};

const char *outbox_state_name(enum outbox_state state);

struct outbox_row { /* of the outbox, with what it is about */
    uint64_t id;
    enum outbox_kind kind;
    enum outbox_state state;
    struct stored_voucher voucher;
    uint64_t channel_row;
    bool superseded; /* a newer voucher of the channel waits behind it */
    struct signed_batch batch;
    char note[128];                   /* outbox.note, cut */
    bool done_latest, done_confirmed; /* what the contracts say */
};

struct outbox_tx { /* the newest transaction of a row */
    uint64_t id, nonce, gas, signed_ms, broadcast_ms;
    enum tx_state state;
    struct amount max_fee, max_priority_fee;
    struct buf raw;
};

/* The rows that are not confirmed, the oldest first, in *rows [*n] (free() it, also after failure).
 */
int outbox_load(struct db *db, uint64_t domain, struct outbox_row **rows, size_t *n,
                struct err *err);

/* The row's newest transaction that may still be mined: 1 (release out->raw), 0 none, -1. */
int outbox_load_tx(struct db *db, const struct outbox_row *o, struct outbox_tx *out,
                   struct err *err);

struct outbox_change { /* of one row */
    uint64_t row, channel_row, batch_row;
    enum outbox_state state;
    enum batch_state batch_state;
    struct amount redeemed;
    const char *note; /* NULL: clear */
    bool lose_txs, mine_tx;
    uint64_t mined_tx, block;
    uint8_t block_hash[32];
};
int outbox_apply(struct ledger *l, const struct outbox_change *change, struct err *err);

/* What a row waits for; NULL clears it. Writes only what is new. */
int outbox_note(struct ledger *l, const struct outbox_row *row, const char *note, struct err *err);

/* After a reorg all transactions of the row are candidates again, and are sent at once. */
int outbox_back_to_pool(struct ledger *l, uint64_t row, struct err *err);

struct outbox_new_tx { /* signed, not yet sent */
    uint64_t row, nonce, gas;
    const struct buf *raw;
    struct tx_hash hash;
    struct amount max_fee, max_priority_fee, worst_cost;
    uint64_t id; /* out */
};
/* Stores the bytes and makes the row SIGNED. */
int outbox_store_tx(struct ledger *l, struct outbox_new_tx *tx, struct err *err);
int outbox_mark_broadcast(struct ledger *l, uint64_t tx, struct err *err);

struct outbox_lost { /* rows that were confirmed and that the contracts no longer have */
    uint64_t next_seq;
    uint64_t vouchers[64];
    size_t n_vouchers;
};
int outbox_reopen(struct ledger *l, const struct outbox_lost *lost, struct err *err);

/* Confirmed batches with seq < count are final. */
int outbox_finish(struct ledger *l, uint64_t count, struct err *err);

struct outbox_claims {
    struct payout_set set;
    uint64_t next_block;
};
int outbox_note_claims(struct ledger *l, struct outbox_claims *claims, struct err *err);

#endif
