/* cmd_adapter: `tributary adapter publish|register|inspect|retire`: the creator's side. The
 * operator's is in adapter_node.c.
 *
 * publish, in an order in which a failure leaves nothing that misleads anybody: the adapter is
 * checked against its base model; the manifest is written and signed; manifest and files go to the
 * registry, where they are visible once complete but serve nowhere yet; the registration on chain
 * comes last and makes the adapter usable. Run again after a failure, it finishes what is left. */
#include "attribution/manifest.h"
#include "chain/contracts.h"
#include "engine/engine.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/clock.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/http_client.h"
#include "node/base/sha256.h"
#include "node/base/usage.h"
#include "node/cli/adapter_node.h"
#include "node/cli/chain_session.h"
#include "node/cli/cli.h"
#include "node/cli/commands.h"
#include "node/cli/publish.h"
#include "node/config.h"
#include "wallet/wallet.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- the manifest
 * ------------------------------------------------------------------------------------ */

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct manifest_file *)a)->path, ((const struct manifest_file *)b)->path);
}

/* The files that are the adapter: configuration, tensors and their index. What else lies in the
 * folder (README, training state) is not published. */
static bool is_adapter_file(const char *name)
{
    size_t n = strlen(name);
    return strcmp(name, "adapter_config.json") == 0 ||
           (strncmp(name, "adapter_model", 13) == 0 &&
            ((n > 12 && strcmp(name + n - 12, ".safetensors") == 0) ||
             strcmp(name, "adapter_model.safetensors.index.json") == 0));
}

static int list_files(const char *dir, struct manifest_adapter *m, struct arena *arena,
                      struct err *err)
{
    struct manifest_file *files = arena_array(arena, MANIFEST_FILES_MAX, sizeof *files);
    DIR *d = opendir(dir);
    if (d == NULL)
        return err_set(err, ERR_NOT_FOUND, "%s: cannot be read", dir);
    int rc = 0;
    for (struct dirent *e; rc == 0 && (e = readdir(d)) != NULL;) {
        if (!is_adapter_file(e->d_name))
            continue;
        if (m->n_files == MANIFEST_FILES_MAX) {
            rc = err_set(err, ERR_TOO_LARGE, "%s: more than %d files", dir, MANIFEST_FILES_MAX);
            break;
        }
        struct manifest_file *f = &files[m->n_files++];
        char *path = xasprintf("%s/%s", dir, e->d_name);
        f->path = arena_strdup(arena, e->d_name);
        rc = sha256_file(path, &f->sha256, &f->size_bytes, err);
        free(path);
    }
    closedir(d);
    qsort(files, m->n_files, sizeof *files, by_path);
    m->files = files;
    return rc;
}

/* "LEFT:BPS"; *left is a copy in the arena. */
static int share_option(const char *option, const char *text, struct arena *arena,
                        const char **left, uint16_t *bps, struct err *err)
{
    const char *colon = strrchr(text, ':');
    char *end;
    unsigned long v = colon == NULL ? 0 : strtoul(colon + 1, &end, 10);
    if (colon == NULL || colon[1] < '0' || colon[1] > '9' || *end != '\0' || v == 0 || v > 10000)
        return err_set(err, ERR_INVALID,
                       "--%s \"%.100s\": expected a share of 1 to 10000 basis points after a colon",
                       option, text);
    *left = arena_strndup(arena, text, (size_t)(colon - text));
    *bps = (uint16_t)v;
    return 0;
}

