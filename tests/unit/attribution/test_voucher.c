/* Payers' vouchers: which are taken, that each pays to the unit and once, and that one without
 * money holds up nobody. */
#include "tests/unit/attribution/ledger_world.h"

#include "attribution/held.h"
#include "attribution/outbox.h"
#include "node/base/fault.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

enum { N_PAYERS = 40, CREDIT = 1000000 };

static char names[N_PAYERS][8]; /* of the payers' keys: "p0", ... */

static struct wallet *wallet_with_payers(void)
{
    struct wallet_memory_key keys[3 + N_PAYERS] = {
        {"signer", {0}}, {"house", {0}}, {"creator", {0}}};
    struct err err = {0};
    for (int i = 0; i < 3 + N_PAYERS; i++) {
        memset(keys[i].key, 0x11, 32);
        keys[i].key[0] = (uint8_t)(i + 1);
        if (i < 3)
            continue;
        snprintf(names[i - 3], sizeof(*names), "p%d", i - 3);
        keys[i].name = names[i - 3];
    }
    struct wallet *w = wallet_open_memory(keys, 3 + N_PAYERS, &err);
    assert_non_null(w);
    return w;
}

static int set_up(void **state)
{
    *state = world_create(wallet_with_payers(), true, CREDIT);
    fund_operator();
    return 0;
}

static int set_up_local(void **state)
{
    *state = world_create(wallet_with_payers(), false, CREDIT);
    fund_operator();
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    market_check(w->l, w->l->has_chain); /* whatever a test did, the books are right */
    world_free(w);
    return 0;
}

/* ---- a payer ----------------------------------------------------------------------------------
 */

static struct address payer_address(struct world *w, int payer)
{
    struct address a;
    struct err err = {0};
    assert_ok(wallet_key_address(w->wallet, names[payer], &a, &err), err);
    return a;
}

static struct channel_state channel_of(struct world *w, int payer)
{
    struct channel_state ch;
    struct err err = {0};
    struct db *db = ledger_reader(w->l, &err);
    if (ledger_load_channel(w->l, db, &ch, payer_address(w, payer), &err) != 0)
        ledger_new_channel(w->l, &ch, payer_address(w, payer));
    ledger_reader_done(w->l, db);
    return ch;
}

/* 0, or -1: the credit doesn't allow it. */
static int ask(struct world *w, int payer, uint64_t max_fee, struct err *err)
{
    struct channel_state ch = channel_of(w, payer);
    struct signed_request q = {.request = {
                                   .payer = ch.payer,
                                   .operator_address = ledger_operator(w->l),
                                   .nonce = w->nonce++,
                                   .max_fee = amount_of(max_fee),
                                   .deadline_ms = clock_unix_ms().ms + 60000,
                               }};
    struct eip712_domain domain = {w->options.chain.chain_id, w->options.chain.escrow};
    struct request_digest id;
    memcpy(q.request.channel, ch.hash.bytes, 32);
    id = eip712_request(&q.request, &domain);
    assert_ok(wallet_sign_request(w->wallet, names[payer], &q.signature, &id, err), *err);
    assert_ok(ledger_request_check(w->l, &id, &q, NULL, err), *err);
    if (ledger_request_enter(w->l, id, &q.request, err) != 0)
        return -1;
    struct usage u = market_usage(w->nonce, w->nonce % 2 ? &w->adapter : NULL);
    memcpy(u.request_id, id.bytes, 32);
    u.request_hash = q.request.request_hash;
    u.key_tag = 0;
    assert_ok(market_commit(w->l, &u, NULL, err), *err);
    ledger_request_leave(w->l, id);
    return 0;
}

static void ask_times(struct world *w, int payer, int n)
{
    struct err err = {0};
    for (int i = 0; i < n; i++)
        assert_ok(ask(w, payer, 200000, &err), err);
}

static void sign(struct world *w, struct signed_voucher *v, const char *key)
{
    struct eip712_domain domain = {w->options.chain.chain_id, w->options.chain.escrow};
    struct voucher_digest digest = eip712_voucher(&v->voucher, &domain);
    struct err err = {0};
    assert_ok(wallet_sign_voucher(w->wallet, key, &v->signature, &digest, &err), err);
}

