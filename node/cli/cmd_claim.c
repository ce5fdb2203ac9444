/* cmd_claim: `tributary claim`: draws what final batches owe.
 *
 * Anyone may send a claim: the contract pays the payee that the registry names, whoever sends. The
 * node is asked for the leaves and their proofs; the contract checks them, so a node that lies only
 * makes the call fail here, at the estimate. Leaves of one batch go in one transaction, CLAIMS_A_TX
 * at most. */
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/cli/chain_session.h"
#include "node/cli/cli.h"
#include "node/cli/commands.h"
#include "node/cli/ledger_json.h"
#include "node/cli/rpc_call.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { CLAIMS_A_TX = 40 };
static const char *const kinds[] = {"operator", "adapter", "datanet"};

struct leaf {
    struct payout_claim claim;
    struct batch batch;
    struct batch_digest digest;
    struct amount claimed; /* before, by the contract */
    const char *name;      /* for people; borrowed */
};

struct leaves {
    struct arena arena;
    struct leaf *items;
    size_t n;
};

/* Whether the options ask for this item of attribution_rewards. */
static bool is_wanted(const struct cli_args *a, const json_t *item)
{
    const char *kind = json_string_value(json_object_get(item, "kind"));
    const char *id = json_string_value(json_object_get(item, "id"));
    if (kind == NULL || id == NULL)
        return false;
    if (cli_has(a, "all"))
        return true;
    if (strcmp(kind, "operator") == 0)
        return cli_has(a, "operator-share");
    if (strcmp(kind, "adapter") != 0 && strcmp(kind, "datanet") != 0)
        return false; /* no option of ours: the node may be newer, or lie */
    for (size_t i = 0; i < cli_count(a, kind); i++) {
        if (strcasecmp(cli_nth(a, kind, i), id) == 0)
            return true;
    }
    return false;
}

/* Whether the proof is of the leaf that was asked for: the payer of the gas chose it. */
static bool is_of(const struct payout_claim *claim, const json_t *item)
{
    const char *kind = json_string_value(json_object_get(item, "kind"));
    const char *id = json_string_value(json_object_get(item, "id"));
    uint8_t wanted[32];
    return kind != NULL && id != NULL && strcmp(kind, kinds[claim->kind]) == 0 &&
           hex_decode(wanted, sizeof wanted, id) == 0 && memcmp(wanted, claim->id, 32) == 0 &&
           json_integer_value(json_object_get(item, "position")) == claim->position;
}

/* Asks the node for the leaf's proof and the contract for what was paid. 1: something is due. */
static int look_up(struct chain_session *s, const char *node, const json_t *item,
                   struct leaves *out, struct err *err)
{
    struct leaf leaf = {.name = json_string_value(json_object_get(item, "name"))};
    json_t *proof = rpc_call_method(
        node, "attribution_proof",
        json_pack("{s:O,s:O,s:O}", "kind", json_object_get(item, "kind"), "id",
                  json_object_get(item, "id"), "position", json_object_get(item, "position")),
        err);
    if (proof == NULL && (err->code == ERR_NOT_FOUND || err->code == ERR_BUSY))
        return 0; /* in no final batch yet */
    if (proof == NULL)
        return -1;
    int rc = batch_from_json(&leaf.batch, &leaf.digest, json_object_get(proof, "batch"), err);
    if (rc == 0)
        rc = payout_from_json(&leaf.claim, proof, &out->arena, err);
    if (rc == 0 && !is_of(&leaf.claim, item))
        rc = err_set(err, ERR_CORRUPT, "the node proves another leaf than it was asked for");
    struct contract_at at = chain_at(s, CONTRACT_ATTRIBUTION_LEDGER);
    if (rc == 0)
        rc = view_ledger_claimed(&at, &leaf.claimed, leaf.batch.operator_address, leaf.claim.kind,
                                 leaf.claim.id, leaf.claim.position, err);
    json_decref(proof);
    if (rc != 0)
        return -1;
    if (amount_cmp(leaf.claim.amount, leaf.claimed) <= 0)
        return 0;
    out->items = xrealloc_array(out->items, out->n + 1, sizeof *out->items);
    out->items[out->n++] = leaf;
    return 1;
}

static json_t *leaf_to_json(const struct leaf *l, const struct chain_sent *sent)
{
    char id[67], cumulative[AMOUNT_TEXT_BYTES], before[AMOUNT_TEXT_BYTES], paid[AMOUNT_TEXT_BYTES];
    struct amount now = AMOUNT_ZERO;
    amount_sub(&now, l->claim.amount, l->claimed);
    json_t *o = json_pack("{s:s,s:s,s:i,s:s,s:s,s:s}", "kind", kinds[l->claim.kind], "id",
                          hex_encode_0x(id, l->claim.id, 32), "position", (int)l->claim.position,
                          "cumulative", amount_format(cumulative, l->claim.amount), "claimedBefore",
                          amount_format(before, l->claimed), "paid", amount_format(paid, now));
    if (l->name != NULL)
        json_object_set_new(o, "name", json_string(l->name));
    chain_sent_to_json(sent, o);
    return o;
}

