/* The publisher against a scripted chain (market.h): everything that a chain can do to an outbox.
 */
#include "tests/unit/attribution/ledger_world.h"

#include <sys/syscall.h>
#include <time.h>

static int set_up(void **state)
{
    *state = world_create(market_wallet(), true, 0);
    fund_operator();
    return 0;
}

static int tear_down(void **state)
{
    world_free(*state);
    return 0;
}

static const char *state_of(struct world *w, size_t row, char *out, size_t n)
{
    struct err err = {0};
    json_t *outbox = ledger_query_outbox(w->l, NULL, &err);
    assert_non_null(outbox);
    const json_t *item = json_array_get(json_object_get(outbox, "items"), row);
    const char *note = json_string_value(json_object_get(item, "waiting"));
    snprintf(out, n, "%s %s%s%s", json_string_value(json_object_get(item, "kind")),
             json_string_value(json_object_get(item, "state")), note ? ": " : "", note ? note : "");
    json_decref(outbox);
    return out;
}

#define assert_row(w, row, expected)                                           \
    do {                                                                       \
        char text_[300];                                                       \
        assert_string_equal(state_of(w, row, text_, sizeof(text_)), expected); \
    } while (0)

static void a_batch_goes_from_sealed_to_final(void **state)
{
    struct world *w = *state;
    market_commit_many(w->l, 0, 10, &w->adapter);
    assert_int_equal(market_seal(w->l), 10);
    assert_row(w, 0, "redeem waiting");
    assert_row(w, 1, "submit waiting");
    look(w); /* signs and sends the redeem */
    assert_row(w, 0, "redeem signed");
    assert_int_equal(fake_pending(), 1);
    look(w); /* nothing new: one in flight */
    assert_int_equal(fake_pending(), 1);
    fake_mine();
    look(w); /* redeem mined, the submit goes out */
    assert_row(w, 0, "redeem mined");
    assert_row(w, 1, "submit signed");
    fake_mine();
    look(w);
    assert_row(w, 0, "redeem confirmed");
    assert_row(w, 1, "submit mined");
    settle(w);
    assert_row(w, 1, "submit confirmed");
    struct err err = {0};
    json_t *b = ledger_query_batch(w->l, 0, &err);
    assert_string_equal(json_string_value(json_object_get(b, "state")), "final");
    assert_non_null(json_string_value(json_object_get(b, "txHash")));
    json_decref(b);
    market_check(w->l, true);
    assert_int_equal(fake->n_reverts, 0);
}

static void batches_follow_each_other_and_money_adds_up(void **state)
{
    struct world *w = *state;
    for (uint64_t i = 0; i < 5; i++) {
        market_commit_many(w->l, i * 10, 7, &w->adapter);
        assert_int_equal(market_seal(w->l), 7);
        look(w);
        if (i % 2)
            fake_mine();
    }
    settle(w);
    assert_int_equal(fake_now()->n_batches, 5);
    assert_int_equal(amount_cmp(fake_now()->redeemed, fake_now()->committed[4]), 0);
    market_check(w->l, true);
    assert_int_equal(fake->n_reverts, 0);
}

static void a_reorg_puts_rows_back_and_the_same_bytes_go_out_again(void **state)
{
    struct world *w = *state;
    for (int forget = 0; forget < 2; forget++) {
        uint64_t batches = fake_now()->n_batches;
        market_commit_many(w->l, 100u + (uint64_t)forget * 10, 5, &w->adapter);
        market_seal(w->l);
        look(w);
        fake_mine();
        look(w);
        fake_mine();
        look(w);
        assert_row(w, (size_t)forget * 2 + 1, "submit mined");
        fake_reorg(2, forget); /* redeem and submit are gone */
        assert_int_equal(fake_now()->n_batches, batches);
        look(w); /* the redeem was confirmed: a deep reorg opens it again */
        look(w);
        assert_row(w, (size_t)forget * 2 + 1, "submit signed");
        struct err err = {0};
        json_t *b = ledger_query_batch(w->l, batches, &err);
        assert_string_equal(json_string_value(json_object_get(b, "state")), "sealed");
        json_decref(b);
        if (forget) { /* what a node forgot is sent again, at once by a node that starts */
            w->options.publish.replace_after_ms = 1;
            reopen(w);
            usleep(3000);
        }
        settle(w);
        assert_int_equal(fake_now()->n_batches, batches + 1);
        market_check(w->l, true);
    }
}

