/* cmd_wallet: `tributary wallet new|import|address|list|export`.
 *
 * Secrets reach this program through files, pipes and the terminal, never through arguments, which
 * every user of the machine can read. They leave it twice, on request: a new key's mnemonic, shown
 * once, and an exported key, encrypted. Both are written from guarded memory straight to standard
 * output. */
#include "node/cli/cmd_wallet.h"

#include "chain/types.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/cli/cli.h"
#include "node/cli/commands.h"
#include "node/config.h"
#include "node/json_util.h"
#include "wallet/wallet.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NAME_DEFAULT "default"

char *cmd_wallet_dir(const struct config *c)
{
    const char *dir = config_string(c, CONFIG_WALLET_DIR);
    return dir[0] != '\0' ? xstrdup(dir)
                          : xasprintf("%s/wallet", config_string(c, CONFIG_DATA_DIR));
}

static struct secret *passphrase(const struct config *c, const char *prompt, bool confirm,
                                 struct err *err)
{
    return secret_passphrase(config_string_or_null(c, CONFIG_WALLET_PASSPHRASE_FILE), prompt,
                             confirm, err);
}

struct wallet *cmd_wallet_open(const struct config *c, const char *const *names, struct err *err)
{
    char *dir = cmd_wallet_dir(c);
    struct secret *p = passphrase(c, "Passphrase of the wallet: ", false, err);
    struct wallet *w = p == NULL ? NULL : wallet_open(dir, names, p, err);
    secret_free(p);
    free(dir);
    return w;
}

static const char *name_of(const struct cli_args *a)
{
    const char *name = cli_operand(a, 0);
    return name != NULL ? name : NAME_DEFAULT;
}

/* What was made: one line, or a JSON object; the mnemonic (NULL: none) never passes through stdio.
 * Its words are letters and spaces, so they need no escaping. */
static int print_made(const struct cli_args *a, const char *name, struct address address,
                      const struct secret *mnemonic, struct err *err)
{
    char text[ADDRESS_TEXT_BYTES];
    address_format(text, address);
    bool json = cli_has(a, "json");
    if (json)
        printf("{\"name\": \"%s\", \"address\": \"%s\"", name, text);
    else
        printf("%s\n", text);
    if (mnemonic != NULL) {
        if (json)
            printf(", \"mnemonic\": \"");
        else
            fprintf(stderr,
                    "The mnemonic of key %s follows. Write it on paper: it is shown this "
                    "once and stored nowhere.\n",
                    name);
        fflush(stdout);
        if (secret_write_fd(mnemonic, STDOUT_FILENO, err) != 0)
            return err_wrap(err, "key %s is stored, but its mnemonic could not be shown", name);
        printf(json ? "\"" : "\n");
    }
    if (json)
        printf("}\n");
    return 0;
}

/* ---- new ------------------------------------------------------------------------------------ */

static int parse_words(const struct cli_args *a, unsigned *out)
{
    const char *text = cli_value(a, "words", "24");
    char *end;
    unsigned long n = strtoul(text, &end, 10);
    if (*end != '\0' || n < 12 || n > 24 || n % 3 != 0)
        return -1;
    *out = (unsigned)n;
    return 0;
}

