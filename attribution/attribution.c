/* attribution: the ledger thread, and what runs on it: commits and tasks.
 *
 *     any thread                 ledger thread                          disk
 *     ledger_commit --queue-->   take what is there, up to group_max
 *                                BEGIN IMMEDIATE
 *                                for each: price is known, extend the
 *                                  hash chain, sign, insert
 *                                COMMIT ------------------------------> one fsync (WAL)
 *                                advance ledger.generation -----------> one fdatasync
 *                                done(receipt) for each
 *
 * Group commit: while one group is being written, the next one gathers in the queue, so the number
 * of fsyncs follows the disk's speed and not the number of requests.
 *
 * A commit is checked and priced on the caller's thread, where it can still be refused. What can
 * go wrong in the group is then either its own request_id (that job alone fails, having written
 * nothing) or the database (the whole group is rolled back, every job gets the error, and the
 * in-memory channel is put back to where it was). Between the two fsyncs receipts are on disk that
 * nobody has seen; a crash there leaves them as the channel's newest links, which is right.
 *
 * Tasks (adapters, sealing, what the publisher writes) run between groups, each in a transaction of
 * its own, and their callers wait. A crash at any point leaves whole groups and whole tasks.
 *
 * Fault points: commit.before, commit.after, generation.after (and batch.c, publisher.c). */
#include "attribution/attribution.h"

#include "attribution/batch.h"
#include "attribution/generation.h"
#include "attribution/ledger.h"
#include "attribution/meter.h"
#include "attribution/migrations.h"
#include "attribution/publisher.h"
#include "attribution/receipt.h"
#include "attribution/request.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/fault.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/queue.h"
#include "node/base/random.h"
#include "node/base/sha256.h"
#include "wallet/wallet.h"

#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

#define TIME_MAX_MS                                                                 \
    ((uint64_t)253402300800000)    /* the end of 9999; JSON and SQL hold it exactly \
                                    */
enum { IDLE_WAIT_US = 50 * 1000 }; /* the thread waits so long for work, then looks around */

struct job {
    enum { JOB_COMMIT, JOB_TASK } kind;
    /* JOB_COMMIT */
    struct usage usage;
    struct ledger_price price;
    struct open_request payer; /* who pays, when the house doesn't */
    bool has_payer;
    ledger_done *done;
    void *context;
    struct signed_receipt result;
    /* JOB_TASK: lies on the waiting caller's stack */
    ledger_task *task;
    bool writes_nothing;
    sem_t finished;
    /* both */
    bool failed;
    struct err err;
};

void ledger_get_signature(struct db_stmt *s, struct signature *out)
{
    uint8_t bytes[SIGNATURE_BYTES];
    db_get_blob(s, bytes, sizeof(bytes));
    if (signature_from_bytes(out, bytes) != 0)
        memset(out, 0, sizeof(*out));
}

/* ---- channels ------------------------------------------------------------------------------- */

int ledger_load_channel(struct ledger *l, struct db *db, struct channel_state *out,
                        struct address payer, struct err *err)
{
    struct db_stmt *s = db_stmt(
        db, "SELECT id, hash, payer, epoch, next_index, head, total FROM channel "
            "WHERE domain = ? AND payer = ? ORDER BY epoch DESC LIMIT 1");
    db_put_u64(s, l->domain);
    db_put_blob(s, payer.bytes, 20);
    int row = db_step(s, err);
    if (row == 1) {
        out->row = db_get_u64(s);
        db_get_blob(s, out->hash.bytes, 32);
        db_get_blob(s, out->payer.bytes, 20);
        out->epoch = db_get_u64(s);
        out->next_index = db_get_u64(s);
        db_get_blob(s, out->head, 32);
        out->total = db_get_amount(s);
    }
    int rc = db_end_checked(s, err);
    if (row == 0)
        return err_set(err, ERR_NOT_FOUND, "the payer has no channel");
    return row < 0 ? -1 : rc;
}

