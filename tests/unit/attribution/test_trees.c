/* The two trees against other implementations: OpenZeppelin's @openzeppelin/merkle-tree 1.0.8
 * (tests/vectors/merkle) and an ethers script (tests/vectors/payout); and the splits' arithmetic.
 */
#include "attribution/merkle.h"
#include "attribution/payout.h"
#include "chain/keccak.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "tests/support.h"

#include <stdlib.h>
#include <string.h>

static struct merkle_node node_of(const json_t *hex)
{
    struct merkle_node n;
    if (hex_decode(n.bytes, 32, json_string_value(hex)) != 0)
        fail_msg("not 32 bytes: %s", json_string_value(hex));
    return n;
}

static struct merkle_node keccak_node(const void *bytes, size_t n)
{
    struct merkle_node out;
    memcpy(out.bytes, keccak256(bytes, n).bytes, 32);
    return out;
}

/* keccak256(keccak256(abi.encode(address, bytes32, uint256))), the package's leaf hash. */
static struct merkle_node standard_leaf(const uint8_t address[20], const uint8_t word[32],
                                        struct amount number)
{
    uint8_t encoded[96] = {0};
    memcpy(encoded + 12, address, 20);
    memcpy(encoded + 32, word, 32);
    amount_to_bytes(encoded + 80, number);
    struct merkle_node once = keccak_node(encoded, sizeof(encoded));
    return keccak_node(once.bytes, 32);
}

/* The leaves of the 16,384-leaf case follow a rule: ("b" + i, "r" + i, i). */
static struct merkle_node generated_leaf(size_t i)
{
    char text[32];
    int n = snprintf(text, sizeof(text), "b%zu", i);
    struct keccak_digest address = keccak256(text, (size_t)n);
    n = snprintf(text, sizeof(text), "r%zu", i);
    struct keccak_digest word = keccak256(text, (size_t)n);
    return standard_leaf(address.bytes, word.bytes, amount_of(i));
}

static struct merkle_node *leaves_of(const json_t *c, size_t n)
{
    struct merkle_node *leaves = xcalloc(n, sizeof(*leaves));
    const json_t *simple = json_object_get(c, "leaves"), *values = json_object_get(c, "values");
    for (size_t i = 0; i < n; i++) {
        if (simple) {
            leaves[i] = node_of(json_array_get(simple, i));
        } else if (values) {
            const json_t *v = json_array_get(values, i);
            uint8_t address[20], word[32];
            struct amount number;
            assert_int_equal(hex_decode(address, 20, json_string_value(json_array_get(v, 0))), 0);
            assert_int_equal(hex_decode(word, 32, json_string_value(json_array_get(v, 1))), 0);
            assert_int_equal(amount_parse(&number, json_string_value(json_array_get(v, 2))), 0);
            leaves[i] = standard_leaf(address, word, number);
        } else {
            leaves[i] = generated_leaf(i);
        }
    }
    return leaves;
}

static size_t check_proofs(const json_t *c, const struct merkle *m,
                           const struct merkle_node *leaves, const char *name)
{
    size_t i, n_checked = 0;
    const json_t *p;
    json_array_foreach(json_object_get(c, "proofs"), i, p)
    {
        struct merkle_node proof[MERKLE_PROOF_MAX];
        size_t index = (size_t)json_integer_value(json_object_get(p, "index"));
        const json_t *want = json_object_get(p, "proof");
        size_t n = merkle_proof(m, index, proof);
        if (n != json_array_size(want))
            fail_msg("%s: the proof of leaf %zu has %zu siblings, not %zu", name, index, n,
                     json_array_size(want));
        for (size_t k = 0; k < n; k++) {
            struct merkle_node sibling = node_of(json_array_get(want, k));
            if (memcmp(sibling.bytes, proof[k].bytes, 32) != 0)
                fail_msg("%s: sibling %zu of leaf %zu differs", name, k, index);
        }
        assert_true(merkle_verify(merkle_root(m), leaves[index], proof, n));
        struct merkle_node other = leaves[index];
        other.bytes[0] ^= 1;
        assert_false(merkle_verify(merkle_root(m), other, proof, n));
        n_checked++;
    }
    return n_checked;
}

