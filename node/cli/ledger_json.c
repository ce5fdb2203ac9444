/* ledger_json: see ledger_json.h. A reader remembers the first field that did not fit, so that a
 * struct can be read in one run of lines. */
#include "node/cli/ledger_json.h"

#include "node/base/arena.h"
#include "node/base/err.h"
#include "node/base/hex.h"
#include "node/base/usage.h"

#include <string.h>

enum { SIBLINGS_MAX = 64, SHARES_MAX = 64 };

struct reader {
    struct err *err;
    bool failed;
};

static void fail(struct reader *r, const char *key, const char *want)
{
    if (!r->failed)
        err_set(r->err, ERR_CORRUPT, "%s is not %s", key, want);
    r->failed = true;
}

static void read_hex(struct reader *r, uint8_t *out, size_t n, const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    if (text == NULL || hex_decode(out, n, text) != 0)
        fail(r, key, n == 20 ? "an address" : "hexadecimal digits of the right number");
}

static void read_amount(struct reader *r, struct amount *out, const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    if (text == NULL || amount_parse(out, text) != 0)
        fail(r, key, "an amount");
}

static uint64_t read_number(struct reader *r, const json_t *o, const char *key, uint64_t most)
{
    const json_t *v = json_object_get(o, key);
    if (!json_is_integer(v) || json_integer_value(v) < 0 ||
        (uint64_t)json_integer_value(v) > most) {
        fail(r, key, "a number that fits");
        return 0;
    }
    return (uint64_t)json_integer_value(v);
}

static void read_signature(struct reader *r, struct signature *out, const json_t *o,
                           const char *key)
{
    uint8_t bytes[SIGNATURE_BYTES] = {0};
    read_hex(r, bytes, sizeof bytes, o, key);
    if (!r->failed && signature_from_bytes(out, bytes) != 0)
        fail(r, key, "a signature");
}

int receipt_from_json(struct parsed_receipt *out, const json_t *o, struct arena *arena,
                      struct err *err)
{
    struct reader r = {err, false};
    struct receipt *t = &out->receipt;
    *out = (struct parsed_receipt){0};
    const json_t *domain = json_object_get(o, "domain"), *f = json_object_get(o, "receipt");
    const json_t *shares = json_object_get(f, "adapters");
    out->domain.chain_id = read_number(&r, domain, "chainId", UINT64_MAX >> 1);
    read_hex(&r, out->domain.verifying_contract.bytes, 20, domain, "verifyingContract");
    read_hex(&r, out->hash.bytes, 32, o, "receiptHash");
    read_signature(&r, &out->signature, o, "signature");
    read_hex(&r, out->signer.bytes, 20, o, "signer");
    read_hex(&r, t->request_id, 32, f, "requestId");
    read_hex(&r, t->operator_address.bytes, 20, f, "operator");
    read_hex(&r, t->payer.bytes, 20, f, "payer");
    read_hex(&r, t->channel, 32, f, "channel");
    t->index = read_number(&r, f, "index", UINT64_MAX >> 1);
    read_hex(&r, t->prev_receipt_hash, 32, f, "prevReceiptHash");
    read_hex(&r, t->model_id.bytes, 32, f, "modelId");
    t->prompt_tokens = (uint32_t)read_number(&r, f, "promptTokens", UINT32_MAX);
    t->completion_tokens = (uint32_t)read_number(&r, f, "completionTokens", UINT32_MAX);
    read_amount(&r, &t->compute_fee, f, "computeFee");
    read_amount(&r, &t->royalty, f, "royalty");
    read_amount(&r, &t->channel_total, f, "channelTotal");
    t->timestamp_ms = read_number(&r, f, "timestampMs", UINT64_MAX >> 1);
    read_hex(&r, t->request_hash.bytes, 32, f, "requestHash");
    read_hex(&r, t->response_hash.bytes, 32, f, "responseHash");
    read_hex(&r, t->attribution_hash.bytes, 32, f, "attributionHash");
    if (!json_is_array(shares) || json_array_size(shares) > USAGE_ADAPTERS_MAX)
        fail(&r, "adapters", "a short list");
    size_t n = r.failed ? 0 : json_array_size(shares);
    struct adapter_share *list = arena_array(arena, n + 1, sizeof *list);
    for (size_t i = 0; i < n; i++) {
        const json_t *share = json_array_get(shares, i);
        read_hex(&r, list[i].adapter_id.bytes, 32, share, "adapterId");
        list[i].bps = (uint16_t)read_number(&r, share, "bps", UINT16_MAX);
        read_amount(&r, &list[i].royalty, share, "royalty");
    }
    t->adapters = list;
    t->n_adapters = n;
    return r.failed ? err_wrap(err, "receipt") : 0;
}