/* Over all that the payer's open channel has. */
static struct signed_voucher make(struct world *w, int payer)
{
    struct channel_state ch = channel_of(w, payer);
    struct signed_voucher v = {.voucher = {
                                   .payer = ch.payer,
                                   .operator_address = ledger_operator(w->l),
                                   .timestamp_ms = clock_unix_ms().ms,
                                   .value_aggregate = ch.total,
                               }};
    memcpy(v.voucher.channel, ch.hash.bytes, 32);
    memcpy(v.voucher.last_receipt_hash, ch.head, 32);
    sign(w, &v, names[payer]);
    return v;
}

static void expect_taken(struct world *w, const struct signed_voucher *v, bool accepted)
{
    struct voucher_held held;
    struct err err = {0};
    assert_ok(ledger_voucher_accept(w->l, &held, v, &err), err);
    assert_int_equal(held.accepted, accepted);
}

static struct signed_voucher pay(struct world *w, int payer)
{
    struct signed_voucher v = make(w, payer);
    expect_taken(w, &v, true);
    return v;
}

static void expect_refusal(struct world *w, const struct signed_voucher *v, enum err_code code,
                           const char *says)
{
    struct voucher_held held;
    struct err err = {0};
    if (ledger_voucher_accept(w->l, &held, v, &err) == 0)
        fail_msg("taken, expected \"%s\"", says);
    if (err.code != code || strstr(err.message, says) == NULL)
        fail_msg("%s: %s; expected %s: ...%s...", err_code_name(err.code), err.message,
                 err_code_name(code), says);
}

static void fund(struct world *w, int payer, uint64_t units)
{
    *fake_balance_of(fake_now(), payer_address(w, payer)) = amount_of(units);
}

/* A member of the payer's newest channel as ledger_query_payer has it, or of its voucher. */
static const char *told(struct world *w, int payer, const char *of_voucher, char out[256])
{
    struct err err = {0};
    json_t *o = ledger_query_payer(w->l, payer_address(w, payer), &err);
    assert_non_null(o);
    const json_t *v = json_object_get(json_array_get(json_object_get(o, "channels"), 0), "voucher");
    const json_t *member = strcmp(of_voucher, "owed") == 0 ? json_object_get(o, "owed")
                                                           : json_object_get(v, of_voucher);
    snprintf(out, 256, "%s", json_is_string(member) ? json_string_value(member) : "null");
    json_decref(o);
    return out;
}

#define assert_told(w, payer, member, expected)                       \
    do {                                                              \
        char text_[256];                                              \
        assert_string_equal(told(w, payer, member, text_), expected); \
    } while (0)

static uint64_t count_rows(struct world *w, const char *sql)
{
    struct err err = {0};
    struct db *db = ledger_reader(w->l, &err);
    struct db_stmt *s = db_stmt(db, sql);
    assert_int_equal(db_step(s, &err), 1);
    uint64_t n = db_get_u64(s);
    db_end(s);
    ledger_reader_done(w->l, db);
    return n;
}

/* ---- from credit to settled -------------------------------------------------------------------
 */

static void a_payer_pays_and_has_its_credit_back_once_it_is_redeemed(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    int n = 0;
    fund(w, 0, 10 * CREDIT);
    while (ask(w, 0, 300000, &err) == 0)
        n++;
    assert_int_equal(err.code, ERR_PAYMENT);
    assert_in_range(n, 3, 100);
    assert_int_equal(market_seal(w->l), 0); /* nobody has paid for them */
    struct signed_voucher v = pay(w, 0);
    assert_told(w, 0, "state", "held");
    assert_int_equal(ask(w, 0, 300000, &err), -1); /* a promise is no payment */
    look(w);
    assert_told(w, 0, "state", "signed");
    fake_mine();
    look(w);
    assert_told(w, 0, "state", "mined");
    assert_int_equal(ask(w, 0, 300000, &err), -1); /* in a block, not confirmed */
    fake_mine();
    look(w);
    assert_told(w, 0, "state", "confirmed");
    assert_told(w, 0, "owed", "0");
    assert_ok(ask(w, 0, CREDIT, &err), err);
    market_commit_many(w->l, 500, 2, &w->adapter);
    assert_int_equal(market_seal(w->l), n + 2); /* not the one that it owes again */
    settle(w);
    struct fake_state *s = fake_now();
    assert_int_equal(s->n_batches, 1);
    assert_int_equal(amount_cmp(s->redeemed, s->committed[0]), 0);
    assert_int_equal(fake->n_reverts, 0);
    expect_taken(w, &v, false);
}

