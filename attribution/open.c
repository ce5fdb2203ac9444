/* open: a ledger's beginning and end, its readers, its health.
 *
 * What opening does, in order: options, the lock (one writer), the database and its migrations; who
 * the database is and whether it was restored (generation.h); the domain that receipts are signed
 * for; fresh epochs if there is doubt; the house account's channel; adapters into memory; then the
 * threads. All that writes is one transaction, committed like any group, so a crash in the middle
 * of a first start leaves nothing or all.
 *
 * Readers are kept in a pool: a connection costs a millisecond to open, a query much less. */
#include "attribution/adapter_table.h"
#include "attribution/attribution.h"
#include "attribution/generation.h"
#include "attribution/ledger.h"
#include "attribution/migrations.h"
#include "attribution/publisher.h"
#include "attribution/request.h"
#include "node/base/buf.h"
#include "node/base/log.h"
#include "node/base/queue.h"
#include "wallet/wallet.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

enum {
    QUEUE_DEFAULT = 4096,
    GROUP_DEFAULT = 512,
    SEAL_RECEIPTS_DEFAULT = 1000,
    SEAL_RECEIPTS_MAX = 20000,
    SEAL_AGE_DEFAULT_MS = 600 * 1000,
    STALL_MS = 30 * 1000, /* DESIGN 10: not ready within 30 s of a stall */
    CONFIRMATIONS_DEFAULT = 12,
    POLL_DEFAULT_MS = 2000,
    REPLACE_DEFAULT_MS = 60 * 1000,
};

/* ---- readers and health --------------------------------------------------------------------- */

static char *path_in(const struct ledger *l, const char *name)
{
    return xasprintf("%s/%s", l->data_dir, name);
}

struct db *ledger_reader(struct ledger *l, struct err *err)
{
    struct db *db = NULL;
    pthread_mutex_lock(&l->readers_lock);
    if (l->n_readers > 0)
        db = l->readers[--l->n_readers];
    pthread_mutex_unlock(&l->readers_lock);
    if (!db) {
        char *path = path_in(l, "ledger.db");
        db = db_open(path, DB_READER, err);
        free(path);
    }
    if (db && db_begin(db, err) != 0) { /* one snapshot for all of a query's reads */
        db_close(db);
        db = NULL;
    }
    return db;
}

void ledger_reader_done(struct ledger *l, struct db *db)
{
    if (!db)
        return;
    db_rollback(db);
    pthread_mutex_lock(&l->readers_lock);
    if (l->n_readers == l->readers_cap) {
        l->readers_cap = l->readers_cap ? 2 * l->readers_cap : 4;
        l->readers = xrealloc_array(l->readers, l->readers_cap, sizeof(struct db *));
    }
    l->readers[l->n_readers++] = db;
    pthread_mutex_unlock(&l->readers_lock);
}

void ledger_health(struct ledger *l, struct ledger_health *out)
{
    uint64_t now_ms = clock_unix_ms().ms, since_us = atomic_load(&l->busy_since_us);
    bool writable;
    char write_error[200];
    pthread_mutex_lock(&l->health_lock);
    *out = l->health;
    writable = l->writable;
    snprintf(write_error, sizeof(write_error), "%.190s", l->write_error);
    pthread_mutex_unlock(&l->health_lock);
    out->chain_configured = l->has_chain;
    out->queue_len = l->queue ? queue_len(l->queue) : 0;
    out->outbox_oldest_ms = out->outbox_waiting && now_ms > out->outbox_oldest_ms
                                ? now_ms - out->outbox_oldest_ms
                                : 0;
    if (since_us) {
        struct monotonic_us since = {since_us};
        out->ledger_stalled_ms = clock_elapsed_us(since, clock_monotonic_us()) / 1000;
    }
    if (l->publisher)
        out->publisher_stalled_ms = publisher_silent_ms(l->publisher);
    out->ready = true;
    if (!writable) {
        out->ready = false;
        snprintf(out->reason, sizeof(out->reason), "the ledger can't write: %s", write_error);
    } else if (out->ledger_stalled_ms >= STALL_MS) {
        out->ready = false;
        snprintf(out->reason, sizeof(out->reason), "the ledger thread is stuck for %llu s",
                 (unsigned long long)out->ledger_stalled_ms / 1000);
    } else if (l->publisher && publisher_is_stuck(l->publisher, STALL_MS)) {
        out->ready = false;
        snprintf(out->reason, sizeof(out->reason), "the publisher thread is stuck");
    }
}

