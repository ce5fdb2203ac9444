/* events: logs into structs. See events.h.
 *
 * A log's indexed values lie in topics 1 to 3, one word each, the others are the ABI encoding of a
 * tuple in data. The ABI in the binary says which are which; here a table says, for each event,
 * which parameter goes into which member of struct event, by name. event_check compares both before
 * the first use, so that a renamed or retyped parameter is a bug and not a wrong number.
 *
 *   log.topics --.                                       .-- member at its offset
 *                 >-- {"name": value} by the ABI --table-<
 *   log.data   --'                                       '-- splits, in the arena */
#include "chain/events.h"

#include "chain/abi.h"
#include "chain/contract_abi.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <pthread.h>
#include <string.h>

enum member_kind { ADDRESS, WORD, U8, U16, U32, U64, AMOUNT, U256, SPLITS };

struct member {
    const char *name; /* of the ABI's parameter; NULL ends the list */
    enum member_kind kind;
    size_t offset;
};

enum { MEMBERS_MAX = 11 };

#define AT(path) offsetof(struct event, path)

static const struct layout {
    enum contract contract;
    const char *name;
    struct member members[MEMBERS_MAX + 1];
} layouts[N_EVENT_KINDS] = {
    [EVENT_TRANSFER] = {CONTRACT_TEST_TOKEN,
                        "Transfer",
                        {{"from", ADDRESS, AT(transfer.from)},
                         {"to", ADDRESS, AT(transfer.to)},
                         {"value", U256, AT(transfer.value)}}},
    [EVENT_STAKED] = {CONTRACT_STAKE_MANAGER,
                      "Staked",
                      {{"operator", ADDRESS, AT(staked.operator_address)},
                       {"amount", AMOUNT, AT(staked.amount)},
                       {"total", AMOUNT, AT(staked.total)}}},
    [EVENT_UNSTAKE_REQUESTED] = {CONTRACT_STAKE_MANAGER,
                                 "UnstakeRequested",
                                 {{"operator", ADDRESS, AT(unstake_requested.operator_address)},
                                  {"unbonding", AMOUNT, AT(unstake_requested.unbonding)},
                                  {"withdrawableAt", U64,
                                   AT(unstake_requested.withdrawable_at_s)}}},
    [EVENT_STAKE_WITHDRAWN] = {CONTRACT_STAKE_MANAGER,
                               "Withdrawn",
                               {{"operator", ADDRESS, AT(stake_withdrawn.operator_address)},
                                {"amount", AMOUNT, AT(stake_withdrawn.amount)},
                                {"total", AMOUNT, AT(stake_withdrawn.total)}}},
    [EVENT_STAKE_SIGNER_OFFERED] = {CONTRACT_STAKE_MANAGER,
                                    "SignerOffered",
                                    {{"operator", ADDRESS, AT(stake_signer.operator_address)},
                                     {"signer", ADDRESS, AT(stake_signer.signer)}}},
    [EVENT_STAKE_SIGNER_ADDED] = {CONTRACT_STAKE_MANAGER,
                                  "SignerAdded",
                                  {{"operator", ADDRESS, AT(stake_signer.operator_address)},
                                   {"signer", ADDRESS, AT(stake_signer.signer)}}},
    [EVENT_STAKE_SIGNER_REMOVED] = {CONTRACT_STAKE_MANAGER,
                                    "SignerRemoved",
                                    {{"operator", ADDRESS, AT(stake_signer.operator_address)},
                                     {"signer", ADDRESS, AT(stake_signer.signer)}}},
    [EVENT_SLASHED] = {CONTRACT_STAKE_MANAGER,
                       "Slashed",
                       {{"operator", ADDRESS, AT(slashed.operator_address)},
                        {"reporter", ADDRESS, AT(slashed.reporter)},
                        {"amount", AMOUNT, AT(slashed.amount)},
                        {"toReporter", AMOUNT, AT(slashed.to_reporter)},
                        {"toTreasury", AMOUNT, AT(slashed.to_treasury)}}},
    [EVENT_DATANET_REGISTERED] = {CONTRACT_ADAPTER_REGISTRY,
                                  "DatanetRegistered",
                                  {{"datanetId", WORD, AT(datanet_registered.datanet)},
                                   {"owner", ADDRESS, AT(datanet_registered.owner)},
                                   {"payee", ADDRESS, AT(datanet_registered.payee)},
                                   {"metadataHash", WORD, AT(datanet_registered.metadata)}}},
    [EVENT_ADAPTER_REGISTERED] =
        {CONTRACT_ADAPTER_REGISTRY,
         "AdapterRegistered",
         {{"adapterId", WORD, AT(adapter_registered.id)},
          {"creator", ADDRESS, AT(adapter_registered.manifest.creator)},
          {"contentDigest", WORD, AT(adapter_registered.manifest.content_digest)},
          {"manifestHash", WORD, AT(adapter_registered.manifest.manifest_hash)},
          {"modelId", WORD, AT(adapter_registered.manifest.model_id)},
          {"version", U64, AT(adapter_registered.manifest.version)},
          {"parent", WORD, AT(adapter_registered.manifest.parent)},
          {"splits", SPLITS, AT(adapter_registered.splits)}}},
    [EVENT_ADAPTER_RETIRED] = {CONTRACT_ADAPTER_REGISTRY,
                               "AdapterRetired",
                               {{"adapterId", WORD, AT(adapter_retired.id)},
                                {"creator", ADDRESS, AT(adapter_retired.creator)}}},
    [EVENT_PAYEE_PROPOSED] = {CONTRACT_ADAPTER_REGISTRY,
                              "PayeeProposed",
                              {{"adapterId", WORD, AT(payee_proposed.id)},
                               {"position", U16, AT(payee_proposed.position)},
                               {"from", ADDRESS, AT(payee_proposed.from)},
                               {"to", ADDRESS, AT(payee_proposed.to)},
                               {"effectiveAt", U64, AT(payee_proposed.effective_at_s)}}},
    [EVENT_DATANET_PAYEE_PROPOSED] = {CONTRACT_ADAPTER_REGISTRY,
                                      "DatanetPayeeProposed",
                                      {{"datanetId", WORD, AT(payee_proposed.id)},
                                       {"from", ADDRESS, AT(payee_proposed.from)},
                                       {"to", ADDRESS, AT(payee_proposed.to)},
                                       {"effectiveAt", U64, AT(payee_proposed.effective_at_s)}}},
    [EVENT_DEPOSITED] = {CONTRACT_ESCROW,
                         "Deposited",
                         {{"payer", ADDRESS, AT(deposited.payer)},
                          {"operator", ADDRESS, AT(deposited.operator_address)},
                          {"from", ADDRESS, AT(deposited.from)},
                          {"amount", AMOUNT, AT(deposited.amount)}}},
    [EVENT_THAW_REQUESTED] = {CONTRACT_ESCROW,
                              "ThawRequested",
                              {{"payer", ADDRESS, AT(thaw_requested.payer)},
                               {"operator", ADDRESS, AT(thaw_requested.operator_address)},
                               {"thawing", AMOUNT, AT(thaw_requested.thawing)},
                               {"withdrawableAt", U64, AT(thaw_requested.withdrawable_at_s)}}},
    [EVENT_ESCROW_WITHDRAWN] = {CONTRACT_ESCROW,
                                "Withdrawn",
                                {{"payer", ADDRESS, AT(escrow_withdrawn.payer)},
                                 {"operator", ADDRESS, AT(escrow_withdrawn.operator_address)},
                                 {"amount", AMOUNT, AT(escrow_withdrawn.amount)}}},
    [EVENT_PAYER_SIGNER_ADDED] = {CONTRACT_ESCROW,
                                  "SignerAdded",
                                  {{"payer", ADDRESS, AT(payer_signer.payer)},
                                   {"signer", ADDRESS, AT(payer_signer.signer)}}},
    [EVENT_PAYER_SIGNER_REMOVED] = {CONTRACT_ESCROW,
                                    "SignerRemoved",
                                    {{"payer", ADDRESS, AT(payer_signer.payer)},
                                     {"signer", ADDRESS, AT(payer_signer.signer)},
                                     {"validUntil", U64, AT(payer_signer.valid_until_s)}}},
    [EVENT_REDEEMED] = {CONTRACT_ESCROW,
                        "Redeemed",
                        {{"operator", ADDRESS, AT(redeemed.operator_address)},
                         {"payer", ADDRESS, AT(redeemed.payer)},
                         {"channel", WORD, AT(redeemed.channel)},
                         {"valueAggregate", AMOUNT, AT(redeemed.value_aggregate)},
                         {"amount", AMOUNT, AT(redeemed.amount)},
                         {"lastReceiptHash", WORD, AT(redeemed.last_receipt)}}},
    [EVENT_VOUCHER_REFUSED] = {CONTRACT_ESCROW,
                               "VoucherRefused",
                               {{"operator", ADDRESS, AT(voucher_refused.operator_address)},
                                {"payer", ADDRESS, AT(voucher_refused.payer)},
                                {"channel", WORD, AT(voucher_refused.channel)},
                                {"valueAggregate", AMOUNT, AT(voucher_refused.value_aggregate)},
                                {"why", U8, AT(voucher_refused.why)}}},
    [EVENT_BATCH_SUBMITTED] = {CONTRACT_ATTRIBUTION_LEDGER,
                               "BatchSubmitted",
                               {{"operator", ADDRESS, AT(batch_submitted.batch.operator_address)},
                                {"seq", U64, AT(batch_submitted.batch.seq)},
                                {"batchHash", WORD, AT(batch_submitted.digest)},
                                {"leafCount", U32, AT(batch_submitted.batch.leaf_count)},
                                {"receiptsRoot", WORD, AT(batch_submitted.batch.receipts_root)},
                                {"payoutRoot", WORD, AT(batch_submitted.batch.payout_root)},
                                {"committed", AMOUNT, AT(batch_submitted.batch.committed)},
                                {"periodStart", U64, AT(batch_submitted.batch.period_start)},
                                {"periodEnd", U64, AT(batch_submitted.batch.period_end)},
                                {"dataHash", WORD, AT(batch_submitted.batch.data_hash)},
                                {"prevBatchHash", WORD,
                                 AT(batch_submitted.batch.prev_batch_hash)}}},
    [EVENT_BATCH_VOIDED] = {CONTRACT_ATTRIBUTION_LEDGER,
                            "BatchVoided",
                            {{"operator", ADDRESS, AT(batch_voided.operator_address)},
                             {"seq", U64, AT(batch_voided.seq)},
                             {"batchHash", WORD, AT(batch_voided.digest)},
                             {"committed", AMOUNT, AT(batch_voided.committed)}}},
    [EVENT_CLAIMED] = {CONTRACT_ATTRIBUTION_LEDGER,
                       "Claimed",
                       {{"operator", ADDRESS, AT(claimed.operator_address)},
                        {"id", WORD, AT(claimed.id)},
                        {"payee", ADDRESS, AT(claimed.payee)},
                        {"kind", U8, AT(claimed.kind)},
                        {"position", U16, AT(claimed.position)},
                        {"amount", AMOUNT, AT(claimed.amount)},
                        {"cumulative", AMOUNT, AT(claimed.cumulative)}}},
};

