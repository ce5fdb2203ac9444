/* keystore: one private key as 204 bytes that open with a passphrase. Inside the room.
 *
 * Pure functions between bytes and keys; files are keyfile.h's affair. Any thread. */
#ifndef TRIBUTARY_WALLET_KEYSTORE_H
#define TRIBUTARY_WALLET_KEYSTORE_H

#include "wallet/wallet.h"

enum {
    KEYSTORE_BYTES = 204,
    /* What a file may ask of the machine that opens it. The defaults are RFC 9106's second
     * recommendation, section 4; the limits keep a forged header from stalling a node. */
    KEYSTORE_PASSES_DEFAULT = 3,
    KEYSTORE_PASSES_MAX = 16,
    KEYSTORE_MEMORY_KIB_DEFAULT = 64 * 1024,
    KEYSTORE_MEMORY_KIB_MIN = 8, /* libsodium's least */
    KEYSTORE_MEMORY_KIB_MAX = 1024 * 1024,
};

struct keystore_header {
    uint32_t kdf_passes, kdf_memory_kib;
    char name[WALLET_NAME_BYTES];
    uint8_t address[20];
    uint64_t created_unix_s;
};

/* [a-z0-9][a-z0-9_-]{0,30}: safe as a file's name anywhere. */
bool keystore_name_ok(const char *name);

/* Encrypts the 32-byte key. All of *header but its address is the caller's; the address is filled
 * in from the key. ERR_INVALID: name or cost out of range, key out of range; ERR_NO_MEMORY. */
int keystore_encrypt(uint8_t file[KEYSTORE_BYTES], struct keystore_header *header,
                     const struct secret *key, const struct secret *passphrase, struct err *err);

/* Reads the header of n bytes without a passphrase. ERR_CORRUPT: not a key file, damaged (checksum)
 * or beyond the limits above; ERR_UNSUPPORTED: another version. */
int keystore_parse(struct keystore_header *out, const uint8_t *file, size_t n, struct err *err);

/* Opens it. As keystore_parse, and ERR_UNAUTHORIZED: the passphrase does not fit, or bytes were
 * altered together with the checksum; ERR_NO_MEMORY. *header may be NULL. */
struct secret *keystore_decrypt(const uint8_t *file, size_t n, const struct secret *passphrase,
                                struct keystore_header *header, struct err *err);

#endif
