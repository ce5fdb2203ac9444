/* err: see err.h. Formatting never fails and never allocates, so that an out-of-memory error can
 * always be reported. */
#include "node/base/err.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

/* One row a code keeps the three tables from drifting apart. */
static const struct {
    const char *name;
    int http_status;
    int exit_status;
} codes[] = {
    [ERR_OK] = {"ok", 200, 0},
    [ERR_INVALID] = {"invalid", 400, EX_DATAERR},
    [ERR_UNAUTHORIZED] = {"unauthorized", 401, EX_NOPERM},
    [ERR_PAYMENT] = {"payment_required", 402, EX_NOPERM},
    [ERR_FORBIDDEN] = {"forbidden", 403, EX_NOPERM},
    [ERR_NOT_FOUND] = {"not_found", 404, EX_NOINPUT},
    [ERR_CONFLICT] = {"conflict", 409, EX_DATAERR},
    [ERR_TOO_LARGE] = {"too_large", 413, EX_DATAERR},
    [ERR_RATE_LIMITED] = {"rate_limited", 429, EX_TEMPFAIL},
    [ERR_UNSUPPORTED] = {"unsupported", 400, EX_UNAVAILABLE},
    [ERR_CORRUPT] = {"corrupt", 502, EX_DATAERR},
    [ERR_IO] = {"io", 500, EX_IOERR},
    [ERR_UPSTREAM] = {"upstream", 502, EX_UNAVAILABLE},
    [ERR_BUSY] = {"busy", 503, EX_TEMPFAIL},
    [ERR_CANCELLED] = {"cancelled", 499, 1},
    [ERR_TIMEOUT] = {"timeout", 504, EX_TEMPFAIL},
    [ERR_NO_MEMORY] = {"no_memory", 503, EX_OSERR},
    [ERR_INTERNAL] = {"internal", 500, EX_SOFTWARE},
};

/* A message cut in the middle of a UTF-8 sequence would be invalid JSON later: drop the torn
 * bytes at the end. */
static void trim_torn_utf8(char *s)
{
    size_t len = strlen(s), i = len;
    while (i > 0 && len - i < 3 && ((unsigned char)s[i - 1] & 0xC0) == 0x80)
        i--;
    if (i == 0)
        return;
    unsigned char lead = (unsigned char)s[i - 1];
    size_t need = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC0 ? 2 : 1;
    if (need > 1 && len - (i - 1) < need)
        s[i - 1] = '\0';
}

int err_setv(struct err *err, enum err_code code, const char *fmt, va_list args)
{
    BUG_IF(code == ERR_OK);
    if (err == NULL)
        return -1;
    err->code = code;
    int n = vsnprintf(err->message, sizeof err->message, fmt, args);
    if (n < 0)
        err->message[0] = '\0';
    if (n >= (int)sizeof err->message)
        trim_torn_utf8(err->message);
    return -1;
}

int err_set(struct err *err, enum err_code code, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    err_setv(err, code, fmt, args);
    va_end(args);
    return -1;
}

int err_set_errno(struct err *err, int errnum, const char *fmt, ...)
{
    if (err == NULL)
        return -1;
    enum err_code code = errnum == ENOENT   ? ERR_NOT_FOUND
                         : errnum == ENOMEM ? ERR_NO_MEMORY
                                            : ERR_IO;
    va_list args;
    va_start(args, fmt);
    err_setv(err, code, fmt, args);
    va_end(args);
    char reason[128];
    /* The GNU strerror_r may return a static string instead of filling the buffer. */
    const char *text = strerror_r(errnum, reason, sizeof reason);
    size_t len = strlen(err->message);
    snprintf(err->message + len, sizeof err->message - len, ": %s", text);
    return -1;
}

int err_wrap(struct err *err, const char *fmt, ...)
{
    if (err == NULL)
        return -1;
    BUG_IF(err->code == ERR_OK);
    char inner[ERR_MESSAGE_BYTES];
    memcpy(inner, err->message, sizeof inner);
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(err->message, sizeof err->message, fmt, args);
    va_end(args);
    if (n < 0)
        n = 0;
    size_t len = strlen(err->message);
    n = snprintf(err->message + len, sizeof err->message - len, ": %s", inner);
    if (n < 0 || (size_t)n >= sizeof err->message - len)
        trim_torn_utf8(err->message);
    return -1;
}

const char *err_code_name(enum err_code code)
{
    BUG_IF((size_t)code >= sizeof codes / sizeof *codes);
    return codes[code].name;
}

int err_http_status(enum err_code code)
{
    BUG_IF((size_t)code >= sizeof codes / sizeof *codes);
    return codes[code].http_status;
}

int err_exit_status(enum err_code code)
{
    BUG_IF((size_t)code >= sizeof codes / sizeof *codes);
    return codes[code].exit_status;
}

void bug_at(const char *file, int line, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "tributary: bug at %s:%d: ", file, line);
    vfprintf(stderr, fmt, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}