static const char *const member_types[] = {
    [ADDRESS] = "address", [WORD] = "bytes32", [U8] = "uint8",
    [U16] = "uint16",      [U32] = "uint32",   [U64] = "uint64",
    [AMOUNT] = "uint128",  [U256] = "uint256", [SPLITS] = "(address[],uint16[],bytes32[],uint16[])",
};

/* ---- binding ------------------------------------------------------------------------------ */

static const struct abi_entry *entries[N_EVENT_KINDS]; /* set by bind_all */

static const struct member *member_of(const struct layout *l, const char *name)
{
    for (const struct member *m = l->members; m->name != NULL; m++) {
        if (strcmp(m->name, name) == 0)
            return m;
    }
    return NULL;
}

static void bind(enum event_kind kind)
{
    const struct layout *l = &layouts[kind];
    const struct abi_entry *e = abi_find(l->contract, ABI_EVENT, l->name);
    size_t i, n_members = 0;
    json_t *p;
    if (e == NULL)
        BUG("%s has no event %s", contract_name(l->contract), l->name);
    while (l->members[n_members].name != NULL)
        n_members++;
    if (json_array_size(e->parameters) != n_members)
        BUG("event %s has %zu parameters, read as %zu", e->signature,
            json_array_size(e->parameters), n_members);
    json_array_foreach(e->parameters, i, p)
    {
        struct buf type = BUF_INIT;
        const char *name = json_string_value(json_object_get(p, "name"));
        BUG_IF(name == NULL || abi_type_of_parameter(&type, p, NULL) != 0);
        const struct member *m = member_of(l, name);
        if (m == NULL || strcmp(member_types[m->kind], buf_cstr(&type)) != 0)
            BUG("event %s: parameter %s is %s, read as %s", e->signature, name, buf_cstr(&type),
                m == NULL ? "nothing" : member_types[m->kind]);
        buf_release(&type);
    }
    entries[kind] = e;
}

