/* base58: Base58Check, how BIP-32 writes extended keys. Inside the room; any thread. */
#ifndef TRIBUTARY_WALLET_BASE58_H
#define TRIBUTARY_WALLET_BASE58_H

#include <stddef.h>
#include <stdint.h>

struct err;

enum {
    BASE58_PAYLOAD_MAX_BYTES = 96,
    BASE58_TEXT_MAX_BYTES = 139, /* (96 + 4) * log(256) / log(58), rounded up, and a NUL */
};

/* Writes payload [n <= BASE58_PAYLOAD_MAX_BYTES] and its checksum as text, with a NUL. Returns the
 * length without it. Wipes its scratch space: the payload may be secret. */
size_t base58check_encode(char text[BASE58_TEXT_MAX_BYTES], const uint8_t *payload, size_t n);

/* The inverse for exactly n bytes of payload. text [text_len] need not end in a NUL. ERR_INVALID:
 * a character outside the alphabet, another length, a wrong checksum; payload is zeroed then. */
int base58check_decode(uint8_t *payload, size_t n, const char *text, size_t text_len,
                       struct err *err);

#endif