/* Without --split everything that Datanets leave goes to the creator. */
static int read_shares(const struct cli_args *a, struct manifest_adapter *m, struct arena *arena,
                       struct err *err)
{
    size_t n_splits = cli_count(a, "split"), n_datanets = cli_count(a, "datanet");
    if (n_splits > MANIFEST_SHARES_MAX || n_datanets > MANIFEST_SHARES_MAX)
        return err_set(err, ERR_TOO_LARGE, "at most %d splits and %d Datanets", MANIFEST_SHARES_MAX,
                       MANIFEST_SHARES_MAX);
    struct manifest_split *splits = arena_array(arena, n_splits + 1, sizeof *splits);
    struct manifest_datanet_share *datanets = arena_array(arena, n_datanets + 1, sizeof *datanets);
    unsigned left = BPS_WHOLE;
    const char *who;
    for (size_t i = 0; i < n_datanets; i++) {
        if (share_option("datanet", cli_nth(a, "datanet", i), arena, &who, &datanets[i].bps, err) !=
            0)
            return -1;
        if (hex_decode(datanets[i].id.bytes, 32, who) != 0)
            return err_set(err, ERR_INVALID, "--datanet \"%.80s\" is no Datanet id", who);
        left -= datanets[i].bps < left ? datanets[i].bps : left;
    }
    for (size_t i = 0; i < n_splits; i++) {
        if (share_option("split", cli_nth(a, "split", i), arena, &who, &splits[i].bps, err) != 0)
            return -1;
        if (address_parse(&splits[i].payee, who) != 0)
            return err_set(err, ERR_INVALID, "--split \"%.60s\" is no address", who);
    }
    if (n_splits == 0 && left > 0) {
        splits[0] = (struct manifest_split){m->creator, (uint16_t)left};
        n_splits = 1;
    }
    m->splits = splits;
    m->n_splits = (uint32_t)n_splits;
    m->datanets = datanets;
    m->n_datanets = (uint32_t)n_datanets;
    return 0;
}

static void read_targets(const struct engine_adapter *facts, struct manifest_adapter *m,
                         struct arena *arena)
{
    const char **modules = arena_array(arena, MANIFEST_MODULES_MAX, sizeof *modules);
    char *text = arena_strdup(arena, facts->targets), *save = NULL;
    for (char *one = strtok_r(text, " ", &save);
         one != NULL && m->n_target_modules < MANIFEST_MODULES_MAX;
         one = strtok_r(NULL, " ", &save))
        modules[m->n_target_modules++] = one;
    m->target_modules = modules;
}

static int number_option(const struct cli_args *a, const char *option, uint64_t otherwise,
                         uint64_t *out, struct err *err)
{
    const char *text = cli_value(a, option, NULL);
    char *end = NULL;
    *out = text == NULL ? otherwise : strtoull(text, &end, 10);
    if (text != NULL && (*text < '1' || *text > '9' || *end != '\0'))
        return err_set(err, ERR_INVALID, "--%s: \"%.40s\" is no positive number", option, text);
    return 0;
}

/* dir must have passed engine_check_adapter. */
static int make_manifest(struct manifest_adapter *m, const struct cli_args *a, const char *dir,
                         const char *model_dir, struct address creator, struct arena *arena,
                         struct err *err)
{
    struct engine_adapter facts;
    char *model_name = arena_alloc(arena, 128);
    *m = (struct manifest_adapter){
        .name = cli_value(a, "name", NULL),
        .creator = creator,
        .created_unix_s = clock_unix_ms().ms / 1000,
        .licence = cli_value(a, "license", ""),
    };
    if (m->name == NULL)
        return err_set(err, ERR_INVALID, "an adapter needs a name (--name NAME)");
    if (number_option(a, "version", 1, &m->version, err) != 0 ||
        amount_from_text(&m->royalty_prompt_per_1k, cli_value(a, "royalty-prompt", "0"), err) !=
            0 ||
        amount_from_text(&m->royalty_completion_per_1k, cli_value(a, "royalty-completion", "0"),
                         err) != 0 ||
        read_shares(a, m, arena, err) != 0 || list_files(dir, m, arena, err) != 0 ||
        engine_check_adapter(model_dir, dir, &m->base_model, model_name, &facts, err) != 0)
        return -1;
    const char *parent = cli_value(a, "parent", NULL);
    if (parent != NULL && hex_decode(m->parent.bytes, 32, parent) != 0)
        return err_set(err, ERR_INVALID, "--parent \"%.80s\" is no manifest hash", parent);
    m->has_parent = parent != NULL;
    m->base_model_name = model_name;
    m->content = facts.content;
    m->rank = (uint32_t)facts.rank_max;
    read_targets(&facts, m, arena);
    struct content_digest listed = manifest_content_digest(m->files, m->n_files);
    if (!DIGEST_EQ(listed, m->content))
        return err_set(err, ERR_CONFLICT, "%s changed while it was read", dir);
    return 0;
}