static void bind_all(void)
{
    for (int kind = EVENT_OTHER + 1; kind < N_EVENT_KINDS; kind++)
        bind((enum event_kind)kind);
}

void event_check(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, bind_all);
}

/* ---- decoding ----------------------------------------------------------------------------- */

/* abi_decode has checked the types, so that a value which doesn't fit its member is a bug here. */
static struct u256 number(const json_t *value)
{
    struct u256 v;
    BUG_IF(!json_is_string(value) || u256_parse(&v, json_string_value(value)) != 0);
    return v;
}

static uint64_t number_u64(const json_t *value)
{
    uint64_t v;
    BUG_IF(u256_to_u64(&v, number(value)) != 0);
    return v;
}

static void bytes(void *out, size_t n, const json_t *value)
{
    BUG_IF(!json_is_string(value) || hex_decode(out, n, json_string_value(value)) != 0);
}

static int read_splits(struct splits *out, const json_t *value, struct arena *arena,
                       struct err *err)
{
    const json_t *payees = json_array_get(value, 0), *bps = json_array_get(value, 1);
    const json_t *datanets = json_array_get(value, 2), *datanet_bps = json_array_get(value, 3);
    size_t n = json_array_size(payees), m = json_array_size(datanets);
    if (json_array_size(bps) != n || json_array_size(datanet_bps) != m)
        return err_set(err, ERR_UPSTREAM,
                       "splits of %zu payees and %zu shares, %zu Datanets and "
                       "%zu shares",
                       n, json_array_size(bps), m, json_array_size(datanet_bps));
    struct payee_share *p = arena_array(arena, n, sizeof *p);
    struct datanet_share *d = arena_array(arena, m, sizeof *d);
    for (size_t i = 0; i < n; i++) {
        bytes(p[i].payee.bytes, 20, json_array_get(payees, i));
        p[i].bps = (uint16_t)number_u64(json_array_get(bps, i));
    }
    for (size_t i = 0; i < m; i++) {
        bytes(d[i].datanet, 32, json_array_get(datanets, i));
        d[i].bps = (uint16_t)number_u64(json_array_get(datanet_bps, i));
    }
    *out = (struct splits){p, n, d, m};
    return 0;
}

