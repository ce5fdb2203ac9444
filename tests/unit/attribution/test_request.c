/* Payers' Requests: who is let in, in which channel the receipt goes, what may be owed, and that
 * nothing is ever billed twice or above what was allowed. */
#include "tests/unit/attribution/ledger_world.h"

#include "attribution/meter.h"
#include "node/base/random.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

enum { CREDIT = 1000000 };

static int set_up(void **state)
{
    *state = world_create(market_wallet(), true, CREDIT);
    return 0;
}

static int set_up_local(void **state)
{
    *state = world_create(market_wallet(), false, CREDIT);
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    market_check(w->l, false); /* whatever a test did, the books are right */
    world_free(w);
    return 0;
}

/* ---- a payer ----------------------------------------------------------------------------------
 */

static const char body[] = "{\"prompt\":\"tell me\"}";

static void sign(struct world *w, struct signed_request *q, const char *key)
{
    struct eip712_domain domain = {w->options.chain.chain_id, w->options.chain.escrow};
    struct request_digest digest = eip712_request(&q->request, &domain);
    struct err err = {0};
    assert_ok(wallet_sign_request(w->wallet, key, &q->signature, &digest, &err), err);
}

/* The payer's open channel. No chain could be asked here, so first channels have fresh epochs. */
static void name_channel(struct world *w, struct signed_request *q, const char *key)
{
    struct err err = {0};
    struct channel_state ch;
    assert_ok(wallet_key_address(w->wallet, key, &q->request.payer, &err), err);
    struct db *db = ledger_reader(w->l, &err);
    if (ledger_load_channel(w->l, db, &ch, q->request.payer, &err) != 0)
        ledger_new_channel(w->l, &ch, q->request.payer);
    ledger_reader_done(w->l, db);
    memcpy(q->request.channel, ch.hash.bytes, 32);
}

/* A Request of the key "creator". */
static struct signed_request make(struct world *w, uint64_t nonce, uint64_t max_fee)
{
    struct signed_request q = {.request = {
                                   .operator_address = ledger_operator(w->l),
                                   .nonce = nonce,
                                   .request_hash = sha256(body, strlen(body)),
                                   .max_fee = amount_of(max_fee),
                                   .deadline_ms = clock_unix_ms().ms + 60000,
                               }};
    name_channel(w, &q, "creator");
    sign(w, &q, "creator");
    return q;
}

/* Checked and let in; 0, or -1 with *err. */
static int enter(struct world *w, const struct signed_request *q, struct request_digest *id,
                 struct err *err)
{
    struct sha256_digest hash = sha256(body, strlen(body));
    return ledger_request_check(w->l, id, q, &hash, err) != 0
               ? -1
               : ledger_request_enter(w->l, *id, &q->request, err);
}

/* A usage of the Request: 10 prompt tokens and n of the completion, 3 units each at the rates of
 * market_options without royalty. */
static struct usage usage_of(const struct request_digest *id, uint32_t n)
{
    struct usage u = market_usage(1, NULL);
    memcpy(u.request_id, id->bytes, 32);
    u.request_hash = sha256(body, strlen(body));
    u.tokens_prompt = 10;
    u.tokens_completion = n;
    u.key_tag = 0;
    return u;
}

static struct amount price_of(struct world *w, const struct usage *u)
{
    struct ledger_price p;
    struct err err = {0};
    assert_ok(ledger_quote(w->l, &p, u->adapters, u->n_adapters, u->tokens_prompt,
                           u->tokens_completion, &err),
              err);
    return p.total;
}

static void expect_refusal(struct world *w, const struct signed_request *q, enum err_code code,
                           const char *says)
{
    struct request_digest id;
    struct err err = {0};
    if (enter(w, q, &id, &err) == 0)
        fail_msg("let in, expected \"%s\"", says);
    if (err.code != code || strstr(err.message, says) == NULL)
        fail_msg("%s: %s; expected %s: ...%s...", err_code_name(err.code), err.message,
                 err_code_name(code), says);
}

/* ---- letting in -------------------------------------------------------------------------------
 */

