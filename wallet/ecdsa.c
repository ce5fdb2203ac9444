/* ecdsa: see ecdsa.h.
 *
 * Problem. Ethereum signs with ECDSA over secp256k1. One repeated or biased nonce gives the key
 * away; a signature with s replaced by n - s is as valid and has another hash; a public key need
 * not be sent, since two bits of the nonce point's coordinates bring it back.
 *
 * Idea. libsecp256k1 does the arithmetic in constant time. We choose: nonces by RFC 6979, so that
 * no random generator can fail us and test vectors can be compared byte by byte; s always in the
 * lower half, made so and insisted upon (the library's verify insists, its recover does not, so we
 * ask); recovery bits 0 and 1 only, as Ethereum has no others (2 and 3 mean that r wrapped around
 * the group order, which happens once in 2^127).
 *
 * One context serves the whole process. It is blinded once, before first use, with fresh
 * randomness against side channels, and only read after that, which makes it safe to share.
 *
 * After a private key went through the library, the stack below us is wiped as far as it reached:
 * libsecp256k1 0.2 clears its own scalars in a way that compilers may leave out.
 *
 * A wrong argument to the library is our bug: its callback ends the program.
 *
 * Sources: SEC 1, 4.1; RFC 6979; EIP-2 (low s); Yellow Paper, appendix F (address, recovery). */
#include "wallet/ecdsa.h"

#include "wallet/secmem.h"

#include "chain/keccak.h"
#include "node/base/digest.h"
#include "node/base/err.h"

#include <pthread.h>
#include <secp256k1.h>
#include <secp256k1_recovery.h>
#include <sodium.h>
#include <string.h>

/* The library goes 1.9 KiB deep when it signs (0.2.0, measured by painting a stack). */
enum { LIBRARY_STACK_BYTES = 16 * 1024 };

static secp256k1_context *context;

static void on_illegal_argument(const char *message, void *unused)
{
    (void)unused;
    BUG("libsecp256k1: %s", message);
}

static void context_make(void)
{
    secmem_init();
    context = secp256k1_context_create(SECP256K1_CONTEXT_SIGN | SECP256K1_CONTEXT_VERIFY);
    secp256k1_context_set_illegal_callback(context, on_illegal_argument, NULL);
    uint8_t seed[32];
    randombytes_buf(seed, sizeof seed);
    BUG_IF(secp256k1_context_randomize(context, seed) != 1);
    sodium_memzero(seed, sizeof seed);
}

static const secp256k1_context *ctx(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, context_make);
    return context;
}

/* ---- signatures ------------------------------------------------------------------------------ */

int ecdsa_sign(struct ecdsa_signature *out, const uint8_t digest[32], const struct secret *key,
               struct err *err)
{
    BUG_IF(secret_len(key) != ECDSA_PRIVATE_BYTES);
    secp256k1_ecdsa_recoverable_signature sig;
    const secp256k1_context *c = ctx();
    int ok = secp256k1_ecdsa_sign_recoverable(c, &sig, digest, secret_reveal(key),
                                              secp256k1_nonce_function_rfc6979, NULL);
    secret_conceal(key);
    sodium_stackzero(LIBRARY_STACK_BYTES);
    if (!ok)
        return err_set(err, ERR_INVALID, "signing: the private key is out of range");
    uint8_t compact[64];
    int recovery = -1;
    secp256k1_ecdsa_recoverable_signature_serialize_compact(c, compact, &recovery, &sig);
    if (recovery != 0 && recovery != 1)
        return err_set(err, ERR_INTERNAL, "signing: r wrapped around (once in 2^127)");
    memcpy(out->r, compact, 32);
    memcpy(out->s, compact + 32, 32);
    out->recovery = (uint8_t)recovery;
    return 0;
}

/* r || s, parsed: 0 and in range, or -1. Low s is for the caller to see to. */
static int parse_compact(secp256k1_ecdsa_signature *out, const struct ecdsa_signature *sig)
{
    uint8_t compact[64];
    memcpy(compact, sig->r, 32);
    memcpy(compact + 32, sig->s, 32);
    return secp256k1_ecdsa_signature_parse_compact(ctx(), out, compact) == 1 ? 0 : -1;
}

int ecdsa_recover(uint8_t public_key[ECDSA_PUBLIC_BYTES], const struct ecdsa_signature *sig,
                  const uint8_t digest[32], struct err *err)
{
    const secp256k1_context *c = ctx();
    secp256k1_ecdsa_signature plain;
    if (sig->recovery > 1)
        return err_set(err, ERR_UNAUTHORIZED, "signature: recovery bit %u is neither 0 nor 1",
                       sig->recovery);
    if (bytes32_is_zero(sig->r) || bytes32_is_zero(sig->s) || parse_compact(&plain, sig) != 0)
        return err_set(err, ERR_UNAUTHORIZED, "signature: r or s is out of range");
    if (secp256k1_ecdsa_signature_normalize(c, NULL, &plain))
        return err_set(err, ERR_UNAUTHORIZED,
                       "signature: s is in the upper half of the group order (EIP-2)");

    uint8_t compact[64];
    memcpy(compact, sig->r, 32);
    memcpy(compact + 32, sig->s, 32);
    secp256k1_ecdsa_recoverable_signature recoverable;
    secp256k1_pubkey point;
    if (secp256k1_ecdsa_recoverable_signature_parse_compact(c, &recoverable, compact,
                                                            sig->recovery) != 1 ||
        secp256k1_ecdsa_recover(c, &point, &recoverable, digest) != 1)
        return err_set(err, ERR_UNAUTHORIZED, "signature: no public key can have made it");
    size_t n = ECDSA_PUBLIC_BYTES;
    secp256k1_ec_pubkey_serialize(c, public_key, &n, &point, SECP256K1_EC_UNCOMPRESSED);
    return 0;
}

