/* db: a thin, typed door to SQLite. sqlite3.h is included in db.c and nowhere else.
 *
 * A connection belongs to one thread at a time. Statements are prepared once per connection and SQL
 * literal and reused; db_stmt never returns NULL: what went wrong (then, or in a bind) is reported
 * by the next db_step or db_run, so that callers check one place.
 *
 *     struct db_stmt *s = db_stmt(db, "SELECT head, total FROM channel WHERE id = ?");
 *     db_put_blob(s, id, 32);
 *     int row = db_step(s, err);            // 1: a row, 0: no (more) row, -1: failure
 *     if (row == 1) {
 *         db_get_blob(s, head, 32);
 *         total = db_get_amount(s);
 *     }
 *     db_end(s);                            // always; gives the statement back
 *
 * Parameters and columns are filled and read from left to right.
 *
 * Integers are int64; a uint64 above 2^63 - 1 is refused. Amounts (uint128) are BLOBs of 16 bytes,
 * big-endian: SQL compares and orders them rightly, max() and min() work, and the aggregate
 * amount_sum(x) adds them with a check (an error on overflow, zero over no rows). SQL's own + and
 * sum() must not touch them. */
#ifndef TRIBUTARY_ATTRIBUTION_DB_H
#define TRIBUTARY_ATTRIBUTION_DB_H

#include "node/base/amount.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf;
struct err;
struct db;
struct db_stmt;

enum db_mode { DB_WRITER, DB_READER };

/* DB_WRITER creates the file (mode 0600), WAL, synchronous=FULL. DB_READER: ERR_NOT_FOUND when
 * there is none, and every write fails. */
struct db *db_open(const char *path, enum db_mode mode, struct err *err);
void db_close(struct db *db); /* NULL is quiet */

/* Several statements without parameters or rows. */
int db_exec(struct db *db, const char *sql, struct err *err);

/* db_begin takes the write lock (writer) or one snapshot for several reads (reader). db_commit
 * returns after the fsync; when it fails the transaction is rolled back. db_rollback is quiet. */
int db_begin(struct db *db, struct err *err);
int db_commit(struct db *db, struct err *err);
void db_rollback(struct db *db);

/* sql: a literal, or text that lives as long as the connection. Ends what the statement still held.
 */
struct db_stmt *db_stmt(struct db *db, const char *sql);
void db_put_u64(struct db_stmt *s, uint64_t value);
void db_put_blob(struct db_stmt *s, const void *bytes, size_t n); /* copied */
void db_put_text(struct db_stmt *s, const char *text);            /* copied; NULL: SQL NULL */
void db_put_amount(struct db_stmt *s, struct amount a);
void db_put_null(struct db_stmt *s);

int db_step(struct db_stmt *s, struct err *err);
void db_end(struct db_stmt *s);
/* db_step for a statement without rows, and db_end. 0 or -1. */
int db_run(struct db_stmt *s, struct err *err);
uint64_t db_changes(struct db *db); /* rows that the last INSERT, UPDATE or DELETE touched */
uint64_t db_last_rowid(struct db *db);
/* Rows that the connection has written since it was opened. */
uint64_t db_total_changes(struct db *db);

/* The next column of the row. What doesn't fit (a NULL, another type or size) makes the value zero
 * and the next db_step or db_end_checked fail with ERR_CORRUPT naming the statement. */
uint64_t db_get_u64(struct db_stmt *s);
uint64_t db_get_most(struct db_stmt *s, uint64_t most);   /* one above most doesn't fit */
void db_get_blob(struct db_stmt *s, void *out, size_t n); /* exactly n bytes */
void db_get_bytes(struct db_stmt *s, struct buf *out);    /* any length, appended */
const char *db_get_text(struct db_stmt *s);               /* until the next step or end */
struct amount db_get_amount(struct db_stmt *s);
bool db_get_null(struct db_stmt *s); /* true: it is NULL, and skipped; false: not consumed */

/* db_end that reports a column that didn't fit. */
int db_end_checked(struct db_stmt *s, struct err *err);

#endif
