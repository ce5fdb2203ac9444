/* Transactions against 3,200 of ethers v6 in four forms each, two of ethereum/tests, and hostile
 * bytes. No keys here: the vectors bring their signatures. */
#include "tests/support.h"

#include "chain/keccak.h"
#include "chain/tx.h"
#include "node/base/arena.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(a) (sizeof(a) / sizeof *(a))

static size_t signed_equal, unsigned_equal, parsed_equal;

/* Appends the bytes of hexadecimal text. */
static void append_hex(struct buf *out, const char *text)
{
    size_t n = (strlen(text) - (strncmp(text, "0x", 2) == 0 ? 2 : 0)) / 2;
    buf_reserve(out, n);
    if (hex_decode(out->data + out->len, n, text) != 0)
        fail_msg("vector is not hexadecimal: %s", text);
    out->len += n;
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));
    return s == NULL ? "" : s;
}

/* A number as ethers writes it, 0 when absent. */
static struct u256 number_of(const json_t *object, const char *key)
{
    struct u256 v = U256_ZERO;
    const json_t *j = json_object_get(object, key);
    if (json_is_integer(j))
        return u256_of((uint64_t)json_integer_value(j));
    if (json_is_string(j) && u256_parse_hex(&v, json_string_value(j)) != 0)
        fail_msg("vector's %s is no number: %s", key, json_string_value(j));
    return v;
}

static uint64_t u64_of(const json_t *object, const char *key)
{
    uint64_t v;
    if (u256_to_u64(&v, number_of(object, key)) != 0)
        fail_msg("vector's %s exceeds 64 bits", key);
    return v;
}

static void accesses_of(struct tx *tx, const json_t *list, struct arena *arena)
{
    size_t i, k;
    json_t *entry, *key;
    struct tx_access *accesses = arena_array(arena, json_array_size(list), sizeof *accesses);
    json_array_foreach(list, i, entry)
    {
        const json_t *keys = json_object_get(entry, "storageKeys");
        struct bytes32 *words = arena_array(arena, json_array_size(keys), sizeof *words);
        assert_int_equal(address_parse(&accesses[i].address, text_of(entry, "address")), 0);
        json_array_foreach(keys, k, key)
            assert_int_equal(hex_decode(words[k].bytes, 32, json_string_value(key)), 0);
        accesses[i].keys = words;
        accesses[i].n_keys = json_array_size(keys);
    }
    tx->accesses = accesses;
    tx->n_accesses = json_array_size(list);
}

/* Serialises, compares with the vector's bytes, parses them, serialises again. */
static void check_form(const char *name, const char *form, const struct tx *tx,
                       const struct signature *sig, const char *want_hex)
{
    struct buf got = BUF_INIT, want = BUF_INIT, again = BUF_INIT;
    struct arena arena = ARENA_INIT;
    struct tx parsed;
    struct signature parsed_sig;
    struct err err;
    bool is_signed;

    append_hex(&want, want_hex);
    if (sig != NULL)
        tx_write_signed(&got, tx, sig);
    else
        tx_write_unsigned(&got, tx);
    if (got.len != want.len || memcmp(got.data, want.data, got.len) != 0)
        fail_msg("%s, %s: wrote other bytes than ethers (%zu, want %zu)", name, form, got.len,
                 want.len);
    if (tx_parse(&parsed, &parsed_sig, &is_signed, &arena, want.data, want.len, &err) != 0)
        fail_msg("%s, %s: refused: %s", name, form, err.message);
    if (is_signed != (sig != NULL) || parsed.kind != tx->kind || parsed.chain_id != tx->chain_id ||
        parsed.nonce != tx->nonce || parsed.creates != tx->creates || parsed.n_data != tx->n_data ||
        (sig != NULL && memcmp(&parsed_sig, sig, sizeof *sig) != 0))
        fail_msg("%s, %s: parsed into something else", name, form);
    if (is_signed)
        tx_write_signed(&again, &parsed, &parsed_sig);
    else
        tx_write_unsigned(&again, &parsed);
    if (again.len != want.len || memcmp(again.data, want.data, want.len) != 0)
        fail_msg("%s, %s: written again it differs", name, form);
    if (!is_signed) {
        struct tx_digest digest = tx_signing_digest(tx);
        struct keccak_digest hash = keccak256(want.data, want.len);
        assert_memory_equal(digest.bytes, hash.bytes, 32);
        unsigned_equal++;
    } else {
        signed_equal++;
    }
    parsed_equal++;
    arena_release(&arena);
    buf_release(&got);
    buf_release(&want);
    buf_release(&again);
}

