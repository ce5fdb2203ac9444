/* serve_wallet: see serve_wallet.h.
 *
 * First start. A node without a chain and without keys makes its own: the wallet's keys `signer`
 * and `house`, encrypted with a random passphrase that lies beside them in the data directory
 * (wallet.passphrase, mode 0600), said so in the log. That protects copies of the key files, not
 * the machine; a node that handles money is given a wallet and a passphrase of the operator's own.
 */
#include "node/cli/serve_wallet.h"

#include "chain/types.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/log.h"
#include "node/base/random.h"
#include "node/cli/cmd_wallet.h"
#include "node/config.h"
#include "wallet/wallet.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char *auto_passphrase_path(const struct config *c)
{
    return xasprintf("%s/wallet.passphrase", config_string(c, CONFIG_DATA_DIR));
}

static bool passphrase_is_named(const struct config *c)
{
    return config_string(c, CONFIG_WALLET_PASSPHRASE_FILE)[0] != '\0' ||
           getenv("TRIBUTARY_PASSPHRASE_FILE") != NULL;
}

/* Of two nodes that start at once on one data directory both may come here: the first one's stays,
 * and keys are encrypted with what is read from the file afterwards. */
static int make_passphrase(const char *path, struct err *err)
{
    struct err why = {0};
    uint8_t random[24];
    char text[sizeof random * 2 + 2];
    random_bytes(random, sizeof random);
    hex_encode(text, random, sizeof random);
    text[sizeof text - 2] = '\n';
    int rc = file_create_atomic(path, text, sizeof text - 1, 0600, &why);
    explicit_bzero(random, sizeof random);
    explicit_bzero(text, sizeof text);
    if (rc == 0)
        log_info("wallet", "made a random passphrase for the local wallet: %s", path);
    if (rc == 0 || why.code == ERR_CONFLICT)
        return 0;
    *err = why;
    return -1;
}

/* Makes what is missing of signer and house, on a node that settles nowhere. */
static int make_keys(const struct config *c, const char *dir, const struct secret *passphrase,
                     struct err *err)
{
    const char *names[] = {config_string(c, CONFIG_WALLET_SIGNER),
                           config_string(c, CONFIG_WALLET_HOUSE)};
    for (int i = 0; i < 2; i++) {
        struct wallet_entry entry;
        struct address address;
        char hex[43];
        struct err why = {0};
        if (wallet_key_peek(dir, names[i], &entry, &why) == 0)
            continue;
        if (why.code != ERR_NOT_FOUND) {
            *err = why;
            return -1;
        }
        if (wallet_key_create(dir, names[i], &address, NULL, passphrase, NULL, err) != 0)
            return -1;
        log_info("wallet", "made the key %s in %s: address %s", names[i], dir,
                 hex_encode_0x(hex, address.bytes, 20));
    }
    return 0;
}

struct wallet *serve_wallet_open(const struct config *c, bool local, struct err *err)
{
    char *dir = cmd_wallet_dir(c), *auto_path = auto_passphrase_path(c);
    const char *names[] = {config_string(c, CONFIG_WALLET_SIGNER),
                           config_string(c, CONFIG_WALLET_HOUSE), NULL};
    struct wallet_entry *entries = NULL;
    struct secret *passphrase = NULL;
    struct wallet *wallet = NULL;
    size_t n = 0;
    int rc = wallet_list(dir, &entries, &n, err);
    free(entries);
    if (rc == 0 && n == 0 && !local)
        rc = err_set(err, ERR_NOT_FOUND,
                     "the wallet %s has no key: make or import the keys %s and %s (tributary "
                     "wallet new, tributary wallet import)",
                     dir, names[0], names[1]);
    bool named = passphrase_is_named(c);
    if (rc == 0 && n == 0 && !named && access(auto_path, F_OK) != 0)
        rc = make_passphrase(auto_path, err);
    if (rc == 0) {
        const char *file = config_string_or_null(c, CONFIG_WALLET_PASSPHRASE_FILE);
        if (!named && access(auto_path, F_OK) == 0)
            file = auto_path;
        passphrase = secret_passphrase(file, "Wallet passphrase: ", n == 0, err);
        rc = passphrase != NULL ? 0 : -1;
    }
    if (rc == 0 && local)
        rc = make_keys(c, dir, passphrase, err);
    if (rc == 0)
        wallet = wallet_open(dir, names, passphrase, err);
    secret_free(passphrase);
    free(dir);
    free(auto_path);
    return wallet;
}
