/* cmd_query: questions to a running node: usage, rewards, receipt, batches, status; and seal.
 *
 * Each asks the node's /rpc and prints the answer: as it came with --json, as a table otherwise. A
 * table is a list of columns; a column is a key of the items and a title. */
#include "node/base/buf.h"
#include "node/cli/commands.h"
#include "node/cli/rpc_call.h"
#include "node/json_util.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <jansson.h>

struct column {
    const char *key, *title;
    bool shorten; /* hashes: the first eight digits will do */
    bool is_time; /* milliseconds since 1970 */
};

static char *cell_text(const json_t *v, const struct column *c)
{
    if (v == NULL || json_is_null(v))
        return xstrdup("-");
    if (json_is_integer(v) && c->is_time) {
        time_t seconds = (time_t)(json_integer_value(v) / 1000);
        struct tm tm;
        char text[32];
        strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", gmtime_r(&seconds, &tm));
        return xstrdup(text);
    }
    if (json_is_string(v)) {
        const char *s = json_string_value(v);
        if (c->shorten && strlen(s) > 12)
            return xasprintf("%.10s..", s);
        return xstrdup(s);
    }
    return json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
}

static void print_items(const json_t *items, const struct column *columns, size_t n_columns)
{
    size_t n = json_array_size(items);
    char **cells = xcalloc(n * n_columns + 1, sizeof(char *));
    const char *titles[16];
    for (size_t c = 0; c < n_columns; c++)
        titles[c] = columns[c].title;
    for (size_t r = 0; r < n; r++) {
        for (size_t c = 0; c < n_columns; c++)
            cells[r * n_columns + c] = cell_text(
                json_object_get(json_array_get(items, r), columns[c].key), &columns[c]);
    }
    cli_print_table(stdout, titles, n_columns, (const char *const *)cells, n);
    for (size_t i = 0; i < n * n_columns; i++)
        free(cells[i]);
    free(cells);
}

/* --adapter, --creator, --payer, --from, --to into parameters; -1: a time can't be read. */
static int filter_params(const struct cli_args *a, json_t **out, struct err *err)
{
    static const char *const texts[] = {"adapter", "creator", "payer"};
    static const char *const times[] = {"from", "to"};
    json_t *p = json_object();
    for (int i = 0; i < 3; i++) {
        if (cli_has(a, texts[i]))
            json_object_set_new(p, texts[i], json_text(cli_value(a, texts[i], NULL)));
    }
    for (int i = 0; i < 2; i++) {
        if (!cli_has(a, times[i]))
            continue;
        const char *text = cli_value(a, times[i], NULL);
        struct tm tm = {0};
        char *end = strptime(text, "%Y-%m-%d", &tm);
        if (end != NULL && (*end == 'T' || *end == ' '))
            end = strptime(end + 1, "%H:%M", &tm);
        if (end == NULL || *end != '\0') {
            json_decref(p);
            return err_set(err, ERR_INVALID,
                           "--%s %s: a time is 2026-01-31 or 2026-01-31T18:30, in UTC", times[i],
                           text);
        }
        json_object_set_new(p, times[i], json_integer((json_int_t)timegm(&tm) * 1000));
    }
    json_object_set_new(p, "limit", json_integer(500));
    *out = p;
    return 0;
}

static int run_list(const struct cli_args *a, const char *method, const struct column *columns,
                    size_t n_columns, const char *totals)
{
    struct err err = {0};
    json_t *params = NULL, *last = NULL;
    if (filter_params(a, &params, &err) != 0)
        return cli_fail(a, &err);
    json_t *items = rpc_call_list(rpc_call_node(a), method, params, &last, &err);
    if (items == NULL) {
        json_decref(last);
        return cli_fail(a, &err);
    }
    const json_t *sum = totals != NULL ? json_object_get(last, totals) : NULL;
    if (cli_has(a, "json")) {
        json_t *all = json_pack("{s:O}", "items", items);
        if (sum != NULL)
            json_object_set(all, totals, (json_t *)(uintptr_t)sum);
        cli_print_json(all);
        json_decref(all);
    } else {
        if (sum != NULL) { /* one more row */
            json_t *row = json_copy((json_t *)(uintptr_t)sum);
            json_object_set_new(row, "name", json_string("(all)"));
            json_array_append_new(items, row);
        }
        print_items(items, columns, n_columns);
    }
    json_decref(items);
    json_decref(last);
    return 0;
}

#define FILTER_OPTIONS                                                                      \
    {"adapter", CLI_VALUE, "ID", "Only this adapterId."},                                   \
        {"creator", CLI_VALUE, "ADDRESS", "Only adapters of this creator."},                \
        {"payer", CLI_VALUE, "ADDRESS", "Only receipts that this account pays."},           \
        {"from", CLI_VALUE, "TIME", "Not before, in UTC: 2026-01-31 or 2026-01-31T18:30."}, \
        {"to", CLI_VALUE, "TIME", "Before, in UTC."}, RPC_CALL_NODE_OPTION,                 \
        {"json", CLI_SWITCH, NULL, "Print JSON."},                                          \
    {                                                                                       \
        0                                                                                   \
    }

static const struct cli_option filter_options[] = {FILTER_OPTIONS};
static const struct cli_option plain_options[] = {
    RPC_CALL_NODE_OPTION, {"json", CLI_SWITCH, NULL, "Print JSON."}, {0}};

static int run_usage(const struct cli_args *a)
{
    static const struct column columns[] = {
        {"name", "adapter", false, false},
        {"version", "version", false, false},
        {"requests", "requests", false, false},
        {"promptTokens", "prompt", false, false},
        {"completionTokens", "completion", false, false},
        {"royalty", "royalty", false, false},
        {"computeFee", "compute fee", false, false},
        {"adapterId", "id", true, false},
    };
    return run_list(a, "attribution_usage", columns, sizeof columns / sizeof *columns, "totals");
}

