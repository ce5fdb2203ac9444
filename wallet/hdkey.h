/* hdkey: a tree of keys from one seed (BIP-32), and Ethereum's place in it (BIP-44). Inside the
 * room; any thread.
 *
 * A private node is secret as a whole: whoever has a child's private key and its parent's chain
 * code and public key has the parent. So nodes live in guarded memory, as a sealed `struct secret`
 * of HDKEY_BYTES, in the very layout that BIP-32 serialises:
 *
 *     offset  size
 *          0     4   version: 04 88 AD E4 private ("xprv"), 04 88 B2 1E public ("xpub")
 *          4     1   depth: 0 for the master
 *          5     4   fingerprint: first 4 bytes of hash160 of the parent's public key; 0: master
 *          9     4   index of this child, big-endian; 2^31 and above: hardened
 *         13    32   chain code
 *         45    33   00 || private key, or the compressed public key
 *         78 */
#ifndef TRIBUTARY_WALLET_HDKEY_H
#define TRIBUTARY_WALLET_HDKEY_H

#include "wallet/base58.h"
#include "wallet/wallet.h"

enum {
    HDKEY_BYTES = 78,
    HDKEY_PATH_DEPTH_MAX = 16, /* longer paths are a mistake rather than a wish */
};
#define HDKEY_HARDENED 0x80000000u

/* Ethereum's first account: BIP-44, coin type 60 (SLIP-44). */
#define HDKEY_PATH_ETHEREUM "m/44'/60'/0'/0/0"

/* The master node of a seed of 16 to 64 bytes. ERR_INVALID for another length, or for the one seed
 * in 2^127 that has no master. */
struct secret *hdkey_master(const struct secret *seed, struct err *err);

/* Child `index` of a private node. ERR_INVALID at depth 255, or for the one index in 2^127 that has
 * no child (take the next). */
struct secret *hdkey_child(const struct secret *node, uint32_t index, struct err *err);

/* The node at path, below master: "m", "m/44'/60'/0'/0/0"; hardened as 0', 0h or 0H. */
struct secret *hdkey_derive(const struct secret *master, const char *path, struct err *err);

unsigned hdkey_depth(const struct secret *node);

/* The 32-byte private key of a node. */
struct secret *hdkey_private_key(const struct secret *node);

/* The node as "xprv..." (secret, sealed, without NUL), and its public half as "xpub...". */
struct secret *hdkey_xprv(const struct secret *node);
int hdkey_xpub(char text[BASE58_TEXT_MAX_BYTES], const struct secret *node, struct err *err);

/* Checks and reads "xprv...": ERR_INVALID for everything BIP-32 lists (test vector 5): checksum,
 * version, key out of range, a key that is none, depth 0 with a parent or an index. */
struct secret *hdkey_from_xprv(const struct secret *text, struct err *err);

/* The same checks for "xpub...", into its HDKEY_BYTES. */
int hdkey_from_xpub(uint8_t out[HDKEY_BYTES], const char *text, struct err *err);

#endif
