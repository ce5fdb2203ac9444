/* cmd_datanet: `tributary datanet create|payee`: who is paid for a data set.
 *
 * create writes the Datanet's manifest, registers its sha256 on chain and uploads it. The chain
 * comes first: a Datanet exists by its registration, the manifest only says what it is. */
#include "attribution/manifest.h"
#include "chain/contracts.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/http_client.h"
#include "node/base/sha256.h"
#include "node/cli/chain_session.h"
#include "node/cli/cli.h"
#include "node/cli/commands.h"
#include "node/cli/publish.h"
#include "node/config.h"
#include "wallet/wallet.h"

#include <stdlib.h>
#include <string.h>

enum { SOURCES_MAX = 64 };

/* --source URL=SHA256 ... */
static int read_sources(const struct cli_args *a, struct manifest_source *sources, uint32_t *n,
                        char **urls, struct err *err)
{
    *n = 0;
    for (size_t i = 0; i < cli_count(a, "source"); i++) {
        const char *text = cli_nth(a, "source", i), *eq = strrchr(text, '=');
        if (i == SOURCES_MAX)
            return err_set(err, ERR_TOO_LARGE, "more than %d sources", SOURCES_MAX);
        if (eq == NULL || hex_decode(sources[i].sha256.bytes, 32, eq + 1) != 0)
            return err_set(err, ERR_INVALID, "--source \"%.80s\" is not URL=SHA256", text);
        sources[i].url = urls[i] = xstrndup(text, (size_t)(eq - text));
        ++*n;
    }
    return 0;
}

static int write_manifest(struct chain_session *s, const char *key, struct manifest_datanet *m,
                          struct buf *text, struct err *err)
{
    const struct cli_args *a = s->args;
    struct manifest_source sources[SOURCES_MAX];
    char *urls[SOURCES_MAX] = {NULL};
    *m = (struct manifest_datanet){
        .name = cli_value(a, "name", NULL),
        .description = cli_value(a, "description", ""),
        .licence = cli_value(a, "license", ""),
        .created_unix_s = clock_unix_ms().ms / 1000,
        .sources = sources,
    };
    if (m->name == NULL)
        return err_set(err, ERR_INVALID, "a Datanet needs a name (--name NAME)");
    int rc = wallet_key_address(s->wallet, key, &m->owner, err);
    m->payee = m->owner;
    if (rc == 0 && address_option(a, "payee", &m->payee, err) < 0)
        rc = -1;
    if (rc == 0)
        rc = read_sources(a, sources, &m->n_sources, urls, err);
    if (rc == 0)
        rc = manifest_datanet_write(m, text, err);
    for (size_t i = 0; i < SOURCES_MAX; i++)
        free(urls[i]);
    m->sources = NULL;
    return rc;
}

static int create(struct chain_session *s, const char *key, struct err *err)
{
    struct manifest_datanet m;
    struct manifest fields;
    struct registry_client registry;
    struct registry_signature signature;
    struct chain_sent sent;
    struct buf text = BUF_INIT, data = BUF_INIT;
    struct http_client *http = http_client_create();
    int rc = publish_registry(s, http, &registry, err);
    if (rc == 0)
        rc = write_manifest(s, key, &m, &text, err);
    if (rc == 0) {
        struct sha256_digest hash = sha256(text.data, text.len);
        struct datanet_id id = manifest_datanet_id(s->contracts.chain_id,
                                                   s->contracts.adapter_registry, m.owner, hash);
        registry_datanet_fields(&fields, &m, hash);
        calldata_registry_register_datanet(&data, hash, m.payee);
        rc = publish_sign(s, key, &fields, &signature, err);
        if (rc == 0)
            rc = chain_send(s, &sent, "register Datanet", key, &s->contracts.adapter_registry,
                            &data, err);
        if (rc == 0)
            rc = registry_put_manifest(&registry, &text, &signature, err);
        if (rc == 0) {
            char id_text[67], hash_text[65], payee[ADDRESS_TEXT_BYTES];
            hex_encode_0x(id_text, id.bytes, 32);
            if (!cli_has(s->args, "json"))
                printf("Datanet %s: %s\n", m.name, id_text);
            chain_print_sent(s, "register Datanet", &sent,
                             json_pack("{s:s,s:s,s:s,s:s}", "name", m.name, "datanetId", id_text,
                                       "manifestHash", hex_encode(hash_text, hash.bytes, 32),
                                       "payee", address_format(payee, m.payee)));
        }
    }
    http_client_free(http);
    buf_release(&data);
    buf_release(&text);
    return rc;
}

