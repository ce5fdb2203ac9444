/* `tributary verify`, `claim`, and the lists that commands fetch, against a node that lies. */
#include "tests/http_server.h"
#include "tests/support.h"

#include "attribution/merkle.h"
#include "attribution/receipt.h"
#include "chain/eip712.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/cli/cli.h"
#include "node/cli/commands.h"
#include "node/cli/rpc_call.h"
#include "wallet/wallet.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sysexits.h>

#define X(name) &cmd_##name,
const struct cli_command *const cli_commands[] = {CLI_COMMANDS(X)};
#undef X
const size_t cli_n_commands = sizeof cli_commands / sizeof *cli_commands;

/* ---- the node ------------------------------------------------------------------------------- */

struct node {
    struct server *server;
    char *dir, *path, *url;
    struct wallet *wallet;
    struct ledger_chain chain;
    struct signed_receipt first, second; /* of one channel */
    json_t *previous, *proof;            /* its answers */
    json_t *rewards;                     /* its whole list of them, or NULL: pages of numbers */
    size_t n_pages;                      /* of a list */
    bool repeats_itself;                 /* its last page names itself as the next */
};

static json_t *page_of(const struct node *n, const json_t *params)
{
    const char *cursor = json_string_value(json_object_get(params, "cursor"));
    size_t at = cursor != NULL ? strtoul(cursor, NULL, 10) : 0;
    char next[24];
    snprintf(next, sizeof next, "%zu", at + 1 < n->n_pages ? at + 1 : at);
    bool more = at + 1 < n->n_pages || n->repeats_itself;
    return json_pack("{s:[i], s:o}", "items", (int)at, "next",
                     more ? json_string(next) : json_null());
}

static void answer(struct exchange *x)
{
    const struct node *n = x->server->context;
    json_t *request = json_loadb(buf_cstr(&x->body), x->body.len, 0, NULL), *result;
    const char *method = json_string_value(json_object_get(request, "method"));
    if (method != NULL && strcmp(method, "attribution_receipt") == 0)
        result = json_incref(n->previous);
    else if (method != NULL && strcmp(method, "attribution_proof") == 0)
        result = json_incref(n->proof);
    else if (method != NULL && strcmp(method, "eth_chainId") == 0)
        result = json_string("0x7a69");
    else if (n->rewards != NULL)
        result = json_pack("{s:O, s:n}", "items", n->rewards, "next");
    else
        result = page_of(n, json_object_get(request, "params"));
    exchange_answer_rpc(x, request, result);
    json_decref(request);
}

static void sign(struct node *n, struct signed_receipt *r)
{
    struct err err = {0};
    r->receipt.adapters = r->adapters;
    r->hash = receipt_hash(&r->receipt, &n->chain);
    assert_ok(wallet_sign_receipt(n->wallet, "signer", &r->signature, &r->hash, &err), err);
    assert_ok(wallet_key_address(n->wallet, "signer", &r->signer, &err), err);
}

static struct signed_receipt a_receipt(uint64_t index)
{
    struct signed_receipt r = {.receipt = {.index = index,
                                           .n_adapters = 2,
                                           .prompt_tokens = 15,
                                           .completion_tokens = 48,
                                           .compute_fee = amount_of(1000),
                                           .royalty = amount_of(30),
                                           .channel_total = amount_of(1030 * (index + 1)),
                                           .timestamp_ms = 1700000000000 + index}};
    memset(r.receipt.request_id, 0x10 + (int)index, 32);
    memset(r.receipt.operator_address.bytes, 0x0a, 20);
    memset(r.receipt.payer.bytes, 0x0b, 20);
    memset(r.receipt.channel, 0x0c, 32);
    memset(r.receipt.model_id.bytes, 0x0d, 32);
    for (int i = 0; i < 2; i++) {
        memset(r.adapters[i].adapter_id.bytes, 0x20 + i, 32);
        r.adapters[i].bps = (uint16_t)(3333 + i * 3334);
        r.adapters[i].royalty = amount_of(10 + (uint64_t)i * 10);
    }
    return r;
}

/* A batch of the second receipt alone, by the operator whose address is of this byte. */
static json_t *proof_by(const struct node *n, int operator_byte)
{
    char root[67], other[67], owner[43];
    uint8_t zero[32] = {0}, address[20];
    struct merkle_node leaf = merkle_receipt_leaf(0, n->second.hash.bytes);
    struct merkle tree;
    memset(address, operator_byte, sizeof address);
    merkle_init(&tree, &leaf, 1, false);
    hex_encode_0x(root, merkle_root(&tree).bytes, 32);
    merkle_release(&tree);
    hex_encode_0x(other, zero, 32);
    hex_encode_0x(owner, address, 20);
    return json_pack("{s:{s:s, s:i, s:i, s:s, s:s, s:s, s:i, s:i, s:s, s:s, s:s, s:s}, s:i, s:[]}",
                     "batch", "operator", owner, "seq", 0, "leafCount", 1, "receiptsRoot", root,
                     "payoutRoot", other, "committed", "1030", "periodStart", 1, "periodEnd", 2,
                     "dataHash", other, "prevBatchHash", other, "batchHash", other, "state",
                     "confirmed", "position", 0, "proof");
}