static void a_lost_endpoint_makes_batches_wait_and_nothing_else(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    fake->down = true;
    market_commit_many(w->l, 0, 5, &w->adapter);
    assert_int_equal(market_seal(w->l), 5);
    assert_int_equal(publisher_round(w->l, &err), -1);
    assert_int_equal(err.code, ERR_UPSTREAM);
    assert_row(w, 1, "submit waiting");
    market_commit_many(w->l, 10, 5, &w->adapter);
    assert_int_equal(market_seal(w->l), 5);
    struct ledger_health h;
    ledger_health(w->l, &h);
    assert_true(h.ready);
    fake->down = false;
    settle(w);
    assert_int_equal(fake_now()->n_batches, 2);
    /* One redeem of the newer voucher served both batches. */
    assert_row(w, 0, "redeem moot");
    market_check(w->l, true);
}

static void a_submit_that_outruns_its_redeem_waits(void **state)
{
    struct world *w = *state;
    market_commit_many(w->l, 0, 4, &w->adapter);
    market_seal(w->l);
    fake_now()->balance = AMOUNT_ZERO;
    look(w);
    assert_row(w, 1, "submit waiting: waits for its redeem");
    char text[300];
    state_of(w, 0, text, sizeof(text));
    assert_non_null(strstr(text, "escrow balance is 0, the voucher needs"));
    struct ledger_health h;
    ledger_health(w->l, &h);
    assert_true(h.ready && h.reason[0] && h.house_known);
    assert_false(amount_is_zero(h.house_short));
    /* While the house is known to be short nothing more is sealed. */
    market_commit_many(w->l, 10, 3, &w->adapter);
    look(w);
    assert_int_equal(market_seal(w->l), 0);
    fake_now()->balance = amount_of(1000000000);
    settle(w);
    assert_int_equal(market_seal(w->l), 3);
    settle(w);
    market_check(w->l, true);
    assert_int_equal(fake->n_reverts, 0);
}

static void sealing_stops_where_the_escrow_balance_ends(void **state)
{
    struct world *w = *state;
    struct ledger_price one;
    struct err err = {0};
    assert_ok(ledger_quote(w->l, &one, NULL, 0, 10, 20, &err), err);
    fake_now()->balance = amount_of((uint64_t)one.total.units * 4);
    look(w);
    market_commit_many(w->l, 0, 10, NULL);
    uint32_t sealed = market_seal(w->l);
    if (sealed == 0 || sealed > 4)
        fail_msg("%u receipts were sealed, the balance covers up to 4", sealed);
    settle(w);
    market_check(w->l, true);
    fake_now()->balance = amount_of(1000000000);
    look(w);
    assert_int_equal(market_seal(w->l), 10 - sealed);
    settle(w);
    market_check(w->l, true);
}

static void value_above_the_stake_waits_for_finality(void **state)
{
    struct world *w = *state;
    struct ledger_price one;
    struct err err = {0};
    assert_ok(ledger_quote(w->l, &one, NULL, 0, 16, 32, &err), err);
    fake_now()->stake = amount_of((uint64_t)one.total.units * 3);
    look(w);
    market_commit_many(w->l, 0, 9, NULL);
    uint32_t first = market_seal(w->l);
    assert_true(first >= 3 && first < 9);
    while (market_seal(w->l) > 0)
        look(w);
    settle(w);
    assert_true(fake_now()->n_batches >= 2);
    assert_int_equal(fake->n_reverts, 0);
    market_check(w->l, true);
}

/* A sealed batch, and a publisher that replaces whatever isn't mined at its next look. */
static void one_batch_replaced_at_once(struct world *w)
{
    w->options.publish.replace_after_ms = 1;
    reopen(w);
    market_commit_many(w->l, 0, 4, &w->adapter);
    market_seal(w->l);
}