static size_t check_multiproof(const json_t *c, const struct merkle *m, const char *name)
{
    const json_t *want = json_object_get(c, "multiproof");
    if (!want)
        return 0;
    size_t n = json_array_size(json_object_get(want, "indices")), indices[64];
    struct merkle_multiproof got;
    struct err err;
    assert_true(n <= 64);
    for (size_t i = 0; i < n; i++)
        indices[i] = (size_t)json_integer_value(
            json_array_get(json_object_get(want, "indices"), i));
    assert_ok(merkle_multiproof(&got, m, indices, n, &err), err);
    assert_int_equal(got.n_leaves, n);
    assert_int_equal(got.n_proof, json_array_size(json_object_get(want, "proof")));
    assert_int_equal(got.n_flags, json_array_size(json_object_get(want, "proofFlags")));
    for (size_t i = 0; i < n; i++)
        assert_memory_equal(got.leaves[i].bytes,
                            node_of(json_array_get(json_object_get(want, "leafHashes"), i)).bytes,
                            32);
    for (size_t i = 0; i < got.n_proof; i++)
        assert_memory_equal(got.proof[i].bytes,
                            node_of(json_array_get(json_object_get(want, "proof"), i)).bytes, 32);
    for (size_t i = 0; i < got.n_flags; i++) {
        bool flag = json_is_true(json_array_get(json_object_get(want, "proofFlags"), i));
        if (flag != got.flags[i])
            fail_msg("%s: flag %zu of the multiproof differs", name, i);
    }
    assert_true(merkle_multiproof_verify(merkle_root(m), &got));
    got.leaves[0].bytes[5] ^= 0x40;
    assert_false(merkle_multiproof_verify(merkle_root(m), &got));
    merkle_multiproof_release(&got);
    indices[n] = indices[0];
    assert_int_equal(merkle_multiproof(&got, m, indices, n + 1, &err), -1);
    return 1;
}

static void merkle_trees_equal_openzeppelins(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/merkle/oz-merkle-tree-1.0.8.json.gz");
    size_t i, n_trees = 0, n_proofs = 0, n_multi = 0;
    const json_t *c;
    json_array_foreach(json_object_get(all, "cases"), i, c)
    {
        const char *kind = json_string_value(json_object_get(c, "kind"));
        size_t n = (size_t)json_integer_value(json_object_get(c, "n"));
        struct merkle_node *leaves = leaves_of(c, n);
        struct merkle m;
        char name[64];
        snprintf(name, sizeof(name), "%s of %zu", kind, n);
        merkle_init(&m, leaves, n, strcmp(kind, "simple-unsorted") != 0);
        if (memcmp(merkle_root(&m).bytes, node_of(json_object_get(c, "root")).bytes, 32) != 0)
            fail_msg("%s: the root differs", name);
        n_proofs += check_proofs(c, &m, leaves, name);
        n_multi += check_multiproof(c, &m, name);
        merkle_release(&m);
        free(leaves);
        n_trees++;
    }
    json_decref(all);
    printf("note: merkle: %zu trees, %zu proofs, %zu multiproofs equal OpenZeppelin's\n", n_trees,
           n_proofs, n_multi);
    assert_int_equal(n_trees, 61);
    assert_int_equal(n_proofs, 250);
    assert_int_equal(n_multi, 16);
}

static void a_malformed_multiproof_is_refused(void **state)
{
    (void)state;
    struct merkle_node leaves[5], zero[4] = {{{0}}};
    bool flags[4] = {true, true, true, true};
    for (size_t i = 0; i < 5; i++)
        leaves[i] = generated_leaf(i);
    struct merkle m;
    merkle_init(&m, leaves, 5, false);
    const struct merkle_multiproof cases[] = {
        {0, 0, 0, leaves, zero, flags}, /* nothing proves nothing */
        {2, 0, 0, leaves, zero, flags}, /* two leaves and no step */
        {1, 1, 3, leaves, zero, flags}, /* more steps than nodes */
        {1, 2, 2, leaves, zero, flags}, /* flags take what isn't there */
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        if (merkle_multiproof_verify(merkle_root(&m), &cases[i]))
            fail_msg("case %zu was accepted", i);
    }
    merkle_release(&m);
}

static void a_receipts_leaf_binds_its_position(void **state)
{
    (void)state;
    uint8_t hash[32] = {7}, encoded[64] = {0};
    struct merkle_node a = merkle_receipt_leaf(0x01020304, hash);
    memcpy(encoded + 28, "\x01\x02\x03\x04", 4);
    memcpy(encoded + 32, hash, 32);
    struct merkle_node once = keccak_node(encoded, 64), b = keccak_node(once.bytes, 32);
    assert_memory_equal(a.bytes, b.bytes, 32);
    b = merkle_receipt_leaf(0x01020305, hash);
    assert_memory_not_equal(a.bytes, b.bytes, 32);
}

