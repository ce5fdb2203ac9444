/* Admission: rates, concurrency, token quotas, the node's own bound; and API keys. */
#include "tests/support.h"

#include "node/admission.h"
#include "node/api_error.h"
#include "node/api_keys.h"
#include "node/base/clock.h"
#include "node/base/hex.h"
#include "node/base/sha256.h"
#include "node/http_address.h"
#include "node/pace.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECOND UINT64_C(1000000)

static int enter(struct admission *a, struct admission_ticket **out, uint64_t customer,
                 uint64_t now_us, struct api_error *e)
{
    return admission_enter(a, out, &(struct admission_customer){.id = customer}, now_us, e);
}

/* One moment: does the customer get in, and if not, why and when again? */
struct moment {
    uint64_t at_us, customer;
    const char *outcome; /* "in", or the error's name */
    unsigned retry_s;
    int leaves;      /* afterwards so many tickets are given back, oldest first */
    uint64_t tokens; /* each with so many */
};

static void play(const char *what, const struct admission_options *o, const struct moment *m,
                 size_t n)
{
    struct admission *a = admission_create(o);
    struct admission_ticket *inside[64];
    size_t first = 0, last = 0;
    for (size_t i = 0; i < n; i++) {
        struct api_error e = {0};
        int rc = enter(a, &inside[last], m[i].customer, m[i].at_us, &e);
        if (rc == 0)
            last++;
        const char *got = rc == 0 ? "in" : err_code_name(e.err.code);
        if (strcmp(got, m[i].outcome) != 0 || e.retry_after_s != m[i].retry_s)
            fail_msg("%s, moment %zu: %s (retry %u), expected %s (retry %u)", what, i, got,
                     e.retry_after_s, m[i].outcome, m[i].retry_s);
        for (int k = 0; k < m[i].leaves; k++)
            admission_leave(inside[first++], m[i].tokens, m[i].at_us);
    }
    while (first < last)
        admission_leave(inside[first++], 0, m[n - 1].at_us);
    admission_free(a);
}

static void customers_are_let_in_by_rule(void **state)
{
    (void)state;
    static const struct moment rate[] = {
        {0, 1, "in", 0, 1, 0},
        {0, 1, "in", 0, 1, 0},
        {0, 1, "rate_limited", 1, 0, 0},
        {0, 2, "in", 0, 1, 0}, /* another has its own bucket */
        {SECOND / 4, 1, "rate_limited", 1, 0, 0},
        {SECOND / 2, 1, "in", 0, 1, 0},
        {10 * SECOND, 1, "in", 0, 1, 0},
        {10 * SECOND, 1, "in", 0, 1, 0},
        {10 * SECOND, 1, "rate_limited", 1, 0, 0}, /* the bucket never holds more than the burst */
    };
    play("2 a second, burst 2",
         &(struct admission_options){.customer = {.requests_per_second = 2, .burst = 2}}, rate,
         sizeof rate / sizeof *rate);
    static const struct moment concurrent[] = {
        {0, 1, "in", 0, 0, 0}, {0, 1, "in", 0, 0, 0},           {0, 1, "rate_limited", 1, 1, 0},
        {0, 1, "in", 0, 0, 0}, {0, 1, "rate_limited", 1, 0, 0}, {0, 2, "in", 0, 0, 0},
    };
    play("2 at once", &(struct admission_options){.customer = {.concurrent = 2}}, concurrent,
         sizeof concurrent / sizeof *concurrent);
    static const struct moment tokens[] = {
        {0, 1, "in", 0, 1, 50},
        {0, 1, "in", 0, 1, 130}, /* 60 over: let in while above zero, charged afterwards */
        {0, 1, "rate_limited", 31, 0, 0},
        {30 * SECOND, 1, "rate_limited", 1, 0, 0},
        {31 * SECOND, 1, "in", 0, 1, 0},
        {400 * SECOND, 1, "in", 0, 1, 120},
        {400 * SECOND, 1, "rate_limited", 1, 0, 0},
    };
    play("120 tokens a minute", &(struct admission_options){.customer = {.tokens_per_minute = 120}},
         tokens, sizeof tokens / sizeof *tokens);
    static const struct moment several[] = {
        {0, 1, "in", 0, 1, 130}, /* 6 s until there are tokens again, 20 s until a request */
        {0, 1, "rate_limited", 20, 0, 0},
        {5 * SECOND, 1, "rate_limited", 15, 0, 0},
        {20 * SECOND, 1, "in", 0, 0, 0},
        {20 * SECOND, 1, "rate_limited", 20, 1, 0}, /* one at once, too; nobody knows until when */
        {40 * SECOND, 1, "in", 0, 1, 180},
        {40 * SECOND, 1, "rate_limited", 56, 0, 0}, /* tokens are later than a request */
        {96 * SECOND, 1, "in", 0, 1, 0},
    };
    play("as long as the last of several limits says",
         &(struct admission_options){.customer = {.requests_per_second = 0.05,
                                                  .burst = 1,
                                                  .concurrent = 1,
                                                  .tokens_per_minute = 120}},
         several, sizeof several / sizeof *several);
    static const struct moment full[] = {
        {0, 1, "in", 0, 0, 0},
        {0, 2, "in", 0, 0, 0},
        {0, 3, "busy", 1, 1, 0},
        {0, 3, "in", 0, 0, 0},
    };
    play("2 in all", &(struct admission_options){.max_requests = 2}, full,
         sizeof full / sizeof *full);
}

