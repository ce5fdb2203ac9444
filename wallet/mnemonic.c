/* mnemonic: see mnemonic.h.
 *
 * Problem. People copy words better than digits. BIP-39 writes entropy as words so that a slip of
 * the pen is noticed, and stretches the words into a seed.
 *
 * Format. ENT bits of entropy, then the first ENT / 32 bits of their sha256; cut into groups of 11
 * bits, most significant first, each the number of a word:
 *
 *     words        12    15    18    21    24
 *     ENT         128   160   192   224   256
 *     checksum      4     5     6     7     8      bits, so never beyond the first hash byte
 *
 *     |<------------------ ENT ------------------>|<-CS->|
 *     | word 0: 11 bits | word 1 | ...     | last word   |
 *
 *     seed = PBKDF2-HMAC-SHA512(password = NFKD(phrase), salt = "mnemonic" + NFKD(passphrase),
 *                               2,048 iterations, 64 bytes)
 *
 * Everything between entropy and seed stays in guarded memory, Unicode's scratch space included.
 *
 * Source: BIP-39; Unicode Standard Annex 15 (NFKD), by utf8proc. */
#include "wallet/mnemonic.h"

#include "wallet/legacy.h"
#include "wallet/secmem.h"

#include "node/base/err.h"

#include <sodium.h>
#include <string.h>
#include <utf8proc.h>

enum {
    WORD_BITS = 11,
    ENTROPY_BYTES_PER_CHECKSUM_BIT = 4, /* CS = ENT / 32 */
    SEED_ITERATIONS = 2048,
};

/* ---- entropy to words ------------------------------------------------------------------------ */

static bool entropy_length_ok(size_t n_bytes)
{
    return n_bytes >= 16 && n_bytes <= BIP39_ENTROPY_MAX_BYTES && n_bytes % 4 == 0;
}

struct secret *mnemonic_from_entropy(const struct secret *entropy, struct err *err)
{
    size_t n = secret_len(entropy);
    if (!entropy_length_ok(n)) {
        err_set(err, ERR_INVALID, "mnemonic: %zu bytes of entropy; 16, 20, 24, 28 or 32 work", n);
        return NULL;
    }
    uint8_t *bits; /* entropy and its first hash byte */
    struct secret *padded = secret_create(n + crypto_hash_sha256_BYTES, &bits);
    memcpy(bits, secret_reveal(entropy), n);
    secret_conceal(entropy);
    crypto_hash_sha256(bits + n, bits, n);

    uint8_t *text;
    struct secret *phrase = secret_create(BIP39_PHRASE_WORDS_MAX * BIP39_WORD_BYTES, &text);
    size_t n_bits = n * 8 + n / ENTROPY_BYTES_PER_CHECKSUM_BIT, len = 0;
    for (size_t at = 0; at < n_bits; at += WORD_BITS) {
        unsigned index = 0;
        for (size_t b = at; b < at + WORD_BITS; b++)
            index = index << 1 | ((unsigned)bits[b / 8] >> (7 - b % 8) & 1);
        if (at > 0)
            text[len++] = ' ';
        size_t word_len = strlen(bip39_english[index]);
        memcpy(text + len, bip39_english[index], word_len);
        len += word_len;
    }
    secret_seal_at(phrase, len);
    secret_free(padded);
    return phrase;
}

struct secret *mnemonic_generate(unsigned n_words, struct err *err)
{
    if (n_words < 12 || n_words > BIP39_PHRASE_WORDS_MAX || n_words % 3 != 0) {
        err_set(err, ERR_INVALID, "mnemonic: %u words; 12, 15, 18, 21 or 24 work", n_words);
        return NULL;
    }
    uint8_t *bytes;
    size_t n = (size_t)n_words / 3 * 4;
    struct secret *entropy = secret_create(n, &bytes);
    randombytes_buf(bytes, n);
    secret_seal(entropy);
    struct secret *phrase = mnemonic_from_entropy(entropy, err);
    secret_free(entropy);
    return phrase;
}

/* ---- words to entropy ------------------------------------------------------------------------ */

