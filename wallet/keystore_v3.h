/* keystore_v3: Ethereum's "Web3 Secret Storage", version 3, in and out. Inside the room; any
 * thread. */
#ifndef TRIBUTARY_WALLET_KEYSTORE_V3_H
#define TRIBUTARY_WALLET_KEYSTORE_V3_H

#include "wallet/wallet.h"

/* n of a new file's scrypt, geth's standard: 256 MiB and about a second. */
#define KEYSTORE_V3_SCRYPT_N ((uint64_t)1 << 18)

/* Is this a v3 file that could be opened? All that can be said without its passphrase: each error
 * of keystore_v3_decrypt but ERR_UNAUTHORIZED, ERR_CORRUPT and scrypt's ERR_TOO_LARGE. */
int keystore_v3_check(const struct secret *json, struct err *err);

/* Opens a v3 file. ERR_INVALID: not JSON, or a field missing or malformed (named);
 * ERR_UNSUPPORTED: presale ("crowdsale") wallets, other versions, ciphers and key derivations, by
 * name; ERR_TOO_LARGE: a cost beyond legacy.h's limits; ERR_UNAUTHORIZED: the passphrase does not
 * fit; ERR_CORRUPT: it does, but the key is not the address's. */
struct secret *keystore_v3_decrypt(const struct secret *json, const struct secret *passphrase,
                                   struct err *err);

/* Appends a v3 file (JSON, one line and a line feed) with scrypt of cost n (a power of two), r = 8,
 * p = 1. */
int keystore_v3_encrypt(struct buf *json, const struct secret *key, const struct secret *passphrase,
                        uint64_t scrypt_n, struct err *err);

#endif
