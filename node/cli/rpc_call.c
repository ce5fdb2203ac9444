/* rpc_call: see rpc_call.h. */
#include "node/cli/rpc_call.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/http_client.h"
#include "node/cli/cli.h"
#include "node/json_util.h"

#include <stdlib.h>
#include <string.h>

const char *rpc_call_node(const struct cli_args *a)
{
    const char *from_environment = getenv("TRIBUTARY_NODE");
    return cli_value(a, "node",
                     from_environment != NULL ? from_environment : "http://127.0.0.1:8080");
}

const char *rpc_call_request_id(const char *id)
{
    if (strncmp(id, "chatcmpl-", 9) == 0)
        return id + 9;
    return strncmp(id, "cmpl-", 5) == 0 ? id + 5 : id;
}

static int fetch(const char *node_url, const struct buf *body, struct buf *answer, struct err *err)
{
    struct http_client *client = http_client_create();
    size_t n = strlen(node_url);
    while (n > 0 && node_url[n - 1] == '/')
        n--;
    char *url = xasprintf("%.*s/rpc", (int)n, node_url);
    const char *headers[] = {"Content-Type: application/json"};
    struct http_call call = {.method = HTTP_POST,
                             .url = url,
                             .headers = headers,
                             .n_headers = 1,
                             .body = body->data,
                             .n_body = body->len,
                             .max_body_bytes = 256 << 20};
    struct http_reply reply = {0};
    int rc = http_client_fetch(client, &call, answer, &reply, err);
    if (rc == 0 && reply.status != 200)
        rc = err_set(err, ERR_UPSTREAM, "%s answers with status %d: is it a node?", url,
                     reply.status);
    free(url);
    http_client_free(client);
    return rc;
}

static enum err_code code_of(const char *name)
{
    for (int c = ERR_INVALID; name != NULL && c <= ERR_INTERNAL; c++) {
        if (strcmp(err_code_name((enum err_code)c), name) == 0)
            return (enum err_code)c;
    }
    return ERR_UPSTREAM;
}

json_t *rpc_call_method(const char *node_url, const char *method, json_t *params, struct err *err)
{
    json_t *request = json_pack("{s:s, s:i, s:s, s:o}", "jsonrpc", "2.0", "id", 1, "method", method,
                                "params", params != NULL ? params : json_object());
    struct buf body = BUF_INIT, text = BUF_INIT;
    json_append_value(&body, request);
    json_decref(request);
    json_t *result = NULL, *answer = NULL;
    if (fetch(node_url, &body, &text, err) == 0) {
        json_error_t e;
        answer = json_loadb(buf_cstr(&text), text.len, JSON_REJECT_DUPLICATES, &e);
        const json_t *error = json_object_get(answer, "error");
        result = json_incref(json_object_get(answer, "result"));
        if (error != NULL) {
            const char *message = json_string_value(json_object_get(error, "message"));
            const char *name = json_string_value(
                json_object_get(json_object_get(error, "data"), "code"));
            enum err_code code = json_integer_value(json_object_get(error, "code")) == -32602
                                     ? ERR_INVALID
                                     : code_of(name);
            err_set(err, code, "%s", message != NULL ? message : "the node gives no reason");
        } else if (result == NULL) {
            err_set(err, ERR_UPSTREAM, "%s does not answer in JSON-RPC: is it a node?", node_url);
        }
    }
    json_decref(answer);
    buf_release(&body);
    buf_release(&text);
    return result;
}

json_t *rpc_call_list(const char *node_url, const char *method, json_t *params, json_t **last,
                      struct err *err)
{
    json_t *all = json_array();
    if (last != NULL)
        *last = NULL;
    if (params == NULL)
        params = json_object();
    for (;;) {
        json_t *page = rpc_call_method(node_url, method, json_incref(params), err);
        if (page == NULL) {
            json_decref(all);
            all = NULL;
            break;
        }
        json_array_extend(all, json_object_get(page, "items"));
        json_t *next = json_object_get(page, "next");
        bool more = json_is_string(next);
        bool again = more && json_equal(next, json_object_get(params, "cursor"));
        if (more)
            json_object_set(params, "cursor", next);
        if (last != NULL) {
            json_decref(*last);
            *last = json_incref(page);
        }
        json_decref(page);
        if (again) {
            err_set(err, ERR_UPSTREAM, "%s: the list of %s doesn't end", node_url, method);
            json_decref(all);
            all = NULL;
        }
        if (!more || again)
            break;
    }
    json_decref(params);
    return all;
}
