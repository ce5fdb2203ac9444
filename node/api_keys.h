/* api_keys: the operator's own customers.
 *
 * A text file, one customer a line: "NAME SHA256 [FIELD=VALUE]...", the name without spaces, the
 * hash of the key in 64 hexadecimal digits (printf %s KEY | sha256sum). Empty lines and lines that
 * begin with # are skipped. The node never stores a key; it hashes what comes and compares in
 * constant time. Fields, each at most once:
 *
 *   weight=2       share of the engine against other keys that want it, 0.001 to 1000; 1
 *   priority=10    -100 to 100; higher goes first, whatever the shares; 0. A request may ask for
 *                  less, never for more
 *   rps=5          requests a second, 0 to 1000000     ) instead of requests_per_second, burst,
 *   burst=50       1 to 1000000                        ) concurrent and tokens_per_minute of
 *   concurrent=8   0 to 1000000                        ) [limits]; 0: no limit
 *   tpm=100000     tokens a minute, 0 to 1000000000000 )                                        */
#ifndef TRIBUTARY_NODE_API_KEYS_H
#define TRIBUTARY_NODE_API_KEYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "node/admission.h"

struct api_keys;
struct err;

enum { API_KEYS_MAX = 100000, API_KEY_BYTES_MAX = 512 };

struct api_key {
    char *name;
    uint8_t sha256[32];
    uint64_t tag; /* first 8 bytes of the hash, big-endian; usage.key_tag */
    float weight;
    int32_t priority;
    struct admission_limits limits;
};

/* otherwise: the limits of keys whose line names none. Fails naming file, line and reason;
 * ERR_INVALID also when the file has no key. */
int api_keys_open(struct api_keys **out, const char *path, const struct admission_limits *otherwise,
                  struct err *err);
void api_keys_close(struct api_keys *k); /* quiet on NULL */

/* The customer of an Authorization header ("Bearer KEY"), or NULL. header may be NULL. */
const struct api_key *api_keys_find(const struct api_keys *k, const char *header);
size_t api_keys_count(const struct api_keys *k);

#endif
