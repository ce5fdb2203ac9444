/* cmd_registry: `tributary registry serve|list`. */
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/http_client.h"
#include "node/base/log.h"
#include "node/cli/cli.h"
#include "node/cli/commands.h"
#include "node/config.h"
#include "node/http.h"
#include "node/registry.h"
#include "node/registry_server.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* ---- serve
 * ----------------------------------------------------------------------------------------- */

/* "any", or addresses separated by commas; the option may be repeated. */
static int read_uploaders(const struct cli_args *a, struct registry_server_options *o,
                          struct address **list, struct err *err)
{
    size_t n = 0;
    for (size_t i = 0; i < cli_count(a, "allow-upload-from"); i++) {
        char *text = xstrdup(cli_nth(a, "allow-upload-from", i)), *save = NULL;
        int rc = 0;
        for (char *one = strtok_r(text, ",", &save); one != NULL && rc == 0;
             one = strtok_r(NULL, ",", &save)) {
            if (strcmp(one, "any") == 0) {
                o->anyone_uploads = true;
                continue;
            }
            *list = xrealloc_array(*list, n + 1, sizeof **list);
            if (address_parse(&(*list)[n++], one) != 0)
                rc = err_set(err, ERR_INVALID, "--allow-upload-from: \"%.60s\" is no address", one);
        }
        free(text);
        if (rc != 0)
            return -1;
    }
    o->uploaders = *list;
    o->n_uploaders = n;
    return 0;
}

static int serve_until_told(const struct cli_args *a, struct registry_server *server,
                            struct err *err)
{
    const struct config *c = cli_config(a);
    struct http_options options = {
        .listen = config_string(c, CONFIG_SERVER_LISTEN),
        .insecure_bind = config_bool(c, CONFIG_SERVER_INSECURE_BIND),
        .tls_cert = config_string_or_null(c, CONFIG_SERVER_TLS_CERT),
        .tls_key = config_string_or_null(c, CONFIG_SERVER_TLS_KEY),
        .n_threads = (int)config_int(c, CONFIG_SERVER_THREADS),
        .max_connections = (int)config_int(c, CONFIG_SERVER_MAX_CONNECTIONS),
        .on_head = registry_server_on_head,
        .on_request = registry_server_on_request,
        .on_done = registry_server_on_done,
        .context = server,
    };
    /* Blocked before any thread starts, so that all threads leave them to sigwait below. */
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    struct http_server *http;
    if (http_open(&http, &options, err) != 0)
        return -1;
    printf("listening on %s\n", http_url(http));
    fflush(stdout);
    int which;
    while (sigwait(&signals, &which) != 0)
        continue;
    log_info("registry", "signal %d: closing", which);
    http_drain(http);
    http_close(http);
    return 0;
}

static int run_serve(const struct cli_args *a)
{
    struct registry_server_options options = {.root = cli_value(a, "root", "registry")};
    struct address *uploaders = NULL;
    struct registry_server *server = NULL;
    struct err err = {0};
    int rc = read_uploaders(a, &options, &uploaders, &err);
    if (rc == 0)
        rc = registry_server_open(&server, &options, &err);
    if (rc == 0)
        rc = serve_until_told(a, server, &err);
    registry_server_close(server);
    free(uploaders);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

/* ---- list
 * ------------------------------------------------------------------------------------------- */

struct listing {
    json_t *items;
    size_t most;
};

static int add_entry(void *context, const struct registry_entry *entry, struct err *err)
{
    (void)err;
    struct listing *l = context;
    char hex[65], creator[ADDRESS_TEXT_BYTES];
    for (size_t i = 0; i < 32; i++)
        snprintf(hex + 2 * i, 3, "%02x", entry->manifest.bytes[i]);
    json_array_append_new(l->items,
                          json_pack("{s:s,s:s,s:I,s:s,s:s}", "kind",
                                    entry->is_datanet ? "datanet" : "adapter", "name", entry->name,
                                    "version", (json_int_t)entry->version, "creator",
                                    address_format(creator, entry->creator), "manifest", hex));
    return json_array_size(l->items) >= l->most;
}

static void print_listing(const json_t *items)
{
    static const char *const titles[] = {"kind", "name", "version", "creator", "manifest"};
    size_t n = json_array_size(items), i;
    const char **cells = xcalloc(n * 5, sizeof *cells);
    char(*versions)[24] = xcalloc(n, sizeof *versions);
    json_t *item;
    json_array_foreach(items, i, item)
    {
        snprintf(versions[i], sizeof versions[i], "%" JSON_INTEGER_FORMAT,
                 json_integer_value(json_object_get(item, "version")));
        for (size_t k = 0; k < 5; k++)
            cells[5 * i + k] = k == 2 ? versions[i]
                                      : json_string_value(json_object_get(item, titles[k]));
    }
    cli_print_table(stdout, titles, 5, cells, n);
    free(versions);
    free(cells);
}

static int run_list(const struct cli_args *a)
{
    const struct config *c = cli_config(a);
    struct err err = {0};
    struct listing l = {json_array(), 500};
    struct http_client *http = http_client_create();
    int rc = config_list_len(c, CONFIG_REGISTRY_URLS) > 0
                 ? 0
                 : err_set(&err, ERR_INVALID, "no registry is configured (--registry URL)");
    for (size_t i = 0; rc == 0 && i < config_list_len(c, CONFIG_REGISTRY_URLS); i++) {
        struct registry_client client = {http, config_list_item(c, CONFIG_REGISTRY_URLS, i), NULL};
        rc = registry_walk(&client, add_entry, &l, &err);
        rc = rc == 1 ? 0 : rc;
    }
    if (rc == 0 && cli_has(a, "json"))
        cli_print_json(l.items);
    else if (rc == 0)
        print_listing(l.items);
    json_decref(l.items);
    http_client_free(http);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static const struct cli_option serve_options[] = {
    {"root", CLI_VALUE, "DIR", "Where manifests and files lie. Default: registry."},
    {"allow-upload-from", CLI_LIST, "ADDRESS,...|any", "Creators who may upload. Default: nobody."},
    {0},
};
static const struct cli_option list_options[] = {
    {"json", CLI_SWITCH, NULL, "Print JSON."},
    {0},
};

static const struct cli_command subcommands[] = {
    {
        .name = "serve",
        .summary = "run a registry",
        .synopsis = "[--listen HOST:PORT] [--root DIR] [--allow-upload-from ADDRESS,...|any]",
        .description =
            "Serves a directory of signed manifests and content-addressed files, and takes uploads "
            "that a creator has signed. Any web server can serve the same directory; readers trust "
            "neither.",
        .examples = "    tributary registry serve --listen 127.0.0.1:9000 --root registry "
                    "--allow-upload-from any\n",
        .options = serve_options,
        .takes_config = true,
        .run = run_serve,
    },
    {
        .name = "list",
        .summary = "list what a registry offers",
        .synopsis = "--registry URL [--json]",
        .description =
            "The newest 500 entries of each registry's index, newest first. An index is a "
            "hint: nothing in it has been checked.",
        .options = list_options,
        .takes_config = true,
        .run = run_list,
    },
    {0},
};

const struct cli_command cmd_registry = {
    .name = "registry",
    .summary = "serve a registry of adapters, or list one",
    .synopsis = "COMMAND",
    .description =
        "A registry is a plain directory over HTTP: an index, signed manifests, and files "
        "under their sha256.",
    .subcommands = subcommands,
};