/* ---- open and close ------------------------------------------------------------------------- */

struct address ledger_operator(const struct ledger *l)
{
    return l->operator_address;
}

struct address ledger_signer(const struct ledger *l)
{
    return l->signer;
}

struct address ledger_house(const struct ledger *l)
{
    return l->house;
}

struct ledger_chain ledger_chain_of(const struct ledger *l)
{
    return l->opt.chain;
}

static int check_chain(const struct ledger_chain *c, bool *has_chain, struct err *err)
{
    int zeros = address_is_zero(c->stake_manager) + address_is_zero(c->adapter_registry) +
                address_is_zero(c->escrow) + address_is_zero(c->attribution_ledger);
    *has_chain = c->chain_id != 0;
    if (c->chain_id == 0 ? zeros != 4 : zeros != 0)
        return err_set(err, ERR_INVALID,
                       "a chain needs its id and all four contract addresses, or none of them");
    if (c->chain_id > (uint64_t)1 << 53)
        return err_set(err, ERR_INVALID, "chain id %llu is above 2^53",
                       (unsigned long long)c->chain_id);
    return 0;
}

static void default_u64(uint64_t *value, uint64_t fallback)
{
    if (*value == 0)
        *value = fallback;
}

static int take_options(struct ledger *l, const struct ledger_options *opt, struct err *err)
{
    l->opt = *opt;
    l->data_dir = xstrdup(opt->data_dir);
    l->signer_key = xstrdup(opt->signer_key ? opt->signer_key : "signer");
    l->house_key = xstrdup(opt->house_key ? opt->house_key : "house");
    l->operator_address = opt->operator_address;
    struct ledger_options *o = &l->opt;
    if (o->queue_capacity == 0)
        o->queue_capacity = QUEUE_DEFAULT;
    if (o->group_max == 0)
        o->group_max = GROUP_DEFAULT;
    if (o->seal.max_receipts == 0)
        o->seal.max_receipts = SEAL_RECEIPTS_DEFAULT;
    if (o->seal.max_receipts > SEAL_RECEIPTS_MAX)
        return err_set(err, ERR_INVALID, "a batch has at most %d receipts, %u were asked for",
                       (int)SEAL_RECEIPTS_MAX, o->seal.max_receipts);
    default_u64(&o->seal.max_age_ms, SEAL_AGE_DEFAULT_MS);
    if (amount_is_zero(o->seal.max_value))
        o->seal.max_value = AMOUNT_MAX;
    if (o->publish.confirmations == 0)
        o->publish.confirmations = CONFIRMATIONS_DEFAULT;
    default_u64(&o->publish.poll_ms, POLL_DEFAULT_MS);
    default_u64(&o->publish.replace_after_ms, REPLACE_DEFAULT_MS);
    if (amount_is_zero(o->publish.max_fee_per_gas))
        o->publish.max_fee_per_gas = amount_of(500000000000u); /* 500 gwei */
    if (amount_is_zero(o->publish.max_spend_per_day))
        o->publish.max_spend_per_day = amount_of(1000000000000000000u);
    if (check_chain(&o->chain, &l->has_chain, err) != 0)
        return -1;
    if (opt->read_only)
        return 0;
    if (!opt->wallet)
        return err_set(err, ERR_INVALID, "a ledger that writes needs a wallet");
    if (wallet_key_address(opt->wallet, l->signer_key, &l->signer, err) != 0 ||
        wallet_key_address(opt->wallet, l->house_key, &l->house, err) != 0)
        return -1;
    if (address_is_zero(l->operator_address))
        l->operator_address = l->signer;
    return 0;
}