static int set_up(void **state)
{
    struct node *n = xcalloc(1, sizeof *n);
    struct wallet_memory_key key = {"signer", {0}};
    struct err err = {0};
    memset(key.key, 0x11, sizeof key.key);
    n->wallet = wallet_open_memory(&key, 1, &err);
    assert_non_null(n->wallet);
    n->chain.chain_id = 31337;
    memset(n->chain.attribution_ledger.bytes, 0xa4, 20);
    n->first = a_receipt(0);
    sign(n, &n->first);
    n->second = a_receipt(1);
    memcpy(n->second.receipt.prev_receipt_hash, n->first.hash.bytes, 32);
    sign(n, &n->second);
    n->previous = receipt_to_json(&n->first, &n->chain);
    n->proof = proof_by(n, 0x0a);
    n->dir = temp_dir_create();
    n->path = xasprintf("%s/receipt.json", n->dir);
    n->server = server_start(answer, n);
    n->url = xasprintf("http://127.0.0.1:%u", n->server->port);
    *state = n;
    return 0;
}

static int tear_down(void **state)
{
    struct node *n = *state;
    server_stop(n->server);
    json_decref(n->previous);
    json_decref(n->proof);
    json_decref(n->rewards);
    wallet_close(n->wallet);
    temp_dir_remove(n->dir);
    free(n->path);
    free(n->url);
    free(n);
    return 0;
}

/* The exit status of `tributary verify` on this receipt. */
static int verify(const struct node *n, const json_t *receipt)
{
    assert_int_equal(json_dump_file(receipt, n->path, 0), 0);
    char *argv[] = {"tributary", "verify", n->path, "--node", n->url, "--json", NULL};
    return cli_main(cli_commands, cli_n_commands, 6, argv);
}

/* ---- receipts ------------------------------------------------------------------------------- */

/* Another value of the same form: one digit of a text changed, or the next number. */
static json_t *altered(const json_t *value)
{
    if (json_is_integer(value))
        return json_integer(json_integer_value(value) + 1);
    char *text = xstrdup(json_string_value(value));
    char *last = text + strlen(text) - 1;
    *last = *last == '1' ? '2' : '1';
    json_t *out = json_string(text);
    free(text);
    return out;
}

static void each_altered_field_of_a_receipt_is_noticed(void **state)
{
    struct node *n = *state;
    static const char *const parts[] = {NULL, "domain", "receipt", "share"};
    json_t *good = receipt_to_json(&n->second, &n->chain);
    assert_int_equal(verify(n, good), 0);
    size_t n_fields = 0;
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        json_t *bad = NULL;
        const char *key;
        json_t *value;
        json_t *template = p == 0 ? good : json_object_get(good, p == 3 ? "receipt" : parts[p]);
        if (p == 3)
            template = json_array_get(json_object_get(template, "adapters"), 1);
        json_object_foreach(template, key, value)
        {
            if (json_is_object(value) || json_is_array(value))
                continue;
            bad = json_deep_copy(good);
            json_t *part = p == 0 ? bad : json_object_get(bad, p == 3 ? "receipt" : parts[p]);
            if (p == 3)
                part = json_array_get(json_object_get(part, "adapters"), 1);
            json_object_set_new(part, key, altered(value));
            int status = verify(n, bad);
            if (status == 0)
                fail_msg("%s.%s was altered, and verify says nothing", parts[p] ? parts[p] : "",
                         key);
            json_decref(bad);
            n_fields++;
        }
    }
    assert_int_equal(n_fields, 3 + 2 + 16 + 3);
    json_decref(good);
}

/* Shares, sums and totals that somebody signed are wrong all the same. */
static void what_does_not_add_up_is_noticed_under_a_good_signature(void **state)
{
    struct node *n = *state;
    struct signed_receipt bad[5];
    for (size_t i = 0; i < 5; i++)
        bad[i] = n->second;
    bad[0].adapters[0].bps++;
    bad[1].receipt.royalty = amount_of(31);
    bad[2].receipt.channel_total = amount_of(2061);
    bad[3].receipt.index = 2;
    bad[4].adapters[0].royalty = AMOUNT_MAX;
    for (size_t i = 0; i < 5; i++) {
        sign(n, &bad[i]);
        json_t *o = receipt_to_json(&bad[i], &n->chain);
        if (verify(n, o) != EX_DATAERR)
            fail_msg("row %zu passes", i);
        json_decref(o);
    }
}

static void a_receipt_is_not_settled_by_another_operators_batch(void **state)
{
    struct node *n = *state;
    json_t *o = receipt_to_json(&n->second, &n->chain);
    json_decref(n->proof);
    n->proof = proof_by(n, 0x66);
    assert_int_equal(verify(n, o), EX_DATAERR);
    json_decref(o);
}

