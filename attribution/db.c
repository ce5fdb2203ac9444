/* db: SQLite behind a typed door. See db.h.
 *
 * Problem. SQLite's C interface has an index for every bind and column, return codes at every call
 * and no 128-bit integers. The ledger's statements should read like SQL and their errors should say
 * which statement failed.
 *
 * Idea. A statement carries the position of the next parameter and column, and the first thing that
 * went wrong; the step reports it. Prepared statements are kept per connection in a table keyed by
 * the address of the SQL literal (its text is compared on a hit, so a literal that a linker merged
 * or a caller's own buffer can't be mistaken).
 *
 * Durability. journal_mode=WAL with synchronous=FULL: COMMIT appends the transaction to the log and
 * fsyncs it once (sqlite.org/pragma.html#pragma_synchronous); the database file itself is written
 * and fsynced at checkpoints. A reader never waits for the writer, nor the writer for readers.
 *
 * Money. amount_sum() is the only arithmetic that SQL does on amounts; everything else is done in C
 * by node/base/amount.h. */
#include "attribution/db.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct db_stmt {
    struct db *db;
    const char *sql;
    sqlite3_stmt *handle; /* NULL: could not be prepared; broken says why */
    int next_param, next_column;
    int broken;         /* first SQLite code that went wrong, or 0 */
    const char *misfit; /* what a column was not, or NULL */
    struct db_stmt *next;
};

struct db {
    sqlite3 *handle;
    char *name; /* the file's, without its folder: errors reach people who needn't know that */
    bool reader, in_transaction;
    struct db_stmt *statements;
};

static enum err_code code_of(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return ERR_BUSY;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_FORMAT:
        return ERR_CORRUPT;
    case SQLITE_CONSTRAINT:
        return ERR_CONFLICT;
    case SQLITE_NOMEM:
        return ERR_NO_MEMORY;
    case SQLITE_TOOBIG:
        return ERR_TOO_LARGE;
    case SQLITE_RANGE:
    case SQLITE_MISUSE:
        return ERR_INTERNAL;
    default:
        return ERR_IO;
    }
}

static int fail(struct db *db, int rc, const char *what, struct err *err)
{
    return err_set(err, code_of(rc), "%s: %s (%s, SQLite code %d)", db->name, sqlite3_errstr(rc),
                   what, rc);
}

/* ---- amount_sum ----------------------------------------------------------------------------- */

struct sum_state {
    uint8_t total[16];
    bool overflow, misfit;
};

static void sum_step(sqlite3_context *context, int argc, sqlite3_value **argv)
{
    (void)argc;
    struct sum_state *state = sqlite3_aggregate_context(context, sizeof(*state));
    if (!state) {
        sqlite3_result_error_nomem(context);
        return;
    }
    if (sqlite3_value_type(argv[0]) == SQLITE_NULL)
        return;
    if (sqlite3_value_type(argv[0]) != SQLITE_BLOB || sqlite3_value_bytes(argv[0]) != 16) {
        state->misfit = true;
        return;
    }
    struct amount total = amount_from_bytes(state->total);
    if (amount_add(&total, total, amount_from_bytes(sqlite3_value_blob(argv[0]))) != 0)
        state->overflow = true;
    amount_to_bytes(state->total, total);
}

static void sum_final(sqlite3_context *context)
{
    static const uint8_t zero[16];
    struct sum_state *state = sqlite3_aggregate_context(context, 0);
    if (state && (state->overflow || state->misfit))
        sqlite3_result_error(context,
                             state->misfit ? "amount_sum of something that is not an amount"
                                           : "amount_sum exceeds 128 bits",
                             -1);
    else
        sqlite3_result_blob(context, state ? state->total : zero, 16, SQLITE_TRANSIENT);
}

/* ---- connection ----------------------------------------------------------------------------- */