/* Leaves [from, to) lie in one batch. */
static int send_claims(struct chain_session *s, const char *key, const struct leaf *leaves,
                       size_t n, json_t *done, struct err *err)
{
    struct payout_claim claims[CLAIMS_A_TX];
    for (size_t i = 0; i < n; i++)
        claims[i] = leaves[i].claim;
    struct buf data = BUF_INIT;
    struct chain_sent sent;
    calldata_ledger_claim_many(&data, leaves[0].batch.operator_address, leaves[0].batch.seq,
                               leaves[0].digest, claims, n);
    int rc = chain_send(s, &sent, "claim", key, &s->contracts.attribution_ledger, &data, err);
    buf_release(&data);
    for (size_t i = 0; rc == 0 && i < n; i++)
        json_array_append_new(done, leaf_to_json(&leaves[i], &sent));
    return rc;
}

static void print_done(const struct cli_args *a, const json_t *done)
{
    static const char *const keys[] = {"kind",          "name", "position", "cumulative",
                                       "claimedBefore", "paid", "txHash"};
    static const char *const titles[] = {"kind",           "name", "position",   "cumulative",
                                         "claimed before", "paid", "transaction"};
    enum { N = 7 };
    if (cli_has(a, "json")) {
        cli_print_json(done);
        return;
    }
    size_t n = json_array_size(done), i;
    if (n == 0) {
        fprintf(stderr, "Nothing is due: no leaf of a final batch exceeds what was claimed.\n");
        return;
    }
    const char **cells = xcalloc(n * N, sizeof *cells);
    char(*positions)[8] = xcalloc(n, sizeof *positions);
    json_t *item;
    json_array_foreach(done, i, item)
    {
        snprintf(positions[i], sizeof positions[i], "%d",
                 (int)json_integer_value(json_object_get(item, "position")));
        for (size_t k = 0; k < N; k++) {
            const char *text = json_string_value(json_object_get(item, keys[k]));
            cells[i * N + k] = k == 2 ? positions[i] : text != NULL ? text : "-";
        }
    }
    cli_print_table(stdout, titles, N, cells, n);
    free(positions);
    free(cells);
}

static int claim(struct chain_session *s, struct err *err)
{
    const struct cli_args *a = s->args;
    const char *node = rpc_call_node(a), *key = cli_value(a, "key", "default");
    struct leaves leaves = {.arena = ARENA_INIT};
    json_t *done = json_array(), *item;
    json_t *items = rpc_call_list(node, "attribution_rewards", NULL, NULL, err);
    int rc = items == NULL ? -1 : 0;
    size_t i;
    json_array_foreach(items, i, item)
    {
        if (rc == 0 && is_wanted(a, item))
            rc = look_up(s, node, item, &leaves, err) < 0 ? -1 : 0;
    }
    for (size_t from = 0, to; rc == 0 && from < leaves.n; from = to) {
        to = from + 1;
        while (to < leaves.n && to - from < CLAIMS_A_TX &&
               DIGEST_EQ(leaves.items[to].digest, leaves.items[from].digest))
            to++;
        rc = send_claims(s, key, leaves.items + from, to - from, done, err);
    }
    if (rc == 0)
        print_done(a, done);
    json_decref(items);
    json_decref(done);
    free(leaves.items);
    arena_release(&leaves.arena);
    return rc;
}

static int run(const struct cli_args *a)
{
    struct chain_session s = {0};
    struct err err = {0};
    if (!cli_has(a, "all") && !cli_has(a, "operator-share") && cli_count(a, "adapter") == 0 &&
        cli_count(a, "datanet") == 0)
        return cli_usage(a, "claim what? (--all, --adapter ID, --datanet ID, --operator-share)");
    int rc = chain_session_open(&s, a, CHAIN_CONTRACTS | CHAIN_WALLET, &err);
    if (rc == 0)
        rc = claim(&s, &err);
    chain_session_close(&s);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static const struct cli_option options[] = {
    CHAIN_SEND_OPTIONS,
    RPC_CALL_NODE_OPTION,
    CHAIN_KEY_OPTION("The key that sends, and pays for gas. Default: default."),
    {"all", CLI_SWITCH, NULL, "Every leaf with something due."},
    {"adapter", CLI_LIST, "ID", "The positions of this adapter."},
    {"datanet", CLI_LIST, "ID", "This Datanet."},
    {"operator-share", CLI_SWITCH, NULL, "The operator's compute fees."},
    {0},
};

const struct cli_command cmd_claim = {
    .name = "claim",
    .summary = "draw what final batches owe to creators, data owners and operators",
    .synopsis = "--all | --adapter ID... | --datanet ID... | --operator-share\n       [--node URL] "
                "--deployment FILE [--json]",
    .description =
        "Fetches payout proofs from the node and shows them to the contract, which pays each payee "
        "what its leaf exceeds earlier payments by. Any key may send the transaction; the money "
        "goes "
        "to the payee that the registry names.",
    .examples = "    tributary claim --all --node http://127.0.0.1:8080 --deployment "
                "deployment.json\n",
    .options = options,
    .takes_config = true,
    .run = run,
};
