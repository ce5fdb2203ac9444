/* rpc_json: see rpc_json.h.
 *
 * Formats: Ethereum JSON-RPC ("execution-apis"): a quantity is 0x and hexadecimal digits without
 * leading zeros (zeros are tolerated, some nodes send them), data is 0x and two digits a byte. A
 * reader walks over the fields of one object, keeps the first error and goes quiet. */
#include "chain/rpc_json.h"

#include "node/base/arena.h"
#include "node/base/err.h"
#include "node/base/hex.h"

#include <stdlib.h>
#include <string.h>

enum {
    FEE_HISTORY_MAX = 1024, /* blocks; we ask for 20 */
    CODE_REVERTED = 3,      /* geth's code of "execution reverted" */
};

void rpc_node_error_release(struct rpc_node_error *e)
{
    buf_release(&e->data);
    *e = (struct rpc_node_error){0};
}

static void copy_printable(char *out, size_t cap, const char *text)
{
    size_t n = strnlen(text, cap - 1);
    for (size_t i = 0; i < n; i++)
        out[i] = (unsigned char)text[i] < ' ' || (unsigned char)text[i] >= 127 ? '?' : text[i];
    out[n] = '\0';
}

/* Appends the bytes of a 0x string; -1 when it is none. */
static int append_hex(struct buf *out, const json_t *value)
{
    const char *text = json_string_value(value);
    if (text == NULL || text[0] != '0' || (text[1] != 'x' && text[1] != 'X') ||
        json_string_length(value) % 2 != 0)
        return -1;
    size_t n = json_string_length(value) / 2 - 1;
    buf_reserve(out, n);
    if (hex_decode(out->data + out->len, n, text) != 0) {
        out->data[out->len] = '\0';
        return -1;
    }
    out->len += n;
    out->data[out->len] = '\0';
    return 0;
}

/* ---- the envelope ------------------------------------------------------------------------- */

/* A revert's bytes are error.data with geth, anvil and erigon, error.data.data or error.data.result
 * with older nodes, and follow "Reverted " in error.data with parity's line. */
static void find_revert_data(struct rpc_node_error *e, const json_t *data)
{
    static const char *const keys[] = {"data", "result", "originalError"};
    for (int depth = 0; depth < 4 && data != NULL; depth++) {
        if (json_is_string(data)) {
            e->has_data = append_hex(&e->data, data) == 0;
            const char *text = json_string_value(data);
            if (!e->has_data && strncmp(text, "Reverted 0x", 11) == 0) {
                json_t *rest = json_string(text + 9);
                e->has_data = append_hex(&e->data, rest) == 0;
                json_decref(rest);
            }
            return;
        }
        const json_t *inner = NULL;
        for (size_t i = 0; i < sizeof keys / sizeof *keys && inner == NULL; i++)
            inner = json_object_get(data, keys[i]);
        data = inner;
    }
}

int rpc_json_answer(json_t **result, struct rpc_node_error *node_error, const void *text, size_t n,
                    uint64_t id, struct err *err)
{
    json_error_t why;
    json_t *answer = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &why);
    if (answer == NULL)
        return err_set(err, ERR_UPSTREAM, "the answer is not JSON: %s", why.text);
    int rc;
    json_t *error = json_object_get(answer, "error"), *value = json_object_get(answer, "result");
    json_t *its_id = json_object_get(answer, "id");
    if (!json_is_object(answer)) {
        rc = err_set(err, ERR_UPSTREAM, "the answer is not a JSON object");
    } else if (json_is_object(error)) {
        /* Nodes that couldn't read the request answer with id null. */
        const char *message = json_string_value(json_object_get(error, "message"));
        *node_error = (struct rpc_node_error){
            .code = (int64_t)json_integer_value(json_object_get(error, "code"))};
        copy_printable(node_error->message, sizeof node_error->message,
                       message != NULL ? message : "an error without a message");
        find_revert_data(node_error, json_object_get(error, "data"));
        rc = 1;
    } else if (!json_is_integer(its_id) || json_integer_value(its_id) != (json_int_t)id) {
        rc = err_set(err, ERR_UPSTREAM, "the answer is to another request");
    } else if (value == NULL || (error != NULL && !json_is_null(error))) {
        rc = err_set(err, ERR_UPSTREAM, "the answer has neither result nor error");
    } else {
        *result = json_incref(value);
        rc = 0;
    }
    json_decref(answer);
    return rc;
}

bool rpc_json_is_revert(const struct rpc_node_error *e)
{
    return e->code == CODE_REVERTED || e->has_data || strstr(e->message, "revert") != NULL;
}

/* ---- values ------------------------------------------------------------------------------- */

static int bad(const char *what, const json_t *value, const char *expected, struct err *err)
{
    char shown[40] = "nothing";
    if (json_is_string(value))
        copy_printable(shown, sizeof shown, json_string_value(value));
    else if (value != NULL)
        copy_printable(shown, sizeof shown, json_is_null(value) ? "null" : "another JSON type");
    return err_set(err, ERR_UPSTREAM, "%s is %s, expected %s", what, shown, expected);
}