static void a_stuck_transaction_is_replaced_at_its_nonce(void **state)
{
    struct world *w = *state;
    one_batch_replaced_at_once(w);
    look(w);
    struct amount first = fake->txs[0].max_fee, at_least;
    uint64_t nonce = fake->txs[0].nonce;
    fake->base_fee = amount_of(5000000000);
    fake_mine(); /* too dear: it stays */
    assert_int_equal(fake_pending(), 1);
    usleep(5000);
    look(w);
    assert_int_equal(fake_pending(), 1);
    assert_int_equal(fake->txs[0].nonce, nonce);
    assert_int_equal(amount_mul(&at_least, first, 9), 0);
    assert_true(amount_cmp(fake->txs[0].max_fee, amount_div(at_least, 8)) >= 0);
    settle(w);
    assert_int_equal(fake_now()->n_batches, 1);
    market_check(w->l, true);
}

static void the_fee_cap_is_never_exceeded(void **state)
{
    struct world *w = *state;
    w->options.publish.max_fee_per_gas = amount_of(3000000000);
    one_batch_replaced_at_once(w);
    fake->base_fee = amount_of(4000000000);
    look(w);
    assert_int_equal(fake_pending(), 0);
    assert_row(w, 0, "redeem waiting: gas costs more than the fee cap");
    fake->base_fee = amount_of(1000000000);
    for (int i = 0; i < 6; i++) {
        usleep(3000);
        look(w); /* replaces again and again, up to the cap */
        assert_true(amount_cmp(fake->txs[0].max_fee, amount_of(3000000000)) <= 0);
    }
    settle(w);
    market_check(w->l, true);
}

static void the_spending_cap_stops_signing(void **state)
{
    struct world *w = *state;
    /* One transaction costs at worst 125,000 gas at 2 gwei. */
    w->options.publish.max_spend_per_day = amount_of(125000ull * 2000000000 * 3 / 2);
    reopen(w);
    market_commit_many(w->l, 0, 4, &w->adapter);
    market_seal(w->l);
    look(w);
    fake_mine();
    look(w);
    assert_row(w, 1, "submit waiting: the spending cap of 24 hours is reached");
    assert_int_equal(fake_pending(), 0);
}

static void a_signer_without_funds_goes_on_when_it_has_some(void **state)
{
    struct world *w = *state;
    one_batch_replaced_at_once(w);
    fake->no_funds = true;
    for (int i = 0; i < 8;
         i++) { /* the fees stand still, so it is the same transaction each time */
        usleep(2000);
        look(w);
    }
    struct ledger_health h;
    ledger_health(w->l, &h);
    assert_non_null(strstr(h.reason, "native currency"));
    /* Known beforehand, nothing is signed: with fees that move, each round would leave bytes. */
    fake->shows_no_funds = true;
    for (uint64_t i = 1; i < 4; i++) {
        fake->base_fee = amount_of(1000000000 + i);
        look(w);
    }
    struct err err = {0};
    json_t *outbox = ledger_query_outbox(w->l, NULL, &err);
    const json_t *first = json_array_get(json_object_get(outbox, "items"), 0);
    assert_int_equal(json_array_size(json_object_get(first, "transactions")), 1);
    json_decref(outbox);
    assert_row(w, 0, "redeem waiting: the signer key has too little native currency for fees");
    fake->shows_no_funds = fake->no_funds = false;
    look(w);
    assert_int_equal(amount_cmp(fake->txs[0].max_fee, amount_of(2000000006)), 0); /* no dearer */
    settle(w);
    assert_int_equal(fake_now()->n_batches, 1);
    market_check(w->l, true);
}

