/* ledger_world: a ledger in a folder of its own, on market's chain. */
#ifndef TRIBUTARY_TESTS_LEDGER_WORLD_H
#define TRIBUTARY_TESTS_LEDGER_WORLD_H

#include "tests/unit/attribution/market.h"

struct world {
    char *dir;
    struct wallet *wallet;
    struct ledger_options options;
    struct ledger *l;
    struct adapter_id adapter;
    uint64_t nonce; /* of payers' Requests */
};

/* The wallet is the world's. Payers have so much credit. */
static struct world *world_create(struct wallet *wallet, bool with_chain, uint64_t credit)
{
    struct world *w = xcalloc(1, sizeof(*w));
    log_set_level(LOG_ERROR);
    calendar_shift_s = 0;
    fake_chain_reset();
    w->dir = temp_dir_create();
    w->wallet = wallet;
    w->options = market_options(w->dir, w->wallet, with_chain);
    w->options.payer_credit = amount_of(credit);
    w->l = market_open(&w->options);
    w->adapter = market_put_adapter(w->l, 1);
    return w;
}

static void world_free(struct world *w)
{
    ledger_close(w->l);
    wallet_close(w->wallet);
    temp_dir_remove(w->dir);
    free(w);
}

static inline void reopen(struct world *w)
{
    ledger_close(w->l);
    w->l = market_open(&w->options);
}

static inline void fund_operator(void)
{
    fake_now()->stake = amount_of(1000000000);
    fake_now()->balance = amount_of(1000000000);
}

static inline void look(struct world *w)
{
    struct err err = {0};
    assert_ok(publisher_round(w->l, &err), err);
}

/* Rounds and blocks until nothing is on its way; a voucher that is held may stay. */
static inline void settle(struct world *w)
{
    for (int i = 0; i < 120; i++) {
        struct ledger_health h;
        look(w);
        fake_mine();
        ledger_health(w->l, &h);
        if (h.outbox_waiting == 0 && h.batches_final == h.batches_sealed)
            return;
    }
    struct err err;
    json_t *outbox = ledger_query_outbox(w->l, NULL, &err);
    fail_msg("the outbox never emptied: %s", json_dumps(outbox, JSON_INDENT(1)));
}

#endif
