/* migrations: the schema of ledger.db.
 *
 * PRAGMA user_version holds the number of the last step that ran, PRAGMA application_id says that
 * the file is ours ("TRIB"). A step is never edited once released; a change is a new step.
 *
 *     domain ---< channel ---< receipt ---< receipt_adapter
 *        |            `------< voucher ---.
 *        |---< batch ---------------------+--< outbox ---< tx
 *        `---< payout                                   adapter, datanet, meta
 *
 * domain            where receipts are signed for: chain id, contracts, operator. A node that is
 * given another chain gets another domain; the old one stays. channel           one (payer, epoch):
 * the head of its hash chain and the running total. The open one of a payer is that with the
 * highest epoch. receipt           a row per signed receipt, complete: its JSON and digest are made
 * from it again. batch and position are NULL until it is sealed. voucher           payer's
 * signatures over prefixes of a channel; idx is the receipt it names. batch             with its
 * file as it is served; state: 0 sealed, 1 submitted, 2 confirmed, 3 final. payout running sums per
 * payout leaf: earned by all receipts, sealed in batches, submitted and final on chain, claimed.
 * sealed is the next batch's starting point. outbox            what has to happen on chain; kind: 1
 * redeem a voucher, 2 submit a batch; state: 0 waiting, 1 signed, 2 mined, 3 confirmed, 4 moot
 * (another one did it), 5 held (a payer's voucher that waits for funds). tx                signed
 * transactions, their bytes stored before the first broadcast; several of one outbox row share its
 * nonce (replacements). state: 0 signed, 1 broadcast, 2 mined, 3 lost (its nonce was used by
 * another transaction).
 *
 * Amounts are 16-byte BLOBs (db.h); hashes, ids and addresses BLOBs of their size; times unix
 * milliseconds. STRICT makes SQLite refuse another type in a column. */
#include "attribution/migrations.h"

#include "attribution/db.h"
#include "node/base/err.h"

#include <stdio.h>

#define APPLICATION_ID 0x54524942 /* "TRIB" */

static const char *const steps[] = {
    /* 1: the ledger */
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;"

    "CREATE TABLE domain("
    " id INTEGER PRIMARY KEY, chain_id INTEGER NOT NULL, stake_manager BLOB NOT NULL,"
    " adapter_registry BLOB NOT NULL, escrow BLOB NOT NULL, attribution_ledger BLOB NOT NULL,"
    " operator BLOB NOT NULL, claims_block INTEGER NOT NULL DEFAULT 0,"
    " UNIQUE(chain_id, attribution_ledger, escrow, operator)) STRICT;"

    "CREATE TABLE channel("
    " id INTEGER PRIMARY KEY, domain INTEGER NOT NULL REFERENCES domain, hash BLOB NOT NULL,"
    " payer BLOB NOT NULL, epoch INTEGER NOT NULL, next_index INTEGER NOT NULL,"
    " head BLOB NOT NULL, total BLOB NOT NULL, sealed_index INTEGER NOT NULL DEFAULT 0,"
    " redeemed BLOB NOT NULL, opened_ms INTEGER NOT NULL, why TEXT NOT NULL,"
    " UNIQUE(domain, payer, epoch), UNIQUE(domain, hash)) STRICT;"

    "CREATE TABLE receipt("
    " id INTEGER PRIMARY KEY, channel INTEGER NOT NULL REFERENCES channel, idx INTEGER NOT NULL,"
    " hash BLOB NOT NULL UNIQUE, request_id BLOB NOT NULL UNIQUE, prev_hash BLOB NOT NULL,"
    " model BLOB NOT NULL, tokens_prompt INTEGER NOT NULL, tokens_completion INTEGER NOT NULL,"
    " compute_fee BLOB NOT NULL, royalty BLOB NOT NULL, channel_total BLOB NOT NULL,"
    " timestamp_ms INTEGER NOT NULL, request_hash BLOB NOT NULL, response_hash BLOB NOT NULL,"
    " attribution_hash BLOB NOT NULL, signature BLOB NOT NULL, signer BLOB NOT NULL,"
    " key_tag BLOB NOT NULL, stored_ms INTEGER NOT NULL,"
    " batch INTEGER REFERENCES batch, position INTEGER,"
    " UNIQUE(channel, idx), UNIQUE(batch, position)) STRICT;"
    "CREATE INDEX receipt_by_time ON receipt(timestamp_ms);"
    "CREATE INDEX receipt_unsealed ON receipt(channel, idx) WHERE batch IS NULL;"

    "CREATE TABLE receipt_adapter("
    " receipt INTEGER NOT NULL REFERENCES receipt, ord INTEGER NOT NULL, adapter BLOB NOT NULL,"
    " content BLOB NOT NULL, bps INTEGER NOT NULL, royalty BLOB NOT NULL,"
    " PRIMARY KEY(receipt, ord)) STRICT, WITHOUT ROWID;"
    "CREATE INDEX receipt_by_adapter ON receipt_adapter(adapter, receipt);"

    "CREATE TABLE adapter("
    " seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, manifest_hash BLOB NOT NULL,"
    " creator BLOB NOT NULL, manifest BLOB NOT NULL, retired INTEGER NOT NULL DEFAULT 0,"
    " put_ms INTEGER NOT NULL) STRICT;"

    "CREATE TABLE datanet("
    " seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, manifest_hash BLOB NOT NULL,"
    " owner BLOB NOT NULL, payee BLOB NOT NULL, name TEXT NOT NULL, manifest BLOB NOT NULL,"
    " put_ms INTEGER NOT NULL) STRICT;"

    "CREATE TABLE voucher("
    " id INTEGER PRIMARY KEY, channel INTEGER NOT NULL REFERENCES channel, idx INTEGER NOT NULL,"
    " timestamp_ms INTEGER NOT NULL, value BLOB NOT NULL, last_receipt_hash BLOB NOT NULL,"
    " signature BLOB NOT NULL, UNIQUE(channel, idx)) STRICT;"

    "CREATE TABLE batch("
    " id INTEGER PRIMARY KEY, domain INTEGER NOT NULL REFERENCES domain, seq INTEGER NOT NULL,"
    " hash BLOB NOT NULL UNIQUE, leaf_count INTEGER NOT NULL, receipts_root BLOB NOT NULL,"
    " payout_root BLOB NOT NULL, committed BLOB NOT NULL, value BLOB NOT NULL,"
    " period_start INTEGER NOT NULL, period_end INTEGER NOT NULL, data_hash BLOB NOT NULL UNIQUE,"
    " prev_hash BLOB NOT NULL, signature BLOB NOT NULL, file BLOB NOT NULL,"
    " sealed_ms INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0,"
    " UNIQUE(domain, seq)) STRICT;"
    "CREATE INDEX batch_open ON batch(domain, seq) WHERE state < 3;"

    "CREATE TABLE payout("
    " domain INTEGER NOT NULL REFERENCES domain, kind INTEGER NOT NULL, id BLOB NOT NULL,"
    " position INTEGER NOT NULL, earned BLOB NOT NULL, sealed BLOB NOT NULL,"
    " submitted BLOB NOT NULL, final BLOB NOT NULL, claimed BLOB NOT NULL,"
    " PRIMARY KEY(domain, kind, id, position)) STRICT, WITHOUT ROWID;"

    "CREATE TABLE outbox("
    " id INTEGER PRIMARY KEY, domain INTEGER NOT NULL REFERENCES domain, kind INTEGER NOT NULL,"
    " voucher INTEGER REFERENCES voucher, batch INTEGER REFERENCES batch,"
    " state INTEGER NOT NULL DEFAULT 0, created_ms INTEGER NOT NULL, note TEXT,"
    " CHECK((kind = 1 AND voucher IS NOT NULL) OR (kind = 2 AND batch IS NOT NULL)),"
    " UNIQUE(voucher), UNIQUE(batch)) STRICT;"
    "CREATE INDEX outbox_open ON outbox(domain, id) WHERE state < 3;"

    "CREATE TABLE tx("
    " id INTEGER PRIMARY KEY, outbox INTEGER NOT NULL REFERENCES outbox, nonce INTEGER NOT NULL,"
    " hash BLOB NOT NULL UNIQUE, raw BLOB NOT NULL, gas INTEGER NOT NULL,"
    " max_fee BLOB NOT NULL, max_priority_fee BLOB NOT NULL, worst_cost BLOB NOT NULL,"
    " signed_ms INTEGER NOT NULL, broadcast_ms INTEGER, state INTEGER NOT NULL DEFAULT 0,"
    " block INTEGER, block_hash BLOB, succeeded INTEGER) STRICT;"
    "CREATE INDEX tx_of_outbox ON tx(outbox);"
    "CREATE INDEX tx_recent ON tx(signed_ms);",

    /* 2: payers' vouchers */
    "CREATE INDEX outbox_held ON outbox(domain, id) WHERE state = 5;",
};