static int take_lock(struct ledger *l, struct err *err)
{
    char *path = path_in(l, "ledger.lock");
    int rc = 0;
    l->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (l->lock_fd < 0)
        rc = err_set_errno(err, errno, "%s", path);
    else if (flock(l->lock_fd, LOCK_EX | LOCK_NB) != 0)
        rc = err_set(err, ERR_CONFLICT, "%s: another process has this ledger open", l->data_dir);
    free(path);
    return rc;
}

/* The row of the domain, made when it is new. */
static int find_domain(struct ledger *l, bool *is_new, struct err *err)
{
    const struct ledger_chain *c = &l->opt.chain;
    struct db_stmt *s = db_stmt(l->db, "SELECT id FROM domain WHERE chain_id = ? AND "
                                       "attribution_ledger = ? AND escrow = ? AND operator = ?");
    db_put_u64(s, c->chain_id);
    db_put_blob(s, c->attribution_ledger.bytes, 20);
    db_put_blob(s, c->escrow.bytes, 20);
    db_put_blob(s, l->operator_address.bytes, 20);
    int row = db_step(s, err);
    if (row == 1)
        l->domain = db_get_u64(s);
    db_end(s);
    *is_new = row == 0;
    if (row != 0)
        return row < 0 ? -1 : 0;
    s = db_stmt(l->db, "INSERT INTO domain(chain_id, stake_manager, adapter_registry, escrow, "
                       "attribution_ledger, operator) VALUES(?, ?, ?, ?, ?, ?)");
    db_put_u64(s, c->chain_id);
    db_put_blob(s, c->stake_manager.bytes, 20);
    db_put_blob(s, c->adapter_registry.bytes, 20);
    db_put_blob(s, c->escrow.bytes, 20);
    db_put_blob(s, c->attribution_ledger.bytes, 20);
    db_put_blob(s, l->operator_address.bytes, 20);
    if (db_run(s, err) != 0)
        return -1;
    l->domain = db_last_rowid(l->db);
    return 0;
}

static int load_adapters(struct ledger *l, struct db *db, struct err *err)
{
    struct db_stmt *s = db_stmt(db, "SELECT id, manifest, retired FROM adapter ORDER BY seq");
    struct buf manifest = BUF_INIT;
    int row, rc = 0;
    while (rc == 0 && (row = db_step(s, err)) != 0) {
        struct adapter_id id = {{0}};
        if (row < 0) {
            rc = -1;
            break;
        }
        buf_reset(&manifest);
        db_get_blob(s, id.bytes, 32);
        db_get_bytes(s, &manifest);
        bool retired = db_get_u64(s) != 0;
        rc = adapter_table_put(l->adapters, id, manifest.data, manifest.len, retired, err);
    }
    db_end(s);
    buf_release(&manifest);
    return rc;
}

/* Who this ledger is: a random name, and how many groups it has committed. */
static int load_identity(struct ledger *l, uint8_t id[16], struct err *err)
{
    struct db_stmt *s = db_stmt(l->db, "SELECT value FROM meta WHERE key = ?");
    db_put_text(s, "ledger_id");
    int row = db_step(s, err);
    if (row == 1)
        db_get_blob(s, id, 16);
    if (db_end_checked(s, err) != 0 || row < 0)
        return -1;
    if (row == 0) {
        if (getrandom(id, 16, 0) != 16)
            return err_set(err, ERR_IO, "no random numbers: %s", strerror(errno));
        s = db_stmt(l->db, "INSERT INTO meta(key, value) VALUES('ledger_id', ?)");
        db_put_blob(s, id, 16);
        if (db_run(s, err) != 0)
            return -1;
    }
    s = db_stmt(l->db, "SELECT value FROM meta WHERE key = 'counter'");
    row = db_step(s, err);
    if (row == 1)
        l->commit_counter = (uint64_t)db_get_amount(s).units;
    return db_end_checked(s, err) != 0 || row < 0 ? -1 : 0;
}

/* The epoch of a payer's first channel in a new domain: 0, unless there may have been a life before
 * that this database doesn't remember (guard 3 of attribution.h). Fails when the question is broken
 * off: whoever is told to end is not to decide it. */
