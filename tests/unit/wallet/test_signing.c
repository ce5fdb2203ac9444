/* Signatures end to end: chain/ encodes, the wallet signs, and the bytes are those that ethers
 * made: 11,264 transactions of four kinds and one typed-data message. Then the five messages of
 * contracts-abi/types.json, signed and recovered through their own digest types. */
#include "tests/unit/wallet/vector.h"

#include "chain/eip712.h"
#include "chain/tx.h"
#include "node/base/arena.h"
#include "wallet/ecdsa.h"
#include "wallet/wallet.h"

#include <stdlib.h>

/* A wallet that holds one key, "k". */
static struct wallet *wallet_of(const char *key_hex)
{
    struct wallet_memory_key k = {.name = "k"};
    struct err err;
    assert_int_equal(hex_decode(k.key, 32, key_hex), 0);
    struct wallet *w = wallet_open_memory(&k, 1, &err);
    if (w == NULL)
        fail_msg("%s", err.message);
    return w;
}

struct scratch {
    struct buf unsigned_bytes, want, got;
    struct arena arena;
};

/* Parses the unsigned form, signs it, and compares with the signed form; false: no such form. */
static bool sign_and_compare(struct scratch *s, struct wallet *w, const json_t *v, const char *form)
{
    char unsigned_key[24], signed_key[24];
    snprintf(unsigned_key, sizeof unsigned_key, "unsigned%s", form);
    snprintf(signed_key, sizeof signed_key, "signed%s", form);
    if (vector_str(v, signed_key)[0] == '\0')
        return false;
    const char *name = vector_str(v, "name");
    struct err err = {0};
    struct tx tx;
    struct signature sig;
    struct address want, got;
    bool is_signed;
    vector_bytes(&s->unsigned_bytes, vector_str(v, unsigned_key));
    vector_bytes(&s->want, vector_str(v, signed_key));
    if (tx_parse(&tx, &sig, &is_signed, &s->arena, s->unsigned_bytes.data, s->unsigned_bytes.len,
                 &err) != 0)
        fail_msg("%s, %s: %s", name, form, err.message);
    assert_false(is_signed);
    struct tx_digest digest = tx_signing_digest(&tx);
    assert_ok(wallet_sign_transaction(w, "k", &sig, &digest, &err), err);
    buf_reset(&s->got);
    tx_write_signed(&s->got, &tx, &sig);
    if (s->got.len != s->want.len || memcmp(s->got.data, s->want.data, s->want.len) != 0)
        fail_msg("%s, %s: the signed bytes differ", name, form);
    assert_ok(wallet_key_address(w, "k", &want, &err), err);
    assert_ok(wallet_recover_transaction(&got, &sig, &digest, &err), err);
    assert_true(address_eq(got, want));
    arena_release(&s->arena);
    return true;
}

static void transactions_come_out_as_ethers_signs_them(void **state)
{
    (void)state;
    static const char *const forms[] = {"Legacy", "Eip155", "Berlin", "London"};
    size_t counts[COUNT(forms)] = {0}, total = 0, i;
    json_t *all = fixture_json("tests/vectors/ethers-v6/transactions.json.gz");
    struct scratch s = {BUF_INIT, BUF_INIT, BUF_INIT, ARENA_INIT};
    const json_t *v;
    json_array_foreach(all, i, v)
    {
        struct wallet *w = wallet_of(vector_str(v, "privateKey"));
        for (size_t f = 0; f < COUNT(forms); f++)
            counts[f] += sign_and_compare(&s, w, v, forms[f]);
        wallet_close(w);
    }
    for (size_t f = 0; f < COUNT(forms); f++)
        total += counts[f];
    printf("note: ethers transactions signed byte for byte: %zu (legacy %zu, EIP-155 %zu, EIP-2930 "
           "%zu, EIP-1559 %zu)\n",
           total, counts[0], counts[1], counts[2], counts[3]);
    assert_int_equal(total, 11264);
    buf_release(&s.unsigned_bytes);
    buf_release(&s.want);
    buf_release(&s.got);
    json_decref(all);
}