/* A pool that has a transaction can't be made to forget it by a dearer one that it refuses. */
static void a_replacement_that_cannot_be_paid_leaves_what_is_out_there(void **state)
{
    struct world *w = *state;
    one_batch_replaced_at_once(w);
    look(w);
    struct tx_hash first = fake->txs[0].hash;
    fake->base_fee = amount_of(5000000000); /* too dear for it, and for the account */
    fake->shows_no_funds = fake->no_funds = true;
    fake_mine();
    for (int i = 0; i < 4; i++) {
        usleep(3000);
        look(w);
        assert_row(w, 0, "redeem signed: the signer key has too little native currency for fees");
    }
    assert_int_equal(fake_pending(), 1);
    fake->base_fee = amount_of(1000000000);
    fake_mine();
    look(w);
    assert_row(w, 0, "redeem mined");
    assert_true(fake->txs[0].mined);
    assert_memory_equal(fake->txs[0].hash.bytes, first.bytes, 32);
    fake->shows_no_funds = fake->no_funds = false;
    settle(w);
    assert_int_equal(fake->n_reverts, 0);
    market_check(w->l, true);
}

static void a_nonce_used_by_hand_makes_the_row_start_over(void **state)
{
    struct world *w = *state;
    market_commit_many(w->l, 0, 4, &w->adapter);
    market_seal(w->l);
    look(w);
    assert_int_equal(fake_pending(), 1);
    fake->txs[0].used = false; /* somebody replaced it with something else ... */
    fake_now()->nonce++;       /* ... which was mined */
    fake_mine();
    fake_mine();
    look(w);
    look(w);
    settle(w);
    assert_int_equal(fake_now()->n_batches, 1);
    market_check(w->l, true);
}

static void a_node_that_forgets_transactions_gets_them_again(void **state)
{
    struct world *w = *state;
    market_commit_many(w->l, 0, 4, &w->adapter);
    market_seal(w->l);
    fake->drops_broadcasts = true;
    look(w);
    assert_int_equal(fake_pending(), 0);
    assert_row(w, 0, "redeem signed");
    fake->drops_broadcasts = false;
    w->options.publish.replace_after_ms = 1;
    reopen(w);
    usleep(3000);
    settle(w);
    assert_int_equal(fake_now()->n_batches, 1);
    market_check(w->l, true);
}

static void a_database_older_than_the_chain_opens_a_new_epoch_and_submits_nothing(void **state)
{
    struct world *w = *state;
    market_commit_many(w->l, 0, 4, &w->adapter);
    market_seal(w->l);
    settle(w);
    /* The chain knows more than we do: the operator has had a later life. */
    struct fake_state *s = fake_now();
    memset(s->batch_hash[s->n_batches], 0x77, 32);
    s->committed[s->n_batches] = s->committed[s->n_batches - 1];
    s->final_block[s->n_batches] = fake->head;
    s->n_batches++;
    struct err err = {0};
    look(w);
    json_t *channels = ledger_query_channels(w->l, NULL, &err);
    assert_true(json_array_size(json_object_get(channels, "items")) >= 2);
    json_decref(channels);
    market_commit_many(w->l, 10, 4, &w->adapter);
    market_seal(w->l);
    for (int i = 0; i < 6; i++) {
        look(w);
        fake_mine();
    }
    struct ledger_health h;
    ledger_health(w->l, &h);
    assert_non_null(strstr(h.reason, "doesn't know"));
    assert_int_equal(fake->n_reverts, 0);
}

static void a_new_database_on_a_known_chain_starts_with_a_fresh_epoch(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    market_commit_many(w->l, 0, 4, &w->adapter);
    market_seal(w->l);
    settle(w);
    /* The directory is lost; the keys are not. */
    ledger_close(w->l);
    temp_dir_remove(w->dir);
    w->dir = temp_dir_create();
    w->options.data_dir = w->dir;
    w->options.rpc = (struct rpc *)fake;
    w->options.publish.poll_ms = 5;
    w->l = market_open(&w->options);
    json_t *channels = ledger_query_channels(w->l, NULL, &err);
    const json_t *first = json_array_get(json_object_get(channels, "items"), 0);
    assert_true(json_integer_value(json_object_get(first, "epoch")) > 1600000000);
    json_decref(channels);
}

