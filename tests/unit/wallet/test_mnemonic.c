/* BIP-39 against the vectors of its authors (Trezor, 24 in English) and of ethers (400 in ten
 * languages; the word list here is English, seeds need none). */
#include "tests/unit/wallet/vector.h"

#include "wallet/hdkey.h"
#include "wallet/mnemonic.h"

static void the_embedded_word_list_is_bip_39s(void **state)
{
    (void)state;
    struct buf list = BUF_INIT;
    fixture_read("tests/vectors/trezor/bip39-english.txt", &list);
    char *save = NULL, *text = buf_detach(&list);
    size_t n = 0;
    for (char *word = strtok_r(text, "\n", &save); word != NULL;
         word = strtok_r(NULL, "\n", &save)) {
        if (n == BIP39_WORDS || strcmp(word, bip39_english[n]) != 0)
            fail_msg("word %zu is %s in the list, %s here", n + 1, word,
                     n < BIP39_WORDS ? bip39_english[n] : "absent");
        n++;
    }
    assert_int_equal(n, BIP39_WORDS);
    free(text);
}

static void every_trezor_vector_holds_both_ways(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/trezor/bip39-vectors.json");
    const json_t *english = json_object_get(all, "english"), *v;
    size_t i;
    struct secret *passphrase = vector_secret_text("TREZOR");
    json_array_foreach(english, i, v)
    {
        const char *entropy_hex = json_string_value(json_array_get(v, 0));
        const char *words = json_string_value(json_array_get(v, 1));
        const char *seed_hex = json_string_value(json_array_get(v, 2));
        const char *xprv = json_string_value(json_array_get(v, 3));
        struct err err = {0};
        struct secret *entropy = vector_secret(entropy_hex), *phrase = vector_secret_text(words);
        vector_expect(mnemonic_from_entropy(entropy, &err), words, strlen(words), words, &err);
        vector_expect_hex(mnemonic_entropy(phrase, &err), entropy_hex, words, &err);
        struct secret *seed = mnemonic_seed(phrase, passphrase, &err);
        assert_non_null(seed);
        struct secret *master = hdkey_master(seed, &err);
        assert_non_null(master);
        vector_expect(hdkey_xprv(master), xprv, strlen(xprv), words, &err);
        vector_expect_hex(seed, seed_hex, words, &err);
        secret_free(master);
        secret_free(entropy);
        secret_free(phrase);
    }
    printf("note: trezor mnemonics: %zu\n", i);
    assert_int_equal(i, 24);
    secret_free(passphrase);
    json_decref(all);
}

static void expect_node(const struct secret *master, const json_t *node, const char *name)
{
    struct err err = {0};
    char xpub[BASE58_TEXT_MAX_BYTES];
    const char *path = vector_str(node, "path"), *xprv = vector_str(node, "xpriv");
    struct secret *s = hdkey_derive(master, path, &err);
    if (s == NULL)
        fail_msg("%s %s: %s", name, path, err.message);
    assert_ok(hdkey_xpub(xpub, s, &err), err);
    if (strcmp(xpub, vector_str(node, "xpub")) != 0)
        fail_msg("%s %s: xpub is %s", name, path, xpub);
    vector_expect(hdkey_xprv(s), xprv, strlen(xprv), name, &err);
    vector_expect_hex(hdkey_private_key(s), vector_str(node, "privateKey"), name, &err);
    secret_free(s);
}

static void every_ethers_mnemonic_gives_its_seed_and_its_nodes(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/ethers-v6/mnemonics.json.gz");
    size_t i, n_english = 0, n_nodes = 0;
    const json_t *v;
    json_array_foreach(all, i, v)
    {
        const char *name = vector_str(v, "name");
        struct err err = {0};
        struct secret *phrase = vector_secret(vector_str(v, "phrase"));
        struct secret *passphrase = vector_secret(vector_str(v, "password"));
        if (strcmp(vector_str(v, "locale"), "en") == 0) {
            struct secret *entropy = vector_secret(vector_str(v, "entropy"));
            vector_expect_hex(mnemonic_from_entropy(entropy, &err), vector_str(v, "phrase"), name,
                              &err);
            vector_expect_hex(mnemonic_entropy(phrase, &err), vector_str(v, "entropy"), name, &err);
            secret_free(entropy);
            n_english++;
        }
        struct secret *seed = mnemonic_seed(phrase, passphrase, &err);
        if (seed == NULL)
            fail_msg("%s: %s", name, err.message);
        struct secret *master = hdkey_master(seed, &err);
        assert_non_null(master);
        vector_expect_hex(seed, vector_str(v, "seed"), name, &err);
        size_t k;
        const json_t *node;
        json_array_foreach(json_object_get(v, "nodes"), k, node)
        {
            expect_node(master, node, name);
            n_nodes++;
        }
        secret_free(master);
        secret_free(phrase);
        secret_free(passphrase);
    }
    printf("note: ethers mnemonics: %zu (%zu English), BIP-32 nodes: %zu\n", i, n_english, n_nodes);
    assert_int_equal(i, 400);
    assert_int_equal(n_nodes, 2400);
    json_decref(all);
}

#define ABANDON_11 \
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon "

static void a_phrase_is_read_as_people_type_it(void **state)
{
    (void)state;
    static const char mixed_case[] = "Abandon\tABANDON abandon abandon\nabandon abandon abandon\r\n"
                                     " abandon abandon abandon abandon     About";
    static const char *const typed[] = {
        ABANDON_11 "about",
        "  " ABANDON_11 "about\n",
        mixed_case,
    };
    for (size_t i = 0; i < COUNT(typed); i++) {
        struct err err = {0};
        struct secret *s = vector_secret_text(typed[i]);
        assert_true(mnemonic_looks_like_one(s));
        vector_expect_hex(mnemonic_entropy(s, &err), "00000000000000000000000000000000", typed[i],
                          &err);
        secret_free(s);
    }
}

static void a_wrong_phrase_is_refused_and_never_repeated(void **state)
{
    (void)state;
    static const struct {
        const char *typed, *says;
    } table[] = {
        {"", "0 words"},
        {"   ", "0 words"},
        {"abandon", "1 words"},
        {ABANDON_11, "11 words"},
        {ABANDON_11 "abandon", "checksum"},
        {ABANDON_11 "about about", "13 words"},
        {ABANDON_11 "aboutt", "word 12 is not"},
        {"zebra xylophonist abandon", "word 2 is not"},
        {"abandon abandonabandonabandonabandon", "word 2 is not"},
        {"legal winner thank year wave sausage worth useful legal winner thank thank", "checksum"},
        {"winner legal thank year wave sausage worth useful legal winner thank yellow", "checksum"},
        {ABANDON_11 ABANDON_11 "abandon abandon abandon", "more than 24 words"},
        {"caf\xc3\xa9 abandon", "word 1 is not"},
    };
    for (size_t i = 0; i < COUNT(table); i++) {
        struct err err = {0};
        struct secret *s = vector_secret_text(table[i].typed);
        struct secret *entropy = mnemonic_entropy(s, &err);
        if (entropy != NULL || err.code != ERR_INVALID ||
            strstr(err.message, table[i].says) == NULL)
            fail_msg("\"%s\": expected a refusal that says \"%s\", got: %s", table[i].typed,
                     table[i].says, err.message);
        if (strstr(err.message, "xylophonist") != NULL || strstr(err.message, "aboutt") != NULL)
            fail_msg("the error repeats what was typed: %s", err.message);
        secret_free(s);
    }
}

static void entropy_of_another_length_has_no_phrase(void **state)
{
    (void)state;
    uint8_t bytes[64] = {0};
    for (size_t n = 1; n <= sizeof bytes; n++) {
        struct err err = {0};
        struct secret *entropy = secret_from_bytes(bytes, n);
        struct secret *phrase = mnemonic_from_entropy(entropy, &err);
        bool fits = n == 16 || n == 20 || n == 24 || n == 28 || n == 32;
        if ((phrase != NULL) != fits)
            fail_msg("%zu bytes of entropy: %s", n, phrase != NULL ? "accepted" : err.message);
        secret_free(phrase);
        secret_free(entropy);
    }
}

static void fresh_phrases_are_valid_and_differ(void **state)
{
    (void)state;
    for (unsigned words = 0; words <= 30; words++) {
        struct err err = {0};
        struct secret *a = mnemonic_generate(words, &err), *b = mnemonic_generate(words, &err);
        bool fits = words == 12 || words == 15 || words == 18 || words == 21 || words == 24;
        assert_int_equal(a != NULL, fits);
        if (!fits) {
            assert_int_equal(err.code, ERR_INVALID);
            continue;
        }
        struct secret *ea = mnemonic_entropy(a, &err), *eb = mnemonic_entropy(b, &err);
        assert_non_null(ea);
        assert_non_null(eb);
        assert_int_equal(secret_len(ea), words / 3 * 4);
        assert_memory_not_equal(secret_reveal(ea), secret_reveal(eb), secret_len(ea));
        secret_conceal(ea);
        secret_conceal(eb);
        secret_free(ea);
        secret_free(eb);
        secret_free(a);
        secret_free(b);
    }
}

static void a_passphrase_means_the_same_composed_and_decomposed(void **state)
{
    (void)state;
    struct err err = {0};
    struct secret *phrase = vector_secret_text(ABANDON_11 "about");
    struct secret *composed = vector_secret_text("caf\xc3\xa9 \xef\xac\x81"); /* é, fi ligature */
    struct secret *decomposed = vector_secret_text("cafe\xcc\x81 fi");
    struct secret *broken = vector_secret_text("caf\xc3");
    struct secret *a = mnemonic_seed(phrase, composed, &err);
    struct secret *b = mnemonic_seed(phrase, decomposed, &err);
    assert_non_null(a);
    assert_non_null(b);
    assert_memory_equal(secret_reveal(a), secret_reveal(b), BIP39_SEED_BYTES);
    secret_conceal(a);
    secret_conceal(b);
    assert_null(mnemonic_seed(phrase, broken, &err));
    assert_int_equal(err.code, ERR_INVALID);
    secret_free(a);
    secret_free(b);
    secret_free(phrase);
    secret_free(composed);
    secret_free(decomposed);
    secret_free(broken);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_embedded_word_list_is_bip_39s),
        cmocka_unit_test(every_trezor_vector_holds_both_ways),
        cmocka_unit_test(every_ethers_mnemonic_gives_its_seed_and_its_nodes),
        cmocka_unit_test(a_phrase_is_read_as_people_type_it),
        cmocka_unit_test(a_wrong_phrase_is_refused_and_never_repeated),
        cmocka_unit_test(entropy_of_another_length_has_no_phrase),
        cmocka_unit_test(fresh_phrases_are_valid_and_differ),
        cmocka_unit_test(a_passphrase_means_the_same_composed_and_decomposed),
    };
    return cmocka_run_group_tests_name("mnemonic", tests, NULL, NULL);
}
