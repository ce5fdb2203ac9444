/* base58: see base58.h.
 *
 * Base58Check is the number payload || checksum (4 bytes, the first of sha256(sha256(payload))) in
 * base 58, most significant digit first, in an alphabet without 0, O, I and l; each leading zero
 * byte becomes a leading '1'. Encoding is the school's long division, quadratic in a length that
 * is bounded here at 100 bytes.
 *
 * Source: BIP-32, "Serialization format"; Bitcoin's Base58Check. */
#include "wallet/base58.h"

#include "wallet/secmem.h"

#include "node/base/err.h"

#include <sodium.h>
#include <string.h>

enum {
    CHECKSUM_BYTES = 4,
    WHOLE_MAX_BYTES = BASE58_PAYLOAD_MAX_BYTES + CHECKSUM_BYTES,
};

static const char alphabet[] = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

static void checksum(uint8_t out[CHECKSUM_BYTES], const uint8_t *payload, size_t n)
{
    uint8_t hash[crypto_hash_sha256_BYTES];
    crypto_hash_sha256(hash, payload, n);
    crypto_hash_sha256(hash, hash, sizeof hash);
    memcpy(out, hash, CHECKSUM_BYTES);
}

size_t base58check_encode(char text[BASE58_TEXT_MAX_BYTES], const uint8_t *payload, size_t n)
{
    BUG_IF(n > BASE58_PAYLOAD_MAX_BYTES);
    uint8_t whole[WHOLE_MAX_BYTES];
    memcpy(whole, payload, n);
    checksum(whole + n, payload, n);
    const size_t n_whole = n + CHECKSUM_BYTES;

    uint8_t digits[BASE58_TEXT_MAX_BYTES] = {0}; /* base 58, least significant first */
    size_t n_digits = 0, n_ones = 0;
    while (n_ones < n_whole && whole[n_ones] == 0)
        n_ones++;
    for (size_t i = n_ones; i < n_whole; i++) {
        unsigned carry = whole[i];
        for (size_t d = 0; d < n_digits || carry != 0; d++) {
            BUG_IF(d >= sizeof digits);
            carry += (unsigned)digits[d] << 8;
            digits[d] = (uint8_t)(carry % 58);
            carry /= 58;
            if (d == n_digits)
                n_digits++;
        }
    }
    BUG_IF(n_ones + n_digits >= BASE58_TEXT_MAX_BYTES);
    memset(text, alphabet[0], n_ones);
    for (size_t d = 0; d < n_digits; d++)
        text[n_ones + d] = alphabet[digits[n_digits - 1 - d]];
    text[n_ones + n_digits] = '\0';
    sodium_memzero(whole, sizeof whole);
    sodium_memzero(digits, sizeof digits);
    return n_ones + n_digits;
}

int base58check_decode(uint8_t *payload, size_t n, const char *text, size_t text_len,
                       struct err *err)
{
    BUG_IF(n > BASE58_PAYLOAD_MAX_BYTES);
    const size_t n_whole = n + CHECKSUM_BYTES;
    uint8_t whole[WHOLE_MAX_BYTES] = {0}; /* [n_whole], most significant first */
    uint8_t sum[CHECKSUM_BYTES];
    int rc = 0;
    if (text_len == 0 || text_len >= BASE58_TEXT_MAX_BYTES)
        rc = err_set(err, ERR_INVALID, "Base58: %zu characters is not the expected length",
                     text_len);
    for (size_t i = 0; rc == 0 && i < text_len; i++) {
        const char *at = text[i] == '\0' ? NULL : strchr(alphabet, text[i]);
        if (at == NULL) {
            rc = err_set(err, ERR_INVALID, "Base58: character %zu is not of its alphabet", i + 1);
            break;
        }
        unsigned carry = (unsigned)(at - alphabet);
        for (size_t b = n_whole; b-- > 0;) {
            carry += 58u * whole[b];
            whole[b] = (uint8_t)carry;
            carry >>= 8;
        }
        if (carry != 0)
            rc = err_set(err, ERR_INVALID, "Base58: more than %zu bytes", n);
    }
    /* One form for one payload: as many leading '1' as leading zero bytes. */
    size_t n_ones = 0, n_zeros = 0;
    while (n_ones < text_len && text[n_ones] == alphabet[0])
        n_ones++;
    while (n_zeros < n_whole && whole[n_zeros] == 0)
        n_zeros++;
    if (rc == 0 && n_ones != n_zeros)
        rc = err_set(err, ERR_INVALID, "Base58: not %zu bytes long", n);
    checksum(sum, whole, n);
    if (rc == 0 && sodium_memcmp(sum, whole + n, sizeof sum) != 0)
        rc = err_set(err, ERR_INVALID, "Base58: wrong checksum");
    memset(payload, 0, n);
    if (rc == 0)
        memcpy(payload, whole, n);
    sodium_memzero(whole, sizeof whole);
    return rc;
}
