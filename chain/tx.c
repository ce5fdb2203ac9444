/* tx: see tx.h.
 *
 * The three kinds differ in which fields come in which order; what is signed and what is broadcast
 * differ in the end only. So writing is one walk over the fields, and parsing is the same walk the
 * other way:
 *
 *                    legacy            2930                   1559
 *   before the list  -                 0x01                   0x02
 *   first            nonce             chainId, nonce         chainId, nonce
 *   fees             gasPrice          gasPrice               maxPriority, maxFee
 *   middle           gas, to, value, data                     (all)
 *   then             -                 accessList             accessList
 *   unsigned end     chainId, 0, 0 *   -                      -
 *   signed end       v, r, s           yParity, r, s          yParity, r, s
 *
 *   * only with a chain id (EIP-155), and then v = 35 + 2 chainId + yParity; without, v = 27 +
 * yParity and nothing marks the end of the unsigned form.
 *
 * Everything that is parsed has one encoding: lists and integers are canonical (rlp.h), `to` has 0
 * or 20 bytes, keys 32. A test writes back what it parsed and compares bytes. */
#include "chain/tx.h"

#include "chain/keccak.h"
#include "chain/rlp.h"
#include "node/base/arena.h"
#include "node/base/buf.h"
#include "node/base/err.h"

#include <string.h>

enum {
    TYPE_ACCESS_LIST = 0x01,
    TYPE_FEE_MARKET = 0x02,
    TYPE_BLOB = 0x03,
    TYPE_SET_CODE = 0x04,
    V_PLAIN = 27,  /* Yellow Paper, appendix F */
    V_EIP155 = 35, /* EIP-155 */
};

/* ---- writing ------------------------------------------------------------------------------ */

static void write_accesses(struct buf *out, const struct tx *tx)
{
    struct buf list = BUF_INIT;
    for (size_t i = 0; i < tx->n_accesses; i++) {
        const struct tx_access *a = &tx->accesses[i];
        struct buf keys = BUF_INIT, pair = BUF_INIT;
        for (size_t k = 0; k < a->n_keys; k++)
            rlp_string(&keys, a->keys[k].bytes, sizeof a->keys[k].bytes);
        rlp_string(&pair, a->address.bytes, sizeof a->address.bytes);
        rlp_list(&pair, &keys);
        rlp_list(&list, &pair);
        buf_release(&keys);
        buf_release(&pair);
    }
    rlp_list(out, &list);
    buf_release(&list);
}

/* v of a legacy signature: it has the chain id in it, so it may need more than 64 bits. */
static struct u256 legacy_v(uint64_t chain_id, uint8_t y_parity)
{
    if (chain_id == 0)
        return u256_of(V_PLAIN + (uint64_t)y_parity);
    struct u256 v;
    BUG_IF(u256_mul(&v, u256_of(chain_id), 2) != 0);
    BUG_IF(u256_add(&v, v, u256_of(V_EIP155 + (uint64_t)y_parity)) != 0);
    return v;
}

static void write(struct buf *out, const struct tx *tx, const struct signature *sig)
{
    struct buf fields = BUF_INIT;
    BUG_IF(tx->kind == TX_LEGACY && tx->n_accesses > 0);
    BUG_IF(sig != NULL && sig->y_parity > 1);
    if (tx->kind != TX_LEGACY)
        rlp_u64(&fields, tx->chain_id);
    rlp_u64(&fields, tx->nonce);
    if (tx->kind == TX_FEE_MARKET) {
        rlp_u256(&fields, tx->max_priority_fee);
        rlp_u256(&fields, tx->max_fee);
    } else {
        rlp_u256(&fields, tx->gas_price);
    }
    rlp_u64(&fields, tx->gas_limit);
    rlp_string(&fields, tx->to.bytes, tx->creates ? 0 : sizeof tx->to.bytes);
    rlp_u256(&fields, tx->value);
    rlp_string(&fields, tx->data, tx->n_data);
    if (tx->kind != TX_LEGACY)
        write_accesses(&fields, tx);
    if (sig != NULL) {
        if (tx->kind == TX_LEGACY)
            rlp_u256(&fields, legacy_v(tx->chain_id, sig->y_parity));
        else
            rlp_u64(&fields, sig->y_parity);
        rlp_u256(&fields, u256_from_bytes(sig->r));
        rlp_u256(&fields, u256_from_bytes(sig->s));
    } else if (tx->kind == TX_LEGACY && tx->chain_id != 0) {
        rlp_u64(&fields, tx->chain_id);
        rlp_u64(&fields, 0);
        rlp_u64(&fields, 0);
    }
    switch (tx->kind) {
    case TX_LEGACY:
        break;
    case TX_ACCESS_LIST:
        buf_append_byte(out, TYPE_ACCESS_LIST);
        break;
    case TX_FEE_MARKET:
        buf_append_byte(out, TYPE_FEE_MARKET);
        break;
    }
    rlp_list(out, &fields);
    buf_release(&fields);
}