static void a_receipt_goes_into_the_payers_channel_under_the_requests_digest(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    market_commit_many(w->l, 0, 2, &w->adapter); /* the house account's */
    uint8_t prev[32] = {0};
    struct amount total = AMOUNT_ZERO;
    for (uint64_t i = 0; i < 3; i++) {
        struct signed_request q = make(w, 100 - i, 200000);
        struct request_digest id;
        struct commit_result c;
        assert_ok(enter(w, &q, &id, &err), err);
        struct usage u = usage_of(&id, (uint32_t)(5 + i));
        assert_ok(market_commit(w->l, &u, &c, &err), err);
        ledger_request_leave(w->l, id);
        const struct receipt *r = &c.receipt.receipt;
        assert_memory_equal(r->request_id, id.bytes, 32);
        assert_true(address_eq(r->payer, q.request.payer));
        assert_memory_equal(r->channel, q.request.channel, 32);
        assert_memory_equal(r->request_hash.bytes, q.request.request_hash.bytes, 32);
        assert_int_equal(r->index, i);
        assert_memory_equal(r->prev_receipt_hash, prev, 32);
        assert_int_equal(amount_add(&total, total, price_of(w, &u)), 0);
        assert_int_equal(amount_cmp(r->channel_total, total), 0);
        memcpy(prev, c.receipt.hash.bytes, 32);
        free(c.json);
        if (i == 1)
            reopen(w); /* the chain goes on */
    }
    struct usage u = market_usage(77, NULL);
    struct commit_result c;
    assert_ok(market_commit(w->l, &u, &c, &err), err);
    assert_true(address_eq(c.receipt.receipt.payer, ledger_house(w->l)));
    assert_int_equal(c.receipt.receipt.index, 2);
    free(c.json);
}

static void a_request_pays_once_for_ever(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct signed_request q = make(w, 1, 200000);
    struct request_digest id;
    assert_ok(enter(w, &q, &id, &err), err);
    expect_refusal(w, &q, ERR_CONFLICT, "is being answered");
    ledger_request_leave(w->l, id); /* without a receipt: as if it had never come */
    assert_ok(enter(w, &q, &id, &err), err);
    struct usage u = usage_of(&id, 5);
    assert_ok(market_commit(w->l, &u, NULL, &err), err);
    expect_refusal(w, &q, ERR_CONFLICT, "is being answered");
    ledger_request_leave(w->l, id);
    expect_refusal(w, &q, ERR_CONFLICT, "has its receipt");
    reopen(w);
    expect_refusal(w, &q, ERR_CONFLICT, "has its receipt");
    q = make(w, 2, 200000); /* another nonce, for the same body */
    assert_ok(enter(w, &q, &id, &err), err);
    ledger_request_leave(w->l, id);
}

static void what_is_wrong_with_a_request_is_said(void **state)
{
    struct world *w = *state;
    struct signed_request q = make(w, 1, 1000);
    q.request.operator_address.bytes[0] ^= 1;
    sign(w, &q, "creator");
    expect_refusal(w, &q, ERR_UNAUTHORIZED, "is for operator");
    q = make(w, 1, 1000);
    q.request.request_hash.bytes[31] ^= 1;
    sign(w, &q, "creator");
    expect_refusal(w, &q, ERR_UNAUTHORIZED, "sha256 of this body");
    q = make(w, 1, 1000);
    q.request.max_fee = amount_of(1001); /* altered after it was signed */
    expect_refusal(w, &q, ERR_UNAUTHORIZED, "not signed by its payer");
    q = make(w, 1, 1000);
    sign(w, &q, "signer");
    expect_refusal(w, &q, ERR_UNAUTHORIZED, "not signed by its payer");
    q = make(w, 1, 1000);
    memset(q.signature.s, 0xff, 32);
    expect_refusal(w, &q, ERR_UNAUTHORIZED, "not signed by its payer");
    q = make(w, 1, 1000);
    w->options.chain.chain_id++; /* signed for another chain */
    sign(w, &q, "creator");
    w->options.chain.chain_id--;
    expect_refusal(w, &q, ERR_UNAUTHORIZED, "chain 31337");
    w->options.chain.escrow.bytes[3]++;
    sign(w, &q, "creator");
    w->options.chain.escrow.bytes[3]--;
    expect_refusal(w, &q, ERR_UNAUTHORIZED, "not signed by its payer");
    q = make(w, 1, 1000);
    q.request.payer = ledger_house(w->l);
    sign(w, &q, "house");
    expect_refusal(w, &q, ERR_UNAUTHORIZED, "house account");
    q = make(w, 1, 1000);
    calendar_shift_s = 61;
    expect_refusal(w, &q, ERR_UNAUTHORIZED, "deadline");
    q.signature.r[0] ^= 1; /* what costs most is looked at last */
    expect_refusal(w, &q, ERR_UNAUTHORIZED, "deadline");
    calendar_shift_s = 0;
    q = make(w, 1, 1000);
    q.request.channel[0] ^= 1;
    sign(w, &q, "creator");
    expect_refusal(w, &q, ERR_CONFLICT, "another channel than the one that is open");
    memcpy(q.request.channel, w->l->house_channel.hash.bytes, 32);
    sign(w, &q, "creator");
    expect_refusal(w, &q, ERR_CONFLICT, "another channel");
    q = make(w, 1, CREDIT + 1);
    expect_refusal(w, &q, ERR_PAYMENT, "credit of 1000000");
}