static void a_batch_is_due_once_payers_have_paid_for_it(void **state)
{
    struct world *w = *state;
    struct ledger_health h;
    w->options.seal.max_receipts = 3;
    reopen(w);
    fund(w, 0, CREDIT);
    ask_times(w, 0, 3);
    pay(w, 0);
    ledger_health(w->l, &h);
    assert_int_equal(h.unsealed_receipts, 0);
    for (int i = 0; i < 3; i++) {
        look(w);
        fake_mine();
    }
    for (int i = 0; i < 100 && fake_now()->n_batches == 0; i++) {
        usleep(20000); /* the ledger thread looks around */
        look(w);
        if (fake_pending() > 0)
            fake_mine();
    }
    assert_int_equal(fake_now()->n_batches, 1);
    settle(w);
}

/* ---- what is taken ----------------------------------------------------------------------------
 */

static void what_is_wrong_with_a_voucher_is_said(void **state)
{
    struct world *w = *state;
    struct signed_voucher v, good;
    ask_times(w, 0, 2);
    ask_times(w, 1, 1);
    market_commit_many(w->l, 0, 1, NULL);
    good = make(w, 0);

    v = good;
    v.voucher.operator_address.bytes[0] ^= 1;
    sign(w, &v, names[0]);
    expect_refusal(w, &v, ERR_INVALID, "for operator");
    v = good;
    v.voucher.channel[5] ^= 1;
    sign(w, &v, names[0]);
    expect_refusal(w, &v, ERR_NOT_FOUND, "no channel");
    v = make(w, 1); /* somebody else's channel, receipt and total */
    v.voucher.payer = good.voucher.payer;
    sign(w, &v, names[0]);
    expect_refusal(w, &v, ERR_UNAUTHORIZED, "another payer's");
    v = make(w, 1);
    memcpy(v.voucher.channel, good.voucher.channel, 32);
    v.voucher.payer = good.voucher.payer;
    sign(w, &v, names[0]);
    expect_refusal(w, &v, ERR_CONFLICT, "no receipt of its channel");
    v = good;
    v.voucher.payer = ledger_house(w->l);
    memcpy(v.voucher.channel, w->l->house_channel.hash.bytes, 32);
    sign(w, &v, "house");
    expect_refusal(w, &v, ERR_FORBIDDEN, "house account's");
    v = good;
    v.voucher.value_aggregate.units++;
    sign(w, &v, names[0]);
    expect_refusal(w, &v, ERR_CONFLICT, "channelTotal");
    v.voucher.value_aggregate.units -= 2;
    sign(w, &v, names[0]);
    expect_refusal(w, &v, ERR_CONFLICT, "channelTotal");
    v = good;
    sign(w, &v, names[1]);
    expect_refusal(w, &v, ERR_UNAUTHORIZED, "not signed by its payer");
    v = good;
    v.voucher.timestamp_ms++; /* after it was signed */
    expect_refusal(w, &v, ERR_UNAUTHORIZED, "not signed by its payer");
    v = good;
    memset(v.signature.s, 0xff, 32);
    expect_refusal(w, &v, ERR_UNAUTHORIZED, "not signed by its payer");
    v = good;
    w->options.chain.chain_id++;
    sign(w, &v, names[0]);
    w->options.chain.chain_id--;
    expect_refusal(w, &v, ERR_UNAUTHORIZED, "chain 31337");
    assert_int_equal(count_rows(w, "SELECT count(*) FROM voucher"), 0);
    expect_taken(w, &good, true);
}

static void without_a_chain_no_voucher_is_taken(void **state)
{
    struct world *w = *state;
    struct signed_voucher v = {.voucher = {.timestamp_ms = 1}};
    struct err err = {0};
    expect_refusal(w, &v, ERR_UNSUPPORTED, "no chain");
    assert_null(ledger_query_payer(w->l, v.voucher.payer, &err));
    assert_int_equal(err.code, ERR_UNSUPPORTED);
}

