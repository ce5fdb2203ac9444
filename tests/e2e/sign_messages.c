/* sign_messages: signs one of each message with a given key, in C, for signatures.test.mjs to
 * check.
 *
 * usage: sign_messages CHAIN_ID LEDGER ESCROW REGISTRY OPERATOR SEED < KEY_HEX
 *
 * Fields are drawn from SEED; the key signs everything, its account being payer and creator. Prints
 * one JSON object: {"Receipt":{"message","signature","digest"},...}. Numbers are decimal strings.
 */
#include "chain/eip712.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "wallet/wallet.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state;

static uint64_t draw(void)
{
    state += 0x9e3779b97f4a7c15;
    uint64_t z = state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static void draw_bytes(void *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ((uint8_t *)p)[i] = (uint8_t)draw();
}

static json_t *hex(const void *p, size_t n)
{
    char text[2 * 65 + 3];
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

#define HEX(x) hex(&(x), sizeof(x))

static struct amount draw_amount(void)
{
    struct amount a = {((uint128)draw() << 64 | draw()) >> (draw() % 120)};
    return a;
}

static void add(json_t *out, const char *type, json_t *message, const struct signature *s,
                const void *digest)
{
    uint8_t bytes[SIGNATURE_BYTES];
    signature_to_bytes(bytes, s);
    json_object_set_new(out, type,
                        json_pack("{s:o,s:o,s:o}", "message", message, "signature",
                                  hex(bytes, sizeof bytes), "digest", hex(digest, 32)));
}

static void must(int rc, const struct err *err)
{
    if (rc != 0) {
        fprintf(stderr, "sign_messages: %s\n", err->message);
        exit(1);
    }
}

static void sign_receipt(json_t *out, struct wallet *w, struct address self,
                         struct address operator_address, const struct eip712_domain *d)
{
    struct adapter_share shares[3];
    struct receipt r;
    struct err err;
    struct signature s;
    draw_bytes(&r, sizeof r);
    r.operator_address = operator_address;
    r.payer = self;
    r.compute_fee = draw_amount();
    r.royalty = draw_amount();
    r.channel_total = draw_amount();
    r.n_adapters = draw() % 4;
    r.adapters = shares;
    json_t *list = json_array();
    for (size_t i = 0; i < r.n_adapters; i++) {
        draw_bytes(&shares[i], sizeof shares[i]);
        shares[i].royalty = draw_amount();
        json_array_append_new(
            list, json_pack("{s:o,s:o,s:o}", "adapterId", HEX(shares[i].adapter_id), "bps",
                            number(shares[i].bps), "royalty", money(shares[i].royalty)));
    }
    struct receipt_digest digest = eip712_receipt(&r, d);
    must(wallet_sign_receipt(w, "key", &s, &digest, &err), &err);
    add(out, "Receipt",
        json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}",
                  "requestId", HEX(r.request_id), "operator", HEX(r.operator_address), "payer",
                  HEX(r.payer), "channel", HEX(r.channel), "index", number(r.index),
                  "prevReceiptHash", HEX(r.prev_receipt_hash), "modelId", HEX(r.model_id),
                  "adapters", list, "promptTokens", number(r.prompt_tokens), "completionTokens",
                  number(r.completion_tokens), "computeFee", money(r.compute_fee), "royalty",
                  money(r.royalty), "channelTotal", money(r.channel_total), "timestampMs",
                  number(r.timestamp_ms), "requestHash", HEX(r.request_hash), "responseHash",
                  HEX(r.response_hash), "attributionHash", HEX(r.attribution_hash)),
        &s, digest.bytes);
}