static void a_flood_of_customers_does_not_grow_the_table_for_ever(void **state)
{
    (void)state;
    struct admission *a = admission_create(
        &(struct admission_options){.customer = {.requests_per_second = 1, .burst = 1}});
    struct api_error e = {0};
    struct admission_ticket *t;
    for (uint64_t i = 0; i < 70000; i++) {
        /* The early ones have full buckets again when the table is full. */
        if (enter(a, &t, i * 2654435761U, i * 100, &e) == 0)
            admission_leave(t, 0, i * 100);
    }
    struct admission_stats s;
    admission_stats(a, &s);
    assert_true(s.n_entries <= 65536);
    assert_int_equal(s.n_inside, 0);
    assert_int_equal(s.refused_full, 0);
    admission_free(a);
}

/* ---- shares ------------------------------------------------------------------------------------
 */

enum { ASKERS_MAX = 4, PLACES_MAX = 1000 };

struct asker {
    double weight;
    unsigned n; /* inside */
    struct admission_ticket *inside[PLACES_MAX];
};

/* Everybody asks in turn until nobody gets in any more. */
static void ask_all(struct admission *a, struct asker *askers, size_t n)
{
    for (bool more = true; more;) {
        more = false;
        for (size_t i = 0; i < n; i++) {
            struct asker *k = &askers[i];
            struct admission_customer c = {.id = i, .weight = k->weight};
            struct api_error e = {0};
            if (k->n == PLACES_MAX)
                continue;
            if (admission_enter(a, &k->inside[k->n], &c, 0, &e) == 0) {
                k->n++;
                more = true;
            } else if (e.err.code != ERR_BUSY || e.retry_after_s == 0) {
                fail_msg("refused with %s, to come back in %u s", e.err.message, e.retry_after_s);
            }
        }
    }
}

/* How long 50,000 customers take, i * step, who then come again. */
static uint64_t time_of_many_us(uint64_t step)
{
    struct admission *a = admission_create(&(struct admission_options){.max_requests = 10});
    struct monotonic_us began = clock_monotonic_us();
    for (uint64_t i = 0; i < 100000; i++) {
        struct api_error e = {0};
        struct admission_ticket *t;
        assert_int_equal(enter(a, &t, i % 50000 * step, 0, &e), 0);
        admission_leave(t, 0, 0);
    }
    uint64_t us = clock_elapsed_us(began, clock_monotonic_us());
    admission_free(a);
    return us;
}

/* A payer's number is the beginning of an address, which is anybody's to choose. */
static void customers_cannot_choose_numbers_that_slow_the_door_down(void **state)
{
    (void)state;
    uint64_t usual = time_of_many_us(1);
    for (unsigned bits = 12; bits <= 48; bits += 12) {
        uint64_t us = time_of_many_us(UINT64_C(1) << bits);
        if (us > 20 * usual)
            fail_msg("numbers that are equal in %u bits take %llu us, others %llu us", bits,
                     (unsigned long long)us, (unsigned long long)usual);
    }
}