static void a_newer_voucher_takes_the_place_of_the_one_that_is_held(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct voucher_held held;
    ask_times(w, 0, 1);
    struct signed_voucher first = pay(w, 0);
    look(w); /* it has a note by now */
    ask_times(w, 0, 1);
    struct signed_voucher second = make(w, 0);
    ask_times(w, 0, 1);
    struct signed_voucher third = pay(w, 0);
    assert_int_equal(count_rows(w, "SELECT count(*) FROM voucher"), 1);
    assert_int_equal(count_rows(w, "SELECT count(*) FROM outbox WHERE state = 5"), 1);
    for (int i = 0; i < 2; i++) {
        /* Old ones and the same again do nothing, and say what is held. */
        assert_ok(ledger_voucher_accept(w->l, &held, &second, &err), err);
        assert_false(held.accepted);
        assert_int_equal(held.index, 2);
        assert_int_equal(amount_cmp(held.value, third.voucher.value_aggregate), 0);
        assert_memory_equal(held.last_receipt, third.voucher.last_receipt_hash, 32);
        expect_taken(w, &first, false);
        expect_taken(w, &third, false);
        reopen(w);
    }
    fund(w, 0, CREDIT);
    look(w); /* held, asked before, and its turn again */
    settle(w);
    assert_told(w, 0, "state", "confirmed");
    assert_told(w, 0, "owed", "0");
    expect_taken(w, &first, false);
    expect_taken(w, &third, false);
    assert_int_equal(count_rows(w, "SELECT count(*) FROM voucher"), 1);
}

/* The first payer's voucher over one receipt is on its way. */
static void send_redeem(struct world *w)
{
    fund(w, 0, CREDIT);
    ask_times(w, 0, 1);
    pay(w, 0);
    look(w);
    assert_told(w, 0, "state", "signed");
}

static void a_newer_voucher_waits_for_the_one_that_is_on_its_way(void **state)
{
    struct world *w = *state;
    send_redeem(w);
    ask_times(w, 0, 1);
    pay(w, 0);
    look(w);
    assert_told(w, 0, "state", "held");
    settle(w);
    look(w);
    settle(w);
    assert_told(w, 0, "state", "confirmed");
    assert_told(w, 0, "owed", "0");
    assert_int_equal(fake->n_reverts, 0);
}

enum { N_VOUCHERS = 8, N_THREADS = 4 };

struct crowd {
    struct world *w;
    struct signed_voucher vouchers[N_VOUCHERS];
    _Atomic int next;
};

static void *hand_in(void *context)
{
    struct crowd *c = context;
    for (int i; (i = c->next++) < 4 * N_VOUCHERS;) {
        struct voucher_held held;
        struct err err = {0};
        BUG_IF(ledger_voucher_accept(c->w->l, &held, &c->vouchers[i * 5 % N_VOUCHERS], &err) != 0);
    }
    return NULL;
}

static void of_many_at_once_the_newest_is_held(void **state)
{
    struct world *w = *state;
    struct crowd c = {.w = w};
    pthread_t threads[N_THREADS];
    struct ledger_health h;
    for (int i = 0; i < N_VOUCHERS; i++) {
        ask_times(w, 0, 1);
        c.vouchers[i] = make(w, 0);
    }
    for (int i = 0; i < N_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, hand_in, &c), 0);
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
    expect_taken(w, &c.vouchers[N_VOUCHERS - 1], false);
    assert_int_equal(count_rows(w, "SELECT count(*) FROM voucher"), 1);
    ledger_health(w->l, &h);
    assert_int_equal(h.vouchers_held, 1);
    assert_int_equal(h.outbox_waiting, 0);
}

static void a_ledger_from_before_payers_vouchers_is_brought_up_to_date(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    char *path = xasprintf("%s/ledger.db", w->dir);
    ask_times(w, 0, 1);
    ledger_close(w->l);
    struct db *db = db_open(path, DB_WRITER, &err);
    assert_ok(db_exec(db, "DROP INDEX outbox_held; PRAGMA user_version = 1", &err), err);
    db_close(db);
    free(path);
    w->l = market_open(&w->options);
    assert_int_equal(count_rows(w, "SELECT count(*) FROM sqlite_schema WHERE name = 'outbox_held'"),
                     1);
    pay(w, 0);
}

