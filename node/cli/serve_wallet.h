/* serve_wallet: the wallet that a node serves with. */
#ifndef TRIBUTARY_NODE_CLI_SERVE_WALLET_H
#define TRIBUTARY_NODE_CLI_SERVE_WALLET_H

#include <stdbool.h>

struct config;
struct err;
struct wallet;

/* Opens the keys signer and house of the configuration's wallet; asks for its passphrase where no
 * file has it. local: the node settles nowhere, and what is missing of keys and passphrase is made.
 * NULL and *err: the key or file that is wrong. */
struct wallet *serve_wallet_open(const struct config *c, bool local, struct err *err);

#endif
