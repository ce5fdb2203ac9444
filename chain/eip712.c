/* eip712: see eip712.h.
 *
 *   encodeType(T)    "T(type name,...)" then the struct types it refers to, sorted by name
 *   typeHash(T)      keccak256(encodeType(T))
 *   hashStruct(v)    keccak256(typeHash || one word a member)
 *   a member's word  elementary: sol_value's word; bytes, string: keccak256 of the bytes;
 *                    array: keccak256 of its elements' words; struct: hashStruct
 *
 * The five messages are driven by the same types.json: a table below says where each member lies in
 * its C struct; at first use the members of the JSON are looked up in it, in the JSON's order, and
 * every member of either side must have its match, type included. What differs stops the program.
 */
#include "chain/eip712.h"

#include "chain/embedded.h"
#include "chain/sol_value.h"
#include "chain/u256.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 64, STRUCTS_MAX = 256, WORD = 32, MEMBERS_MAX = 20 };

/* ---- encodeType
 * ------------------------------------------------------------------------------------- */

/* The type without its array suffixes. */
static size_t base_of(const char *type)
{
    return strcspn(type, "[");
}

static const json_t *struct_named(const json_t *types, const char *name, size_t n)
{
    char key[128];
    if (n >= sizeof key)
        return NULL;
    memcpy(key, name, n);
    key[n] = '\0';
    return json_object_get(types, key);
}

static int member_of(const json_t *member, const char **name, const char **type, struct err *err)
{
    *name = json_string_value(json_object_get(member, "name"));
    *type = json_string_value(json_object_get(member, "type"));
    if (*name == NULL || *type == NULL)
        return err_set(err, ERR_INVALID, "EIP-712: a member without name or type");
    return 0;
}

struct names {
    const char *items[STRUCTS_MAX];
    size_t n;
};

/* All struct types that are reachable from `type`, itself included. */
static int collect(const json_t *types, const char *type, struct names *found, struct err *err)
{
    for (size_t i = 0; i < found->n; i++) {
        if (strcmp(found->items[i], type) == 0)
            return 0;
    }
    if (found->n == STRUCTS_MAX)
        return err_set(err, ERR_TOO_LARGE, "EIP-712: more than %d types", STRUCTS_MAX);
    found->items[found->n++] = type;
    size_t i;
    json_t *member;
    json_array_foreach(json_object_get(types, type), i, member)
    {
        const char *name, *member_type;
        if (member_of(member, &name, &member_type, err) != 0)
            return -1;
        /* The key inside `types` outlives this call; the member's text may have a suffix. */
        size_t n = base_of(member_type);
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)types, key, value)
        {
            if (strlen(key) == n && memcmp(key, member_type, n) == 0 &&
                collect(types, key, found, err) != 0)
                return -1;
        }
    }
    return 0;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

char *eip712_encode_type_json(const json_t *types, const char *type, struct err *err)
{
    struct names found = {.n = 0};
    if (json_object_get(types, type) == NULL) {
        err_set(err, ERR_INVALID, "EIP-712: type \"%.60s\" is not defined", type);
        return NULL;
    }
    if (collect(types, type, &found, err) != 0)
        return NULL;
    qsort(found.items + 1, found.n - 1, sizeof *found.items, by_name);
    struct buf out = BUF_INIT;
    for (size_t i = 0; i < found.n; i++) {
        buf_appendf(&out, "%s(", found.items[i]);
        size_t k;
        json_t *member;
        json_array_foreach(json_object_get(types, found.items[i]), k, member)
        {
            const char *name, *member_type;
            if (member_of(member, &name, &member_type, err) != 0) {
                buf_release(&out);
                return NULL;
            }
            buf_appendf(&out, "%s%s %s", k > 0 ? "," : "", member_type, name);
        }
        buf_append_byte(&out, ')');
    }
    return buf_detach(&out);
}

/* ---- the general engine
 * ----------------------------------------------------------------------------- */

static int hash_struct(uint8_t out[WORD], const json_t *types, const char *type,
                       const json_t *value, int depth, struct err *err);