static void without_a_chain_or_credit_no_request_is_let_in(void **state)
{
    struct world *w = *state;
    struct signed_request q = make(w, 1, 1000);
    expect_refusal(w, &q, ERR_UNSUPPORTED, "no chain");
    w->options.chain = market_chain();
    w->options.payer_credit = AMOUNT_ZERO;
    reopen(w);
    q = make(w, 1, 1000);
    expect_refusal(w, &q, ERR_FORBIDDEN, "no credit");
}

/* ---- credit -----------------------------------------------------------------------------------
 */

static void receipts_and_running_requests_count_against_the_credit(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct request_digest a, b;
    struct signed_request first = make(w, 1, CREDIT - 100), second = make(w, 2, 100),
                          third = make(w, 3, 1);
    assert_ok(enter(w, &first, &a, &err), err);
    assert_ok(enter(w, &second, &b, &err), err); /* to the unit */
    expect_refusal(w, &third, ERR_PAYMENT, "1000001 for what is being answered");
    ledger_request_leave(w->l, b);
    struct usage u = usage_of(&a, 100);
    struct amount price = price_of(w, &u), left;
    assert_ok(market_commit(w->l, &u, NULL, &err), err);
    ledger_request_leave(w->l, a);
    /* Now its price counts, not its maxFee. */
    assert_int_equal(amount_sub(&left, amount_of(CREDIT), price), 0);
    second = make(w, 4, (uint64_t)left.units + 1);
    expect_refusal(w, &second, ERR_PAYMENT, "owes");
    second = make(w, 5, (uint64_t)left.units);
    assert_ok(enter(w, &second, &b, &err), err);
    ledger_request_leave(w->l, b);
    reopen(w);
    second = make(w, 6, (uint64_t)left.units + 1);
    expect_refusal(w, &second, ERR_PAYMENT, "owes");
    char *path = xasprintf("%s/ledger.db", w->dir);
    /* What a voucher has redeemed is owed no more. */
    struct db *db = db_open(path, DB_WRITER, &err);
    assert_ok(db_exec(db, "UPDATE channel SET redeemed = total WHERE next_index > 0", &err), err);
    db_close(db);
    free(path);
    second = make(w, 7, CREDIT);
    assert_ok(enter(w, &second, &b, &err), err);
    ledger_request_leave(w->l, b);
}

static void another_payers_debt_is_its_own(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct request_digest a, b;
    struct signed_request one = make(w, 1, CREDIT), other = make(w, 1, CREDIT);
    name_channel(w, &other, "signer");
    sign(w, &other, "signer");
    assert_ok(enter(w, &one, &a, &err), err);
    assert_ok(enter(w, &other, &b, &err), err);
    ledger_request_leave(w->l, a);
    ledger_request_leave(w->l, b);
}

enum { N_THREADS = 6, N_REQUESTS = 40, N_PAID = 25 };

struct crowd {
    struct world *w;
    struct signed_request requests[N_REQUESTS]; /* the same for all threads */
    _Atomic int n_receipts[N_REQUESTS];
};

static void *use_all(void *context)
{
    struct crowd *c = context;
    for (int i = 0; i < 2 * N_REQUESTS; i++) {
        int k = (int)(random_u64() % N_REQUESTS);
        struct request_digest id;
        struct err err = {0};
        if (enter(c->w, &c->requests[k], &id, &err) != 0) {
            if (err.code != ERR_CONFLICT && err.code != ERR_PAYMENT)
                BUG("%s", err.message);
            continue;
        }
        struct usage u = usage_of(&id, 5);
        BUG_IF(market_commit(c->w->l, &u, NULL, &err) != 0);
        c->n_receipts[k]++;
        ledger_request_leave(c->w->l, id);
    }
    return NULL;
}

