/* The ledger: receipts, group commit, sealing, queries, backups, and books that notice everything.
 */
#include "tests/unit/attribution/ledger_world.h"

#include "attribution/merkle.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

/* SQLite and the generation file call fdatasync through the C library; ours counts. */
static _Atomic uint64_t n_syncs;
static _Atomic bool generation_fails;
int fdatasync(int fd)
{
    char link[64], path[512];
    n_syncs++;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t n = generation_fails ? readlink(link, path, sizeof(path) - 1) : -1;
    path[n > 0 ? n : 0] = '\0';
    if (n > 0 && strstr(path, "ledger.generation")) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_fdatasync, fd);
}

static int set_up_local(void **state)
{
    *state = world_create(market_wallet(), false, 0);
    return 0;
}

static int set_up_chain(void **state)
{
    *state = world_create(market_wallet(), true, 0);
    return 0;
}

static int tear_down(void **state)
{
    world_free(*state);
    return 0;
}

static char *path_of(struct world *w, const char *name)
{
    return xasprintf("%s/%s", w->dir, name);
}

static void copy_file(const char *from, const char *to)
{
    struct buf bytes = BUF_INIT;
    struct err err = {0};
    assert_ok(file_read(from, 64 << 20, &bytes, &err), err);
    assert_ok(file_write_atomic(to, bytes.data, bytes.len, 0600, &err), err);
    buf_release(&bytes);
}

static uint64_t newest_epoch(struct world *w, size_t *n_channels)
{
    struct err err = {0};
    uint64_t epoch = 0;
    size_t i;
    const json_t *item;
    json_t *channels = ledger_query_channels(w->l, NULL, &err);
    assert_non_null(channels);
    json_array_foreach(json_object_get(channels, "items"), i, item)
    {
        if (json_is_true(json_object_get(item, "open")))
            epoch = (uint64_t)json_integer_value(json_object_get(item, "epoch"));
    }
    *n_channels = i;
    json_decref(channels);
    return epoch;
}

/* ---- receipts ------------------------------------------------------------------------------- */

static void receipts_are_chained_signed_and_canonical(void **state)
{
    struct world *w = *state;
    uint8_t prev[32] = {0};
    struct amount total = AMOUNT_ZERO;
    for (uint64_t i = 0; i < 6; i++) {
        struct usage u = market_usage(i, i % 2 ? &w->adapter : NULL);
        struct commit_result c;
        struct err err = {0};
        struct ledger_price price;
        struct address signer;
        assert_ok(market_commit(w->l, &u, &c, &err), err);
        assert_ok(ledger_quote(w->l, &price, u.adapters, u.n_adapters, u.tokens_prompt,
                               u.tokens_completion, &err),
                  err);
        const struct receipt *r = &c.receipt.receipt;
        assert_int_equal(r->index, i);
        assert_memory_equal(r->prev_receipt_hash, prev, 32);
        assert_int_equal(amount_add(&total, total, price.total), 0);
        assert_int_equal(amount_cmp(r->channel_total, total), 0);
        assert_int_equal(amount_cmp(r->royalty, price.royalty), 0);
        assert_true(amount_is_zero(r->royalty) == !(i % 2));
        assert_ok(wallet_recover_receipt(&signer, &c.receipt.signature, &c.receipt.hash, &err),
                  err);
        assert_true(address_eq(signer, ledger_signer(w->l)));
        memcpy(prev, c.receipt.hash.bytes, 32);

        struct buf canonical = BUF_INIT;
        json_t *parsed = json_loads(c.json, JSON_REJECT_DUPLICATES, NULL);
        assert_non_null(parsed);
        assert_ok(canonical_json_write(parsed, &canonical, &err), err);
        assert_string_equal(buf_cstr(&canonical), c.json);
        json_t *again = ledger_query_receipt(w->l, u.request_id, &err);
        assert_true(json_equal(again, parsed));
        json_t *by_hash = ledger_query_receipt(w->l, c.receipt.hash.bytes, &err);
        assert_true(json_equal(by_hash, parsed));
        json_decref(again);
        json_decref(by_hash);
        json_decref(parsed);
        buf_release(&canonical);
        free(c.json);
    }
    market_check(w->l, false);
    reopen(w);
    market_commit_many(w->l, 6, 3, &w->adapter); /* the chain goes on */
    market_check(w->l, false);
}

static void the_attribution_hash_is_that_of_the_header(void **state)
{
    struct world *w = *state;
    struct usage u = market_usage(1, &w->adapter);
    struct commit_result c;
    struct err err = {0};
    uint8_t list[72] = {0};
    static const uint16_t bps[2] = {3332, 1};
    for (int i = 0; i < 2; i++) {
        memcpy(list + 36 * i, market_datanet(i).bytes, 32);
        list[36 * i + 32] = (uint8_t)(bps[i] >> 8);
        list[36 * i + 33] = (uint8_t)bps[i];
        list[36 * i + 35] = 1;
    }
    assert_ok(market_commit(w->l, &u, &c, &err), err);
    assert_memory_equal(c.receipt.receipt.attribution_hash.bytes, sha256(list, 72).bytes, 32);
    free(c.json);
    u = market_usage(2, NULL);
    assert_ok(market_commit(w->l, &u, &c, &err), err);
    assert_memory_equal(c.receipt.receipt.attribution_hash.bytes, sha256("", 0).bytes, 32);
    free(c.json);
}