static void the_publisher_thread_settles_by_itself(void **state)
{
    struct world *w = *state;
    w->options.rpc = (struct rpc *)fake;
    w->options.publish.poll_ms = 2;
    w->options.seal.max_age_ms = 1;
    reopen(w);
    struct adapter_id adapter = market_put_adapter(w->l, 1);
    market_commit_many(w->l, 0, 12, &adapter);
    struct ledger_health h;
    for (int i = 0; i < 300; i++) {
        usleep(10000);
        /* The fake chain has no lock: mine only while no round runs. */
        ledger_health(w->l, &h);
        if (h.batches_sealed && h.unsealed_receipts == 0 && h.batches_final == h.batches_sealed)
            break;
        ledger_close(w->l);
        fake_mine();
        w->l = market_open(&w->options);
    }
    assert_true(h.batches_final > 0 && h.batches_final == h.batches_sealed);
    market_check(w->l, true);
}

static void a_claim_on_chain_shows_in_the_rewards_once_it_is_confirmed(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    market_commit_many(w->l, 0, 6, &w->adapter);
    market_seal(w->l);
    settle(w);
    fake->claimed = amount_of(12345);
    fake->claim_block = fake->head;
    const char *want[] = {"0", "12345", "12345"}; /* confirmations = 2 */
    for (size_t i = 0; i < 3; i++) {
        look(w);
        json_t *rewards = ledger_query_rewards(w->l, NULL, &err);
        const json_t *operator_item = json_array_get(json_object_get(rewards, "items"), 0);
        assert_string_equal(json_string_value(json_object_get(operator_item, "claimed")), want[i]);
        json_decref(rewards);
        fake_mine();
    }
}

/* A transaction whose nonce lies above one that nobody uses waits in no mempool's queue. */
static void a_nonce_that_nobody_fills_below_ours_is_taken(void **state)
{
    struct world *w = *state;
    one_batch_replaced_at_once(w);
    /* Something sent by hand waits, too cheap to be mined, while we ask for our nonce ... */
    fake->txs[TXS_MAX - 1] = (struct fake_tx){.used = true, .pending = true, .nonce = 0};
    look(w);
    assert_int_equal(fake->txs[0].nonce, 1);
    usleep(3000);
    fake_mine();
    look(w); /* it still waits, so ours is only late and keeps its place */
    assert_int_equal(fake->txs[0].nonce, 1);
    fake->txs[TXS_MAX - 1].used = false; /* ... and is dropped. */
    usleep(3000);
    settle(w);
    assert_int_equal(fake_now()->n_batches, 1);
    market_check(w->l, true);
}

static void a_reorg_that_frees_a_nonce_used_by_hand_leaves_no_gap(void **state)
{
    struct world *w = *state;
    w->options.publish.replace_after_ms = 1;
    reopen(w);
    fake_mine();
    market_commit_many(w->l, 0, 4, &w->adapter);
    market_seal(w->l);
    look(w);
    fake->txs[0].used = false; /* as above: nonce 0 goes to something sent by hand */
    fake_now()->nonce++;
    fake_mine();
    fake_mine();
    look(w);
    look(w);
    assert_int_equal(fake->txs[0].nonce, 1);
    fake_mine();
    look(w);
    assert_row(w, 0, "redeem mined");
    fake_reorg(4, true); /* all of it is gone, and nobody sends the other one again */
    look(w);
    usleep(3000);
    settle(w);
    assert_int_equal(fake_now()->n_batches, 1);
    market_check(w->l, true);
}