static void many_at_once_use_no_request_twice_and_no_credit_that_is_not_there(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct crowd c = {.w = w};
    struct request_digest id = {{0}};
    struct usage u = usage_of(&id, 5);
    uint64_t price = (uint64_t)price_of(w, &u).units;
    pthread_t threads[N_THREADS];
    w->options.payer_credit = amount_of(N_PAID * price + price - 1);
    reopen(w);
    for (int i = 0; i < N_REQUESTS; i++)
        c.requests[i] = make(w, (uint64_t)i, price);
    for (int i = 0; i < N_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, use_all, &c), 0);
    for (int i = 0; i < N_THREADS; i++)
        pthread_join(threads[i], NULL);
    int n = 0;
    for (int i = 0; i < N_REQUESTS; i++) {
        assert_in_range(c.n_receipts[i], 0, 1);
        n += c.n_receipts[i];
    }
    /* Those who came at once may have kept each other out; one by one the rest is let in. */
    assert_in_range(n, 1, N_PAID);
    for (int i = 0; i < N_REQUESTS && n < N_PAID; i++) {
        if (c.n_receipts[i] != 0)
            continue;
        assert_ok(enter(w, &c.requests[i], &id, &err), err);
        u = usage_of(&id, 5);
        assert_ok(market_commit(w->l, &u, NULL, &err), err);
        ledger_request_leave(w->l, id);
        n++;
    }
    struct signed_request more = make(w, 1000, price);
    expect_refusal(w, &more, ERR_PAYMENT, "owes");
}

/* What nobody has paid for yet can't be sealed, so it must not make the house account's receipts
 * leave one by one because it is old. */
static void what_a_payer_owes_makes_no_batch_due(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct ledger_health h;
    struct request_digest id = {{0}};
    for (uint64_t i = 0; i < 3; i++) {
        struct signed_request q = make(w, i, 100000);
        assert_ok(enter(w, &q, &id, &err), err);
        struct usage u = usage_of(&id, 5);
        assert_ok(market_commit(w->l, &u, NULL, &err), err);
        ledger_request_leave(w->l, id);
    }
    ledger_health(w->l, &h);
    assert_int_equal(h.receipts, 3);
    assert_int_equal(h.unsealed_receipts, 0);
    market_commit_many(w->l, 50, 2, NULL);
    ledger_health(w->l, &h);
    assert_int_equal(h.unsealed_receipts, 2);
    reopen(w);
    ledger_health(w->l, &h);
    assert_int_equal(h.unsealed_receipts, 2);
    assert_int_equal(market_seal(w->l), 2);
    /* Once a voucher over the first two is redeemed, these wait, too. */
    char *path = xasprintf("%s/ledger.db", w->dir);
    struct db *db = db_open(path, DB_WRITER, &err);
    assert_ok(db_exec(db,
                      "UPDATE channel SET redeemed = (SELECT channel_total FROM receipt r "
                      "WHERE r.channel = channel.id AND idx = 1) WHERE next_index = 3",
                      &err),
              err);
    db_close(db);
    free(path);
    reopen(w);
    ledger_health(w->l, &h);
    assert_int_equal(h.unsealed_receipts, 2);
    assert_int_equal(market_seal(w->l), 2);
}

/* ---- the fee ----------------------------------------------------------------------------------
 */

static void a_fee_buys_to_the_last_token_it_is_enough_for(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct usage u = market_usage(1, &w->adapter);
    for (uint32_t n = 0; n < 300; n += 7) {
        u.tokens_prompt = n % 40;
        u.tokens_completion = n;
        struct amount price = price_of(w, &u), less;
        uint32_t most;
        assert_ok(ledger_most_tokens(w->l, &most, price, u.adapters, 1, u.tokens_prompt, &err),
                  err);
        assert_int_equal(most, n);
        if (n > 0) {
            assert_int_equal(amount_sub(&less, price, amount_of(1)), 0);
            assert_ok(ledger_most_tokens(w->l, &most, less, u.adapters, 1, u.tokens_prompt, &err),
                      err);
            assert_int_equal(most, n - 1);
        }
    }
    u.tokens_prompt = 30;
    u.tokens_completion = 0;
    struct amount prompt = price_of(w, &u), short_by_one;
    uint32_t most;
    assert_int_equal(amount_sub(&short_by_one, prompt, amount_of(1)), 0);
    assert_int_equal(ledger_most_tokens(w->l, &most, short_by_one, u.adapters, 1, 30, &err), -1);
    assert_int_equal(err.code, ERR_PAYMENT);
    assert_non_null(strstr(err.message, "maxFee"));
    /* Free answers, and prices that leave 128 bits on the way, end the search as well. */
    struct ledger_rates none = {AMOUNT_ZERO, AMOUNT_ZERO}, huge = {AMOUNT_ZERO, AMOUNT_MAX};
    assert_ok(meter_most_tokens(&most, AMOUNT_ZERO, &none, NULL, 0, 9, &err), err);
    assert_int_equal(most, UINT32_MAX);
    assert_ok(meter_most_tokens(&most, AMOUNT_MAX, &huge, NULL, 0, 9, &err), err);
    assert_int_equal(most, 1);
}

