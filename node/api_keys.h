/* api_keys: the operator's own customers.
 *
 * A text file, one customer a line: "NAME SHA256", the name without spaces, the hash of the key in
 * 64 hexadecimal digits (printf %s KEY | sha256sum). Empty lines and lines that begin with # are
 * skipped. The node never stores a key; it hashes what comes and compares in constant time. */
#ifndef TRIBUTARY_NODE_API_KEYS_H
#define TRIBUTARY_NODE_API_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct api_keys;
struct err;

enum { API_KEYS_MAX = 100000, API_KEY_BYTES_MAX = 512 };

struct api_key {
    char *name;
    uint8_t sha256[32];
    uint64_t tag; /* first 8 bytes of the hash, big-endian; usage.key_tag */
};

/* Fails naming file, line and reason; ERR_INVALID also when the file has no key. */
int api_keys_open(struct api_keys **out, const char *path, struct err *err);
void api_keys_close(struct api_keys *k); /* quiet on NULL */

/* The customer of an Authorization header ("Bearer KEY"), or NULL. header may be NULL. */
const struct api_key *api_keys_find(const struct api_keys *k, const char *header);
size_t api_keys_count(const struct api_keys *k);

#endif
