/* api_admin: the operator's hand on the adapters of a running node.
 *
 *   GET    /admin/v1/adapters[?tier=&pinned=true&prefix=&cursor=&limit=]
 *                                          {"items": [adapter], "next": cursor or null}
 *   POST   /admin/v1/adapters              {"name", "dir"}: a local adapter, or a known local name
 *                                          pointed at a new directory; -> adapter
 *   GET    /admin/v1/adapters/{name}       adapter
 *   DELETE /admin/v1/adapters/{name}       forgets a local name -> {"removed": name}
 *   POST   /admin/v1/adapters/{name}/load    into host memory, from wherever it is -> adapter
 *                                   /warm    and towards the device
 *                                   /pin     as load, and it never leaves host memory again, nor
 *                                            the device while that has room to keep it
 *                                   /unpin
 *                                   /unload  out of host memory and off the device -> adapter and
 *                                            "host_bytes", "device_bytes": {"before", "after"}
 *
 * adapter: adapter_admin.c. {name} is whatever a request may call an adapter: a name, name@version,
 * a content digest, an adapter id. What was added here comes back when the node starts again,
 * unless its configuration gives the name to another directory; pins last until the node ends.
 * Errors have OpenAI's shape. Who may ask: routes.c. */
#include "engine/engine.h"
#include "node/adapter_store.h"
#include "node/api_error.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/http.h"
#include "node/json_util.h"
#include "node/node.h"

#include <stdlib.h>
#include <string.h>

static void reply(struct http_exchange *x, json_t *value)
{
    struct buf b = BUF_INIT;
    json_append_value(&b, value);
    json_decref(value);
    http_reply(x, 200, "application/json", &b);
}

static void reply_error(struct http_exchange *x, const struct err *err, const char *param)
{
    struct api_error e = {0};
    api_error_set(&e, err->code, param, "%s", err->message);
    api_error_reply(x, &e);
}

/* ---- the list ----------------------------------------------------------------------------------
 */

static int parse_filter(struct adapter_filter *f, struct http_exchange *x, struct api_error *e)
{
    *f = (struct adapter_filter){.tier = http_query(x, "tier"),
                                 .prefix = http_query(x, "prefix"),
                                 .cursor = http_query(x, "cursor")};
    const char *pinned = http_query(x, "pinned"), *limit = http_query(x, "limit");
    if (pinned != NULL && strcmp(pinned, "true") != 0 && strcmp(pinned, "false") != 0)
        return api_error_set(e, ERR_INVALID, "pinned", "pinned is true or false");
    f->pinned = pinned != NULL && strcmp(pinned, "true") == 0;
    if (limit != NULL) {
        char *end;
        f->limit = strtoul(limit, &end, 10);
        if (limit[0] < '1' || limit[0] > '9' || *end != '\0' || f->limit > 1000)
            return api_error_set(e, ERR_INVALID, "limit", "limit is a number from 1 to 1000");
    }
    return 0;
}

void api_admin_adapters(struct node *n, struct http_exchange *x)
{
    struct adapter_filter f;
    struct api_error e = {.param = "tier"}; /* of the store's own refusal */
    json_t *page = parse_filter(&f, x, &e) == 0 ? adapter_store_list(n->adapters, &f, &e.err)
                                                : NULL;
    if (page != NULL)
        reply(x, page);
    else
        reply_error(x, &e.err, e.param);
}