static void the_nonce_of_a_transaction_made_needless_is_used_again(void **state)
{
    struct world *w = *state;
    struct err err = {0};
    one_batch_replaced_at_once(w);
    fake->drops_broadcasts = true;
    look(w);
    assert_row(w, 0, "redeem signed");
    fake->drops_broadcasts = false;
    /* Ours is lost on its way, and somebody else has redeemed the voucher. */
    json_t *channels = ledger_query_channels(w->l, NULL, &err);
    const json_t *c = json_array_get(json_object_get(channels, "items"), 0);
    struct fake_state *s = fake_now();
    struct fake_channel *there = fake_channel_of(
        s, fake->house, (uint64_t)json_integer_value(json_object_get(c, "epoch")), true);
    assert_int_equal(amount_parse(&there->value, json_string_value(json_object_get(c, "total"))),
                     0);
    assert_int_equal(hex_decode(there->last, 32, json_string_value(json_object_get(c, "head"))), 0);
    assert_int_equal(amount_sub(&s->balance, s->balance, there->value), 0);
    s->redeemed = there->value;
    json_decref(channels);
    look(w);
    assert_row(w, 0, "redeem mined");
    assert_row(w, 1, "submit signed");
    assert_int_equal(fake->txs[0].nonce, 0);
    settle(w);
    assert_int_equal(fake_now()->n_batches, 1);
    assert_int_equal(fake->n_reverts, 0);
    market_check(w->l, true);
}

static void a_gas_limit_that_no_node_takes_is_estimated_again(void **state)
{
    struct world *w = *state;
    one_batch_replaced_at_once(w);
    fake->gas = 1000; /* an endpoint that talks nonsense, once, and takes what came of it */
    fake->drops_broadcasts = true;
    look(w);
    assert_row(w, 0, "redeem signed");
    fake->gas = 0;
    fake->drops_broadcasts = false;
    usleep(3000);
    settle(w);
    assert_int_equal(fake_now()->n_batches, 1);
    market_check(w->l, true);
}

static void a_clock_that_is_set_back_delays_no_transaction(void **state)
{
    struct world *w = *state;
    enum { YEAR_S = 365 * 24 * 3600 };
    w->options.publish.replace_after_ms = 60 * 1000;
    reopen(w);
    market_commit_many(w->l, 0, 4, &w->adapter);
    market_seal(w->l);
    fake->drops_broadcasts = true; /* forgotten as soon as it was sent */
    look(w);
    assert_row(w, 0, "redeem signed");
    fake->drops_broadcasts = false;
    calendar_shift_s = -YEAR_S;
    look(w);
    assert_int_equal(fake_pending(), 1);
    struct amount first = fake->txs[0].max_fee;
    fake->base_fee = amount_of(5000000000); /* too dear for it */
    fake_mine();
    calendar_shift_s = -2 * YEAR_S;
    look(w);
    assert_true(amount_cmp(fake->txs[0].max_fee, first) > 0);
    settle(w);
    market_check(w->l, true);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(a_batch_goes_from_sealed_to_final),
        T(batches_follow_each_other_and_money_adds_up),
        T(a_reorg_puts_rows_back_and_the_same_bytes_go_out_again),
        T(a_lost_endpoint_makes_batches_wait_and_nothing_else),
        T(a_submit_that_outruns_its_redeem_waits),
        T(sealing_stops_where_the_escrow_balance_ends),
        T(value_above_the_stake_waits_for_finality),
        T(a_stuck_transaction_is_replaced_at_its_nonce),
        T(the_fee_cap_is_never_exceeded),
        T(the_spending_cap_stops_signing),
        T(a_signer_without_funds_goes_on_when_it_has_some),
        T(a_replacement_that_cannot_be_paid_leaves_what_is_out_there),
        T(a_nonce_used_by_hand_makes_the_row_start_over),
        T(a_node_that_forgets_transactions_gets_them_again),
        T(a_nonce_that_nobody_fills_below_ours_is_taken),
        T(a_reorg_that_frees_a_nonce_used_by_hand_leaves_no_gap),
        T(the_nonce_of_a_transaction_made_needless_is_used_again),
        T(a_gas_limit_that_no_node_takes_is_estimated_again),
        T(a_clock_that_is_set_back_delays_no_transaction),
        T(a_database_older_than_the_chain_opens_a_new_epoch_and_submits_nothing),
        T(a_new_database_on_a_known_chain_starts_with_a_fresh_epoch),
        T(a_claim_on_chain_shows_in_the_rewards_once_it_is_confirmed),
        T(the_publisher_thread_settles_by_itself),
    };
    market_uses();
    return cmocka_run_group_tests_name("publisher", tests, NULL, NULL);
}
