/* cmd_voucher: `tributary voucher`: a payer pays what it owes at a node.
 *
 * The node says which channels the payer has there, and shows their receipts; it is believed in
 * nothing. What a voucher accepts is recomputed here, from what the payer has accepted before:
 *
 *     Escrow's lastReceiptHash      r5       r6       r7 ... the newest
 *     and valueAggregate      --> hashes to it
 *                                 names r5's hash, goes on in index and total, is signed by a key
 *                                 of the operator's, sums up, names this payer and channel
 *
 * or, in a channel of which nothing was redeemed, from index 0. With Requests as operands each new
 * receipt must answer one of them, so that none was invented. Then the voucher is signed over the
 * total of the last receipt that passed, and posted. */
#include "chain/eip712.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/cli/chain_session.h"
#include "node/cli/cli.h"
#include "node/cli/commands.h"
#include "node/cli/ledger_json.h"
#include "node/cli/node_call.h"
#include "node/cli/receipt_check.h"
#include "node/cli/rpc_call.h"
#include "node/config.h"
#include "node/signed_request.h"
#include "node/signed_voucher.h"
#include "wallet/wallet.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct asked { /* a Request that the payer remembers */
    struct signed_request request;
    struct request_digest id;
};

struct bill {
    const struct cli_args *args;
    struct chain_session chain;
    const char *node, *key;
    struct address payer, operator_address;
    struct asked *asked; /* [n_asked] */
    size_t n_asked;
    struct amount most, promised; /* of new money, over all channels */
    struct address signer;        /* the last that was found to be the operator's */
    json_t *done;                 /* for --json */
};

struct account { /* a channel, as far as it was checked */
    struct channel_id channel;
    uint64_t epoch, n_new;
    struct amount redeemed, total;
    struct receipt newest; /* without adapters */
    struct receipt_digest newest_hash;
    bool has_newest;
};

static json_t *get(const struct bill *b, const char *path, struct err *err)
{
    struct buf none = BUF_INIT;
    return node_call(b->node, HTTP_GET, path, &none, NULL, err);
}

/* ---- receipts ---------------------------------------------------------------------------------
 */

static int check_asked(const struct bill *b, const struct parsed_receipt *r, struct err *err)
{
    if (b->n_asked == 0)
        return 0;
    for (size_t i = 0; i < b->n_asked; i++) {
        if (memcmp(b->asked[i].id.bytes, r->receipt.request_id, 32) == 0)
            return receipt_check_request(r, &b->asked[i].request, b->chain.contracts.escrow, err);
    }
    char hex[67];
    return err_set(err, ERR_CORRUPT, "its requestId %s is of none of the Requests that were given",
                   hex_encode_0x(hex, r->receipt.request_id, 32));
}

/* One receipt of the channel, whatever stands before it. */
static int check_alone(struct bill *b, const struct account *a, const struct parsed_receipt *r,
                       struct err *err)
{
    bool revoked;
    if (!address_eq(r->receipt.payer, b->payer) ||
        !address_eq(r->receipt.operator_address, b->operator_address) ||
        memcmp(r->receipt.channel, a->channel.bytes, 32) != 0)
        return err_set(err, ERR_CORRUPT, "it is of another payer, operator or channel");
    if (r->domain.chain_id != b->chain.contracts.chain_id ||
        !address_eq(r->domain.verifying_contract, b->chain.contracts.attribution_ledger))
        return err_set(err, ERR_CORRUPT, "it is for another chain or AttributionLedger");
    if (receipt_check_signature(r, err) != 0)
        return -1;
    if (!address_eq(r->signer, b->signer) && receipt_check_signer(r, &b->chain, &revoked, err) != 0)
        return -1;
    b->signer = r->signer;
    return 0;
}

static int check_next(struct bill *b, struct account *a, const struct parsed_receipt *r,
                      struct err *err)
{
    if (check_alone(b, a, r, err) != 0 || receipt_check_sums(&r->receipt, err) != 0 ||
        check_asked(b, r, err) != 0)
        return -1;
    /* newest has no adapters, so its hash is compared here, and the rest there. */
    if (!a->has_newest)
        return receipt_check_link(r, NULL, err);
    if (memcmp(r->receipt.prev_receipt_hash, a->newest_hash.bytes, 32) != 0)
        return err_set(err, ERR_CORRUPT, "the receipt before it has another hash");
    return receipt_check_order(&r->receipt, &a->newest, err);
}