/* ---- registration
 * ------------------------------------------------------------------------------------ */

static int register_on_chain(struct chain_session *s, const char *key,
                             const struct manifest_adapter *m, struct sha256_digest hash,
                             const struct registry_signature *signature, struct chain_sent *sent,
                             struct err *err)
{
    struct payee_share *payees = xcalloc(m->n_splits, sizeof *payees);
    struct datanet_share *datanets = xcalloc(m->n_datanets, sizeof *datanets);
    for (uint32_t i = 0; i < m->n_splits; i++)
        payees[i] = (struct payee_share){m->splits[i].payee, m->splits[i].bps};
    for (uint32_t i = 0; i < m->n_datanets; i++) {
        memcpy(datanets[i].datanet, m->datanets[i].id.bytes, 32);
        datanets[i].bps = m->datanets[i].bps;
    }
    struct splits splits = {payees, m->n_splits, datanets, m->n_datanets};
    struct manifest fields;
    struct buf data = BUF_INIT;
    manifest_signed_fields(&fields, m, hash);
    calldata_registry_register_adapter(&data, &fields, &splits, &signature->signature);
    int rc = chain_send(s, sent, "register adapter", key, &s->contracts.adapter_registry, &data,
                        err);
    buf_release(&data);
    free(datanets);
    free(payees);
    return rc;
}

static json_t *describe(const struct chain_session *s, const struct manifest_adapter *m,
                        struct sha256_digest hash)
{
    char id_text[67], hash_hex[65], content[65], creator[ADDRESS_TEXT_BYTES];
    struct adapter_id id = manifest_adapter_id(s->contracts.chain_id, s->contracts.adapter_registry,
                                               m->creator, m->base_model, hash);
    return json_pack("{s:s,s:I,s:s,s:s,s:s,s:s}", "name", m->name, "version",
                     (json_int_t)m->version, "adapterId", hex_encode_0x(id_text, id.bytes, 32),
                     "manifestHash", hex_encode(hash_hex, hash.bytes, 32), "contentDigest",
                     hex_encode(content, m->content.bytes, 32), "creator",
                     address_format(creator, m->creator));
}

static void print_described(const struct cli_args *a, const json_t *about)
{
    const char *key;
    json_t *value;
    if (cli_has(a, "json"))
        return; /* printed with the transaction */
    json_object_foreach((json_t *)about, key, value)
    {
        if (json_is_string(value))
            printf("%-14s %s\n", key, json_string_value(value));
        else
            printf("%-14s %" JSON_INTEGER_FORMAT "\n", key, json_integer_value(value));
    }
}

static int upload(const struct registry_client *registry, const struct manifest_adapter *m,
                  const char *dir, const struct buf *text,
                  const struct registry_signature *signature, struct err *err)
{
    int rc = registry_put_manifest(registry, text, signature, err);
    for (uint32_t i = 0; i < m->n_files && rc == 0; i++) {
        char *path = xasprintf("%s/%s", dir, m->files[i].path);
        rc = registry_put_blob(registry, m->files[i].sha256, path, err);
        free(path);
    }
    return rc;
}