static void check_kind(const json_t *v, const char *form, const char *unsigned_key,
                       const char *signed_key, const char *signature_key, const struct tx *tx)
{
    const char *name = text_of(v, "name");
    const json_t *s = json_object_get(v, signature_key);
    if (text_of(v, signed_key)[0] == '\0') {
        /* The forms that need a chain id, of transactions without one. */
        assert_string_equal(text_of(v, unsigned_key), "");
        return;
    }
    struct signature sig;
    assert_int_equal(hex_decode(sig.r, 32, text_of(s, "r")), 0);
    assert_int_equal(hex_decode(sig.s, 32, text_of(s, "s")), 0);
    uint64_t bit;
    struct u256 from_v = number_of(s, "v");
    if (tx->kind != TX_LEGACY)
        sig.y_parity = (uint8_t)u64_of(s, "v");
    else if (tx->chain_id == 0)
        sig.y_parity = (uint8_t)(u64_of(s, "v") - 27);
    else {
        assert_int_equal(u256_sub(&from_v, from_v, u256_of(35)), 0);
        u256_div(from_v, 2, &bit);
        sig.y_parity = (uint8_t)bit;
    }
    check_form(name, form, tx, NULL, text_of(v, unsigned_key));
    check_form(name, form, tx, &sig, text_of(v, signed_key));
}

static void the_transactions_of_ethers_are_written_byte_for_byte_and_parsed_back(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/ethers-v6/transactions.json.gz"), *v;
    size_t i, blobs = 0;
    json_array_foreach(all, i, v)
    {
        const json_t *t = json_object_get(v, "transaction");
        struct arena arena = ARENA_INIT;
        struct buf data = BUF_INIT;
        append_hex(&data, text_of(t, "data"));
        struct tx tx = {
            .nonce = u64_of(t, "nonce"),
            .gas_price = number_of(t, "gasPrice"),
            .max_fee = number_of(t, "maxFeePerGas"),
            .max_priority_fee = number_of(t, "maxPriorityFeePerGas"),
            .gas_limit = u64_of(t, "gasLimit"),
            .value = number_of(t, "value"),
            .data = data.data,
            .n_data = data.len,
        };
        tx.creates = text_of(t, "to")[0] == '\0';
        if (!tx.creates)
            assert_int_equal(address_parse(&tx.to, text_of(t, "to")), 0);

        check_kind(v, "legacy", "unsignedLegacy", "signedLegacy", "signatureLegacy", &tx);
        tx.chain_id = u64_of(t, "chainId");
        if (tx.chain_id != 0)
            check_kind(v, "EIP-155", "unsignedEip155", "signedEip155", "signatureEip155", &tx);
        else
            assert_string_equal(text_of(v, "signedEip155"), "");
        accesses_of(&tx, json_object_get(t, "accessList"), &arena);
        tx.kind = TX_ACCESS_LIST;
        check_kind(v, "EIP-2930", "unsignedBerlin", "signedBerlin", "signatureBerlin", &tx);
        tx.kind = TX_FEE_MARKET;
        check_kind(v, "EIP-1559", "unsignedLondon", "signedLondon", "signatureLondon", &tx);

        const char *const blob_forms[] = {text_of(v, "unsignedCancun"), text_of(v, "signedCancun")};
        for (size_t b = 0; b < COUNT(blob_forms); b++) {
            if (blob_forms[b][0] == '\0')
                continue;
            struct buf blob = BUF_INIT;
            struct tx none;
            struct signature sig;
            bool is_signed;
            struct err err;
            append_hex(&blob, blob_forms[b]);
            assert_int_equal(tx_parse(&none, &sig, &is_signed, &arena, blob.data, blob.len, &err),
                             -1);
            assert_int_equal(err.code, ERR_UNSUPPORTED);
            assert_non_null(strstr(err.message, "EIP-4844"));
            buf_release(&blob);
            blobs++;
        }
        arena_release(&arena);
        buf_release(&data);
    }
    json_decref(all);
    printf("note: %zu signed transactions byte-equal, %zu unsigned, %zu parsed and written again\n",
           signed_equal, unsigned_equal, parsed_equal);
    printf("note: %zu blob transactions refused by name\n", blobs);
    assert_int_equal(signed_equal, 11264);
    assert_int_equal(unsigned_equal, 11264);
    assert_int_equal(blobs, 2 * 1664);
}

