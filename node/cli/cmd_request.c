/* cmd_request: `tributary request`: a payer's signed Request for one body, as the header that takes
 * the place of an API key (node/signed_request.h). Asks nobody: chain, Escrow and operator come
 * from the configuration, the channel from an epoch. */
#include "chain/eip712.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/random.h"
#include "node/base/sha256.h"
#include "node/cli/chain_session.h"
#include "node/cli/cli.h"
#include "node/cli/cmd_wallet.h"
#include "node/cli/commands.h"
#include "node/config.h"
#include "node/deployment.h"
#include "node/signed_fields.h"
#include "node/signed_request.h"
#include "wallet/wallet.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BODY_BYTES_MAX = 1 << 30, VALID_DEFAULT_S = 60, VALID_MAX_S = 86400 };

/* 1 and the number that the option gives, 0 when it was not given, -1. */
static int number_option(const struct cli_args *a, const char *option, uint64_t most, uint64_t *out,
                         struct err *err)
{
    const char *text = cli_value(a, option, NULL);
    char *end;
    if (text == NULL)
        return 0;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || n > most)
        return err_set(err, ERR_INVALID, "--%s is a whole number up to %llu", option,
                       (unsigned long long)most);
    *out = n;
    return 1;
}

static int hash_body(struct sha256_digest *out, const char *path, struct err *err)
{
    struct buf body = BUF_INIT;
    int rc = 0;
    if (strcmp(path, "-") != 0) {
        rc = file_read(path, BODY_BYTES_MAX, &body, err);
    } else {
        char piece[65536];
        ssize_t n;
        while ((n = read(STDIN_FILENO, piece, sizeof piece)) > 0)
            buf_append(&body, piece, (size_t)n);
        if (n < 0)
            rc = err_set_errno(err, errno, "standard input");
    }
    if (rc == 0)
        *out = sha256(body.data, body.len);
    buf_release(&body);
    return rc;
}

/* All that is said, but the payer and its signature. */
static int read_terms(const struct cli_args *a, struct request_auth *q, uint64_t *epoch,
                      struct err *err)
{
    const char *fee = cli_value(a, "max-fee", NULL);
    uint64_t valid_s = VALID_DEFAULT_S;
    q->nonce = random_u64() & FIELD_INTEGER_MAX;
    *epoch = 0;
    if (fee == NULL)
        return err_set(err, ERR_INVALID, "how much may the answer cost? (--max-fee AMOUNT)");
    if (!config_address(cli_config(a), CONFIG_CHAIN_OPERATOR, q->operator_address.bytes))
        return err_set(err, ERR_INVALID, "which operator? (--operator ADDRESS)");
    if (amount_from_text(&q->max_fee, fee, err) != 0 ||
        number_option(a, "nonce", FIELD_INTEGER_MAX, &q->nonce, err) < 0 ||
        number_option(a, "epoch", FIELD_INTEGER_MAX, epoch, err) < 0 ||
        number_option(a, "valid", VALID_MAX_S, &valid_s, err) < 0 ||
        hash_body(&q->request_hash, cli_operand(a, 0), err) != 0)
        return -1;
    q->deadline_ms = clock_unix_ms().ms + 1000 * valid_s;
    return 0;
}

static int sign(const struct cli_args *a, struct signed_request *q, struct request_digest *id,
                uint64_t epoch, struct err *err)
{
    const char *names[] = {cli_value(a, "key", "default"), NULL};
    struct deployment d;
    if (deployment_load(&d, cli_config(a), err) != 0)
        return -1;
    if (d.chain_id == 0 || address_is_zero(d.escrow))
        return err_set(err, ERR_INVALID,
                       "a Request is signed for a chain and its Escrow (--deployment FILE, or "
                       "--chain-id and --escrow)");
    struct wallet *w = cmd_wallet_open(cli_config(a), names, err);
    if (w == NULL)
        return -1;
    struct request_auth *r = &q->request;
    int rc = wallet_key_address(w, names[0], &r->payer, err);
    if (rc == 0) {
        struct channel_id channel = channel_id_of(r->payer, r->operator_address, epoch);
        memcpy(r->channel, channel.bytes, sizeof r->channel);
        struct eip712_domain domain = {d.chain_id, d.escrow};
        *id = eip712_request(r, &domain);
        rc = wallet_sign_request(w, names[0], &q->signature, id, err);
    }
    wallet_close(w);
    return rc;
}

static int run(const struct cli_args *a)
{
    struct signed_request q = {.request = {.nonce = 0}};
    struct request_digest id;
    struct err err = {0};
    uint64_t epoch;
    if (read_terms(a, &q.request, &epoch, &err) != 0 || sign(a, &q, &id, epoch, &err) != 0)
        return cli_fail(a, &err);
    struct buf header = BUF_INIT;
    signed_request_write(&header, &q);
    if (cli_has(a, "json")) {
        char hex[67];
        json_t *o = json_pack("{s:s, s:s, s:s}", "name", SIGNED_REQUEST_HEADER, "value",
                              buf_cstr(&header), "requestId", hex_encode_0x(hex, id.bytes, 32));
        cli_print_json(o);
        json_decref(o);
    } else {
        printf(SIGNED_REQUEST_HEADER ": %s\n", buf_cstr(&header));
    }
    buf_release(&header);
    return 0;
}

static const struct cli_option options[] = {
    CHAIN_JSON_OPTION,
    CHAIN_KEY_OPTION("The payer's key. Default: default."),
    {"max-fee", CLI_VALUE, "AMOUNT",
     "The most that the answer may cost: the smallest unit of the token, or tokens as \"0.5tok\"."},
    {"epoch", CLI_VALUE, "N",
     "Of the payer's channel at the operator. Default: 0, the first; a node that has opened "
     "another says so when it refuses."},
    {"nonce", CLI_VALUE, "N", "Makes Requests for equal bodies differ. Default: a random number."},
    {"valid", CLI_VALUE, "SECONDS", "How long a node may take it, 60 when not given."},
    {0},
};

const struct cli_command cmd_request = {
    .name = "request",
    .summary = "sign a payer's Request for one answer",
    .synopsis = "BODY --max-fee AMOUNT --operator ADDRESS --deployment FILE [--key NAME] [--json]",
    .description =
        "Prints the HTTP header with which a payer asks a node without an API key. The Request is "
        "for the body in the file BODY (-: standard input) as it is, byte for byte, may be used "
        "once, and caps the bill: the answer ends, with finish_reason \"length\", where it would "
        "cost more. Its digest is the requestId of the receipt.\n\n"
        "The node must give payers credit (limits.payer_credit). Nobody is asked, so the operator "
        "must be named. What the answers come to is paid with tributary voucher, which looks for "
        "the "
        "Requests that were sent: keep them.",
    .examples = "    tributary request body.json --max-fee 0.001tok --operator 0x... "
                "--deployment deployment.json > header\n"
                "    curl http://127.0.0.1:8080/v1/chat/completions -H @header --json "
                "@body.json\n",
    .options = options,
    .takes_config = true,
    .n_operands_min = 1,
    .n_operands_max = 1,
    .run = run,
};