static int first_epoch(struct ledger *l, uint64_t *epoch, const char **why, struct err *err)
{
    struct err problem = {0};
    bool used = false;
    *why = "first";
    *epoch = 0;
    if (!l->has_chain)
        return 0;
    if (!l->opt.rpc || publisher_chain_remembers(l, &used, &problem) != 0)
        *why = "the chain could not be asked whether this operator was here before";
    else if (used)
        *why = "the chain has vouchers or batches of this operator that this database doesn't know";
    else
        return 0;
    if (problem.code == ERR_CANCELLED) {
        *err = problem;
        return -1;
    }
    log_warn("ledger", "starting with a fresh epoch: %s%s%s", *why, problem.message[0] ? ": " : "",
             problem.message);
    *epoch = ledger_epoch_now();
    return 0;
}

/* Every restoration leaves epochs above 0. Such a database doesn't know all the accounts and
 * domains it had. */
static int was_restored(struct ledger *l, bool *out, struct err *err)
{
    struct db_stmt *s = db_stmt(l->db, "SELECT 1 FROM channel WHERE epoch > 0 LIMIT 1");
    int row = db_step(s, err);
    *out = row == 1;
    return db_end_checked(s, err) != 0 || row < 0 ? -1 : 0;
}

static int prepare_database(struct ledger *l, struct err *err)
{
    uint8_t id[16];
    enum generation_verdict verdict;
    const char *why;
    bool is_new;
    if (migrations_run(l->db, err) != 0 || db_begin(l->db, err) != 0)
        return -1;
    char *path = path_in(l, "ledger.generation");
    int rc = load_identity(l, id, err);
    if (rc == 0) {
        l->generation = generation_open(path, id, l->commit_counter, &verdict, &why, err);
        rc = l->generation ? 0 : -1;
    }
    if (rc == 0 && verdict == GENERATION_NEW)
        rc = generation_advance(l->generation, 0, err);
    free(path);
    if (rc == 0)
        rc = find_domain(l, &is_new, err);
    if (rc == 0 && verdict == GENERATION_RESTORED) {
        if (generation_counter(l->generation) > l->commit_counter)
            l->commit_counter = generation_counter(l->generation);
        rc = ledger_fresh_epochs(l, why, err);
    }
    struct err none;
    if (rc == 0 && ledger_load_channel(l, l->db, &l->house_channel, l->house, &none) != 0) {
        uint64_t epoch = 0;
        bool restored = verdict == GENERATION_RESTORED;
        why = "first";
        if (none.code != ERR_NOT_FOUND) {
            if (err)
                *err = none;
            rc = -1;
        } else if (!restored && was_restored(l, &restored, err) != 0) {
            rc = -1;
        } else if (restored) {
            epoch = ledger_epoch_now();
            why = "the database was restored";
        } else if (is_new) {
            rc = first_epoch(l, &epoch, &why, err);
        }
        if (rc == 0)
            rc = ledger_open_channel(l, l->domain, l->operator_address, l->house, epoch, why, err);
    }
    bool doubtful = false; /* payers who are new may have been here before, too */
    if (rc == 0)
        rc = was_restored(l, &doubtful, err);
    if (doubtful)
        atomic_store(&l->payer_epoch, ledger_epoch_now());
    if (rc != 0) {
        db_rollback(l->db);
        return -1;
    }
    if (ledger_commit_counted(l, err) != 0 ||
        generation_advance(l->generation, l->commit_counter, err) != 0)
        return -1;
    if (load_adapters(l, l->db, err) != 0 ||
        ledger_load_channel(l, l->db, &l->house_channel, l->house, err) != 0)
        return -1;
    return ledger_count(l, err);
}