static void nobody_holds_all_places_of_the_node(void **state)
{
    (void)state;
    static const struct {
        uint32_t places;
        size_t n;
        double weights[ASKERS_MAX]; /* 0: 1 */
        unsigned inside[ASKERS_MAX];
        unsigned free; /* for somebody new */
    } rows[] = {
        {512, 1, {0}, {456}, 56}, /* 8/9 */
        {512, 2, {0}, {241, 241}, 30},
        {512, 4, {0}, {125, 124, 124, 124}, 15},
        {512, 2, {3, 1}, {369, 128}, 15}, /* near 3 : 1, in whole requests */
        {512, 2, {0.01, 1}, {5, 451}, 56},
        {20, 1, {0}, {18}, 2},
        {20, 2, {0}, {10, 9}, 1},
        {9, 1, {0}, {8}, 1},
        {8, 1, {0}, {8}, 0}, /* too few to share */
        {1, 1, {0.001}, {1}, 0},
        {0, 1, {0}, {PLACES_MAX}, 0}, /* no limit */
    };
    static struct asker askers[ASKERS_MAX];
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        size_t n = rows[r].n;
        struct admission *a = admission_create(
            &(struct admission_options){.max_requests = rows[r].places});
        for (size_t i = 0; i < n; i++)
            askers[i] = (struct asker){.weight = rows[r].weights[i]};
        ask_all(a, askers, n);
        for (int round = 0; round < 600; round++) { /* who holds too much gives way in time */
            for (size_t i = 0; i < n; i++)
                admission_leave(askers[i].inside[--askers[i].n], 0, 0);
            ask_all(a, askers, n);
        }
        struct admission_stats s;
        admission_stats(a, &s);
        for (size_t i = 0; i < n; i++) {
            if (askers[i].n != rows[r].inside[i])
                fail_msg("row %zu: customer %zu holds %u of %u places, expected %u", r, i,
                         askers[i].n, rows[r].places, rows[r].inside[i]);
        }
        assert_int_equal(s.refused_share > 0, rows[r].free > 0);
        for (unsigned k = 0; k < rows[r].free && k < 8; k++) { /* the newcomer's */
            struct api_error e = {0};
            struct admission_ticket *t;
            if (enter(a, &t, 99, 0, &e) != 0)
                fail_msg("row %zu: somebody new is refused: %s", r, e.err.message);
            admission_leave(t, 0, 0);
        }
        for (size_t i = 0; i < n; i++) {
            while (askers[i].n > 0)
                admission_leave(askers[i].inside[--askers[i].n], 0, 0);
        }
        admission_free(a);
    }
}

static void addresses_of_one_network_are_one_customer(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"192.0.2.7", "192.0.2.7"},
        {"::ffff:192.0.2.7", "192.0.2.7"},
        {"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"},
        {"2001:db8:1:2::", "2001:db8:1:2::"},
        {"2001:db8:1:3::9", "2001:db8:1:3::"},
        {"::1", "::"},
        {"unknown", "unknown"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char got[INET6_ADDRSTRLEN];
        http_address_network(got, rows[i][0]);
        assert_string_equal(got, rows[i][1]);
    }
}

/* ---- adapters ----------------------------------------------------------------------------------
 */

/* One request: of a customer, for some adapters ("ab": a and b), at a moment. */
struct wish {
    uint64_t at_us;
    const char *adapters;
    const char *refused; /* the adapter whose limit it breaks; NULL: in */
    unsigned retry_s;
    bool leaves; /* at once */
    uint64_t tokens;
};