static void the_transactions_of_ethereum_tests_are_written_byte_for_byte(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/ethereum-tests/BasicTests_txtest.json"), *v;
    size_t i;
    json_array_foreach(all, i, v)
    {
        struct buf want = BUF_INIT, got = BUF_INIT, data = BUF_INIT;
        struct arena arena = ARENA_INIT;
        struct tx parsed;
        struct signature sig;
        struct err err;
        bool is_signed;
        append_hex(&want, text_of(v, "signed"));
        append_hex(&data, text_of(v, "data"));
        assert_ok(tx_parse(&parsed, &sig, &is_signed, &arena, want.data, want.len, &err), err);
        struct tx tx = {
            .nonce = u64_of(v, "nonce"),
            .gas_price = number_of(v, "gasprice"),
            .gas_limit = u64_of(v, "startgas"),
            .creates = text_of(v, "to")[0] == '\0',
            .value = number_of(v, "value"),
            .data = data.data,
            .n_data = data.len,
        };
        if (!tx.creates)
            assert_int_equal(hex_decode(tx.to.bytes, 20, text_of(v, "to")), 0);
        tx_write_signed(&got, &tx, &sig);
        assert_true(is_signed);
        assert_int_equal(got.len, want.len);
        assert_memory_equal(got.data, want.data, want.len);
        /* These old vectors end their unsigned form with three empty items, which EIP-155 made
         * illegal (chain id 0). */
        struct buf old = BUF_INIT;
        append_hex(&old, text_of(v, "unsigned"));
        assert_int_equal(tx_parse(&parsed, &sig, &is_signed, &arena, old.data, old.len, &err), -1);
        assert_string_equal(err.message, "transaction: chain id is 0 or above 2^64 - 1");
        buf_release(&old);
        arena_release(&arena);
        buf_release(&want);
        buf_release(&got);
        buf_release(&data);
    }
    printf("note: %zu transactions of ethereum/tests byte-equal\n", json_array_size(all));
    assert_int_equal(json_array_size(all), 2);
    json_decref(all);
}