static int publish(struct chain_session *s, const char *key, struct err *err)
{
    const struct cli_args *a = s->args;
    struct arena arena = ARENA_INIT;
    struct buf text = BUF_INIT;
    struct manifest_adapter m;
    struct manifest fields;
    struct registry_client registry;
    struct registry_signature signature;
    struct chain_sent sent = {0};
    struct address creator;
    struct sha256_digest hash;
    struct http_client *http = http_client_create();
    const char *dir = cli_operand(a, 0), *model_dir = config_string(s->config, CONFIG_MODEL_DIR);
    bool registers = !cli_has(a, "no-register");
    int rc = *model_dir == '\0' ? err_set(err, ERR_INVALID, "which base model? (--model DIR)")
                                : publish_registry(s, http, &registry, err);
    if (rc == 0)
        rc = wallet_key_address(s->wallet, key, &creator, err);
    if (rc == 0)
        rc = make_manifest(&m, a, dir, model_dir, creator, &arena, err);
    if (rc == 0)
        rc = manifest_adapter_write(&m, &text, err);
    if (rc == 0) {
        hash = sha256(text.data, text.len);
        manifest_signed_fields(&fields, &m, hash);
        rc = publish_sign(s, key, &fields, &signature, err);
    }
    if (rc == 0)
        rc = upload(&registry, &m, dir, &text, &signature, err);
    if (rc == 0 && registers)
        rc = register_on_chain(s, key, &m, hash, &signature, &sent, err);
    if (rc == 0) {
        json_t *about = describe(s, &m, hash);
        print_described(a, about);
        if (registers) {
            chain_print_sent(s, "register adapter", &sent, about);
        } else {
            if (cli_has(a, "json"))
                cli_print_json(about);
            json_decref(about);
        }
    }
    http_client_free(http);
    buf_release(&text);
    arena_release(&arena);
    return rc;
}

/* ---- register, retire, payee
 * -------------------------------------------------------------------------- */

static int fetch_manifest(struct chain_session *s, const char *hash_hex, struct http_client *http,
                          struct arena *arena, struct manifest_adapter *m,
                          struct sha256_digest *hash, struct registry_signature *signature,
                          struct err *err)
{
    struct registry_client registry;
    struct buf text = BUF_INIT;
    int rc = hex_decode(hash->bytes, 32, hash_hex) == 0
                 ? publish_registry(s, http, &registry, err)
                 : err_set(err, ERR_INVALID, "\"%.80s\" is no manifest hash", hash_hex);
    if (rc == 0)
        rc = registry_manifest(&registry, *hash, &text, signature, err);
    if (rc == 0)
        rc = manifest_adapter_parse(m, hash, arena, text.data, text.len, err);
    if (rc == 0)
        rc = registry_check_adapter(m, *hash, signature, err);
    buf_release(&text);
    return rc;
}

static int register_published(struct chain_session *s, const char *key, struct err *err)
{
    struct arena arena = ARENA_INIT;
    struct manifest_adapter m;
    struct sha256_digest hash;
    struct registry_signature signature;
    struct chain_sent sent;
    struct http_client *http = http_client_create();
    int rc = fetch_manifest(s, cli_operand(s->args, 0), http, &arena, &m, &hash, &signature, err);
    if (rc == 0)
        rc = register_on_chain(s, key, &m, hash, &signature, &sent, err);
    if (rc == 0) {
        json_t *about = describe(s, &m, hash);
        print_described(s->args, about);
        chain_print_sent(s, "register adapter", &sent, about);
    }
    http_client_free(http);
    arena_release(&arena);
    return rc;
}

static int retire(struct chain_session *s, const char *key, struct err *err)
{
    struct adapter_id id;
    struct chain_sent sent;
    struct buf data = BUF_INIT;
    if (hex_decode(id.bytes, 32, cli_operand(s->args, 0)) != 0)
        return err_set(err, ERR_INVALID, "\"%.80s\" is no adapter id", cli_operand(s->args, 0));
    calldata_registry_retire(&data, id);
    int rc = chain_send(s, &sent, "retire", key, &s->contracts.adapter_registry, &data, err);
    if (rc == 0)
        chain_print_sent(s, "retire", &sent, json_object());
    buf_release(&data);
    return rc;
}

