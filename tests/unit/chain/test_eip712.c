/* EIP-712: the general engine against public vectors, and the five messages against the engine. */
#include "tests/support.h"

#include "chain/eip712.h"
#include "chain/embedded.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void public_vectors_have_their_digests(void **state)
{
    (void)state;
    json_t *file = fixture_json("tests/vectors/ethers-v6/typed-data.json.gz"), *v;
    size_t i;
    json_array_foreach(file, i, v)
    {
        struct keccak_digest d;
        struct err e = {0};
        const char *name = json_string_value(json_object_get(v, "name"));
        if (eip712_digest_json(&d, json_object_get(v, "types"),
                               json_string_value(json_object_get(v, "primaryType")),
                               json_object_get(v, "domain"), json_object_get(v, "data"), &e) != 0)
            fail_msg("%s: %s", name, e.message);
        char got[67];
        hex_encode_0x(got, d.bytes, 32);
        if (strcmp(got, json_string_value(json_object_get(v, "digest"))) != 0)
            fail_msg("%s: got %s", name, got);
    }
    printf("note: %zu EIP-712 digests\n", i);
    json_decref(file);
}

/* Distinct bytes for every member, so that a swap of two can't hide. */
static uint8_t next_byte = 1;
static void fill(void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)p)[i] = next_byte++;
}

static json_t *hex_of(const void *p, size_t n)
{
    char text[67];
    return json_string(hex_encode_0x(text, p, n));
}

static json_t *number(uint64_t v)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, v);
    return json_string(text);
}

static json_t *money(struct amount a)
{
    char text[AMOUNT_TEXT_BYTES];
    return json_string(amount_format(text, a));
}

#define HEX(x) hex_of(&(x), sizeof(x))

static json_t *receipt_json(const struct receipt *r)
{
    json_t *shares = json_array();
    for (size_t i = 0; i < r->n_adapters; i++)
        json_array_append_new(shares, json_pack("{s:o,s:o,s:o}", "adapterId",
                                                HEX(r->adapters[i].adapter_id), "bps",
                                                number(r->adapters[i].bps), "royalty",
                                                money(r->adapters[i].royalty)));
    return json_pack(
        "{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "requestId",
        HEX(r->request_id), "operator", HEX(r->operator_address), "payer", HEX(r->payer), "channel",
        HEX(r->channel), "index", number(r->index), "prevReceiptHash", HEX(r->prev_receipt_hash),
        "modelId", HEX(r->model_id), "adapters", shares, "promptTokens", number(r->prompt_tokens),
        "completionTokens", number(r->completion_tokens), "computeFee", money(r->compute_fee),
        "royalty", money(r->royalty), "channelTotal", money(r->channel_total), "timestampMs",
        number(r->timestamp_ms), "requestHash", HEX(r->request_hash), "responseHash",
        HEX(r->response_hash), "attributionHash", HEX(r->attribution_hash));
}

static void expect(const char *type, const struct eip712_domain *d, json_t *message,
                   const uint8_t got[32])
{
    const json_t *names = json_object_get(json_object_get(embedded_types(), "domains"), type);
    json_t *domain = json_pack("{s:O,s:O,s:o,s:o}", "name", json_object_get(names, "name"),
                               "version", json_object_get(names, "version"), "chainId",
                               number(d->chain_id), "verifyingContract",
                               HEX(d->verifying_contract));
    struct keccak_digest want;
    struct err e = {0};
    assert_ok(eip712_digest_json(&want, json_object_get(embedded_types(), "types"), type, domain,
                                 message, &e),
              e);
    if (memcmp(want.bytes, got, 32) != 0)
        fail_msg("%s: the typed digest differs from the general engine's", type);
    json_decref(domain);
    json_decref(message);
}