/* The word of one value; type [n_type] with its array suffixes. */
static int hash_value(uint8_t out[WORD], const json_t *types, const char *type, size_t n_type,
                      const json_t *value, int depth, struct err *err)
{
    if (depth > DEPTH_MAX)
        return err_set(err, ERR_INVALID, "nested deeper than %d", DEPTH_MAX);
    if (n_type > 0 && type[n_type - 1] == ']') {
        size_t open = n_type - 1;
        while (open > 0 && type[open] != '[')
            open--;
        if (open == 0 || !json_is_array(value))
            return err_set(err, ERR_INVALID, "expected an array for %.*s", (int)n_type, type);
        size_t length = json_array_size(value);
        if (open + 2 < n_type && strtoul(type + open + 1, NULL, 10) != length)
            return err_set(err, ERR_INVALID, "expected %.*s, got %zu elements", (int)n_type, type,
                           length);
        struct keccak k;
        keccak_init(&k);
        for (size_t i = 0; i < length; i++) {
            uint8_t word[WORD];
            if (hash_value(word, types, type, open, json_array_get(value, i), depth + 1, err) != 0)
                return err_wrap(err, "[%zu]", i);
            keccak_update(&k, word, sizeof word);
        }
        memcpy(out, keccak_final(&k).bytes, WORD);
        return 0;
    }
    if (struct_named(types, type, n_type) != NULL) {
        char key[128];
        memcpy(key, type, n_type);
        key[n_type] = '\0';
        return hash_struct(out, types, key, value, depth + 1, err);
    }
    struct sol_type elementary;
    if (!sol_type_parse(&elementary, type, n_type))
        return err_set(err, ERR_INVALID, "unknown type %.*s", (int)n_type, type);
    if (elementary.kind != SOL_BYTES && elementary.kind != SOL_STRING)
        return sol_word_from_json(out, &elementary, value, err);
    struct buf bytes = BUF_INIT;
    int rc = sol_bytes_from_json(&bytes, &elementary, value, err);
    memcpy(out, keccak256(bytes.data, bytes.len).bytes, WORD);
    buf_release(&bytes);
    return rc;
}

static int hash_struct(uint8_t out[WORD], const json_t *types, const char *type,
                       const json_t *value, int depth, struct err *err)
{
    if (!json_is_object(value))
        return err_set(err, ERR_INVALID, "expected an object for %s", type);
    char *text = eip712_encode_type_json(types, type, err);
    if (text == NULL)
        return -1;
    struct keccak_digest type_hash = keccak256(text, strlen(text));
    free(text);
    struct keccak k;
    keccak_init(&k);
    keccak_update(&k, type_hash.bytes, WORD);
    size_t i;
    json_t *member;
    json_array_foreach(json_object_get(types, type), i, member)
    {
        const char *name, *member_type;
        uint8_t word[WORD];
        if (member_of(member, &name, &member_type, err) != 0)
            return -1;
        const json_t *field = json_object_get(value, name);
        if (field == NULL)
            return err_set(err, ERR_INVALID, "%s.%s is missing", type, name);
        if (hash_value(word, types, member_type, strlen(member_type), field, depth, err) != 0)
            return err_wrap(err, "%s.%s", type, name);
        keccak_update(&k, word, sizeof word);
    }
    memcpy(out, keccak_final(&k).bytes, WORD);
    return 0;
}

int eip712_hash_struct_json(struct keccak_digest *out, const json_t *types, const char *type,
                            const json_t *value, struct err *err)
{
    return hash_struct(out->bytes, types, type, value, 0, err);
}

static struct keccak_digest digest_of(const uint8_t domain[WORD], const uint8_t message[WORD])
{
    struct keccak k;
    keccak_init(&k);
    keccak_update(&k, "\x19\x01", 2);
    keccak_update(&k, domain, WORD);
    keccak_update(&k, message, WORD);
    return keccak_final(&k);
}

