/* cmd_wallet: what other commands need of `tributary wallet`: where its keys are, and to open them.
 */
#ifndef TRIBUTARY_NODE_CLI_CMD_WALLET_H
#define TRIBUTARY_NODE_CLI_CMD_WALLET_H

struct config;
struct err;
struct wallet;

/* wallet.dir, or wallet/ below data.dir; free() it. */
char *cmd_wallet_dir(const struct config *c);

/* Opens the named keys (NULL-terminated; NULL: all) of that directory with the passphrase of
 * wallet.passphrase_file, TRIBUTARY_PASSPHRASE_FILE or the terminal. Fails as wallet_open does. */
struct wallet *cmd_wallet_open(const struct config *c, const char *const *names, struct err *err);

#endif