static void the_five_messages_agree_with_the_engine(void **state)
{
    (void)state;
    struct eip712_domain domains[2] = {{0}, {.chain_id = 1612}};
    fill(&domains[1].verifying_contract, 20);
    for (size_t i = 0; i < 2; i++) {
        const struct eip712_domain *d = &domains[i];
        for (size_t n = 0; n <= 3; n++) {
            struct adapter_share shares[3];
            struct receipt r;
            memset(shares, 0, sizeof shares);
            memset(&r, 0, sizeof r);
            fill(&r, sizeof r);
            for (size_t k = 0; k < 3; k++) {
                fill(&shares[k].adapter_id, 32);
                fill(&shares[k].bps, 2);
                fill(&shares[k].royalty, 16);
            }
            r.adapters = shares;
            r.n_adapters = n;
            expect("Receipt", d, receipt_json(&r), eip712_receipt(&r, d).bytes);
        }
        struct voucher v;
        fill(&v, sizeof v);
        expect("Voucher", d,
               json_pack("{s:o,s:o,s:o,s:o,s:o,s:o}", "payer", HEX(v.payer), "operator",
                         HEX(v.operator_address), "channel", HEX(v.channel), "timestampMs",
                         number(v.timestamp_ms), "valueAggregate", money(v.value_aggregate),
                         "lastReceiptHash", HEX(v.last_receipt_hash)),
               eip712_voucher(&v, d).bytes);
        struct request_auth q;
        fill(&q, sizeof q);
        expect("Request", d,
               json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "payer", HEX(q.payer), "operator",
                         HEX(q.operator_address), "channel", HEX(q.channel), "nonce",
                         number(q.nonce), "requestHash", HEX(q.request_hash), "maxFee",
                         money(q.max_fee), "deadlineMs", number(q.deadline_ms)),
               eip712_request(&q, d).bytes);
        struct batch b;
        fill(&b, sizeof b);
        expect("Batch", d,
               json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "operator",
                         HEX(b.operator_address), "seq", number(b.seq), "leafCount",
                         number(b.leaf_count), "receiptsRoot", HEX(b.receipts_root), "payoutRoot",
                         HEX(b.payout_root), "committed", money(b.committed), "periodStart",
                         number(b.period_start), "periodEnd", number(b.period_end), "dataHash",
                         HEX(b.data_hash), "prevBatchHash", HEX(b.prev_batch_hash)),
               eip712_batch(&b, d).bytes);
        struct manifest m;
        fill(&m, sizeof m);
        expect("Manifest", d,
               json_pack("{s:o,s:o,s:o,s:o,s:o,s:o}", "manifestHash", HEX(m.manifest_hash),
                         "contentDigest", HEX(m.content_digest), "modelId", HEX(m.model_id),
                         "creator", HEX(m.creator), "version", number(m.version), "parent",
                         HEX(m.parent)),
               eip712_manifest(&m, d).bytes);
    }
}

static void type_strings_are_those_of_types_json(void **state)
{
    (void)state;
    assert_string_equal(eip712_type_string("Voucher"),
                        "Voucher(address payer,address operator,bytes32 channel,uint64 timestampMs,"
                        "uint128 valueAggregate,bytes32 lastReceiptHash)");
    const char *receipt = eip712_type_string("Receipt");
    static const char *const tail = ")AdapterShare(bytes32 adapterId,uint16 bps,uint128 royalty)";
    assert_string_equal(receipt + strlen(receipt) - strlen(tail), tail);
    assert_null(eip712_type_string("Nothing"));
}

static void messages_that_do_not_fit_their_type_say_where(void **state)
{
    (void)state;
    static const struct {
        const char *types, *message, *where;
    } rows[] = {
        {"{'A':[{'name':'x','type':'uint8'}]}", "{}", "A.x is missing"},
        {"{'A':[{'name':'x','type':'uint8'}]}", "{'x':256}", "A.x: 256 does not fit"},
        {"{'A':[{'name':'x','type':'B'}]}", "{'x':1}", "unknown type B"},
        {"{'A':[{'name':'x','type':'uint8[2]'}]}", "{'x':[1]}", "expected uint8[2]"},
        {"{'A':[{'name':'x','type':'A[]'}]}", "{'x':[{'x':[]},{'x':3}]}", "expected an array"},
        {"{'A':[{'name':'x'}]}", "{'x':1}", "without name or type"},
    };
    json_t *domain = json_object();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char types[200], message[200];
        snprintf(types, sizeof types, "%s", rows[i].types);
        snprintf(message, sizeof message, "%s", rows[i].message);
        for (char *p = types; *p; p++)
            *p = *p == '\'' ? '"' : *p;
        for (char *p = message; *p; p++)
            *p = *p == '\'' ? '"' : *p;
        json_t *t = json_loads(types, 0, NULL), *m = json_loads(message, 0, NULL);
        struct keccak_digest d;
        struct err e = {0};
        assert_int_equal(eip712_digest_json(&d, t, "A", domain, m, &e), -1);
        if (strstr(e.message, rows[i].where) == NULL)
            fail_msg("expected \"%s\", got \"%s\"", rows[i].where, e.message);
        json_decref(t);
        json_decref(m);
    }
    json_decref(domain);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(public_vectors_have_their_digests),
        cmocka_unit_test(the_five_messages_agree_with_the_engine),
        cmocka_unit_test(type_strings_are_those_of_types_json),
        cmocka_unit_test(messages_that_do_not_fit_their_type_say_where),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