const struct cli_command cmd_usage = {
    .name = "usage",
    .summary = "requests, tokens and fees by adapter",
    .synopsis = "[--adapter ID] [--creator ADDRESS] [--payer ADDRESS] [--from TIME] [--to TIME]\n"
                "        [--node URL] [--json]",
    .description =
        "Asks a running node what was served: for each adapter its requests, prompt and "
        "completion tokens, the royalty and the compute fee, in the token's smallest "
        "unit. A \"-\" as adapter is the base model, with an id of zeros an adapter that is "
        "registered nowhere. The last line counts each request once.",
    .options = filter_options,
    .run = run_usage,
};

static int run_rewards(const struct cli_args *a)
{
    static const struct column columns[] = {
        {"kind", "kind", false, false},           {"name", "name", false, false},
        {"position", "position", false, false},   {"payee", "payee", false, false},
        {"earned", "earned", false, false},       {"sealed", "sealed", false, false},
        {"submitted", "submitted", false, false}, {"final", "final", false, false},
        {"claimed", "claimed", false, false},
    };
    return run_list(a, "attribution_rewards", columns, sizeof columns / sizeof *columns, NULL);
}

const struct cli_command cmd_rewards = {
    .name = "rewards",
    .summary = "who has earned what, and how far it has come",
    .synopsis = "[--adapter ID] [--creator ADDRESS] [--payer ADDRESS] [--from TIME] [--to TIME]\n"
                "        [--node URL] [--json]",
    .description =
        "Asks a running node who is owed what: one line for each position of an adapter's split, "
        "each Datanet, and the operator. Amounts are in the token's smallest unit: earned by "
        "receipts, sealed in batches, submitted to the chain, final (claimable), claimed.",
    .options = filter_options,
    .run = run_rewards,
};

static int run_batches(const struct cli_args *a)
{
    static const struct column columns[] = {
        {"seq", "seq", false, false},
        {"state", "state", false, false},
        {"leafCount", "receipts", false, false},
        {"value", "value", false, false},
        {"committed", "committed", false, false},
        {"sealedMs", "sealed (UTC)", false, true},
        {"txHash", "transaction", false, false},
    };
    return run_list(a, "attribution_batches", columns, sizeof columns / sizeof *columns, NULL);
}

const struct cli_command cmd_batches = {
    .name = "batches",
    .summary = "sealed batches and where they are",
    .synopsis = "[--adapter ID] [--creator ADDRESS] [--payer ADDRESS] [--from TIME] [--to TIME]\n"
                "        [--node URL] [--json]",
    .description = "Asks a running node for its batches, oldest first: sealed, submitted, "
                   "confirmed, final.",
    .options = filter_options,
    .run = run_batches,
};

/* One object, key by key. */
static void print_object(const json_t *o, const char *prefix)
{
    const char *key;
    json_t *v;
    json_object_foreach((json_t *)(uintptr_t)o, key, v)
    {
        char *name = xasprintf("%s%s%s", prefix, prefix[0] != '\0' ? "." : "", key);
        if (json_is_object(v)) {
            print_object(v, name);
        } else {
            char *text = cell_text(v, &(struct column){key, key, false, false});
            cli_put_text(stdout, name);
            printf("%*s ", strlen(name) < 34 ? 34 - (int)strlen(name) : 0, "");
            cli_put_text(stdout, text);
            putchar('\n');
            free(text);
        }
        free(name);
    }
}

static int run_object(const struct cli_args *a, const char *method, json_t *params)
{
    struct err err = {0};
    json_t *o = rpc_call_method(rpc_call_node(a), method, params, &err);
    if (o == NULL)
        return cli_fail(a, &err);
    if (cli_has(a, "json"))
        cli_print_json(o);
    else
        print_object(o, "");
    json_decref(o);
    return 0;
}

static int run_receipt(const struct cli_args *a)
{
    const char *id = rpc_call_request_id(cli_operand(a, 0));
    return run_object(a, "attribution_receipt", json_pack("{s:s}", "id", id));
}

const struct cli_command cmd_receipt = {
    .name = "receipt",
    .summary = "one signed receipt",
    .synopsis = "ID [--node URL] [--json]",
    .description =
        "Asks a running node for a receipt. ID is the request's (the header "
        "x-request-id, or the answer's id, \"chatcmpl-...\"), or the receipt's own hash.",
    .options = plain_options,
    .n_operands_min = 1,
    .n_operands_max = 1,
    .run = run_receipt,
};

static int run_status(const struct cli_args *a)
{
    return run_object(a, "node_status", NULL);
}

const struct cli_command cmd_status = {
    .name = "status",
    .summary = "health and counters of a running node",
    .synopsis = "[--node URL] [--json]",
    .description = "Asks a running node how it is: whether it makes progress, what it serves, the "
                   "counters of its engine, its ledger and its chain.",
    .options = plain_options,
    .run = run_status,
};

static int run_seal(const struct cli_args *a)
{
    return run_object(a, "node_seal", NULL);
}

const struct cli_command cmd_seal = {
    .name = "seal",
    .summary = "make batches of all receipts now",
    .synopsis = "[--node URL] [--json]",
    .description = "Tells a running node on this machine to seal what it can without waiting for "
                   "the batch policy, and to publish it. Prints the number of receipts that were "
                   "sealed. Fails on a node without a chain.",
    .options = plain_options,
    .run = run_seal,
};
