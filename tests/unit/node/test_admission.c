/* Admission: rates, concurrency, token quotas, the node's own bound; and API keys. */
#include "tests/support.h"

#include "node/admission.h"
#include "node/api_error.h"
#include "node/api_keys.h"
#include "node/base/hex.h"
#include "node/base/sha256.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SECOND UINT64_C(1000000)

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
        int rc = admission_enter(a, &inside[last], m[i].customer, m[i].at_us, &e);
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
    play("2 a second, burst 2", &(struct admission_options){.requests_per_second = 2, .burst = 2},
         rate, sizeof rate / sizeof *rate);
    static const struct moment concurrent[] = {
        {0, 1, "in", 0, 0, 0}, {0, 1, "in", 0, 0, 0},           {0, 1, "rate_limited", 1, 1, 0},
        {0, 1, "in", 0, 0, 0}, {0, 1, "rate_limited", 1, 0, 0}, {0, 2, "in", 0, 0, 0},
    };
    play("2 at once", &(struct admission_options){.concurrent = 2}, concurrent,
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
    play("120 tokens a minute", &(struct admission_options){.tokens_per_minute = 120}, tokens,
         sizeof tokens / sizeof *tokens);
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
        &(struct admission_options){.requests_per_second = 1, .burst = 1});
    struct api_error e = {0};
    struct admission_ticket *t;
    for (uint64_t i = 0; i < 70000; i++) {
        /* The early ones have full buckets again when the table is full. */
        if (admission_enter(a, &t, i * 2654435761U, i * 100, &e) == 0)
            admission_leave(t, 0, i * 100);
    }
    struct admission_stats s;
    admission_stats(a, &s);
    assert_true(s.n_customers <= 65536);
    assert_int_equal(s.n_inside, 0);
    assert_int_equal(s.refused_full, 0);
    admission_free(a);
}

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
    assert_ok(api_keys_open(&k, path, &err), err);
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
        {"# nobody\n", "has no key"},
        {"", "has no key"},
    };
    char *dir = temp_dir_create();
    char *path = xasprintf("%s/keys", dir);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct err err = {0};
        assert_ok(file_write_atomic(path, rows[i].text, strlen(rows[i].text), 0600, &err), err);
        struct api_keys *k = NULL;
        if (api_keys_open(&k, path, &err) == 0)
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
        cmocka_unit_test(keys_are_found_by_their_hash),
        cmocka_unit_test(a_key_file_with_a_fault_is_refused_by_its_line),
    };
    return cmocka_run_group_tests_name("admission", tests, NULL, NULL);
}