static void play_adapters(const char *what, const struct admission_limits *limits,
                          const struct wish *wishes, size_t n)
{
    struct admission *a = admission_create(&(struct admission_options){.adapter = *limits});
    struct admission_ticket *inside[64];
    size_t n_inside = 0;
    for (size_t i = 0; i < n; i++) {
        struct admission_adapter adapters[8];
        char names[8][2] = {{0}};
        size_t n_adapters = strlen(wishes[i].adapters);
        struct api_error e = {0};
        struct admission_ticket *t;
        for (size_t k = 0; k < n_adapters; k++) {
            names[k][0] = wishes[i].adapters[k];
            adapters[k] = (struct admission_adapter){{{(uint8_t)wishes[i].adapters[k], 1, 2, 3}},
                                                     names[k]};
        }
        assert_int_equal(enter(a, &t, i, wishes[i].at_us, &e), 0);
        int rc = admission_enter_adapters(t, adapters, n_adapters, wishes[i].at_us, &e);
        const char *at = rc == 0 ? NULL : strstr(e.err.message, " adapter ");
        const char *refused = at == NULL ? NULL : at + 9;
        if ((rc != 0) != (wishes[i].refused != NULL) || e.retry_after_s != wishes[i].retry_s ||
            (rc != 0 && (e.err.code != ERR_RATE_LIMITED || refused == NULL ||
                         strcmp(refused, wishes[i].refused) != 0)))
            fail_msg("%s, wish %zu: %s (retry %u), expected %s (retry %u)", what, i,
                     rc == 0 ? "in" : e.err.message, e.retry_after_s,
                     wishes[i].refused != NULL ? wishes[i].refused : "in", wishes[i].retry_s);
        if (rc != 0 || wishes[i].leaves)
            admission_leave(t, wishes[i].tokens, wishes[i].at_us);
        else
            inside[n_inside++] = t;
    }
    while (n_inside > 0)
        admission_leave(inside[--n_inside], 0, wishes[n - 1].at_us);
    admission_free(a);
}

static void adapters_are_let_in_by_rule_and_ensembles_count_for_each(void **state)
{
    (void)state;
    static const struct wish concurrent[] = {
        {0, "a", NULL, 0, false, 0}, {0, "ab", NULL, 0, false, 0}, {0, "a", "a", 1, false, 0},
        {0, "ba", "a", 1, false, 0}, /* b, which was let in first, is given back */
        {0, "b", NULL, 0, false, 0}, {0, "cb", "b", 1, false, 0},  {0, "c", NULL, 0, false, 0},
        {0, "c", NULL, 0, false, 0}, {0, "c", "c", 1, false, 0},   {0, "", NULL, 0, false, 0},
    };
    play_adapters("2 at once", &(struct admission_limits){.concurrent = 2}, concurrent,
                  sizeof concurrent / sizeof *concurrent);
    static const struct wish rate[] = {
        {0, "a", NULL, 0, true, 0},
        {0, "ab", NULL, 0, true, 0},
        {0, "ba", "a", 2, true, 0},
        {0, "b", NULL, 0, true, 0}, /* the refusal cost b nothing */
        {0, "b", "b", 2, true, 0},
        {SECOND, "a", "a", 1, true, 0},
        {2 * SECOND, "a", NULL, 0, true, 0},
        {2 * SECOND, "a", "a", 2, true, 0},
    };
    play_adapters("1 in two seconds, burst 2",
                  &(struct admission_limits){.requests_per_second = 0.5, .burst = 2}, rate,
                  sizeof rate / sizeof *rate);
    static const struct wish tokens[] = {
        {0, "ab", NULL, 0, true, 90},
        {0, "a", "a", 31, true, 0},
        {31 * SECOND, "a", NULL, 0, true, 0},
    };
    play_adapters("60 tokens a minute", &(struct admission_limits){.tokens_per_minute = 60}, tokens,
                  sizeof tokens / sizeof *tokens);
}

static void a_customer_and_an_adapter_of_one_number_are_two(void **state)
{
    (void)state;
    struct admission *a = admission_create(
        &(struct admission_options){.customer = {.concurrent = 1}, .adapter = {.concurrent = 1}});
    struct admission_adapter same = {{{7}}, "seven"};
    uint64_t id;
    memcpy(&id, same.content.bytes, sizeof id);
    struct admission_ticket *t;
    struct api_error e = {0};
    assert_int_equal(enter(a, &t, id, 0, &e), 0);
    assert_int_equal(admission_enter_adapters(t, &same, 1, 0, &e), 0);
    struct admission_stats s;
    admission_stats(a, &s);
    assert_int_equal(s.n_entries, 2);
    admission_leave(t, 0, 0);
    admission_free(a);
}

