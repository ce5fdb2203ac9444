/* cmd_deploy: `tributary deploy`: puts the contracts on a chain.
 *
 * The contracts name each other and are immutable, so their addresses are needed before they exist:
 * a contract's address follows from its deployer and the nonce of the deploying transaction
 * (CREATE). Deployed in one run of nonces:
 *
 *   n      TestToken          only without --token
 *   n + 1  StakeManager       names the token and the Disputes contract
 *   n + 2  AdapterRegistry
 *   n + 3  Escrow             names AttributionLedger, which does not exist yet
 *   n + 4  AttributionLedger  names all three
 *   n + 5  Disputes           to come: its place is kept by its address
 *
 * Another transaction of the deployer in between would move an address; each is compared with the
 * receipt and the run stops at the first difference. */
#include "chain/contracts.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/cli/chain_session.h"
#include "node/cli/cli.h"
#include "node/cli/commands.h"
#include "wallet/wallet.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct plan {
    struct address token, stake_manager, adapter_registry, escrow, attribution_ledger, disputes;
    struct address treasury;
    struct amount min_stake;
    uint64_t unbonding_s, challenge_window_s, thaw_s, payee_delay_s;
    bool own_token;
};

static int seconds_option(const struct cli_args *a, const char *option, uint64_t otherwise,
                          uint64_t *out, struct err *err)
{
    const char *text = cli_value(a, option, NULL);
    *out = otherwise;
    if (text == NULL)
        return 0;
    char *end;
    unsigned long long v = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || v == 0 || v > 365 * 86400ull)
        return err_set(err, ERR_INVALID, "--%s: \"%.40s\" is no number of seconds from 1 to a year",
                       option, text);
    *out = v;
    return 0;
}

static int make_plan(struct plan *p, const struct cli_args *a, struct chain_session *s,
                     const char *key, struct err *err)
{
    struct address deployer;
    uint64_t nonce;
    if (wallet_key_address(s->wallet, key, &deployer, err) != 0 ||
        rpc_nonce(s->rpc, &nonce, deployer, RPC_AT_LATEST, err) != 0 ||
        amount_from_text(&p->min_stake, cli_value(a, "min-stake", "1000tok"), err) != 0 ||
        seconds_option(a, "unbonding", 14 * 86400, &p->unbonding_s, err) != 0 ||
        seconds_option(a, "challenge-window", 7 * 86400, &p->challenge_window_s, err) != 0 ||
        seconds_option(a, "thaw", 7 * 86400, &p->thaw_s, err) != 0 ||
        seconds_option(a, "payee-delay", 7 * 86400, &p->payee_delay_s, err) != 0)
        return -1;
    p->token = s->contracts.token;
    p->own_token = address_is_zero(p->token);
    if (p->own_token)
        p->token = address_create(deployer, nonce++);
    p->stake_manager = address_create(deployer, nonce);
    p->adapter_registry = address_create(deployer, nonce + 1);
    p->escrow = address_create(deployer, nonce + 2);
    p->attribution_ledger = address_create(deployer, nonce + 3);
    p->disputes = address_create(deployer, nonce + 4);
    /* What slashing doesn't give to the reporter is burnt unless somebody is named. */
    memset(p->treasury.bytes, 0, sizeof p->treasury.bytes);
    p->treasury.bytes[18] = 0xde;
    p->treasury.bytes[19] = 0xad;
    return address_option(a, "treasury", &p->treasury, err) < 0 ||
                   address_option(a, "disputes", &p->disputes, err) < 0
               ? -1
               : 0;
}

static int deploy_one(struct chain_session *s, const char *key, const char *name,
                      struct address expected, const struct buf *initcode, struct err *err)
{
    struct chain_sent sent;
    if (chain_send(s, &sent, name, key, NULL, initcode, err) != 0)
        return -1;
    if (!sent.receipt.created || !address_eq(sent.receipt.contract, expected)) {
        char want[ADDRESS_TEXT_BYTES], got[ADDRESS_TEXT_BYTES];
        return err_set(err, ERR_CONFLICT,
                       "%s came to lie at %s, planned was %s: another transaction of the "
                       "deployer came between; run deploy again",
                       name, address_format(got, sent.receipt.contract),
                       address_format(want, expected));
    }
    char text[ADDRESS_TEXT_BYTES];
    fprintf(stderr, "%-17s %s  %" PRIu64 " gas\n", name, address_format(text, expected),
            sent.receipt.gas_used);
    return 0;
}