int ledger_open_channel(struct ledger *l, uint64_t domain, struct address operator_address,
                        struct address payer, uint64_t epoch, const char *why, struct err *err)
{
    static const uint8_t zero[32];
    struct channel_id hash = channel_id_of(payer, operator_address, epoch);
    struct db_stmt *s = db_stmt(
        l->db, "INSERT INTO channel(domain, hash, payer, epoch, next_index, head, total, "
               "redeemed, opened_ms, why) VALUES(?, ?, ?, ?, 0, ?, ?, ?, ?, ?)");
    db_put_u64(s, domain);
    db_put_blob(s, hash.bytes, 32);
    db_put_blob(s, payer.bytes, 20);
    db_put_u64(s, epoch);
    db_put_blob(s, zero, 32);
    db_put_amount(s, AMOUNT_ZERO);
    db_put_amount(s, AMOUNT_ZERO);
    db_put_u64(s, clock_unix_ms().ms);
    db_put_text(s, why);
    return db_run(s, err);
}

void ledger_new_channel(const struct ledger *l, struct channel_state *out, struct address payer)
{
    uint64_t epoch = atomic_load(&l->payer_epoch);
    *out = (struct channel_state){
        .hash = channel_id_of(payer, l->operator_address, epoch),
        .payer = payer,
        .epoch = epoch,
        .total = AMOUNT_ZERO,
    };
}

uint64_t ledger_epoch_now(void)
{
    uint16_t random;
    random_bytes(&random, sizeof random);
    return clock_unix_ms().ms << EPOCH_RANDOM_BITS | (random & ((1U << EPOCH_RANDOM_BITS) - 1));
}

/* Where the clock is behind the newest epoch, about a second's worth of epochs further: the next
 * one is what another restoration of the same backup would take, too. */
static uint64_t epoch_after(uint64_t known, uint64_t now)
{
    uint32_t random;
    if (known < now)
        return now;
    random_bytes(&random, sizeof random);
    return known + 1 + (random & 0xFFFFF);
}

int ledger_fresh_epochs(struct ledger *l, const char *why, struct err *err)
{
    /* Collect first: the loop inserts into the table it reads. */
    struct open_channel {
        uint64_t domain, epoch;
        struct address operator_address, payer;
    } *open = NULL;
    size_t n = 0;
    struct db_stmt *s = db_stmt(l->db,
                                "SELECT c.domain, d.operator, c.payer, max(c.epoch) FROM channel c "
                                "JOIN domain d ON d.id = c.domain GROUP BY c.domain, c.payer");
    int row;
    while ((row = db_step(s, err)) == 1) {
        if (n % 64 == 0)
            open = xrealloc_array(open, n + 64, sizeof(*open));
        open[n].domain = db_get_u64(s);
        db_get_blob(s, open[n].operator_address.bytes, 20);
        db_get_blob(s, open[n].payer.bytes, 20);
        open[n].epoch = db_get_u64(s);
        n++;
    }
    int rc = db_end_checked(s, err);
    if (row < 0)
        rc = -1;
    uint64_t now = ledger_epoch_now();
    for (size_t i = 0; i < n && rc == 0; i++) {
        rc = ledger_open_channel(l, open[i].domain, open[i].operator_address, open[i].payer,
                                 epoch_after(open[i].epoch, now), why, err);
    }
    free(open);
    atomic_store(&l->payer_epoch, now); /* also of those who had none */
    if (rc == 0)
        log_warn("ledger", "a new epoch for %zu channels: %s", n, why);
    return rc;
}

/* The receipts of the domain that wait to be sealed: the house account's, and others that a
 * redeemed voucher covers. What a payer still owes makes no batch due: it could not go into one.
 * Local ones stay unsealed for ever and aren't counted. */