static int run_create(const struct cli_args *a)
{
    struct chain_session s;
    struct err err = {0};
    int rc = chain_session_open(&s, a, CHAIN_CONTRACTS | CHAIN_WALLET, &err);
    if (rc == 0)
        rc = create(&s, cli_value(a, "key", "default"), &err);
    chain_session_close(&s);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static int run_payee(const struct cli_args *a)
{
    struct chain_session s = {0};
    struct err err = {0};
    uint8_t id[32];
    struct address to;
    struct chain_sent sent;
    struct buf data = BUF_INIT;
    int rc = 0;
    if (hex_decode(id, 32, cli_operand(a, 0)) != 0)
        rc = err_set(&err, ERR_INVALID, "\"%.80s\" is no Datanet id", cli_operand(a, 0));
    else if (address_parse(&to, cli_operand(a, 1)) != 0)
        rc = err_set(&err, ERR_INVALID, "\"%.60s\" is no address", cli_operand(a, 1));
    if (rc == 0)
        rc = chain_session_open(&s, a, CHAIN_CONTRACTS | CHAIN_WALLET, &err);
    if (rc == 0) {
        calldata_registry_propose_datanet_payee(&data, id, to);
        rc = chain_send(&s, &sent, "announce payee", cli_value(a, "key", "default"),
                        &s.contracts.adapter_registry, &data, &err);
    }
    if (rc == 0)
        chain_print_sent(&s, "announce payee", &sent, json_object());
    buf_release(&data);
    chain_session_close(&s);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static const struct cli_option create_options[] = {
    CHAIN_SEND_OPTIONS,
    CHAIN_KEY_OPTION("The owner's key. Default: default."),
    {"name", CLI_VALUE, "NAME", "Lower-case letters, digits, dots, dashes."},
    {"description", CLI_VALUE, "TEXT", "What the data are."},
    {"license", CLI_VALUE, "SPDX", "The data's licence."},
    {"payee", CLI_VALUE, "ADDRESS", "Who is paid. Default: the owner."},
    {"source", CLI_LIST, "URL=SHA256", "A file of the data and its sha256."},
    {0},
};
static const struct cli_option payee_options[] = {
    CHAIN_SEND_OPTIONS,
    CHAIN_KEY_OPTION("The present payee's key. Default: default."),
    {0},
};

static const struct cli_command subcommands[] = {
    {
        .name = "create",
        .summary = "register a Datanet and upload its manifest",
        .synopsis = "--name NAME [--description TEXT] [--license SPDX] [--payee ADDRESS] "
                    "[--source URL=SHA256]... --deployment FILE --registry URL",
        .description =
            "Prints the Datanet's id, which adapters name when they share royalties with "
            "it.",
        .examples = "    tributary datanet create --name medquad --license CC-BY-4.0 "
                    "--deployment deployment.json --registry http://127.0.0.1:9000\n",
        .options = create_options,
        .takes_config = true,
        .run = run_create,
    },
    {
        .name = "payee",
        .summary = "announce a new payee of a Datanet",
        .synopsis = "DATANET_ID ADDRESS --deployment FILE",
        .description = "Takes effect after the registry's delay. Only the present payee may.",
        .options = payee_options,
        .takes_config = true,
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = run_payee,
    },
    {0},
};

const struct cli_command cmd_datanet = {
    .name = "datanet",
    .summary = "register data sets, and who is paid for them",
    .synopsis = "COMMAND",
    .description =
        "A Datanet is a data set with an owner on chain. Adapters trained on it can give "
        "it a share of what they earn.",
    .subcommands = subcommands,
};