/* ---- payouts -------------------------------------------------------------------------------- */

static struct payout payout_of(const json_t *j)
{
    struct payout p = {
        .kind = (enum payout_kind)json_integer_value(json_object_get(j, "kind")),
        .position = (uint16_t)json_integer_value(json_object_get(j, "position")),
    };
    assert_int_equal(hex_decode(p.id, 32, json_string_value(json_object_get(j, "id"))), 0);
    assert_int_equal(amount_parse(&p.amount, json_string_value(json_object_get(j, "amount"))), 0);
    return p;
}

static void payout_trees_equal_the_contracts_vectors(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/payout/payout-trees.json");
    size_t i, n_trees = 0, n_proofs = 0;
    const json_t *t;
    json_array_foreach(json_object_get(all, "trees"), i, t)
    {
        const json_t *list = json_object_get(t, "leaves");
        const char *name = json_string_value(json_object_get(t, "name"));
        size_t n = json_array_size(list);
        struct payout *leaves = xcalloc(n, sizeof(*leaves));
        uint8_t root[32], want[32];
        struct amount sum, want_sum;
        struct err err;
        for (size_t k = 0; k < n; k++)
            leaves[k] = payout_of(json_array_get(list, k));
        assert_ok(payout_root(root, &sum, leaves, n, &err), err);
        assert_int_equal(hex_decode(want, 32, json_string_value(json_object_get(t, "payoutRoot"))),
                         0);
        assert_int_equal(amount_parse(&want_sum, json_string_value(json_object_get(t, "sum"))), 0);
        if (memcmp(root, want, 32) != 0 || amount_cmp(sum, want_sum) != 0)
            fail_msg("%s: root or sum differs", name);
        size_t k;
        const json_t *p;
        json_array_foreach(json_object_get(t, "proofs"), k, p)
        {
            struct payout_node siblings[PAYOUT_PROOF_MAX];
            size_t index = (size_t)json_integer_value(json_object_get(p, "index"));
            const json_t *list_want = json_object_get(p, "siblings");
            size_t depth = payout_proof(siblings, leaves, n, index);
            if (depth != json_array_size(list_want))
                fail_msg("%s: the proof of leaf %zu has %zu siblings", name, index, depth);
            for (size_t d = 0; d < depth; d++) {
                const json_t *s = json_array_get(list_want, d);
                assert_int_equal(
                    hex_decode(want, 32, json_string_value(json_object_get(s, "hash"))), 0);
                assert_memory_equal(siblings[d].hash, want, 32);
                assert_int_equal(
                    amount_parse(&want_sum, json_string_value(json_object_get(s, "sum"))), 0);
                assert_int_equal(amount_cmp(siblings[d].sum, want_sum), 0);
            }
            uint8_t climbed[32];
            struct amount climbed_sum;
            assert_ok(payout_climb(climbed, &climbed_sum, &leaves[index], (uint32_t)index,
                                   (uint32_t)n, siblings, depth, &err),
                      err);
            assert_memory_equal(climbed, root, 32);
            assert_int_equal(amount_cmp(climbed_sum, sum), 0);
            assert_int_equal(payout_climb(climbed, &climbed_sum, &leaves[index], (uint32_t)index,
                                          (uint32_t)n, siblings, depth + 1, &err),
                             -1);
            if (depth > 0)
                assert_int_equal(payout_climb(climbed, &climbed_sum, &leaves[index],
                                              (uint32_t)index, (uint32_t)n, siblings, depth - 1,
                                              &err),
                                 -1);
            n_proofs++;
        }
        free(leaves);
        n_trees++;
    }
    json_decref(all);
    printf("note: payout: %zu sum trees, %zu proofs equal the contracts' vectors\n", n_trees,
           n_proofs);
    assert_int_equal(n_trees, 40);
    assert_true(n_proofs > 40);
}

static void payout_leaves_must_ascend_and_their_sum_must_fit(void **state)
{
    (void)state;
    struct payout leaves[3] = {
        {.kind = PAYOUT_ADAPTER, .id = {1}, .position = 1, .amount = {5}},
        {.kind = PAYOUT_ADAPTER, .id = {1}, .position = 1, .amount = {6}},
        {.kind = PAYOUT_DATANET, .id = {0}, .amount = AMOUNT_MAX},
    };
    uint8_t root[32];
    struct amount sum;
    struct err err;
    assert_int_equal(payout_root(root, &sum, leaves, 2, &err), -1);
    assert_non_null(strstr(err.message, "leaf 1"));
    leaves[1].position = 0;
    assert_int_equal(payout_root(root, &sum, leaves, 2, &err), -1);
    leaves[1].position = 2;
    assert_ok(payout_root(root, &sum, leaves, 2, &err), err);
    assert_int_equal((int)sum.units, 11);
    assert_int_equal(payout_root(root, &sum, leaves, 3, &err), -1);
    assert_non_null(strstr(err.message, "128 bits"));
}