static int count_unsealed(struct ledger *l, struct err *err)
{
    struct db_stmt *s = db_stmt(
        l->db, "SELECT count(*), coalesce(min(stored_ms), 0), amount_sum(compute_fee), "
               "amount_sum(royalty) FROM receipt r JOIN channel c ON c.id = r.channel WHERE "
               "r.batch IS NULL AND c.domain = ? AND (c.payer = ? OR "
               "r.channel_total <= c.redeemed)");
    db_put_u64(s, l->domain);
    db_put_blob(s, l->house.bytes, 20);
    if (db_step(s, err) != 1) {
        db_end(s);
        return -1;
    }
    l->unsealed_receipts = db_get_u64(s);
    l->unsealed_oldest_ms = db_get_u64(s);
    struct amount fees = db_get_amount(s), royalties = db_get_amount(s);
    if (amount_add(&l->unsealed_value, fees, royalties) != 0)
        l->unsealed_value = AMOUNT_MAX;
    return db_end_checked(s, err);
}

int ledger_count(struct ledger *l, struct err *err)
{
    if (l->has_chain && count_unsealed(l, err) != 0)
        return -1;
    struct db_stmt *s;
    uint64_t submitted = 0, final = 0;
    s = db_stmt(l->db, "SELECT count(*), coalesce(sum(state >= 1), 0), coalesce(sum(state >= 3), 0)"
                       " FROM batch WHERE domain = ?");
    db_put_u64(s, l->domain);
    if (db_step(s, err) != 1) {
        db_end(s);
        return -1;
    }
    l->batches = db_get_u64(s);
    submitted = db_get_u64(s);
    final = db_get_u64(s);
    if (db_end_checked(s, err) != 0)
        return -1;
    uint64_t waiting, oldest;
    s = db_stmt(l->db, "SELECT count(*), coalesce(min(created_ms), 0) FROM outbox "
                       "WHERE domain = ? AND state < 3");
    db_put_u64(s, l->domain);
    if (db_step(s, err) != 1) {
        db_end(s);
        return -1;
    }
    waiting = db_get_u64(s);
    oldest = db_get_u64(s);
    if (db_end_checked(s, err) != 0)
        return -1;
    s = db_stmt(l->db, "SELECT count(*) FROM outbox WHERE domain = ? AND state = 5");
    db_put_u64(s, l->domain);
    uint64_t held = db_step(s, err) == 1 ? db_get_u64(s) : 0;
    if (db_end_checked(s, err) != 0)
        return -1;
    pthread_mutex_lock(&l->health_lock);
    l->health.vouchers_held = held;
    l->health.unsealed_receipts = l->unsealed_receipts;
    l->health.batches_sealed = l->batches;
    l->health.batches_submitted = submitted;
    l->health.batches_final = final;
    l->health.outbox_waiting = waiting;
    l->health.outbox_oldest_ms = oldest; /* the moment; ledger_health makes it an age */
    pthread_mutex_unlock(&l->health_lock);
    return 0;
}

/* ---- the ledger thread ---------------------------------------------------------------------- */

static void set_writable(struct ledger *l, bool writable, const struct err *why)
{
    pthread_mutex_lock(&l->health_lock);
    if (l->writable && !writable)
        log_error("ledger", "the database can't be written: %s", why->message);
    else if (!l->writable && writable)
        log_info("ledger", "the database can be written again");
    l->writable = writable;
    if (!writable) {
        snprintf(l->write_error, sizeof(l->write_error), "%s", why->message);
        l->health.commit_errors++;
    }
    pthread_mutex_unlock(&l->health_lock);
}

/* The transaction's last statement, the fsync, and the file that remembers it. */
int ledger_commit_counted(struct ledger *l, struct err *err)
{
    struct db_stmt *s = db_stmt(l->db, "INSERT INTO meta(key, value) VALUES('counter', ?) "
                                       "ON CONFLICT(key) DO UPDATE SET value = excluded.value");
    db_put_amount(s, amount_of(l->commit_counter + 1));
    if (db_run(s, err) != 0) {
        db_rollback(l->db);
        return -1;
    }
    FAULT_POINT("commit.before");
    if (db_commit(l->db, err) != 0)
        return -1;
    FAULT_POINT("commit.after");
    l->commit_counter++;
    return 0;
}