/* A domain's type has the members that the domain has, in the standard's order. */
static int hash_domain(uint8_t out[WORD], const json_t *domain, struct err *err)
{
    static const char *const members[][2] = {{"name", "string"},
                                             {"version", "string"},
                                             {"chainId", "uint256"},
                                             {"verifyingContract", "address"},
                                             {"salt", "bytes32"}};
    json_t *fields = json_array();
    for (size_t i = 0; i < sizeof members / sizeof *members; i++) {
        if (json_object_get(domain, members[i][0]) != NULL)
            json_array_append_new(
                fields, json_pack("{s:s,s:s}", "name", members[i][0], "type", members[i][1]));
    }
    json_t *types = json_pack("{s:o}", "EIP712Domain", fields);
    int rc = json_array_size(fields) == json_object_size(domain)
                 ? hash_struct(out, types, "EIP712Domain", domain, 0, err)
                 : err_set(err, ERR_INVALID,
                           "EIP-712: a domain has only name, version, chainId, "
                           "verifyingContract and salt");
    json_decref(types);
    return rc;
}

int eip712_digest_json(struct keccak_digest *digest, const json_t *types, const char *primary,
                       const json_t *domain, const json_t *message, struct err *err)
{
    uint8_t d[WORD], m[WORD];
    if (hash_domain(d, domain, err) != 0 || hash_struct(m, types, primary, message, 0, err) != 0)
        return -1;
    *digest = digest_of(d, m);
    return 0;
}

/* ---- the five messages
 * ------------------------------------------------------------------------------ */

struct member {
    const char *name, *type;
    size_t offset;
};

#define AT(type, member) offsetof(struct type, member)

static const struct member share_members[] = {
    {"adapterId", "bytes32", AT(adapter_share, adapter_id)},
    {"bps", "uint16", AT(adapter_share, bps)},
    {"royalty", "uint128", AT(adapter_share, royalty)},
    {NULL, NULL, 0},
};

static const struct member receipt_members[] = {
    {"requestId", "bytes32", AT(receipt, request_id)},
    {"operator", "address", AT(receipt, operator_address)},
    {"payer", "address", AT(receipt, payer)},
    {"channel", "bytes32", AT(receipt, channel)},
    {"index", "uint64", AT(receipt, index)},
    {"prevReceiptHash", "bytes32", AT(receipt, prev_receipt_hash)},
    {"modelId", "bytes32", AT(receipt, model_id)},
    {"adapters", "AdapterShare[]", AT(receipt, adapters)},
    {"promptTokens", "uint32", AT(receipt, prompt_tokens)},
    {"completionTokens", "uint32", AT(receipt, completion_tokens)},
    {"computeFee", "uint128", AT(receipt, compute_fee)},
    {"royalty", "uint128", AT(receipt, royalty)},
    {"channelTotal", "uint128", AT(receipt, channel_total)},
    {"timestampMs", "uint64", AT(receipt, timestamp_ms)},
    {"requestHash", "bytes32", AT(receipt, request_hash)},
    {"responseHash", "bytes32", AT(receipt, response_hash)},
    {"attributionHash", "bytes32", AT(receipt, attribution_hash)},
    {NULL, NULL, 0},
};

static const struct member voucher_members[] = {
    {"payer", "address", AT(voucher, payer)},
    {"operator", "address", AT(voucher, operator_address)},
    {"channel", "bytes32", AT(voucher, channel)},
    {"timestampMs", "uint64", AT(voucher, timestamp_ms)},
    {"valueAggregate", "uint128", AT(voucher, value_aggregate)},
    {"lastReceiptHash", "bytes32", AT(voucher, last_receipt_hash)},
    {NULL, NULL, 0},
};

static const struct member request_members[] = {
    {"payer", "address", AT(request_auth, payer)},
    {"operator", "address", AT(request_auth, operator_address)},
    {"channel", "bytes32", AT(request_auth, channel)},
    {"nonce", "uint64", AT(request_auth, nonce)},
    {"requestHash", "bytes32", AT(request_auth, request_hash)},
    {"maxFee", "uint128", AT(request_auth, max_fee)},
    {"deadlineMs", "uint64", AT(request_auth, deadline_ms)},
    {NULL, NULL, 0},
};