int rpc_json_u256(struct u256 *out, const json_t *value, const char *what, struct err *err)
{
    const char *text = json_string_value(value);
    if (text == NULL || strlen(text) != json_string_length(value) || u256_parse_hex(out, text) != 0)
        return bad(what, value, "a quantity", err);
    return 0;
}

int rpc_json_u64(uint64_t *out, const json_t *value, const char *what, struct err *err)
{
    struct u256 v;
    if (rpc_json_u256(&v, value, what, err) != 0)
        return -1;
    return u256_to_u64(out, v) == 0 ? 0 : bad(what, value, "a quantity of 64 bits", err);
}

static int fixed_bytes(uint8_t *out, size_t n, const json_t *value, const char *what,
                       struct err *err)
{
    const char *text = json_string_value(value);
    if (text == NULL || strlen(text) != json_string_length(value) || text[0] != '0' ||
        hex_decode(out, n, text) != 0)
        return bad(what, value, n == 20 ? "an address" : "32 bytes", err);
    return 0;
}

int rpc_json_hash(uint8_t out[32], const json_t *value, const char *what, struct err *err)
{
    return fixed_bytes(out, 32, value, what, err);
}

int rpc_json_bytes(struct buf *out, const json_t *value, const char *what, struct err *err)
{
    return append_hex(out, value) == 0 ? 0 : bad(what, value, "bytes", err);
}

/* ---- objects ------------------------------------------------------------------------------ */

struct reader {
    const json_t *object;
    const char *what; /* "block", "log": before the field's name in errors */
    struct err *err;
    bool failed;
};

static void done(struct reader *r, int rc)
{
    if (rc != 0) {
        err_wrap(r->err, "%s", r->what);
        r->failed = true;
    }
}

static uint64_t read_u64(struct reader *r, const char *key)
{
    uint64_t v = 0;
    if (!r->failed)
        done(r, rpc_json_u64(&v, json_object_get(r->object, key), key, r->err));
    return v;
}

/* Zero when the field is absent or null. */
static struct u256 read_optional_u256(struct reader *r, const char *key, bool *present)
{
    struct u256 v = U256_ZERO;
    const json_t *value = json_object_get(r->object, key);
    if (present != NULL)
        *present = value != NULL && !json_is_null(value);
    if (!r->failed && value != NULL && !json_is_null(value))
        done(r, rpc_json_u256(&v, value, key, r->err));
    return v;
}

static void read_fixed(struct reader *r, const char *key, uint8_t *out, size_t n)
{
    if (!r->failed)
        done(r, fixed_bytes(out, n, json_object_get(r->object, key), key, r->err));
}

static int begin(struct reader *r, const json_t *value, const char *what, struct err *err,
                 struct err *ignored)
{
    *r = (struct reader){value, what, err != NULL ? err : ignored, false};
    if (json_is_object(value))
        return 0;
    return err_set(err, ERR_UPSTREAM, "%s is not an object", what);
}

int rpc_json_block(struct rpc_block *out, const json_t *value, struct err *err)
{
    struct err ignored;
    struct reader r;
    struct rpc_block b = {0};
    if (begin(&r, value, "block", err, &ignored) != 0)
        return -1;
    b.number = read_u64(&r, "number");
    b.timestamp_s = read_u64(&r, "timestamp");
    read_fixed(&r, "hash", b.hash.bytes, 32);
    read_fixed(&r, "parentHash", b.parent.bytes, 32);
    b.base_fee = read_optional_u256(&r, "baseFeePerGas", &b.has_base_fee);
    if (r.failed)
        return -1;
    *out = b;
    return 0;
}

static void read_topics(struct reader *r, struct rpc_log *log)
{
    const json_t *topics = json_object_get(r->object, "topics");
    size_t n = json_array_size(topics);
    if (r->failed)
        return;
    if (!json_is_array(topics) || n > RPC_TOPICS_MAX) {
        done(r, bad("topics", topics, "an array of at most 4", r->err));
        return;
    }
    for (size_t i = 0; i < n && !r->failed; i++)
        done(r, rpc_json_hash(log->topics[i].bytes, json_array_get(topics, i), "topic", r->err));
    log->n_topics = (uint32_t)n;
}