/* A reader takes the domain of its options, or the newest there is. */
static int prepare_reader(struct ledger *l, struct err *err)
{
    struct db *db = ledger_reader(l, err);
    if (!db)
        return -1;
    int rc = migrations_check(db, err);
    if (rc == 0) {
        struct db_stmt *s = db_stmt(
            db, "SELECT id, chain_id, stake_manager, adapter_registry, escrow, "
                "attribution_ledger, operator FROM domain WHERE ? = 0 OR (chain_id = ? AND "
                "attribution_ledger = ?) ORDER BY id DESC LIMIT 1");
        db_put_u64(s, l->opt.chain.chain_id);
        db_put_u64(s, l->opt.chain.chain_id);
        db_put_blob(s, l->opt.chain.attribution_ledger.bytes, 20);
        int row = db_step(s, err);
        if (row == 1) {
            l->domain = db_get_u64(s);
            l->opt.chain.chain_id = db_get_u64(s);
            db_get_blob(s, l->opt.chain.stake_manager.bytes, 20);
            db_get_blob(s, l->opt.chain.adapter_registry.bytes, 20);
            db_get_blob(s, l->opt.chain.escrow.bytes, 20);
            db_get_blob(s, l->opt.chain.attribution_ledger.bytes, 20);
            db_get_blob(s, l->operator_address.bytes, 20);
            l->has_chain = l->opt.chain.chain_id != 0;
        }
        rc = db_end_checked(s, err);
        if (row < 0)
            rc = -1;
        if (row == 0)
            rc = err_set(err, ERR_NOT_FOUND, "%s: the ledger has nothing on chain %llu",
                         l->data_dir, (unsigned long long)l->opt.chain.chain_id);
    }
    if (rc == 0)
        rc = load_adapters(l, db, err);
    ledger_reader_done(l, db);
    return rc;
}

struct ledger *ledger_open(const struct ledger_options *opt, struct err *err)
{
    struct ledger *l = xcalloc(1, sizeof(*l));
    l->lock_fd = -1;
    l->writable = true;
    l->adapters = adapter_table_create();
    BUG_IF(pthread_mutex_init(&l->readers_lock, NULL) != 0);
    BUG_IF(pthread_mutex_init(&l->health_lock, NULL) != 0);
    BUG_IF(pthread_mutex_init(&l->requests_lock, NULL) != 0);
    int rc = take_options(l, opt, err);
    if (rc == 0 && opt->read_only) {
        rc = prepare_reader(l, err);
    } else if (rc == 0) {
        char *path = path_in(l, "ledger.db");
        rc = dir_ensure(l->data_dir, err);
        if (rc == 0)
            rc = take_lock(l, err);
        if (rc == 0 && !(l->db = db_open(path, DB_WRITER, err)))
            rc = -1;
        if (rc == 0)
            rc = prepare_database(l, err);
        if (rc == 0) {
            l->queue = queue_create(l->opt.queue_capacity);
            int failed = pthread_create(&l->thread, NULL, ledger_main, l);
            if (failed)
                rc = err_set_errno(err, failed, "starting the ledger thread");
            l->thread_runs = !failed;
        }
        if (rc == 0 && l->has_chain && l->opt.rpc) {
            l->publisher = publisher_open(l, err);
            rc = l->publisher ? 0 : -1;
        }
        free(path);
    }
    if (rc == 0)
        return l;
    err_wrap(err, "ledger %s", opt->data_dir);
    ledger_close(l);
    return NULL;
}

void ledger_close(struct ledger *l)
{
    if (!l)
        return;
    publisher_stop(l->publisher); /* first: it writes through the ledger thread */
    if (l->queue)
        queue_close(l->queue);
    if (l->thread_runs)
        pthread_join(l->thread, NULL);
    publisher_free(l->publisher); /* last: the ledger thread wakes it when it has sealed */
    if (l->queue)
        queue_free(l->queue);
    for (size_t i = 0; i < l->n_readers; i++)
        db_close(l->readers[i]);
    free(l->readers);
    generation_close(l->generation);
    db_close(l->db);
    if (l->lock_fd >= 0)
        close(l->lock_fd);
    adapter_table_free(l->adapters);
    pthread_mutex_destroy(&l->readers_lock);
    pthread_mutex_destroy(&l->health_lock);
    requests_release(l);
    pthread_mutex_destroy(&l->requests_lock);
    free(l->data_dir);
    free(l->signer_key);
    free(l->house_key);
    free(l);
}
