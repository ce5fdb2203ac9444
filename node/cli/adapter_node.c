/* adapter_node: see adapter_node.h. Each command is one request to /admin/v1/adapters
 * (node/api_admin.c); a list follows `next` to its end. The admin key comes from a file or the
 * environment, never from the command line, where everyone on the machine could read it. */
#include "node/cli/adapter_node.h"

#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/http_client.h"
#include "node/cli/node_call.h"
#include "node/cli/rpc_call.h"
#include "node/json_util.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_MAX_BYTES = 4096 };

/* ---- asking ------------------------------------------------------------------------------------
 */

static int read_key(const struct cli_args *a, struct buf *header, struct err *err)
{
    const char *file = cli_value(a, "admin-key-file", NULL);
    const char *key = getenv("TRIBUTARY_ADMIN_KEY");
    if (file == NULL && key == NULL)
        return 0;
    buf_append_str(header, "Authorization: Bearer ");
    if (file == NULL)
        buf_append_str(header, key);
    else if (file_read(file, KEY_MAX_BYTES, header, err) != 0)
        return -1;
    while (header->len > 0 && isspace(header->data[header->len - 1]))
        header->data[--header->len] = '\0';
    if (strpbrk(buf_cstr(header), "\r\n") != NULL) /* perhaps the file that the node has */
        return err_set(err, ERR_INVALID, "%s: an admin key is one line",
                       file != NULL ? file : "TRIBUTARY_ADMIN_KEY");
    return 0;
}

/* An answer's JSON, or NULL with the node's own sentence. body (taken) may be NULL. */
static json_t *call(const struct cli_args *a, enum http_method method, const char *path,
                    json_t *body, struct err *err)
{
    struct buf key = BUF_INIT, text = BUF_INIT;
    char *whole = xasprintf("/admin/v1/adapters%s", path);
    json_t *result = NULL;
    if (body != NULL)
        json_append_value(&text, body);
    json_decref(body);
    if (read_key(a, &key, err) == 0)
        result = node_call(rpc_call_node(a), method, whole, &text,
                           key.len > 0 ? buf_cstr(&key) : NULL, err);
    if (key.len > 0)
        explicit_bzero(key.data, key.len);
    buf_release(&key);
    buf_release(&text);
    free(whole);
    return result;
}

/* Percent-encodes what isn't plain (RFC 3986, section 2.3). */
static void append_encoded(struct buf *b, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p != '\0'; p++) {
        if (isalnum(*p) || strchr("-._~", *p) != NULL)
            buf_append_byte(b, *p);
        else
            buf_appendf(b, "%%%02X", *p);
    }
}

/* ---- showing -----------------------------------------------------------------------------------
 */

static char *cell(const json_t *item, const char *key)
{
    const json_t *v = json_object_get(item, key);
    if (v == NULL || json_is_null(v))
        return xstrdup("-");
    if (json_is_string(v) && strcmp(key, "content_digest") == 0)
        return xstrndup(json_string_value(v), 12);
    if (json_is_string(v))
        return xstrdup(json_string_value(v));
    if (json_is_boolean(v))
        return xstrdup(json_is_true(v) ? "yes" : "no");
    if (json_is_real(v))
        return xasprintf("%.1f", json_real_value(v));
    return json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
}

static void print_adapters(const json_t *items)
{
    static const char *const keys[] = {"id",    "tier", "pinned",  "in_use", "uses",
                                       "bytes", "rank", "load_ms", "source", "content_digest"};
    enum { N = sizeof keys / sizeof *keys };
    size_t n = json_array_size(items);
    char **cells = xcalloc(n * N + 1, sizeof(char *));
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < N; k++)
            cells[i * N + k] = cell(json_array_get(items, i), keys[k]);
    }
    cli_print_table(stdout, keys, N, (const char *const *)cells, n);
    for (size_t i = 0; i < n * N; i++)
        free(cells[i]);
    free(cells);
}

/* Prints an adapter, or the error. Takes the answer. */
static int show(const struct cli_args *a, json_t *answer, const struct err *err)
{
    if (answer == NULL)
        return cli_fail(a, err);
    if (cli_has(a, "json")) {
        cli_print_json(answer);
    } else {
        json_t *one = json_pack("[O]", answer);
        print_adapters(one);
        json_decref(one);
        static const char *const tiers[] = {"host_bytes", "device_bytes"};
        for (int i = 0; i < 2; i++) {
            const json_t *b = json_object_get(answer, tiers[i]);
            if (b != NULL)
                printf("%s: %" JSON_INTEGER_FORMAT " before, %" JSON_INTEGER_FORMAT " after\n",
                       tiers[i], json_integer_value(json_object_get(b, "before")),
                       json_integer_value(json_object_get(b, "after")));
        }
    }
    json_decref(answer);
    return 0;
}

/* ---- commands ----------------------------------------------------------------------------------
 */

