/* Killed at each named point (node/base/fault.h), the ledger comes back with equal books.
 *
 * A child serves, seals and publishes on the fake chain, which lies in shared memory, and writes
 * the hash of every receipt it was handed into a pipe, as a client outside would keep it. SIGKILL
 * strikes at the point under test. The parent opens the ledger again and asks: is every receipt
 * there that left, are the books right, does everything settle, has nothing settled twice. */
#include "tests/unit/attribution/market.h"

#include "node/base/fault.h"

#include <signal.h>
#include <sys/wait.h>

enum { RECEIPTS_BEFORE = 8, RECEIPTS_AFTER = 3, BATCHES = 3 };

struct outside { /* what clients keep */
    int fd;
};

static void keep(void *context, const struct ledger_receipt *r, const struct err *err)
{
    const struct outside *o = context;
    (void)err;
    if (r && write(o->fd, r->hash.bytes, 32) != 32)
        _exit(3);
}

/* The life of a node: answers, seals, publishes, again and again. */
static void live(const char *dir, int fd)
{
    struct wallet *wallet = market_wallet();
    struct ledger_options options = market_options(dir, wallet, true);
    struct outside outside = {fd};
    struct err err = {0};
    struct ledger *l = market_open(&options);
    struct adapter_id adapter = market_put_adapter(l, 1);
    for (uint64_t b = 0; b < BATCHES; b++) {
        for (uint64_t i = 0; i < RECEIPTS_BEFORE; i++) {
            struct usage u = market_usage(b * 100 + i, i % 3 ? &adapter : NULL);
            if (ledger_commit(l, &u, keep, &outside, &err) != 0)
                _exit(4);
        }
        uint32_t sealed;
        if (ledger_seal_now(l, &sealed, &err) != 0)
            _exit(5);
        for (int round = 0; round < 4; round++) {
            if (publisher_round(l, &err) != 0)
                _exit(6);
            fake_mine();
        }
    }
    ledger_close(l);
    wallet_close(wallet);
}

static size_t all_outside_receipts_are_inside(struct ledger *l, int fd)
{
    uint8_t hash[32];
    size_t n = 0;
    while (read(fd, hash, 32) == 32) {
        struct err err = {0};
        json_t *r = ledger_query_receipt(l, hash, &err);
        if (!r)
            fail_msg("a receipt that left is gone: %s", err.message);
        json_decref(r);
        n++;
    }
    return n;
}

static void settle(struct ledger *l)
{
    for (int i = 0; i < 40; i++) {
        struct ledger_health h;
        struct err err = {0};
        assert_ok(publisher_round(l, &err), err);
        fake_mine();
        ledger_health(l, &h);
        if (h.outbox_waiting == 0 && h.batches_final == h.batches_sealed)
            return;
    }
    fail_msg("the outbox never emptied");
}

static void one_kill(const char *fault, size_t *n_kept)
{
    int pipe_fds[2], status;
    fake_chain_reset();
    fake_now()->stake = amount_of(1000000000);
    fake_now()->balance = amount_of(1000000000);
    char *dir = temp_dir_create();
    assert_int_equal(pipe(pipe_fds), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(pipe_fds[0]);
        setenv("TRIBUTARY_FAULT", fault, 1);
        fault_init();
        live(dir, pipe_fds[1]);
        _exit(0); /* the point was never reached */
    }
    close(pipe_fds[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        fail_msg("%s: the process ended with status %#x instead of being killed", fault, status);

    struct wallet *wallet = market_wallet();
    struct ledger_options options = market_options(dir, wallet, true);
    struct ledger *l = market_open(&options);
    struct adapter_id adapter = market_put_adapter(l, 1);
    *n_kept += all_outside_receipts_are_inside(l, pipe_fds[0]);
    market_check(l, true);
    struct err err = {0};
    json_t *channels = ledger_query_channels(l, NULL, &err);
    if (json_array_size(json_object_get(channels, "items")) != 1)
        fail_msg("%s: a crash was taken for a restored backup", fault);
    json_decref(channels);
    market_commit_many(l, 1000, RECEIPTS_AFTER, &adapter);
    market_seal(l);
    settle(l);
    market_check(l, true);
    /* All that was redeemed is committed, nothing twice, nothing was refused by a contract. */
    struct fake_state *s = fake_now();
    if (s->n_batches == 0 || amount_cmp(s->redeemed, s->committed[s->n_batches - 1]) != 0)
        fail_msg("%s: the chain's books don't balance", fault);
    if (fake->n_reverts != 0)
        fail_msg("%s: %llu transactions reverted", fault, (unsigned long long)fake->n_reverts);
    ledger_close(l);
    wallet_close(wallet);
    close(pipe_fds[0]);
    temp_dir_remove(dir);
}

static void a_kill_at_any_point_loses_no_receipt_and_settles_nothing_twice(void **state)
{
    (void)state;
    static const char *const points[] = {
        "commit.before",    "commit.before:3",  "commit.before:8",  "commit.after",
        "commit.after:3",   "commit.after:7",   "commit.after:11",  "generation.after:2",
        "seal.begin",       "seal.begin:3",     "seal.middle",      "seal.middle:2",
        "publish.signed",   "publish.signed:2", "publish.signed:5", "publish.stored",
        "publish.stored:2", "publish.stored:4", "publish.sent",     "publish.sent:2",
        "publish.sent:6",
    };
    size_t kept = 0, n = sizeof(points) / sizeof(*points);
    log_set_level(LOG_ERROR);
    for (size_t i = 0; i < n; i++)
        one_kill(points[i], &kept);
    printf("note: crash: %zu kills, %zu receipts kept outside, none missing, books equal\n", n,
           kept);
    assert_true(kept > 50);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_kill_at_any_point_loses_no_receipt_and_settles_nothing_twice),
    };
    market_uses();
    return cmocka_run_group_tests_name("crash", tests, NULL, NULL);
}