static void move_on(struct account *a, const struct parsed_receipt *r)
{
    a->newest = r->receipt;
    a->newest.adapters = NULL;
    a->newest.n_adapters = 0;
    a->newest_hash = r->hash;
    a->has_newest = true;
    a->total = r->receipt.channel_total;
}

/* What the payer has accepted so far, by the contract; its receipt by the node. */
static int find_start(struct bill *b, struct account *a, struct err *err)
{
    struct escrow_channel redeemed;
    struct contract_at escrow = chain_at(&b->chain, CONTRACT_ESCROW);
    char path[128], hex[67];
    if (view_escrow_channel(&escrow, &redeemed, b->payer, b->operator_address, a->epoch, err) != 0)
        return -1;
    a->redeemed = a->total = redeemed.value_aggregate;
    if (bytes32_is_zero(redeemed.last_receipt.bytes))
        return 0;
    snprintf(path, sizeof path, "/v1/receipts/%s",
             hex_encode_0x(hex, redeemed.last_receipt.bytes, 32));
    struct arena arena = ARENA_INIT;
    struct parsed_receipt r;
    json_t *o = get(b, path, err);
    int rc = o == NULL ? -1 : receipt_from_json(&r, o, &arena, err);
    if (rc == 0)
        rc = check_alone(b, a, &r, err);
    if (rc == 0 && (!DIGEST_EQ(r.hash, redeemed.last_receipt) ||
                    amount_cmp(r.receipt.channel_total, redeemed.value_aggregate) != 0))
        rc = err_set(err, ERR_CORRUPT, "it is another than was redeemed");
    if (rc == 0)
        move_on(a, &r);
    json_decref(o);
    arena_release(&arena);
    return rc == 0 ? 0 : err_wrap(err, "receipt %s, the last that was redeemed", hex);
}

static int check_limit(const struct bill *b, const struct account *a, struct err *err)
{
    struct amount now = AMOUNT_ZERO, sum;
    char would[64], most[64];
    if (amount_sub(&now, a->total, a->redeemed) == 0 && amount_add(&sum, b->promised, now) == 0 &&
        amount_cmp(sum, b->most) <= 0)
        return 0;
    return err_set(err, ERR_PAYMENT,
                   "the receipts bill %s or more that was not redeemed, --max-value allows %s",
                   amount_to_tokens(would, now), amount_to_tokens(most, b->most));
}

/* One page from an index on; *more: there may be another. */
static int read_page(struct bill *b, struct account *a, bool *more, struct err *err)
{
    char path[160], hex[67];
    uint64_t from = a->has_newest ? a->newest.index + 1 : 0;
    snprintf(path, sizeof path, "/v1/receipts?channel=%s&from=%" PRIu64 "&limit=%d",
             hex_encode_0x(hex, a->channel.bytes, 32), from, (int)LEDGER_PAGE_MAX);
    json_t *o = get(b, path, err);
    if (o == NULL)
        return -1;
    const json_t *list = json_object_get(o, "data");
    struct arena arena = ARENA_INIT;
    int rc = 0;
    for (size_t i = 0; i < json_array_size(list) && rc == 0; i++) {
        struct parsed_receipt r;
        rc = receipt_from_json(&r, json_array_get(list, i), &arena, err);
        if (rc == 0)
            rc = check_next(b, a, &r, err);
        if (rc != 0) {
            err_wrap(err, "receipt %" PRIu64 " of channel %s", from + i, hex);
            break;
        }
        move_on(a, &r);
        a->n_new++;
        rc = check_limit(b, a, err);
    }
    *more = rc == 0 && json_array_size(list) > 0 && json_is_string(json_object_get(o, "next"));
    arena_release(&arena);
    json_decref(o);
    return rc;
}