static void a_hundred_thousand_adapters_are_forgotten_when_idle(void **state)
{
    (void)state;
    struct admission *a = admission_create(&(struct admission_options){
        .adapter = {.requests_per_second = 100, .burst = 1, .concurrent = 4}});
    struct admission_stats s;
    for (uint32_t i = 0; i < 100000; i++) {
        struct admission_adapter adapter = {{{0}}, "one of many"};
        memcpy(adapter.content.bytes, &i, sizeof i);
        struct admission_ticket *t;
        struct api_error e = {0};
        uint64_t now = i * UINT64_C(100);
        if (enter(a, &t, 1, now, &e) != 0 || admission_enter_adapters(t, &adapter, 1, now, &e) != 0)
            fail_msg("adapter %u: %s", i, e.err.message);
        admission_leave(t, 0, now);
    }
    admission_stats(a, &s);
    assert_true(s.n_entries <= 65536);
    assert_int_equal(s.n_inside, 0);
    admission_free(a);
    /* Without a limit nothing is remembered of them. */
    a = admission_create(&(struct admission_options){0});
    struct admission_adapter adapter = {{{1}}, "one"};
    struct admission_ticket *t;
    struct api_error e = {0};
    assert_int_equal(enter(a, &t, 1, 0, &e), 0);
    assert_int_equal(admission_enter_adapters(t, &adapter, 1, 0, &e), 0);
    admission_stats(a, &s);
    assert_int_equal(s.n_entries, 1);
    admission_leave(t, 0, 0);
    admission_free(a);
}

static void a_key_has_the_limits_of_its_line(void **state)
{
    (void)state;
    struct admission *a = admission_create(
        &(struct admission_options){.customer = {.concurrent = 1}});
    struct admission_limits two = {.concurrent = 2}, none = {0};
    static const uint64_t customers[] = {1, 1, 2, 2, 2, 3, 3, 3, 3};
    const struct admission_limits *own[] = {NULL,  NULL,  &two,  &two, &two,
                                            &none, &none, &none, &none};
    static const bool in[] = {true, false, true, true, false, true, true, true, true};
    struct admission_ticket *inside[9];
    size_t n = 0;
    for (size_t i = 0; i < 9; i++) {
        struct api_error e = {0};
        struct admission_customer c = {.id = customers[i], .own = own[i]};
        bool got = admission_enter(a, &inside[n], &c, 0, &e) == 0;
        if (got != in[i])
            fail_msg("moment %zu: customer %llu is %s", i, (unsigned long long)customers[i],
                     got ? "in" : e.err.message);
        n += got;
    }
    while (n > 0)
        admission_leave(inside[--n], 0, 0);
    admission_free(a);
}

/* ---- when to come back -------------------------------------------------------------------------
 */

static void a_full_queue_is_as_far_as_it_is_long(void **state)
{
    (void)state;
    static const struct {
        uint64_t us_per_end;
        size_t n_waiting;
        unsigned seconds;
    } rows[] = {
        {0, 0, 1},           {0, 1000, 1},        {500000, 1, 1},    {500000, 2, 1},
        {500000, 3, 2},      {250000, 100, 25},   {1000000, 60, 60}, {1000000, 61, 60},
        {UINT64_MAX, 9, 60}, {1, UINT32_MAX, 60},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        unsigned got = pace_retry_after_s(rows[i].us_per_end, rows[i].n_waiting);
        if (got != rows[i].seconds)
            fail_msg("%zu wait, one in %llu us: %u s, expected %u", rows[i].n_waiting,
                     (unsigned long long)rows[i].us_per_end, got, rows[i].seconds);
    }
    /* Four at a time, each takes 2 s: one ends every 500 ms. An idle hour changes nothing. */
    struct pace p = {0};
    assert_int_equal(pace_us_per_end(&p), 0);
    uint64_t now = SECOND;
    for (int round = 0; round < 3; round++, now += 3600 * SECOND) {
        for (int i = 0; i < 4; i++)
            pace_begin(&p, now);
        for (int i = 0; i < 40; i++) {
            pace_end(&p, now += SECOND / 2);
            pace_begin(&p, now);
        }
        for (int i = 0; i < 4; i++)
            pace_end(&p, now += SECOND / 2);
        assert_int_equal(p.n_inside, 0);
        assert_int_equal(pace_us_per_end(&p), SECOND / 2);
    }
    /* Twice as slow from now on: soon that is what it says. */
    pace_begin(&p, now);
    for (int i = 0; i < 400; i++) {
        pace_begin(&p, now);
        pace_end(&p, now += SECOND);
    }
    uint64_t us = pace_us_per_end(&p);
    if (us < SECOND * 95 / 100 || us > SECOND)
        fail_msg("one end a second for long, and the pace is %llu us", (unsigned long long)us);
}

/* ---- keys --------------------------------------------------------------------------------------
 */

