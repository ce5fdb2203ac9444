/* cmd_verify: `tributary verify`: is this receipt genuine, and was it settled?
 *
 * The node that made the receipt is asked for its neighbours and its proof, and believed in
 * nothing: each statement is recomputed here or asked of the chain, in this order, and the first
 * that doesn't hold ends the run with exit status 65.
 *
 *   1  the receipt's fields hash to its receiptHash (EIP-712), and that is what was signed
 *   2  on chain: the signer serves, or served, the operator that the receipt names
 *   3  its sums agree: royalty is its adapters', their shares are whole; with --request: it bills
 *      what its payer's Request asked for, and not more than that allows
 *   4  the receipt before it, of the same chain, has the hash that it names; index and total go on
 *   5  the leaf (position, receiptHash) leads to the root of the batch that the node names
 *   6  that batch is of the receipt's operator; on chain: it is in his chain, and has the leaf
 *   7  on chain: vouchers that cover what his batches commit to were redeemed
 *
 * A receipt that is in no batch yet passes 1 to 4 and says so. */
#include "attribution/attribution.h"
#include "attribution/merkle.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/cli/chain_session.h"
#include "node/cli/cli.h"
#include "node/cli/commands.h"
#include "node/cli/ledger_json.h"
#include "node/cli/receipt_check.h"
#include "node/cli/rpc_call.h"
#include "node/config.h"
#include "node/json_util.h"
#include "node/signed_request.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { RECEIPT_MAX_BYTES = 1 << 20 };

struct check {
    const struct cli_args *args;
    struct chain_session chain;
    bool has_chain;
    struct arena arena;
    json_t *steps;
    struct parsed_receipt r;
};