/* ---- the voucher ------------------------------------------------------------------------------
 */

static int sign(const struct bill *b, const struct account *a, struct signed_voucher *v,
                struct err *err)
{
    *v = (struct signed_voucher){.voucher = {.payer = b->payer,
                                             .operator_address = b->operator_address,
                                             .timestamp_ms = clock_unix_ms().ms,
                                             .value_aggregate = a->total}};
    memcpy(v->voucher.channel, a->channel.bytes, 32);
    memcpy(v->voucher.last_receipt_hash, a->newest_hash.bytes, 32);
    struct eip712_domain domain = {b->chain.contracts.chain_id, b->chain.contracts.escrow};
    struct voucher_digest digest = eip712_voucher(&v->voucher, &domain);
    return wallet_sign_voucher(b->chain.wallet, b->key, &v->signature, &digest, err);
}

static void tell(struct bill *b, const struct account *a, struct buf *voucher, const json_t *answer)
{
    struct amount moves = AMOUNT_ZERO;
    char hex[67], more[64], all[64];
    bool accepted = json_is_true(json_object_get(answer, "accepted"));
    amount_sub(&moves, a->total, a->redeemed);
    json_array_append_new(b->done,
                          json_pack("{s:o, s:b, s:I}", "voucher",
                                    json_loadb(buf_cstr(voucher), voucher->len, 0, NULL),
                                    "accepted", accepted, "receipts", (json_int_t)a->n_new));
    if (cli_has(b->args, "json"))
        return;
    printf("%s %" PRIu64 " receipts verified, %s to be redeemed, %s in all: %s\n",
           hex_encode_0x(hex, a->channel.bytes, 32), a->n_new, amount_to_tokens(more, moves),
           amount_to_tokens(all, a->total),
           accepted ? "the voucher was taken" : "the node holds one that is as new");
}

/* A promise without money behind it is held: the payer should know. */
static int warn_of_balance(const struct bill *b, struct err *err)
{
    struct contract_at escrow = chain_at(&b->chain, CONTRACT_ESCROW);
    struct escrow_account account;
    char have[64], need[64];
    if (view_escrow_account(&escrow, &account, b->payer, b->operator_address, err) != 0)
        return -1;
    if (amount_cmp(account.balance, b->promised) < 0)
        fprintf(stderr,
                "tributary voucher: the escrow at this operator has %s, the vouchers need %s: they "
                "are held until it has (tributary escrow deposit)\n",
                amount_to_tokens(have, account.balance), amount_to_tokens(need, b->promised));
    return 0;
}

static int pay_channel(struct bill *b, uint64_t epoch, struct err *err)
{
    struct account a = {.channel = channel_id_of(b->payer, b->operator_address, epoch),
                        .epoch = epoch};
    struct signed_voucher v;
    struct amount moves;
    bool more = true;
    if (find_start(b, &a, err) != 0)
        return -1;
    while (more) {
        if (read_page(b, &a, &more, err) != 0)
            return -1;
    }
    if (amount_sub(&moves, a.total, a.redeemed) != 0 || amount_is_zero(moves))
        return 0; /* nothing owed */
    if (sign(b, &a, &v, err) != 0)
        return -1;
    struct buf body = BUF_INIT;
    signed_voucher_write(&body, &v);
    json_t *answer = node_call(b->node, HTTP_POST, "/v1/vouchers", &body, NULL, err);
    if (answer != NULL) {
        amount_add(&b->promised, b->promised, moves); /* check_limit: below the most */
        tell(b, &a, &body, answer);
    }
    json_decref(answer);
    buf_release(&body);
    return answer != NULL ? 0 : -1;
}

/* ---- what was asked for -----------------------------------------------------------------------
 */

