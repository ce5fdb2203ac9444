/* ecdsa against Wycheproof (463 signatures, low s), ethers (259 accounts) and ethereum/tests (2
 * keys).
 *
 * Wycheproof's ECDH vectors: the wallet has no ECDH, so shared secrets are not computed; but their
 * public keys, on the curve and off it, are what ecdsa_public_key_ok must tell apart. */
#include "tests/unit/wallet/vector.h"

#include "chain/keccak.h"
#include "chain/types.h"
#include "node/base/sha256.h"
#include "wallet/ecdsa.h"

#include <pthread.h>

/* Some public key that recovers from sig over digest under either bit equals public_key? */
static bool recovers(const struct ecdsa_signature *sig, const uint8_t digest[32],
                     const uint8_t public_key[ECDSA_PUBLIC_BYTES])
{
    bool found = false;
    for (uint8_t bit = 0; bit < 2; bit++) {
        struct ecdsa_signature with_bit = *sig;
        uint8_t got[ECDSA_PUBLIC_BYTES];
        with_bit.recovery = bit;
        found = found || (ecdsa_recover(got, &with_bit, digest, NULL) == 0 &&
                          memcmp(got, public_key, sizeof got) == 0);
    }
    return found;
}

static void wycheproof_signatures_are_judged_alike_by_verify_and_recover(void **state)
{
    (void)state;
    json_t *file = fixture_json("tests/vectors/wycheproof/"
                                "ecdsa_secp256k1_sha256_bitcoin_test.json.gz");
    struct buf key = BUF_INIT, message = BUF_INIT, der = BUF_INIT;
    size_t g, i, n_valid = 0, n_invalid = 0, n_wrapped = 0;
    const json_t *group, *v;
    json_array_foreach(json_object_get(file, "testGroups"), g, group)
    {
        vector_bytes(&key, vector_str(json_object_get(group, "publicKey"), "uncompressed"));
        assert_int_equal(key.len, ECDSA_PUBLIC_BYTES);
        json_array_foreach(json_object_get(group, "tests"), i, v)
        {
            struct ecdsa_signature sig;
            vector_bytes(&message, vector_str(v, "msg"));
            vector_bytes(&der, vector_str(v, "sig"));
            struct sha256_digest digest = sha256(message.data, message.len);
            bool parsed = ecdsa_signature_from_der(&sig, der.data, der.len, NULL) == 0;
            bool verified = parsed && ecdsa_verify(key.data, key.len, &sig, digest.bytes);
            bool recovered = parsed && recovers(&sig, digest.bytes, key.data);
            bool want = strcmp(vector_str(v, "result"), "valid") == 0;
            /* The nonce point's x may lie between the group order and the field's; r is then x - n
             * and recovery would need bits 2 and 3, which Ethereum doesn't have. */
            bool wrapped = strcmp(vector_str(v, "comment"), "k*G has a large x-coordinate") == 0;
            n_wrapped += wrapped;
            if (verified != want || recovered != (want && !wrapped))
                fail_msg("case %u (%s): expected %s, verify says %d, recover %d",
                         vector_num(v, "tcId"), vector_str(v, "comment"), vector_str(v, "result"),
                         verified, recovered);
            *(want ? &n_valid : &n_invalid) += 1;
        }
    }
    printf("note: Wycheproof ECDSA: %zu valid, %zu invalid\n", n_valid, n_invalid);
    assert_int_equal(n_valid + n_invalid, 463);
    assert_int_equal(n_wrapped, 1);
    json_decref(file);
    buf_release(&key);
    buf_release(&message);
    buf_release(&der);
}

static void points_off_the_curve_are_no_public_keys(void **state)
{
    (void)state;
    /* SubjectPublicKeyInfo of an uncompressed secp256k1 point, up to the point */
    static const char header[] = "3056301006072a8648ce3d020106052b8104000a034200";
    json_t *file = fixture_json("tests/vectors/wycheproof/ecdh_secp256k1_test.json.gz");
    struct buf point = BUF_INIT;
    size_t g, i, n_on = 0, n_off = 0;
    const json_t *group, *v;
    json_array_foreach(json_object_get(file, "testGroups"), g, group)
    {
        json_array_foreach(json_object_get(group, "tests"), i, v)
        {
            const char *spki = vector_str(v, "public");
            if (strncmp(spki, header, sizeof header - 1) != 0 ||
                strlen(spki) != sizeof header - 1 + 2 * ECDSA_PUBLIC_BYTES ||
                strcmp(vector_str(v, "result"), "acceptable") == 0)
                continue;
            vector_bytes(&point, spki + sizeof header - 1);
            bool want = strcmp(vector_str(v, "result"), "valid") == 0;
            if (ecdsa_public_key_ok(point.data, point.len) != want)
                fail_msg("case %u (%s): expected %s", vector_num(v, "tcId"),
                         vector_str(v, "comment"), want ? "a point" : "a refusal");
            *(want ? &n_on : &n_off) += 1;
        }
    }
    printf("note: Wycheproof public keys: %zu on the curve, %zu off it\n", n_on, n_off);
    assert_int_equal(n_on, 473);
    assert_int_equal(n_off, 18);
    json_decref(file);
    buf_release(&point);
}

