/* The small parts: the price, the database's door, amounts, and the generation file. */
#include "attribution/db.h"
#include "attribution/generation.h"
#include "attribution/meter.h"
#include "attribution/migrations.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/sha256.h"
#include "tests/support.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- price ---------------------------------------------------------------------------------- */

static void a_price_is_rounded_down_once(void **state)
{
    (void)state;
    static const struct {
        uint64_t op_prompt, op_completion, prompt, completion;
        uint16_t bps;
        uint32_t n_prompt, n_completion;
        uint64_t fee, royalty;
        const char *why;
    } rows[] = {
        {1, 1, 0, 0, 10000, 999, 0, 0, 0, "999 tokens of a rate of 1 are nothing yet"},
        {1, 1, 0, 0, 10000, 500, 500, 1, 0, "both products are added before the division"},
        {1000, 2000, 3, 5, 10000, 10, 20, 50, 0, "royalty 130/1000 rounds to nothing"},
        {1000, 2000, 3000, 5000, 10000, 10, 20, 50, 130, "plain"},
        {0, 0, 3000, 5000, 3333, 10, 20, 0, 43, "130 * 0.3333 = 43.329"},
        {7, 7, 7, 7, 10000, 4294967295u, 4294967295u, 60129542, 60129542, "most tokens"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        struct ledger_rates rates = {amount_of(rows[i].op_prompt),
                                     amount_of(rows[i].op_completion)};
        struct meter_adapter parts[2] = {
            {amount_of(rows[i].prompt), amount_of(rows[i].completion), rows[i].bps},
            {AMOUNT_ZERO, AMOUNT_ZERO, (uint16_t)(BPS_WHOLE - rows[i].bps)},
        };
        struct ledger_price p;
        struct err err = {0};
        assert_ok(meter_price(&p, &rates, parts, 2, rows[i].n_prompt, rows[i].n_completion, &err),
                  err);
        if (p.compute_fee.units != rows[i].fee || p.royalty.units != rows[i].royalty ||
            p.total.units != rows[i].fee + rows[i].royalty)
            fail_msg("%s: fee %llu, royalty %llu", rows[i].why,
                     (unsigned long long)p.compute_fee.units, (unsigned long long)p.royalty.units);
    }
}

static void an_overflowing_price_says_so(void **state)
{
    (void)state;
    struct amount big = {AMOUNT_MAX.units / 2}, small = amount_of(1);
    struct {
        struct ledger_rates rates;
        struct meter_adapter part;
        uint32_t n;
        const char *error;
    } rows[] = {
        {{AMOUNT_MAX, small}, {small, small, BPS_WHOLE}, 2, "compute fee exceeds"},
        {{big, big}, {small, small, BPS_WHOLE}, 2, "compute fee exceeds"},
        {{small, small}, {AMOUNT_MAX, small, BPS_WHOLE}, 2, "royalty of adapter 0 exceeds"},
        {{small, small}, {{big.units / 5000}, small, BPS_WHOLE}, 1, "royalty of adapter 0 exceeds"},
        {{small, small}, {small, small, BPS_WHOLE - 1}, 1, "weights sum to 9999"},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        struct ledger_price p;
        struct err err = {0};
        int rc = meter_price(&p, &rows[i].rates, &rows[i].part, 1, rows[i].n, rows[i].n, &err);
        if (rc == 0 || !strstr(err.message, rows[i].error))
            fail_msg("row %zu: expected \"%s\", got %s", i, rows[i].error,
                     rc == 0 ? "a price" : err.message);
    }
}

static void amounts_have_one_text_and_one_byte_form(void **state)
{
    (void)state;
    static const char *const good[] = {"0", "1", "18446744073709551616",
                                       "340282366920938463463374607431768211455"};
    static const char *const bad[] = {"",
                                      "00",
                                      "01",
                                      "-1",
                                      "+1",
                                      " 1",
                                      "1 ",
                                      "1x",
                                      "1.0",
                                      "0x1",
                                      "340282366920938463463374607431768211456",
                                      "999999999999999999999999999999999999999999"};
    uint8_t before[16] = {0}, bytes[16];
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        struct amount a;
        char text[AMOUNT_TEXT_BYTES];
        assert_int_equal(amount_parse(&a, good[i]), 0);
        assert_string_equal(amount_format(text, a), good[i]);
        amount_to_bytes(bytes, a);
        assert_int_equal(amount_cmp(amount_from_bytes(bytes), a), 0);
        assert_true(i == 0 || memcmp(before, bytes, 16) < 0);
        memcpy(before, bytes, 16);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        struct amount a;
        if (amount_parse(&a, bad[i]) == 0)
            fail_msg("\"%s\" was taken for an amount", bad[i]);
    }
    struct amount out = amount_of(5);
    assert_int_equal(amount_add(&out, AMOUNT_MAX, amount_of(1)), -1);
    assert_int_equal(amount_sub(&out, AMOUNT_ZERO, amount_of(1)), -1);
    assert_int_equal(amount_mul(&out, AMOUNT_MAX, 2), -1);
    assert_int_equal((int)out.units, 5);
}