static int read_terms(struct bill *b, struct err *err)
{
    const char *most = cli_value(b->args, "max-value", NULL);
    if (most == NULL)
        return err_set(err, ERR_INVALID, "how much may be promised? (--max-value AMOUNT)");
    if (!config_address(cli_config(b->args), CONFIG_CHAIN_OPERATOR, b->operator_address.bytes))
        return err_set(err, ERR_INVALID, "which operator? (--operator ADDRESS)");
    if (amount_from_text(&b->most, most, err) != 0 ||
        chain_session_open(&b->chain, b->args, CHAIN_CONTRACTS | CHAIN_WALLET, err) != 0 ||
        wallet_key_address(b->chain.wallet, b->key, &b->payer, err) != 0)
        return -1;
    struct eip712_domain domain = {b->chain.contracts.chain_id, b->chain.contracts.escrow};
    size_t n = cli_n_operands(b->args);
    b->asked = xcalloc(n + 1, sizeof *b->asked);
    for (; b->n_asked < n; b->n_asked++) {
        struct asked *q = &b->asked[b->n_asked];
        if (request_from_file(&q->request, cli_operand(b->args, b->n_asked), err) != 0)
            return -1;
        q->id = eip712_request(&q->request.request, &domain);
    }
    return 0;
}

/* The channels that the node says have receipts, the oldest first. Only their epochs are taken from
 * it: what they are called follows. */
static int pay(struct bill *b, struct err *err)
{
    char path[128], payer[ADDRESS_TEXT_BYTES];
    if (read_terms(b, err) != 0)
        return -1;
    snprintf(path, sizeof path, "/v1/payers/%s", address_format(payer, b->payer));
    json_t *o = get(b, path, err);
    const json_t *channels = json_object_get(o, "channels");
    int rc = o == NULL ? -1 : 0;
    for (size_t i = json_array_size(channels); i-- > 0 && rc == 0;) {
        const json_t *c = json_array_get(channels, i);
        if (json_integer_value(json_object_get(c, "receipts")) > 0)
            rc = pay_channel(b, (uint64_t)json_integer_value(json_object_get(c, "epoch")), err);
    }
    json_decref(o);
    return rc == 0 ? warn_of_balance(b, err) : -1;
}

static int run(const struct cli_args *a)
{
    struct err err = {0};
    struct bill b = {.args = a,
                     .node = rpc_call_node(a),
                     .key = cli_value(a, "key", "default"),
                     .done = json_array()};
    int rc = pay(&b, &err);
    if (rc == 0 && cli_has(a, "json"))
        cli_print_json(b.done);
    else if (rc == 0 && json_array_size(b.done) == 0)
        puts("nothing is owed that was not redeemed");
    json_decref(b.done);
    free(b.asked);
    chain_session_close(&b.chain);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static const struct cli_option options[] = {
    CHAIN_JSON_OPTION,
    CHAIN_KEY_OPTION("The payer's key. Default: default."),
    RPC_CALL_NODE_OPTION,
    {"max-value", CLI_VALUE, "AMOUNT",
     "The most that the vouchers may add to what Escrow has redeemed: the smallest unit of the "
     "token, or tokens as \"0.5tok\"."},
    {0},
};

const struct cli_command cmd_voucher = {
    .name = "voucher",
    .summary = "verify what a payer owes at a node, and sign for it",
    .synopsis = "[REQUEST...] --max-value AMOUNT --operator ADDRESS --rpc URL --deployment FILE "
                "[--node URL] [--key NAME] [--json]",
    .description =
        "Fetches the receipts in the payer's channels that no voucher has redeemed yet, and checks "
        "each: that a key of the operator's has signed it, that it follows the one before it in "
        "hash, index and total, that it sums up. Given Requests (files as tributary request "
        "prints them), each must also answer one of them, and bill no more than that allowed. Then "
        "a voucher over the last receipt's total is signed and given to the node.\n\n"
        "A voucher accepts these receipts, no more and no less. The node redeems it as soon as the "
        "payer's escrow at the operator has the money (tributary escrow deposit), and credit is "
        "back when the redeem is confirmed. Nothing is signed when a receipt is wrong, or above "
        "--max-value.",
    .examples = "    tributary voucher header --max-value 0.01tok --operator 0x... --node "
                "http://127.0.0.1:8080 --rpc http://127.0.0.1:8545 --deployment deployment.json\n",
    .options = options,
    .takes_config = true,
    .n_operands_max = -1,
    .run = run,
};
