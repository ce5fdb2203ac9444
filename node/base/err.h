/* err: how a function says what went wrong.
 *
 * Three kinds of failure, three answers (see the README, "Reading the source"):
 *
 *   a bug        ours or the caller's: BUG_IF() prints file and line and aborts. No return value.
 *   a failure    of the world (file, peer, chain, device, input): the function returns -1 (or NULL)
 *                and fills *err with a code to act on and a sentence that names the object.
 *   exhaustion   ordinary weather (no KV block, queue full): ERR_BUSY, try later.
 *
 * Every fallible function takes `struct err *err` as its last argument. It may be NULL when the
 * caller wants only the return value. On success *err is left alone. A caller that adds context
 * calls err_wrap(), so that the sentence reads from the outside in:
 *   "adapter med: adapter_model.safetensors: header is 10737418240 bytes, limit is 104857600".
 */
#ifndef TRIBUTARY_BASE_ERR_H
#define TRIBUTARY_BASE_ERR_H

#include <stdarg.h>
#include <stddef.h>

enum err_code {
    ERR_OK = 0,
    ERR_INVALID,      /* input breaks a rule: 400 */
    ERR_UNAUTHORIZED, /* no or wrong credentials: 401 */
    ERR_PAYMENT,      /* over the credit limit: 402 */
    ERR_FORBIDDEN,    /* known, but not allowed: 403 */
    ERR_NOT_FOUND,    /* the named thing does not exist: 404 */
    ERR_CONFLICT,     /* contradicts what is stored: 409 */
    ERR_TOO_LARGE,    /* over a stated limit: 413 */
    ERR_RATE_LIMITED, /* 429 */
    ERR_UNSUPPORTED,  /* valid, but this build or version can't do it: 400 */
    ERR_CORRUPT,      /* stored or fetched bytes fail their check: 502 */
    ERR_IO,           /* file, socket, database: 500 */
    ERR_UPSTREAM,     /* registry or chain answered wrongly or not at all: 502 */
    ERR_BUSY,         /* exhaustion: 503 with Retry-After */
    ERR_CANCELLED,    /* the caller or its client went away: 499 */
    ERR_TIMEOUT,      /* 504 */
    ERR_NO_MEMORY,    /* 503 */
    ERR_INTERNAL,     /* 500 */
};

#define ERR_MESSAGE_BYTES 512

struct err {
    enum err_code code;
    char message[ERR_MESSAGE_BYTES]; /* NUL-terminated UTF-8, one sentence, no final full stop */
};

/* Fills *err (when not NULL) and returns -1, so that callers can `return err_set(...)`.
 * An over-long message is cut at a UTF-8 boundary. */
int err_set(struct err *err, enum err_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
int err_setv(struct err *err, enum err_code code, const char *fmt, va_list args)
    __attribute__((format(printf, 3, 0)));

/* As err_set, with ": " and strerror(errnum) appended; ENOENT maps to ERR_NOT_FOUND, ENOMEM to
 * ERR_NO_MEMORY, all others to ERR_IO. */
int err_set_errno(struct err *err, int errnum, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "<context>: " before the message already in *err; keeps the code. Returns -1. */
int err_wrap(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "invalid", "not_found", ...: stable words, used in JSON errors and logs. */
const char *err_code_name(enum err_code code);

/* The one table from code to HTTP status. */
int err_http_status(enum err_code code);

/* The one table from code to process exit status (sysexits.h where one fits; 1 otherwise). */
int err_exit_status(enum err_code code);

_Noreturn void bug_at(const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#define BUG(...) bug_at(__FILE__, __LINE__, __VA_ARGS__)
#define BUG_IF(cond)                                 \
    do {                                             \
        if (__builtin_expect(!!(cond), 0))           \
            bug_at(__FILE__, __LINE__, "%s", #cond); \
    } while (0)

#endif