/* ---- database ------------------------------------------------------------------------------- */

struct file {
    char *dir, *path;
};

static int set_up(void **state)
{
    struct file *f = xcalloc(1, sizeof(*f));
    f->dir = temp_dir_create();
    f->path = xasprintf("%s/x", f->dir);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct file *f = *state;
    temp_dir_remove(f->dir);
    free(f->path);
    free(f);
    return 0;
}

static void sql_orders_and_sums_amounts_rightly(void **state)
{
    struct file *f = *state;
    struct err err = {0};
    struct db *db = db_open(f->path, DB_WRITER, &err);
    assert_non_null(db);
    assert_ok(db_exec(db, "CREATE TABLE t(a BLOB)", &err), err);
    static const char *const values[] = {"10", "9", "18446744073709551616", "255", "256"};
    for (size_t i = 0; i < 5; i++) {
        struct amount a;
        assert_int_equal(amount_parse(&a, values[i]), 0);
        struct db_stmt *s = db_stmt(db, "INSERT INTO t VALUES(?)");
        db_put_amount(s, a);
        assert_ok(db_run(s, &err), err);
    }
    struct db_stmt *s = db_stmt(db, "SELECT amount_sum(a), max(a), min(a) FROM t");
    assert_int_equal(db_step(s, &err), 1);
    char text[AMOUNT_TEXT_BYTES];
    assert_string_equal(amount_format(text, db_get_amount(s)), "18446744073709552146");
    assert_string_equal(amount_format(text, db_get_amount(s)), "18446744073709551616");
    assert_string_equal(amount_format(text, db_get_amount(s)), "9");
    assert_ok(db_end_checked(s, &err), err);
    s = db_stmt(db, "SELECT amount_sum(a) FROM t WHERE 0");
    assert_int_equal(db_step(s, &err), 1);
    assert_true(amount_is_zero(db_get_amount(s)));
    db_end(s);
    s = db_stmt(db, "INSERT INTO t VALUES(?)");
    db_put_amount(s, AMOUNT_MAX);
    assert_ok(db_run(s, &err), err);
    s = db_stmt(db, "SELECT amount_sum(a) FROM t");
    assert_int_equal(db_step(s, &err), -1); /* overflow is an error, never a wrong number */
    db_end(s);
    s = db_stmt(db, "SELECT amount_sum(x'00')");
    assert_int_equal(db_step(s, &err), -1);
    db_end(s);
    db_close(db);
}