static void finish_job(struct ledger *l, struct job *job)
{
    if (job->failed) {
        job->done(job->context, NULL, &job->err);
    } else {
        struct buf json = BUF_INIT;
        receipt_write(&job->result, &l->opt.chain, &json);
        struct ledger_receipt handed = {
            .receipt = &job->result.receipt,
            .hash = job->result.hash,
            .signature = job->result.signature,
            .json = buf_cstr(&json),
            .json_bytes = json.len,
        };
        job->done(job->context, &handed, NULL);
        buf_release(&json);
    }
    free(job);
}

/* The channel of a payer's Request, opened when it is the payer's first. It must still be the one
 * that the payer has signed for: a fresh epoch may have begun since. */
static int open_payers_channel(struct ledger *l, struct channel_state *out, const struct job *job,
                               struct err *err)
{
    struct address payer = job->payer.payer;
    struct err none;
    bool is_new = ledger_load_channel(l, l->db, out, payer, &none) != 0;
    if (is_new && none.code != ERR_NOT_FOUND) {
        *err = none;
        return -1;
    }
    if (is_new)
        ledger_new_channel(l, out, payer);
    if (!DIGEST_EQ(out->hash, job->payer.channel))
        return err_set(err, ERR_CONFLICT, "the channel that the payer has signed for is closed");
    if (!is_new)
        return 0;
    if (ledger_open_channel(l, l->domain, l->operator_address, payer, out->epoch, "first", err) !=
        0)
        return -1;
    out->row = db_last_rowid(l->db);
    return 0;
}

static int append(struct ledger *l, struct job *job, bool *again)
{
    struct channel_state ch;
    if (job->has_payer && open_payers_channel(l, &ch, job, &job->err) != 0)
        return -1;
    return receipt_append(l, job->has_payer ? &ch : &l->house_channel, &job->usage, &job->price,
                          &job->result, again, &job->err);
}

static void run_group(struct ledger *l, struct job **jobs, size_t n)
{
    struct err err = {0};
    struct channel_state before = l->house_channel;
    size_t stored = 0, waiting = 0; /* waiting: of these, to be sealed; see count_unsealed */
    struct amount value = AMOUNT_ZERO;
    bool failed = db_begin(l->db, &err) != 0;
    for (size_t i = 0; i < n && !failed; i++) {
        struct job *job = jobs[i];
        bool again = false;
        if (append(l, job, &again) == 0) {
            stored += !again;
            waiting += !again && !job->has_payer;
            if (!again && !job->has_payer && amount_add(&value, value, job->price.total) != 0)
                value = AMOUNT_MAX; /* only decides when to seal */
        } else if (job->err.code == ERR_CONFLICT || job->err.code == ERR_INVALID) {
            job->failed = true; /* this one's own fault; at most its channel is open */
        } else {
            err = job->err;
            failed = true;
        }
    }
    if (failed)
        db_rollback(l->db);
    else if (stored == 0)
        db_rollback(l->db); /* answers only: nothing to write */
    else
        failed = ledger_commit_counted(l, &err) != 0;
    if (failed) {
        l->house_channel = before;
        stored = waiting = 0;
    } else if (generation_counter(l->generation) < l->commit_counter &&
               generation_advance(l->generation, l->commit_counter, &err) != 0) {
        /* Stored but not to be shown, now or when it is asked for again: a restored backup couldn't
         * be told any more. */
        err_wrap(&err, "the receipt is stored but must not leave");
        failed = true;
        stored = waiting = 0;
    }
    FAULT_POINT("generation.after");
    if (stored > 0 || failed)
        set_writable(l, !failed, &err);
    if (waiting > 0 && l->has_chain) {
        if (l->unsealed_receipts == 0)
            l->unsealed_oldest_ms = clock_unix_ms().ms;
        l->unsealed_receipts += waiting;
        if (amount_add(&l->unsealed_value, l->unsealed_value, value) != 0)
            l->unsealed_value = AMOUNT_MAX;
    }
    pthread_mutex_lock(&l->health_lock);
    l->health.receipts += stored;
    l->health.unsealed_receipts = l->unsealed_receipts;
    l->health.commit_groups += stored > 0;
    pthread_mutex_unlock(&l->health_lock);
    for (size_t i = 0; i < n; i++) {
        if (failed && !jobs[i]->failed) {
            jobs[i]->failed = true;
            jobs[i]->err = err;
        }
        finish_job(l, jobs[i]);
    }
}