static void address_of(uint8_t out[20], const struct buf *key)
{
    struct err err;
    uint8_t public_key[ECDSA_PUBLIC_BYTES], compressed[ECDSA_COMPRESSED_BYTES];
    assert_int_equal(key->len, ECDSA_PRIVATE_BYTES);
    assert_ok(ecdsa_public_key(public_key, key->data, &err), err);
    assert_ok(ecdsa_public_key_compressed(compressed, key->data, &err), err);
    assert_memory_equal(public_key + 1, compressed + 1, 32);
    assert_int_equal(compressed[0], 2 + (public_key[64] & 1));
    ecdsa_address(out, public_key);
}

static void every_ethers_account_has_its_address(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/ethers-v6/accounts.json.gz");
    struct buf key = BUF_INIT;
    size_t i;
    const json_t *v;
    json_array_foreach(all, i, v)
    {
        struct address address;
        char text[ADDRESS_TEXT_BYTES];
        vector_bytes(&key, vector_str(v, "privateKey"));
        address_of(address.bytes, &key);
        address_format(text, address);
        if (strcmp(text, vector_str(v, "address")) != 0)
            fail_msg("account %s: expected %s, got %s", vector_str(v, "name"),
                     vector_str(v, "address"), text);
    }
    printf("note: ethers accounts: %zu\n", i);
    assert_int_equal(i, 259);
    json_decref(all);
    buf_release(&key);
}

/* The files' "sig_of_emptystring" is left out: it verifies under no digest of the empty string that
 * Ethereum has used (keccak256, sha256, zero; an older library's own). */
static void keyaddr_seeds_give_keys_and_addresses(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/ethereum-tests/BasicTests_keyaddrtest.json");
    struct buf want = BUF_INIT, key = BUF_INIT;
    size_t i;
    const json_t *v;
    json_array_foreach(all, i, v)
    {
        uint8_t address[20];
        const char *seed = vector_str(v, "seed");
        struct keccak_digest digest = keccak256(seed, strlen(seed));
        vector_bytes(&key, vector_str(v, "key"));
        assert_memory_equal(digest.bytes, key.data, 32);
        address_of(address, &key);
        vector_bytes(&want, vector_str(v, "addr"));
        assert_memory_equal(address, want.data, 20);
    }
    printf("note: ethereum/tests keyaddr: %zu\n", i);
    assert_int_equal(i, 2);
    json_decref(all);
    buf_release(&want);
    buf_release(&key);
}

/* n, the order of the group (SEC 2, 2.4.1). */
#define ORDER "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"

static void private_keys_run_from_1_to_n_minus_1(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        bool ok;
    } table[] = {
        {"0000000000000000000000000000000000000000000000000000000000000000", false},
        {"0000000000000000000000000000000000000000000000000000000000000001", true},
        {"fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364140", true},
        {ORDER, false},
        {"fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364142", false},
        {"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff", false},
    };
    for (size_t i = 0; i < COUNT(table); i++) {
        struct buf key = BUF_INIT;
        struct err err = {0};
        struct ecdsa_signature sig;
        uint8_t digest[32] = {1}, public_key[ECDSA_PUBLIC_BYTES];
        vector_bytes(&key, table[i].key);
        struct secret *s = vector_secret(table[i].key);
        bool signs = ecdsa_sign(&sig, digest, s, &err) == 0;
        bool has_public = ecdsa_public_key(public_key, key.data, &err) == 0;
        if (ecdsa_private_key_ok(key.data) != table[i].ok || signs != table[i].ok ||
            has_public != table[i].ok)
            fail_msg("private key %s: expected %s", table[i].key,
                     table[i].ok ? "acceptance" : "refusal");
        secret_free(s);
        buf_release(&key);
    }
}