static void sign_payers(json_t *out, struct wallet *w, struct address self,
                        struct address operator_address, const struct eip712_domain *d)
{
    struct err err;
    struct signature s;
    struct voucher v;
    draw_bytes(&v, sizeof v);
    v.payer = self;
    v.operator_address = operator_address;
    struct channel_id channel = channel_id_of(self, operator_address, 0);
    memcpy(v.channel, channel.bytes, 32);
    v.value_aggregate = amount_of(1 + draw() % 1000000);
    struct voucher_digest vd = eip712_voucher(&v, d);
    must(wallet_sign_voucher(w, "key", &s, &vd, &err), &err);
    add(out, "Voucher",
        json_pack("{s:o,s:o,s:o,s:o,s:o,s:o}", "payer", HEX(v.payer), "operator",
                  HEX(v.operator_address), "channel", HEX(v.channel), "timestampMs",
                  number(v.timestamp_ms), "valueAggregate", money(v.value_aggregate),
                  "lastReceiptHash", HEX(v.last_receipt_hash)),
        &s, vd.bytes);
    struct request_auth q;
    draw_bytes(&q, sizeof q);
    q.payer = self;
    q.operator_address = operator_address;
    q.max_fee = draw_amount();
    struct request_digest qd = eip712_request(&q, d);
    must(wallet_sign_request(w, "key", &s, &qd, &err), &err);
    add(out, "Request",
        json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "payer", HEX(q.payer), "operator",
                  HEX(q.operator_address), "channel", HEX(q.channel), "nonce", number(q.nonce),
                  "requestHash", HEX(q.request_hash), "maxFee", money(q.max_fee), "deadlineMs",
                  number(q.deadline_ms)),
        &s, qd.bytes);
}

static void sign_batch(json_t *out, struct wallet *w, struct address operator_address,
                       const struct eip712_domain *d)
{
    struct err err;
    struct signature s;
    struct batch b;
    draw_bytes(&b, sizeof b);
    b.operator_address = operator_address;
    b.seq = 0;
    b.leaf_count = 1 + (uint32_t)(draw() % 1000);
    b.committed = AMOUNT_ZERO;
    b.period_start >>= 1;
    b.period_end = b.period_start + 5;
    memset(b.prev_batch_hash, 0, 32);
    struct batch_digest digest = eip712_batch(&b, d);
    must(wallet_sign_batch(w, "key", &s, &digest, &err), &err);
    add(out, "Batch",
        json_pack("{s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o,s:o}", "operator", HEX(b.operator_address),
                  "seq", number(b.seq), "leafCount", number(b.leaf_count), "receiptsRoot",
                  HEX(b.receipts_root), "payoutRoot", HEX(b.payout_root), "committed",
                  money(b.committed), "periodStart", number(b.period_start), "periodEnd",
                  number(b.period_end), "dataHash", HEX(b.data_hash), "prevBatchHash",
                  HEX(b.prev_batch_hash)),
        &s, digest.bytes);
}

static void sign_manifest(json_t *out, struct wallet *w, struct address self,
                          const struct eip712_domain *d)
{
    struct err err;
    struct signature s;
    struct manifest m;
    draw_bytes(&m, sizeof m);
    m.creator = self;
    memset(&m.parent, 0, sizeof m.parent);
    struct manifest_digest digest = eip712_manifest(&m, d);
    must(wallet_sign_manifest(w, "key", &s, &digest, &err), &err);
    add(out, "Manifest",
        json_pack("{s:o,s:o,s:o,s:o,s:o,s:o}", "manifestHash", HEX(m.manifest_hash),
                  "contentDigest", HEX(m.content_digest), "modelId", HEX(m.model_id), "creator",
                  HEX(m.creator), "version", number(m.version), "parent", HEX(m.parent)),
        &s, digest.bytes);
}

int main(int argc, char **argv)
{
    struct wallet_memory_key key = {.name = "key"};
    char text[70];
    struct err err = {0};
    struct address ledger, escrow, registry, operator_address, self;
    if (argc != 7 || scanf("%69s", text) != 1 || hex_decode(key.key, 32, text) != 0 ||
        address_parse(&ledger, argv[2]) != 0 || address_parse(&escrow, argv[3]) != 0 ||
        address_parse(&registry, argv[4]) != 0 || address_parse(&operator_address, argv[5]) != 0) {
        fprintf(stderr, "usage: sign_messages CHAIN_ID LEDGER ESCROW REGISTRY OPERATOR SEED\n");
        return 64;
    }
    state = strtoull(argv[6], NULL, 10);
    struct wallet *w = wallet_open_memory(&key, 1, &err);
    must(w == NULL ? -1 : wallet_key_address(w, "key", &self, &err), &err);
    uint64_t chain_id = strtoull(argv[1], NULL, 10);
    json_t *out = json_object();
    sign_receipt(out, w, self, operator_address, &(struct eip712_domain){chain_id, ledger});
    sign_batch(out, w, operator_address, &(struct eip712_domain){chain_id, ledger});
    sign_payers(out, w, self, operator_address, &(struct eip712_domain){chain_id, escrow});
    sign_manifest(out, w, self, &(struct eip712_domain){chain_id, registry});
    json_dumpf(out, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(out);
    wallet_close(w);
    return 0;
}