static int run_task(struct ledger *l, ledger_task *task, void *context, struct err *err)
{
    if (db_begin(l->db, err) != 0)
        return -1;
    uint64_t written = db_total_changes(l->db);
    if (task(l, context, err) != 0) {
        db_rollback(l->db);
        return -1;
    }
    if (db_total_changes(l->db) == written) {
        db_rollback(l->db); /* nothing to keep: no fsync */
        return 0;
    }
    if (ledger_commit_counted(l, err) != 0)
        return -1;
    /* Before anything else can fail: the task may have opened a new epoch, and the old channel must
     * not be extended. */
    if (ledger_load_channel(l, l->db, &l->house_channel, l->house, err) != 0 ||
        ledger_count(l, err) != 0)
        return -1;
    return generation_advance(l->generation, l->commit_counter, err);
}

static int probe_task(struct ledger *l, void *context, struct err *err)
{
    (void)context;
    struct db_stmt *s = db_stmt(l->db, "INSERT INTO meta(key, value) VALUES('probe', x'00') "
                                       "ON CONFLICT(key) DO UPDATE SET value = excluded.value");
    return db_run(s, err);
}

static int seal_task(struct ledger *l, void *context, struct err *err)
{
    return batch_seal(l, context, err);
}

/* What the thread does when there is nothing to do. */
static void look_around(struct ledger *l)
{
    struct err err = {0};
    uint64_t now_us = clock_monotonic_us().us;
    if (!l->writable) {
        if (run_task(l, probe_task, NULL, &err) == 0)
            set_writable(l, true, &err);
    }
    if (now_us < l->seal_retry_us || !batch_is_due(l, clock_unix_ms()))
        return;
    uint32_t sealed = 0;
    if (run_task(l, seal_task, &sealed, &err) != 0) {
        log_error("ledger", "sealing: %s", err.message);
        l->seal_retry_us = now_us + 5000 * 1000;
    } else if (sealed == 0) {
        l->seal_retry_us = now_us + 1000 * 1000; /* due, but not covered: new facts may change it */
    } else if (l->publisher) {
        publisher_wake(l->publisher);
    }
}

void *ledger_main(void *context)
{
    struct ledger *l = context;
    struct job **group = xcalloc(l->opt.group_max, sizeof(struct job *));
    struct job *held = NULL; /* a task that ended a group */
    for (;;) {
        struct job *job = held ? held : queue_pop_timeout(l->queue, IDLE_WAIT_US);
        held = NULL;
        if (!job && queue_is_closed(l->queue) && queue_len(l->queue) == 0)
            break;
        atomic_store(&l->busy_since_us, clock_monotonic_us().us);
        size_t n = 0;
        while (job && job->kind == JOB_COMMIT) {
            group[n++] = job;
            job = n < l->opt.group_max ? queue_try_pop(l->queue) : NULL;
        }
        if (n > 0)
            run_group(l, group, n);
        if (job) {
            if (n > 0) {
                held = job;
                continue;
            }
            job->failed = (job->writes_nothing
                               ? job->task(l, job->context, &job->err)
                               : run_task(l, job->task, job->context, &job->err)) != 0;
            sem_post(&job->finished);
        }
        look_around(l);
        atomic_store(&l->busy_since_us, 0);
    }
    free(group);
    return NULL;
}