static int store(struct event *out, const struct member *m, const json_t *value,
                 struct arena *arena, struct err *err)
{
    void *to = (char *)out + m->offset;
    switch (m->kind) {
    case ADDRESS:
        bytes(to, 20, value);
        return 0;
    case WORD:
        bytes(to, 32, value);
        return 0;
    case U8:
        *(uint8_t *)to = (uint8_t)number_u64(value);
        return 0;
    case U16:
        *(uint16_t *)to = (uint16_t)number_u64(value);
        return 0;
    case U32:
        *(uint32_t *)to = (uint32_t)number_u64(value);
        return 0;
    case U64:
        *(uint64_t *)to = number_u64(value);
        return 0;
    case AMOUNT:
        BUG_IF(u256_to_amount(to, number(value)) != 0);
        return 0;
    case U256:
        *(struct u256 *)to = number(value);
        return 0;
    case SPLITS:
        return read_splits(to, value, arena, err);
    }
    BUG("no such kind of member");
}

/* The types of the parameters that lie in data, "(type,type)". */
static void data_types(struct buf *out, const struct abi_entry *e)
{
    size_t i, n = 0;
    json_t *p;
    buf_append_byte(out, '(');
    json_array_foreach(e->parameters, i, p)
    {
        if (json_is_true(json_object_get(p, "indexed")))
            continue;
        if (n++ > 0)
            buf_append_byte(out, ',');
        BUG_IF(abi_type_of_parameter(out, p, NULL) != 0);
    }
    buf_append_byte(out, ')');
}