static int run_with_session(const struct cli_args *a,
                            int (*act)(struct chain_session *s, const char *key, struct err *err))
{
    struct chain_session s;
    struct err err = {0};
    int rc = chain_session_open(&s, a, CHAIN_CONTRACTS | CHAIN_WALLET, &err);
    if (rc == 0)
        rc = act(&s, cli_value(a, "key", "default"), &err);
    chain_session_close(&s);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

static int run_publish(const struct cli_args *a)
{
    return run_with_session(a, publish);
}

static int run_register(const struct cli_args *a)
{
    return run_with_session(a, register_published);
}

static int run_retire(const struct cli_args *a)
{
    return run_with_session(a, retire);
}

/* ---- inspect
 * ------------------------------------------------------------------------------------------ */

/* A directory: what it holds, checked against --model. */
static int inspect_dir(const struct cli_args *a, const char *dir, struct err *err)
{
    struct engine_adapter facts;
    struct model_id model;
    char model_name[128], content[65];
    const char *model_dir = config_string(cli_config(a), CONFIG_MODEL_DIR);
    if (*model_dir == '\0')
        return err_set(err, ERR_INVALID, "against which base model? (--model DIR)");
    if (engine_check_adapter(model_dir, dir, &model, model_name, &facts, err) != 0)
        return -1;
    json_t *o = json_pack("{s:s,s:s,s:i,s:i,s:I,s:s}", "contentDigest",
                          hex_encode(content, facts.content.bytes, 32), "baseModel", model_name,
                          "rank", facts.rank_max, "sites", facts.n_sites, "bytes",
                          (json_int_t)facts.n_bytes, "targets", facts.targets);
    if (cli_has(a, "json"))
        cli_print_json(o);
    else
        print_described(a, o);
    json_decref(o);
    return 0;
}

struct search {
    const char *name;
    uint64_t version;
    struct sha256_digest best;
    uint64_t best_version;
};

static int match_name(void *context, const struct registry_entry *e, struct err *err)
{
    (void)err;
    struct search *s = context;
    if (!e->is_datanet && strcmp(e->name, s->name) == 0 &&
        (s->version == 0 || e->version == s->version) && e->version > s->best_version) {
        s->best = e->manifest;
        s->best_version = e->version;
    }
    return 0;
}

/* A manifest of the registry, by hash or by name; with a chain configured, its registration. */
static int inspect_published(const struct cli_args *a, const char *what, struct err *err)
{
    const struct config *c = cli_config(a);
    struct sha256_digest hash;
    struct http_client *http = http_client_create();
    struct registry_client registry = {http, NULL, NULL};
    struct buf text = BUF_INIT;
    struct arena arena = ARENA_INIT;
    struct manifest_adapter m;
    struct registry_signature signature;
    char *name = xstrdup(what);
    int rc = config_list_len(c, CONFIG_REGISTRY_URLS) > 0
                 ? 0
                 : err_set(err, ERR_INVALID, "no registry is configured (--registry URL)");
    if (rc == 0)
        registry.url = config_list_item(c, CONFIG_REGISTRY_URLS, 0);
    if (rc == 0 && hex_decode(hash.bytes, 32, what) != 0) {
        char *at = strchr(name, '@');
        struct search s = {.name = name};
        if (at != NULL) {
            *at = '\0';
            s.version = strtoull(at + 1, NULL, 10);
        }
        rc = registry_walk(&registry, match_name, &s, err);
        if (rc == 0 && s.best_version == 0)
            rc = err_set(err, ERR_NOT_FOUND, "%s offers no adapter \"%s\"", registry.url, what);
        hash = s.best;
    }
    if (rc == 0)
        rc = registry_manifest(&registry, hash, &text, &signature, err);
    if (rc == 0)
        rc = manifest_adapter_parse(&m, &hash, &arena, text.data, text.len, err);
    if (rc == 0)
        rc = registry_check_adapter(&m, hash, &signature, err);
    if (rc == 0) {
        char hex[65];
        json_t *o = json_object();
        json_object_set_new(o, "manifestHash", json_string(hex_encode(hex, hash.bytes, 32)));
        json_object_set_new(o, "signature", json_string("good"));
        if (config_list_len(c, CONFIG_CHAIN_RPC) > 0) {
            struct chain_session s;
            rc = chain_session_open(&s, a, CHAIN_CONTRACTS, err);
            struct registry_adapter state = {0};
            struct contract_at at = chain_at(&s, CONTRACT_ADAPTER_REGISTRY);
            struct adapter_id id = manifest_adapter_id(
                s.contracts.chain_id, s.contracts.adapter_registry, m.creator, m.base_model, hash);
            char id_text[67];
            if (rc == 0)
                rc = view_registry_adapter(&at, &state, id, err);
            json_object_set_new(o, "adapterId", json_string(hex_encode_0x(id_text, id.bytes, 32)));
            json_object_set_new(o, "chain",
                                json_string(!state.registered ? "not registered"
                                            : state.retired   ? "retired"
                                                              : "registered"));
            chain_session_close(&s);
        }
        json_object_set_new(o, "manifest", json_loadb((const char *)text.data, text.len, 0, NULL));
        if (rc == 0)
            cli_print_json(o);
        json_decref(o);
    }
    free(name);
    arena_release(&arena);
    buf_release(&text);
    http_client_free(http);
    return rc;
}

static int run_inspect(const struct cli_args *a)
{
    struct err err = {0};
    struct stat st;
    const char *what = cli_operand(a, 0);
    bool is_dir = stat(what, &st) == 0 && S_ISDIR(st.st_mode);
    int rc = is_dir ? inspect_dir(a, what, &err) : inspect_published(a, what, &err);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

/* ---- tables
 * ------------------------------------------------------------------------------------------- */

static const struct cli_option publish_options[] = {
    CHAIN_SEND_OPTIONS,
    CHAIN_KEY_OPTION("The creator's key. Default: default."),
    {"name", CLI_VALUE, "NAME", "How consumers call it: lower-case letters, digits, dots, dashes."},
    {"version", CLI_VALUE, "N", "Default: 1. A new version is a new id."},
    {"parent", CLI_VALUE, "HASH", "The manifest hash of the version before."},
    {"royalty-prompt", CLI_VALUE, "AMOUNT", "For 1,000 prompt tokens. Default: 0."},
    {"royalty-completion", CLI_VALUE, "AMOUNT", "For 1,000 completion tokens. Default: 0."},
    {"split", CLI_LIST, "ADDRESS:BPS",
     "A share of the royalty, in basis points. Splits and Datanets sum to 10000. Default: the "
     "creator gets what Datanets leave."},
    {"datanet", CLI_LIST, "ID:BPS", "A Datanet's share of the royalty."},
    {"license", CLI_VALUE, "SPDX", "The adapter's licence."},
    {"no-register", CLI_SWITCH, NULL, "Upload only; `adapter register` does the rest later."},
    {0},
};
static const struct cli_option key_options[] = {
    CHAIN_SEND_OPTIONS,
    CHAIN_KEY_OPTION("The creator's key. Default: default."),
    {0},
};
static const struct cli_option inspect_options[] = {CHAIN_JSON_OPTION, {0}};

static const struct cli_command subcommands[] = {
    {
        .name = "publish",
        .summary = "check, sign, upload and register an adapter",
        .synopsis = "DIR --name NAME --model DIR [--royalty-prompt AMOUNT] [--royalty-completion "
                    "AMOUNT]\n       [--split ADDRESS:BPS]... [--datanet ID:BPS]... --deployment "
                    "FILE --registry URL",
        .description =
            "DIR is an adapter in PEFT layout. It is checked against the base model, its manifest "
            "is "
            "signed with the creator's key, manifest and files go to the registry, and the adapter "
            "is registered on chain. Rates and splits can't be changed afterwards: a change is a "
            "new "
            "version.",
        .examples = "    tributary adapter publish adapters/verse --name verse --model "
                    "models/demo-7m \\\n        --royalty-completion 0.001tok --deployment "
                    "deployment.json --registry http://127.0.0.1:9000\n",
        .options = publish_options,
        .takes_config = true,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = run_publish,
    },
    {
        .name = "register",
        .summary = "register an adapter that was published with --no-register",
        .synopsis = "MANIFEST_HASH --deployment FILE --registry URL",
        .description = "Fetches the manifest from the registry and registers it on chain.",
        .options = key_options,
        .takes_config = true,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = run_register,
    },
    {
        .name = "inspect",
        .summary = "show what an adapter is",
        .synopsis =
            "DIR --model DIR | NAME[@VERSION] --registry URL | MANIFEST_HASH --registry URL",
        .description =
            "Of a directory: its digest, rank and targets, checked against the model. Of a "
            "published adapter: its manifest, its signature, and with --deployment its "
            "state on chain.",
        .options = inspect_options,
        .takes_config = true,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = run_inspect,
    },
    {
        .name = "retire",
        .summary = "withdraw an adapter from use, for good",
        .synopsis = "ADAPTER_ID --deployment FILE",
        .description = "Nodes stop serving it. What it has earned can still be claimed.",
        .options = key_options,
        .takes_config = true,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = run_retire,
    },
    {
        .name = "list",
        .summary = "list a running node's adapters and where they are",
        .synopsis = "[--tier TIER] [--prefix TEXT] [--pinned] [--node URL] [--json]",
        .description = "Every adapter that the node can serve, by name: local ones, and those that "
                       "its registries list. tier is the fastest that holds it: device, host "
                       "memory, disk, or only the registry.",
        .examples = "    tributary adapter list --tier host\n",
        .options = adapter_node_list_options,
        .n_operands_min = 0,
        .n_operands_max = 0,
        .run = adapter_node_list,
    },
    {
        .name = "show",
        .summary = "show one adapter of a running node",
        .synopsis = "NAME [--node URL] [--json]",
        .description = "NAME is whatever a request may call it: a name, NAME@VERSION, a content "
                       "digest, an adapter id.",
        .options = adapter_node_options,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = adapter_node_show,
    },
    {
        .name = "add",
        .summary = "let a running node serve a directory under a name",
        .synopsis = "NAME DIR [--node URL] [--json]",
        .description =
            "The files are checked against the base model. A local name that is known already is "
            "pointed at the new directory: requests under way finish with what they began with. "
            "It comes back when the node starts again, until it is removed.",
        .options = adapter_node_options,
        .n_operands_min = 2,
        .n_operands_max = 2,
        .run = adapter_node_add,
    },
    {
        .name = "remove",
        .summary = "let a running node forget a local name",
        .synopsis = "NAME [--node URL] [--json]",
        .description = "The files stay where they are.",
        .options = adapter_node_options,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = adapter_node_remove,
    },
    {
        .name = "load",
        .summary = "bring an adapter into a node's host memory",
        .synopsis = "NAME [--node URL] [--json]",
        .description =
            "From disk, or from a registry by way of the disk. Returns when it is there.",
        .options = adapter_node_options,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = adapter_node_load,
    },
    {
        .name = "warm",
        .summary = "bring an adapter to a node's device before it is asked for",
        .synopsis = "NAME [--node URL] [--json]",
        .description = "As load, and then towards the device, where it stays until others need "
                       "its room.",
        .options = adapter_node_options,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = adapter_node_warm,
    },
    {
        .name = "unload",
        .summary = "free what an adapter takes of a node's memory",
        .synopsis = "NAME [--node URL] [--json]",
        .description = "Prints how much host and device memory adapters took before and take "
                       "after. An adapter that is in use or pinned is left alone.",
        .options = adapter_node_options,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = adapter_node_unload,
    },
    {
        .name = "pin",
        .summary = "load an adapter and keep it",
        .synopsis = "NAME [--node URL] [--json]",
        .description = "A pinned adapter never leaves host memory for another. Lasts until unpin, "
                       "or the node's end.",
        .options = adapter_node_options,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = adapter_node_pin,
    },
    {
        .name = "unpin",
        .summary = "let a pinned adapter go when room is needed",
        .synopsis = "NAME [--node URL] [--json]",
        .description = "It stays until then.",
        .options = adapter_node_options,
        .n_operands_min = 1,
        .n_operands_max = 1,
        .run = adapter_node_unpin,
    },
    {0},
};

const struct cli_command cmd_adapter = {
    .name = "adapter",
    .summary = "publish adapters, and manage those of a running node",
    .synopsis = "COMMAND",
    .description =
        "For creators: publish, register, inspect, retire. Royalties are per 1,000 tokens, in the "
        "smallest unit of the payment token or as 0.001tok. For operators: the others, which ask "
        "a running node.",
    .subcommands = subcommands,
};