static const struct member batch_members[] = {
    {"operator", "address", AT(batch, operator_address)},
    {"seq", "uint64", AT(batch, seq)},
    {"leafCount", "uint32", AT(batch, leaf_count)},
    {"receiptsRoot", "bytes32", AT(batch, receipts_root)},
    {"payoutRoot", "bytes32", AT(batch, payout_root)},
    {"committed", "uint128", AT(batch, committed)},
    {"periodStart", "uint64", AT(batch, period_start)},
    {"periodEnd", "uint64", AT(batch, period_end)},
    {"dataHash", "bytes32", AT(batch, data_hash)},
    {"prevBatchHash", "bytes32", AT(batch, prev_batch_hash)},
    {NULL, NULL, 0},
};

static const struct member manifest_members[] = {
    {"manifestHash", "bytes32", AT(manifest, manifest_hash)},
    {"contentDigest", "bytes32", AT(manifest, content_digest)},
    {"modelId", "bytes32", AT(manifest, model_id)},
    {"creator", "address", AT(manifest, creator)},
    {"version", "uint64", AT(manifest, version)},
    {"parent", "bytes32", AT(manifest, parent)},
    {NULL, NULL, 0},
};

enum message { ADAPTER_SHARE, RECEIPT, VOUCHER, REQUEST, BATCH, MANIFEST, DOMAIN_TYPE, N_MESSAGES };

/* What is read from types.json at first use. */
static struct message_type {
    const char *name;
    const struct member *members; /* NULL: only the type string is wanted */
    char *type_string;
    struct keccak_digest type_hash;
    struct member ordered[MEMBERS_MAX]; /* in the JSON's order; ends with name NULL */
    /* Messages that are signed: keccak of the domain's name and version. */
    struct keccak_digest domain_name, domain_version;
} messages[N_MESSAGES] = {
    [ADAPTER_SHARE] = {.name = "AdapterShare", .members = share_members},
    [RECEIPT] = {.name = "Receipt", .members = receipt_members},
    [VOUCHER] = {.name = "Voucher", .members = voucher_members},
    [REQUEST] = {.name = "Request", .members = request_members},
    [BATCH] = {.name = "Batch", .members = batch_members},
    [MANIFEST] = {.name = "Manifest", .members = manifest_members},
    [DOMAIN_TYPE] = {.name = "EIP712Domain"},
};

static void load_members(struct message_type *m, const json_t *fields)
{
    size_t n_members = 0, i;
    while (m->members[n_members].name != NULL)
        n_members++;
    if (json_array_size(fields) != n_members || n_members >= MEMBERS_MAX)
        BUG("types.json: %s has %zu members, the program %zu", m->name, json_array_size(fields),
            n_members);
    json_t *field;
    json_array_foreach(fields, i, field)
    {
        const char *name = json_string_value(json_object_get(field, "name"));
        const char *type = json_string_value(json_object_get(field, "type"));
        const struct member *found = m->members;
        while (found->name != NULL && strcmp(found->name, name) != 0)
            found++;
        if (found->name == NULL || strcmp(found->type, type) != 0)
            BUG("types.json: the program has no %s %s in %s", type, name, m->name);
        m->ordered[i] = *found;
    }
}

static struct keccak_digest hash_text(const json_t *text)
{
    BUG_IF(!json_is_string(text));
    return keccak256(json_string_value(text), json_string_length(text));
}

static void load(void)
{
    const json_t *file = embedded_types();
    const json_t *types = json_object_get(file, "types");
    const json_t *domains = json_object_get(file, "domains");
    for (int i = 0; i < N_MESSAGES; i++) {
        struct message_type *m = &messages[i];
        struct err err = {0};
        m->type_string = eip712_encode_type_json(types, m->name, &err);
        if (m->type_string == NULL)
            BUG("types.json: %s", err.message);
        m->type_hash = keccak256(m->type_string, strlen(m->type_string));
        if (m->members != NULL)
            load_members(m, json_object_get(types, m->name));
        const json_t *domain = json_object_get(domains, m->name);
        if (domain != NULL) {
            m->domain_name = hash_text(json_object_get(domain, "name"));
            m->domain_version = hash_text(json_object_get(domain, "version"));
        }
    }
    /* The domain below is written word by word: its type must be the one that is written. */
    BUG_IF(strcmp(messages[DOMAIN_TYPE].type_string,
                  "EIP712Domain(string name,string version,uint256 chainId,"
                  "address verifyingContract)") != 0);
}

