/* publisher: the outbox's other side. Sends what is sealed to the chain and follows it to the end.
 *
 * One thread, the only user of the ledger's struct rpc and of the signer key's nonces. It reads on
 * a connection of its own and writes through the ledger thread. */
#ifndef TRIBUTARY_ATTRIBUTION_PUBLISHER_H
#define TRIBUTARY_ATTRIBUTION_PUBLISHER_H

#include <stdbool.h>
#include <stdint.h>

struct err;
struct ledger;
struct publisher;

struct publisher *publisher_open(struct ledger *l, struct err *err);
/* Ends the round that runs and the thread; publisher_wake may still be called, and does nothing.
 * NULL is quiet, here and below. */
void publisher_stop(struct publisher *p);
void publisher_free(struct publisher *p);
void publisher_wake(struct publisher *p);

uint64_t publisher_silent_ms(struct publisher *p);         /* since the chain last answered */
bool publisher_is_stuck(struct publisher *p, uint64_t ms); /* a round takes longer than that */

/* Whether the contracts know vouchers or batches of this operator that the database doesn't: guard
 * 3 of attribution.h. -1 when the chain can't be asked. Called before the thread exists, too. */
int publisher_chain_remembers(struct ledger *l, bool *remembers, struct err *err);

/* One round of everything (for tests, which run it instead of the thread). */
int publisher_round(struct ledger *l, struct err *err);

#endif
