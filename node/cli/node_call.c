/* node_call: see node_call.h. */
#include "node/cli/node_call.h"

#include "node/base/buf.h"
#include "node/base/err.h"

#include <stdlib.h>
#include <string.h>

enum { ANSWER_MAX_BYTES = 64 << 20 };

static enum err_code code_of_status(int status)
{
    for (int c = ERR_INVALID; c <= ERR_INTERNAL; c++) {
        if (err_http_status((enum err_code)c) == status)
            return (enum err_code)c;
    }
    return ERR_UPSTREAM;
}

json_t *node_call(const char *node_url, enum http_method method, const char *path,
                  const struct buf *body, const char *header, struct err *err)
{
    struct buf answer = BUF_INIT;
    size_t n = strlen(node_url);
    while (n > 0 && node_url[n - 1] == '/')
        n--;
    char *url = xasprintf("%.*s%s", (int)n, node_url, path);
    struct http_client *client = http_client_create();
    const char *headers[] = {"Content-Type: application/json", header};
    struct http_call call = {.method = method,
                             .url = url,
                             .headers = headers,
                             .n_headers = header != NULL ? 2 : 1,
                             .body = body->data,
                             .n_body = body->len,
                             .max_body_bytes = ANSWER_MAX_BYTES,
                             .timeout_ms = 600000, /* a load may be a download */
                             .stall_ms = 600000};
    struct http_reply reply = {0};
    json_t *result = NULL;
    if (http_client_fetch(client, &call, &answer, &reply, err) == 0) {
        result = json_loadb(buf_cstr(&answer), answer.len, JSON_REJECT_DUPLICATES, NULL);
        const char *message = json_string_value(
            json_object_get(json_object_get(result, "error"), "message"));
        if (reply.status != 200 || result == NULL) {
            if (message != NULL)
                err_set(err, code_of_status(reply.status), "%s", message);
            else
                err_set(err, ERR_UPSTREAM, "%s answers with status %d: is it a node?", node_url,
                        reply.status);
            json_decref(result);
            result = NULL;
        }
    }
    buf_release(&answer);
    http_client_free(client);
    free(url);
    return result;
}