void api_admin_add(struct node *n, struct http_exchange *x)
{
    size_t n_body;
    const void *body = http_body(x, &n_body);
    struct err err = {0};
    json_t *root = json_parse(body, n_body, &err), *shown = NULL;
    const char *name = json_string_value(json_object_get(root, "name"));
    const char *dir = json_string_value(json_object_get(root, "dir"));
    const char *key, *param = NULL; /* the field that is wrong, where one is */
    json_t *value;
    int rc = root != NULL ? 0 : -1;
    json_object_foreach(root, key, value)
    {
        if (rc == 0 && strcmp(key, "name") != 0 && strcmp(key, "dir") != 0) {
            rc = err_set(&err, ERR_INVALID, "unknown field '%.60s'", key);
            param = key;
        }
    }
    if (rc == 0 && (name == NULL || dir == NULL))
        rc = err_set(&err, ERR_INVALID,
                     "the body must be {\"name\": NAME, \"dir\": DIRECTORY on the node's machine}");
    if (rc == 0 && dir[0] != '/') {
        rc = err_set(&err, ERR_INVALID, "dir must be an absolute path, it is read by the node");
        param = "dir";
    }
    if (rc == 0)
        rc = adapter_store_add(n->adapters, name, dir, true, NULL, &err);
    if (rc == 0)
        shown = adapter_store_show(n->adapters, name, &err);
    if (shown != NULL)
        reply(x, shown);
    else
        reply_error(x, &err, param);
    json_decref(root);
}

/* ---- one adapter -------------------------------------------------------------------------------
 */

void api_admin_adapter(struct node *n, struct http_exchange *x, const char *name)
{
    struct err err = {0};
    json_t *o = adapter_store_show(n->adapters, name, &err);
    if (o != NULL)
        reply(x, o);
    else
        reply_error(x, &err, "name");
}

void api_admin_remove(struct node *n, struct http_exchange *x, const char *name)
{
    struct err err = {0};
    if (adapter_store_remove(n->adapters, name, &err) == 0)
        reply(x, json_pack("{s:s}", "removed", name));
    else
        reply_error(x, &err, "name");
}

/* An answer that waits for an adapter. */
struct order {
    struct node *node;
    struct http_exchange *x; /* retained */
    char *name;
};

static void loaded(void *user, const struct resolved *out, const struct err *why)
{
    struct order *o = user;
    if (out != NULL)
        api_admin_adapter(o->node, o->x, o->name);
    else
        reply_error(o->x, why, "name");
    http_drop(o->x);
    free(o->name);
    free(o);
}

static void load(struct node *n, struct http_exchange *x, const char *name, enum adapter_load how)
{
    struct order *o = xmalloc(sizeof *o);
    *o = (struct order){n, x, xstrdup(name)};
    http_retain(x);
    adapter_store_load(n->adapters, name, how, loaded, o);
}

static void unload(struct node *n, struct http_exchange *x, const char *name)
{
    struct err err = {0};
    json_t *o = adapter_store_unload(n->adapters, name, &err);
    if (o != NULL)
        reply(x, o);
    else
        reply_error(x, &err, "name");
}

static void unpin(struct node *n, struct http_exchange *x, const char *name)
{
    struct err err = {0};
    if (adapter_store_pin(n->adapters, name, false, &err) == 0)
        api_admin_adapter(n, x, name);
    else
        reply_error(x, &err, "name");
}

void api_admin_order(struct node *n, struct http_exchange *x, const char *rest)
{
    const char *slash = strrchr(rest, '/'); /* names may have slashes, orders have none */
    const char *what = slash != NULL ? slash + 1 : "";
    char *name = xstrndup(rest, slash != NULL ? (size_t)(slash - rest) : strlen(rest));
    if (name[0] == '\0')
        what = "";
    if (strcmp(what, "load") == 0) {
        load(n, x, name, LOAD_HOST);
    } else if (strcmp(what, "warm") == 0) {
        load(n, x, name, LOAD_WARM);
    } else if (strcmp(what, "pin") == 0) {
        load(n, x, name, LOAD_PIN);
    } else if (strcmp(what, "unload") == 0) {
        unload(n, x, name);
    } else if (strcmp(what, "unpin") == 0) {
        unpin(n, x, name);
    } else {
        struct err err = {0};
        err_set(&err, ERR_NOT_FOUND,
                "an order is /admin/v1/adapters/NAME/ and load, warm, pin, unpin or unload");
        reply_error(x, &err, NULL);
    }
    free(name);
}