static void a_bill_above_the_allowed_fee_stops_the_program(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct signed_request q = make(w, 1, CREDIT);
    struct request_digest id;
    struct usage u = usage_of(&id, 50);
    q.request.max_fee = price_of(w, &u);
    sign(w, &q, "creator");
    assert_ok(enter(w, &q, &id, &err), err);
    u = usage_of(&id, 51);
    pid_t child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL); /* cmocka's handler would turn it into a failed test */
        if (freopen("/dev/null", "w", stderr) == NULL)
            _exit(1);
        ledger_commit(w->l, &u, commit_done, NULL, &err);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    u = usage_of(&id, 50);
    assert_ok(market_commit(w->l, &u, NULL, &err), err);
    ledger_request_leave(w->l, id);
}

/* ---- epochs -----------------------------------------------------------------------------------
 */

static void a_fresh_epoch_takes_no_old_request(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    struct request_digest id, running;
    struct signed_request q = make(w, 1, 100000), late = make(w, 2, 100000),
                          later = make(w, 3, 100000);
    assert_ok(enter(w, &q, &id, &err), err);
    struct usage u = usage_of(&id, 5);
    assert_ok(market_commit(w->l, &u, NULL, &err), err);
    ledger_request_leave(w->l, id);
    assert_ok(enter(w, &late, &running, &err), err);
    assert_ok(ledger_epoch_advance(w->l, "a test", &err), err);
    /* What was let in before has no channel to go to; others of its group are not held up. */
    u = usage_of(&running, 5);
    assert_int_equal(market_commit(w->l, &u, NULL, &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    ledger_request_leave(w->l, running);
    market_commit_many(w->l, 50, 1, NULL);
    q = later;
    expect_refusal(w, &q, ERR_CONFLICT, "another channel");
    /* The sentence names the channel that is open. */
    struct sha256_digest hash = sha256(body, strlen(body));
    assert_ok(ledger_request_check(w->l, &id, &q, &hash, &err), err);
    assert_int_equal(ledger_request_enter(w->l, id, &q.request, &err), -1);
    const char *open = strstr(err.message, "here: 0x");
    assert_non_null(open);
    char hex[67] = {0};
    memcpy(hex, open + 6, 66);
    assert_int_equal(hex_decode(q.request.channel, 32, hex), 0);
    sign(w, &q, "creator");
    assert_ok(enter(w, &q, &id, &err), err);
    u = usage_of(&id, 5);
    assert_ok(market_commit(w->l, &u, NULL, &err), err);
    ledger_request_leave(w->l, id);
    /* A payer whom this database never saw may have been here before it was restored. */
    struct signed_request other = make(w, 1, 1000);
    assert_ok(wallet_key_address(w->wallet, "signer", &other.request.payer, &err), err);
    struct channel_id channel = channel_id_of(other.request.payer, ledger_operator(w->l), 0);
    memcpy(other.request.channel, channel.bytes, 32);
    sign(w, &other, "signer");
    expect_refusal(w, &other, ERR_CONFLICT, "another channel");
    reopen(w);
    expect_refusal(w, &other, ERR_CONFLICT, "another channel");
}

int main(void)
{
#define CHAIN(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define LOCAL(name) cmocka_unit_test_setup_teardown(name, set_up_local, tear_down)
    const struct CMUnitTest tests[] = {
        CHAIN(a_receipt_goes_into_the_payers_channel_under_the_requests_digest),
        CHAIN(a_request_pays_once_for_ever),
        CHAIN(what_is_wrong_with_a_request_is_said),
        LOCAL(without_a_chain_or_credit_no_request_is_let_in),
        CHAIN(receipts_and_running_requests_count_against_the_credit),
        CHAIN(another_payers_debt_is_its_own),
        CHAIN(many_at_once_use_no_request_twice_and_no_credit_that_is_not_there),
        CHAIN(what_a_payer_owes_makes_no_batch_due),
        CHAIN(a_fee_buys_to_the_last_token_it_is_enough_for),
        CHAIN(a_bill_above_the_allowed_fee_stops_the_program),
        CHAIN(a_fresh_epoch_takes_no_old_request),
    };
    market_uses();
    return cmocka_run_group_tests_name("request", tests, NULL, NULL);
}