int adapter_node_list(const struct cli_args *a)
{
    struct err err = {0};
    json_t *all = json_array();
    for (char *cursor = NULL;;) {
        struct buf path = BUF_INIT;
        buf_append_str(&path, "?limit=1000");
        static const char *const filters[] = {"tier", "prefix"};
        for (int i = 0; i < 2; i++) {
            if (cli_has(a, filters[i])) {
                buf_appendf(&path, "&%s=", filters[i]);
                append_encoded(&path, cli_value(a, filters[i], NULL));
            }
        }
        if (cli_has(a, "pinned"))
            buf_append_str(&path, "&pinned=true");
        if (cursor != NULL) {
            buf_append_str(&path, "&cursor=");
            append_encoded(&path, cursor);
        }
        json_t *page = call(a, HTTP_GET, buf_cstr(&path), NULL, &err);
        buf_release(&path);
        free(cursor);
        if (page == NULL) {
            json_decref(all);
            return cli_fail(a, &err);
        }
        json_array_extend(all, json_object_get(page, "items"));
        const char *next = json_string_value(json_object_get(page, "next"));
        cursor = next != NULL ? xstrdup(next) : NULL;
        json_decref(page);
        if (cursor == NULL)
            break;
    }
    if (cli_has(a, "json"))
        cli_print_json(all);
    else
        print_adapters(all);
    json_decref(all);
    return 0;
}

static int order(const struct cli_args *a, enum http_method method, const char *what)
{
    struct err err = {0};
    struct buf path = BUF_INIT;
    buf_append_byte(&path, '/');
    append_encoded(&path, cli_operand(a, 0));
    buf_append_str(&path, what);
    json_t *answer = call(a, method, buf_cstr(&path), method == HTTP_POST ? json_object() : NULL,
                          &err);
    buf_release(&path);
    return show(a, answer, &err);
}

int adapter_node_show(const struct cli_args *a)
{
    return order(a, HTTP_GET, "");
}

int adapter_node_load(const struct cli_args *a)
{
    return order(a, HTTP_POST, "/load");
}

int adapter_node_warm(const struct cli_args *a)
{
    return order(a, HTTP_POST, "/warm");
}

int adapter_node_unload(const struct cli_args *a)
{
    return order(a, HTTP_POST, "/unload");
}

int adapter_node_pin(const struct cli_args *a)
{
    return order(a, HTTP_POST, "/pin");
}

int adapter_node_unpin(const struct cli_args *a)
{
    return order(a, HTTP_POST, "/unpin");
}

int adapter_node_add(const struct cli_args *a)
{
    struct err err = {0};
    /* Relative to this shell; the node reads it, so that it must be on its machine. */
    const char *given = cli_operand(a, 1);
    char *dir = realpath(given, NULL);
    if (dir == NULL && given[0] != '/') {
        err_set_errno(&err, errno, "%s", given);
        return cli_fail(a, &err);
    }
    json_t *body = json_pack("{s:s, s:s}", "name", cli_operand(a, 0), "dir",
                             dir != NULL ? dir : given);
    free(dir);
    if (body == NULL) {
        err_set(&err, ERR_INVALID,
                "%s, %s: name and directory must be UTF-8, JSON has nothing else",
                cli_operand(a, 0), given);
        return cli_fail(a, &err);
    }
    return show(a, call(a, HTTP_POST, "", body, &err), &err);
}

int adapter_node_remove(const struct cli_args *a)
{
    struct err err = {0};
    struct buf path = BUF_INIT;
    buf_append_byte(&path, '/');
    append_encoded(&path, cli_operand(a, 0));
    json_t *answer = call(a, HTTP_DELETE, buf_cstr(&path), NULL, &err);
    buf_release(&path);
    if (answer == NULL)
        return cli_fail(a, &err);
    if (cli_has(a, "json"))
        cli_print_json(answer);
    else
        printf("%s is no longer served\n", cli_operand(a, 0));
    json_decref(answer);
    return 0;
}

#define NODE_OPTIONS                                                                        \
    RPC_CALL_NODE_OPTION,                                                                   \
        {"admin-key-file", CLI_VALUE, "FILE",                                               \
         "The node's admin key. Else TRIBUTARY_ADMIN_KEY; a node on this machine may need " \
         "none."},                                                                          \
    {                                                                                       \
        "json", CLI_SWITCH, NULL, "Print JSON."                                             \
    }

const struct cli_option adapter_node_options[] = {NODE_OPTIONS, {0}};
const struct cli_option adapter_node_list_options[] = {
    NODE_OPTIONS,
    {"tier", CLI_VALUE, "device|host|disk|registry", "Only what is there, or in a faster tier."},
    {"prefix", CLI_VALUE, "TEXT", "Only names that begin so."},
    {"pinned", CLI_SWITCH, NULL, "Only what is pinned."},
    {0},
};