/* ---- without money ----------------------------------------------------------------------------
 */

static void payers_without_funds_hold_up_nobody(void **state)
{
    struct world *w = *state;
    struct ledger_health h;
    for (int i = 0; i < N_PAYERS; i++) {
        ask_times(w, i, 1);
        pay(w, i);
    }
    market_commit_many(w->l, 1000, 5, &w->adapter);
    assert_int_equal(market_seal(w->l), 5);
    settle(w);
    assert_int_equal(fake_now()->n_batches, 1);
    ledger_health(w->l, &h);
    assert_int_equal(h.outbox_waiting, 0);
    assert_string_equal(h.reason, ""); /* none of the operator's business */
    /* Their turn comes around: whoever is funded then is let in. */
    fund(w, N_PAYERS - 1, CREDIT);
    struct settlement at = {NULL, w->options.chain, ledger_operator(w->l), ledger_signer(w->l)};
    struct err err = {0};
    uint64_t place = 0;
    int rounds = 0;
    for (char text[256]; strcmp(told(w, N_PAYERS - 1, "state", text), "held") == 0; rounds++) {
        assert_true(rounds < N_PAYERS);
        assert_ok(held_look(w->l, &at, RPC_AT_LATEST, &place, &err), err);
    }
    settle(w);
    assert_told(w, N_PAYERS - 1, "owed", "0");
    assert_int_equal(market_seal(w->l), 1);
    settle(w);
    char text[256];
    assert_non_null(strstr(told(w, 0, "waiting", text), "escrow balance is 0"));
}

static void funded_payers_leave_room_for_the_house(void **state)
{
    struct world *w = *state;
    for (int i = 0; i < N_PAYERS; i++) {
        fund(w, i, CREDIT);
        ask_times(w, i, 1);
        pay(w, i);
    }
    uint64_t n = 0;
    for (int i = 0; i < N_PAYERS; i++) {
        look(w);
        n = count_rows(w, "SELECT count(*) FROM outbox WHERE state < 3");
        assert_in_range(n, 1, OUTBOX_PAYERS_MAX);
    }
    assert_int_equal(n, OUTBOX_PAYERS_MAX);
    for (int i = 0; i < N_PAYERS; i++)
        settle(w);
    assert_int_equal(count_rows(w, "SELECT count(*) FROM outbox WHERE state = 3"), N_PAYERS);
    assert_int_equal(market_seal(w->l), N_PAYERS);
    settle(w);
}

static void a_voucher_whose_funds_leave_is_put_aside(void **state)
{
    struct world *w = *state;
    for (int i = 0; i < 2; i++) {
        fund(w, i, CREDIT);
        ask_times(w, i, 1);
        pay(w, i);
    }
    look(w);
    assert_told(w, 0, "state", "signed");
    assert_told(w, 1, "state", "waiting");
    market_commit_many(w->l, 1000, 5, &w->adapter);
    market_seal(w->l);
    fund(w, 1, 0); /* thawed and withdrawn */
    settle(w);
    assert_told(w, 1, "state", "held");
    assert_int_equal(fake_now()->n_batches, 1);
    fund(w, 1, CREDIT);
    look(w);
    settle(w);
    assert_told(w, 1, "owed", "0");
    assert_int_equal(fake->n_reverts, 0);
}

/* The payer's funds go while the transaction is out: it reverts, and a newer voucher is let in
 * after it although the old one keeps its row. */
static void a_redeem_that_reverts_is_put_aside(void **state)
{
    struct world *w = *state;
    send_redeem(w);
    fund(w, 0, 0);
    for (int i = 0; i < 4; i++) {
        fake_mine();
        look(w);
    }
    assert_int_equal(fake->n_reverts, 1);
    assert_told(w, 0, "state", "held");
    ask_times(w, 0, 1);
    pay(w, 0);
    fund(w, 0, CREDIT);
    for (int i = 0; i < 4; i++) {
        look(w);
        fake_mine();
    }
    settle(w);
    assert_told(w, 0, "state", "confirmed");
    assert_told(w, 0, "owed", "0");
    assert_int_equal(count_rows(w, "SELECT count(*) FROM outbox WHERE state = 5"), 0);
    assert_int_equal(count_rows(w, "SELECT count(*) FROM outbox WHERE state = 4"), 1);
}