static int wait_for_task(struct ledger *l, ledger_task *task, void *context, bool writes_nothing,
                         struct err *err)
{
    struct job job = {
        .kind = JOB_TASK, .task = task, .context = context, .writes_nothing = writes_nothing};
    if (l->opt.read_only)
        return err_set(err, ERR_UNSUPPORTED, "the ledger was opened for reading only");
    BUG_IF(l->thread_runs && pthread_equal(pthread_self(), l->thread));
    sem_init(&job.finished, 0, 0);
    if (!queue_push(l->queue, &job)) {
        sem_destroy(&job.finished);
        return err_set(err, ERR_CANCELLED, "the ledger is closing");
    }
    while (sem_wait(&job.finished) != 0)
        BUG_IF(errno != EINTR);
    sem_destroy(&job.finished);
    if (!job.failed)
        return 0;
    if (err)
        *err = job.err;
    return -1;
}

int ledger_run(struct ledger *l, ledger_task *task, void *context, struct err *err)
{
    return wait_for_task(l, task, context, false, err);
}

int ledger_tell(struct ledger *l, ledger_task *task, void *context, struct err *err)
{
    return wait_for_task(l, task, context, true, err);
}

/* ---- commits -------------------------------------------------------------------------------- */

/* The rates of a request's adapters; parts [USAGE_ADAPTERS_MAX]. */
static int find_rates(struct ledger *l, struct meter_adapter *parts,
                      const struct usage_adapter *adapters, uint32_t n_adapters, struct err *err)
{
    if (n_adapters > USAGE_ADAPTERS_MAX)
        return err_set(err, ERR_INVALID, "a request has %u adapters, at most %d are metered",
                       n_adapters, (int)USAGE_ADAPTERS_MAX);
    for (uint32_t i = 0; i < n_adapters; i++) {
        parts[i] = (struct meter_adapter){.weight_bps = adapters[i].weight_bps};
        if (bytes32_is_zero(adapters[i].id.bytes))
            continue; /* nowhere registered: earns nothing */
        struct adapter_entry *e = adapter_table_by_id(l->adapters, adapters[i].id);
        char name[67];
        if (!e)
            return err_set(err, ERR_NOT_FOUND, "the ledger doesn't know adapter %s",
                           hex_encode_0x(name, adapters[i].id.bytes, 32));
        parts[i].prompt_per_1k = e->facts.royalty_prompt_per_1k;
        parts[i].completion_per_1k = e->facts.royalty_completion_per_1k;
    }
    return 0;
}

int ledger_quote(struct ledger *l, struct ledger_price *out, const struct usage_adapter *adapters,
                 uint32_t n_adapters, uint32_t tokens_prompt, uint32_t tokens_completion,
                 struct err *err)
{
    struct meter_adapter parts[USAGE_ADAPTERS_MAX];
    return find_rates(l, parts, adapters, n_adapters, err) != 0
               ? -1
               : meter_price(out, &l->opt.rates, parts, n_adapters, tokens_prompt,
                             tokens_completion, err);
}

int ledger_most_tokens(struct ledger *l, uint32_t *tokens_completion, struct amount max_fee,
                       const struct usage_adapter *adapters, uint32_t n_adapters,
                       uint32_t tokens_prompt, struct err *err)
{
    struct meter_adapter parts[USAGE_ADAPTERS_MAX];
    return find_rates(l, parts, adapters, n_adapters, err) != 0
               ? -1
               : meter_most_tokens(tokens_completion, max_fee, &l->opt.rates, parts, n_adapters,
                                   tokens_prompt, err);
}