static void the_same_request_is_billed_once(void **state)
{
    struct world *w = *state;
    struct usage u = market_usage(1, &w->adapter);
    struct commit_result first, again;
    struct err err = {0};
    assert_ok(market_commit(w->l, &u, &first, &err), err);
    assert_ok(market_commit(w->l, &u, &again, &err), err);
    assert_string_equal(first.json, again.json);
    u.tokens_completion++;
    assert_int_equal(market_commit(w->l, &u, NULL, &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    struct usage other = market_usage(2, NULL);
    assert_ok(market_commit(w->l, &other, NULL, &err), err);
    market_check(w->l, false);
    free(first.json);
    free(again.json);
}

static void what_cannot_be_billed_is_refused_before_the_queue(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct usage u = market_usage(1, &w->adapter);
    memset(u.adapters[0].id.bytes, 9, 32);
    assert_int_equal(ledger_commit(w->l, &u, commit_done, NULL, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    u = market_usage(1, &w->adapter);
    u.adapters[0].weight_bps = 9999;
    assert_int_equal(ledger_commit(w->l, &u, commit_done, NULL, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    u = market_usage(1, NULL);
    memset(u.request_id, 0, 32);
    assert_int_equal(ledger_commit(w->l, &u, commit_done, NULL, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    /* An adapter that is nowhere registered runs and earns nothing. */
    u = market_usage(1, &w->adapter);
    memset(u.adapters[0].id.bytes, 0, 32);
    struct commit_result c;
    assert_ok(market_commit(w->l, &u, &c, &err), err);
    assert_true(amount_is_zero(c.receipt.receipt.royalty));
    free(c.json);
    market_check(w->l, false);
}

/* ---- group commit --------------------------------------------------------------------------- */

struct gate {
    sem_t entered, open;
    _Atomic int n_done, n_failed;
};

static void wait_at_gate(void *context, const struct ledger_receipt *r, const struct err *err)
{
    struct gate *g = context;
    (void)r, (void)err;
    sem_post(&g->entered);
    sem_wait(&g->open);
}

static void count_done(void *context, const struct ledger_receipt *r, const struct err *err)
{
    struct gate *g = context;
    (void)err;
    g->n_done++;
    g->n_failed += !r;
}

static void many_commits_share_one_fsync_and_a_full_queue_says_busy(void **state)
{
    struct world *w = *state;
    struct gate g = {.n_done = 0};
    struct err err = {0};
    w->options.queue_capacity = 200;
    reopen(w);
    sem_init(&g.entered, 0, 0);
    sem_init(&g.open, 0, 0);
    struct usage u = market_usage(0, NULL);
    assert_ok(ledger_commit(w->l, &u, wait_at_gate, &g, &err), err);
    sem_wait(&g.entered); /* the ledger thread stands in the callback */
    uint64_t before = n_syncs;
    for (uint64_t i = 1; i <= 200; i++) {
        u = market_usage(i, i % 2 ? &w->adapter : NULL);
        assert_ok(ledger_commit(w->l, &u, count_done, &g, &err), err);
    }
    u = market_usage(201, NULL);
    assert_int_equal(ledger_commit(w->l, &u, count_done, &g, &err), -1);
    assert_int_equal(err.code, ERR_BUSY);
    sem_post(&g.open);
    ledger_close(w->l); /* runs what is queued */
    uint64_t syncs = n_syncs - before;
    w->l = market_open(&w->options);
    assert_int_equal(g.n_done, 200);
    assert_int_equal(g.n_failed, 0);
    printf("note: group commit: 200 receipts took %llu fsyncs (log and generation file)\n",
           (unsigned long long)syncs);
    assert_true(syncs <= 6);
    market_check(w->l, false);
    sem_destroy(&g.entered);
    sem_destroy(&g.open);
}

static void a_disk_that_is_full_fails_commits_and_loses_nothing(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    market_commit_many(w->l, 0, 5, &w->adapter);
    struct rlimit before, tight = {.rlim_cur = 0};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    tight.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    tight.rlim_cur = 4096; /* no file may grow beyond */
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    struct usage u = market_usage(100, &w->adapter);
    int rc = market_commit(w->l, &u, NULL, &err);
    struct ledger_health h;
    ledger_health(w->l, &h);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(rc, -1);
    assert_int_equal(err.code, ERR_IO);
    assert_false(h.ready);
    assert_non_null(strstr(h.reason, "can't write"));
    for (int i = 0; i < 100 && !h.ready; i++) { /* it notices by itself that it can again */
        usleep(20000);
        ledger_health(w->l, &h);
    }
    assert_true(h.ready);
    assert_ok(market_commit(w->l, &u, NULL, &err), err);
    market_check(w->l, false);
    json_t *usage = ledger_query_usage(w->l, NULL, &err);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(usage, "totals"), "requests")), 6);
    json_decref(usage);
}

/* ---- opening -------------------------------------------------------------------------------- */

static void a_ledger_is_opened_once_and_only_if_it_is_ours(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    assert_null(ledger_open(&w->options, &err));
    assert_int_equal(err.code, ERR_CONFLICT);
    struct ledger_options reader = w->options;
    reader.read_only = true;
    reader.wallet = NULL;
    market_commit_many(w->l, 0, 3, &w->adapter);
    struct ledger *r = ledger_open(&reader, &err); /* beside the running one */
    assert_non_null(r);
    market_check(r, false);
    assert_int_equal(ledger_commit(r, &(struct usage){.n_adapters = 0}, count_done, NULL, &err),
                     -1);
    ledger_close(r);
    ledger_close(w->l);
    w->l = NULL;

    char *path = path_of(w, "ledger.db");
    struct db *db = db_open(path, DB_WRITER, &err);
    assert_ok(db_exec(db, "PRAGMA user_version = 99", &err), err);
    db_close(db);
    assert_null(ledger_open(&w->options, &err));
    assert_int_equal(err.code, ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "schema 99"));
    db = db_open(path, DB_WRITER, &err);
    assert_ok(db_exec(db, "PRAGMA user_version = 1; PRAGMA application_id = 7", &err), err);
    db_close(db);
    assert_null(ledger_open(&w->options, &err));
    assert_int_equal(err.code, ERR_CORRUPT);
    free(path);
}

static void a_chain_needs_its_id_and_all_addresses(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct ledger_options o = w->options;
    char *dir = temp_dir_create();
    o.data_dir = dir;
    o.chain = market_chain();
    memset(o.chain.escrow.bytes, 0, 20);
    assert_null(ledger_open(&o, &err));
    assert_int_equal(err.code, ERR_INVALID);
    temp_dir_remove(dir);
}

static void naming_a_chain_starts_new_channels(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    market_commit_many(w->l, 0, 3, NULL);
    w->options.chain = market_chain();
    reopen(w);
    struct usage u = market_usage(10, NULL);
    struct commit_result c;
    assert_ok(market_commit(w->l, &u, &c, &err), err);
    assert_int_equal(c.receipt.receipt.index, 0);
    free(c.json);
    market_check(w->l, false);
    /* Receipts of the local life are still there, in their own domain. */
    u = market_usage(1, NULL);
    json_t *old = ledger_query_receipt(w->l, u.request_id, &err);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(old, "domain"), "chainId")),
                     0);
    json_decref(old);
}

static void a_channel_is_listed_from_one_of_its_lives(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct commit_result c;
    struct usage u = market_usage(10, NULL);
    market_commit_many(w->l, 0, 5, NULL);
    w->options.chain = market_chain();
    w->options.rpc = (struct rpc *)fake; /* which says that nobody was there before: epoch 0 */
    reopen(w);
    /* The channel has the same name on both, payer, operator and epoch being the same. */
    assert_ok(market_commit(w->l, &u, &c, &err), err);
    free(c.json);
    static const size_t expected[] = {1, 0, 0, 0, 0}; /* by from */
    for (uint64_t from = 0; from < 5; from++) {
        json_t *page = ledger_query_receipts(w->l, c.receipt.receipt.channel, from, 10, &err);
        assert_non_null(page);
        assert_int_equal(json_array_size(json_object_get(page, "items")), expected[from]);
        json_decref(page);
    }
}

static void a_question_to_the_chain_that_is_broken_off_decides_no_epoch(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    size_t n;
    char *dir = temp_dir_create();
    ledger_close(w->l);
    w->options.data_dir = dir; /* new on the chain */
    w->options.chain = market_chain();
    w->options.rpc = (struct rpc *)fake;
    fake->cancelled = true;
    w->l = ledger_open(&w->options, &err);
    assert_null(w->l);
    assert_int_equal(err.code, ERR_CANCELLED);
    fake->cancelled = false;
    w->l = market_open(&w->options);
    assert_int_equal(newest_epoch(w, &n), 0);
    ledger_close(w->l);
    w->l = NULL;
    temp_dir_remove(dir);
}

static void local_receipts_are_never_sealed(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    uint32_t sealed;
    market_commit_many(w->l, 0, 3, NULL);
    assert_int_equal(ledger_seal_now(w->l, &sealed, &err), -1);
    assert_int_equal(err.code, ERR_UNSUPPORTED);
}

/* ---- backups -------------------------------------------------------------------------------- */

static void a_restored_database_never_extends_an_old_channel(void **state)
{
    struct world *w = *state;
    size_t n;
    char *db = path_of(w, "ledger.db"), *backup = path_of(w, "backup");
    char *wal = path_of(w, "ledger.db-wal");
    market_commit_many(w->l, 0, 3, &w->adapter);
    reopen(w);
    assert_int_equal(newest_epoch(w, &n), 0); /* a restart is no restoration */
    ledger_close(w->l);
    copy_file(db, backup);
    w->l = market_open(&w->options);
    market_commit_many(w->l, 10, 1, &w->adapter); /* one receipt more is enough */
    ledger_close(w->l);
    copy_file(backup, db);
    unlink(wal);
    w->l = market_open(&w->options);
    assert_true(newest_epoch(w, &n) > 1600000000);
    assert_int_equal(n, 2);
    struct usage u = market_usage(20, NULL);
    struct commit_result c;
    struct err err = {0};
    assert_ok(market_commit(w->l, &u, &c, &err), err);
    assert_int_equal(c.receipt.receipt.index, 0);
    free(c.json);
    reopen(w);
    newest_epoch(w, &n);
    assert_int_equal(n, 2); /* once is enough */
    market_check(w->l, false);
    free(db);
    free(wal);
    free(backup);
}

static void an_epoch_that_was_opened_counts_whatever_failed_after_it(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    size_t n;
    market_commit_many(w->l, 0, 3, NULL);
    generation_fails = true;
    assert_int_equal(ledger_epoch_advance(w->l, "test", &err), -1);
    generation_fails = false;
    newest_epoch(w, &n);
    assert_int_equal(n, 2);
    struct usage u = market_usage(10, NULL);
    struct commit_result c;
    assert_ok(market_commit(w->l, &u, &c, &err), err);
    assert_int_equal(c.receipt.receipt.index, 0);
    free(c.json);
    market_check(w->l, false);
}

/* A restored ledger couldn't be told if one were handed out that the generation file doesn't know:
 * not at the first time of asking, and not at the second. */
static void a_receipt_that_was_kept_back_is_kept_back_again(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct usage u = market_usage(10, NULL);
    struct commit_result c;
    generation_fails = true;
    assert_int_equal(market_commit(w->l, &u, &c, &err), -1);
    int again = market_commit(w->l, &u, &c, &err);
    generation_fails = false;
    assert_int_equal(again, -1);
    assert_ok(market_commit(w->l, &u, &c, &err), err);
    assert_int_equal(c.receipt.receipt.index, 0);
    free(c.json);
    market_check(w->l, false);
}

/* The restored database doesn't know which other accounts or chains there were. */
static void a_restored_database_begins_no_channel_with_epoch_0(void **state)
{
    struct world *w = *state;
    size_t n;
    char *generation = path_of(w, "ledger.generation");
    market_commit_many(w->l, 0, 1, NULL);
    ledger_close(w->l);
    assert_int_equal(unlink(generation), 0);
    w->l = market_open(&w->options); /* restored */
    memset(w->options.operator_address.bytes, 0x55, 20);
    reopen(w); /* another operator: another domain, whose first channel it is */
    assert_true(newest_epoch(w, &n) > 0);
    assert_int_equal(n, 1);
    free(generation);
}

/* The ledger's files, as a backup has them. */
enum { LEDGER_FILES = 3 };
static const char *const ledger_files[LEDGER_FILES] = {"ledger.generation", "ledger.db",
                                                       "ledger.db-wal"};

static void save_files(struct world *w, struct buf *saved, size_t n)
{
    struct err err = {0};
    for (size_t i = 0; i < n; i++) {
        char *path = path_of(w, ledger_files[i]);
        assert_ok(file_read(path, 64 << 20, &saved[i], &err), err);
        free(path);
    }
}

/* in_place: into the files that are there, as cp does; else into new ones. */
static void put_back_files(struct world *w, const struct buf *saved, size_t n, bool in_place)
{
    for (size_t i = 0; i < n; i++) {
        char *path = path_of(w, ledger_files[i]);
        if (!in_place)
            assert_int_equal(unlink(path), 0);
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        assert_int_equal(write(fd, saved[i].data, saved[i].len), saved[i].len);
        close(fd);
        free(path);
    }
}

/* Not even where the clock was set back behind the newest epoch. */
static void two_restorations_behind_the_clock_do_not_meet(void **state)
{
    struct world *w = *state;
    struct buf saved[2] = {BUF_INIT, BUF_INIT};
    struct err err = {0};
    uint64_t epochs[2];
    size_t n;
    calendar_shift_s = 365 * 86400;
    assert_ok(ledger_epoch_advance(w->l, "test", &err), err);
    calendar_shift_s = 0;
    uint64_t known = newest_epoch(w, &n);
    ledger_close(w->l);
    save_files(w, saved, 2);
    for (int k = 0; k < 2; k++) {
        put_back_files(w, saved, 2, false);
        w->l = market_open(&w->options);
        epochs[k] = newest_epoch(w, &n);
        assert_true(epochs[k] > known);
        if (k == 0)
            ledger_close(w->l);
    }
    assert_true(epochs[0] != epochs[1]);
    buf_release(&saved[0]);
    buf_release(&saved[1]);
}

static void a_copied_directory_and_a_lost_generation_file_count_as_restored(void **state)
{
    struct world *w = *state;
    size_t n;
    char *generation = path_of(w, "ledger.generation"), *moved = path_of(w, "moved");
    market_commit_many(w->l, 0, 3, &w->adapter);
    ledger_close(w->l);
    copy_file(generation, moved); /* the same contents in another inode */
    assert_int_equal(rename(moved, generation), 0);
    w->l = market_open(&w->options);
    uint64_t first = newest_epoch(w, &n);
    assert_int_equal(n, 2);
    ledger_close(w->l);
    assert_int_equal(unlink(generation), 0);
    w->l = market_open(&w->options);
    assert_true(newest_epoch(w, &n) > first);
    assert_int_equal(n, 3);
    market_check(w->l, false);
    free(generation);
    free(moved);
}

/* A file system gives a deleted file's inode number to the next: a directory that was deleted and
 * put back from its copy is no original for that. */
static void a_deleted_directory_that_is_put_back_counts_as_restored(void **state)
{
    struct world *w = *state;
    char *generation = path_of(w, "ledger.generation"), *backup = path_of(w, "backup");
    struct stat before, after;
    size_t n;
    market_commit_many(w->l, 0, 3, NULL);
    ledger_close(w->l);
    copy_file(generation, backup);
    assert_int_equal(stat(generation, &before), 0);
    nanosleep(&(struct timespec){0, 50 * 1000000}, NULL); /* births are told by the kernel's tick */
    assert_int_equal(unlink(generation), 0);
    int tries = 0;
    do { /* until a file has the number */
        char *path = path_of(w, "put-back");
        copy_file(backup, path);
        assert_int_equal(stat(path, &after), 0);
        char *kept = xasprintf("%s.%d", path, tries);
        assert_int_equal(rename(path, after.st_ino == before.st_ino ? generation : kept), 0);
        free(kept);
        free(path);
    } while (after.st_ino != before.st_ino && ++tries < 500);
    if (after.st_ino != before.st_ino)
        print_message("note: this file system doesn't give an inode's number again\n");
    w->l = market_open(&w->options);
    newest_epoch(w, &n);
    assert_int_equal(n, 2);
    free(generation);
    free(backup);
}

/* cp writes into the files that are there: inode and birth stay what they were. Two restorations of
 * one backup, however soon one comes after the other, don't meet. */
static void a_copy_that_is_written_back_over_the_files_counts_as_restored(void **state)
{
    struct world *w = *state;
    struct buf saved[2] = {BUF_INIT, BUF_INIT};
    uint64_t epochs[2];
    size_t n;
    market_commit_many(w->l, 0, 3, NULL);
    ledger_close(w->l);
    save_files(w, saved, 2);
    w->l = market_open(&w->options);
    for (int k = 0; k < 2; k++) {
        market_commit_many(w->l, 10, 1, NULL);
        ledger_close(w->l);
        put_back_files(w, saved, 2, true);
        w->l = market_open(&w->options);
        epochs[k] = newest_epoch(w, &n);
        assert_int_equal(n, 2);
    }
    assert_true(epochs[0] != epochs[1]);
    reopen(w);
    newest_epoch(w, &n);
    assert_int_equal(n, 2); /* once is enough */
    buf_release(&saved[0]);
    buf_release(&saved[1]);
}

/* So does one that was made while the node ran, once that has ended. */
static void a_running_ledgers_copy_that_is_written_back_counts_as_restored(void **state)
{
    struct world *w = *state;
    struct buf saved[3] = {BUF_INIT, BUF_INIT, BUF_INIT};
    size_t n;
    market_commit_many(w->l, 0, 3, NULL);
    save_files(w, saved, LEDGER_FILES);
    market_commit_many(w->l, 10, 1, NULL);
    ledger_close(w->l);
    put_back_files(w, saved, LEDGER_FILES, true);
    for (int i = 0; i < LEDGER_FILES; i++)
        buf_release(&saved[i]);
    w->l = market_open(&w->options);
    newest_epoch(w, &n);
    assert_int_equal(n, 2);
    reopen(w);
    newest_epoch(w, &n);
    assert_int_equal(n, 2); /* once is enough */
    market_check(w->l, false);
}

/* ---- sealing -------------------------------------------------------------------------------- */

static void a_batch_proves_each_receipt_and_each_payout(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    market_commit_many(w->l, 0, 11, &w->adapter);
    assert_int_equal(market_seal(w->l), 11);
    assert_int_equal(market_seal(w->l), 0);
    market_check(w->l, false);
    for (uint64_t i = 0; i < 11; i++) {
        struct usage u = market_usage(i, NULL);
        json_t *proof = ledger_query_receipt_proof(w->l, u.request_id, &err);
        assert_non_null(proof);
        struct merkle_node siblings[MERKLE_PROOF_MAX], root, leaf;
        const json_t *list = json_object_get(proof, "proof"),
                     *batch = json_object_get(proof, "batch");
        size_t k;
        const json_t *s;
        json_array_foreach(list, k, s)
            assert_int_equal(hex_decode(siblings[k].bytes, 32, json_string_value(s)), 0);
        assert_int_equal(
            hex_decode(root.bytes, 32, json_string_value(json_object_get(batch, "receiptsRoot"))),
            0);
        assert_int_equal(
            hex_decode(leaf.bytes, 32, json_string_value(json_object_get(proof, "leaf"))), 0);
        assert_true(merkle_verify(root, leaf, siblings, k));
        json_decref(proof);
    }
    json_t *rewards = ledger_query_rewards(w->l, NULL, &err);
    size_t i;
    const json_t *item;
    struct amount sum = AMOUNT_ZERO;
    json_array_foreach(json_object_get(rewards, "items"), i, item)
    {
        uint8_t id[32], root[32], want[32];
        struct payout leaf;
        struct amount total;
        const char *kind = json_string_value(json_object_get(item, "kind"));
        leaf.kind = !strcmp(kind, "operator")  ? PAYOUT_OPERATOR
                    : !strcmp(kind, "adapter") ? PAYOUT_ADAPTER
                                               : PAYOUT_DATANET;
        leaf.position = (uint16_t)json_integer_value(json_object_get(item, "position"));
        assert_int_equal(hex_decode(id, 32, json_string_value(json_object_get(item, "id"))), 0);
        memcpy(leaf.id, id, 32);
        json_t *proof = ledger_query_payout_proof(w->l, leaf.kind, id, leaf.position, 0, &err);
        if (!proof)
            fail_msg("no proof of %s: %s", kind, err.message);
        assert_int_equal(
            amount_parse(&leaf.amount, json_string_value(json_object_get(
                                           json_object_get(proof, "payout"), "amount"))),
            0);
        assert_string_equal(
            json_string_value(json_object_get(item, "sealed")),
            json_string_value(json_object_get(json_object_get(proof, "payout"), "amount")));
        const json_t *p = json_object_get(proof, "proof"), *s;
        struct payout_node siblings[PAYOUT_PROOF_MAX];
        size_t k;
        json_array_foreach(json_object_get(p, "siblings"), k, s)
        {
            assert_int_equal(
                hex_decode(siblings[k].hash, 32, json_string_value(json_object_get(s, "hash"))), 0);
            assert_int_equal(
                amount_parse(&siblings[k].sum, json_string_value(json_object_get(s, "sum"))), 0);
        }
        assert_ok(payout_climb(root, &total, &leaf,
                               (uint32_t)json_integer_value(json_object_get(p, "index")),
                               (uint32_t)json_integer_value(json_object_get(p, "leafCount")),
                               siblings, k, &err),
                  err);
        const json_t *batch = json_object_get(proof, "batch");
        assert_int_equal(
            hex_decode(want, 32, json_string_value(json_object_get(batch, "payoutRoot"))), 0);
        assert_memory_equal(root, want, 32);
        assert_int_equal(amount_add(&sum, sum, leaf.amount), 0);
        char text[AMOUNT_TEXT_BYTES];
        assert_string_equal(amount_format(text, total),
                            json_string_value(json_object_get(batch, "committed")));
        json_decref(proof);
    }
    assert_int_equal(i, 6); /* operator, three positions, two Datanets */
    json_decref(rewards);
    assert_null(ledger_query_payout_proof(w->l, PAYOUT_ADAPTER, w->adapter.bytes, 9, 0, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_null(ledger_query_payout_proof(w->l, PAYOUT_ADAPTER, w->adapter.bytes, 0, -1, &err));
    assert_int_equal(err.code, ERR_BUSY);
}

static void a_batch_file_is_canonical_and_has_its_hash(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    market_commit_many(w->l, 0, 4, &w->adapter);
    market_seal(w->l);
    json_t *b = ledger_query_batch(w->l, 0, &err);
    struct sha256_digest hash;
    struct buf file = BUF_INIT, canonical = BUF_INIT;
    assert_int_equal(hex_decode(hash.bytes, 32, json_string_value(json_object_get(b, "dataHash"))),
                     0);
    assert_true(json_is_null(json_object_get(b, "signature"))); /* not before it is submitted */
    assert_ok(ledger_batch_file(w->l, hash, &file, &err), err);
    struct sha256_digest got = sha256(file.data, file.len);
    assert_memory_equal(got.bytes, hash.bytes, 32);
    json_t *parsed = json_loadb(buf_cstr(&file), file.len, JSON_REJECT_DUPLICATES, NULL);
    assert_ok(canonical_json_write(parsed, &canonical, &err), err);
    assert_string_equal(buf_cstr(&canonical), buf_cstr(&file));
    assert_int_equal(json_array_size(json_object_get(parsed, "receipts")), 4);
    json_decref(parsed);
    json_decref(b);
    buf_release(&file);
    buf_release(&canonical);
    hash.bytes[0] ^= 1;
    assert_int_equal(ledger_batch_file(w->l, hash, &file, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

static void the_policy_seals_by_number_by_value_and_by_age(void **state)
{
    struct world *w = *state;
    struct ledger_health h;
    struct {
        struct ledger_seal_policy policy;
        uint64_t batches;
        const char *why;
    } rows[] = {
        {{.max_receipts = 3, .max_age_ms = 3600000}, 2, "7 receipts, 3 a batch, one left"},
        {{.max_receipts = 1000, .max_age_ms = 1}, 1, "old enough"},
        {{.max_receipts = 1000, .max_age_ms = 3600000, .max_value = {1}}, 7, "one is too much"},
    };
    uint64_t from = 0, batches = 0;
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++, from += 100) {
        w->options.seal = rows[i].policy;
        reopen(w);
        market_commit_many(w->l, from, 7, NULL);
        uint64_t least = batches + rows[i].batches;
        for (int k = 0; k < 150; k++) {
            ledger_health(w->l, &h);
            if (h.batches_sealed >= least)
                break;
            usleep(20000);
        }
        if (h.batches_sealed < least)
            fail_msg("%s: %llu batches", rows[i].why, (unsigned long long)h.batches_sealed);
        market_seal(w->l); /* the rest, before the next row */
        ledger_health(w->l, &h);
        batches = h.batches_sealed;
    }
    market_check(w->l, false);
}

static void a_clock_that_is_set_back_keeps_nothing_unsealed(void **state)
{
    struct world *w = *state;
    struct ledger_health h;
    w->options.seal = (struct ledger_seal_policy){.max_receipts = 1000, .max_age_ms = 3600 * 1000};
    reopen(w);
    market_commit_many(w->l, 0, 3, NULL);
    usleep(100000);
    ledger_health(w->l, &h);
    assert_int_equal(h.batches_sealed, 0);
    calendar_shift_s = -365 * 24 * 3600; /* it was a year ahead, and is set right */
    for (int k = 0; k < 100 && h.batches_sealed == 0; k++) {
        usleep(20000);
        ledger_health(w->l, &h);
    }
    assert_int_equal(h.batches_sealed, 1);
    market_check(w->l, false);
}

/* A receipt of another payer, through the inside of the room. */
struct other_payer {
    struct address payer;
    uint64_t n;
};

static int other_payer_task(struct ledger *l, void *context, struct err *err)
{
    struct other_payer *o = context;
    struct channel_state ch;
    struct signed_receipt r;
    struct usage u = market_usage(5000 + o->n, NULL);
    struct ledger_price price;
    bool again;
    if (o->n == 0 &&
        ledger_open_channel(l, l->domain, l->operator_address, o->payer, 0, "test", err) != 0)
        return -1;
    o->n++;
    return ledger_load_channel(l, l->db, &ch, o->payer, err) != 0 ||
                   ledger_quote(l, &price, NULL, 0, u.tokens_prompt, u.tokens_completion, err) !=
                       0 ||
                   receipt_append(l, &ch, &u, &price, &r, &again, err) != 0
               ? -1
               : 0;
}

static void a_payer_who_does_not_pay_blocks_nobody(void **state)
{
    struct world *w = *state;
    struct other_payer o = {.payer = {{0x66}}};
    struct err err = {0};
    for (int i = 0; i < 4; i++)
        assert_ok(ledger_run(w->l, other_payer_task, &o, &err), err);
    market_commit_many(w->l, 0, 6, &w->adapter);
    assert_int_equal(market_seal(w->l), 6); /* the house's only */
    market_check(w->l, false);
    json_t *channels = ledger_query_channels(w->l, NULL, &err);
    size_t i;
    const json_t *c;
    json_array_foreach(json_object_get(channels, "items"), i, c)
    {
        bool house = strstr(json_string_value(json_object_get(c, "payer")), "0x66") == NULL;
        assert_int_equal(json_integer_value(json_object_get(c, "sealed")), house ? 6 : 0);
    }
    json_decref(channels);
}

/* ---- queries -------------------------------------------------------------------------------- */

static void usage_is_counted_by_adapter_and_filtered(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct adapter_id second = market_put_adapter(w->l, 2);
    for (uint64_t i = 0; i < 9; i++) {
        struct usage u = market_usage(i, i % 3 == 0 ? NULL : i % 3 == 1 ? &w->adapter : &second);
        assert_ok(market_commit(w->l, &u, NULL, &err), err);
    }
    struct usage both = market_usage(9, &w->adapter);
    both.n_adapters = 2;
    both.adapters[0].weight_bps = 2500;
    both.adapters[1] = both.adapters[0];
    both.adapters[1].id = second;
    both.adapters[1].weight_bps = 7500;
    assert_ok(market_commit(w->l, &both, NULL, &err), err);
    struct usage strangers = both; /* an ensemble of two that are nowhere registered */
    memset(strangers.request_id, 0x77, 32);
    strangers.adapters[0].id = strangers.adapters[1].id = (struct adapter_id){{0}};
    assert_ok(market_commit(w->l, &strangers, NULL, &err), err);

    json_t *all = ledger_query_usage(w->l, NULL, &err);
    assert_int_equal(json_array_size(json_object_get(all, "items")), 4);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(all, "totals"), "requests")), 11);
    uint64_t fees = 0, want = 0;
    int n_strangers = 0;
    size_t i;
    const json_t *item;
    json_array_foreach(json_object_get(all, "items"), i, item)
    {
        const char *id = json_string_value(json_object_get(item, "adapterId"));
        fees += strtoull(json_string_value(json_object_get(item, "computeFee")), NULL, 10);
        if (id == NULL || strspn(id + 2, "0") != 64)
            continue;
        assert_int_equal(json_integer_value(json_object_get(item, "requests")), 1);
        assert_int_equal(json_integer_value(json_object_get(item, "promptTokens")),
                         strangers.tokens_prompt);
        assert_int_equal(json_integer_value(json_object_get(item, "completionTokens")),
                         strangers.tokens_completion);
        n_strangers++;
    }
    assert_int_equal(n_strangers, 1);
    want = strtoull(
        json_string_value(json_object_get(json_object_get(all, "totals"), "computeFee")), NULL, 10);
    assert_int_equal(fees, want); /* no fee is counted twice */
    json_decref(all);

    struct ledger_filter f = {.adapter = &second};
    json_t *one = ledger_query_usage(w->l, &f, &err);
    assert_int_equal(json_array_size(json_object_get(one, "items")), 1);
    assert_int_equal(json_integer_value(json_object_get(
                         json_array_get(json_object_get(one, "items"), 0), "requests")),
                     4);
    json_decref(one);
    f = (struct ledger_filter){.from_ms = 1700000000002, .to_ms = 1700000000005};
    json_t *period = ledger_query_usage(w->l, &f, &err);
    assert_int_equal(
        json_integer_value(json_object_get(json_object_get(period, "totals"), "requests")), 3);
    json_decref(period);
    f = (struct ledger_filter){.key_tag = 5};
    json_t *nobody = ledger_query_usage(w->l, &f, &err);
    assert_int_equal(json_array_size(json_object_get(nobody, "items")), 0);
    json_decref(nobody);
    f = (struct ledger_filter){.cursor = "nonsense"};
    assert_null(ledger_query_usage(w->l, &f, &err));
    assert_int_equal(err.code, ERR_INVALID);
}

static void pages_join_without_gap_or_overlap(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    market_commit_many(w->l, 0, 23, &w->adapter);
    uint8_t channel[32];
    json_t *channels = ledger_query_channels(w->l, NULL, &err);
    const json_t *first = json_array_get(json_object_get(channels, "items"), 0);
    assert_int_equal(hex_decode(channel, 32, json_string_value(json_object_get(first, "channel"))),
                     0);
    json_decref(channels);
    uint64_t next = 0;
    for (int page = 0; page < 5; page++) {
        json_t *p = ledger_query_receipts(w->l, channel, next, 7, &err);
        size_t i;
        const json_t *r;
        json_array_foreach(json_object_get(p, "items"), i, r) assert_int_equal(
            json_integer_value(json_object_get(json_object_get(r, "receipt"), "index")), next + i);
        next += i;
        bool more = json_is_string(json_object_get(p, "next"));
        json_decref(p);
        if (!more)
            break;
    }
    assert_int_equal(next, 23);

    char *cursor = NULL;
    size_t n = 0;
    for (int page = 0; page < 10; page++) {
        struct ledger_filter f = {.limit = 2, .cursor = cursor};
        json_t *p = ledger_query_rewards(w->l, &f, &err);
        n += json_array_size(json_object_get(p, "items"));
        free(cursor);
        const char *text = json_string_value(json_object_get(p, "next"));
        cursor = text ? xstrdup(text) : NULL;
        json_decref(p);
        if (!cursor)
            break;
    }
    assert_int_equal(n, 6);
}

static void adapters_are_found_by_id_content_and_name(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    for (int i = 2; i < 90; i++)
        market_put_adapter(w->l, i);
    market_put_adapter(w->l, 2); /* again: no harm */
    reopen(w);
    for (int i = 1; i < 90; i++) {
        struct buf text = BUF_INIT;
        struct adapter_id id = market_adapter_text(i, &text);
        struct ledger_adapter a, b, c;
        char name[32];
        snprintf(name, sizeof(name), "voice-%d", i);
        assert_ok(ledger_adapter_by_id(w->l, &a, id, &err), err);
        assert_ok(ledger_adapter_by_content(w->l, &b, a.content, &err), err);
        assert_ok(ledger_adapter_by_name(w->l, &c, name, 0, &err), err);
        assert_string_equal(a.name, name);
        assert_memory_equal(b.id.bytes, id.bytes, 32);
        assert_memory_equal(c.id.bytes, id.bytes, 32);
        if (i == 5) {
            assert_int_equal(ledger_adapter_put(w->l, w->adapter, text.data, text.len, &err), -1);
            assert_int_equal(err.code, ERR_CONFLICT);
            assert_ok(ledger_adapter_retire(w->l, id, &err), err);
            assert_ok(ledger_adapter_by_id(w->l, &a, id, &err), err);
            assert_true(a.retired);
        }
        buf_release(&text);
    }
    struct ledger_adapter none;
    assert_int_equal(ledger_adapter_by_name(w->l, &none, "voice-1", 7, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    json_t *list = ledger_query_adapters(w->l, NULL, &err);
    assert_int_equal(json_array_size(json_object_get(list, "items")), 89);
    json_decref(list);
}

/* ---- books ---------------------------------------------------------------------------------- */

static void the_books_notice_every_alteration(void **state)
{
    struct world *w = *state;
    static const struct {
        const char *sql, *finds;
    } rows[] = {
        {"UPDATE receipt SET compute_fee = royalty WHERE idx = 2", "hash"},
        {"UPDATE receipt SET signature = zeroblob(65) WHERE idx = 1", "signed"},
        {"UPDATE receipt SET tokens_prompt = tokens_prompt + 1 WHERE idx = 4", "hash"},
        {"UPDATE receipt SET idx = 77 WHERE idx = 5", "gap"},
        {"DELETE FROM receipt_adapter WHERE receipt = (SELECT id FROM receipt WHERE idx = 1); "
         "DELETE FROM receipt WHERE idx = 1",
         "gap"},
        {"UPDATE receipt_adapter SET royalty = zeroblob(16) WHERE receipt = "
         "(SELECT id FROM receipt WHERE idx = 1)",
         "hash"},
        {"UPDATE channel SET total = zeroblob(16)", "head, length or total"},
        {"UPDATE channel SET sealed_index = 3", "sealed"},
        {"UPDATE voucher SET value = zeroblob(16)", "voucher"},
        {"UPDATE batch SET committed = value WHERE seq = 1", "commits"},
        {"UPDATE batch SET receipts_root = zeroblob(32) WHERE seq = 0", "receiptsRoot"},
        {"UPDATE batch SET payout_root = zeroblob(32) WHERE seq = 1", "payoutRoot"},
        {"UPDATE batch SET prev_hash = zeroblob(32) WHERE seq = 1", "follow"},
        {"UPDATE batch SET file = CAST(file || x'20' AS BLOB) WHERE seq = 0", "dataHash"},
        {"UPDATE batch SET signature = zeroblob(65) WHERE seq = 0", "signed"},
        {"UPDATE payout SET earned = zeroblob(16) WHERE kind = 1 AND position = 0", "earned"},
        {"UPDATE payout SET sealed = zeroblob(16) WHERE kind = 2", "sealed"},
        {"UPDATE payout SET claimed = earned", "descend"},
        {"DELETE FROM payout WHERE kind = 0", "payout rows"},
        {"UPDATE batch SET leaf_count = 4294967295 WHERE seq = 1", "not 4294967295"},
        {"UPDATE batch SET leaf_count = 0 WHERE seq = 0", "hash"},
        {"UPDATE adapter SET manifest = CAST(replace(manifest, '0x5151', '0x1515') AS BLOB)",
         "manifest"},
    };
    /* Columns whose lower bits are as they were: sums in SQL would differ. */
    static const char *const misfits[] = {
        "UPDATE receipt SET tokens_prompt = tokens_prompt + 4294967296 WHERE idx = 4",
        "UPDATE receipt SET tokens_completion = tokens_completion + 4294967296 WHERE idx = 4",
        "UPDATE receipt_adapter SET bps = bps + 65536",
        "UPDATE batch SET leaf_count = leaf_count + 4294967296",
        "UPDATE receipt SET position = position + 4294967296 WHERE idx = 4",
        "UPDATE payout SET position = position + 65536 WHERE kind = 1",
        "UPDATE payout SET kind = kind + 3",
    };
    struct err err = {0};
    char *path = path_of(w, "ledger.db"), *kept = path_of(w, "kept");
    market_commit_many(w->l, 0, 5, &w->adapter);
    market_seal(w->l);
    market_commit_many(w->l, 5, 4, &w->adapter);
    market_seal(w->l);
    market_commit_many(w->l, 9, 2, &w->adapter);
    market_check(w->l, false);
    ledger_close(w->l);
    w->l = NULL;
    struct ledger_options reader = w->options;
    reader.read_only = true;
    copy_file(path, kept);
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        struct db *db = db_open(path, DB_WRITER, &err);
        assert_ok(db_exec(db, "PRAGMA foreign_keys = OFF", &err), err);
        assert_ok(db_exec(db, rows[i].sql, &err), err);
        db_close(db);
        struct ledger *l = ledger_open(&reader, &err);
        assert_non_null(l);
        json_t *report;
        if (ledger_check(l, NULL, &report, &err) == 0)
            fail_msg("unnoticed: %s", rows[i].sql);
        char *text = json_dumps(report, 0);
        if (!strstr(text, rows[i].finds))
            fail_msg("%s: the report doesn't say \"%s\": %s", rows[i].sql, rows[i].finds, text);
        free(text);
        json_decref(report);
        ledger_close(l);
        copy_file(kept, path);
    }
    for (size_t i = 0; i < sizeof(misfits) / sizeof(*misfits); i++) {
        struct db *db = db_open(path, DB_WRITER, &err);
        assert_ok(db_exec(db, misfits[i], &err), err);
        db_close(db);
        struct ledger *l = ledger_open(&reader, &err);
        assert_non_null(l);
        err.code = ERR_OK;
        if (ledger_check(l, NULL, NULL, &err) == 0 || err.code != ERR_CORRUPT)
            fail_msg("unnoticed: %s (%s)", misfits[i], err.code == ERR_OK ? "" : err.message);
        ledger_close(l);
        copy_file(kept, path);
    }
    printf("note: books: %zu alterations, all found\n",
           (sizeof(rows) / sizeof(*rows)) + (sizeof(misfits) / sizeof(*misfits)));
    free(path);
    free(kept);
}

int main(void)
{
#define LOCAL(name) cmocka_unit_test_setup_teardown(name, set_up_local, tear_down)
#define CHAIN(name) cmocka_unit_test_setup_teardown(name, set_up_chain, tear_down)
    const struct CMUnitTest tests[] = {
        LOCAL(receipts_are_chained_signed_and_canonical),
        LOCAL(the_attribution_hash_is_that_of_the_header),
        LOCAL(the_same_request_is_billed_once),
        LOCAL(what_cannot_be_billed_is_refused_before_the_queue),
        LOCAL(many_commits_share_one_fsync_and_a_full_queue_says_busy),
        LOCAL(a_disk_that_is_full_fails_commits_and_loses_nothing),
        LOCAL(a_ledger_is_opened_once_and_only_if_it_is_ours),
        LOCAL(a_chain_needs_its_id_and_all_addresses),
        LOCAL(naming_a_chain_starts_new_channels),
        LOCAL(a_channel_is_listed_from_one_of_its_lives),
        LOCAL(a_question_to_the_chain_that_is_broken_off_decides_no_epoch),
        LOCAL(local_receipts_are_never_sealed),
        LOCAL(a_restored_database_never_extends_an_old_channel),
        LOCAL(an_epoch_that_was_opened_counts_whatever_failed_after_it),
        LOCAL(a_receipt_that_was_kept_back_is_kept_back_again),
        LOCAL(a_restored_database_begins_no_channel_with_epoch_0),
        LOCAL(two_restorations_behind_the_clock_do_not_meet),
        LOCAL(a_copied_directory_and_a_lost_generation_file_count_as_restored),
        LOCAL(a_deleted_directory_that_is_put_back_counts_as_restored),
        LOCAL(a_running_ledgers_copy_that_is_written_back_counts_as_restored),
        LOCAL(a_copy_that_is_written_back_over_the_files_counts_as_restored),
        CHAIN(a_batch_proves_each_receipt_and_each_payout),
        CHAIN(a_batch_file_is_canonical_and_has_its_hash),
        CHAIN(the_policy_seals_by_number_by_value_and_by_age),
        CHAIN(a_clock_that_is_set_back_keeps_nothing_unsealed),
        CHAIN(a_payer_who_does_not_pay_blocks_nobody),
        LOCAL(usage_is_counted_by_adapter_and_filtered),
        LOCAL(pages_join_without_gap_or_overlap),
        LOCAL(adapters_are_found_by_id_content_and_name),
        CHAIN(the_books_notice_every_alteration),
    };
    market_uses();
    return cmocka_run_group_tests_name("ledger", tests, NULL, NULL);
}