static const struct message_type *message_type(enum message which)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    return &messages[which];
}

static void word_of_u64(uint8_t out[WORD], uint64_t v)
{
    u256_to_bytes(out, u256_of(v));
}

static struct keccak_digest hash_message(const struct message_type *m, const void *value);

static void word_of_member(uint8_t out[WORD], const struct member *m, const void *value)
{
    const uint8_t *at = (const uint8_t *)value + m->offset;
    memset(out, 0, WORD);
    if (strcmp(m->type, "bytes32") == 0) {
        memcpy(out, at, WORD);
    } else if (strcmp(m->type, "address") == 0) {
        memcpy(out + 12, at, 20);
    } else if (strcmp(m->type, "uint128") == 0) {
        struct amount a;
        memcpy(&a, at, sizeof a);
        amount_to_bytes(out + 16, a);
    } else if (strcmp(m->type, "uint64") == 0) {
        uint64_t v;
        memcpy(&v, at, sizeof v);
        word_of_u64(out, v);
    } else if (strcmp(m->type, "uint32") == 0) {
        uint32_t v;
        memcpy(&v, at, sizeof v);
        word_of_u64(out, v);
    } else if (strcmp(m->type, "uint16") == 0) {
        uint16_t v;
        memcpy(&v, at, sizeof v);
        word_of_u64(out, v);
    } else if (strcmp(m->type, "AdapterShare[]") == 0) {
        const struct receipt *r = value;
        struct keccak k;
        keccak_init(&k);
        for (size_t i = 0; i < r->n_adapters; i++)
            keccak_update(&k, hash_message(message_type(ADAPTER_SHARE), &r->adapters[i]).bytes,
                          WORD);
        memcpy(out, keccak_final(&k).bytes, WORD);
    } else {
        BUG("no word for a member of type %s", m->type);
    }
}

static struct keccak_digest hash_message(const struct message_type *m, const void *value)
{
    struct keccak k;
    keccak_init(&k);
    keccak_update(&k, m->type_hash.bytes, WORD);
    for (const struct member *f = m->ordered; f->name != NULL; f++) {
        uint8_t word[WORD];
        word_of_member(word, f, value);
        keccak_update(&k, word, sizeof word);
    }
    return keccak_final(&k);
}

static struct keccak_digest typed_digest(enum message which, const void *value,
                                         const struct eip712_domain *d)
{
    const struct message_type *m = message_type(which);
    uint8_t words[5][WORD] = {{0}};
    memcpy(words[0], message_type(DOMAIN_TYPE)->type_hash.bytes, WORD);
    memcpy(words[1], m->domain_name.bytes, WORD);
    memcpy(words[2], m->domain_version.bytes, WORD);
    word_of_u64(words[3], d->chain_id);
    memcpy(words[4] + 12, d->verifying_contract.bytes, 20);
    return digest_of(keccak256(words, sizeof words).bytes, hash_message(m, value).bytes);
}

#define DIGEST_FUNCTION(kind, which, message)                                                      \
    struct kind##_digest eip712_##kind(const struct message *value, const struct eip712_domain *d) \
    {                                                                                              \
        struct keccak_digest h = typed_digest(which, value, d);                                    \
        struct kind##_digest out;                                                                  \
        memcpy(out.bytes, h.bytes, WORD);                                                          \
        return out;                                                                                \
    }

DIGEST_FUNCTION(receipt, RECEIPT, receipt)
DIGEST_FUNCTION(batch, BATCH, batch)
DIGEST_FUNCTION(voucher, VOUCHER, voucher)
DIGEST_FUNCTION(request, REQUEST, request_auth)
DIGEST_FUNCTION(manifest, MANIFEST, manifest)

const char *eip712_type_string(const char *type)
{
    for (int i = 0; i < N_MESSAGES; i++) {
        const struct message_type *m = message_type((enum message)i);
        if (strcmp(m->name, type) == 0)
            return m->type_string;
    }
    return NULL;
}