/* ---- splits --------------------------------------------------------------------------------- */

static uint64_t random_u64(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void a_split_sums_to_the_amount_and_errs_by_less_than_one(void **state)
{
    (void)state;
    uint64_t seed = 88172645463325252u;
    size_t n_cases = 0;
    for (size_t n = 1; n <= 2 * MANIFEST_SHARES_MAX; n++) {
        for (int round = 0; round < 40; round++) {
            uint16_t bps[2 * MANIFEST_SHARES_MAX];
            uint32_t left = BPS_WHOLE - (uint32_t)n;
            for (size_t i = 0; i < n; i++) {
                uint32_t more = i + 1 == n ? left : (uint32_t)(random_u64(&seed) % (left + 1));
                bps[i] = (uint16_t)(1 + more);
                left -= more;
            }
            struct amount amount = {(uint128)random_u64(&seed) << 64 | random_u64(&seed)};
            amount.units >>= random_u64(&seed) % 128;
            struct amount parts[2 * MANIFEST_SHARES_MAX], sum = AMOUNT_ZERO;
            payout_split(parts, amount, bps, n);
            for (size_t i = 0; i < n; i++) {
                assert_int_equal(amount_add(&sum, sum, parts[i]), 0);
                uint128 floor_part = amount.units / BPS_WHOLE * bps[i] +
                                     amount.units % BPS_WHOLE * bps[i] / BPS_WHOLE;
                if (parts[i].units != floor_part && parts[i].units != floor_part + 1)
                    fail_msg("share %zu of %zu is off by more than one unit", i, n);
            }
            assert_int_equal(amount_cmp(sum, amount), 0);
            n_cases++;
        }
    }
    printf("note: splits: %zu random ones sum exactly\n", n_cases);
}

static void left_over_units_go_to_the_largest_remainders_ties_to_the_lower_position(void **state)
{
    (void)state;
    static const struct {
        uint64_t amount;
        uint16_t bps[4];
        size_t n;
        uint64_t parts[4];
        const char *why;
    } rows[] = {
        {1, {5000, 5000}, 2, {1, 0}, "a tie goes to the lower position"},
        {1, {4999, 5001}, 2, {0, 1}, "the larger remainder wins"},
        {10, {3334, 3333, 3333}, 3, {4, 3, 3}, "one left over"},
        {2, {3333, 3333, 3334}, 3, {1, 0, 1}, "two left over: 3334 first, then the lower tie"},
        {3, {2500, 2500, 2500, 2500}, 4, {1, 1, 1, 0}, "three of four"},
        {9999, {1, 9999}, 2, {1, 9998}, "0.9999 beats 0.0001"},
        {0, {1, 9999}, 2, {0, 0}, "nothing"},
        {10000, {10000}, 1, {10000}, "all of it"},
    };
    for (size_t r = 0; r < sizeof(rows) / sizeof(*rows); r++) {
        struct amount parts[4];
        payout_split(parts, amount_of(rows[r].amount), rows[r].bps, rows[r].n);
        for (size_t i = 0; i < rows[r].n; i++) {
            if (parts[i].units != rows[r].parts[i])
                fail_msg("%s: share %zu got %llu, expected %llu", rows[r].why, i,
                         (unsigned long long)parts[i].units, (unsigned long long)rows[r].parts[i]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merkle_trees_equal_openzeppelins),
        cmocka_unit_test(a_malformed_multiproof_is_refused),
        cmocka_unit_test(a_receipts_leaf_binds_its_position),
        cmocka_unit_test(payout_trees_equal_the_contracts_vectors),
        cmocka_unit_test(payout_leaves_must_ascend_and_their_sum_must_fit),
        cmocka_unit_test(a_split_sums_to_the_amount_and_errs_by_less_than_one),
        cmocka_unit_test(left_over_units_go_to_the_largest_remainders_ties_to_the_lower_position),
    };
    return cmocka_run_group_tests_name("trees", tests, NULL, NULL);
}