static void the_typed_data_signature_of_ethers_comes_out_byte_for_byte(void **state)
{
    (void)state;
    json_t *all = fixture_json("tests/vectors/ethers-v6/typed-data.json.gz");
    struct buf want = BUF_INIT;
    size_t i, n = 0;
    const json_t *v;
    json_array_foreach(all, i, v)
    {
        if (json_object_get(v, "signature") == NULL)
            continue;
        struct ecdsa_signature sig;
        struct keccak_digest digest;
        struct err err;
        struct secret *key = vector_secret(vector_str(v, "privateKey"));
        assert_ok(eip712_digest_json(&digest, json_object_get(v, "types"),
                                     vector_str(v, "primaryType"), json_object_get(v, "domain"),
                                     json_object_get(v, "data"), &err),
                  err);
        vector_bytes(&want, vector_str(v, "signature"));
        assert_int_equal(want.len, 65);
        assert_ok(ecdsa_sign(&sig, digest.bytes, key, &err), err);
        assert_memory_equal(sig.r, want.data, 32);
        assert_memory_equal(sig.s, want.data + 32, 32);
        assert_int_equal(27 + sig.recovery, want.data[64]);
        secret_free(key);
        n++;
    }
    printf("note: ethers typed-data signatures: %zu\n", n);
    assert_int_equal(n, 1);
    json_decref(all);
    buf_release(&want);
}

/* ---- the five messages
 * --------------------------------------------------------------------------- */

static void take_bytes(uint8_t *out, size_t n, const json_t *m, const char *key)
{
    if (hex_decode(out, n, vector_str(m, key)) != 0)
        fail_msg("\"%s\" is not %zu bytes", key, n);
}

static uint64_t take_number(const json_t *m, const char *key)
{
    return strtoull(vector_str(m, key), NULL, 10);
}

static struct amount take_amount(const json_t *m, const char *key)
{
    struct amount a;
    if (amount_parse(&a, vector_str(m, key)) != 0)
        fail_msg("\"%s\" is not an amount", key);
    return a;
}

#define TAKE(member, key)    take_bytes(member.bytes, sizeof member.bytes, m, key)
#define TAKE_32(member, key) take_bytes(member, 32, m, key)

/* Each fills its struct from the vector, digests, signs and recovers; the vector's digest,
 * signature and address are compared by the caller. */
struct signed_message {
    uint8_t digest[32];
    struct signature sig;
    struct address recovered;
};

