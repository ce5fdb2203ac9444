/* api_error: a failure as OpenAI's clients expect to read it.
 *
 *   {"error": {"message": sentence, "type": word, "param": name or null, "code": word or null}}
 */
#ifndef TRIBUTARY_NODE_API_ERROR_H
#define TRIBUTARY_NODE_API_ERROR_H

#include "node/base/buf.h"
#include "node/base/err.h"

struct http_exchange;

struct api_error {
    struct err err;         /* its code decides the HTTP status */
    char param[96];         /* the request's field that is wrong: "messages[0].role"; "" if none */
    const char *code;       /* "model_not_found"; NULL: the name of err.code */
    unsigned retry_after_s; /* in a Retry-After header; 0: 2 where the status is 503, else none */
};

/* Fills *e and returns -1. param may be NULL. */
int api_error_set(struct api_error *e, enum err_code code, const char *param, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* What failed inside this machine (ERR_IO, ERR_INTERNAL: files, SQL) is the operator's to read, not
 * a stranger's: it goes to the log under the component's name and becomes a sentence that says so.
 * Other errors stay as they are. */
void api_error_hide(struct err *err, const char *component);

/* Appends the object above. */
void api_error_append(struct buf *b, const struct api_error *e);
/* Answers with it. */
void api_error_reply(struct http_exchange *x, const struct api_error *e);

#endif