int ledger_commit(struct ledger *l, const struct usage *usage, ledger_done *done, void *context,
                  struct err *err)
{
    struct job *job = xcalloc(1, sizeof(*job));
    job->kind = JOB_COMMIT;
    job->usage = *usage;
    job->done = done;
    job->context = context;
    int rc = 0;
    if (l->opt.read_only)
        rc = err_set(err, ERR_UNSUPPORTED, "the ledger was opened for reading only");
    else if (bytes32_is_zero(usage->request_id))
        rc = err_set(err, ERR_INVALID, "a usage without a request id");
    else if (usage->finished.ms > TIME_MAX_MS)
        rc = err_set(err, ERR_INVALID, "a usage from beyond the year 10000");
    else
        rc = ledger_quote(l, &job->price, usage->adapters, usage->n_adapters, usage->tokens_prompt,
                          usage->tokens_completion, err);
    job->has_payer = rc == 0 && request_find(l, &job->payer, usage->request_id);
    BUG_IF(job->has_payer && amount_cmp(job->price.total, job->payer.max_fee) > 0);
    if (rc == 0 && !queue_try_push(l->queue, job))
        rc = err_set(err, ERR_BUSY, "the ledger has %u commits waiting already",
                     l->opt.queue_capacity);
    if (rc != 0)
        free(job);
    return rc;
}

int ledger_seal_now(struct ledger *l, uint32_t *sealed, struct err *err)
{
    *sealed = 0;
    if (!l->has_chain)
        return err_set(err, ERR_UNSUPPORTED,
                       "no chain is configured: receipts stay local and are not sealed");
    if (ledger_run(l, seal_task, sealed, err) != 0)
        return -1;
    ledger_publisher_wake(l);
    return 0;
}

void ledger_publisher_wake(struct ledger *l)
{
    if (l->publisher)
        publisher_wake(l->publisher);
}

static int epoch_task(struct ledger *l, void *context, struct err *err)
{
    return ledger_fresh_epochs(l, context, err);
}

int ledger_epoch_advance(struct ledger *l, const char *why, struct err *err)
{
    return ledger_run(l, epoch_task, (void *)(uintptr_t)why, err);
}

/* ---- adapters and Datanets ------------------------------------------------------------------ */

struct put_context {
    const uint8_t *id;
    const void *manifest;
    size_t n;
};

static int adapter_put_task(struct ledger *l, void *context, struct err *err)
{
    const struct put_context *put = context;
    struct arena arena = ARENA_INIT;
    struct manifest_adapter m;
    struct sha256_digest hash;
    int rc = manifest_adapter_parse(&m, &hash, &arena, put->manifest, put->n, err);
    if (rc == 0) {
        struct db_stmt *s = db_stmt(l->db, "INSERT INTO adapter(id, manifest_hash, creator, "
                                           "manifest, put_ms) VALUES(?, ?, ?, ?, ?)");
        db_put_blob(s, put->id, 32);
        db_put_blob(s, hash.bytes, 32);
        db_put_blob(s, m.creator.bytes, 20);
        db_put_blob(s, put->manifest, put->n);
        db_put_u64(s, clock_unix_ms().ms);
        rc = db_run(s, err);
    }
    arena_release(&arena);
    return rc;
}

int ledger_adapter_put(struct ledger *l, struct adapter_id id, const void *manifest_text, size_t n,
                       struct err *err)
{
    struct put_context put = {id.bytes, manifest_text, n};
    if (bytes32_is_zero(id.bytes))
        return err_set(err, ERR_INVALID, "an adapter id of zeros");
    if (adapter_table_by_id(l->adapters, id)) /* the same again, or a conflict */
        return adapter_table_put(l->adapters, id, manifest_text, n, false, err);
    struct err local;
    if (ledger_run(l, adapter_put_task, &put, &local) != 0 && local.code != ERR_CONFLICT) {
        if (err)
            *err = local;
        return -1; /* ERR_CONFLICT: another thread was faster; the table tells with what */
    }
    return adapter_table_put(l->adapters, id, manifest_text, n, false, err);
}