void tx_write_unsigned(struct buf *out, const struct tx *tx)
{
    write(out, tx, NULL);
}

void tx_write_signed(struct buf *out, const struct tx *tx, const struct signature *sig)
{
    write(out, tx, sig);
}

struct tx_digest tx_signing_digest(const struct tx *tx)
{
    struct buf b = BUF_INIT;
    write(&b, tx, NULL);
    struct keccak_digest h = keccak256(b.data, b.len);
    buf_release(&b);
    struct tx_digest d;
    memcpy(d.bytes, h.bytes, sizeof d.bytes);
    return d;
}

struct tx_hash tx_hash_of(const void *signed_bytes, size_t n)
{
    struct keccak_digest h = keccak256(signed_bytes, n);
    struct tx_hash hash;
    memcpy(hash.bytes, h.bytes, sizeof hash.bytes);
    return hash;
}

int tx_cost_limit(struct u256 *out, const struct tx *tx)
{
    struct u256 price = tx->kind == TX_FEE_MARKET ? tx->max_fee : tx->gas_price, cost;
    if (u256_mul(&cost, price, tx->gas_limit) != 0 || u256_add(&cost, cost, tx->value) != 0)
        return -1;
    *out = cost;
    return 0;
}

/* ---- parsing ------------------------------------------------------------------------------ */

/* Reads fields one after the other; after the first error it reads nothing more and keeps it. */
struct walk {
    struct rlp_reader left;
    struct err *err;
    bool failed;
};

static void fail(struct walk *w, const char *field, const char *why)
{
    if (!w->failed)
        err_set(w->err, ERR_INVALID, "transaction: %s %s", field, why);
    w->failed = true;
}

static void wrap(struct walk *w, const char *field)
{
    w->failed = true;
    err_wrap(w->err, "transaction: %s", field);
}

static bool take(struct walk *w, const char *field, bool want_list, struct rlp_item *item)
{
    if (w->failed)
        return false;
    int rc = rlp_next(&w->left, item, w->err);
    if (rc < 0)
        wrap(w, field);
    else if (rc == 0)
        fail(w, field, "is missing");
    else if (item->is_list != want_list)
        fail(w, field, want_list ? "is not a list" : "is a list");
    return !w->failed;
}

static uint64_t take_u64(struct walk *w, const char *field)
{
    struct rlp_item item;
    uint64_t v = 0;
    if (take(w, field, false, &item) && rlp_to_u64(&v, &item, w->err) != 0)
        wrap(w, field);
    return v;
}

static struct u256 take_u256(struct walk *w, const char *field)
{
    struct rlp_item item;
    struct u256 v = U256_ZERO;
    if (take(w, field, false, &item) && rlp_to_u256(&v, &item, w->err) != 0)
        wrap(w, field);
    return v;
}

static void take_fixed(struct walk *w, const char *field, uint8_t *out, size_t n)
{
    struct rlp_item item;
    if (!take(w, field, false, &item))
        return;
    if (item.n_bytes != n)
        fail(w, field, "has the wrong length");
    else
        memcpy(out, item.payload, n);
}