static void what_was_signed_recovers_and_nothing_else_does(void **state)
{
    (void)state;
    uint8_t order[32], digest[32] = {0}, public_key[ECDSA_PUBLIC_BYTES], got[ECDSA_PUBLIC_BYTES];
    hex_decode(order, 32, ORDER);
    struct secret *key = ecdsa_private_key_random();
    struct err err;
    assert_ok(ecdsa_public_key(public_key, secret_reveal(key), &err), err);
    secret_conceal(key);
    for (int i = 0; i < 200; i++) {
        struct ecdsa_signature sig, again;
        digest[i % 32] = (uint8_t)(digest[i % 32] * 5 + i + 1);
        assert_ok(ecdsa_sign(&sig, digest, key, &err), err);
        assert_ok(ecdsa_sign(&again, digest, key, &err), err);
        assert_memory_equal(&sig, &again, sizeof sig); /* deterministic */
        assert_true(sig.s[0] <= 0x7f);                 /* low s */
        assert_true(ecdsa_verify(public_key, sizeof public_key, &sig, digest));
        assert_ok(ecdsa_recover(got, &sig, digest, &err), err);
        assert_memory_equal(got, public_key, sizeof got);

        struct ecdsa_signature bad = sig;
        bad.recovery ^= 1;
        if (ecdsa_recover(got, &bad, digest, NULL) == 0)
            assert_memory_not_equal(got, public_key, sizeof got);
        bad.recovery = 2;
        assert_int_equal(ecdsa_recover(got, &bad, digest, &err), -1);
        bad.recovery = 27;
        assert_int_equal(ecdsa_recover(got, &bad, digest, &err), -1);

        bad = sig; /* n - s, the malleable twin */
        int borrow = 0;
        for (int k = 31; k >= 0; k--) {
            int d = order[k] - sig.s[k] - borrow;
            borrow = d < 0;
            bad.s[k] = (uint8_t)(d + (borrow ? 256 : 0));
        }
        bad.recovery ^= 1;
        assert_false(ecdsa_verify(public_key, sizeof public_key, &bad, digest));
        assert_int_equal(ecdsa_recover(got, &bad, digest, &err), -1);
        assert_int_equal(err.code, ERR_UNAUTHORIZED);

        bad = sig;
        memset(i % 2 == 0 ? bad.r : bad.s, 0, 32);
        assert_int_equal(ecdsa_recover(got, &bad, digest, &err), -1);
        memcpy(i % 2 == 0 ? bad.r : bad.s, order, 32);
        assert_int_equal(ecdsa_recover(got, &bad, digest, &err), -1);
        assert_int_equal(err.code, ERR_UNAUTHORIZED);
    }
    secret_free(key);
}

struct signer {
    const struct secret *key;
    uint8_t first;
    struct ecdsa_signature out[64];
};

static void *sign_some(void *arg)
{
    struct signer *s = arg;
    for (int i = 0; i < 64; i++) {
        uint8_t digest[32] = {s->first, (uint8_t)i};
        if (ecdsa_sign(&s->out[i], digest, s->key, NULL) != 0)
            return arg;
    }
    return NULL;
}

static void threads_share_a_key_and_get_what_one_thread_gets(void **state)
{
    (void)state;
    struct secret *key = ecdsa_private_key_random();
    struct signer together[4], alone;
    pthread_t threads[COUNT(together)];
    for (size_t t = 0; t < COUNT(together); t++) {
        together[t] = (struct signer){.key = key, .first = (uint8_t)t};
        assert_int_equal(pthread_create(&threads[t], NULL, sign_some, &together[t]), 0);
    }
    for (size_t t = 0; t < COUNT(together); t++) {
        void *failed;
        assert_int_equal(pthread_join(threads[t], &failed), 0);
        assert_null(failed);
    }
    for (size_t t = 0; t < COUNT(together); t++) {
        alone = (struct signer){.key = key, .first = (uint8_t)t};
        assert_null(sign_some(&alone));
        assert_memory_equal(alone.out, together[t].out, sizeof alone.out);
    }
    secret_free(key);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wycheproof_signatures_are_judged_alike_by_verify_and_recover),
        cmocka_unit_test(points_off_the_curve_are_no_public_keys),
        cmocka_unit_test(every_ethers_account_has_its_address),
        cmocka_unit_test(keyaddr_seeds_give_keys_and_addresses),
        cmocka_unit_test(private_keys_run_from_1_to_n_minus_1),
        cmocka_unit_test(what_was_signed_recovers_and_nothing_else_does),
        cmocka_unit_test(threads_share_a_key_and_get_what_one_thread_gets),
    };
    return cmocka_run_group_tests_name("ecdsa", tests, NULL, NULL);
}