int rpc_json_log(struct rpc_log *out, const json_t *value, struct arena *arena, struct err *err)
{
    struct err ignored;
    struct reader r;
    struct rpc_log log = {0};
    struct buf data = BUF_INIT;
    if (begin(&r, value, "log", err, &ignored) != 0)
        return -1;
    if (json_is_true(json_object_get(value, "removed")))
        return err_set(err, ERR_UPSTREAM, "log of a block that was removed by a reorganisation");
    read_fixed(&r, "address", log.address.bytes, 20);
    read_topics(&r, &log);
    log.block_number = read_u64(&r, "blockNumber");
    log.tx_index = read_u64(&r, "transactionIndex");
    log.log_index = read_u64(&r, "logIndex");
    read_fixed(&r, "blockHash", log.block.bytes, 32);
    read_fixed(&r, "transactionHash", log.tx.bytes, 32);
    if (!r.failed)
        done(&r, rpc_json_bytes(&data, json_object_get(value, "data"), "data", r.err));
    if (!r.failed) {
        uint8_t *copy = arena_alloc(arena, data.len);
        if (data.len > 0)
            memcpy(copy, data.data, data.len);
        log.data = copy;
        log.n_data = data.len;
        *out = log;
    }
    buf_release(&data);
    return r.failed ? -1 : 0;
}

static int read_logs(struct rpc_logs *out, const json_t *list, struct arena *arena, struct err *err)
{
    if (!json_is_array(list))
        return err_set(err, ERR_UPSTREAM, "transaction receipt: logs is not an array");
    size_t n = json_array_size(list);
    struct rpc_log *items = arena_array(arena, n, sizeof *items);
    for (size_t i = 0; i < n; i++) {
        if (rpc_json_log(&items[i], json_array_get(list, i), arena, err) != 0)
            return err_wrap(err, "transaction receipt");
    }
    *out = (struct rpc_logs){items, n};
    return 0;
}

int rpc_json_receipt(struct rpc_receipt *out, const json_t *value, struct tx_hash hash,
                     struct rpc_logs *logs, struct arena *arena, struct err *err)
{
    struct err ignored;
    struct reader r;
    struct rpc_receipt got = {.mined = true};
    struct tx_hash its = {{0}};
    if (begin(&r, value, "transaction receipt", err, &ignored) != 0)
        return -1;
    read_fixed(&r, "transactionHash", its.bytes, 32);
    got.block_number = read_u64(&r, "blockNumber");
    read_fixed(&r, "blockHash", got.block.bytes, 32);
    uint64_t status = read_u64(&r, "status");
    got.gas_used = read_u64(&r, "gasUsed");
    got.gas_price = read_optional_u256(&r, "effectiveGasPrice", NULL);
    got.l1_fee = read_optional_u256(&r, "l1Fee", NULL);
    const json_t *created = json_object_get(value, "contractAddress");
    got.created = created != NULL && !json_is_null(created);
    if (got.created)
        read_fixed(&r, "contractAddress", got.contract.bytes, 20);
    if (r.failed)
        return -1;
    if (!DIGEST_EQ(its, hash))
        return err_set(err, ERR_UPSTREAM, "transaction receipt is another transaction's");
    if (status > 1)
        return err_set(err, ERR_UPSTREAM, "transaction receipt: status is neither 0 nor 1");
    got.succeeded = status == 1;
    if (logs != NULL && read_logs(logs, json_object_get(value, "logs"), arena, err) != 0)
        return -1;
    *out = got;
    return 0;
}

/* ---- fees --------------------------------------------------------------------------------- */

static int compare_u256(const void *a, const void *b)
{
    return u256_cmp(*(const struct u256 *)a, *(const struct u256 *)b);
}

/* eth_feeHistory with one percentile: {"baseFeePerGas": [n + 1], "reward": [[tip]] * n}; the last
 * base fee is the next block's. Empty blocks report a tip of zero, which says nothing: they don't
 * count. */
int rpc_json_fee_history(struct u256 *base_fee, struct u256 *tip, const json_t *value,
                         struct err *err)
{
    const json_t *bases = json_object_get(value, "baseFeePerGas");
    const json_t *rewards = json_object_get(value, "reward");
    const json_t *used = json_object_get(value, "gasUsedRatio");
    size_t n_bases = json_array_size(bases), n = json_array_size(rewards), n_tips = 0;
    struct u256 base;
    if (n_bases == 0 || n_bases > FEE_HISTORY_MAX || n > FEE_HISTORY_MAX)
        return err_set(err, ERR_UPSTREAM, "the fee history names no base fee");
    if (rpc_json_u256(&base, json_array_get(bases, n_bases - 1), "base fee", err) != 0)
        return -1;
    struct u256 *tips = xcalloc(n, sizeof *tips);
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        const json_t *ratio = json_array_get(used, i);
        if (json_is_number(ratio) && json_number_value(ratio) == 0)
            continue;
        rc = rpc_json_u256(&tips[n_tips], json_array_get(json_array_get(rewards, i), 0), "reward",
                           err);
        n_tips += rc == 0;
    }
    if (rc == 0) {
        qsort(tips, n_tips, sizeof *tips, compare_u256);
        *base_fee = base;
        *tip = n_tips > 0 ? tips[n_tips / 2] : U256_ZERO;
    }
    free(tips);
    return rc;
}