static int datanet_put_task(struct ledger *l, void *context, struct err *err)
{
    const struct put_context *put = context;
    struct arena arena = ARENA_INIT;
    struct manifest_datanet m;
    struct sha256_digest hash, known;
    int rc = manifest_datanet_parse(&m, &hash, &arena, put->manifest, put->n, err);
    struct db_stmt *s = db_stmt(l->db, "SELECT manifest_hash FROM datanet WHERE id = ?");
    db_put_blob(s, put->id, 32);
    int row = rc == 0 ? db_step(s, err) : -1;
    if (row == 1)
        db_get_blob(s, known.bytes, 32);
    db_end(s);
    if (row < 0)
        rc = -1;
    if (row == 1 && !DIGEST_EQ(known, hash))
        rc = err_set(err, ERR_CONFLICT, "the Datanet is known with another manifest");
    if (row == 0) {
        s = db_stmt(l->db, "INSERT INTO datanet(id, manifest_hash, owner, payee, name, manifest, "
                           "put_ms) VALUES(?, ?, ?, ?, ?, ?, ?)");
        db_put_blob(s, put->id, 32);
        db_put_blob(s, hash.bytes, 32);
        db_put_blob(s, m.owner.bytes, 20);
        db_put_blob(s, m.payee.bytes, 20);
        db_put_text(s, m.name);
        db_put_blob(s, put->manifest, put->n);
        db_put_u64(s, clock_unix_ms().ms);
        rc = db_run(s, err);
    }
    arena_release(&arena);
    return rc;
}

int ledger_datanet_put(struct ledger *l, struct datanet_id id, const void *manifest_text, size_t n,
                       struct err *err)
{
    struct put_context put = {id.bytes, manifest_text, n};
    return ledger_run(l, datanet_put_task, &put, err);
}

static int retire_task(struct ledger *l, void *context, struct err *err)
{
    struct db_stmt *s = db_stmt(l->db, "UPDATE adapter SET retired = 1 WHERE id = ?");
    db_put_blob(s, context, 32);
    return db_run(s, err);
}

int ledger_adapter_retire(struct ledger *l, struct adapter_id id, struct err *err)
{
    struct adapter_entry *e = adapter_table_by_id(l->adapters, id);
    if (!e)
        return err_set(err, ERR_NOT_FOUND, "the ledger doesn't know this adapter");
    if (ledger_run(l, retire_task, id.bytes, err) != 0)
        return -1;
    atomic_store(&e->retired, true);
    return 0;
}

static int adapter_out(struct ledger_adapter *out, struct adapter_entry *e, const char *what,
                       struct err *err)
{
    if (!e)
        return err_set(err, ERR_NOT_FOUND, "no adapter %.100s is known", what);
    *out = (struct ledger_adapter){
        .id = e->id,
        .content = e->facts.content,
        .base_model = e->facts.base_model,
        .creator = e->facts.creator,
        .version = e->facts.version,
        .retired = atomic_load(&e->retired),
        .royalty_prompt_per_1k = e->facts.royalty_prompt_per_1k,
        .royalty_completion_per_1k = e->facts.royalty_completion_per_1k,
    };
    snprintf(out->name, sizeof(out->name), "%s", e->facts.name);
    return 0;
}

int ledger_adapter_by_id(struct ledger *l, struct ledger_adapter *out, struct adapter_id id,
                         struct err *err)
{
    char text[67];
    return adapter_out(out, adapter_table_by_id(l->adapters, id), hex_encode_0x(text, id.bytes, 32),
                       err);
}

int ledger_adapter_by_content(struct ledger *l, struct ledger_adapter *out,
                              struct content_digest content, struct err *err)
{
    char text[65];
    return adapter_out(out, adapter_table_by_content(l->adapters, content),
                       hex_encode(text, content.bytes, 32), err);
}

int ledger_adapter_by_name(struct ledger *l, struct ledger_adapter *out, const char *name,
                           uint64_t version, struct err *err)
{
    return adapter_out(out, adapter_table_by_name(l->adapters, name, version), name, err);
}
