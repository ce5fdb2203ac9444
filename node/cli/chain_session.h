/* chain_session: what the commands that talk to the chain have in common.
 *
 * Settings come from the configuration: endpoints, chain id, contract addresses (flags, or the file
 * that `tributary deploy` wrote), wallet directory and passphrase. A transaction is sent in one
 * way: the nonce and the fees are asked of the chain, the gas is estimated (a call that would
 * revert fails here, with the contract's reason, and costs nothing), then it is signed, sent, and
 * waited for. */
#ifndef TRIBUTARY_NODE_CLI_CHAIN_SESSION_H
#define TRIBUTARY_NODE_CLI_CHAIN_SESSION_H

#include "chain/contracts.h"
#include "node/base/amount.h"
#include "node/deployment.h"

struct arena;
struct buf;
struct cli_args;
struct config;
struct err;
struct wallet;

/* What the commands that ask the chain have, and those that send to it; put them first in a table.
 */
#define CHAIN_JSON_OPTION                       \
    {                                           \
        "json", CLI_SWITCH, NULL, "Print JSON." \
    }
#define CHAIN_SEND_OPTIONS                                                                         \
    CHAIN_JSON_OPTION,                                                                             \
    {                                                                                              \
        "no-wait", CLI_SWITCH, NULL, "Print the transaction's hash without waiting for its block." \
    }
#define CHAIN_KEY_OPTION(help_text)         \
    {                                       \
        "key", CLI_VALUE, "NAME", help_text \
    }

struct chain_session {
    const struct cli_args *args;
    const struct config *config;
    struct rpc *rpc;
    struct deployment contracts; /* chain_id is the endpoint's */
    struct wallet *wallet;       /* NULL unless asked for */
    bool must_wait;              /* --no-wait or not: what follows needs the block */
};

/* What a command needs. CHAIN_CONTRACTS: all contract addresses must be known. */
enum { CHAIN_CONTRACTS = 1, CHAIN_WALLET = 2 };

/* Opens what `needs` says. -1 with a sentence that names the missing setting. Close in any case. */
int chain_session_open(struct chain_session *s, const struct cli_args *a, unsigned needs,
                       struct err *err);
void chain_session_close(struct chain_session *s);

/* The contract at its address, now. */
struct contract_at chain_at(const struct chain_session *s, enum contract c);

struct chain_sent {
    struct tx_hash hash;
    bool mined; /* false only with --no-wait */
    struct rpc_receipt receipt;
};

/* Sends data from the named key and waits for success, unless --no-wait was given; the command has
 * CHAIN_SEND_OPTIONS, or s->must_wait is set. what: the action, for errors and the log
 * line
 * ("stake"). to NULL: deploys; the contract's address is out->receipt.contract.
 * ERR_CONFLICT: it reverts (nothing was sent), or was mined and reverted. ERR_PAYMENT: gas costs
 * more than chain.max_fee_per_gas. ERR_TIMEOUT: sent, but in no block after two minutes. Whenever
 * it was sent, or may have been, the sentence has the hash. */
int chain_send(struct chain_session *s, struct chain_sent *out, const char *what, const char *key,
               const struct address *to, const struct buf *data, struct err *err);

/* {"txHash","block","gasUsed"} merged into object (new keys). */
void chain_sent_to_json(const struct chain_sent *sent, json_t *object);

/* Prints the transaction: a line for people, or object (taken over) with its fields for --json. */
void chain_print_sent(const struct chain_session *s, const char *what,
                      const struct chain_sent *sent, json_t *object);

/* An amount from the command line: the smallest unit, or tokens as "12.5tok" (18 decimals). */
int amount_from_text(struct amount *out, const char *text, struct err *err);
/* A token amount for people: "12.5 tok". out [64]; returns out. */
char *amount_to_tokens(char *out, struct amount a);

/* 1 and the address that the option gives, 0 when it was not given, -1 with ERR_INVALID. */
int address_option(const struct cli_args *a, const char *option, struct address *out,
                   struct err *err);

#endif
