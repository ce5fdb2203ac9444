/* digest: 32-byte identities that look alike and must not be mixed up.
 *
 * Each gets its own one-field struct, so that the compiler refuses to pass one for another. */
#ifndef TRIBUTARY_BASE_DIGEST_H
#define TRIBUTARY_BASE_DIGEST_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct sha256_digest { /* of a file, a manifest, a request body, a response */
    uint8_t bytes[32];
};

struct content_digest { /* sha256 over all files of an adapter: what caches are keyed by */
    uint8_t bytes[32];
};

struct adapter_id { /* keccak256(abi.encode(chainid, registry, creator, modelId, manifestHash)) */
    uint8_t bytes[32];
};

struct model_id { /* sha256 over config.json and the digests of all weight files */
    uint8_t bytes[32];
};

/* Equality and emptiness for any of the structs above: DIGEST_EQ(a, b) takes two lvalues of the
 * same type. Public values: not constant-time. */
#define DIGEST_EQ(a, b) (sizeof(a) == sizeof(b) && memcmp((a).bytes, (b).bytes, sizeof(a)) == 0)

static inline bool bytes32_is_zero(const uint8_t bytes[32])
{
    uint8_t any = 0;
    for (int i = 0; i < 32; i++)
        any |= bytes[i];
    return any == 0;
}

#endif