uint32_t migrations_newest(void)
{
    return (uint32_t)(sizeof(steps) / sizeof(*steps));
}

static int pragma(struct db *db, const char *sql, uint64_t *out, struct err *err)
{
    struct db_stmt *s = db_stmt(db, sql);
    int rc = db_step(s, err);
    *out = rc == 1 ? db_get_u64(s) : 0;
    db_end(s);
    return rc < 0 ? -1 : 0;
}

/* What the file is: *version 0 means new and empty. */
static int identify(struct db *db, uint64_t *version, struct err *err)
{
    uint64_t application, tables;
    if (pragma(db, "PRAGMA user_version", version, err) != 0 ||
        pragma(db, "PRAGMA application_id", &application, err) != 0 ||
        pragma(db, "SELECT count(*) FROM sqlite_schema", &tables, err) != 0)
        return -1;
    if (*version == 0 && application == 0 && tables == 0)
        return 0;
    if (application != APPLICATION_ID)
        return err_set(err, ERR_CORRUPT, "the database is not a Tributary ledger");
    if (*version > migrations_newest())
        return err_set(err, ERR_UNSUPPORTED,
                       "the ledger has schema %llu, this program knows up to %u; use the newer one",
                       (unsigned long long)*version, migrations_newest());
    return 0;
}

int migrations_run(struct db *db, struct err *err)
{
    uint64_t version;
    if (identify(db, &version, err) != 0)
        return -1;
    for (; version < migrations_newest(); version++) {
        char mark[96];
        snprintf(mark, sizeof(mark), "PRAGMA application_id=%d; PRAGMA user_version=%llu;",
                 APPLICATION_ID, (unsigned long long)version + 1);
        if (db_begin(db, err) != 0)
            return -1;
        if (db_exec(db, steps[version], err) != 0 || db_exec(db, mark, err) != 0) {
            db_rollback(db);
            return err_wrap(err, "migration %llu", (unsigned long long)version + 1);
        }
        if (db_commit(db, err) != 0)
            return -1;
    }
    return 0;
}

int migrations_check(struct db *db, struct err *err)
{
    uint64_t version;
    if (identify(db, &version, err) != 0)
        return -1;
    if (version != migrations_newest())
        return err_set(err, ERR_UNSUPPORTED,
                       "the ledger has schema %llu, this program wants %u; start the node once to "
                       "bring it up to date",
                       (unsigned long long)version, migrations_newest());
    return 0;
}