static void what_is_too_little_to_redeem_waits_for_more(void **state)
{
    struct world *w = *state;
    w->options.publish.redeem_min = amount_of(200000);
    reopen(w);
    fund(w, 0, CREDIT);
    ask_times(w, 0, 1);
    pay(w, 0);
    look(w);
    char text[256];
    assert_non_null(strstr(told(w, 0, "waiting", text), "redeemed from 200000 on"));
    while (channel_of(w, 0).total.units < 200000)
        ask_times(w, 0, 1);
    pay(w, 0);
    look(w);
    assert_told(w, 0, "state", "signed");
    settle(w);
}

static void redeems_of_payers_leave_half_of_the_days_gas(void **state)
{
    struct world *w = *state;
    struct ledger_health h;
    /* A transaction of 125,000 gas at 2 gwei: two for payers, two for a batch of the house's. */
    w->options.publish.max_spend_per_day = amount_of(4 * UINT64_C(250000000000000));
    reopen(w);
    for (int i = 0; i < 3; i++) {
        fund(w, i, CREDIT);
        ask_times(w, i, 1);
        pay(w, i);
    }
    for (int i = 0; i < 10; i++) {
        look(w);
        fake_mine();
    }
    ledger_health(w->l, &h);
    assert_int_equal(h.outbox_waiting, 1);
    assert_non_null(strstr(h.reason, "their half of the spending cap"));
    market_commit_many(w->l, 1000, 5, &w->adapter);
    assert_int_equal(market_seal(w->l), 7);
    for (int i = 0; i < 10; i++) {
        look(w);
        fake_mine();
    }
    assert_int_equal(fake_now()->n_batches, 1);
    calendar_shift_s = 25 * 3600;
    settle(w);
    assert_told(w, 2, "owed", "0");
}

/* ---- the chain's moods ------------------------------------------------------------------------
 */

static void a_deep_reorg_of_a_redeem_is_mended_beside_a_held_voucher(void **state)
{
    struct world *w = *state;
    fund(w, 0, CREDIT);
    ask_times(w, 0, 2);
    pay(w, 0);
    look(w);
    fake_mine();
    look(w);
    fake_mine();
    look(w);
    assert_told(w, 0, "state", "confirmed");
    assert_int_equal(market_seal(w->l), 2);
    ask_times(w, 0, 1);
    struct signed_voucher v = make(w, 0);
    fake_reorg(2, true); /* more than what the policy calls confirmed */
    fund(w, 0, (uint64_t)v.voucher.value_aggregate.units - 1);
    expect_taken(w, &v, true);
    for (int i = 0; i < 6; i++) {
        look(w);
        fake_mine();
    }
    assert_told(w, 0, "state", "held"); /* one unit short; the older one was redeemed again */
    settle(w);
    assert_int_equal(fake_now()->n_batches, 1);
}

/* A disk image of before a payer's voucher came, with no batch and no receipt of the house's since:
 * only what was redeemed in all tells. */
static void a_database_that_lacks_a_payers_redeemed_voucher_opens_a_new_epoch(void **state)
{
    struct world *w = *state;
    ask_times(w, 0, 2);
    struct channel_state before = channel_of(w, 0);
    struct fake_state *s = fake_now();
    struct fake_channel *there = fake_channel_of(s, before.payer, before.epoch, true);
    there->value = s->redeemed = amount_of((uint64_t)before.total.units +
                                           1); /* of a later receipt */
    memset(there->last, 0x77, 32);
    look(w);
    assert_true(channel_of(w, 0).epoch > before.epoch);
    there->value = s->redeemed = AMOUNT_ZERO; /* so that the books may be compared */
}

/* ---- crashes ----------------------------------------------------------------------------------
 */