static void hostile_bytes_are_refused_by_field(void **state)
{
    (void)state;
    static const struct {
        const char *what, *hex, *says;
    } cases[] = {
        {"nothing", "", "transaction: empty"},
        {"a type and nothing", "02", "ends after its type"},
        {"a set-code transaction", "04c0", "EIP-7702"},
        {"an unknown type", "7fc0", "unknown type 0x7f"},
        {"a string", "0280", "not a list"},
        {"an empty list", "c0", "nonce is missing"},
        {"a list of one", "c101", "gasPrice is missing"},
        {"bytes after the end", "c68080808080808080", "followed by 2 bytes"},
        {"a list in a number's place", "c6c08080808080", "nonce is a list"},
        {"a leading zero in the nonce", "c88200018080808080",
         "nonce: RLP number has a leading zero"},
        {"a nonce of 9 bytes",
         "cf8901020304050607080980808080"
         "80",
         "nonce: RLP number exceeds 64"},
        {"a receiver of 2 bytes",
         "c8808080"
         "821234"
         "8080",
         "to is not 20 bytes long"},
        {"four items after the data", "ca80808080808025010180", "list has too many items"},
        {"v without r", "c780808080808025", "r is missing"},
        {"v of 29", "c98080808080801d0101", "v is neither 27 nor 28 nor at least 35"},
        {"v of 35, chain id 0", "c9808080808080230101", "chain id is 0"},
        {"an access list that is a string", "02c9808080808080808080", "access list is not a list"},
        {"an entry that is a string",
         "02ca80808080808080"
         "80c180",
         "access list entry is not a list"},
        {"an entry without keys",
         "02df808080808080"
         "8080"
         "d6d5941111111111111111111111111111111111111111",
         "access list keys is missing"},
        {"yParity of 2", "02cc8080808080808080c0020101", "yParity is neither 0 nor 1"},
        {"five items after the access list", "02cd8080808080808080c001010101", "too many items"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        struct buf b = BUF_INIT;
        struct arena arena = ARENA_INIT;
        struct tx tx;
        struct signature sig;
        bool is_signed;
        struct err err = {.code = ERR_OK};
        append_hex(&b, cases[i].hex);
        /* A copy of exactly its size, so that ASan sees a byte too many read. */
        uint8_t *exact = xmalloc(b.len);
        if (b.len > 0)
            memcpy(exact, b.data, b.len);
        int rc = tx_parse(&tx, &sig, &is_signed, &arena, exact, b.len, &err);
        if (rc != -1)
            fail_msg("%s: was accepted", cases[i].what);
        if (strstr(err.message, cases[i].says) == NULL)
            fail_msg("%s: says \"%s\", expected \"%s\"", cases[i].what, err.message, cases[i].says);
        free(exact);
        arena_release(&arena);
        buf_release(&b);
    }
    struct arena arena = ARENA_INIT;
    struct tx tx;
    struct signature sig;
    bool is_signed;
    struct err err;
    uint8_t *large = xcalloc(1, TX_MAX_BYTES + 1);
    assert_int_equal(tx_parse(&tx, &sig, &is_signed, &arena, large, TX_MAX_BYTES + 1, &err), -1);
    assert_int_equal(err.code, ERR_TOO_LARGE);
    free(large);
    arena_release(&arena);
}

/* Whatever is cut off or changed, the parser returns; what it accepts it writes back unchanged. */
static void what_is_accepted_has_one_encoding(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/ethers-v6/transactions.json.gz");
    static const char *const forms[] = {"signedLegacy", "signedEip155", "signedBerlin",
                                        "signedLondon", "unsignedLondon"};
    uint64_t seed = 1;
    size_t accepted = 0, refused = 0;
    for (size_t i = 0; i < json_array_size(all); i += 64) {
        for (size_t form = 0; form < COUNT(forms); form++) {
            struct buf b = BUF_INIT;
            append_hex(&b, text_of(json_array_get(all, i), forms[form]));
            for (size_t round = 0; round < 60 && b.len > 0; round++) {
                struct arena arena = ARENA_INIT;
                struct buf again = BUF_INIT;
                struct tx tx;
                struct signature sig;
                bool is_signed;
                seed = seed * 6364136223846793005u + 1442695040888963407u;
                size_t at = (size_t)(seed >> 33) % b.len;
                size_t n = round % 3 == 0 ? at : b.len;
                uint8_t *bytes = xmalloc(n);
                memcpy(bytes, b.data, n);
                if (round % 3 != 0)
                    bytes[at] ^= (uint8_t)(1u << (seed >> 60 & 7));
                if (tx_parse(&tx, &sig, &is_signed, &arena, bytes, n, NULL) == 0) {
                    if (is_signed)
                        tx_write_signed(&again, &tx, &sig);
                    else
                        tx_write_unsigned(&again, &tx);
                    assert_int_equal(again.len, n);
                    assert_memory_equal(again.data, bytes, n);
                    accepted++;
                } else {
                    refused++;
                }
                free(bytes);
                buf_release(&again);
                arena_release(&arena);
            }
            buf_release(&b);
        }
    }
    json_decref(all);
    printf("note: %zu changed transactions: %zu refused, %zu accepted and written back unchanged\n",
           accepted + refused, refused, accepted);
    assert_true(accepted > 1000 && refused > 1000);
}

static void the_cost_limit_says_when_it_overflows(void **state)
{
    (void)state;
    struct u256 cost, max = {{UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX}};
    struct tx tx = {.kind = TX_FEE_MARKET,
                    .gas_limit = 21000,
                    .max_fee = u256_of(3000000000),
                    .value = u256_of(7),
                    .gas_price = max};
    assert_int_equal(tx_cost_limit(&cost, &tx), 0);
    assert_int_equal(u256_cmp(cost, u256_of(63000000000007)), 0);
    tx.kind = TX_LEGACY;
    assert_int_equal(tx_cost_limit(&cost, &tx), -1);
    tx.kind = TX_FEE_MARKET;
    tx.value = max;
    assert_int_equal(tx_cost_limit(&cost, &tx), -1);
}

static void a_chain_id_of_64_bits_survives_v(void **state)
{
    (void)state;
    struct buf b = BUF_INIT;
    struct arena arena = ARENA_INIT;
    struct tx tx = {.chain_id = UINT64_MAX, .creates = true}, parsed;
    struct signature sig = {.r = {1}, .s = {1}, .y_parity = 1}, parsed_sig;
    struct err err;
    bool is_signed;
    tx_write_signed(&b, &tx, &sig);
    assert_ok(tx_parse(&parsed, &parsed_sig, &is_signed, &arena, b.data, b.len, &err), err);
    assert_true(is_signed && parsed.chain_id == UINT64_MAX && parsed_sig.y_parity == 1);
    buf_release(&b);
    arena_release(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_transactions_of_ethers_are_written_byte_for_byte_and_parsed_back),
        cmocka_unit_test(the_transactions_of_ethereum_tests_are_written_byte_for_byte),
        cmocka_unit_test(hostile_bytes_are_refused_by_field),
        cmocka_unit_test(what_is_accepted_has_one_encoding),
        cmocka_unit_test(the_cost_limit_says_when_it_overflows),
        cmocka_unit_test(a_chain_id_of_64_bits_survives_v),
    };
    return cmocka_run_group_tests_name("tx", tests, NULL, NULL);
}
