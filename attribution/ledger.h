/* ledger: the inside of struct ledger, for the files of this room.
 *
 * Who may touch what:
 *   L  the ledger thread only (and ledger_open, ledger_close when the thread does not run)
 *   C  constant after ledger_open; any thread
 *   M  under health_lock
 *   A  atomic or with a lock of its own; any thread */
#ifndef TRIBUTARY_ATTRIBUTION_LEDGER_H
#define TRIBUTARY_ATTRIBUTION_LEDGER_H

#include "attribution/adapter_table.h"
#include "attribution/attribution.h"
#include "attribution/db.h"
#include "node/base/clock.h"

#include <pthread.h>
#include <stdatomic.h>

struct generation;
struct publisher;
struct queue;

/* The states of the database's rows (migrations.c). */
enum batch_state { BATCH_SEALED = 0, BATCH_SUBMITTED = 1, BATCH_CONFIRMED = 2, BATCH_FINAL = 3 };
enum outbox_kind { OUTBOX_REDEEM = 1, OUTBOX_SUBMIT = 2 };
enum outbox_state {
    OUTBOX_WAITING = 0,
    OUTBOX_SIGNED = 1,
    OUTBOX_MINED = 2,
    OUTBOX_CONFIRMED = 3,
    OUTBOX_MOOT = 4,
    OUTBOX_HELD = 5, /* a payer's voucher, before it is let in: held.c */
};
enum tx_state { TX_SIGNED = 0, TX_BROADCAST = 1, TX_MINED = 2, TX_LOST = 3 };

struct channel_state { /* the open channel of a payer, as the database has it */
    uint64_t row;
    struct channel_id hash;
    struct address payer;
    uint64_t epoch, next_index;
    uint8_t head[32]; /* hash of the newest receipt; zero when there is none */
    struct amount total;
};

/* What the chain said last; posted by the publisher. */
struct chain_facts {
    bool known;
    uint64_t batches_seen;       /* batches in the database when the chain was asked */
    struct amount house_balance; /* Escrow account of (house, operator) */
    struct amount house_owed;    /* house vouchers not yet redeemed */
    struct amount active_stake;
};

struct ledger {
    struct ledger_options opt;                      /* C: strings owned by the ledger */
    char *data_dir, *signer_key, *house_key;        /* C */
    struct address operator_address, signer, house; /* C */
    uint64_t domain; /* C: row of the domain that receipts are signed for */
    bool has_chain;  /* C */

    struct db *db;                 /* L: the one write connection */
    struct generation *generation; /* L */
    int lock_fd;
    uint64_t commit_counter;                        /* L: of the last committed group */
    struct channel_state house_channel;             /* L */
    struct chain_facts facts;                       /* L */
    uint64_t unsealed_receipts, unsealed_oldest_ms; /* L: of this domain, that can be sealed */
    struct amount unsealed_value;                   /* L */
    uint64_t batches;                               /* L: of this domain */
    uint64_t seal_retry_us; /* L: monotonic; before it a fruitless seal isn't tried again */

    struct adapter_table *adapters; /* A */
    struct queue *queue;            /* A: struct job * */
    pthread_t thread;
    bool thread_runs;
    _Atomic uint64_t busy_since_us; /* A: 0: idle */
    struct publisher *publisher;    /* C: NULL: none */

    _Atomic uint64_t payer_epoch; /* A: of the first channel of a payer who is new */
    pthread_mutex_t requests_lock;
    struct open_request *requests; /* A: payers' Requests that are being answered (request.c) */

    pthread_mutex_t readers_lock;
    struct db **readers; /* A: idle read connections */
    size_t n_readers, readers_cap;

    pthread_mutex_t health_lock;
    struct ledger_health health;         /* M: counters and facts; ledger_health adds ages */
    bool writable;                       /* M */
    char write_error[ERR_MESSAGE_BYTES]; /* M */
};

/* ---- work for the ledger thread ------------------------------------------------------------- */

/* Runs inside a transaction of its own; -1 rolls back. */
typedef int ledger_task(struct ledger *l, void *context, struct err *err);

/* Queues a task and waits until it is committed. changes_channels: the open channels are read again
 * afterwards. Not from the ledger thread. */
int ledger_run(struct ledger *l, ledger_task *task, void *context, struct err *err);

/* As ledger_run for a task that writes nothing: no transaction, no fsync. */
int ledger_tell(struct ledger *l, ledger_task *task, void *context, struct err *err);

/* A read connection, given back by ledger_reader_done. */
struct db *ledger_reader(struct ledger *l, struct err *err);
void ledger_reader_done(struct ledger *l, struct db *db);

/* A column of 65 bytes r, s, v; what can't be a signature becomes zeros, which nothing verifies. */
void ledger_get_signature(struct db_stmt *s, struct signature *out);

/* ---- inside the ledger thread --------------------------------------------------------------- */

/* On any connection. ERR_NOT_FOUND: the payer has none. */
int ledger_load_channel(struct ledger *l, struct db *db, struct channel_state *out,
                        struct address payer, struct err *err);
/* The number of an epoch that begins now: unix milliseconds, then ten random bits; below 2^53. */
enum { EPOCH_RANDOM_BITS = 10 };
uint64_t ledger_epoch_now(void);
/* Opens channels with a fresh epoch for every payer of every domain (in a transaction). */
int ledger_fresh_epochs(struct ledger *l, const char *why, struct err *err);
int ledger_open_channel(struct ledger *l, uint64_t domain, struct address operator_address,
                        struct address payer, uint64_t epoch, const char *why, struct err *err);
/* COMMIT with its fsync, the counter included; rolled back when it fails. */
int ledger_commit_counted(struct ledger *l, struct err *err);
/* The channel of a new payer that is to be, with its row 0. */
void ledger_new_channel(const struct ledger *l, struct channel_state *out, struct address payer);
void *ledger_main(void *ledger); /* the thread */
/* Reads the counters of unsealed receipts and batches again. */
int ledger_count(struct ledger *l, struct err *err);

#endif