static void a_receipt_does_not_continue_one_of_another_chain(void **state)
{
    struct node *n = *state;
    struct ledger_chain here = n->chain;
    n->chain.chain_id = 1;
    sign(n, &n->first);
    json_decref(n->previous);
    n->previous = receipt_to_json(&n->first, &n->chain);
    n->chain = here;
    memcpy(n->second.receipt.prev_receipt_hash, n->first.hash.bytes, 32);
    sign(n, &n->second);
    json_decref(n->proof);
    n->proof = proof_by(n, 0x0a);
    json_t *o = receipt_to_json(&n->second, &n->chain);
    assert_int_equal(verify(n, o), EX_DATAERR);
    json_decref(o);
}

/* ---- claims --------------------------------------------------------------------------------- */

#define ID(d)    "0x" d d d d d d d d
#define EIGHT(d) d d d d d d d d

/* The exit status of a claim of everything, or of the operator's share. */
static int claim(const struct node *n, const char *what)
{
    static char address[] = "0x0000000000000000000000000000000000000001";
    char *passphrase = xasprintf("%s/passphrase", n->dir), *wallet = xasprintf("%s/w", n->dir);
    struct err err = {0};
    assert_ok(file_write_atomic(passphrase, "open sesame\n", 12, 0600, &err), err);
    char *make[] = {"tributary",     "wallet",   "new",  "default",
                    "--no-mnemonic", "--wallet", wallet, "--passphrase-file",
                    passphrase,      NULL};
    assert_int_equal(cli_main(cli_commands, cli_n_commands, 9, make), 0);
    char *argv[] = {"tributary",
                    "claim",
                    (char *)(uintptr_t)what,
                    "--node",
                    n->url,
                    "--rpc",
                    n->url,
                    "--token",
                    address,
                    "--escrow",
                    address,
                    "--stake-manager",
                    address,
                    "--adapter-registry",
                    address,
                    "--attribution-ledger",
                    address,
                    "--passphrase-file",
                    passphrase,
                    "--wallet",
                    wallet,
                    NULL};
    int status = cli_main(cli_commands, cli_n_commands, (int)(sizeof argv / sizeof *argv) - 1,
                          argv);
    free(passphrase);
    free(wallet);
    return status;
}

static void a_kind_that_claim_does_not_know_is_passed_over(void **state)
{
    struct node *n = *state;
    n->rewards = json_pack("[{s:s, s:s, s:i}]", "kind", "rent", "id", ID(EIGHT("1")), "position",
                           0);
    assert_int_equal(claim(n, "--operator-share"), 0);
}

static void a_claim_of_another_leaf_than_was_asked_for_is_not_sent(void **state)
{
    struct node *n = *state;
    n->rewards = json_pack("[{s:s, s:s, s:i}]", "kind", "adapter", "id", ID(EIGHT("1")), "position",
                           0);
    json_object_set_new(n->proof, "payout",
                        json_pack("{s:i, s:s, s:i, s:s}", "kind", 1, "id", ID(EIGHT("2")),
                                  "position", 0, "amount", "5"));
    json_object_set_new(n->proof, "proof",
                        json_pack("{s:i, s:i, s:[]}", "index", 0, "leafCount", 1, "siblings"));
    assert_int_equal(claim(n, "--all"), EX_DATAERR);
}

/* ---- lists ---------------------------------------------------------------------------------- */

static void a_list_is_followed_to_its_end(void **state)
{
    struct node *n = *state;
    struct err err = {0};
    n->n_pages = 3;
    for (int given = 0; given < 2; given++) {
        json_t *items = rpc_call_list(n->url, "attribution_rewards", given ? json_object() : NULL,
                                      NULL, &err);
        assert_int_equal(json_array_size(items), 3);
        for (size_t i = 0; i < 3; i++)
            assert_int_equal(json_integer_value(json_array_get(items, i)), i);
        json_decref(items);
    }
}

static void a_list_that_goes_in_circles_is_given_up(void **state)
{
    struct node *n = *state;
    struct err err = {0};
    n->n_pages = 3;
    n->repeats_itself = true;
    assert_null(rpc_call_list(n->url, "attribution_rewards", json_object(), NULL, &err));
    assert_int_equal(err.code, ERR_UPSTREAM);
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        T(each_altered_field_of_a_receipt_is_noticed),
        T(what_does_not_add_up_is_noticed_under_a_good_signature),
        T(a_receipt_is_not_settled_by_another_operators_batch),
        T(a_receipt_does_not_continue_one_of_another_chain),
        T(a_kind_that_claim_does_not_know_is_passed_over),
        T(a_claim_of_another_leaf_than_was_asked_for_is_not_sent),
        T(a_list_is_followed_to_its_end),
        T(a_list_that_goes_in_circles_is_given_up),
    };
    return cmocka_run_group_tests_name("cmd_verify", tests, NULL, NULL);
}
