/* secmem: memory that nobody reads by accident. Inside the room; others see `struct secret` only
 * through wallet.h.
 *
 * A secret is made writable, filled, and sealed; from then on its page has no access rights except
 * between secret_reveal and secret_conceal, which every function that uses it must pair on every
 * path out. Reveals count, so that several threads may use one secret at once; the page goes dark
 * when the last of them conceals it. */
#ifndef TRIBUTARY_WALLET_SECMEM_H
#define TRIBUTARY_WALLET_SECMEM_H

#include "wallet/wallet.h"

#include <stddef.h>
#include <stdint.h>

/* Initialises libsodium, once; any thread. Called by everything here, and by those who use
 * libsodium without a secret. */
void secmem_init(void);

/* n >= 1 bytes, zeroed, readable and writable at *bytes until secret_seal. Never NULL: running out
 * of memory ends the program, as xmalloc does. */
struct secret *secret_create(size_t n, uint8_t **bytes);

/* As above with room for n bytes, of which only the first n_used count once sealed. */
void secret_seal_at(struct secret *s, size_t n_used);
void secret_seal(struct secret *s);

/* The bytes, readable until the matching secret_conceal; s must be sealed. */
const uint8_t *secret_reveal(const struct secret *s);
void secret_conceal(const struct secret *s);

#endif