struct db *db_open(const char *path, enum db_mode mode, struct err *err)
{
    struct stat st;
    if (mode == DB_READER && stat(path, &st) != 0) {
        err_set(err, ERR_NOT_FOUND, "%s: there is no ledger here", path);
        return NULL;
    }
    struct db *db = xcalloc(1, sizeof(*db));
    const char *slash = strrchr(path, '/');
    db->name = xstrdup(slash != NULL ? slash + 1 : path);
    db->reader = mode == DB_READER;
    /* A reader opens read-write as well: WAL's shared memory must be writable for its read locks;
     * query_only keeps it from writing. Where the directory forbids that it opens read-only. */
    int flags = SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_READWRITE;
    if (mode == DB_WRITER)
        flags |= SQLITE_OPEN_CREATE;
    mode_t old_mask = umask(0077);
    int rc = sqlite3_open_v2(path, &db->handle, flags, NULL);
    umask(old_mask);
    if (rc != SQLITE_OK && mode == DB_READER) {
        sqlite3_close_v2(db->handle);
        rc = sqlite3_open_v2(path, &db->handle, SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_READONLY, NULL);
    }
    if (rc == SQLITE_OK)
        rc = sqlite3_create_function_v2(db->handle, "amount_sum", 1,
                                        SQLITE_UTF8 | SQLITE_DETERMINISTIC, NULL, NULL, sum_step,
                                        sum_final, NULL);
    if (rc != SQLITE_OK) {
        fail(db, rc, "opening it", err);
        err_wrap(err, "%s", path);
        db_close(db);
        return NULL;
    }
    sqlite3_extended_result_codes(db->handle, 1);
    sqlite3_busy_timeout(db->handle, 5000);
    sqlite3_db_config(db->handle, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    const char *settings = mode == DB_WRITER
                               ? "PRAGMA trusted_schema=OFF; PRAGMA foreign_keys=ON;"
                                 "PRAGMA cell_size_check=ON; PRAGMA journal_mode=WAL;"
                                 "PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=4000;"
                                 "PRAGMA journal_size_limit=67108864; PRAGMA cache_size=-16384;"
                               : "PRAGMA trusted_schema=OFF; PRAGMA query_only=ON;"
                                 "PRAGMA cache_size=-4096;";
    if (db_exec(db, settings, err) != 0) {
        db_close(db);
        return NULL;
    }
    return db;
}

void db_close(struct db *db)
{
    if (!db)
        return;
    while (db->statements) {
        struct db_stmt *s = db->statements;
        db->statements = s->next;
        sqlite3_finalize(s->handle);
        free(s);
    }
    sqlite3_close_v2(db->handle);
    free(db->name);
    free(db);
}

int db_exec(struct db *db, const char *sql, struct err *err)
{
    char *message = NULL;
    int rc = sqlite3_exec(db->handle, sql, NULL, NULL, &message);
    if (rc == SQLITE_OK)
        return 0;
    err_set(err, code_of(rc), "%s: %s (%.80s, SQLite code %d)", db->name,
            message ? message : sqlite3_errstr(rc), sql, rc);
    sqlite3_free(message);
    return -1;
}

int db_begin(struct db *db, struct err *err)
{
    BUG_IF(db->in_transaction);
    if (db_exec(db, db->reader ? "BEGIN" : "BEGIN IMMEDIATE", err) != 0)
        return -1;
    db->in_transaction = true;
    return 0;
}

int db_commit(struct db *db, struct err *err)
{
    BUG_IF(!db->in_transaction);
    if (db_exec(db, "COMMIT", err) != 0) {
        db_rollback(db);
        return -1;
    }
    db->in_transaction = false;
    return 0;
}

void db_rollback(struct db *db)
{
    if (!db->in_transaction)
        return;
    for (struct db_stmt *s = db->statements; s; s = s->next)
        db_end(s);
    /* SQLite rolls back by itself after some failures (disk full, I/O); then there is nothing left.
     */
    if (!sqlite3_get_autocommit(db->handle))
        sqlite3_exec(db->handle, "ROLLBACK", NULL, NULL, NULL);
    db->in_transaction = false;
}

/* ---- statements ----------------------------------------------------------------------------- */

struct db_stmt *db_stmt(struct db *db, const char *sql)
{
    struct db_stmt **at = &db->statements;
    while (*at &&
           ((*at)->sql != sql || !(*at)->handle || strcmp(sqlite3_sql((*at)->handle), sql) != 0))
        at = &(*at)->next;
    struct db_stmt *s = *at;
    if (s) {
        *at = s->next; /* to the front: the next search is short */
        db_end(s);
    } else {
        s = xcalloc(1, sizeof(*s));
        s->db = db;
        s->sql = sql;
    }
    if (!s->handle) {
        int rc = sqlite3_prepare_v3(db->handle, sql, -1, SQLITE_PREPARE_PERSISTENT, &s->handle,
                                    NULL);
        if (rc != SQLITE_OK)
            s->broken = rc;
    }
    s->next = db->statements;
    db->statements = s;
    s->next_param = 1;
    s->next_column = 0;
    s->misfit = NULL;
    if (s->handle)
        s->broken = 0;
    return s;
}

static void bound(struct db_stmt *s, int rc)
{
    if (rc != SQLITE_OK && !s->broken)
        s->broken = rc;
    s->next_param++;
}

void db_put_u64(struct db_stmt *s, uint64_t value)
{
    if (value > INT64_MAX)
        bound(s, SQLITE_TOOBIG);
    else
        bound(s, sqlite3_bind_int64(s->handle, s->next_param, (sqlite3_int64)value));
}

void db_put_blob(struct db_stmt *s, const void *bytes, size_t n)
{
    bound(s, sqlite3_bind_blob64(s->handle, s->next_param, n ? bytes : "", n, SQLITE_TRANSIENT));
}

void db_put_text(struct db_stmt *s, const char *text)
{
    bound(s, text ? sqlite3_bind_text(s->handle, s->next_param, text, -1, SQLITE_TRANSIENT)
                  : sqlite3_bind_null(s->handle, s->next_param));
}

void db_put_amount(struct db_stmt *s, struct amount a)
{
    uint8_t bytes[16];
    amount_to_bytes(bytes, a);
    db_put_blob(s, bytes, sizeof(bytes));
}

void db_put_null(struct db_stmt *s)
{
    bound(s, sqlite3_bind_null(s->handle, s->next_param));
}

static int misfit(const struct db_stmt *s, struct err *err)
{
    return err_set(err, ERR_CORRUPT, "%s: a column is not %s (%.200s)", s->db->name, s->misfit,
                   s->sql);
}

int db_step(struct db_stmt *s, struct err *err)
{
    if (s->broken)
        return fail(s->db, s->broken, s->sql, err);
    if (s->misfit)
        return misfit(s, err);
    s->next_column = 0;
    int rc = sqlite3_step(s->handle);
    if (rc == SQLITE_ROW)
        return 1;
    if (rc == SQLITE_DONE)
        return 0;
    s->broken = rc;
    return fail(s->db, rc, s->sql, err);
}

void db_end(struct db_stmt *s)
{
    if (!s->handle)
        return;
    sqlite3_reset(s->handle);
    sqlite3_clear_bindings(s->handle);
}

int db_end_checked(struct db_stmt *s, struct err *err)
{
    db_end(s);
    return s->misfit ? misfit(s, err) : 0;
}

int db_run(struct db_stmt *s, struct err *err)
{
    int rc = db_step(s, err);
    BUG_IF(rc == 1);
    db_end(s);
    return rc;
}

uint64_t db_changes(struct db *db)
{
    return (uint64_t)sqlite3_changes64(db->handle);
}

uint64_t db_total_changes(struct db *db)
{
    return (uint64_t)sqlite3_total_changes64(db->handle);
}

uint64_t db_last_rowid(struct db *db)
{
    return (uint64_t)sqlite3_last_insert_rowid(db->handle);
}

/* ---- columns -------------------------------------------------------------------------------- */

/* The index of the next column if it has the wanted type, or -1. */
static int column(struct db_stmt *s, int type, const char *name)
{
    int i = s->next_column++;
    if (sqlite3_column_type(s->handle, i) == type)
        return i;
    if (!s->misfit)
        s->misfit = name;
    return -1;
}

uint64_t db_get_u64(struct db_stmt *s)
{
    int i = column(s, SQLITE_INTEGER, "an integer");
    sqlite3_int64 value = i < 0 ? 0 : sqlite3_column_int64(s->handle, i);
    if (value < 0) {
        s->misfit = "an integer above zero";
        value = 0;
    }
    return (uint64_t)value;
}

uint64_t db_get_most(struct db_stmt *s, uint64_t most)
{
    uint64_t value = db_get_u64(s);
    if (value <= most)
        return value;
    s->misfit = "an integer of its range";
    return 0;
}

void db_get_blob(struct db_stmt *s, void *out, size_t n)
{
    int i = column(s, SQLITE_BLOB, "a BLOB");
    memset(out, 0, n);
    if (i < 0)
        return;
    if ((size_t)sqlite3_column_bytes(s->handle, i) != n)
        s->misfit = "a BLOB of the right size";
    else
        memcpy(out, sqlite3_column_blob(s->handle, i), n);
}

void db_get_bytes(struct db_stmt *s, struct buf *out)
{
    int i = column(s, SQLITE_BLOB, "a BLOB");
    if (i >= 0 && sqlite3_column_bytes(s->handle, i) > 0)
        buf_append(out, sqlite3_column_blob(s->handle, i),
                   (size_t)sqlite3_column_bytes(s->handle, i));
}

const char *db_get_text(struct db_stmt *s)
{
    int i = column(s, SQLITE_TEXT, "a text");
    const char *text = i < 0 ? NULL : (const char *)sqlite3_column_text(s->handle, i);
    return text ? text : "";
}

struct amount db_get_amount(struct db_stmt *s)
{
    uint8_t bytes[16];
    db_get_blob(s, bytes, sizeof(bytes));
    return amount_from_bytes(bytes);
}

bool db_get_null(struct db_stmt *s)
{
    if (sqlite3_column_type(s->handle, s->next_column) != SQLITE_NULL)
        return false;
    s->next_column++;
    return true;
}