static void take_to(struct walk *w, struct tx *tx)
{
    struct rlp_item item;
    if (!take(w, "to", false, &item))
        return;
    tx->creates = item.n_bytes == 0;
    if (item.n_bytes == sizeof tx->to.bytes)
        memcpy(tx->to.bytes, item.payload, sizeof tx->to.bytes);
    else if (!tx->creates)
        fail(w, "to", "is not 20 bytes long");
}

static size_t count_items(struct walk *w, const struct rlp_item *list, const char *field)
{
    struct rlp_reader r = rlp_items(list);
    struct rlp_item item;
    size_t n = 0;
    int rc;
    while ((rc = rlp_next(&r, &item, w->err)) == 1)
        n++;
    if (rc < 0)
        wrap(w, field);
    return n;
}

/* One [address, [key, ...]] of an access list. The lists are no longer than the transaction, so
 * neither are the arrays. */
static void take_access(struct walk *list, struct tx_access *out, struct arena *arena)
{
    struct rlp_item pair, keys_item;
    if (!take(list, "access list entry", true, &pair))
        return;
    struct walk w = {rlp_items(&pair), list->err, false};
    take_fixed(&w, "access list address", out->address.bytes, sizeof out->address.bytes);
    if (take(&w, "access list keys", true, &keys_item)) {
        size_t n = count_items(&w, &keys_item, "access list keys");
        struct bytes32 *keys = arena_array(arena, n, sizeof *keys);
        struct walk k = {rlp_items(&keys_item), list->err, w.failed};
        for (size_t i = 0; i < n && !k.failed; i++)
            take_fixed(&k, "access list key", keys[i].bytes, sizeof keys[i].bytes);
        out->keys = keys;
        out->n_keys = n;
        w.failed = k.failed;
    }
    if (!w.failed && w.left.left > 0)
        fail(&w, "access list entry", "has more than two items");
    list->failed = w.failed;
}

static void take_accesses(struct walk *w, struct tx *tx, struct arena *arena)
{
    struct rlp_item item;
    if (!take(w, "access list", true, &item))
        return;
    size_t n = count_items(w, &item, "access list");
    if (w->failed)
        return;
    struct tx_access *accesses = arena_array(arena, n, sizeof *accesses);
    struct walk list = {rlp_items(&item), w->err, false};
    for (size_t i = 0; i < n && !list.failed; i++)
        take_access(&list, &accesses[i], arena);
    w->failed = list.failed;
    tx->accesses = accesses;
    tx->n_accesses = n;
}

static void take_r_and_s(struct walk *w, struct signature *sig)
{
    u256_to_bytes(sig->r, take_u256(w, "r"));
    u256_to_bytes(sig->s, take_u256(w, "s"));
}

/* The end of a legacy transaction: nothing; or chainId, 0, 0; or v, r, s. */
static void take_legacy_end(struct walk *w, struct tx *tx, struct signature *sig, bool *is_signed)
{
    uint64_t odd;
    if (w->failed || w->left.left == 0)
        return;
    struct u256 v = take_u256(w, "v");
    take_r_and_s(w, sig);
    if (w->failed)
        return;
    *is_signed = !bytes32_is_zero(sig->r) || !bytes32_is_zero(sig->s);
    if (!*is_signed) {
        if (u256_to_u64(&tx->chain_id, v) != 0 || tx->chain_id == 0)
            fail(w, "chain id", "is 0 or above 2^64 - 1");
        return;
    }
    if (u256_cmp(v, u256_of(V_PLAIN)) == 0 || u256_cmp(v, u256_of(V_PLAIN + 1)) == 0) {
        sig->y_parity = u256_cmp(v, u256_of(V_PLAIN)) == 0 ? 0 : 1;
        return;
    }
    if (u256_sub(&v, v, u256_of(V_EIP155)) != 0) {
        fail(w, "v", "is neither 27 nor 28 nor at least 35");
        return;
    }
    v = u256_div(v, 2, &odd);
    sig->y_parity = (uint8_t)odd;
    /* v = 35 and 36 would be chain id 0, which is written as 27 and 28. */
    if (u256_to_u64(&tx->chain_id, v) != 0 || tx->chain_id == 0)
        fail(w, "chain id", "is 0 or above 2^64 - 1");
}