static bool is_space(uint8_t c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_letter(uint8_t c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* The number of the word text [n], any case, or -1. */
static int word_index(const uint8_t *text, size_t n)
{
    char word[BIP39_WORD_BYTES] = {0};
    int found = -1;
    if (n < sizeof word) {
        for (size_t i = 0; i < n; i++)
            word[i] = (char)(text[i] | 0x20);
        int low = 0, high = BIP39_WORDS - 1;
        while (low <= high && found < 0) {
            int middle = (low + high) / 2, order = memcmp(word, bip39_english[middle], sizeof word);
            if (order == 0)
                found = middle;
            else if (order < 0)
                high = middle - 1;
            else
                low = middle + 1;
        }
    }
    sodium_memzero(word, sizeof word);
    return found;
}

/* Reads the words of text [n] as bits; returns their number, or -1. */
static int words_to_bits(uint8_t bits[BIP39_PHRASE_WORDS_MAX * WORD_BITS / 8], const uint8_t *text,
                         size_t n, struct err *err)
{
    int n_words = 0;
    for (size_t at = 0; at < n;) {
        if (is_space(text[at])) {
            at++;
            continue;
        }
        size_t end = at;
        while (end < n && !is_space(text[end]))
            end++;
        if (n_words == BIP39_PHRASE_WORDS_MAX)
            return err_set(err, ERR_INVALID, "mnemonic: more than %d words",
                           BIP39_PHRASE_WORDS_MAX);
        int index = word_index(text + at, end - at);
        if (index < 0)
            return err_set(err, ERR_INVALID, "mnemonic: word %d is not in BIP-39's English list",
                           n_words + 1);
        for (int b = 0; b < WORD_BITS; b++) {
            int to = n_words * WORD_BITS + b;
            bits[to / 8] |= (uint8_t)((index >> (WORD_BITS - 1 - b) & 1) << (7 - to % 8));
        }
        n_words++;
        at = end;
    }
    return n_words;
}

struct secret *mnemonic_entropy(const struct secret *typed, struct err *err)
{
    uint8_t *bits, *hash;
    struct secret *scratch = secret_create(
        BIP39_PHRASE_WORDS_MAX * WORD_BITS / 8 + crypto_hash_sha256_BYTES, &bits);
    hash = bits + BIP39_PHRASE_WORDS_MAX * WORD_BITS / 8;
    struct secret *entropy = NULL;
    int n_words = words_to_bits(bits, secret_reveal(typed), secret_len(typed), err);
    secret_conceal(typed);
    if (n_words < 0)
        goto done;
    if (n_words < 12 || n_words % 3 != 0) {
        err_set(err, ERR_INVALID, "mnemonic: %d words; 12, 15, 18, 21 or 24 work", n_words);
        goto done;
    }
    size_t n = (size_t)n_words / 3 * 4;
    crypto_hash_sha256(hash, bits, n);
    unsigned checksum_bits = (unsigned)n / ENTROPY_BYTES_PER_CHECKSUM_BIT;
    uint8_t mask = (uint8_t)(0xff << (8 - checksum_bits));
    if (((bits[n] ^ hash[0]) & mask) != 0) {
        err_set(err, ERR_INVALID,
                "mnemonic: the %d words are all known but their checksum is wrong: one of them is "
                "not the right one, or two changed places",
                n_words);
        goto done;
    }
    entropy = secret_from_bytes(bits, n);
done:
    secret_free(scratch);
    return entropy;
}

bool mnemonic_looks_like_one(const struct secret *text)
{
    const uint8_t *p = secret_reveal(text);
    size_t n = secret_len(text), n_words = 0;
    bool in_word = false, only_letters = true;
    for (size_t i = 0; i < n; i++) {
        only_letters = only_letters && (is_letter(p[i]) || is_space(p[i]));
        n_words += is_letter(p[i]) && !in_word;
        in_word = is_letter(p[i]);
    }
    secret_conceal(text);
    return only_letters && n_words >= 2;
}

/* ---- words to seed --------------------------------------------------------------------------- */

/* prefix and then NFKD(text), text NULL being empty. */
static struct secret *nfkd(const char *prefix, const struct secret *text, struct err *err)
{
    const size_t n_prefix = strlen(prefix), n = text == NULL ? 0 : secret_len(text);
    struct secret *out = NULL, *scratch = NULL;
    const uint8_t *in = n == 0 ? (const uint8_t *)"" : secret_reveal(text);
    const utf8proc_option_t how = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT;

    /* First asked for the length, then for the code points. */
    utf8proc_ssize_t n_points = utf8proc_decompose(in, (utf8proc_ssize_t)n, NULL, 0, how);
    if (n_points < 0) {
        err_set(err, ERR_INVALID, "the mnemonic or its passphrase is not valid UTF-8");
        goto done;
    }
    uint8_t *points_bytes, *bytes;
    size_t cap = (size_t)n_points;
    scratch = secret_create((cap + 1) * sizeof(utf8proc_int32_t), &points_bytes);
    /* A guarded block ends where a page ends: a size in whole code points is aligned for them. */
    utf8proc_int32_t *points = (utf8proc_int32_t *)(void *)points_bytes;
    BUG_IF(utf8proc_decompose(in, (utf8proc_ssize_t)n, points, n_points, how) != n_points);
    out = secret_create(n_prefix + cap * 4 + 1, &bytes);
    memcpy(bytes, prefix, n_prefix);
    size_t len = n_prefix;
    for (size_t i = 0; i < cap; i++)
        len += (size_t)utf8proc_encode_char(points[i], bytes + len);
    secret_seal_at(out, len);
done:
    if (n > 0)
        secret_conceal(text);
    secret_free(scratch);
    return out;
}

struct secret *mnemonic_seed(const struct secret *phrase, const struct secret *passphrase,
                             struct err *err)
{
    struct secret *seed = NULL, *password = NULL, *salt = NULL;
    password = nfkd("", phrase, err);
    salt = password == NULL ? NULL : nfkd("mnemonic", passphrase, err);
    if (salt != NULL) {
        uint8_t *bytes;
        seed = secret_create(BIP39_SEED_BYTES, &bytes);
        int rc = legacy_pbkdf2(bytes, BIP39_SEED_BYTES, LEGACY_SHA512, secret_reveal(password),
                               secret_len(password), secret_reveal(salt), secret_len(salt),
                               SEED_ITERATIONS, err);
        secret_conceal(password);
        secret_conceal(salt);
        secret_seal(seed);
        if (rc != 0) {
            secret_free(seed);
            seed = NULL;
        }
    }
    secret_free(password);
    secret_free(salt);
    return seed;
}
