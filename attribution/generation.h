/* generation: the file beside the database that tells a restored database from a crashed one.
 *
 * See "Backups" in attribution.h for what it is for. One writer; not thread-safe. */
#ifndef TRIBUTARY_ATTRIBUTION_GENERATION_H
#define TRIBUTARY_ATTRIBUTION_GENERATION_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct generation; /* opaque */

enum generation_verdict {
    GENERATION_NEW,      /* nothing was ever committed */
    GENERATION_SAME,     /* the database is the one that was here last, or ahead by a crash */
    GENERATION_RESTORED, /* the database is older than the file, another's, or was copied */
};

/* Judges a database that has this id and this counter (0: nothing was ever committed) by the file
 * at path, if there is one. *why (static text) says what gave a restored one away. The file at path
 * is as it was until generation_advance puts another in its place; a new database's is advanced to
 * 0 before the first commit, so that one that has committed and has no file is a restored one. NULL
 * and *err (err_set_errno) where a file can't be read or made. */
struct generation *generation_open(const char *path, const uint8_t ledger_id[16], uint64_t counter,
                                   enum generation_verdict *verdict, const char **why,
                                   struct err *err);

/* Writes and fsyncs: the database is at least at this counter. -1: nothing may leave that was
 * committed since the last time. */
int generation_advance(struct generation *g, uint64_t counter, struct err *err);

/* The highest counter in the file. A restored ledger goes on above it. */
uint64_t generation_counter(const struct generation *g);

/* The orderly end: puts another file in its place once more, if generation_advance has, so that a
 * copy made meanwhile tells of one that is gone; what fails of that is only logged. NULL is quiet.
 */
void generation_close(struct generation *g);

#endif