static void take_typed_end(struct walk *w, struct signature *sig, bool *is_signed)
{
    if (w->failed || w->left.left == 0)
        return;
    uint64_t y_parity = take_u64(w, "yParity");
    if (!w->failed && y_parity > 1)
        fail(w, "yParity", "is neither 0 nor 1");
    take_r_and_s(w, sig);
    sig->y_parity = (uint8_t)y_parity;
    *is_signed = true;
}

static int read_kind(enum tx_kind *out, const uint8_t *bytes, size_t n, struct err *err)
{
    if (n == 0)
        return err_set(err, ERR_INVALID, "transaction: empty");
    if (bytes[0] >= 0xc0) {
        *out = TX_LEGACY;
        return 0;
    }
    switch (bytes[0]) {
    case TYPE_ACCESS_LIST:
        *out = TX_ACCESS_LIST;
        return 0;
    case TYPE_FEE_MARKET:
        *out = TX_FEE_MARKET;
        return 0;
    case TYPE_BLOB:
        return err_set(err, ERR_UNSUPPORTED, "transaction: blob transactions (EIP-4844)");
    case TYPE_SET_CODE:
        return err_set(err, ERR_UNSUPPORTED, "transaction: set-code transactions (EIP-7702)");
    default:
        return err_set(err, ERR_INVALID, "transaction: unknown type 0x%02x", bytes[0]);
    }
}

int tx_parse(struct tx *out, struct signature *sig, bool *is_signed, struct arena *arena,
             const void *bytes, size_t n, struct err *err)
{
    const uint8_t *p = bytes;
    struct rlp_item list, data;
    struct err ignored;
    struct tx tx = {0};
    struct signature read = {0};
    bool signature_there = false;
    if (err == NULL)
        err = &ignored;
    if (n > TX_MAX_BYTES)
        return err_set(err, ERR_TOO_LARGE, "transaction: %zu bytes, the limit is %d", n,
                       TX_MAX_BYTES);
    if (read_kind(&tx.kind, p, n, err) != 0)
        return -1;
    size_t n_type = tx.kind == TX_LEGACY ? 0 : 1;
    if (n == n_type)
        return err_set(err, ERR_INVALID, "transaction: ends after its type");
    if (rlp_decode(&list, p + n_type, n - n_type, err) != 0)
        return err_wrap(err, "transaction");
    if (!list.is_list)
        return err_set(err, ERR_INVALID, "transaction: not a list");

    struct walk w = {rlp_items(&list), err, false};
    if (tx.kind != TX_LEGACY)
        tx.chain_id = take_u64(&w, "chain id");
    tx.nonce = take_u64(&w, "nonce");
    if (tx.kind == TX_FEE_MARKET) {
        tx.max_priority_fee = take_u256(&w, "maxPriorityFeePerGas");
        tx.max_fee = take_u256(&w, "maxFeePerGas");
    } else {
        tx.gas_price = take_u256(&w, "gasPrice");
    }
    tx.gas_limit = take_u64(&w, "gas limit");
    take_to(&w, &tx);
    tx.value = take_u256(&w, "value");
    if (take(&w, "data", false, &data)) {
        tx.data = data.payload;
        tx.n_data = data.n_bytes;
    }
    if (tx.kind == TX_LEGACY) {
        take_legacy_end(&w, &tx, &read, &signature_there);
    } else {
        take_accesses(&w, &tx, arena);
        take_typed_end(&w, &read, &signature_there);
    }
    if (!w.failed && w.left.left > 0)
        fail(&w, "list", "has too many items");
    if (w.failed)
        return -1;
    *out = tx;
    *sig = read;
    *is_signed = signature_there;
    return 0;
}
