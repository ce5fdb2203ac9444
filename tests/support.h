/* support: what many tests need. Tests run from the repository's root. Lines that begin with
 * "note: " are shown by the test runner even when all is well: use them for counts of vectors. */
#ifndef TRIBUTARY_TESTS_SUPPORT_H
#define TRIBUTARY_TESTS_SUPPORT_H

#include "node/base/buf.h"

#include <stddef.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>

/* Reads a fixture; a name that ends in .gz is inflated. Fails the test when it can't. */
void fixture_read(const char *path, struct buf *out);
json_t *fixture_json(const char *path);

/* Calls row(line_json, context) for each line of a .jsonl or .jsonl.gz; returns their number. */
size_t fixture_jsonl(const char *path, void (*row)(json_t *line, void *context), void *context);

/* A fresh empty directory under $TMPDIR or /tmp; the caller frees the string. temp_dir_remove
 * deletes it with everything in it. */
char *temp_dir_create(void);
void temp_dir_remove(char *path);

/* fail_msg in the form every test wants: what was expected and what came. */
#define assert_ok(rc, err)                                                               \
    do {                                                                                 \
        if ((rc) != 0)                                                                   \
            fail_msg("%s: expected success, got %s: %s", #rc, err_code_name((err).code), \
                     (err).message);                                                     \
    } while (0)

#endif