static void keys_are_found_by_their_hash(void **state)
{
    (void)state;
    char *dir = temp_dir_create();
    char *path = xasprintf("%s/keys", dir);
    char hex[65];
    struct sha256_digest alice = sha256("sk-alice", 8), bob = sha256("sk-bob", 6);
    struct buf text = BUF_INIT;
    buf_appendf(&text, "# customers\n\nalice %s\n", hex_encode(hex, alice.bytes, 32));
    buf_appendf(&text, "  bob\t%s  \r\n", hex_encode(hex, bob.bytes, 32));
    struct err err = {0};
    assert_ok(file_write_atomic(path, text.data, text.len, 0600, &err), err);
    struct api_keys *k = NULL;
    struct admission_limits limits = {0};
    assert_ok(api_keys_open(&k, path, &limits, &err), err);
    assert_int_equal(api_keys_count(k), 2);
    static const struct {
        const char *header, *name;
    } rows[] = {
        {"Bearer sk-alice", "alice"},
        {"bearer sk-bob", "bob"},
        {"Bearer  sk-bob", "bob"},
        {"Bearer sk-carol", NULL},
        {"sk-alice", NULL},
        {"Basic sk-alice", NULL},
        {"Bearer ", NULL},
        {"Bearer", NULL},
        {"", NULL},
        {NULL, NULL},
        {"Bearer sk-alice ", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct api_key *found = api_keys_find(k, rows[i].header);
        if ((found == NULL) != (rows[i].name == NULL) ||
            (found != NULL && strcmp(found->name, rows[i].name) != 0))
            fail_msg("\"%s\": %s, expected %s", rows[i].header != NULL ? rows[i].header : "(none)",
                     found != NULL ? found->name : "nobody",
                     rows[i].name != NULL ? rows[i].name : "nobody");
    }
    const struct api_key *found = api_keys_find(k, "Bearer sk-alice");
    uint64_t tag = 0;
    for (int i = 0; i < 8; i++)
        tag = tag << 8 | alice.bytes[i];
    assert_true(found->tag == tag);
    api_keys_close(k);
    buf_release(&text);
    free(path);
    temp_dir_remove(dir);
}

#define HASH "0000000000000000000000000000000000000000000000000000000000000000"

static void a_key_line_may_have_limits_of_its_own(void **state)
{
    (void)state;
    static const struct {
        const char *fields;
        float weight;
        int32_t priority;
        struct admission_limits limits;
    } rows[] = {
        {"", 1, 0, {3, 20, 4, 5000}},
        {"weight=2", 2, 0, {3, 20, 4, 5000}},
        {"weight=0.001 priority=-100", 0.001F, -100, {3, 20, 4, 5000}},
        {"priority=10\t rps=0.5   burst=1 concurrent=8 tpm=1000000000000",
         1,
         10,
         {0.5, 1, 8, 1000000000000}},
        {"rps=0 concurrent=0 tpm=0\r", 1, 0, {0, 20, 0, 0}},
    };
    char *dir = temp_dir_create();
    char *path = xasprintf("%s/keys", dir), hex[65];
    struct buf text = BUF_INIT;
    struct err err = {0};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char key[16];
        snprintf(key, sizeof key, "key%zu", i);
        struct sha256_digest hash = sha256(key, strlen(key));
        buf_appendf(&text, "customer%zu %s %s\n", i, hex_encode(hex, hash.bytes, 32),
                    rows[i].fields);
    }
    assert_ok(file_write_atomic(path, text.data, text.len, 0600, &err), err);
    struct api_keys *k = NULL;
    struct admission_limits otherwise = {3, 20, 4, 5000};
    assert_ok(api_keys_open(&k, path, &otherwise, &err), err);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char header[32];
        snprintf(header, sizeof header, "Bearer key%zu", i);
        const struct api_key *got = api_keys_find(k, header);
        assert_non_null(got);
        const struct admission_limits *l = &got->limits, *want = &rows[i].limits;
        if (got->weight != rows[i].weight || got->priority != rows[i].priority ||
            l->requests_per_second != want->requests_per_second || l->burst != want->burst ||
            l->concurrent != want->concurrent || l->tokens_per_minute != want->tokens_per_minute)
            fail_msg("\"%s\": weight %g, priority %d, %g/s, burst %u, %u at once, %llu tokens",
                     rows[i].fields, (double)got->weight, got->priority, l->requests_per_second,
                     l->burst, l->concurrent, (unsigned long long)l->tokens_per_minute);
    }
    api_keys_close(k);
    buf_release(&text);
    free(path);
    temp_dir_remove(dir);
}

