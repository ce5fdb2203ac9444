/* contract_registry: AdapterRegistry, and the splits that it keeps the hash of. See contracts.h. */
#include "chain/contract_calls.h"

#include "chain/abi.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#define SPLITS "(address[],uint16[],bytes32[],uint16[])"

static json_t *splits_value(const struct splits *s)
{
    json_t *payees = json_array(), *bps = json_array(), *datanets = json_array(),
           *datanet_bps = json_array();
    for (size_t i = 0; i < s->n_payees; i++) {
        json_array_append_new(payees, call_address_value(s->payees[i].payee));
        json_array_append_new(bps, call_u64_value(s->payees[i].bps));
    }
    for (size_t i = 0; i < s->n_datanets; i++) {
        json_array_append_new(datanets, call_word_value(s->datanets[i].datanet));
        json_array_append_new(datanet_bps, call_u64_value(s->datanets[i].bps));
    }
    return json_pack("[o, o, o, o]", payees, bps, datanets, datanet_bps);
}

void splits_encode(struct buf *out, const struct splits *s)
{
    /* abi.encode of one struct argument: a tuple of one. */
    json_t *value = json_pack("[o]", splits_value(s));
    BUG_IF(abi_encode(out, "(" SPLITS ")", value, NULL) != 0);
    json_decref(value);
}

json_t *call_shown_splits_value(const struct splits *s)
{
    struct buf b = BUF_INIT;
    if (s != NULL)
        splits_encode(&b, s);
    json_t *value = call_bytes_value(b.data, b.len);
    buf_release(&b);
    return value;
}

static json_t *manifest_value(const struct manifest *m)
{
    return json_pack("[o, o, o, o, o, o]", call_word_value(m->manifest_hash.bytes),
                     call_word_value(m->content_digest.bytes), call_word_value(m->model_id.bytes),
                     call_address_value(m->creator), call_u64_value(m->version),
                     call_word_value(m->parent.bytes));
}

void initcode_adapter_registry(struct buf *out, uint64_t payee_delay_s)
{
    call_initcode(out, CONTRACT_ADAPTER_REGISTRY, json_pack("[o]", call_u64_value(payee_delay_s)));
}

void calldata_registry_register_datanet(struct buf *out, struct sha256_digest metadata,
                                        struct address payee)
{
    call_data(out, CALL_REGISTRY_REGISTER_DATANET,
              json_pack("[o, o]", call_word_value(metadata.bytes), call_address_value(payee)));
}

void calldata_registry_register_adapter(struct buf *out, const struct manifest *m,
                                        const struct splits *s, const struct signature *sig)
{
    call_data(
        out, CALL_REGISTRY_REGISTER_ADAPTER,
        json_pack("[o, o, o]", manifest_value(m), splits_value(s), call_signature_value(sig)));
}

void calldata_registry_retire(struct buf *out, struct adapter_id id)
{
    call_data(out, CALL_REGISTRY_RETIRE, json_pack("[o]", call_word_value(id.bytes)));
}

void calldata_registry_propose_payee(struct buf *out, struct adapter_id id, uint16_t position,
                                     struct address to, const struct splits *s)
{
    call_data(out, CALL_REGISTRY_PROPOSE_PAYEE,
              json_pack("[o, o, o, o]", call_word_value(id.bytes), call_u64_value(position),
                        call_address_value(to), call_shown_splits_value(s)));
}

void calldata_registry_propose_datanet_payee(struct buf *out, const uint8_t datanet[32],
                                             struct address to)
{
    call_data(out, CALL_REGISTRY_PROPOSE_DATANET_PAYEE,
              json_pack("[o, o]", call_word_value(datanet), call_address_value(to)));
}

int view_registry_adapter(const struct contract_at *where, struct registry_adapter *out,
                          struct adapter_id id, struct err *err)
{
    json_t *r = call_view(where, CALL_REGISTRY_ADAPTER, json_pack("[o]", call_word_value(id.bytes)),
                          err);
    if (r == NULL)
        return -1;
    *out = (struct registry_adapter){
        .creator = result_address(r, 0), .version = result_u64(r, 1), .retired = result_bool(r, 2)};
    result_word(out->splits_hash, r, 3);
    out->registered = !address_is_zero(out->creator);
    json_decref(r);
    return 0;
}

int view_registry_first_by_content(const struct contract_at *where, struct adapter_id *out,
                                   struct content_digest content, struct err *err)
{
    json_t *r = call_view(where, CALL_REGISTRY_FIRST_BY_CONTENT,
                          json_pack("[o]", call_word_value(content.bytes)), err);
    if (r == NULL)
        return -1;
    result_word(out->bytes, r, 0);
    json_decref(r);
    return 0;
}

int view_registry_payee(const struct contract_at *where, struct address *out, struct adapter_id id,
                        uint16_t position, const struct splits *s, struct err *err)
{
    return call_view_address(where, out, CALL_REGISTRY_PAYEE,
                             json_pack("[o, o, o]", call_word_value(id.bytes),
                                       call_u64_value(position), call_shown_splits_value(s)),
                             err);
}

int view_registry_written_payee(const struct contract_at *where, struct address *out,
                                struct adapter_id id, uint16_t position, struct err *err)
{
    return call_view_address(
        where, out, CALL_REGISTRY_WRITTEN_PAYEE,
        json_pack("[o, o]", call_word_value(id.bytes), call_u64_value(position)), err);
}

int view_registry_datanet_payee(const struct contract_at *where, struct address *out,
                                const uint8_t datanet[32], struct err *err)
{
    return call_view_address(where, out, CALL_REGISTRY_DATANET_PAYEE,
                             json_pack("[o]", call_word_value(datanet)), err);
}

int view_registry_payee_delay(const struct contract_at *where, uint64_t *seconds, struct err *err)
{
    return call_view_u64(where, seconds, CALL_REGISTRY_PAYEE_DELAY, NULL, err);
}