/* One indexed value: its topic is the encoding of its type. (None of ours is indexed whose type
 * takes more than one word and would be hashed instead.) */
static json_t *topic_value(const json_t *parameter, const struct bytes32 *topic, struct err *err)
{
    struct buf type = BUF_INIT;
    buf_append_byte(&type, '(');
    BUG_IF(abi_type_of_parameter(&type, parameter, NULL) != 0);
    buf_append_byte(&type, ')');
    json_t *values = abi_decode(buf_cstr(&type), topic->bytes, sizeof topic->bytes, err), *value;
    value = json_incref(json_array_get(values, 0));
    json_decref(values);
    buf_release(&type);
    return value;
}

static int decode_as(struct event *out, enum event_kind kind, const struct rpc_log *log,
                     struct arena *arena, struct err *err)
{
    const struct abi_entry *e = entries[kind];
    struct buf types = BUF_INIT;
    struct event event;
    size_t i, n_topics = 1, n_data = 0;
    json_t *p;
    int rc = 0;
    memset(&event, 0, sizeof event);
    event.kind = kind;
    data_types(&types, e);
    json_t *data = abi_decode(buf_cstr(&types), log->data, log->n_data, err);
    if (data == NULL)
        rc = -1;
    json_array_foreach(e->parameters, i, p)
    {
        const struct member *m = member_of(&layouts[kind],
                                           json_string_value(json_object_get(p, "name")));
        json_t *value = NULL;
        if (rc != 0)
            break;
        if (!json_is_true(json_object_get(p, "indexed")))
            value = json_incref(json_array_get(data, n_data++));
        else if (n_topics < log->n_topics)
            value = topic_value(p, &log->topics[n_topics++], err);
        else
            err_set(err, ERR_UPSTREAM, "%u topics are too few", log->n_topics);
        rc = value == NULL ? -1 : store(&event, m, value, arena, err);
        json_decref(value);
    }
    if (rc == 0 && n_topics != log->n_topics)
        rc = err_set(err, ERR_UPSTREAM, "%u topics, expected %zu", log->n_topics, n_topics);
    json_decref(data);
    buf_release(&types);
    if (rc == 0)
        *out = event;
    return rc;
}

int event_decode(struct event *out, enum contract c, const struct rpc_log *log, struct arena *arena,
                 struct err *err)
{
    event_check();
    for (int kind = EVENT_OTHER + 1; kind < N_EVENT_KINDS && log->n_topics > 0; kind++) {
        if (layouts[kind].contract != c || !DIGEST_EQ(entries[kind]->hash, log->topics[0]))
            continue;
        struct err why = {0};
        if (decode_as(out, (enum event_kind)kind, log, arena, &why) != 0)
            return err_set(err, ERR_UPSTREAM, "a log that is no %s.%s: %s", contract_name(c),
                           entries[kind]->signature, why.message);
        return 0;
    }
    memset(out, 0, sizeof *out);
    out->kind = EVENT_OTHER;
    return 0;
}

/* ---- names -------------------------------------------------------------------------------- */

struct bytes32 event_topic(enum event_kind kind)
{
    event_check();
    BUG_IF((int)kind <= EVENT_OTHER || (int)kind >= N_EVENT_KINDS);
    return entries[kind]->hash;
}

const char *event_name(enum event_kind kind)
{
    BUG_IF((int)kind < EVENT_OTHER || (int)kind >= N_EVENT_KINDS);
    return kind == EVENT_OTHER ? "other" : layouts[kind].name;
}

struct bytes32 topic_of_address(struct address a)
{
    struct bytes32 topic = {{0}};
    memcpy(topic.bytes + 12, a.bytes, sizeof a.bytes);
    return topic;
}

const char *escrow_refusal_name(uint8_t why)
{
    /* Escrow.Refusal, in its order. */
    static const char *const names[] = {"none",  "wrong operator", "wrong channel",
                                        "stale", "unfunded",       "wrong signature"};
    return why < sizeof names / sizeof *names ? names[why] : "unknown";
}