int batch_from_json(struct batch *out, struct batch_digest *digest, const json_t *o,
                    struct err *err)
{
    struct reader r = {err, false};
    *out = (struct batch){0};
    read_hex(&r, out->operator_address.bytes, 20, o, "operator");
    out->seq = read_number(&r, o, "seq", UINT64_MAX >> 1);
    out->leaf_count = (uint32_t)read_number(&r, o, "leafCount", UINT32_MAX);
    read_hex(&r, out->receipts_root, 32, o, "receiptsRoot");
    read_hex(&r, out->payout_root, 32, o, "payoutRoot");
    read_amount(&r, &out->committed, o, "committed");
    out->period_start = read_number(&r, o, "periodStart", UINT64_MAX >> 1);
    out->period_end = read_number(&r, o, "periodEnd", UINT64_MAX >> 1);
    read_hex(&r, out->data_hash.bytes, 32, o, "dataHash");
    read_hex(&r, out->prev_batch_hash, 32, o, "prevBatchHash");
    read_hex(&r, digest->bytes, 32, o, "batchHash");
    return r.failed ? err_wrap(err, "batch") : 0;
}

static const struct splits *read_splits(struct reader *r, const json_t *o, struct arena *arena)
{
    const json_t *payees = json_object_get(o, "payees"), *bps = json_object_get(o, "bps");
    const json_t *datanets = json_object_get(o, "datanets");
    const json_t *datanet_bps = json_object_get(o, "datanetBps");
    size_t n = json_array_size(payees), k = json_array_size(datanets);
    if (n != json_array_size(bps) || k != json_array_size(datanet_bps) || n > SHARES_MAX ||
        k > SHARES_MAX) {
        fail(r, "splits", "two lists of pairs");
        return NULL;
    }
    struct payee_share *p = arena_array(arena, n + 1, sizeof *p);
    struct datanet_share *d = arena_array(arena, k + 1, sizeof *d);
    struct splits *s = arena_alloc(arena, sizeof *s);
    for (size_t i = 0; i < n; i++) {
        const char *text = json_string_value(json_array_get(payees, i));
        if (text == NULL || hex_decode(p[i].payee.bytes, 20, text) != 0)
            fail(r, "payees", "a list of addresses");
        p[i].bps = (uint16_t)json_integer_value(json_array_get(bps, i));
    }
    for (size_t i = 0; i < k; i++) {
        const char *text = json_string_value(json_array_get(datanets, i));
        if (text == NULL || hex_decode(d[i].datanet, 32, text) != 0)
            fail(r, "datanets", "a list of ids");
        d[i].bps = (uint16_t)json_integer_value(json_array_get(datanet_bps, i));
    }
    *s = (struct splits){p, n, d, k};
    return s;
}

int payout_from_json(struct payout_claim *out, const json_t *o, struct arena *arena,
                     struct err *err)
{
    struct reader r = {err, false};
    const json_t *payout = json_object_get(o, "payout"), *proof = json_object_get(o, "proof");
    const json_t *siblings = json_object_get(proof, "siblings");
    const json_t *splits = json_object_get(o, "splits");
    *out = (struct payout_claim){0};
    out->kind = (uint8_t)read_number(&r, payout, "kind", 2);
    read_hex(&r, out->id, 32, payout, "id");
    out->position = (uint16_t)read_number(&r, payout, "position", UINT16_MAX);
    read_amount(&r, &out->amount, payout, "amount");
    out->index = (uint32_t)read_number(&r, proof, "index", UINT32_MAX);
    out->leaf_count = (uint32_t)read_number(&r, proof, "leafCount", UINT32_MAX);
    if (!json_is_array(siblings) || json_array_size(siblings) > SIBLINGS_MAX)
        fail(&r, "siblings", "a short list");
    size_t n = r.failed ? 0 : json_array_size(siblings);
    struct payout_sibling *list = arena_array(arena, n + 1, sizeof *list);
    for (size_t i = 0; i < n; i++) {
        read_hex(&r, list[i].hash, 32, json_array_get(siblings, i), "hash");
        read_amount(&r, &list[i].sum, json_array_get(siblings, i), "sum");
    }
    out->siblings = list;
    out->n_siblings = n;
    if (json_is_object(splits))
        out->splits = read_splits(&r, splits, arena);
    return r.failed ? err_wrap(err, "payout proof") : 0;
}

int proof_from_json(uint8_t (**out)[32], size_t *n, const json_t *array, struct arena *arena,
                    struct err *err)
{
    *n = json_array_size(array);
    if (!json_is_array(array) || *n > SIBLINGS_MAX)
        return err_set(err, ERR_CORRUPT, "the proof is not a short list");
    *out = arena_array(arena, *n + 1, 32);
    for (size_t i = 0; i < *n; i++) {
        const char *text = json_string_value(json_array_get(array, i));
        if (text == NULL || hex_decode((*out)[i], 32, text) != 0)
            return err_set(err, ERR_CORRUPT, "the proof's element %zu is no hash", i);
    }
    return 0;
}