static void misfits_and_failures_are_reported_once_at_the_next_step(void **state)
{
    struct file *f = *state;
    struct err err = {0};
    struct db *db = db_open(f->path, DB_WRITER, &err);
    struct db_stmt *s = db_stmt(db, "SELECT no_such_column FROM nothing");
    db_put_u64(s, 1);
    assert_int_equal(db_step(s, &err), -1);
    db_end(s);
    assert_int_equal(db_step(db_stmt(db, "SELECT no_such_column FROM nothing"), &err), -1);
    s = db_stmt(db, "SELECT ?");
    db_put_u64(s, UINT64_MAX);
    assert_int_equal(db_step(s, &err), -1);
    assert_int_equal(err.code, ERR_TOO_LARGE);
    s = db_stmt(db, "SELECT 'text', x'0102', -5, NULL");
    assert_int_equal(db_step(s, &err), 1);
    assert_int_equal(db_get_u64(s), 0);
    assert_int_equal(db_end_checked(s, &err), -1);
    assert_int_equal(err.code, ERR_CORRUPT);
    s = db_stmt(db, "SELECT 'text', x'0102', -5, NULL");
    uint8_t four[4];
    assert_int_equal(db_step(s, &err), 1);
    assert_string_equal(db_get_text(s), "text");
    db_get_blob(s, four, 4);
    assert_int_equal(db_end_checked(s, &err), -1);
    /* A failed transaction leaves nothing, and the connection usable. */
    assert_ok(db_exec(db, "CREATE TABLE t(a INTEGER PRIMARY KEY)", &err), err);
    assert_ok(db_begin(db, &err), err);
    assert_ok(db_exec(db, "INSERT INTO t VALUES(1)", &err), err);
    assert_int_equal(db_exec(db, "INSERT INTO t VALUES(1)", &err), -1);
    assert_int_equal(err.code, ERR_CONFLICT);
    db_rollback(db);
    s = db_stmt(db, "SELECT count(*) FROM t");
    assert_int_equal(db_step(s, &err), 1);
    assert_int_equal(db_get_u64(s), 0);
    db_end(s);
    struct db *reader = db_open(f->path, DB_READER, &err);
    assert_non_null(reader);
    assert_int_equal(db_exec(reader, "INSERT INTO t VALUES(2)", &err), -1);
    db_close(reader);
    db_close(db);
    assert_null(db_open("/nonexistent/ledger.db", DB_READER, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

static void migrations_run_once_and_refuse_what_is_not_theirs(void **state)
{
    struct file *f = *state;
    struct err err = {0};
    struct db *db = db_open(f->path, DB_WRITER, &err);
    assert_int_equal(migrations_check(db, &err), -1);
    assert_ok(migrations_run(db, &err), err);
    assert_ok(migrations_run(db, &err), err);
    assert_ok(migrations_check(db, &err), err);
    db_close(db);
    assert_int_equal(unlink(f->path), 0);
    db = db_open(f->path, DB_WRITER, &err);
    assert_ok(db_exec(db, "CREATE TABLE other(x)", &err), err);
    assert_int_equal(migrations_run(db, &err), -1);
    assert_int_equal(err.code, ERR_CORRUPT);
    db_close(db);
    struct buf junk = BUF_INIT;
    for (int i = 0; i < 5000; i++)
        buf_append_byte(&junk, (uint8_t)(i * 7));
    assert_ok(file_write_atomic(f->path, junk.data, junk.len, 0600, &err), err);
    db = db_open(f->path, DB_WRITER, &err);
    if (db) {
        assert_int_equal(migrations_run(db, &err), -1);
        db_close(db);
    }
    assert_int_equal(err.code, ERR_CORRUPT);
    buf_release(&junk);
}

/* ---- generation ----------------------------------------------------------------------------- */

static enum generation_verdict judge(const char *path, uint8_t id, uint64_t counter,
                                     uint64_t advance_to)
{
    uint8_t ledger_id[16] = {id};
    enum generation_verdict verdict;
    const char *why;
    struct err err = {0};
    struct generation *g = generation_open(path, ledger_id, counter, &verdict, &why, &err);
    assert_non_null(g);
    assert_true((verdict == GENERATION_RESTORED) == (why[0] != '\0'));
    if (advance_to)
        assert_ok(generation_advance(g, advance_to, &err), err);
    generation_close(g);
    return verdict;
}

/* A first start up to its first commit. */
static enum generation_verdict generation_first(const char *path, uint8_t id)
{
    uint8_t ledger_id[16] = {id};
    enum generation_verdict verdict;
    const char *why;
    struct err err = {0};
    struct generation *g = generation_open(path, ledger_id, 0, &verdict, &why, &err);
    assert_non_null(g);
    assert_ok(generation_advance(g, 0, &err), err);
    generation_close(g);
    return verdict;
}

static void damage(const char *path, off_t at)
{
    int fd = open(path, O_RDWR);
    uint8_t byte;
    assert_int_equal(pread(fd, &byte, 1, at), 1);
    byte ^= 0x80;
    assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    close(fd);
}

static void the_generation_file_knows_a_crash_from_a_restoration(void **state)
{
    struct file *f = *state;
    assert_int_equal(judge(f->path, 1, 0, 1), GENERATION_NEW);
    assert_int_equal(judge(f->path, 1, 1, 2), GENERATION_SAME);
    assert_int_equal(judge(f->path, 1, 2, 3), GENERATION_SAME);
    assert_int_equal(judge(f->path, 1, 4, 0), GENERATION_SAME);     /* crashed between the fsyncs */
    assert_int_equal(judge(f->path, 1, 2, 0), GENERATION_RESTORED); /* one group is missing */
    assert_int_equal(judge(f->path, 2, 9, 0), GENERATION_RESTORED); /* another ledger's */
    /* A torn write of the newer slot leaves the older: still no false alarm for the database. */
    damage(f->path, 512 + 24);
    assert_int_equal(judge(f->path, 1, 3, 4), GENERATION_SAME);
    damage(f->path, 24);
    damage(f->path, 512 + 24);
    damage(f->path, 512 + 30);
    assert_int_equal(judge(f->path, 1, 4, 0), GENERATION_RESTORED); /* nothing readable is left */
    /* After a restoration a lower counter is the new truth: both slots are written. */
    assert_int_equal(judge(f->path, 3, 2, 3), GENERATION_RESTORED);
    assert_int_equal(judge(f->path, 3, 3, 0), GENERATION_SAME);
    assert_int_equal(unlink(f->path), 0);
    assert_int_equal(judge(f->path, 3, 5, 0), GENERATION_RESTORED); /* the file is missing */
    /* A database that was saved after its first start, before its first receipt, is one as well. */
    assert_int_equal(judge(f->path, 3, 1, 0), GENERATION_RESTORED);
    /* The power goes before the very first commit, and after it. */
    assert_int_equal(judge(f->path, 3, 0, 0), GENERATION_NEW);
    assert_int_equal(generation_first(f->path, 3), GENERATION_NEW);
    assert_int_equal(generation_first(f->path, 4), GENERATION_NEW);
    assert_int_equal(judge(f->path, 4, 1, 2), GENERATION_SAME);
    assert_int_equal(judge(f->path, 5, 0, 0),
                     GENERATION_RESTORED); /* a new one beside an old file */
}

/* What an earlier version wrote: no birth, one slot. */
static void write_v1(const char *path, uint64_t counter, uint64_t inode_off_by)
{
    uint8_t file[1024] = {0}, *slot = file + 512;
    struct stat st;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    assert_int_equal(fstat(fd, &st), 0);
    uint64_t numbers[2] = {counter, (uint64_t)st.st_ino + inode_off_by};
    memcpy(slot, "TRIBgen1", 8);
    slot[8] = 1;
    for (int i = 0; i < 16; i++)
        slot[24 + i] = (uint8_t)(numbers[i / 8] >> (8 * (i % 8)));
    struct sha256_digest check = sha256(slot, 40);
    memcpy(slot + 40, check.bytes, 32);
    assert_int_equal(write(fd, file, sizeof(file)), sizeof(file));
    close(fd);
}

static void an_earlier_versions_generation_file_is_understood(void **state)
{
    struct file *f = *state;
    write_v1(f->path, 7, 0);
    assert_int_equal(judge(f->path, 1, 7, 0), GENERATION_SAME); /* a start that came no further */
    assert_int_equal(judge(f->path, 1, 7, 8), GENERATION_SAME);
    assert_int_equal(judge(f->path, 1, 8, 9), GENERATION_SAME); /* now in today's form */
    assert_int_equal(judge(f->path, 1, 8, 0), GENERATION_RESTORED);
    write_v1(f->path, 7, 0);
    assert_int_equal(judge(f->path, 1, 6, 0), GENERATION_RESTORED);
    write_v1(f->path, 7, 1); /* copied: it tells of another inode */
    assert_int_equal(judge(f->path, 1, 7, 8), GENERATION_RESTORED);
    assert_int_equal(judge(f->path, 1, 8, 0), GENERATION_SAME);
    write_v1(f->path, 7, 0);
    damage(f->path, 512 + 33);
    assert_int_equal(judge(f->path, 1, 7, 0), GENERATION_RESTORED);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_price_is_rounded_down_once),
        cmocka_unit_test(an_overflowing_price_says_so),
        cmocka_unit_test(amounts_have_one_text_and_one_byte_form),
        T(sql_orders_and_sums_amounts_rightly),
        T(misfits_and_failures_are_reported_once_at_the_next_step),
        T(migrations_run_once_and_refuse_what_is_not_theirs),
        T(the_generation_file_knows_a_crash_from_a_restoration),
        T(an_earlier_versions_generation_file_is_understood),
    };
    return cmocka_run_group_tests_name("parts", tests, NULL, NULL);
}
