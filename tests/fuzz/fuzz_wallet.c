/* What the wallet reads from files that others may have written: key files, keystores of version 3,
 * mnemonics, extended keys, DER signatures. What is accepted must be what would be written. */
#include "node/base/err.h"
#include "wallet/ecdsa.h"
#include "wallet/hdkey.h"
#include "wallet/keystore.h"
#include "wallet/keystore_v3.h"
#include "wallet/mnemonic.h"
#include "wallet/secmem.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void key_file(const uint8_t *data, size_t n)
{
    struct keystore_header h;
    secmem_init();
    if (keystore_parse(&h, data, n, NULL) != 0)
        return;
    BUG_IF(n != KEYSTORE_BYTES || !keystore_name_ok(h.name));
    BUG_IF(h.kdf_passes > KEYSTORE_PASSES_MAX || h.kdf_memory_kib > KEYSTORE_MEMORY_KIB_MAX);
}

static void expect_equal(struct secret *a, const struct secret *b)
{
    size_t n = secret_len(b);
    BUG_IF(secret_len(a) != n || memcmp(secret_reveal(a), secret_reveal(b), n) != 0);
    secret_conceal(a);
    secret_conceal(b);
    secret_free(a);
}

static void mnemonic(const struct secret *text)
{
    struct secret *entropy = mnemonic_entropy(text, NULL);
    if (entropy == NULL)
        return;
    struct secret *phrase = mnemonic_from_entropy(entropy, NULL);
    expect_equal(mnemonic_entropy(phrase, NULL), entropy);
    secret_free(phrase);
    secret_free(entropy);
}

static void extended_key(const struct secret *text, const char *as_string)
{
    uint8_t public_node[HDKEY_BYTES];
    char again[BASE58_TEXT_MAX_BYTES];
    struct secret *node = hdkey_from_xprv(text, NULL);
    if (node != NULL)
        expect_equal(hdkey_xprv(node), text);
    secret_free(node);
    if (hdkey_from_xpub(public_node, as_string, NULL) == 0) {
        base58check_encode(again, public_node, HDKEY_BYTES);
        BUG_IF(strcmp(again, as_string) != 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct ecdsa_signature sig;
    if (n == 0 || n > WALLET_SECRET_MAX_BYTES)
        return 0;
    key_file(data, n);
    struct secret *text = secret_from_bytes(data, n);
    keystore_v3_check(text, NULL);
    wallet_material(text);
    mnemonic(text);
    char as_string[256];
    size_t n_string = n < sizeof as_string - 1 ? n : sizeof as_string - 1;
    memcpy(as_string, data, n_string);
    as_string[n_string] = '\0';
    extended_key(text, as_string);
    secret_free(text);
    ecdsa_signature_from_der(&sig, data, n, NULL);
    return 0;
}