static void a_key_file_with_a_fault_is_refused_by_its_line(void **state)
{
    (void)state;
    static const struct {
        const char *text, *in_message;
    } rows[] = {
        {"alice sk-alice\n", ":1: not"},
        {"\nalice\n", ":2: not"},
        {"a 0x0000000000000000000000000000000000000000000000000000000000000000\n", ":1: not"},
        {"a 0000000000000000000000000000000000000000000000000000000000000000\n"
         "a 1000000000000000000000000000000000000000000000000000000000000000\n",
         ":2: the name a is there twice"},
        {"a " HASH "\nb " HASH " rps=1\n", ":2: this key is that of a, too"},
        {"a " HASH " weight=0\n", ":1: weight=0: weight must be a number from 0.001 to 1000"},
        {"a " HASH " weight=1e3\n", ":1: weight=1e3: weight must be"},
        {"a " HASH " weight=nan\n", "weight=nan"},
        {"a " HASH " weight=\n", "weight=: weight must be"},
        {"a " HASH " weight= 2\n", "weight=: weight must be"},
        {"a " HASH " weight\n", "\"weight\" is none of weight=, priority=, rps=,"},
        {"b " HASH "\na " HASH " priority=101\n",
         ":2: priority=101: priority must be an integer from -100 to 100"},
        {"a " HASH " priority=1.5\n", "priority=1.5"},
        {"a " HASH " priority=+1\n", "priority=+1"},
        {"a " HASH " rps=-1\n", "rps=-1: rps must be a number from 0 to 1000000"},
        {"a " HASH " rps=1.\n", "rps=1."},
        {"a " HASH " burst=0\n", "burst=0: burst must be an integer from 1 to 1000000"},
        {"a " HASH " concurrent=1000001\n", "concurrent=1000001"},
        {"a " HASH " tpm=1000000000001\n", "from 0 to 1000000000000"},
        {"a " HASH " tpm=99999999999999999999\n", "tpm=99999999999999999999"},
        {"a " HASH " rps=1 burst=2 rps=1\n", ":1: rps= is there twice"},
        {"a " HASH " Weight=2\n", "\"Weight=2\" is none of"},
        {"a " HASH " weight=2,rps=1\n", "weight=2,rps=1"},
        {"a " HASH " " HASH "\n", "is none of"},
        {"# nobody\n", "has no key"},
        {"", "has no key"},
    };
    char *dir = temp_dir_create();
    char *path = xasprintf("%s/keys", dir);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err err = {0};
        assert_ok(file_write_atomic(path, rows[i].text, strlen(rows[i].text), 0600, &err), err);
        struct api_keys *k = NULL;
        struct admission_limits limits = {0};
        if (api_keys_open(&k, path, &limits, &err) == 0)
            fail_msg("row %zu: accepted", i);
        if (strstr(err.message, rows[i].in_message) == NULL)
            fail_msg("row %zu: \"%s\", expected \"%s\" in it", i, err.message, rows[i].in_message);
    }
    free(path);
    temp_dir_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(customers_are_let_in_by_rule),
        cmocka_unit_test(a_flood_of_customers_does_not_grow_the_table_for_ever),
        cmocka_unit_test(customers_cannot_choose_numbers_that_slow_the_door_down),
        cmocka_unit_test(nobody_holds_all_places_of_the_node),
        cmocka_unit_test(addresses_of_one_network_are_one_customer),
        cmocka_unit_test(adapters_are_let_in_by_rule_and_ensembles_count_for_each),
        cmocka_unit_test(a_customer_and_an_adapter_of_one_number_are_two),
        cmocka_unit_test(a_hundred_thousand_adapters_are_forgotten_when_idle),
        cmocka_unit_test(a_key_has_the_limits_of_its_line),
        cmocka_unit_test(a_full_queue_is_as_far_as_it_is_long),
        cmocka_unit_test(keys_are_found_by_their_hash),
        cmocka_unit_test(a_key_line_may_have_limits_of_its_own),
        cmocka_unit_test(a_key_file_with_a_fault_is_refused_by_its_line),
    };
    return cmocka_run_group_tests_name("admission", tests, NULL, NULL);
}