#define SIGN(thing, digest_value)                                                                  \
    do {                                                                                           \
        memcpy(out->digest, (digest_value).bytes, 32);                                             \
        assert_ok(wallet_sign_##thing(w, "k", &out->sig, &(digest_value), &err), err);             \
        assert_ok(wallet_recover_##thing(&out->recovered, &out->sig, &(digest_value), &err), err); \
    } while (0)

static void sign_receipt(struct signed_message *out, struct wallet *w, const json_t *m,
                         const struct eip712_domain *domain)
{
    struct receipt r = {0};
    struct adapter_share shares[8];
    struct err err;
    const json_t *list = json_object_get(m, "adapters"), *share;
    assert_true(json_array_size(list) <= COUNT(shares));
    json_array_foreach(list, r.n_adapters, share)
    {
        struct adapter_share *s = &shares[r.n_adapters];
        take_bytes(s->adapter_id.bytes, 32, share, "adapterId");
        s->bps = (uint16_t)take_number(share, "bps");
        s->royalty = take_amount(share, "royalty");
    }
    r.adapters = shares;
    TAKE_32(r.request_id, "requestId");
    TAKE(r.operator_address, "operator");
    TAKE(r.payer, "payer");
    TAKE_32(r.channel, "channel");
    r.index = take_number(m, "index");
    TAKE_32(r.prev_receipt_hash, "prevReceiptHash");
    TAKE(r.model_id, "modelId");
    r.prompt_tokens = (uint32_t)take_number(m, "promptTokens");
    r.completion_tokens = (uint32_t)take_number(m, "completionTokens");
    r.compute_fee = take_amount(m, "computeFee");
    r.royalty = take_amount(m, "royalty");
    r.channel_total = take_amount(m, "channelTotal");
    r.timestamp_ms = take_number(m, "timestampMs");
    TAKE(r.request_hash, "requestHash");
    TAKE(r.response_hash, "responseHash");
    TAKE(r.attribution_hash, "attributionHash");
    struct receipt_digest d = eip712_receipt(&r, domain);
    SIGN(receipt, d);
}

static void sign_voucher(struct signed_message *out, struct wallet *w, const json_t *m,
                         const struct eip712_domain *domain)
{
    struct voucher v = {0};
    struct err err;
    TAKE(v.payer, "payer");
    TAKE(v.operator_address, "operator");
    TAKE_32(v.channel, "channel");
    v.timestamp_ms = take_number(m, "timestampMs");
    v.value_aggregate = take_amount(m, "valueAggregate");
    TAKE_32(v.last_receipt_hash, "lastReceiptHash");
    struct voucher_digest d = eip712_voucher(&v, domain);
    SIGN(voucher, d);
}

static void sign_request(struct signed_message *out, struct wallet *w, const json_t *m,
                         const struct eip712_domain *domain)
{
    struct request_auth q = {0};
    struct err err;
    TAKE(q.payer, "payer");
    TAKE(q.operator_address, "operator");
    TAKE_32(q.channel, "channel");
    q.nonce = take_number(m, "nonce");
    TAKE(q.request_hash, "requestHash");
    q.max_fee = take_amount(m, "maxFee");
    q.deadline_ms = take_number(m, "deadlineMs");
    struct request_digest d = eip712_request(&q, domain);
    SIGN(request, d);
}

static void sign_batch(struct signed_message *out, struct wallet *w, const json_t *m,
                       const struct eip712_domain *domain)
{
    struct batch b = {0};
    struct err err;
    TAKE(b.operator_address, "operator");
    b.seq = take_number(m, "seq");
    b.leaf_count = (uint32_t)take_number(m, "leafCount");
    TAKE_32(b.receipts_root, "receiptsRoot");
    TAKE_32(b.payout_root, "payoutRoot");
    b.committed = take_amount(m, "committed");
    b.period_start = take_number(m, "periodStart");
    b.period_end = take_number(m, "periodEnd");
    TAKE(b.data_hash, "dataHash");
    TAKE_32(b.prev_batch_hash, "prevBatchHash");
    struct batch_digest d = eip712_batch(&b, domain);
    SIGN(batch, d);
}

static void sign_manifest(struct signed_message *out, struct wallet *w, const json_t *m,
                          const struct eip712_domain *domain)
{
    struct manifest f = {0};
    struct err err;
    TAKE(f.manifest_hash, "manifestHash");
    TAKE(f.content_digest, "contentDigest");
    TAKE(f.model_id, "modelId");
    TAKE(f.creator, "creator");
    f.version = take_number(m, "version");
    TAKE(f.parent, "parent");
    struct manifest_digest d = eip712_manifest(&f, domain);
    SIGN(manifest, d);
}

static void messages_come_out_as_ethers_signs_them(void **state)
{
    (void)state;
    static const struct {
        const char *primary;
        void (*sign)(struct signed_message *, struct wallet *, const json_t *,
                     const struct eip712_domain *);
    } kinds[] = {{"Receipt", sign_receipt},
                 {"Voucher", sign_voucher},
                 {"Request", sign_request},
                 {"Batch", sign_batch},
                 {"Manifest", sign_manifest}};
    size_t counts[COUNT(kinds)] = {0}, i;
    json_t *all = fixture_json("tests/vectors/messages/messages.json.gz");
    const json_t *v;
    json_array_foreach(all, i, v)
    {
        size_t k = 0;
        while (k < COUNT(kinds) && strcmp(kinds[k].primary, vector_str(v, "primary")) != 0)
            k++;
        assert_true(k < COUNT(kinds));
        struct eip712_domain domain = {
            .chain_id = (uint64_t)json_integer_value(json_object_get(v, "chainId"))};
        take_bytes(domain.verifying_contract.bytes, 20, v, "verifyingContract");
        struct wallet *w = wallet_of(vector_str(v, "key"));
        struct signed_message got;
        uint8_t digest[32], signature[SIGNATURE_BYTES], got_signature[SIGNATURE_BYTES], address[20];
        kinds[k].sign(&got, w, json_object_get(v, "message"), &domain);
        wallet_close(w);
        take_bytes(digest, 32, v, "digest");
        take_bytes(signature, SIGNATURE_BYTES, v, "signature");
        take_bytes(address, 20, v, "address");
        signature_to_bytes(got_signature, &got.sig);
        if (memcmp(got.digest, digest, 32) != 0)
            fail_msg("case %zu: the digest of a %s differs from ethers'", i, kinds[k].primary);
        if (memcmp(got_signature, signature, sizeof signature) != 0)
            fail_msg("case %zu: the signature of a %s differs from ethers'", i, kinds[k].primary);
        if (memcmp(got.recovered.bytes, address, 20) != 0)
            fail_msg("case %zu: a %s recovers to somebody else", i, kinds[k].primary);
        counts[k]++;
    }
    for (size_t k = 0; k < COUNT(kinds); k++)
        assert_int_equal(counts[k], 12);
    printf("note: messages of types.json signed byte for byte as by ethers: %zu\n", i);
    json_decref(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(transactions_come_out_as_ethers_signs_them),
        cmocka_unit_test(the_typed_data_signature_of_ethers_comes_out_byte_for_byte),
        cmocka_unit_test(messages_come_out_as_ethers_signs_them),
    };
    return cmocka_run_group_tests_name("signing", tests, NULL, NULL);
}