bool ecdsa_verify(const uint8_t *public_key, size_t n, const struct ecdsa_signature *sig,
                  const uint8_t digest[32])
{
    secp256k1_ecdsa_signature plain;
    secp256k1_pubkey point;
    return secp256k1_ec_pubkey_parse(ctx(), &point, public_key, n) == 1 &&
           parse_compact(&plain, sig) == 0 &&
           secp256k1_ecdsa_verify(ctx(), &plain, digest, &point) == 1;
}

int ecdsa_signature_from_der(struct ecdsa_signature *out, const uint8_t *der, size_t n,
                             struct err *err)
{
    secp256k1_ecdsa_signature plain;
    uint8_t compact[64];
    if (secp256k1_ecdsa_signature_parse_der(ctx(), &plain, der, n) != 1)
        return err_set(err, ERR_INVALID, "signature: %zu bytes that are not strict DER", n);
    secp256k1_ecdsa_signature_serialize_compact(ctx(), compact, &plain);
    memcpy(out->r, compact, 32);
    memcpy(out->s, compact + 32, 32);
    out->recovery = 0;
    return 0;
}

/* ---- keys ------------------------------------------------------------------------------------ */

struct secret *ecdsa_private_key_random(void)
{
    uint8_t *bytes;
    struct secret *key = secret_create(ECDSA_PRIVATE_BYTES, &bytes);
    do {
        randombytes_buf(bytes, ECDSA_PRIVATE_BYTES);
    } while (!ecdsa_private_key_ok(bytes)); /* again, once in 2^127 */
    secret_seal(key);
    return key;
}

bool ecdsa_private_key_ok(const uint8_t key[ECDSA_PRIVATE_BYTES])
{
    bool ok = secp256k1_ec_seckey_verify(ctx(), key) == 1;
    sodium_stackzero(LIBRARY_STACK_BYTES);
    return ok;
}

bool ecdsa_public_key_ok(const uint8_t *public_key, size_t n)
{
    secp256k1_pubkey point;
    return secp256k1_ec_pubkey_parse(ctx(), &point, public_key, n) == 1;
}

static int public_key_as(uint8_t *out, size_t n, unsigned form,
                         const uint8_t key[ECDSA_PRIVATE_BYTES], struct err *err)
{
    secp256k1_pubkey point;
    int ok = secp256k1_ec_pubkey_create(ctx(), &point, key);
    sodium_stackzero(LIBRARY_STACK_BYTES);
    if (!ok)
        return err_set(err, ERR_INVALID, "the private key is zero or beyond the group order");
    secp256k1_ec_pubkey_serialize(ctx(), out, &n, &point, form);
    return 0;
}

int ecdsa_public_key(uint8_t out[ECDSA_PUBLIC_BYTES], const uint8_t key[ECDSA_PRIVATE_BYTES],
                     struct err *err)
{
    return public_key_as(out, ECDSA_PUBLIC_BYTES, SECP256K1_EC_UNCOMPRESSED, key, err);
}

int ecdsa_public_key_compressed(uint8_t out[ECDSA_COMPRESSED_BYTES],
                                const uint8_t key[ECDSA_PRIVATE_BYTES], struct err *err)
{
    return public_key_as(out, ECDSA_COMPRESSED_BYTES, SECP256K1_EC_COMPRESSED, key, err);
}

int ecdsa_private_key_add(uint8_t key[ECDSA_PRIVATE_BYTES], const uint8_t tweak[32],
                          struct err *err)
{
    int ok = secp256k1_ec_seckey_tweak_add(ctx(), key, tweak);
    sodium_stackzero(LIBRARY_STACK_BYTES);
    if (!ok) {
        sodium_memzero(key, ECDSA_PRIVATE_BYTES);
        return err_set(err, ERR_INVALID, "the derived private key is out of range");
    }
    return 0;
}

void ecdsa_address(uint8_t out[ECDSA_ADDRESS_BYTES], const uint8_t public_key[ECDSA_PUBLIC_BYTES])
{
    struct keccak_digest hash = keccak256(public_key + 1, ECDSA_PUBLIC_BYTES - 1);
    memcpy(out, hash.bytes + 12, ECDSA_ADDRESS_BYTES);
}