static void one_kill(const char *fault)
{
    int pipe_fds[2], status;
    struct world *w = world_create(wallet_with_payers(), true, CREDIT);
    struct signed_voucher vouchers[2];
    fund_operator();
    for (int i = 0; i < 2; i++) {
        fund(w, i, CREDIT);
        ask_times(w, i, 1);
        struct signed_voucher small = pay(w, i); /* replaced below */
        (void)small;
        ask_times(w, i, 1);
        vouchers[i] = make(w, i);
    }
    ledger_close(w->l);
    assert_int_equal(pipe(pipe_fds), 0);
    pid_t child = fork();
    if (child == 0) {
        struct voucher_held held;
        struct err err = {0};
        close(pipe_fds[0]);
        w->l = market_open(&w->options);
        setenv("TRIBUTARY_FAULT", fault, 1);
        fault_init();
        for (int i = 0; i < 2; i++) {
            if (ledger_voucher_accept(w->l, &held, &vouchers[i], &err) != 0 || !held.accepted ||
                write(pipe_fds[1], "a", 1) != 1)
                _exit(4);
            for (int round = 0; round < 4; round++) {
                if (publisher_round(w->l, &err) != 0)
                    _exit(6);
                fake_mine();
            }
        }
        _exit(0); /* the point was never reached */
    }
    close(pipe_fds[1]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
        fail_msg("%s: the process ended with status %#x instead of being killed", fault, status);
    char ignored;
    int n_answered = 0;
    while (read(pipe_fds[0], &ignored, 1) == 1)
        n_answered++;
    close(pipe_fds[0]);
    w->l = market_open(&w->options);
    market_check(w->l, true);
    for (int i = 0; i < 2; i++) {
        struct voucher_held held;
        struct err err = {0};
        assert_ok(ledger_voucher_accept(w->l, &held, &vouchers[i], &err), err);
        if (i < n_answered && held.accepted)
            fail_msg("%s: a voucher that was accepted is gone", fault);
        assert_int_equal(amount_cmp(held.value, vouchers[i].voucher.value_aggregate), 0);
    }
    look(w);
    settle(w);
    look(w);
    settle(w);
    assert_int_equal(market_seal(w->l), 4);
    settle(w);
    struct fake_state *s = fake_now();
    if (amount_cmp(s->redeemed, s->committed[s->n_batches - 1]) != 0 || fake->n_reverts != 0)
        fail_msg("%s: the chain's books don't balance", fault);
    void *state = w;
    tear_down(&state);
}

static void a_kill_at_any_point_loses_no_voucher_and_redeems_none_twice(void **state)
{
    (void)state;
    static const char *const points[] = {
        "voucher.middle",   "voucher.middle:2", "commit.before",  "commit.after",
        "commit.before:2",  "commit.after:2",   "commit.after:3", "publish.signed",
        "publish.signed:2", "publish.stored",   "publish.sent",   "publish.sent:2",
    };
    for (size_t i = 0; i < sizeof(points) / sizeof(*points); i++)
        one_kill(points[i]);
}

int main(void)
{
#define CHAIN(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define LOCAL(name) cmocka_unit_test_setup_teardown(name, set_up_local, tear_down)
    const struct CMUnitTest tests[] = {
        CHAIN(a_payer_pays_and_has_its_credit_back_once_it_is_redeemed),
        CHAIN(a_batch_is_due_once_payers_have_paid_for_it),
        CHAIN(what_is_wrong_with_a_voucher_is_said),
        LOCAL(without_a_chain_no_voucher_is_taken),
        CHAIN(a_newer_voucher_takes_the_place_of_the_one_that_is_held),
        CHAIN(a_newer_voucher_waits_for_the_one_that_is_on_its_way),
        CHAIN(of_many_at_once_the_newest_is_held),
        CHAIN(a_ledger_from_before_payers_vouchers_is_brought_up_to_date),
        CHAIN(payers_without_funds_hold_up_nobody),
        CHAIN(funded_payers_leave_room_for_the_house),
        CHAIN(a_voucher_whose_funds_leave_is_put_aside),
        CHAIN(a_redeem_that_reverts_is_put_aside),
        CHAIN(what_is_too_little_to_redeem_waits_for_more),
        CHAIN(redeems_of_payers_leave_half_of_the_days_gas),
        CHAIN(a_database_that_lacks_a_payers_redeemed_voucher_opens_a_new_epoch),
        CHAIN(a_deep_reorg_of_a_redeem_is_mended_beside_a_held_voucher),
        cmocka_unit_test(a_kill_at_any_point_loses_no_voucher_and_redeems_none_twice),
    };
    market_uses();
    return cmocka_run_group_tests_name("voucher", tests, NULL, NULL);
}
