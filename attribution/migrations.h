/* migrations: the database's schema, one numbered step after the other. */
#ifndef TRIBUTARY_ATTRIBUTION_MIGRATIONS_H
#define TRIBUTARY_ATTRIBUTION_MIGRATIONS_H

#include <stdint.h>

struct db;
struct err;

/* The newest schema that this program knows. */
uint32_t migrations_newest(void);

/* Brings a database (a new one is version 0) to the newest schema; each step is one transaction, so
 * that a crash leaves it at the step before. ERR_UNSUPPORTED: written by a newer program.
 * ERR_CORRUPT: not a Tributary ledger. */
int migrations_run(struct db *db, struct err *err);

/* For readers: the schema must be the newest. */
int migrations_check(struct db *db, struct err *err);

#endif