/* One statement that holds. */
static void pass(struct check *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void pass(struct check *c, const char *fmt, ...)
{
    struct buf text = BUF_INIT;
    va_list args;
    va_start(args, fmt);
    buf_appendfv(&text, fmt, args);
    va_end(args);
    if (!cli_has(c->args, "json")) {
        printf("ok    ");
        cli_put_text(stdout, buf_cstr(&text));
        putchar('\n');
    }
    json_array_append_new(c->steps, json_text(buf_cstr(&text)));
    buf_release(&text);
}

/* ---- 1 and 2
 * ------------------------------------------------------------------------------------------ */

static int check_signature(struct check *c, struct err *err)
{
    char who[ADDRESS_TEXT_BYTES];
    if (receipt_check_signature(&c->r, err) != 0)
        return -1;
    pass(c, "signed by %s over EIP-712 digest of chain %" PRIu64, address_format(who, c->r.signer),
         c->r.domain.chain_id);
    return 0;
}

static int check_operator(struct check *c, struct err *err)
{
    char who[ADDRESS_TEXT_BYTES];
    bool revoked;
    if (receipt_check_signer(&c->r, &c->chain, &revoked, err) != 0)
        return -1;
    pass(c, "the signer is a hot key of operator %s%s",
         address_format(who, c->r.receipt.operator_address), revoked ? " (revoked since)" : "");
    return 0;
}

/* ---- 3 and 4
 * ------------------------------------------------------------------------------------------ */

static int check_sums(struct check *c, struct err *err)
{
    const struct receipt *r = &c->r.receipt;
    char compute[64], roy[64];
    if (receipt_check_sums(r, err) != 0)
        return -1;
    pass(c, "%u prompt and %u completion tokens; compute fee %s, royalty %s", r->prompt_tokens,
         r->completion_tokens, amount_to_tokens(compute, r->compute_fee),
         amount_to_tokens(roy, r->royalty));
    return 0;
}

static int check_request(struct check *c, struct err *err)
{
    const char *path = cli_value(c->args, "request", NULL);
    struct signed_request q;
    char most[64];
    if (path == NULL)
        return 0;
    if (request_from_file(&q, path, err) != 0 ||
        receipt_check_request(&c->r, &q, c->chain.contracts.escrow, err) != 0)
        return -1;
    pass(c, "answers its payer's Request, which allowed %s",
         amount_to_tokens(most, q.request.max_fee));
    return 0;
}

static int check_link(struct check *c, const char *node, struct err *err)
{
    const struct receipt *r = &c->r.receipt;
    char hex[67];
    if (r->index == 0) {
        if (receipt_check_link(&c->r, NULL, err) != 0)
            return -1;
        pass(c, "the first receipt of its channel");
        return 0;
    }
    struct parsed_receipt previous;
    json_t *o = rpc_call_method(
        node, "attribution_receipt",
        json_pack("{s:s}", "receiptHash", hex_encode_0x(hex, r->prev_receipt_hash, 32)), err);
    if (o == NULL)
        return err_wrap(err, "the receipt before it");
    int rc = receipt_from_json(&previous, o, &c->arena, err);
    json_decref(o);
    if (rc != 0)
        return err_wrap(err, "the receipt before it");
    if (receipt_check_link(&c->r, &previous.receipt, err) != 0)
        return -1;
    pass(c, "index %" PRIu64 " of its channel, follows index %" PRIu64, r->index,
         previous.receipt.index);
    return 0;
}

/* ---- 5 to 7
 * ------------------------------------------------------------------------------------------- */

static int check_on_chain(struct check *c, const struct batch *batch, uint32_t position,
                          const uint8_t (*proof)[32], size_t n_proof, struct err *err)
{
    struct contract_at ledger = chain_at(&c->chain, CONTRACT_ATTRIBUTION_LEDGER);
    struct contract_at escrow = chain_at(&c->chain, CONTRACT_ESCROW);
    const struct receipt *r = &c->r.receipt;
    struct batch_record record;
    struct batch_final final;
    bool contains;
    if (view_ledger_batch(&ledger, &record, batch->operator_address, batch->seq, err) != 0)
        return err_wrap(err, "batch %" PRIu64 " on chain", batch->seq);
    if (view_ledger_verify_receipt(&ledger, &contains, batch, position, c->r.hash, proof, n_proof,
                                   err) != 0 ||
        view_ledger_final(&ledger, &final, batch->operator_address, err) != 0)
        return -1;
    if (!contains)
        return err_set(err, ERR_CORRUPT,
                       "the contract's batch %" PRIu64 " does not contain the receipt", batch->seq);
    char committed[64];
    pass(c, "on chain: batch %" PRIu64 " holds it at position %u, committed %s, %s", batch->seq,
         position, amount_to_tokens(committed, batch->committed),
         batch->seq < final.count ? "final" : "open to challenge");
    /* The channel's epoch isn't in the receipt; what the operator redeemed in all must at least
     * cover what its batches commit to, and the contract enforces just that. */
    struct amount redeemed;
    if (view_escrow_redeemed(&escrow, &redeemed, r->operator_address, err) != 0)
        return -1;
    if (amount_cmp(redeemed, record.committed) < 0)
        return err_set(err, ERR_CORRUPT, "less was redeemed than the batch commits to");
    pass(c, "on chain: vouchers over %s were redeemed by the operator",
         amount_to_tokens(committed, redeemed));
    return 0;
}

static int check_batch(struct check *c, const char *node, struct err *err)
{
    char hex[67];
    json_t *o = rpc_call_method(
        node, "attribution_proof",
        json_pack("{s:s}", "receiptHash", hex_encode_0x(hex, c->r.hash.bytes, 32)), err);
    if (o == NULL)
        return -1;
    const json_t *batch_json = json_object_get(o, "batch");
    struct batch batch;
    struct batch_digest digest;
    uint8_t(*proof)[32] = NULL;
    size_t n = 0;
    int rc = 0;
    if (!json_is_object(batch_json)) {
        pass(c, "not sealed into a batch yet");
        json_decref(o);
        return 0;
    }
    uint32_t position = (uint32_t)json_integer_value(json_object_get(o, "position"));
    rc = batch_from_json(&batch, &digest, batch_json, err);
    if (rc == 0)
        rc = proof_from_json(&proof, &n, json_object_get(o, "proof"), &c->arena, err);
    bool submitted = strcmp(json_string_value(json_object_get(batch_json, "state")) ?: "sealed",
                            "sealed") != 0;
    json_decref(o);
    if (rc != 0)
        return -1;
    /* Anyone may put any hash into a batch of his own. */
    if (!address_eq(batch.operator_address, c->r.receipt.operator_address))
        return err_set(err, ERR_CORRUPT,
                       "the batch is of operator %s, the receipt of another: it settles nothing",
                       address_format(hex, batch.operator_address));
    struct merkle_node root, leaf = merkle_receipt_leaf(position, c->r.hash.bytes);
    memcpy(root.bytes, batch.receipts_root, 32);
    if (position >= batch.leaf_count ||
        !merkle_verify(root, leaf, (const struct merkle_node *)(const void *)proof, n))
        return err_set(err, ERR_CORRUPT, "its proof does not lead to the root of batch %" PRIu64,
                       batch.seq);
    pass(c, "leaf %u of %u leads to the receipts root of batch %" PRIu64, position,
         batch.leaf_count, batch.seq);
    if (!c->has_chain || !submitted) {
        pass(c, submitted ? "the chain was not asked (no --rpc)" : "the batch is not on chain yet");
        return 0;
    }
    return check_on_chain(c, &batch, position, (const uint8_t(*)[32])proof, n, err);
}

/* ---- the receipt to look at
 * ---------------------------------------------------------------------------- */

/* The receipt object of a file: itself, or the field `tributary` of an answer or of its last chunk.
 */
static int read_file(struct check *c, const char *path, struct err *err)
{
    struct buf text = BUF_INIT;
    json_error_t problem;
    if (file_read(path, RECEIPT_MAX_BYTES, &text, err) != 0) {
        buf_release(&text);
        return -1;
    }
    json_t *o = json_loadb((const char *)text.data, text.len, JSON_REJECT_DUPLICATES, &problem);
    buf_release(&text);
    if (o == NULL)
        return err_set(err, ERR_CORRUPT, "%s: %s at line %d", path, problem.text, problem.line);
    const json_t *inner = json_object_get(o, "tributary");
    int rc = receipt_from_json(&c->r, inner != NULL ? inner : o, &c->arena, err);
    json_decref(o);
    return rc != 0 ? err_wrap(err, "%s", path) : 0;
}

static int find_receipt(struct check *c, const char *node, struct err *err)
{
    const char *what = cli_operand(c->args, 0), *digits = rpc_call_request_id(what);
    uint8_t id[32];
    struct stat st;
    if (stat(what, &st) == 0)
        return read_file(c, what, err);
    if (hex_decode(id, 32, digits) != 0)
        return err_set(err, ERR_NOT_FOUND, "%s: no such file, and no id of 64 digits", what);
    json_t *o = rpc_call_method(node, "attribution_receipt", json_pack("{s:s}", "id", digits), err);
    int rc = o == NULL ? -1 : receipt_from_json(&c->r, o, &c->arena, err);
    json_decref(o);
    return rc;
}

static int verify_one(struct check *c, struct err *err)
{
    const char *node = rpc_call_node(c->args);
    if (find_receipt(c, node, err) != 0 || check_signature(c, err) != 0 ||
        (c->has_chain && check_operator(c, err) != 0) || check_sums(c, err) != 0 ||
        check_request(c, err) != 0 || check_link(c, node, err) != 0)
        return -1;
    return check_batch(c, node, err);
}

/* ---- --all
 * ---------------------------------------------------------------------------------------------- */

/* The whole ledger of a data directory, read beside a running node or without one. */
static int verify_all(struct check *c, struct err *err)
{
    const struct config *config = cli_config(c->args);
    struct ledger_options options = {.data_dir = config_string(config, CONFIG_DATA_DIR),
                                     .read_only = true};
    if (c->has_chain) {
        const struct deployment *d = &c->chain.contracts;
        options.chain = (struct ledger_chain){d->chain_id, d->stake_manager, d->adapter_registry,
                                              d->escrow, d->attribution_ledger};
    }
    struct ledger *l = ledger_open(&options, err);
    if (l == NULL)
        return -1;
    json_t *report = NULL;
    int rc = ledger_check(l, c->has_chain ? c->chain.rpc : NULL, &report, err);
    ledger_close(l);
    if (report != NULL && cli_has(c->args, "json")) {
        cli_print_json(report);
    } else if (report != NULL) {
        char *text = json_dumps(report, JSON_INDENT(2));
        printf("%s\n", text);
        free(text);
    }
    json_decref(report);
    return rc;
}

static int run(const struct cli_args *a)
{
    struct check c = {.args = a, .arena = ARENA_INIT, .steps = json_array()};
    struct err err = {0};
    bool all = cli_has(a, "all");
    c.has_chain = config_list_len(cli_config(a), CONFIG_CHAIN_RPC) > 0;
    if (all == (cli_n_operands(a) == 1)) {
        json_decref(c.steps);
        return cli_usage(a, "verify what? (a receipt's file or id, or --all)");
    }
    if (all && cli_has(a, "node")) {
        json_decref(c.steps);
        return cli_usage(a, "--all reads a ledger's directory (--data DIR) and asks no node: leave "
                            "out --node");
    }
    if (cli_has(a, "request") && (all || !c.has_chain)) {
        json_decref(c.steps);
        return cli_usage(a, "--request is compared with one receipt, and its digest is of a chain: "
                            "add --rpc URL and --deployment FILE");
    }
    int rc = 0;
    if (c.has_chain)
        rc = chain_session_open(&c.chain, a, CHAIN_CONTRACTS, &err);
    else if (config_string_or_null(cli_config(a), CONFIG_CHAIN_DEPLOYMENT) != NULL)
        /* Whoever names the contracts wants them asked, and would take silence for "it agrees". */
        rc = err_set(&err, ERR_INVALID,
                     "contracts are named, but no endpoint of their chain: add --rpc URL, or leave "
                     "out --deployment (chain.deployment)");
    if (rc == 0)
        rc = all ? verify_all(&c, &err) : verify_one(&c, &err);
    if (!all && cli_has(a, "json")) {
        json_t *o = json_pack("{s:b,s:O}", "ok", rc == 0, "steps", c.steps);
        if (rc != 0)
            json_object_set_new(o, "failed", json_text(err.message));
        cli_print_json(o);
        json_decref(o);
    }
    if (c.has_chain)
        chain_session_close(&c.chain);
    json_decref(c.steps);
    arena_release(&c.arena);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static const struct cli_option options[] = {
    CHAIN_JSON_OPTION,
    RPC_CALL_NODE_OPTION,
    {"request", CLI_VALUE, "FILE",
     "The Request that the receipt should answer, as tributary request printed it."},
    {"all", CLI_SWITCH, NULL,
     "Recompute the whole ledger in the data directory (--data), and compare it with the chain."},
    {0},
};

const struct cli_command cmd_verify = {
    .name = "verify",
    .summary = "check a receipt, or a whole ledger, against signatures and the chain",
    .synopsis = "RECEIPT.json | ID [--node URL] [--rpc URL --deployment FILE [--request FILE]] "
                "[--json]\n       --all "
                "[--data DIR] [--rpc URL --deployment FILE]",
    .description =
        "Recomputes what a receipt says and compares: its hash and signature, the receipt before "
        "it, "
        "its place in a batch, and, where an endpoint is given, the operator's key, the batch and "
        "the redeemed vouchers on chain. The node is asked, and believed in nothing.\n\n"
        "RECEIPT.json may be an answer that carries its receipt, too. ID is as in tributary "
        "receipt: the request's, the answer's (\"chatcmpl-...\"), or the receipt's hash.\n\n"
        "Exit status 0: everything that could be checked holds. 65: something doesn't; the "
        "sentence "
        "says what.",
    .examples = "    tributary verify receipt.json --node http://127.0.0.1:8080 --rpc "
                "http://127.0.0.1:8545 --deployment deployment.json\n",
    .options = options,
    .takes_config = true,
    .n_operands_max = 1,
    .run = run,
};