static int run_new(const struct cli_args *a)
{
    struct wallet_key_options opt = {0};
    struct address address;
    struct err err;
    const char *name = name_of(a);
    if (parse_words(a, &opt.mnemonic_words) != 0)
        return cli_usage(a, "--words is 12, 15, 18, 21 or 24");
    char *dir = cmd_wallet_dir(cli_config(a));
    struct secret *mnemonic = NULL, *p = NULL;
    int rc = wallet_name_available(dir, name, &err);
    if (rc == 0) {
        p = passphrase(cli_config(a), "Passphrase for the new key: ", true, &err);
        rc = p == NULL ? -1 : 0;
    }
    if (rc == 0)
        rc = wallet_key_create(dir, name, &address, cli_has(a, "no-mnemonic") ? NULL : &mnemonic, p,
                               &opt, &err);
    if (rc == 0)
        rc = print_made(a, name, address, mnemonic, &err);
    secret_free(mnemonic);
    secret_free(p);
    free(dir);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

/* ---- import --------------------------------------------------------------------------------- */

static struct secret *read_material(const struct cli_args *a, struct err *err)
{
    const char *file = cli_value(a, "from", "-");
    if (strcmp(file, "-") != 0)
        return secret_read_file(file, err);
    if (isatty(STDIN_FILENO))
        return secret_prompt("Private key, mnemonic or xprv: ", false, err);
    return secret_read_fd(STDIN_FILENO, "standard input", err);
}

/* The passphrase that belongs to the material; none is needed for most. */
static int read_import_passphrase(const struct cli_args *a, const struct secret *material,
                                  struct secret **out, struct err *err)
{
    const char *file = cli_value(a, "import-passphrase-file", NULL);
    *out = NULL;
    if (file != NULL)
        *out = secret_read_file(file, err);
    else if (wallet_material(material) == WALLET_MATERIAL_KEYSTORE_V3)
        *out = secret_prompt("Passphrase of the imported file: ", false, err);
    else
        return 0;
    return *out == NULL ? -1 : 0;
}

static int run_import(const struct cli_args *a)
{
    struct address address;
    struct err err;
    const char *name = name_of(a);
    char *dir = cmd_wallet_dir(cli_config(a));
    struct secret *material = NULL, *inner = NULL, *p = NULL;
    int rc = wallet_name_available(dir, name, &err);
    if (rc == 0) {
        material = read_material(a, &err);
        rc = material == NULL ? -1 : read_import_passphrase(a, material, &inner, &err);
    }
    if (rc == 0) {
        p = passphrase(cli_config(a), "New passphrase for the key: ", true, &err);
        rc = p == NULL ? -1 : 0;
    }
    if (rc == 0) {
        struct wallet_key_options opt = {.import_passphrase = inner,
                                         .derivation_path = cli_value(a, "path", NULL)};
        rc = wallet_key_import(dir, name, &address, material, p, &opt, &err);
    }
    if (rc == 0)
        rc = print_made(a, name, address, NULL, &err);
    secret_free(material);
    secret_free(inner);
    secret_free(p);
    free(dir);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

/* ---- address, list -------------------------------------------------------------------------- */

static const char *entry_address(char out[ADDRESS_TEXT_BYTES], const struct wallet_entry *entry)
{
    struct address address;
    memcpy(address.bytes, entry->address, sizeof address.bytes);
    return address_format(out, address);
}

/* Without a name: the only key there is, or the one called "default". */
static int find_entry(const struct cli_args *a, const char *dir, struct wallet_entry *out,
                      struct err *err)
{
    struct wallet_entry *entries = NULL;
    size_t n = 0;
    if (cli_operand(a, 0) == NULL) {
        if (wallet_list(dir, &entries, &n, err) != 0)
            return -1;
        const char *only = n == 1 ? entries[0].name : NAME_DEFAULT;
        int rc = wallet_key_peek(dir, only, out, err);
        if (rc != 0 && err->code == ERR_NOT_FOUND && n > 1)
            rc = err_set(err, ERR_NOT_FOUND, "%s holds %zu keys, name one (tributary wallet list)",
                         dir, n);
        free(entries);
        return rc;
    }
    return wallet_key_peek(dir, cli_operand(a, 0), out, err);
}

static int run_address(const struct cli_args *a)
{
    struct wallet_entry entry;
    struct err err;
    char text[ADDRESS_TEXT_BYTES], *dir = cmd_wallet_dir(cli_config(a));
    int rc = find_entry(a, dir, &entry, &err);
    free(dir);
    if (rc != 0)
        return cli_fail(a, &err);
    entry_address(text, &entry);
    if (cli_has(a, "json"))
        printf("{\"name\": \"%s\", \"address\": \"%s\"}\n", entry.name, text);
    else
        printf("%s\n", text);
    return 0;
}

static void print_entries_json(const struct wallet_entry *entries, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) {
        char text[ADDRESS_TEXT_BYTES];
        json_t *one = json_object();
        json_object_set_new(one, "name", json_string(entries[i].name));
        if (entries[i].problem[0] != '\0') {
            json_object_set_new(one, "problem", json_text(entries[i].problem));
        } else {
            json_object_set_new(one, "address", json_string(entry_address(text, &entries[i])));
            json_object_set_new(one, "created",
                                json_integer((json_int_t)entries[i].created_unix_s));
        }
        json_array_append_new(list, one);
    }
    cli_print_json(list);
    json_decref(list);
}

enum { LIST_COLUMNS = 3, DATE_BYTES = 24 };

static void print_entries_table(const struct wallet_entry *entries, size_t n)
{
    static const char *const titles[LIST_COLUMNS] = {"name", "address", "created"};
    const char **cells = xcalloc(n * LIST_COLUMNS, sizeof *cells);
    char(*addresses)[ADDRESS_TEXT_BYTES] = xcalloc(n, sizeof *addresses);
    char(*dates)[DATE_BYTES] = xcalloc(n, sizeof *dates);
    for (size_t i = 0; i < n; i++) {
        const char **row = cells + i * LIST_COLUMNS;
        row[0] = entries[i].name;
        row[1] = entries[i].problem;
        row[2] = "";
        if (entries[i].problem[0] != '\0')
            continue;
        time_t created = (time_t)entries[i].created_unix_s;
        struct tm utc;
        row[1] = entry_address(addresses[i], &entries[i]);
        if (gmtime_r(&created, &utc) != NULL &&
            strftime(dates[i], DATE_BYTES, "%Y-%m-%dT%H:%M:%SZ", &utc) != 0)
            row[2] = dates[i];
    }
    cli_print_table(stdout, titles, LIST_COLUMNS, cells, n);
    free(dates);
    free(addresses);
    free(cells);
}

static int run_list(const struct cli_args *a)
{
    struct wallet_entry *entries;
    size_t n;
    struct err err;
    char *dir = cmd_wallet_dir(cli_config(a));
    int rc = wallet_list(dir, &entries, &n, &err);
    if (rc != 0) {
        free(dir);
        return cli_fail(a, &err);
    }
    if (cli_has(a, "json"))
        print_entries_json(entries, n);
    else if (n > 0)
        print_entries_table(entries, n);
    else
        fprintf(stderr, "%s holds no key; `tributary wallet new` makes one.\n", dir);
    free(entries);
    free(dir);
    return 0;
}

/* ---- export --------------------------------------------------------------------------------- */

static int run_export(const struct cli_args *a)
{
    const char *name = name_of(a), *file = cli_value(a, "export-passphrase-file", NULL);
    char *dir = cmd_wallet_dir(cli_config(a));
    struct buf json = BUF_INIT;
    struct err err;
    struct secret *outer = NULL, *p = NULL;
    struct wallet_entry entry;
    int rc = wallet_key_peek(dir, name, &entry, &err);
    if (rc == 0) {
        p = passphrase(cli_config(a), "Passphrase of the key: ", false, &err);
        rc = p == NULL ? -1 : 0;
    }
    if (rc == 0) {
        outer = file != NULL ? secret_read_file(file, &err)
                             : secret_prompt("Passphrase for the exported file: ", true, &err);
        rc = outer == NULL ? -1 : wallet_key_export_v3(dir, name, &json, p, outer, &err);
    }
    if (rc == 0)
        printf("%s", buf_cstr(&json));
    buf_release(&json);
    secret_free(outer);
    secret_free(p);
    free(dir);
    return rc == 0 ? 0 : cli_fail(a, &err);
}

/* ---- the command --------------------------------------------------------------------------- */

static const struct cli_option new_options[] = {
    {"no-mnemonic", CLI_SWITCH, NULL,
     "Make the key without a mnemonic: the key file is then its only copy."},
    {"words", CLI_VALUE, "N", "Words of the mnemonic: 12, 15, 18, 21 or 24 (the default)."},
    {"json", CLI_SWITCH, NULL, "Print JSON."},
    {0},
};

static const struct cli_option import_options[] = {
    {"from", CLI_VALUE, "FILE", "Where the key is. Without it, or with -: standard input."},
    {"import-passphrase-file", CLI_VALUE, "FILE",
     "The passphrase of an imported keystore v3 file, or the extra passphrase of a mnemonic "
     "(BIP-39). A keystore's is asked for when it is not given."},
    {"path", CLI_VALUE, "PATH",
     "Which key of a mnemonic or xprv (BIP-32). Default: m/44'/60'/0'/0/0, Ethereum's first."},
    {"json", CLI_SWITCH, NULL, "Print JSON."},
    {0},
};

static const struct cli_option export_options[] = {
    {"export-passphrase-file", CLI_VALUE, "FILE",
     "The passphrase that will open the exported file. Asked for when it is not given."},
    {0},
};

static const struct cli_option json_options[] = {{"json", CLI_SWITCH, NULL, "Print JSON."}, {0}};

static const struct cli_command subcommands[] = {
    {
        .name = "new",
        .summary = "make a key",
        .synopsis = "[NAME] [--words N | --no-mnemonic] [--wallet DIR] [--passphrase-file FILE] "
                    "[--json]",
        .description =
            "Makes a key and stores it as NAME.key (default: default.key), encrypted with a "
            "passphrase. Prints its address, and then, this once, the mnemonic that brings the "
            "key back in any Ethereum wallet. The mnemonic is stored nowhere.\n\n"
            "The passphrase comes from --passphrase-file, from the file that "
            "TRIBUTARY_PASSPHRASE_FILE names, or from the terminal, where it is asked for twice.",
        .examples = "    tributary wallet new signer\n"
                    "    tributary wallet new house --no-mnemonic --passphrase-file house.pass\n",
        .options = new_options,
        .takes_config = true,
        .n_operands_max = 1,
        .run = run_new,
    },
    {
        .name = "import",
        .summary = "store a key that exists",
        .synopsis = "[NAME] [--from FILE] [--path PATH] [--import-passphrase-file FILE] "
                    "[--wallet DIR] [--passphrase-file FILE] [--json]",
        .description =
            "Stores an existing key as NAME.key and prints its address. Recognised are a private "
            "key of 64 hexadecimal digits, an English mnemonic (BIP-39), an extended private key "
            "(xprv, BIP-32) and an Ethereum keystore file of version 3. The key is read from "
            "standard input, a file or the terminal, never from the command line, which other "
            "users of the machine can see.",
        .examples = "    tributary wallet import operator < key.hex\n"
                    "    tributary wallet import creator --from UTC--2026-01-01--account.json\n",
        .options = import_options,
        .takes_config = true,
        .n_operands_max = 1,
        .run = run_import,
    },
    {
        .name = "address",
        .summary = "print a key's address",
        .synopsis = "[NAME] [--wallet DIR] [--json]",
        .description =
            "Prints the address of a key, with EIP-55's checksum. Without NAME: of the only key, "
            "or of the one called default. Needs no passphrase: the address is read from the key "
            "file's header, and bound to the key only when the file is opened.",
        .options = json_options,
        .takes_config = true,
        .n_operands_max = 1,
        .run = run_address,
    },
    {
        .name = "list",
        .summary = "list the keys of a wallet",
        .synopsis = "[--wallet DIR] [--json]",
        .description = "Lists every key file with its address and the time it was made; for a file "
                       "that can't be used, why. Needs no passphrase.",
        .options = json_options,
        .takes_config = true,
        .run = run_list,
    },
    {
        .name = "export",
        .summary = "write a key as Ethereum keystore",
        .synopsis = "[NAME] [--export-passphrase-file FILE] [--wallet DIR] "
                    "[--passphrase-file FILE]",
        .description = "Writes a key to standard output as a keystore file of version 3, which "
                       "geth, MetaMask and ethers open, encrypted with a passphrase of its own.",
        .examples = "    tributary wallet export creator > creator.json\n",
        .options = export_options,
        .takes_config = true,
        .n_operands_max = 1,
        .run = run_export,
    },
    {0},
};

const struct cli_command cmd_wallet = {
    .name = "wallet",
    .summary = "make, import and list keys",
    .description =
        "A wallet is a directory of key files, one key a file, each encrypted with a passphrase "
        "(Argon2id, XChaCha20-Poly1305). By custom the keys of a node are called operator (the "
        "stake key), signer (signs receipts and batches) and house (pays for API-key customers).",
    .subcommands = subcommands,
};