static int deploy_all(struct chain_session *s, const struct plan *p, const char *key,
                      struct err *err)
{
    struct buf code = BUF_INIT;
    int rc = 0;
    if (p->own_token) {
        initcode_test_token(&code);
        rc = deploy_one(s, key, "TestToken", p->token, &code, err);
    }
    if (rc == 0) {
        buf_reset(&code);
        initcode_stake_manager(&code, p->token, p->min_stake, p->unbonding_s, p->treasury,
                               p->disputes);
        rc = deploy_one(s, key, "StakeManager", p->stake_manager, &code, err);
    }
    if (rc == 0) {
        buf_reset(&code);
        initcode_adapter_registry(&code, p->payee_delay_s);
        rc = deploy_one(s, key, "AdapterRegistry", p->adapter_registry, &code, err);
    }
    if (rc == 0) {
        buf_reset(&code);
        initcode_escrow(&code, p->token, p->stake_manager, p->attribution_ledger, p->thaw_s);
        rc = deploy_one(s, key, "Escrow", p->escrow, &code, err);
    }
    if (rc == 0) {
        buf_reset(&code);
        initcode_attribution_ledger(&code, p->stake_manager, p->adapter_registry, p->escrow,
                                    p->challenge_window_s);
        rc = deploy_one(s, key, "AttributionLedger", p->attribution_ledger, &code, err);
    }
    buf_release(&code);
    return rc;
}

static json_t *address_json(struct address a)
{
    char text[ADDRESS_TEXT_BYTES];
    return json_string(address_format(text, a));
}

static int write_result(const struct cli_args *a, const struct chain_session *s,
                        const struct plan *p, struct err *err)
{
    json_t *o = json_object();
    json_object_set_new(o, "chainId", json_integer((json_int_t)s->contracts.chain_id));
    json_object_set_new(o, "token", address_json(p->token));
    json_object_set_new(o, "stakeManager", address_json(p->stake_manager));
    json_object_set_new(o, "adapterRegistry", address_json(p->adapter_registry));
    json_object_set_new(o, "escrow", address_json(p->escrow));
    json_object_set_new(o, "attributionLedger", address_json(p->attribution_ledger));
    json_object_set_new(o, "disputes", address_json(p->disputes));
    const char *path = cli_value(a, "out", NULL);
    int rc = 0;
    if (path != NULL) {
        char *text = json_dumps(o, JSON_INDENT(2));
        char *with_newline = xasprintf("%s\n", text);
        rc = file_write_atomic(path, with_newline, strlen(with_newline), 0644, err);
        free(with_newline);
        free(text);
    } else {
        cli_print_json(o);
    }
    json_decref(o);
    return rc;
}

static int run(const struct cli_args *a)
{
    struct chain_session s;
    struct plan plan = {0};
    struct err err = {0};
    const char *key = cli_value(a, "key", "default");
    int rc = chain_session_open(&s, a, CHAIN_WALLET, &err);
    s.must_wait = true;
    if (rc == 0)
        rc = make_plan(&plan, a, &s, key, &err);
    if (rc == 0)
        rc = deploy_all(&s, &plan, key, &err);
    if (rc == 0)
        rc = write_result(a, &s, &plan, &err);
    chain_session_close(&s);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static const struct cli_option options[] = {
    CHAIN_JSON_OPTION,
    CHAIN_KEY_OPTION("The key that pays for the deployment. Default: default."),
    {"out", CLI_VALUE, "FILE", "Where to write the addresses. Default: standard output."},
    {"min-stake", CLI_VALUE, "AMOUNT", "Least stake of an operator. Default: 1000tok."},
    {"unbonding", CLI_VALUE, "SECONDS",
     "Between asking for stake back and getting it; longer than the challenge window. Default: 14 "
     "days."},
    {"challenge-window", CLI_VALUE, "SECONDS",
     "In which a batch can be challenged. Default: 7 days."},
    {"thaw", CLI_VALUE, "SECONDS", "Before a payer gets escrow back. Default: 7 days."},
    {"payee-delay", CLI_VALUE, "SECONDS",
     "Between the announcement of a new payee and its effect. Default: 7 days."},
    {"treasury", CLI_VALUE, "ADDRESS",
     "Gets what a slash doesn't give to the reporter. Default: nobody, it is burnt."},
    {"disputes", CLI_VALUE, "ADDRESS",
     "The Disputes contract. Default: where the deployer's next contract comes to lie."},
    {0},
};

const struct cli_command cmd_deploy = {
    .name = "deploy",
    .summary = "put the contracts on a chain",
    .synopsis = "--rpc URL [--token ADDRESS] [--key NAME] [--out FILE] [OPTIONS]",
    .description =
        "Deploys StakeManager, AdapterRegistry, Escrow and AttributionLedger, and without --token "
        "a "
        "TestToken that anyone can mint, for chains whose money is worth nothing. The contracts "
        "have no owner and can't be changed: choose the periods with care.\n\n"
        "Writes a JSON file that other commands take with --deployment.",
    .examples = "    tributary deploy --rpc http://127.0.0.1:8545 --out deployment.json\n",
    .options = options,
    .takes_config = true,
    .run = run,
};
