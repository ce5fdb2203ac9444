/* api_error: see api_error.h. */
#include "node/api_error.h"

#include "node/base/log.h"
#include "node/http.h"
#include "node/json_util.h"

#include <stdio.h>

enum { BUSY_RETRY_S = 2 };

int api_error_set(struct api_error *e, enum err_code code, const char *param, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    err_setv(&e->err, code, fmt, args);
    va_end(args);
    snprintf(e->param, sizeof e->param, "%s", param != NULL ? param : "");
    e->code = NULL;
    return -1;
}

static const char *type_of(enum err_code code)
{
    switch (code) {
    case ERR_UNAUTHORIZED:
        return "authentication_error";
    case ERR_FORBIDDEN:
        return "permission_error";
    case ERR_RATE_LIMITED:
        return "rate_limit_error";
    case ERR_PAYMENT:
        return "insufficient_quota";
    case ERR_INVALID:
    case ERR_NOT_FOUND:
    case ERR_CONFLICT:
    case ERR_TOO_LARGE:
    case ERR_UNSUPPORTED:
        return "invalid_request_error";
    case ERR_OK:
    case ERR_CORRUPT:
    case ERR_IO:
    case ERR_UPSTREAM:
    case ERR_BUSY:
    case ERR_CANCELLED:
    case ERR_TIMEOUT:
    case ERR_NO_MEMORY:
    case ERR_INTERNAL:
        return "server_error";
    }
    BUG("error code %d", (int)code);
}

void api_error_hide(struct err *err, const char *component)
{
    if (err->code != ERR_IO && err->code != ERR_INTERNAL)
        return;
    log_error(component, "%s", err->message);
    err_set(err, err->code, "the node has a fault of its own; its log says which");
}

void api_error_append(struct buf *b, const struct api_error *e)
{
    buf_append_str(b, "{\"error\":{\"message\":");
    json_append_cstr(b, e->err.message);
    buf_appendf(b, ",\"type\":\"%s\",\"param\":", type_of(e->err.code));
    if (e->param[0] != '\0')
        json_append_cstr(b, e->param);
    else
        buf_append_str(b, "null");
    buf_appendf(b, ",\"code\":\"%s\"}}", e->code != NULL ? e->code : err_code_name(e->err.code));
}

void api_error_reply(struct http_exchange *x, const struct api_error *e)
{
    unsigned status = (unsigned)err_http_status(e->err.code);
    unsigned retry_s = e->retry_after_s == 0 && status == 503 ? BUSY_RETRY_S : e->retry_after_s;
    if (retry_s > 0) {
        char text[16];
        snprintf(text, sizeof text, "%u", retry_s);
        http_set_header(x, "Retry-After", text);
    }
    if (e->err.code == ERR_UNAUTHORIZED)
        http_set_header(x, "WWW-Authenticate", "Bearer");
    struct buf b = BUF_INIT;
    api_error_append(&b, e);
    http_reply(x, status, "application/json", &b);
}
